//! Who may post where: our verdict beside dovecot-lda's, on the same tree.

mod support;

use std::fs;
use std::os::unix::fs::symlink;

use support::peers::{Dovecot, Version};
use support::random::Random;
use support::{MAIL, Store, messages, not_root, replace_in, replaced};

/// ACL files of alice's folders, `;` for the end of a line.
const FILES: &[&str] = &[
    "",
    "# nothing",
    "anyone p",
    "anyone lp",
    "anyone l",
    "anyone li",
    "anyone lr;-anyone l",
    "anyone lrp;-anyone p",
    "anonymous p",
    "authenticated p",
    "authenticated l;anyone p",
    "authenticated lp;anyone l",
    "-authenticated p;anyone lp",
    "-anyone p;authenticated lp",
    "owner lp",
    "owner l",
    "-owner p",
    "owner l;user=alice lp",
    "user=alice l",
    "-user=alice p",
    "user=bob p",
    "user=bob lp",
    "user=bob l",
    "user=bob i",
    "user=bob",
    "user=bob lrwstipekxa",
    "-user=bob p",
    "anyone lp;user=bob l",
    "anyone lp;-user=bob p",
    "anyone l;user=bob lp",
    "anyone lp;-anyone p;user=bob lp",
    "anyone lp;-anyone p;user=bob lp;-user=bob",
    "anyone lp;-anyone p;user=bob l;user=bob p",
    "group=staff lp",
    "group=ops lp",
    "group=staff l;group=ops p",
    "group=staff lp;user=bob l",
    "group=staff lp;-user=bob p",
    "group=staff lp;-group=staff p",
    "group=staff lp;-group=ops p",
    "group=nosuch lp",
    "group=staff lrp;-user=bob r;-user=bob w",
    "group=staff lp;user=bob lp;-user=bob r;-user=bob p",
    "group-override=staff;user=bob lp",
    "group-override=staff l;user=bob lp",
    "group-override=staff lp;user=bob l",
    "group-override=staff l;group-override=ops p;user=carol lp",
    "-group-override=staff p;anyone lp",
    "-group-override=ops p;user=bob lp;user=carol lp",
    "user=bob l;user=bob p",
    "user=BOB lp",
    "user=bob  lp ",
    "user=bob lp\r",
    "user=bob\tlp",
    "\"user=bob\" lp",
    "\"-user=bob\" p;anyone lp",
    "\"group=two words\" lp;user=bob l",
    "user=bob :lookup post",
    "user=bob l :post",
    "user=bob l:post,custom",
    "user=bob lp :custom",
    "user=bob :lookup:post",
    "user= lp",
    "anyone lrwsteikxa",
    // Malformed: nobody can tell.
    "user=bob lpZ",
    "user=bob lp foo",
    "bob lp",
    "anyone lp;User=bob lp",
    " user=bob lp",
    "-\"user=bob\" p;anyone lp",
    "\"user=bob\"lp",
    "\"user=bob lp",
    "--user=bob p;anyone lp",
    "anyone=x lp",
    "user=bob lp #x",
];

/// Files of public mailboxes, below a root whose file is `user=alice lkp;group=staff l`.
const PUBLIC: &[&str] = &[
    "",
    "user=bob lp",
    "owner lp",
    "user=alice l",
    "-user=alice p",
    "anyone l",
    "group=staff lp",
];

const USERS: [&str; 4] = ["alice", "bob", "carol", "dave"];

/// What became of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Stored,
    Inbox,
    Deferred,
}

fn groups_of(user: &str) -> &'static str {
    match user {
        "bob" => "staff,ops",
        "carol" => "staff",
        _ => "",
    }
}

