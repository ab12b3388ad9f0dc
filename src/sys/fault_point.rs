//! A countdown that lets one system call fail: every step of a save fails once in a test.
//!
//! In a release build [`pass`] is nothing. In a test build the n-th call of this thread after [`arm`] returns the
//! chosen errno instead of doing its work, and before the n-th after [`meddle`] something else happens.

#[cfg(test)]
pub use countdown::{ERRNOS, arm, disarm, fail_behind, meddle, pass};

#[cfg(not(test))]
#[inline(always)]
pub fn pass() -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod countdown {
    use std::cell::Cell;
    use std::io;

    enum Event {
        Fails(i32),
        Meddled(Box<dyn FnOnce()>),
        /// Somebody else does it, and it fails nevertheless.
        FailsBehind(Box<dyn FnOnce()>, i32),
    }

    thread_local! {
        /// Calls still to pass, and what happens at the one after them.
        static NEXT: Cell<Option<(usize, Event)>> = const { Cell::new(None) };
    }

    /// What a disk, a quota, a signal, a full process table or a file server can answer to any call.
    pub const ERRNOS: [i32; 7] = [
        libc::EIO,
        libc::ENOSPC,
        libc::EDQUOT,
        libc::EINTR,
        libc::EMFILE,
        libc::ENOMEM,
        libc::ESTALE,
    ];

    /// Let the `calls`-th system call from now (0: the next one) of this thread fail with `errno`.
    pub fn arm(calls: usize, errno: i32) {
        NEXT.set(Some((calls, Event::Fails(errno))));
    }

    /// Let somebody else do something right before the `calls`-th system call from now.
    pub fn meddle(calls: usize, somebody: impl FnOnce() + 'static) {
        NEXT.set(Some((calls, Event::Meddled(Box::new(somebody)))));
    }

    /// Let the `calls`-th system call from now fail with `errno` behind what somebody else does: a file server that has done it and
    /// whose answer was lost.
    pub fn fail_behind(calls: usize, errno: i32, somebody: impl FnOnce() + 'static) {
        NEXT.set(Some((calls, Event::FailsBehind(Box::new(somebody), errno))));
    }

    /// Ends the countdown. True: it had not fired yet.
    pub fn disarm() -> bool {
        NEXT.take().is_some()
    }

    pub fn pass() -> io::Result<()> {
        match NEXT.take() {
            None => Ok(()),
            Some((0, Event::Fails(errno))) => Err(io::Error::from_raw_os_error(errno)),
            Some((0, Event::Meddled(somebody))) => {
                somebody();
                Ok(())
            }
            Some((0, Event::FailsBehind(somebody, errno))) => {
                somebody();
                Err(io::Error::from_raw_os_error(errno))
            }
            Some((calls, event)) => {
                NEXT.set(Some((calls - 1, event)));
                Ok(())
            }
        }
    }
}
