//! Records of a transaction log: what those say that are there, and the bytes of our own
//! (Dovecot's `mail-transaction-log.h`; little endian).

use std::time::UNIX_EPOCH;

use super::mbox::{self, Synced};
use crate::sys::dir::Stat;

/// "Already so in the store": all that a delivery agent writes.
const EXTERNAL: u32 = 0x1000_0000;
const TYPE: u32 = 0x0fff_ffff;

const EXPUNGE: u32 = 0xcd91;
const APPEND: u32 = 0x02;
const FLAG_UPDATE: u32 = 0x04;
const HEADER_UPDATE: u32 = 0x20;
const EXT_INTRO: u32 = 0x40;
const EXT_RESET: u32 = 0x80;
const EXT_HDR_UPDATE: u32 = 0x100;
const EXT_REC_UPDATE: u32 = 0x200;
const KEYWORD_UPDATE: u32 = 0x400;
const KEYWORD_RESET: u32 = 0x800;
const EXT_ATOMIC_INC: u32 = 0x1000;
const EXPUNGE_GUID: u32 = 0xed90;
const MODSEQ_UPDATE: u32 = 0x8000;
const EXT_HDR_UPDATE32: u32 = 0x1_0000;
const INDEX_DELETED: u32 = 0x2_0000;
const INDEX_UNDELETED: u32 = 0x4_0000;
const BOUNDARY: u32 = 0x8_0000;
const ATTRIBUTE_UPDATE: u32 = 0x10_0000;

/// Size and type, bytes.
const RECORD_HEADER: usize = 8;
/// A boundary record with its payload, bytes.
const BOUNDARY_SIZE: usize = 12;

/// In the base header of the index: where a HEADER_UPDATE puts these.
const AT_VALIDITY: usize = 24;
const AT_NEXT_UID: usize = 28;

/// What a reader of the log knows at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// 0: not known yet.
    pub validity: u32,
    pub next_uid: u32,
    /// What the index says of the mbox that it belongs to.
    pub mbox: Synced,
}

impl State {
    /// Of an index that has never had a message.
    pub const EMPTY: State = State {
        validity: 0,
        next_uid: 1,
        mbox: Synced::EMPTY,
    };

    /// Goes on by these records. Err: why nothing must be appended behind them.
    pub fn replay(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let size = word(bytes, 0)
                .map(|_| size(bytes))
                .filter(|size| (RECORD_HEADER..=bytes.len()).contains(size))
                .ok_or("a record is not whole")?;
            let kind = word(bytes, 4).unwrap_or_default() & TYPE;
            let (record, rest) = bytes.split_at(size);
            let payload = &record[RECORD_HEADER..];
            match kind {
                APPEND => self.replay_append(payload)?,
                HEADER_UPDATE => self.replay_header(payload)?,
                BOUNDARY => {
                    let all = word(payload, 0).map(|all| all as usize);
                    all.filter(|all| (BOUNDARY_SIZE..=bytes.len()).contains(all))
                        .ok_or("a transaction is not whole")?;
                }
                INDEX_DELETED => return Err("it belongs to a deleted mailbox".into()),
                EXT_INTRO => self.mbox.intro(payload),
                EXT_RESET => self.mbox.reset(),
                EXT_HDR_UPDATE => self.mbox.update(payload, false),
                EXT_HDR_UPDATE32 => self.mbox.update(payload, true),
                EXPUNGE | FLAG_UPDATE | EXT_REC_UPDATE | KEYWORD_UPDATE | KEYWORD_RESET
                | EXT_ATOMIC_INC | EXPUNGE_GUID | MODSEQ_UPDATE | INDEX_UNDELETED
                | ATTRIBUTE_UPDATE => {}
                odd => return Err(format!("a record is of the unknown type {odd:#x}")),
            }
            bytes = rest;
        }
        Ok(())
    }

    fn replay_append(&mut self, payload: &[u8]) -> Result<(), String> {
        let (messages, rest) = payload.as_chunks::<8>();
        if !rest.is_empty() {
            return Err("an append is cut".into());
        }
        for message in messages {
            let uid = word(message, 0).unwrap_or_default();
            let next = uid.checked_add(1).filter(|_| uid >= self.next_uid);
            self.next_uid = next.ok_or_else(|| format!("UID {uid} is not behind the others"))?;
        }
        Ok(())
    }

    fn replay_header(&mut self, mut payload: &[u8]) -> Result<(), String> {
        while !payload.is_empty() {
            let word16 = |at: usize| {
                let bytes = payload.get(at..at + 2)?.try_into().ok()?;
                Some(usize::from(u16::from_le_bytes(bytes)))
            };
            let (start, data) = word16(0)
                .zip(word16(2))
                .and_then(|(start, size)| Some((start, payload.get(4..4 + size)?)))
                .ok_or("a header update is cut")?;
            // The part of the header that changes may hold more than one field.
            let field = |at: usize| word(data, at.checked_sub(start)?);
            self.validity = field(AT_VALIDITY).unwrap_or(self.validity);
            self.next_uid = self.next_uid.max(field(AT_NEXT_UID).unwrap_or_default());
            let padded = (4 + data.len()).next_multiple_of(4);
            payload = payload.get(padded..).unwrap_or_default();
        }
        Ok(())
    }
}

