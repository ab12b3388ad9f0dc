//! Dovecot's chapter "Filesystem Permissions", delivered by the real `postroom-lda` under real ids and hostile umasks.
//!
//! A row says what is there, who delivers where, and what is there afterwards: everything, with mode, owner and group. So
//! every row also says that nothing which was there has changed.

mod support;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use support::{
    Scratch, Server, Store, as_user, leftovers, not_root, program, run_with_input, tree,
};

/// The group of a team, and another one. Neither needs a name.
const TEAM: u32 = 7001;
const OTHERS: u32 = 7002;
/// Deliveries of u1 and u2, whose primary groups are their own.
const U1: u32 = 6001;
const U2: u32 = 6002;

const MESSAGE: &[u8] = b"Subject: permissions\n\ntext\n";

/// A private namespace at `{store}/mail`, nothing but modes decides.
const PRIVATE: &str = r#"
[namespace.inbox]
separator = "/"
inbox = true
mail_path = "{store}/mail"
[delivery]
on_missing = "create"
"#;

/// The same, and `Public/` at `{store}/pub`.
const PUBLIC: &str = r#"
[namespace.inbox]
separator = "/"
inbox = true
mail_path = "{store}/mail"
[namespace.public]
type = "public"
separator = "/"
prefix = "Public/"
mail_path = "{store}/pub"
[acl]
driver = "none"
[delivery]
on_missing = "create"
"#;

/// One row: what is there, what is done, what is new afterwards.
struct Row {
    what: &'static str,
    /// Lines as below.
    given: &'static [&'static str],
    config: &'static str,
    /// Settings for `-o`.
    with: &'static [&'static str],
    groups: &'static [u32],
    /// Deliveries one after the other: the user, `-m` or a detail or nothing, the exit code.
    deliveries: &'static [(&'static str, &'static str, i32)],
    /// Lines `d2770 6001:7001 path`, `-0660 6001:7001 path`; and for short `maildir 2770 6001:7001 path` (with cur, new
    /// and tmp), `inbox 2770 0660 6001:7001 path` (and a message in it), `folder …` (and a maildirfolder).
    made: &'static [&'static str],
    /// Words that the log must have.
    log: &'static str,
}

const ROW: Row = Row {
    what: "",
    given: &[],
    config: PRIVATE,
    with: &[],
    groups: &[],
    deliveries: &[("u1", "a", 0)],
    made: &[],
    log: "",
};

/// Every line that these stand for.
fn lines(short: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    for line in short {
        let words: Vec<&str> = line.split(' ').collect();
        let maildir = |mode: &str, ids: &str, path: &str| {
            ["", "/cur", "/new", "/tmp"].map(|part| format!("d{mode} {ids} {path}{part}"))
        };
        match words.as_slice() {
            ["maildir", mode, ids, path] => lines.extend(maildir(mode, ids, path)),
            [kind @ ("inbox" | "folder"), dir, file, ids, path] => {
                lines.extend(maildir(dir, ids, path));
                lines.push(format!("-{file} {ids} {path}/new/MESSAGE"));
                if *kind == "folder" {
                    lines.push(format!("-{file} {ids} {path}/maildirfolder"));
                }
            }
            [_, _, _] => lines.push((*line).to_owned()),
            _ => panic!("{line}"),
        }
    }
    lines
}

impl Row {
    /// Runs the row as a user and as root, under every umask.
    fn check(&self) {
        for (umask, root) in [
            ("0000", false),
            ("0027", true),
            ("0077", true),
            ("0777", false),
        ] {
            let scratch = Scratch::new();
            let given = lines(self.given);
            for line in &given {
                lay(&scratch, line);
            }
            self.configure(&scratch);
            let shown = format!("{} (umask {umask}, root {root})", self.what);
            for (user, mailbox, code) in self.deliveries {
                let before = tree(&scratch.path("store"));
                let (planned, _) = self.deliver(&scratch, user, mailbox, umask, root, true);
                let untouched = tree(&scratch.path("store"));
                assert_eq!(untouched, before, "a look changes nothing: {shown}");
                let (exit, log) = self.deliver(&scratch, user, mailbox, umask, root, false);
                assert_eq!(exit, *code, "{shown}: {log}");
                assert_eq!(planned, exit, "--dry-run must say what happens: {shown}");
                assert!(log.contains(self.log), "{shown}: {log}");
            }
            let mut want = given;
            want.extend(lines(self.made));
            want.sort_by_key(|line| line.rsplit(' ').next().map(str::to_owned));
            let mut got = tree(&scratch.path("store"));
            got.sort_by_key(|line| line.rsplit(' ').next().map(str::to_owned));
            assert_eq!(got, want, "{shown}");
            assert!(leftovers(&scratch.path("store")).is_empty(), "{shown}");
        }
    }

