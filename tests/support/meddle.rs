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
use super::places::{self, INBOX, KEYWORD, NEW, NEW_MBOX, Place};
use super::random::Random;
use super::{MAIL, Server, Store, let_time_pass, subject, unfinished};

/// One call: its name, which one of it, and what strace is to do there: `error=EIO`, `signal=KILL`.
pub type Point = (&'static str, usize, &'static str);

/// Calls that change something, in all of their forms: `openat` where it makes a file or empties one, `fcntl` where it locks.
pub const CHANGES: [&str; 23] = [
    "openat",
    "mkdirat",
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "linkat",
    "rename",
    "renameat",
    "renameat2",
    "unlinkat",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "fallocate",
    "ftruncate",
    "fchmod",
    "fchown",
    "fcntl",
    "utimensat",
    "fsetxattr",
    "fremovexattr",
    "sendto",
];

/// Whether a line of strace, from the name of the call on, is of a call that changes something.
fn changes_something(line: &str) -> bool {
    let has = |words: &[&str]| words.iter().any(|word| line.contains(word));
    match line.split('(').next().unwrap() {
        "openat" => has(&["O_CREAT", "O_TMPFILE", "O_TRUNC"]),
        "fcntl" => has(&["SETLK"]),
        // By which threads wake each other.
        "write" => !has(&["\"\\1\\0\\0\\0\\0\\0\\0\\0\""]),
        name => CHANGES.contains(&name),
    }
}

/// The calls in what strace says, each by its name and which one of its task it is, and whether it changes something.
pub fn calls_of(trace: &str, calls: &[&'static str]) -> BTreeMap<(&'static str, usize), bool> {
    let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
    let mut found = BTreeMap::new();
    for line in trace.lines() {
        let (task, rest) = line.split_once(' ').unwrap();
        let rest = rest.trim_start();
        let name = rest.split('(').next().unwrap();
        if let Some(call) = calls.iter().find(|call| **call == name) {
            let nth = counts.entry((task, call)).or_default();
            *nth += 1;
            *found.entry((*call, *nth)).or_default() |= changes_something(rest);
        }
    }
    found
}

/// Rows at once: most of the time each waits for its disk.
const AT_ONCE: usize = 4;
/// Tries of a point that is not met: which thread does what is not the same each time.
const TRIES: usize = 3;
/// At one of so many points Dovecot looks before the next delivery has mended anything.
const LOOK_EVERY: usize = 5;

pub const KILL: &str = "signal=KILL";

/// Which calls, and what happens at each of them.
pub struct Meddling {
    pub agents: &'static [Agent],
    pub calls: Vec<&'static str>,
    /// What an agent's threads wake each other by, too: there they are left alone.
    pub left_alone: fn(Agent) -> &'static [&'static str],
    pub how: &'static [&'static str],
    /// Each call that changes something once, with one of `how` in turn, and so many of the others; none: all of them, with each.
    pub others: Option<usize>,
    /// By which they are chosen.
    pub seed: u64,
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
    /// Files of a Maildir that were read, by their names before the flags: what each says it is.
    known: HashMap<String, String>,
    /// An mbox, as it was looked at last.
    text: String,
    count: HashMap<String, usize>,
}

impl Seen {
    /// What was there before is there still.
    fn look(&mut self, path: &Path, case: &str) {
        let before = self.count.clone();
        self.count(path, case);
        let gone = before.iter().find(|(id, count)| self.of(id) < **count);
        assert_eq!(gone, None, "{case}");
    }

