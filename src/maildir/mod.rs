//! Maildir: a message is a file, complete and durable before it has a name in `new/`.
//!
//! A bare file in `new/` is a complete delivery beside a live Dovecot: it gives the UID when it looks.

pub mod create;
pub mod filename;
pub mod guid;
pub mod keywords;
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

use crate::fault::{Code, Fault};
use crate::mailbox::permission::Permission;
use crate::sys::dir::{self, Dir, Stat};

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
        let (tmp_stat, new_stat) = (tmp.stat().map_err(failed)?, new.stat().map_err(failed)?);
        Ok(Maildir {
            path: path.to_owned(),
            dir,
            tmp,
            new,
            tmp_stat,
            new_stat,
            permission,
        })
    }

    /// What new files must look like.
    pub fn permission(&self) -> &Permission {
        &self.permission
    }

    /// Device and inode of `new/`: equal for all names of one mailbox.
    pub fn identity(&self) -> (u64, u64) {
        self.new_stat.identity()
    }

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

    /// Whether no message is in it.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.dir.open_dir("new")?.is_empty()? && self.cur()?.is_empty()?)
    }

    /// The whole name of a message whose name is one of these, before sizes and flags.
    pub fn find(&self, starts: &[String]) -> io::Result<Option<String>> {
        let mut found = None;
        // New ones first: a message moves from there to `cur/`.
        for part in [self.dir.open_dir("new")?, self.cur()?] {
            part.each_name(|name| {
                let rest = starts.iter().find_map(|it| name.strip_prefix(it.as_str()));
                if rest.is_some_and(|rest| rest.starts_with([',', ':'])) {
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
