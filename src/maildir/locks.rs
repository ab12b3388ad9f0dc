//! The locks of a mailbox's files, and what a crash leaves of them.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::keywords;
use super::uidlist::{FILE, Lock, NEW_FILE, TIMEOUT};
use crate::sys::dir::Dir;
use crate::sys::dotlock::{self, Dotlock, Holds, Patience};

/// For the locks of other files: those that name no process are stale as late as the slowest of Dovecot's.
const PATIENCE: Patience = Patience {
    timeout: TIMEOUT,
    stale: Duration::from_secs(180),
};
/// The directories of one mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub mailbox: PathBuf,
    pub control: PathBuf,
    pub index: PathBuf,
}

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum In {
    Mailbox,
    Control,
    Index,
}

impl Place {
    /// Some or all of the three may be one directory.
    pub fn directory(&self, which: In) -> &Path {
        match which {
            In::Mailbox => &self.mailbox,
            In::Control => &self.control,
            In::Index => &self.index,
        }
    }
}

/// A file that keeps others off, or that one leaves who died while he kept them off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockFile {
    pub place: In,
    name: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The lock of the list: whoever has it owns the files of the next kind.
    List,
    /// Written under the lock of the list, with its full name.
    UnderList,
    /// The lock of this name, Dovecot's `.lock` behind it.
    Own,
    /// Also a new file in itself, with its full name: no lock of ours.
    Foreign,
}

/// What is looked for.
pub const LOCKS: [LockFile; 8] = {
    const fn file(place: In, name: &'static str, kind: Kind) -> LockFile {
        LockFile { place, name, kind }
    }
    [
        file(In::Control, FILE, Kind::List),
        file(In::Control, keywords::NEW_FILE, Kind::UnderList),
        file(In::Control, NEW_FILE, Kind::UnderList),
        file(In::Control, "subscriptions", Kind::Own),
        file(In::Mailbox, "dovecot-acl", Kind::Own),
        file(In::Index, "dovecot.index.log", Kind::Own),
        file(In::Index, "dovecot.index.log.newlock", Kind::Foreign),
        file(In::Index, "dovecot.list.index.log.newlock", Kind::Foreign),
    ]
};

impl LockFile {
    /// The name of the file that is there.
    pub fn file(&self) -> String {
        match self.kind {
            Kind::List | Kind::Own => format!("{}.lock", self.name),
            Kind::UnderList | Kind::Foreign => self.name.to_owned(),
        }
    }

    /// False: only looked at, for it is another program's.
    pub fn can_be_taken(&self) -> bool {
        self.kind != Kind::Foreign
    }
}

/// Takes away what crashes have left of locks: a stale one by taking it, which fails where it is not. Answers the lock of
/// the list, and what is gone.
pub fn clear(place: &Place, mode: u32) -> Result<(Lock, Vec<PathBuf>), String> {
    let text = |error: io::Error| error.to_string();
    let open = |which| Dir::open(place.directory(which));
    let is_left = |lock: &LockFile| {
        let dir = open(lock.place).ok();
        let holder = dir.and_then(|dir| dotlock::holder(&dir, &lock.file()));
        holder.is_some_and(|holder| holder.is_gone != Some(false))
    };
    let there: Vec<LockFile> = LOCKS.into_iter().filter(is_left).collect();
    let lock = Lock::take(open(In::Control).map_err(text)?, mode, TIMEOUT).map_err(text)?;
    let mut gone = Vec::new();
    for left in there {
        let is_gone = match left.kind {
            Kind::List => true,
            Kind::UnderList => match lock.control().unlink(left.name) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(text(error)),
                _ => true,
            },
            Kind::Own => {
                let dir = open(left.place).map_err(text)?;
                Dotlock::take(&dir, left.name, mode, Holds::Pid, PATIENCE).is_ok()
            }
            Kind::Foreign => false,
        };
        if is_gone {
            gone.push(place.directory(left.place).join(left.file()));
        }
    }
    Ok((lock, gone))
}