    fn configure(&self, scratch: &Scratch) {
        let (root, store) = (scratch.text(""), scratch.text("store"));
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        let extra = match groups.is_empty() {
            true => String::new(),
            false => format!("userdb_mail_access_groups={}", groups.join(",")),
        };
        let users = [("u1", U1), ("u2", U2)]
            .map(|(user, id)| format!("{user}@d.test::{id}:{id}::{store}/home/{user}::{extra}\n"));
        scratch.file("users", 0, 0, 0o644, &users.concat());
        let head = format!(
            "hostname = \"mx.example.test\"\n[[userdb]]\npasswd-file = {{ path = \"{root}/users\" }}\n"
        );
        let config = head + &self.config.replace("{store}", &store);
        scratch.file("postroom.toml", 0, 0, 0o644, &config);
    }

    fn deliver(
        &self,
        scratch: &Scratch,
        user: &str,
        mailbox: &str,
        umask: &str,
        root: bool,
        dry: bool,
    ) -> (i32, String) {
        let lda = program("postroom-lda");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "umask $0 && exec \"$@\"", umask]);
        command.arg(lda.get_program()).current_dir("/");
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("POSTROOM_LOG", "json");
        command.arg("-c").arg(scratch.path("postroom.toml"));
        for setting in self.with {
            command.args(["-o", setting]);
        }
        if dry {
            command.arg("--dry-run");
        }
        match mailbox {
            detail if detail.starts_with('+') => command.arg(format!("{user}{detail}@d.test")),
            "" => command.args(["-d", &format!("{user}@d.test")]),
            mailbox => command.args(["-d", &format!("{user}@d.test"), "-m", mailbox]),
        };
        if !root {
            let id = if user == "u1" { U1 } else { U2 };
            as_user(&mut command, id, id, self.groups);
        }
        let output = match dry {
            true => command.stdin(Stdio::null()).output().unwrap(),
            false => run_with_input(&mut command, MESSAGE),
        };
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap(), log)
    }
}

/// Lays down what a line says, below `store`.
fn lay(scratch: &Scratch, line: &str) {
    let (kind, rest) = line.split_at(1);
    let words: Vec<&str> = rest.split(' ').collect();
    let [mode, ids, path] = words.as_slice() else {
        panic!("{line}")
    };
    let mode = u32::from_str_radix(mode, 8).unwrap();
    let (owner, group) = ids.split_once(':').unwrap();
    let (owner, group) = (owner.parse().unwrap(), group.parse().unwrap());
    let path = format!("store/{path}");
    match kind {
        "d" => drop(scratch.dir(&path, owner, group, mode)),
        _ => drop(scratch.file(&path, owner, group, mode, "")),
    }
}

fn check(rows: &[Row]) {
    if !not_root() {
        rows.iter().for_each(Row::check);
    }
}

