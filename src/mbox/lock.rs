//! The locks of an mbox, in the order of `mbox_write_locks`: all of them, or none is held while one waits.
//!
//! Whoever keeps one of two locks while he waits for the other may wait for somebody who does the same the other way round
//! (Debian Policy 11.6). Each is asked for, and when one is not to be had the others are given back first.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys;
use crate::sys::dir::{Dir, Stat};
use crate::sys::dotlock::{Asking, Dotlock, Holds};
use crate::sys::file_lock::{self, Method};

/// Between two tries at a dotlock: at first, and at last.
const PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_millis(25);

/// Programs that lock by the name of a user may look at whose lock it is.
const DOTLOCK_MODE: u32 = 0o644;

/// One kind of lock. `lockf` is `fcntl` on Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Dotlock,
    /// Not where it cannot be made, and there is one of the kernel's.
    DotlockTry,
    Fcntl,
    Flock,
}

impl Kind {
    /// As Dovecot spells them (`mbox_write_locks`). Of two words for one kind the first is shown.
    pub const WORDS: [(&'static str, Kind); 5] = [
        ("dotlock", Kind::Dotlock),
        ("dotlock_try", Kind::DotlockTry),
        ("fcntl", Kind::Fcntl),
        ("flock", Kind::Flock),
        ("lockf", Kind::Fcntl),
    ];

    fn is_kernels(&self) -> bool {
        matches!(self, Kind::Fcntl | Kind::Flock)
    }
}

/// Which locks, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locking {
    /// In their order, without one twice.
    pub kinds: Vec<Kind>,
    /// `mbox_lock_timeout`
    pub timeout: Duration,
    /// `mbox_dotlock_change_timeout`: a dotlock that does not change for so long is nobody's.
    pub stale: Duration,
}

impl Default for Locking {
    /// Debian's.
    fn default() -> Locking {
        Locking {
            kinds: vec![Kind::Fcntl, Kind::Dotlock],
            timeout: Duration::from_secs(300),
            stale: Duration::from_secs(120),
        }
    }
}

impl Locking {
    /// For a file that is reached by a symlink: others make their dotlock beside the link, where it is no use, so one that cannot
    /// be made beside the file is missed by nobody, as long as the kernel locks it.
    pub fn of_linked(mut self) -> Locking {
        if self.kinds.iter().any(Kind::is_kernels) {
            for kind in self.kinds.iter_mut().filter(|kind| **kind == Kind::Dotlock) {
                *kind = Kind::DotlockTry;
            }
        }
        self
    }
}

/// An mbox that is locked. Dropped, it is not.
#[derive(Debug)]
pub struct Locked {
    // Released by its end: after the dotlock.
    dotlock: Option<Dotlock>,
    /// One of the kernel's too.
    pub is_kernels: bool,
    pub file: File,
    /// As it was then.
    pub stat: Stat,
}

impl Locked {
    /// An error when somebody has taken the dotlock over.
    pub fn check(&self) -> io::Result<()> {
        self.dotlock.as_ref().map_or(Ok(()), Dotlock::check)
    }
}

/// What came of asking.
enum Asked {
    Locked(Option<Dotlock>),
    /// By whom.
    Busy(&'static str),
    /// The same of the first lock: nothing else is held, so the kernel can wait for it.
    BusyKernel(Method, &'static str),
}

impl Locking {
    /// Opens and locks `name` in `dir`, which `open` opens, and makes where it is missing. [`ErrorKind::TimedOut`] when somebody
    /// holds one of the locks for too long, and for longer than `patience`.
    pub fn lock(
        &self,
        dir: &Dir,
        name: &str,
        patience: Duration,
        open: impl Fn() -> io::Result<(File, Stat)>,
    ) -> io::Result<Locked> {
        let until = Instant::now() + self.timeout.min(patience);
        let left = || until.saturating_duration_since(Instant::now());
        let busy = |who| {
            let why = format!("{name} is locked by {who}");
            io::Error::new(ErrorKind::TimedOut, why)
        };
        let (mut asking, mut pause) = (None, PAUSE);
        let (mut file, mut opened) = open()?;
        loop {
            let who = match self.ask(dir, name, &file, &mut asking)? {
                Asked::Locked(dotlock) => {
                    if let Some(stat) = in_place(dir, name, opened.identity())? {
                        let locked = Locked {
                            dotlock,
                            is_kernels: self.kinds.iter().any(Kind::is_kernels),
                            file,
                            stat,
                        };
                        return Ok(locked);
                    }
                    // Somebody has written it anew meanwhile.
                    "another writer"
                }
                Asked::BusyKernel(method, who) => {
                    if left().is_zero() || !file_lock::wait(&file, method, left())? {
                        return Err(busy(who));
                    }
                    continue;
                }
                Asked::Busy(who) => who,
            };
            drop(file);
            if left().is_zero() {
                return Err(busy(who));
            }
            thread::sleep(pause.min(left()));
            pause = (pause * 2).min(MAX_PAUSE);
            (file, opened) = open()?;
        }
    }

    fn ask<'a>(
        &self,
        dir: &'a Dir,
        name: &'a str,
        file: &File,
        asking: &mut Option<Asking<'a>>,
    ) -> io::Result<Asked> {
        let mut dotlock = None;
        // Nothing is held while one waits, so the order means nothing to others. But a dotlock that looks like nobody's is taken
        // away only by who has the other locks: a living holder has those too.
        let (kernels, dotlocks): (Vec<_>, Vec<_>) =
            self.kinds.iter().partition(|kind| kind.is_kernels());
        let is_alone = kernels.is_empty();
        for (place, kind) in kernels.into_iter().chain(dotlocks).enumerate() {
            let (method, who) = match kind {
                Kind::Flock => (Method::Flock, "a process with a flock lock"),
                _ => (Method::Fcntl, "a process with a fcntl lock"),
            };
            match kind {
                Kind::Fcntl | Kind::Flock if file_lock::try_lock(file, method)? => {}
                Kind::Fcntl | Kind::Flock if place == 0 => {
                    return Ok(Asked::BusyKernel(method, who));
                }
                Kind::Fcntl | Kind::Flock => return Ok(Asked::Busy(who)),
                Kind::Dotlock | Kind::DotlockTry => match self.ask_for_dotlock(dir, name, asking) {
                    Ok(Some(lock)) => dotlock = Some(lock),
                    Ok(None) => return Ok(Asked::Busy("a process with a dotlock")),
                    Err(error)
                        if kind == Kind::DotlockTry && cannot_be_made(&error) && !is_alone => {}
                    Err(error) => {
                        let why = format!("{name}.lock: {error}");
                        return Err(io::Error::new(error.kind(), why));
                    }
                },
            }
        }
        Ok(Asked::Locked(dotlock))
    }

    fn ask_for_dotlock<'a>(
        &self,
        dir: &'a Dir,
        name: &'a str,
        asking: &mut Option<Asking<'a>>,
    ) -> io::Result<Option<Dotlock>> {
        let asking = match asking {
            Some(asking) => asking,
            none => none.insert(Asking::new(dir, name, DOTLOCK_MODE, Holds::Pid)?.of_any_program()),
        };
        asking.ask(self.stale)
    }
}

