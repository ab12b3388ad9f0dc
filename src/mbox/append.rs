//! A message added to an mbox: whole and synced, or the file is as it was.

use std::fs::{File, FileTimes};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use memchr::memmem;

use super::lock::{Locked, Locking, is_in_place};
use super::text::{Notes, Quoting, Text, Uid};
use super::torn;
use crate::fault::{Code, Fault};
use crate::mailbox::permission::Permission;
use crate::message::{Body, Flags};
use crate::sys;
use crate::sys::dir::{self, Dir, Stat};
use crate::sys::fault_point::{self, pass};

/// Bytes written at once.
const BUFFER: usize = 128 * 1024;
/// How much of the first message is looked at, bytes.
const MAX_FIRST: usize = 4096;

/// Locked by one name it can be written to by the other, and nobody knows whose mail the other is.
pub const MORE_NAMES: &str =
    "it has more than one name (hard links): its locks would hold for one of them only";

/// An mbox, open by its real place: its locks lie beside the file, not beside a symlink to it.
#[derive(Debug)]
pub struct Mbox {
    /// Where it really is.
    path: PathBuf,
    dir: Dir,
    name: String,
}

/// How a message is added.
#[derive(Debug, Clone, Copy)]
pub struct Demands<'a> {
    pub locking: &'a Locking,
    pub quoting: Quoting,
    pub sync: bool,
    /// For a file that is missing; none: it must be there.
    pub make: Option<&'a Permission>,
    /// Whose INBOX it is: nobody else but root may have it.
    pub owner: Option<u32>,
}

/// What is added.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The line before it, without its end.
    pub from_line: &'a str,
    /// Fields that come before its own.
    pub header: &'a [u8],
    pub body: &'a Body,
    pub flags: Flags,
    pub uid: Option<Uid<'a>>,
}

/// An mbox that is locked.
#[derive(Debug)]
pub struct Open<'a> {
    mbox: &'a Mbox,
    demands: Demands<'a>,
    file: Locked,
    before: Stat,
}

/// A message that is in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// Where its line `From ` begins.
    pub offset: u64,
    /// Bytes, with that line.
    pub size: u64,
    /// The file as it is now.
    pub stat: Stat,
    /// Nobody has added to the file meanwhile, as one may who knows none of its locks.
    pub is_last: bool,
}

/// Where a message goes, and what is in it.
struct Room {
    /// What comes before its line `From `.
    gap: &'static [u8],
    /// Where that line begins.
    offset: u64,
    /// Where the message ends.
    end: u64,
    /// Bytes of its body.
    content_length: u64,
    /// NUL bytes.
    zeros: u64,
}

impl Mbox {
    /// The mbox in `dir`, whose real path is this one. It may be missing.
    pub fn at(dir: Dir, path: PathBuf) -> Result<Mbox, Fault> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.map(str::to_owned).ok_or_else(|| {
            let error = ErrorKind::InvalidFilename.into();
            Fault::io(format!("open {}", path.display()), &error)
        })?;
        let dir = dir.with_privileged_group();
        let dir = dir.map_err(|error| Fault::io(format!("open {}", path.display()), &error))?;
        Ok(Mbox { path, dir, name })
    }

    /// Opened under its locks, and looked at. [`Code::Storage`] when somebody holds one for too long. `has_seen`: whether a reader
    /// may know more than so many bytes of it; then what a killed delivery has left stays.
    pub fn lock<'a>(
        &'a self,
        demands: Demands<'a>,
        has_seen: impl FnOnce(u64) -> io::Result<bool>,
    ) -> Result<Open<'a>, Fault> {
        let open = || self.open(demands.make);
        let file = demands.locking.lock(&self.dir, &self.name, open);
        let file = file.map_err(|error| self.failed(error))?;
        let before = dir::stat_file(&file.file).map_err(|error| self.failed(error))?;
        let checked = check_whose(&before, demands.owner);
        checked.map_err(|why| self.refused(why))?;
        let before = torn::remove(&file.file, before, has_seen);
        let before = before.map_err(|error| self.failed(error))?;
        let is_mbox = is_mbox(&file.file, &before);
        if !is_mbox.map_err(|error| self.failed(error))? {
            let why = "it does not begin with \"From \": it is no mbox";
            return Err(self.refused(why.into()));
        }
        Ok(Open {
            mbox: self,
            demands,
            file,
            before,
        })
    }

    fn refused(&self, why: String) -> Fault {
        let doing = format!("append to {}", self.path.display());
        Fault::new(Code::Storage, doing, why)
    }

    fn failed(&self, error: io::Error) -> Fault {
        let doing = format!("append to {}", self.path.display());
        match error.kind() {
            ErrorKind::TimedOut => Fault::new(Code::Storage, doing, error.to_string()),
            _ => Fault::io(doing, &error),
        }
    }

    /// The file, for reading and writing; made where it is missing and may be.
    fn open(&self, make: Option<&Permission>) -> io::Result<File> {
        let opened = self.dir.open_to_change(&self.name);
        match (opened, make) {
            (Err(error), Some(permission)) if error.kind() == ErrorKind::NotFound => {
                match self.make(permission) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                    made => made?,
                }
                self.dir.open_to_change(&self.name)
            }
            (opened, _) => opened,
        }
    }

    /// Whoever sees it may wait for its locks, and then write to it: it stays, whatever becomes of the message.
    fn make(&self, permission: &Permission) -> io::Result<()> {
        let mode = permission.file_mode;
        match self.dir.unnamed_file(mode) {
            Err(error) if sys::is_unsupported(&error) => {
                let file = self.dir.create_new(&self.name, mode)?;
                dir::set_rights(&file, mode, permission.gid)
                    .inspect_err(|_| drop(self.dir.unlink(&self.name)))
            }
            file => {
                let file = file?;
                dir::set_rights(&file, mode, permission.gid)?;
                self.dir.link(&file, &self.name)
            }
        }
    }
}