#[test]
fn a_new_mailbox_copies_the_root_directory() {
    check(&[
        Row {
            what: "setgid root of a group that we are in",
            given: &["d2770 0:7001 mail"],
            groups: &[TEAM],
            made: &["folder 2770 0660 6001:7001 mail/.a"],
            ..ROW
        },
        Row {
            what: "setgid root of a group that we are not in: the kernel gives the group",
            given: &["d2770 6001:7001 mail"],
            made: &["folder 2770 0660 6001:7001 mail/.a"],
            ..ROW
        },
        Row {
            what: "group preserved without setgid, by a member",
            given: &["d0770 0:7001 mail"],
            groups: &[TEAM],
            made: &["folder 0770 0660 6001:7001 mail/.a"],
            ..ROW
        },
        Row {
            what: "a group that gives nothing more than the world has is not preserved",
            given: &["d0755 6001:7001 mail"],
            made: &["folder 0755 0644 6001:6001 mail/.a"],
            ..ROW
        },
        Row {
            what: "the same for a member",
            given: &["d0777 0:7001 mail"],
            groups: &[TEAM],
            made: &["folder 0777 0666 6001:6001 mail/.a"],
            ..ROW
        },
        Row {
            what: "private",
            given: &["d0700 6001:6001 mail"],
            made: &["folder 0700 0600 6001:6001 mail/.a"],
            ..ROW
        },
        Row {
            what: "the document's drwx--xr-x",
            given: &["d0715 6001:6001 mail"],
            made: &["folder 0715 0604 6001:6001 mail/.a"],
            ..ROW
        },
        Row {
            what: "readable by a group",
            given: &["d0750 6001:7001 mail"],
            groups: &[OTHERS, TEAM],
            made: &["folder 0750 0640 6001:7001 mail/.a"],
            ..ROW
        },
        Row {
            what: "writable by a group, readable by all",
            given: &["d2775 0:7001 mail"],
            groups: &[TEAM],
            made: &["folder 2775 0664 6001:7001 mail/.a"],
            ..ROW
        },
        Row {
            what: "the sticky bit is the root's own",
            given: &["d3770 0:7001 mail"],
            groups: &[TEAM],
            made: &["folder 2770 0660 6001:7001 mail/.a"],
            ..ROW
        },
        Row {
            what: "the owner can always use what is made",
            given: &["d0070 0:7001 mail"],
            groups: &[TEAM],
            made: &["folder 0770 0660 6001:7001 mail/.a"],
            ..ROW
        },
        Row {
            what: "execute bits are for directories",
            given: &["d0711 6001:6001 mail"],
            made: &["folder 0711 0600 6001:6001 mail/.a"],
            ..ROW
        },
        Row {
            what: "auto = create, without on_missing = create",
            given: &["d2750 6001:7001 mail"],
            config: "[namespace.inbox]\ninbox = true\nmail_path = \"{store}/mail\"\n\
                     [namespace.inbox.mailbox.Spam]\nauto = \"create\"\n",
            deliveries: &[("u1", "Spam", 0), ("u1", "Spam", 0)],
            made: &[
                "folder 2750 0640 6001:7001 mail/.Spam",
                "-0640 6001:7001 mail/.Spam/new/MESSAGE",
            ],
            ..ROW
        },
        Row {
            what: "in a public namespace, verified",
            given: &["d2770 0:7001 pub"],
            config: PUBLIC,
            groups: &[TEAM],
            deliveries: &[("u1", "Public/a", 0)],
            made: &["folder 2770 0660 6001:7001 pub/.a"],
            ..ROW
        },
    ]);
}

#[test]
fn a_group_that_cannot_be_had_makes_no_mailbox() {
    check(&[
        Row {
            what: "a private root of a group that we are not in",
            given: &["d0775 6001:7001 mail"],
            deliveries: &[("u1", "a", 75)],
            log: "7001",
            ..ROW
        },
        Row {
            what: "a public root of a group that we are not in",
            given: &["d0775 6001:7001 pub"],
            config: PUBLIC,
            deliveries: &[("u1", "Public/a/b/c", 75)],
            log: "7001",
            ..ROW
        },
        Row {
            what: "nested: no level of it stays",
            given: &["d0770 6001:7001 pub"],
            config: PUBLIC,
            with: &["namespace.public.mailbox_list_layout=fs"],
            deliveries: &[("u1", "Public/a/b/c", 75)],
            log: "7001",
            ..ROW
        },
        Row {
            what: "one that a stranger names fills no queue",
            given: &["maildir 0775 6001:7001 mail"],
            deliveries: &[("u1", "+a", 0)],
            made: &["-0664 6001:6001 mail/new/MESSAGE"],
            log: "cannot be had",
            ..ROW
        },
        Row {
            what: "the missing tmp of an existing mailbox is not made with a wrong group",
            given: &[
                "d0700 6001:6001 mail",
                "d0755 6001:6001 pub",
                "d0770 6001:7001 pub/.a",
                "d0770 6001:7001 pub/.a/cur",
                "d0770 6001:7001 pub/.a/new",
            ],
            config: PUBLIC,
            deliveries: &[("u1", "Public/a", 75)],
            log: "7001",
            ..ROW
        },
        Row {
            what: "nor in a private one",
            given: &[
                "d0700 6001:6001 mail",
                "d0770 6001:7001 mail/.a",
                "d0770 6001:7001 mail/.a/cur",
                "d0770 6001:7001 mail/.a/new",
            ],
            deliveries: &[("u1", "a", 75)],
            log: "7001",
            ..ROW
        },
    ]);
}

