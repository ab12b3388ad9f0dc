//! What a delivery did: plain data, made into replies, exit codes and log lines.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::inspect::Plan;
use super::placement::Node;
use crate::fault::Fault;
use crate::log::Entry;
use crate::mailbox::agent::HandOver;
use crate::observe;

/// What became of the message for one recipient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Complete, on stable storage, visible.
    Saved(Saved),
    /// Not stored; the sender keeps it and tries again.
    Deferred(Fault),
    /// Not stored and never will be.
    Rejected(Fault),
}

/// Where and how a message was stored: the facts of the log line. What an older server has written down may have fewer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Saved {
    /// The final mailbox by its full name.
    pub mailbox: String,
    /// The mailbox that was asked for, where it differs, and why.
    pub instead_of: Option<(String, String)>,
    /// The user whose namespaces delivered.
    pub user: String,
    /// The IMAP UID, where it could be given at once.
    pub uid: Option<u32>,
    /// The file's name in `new/` or `cur/`.
    pub file: String,
    /// Bytes on disk.
    pub size: u64,
    /// Of the file; 0 where nobody here knows.
    pub mode: u32,
    pub gid: u32,
    /// The server that has stored it, where it was another one, or the way to Dovecot; of the rest only what it has said is known.
    pub node: Option<String>,
    /// Dovecot has it, and alone knows where: `mailbox` is what it was asked for.
    pub is_handed_over: bool,
    /// Device and inode of the mailbox: of its `new/`, or of the mbox.
    pub mailbox_id: (u64, u64),
    /// Its path.
    pub place: String,
    /// Waiting for the locks of the mailbox, and for the disk.
    pub locked: Duration,
    pub synced: Duration,
    /// It was there already: nothing was stored now.
    pub is_again: bool,
    /// What did not go as planned without costing the mail: a wrong group in a private mailbox, …
    pub remarks: Vec<String>,
}

impl Saved {
    /// Nothing is known yet but where it goes.
    pub fn nothing(plan: &Plan, mailbox_id: (u64, u64)) -> Saved {
        Saved {
            instead_of: plan.instead_of.clone(),
            mailbox_id,
            place: plan.target.place(),
            ..Saved::empty(plan.target.mailbox.clone(), plan.user.clone())
        }
    }

    /// What another server has stored, as it says.
    pub fn elsewhere(node: &Node, user: String, mailbox: String, uid: Option<u32>) -> Saved {
        Saved {
            node: Some(node.name.clone()),
            uid,
            ..Saved::empty(mailbox, user)
        }
    }

    /// What Dovecot has taken.
    pub fn handed_over(plan: &Plan, hand_over: &HandOver) -> Saved {
        Saved {
            node: Some(hand_over.agent.to_string()),
            is_handed_over: true,
            remarks: plan.dropped.iter().cloned().collect(),
            ..Saved::nothing(plan, (0, 0))
        }
    }

    /// The mailbox that has the message; none where only another server knows.
    pub fn known_mailbox(&self) -> Option<&str> {
        let known = Some(self.mailbox.as_str()).filter(|it| !it.is_empty());
        known.filter(|_| !self.is_handed_over)
    }

    /// The mailbox that was asked for, where the final one is another one, or nobody knows.
    fn wanted(&self) -> Option<&str> {
        let instead_of = self.instead_of.as_ref().map(|(wanted, _)| wanted.as_str());
        instead_of.or(self.is_handed_over.then_some(self.mailbox.as_str()))
    }

    /// Nothing but the names.
    pub fn empty(mailbox: String, user: String) -> Saved {
        Saved {
            mailbox,
            user,
            ..Saved::default()
        }
    }
}

impl Outcome {
    /// A fault as the outcome that its code asks for.
    pub fn refused(fault: Fault) -> Outcome {
        match fault.code.is_temporary() {
            true => Outcome::Deferred(fault),
            false => Outcome::Rejected(fault),
        }
    }

    /// Logs one line, counts and tells it: what is known of the message, and what became of it.
    pub fn log(&self, message: Entry<'_>) {
        self.tell(message, observe::delivery);
    }

    /// Tells `whom` what is known of the message, and what became of it.
    pub fn tell(&self, message: Entry<'_>, whom: impl FnOnce(&Entry<'_>)) {
        match self {
            Outcome::Saved(saved) => whom(&Entry {
                wanted: saved.wanted(),
                why: saved.instead_of.as_ref().map(|(_, why)| why.as_str()),
                mailbox: saved.known_mailbox(),
                node: saved.node.as_deref().filter(|_| !saved.is_handed_over),
                handed_over: saved.node.as_deref().filter(|_| saved.is_handed_over),
                user: Some(&saved.user),
                uid: saved.uid,
                file: Some(saved.file.as_str()).filter(|it| !it.is_empty()),
                size: Some(saved.size).filter(|&size| size > 0),
                mode: Some(saved.mode).filter(|&mode| mode > 0),
                gid: Some(saved.gid).filter(|_| saved.mode > 0),
                code: "2.0.0",
                remarks: &saved.remarks,
                locked: saved.locked,
                synced: saved.synced,
                is_again: saved.is_again,
                ..message
            }),
            Outcome::Deferred(fault) | Outcome::Rejected(fault) => whom(&Entry {
                code: fault.code.smtp().1,
                fault: Some(&fault.to_string()),
                ..message
            }),
        }
    }

    /// None: it is stored.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Outcome::Saved(_) => None,
            Outcome::Deferred(fault) | Outcome::Rejected(fault) => Some(fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_server_has_written_down() {
        let saved: Saved = serde_json::from_str(r#"{"mailbox":"INBOX","user":"alice"}"#).unwrap();
        assert_eq!(saved, Saved::empty("INBOX".into(), "alice".into()));
    }
}
