//! `dovecot-uidlist`: a new line has a UID above all others, and doctor's list has only what was in it. Neither takes more memory than
//! so many times the list.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use postroom::maildir::mend;
use postroom::maildir::uidlist::{FILE, Lock, TIMEOUT};
use postroom::sys::dir::Dir;
use postroom_fuzz::{Counted, most_held};

#[global_allocator]
static HEAP: Counted = Counted;

/// A delivery has both ends of a list and what it writes anew passes through; doctor has all of it, and its shortest lines as entries
/// of two tables that grow. Beside that, so many bytes.
const TIMES: [usize; 2] = [8, 100];
const BESIDE: usize = 32 * 1024;

/// The UIDs of the whole lines.
fn uids(list: &[u8]) -> Vec<u32> {
    let text = String::from_utf8_lossy(list);
    let lines = text.split_inclusive('\n').skip(1);
    lines
        .filter(|line| line.ends_with('\n') && line.contains(" :"))
        .filter_map(|line| line.split(' ').next()?.parse().ok())
        .collect()
}

fuzz_target!(|input: (bool, &[u8])| {
    let (has_header, lines) = input;
    let header: &[u8] = if has_header { b"3 V5 N2\n" } else { b"" };
    let bytes = &[header, lines].concat();
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(FILE);
    let lock = || Lock::take(Dir::open(root.path()).unwrap(), 0o600, TIMEOUT).unwrap();
    fs::write(&path, bytes).unwrap();
    let lock_held = lock();
    let append = || {
        let list = lock_held.list().ok()??;
        list.append(list.next().ok()?, &["new"]).ok()
    };
    let (given, held) = most_held(append);
    assert!(
        held <= BESIDE + TIMES[0] * bytes.len(),
        "{held} for {}",
        bytes.len()
    );
    if let Some(given) = given {
        let after = fs::read(&path).unwrap();
        let all = uids(&after);
        assert_eq!(all.last(), Some(&given[0]));
        // Older lines than those of its end are Dovecot's to judge.
        if after.len() < 4096 {
            assert!(all.is_sorted_by(|one, other| one < other), "{all:?}");
        }
    }
    drop(lock_held);
    fs::write(&path, bytes).unwrap();
    let lock_held = lock();
    let (mended, held) = most_held(|| mend::mend(&lock_held, |_| true));
    assert!(
        held <= BESIDE + TIMES[1] * bytes.len(),
        "{held} for {}",
        bytes.len()
    );
    if mended.is_ok() {
        assert_eq!(mend::mend(&lock_held, |_| true), Ok(Vec::new()));
        let before = uids(bytes);
        let after = uids(&fs::read(&path).unwrap());
        assert!(after.iter().all(|uid| before.contains(uid)));
    }
});
