//! Dovecot's index log: what it is told of a delivery it need not look for, and what is odd in it costs no mail.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use support::imap::Imap;
use support::peers::{Dovecot, VERSIONS, Version};
use support::{MAIL, Server, Store, not_root, own, replace_in, replaced, uid_of};

fn deliver(server: &Server, recipient: &str) -> String {
    let reply = server
        .client()
        .deliver(&[recipient], b"Subject: x\n\ntext\n");
    assert!(reply[0].starts_with("250 2.0.0"), "{reply:?}");
    reply.into_iter().next().unwrap()
}

/// `MESSAGES` and `UIDNEXT` of a mailbox that is not open.
fn status(imap: &mut Imap, mailbox: &str) -> (u32, u32) {
    let lines = imap.command(&format!("STATUS \"{mailbox}\" (MESSAGES UIDNEXT)"));
    let line = lines
        .iter()
        .find(|line| line.contains("STATUS"))
        .unwrap_or_else(|| panic!("{lines:?}"));
    let number = |key: &str| {
        let rest = line.split(key).nth(1).unwrap().trim_start();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    (number("MESSAGES"), number("UIDNEXT"))
}

/// Alice with a mailbox Work that Dovecot has opened, and that holds one message of ours.
fn opened(version: Version, more: &str, dovecot: &str) -> Option<(Store, Dovecot, Server)> {
    let store = Store::new();
    for box_ in ["", "/.Work"] {
        let path = format!("home/alice/Maildir{box_}");
        store.scratch.maildir(&path, MAIL, MAIL, 0o700);
    }
    let dovecot = Dovecot::start_with(version, &store, |text| text + dovecot);
    let dovecot = dovecot?;
    let server = store.serve(more, "");
    deliver(&server, "alice+Work@x");
    let mut imap = Imap::login(dovecot.port, "alice");
    assert_eq!(imap.select("Work"), 1);
    imap.logout();
    Some((store, dovecot, server))
}

/// With `maildir_very_dirty_syncs` Dovecot looks into no directory: it knows what its index knows.
#[test]
fn status_is_right_at_once() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        for (index_log, is_told) in [("append", true), ("off", false)] {
            let dirty = "maildir_very_dirty_syncs = yes\n";
            let setting = format!("index_log = \"{index_log}\"");
            let Some((_store, dovecot, server)) = opened(version, &setting, dirty) else {
                return;
            };
            let mut imap = Imap::login(dovecot.port, "alice");
            assert_eq!(status(&mut imap, "Work"), (1, 2));
            assert_eq!(uid_of(&deliver(&server, "alice+Work@x")), Some(2));
            let seen = status(&mut imap, "Work");
            // Without it Dovecot is behind: else this test would show nothing.
            let expected = if is_told { (2, 3) } else { (1, 2) };
            assert_eq!(seen, expected, "{version:?} {index_log}");
            assert_eq!(imap.select("Work"), 2);
            assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
            assert!(
                !server.log().contains("left to Dovecot"),
                "{}",
                server.log()
            );
        }
    }
}

/// Dovecot that trusts its list of mailboxes learns that there is another one.
#[test]
fn a_new_mailbox_is_in_the_list() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        for (index_log, is_told) in [("append", true), ("off", false)] {
            let dirty = "mailbox_list_index_very_dirty_syncs = yes\n";
            let setting = format!("on_missing = \"create\"\nindex_log = \"{index_log}\"");
            let Some((_store, dovecot, server)) = opened(version, &setting, dirty) else {
                return;
            };
            let mut imap = Imap::login(dovecot.port, "alice");
            let mut has = |name: &str| {
                let lines = imap.command("LIST \"\" \"*\"");
                lines.iter().any(|line| line.contains(name))
            };
            assert!(has("Work"), "{version:?}");
            deliver(&server, "alice+New@x");
            // Without it Dovecot is behind: else this test would show nothing.
            assert_eq!(has("New"), is_told, "{version:?} {index_log}");
            assert!(!server.log().contains("not told"), "{}", server.log());
            assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
        }
    }
}

#[test]
fn idle_sees_a_delivery() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let Some((_store, dovecot, server)) = opened(version, "", "") else {
            return;
        };
        let mut imap = Imap::login(dovecot.port, "alice");
        imap.select("Work");
        imap.send_line("i IDLE");
        assert!(imap.read_line().starts_with('+'));
        deliver(&server, "alice+Work@x");
        assert_eq!(imap.read_line(), "* 2 EXISTS");
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

