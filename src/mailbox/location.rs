//! Where the mailboxes of a namespace lie: paths as configured, with variables.

use serde::{Deserialize, Serialize};

use super::agent::Agent;
use crate::text::template::Template;

/// The storage format. A closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    Maildir,
    Mbox,
    /// Dovecot's own format, one file a message: only Dovecot writes it.
    Sdbox,
    /// The same, many messages in a file.
    Mdbox,
}

/// How mailbox names become directories (Dovecot's `mailbox_list_layout`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// Flat: `<root>/.A.B`; layout separator `.`.
    #[serde(rename = "maildir++")]
    MaildirPlusPlus,
    /// Nested: `<root>/A/B`; layout separator `/`.
    #[serde(rename = "fs")]
    Fs,
    /// Directories have names that Dovecot's list index alone knows; separator `/`.
    #[serde(rename = "index")]
    Index,
}

impl Layout {
    /// The separator on disk.
    pub fn separator(self) -> char {
        match self {
            Layout::MaildirPlusPlus => '.',
            Layout::Fs | Layout::Index => '/',
        }
    }
}

/// The `mail_*` settings of one namespace, inherited ones filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Location {
    /// `mail_path` came from a userdb: a new root takes no permissions from above.
    pub is_users: bool,
    pub driver: Driver,
    /// `mail_path`.
    pub path: Template,
    /// `mail_inbox_path`.
    pub inbox_path: Option<Template>,
    /// `mail_control_path`.
    pub control_path: Option<Template>,
    /// `mail_index_path`.
    pub index_path: Option<Template>,
    /// `mail_index_private_path`.
    pub index_private_path: Option<Template>,
    /// `mailbox_list_layout`.
    pub layout: Layout,
    /// `mailbox_list_utf8`: names on disk in UTF-8 instead of modified UTF-7.
    pub utf8: bool,
    /// `mailbox_directory_name`: last path component of every mailbox (layout fs); empty for none.
    pub directory_name: String,
    /// `mailbox_list_storage_escape_char`.
    pub storage_escape_char: Option<char>,
    /// `mailbox_subscriptions_filename`
    pub subscriptions_filename: String,
    /// `hand_over`: how Dovecot gets what only Dovecot can write. Always there where that is so.
    pub hand_over: Option<Agent>,
    /// `hand_over_detail`: its LMTP server has `lmtp_save_to_detail_mailbox`.
    pub hand_over_detail: bool,
}

impl Location {
    /// What of these mailboxes only Dovecot can write; none: nothing, we write them.
    pub fn dovecots(&self) -> Option<&'static str> {
        match (self.driver, self.layout) {
            (Driver::Sdbox, _) => Some("sdbox"),
            (Driver::Mdbox, _) => Some("mdbox"),
            (Driver::Maildir | Driver::Mbox, Layout::Index) => Some("layout index"),
            (Driver::Maildir | Driver::Mbox, Layout::MaildirPlusPlus | Layout::Fs) => None,
        }
    }

    /// Whether mailboxes or their control or index files lie elsewhere for each user. `~` is his home.
    pub fn uses_user(&self) -> bool {
        let paths = [
            Some(&self.path),
            self.inbox_path.as_ref(),
            self.control_path.as_ref(),
            self.index_path.as_ref(),
        ];
        paths.into_iter().flatten().any(Template::uses_user)
    }
}