/// An error says why nothing is written to such a file.
fn check_whose(stat: &Stat, owner: Option<u32>) -> Result<(), String> {
    match owner {
        _ if stat.links != 1 => Err(MORE_NAMES.into()),
        Some(owner) if ![0, owner].contains(&stat.uid) => Err(format!(
            "it belongs to uid {}, and it is another's INBOX",
            stat.uid
        )),
        _ => Ok(()),
    }
}

/// Whether it is an mbox at all: anything else is somebody's file.
fn is_mbox(file: &File, stat: &Stat) -> io::Result<bool> {
    let mut start = [0; 5];
    pass()?;
    let length = file.read_at(&mut start, 0)?;
    Ok(stat.size == 0 || start[..length] == *b"From ")
}

impl Open<'_> {
    /// As it was when it was locked.
    pub fn stat(&self) -> &Stat {
        &self.before
    }

    /// Adds the message. What fails leaves the file as it was.
    pub fn append(&self, message: &Message<'_>) -> Result<Appended, Fault> {
        let failed = |error| self.mbox.failed(error);
        let room = self.room(message).map_err(failed)?;
        let appended = self
            .write(message, &room)
            .and_then(|()| self.make_sure(&room));
        appended.map_err(|error| {
            self.take_back(room.end);
            failed(error)
        })
    }

    /// It is there, it stays, and whoever opens the file finds it.
    fn make_sure(&self, room: &Room) -> io::Result<Appended> {
        let file = &self.file.file;
        if self.demands.sync {
            dir::sync_data(file)?;
            if self.before.size == 0 {
                self.mbox.dir.sync()?;
            }
        }
        torn::forget(file);
        keep_unread(file, &self.before);
        if !is_in_place(&self.mbox.dir, &self.mbox.name, file)? {
            return Err(io::Error::other("it was removed or renamed meanwhile"));
        }
        self.file.check()?;
        let stat = dir::stat_file(file)?;
        if stat.size < room.end {
            let why = "somebody has cut or rewritten it meanwhile, without its locks";
            return Err(io::Error::other(why));
        }
        Ok(Appended {
            offset: room.offset,
            size: room.end - room.offset,
            stat,
            is_last: stat.size == room.end,
        })
    }

    /// The file as it was, also on disk; not where there may be what others have written.
    fn take_back(&self, end: u64) {
        let file = &self.file.file;
        let is_ours = |stat: Stat| self.before.size < stat.size && stat.size <= end;
        if self.file.check().is_err() || !dir::stat_file(file).is_ok_and(is_ours) {
            return;
        }
        // What cannot be taken back now goes with the next delivery.
        if dir::set_file_size(file, self.before.size).is_ok() {
            torn::forget(file);
        }
        let _ = dir::set_file_modified(file, self.before.modified);
        let _ = dir::sync_data(file);
    }

    /// Where the first message of the file has the last UID, and which, if it is one of this UIDVALIDITY: ten digits, to be written
    /// over.
    pub fn last_uid(&self, validity: u32) -> io::Result<Option<(u64, u32)>> {
        let mut start = vec![0; MAX_FIRST];
        pass()?;
        let length = self.file.file.read_at(&mut start, 0)?;
        Ok(find_last_uid(&start[..length], validity))
    }

    /// Writes the last UID at `at`. Answers the file as it is now.
    pub fn set_last_uid(&self, at: u64, uid: u32) -> io::Result<Stat> {
        self.file.check()?;
        let digits = format!("{uid:010}");
        fault_point::write(digits.as_bytes(), |bytes| {
            self.file.file.write_all_at(bytes, at)
        })?;
        keep_unread(&self.file.file, &self.before);
        dir::stat_file(&self.file.file)
    }

    /// What there is to write, and where.
    fn room(&self, message: &Message<'_>) -> io::Result<Room> {
        // Written twice: the length of the body stands before it.
        let mut text = Counted::default();
        let (_, content_length) = self.put(message, 0, &mut text)?;
        let digits = content_length.to_string().len() as u64;
        let gap = gap(&self.file.file, self.before.size)?;
        let offset = self.before.size + gap.len() as u64;
        let from_line = message.from_line.len() as u64 + 1;
        Ok(Room {
            gap,
            offset,
            end: offset + from_line + text.bytes + digits - 1,
            content_length,
            zeros: text.zeros,
        })
    }

    /// Writes behind the end.
    fn write(&self, message: &Message<'_>, room: &Room) -> io::Result<()> {
        let mut file = &self.file.file;
        let size = self.before.size;
        // A dotlock that somebody has broken holds nobody off.
        self.file.check()?;
        dir::reserve(file, size, room.end - size)?;
        torn::note(file, size, room.offset, room.zeros, message.from_line);
        file.seek(SeekFrom::Start(size))?;
        let checked = Checked {
            locked: &self.file,
            has_failed: false,
        };
        let mut out = BufWriter::with_capacity(BUFFER, checked);
        out.write_all(room.gap)?;
        writeln!(out, "{}", message.from_line)?;
        let (mut out, _) = self.put(message, room.content_length, out)?;
        out.flush()
    }

    /// The message as it stands in the file, and the length of its body.
    fn put<W: Write>(
        &self,
        message: &Message<'_>,
        content_length: u64,
        out: W,
    ) -> io::Result<(W, u64)> {
        let notes = Notes {
            flags: message.flags,
            uid: message.uid,
            content_length,
        };
        let mut text = Text::new(out, self.demands.quoting, notes);
        text.take(message.header)?;
        message.body.each_piece(|piece| text.take(piece))?;
        text.finish()
    }
}

