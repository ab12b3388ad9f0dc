//! `postroom doctor`: what is wrong in a mailbox is named, with what mends it; what `--fix` mends, Dovecot then takes.

mod support;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use support::imap::Imap;
use support::peers::{Dovecot, VERSIONS};
use support::{MAIL, Store, not_root, own, program, replace_in, subject, uid_of};

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
            "dovecot-uidlist:2: has the file of line 3",
            true,
        ),
        (
            &list("5 :a\n9 :gone\n"),
            "dovecot-uidlist: 1 lines are of messages that are gone: Dovecot takes them out in time",
            true,
        ),
        (
            &list("5 :a\n6 :to9 :b\n"),
            "dovecot-uidlist:3: is two lines without an end between them",
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
        (
            &|mailbox| write(&mailbox.join("dovecot-acl"), "owner lr\nuser bob\n"),
            "dovecot-acl:2: ",
            false,
        ),
        (
            &|mailbox| left_behind(&mailbox.join("subscriptions.lock"), "Work\n", 600),
            "subscriptions.lock: is 600 s old, and left behind",
            true,
        ),
        (
            &|mailbox| left_behind(&mailbox.join("dovecot-acl.lock"), "", 600),
            "dovecot-acl.lock: is 600 s old, and left behind",
            true,
        ),
        (
            &|mailbox| left_behind(&mailbox.join("dovecot-uidlist.tmp"), "3 V1", 600),
            "dovecot-uidlist.tmp: is 600 s old, and left behind",
            true,
        ),
        (
            &|mailbox| left_behind(&mailbox.join("dovecot.index.log.newlock"), "", 600),
            "dovecot.index.log.newlock: is 600 s old, and left behind: Dovecot removes it",
            false,
        ),
        (
            &|mailbox| {
                let setgid = fs::Permissions::from_mode(0o2700);
                fs::set_permissions(mailbox, setgid).unwrap();
            },
            "home/alice/Maildir/new: has mode 0700, not 2700: chmod 2700 home/alice/Maildir/new",
            false,
        ),
        (
            &|mailbox| {
                fs::set_permissions(mailbox, fs::Permissions::from_mode(0o770)).unwrap();
                own(mailbox, MAIL, 100);
            },
            "is for group 100, which new files of uid 8 do not get: chmod g+s home/alice/Maildir home/",
            false,
        ),
        (
            &|mailbox| own(&mailbox.join("new/a"), 0, 0),
            "new/a: cannot be read: Permission denied",
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
            what.is_empty() || said[0].contains("postroom doctor --fix"),
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

/// Whoever owns a mailbox puts anything there: nothing is followed, waited for or read without an end, and no command is
/// printed that would change another file.
#[test]
fn a_hostile_mailbox() {
    if not_root() {
        return;
    }
    let store = Store::with_inbox();
    store.configure("", "");
    let mailbox = store.path("home/alice/Maildir");
    for name in ["dovecot-acl", "subscriptions", "dovecot.index.log"] {
        std::os::unix::fs::symlink("/etc/passwd", mailbox.join(name)).unwrap();
    }
    for name in [
        "dovecot-uidlist",
        "dovecot-keywords",
        "dovecot.index",
        "cur/f",
    ] {
        let made = Command::new("mkfifo").arg(mailbox.join(name)).status();
        assert!(made.unwrap().success());
    }
    std::os::unix::fs::symlink("dovecot-uidlist", mailbox.join("dovecot-uidlist.lock")).unwrap();
    const HOLE: u64 = 1 << 42;
    let hole = mailbox.join(format!("new/1.x,S={HOLE},W={HOLE}"));
    write(&hole, "");
    let file = fs::File::options().write(true).open(&hole).unwrap();
    file.set_len(HOLE).unwrap();
    let odd = store
        .scratch
        .maildir("home/alice/Maildir/.a\u{1b}'$(id)\n", MAIL, MAIL, 0o700);
    write(
        &odd.join("dovecot-uidlist"),
        &format!("{LIST}{}", "x\n".repeat(100_000)),
    );
    fs::set_permissions(
        odd.join("dovecot-uidlist"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    let (code, said) = doctor(&store, &["--user", "alice"]);
    assert_eq!(code, Some(1), "{said:?}");
    let commands: Vec<&String> = said.iter().filter(|it| it.contains("chmod")).collect();
    let [command] = commands[..] else {
        panic!("{said:?}");
    };
    assert!(command.contains(": chmod 0600 $'"), "{command}");
    assert!(
        command.ends_with("/.a\\033\\047\\044\\050id\\051\\012/dovecot-uidlist'"),
        "{command}"
    );
    assert!(said.len() < 30, "{said:?}");
    let is_clean = |line: &String| !line.contains(char::is_control);
    assert!(said.iter().all(is_clean), "{said:?}");
    let (code, said) = doctor(&store, &["--user", "alice", "--fix"]);
    assert_eq!(code, Some(1), "{said:?}");
    let mended = fs::read_to_string(odd.join("dovecot-uidlist")).unwrap();
    assert_eq!(mended, LIST);
    let target = fs::metadata("/etc/passwd").unwrap();
    assert_eq!(target.permissions().mode() & 0o7777, 0o644);
}

/// With a plugin that packs messages, names say what is in them.
#[test]
fn packed_messages_have_the_sizes_of_what_is_in_them() {
    if not_root() {
        return;
    }
    let store = Store::with_inbox();
    store.configure("", "");
    let message = store.path("home/alice/Maildir/cur/1.x,S=500,W=510:2,S");
    write(&message, "");
    fs::write(&message, b"\x1f\x8b\x08\x00packed").unwrap();
    let (code, said) = doctor(&store, &["--user", "alice"]);
    assert_eq!(code, Some(0), "{said:?}");
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
        // A line of the list whose message is expunged stays for a while: nothing is wrong.
        for mailbox in ["INBOX", "Work"] {
            for _ in 0..5 {
                assert_eq!(dovecot.lda("alice", mailbox, MESSAGE), Some(0));
            }
            imap.select(mailbox);
            imap.command("STORE 2 +FLAGS (\\Deleted)");
            imap.command("EXPUNGE");
        }
        let summary =
            |mailboxes, messages| format!("{mailboxes} mailboxes, {messages} messages, 0 findings");
        let home = store.scratch.text("home/alice/Maildir");
        for (arguments, expected) in [
            (&["--user", "alice"][..], summary(2, 14)),
            (&["--namespace", "public"], summary(1, 3)),
            (&[&home], summary(2, 14)),
        ] {
            let (code, said) = doctor(&store, arguments);
            let (last, notes) = said.split_last().unwrap();
            assert_eq!((code, last), (Some(0), &expected), "{version:?}: {notes:?}");
            let is_of_expunged = |line: &String| line.contains("are of messages that are gone");
            assert!(notes.iter().all(is_of_expunged), "{version:?}: {notes:?}");
            let mailboxes = if last.starts_with("2 ") { 2 } else { 0 };
            assert_eq!(notes.len(), mailboxes, "{version:?}: {notes:?}");
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
        assert_eq!(mended.count(), 5, "{said:?}");
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

/// A name may be any bytes; and of two lines of a file Dovecot takes the later one, which is not changed any more.
#[test]
fn uids_are_those_that_dovecot_showed_before() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::with_inbox();
        let Some(dovecot) = Dovecot::start(version, &store) else {
            return;
        };
        store.configure("", "");
        let name = OsStr::from_bytes(b"1795000000.caf\xe9:2,S");
        let odd = store.path("home/alice/Maildir/cur").join(name);
        write(&odd, "Subject: odd\n\n");
        for _ in 0..3 {
            assert_eq!(dovecot.lda("alice", "INBOX", MESSAGE), Some(0));
        }
        let uids = || {
            let mut imap = Imap::login(dovecot.port, "alice");
            assert_eq!(imap.select("INBOX"), 4, "{version:?}");
            let uids = imap
                .fetch_all()
                .iter()
                .map(|it| it.uid)
                .collect::<Vec<u32>>();
            imap.command("LOGOUT");
            uids
        };
        uids();
        let path = store.path("home/alice/Maildir/dovecot-uidlist");
        let mut list = fs::read(&path).unwrap();
        let lines: Vec<&[u8]> = list.split(|&byte| byte == b'\n').collect();
        let line = lines.iter().find(|line| line.starts_with(b"2 :")).unwrap();
        let base = line[3..].split(|&byte| byte == b':').next().unwrap();
        list.extend([b"9 :", base, b"\n"].concat());
        fs::write(&path, &list).unwrap();
        let before = uids();
        // Dovecot has mended it by itself: once more as it was, and torn.
        fs::write(&path, [&list[..], b"10 :to"].concat()).unwrap();
        let said = dovecot.complaints().len();
        let (code, mended) = doctor(&store, &["--user", "alice", "--fix"]);
        assert_eq!(code, Some(0), "{version:?}: {mended:?}");
        assert_eq!(uids(), before, "{version:?}: {mended:?}");
        assert_eq!(
            dovecot.complaints().split_off(said),
            Vec::<String>::new(),
            "{version:?}"
        );
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

/// Each mailbox is looked at where it lies.
#[test]
fn with_directory_names() {
    if not_root() {
        return;
    }
    let store = Store::new();
    store.with_directory_names(&["Work", "Work/Old"], "");
    write(
        &store.path("home/alice/Maildir/Work/Old/D/dovecot-acl"),
        "user bob\n",
    );
    let (code, said) = doctor(&store, &["--user", "alice"]);
    let finding = "home/alice/Maildir/Work/Old/D/dovecot-acl:1: ";
    assert!(said[0].starts_with(finding), "{said:?}");
    assert_eq!(said[1..], ["3 mailboxes, 0 messages, 1 findings"]);
    assert_eq!(code, Some(1));
}

/// Those of a delivery to the user, or why none are looked at.
#[test]
fn the_mailboxes_that_are_meant() {
    if not_root() {
        return;
    }
    const MBOX: &str = "mail_driver = \"mbox\"\nmail_path = \"~/mail\"";
    const BESIDE: &str = "[namespace.old]\nseparator = \"/\"\nprefix = \"Old/\"\n";
    const NODE: &str = "[placement]\nself = [\"node1\"]\n[node.node2]\nhost = \"192.0.2.2\"\n";
    const REQUIRED: &str = "required_paths = [\"/nonexistent\"]";
    const INBOX: &[&str] = &["1 mailboxes, 0 messages, 0 findings"];
    const OTHER: &[&str] = &[
        "home/alice/other/.Docs/dovecot-acl:1: ",
        "2 mailboxes, 0 messages, 1 findings",
    ];
    const NO_FILES: &str = "its mailboxes are mboxes, which have no files of their own to look at";
    let mboxes: &[&str] = &[&format!("namespace old: {NO_FILES}"), INBOX[0]];
    let only_mboxes: &[&str] = &[&format!(
        "postroom doctor: find the mailboxes of namespace inbox: {NO_FILES}"
    )];
    // the user's fields; settings of [delivery]; of the private namespace; more; the user; the exit code; what is said
    let user = &["--user", "alice"][..];
    #[rustfmt::skip]
    let cases = [
        ("", "", "", "", user, 0, INBOX),
        ("userdb_mail=maildir:~/other", "", "", "", user, 1, OTHER),
        ("userdb_mail_path=~/other", "", "", "", user, 1, OTHER),
        ("userdb_namespace/inbox/location=maildir:~/other", "", "", "", user, 1, OTHER),
        ("userdb_mail=mdbox:~/other", "", "", "", user, 75, &["postroom doctor: "]),
        ("userdb_mail_path=~/none", "", "", "", user, 0, &["home/alice/none: is not there: no mail yet", "0 mailboxes, 0 messages, 0 findings"]),
        ("", REQUIRED, "", "", user, 75, &["postroom doctor: the required path /nonexistent: "]),
        ("", REQUIRED, "", "", &["--namespace", "public"], 75, &["postroom doctor: the required path /nonexistent: "]),
        ("userdb_host=node1", "", "", NODE, user, 0, INBOX),
        ("userdb_host=node2", "", "", NODE, user, 75, &["postroom doctor: node2 (192.0.2.2:24) has the mailboxes of alice"]),
        ("", "", "", &format!("{BESIDE}{MBOX}"), user, 0, mboxes),
        ("", "", "", &format!("{BESIDE}mail_path = \"~/none\""), user, 0, INBOX),
        ("", "", MBOX, "", user, 75, only_mboxes),
        ("", "", "mail_inbox_path = \"~/other\"\nmail_path = \"~/none\"", "", user, 0, &["home/alice/none: is not there: no mail but in INBOX yet", INBOX[0]]),
        ("", "", "mail_inbox_path = \"~/other\"", &format!("{BESIDE}mail_path = \"~/other\"\nmail_inbox_path = \"~/other\""), user, 1, OTHER),
    ];
    for (fields, delivery, own_settings, more, arguments, code, want) in cases {
        let store = Store::with_inbox();
        for below in ["other", "other/.Docs"] {
            let below = format!("home/alice/{below}");
            store.scratch.maildir(&below, MAIL, MAIL, 0o700);
        }
        write(
            &store.path("home/alice/other/.Docs/dovecot-acl"),
            "user bob\n",
        );
        let config = store.configure(delivery, more);
        let section = "[namespace.inbox]\n";
        replace_in(&config, section, &format!("{section}{own_settings}\n"));
        store.set_fields("alice", fields);
        let (got, said) = doctor(&store, arguments);
        let case = format!("{fields} {delivery} {own_settings} {more}: {said:?}");
        assert_eq!(got, Some(code), "{case}");
        let same = said
            .iter()
            .zip(want)
            .filter(|(said, want)| said.starts_with(*want));
        assert_eq!(
            (said.len(), same.count()),
            (want.len(), want.len()),
            "{case}"
        );
    }
}

/// What root mends stays its owner's, whatever the path of the namespace is made of.
#[test]
fn files_of_a_namespace_stay_its_owners() {
    if not_root() {
        return;
    }
    for variable in ["%{hostname}", "mx.example.test"] {
        let store = Store::new();
        let config = store.configure("", "");
        let path = |name: &str| format!("mail_path = \"{}/{name}\"", store.scratch.text(""));
        replace_in(&config, &path("public"), &path(variable));
        let info = "mx.example.test/.info";
        for below in ["mx.example.test", info] {
            store.scratch.maildir(below, MAIL, MAIL, 0o700);
        }
        let list = store.path(&format!("{info}/dovecot-uidlist"));
        write(&list, &format!("{LIST}5 :a\n6"));
        write(&store.path(&format!("{info}/cur/a")), "x\n");
        let (code, said) = doctor(&store, &["--namespace", "public", "--fix"]);
        assert_eq!(code, Some(0), "{variable}: {said:?}");
        assert!(said[0].ends_with("mended"), "{variable}: {said:?}");
        assert_eq!(
            fs::metadata(&list).unwrap().uid(),
            MAIL,
            "{variable}: {said:?}"
        );
    }
}
