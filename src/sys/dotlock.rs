//! Dovecot's dotlocks: `<file>.lock` beside a file, held by whoever made it (facts of `lib/file-dotlock.c`).
//!
//! Some hold the pid of their holder, others the new content of the file: then taking the lock over the file publishes it.
//! A lock is stale when its holder on this machine is dead, or when it, and the file, have not changed for a time: so too where it
//! is older than this machine's start, and whoever has its pid now may be another.

mod spare;

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::clock;
use super::dir::Dir;
use super::process::hostname;
pub use spare::{Claim, Spare};

/// A lock younger than this is never looked into: its holder may be writing it.
const YOUNG: Duration = Duration::from_secs(2);

/// How long to wait, and when a lock that does not change is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    pub timeout: Duration,
    pub stale: Duration,
}

/// What is in the lock file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// `pid:hostname`
    Pid,
    /// The new content of the protected file: [`Dotlock::replace`].
    Content,
}

/// A lock that is held. Dropped, it is gone.
#[derive(Debug)]
pub struct Dotlock {
    dir: Dir,
    name: String,
    /// The lock file, open for writing.
    pub file: Arc<File>,
    identity: (u64, u64),
    is_held: bool,
    spare: Option<Claim>,
}

/// One state of a file: whoever writes to it changes this.
type Version = (u64, u64, u64, SystemTime);

impl Dotlock {
    /// Takes the lock of `name`, made with `mode`. [`ErrorKind::TimedOut`] when somebody holds it for too long.
    pub fn take(
        dir: &Dir,
        name: &str,
        mode: u32,
        holds: Holds,
        patience: Patience,
    ) -> io::Result<Dotlock> {
        let asking = Asking::new(dir, name, mode, holds)?;
        asking.wait(patience)
    }

    /// The same, of one that holds a pid, with a file that is there already.
    pub fn take_with(
        spare: Claim,
        dir: &Dir,
        name: &str,
        mode: u32,
        patience: Patience,
    ) -> io::Result<Dotlock> {
        let waiting = spare.into_lock(dir, name);
        let mut asking = Asking::with(dir, name, mode, Holds::Pid, Some(waiting));
        // It has the age of its last lock.
        asking.is_repeated = true;
        asking.wait(patience)
    }

    /// A lock that has its content before it has its name: killed in between, we would leave an empty one, which holds
    /// everybody up until it is stale. None where the file system has no files without names.
    fn without_name(dir: &Dir, name: &str, mode: u32) -> io::Result<Option<Dotlock>> {
        let file = match dir.unnamed_file(mode) {
            Err(error) if super::is_unsupported(&error) => return Ok(None),
            other => other?,
        };
        let lock = Dotlock::of(dir.clone(), name, file)?;
        write_pid(&lock.file)?;
        Ok(Some(lock))
    }

    fn give_name(&mut self) -> io::Result<()> {
        self.dir.link(&self.file, &format!("{}.lock", self.name))?;
        self.is_held = true;
        Ok(())
    }

    /// Whatever fails behind its creation, it does not stay: a lock of a living process is nobody's to break.
    fn create(dir: &Dir, name: &str, mode: u32, holds: Holds) -> io::Result<Dotlock> {
        let lock = format!("{name}.lock");
        let file = dir.create_new(&lock, mode)?;
        let mut made =
            Dotlock::of(dir.clone(), name, file).inspect_err(|_| drop(dir.unlink(&lock)))?;
        made.is_held = true;
        if holds == Holds::Pid {
            write_pid(&made.file)?;
        }
        Ok(made)
    }

    /// Known as one of this process before anybody can see it.
    fn of(dir: Dir, name: &str, file: File) -> io::Result<Dotlock> {
        let identity = super::dir::stat_file(&file)?.identity();
        held().push(identity);
        Ok(Dotlock {
            dir,
            name: name.to_owned(),
            file: Arc::new(file),
            identity,
            is_held: false,
            spare: None,
        })
    }

