//! Mailboxes with addresses of their own, and routes by header fields.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use support::{MAIL, Store, messages, messages_below, not_root, replace_in, replaced};

const MAP: &str = r#"
[[address]]
match = "sales@example.test"
mailbox = "Public/Sales"
user = "bob"
subject = "anonymous"

[[address]]
match = "team+lead@example.test"
mailbox = "Public/info"
user = "bob"

[[address]]
match = "closed@example.test"
mailbox = "Public/Closed"
user = "bob"
subject = "anonymous"
on_missing = "reject"

[[address]]
match = "gone@example.test"
mailbox = "Public/Gone"
user = "bob"
on_missing = "reject"

[[address]]
match = "broken@example.test"
mailbox = "Public/info"
user = "nobody-here"

[[address]]
match = "*@catch.test"
mailbox = "Public/info"
user = "bob"

[[route]]
header = "X-Spam-Flag"
equals = "YES"
mailbox = "\\Junk"
flags = ["\\Seen"]

[[route]]
header = "List-Id"
contains = "<team."
mailbox = "Public/info"

[[route]]
header = "X-Nowhere"
mailbox = "No/Such/Mailbox"

[[route]]
header = "X-Owner"
mailbox = "shared/nouid/Work"

[[route]]
header = "X-Marked"
mailbox = "No/Such/Mailbox"
flags = ["\\Seen"]

[[address]]
match = "later@example.test"
mailbox = "Public/Sales"
user = "bob"
subject = "anonymous"
on_missing = "defer"

[[route]]
header = "X-Bad"
mailbox = "a/../b"
"#;

fn store() -> Store {
    let store = Store::new();
    for (name, acl) in [
        ("Sales", "anyone p\n"),
        ("Sales.eu", "anyone p\n"),
        ("Sales.Shut", "anyone p\n"),
        ("info.Secret", "anyone lp\n"),
        ("Closed", "user=alice lp\n"),
    ] {
        store
            .scratch
            .maildir(&format!("public/.{name}"), MAIL, 100, 0o2770);
        store.scratch.file(
            &format!("public/.{name}/dovecot-acl"),
            MAIL,
            100,
            0o660,
            acl,
        );
    }
    let shut = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    fs::set_permissions(store.path("public/.Sales.Shut"), shut).unwrap();
    store
}

#[test]
fn where_addresses_and_headers_lead() {
    const ALICE: &str = "home/alice/Maildir";
    // recipient, header fields, the reply begins with, the mailbox that has it
    #[rustfmt::skip]
    let cases = [
        ("sales@example.test",           "",                            "250 2.0.0", "public/.Sales"),
        ("SALES@Example.Test",           "",                            "250 2.0.0", "public/.Sales"),
        ("sales+eu@example.test",        "",                            "250 2.0.0", "public/.Sales.eu"),
        ("sales+nope@example.test",      "",                            "250 2.0.0", "public/.Sales"),
        ("\"sales+../x\"@example.test",  "",                            "250 2.0.0", "public/.Sales"),
        ("sales@example.test",           "X-Spam-Flag: YES\n",          "250 2.0.0", "public/.Sales"),
        ("sales+Shut@example.test",      "",                            "250 2.0.0", "public/.Sales"),
        ("*+Secret@catch.test",          "",                            "250 2.0.0", "public/.info"),
        ("team+lead@example.test",       "",                            "250 2.0.0", "public/.info"),
        ("team@example.test",            "",                            "550 5.1.1", ""),
        ("closed@example.test",          "",                            "550 5.1.1", ""),
        ("gone@example.test",            "",                            "550 5.1.1", ""),
        ("broken@example.test",          "",                            "451 4.3.0", ""),
        ("whoever@catch.test",           "",                            "250 2.0.0", "public/.info"),
        ("alice@catch.test",             "",                            "250 2.0.0", ALICE),
        ("nobody-here@example.test",     "",                            "550 5.1.1", ""),
        ("alice@example.test",           "",                            "250 2.0.0", ALICE),
        ("alice@example.test",           "x-spam-flag: yes\n",          "250 2.0.0", "home/alice/Maildir/.Spam"),
        ("alice@example.test",           "X-Spam-Flag: NO\n",           "250 2.0.0", ALICE),
        ("alice@example.test",           "X-Spam-Flag: NO\nX-Spam-Flag: YES\n", "250 2.0.0", ALICE),
        ("alice@example.test",           "\nX-Spam-Flag: YES\n",        "250 2.0.0", ALICE),
        ("alice+Spam@example.test",      "List-Id: <team.x>\n",         "250 2.0.0", "home/alice/Maildir/.Spam"),
        ("alice@example.test",           "List-Id: Team <team.x>\n",    "250 2.0.0", "public/.info"),
        ("alice+Nope@example.test",      "X-Spam-Flag: YES\n",          "250 2.0.0", ALICE),
        ("alice@example.test",           "X-Nowhere: 1\n",              "250 2.0.0", ALICE),
        ("alice@example.test",           "X-Bad: 1\n",                  "250 2.0.0", ALICE),
        ("alice@example.test",           "X-Marked: 1\n",               "250 2.0.0", ALICE),
        ("later+nope@example.test",      "",                            "250 2.0.0", "public/.Sales"),
        ("alice@example.test",           "X-Owner: 1\n",                "250 2.0.0", ALICE),
    ];
    for (recipient, fields, reply, folder) in cases {
        let store = store();
        let config = store.configure("", MAP);
        let mut users = fs::read_to_string(store.path("users")).unwrap();
        users.push_str("nouid::::::\n");
        support::write_long_ago(&store.path("users"), &users);
        let server =
            support::Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let message = format!("{fields}Subject: x\n\ny\n");
        let replies = server.client().deliver(&[recipient], message.as_bytes());
        let case = format!("{recipient} {fields:?}: {replies:?} {}", server.log());
        assert!(replies[0].starts_with(reply), "{case}");
        let everywhere = messages_below(&store.path(""));
        assert_eq!(everywhere.len(), usize::from(!folder.is_empty()), "{case}");
        let seen = everywhere
            .iter()
            .any(|(path, _)| path.to_str().unwrap().ends_with(":2,S"));
        assert_eq!(
            seen,
            folder.ends_with(".Spam") && !recipient.contains('+'),
            "{case}"
        );
        if !folder.is_empty() {
            assert_eq!(messages(&store.path(folder)).len(), 1, "{case}");
        }
    }
}

