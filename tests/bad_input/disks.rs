//! File systems that are read-only or full.

use std::io::Write;
use std::process::Command;

use super::support::mount::Mount;
use super::support::replace_in;
use super::*;

#[test]
fn a_root_that_is_read_only() {
    if not_root() {
        return;
    }
    let store = store();
    let Some(_mount) = Mount::read_only(store.path("public")) else {
        return;
    };
    let server = serve(&store, "", "on_missing = \"create\"");
    for (recipient, reply, exit) in [
        ("alice+Public/info@x.test", "451 4.2.0 ", 75),
        ("alice+Public/new@x.test", "250 2.0.0 ", 0),
        ("alice+Public/info/new@x.test", "250 2.0.0 ", 0),
    ] {
        let before = picture(&store);
        let got = deliver(&server, recipient.as_bytes());
        assert!(got.starts_with(reply), "{recipient}: {got}");
        let (code, told) = lda(&store, &[os(recipient.as_bytes())], MESSAGE);
        assert_eq!(code, exit, "{recipient}: {told}");
        let new = added(&store, &before);
        let want = match exit {
            0 => &["home/alice/Maildir/new/MESSAGE"; 2][..],
            _ => &[],
        };
        assert_eq!(new, want, "{recipient}");
    }
    assert!(
        server.log().contains("Read-only file system"),
        "{}",
        server.log()
    );
    drop(server);
    let Some(_home) = Mount::read_only(store.path("home/carol")) else {
        return;
    };
    // What the admin wants to be made waits for the disk too.
    let rule = "[[address]]\nmatch = \"news@x.test\"\nuser = \"carol\"\nmailbox = \"News\"\non_missing = \"create\"\n";
    let server = store.serve("", rule);
    let before = picture(&store);
    assert!(deliver(&server, b"carol@x.test").starts_with("451 4.2.0 "));
    let reply = deliver(&server, b"news@x.test");
    assert!(reply.starts_with("451 4.2.0 "), "{reply} {}", server.log());
    assert_eq!(lda(&store, &[os(b"carol@x.test")], MESSAGE).0, 75);
    assert_eq!(picture(&store), before);
}

/// Its control files are elsewhere, and can be written: a stranger's mail goes to INBOX, or waits where somebody may make it writable
/// again, the admin's waits. Nothing is made or changed for a message that is in no mailbox.
#[test]
fn a_read_only_maildir_with_control_files_elsewhere() {
    if not_root() {
        return;
    }
    for (is_mounted, reply, why) in [
        (false, "250 2.0.0 ", "Permission denied (os error 13)"),
        (true, "451 4.2.0 ", "Read-only file system (os error 30)"),
    ] {
        let store = store();
        store.scratch.dir("public", MAIL, MAIL, 0o755);
        for mailbox in ["info", "list"] {
            let below = format!("public/.{mailbox}");
            let owner = if is_mounted { MAIL } else { 0 };
            store.scratch.maildir(&below, owner, owner, 0o755);
            let acl = format!("{below}/dovecot-acl");
            store
                .scratch
                .file(&acl, owner, owner, 0o644, "anyone lrwip\n");
        }
        store.scratch.dir("apart", MAIL, MAIL, 0o755);
        store.scratch.dir("apart/.list", MAIL, MAIL, 0o755);
        let list = "3 V5 N7 G86371b0c7d9a026bb73a000083ecc375\n";
        let file = "apart/.list/dovecot-uidlist";
        store.scratch.file(file, MAIL, MAIL, 0o644, list);
        let _mount = match is_mounted {
            true => match Mount::read_only(store.path("public")) {
                None => return,
                mount => mount,
            },
            false => None,
        };
        let path = store.configure("on_missing = \"create\"", "");
        let root = format!("mail_path = \"{}\"\n", store.scratch.text("public"));
        let apart = format!("mail_control_path = \"{}\"\n", store.scratch.text("apart"));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(&root));
        fs::write(&path, text.replace(&root, &format!("{root}{apart}"))).unwrap();
        let server = Server::start(&path, &store.path("run/lmtp"), &store.path("run/log"));
        for mailbox in ["Public/info", "Public/list"] {
            let before = picture(&store);
            let got = deliver(&server, format!("alice+{mailbox}@x.test").as_bytes());
            let case = format!("{mailbox}: {got} {}", server.log());
            assert!(got.starts_with(reply), "{case}");
            assert!(server.log().contains(why), "{case}");
            let new = added(&store, &before);
            let inbox = ["home/alice/Maildir/new/MESSAGE"];
            assert_eq!(new, &inbox[usize::from(is_mounted)..], "{case}");
            let before = picture(&store);
            for uid in [MAIL, 0] {
                let words = ["-d", "alice", "-m", mailbox].map(|word| os(word.as_bytes()));
                let (code, told) = lda_as(uid, &store, &words, MESSAGE);
                assert_eq!(code, 75, "{mailbox}, {uid}: {told}");
                assert!(told.contains(why), "{mailbox}, {uid}: {told}");
                assert_eq!(picture(&store), before, "{mailbox}, {uid}");
            }
        }
        assert_eq!(fs::read_to_string(store.path(file)).unwrap(), list);
        // As soon as it can be written again, its UIDs go on.
        drop(_mount);
        if is_mounted {
            let reply = deliver(&server, b"alice+Public/list@x.test");
            assert!(reply.contains(" uid=7 "), "{reply} {}", server.log());
        }
    }
}

