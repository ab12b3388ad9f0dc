//! `subscriptions`: a name is added to what is there, once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::mailbox::subscriptions::Name;

fuzz_target!(|input: (&[u8], &str)| {
    let (old, name) = input;
    let name = Name::new(name.to_owned(), '.');
    if let Ok(Some(new)) = name.added_to(old) {
        assert!(new.starts_with(old));
        assert_eq!(name.added_to(&new), Ok(None));
    }
});
