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
        let now = version(self.dir, lock).filter(|now| age(now) >= YOUNG)?;
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

fn age(version: &Version) -> Duration {
    let age = SystemTime::now().duration_since(version.3);
    age.unwrap_or_default()
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
mod tests {
    use std::fs;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::sys::clock::tests::WAS_SET_AHEAD;
    use crate::sys::fault_point;

    const NONE: Patience = Patience {
        timeout: Duration::ZERO,
        stale: Duration::from_secs(120),
    };
    const LONG: Patience = Patience {
        timeout: Duration::from_secs(20),
        stale: Duration::from_secs(120),
    };
    const SHORT: Patience = Patience {
        timeout: Duration::from_millis(300),
        stale: Duration::from_secs(120),
    };

    fn old(path: &std::path::Path, seconds: u64) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
            .unwrap();
    }

    /// Whatever fails, a lock is had or it is not, and none of ours stays.
    #[test]
    fn every_step_fails_once() {
        for (holds, there) in [
            (Holds::Pid, None),
            (Holds::Content, None),
            (Holds::Pid, Some("999999999")),
            (Holds::Content, Some("999999999")),
        ] {
            for failure in fault_point::FAILURES.into_iter().chain(fault_point::ENDS) {
                for step in 0.. {
                    let root = tempfile::tempdir().unwrap();
                    let dir = Dir::open(root.path()).unwrap();
                    let path = root.path().join("f.lock");
                    if let Some(pid) = there {
                        fs::write(&path, format!("{pid}:{}", hostname())).unwrap();
                        old(&path, 10);
                    }
                    fault_point::arm(step, failure);
                    let taken = Dotlock::take(&dir, "f", 0o600, holds, NONE);
                    let case = format!("{holds:?}, {there:?}, {failure:?} at {step}: {taken:?}");
                    assert!(taken.is_err() || is_of_us(&path, holds), "{case}");
                    let is_taken = taken.is_ok();
                    drop(taken);
                    let fired = !fault_point::disarm();
                    let left = fs::read_to_string(&path).ok();
                    let is_dead = left.as_ref().is_some_and(|it| it.starts_with("999999999"));
                    let has_ended = fault_point::ENDS.contains(&failure) && fired;
                    assert!(left.is_none() || is_dead || has_ended, "{case}: {left:?}");
                    if left.is_some() && holds == Holds::Pid {
                        old(&path, 10);
                        let again = Dotlock::take(&dir, "f", 0o600, holds, NONE);
                        assert!(again.is_ok(), "{case}: {left:?}, {again:?}");
                    }
                    if !fired {
                        assert!(is_taken, "{case}");
                        assert!(
                            failure.is_of_writes() || step > 4,
                            "only {step} steps can fail"
                        );
                        break;
                    }
                }
            }
        }
    }

    fn is_of_us(lock: &std::path::Path, holds: Holds) -> bool {
        let text = fs::read_to_string(lock).unwrap();
        let own = format!("{}:{}", std::process::id(), hostname());
        text == if holds == Holds::Pid {
            own
        } else {
            String::new()
        }
    }

    #[test]
    fn one_holder_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let path = root.path().join("f.lock");
        let lock = Dotlock::take(&dir, "f", 0o600, Holds::Pid, SHORT).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            format!("{}:{}", std::process::id(), hostname())
        );
        let busy = Dotlock::take(&dir, "f", 0o600, Holds::Pid, SHORT).unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::TimedOut);
        drop(lock);
        assert!(!path.exists());
        Dotlock::take(&dir, "f", 0o600, Holds::Pid, SHORT).unwrap();
    }

    /// A second without a change is long.
    const HASTY: Patience = Patience {
        timeout: Duration::from_millis(300),
        stale: Duration::from_secs(1),
    };

    fn let_it_age() {
        thread::sleep(HASTY.stale + Duration::from_millis(100));
    }

    thread_local! {
        /// How long this machine has been running, as it is told; none: for ever.
        pub static RUNNING: std::cell::Cell<Option<Duration>> = const { std::cell::Cell::new(None) };
    }

    /// After a power cut: a lock whose content never got to the disk, and one whose pid is another's by now.
    #[test]
    fn locks_of_before_the_start() {
        let patient = Patience {
            stale: Duration::MAX,
            ..SHORT
        };
        for (content, age, patience, is_free) in [
            (format!("1:{}", hostname()), 1000, HASTY, true),
            // A clock that has jumped, or that of a file server: not at once.
            (format!("1:{}", hostname()), 1000, patient, false),
            (format!("1:{}", hostname()), 50, HASTY, false),
            ("".into(), 1000, patient, false),
            ("1:elsewhere".into(), 1000, patient, false),
        ] {
            RUNNING.set(Some(Duration::from_secs(100)));
            let root = tempfile::tempdir().unwrap();
            let dir = Dir::open(root.path()).unwrap();
            let path = root.path().join("f.lock");
            fs::write(&path, &content).unwrap();
            old(&path, age);
            let taken = Dotlock::take(&dir, "f", 0o600, Holds::Pid, patience);
            assert_eq!(taken.is_ok(), is_free, "{content:?} {age} {patience:?}");
        }
    }

    #[test]
    fn what_is_stale() {
        let elsewhere = || "999999999:elsewhere".to_owned();
        for (content, age, patience, is_free) in [
            (format!("999999999:{}", hostname()), 10, SHORT, true),
            (format!("999999999:{}", hostname()), 0, SHORT, false),
            (format!("1:{}", hostname()), 1000, HASTY, false),
            (
                format!("{}:{}", std::process::id(), hostname()),
                10,
                SHORT,
                true,
            ),
            (elsewhere(), 10, SHORT, false),
            (elsewhere(), 1000, HASTY, true),
            (String::new(), 1000, HASTY, true),
            ("new content".into(), 60, SHORT, false),
        ] {
            let root = tempfile::tempdir().unwrap();
            let dir = Dir::open(root.path()).unwrap();
            let path = root.path().join("f.lock");
            fs::write(&path, &content).unwrap();
            old(&path, age);
            if patience == HASTY {
                let_it_age();
            }
            let taken = Dotlock::take(&dir, "f", 0o600, Holds::Pid, patience);
            assert_eq!(taken.is_ok(), is_free, "{content:?} {age}");
        }
    }

    /// A lock of a living process of another machine, or one that names nobody.
    #[test]
    fn a_clock_that_was_set_ahead() {
        for (content, is_free) in [
            ("1:elsewhere".to_owned(), false),
            (String::new(), false),
            (format!("999999999:{}", hostname()), true),
        ] {
            for was_set_ahead in [true, false] {
                WAS_SET_AHEAD.set(Some(was_set_ahead));
                let root = tempfile::tempdir().unwrap();
                let dir = Dir::open(root.path()).unwrap();
                let path = root.path().join("f.lock");
                fs::write(&path, &content).unwrap();
                old(&path, 1000);
                let taken = Dotlock::take(&dir, "f", 0o600, Holds::Pid, SHORT);
                let case = format!("{content:?} {was_set_ahead}");
                assert_eq!(taken.is_ok(), is_free || !was_set_ahead, "{case}");
            }
        }
    }

    /// Made long ago, and linked just now.
    #[test]
    fn a_lock_is_not_older_than_its_name() {
        for (by_name, is_free) in [(false, true), (true, false)] {
            let root = tempfile::tempdir().unwrap();
            let dir = Dir::open(root.path()).unwrap();
            let path = root.path().join("f.lock");
            fs::write(&path, "17").unwrap();
            old(&path, 1000);
            let asking = Asking::new(&dir, "f", 0o600, Holds::Pid).unwrap();
            let mut asking = match by_name {
                true => asking.of_any_program(),
                false => asking,
            };
            let asked = [(); 2].map(|()| asking.ask(SHORT.stale).unwrap().is_some());
            assert_eq!(asked, [false, is_free], "{by_name}");
        }
    }

    /// Its holder may be dead, or be at work: then the file changes.
    #[test]
    fn the_file_tells_too() {
        for is_changed in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let dir = Dir::open(root.path()).unwrap();
            for name in ["f", "f.lock"] {
                fs::write(root.path().join(name), "").unwrap();
                old(&root.path().join(name), 1000);
            }
            let_it_age();
            if is_changed {
                fs::write(root.path().join("f"), "x").unwrap();
            }
            let taken = Dotlock::take(&dir, "f", 0o600, Holds::Content, HASTY);
            assert_eq!(taken.is_ok(), !is_changed);
        }
    }

    /// Root reads anything: what nobody can read here is a lock that is a symlink.
    #[test]
    fn a_lock_that_cannot_be_read_becomes_stale() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let lock = root.path().join("f.lock");
        std::os::unix::fs::symlink("nowhere", &lock).unwrap();
        let touched = std::process::Command::new("touch")
            .args(["-h", "-d", "2020-01-01"])
            .arg(&lock)
            .status();
        assert!(touched.unwrap().success());
        let_it_age();
        Dotlock::take(&dir, "f", 0o600, Holds::Content, HASTY).unwrap();
    }

    #[test]
    fn content_takes_the_place_of_the_file() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        fs::write(root.path().join("f"), "old").unwrap();
        let mut lock = Dotlock::take(&dir, "f", 0o640, Holds::Content, SHORT).unwrap();
        lock.file.write_all(b"new").unwrap();
        assert_eq!(fs::read_to_string(root.path().join("f")).unwrap(), "old");
        lock.replace().unwrap();
        assert_eq!(fs::read_to_string(root.path().join("f")).unwrap(), "new");
        assert_eq!(dir.names().unwrap(), ["f"]);
        let dropped = Dotlock::take(&dir, "f", 0o640, Holds::Content, SHORT).unwrap();
        drop(dropped);
        assert_eq!(dir.names().unwrap(), ["f"]);
    }

    /// Several find it at the same moment: one breaks it, and nobody breaks the lock of the one that came then.
    #[test]
    fn a_stale_lock_with_many_takers() {
        const TAKERS: usize = 3;
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let path = root.path().join("f.lock");
        let holders = AtomicUsize::new(0);
        for round in 0..200 {
            fs::write(&path, format!("999999999:{}", hostname())).unwrap();
            old(&path, 10);
            let start = Barrier::new(TAKERS);
            thread::scope(|scope| {
                for _ in 0..TAKERS {
                    scope.spawn(|| {
                        start.wait();
                        let lock = Dotlock::take(&dir, "f", 0o600, Holds::Pid, LONG).unwrap();
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "round {round}");
                        thread::sleep(Duration::from_micros(100));
                        lock.check().unwrap();
                        holders.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
            assert_eq!(dir.names().unwrap(), Vec::<String>::new());
        }
    }

    /// Another process has broken it meanwhile, and has the lock now: in the same inode, as file systems do.
    #[test]
    fn the_lock_of_whoever_was_faster_stays() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let path = root.path().join("f.lock");
        fs::write(&path, "999999999:elsewhere").unwrap();
        old(&path, 10);
        let judged = version(&dir, "f.lock").unwrap();
        fs::write(&path, "1:elsewhere").unwrap();
        assert!(take_away(&dir, "f.lock", judged).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "1:elsewhere");
        assert_eq!(dir.names().unwrap(), ["f.lock"]);
    }

    /// It is for whoever has the directory's own lock to do.
    #[test]
    fn another_one_is_breaking_it() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let path = root.path().join("f.lock");
        fs::write(&path, format!("999999999:{}", hostname())).unwrap();
        old(&path, 10);
        let other = dir.try_lock().unwrap();
        let busy = Dotlock::take(&dir, "f", 0o600, Holds::Pid, SHORT).unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::TimedOut);
        drop(other);
        Dotlock::take(&dir, "f", 0o600, Holds::Pid, SHORT).unwrap();
    }

    /// However long it was waited for.
    #[test]
    fn a_lock_that_has_just_been_taken_is_young() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let held = Dotlock::take(&dir, "f", 0o600, Holds::Pid, SHORT).unwrap();
        let mut asking = Asking::new(&dir, "f", 0o600, Holds::Pid).unwrap();
        assert!(asking.ask(LONG.stale).unwrap().is_none());
        let waiting = &asking.waiting.as_ref().unwrap().file;
        let long_ago = SystemTime::now() - Duration::from_secs(200);
        waiting.set_modified(long_ago).unwrap();
        drop(held);
        let lock = asking.ask(LONG.stale).unwrap();
        let age = age(&version(&dir, "f.lock").unwrap());
        assert!(lock.is_some() && age < Duration::from_secs(60), "{age:?}");
    }
}
