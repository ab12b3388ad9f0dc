//! One recipient: every step fails, and the process ends at every step, in a Maildir and in an mbox.

use std::collections::BTreeMap;
use std::iter;
use std::time::{Duration, SystemTime};

use super::*;
use crate::index::Transaction;
use crate::message::{Flags, Keywords};
use crate::sys::dir;
use crate::sys::fault_point::Failure;

/// An mbox of one message with UID 1, as Dovecot leaves it.
const MBOX: &str = "From x  Mon Nov 02 07:02:09 2026\nX-IMAPbase: 1795332733 0000000001\n\
                    X-UID: 1\nContent-Length: 4\n\nold\n\n";

/// A delivery.
struct Row {
    address: &'static str,
    with_inbox: bool,
    keyword: &'static str,
    is_thorough: bool,
}

const ROWS: [Row; 12] = [
    Row {
        is_thorough: true,
        ..row("alice", true)
    },
    row("alice", false),
    row("alice+Work", true),
    row("alice+Work/Deep", true),
    row("alice+Work/Deep", false),
    row("alice+Public/info", true),
    Row {
        is_thorough: true,
        ..row("alice+Public/info/Sub", true)
    },
    Row {
        keyword: "$Junk",
        ..row("alice", true)
    },
    Row {
        keyword: "$Junk",
        is_thorough: true,
        ..row("alice+Public/info", true)
    },
    Row {
        is_thorough: true,
        ..row("alice+Box/old", true)
    },
    row("alice+Box/new", true),
    row("alice+Box/deep/new", true),
];

const fn row(address: &'static str, with_inbox: bool) -> Row {
    Row {
        address,
        with_inbox,
        keyword: "",
        is_thorough: false,
    }
}

pub const BOXES: &str = "[namespace.boxes]\ntype = \"private\"\nseparator = \"/\"\nprefix = \"Box/\"\n\
                     mail_driver = \"mbox\"\nmail_path = \"~/boxes\"\nsubscriptions = false\n";

/// A store with an mbox beside the Maildirs, whose index is in step.
pub fn store(with_inbox: bool) -> Store {
    let store = Store::new(with_inbox);
    fs::write(store.path("public/.info/dovecot-acl"), "anyone lrwsipk\n").unwrap();
    fs::write(store.path("public/.info/dovecot-keywords"), "0 $Old\n").unwrap();
    let index = store.path("home/boxes/.imap/old");
    fs::create_dir_all(&index).unwrap();
    let old = store.path("home/boxes/old");
    fs::write(&old, MBOX).unwrap();
    let mut known = Transaction::default();
    known.mbox_for_tests(&dir::stat(&old).unwrap());
    known.append(&[(1, 0)]);
    let log = [log_for_tests(2, (0, 0), VALIDITY), known.into_bytes()].concat();
    fs::write(index.join("dovecot.index.log"), log).unwrap();
    store
}

pub fn core(store: &Store, more: &str) -> Core {
    store.core(&format!("{more}{BOXES}"))
}

/// Whatever is below the store, with mode and content; a directory has none.
type Tree = BTreeMap<PathBuf, (u32, Option<Vec<u8>>)>;

fn tree(store: &Store) -> Tree {
    fn add(tree: &mut Tree, root: &Path, path: &Path) {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let mode = fs::metadata(&path).unwrap().mode();
            let content = (!path.is_dir()).then(|| fs::read(&path).unwrap());
            if path.is_dir() {
                add(tree, root, &path);
            }
            let name = path.strip_prefix(root).unwrap().to_owned();
            tree.insert(name, (mode, content));
        }
    }
    let mut tree = Tree::new();
    add(&mut tree, store.0.path(), store.0.path());
    tree
}

/// Files that a delivery writes to.
fn is_written_to(path: &Path) -> bool {
    const NAMES: [&str; 6] = [
        "dovecot-uidlist",
        "dovecot-keywords",
        "dovecot.index.log",
        "subscriptions",
        "old",
        "new",
    ];
    let name = path.file_name().unwrap().to_str().unwrap();
    NAMES.contains(&name)
}

/// Locks of a process that has ended are looked into when they are not quite new.
pub fn let_time_pass(store: &Store) {
    for (path, _) in files(store.0.path()) {
        if path.extension().is_some_and(|end| end == "lock") {
            let file = fs::File::options().write(true).open(path).unwrap();
            let long_ago = SystemTime::now() - Duration::from_secs(10);
            file.set_modified(long_ago).unwrap();
        }
    }
}

