//! Deliveries of which one system call goes wrong, and what has to be true behind each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use super::agent::{self, Agent, Delivered, THREE, USERS};
use super::imap::Imap;
use super::mount::Mount;
use super::peers::{Dovecot, VERSIONS, Version};
use super::places::{self, INBOX, KEYWORD, NEW, Place};
use super::{MAIL, Server, Store, let_time_pass, subject, unfinished};

/// One call: its name, which one of it, and what strace is to do there: `error=EIO`, `signal=KILL`.
pub type Point = (&'static str, usize, &'static str);

/// Rows at once: most of the time each waits for its disk.
const AT_ONCE: usize = 3;

/// Which calls, and what happens at each of them.
pub struct Meddling {
    pub agents: &'static [Agent],
    pub calls: &'static [&'static str],
    /// What an agent's threads wake each other by, too: there they are left alone.
    pub left_alone: fn(Agent) -> &'static [&'static str],
    pub how: &'static [&'static str],
    /// Points of each row; none: all.
    pub points: Option<usize>,
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
    /// An mbox, as it was looked at last.
    text: String,
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
            if !text.starts_with(&self.text) {
                self.text.clear();
                self.count.clear();
            }
            let new = &text[self.text.len()..];
            assert!(new.is_empty() || new.starts_with("From "), "{case}");
            for message in format!("\n{new}").split("\nFrom ").skip(1) {
                self.add(message.as_bytes(), case);
            }
            self.text = text;
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

/// What one agent does at one place.
struct Row {
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
    server: Server,
    dovecot: Dovecot,
    /// Of the homes.
    _journaled: Option<Mount>,
    store: Store,
}

/// With room for a mailbox of each point.
const MEGABYTES: u32 = 256;

impl Row {
    /// On a file system of its own with a journal, where Dovecot 2.4 reads. None: one of them cannot be had.
    fn new(agent: Agent, place: Place, version: Version) -> Option<Row> {
        let store = places::store();
        let config = places::configure(&store, "", "", "");
        store.scratch.dir("home/aside", MAIL, MAIL, 0o700);
        let (image, homes) = (store.path("disk"), store.path("home"));
        let journaled = match version {
            Version::V23 => None,
            Version::V24 => Some(Mount::journaled(&image, homes, MEGABYTES)?),
        };
        let dovecot = places::dovecot(version, &store)?;
        let (socket, log) = (store.path("run/lmtp"), store.path("run/log"));
        Some(Row {
            agent,
            place,
            seen: paths(&place).iter().map(|_| Seen::default()).collect(),
            inbox: Seen::default(),
            unheard: 0,
            number: 0,
            aside: 0,
            server: Server::start_as(&config, &socket, &log, &[100]),
            dovecot,
            _journaled: journaled,
            store,
        })
    }

    /// A delivery, with arguments for strace.
    fn deliver(&self, id: &str, strace: &[&str]) -> Delivered {
        let message = self.place.message(id, 3);
        let address = self.place.address();
        let addresses = match self.place == THREE {
            true => vec!["alice@x", "bob@x", "carol@x"],
            false => vec![address.as_str()],
        };
        match self.agent {
            Agent::Running => agent::deliver_at(&self.server, &addresses, &message, strace),
            one if self.place == THREE => one.deliver_to(&self.store, &addresses, &message, strace),
            one => one.deliver(&self.store, &self.place, &message, strace),
        }
    }

