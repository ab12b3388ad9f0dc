//! UIDs at once, beside a live Dovecot: those of our replies are those that IMAP shows, and none ever changes.

mod support;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use support::imap::Imap;
use support::peers::{Dovecot, VERSIONS};
use support::{MAIL, Store, not_root, program, subject, uid_of};

/// As a crash leaves it: the last line of the list, of UID 500, has no end. Answers the list's mode and group.
fn tear(list: &Path) -> (u32, u32) {
    let mut file = fs::OpenOptions::new().append(true).open(list).unwrap();
    file.write_all(b"500 :torn").unwrap();
    mode_and_group(list)
}

fn mode_and_group(path: &Path) -> (u32, u32) {
    let stat = fs::metadata(path).unwrap();
    (stat.mode() & 0o7777, stat.gid())
}

#[test]
fn the_uid_of_the_reply_is_that_of_imap() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::with_inbox();
        let Some(dovecot) = Dovecot::start(version, &store) else {
            return;
        };
        let server = store.serve("", "");
        let mut client = server.client();
        let mut deliver = |recipient: &str, subject: &str| {
            let message = format!("Subject: {subject}\n\ntext\n");
            client.deliver(&[recipient], message.as_bytes()).remove(0)
        };
        // Nobody has looked: the list is ours to make.
        assert_eq!(uid_of(&deliver("alice@x", "first")), Some(1));
        let mut imap = Imap::login(dovecot.port, "alice");
        imap.select("INBOX");
        for (recipient, mailbox, directory) in [
            ("alice@x", "INBOX", "home/alice/Maildir"),
            ("alice+Public/info@x", "Public/info", "public/.info"),
        ] {
            let list = store.path(directory).join("dovecot-uidlist");
            let mut before = None;
            imap.select(mailbox);
            let mut given = HashMap::new();
            for number in 0..30 {
                if number == 13 {
                    before = Some(tear(&list));
                }
                let reply = deliver(recipient, &format!("{mailbox} {number}"));
                let uid = uid_of(&reply).unwrap_or_else(|| panic!("{reply} {}", server.log()));
                given.insert(format!("{mailbox} {number}"), uid);
                assert_eq!(number >= 13, uid > 500, "a torn UID is never used again");
                match number % 6 {
                    0 => drop(imap.select(mailbox)),
                    2 => drop(imap.command("UID STORE 1:* +FLAGS (\\Flagged $Label1)")),
                    4 => {
                        imap.select(mailbox);
                        imap.command(&format!("UID STORE {uid} +FLAGS (\\Deleted)"));
                        imap.command("EXPUNGE");
                        given.remove(&format!("{mailbox} {number}"));
                    }
                    _ => {}
                }
            }
            imap.select(mailbox);
            let seen = imap.fetch_all();
            for (name, uid) in &given {
                let found: Vec<u32> = seen
                    .iter()
                    .filter(|it| subject(&it.bytes) == *name)
                    .map(|it| it.uid)
                    .collect();
                assert_eq!(found, [*uid], "{version:?} {name}");
            }
            assert_eq!(Some(mode_and_group(&list)), before, "{mailbox}");
        }
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

/// A list as Courier left it: its UIDs stay, and ours go on from them.
#[test]
fn the_uids_of_a_list_of_version_1_stay() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::new();
        let scratch = &store.scratch;
        scratch.maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
        let list = "1 1795332733 9\n3 1.a.b\n8 2.a.b\n";
        let files = [
            ("dovecot-uidlist", list),
            ("cur/1.a.b:2,S", "Subject: 1\n\n"),
            ("new/2.a.b", "Subject: 2\n\n"),
        ];
        for (file, text) in files {
            scratch.file(
                &format!("home/alice/Maildir/{file}"),
                MAIL,
                MAIL,
                0o600,
                text,
            );
        }
        let Some(dovecot) = Dovecot::start(version, &store) else {
            return;
        };
        let server = store.serve("", "");
        let replies = server.client().deliver(&["alice@x"], b"Subject: 3\n\n");
        assert_eq!(uid_of(&replies[0]), Some(9), "{replies:?}");
        let mut imap = Imap::login(dovecot.port, "alice");
        let lines = imap.command("SELECT INBOX");
        let validity = lines
            .iter()
            .any(|line| line.contains("[UIDVALIDITY 1795332733]"));
        assert!(validity, "{version:?}: {lines:?}");
        let found = imap.fetch_all().into_iter();
        let found: Vec<_> = found.map(|it| (it.uid, subject(&it.bytes))).collect();
        let expected = [(3, "1"), (8, "2"), (9, "3")].map(|(uid, name)| (uid, name.to_owned()));
        assert_eq!(found, expected, "{version:?}");
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

/// Locks name a process and a host: with process IDs of our own and somebody else's host name they are not safe.
#[test]
fn a_container_with_process_ids_of_its_own_is_warned_of() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let config = store.configure("", "");
    let own = fs::read_link("/proc/self/ns/pid").unwrap();
    let in_container = own.as_os_str() != "pid:[4026531836]";
    let container = ["unshare", "--pid", "--fork", "--mount-proc"];
    for (around, is_warned) in [(&["env"][..], in_container), (&container, true)] {
        let mut command = Command::new(around[0]);
        command.args(&around[1..]);
        let check = program("postroom");
        command.arg(check.get_program()).arg("check").arg("-c");
        let output = command.arg(&config).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.contains("process IDs of its own"), is_warned, "{said}");
    }
}
