//! A log read to its end: from where its index ends, or from where it ended the last time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::header::{IndexHeader, LogHeader};
use super::log::Pair;
use super::record::State;
use crate::sys::dir::{Dir, Stat};
use crate::sys::fault_point;

/// Remembered to tell that a log is still the one that was walked, bytes. Every log's header is longer.
const FINGERPRINT: usize = 16;
/// Logs whose end is remembered.
const MAX_KNOWN: usize = 1024;

/// Where logs ended that were walked before, by device and inode.
#[derive(Debug, Default)]
pub struct Walks(Mutex<HashMap<(u64, u64), Walk>>);

#[derive(Debug, Clone, Copy)]
struct Walk {
    header: LogHeader,
    /// What the index did not have when this walk began.
    start: u64,
    end: u64,
    /// The bytes before `end`; none before anything is read.
    fingerprint: Option<[u8; FINGERPRINT]>,
    state: State,
}

impl Walks {
    /// What the locked log in `dir` says at its end. Err: why it is left to Dovecot; [`ErrorKind::InvalidData`]: it is not understood.
    /// More than `limit` bytes behind the index are too many.
    pub fn walk(
        &self,
        dir: &Dir,
        pair: Pair,
        file: &File,
        stat: &Stat,
        limit: u64,
    ) -> io::Result<State> {
        let header = LogHeader::read(file)?;
        let header = header.ok_or_else(|| unknown("its header is not that of version 1"))?;
        let key = stat.identity();
        let known = self.lock().get(&key).copied();
        let known = known.filter(|walk| walk.header == header);
        let walk = match known.and_then(|walk| walk.go_on(file, stat.size, limit).ok()) {
            Some(walk) => walk,
            None => Walk::begin(dir, pair, &header)?.go_on(file, stat.size, limit)?,
        };
        let mut walks = self.lock();
        if walks.len() >= MAX_KNOWN && !walks.contains_key(&key) {
            let any = walks.keys().next().copied();
            any.map(|any| walks.remove(&any));
        }
        walks.insert(key, walk);
        Ok(walk.state)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(u64, u64), Walk>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown(why: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why.into())
}

impl Walk {
    /// Where the index ends and the log goes on.
    fn begin(dir: &Dir, pair: Pair, log: &LogHeader) -> io::Result<Walk> {
        let of_index = |why: &str| unknown(format!("{} {why}", pair.index()));
        let (start, state) = match dir.read(pair.index()) {
            Err(error) if error.kind() == ErrorKind::NotFound && log.previous_seq == 0 => {
                (log.size, State::EMPTY)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(unknown("it goes on from an index that is gone"));
            }
            other => {
                let index = IndexHeader::read(&other?)?;
                let index = index.ok_or_else(|| of_index("is of no known kind"))?;
                if index.id != log.id {
                    return Err(of_index("is not its index"));
                }
                let start = if index.log_seq == log.seq {
                    index.log_head.max(log.size)
                } else if (index.log_seq, index.log_head) == (log.previous_seq, log.previous_end) {
                    log.size
                } else {
                    return Err(of_index("is of another log"));
                };
                (start, index.state)
            }
        };
        Ok(Walk {
            header: *log,
            start,
            end: start,
            fingerprint: None,
            state,
        })
    }

    /// To the end of the log, which is `size` bytes long.
    fn go_on(self, file: &File, size: u64, limit: u64) -> io::Result<Walk> {
        if self.end > size {
            return Err(unknown("it is shorter than the index says"));
        }
        // However much of it is known here: whoever opens the mailbox has to read it.
        if size - self.start > limit {
            return Err(unknown("Dovecot has not looked for too long"));
        }
        // Its last bytes again, to see that it is the same log.
        let mut bytes = vec![0; FINGERPRINT + (size - self.end) as usize];
        fault_point::pass()?;
        file.read_exact_at(&mut bytes, self.end - FINGERPRINT as u64)?;
        let (last, new) = bytes.split_at(FINGERPRINT);
        if self.fingerprint.is_some_and(|known| known != last) {
            return Err(unknown("it has changed behind our back"));
        }
        let mut walk = self;
        walk.state.replay(new).map_err(unknown)?;
        walk.end = size;
        walk.fingerprint = bytes.last_chunk().copied();
        Ok(walk)
    }
}
