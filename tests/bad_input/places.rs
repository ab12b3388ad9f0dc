//! Something else is where a mailbox should be.

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
        let (code, told) = lda(&store, &arguments, MESSAGE);
        assert_eq!(code, 75, "{what}: {told}");
        assert!(told.contains(".Work"), "{what}: {told}");
        assert_eq!(picture(&store), before, "{what}");
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
    let script = format!("dirs() {{ install -d -o {MAIL} -g {MAIL} \"$@\"; }}; {script}");
    let mut command = Command::new("/bin/sh");
    command.args(["-ec", &script]).current_dir(at);
    assert!(command.status().unwrap().success(), "{script}");
}