/// Space or files run out: at every size of the hole nothing stays of a message that did not fit.
#[test]
fn a_disk_that_is_full() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let root = store.path("home/alice");
    let Some(_mount) = Mount::small(root.clone(), 256, 64, MAIL) else {
        return;
    };
    let server = serve(&store, "", "on_missing = \"create\"");
    let message = [MESSAGE, &b"0123456789\n".repeat(3000)].concat();
    let deliver = |recipient: &str| server.client().deliver(&[recipient], &message).remove(0);
    let filler = root.join("filler");
    // No space for the message.
    let reply = deliver("alice@x.test");
    assert!(reply.starts_with("250 2.0.0 "), "{reply} {}", server.log());
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[b'x'; 4096]).is_ok() {}
    let before = picture(&store);
    for recipient in ["alice@x.test", "alice+Spam@x.test", "alice+Work@x.test"] {
        let reply = deliver(recipient);
        assert!(reply.starts_with("452 4.3.1 "), "{recipient}: {reply}");
        let (code, told) = lda(&store, &[os(recipient.as_bytes())], &message);
        assert_eq!(code, 75, "{recipient}: {told}");
        assert!(told.contains("4.3.1 "), "{told}");
        assert_eq!(picture(&store), before, "{recipient}");
    }
    assert!(server.log().contains("No space left"), "{}", server.log());
    // The others of the transaction are not concerned.
    let both = ["alice@x.test", "bob@x.test"];
    let replies = server.client().deliver(&both, &message);
    assert!(
        replies[0].starts_with("452 4.3.1 ") && replies[1].starts_with("250 2.0.0 "),
        "{replies:?}"
    );
    drop(file);
    fs::remove_file(&filler).unwrap();
    let reply = deliver("alice@x.test");
    assert!(reply.starts_with("250 2.0.0 "), "{reply} {}", server.log());
    // No inodes, or too few of them for a mailbox: none of its directories stays.
    let mut fillers = Vec::new();
    while let Ok(file) = fs::File::create_new(root.join(fillers.len().to_string())) {
        drop(file);
        fillers.push(root.join(fillers.len().to_string()));
    }
    for _ in 0..5 {
        let before = picture(&store);
        let reply = deliver("alice+Work@x.test");
        assert!(reply.starts_with("452 4.3.1 "), "{reply}");
        let (code, told) = lda(
            &store,
            &[os(b"-m"), os(b"Work"), os(b"-d"), os(b"alice")],
            &message,
        );
        assert_eq!(code, 75, "{told}");
        assert_eq!(picture(&store), before);
        fs::remove_file(fillers.pop().unwrap()).unwrap();
    }
    assert!(unfinished(&store.path("home")).is_empty());
}

