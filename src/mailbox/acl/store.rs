//! Changing `dovecot-acl` as Dovecot does: under its lock, with the mailbox's group and mode, in its own spelling.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use super::list::Acl;
use super::sources::Unreadable;
use super::{AclError, FILE, Identifier, MAX_FILE, bytes, read};
use crate::mailbox::location::{Driver, Layout};
use crate::mailbox::path::{BESIDE, Paths, beside};
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
pub fn renew_list(paths: &Paths, layout: Layout, driver: Driver) -> io::Result<()> {
    let root = list_root(paths, driver);
    let dir = Dir::open(root)?;
    let mut lines = String::new();
    for (name, path) in of_files(paths, layout, driver)? {
        let text = match bytes(&path) {
            Ok(Some(text)) if text.len() as u64 <= MAX_FILE => text,
            Err(error) if !is_for_good(&error) => return Err(error),
            // What cannot be read is not seen by others.
            _ => continue,
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

/// The directory that has the list.
pub fn list_root(paths: &Paths, driver: Driver) -> &Path {
    match driver {
        Driver::Mbox => &paths.control_root,
        Driver::Maildir | Driver::Sdbox | Driver::Mdbox => &paths.root,
    }
}

/// The storage names of a tree's mailboxes, with the directories that have their ACL files, where there are some.
pub fn of_files(
    paths: &Paths,
    layout: Layout,
    driver: Driver,
) -> io::Result<Vec<(String, PathBuf)>> {
    match driver {
        Driver::Mbox => mboxes(paths),
        Driver::Maildir | Driver::Sdbox | Driver::Mdbox => mailboxes(paths, layout),
    }
}

/// The same of mboxes, whether or not INBOX is there.
fn mboxes(paths: &Paths) -> io::Result<Vec<(String, PathBuf)>> {
    let inside = Some(&paths.directory_name).filter(|name| !name.is_empty());
    let mut found = Vec::new();
    collect_files(&Dir::open(&paths.root)?, "", MAX_LEVELS, &mut found)?;
    found.retain(|name| paths.root.join(name) != paths.inbox);
    found.push(inside.map_or("INBOX".into(), |inside| format!("INBOX/{inside}")));
    found.sort();
    found.dedup();
    let place = |file: String| {
        let control = beside(&paths.control_root.join(&file));
        let name = match inside {
            Some(inside) => file.strip_suffix(&format!("/{inside}"))?.to_owned(),
            None => file,
        };
        Some((name, control))
    };
    Ok(found.into_iter().filter_map(place).collect())
}

/// The storage names of a tree's mailboxes, with their directories.
pub fn mailboxes(paths: &Paths, layout: Layout) -> io::Result<Vec<(String, PathBuf)>> {
    let root = &paths.root;
    let inside = Some(paths.directory_name.as_str()).filter(|name| !name.is_empty());
    let mut found = vec!["INBOX".to_owned()];
    let dir = Dir::open(root)?;
    match layout {
        Layout::MaildirPlusPlus => collect_flat(&dir, &mut found)?,
        Layout::Fs | Layout::Index => collect(&dir, inside, "", MAX_LEVELS, &mut found)?,
    }
    found.sort();
    found.dedup();
    let place = |name: String| {
        let path = match (layout, name.as_str()) {
            (_, "INBOX") => paths.inbox.clone(),
            (Layout::MaildirPlusPlus, name) => root.join(format!(".{name}")),
            (Layout::Fs | Layout::Index, name) => {
                let path = root.join(name);
                inside.map_or(path.clone(), |inside| path.join(inside))
            }
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

/// Those of a Maildir++, and of directories that cannot be looked into.
fn collect_flat(dir: &Dir, found: &mut Vec<String>) -> io::Result<()> {
    for name in dir.names()? {
        if let Some(stored) = name.strip_prefix('.')
            && !matches!(dir.open_dir(&name), Err(error) if is_none(&error))
        {
            found.push(stored.to_owned());
        }
    }
    Ok(())
}

/// Those of nested directories, whose last one each time is `inside`, where it has a name.
fn collect(
    dir: &Dir,
    inside: Option<&str>,
    above: &str,
    levels: usize,
    found: &mut Vec<String>,
) -> io::Result<()> {
    for name in dir.names()? {
        let is_mailboxes_own =
            matches!(name.as_str(), "cur" | "new" | "tmp") || inside == Some(name.as_str());
        if is_mailboxes_own || levels == 0 {
            continue;
        }
        let below = dir.open_dir(&name);
        let name = match above {
            "" => name,
            above => format!("{above}/{name}"),
        };
        let below = match below {
            Ok(below) => below,
            Err(error) if is_none(&error) => continue,
            Err(error) if !is_for_good(&error) => return Err(error),
            Err(_) => {
                found.push(name);
                continue;
            }
        };
        if is_mailbox(&below, inside)? {
            found.push(name.clone());
        }
        collect(&below, inside, &name, levels - 1, found)?;
    }
    Ok(())
}

/// All files below `dir`, and symlinks, by their paths; none of what lies beside mboxes.
fn collect_files(dir: &Dir, above: &str, levels: usize, found: &mut Vec<String>) -> io::Result<()> {
    for name in dir.names()? {
        if name == BESIDE {
            continue;
        }
        let below = dir.open_dir(&name);
        let name = match above {
            "" => name,
            above => format!("{above}/{name}"),
        };
        match below {
            Ok(below) if levels > 0 => collect_files(&below, &name, levels - 1, found)?,
            Ok(_) => {}
            Err(error) if is_none(&error) => found.push(name),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Also one that cannot be looked into.
fn is_mailbox(dir: &Dir, inside: Option<&str>) -> io::Result<bool> {
    let directory = match inside.map(|inside| dir.open_dir(inside)) {
        Some(Ok(directory)) => directory,
        None => dir.clone(),
        Some(Err(error)) if is_none(&error) => return Ok(false),
        Some(Err(error)) if !is_for_good(&error) => return Err(error),
        Some(Err(_)) => return Ok(true),
    };
    match directory.stat_name("cur") {
        Ok(_) => Ok(true),
        Err(error) if !is_for_good(&error) => Err(error),
        Err(_) => Ok(false),
    }
}

/// It is so, and will be: nothing that passes, like a shortage or an error of the disk.
fn is_for_good(error: &io::Error) -> bool {
    let is_special = sys::is_no_file(error);
    // One without a number is our own.
    error.raw_os_error().is_none() || is_special || is_none(error) || sys::is_no_way(error)
}

/// No directory, or one no more: not one that is closed.
fn is_none(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || sys::is_no_directory(error)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Rights;
    use super::*;

    /// The rights of a mailbox, and the list of those that others see, are the old ones or the new ones.
    #[test]
    fn every_step_fails_once() {
        const OLD: &str = "user=bob l\n";
        let change = |acl: &mut Acl| {
            let bob = Identifier::parse("user=bob").unwrap();
            acl.entry(bob).positive = Some(Rights::all());
        };
        for failure in fault_point::FAILURES.into_iter().chain(fault_point::ENDS) {
            for step in 0.. {
                let root = tempfile::tempdir().unwrap();
                let work = root.path().join(".Work");
                for mailbox in [&work, &root.path().join(".Other")] {
                    fs::create_dir(mailbox).unwrap();
                    fs::write(mailbox.join(FILE), OLD).unwrap();
                }
                fs::write(root.path().join(LIST), "1 Work\n").unwrap();
                fault_point::arm(step, failure);
                let updated = update(&work, change);
                let paths = Paths::for_tests(root.path(), &work);
                let renewed = renew_list(&paths, Layout::MaildirPlusPlus, Driver::Maildir);
                let fired = !fault_point::disarm();
                let case = format!("{failure:?} at {step}: {updated:?}, {renewed:?}");
                let acl = fs::read_to_string(work.join(FILE)).unwrap();
                let is_new =
                    acl.starts_with("user=bob ") && acl.contains('p') && acl.ends_with('\n');
                assert!(is_new || updated.is_err() && acl == OLD, "{case}: {acl:?}");
                let list = fs::read_to_string(root.path().join(LIST)).unwrap();
                let is_new = list.ends_with(" Work\n") && list.contains(" Other\n");
                assert!(
                    is_new || renewed.is_err() && list == "1 Work\n",
                    "{case}: {list:?}"
                );
                let names = fs::read_dir(root.path()).unwrap().count();
                let files = fs::read_dir(&work).unwrap().count();
                let has_ended = fault_point::ENDS.contains(&failure);
                assert!(
                    (names, files) == (3, 1) || has_ended,
                    "{case}: something is left"
                );
                if !fired {
                    assert!(updated.is_ok() && renewed.is_ok(), "{case}");
                    assert!(
                        failure.is_of_writes() || step > 25,
                        "only {step} steps can fail"
                    );
                    break;
                }
            }
        }
    }
}