fn with_groups(version: Version, root: &str) -> impl Fn(String) -> String {
    let root = root.to_owned();
    move |text| {
        let (start, end) = (
            text.find("userdb").unwrap(),
            text.find("namespace inbox").unwrap(),
        );
        let mut between = text[start..end].to_owned();
        between = match version {
            Version::V23 => format!(
                "userdb {{\n driver = passwd-file\n args = username_format=%n {root}/dovecot-users\n}}\n"
            ),
            Version::V24 => {
                let plugins = &between[between.find("mail_plugins").unwrap()..];
                format!(
                    "userdb passwd-file {{\n passwd_file_path = {root}/dovecot-users\n}}\n{plugins}"
                )
            }
        };
        // Without this line the root counts as the INBOX, and its file as no default.
        let rest = text[end..].replace("  mail_inbox_path =\n", "");
        format!("{}{between}{rest}", &text[..start])
    }
}

/// Alice has a mailbox for each of these files.
fn tree(store: &Store, files: &[String]) {
    store.scratch.dir("home/dave", MAIL, MAIL, 0o700);
    for user in USERS {
        if user != "bob" {
            store
                .scratch
                .maildir(&format!("home/{user}/Maildir"), MAIL, MAIL, 0o700);
        }
    }
    let folder = |below: &str, file: &str| {
        store.scratch.maildir(below, MAIL, MAIL, 0o700);
        let text = file.replace(';', "\n");
        store
            .scratch
            .file(&format!("{below}/dovecot-acl"), MAIL, MAIL, 0o600, &text);
    };
    for (number, file) in files.iter().enumerate() {
        folder(&format!("home/alice/Maildir/.W{number}"), file);
        // The same as a mailbox of dave's own, by a symlink.
        let link = store.path(&format!("home/dave/Maildir/.L{number}"));
        symlink(format!("../../alice/Maildir/.W{number}"), link).unwrap();
    }
    for (number, file) in PUBLIC.iter().enumerate() {
        folder(&format!("public/.P{number}"), file);
    }
    store.scratch.file(
        "public/dovecot-acl",
        MAIL,
        100,
        0o660,
        "user=alice lkp\ngroup=staff l\n",
    );
    let root = store.scratch.text("");
    let line = |user: &&str| {
        let groups = match groups_of(user) {
            "" => String::new(),
            groups => format!("userdb_acl_groups={groups}"),
        };
        format!("{user}:{{PLAIN}}pw:{MAIL}:{MAIL}::{root}/home/{user}::{groups}\n")
    };
    let users: String = USERS.iter().map(line).collect();
    store.scratch.file("dovecot-users", 0, 0, 0o644, &users);
}

/// Every mailbox with the name that `user` has for it, and its file.
fn mailboxes<'a>(user: &str, files: &'a [String]) -> Vec<(String, String, &'a str)> {
    let own = files.iter().enumerate().map(|(number, file)| {
        let name = match user {
            "alice" => format!("W{number}"),
            _ => format!("shared/alice/W{number}"),
        };
        (
            name,
            format!("home/alice/Maildir/.W{number}"),
            file.as_str(),
        )
    });
    let public = PUBLIC.iter().enumerate();
    let public = public.map(|(number, file)| {
        (
            format!("Public/P{number}"),
            format!("public/.P{number}"),
            *file,
        )
    });
    let links = files.iter().enumerate().map(|(number, file)| {
        let folder = format!("home/alice/Maildir/.W{number}");
        (format!("L{number}"), folder, file.as_str())
    });
    let links = links.filter(|_| user == "dave");
    own.chain(public).chain(links).collect()
}

/// Where the message with this subject is: in its mailbox, in the user's INBOX, or nowhere.
fn find(store: &Store, folder: &str, user: &str, subject: &str) -> Verdict {
    let mark = format!("Subject: {subject}\n");
    let is_in = |below: &str| {
        let found = messages(&store.path(below));
        found
            .iter()
            .any(|(_, bytes)| String::from_utf8_lossy(bytes).contains(&mark))
    };
    match (is_in(folder), is_in(&format!("home/{user}/Maildir"))) {
        (true, false) => Verdict::Stored,
        (false, true) => Verdict::Inbox,
        (false, false) => Verdict::Deferred,
        (true, true) => panic!("{subject} is there twice"),
    }
}

