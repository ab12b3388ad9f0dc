//! A Maildir: there, or to be made.

use std::io;
use std::sync::Arc;

use super::{Finding, Inspection, Plan};
use crate::deliver::report::Line;
use crate::deliver::settings::NewMailboxPermissions;
use crate::deliver::targets::Target;
use crate::fault::Fault;
use crate::mailbox::permission::{Permission, SETGID};
use crate::maildir::{Look, Maildir, create, list};
use crate::sys;
use crate::sys::dir::{self, Stat};

/// A Maildir that is there.
struct Parts {
    permission: Permission,
    /// What new files are made in.
    parent: Stat,
    /// None: a part is missing.
    mailbox: Option<Arc<Maildir>>,
}

impl Parts {
    fn of(mailbox: Arc<Maildir>) -> Parts {
        Parts {
            permission: mailbox.permission().clone(),
            parent: *mailbox.tmp(),
            mailbox: Some(mailbox),
        }
    }
}

impl Inspection<'_> {
    /// A Maildir that is there. `kept`: open since a moment ago.
    pub(super) fn existing(
        &mut self,
        target: &Target,
        kept: Option<Arc<Maildir>>,
    ) -> Result<Finding, Fault> {
        if let Some(refusal) = self.check_rights(target)? {
            return Ok(refusal);
        }
        self.lines.push(Line::ok("mailbox", target.mailbox.clone()));
        let path = &target.paths.mailbox;
        let mut parts = match self.open(target, kept) {
            Ok(parts) => parts,
            Err((part, error)) => return self.closed(target, part, error),
        };
        if let Some(mailbox) = &parts.mailbox
            && let Err(error) = self.check_cur(target, mailbox)
        {
            return self.closed(target, "cur", error);
        }
        let mailbox = parts.mailbox.take();
        let (permission, parent) = (&parts.permission, &parts.parent);
        self.check_group(target, permission, parent, path, mailbox.is_none())?;
        let finding = self.usable(target, None)?;
        Ok(match finding {
            Finding::Usable(plan) => Finding::Usable(Box::new(Plan { mailbox, ..*plan })),
            other => other,
        })
    }

    /// A part of it that cannot be used: denied where a stranger named it, a fault where the admin did.
    fn closed(&mut self, target: &Target, part: &str, error: io::Error) -> Result<Finding, Fault> {
        let place = target.paths.mailbox.join(part);
        let doing = format!("write into {}", place.display());
        if self.targets.by.is_strangers() && sys::is_no_way(&error) && !target.own_inbox {
            return Ok(Finding::Denied(format!("{doing}: {error}")));
        }
        let mut fault = Fault::io(doing, &error);
        if sys::is_read_only(&error) {
            let (uid, place) = (self.identity.uid, place.display());
            fault = fault.with_advice(format!("give uid {uid} write permission on {place}"));
        }
        self.end("path", fault)
    }

    /// What has flags or keywords goes there.
    fn check_cur(&self, target: &Target, mailbox: &Maildir) -> io::Result<()> {
        let (flags, keywords, _) = self.flags(target);
        match flags.is_empty() && keywords.is_empty() {
            true => Ok(()),
            false => mailbox.dir().open_dir("cur")?.may_change(),
        }
    }

    /// Err: a part of it that cannot be used.
    fn open(
        &self,
        target: &Target,
        kept: Option<Arc<Maildir>>,
    ) -> Result<Parts, (&'static str, io::Error)> {
        let path = &target.paths.mailbox;
        if let Some(mailbox) = kept {
            return Ok(Parts::of(mailbox));
        }
        let dir = self.links(target).open(&target.paths.root, path);
        match Maildir::look(dir.map_err(|error| ("cur", error))?, path)? {
            Look::Whole(mailbox) => {
                let mailbox = Arc::new(mailbox);
                if let Some(recent) = self.recent {
                    recent.keep(&mailbox);
                }
                Ok(Parts::of(mailbox))
            }
            Look::Incomplete { directory, tmp } => Ok(Parts {
                permission: Permission::of(&directory, path),
                parent: tmp.unwrap_or(directory),
                mailbox: None,
            }),
        }
    }

    /// A Maildir that is not there, and whether a delivery may make it.
    pub(super) fn creatable(&mut self, target: &Target) -> Result<Finding, Fault> {
        let paths = &target.paths;
        let doing = format!("create {}", paths.mailbox.display());
        if !target.own_inbox
            && list::count(&paths.root, target.layout) >= self.settings.max_mailboxes as usize
        {
            let why = format!(
                "does not exist, and delivery.max_mailboxes = {} is reached",
                self.settings.max_mailboxes
            );
            return Ok(Finding::Missing(why));
        }
        let parent = match list::nearest_parent(&paths.above, target.layout) {
            Ok(parent) => parent,
            Err(error) => return self.no_way(target, error),
        };
        if let Some(refusal) = self.check_rights_to_create(target)? {
            return Ok(refusal);
        }
        let (existing, stat) = match dir::nearest_existing(&paths.mailbox) {
            Ok(found) => found,
            Err(error) => return self.no_way(target, error),
        };
        match dir::may_write(&existing) {
            Ok(()) => {}
            Err(error) if sys::is_read_only(&error) && !target.own_inbox => {
                return Ok(Finding::Denied(format!(
                    "{doing}: {error} on {}",
                    existing.display()
                )));
            }
            Err(error) if sys::is_no_way(&error) => return self.no_way(target, error),
            Err(error) => {
                return self.end(
                    "path",
                    Fault::io(format!("{doing} in {}", existing.display()), &error),
                );
            }
        }
        // A directory that is to become a mailbox stays as it is, and its parts copy it.
        let is_there = existing == paths.mailbox;
        let source = match self.settings.new_mailbox_permissions {
            _ if is_there => existing.clone(),
            NewMailboxPermissions::Root => paths.root.clone(),
            NewMailboxPermissions::Parent => parent.unwrap_or_else(|| paths.root.clone()),
        };
        let permission = match create::permission_like(&source, paths) {
            Ok(permission) => permission,
            Err(error) => return self.no_way(target, error),
        };
        if let Some(refusal) = self.check_new(target, &permission, (&existing, &stat))? {
            return Ok(refusal);
        }
        self.lines.push(Line::ok(
            "mailbox",
            format!("{}  missing -> created", target.mailbox),
        ));
        let group = permission
            .gid
            .map_or("own".to_owned(), |gid| gid.to_string());
        let setgid = if permission.setgid { SETGID } else { 0 };
        let origin = match permission.origin.exists() {
            true => format!("copied from {}", permission.origin.display()),
            false => "there is nothing to copy from".into(),
        };
        let mode = permission.dir_mode | setgid;
        self.lines.push(Line::ok(
            "directory",
            format!("{mode:04o} group {group}, {origin}"),
        ));
        if let Some(subscription) = &target.subscription {
            let file = subscription.file().display().to_string();
            self.lines.push(Line::ok("subscribed", file));
        }
        self.usable(target, Some(permission))
    }
}
