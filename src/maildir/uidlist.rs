//! `dovecot-uidlist`: the UIDs of a mailbox's files, given at once instead of when Dovecot looks (its version 3).
//!
//! Under Dovecot's lock messages become visible and durable, then they get their lines, behind a whole last line, with UIDs
//! above all others. A torn last line is mended first: Dovecot would glue its next line to it; a list of version 1 is written
//! anew as version 3. Whatever else is odd is left to Dovecot, which gives the UIDs when it looks.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, UNIX_EPOCH};

use super::{guid, upgrade};
use crate::mailbox::permission::Permission;
use crate::sys::dir::{self, Dir, Stat};
use crate::sys::dotlock::{Dotlock, Holds, Patience};
use crate::sys::fault_point;

pub const FILE: &str = "dovecot-uidlist";
/// Where Dovecot writes a list anew, too.
pub(super) const NEW_FILE: &str = "dovecot-uidlist.tmp";
/// Somebody who holds the lock for longer gives the UIDs himself.
const PATIENCE: Patience = Patience {
    timeout: Duration::from_secs(2),
    stale: Duration::from_secs(120),
};
/// The header line is far shorter, bytes.
const MAX_HEADER: usize = 4096;
/// Read at the end of the list: more than its last line, bytes.
const TAIL: u64 = 4096;
/// Read there at most, for lines that the index does not know yet, bytes.
const LONG_TAIL: u64 = 64 * 1024;

/// The lock of a mailbox's control files: while it is held nobody else gives UIDs or changes its keywords.
#[derive(Debug)]
pub struct Lock {
    control: Dir,
    _lock: Dotlock,
}

impl Lock {
    /// In the control directory `control`; the lock file has `mode`. Waits for two seconds.
    pub fn take(control: Dir, mode: u32) -> io::Result<Lock> {
        let _lock = Dotlock::take(&control, FILE, mode, Holds::Pid, PATIENCE)?;
        Ok(Lock { control, _lock })
    }

    pub fn control(&self) -> &Dir {
        &self.control
    }

    /// The list, its last line whole. None: there is none. Err: why it is left to Dovecot.
    pub fn list(&self) -> Result<Option<List>, String> {
        let Some(list) = List::open(&self.control)? else {
            return Ok(None);
        };
        let Some(torn_at) = list.tail.torn_at else {
            return Ok(Some(list));
        };
        list.mend(&self.control, torn_at)?;
        List::open(&self.control)
    }

    /// Makes the list of a mailbox that has none, and no messages. `validity` is asked when there can be one.
    pub fn make_list(
        &self,
        validity: impl FnOnce() -> io::Result<u32>,
        guid: &str,
        permission: &Permission,
    ) -> Result<List, String> {
        self.control
            .write_anew(NEW_FILE, FILE, |mut file| {
                dir::set_rights(file, permission.file_mode, permission.gid)?;
                fault_point::pass()?;
                writeln!(file, "3 V{} N1 G{guid}", validity()?)?;
                dir::sync_file(file)
            })
            .map_err(|error| format!("make {FILE}: {error}"))?;
        List::open(&self.control)?.ok_or_else(|| format!("{FILE} is gone"))
    }
}

/// The list, open under its lock.
#[derive(Debug)]
pub struct List {
    file: File,
    stat: Stat,
    header: Header,
    tail: Tail,
}

