//! Quotas: what fits, who pays, and an account (`maildirsize`) that Dovecot and we keep together.

mod support;

use std::fs;
use std::path::Path;

use support::peers::{Dovecot, VERSIONS};
use support::{
    MAIL, Server, Store, messages, messages_below, replace_in, replaced, write_long_ago,
};

const LIMIT: &str = "[quota]\ndriver = \"maildir\"\nstorage_grace = \"0\"\n";

/// A letter of so many bytes in its body.
fn letter(size: usize) -> Vec<u8> {
    let line = "x".repeat(99) + "\n";
    let mut text = b"Subject: x\n\n".to_vec();
    text.extend(line.bytes().cycle().take(size));
    text.push(b'\n');
    text
}

fn account(store: &Store, user: &str) -> String {
    let path = store.path(&format!("home/{user}/Maildir/maildirsize"));
    fs::read_to_string(path).unwrap_or_default()
}

/// Bytes and messages of an account.
fn sums(account: &str) -> (i64, i64) {
    let mut sums = (0, 0);
    for line in account.lines().skip(1) {
        let (bytes, messages) = line.split_once(' ').unwrap();
        sums.0 += bytes.trim().parse::<i64>().unwrap();
        sums.1 += messages.trim().parse::<i64>().unwrap();
    }
    sums
}

/// What is really there.
fn real(root: &Path) -> (i64, i64) {
    let all = messages_below(root);
    let bytes = all.iter().map(|(_, bytes)| bytes.len() as i64).sum();
    (bytes, all.len() as i64)
}

/// The start of the reply to RCPT, and of that after the message where there is one.
fn answers(server: &Server, rcpt: &str, letter: &[u8]) -> Vec<String> {
    let mut client = server.client();
    client.say("MAIL FROM:<s@x.test>");
    let mut found = vec![client.say(&format!("RCPT TO:{rcpt}"))];
    if found[0].starts_with('2') {
        client.say("DATA");
        client.send(&support::stuffed(letter));
        found.push(client.reply());
    }
    found.iter().map(|it| it[..9].to_owned()).collect()
}

#[test]
fn what_fits() {
    // settings; the letters that are there before; the letter; what is answered
    for (more, before, size, want) in [
        (
            "storage_size = \"10k\"",
            0,
            5_000,
            &["250 2.1.5", "250 2.0.0"][..],
        ),
        (
            "storage_size = \"10k\"",
            0,
            11_000,
            &["250 2.1.5", "552 5.2.2"],
        ),
        (
            "storage_size = \"10k\"",
            2,
            2_000,
            &["250 2.1.5", "552 5.2.2"],
        ),
        (
            "storage_size = \"8k\"\nstorage_grace = \"1k\"",
            2,
            10,
            &["552 5.2.2"],
        ),
        (
            "storage_size = \"8k\"\nstorage_extra = \"8k\"\nstorage_grace = \"0\"",
            2,
            10,
            &["250 2.1.5", "250 2.0.0"],
        ),
        (
            "storage_size = \"16k\"\nstorage_percentage = 50\nstorage_grace = \"1k\"",
            2,
            10,
            &["552 5.2.2"],
        ),
        (
            "storage_size = \"10k\"\nmessage_count = 2",
            2,
            10,
            &["552 5.2.2"],
        ),
        ("message_count = 3", 2, 100_000, &["250 2.1.5", "250 2.0.0"]),
        ("storage_size = \"1G\"", 2, 10, &["250 2.1.5", "250 2.0.0"]),
    ] {
        let store = Store::new();
        let grace = match more.contains("storage_grace") {
            true => "",
            false => "storage_grace = \"0\"",
        };
        let quota = format!("[quota]\ndriver = \"maildir\"\n{grace}\n{more}");
        let server = store.serve("", &quota);
        // Each is a little over 4000 bytes with its headers.
        for _ in 0..before {
            let stored = answers(&server, "<alice@x>", &letter(4_000));
            assert_eq!(
                stored,
                ["250 2.1.5", "250 2.0.0"],
                "{more}: {}",
                server.log()
            );
        }
        let found = answers(&server, "<alice@x>", &letter(size));
        assert_eq!(found, want, "{more}: {}", account(&store, "alice"));
        // The account is right, and nothing of a refused letter stays.
        let root = store.path("home/alice/Maildir");
        if before > 0 || want.len() == 2 {
            assert_eq!(sums(&account(&store, "alice")), real(&root), "{more}");
        }
        assert!(support::unfinished(&root).is_empty());
        let is_stored = want.last() == Some(&"250 2.0.0");
        assert_eq!(messages(&root).len(), before + usize::from(is_stored));
    }
}

