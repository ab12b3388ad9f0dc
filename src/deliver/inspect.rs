//! What is there, what is allowed, what would the file look like: from [`Targets`] to a [`Plan`] and its [`Report`].
//!
//! Reads only, under the identity that delivers. A [`Plan`] never leaves its process.

mod maildir;
mod mbox;
mod rights;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::quota::{self, Room};
use super::recent::Recent;
use super::report::{Line, Report};
use super::settings::{Permissions, Settings};
use super::size;
use super::targets::{By, Target, Targets, Wanted};
use crate::fault::{Code, Fault};
use crate::mailbox::acl::Rights;
use crate::mailbox::agent::{Agent, HandOver};
use crate::mailbox::link::{Links, Why};
use crate::mailbox::location::Driver;
use crate::mailbox::namespace::{Kind, OnDenied, OnMissing};
use crate::mailbox::permission::{Permission, SETGID, how_to_inherit};
use crate::mailbox::quota::Usage;
use crate::maildir::{Maildir, list};
use crate::message::{Flags, Keywords};
use crate::sys;
use crate::sys::credentials::Credentials;
use crate::sys::dir::{self, Stat};

/// One delivery, decided.
#[derive(Debug)]
pub struct Plan {
    pub target: Target,
    /// Whose namespaces deliver.
    pub user: String,
    /// The mailbox has to be made first, with these permissions.
    pub create: Option<Permission>,
    /// Which symlinks to it are followed.
    pub links: Links,
    /// A Maildir that is whole, open.
    pub mailbox: Option<Arc<Maildir>>,
    /// What the message is stored with.
    pub flags: Flags,
    pub keywords: Keywords,
    /// The flags and keywords that it should have had, and why it has not.
    pub dropped: Option<String>,
    /// The mailbox that was asked for and why it is not this one.
    pub instead_of: Option<(String, String)>,
    /// What is known of its quota; none where there is none, or nothing is refused for it.
    pub room: Option<Room>,
    pub ignores_quota: bool,
    /// The largest message that this user gets, in bytes, and what says so.
    pub most: Option<(u64, &'static str)>,
}

/// What was found at one target.
enum Finding {
    Usable(Box<Plan>),
    Missing(String),
    Denied(String),
}

/// The decision for one recipient. The report holds every step of it, also when it ends in a fault. `recent`: for mailboxes that stay
/// open for the next message.
pub fn inspect(
    settings: &Settings,
    targets: &Targets,
    identity: &Credentials,
    recent: Option<&Recent>,
) -> (Result<Plan, Fault>, Report) {
    let mut inspection = Inspection {
        settings,
        targets,
        identity,
        recent,
        lines: targets.lines.clone(),
        rights: Rights::all(),
    };
    let plan = inspection.decide();
    let fault = plan.as_ref().err().cloned();
    if let Some(fault) = &fault
        && inspection.lines.iter().all(|line| line.ok)
    {
        inspection
            .lines
            .push(Line::fail("decision", fault.to_string()));
    }
    let report = Report {
        recipient: targets.recipient.clone(),
        lines: inspection.lines,
        mailbox: plan.as_ref().ok().map(|plan| plan.target.mailbox.clone()),
        hand_over: plan
            .as_ref()
            .ok()
            .and_then(|plan| plan.target.hand_over.clone()),
        fault,
    };
    (plan, report)
}

struct Inspection<'a> {
    settings: &'a Settings,
    targets: &'a Targets,
    lines: Vec<Line>,
    identity: &'a Credentials,
    recent: Option<&'a Recent>,
    /// Of the subject, on the mailbox that is looked at.
    rights: Rights,
}

