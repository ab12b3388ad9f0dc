//! Dovecot's chapter "Mailbox Sharing with Symlinks": alice is its user1, bob its user2, carol its user3.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use support::imap::Imap;
use support::peers::{Dovecot, VERSIONS, Version};
use support::{
    MAIL, Server, Store, as_user, not_root, program, replace_in, replaced, run_with_input,
};

/// How the private mailboxes of all users are kept.
struct Format {
    ours: &'static str,
    location: &'static str,
    settings: &'static str,
}

const MAILDIR: Format = Format {
    ours: "",
    location: "maildir:~/Maildir",
    settings: "mail_driver = maildir\nmail_path = ~/Maildir\n",
};
const NESTED: Format = Format {
    ours: "mail_path = \"~/mail\"\nmailbox_list_layout = \"fs\"\n",
    location: "maildir:~/mail:LAYOUT=fs",
    settings: "mail_driver = maildir\nmail_path = ~/mail\nmailbox_list_layout = fs\n",
};
const MBOX: Format = Format {
    ours: "mail_driver = \"mbox\"\nmail_path = \"~/mail\"\n",
    location: "mbox:~/mail",
    settings: "mail_driver = mbox\nmail_path = ~/mail\n",
};

impl Format {
    /// Only private mailboxes: their names may begin with `shared/`.
    fn configure(&self, store: &Store) -> PathBuf {
        store.configure("", "");
        let text = store.config("", "");
        let (before, from) = text.split_once("[namespace.public]").unwrap();
        let (_, after) = from.split_once("[acl]").unwrap();
        let text = format!("{}{before}[acl]{after}", self.ours);
        fs::write(store.path("postroom.toml"), text).unwrap();
        store.path("postroom.toml")
    }

    fn dovecot(&self, version: Version, store: &Store) -> Option<Dovecot> {
        Dovecot::start_with(version, store, |text| {
            let (before, from) = text.split_once("namespace public {").unwrap();
            let end = from.find("  subscriptions = no\n  list = children\n}\nservice");
            let text = format!("{before}{}", &from[end.unwrap()..]);
            let text = text.replace(
                "  subscriptions = no\n  list = children\n}\nservice",
                "service",
            );
            let (old, new) = match version {
                Version::V23 => (
                    "mail_location = maildir:~/Maildir\n".to_owned(),
                    format!("mail_location = {}\n", self.location),
                ),
                Version::V24 => (MAILDIR.settings.to_owned(), self.settings.to_owned()),
            };
            assert!(text.contains(&old), "{text}");
            text.replace(&old, &new)
        })
    }
}

/// `ln -s target link`, as the user who has the directory.
fn link(store: &Store, target: &str, name: &str) {
    let link = store.path(name);
    symlink(target.replace("ROOT", &store.scratch.text("")), &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(MAIL), Some(MAIL)).unwrap();
}

/// So many links, each to the next, the last of them to `target`; answers the first.
fn chain(store: &Store, links: usize, target: &str) -> String {
    for number in 1..=links {
        let next = match number < links {
            true => format!("ROOT/home/chain{}", number + 1),
            false => target.to_owned(),
        };
        link(store, &next, &format!("home/chain{number}"));
    }
    "ROOT/home/chain1".into()
}

/// Gives root's symlink to `target` a second name (CVE-2008-2936). Root does it, so that it is there under `fs.protected_hardlinks` too,
/// which is one for the whole machine: a kernel without it lets any user do the same.
fn second_name_of_roots_link(store: &Store, target: &Path, name: &str) {
    let first = store.path("roots_link");
    symlink(target, &first).unwrap();
    let name = store.path(name);
    fs::hard_link(&first, &name).unwrap();
    let meta = fs::symlink_metadata(name).unwrap();
    assert!(meta.is_symlink() && (meta.uid(), meta.nlink()) == (0, 2));
}

/// The exit code and what is said, for a message into a mailbox of Alice's.
fn lda(config: &Path, mailbox: &str) -> (i32, String) {
    lda_as(MAIL, config, mailbox)
}

