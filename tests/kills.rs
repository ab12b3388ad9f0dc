//! kill -9 at each system call that changes a file, in a delivery that writes a message, a keyword, a UID and the index: what
//! was there stays as it was, the message is there whole or not at all, and Dovecot opens the mailbox without a complaint.

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::agent::{Agent, THREE};
use support::imap::Imap;
use support::meddle::{CHANGES, KILL, Meddling, calls_of, meddle_with};
use support::peers::{Dovecot, VERSIONS};
use support::places::{self, MBOX, NEW_MBOX, PLACES};
use support::{
    MAIL, Store, as_user, installed, let_time_pass, not_root, own, program, run_with_input, skip,
    unfinished,
};

const MESSAGE: &[u8] = b"Subject: new\n\ntext\n";
/// What is asserted of each test is 600 points and more together: of the first for each Dovecot, of the second, of the mbox.
const LEAST: [usize; 3] = [20, 550, 12];

/// The delivery under strace with these arguments. Answers its exit code.
fn traced(lda: &Command, message: &[u8], arguments: &[&str]) -> Option<i32> {
    let mut command = Command::new("strace");
    command.args(["-f", "-qqq"]).args(arguments).arg("--");
    command.arg(lda.get_program()).args(lda.get_args());
    for (key, value) in lda.get_envs() {
        command.env(key, value.unwrap());
    }
    as_user(&mut command, MAIL, MAIL, &[]);
    run_with_input(&mut command, message).status.code()
}

/// Each call of a delivery that changes something, and which one of its name it is. `trace` is written.
fn changes(lda: &Command, message: &[u8], trace: &Path) -> Vec<(&'static str, usize)> {
    let calls = format!("trace={}", CHANGES.join(","));
    let code = traced(lda, message, &["-e", &calls, "-o", trace.to_str().unwrap()]);
    assert_eq!(code, Some(0));
    let calls = calls_of(&fs::read_to_string(trace).unwrap(), &CHANGES);
    let changes = calls.into_iter().filter(|(_, changes)| *changes);
    changes.map(|(point, _)| point).collect()
}

/// The delivery, killed at the `nth` call of `call`. Answers its exit code, 0 where there was no such call.
fn killed(lda: &Command, message: &[u8], call: &str, nth: usize) -> Option<i32> {
    let inject = format!("inject={call}:signal=KILL:when={nth}");
    let trace = format!("trace={call}");
    traced(
        lda,
        message,
        &["-o", "/dev/null", "-e", &trace, "-e", &inject],
    )
}

fn lda(store: &Store) -> Command {
    let mut command = program("postroom-lda");
    command.arg("-c").arg(store.path("postroom.toml"));
    command.args(["-d", "alice", "-m", "Work"]);
    command.args(["--keyword", "$Label2", "--flag", "\\Flagged"]);
    command
}