/// Without `l` a mailbox is as good as missing, also where missing ones are made: one reply, one place.
#[test]
fn what_is_hidden_and_what_is_missing_look_alike() {
    let store = store();
    for (below, acl) in [
        ("home/alice/Maildir", "anyone l\n"),
        ("home/alice/Maildir/.Hidden", "user=carol lp\nuser=bob\n"),
        ("home/alice/Maildir/.Open", "user=bob l\n"),
        ("home/alice/Maildir/.Open.Hidden", "user=bob\n"),
    ] {
        store.scratch.maildir(below, MAIL, MAIL, 0o700);
        let file = format!("{below}/dovecot-acl");
        store.scratch.file(&file, MAIL, MAIL, 0o600, acl);
    }
    for missing in ["create", "reject", "inbox", "parent"] {
        for denied in ["reject", "inbox"] {
            let delivery = format!("on_missing = \"{missing}\"\non_denied = \"{denied}\"");
            let server = store.serve(&delivery, "");
            let reply = |name: &str| {
                let recipient = format!("bob+{name}@example.test");
                let said = server.client().deliver(&[&recipient], b"x\n").remove(0);
                // Without the id of the session and the UID.
                let words = said.split(' ').enumerate();
                let words = words.filter(|(at, word)| *at != 3 && !word.starts_with("uid="));
                let words: Vec<&str> = words.map(|(_, word)| word).collect();
                words.join(" ").replace(name, "")
            };
            for (hidden, gone) in [
                ("shared/alice/Hidden", "shared/alice/Gone"),
                ("shared/alice/Hidden", "shared/nobody/Gone"),
                ("shared/alice/Hidden", "shared/carol/Gone"),
                ("shared/alice/Open/Hidden", "shared/alice/Open/Gone"),
            ] {
                let case = format!("{missing} {denied} {hidden} {gone}");
                assert_eq!(reply(hidden), reply(gone), "{case} {}", server.log());
            }
        }
    }
}