fn fixed() -> Vec<String> {
    FILES.iter().map(|file| (*file).to_owned()).collect()
}

/// Any file: mostly what somebody would write, with a slip here and there.
fn random_file(random: &mut Random) -> String {
    const IDENTIFIERS: &[&str] = &[
        "anyone",
        "authenticated",
        "anonymous",
        "owner",
        "user=alice",
        "user=bob",
        "user=bob",
        "user=carol",
        "user=dave",
        "group=staff",
        "group=ops",
        "group=nosuch",
        "group-override=staff",
        "group-override=ops",
    ];
    const ODD_IDENTIFIERS: &[&str] = &[
        "user=BOB",
        "user=",
        "group=",
        "bob",
        "User=bob",
        "anyone=x",
        "user=bob=x",
        "owner ",
        "",
        "user=*",
    ];
    const SPACES: &[&str] = &["  ", "\t", " \t", "", "   "];
    const NAMES: &[&str] = &[
        "lookup",
        "post",
        "read",
        "insert",
        "custom",
        "LOOKUP",
        "lookup:post",
    ];
    let [
        has_odd_spaces,
        has_odd_letter,
        has_odd_identifier,
        has_odd_line,
        has_quotes,
        has_odd_end,
    ] = [20, 20, 20, 20, 25, 25].map(|one_in| random.below(one_in) == 0);
    let mut pick = |all: &[&'static str]| all[random.below(all.len() as u64) as usize];
    let mut lines = vec![pick(&["", "", "", "# x;", ";"]).to_owned()];
    loop {
        let mut identifier = format!("{}{}", pick(&["", "", "-"]), pick(IDENTIFIERS));
        if has_odd_identifier && pick(&["", "odd"]) == "odd" {
            identifier = format!("{}{}", pick(&["", "-", "--"]), pick(ODD_IDENTIFIERS));
        }
        if has_quotes {
            identifier = format!("\"{identifier}{}", pick(&["\"", "\"", "\"", ""]));
        }
        let mut rights: String = (0..3)
            .map(|_| pick(&["l", "p", "lp", "", "r", "w", "s", "t", "i", "pp", "ekxa"]))
            .collect();
        if has_odd_letter && pick(&["", "odd"]) == "odd" {
            // No NUL: there a line ends to Dovecot, and to us nobody can tell.
            rights += pick(&["Z", "P", "é", "-", "0", "d", "c"]);
        }
        if pick(&["", "", "", "", "named"]) == "named" {
            let names = [pick(NAMES), pick(NAMES)].join(pick(&[" ", " ", " ", ",", "  "]));
            rights = format!("{rights}{}:{names}", pick(&[" ", " ", " ", ""]));
        }
        let space = if has_odd_spaces { pick(SPACES) } else { " " };
        let (before, behind) = match has_odd_line {
            true => (
                pick(&["", "", " ", "\t", "#"]),
                pick(&["", " ", " x", "\r", "\t", " #x"]),
            ),
            false => ("", ""),
        };
        lines.push(format!("{before}{identifier}{space}{rights}{behind}"));
        if pick(&["", "", "end"]) == "end" || lines.len() > 5 {
            break;
        }
    }
    let end = if has_odd_end {
        pick(&[";", ";;", "; ", ";#", "\r"])
    } else {
        ""
    };
    format!("{}{}{end}", lines[0], lines[1..].join(";"))
}

/// Delivers to what `of` says of each user's mailboxes, by both: what differs, and how often Dovecot has done what.
fn compare(
    version: Version,
    name: &str,
    files: &[String],
    of: impl Fn(&str, usize) -> bool,
) -> Option<(Vec<String>, [usize; 3])> {
    let store = Store::new();
    tree(&store, files);
    let root = store.scratch.text("");
    let dovecot = Dovecot::start_with(version, &store, with_groups(version, &root))?;
    let config = store.configure("", "");
    let post = format!("driver = \"vfile\"\ndelivery_right = \"post\"\ndovecot = \"{name}\"\n");
    replace_in(&config, "driver = \"vfile\"\n", &post);
    fs::copy(store.path("dovecot-users"), store.path("users")).unwrap();
    let server = support::Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    let mut client = server.client();
    let mut differ = Vec::new();
    let mut counts = [0; 3];
    for user in USERS {
        for (number, (mailbox, folder, file)) in mailboxes(user, files).into_iter().enumerate() {
            if !of(user, number) {
                continue;
            }
            let ours = format!("ours {user} {mailbox}");
            let recipient = format!("{user}+{mailbox}@example.test");
            client.deliver(&[&recipient], format!("Subject: {ours}\n\n").as_bytes());
            let ours = find(&store, &folder, user, &ours);
            let theirs = format!("theirs {user} {mailbox}");
            dovecot.lda(user, &mailbox, format!("Subject: {theirs}\n\n").as_bytes());
            let theirs = find(&store, &folder, user, &theirs);
            counts[theirs as usize] += 1;
            // The one stated difference: the owner is not stopped by a file that says nothing.
            let is_owner = !mailbox.contains('/');
            let stated = is_owner && theirs == Verdict::Deferred && ours == Verdict::Stored;
            if ours != theirs && !stated {
                differ.push(format!(
                    "{user} {mailbox} {file:?}: ours {ours:?}, theirs {theirs:?}"
                ));
            }
        }
    }
    Some((differ, counts))
}

const VERSIONS: [(Version, &str); 2] = [(Version::V23, "2.3"), (Version::V24, "2.4")];

#[test]
fn verdicts_equal_those_of_dovecot_lda() {
    if not_root() {
        return;
    }
    for (version, name) in VERSIONS {
        let Some((differ, counts)) = compare(version, name, &fixed(), |_, _| true) else {
            return;
        };
        assert_eq!(differ, Vec::<String>::new(), "Dovecot {name}: {counts:?}");
        assert!(counts.iter().all(|&count| count > 20), "{counts:?}");
    }
}

/// The same of files that nobody has thought of: another one of the users delivers to each. `POSTROOM_SEED`: other files;
/// `POSTROOM_ACL_FILES`: how many.
#[test]
fn verdicts_of_random_files_equal_those_of_dovecot_lda() {
    if not_root() {
        return;
    }
    let number = |name, usual| std::env::var(name).map_or(usual, |it| it.parse().unwrap());
    let seed = number("POSTROOM_SEED", 1);
    let mut random = Random(seed);
    let files = 0..number("POSTROOM_ACL_FILES", 50);
    let files: Vec<String> = files.map(|_| random_file(&mut random)).collect();
    // Bob, who has groups, twice as often.
    let users = [USERS[0], USERS[1], USERS[1], USERS[2], USERS[3]];
    let users: Vec<_> = files
        .iter()
        .map(|_| users[random.below(5) as usize])
        .collect();
    for (version, name) in VERSIONS {
        let of = |user: &str, number: usize| users.get(number) == Some(&user);
        let Some((differ, counts)) = compare(version, name, &files, of) else {
            return;
        };
        assert_eq!(
            differ,
            Vec::<String>::new(),
            "Dovecot {name}, POSTROOM_SEED={seed}: {counts:?}"
        );
        assert!(
            counts.iter().all(|&count| count > 3),
            "{counts:?}, POSTROOM_SEED={seed}"
        );
    }
}

/// A new mailbox beside an INBOX that bob may create below: neither of us lets him, and one of alice's own inherits nothing.
#[test]
fn inbox_is_no_parent_to_dovecot_either() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let inbox = "home/alice/Maildir";
    store.scratch.maildir(inbox, MAIL, MAIL, 0o700);
    let file = format!("{inbox}/dovecot-acl");
    store
        .scratch
        .file(&file, MAIL, MAIL, 0o600, "user=bob lrkp\n");
    let create = |text: String| format!("lda_mailbox_autocreate = yes\n{text}");
    let Some(dovecot) = Dovecot::start_with(Version::V23, &store, create) else {
        return;
    };
    dovecot.lda("bob", "shared/alice/New", b"Subject: x\n\n");
    dovecot.lda("alice", "Own", b"Subject: x\n\n");
    let is_there = |below: &str| store.path(inbox).join(below).exists();
    assert!(!is_there(".New") && is_there(".Own") && !is_there(".Own/dovecot-acl"));
}