#[test]
fn what_is_answered_where_it_is_full() {
    let full = format!("{LIMIT}message_count = 1");
    for (more, rcpt, want) in [
        ("", "<alice@x>", &["552 5.2.2"][..]),
        (
            "lmtp_rcpt_check_quota = false",
            "<alice@x>",
            &["250 2.1.5", "552 5.2.2"],
        ),
        ("quota_full_tempfail = true", "<alice@x>", &["452 4.2.2"]),
        // A detail and the INBOX behind it are one account.
        ("", "<alice+Spam@x>", &["552 5.2.2"]),
        ("", "<alice+Public/info@x>", &["250 2.1.5", "250 2.0.0"]),
        // It counts for its owner.
        ("", "<bob+shared/alice/Team@x>", &["552 5.2.2"]),
        ("", "<bob@x>", &["250 2.1.5", "250 2.0.0"]),
        // From whoever is trusted.
        (
            "trusted",
            "<alice@x> IGNOREQUOTA",
            &["250 2.1.5", "250 2.0.0"],
        ),
        ("", "<alice@x> IGNOREQUOTA", &["552 5.2.2"]),
    ] {
        let store = Store::with_inbox();
        let team = store
            .scratch
            .maildir("home/alice/Maildir/.Team", MAIL, MAIL, 0o700);
        store.scratch.file(
            "home/alice/Maildir/.Team/dovecot-acl",
            MAIL,
            MAIL,
            0o600,
            "anyone lrwip\n",
        );
        assert!(team.exists());
        let config = store.configure("", &full);
        let mut text = fs::read_to_string(&config).unwrap();
        match more {
            "trusted" => {
                let trusted = "mode = \"0666\", trusted = true }";
                text = replaced(&text, "mode = \"0666\" }", trusted)
            }
            more => text = format!("{more}\n{text}"),
        }
        fs::write(&config, text).unwrap();
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let stored = answers(&server, "<alice@x>", b"Subject: 1\n\nx\n");
        assert_eq!(stored, ["250 2.1.5", "250 2.0.0"], "{}", server.log());
        let found = answers(&server, rcpt, b"Subject: 2\n\nx\n");
        assert_eq!(found, want, "{more} {rcpt}: {}", server.log());
        for user in ["alice", "bob"] {
            let (account, root) = (
                account(&store, user),
                store.path(&format!("home/{user}/Maildir")),
            );
            if !account.is_empty() {
                assert_eq!(sums(&account), real(&root), "{more} {rcpt} {user}");
            }
        }
    }
}

/// Limits of one user, in both dialects; mailboxes that have more or do not count; a namespace with a quota.
#[test]
fn whose_limits() {
    let private = "[namespace.inbox.mailbox.Spam]";
    for (fields, change, rcpt, want) in [
        ("", "", "<alice@x>", "250 2.0.0"),
        (
            "userdb_quota_storage_size=1000",
            "",
            "<alice@x>",
            "552 5.2.2",
        ),
        (
            "userdb_quota_rule=*:bytes=1000",
            "",
            "<alice@x>",
            "552 5.2.2",
        ),
        (
            "userdb_quota_rule=*:storage=100M",
            "",
            "<alice@x>",
            "250 2.0.0",
        ),
        (
            "userdb_quota_rule=*:bytes=1000 userdb_quota_rule2=Spam:storage=+1M",
            "",
            "<alice+Spam@x>",
            "250 2.0.0",
        ),
        (
            "userdb_quota_rule=*:bytes=1000 userdb_quota_rule2=Spam:ignore",
            "",
            "<alice+Spam@x>",
            "250 2.0.0",
        ),
        ("userdb_quota_rule=nonsense", "", "<alice@x>", "451 4.3.0"),
        (
            "userdb_quota_storage_size=1000",
            "quota_storage_extra = \"1M\"",
            "<alice+Spam@x>",
            "250 2.0.0",
        ),
        (
            "userdb_quota_storage_size=1000",
            "quota_ignore = true",
            "<alice+Spam@x>",
            "250 2.0.0",
        ),
        (
            "userdb_quota_storage_size=1000",
            "public",
            "<alice+Public/info@x>",
            "552 5.2.2",
        ),
    ] {
        let store = Store::with_inbox();
        let config = store.configure("", LIMIT);
        let text = fs::read_to_string(&config).unwrap();
        let text = match change {
            "public" => format!(
                "{text}\n[namespace.public.quota]\nstorage_size = \"1k\"\nstorage_grace = \"0\"\n"
            ),
            change => replaced(&text, private, &format!("{private}\n{change}")),
        };
        fs::write(&config, text).unwrap();
        let users = fs::read_to_string(store.path("users")).unwrap();
        let alice = users.lines().next().unwrap().to_owned();
        write_long_ago(
            &store.path("users"),
            &users.replace(&alice, &format!("{alice}{fields}")),
        );
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let found = answers(&server, rcpt, &letter(2_000));
        assert_eq!(
            found.last().unwrap(),
            want,
            "{fields} {change}: {}",
            server.log()
        );
    }
}

