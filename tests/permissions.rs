//! Dovecot's chapter "Filesystem Permissions", delivered by the real `postroom-lda` under real ids and hostile umasks.
//!
//! The tables lie in `permissions/`. A row is a title and, below it:
//!
//! | line | what it says |
//! |---|---|
//! | `has d2770 0:7001 mail` | this is there: mode, owner, group, path |
//! | `in 7001 7002` | who delivers is in these groups too |
//! | `set KEY=VALUE` | a setting |
//! | `u1 a: 0` | a delivery to mailbox `a` of u1 and its exit code; `u1 +a` by a detail, `u1 INBOX` by nothing |
//! | `made -0660 6001:7001 mail/.a/new/MESSAGE` | this is there afterwards, and nothing else, and what was there has not changed |
//! | `log words` | the log says so |
//!
//! `maildir 2770 6001:7001 path` stands for a directory with cur, new and tmp, `inbox 2770 0660 6001:7001 path` for one with a
//! message in it, `folder …` for one with a message and a maildirfolder.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use support::{
    Scratch, Server, Store, as_user, assert_lists_fit, not_root, program, run_with_input, tree,
    unfinished,
};

/// u1 and u2 have groups of their own.
const U1: u32 = 6001;
const U2: u32 = 6002;
/// Groups that need no name.
const TEAM: u32 = 7001;
const OTHERS: u32 = 7002;

const MESSAGE: &[u8] = b"Subject: permissions\n\ntext\n";

/// A private root at `{store}/mail`, a public one at `{store}/pub`; modes alone decide.
const STORE: &str = r#"
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

#[derive(Default)]
struct Row {
    title: String,
    config: String,
    has: Vec<String>,
    groups: Vec<u32>,
    settings: Vec<String>,
    /// User, mailbox, exit code.
    deliveries: Vec<(String, String, i32)>,
    made: Vec<String>,
    log: String,
}

/// Runs every row of a table, as a user and as root, under every umask.
fn check(config: &str, table: &str) {
    if not_root() {
        return;
    }
    let rows = rows(config, table);
    assert!(!rows.is_empty());
    for row in rows {
        for (umask, root) in [
            ("0000", false),
            ("0027", true),
            ("0077", true),
            ("0777", false),
        ] {
            row.run(umask, root);
        }
    }
}

fn rows(config: &str, table: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for line in table.lines().filter(|line| !line.trim().is_empty()) {
        if !line.starts_with("    ") {
            let (title, config) = (line.to_owned(), config.to_owned());
            rows.push(Row {
                title,
                config,
                ..Row::default()
            });
            continue;
        }
        let row = rows.last_mut().unwrap();
        let (word, rest) = line.trim().split_once(' ').unwrap();
        let rest = rest.trim_start();
        match word {
            "has" => row.has.extend(expanded(rest)),
            "made" => row.made.extend(expanded(rest)),
            "in" => row.groups = rest.split(' ').map(|gid| gid.parse().unwrap()).collect(),
            "set" => row.settings.push(rest.into()),
            "log" => row.log = rest.into(),
            user => {
                let (mailbox, code) = rest.split_once(": ").unwrap();
                row.deliveries
                    .push((user.into(), mailbox.into(), code.parse().unwrap()));
            }
        }
    }
    rows
}

/// Every line that this one stands for.
fn expanded(line: &str) -> Vec<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let maildir = |mode: &str, ids: &str, path: &str| {
        ["", "/cur", "/new", "/tmp"]
            .map(|part| format!("d{mode} {ids} {path}{part}"))
            .to_vec()
    };
    let mut lines = match words.as_slice() {
        ["maildir", mode, ids, path] => return maildir(mode, ids, path),
        ["inbox" | "folder", mode, _, ids, path] => maildir(mode, ids, path),
        [_, _, _] => return vec![line.into()],
        _ => panic!("{line}"),
    };
    let (file, ids, path) = (words[2], words[3], words[4]);
    lines.push(format!("-{file} {ids} {path}/new/MESSAGE"));
    if words[0] == "folder" {
        lines.push(format!("-{file} {ids} {path}/maildirfolder"));
    }
    lines
}

