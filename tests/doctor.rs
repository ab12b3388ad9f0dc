//! `postroom doctor`: what is wrong in a mailbox is named, with what mends it; what `--fix` mends, Dovecot then takes.

mod support;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use support::imap::Imap;
use support::peers::{Dovecot, VERSIONS};
use support::{MAIL, Store, not_root, own, program, subject, uid_of};

const MESSAGE: &[u8] = b"Subject: x\n\ntext\n";

/// Exit code, and the lines without the scratch folder's path.
fn doctor(store: &Store, arguments: &[&str]) -> (Option<i32>, Vec<String>) {
    let mut command = program("postroom");
    command
        .arg("-c")
        .arg(store.path("postroom.toml"))
        .arg("doctor");
    command.args(arguments);
    let output = command.output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let root = format!("{}/", store.scratch.text(""));
    let said = said.replace(&root, "");
    (
        output.status.code(),
        said.lines().map(str::to_owned).collect(),
    )
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    own(path, MAIL, MAIL);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A file that was written so many seconds ago.
fn left_behind(path: &Path, text: &str, seconds: u64) {
    write(path, text);
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
        .unwrap();
}

/// Names that hold no sizes: what the sizes say is another matter.
const LIST: &str = "3 V1795332733 N5 G86371b0c7d9a026bb73a000083ecc375\n";

#[test]
fn each_trouble_has_its_line() {
    if not_root() {
        return;
    }
    let dead = {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    };
    let host = Command::new("hostname").output().unwrap().stdout;
    let host = String::from_utf8(host).unwrap().trim_end().to_owned();
    type Spoil<'a> = &'a dyn Fn(&Path);
    let list = |text: &'static str| {
        move |mailbox: &Path| write(&mailbox.join("dovecot-uidlist"), &format!("{LIST}{text}"))
    };
    let lock = |pid: u32| {
        let text = format!("{pid}:{host}");
        move |mailbox: &Path| write(&mailbox.join("dovecot-uidlist.lock"), &text)
    };
    // the trouble; what is said of it, and whether --fix mends it
    let cases: &[(Spoil, &str, bool)] = &[
        (&list("5 :a\n6 :b\n"), "", true),
        (
            &list("5 :a\n6 :b\n7 :c"),
            "dovecot-uidlist:4: is torn",
            true,
        ),
        (
            &list("6 :b\n5 :a\n"),
            "dovecot-uidlist:3: has UID 5, and stands behind 6",
            true,
        ),
        (
            &list("5 :a\n5 :b\n"),
            "dovecot-uidlist:3: has the UID of line 2",
            true,
        ),
        (
            &list("5 :a\n6 :a\n"),
            "dovecot-uidlist:3: has the file of line 2",
            true,
        ),
        (
            &list("5 :a\n9 :gone\n"),
            "dovecot-uidlist:3: has UID 9, and its file is not there",
            true,
        ),
        (
            &list("x\n5 :a\n"),
            "dovecot-uidlist:2: is no line of a list",
            true,
        ),
        (
            &list("5 :a\n"),
            "cur: 1 messages have no UID yet: Dovecot",
            false,
        ),
        (
            &|mailbox| write(&mailbox.join("dovecot-uidlist"), "1 5 7\n5 a\n"),
            "dovecot-uidlist: its header is not that of version 3",
            false,
        ),
        (&lock(dead), "which is gone", true),
        (&lock(std::process::id()), "which is at work", false),
        (
            &|mailbox| left_behind(&mailbox.join("dovecot-uidlist.lock"), "17:elsewhere", 600),
            "held by process 17 of elsewhere, and left behind",
            true,
        ),
        (
            &|mailbox| write(&mailbox.join("new/c,S=4,W=5"), "abc\n\n"),
            "new/c,S=4,W=5: has 5 bytes, not 4",
            false,
        ),
        (
            &|mailbox| write(&mailbox.join("new/c,S=4,W=4"), "abc\n"),
            "new/c,S=4,W=4: has 5 bytes with CRLF, not 4",
            false,
        ),
        (
            &|mailbox| write(&mailbox.join("cur/a:2,S"), "x\n"),
            "is there as new/a too",
            false,
        ),
        (
            &|mailbox| write(&mailbox.join("cur/c:2,Sb"), "x\n"),
            "dovecot-keywords: has no line for the letter 'b' of 1 messages",
            false,
        ),
        (
            &|mailbox| write(&mailbox.join("dovecot-keywords"), "26 x\n"),
            "dovecot-keywords: line 1 is no number and keyword",
            false,
        ),
        (
            &|mailbox| {
                let file = mailbox.join("new/a");
                fs::set_permissions(file, fs::Permissions::from_mode(0o640)).unwrap();
            },
            "1 messages have another mode than 0600: find home/alice/Maildir/new -type f ! -perm 0600 -exec chmod 0600 {} +",
            false,
        ),
        (
            &|mailbox| {
                let file = mailbox.join("dovecot-acl");
                write(&file, "owner lr\n");
                fs::set_permissions(file, fs::Permissions::from_mode(0o666)).unwrap();
            },
            "dovecot-acl: has mode 0666, not 0600: chmod 0600 home/alice/Maildir/dovecot-acl",
            false,
        ),
        (
            &|mailbox| {
                let setgid = fs::Permissions::from_mode(0o2700);
                fs::set_permissions(mailbox, setgid).unwrap();
                own(&mailbox.join("new/a"), MAIL, 100);
            },
            "1 messages have another group than 8: find home/alice/Maildir/new -type f ! -gid 8 -exec chgrp 8 {} +",
            false,
        ),
        (
            &|mailbox| left_behind(&mailbox.join("tmp/old"), "x", 200_000),
            "tmp: 1 files are older than 36 hours",
            false,
        ),
        (
            &|mailbox| fs::create_dir(mailbox.join("cur/x\ny")).unwrap(),
            "cur/x\\ny: is no file",
            false,
        ),
    ];
    for (spoil, what, is_mended) in cases {
        let store = Store::new();
        store.configure("", "");
        let mailbox = store
            .scratch
            .maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
        for file in ["new/a", "cur/b:2,S"] {
            write(&mailbox.join(file), "x\n");
        }
        spoil(&mailbox);
        let (_, found) = doctor(&store, &["--user", "alice"]);
        let said: Vec<&String> = found.iter().filter(|line| line.contains(what)).collect();
        assert!(!said.is_empty(), "{what}: {found:?}");
        assert_eq!(
            what.is_empty() || said[0].contains("--fix mends it"),
            *is_mended,
            "{what}: {said:?}"
        );
        let (code, fixed) = doctor(&store, &["--user", "alice", "--fix"]);
        let left = fixed
            .iter()
            .filter(|line| line.contains(what) && !line.ends_with(": mended"));
        let is_left = left.count() > 0 && !what.is_empty();
        assert_eq!(is_left, !is_mended, "{what}: {fixed:?}");
        if *is_mended {
            assert_eq!(code, Some(0), "{what}: {fixed:?}");
            assert_eq!(doctor(&store, &["--user", "alice"]).0, Some(0), "{what}");
        }
        let setgid = fs::metadata(mailbox.join("new/a")).unwrap();
        assert!(setgid.len() == 2, "{what}: no message is touched");
    }
}

