//! The headers of an index and of its log (Dovecot's `mail-index.h`, `mail-transaction-log.h`; little endian).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::mbox::Synced;
use super::record::{State, word};
use crate::sys::fault_point;

/// Of the log, bytes; older logs have a shorter one.
const LOG_HEADER: usize = 40;
const MIN_LOG_HEADER: u64 = 24;
/// The base header of an index, and those of its extensions where there are not too many, bytes.
const INDEX_HEADER: usize = 4096;

/// The header of a log, as far as a writer needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogHeader {
    /// Bytes of the header: the first record is behind it.
    pub size: u64,
    /// The index that it belongs to.
    pub id: u32,
    /// The number of this log (`file_seq`): a new one has the next.
    pub seq: u32,
    pub previous_seq: u32,
    /// The size of the log before it, bytes.
    pub previous_end: u64,
}

impl LogHeader {
    /// None: another version, another byte order, or marked as broken.
    pub fn read(file: &File) -> io::Result<Option<LogHeader>> {
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

/// The header of an index, as far as a reader of its log needs it.
pub struct IndexHeader {
    pub id: u32,
    pub state: State,
    /// The log that it goes on in.
    pub log_seq: u32,
    /// How much of that log is in the index, bytes.
    pub log_head: u64,
}

impl IndexHeader {
    /// None: another version, another byte order, or marked as broken.
    pub fn read(file: &File) -> io::Result<Option<IndexHeader>> {
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
                next_uid: word(bytes, 28).filter(|uid| *uid != 0)?,
                mbox: Synced::of_index(bytes),
            },
            log_seq: word(bytes, 60)?,
            log_head: u64::from(word(bytes, 68)?),
        };
        Some(header).filter(|_| is_understood)
    }
}
