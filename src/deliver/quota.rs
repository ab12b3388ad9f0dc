//! Whose quota a delivery counts for, whether there is room, and the account of it.
//!
//! Private mailboxes count for their user, shared ones for their owner, public ones for their namespace, where that has a quota.
//! A quota that cannot be read costs no mail (as in Dovecot): the log line says so.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::inspect::Plan;
use super::roots;
use super::settings::Settings;
use super::warning::Warning;
use crate::fault::{Code, Fault};
use crate::mailbox::location::Driver;
use crate::mailbox::lookup::Found;
use crate::mailbox::name::StorageName;
use crate::mailbox::namespace::{Kind, MailboxBlock, Namespace};
use crate::mailbox::path::Paths;
use crate::mailbox::quota::{Limits, Names, Quota, Tree, Usage};
use crate::maildir::maildirsize::{self, Known};
use crate::user::User;

/// `[quota]` and its kin.
#[derive(Debug)]
pub struct Quotas {
    /// Of everyone for whom a userdb says nothing else.
    pub limits: Limits,
    /// `lmtp_rcpt_check_quota`: RCPT says that a mailbox is full.
    pub checks_at_rcpt: bool,
    /// `quota_full_tempfail`: the MTA is to try again.
    pub full_is_temporary: bool,
    /// None: nobody is warned.
    pub warning: Option<Warning>,
    /// What was counted of accounts that say "full", and may be wrong.
    pub counted: Mutex<HashMap<PathBuf, (Instant, Usage)>>,
}

/// How long a count is believed, and how many are remembered: RCPTs for a full mailbox do not count it each time.
const BELIEVED: Duration = Duration::from_secs(60);
const REMEMBERED: usize = 1000;

impl Quotas {
    /// The limits of this user.
    fn limits_of(&self, user: &User) -> Result<Limits, Fault> {
        let mut limits = self.limits.clone();
        for (field, value) in &user.extra {
            let set = limits.set(field, value);
            set.map_err(|why| unclear(user, why))?;
        }
        Ok(limits)
    }

    /// What is there, of an account that may be wrong. Nothing is written.
    fn counted(&self, quota: &Quota) -> io::Result<Usage> {
        let counted = || self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, usage)) = counted().get(&quota.directory)
            && when.elapsed() < BELIEVED
        {
            return Ok(*usage);
        }
        let usage = maildirsize::count(quota)?;
        let mut counted = counted();
        if counted.len() >= REMEMBERED {
            counted.clear();
        }
        counted.insert(quota.directory.clone(), (Instant::now(), usage));
        Ok(usage)
    }

    /// Why a message does not fit: temporary where `quota_full_tempfail` says so.
    pub fn full(&self, quota: &Quota, why: &str) -> Fault {
        let code = match self.full_is_temporary {
            true => Code::QuotaOfDisk,
            false => Code::OverQuota,
        };
        Fault::new(code, format!("store within the quota of {}", quota.of), why)
    }
}

fn unclear(user: &User, why: String) -> Fault {
    let doing = format!("use what the userdb says of the quota of {}", user.name);
    Fault::new(Code::CannotTell, doing, why)
}

/// The quota that a mailbox counts for; `user` is its user or owner, none for a public one.
pub fn of(
    settings: &Settings,
    found: &Found<'_>,
    user: Option<&User>,
    paths: &Paths,
) -> Result<Option<Quota>, Fault> {
    let namespace = found.namespace;
    if namespace.location.dovecots().is_some() {
        return Ok(None);
    }
    let (Some(quotas), Driver::Maildir) = (&settings.quotas, namespace.location.driver) else {
        return Ok(None);
    };
    let blocks = || {
        namespace
            .mailboxes
            .iter()
            .filter(|it| it.name == found.rest)
    };
    if blocks().any(|it| it.quota_ignore) {
        return Ok(None);
    }
    let mut extra = blocks().map(|it| it.quota_storage_extra).max().unwrap_or(0);
    let (of, limits, trees, directory) = match (namespace.kind, user) {
        (Kind::Private | Kind::Shared, Some(user)) => {
            let limits = quotas.limits_of(user)?;
            let namespaces = settings.namespaces_of(user)?;
            let own = roots::own_roots_of(settings, &namespaces, user)?;
            let name = match namespace.kind {
                Kind::Shared => owners_name(found, paths, &own, user),
                _ => found.full_name(),
            };
            match limits.beside(&name) {
                Ok(Some(beside)) => extra = extra.max(beside),
                Ok(None) => return Ok(None),
                Err(why) => return Err(unclear(user, why)),
            }
            let (trees, directory) = trees_of(own, user, &limits);
            (user.name.clone(), limits, trees, directory)
        }
        (Kind::Public, _) => {
            let Some(limits) = &namespace.quota else {
                return Ok(None);
            };
            let tree = Tree {
                paths: paths.clone(),
                layout: namespace.location.layout,
                ignored: ignored(namespace),
                names: None,
            };
            let directory = paths.control_root.clone();
            let of = format!("namespace {}", namespace.name);
            (of, limits.clone(), vec![tree], Some(directory))
        }
        _ => return Ok(None),
    };
    let root = trees.first().map(|tree| tree.paths.root.clone());
    Ok(directory.zip(root).map(|(directory, root)| Quota {
        of,
        limits,
        extra,
        directory,
        root,
        trees,
    }))
}

