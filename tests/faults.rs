//! Each system call of a delivery fails once, with each error that a disk, a quota, a signal or a shortage can bring, as strace makes
//! it fail: whoever was told that his message is stored has it once, nobody sees a part of one, nothing is left behind, and the
//! next delivery is as any other.
//!
//! Of each kind of delivery every call that changes something, with one of the errors in turn, and some of the others; all of them with
//! each error with `POSTROOM_FAULTS=all`, or all of one call: `POSTROOM_FAULTS=epoll_ctl`.

mod support;

use support::agent::{Agent, THREE};
use support::meddle::{CHANGES, Meddling, meddle_with};
use support::places::{INBOX, KEYWORD, LINKED, MBOX, NEW, PUBLIC};
use support::random;
use support::{installed, not_root, skip};

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