/// How a process may end. Not where a lock has its name before its content: one that names nobody holds the next delivery up.
pub fn ends() -> impl Iterator<Item = Failure> {
    let ends = fault_point::ENDS.into_iter();
    ends.filter(|_| !dir::has_names())
}

/// The messages that readers see below a place, all of them whole: in a Maildir, or in an mbox behind what was there.
pub fn seen(store: &Store, place: &str, case: &str) -> usize {
    let path = store.path(place);
    if place.contains("boxes") {
        return seen_in_mbox(&path, case);
    }
    let mut count = 0;
    for part in ["new", "cur"] {
        for (path, bytes) in files(&path.join(part)) {
            assert_eq!(bytes, STORED, "{case}: {}", path.display());
            count += 1;
        }
    }
    count
}

fn seen_in_mbox(path: &Path, case: &str) -> usize {
    let Ok(text) = fs::read_to_string(path) else {
        return 0;
    };
    let mut rest = text.as_str();
    if path.ends_with("old") {
        let (before, last) = (&MBOX[..56], &MBOX[66..]);
        assert!(
            rest.starts_with(before) && rest[66..].starts_with(last),
            "{case}: {text}"
        );
        rest = &rest[MBOX.len()..];
    }
    let (mut count, mut uids) = (0, Vec::new());
    for message in rest.split("From MAILER-DAEMON ").skip(1) {
        let (header, body) = message.split_once("\n\n").expect(case);
        assert!(header.contains("\nSubject: one\n"), "{case}: {text}");
        assert_eq!(body, ".a line\nlast\n\n", "{case}: {text}");
        let lines = header.lines();
        uids.extend(lines.filter_map(|it| it.strip_prefix("X-UID: ")?.parse::<u32>().ok()));
        count += 1;
    }
    assert!(
        rest.is_empty() || rest.starts_with("From MAILER-DAEMON "),
        "{case}: {text}"
    );
    assert!(
        uids.is_sorted_by(|one, next| one < next) && !uids.contains(&1),
        "{case}: {text}"
    );
    count
}

/// Lists of UIDs, indexes and subscriptions are whole, and nobody is locked out.
pub fn assert_whole(store: &Store, case: &str) {
    let known = |place: &str| {
        let dir = Dir::open(&store.path(place)).unwrap();
        let walks = Walks::default();
        let log = Log::lock(&dir, Pair::MAILBOX, LockMethod::Fcntl, &walks, log::TIMEOUT);
        let log = match log {
            // The end came within a write to it: Dovecot makes it anew.
            Err(error) if case.contains("EndWithin") => {
                assert!(error.to_string().contains("not whole"), "{case}: {error}");
                return 2;
            }
            log => log.unwrap().unwrap(),
        };
        let state = log.state();
        assert_eq!(state.validity, VALIDITY, "{case}: {place}");
        state.next_uid
    };
    let list = fs::read_to_string(store.path("public/.info/dovecot-uidlist")).unwrap();
    let (header, lines) = list.split_once('\n').unwrap();
    assert!(header.starts_with("3 V1795332733 N"), "{case}: {list}");
    assert!(
        lines.starts_with("3 :other\n") && lines.ends_with('\n'),
        "{case}: {list}"
    );
    let uids: Vec<u32> = lines
        .lines()
        .map(|it| it.split_once(" :").unwrap().0.parse().unwrap())
        .collect();
    assert!(uids.is_sorted_by(|one, next| one < next), "{case}: {list}");
    // Behind the list at worst, never ahead of it.
    assert!(
        known("public/.info") <= uids.last().unwrap() + 1,
        "{case}: {list}"
    );
    assert!(known("home/boxes/.imap/old") >= 2, "{case}");
    let keywords = fs::read_to_string(store.path("public/.info/dovecot-keywords")).unwrap();
    assert!(
        ["0 $Old\n", "0 $Old\n1 $Junk\n"].contains(&keywords.as_str()),
        "{case}: {keywords}"
    );
    for (path, bytes) in files(&store.path("public/.info/cur")) {
        let is_lettered = path
            .to_str()
            .unwrap()
            .split(":2,")
            .nth(1)
            .unwrap()
            .contains('b');
        assert!(
            !is_lettered || keywords.contains("$Junk"),
            "{case}: {bytes:?}"
        );
    }
    if let Ok(subscribed) = fs::read_to_string(store.path("home/Maildir/subscriptions")) {
        let line = subscribed.strip_prefix("V\t2\n\n").unwrap_or_default();
        let known = [
            "Work\n",
            "Work\tDeep\n",
            "Box/new\n",
            "Box/deep/new\n",
            "Public/info\tSub\n",
        ];
        assert!(known.contains(&line), "{case}: {subscribed}");
    }
    let tree = tree(store);
    let (mut locks, mut unseen) = (Vec::new(), Vec::new());
    for path in tree.keys() {
        let name = path.file_name().unwrap().to_str().unwrap();
        locks.extend(name.ends_with(".lock").then_some(path));
        let is_unseen = path.parent().unwrap().ends_with("tmp");
        unseen.extend(is_unseen.then_some(path));
    }
    // One whose removal was the step that failed: every reader takes it away in time.
    let most = usize::from(dir::has_names());
    assert!(
        locks.is_empty() && unseen.len() <= most,
        "{case}: {locks:?} {unseen:?}"
    );
}

