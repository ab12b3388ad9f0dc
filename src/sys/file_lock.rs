//! Locks on open files, held until the file is closed.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
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

/// Locks `file` for writing. False: somebody else has it.
pub fn try_lock(file: &File, method: Method) -> io::Result<bool> {
    match method {
        Method::Flock => match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        },
        Method::Fcntl => {
            let whole = libc::flock {
                l_type: libc::F_WRLCK as libc::c_short,
                l_whence: libc::SEEK_SET as libc::c_short,
                l_start: 0,
                l_len: 0,
                l_pid: 0,
            };
            match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
                Ok(_) => Ok(true),
                Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
                Err(errno) => Err(errno.into()),
            }
        }
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
}
