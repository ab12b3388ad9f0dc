//! `dovecot-uidlist`: the UIDs of a mailbox's files, given at once instead of when Dovecot looks (its version 3).
//!
//! Under Dovecot's lock messages become visible, get their lines, and both become durable: behind a whole last line, with UIDs
//! above all others. A torn last line is mended first: Dovecot would glue its next line to it; a list of version 1 is written
//! anew as version 3. Whatever else is odd is left to Dovecot, which gives the UIDs when it looks.

mod header;
mod tail;

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

pub(super) use header::Header;
use tail::Tail;

use super::{guid, upgrade};
use crate::mailbox::permission::Permission;
use crate::sys::dir::{self, Dir, Stat};
use crate::sys::dotlock::{Claim, Dotlock, Holds, Patience};
use crate::sys::fault_point;

/// In the control directory. Its lock is that of the other control files too.
pub const FILE: &str = "dovecot-uidlist";
/// Where Dovecot writes a list anew, too.
pub(super) const NEW_FILE: &str = "dovecot-uidlist.tmp";
/// Somebody who holds the lock for longer gives the UIDs himself.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// Dovecot's own for this file.
const STALE: Duration = Duration::from_secs(120);
/// Read at the end of the list: more than its last line, bytes.
const TAIL: u64 = 4096;
/// Read there at most, for lines that the index does not know yet, bytes.
const LONG_TAIL: u64 = 64 * 1024;
/// The longest list that is written anew for a torn line, while others wait: more than a million messages, bytes.
const MAX_MENDED: u64 = 128 * 1024 * 1024;
const NO_HEADER: &str = "its header is not that of version 3";
/// Somebody does not care for the lock.
const CHANGED: &str = "it has changed although it was locked";

/// The next UID of the list in a control directory, as far as a look without its lock can tell. None: there is no list. Err: why it is
/// left to Dovecot.
pub fn look(control: &Path) -> Result<Option<u32>, String> {
    let text = |error: io::Error| error.to_string();
    let file = match Dir::open(control).and_then(|control| control.read(FILE)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(text)?,
    };
    let start = Header::bytes(&file).map_err(text)?;
    if upgrade::is_needed(&start) {
        return Err("it is written anew first".into());
    }
    let header = Header::parse(&start).ok_or(NO_HEADER)?;
    let size = dir::stat_file(&file).map_err(text)?.size;
    let tail = Tail::read(&file, size, &header, TAIL)?;
    next(&header, &tail).map(Some)
}

fn next(header: &Header, tail: &Tail) -> Result<u32, String> {
    let behind_last = tail.last().checked_add(1).ok_or("it is full")?;
    Ok(behind_last.max(header.next))
}

/// The lock of a mailbox's control files: while it is held nobody else gives UIDs or changes its keywords.
#[derive(Debug)]
pub struct Lock {
    control: Dir,
    lock: Dotlock,
}

impl Lock {
    /// In the control directory `control`; the lock file has `mode`. Waits for `timeout`.
    pub fn take(control: Dir, mode: u32, timeout: Duration) -> io::Result<Lock> {
        Lock::take_with(None, control, mode, timeout)
    }

    /// The same with a lock file that is there already.
    pub fn take_with(
        spare: Option<Claim>,
        control: Dir,
        mode: u32,
        timeout: Duration,
    ) -> io::Result<Lock> {
        let patience = Patience {
            timeout,
            stale: STALE,
        };
        let lock = match spare {
            Some(spare) => Dotlock::take_with(spare, &control, FILE, mode, patience),
            None => Dotlock::take(&control, FILE, mode, Holds::Pid, patience),
        }?;
        Ok(Lock { control, lock })
    }

    /// Open, for the files that the lock guards.
    pub fn control(&self) -> &Dir {
        &self.control
    }

    /// [Writes](Dir::write_anew) a control file anew, durable, unless somebody has taken the lock over meanwhile.
    pub fn write_anew(
        &self,
        temporary: &str,
        name: &str,
        fill: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        self.control.write_anew(temporary, name, |file| {
            fill(file)?;
            dir::sync_file(file)?;
            self.lock.check()
        })
    }

