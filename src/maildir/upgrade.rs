//! A `dovecot-uidlist` of version 1, as Courier and the first Dovecots wrote it: `1 UIDVALIDITY NEXT`, then `17 name`. Written
//! anew as version 3 before a line is added, with the same UIDs: Dovecot does that too.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Seek, Write};

use super::guid;
use super::uidlist::{FILE, Lock, NEW_FILE};
use crate::sys::dir::{self, Stat};
use crate::sys::fault_point;

/// No line of a list is longer, bytes.
const MAX_LINE: u64 = 4096;
/// Hundreds of thousands of messages, bytes.
const MAX_SIZE: u64 = 32 * 1024 * 1024;

/// Whether the list begins like one of version 1.
pub fn is_needed(start: &[u8]) -> bool {
    start.starts_with(b"1 ")
}

/// Writes the list anew, with a GUID for the mailbox. Group and mode stay as they are, or the list does.
pub fn upgrade(lock: &Lock, file: &File, stat: &Stat) -> Result<(), String> {
    if stat.size > MAX_SIZE {
        return Err("it is of version 1, and too long".into());
    }
    let guid = guid::new_guid();
    // Looked at first: one that is odd is left alone, again and again.
    let written = copy(file, io::sink(), &guid).and_then(|()| {
        lock.write_anew(NEW_FILE, FILE, |new| {
            dir::set_rights(new, stat.mode, Some(stat.gid))?;
            fault_point::pass()?;
            copy(file, new, &guid)
        })
    });
    written.map_err(|error| format!("it is of version 1: {error}"))
}

/// Without a torn last line, whose UID is not used again: it is below the next one, as all others are.
fn copy(old: &File, new: impl Write, guid: &str) -> io::Result<()> {
    let odd = || io::Error::other("it is not understood");
    let (mut old, mut new) = (BufReader::new(old), BufWriter::new(new));
    old.rewind()?;
    let (header, _) = line(&mut old)?
        .filter(|(_, is_whole)| *is_whole)
        .ok_or_else(odd)?;
    let numbers: Option<Vec<u32>> = header.split(' ').map(|it| it.parse().ok()).collect();
    let Some([1, validity @ 1..=u32::MAX, next @ 1..=u32::MAX]) = numbers.as_deref() else {
        return Err(odd());
    };
    writeln!(new, "3 V{validity} N{next} G{guid}")?;
    let mut last = 0;
    while let Some((line, is_whole)) = line(&mut old)? {
        if !is_whole {
            // It may have lost digits, not gained some.
            let digits = line.split(' ').next().unwrap_or_default();
            let is_below = digits.is_empty() || digits.parse().is_ok_and(|uid: u32| uid < *next);
            is_below.then_some(()).ok_or_else(odd)?;
            continue;
        }
        let (uid, name) = line.split_once(' ').ok_or_else(odd)?;
        let uid: u32 = uid.parse().ok().filter(|uid| *uid > last).ok_or_else(odd)?;
        if uid >= *next || name.is_empty() || name.contains(['/', ' ']) || name.starts_with(':') {
            return Err(odd());
        }
        writeln!(new, "{uid} :{name}")?;
        last = uid;
    }
    new.flush()
}

