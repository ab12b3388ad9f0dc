//! What an index knows of its mbox: Dovecot's extension `mbox` (`mbox-sync.c`).
//!
//! Other programs add to the file too, and Dovecot keeps UIDs in the index alone for a while: the next UID is known only where
//! the file is as the index says.

use std::time::UNIX_EPOCH;

use super::record::word;
use crate::sys::dir::Stat;

/// The extension's name.
pub const NAME: &str = "mbox";
/// Bytes: size, mtime, a flag, the mailbox's GUID.
pub const HEADER: usize = 32;
/// Bytes of each message: where it begins.
pub const RECORD: u16 = 8;
/// In which its records lie, bytes.
pub const ALIGN: u16 = 8;
/// Where the GUID is.
const AT_GUID: usize = 16;

/// The extension's header, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Synced {
    header: [u8; HEADER],
    /// The records that come now are about it.
    is_meant: bool,
}

impl Synced {
    /// Of an index that has never had a message.
    pub const EMPTY: Synced = Synced {
        header: [0; HEADER],
        is_meant: false,
    };

    /// Of an index file that begins with `bytes`.
    pub fn of_index(bytes: &[u8]) -> Synced {
        let find = || {
            let sizes = word(bytes, 0)? >> 16;
            let (mut at, end) = (sizes as usize, word(bytes, 4)? as usize);
            while at + 16 <= end.min(bytes.len()) {
                at = at.next_multiple_of(8);
                let header = word(bytes, at)? as usize;
                let name = (word(bytes, at + 12)? >> 16) as usize;
                let data = (at + 16).checked_add(name)?.next_multiple_of(8);
                if bytes.get(at + 16..at + 16 + name)? == NAME.as_bytes() {
                    return bytes.get(data..data.checked_add(HEADER)?)?.try_into().ok();
                }
                at = data.checked_add(header)?;
            }
            None
        };
        Synced {
            header: find().unwrap_or_default(),
            is_meant: false,
        }
    }

    /// A record that says what the next ones are about: by name, or by a number that we do not follow: then it is the only one
    /// of these sizes. Whatever is mistaken for it is no file's size and time.
    pub fn intro(&mut self, payload: &[u8]) {
        let field = |at: usize| word(payload, at).unwrap_or_default();
        let name = payload.get(20..20 + (field(16) >> 16) as usize);
        let sizes = (field(8) as usize, field(12));
        let are_its = sizes == (HEADER, u32::from(RECORD) | u32::from(ALIGN) << 16);
        self.is_meant = match name {
            Some(name) if !name.is_empty() => name == NAME.as_bytes(),
            _ => are_its,
        };
    }

    /// A part of its header changes; `wide`: offsets and sizes have 32 bits.
    pub fn update(&mut self, mut payload: &[u8], wide: bool) {
        while self.is_meant && payload.len() >= 4 {
            let field = |at: usize| word(payload, at).unwrap_or_default() as usize;
            let (offset, size, head) = match wide {
                true => (field(0), field(4), 8usize),
                false => (field(0) & 0xffff, field(0) >> 16, 4),
            };
            let Some(data) = payload.get(head..head.saturating_add(size)) else {
                return;
            };
            for (at, byte) in (offset..).zip(data) {
                if let Some(known) = self.header.get_mut(at) {
                    *known = *byte;
                }
            }
            payload = payload
                .get((head + size).next_multiple_of(4)..)
                .unwrap_or_default();
        }
    }

    pub fn reset(&mut self) {
        if self.is_meant {
            self.header = [0; HEADER];
        }
    }

    /// Of the file, when it was looked at last.
    pub fn size(&self) -> u64 {
        let size = self.header.first_chunk().copied().unwrap_or_default();
        u64::from_le_bytes(size)
    }

    /// Whether every message of the file is in the index.
    pub fn is_up_to_date(&self, file: &Stat) -> bool {
        let has_guid = self.header[AT_GUID..] != [0; HEADER - AT_GUID];
        has_guid && self.header[..12] == header_of(file)
    }
}

/// Size and time of the file as they stand in the header.
pub fn header_of(file: &Stat) -> [u8; 12] {
    let modified = file.modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut header = [0; 12];
    header[..8].copy_from_slice(&file.size.to_le_bytes());
    header[8..].copy_from_slice(&(modified.as_secs() as u32).to_le_bytes());
    header
}