    /// The list, its last line whole. None: there is none. Err: why it is left to Dovecot.
    pub fn list(&self) -> Result<Option<List<'_>>, String> {
        let Some(list) = List::open(self)? else {
            return Ok(None);
        };
        let Some(torn_at) = list.tail.torn_at else {
            return Ok(Some(list));
        };
        list.mend(torn_at)?;
        match List::open(self)? {
            Some(list) if list.tail.torn_at.is_none() => Ok(Some(List {
                is_mended: true,
                ..list
            })),
            _ => Err(CHANGED.into()),
        }
    }

    /// Makes the list of a mailbox that has none, and no messages. `validity` is asked when there can be one.
    pub fn make_list(
        &self,
        validity: impl FnOnce() -> io::Result<u32>,
        permission: &Permission,
    ) -> Result<List<'_>, String> {
        self.write_anew(NEW_FILE, FILE, |mut file| {
            dir::set_rights(file, permission.file_mode, permission.gid)?;
            fault_point::pass()?;
            writeln!(file, "3 V{} N1 G{}", validity()?, guid::new_guid())
        })
        .map_err(|error| format!("make {FILE}: {error}"))?;
        List::open(self)?.ok_or_else(|| format!("{FILE} is gone"))
    }

    /// Takes a list away that was [made](Lock::make_list) for nothing.
    pub fn unmake_list(&self) {
        self.remove(FILE);
    }

    /// Takes a control file away that nothing has come of.
    pub fn remove(&self, file: &str) {
        if self.lock.check().is_ok() {
            // It is as good as none.
            let _ = self.control.unlink(file);
        }
    }
}

/// The list, open under its lock.
#[derive(Debug)]
pub struct List<'l> {
    lock: &'l Lock,
    file: File,
    stat: Stat,
    header: Header,
    tail: Tail,
    is_mended: bool,
}

impl<'l> List<'l> {
    fn open(lock: &'l Lock) -> Result<Option<List<'l>>, String> {
        let Some((mut file, mut stat, mut start)) = List::begin(lock)? else {
            return Ok(None);
        };
        if upgrade::is_needed(&start) {
            upgrade::upgrade(lock, &file, &stat)?;
            (file, stat, start) = List::begin(lock)?.ok_or(CHANGED)?;
        }
        let header = Header::parse(&start).ok_or(NO_HEADER)?;
        let tail = Tail::read(&file, stat.size, &header, TAIL)?;
        Ok(Some(List {
            lock,
            file,
            stat,
            header,
            tail,
            is_mended: false,
        }))
    }

    /// The file, and what it begins with. None: there is none.
    fn begin(lock: &Lock) -> Result<Option<(File, Stat, Vec<u8>)>, String> {
        let text = |error: io::Error| error.to_string();
        let (file, stat) = match lock.control.open_to_change_and_stat(FILE) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(text)?,
        };
        let start = Header::bytes(&file).map_err(text)?;
        Ok(Some((file, stat, start)))
    }

    /// UIDVALIDITY.
    pub fn validity(&self) -> u32 {
        self.header.validity
    }

    /// Its last line was torn: the UID of that line is not to be given again, in whatever order it came.
    pub fn is_mended(&self) -> bool {
        self.is_mended
    }

    /// The next UID.
    pub fn next(&self) -> Result<u32, String> {
        next(&self.header, &self.tail)
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
    ///
    /// Not synced; whatever [`sync`](List::sync) says, they have them: somebody may have read it.
    pub fn append(&self, first: u32, names: &[&str]) -> Result<Vec<u32>, String> {
        let text = |error: io::Error| error.to_string();
        // One is left for the message after them.
        let end = u32::try_from(names.len()).ok();
        let end = end.and_then(|count| first.checked_add(count));
        let uids: Vec<u32> = (first..end.ok_or("it is full")?).collect();
        let lines = uids.iter().zip(names);
        let lines: String = lines
            .map(|(uid, name)| format!("{uid} :{}\n", name.split(':').next().unwrap_or(name)))
            .collect();
        self.check()?;
        append(&self.file, self.stat.size, lines.as_bytes()).map_err(text)?;
        Ok(uids)
    }

    /// Whether it is still as it was read: somebody may have broken the lock, and then it is his.
    fn check(&self) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        self.lock.lock.check().map_err(text)?;
        let there = self.lock.control.stat_name(FILE).map_err(text)?;
        let is_same = |file: &Stat| (file.dev, file.ino, file.size);
        match is_same(&there) == is_same(&self.stat) {
            true => Ok(()),
            false => Err(CHANGED.into()),
        }
    }