/// A little-endian number at `at`.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// How many of these bytes are whole records, of transactions that are whole.
pub(super) fn whole_part(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let rest = &bytes[at..];
        let size = match word(rest, 4).unwrap_or_default() & TYPE {
            // Zeros: its size was written, and no more.
            0 => 0,
            BOUNDARY => word(rest, RECORD_HEADER)
                .map(|all| all as usize)
                .filter(|&all| has_whole_records(rest, all))
                .unwrap_or_default(),
            _ => size(rest),
        };
        if !(RECORD_HEADER..=rest.len()).contains(&size) {
            return at;
        }
        at += size;
    }
}

/// Whether a transaction of so many bytes has no zeros in place of records: a block may be on its way to the disk while they are
/// written to it.
fn has_whole_records(transaction: &[u8], all: usize) -> bool {
    let Some(mut records) = transaction.get(BOUNDARY_SIZE..all) else {
        return false;
    };
    while !records.is_empty() {
        let kind = word(records, 4).unwrap_or_default() & TYPE;
        match records.get(size(records)..) {
            Some(rest) if size(records) >= RECORD_HEADER && kind != 0 => records = rest,
            _ => return false,
        }
    }
    true
}

/// The size of the record that begins here; 0 while its writer has not finished it. Dovecot's "lockless integer": each byte
/// has bit 7 set.
fn size(bytes: &[u8]) -> usize {
    let groups = bytes.iter().take(4);
    match groups.clone().all(|byte| byte & 0x80 != 0) {
        true => groups.fold(0, |size, byte| size << 7 | usize::from(byte & 0x7f)) << 2,
        false => 0,
    }
}

fn encoded(size: usize) -> [u8; 4] {
    let group = |shift: usize| 0x80 | (size >> 2 >> shift & 0x7f) as u8;
    [group(21), group(14), group(7), group(0)]
}

/// Records that readers see together or not at all.
#[derive(Debug, Default)]
pub struct Transaction {
    bytes: Vec<u8>,
    records: usize,
}

impl Transaction {
    /// New messages: UID, and flags as [`Flags::index_bits`](crate::message::Flags::index_bits). UIDs rise.
    pub fn append(&mut self, messages: &[(u32, u8)]) {
        let messages = messages.iter();
        let payload: Vec<u8> = messages
            .flat_map(|(uid, flags)| [uid.to_le_bytes(), [*flags, 0, 0, 0]].concat())
            .collect();
        self.record(APPEND, &payload);
    }

    /// These messages have the keyword.
    pub fn keyword(&mut self, name: &str, uids: impl IntoIterator<Item = u32>) {
        let mut payload = vec![0, 0];
        payload.extend((name.len() as u16).to_le_bytes());
        payload.extend(name.as_bytes());
        payload.resize(payload.len().next_multiple_of(4), 0);
        for uid in uids {
            payload.extend([uid.to_le_bytes(), uid.to_le_bytes()].concat());
        }
        self.record(KEYWORD_UPDATE, &payload);
    }

    /// The index has all that is in `dovecot-uidlist`, as it is now.
    ///
    /// Nothing is said of `new/` and `cur/`: the next session is to look there.
    pub fn uidlist(&mut self, list: &Stat) {
        /// Size of the whole extension header, and where the list's mtime begins in it.
        const HEADER: u32 = 36;
        const AT_LIST: u16 = 24;
        self.extension("maildir", HEADER, 0, 0);
        let modified = list.modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut payload = [AT_LIST.to_le_bytes(), 12u16.to_le_bytes()].concat();
        payload.extend((modified.as_secs() as u32).to_le_bytes());
        payload.extend(modified.subsec_nanos().to_le_bytes());
        payload.extend((list.size as u32).to_le_bytes());
        self.record(EXT_HDR_UPDATE, &payload);
    }