/// The same commands through both tools: the same exit codes, files and answers.
#[test]
fn commands_do_what_those_of_doveadm_do() {
    if not_root() {
        return;
    }
    // the file before; the commands, `;` between them
    #[rustfmt::skip]
    let cases: &[(&str, &str)] = &[
        ("", "set user=bob lookup read post"),
        ("", "set anyone all"),
        ("user=bob lr\n", "set user=bob insert"),
        ("user=bob lr\n-user=bob w\n", "set user=bob insert"),
        ("user=bob lr\n", "set user=bob -write"),
        ("user=bob lr\n", "set user=bob lookup -write"),
        ("user=bob lr\n", "add user=bob post"),
        ("user=bob lr\n", "add user=carol post"),
        ("user=bob lr\n", "add user=bob -read"),
        ("user=bob lrp\n", "remove user=bob post"),
        ("user=bob lrp\n", "remove user=bob lookup read post"),
        ("user=bob lrp\n", "remove user=carol post"),
        ("user=bob lrp\n-user=bob w\n", "remove user=bob -write"),
        ("user=bob lrp\nanyone l\n", "delete user=bob"),
        ("user=bob lrp\n-user=bob w\n", "delete user=bob"),
        ("user=bob lrp\n", "delete user=carol"),
        ("# comment\n\nuser=bob p\nanyone l\n", "add group=staff lookup"),
        ("", "set group-override=ops lookup :custom"),
        ("", "set user=b_b lookup; add owner lookup read; add authenticated post; get"),
        ("user=bob lr\nuser=bob p\n", "add anyone lookup"),
        ("", "set user=bob lr"),
        ("", "set bob lookup"),
        ("", "set user=bob"),
        ("user=bob lrp\nanyone -x\n", "get"),
        ("user=bob lrp\n-user=bob w\ngroup=g i :x\n", "get"),
        ("user=alice lrp\nanyone l\n", "get -m"),
        ("user=alice lrp\nanyone l\n", "rights"),
        ("owner lr\n", "rights"),
        ("-owner x\n", "rights"),
        ("bad line\n", "add anyone lookup"),
        ("bad line\n", "rights"),
    ];
    for (version, name) in VERSIONS {
        let store = Store::new();
        tree(&store, &fixed());
        let root = store.scratch.text("");
        let Some(dovecot) = Dovecot::start_with(version, &store, with_groups(version, &root))
        else {
            return;
        };
        let config = store.configure("", "");
        let with_version = format!("driver = \"vfile\"\ndovecot = \"{name}\"\n");
        replace_in(&config, "driver = \"vfile\"\n", &with_version);
        fs::copy(store.path("dovecot-users"), store.path("users")).unwrap();
        let words = |output: &std::process::Output| -> Vec<String> {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let words = text.split_whitespace().filter(|word| *word != "-");
            words.map(str::to_owned).collect()
        };
        let mut differ = Vec::new();
        for (number, (file, commands)) in cases.iter().enumerate() {
            for tool in ["O", "D"] {
                let below = format!("home/alice/Maildir/.{tool}{number}");
                store.scratch.maildir(&below, MAIL, MAIL, 0o700);
                store
                    .scratch
                    .file(&format!("{below}/dovecot-acl"), MAIL, MAIL, 0o600, file);
            }
            for command in commands.split("; ") {
                let mut parts = command.split(' ');
                let verb = parts.next().unwrap();
                let rest: Vec<&str> = parts.collect();
                let (options, rest): (Vec<&str>, Vec<&str>) =
                    rest.into_iter().partition(|it| *it == "-m");
                let mut ours = support::program("postroom");
                ours.arg("-c")
                    .arg(&config)
                    .args(["acl", verb, "-u", "alice"])
                    .args(&options);
                ours.arg(format!("O{number}")).args(&rest);
                let ours = ours.output().unwrap();
                if number == 0 {
                    let list = store.path("home/alice/Maildir/dovecot-acl-list");
                    let list = fs::read_to_string(list).unwrap();
                    assert!(list.lines().any(|line| line.ends_with(" O0")), "{list}");
                }
                let mailbox = format!("D{number}");
                let theirs = [
                    &["acl", verb, "-u", "alice"],
                    &options[..],
                    &["--", &mailbox],
                    &rest[..],
                ]
                .concat();
                let theirs = dovecot.doveadm(&theirs);
                let same = ours.status.code() == theirs.status.code()
                    && (!ours.status.success() || words(&ours) == words(&theirs));
                if !same {
                    let said = String::from_utf8_lossy(&ours.stderr).into_owned();
                    differ.push(format!(
                        "{file:?} {command}: ours {:?} {:?} {said}, theirs {:?} {:?} {}",
                        ours.status.code(),
                        words(&ours),
                        theirs.status.code(),
                        words(&theirs),
                        String::from_utf8_lossy(&theirs.stderr)
                    ));
                }
            }
            let after = |tool: &str| {
                fs::read_to_string(
                    store.path(&format!("home/alice/Maildir/.{tool}{number}/dovecot-acl")),
                )
                .unwrap()
            };
            if after("O") != after("D") {
                differ.push(format!(
                    "{file:?} {commands}: ours {:?}, theirs {:?}",
                    after("O"),
                    after("D")
                ));
            }
        }
        assert_eq!(differ, Vec::<String>::new(), "Dovecot {name}");
    }
}

