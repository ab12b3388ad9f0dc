//! Sharing beside a live Dovecot: what it sets decides our deliveries, what we set shows in its answers.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use support::imap::Imap;
use support::peers::{Dovecot, Version};
use support::{MAIL, Store, messages, not_root, program, replace_in, replaced};

/// A store with a map of shares, and a Dovecot on it that lets clients set rights.
struct Shared {
    store: Store,
    dovecot: Dovecot,
    config: PathBuf,
}

impl Shared {
    fn new(version: Version) -> Option<Shared> {
        let store = Store::new();
        for user in ["alice", "bob", "carol"] {
            store
                .scratch
                .maildir(&format!("home/{user}/Maildir"), MAIL, MAIL, 0o700);
        }
        fs::remove_file(store.path("home/bob/Maildir/.Projects/dovecot-acl")).unwrap();
        store
            .scratch
            .maildir("home/alice/Maildir/.Work", MAIL, MAIL, 0o700);
        store
            .scratch
            .maildir("home/alice/Maildir/.Team", MAIL, MAIL, 0o700);
        store.scratch.dir("db", MAIL, MAIL, 0o2770);
        let root = store.scratch.text("");
        let map = format!("{root}/db/shared-mailboxes");
        let dovecot = Dovecot::start_with(version, &store, |text| match version {
            Version::V23 => {
                let dict = format!("acl = vfile\n  acl_shared_dict = file:{map}\n");
                let text = replaced(&text, "acl = vfile\n", &dict);
                format!("{text}protocol imap {{\n  mail_plugins = $mail_plugins imap_acl\n}}\n")
            }
            Version::V24 => format!(
                "{text}acl_sharing_map {{\n  dict file {{\n    path = {map}\n  }}\n}}\nprotocol imap {{\n  mail_plugins {{\n    imap_acl = yes\n  }}\n}}\n"
            ),
        })?;
        let config = store.configure("", &format!("[acl_sharing_map.file]\npath = \"{map}\"\n"));
        Some(Shared {
            store,
            dovecot,
            config,
        })
    }

    fn imap(&self, user: &str) -> Imap {
        Imap::login(self.dovecot.port, user)
    }

    fn postroom(&self, arguments: &[&str]) -> Output {
        program("postroom")
            .arg("-c")
            .arg(&self.config)
            .args(arguments)
            .output()
            .unwrap()
    }

    fn said(&self, arguments: &[&str]) -> String {
        let output = self.postroom(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The words of the untagged answer, sorted where their order means nothing.
    fn answer(imap: &mut Imap, command: &str) -> Vec<String> {
        let lines = imap.command(command);
        assert!(
            lines.last().unwrap().contains(" OK "),
            "{command}: {lines:?}"
        );
        let words = lines[..lines.len() - 1].join(" ");
        words
            .split(' ')
            .map(|word| word.trim_matches('"').to_owned())
            .collect()
    }

    fn listed(&self, user: &str) -> Vec<String> {
        let words = Shared::answer(&mut self.imap(user), "LIST \"\" \"shared/*\"");
        words
            .into_iter()
            .filter(|word| word.starts_with("shared/"))
            .collect()
    }
}

fn is(letters: &str, wanted: &str) -> bool {
    let sorted = |text: &str| {
        let mut letters: Vec<char> = text.chars().collect();
        letters.sort();
        letters
    };
    sorted(letters) == sorted(wanted)
}

/// The rights of an identifier in an answer to GETACL.
fn rights<'a>(words: &'a [String], identifier: &str) -> &'a str {
    let at = words.iter().position(|word| word == identifier);
    at.map_or("", |at| words[at + 1].as_str())
}

