//! Making a mailbox: directories with the permissions that were planned, durable in their parents, and none of them
//! left behind when the making fails ([`Created`]).

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use super::created::{Created, FOLDER_MARK};
use crate::fault::{Code, Fault};
use crate::mailbox::acl::FILE as ACL_FILE;
use crate::mailbox::location::Layout;
use crate::mailbox::path::{Paths, RootRule};
use crate::mailbox::permission::{Permission, SETGID};
use crate::sys::dir::{self, Dir, Stat};
use crate::sys::fault_point;
use crate::sys::{self, credentials};

/// Makes the mailbox at `paths` with `permission`, and the root above it by its own rule. What exists is left as it
/// is. `acl`: the bytes of the parent's ACL file.
pub fn create(
    paths: &Paths,
    permission: &Permission,
    layout: Layout,
    acl: Option<&[u8]>,
) -> Result<Created, Fault> {
    let mut created = Created::default();
    if dir::stat(&paths.root).is_err() {
        create_root(paths, &mut created)?;
    }
    // A root that has just been made is what its mailboxes copy from.
    let permission = match permission.origin == paths.root {
        true => dir::stat(&paths.root)
            .map(|stat| Permission::of(&stat, &paths.root))
            .map_err(|error| Fault::io(format!("look at {}", paths.root.display()), &error))?,
        false => permission.clone(),
    };
    let failed = |error: io::Error| Fault::io(format!("open {}", paths.mailbox.display()), &error);
    // Assembled under another name: whoever sees a mailbox sees all of it, with its group and its ACL.
    let hidden = hidden_name();
    let is_new = dir::stat(&paths.mailbox).is_err();
    let mailbox = match paths.mailbox.parent().filter(|_| is_new) {
        Some(above) => {
            let above = make_path(above, |_| permission.clone(), &mut created)?;
            make(&above, &hidden, &permission, &paths.mailbox, &mut created)?
        }
        None => Dir::open(&paths.mailbox).map_err(failed)?,
    };
    if layout == Layout::MaildirPlusPlus && paths.mailbox != paths.root {
        make_file(&mailbox, FOLDER_MARK, &[], &permission, &mut created)?;
    }
    if let Some(acl) = acl {
        make_file(&mailbox, ACL_FILE, acl, &permission, &mut created)?;
    }
    make_parts(&mailbox, &permission, &paths.mailbox, &mut created)?;
    if is_new {
        created.reveal(&hidden, &paths.mailbox, true)?;
    }
    Ok(created)
}

/// Makes the directory `path`, and those above it that are missing: for files that are kept apart from the mail.
pub fn directory(path: &Path, permission: &Permission) -> Result<(Dir, Created), Fault> {
    let mut created = Created::default();
    let made = make_path(path, |_| permission.clone(), &mut created)?;
    Ok((made, created))
}

/// No name of a mailbox in Maildir++, and not used twice.
fn hidden_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_micros();
    format!("postroom.{now}.{}.{number}", std::process::id())
}

/// Makes those of `cur`, `new` and `tmp` that are missing in an existing mailbox.
pub fn complete(mailbox: &Dir, permission: &Permission) -> Result<(), Fault> {
    let mut created = Created::default();
    make_parts(mailbox, permission, &permission.origin, &mut created)?;
    created.keep();
    Ok(())
}

/// `cur` first: Dovecot takes a mailbox without it as not there. Their names are synced, and whatever else has been made beside them.
fn make_parts(
    mailbox: &Dir,
    permission: &Permission,
    path: &Path,
    created: &mut Created,
) -> Result<(), Fault> {
    for part in ["cur", "tmp", "new"] {
        make(mailbox, part, permission, &path.join(part), created)?;
    }
    let failed = |error: io::Error| Fault::io(format!("sync {}", path.display()), &error);
    mailbox.sync().map_err(failed)
}

/// What a root that does not exist yet will be: by the rules of the documents' "Permissions to New /domain/user Directories"
/// and "… User Home Directories".
pub fn root_permission(paths: &Paths) -> Permission {
    let private = Permission::private(&paths.root);
    match &paths.root_rule {
        RootRule::Home => setgid_parent(&paths.root).unwrap_or(private),
        // The domain's directory is everybody's, the user's own below it is his: setgid, with his group.
        RootRule::Above(shared) if setgid_parent(shared).is_some() => Permission {
            setgid: true,
            gid: Some(credentials::effective().gid),
            ..private
        },
        RootRule::Above(_) | RootRule::None => private,
    }
}