/// Of 2.3, in a userdb: by full names, with wildcards. Spam holds more than all that is allowed.
#[test]
fn rules_of_mailboxes() {
    for (prefix, rule, rcpt, want) in [
        ("", "*:messages=1000", "<alice@x>", "552 5.2.2"),
        ("", "Spam:ignore", "<alice@x>", "250 2.0.0"),
        ("", "Sp*:ignore", "<alice@x>", "250 2.0.0"),
        ("", "INBOX/Spam:ignore", "<alice@x>", "552 5.2.2"),
        ("INBOX/", "INBOX/Spam:ignore", "<alice@x>", "250 2.0.0"),
        ("INBOX/", "Spam:ignore", "<alice@x>", "552 5.2.2"),
        ("INBOX/", "INBOX/Spam:ignore", "<alice+Spam@x>", "250 2.0.0"),
        ("INBOX/", "*Spam:ignore", "<alice@x>", "250 2.0.0"),
        ("INBOX/", "INBOX*m:ignore", "<alice@x>", "250 2.0.0"),
        (
            "INBOX/",
            "INBOX/Spam:ignore",
            "<bob+shared/alice/Spam@x>",
            "250 2.0.0",
        ),
        (
            "INBOX/",
            "Spam:ignore",
            "<bob+shared/alice/Spam@x>",
            "552 5.2.2",
        ),
        ("", "Spam:storage=+100%%", "<alice+Spam@x>", "250 2.0.0"),
        ("", "Spam:storage=+10%%", "<alice+Spam@x>", "552 5.2.2"),
        ("", "Sent:storage=10M", "<alice@x>", "552 5.2.2"),
        ("", "Spam:storage=10M", "<alice+Spam@x>", "451 4.3.0"),
    ] {
        let store = Store::with_inbox();
        let config = store.configure("", LIMIT);
        let inbox = format!("[namespace.inbox]\nseparator = \"/\"\nprefix = \"{prefix}\"");
        replace_in(&config, "[namespace.inbox]\nseparator = \"/\"", &inbox);
        let users = fs::read_to_string(store.path("users")).unwrap();
        let fields = format!("userdb_quota_rule=*:bytes=4000 userdb_quota_rule2={rule}");
        let alice = users.lines().next().unwrap();
        write_long_ago(
            &store.path("users"),
            &users.replace(alice, &format!("{alice}{fields}")),
        );
        let spam = "home/alice/Maildir/.Spam";
        store.scratch.maildir(spam, MAIL, MAIL, 0o700);
        let acl = format!("{spam}/dovecot-acl");
        store
            .scratch
            .file(&acl, MAIL, MAIL, 0o600, "user=bob lip\n");
        let text = "x".repeat(5_000);
        let message = format!("{spam}/new/1.M1P1.mx,S=5000");
        store.scratch.file(&message, MAIL, MAIL, 0o600, &text);
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let found = answers(&server, rcpt, &letter(500));
        assert_eq!(
            found.last().unwrap(),
            want,
            "{prefix} {rule} {rcpt}: {}",
            server.log()
        );
    }
}