/// What is said of a mailbox holds by each of its names.
#[test]
fn an_alias_opens_nothing() {
    let store = store();
    let sent = "home/alice/Maildir/.Sent";
    let umlaut = "home/alice/Maildir/.Gel&APY-scht";
    for below in ["home/alice/Maildir", sent, umlaut] {
        store.scratch.maildir(below, MAIL, MAIL, 0o700);
    }
    let alias = "[namespace.old]\nseparator = \"/\"\nprefix = \"mail/\"\nalias_for = \"inbox\"\nhidden = true\nlist = \"no\"\n";
    let config = store.configure("", alias);
    let private = "detail = \"private\"\non_missing = \"parent\"";
    replace_in(&config, "detail = \"mailbox\"", private);
    // Not in NFC, as some editors write it.
    let deleted = "[namespace.inbox.mailbox.\"Gelo\u{308}scht\"]\nspecial_use = \"\\\\Trash\"\n";
    let sent = "[namespace.inbox.mailbox.Sent]";
    replace_in(&config, sent, &format!("{deleted}{sent}"));
    let server = support::Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    for detail in ["Sent", "mail/Sent", "Sent/kid", "mail/Sent/kid"] {
        let recipient = format!("alice+{detail}@example.test");
        let replies = server.client().deliver(&[&recipient], b"x\n");
        assert!(
            replies[0].contains("mailbox=\"INBOX\""),
            "{replies:?} {}",
            server.log()
        );
    }
    let mut explain = support::program("postroom");
    explain.arg("-c").arg(&config);
    explain.args(["explain", "alice+Gel\u{f6}scht@example.test"]);
    let said = explain.output().unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.contains("no mail from outside goes to \\Trash"),
        "{said}"
    );
}

/// What an alias does not say its namespace says, whatever divides the names of each.
#[test]
fn an_alias_is_its_namespace() {
    let alias = |more: &str| {
        format!(
            "[namespace.old]\nprefix = \"INBOX.\"\nseparator = \".\"\nalias_for = \"inbox\"\nhidden = true\nlist = \"no\"\n{more}"
        )
    };
    let own = "[namespace.old.mailbox.Kept]\nauto = \"create\"\n";
    let trash = "[namespace.inbox.mailbox.\"Old/Trash\"]\nspecial_use = \"\\\\Trash\"\n";
    let rejects = "on_missing = \"reject\"\n";
    // of the namespace; of the alias; the recipient; the answers to two letters with one Message-ID begin and end with
    #[rustfmt::skip]
    let cases = [
        (trash,   "",                           "alice+Old/Trash",       "250 2.0.0", "mailbox=\"INBOX\""),
        (trash,   "",                           "alice+INBOX.Old.Trash", "250 2.0.0", "mailbox=\"INBOX\""),
        (trash,   own,                          "alice+INBOX.Old.Trash", "250 2.0.0", "mailbox=\"INBOX\""),
        (trash,   own,                          "alice+INBOX.Sent",      "250 2.0.0", "mailbox=\"INBOX\""),
        (trash,   own,                          "alice+INBOX.Kept",      "250 2.0.0", "mailbox=\"INBOX.Kept\""),
        (trash,   own,                          "alice+INBOX.Old.Fine",  "250 2.0.0", "mailbox=\"INBOX.Old.Fine\""),
        (rejects, "",                           "alice+Nope",            "550 5.1.1", ""),
        (rejects, "",                           "alice+INBOX.Nope",      "550 5.1.1", ""),
        (rejects, "on_missing = \"inbox\"\n",   "alice+INBOX.Nope",      "250 2.0.0", "mailbox=\"INBOX\""),
    ];
    for (of_inbox, of_alias, recipient, reply, place) in cases {
        let store = Store::with_inbox();
        for name in ["Sent", "Old.Trash", "Old.Fine"] {
            let below = format!("home/alice/Maildir/.{name}");
            store.scratch.maildir(&below, MAIL, MAIL, 0o700);
        }
        let config = store.configure("", &alias(of_alias));
        replace_in(&config, "detail = \"mailbox\"", "detail = \"private\"");
        let of_inbox = format!("inbox = true\n{of_inbox}");
        replace_in(&config, "inbox = true\n", &of_inbox);
        let server =
            support::Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let recipient = format!("{recipient}@example.test");
        let replies = server.client().deliver(&[&recipient], b"x\n");
        let case = format!(
            "{of_inbox}{of_alias}{recipient}: {replies:?} {}",
            server.log()
        );
        assert!(replies[0].starts_with(reply), "{case}");
        assert!(replies[0].contains(place), "{case}");
    }
}