fn lda_as(uid: u32, config: &Path, mailbox: &str) -> (i32, String) {
    let mut lda = program("postroom-lda");
    lda.arg("-c").arg(config);
    lda.args(["-d", "alice", "-m", mailbox]);
    lda.env("POSTROOM_LOG", "json");
    as_user(&mut lda, uid, uid, &[]);
    let output = run_with_input(&mut lda, b"Subject: x\n\n");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), said)
}

fn subjects(dovecot: &Dovecot, user: &str, mailbox: &str) -> Vec<String> {
    let mut imap = Imap::login(dovecot.port, user);
    imap.select(mailbox);
    let found = imap.fetch_all();
    let subjects = found.iter().map(|message| support::subject(&message.bytes));
    let subjects = subjects.collect();
    imap.command("LOGOUT");
    subjects
}

/// One message by each name of a mailbox: the user's and the owner's. Both see both, in both Dovecots.
fn both_names(format: &Format, lay: impl Fn(&Store), rows: &[(&str, &str, &str, &str)]) {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::new();
        lay(&store);
        let config = format.configure(&store);
        let Some(dovecot) = format.dovecot(version, &store) else {
            return;
        };
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let mut client = server.client();
        for (user, mailbox, owner, own) in rows {
            let mut deliver = |user: &str, mailbox: &str, subject: &str| {
                let recipient = format!("{user}+{mailbox}@example.test");
                let message = format!("Subject: {subject}\n\nbody\n");
                let replies = client.deliver(&[&recipient], message.as_bytes());
                let want = format!("mailbox=\"{mailbox}\"");
                assert!(replies[0].contains(&want), "{replies:?} {}", server.log());
            };
            deliver(user, mailbox, "by the link");
            deliver(owner, own, "by its name");
            deliver(user, mailbox, "by the link again");
            let want = ["by the link", "by its name", "by the link again"];
            for (user, mailbox) in [(user, mailbox), (owner, own)] {
                assert_eq!(subjects(&dovecot, user, mailbox), want, "{version:?}");
            }
            // And once more, where Dovecot knows the mailbox.
            deliver(user, mailbox, "later");
            deliver(owner, own, "later");
            assert_eq!(subjects(&dovecot, user, mailbox).len(), 5, "{version:?}");
            assert_eq!(subjects(&dovecot, owner, own).len(), 5, "{version:?}");
        }
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

#[test]
fn mailbox_sharing_with_symlinks_maildir() {
    let lay = |store: &Store| {
        for (user, folder) in [("bob", ".Work"), ("carol", ".Work")] {
            let home = format!("home/{user}/Maildir");
            store.scratch.maildir(&home, MAIL, MAIL, 0o700);
            // What is made through the link looks like what is there.
            let folder = format!("{home}/{folder}");
            store.scratch.maildir(&folder, MAIL, 100, 0o2770);
        }
        store
            .scratch
            .maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
        for user in ["bob", "carol"] {
            let name = format!("home/alice/Maildir/.shared.{user}");
            link(store, &format!("ROOT/home/{user}/Maildir/.Work"), &name);
        }
    };
    let rows = [
        ("alice", "shared/bob", "bob", "Work"),
        ("alice", "shared/carol", "carol", "Work"),
    ];
    both_names(&MAILDIR, lay, &rows);
    if not_root() {
        return;
    }
    let store = Store::new();
    lay(&store);
    let config = MAILDIR.configure(&store);
    let server = Server::start_as(
        &config,
        &store.path("run/lmtp"),
        &store.path("run/log"),
        &[100],
    );
    let recipient = "alice+shared/bob@example.test";
    let replies = server.client().deliver(&[recipient], b"Subject: x\n\n");
    assert!(
        replies[0].starts_with("250"),
        "{replies:?} {}",
        server.log()
    );
    let mut explain = program("postroom");
    explain.arg("-c").arg(&config).args(["explain", recipient]);
    as_user(&mut explain, MAIL, MAIL, &[100]);
    let shown = String::from_utf8(explain.output().unwrap().stdout).unwrap();
    let real = format!(
        "symlink       -> {}",
        store.path("home/bob/Maildir/.Work").display()
    );
    assert!(shown.contains(&real), "{shown}");
    let stored = support::messages(&store.path("home/bob/Maildir/.Work"));
    let meta = fs::metadata(&stored[0].0).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o660, 100));
}

