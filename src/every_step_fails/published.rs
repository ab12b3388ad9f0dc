//! Three that wait for one Maildir: whatever fails, each that is answered for is there once, whole, with the UID that the list says it
//! has, and the others are nowhere and come again.

use std::sync::Arc;

use super::one::let_time_pass;
use super::*;
use crate::deliver::busy::Busy;
use crate::deliver::carry_out::Heard;
use crate::deliver::publish::{Message, Published, Publishing};
use crate::fault::{Code, Fault};
use crate::mailbox::path::Paths;
use crate::maildir::Maildir;
use crate::maildir::filename::{self, Names};
use crate::maildir::save::Demands;
use crate::message::{Flags, Keywords};
use crate::sys::fault_point::{ENDS, FAILURES, Failure};

/// The mailbox of a batch, and where its members have their control files and indexes.
#[derive(Debug)]
struct Row {
    mailbox: &'static str,
    /// Of each member; none: in the mailbox.
    apart: [Option<&'static str>; 3],
}

const ROWS: [Row; 3] = [
    // It has a list, keywords and an index.
    Row {
        mailbox: "public/.info",
        apart: [None; 3],
    },
    // It is new.
    Row {
        mailbox: "home/Maildir",
        apart: [None; 3],
    },
    // Users with files of their own: the second is another one.
    Row {
        mailbox: "home/Maildir",
        apart: [Some("a"), Some("b"), Some("a")],
    },
];

type Results = Vec<Result<Published, Fault>>;

fn body(at: usize) -> Vec<u8> {
    format!("Subject: {at}\n\n.a line\nlast\n").into_bytes()
}

impl Row {
    fn store(&self) -> Store {
        let store = Store::new(true);
        fs::write(store.path("public/.info/dovecot-keywords"), "0 $Old\n").unwrap();
        for place in self.apart.iter().flatten() {
            let place = store.path(place);
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("dovecot-uidlist"), UIDLIST).unwrap();
            let log = log_for_tests(2, (0, 0), VALIDITY);
            fs::write(place.join("dovecot.index.log"), log).unwrap();
        }
        store
    }

