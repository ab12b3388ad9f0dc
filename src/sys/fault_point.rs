//! A countdown that lets one system call fail: every step of a save fails once in a test.
//!
//! In a release build `pass` is nothing and `write` writes. In a test build something happens at the n-th call of this
//! thread after `arm`: it fails, in one way or another, instead of doing its work; before the n-th after
//! `meddle` somebody else does something.

#[cfg(test)]
pub use countdown::{
    ENDS, ERRNOS, FAILURES, Failure, REFUSALS, arm, disarm, fail_behind, meddle, pass, write,
};

/// A step that can fail.
#[cfg(not(test))]
#[inline(always)]
pub fn pass() -> std::io::Result<()> {
    Ok(())
}

/// A step that can fail, or stop in the middle: `write` gets what of `bytes` it may write.
#[cfg(not(test))]
#[inline(always)]
pub fn write(
    bytes: &[u8],
    write: impl FnOnce(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    write(bytes)
}

#[cfg(test)]
mod countdown {
    use std::cell::Cell;
    use std::io;

    /// What becomes of a call.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Failure {
        /// It does nothing and answers this.
        Errno(i32),
        /// It writes the first half, and then answers this. Only writes are counted.
        Short(i32),
        /// Neither it nor any call behind it does anything: what is left is what a process leaves that ends here.
        End,
        /// The same in the middle of a write. Only writes are counted.
        EndWithin,
    }

    impl From<i32> for Failure {
        fn from(errno: i32) -> Failure {
            Failure::Errno(errno)
        }
    }

    impl Failure {
        /// Calls that write are counted, no others: there are fewer steps.
        pub fn is_of_writes(self) -> bool {
            matches!(self, Failure::Short(_) | Failure::EndWithin)
        }
    }

    enum Event {
        Fails(Failure),
        Meddled(Box<dyn FnOnce()>),
        /// Somebody else does it, and it fails nevertheless.
        FailsBehind(Box<dyn FnOnce()>, i32),
    }

    enum State {
        /// Calls still to pass, and what happens at the one after them.
        Armed(usize, Event),
        Ended,
    }

    thread_local! {
        static NEXT: Cell<Option<State>> = const { Cell::new(None) };
    }

    /// What a mailbox answers that takes nothing as it is.
    pub const REFUSALS: [i32; 2] = [libc::EACCES, libc::EDQUOT];

    /// What a file server can answer whose call was done all the same.
    pub const ERRNOS: [i32; 7] = [
        libc::EIO,
        libc::ENOSPC,
        libc::EDQUOT,
        libc::EINTR,
        libc::EMFILE,
        libc::ENOMEM,
        libc::ESTALE,
    ];

    /// What a disk, a quota, a signal, a full process table or a file server can answer to any call.
    pub const FAILURES: [Failure; 10] = [
        Failure::Errno(libc::EIO),
        Failure::Errno(libc::ENOSPC),
        Failure::Errno(libc::EDQUOT),
        Failure::Errno(libc::EINTR),
        Failure::Errno(libc::EMFILE),
        Failure::Errno(libc::ENOMEM),
        Failure::Errno(libc::ESTALE),
        Failure::Short(libc::EIO),
        Failure::Short(libc::ENOSPC),
        Failure::Short(libc::EDQUOT),
    ];

    /// Killed, or without power.
    pub const ENDS: [Failure; 2] = [Failure::End, Failure::EndWithin];

    /// Let the `calls`-th system call from now (0: the next one) of this thread fail.
    pub fn arm(calls: usize, failure: impl Into<Failure>) {
        let event = Event::Fails(failure.into());
        NEXT.set(Some(State::Armed(calls, event)));
    }

    /// Let somebody else do something right before the `calls`-th system call from now.
    pub fn meddle(calls: usize, somebody: impl FnOnce() + 'static) {
        let event = Event::Meddled(Box::new(somebody));
        NEXT.set(Some(State::Armed(calls, event)));
    }

    /// Let the `calls`-th system call from now fail with `errno` behind what somebody else does: a file server that has done it and
    /// whose answer was lost.
    pub fn fail_behind(calls: usize, errno: i32, somebody: impl FnOnce() + 'static) {
        let event = Event::FailsBehind(Box::new(somebody), errno);
        NEXT.set(Some(State::Armed(calls, event)));
    }

    /// Ends the countdown. True: it had not fired yet.
    pub fn disarm() -> bool {
        matches!(NEXT.take(), Some(State::Armed(..)))
    }

    pub fn pass() -> io::Result<()> {
        step(false).map_or(Ok(()), |failure| Err(failure.error()))
    }

    pub fn write(bytes: &[u8], write: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match step(true) {
            None => write(bytes),
            Some(failure) => {
                if failure.is_of_writes() {
                    write(&bytes[..bytes.len() / 2])?;
                }
                Err(failure.error())
            }
        }
    }

    impl Failure {
        fn error(self) -> io::Error {
            match self {
                Failure::Errno(errno) | Failure::Short(errno) => {
                    io::Error::from_raw_os_error(errno)
                }
                Failure::End | Failure::EndWithin => io::Error::other("the process has ended"),
            }
        }
    }

    /// What this call has to do instead of its work.
    fn step(is_write: bool) -> Option<Failure> {
        let (calls, event) = match NEXT.take()? {
            State::Armed(calls, event) => (calls, event),
            State::Ended => {
                NEXT.set(Some(State::Ended));
                return Some(Failure::End);
            }
        };
        let is_counted =
            is_write || !matches!(&event, Event::Fails(failure) if failure.is_of_writes());
        match (calls, event) {
            (0, event) if is_counted => match event {
                Event::Meddled(somebody) => {
                    somebody();
                    None
                }
                Event::FailsBehind(somebody, errno) => {
                    somebody();
                    Some(Failure::Errno(errno))
                }
                Event::Fails(failure) => {
                    if matches!(failure, Failure::End | Failure::EndWithin) {
                        NEXT.set(Some(State::Ended));
                    }
                    Some(failure)
                }
            },
            (calls, event) => {
                NEXT.set(Some(State::Armed(calls - usize::from(is_counted), event)));
                None
            }
        }
    }
}