fn find_last_uid(start: &[u8], validity: u32) -> Option<(u64, u32)> {
    let header = memmem::find(start, b"\n\n").unwrap_or(start.len());
    let mut at = 0;
    for line in start[..header].split_inclusive(|&byte| byte == b'\n') {
        let name = ["X-IMAPbase: ", "X-IMAP: "];
        let value = name
            .iter()
            .find_map(|name| line.strip_prefix(name.as_bytes()));
        if let Some(value) = value {
            let mut words = value.split(|byte| matches!(byte, b' ' | b'\n'));
            let is_its = words.next() == Some(validity.to_string().as_bytes());
            let digits = words.next()?;
            let is_whole = digits.len() == 10 && digits.iter().all(u8::is_ascii_digit);
            let offset = line.len() - value.len() + validity.to_string().len() + 1;
            let last = str::from_utf8(digits).ok()?.parse().ok()?;
            return (is_its && is_whole).then_some(((at + offset) as u64, last));
        }
        at += line.len();
    }
    None
}

/// What is missing between the last message and the next one: the end of its last line, and an empty line.
fn gap(file: &File, size: u64) -> io::Result<&'static [u8]> {
    let mut end = [b'\n'; 2];
    let known = size.min(2) as usize;
    pass()?;
    file.read_exact_at(&mut end[2 - known..], size - known as u64)?;
    Ok(match end {
        [b'\n', b'\n'] => b"",
        [_, b'\n'] => b"\n",
        _ => b"\n\n",
    })
}

