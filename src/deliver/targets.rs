//! What an address comes to: plain data. The second half of a delivery may run elsewhere.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::placement::Node;
use super::report::Line;
use super::settings::{self, Permissions};
use crate::mailbox::acl::Sources;
use crate::mailbox::agent::HandOver;
use crate::mailbox::location::{Driver, Layout};
use crate::mailbox::namespace::{Kind, OnDenied, OnMissing};
use crate::mailbox::path::Paths;
use crate::mailbox::quota::Quota;
use crate::mailbox::subscriptions::Subscription;
use crate::maildir::list::is_there;
use crate::message::{Flags, Keywords, Recipient};
use crate::user::User;

/// Everything that the second half of a delivery needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Targets {
    /// The recipient as given.
    pub recipient: String,
    /// Whose namespaces, uid and groups deliver.
    pub user: User,
    pub by: By,
    pub wanted: Wanted,
    /// The parents of the wanted mailbox, nearest first, where a parent may take its mail.
    pub parents: Vec<Target>,
    /// That of the rule, where one of the address map has the address.
    pub rule_mailbox: Option<String>,
    /// Another server has all mailboxes of the user, and decides: nothing of the rest counts.
    pub node: Option<Node>,
    /// Whose rights count.
    pub subject: settings::Subject,
    /// The user's INBOX, where it is not what is wanted anyway.
    pub inbox: Option<Target>,
    pub on_missing: OnMissing,
    pub on_denied: OnDenied,
    /// What the message is to be stored with.
    pub flags: Flags,
    pub keywords: Keywords,
    /// And what a route adds to that in its mailbox, not in what stands in for it.
    pub route_flags: Flags,
    pub route_keywords: Keywords,
    /// Somebody trusted says so.
    pub ignores_quota: bool,
    /// Nobody knows whether the message, or one with its Message-ID, is there: a full mailbox is looked into before it is refused.
    pub leaves_full: bool,
    /// Bytes that the message will have; none: it is not announced, or here already.
    pub announced: Option<u64>,
    /// The decisions so far.
    pub lines: Vec<Line>,
}

/// What named the wanted mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum By {
    /// Nothing: INBOX.
    Default,
    /// `alice+Work@…`: a stranger's word. It must never fill the MTA's queue.
    Detail,
    /// `-m`.
    Flag,
    /// `[[address]]`.
    Map,
    /// The detail of such an address: a child of its mailbox, and a stranger's word again.
    Child,
    /// Another server, for one of its users.
    Errand,
    /// `[[route]]`: it never costs the mail, INBOX stands behind it.
    Route,
}

/// The mailbox that is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Wanted {
    Target(Box<Target>),
    /// No such namespace or no such owner.
    Missing {
        mailbox: String,
        why: String,
    },
    /// A name that is not allowed here.
    Denied {
        mailbox: String,
        why: String,
    },
    /// Other servers have it, and what may stand in for it: the first that takes the message.
    Elsewhere {
        mailbox: String,
        places: Vec<(String, Node)>,
    },
}

/// A mailbox that could take the message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// The full name.
    pub mailbox: String,
    /// The namespace's section name.
    pub namespace: String,
    pub kind: Kind,
    pub driver: Driver,
    pub layout: Layout,
    pub paths: Arc<Paths>,
    /// Only Dovecot writes it: its way there. Whether it is there, and who may store, Dovecot knows.
    pub hand_over: Option<HandOver>,
    /// The INBOX of this namespace's user or owner.
    pub is_inbox: bool,
    /// The delivering user's own INBOX: always created, never stopped by an ACL.
    pub own_inbox: bool,
    /// Whose mailbox it is, by his canonical name; a public one is nobody's.
    pub owner: Option<String>,
    /// Whose rights count.
    pub subject: Subject,
    /// What says which rights he has; none where no ACL counts.
    pub acl: Option<Sources>,
    /// Configured with `auto`: it counts as there.
    pub is_configured: bool,
    /// Made on demand: `auto = create`, `on_missing = create`, the own INBOX.
    pub create: bool,
    /// Where IMAP clients are told of it once it is made.
    pub subscription: Option<Subscription>,
    pub permissions: Permissions,
    /// What it counts for.
    pub quota: Option<Box<Quota>>,
    /// Seconds in which a second message with the same Message-ID is not stored; 0: it is.
    pub alike_window: u64,
    /// Not one set of control files for all who read it: a keyword's letter would mean something else to each.
    pub control_per_user: bool,
}

