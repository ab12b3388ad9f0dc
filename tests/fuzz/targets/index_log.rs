//! Dovecot's index logs: what is understood can be gone on from, and what is cut is not understood.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::index::{State, Transaction};

fuzz_target!(|bytes: &[u8]| {
    let mut state = State::EMPTY;
    if state.replay(bytes).is_err() {
        return;
    }
    assert!(state.next_uid > 0);
    let mut transaction = Transaction::default();
    transaction.append(&[(state.next_uid, 0)]);
    transaction.keyword("a", [state.next_uid]);
    let added = transaction.into_bytes();
    let whole = [bytes, &added].concat();
    let mut next = State::EMPTY;
    let replayed = next.replay(&whole);
    // The last UID of all leaves none behind it.
    assert_eq!(replayed.is_ok(), state.next_uid < u32::MAX);
    if replayed.is_ok() {
        assert_eq!(next.next_uid, state.next_uid + 1);
    }
    let mut cut = State::EMPTY;
    assert!(cut.replay(&whole[..whole.len() - 1]).is_err());
});
