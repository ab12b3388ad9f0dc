//! Paths of a peer: what was parsed is displayed as something that parses to the same, without a control character.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::message::Address;

fuzz_target!(|bytes: &[u8]| {
    for utf8 in [false, true] {
        let Ok((address, rest)) = Address::parse_path(bytes, utf8) else {
            continue;
        };
        assert!(rest.len() < bytes.len());
        let shown = address.to_string();
        assert!(!shown.chars().any(char::is_control));
        assert_eq!(Address::parse(&shown).as_ref(), Ok(&address));
        let (user, detail) = address.split_detail("+-");
        assert_eq!(detail.is_none(), user == address);
    }
});