/// "With Maildir++ layout it's not possible to automatically share mailbox and its children … With the fs layout this is possible".
#[test]
fn mailbox_sharing_with_symlinks_and_children() {
    let lay = |store: &Store| {
        for part in ["alice", "bob"] {
            let home = format!("home/{part}/mail");
            store.scratch.maildir(&home, MAIL, MAIL, 0o700);
        }
        store
            .scratch
            .maildir("home/bob/mail/Work", MAIL, MAIL, 0o700);
        let child = "home/bob/mail/Work/child";
        store.scratch.maildir(child, MAIL, MAIL, 0o700);
        store
            .scratch
            .dir("home/alice/mail/shared", MAIL, MAIL, 0o700);
        link(
            store,
            "ROOT/home/bob/mail/Work",
            "home/alice/mail/shared/bob",
        );
    };
    let rows = [
        ("alice", "shared/bob", "bob", "Work"),
        ("alice", "shared/bob/child", "bob", "Work/child"),
    ];
    both_names(&NESTED, lay, &rows);
}

#[test]
fn mailbox_sharing_with_symlinks_mbox() {
    let lay = |store: &Store| {
        for user in ["alice", "bob", "carol"] {
            store
                .scratch
                .dir(&format!("home/{user}/mail"), MAIL, MAIL, 0o700);
        }
        store
            .scratch
            .file("home/bob/mail/Work", MAIL, MAIL, 0o600, "");
        store
            .scratch
            .file("home/carol/mail/Work", MAIL, MAIL, 0o600, "");
        store
            .scratch
            .dir("home/alice/mail/shared", MAIL, MAIL, 0o700);
        for user in ["bob", "carol"] {
            let name = format!("home/alice/mail/shared/{user}");
            link(store, &format!("ROOT/home/{user}/mail/Work"), &name);
        }
    };
    let rows = [
        ("alice", "shared/bob", "bob", "Work"),
        ("alice", "shared/carol", "carol", "Work"),
    ];
    both_names(&MBOX, lay, &rows);
}

/// "Alternatively instead of symlinking an mbox file, put the shared mailboxes inside a directory and symlink the entire directory."
#[test]
fn mailbox_sharing_with_symlinks_of_a_directory_of_mboxes() {
    let lay = |store: &Store| {
        for user in ["alice", "bob"] {
            store
                .scratch
                .dir(&format!("home/{user}/mail"), MAIL, MAIL, 0o700);
        }
        store.scratch.dir("home/bob/mail/Team", MAIL, MAIL, 0o700);
        store
            .scratch
            .file("home/bob/mail/Team/Work", MAIL, MAIL, 0o600, "");
        link(store, "ROOT/home/bob/mail/Team", "home/alice/mail/bob");
    };
    both_names(&MBOX, lay, &[("alice", "bob/Work", "bob", "Team/Work")]);
}