/// What is copied from `source`; where that is missing, what a new root is. Err: nobody can tell now.
pub fn permission_like(source: &Path, paths: &Paths) -> io::Result<Permission> {
    match dir::stat(source) {
        Ok(stat) => Ok(Permission::of(&stat, source)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(root_permission(paths)),
        Err(error) => Err(error),
    }
}

/// Makes the control root of a namespace where it is missing.
pub fn control_root(paths: &Paths) -> Result<Created, Fault> {
    let mut created = Created::default();
    match paths.control_root == paths.root {
        true => create_root(paths, &mut created)?,
        false => {
            let own = Permission::private(&paths.control_root);
            make_path(&paths.control_root, |_| own.clone(), &mut created)?
        }
    };
    Ok(created)
}

fn create_root(paths: &Paths, created: &mut Created) -> Result<Dir, Fault> {
    let own = root_permission(paths);
    let (shared, copied) = match &paths.root_rule {
        RootRule::Above(shared) => (shared.as_path(), setgid_parent(shared)),
        RootRule::Home | RootRule::None => (Path::new(""), None),
    };
    let choose = |path: &Path| match &copied {
        Some(copied) if shared.starts_with(path) => copied.clone(),
        _ => own.clone(),
    };
    make_path(&paths.root, choose, created)
}

/// The nearest existing directory at or above `path`, where that is setgid.
fn setgid_parent(path: &Path) -> Option<Permission> {
    let (parent, stat) = dir::nearest_existing(path).ok()?;
    (stat.mode & SETGID != 0).then(|| copied(&stat, &parent))
}

/// Every bit of an existing setgid directory, for the directories of a new root below it.
fn copied(stat: &Stat, origin: &Path) -> Permission {
    Permission {
        file_mode: stat.mode & 0o666,
        dir_mode: stat.mode & 0o1777,
        setgid: true,
        gid: Some(stat.gid),
        origin: origin.to_owned(),
    }
}

/// Makes every missing directory of `path`, each with the permission that `choose` gives it.
fn make_path(
    path: &Path,
    choose: impl Fn(&Path) -> Permission,
    created: &mut Created,
) -> Result<Dir, Fault> {
    let failed = |error: io::Error| Fault::io(format!("create {}", path.display()), &error);
    let (existing, _) = dir::nearest_existing(path).map_err(failed)?;
    let missing = path.strip_prefix(&existing).unwrap_or(Path::new(""));
    let mut at = existing.clone();
    let mut dir = Dir::open(&existing).map_err(failed)?;
    for component in missing.components() {
        let name = component
            .as_os_str()
            .to_str()
            .ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
        at.push(name);
        // Whoever sees it sees it with its group.
        let hidden = hidden_name();
        make(&dir, &hidden, &choose(&at), &at, created)?;
        created.reveal(&hidden, &at, false)?;
        dir = dir.open_dir(name).map_err(failed)?;
    }
    Ok(dir)
}

/// Makes one directory, with its mode and group exact, whose name is not synced yet; an existing one is opened as it is.
fn make(
    parent: &Dir,
    name: &str,
    permission: &Permission,
    path: &Path,
    created: &mut Created,
) -> Result<Dir, Fault> {
    let failed = |error: io::Error| Fault::io(format!("create {}", path.display()), &error);
    match parent.make_dir(name, permission.dir_mode) {
        Ok(made) => {
            created.add(parent, name, true);
            settle(&made, permission, path)?;
            Ok(made)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            parent.open_dir(name).map_err(failed)
        }
        Err(error) if sys::is_read_only(&error) => Err(Fault::new(
            Code::NotNow,
            format!("create {}", path.display()),
            error.to_string(),
        )),
        Err(error) => Err(failed(error)),
    }
}

/// Group first: a change of group may take setgid away.
fn settle(made: &Dir, permission: &Permission, path: &Path) -> Result<(), Fault> {
    let failed =
        |error: io::Error| Fault::io(format!("set the permissions of {}", path.display()), &error);
    let stat = made.stat().map_err(failed)?;
    let mut inherited = stat.mode & SETGID;
    if let Some(gid) = permission.gid.filter(|&gid| gid != stat.gid) {
        made.set_group(gid).map_err(|error| {
            let doing = format!(
                "give {} the group {gid} of {}",
                path.display(),
                permission.origin.display()
            );
            let advice = format!(
                "chmod g+s {}, or add the user to group {gid}",
                permission.origin.display()
            );
            Fault::new(Code::Permissions, doing, error.to_string()).with_advice(advice)
        })?;
        inherited = 0;
    }
    let setgid = if permission.setgid { SETGID } else { inherited };
    let mode = permission.dir_mode | setgid;
    if stat.mode != mode || inherited == 0 && setgid != 0 {
        made.set_mode(mode).map_err(failed)?;
    }
    Ok(())
}

/// A small file in a new mailbox. One that exists is left as it is.
fn make_file(
    mailbox: &Dir,
    name: &str,
    bytes: &[u8],
    permission: &Permission,
    created: &mut Created,
) -> Result<(), Fault> {
    use io::Write;
    let failed = |error: io::Error| {
        Fault::io(
            format!("create {name} in {}", permission.origin.display()),
            &error,
        )
    };
    let mut file = match mailbox.create_new(name, permission.file_mode) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    created.add(mailbox, name, false);
    let written = fault_point::write(bytes, |bytes| file.write_all(bytes));
    written.map_err(failed)?;
    let (settled, _) = super::save::settle(&file, permission).map_err(failed)?;
    settled.map_err(failed)?;
    match bytes.is_empty() {
        true => Ok(()),
        false => dir::sync_file(&file).map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_fails_leaves_nothing_and_takes_nothing_from_others() {
        for used in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let paths = Paths::for_tests(root.path(), &root.path().join(".a"));
            let permission = Permission::private(root.path());
            let layout = Layout::MaildirPlusPlus;
            let created = create(&paths, &permission, layout, Some(b"owner lr\n")).unwrap();
            let message = paths.mailbox.join("new/1.other");
            if used {
                fs::write(&message, "of another delivery").unwrap();
            }
            drop(created);
            for name in ["", "cur", "tmp", "new/1.other", "dovecot-acl", FOLDER_MARK] {
                assert_eq!(paths.mailbox.join(name).exists(), used, "{name:?}");
            }
        }
    }
}
