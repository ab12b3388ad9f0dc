//! `dovecot-uidlist`: the UIDs of a mailbox's files, given at once instead of when Dovecot looks (its version 3).
//!
//! Files first, UIDs second: whatever is odd here, the messages are stored, and Dovecot gives the UIDs. A line is appended
//! under Dovecot's lock, behind a whole last line, with a UID above all others; nothing is rewritten and nothing created.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::sys::dir::{self, Dir};
use crate::sys::dotlock::{Dotlock, Holds, Patience};
use crate::sys::fault_point;

pub const FILE: &str = "dovecot-uidlist";
/// Somebody who holds the lock for longer gives the UIDs himself.
const PATIENCE: Patience = Patience {
    timeout: Duration::from_secs(2),
    stale: Duration::from_secs(120),
};
/// The header line is far shorter, bytes.
const MAX_HEADER: usize = 4096;
/// Read before the place where new lines begin: the last line that was there, bytes.
const LAST_LINE: u64 = 4096;
/// A list that grew by more in between is left to Dovecot, bytes.
const MAX_GROWTH: u64 = 16 * 1024 * 1024;

/// How far a list went before messages became visible: only behind it can their lines be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    inode: u64,
    size: u64,
}

/// The place in the list of the control directory `control`. None: there is no list.
pub fn mark(control: &Path) -> Option<Mark> {
    let stat = dir::stat(&control.join(FILE)).ok()?;
    Some(Mark {
        inode: stat.ino,
        size: stat.size,
    })
}

/// The UIDs of these files, in their order; a file's name may have flags. Why there are none is for the log.
pub fn give(control: &Path, mark: Mark, mode: u32, names: &[&str]) -> Result<Vec<u32>, String> {
    let text = |error: io::Error| error.to_string();
    let dir = Dir::open(control).map_err(text)?;
    let _lock = Dotlock::take(&dir, FILE, mode, Holds::Pid, PATIENCE).map_err(text)?;
    let file = dir.open_to_change(FILE).map_err(text)?;
    let stat = dir::stat_file(&file).map_err(text)?;
    let header = Header::read(&file)
        .map_err(text)?
        .ok_or("its header is not that of version 3")?;
    // In a list that was written anew our lines may be anywhere.
    let is_same = stat.ino == mark.inode && stat.size >= mark.size;
    let from = match is_same {
        true => mark.size.saturating_sub(LAST_LINE),
        false => 0,
    };
    if stat.size - from > MAX_GROWTH {
        return Err("it was written anew, and is too long to be read".into());
    }
    let mut bytes = vec![0; (stat.size - from) as usize];
    file.read_exact_at(&mut bytes, from).map_err(text)?;
    let tail = Tail::parse(&bytes, from > 0, &header)?;
    let (uids, lines) = tail.place(&header, names)?;
    if !lines.is_empty() && !is_same {
        // A file that had its line and was expunged since must not get another one.
        return Err("it was written anew meanwhile".into());
    }
    if !lines.is_empty() {
        append(&file, stat.size, lines.as_bytes()).map_err(text)?;
    }
    Ok(uids)
}

/// One write, durable; a short one is taken back. What was written whole stays, synced or not: somebody may have read it,
/// and its UIDs must not come twice.
fn append(file: &File, size: u64, lines: &[u8]) -> io::Result<()> {
    let written = fault_point::pass().and_then(|()| file.write_all_at(lines, size));
    if let Err(error) = written {
        // Else the next line would be glued to the torn one.
        let _ = file.set_len(size);
        return Err(error);
    }
    dir::sync_file(file)
}

/// `3 V1795332733 N17 G86371b0c7d9a026bb73a000083ecc375`
#[derive(Debug, PartialEq, Eq)]
struct Header {
    length: usize,
    /// The next UID when the list was last written anew.
    next: u32,
}

impl Header {
    fn read(file: &File) -> io::Result<Option<Header>> {
        let mut bytes = [0; MAX_HEADER];
        let length = file.read_at(&mut bytes, 0)?;
        Ok(Header::parse(&bytes[..length]))
    }

    fn parse(bytes: &[u8]) -> Option<Header> {
        let length = memchr::memchr(b'\n', bytes)?;
        let line = std::str::from_utf8(&bytes[..length]).ok()?;
        let mut fields = line.split(' ');
        if fields.next() != Some("3") {
            return None;
        }
        let (mut validity, mut next) = (None, None);
        for field in fields {
            match field.split_at_checked(1) {
                Some(("V", value)) => validity = value.parse::<u32>().ok().filter(|it| *it > 0),
                Some(("N", value)) => next = value.parse().ok().filter(|it| *it > 0),
                _ => {}
            }
        }
        validity?;
        Some(Header {
            length: length + 1,
            next: next?,
        })
    }
}

/// The end of the list.
#[derive(Debug)]
struct Tail<'a> {
    last_uid: u32,
    /// By the name without flags.
    uids: HashMap<&'a str, u32>,
}

