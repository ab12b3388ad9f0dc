//! Something else is where a mailbox should be.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use super::*;

/// Something else is where `Work` should be: a stranger's mail goes to INBOX, the admin's waits.
#[test]
fn places_that_are_no_mailbox() {
    if not_root() {
        return;
    }
    #[rustfmt::skip]
    let rows = [
        ("a file", "touch .Work"),
        ("a pipe", "mkfifo .Work"),
        ("a loop", "ln -s .Work .Work"),
        ("a link to nothing", "ln -s nowhere .Work"),
        ("a link to a file", "ln -s /etc/passwd .Work"),
        ("a directory of somebody else", "mkdir -m 0700 .Work"),
        ("tmp is a file", "dirs .Work .Work/cur .Work/new && touch .Work/tmp"),
        ("tmp is a program", "dirs .Work .Work/cur .Work/new && install -m 777 /dev/null .Work/tmp"),
        ("new is a program", "dirs .Work .Work/cur .Work/tmp && install -m 777 /dev/null .Work/new"),
        ("new is a loop", "dirs .Work .Work/cur .Work/tmp && ln -s new .Work/new"),
        ("new is a link to nothing", "dirs .Work .Work/cur .Work/tmp && ln -s nowhere .Work/new"),
        ("tmp leads elsewhere", "dirs .Work .Work/cur .Work/new && ln -s ../tmp .Work/tmp"),
        ("new leads elsewhere", "dirs .Work .Work/cur .Work/tmp && ln -s ../cur .Work/new"),
        ("new is closed", "dirs .Work .Work/cur .Work/tmp && mkdir .Work/new"),
    ];
    for (what, script) in rows {
        let store = store();
        shell(&store.path("home/alice/Maildir"), script);
        let server = serve(&store, "", "on_missing = \"create\"");
        let before = picture(&store);
        let reply = deliver(&server, b"alice+Work@x.test");
        assert!(
            reply.contains("mailbox=\"INBOX\""),
            "{what}: {reply} {}",
            server.log()
        );
        let new = added(&store, &before);
        assert_eq!(new, ["home/alice/Maildir/new/MESSAGE"], "{what}");
        assert!(server.log().contains(".Work"), "{what}: {}", server.log());
        let before = picture(&store);
        let arguments = [os(b"-d"), os(b"alice"), os(b"-m"), os(b"Work")];
        for uid in [MAIL, 0] {
            let (code, told) = lda_as(uid, &store, &arguments, MESSAGE);
            assert_eq!(code, 75, "{what}, {uid}: {told}");
            assert!(told.contains(".Work"), "{what}, {uid}: {told}");
            assert_eq!(picture(&store), before, "{what}, {uid}");
        }
    }
}

/// The same for a mailbox that is a file.
#[test]
fn places_that_are_no_mbox() {
    if not_root() {
        return;
    }
    let mbox = "printf 'From x  Mon Nov 02 07:02:09 2026\\n\\n' >";
    #[rustfmt::skip]
    let rows = [
        ("a pipe", "mkfifo Work".to_owned()),
        ("a socket", "socket Work".to_owned()),
        ("a device", "mknod -m 666 Work c 1 5".to_owned()),
        ("a full device", "mknod -m 666 Work c 1 7".to_owned()),
        ("a loop", "ln -s Work Work".to_owned()),
        ("a link to nothing", "ln -s nowhere Work".to_owned()),
        ("a link to a device", "ln -s /dev/zero Work".to_owned()),
        ("a link to a pipe", "mkfifo -m 666 ../pipe; ln -s ../pipe Work".to_owned()),
        ("a file of somebody else", format!("{mbox} Work; chmod 600 Work")),
        ("no mbox", "echo 'export PATH=x' > Work; chown mail Work".to_owned()),
        // Root makes it: `fs.protected_hardlinks`, which is one for the whole machine, does not keep it from being there.
        ("a second name", format!("{mbox} ../other; chown mail ../other; ln ../other Work")),
        ("a link to a second name", format!("{mbox} ../a; ln ../a ../b; chown mail ../a; ln -s ../a Work")),
    ];
    for (what, script) in rows {
        let store = Store::new();
        let folder = store.scratch.dir("home/alice/mail", MAIL, MAIL, 0o700);
        shell(&folder, &script);
        let top = "mail_driver = \"mbox\"\nmail_path = \"~/mail\"\nmbox_lock_timeout = \"1s\"";
        let server = serve(&store, top, "on_missing = \"create\"");
        let facts = || {
            let meta = fs::symlink_metadata(folder.join("Work")).unwrap();
            (meta.ino(), meta.mode(), meta.len(), meta.mtime())
        };
        let before = (facts(), fs::read(store.path("home/alice/other")).ok());
        let reply = deliver(&server, b"alice+Work@x.test");
        let case = format!("{what}: {reply} {}", server.log());
        assert!(reply.contains("mailbox=\"INBOX\""), "{case}");
        assert!(server.log().contains("Work"), "{case}");
        let arguments = [os(b"-d"), os(b"alice"), os(b"-m"), os(b"Work")];
        for uid in [MAIL, 0] {
            let (code, told) = lda_as(uid, &store, &arguments, MESSAGE);
            assert_eq!(code, 75, "{what}, {uid}: {told}");
            assert!(told.contains("Work"), "{what}, {uid}: {told}");
            let after = (facts(), fs::read(store.path("home/alice/other")).ok());
            assert_eq!(after, before, "{what}, {uid}");
        }
        let inbox = fs::read_to_string(folder.join("inbox")).unwrap_or_default();
        let count = inbox.matches("Subject: bad input").count();
        assert_eq!(count, 1, "{what}");
    }
}