    /// Every call of a delivery, once for each that can happen there.
    fn points(&self, meddling: &Meddling) -> Vec<Point> {
        let trace = self.store.scratch.text("run/trace");
        let calls = format!("trace={}", meddling.calls.join(","));
        self.deliver("counted", &["-e", &calls, "-o", &trace]);
        // strace counts those of each task.
        let mut counts: HashMap<(String, &'static str), usize> = HashMap::new();
        for line in fs::read_to_string(&trace).unwrap().lines() {
            let (task, rest) = line.split_once(' ').unwrap();
            let name = rest.trim_start().split('(').next().unwrap();
            if let Some(call) = meddling.calls.iter().find(|call| **call == name) {
                *counts.entry((task.to_owned(), call)).or_default() += 1;
            }
        }
        let mut most: BTreeMap<&'static str, usize> = BTreeMap::new();
        for ((_, call), count) in counts {
            let known = most.entry(call).or_default();
            *known = (*known).max(count);
        }
        most.retain(|call, _| !(meddling.left_alone)(self.agent).contains(call));
        let each = most
            .into_iter()
            .flat_map(|(call, count)| (1..=count).map(move |nth| (call, nth)));
        each.flat_map(|(call, nth)| meddling.how.iter().map(move |&how| (call, nth, how)))
            .collect()
    }

    fn look(&mut self, case: &str) {
        for (path, seen) in paths(&self.place).iter().zip(&mut self.seen) {
            let path = self.store.path(path);
            seen.look(&path, case);
            assert_list(&path, case);
        }
    }

    fn meddle(&mut self, (call, nth, how): Point) {
        let is_kill = how == "signal=KILL";
        let case = format!("{:?} {}: {call} {nth} {how}", self.agent, self.place.kind);
        let id = format!("{:?}-{}-{}", self.agent, self.place.kind, self.number);
        self.number += 1;
        let inject = format!("inject={call}:{how}:when={nth}");
        let trace = format!("trace={call}");
        let mut strace = vec!["-e", &trace, "-e", &inject, "-o", "/dev/null"];
        if self.agent != Agent::Running {
            // It stops at no other calls.
            strace.push("--seccomp-bpf");
        }
        let delivered = self.deliver(&id, &strace);
        let case = format!("{case}: {delivered:?}");
        assert!(!delivered.hangs(), "{case}");
        // Without its libraries it is not ours yet.
        let said = String::from_utf8_lossy(&delivered.output.stderr);
        let is_ours = !is_kill && !said.contains("error while loading shared libraries");
        let left = self.unfinished();
        // What cannot be removed stays until somebody else removes it.
        assert!(
            left.is_empty() || call == "unlinkat" || is_kill,
            "{case}: {left:?}"
        );
        // An mbox may end with the beginning of a message, until the next one comes.
        if !is_kill || !self.place.is_mbox() {
            self.look(&case);
        }
        let_time_pass(&left);
        self.deliver_once_more(&format!("{id}-again"), &case);
        let stays = left.iter().filter(|path| is_left_to_readers(path));
        assert_eq!(
            self.unfinished(),
            stays.cloned().collect::<Vec<_>>(),
            "{case}"
        );
        // A folder that cannot be had is no reason to keep mail from its user.
        if self.place != INBOX && self.place != THREE {
            self.inbox.look(&self.store.path(INBOX.path), &case);
        }
        for (recipient, seen) in self.seen.iter().enumerate() {
            let count = seen.of(&id) + self.inbox.of(&id);
            match delivered.is_stored(recipient) {
                true => assert_eq!(count, 1, "{case}"),
                false => {
                    // Of three the others may have theirs; a kill may come when all is done; and a reply may get lost.
                    let is_of_several = self.agent == Agent::Lda && self.place == THREE;
                    let is_unheard = call == "sendto" && delivered.is_unheard(recipient);
                    let most = usize::from(is_of_several || is_kill || is_unheard);
                    assert!(count <= most, "{case}");
                    assert!(delivered.is_deferred(recipient) || !is_ours, "{case}");
                    self.unheard += count;
                }
            }
        }
        self.put_aside();
    }

    /// In the homes and the public mailboxes.
    fn unfinished(&self) -> Vec<PathBuf> {
        let roots = ["alice", "bob", "carol", "public"].into_iter();
        let roots = roots.map(|it| self.store.path(&format!("home/{it}")));
        roots.flat_map(|root| unfinished(&root)).collect()
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

    fn is_made_anew(&self) -> bool {
        self.place == NEW || self.place == KEYWORD
    }

    fn aside(&self, number: usize) -> PathBuf {
        self.store.path(&format!("home/aside/{number}"))
    }

    /// The next point finds the mailbox as this one did, where that matters: not there, or without keywords.
    fn put_aside(&mut self) {
        if !self.is_made_anew() {
            return;
        }
        let path = self.store.path(self.place.path);
        fs::rename(&path, self.aside(self.aside)).unwrap();
        self.aside += 1;
        if self.place == KEYWORD {
            self.store.scratch.maildir(KEYWORD.path, MAIL, MAIL, 0o700);
        }
        self.seen = vec![Seen::default()];
    }

    /// All that were put aside are mailboxes of alice again.
    fn put_back(&self) {
        let path = self.store.path(self.place.path).display().to_string();
        for number in 0..self.aside {
            fs::rename(self.aside(number), format!("{path}{number}")).unwrap();
        }
    }

    /// Everything that Dovecot shows of the mailboxes, which it opens without a complaint: every message whole, and its flags.
    fn read_all(&self, case: &str) {
        for user in USERS {
            let mut imap = Imap::login(self.dovecot.port, user);
            let names = imap.mailboxes("*");
            assert!(names.iter().any(|it| it == "INBOX"), "{case}: {names:?}");
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
        assert_eq!(self.dovecot.complaints(), Vec::<String>::new(), "{case}");
    }

    /// Answers how many points there were, and at which something was wrong.
    fn run(mut self, meddling: &Meddling) -> (usize, Vec<String>) {
        let began = Instant::now();
        let case = format!(
            "{:?} {}, read by {:?}",
            self.agent, self.place.kind, self.dovecot.version
        );
        // There are lists, and indexes for those that a reader has seen.
        self.deliver_once_more("first", "first");
        self.read_all("first");
        self.put_aside();
        let all = self.points(meddling);
        self.put_aside();
        let count = meddling.points.unwrap_or(all.len()).min(all.len());
        let mut failures = Vec::new();
        for at in 0..count {
            let point = all[at * all.len() / count];
            // Others may fail too, and say more together.
            let failed = catch_unwind(AssertUnwindSafe(|| self.meddle(point))).is_err();
            failures.extend(failed.then(|| format!("{case}: {point:?}")));
        }
        self.put_back();
        let read = catch_unwind(AssertUnwindSafe(|| self.read_all(&case)));
        failures.extend(read.err().map(|_| case.clone()));
        let (all, unheard, took) = (all.len(), self.unheard, began.elapsed());
        eprintln!("{case}: {count} of {all} points, {unheard} messages came twice, {took:?}");
        (count, failures)
    }
}

/// Who reads the mailbox removes old files of `tmp/`; of a mailbox that was never finished `postroom doctor` tells.
fn is_left_to_readers(path: &Path) -> bool {
    let is_hidden = |part: &std::ffi::OsStr| part.to_string_lossy().starts_with("postroom.");
    path.parent().is_some_and(|it| it.ends_with("tmp")) || path.iter().any(is_hidden)
}

/// Delivers to each of the places in all ways, and meddles with that; each Dovecot reads half of it. Answers how many points
/// there were; none where not all of it can be done.
pub fn meddle_with(places: &[Place], meddling: &Meddling) -> Option<usize> {
    let rows = places.iter().enumerate().flat_map(|(place_number, place)| {
        let agents = meddling.agents.iter().enumerate();
        agents.map(move |(number, agent)| (*agent, *place, VERSIONS[(place_number + number) % 2]))
    });
    let (rows, sum) = (Mutex::new(rows), Mutex::new(Some((0, Vec::new()))));
    let next = || rows.lock().unwrap().next();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((agent, place, version)) = next() {
                    let done = Row::new(agent, place, version).map(|row| row.run(meddling));
                    let mut sum = sum.lock().unwrap();
                    *sum = sum.take().zip(done).map(|((count, failures), done)| {
                        (count + done.0, [failures, done.1].concat())
                    });
                }
            });
        }
    });
    let (points, failures) = sum.into_inner().unwrap()?;
    assert_eq!(failures, Vec::<String>::new());
    Some(points)
}
