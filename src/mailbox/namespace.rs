//! Namespaces: which part of the name space of mailboxes lies where (Dovecot "Namespaces").

use serde::{Deserialize, Serialize};

use super::location::Location;

/// One `[namespace.NAME]` section, defaults filled in.
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Private,
    Public,
    Shared,
}

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
}

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

/// What becomes of a delivery to a mailbox that refuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDenied {
    Inbox,
    Reject,
    Defer,
}
