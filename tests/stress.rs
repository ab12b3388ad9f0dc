//! Everybody at once on a private, a public and a shared mailbox: our deliveries, dovecot-lda, and eight IMAP clients that
//! read, flag, expunge, append, copy and wait. Every message is there once, with the UID that its reply said, and none changes.
//!
//! `POSTROOM_STRESS_MESSAGES` of ours are delivered (`tests/stress` does 20,000).

mod support;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use support::imap::Imap;
use support::peers::{Dovecot, VERSIONS};
use support::{MAIL, Store, not_root, subject, uid_of, unfinished};

const CONNECTIONS: usize = 16;
/// Recipient, its mailbox as alice names it, and its directory.
const PLACES: [(&str, &str, &str); 3] = [
    ("alice@x", "INBOX", "home/alice/Maildir"),
    ("alice+Public/info@x", "Public/info", "public/.info"),
    (
        "alice+shared/bob/Projects@x",
        "shared/bob/Projects",
        "home/bob/Maildir/.Projects",
    ),
];
/// Dovecot starts new logs all the time.
const SMALL_LOGS: &str = "mail_index_log_rotate_min_size = 4k\nmail_index_log_rotate_max_size = 16k\n\
                          mail_index_log_rotate_min_age = 1s\n";
/// Of a client between two commands.
const PAUSE: Duration = Duration::from_millis(20);
const SUBJECT: &str = "BODY.PEEK[HEADER.FIELDS (SUBJECT)]";

/// What became known while everything ran. The mailboxes are numbered as in [`PLACES`].
#[derive(Default)]
struct Ledger {
    /// Subject and place of what was stored, with its UID where a reply said it.
    stored: Mutex<HashMap<String, (usize, Option<u32>)>>,
    /// The subject that was once seen with a UID.
    seen: Mutex<HashMap<(usize, u32), String>>,
    expunged: Mutex<HashSet<String>>,
    done: AtomicBool,
}

impl Ledger {
    fn store(&self, subject: String, place: usize, uid: Option<u32>) {
        let before = self.stored.lock().unwrap().insert(subject, (place, uid));
        assert_eq!(before, None);
    }

    fn see(&self, place: usize, uid: u32, subject: &str) {
        let mut seen = self.seen.lock().unwrap();
        let known = seen
            .entry((place, uid))
            .or_insert_with(|| subject.to_owned());
        assert_eq!(
            known, subject,
            "UID {uid} of {} has changed",
            PLACES[place].1
        );
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }
}

fn message(subject: &str) -> String {
    format!("Subject: {subject}\r\n\r\ntext\r\n")
}

/// Looks at what is new, again and again.
fn read(imap: &mut Imap, ledger: &Ledger, place: usize, mailbox: &str) {
    let mut next = 1;
    while !ledger.is_done() {
        imap.select(mailbox);
        for found in imap.fetch(&format!("{next}:*"), SUBJECT) {
            ledger.see(place, found.uid, &subject(&found.bytes));
            next = next.max(found.uid + 1);
        }
    }
}

/// Flags and keywords of the last ten.
fn flag(imap: &mut Imap, ledger: &Ledger, mailbox: &str) {
    while !ledger.is_done() {
        let count = imap.select(mailbox);
        let last = format!("{}:*", count.saturating_sub(10).max(1));
        imap.command(&format!("STORE {last} +FLAGS (\\Flagged $Label1)"));
        imap.command(&format!("STORE {last} -FLAGS ($Label1)"));
        imap.command(&format!("STORE {last} +FLAGS (Work)"));
        thread::sleep(PAUSE);
    }
}

/// Expunges single messages from the front, each after a look at it.
fn expunge(imap: &mut Imap, ledger: &Ledger, place: usize, mailbox: &str) {
    while !ledger.is_done() {
        if imap.select(mailbox) < 30 {
            continue;
        }
        let first = imap.fetch("1:*", SUBJECT).into_iter().step_by(7).take(2);
        for found in first {
            let name = subject(&found.bytes);
            ledger.see(place, found.uid, &name);
            imap.command(&format!(
                "UID STORE {} +FLAGS.SILENT (\\Deleted)",
                found.uid
            ));
            imap.command(&format!("UID EXPUNGE {}", found.uid));
            ledger.expunged.lock().unwrap().insert(name);
        }
    }
}