impl Row {
    fn run(&self, umask: &str, root: bool) {
        let scratch = Scratch::new();
        self.lay_out(&scratch);
        let shown = format!("{} (umask {umask}, root {root})", self.title);
        for (user, mailbox, code) in &self.deliveries {
            let before = tree(&scratch.path("store"));
            let deliver = |dry| self.deliver(&scratch, (user, mailbox), umask, root, dry);
            let (planned, _) = deliver(true);
            assert_eq!(tree(&scratch.path("store")), before, "a look: {shown}");
            let (exit, log) = deliver(false);
            assert_eq!(exit, *code, "{shown}: {log}");
            assert_eq!(planned, exit, "--dry-run says what happens: {shown}");
            assert!(log.contains(&self.log), "{shown}: {log}");
        }
        self.compare(&scratch, &shown);
    }

    /// By the server that root has started: a process for each of the users.
    fn run_served(&self) {
        let scratch = Scratch::new();
        self.lay_out(&scratch);
        scratch.dir("run", 0, 0, 0o755);
        let (config, socket) = (scratch.path("postroom.toml"), scratch.path("run/lmtp"));
        let listen = format!("[lmtp]\nlisten = [{{ unix = \"{}\" }}]\n", socket.display());
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("{text}{listen}")).unwrap();
        let server = Server::start_as_root(&config, &socket, &scratch.path("run/log"));
        for (user, _, code) in &self.deliveries {
            let address = format!("{user}@d.test");
            let reply = server.client().deliver(&[&address], MESSAGE).remove(0);
            let want = if *code == 0 { "250" } else { "451" };
            assert!(reply.starts_with(want), "{}: {reply}", self.title);
        }
        assert!(
            server.log().contains(&self.log),
            "{}: {}",
            self.title,
            server.log()
        );
        self.compare(&scratch, &self.title);
    }

    fn compare(&self, scratch: &Scratch, shown: &str) {
        let by_path = |line: &String| line.rsplit(' ').next().map(str::to_owned);
        let mut want = [&self.has[..], &self.made[..]].concat();
        want.sort_by_key(by_path);
        let mut got = tree(&scratch.path("store"));
        got.sort_by_key(by_path);
        assert_eq!(got, want, "{shown}");
        assert_lists_fit(&scratch.path("store"));
        assert!(unfinished(&scratch.path("store")).is_empty(), "{shown}");
    }

    fn lay_out(&self, scratch: &Scratch) {
        self.has.iter().for_each(|line| lay(scratch, line));
        let (root, store) = (scratch.text(""), scratch.text("store"));
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        let extra = match groups.is_empty() {
            true => String::new(),
            false => format!("userdb_mail_access_groups={}", groups.join(",")),
        };
        let users = [("u1", U1), ("u2", U2)]
            .map(|(user, id)| format!("{user}@d.test::{id}:{id}::{store}/home/{user}::{extra}\n"));
        scratch.file("users", 0, 0, 0o644, &users.concat());
        let userdb = format!("[[userdb]]\npasswd-file = {{ path = \"{root}/users\" }}\n");
        let config = self.config.replace("{store}", &store);
        let (top, tables) = config.split_at(config.find('[').unwrap());
        let config = format!("{top}{userdb}{tables}");
        scratch.file("postroom.toml", 0, 0, 0o644, &config);
    }

    /// The exit code and the log.
    fn deliver(
        &self,
        scratch: &Scratch,
        (user, mailbox): (&str, &str),
        umask: &str,
        root: bool,
        dry: bool,
    ) -> (i32, String) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "umask $0 && exec \"$@\"", umask]);
        command.arg(program("postroom-lda").get_program());
        command.current_dir("/").env_clear();
        command
            .env("PATH", "/usr/bin:/bin")
            .env("POSTROOM_LOG", "json");
        command.arg("-c").arg(scratch.path("postroom.toml"));
        for setting in &self.settings {
            command.args(["-o", setting]);
        }
        if dry {
            command.arg("--dry-run");
        }
        match mailbox {
            "INBOX" => command.args(["-d", &format!("{user}@d.test")]),
            detail if detail.starts_with('+') => command.arg(format!("{user}{detail}@d.test")),
            name => command.args(["-d", &format!("{user}@d.test"), "-m", name]),
        };
        if !root {
            let id = if user == "u1" { U1 } else { U2 };
            as_user(&mut command, id, id, &self.groups);
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
    let words: Vec<&str> = line[1..].split(' ').collect();
    let [mode, ids, path] = words.as_slice() else {
        panic!("{line}")
    };
    let mode = u32::from_str_radix(mode, 8).unwrap();
    let (owner, group) = ids.split_once(':').unwrap();
    let (owner, group) = (owner.parse().unwrap(), group.parse().unwrap());
    let path = format!("store/{path}");
    match line.starts_with('d') {
        true => drop(scratch.dir(&path, owner, group, mode)),
        false => drop(scratch.file(&path, owner, group, mode, "")),
    }
}

