//! ACL files of users: no bytes give what no line gives, and what is written means what was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::mailbox::acl::{Acl, Identity};

fuzz_target!(|bytes: &[u8]| {
    let Ok(acl) = Acl::parse(bytes, "dovecot-acl") else {
        return;
    };
    let alice = Identity {
        name: Some("alice"),
        groups: &[],
        is_owner: false,
    };
    let rights = acl.effective(&alice).map(|it| it.rights);
    let has = |word: &[u8]| bytes.windows(word.len()).any(|it| it == word);
    let named = [&b"anyone"[..], b"anonymous", b"authenticated", b"alice"];
    assert!(rights.is_none() || named.into_iter().any(has));
    let again =
        Acl::parse(acl.stored().as_bytes(), "dovecot-acl").expect("what is written is read");
    assert_eq!(again.stored(), acl.stored());
    assert_eq!(again.effective(&alice).map(|it| it.rights), rights);
});
