//! Each system call of a delivery fails once, with each error that a disk, a quota, a signal or a shortage can bring, as strace makes
//! it fail: whoever was told that his message is stored has it once, nobody sees a part of one, nothing is left behind, and the
//! next delivery is as any other.
//!
//! So many points of each kind of delivery; all of them with `POSTROOM_FAULTS=all`.

mod support;

use support::agent::THREE;
use support::meddle::{Meddling, meddle_with};
use support::places::{INBOX, KEYWORD, MBOX, NEW, PUBLIC};
use support::{installed, not_root, skip};

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
    "error=EIO",
    "error=ENOSPC",
    "error=EDQUOT",
    "error=EINTR",
    "error=EMFILE",
    "error=ENOMEM",
    "error=ESTALE",
];
/// Of each row, where not all are asked for.
const POINTS: usize = 25;

#[test]
fn each_call_fails_once() {
    if not_root() || !installed("strace") && skip("strace is not installed") {
        return;
    }
    let takes_all = std::env::var_os("POSTROOM_FAULTS").is_some_and(|it| it == "all");
    let meddling = Meddling {
        calls: &CALLS,
        not_of_server: &OF_THREADS,
        how: &ERRORS,
        points: (!takes_all).then_some(POINTS),
    };
    let points = meddle_with(&[INBOX, NEW, KEYWORD, MBOX, PUBLIC, THREE], &meddling);
    assert!(points > 200, "{points} points");
}
