//! Deliveries of which one system call goes wrong, and what has to be true behind each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::agent::{AGENTS, Agent, Delivered, THREE, USERS};
use super::imap::Imap;
use super::peers::{Dovecot, Version};
use super::places::{self, INBOX, KEYWORD, NEW, Place};
use super::{MAIL, Server, Store, subject};

/// One call: its name, which one of it, and what strace is to do there: `error=EIO`, `signal=KILL`.
pub type Point = (&'static str, usize, &'static str);

/// Which calls, and what happens at each of them.
pub struct Meddling {
    pub calls: &'static [&'static str],
    /// By these the threads of the server wake each other, too: there they are left alone.
    pub not_of_server: &'static [&'static str],
    pub how: &'static [&'static str],
    /// Points of each row; none: all.
    pub points: Option<usize>,
}

/// A delivery of the row, with arguments for strace.
fn deliver(store: &Store, agent: Agent, place: &Place, id: &str, strace: &[&str]) -> Delivered {
    let message = place.message(id, 3);
    match *place == THREE {
        true => agent.deliver_to(store, &["alice@x", "bob@x", "carol@x"], &message, strace),
        false => agent.deliver(store, place, &message, strace),
    }
}

/// Every call of a delivery, once for each that can happen there.
fn points(store: &Store, agent: Agent, place: &Place, meddling: &Meddling) -> Vec<Point> {
    let trace = store.scratch.text("run/trace");
    let calls = format!("trace={}", meddling.calls.join(","));
    deliver(
        store,
        agent,
        place,
        "counted",
        &["-e", &calls, "-o", &trace],
    );
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
    if agent == Agent::Lmtp {
        most.retain(|call, _| !meddling.not_of_server.contains(call));
    }
    let each = most
        .into_iter()
        .flat_map(|(call, count)| (1..=count).map(move |nth| (call, nth)));
    each.flat_map(|(call, nth)| meddling.how.iter().map(move |&how| (call, nth, how)))
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

/// What is there only while a delivery runs, but not in mailboxes that were put aside.
fn unfinished(root: &Path, aside: &HashSet<PathBuf>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            if places::is_unfinished(&path) {
                found.push(path.clone());
            }
            if entry.file_type().unwrap().is_dir() && !aside.contains(&path) {
                folders.push(path);
            }
        }
    }
    found.sort();
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
    aside: HashSet<PathBuf>,
}

impl Row<'_> {
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
        let strace = ["-e", &trace, "-e", &inject, "-o", "/dev/null"];
        let delivered = deliver(self.store, self.agent, &self.place, &id, &strace);
        let case = format!("{case}: {delivered:?}");
        assert!(!delivered.hangs(), "{case}");
        // Without its libraries it is not ours yet.
        let said = String::from_utf8_lossy(&delivered.output.stderr);
        let is_ours = !is_kill && !said.contains("error while loading shared libraries");
        let root = self.store.path("home");
        let left = unfinished(&root, &self.aside);
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
            unfinished(&root, &self.aside),
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
                    // Of three the others may have theirs; and a kill may come when all is done.
                    let is_of_several = self.agent == Agent::Lda && self.place == THREE;
                    let most = usize::from(is_of_several || is_kill);
                    assert!(count <= most, "{case}");
                    assert!(delivered.is_deferred(recipient) || !is_ours, "{case}");
                    self.unheard += count;
                }
            }
        }
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
            let number = self.aside.len();
            let aside = format!("{}{number}{:?}", path.display(), self.agent);
            fs::rename(&path, &aside).unwrap();
            self.aside.insert(aside.into());
        }
        if self.place == KEYWORD {
            self.store.scratch.maildir(KEYWORD.path, MAIL, MAIL, 0o700);
        }
        if self.place == NEW || self.place == KEYWORD {
            self.seen = vec![Seen::default()];
        }
    }
}

/// Who reads the mailbox removes old files of `tmp/`; of a mailbox that was never finished `postroom doctor` tells.
fn is_left_to_readers(path: &Path) -> bool {
    let is_hidden = |part: &std::ffi::OsStr| part.to_string_lossy().starts_with("postroom.");
    path.parent().is_some_and(|it| it.ends_with("tmp")) || path.iter().any(is_hidden)
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

/// Delivers to each of the places in both ways, and meddles with that. Answers how many points there were.
pub fn meddle_with(places: &[Place], meddling: &Meddling) -> usize {
    let mut failures = Vec::new();
    let mut sum = 0;
    for &place in places {
        let store = places::store();
        let config = places::configure(&store, "", "max_mailboxes = 1000000\n", "");
        let Some(dovecot) = places::dovecot(Version::V23, &store) else {
            return 0;
        };
        let (socket, log) = (store.path("run/lmtp"), store.path("run/log"));
        let server = Server::start_as(&config, &socket, &log, &[100]);
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
                aside: HashSet::new(),
            };
            // There are lists, and indexes for those that a reader has seen.
            row.deliver_once_more(&format!("{agent:?}-first"), "first");
            read_all(&dovecot, &place, "first");
            row.put_aside();
            let all = points(&store, agent, &place, meddling);
            row.put_aside();
            let count = meddling.points.unwrap_or(all.len()).min(all.len());
            for at in 0..count {
                let point = all[at * all.len() / count];
                // Others may fail too, and say more together.
                let failed = catch_unwind(AssertUnwindSafe(|| row.meddle(point))).is_err();
                failures.extend(failed.then(|| format!("{agent:?} {} {point:?}", place.kind)));
            }
            sum += count;
            let case = format!("{agent:?} {}", place.kind);
            read_all(&dovecot, &place, &case);
            let (all, unheard, took) = (all.len(), row.unheard, began.elapsed());
            eprintln!("{case}: {count} of {all} points, {unheard} messages came twice, {took:?}");
        }
    }
    assert_eq!(failures, Vec::<String>::new());
    sum
}