/// All that counts for a user, that of his INBOX first, and where the account is kept.
fn trees_of(
    own: Vec<(&Namespace, Paths)>,
    user: &User,
    limits: &Limits,
) -> (Vec<Tree>, Option<PathBuf>) {
    let mut trees: Vec<Tree> = Vec::new();
    let mut directory = None;
    for (namespace, paths) in own {
        if namespace.location.driver != Driver::Maildir {
            continue;
        }
        let at = match namespace.inbox {
            true => {
                directory = Some(paths.control_root.clone());
                0
            }
            false => trees.len(),
        };
        if trees.iter().any(|tree| tree.paths.root == paths.root) {
            continue;
        }
        let rules = limits.rules.iter();
        let names = (!limits.rules.is_empty()).then(|| Names {
            prefix: namespace.prefix_for(&user.name).into_owned(),
            has_inbox: namespace.inbox,
            separator: namespace.separator,
            utf8: namespace.location.utf8,
            escape: namespace.location.storage_escape_char,
            rules: rules
                .map(|rule| (rule.mailbox.clone(), rule.ignore))
                .collect(),
        });
        let tree = Tree {
            paths,
            layout: namespace.location.layout,
            ignored: ignored(namespace),
            names,
        };
        trees.insert(at, tree);
    }
    (trees, directory)
}

/// The full name of a shared mailbox for the one who owns it: that is how his rules mean it.
fn owners_name(
    found: &Found<'_>,
    paths: &Paths,
    own: &[(&Namespace, Paths)],
    owner: &User,
) -> String {
    let Some((namespace, _)) = own.iter().find(|(_, own)| own.root == paths.root) else {
        return found.rest.clone();
    };
    let separator = namespace.separator.to_string();
    let rest = found.rest.replace(found.namespace.separator, &separator);
    match rest == "INBOX" && namespace.inbox {
        true => rest,
        false => format!("{}{rest}", namespace.prefix_for(&owner.name)),
    }
}

/// The storage names of mailboxes whose sections say that they do not count.
fn ignored(namespace: &Namespace) -> Vec<String> {
    let blocks = namespace.mailboxes.iter();
    let blocks = blocks.filter(|it: &&MailboxBlock| it.quota_ignore);
    let storage = blocks.filter_map(|it| StorageName::parse(&it.name, namespace).ok());
    let separator = namespace.location.layout.separator();
    storage
        .map(|name| match name {
            StorageName::Inbox => "INBOX".into(),
            StorageName::Box(levels) => levels.join(&separator.to_string()),
        })
        .collect()
}

/// What inspection knows of a quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    Known(Known),
    /// It has to be counted first: a delivery does that.
    Unknown,
    /// It cannot be read, and costs no mail.
    Unreadable(String),
}

/// Reads the account, and why it takes no message at all.
pub fn room(quotas: &Quotas, quota: &Quota) -> (Room, Option<String>) {
    let full = |usage| quota.limits.refuse(usage, 0, quota.extra);
    let read = maildirsize::read(quota).and_then(|known| match known {
        Some(known) if known.is_doubtful && full(known.usage).is_some() => {
            let usage = quotas.counted(quota)?;
            Ok(Some(Known { usage, ..known }))
        }
        known => Ok(known),
    });
    match read {
        Ok(Some(known)) => (Room::Known(known), full(known.usage)),
        Ok(None) => (Room::Unknown, None),
        Err(error) => (Room::Unreadable(error.to_string()), None),
    }
}

/// Whether a message of so many bytes on disk fits. A remark for the log line where that cannot be told.
pub fn admit(settings: &Settings, plan: &Plan, size: u64) -> Result<Option<String>, Fault> {
    let (Some(quotas), Some(quota)) = (&settings.quotas, &plan.target.quota) else {
        return Ok(None);
    };
    if quota.limits.are_none() || plan.ignores_quota {
        return Ok(None);
    }
    let refuse = |usage| quota.limits.refuse(usage, size, quota.extra);
    let room = plan.room.clone().unwrap_or(Room::Unknown);
    let counted = match room {
        Room::Known(known) => match refuse(known.usage) {
            None => return Ok(None),
            // That it is full is not said by an account that may have gathered mistakes.
            Some(_) if known.is_doubtful => maildirsize::rebuild(quota),
            Some(why) => return Err(quotas.full(quota, &why)),
        },
        Room::Unknown => maildirsize::rebuild(quota),
        Room::Unreadable(why) => return Ok(Some(unreadable(quota, &why))),
    };
    match counted {
        Ok((usage, written)) => match refuse(usage) {
            Some(why) => Err(quotas.full(quota, &why)),
            None => Ok(written.err().map(|it| unreadable(quota, &it.to_string()))),
        },
        Err(error) => Ok(Some(unreadable(quota, &error.to_string()))),
    }
}

/// Tells the account of a message that was stored.
pub fn add(quota: Option<&Quota>, size: u64) -> Option<String> {
    let quota = quota?;
    let added = maildirsize::add(quota, size);
    added.err().map(|it| unreadable(quota, &it.to_string()))
}

fn unreadable(quota: &Quota, why: &str) -> String {
    let file = quota.directory.join(maildirsize::FILE);
    format!("quota of {}: {}: {why}", quota.of, file.display())
}
