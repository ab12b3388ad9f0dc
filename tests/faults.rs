//! Each system call of a delivery fails once, with each error that a disk, a quota, a signal or a shortage can bring, as strace makes
//! it fail: whoever was told that his message is stored has it once, nobody sees a part of one, nothing is left behind, and the
//! next delivery is as any other.
//!
//! The commands that change what Dovecot reads too: a file is as before or as it was asked for.
//!
//! Of each kind of delivery every call that changes something, with one of the errors in turn, and some of the others; all of them with
//! each error with `POSTROOM_FAULTS=all`, or all of one call: `POSTROOM_FAULTS=epoll_ctl`.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use support::agent::{Agent, THREE};
use support::meddle::{CHANGES, Meddling, calls_of, meddle_with};
use support::places::{INBOX, KEYWORD, LINKED, MBOX, NEW, PUBLIC};
use support::{MAIL, Store, installed, not_root, program, random, skip, tree};

/// Calls of a delivery that change nothing by themselves.
const LOOKS: [&str; 15] = [
    "read",
    "pread64",
    "fgetxattr",
    "fstat",
    "newfstatat",
    "getdents64",
    "statx",
    "faccessat2",
    "readlink",
    "recvfrom",
    "recvmsg",
    "accept4",
    "epoll_ctl",
    "shutdown",
    "clone",
];
/// What the threads of a server begin with, and wake each other by.
const AT_THE_START: [&str; 8] = [
    "read",
    "write",
    "fcntl",
    "sendto",
    "recvfrom",
    "recvmsg",
    "epoll_ctl",
    "clone",
];
/// The same in one that runs.
const MEANWHILE: [&str; 1] = ["write"];

fn left_alone(agent: Agent) -> &'static [&'static str] {
    match agent {
        Agent::Lda => &[],
        Agent::Lmtp => &AT_THE_START,
        Agent::Running => &MEANWHILE,
    }
}

const ERRORS: [&str; 7] = [
    "error=EIO",
    "error=ENOSPC",
    "error=EDQUOT",
    "error=EINTR",
    "error=EMFILE",
    "error=ENOMEM",
    "error=ESTALE",
];
/// Calls of each row that change nothing, where not all are asked for.
const OTHERS: usize = 4;

#[test]
fn each_call_fails_once() {
    if not_root() || !installed("strace") && skip("strace is not installed") {
        return;
    }
    let wanted = std::env::var("POSTROOM_FAULTS").ok();
    let mut calls = [&CHANGES[..], &LOOKS].concat();
    let only = calls.iter().any(|call| Some(*call) == wanted.as_deref());
    if only {
        calls.retain(|call| Some(*call) == wanted.as_deref());
    }
    let meddling = Meddling {
        agents: &[Agent::Lda, Agent::Lmtp, Agent::Running],
        calls,
        left_alone,
        how: &ERRORS,
        others: wanted.is_none().then_some(OTHERS),
        seed: random::seed(),
    };
    let points = meddle_with(
        &[INBOX, NEW, KEYWORD, LINKED, MBOX, PUBLIC, THREE],
        &meddling,
    );
    let least = if only { 0 } else { 300 };
    assert!(points.is_none_or(|it| it > least), "{points:?} points");
}

/// A command that changes the rights of alice's mailbox or the map of shares.
struct Changing {
    store: Store,
    config: PathBuf,
    words: &'static [&'static str],
    /// Of the rights and of the map, before and behind it.
    before: [String; 2],
    wanted: [String; 2],
}

const CHANGED: [&str; 2] = [
    "home/alice/Maildir/.Work/dovecot-acl",
    "db/shared-mailboxes",
];