fn place_of(address: &str) -> &'static str {
    match address.split_once('+').map_or("", |(_, mailbox)| mailbox) {
        "" => "home/Maildir",
        "Work" => "home/Maildir/.Work",
        "Work/Deep" => "home/Maildir/.Work.Deep",
        "Public/info" => "public/.info",
        "Public/info/Sub" => "public/.info.Sub",
        "Box/old" => "home/boxes/old",
        "Box/new" => "home/boxes/new",
        "Box/deep/new" => "home/boxes/deep/new",
        other => panic!("{other}"),
    }
}

impl Row {
    fn deliver(&self, store: &Store) -> Outcome {
        let core = core(store, "");
        let mut recipient = recipient(self.address);
        if let Some(keyword) = Keywords::parse(self.keyword) {
            recipient.keywords = keyword;
            recipient.flags = Flags::SEEN;
        }
        core.deliver(&core.transaction(message(), 1), &recipient)
    }

    /// What there is where nothing fails.
    fn usual(&self) -> Tree {
        let store = store(self.with_inbox);
        let outcome = self.deliver(&store);
        assert!(
            matches!(outcome, Outcome::Saved(_)),
            "{}: {outcome:?}",
            self.address
        );
        tree(&store)
    }

    /// Lets one step fail. False: there was no such step any more. `usual`: modes of what may be made.
    fn fails_well(&self, usual: &Tree, failure: Failure, step: usize) -> bool {
        let store = store(self.with_inbox);
        let place = place_of(self.address);
        let before = tree(&store);
        fault_point::arm(step, failure);
        let outcome = self.deliver(&store);
        let fired = !fault_point::disarm();
        let case = format!(
            "{} {}, INBOX there: {}, {failure:?} at {step}: {outcome:?}",
            self.address, self.keyword, self.with_inbox
        );
        let has_ended = fault_point::ENDS.contains(&failure) && fired;
        let is_saved = matches!(outcome, Outcome::Saved(_));
        match &outcome {
            Outcome::Saved(_) => assert_eq!(seen(&store, place, &case), 1, "{case}"),
            Outcome::Deferred(fault) => {
                assert!(
                    fault.code.is_temporary() && fault.code.exit() == 75,
                    "{case}"
                );
                assert!(fired, "{case}");
            }
            Outcome::Rejected(_) => panic!("{case}"),
        }
        if !has_ended {
            let after = tree(&store);
            self.assert_untouched(&before, &after, is_saved, &case);
            for (path, (mode, _)) in &after {
                // A name of a message is another one each time.
                let wanted = usual.get(path).map(|(mode, _)| mode);
                assert!(
                    wanted.is_none_or(|it| it == mode),
                    "{case}: {}: {mode:o}",
                    path.display()
                );
            }
            assert_whole(&store, &case);
        }
        if is_saved && !fired {
            return false;
        }
        let_time_pass(&store);
        // What ends within a write to an mbox leaves a part of a message, until the next one comes.
        let is_mbox = place.contains("boxes");
        let had = if has_ended && is_mbox {
            1
        } else {
            seen(&store, place, &case)
        };
        let again = self.deliver(&store);
        let case = format!("{case}\nthe next try: {again:?}");
        assert!(matches!(again, Outcome::Saved(_)), "{case}");
        let has = seen(&store, place, &case);
        assert!(
            has == had + 1 || is_mbox && has_ended && has == 1,
            "{case}: {had}, {has}"
        );
        // Whoever has heard of no end sends it again: one that was there already is there twice.
        assert!(has <= 1 + usize::from(has_ended || is_saved), "{case}");
        if has_ended {
            self.sweep(&store);
        }
        assert_whole(&store, &case);
        fired
    }