impl List {
    fn open(control: &Dir) -> Result<Option<List>, String> {
        let text = |error: io::Error| error.to_string();
        let file = match control.open_to_change(FILE) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(text)?,
        };
        let stat = dir::stat_file(&file).map_err(text)?;
        let start = Header::bytes(&file).map_err(text)?;
        if upgrade::is_needed(&start) {
            let now = UNIX_EPOCH.elapsed().unwrap_or_default();
            let guid = guid::mailbox_guid(now, std::process::id());
            upgrade::upgrade(control, &file, &stat, &guid)?;
            return List::open(control);
        }
        let header = Header::parse(&start).ok_or("its header is not that of version 3")?;
        let tail = Tail::read(&file, stat.size, &header, TAIL)?;
        Ok(Some(List {
            file,
            stat,
            header,
            tail,
        }))
    }

    /// UIDVALIDITY.
    pub fn validity(&self) -> u32 {
        self.header.validity
    }

    /// The next UID.
    pub fn next(&self) -> Result<u32, String> {
        let behind_last = self.tail.last().checked_add(1).ok_or("it is full")?;
        Ok(behind_last.max(self.header.next))
    }

    /// Those from `uid` on, for an index that does not know them yet. None: too many to be read.
    pub fn since(&self, uid: u32) -> Option<Vec<u32>> {
        match self.tail.since(uid) {
            None => Tail::read(&self.file, self.stat.size, &self.header, LONG_TAIL)
                .ok()?
                .since(uid),
            found => found,
        }
    }

    /// Gives these files (whose names may have flags) the UIDs from `first` on, which is no lower than [`next`](List::next).
    pub fn append(&mut self, first: u32, names: &[&str]) -> Result<Vec<u32>, String> {
        // One is left for the message after them.
        let end = u32::try_from(names.len()).ok();
        let end = end.and_then(|count| first.checked_add(count));
        let uids: Vec<u32> = (first..end.ok_or("it is full")?).collect();
        let lines = uids.iter().zip(names);
        let lines: String = lines
            .map(|(uid, name)| format!("{uid} :{}\n", name.split(':').next().unwrap_or(name)))
            .collect();
        append(&self.file, self.stat.size, lines.as_bytes()).map_err(|error| error.to_string())?;
        Ok(uids)
    }

    /// As it is now.
    pub fn stat(&self) -> io::Result<Stat> {
        dir::stat_file(&self.file)
    }

    /// Writes the list anew without what stands behind `end`, whose UID is not used again.
    ///
    /// Group and mode stay as they are, or the list does.
    fn mend(&self, control: &Dir, end: u64) -> Result<(), String> {
        let header = self.header_behind(end)?;
        // Were the torn list back after a crash, UIDs that we give now would be given twice.
        control
            .write_anew(NEW_FILE, FILE, |file| self.copy(file, &header, end))
            .map_err(|error| format!("its last line is torn: {error}"))
    }

    /// The header line of a list that ends at `end`, its next UID above that of the torn line.
    fn header_behind(&self, end: u64) -> Result<String, String> {
        let text = |error: io::Error| error.to_string();
        let mut torn = [0; 16];
        let length = self.file.read_at(&mut torn, end).map_err(text)?;
        let digits = torn[..length]
            .iter()
            .take_while(|byte| byte.is_ascii_digit());
        let digits: String = digits.map(|&byte| char::from(byte)).collect();
        // It may have lost digits, and was at least the next one.
        let burnt = digits.parse().unwrap_or(0).max(self.next()?);
        let next = burnt.checked_add(1).ok_or("it is full")?;
        let mut line = vec![0; self.header.length];
        self.file.read_exact_at(&mut line, 0).map_err(text)?;
        self.header.with_next(&line, next)
    }

    /// The new header and the old lines up to `end`, durable, with the group and mode of this list.
    fn copy(&self, to: &File, header: &str, end: u64) -> io::Result<()> {
        dir::set_rights(to, self.stat.mode, Some(self.stat.gid))?;
        let length = self.header.length as u64;
        let mut from = &self.file;
        from.seek(SeekFrom::Start(length))?;
        let mut to_end = from.take(end - length);
        fault_point::pass()?;
        (&*to).write_all(header.as_bytes())?;
        let copied = io::copy(&mut to_end, &mut &*to)?;
        match copied == end - length {
            true => dir::sync_file(to),
            false => Err(ErrorKind::UnexpectedEof.into()),
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
pub(super) struct Header {
    pub length: usize,
    validity: u32,
    /// The next UID when the list was last written anew.
    pub next: u32,
}

impl Header {
    /// The start of a list, in which its header is.
    fn bytes(file: &File) -> io::Result<Vec<u8>> {
        fault_point::pass()?;
        let mut bytes = vec![0; MAX_HEADER];
        let length = file.read_at(&mut bytes, 0)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// The header line of `list`, whose header this is, with another next UID.
    pub fn with_next(&self, list: &[u8], next: u32) -> Result<String, String> {
        let line = list.get(..self.length).unwrap_or_default();
        let line = std::str::from_utf8(line).map_err(|_| "its header is not UTF-8")?;
        let fields = line.trim_end_matches('\n').split(' ');
        let fields = fields.map(|field| match field.starts_with('N') {
            true => format!("N{next}"),
            false => field.to_owned(),
        });
        Ok(fields.collect::<Vec<_>>().join(" ") + "\n")
    }

    pub fn parse(bytes: &[u8]) -> Option<Header> {
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
        Some(Header {
            length: length + 1,
            validity: validity?,
            next: next?,
        })
    }
}

/// The end of the list.
#[derive(Debug, PartialEq, Eq)]
struct Tail {
    /// Of its whole lines.
    uids: Vec<u32>,
    /// There are lines before.
    is_cut: bool,
    /// Where the last line begins, if it has no end: a crash or a full disk cut it.
    torn_at: Option<u64>,
}

impl Tail {
    /// The last `length` bytes of a list of `size` bytes, or somewhat less.
    fn read(file: &File, size: u64, header: &Header, length: u64) -> Result<Tail, String> {
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

    fn last(&self) -> u32 {
        self.uids.last().copied().unwrap_or(0)
    }

    /// None: there may be more before this tail.
    fn since(&self, uid: u32) -> Option<Vec<u32>> {
        let is_whole = !self.is_cut || self.uids.first().is_some_and(|first| *first <= uid);
        let uids = self.uids.iter().copied();
        is_whole.then(|| uids.filter(|it| *it >= uid).collect())
    }
}

/// `17 S12 :name`
pub(super) fn uid_of(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    line.split_once(" :")?;
    let uid = line.split(' ').next()?;
    uid.parse().ok().filter(|uid| *uid > 0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const HEADER: &str = "3 V1795332733 N5 G86371b0c7d9a026bb73a000083ecc375\n";

    fn lock(root: &Path) -> Lock {
        Lock::take(Dir::open(root).unwrap(), 0o600).unwrap()
    }

    fn give(root: &Path, names: &[&str]) -> Result<Vec<u32>, String> {
        let dir = Dir::open(root).map_err(|error| error.to_string())?;
        let lock = Lock::take(dir, 0o600).map_err(|error| error.to_string())?;
        let mut list = lock.list()?.ok_or("there is none")?;
        let first = list.next()?;
        list.append(first, names)
    }

    fn given(list: &str, names: &[&str]) -> (Result<Vec<u32>, String>, String) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        fs::write(&path, list).unwrap();
        let uids = give(root.path(), names);
        assert_eq!(
            fs::read_dir(root.path()).unwrap().count(),
            1,
            "no lock stays"
        );
        (uids, fs::read_to_string(&path).unwrap())
    }

    #[test]
    fn uids_go_on_behind_the_last() {
        let many: String = (7..1900).map(|uid| format!("{uid} :file{uid}\n")).collect();
        for (before, names, uids, added) in [
            ("", &["a", "b"][..], &[5, 6][..], "5 :a\n6 :b\n"),
            ("7 :x\n", &["a"], &[8], "8 :a\n"),
            ("2 :x\n", &["a"], &[5], "5 :a\n"),
            ("7 :x:2,S\n9 S12 W13 :y\n", &["a:2,FS"], &[10], "10 :a\n"),
            ("4294967293 :x\n", &["a"], &[4294967294], "4294967294 :a\n"),
            (&many, &["a"], &[1900], "1900 :a\n"),
        ] {
            let (got, list) = given(&format!("{HEADER}{before}"), names);
            assert_eq!(got.unwrap(), uids, "{before:?}");
            assert_eq!(list, format!("{HEADER}{before}{added}"));
        }
    }

    #[test]
    fn what_is_odd_is_left_to_dovecot() {
        for list in [
            "",
            "3",
            "3 V0 N5\n",
            "3 N5\n",
            "3 V5\n",
            "4 V5 N5\n",
            "1 V5 N2\n1 :x\n",
            "2 5 2\n1 x\n",
            &format!("{HEADER}7 :x\n7 :y\n"),
            &format!("{HEADER}9 :x\n8 :y\n"),
            &format!("{HEADER}0 :x\n"),
            &format!("{HEADER}x :y\n"),
            &format!("{HEADER}7 y\n"),
            &format!("{HEADER}\n"),
            &format!("{HEADER}4294967294 :y\n"),
            &format!("{HEADER}4294967295 :y\n"),
            &format!("{HEADER}7 :x\n8 :{}\n", "y".repeat(5000)),
        ] {
            let (got, after) = given(list, &["a"]);
            assert!(got.is_err(), "{list:?}: {got:?}");
            assert_eq!(after, list);
        }
        let root = tempfile::tempdir().unwrap();
        assert!(lock(root.path()).list().unwrap().is_none());
        fs::create_dir(root.path().join(FILE)).unwrap();
        assert!(give(root.path(), &["a"]).is_err());
    }

    #[test]
    fn a_symlink_is_no_list() {
        let root = tempfile::tempdir().unwrap();
        let list = format!("{HEADER}7 :x\n");
        fs::write(root.path().join("other"), &list).unwrap();
        std::os::unix::fs::symlink("other", root.path().join(FILE)).unwrap();
        assert!(give(root.path(), &["a"]).is_err());
        assert_eq!(fs::read_to_string(root.path().join("other")).unwrap(), list);
    }

    #[test]
    fn what_an_index_does_not_know_is_told() {
        let root = tempfile::tempdir().unwrap();
        let lines: String = (7..5000).map(|uid| format!("{uid} :file{uid}\n")).collect();
        fs::write(root.path().join(FILE), format!("{HEADER}{lines}")).unwrap();
        let lock = lock(root.path());
        let list = lock.list().unwrap().unwrap();
        for (uid, known) in [
            (5000, Some(0)),
            (4999, Some(1)),
            (4000, Some(1000)),
            // In the last 64 KiB no more.
            (500, None),
        ] {
            assert_eq!(list.since(uid).map(|uids| uids.len()), known, "{uid}");
        }
        assert_eq!(list.since(4998), Some(vec![4998, 4999]));
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
            let (got, list) = given(&format!("{HEADER}{whole}{torn}"), &["a"]);
            assert_eq!(got.unwrap(), [uid], "{torn:?}");
            let header = HEADER.replace("N5", &format!("N{uid}"));
            assert_eq!(list, format!("{header}{whole}{uid} :a\n"));
        }
        let full = format!("{HEADER}7 :x\n4294967295 :y");
        let (got, list) = given(&full, &["a"]);
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
                fault_point::arm(step, errno);
                let given = give(root.path(), &["a"]);
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
        assert_eq!(give(root.path(), &["a"]).unwrap(), [9]);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o664
        );
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

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
