//! Header blocks of a stranger.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::message::header;

fuzz_target!(|bytes: &[u8]| {
    if let Some(id) = header::message_id(bytes) {
        assert!(id.len() <= 200 && id.bytes().all(|byte| byte.is_ascii_graphic()));
    }
    for name in ["Subject", "X-Spam-Flag"] {
        if let Some(value) = header::field(bytes, name) {
            assert!(!value.chars().any(char::is_control));
        }
    }
});