    /// What an ended process leaves that no reader minds, and that goes in time: a lock that names nobody is broken when it is old.
    fn sweep(&self, store: &Store) {
        for (path, _) in files(store.0.path()) {
            if path.parent().unwrap().ends_with("tmp") || path.ends_with("subscriptions.lock") {
                fs::remove_file(path).unwrap();
            }
        }
    }

    /// What an answer says nothing of is as it was, to the byte.
    fn assert_untouched(&self, before: &Tree, after: &Tree, is_saved: bool, case: &str) {
        for (path, was) in before {
            let is_its = is_saved && is_written_to(path);
            // A letter that nobody uses, a UID of a message that was taken back: it is not given again.
            let is_letter = !self.keyword.is_empty() && path.ends_with("dovecot-keywords");
            let is_spent = is_letter || path.ends_with("dovecot-uidlist");
            let (now, was_bytes) = (after.get(path), was.1.as_deref().unwrap_or_default());
            let grows = now.is_some_and(|(mode, bytes)| {
                *mode == was.0 && bytes.as_ref().is_some_and(|it| it.starts_with(was_bytes))
            });
            let may_change = is_its || is_spent && grows;
            if !may_change {
                assert_eq!(now, Some(was), "{case}: {}", path.display());
            }
        }
        let mut new = after.iter().filter(|(path, _)| !before.contains_key(*path));
        if !is_saved {
            let left = new.find(|(path, (_, content))| {
                let name = path.file_name().unwrap().to_str().unwrap();
                // A number (and the root that it is in), or a letter, that nobody uses, and a list, which somebody may have read.
                let is_spent = name.starts_with("dovecot-uidvalidity")
                    || path.ends_with("home/Maildir")
                    || name == "dovecot-keywords" && !self.keyword.is_empty()
                    || name == "dovecot-uidlist";
                // An mbox that somebody may wait for already.
                let is_mbox = path.starts_with("home/boxes")
                    && content.as_ref().is_none_or(|content| content.is_empty());
                !is_spent && !is_mbox
            });
            assert_eq!(left, None, "{case}");
        }
    }
}

#[test]
fn nothing_is_lost_or_left_behind() {
    if !as_ordinary_user("every_step_fails::one::nothing_is_lost_or_left_behind") {
        return;
    }
    let (seed, is_full) = (seed(), is_full());
    for (at, row) in ROWS.into_iter().enumerate() {
        let usual = row.usual();
        let fail = |failures: &mut dyn Iterator<Item = Failure>, takes_turns: bool| {
            let mut steps = 0;
            for (step, failure) in failures.enumerate() {
                // There are fewer writes than steps.
                let is_beyond = takes_turns && matches!(failure, Failure::Short(_));
                if !row.fails_well(&usual, failure, step) && !is_beyond {
                    break;
                }
                steps = step;
            }
            assert!(steps > 0, "{}: no step can fail", row.address);
        };
        let one = |failure| fail(&mut iter::repeat(failure), false);
        ends().for_each(one);
        // Each of them at each step where most is done; else they take turns, and begin with another one each time.
        match row.is_thorough || is_full {
            true => fault_point::FAILURES.into_iter().for_each(one),
            false => [seed + at, seed + at + 3]
                .into_iter()
                .for_each(|from| fail(&mut turning(from), true)),
        }
    }
}

/// Whether no failure is left out.
pub fn is_full() -> bool {
    std::env::var("POSTROOM_FAULTS").is_ok_and(|it| it == "all")
}

/// What can happen, one after the other, from any number on.
pub fn turning(from: usize) -> impl Iterator<Item = Failure> {
    let all = fault_point::FAILURES;
    all.into_iter().cycle().skip(from % all.len())
}