/// What Dovecot and we leave is in order.
#[test]
fn a_healthy_store_has_no_findings() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::new();
        let Some(dovecot) = Dovecot::start(version, &store) else {
            return;
        };
        let server = store.serve("on_missing = \"create\"", "");
        let recipients = ["alice@x", "alice+Work@x", "alice+Public/info@x"];
        for recipient in recipients {
            server.client().deliver(&[recipient], MESSAGE);
        }
        let mut imap = Imap::login(dovecot.port, "alice");
        for mailbox in ["INBOX", "Work", "Public/info"] {
            assert_eq!(dovecot.lda("alice", mailbox, MESSAGE), Some(0));
            imap.select(mailbox);
            imap.command("STORE 1 +FLAGS ($Label1 \\Seen)");
            imap.command("CLOSE");
        }
        for recipient in recipients {
            server.client().deliver(&[recipient], MESSAGE);
        }
        let summary = |mailboxes, messages| {
            vec![format!(
                "{mailboxes} mailboxes, {messages} messages, 0 findings"
            )]
        };
        let home = store.scratch.text("home/alice/Maildir");
        for (arguments, expected) in [
            (&["--user", "alice"][..], summary(2, 6)),
            (&["--namespace", "public"], summary(1, 3)),
            (&[&home], summary(2, 6)),
        ] {
            assert_eq!(
                doctor(&store, arguments),
                (Some(0), expected),
                "{version:?}"
            );
        }
    }
}

/// Torn, unordered, with a line whose file is gone, under a lock of the dead: mended, Dovecot shows every message, those with a
/// good line under the UID that they had.
#[test]
fn dovecot_takes_what_was_mended() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::with_inbox();
        let Some(dovecot) = Dovecot::start(version, &store) else {
            return;
        };
        store.configure("", "");
        for _ in 0..5 {
            assert_eq!(dovecot.lda("alice", "INBOX", MESSAGE), Some(0));
        }
        let path = store.path("home/alice/Maildir/dovecot-uidlist");
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let [header, one, two, three, four, five] = lines[..] else {
            panic!("{text}");
        };
        let gone = "90 :1795000000.M1P1.gone,S=1,W=1";
        let list = format!(
            "{header}\n{one}\n{three}\n{two}\n{gone}\n{four}\n{}",
            &five[..9]
        );
        left_behind(&path, &list, 600);
        left_behind(&path.with_file_name("dovecot-uidlist.lock"), "", 600);
        let (code, said) = doctor(&store, &["--user", "alice", "--fix"]);
        assert_eq!(code, Some(0), "{said:?}");
        let mended = said.iter().filter(|line| line.ends_with(": mended"));
        assert_eq!(mended.count(), 4, "{said:?}");
        let mut imap = Imap::login(dovecot.port, "alice");
        assert_eq!(imap.select("INBOX"), 5, "{version:?}");
        let mut uids: Vec<u32> = imap.fetch_all().iter().map(|it| it.uid).collect();
        let new = uids.pop();
        assert_eq!(uids, [1, 2, 3, 4], "{version:?}");
        assert!(new > Some(90), "{version:?}: no UID comes back: {new:?}");
        // It was Dovecot's index that had it under another UID: it says so.
        let mut complaints = dovecot.complaints();
        complaints.retain(|line| !line.contains("Expunged message reappeared"));
        assert_eq!(complaints, Vec::<String>::new(), "{version:?}");
    }
}

