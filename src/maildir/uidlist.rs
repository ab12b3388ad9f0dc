//! `dovecot-uidlist`: the UIDs of a mailbox's files, given at once instead of when Dovecot looks (its version 3).
//!
//! Files first, UIDs second: whatever is odd here, the messages are stored, and Dovecot gives the UIDs. A line is appended
//! under Dovecot's lock, behind a whole last line, with a UID above all others. A torn last line is mended first: Dovecot
//! would glue its next line to it. Nothing else is written anew, and no list is created.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::sys::dir::{self, Dir, Stat};
use crate::sys::dotlock::{Dotlock, Holds, Patience};
use crate::sys::fault_point;

pub const FILE: &str = "dovecot-uidlist";
/// Where Dovecot writes a list anew, too.
const NEW_FILE: &str = "dovecot-uidlist.tmp";
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
    let mut list = List::open(&dir)?;
    let mut mark = mark;
    if let Some(end) = list.torn_at()? {
        mark = list.mend(&dir, mark, end)?;
        list = List::open(&dir)?;
    }
    let List { file, stat, header } = list;
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

/// The list, open under its lock.
struct List {
    file: File,
    stat: Stat,
    header: Header,
}

impl List {
    fn open(dir: &Dir) -> Result<List, String> {
        let text = |error: io::Error| error.to_string();
        let file = dir.open_to_change(FILE).map_err(text)?;
        let stat = dir::stat_file(&file).map_err(text)?;
        let header = Header::read(&file)
            .map_err(text)?
            .ok_or("its header is not that of version 3")?;
        Ok(List { file, stat, header })
    }

    /// Where the last line begins, if it has no end: a crash or a full disk cut it.
    fn torn_at(&self) -> Result<Option<u64>, String> {
        let from = self.stat.size.saturating_sub(LAST_LINE);
        let mut bytes = vec![0; (self.stat.size - from) as usize];
        self.file
            .read_exact_at(&mut bytes, from)
            .map_err(|error| error.to_string())?;
        match memchr::memrchr(b'\n', &bytes) {
            Some(end) if end + 1 == bytes.len() => Ok(None),
            Some(end) => Ok(Some(from + end as u64 + 1)),
            None => Err("its last line is too long".into()),
        }
    }

