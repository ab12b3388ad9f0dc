//! A file of addresses: a rule has all that it needs, and stands there, in a line that ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::deliver::map::{AddressFile, AddressMap, Table};

fuzz_target!(|input: (&[u8], &str)| {
    let (bytes, address) = input;
    let file = AddressFile::new(postroom_fuzz::file("addresses", bytes));
    let map = AddressMap {
        tables: vec![Table::File(file)],
        ..AddressMap::default()
    };
    if let Ok(Some(rule)) = map.rule(address) {
        assert!(!rule.mailbox.is_empty() && !rule.user.is_empty());
        let end = bytes.iter().rposition(|byte| *byte == b'\n').unwrap();
        let text = std::str::from_utf8(&bytes[..end]).unwrap();
        assert!(text.contains(&rule.mailbox) && text.contains(&rule.user));
    }
});
