//! `maildirsize` and the limits of a userdb: no sum is below zero, and a full mailbox is full for a larger message too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::mailbox::quota::Limits;
use postroom::maildir::maildirsize::parse;

fuzz_target!(|input: (&str, &str, &[u8], u64)| {
    let (field, value, file, size) = input;
    let mut limits = Limits::default();
    let _ = limits.set(&format!("quota_{field}"), value);
    let line = limits.line();
    let text = [line.as_bytes(), b"\n", file].concat();
    if let Some((usage, _)) = parse(&text, &line) {
        assert!(usage.bytes >= 0 && usage.messages >= 0);
        if limits.refuse(usage, 0, 0).is_some() {
            assert!(limits.refuse(usage, size, 0).is_some());
        }
    }
});