/// The dialogues of Dovecot's documents, and after each step what a delivery does.
#[test]
fn what_setacl_says_decides_the_next_delivery() {
    if not_root() {
        return;
    }
    for version in [Version::V23, Version::V24] {
        let Some(shared) = Shared::new(version) else {
            return;
        };
        let server = support::Server::start(
            &shared.config,
            &shared.store.path("run/lmtp"),
            &shared.store.path("run/log"),
        );
        let mut client = server.client();
        let mut delivered = |mailbox: &str| {
            let recipient = format!("bob+{mailbox}@example.test");
            let replies = client.deliver(&[&recipient], b"Subject: x\n\n");
            replies[0].contains(&format!("mailbox=\"{mailbox}\""))
        };
        const WORK: &str = "shared/alice/Work";
        assert!(!delivered(WORK));
        let mut alice = shared.imap("alice");
        Shared::answer(&mut alice, "SETACL Work bob rl");
        assert!(!delivered(WORK), "reading is not posting");
        Shared::answer(&mut alice, "SETACL Work bob +s");
        let acl = Shared::answer(&mut alice, "GETACL Work");
        assert!(is(rights(&acl, "bob"), "lrs"), "{acl:?}");
        Shared::answer(&mut alice, "SETACL Work bob +p");
        assert!(delivered(WORK));
        Shared::answer(&mut alice, "SETACL Work -bob p");
        assert!(!delivered(WORK), "what is taken is taken");
        Shared::answer(&mut alice, "DELETEACL Work -bob");
        assert!(delivered(WORK));
        let mine = Shared::answer(&mut alice, "MYRIGHTS Work");
        assert!(is(mine.last().unwrap(), "lrwstipekxacd"), "{mine:?}");
        Shared::answer(&mut alice, "SETACL Work -alice l");
        let said = shared.said(&["acl", "rights", "-u", "alice", "Work"]);
        assert!(!said.contains("lookup") && said.contains("read"), "{said}");
        Shared::answer(&mut alice, "DELETEACL Work bob");
        assert!(!delivered(WORK));
        assert_eq!(
            messages(&shared.store.path("home/alice/Maildir/.Work")).len(),
            2
        );
    }
}

#[test]
fn what_we_set_shows_in_imap() {
    if not_root() {
        return;
    }
    for version in [Version::V23, Version::V24] {
        let Some(shared) = Shared::new(version) else {
            return;
        };
        assert_eq!(shared.listed("bob"), Vec::<String>::new(), "{version:?}");
        shared.said(&[
            "acl", "set", "-u", "alice", "Team", "user=bob", "lookup", "read", "post",
        ]);
        let acl = Shared::answer(&mut shared.imap("alice"), "GETACL Team");
        assert!(is(rights(&acl, "bob"), "lrp"), "{acl:?}");
        let mine = Shared::answer(&mut shared.imap("bob"), "MYRIGHTS shared/alice/Team");
        assert!(is(mine.last().unwrap(), "lrp"), "{mine:?}");
        assert_eq!(shared.said(&["share", "list"]), "alice -> bob\n");
        let listed = shared.listed("bob");
        assert!(
            listed.iter().any(|name| name == "shared/alice/Team"),
            "{version:?} {listed:?}"
        );
        assert!(shared.listed("carol").is_empty());
        // By another name of the mailbox it is the owner's row all the same.
        shared.said(&[
            "acl",
            "set",
            "-u",
            "bob",
            "shared/alice/Team",
            "user=carol",
            "lookup",
        ]);
        assert_eq!(
            shared.said(&["share", "list"]),
            "alice -> bob\nalice -> carol\n"
        );
        shared.said(&["acl", "delete", "-u", "alice", "Team", "user=bob"]);
        shared.said(&[
            "acl",
            "delete",
            "-u",
            "bob",
            "shared/alice/Team",
            "user=carol",
        ]);
        assert_eq!(shared.said(&["share", "list"]), "");
        assert_eq!(
            shared.dovecot.complaints(),
            Vec::<String>::new(),
            "{version:?}"
        );
    }
}

