//! `postroom config import`: Dovecot's configurations, whole ones, broken ones, and what comes out of them.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use postroom::import::{self, Imported};
use support::peers::{VERSIONS, Version, doveconf};
use support::{Scratch, program, replaced, skip};

/// The configurations below `tests/import/FOLDER`, by their names.
fn configurations(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/import")
        .join(folder);
    let mut found: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "conf"))
        .filter(|path| !path.to_string_lossy().ends_with(".rejected.conf"))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{}", folder.display());
    found
}

/// Numbers that look random and are the same each time (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

/// A line dropped, doubled or cut, or a byte changed.
fn mutated(bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    let lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
    let at = dice.below(lines.len());
    let mut out: Vec<&[u8]> = lines.clone();
    match dice.below(4) {
        0 => drop(out.remove(at)),
        1 => out.insert(at, lines[at]),
        2 => out[at] = &lines[at][..dice.below(lines[at].len())],
        _ => {
            let mut bytes = bytes.to_vec();
            let at = dice.below(bytes.len());
            let letters = b"\"'#{}=$%<\\!/ \t\r\n\0ax0\xff";
            bytes[at] = letters[dice.below(letters.len())];
            return bytes;
        }
    }
    out.concat()
}

/// What is said, without the numbers of lines.
fn said(imported: &Imported) -> BTreeSet<String> {
    let all = imported.warnings.iter().chain(&imported.to_mend);
    all.map(|text| text.chars().filter(|c| !c.is_ascii_digit()).collect())
        .collect()
}

