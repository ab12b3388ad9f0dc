//! Saving one message.
//!
//! A message is in one of three states: written (an unnamed file, or one in `tmp/`: ours, invisible), linked (its name is in
//! `new/`), durable (it and `new/` are synced). A name in `new/` is complete and, whatever happens, is not there without its bytes;
//! dropped before it is linked, a message leaves nothing behind; a crash leaves at worst a file in `tmp/`.
//!
//! On an [ordered](write_back) file system a message is written back before it is linked, and whatever is synced behind that has it
//! and its name; elsewhere it is synced first.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::Maildir;
use super::filename::{self, Names};
use crate::fault::{Code, Fault};
use crate::mailbox::permission::{Permission, how_to_inherit};
use crate::message::{Body, Flags};
use crate::sys;
use crate::sys::dir::{self, Dir, Stat};
use crate::sys::write_back;

/// Names tried before giving up: the first one is always free, unless someone plays games.
const MAX_NAMES: usize = 10;
/// Bytes that arrive while the locks are taken; for more of them nobody else is to wait.
const AT_ONCE: u64 = 64 * 1024;

/// A complete message that has no name in `new/` yet. Copies for other mailboxes can be linked to it.
#[derive(Debug)]
pub struct Written {
    file: File,
    /// Written back at least, and synced before it is answered.
    durability: Durability,
    /// Its name in `tmp/` where unnamed files cannot be had. Removed on drop.
    named: Option<(Dir, String)>,
    /// Bytes in the file (`,S=` in its name).
    pub size: u64,
    /// Bytes with every line end as CRLF (`,W=`).
    pub virtual_size: u64,
    pub mode: u32,
    pub gid: u32,
    /// Waiting for the disk.
    pub synced: Duration,
    /// Why mode or group are not as planned.
    pub remark: Option<String>,
}

/// How far the bytes of a message have come.
#[derive(Debug)]
enum Durability {
    /// As far as they have to.
    Done,
    /// On their way: whether they have arrived, and whether they are synced. Each is asked once, for all names of the message: a failure is
    /// told once, and whoever asks again hears that all is well.
    UnderWay { arrived: Once, synced: Once },
}

/// The answer to what is asked once: an errno where there is one.
type Once = OnceLock<Result<(), Option<i32>>>;

fn once(answer: &Once, ask: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let ask = || ask().map_err(|error| error.raw_os_error());
    answer.get_or_init(ask).map_err(|errno| match errno {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other("its bytes are not on the disk"),
    })
}

/// How a message is to be written.
#[derive(Debug, Clone, Copy)]
pub struct Demands {
    /// Mode and group must be the planned ones, or nothing is stored.
    pub verified: bool,
    /// Durable before it is answered.
    pub sync: bool,
}

impl Written {
    /// Sends its bytes on their way.
    fn start(&mut self) -> io::Result<()> {
        write_back::start(&self.file)?;
        self.durability = Durability::UnderWay {
            arrived: Once::new(),
            synced: Once::new(),
        };
        Ok(())
    }

    /// Whatever happens from here on, it is not seen without its bytes.
    fn arrive(&self) -> io::Result<()> {
        match &self.durability {
            Durability::Done => Ok(()),
            Durability::UnderWay { arrived, .. } => once(arrived, || write_back::wait(&self.file)),
        }
    }

    /// True: the names that it had before are durable too. False: it was synced when it did not have all of them.
    fn sync(&self) -> io::Result<bool> {
        let Durability::UnderWay { synced, .. } = &self.durability else {
            return Ok(false);
        };
        let mut is_synced_now = false;
        let synced = once(synced, || {
            is_synced_now = true;
            dir::sync_file(&self.file)
        });
        synced.map(|()| is_synced_now)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if let Some((tmp, name)) = &self.named {
            // A failure leaves a file in tmp/, which every Maildir reader removes in time.
            let _ = tmp.unlink(name);
        }
    }
}

