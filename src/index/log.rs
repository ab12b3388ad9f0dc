//! `dovecot.index.log`: locked, understood to its end, appended to (Dovecot's `mail-transaction-log-file.c`).

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::header::{IndexHeader, LogHeader};
use super::record::{State, Transaction, whole_part};
use super::walk::Walks;
use crate::sys::dir::{self, Dir, Stat};
use crate::sys::dotlock::{Dotlock, Holds, Patience};
use crate::sys::fault_point;
use crate::sys::file_lock::{self, Method};
use crate::sys::write_back;

/// Somebody who holds the lock for longer learns of the messages by himself.
pub const TIMEOUT: Duration = Duration::from_millis(500);
/// Dovecot's own for this file.
const STALE: Duration = Duration::from_secs(180);

/// What has grown by more since the index was written is left to Dovecot, bytes: its own limit before it starts a new log.
const MAX_WALK: u64 = 1024 * 1024;
/// And what is read of it nevertheless, to know the next UID.
const MAX_LOOK: u64 = 16 * MAX_WALK;

/// An index and its log: that of a mailbox, or of a namespace's list of mailboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    index: &'static str,
    log: &'static str,
}

impl Pair {
    /// Of a mailbox.
    pub const MAILBOX: Pair = Pair {
        index: "dovecot.index",
        log: "dovecot.index.log",
    };
    /// Of a namespace's list of mailboxes.
    pub const LIST: Pair = Pair {
        index: "dovecot.list.index",
        log: "dovecot.list.index.log",
    };

    /// The names of its files that tell that it is there.
    pub fn files(self) -> impl Iterator<Item = &'static str> {
        [self.index, self.log].into_iter()
    }

    /// The name of its index.
    pub fn index(self) -> &'static str {
        self.index
    }

    /// The name of its log.
    pub fn log(self) -> &'static str {
        self.log
    }
}

/// `lock_method`, as Dovecot has it: who locks otherwise does not lock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LockMethod {
    #[default]
    Fcntl,
    Flock,
    Dotlock,
}

impl LockMethod {
    /// As Dovecot spells them; `fcntl` where nothing is said.
    pub const WORDS: [(&str, LockMethod); 3] = [
        ("fcntl", LockMethod::Fcntl),
        ("flock", LockMethod::Flock),
        ("dotlock", LockMethod::Dotlock),
    ];
}

/// A log that is locked and understood.
#[derive(Debug)]
pub struct Log {
    file: File,
    _lock: Option<Dotlock>,
    size: u64,
    state: State,
}

impl LockMethod {
    /// Locks the log, open as `file`; the guard of a lock that does not end with it.
    fn lock(
        self,
        dir: &Dir,
        pair: Pair,
        file: &File,
        timeout: Duration,
    ) -> io::Result<Option<Dotlock>> {
        let method = match self {
            LockMethod::Fcntl => Method::Fcntl,
            LockMethod::Flock => Method::Flock,
            LockMethod::Dotlock => {
                let patience = Patience {
                    timeout,
                    stale: STALE,
                };
                let mode = dir::stat_file(file)?.mode & 0o666;
                return Dotlock::take(dir, pair.log, mode, Holds::Pid, patience).map(Some);
            }
        };
        file_lock::exclusive(file, method, timeout).map(|()| None)
    }
}

impl Log {
    /// Locks the log in `dir` and walks to its end. None: there is no log. An error says why it is left to Dovecot:
    /// [`ErrorKind::TimedOut`] when somebody holds it for longer than `timeout`.
    pub fn lock(
        dir: &Dir,
        pair: Pair,
        method: LockMethod,
        walks: &Walks,
        timeout: Duration,
    ) -> io::Result<Option<Log>> {
        let until = Instant::now() + timeout;
        // A new one takes its place now and then, while one waits for the lock; hardly twice.
        for _ in 0..3 {
            let left = until.saturating_duration_since(Instant::now());
            let Some((file, lock)) = Log::open(dir, pair, method, left)? else {
                return Ok(None);
            };
            let stat = dir::stat_file(&file)?;
            if !is_in_place(dir, pair, &stat)? {
                continue;
            }
            let state = walks
                .walk(dir, pair, &file, &stat, MAX_WALK)
                .map_err(|error| io::Error::other(error.to_string()))?;
            return Ok(Some(Log {
                file,
                _lock: lock,
                size: stat.size,
                state,
            }));
        }
        Err(io::Error::other("a new one took its place"))
    }

