//! Dovecot's `file` dict of who shares with whom: the rows of an owner become those that are wanted, all else stays.
#![no_main]

use std::collections::BTreeSet;
use std::fs;

use libfuzzer_sys::fuzz_target;
use postroom::sharing::{Share, With, file};

fuzz_target!(|input: (&[u8], &str, &str)| {
    let (bytes, owner, friend) = input;
    let path = postroom_fuzz::file("map", bytes);
    let owners = BTreeSet::from([owner.to_owned()]);
    let with = |with| Share {
        from: owner.to_owned(),
        with,
    };
    let wanted = BTreeSet::from([with(With::User(friend.to_owned())), with(With::Anyone)]);
    let before = file::read(&path);
    if file::replace(&path, &owners, &wanted).is_err() {
        assert_eq!(fs::read(&path).unwrap(), bytes);
        return;
    }
    let others = before
        .unwrap()
        .into_iter()
        .filter(|share| share.from != owner);
    let after = file::read(&path).unwrap();
    assert_eq!(after, others.chain(wanted.iter().cloned()).collect());
    let written = fs::read(&path).unwrap();
    assert!(file::replace(&path, &owners, &wanted).unwrap().is_none());
    assert_eq!(fs::read(&path).unwrap(), written);
});