#[test]
fn a_lost_map_comes_back_as_it_was() {
    if not_root() {
        return;
    }
    for version in [Version::V23, Version::V24] {
        let Some(shared) = Shared::new(version) else {
            return;
        };
        let mut alice = shared.imap("alice");
        for command in [
            "SETACL Work bob lr",
            "SETACL Team bob lp",
            "SETACL Team $staff l",
            "SETACL Work -carol l",
        ] {
            Shared::answer(&mut alice, command);
        }
        Shared::answer(&mut shared.imap("carol"), "SETACL INBOX alice l");
        let rows = "alice -> group staff\nalice -> bob\ncarol -> alice\n";
        assert_eq!(shared.said(&["share", "list"]), rows, "{version:?}");
        assert_eq!(shared.said(&["share", "verify"]), "");
        let map = shared.store.path("db/shared-mailboxes");
        fs::remove_file(&map).unwrap();
        let verify = shared.postroom(&["share", "verify"]);
        assert_eq!(verify.status.code(), Some(1));
        assert_eq!(
            String::from_utf8_lossy(&verify.stdout)
                .matches("missing: ")
                .count(),
            3
        );
        shared.said(&["share", "rebuild"]);
        assert_eq!(shared.said(&["share", "list"]), rows, "{version:?}");
        assert_eq!(
            shared.said(&["share", "rebuild"]),
            "",
            "nothing differs, nothing is written"
        );
        // A row of nobody, and one that no file says.
        let mut text = fs::read_to_string(&map).unwrap();
        text.push_str("shared/shared-boxes/user/bob/gone\n1\nshared/shared-boxes/anyone/bob\n1\n");
        fs::write(&map, text).unwrap();
        let said = shared.said(&["share", "rebuild"]);
        assert_eq!(said, "removed: bob -> anyone\nremoved: gone -> bob\n");
        assert_eq!(shared.said(&["share", "list"]), rows);
        let listed = shared.listed("bob");
        assert!(
            listed.iter().any(|name| name == "shared/alice/Work"),
            "{listed:?}"
        );
    }
}