/// Whose rights count at a mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// None: nobody in particular.
    pub name: Option<String>,
    pub groups: Vec<String>,
    pub is_owner: bool,
}

impl Targets {
    /// The mailbox that is asked for, by its full name.
    pub fn wanted_name(&self) -> &str {
        match &self.wanted {
            Wanted::Target(target) => &target.mailbox,
            Wanted::Missing { mailbox, .. }
            | Wanted::Denied { mailbox, .. }
            | Wanted::Elsewhere { mailbox, .. } => mailbox,
        }
    }

    /// Where it may be stored, and would not be beside another message with its Message-ID.
    pub fn alike_places(&self) -> Vec<String> {
        let wanted = match &self.wanted {
            Wanted::Target(target) => Some(&**target),
            Wanted::Missing { .. } | Wanted::Denied { .. } | Wanted::Elsewhere { .. } => None,
        };
        let targets = wanted.into_iter().chain(&self.parents).chain(&self.inbox);
        targets
            .filter(|it| it.alike_window > 0 && it.hand_over.is_none())
            .map(|it| it.place())
            .collect()
    }

    /// The flags and keywords that the message is to have in `target`.
    pub fn marks_in(&self, target: &Target) -> (Flags, Keywords) {
        match &self.wanted {
            Wanted::Target(wanted) if **wanted == *target => (
                self.flags.with(self.route_flags),
                self.keywords.clone().with(&self.route_keywords),
            ),
            _ => (self.flags, self.keywords.clone()),
        }
    }

    /// Of a user whom another server has.
    pub(super) fn at(
        node: Node,
        recipient: &Recipient,
        user: User,
        mailbox: String,
        lines: Vec<Line>,
    ) -> Targets {
        Targets {
            recipient: recipient.shown(),
            user,
            by: By::Default,
            wanted: Wanted::Missing {
                mailbox,
                why: format!("{node} has it"),
            },
            parents: Vec::new(),
            rule_mailbox: None,
            node: Some(node),
            subject: settings::Subject::Recipient,
            inbox: None,
            on_missing: OnMissing::Defer,
            on_denied: OnDenied::Defer,
            flags: recipient.flags,
            keywords: recipient.keywords.clone(),
            route_flags: Flags::default(),
            route_keywords: Keywords::default(),
            ignores_quota: recipient.ignore_quota,
            leaves_full: false,
            announced: None,
            lines,
        }
    }
}

impl Target {
    /// Its path, as what was stored there has it.
    pub fn place(&self) -> String {
        self.paths.mailbox.display().to_string()
    }

    /// The nearest mailbox above this one, whose rights a new one inherits. The root is none: where it is the INBOX, that
    /// is above its own children only.
    /// Err: nobody can tell now, and without a parent it would have other rights.
    pub fn parent(&self) -> io::Result<Option<PathBuf>> {
        let Some((root, parents)) = self.paths.above.split_last() else {
            return Ok(None);
        };
        let is_inbox = |path: &Path| path == root.join(".INBOX") || path == root.join("INBOX");
        for path in parents {
            if is_there(path, self.layout)? {
                return Ok(Some(path.clone()));
            }
            let is_private = matches!(self.kind, Kind::Private | Kind::Shared);
            if is_private && is_inbox(path) && is_there(&self.paths.inbox, self.layout)? {
                return Ok(Some(self.paths.inbox.clone()));
            }
        }
        Ok(None)
    }
}

impl By {
    /// Whether whoever writes an address chose the name: it must never fill the MTA's queue.
    pub fn is_strangers(self) -> bool {
        matches!(self, By::Detail | By::Child)
    }

    /// For people, behind the mailbox in `explain`'s line `wanted`.
    pub fn text(self) -> &'static str {
        match self {
            By::Default => "default",
            By::Detail => "the detail of the address",
            By::Flag => "-m",
            By::Map => "the address map",
            By::Child => "the address map and the detail",
            By::Errand => "another server",
            By::Route => "a header route",
        }
    }
}