/// Neither a panic nor a hang; and what Dovecot does not take is not taken without a word.
#[test]
fn broken_configurations() {
    if !VERSIONS.iter().all(|&version| doveconf(version).is_some()) {
        skip("doveconf of both versions is not here");
        return;
    }
    let bases: Vec<Base> = ["seeds", "sites", "shipped"]
        .iter()
        .flat_map(|folder| configurations(folder))
        .map(Base::new)
        .collect();
    let known = bases.iter().filter(|it| it.is_known).count();
    assert!(known > 25, "{known} configurations can be compared");
    let found: Vec<Found> = thread::scope(|scope| {
        let rounds = (0..THREADS).map(|thread| {
            let bases = &bases;
            scope.spawn(move || rounds(bases, thread))
        });
        let started: Vec<_> = rounds.collect();
        started.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let taken: Vec<&String> = found.iter().flat_map(|it| &it.taken).collect();
    assert!(taken.is_empty(), "{taken:#?}");
    let rejected: usize = found.iter().map(|it| it.rejected).sum();
    let silent: usize = found.iter().map(|it| it.silent).sum();
    eprintln!("{rejected} rejected, {silent} taken without a word");
    assert!(rejected > 500 && silent > 500, "{rejected} {silent}");
}

const THREADS: usize = 3;

/// A configuration that is as it should be.
struct Base {
    path: PathBuf,
    text: Vec<u8>,
    /// What is said of it.
    said: BTreeSet<String>,
    version: Version,
    /// This doveconf has all the packages that it needs.
    is_known: bool,
}

impl Base {
    fn new(path: PathBuf) -> Base {
        let text = fs::read(&path).unwrap();
        let scratch = Scratch::new();
        let copy = scratch.path("dovecot.conf");
        fs::write(&copy, &text).unwrap();
        let version = match String::from_utf8_lossy(&text).contains("dovecot_config_version") {
            true => Version::V24,
            false => Version::V23,
        };
        Base {
            said: import::import(&copy)
                .map(|it| said(&it))
                .unwrap_or_default(),
            is_known: doveconf(version).unwrap().show(&copy).status.success(),
            path,
            text,
            version,
        }
    }
}

#[derive(Default)]
struct Found {
    rejected: usize,
    silent: usize,
    /// What Dovecot does not take, and nothing was said of.
    taken: Vec<String>,
}

/// A share of 10,000 rounds.
fn rounds(bases: &[Base], thread: usize) -> Found {
    let scratch = Scratch::new();
    let path = scratch.path("dovecot.conf");
    let mut dice = Dice(20_261_129 + thread as u64);
    let mut found = Found::default();
    for round in (0..10_000).filter(|it| it % THREADS == thread) {
        let base = &bases[round / THREADS % bases.len()];
        let text = mutated(&base.text, &mut dice);
        fs::write(&path, &text).unwrap();
        let Ok(imported) = import::import(&path) else {
            found.rejected += 1;
            continue;
        };
        let parsed = imported.toml.parse::<toml::Table>();
        assert!(parsed.is_ok(), "{parsed:?}\n{}", imported.toml);
        if round % 20 == thread {
            let toml = scratch.path("postroom.toml");
            fs::write(&toml, &imported.toml).unwrap();
            let code = postroom::admin::check::check(Some(&toml), Some(&path), &mut Vec::new());
            assert!(matches!(code.unwrap(), 0 | 78));
        }
        if !base.is_known || said(&imported).difference(&base.said).next().is_some() {
            continue;
        }
        found.silent += 1;
        let output = doveconf(base.version).unwrap().show(&path);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = String::from_utf8_lossy(&text);
        for word in error.lines().filter(|line| is_syntax(line)) {
            let at = line_of(word).unwrap_or(1);
            if !is_elsewhere(word, &imported.toml, &path, &text, at) {
                let line = text.split('\n').nth(at - 1).unwrap_or_default();
                found
                    .taken
                    .push(format!("{}: {line:?}: {word}", base.path.display()));
            }
        }
    }
    found
}

/// The line that doveconf names.
fn line_of(word: &str) -> Option<usize> {
    word.split(" line ").nth(1)?.split(':').next()?.parse().ok()
}

/// Whether a line of doveconf's is about how the file is written, not about what a value is.
fn is_syntax(line: &str) -> bool {
    let words = [
        "Expecting",
        "Garbage after",
        "Unexpected '}'",
        "Missing '}'",
        "not allowed here",
        "missing section name",
        "Unknown section",
        "Unknown setting",
        "must be dovecot_config_version",
    ];
    words.iter().any(|it| line.contains(it))
}

/// Misspelt where nothing is of a delivery: the result names it, or its section, among what was left out.
fn is_elsewhere(word: &str, toml: &str, path: &Path, text: &str, line: usize) -> bool {
    let Some((_, name)) = word.split_once("Unknown setting: ") else {
        return false;
    };
    let key = name.split(" (").next().unwrap_or(name);
    let key = key.rsplit("{ ").next().unwrap_or(key);
    let is_named = toml.replace("\n#   ", " ").contains(&format!("{key} ("));
    is_named || within_named(&name_of(path), text, toml, line)
}

/// What Postroom would not start with, and Dovecot's documents warn of or only a userdb makes right.
const LEFT: [(&str, &str); 4] = [
    (
        "08-per-user-namespace-location-from-sql.conf",
        "namespace/docs/location of each user",
    ),
    ("03-values-from-userdb.conf", "have the same prefix"),
    ("20-freebsd-virtual.conf", "would conflict"),
    // Dovecot gives mail for an owner's INBOX to the one who looks.
    ("20-freebsd-virtual.conf", "names no owner"),
];

/// Each line of a whole configuration has become one of ours, or its reason is said.
#[test]
fn whole_configurations() {
    let scratch = Scratch::new();
    for folder in ["shipped", "sites", "seeds"] {
        for path in configurations(folder) {
            let mut import = program("postroom");
            let output = import
                .args(["config", "import"])
                .arg(&path)
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            let toml = String::from_utf8_lossy(&output.stdout).into_owned();
            // Files that are elsewhere are the admin's to look for.
            let left = error.lines().filter(|it| it.starts_with("to mend: "));
            let is_known = |line: &&str| {
                let of_file = LEFT.iter().filter(|(file, _)| path.ends_with(file));
                let mut parts = of_file.map(|(_, part)| *part);
                parts.any(|part| line.contains(part))
                    || line.contains("cannot be read here")
                    || line.contains("is hidden")
            };
            let left: Vec<&str> = left.filter(|it| !is_known(it)).collect();
            assert!(left.is_empty(), "{}: {left:#?}", path.display());
            assert!(
                !error.contains("not known to Postroom"),
                "{}: {error}",
                path.display()
            );
            let file = scratch.path("postroom.toml");
            fs::write(&file, &toml).unwrap();
            explained(&path, &name_of(&path), &toml);
        }
    }
}

/// Every line with a setting is named by the result, as `file:line`.
fn explained(path: &Path, shown: &str, toml: &str) {
    let text = fs::read_to_string(path).unwrap();
    let mut missing = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        let is_setting = line.contains('=') && !line.starts_with('#');
        let place = format!("{shown}:{}", at + 1);
        let after = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_digit());
        let named = toml
            .match_indices(&place)
            .any(|(at, _)| after(&toml[at + place.len()..]));
        if is_setting && !named {
            missing.push((at + 1, line.to_owned()));
        }
    }
    // A section that is left out, or taken, as a whole is named by the line that it begins in.
    missing.retain(|(line, _)| !within_named(shown, &text, toml, *line));
    assert!(
        missing.is_empty(),
        "{}: {missing:#?}\n{toml}",
        path.display()
    );
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn within_named(shown: &str, text: &str, toml: &str, line: usize) -> bool {
    let mut open: Vec<usize> = Vec::new();
    for (at, text) in text.lines().enumerate().take(line) {
        let text = text.split(" #").next().unwrap_or(text).trim();
        if text.starts_with('#') {
            continue;
        }
        match (text.ends_with('{'), text == "}") {
            (true, _) => open.push(at + 1),
            (_, true) => drop(open.pop()),
            _ => {}
        }
    }
    open.iter().any(|at| {
        let place = format!("{shown}:{at}");
        let after = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_digit());
        toml.match_indices(&place)
            .any(|(from, _)| after(&toml[from + place.len()..]))
    })
}

