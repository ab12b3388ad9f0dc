//! Mailboxes: what they are called, where they lie, who may store in them, what their files look like.
//!
//! | file | what it is |
//! |---|---|
//! | [`name`], [`namespace`], [`lookup`] | names as users write them, what part of them lies where, and which one is meant |
//! | [`location`], [`path`] | where that is: as configured, and filled in for one mailbox |
//! | [`link`] | which symlinks on the way are followed |
//! | [`permission`] | modes and groups of what is made |
//! | [`acl`] | rights |
//! | [`quota`] | limits, in Dovecot's words |
//! | [`subscriptions`] | what IMAP clients show |
//! | [`agent`] | Dovecot's programs, for mailboxes that only it writes |

pub mod acl;
pub mod agent;
pub mod link;
pub mod location;
pub mod lookup;
pub mod name;
pub mod namespace;
pub mod path;
pub mod permission;
pub mod quota;
pub mod subscriptions;

#[cfg(test)]
pub(crate) mod tests {
    use super::location::{Driver, Layout, Location};
    use super::namespace::{Kind, List, Namespace};
    use crate::text::template::Template;

    /// A namespace with the defaults of a Maildir++ and the separator `/`.
    pub fn namespace(name: &str, kind: Kind, prefix: &str) -> Namespace {
        Namespace {
            name: name.into(),
            kind,
            prefix: prefix.into(),
            separator: '/',
            inbox: false,
            hidden: false,
            list: List::Yes,
            subscriptions: true,
            alias_for: None,
            order: 0,
            disabled: false,
            ignore_on_failure: false,
            location: Location {
                is_users: false,
                driver: Driver::Maildir,
                path: Template::parse("~/Maildir").unwrap(),
                inbox_path: None,
                control_path: None,
                index_path: None,
                index_private_path: None,
                layout: Layout::MaildirPlusPlus,
                utf8: false,
                directory_name: String::new(),
                storage_escape_char: None,
                subscriptions_filename: "subscriptions".into(),
                hand_over: None,
                hand_over_detail: false,
            },
            mailboxes: Vec::new(),
            on_missing: None,
            duplicate_message_ids: Default::default(),
            acl: Default::default(),
            quota: None,
        }
    }
}