fn deliver(store: &Store) {
    let mut command = lda(store);
    as_user(&mut command, MAIL, MAIL, &[]);
    let output = run_with_input(&mut command, MESSAGE);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// UID, subject and flags of each message that Dovecot shows.
fn shown(dovecot: &Dovecot, mailbox: &str) -> HashMap<u32, (String, String)> {
    let mut imap = Imap::login(dovecot.port, "alice");
    imap.select(mailbox);
    let messages = imap.fetch_all().into_iter();
    let shown = messages
        .map(|message| {
            let text = String::from_utf8_lossy(&message.bytes).into_owned();
            let mut flags: Vec<&str> = message.flags.split(' ').collect();
            flags.retain(|flag| *flag != "\\Recent");
            flags.sort_unstable();
            (message.uid, (text, flags.join(" ")))
        })
        .collect();
    imap.logout();
    shown
}

/// As one who was killed before us did.
fn leave_a_lock(mailbox: &Path) {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let lock = mailbox.join("dovecot-uidlist.lock");
    fs::write(&lock, format!("999999999:{}", host.trim())).unwrap();
    own(&lock, MAIL, MAIL);
    let_time_pass(&[lock]);
}

#[test]
fn killed_at_each_call_that_changes_a_file() {
    if not_root() || !installed("strace") && skip("strace is not installed") {
        return;
    }
    for version in VERSIONS {
        let store = Store::new();
        for mailbox in ["", "/.Work"] {
            let path = format!("home/alice/Maildir{mailbox}");
            store.scratch.maildir(&path, MAIL, MAIL, 0o700);
        }
        let Some(dovecot) = Dovecot::start(version, &store) else {
            return;
        };
        store.configure("", "");
        // Three messages that Dovecot has seen, one of them with a keyword.
        for _ in 0..3 {
            assert_eq!(dovecot.lda("alice", "Work", b"Subject: old\n\n"), Some(0));
        }
        let mut imap = Imap::login(dovecot.port, "alice");
        imap.select("Work");
        imap.command("STORE 2 +FLAGS ($Label1)");
        imap.command("LOGOUT");
        let old = shown(&dovecot, "Work");
        let mailbox = store.path("home/alice/Maildir/.Work");
        let template = store.path("template");
        let copy = |from: &Path, to: &Path| {
            let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
            assert!(copied.unwrap().success());
        };
        copy(&mailbox, &template);
        let (mut points, mut stored) = (0, 0);
        let reset = || {
            fs::remove_dir_all(&mailbox).unwrap();
            copy(&template, &mailbox);
            leave_a_lock(&mailbox);
        };
        reset();
        let changes = changes(&lda(&store), MESSAGE, &store.path("run/trace"));
        for (number, (call, nth)) in changes.into_iter().enumerate() {
            reset();
            let case = format!("{version:?}: killed at {call} {nth}");
            let is_over = killed(&lda(&store), MESSAGE, call, nth) == Some(0);
            let_time_pass(&unfinished(&mailbox));
            // What comes next is Dovecot, or the MTA's next try.
            let before = match number % 2 {
                0 => {
                    deliver(&store);
                    None
                }
                _ => Some(shown(&dovecot, "Work")),
            };
            if let Some(before) = &before {
                let new = before.len() - old.len();
                assert!(new <= 1 && (new == 1 || !is_over), "{case}: {before:?}");
                stored += new;
                deliver(&store);
            }
            let after = shown(&dovecot, "Work");
            for (uid, message) in old.iter().chain(before.iter().flatten()) {
                assert_eq!(after.get(uid), Some(message), "{case}: {uid}");
            }
            let new = after.iter().filter(|(uid, _)| !old.contains_key(uid));
            let count = new.clone().count();
            assert!((1..=2).contains(&count), "{case}: {after:?}");
            for (uid, (text, flags)) in new {
                assert_eq!(text, "Subject: new\r\n\r\ntext\r\n", "{case}: {uid}");
                assert_eq!(flags, "$Label2 \\Flagged", "{case}: {uid}");
            }
            assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{case}");
            assert_eq!(unfinished(&mailbox), Vec::<PathBuf>::new(), "{case}");
            points += usize::from(!is_over);
        }
        eprintln!("{version:?}: killed at {points} points, {stored} times the message was there");
        assert!(
            points >= LEAST[0] && stored > 1,
            "{points} points, {stored} stored"
        );
    }
}

/// postroom-lda and the server, in each kind of mailbox.
#[test]
fn killed_in_every_kind_of_mailbox() {
    if not_root() || !installed("strace") && skip("strace is not installed") {
        return;
    }
    let meddling = Meddling {
        agents: &[Agent::Lda, Agent::Lmtp, Agent::Running],
        calls: CHANGES.to_vec(),
        left_alone: |_| &[],
        how: &[KILL],
        others: Some(0),
        seed: 0,
    };
    let points = meddle_with(&[&PLACES[..], &[NEW_MBOX, THREE]].concat(), &meddling);
    assert!(points.is_none_or(|it| it >= LEAST[1]), "{points:?} points");
}

/// How much of an mbox Dovecot knows when the next delivery comes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Known {
    Nothing,
    /// What was there before the one that is killed.
    Old,
    /// What that has left, too.
    Left,
}