/// A mailbox that is not there, and one that cannot be looked at.
#[test]
fn which_mailboxes_there_are() {
    if not_root() {
        return;
    }
    const BOB: u32 = 6002;
    const NODE: &str = "[placement]\nself = [\"node1\"]\n[node.node2]\nhost = \"192.0.2.2\"\n";
    const MBOX: &str = "[namespace.mbox]\nseparator = \"/\"\nprefix = \"#mbox/\"\nmail_driver = \"mbox\"\nmail_path = \"~/mail\"\n";
    const REQUIRED: &str = "required_paths = [\"/nonexistent\"]";
    // settings; the user and the mailbox; the exit code; what is said
    #[rustfmt::skip]
    let cases = [
        ("", "alice", "Work", 0, ""),
        ("", "alice", "None", 68, "there is no mailbox \"None\""),
        ("", "alice", "shared/none/Work", 68, "there is no mailbox \"shared/none/Work\": no such owner: none"),
        ("", "alice", "shared/bob/Projects", 75, "home/bob/Maildir/.Projects: Permission denied"),
        ("", "bob", "Projects", 0, ""),
        ("", "alice", "File", 75, "home/alice/Maildir/.File: it is no directory"),
        (REQUIRED, "alice", "Work", 75, "the required path /nonexistent: "),
        (NODE, "bob", "Projects", 75, "node2 (192.0.2.2:24) has the mailboxes of bob"),
        (NODE, "alice", "shared/bob/Projects", 75, "node2 (192.0.2.2:24) has shared/bob/Projects"),
        (NODE, "alice", "Work", 0, ""),
        (MBOX, "alice", "#mbox/box", 0, ""),
        (MBOX, "alice", "#mbox/folder/box", 0, ""),
        (MBOX, "alice", "#mbox/folder", 68, "there is no mailbox \"#mbox/folder\""),
        (MBOX, "alice", "#mbox/none", 68, "there is no mailbox \"#mbox/none\""),
    ];
    for (settings, user, mailbox, code, want) in cases {
        let store = Store::with_inbox();
        let work = "home/alice/Maildir/.Work";
        store.scratch.maildir(work, MAIL, MAIL, 0o700);
        for below in ["home/alice/mail", "home/alice/mail/folder"] {
            store.scratch.dir(below, MAIL, MAIL, 0o700);
        }
        for below in ["mail/box", "mail/folder/box", "Maildir/.File"] {
            let below = format!("home/alice/{below}");
            store.scratch.file(&below, MAIL, MAIL, 0o600, "");
        }
        for below in ["home/bob", "home/bob/Maildir", "home/bob/Maildir/.Projects"] {
            store.scratch.dir(below, BOB, BOB, 0o700);
        }
        let config = match settings {
            REQUIRED => store.configure(settings, ""),
            more => store.configure("", more),
        };
        let home = format!("{}::", store.scratch.text("home/bob"));
        let host = if settings == NODE {
            "userdb_host=node2"
        } else {
            ""
        };
        let line = |uid, host| format!("bob::{uid}:{uid}::{home}{host}");
        let users = fs::read_to_string(store.path("users")).unwrap();
        let users = replaced(&users, &line(MAIL, ""), &line(BOB, host));
        support::write_long_ago(&store.path("users"), &users);
        let acl = store.path("home/bob/Maildir/.Projects/dovecot-acl");
        support::own(&acl, BOB, BOB);
        for verb in ["debug", "rights", "add", "get"] {
            let change: &[&str] = match verb {
                "add" => &["user=carol", "lookup", "post"],
                _ => &[],
            };
            let mut command = support::program("postroom");
            command
                .arg("-c")
                .arg(&config)
                .args(["acl", verb, "-u", user, mailbox]);
            let output = command.args(change).output().unwrap();
            let case = format!("{settings} {verb} {user} {mailbox}: {output:?}");
            assert_eq!(output.status.code(), Some(code), "{case}");
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(
                said.contains(want) && said.is_empty() == want.is_empty(),
                "{case}"
            );
            if verb == "get" && code == 0 {
                let said = String::from_utf8(output.stdout).unwrap();
                assert!(said.contains("user=carol"), "{case}");
            }
        }
    }
}