    fn control(&self, at: usize) -> &'static str {
        self.apart[at].unwrap_or(self.mailbox)
    }

    fn paths(&self, store: &Store, at: usize) -> Paths {
        let control = store.path(self.control(at));
        Paths {
            index: Some(control.clone()),
            control,
            ..Paths::for_tests(&store.path("home"), &store.path(self.mailbox))
        }
    }

    /// Publishes these of the three as one batch, by a process of this number. `before`: when they are written. The last of the three has a
    /// flag and a keyword.
    fn publish(
        &self,
        store: &Store,
        pid: u32,
        members: &[usize],
        before: impl FnOnce(),
    ) -> Results {
        self.publish_heard(store, pid, members, before, |_| Heard::from_now())
    }

    fn publish_heard(
        &self,
        store: &Store,
        pid: u32,
        members: &[usize],
        before: impl FnOnce(),
        heard: impl Fn(usize) -> Heard,
    ) -> Results {
        let path = store.path(self.mailbox);
        let mailbox = Maildir::at(Dir::open(&path).unwrap(), &path).unwrap();
        let names = Names::new("mx", pid);
        let demands = Demands {
            verified: false,
            sync: true,
        };
        let message = |&at: &usize| {
            let mut writer = BodyWriter::new(&Spool::default());
            writer.write(&body(at)).unwrap();
            let body = writer.finish().unwrap();
            let is_marked = at == 2;
            Message {
                written: Arc::new(mailbox.write(&names, b"", &body, demands).unwrap()),
                name: Some(name(pid, at)),
                flags: if is_marked {
                    Flags::SEEN
                } else {
                    Flags::default()
                },
                keywords: Keywords::parse(if is_marked { "$Junk" } else { "" }).unwrap_or_default(),
                paths: Arc::new(self.paths(store, at)),
                heard: heard(at),
            }
        };
        let publishing = Publishing {
            mailbox: &mailbox,
            names: &names,
            walks: &Walks::default(),
            busy: &Busy::default(),
            sync: true,
            sync_index: true,
            index_log: Some(LockMethod::Fcntl),
        };
        let batch = members.iter().map(message).collect();
        before();
        publishing.publish(batch)
    }

    /// The messages that readers see, in whichever directory.
    fn seen(&self, store: &Store) -> Vec<(String, Vec<u8>)> {
        let mailbox = store.path(self.mailbox);
        let parts = ["new", "cur"].map(|part| files(&mailbox.join(part)));
        let found = parts.into_iter().flatten();
        found
            .map(|(path, bytes)| {
                (
                    path.file_name().unwrap().to_str().unwrap().to_owned(),
                    bytes,
                )
            })
            .collect()
    }

    /// How often each of the three is there.
    fn counts(&self, store: &Store, case: &str) -> [usize; 3] {
        let mut counts = [0; 3];
        for (name, bytes) in self.seen(store) {
            let at = (0..3).find(|&at| bytes == body(at));
            let at = at.unwrap_or_else(|| panic!("{case}: {name} is not whole: {bytes:?}"));
            counts[at] += 1;
        }
        counts
    }

    /// The lines of a list, which is whole: UIDs and names.
    fn lines(&self, store: &Store, control: &str, case: &str) -> Vec<(u32, String)> {
        let Ok(list) = fs::read_to_string(store.path(control).join("dovecot-uidlist")) else {
            return Vec::new();
        };
        let (header, lines) = list.split_once('\n').expect(case);
        assert!(header.starts_with("3 V"), "{case}: {list}");
        assert!(lines.is_empty() || lines.ends_with('\n'), "{case}: {list}");
        let lines: Vec<_> = lines
            .lines()
            .map(|line| line.split_once(" :").expect(case))
            .map(|(uid, name)| (uid.parse::<u32>().expect(case), name.to_owned()))
            .collect();
        let is_rising = lines.is_sorted_by(|(one, _), (next, _)| one < next);
        assert!(is_rising, "{case}: {list}");
        lines
    }

    /// What was answered for these of the three, and what is there: `had` before.
    fn assert_kept(
        &self,
        store: &Store,
        members: &[usize],
        results: &Results,
        had: [usize; 3],
        case: &str,
    ) {
        let mut wanted = had;
        for (&at, result) in members.iter().zip(results) {
            wanted[at] += usize::from(result.is_ok());
        }
        assert_eq!(self.counts(store, case), wanted, "{case}");
        let seen = self.seen(store);
        for (&at, published) in members
            .iter()
            .zip(results)
            .filter_map(|(at, it)| Some((at, it.as_ref().ok()?)))
        {
            let is_its =
                |(name, bytes): &&(String, Vec<u8>)| *name == published.file && *bytes == body(at);
            assert_eq!(seen.iter().filter(is_its).count(), 1, "{case}: {at}");
            let base = filename::base(published.file.as_bytes());
            let lines = self.lines(store, self.control(at), case);
            let its = lines.iter().filter(|(_, name)| name.as_bytes() == base);
            let uids: Vec<u32> = its.map(|(uid, _)| *uid).collect();
            match published.uid {
                Some(uid) => assert_eq!(uids, [uid], "{case}: {at}"),
                // A line that is not durable is told to nobody; in a mailbox without a list there is nothing to say.
                None => {
                    let is_said = !published.remarks.is_empty() || lines.is_empty();
                    assert!(uids.len() <= 1 && is_said, "{case}: {at}");
                }
            }
        }
    }

    /// Nobody is locked out, nothing is left behind, and no index is ahead of its list.
    fn assert_tidy(&self, store: &Store, case: &str) {
        for (path, _) in files(store.0.path()) {
            let is_left = path.extension().is_some_and(|it| it == "lock")
                || path.parent().unwrap().ends_with("tmp");
            assert!(!is_left, "{case}: {}", path.display());
        }
        for at in 0..3 {
            let lines = self.lines(store, self.control(at), case);
            let Some(next_uid) = self.next_of_index(store, at, case) else {
                continue;
            };
            let last = lines.last().map_or(0, |(uid, _)| *uid);
            assert!(next_uid <= last + 1, "{case}: {next_uid}, {lines:?}");
        }
    }

    /// As the index has it. None: there is none.
    fn next_of_index(&self, store: &Store, at: usize, case: &str) -> Option<u32> {
        let dir = Dir::open(&store.path(self.control(at))).unwrap();
        let log = Log::lock(
            &dir,
            Pair::MAILBOX,
            LockMethod::Fcntl,
            &Walks::default(),
            log::TIMEOUT,
        );
        Some(log.expect(case)?.state().next_uid)
    }

    /// Lets one step fail. False: there was no such step any more.
    fn fails_well(&self, failure: Failure, step: usize) -> bool {
        let store = self.store();
        let results = self.publish(&store, 1, &[0, 1, 2], || fault_point::arm(step, failure));
        let fired = !fault_point::disarm();
        let mut case = format!("{self:?}, {failure:?} at {step}: {results:?}");
        let has_ended = fired && ENDS.contains(&failure);
        for fault in results.iter().filter_map(|result| result.as_ref().err()) {
            assert!(fault.code.is_temporary() && fired, "{case}");
        }
        if !has_ended {
            self.assert_kept(&store, &[0, 1, 2], &results, [0; 3], &case);
            self.assert_tidy(&store, &case);
        }
        if !fired {
            self.assert_usual(&store, &results, &case);
            return false;
        }
        // Nobody has heard of the end of a process: all are sent again, and the names say which of them are there.
        let had = self.counts(&store, &case);
        for (name, bytes) in self.seen(&store) {
            let at = (0..3).find(|&at| name.starts_with(&self::name(1, at)));
            assert_eq!(at.map(body), Some(bytes), "{case}: {name}");
        }
        assert!(had.iter().all(|&count| count <= 1), "{case}: {had:?}");
        let is_missing = |&at: &usize| has_ended || results[at].is_err();
        let missing: Vec<usize> = (0..3).filter(is_missing).collect();
        let_time_pass(&store);
        let again = self.publish(&store, 2, &missing, || ());
        case = format!("{case}\nthe next try: {again:?}");
        assert!(again.iter().all(Result::is_ok), "{case}");
        self.assert_kept(&store, &missing, &again, had, &case);
        if !has_ended {
            self.assert_tidy(&store, &case);
        }
        true
    }

    /// Where nothing fails, all have UIDs in their order, and the index knows them.
    fn assert_usual(&self, store: &Store, results: &Results, case: &str) {
        for (at, result) in results.iter().enumerate() {
            let published = result.as_ref().expect(case);
            assert_eq!(published.remarks, [""; 0], "{case}");
            let lines = self.lines(store, self.control(at), case);
            let before = (0..at).filter(|&it| self.control(it) == self.control(at));
            let first = lines
                .iter()
                .position(|(_, name)| name != "other")
                .expect(case);
            let (uid, _) = lines[first + before.count()];
            assert_eq!(published.uid, Some(uid), "{case}");
            let next = self.next_of_index(store, at, case);
            let last = lines.last().unwrap().0;
            assert!(next.is_none_or(|next| next == last + 1), "{case}");
        }
    }
}

