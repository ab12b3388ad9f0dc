//! `lda_mailbox_autosubscribe` beside a live Dovecot: what we have made, IMAP shows as subscribed.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use support::imap::Imap;
use support::peers::{Dovecot, Version};
use support::{MAIL, Store, as_user, not_root, program, replaced, run_with_input};

const MESSAGE: &[u8] = b"Subject: x\n\nx\n";
const ON: &str = "lda_mailbox_autosubscribe = true\n";

/// A store whose public root lets mailboxes be made, with a Maildir of alice's.
fn store() -> Store {
    let store = Store::new();
    store
        .scratch
        .maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
    for root in ["public", "home/bob/Maildir/.Projects"] {
        let acl = format!("{root}/dovecot-acl");
        let text = "anyone lrwstipek\n";
        store.scratch.file(&acl, MAIL, MAIL, 0o660, text);
    }
    store
}

/// Dovecot's namespaces as the documents of the "hidden subscription namespace" have them.
fn hidden_in_dovecot(text: String) -> String {
    let inbox = "prefix =\n  inbox = yes\n";
    assert_eq!(text.matches(inbox).count(), 1);
    let text = text.replace(
        inbox,
        "prefix = INBOX/\n  inbox = yes\n  subscriptions = no\n",
    );
    let hidden = "prefix =\n  separator = /\n  list = no\n  hidden = yes\n  subscriptions = yes\n";
    format!("{text}namespace subscriptions {{\n  {hidden}}}\n")
}

fn own_in_dovecot(text: String) -> String {
    let (before, after) = text.split_once("subscriptions = no").unwrap();
    format!("{before}subscriptions = yes{after}")
}

fn hidden(config: String) -> String {
    let inbox = "[namespace.inbox]\nseparator = \"/\"\ninbox = true\n";
    assert_eq!(config.matches(inbox).count(), 1);
    let config = config.replace(
        inbox,
        &format!("{inbox}prefix = \"INBOX/\"\nsubscriptions = false\n"),
    );
    let hidden = "separator = \"/\"\nlist = false\nhidden = true\n";
    format!("{config}[namespace.subscriptions]\n{hidden}")
}

fn own(config: String) -> String {
    let (before, after) = config.split_once("subscriptions = false").unwrap();
    format!("{before}subscriptions = true{after}")
}

/// As a second name for the INBOX's namespace, with a file of its own.
fn alias_in_dovecot(text: String) -> String {
    let is_24 = text.contains("dovecot_config_version");
    let own = match is_24 {
        true => "alias_for = inbox\n  mailbox_subscriptions_filename = subscriptions-shared\n",
        false => {
            "alias_for = INBOX/\n  location = maildir:~/Maildir:SUBSCRIPTIONS=subscriptions-shared\n"
        }
    };
    let text = hidden_in_dovecot(text);
    replaced(
        &text,
        "namespace subscriptions {\n",
        &format!("namespace subscriptions {{\n  {own}"),
    )
}

fn alias(config: String) -> String {
    let own = "alias_for = \"inbox\"\nmailbox_subscriptions_filename = \"subscriptions-shared\"\n";
    format!("{}{own}", hidden(config))
}

/// Runs our LMTP server on the store with a changed configuration.
fn serve(store: &Store, change: fn(String) -> String) -> support::Server {
    let config = store.configure("on_missing = \"create\"\n", "");
    let text = change(fs::read_to_string(&config).unwrap());
    fs::write(&config, format!("{ON}{text}")).unwrap();
    support::Server::start_as(
        &config,
        &store.path("run/lmtp"),
        &store.path("run/postroom.log"),
        &[100],
    )
}

fn subscribed(imap: &mut Imap) -> Vec<String> {
    let lines = imap.command("LSUB \"\" \"*\"");
    assert!(lines.last().unwrap().contains(" OK "), "{lines:?}");
    let names = lines
        .iter()
        .filter_map(|line| line.strip_prefix("* LSUB () \"/\" "));
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}