    /// The index has all that is in the mbox, as it is now.
    pub fn mbox(&mut self, file: &Stat) {
        self.extension(mbox::NAME, mbox::HEADER as u32, mbox::RECORD, mbox::ALIGN);
        let payload = [&[0, 0, 12, 0][..], &mbox::header_of(file)].concat();
        self.record(EXT_HDR_UPDATE, &payload);
    }

    /// The same in an index that Dovecot has made, with the GUID of the mailbox.
    #[cfg(test)]
    pub fn mbox_for_tests(&mut self, file: &Stat) {
        self.mbox(file);
        self.record(
            EXT_HDR_UPDATE,
            &[[16, 0, 16, 0].as_slice(), &[7; 16]].concat(),
        );
    }

    /// Where in the mbox messages begin, by their UIDs, behind the messages themselves: at the line end before each.
    pub fn mbox_offsets(&mut self, offsets: &[(u32, u64)]) {
        self.extension(mbox::NAME, mbox::HEADER as u32, mbox::RECORD, mbox::ALIGN);
        let record =
            |(uid, offset): &(u32, u64)| [&uid.to_le_bytes()[..], &offset.to_le_bytes()].concat();
        let payload: Vec<u8> = offsets.iter().flat_map(record).collect();
        self.record(EXT_REC_UPDATE, &payload);
    }

    /// In the index of a whole namespace: its list of mailboxes is not up to date.
    pub fn refresh_list(&mut self) {
        self.extension("list", 1, 28, 4);
        self.record(EXT_HDR_UPDATE, &[0, 0, 1, 0, 1, 0, 0, 0]);
    }

    /// UIDVALIDITY, where the log does not know it yet: before its first message.
    pub fn validity(&mut self, validity: u32) {
        let payload = [AT_VALIDITY as u16, 4].map(u16::to_le_bytes).concat();
        let payload = [payload, validity.to_le_bytes().to_vec()].concat();
        self.record(HEADER_UPDATE, &payload);
    }

    /// The next records are about this extension. Never makes smaller what is there (NO_SHRINK).
    fn extension(&mut self, name: &str, header: u32, record: u16, align: u16) {
        const BY_NAME: u32 = u32::MAX;
        const NO_SHRINK: u16 = 1;
        let mut payload = [BY_NAME, 0, header].map(u32::to_le_bytes).concat();
        for field in [record, align, NO_SHRINK, name.len() as u16] {
            payload.extend(field.to_le_bytes());
        }
        payload.extend(name.as_bytes());
        self.record(EXT_INTRO, &payload);
    }

    fn record(&mut self, kind: u32, payload: &[u8]) {
        let size = (RECORD_HEADER + payload.len()).next_multiple_of(4);
        let end = self.bytes.len() + size;
        self.bytes.extend(encoded(size));
        self.bytes.extend((kind | EXTERNAL).to_le_bytes());
        self.bytes.extend(payload);
        self.bytes.resize(end, 0);
        self.records += 1;
    }