impl Changing {
    fn new(words: &'static [&'static str], rights: &str, map: &str) -> Changing {
        let store = Store::new();
        // One user's rows: those of another follow whatever fails of his.
        fs::remove_file(store.path("home/bob/Maildir/.Projects/dovecot-acl")).unwrap();
        for path in ["home/alice/Maildir", "home/alice/Maildir/.Work"] {
            store.scratch.maildir(path, MAIL, MAIL, 0o700);
        }
        store.scratch.dir("db", MAIL, MAIL, 0o2770);
        for (path, text) in CHANGED.iter().zip([rights, map]) {
            store.scratch.file(path, MAIL, MAIL, 0o660, text);
        }
        let map = store.scratch.text(CHANGED[1]);
        let config = store.configure("", &format!("[acl_sharing_map.file]\npath = \"{map}\"\n"));
        let mut changing = Changing {
            store,
            config,
            words,
            before: Default::default(),
            wanted: Default::default(),
        };
        changing.before = changing.texts();
        let done = changing.run(&mut changing.program());
        assert!(done.status.success(), "{words:?}: {done:?}");
        changing.wanted = changing.texts();
        assert_ne!(changing.before, changing.wanted, "{words:?}");
        changing
    }

    fn texts(&self) -> [String; 2] {
        CHANGED.map(|path| fs::read_to_string(self.store.path(path)).unwrap())
    }

    fn program(&self) -> Command {
        let mut command = program("postroom");
        command.arg("-c").arg(&self.config).args(self.words);
        command
    }

    fn run(&self, command: &mut Command) -> Output {
        command.output().unwrap()
    }

    fn traced(&self, arguments: &[&str]) -> (Output, String) {
        let trace = self.store.path("run/trace");
        let program = self.program();
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "--seccomp-bpf", "-o"])
            .arg(&trace)
            .args(arguments);
        strace.arg(program.get_program()).args(program.get_args());
        let output = self.run(&mut strace);
        (output, fs::read_to_string(&trace).unwrap())
    }

    /// Owner, group and mode of all that is there, without what it says.
    fn places(&self) -> Vec<String> {
        ["home/alice", "db"]
            .iter()
            .flat_map(|root| tree(&self.store.path(root)))
            .collect()
    }

    /// Answers how often something failed.
    fn fail_each(&self, calls: &[&'static str], seed: u64) -> usize {
        let reset = || {
            for (path, text) in CHANGED.iter().zip(&self.before) {
                fs::write(self.store.path(path), text).unwrap();
            }
        };
        reset();
        let places = self.places();
        let (_, trace) = self.traced(&["-e", &format!("trace={}", calls.join(","))]);
        let points = calls_of(&trace, calls).into_keys().enumerate();
        let mut met = 0;
        for (number, (call, nth)) in points {
            let error = ERRORS[number.wrapping_add(seed as usize) % ERRORS.len()];
            let case = format!("{:?}: {call} {nth} {error}", self.words);
            reset();
            let inject = format!("inject={call}:{error}:when={nth}");
            let (output, trace) = self.traced(&["-e", &format!("trace={call}"), "-e", &inject]);
            let failed = trace.matches("(INJECTED)").count();
            met += usize::from(failed == 1);
            if failed > 1 {
                // In its child too: it may have failed to say what had failed.
                continue;
            }
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let case = format!("{case}: {} {said}", output.status);
            assert!(!said.contains("panicked"), "{case}");
            let is_done = output.status.success() && !said.contains("the sharing map is not");
            assert!(is_done || !said.is_empty(), "{case}");
            for ((now, before), wanted) in self.texts().iter().zip(&self.before).zip(&self.wanted) {
                assert!(now == wanted || now == before && !is_done, "{case}: {now}");
            }
            // What cannot be removed stays until somebody else removes it.
            assert!(
                call == "unlinkat" || self.places() == places,
                "{case}: {:#?}",
                self.places()
            );
            let again = self.run(&mut self.program());
            assert!(again.status.success(), "{case}: {again:?}");
            assert_eq!(self.texts(), self.wanted, "{case}: again");
            assert_eq!(self.places(), places, "{case}: again");
        }
        met
    }
}

#[test]
fn each_call_of_a_command_fails_once() {
    if not_root() || !installed("strace") && skip("strace is not installed") {
        return;
    }
    let seed = random::seed();
    // its words, the rights and the map before
    for (words, rights, map) in [
        (
            &[
                "acl", "set", "-u", "alice", "Work", "user=bob", "lookup", "post",
            ][..],
            "user=carol lp\n",
            "shared/shared-boxes/user/carol/alice\n1\n",
        ),
        (
            &["acl", "delete", "-u", "alice", "Work", "user=carol"],
            "user=carol lp\nuser=bob l\n",
            "shared/shared-boxes/user/carol/alice\n1\nshared/shared-boxes/user/bob/alice\n1\n",
        ),
        (
            &["share", "rebuild"],
            "user=carol lp\n",
            "shared/shared-boxes/user/nobody/alice\n1\n",
        ),
    ] {
        let met = Changing::new(words, rights, map).fail_each(&CHANGES, seed);
        eprintln!("{words:?}: {met} failures");
        assert!(met > 15, "{words:?}: {met} failures");
    }
}