fn cannot_be_made(error: &io::Error) -> bool {
    sys::is_read_only(error) || error.kind() == ErrorKind::StorageFull
}

/// The file of this name, as it is now, if it is still this one.
pub fn in_place(dir: &Dir, name: &str, identity: (u64, u64)) -> io::Result<Option<Stat>> {
    match dir.stat_name(name) {
        Ok(stat) => Ok(Some(stat).filter(|stat| stat.identity() == identity)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::sys::fault_point;

    #[test]
    fn each_lock_keeps_the_others_out() {
        use Kind::{Dotlock, DotlockTry, Fcntl, Flock};
        for (ours, theirs, is_free) in [
            (&[Fcntl, Dotlock][..], &[][..], true),
            (&[Fcntl, Dotlock], &[Fcntl], false),
            (&[Fcntl, Dotlock], &[Dotlock], false),
            (&[Fcntl, Dotlock], &[Flock], true),
            (&[Dotlock, Fcntl], &[Dotlock, Fcntl], false),
            (&[DotlockTry, Flock], &[Flock], false),
            (&[DotlockTry], &[Fcntl], true),
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("box");
            fs::write(&path, "").unwrap();
            let dir = Dir::open(root.path()).unwrap();
            let open = || dir.open_to_change_and_stat("box");
            let locking = |kinds: &[Kind]| Locking {
                kinds: kinds.to_vec(),
                timeout: Duration::from_millis(100),
                ..Locking::default()
            };
            let other = locking(theirs)
                .lock(&dir, "box", Duration::MAX, open)
                .unwrap();
            let own = locking(ours).lock(&dir, "box", Duration::MAX, open);
            assert_eq!(own.is_ok(), is_free, "{ours:?} {theirs:?} {own:?}");
            drop((own, other));
            locking(ours)
                .lock(&dir, "box", Duration::MAX, open)
                .unwrap();
            assert_eq!(dir.names().unwrap(), ["box"]);
        }
    }

    /// A lock that need not be there is missing only where there is another one.
    #[test]
    fn nobody_is_without_a_lock() {
        use Kind::{DotlockTry, Fcntl};
        for kinds in [&[DotlockTry][..], &[DotlockTry, Fcntl]] {
            let mut without = 0;
            for step in 0.. {
                let root = tempfile::tempdir().unwrap();
                fs::write(root.path().join("box"), "").unwrap();
                let dir = Dir::open(root.path()).unwrap();
                let locking = Locking {
                    kinds: kinds.to_vec(),
                    ..Locking::default()
                };
                // No space.
                fault_point::arm(step, fault_point::ERRNOS[1]);
                let locked = locking.lock(&dir, "box", Duration::ZERO, || {
                    dir.open_to_change_and_stat("box")
                });
                let fired = !fault_point::disarm();
                if locked.is_ok() && !root.path().join("box.lock").exists() {
                    without += 1;
                }
                if !fired {
                    locked.unwrap();
                    break;
                }
            }
            assert_eq!(without > 0, kinds.contains(&Fcntl), "{kinds:?}");
        }
    }

    /// Nothing is held while one waits: whoever has the second of our locks gets the first.
    #[test]
    fn nobody_waits_with_a_lock() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        fs::write(root.path().join("box"), "").unwrap();
        let open = || dir.open_to_change_and_stat("box");
        let kinds = |kinds: [Kind; 2]| Locking {
            kinds: kinds.to_vec(),
            timeout: Duration::from_secs(20),
            ..Locking::default()
        };
        thread::scope(|scope| {
            for order in [[Kind::Fcntl, Kind::Dotlock], [Kind::Dotlock, Kind::Fcntl]] {
                let (dir, open) = (&dir, &open);
                scope.spawn(move || {
                    for _ in 0..50 {
                        drop(kinds(order).lock(dir, "box", Duration::MAX, open).unwrap());
                    }
                });
            }
        });
    }
}