    /// Makes what was appended durable.
    pub fn sync(&self) -> io::Result<()> {
        dir::sync_file(&self.file)
    }

    /// Where it is the mailbox's too, a sync of the list may stand for one of the messages: [`Maildir::sync`](super::Maildir::sync).
    pub fn device(&self) -> u64 {
        self.stat.dev
    }

    /// As we left it.
    pub fn stat(&self) -> io::Result<Stat> {
        dir::stat_file(&self.file)
    }

    /// Writes the list anew without what stands behind `end`, whose UID is not used again.
    ///
    /// Group and mode stay as they are, or the list does.
    fn mend(&self, end: u64) -> Result<(), String> {
        if end > MAX_MENDED {
            return Err("its last line is torn, and it is too long".into());
        }
        let header = self.header_behind(end)?;
        // Were the torn list back after a crash, UIDs that we give now would be given twice.
        self.lock
            .write_anew(NEW_FILE, FILE, |file| self.copy(file, &header, end))
            .map_err(|error| format!("its last line is torn: {error}"))
    }

    /// The header line of a list that ends at `end`, its next UID above that of the torn line.
    fn header_behind(&self, end: u64) -> Result<String, String> {
        let text = |error: io::Error| error.to_string();
        let mut torn = [0; 16];
        fault_point::pass().map_err(text)?;
        let length = self.file.read_at(&mut torn, end).map_err(text)?;
        let digits = torn[..length]
            .iter()
            .take_while(|byte| byte.is_ascii_digit());
        let digits: String = digits.map(|&byte| char::from(byte)).collect();
        // It may have lost digits, and was at least the next one.
        let burnt = digits.parse().unwrap_or(0).max(self.next()?);
        let next = burnt.checked_add(1).ok_or("it is full")?;
        let mut line = vec![0; self.header.length];
        fault_point::pass().map_err(text)?;
        self.file.read_exact_at(&mut line, 0).map_err(text)?;
        self.header.with_next(&line, next)
    }