struct Case {
    name: &'static str,
    dovecot: fn(String) -> String,
    config: fn(String) -> String,
    /// What a client had subscribed to before.
    before: &'static [&'static str],
    /// Mailboxes that mail makes.
    made: &'static [&'static str],
    /// Files below the store, with the whole of their lines.
    files: &'static [(&'static str, &'static [&'static str])],
}

const CASES: [Case; 4] = [
    Case {
        name: "the private namespace has those of all",
        dovecot: |text| text,
        config: |text| text,
        before: &["Public/info", "shared/bob/Projects"],
        made: &[
            "Work",
            "Work/Kid",
            "Gr&APw-n",
            "Public/new",
            "Public/a/b",
            "shared/bob/Projects/Kid",
        ],
        files: &[(
            "home/alice/Maildir/subscriptions",
            &[
                "V\t2",
                "",
                "Public/info",
                "shared/bob/Projects",
                "Work",
                "Work\tKid",
                "Gr&APw-n",
                "Public/new",
                "Public/a\tb",
                "shared/bob/Projects\tKid",
            ],
        )],
    },
    Case {
        name: "a hidden namespace has those of all",
        dovecot: hidden_in_dovecot,
        config: hidden,
        before: &["Public/info"],
        made: &[
            "INBOX/Work/Kid",
            "Public/a/b",
            "INBOX/New",
            "shared/bob/Projects/Kid",
        ],
        files: &[(
            "home/alice/Maildir/subscriptions",
            &[
                "V\t2",
                "",
                "Public/info",
                "INBOX/Work\tKid",
                "Public/a\tb",
                "INBOX/New",
                "shared/bob/Projects\tKid",
            ],
        )],
    },
    Case {
        name: "a hidden second name for the INBOX's namespace",
        dovecot: alias_in_dovecot,
        config: alias,
        before: &["Public/info"],
        made: &["INBOX/Work", "Public/new"],
        files: &[
            (
                "home/alice/Maildir/subscriptions-shared",
                &["V\t2", "", "Public/info", "INBOX/Work", "Public/new"],
            ),
            ("home/alice/Maildir/subscriptions", &[]),
        ],
    },
    Case {
        name: "the public namespace has its own",
        dovecot: own_in_dovecot,
        config: own,
        before: &["Public/info"],
        made: &["Public/new", "Work"],
        files: &[
            ("public/subscriptions", &["V\t2", "", "info", "new"]),
            ("home/alice/Maildir/subscriptions", &["V\t2", "", "Work"]),
        ],
    },
];

#[test]
fn what_mail_has_made_is_subscribed() {
    if not_root() {
        return;
    }
    for version in [Version::V23, Version::V24] {
        for case in &CASES {
            let what = format!("{version:?}: {}", case.name);
            let store = store();
            let Some(dovecot) = Dovecot::start_with(version, &store, case.dovecot) else {
                return;
            };
            let mut imap = Imap::login(dovecot.port, "alice");
            for mailbox in case.before {
                let done = imap.command(&format!("SUBSCRIBE \"{mailbox}\""));
                assert!(done.last().unwrap().contains(" OK "), "{what}: {done:?}");
            }
            let server = serve(&store, case.config);
            for mailbox in case.made {
                // Modified UTF-7 is IMAP's alone, and an address like that needs SMTPUTF8.
                if let Some((name, _)) = mailbox.split_once('&') {
                    let output = lda(&store, &format!("{name}ün"));
                    assert_eq!(output.status.code(), Some(0), "{what}: {output:?}");
                    continue;
                }
                let to = format!("alice+{mailbox}@x");
                let reply = server.client().deliver(&[&to], MESSAGE).remove(0);
                let said = format!("mailbox=\"{mailbox}\"");
                assert!(reply.contains(&said), "{what}: {reply} {}", server.log());
            }
            // One that is there already adds nothing.
            server
                .client()
                .deliver(&["alice@x", "alice+Public/info@x"], MESSAGE);
            for (file, want) in case.files {
                let text = fs::read_to_string(store.path(file)).unwrap_or_default();
                assert_eq!(
                    text.lines().collect::<Vec<_>>(),
                    *want,
                    "{what}: {}",
                    server.log()
                );
            }
            let mut want: Vec<&str> = case.before.iter().chain(case.made).copied().collect();
            want.sort();
            assert_eq!(subscribed(&mut imap), want, "{what}");
            // And Dovecot goes on with the file.
            imap.command(&format!("UNSUBSCRIBE \"{}\"", case.made[0]));
            want.retain(|name| *name != case.made[0]);
            assert_eq!(subscribed(&mut imap), want, "{what}");
            assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{what}");
        }
    }
}

