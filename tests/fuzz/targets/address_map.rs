//! A file of addresses: a rule has all that it needs, and stands there, in a line that ends; an address without one has no line.
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
    let end = bytes.iter().rposition(|byte| *byte == b'\n');
    let text = str::from_utf8(&bytes[..end.map_or(0, |end| end + 1)]);
    match map.rule(address) {
        Ok(Some(rule)) => {
            assert!(!rule.mailbox.is_empty() && !rule.user.is_empty());
            let text = text.unwrap();
            assert!(text.contains(&rule.mailbox) && text.contains(&rule.user));
        }
        Ok(None) => {
            let lines = text.unwrap().lines().filter(|line| !line.starts_with('#'));
            let mut addresses = lines.filter_map(|line| line.split_once('\t'));
            assert!(!addresses.any(|(of, _)| of.trim().to_lowercase() == address));
            assert!(bytes.ends_with(b"\n"));
        }
        Err(_) => {}
    }
});
