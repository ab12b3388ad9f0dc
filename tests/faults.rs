//! Each system call of a delivery fails once, with each error that a disk, a quota, a signal or a shortage can bring, as strace makes
//! it fail: whoever was told that his message is stored has it once, nobody sees a part of one, nothing is left behind, and the
//! next delivery is as any other.
//!
//! So many points of each kind of delivery; all of them with `POSTROOM_FAULTS=all`.

mod support;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use support::agent::{AGENTS, Agent, Delivered, THREE, USERS};
use support::imap::Imap;
use support::peers::{Dovecot, Version};
use support::places::{self, INBOX, KEYWORD, MBOX, NEW, PUBLIC, Place};
use support::{MAIL, Server, Store, installed, not_root, skip, subject};

const CALLS: [&str; 28] = [
    "openat",
    "mkdirat",
    "read",
    "pread64",
    "write",
    "writev",
    "pwrite64",
    "linkat",
    "rename",
    "renameat",
    "renameat2",
    "unlinkat",
    "fsync",
    "fdatasync",
    "fallocate",
    "ftruncate",
    "fchmod",
    "fchown",
    "fcntl",
    "utimensat",
    "fsetxattr",
    "fgetxattr",
    "fstat",
    "newfstatat",
    "getdents64",
    "sendto",
    "recvmsg",
    "clone",
];
/// By these the threads of the server wake each other, too: there they never fail.
const OF_THREADS: [&str; 6] = ["read", "write", "fcntl", "sendto", "recvmsg", "clone"];
const ERRORS: [&str; 7] = [
    "EIO", "ENOSPC", "EDQUOT", "EINTR", "EMFILE", "ENOMEM", "ESTALE",
];
/// Of each row, where not all are asked for.
const POINTS: usize = 25;

/// One call that fails: its name, which one of it, and how.
type Point = (&'static str, usize, &'static str);

/// A delivery of the row, with arguments for strace.
fn deliver(store: &Store, agent: Agent, place: &Place, id: &str, strace: &[&str]) -> Delivered {
    let message = place.message(id, 3);
    match *place == THREE {
        true => agent.deliver_to(store, &["alice@x", "bob@x", "carol@x"], &message, strace),
        false => agent.deliver(store, place, &message, strace),
    }
}

/// Every call of a delivery that can fail, once for each error.
fn points(store: &Store, agent: Agent, place: &Place) -> Vec<Point> {
    let trace = store.scratch.text("run/trace");
    let calls = format!("trace={}", CALLS.join(","));
    deliver(
        store,
        agent,
        place,
        "counted",
        &["-e", &calls, "-o", &trace],
    );
    // strace counts those of each task.
    let mut counts: HashMap<(String, &str), usize> = HashMap::new();
    for line in fs::read_to_string(&trace).unwrap().lines() {
        let (task, rest) = line.split_once(' ').unwrap();
        let name = rest.trim_start().split('(').next().unwrap();
        if let Some(call) = CALLS.into_iter().find(|call| *call == name) {
            *counts.entry((task.to_owned(), call)).or_default() += 1;
        }
    }
    let mut most: BTreeMap<&str, usize> = BTreeMap::new();
    for ((_, call), count) in counts {
        let known = most.entry(call).or_default();
        *known = (*known).max(count);
    }
    if agent == Agent::Lmtp {
        most.retain(|call, _| !OF_THREADS.contains(call));
    }
    let each = most
        .into_iter()
        .flat_map(|(call, count)| (1..=count).map(move |nth| (call, nth)));
    each.flat_map(|(call, nth)| ERRORS.map(|error| (call, nth, error)))
        .collect()
}

/// The mailboxes of a row, below the store.
fn paths(place: &Place) -> Vec<String> {
    match *place == THREE {
        true => USERS.map(|user| format!("home/{user}/Maildir")).to_vec(),
        false => vec![place.path.to_owned()],
    }
}

/// How often each message is in a mailbox, as the files have it. A part of one is none.
#[derive(Default)]
struct Seen {
    known: HashSet<PathBuf>,
    count: HashMap<String, usize>,
}

impl Seen {
    fn look(&mut self, path: &Path, case: &str) {
        if path.is_dir() {
            for part in ["new", "cur"] {
                for entry in fs::read_dir(path.join(part)).unwrap() {
                    let path = entry.unwrap().path();
                    if self.known.insert(path.clone()) {
                        self.add(&fs::read(&path).unwrap(), case);
                    }
                }
            }
        } else if let Ok(text) = fs::read_to_string(path) {
            assert!(text.is_empty() || text.starts_with("From "), "{case}");
            self.count.clear();
            for message in format!("\n{text}").split("\nFrom ").skip(1) {
                self.add(message.as_bytes(), case);
            }
        }
    }

