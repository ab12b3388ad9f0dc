//! Namespaces: which part of the name space of mailboxes lies where (Dovecot "Namespaces").

pub mod check;

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::acl::sources::Rules;
use super::location::Location;
use super::quota::Limits;
use crate::text::template::{Template, TemplateError, Variables};

/// One `[namespace.NAME]` section, defaults filled in.
///
/// What says no more here is Dovecot's setting of its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Namespace {
    /// The section's name: used in messages and by userdb overrides, never part of a mailbox name.
    pub name: String,
    pub kind: Kind,
    /// Ends with the separator unless empty. A shared one holds `$user`, `$username` or `$domain`.
    pub prefix: String,
    /// What divides parent from child in names; the layout's own where the config says nothing.
    pub separator: char,
    /// Exactly one namespace has the user's INBOX.
    pub inbox: bool,
    pub hidden: bool,
    pub list: List,
    pub subscriptions: bool,
    /// The name of the namespace that this one is another name for.
    pub alias_for: Option<String>,
    pub order: u32,
    pub disabled: bool,
    pub ignore_on_failure: bool,
    pub location: Location,
    pub mailboxes: Vec<MailboxBlock>,
    /// Overrides `delivery.on_missing` in this namespace.
    pub on_missing: Option<OnMissing>,
    /// How long a second message with the same Message-ID is not stored in the same mailbox; zero or none: it is.
    pub duplicate_message_ids: Option<Duration>,
    /// For its mailboxes.
    pub acl: Rules,
    /// Of a public one: of all its mailboxes together.
    pub quota: Option<Limits>,
}

impl Namespace {
    /// The prefix as `user` has it: `~%{user}/mail/` is another one for each.
    pub fn prefix_for(&self, user: &str) -> Cow<'_, str> {
        if self.kind == Kind::Shared || !self.prefix.contains('%') {
            return Cow::Borrowed(&self.prefix);
        }
        let variables = Variables {
            user,
            ..Variables::default()
        };
        let template = Template::parse(&self.prefix).ok();
        let prefix = template.and_then(|template| template.expand(&variables).ok());
        prefix.map_or(Cow::Borrowed(&self.prefix), Cow::Owned)
    }
}

/// Why a prefix that is not shared cannot be had: only the user's name may vary in it.
pub fn bad_prefix(prefix: &str) -> Option<TemplateError> {
    let template = match Template::parse(prefix) {
        Ok(template) => template,
        Err(error) => return Some(error),
    };
    let variables = Variables {
        user: "user@domain",
        ..Variables::default()
    };
    let missing = template.expand(&variables).err()?;
    Some(TemplateError {
        message: missing.to_string(),
        advice: None,
    })
}

/// `type`: whose the mailboxes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Private,
    Public,
    Shared,
}

/// `list`: whether LIST shows its prefix and mailboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    Yes,
    No,
    /// The prefix is listed only while it has visible children.
    Children,
}

/// One `[namespace.NAME.mailbox.BOX]` section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailboxBlock {
    /// Relative to the prefix, with the namespace's separator.
    pub name: String,
    pub auto: Auto,
    /// `\Junk`, `\Sent`, …
    pub special_use: Vec<String>,
    /// For the mailboxes of this name, in which `*` and `?` stand for others.
    pub acl: Rules,
    /// It counts for no quota.
    pub quota_ignore: bool,
    /// Bytes that it may hold beside the quota.
    pub quota_storage_extra: u64,
}

impl MailboxBlock {
    /// The same mailbox, in a namespace that divides names by `to`. None: it has no name there.
    pub fn with_separator(&self, from: char, to: char) -> Option<MailboxBlock> {
        let is_named = from == to || !self.name.contains(to);
        is_named.then(|| MailboxBlock {
            name: self.name.replace(from, &to.to_string()),
            ..self.clone()
        })
    }
}

/// `auto`: whether a client finds the mailbox without anybody having made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auto {
    No,
    Create,
    Subscribe,
}

/// What becomes of a delivery to a mailbox that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnMissing {
    Inbox,
    Create,
    Reject,
    Defer,
    /// The nearest existing parent takes it.
    Parent,
}

impl OnMissing {
    /// As the configuration and tables of addresses spell them. Where nothing is said: `inbox` in `[delivery]`, `parent` for an address.
    pub const WORDS: [(&str, OnMissing); 5] = [
        ("inbox", OnMissing::Inbox),
        ("create", OnMissing::Create),
        ("reject", OnMissing::Reject),
        ("defer", OnMissing::Defer),
        ("parent", OnMissing::Parent),
    ];

    /// One of [`OnMissing::WORDS`], in small letters. None: another word.
    pub fn parse(word: &str) -> Option<OnMissing> {
        let found = OnMissing::WORDS.iter().find(|(known, _)| *known == word);
        found.map(|(_, on_missing)| *on_missing)
    }
}

/// What becomes of a delivery to a mailbox that refuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDenied {
    Inbox,
    Reject,
    Defer,
}

impl OnDenied {
    /// As the configuration spells them; `inbox` where it says nothing.
    pub const WORDS: [(&str, OnDenied); 3] = [
        ("inbox", OnDenied::Inbox),
        ("reject", OnDenied::Reject),
        ("defer", OnDenied::Defer),
    ];
}
