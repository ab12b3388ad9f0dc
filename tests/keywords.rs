//! Keywords and new mailboxes beside a live Dovecot: names that everybody sees alike, and UIDs from the first message on.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use support::imap::Imap;
use support::peers::{Dovecot, VERSIONS};
use support::{
    MAIL, Server, Store, as_user, messages_below, not_root, program, run_with_input, unfinished,
};

const MESSAGE: &[u8] = b"Subject: x\n\ntext\n";

fn deliver(server: &Server, recipient: &str, message: &[u8]) -> String {
    let reply = server.client().deliver(&[recipient], message).remove(0);
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    reply
}

/// By postroom-lda; answers what it logged.
fn lda(store: &Store, arguments: &[&str]) -> String {
    let mut command = program("postroom-lda");
    command.arg("-c").arg(store.path("postroom.toml"));
    command.args(arguments);
    command.env("POSTROOM_LOG", "json");
    as_user(&mut command, MAIL, MAIL, &[100]);
    let output = run_with_input(&mut command, MESSAGE);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}

/// The flags of each message of the open mailbox, sorted, without `\Recent`.
fn flags(imap: &mut Imap) -> Vec<String> {
    let flags = imap.fetch_all().into_iter().map(|message| {
        let mut flags: Vec<&str> = message.flags.split(' ').collect();
        flags.retain(|flag| *flag != "\\Recent");
        flags.sort_unstable();
        flags.join(" ")
    });
    flags.collect()
}

/// One number of the answers to SELECT: `[UIDVALIDITY 17]`.
fn number(lines: &[String], key: &str) -> u32 {
    let found = lines.iter().find_map(|line| line.split(key).nth(1));
    let digits = found.unwrap().trim_start().chars();
    let digits: String = digits.take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// The account is made by the first delivery: Dovecot takes its UIDs and UIDVALIDITY over, and goes on from them.
#[test]
fn a_new_mailbox_has_uids_at_once() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::new();
        let Some(dovecot) = Dovecot::start(version, &store) else {
            return;
        };
        let server = store.serve("on_missing = \"create\"\n", "");
        let mut validities = Vec::new();
        for recipient in [
            "alice@x",
            "alice+New@x",
            "alice+New/Deep@x",
            "alice+Public/info@x",
        ] {
            for uid in 1..3 {
                let reply = deliver(&server, recipient, MESSAGE);
                assert!(
                    reply.contains(&format!("uid={uid} ")),
                    "{recipient}: {reply}"
                );
            }
        }
        let mut imap = Imap::login(dovecot.port, "alice");
        for mailbox in ["INBOX", "New", "New/Deep", "Public/info"] {
            let lines = imap.command(&format!("SELECT \"{mailbox}\""));
            validities.push(number(&lines, "UIDVALIDITY "));
            assert_eq!(number(&lines, "UIDNEXT "), 3, "{version:?} {mailbox}");
            let uids: Vec<u32> = imap.fetch_all().iter().map(|it| it.uid).collect();
            assert_eq!(uids, [1, 2], "{version:?} {mailbox}");
            // Its own deliveries go on from there, and so do ours.
            assert_eq!(dovecot.lda("alice", mailbox, MESSAGE), Some(0));
        }
        assert!(deliver(&server, "alice+New@x", MESSAGE).contains("uid=4 "));
        imap.command("CREATE Next");
        // The public namespace counts on its own.
        validities[3] = number(&imap.command("SELECT Next"), "UIDVALIDITY ");
        let expected: Vec<u32> = (validities[0]..validities[0] + 4).collect();
        assert_eq!(validities, expected, "{version:?}: one after the other");
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
        let public = fs::metadata(store.path("public/.info/dovecot-uidlist")).unwrap();
        assert_eq!((public.mode() & 0o7777, public.gid()), (0o660, 100));
        for root in ["home/alice", "public"] {
            assert_eq!(
                unfinished(&store.path(root)),
                Vec::<std::path::PathBuf>::new()
            );
        }
    }
}

/// What others have stored has UIDs that only Dovecot knows.
#[test]
fn a_mailbox_that_others_have_filled_gets_its_uids_from_dovecot() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let mailbox = store
        .scratch
        .maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
    store.scratch.file(
        "home/alice/Maildir/new/1.a.b",
        MAIL,
        MAIL,
        0o600,
        "Subject: old\n\n",
    );
    let server = store.serve("", "");
    assert!(!deliver(&server, "alice@x", MESSAGE).contains("uid="));
    assert!(!mailbox.join("dovecot-uidlist").exists());
    assert!(!mailbox.join("dovecot-uidvalidity").exists());
}