impl Inspection<'_> {
    fn decide(&mut self) -> Result<Plan, Fault> {
        if let Some(node) = &self.targets.node {
            let doing = format!("deliver to {}", self.targets.user.name);
            let why = format!("{node} has his mail, and the LMTP server alone passes mail on");
            return self.end("user", Fault::new(Code::CannotTell, doing, why));
        }
        self.check_required_paths()?;
        self.check_identity()?;
        let targets = self.targets;
        let (mailbox, finding) = match &targets.wanted {
            Wanted::Target(target) => (&target.mailbox, self.examine_wanted(target)?),
            Wanted::Missing { mailbox, why } => (mailbox, Finding::Missing(why.clone())),
            Wanted::Denied { mailbox, why } => (mailbox, Finding::Denied(why.clone())),
            Wanted::Elsewhere { mailbox, .. } => {
                let doing = format!("deliver to {mailbox}");
                let why = "another server has it, and the LMTP server alone passes mail on";
                return self.end("mailbox", Fault::new(Code::CannotTell, doing, why));
            }
        };
        match finding {
            Finding::Usable(plan) => Ok(*plan),
            Finding::Missing(why) => self.missing(mailbox, why),
            Finding::Denied(why) => self.denied(mailbox, why),
        }
    }

    /// A route that fails never costs the mail: INBOX stands behind it.
    fn examine_wanted(&mut self, target: &Target) -> Result<Finding, Fault> {
        match self.examine(target) {
            Err(fault) if self.targets.by == By::Route => {
                self.lines.iter_mut().for_each(|line| line.ok = true);
                Ok(Finding::Missing(fault.to_string()))
            }
            other => other,
        }
    }

    fn missing(&mut self, mailbox: &str, why: String) -> Result<Plan, Fault> {
        let fault = |code| Fault::new(code, format!("deliver to {mailbox}"), why.clone());
        let inbox = match self.targets.on_missing {
            OnMissing::Reject => return self.refuse(fault(Code::NoSuchMailbox)),
            OnMissing::Defer => return self.end("mailbox", fault(Code::NotNow)),
            OnMissing::Create | OnMissing::Inbox => self.fall_back("on_missing", mailbox, &why)?,
            OnMissing::Parent => {
                self.lines.push(Line::ok(
                    "mailbox",
                    format!("{mailbox}  {why} -> on_missing=parent"),
                ));
                match self.parent(mailbox, &why)? {
                    Some(plan) => Some(plan),
                    None => self.fall_back("on_missing", mailbox, &why)?,
                }
            }
        };
        inbox.map_or_else(|| self.refuse(fault(Code::NoSuchMailbox)), Ok)
    }

    fn denied(&mut self, mailbox: &str, why: String) -> Result<Plan, Fault> {
        let fault = |code| Fault::new(code, format!("deliver to {mailbox}"), why.clone());
        let inbox = match self.targets.on_denied {
            OnDenied::Reject => return self.refuse(fault(Code::Denied)),
            OnDenied::Defer => return self.end("mailbox", fault(Code::NotNow)),
            OnDenied::Inbox => self.fall_back("on_denied", mailbox, &why)?,
        };
        inbox.map_or_else(|| self.refuse(fault(Code::Denied)), Ok)
    }

    /// A no for good; not where the root of the namespace is not there either, and cannot be made: the store may not be mounted. Nor
    /// where the admin's mailbox is to be made on a disk that is read-only. What a stranger hears of others' mailboxes is one answer,
    /// whether they are hidden or missing.
    fn refuse<T>(&mut self, fault: Fault) -> Result<T, Fault> {
        let Wanted::Target(target) = &self.targets.wanted else {
            return self.end("mailbox", fault);
        };
        let by = self.targets.by;
        let is_told = !(target.kind == Kind::Shared && by == By::Detail);
        if is_told && !is_there(&target.paths.root) && !can_be_made(&target.paths.root) {
            return self.without_root(target);
        }
        let is_denied = fault.code == Code::Denied && !by.is_strangers();
        let mailbox = &target.paths.mailbox;
        if is_denied && !is_there(mailbox) && is_on_read_only_disk(mailbox) {
            let doing = format!("create {}", target.paths.mailbox.display());
            let fault = Fault::new(Code::NotNow, doing, "its file system is read-only");
            return self.end("path", fault.with_advice("mount it for writing"));
        }
        self.end("mailbox", fault)
    }

    fn without_root<T>(&mut self, target: &Target) -> Result<T, Fault> {
        let doing = format!("find the root {}", target.paths.root.display());
        let fault = Fault::new(Code::NotNow, doing, "it is not there");
        self.end("path", fault.with_advice("mount the store, or make it"))
    }

    /// The nearest parent that takes the message. Not beyond the rule's own mailbox where a symlink to it leads nowhere: what that leads to
    /// may not be mounted.
    fn parent(&mut self, mailbox: &str, why: &str) -> Result<Option<Plan>, Fault> {
        for parent in &self.targets.parents {
            let paths = &parent.paths;
            if self.targets.by == By::Child
                && self.targets.rule_mailbox.as_ref() == Some(&parent.mailbox)
                && let Err(not_followed) = self.links(parent).check(&paths.root, &paths.mailbox)
                && matches!(not_followed.why, Why::Nowhere)
            {
                let doing = format!("look at {}", paths.mailbox.display());
                let fault = Fault::new(Code::NotNow, doing, not_followed.to_string());
                let advice = "mount what it leads to, or remove it";
                return self.end("path", fault.with_advice(advice));
            }
            if let Finding::Usable(mut plan) = self.examine(parent)? {
                plan.instead_of = Some((mailbox.into(), why.into()));
                return Ok(Some(*plan));
            }
        }
        Ok(None)
    }

    /// INBOX in place of `mailbox`; `None` where INBOX is what was asked for.
    fn fall_back(&mut self, rule: &str, mailbox: &str, why: &str) -> Result<Option<Plan>, Fault> {
        let Some(inbox) = &self.targets.inbox else {
            return Ok(None);
        };
        self.lines.push(Line::ok(
            "mailbox",
            format!("{mailbox}  {why} -> {rule}=inbox -> INBOX"),
        ));
        match self.examine(inbox)? {
            Finding::Usable(mut plan) => {
                plan.instead_of = Some((mailbox.into(), why.into()));
                Ok(Some(*plan))
            }
            Finding::Missing(why) | Finding::Denied(why) => self.end(
                "mailbox",
                Fault::new(Code::Storage, "deliver to INBOX", why),
            ),
        }
    }

    /// Adds the line that ends the delivery.
    fn end<T>(&mut self, label: &str, fault: Fault) -> Result<T, Fault> {
        self.lines.push(Line::fail(label, fault.to_string()));
        Err(fault)
    }

    fn check_required_paths(&mut self) -> Result<(), Fault> {
        for path in &self.settings.required_paths {
            if let Err(error) = dir::stat(path) {
                let fault = Fault::new(
                    Code::NotNow,
                    format!("find the required path {}", path.display()),
                    error.to_string(),
                );
                return self.end(
                    "required",
                    fault.with_advice("mount the store, or take it off delivery.required_paths"),
                );
            }
        }
        Ok(())
    }

    /// A file is owned by whoever delivers: that must be the user.
    fn check_identity(&mut self) -> Result<(), Fault> {
        let (wanted, own) = (&self.targets.user.credentials, self.identity);
        if wanted.uid != own.uid {
            let doing = format!(
                "deliver as uid {} of {}",
                wanted.uid, self.targets.user.name
            );
            let fault = Fault::new(
                Code::CannotTell,
                doing,
                format!("this process runs as uid {}", own.uid),
            );
            let advice = format!(
                "run it as uid {}, or let the userdb return uid {}",
                wanted.uid, own.uid
            );
            return self.end("identity", fault.with_advice(advice));
        }
        self.lines.push(Line::ok(
            "identity",
            format!("uid={} gid={} groups={:?}", own.uid, own.gid, own.groups),
        ));
        Ok(())
    }

    /// One target: there or not, allowed or not, or a fault.
    fn examine(&mut self, target: &Target) -> Result<Finding, Fault> {
        self.rights = Rights::all();
        if let Some(hand_over) = &target.hand_over {
            return self.examine_dovecots(target, hand_over);
        }
        let namespace = format!(
            "{}  ({}, {})",
            target.namespace,
            kind(target.kind),
            target.paths.root.display()
        );
        self.lines.push(Line::ok("namespace", namespace));
        self.lines
            .push(Line::ok("path", target.paths.mailbox.display().to_string()));
        if let Some(refusal) = self.check_links(target)? {
            return Ok(refusal);
        }
        if target.driver == Driver::Mbox {
            return self.examine_mbox(target);
        }
        let kept = self.recent.and_then(|it| it.mailbox(&target.paths.mailbox));
        if kept.is_some() {
            return self.existing(target, kept);
        }
        match list::exists(&target.paths.mailbox, target.layout, target.is_inbox) {
            Ok(Some(_)) => self.existing(target, None),
            Ok(None) if target.create => self.creatable(target),
            Ok(None) => self.missing_target(target),
            Err(error) => self.no_way(target, error),
        }
    }

    /// Dovecot decides the rest. What can be seen is whether there is a program to run.
    fn examine_dovecots(
        &mut self,
        target: &Target,
        HandOver { agent, recipient }: &HandOver,
    ) -> Result<Finding, Fault> {
        let namespace = format!("{}  ({}, Dovecot's)", target.namespace, kind(target.kind));
        self.lines.push(Line::ok("namespace", namespace));
        let mailbox = format!("{}  Dovecot's: it decides", target.mailbox);
        self.lines.push(Line::ok("mailbox", mailbox));
        let shown = match agent {
            Agent::Lmtp { .. } => format!("{agent} to <{recipient}>"),
            Agent::Lda { program, .. } => {
                if let Err(error) = dir::may_run(program) {
                    let doing = format!("run {}", program.display());
                    let fault = Fault::new(Code::Unreachable, doing, error.to_string());
                    return self.end("hand over", fault.with_advice("see hand_over"));
                }
                agent.to_string()
            }
        };
        self.lines.push(Line::ok("hand over", shown));
        self.usable(target, None)
    }

    fn links(&self, target: &Target) -> Links {
        let mut mail_roots = self.settings.mail_roots(self.targets.user.home.as_deref());
        mail_roots.push(target.paths.root.clone());
        Links {
            uid: self.identity.uid,
            lent: self.targets.user.lent.clone(),
            mail_roots,
        }
    }

    fn check_links(&mut self, target: &Target) -> Result<Option<Finding>, Fault> {
        let paths = &target.paths;
        let checked = self.links(target).check(&paths.root, &paths.mailbox);
        let not_followed = match checked {
            Ok(real) => {
                let shown = real.map(|real| Line::ok("symlink", format!("-> {}", real.display())));
                self.lines.extend(shown);
                return Ok(None);
            }
            Err(not_followed) => not_followed,
        };
        let doing = format!("look at {}", paths.mailbox.display());
        let may_choose = self.targets.by.is_strangers() && !target.own_inbox;
        let is_child = self.targets.by == By::Child;
        match not_followed.why {
            // What it leads to may not be mounted: the rule's own mailbox stands in.
            Why::Nowhere if is_child && self.targets.on_missing == OnMissing::Parent => {
                return Ok(Some(Finding::Missing(not_followed.to_string())));
            }
            Why::Nowhere | Why::Refused(_) if may_choose => {
                return Ok(Some(Finding::Denied(format!("{doing}: {not_followed}"))));
            }
            _ => {}
        }
        self.end(
            "path",
            Fault::new(Code::Storage, doing, not_followed.to_string()),
        )
    }

    /// What is gone with its root is not what is missing.
    fn missing_target(&mut self, target: &Target) -> Result<Finding, Fault> {
        if target.kind == Kind::Public && !is_there(&target.paths.root) {
            return self.without_root(target);
        }
        Ok(Finding::Missing("the mailbox does not exist".into()))
    }

    /// A path that cannot be followed: denied where a stranger named it, a fault where the admin did.
    fn no_way(&mut self, target: &Target, error: io::Error) -> Result<Finding, Fault> {
        let doing = format!("look at {}", target.paths.mailbox.display());
        if self.targets.by.is_strangers() && !target.own_inbox && sys::is_no_way(&error) {
            return Ok(Finding::Denied(format!("{doing}: {error}")));
        }
        self.end("path", Fault::io(doing, &error))
    }

    /// Whether what is made in `existing`, the nearest directory that is there, can have this permission, and may.
    fn check_new(
        &mut self,
        target: &Target,
        permission: &Permission,
        (existing, stat): (&Path, &Stat),
    ) -> Result<Option<Finding>, Fault> {
        let paths = &target.paths;
        let doing = format!("create {}", paths.mailbox.display());
        if existing.starts_with(&paths.root) {
            let parent = match first_existing(&paths.above) {
                Ok(parent) => parent.unwrap_or(*stat),
                Err(error) => return self.no_way(target, error).map(Some),
            };
            if existing != paths.mailbox && permission.wider_than(&parent) {
                let why = format!(
                    "{doing}: mode {:04o} would be wider than its parent's",
                    permission.dir_mode
                );
                return Ok(Some(Finding::Denied(why)));
            }
            let Credentials {
                uid, gid, groups, ..
            } = self.identity;
            if self.targets.by.is_strangers()
                && !target.own_inbox
                && !permission.group_can_be_had(stat, *gid, groups, *uid == 0)
            {
                let why = format!(
                    "{doing}: the group of {} cannot be had",
                    permission.origin.display()
                );
                return Ok(Some(Finding::Denied(why)));
            }
            self.check_group(target, permission, stat, existing, true)?;
        } else {
            let (mode, uid) = (permission.file_mode, self.identity.uid);
            let gid = permission.gid.unwrap_or(self.identity.gid);
            self.lines.push(Line::ok(
                "new file",
                format!("{mode:04o} uid={uid} gid={gid}"),
            ));
        }
        Ok(None)
    }

    fn usable(&mut self, target: &Target, create: Option<Permission>) -> Result<Finding, Fault> {
        let room = self.check_quota(target)?;
        let most = self.check_size(target)?;
        let (flags, keywords, dropped) = self.flags(target);
        let plan = Plan {
            target: target.clone(),
            user: self.targets.user.name.clone(),
            create,
            links: self.links(target),
            mailbox: None,
            flags,
            keywords,
            dropped,
            instead_of: None,
            room,
            ignores_quota: self.targets.ignores_quota,
            most,
        };
        Ok(Finding::Usable(Box::new(plan)))
    }

    /// What is announced as too large is not sent at all.
    fn check_size(&mut self, target: &Target) -> Result<Option<(u64, &'static str)>, Fault> {
        let announced = self.targets.announced;
        let checked = size::most(self.settings, &self.targets.user).and_then(|most| {
            if let Some(announced) = announced {
                size::check(most, announced)?;
            }
            if let Some(announced) = announced.filter(|_| target.hand_over.is_none()) {
                size::check_space(self.settings, &target.paths.root, announced)?;
            }
            Ok(most)
        });
        checked.or_else(|fault| self.end("size", fault))
    }

    /// A full mailbox takes nothing, wherever else its user has room.
    fn check_quota(&mut self, target: &Target) -> Result<Option<Room>, Fault> {
        let (Some(quotas), Some(quota)) = (&self.settings.quotas, &target.quota) else {
            return Ok(None);
        };
        if quota.limits.are_none() {
            return Ok(None);
        }
        let (room, full) = quota::room(quotas, quota);
        let limits = quota.limits.line();
        let shown = match &room {
            Room::Known(known) => {
                let Usage { bytes, messages } = known.usage;
                format!(
                    "{}: {bytes} bytes, {messages} messages of {limits}",
                    quota.of
                )
            }
            Room::Unknown => format!("{}: to be counted, limits {limits}", quota.of),
            Room::Unreadable(why) => format!("{}: {why}, which costs no mail", quota.of),
        };
        let is_left = self.targets.ignores_quota || self.targets.leaves_full;
        match full {
            Some(why) if quotas.checks_at_rcpt && !is_left => {
                self.end("quota", quotas.full(quota, &why))
            }
            _ => {
                self.lines.push(Line::ok("quota", shown));
                Ok(Some(room))
            }
        }
    }

    /// Whether a new file in `parent` would get the group that the mailbox asks for. `makes`: directories are made too,
    /// and no directory is ever made with a wrong group.
    fn check_group(
        &mut self,
        target: &Target,
        permission: &Permission,
        parent: &Stat,
        path: &Path,
        makes: bool,
    ) -> Result<(), Fault> {
        let Credentials {
            uid,
            gid: egid,
            groups,
            ..
        } = self.identity;
        let fits = permission.group_can_be_had(parent, *egid, groups, *uid == 0);
        let gid = permission.gid.unwrap_or(if parent.mode & SETGID != 0 {
            parent.gid
        } else {
            *egid
        });
        let shown = format!("{:04o} uid={uid} gid={gid}", permission.file_mode);
        if fits {
            self.lines.push(Line::ok("new file", shown));
            return Ok(());
        }
        let why = format!("the mailbox asks for group {gid}, which uid {uid} is not a member of");
        let mut advice = format!("add uid {uid} to group {gid}, or list it in mail_access_groups");
        if parent.mode & SETGID == 0 {
            let inherited = how_to_inherit(path, gid);
            advice = match permission.setgid {
                true => inherited,
                false => format!("{advice}, or: {inherited}"),
            };
        }
        if target.permissions == Permissions::BestEffort && !makes {
            self.lines.push(Line::ok(
                "new file",
                format!("{shown} wanted; {why} (best effort)"),
            ));
            return Ok(());
        }
        let fault = Fault::new(
            Code::Permissions,
            format!("store in {}", target.mailbox),
            why,
        );
        self.end("new file", fault.with_advice(advice))
    }
}

/// Or cannot be looked at: what follows tells why.
fn is_there(path: &Path) -> bool {
    !dir::stat(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// As that of a user who has had no mail yet.
fn can_be_made(path: &Path) -> bool {
    dir::nearest_existing(path).is_ok_and(|(at, _)| dir::may_write(&at).is_ok())
}

fn is_on_read_only_disk(path: &Path) -> bool {
    dir::nearest_existing(path).is_ok_and(|(at, _)| {
        let may = dir::may_write(&at);
        may.is_err_and(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem)
    })
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Private => "private",
        Kind::Public => "public",
        Kind::Shared => "shared",
    }
}

/// The stat of the first of these that is there.
fn first_existing(paths: &[PathBuf]) -> io::Result<Option<Stat>> {
    for path in paths {
        match dir::stat(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            stat => return stat.map(Some),
        }
    }
    Ok(None)
}