impl Maildir {
    /// Writes `header` and `body` into a file that nobody sees, with the mailbox's mode and group, synced or on its way to the disk.
    pub fn write(
        &self,
        names: &Names,
        header: &[u8],
        body: &Body,
        demands: Demands,
    ) -> Result<Written, Fault> {
        let failed =
            |error: io::Error| Fault::io(format!("write into {}/tmp", self.path.display()), &error);
        let (file, named) = self.temporary(names).map_err(failed)?;
        let mut written = Written {
            size: header.len() as u64 + body.size(),
            virtual_size: header.len() as u64 + count_lines(header) + body.virtual_size(),
            mode: 0,
            gid: 0,
            synced: Duration::ZERO,
            remark: None,
            durability: Durability::Done,
            named,
            file,
        };
        body.copy_to(header, &written.file).map_err(failed)?;
        self.verify(&mut written, demands)?;
        if demands.sync {
            let failed =
                |error| Fault::io(format!("sync a message in {}", self.path.display()), &error);
            let began = Instant::now();
            match write_back::is_ordered(&written.file, self.device()) {
                true => {
                    written.start().map_err(failed)?;
                    // Nobody else waits yet.
                    if written.size > AT_ONCE {
                        written.arrive().map_err(failed)?;
                    }
                }
                false => dir::sync_file(&written.file).map_err(failed)?,
            }
            written.synced = began.elapsed();
        }
        Ok(written)
    }

    /// An unnamed file, or one in `tmp/` where the file system has none.
    fn temporary(&self, names: &Names) -> io::Result<(File, Option<(Dir, String)>)> {
        // Some file systems have none; asking each time would cost a call per message.
        static WITHOUT: AtomicBool = AtomicBool::new(false);
        let mode = self.permission.file_mode;
        if !WITHOUT.load(Ordering::Relaxed) {
            match self.tmp.unnamed_file(mode) {
                Ok(file) => return Ok((file, None)),
                Err(error) if sys::is_unsupported(&error) => WITHOUT.store(true, Ordering::Relaxed),
                Err(error) => return Err(error),
            }
        }
        let name = names.unique();
        let file = self.tmp.create_new(&name, mode)?;
        Ok((file, Some((self.tmp.clone(), name))))
    }

    /// Mode and group as planned and the size as counted: looked at, not believed.
    fn verify(&self, written: &mut Written, demands: Demands) -> Result<(), Fault> {
        let failed = |error: io::Error| {
            Fault::io(
                format!("look at a new file in {}/tmp", self.path.display()),
                &error,
            )
        };
        let (settled, stat) = settle(&written.file, &self.permission).map_err(failed)?;
        if stat.size != written.size {
            let why = format!("{} bytes of {} are in the file", stat.size, written.size);
            return Err(Fault::new(
                Code::Storage,
                format!("write into {}/tmp", self.path.display()),
                why,
            ));
        }
        (written.mode, written.gid) = (stat.mode, stat.gid);
        let wanted_gid = self.permission.gid.unwrap_or(stat.gid);
        if (stat.mode, stat.gid) == (self.permission.file_mode, wanted_gid) {
            return Ok(());
        }
        let path = self.path.display();
        let cause = settled
            .err()
            .map_or(String::new(), |error| format!(": {error}"));
        let why = format!(
            "the file has mode {:04o} and group {}, the mailbox asks for {:04o} and {wanted_gid}{cause}",
            stat.mode, stat.gid, self.permission.file_mode
        );
        if demands.verified {
            let advice = how_to_inherit(&self.path, wanted_gid);
            return Err(
                Fault::new(Code::Permissions, format!("store in {path}"), why).with_advice(advice),
            );
        }
        written.remark = Some(why);
        Ok(())
    }

    /// Waits until its bytes have arrived, for a name that is to be made at once.
    pub fn arrive(&self, written: &Written) -> Result<(), Fault> {
        written.arrive().map_err(|error| self.not_shown(&error))
    }

    fn not_shown(&self, error: &io::Error) -> Fault {
        let doing = format!("make a message visible in {}", self.path.display());
        Fault::io(doing, error)
    }