/// The dotlock of an mbox is beside the file, whatever name it is reached by; where none can be made there, the kernel's locks hold.
#[test]
fn locks_of_a_linked_mbox() {
    if not_root() {
        return;
    }
    for (folder_mode, locks, held, want) in [
        (0o700, "\"fcntl\", \"dotlock\"", false, 0),
        (0o700, "\"fcntl\", \"dotlock\"", true, 75),
        (0o555, "\"fcntl\", \"dotlock\"", false, 0),
        (0o555, "\"flock\"", false, 0),
        (0o555, "\"dotlock\"", false, 75),
    ] {
        let store = Store::new();
        store.scratch.dir("home/alice/mail", MAIL, MAIL, 0o700);
        let owner = if folder_mode == 0o555 { 0 } else { MAIL };
        store.scratch.dir("home/bob/mail", owner, MAIL, folder_mode);
        store.scratch.dir("home/bob", MAIL, MAIL, 0o755);
        let file = store
            .scratch
            .file("home/bob/mail/Work", MAIL, MAIL, 0o600, "");
        link(&store, "ROOT/home/bob/mail/Work", "home/alice/mail/shared");
        if held {
            let pid = std::process::id().to_string();
            store
                .scratch
                .file("home/bob/mail/Work.lock", MAIL, MAIL, 0o644, &pid);
        }
        let config = MBOX.configure(&store);
        let text = fs::read_to_string(&config).unwrap();
        let more = format!("mbox_lock_timeout = \"1s\"\nmbox_write_locks = [{locks}]\n");
        fs::write(&config, more + &text).unwrap();
        let (code, said) = lda(&config, "shared");
        let case = format!("{folder_mode:o} {locks} {held}: {said}");
        assert_eq!(code, want, "{case}");
        assert_eq!(fs::metadata(&file).unwrap().len() > 0, want == 0, "{case}");
    }
}

/// Links that the kernel follows to one file.
const MOST_LINKS: usize = 40;

/// What leads nowhere, in circles or out of the mail roots is not followed: a stranger's mail goes to INBOX, the admin's waits, and
/// the log says which symlink it is.
#[test]
fn symlinks_that_are_not_followed() {
    if not_root() {
        return;
    }
    for (format, folder, name) in [
        (&MAILDIR, "home/alice/Maildir", ".Work"),
        (&NESTED, "home/alice/mail", "Work"),
        (&MBOX, "home/alice/mail", "Work"),
    ] {
        for (what, target) in [
            ("a loop", "Work"),
            ("a link to nothing", "nowhere"),
            ("out of the roots", "ROOT/elsewhere/Work"),
            ("a chain out of the roots", "ROOT/home/chain"),
            (
                "by the kernel's links",
                "/proc/self/rootROOT/elsewhere/Work",
            ),
            ("somebody's link", "ROOT/home/bob/target"),
            ("more links than the kernel follows", "ROOT/home/bob/target"),
            ("a second name of root's link", "ROOT/elsewhere/Work"),
        ] {
            let store = Store::new();
            store.scratch.dir("home/alice/mail", MAIL, MAIL, 0o700);
            store.scratch.dir("elsewhere", MAIL, MAIL, 0o700);
            match format.ours == MBOX.ours {
                true => {
                    let text = "From x  Mon Nov 02 07:02:09 2026\n\n";
                    store
                        .scratch
                        .file("elsewhere/Work", MAIL, MAIL, 0o600, text);
                    store
                        .scratch
                        .file("home/bob/target", MAIL, MAIL, 0o600, text);
                }
                false => {
                    store.scratch.maildir("elsewhere/Work", MAIL, MAIL, 0o700);
                    store.scratch.maildir("home/bob/target", MAIL, MAIL, 0o700);
                    store.scratch.maildir(folder, MAIL, MAIL, 0o700);
                }
            }
            link(&store, "ROOT/elsewhere/Work", "home/chain");
            let target = match what {
                "a loop" => name,
                _ => target,
            };
            let own = format!("{folder}/{name}");
            match what {
                "more links than the kernel follows" => {
                    link(&store, &chain(&store, MOST_LINKS, target), &own)
                }
                "a second name of root's link" => {
                    second_name_of_roots_link(&store, &store.path("elsewhere/Work"), &own)
                }
                _ => link(&store, target, &own),
            }
            if what == "somebody's link" {
                let link = store.path(&own);
                std::os::unix::fs::lchown(link, Some(6001), Some(6001)).unwrap();
            }
            let config = format.configure(&store);
            let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
            let victims = || {
                let files = ["elsewhere/Work", "home/bob/target"].map(|it| store.path(it));
                let files = files.map(|it| (fs::metadata(&it).unwrap().mtime(), fs::read(it).ok()));
                (support::tree(&store.path("elsewhere")), files)
            };
            let before = victims();
            let recipient = "alice+Work@example.test";
            let replies = server.client().deliver(&[recipient], b"Subject: x\n\n");
            let case = format!("{what}, {}: {replies:?} {}", format.location, server.log());
            assert!(replies[0].contains("mailbox=\"INBOX\""), "{case}");
            let shown = format!("the symlink {}", store.path(folder).join(name).display());
            assert!(server.log().contains(&shown), "{case}");
            for uid in [MAIL, 0] {
                let (code, said) = lda_as(uid, &config, "Work");
                assert_eq!(code, 75, "{case}, {uid}: {said}");
                assert!(said.contains(&shown), "{case}, {uid}: {said}");
            }
            assert_eq!(victims(), before, "{case}");
            if what == "more links than the kernel follows" {
                // It is the number that counts.
                fs::remove_file(store.path(&own)).unwrap();
                link(&store, "ROOT/home/chain2", &own);
                assert_eq!(lda(&config, "Work").0, 0, "{case}");
            }
            // The admin may name more roots.
            if what == "out of the roots" {
                let roots = format!("mail_roots = [\"{}/elsewhere\"]", store.scratch.text(""));
                let roots = format!("[delivery]\n{roots}\n");
                replace_in(&config, "[delivery]\n", &roots);
                assert_eq!(lda(&config, "Work").0, 0, "{case}");
            }
        }
    }
}

