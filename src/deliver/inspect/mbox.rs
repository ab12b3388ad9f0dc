//! The look at an mbox: a file that can be added to, or that can be made.

use std::path::Path;

use super::{Finding, Inspection};
use crate::deliver::report::Line;
use crate::deliver::settings::NewMailboxPermissions;
use crate::deliver::targets::Target;
use crate::fault::{Code, Fault};
use crate::maildir::create;
use crate::mbox::lock::Kind;
use crate::mbox::open::{MORE_NAMES, Mbox, NO_MBOX};
use crate::sys;
use crate::sys::dir::{self, Dir, Stat};

/// How deep below a root mboxes are counted.
const MAX_LEVELS: usize = 32;
/// Of an INBOX, whatever its directory is like: that of /var/mail is everybody's.
const INBOX_MODE: u32 = 0o600;

impl Inspection<'_> {
    /// An mbox, or the place where a delivery may make one.
    pub(super) fn examine_mbox(&mut self, target: &Target) -> Result<Finding, Fault> {
        let path = &target.paths.mailbox;
        match dir::stat(path) {
            Ok(stat) if stat.is_file => self.existing_mbox(target, &stat),
            Ok(stat) if stat.is_dir && !target.own_inbox => Ok(Finding::Missing(
                "it is a directory of mailboxes".to_owned(),
            )),
            Ok(_) => {
                let doing = format!("look at {}", path.display());
                self.unfit(target, doing, "it is no regular file")
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if path.is_symlink() {
                    return self.no_way(target, std::io::ErrorKind::NotADirectory.into());
                }
                match target.create {
                    true => self.creatable_mbox(target),
                    false => self.missing_target(target),
                }
            }
            Err(error) => self.no_way(target, error),
        }
    }

    fn existing_mbox(&mut self, target: &Target, file: &Stat) -> Result<Finding, Fault> {
        if let Some(refusal) = self.check_rights(target)? {
            return Ok(refusal);
        }
        self.lines.push(Line::ok("mailbox", target.mailbox.clone()));
        let path = &target.paths.mailbox;
        if let Some(why) = self.why_not_its(target, file) {
            let doing = format!("write to {}", path.display());
            return self.unfit(target, doing, &why);
        }
        if let Err(error) = dir::may_change(path) {
            return self.cannot_add(target, path, error);
        }
        // Its lock lies beside the file, not beside a symlink to it.
        let holder = self.links(target).open_holder(&target.paths.root, path);
        let mbox = match holder {
            Ok((holder, real)) => Mbox::at(holder, real)?,
            Err(error) => return self.no_way(target, error),
        };
        match mbox.looks_like_one() {
            Ok(true) => {}
            Ok(false) => {
                return self.unfit(target, format!("write to {}", path.display()), NO_MBOX);
            }
            Err(error) => return self.no_way(target, error),
        }
        if let Some(refusal) = self.check_dotlock(target, mbox.path())? {
            return Ok(refusal);
        }
        let shown = format!(
            "{:04o} uid={} gid={}, is there",
            file.mode, file.uid, file.gid
        );
        self.lines.push(Line::ok("file", shown));
        self.usable(target, None)
    }

    /// Denied where a stranger named it, a fault where the admin did.
    fn unfit(&mut self, target: &Target, doing: String, why: &str) -> Result<Finding, Fault> {
        if self.targets.by.is_strangers() && !target.own_inbox {
            return Ok(Finding::Denied(format!("{doing}: {why}")));
        }
        self.end("path", Fault::new(Code::Storage, doing, why))
    }

    /// Made before by somebody who wants to read what comes, or a second name of somebody's mail.
    fn why_not_its(&self, target: &Target, file: &Stat) -> Option<String> {
        let uid = self.identity.uid;
        match file {
            _ if file.links != 1 => Some(MORE_NAMES.to_owned()),
            _ if target.own_inbox && ![0, uid].contains(&file.uid) => Some(format!(
                "it belongs to uid {}, and it is the INBOX of uid {uid}",
                file.uid
            )),
            _ => None,
        }
    }

    /// Where it cannot be made no delivery gets through.
    fn check_dotlock(&mut self, target: &Target, file: &Path) -> Result<Option<Finding>, Fault> {
        let locking = &self.settings.mbox.locking;
        let folder = file.parent().unwrap_or(Path::new("/"));
        if !locking.kinds.contains(&Kind::Dotlock) {
            return Ok(None);
        }
        match may_change(folder) {
            Ok(()) => Ok(None),
            Err(error)
                if target.paths.mailbox.is_symlink()
                    && !locking.clone().of_linked().kinds.contains(&Kind::Dotlock) =>
            {
                let shown = format!("no dotlock in {}: {error}", folder.display());
                self.lines.push(Line::ok("locks", shown));
                Ok(None)
            }
            Err(error) => self.cannot_add(target, folder, error).map(Some),
        }
    }

    /// What may not be written to: where a stranger named it, that is a no. A file system that is read-only for now is none.
    fn cannot_add(
        &mut self,
        target: &Target,
        place: &Path,
        error: std::io::Error,
    ) -> Result<Finding, Fault> {
        let doing = format!("write to {}", place.display());
        if sys::is_no_way(&error) && self.targets.by.is_strangers() && !target.own_inbox {
            return Ok(Finding::Denied(format!("{doing}: {error}")));
        }
        let uid = self.identity.uid;
        let mut fault = Fault::io(doing, &error);
        if sys::is_read_only(&error) {
            let place = place.display();
            let advice = match place.to_string() == target.paths.mailbox.display().to_string() {
                true => {
                    format!(
                        "it is read-only for uid {uid}: give it write permission, or deliver to another mailbox"
                    )
                }
                false => format!(
                    "give uid {uid} write permission on {place} for the dotlock, or set mbox_write_locks = [\"fcntl\"] everywhere"
                ),
            };
            fault = fault.with_advice(advice);
        }
        self.end("path", fault)
    }

    fn creatable_mbox(&mut self, target: &Target) -> Result<Finding, Fault> {
        let paths = &target.paths;
        if let Some(refusal) = self.check_rights_to_create(target)? {
            return Ok(refusal);
        }
        let max = self.settings.max_mailboxes as usize;
        if !target.own_inbox && count(&paths.root, MAX_LEVELS, max) >= max {
            let why = format!("does not exist, and delivery.max_mailboxes = {max} is reached");
            return Ok(Finding::Missing(why));
        }
        let doing = format!("create {}", paths.mailbox.display());
        let folder = paths.mailbox.parent().unwrap_or(Path::new("/"));
        let (existing, stat) = match dir::nearest_existing(folder) {
            Ok(found) => found,
            Err(error) => return self.no_way(target, error),
        };
        if !stat.is_dir {
            return Ok(Finding::Denied(format!(
                "{doing}: {} is no directory",
                existing.display()
            )));
        }
        // Only in the spool itself, not in a folder below it, which users make.
        let may = match existing == folder {
            true => may_change(folder),
            false => dir::may_write(&existing),
        };
        if let Err(error) = may {
            return self.cannot_add(target, &existing, error);
        }
        let parent = paths.above.iter().find(|above| above.is_dir());
        let source = match self.settings.new_mailbox_permissions {
            NewMailboxPermissions::Root => &paths.root,
            NewMailboxPermissions::Parent => parent.unwrap_or(&paths.root),
        };
        let mut permission = match create::permission_like(source, paths) {
            Ok(permission) => permission,
            Err(error) => return self.no_way(target, error),
        };
        if target.is_inbox {
            (permission.file_mode, permission.gid) = (INBOX_MODE, None);
        }
        if let Some(refusal) = self.check_new(target, &permission, (&existing, &stat))? {
            return Ok(refusal);
        }
        self.lines.push(Line::ok(
            "mailbox",
            format!("{}  missing -> created", target.mailbox),
        ));
        self.usable(target, Some(permission))
    }
}

/// Whether names in it can be changed, with the privileged group where it is needed.
fn may_change(folder: &Path) -> std::io::Result<()> {
    Dir::open(folder)?.with_privileged_group()?.may_change()
}

/// How many files lie below `folder`, up to `max`. What cannot be looked at counts as none, and what belongs to mboxes too.
fn count(folder: &Path, levels: usize, max: usize) -> usize {
    let names = Dir::open(folder).and_then(|dir| dir.names());
    let names = names.unwrap_or_default().into_iter();
    let mut found = 0;
    for name in names.filter(|name| !name.starts_with('.')) {
        let path = folder.join(name);
        found += match dir::stat_link(&path) {
            Ok(stat) if stat.is_dir && levels > 0 => count(&path, levels - 1, max - found),
            Ok(stat) => usize::from(!stat.is_dir),
            Err(_) => 0,
        };
        if found >= max {
            return max;
        }
    }
    found
}
