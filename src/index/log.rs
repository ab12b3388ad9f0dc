//! `dovecot.index.log`: locked, understood to its end, appended to (Dovecot's `mail-transaction-log-file.c`).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::record::{State, Transaction, word};
use crate::sys::dir::{self, Dir};
use crate::sys::dotlock::{Dotlock, Holds, Patience};
use crate::sys::fault_point;
use crate::sys::file_lock::{self, Method};

/// Somebody who holds the lock for longer learns of the messages by himself.
const PATIENCE: Duration = Duration::from_millis(500);
/// Dovecot's own for this file.
const STALE: Duration = Duration::from_secs(180);
/// What has grown by more since the index was written is left to Dovecot, bytes: its own limit before it starts a new log.
const MAX_WALK: u64 = 1024 * 1024;
/// Of the log, bytes; older logs have a shorter one.
const LOG_HEADER: usize = 40;
const MIN_LOG_HEADER: u64 = 24;
/// The fields of an index's base header that are needed, bytes.
const INDEX_HEADER: usize = 72;
/// Remembered to tell that a log is still the one that was walked, bytes.
const FINGERPRINT: usize = 16;
/// Logs whose end is remembered.
const MAX_KNOWN: usize = 1024;

/// An index and its log: that of a mailbox, or of a namespace's list of mailboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    index: &'static str,
    log: &'static str,
}

impl Pair {
    pub const MAILBOX: Pair = Pair {
        index: "dovecot.index",
        log: "dovecot.index.log",
    };
    pub const LIST: Pair = Pair {
        index: "dovecot.list.index",
        log: "dovecot.list.index.log",
    };

    /// The names of its files that tell that it is there.
    pub fn files(self) -> impl Iterator<Item = &'static str> {
        [self.index, self.log].into_iter()
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

/// Where logs ended that were walked before.
#[derive(Debug, Default)]
pub struct Walks(Mutex<HashMap<(u64, u64), Walk>>);

#[derive(Debug, Clone, Copy)]
struct Walk {
    header: LogHeader,
    end: u64,
    /// The bytes before `end`; none while nothing has been read.
    fingerprint: Option<[u8; FINGERPRINT]>,
    state: State,
}

impl Walks {
    fn lock(&self) -> MutexGuard<'_, HashMap<(u64, u64), Walk>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A log that is locked and understood.
#[derive(Debug)]
pub struct Log {
    file: File,
    _lock: Option<Dotlock>,
    size: u64,
    state: State,
}

impl Log {
    /// Locks the log in `dir` and walks to its end. None: there is no log. Err: why it is left to Dovecot.
    pub fn lock(
        dir: &Path,
        pair: Pair,
        method: LockMethod,
        walks: &Walks,
    ) -> Result<Option<Log>, String> {
        let text = |error: io::Error| error.to_string();
        let dir = match Dir::open(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(text)?,
        };
        let file = match dir.open_to_change(pair.log) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(text)?,
        };
        let lock = match method {
            LockMethod::Fcntl => {
                file_lock::exclusive(&file, Method::Fcntl, PATIENCE).map(|()| None)
            }
            LockMethod::Flock => {
                file_lock::exclusive(&file, Method::Flock, PATIENCE).map(|()| None)
            }
            LockMethod::Dotlock => {
                let patience = Patience {
                    timeout: PATIENCE,
                    stale: STALE,
                };
                let mode = dir::stat_file(&file).map_err(text)?.mode & 0o666;
                Dotlock::take(&dir, pair.log, mode, Holds::Pid, patience).map(Some)
            }
        }
        .map_err(text)?;
        let stat = dir::stat_file(&file).map_err(text)?;
        let there = dir.stat_name(pair.log).map_err(text)?;
        if (stat.dev, stat.ino) != (there.dev, there.ino) {
            return Err("a new one took its place".into());
        }
        let header = LogHeader::read(&file).map_err(text)?;
        let header = header.ok_or("its header is not that of version 1")?;
        let key = (stat.dev, stat.ino);
        let known = walks.lock().get(&key).copied();
        let known = known.filter(|walk| walk.header == header);
        let walk = match known.and_then(|walk| walk.go_on(&file, stat.size).ok()) {
            Some(walk) => walk,
            None => begin(&dir, pair, &header)?.go_on(&file, stat.size)?,
        };
        let mut walks = walks.lock();
        if walks.len() >= MAX_KNOWN {
            walks.clear();
        }
        walks.insert(key, walk);
        Ok(Some(Log {
            file,
            _lock: lock,
            size: stat.size,
            state: walk.state,
        }))
    }