#[test]
fn keywords_have_one_name_for_everybody() {
    if not_root() {
        return;
    }
    let route = "[[route]]\nheader = \"X-Spam\"\nmailbox = \"Spam\"\nflags = [\"$Junk\", \"\\\\Flagged\"]\n";
    for version in VERSIONS {
        let store = Store::with_inbox();
        let Some(dovecot) = Dovecot::start(version, &store) else {
            return;
        };
        let server = store.serve("", route);
        // Into a shared folder of bob's and into a public one: before anybody has opened them, and after.
        let (mut alice, mut bob) = (
            Imap::login(dovecot.port, "alice"),
            Imap::login(dovecot.port, "bob"),
        );
        for (mailbox, bobs) in [
            ("shared/bob/Projects", "Projects"),
            ("Public/info", "Public/info"),
        ] {
            lda(
                &store,
                &[
                    "-d",
                    "alice",
                    "-m",
                    mailbox,
                    "--keyword",
                    "$Label1",
                    "--keyword",
                    "Mine",
                ],
            );
            bob.select(bobs);
            bob.command("STORE 1 +FLAGS ($Forwarded)");
            lda(
                &store,
                &["-d", "alice", "-m", mailbox, "--keyword", "$forwarded"],
            );
            lda(&store, &["-d", "alice", "-m", mailbox]);
            bob.select(bobs);
            bob.command("STORE 3 +FLAGS ($Label1)");
            bob.command("CLOSE");
            let expected = ["$Forwarded $Label1 Mine", "$Forwarded", "$Label1"];
            for (imap, name) in [(&mut alice, mailbox), (&mut bob, bobs)] {
                assert_eq!(imap.select(name), 3, "{version:?} {name}");
                assert_eq!(flags(imap), expected, "{version:?} {name}");
            }
        }
        // A route's.
        deliver(&server, "alice@x", b"X-Spam: yes\n\n");
        alice.select("Spam");
        assert_eq!(flags(&mut alice), ["$Junk \\Flagged"]);
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

/// There are 26 letters: what has none is in the index.
#[test]
fn more_keywords_than_letters() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::with_inbox();
        let Some(dovecot) = Dovecot::start(version, &store) else {
            return;
        };
        store.configure("", "");
        let names: Vec<String> = (10..40).map(|number| format!("k{number}")).collect();
        let mut arguments = vec!["-d", "alice"];
        for name in &names {
            arguments.extend(["--keyword", name]);
        }
        let said = lda(&store, &arguments);
        assert!(
            said.contains("stored without k36 k37 k38 k39: 26"),
            "{said}"
        );
        let mut imap = Imap::login(dovecot.port, "alice");
        imap.select("INBOX");
        assert_eq!(flags(&mut imap), [names[..26].join(" ")]);
        let said = lda(&store, &arguments);
        assert!(said.contains("only in Dovecot's index k36"), "{said}");
        imap.select("INBOX");
        assert_eq!(flags(&mut imap)[1], names.join(" "), "{version:?}");
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

/// Somebody holds the lock: without keywords, and said.
#[test]
fn a_busy_lock_costs_the_keywords_not_the_mail() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let mailbox = store
        .scratch
        .maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
    store.configure("", "");
    let host = std::process::Command::new("hostname")
        .output()
        .unwrap()
        .stdout;
    let host = String::from_utf8(host).unwrap();
    let lock = format!("{}:{}", std::process::id(), host.trim_end());
    store.scratch.file(
        "home/alice/Maildir/dovecot-uidlist.lock",
        MAIL,
        MAIL,
        0o600,
        &lock,
    );
    let said = lda(
        &store,
        &["-d", "alice", "--keyword", "$Junk", "--flag", "\\Flagged"],
    );
    assert!(
        said.contains("stored without $Junk: dovecot-uidlist.lock is held"),
        "{said}"
    );
    let stored = messages_below(&mailbox);
    assert_eq!(stored.len(), 1);
    assert!(
        stored[0].0.to_str().unwrap().ends_with(":2,F"),
        "{stored:?}"
    );
    assert!(!mailbox.join("dovecot-keywords").exists());
}

/// Control files per user: the letters would be other keywords to others.
#[test]
fn keywords_are_refused_where_others_would_read_them_otherwise() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let config = fs::read_to_string(store.configure("", "")).unwrap();
    let apart = "mail_control_path = \"~/control\"\nmail_index_path = \"~/index\"\n";
    let config = config.replace(
        "prefix = \"Public/\"\n",
        &format!("prefix = \"Public/\"\n{apart}"),
    );
    fs::write(store.path("postroom.toml"), config).unwrap();
    let said = lda(
        &store,
        &["-d", "alice", "-m", "Public/info", "--keyword", "$Junk"],
    );
    assert!(said.contains("stored without $Junk"), "{said}");
    assert!(said.contains("control files are per user"), "{said}");
    assert!(said.contains("\"uid\":1,"), "his own list: {said}");
    assert!(
        store
            .path("home/alice/control/.info/dovecot-uidlist")
            .exists()
    );
    assert!(!store.path("public/.info/dovecot-uidlist").exists());
}