/// INBOX is no parent of the mailboxes beside it: who may create below it, or see it, gets nothing there.
#[test]
fn only_children_of_inbox_inherit_its_rights() {
    let store = store();
    let acl = "user=bob lrkp\n";
    store
        .scratch
        .maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
    store
        .scratch
        .file("home/alice/Maildir/dovecot-acl", MAIL, MAIL, 0o600, acl);
    let server = store.serve("on_missing = \"create\"", "");
    for (recipient, place, inherits) in [
        ("bob+shared/alice/New", "home/bob/Maildir", false),
        ("alice+Spam", "home/alice/Maildir/.Spam", false),
        ("alice+INBOX/Mine", "home/alice/Maildir/.INBOX.Mine", true),
        (
            "bob+shared/alice/INBOX/His",
            "home/alice/Maildir/.INBOX.His",
            true,
        ),
    ] {
        let recipient = format!("{recipient}@example.test");
        let replies = server.client().deliver(&[&recipient], b"x\n");
        let case = format!("{recipient} {replies:?} {}", server.log());
        assert_eq!(messages(&store.path(place)).len(), 1, "{case}");
        let file = store.path(place).join("dovecot-acl");
        assert_eq!(file.exists(), inherits, "{case}");
    }
}

/// Where the root of a namespace is gone nobody can say that a mailbox is not there: the store may not be mounted.
#[test]
fn a_store_that_is_not_mounted() {
    if not_root() {
        return;
    }
    const RULES: &str = r#"
[[address]]
match = "sales@example.test"
mailbox = "Work"
user = "alice"

[[address]]
match = "new@example.test"
mailbox = "New"
user = "alice"
on_missing = "create"

[[address]]
match = "team@example.test"
mailbox = "shared/alice/Work"
user = "bob"
"#;
    let store = store();
    for path in ["home/alice/Maildir", "home/alice/Maildir/.Work"] {
        store.scratch.maildir(path, MAIL, MAIL, 0o700);
    }
    let acl = "home/alice/Maildir/.Work/dovecot-acl";
    let lines = "owner lrwstipekxa\nuser=bob lrip\n";
    store.scratch.file(acl, MAIL, MAIL, 0o600, lines);
    let server = store.serve("on_missing = \"reject\"\non_denied = \"reject\"", RULES);
    // An empty mount point is root's.
    let (home, away) = (store.path("home/alice"), store.path("away"));
    fs::rename(&home, &away).unwrap();
    store.scratch.dir("home/alice", 0, 0, 0o755);
    let recipients = [
        "sales",
        "new",
        "team",
        "team+x",
        "alice+Work",
        "alice+None",
        "alice",
    ];
    let deliver = |recipient: &str| {
        let address = format!("{recipient}@example.test");
        server.client().deliver(&[&address], b"x\n").remove(0)
    };
    for recipient in recipients {
        let reply = deliver(recipient);
        assert!(reply.starts_with("451 "), "{recipient}: {reply}");
    }
    fs::remove_dir(&home).unwrap();
    fs::rename(&away, &home).unwrap();
    for recipient in recipients {
        let reply = deliver(recipient);
        let code = if recipient == "alice+None" {
            "550 "
        } else {
            "250 "
        };
        assert!(
            reply.starts_with(code),
            "{recipient}: {reply} {}",
            server.log()
        );
    }
}

/// Nor behind a symlink that leads nowhere: what it leads to may not be mounted. The rule's mailbox stands in for a child of it.
#[test]
fn a_symlink_to_what_is_not_mounted() {
    const RULES: &str = r#"
[[address]]
match = "sales@example.test"
mailbox = "Work"
user = "alice"

[[address]]
match = "cold@example.test"
mailbox = "Work/cold"
user = "alice"

[[address]]
match = "strict@example.test"
mailbox = "Work"
user = "alice"
on_missing = "reject"
"#;
    // what is not mounted; the recipient; the answer begins with; and tells
    for (away, recipient, reply, place) in [
        (".Work.cold", "sales+cold", "250 ", "mailbox=\"Work\""),
        (".Work.cold", "sales+warm", "250 ", "mailbox=\"Work\""),
        (".Work.cold", "sales", "250 ", "mailbox=\"Work\""),
        (".Work", "sales+warm", "451 ", ""),
        (".Work", "sales", "451 ", ""),
        // What is above the rule's own mailbox is for others.
        (".Work.cold", "cold", "451 ", ""),
        (".Work.cold", "cold+x", "451 ", ""),
        (".Work", "cold+x", "250 ", "mailbox=\"Work/cold\""),
        (".Work.cold", "strict+cold", "550 5.7.1", ""),
        // Whoever writes a detail is not to fill the queue.
        (".Work.cold", "alice+Work/cold", "550 5.7.1", ""),
    ] {
        let store = store();
        for path in ["", ".Work", ".Work.cold"] {
            let below = format!("home/alice/Maildir/{path}");
            store.scratch.maildir(&below, MAIL, MAIL, 0o700);
        }
        let link = store.path("home/alice/Maildir").join(away);
        fs::remove_dir_all(&link).unwrap();
        std::os::unix::fs::symlink(store.path("cold/store"), &link).unwrap();
        let server = store.serve("on_missing = \"reject\"\non_denied = \"reject\"", RULES);
        let address = format!("{recipient}@example.test");
        let replies = server.client().deliver(&[&address], b"x\n");
        let case = format!("{away} {recipient}: {replies:?} {}", server.log());
        assert!(replies[0].starts_with(reply), "{case}");
        assert!(replies[0].contains(place), "{case}");
    }
}