    /// Gives the message a name in `new/`, or with flags or keywords (their letters) in `cur/`: from here on readers see it.
    /// Answers the name. `wanted`: what it is to be, without sizes and flags, where it is free.
    pub fn link(
        &self,
        names: &Names,
        mut wanted: Option<String>,
        written: &mut Arc<Written>,
        flags: Flags,
        keywords: &str,
    ) -> Result<String, Fault> {
        let failed = |error: io::Error| self.not_shown(&error);
        let cur = match flags.is_empty() && keywords.is_empty() {
            true => None,
            false => Some(self.cur().map_err(failed)?),
        };
        let place = cur.as_ref().unwrap_or(&self.new);
        written.arrive().map_err(failed)?;
        for _ in 0..MAX_NAMES {
            let name = wanted.take().unwrap_or_else(|| names.unique());
            let name = filename::with_sizes(&name, written.size, written.virtual_size);
            let name = filename::with_flags(name, flags, keywords);
            let moved = match Arc::get_mut(written) {
                // A named file that nobody else links to is moved; everything else gets another name.
                Some(Written {
                    named: named @ Some(_),
                    ..
                }) => rename(named, place, &name),
                _ => Err(io::ErrorKind::Unsupported.into()),
            };
            let linked = match moved {
                // NFS cannot move without replacing.
                Err(error) if sys::is_unsupported(&error) => place.link(&written.file, &name),
                other => other,
            };
            let error = match linked {
                Ok(()) => return Ok(name),
                Err(error) => error,
            };
            match is_of(place, &name, &written.file) {
                // A file server that has done it may be asked again, and answer that.
                Ok(true) => return Ok(name),
                Ok(false) if error.kind() == io::ErrorKind::AlreadyExists => {}
                // It may have done it before it went away, or do it yet.
                found if found.is_err() || Code::from_io(&error) == Code::Storage => {
                    return Err(failed(error).perhaps_stored());
                }
                _ => return Err(failed(error)),
            }
        }
        Err(failed(io::ErrorKind::AlreadyExists.into()))
    }

    /// Makes these messages and their names durable. `is_committed`: something that was written behind them has been synced, on their
    /// file system.
    pub fn sync(
        &self,
        linked: &[(&Written, &str)],
        is_committed: impl Fn() -> bool,
    ) -> io::Result<()> {
        let (mut new, mut cur) = (false, false);
        for (written, name) in linked {
            let is_durable = match written.durability {
                Durability::Done => false,
                Durability::UnderWay { .. } => is_committed() || written.sync()?,
            };
            match filename::has_flags(name) {
                true => cur |= !is_durable,
                false => new |= !is_durable,
            }
        }
        if new {
            self.new.sync()?;
        }
        match cur {
            true => self.cur()?.sync(),
            false => Ok(()),
        }
    }