#[test]
fn a_new_file_copies_the_directory_of_its_mailbox() {
    check(&[
        Row {
            what: "the document's .foo/",
            given: &["d0700 6001:6001 mail", "maildir 0715 6001:6001 mail/.a"],
            made: &["-0604 6001:6001 mail/.a/new/MESSAGE"],
            ..ROW
        },
        Row {
            what: "wider than the root",
            given: &["d0700 6001:6001 mail", "maildir 0777 6001:6001 mail/.a"],
            made: &["-0666 6001:6001 mail/.a/new/MESSAGE"],
            ..ROW
        },
        Row {
            what: "setgid, not in the group",
            given: &["d0700 6001:6001 mail", "maildir 2770 6001:7001 mail/.a"],
            made: &["-0660 6001:7001 mail/.a/new/MESSAGE"],
            ..ROW
        },
        Row {
            what: "of another owner, writable by our group",
            given: &["d0755 0:0 pub", "maildir 2770 6002:7001 pub/.a"],
            config: PUBLIC,
            groups: &[TEAM],
            deliveries: &[("u1", "Public/a", 0)],
            made: &["-0660 6001:7001 pub/.a/new/MESSAGE"],
            ..ROW
        },
        Row {
            what: "without setgid the member gives the group away himself",
            given: &["d0755 0:0 pub", "maildir 0770 6002:7001 pub/.a"],
            config: PUBLIC,
            groups: &[TEAM],
            deliveries: &[("u1", "Public/a", 0)],
            made: &["-0660 6001:7001 pub/.a/new/MESSAGE"],
            ..ROW
        },
        Row {
            what: "setgid on tmp alone is enough",
            given: &[
                "d0755 0:0 pub",
                "d0770 6001:7001 pub/.a",
                "d0770 6001:7001 pub/.a/cur",
                "d0770 6001:7001 pub/.a/new",
                "d2770 6001:7001 pub/.a/tmp",
            ],
            config: PUBLIC,
            deliveries: &[("u1", "Public/a", 0)],
            made: &["-0660 6001:7001 pub/.a/new/MESSAGE"],
            ..ROW
        },
        Row {
            what: "the modes of cur, new and tmp do not count",
            given: &[
                "d0700 6001:6001 mail",
                "d2750 6001:7001 mail/.a",
                "d0700 6001:6001 mail/.a/cur",
                "d0700 6001:6001 mail/.a/new",
                "d0700 6001:6001 mail/.a/tmp",
            ],
            groups: &[TEAM],
            made: &["-0640 6001:7001 mail/.a/new/MESSAGE"],
            ..ROW
        },
        Row {
            what: "a missing tmp is made like the mailbox",
            given: &[
                "d0700 6001:6001 mail",
                "d2770 6001:7001 mail/.a",
                "d2770 6001:7001 mail/.a/cur",
                "d2770 6001:7001 mail/.a/new",
            ],
            made: &[
                "d2770 6001:7001 mail/.a/tmp",
                "-0660 6001:7001 mail/.a/new/MESSAGE",
            ],
            ..ROW
        },
        Row {
            what: "the INBOX, which is the root",
            given: &["maildir 2750 6001:7001 mail"],
            deliveries: &[("u1", "", 0)],
            made: &["-0640 6001:7001 mail/new/MESSAGE"],
            ..ROW
        },
        Row {
            what: "an INBOX whose root is there and empty",
            given: &["d2750 6001:7001 mail"],
            deliveries: &[("u1", "", 0)],
            made: &[
                "d2750 6001:7001 mail/cur",
                "d2750 6001:7001 mail/new",
                "d2750 6001:7001 mail/tmp",
                "-0640 6001:7001 mail/new/MESSAGE",
            ],
            ..ROW
        },
    ]);
}

#[test]
fn a_file_with_a_wrong_group_is_refused_or_told() {
    const FOREIGN: &[&str] = &[
        "d0755 0:0 pub",
        "maildir 0770 6001:7001 pub/.a",
        "d0700 6001:6001 mail",
        "maildir 0770 6001:7001 mail/.a",
    ];
    const TMP_NOT_SETGID: &[&str] = &[
        "d0755 0:0 pub",
        "d2770 6001:7001 pub/.a",
        "d2770 6001:7001 pub/.a/cur",
        "d2770 6001:7001 pub/.a/new",
        "d0770 6001:6001 pub/.a/tmp",
    ];
    check(&[
        Row {
            what: "public: verified",
            given: FOREIGN,
            config: PUBLIC,
            deliveries: &[("u1", "Public/a", 75)],
            log: "chgrp 7001",
            ..ROW
        },
        Row {
            what: "private: best effort",
            given: FOREIGN,
            config: PUBLIC,
            made: &["-0660 6001:6001 mail/.a/new/MESSAGE"],
            log: "asks for 0660 and 7001",
            ..ROW
        },
        Row {
            what: "private, verified on demand",
            given: FOREIGN,
            config: PUBLIC,
            with: &["delivery.permissions=verified"],
            deliveries: &[("u1", "a", 75)],
            log: "chgrp 7001",
            ..ROW
        },
        Row {
            what: "public, best effort on demand",
            given: FOREIGN,
            config: PUBLIC,
            with: &["delivery.permissions=best-effort"],
            deliveries: &[("u1", "Public/a", 0)],
            made: &["-0660 6001:6001 pub/.a/new/MESSAGE"],
            log: "asks for 0660 and 7001",
            ..ROW
        },
        Row {
            what: "only tmp has lost its setgid bit",
            given: TMP_NOT_SETGID,
            config: PUBLIC,
            deliveries: &[("u1", "Public/a", 75)],
            log: "chmod g+s",
            ..ROW
        },
        Row {
            what: "only tmp has lost its setgid bit, and we are in the group",
            given: TMP_NOT_SETGID,
            config: PUBLIC,
            groups: &[TEAM],
            deliveries: &[("u1", "Public/a", 0)],
            made: &["-0660 6001:7001 pub/.a/new/MESSAGE"],
            ..ROW
        },
    ]);
}