/// The mail of a rule is not for the user who delivers it, also where his INBOX has the name above the rule's mailbox.
#[test]
fn no_inbox_stands_in_for_a_rules_mailbox() {
    const RULES: &str = r#"
[[address]]
match = "gone@example.test"
mailbox = "INBOX/Gone"
user = "alice"

[[address]]
match = "inbox@example.test"
mailbox = "INBOX"
user = "alice"
"#;
    let store = store();
    let server = store.serve("", RULES);
    for (recipient, reply) in [
        ("gone", "550 5.1.1"),
        ("gone+x", "550 5.1.1"),
        ("inbox", "250 "),
        ("inbox+x", "250 "),
    ] {
        let address = format!("{recipient}@example.test");
        let replies = server.client().deliver(&[&address], b"x\n");
        let case = format!("{recipient}: {replies:?} {}", server.log());
        assert!(replies[0].starts_with(reply), "{case}");
    }
    assert_eq!(messages(&store.path("home/alice/Maildir")).len(), 2);
}

/// A file that cannot be read costs a route its way, not the mail.
#[test]
fn a_route_that_fails_never_costs_the_mail() {
    let store = store();
    fs::write(store.path("public/.info/dovecot-acl"), "nonsense here\n").unwrap();
    let server = store.serve("", MAP);
    let message = b"List-Id: <team.x>\n\ny\n";
    let replies = server.client().deliver(&["alice@example.test"], message);
    assert!(
        replies[0].contains("mailbox=\"INBOX\" uid=1 Saved"),
        "{replies:?} {}",
        server.log()
    );
    assert!(server.log().contains("nonsense"), "{}", server.log());
}