/// The same where everybody may make names, and for an INBOX, which nothing stands in for: each of its mail waits.
#[test]
fn an_inbox_that_is_a_symlink() {
    if not_root() {
        return;
    }
    for what in ["somebody's link", "many links", "a second name"] {
        let store = Store::new();
        store.scratch.dir("home/alice/mail", MAIL, MAIL, 0o700);
        store.scratch.dir("spool", 0, 0, 0o1777);
        store.scratch.dir("elsewhere", MAIL, MAIL, 0o700);
        let text = "From x  Mon Nov 02 07:02:09 2026\n\n";
        let file = |name: &str| store.scratch.file(name, MAIL, MAIL, 0o600, text);
        let victims = [file("spool/bob"), file("elsewhere/mbox")];
        match what {
            "somebody's link" => {
                link(&store, "bob", "spool/alice");
                let link = store.path("spool/alice");
                std::os::unix::fs::lchown(link, Some(6001), Some(6001)).unwrap();
            }
            "many links" => {
                let first = chain(&store, MOST_LINKS, "ROOT/spool/bob");
                link(&store, &first, "spool/alice");
            }
            _ => second_name_of_roots_link(&store, &victims[1], "spool/alice"),
        }
        let config = MBOX.configure(&store);
        let inbox = format!(
            "mail_inbox_path = \"{}/%{{user}}\"\n",
            store.scratch.text("spool")
        );
        replace_in(&config, "hostname", &format!("{inbox}hostname"));
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let reply = server
            .client()
            .deliver(&["alice@x"], b"Subject: x\n\n")
            .remove(0);
        let case = format!("{what}: {reply} {}", server.log());
        assert!(reply.starts_with("451 4."), "{case}");
        for uid in [MAIL, 0] {
            let (code, said) = lda_as(uid, &config, "INBOX");
            assert_eq!(code, 75, "{case}, {uid}: {said}");
        }
        for victim in victims {
            assert_eq!(fs::read_to_string(victim).unwrap(), text, "{case}");
        }
        // Whoever may have it gets his.
        let reply = server
            .client()
            .deliver(&["bob@x"], b"Subject: x\n\n")
            .remove(0);
        assert!(reply.starts_with("250 2.0.0"), "{case}: {reply}");
    }
}