    fn add(&mut self, message: &[u8], case: &str) {
        let id = subject(message);
        let want = places::body(&id, 3);
        assert_eq!(
            places::body_of(message).trim_end(),
            want.trim_end(),
            "{case}"
        );
        *self.count.entry(id).or_default() += 1;
    }

    fn of(&self, id: &str) -> usize {
        self.count.get(id).copied().unwrap_or_default()
    }
}

/// What is there only while a delivery runs.
fn unfinished(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    support::walk(root, &mut |path| {
        if places::is_unfinished(path) {
            found.push(path.to_owned());
        }
    });
    found
}

/// As if it had been left some time ago: a lock that is young is its holder's.
fn let_time_pass(left: &[PathBuf]) {
    for path in left.iter().filter(|path| path.is_file()) {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(10))
            .unwrap();
    }
}

/// A list is of version 3, its UIDs rise, and its last line is whole.
fn assert_list(path: &Path, case: &str) {
    let Ok(text) = fs::read_to_string(path.join("dovecot-uidlist")) else {
        return;
    };
    assert!(
        text.starts_with("3 V") && text.ends_with('\n'),
        "{case}: {text}"
    );
    let uids = text
        .lines()
        .skip(1)
        .map(|line| line.split(' ').next().unwrap().parse().unwrap());
    let uids: Vec<u32> = uids.collect();
    assert!(uids.is_sorted_by(|a, b| a < b), "{case}: {text}");
}

struct Row<'a> {
    store: &'a Store,
    server: &'a Server,
    agent: Agent,
    place: Place,
    /// Of each recipient.
    seen: Vec<Seen>,
    inbox: Seen,
    /// A message that nobody was told of is there: it comes twice.
    unheard: usize,
    number: usize,
    /// Mailboxes that were put aside.
    aside: usize,
}

impl Row<'_> {
    fn look(&mut self, case: &str) {
        for (path, seen) in paths(&self.place).iter().zip(&mut self.seen) {
            let path = self.store.path(path);
            seen.look(&path, case);
            assert_list(&path, case);
        }
    }

    fn fail(&mut self, (call, nth, error): Point) {
        let case = format!("{:?} {}: {call} {nth} {error}", self.agent, self.place.kind);
        let id = format!("{:?}-{}-{}", self.agent, self.place.kind, self.number);
        self.number += 1;
        let inject = format!("inject={call}:error={error}:when={nth}");
        let trace = format!("trace={call}");
        let strace = ["-e", &trace, "-e", &inject, "-o", "/dev/null"];
        let delivered = deliver(self.store, self.agent, &self.place, &id, &strace);
        let case = format!("{case}: {delivered:?}");
        assert!(!delivered.hangs(), "{case}");
        // Without its libraries it is not ours yet.
        let said = String::from_utf8_lossy(&delivered.output.stderr);
        let is_ours = !said.contains("error while loading shared libraries");
        self.look(&case);
        // A folder that cannot be had is no reason to keep mail from its user.
        let has_another = self.place != INBOX && self.place != THREE;
        if has_another {
            self.inbox.look(&self.store.path(INBOX.path), &case);
        }
        for (recipient, seen) in self.seen.iter().enumerate() {
            let count = seen.of(&id) + self.inbox.of(&id);
            match delivered.is_stored(recipient) {
                true => assert_eq!(count, 1, "{case}"),
                false => {
                    assert!(count <= 1, "{case}");
                    assert!(delivered.is_deferred(recipient) || !is_ours, "{case}");
                    self.unheard += count;
                }
            }
        }
        let root = self.store.path("home");
        let left = unfinished(&root);
        // What cannot be removed stays until somebody else removes it.
        assert!(left.is_empty() || call == "unlinkat", "{case}: {left:?}");
        let_time_pass(&left);
        self.deliver_once_more(&format!("{id}-again"), &case);
        assert_eq!(unfinished(&root), left_by_nobody(&left), "{case}");
        self.put_aside();
    }

    /// The next try, by the server that runs all the time.
    fn deliver_once_more(&mut self, id: &str, case: &str) {
        let message = self.place.message(id, 3);
        let replies = match self.place == THREE {
            true => self
                .server
                .client()
                .deliver(&["alice@x", "bob@x", "carol@x"], &message),
            false => self
                .server
                .client()
                .deliver(&[&self.place.address()], &message),
        };
        assert!(
            replies.iter().all(|it| it.starts_with("250 ")),
            "{case}: {replies:?}"
        );
        self.look(case);
        assert!(self.seen.iter().all(|seen| seen.of(id) == 1), "{case}");
    }

    /// The next point finds the mailbox as this one did, where that matters: not there, or without keywords.
    fn put_aside(&mut self) {
        if self.place == NEW || self.place == KEYWORD {
            let path = self.store.path(self.place.path);
            self.aside += 1;
            let aside = format!("{}{}{:?}", path.display(), self.aside, self.agent);
            fs::rename(&path, aside).unwrap();
        }
        if self.place == KEYWORD {
            self.store.scratch.maildir(KEYWORD.path, MAIL, MAIL, 0o700);
        }
        if self.place == NEW || self.place == KEYWORD {
            self.seen = vec![Seen::default()];
        }
    }
}