#[test]
fn the_map_in_sqlite() {
    let store = Store::new();
    fs::remove_file(store.path("home/bob/Maildir/.Projects/dovecot-acl")).unwrap();
    for user in ["alice", "bob"] {
        store
            .scratch
            .maildir(&format!("home/{user}/Maildir"), MAIL, MAIL, 0o700);
    }
    store
        .scratch
        .maildir("home/alice/Maildir/.Work", MAIL, MAIL, 0o700);
    store.scratch.dir("db", MAIL, MAIL, 0o2770);
    let root = store.scratch.text("");
    let config = store.configure(
        "",
        &format!("[acl_sharing_map.sqlite]\npath = \"{root}/db/map.sqlite\"\n"),
    );
    let run = |arguments: &[&str]| {
        program("postroom")
            .arg("-c")
            .arg(&config)
            .args(arguments)
            .output()
            .unwrap()
    };
    assert_eq!(
        run(&["share", "list"]).status.code(),
        Some(75),
        "a database that is not there is no empty map"
    );
    let database = rusqlite::Connection::open(store.path("db/map.sqlite")).unwrap();
    database
        .execute_batch(postroom::sharing::table::TABLES)
        .unwrap();
    support::own(&store.path("db/map.sqlite"), MAIL, MAIL);
    let said = |arguments: &[&str]| {
        let output = run(arguments);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    said(&["acl", "set", "-u", "alice", "Work", "user=bob", "lookup"]);
    said(&["acl", "set", "-u", "alice", "Work", "anyone", "lookup"]);
    assert_eq!(said(&["share", "list"]), "alice -> anyone\nalice -> bob\n");
    let count: i64 = database
        .query_row(
            "SELECT count(*) FROM user_shares WHERE dummy = '1'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(count, 1);
    database.execute("DELETE FROM user_shares", []).unwrap();
    assert_eq!(said(&["share", "rebuild"]), "added: alice -> bob\n");
}

#[test]
fn the_map_in_postgresql() {
    let store = Store::new();
    fs::remove_file(store.path("home/bob/Maildir/.Projects/dovecot-acl")).unwrap();
    store
        .scratch
        .maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
    store
        .scratch
        .maildir("home/alice/Maildir/.Work", MAIL, MAIL, 0o700);
    let Some(mut postgresql) = support::peers::Postgresql::new(&store.scratch) else {
        return;
    };
    let map = format!(
        "[acl_sharing_map.postgresql]\nconnection = \"{}\"\n",
        postgresql.parameters()
    );
    let config = store.configure("", &map);
    let run = |arguments: &[&str]| {
        program("postroom")
            .arg("-c")
            .arg(&config)
            .args(arguments)
            .output()
            .unwrap()
    };
    let set = [
        "acl", "set", "-u", "alice", "Work", "user=bob", "lookup", "post",
    ];
    // The server is down: the rights are set, and it is said that the map is not.
    let output = run(&set);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("the sharing map is not"));
    assert_eq!(run(&["share", "verify"]).status.code(), Some(75));
    postgresql.start();
    postgresql.run(postroom::sharing::table::TABLES);
    let said = |arguments: &[&str]| {
        let output = run(arguments);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(&["share", "verify"]).status.code(), Some(1));
    assert_eq!(said(&["share", "rebuild"]), "added: alice -> bob\n");
    said(&["acl", "set", "-u", "alice", "Work", "anyone", "lookup"]);
    assert_eq!(said(&["share", "list"]), "alice -> anyone\nalice -> bob\n");
    // No table for groups: said, and nothing half done.
    let output = run(&["acl", "set", "-u", "alice", "Work", "group=staff", "lookup"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("group_shares"));
    postgresql.run(
        "CREATE TABLE group_shares (from_user varchar(100), to_group varchar(100), dummy char(1))",
    );
    assert_eq!(said(&["share", "rebuild"]), "added: alice -> group staff\n");
}

/// What no map or ACL file should hold.
#[test]
fn odd_names_and_broken_maps() {
    let store = Store::new();
    store
        .scratch
        .maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
    store
        .scratch
        .maildir("home/alice/Maildir/.Work", MAIL, MAIL, 0o700);
    store.scratch.dir("db", MAIL, MAIL, 0o700);
    let root = store.scratch.text("");
    let config = store.configure(
        "",
        &format!("[acl_sharing_map.file]\npath = \"{root}/db/map\"\n"),
    );
    let run = |arguments: &[&str]| {
        program("postroom")
            .arg("-c")
            .arg(&config)
            .args(arguments)
            .output()
            .unwrap()
    };
    let file = store.path("home/alice/Maildir/.Work/dovecot-acl");
    let long = format!("user={}", "x".repeat(2000));
    for (identifier, code) in [
        ("user=a\tb", 64),
        ("user=a\nanyone", 64),
        (long.as_str(), 64),
        ("bob", 64),
        ("user=a b\"c\\d", 0),
        ("user=bob/x", 0),
    ] {
        let output = run(&["acl", "set", "-u", "alice", "Work", identifier, "lookup"]);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{identifier:?} {output:?}"
        );
        let lines = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            !lines.lines().any(|line| line.starts_with("anyone")),
            "{lines}"
        );
    }
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text, "\"user=a b\\\"c\\\\d\" l\nuser=bob/x l\n");
    assert_eq!(
        run(&["share", "rebuild", "alice"]).status.code(),
        Some(75),
        "a slash cannot stand in the map"
    );
    let big = "user=someone lr\n".repeat(70_000) + "user=bob lp\n";
    for (text, code) in [
        (big.as_str(), 75),
        ("user=bob Z\n", 75),
        ("user=bob lp\n", 0),
    ] {
        fs::write(&file, text).unwrap();
        assert_eq!(
            run(&["acl", "rights", "-u", "alice", "Work"]).status.code(),
            Some(code)
        );
    }
    // Whoever may write to its directory puts there what he likes; root is who looks.
    let map = store.path("db/map");
    let secret = store.path("secret");
    let row = "shared/shared-boxes/user/alice/carol\n1\n";
    store.scratch.file("secret", 0, 0, 0o600, row);
    let make = |script: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(&map).arg(&secret);
        assert!(shell.status().unwrap().success(), "{script}");
    };
    for (what, script) in [
        ("a folder", "mkdir $0"),
        ("a FIFO", "mkfifo $0"),
        ("a link", "ln -s $1 $0"),
        ("a loop", "ln -s map $0"),
        ("a device", "ln -s /dev/zero $0"),
        ("a hole", "truncate -s 1G $0"),
        ("no text", "printf '\\377' > $0"),
    ] {
        make("rm -rf $0");
        make(script);
        for command in ["list", "verify"] {
            let mut looking = program("postroom");
            looking.arg("-c").arg(&config).args(["share", command]);
            // What hangs is killed, and has no code.
            let mut timed = Command::new("timeout");
            timed.args(["-s", "KILL", "20"]).arg(looking.get_program());
            let output = timed.args(looking.get_args()).output().unwrap();
            assert_eq!(output.status.code(), Some(75), "{what}: {output:?}");
        }
    }
}