    /// An error when somebody has taken the lock over: asked before anything is written that it protects.
    pub fn check(&self) -> io::Result<()> {
        match self.is_ours()? {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "{}.lock was taken over",
                self.name
            ))),
        }
    }

    /// Puts the lock's content in place of the file, durably.
    pub fn replace(mut self) -> io::Result<()> {
        super::dir::sync_file(&self.file)?;
        self.check()?;
        self.dir
            .replace(&format!("{}.lock", self.name), &self.name)?;
        self.is_held = false;
        self.dir.sync()
    }

    fn is_ours(&self) -> io::Result<bool> {
        match self.dir.stat_name(format!("{}.lock", self.name)) {
            Ok(stat) => Ok(stat.identity() == self.identity),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Somebody who wants a lock, and remembers what he saw of the one that is there.
#[derive(Debug)]
pub struct Asking<'a> {
    dir: &'a Dir,
    name: &'a str,
    mode: u32,
    holds: Holds,
    seen: Option<(Version, Option<Version>)>,
    waiting: Option<Dotlock>,
    is_repeated: bool,
    /// A lock is not older than its name.
    by_name: bool,
}

impl<'a> Asking<'a> {
    /// Nothing is asked yet. `name`: of the lock file, which gets this mode.
    pub fn new(dir: &'a Dir, name: &'a str, mode: u32, holds: Holds) -> io::Result<Asking<'a>> {
        clock::watch();
        let waiting = match holds {
            Holds::Pid => Dotlock::without_name(dir, name, mode)?,
            Holds::Content => None,
        };
        Ok(Asking::with(dir, name, mode, holds, waiting))
    }

    fn with(
        dir: &'a Dir,
        name: &'a str,
        mode: u32,
        holds: Holds,
        waiting: Option<Dotlock>,
    ) -> Asking<'a> {
        Asking {
            dir,
            name,
            mode,
            holds,
            seen: None,
            is_repeated: false,
            by_name: false,
            waiting,
        }
    }

    fn wait(mut self, patience: Patience) -> io::Result<Dotlock> {
        let began = Instant::now();
        let mut pause = Duration::from_millis(5);
        loop {
            if let Some(lock) = self.ask(patience.stale)? {
                return Ok(lock);
            }
            if began.elapsed() >= patience.timeout {
                let why = format!("{}.lock is held by another process", self.name);
                return Err(io::Error::new(ErrorKind::TimedOut, why));
            }
            thread::sleep(pause.min(patience.timeout.saturating_sub(began.elapsed())));
            pause = (pause * 3 / 2).min(Duration::from_millis(30));
        }
    }

    /// Among programs that link a lock which is older than their having it: its age is that of its name.
    pub fn of_any_program(mut self) -> Asking<'a> {
        self.by_name = true;
        self
    }

    /// None: somebody has it. A lock that does not change for `stale` is nobody's.
    pub fn ask(&mut self, stale_after: Duration) -> io::Result<Option<Dotlock>> {
        let lock = format!("{}.lock", self.name);
        loop {
            let made = match &mut self.waiting {
                Some(waiting) => {
                    if self.is_repeated {
                        // By its age others tell whether it is nobody's: that begins now.
                        super::dir::set_file_modified(&waiting.file, SystemTime::now())?;
                    }
                    self.is_repeated = true;
                    waiting.give_name()
                }
                None => Dotlock::create(self.dir, self.name, self.mode, self.holds)
                    .map(|made| self.waiting = Some(made)),
            };
            match made {
                // Somebody with another idea of what is stale may have taken it in between.
                Ok(()) => {
                    let lock = self.waiting.take().ok_or(ErrorKind::NotFound)?;
                    return lock.check().map(|()| Some(lock));
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                // Somebody has removed its other name: a file without one gets none any more.
                Err(error) if error.kind() == ErrorKind::NotFound && self.has_spare() => {
                    self.is_repeated = false;
                    self.waiting = Dotlock::without_name(self.dir, self.name, self.mode)?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let stale = self.stale(&lock, stale_after);
            match stale {
                Some(stale) if take_away(self.dir, &lock, stale)? => {}
                _ => return Ok(None),
            }
        }
    }

    fn has_spare(&self) -> bool {
        let waiting = self.waiting.as_ref();
        waiting.is_some_and(|lock| lock.spare.is_some())
    }

    /// The version of the lock that is nobody's any more; none while it may be somebody's.
    fn stale(&mut self, lock: &str, stale: Duration) -> Option<Version> {
        let now = version(self.dir, lock).filter(|now| !is_young(now))?;
        if let Some((pid, host)) = read_holder(self.dir, lock)
            && host == hostname()
        {
            let is_dead = match pid == std::process::id() as i32 {
                true => !held().contains(&(now.0, now.1)),
                false => is_gone(pid),
            };
            if is_dead || !is_older_than_start(&now) {
                return is_dead.then_some(now);
            }
        }
        let protected = version(self.dir, self.name);
        // Looked at twice before it is overridden: the file may be changing.
        let before = self.seen.replace((now, protected));
        let is_old = age(&now) > stale && protected.is_none_or(|file| age(&file) > stale);
        let is_named_long_ago = || {
            let named = self.dir.stat_name(lock).map(|stat| stat.changed);
            named.is_ok_and(|named| named.elapsed().unwrap_or_default() > stale)
        };
        let is_old = is_old && (!self.by_name || is_named_long_ago());
        // By a clock that was set ahead a living lock looks old: one that stays as it is for so long from then on is.
        let is_old = is_old && !clock::was_set_ahead(stale);
        (before == Some((now, protected)) && is_old).then_some(now)
    }
}

fn write_pid(mut file: &File) -> io::Result<()> {
    // In one call: a lock is looked into.
    let holder = format!("{}:{}", std::process::id(), hostname());
    super::fault_point::write(holder.as_bytes(), |bytes| file.write_all(bytes))
}

/// The locks of this process: one with our pid that is not among them is of a process before us that had it.
fn held() -> MutexGuard<'static, Vec<(u64, u64)>> {
    static HELD: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Dotlock {
    fn drop(&mut self) {
        let mut is_gone = !self.is_held;
        // When in doubt it is ours: left behind it would hold up everybody while this process lives.
        if self.is_held && self.is_ours().unwrap_or(true) {
            let lock = format!("{}.lock", self.name);
            // Once more: what keeps it here for a moment may be a signal, or a file server.
            let removed = self.dir.unlink(&lock).or_else(|_| self.dir.unlink(&lock));
            is_gone = removed.is_ok();
        }
        held().retain(|identity| *identity != self.identity);
        if let Some(spare) = &self.spare
            && is_gone
        {
            spare.give_back();
        }
    }
}

/// By its name: a lock that others may not read becomes stale too.
fn version(dir: &Dir, name: &str) -> Option<Version> {
    let stat = dir.stat_name(name).ok()?;
    Some((stat.dev, stat.ino, stat.size, stat.modified))
}

/// Whether it is of a time before this machine was started, by more than clocks differ.
fn is_older_than_start(version: &Version) -> bool {
    const DIFFERENCE: Duration = Duration::from_secs(10);
    running().is_some_and(|running| age(version) > running.saturating_add(DIFFERENCE))
}

/// How long this machine has been running.
#[cfg(not(test))]
fn running() -> Option<Duration> {
    nix::sys::sysinfo::sysinfo().ok().map(|it| it.uptime())
}

#[cfg(test)]
fn running() -> Option<Duration> {
    tests::RUNNING.get()
}

/// Zero where its time has not come yet.
fn age(version: &Version) -> Duration {
    let age = SystemTime::now().duration_since(version.3);
    age.unwrap_or_default()
}

/// Made just now. One of a time that has not come yet is of a clock that was set back.
fn is_young(version: &Version) -> bool {
    let age = SystemTime::now().duration_since(version.3);
    age.unwrap_or_else(|early| early.duration()) < YOUNG
}

/// Who holds a lock, for a human.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// `process 17 of mx`; empty where the lock does not say it.
    pub who: String,
    /// Of a process of this machine: whether it is gone.
    pub is_gone: Option<bool>,
    /// Since the lock was changed.
    pub age: Duration,
}

/// Whoever holds the lock file `lock`; none where there is none.
pub fn holder(dir: &Dir, lock: &str) -> Option<Holder> {
    let version = version(dir, lock)?;
    let holder = read_holder(dir, lock);
    Some(Holder {
        is_gone: holder
            .as_ref()
            .filter(|(_, host)| *host == hostname())
            .map(|(pid, _)| is_gone(*pid)),
        who: holder.map_or(String::new(), |(pid, host)| {
            format!("process {pid} of {}", host.escape_debug())
        }),
        age: age(&version),
    })
}

/// Pid and host, where the lock says them.
fn read_holder(dir: &Dir, lock: &str) -> Option<(i32, String)> {
    let mut text = String::new();
    let file = dir.read(lock).ok()?;
    super::fault_point::pass().ok()?;
    file.take(511).read_to_string(&mut text).ok()?;
    let (pid, host) = text.trim_end().split_once(':')?;
    Some((pid.parse().ok()?, host.to_owned()))
}

fn is_gone(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
}

/// Takes the stale lock away, unless it is another one by now. True: one can ask for it again.
///
/// One at a time, of all that use this program: else the second would take the lock of whoever came behind the first.
fn take_away(dir: &Dir, lock: &str, stale: Version) -> io::Result<bool> {
    let _alone = match dir.try_lock() {
        Ok(None) => return Ok(false),
        Ok(alone) => alone,
        // A file server that locks no directories: as with Dovecot, which asks nobody.
        Err(_) => None,
    };
    if version(dir, lock) != Some(stale) {
        return Ok(true);
    }
    match dir.unlink(lock) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests;