/// `postroom check --against`: the same from both files is nothing to say, and each difference is told with both places.
#[test]
fn check_against_a_dovecot() {
    let scratch = Scratch::new();
    let theirs = scratch.path("dovecot.conf");
    let text = "\
        mail_location = maildir:~/Maildir\n\
        mail_home = /srv/home/%n\n\
        lock_method = fcntl\n\
        mail_plugins = acl\n\
        namespace inbox {\n  inbox = yes\n  separator = /\n}\n\
        namespace old {\n  prefix = Old/\n  separator = /\n  location = mbox:~/mail:INBOX=/var/mail/%n\n}\n\
        namespace public {\n  type = public\n  prefix = Public/\n  separator = /\n  subscriptions = no\n  location = maildir:/srv/public:INDEX=/srv/index\n}\n\
        plugin {\n  acl = vfile\n}\n\
        userdb {\n  driver = static\n  args = uid=5000 gid=5000 home=/srv/home/%d/%n allow_all_users=yes\n}\n\
        namespace compat {\n  prefix = ~%u/mail/\n  separator = /\n  hidden = yes\n  list = no\n  alias_for =\n}\n";
    fs::write(&theirs, text).unwrap();
    let output = program("postroom")
        .args(["config", "import"])
        .arg(&theirs)
        .output()
        .unwrap();
    let toml = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    let same: &[(&str, &str)] = &[
        ("", ""),
        ("\"~/Maildir\"", "\"%{home}/Maildir/\""),
        ("\"/srv/home/%n\"", "\"/srv/home/%{user | username}\""),
        ("\"/srv/home/%d/%n\"", "\"/srv/home/%{user | domain}/%n\""),
        ("\"~%u/mail/\"", "\"~%{user}/mail/\""),
        ("[delivery]", "[delivery]\nindex_log = \"off\""),
    ];
    for (from, to) in same {
        let found = against(&scratch, &replaced(&toml, from, to), &theirs);
        assert_eq!(found, Vec::<String>::new(), "{from} {to}");
    }
    for (from, to, words) in [
        (
            "\"/srv/public\"",
            "\"/srv/other\"",
            &[
                "mailboxes of \"Public/\": mail_path is \"/srv/other\" here (",
                "postroom.toml:32) and \"/srv/public\" in Dovecot (dovecot.conf:19)",
            ][..],
        ),
        ("\"/srv/index\"", "\"MEMORY\"", &["mail_index_path"][..]),
        (
            "mail_index_path = \"/srv/index\"",
            "",
            &["mail_index_path is \"/srv/public\" here and \"/srv/index\""][..],
        ),
        (
            "\"/var/mail/%n\"",
            "\"/var/spool/%n\"",
            &["mailboxes of \"Old/\": mail_inbox_path"][..],
        ),
        (
            "\"Old/\"",
            "\"Older/\"",
            &[
                "Dovecot has a namespace with the prefix \"Old/\"",
                "Postroom has a namespace with the prefix \"Older/\"",
            ][..],
        ),
        (
            "[\"fcntl\", \"dotlock\"]",
            "[\"dotlock\", \"fcntl\"]",
            &["mbox_write_locks is"][..],
        ),
        (
            "lock_method = \"fcntl\"",
            "lock_method = \"flock\"",
            &["lock_method is"][..],
        ),
        (
            "\"/srv/home/%n\"",
            "\"/home/%n\"",
            &["mail_home is \"/home/Some.Body+x\""][..],
        ),
        (
            "driver = \"vfile\"",
            "driver = \"none\"",
            &["acl.driver is"][..],
        ),
        (
            "\"/srv/home/%d/%n\"",
            "\"/srv/%d/%n\"",
            &[
                "userdb[0].static.home is \"/srv/Example.org/Some.Body+x\" here (",
                "and \"/srv/home/Example.org/Some.Body+x\" in Dovecot (dovecot.conf:24)",
            ][..],
        ),
        (
            "gid = \"5000\"",
            "gid = 5001",
            &["userdb[0].static.gid is \"5001\" here"][..],
        ),
        (
            "static = {",
            "passwd = {}  # static = {",
            &["userdb is \"passwd\" here and \"static\" in Dovecot"][..],
        ),
        (
            "mail_driver = \"mbox\"",
            "mail_driver = \"mbox\"\nmailbox_subscriptions_filename = \"subs\"",
            &["mailboxes of \"Old/\": mailbox_subscriptions_filename is \"subs\" here"][..],
        ),
        (
            "subscriptions = false",
            "subscriptions = true",
            &["mailboxes of \"Public/\": subscriptions is \"true\" here"][..],
        ),
        (
            "mail_driver = \"mbox\"",
            "mail_driver = \"maildir\"",
            &["mail_driver is \"Maildir\" here"][..],
        ),
    ] {
        let found = against(&scratch, &replaced(&toml, from, to), &theirs).join("\n");
        for word in words {
            assert!(found.contains(word), "{to}: {word}\n{found}");
        }
    }
    fs::write(&theirs, "namespace {\n").unwrap();
    let found = against(&scratch, &toml, &theirs).join("\n");
    assert!(
        found.contains("against: dovecot.conf:1: this namespace has no closing brace"),
        "{found}"
    );
}

