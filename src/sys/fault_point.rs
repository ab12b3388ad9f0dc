//! A countdown that lets one system call fail: every step of a save fails once in a test.
//!
//! In a release build [`pass`] is nothing. In a test build the n-th call of this thread after [`arm`] returns the
//! chosen errno instead of doing its work.

use std::io;

#[cfg(not(test))]
#[inline(always)]
pub fn pass() -> io::Result<()> {
    Ok(())
}

/// What a disk, a quota, a signal, a full process table or a file server can answer to any call.
#[cfg(test)]
pub const ERRNOS: [i32; 7] = [
    libc::EIO,
    libc::ENOSPC,
    libc::EDQUOT,
    libc::EINTR,
    libc::EMFILE,
    libc::ENOMEM,
    libc::ESTALE,
];

#[cfg(test)]
mod countdown {
    use std::cell::Cell;

    thread_local! {
        /// Calls still to pass, and the errno of the one after them.
        pub static NEXT: Cell<Option<(usize, i32)>> = const { Cell::new(None) };
    }
}

/// Let the `calls`-th system call from now (0: the next one) of this thread fail with `errno`.
#[cfg(test)]
pub fn arm(calls: usize, errno: i32) {
    countdown::NEXT.set(Some((calls, errno)));
}

/// Ends the countdown. True: it had not fired yet.
#[cfg(test)]
pub fn disarm() -> bool {
    countdown::NEXT.take().is_some()
}

#[cfg(test)]
pub fn pass() -> io::Result<()> {
    match countdown::NEXT.take() {
        None => Ok(()),
        Some((0, errno)) => Err(io::Error::from_raw_os_error(errno)),
        Some((calls, errno)) => {
            countdown::NEXT.set(Some((calls - 1, errno)));
            Ok(())
        }
    }
}