/// Lists of UIDs in one tree and indexes in another, made by whoever is first.
#[test]
fn control_and_index_files_that_lie_apart() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::with_inbox();
        let (from, to) = match version {
            Version::V23 => (
                "maildir:~/Maildir\n",
                "maildir:~/Maildir:CONTROL=~/control:INDEX=~/index\n",
            ),
            Version::V24 => (
                "namespace inbox {\n",
                "namespace inbox {\n  mail_control_path = ~/control\n  mail_index_path = ~/index\n",
            ),
        };
        let Some(dovecot) = Dovecot::start_with(version, &store, |text| replaced(&text, from, to))
        else {
            return;
        };
        let config = store.configure("on_missing = \"create\"", "");
        let apart =
            "inbox = true\nmail_control_path = \"~/control\"\nmail_index_path = \"~/index\"\n";
        replace_in(&config, "inbox = true\n", apart);
        let log = store.path("run/postroom.log");
        let server = Server::start(&config, &store.path("run/lmtp"), &log);
        let mut imap = Imap::login(dovecot.port, "alice");
        imap.command("CREATE Theirs");
        for mailbox in ["INBOX", "Ours", "Theirs"] {
            let recipient = match mailbox {
                "INBOX" => "alice@x".to_owned(),
                name => format!("alice+{name}@x"),
            };
            for uid in 1..4 {
                assert_eq!(
                    uid_of(&deliver(&server, &recipient)),
                    Some(uid),
                    "{mailbox}"
                );
                assert_eq!(imap.select(mailbox), uid as usize, "{version:?} {mailbox}");
            }
            let uids: Vec<u32> = imap.fetch_all().iter().map(|it| it.uid).collect();
            assert_eq!(uids, [1, 2, 3], "{version:?} {mailbox}");
            imap.command("CLOSE");
            // Each in its tree, and nowhere else.
            let directory = format!(".{mailbox}");
            let control = store.path("home/alice/control").join(&directory);
            assert!(control.join("dovecot-uidlist").exists());
            let index = store.path("home/alice/index").join(&directory);
            assert!(index.join("dovecot.index.log").exists());
        }
        assert!(!store.path("home/alice/Maildir/dovecot-uidlist").exists());
        assert!(
            !server.log().contains("left to Dovecot"),
            "{}",
            server.log()
        );
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

/// A backup of the list alone: the UIDs go on behind those that the index has given.
#[test]
fn a_list_from_a_backup_gives_no_uid_twice() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let Some((store, dovecot, server)) = opened(version, "", "") else {
            return;
        };
        let list = store.path("home/alice/Maildir/.Work/dovecot-uidlist");
        let backup = fs::read(&list).unwrap();
        for uid in 2..6 {
            assert_eq!(uid_of(&deliver(&server, "alice+Work@x")), Some(uid));
        }
        let mut imap = Imap::login(dovecot.port, "alice");
        imap.select("Work");
        fs::write(&list, backup).unwrap();
        assert_eq!(
            uid_of(&deliver(&server, "alice+Work@x")),
            Some(6),
            "{version:?}"
        );
        assert_eq!(imap.select("Work"), 6, "{version:?}");
    }
}

