//! `dovecot-keywords`: a letter that was given is never another keyword's.
#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use postroom::mailbox::permission::Permission;
use postroom::maildir::keywords::{FILE, letters};
use postroom::maildir::uidlist::{Lock, TIMEOUT};
use postroom::message::Keywords;
use postroom::sys::dir::Dir;

fuzz_target!(|bytes: &[u8]| {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(FILE);
    fs::write(&path, bytes).unwrap();
    let control = Dir::open(root.path()).unwrap();
    let lock = Lock::take(control, 0o600, TIMEOUT).unwrap();
    let permission = Permission::private(Path::new("/"));
    let Some(keyword) = Keywords::parse("$Junk") else {
        return;
    };
    match letters(&lock, &permission, &keyword) {
        Err(_) => assert_eq!(fs::read(&path).unwrap(), bytes),
        Ok(lettered) => {
            let after = fs::read_to_string(&path).unwrap();
            let old = String::from_utf8_lossy(bytes);
            assert!(old.lines().all(|line| after.lines().any(|it| it == line)));
            let again = letters(&lock, &permission, &keyword);
            assert_eq!(again, Ok(lettered));
        }
    }
});