/// Shells and biff tell new mail by an mbox that was read before it was written.
fn keep_unread(file: &File, before: &Stat) {
    // Not ours to change: then it is so.
    let times = FileTimes::new().set_accessed(before.accessed);
    let _ = pass().and_then(|()| file.set_times(times));
}

/// How many bytes there would be.
#[derive(Default)]
struct Counted {
    bytes: u64,
    zeros: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes += bytes.len() as u64;
        self.zeros += memchr::memchr_iter(0, bytes).count() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Each write is a step that can fail, and nothing is written without the dotlock, nor behind one that has failed: a buffer tries
/// again when it is dropped.
struct Checked<'a> {
    locked: &'a Locked,
    has_failed: bool,
}

impl Write for Checked<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if std::mem::replace(&mut self.has_failed, true) {
            return Err(io::Error::other("a write before has failed"));
        }
        self.locked.check()?;
        fault_point::write(bytes, |bytes| (&self.locked.file).write_all(bytes))?;
        self.has_failed = false;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::mailbox::link::Links;
    use crate::message::body::{BodyWriter, Spool};
    use crate::sys::{credentials, fault_point};

    const FROM: &str = "From a@b  Mon Nov 02 07:02:09 2026";
    const OLD: &str = "From x  Mon Nov 02 07:02:09 2026\nA: b\n\nold\n\n";

    fn body(text: &str) -> Body {
        let mut body = BodyWriter::new(&Spool::of(vec![std::env::temp_dir()]));
        body.write(text.as_bytes()).unwrap();
        body.finish().unwrap()
    }

    fn append(path: &Path, text: &str, make: Option<&Permission>) -> Result<Appended, Fault> {
        append_body(path, &body(text), make)
    }

    fn append_body(path: &Path, body: &Body, make: Option<&Permission>) -> Result<Appended, Fault> {
        let locking = Locking {
            timeout: Duration::from_millis(50),
            ..Locking::default()
        };
        let demands = Demands {
            locking: &locking,
            quoting: Quoting::Mboxrd,
            sync: true,
            make,
            owner: None,
        };
        let message = Message {
            from_line: FROM,
            header: b"R: p\n",
            body,
            flags: Flags::default(),
            uid: None,
        };
        let folder = path.parent().unwrap().to_owned();
        let links = Links {
            uid: credentials::effective().uid,
            lent: Vec::new(),
            mail_roots: vec![folder.clone()],
        };
        let holder = links.open_holder(&folder, path);
        let (dir, path) = holder.map_err(|error| Fault::io("open", &error))?;
        Mbox::at(dir, path)?
            .lock(demands, |_| Ok(false))?
            .append(&message)
    }

    #[test]
    fn behind_whatever_is_there() {
        let new = format!("{FROM}\nR: p\nS: x\nContent-Length: 2\n\ny\n\n");
        for (before, gap) in [
            ("", ""),
            (OLD, ""),
            (OLD.trim_end_matches('\n'), "\n\n"),
            (&OLD[..OLD.len() - 1], "\n"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("box");
            fs::write(&path, before).unwrap();
            let appended = append(&path, "S: x\n\ny\n", None).unwrap();
            let all = fs::read_to_string(&path).unwrap();
            assert_eq!(all, format!("{before}{gap}{new}"));
            assert_eq!(appended.offset as usize, before.len() + gap.len());
            assert_eq!(appended.size as usize, new.len());
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn what_is_no_mbox_stays_as_it_is() {
        for text in ["export PATH=x\n", "Fro", "from a\n", "\nFrom a\n"] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(".bashrc");
            fs::write(&path, text).unwrap();
            let fault = append(&path, "S: x\n\ny\n", None).unwrap_err();
            assert!(fault.why.contains("no mbox"), "{fault}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    /// Somebody's mail by another name: made before, or while the lock is waited for.
    #[test]
    fn a_file_with_a_second_name() {
        let root = tempfile::tempdir().unwrap();
        let (path, other) = (root.path().join("box"), root.path().join("other"));
        fs::write(&path, OLD).unwrap();
        fs::hard_link(&path, &other).unwrap();
        let fault = append(&path, "S: x\n\ny\n", None).unwrap_err();
        assert_eq!(fault.why, MORE_NAMES);
        assert_eq!(fs::read_to_string(&path).unwrap(), OLD);
    }

    /// The lock of a mailbox is beside the mailbox.
    #[test]
    fn through_a_symlink() {
        let root = tempfile::tempdir().unwrap();
        let (link, real) = (root.path().join("link"), root.path().join("real"));
        fs::create_dir(&real).unwrap();
        fs::write(real.join("box"), OLD).unwrap();
        symlink("real/box", &link).unwrap();
        let lock = real.join("box.lock");
        fs::write(&lock, "1:elsewhere").unwrap();
        assert!(append(&link, "S: x\n\ny\n", None).is_err());
        fs::remove_file(lock).unwrap();
        append(&link, "S: x\n\ny\n", None).unwrap();
        assert!(fs::read_to_string(real.join("box")).unwrap().len() > OLD.len());
        for target in ["nowhere", "link2", "real"] {
            let other = root.path().join("link2");
            symlink(target, &other).unwrap();
            assert!(append(&other, "S: x\n\ny\n", None).is_err(), "{target}");
            fs::remove_file(other).unwrap();
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }

    #[test]
    fn every_step_fails_once() {
        let body = body(&format!("S: x\n\n{}\nline\nline\n", "x".repeat(135_000)));
        for failure in fault_point::FAILURES {
            for before in [None, Some(""), Some(OLD)] {
                for step in 0.. {
                    let root = tempfile::tempdir().unwrap();
                    let path = root.path().join("box");
                    if let Some(before) = before {
                        fs::write(&path, before).unwrap();
                    }
                    let permission = Permission::private(root.path());
                    fault_point::arm(step, failure);
                    let appended = append_body(&path, &body, Some(&permission));
                    let fired = !fault_point::disarm();
                    let case = format!("{before:?}, step {step}, {failure:?}: {appended:?}");
                    let after = fs::read_to_string(&path).ok();
                    match appended {
                        Ok(_) => assert!(after.unwrap().ends_with("line\nline\n\n"), "{case}"),
                        Err(fault) => {
                            assert!(fault.code.is_temporary(), "{case}");
                            let after = after.filter(|it| !it.is_empty());
                            assert_eq!(
                                after.as_deref(),
                                before.filter(|it| !it.is_empty()),
                                "{case}"
                            );
                        }
                    }
                    assert!(!root.path().join("box.lock").exists(), "{case}");
                    if !fired {
                        assert!(failure.is_of_writes() || step > 12, "only {step} steps");
                        break;
                    }
                }
            }
        }
    }

    /// Locked by one who has lost his lock, or gone while it is written to: then nothing is promised, and nothing of others goes.
    #[test]
    fn what_happens_behind_the_lock() {
        type Meddle = fn(&Path);
        let setups: [(&str, Meddle); 3] = [
            ("broken", |path| {
                fs::remove_file(path.with_extension("lock")).unwrap();
                let mut file = File::options().append(true).open(path).unwrap();
                file.write_all(OLD.as_bytes()).unwrap();
            }),
            ("unlinked", |path| fs::remove_file(path).unwrap()),
            ("renamed", |path| {
                fs::rename(path, path.with_extension("else")).unwrap();
            }),
        ];
        for (case, setup) in setups {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("box");
            fs::write(&path, OLD).unwrap();
            let locking = Locking::default();
            let demands = Demands {
                locking: &locking,
                quoting: Quoting::Mboxrd,
                sync: true,
                make: None,
                owner: None,
            };
            let body = body("S: x\n\ny\n");
            let message = Message {
                from_line: FROM,
                header: b"",
                body: &body,
                flags: Flags::default(),
                uid: None,
            };
            let mbox = Mbox::at(Dir::open(root.path()).unwrap(), path.clone()).unwrap();
            let open = mbox.lock(demands, |_| Ok(false)).unwrap();
            setup(&path);
            let fault = open.append(&message).unwrap_err();
            assert!(fault.code.is_temporary(), "{case}");
            let left = fs::read_to_string(&path);
            let left = left.or_else(|_| fs::read_to_string(path.with_extension("else")));
            let want = match case {
                "broken" => OLD.repeat(2),
                "renamed" => OLD.into(),
                _ => String::new(),
            };
            assert_eq!(left.unwrap_or_default(), want, "{case}");
        }
    }

    /// What those do who know none of our locks, before each step: a promise holds, and nothing goes that they have added behind it.
    #[test]
    fn what_others_do_without_locks() {
        type Meddle = fn(&Path);
        let add: Meddle = |path| {
            let mut file = File::options().append(true).open(path).unwrap();
            file.write_all(OLD.as_bytes()).unwrap();
        };
        let cut: Meddle = |path| File::create(path).unwrap().set_len(0).unwrap();
        let unlock: Meddle = |path| {
            let _ = fs::remove_file(path.with_extension("lock"));
        };
        let link: Meddle = |path| {
            let _ = fs::hard_link(path, path.with_extension("second"));
        };
        for (case, meddle) in [
            ("add", add),
            ("cut", cut),
            ("unlock", unlock),
            ("link", link),
        ] {
            let (mut refused, mut not_last) = (0, 0);
            for step in 0.. {
                let root = tempfile::tempdir().unwrap();
                let path = root.path().join("box");
                fs::write(&path, OLD).unwrap();
                let theirs = path.clone();
                fault_point::meddle(step, move || meddle(&theirs));
                let appended = append(&path, "S: x\n\ny\n", None);
                let fired = !fault_point::disarm();
                let case = format!("{case}, step {step}: {appended:?}");
                let after = fs::read_to_string(&path).unwrap();
                match appended {
                    // Behind the last look at it: its reader's to do.
                    Ok(_) if after.is_empty() => {}
                    Ok(appended) => {
                        let (from, size) = (appended.offset as usize, appended.size as usize);
                        let new = format!("{FROM}\nR: p\nS: x\nContent-Length: 2\n\ny\n\n");
                        assert_eq!(after[from..from + size], new, "{case}");
                        let seen = appended.stat.size as usize;
                        assert_eq!(appended.is_last, seen == from + size, "{case}");
                        not_last += usize::from(!appended.is_last);
                        assert!(appended.is_last || after.ends_with(OLD), "{case}");
                    }
                    Err(fault) => {
                        refused += 1;
                        assert!(fault.code.is_temporary(), "{case}");
                        assert!(!after.contains(FROM) || step > 12, "{case}");
                    }
                }
                if !fired {
                    break;
                }
            }
            match case {
                "add" => assert!(refused == 0 && not_last > 0, "{not_last}"),
                _ => assert!(refused > 1 && not_last == 0, "{case}: {refused}"),
            }
        }
    }

    /// It is not touched, whatever was left in it.
    #[test]
    fn an_inbox_of_somebody_else() {
        let root = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = root.path().join("box");
        let begun = format!("{OLD}{FROM}\nS: cut");
        fs::write(&path, &begun).unwrap();
        let own = fs::metadata(&path).unwrap().uid();
        let locking = Locking::default();
        for (owner, is_taken) in [(None, true), (Some(own), true), (Some(own + 7), own == 0)] {
            let file = File::options().write(true).open(&path).unwrap();
            torn::note(&file, OLD.len() as u64, OLD.len() as u64, 0, FROM);
            let demands = Demands {
                locking: &locking,
                quoting: Quoting::Mboxrd,
                sync: true,
                make: None,
                owner,
            };
            let mbox = Mbox::at(Dir::open(root.path()).unwrap(), path.clone()).unwrap();
            assert_eq!(
                mbox.lock(demands, |_| Ok(false)).is_ok(),
                is_taken,
                "{owner:?}"
            );
            let left = if is_taken { OLD } else { &begun };
            assert_eq!(fs::read_to_string(&path).unwrap(), left, "{owner:?}");
            fs::write(&path, &begun).unwrap();
        }
    }

    /// New mail: written behind the last time it was read.
    #[test]
    fn it_is_unread_and_keeps_its_mode() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("box");
        fs::write(&path, OLD).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let read = SystemTime::now() - Duration::from_secs(1000);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_times(FileTimes::new().set_accessed(read)).unwrap();
        append(&path, "S: x\n\ny\n", None).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.accessed().unwrap(), read);
        assert!(meta.modified().unwrap() > read);
        assert_eq!(meta.permissions().mode() & 0o777, 0o640);
    }
}
