//! ACL files of users: no bytes grant what no line grants.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::mailbox::acl;

fuzz_target!(|bytes: &[u8]| {
    for owner in [false, true] {
        let Ok(Some(grant)) = acl::grant(bytes, "alice", "dovecot-acl", owner) else {
            continue;
        };
        let names = |line: &[u8]| line.windows(6).any(|it| it == b"anyone") || line.windows(5).any(|it| it == b"alice");
        let named = bytes.split(|&byte| byte == b'\n').any(names);
        assert!(named || owner || !grant.rights.insert());
    }
});