/// The next line, and whether it is whole; none at the end.
fn line(from: &mut impl BufRead) -> io::Result<Option<(String, bool)>> {
    let mut line = String::new();
    let length = io::Read::take(&mut *from, MAX_LINE).read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(whole) => Ok(Some((whole.to_owned(), true))),
        None if length == 0 => Ok(None),
        None if (length as u64) < MAX_LINE => Ok(Some((line, false))),
        None => Err(io::Error::other("a line of it is too long")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::uidlist::TIMEOUT;
    use super::*;
    use crate::sys::dir::Dir;

    fn opened(text: &str) -> (Result<u32, String>, String) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        fs::write(&path, text).unwrap();
        let lock = Lock::take(Dir::open(root.path()).unwrap(), 0o600, TIMEOUT).unwrap();
        let next = lock.list().and_then(|list| list.ok_or("none")?.next());
        drop(lock);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        (next, fs::read_to_string(&path).unwrap())
    }

    #[test]
    fn the_uids_stay() {
        for (old, next, new) in [
            ("1 1795332733 5\n", 5, ""),
            (
                "1 1795332733 9\n2 a\n7 b,S=1:2,S\n",
                9,
                "2 :a\n7 :b,S=1:2,S\n",
            ),
            ("1 1795332733 9\n2 a\n3 to", 9, "2 :a\n"),
            ("1 1795332733 19\n17 a\n1", 19, "17 :a\n"),
        ] {
            let (got, list) = opened(old);
            assert_eq!(got, Ok(next), "{old:?}");
            let (header, lines) = list.split_once('\n').unwrap();
            assert_eq!(lines, new, "{old:?}");
            let (start, guid) = header.split_once(" G").unwrap();
            assert_eq!(start, format!("3 V1795332733 N{next}"));
            assert!(guid.len() == 32 && guid.bytes().all(|byte| byte.is_ascii_hexdigit()));
        }
    }

    #[test]
    fn what_is_odd_is_left_to_dovecot() {
        let long = format!("1 5 9\n2 {}\n", "x".repeat(5000));
        for old in [
            "1 5\n",
            "1 0 5\n",
            "1 1795332733 4",
            "1 1795332733 4\n2 a\n4 torn",
            "1 1795332733 4\n2 a\n99999999999",
            "1 5 0\n",
            "1 5 9 1\n",
            "1 5 9",
            "1 5 9\n2 a\n2 b\n",
            "1 5 9\n3 a\n2 b\n",
            "1 5 9\n9 a\n",
            "1 5 9\n2\n",
            "1 5 9\n2 \n",
            "1 5 9\n2 a/b\n",
            "1 5 9\nx a\n",
            &long,
        ] {
            let (got, list) = opened(old);
            assert!(got.is_err(), "{old:?}: {got:?}");
            assert_eq!(list, old);
        }
    }

    /// The old list or the new one, whole, and its UIDs are the same also behind a process that has ended there.
    #[test]
    fn every_step_fails_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        let old = "1 1795332733 9\n2 a\n7 b\n";
        let open = || {
            let dir = Dir::open(root.path()).map_err(|error| error.to_string())?;
            let lock = Lock::take(dir, 0o600, TIMEOUT).map_err(|error| error.to_string())?;
            lock.list()?.ok_or("none")?.next()
        };
        let is_new =
            |list: &str| list.starts_with("3 V1795332733 N9 G") && list.ends_with("\n2 :a\n7 :b\n");
        for failure in fault_point::FAILURES.into_iter().chain(fault_point::ENDS) {
            for step in 0.. {
                fs::write(&path, old).unwrap();
                fault_point::arm(step, failure);
                let opened = open();
                let fired = !fault_point::disarm();
                let list = fs::read_to_string(&path).unwrap();
                let case = format!("{failure:?} at {step}: {opened:?}, {list}");
                assert!(list == old || is_new(&list), "{case}");
                assert!(
                    opened.is_err() || opened == Ok(9) && is_new(&list),
                    "{case}"
                );
                if fired && fault_point::ENDS.contains(&failure) {
                    // By then its lock is old.
                    let _ = fs::remove_file(root.path().join("dovecot-uidlist.lock"));
                }
                assert_eq!(open(), Ok(9), "{case}");
                assert!(is_new(&fs::read_to_string(&path).unwrap()), "{case}");
                let _ = fs::remove_file(root.path().join(NEW_FILE));
                assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "{case}");
                if !fired {
                    assert!(failure.is_of_writes() || step > 8, "only {step} steps");
                    break;
                }
            }
        }
    }

    /// Somebody without regard for locks puts the old list back, again and again: it ends.
    #[test]
    fn it_is_done_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        let old = "1 1795332733 4\n2 a\n";
        for step in 0..60 {
            fs::write(&path, old).unwrap();
            let dir = Dir::open(root.path()).unwrap();
            let lock = Lock::take(dir, 0o600, TIMEOUT).unwrap();
            let again = path.clone();
            fault_point::meddle(step, move || fs::write(again, old).unwrap());
            let list = lock.list().map(|list| list.map(|list| list.next()));
            fault_point::disarm();
            assert!(list == Ok(Some(Ok(4))) || list.is_err(), "{step}: {list:?}");
        }
    }
}
