//! Maildir: a message is a file, complete and durable before it has a name in `new/`.
//!
//! A bare file in `new/` is a complete delivery beside a live Dovecot: it gives the UID when it looks.
//!
//! | file | what it is |
//! |---|---|
//! | [`list`] | which mailboxes are there |
//! | [`create`], [`created`] | a mailbox is made, and undone where that fails |
//! | [`save`], [`filename`] | a message is written, and gets its name |
//! | [`locks`] | of a mailbox's files, and what a crash leaves of them |
//! | [`uidlist`], [`uidvalidity`], [`guid`], [`upgrade`] | its UIDs, and what tells it from others |
//! | [`keywords`] | which letter stands for which |
//! | [`maildirsize`] | how much a user's mailboxes hold |
//! | [`survey`], [`mend`] | for `postroom doctor`: what is wrong, and the list of UIDs without it |

pub mod create;
pub mod created;
pub mod filename;
pub mod guid;
pub mod keywords;
pub mod list;
pub mod locks;
pub mod maildirsize;
pub mod mend;
pub mod save;
pub mod survey;
pub mod uidlist;
pub mod uidvalidity;
pub mod upgrade;

use std::collections::HashSet;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fault::{Code, Fault};
use crate::mailbox::permission::Permission;
use crate::sys;
use crate::sys::dir::{self, Dir, Stat};
use crate::sys::dotlock::{Claim, Spare};
use filename::Names;

/// The names in `new/` and `cur/`, without their flags. A file that another reader renames meanwhile may be missed.
pub fn base_names(mailbox: &Path) -> io::Result<HashSet<Vec<u8>>> {
    let mut names = HashSet::new();
    // New ones first: a message moves from there to `cur/`.
    for part in ["new", "cur"] {
        Dir::open(&mailbox.join(part))?.each_raw_name(|name| {
            names.insert(filename::base(name.as_bytes()).to_owned());
        })?;
    }
    Ok(names)
}

/// What is there of a mailbox.
#[derive(Debug)]
pub enum Look {
    Whole(Maildir),
    /// `cur`, `new` or `tmp` is missing: a delivery makes it again. Its directory, and `tmp` where that is there.
    Incomplete {
        directory: Stat,
        tmp: Option<Stat>,
    },
}

/// An open Maildir.
#[derive(Debug)]
pub struct Maildir {
    path: PathBuf,
    dir: Dir,
    tmp: Dir,
    new: Dir,
    tmp_stat: Stat,
    new_stat: Stat,
    permission: Permission,
    /// For the lock of its list.
    spare: Mutex<Reuse>,
}

/// A lock file that is kept where it is worth it.
#[derive(Debug)]
enum Reuse {
    /// Not before so many locks more.
    In(u32),
    Spare(Arc<Spare>),
    /// It cannot be had.
    Never,
}

impl Default for Reuse {
    fn default() -> Reuse {
        Reuse::In(3)
    }
}

