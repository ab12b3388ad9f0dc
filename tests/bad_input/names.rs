//! Recipients and mailbox names that must not lead anywhere.

use super::support::messages;
use super::*;

#[test]
fn recipients_that_nobody_is() {
    if not_root() {
        return;
    }
    let store = store();
    let server = store.serve("", "");
    let before = picture(&store);
    let (long, too_long) = ("a".repeat(300), "a".repeat(400));
    let (long, too_long) = (format!("{long}@x.test"), format!("{too_long}@x.test"));
    const UNKNOWN: &str = "no userdb has this user";
    #[rustfmt::skip]
    let rows = [
        (&b"nobody@x.test"[..], "550 5.1.1 ", 67, UNKNOWN),
        (b"nobody+Work@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b".@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"..@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"+Work@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"\"../alice\"@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"\"alice/\"@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"\"~alice\"@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"\"alice \"@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"\"#\"@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"\"alice:\"@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"%{home}@x.test", "550 5.1.1 ", 67, UNKNOWN),
        ("jörg@x.test".as_bytes(), "550 5.1.1 ", 67, UNKNOWN),
        (long.as_bytes(), "550 5.1.1 ", 67, UNKNOWN),
        (too_long.as_bytes(), "501 5.1.3 ", 67, ""),
        (b"\"\"@x.test", "501 5.1.3 ", 67, ""),
        (b"alice@", "501 5.1.3 ", 67, ""),
        (b"alice@..", "501 5.1.3 ", 67, ""),
        (b"alice@x.test\r\n", "501 5.1.3 ", 67, ""),
        (b"\"alice\x01\"@x.test", "500 5.5.2 ", 67, ""),
        (b"\"alice\x7f\"@x.test", "500 5.5.2 ", 67, ""),
        (b"\"alice\xc2\x85\"@x.test", "500 5.5.2 ", 67, ""),
        (b"alice\xff@x.test", "500 5.5.2 ", 67, ""),
        (b"alice\0@x.test", "500 5.5.2 ", 67, ""),
    ];
    for (recipient, reply, exit, log) in rows {
        let shown = String::from_utf8_lossy(recipient);
        // A line end is a new command: the client is not in step any more, and nothing came of it.
        let known = server.log().len();
        let got = deliver(&server, recipient);
        assert!(got.starts_with(reply), "{shown:?}: {got}");
        assert!(server.log()[known..].contains(log), "{shown:?}");
        if !recipient.contains(&0) {
            let (code, told) = lda(&store, &[os(recipient)], MESSAGE);
            assert_eq!(code, exit, "{shown:?}: {told}");
            assert!(told.contains(log), "{shown:?}: {told}");
        }
        assert_eq!(picture(&store), before, "{shown:?}");
    }
    #[rustfmt::skip]
    let rows = [
        (&b"nobody"[..], 67),
        (b"", 75),
        (b".", 67),
        (b"..", 67),
        (b"../alice", 67),
        (b"alice/", 67),
        (b"alice\n", 67),
        (b"alice\x01", 67),
        (b"alice\xff", 75),
    ];
    for (user, exit) in rows {
        let (code, told) = lda(&store, &[os(b"-d"), os(user)], MESSAGE);
        assert_eq!(code, exit, "{:?}: {told}", os(user));
        assert_eq!(picture(&store), before, "{:?}", os(user));
    }
}

/// A userdb that knows everybody, and a path made of what it is asked for.
#[test]
fn recipients_that_would_leave_their_place() {
    if not_root() {
        return;
    }
    let store = store();
    let root = store.scratch.text("");
    store.scratch.dir("vmail", MAIL, MAIL, 0o700);
    let config = format!(
        "hostname = \"mx\"\nfirst_valid_uid = 1\n\
         [[userdb]]\nstatic = {{ uid = {MAIL}, gid = {MAIL}, home = \"{root}/vmail/%{{user | domain}}/%{{user | username}}\" }}\n\
         [namespace.inbox]\ninbox = true\nmail_path = \"~/Maildir\"\n\
         [lmtp]\nlisten = [{{ unix = \"{root}/run/lmtp\", mode = \"0666\" }}]\n\
         [delivery]\nspool_dir = \"{root}/run\"\n"
    );
    fs::write(store.path("postroom.toml"), config).unwrap();
    let before = picture(&store);
    let config = store.path("postroom.toml");
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    for recipient in [
        ".@d.test",
        "..@d.test",
        "+x@d.test",
        "\"a/b\"@d.test",
        "\"/\"@d.test",
        "\"../d.test/alice\"@d.test",
        "\"a@..\"",
        "\"a@.\"",
        "\"..@..\"@d.test",
        "\"@\"",
    ] {
        let reply = deliver(&server, recipient.as_bytes());
        assert!(reply.starts_with("550 5.1.1 "), "{recipient}: {reply}");
        let (code, told) = lda(&store, &[os(recipient.as_bytes())], MESSAGE);
        assert_eq!(code, 67, "{recipient}: {told}");
        let now: Vec<String> = picture(&store);
        assert_eq!(now, before, "{recipient}");
    }
    let reply = deliver(&server, b"alice@d.test");
    assert!(reply.starts_with("250 2.0.0 "), "{reply}");
    assert_eq!(messages(&store.path("vmail/d.test/alice/Maildir")).len(), 1);
}

/// What becomes of a detail where every mailbox may be made, with Maildir++ and with nested directories: the new
/// directory, or INBOX. And the exit code for the same name behind `-m`.
#[test]
fn names_that_no_mailbox_can_have() {
    if not_root() {
        return;
    }
    let long = "x".repeat(256);
    let inbox = (Some("INBOX"), Some("INBOX"));
    // detail, Maildir++, nested, -m, the log
    #[rustfmt::skip]
    let rows = [
        ("..", inbox, 75, "level"),
        ("../../x", inbox, 75, "level"),
        ("a/../b", inbox, 75, "level"),
        ("./a", inbox, 75, "level"),
        ("INBOX/../../x", inbox, 75, "level"),
        ("/etc/passwd", inbox, 75, "begins with the hierarchy"),
        ("a//b", inbox, 75, "adjacent hierarchy"),
        ("a/", inbox, 75, "ends with the hierarchy"),
        ("~", inbox, 75, "begins with '~'"),
        ("~bob/x", inbox, 75, "begins with '~'"),
        (&long, inbox, 75, "longer than"),
        ("a\u{2028}b", inbox, 75, "U+2028"),
        ("a\u{feff}", inbox, 75, "U+FEFF"),
        ("dovecot.index", inbox, 75, "storage's own|inside a level"),
        ("cur", (Some(".cur"), Some("INBOX")), 75, "storage's own"),
        ("new/x", (Some(".new.x"), Some("INBOX")), 75, "storage's own"),
        ("dovecot-acl", (Some(".dovecot-acl"), Some("INBOX")), 75, "storage's own"),
        ("a.b", (Some("INBOX"), Some("a.b")), 75, "inside a level"),
        ("%{home}", (Some(".%{home}"), Some("%{home}")), 0, ""),
        ("shared/nobody/x", inbox, 0, "no such owner"),
        ("shared/nobody", inbox, 0, "no such owner"),
        ("shared/../x", inbox, 0, "no such owner"),
        ("shared/%{home}/x", inbox, 0, "no such owner"),
        ("shared//x", inbox, 0, "needs a user"),
        ("shared/", inbox, 0, "prefix of namespace"),
        ("Public/", inbox, 0, "prefix of namespace"),
        ("Public/..", inbox, 75, "level"),
        ("Public/../home/bob/Maildir", inbox, 75, "level"),
        ("Public/fresh", inbox, 0, "no right to create"),
        ("shared/bob/../alice", inbox, 75, "level"),
        ("shared/bob/Projects/../../../alice", inbox, 75, "level"),
        ("shared/bob/new2", inbox, 0, "no right to create"),
    ];
    for (top, layout) in [("", 0), ("mailbox_list_layout = \"fs\"", 1)] {
        let store = store();
        let server = serve(&store, top, "on_missing = \"create\"");
        for (detail, places, exit, why) in &rows {
            let place = if layout == 0 { places.0 } else { places.1 }.unwrap();
            let (before, known) = (picture(&store), server.log().len());
            let recipient = format!("\"alice+{detail}\"@x.test");
            let reply = deliver(&server, recipient.as_bytes());
            let new = added(&store, &before);
            let is_refused = place == "INBOX";
            let mailbox = if is_refused { "INBOX" } else { detail };
            let want = format!("mailbox=\"{mailbox}\" uid=");
            assert!(
                reply.starts_with("250 ") && reply.contains(&want),
                "{detail}: {reply}"
            );
            if is_refused {
                assert_eq!(new, ["home/alice/Maildir/new/MESSAGE"], "{detail} {top}");
                let line = &server.log()[known..];
                assert!(line.contains("wanted="), "{detail}: {line}");
                assert!(tells(line, why), "{detail}: {line}");
            } else {
                let below = format!("home/alice/Maildir/{place}");
                assert!(new.iter().all(|path| path.starts_with(&below)), "{new:?}");
                assert_eq!(messages(&store.path(&below)).len(), 1, "{detail}");
            }
            // `-m` is an admin's word: what can never be is to be mended, what is not there has its rule.
            let before = picture(&store);
            let arguments = [os(b"-d"), os(b"alice"), os(b"-m"), os(detail.as_bytes())];
            let (code, told) = lda(&store, &arguments, MESSAGE);
            let want = if is_refused { *exit } else { 0 };
            assert_eq!(code, want, "-m {detail} {top}: {told}");
            if want != 0 {
                assert!(tells(&told, why), "-m {detail}: {told}");
                assert_eq!(picture(&store), before, "-m {detail}");
            }
        }
        let arguments = [os(b"-d"), os(b"alice"), os(b"-m"), os(b"a\xff")];
        let before = picture(&store);
        assert_eq!(lda(&store, &arguments, MESSAGE).0, 75);
        let arguments = [os(b"-d"), os(b"alice"), os(b"-m"), os(b"a\nb")];
        assert_eq!(lda(&store, &arguments, MESSAGE).0, 75);
        assert_eq!(picture(&store), before);
        assert!(unfinished(&store.path("")).is_empty());
    }
}

/// Whether a log has one of these `|` words.
fn tells(log: &str, words: &str) -> bool {
    words.split('|').any(|words| log.contains(words))
}
