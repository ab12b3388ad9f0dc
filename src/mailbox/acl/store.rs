//! Changing `dovecot-acl` as Dovecot does: under its lock, with the mailbox's group and mode, in its own spelling.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use super::list::Acl;
use super::sources::Unreadable;
use super::{AclError, FILE, Identifier, read};
use crate::mailbox::location::Layout;
use crate::mailbox::path::Paths;
use crate::mailbox::permission::Permission;
use crate::sys;
use crate::sys::dir::{self, Dir};
use crate::sys::dotlock::{Dotlock, Holds, Patience};
use crate::sys::fault_point;

/// Dovecot waits so long for this lock, and takes one for stale after that.
const PATIENCE: Patience = Patience {
    timeout: Duration::from_secs(30),
    stale: Duration::from_secs(120),
};
/// The mailboxes that somebody else may see: Dovecot's LIST of another user's tree believes it.
pub const LIST: &str = "dovecot-acl-list";
/// How deep below a root mailboxes are looked for.
const MAX_LEVELS: usize = 32;

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    #[error("{0}")]
    Unreadable(Unreadable),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Changes the file of the mailbox directory `directory`. The file is read again under the lock.
pub fn update(directory: &Path, change: impl FnOnce(&mut Acl)) -> Result<(), UpdateError> {
    let dir = Dir::open(directory)?;
    let permission = Permission::of(&dir.stat()?, directory);
    let mut lock = Dotlock::take(&dir, FILE, permission.file_mode, Holds::Content, PATIENCE)?;
    let unreadable = |error| {
        let file = directory.join(FILE);
        UpdateError::Unreadable(Unreadable { file, error })
    };
    let text = read(directory).map_err(unreadable)?.unwrap_or_default();
    if std::str::from_utf8(&text).is_err() {
        // Written again, a name that we cannot read would be another one.
        return Err(unreadable(AclError::of_line(0, "not UTF-8")));
    }
    let mut acl = Acl::parse(&text, FILE).map_err(unreadable)?;
    let before = acl.stored();
    change(&mut acl);
    if acl.stored() == before {
        return Ok(());
    }
    dir::set_rights(&lock.file, permission.file_mode, permission.gid)?;
    let text = acl.stored();
    fault_point::write(text.as_bytes(), |bytes| lock.file.write_all(bytes))?;
    Ok(lock.replace()?)
}

/// Writes the list of a tree's visible mailboxes anew, from their files.
pub fn renew_list(paths: &Paths, layout: Layout) -> io::Result<()> {
    let root = &paths.root;
    let dir = Dir::open(root)?;
    let mut lines = String::new();
    for (name, path) in mailboxes(paths, layout)? {
        // What cannot be read is not seen by others.
        let Ok(Some(text)) = read(&path) else {
            continue;
        };
        let modified = dir::stat(&path.join(FILE))?.modified;
        let is_seen = Acl::parse(&text, FILE).is_ok_and(|acl| is_visible(&acl));
        if is_seen {
            let seconds = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
            lines.push_str(&format!("{} {name}\n", seconds.as_secs()));
        }
    }
    let permission = Permission::of(&dir.stat()?, root);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let fresh = format!(".{LIST}.{}.{count}", std::process::id());
    let mut file = dir.create_new(&fresh, permission.file_mode)?;
    let written = dir::set_rights(&file, permission.file_mode, permission.gid)
        .and_then(|()| fault_point::write(lines.as_bytes(), |bytes| file.write_all(bytes)))
        .and_then(|()| dir.replace(&fresh, LIST));
    if written.is_err() {
        // Nobody reads it under this name.
        let _ = dir.unlink(&fresh);
    }
    written
}

/// The storage names of a tree's mailboxes, with their directories.
pub fn mailboxes(paths: &Paths, layout: Layout) -> io::Result<Vec<(String, PathBuf)>> {
    let root = &paths.root;
    let mut found = Vec::new();
    collect(&Dir::open(root)?, layout, "", MAX_LEVELS, &mut found)?;
    found.sort();
    found.dedup();
    let place = |name: String| {
        let path = match (layout, name.as_str()) {
            (_, "INBOX") => paths.inbox.clone(),
            (Layout::MaildirPlusPlus, name) => root.join(format!(".{name}")),
            (Layout::Fs | Layout::Index, name) => root.join(name),
        };
        (name, path)
    };
    Ok(found.into_iter().map(place).collect())
}

fn is_visible(acl: &Acl) -> bool {
    let others = acl
        .entries
        .iter()
        .filter(|entry| entry.identifier != Identifier::Owner);
    let mut given = others.filter_map(|entry| entry.positive.as_ref());
    given.any(|rights| rights.lookup())
}

/// The storage names of all mailboxes below `dir`, and of directories that cannot be looked into.
fn collect(
    dir: &Dir,
    layout: Layout,
    above: &str,
    levels: usize,
    found: &mut Vec<String>,
) -> io::Result<()> {
    let names = dir.names()?;
    if above.is_empty() {
        found.push("INBOX".into());
    }
    for name in names {
        match layout {
            Layout::MaildirPlusPlus => {
                if let Some(name) = name.strip_prefix('.')
                    && !matches!(dir.open_dir(format!(".{name}")), Err(error) if is_none(&error))
                {
                    found.push(name.to_owned());
                }
            }
            Layout::Fs | Layout::Index
                if matches!(name.as_str(), "cur" | "new" | "tmp") || levels == 0 => {}
            Layout::Fs | Layout::Index => {
                let below = dir.open_dir(&name);
                let name = match above {
                    "" => name,
                    above => format!("{above}/{name}"),
                };
                let below = match below {
                    Ok(below) => below,
                    Err(error) if is_none(&error) => continue,
                    Err(_) => {
                        found.push(name);
                        continue;
                    }
                };
                if below.stat_name("cur").is_ok() {
                    found.push(name.clone());
                }
                collect(&below, layout, &name, levels - 1, found)?;
            }
        }
    }
    Ok(())
}

/// No directory, or one no more: not one that is closed.
fn is_none(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || sys::is_no_directory(error)
}