    /// The same of a message that an earlier process has stored, perhaps without an answer. Err: it is not seen, for a reader may move it
    /// meanwhile; or it is, and what its sync says.
    pub fn sync_found(&self, name: &str) -> io::Result<io::Result<()>> {
        let base = filename::base(name.as_bytes());
        for part in [self.new.clone(), self.cur()?] {
            if let Some(name) = find_in(&part, base)? {
                let file = part.read(name)?;
                return Ok(dir::sync_file(&file).and_then(|()| part.sync()));
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Takes a name back, also where a reader has moved it meanwhile: the message was not made durable and will come again.
    pub fn unlink(&self, name: &str) -> io::Result<()> {
        let place = match filename::has_flags(name) {
            true => self.cur()?,
            false => self.new.clone(),
        };
        match place.unlink(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let cur = self.cur()?;
                let moved = find_in(&cur, filename::base(name.as_bytes()))?.ok_or(error)?;
                cur.unlink(moved)
            }
            done => done,
        }
    }

    /// The device that messages of this mailbox are written to.
    pub fn device(&self) -> u64 {
        self.tmp_stat.dev
    }
}

/// The name in `part` that is this without its flags.
fn find_in(part: &Dir, base: &[u8]) -> io::Result<Option<OsString>> {
    let mut found = None;
    part.each_raw_name(|name| {
        if filename::base(name.as_bytes()) == base {
            found = Some(name.to_owned());
        }
    })?;
    Ok(found)
}

/// Moves a file of `tmp/`; once it has moved there is nothing left to remove.
fn rename(named: &mut Option<(Dir, String)>, new: &Dir, name: &str) -> io::Result<()> {
    if let Some((tmp, temporary)) = named {
        tmp.rename(temporary, new, name)?;
        *named = None;
    }
    Ok(())
}

/// Whether `name` is one of `file`.
fn is_of(place: &Dir, name: &str, file: &File) -> io::Result<bool> {
    match place.stat_name(name) {
        Ok(named) => Ok(named.identity() == dir::stat_file(file)?.identity()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Mode and group of a file that was just created, exact whatever the umask and the directory did. Answers what could not be
/// set, and how the file is now.
pub(super) fn settle(file: &File, permission: &Permission) -> io::Result<(io::Result<()>, Stat)> {
    let stat = dir::stat_file(file)?;
    let wanted_gid = permission.gid.filter(|gid| *gid != stat.gid);
    if wanted_gid.is_none() && stat.mode == permission.file_mode {
        return Ok((Ok(()), stat));
    }
    let grouped = wanted_gid.map_or(Ok(()), |gid| dir::set_file_group(file, gid));
    // Behind the group: another one takes setgid away.
    let settled = dir::set_file_mode(file, permission.file_mode).and(grouped);
    Ok((settled, dir::stat_file(file)?))
}

fn count_lines(header: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', header).count() as u64
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::message::body::{BodyWriter, Spool};
    use crate::sys::fault_point;

    const DEMANDS: Demands = Demands {
        verified: false,
        sync: true,
    };

    /// A disk that fails says so once: whoever shares the copy is not to be told that it is there.
    #[test]
    fn bytes_that_have_not_arrived_get_no_second_name() {
        let root = tempfile::tempdir().unwrap();
        for part in ["cur", "new", "tmp"] {
            fs::create_dir(root.path().join(part)).unwrap();
        }
        let mailbox = Maildir::at(Dir::open(root.path()).unwrap(), root.path()).unwrap();
        let (names, body) = (Names::new("mx", 1), BodyWriter::new(&Spool::default()));
        let body = body.finish().unwrap();
        let mut written = mailbox.write(&names, b"x", &body, DEMANDS).unwrap();
        written.start().unwrap();
        let written = Arc::new(written);
        let link = || {
            let mut written = Arc::clone(&written);
            mailbox.link(&names, None, &mut written, Flags::default(), "")
        };
        fault_point::arm(0, fault_point::ERRNOS[0]);
        let first = link();
        assert!(!fault_point::disarm());
        let second = link();
        assert!(first.is_err() && second.is_err(), "{first:?} {second:?}");
    }

    /// The request is sent twice, or its answer is lost: the message is there once, and that is what is said.
    #[test]
    fn a_file_server_that_has_done_it_already() {
        let lost = fault_point::ERRNOS.into_iter().map(Some);
        for (is_named, errno) in lost.chain([None]).flat_map(|it| [(false, it), (true, it)]) {
            let root = tempfile::tempdir().unwrap();
            let path = |below: &str| root.path().join(below);
            for part in ["cur", "new", "tmp"] {
                fs::create_dir(path(part)).unwrap();
            }
            let mailbox = Maildir::at(Dir::open(root.path()).unwrap(), root.path()).unwrap();
            let (names, body) = (Names::new("mx", 1), BodyWriter::new(&Spool::default()));
            let body = body.finish().unwrap();
            let mut written = mailbox.write(&names, b"x", &body, DEMANDS).unwrap();
            mailbox.tmp.link(&written.file, "t").unwrap();
            if is_named {
                written.named = Some((mailbox.tmp.clone(), "t".into()));
            }
            let (from, to) = (path("tmp/t"), path("new/m,S=1,W=1"));
            let done = move || fs::rename(from, to).unwrap();
            match errno {
                Some(errno) => fault_point::fail_behind(0, errno, done),
                None => fault_point::meddle(0, done),
            }
            let (wanted, mut written) = (Some("m".to_owned()), Arc::new(written));
            let linked = mailbox.link(&names, wanted, &mut written, Flags::default(), "");
            assert!(!fault_point::disarm());
            drop(written);
            let case = format!("named: {is_named}, {errno:?}: {linked:?}");
            assert_eq!(linked.as_deref().ok(), Some("m,S=1,W=1"), "{case}");
            for (part, count) in [("tmp", 0), ("new", 1)] {
                assert_eq!(fs::read_dir(path(part)).unwrap().count(), count, "{case}");
            }
        }
    }

    /// A mailbox that stays open is looked into by several at once.
    #[test]
    fn each_finds_its_own_message() {
        let root = tempfile::tempdir().unwrap();
        for part in ["cur", "new", "tmp"] {
            fs::create_dir(root.path().join(part)).unwrap();
        }
        let names: Vec<String> = (0..200).map(|number| format!("{number}.M1P2.mx")).collect();
        for name in &names {
            fs::write(root.path().join("new").join(name), "").unwrap();
        }
        let mailbox = Maildir::at(Dir::open(root.path()).unwrap(), root.path()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let look = || names.iter().map(|name| mailbox.sync_found(name).flatten());
                scope.spawn(move || look().collect::<io::Result<()>>().unwrap());
            }
        });
    }
}
