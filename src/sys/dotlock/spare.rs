//! A lock file that is used again and again: to lock is to give it a name, and none is made and removed each time.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Dotlock, held, write_pid};
use crate::sys;
use crate::sys::dir::{self, Dir};

/// Holds our pid. For as long as it is kept it has another name: a file that has lost its last one gets none any more.
#[derive(Debug)]
pub struct Spare {
    dir: Dir,
    name: String,
    file: Arc<File>,
    /// Device and inode.
    identity: (u64, u64),
    is_free: AtomicBool,
}

/// The right to use a [`Spare`]: one at a time.
#[derive(Debug)]
pub struct Claim(Arc<Spare>);

impl Spare {
    /// For locks in `dir`, made with `mode`; its other name is `name` in `elsewhere`. None where the file system has no files without
    /// names.
    pub fn make(
        dir: &Dir,
        mode: u32,
        elsewhere: &Dir,
        name: String,
    ) -> io::Result<Option<Arc<Spare>>> {
        let file = match dir.unnamed_file(mode) {
            Err(error) if sys::is_unsupported(&error) => return Ok(None),
            other => other?,
        };
        write_pid(&file)?;
        let identity = dir::stat_file(&file)?.identity();
        elsewhere.link(&file, &name)?;
        Ok(Some(Arc::new(Spare {
            dir: elsewhere.clone(),
            name,
            file: Arc::new(file),
            identity,
            is_free: AtomicBool::new(true),
        })))
    }

    /// None while somebody uses it, and for good where its lock could not be removed.
    pub fn claim(self: &Arc<Spare>) -> Option<Claim> {
        let was_free = self.is_free.swap(false, Ordering::Acquire);
        was_free.then(|| Claim(Arc::clone(self)))
    }
}

impl Claim {
    /// A lock of `name` that is not held yet.
    pub(super) fn into_lock(self, dir: &Dir, name: &str) -> Dotlock {
        let (file, identity) = (Arc::clone(&self.0.file), self.0.identity);
        held().push(identity);
        Dotlock {
            dir: dir.clone(),
            name: name.to_owned(),
            file,
            identity,
            is_held: false,
            spare: Some(self),
        }
    }

    /// Its lock is gone.
    pub(super) fn give_back(&self) {
        self.0.is_free.store(true, Ordering::Release);
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // A failure leaves a file in tmp/, which every Maildir reader removes in time.
        let _ = self.dir.unlink(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::sys::dotlock::{Holds, Patience};
    use crate::sys::{fault_point, process};

    const PATIENCE: Patience = Patience {
        timeout: Duration::from_millis(300),
        stale: Duration::from_secs(120),
    };

    /// One for locks in `root`, with its other name `root/tmp/spare`.
    fn spare(root: &Path) -> (Dir, Arc<Spare>) {
        fs::create_dir(root.join("tmp")).unwrap();
        let dir = Dir::open(root).unwrap();
        let tmp = dir.open_dir("tmp").unwrap();
        let spare = Spare::make(&dir, 0o640, &tmp, "spare".into()).unwrap();
        (dir, spare.unwrap())
    }

    fn take(spare: &Arc<Spare>, dir: &Dir) -> io::Result<Dotlock> {
        Dotlock::take_with(spare.claim().unwrap(), dir, "f", 0o640, PATIENCE)
    }

    #[test]
    fn one_file_for_many_locks() {
        let root = tempfile::tempdir().unwrap();
        let (dir, spare) = spare(root.path());
        let (path, other) = (root.path().join("f.lock"), root.path().join("tmp/spare"));
        let inode = fs::metadata(&other).unwrap().ino();
        for _ in 0..3 {
            spare.file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            let lock = take(&spare, &dir).unwrap();
            let holder = fs::read_to_string(&path).unwrap();
            let own = format!("{}:{}", std::process::id(), process::hostname());
            assert_eq!(holder, own);
            let there = fs::metadata(&path).unwrap();
            assert_eq!((there.ino(), there.mode() & 0o777), (inode, 0o640));
            // Its age is that of the lock.
            assert!(there.modified().unwrap().elapsed().unwrap() < Duration::from_secs(60));
            // Nobody else has it meanwhile, whichever file he comes with.
            assert!(spare.claim().is_none());
            let second = Dotlock::take(&dir, "f", 0o640, Holds::Pid, PATIENCE);
            assert_eq!(second.unwrap_err().kind(), io::ErrorKind::TimedOut);
            lock.check().unwrap();
            drop(lock);
            assert!(!path.exists() && other.exists());
        }
        drop(spare);
        assert!(!other.exists());
    }

    /// Dovecot clears `tmp/` up, and somebody may have the lock.
    #[test]
    fn what_is_in_its_way() {
        let root = tempfile::tempdir().unwrap();
        let (dir, spare) = spare(root.path());
        let others = Dotlock::take(&dir, "f", 0o640, Holds::Pid, PATIENCE).unwrap();
        let waited = take(&spare, &dir);
        assert_eq!(waited.unwrap_err().kind(), io::ErrorKind::TimedOut);
        others.check().unwrap();
        drop(others);
        drop(take(&spare, &dir).unwrap());
        fs::remove_file(root.path().join("tmp/spare")).unwrap();
        drop(take(&spare, &dir).unwrap());
        assert!(!root.path().join("f.lock").exists());
    }

    /// Whatever fails, the lock is had or it is not, and none stays; one that stayed would not be taken for another's.
    #[test]
    fn every_step_fails_once() {
        for failure in fault_point::FAILURES {
            for step in 0.. {
                let root = tempfile::tempdir().unwrap();
                let (dir, spare) = spare(root.path());
                fault_point::arm(step, failure);
                let taken = take(&spare, &dir);
                drop(taken);
                let is_over = fault_point::disarm();
                let case = format!("{failure:?} at step {step}");
                assert!(!root.path().join("f.lock").exists(), "{case}");
                if let Some(claim) = spare.claim() {
                    drop(Dotlock::take_with(claim, &dir, "f", 0o640, PATIENCE).unwrap());
                }
                drop(Dotlock::take(&dir, "f", 0o640, Holds::Pid, PATIENCE).unwrap());
                if is_over {
                    break;
                }
            }
        }
    }
}