#[test]
fn a_new_inbox_in_a_home() {
    const HOME: &str = "[namespace.inbox]\ninbox = true\nmail_path = \"~/Maildir\"\n";
    const HOME_BY_NAME: &str = "[namespace.inbox]\ninbox = true\nmail_path = \"%{home}/Maildir\"\n";
    const TO_INBOX: &[(&str, &str, i32)] = &[("u1", "", 0)];
    check(&[
        Row {
            what: "homes below a setgid directory copy it",
            given: &["d2775 0:7001 home"],
            config: HOME,
            groups: &[TEAM],
            deliveries: &[("u1", "", 0), ("u2", "", 0)],
            made: &[
                "d2775 6001:7001 home/u1",
                "inbox 2775 0664 6001:7001 home/u1/Maildir",
                "d2775 6002:7001 home/u2",
                "inbox 2775 0664 6002:7001 home/u2/Maildir",
            ],
            ..ROW
        },
        Row {
            what: "%{home} is ~",
            given: &["d2770 0:7001 home"],
            config: HOME_BY_NAME,
            groups: &[TEAM],
            deliveries: TO_INBOX,
            made: &[
                "d2770 6001:7001 home/u1",
                "inbox 2770 0660 6001:7001 home/u1/Maildir",
            ],
            ..ROW
        },
        Row {
            what: "without setgid nothing is copied",
            given: &["d0777 0:0 home"],
            config: HOME,
            groups: &[TEAM],
            deliveries: TO_INBOX,
            made: &[
                "d0700 6001:6001 home/u1",
                "inbox 0700 0600 6001:6001 home/u1/Maildir",
            ],
            ..ROW
        },
        Row {
            what: "a home that is there",
            given: &["d0755 0:0 home", "d0755 6001:6001 home/u1"],
            config: HOME,
            deliveries: TO_INBOX,
            made: &["inbox 0700 0600 6001:6001 home/u1/Maildir"],
            ..ROW
        },
        Row {
            what: "a setgid home that is there: the first existing parent",
            given: &["d0755 0:0 home", "d2750 6001:7001 home/u1"],
            config: HOME,
            deliveries: TO_INBOX,
            made: &["inbox 2750 0640 6001:7001 home/u1/Maildir"],
            ..ROW
        },
        Row {
            what: "only the first existing parent counts",
            given: &["d2775 0:7001 home", "d0700 6001:6001 home/u1"],
            config: HOME,
            groups: &[TEAM],
            deliveries: TO_INBOX,
            made: &["inbox 0700 0600 6001:6001 home/u1/Maildir"],
            ..ROW
        },
        Row {
            what: "a home that cannot be made",
            given: &["d0755 0:0 home"],
            config: HOME,
            deliveries: &[("u1", "", 75)],
            log: "home",
            ..ROW
        },
    ]);
}