/// A file of `tmp/` that could not be removed is removed by whoever reads the mailbox, a day later.
fn left_by_nobody(left: &[PathBuf]) -> Vec<PathBuf> {
    let is_in_tmp = |path: &&PathBuf| path.parent().is_some_and(|it| it.ends_with("tmp"));
    left.iter().filter(is_in_tmp).cloned().collect()
}

/// Everything that Dovecot shows of the mailboxes, which it opens without a complaint: every message whole, and its flags.
fn read_all(dovecot: &Dovecot, place: &Place, case: &str) {
    for user in USERS {
        let mut imap = Imap::login(dovecot.port, user);
        let listed = imap.command("LIST \"\" *");
        let names = listed
            .iter()
            .filter_map(|line| line.strip_prefix("* LIST "));
        let names: Vec<String> = names
            // The namespace itself.
            .filter(|line| !line.to_lowercase().contains("\\noselect") && !line.ends_with(" mbox"))
            .map(|line| {
                line.rsplit("\"/\" ")
                    .next()
                    .unwrap()
                    .trim_matches('"')
                    .to_owned()
            })
            .collect();
        assert!(
            names.iter().any(|it| it == place.mailbox) || place.kind != "INBOX",
            "{names:?}"
        );
        for name in names {
            imap.select(&name);
            for message in imap.fetch_all() {
                let (id, text) = (subject(&message.bytes), places::body_of(&message.bytes));
                assert_eq!(
                    text.trim_end(),
                    places::body(&id, 3).trim_end(),
                    "{case} {name}"
                );
            }
        }
        imap.logout();
    }
    assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{case}");
}

#[test]
fn each_call_fails_once() {
    if not_root() || !installed("strace") && skip("strace is not installed") {
        return;
    }
    let takes_all = std::env::var_os("POSTROOM_FAULTS").is_some_and(|it| it == "all");
    let mut failures = Vec::new();
    for place in [INBOX, NEW, KEYWORD, MBOX, PUBLIC, THREE] {
        let store = places::store();
        let config = places::configure(&store, "", "", "");
        let Some(dovecot) = places::dovecot(Version::V23, &store) else {
            return;
        };
        let server = Server::start_as(
            &config,
            &store.path("run/lmtp"),
            &store.path("run/log"),
            &[100],
        );
        for agent in AGENTS {
            let began = Instant::now();
            let mut row = Row {
                store: &store,
                server: &server,
                agent,
                place,
                seen: paths(&place).iter().map(|_| Seen::default()).collect(),
                inbox: Seen::default(),
                unheard: 0,
                number: 0,
                aside: 0,
            };
            // There are lists, and indexes for those that a reader has seen.
            row.deliver_once_more(&format!("{agent:?}-first"), "first");
            read_all(&dovecot, &place, "first");
            row.put_aside();
            let all = points(&store, agent, &place);
            row.put_aside();
            let count = if takes_all {
                all.len()
            } else {
                POINTS.min(all.len())
            };
            for at in 0..count {
                let point = all[at * all.len() / count];
                // Others may fail too, and say more together.
                let failed = catch_unwind(AssertUnwindSafe(|| row.fail(point)));
                failures.extend(
                    failed
                        .err()
                        .map(|_| format!("{agent:?} {} {point:?}", place.kind)),
                );
            }
            let case = format!("{agent:?} {}", place.kind);
            read_all(&dovecot, &place, &case);
            eprintln!(
                "{case}: {count} of {} points, {} messages came twice, {:?}",
                all.len(),
                row.unheard,
                began.elapsed()
            );
        }
    }
    assert_eq!(failures, Vec::<String>::new());
}
