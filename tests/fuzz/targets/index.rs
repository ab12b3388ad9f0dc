//! An index and its log, as they lie in a mailbox: what is understood is gone on from, and what is not stays as it is.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use postroom::index::log::{LockMethod, TIMEOUT};
use postroom::index::{Log, Pair, Transaction, Walks};
use postroom::sys::dir::Dir;

fuzz_target!(|input: (&[u8], &[u8])| {
    let (index, log) = input;
    let path = postroom_fuzz::file(Pair::MAILBOX.log(), log);
    postroom_fuzz::file("dovecot.index", index);
    let dir = Dir::open(path.parent().unwrap()).unwrap();
    let look = || Log::look(&dir, Pair::MAILBOX, &Walks::default());
    let lock = || {
        Log::lock(
            &dir,
            Pair::MAILBOX,
            LockMethod::Fcntl,
            &Walks::default(),
            TIMEOUT,
        )
    };
    let Ok(Some(mut locked)) = lock() else {
        assert_eq!(fs::read(&path).unwrap(), log);
        return;
    };
    let known = locked.state();
    assert_eq!(look().unwrap().unwrap().next_uid, known.next_uid);
    assert!(known.next_uid > 0);
    if known.next_uid == u32::MAX {
        return;
    }
    let mut transaction = Transaction::default();
    transaction.append(&[(known.next_uid, 0)]);
    locked.append(transaction).unwrap();
    drop(locked);
    assert!(fs::read(&path).unwrap().starts_with(log));
    let after = lock().unwrap().unwrap().state();
    assert_eq!(
        (after.validity, after.next_uid),
        (known.validity, known.next_uid + 1)
    );
});