#[test]
fn new_domain_and_user_directories() {
    const VMAIL: &str = "[namespace.inbox]\ninbox = true\n\
        mail_path = \"{store}/vmail/%{user | domain}/%{user | username}/Maildir\"\n";
    check(&[
        Row {
            what: "the domain is the group's, the user's directories are his",
            given: &["d2770 0:7001 vmail"],
            config: VMAIL,
            groups: &[TEAM],
            deliveries: &[("u1", "", 0), ("u2", "", 0)],
            made: &[
                "d2770 6001:7001 vmail/d.test",
                "d2700 6001:6001 vmail/d.test/u1",
                "inbox 2700 0600 6001:6001 vmail/d.test/u1/Maildir",
                "d2700 6002:6002 vmail/d.test/u2",
                "inbox 2700 0600 6002:6002 vmail/d.test/u2/Maildir",
            ],
            ..ROW
        },
        Row {
            what: "the document's drwxrwsr-x",
            given: &["d2775 0:7001 vmail"],
            config: VMAIL,
            groups: &[TEAM],
            deliveries: &[("u1", "", 0)],
            made: &[
                "d2775 6001:7001 vmail/d.test",
                "d2700 6001:6001 vmail/d.test/u1",
                "inbox 2700 0600 6001:6001 vmail/d.test/u1/Maildir",
            ],
            ..ROW
        },
        Row {
            what: "03770 for extra security",
            given: &["d3770 0:7001 vmail"],
            config: VMAIL,
            groups: &[TEAM],
            deliveries: &[("u1", "", 0), ("u2", "", 0)],
            made: &[
                "d3770 6001:7001 vmail/d.test",
                "d2700 6001:6001 vmail/d.test/u1",
                "inbox 2700 0600 6001:6001 vmail/d.test/u1/Maildir",
                "d2700 6002:6002 vmail/d.test/u2",
                "inbox 2700 0600 6002:6002 vmail/d.test/u2/Maildir",
            ],
            ..ROW
        },
        Row {
            what: "without setgid the first user of the domain locks the second one out",
            given: &["d0777 0:0 vmail"],
            config: VMAIL,
            groups: &[TEAM],
            deliveries: &[("u1", "", 0), ("u2", "", 75)],
            made: &[
                "d0700 6001:6001 vmail/d.test",
                "d0700 6001:6001 vmail/d.test/u1",
                "inbox 0700 0600 6001:6001 vmail/d.test/u1/Maildir",
            ],
            ..ROW
        },
        Row {
            what: "a domain that is there",
            given: &["d0755 0:0 vmail", "d2770 0:7001 vmail/d.test"],
            config: VMAIL,
            groups: &[TEAM],
            deliveries: &[("u1", "", 0)],
            made: &[
                "d2700 6001:6001 vmail/d.test/u1",
                "inbox 2700 0600 6001:6001 vmail/d.test/u1/Maildir",
            ],
            ..ROW
        },
        Row {
            what: "a further variable behind ~: this rule, not that of homes",
            given: &["d0755 0:0 home", "d2770 6001:7001 home/u1"],
            config: "[namespace.inbox]\ninbox = true\nmail_path = \"~/%{user | domain}/Maildir\"\n",
            deliveries: &[("u1", "", 0)],
            made: &[
                "d2700 6001:6001 home/u1/d.test",
                "inbox 2700 0600 6001:6001 home/u1/d.test/Maildir",
            ],
            ..ROW
        },
    ]);
}

#[test]
fn where_a_nested_mailbox_copies_from() {
    const FS: &str = "namespace.inbox.mailbox_list_layout=fs";
    const PARENT: &str = "delivery.new_mailbox_permissions=parent";
    const FOO: &[&str] = &["d0715 6001:6001 mail", "maildir 0777 6001:6001 mail/foo"];
    const DOT_FOO: &[&str] = &["d0715 6001:6001 mail", "maildir 0777 6001:6001 mail/.foo"];
    const BAR: &[(&str, &str, i32)] = &[("u1", "foo/bar", 0)];
    check(&[
        Row {
            what: "from the root, as the documents have it",
            given: FOO,
            with: &[FS],
            deliveries: BAR,
            made: &["inbox 0715 0604 6001:6001 mail/foo/bar"],
            ..ROW
        },
        Row {
            what: "from the parent, as Dovecot does it",
            given: FOO,
            with: &[FS, PARENT],
            deliveries: BAR,
            made: &["inbox 0777 0666 6001:6001 mail/foo/bar"],
            ..ROW
        },
        Row {
            what: "Maildir++, from the root",
            given: DOT_FOO,
            deliveries: BAR,
            made: &["folder 0715 0604 6001:6001 mail/.foo.bar"],
            ..ROW
        },
        Row {
            what: "Maildir++, from the parent",
            given: DOT_FOO,
            with: &[PARENT],
            deliveries: BAR,
            made: &["folder 0777 0666 6001:6001 mail/.foo.bar"],
            ..ROW
        },
        Row {
            what: "levels in between are made alike",
            given: &["d0715 6001:6001 mail"],
            with: &[FS],
            deliveries: &[("u1", "top/mid/sub", 0)],
            made: &[
                "d0715 6001:6001 mail/top",
                "d0715 6001:6001 mail/top/mid",
                "inbox 0715 0604 6001:6001 mail/top/mid/sub",
            ],
            ..ROW
        },
        Row {
            what: "levels in between, with the parent's permissions",
            given: &["d2770 0:7001 mail", "maildir 2750 6001:7001 mail/foo"],
            with: &[FS, PARENT],
            groups: &[TEAM],
            deliveries: &[("u1", "foo/mid/sub", 0)],
            made: &[
                "d2750 6001:7001 mail/foo/mid",
                "inbox 2750 0640 6001:7001 mail/foo/mid/sub",
            ],
            ..ROW
        },
        Row {
            what: "a directory that becomes a mailbox keeps its permissions, and its parts get them",
            given: &["d0711 6001:6001 pub", "d2770 6001:7001 pub/foo"],
            config: PUBLIC,
            with: &["namespace.public.mailbox_list_layout=fs"],
            deliveries: &[("u1", "Public/foo", 0)],
            made: &[
                "d2770 6001:7001 pub/foo/cur",
                "d2770 6001:7001 pub/foo/new",
                "d2770 6001:7001 pub/foo/tmp",
                "-0660 6001:7001 pub/foo/new/MESSAGE",
            ],
            ..ROW
        },
    ]);
}