/// As root: the map stays its owner's, rows and entries in another encoding stay as they are.
#[test]
fn what_is_others_stays_theirs() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let work = "home/alice/Maildir/.Work";
    for below in ["home/alice/Maildir", work] {
        store.scratch.maildir(below, MAIL, MAIL, 0o700);
    }
    store.scratch.dir("db", 0, MAIL, 0o770);
    let map = store.scratch.file("db/map", MAIL, MAIL, 0o600, "");
    let more = format!("[acl_sharing_map.file]\npath = \"{}\"\n", map.display());
    let config = store.configure("", &more);
    let run = |arguments: &[&str]| {
        let mut command = program("postroom");
        command.arg("-c").arg(&config).args(arguments);
        command.output().unwrap()
    };
    let acl = format!("{work}/dovecot-acl");
    store.scratch.file(&acl, MAIL, MAIL, 0o600, "user=bob l\n");
    assert!(run(&["share", "rebuild"]).status.success());
    assert!(fs::read_to_string(&map).unwrap().contains("/bob/alice"));
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&map).unwrap());
    assert_eq!(owner, MAIL);

    let latin = b"user=j\xf6rg l\n";
    fs::write(store.path(&acl), latin).unwrap();
    let set = run(&["acl", "set", "-u", "alice", "Work", "anyone", "lookup"]);
    assert_eq!(set.status.code(), Some(75));
    assert_eq!(fs::read(store.path(&acl)).unwrap(), latin);
    let row = b"shared/shared-boxes/user/j\xf6rg/x\n1\n";
    fs::write(&map, row).unwrap();
    fs::write(store.path(&acl), "user=bob l\n").unwrap();
    assert_eq!(run(&["share", "rebuild", "alice"]).status.code(), Some(75));
    assert_eq!(fs::read(&map).unwrap(), row);
}

/// The root's file is the namespace's default then, and no share of INBOX.
#[test]
fn an_inbox_that_lies_elsewhere() {
    let store = Store::new();
    let inbox = "home/alice/Maildir/.INBOX";
    for below in ["home/alice/Maildir", inbox] {
        store.scratch.maildir(below, MAIL, MAIL, 0o700);
    }
    for (below, text) in [
        ("home/alice/Maildir", "user=carol l\n"),
        (inbox, "user=bob l\n"),
    ] {
        let file = format!("{below}/dovecot-acl");
        store.scratch.file(&file, MAIL, MAIL, 0o600, text);
    }
    store.scratch.dir("db", MAIL, MAIL, 0o700);
    let more = format!(
        "[acl_sharing_map.file]\npath = \"{}/db/map\"\n",
        store.scratch.text("")
    );
    let config = store.configure("", &more);
    let elsewhere = "[namespace.inbox]\nmail_inbox_path = \"~/Maildir/.INBOX\"";
    replace_in(&config, "[namespace.inbox]", elsewhere);
    let mut command = program("postroom");
    command
        .arg("-c")
        .arg(&config)
        .args(["share", "rebuild", "alice"]);
    let output = command.output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "added: alice -> bob\n",
        "{output:?}"
    );
}