/// A mailbox counts once, by its own name, also where its messages lie in a directory inside.
#[test]
fn with_directory_names() {
    let ignored = "[namespace.inbox.mailbox.Trash]\nquota_ignore = true\n";
    let quota = format!("{ignored}{LIMIT}storage_size = \"10k\"");
    let store = Store::new();
    let mailboxes = ["Work", "Work/Old", "Trash"];
    let config = store.with_directory_names(&mailboxes, &quota);
    let lies_in = |mailbox: &str| format!("home/alice/Maildir/{mailbox}/D/new/1.x");
    for (mailbox, size) in [
        ("INBOX", 4_000),
        ("Work", 1_000),
        ("Work/Old", 1_000),
        ("Trash", 20_000),
    ] {
        let text = "x".repeat(size);
        store
            .scratch
            .file(&lies_in(mailbox), MAIL, MAIL, 0o600, &text);
    }
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    let stored = answers(&server, "<alice@x>", &letter(3_000));
    assert_eq!(stored, ["250 2.1.5", "250 2.0.0"], "{}", server.log());
    let (bytes, messages) = real(&store.path("home/alice/Maildir"));
    let counted = (bytes - 20_000, messages - 1);
    assert_eq!(sums(&account(&store, "alice")), counted);
    assert_eq!(
        answers(&server, "<alice@x>", &letter(3_000)).last(),
        Some(&"552 5.2.2".to_owned())
    );
}

/// What somebody else has done to the account costs no mail, and is put right.
#[test]
fn accounts_that_say_nothing() {
    let ours = |bytes: &str| format!("10240S\n{bytes} 1\n");
    for (what, text, want) in [
        ("of other limits", "5000S\n4999 1\n".to_owned(), "250 2.0.0"),
        ("odd", "10240S\nmuch 1\n".to_owned(), "250 2.0.0"),
        (
            "too long",
            format!("10240S\n{}", "1 1\n".repeat(1500)),
            "250 2.0.0",
        ),
        (
            "wrongly full, with changes",
            ours("20000") + "1 1\n",
            "250 2.0.0",
        ),
        ("wrongly full, counted just now", ours("20000"), "552 5.2.2"),
        ("right", ours("100"), "250 2.0.0"),
    ] {
        let store = Store::with_inbox();
        let server = store.serve("", &format!("{LIMIT}storage_size = \"10k\""));
        store
            .scratch
            .file("home/alice/Maildir/maildirsize", MAIL, MAIL, 0o600, &text);
        let found = answers(&server, "<alice@x>", &letter(500));
        assert_eq!(found.last().unwrap(), want, "{what}: {}", server.log());
    }
    // A file that nobody can read: the log line says so.
    let store = Store::with_inbox();
    let server = store.serve("", &format!("{LIMIT}storage_size = \"10k\""));
    fs::create_dir(store.path("home/alice/Maildir/maildirsize")).unwrap();
    let found = answers(&server, "<alice@x>", &letter(500));
    assert_eq!(found, ["250 2.1.5", "250 2.0.0"]);
    assert!(
        server.log().contains("quota of alice: "),
        "{}",
        server.log()
    );
}

/// Dovecot keeps the same account: it believes ours, and we believe its.
#[test]
fn together_with_dovecot() {
    for version in VERSIONS {
        let store = Store::with_inbox();
        let server = store.serve("", &format!("{LIMIT}storage_size = \"1M\""));
        let Some(dovecot) = Dovecot::start_with(version, &store, |text| {
            let plugins = text
                .replace("mail_plugins = acl\n", "mail_plugins = acl quota\n")
                .replace("mail_plugins {\n", "mail_plugins {\n  quota = yes\n");
            match plugins.contains("dovecot_config_version") {
                true => format!(
                    "{plugins}\nquota \"User quota\" {{\n  driver = maildir\n  storage_size = 1M\n}}\n"
                ),
                false => format!(
                    "{plugins}\nplugin {{\n  quota = maildir:User quota\n  quota_rule = *:storage=1M\n}}\n"
                ),
            }
        }) else {
            return;
        };
        for round in 1..=3 {
            let found = answers(&server, "<alice@x>", &letter(3_000));
            assert_eq!(found.last().unwrap(), "250 2.0.0");
            assert_eq!(dovecot.lda("alice", "INBOX", &letter(1_000)), Some(0));
            let (bytes, messages) = real(&store.path("home/alice/Maildir"));
            assert_eq!(messages, 2 * round);
            let account = account(&store, "alice");
            assert_eq!(sums(&account), (bytes, messages), "{version:?}: {account}");
            let output = dovecot.doveadm(&["-f", "tab", "quota", "get", "-u", "alice"]);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let messages_said = said.lines().find(|it| it.contains("MESSAGE")).unwrap();
            assert!(
                messages_said.contains(&format!("\t{messages}\t")),
                "{version:?}: {said}"
            );
        }
        // Made once, by whoever came first, and never again.
        assert_eq!(account(&store, "alice").lines().next(), Some("1048576S"));
        assert!(
            account(&store, "alice").lines().count() >= 6,
            "{}",
            account(&store, "alice")
        );
        assert_eq!(dovecot.complaints(), Vec::<String>::new());
    }
}