#[test]
fn a_new_mailbox_is_never_wider_than_its_parent() {
    const REJECT: &str = "delivery.on_denied=reject";
    const BAR: &[(&str, &str, i32)] = &[("u1", "foo/bar", 77)];
    check(&[
        Row {
            what: "a private parent under an open root",
            given: &["d0770 6001:6001 mail", "maildir 0700 6001:6001 mail/.foo"],
            with: &[REJECT],
            deliveries: BAR,
            log: "wider",
            ..ROW
        },
        Row {
            what: "then INBOX, where that is the rule",
            given: &[
                "maildir 0755 6001:6001 mail",
                "maildir 0750 6001:6001 mail/.foo",
            ],
            deliveries: &[("u1", "foo/bar", 0)],
            made: &["-0644 6001:6001 mail/new/MESSAGE"],
            log: "wider",
            ..ROW
        },
        Row {
            what: "the parent of a parent",
            given: &["d0755 6001:6001 mail", "maildir 0700 6001:6001 mail/.foo"],
            with: &[REJECT],
            deliveries: &[("u1", "foo/mid/bar", 77)],
            log: "wider",
            ..ROW
        },
        Row {
            what: "nested directories",
            given: &["d0755 6001:6001 mail", "d0700 6001:6001 mail/foo"],
            with: &[REJECT, "namespace.inbox.mailbox_list_layout=fs"],
            deliveries: BAR,
            log: "wider",
            ..ROW
        },
        Row {
            what: "open to another group than its parent",
            given: &["d2770 0:7001 mail", "maildir 2770 6001:7002 mail/.foo"],
            with: &[REJECT],
            groups: &[TEAM, OTHERS],
            deliveries: BAR,
            log: "wider",
            ..ROW
        },
        Row {
            what: "another group that the parent lets in as part of the world",
            given: &["d2755 6001:7001 mail", "maildir 2755 6001:7002 mail/.foo"],
            groups: &[TEAM, OTHERS],
            deliveries: &[("u1", "foo/bar", 0)],
            made: &["folder 2755 0644 6001:7001 mail/.foo.bar"],
            ..ROW
        },
    ]);
}

#[test]
fn no_write_permission_on_a_root_means_no_new_mailboxes() {
    const GIVEN: &[&str] = &[
        "maildir 0700 6001:6001 mail",
        "d0755 0:0 pub",
        "maildir 2770 0:7001 pub/.info",
    ];
    check(&[
        Row {
            what: "the mail goes to INBOX",
            given: GIVEN,
            config: PUBLIC,
            groups: &[TEAM],
            deliveries: &[("u1", "Public/new", 0)],
            made: &["-0600 6001:6001 mail/new/MESSAGE"],
            log: "Permission denied",
            ..ROW
        },
        Row {
            what: "or is refused",
            given: GIVEN,
            config: PUBLIC,
            with: &["delivery.on_denied=reject"],
            groups: &[TEAM],
            deliveries: &[("u1", "Public/new", 77), ("u1", "Public/info/new", 77)],
            log: "Permission denied",
            ..ROW
        },
        Row {
            what: "mailboxes that are there take mail",
            given: GIVEN,
            config: PUBLIC,
            groups: &[TEAM],
            deliveries: &[("u1", "Public/info", 0)],
            made: &["-0660 6001:7001 pub/.info/new/MESSAGE"],
            ..ROW
        },
        Row {
            what: "an existing mailbox that is closed to us defers",
            given: &["d0755 0:0 pub", "maildir 2750 6002:7001 pub/.info"],
            config: PUBLIC,
            groups: &[TEAM],
            deliveries: &[("u1", "Public/info", 75)],
            log: "Permission denied",
            ..ROW
        },
    ]);
}