fn append(imap: &mut Imap, ledger: &Ledger) {
    for number in 0.. {
        if ledger.is_done() {
            return;
        }
        let place = number % PLACES.len();
        let name = format!("appended {number}");
        imap.append(PLACES[place].1, &message(&name));
        ledger.store(name, place, None);
        thread::sleep(PAUSE);
    }
}

fn wait(imap: &mut Imap, ledger: &Ledger) {
    while !ledger.is_done() {
        imap.select("INBOX");
        imap.send_line("i IDLE");
        assert!(imap.read_line().starts_with('+'));
        thread::sleep(Duration::from_millis(300));
        imap.send_line("DONE");
        while !imap.read_line().starts_with("i OK") {}
    }
}

fn copy(imap: &mut Imap, ledger: &Ledger) {
    while !ledger.is_done() {
        if imap.select("INBOX") > 1 {
            imap.command("COPY 1:2 Copies");
        }
        thread::sleep(PAUSE);
    }
}

/// Counts new logs of Dovecot.
fn watch(store: &Store, ledger: &Ledger, rotations: &AtomicUsize) {
    let mut before = HashMap::new();
    while !ledger.is_done() {
        for (_, _, directory) in PLACES {
            let log = store.path(directory).join("dovecot.index.log");
            let Ok(stat) = fs::metadata(&log) else {
                continue;
            };
            let last = before.insert(log, stat.ino());
            if last.is_some_and(|last| last != stat.ino()) {
                rotations.fetch_add(1, Ordering::Relaxed);
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn every_message_is_there_once_with_its_uid() {
    if not_root() {
        return;
    }
    let all = std::env::var("POSTROOM_STRESS_MESSAGES");
    let all: usize = all.map_or(640, |all| all.parse().unwrap());
    for version in VERSIONS {
        let store = Store::new();
        for mailbox in ["", "/.Copies"] {
            let path = format!("home/alice/Maildir{mailbox}");
            store.scratch.maildir(&path, MAIL, MAIL, 0o700);
        }
        let rights = "user=alice lrwstipe\n";
        let acl = "home/bob/Maildir/.Projects/dovecot-acl";
        store.scratch.file(acl, MAIL, MAIL, 0o660, rights);
        let acl = "public/.info/dovecot-acl";
        store
            .scratch
            .file(acl, MAIL, 100, 0o660, "anyone lrwstipe\n");
        let Some(dovecot) = Dovecot::start_with(version, &store, |text| text + SMALL_LOGS) else {
            return;
        };
        let server = store.serve("", "");
        let (ledger, rotations) = (Ledger::default(), AtomicUsize::new(0));
        let login = |user| Imap::login(dovecot.port, user);
        let (ledger, rotations, login) = (&ledger, &rotations, &login);
        let new_logs = all / 400;
        thread::scope(|scope| {
            scope.spawn(|| watch(&store, ledger, rotations));
            scope.spawn(|| read(&mut login("alice"), ledger, 0, "INBOX"));
            scope.spawn(|| flag(&mut login("alice"), ledger, "INBOX"));
            scope.spawn(|| flag(&mut login("bob"), ledger, "Projects"));
            scope.spawn(|| expunge(&mut login("alice"), ledger, 0, "INBOX"));
            scope.spawn(|| expunge(&mut login("bob"), ledger, 1, "Public/info"));
            scope.spawn(|| append(&mut login("alice"), ledger));
            scope.spawn(|| wait(&mut login("alice"), ledger));
            scope.spawn(|| copy(&mut login("alice"), ledger));
            scope.spawn(|| {
                for number in (0..).take_while(|_| !ledger.is_done()) {
                    let place = number % PLACES.len();
                    let name = format!("theirs {number}");
                    let sent = dovecot.lda("alice", PLACES[place].1, message(&name).as_bytes());
                    assert_eq!(sent, Some(0));
                    ledger.store(name, place, None);
                }
            });
            let senders: Vec<_> = (0..CONNECTIONS)
                .map(|sender| {
                    let mut client = server.client();
                    scope.spawn(move || {
                        // On until Dovecot began new logs, on a machine that leaves it little time too.
                        let enough = |number| match rotations.load(Ordering::Relaxed) {
                            seen if seen >= new_logs => number >= all / CONNECTIONS,
                            _ => number >= 20 * all / CONNECTIONS,
                        };
                        for number in (0..).take_while(|number| !enough(*number)) {
                            let place = (sender + number) % PLACES.len();
                            let name = format!("ours {sender} {number}");
                            let replies =
                                client.deliver(&[PLACES[place].0], message(&name).as_bytes());
                            assert!(replies[0].starts_with("250 2.0.0"), "{replies:?}");
                            assert!(replies[0].contains(PLACES[place].1), "{replies:?}");
                            ledger.store(name, place, uid_of(&replies[0]));
                        }
                    })
                })
                .collect();
            let ended: Vec<_> = senders.into_iter().map(|sender| sender.join()).collect();
            ledger.done.store(true, Ordering::Relaxed);
            ended.into_iter().for_each(|ended| ended.unwrap());
        });
        let expunged = ledger.expunged.lock().unwrap();
        let stored = ledger.stored.lock().unwrap();
        let mut left: HashSet<&String> = stored.keys().collect();
        let mut imap = login("alice");
        for (place, (_, mailbox, _)) in PLACES.iter().enumerate() {
            imap.select(mailbox);
            for found in imap.fetch("1:*", SUBJECT) {
                let name = subject(&found.bytes);
                ledger.see(place, found.uid, &name);
                assert!(
                    left.remove(&name),
                    "{version:?}: {name:?} twice, or never sent"
                );
                assert!(!expunged.contains(&name), "{version:?}: {name:?} is back");
                assert_eq!(stored[&name].0, place, "{version:?}: {name:?} is elsewhere");
            }
        }
        let lost: Vec<_> = left.iter().filter(|it| !expunged.contains(**it)).collect();
        assert_eq!(lost, Vec::<&&String>::new(), "{version:?}: lost");
        // Every UID that a reply said, also of what is expunged by now.
        let seen = ledger.seen.lock().unwrap();
        let by_subject: HashMap<_, _> = seen.iter().map(|((_, uid), name)| (name, uid)).collect();
        let ours = stored.iter().filter(|(name, _)| name.starts_with("ours"));
        let with_uid = ours
            .clone()
            .filter_map(|(name, (_, uid))| Some((name, (*uid)?)));
        let wrong = with_uid
            .clone()
            .filter(|(name, uid)| by_subject.get(name) != Some(&uid));
        assert_eq!(wrong.collect::<Vec<_>>(), Vec::new(), "{version:?}: UIDs");
        let log = server.log();
        let without_index = log.matches("is left to Dovecot").count();
        let rotations = rotations.load(Ordering::Relaxed);
        let sent = ours.clone().count();
        eprintln!(
            "{version:?}: {} stored, {} of {} of ours with UID, {without_index} not in the index, {} expunged, \
             {rotations} new logs",
            stored.len(),
            with_uid.clone().count(),
            sent,
            expunged.len(),
        );
        assert!(with_uid.count() > sent / 2, "{version:?}: {log}");
        assert!(without_index < sent / 2, "{version:?}: {log}");
        assert!(
            rotations >= new_logs,
            "{version:?}: only {rotations} new logs"
        );
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
        for root in ["home", "public"] {
            let left = unfinished(&store.path(root));
            assert_eq!(left, Vec::<std::path::PathBuf>::new(), "{version:?}");
        }
    }
}
