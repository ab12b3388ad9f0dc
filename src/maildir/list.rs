//! Which mailboxes are there, by their directories.

use std::io;
use std::path::{Path, PathBuf};

use crate::mailbox::location::Layout;
use crate::sys;
use crate::sys::dir::{self, Dir, Stat};

/// How deep below a root mailboxes are looked for when they are counted.
const MAX_LEVELS: usize = 32;

/// Whether the mailbox at `path` exists: its directory's stat.
///
/// A root or a nested directory may be a mere container: there, `cur` decides. In Maildir++ a dotted directory is a
/// mailbox, whatever is missing in it. A symlink to a mailbox is that mailbox.
pub fn exists(path: &Path, layout: Layout, is_inbox: bool) -> io::Result<Option<Stat>> {
    let directory = match dir::stat(path) {
        Ok(stat) if stat.is_dir => stat,
        Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A link to nothing is in the way of a new mailbox, and no place for one.
            return match path.is_symlink() {
                true => Err(io::ErrorKind::NotADirectory.into()),
                false => Ok(None),
            };
        }
        Err(error) => return Err(error),
    };
    if layout == Layout::MaildirPlusPlus && !is_inbox {
        return Ok(Some(directory));
    }
    match dir::stat(&path.join("cur")) {
        Ok(_) => Ok(Some(directory)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a mailbox at `path` is there, which others may lie below. Where the path leads nowhere there is none. Err: nobody can tell
/// now.
pub fn is_there(path: &Path, layout: Layout) -> io::Result<bool> {
    match exists(path, layout, false) {
        Ok(found) => Ok(found.is_some()),
        Err(error) if sys::is_no_way(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The nearest of the directories `above` that is a mailbox or the root. Err: nobody can tell now.
pub fn nearest_parent(above: &[PathBuf], layout: Layout) -> io::Result<Option<PathBuf>> {
    let Some((root, parents)) = above.split_last() else {
        return Ok(None);
    };
    for path in parents {
        if is_there(path, layout)? {
            return Ok(Some(path.clone()));
        }
    }
    match dir::stat(root) {
        Ok(_) => Ok(Some(root.clone())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How many mailboxes lie below `root`. What cannot be read counts as none.
pub fn count(root: &Path, layout: Layout) -> usize {
    match layout {
        Layout::MaildirPlusPlus => {
            let names = Dir::open(root)
                .and_then(|dir| dir.names())
                .unwrap_or_default();
            names.iter().filter(|name| name.starts_with('.')).count()
        }
        Layout::Fs | Layout::Index => {
            Dir::open(root).map_or(0, |dir| count_nested(&dir, MAX_LEVELS))
        }
    }
}

fn count_nested(dir: &Dir, levels: usize) -> usize {
    let names = dir.names().unwrap_or_default();
    let own = usize::from(names.iter().any(|name| name == "cur"));
    let below = names
        .iter()
        .filter(|name| levels > 0 && !matches!(name.as_str(), "cur" | "new" | "tmp"));
    own + below
        .filter_map(|name| dir.open_dir(name).ok())
        .map(|dir| count_nested(&dir, levels - 1))
        .sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_nothing_is_no_place_for_a_mailbox() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", root.path().join(".a")).unwrap();
        let found = exists(&root.path().join(".a"), Layout::MaildirPlusPlus, false);
        assert!(found.is_err_and(|error| sys::is_no_way(&error)));
    }
}