/// An mbox is then the old one, with the whole message or with the beginning of it. That the next delivery removes, if Dovecot has not
/// shown it: then it stays, and so does the UID of each message.
#[test]
fn an_mbox_killed_at_each_call() {
    if not_root() || !installed("strace") && skip("strace is not installed") {
        return;
    }
    for version in VERSIONS {
        let store = places::store();
        places::configure(&store, "", "", "");
        let Some(dovecot) = places::dovecot(version, &store) else {
            return;
        };
        for known in [Known::Nothing, Known::Old, Known::Left] {
            kill_at_each_call(&store, &dovecot, known, &format!("{version:?} {known:?}"));
        }
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

fn kill_at_each_call(store: &Store, dovecot: &Dovecot, known: Known, case: &str) {
    const OLD: &str = "From x  Mon Nov 02 07:02:09 2026\nSubject: old\n\nold\n\n";
    let big = format!("Subject: new\n\n{}", "more text\n".repeat(30_000));
    let file = store.path(MBOX.path);
    let folder = file.parent().unwrap();
    let mut lda = program("postroom-lda");
    lda.arg("-c").arg(store.path("postroom.toml"));
    lda.args(MBOX.arguments()).args(["-f", "s@else.test"]);
    let deliver = || {
        let mut again = Command::new(lda.get_program());
        again.args(lda.get_args());
        as_user(&mut again, MAIL, MAIL, &[]);
        let output = run_with_input(&mut again, big.as_bytes());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    };
    let shown = || shown(dovecot, MBOX.mailbox);
    // The line before a message has the time, and the last UID is written over.
    let text = || {
        let text = fs::read_to_string(&file).unwrap();
        let lines = text.split_inclusive('\n');
        let is_alike =
            |line: &&str| !line.starts_with("From s") && !line.starts_with("X-IMAPbase: ");
        lines.filter(is_alike).collect::<String>()
    };
    let is_new = |text: &str| text.replace("\r\n", "\n").trim_end() == big.trim_end();
    let reset = || {
        fs::remove_dir_all(folder).unwrap();
        store.scratch.dir("home/alice/mail", MAIL, MAIL, 0o700);
        store.scratch.file(MBOX.path, MAIL, MAIL, 0o600, OLD);
        match known {
            Known::Nothing => HashMap::new(),
            _ => shown(),
        }
    };
    reset();
    let before = text();
    deliver();
    let one = text().strip_prefix(&before).unwrap().to_owned();
    let (mut points, mut torn) = (0, 0);
    reset();
    let changes = changes(&lda, big.as_bytes(), &store.path("run/trace"));
    for (call, nth) in changes {
        let old = reset();
        let case = format!("{case}: killed at {call} {nth}");
        let before = text();
        let is_over = killed(&lda, big.as_bytes(), call, nth) == Some(0);
        let left = text();
        let left = left.strip_prefix(&before);
        let left = left.unwrap_or_else(|| panic!("{case}: not what was there"));
        let_time_pass(&unfinished(folder));
        let is_whole = left == one;
        let is_torn = !is_whole && !left.is_empty();
        assert!(
            one.starts_with(left) && (is_whole || !is_over),
            "{case}: {left:.200}"
        );
        torn += usize::from(is_torn);
        let before = match known {
            Known::Left => shown(),
            _ => old,
        };
        deliver();
        let after = shown();
        for (uid, (text, flags)) in &before {
            let (there, of_it) = &after[uid];
            assert_eq!(
                (there.trim_end(), of_it),
                (text.trim_end(), flags),
                "{case}"
            );
        }
        let count = after.values().filter(|(text, _)| is_new(text)).count();
        assert_eq!(count, 1 + usize::from(is_whole), "{case}");
        let stays = usize::from(is_torn && known == Known::Left);
        assert_eq!(after.len(), 1 + stays + count, "{case}: {:?}", after.keys());
        let behind = after.iter().filter(|(uid, _)| !before.contains_key(uid));
        let last = before.keys().max();
        assert!(behind.map(|it| Some(it.0)).all(|uid| uid > last), "{case}");
        assert_eq!(unfinished(folder), Vec::<PathBuf>::new(), "{case}");
        points += usize::from(!is_over);
    }
    eprintln!(
        "{case}: killed at {points} points, {torn} times the beginning of the message was there"
    );
    assert!(
        points >= LEAST[2] && torn > 1,
        "{case}: {points} points, {torn} torn"
    );
}