    /// What a log says that cannot be appended to: somebody else has locked it, or it has grown for too long. None: there is none.
    /// [`ErrorKind::InvalidData`]: it is not understood.
    ///
    /// He may be adding to it; UIDs only who has the list of UIDs gives.
    pub fn look(dir: &Dir, pair: Pair, walks: &Walks) -> io::Result<Option<State>> {
        for _ in 0..3 {
            let file = match dir.read(pair.log) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                other => other?,
            };
            let stat = dir::stat_file(&file)?;
            let state = walks.walk(dir, pair, &file, &stat, MAX_LOOK);
            if is_in_place(dir, pair, &stat)? {
                return state.map(Some);
            }
        }
        Err(io::Error::other("a new one took its place"))
    }

    /// What is left of a log that has no whole end, as after a power cut, and of its index. Whoever opens the mailbox makes the log
    /// anew: so nobody has, since then. None: it is whole, or of no known kind.
    pub fn look_at_torn(dir: &Dir, pair: Pair) -> io::Result<Option<State>> {
        let file = dir.read(pair.log)?;
        let header = LogHeader::read(&file)?;
        let mut bytes = Vec::new();
        fault_point::pass()?;
        file.take(MAX_LOOK).read_to_end(&mut bytes)?;
        let begun = match dir.read(pair.index) {
            Err(error) if error.kind() == ErrorKind::NotFound => State::EMPTY,
            index => match IndexHeader::read(&index?)? {
                Some(index) => index.state,
                None => return Ok(None),
            },
        };
        let Some(header) = header else {
            let is_empty = bytes.iter().all(|&byte| byte == 0);
            return Ok(is_empty.then_some(begun));
        };
        let records = bytes.get(header.size as usize..).unwrap_or_default();
        let whole = whole_part(records);
        let mut state = State::EMPTY;
        if whole == records.len() || state.replay(&records[..whole]).is_err() {
            return Ok(None);
        }
        let is_behind = state.mbox.size() < begun.mbox.size();
        Ok(Some(if is_behind { begun } else { state }))
    }

    fn open(
        dir: &Dir,
        pair: Pair,
        method: LockMethod,
        timeout: Duration,
    ) -> io::Result<Option<(File, Option<Dotlock>)>> {
        let file = match dir.open_to_change(pair.log) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let lock = method.lock(dir, pair, &file, timeout)?;
        Ok(Some((file, lock)))
    }

    /// As of its end.
    pub fn state(&self) -> State {
        self.state
    }

    /// One write; a short one is taken back. Not synced: a log that is behind its mailbox does no harm. But written back: the next commit
    /// of a journal makes it so long, what has not arrived by then is zeros after a power cut, and Dovecot opens no mailbox whose log
    /// ends in zeros.
    pub fn append(&mut self, transaction: Transaction) -> io::Result<()> {
        let bytes = transaction.into_bytes();
        let written = fault_point::write(&bytes, |bytes| {
            match self.file.write_at(bytes, self.size)? == bytes.len() {
                true => Ok(()),
                false => Err(ErrorKind::WriteZero.into()),
            }
        });
        match written {
            Ok(()) => {
                self.size += bytes.len() as u64;
                // Where it cannot be, it is as good as any that is not synced.
                let _ = write_back::start(&self.file);
            }
            // Dovecot takes a log with a torn end for broken.
            Err(_) => drop(dir::set_file_size(&self.file, self.size)),
        }
        written
    }

    /// Makes what was appended durable.
    pub fn sync(&self) -> io::Result<()> {
        dir::sync_file(&self.file)
    }
}