/// The lines that are about the other configuration.
fn against(scratch: &Scratch, toml: &str, theirs: &Path) -> Vec<String> {
    let ours = scratch.path("postroom.toml");
    fs::write(&ours, toml).unwrap();
    let mut check = program("postroom");
    check
        .arg("-c")
        .arg(&ours)
        .args(["check", "--against"])
        .arg(theirs);
    let output = check.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let found: Vec<String> = text
        .lines()
        .filter(|it| it.contains("against:"))
        .map(str::to_owned)
        .collect();
    let errors = found.iter().any(|it| it.starts_with("error: "));
    assert!(!errors || output.status.code() == Some(78), "{text}");
    assert!(text.contains("warnings outside the file"), "{text}");
    found
}

/// `conf.d` and what it includes: each line is named by the file that it is in.
#[test]
fn configurations_of_several_files() {
    for version in ["2.3", "2.4"] {
        let tree =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/import/tree-{version}"));
        let imported = import::import(&tree.join("dovecot.conf")).unwrap();
        assert_eq!(imported.to_mend, Vec::<String>::new(), "{version}");
        let folders = [tree.clone(), tree.join("conf.d")];
        let files = folders
            .iter()
            .flat_map(|folder| fs::read_dir(folder).unwrap());
        let files: Vec<PathBuf> = files
            .map(|it| it.unwrap().path())
            .filter(|it| it.is_file())
            .collect();
        // One is not included.
        let read = files.iter().filter(|it| !it.ends_with("auth-sql.conf.ext"));
        for file in read {
            let shown = file.strip_prefix(&tree).unwrap().display().to_string();
            explained(file, &shown, &imported.toml);
        }
    }
}
