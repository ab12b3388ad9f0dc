//! Locks on open files, held until the file is closed.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::fault_point::pass;

/// Which of the two kinds, which do not see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// An OFD lock on the whole file: excludes the POSIX locks of other programs, and other threads of this one.
    Fcntl,
    Flock,
}

/// Locks `file` for writing. [`ErrorKind::TimedOut`] when somebody else holds it for longer than `patience`.
pub fn exclusive(file: &File, method: Method, patience: Duration) -> io::Result<()> {
    pass()?;
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    while !try_lock(file, method)? {
        let left = patience.saturating_sub(began.elapsed());
        if left.is_zero() {
            let why = "it is locked by another process";
            return Err(io::Error::new(ErrorKind::TimedOut, why));
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}

/// Of a thread that does nothing but wait, bytes.
const STACK: usize = 64 * 1024;

/// Locks `file` for writing when its turn comes: the kernel wakes whoever has waited longest, without a pause between two tries. False:
/// not within `patience`, and then `file` is to be closed, for it may get the lock at any moment.
pub fn wait(file: &File, method: Method, patience: Duration) -> io::Result<bool> {
    let own = file.try_clone()?;
    let (done, result) = mpsc::sync_channel(1);
    // The kernel waits without end: a thread of its own does it. What it gets too late ends with its copy of the file.
    let waiting = thread::Builder::new().stack_size(STACK).spawn(move || {
        let locked = lock(&own, method);
        drop(own);
        done.send(locked)
    });
    match waiting {
        Ok(_) => match result.recv_timeout(patience) {
            Ok(locked) => locked.map(|()| true),
            Err(_) => Ok(false),
        },
        // As many as there may be: without one, then.
        Err(_) => match exclusive(file, method, patience) {
            Err(error) if error.kind() == ErrorKind::TimedOut => Ok(false),
            locked => locked.map(|()| true),
        },
    }
}

fn lock(file: &File, method: Method) -> io::Result<()> {
    match method {
        Method::Flock => file.lock(),
        Method::Fcntl => loop {
            match fcntl(file, FcntlArg::F_OFD_SETLKW(&whole_file())) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        },
    }
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Locks `file` for writing. False: somebody else has it.
pub fn try_lock(file: &File, method: Method) -> io::Result<bool> {
    match method {
        Method::Flock => match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        },
        Method::Fcntl => match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file())) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(errno) => Err(errno.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_until_the_file_is_closed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        for method in [Method::Fcntl, Method::Flock] {
            let open = || {
                let mut options = File::options();
                options.create(true).truncate(false).write(true).read(true);
                options.open(&path).unwrap()
            };
            let (first, second) = (open(), open());
            let short = Duration::from_millis(5);
            exclusive(&first, method, short).unwrap();
            let busy = exclusive(&second, method, short).unwrap_err();
            assert_eq!(busy.kind(), ErrorKind::TimedOut);
            drop(first);
            exclusive(&second, method, short).unwrap();
        }
    }

    /// In vain, and then for as long as it takes: whoever gave up has no lock, also where the kernel gives it to him later.
    #[test]
    fn waiting_for_the_kernel() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        for method in [Method::Fcntl, Method::Flock] {
            let open = || {
                let mut options = File::options();
                options.create(true).truncate(false).write(true).read(true);
                options.open(&path).unwrap()
            };
            let (first, second, third) = (open(), open(), open());
            let (short, long) = (Duration::from_millis(5), Duration::from_secs(60));
            exclusive(&first, method, short).unwrap();
            assert!(!wait(&second, method, short).unwrap(), "{method:?}");
            drop(second);
            thread::scope(|scope| {
                let waiting = scope.spawn(|| wait(&third, method, long).unwrap());
                drop(first);
                assert!(waiting.join().unwrap(), "{method:?}");
            });
            assert!(!try_lock(&open(), method).unwrap(), "{method:?}");
            drop(third);
            // The one that gave up may have it for a moment.
            exclusive(&open(), method, long).unwrap();
        }
    }
}