/// Others see a mailbox by its own name, also where its files lie in a directory inside.
#[test]
fn with_directory_names() {
    let store = Store::new();
    let map = format!(
        "[acl_sharing_map.file]\npath = \"{}\"\n",
        store.scratch.text("home/map")
    );
    let config = store.with_directory_names(&["Work", "Work/Old"], &map);
    let postroom = |arguments: &[&str]| {
        let mut command = support::program("postroom");
        let output = command
            .arg("-c")
            .arg(&config)
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let root = store.path("home/alice/Maildir");
    for (mailbox, user) in [("INBOX", "carol"), ("Work/Old", "bob")] {
        let identifier = format!("user={user}");
        postroom(&["acl", "set", "-u", "alice", mailbox, &identifier, "lookup"]);
        let file = root.join(mailbox).join("D/dovecot-acl");
        assert_eq!(
            fs::read_to_string(file).unwrap(),
            format!("user={user} l\n")
        );
    }
    let list = fs::read_to_string(root.join("dovecot-acl-list")).unwrap();
    let names: Vec<&str> = list
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|it| it.1)
        .collect();
    assert_eq!(names, ["INBOX", "Work/Old"]);
    assert_eq!(
        postroom(&["share", "list"]),
        "alice -> bob\nalice -> carol\n"
    );
}

