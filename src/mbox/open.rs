//! An mbox by its real place, and the look at it under its locks.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::append::Open;
use super::lock::Locking;
use super::text::Quoting;
use super::torn;
use crate::fault::{Code, Fault};
use crate::mailbox::permission::Permission;
use crate::sys;
use crate::sys::dir::{self, Dir, Stat};
use crate::sys::fault_point::pass;

/// Locked by one name it can be written to by the other, and nobody knows whose mail the other is.
pub const MORE_NAMES: &str =
    "it has more than one name (hard links): its locks would hold for one of them only";

/// Somebody's file, and no mailbox.
pub const NO_MBOX: &str = "it does not begin with \"From \": it is no mbox";

/// An mbox by its real place: its locks lie beside the file, not beside a symlink to it.
#[derive(Debug)]
pub struct Mbox {
    path: PathBuf,
    pub(super) dir: Dir,
    pub(super) name: String,
}

/// What tells mboxes apart, also those that are not there yet: device and inode of the directory, and the name.
pub type Key = (u64, u64, String);

/// How messages are added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demands {
    pub locking: Locking,
    pub quoting: Quoting,
    /// Durable before it is answered.
    pub sync: bool,
    /// For a file that is missing; none: it must be there.
    pub make: Option<Permission>,
    /// Whose INBOX it is: nobody else but root may have it.
    pub owner: Option<u32>,
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

    /// That of the file, where a symlink has its name; directories on the way may be symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same by whatever path the directory was opened. Err: it cannot be looked at, with the code of that error.
    pub fn key(&self) -> Result<Key, Fault> {
        let stat = self.dir.stat().map_err(|error| self.failed(error))?;
        Ok((stat.dev, stat.ino, self.name.clone()))
    }

    /// Opened under its locks, and looked at. [`Code::Storage`] when somebody holds one for too long, and for longer than `patience`.
    /// `has_seen`: whether a reader may know more than so many bytes of it; then what a killed delivery has left stays.
    pub fn lock<'a>(
        &'a self,
        demands: &'a Demands,
        patience: Duration,
        has_seen: impl FnOnce(u64) -> io::Result<bool>,
    ) -> Result<Open<'a>, Fault> {
        let failed = |error| self.failed(error);
        let open = || self.open(demands.make.as_ref());
        let locked = demands
            .locking
            .lock(&self.dir, &self.name, patience, open)
            .map_err(failed)?;
        let checked = check_whose(&locked.stat, demands.owner);
        checked.map_err(|why| self.refused(why))?;
        let before = torn::remove(&locked.file, locked.stat, has_seen).map_err(failed)?;
        if !is_mbox(&locked.file, &before).map_err(failed)? {
            return Err(self.refused(NO_MBOX.into()));
        }
        Ok(Open::new(self, demands, locked, before))
    }

    /// Whether it is an mbox as far as can be seen without its locks: what a killed delivery has left may be all that is there.
    pub fn looks_like_one(&self) -> io::Result<bool> {
        let (file, stat) = self.dir.open_unread(&self.name)?;
        Ok(is_mbox(&file, &stat)? || torn::is_noted(&file))
    }

    fn refused(&self, why: String) -> Fault {
        let doing = format!("append to {}", self.path.display());
        Fault::new(Code::Unusable, doing, why)
    }

    /// A lock that somebody holds for too long is [`Code::Storage`].
    pub(super) fn failed(&self, error: io::Error) -> Fault {
        let doing = format!("append to {}", self.path.display());
        match error.kind() {
            ErrorKind::TimedOut => Fault::new(Code::Storage, doing, error.to_string()),
            _ => Fault::io(doing, &error),
        }
    }

    /// The file, for reading and writing; made where it is missing and may be.
    fn open(&self, make: Option<&Permission>) -> io::Result<(File, Stat)> {
        let opened = self.dir.open_to_change_unread(&self.name);
        match (opened, make) {
            (Err(error), Some(permission)) if error.kind() == ErrorKind::NotFound => {
                match self.make(permission) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                    made => made?,
                }
                self.dir.open_to_change_unread(&self.name)
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