/// Another version, corrupt, huge, no file: Dovecot gives the UID when it looks. One that can be read and not appended to, or is
/// locked for ever, tells enough to give it.
#[test]
fn an_odd_log_costs_no_mail() {
    if not_root() {
        return;
    }
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil); 8] = [
        ("another version", |log| change(log, |bytes| bytes[0] = 9)),
        ("marked as broken", |log| {
            change(log, |bytes| bytes[4..8].fill(0))
        }),
        ("a torn record", |log| {
            change(log, |bytes| bytes.truncate(bytes.len() - 2))
        }),
        ("zeros at its end", |log| {
            change(log, |bytes| bytes.extend([0; 64]))
        }),
        ("of 1 GB", |log| {
            let file = fs::File::options().write(true).open(log).unwrap();
            file.set_len(1 << 30).unwrap();
        }),
        ("a directory", |log| {
            fs::remove_file(log).unwrap();
            fs::create_dir(log).unwrap();
        }),
        ("a symlink", |log| {
            fs::rename(log, log.with_extension("else")).unwrap();
            symlink("dovecot.index.else", log).unwrap();
        }),
        ("not writable", |log| {
            own(log, 0, 0);
            fs::set_permissions(log, fs::Permissions::from_mode(0o644)).unwrap();
        }),
    ];
    let Some((store, dovecot, server)) = opened(Version::V23, "", "") else {
        return;
    };
    let log = store.path("home/alice/Maildir/.Work/dovecot.index.log");
    let good = fs::read(&log).unwrap();
    let mut last = 1;
    for (case, spoil) in cases {
        spoil(&log);
        let before = fs::symlink_metadata(&log).unwrap().len();
        let uid = uid_of(&deliver(&server, "alice+Work@x"));
        match case {
            "not writable" => {
                last += 1;
                assert_eq!(uid, Some(last), "{}", server.log());
                assert!(server.log().contains("is left to Dovecot"));
            }
            _ => {
                assert_eq!(uid, None, "{case}");
                let said = server.log();
                let why = said.lines().last().unwrap();
                assert!(why.contains("no UID yet: dovecot.index.log: "), "{why}");
            }
        }
        assert_eq!(fs::symlink_metadata(&log).unwrap().len(), before, "{case}");
        match fs::symlink_metadata(&log).unwrap().is_dir() {
            true => fs::remove_dir(&log).unwrap(),
            false => fs::remove_file(&log).unwrap(),
        }
        fs::write(&log, &good).unwrap();
        own(&log, MAIL, MAIL);
    }
    // Dovecot's lock, held by a living process for longer than anybody waits.
    let script = "import fcntl,sys,time\nf=open(sys.argv[1],'r+b')\nfcntl.lockf(f,fcntl.LOCK_EX)\n\
                  print('held',flush=True)\ntime.sleep(600)";
    let mut holder = Command::new("python3")
        .args(["-c", script])
        .arg(&log)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 4];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
    assert_eq!(uid_of(&deliver(&server, "alice+Work@x")), Some(last + 1));
    assert!(server.log().contains("it is locked by another process"));
    holder.kill().unwrap();
    holder.wait().unwrap();
    let mut imap = Imap::login(dovecot.port, "alice");
    assert_eq!(imap.select("Work"), 10);
    let uids: Vec<u32> = imap.fetch_all().iter().map(|it| it.uid).collect();
    assert_eq!(uids, (1..=10).collect::<Vec<_>>());
}

fn change(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Odd lists, and a lock that is held for ever: delivered, without a UID where there can be none.
#[test]
fn an_odd_list_costs_no_mail() {
    if not_root() {
        return;
    }
    let header = "3 V1795332733 N1 G86371b0c7d9a026bb73a000083ecc375\n";
    let million: String = (1..=1_000_000)
        .map(|uid| format!("{uid} :f{uid}\n"))
        .collect();
    let cases = [
        ("empty", String::new(), None),
        ("of version 1", "1 1795332733 2\n1 x\n".into(), Some(2)),
        ("of version 2", "2 1795332733 2\n1 x\n".into(), None),
        ("unordered", format!("{header}7 :x\n3 :y\n"), None),
        ("torn", format!("{header}7 :x\n8 :y"), Some(9)),
        ("long", format!("{header}{million}"), Some(1_000_001)),
    ];
    let store = Store::new();
    let mailbox = store
        .scratch
        .maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
    let server = store.serve("", "");
    let list = mailbox.join("dovecot-uidlist");
    for (case, text, uid) in cases {
        fs::write(&list, &text).unwrap();
        own(&list, MAIL, MAIL);
        assert_eq!(uid_of(&deliver(&server, "alice@x")), uid, "{case}");
        if uid.is_none() {
            assert_eq!(fs::read_to_string(&list).unwrap(), text, "{case}");
        }
    }
    fs::write(&list, header).unwrap();
    own(&list, 0, 0);
    fs::set_permissions(&list, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(uid_of(&deliver(&server, "alice@x")), None, "not writable");
    fs::remove_file(&list).unwrap();
    symlink("/etc/passwd", &list).unwrap();
    assert_eq!(uid_of(&deliver(&server, "alice@x")), None, "a symlink");
    fs::remove_file(&list).unwrap();
    fs::create_dir(&list).unwrap();
    assert_eq!(uid_of(&deliver(&server, "alice@x")), None, "a directory");
    fs::remove_dir(&list).unwrap();
    fs::write(&list, header).unwrap();
    own(&list, MAIL, MAIL);
    let host = Command::new("hostname").output().unwrap().stdout;
    let host = String::from_utf8(host).unwrap();
    let lock = format!("{}:{}", std::process::id(), host.trim_end());
    fs::write(mailbox.join("dovecot-uidlist.lock"), lock).unwrap();
    assert_eq!(
        uid_of(&deliver(&server, "alice@x")),
        None,
        "locked for ever"
    );
    assert!(
        server.log().contains("dovecot-uidlist.lock is held"),
        "{}",
        server.log()
    );
    fs::remove_file(mailbox.join("dovecot-uidlist.lock")).unwrap();
    assert_eq!(uid_of(&deliver(&server, "alice@x")), Some(1));
    let files = fs::read_dir(mailbox.join("new")).unwrap().count();
    assert_eq!(files, 11, "every message is there");
}