    /// What is to be written, by one write.
    pub fn into_bytes(self) -> Vec<u8> {
        if self.records < 2 {
            return self.bytes;
        }
        let size = (BOUNDARY_SIZE + self.bytes.len()) as u32;
        let mut whole = Transaction::default();
        whole.record(BOUNDARY, &size.to_le_bytes());
        whole.bytes.extend(self.bytes);
        whole.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: String = text.split_whitespace().collect();
        (0..digits.len() / 2)
            .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap())
            .collect()
    }

    fn stat(modified: SystemTime, size: u64) -> Stat {
        let root = tempfile::tempdir().unwrap();
        let stat = crate::sys::dir::stat(root.path()).unwrap();
        Stat {
            modified,
            size,
            ..stat
        }
    }

    /// As both Dovecots took it.
    #[test]
    fn a_delivery_byte_by_byte() {
        let mut transaction = Transaction::default();
        transaction.append(&[(7, 0)]);
        let modified = UNIX_EPOCH + Duration::new(0x6b02_9d40, 0x1876_e817);
        transaction.uidlist(&stat(modified, 0x104));
        let expected = "80808083 00000810 58000000
            80808084 02000010 07000000 00000000
            80808089 40000010 ffffffff 00000000 24000000 00000000 01000700 6d61696c64697200
            80808086 00010010 18000c00 409d026b 17e87618 04010000";
        assert_eq!(transaction.into_bytes(), hex(expected));
        let mut keyword = Transaction::default();
        keyword.keyword("$Label1", [7]);
        let expected = "80808087 00040010 00000700 244c6162656c3100 07000000 07000000";
        assert_eq!(keyword.into_bytes(), hex(expected));
        let mut refresh = Transaction::default();
        refresh.refresh_list();
        let expected = "80808083 00000810 3c000000
            80808088 40000010 ffffffff 00000000 01000000 1c000400 01000400 6c697374
            80808084 00010010 00000100 01000000";
        assert_eq!(refresh.into_bytes(), hex(expected));
    }

    #[test]
    fn what_a_log_says() {
        let validity = "80808084 20000010 18000400 7d9a026b";
        let both = "80808085 20000000 18000800 7d9a026b 09000000";
        let append = "80808086 02000010 05000000 00000000 07000000 08000000";
        let deleted = "80808083 00000210 00000000";
        for (bytes, expected) in [
            ("", Ok((0, 1))),
            (validity, Ok((0x6b02_9a7d, 1))),
            (both, Ok((0x6b02_9a7d, 9))),
            (append, Ok((0, 8))),
            (&format!("{append}{both}"), Ok((0x6b02_9a7d, 9))),
            // In front of other fields: {76,4} behind {24,4}.
            (
                "80808086 20000010 18000400 7d9a026b 4c000400 ffffffff",
                Ok((0x6b02_9a7d, 1)),
            ),
            (&format!("80808083 00000810 24000000 {append}"), Ok((0, 8))),
            (
                &format!("80808083 00000810 28000000 {append}"),
                Err("whole"),
            ),
            ("80808083 00000810 08000000", Err("whole")),
            (&format!("{append}{append}"), Err("behind")),
            (deleted, Err("deleted")),
            ("00000000 00000000", Err("whole")),
            ("80808003 02000010 01000000", Err("whole")),
            ("808080", Err("whole")),
            ("80808081 02000010", Err("whole")),
            ("80808084 02000010 01000000", Err("whole")),
            ("80808083 02000010 01000000", Err("cut")),
            ("80808084 02000010 ffffffff 00000000", Err("behind")),
            ("80808083 20000010 18000400", Err("cut")),
            ("80808082 00002010", Err("unknown")),
        ] {
            let mut state = State::EMPTY;
            let replayed = state.replay(&hex(bytes));
            match expected {
                Ok(known) => {
                    assert_eq!(replayed, Ok(()), "{bytes}");
                    assert_eq!((state.validity, state.next_uid), known, "{bytes}");
                }
                Err(why) => {
                    let said = replayed.unwrap_err();
                    assert!(said.contains(why), "{bytes}: {said}");
                }
            }
        }
    }

    #[test]
    fn sizes_come_back() {
        for n in (8..1 << 20).step_by(4).chain([(1 << 30) - 4]) {
            assert_eq!(size(&encoded(n)), n);
        }
    }

    proptest! {
        #[test]
        fn no_log_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut state = State::EMPTY;
            let _ = state.replay(&bytes);
            let whole = whole_part(&bytes);
            assert!(whole_part(&bytes[..whole]) == whole);
        }

        /// A log that is cut anywhere is taken for what it was before the cut transaction, or not at all.
        #[test]
        fn a_cut_transaction_never_counts(uids in proptest::collection::vec(1u32..1000, 1..5), cut in 0usize..200) {
            let mut next = 0;
            let messages: Vec<(u32, u8)> = uids.iter().map(|step| { next += step; (next, 0) }).collect();
            let mut transaction = Transaction::default();
            transaction.append(&messages);
            transaction.keyword("a", [1]);
            let bytes = transaction.into_bytes();
            let mut state = State::EMPTY;
            prop_assert_eq!(state.replay(&bytes), Ok(()));
            prop_assert_eq!(state.next_uid, next + 1);
            let cut = cut % bytes.len();
            if cut > 0 {
                let mut state = State::EMPTY;
                prop_assert!(state.replay(&bytes[..cut]).is_err());
            }
        }
    }
}