/// Whether the log of this name is still the one with this `stat`.
fn is_in_place(dir: &Dir, pair: Pair, stat: &Stat) -> io::Result<bool> {
    match dir.stat_name(pair.log) {
        Ok(there) => Ok(stat.identity() == there.identity()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A log as Dovecot begins it, for tests.
#[cfg(test)]
pub fn log_for_tests(seq: u32, previous: (u32, u32), validity: u32) -> Vec<u8> {
    const ID: u32 = 0x6b02_9a7d;
    let mut bytes = vec![1, 3, 40, 0];
    for field in [ID, seq, previous.0, previous.1, ID, 1, 0, 1, 0] {
        bytes.extend(field.to_le_bytes());
    }
    let mut transaction = Transaction::default();
    transaction.validity(validity);
    [bytes, transaction.into_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    const ID: u32 = 0x6b02_9a7d;

    /// 16 bytes behind its header it says what its UIDVALIDITY is.
    fn log(seq: u32, previous: (u32, u32)) -> Vec<u8> {
        log_for_tests(seq, previous, ID)
    }

    fn index(id: u32, log_seq: u32, log_head: u32) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..4].copy_from_slice(&[7, 3, 120, 0]);
        for (at, field) in [
            (12, 1),
            (16, id),
            (24, ID),
            (28, 5),
            (60, log_seq),
            (68, log_head),
        ] {
            bytes[at..at + 4].copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    fn appended(uid: u32) -> Vec<u8> {
        let mut transaction = Transaction::default();
        transaction.append(&[(uid, 0)]);
        transaction.keyword("a", [uid]);
        transaction.into_bytes()
    }

    fn open(dir: &Path) -> Dir {
        Dir::open(dir).unwrap()
    }

    fn lock(dir: &Path, walks: &Walks) -> Result<Option<State>, String> {
        let log = Log::lock(&open(dir), Pair::MAILBOX, LockMethod::Fcntl, walks, TIMEOUT);
        let log = log.map_err(|error| error.to_string())?;
        Ok(log.map(|log| log.state()))
    }

    /// Every length that a power cut may leave, with zeros behind it or not.
    #[test]
    fn a_torn_log() {
        let whole = [log(2, (0, 0)), appended(1)].concat();
        let root = tempfile::tempdir().unwrap();
        let look = |bytes: &[u8]| {
            fs::write(root.path().join("dovecot.index.log"), bytes).unwrap();
            Log::look_at_torn(&open(root.path()), Pair::MAILBOX).unwrap()
        };
        let (header, first) = (40, log(2, (0, 0)).len());
        for length in [0].into_iter().chain(header..whole.len()) {
            let cut = &whole[..length];
            let is_whole = [header, first].contains(&length);
            assert_eq!(look(cut).is_some(), !is_whole, "{length}");
        }
        for length in [0, header, header + 4, first, first + 8] {
            let cut = &whole[..length];
            assert!(look(&[cut, &[0; 50]].concat()).is_some(), "{length}");
        }
        // The length of all of it, and zeros from anywhere before its last record, which has 24 bytes.
        for from in first..whole.len() - 24 {
            let hole = vec![0; whole.len() - from];
            let bytes = [&whole[..from], &hole].concat();
            assert!(look(&bytes).is_some(), "{from} of {}", whole.len());
        }
        assert_eq!(look(&whole), None);
        // Of another version.
        let mut later = whole[..whole.len() - 1].to_vec();
        later[0] = 2;
        assert_eq!(look(&later), None);
    }

    #[test]
    fn a_log_is_understood_or_left_alone() {
        let fresh = [log(2, (0, 0)), appended(1), appended(2)].concat();
        let next = [log(3, (2, 500)), appended(5)].concat();
        let changed = |at: usize, byte: u8| {
            let mut bytes = fresh.clone();
            bytes[at] = byte;
            bytes
        };
        let none: Option<Vec<u8>> = None;
        let index = |id, seq, head| Some(index(id, seq, head));
        for (case, index, log, expected) in [
            ("no index yet", none.clone(), fresh.clone(), Ok(3)),
            ("the index is gone", none.clone(), next.clone(), Err("gone")),
            ("the index is older", index(ID, 2, 500), next.clone(), Ok(6)),
            (
                "the index has it",
                index(ID, 3, next.len() as u32),
                next.clone(),
                Ok(5),
            ),
            (
                "nothing is applied yet",
                index(ID, 3, 0),
                next.clone(),
                Ok(6),
            ),
            (
                "of another log",
                index(ID, 2, 400),
                next.clone(),
                Err("another"),
            ),
            (
                "of another mailbox",
                index(8, 2, 500),
                next.clone(),
                Err("not its"),
            ),
            (
                "longer than the log",
                index(ID, 3, 4000),
                next.clone(),
                Err("shorter"),
            ),
            (
                "no next UID",
                Some({
                    let mut bytes = self::index(ID, 3, next.len() as u32);
                    bytes[28..32].fill(0);
                    bytes
                }),
                next.clone(),
                Err("kind"),
            ),
            ("a torn index", Some(vec![7; 30]), next.clone(), Err("kind")),
            (
                "another version",
                none.clone(),
                changed(0, 2),
                Err("version"),
            ),
            ("another id", none.clone(), changed(4, 0), Ok(3)),
            ("big endian", none.clone(), changed(32, 0), Err("version")),
            (
                "a cut header",
                none.clone(),
                fresh[..20].to_vec(),
                Err("version"),
            ),
            (
                "cut behind its header",
                none.clone(),
                fresh[..40].to_vec(),
                Ok(1),
            ),
            ("empty", none.clone(), Vec::new(), Err("version")),
            (
                "a torn end",
                none.clone(),
                fresh[..fresh.len() - 3].to_vec(),
                Err("whole"),
            ),
            (
                "zeros at its end",
                none,
                [fresh.clone(), vec![0; 8]].concat(),
                Err("whole"),
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join("dovecot.index.log"), &log).unwrap();
            if let Some(index) = index {
                fs::write(root.path().join("dovecot.index"), index).unwrap();
            }
            let state = lock(root.path(), &Walks::default());
            match (state, expected) {
                (Ok(Some(state)), Ok(next)) => assert_eq!(state.next_uid, next, "{case}"),
                (Err(said), Err(why)) => assert!(said.contains(why), "{case}: {said}"),
                (state, _) => panic!("{case}: {state:?}"),
            }
            let after = fs::read(root.path().join("dovecot.index.log")).unwrap();
            assert_eq!(after, log, "{case}");
        }
    }

    #[test]
    fn what_is_no_log_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("dovecot.index.log");
        let walks = Walks::default();
        assert_eq!(lock(root.path(), &walks), Ok(None));
        fs::create_dir(&path).unwrap();
        assert!(lock(root.path(), &walks).is_err());
        fs::remove_dir(&path).unwrap();
        fs::write(root.path().join("other"), log(2, (0, 0))).unwrap();
        symlink("other", &path).unwrap();
        assert!(lock(root.path(), &walks).is_err());
        fs::remove_file(&path).unwrap();
        // Sparse, 1 GB.
        fs::write(&path, log(2, (0, 0))).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(1 << 30).unwrap();
        assert!(lock(root.path(), &walks).unwrap_err().contains("too long"));
    }

    #[test]
    fn a_lock_that_is_held_is_waited_for_and_left() {
        for method in [LockMethod::Fcntl, LockMethod::Flock, LockMethod::Dotlock] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("dovecot.index.log");
            fs::write(&path, log(2, (0, 0))).unwrap();
            let walks = Walks::default();
            let held =
                Log::lock(&open(root.path()), Pair::MAILBOX, method, &walks, TIMEOUT).unwrap();
            let busy = Log::lock(&open(root.path()), Pair::MAILBOX, method, &walks, TIMEOUT);
            assert!(
                busy.unwrap_err().kind() == ErrorKind::TimedOut,
                "{method:?}"
            );
            drop(held);
            Log::lock(&open(root.path()), Pair::MAILBOX, method, &walks, TIMEOUT).unwrap();
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_walk_goes_on_where_it_ended() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("dovecot.index.log");
        let walks = Walks::default();
        let mut bytes = [log(2, (0, 0)), appended(1)].concat();
        fs::write(&path, &bytes).unwrap();
        let next = |walks: &Walks| lock(root.path(), walks).map(|state| state.unwrap().next_uid);
        assert_eq!(next(&walks), Ok(2));
        bytes.extend(appended(7));
        fs::write(&path, &bytes).unwrap();
        assert_eq!(next(&walks), Ok(8));
        // Truncated and written anew by Dovecot.
        fs::write(
            &path,
            [log(2, (0, 0)), appended(1), appended(2), appended(3)].concat(),
        )
        .unwrap();
        assert_eq!(next(&walks), Ok(4));
        fs::write(&path, [log(2, (0, 0)), appended(1)].concat()).unwrap();
        assert_eq!(next(&walks), Ok(2));
    }

    #[test]
    fn every_step_of_appending_fails_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("dovecot.index.log");
        for failure in fault_point::FAILURES {
            for step in 0.. {
                let before = [log(2, (0, 0)), appended(1)].concat();
                fs::write(&path, &before).unwrap();
                fault_point::arm(step, failure);
                let appended_one = lock_and_append(root.path());
                let fired = !fault_point::disarm();
                let after = fs::read(&path).unwrap();
                match appended_one {
                    Ok(()) => assert_eq!(after, [before, appended(2)].concat()),
                    Err(_) => assert!(after == before || after == [before, appended(2)].concat()),
                }
                if !fired {
                    assert!(
                        failure.is_of_writes() || step > 8,
                        "only {step} steps can fail"
                    );
                    break;
                }
            }
        }
    }

    fn lock_and_append(dir: &Path) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let dir = Dir::open(dir).map_err(text)?;
        let walks = Walks::default();
        let log = Log::lock(&dir, Pair::MAILBOX, LockMethod::Fcntl, &walks, TIMEOUT);
        let log = log.map_err(text)?;
        let mut transaction = Transaction::default();
        transaction.append(&[(2, 0)]);
        transaction.keyword("a", [2]);
        let mut log = log.ok_or("no log")?;
        log.append(transaction).map_err(text)?;
        log.sync().map_err(text)
    }

    /// Understood or not, it stays as it is, and what is appended to one that is understood is understood.
    #[test]
    fn a_log_that_is_corrupt_at_any_byte() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("dovecot.index.log");
        let good = [log(2, (0, 0)), appended(1), appended(2)].concat();
        for at in 0..good.len() {
            for mask in [0x01, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] ^= mask;
                fs::write(&path, &bytes).unwrap();
                let locked = Log::lock(
                    &open(root.path()),
                    Pair::MAILBOX,
                    LockMethod::Fcntl,
                    &Walks::default(),
                    TIMEOUT,
                );
                assert_eq!(fs::read(&path).unwrap(), bytes, "{at} {mask:x}");
                let Ok(Some(mut log)) = locked else {
                    continue;
                };
                let Some(after) = log.state().next_uid.checked_add(1) else {
                    continue;
                };
                let mut transaction = Transaction::default();
                transaction.append(&[(after - 1, 0)]);
                log.append(transaction).unwrap();
                drop(log);
                let next = lock(root.path(), &Walks::default()).unwrap();
                assert_eq!(next.map(|it| it.next_uid), Some(after), "{at} {mask:x}");
            }
        }
    }

    /// A new log takes its place while we wait for the lock of the old one.
    #[test]
    fn a_log_that_is_rotated_is_opened_again() {
        for step in 0..6 {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("dovecot.index.log");
            fs::write(&path, [log(2, (0, 0)), appended(1)].concat()).unwrap();
            let next = [log(3, (0, 0)), appended(5)].concat();
            let meddle = {
                let (next, path) = (next.clone(), path.clone());
                move || {
                    fs::write(path.with_extension("new"), next).unwrap();
                    fs::rename(path.with_extension("new"), path).unwrap();
                }
            };
            let dir = open(root.path());
            fault_point::meddle(step, meddle);
            let log = Log::lock(
                &dir,
                Pair::MAILBOX,
                LockMethod::Fcntl,
                &Walks::default(),
                TIMEOUT,
            );
            let fired = !fault_point::disarm();
            let next_uid = log.unwrap().unwrap().state().next_uid;
            // Behind the comparison of names it holds the old one: so does whoever makes the new.
            assert!(next_uid == 6 || step > 3 || !fired, "{step}: {next_uid}");
        }
    }

    /// However much of it was walked already: whoever opens the mailbox has to read it all.
    #[test]
    fn a_log_that_nobody_reads_does_not_grow_for_ever() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("dovecot.index.log");
        let walks = Walks::default();
        fs::write(&path, log(2, (0, 0))).unwrap();
        let mut uid = 0;
        let why = loop {
            match Log::lock(
                &open(root.path()),
                Pair::MAILBOX,
                LockMethod::Fcntl,
                &walks,
                TIMEOUT,
            ) {
                Err(why) => break why,
                Ok(log) => {
                    let mut transaction = Transaction::default();
                    let many: Vec<_> = (uid + 1..=uid + 1000).map(|uid| (uid, 0)).collect();
                    uid += 1000;
                    transaction.append(&many);
                    log.unwrap().append(transaction).unwrap();
                }
            }
        };
        assert!(why.to_string().contains("too long"), "{why}");
        let size = fs::metadata(&path).unwrap().len();
        assert!(size < 1024 * 1024 + 16 * 1024, "{size}");
        // Dovecot has looked.
        let mut index = index(ID, 2, size as u32);
        index[28..32].copy_from_slice(&(uid + 1).to_le_bytes());
        fs::write(root.path().join("dovecot.index"), index).unwrap();
        let next = lock(root.path(), &walks).unwrap().unwrap().next_uid;
        assert_eq!(next, uid + 1);
    }
}