fn lda(store: &Store, mailbox: &str) -> std::process::Output {
    let mut command = program("postroom-lda");
    command.arg("-c").arg(store.path("postroom.toml"));
    command.args(["-d", "alice", "-m", mailbox]);
    as_user(&mut command, MAIL, MAIL, &[100]);
    run_with_input(&mut command, MESSAGE)
}

#[test]
fn the_lda_too_and_only_where_it_is_asked_for() {
    if not_root() {
        return;
    }
    let auto = "[namespace.inbox.mailbox.Auto]\nauto = \"subscribe\"\n";
    for (setting, mailbox, line) in [
        ("", "New", None),
        ("", "Public/new", None),
        (ON, "New", Some("New")),
        (ON, "Public/new", Some("Public/new")),
        (ON, "Spam", Some("Spam")),
        (ON, "Auto", None),
        (ON, "INBOX", None),
        (ON, "Public/info", None),
    ] {
        let store = store();
        // Alice has had no mail at all.
        fs::remove_dir_all(store.path("home/alice/Maildir")).unwrap();
        let config = store.configure("on_missing = \"create\"\n", auto);
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("{setting}{text}")).unwrap();
        let output = lda(&store, mailbox);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{mailbox}: {said}");
        let file = store.path("home/alice/Maildir/subscriptions");
        let got = fs::read_to_string(&file).ok();
        let want = line.map(|line| format!("V\t2\n\n{line}\n"));
        assert_eq!(got, want, "{setting} {mailbox}: {said}");
        let mode = fs::metadata(&file).map(|stat| stat.mode() & 0o7777).ok();
        assert_eq!(mode, line.map(|_| 0o600), "{mailbox}");
        let public = store.path("public/subscriptions");
        assert!(!public.exists(), "that would be everybody's");
    }
}

/// Whatever is in the way, the mail is stored, the file stays, and the log says why.
#[test]
fn what_fails_never_costs_the_mail() {
    if not_root() {
        return;
    }
    let store = store();
    let server = serve(&store, |text| text);
    let root = store.path("home/alice/Maildir");
    let file = root.join("subscriptions");
    let deliver = |mailbox: &str| {
        let to = format!("alice+{mailbox}@x");
        let reply = server.client().deliver(&[&to], MESSAGE).remove(0);
        let said = format!("mailbox=\"{mailbox}\"");
        assert!(reply.contains(&said), "{reply}");
        server.log()
    };
    fs::write(&file, "V\t9\n\nx\n").unwrap();
    assert!(deliver("Odd").contains("its version is not known"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "V\t9\n\nx\n");
    fs::write(&file, "x\n").unwrap();
    let lock = root.join("subscriptions.lock");
    fs::write(&lock, "").unwrap();
    assert!(deliver("Held").contains("subscriptions.lock is held"));
    fs::remove_file(&lock).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "x\n");
    // Of a group that we cannot give it.
    std::os::unix::fs::chown(&file, Some(MAIL), Some(12)).unwrap();
    assert!(deliver("Group").contains("is left without the new mailbox"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "x\n");
    std::os::unix::fs::chown(&file, Some(MAIL), Some(100)).unwrap();
    deliver("Last");
    assert_eq!(fs::read_to_string(&file).unwrap(), "x\nLast\n");
    assert_eq!(fs::metadata(&file).unwrap().gid(), 100);
    assert!(!lock.exists());
}