/// The place of the lists of UIDs, or of the index, has no space: the mail is there, and the log says what is missing.
#[test]
fn no_room_for_control_files_or_index() {
    if not_root() {
        return;
    }
    // What Dovecot begins a log with.
    let mut log = vec![1, 3, 40, 0];
    for field in [0x6b02_9a7d_u32, 2, 0, 0, 0x6b02_9a7d, 1, 0, 1, 0] {
        log.extend(field.to_le_bytes());
    }
    for setting in ["mail_control_path", "mail_index_path"] {
        let store = store();
        let place = store.scratch.dir("apart", MAIL, MAIL, 0o700);
        let Some(_mount) = Mount::small(place.clone(), 64, 64, MAIL) else {
            return;
        };
        let config = store.configure("", "");
        let own = format!(
            "[namespace.inbox]\n{setting} = \"{}/%{{user}}\"\n",
            place.display()
        );
        replace_in(&config, "[namespace.inbox]\n", &own);
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let deliver = || deliver(&server, b"alice@x.test");
        let reply = deliver();
        assert!(
            reply.contains(" uid=1 "),
            "{setting}: {reply} {}",
            server.log()
        );
        let is_index = setting == "mail_index_path";
        let written = match is_index {
            true => place.join("alice/.INBOX/dovecot.index.log"),
            false => place.join("alice/.INBOX/dovecot-uidlist"),
        };
        if is_index {
            fs::create_dir_all(written.parent().unwrap()).unwrap();
            fs::write(&written, &log).unwrap();
            for folder in ["alice", "alice/.INBOX"] {
                support::own(&place.join(folder), MAIL, MAIL);
            }
            support::own(&written, MAIL, MAIL);
            assert!(deliver().contains(" uid=2 "), "{}", server.log());
        }
        let fill = |name: &str| {
            let mut file = fs::File::create(place.join(name)).unwrap();
            while file.write_all(b"x").is_ok() {}
        };
        fill("filler");
        let is_missing = |server: &Server| {
            let said = server.log();
            let line = said.lines().last().unwrap_or_default();
            match is_index {
                true => line.contains("dovecot.index.log is left to Dovecot"),
                false => line.contains("no UID yet") && line.contains("No space left"),
            }
        };
        // The last block of the file itself has room, until it has none.
        let mut last = String::new();
        for _ in 0..200 {
            last = deliver();
            assert!(last.starts_with("250 2.0.0 "), "{setting}: {last}");
            if is_missing(&server) {
                break;
            }
        }
        assert!(is_missing(&server), "{setting}: {last} {}", server.log());
        assert_eq!(last.contains(" uid="), is_index, "{setting}: {last}");
        fs::remove_file(place.join("filler")).unwrap();
        let reply = deliver();
        assert!(
            reply.contains(" uid="),
            "{setting}: {reply} {}",
            server.log()
        );
        let text = fs::read(&written).unwrap();
        assert!(is_index || text.ends_with(b"\n"), "{setting}");
        let (said, stored) = (server.log(), messages(&store.path("home/alice/Maildir")));
        let count = said
            .lines()
            .filter(|line| line.contains("INFO stored"))
            .count();
        assert_eq!(stored.len(), count, "{setting}");
    }
}

/// The spool has no space: the message is lost before there is a plan, and every recipient hears and has a line in the log.
#[test]
fn a_spool_that_is_full() {
    if not_root() {
        return;
    }
    let store = store();
    store.scratch.dir("spool", MAIL, MAIL, 0o700);
    let Some(_mount) = Mount::small(store.path("spool"), 4096, 64, MAIL) else {
        return;
    };
    let config = store.configure("", "");
    store.move_spool(&config, "spool");
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    let before = picture(&store);
    let message = [MESSAGE, &b"0123456789\n".repeat(500_000)].concat();
    let both = ["alice@x.test", "bob@x.test"];
    let mut client = server.client();
    for replies in [
        client.deliver(&both, &message),
        chunks(&mut client, &both, &message),
    ] {
        assert_eq!(replies.len(), 2);
        assert!(
            replies.iter().all(|reply| reply.starts_with("452 4.3.1 ")),
            "{replies:?}"
        );
    }
    let log = server.log();
    for recipient in both {
        let lines = log
            .lines()
            .filter(|line| line.contains(recipient) && line.contains("No space left"));
        assert_eq!(lines.count(), 2, "{recipient}: {log}");
    }
    assert_eq!(picture(&store), before);
    // It is used again: what fits goes.
    let replies = client.deliver(&both, &message[..3_000_000]);
    assert!(
        replies.iter().all(|reply| reply.starts_with("250 2.0.0 ")),
        "{replies:?}"
    );
    assert_eq!(tree(&store.path("spool")), Vec::<String>::new());
}

/// A limit on the size of files is an answer too, wherever the message meets it.
#[test]
fn a_file_that_may_not_grow() {
    if not_root() {
        return;
    }
    let store = store();
    store.configure("", "");
    let before = picture(&store);
    for size in [10_000, 3_000_000] {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "ulimit -f 8 && exec \"$@\"", "sh"]);
        command.arg(program("postroom-lda").get_program());
        command.arg("-c").arg(store.path("postroom.toml"));
        command.arg("alice@x.test");
        as_user(&mut command, MAIL, MAIL, &[]);
        let output = run_with_input(&mut command, &vec![b'x'; size]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(75), "{told}");
        assert!(told.starts_with("4.2.2 "), "{told}");
        assert_eq!(picture(&store), before);
    }
}