/// What stands beside the messages costs none of them, whatever somebody has made of it, and is read or written through no link.
#[test]
fn control_files_that_are_none() {
    if not_root() {
        return;
    }
    let kinds = [
        ("a pipe", "mkfifo -m 666 $0"),
        ("a socket", "socket $0"),
        ("a directory", "dirs $0"),
        ("a loop", "ln -s $0 $0"),
        ("a link", "ln -s $PWD/../victim $0"),
        ("a link to a device", "ln -s /dev/zero $0"),
        ("a hole", "truncate -s 1T $0 && chown mail $0"),
        (
            "rubbish",
            "head -c 5000000 /dev/urandom > $0 && chown mail $0",
        ),
        ("closed", "echo 3 V1 N1 > $0; chmod 0 $0"),
    ];
    let of_mailbox = [
        "dovecot-uidlist",
        "dovecot-uidlist.lock",
        "dovecot-keywords",
        "dovecot.index",
        "dovecot.index.log",
        "dovecot-acl",
    ];
    let of_root = [
        "maildirsize",
        "subscriptions",
        "subscriptions.lock",
        "dovecot-uidvalidity",
        "dovecot.list.index.log",
    ];
    let files = of_mailbox
        .iter()
        .map(|file| (format!(".Work/{file}"), true));
    let files = files.chain(of_root.iter().map(|file| (file.to_string(), false)));
    for (file, is_there) in files {
        for (what, script) in kinds {
            let store = store();
            let home = "home/alice/Maildir";
            let victim = "\x02\x00precious\n";
            store
                .scratch
                .file("home/alice/victim", MAIL, MAIL, 0o644, victim);
            if is_there {
                store
                    .scratch
                    .maildir(&format!("{home}/.Work"), MAIL, MAIL, 0o700);
            }
            let folder = store.path(home).join(&file).parent().unwrap().to_owned();
            let name = file.rsplit('/').next().unwrap();
            shell(&folder, &script.replace("$0", name));
            let top = "lda_mailbox_autosubscribe = true\n[quota]\ndriver = \"maildir\"\nstorage_size = \"1G\"";
            let path = store.configure("on_missing = \"create\"", "");
            let (first, rest) = top.split_once('\n').unwrap();
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, format!("{first}\n{text}\n{rest}\n")).unwrap();
            let words = ["-d", "alice", "-m", "Work", "--keyword", "Red"];
            let words = words.map(|word| os(word.as_bytes()));
            let (code, told) = lda(&store, &words, MESSAGE);
            let case = format!("{file} is {what}: {told}");
            assert_eq!(code, 0, "{case}");
            let stored = messages(&store.path(home).join(".Work"));
            assert_eq!(stored.len(), 1, "{case}");
            let after = fs::read_to_string(store.path("home/alice/victim")).unwrap();
            assert_eq!(after, victim, "{case}");
        }
    }
}

/// Where INBOX itself cannot be had there is nothing to fall back to, and RCPT says so already.
#[test]
fn an_inbox_that_cannot_be_had() {
    if not_root() {
        return;
    }
    #[rustfmt::skip]
    let rows = [
        ("a file", "touch Maildir"),
        ("a loop", "ln -s Maildir Maildir"),
        ("a link to nothing", "ln -s nowhere Maildir"),
        ("somebody else's", "mkdir -m 0700 Maildir"),
        ("read-only", "mkdir -m 0755 Maildir"),
        ("new is read-only", "dirs Maildir Maildir/cur Maildir/tmp && mkdir Maildir/new"),
        ("new is a file", "dirs Maildir Maildir/cur Maildir/tmp && touch Maildir/new"),
        ("the home is not ours", "chown 0:0 ."),
        ("the home is a file", "rmdir ../alice && touch ../alice"),
        ("the home is a loop", "rmdir ../alice && ln -s alice ../alice"),
    ];
    for (what, script) in rows {
        let store = Store::new();
        shell(&store.path("home/alice"), script);
        let server = store.serve("", "");
        let before = picture(&store);
        for recipient in ["alice@x.test", "alice+Work@x.test", "alice+Public/x@x.test"] {
            let mut client = server.client();
            client.say("MAIL FROM:<s@else.test>");
            let reply = client.say(&format!("RCPT TO:<{recipient}>"));
            assert!(reply.starts_with("451 4."), "{what} {recipient}: {reply}");
            let (code, told) = lda(&store, &[os(recipient.as_bytes())], MESSAGE);
            assert_eq!(code, 75, "{what} {recipient}: {told}");
        }
        assert!(
            server.log().contains("home/alice"),
            "{what}: {}",
            server.log()
        );
        assert_eq!(picture(&store), before, "{what}");
    }
}

/// Runs a script as root; `dirs` makes directories of the mail user.
fn shell(at: &Path, script: &str) {
    let listen = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])";
    let script = format!(
        "dirs() {{ install -d -o {MAIL} -g {MAIL} \"$@\"; }}
         socket() {{ python3 -c '{listen}' \"$@\" && chown {MAIL} \"$@\"; }}
         {script}"
    );
    let mut command = Command::new("/bin/sh");
    command.args(["-ec", &script]).current_dir(at);
    assert!(command.status().unwrap().success(), "{script}");
}