/// Once a day whoever is near his limit finds a message about it.
#[test]
fn a_warning() {
    let store = Store::with_inbox();
    let file = store.path("warning");
    fs::write(
        &file,
        "From: Postmaster <postmaster@x.test>\nSubject: nearly full\n\nThrow something away.\n",
    )
    .unwrap();
    let quota = format!(
        "[quota]\ndriver = \"maildir\"\nstorage_size = \"10k\"\nwarning_percent = 50\nwarning_message_file = \"{}\"",
        file.display()
    );
    let server = store.serve("", &quota);
    let inbox = store.path("home/alice/Maildir");
    let subjects = || {
        let mut subjects: Vec<String> = messages(&inbox)
            .iter()
            .map(|(_, bytes)| support::subject(bytes))
            .collect();
        subjects.sort();
        subjects
    };
    let letter = |size: usize| [b"Subject: letter\r\n\r\n".to_vec(), vec![b'x'; size]].concat();
    let deliver = |size| {
        let reply = server
            .client()
            .deliver(&["alice@x.test"], &letter(size))
            .remove(0);
        assert!(reply.starts_with("250 "), "{reply}");
    };
    deliver(1000);
    deliver(1000);
    assert_eq!(subjects(), ["letter", "letter"]);
    deliver(4000);
    assert_eq!(subjects(), ["letter", "letter", "letter", "nearly full"]);
    assert!(
        server.log().contains("alice was warned"),
        "{}",
        server.log()
    );
    // He knows it today.
    deliver(500);
    assert_eq!(
        subjects().iter().filter(|it| *it == "nearly full").count(),
        1
    );
    let (bytes, count) = real(&inbox);
    assert_eq!(sums(&account(&store, "alice")), (bytes, count));
    // And is told again tomorrow.
    let yesterday = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 3600);
    let marker = fs::File::options()
        .write(true)
        .open(inbox.join("quotawarn"))
        .unwrap();
    marker.set_modified(yesterday).unwrap();
    deliver(500);
    assert_eq!(
        subjects().iter().filter(|it| *it == "nearly full").count(),
        2
    );
    support::assert_lists_fit(&store.path(""));
}

/// It counts once, also where other namespaces have the setting too, or where nothing else is there.
#[test]
fn an_inbox_that_lies_elsewhere() {
    for (size, roots, want) in [
        (6_000, &["Maildir", "Archive"][..], "250 2.0.0"),
        (6_000, &[], "250 2.0.0"),
        (12_000, &["Maildir", "Archive"], "552 5.2.2"),
        (12_000, &[], "552 5.2.2"),
    ] {
        let store = Store::new();
        let archive = "[namespace.archive]\nseparator = \"/\"\nprefix = \"Archive/\"\nmail_path = \"~/Archive\"\nmail_inbox_path = \"~/inbox\"\n";
        let limit = format!("{archive}{LIMIT}storage_size = \"10k\"");
        let config = store.configure("", &limit);
        let section = "[namespace.inbox]\n";
        let elsewhere = format!("{section}mail_inbox_path = \"~/inbox\"\n");
        replace_in(&config, section, &elsewhere);
        for root in roots.iter().chain(&["inbox"]) {
            let path = format!("home/alice/{root}");
            store.scratch.maildir(&path, MAIL, MAIL, 0o700);
        }
        let message = format!("home/alice/inbox/new/1.M1P1.mx,S={size}");
        let text = "x".repeat(size);
        store.scratch.file(&message, MAIL, MAIL, 0o600, &text);
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let found = answers(&server, "<alice@x>", &letter(3_000));
        assert_eq!(
            found.last().unwrap(),
            want,
            "{size} {roots:?}: {}",
            server.log()
        );
    }
}