/// A group that the server lends to its users opens what is theirs by an ACL: not what a user has linked to himself, where he would
/// be the owner (CVE-2008-1199).
#[test]
fn a_link_opens_no_group_of_the_server() {
    if not_root() {
        return;
    }
    const ALICE: u32 = 6001;
    for (setting, field) in [
        ("mail_access_groups = [\"users\"]\n", ""),
        ("", "userdb_mail_access_groups=users"),
    ] {
        for (owner, names, is_followed) in [
            (ALICE, 1, false),
            (0, 1, true),
            (MAIL, 1, true),
            // Nobody knows who has made the second: a user can, where `fs.protected_hardlinks` is off.
            (0, 2, false),
            (MAIL, 2, false),
        ] {
            let store = Store::new();
            let secret = "public/.secret";
            store.scratch.maildir(secret, MAIL, 100, 0o2770);
            let acl = format!("{secret}/dovecot-acl");
            store.scratch.file(&acl, MAIL, 100, 0o660, "anyone lr\n");
            for folder in ["home/alice", "home/alice/Maildir"] {
                store.scratch.dir(folder, ALICE, ALICE, 0o700);
            }
            let link = store.path("home/alice/Maildir/.x");
            symlink(store.path(secret), &link).unwrap();
            std::os::unix::fs::lchown(&link, Some(owner), None).unwrap();
            if names == 2 {
                fs::hard_link(&link, store.path("run/link")).unwrap();
            }
            let config = store.configure("", "");
            let text = fs::read_to_string(&config).unwrap();
            fs::write(&config, format!("{setting}{text}")).unwrap();
            let home = store.scratch.text("home/alice");
            let users = format!("alice::{ALICE}:{ALICE}::{home}::{field}\n");
            support::write_long_ago(&store.path("users"), &users);
            let (socket, log) = (store.path("run/lmtp"), store.path("run/log"));
            let server = Server::start_as_root(&config, &socket, &log);
            // Its own name gives what its ACL says.
            for (mailbox, is_stored) in [("Public/secret", false), ("x", is_followed)] {
                let recipient = format!("alice+{mailbox}@example.test");
                let replies = server.client().deliver(&[&recipient], b"Subject: x\n\n");
                let case = format!(
                    "{setting}{field} {owner} {names} {replies:?} {}",
                    server.log()
                );
                let want = if is_stored { mailbox } else { "INBOX" };
                assert!(
                    replies[0].contains(&format!("mailbox=\"{want}\"")),
                    "{case}"
                );
            }
            let stored = support::messages(&store.path(secret)).len();
            assert_eq!(
                stored,
                usize::from(is_followed),
                "{setting}{field} {owner} {names}"
            );
        }
    }
}

/// Nor does one to a directory above it, whoever has that.
#[test]
fn a_link_above_opens_no_group_of_the_server() {
    if not_root() {
        return;
    }
    const ALICE: u32 = 6001;
    for driver in ["maildir", "mbox"] {
        for (owner, names, is_followed) in [(ALICE, 1, false), (0, 1, true), (0, 2, false)] {
            let store = Store::new();
            store.scratch.dir("lent", 0, 0, 0o755);
            let place = store.path("lent/secret");
            match driver {
                "maildir" => drop(store.scratch.maildir("lent/secret", MAIL, 100, 0o2770)),
                _ => drop(store.scratch.file("lent/secret", MAIL, 100, 0o660, "")),
            }
            for folder in ["home/alice", "home/alice/mail"] {
                store.scratch.dir(folder, ALICE, ALICE, 0o700);
            }
            let link = store.path("home/alice/mail/x");
            symlink(store.path("lent"), &link).unwrap();
            std::os::unix::fs::lchown(&link, Some(owner), None).unwrap();
            if names == 2 {
                fs::hard_link(&link, store.path("run/link")).unwrap();
            }
            let roots = format!("mail_roots = [\"{}\"]", store.path("").display());
            let config = store.configure(&roots, "");
            let text = fs::read_to_string(&config).unwrap();
            let inbox = format!(
                "[namespace.inbox]\nmail_driver = \"{driver}\"\nmail_path = \"~/mail\"\nmailbox_list_layout = \"fs\"\n"
            );
            let text = replaced(&text, "[namespace.inbox]\n", &inbox);
            let more = "mail_access_groups = [\"users\"]\nmbox_write_locks = [\"fcntl\"]\n";
            fs::write(&config, format!("{more}{text}")).unwrap();
            let home = store.scratch.text("home/alice");
            let users = format!("alice::{ALICE}:{ALICE}::{home}::\n");
            support::write_long_ago(&store.path("users"), &users);
            let (socket, log) = (store.path("run/lmtp"), store.path("run/log"));
            let server = Server::start_as_root(&config, &socket, &log);
            let replies = server
                .client()
                .deliver(&["alice+x/secret@example.test"], b"Subject: x\n\n");
            let case = format!("{driver} {owner} {names} {replies:?} {}", server.log());
            let want = if is_followed { "x/secret" } else { "INBOX" };
            assert!(
                replies[0].contains(&format!("mailbox=\"{want}\"")),
                "{case}"
            );
            let stored = match driver {
                "maildir" => support::messages(&place).len(),
                _ => fs::read_to_string(&place)
                    .unwrap()
                    .matches("Subject: x")
                    .count(),
            };
            assert_eq!(stored, usize::from(is_followed), "{case}");
        }
    }
}