    fn count(&mut self, path: &Path, case: &str) {
        if path.is_dir() {
            self.count.clear();
            for part in ["new", "cur"] {
                for entry in fs::read_dir(path.join(part)).unwrap() {
                    let path = entry.unwrap().path();
                    let name = path.file_name().unwrap().to_string_lossy();
                    // A reader moves it, and gives it flags.
                    let name = name.split(':').next().unwrap().to_owned();
                    let id = self
                        .known
                        .entry(name)
                        .or_insert_with(|| id_of(&fs::read(&path).unwrap(), case));
                    *self.count.entry(id.clone()).or_default() += 1;
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
                let id = id_of(message.as_bytes(), case);
                *self.count.entry(id).or_default() += 1;
            }
            self.text = text;
        }
    }

    fn of(&self, id: &str) -> usize {
        self.count.get(id).copied().unwrap_or_default()
    }
}

/// What a message says it is, all of which is there.
fn id_of(message: &[u8], case: &str) -> String {
    let id = subject(message);
    let (body, want) = (places::body_of(message), places::body(&id, 3));
    assert_eq!(body.trim_end(), want.trim_end(), "{case}");
    id
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
    /// What each of them was told to be stored.
    told: Vec<Vec<String>>,
    /// A message that nobody was told of is there: it comes twice.
    unheard: usize,
    number: usize,
    /// Points that no delivery came to, and how often Dovecot looked right behind one.
    missed: Vec<Point>,
    looks: usize,
    /// What kills before have left.
    left: Vec<PathBuf>,
    /// Mailboxes that were put aside.
    aside: usize,
    server: Server,
    dovecot: Dovecot,
    /// Of the homes.
    _journaled: Option<Mount>,
    store: Store,
}

fn serve(store: &Store) -> Server {
    let [config, socket, log] = ["postroom.toml", "run/lmtp", "run/log"].map(|it| store.path(it));
    Server::start_as(&config, &socket, &log, &[100])
}

/// With room for a mailbox of each point.
const MEGABYTES: u32 = 256;

impl Row {
    /// On a file system of its own with a journal, where Dovecot 2.4 reads. None: one of them cannot be had.
    fn new(agent: Agent, place: Place, version: Version) -> Option<Row> {
        let store = places::store();
        places::configure(&store, "", "", "");
        store.scratch.dir("home/aside", MAIL, MAIL, 0o700);
        let (image, homes) = (store.path("disk"), store.path("home"));
        let journaled = match version {
            Version::V23 => None,
            Version::V24 => Some(Mount::journaled(&image, homes, MEGABYTES)?),
        };
        let dovecot = places::dovecot(version, &store)?;
        Some(Row {
            agent,
            place,
            seen: paths(&place).iter().map(|_| Seen::default()).collect(),
            inbox: Seen::default(),
            told: paths(&place).iter().map(|_| Vec::new()).collect(),
            unheard: 0,
            number: 0,
            missed: Vec::new(),
            looks: 0,
            left: Vec::new(),
            aside: 0,
            server: serve(&store),
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

    /// Every call of a delivery, and whether it changes something.
    fn calls(&self, meddling: &Meddling) -> BTreeMap<(&'static str, usize), bool> {
        let trace = self.store.scratch.text("run/trace");
        let calls = format!("trace={}", meddling.calls.join(","));
        self.deliver("counted", &["-e", &calls, "-o", &trace]);
        let mut found = calls_of(&fs::read_to_string(&trace).unwrap(), &meddling.calls);
        found.retain(|(call, _), _| !(meddling.left_alone)(self.agent).contains(call));
        found
    }

    /// Those that are asked for, and how many there are.
    fn points(&self, meddling: &Meddling, seed: u64) -> (Vec<Point>, usize) {
        let calls = self.calls(meddling);
        let every = calls.len() * meddling.how.len();
        let Some(others) = meddling.others else {
            let each = calls.into_keys();
            let each =
                each.flat_map(|(call, nth)| meddling.how.iter().map(move |how| (call, nth, *how)));
            return (each.collect(), every);
        };
        let (changes, rest): (Vec<_>, Vec<_>) =
            calls.into_iter().partition(|(_, changes)| *changes);
        let mut random = Random(seed);
        let mut any_of = |count: usize| random.below(count.max(1) as u64) as usize;
        let (first, first_how) = (any_of(rest.len()), any_of(meddling.how.len()));
        let others = others.min(rest.len());
        let rest = (0..others).map(|at| rest[(first + at * rest.len() / others) % rest.len()]);
        let chosen = changes.iter().copied().chain(rest).enumerate();
        let how = |at: usize| meddling.how[(first_how + at) % meddling.how.len()];
        let points = chosen.map(|(at, ((call, nth), _))| (call, nth, how(at)));
        (points.collect(), every)
    }

    fn look(&mut self, case: &str) {
        for (path, seen) in paths(&self.place).iter().zip(&mut self.seen) {
            let path = self.store.path(path);
            seen.look(&path, case);
            assert_list(&path, case);
        }
    }

    fn meddle(&mut self, point: Point) {
        let is_met = (0..TRIES).any(|_| self.try_to_meddle(point));
        self.missed.extend((!is_met).then_some(point));
    }

    /// Answers whether it went wrong there.
    fn try_to_meddle(&mut self, (call, nth, how): Point) -> bool {
        let is_kill = how == KILL;
        let case = format!("{:?} {}: {call} {nth} {how}", self.agent, self.place.kind);
        let id = format!("{:?}-{}-{}", self.agent, self.place.kind, self.number);
        self.number += 1;
        let inject = format!("inject={call}:{how}:when={nth}");
        let (trace, met) = (format!("trace={call}"), self.store.scratch.text("run/met"));
        let mut strace = vec!["-e", &trace, "-e", &inject, "-o", &met];
        if self.agent != Agent::Running && !is_kill {
            // It stops at no other calls; a signal would not come.
            strace.push("--seccomp-bpf");
        }
        let delivered = self.deliver(&id, &strace);
        let case = format!("{case}: {delivered:?}");
        assert!(!delivered.hangs(), "{case}");
        if is_kill && self.agent == Agent::Running {
            // Until somebody has taken notice of its end its locks are those of a process.
            self.server.kill();
        }
        let met = fs::read_to_string(&met).unwrap();
        let is_met = met.contains("(INJECTED)") || met.contains("killed by SIGKILL");
        // Without its libraries it is not ours yet.
        let said = String::from_utf8_lossy(&delivered.output.stderr);
        let is_ours = !is_kill && !said.contains("error while loading shared libraries");
        let left = self.unfinished();
        // What cannot be removed stays until somebody else removes it.
        assert!(
            left == self.left || call == "unlinkat" || is_kill,
            "{case}: {left:?}"
        );
        // An mbox may end with the beginning of a message, until the next one comes, unless a reader has seen it.
        let is_whole = !is_kill || !self.place.is_mbox();
        if is_whole {
            self.look(&case);
        }
        let_time_pass(&left);
        if is_kill && self.agent == Agent::Running {
            self.server = serve(&self.store);
        }
        if is_whole && self.number.is_multiple_of(LOOK_EVERY) {
            self.read_between(&id, &delivered, &case);
        }
        self.deliver_once_more(&format!("{id}-again"), &case);
        self.assert_little_stays(&left, is_kill, &case);
        // A folder that cannot be had is no reason to keep mail from its user.
        if self.place != INBOX && self.place != THREE {
            self.inbox.look(&self.store.path(INBOX.path), &case);
        }
        for (recipient, seen) in self.seen.iter().enumerate() {
            let count = seen.of(&id) + self.inbox.of(&id);
            match delivered.is_stored(recipient) {
                true => {
                    assert_eq!(count, 1, "{case}");
                    self.told[recipient].push(id.clone());
                }
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
        if self.place.is_mbox() {
            // Its index is told only of what comes behind a reader.
            self.read("alice", |name| name == self.place.mailbox, &case);
        }
        self.put_aside();
        is_met
    }

    /// Behind the next delivery: nothing but a mailbox that was never finished, one of each kill.
    fn assert_little_stays(&mut self, left: &[PathBuf], is_kill: bool, case: &str) {
        let stays = self.unfinished();
        let is_known = |path: &PathBuf| left.contains(path) && is_left_by_a_kill(path);
        assert!(stays.iter().all(is_known), "{case}: {stays:?}");
        let new = stays.iter().filter(|it| !self.left.contains(it)).count();
        assert!(new <= usize::from(is_kill), "{case}: {stays:?}");
        self.left = stays;
    }

    /// A reader who comes before the next delivery has what was answered for, and no complaint.
    fn read_between(&mut self, id: &str, delivered: &Delivered, case: &str) {
        for (recipient, user) in (0..self.seen.len()).zip(USERS) {
            let mailbox = self.place.mailbox;
            let ids = self.read(user, |name| name == "INBOX" || name == mailbox, case);
            let count = ids.iter().filter(|it| *it == id).count();
            let is_enough = count == 1 || !delivered.is_stored(recipient);
            assert!(is_enough, "{case}: Dovecot shows {count}");
        }
        assert_eq!(self.dovecot.complaints(), Vec::<String>::new(), "{case}");
        self.looks += 1;
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
        for told in &mut self.told {
            told.push(id.to_owned());
        }
    }

    fn is_made_anew(&self) -> bool {
        [NEW, KEYWORD, NEW_MBOX].contains(&self.place)
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

    /// What the messages are that Dovecot shows a user in these mailboxes, each of them whole.
    fn read(&self, user: &str, is_wanted: impl Fn(&str) -> bool, case: &str) -> Vec<String> {
        let mut imap = Imap::login(self.dovecot.port, user);
        let names = imap.mailboxes("*");
        assert!(names.iter().any(|it| it == "INBOX"), "{case}: {names:?}");
        let mut ids = Vec::new();
        for name in names.iter().filter(|name| is_wanted(name)) {
            imap.select(name);
            let messages = imap.fetch_all().into_iter();
            ids.extend(messages.map(|it| id_of(&it.bytes, &format!("{case} {name}"))));
        }
        imap.logout();
        ids
    }

    /// Dovecot shows all that was answered for, and opens the mailboxes without a complaint.
    fn read_all(&self, case: &str) {
        for (number, user) in USERS.into_iter().enumerate() {
            let shown: HashSet<_> = self.read(user, |_| true, case).into_iter().collect();
            let told = self.told.get(number).into_iter().flatten();
            let missing: Vec<_> = told.filter(|id| !shown.contains(*id)).collect();
            assert_eq!(missing, Vec::<&String>::new(), "{case}: {user}");
        }
        assert_eq!(self.dovecot.complaints(), Vec::<String>::new(), "{case}");
    }

    /// Answers how many points were met, and at which something was wrong.
    fn run(mut self, meddling: &Meddling, seed: u64) -> (usize, Vec<String>) {
        let began = Instant::now();
        let case = format!(
            "{:?} {}, read by {:?}",
            self.agent, self.place.kind, self.dovecot.version
        );
        // There are lists, and indexes for those that a reader has seen.
        self.deliver_once_more("first", "first");
        self.read_all("first");
        self.put_aside();
        let (points, every) = self.points(meddling, seed);
        self.put_aside();
        let mut failures = Vec::new();
        for &point in &points {
            // Others may fail too, and say more together.
            let failed = catch_unwind(AssertUnwindSafe(|| self.meddle(point))).is_err();
            failures.extend(failed.then(|| format!("{case}: {point:?}")));
        }
        self.put_back();
        let read = catch_unwind(AssertUnwindSafe(|| self.read_all(&case)));
        failures.extend(read.err().map(|_| case.clone()));
        // Which thread of a server does what is not the same each time.
        let may_miss = points.len() / if self.agent == Agent::Lda { 20 } else { 4 };
        let (missed, looks, unheard) = (self.missed, self.looks, self.unheard);
        if missed.len() > may_miss {
            failures.push(format!("{case}: missed {missed:?}"));
        }
        let met = points.len() - missed.len();
        eprintln!(
            "{case}: {met} of {} points ({every} in all), {looks} looks between, {unheard} messages came twice, {:?}",
            points.len(),
            began.elapsed()
        );
        (met, failures)
    }
}

/// A mailbox that was never finished, of which `postroom doctor` tells. A message has no name before all of it is there.
fn is_left_by_a_kill(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    path.is_dir() && name.starts_with("postroom.")
}

/// Delivers to each of the places in all ways, and meddles with that; each Dovecot reads half of it. Answers how many points
/// were met; none where not all of it can be done.
pub fn meddle_with(places: &[Place], meddling: &Meddling) -> Option<usize> {
    let rows = places.iter().enumerate().flat_map(|(place_number, place)| {
        let agents = meddling.agents.iter().enumerate();
        agents.map(move |(number, agent)| (*agent, *place, VERSIONS[(place_number + number) % 2]))
    });
    let rows = rows.zip(meddling.seed..);
    let (rows, sum, failures) = (
        Mutex::new(rows),
        Mutex::new(Some(0)),
        Mutex::new(Vec::new()),
    );
    let next = || rows.lock().unwrap().next();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(((agent, place, version), seed)) = next() {
                    let done = Row::new(agent, place, version).map(|row| row.run(meddling, seed));
                    let points = done.map(|(points, failed)| {
                        failures.lock().unwrap().extend(failed);
                        points
                    });
                    let mut sum = sum.lock().unwrap();
                    *sum = sum.zip(points).map(|(sum, points)| sum + points);
                }
            });
        }
    });
    assert_eq!(failures.into_inner().unwrap(), Vec::<String>::new());
    sum.into_inner().unwrap()
}