impl<'a> Tail<'a> {
    /// `is_cut`: the first line of `bytes` may not be whole. Without it they begin with the header.
    fn parse(bytes: &'a [u8], is_cut: bool, header: &Header) -> Result<Tail<'a>, String> {
        if bytes.last() != Some(&b'\n') {
            return Err("its last line is torn".into());
        }
        let start = match is_cut {
            true => memchr::memchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1),
            false => header.length,
        };
        let mut tail = Tail {
            last_uid: 0,
            uids: HashMap::new(),
        };
        let lines = bytes.get(start..).unwrap_or_default();
        for line in lines
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let line = std::str::from_utf8(line).map_err(|_| "a line is not UTF-8")?;
            let odd = || format!("{line:?} is no line of it");
            let uid = line
                .split(' ')
                .next()
                .and_then(|uid| uid.parse::<u32>().ok());
            let uid = uid.ok_or_else(odd)?;
            let (_, name) = line.split_once(" :").ok_or_else(odd)?;
            if uid <= tail.last_uid {
                return Err("its UIDs are not in order".into());
            }
            tail.last_uid = uid;
            tail.uids.insert(base(name), uid);
        }
        // The line before the mark is there in any list that has messages.
        match is_cut && tail.last_uid == 0 {
            true => Err("its last line is too long".into()),
            false => Ok(tail),
        }
    }

    /// The UID of each name, and the lines of those that have none yet.
    fn place(&self, header: &Header, names: &[&str]) -> Result<(Vec<u32>, String), String> {
        let mut next = self
            .last_uid
            .checked_add(1)
            .ok_or("it is full")?
            .max(header.next);
        let (mut uids, mut lines) = (Vec::new(), String::new());
        for name in names {
            if let Some(&uid) = self.uids.get(base(name)) {
                uids.push(uid);
                continue;
            }
            lines.push_str(&format!("{next} :{}\n", base(name)));
            uids.push(next);
            next = next.checked_add(1).ok_or("it is full")?;
        }
        Ok((uids, lines))
    }
}

/// The name without its flags.
fn base(name: &str) -> &str {
    name.split(":2,").next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const HEADER: &str = "3 V1795332733 N5 G86371b0c7d9a026bb73a000083ecc375\n";

    fn given(before: &str, then: &str, names: &[&str]) -> (Result<Vec<u32>, String>, String) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        fs::write(&path, before).unwrap();
        let mark = mark(root.path()).unwrap();
        fs::write(&path, format!("{before}{then}")).unwrap();
        let uids = give(root.path(), mark, 0o600, names);
        assert_eq!(
            fs::read_dir(root.path()).unwrap().count(),
            1,
            "no lock stays"
        );
        (uids, fs::read_to_string(&path).unwrap())
    }

    #[test]
    fn uids_go_on_behind_the_last() {
        for (before, then, names, uids, added) in [
            ("", "", &["a", "b"][..], &[5, 6][..], "5 :a\n6 :b\n"),
            ("7 :x\n", "", &["a"], &[8], "8 :a\n"),
            (
                "7 :x:2,S\n9 S12 W13 :y\n",
                "",
                &["a:2,FS"],
                &[10],
                "10 :a\n",
            ),
            // Dovecot has listed it in between.
            ("7 :x\n", "8 :a\n9 :z\n", &["a", "b"], &[8, 10], "10 :b\n"),
            ("7 :x\n", "8 :a:2,S\n", &["a"], &[8], ""),
        ] {
            let (got, list) = given(&format!("{HEADER}{before}"), then, names);
            assert_eq!(got.unwrap(), uids, "{before:?} {then:?}");
            assert_eq!(list, format!("{HEADER}{before}{then}{added}"));
        }
    }

    #[test]
    fn what_is_odd_is_left_to_dovecot() {
        let big = "1 V5 N2\n1 :x\n";
        for list in [
            "",
            "3",
            "3 V0 N5\n",
            "3 N5\n",
            "3 V5\n",
            "4 V5 N5\n",
            big,
            &format!("{HEADER}7 :x\n8 :torn"),
            &format!("{HEADER}7 :x\n7 :y\n"),
            &format!("{HEADER}9 :x\n8 :y\n"),
            &format!("{HEADER}x :y\n"),
            &format!("{HEADER}7 y\n"),
            &format!("{HEADER}4294967295 :y\n"),
        ] {
            let (got, after) = given(list, "", &["a"]);
            assert!(got.is_err(), "{list:?}");
            assert_eq!(after, list);
        }
        assert_eq!(mark(Path::new("/nonexistent")), None);
    }

    #[test]
    fn a_list_that_was_written_anew_is_read_from_its_start() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        fs::write(&path, format!("{HEADER}7 :x\n")).unwrap();
        let before = mark(root.path()).unwrap();
        let lines: String = (10..2000)
            .map(|uid| format!("{uid} :file{uid}\n"))
            .collect();
        fs::write(
            root.path().join("new"),
            format!("{HEADER}8 :a:2,S\n{lines}"),
        )
        .unwrap();
        fs::rename(root.path().join("new"), &path).unwrap();
        assert_eq!(give(root.path(), before, 0o600, &["a"]).unwrap(), [8]);
        // Was it listed, and expunged before the list was written anew? Nobody can tell.
        assert!(give(root.path(), before, 0o600, &["a", "b"]).is_err());
        assert!(!fs::read_to_string(&path).unwrap().contains(" :b"));
        // And with a long list only its end.
        let before = mark(root.path()).unwrap();
        assert_eq!(give(root.path(), before, 0o600, &["c"]).unwrap(), [2000]);
    }

    proptest! {
        #[test]
        fn no_list_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), is_cut in any::<bool>()) {
            let header = Header { length: 3, next: 5 };
            let _ = Header::parse(&bytes);
            if let Ok(tail) = Tail::parse(&bytes, is_cut, &header) {
                let (uids, _) = tail.place(&header, &["a"]).unwrap_or_default();
                prop_assert!(uids.iter().all(|uid| *uid > 0));
            }
        }
    }
}