    /// The new header and the old lines up to `end`, with the group and mode of this list.
    fn copy(&self, to: &File, header: &str, end: u64) -> io::Result<()> {
        dir::set_rights(to, self.stat.mode, Some(self.stat.gid))?;
        let length = self.header.length as u64;
        let mut from = &self.file;
        from.seek(SeekFrom::Start(length))?;
        let mut to_end = from.take(end - length);
        fault_point::write(header.as_bytes(), |bytes| (&*to).write_all(bytes))?;
        fault_point::pass()?;
        let copied = io::copy(&mut to_end, &mut &*to)?;
        match copied == end - length {
            true => Ok(()),
            false => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// What is written in part is taken back.
fn append(file: &File, size: u64, lines: &[u8]) -> io::Result<()> {
    let written = fault_point::write(lines, |bytes| file.write_all_at(bytes, size));
    if written.is_err() {
        // Else the next line would be glued to the torn one.
        let _ = dir::set_file_size(file, size);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const HEADER: &str = "3 V1795332733 N5 G86371b0c7d9a026bb73a000083ecc375\n";

    fn lock(root: &Path) -> Lock {
        Lock::take(Dir::open(root).unwrap(), 0o600, TIMEOUT).unwrap()
    }

    fn give(root: &Path, names: &[&str]) -> Result<Vec<u32>, String> {
        let dir = Dir::open(root).map_err(|error| error.to_string())?;
        let lock = Lock::take(dir, 0o600, TIMEOUT).map_err(|error| error.to_string())?;
        let list = lock.list()?.ok_or("there is none")?;
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
            "3 V5 N+5\n",
            "3 V5 N5 G86371b0c7d9a026bb73a000083ecc37\n",
            "3 V5 N5 G86371b0c7d9a026bb73a000083ecc37x\n",
            "1 V5 N2\n1 :x\n",
            "2 5 2\n1 x\n",
            &format!("{HEADER}7 :x\n7 :y\n"),
            &format!("{HEADER}9 :x\n8 :y\n"),
            &format!("{HEADER}0 :x\n"),
            &format!("{HEADER}x :y\n"),
            &format!("{HEADER}+7 :y\n"),
            &format!("{HEADER}7 y\n"),
            &format!("{HEADER}7 :a/b\n"),
            &format!("{HEADER}7 :a\0b\n"),
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
        for failure in fault_point::FAILURES.into_iter().chain(fault_point::ENDS) {
            for step in 0.. {
                fs::write(&path, &torn).unwrap();
                fault_point::arm(step, failure);
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
                if fired && fault_point::ENDS.contains(&failure) {
                    // By then its lock is old.
                    let _ = fs::remove_file(root.path().join("dovecot-uidlist.lock"));
                    let uid = give(root.path(), &["b"]).unwrap()[0];
                    let list = fs::read_to_string(&path).unwrap();
                    let lines = list.split_once('\n').unwrap().1;
                    let ours = format!("{uid} :b\n");
                    let known = ["7 :x\n", "7 :x\n9 :a\n"];
                    let before = lines.strip_suffix(&ours).unwrap();
                    assert!(
                        uid >= 9 && known.contains(&before),
                        "{failure:?} {step}: {list}"
                    );
                    assert!(before.len() == 5 || uid > 9, "{failure:?} {step}: {list}");
                    let _ = fs::remove_file(root.path().join(NEW_FILE));
                }
                let names = fs::read_dir(root.path()).unwrap().count();
                assert_eq!(names, 1, "{step}: neither lock nor new list stays");
                if !fired {
                    assert!(
                        failure.is_of_writes() || step > 12,
                        "only {step} steps can fail"
                    );
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

    /// Somebody has broken the lock meanwhile: whatever he has written stays as it is.
    #[test]
    fn a_list_that_has_changed_is_not_written_to() {
        type Meddle = fn(&Path);
        let list = format!("{HEADER}7 :x\n");
        for (case, meddle) in [
            (
                "another line",
                (|root| {
                    let mut file = File::options().append(true).open(root.join(FILE)).unwrap();
                    file.write_all(b"8 :other\n").unwrap();
                }) as Meddle,
            ),
            ("another list", |root| {
                let list = fs::read(root.join(FILE)).unwrap();
                fs::write(root.join("new"), list).unwrap();
                fs::rename(root.join("new"), root.join(FILE)).unwrap();
            }),
            ("no list", |root| fs::remove_file(root.join(FILE)).unwrap()),
            ("another lock", |root| {
                fs::write(root.join("new"), "1:mx").unwrap();
                fs::rename(root.join("new"), root.join("dovecot-uidlist.lock")).unwrap();
            }),
            ("no lock", |root| {
                fs::remove_file(root.join("dovecot-uidlist.lock")).unwrap();
            }),
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(FILE);
            fs::write(&path, &list).unwrap();
            let lock = lock(root.path());
            let open = lock.list().unwrap().unwrap();
            meddle(root.path());
            let before = fs::read(&path).ok();
            let error = open.append(8, &["ours"]).unwrap_err();
            assert_eq!(fs::read(&path).ok(), before, "{case}: {error}");
            // Nor is one written anew.
            let lock_is_ours = !case.contains("lock");
            let anew = lock.write_anew(NEW_FILE, FILE, |_| Ok(()));
            assert_eq!(anew.is_ok(), lock_is_ours, "{case}");
            drop(lock);
            assert_eq!(
                root.path().join("dovecot-uidlist.lock").exists(),
                case == "another lock"
            );
        }
    }

    /// A list that is mostly a hole costs its owner nothing, and everybody else the time to write it.
    #[test]
    fn a_torn_list_without_end_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        fs::write(&path, format!("{HEADER}1 :x\n")).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(MAX_MENDED).unwrap();
        file.write_all_at(b"\n6 :x\n7 :torn", MAX_MENDED).unwrap();
        let why = lock(root.path()).list().unwrap_err();
        assert!(why.contains("too long"), "{why}");
    }
}