    /// As of its end.
    pub fn state(&self) -> State {
        self.state
    }

    /// One write; a short one is taken back. Not synced: a log that is behind its mailbox does no harm.
    pub fn append(self, transaction: Transaction, sync: bool) -> io::Result<()> {
        let bytes = transaction.into_bytes();
        let written = fault_point::pass().and_then(|()| self.file.write_at(&bytes, self.size));
        match written {
            Ok(length) if length == bytes.len() => {}
            cut => {
                // Dovecot takes a log with a torn end for broken.
                let _ = self.file.set_len(self.size);
                return Err(cut.err().unwrap_or(ErrorKind::WriteZero.into()));
            }
        }
        match sync {
            true => dir::sync_file(&self.file),
            false => Ok(()),
        }
    }
}

/// Where the index ends and the log goes on.
fn begin(dir: &Dir, pair: Pair, log: &LogHeader) -> Result<Walk, String> {
    let text = |error: io::Error| format!("{}: {error}", pair.index);
    let (start, state) = match dir.read(pair.index) {
        Err(error) if error.kind() == ErrorKind::NotFound && log.previous_seq == 0 => {
            (log.size, State::EMPTY)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err("it goes on from an index that is gone".into());
        }
        other => {
            let index = IndexHeader::read(&other.map_err(text)?).map_err(text)?;
            let index = index.ok_or_else(|| format!("{} is of no known kind", pair.index))?;
            if index.id != log.id {
                return Err(format!("{} is not its index", pair.index));
            }
            let start = if index.log_seq == log.seq {
                index.log_head.max(log.size)
            } else if (index.log_seq, index.log_head) == (log.previous_seq, log.previous_end) {
                log.size
            } else {
                return Err(format!("{} is of another log", pair.index));
            };
            (start, index.state)
        }
    };
    Ok(Walk {
        header: *log,
        end: start,
        fingerprint: None,
        state,
    })
}

impl Walk {
    /// To the end of the log, which is `size` bytes long.
    fn go_on(self, file: &File, size: u64) -> Result<Walk, String> {
        let text = |error: io::Error| error.to_string();
        if self.end > size {
            return Err("it is shorter than the index says".into());
        }
        if size - self.end > MAX_WALK {
            return Err("Dovecot has not looked for too long".into());
        }
        // Its last bytes again, to see that it is the same log.
        let before = self.fingerprint.map_or(0, |known| known.len());
        let mut bytes = vec![0; before + (size - self.end) as usize];
        fault_point::pass().map_err(text)?;
        file.read_exact_at(&mut bytes, self.end - before as u64)
            .map_err(text)?;
        let (last, new) = bytes.split_at(before);
        if self.fingerprint.is_some_and(|known| known != last) {
            return Err("it has changed behind our back".into());
        }
        let mut walk = self;
        walk.state.replay(new)?;
        walk.end = size;
        walk.fingerprint = bytes.last_chunk().copied().or(walk.fingerprint);
        Ok(walk)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LogHeader {
    size: u64,
    /// The index that it belongs to.
    id: u32,
    seq: u32,
    previous_seq: u32,
    /// The size of the log before it, bytes.
    previous_end: u64,
}

impl LogHeader {
    fn read(file: &File) -> io::Result<Option<LogHeader>> {
        fault_point::pass()?;
        let mut bytes = [0; LOG_HEADER];
        let length = file.read_at(&mut bytes, 0)?;
        Ok(LogHeader::parse(&bytes[..length]))
    }

    /// None: another version, another byte order, or marked as broken.
    fn parse(bytes: &[u8]) -> Option<LogHeader> {
        let size = u64::from(word(bytes, 0)? >> 16);
        // Older logs have no byte order: they were read in this one, or not at all.
        let is_little = bytes.get(32).is_none_or(|byte| byte & 1 != 0) || size <= 32;
        let header = LogHeader {
            size,
            id: word(bytes, 4).filter(|id| *id != 0)?,
            seq: word(bytes, 8)?,
            previous_seq: word(bytes, 12)?,
            previous_end: u64::from(word(bytes, 16)?),
        };
        let is_whole = bytes.len() as u64 >= size.min(LOG_HEADER as u64);
        let is_understood = bytes[0] == 1 && size >= MIN_LOG_HEADER && size.is_multiple_of(4);
        Some(header).filter(|_| is_understood && is_little && is_whole)
    }
}

struct IndexHeader {
    id: u32,
    state: State,
    log_seq: u32,
    log_head: u64,
}

impl IndexHeader {
    fn read(file: &File) -> io::Result<Option<IndexHeader>> {
        fault_point::pass()?;
        let mut bytes = [0; INDEX_HEADER];
        let length = file.read_at(&mut bytes, 0)?;
        Ok(IndexHeader::parse(&bytes[..length]))
    }

    fn parse(bytes: &[u8]) -> Option<IndexHeader> {
        const CORRUPTED: u32 = 1;
        let is_understood = bytes.first() == Some(&7)
            && bytes.get(12)? & 1 != 0
            && word(bytes, 20)? & CORRUPTED == 0;
        let header = IndexHeader {
            id: word(bytes, 16)?,
            state: State {
                validity: word(bytes, 24)?,
                next_uid: word(bytes, 28)?.max(1),
            },
            log_seq: word(bytes, 60)?,
            log_head: u64::from(word(bytes, 68)?),
        };
        Some(header).filter(|_| is_understood)
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

    fn lock(dir: &Path, walks: &Walks) -> Result<Option<State>, String> {
        let log = Log::lock(dir, Pair::MAILBOX, LockMethod::Fcntl, walks)?;
        Ok(log.map(|log| log.state()))
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
        assert_eq!(lock(&root.path().join("none"), &walks), Ok(None));
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
            let held = Log::lock(root.path(), Pair::MAILBOX, method, &walks).unwrap();
            let busy = Log::lock(root.path(), Pair::MAILBOX, method, &walks);
            assert!(busy.unwrap_err().contains("another process"), "{method:?}");
            drop(held);
            Log::lock(root.path(), Pair::MAILBOX, method, &walks).unwrap();
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
        for errno in fault_point::ERRNOS {
            for step in 0.. {
                let before = [log(2, (0, 0)), appended(1)].concat();
                fs::write(&path, &before).unwrap();
                fault_point::arm(step, errno);
                let appended_one = lock_and_append(root.path());
                let fired = !fault_point::disarm();
                let after = fs::read(&path).unwrap();
                match appended_one {
                    Ok(()) => assert_eq!(after, [before, appended(2)].concat()),
                    Err(_) => {
                        assert!(after == before || after.len() == before.len() + appended(2).len())
                    }
                }
                if !fired {
                    assert!(step > 8, "only {step} steps can fail");
                    break;
                }
            }
        }
    }

    fn lock_and_append(dir: &Path) -> Result<(), String> {
        let log = Log::lock(dir, Pair::MAILBOX, LockMethod::Fcntl, &Walks::default())?;
        let mut transaction = Transaction::default();
        transaction.append(&[(2, 0)]);
        transaction.keyword("a", [2]);
        let log = log.ok_or("no log")?;
        log.append(transaction, true)
            .map_err(|error| error.to_string())
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
                    root.path(),
                    Pair::MAILBOX,
                    LockMethod::Fcntl,
                    &Walks::default(),
                );
                assert_eq!(fs::read(&path).unwrap(), bytes, "{at} {mask:x}");
                let Ok(Some(log)) = locked else {
                    continue;
                };
                let Some(after) = log.state().next_uid.checked_add(1) else {
                    continue;
                };
                let mut transaction = Transaction::default();
                transaction.append(&[(after - 1, 0)]);
                log.append(transaction, false).unwrap();
                let next = lock(root.path(), &Walks::default()).unwrap();
                assert_eq!(next.map(|it| it.next_uid), Some(after), "{at} {mask:x}");
            }
        }
    }
}
