//! System calls: the only place with `unsafe`, nix and libc.
//!
//! | file | what it is |
//! |---|---|
//! | [`dir`], [`paths`] | directories by descriptor, one name at a time; names by a pattern |
//! | [`dotlock`], [`file_lock`] | locks beside a file, and on it |
//! | [`append`], [`write_back`] | bytes behind the end of a file, and on their way to the disk |
//! | [`socket`], [`watched`] | listening sockets, and those of clients |
//! | [`packet`], [`channel`] | packets between processes of ours, for threads and for tasks |
//! | [`process`], [`children`], [`program`] | this process, its children, programs of others |
//! | [`credentials`], [`nss`], [`sandbox`] | who a process is, who there is, and what it can open |
//! | [`clock`], [`service`] | the clock, and systemd |
//! | [`fault_point`] | one system call fails, in a test |
#![allow(unsafe_code)]

pub mod append;
pub mod channel;
pub mod children;
pub mod clock;
pub mod credentials;
pub mod dir;
pub mod dotlock;
pub mod fault_point;
pub mod file_lock;
pub mod nss;
pub mod packet;
pub mod paths;
pub mod process;
pub mod program;
pub mod sandbox;
pub mod service;
pub mod socket;
pub mod watched;
pub mod write_back;

use std::io;

/// EMFILE, ENFILE, ENOMEM, EAGAIN: a shortage that passes.
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN)
    )
}

/// EACCES, EPERM, EROFS: a place that may not be written to, on purpose or not.
pub fn is_read_only(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EACCES | libc::EPERM | libc::EROFS)
    )
}

/// EACCES, EPERM, ELOOP, ENOTDIR, ENAMETOOLONG: a path that leads nowhere for us.
pub fn is_no_way(error: &io::Error) -> bool {
    use libc::{EACCES, ELOOP, ENAMETOOLONG, ENOTDIR, EPERM};
    // Also an error that we made ourselves, which has no number.
    error.kind() == io::ErrorKind::NotADirectory
        || matches!(
            error.raw_os_error(),
            Some(EACCES | EPERM | ELOOP | ENOTDIR | ENAMETOOLONG)
        )
}

/// ENOTDIR, ELOOP: something else, or a symlink that is not followed.
pub fn is_no_directory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP))
}

/// ENXIO, ENODEV: a socket, or a device that is not there, was opened.
pub fn is_no_file(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV))
}

/// What a file system without unnamed files answers to O_TMPFILE.
pub fn is_unsupported(error: &io::Error) -> bool {
    let raw = matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)
    );
    raw || error.kind() == io::ErrorKind::Unsupported
}