const MBOX: &str = "mail_driver = \"mbox\"\nmail_path = \"~/mail\"\n";

/// Read-only for now is no "no": the mail waits, also where the name is a stranger's.
#[test]
fn an_mbox_that_is_read_only() {
    if not_root() {
        return;
    }
    let store = Store::new();
    store.scratch.dir("home/alice/mail", MAIL, MAIL, 0o700);
    let before = "From x  Mon Nov 02 07:02:09 2026\n\nold\n\n";
    let work = "home/alice/mail/Work";
    store.scratch.file(work, MAIL, MAIL, 0o600, before);
    let Some(_mount) = Mount::read_only(store.path("home/alice")) else {
        return;
    };
    let server = serve(&store, MBOX, "on_denied = \"reject\"");
    let got = deliver(&server, b"alice+Work@x.test");
    assert!(got.starts_with("451 4.2.0 "), "{got}");
    assert_eq!(fs::read_to_string(store.path(work)).unwrap(), before);
}

/// A quota, a full disk, a limit on the size of files: an mbox is as it was, and a Maildir too.
#[test]
fn no_room_behind_what_is_there() {
    if not_root() {
        return;
    }
    for (top, inbox) in [("", "Maildir"), (MBOX, "mail/inbox")] {
        for (what, reply, code) in [
            ("a quota", "452 4.2.2 ", "4.2.2 "),
            ("a full disk", "452 4.3.1 ", "4.3.1 "),
        ] {
            let store = Store::new();
            let home = store.path("home/alice");
            let _mount = match what {
                "a quota" => Mount::with_quota(&store.path("image"), home.clone(), MAIL),
                _ => Mount::small(home.clone(), 2048, 512, MAIL),
            };
            let Some(_mount) = _mount else {
                return;
            };
            store.scratch.dir("home/alice/mail", MAIL, MAIL, 0o700);
            let server = serve(&store, top, "on_missing = \"create\"");
            let message = [MESSAGE, &b"0123456789\n".repeat(25_000)].concat();
            let deliver = || {
                let mut client = server.client();
                client.deliver(&["alice@x.test"], &message).remove(0)
            };
            let first = deliver();
            assert!(
                first.starts_with("250 "),
                "{what}: {first} {}",
                server.log()
            );
            let content = || match top {
                "" => messages(&home.join(inbox)),
                _ => vec![(home.clone(), fs::read(home.join(inbox)).unwrap())],
            };
            let (mut before, mut last) = (content(), String::new());
            for _ in 0..20 {
                last = deliver();
                if !last.starts_with("250 ") {
                    break;
                }
                before = content();
            }
            assert!(last.starts_with(reply), "{what}: {last} {}", server.log());
            let after = content();
            let sizes =
                [&after, &before].map(|it| it.iter().map(|file| file.1.len()).sum::<usize>());
            assert!(after == before, "{what} {inbox}: {sizes:?}");
            let told = lda(&store, &[os(b"alice@x.test")], &message);
            assert!(told.0 == 75 && told.1.contains(code), "{what}: {told:?}");
            assert!(content() == before, "{what} {inbox}");
            assert!(unfinished(&home).is_empty());
            assert!(!home.join("mail/inbox.lock").exists());
        }
    }
    let store = Store::new();
    store.scratch.dir("home/alice/mail", MAIL, MAIL, 0o700);
    let config = store.configure("", "");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{MBOX}{text}")).unwrap();
    let told = lda(&store, &[os(b"alice@x.test")], MESSAGE);
    assert_eq!(told.0, 0, "{told:?}");
    let before = fs::read(store.path("home/alice/mail/inbox")).unwrap();
    for size in [10_000, 3_000_000] {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "ulimit -f 8 && exec \"$@\"", "sh"]);
        command.arg(program("postroom-lda").get_program());
        command.arg("-c").arg(&config).arg("alice@x.test");
        as_user(&mut command, MAIL, MAIL, &[]);
        let output = run_with_input(&mut command, &vec![b'x'; size]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(75), "{told}");
        assert!(told.starts_with("4.2.2 "), "{told}");
        let after = fs::read(store.path("home/alice/mail/inbox")).unwrap();
        assert!(after == before, "{size}");
    }
}