/// Whose rights count: `[acl] subject`, and who says who sends.
#[test]
fn subjects() {
    if not_root() {
        return;
    }
    let store = Store::new();
    store
        .scratch
        .maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
    let files = [
        ("any", "anyone lp"),
        ("bob", "user=bob lp"),
        ("alice", "user=alice lp"),
        ("group", "group=mail lp"),
    ];
    for (name, file) in files {
        store
            .scratch
            .maildir(&format!("public/.{name}"), MAIL, 100, 0o2770);
        store.scratch.file(
            &format!("public/.{name}/dovecot-acl"),
            MAIL,
            100,
            0o660,
            file,
        );
    }
    let config = store.configure("", "");
    let text = fs::read_to_string(&config).unwrap();
    // settings of [acl], who is said to send, by whom, the public mailboxes of alice that take her mail
    for (acl, sender, uid, open) in [
        ("", None, MAIL, &["any", "alice"][..]),
        (
            "groups_from = [\"userdb\", \"nss\"]",
            None,
            MAIL,
            &["any", "alice", "group"],
        ),
        ("subject = \"anonymous\"", None, MAIL, &["any"]),
        ("subject = \"owner\"", None, MAIL, &["any"]),
        ("subject = \"authenticated-sender\"", None, MAIL, &["any"]),
        (
            "subject = \"authenticated-sender\"",
            Some("bob"),
            MAIL,
            &["any", "bob"],
        ),
        (
            "subject = \"authenticated-sender\"",
            Some("bob"),
            0,
            &["any", "bob"],
        ),
        (
            "ignore = true",
            None,
            MAIL,
            &["any", "bob", "alice", "group"],
        ),
        ("globals_only = true", None, MAIL, &[]),
        (
            "[acl.entries]\nauthenticated = \"lp\"",
            None,
            MAIL,
            &["any", "bob", "alice", "group"],
        ),
        (
            "[acl.entries]\n\"group-override=x\" = \"-p\"\nanyone = \"-p\"",
            None,
            MAIL,
            &[],
        ),
    ] {
        let with = format!("driver = \"vfile\"\n{acl}\n");
        let with = replaced(&text, "driver = \"vfile\"\n", &with);
        fs::write(&config, format!("mail_uid = {MAIL}\n{with}")).unwrap();
        let takes = |name: &str| {
            let mut command = support::program("postroom-lda");
            command
                .arg("-c")
                .arg(&config)
                .args(["-d", "alice", "-m"])
                .arg(format!("Public/{name}"));
            command.args(["--dry-run", "--json"]);
            if let Some(sender) = sender {
                command.args(["--authenticated", sender]);
            }
            if uid != 0 {
                support::as_user(&mut command, uid, uid, &[100]);
            }
            let output = command.stdin(std::process::Stdio::null()).output().unwrap();
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            report["mailbox"] == format!("Public/{name}")
        };
        let found: Vec<&str> = files
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| takes(name))
            .collect();
        assert_eq!(found, open, "{acl} {sender:?}");
    }
    // Over LMTP: by AUTH=, from a peer that is trusted by the mode of its socket.
    for (mode, bob) in [("0660", "Public/bob"), ("0666", "INBOX")] {
        let with = "driver = \"vfile\"\nsubject = \"authenticated-sender\"\n";
        let with = replaced(&text, "driver = \"vfile\"\n", with);
        let with = replaced(&with, "mode = \"0666\"", &format!("mode = \"{mode}\""));
        fs::write(&config, with).unwrap();
        let log = store.path("run/log");
        let server = support::Server::start_as(&config, &store.path("run/lmtp"), &log, &[100]);
        let mut client = server.client();
        client.say("MAIL FROM:<whoever@x> AUTH=bob");
        client.say("RCPT TO:<alice+Public/bob@example.test>");
        client.say("DATA");
        client.send(b"x\r\n.\r\n");
        let reply = client.reply();
        assert!(
            reply.contains(&format!("mailbox=\"{bob}\"")),
            "{mode}: {reply} {}",
            server.log()
        );
    }
    // Anybody else is not believed.
    fs::write(&config, text).unwrap();
    let mut command = support::program("postroom-lda");
    command
        .arg("-c")
        .arg(&config)
        .args(["-d", "alice", "--authenticated", "bob"]);
    support::as_user(&mut command, MAIL, MAIL, &[]);
    let output = support::run_with_input(&mut command, b"x\n");
    assert_eq!(output.status.code(), Some(75));
}