/// Where not all ACL files of a user can be seen nothing of his is surplus.
#[test]
fn rows_of_which_not_all_can_be_seen() {
    if not_root() {
        return;
    }
    const ARCHIVE: &str = "[namespace.archive]\nseparator = \"/\"\nprefix = \"Archive/\"\n";
    const MDBOX: &str = "mail_driver = \"mdbox\"\nmail_path = \"~/mdbox\"\nhand_over = \"lmtp:/nonexistent\"\nhand_over_detail = true\n";
    const MBOX: &str =
        "mail_driver = \"mbox\"\nmail_path = \"~/mail\"\nmail_inbox_path = \"%{home}/inbox\"\n";
    const ELSEWHERE: &str = "mail_path = \"ROOT/home/base/%{user | username}\"\n";
    const NODE: &str = "[placement]\nself = [\"node1\"]\n[node.node2]\nhost = \"192.0.2.2\"\n";
    const MAKE_MBOXES: &str =
        "mkdir -p mail/Old/.imap/2025 mail/.imap/Work mail/.imap/INBOX mail/.imap/Gone
        touch inbox mail/Work mail/Old/2025
        echo user=carol l > mail/.imap/INBOX/dovecot-acl
        echo group=staff l > mail/Old/.imap/2025/dovecot-acl
        echo anyone l > mail/.imap/Gone/dovecot-acl";
    // settings of the private namespace; more; what is done in alice's home; the command; the exit code; what is said, `|` between the
    // lines; the rows behind it
    #[rustfmt::skip]
    let cases = [
        ("", "", "", "share verify", 1, "surplus: alice -> carol", "alice -> bob|bob -> alice|alice -> carol"),
        ("", "", "", "share rebuild", 0, "removed: alice -> carol", "alice -> bob|bob -> alice"),
        // No mail yet, or no disk.
        ("", "", "rm -r Maildir", "share verify", 75, "the rows of alice stay: HOME/Maildir is missing", "all"),
        ("", "", "rm -r Maildir", "share rebuild", 75, "the rows of alice stay: HOME/Maildir is missing", "all"),
        ("", "", "rm -r Maildir", "share rebuild bob carol", 0, "", "all"),
        ("", "", "rm -r ../alice", "share rebuild alice", 75, "the rows of alice stay: HOME/Maildir is missing", "all"),
        ("", "required", "", "share rebuild", 75, "the required path /nonexistent: ", "all"),
        ("", "required", "", "share verify", 75, "the required path /nonexistent: ", "all"),
        ("", "required", "", "acl delete -u alice Work user=bob", 75, "the required path /nonexistent: ", "all"),
        ("", "archive ~/Archive", "", "share rebuild", 0, "removed: alice -> carol", "alice -> bob|bob -> alice"),
        ("", "archive ROOT/none/%{user}", "", "share rebuild", 75, "the rows of alice stay: ROOT/none/alice is missing", "all"),
        (ELSEWHERE, "archive ~/Archive", "mkdir ../base; mv Maildir ../base/alice", "share rebuild alice", 75, "the rows of alice stay: HOME/Archive is missing", "all"),
        (ELSEWHERE, "archive ~/Archive", "mkdir ../base; mv Maildir ../base/alice; rm -r ../alice", "share rebuild alice", 75, "the rows of alice stay: HOME/Archive is missing", "all"),
        // A home that all have.
        (ELSEWHERE, "archive ROOT/home/archive/%{user | username}", "mkdir ../base; mv Maildir ../base/alice; sed -i s,/home/alice:,/home:, ../../users; touch -d yesterday ../../users", "share rebuild alice", 75, "the rows of alice stay: ROOT/home/archive/alice is missing", "all"),
        // Others see them.
        ("", "node", "", "share verify", 0, "", "all"),
        ("", "node", "rm -r Maildir", "share rebuild", 0, "", "all"),
        ("", "node", "", "share rebuild alice", 0, "the rows of alice stay: node2 (192.0.2.2:24) has his mailboxes", "all"),
        ("", "mdbox", "", "share verify", 0, "", "all"),
        ("", "mdbox", "rm Maildir/.Work/dovecot-acl", "share rebuild", 0, "", "all"),
        ("", "mdbox", "echo group=staff l >> Maildir/.Work/dovecot-acl", "share rebuild", 0, "added: alice -> group staff", "alice -> group staff|all"),
        ("", "mdbox", "", "share rebuild alice", 0, "the rows of alice stay: only Dovecot knows the mailboxes of namespace archive (mdbox)", "all"),
        ("", "mdbox", "", "acl delete -u alice Work user=bob", 0, "may be too many: only Dovecot knows", "all"),
        ("", "mdbox", "", "acl add -u alice Work user=carol lookup", 0, "", "all"),
        ("", "mdbox", "", "acl add -u alice Work group=staff lookup", 0, "may be too many", "alice -> group staff|all"),
        // One user's files hold nobody up.
        ("", "", "chown 0:0 Maildir/.Work/dovecot-acl; chmod 600 Maildir/.Work/dovecot-acl; echo group=staff l >> ../bob/Maildir/.Projects/dovecot-acl", "share rebuild", 75, "added: bob -> group staff|the rows of alice stay: HOME/Maildir/.Work/dovecot-acl: Permission denied (os error 13)", "all|bob -> group staff"),
        // The files of mboxes lie beside them.
        (MBOX, "", MAKE_MBOXES, "share rebuild alice", 0, "added: alice -> group staff|removed: alice -> bob", "alice -> group staff|bob -> alice|alice -> carol"),
        (MBOX, "", "touch mail", "share rebuild alice", 75, "the rows of alice stay: HOME/mail: Not a directory (os error 20)", "all"),
    ];
    for (own, more, script, words, code, said, rows) in cases {
        let store = Store::new();
        for below in ["home/alice/Maildir", "home/alice/Maildir/.Work"] {
            store.scratch.maildir(below, MAIL, MAIL, 0o700);
        }
        store.scratch.dir("db", MAIL, MAIL, 0o2770);
        let acl = "home/alice/Maildir/.Work/dovecot-acl";
        store.scratch.file(acl, MAIL, MAIL, 0o600, "user=bob l\n");
        let all = "alice -> bob|bob -> alice|alice -> carol";
        let row = |row: &str| {
            let (from, with) = row.split_once(" -> ").unwrap();
            format!("shared/shared-boxes/user/{with}/{from}\n1\n")
        };
        let text: String = all.split('|').map(row).collect();
        store.scratch.file("db/map", MAIL, MAIL, 0o660, &text);
        let root = store.scratch.text("");
        let map = format!("[acl_sharing_map.file]\npath = \"{root}/db/map\"\n");
        let (delivery, more) = match more.split_once(' ') {
            Some((_, path)) => ("", format!("{ARCHIVE}mail_path = \"{path}\"\n")),
            None if more == "required" => ("required_paths = [\"/nonexistent\"]", "".into()),
            None if more == "mdbox" => ("", format!("{ARCHIVE}{MDBOX}")),
            None if more == "node" => ("", NODE.into()),
            None => ("", String::new()),
        };
        let is_of_node = more == NODE;
        let config = store.configure(delivery, &(map + &more.replace("ROOT", &root)));
        replace_in(
            &config,
            "[namespace.inbox]\n",
            &format!("[namespace.inbox]\n{}", own.replace("ROOT", &root)),
        );
        if is_of_node {
            store.set_fields("alice", "userdb_host=node2");
        }
        let mut shell = Command::new("sh");
        shell
            .args(["-ec", script])
            .current_dir(store.path("home/alice"));
        assert!(shell.status().unwrap().success(), "{script}");
        let mut command = program("postroom");
        command.arg("-c").arg(&config).args(words.split(' '));
        let output = command.output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let case = format!("{own} {more} {script}: {words}: {text}");
        assert_eq!(output.status.code(), Some(code), "{case}");
        let mut lines = said.split('|').filter(|it| !it.is_empty());
        let home = format!("{root}/home/alice");
        assert_eq!(text.lines().count(), lines.clone().count(), "{case}");
        let is_said =
            |line: &str| text.contains(&line.replace("HOME", &home).replace("ROOT", &root));
        assert!(lines.all(is_said), "{case}");
        let listed = {
            let mut command = program("postroom");
            command.arg("-c").arg(&config).args(["share", "list"]);
            String::from_utf8(command.output().unwrap().stdout).unwrap()
        };
        let mut listed: Vec<&str> = listed.lines().collect();
        let rows = rows.replace("all", all);
        let mut rows: Vec<&str> = rows.split('|').collect();
        listed.sort();
        rows.sort();
        assert_eq!(listed, rows, "{case}");
    }
}