impl Maildir {
    /// Opens what delivery needs of the mailbox in `dir`, whose name is `path`. Makes a missing one of `cur`, `new`, `tmp` again,
    /// with the mailbox's permissions.
    pub fn at(dir: Dir, path: &Path) -> Result<Maildir, Fault> {
        let failed =
            |error: io::Error| Fault::io(format!("open the mailbox {}", path.display()), &error);
        let permission = Permission::of(&dir.stat().map_err(failed)?, path);
        let open = |name: &str| match dir.open_dir(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create::complete(&dir, &permission)?;
                dir.open_dir(name).map_err(failed)
            }
            other => {
                other.map_err(|error| Fault::io(format!("open {}/{name}", path.display()), &error))
            }
        };
        // Without `cur` Dovecot sees no mailbox.
        match dir.stat_name("cur") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create::complete(&dir, &permission)?;
            }
            _ => {}
        }
        let (tmp, new) = (open("tmp")?, open("new")?);
        Maildir::of(dir, path, permission, (tmp, new)).map_err(failed)
    }

    fn of(
        dir: Dir,
        path: &Path,
        permission: Permission,
        (tmp, new): (Dir, Dir),
    ) -> io::Result<Maildir> {
        Ok(Maildir {
            path: path.to_owned(),
            tmp_stat: tmp.stat()?,
            new_stat: new.stat()?,
            dir,
            tmp,
            new,
            permission,
            spare: Mutex::default(),
        })
    }

    /// The ACL that a new file has beside its mode (acl(5)), as the kernel keeps it.
    pub fn acl_of_new(&self) -> io::Result<Option<Vec<u8>>> {
        let mut acl = self.tmp.xattr("system.posix_acl_default");
        if acl.as_ref().is_err_and(sys::is_unsupported) {
            // Over NFS 4 files inherit from the directory's own.
            acl = self.tmp.xattr("system.nfs4_acl");
        }
        match acl {
            // The file system has none.
            Err(error) if sys::is_unsupported(&error) => Ok(None),
            acl => acl,
        }
    }

    /// Opens the mailbox in `dir` as a delivery would, but makes nothing. Err: the part of it that cannot be used, and why.
    pub fn look(dir: Dir, path: &Path) -> Result<Look, (&'static str, io::Error)> {
        let part = |name: &'static str| {
            let opened = match dir.open_dir(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    dir.may_change().map(|()| None)
                }
                opened => opened.and_then(|part| part.may_change().map(|()| Some(part))),
            };
            opened.map_err(|error| (name, error))
        };
        let failed = |error| ("cur", error);
        let has_cur = match dir.stat_name("cur") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                dir.may_change().map(|()| false).map_err(failed)?
            }
            found => found.map(|_| true).map_err(failed)?,
        };
        let directory = dir.stat().map_err(failed)?;
        match (part("tmp")?, part("new")?) {
            (Some(tmp), Some(new)) if has_cur => {
                let permission = Permission::of(&directory, path);
                let mailbox = Maildir::of(dir, path, permission, (tmp, new)).map_err(failed)?;
                Ok(Look::Whole(mailbox))
            }
            (tmp, _) => Ok(Look::Incomplete {
                directory,
                tmp: tmp.map(|tmp| tmp.stat()).transpose().map_err(failed)?,
            }),
        }
    }

    /// Looks again: whether it still has its name, and new files in it are to look the same.
    pub fn is_unchanged(&self) -> bool {
        self.has_its_permission() && self.check_name(&self.path).is_ok()
    }

    /// The second half of it.
    pub fn has_its_permission(&self) -> bool {
        let directory = self.dir.stat();
        let permission = directory.map(|it| Permission::of(&it, &self.path));
        permission.is_ok_and(|it| it == self.permission)
    }

    /// `tmp`, as it was when it was opened.
    pub fn tmp(&self) -> &Stat {
        &self.tmp_stat
    }

    /// What new files must look like.
    pub fn permission(&self) -> &Permission {
        &self.permission
    }

    /// Device and inode of `new/`: equal for all names of one mailbox.
    pub fn identity(&self) -> (u64, u64) {
        self.new_stat.identity()
    }

    /// The name that it was opened by. Another mailbox may have it by now: [`Maildir::check_name`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its directory, whatever has its name by now.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// A fault when its name `path` is that of another mailbox by now, or of none: then it is being deleted, or is somewhere
    /// else.
    pub fn check_name(&self, path: &Path) -> Result<(), Fault> {
        let why = match dir::stat(&path.join("new")) {
            Ok(there) if there.identity() == self.identity() => return Ok(()),
            Ok(_) => "another mailbox has its name now".into(),
            Err(error) => error.to_string(),
        };
        let doing = format!("make a message visible in {}", path.display());
        Err(Fault::new(Code::NotNow, doing, why))
    }

    /// The lock file that its list was locked with before; none while somebody has it.
    pub fn spare_lock(&self) -> Option<Claim> {
        match &*self.spare() {
            Reuse::Spare(spare) => spare.claim(),
            Reuse::In(_) | Reuse::Never => None,
        }
    }

    /// One that is kept for the next time, where it is locked again and again. `names`: for the name that it has in `tmp/`.
    pub fn make_spare_lock(&self, names: &Names) -> Option<Claim> {
        let mut reuse = self.spare();
        let made = match &*reuse {
            Reuse::In(more @ 1..) => Reuse::In(more - 1),
            Reuse::In(0) => {
                let mode = self.permission.file_mode;
                let made = Spare::make(
                    &self.dir,
                    mode,
                    &self.tmp,
                    format!("{}.lock", names.unique()),
                );
                made.ok().flatten().map_or(Reuse::Never, Reuse::Spare)
            }
            Reuse::Spare(_) | Reuse::Never => return None,
        };
        *reuse = made;
        drop(reuse);
        self.spare_lock()
    }

    fn spare(&self) -> MutexGuard<'_, Reuse> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no message is in it.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.new.is_empty()? && self.cur()?.is_empty()?)
    }

    /// The whole name of a message whose name is one of these: with sizes or without them, whatever its flags are by now.
    pub fn find(&self, starts: &[String]) -> io::Result<Option<String>> {
        let mut found = None;
        let starts = starts.iter().filter_map(|it| it.split(':').next());
        let starts: Vec<&str> = starts.collect();
        // New ones first: a message moves from there to `cur/`.
        for part in [self.new.clone(), self.cur()?] {
            part.each_name(|name| {
                let rest = starts.iter().find_map(|it| name.strip_prefix(it));
                if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([',', ':'])) {
                    found = Some(name.to_owned());
                }
            })?;
        }
        Ok(found)
    }

    /// Where messages with flags are; most deliveries have none.
    fn cur(&self) -> io::Result<Dir> {
        self.dir.open_dir("cur")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn which_message_has_a_name() {
        // what is there; the names that are looked for; whether one of them is its
        for (there, starts, is_found) in [
            ("new/1.M1P1.mx,S=3,W=4", &["1.M1P1.mx"][..], true),
            (
                "cur/1.M1P1.mx,S=3,W=4:2,S",
                &["2.M2P2.mx", "1.M1P1.mx"],
                true,
            ),
            ("new/1.M1P1.mx,S=3,W=4", &["1.M1P1.mx,S=3,W=4"], true),
            ("cur/1.M1P1.mx,S=3,W=4:2,S", &["1.M1P1.mx,S=3,W=4"], true),
            (
                "cur/1.M1P1.mx,S=3,W=4:2,FS",
                &["1.M1P1.mx,S=3,W=4:2,F"],
                true,
            ),
            ("cur/1.M1P1.mx:2,S", &["1.M1P1.mx"], true),
            ("new/1.M1P11.mx,S=3,W=4", &["1.M1P1"], false),
            ("new/1.M1P1.mx,S=33,W=4", &["1.M1P1.mx,S=3"], false),
            ("new/1.M1P1.mx,S=3,W=4", &[""], false),
        ] {
            let root = tempfile::tempdir().unwrap();
            for part in ["cur", "new", "tmp"] {
                fs::create_dir(root.path().join(part)).unwrap();
            }
            fs::write(root.path().join(there), "").unwrap();
            let mailbox = Maildir::at(Dir::open(root.path()).unwrap(), root.path()).unwrap();
            let starts: Vec<String> = starts.iter().map(|&it| it.to_owned()).collect();
            let found = mailbox.find(&starts).unwrap();
            let want = is_found.then(|| there.split_once('/').unwrap().1);
            assert_eq!(found.as_deref(), want, "{there} {starts:?}");
        }
    }
}