/// How many messages are delivered while links change: so many, or `POSTROOM_LINK_RACES` (`tests/stress` has 20,000).
fn races(usual: usize) -> usize {
    let wanted = std::env::var("POSTROOM_LINK_RACES");
    wanted.map_or(usual, |number| number.parse().unwrap())
}

/// A symlink that changes while mail is delivered: never anything elsewhere, and nothing lost.
#[test]
fn a_symlink_that_changes_meanwhile() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let folder = "home/alice/Maildir";
    store.scratch.maildir(folder, MAIL, MAIL, 0o700);
    store.scratch.maildir("elsewhere", MAIL, MAIL, 0o700);
    store
        .scratch
        .maildir("home/bob/Maildir/.Work", MAIL, MAIL, 0o700);
    link(
        &store,
        "ROOT/home/bob/Maildir/.Work",
        &format!("{folder}/.Work"),
    );
    link(&store, "ROOT/elsewhere", &format!("{folder}/swap"));
    let config = MAILDIR.configure(&store);
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    let stop = AtomicBool::new(false);
    let mut counts = (0, 0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (a, b, c) = ["swap", ".Work", "swap2"]
                .map(|name| store.path(folder).join(name))
                .into();
            while !stop.load(Ordering::Relaxed) {
                fs::rename(&b, &c).unwrap();
                fs::rename(&a, &b).unwrap();
                fs::rename(&c, &a).unwrap();
            }
        });
        let mut client = server.client();
        for number in 0..races(1500) {
            let message = format!("Subject: {number}\n\n");
            let recipient = "alice+Work@example.test";
            let replies = client.deliver(&[recipient], message.as_bytes());
            match &replies[0] {
                reply if reply.contains("mailbox=\"Work\"") => counts.0 += 1,
                reply if reply.contains("mailbox=\"INBOX\"") => counts.1 += 1,
                reply if reply.starts_with("451") => counts.2 += 1,
                reply => panic!("{reply}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let there = |folder: &str| support::messages(&store.path(folder)).len();
    assert_eq!(there("elsewhere"), 0, "{counts:?}");
    assert_eq!(there("home/bob/Maildir/.Work"), counts.0, "{counts:?}");
    assert_eq!(there(folder), counts.1, "{counts:?}");
    assert!(counts.0 > 0 && counts.1 > 0, "{counts:?}");
}

/// How often a message is in files below `path`; no symlink is followed.
fn count_below(path: &Path) -> usize {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let counts = entries.map(|entry| match entry.file_type().unwrap() {
        kind if kind.is_dir() => count_below(&entry.path()),
        kind if kind.is_file() => {
            let text = fs::read(entry.path()).unwrap();
            String::from_utf8_lossy(&text)
                .matches("\nSubject: race ")
                .count()
        }
        _ => 0,
    });
    counts.sum()
}

/// Each part of the way, exchanged in one system call with a symlink that leads elsewhere, again and again.
#[test]
fn parts_of_the_way_that_are_exchanged() {
    if not_root() {
        return;
    }
    for (format, mailbox, part) in [
        (&MAILDIR, ".Work", ".Work"),
        (&MAILDIR, ".Work", ".Work/new"),
        (&MAILDIR, ".Work", ".Work/tmp"),
        (&NESTED, "Work/deep", "Work"),
        (&NESTED, "Work/deep", "Work/deep"),
        (&MBOX, "Work/deep", "Work"),
        (&MBOX, "Work/deep", "Work/deep"),
    ] {
        let store = Store::new();
        let root = match format.ours == MAILDIR.ours {
            true => "home/alice/Maildir",
            false => "home/alice/mail",
        };
        let (own, other) = (format!("{root}/{mailbox}"), format!("elsewhere/{mailbox}"));
        for root in [root, "elsewhere"] {
            store.scratch.dir(root, MAIL, MAIL, 0o700);
        }
        for place in [&own, &other] {
            let parent = Path::new(place).parent().unwrap().to_str().unwrap();
            store.scratch.dir(parent, MAIL, MAIL, 0o700);
            match format.ours == MBOX.ours {
                true => store.scratch.file(place, MAIL, MAIL, 0o600, ""),
                false => store.scratch.maildir(place, MAIL, MAIL, 0o700),
            };
        }
        if format.ours != MBOX.ours {
            store.scratch.maildir(root, MAIL, MAIL, 0o700);
        }
        let swap = format!("{root}/swap");
        link(&store, &format!("ROOT/elsewhere/{part}"), &swap);
        let config = format.configure(&store);
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        // Now and then it stays as it is for as long as a delivery takes: both states are met.
        let script = "import ctypes, sys, time\ncall = ctypes.CDLL(None).renameat2\n\
             a, b = (it.encode() for it in sys.argv[1:])\n\
             if call(-100, a, -100, b, 2) != 0: sys.exit('nothing is exchanged')\n\
             print('exchanged', flush=True)\nwhile True:\n  \
             for _ in range(101): call(-100, a, -100, b, 2)\n  time.sleep(0.002)";
        let mut racer = std::process::Command::new("python3");
        racer.args(["-c", script]);
        racer.args([store.path(root).join(part), store.path(&swap)]);
        let mut racer = racer.stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let out = racer.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut said).unwrap();
        assert_eq!(said, "exchanged\n", "{part}");
        let name = mailbox.trim_start_matches('.');
        let recipient = format!("alice+{name}@example.test");
        let (mut stored, mut deferred, mut wrong) = ([0, 0], 0, String::new());
        let mut client = server.client();
        for number in 0..races(300) {
            let message = format!("X: y\nSubject: race {number}\n\n");
            let reply = client.deliver(&[&recipient], message.as_bytes()).remove(0);
            match &reply {
                reply if reply.contains("mailbox=\"INBOX\"") => stored[1] += 1,
                reply if reply.starts_with("250 ") => stored[0] += 1,
                reply if reply.starts_with("451 ") => deferred += 1,
                reply => wrong.clone_from(reply),
            }
        }
        racer.kill().unwrap();
        racer.wait().unwrap();
        let case = format!("{} {part}: {stored:?} {deferred}", format.location);
        assert_eq!(wrong, "", "{case}");
        assert_eq!(count_below(&store.path("elsewhere")), 0, "{case}");
        let count = count_below(&store.path("home"));
        assert_eq!(count, stored[0] + stored[1], "{case}");
        // Met in both states; `tmp` stays open for a second.
        let is_met = deferred + stored[1] > 0 || part.ends_with("/tmp");
        assert!(stored[0] > 0 && is_met, "{case}");
    }
}