/// The name that a message is to have, as it was written down before.
fn name(pid: u32, at: usize) -> String {
    format!("1795331000.M{at}P{pid}Q{at}.mx")
}

#[test]
fn each_that_is_answered_for_is_there_once() {
    if !as_ordinary_user("every_step_fails::published::each_that_is_answered_for_is_there_once") {
        return;
    }
    for row in ROWS {
        for failure in FAILURES.into_iter().chain(ENDS) {
            let mut steps = 0;
            while row.fails_well(failure, steps) {
                steps += 1;
            }
            let least = if failure.is_of_writes() { 1 } else { 20 };
            assert!(steps >= least, "{row:?}, {failure:?}: {steps} steps");
        }
    }
}

/// One whom nobody hears any more has no name and no UID, and costs no other its own.
#[test]
fn whoever_is_not_heard_costs_nobody() {
    if !as_ordinary_user("every_step_fails::published::whoever_is_not_heard_costs_nobody") {
        return;
    }
    for row in ROWS {
        for gone in 0..3 {
            let store = row.store();
            let heard = |at: usize| {
                let heard = Heard::from_now();
                if at == gone {
                    heard.abandon();
                }
                heard
            };
            let results = row.publish_heard(&store, 1, &[0, 1, 2], || (), heard);
            let case = format!("{row:?} without {gone}: {results:?}");
            let code = |at: usize| results[at].as_ref().err().map(|fault| fault.code);
            assert_eq!(code(gone), Some(Code::NotNow), "{case}");
            assert_eq!(
                results
                    .iter()
                    .flatten()
                    .filter(|it| it.uid.is_some())
                    .count(),
                2,
                "{case}"
            );
            row.assert_kept(&store, &[0, 1, 2], &results, [0; 3], &case);
            row.assert_tidy(&store, &case);
        }
    }
}