/// Again and again while we deliver and Dovecot flags: the UIDs of the replies stay, and nobody complains.
#[test]
fn mending_beside_deliveries_and_readers() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::with_inbox();
        let Some(dovecot) = Dovecot::start(version, &store) else {
            return;
        };
        let server = store.serve("", "");
        let done = AtomicBool::new(false);
        let given: Vec<(String, Option<u32>)> = thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let (_, said) = doctor(&store, &["--user", "alice", "--fix"]);
                    assert!(said.last().unwrap().contains(" findings"), "{said:?}");
                }
            });
            scope.spawn(|| {
                let mut imap = Imap::login(dovecot.port, "alice");
                while !done.load(Ordering::Relaxed) {
                    if imap.select("INBOX") > 0 {
                        imap.command("STORE * +FLAGS (\\Seen $Label1)");
                    }
                }
            });
            let senders: Vec<_> = (0..4)
                .map(|sender| {
                    let mut client = server.client();
                    scope.spawn(move || {
                        let send = |number| {
                            let name = format!("{sender} {number}");
                            let message = format!("Subject: {name}\n\n");
                            let reply = client.deliver(&["alice@x"], message.as_bytes()).remove(0);
                            (name, uid_of(&reply))
                        };
                        (0..60).map(send).collect::<Vec<_>>()
                    })
                })
                .collect();
            let given = senders.into_iter().flat_map(|it| it.join().unwrap());
            let given = given.collect();
            done.store(true, Ordering::Relaxed);
            given
        });
        let mut imap = Imap::login(dovecot.port, "alice");
        imap.select("INBOX");
        let seen = imap.fetch_all().into_iter();
        let seen: HashMap<String, u32> = seen.map(|it| (subject(&it.bytes), it.uid)).collect();
        assert_eq!(seen.len(), 240, "{version:?}");
        for (name, uid) in given {
            assert!(
                uid.is_none_or(|uid| seen[&name] == uid),
                "{version:?} {name}"
            );
        }
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

/// FIFOs, loops and links in a user's home hold nobody up and lead nowhere.
#[test]
fn hostile_files() {
    if not_root() {
        return;
    }
    let store = Store::with_inbox();
    store.configure("", "");
    let script = "cd home/alice/Maildir && mkfifo dovecot-uidlist new/fifo dovecot-keywords dovecot-uidlist.tmp && \
                  ln -s / .Root && ln -s . .Loop && ln -s /etc/passwd new/passwd && mkdir -p .A && ln -s .. .A/cur && \
                  ln -s nowhere dovecot-uidlist.lock && chown -h mail: * new/* .A";
    let made = Command::new("sh")
        .args(["-c", script])
        .current_dir(store.path(""))
        .status();
    assert!(made.unwrap().success());
    for arguments in [&["--user", "alice"][..], &["--user", "alice", "--fix"]] {
        let (code, said) = doctor(&store, arguments);
        assert_eq!(code, Some(1), "{said:?}");
        for what in [
            "dovecot-uidlist: not a regular file",
            "new/fifo: is no file",
            "new/passwd: is no file",
        ] {
            assert!(
                said.iter().any(|line| line.contains(what)),
                "{what}: {said:?}"
            );
        }
        assert!(!said.iter().any(|line| line.contains("/etc")), "{said:?}");
    }
}

#[test]
fn what_cannot_be_looked_at() {
    if not_root() {
        return;
    }
    let store = Store::new();
    store.configure("", "");
    for (arguments, code) in [
        (&[][..], 64),
        (&["--user", "nobody-here"], 67),
        (&["--namespace", "none"], 64),
        (&["--namespace", "shared"], 64),
        (&["--user", "alice", "--namespace", "public"], 64),
        (&["/nonexistent"], 75),
        (&["/usr/share"], 75),
        (&["--user", "carol"], 0),
    ] {
        let (got, said) = doctor(&store, arguments);
        assert_eq!(got, Some(code), "{arguments:?}: {said:?}");
    }
}
