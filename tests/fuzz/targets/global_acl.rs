//! Dovecot's global ACL file: no pattern gives what no line gives, and one that is nobody's changes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::mailbox::acl::sources::{Sources, matches};
use postroom::mailbox::acl::{Identity, Rights};

fuzz_target!(|input: (&[u8], &str)| {
    let (bytes, name) = input;
    let path = postroom_fuzz::file("global", bytes);
    let sources = Sources {
        own: None,
        configured: Vec::new(),
        global: Some((path, name.to_owned())),
        default: None,
    };
    let alice = Identity {
        name: Some("alice"),
        groups: &[],
        is_owner: false,
    };
    let Ok(effective) = sources.effective(&alice) else {
        return;
    };
    let text = std::str::from_utf8(bytes).unwrap();
    let has = |word: &str| text.contains(word);
    let is_named = ["anyone", "anonymous", "authenticated", "alice"]
        .into_iter()
        .any(has);
    assert!(is_named || effective.rights == Rights::none());
    // Each line by itself: without one that matches there is no right.
    let pattern = |line: &str| match line.strip_prefix('"') {
        Some(rest) => rest
            .split_once("\" ")
            .map(|(pattern, _)| pattern.to_owned()),
        None => line.split_once(' ').map(|(pattern, _)| pattern.to_owned()),
    };
    let mut patterns = text.lines().filter_map(pattern);
    assert!(patterns.any(|pattern| matches(&pattern, name)) || effective.rights == Rights::none());
});
