//! Locks on open files, held until the file is closed.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
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

/// A file, and the kind of its lock.
type Waited = (u64, u64, Method);

/// The files whose lock a thread waits for, whoever still waits for that one.
fn waited() -> MutexGuard<'static, Vec<Waited>> {
    static WAITED: Mutex<Vec<Waited>> = Mutex::new(Vec::new());
    WAITED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks `file` for writing when its turn comes: the kernel wakes whoever has waited longest, without a pause between two tries. False:
/// not within `patience`, and then `file` is to be closed, for it may get the lock at any moment.
pub fn wait(file: &File, method: Method, patience: Duration) -> io::Result<bool> {
    let result = match waits(file, method)? {
        Some(result) => result,
        // One thread for each file, however long somebody holds it, and as many as there may be: without one, then.
        None => {
            return match exclusive(file, method, patience) {
                Err(error) if error.kind() == ErrorKind::TimedOut => Ok(false),
                locked => locked.map(|()| true),
            };
        }
    };
    match result.recv_timeout(patience) {
        Ok(locked) => locked.map(|()| true),
        Err(_) => Ok(false),
    }
}

/// Has a thread wait for the lock; none where there is one that does, or where none can be had.
fn waits(file: &File, method: Method) -> io::Result<Option<mpsc::Receiver<io::Result<()>>>> {
    let meta = file.metadata()?;
    let waited_for = (meta.dev(), meta.ino(), method);
    let own = file.try_clone()?;
    let (done, result) = mpsc::sync_channel(1);
    let mut all = waited();
    if all.contains(&waited_for) {
        return Ok(None);
    }
    all.push(waited_for);
    drop(all);
    let leave = move || waited().retain(|it| *it != waited_for);
    // The kernel waits without end. What it gives too late ends with this copy of the file.
    let waiting = thread::Builder::new().stack_size(STACK).spawn(move || {
        let locked = lock(&own, method);
        drop(own);
        leave();
        done.send(locked)
    });
    Ok(match waiting {
        Ok(_) => Some(result),
        Err(_) => {
            leave();
            None
        }
    })
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
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> File {
        let mut options = File::options();
        options.create(true).truncate(false).write(true).read(true);
        options.open(path).unwrap()
    }

    #[test]
    fn one_at_a_time_until_the_file_is_closed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        for method in [Method::Fcntl, Method::Flock] {
            let open = || open(&path);
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
            let open = || open(&path);
            let (first, second, third) = (open(), open(), open());
            let (short, long) = (Duration::from_millis(5), Duration::from_secs(60));
            exclusive(&first, method, short).unwrap();
            assert!(!wait(&second, method, short).unwrap(), "{method:?}");
            drop(second);
            // Its thread is the only one, however many come and give up.
            assert!(waits(&third, method).unwrap().is_none(), "{method:?}");
            assert!(!wait(&third, method, short).unwrap(), "{method:?}");
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