/// Copies are links where mode and group are to be the same, and files of their own elsewhere.
#[test]
fn copies_are_links_only_where_the_permissions_agree() {
    if not_root() {
        return;
    }
    for (setting, want) in [
        (
            "delivery.recipient_headers=single",
            &[3, 3, 3, 2, 2, 1, 1][..],
        ),
        ("delivery.recipient_headers=each", &[1; 7][..]),
    ] {
        let scratch = Scratch::new();
        let folders = [
            ("a", "maildir 0700 6001:6001 mail/.a"),
            ("b", "maildir 0700 6001:6001 mail/.b"),
            ("c", "maildir 0700 6001:6001 mail/.c"),
            ("d", "maildir 2770 6001:7001 mail/.d"),
            ("e", "maildir 0770 6001:7001 mail/.e"),
            ("f", "maildir 2770 6001:7002 mail/.f"),
            ("g", "maildir 0750 6001:7001 mail/.g"),
        ];
        lay(&scratch, "d0700 6001:6001 mail");
        let given = folders.map(|(_, line)| line);
        lines(&given).iter().for_each(|line| lay(&scratch, line));
        let row = Row {
            groups: &[TEAM, OTHERS],
            ..ROW
        };
        row.configure(&scratch);
        let mut command = program("postroom-lda");
        command
            .arg("-c")
            .arg(scratch.path("postroom.toml"))
            .args(["-o", setting]);
        command.args(folders.map(|(name, _)| format!("u1+{name}@d.test")));
        as_user(&mut command, U1, U1, &[TEAM, OTHERS]);
        let output = run_with_input(&mut command, MESSAGE);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let stored = |name: &str| {
            let maildir = scratch.path(&format!("store/mail/.{name}"));
            let (path, bytes) = support::messages(&maildir).remove(0);
            assert_eq!(bytes, MESSAGE);
            fs::metadata(path).unwrap()
        };
        let found = folders.map(|(name, _)| stored(name));
        let modes: Vec<_> = found
            .iter()
            .map(|it| (it.mode() & 0o7777, it.gid()))
            .collect();
        let expected = [
            (0o600, U1),
            (0o600, U1),
            (0o600, U1),
            (0o660, TEAM),
            (0o660, TEAM),
            (0o660, OTHERS),
            (0o640, TEAM),
        ];
        assert_eq!(modes, expected, "{setting}");
        let links: Vec<u64> = found.iter().map(MetadataExt::nlink).collect();
        assert_eq!(links, want, "{setting}");
        let mut inodes: HashMap<u64, u64> = HashMap::new();
        found
            .iter()
            .for_each(|it| *inodes.entry(it.ino()).or_default() += 1);
        assert!(found.iter().all(|it| inodes[&it.ino()] == it.nlink()));
        assert!(leftovers(&scratch.path("store")).is_empty());
    }
}

/// The same truth over LMTP, told at RCPT.
#[test]
fn lmtp_refuses_at_rcpt_what_would_come_out_wrong() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let mailbox = store
        .scratch
        .maildir("public/.team", support::MAIL, TEAM, 0o770);
    store.scratch.file(
        "public/.team/dovecot-acl",
        support::MAIL,
        TEAM,
        0o660,
        "anyone lrwip\n",
    );
    let config = store.configure("", "");
    for (groups, want, stored) in [(&[][..], "451 4.3.0 ", 0), (&[TEAM][..], "250 2.0.0 ", 1)] {
        let before = tree(&mailbox);
        let (socket, log) = (store.path("run/lmtp"), store.path("run/log"));
        let server = Server::start_as(&config, &socket, &log, groups);
        let replies = server
            .client()
            .deliver(&["alice+Public/team@d.test"], MESSAGE);
        assert!(replies[0].starts_with(want), "{replies:?}");
        assert!(
            !replies[0].contains("7001") && !replies[0].contains("chgrp"),
            "a sender learns no more: {replies:?}"
        );
        assert_eq!(support::messages(&mailbox).len(), stored);
        if stored == 0 {
            assert_eq!(tree(&mailbox), before);
            assert!(server.log().contains("chgrp 7001"), "{}", server.log());
        } else {
            let file = fs::metadata(&support::messages(&mailbox)[0].0).unwrap();
            assert_eq!(
                (file.mode() & 0o7777, file.uid(), file.gid()),
                (0o660, support::MAIL, TEAM)
            );
        }
    }
}