/// Whatever keeps the mailbox of a route from taking the message keeps no mail from the INBOX, at once and with the reason.
#[test]
fn a_route_to_what_takes_nothing() {
    let chmod = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let more = "[namespace.public.quota]\nstorage_size = \"2k\"\nstorage_grace = \"0\"\n[quota]\ndriver = \"maildir\"\nstorage_grace = \"0\"\n\
        [namespace.mbox]\nprefix = \"mbox/\"\nseparator = \"/\"\nmail_driver = \"mbox\"\nmail_path = \"~/mail\"\nlist = \"no\"\n\
        [[route]]\nheader = \"X-To\"\nmailbox = ";
    // the mailbox of the route; its flags; what is done to it; the reason in the log
    type Spoil<'a> = &'a dyn Fn(&Store);
    #[rustfmt::skip]
    let cases: [(&str, &str, Spoil<'_>, &str); 8] = [
        ("Public/info", "",      &|_| (), "quota"),
        ("Spam",        "Seen",  &|store| chmod(&store.path("home/alice/Maildir/.Spam/cur"), 0o500), "Permission denied"),
        ("Spam",        "Seen",  &|store| {
            let cur = store.path("home/alice/Maildir/.Spam/cur");
            fs::rename(&cur, store.path("home/alice/cur")).unwrap();
            std::os::unix::fs::symlink("../../cur", cur).unwrap();
        }, ".Spam/cur: Not a directory"),
        ("Spam",        "",      &|store| chmod(&store.path("home/alice/Maildir/.Spam/new"), 0o500), "Permission denied"),
        ("mbox/notes",  "",      &|store| fs::write(store.path("home/alice/mail/notes"), "Buy milk.\n").unwrap(), "it is no mbox"),
        ("mbox/notes",  "",      &|store| chmod(&store.path("home/alice/mail/notes"), 0o400), "Permission denied"),
        ("mbox/notes",  "",      &|store| chmod(&store.path("home/alice/mail"), 0o500), "Permission denied"),
        ("mbox/notes",  "",      &|store| {
            let notes = store.path("home/alice/mail/notes");
            fs::hard_link(&notes, store.path("home/alice/mail/other")).unwrap();
        }, "more than one name"),
    ];
    for (mailbox, flag, spoil, why) in cases {
        let store = Store::with_inbox();
        store
            .scratch
            .maildir("home/alice/Maildir/.Spam", MAIL, MAIL, 0o700);
        store.scratch.dir("home/alice/mail", MAIL, MAIL, 0o700);
        store
            .scratch
            .file("home/alice/mail/notes", MAIL, MAIL, 0o600, "");
        spoil(&store);
        let flags = match flag {
            "" => String::new(),
            flag => format!("flags = [\"\\\\{flag}\"]\n"),
        };
        let server = store.serve("", &format!("{more}\"{mailbox}\"\n{flags}"));
        let before = messages_below(&store.path("")).len();
        let message = format!("X-To: x\nSubject: x\n\n{}", "y\n".repeat(2000));
        let replies = server
            .client()
            .deliver(&["alice@example.test"], message.as_bytes());
        let log = server.log();
        let case = format!("{mailbox} {flag} {why}: {replies:?} {log}");
        assert!(replies[0].starts_with("250 2.0.0"), "{case}");
        assert!(replies[0].contains("mailbox=\"INBOX\""), "{case}");
        assert!(log.contains(why) && log.contains(mailbox), "{case}");
        let inbox = messages(&store.path("home/alice/Maildir"));
        let everywhere = messages_below(&store.path("")).len();
        assert_eq!((inbox.len(), everywhere), (1, before + 1), "{case}");
        assert!(!inbox[0].0.to_str().unwrap().contains(":2,S"), "{case}");
    }
}

/// What has a flag goes to `cur`: the look says whether it can.
#[test]
fn a_flag_for_a_mailbox_whose_cur_is_closed() {
    let store = Store::with_inbox();
    let spam = "home/alice/Maildir/.Spam";
    store.scratch.maildir(spam, MAIL, MAIL, 0o700);
    let cur = store.path(spam).join("cur");
    fs::set_permissions(cur, fs::Permissions::from_mode(0o500)).unwrap();
    let config = store.configure("", "");
    for (more, code) in [(&[][..], 0), (&["--flag", "\\Seen"][..], 75)] {
        let mut lda = support::program("postroom-lda");
        lda.arg("-c").arg(&config);
        lda.args(["-d", "alice", "-m", "Spam", "--dry-run"])
            .args(more);
        let output = lda.stdin(std::process::Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{more:?} {output:?}");
    }
}

/// Rules from a file, from SQLite and from PostgreSQL do what those of the configuration do.
fn check_table(store: &Store, map: &str) {
    let server = store.serve("", map);
    let mut client = server.client();
    #[rustfmt::skip]
    let cases = [
        ("sales@example.test",      "250 2.0.0", "mailbox=\"Public/Sales\""),
        ("Sales+EU@example.test",   "250 2.0.0", "mailbox=\"Public/Sales\""),
        ("sales+eu@example.test",   "250 2.0.0", "mailbox=\"Public/Sales/eu\""),
        ("gone@example.test",       "550 5.1.1", ""),
        ("odd@example.test",        "451 4.3.0", ""),
        ("empty@example.test",      "451 4.3.0", ""),
        ("o'hara\\x@example.test", "550 5.1.1", ""),
        ("whoever@catch.test",      "250 2.0.0", "mailbox=\"Public/info\""),
        ("alice@catch.test",        "250 2.0.0", "mailbox=\"INBOX\""),
        ("alice@example.test",      "250 2.0.0", "mailbox=\"INBOX\""),
    ];
    for (recipient, reply, mailbox) in cases {
        let replies = client.deliver(&[recipient], b"Subject: x\n\n");
        let case = format!("{recipient}: {replies:?} {}", server.log());
        let is_syntax = recipient.contains('\\') && replies[0].starts_with("501");
        assert!(is_syntax || replies[0].starts_with(reply), "{case}");
        assert!(replies[0].contains(mailbox), "{case}");
    }
}

const ROWS: [(&str, &str, &str, &str, &str); 5] = [
    ("sales@example.test", "Public/Sales", "bob", "anonymous", ""),
    ("gone@example.test", "Public/Gone", "bob", "", "reject"),
    ("odd@example.test", "Public/info", "bob", "whoever", ""),
    ("empty@example.test", "", "bob", "", ""),
    ("*@catch.test", "Public/info", "bob", "", ""),
];

const TABLE: &str = "CREATE TABLE addresses (address varchar(320) PRIMARY KEY, mailbox varchar(255) NOT NULL, \
    user_name varchar(255) NOT NULL, subject varchar(30), on_missing varchar(30))";

fn inserts() -> String {
    let text = |text: &str| match text {
        "" => "NULL".to_owned(),
        text => format!("'{text}'"),
    };
    ROWS.map(|(address, mailbox, user, subject, on_missing)| {
        let rest = [subject, on_missing].map(text).join(", ");
        format!("INSERT INTO addresses VALUES ('{address}', '{mailbox}', '{user}', {rest});")
    })
    .concat()
}

/// Nobody has changed the file lately.
fn aged(file: &Path) {
    let long_ago = SystemTime::now() - Duration::from_secs(60);
    let file = fs::File::options().write(true).open(file).unwrap();
    file.set_modified(long_ago).unwrap();
}

#[test]
fn addresses_from_a_file() {
    let store = store();
    let lines = ROWS.map(|(address, mailbox, user, subject, on_missing)| {
        format!("{address}\t{mailbox}\t{user}\t{subject}\t{on_missing}\n")
    });
    let file = store.scratch.file(
        "addresses",
        MAIL,
        MAIL,
        0o600,
        &format!("# all\n\n{}", lines.concat()),
    );
    aged(&file);
    let map = format!("[address_map.file]\npath = \"{}\"\n", file.display());
    check_table(&store, &map);
    let text = fs::read_to_string(&file).unwrap();
    let server = store.serve("", &map);
    let mut client = server.client();
    let whole = "new@example.test\tPublic/Gone\tbob\t\treject\n";
    let torn = |at: usize| format!("{text}{}", &whole[..at]);
    #[rustfmt::skip]
    let cases = [
        ("in the address",          torn(8), "alice@example.test", "451 4.3.0"),
        ("in the user",             torn(31), "new@example.test",   "451 4.3.0"),
        ("behind the user",         torn(32), "new@example.test",   "451 4.3.0"),
        ("before the line ends",    torn(whole.len()-1), "new@example.test",   "451 4.3.0"),
        ("another one is whole",    torn(31), "sales@example.test", "250 2.0.0"),
        ("nothing is there yet",    String::new(), "alice@example.test", "451 4.3.0"),
        ("the whole of it",         torn(whole.len()), "new@example.test",   "550 5.1.1"),
        ("whom it does not have",   torn(whole.len()), "alice@example.test", "250 2.0.0"),
    ];
    for (what, text, recipient, reply) in cases {
        fs::write(&file, text).unwrap();
        aged(&file);
        let replies = client.deliver(&[recipient], b"x\n");
        assert!(replies[0].starts_with(reply), "{what}: {replies:?}");
    }
    drop(server);
    fs::remove_file(file).unwrap();
    let server = store.serve("", &map);
    let replies = server.client().deliver(&["alice@example.test"], b"x\n");
    assert!(
        replies[0].starts_with("451 4.3.0"),
        "a map that is gone may have had him: {replies:?}"
    );
}

#[test]
fn addresses_from_sqlite() {
    let store = store();
    store.scratch.dir("db", MAIL, MAIL, 0o700);
    let path = store.path("db/addresses");
    let database = rusqlite::Connection::open(&path).unwrap();
    database
        .execute_batch(&format!("{TABLE};{}", inserts()))
        .unwrap();
    support::own(&path, MAIL, MAIL);
    check_table(
        &store,
        &format!("[address_map.sqlite]\npath = \"{}\"\n", path.display()),
    );
    let query = "SELECT 'Public/info', 'bob' FROM addresses WHERE address LIKE $1 || '%'";
    let map = format!(
        "[address_map.sqlite]\npath = \"{}\"\nquery = \"{query}\"\n",
        path.display()
    );
    database
        .execute_batch("INSERT INTO addresses VALUES ('alice@example.test2', '', '', '', ''), ('alice@example.test', '', '', '', '')")
        .unwrap();
    let server = store.serve("", &map);
    let replies = server.client().deliver(&["alice@example.test"], b"x\n");
    assert!(
        replies[0].starts_with("451 4.3.0"),
        "two rows are no answer: {replies:?}"
    );
}

/// Down at the start, up, down in between, up again: RCPT is temporary while it is down, and nothing needs a restart.
#[test]
fn addresses_from_postgresql() {
    let store = store();
    let Some(mut postgresql) = support::peers::Postgresql::new(&store.scratch) else {
        return;
    };
    let map = format!(
        "[address_map.postgresql]\nconnection = \"{}\"\n",
        postgresql.parameters()
    );
    let server = store.serve("", &map);
    let mut client = server.client();
    let mut reply = |recipient: &str| client.deliver(&[recipient], b"Subject: x\n\n").remove(0);
    assert!(
        reply("alice@example.test").starts_with("451 4.3.0"),
        "{}",
        server.log()
    );
    postgresql.start();
    postgresql.run(&format!("{TABLE};{}", inserts()));
    assert!(
        reply("sales@example.test").starts_with("250 2.0.0"),
        "{}",
        server.log()
    );
    assert!(reply("alice@example.test").contains("mailbox=\"INBOX\""));
    postgresql.stop();
    assert!(reply("alice@example.test").starts_with("451 4.3.0"));
    postgresql.start();
    assert!(
        reply("sales@example.test").starts_with("250 2.0.0"),
        "{}",
        server.log()
    );
    // Somebody holds the table: the statement ends, the mail is not lost.
    let slow = replaced(&map, "dbname", "options='-c statement_timeout=300' dbname");
    let other = store.serve("", &slow);
    let mut locked = postgresql.session("BEGIN; LOCK TABLE addresses; SELECT 1");
    let replies = other.client().deliver(&["alice@example.test"], b"x\n");
    assert!(replies[0].starts_with("451 4.3.0"), "{replies:?}");
    assert!(other.log().contains("statement timeout"), "{}", other.log());
    locked.kill().unwrap();
    locked.wait().unwrap();
    drop(other);
    let log = server.log();
    assert!(log.contains("look up the address"), "{log}");
    drop(server);
    check_table(&store, &map);
}

/// A server that takes connections and says nothing, as one behind a network that broke: temporary, and soon.
#[test]
fn a_silent_database_holds_nobody_up() {
    let store = store();
    let socket = store.path("run/.s.PGSQL.5432");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(std::mem::forget));
    let connection = format!("host={} dbname=x user=x", store.path("run").display());
    let map = format!("[address_map.postgresql]\nconnection = \"{connection}\"\n");
    let server = store.serve("", &map);
    let replies = server.client().deliver(&["alice@example.test"], b"x\n");
    assert!(replies[0].starts_with("451 4.3.0"), "{replies:?}");
    assert!(server.log().contains("says nothing"), "{}", server.log());
}

/// Postfix asks before it takes the message, by its own tool.
#[test]
fn postfix_asks_about_recipients() {
    if !support::installed("postmap") {
        support::skip("postmap (Postfix) is not installed");
        return;
    }
    let store = store();
    let root = store.scratch.text("");
    let socketmap =
        format!("[socketmap]\nlisten = [{{ unix = \"{root}/run/map\", mode = \"0666\" }}]\n");
    let quota = "[quota]\ndriver = \"maildir\"\nmessage_count = 1\n";
    let server = store.serve(
        "on_missing = \"reject\"",
        &format!("{MAP}\n{socketmap}{quota}"),
    );
    let ask = |map: &str, key: &str| {
        let table = format!("socketmap:unix:{root}/run/map:{map}");
        let output = std::process::Command::new("postmap")
            .args(["-q", key, &table])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (
            output.status.code(),
            said,
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    for (key, code, answer) in [
        ("alice@example.test", Some(0), "deliverable"),
        ("sales@example.test", Some(0), "deliverable"),
        ("whoever@catch.test", Some(0), "deliverable"),
        ("alice+Nope@example.test", Some(1), ""),
        ("nobody-here@example.test", Some(1), ""),
        ("not an address", Some(1), ""),
    ] {
        let (got, said, errors) = ask("recipient", key);
        assert_eq!((got, said.as_str()), (code, answer), "{key}: {errors}");
    }
    // A user whose mailbox is full is no unknown one.
    let replies = server.client().deliver(&["alice@example.test"], b"x\n");
    assert!(replies[0].starts_with("250"), "{replies:?}");
    let (code, said, errors) = ask("recipient", "alice@example.test");
    assert_eq!((code, said.as_str()), (Some(0), "mailbox full"), "{errors}");
    let (code, _, errors) = ask("recipient", "broken@example.test");
    assert!(
        code == Some(1) && errors.contains("Cannot tell"),
        "{errors}"
    );
    let (code, _, errors) = ask("other", "alice@example.test");
    assert!(
        code == Some(1) && errors.contains("one map here"),
        "{errors}"
    );
}