#[test]
fn a_new_mailbox_copies_the_root_directory() {
    check(STORE, include_str!("permissions/new_mailbox.txt"));
}

#[test]
fn a_group_that_cannot_be_had_makes_no_directory() {
    check(STORE, include_str!("permissions/no_group.txt"));
}

#[test]
fn a_new_file_copies_the_directory_of_its_mailbox() {
    check(STORE, include_str!("permissions/new_file.txt"));
}

#[test]
fn a_file_with_a_wrong_group_is_refused_or_told() {
    check(STORE, include_str!("permissions/wrong_group.txt"));
}

const AT_HOME: &str = "[namespace.inbox]\ninbox = true\nmail_path = \"~/Maildir\"\n";
const VMAIL: &str = "[namespace.inbox]\ninbox = true\n\
    mail_path = \"{store}/vmail/%{user | domain}/%{user | username}/Maildir\"\n";

#[test]
fn a_new_inbox_in_a_home() {
    check(AT_HOME, include_str!("permissions/home.txt"));
}

#[test]
fn new_domain_and_user_directories() {
    check(VMAIL, include_str!("permissions/domain.txt"));
}

#[test]
fn new_directories_by_the_workers_of_a_server() {
    if not_root() {
        return;
    }
    let home = rows(AT_HOME, include_str!("permissions/home.txt"));
    let domain = rows(VMAIL, include_str!("permissions/domain.txt"));
    for row in home
        .iter()
        .chain(&domain)
        .filter(|it| it.settings.is_empty())
    {
        row.run_served();
    }
}

#[test]
fn where_a_nested_mailbox_copies_from() {
    check(STORE, include_str!("permissions/nested.txt"));
}

#[test]
fn a_new_mailbox_is_never_wider_than_its_parent() {
    check(STORE, include_str!("permissions/never_wider.txt"));
}

#[test]
fn no_write_permission_on_a_root_means_no_new_mailboxes() {
    check(STORE, include_str!("permissions/closed_root.txt"));
}

/// Of mboxes and the directories that hold them.
#[test]
fn a_new_mbox_copies_the_root_directory() {
    let store = format!("mail_driver = \"mbox\"\n{STORE}");
    check(&store, include_str!("permissions/mbox.txt"));
}

/// Copies are links where mode and group are to be the same, and files of their own elsewhere.
#[test]
fn copies_are_links_only_where_the_permissions_agree() {
    if not_root() {
        return;
    }
    for (setting, links) in [
        ("delivery.recipient_headers=single", [3, 3, 3, 2, 2, 1, 1]),
        ("delivery.recipient_headers=each", [1; 7]),
    ] {
        let folders = [
            ("maildir 0700 6001:6001 mail/.a", (0o600, U1)),
            ("maildir 0700 6001:6001 mail/.b", (0o600, U1)),
            ("maildir 0700 6001:7001 mail/.c", (0o600, U1)),
            ("maildir 2770 6001:7001 mail/.d", (0o660, TEAM)),
            ("maildir 0770 6001:7001 mail/.e", (0o660, TEAM)),
            ("maildir 2770 6001:7002 mail/.f", (0o660, OTHERS)),
            ("maildir 0750 6001:7001 mail/.g", (0o640, TEAM)),
        ];
        let row = Row {
            config: STORE.into(),
            has: folders
                .iter()
                .flat_map(|(line, _)| expanded(line))
                .collect(),
            groups: vec![TEAM, OTHERS],
            ..Row::default()
        };
        let scratch = Scratch::new();
        lay(&scratch, "d0700 6001:6001 mail");
        row.lay_out(&scratch);
        let mut command = program("postroom-lda");
        command.arg("-c").arg(scratch.path("postroom.toml"));
        command.args(["-o", setting]);
        command.args(["a", "b", "c", "d", "e", "f", "g"].map(|name| format!("u1+{name}@d.test")));
        as_user(&mut command, U1, U1, &row.groups);
        let output = run_with_input(&mut command, MESSAGE);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        for ((line, (mode, gid)), links) in folders.iter().zip(links) {
            let folder = line.rsplit(' ').next().unwrap();
            let stored = support::messages(&scratch.path(&format!("store/{folder}")));
            assert_eq!((stored.len(), &stored[0].1[..]), (1, MESSAGE));
            let meta = fs::metadata(&stored[0].0).unwrap();
            let got = (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.nlink());
            assert_eq!(got, (*mode, U1, *gid, links), "{folder} {setting}");
        }
        assert!(unfinished(&scratch.path("store")).is_empty());
    }
}

