//! The last lines of a `dovecot-uidlist`: its highest UIDs, and whether it ends as it should.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::{Header, number};
use crate::sys::fault_point;

/// The end of the list.
#[derive(Debug, PartialEq, Eq)]
pub struct Tail {
    /// Of its whole lines.
    uids: Vec<u32>,
    /// There are lines before.
    is_cut: bool,
    /// Where the last line begins, if it has no end: a crash or a full disk cut it.
    pub torn_at: Option<u64>,
}

impl Tail {
    /// The last `length` bytes of a list of `size` bytes, or somewhat less.
    pub fn read(file: &File, size: u64, header: &Header, length: u64) -> Result<Tail, String> {
        let text = |error: io::Error| error.to_string();
        let from = size.saturating_sub(length).max(header.length as u64);
        fault_point::pass().map_err(text)?;
        let mut bytes = vec![0; size.saturating_sub(from) as usize];
        file.read_exact_at(&mut bytes, from).map_err(text)?;
        Tail::parse(&bytes, from, header)
    }

    /// `bytes` begin at `from` in the list, which is behind its header.
    fn parse(bytes: &[u8], from: u64, header: &Header) -> Result<Tail, String> {
        let is_cut = from > header.length as u64;
        // The first line of a cut tail may not be whole.
        let start = match is_cut {
            true => 1 + memchr::memchr(b'\n', bytes).ok_or("its last line is too long")?,
            false => 0,
        };
        let end = memchr::memrchr(b'\n', bytes).map_or(start, |end| (end + 1).max(start));
        let mut uids = Vec::new();
        for line in bytes[start..end].split_inclusive(|&byte| byte == b'\n') {
            let odd = || format!("{:?} is no line of it", String::from_utf8_lossy(line));
            let uid = uid_of(line).ok_or_else(odd)?;
            if uids.last().is_some_and(|last| uid <= *last) {
                return Err("its UIDs are not in order".into());
            }
            uids.push(uid);
        }
        if is_cut && uids.is_empty() {
            return Err("its last line is too long".into());
        }
        Ok(Tail {
            uids,
            is_cut,
            torn_at: (end < bytes.len()).then(|| from + end as u64),
        })
    }

    /// The last UID in it; 0: none.
    pub fn last(&self) -> u32 {
        self.uids.last().copied().unwrap_or(0)
    }

    /// None: there may be more before this tail.
    pub fn since(&self, uid: u32) -> Option<Vec<u32>> {
        let is_whole = !self.is_cut || self.uids.first().is_some_and(|first| *first <= uid);
        let uids = self.uids.iter().copied();
        is_whole.then(|| uids.filter(|it| *it >= uid).collect())
    }
}

/// `17 S12 :name`. A name that no file can have makes the whole list a broken one for Dovecot.
fn uid_of(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let (_, name) = line.split_once(" :")?;
    if name.contains(['/', '\0']) {
        return None;
    }
    number(line.split(' ').next()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_list_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), is_cut in any::<bool>()) {
            let header = Header { length: 3, validity: 1, next: 5 };
            let _ = Header::parse(&bytes);
            if let Ok(tail) = Tail::parse(&bytes, 3 + u64::from(is_cut), &header) {
                prop_assert!(tail.uids.iter().all(|uid| *uid > 0));
                prop_assert!(tail.uids.is_sorted());
                prop_assert_eq!(tail.torn_at.is_some(), bytes.last().is_some_and(|last| *last != b'\n'));
            }
        }
    }
}