    /// Writes the list anew without what stands behind `end`, whose UID is not used again. Answers `mark` in the new list.
    ///
    /// Group and mode stay as they are, or the list does.
    fn mend(&self, dir: &Dir, mark: Mark, end: u64) -> Result<Mark, String> {
        let text = |error: io::Error| format!("its last line is torn: {error}");
        let header = self.header_behind(end)?;
        // Left by a process that died: only the holder of the lock makes it.
        match dir.unlink(NEW_FILE) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(text(error)),
            _ => {}
        }
        // Nobody else reads it before it has its group.
        let file = dir.create_new(NEW_FILE, 0o600).map_err(text)?;
        let written = self
            .copy(&file, &header, end)
            .and_then(|stat| dir.replace(NEW_FILE, FILE).map(|()| stat));
        let stat = written.map_err(|error| {
            let _ = dir.unlink(NEW_FILE);
            text(error)
        })?;
        // Were the torn list back after a crash, UIDs that we give now would be given twice.
        dir.sync().map_err(text)?;
        let is_same = mark.inode == self.stat.ino && mark.size <= self.stat.size;
        let size = mark.size.saturating_sub(self.header.length as u64) + header.len() as u64;
        match is_same {
            true => Ok(Mark {
                inode: stat.ino,
                size: size.min(stat.size),
            }),
            false => Ok(mark),
        }
    }

    /// The header line of a list that ends at `end`, its next UID above that of the torn line.
    fn header_behind(&self, end: u64) -> Result<String, String> {
        let text = |error: io::Error| error.to_string();
        let from = end.saturating_sub(LAST_LINE);
        let mut bytes = vec![0; (self.stat.size - from) as usize];
        self.file.read_exact_at(&mut bytes, from).map_err(text)?;
        let (whole, torn) = bytes.split_at((end - from) as usize);
        let last = Tail::parse(whole, from > 0, &self.header)?.last_uid;
        let digits = torn.iter().take_while(|byte| byte.is_ascii_digit());
        let digits: String = digits.map(|&byte| char::from(byte)).collect();
        // It may have lost digits, and was at least the next one.
        let burnt = digits
            .parse()
            .unwrap_or(0)
            .max(last.saturating_add(1))
            .max(self.header.next);
        let next = burnt.checked_add(1).ok_or("it is full")?;
        let mut line = vec![0; self.header.length];
        self.file.read_exact_at(&mut line, 0).map_err(text)?;
        let line = std::str::from_utf8(&line).map_err(|_| "its header is not UTF-8")?;
        let fields = line.trim_end_matches('\n').split(' ');
        let fields = fields.map(|field| match field.starts_with('N') {
            true => format!("N{next}"),
            false => field.to_owned(),
        });
        Ok(fields.collect::<Vec<_>>().join(" ") + "\n")
    }

    /// The new header and the old lines up to `end`, durable, with the group and mode of this list.
    fn copy(&self, to: &File, header: &str, end: u64) -> io::Result<Stat> {
        let mut stat = dir::stat_file(to)?;
        if stat.gid != self.stat.gid {
            dir::set_file_group(to, self.stat.gid)?;
            stat = dir::stat_file(to)?;
        }
        if stat.mode != self.stat.mode {
            dir::set_file_mode(to, self.stat.mode)?;
        }
        let length = self.header.length as u64;
        let mut from = &self.file;
        from.seek(SeekFrom::Start(length))?;
        let mut to_end = from.take(end - length);
        fault_point::pass()?;
        (&*to).write_all(header.as_bytes())?;
        let copied = io::copy(&mut to_end, &mut &*to)?;
        dir::sync_file(to)?;
        let stat = dir::stat_file(to)?;
        let is_alike = (stat.mode, stat.gid) == (self.stat.mode, self.stat.gid);
        match is_alike && copied == end - length {
            true => Ok(stat),
            false => Err(io::Error::other("it cannot be written anew as it is")),
        }
    }
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
    fn a_torn_last_line_is_mended_and_its_uid_burnt() {
        let many: String = (7..900).map(|uid| format!("{uid} :file{uid}\n")).collect();
        for (whole, torn, uid) in [
            ("", "5", 6),
            ("", "5 :fil", 6),
            ("", "\u{0}", 6),
            ("7 :x\n", "8 :torn", 9),
            ("7 :x:2,S\n9 S12 :y\n", "17000", 17001),
            ("7 :x\n", "8 :a", 9),
            ("7 :x\n", "\u{0}\u{0}", 9),
            (many.as_str(), "900 :file9", 901),
        ] {
            let (got, list) = given(&format!("{HEADER}{whole}{torn}"), "", &["a"]);
            assert_eq!(got.unwrap(), [uid], "{torn:?}");
            let header = HEADER.replace("N5", &format!("N{uid}"));
            assert_eq!(list, format!("{header}{whole}{uid} :a\n"));
        }
        // Somebody else's line, torn between our message and its UID.
        let (got, list) = given(&format!("{HEADER}7 :x\n"), "8 :a\n9 :b", &["a", "c"]);
        assert_eq!(got.unwrap(), [8, 10]);
        assert!(list.ends_with("7 :x\n8 :a\n10 :c\n"), "{list}");
        let full = format!("{HEADER}7 :x\n4294967295 :y");
        let (got, list) = given(&full, "", &["a"]);
        assert!(got.is_err());
        assert_eq!(list, full);
    }

    #[test]
    fn every_step_of_mending_fails_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        let torn = format!("{HEADER}7 :x\n8 :t");
        for errno in fault_point::ERRNOS {
            for step in 0.. {
                fs::write(&path, &torn).unwrap();
                let mark = mark(root.path()).unwrap();
                fault_point::arm(step, errno);
                let given = give(root.path(), mark, 0o600, &["a"]);
                let fired = !fault_point::disarm();
                let list = fs::read_to_string(&path).unwrap();
                let mended = HEADER.replace("N5", "N9") + "7 :x\n";
                match given {
                    Ok(uids) => assert_eq!((uids, list), (vec![9], mended + "9 :a\n")),
                    Err(_) => {
                        let whole = list == torn || list.starts_with(&mended);
                        assert!(whole, "{step}: {list}");
                    }
                }
                let names = fs::read_dir(root.path()).unwrap().count();
                assert_eq!(names, 1, "{step}: neither lock nor new list stays");
                if !fired {
                    assert!(step > 12, "only {step} steps can fail");
                    break;
                }
            }
        }
    }

    #[test]
    fn a_mended_list_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        fs::write(&path, format!("{HEADER}7 :x\n8 :t")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        // What a process left that died while it mended.
        fs::write(root.path().join(NEW_FILE), "3 V1").unwrap();
        let mark = mark(root.path()).unwrap();
        assert_eq!(give(root.path(), mark, 0o600, &["a"]).unwrap(), [9]);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o664
        );
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
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