/// A file that is a link has the ACL of the directory that it was made in: readers of another one could not open it.
#[test]
fn copies_are_links_only_where_the_acls_agree() {
    if not_root() {
        return;
    }
    const READER: u32 = 7777;
    let entry = |tag: u16, rights: u16, id: u32| {
        [
            &tag.to_le_bytes()[..],
            &rights.to_le_bytes(),
            &id.to_le_bytes(),
        ]
        .concat()
    };
    // acl(5), as the kernel keeps it: user::rw user:7777:r group::rw mask::rw other::-
    let nobody = u32::MAX;
    let acl = [
        2_u32.to_le_bytes().to_vec(),
        entry(0x01, 6, nobody),
        entry(0x02, 4, READER),
        entry(0x04, 6, nobody),
        entry(0x10, 6, nobody),
        entry(0x20, 0, nobody),
    ];
    let scratch = Scratch::new();
    let row = Row {
        config: STORE.into(),
        has: ["a", "b", "c", "d"]
            .iter()
            .flat_map(|name| expanded(&format!("maildir 0770 6001:6001 mail/.{name}")))
            .collect(),
        ..Row::default()
    };
    lay(&scratch, "d0700 6001:6001 mail");
    row.lay_out(&scratch);
    for name in ["b", "d"] {
        let tmp = scratch.path(&format!("store/mail/.{name}/tmp"));
        xattr::set(tmp, "system.posix_acl_default", &acl.concat()).unwrap();
    }
    let mut command = program("postroom-lda");
    command.arg("-c").arg(scratch.path("postroom.toml"));
    command.args(["-o", "delivery.recipient_headers=single"]);
    command.args(["a", "b", "c", "d"].map(|name| format!("u1+{name}@d.test")));
    as_user(&mut command, U1, U1, &[]);
    let output = run_with_input(&mut command, MESSAGE);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for (name, has_acl) in [("a", false), ("b", true), ("c", false), ("d", true)] {
        let stored = support::messages(&scratch.path(&format!("store/mail/.{name}")));
        let path = &stored[0].0;
        let acl = xattr::get(path, "system.posix_acl_access").unwrap();
        assert_eq!(acl.is_some(), has_acl, "{name}");
        let meta = fs::metadata(path).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.nlink()), (0o660, 2), "{name}");
    }
}

/// The same truth over LMTP, told at RCPT.
#[test]
fn lmtp_refuses_at_rcpt_what_would_come_out_wrong() {
    if not_root() {
        return;
    }
    let (store, mail) = (Store::new(), support::MAIL);
    let mailbox = store.scratch.maildir("public/.team", mail, TEAM, 0o770);
    let acl = "public/.team/dovecot-acl";
    store.scratch.file(acl, mail, TEAM, 0o660, "anyone lrwip\n");
    let config = store.configure("", "");
    let before = tree(&mailbox);
    for (groups, want, made) in [
        (&[][..], "451 4.3.0 ", None),
        (&[TEAM][..], "250 2.0.0 ", Some("-0660 8:7001 new/MESSAGE")),
    ] {
        let (socket, log) = (store.path("run/lmtp"), store.path("run/log"));
        let server = Server::start_as(&config, &socket, &log, groups);
        let address = "alice+Public/team@d.test";
        let replies = server.client().deliver(&[address], MESSAGE);
        assert!(replies[0].starts_with(want), "{replies:?}");
        let tells = ["7001", "chgrp", "public/.team"].map(|word| replies[0].contains(word));
        assert_eq!(tells, [false; 3], "a sender learns no more: {replies:?}");
        let new: Vec<_> = tree(&mailbox)
            .into_iter()
            .filter(|line| !before.contains(line))
            .collect();
        assert_eq!(new, made.map(str::to_owned).into_iter().collect::<Vec<_>>());
        let is_told = server.log().contains("chgrp 7001");
        assert_eq!(is_told, made.is_none(), "{}", server.log());
    }
}
