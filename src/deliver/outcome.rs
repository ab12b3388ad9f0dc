//! What a delivery would do ([`Report`]) and what it did ([`Outcome`]): plain data, made into replies, exit codes,
//! log lines and the table of `explain`.

use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// The decision for one recipient, step by step. `explain` prints it, RCPT answers from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The recipient as given.
    pub recipient: String,
    /// The steps in their order.
    pub lines: Vec<Line>,
    /// The mailbox that would take the message, by its full name.
    pub mailbox: Option<String>,
    /// Why it would be refused.
    pub fault: Option<Fault>,
}

/// One step of a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// `namespace`, `mailbox`, `path`, `rights`, `identity`, `new file`, …
    pub label: String,
    pub text: String,
    /// False: this step ends the delivery, and `explain` writes FAIL behind it.
    pub ok: bool,
}

impl Line {
    pub fn ok(label: &str, text: impl Into<String>) -> Line {
        Line {
            label: label.into(),
            text: text.into(),
            ok: true,
        }
    }

    pub fn fail(label: &str, text: impl Into<String>) -> Line {
        Line {
            label: label.into(),
            text: text.into(),
            ok: false,
        }
    }
}

impl Report {
    /// A report of a delivery that ended before there was anything to inspect.
    pub fn failed(recipient: String, fault: Fault) -> Report {
        let line = Line::fail("address", fault.to_string());
        Report {
            recipient,
            lines: vec![line],
            mailbox: None,
            fault: Some(fault),
        }
    }
}

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

/// Where and how a message was stored: the facts of the log line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    pub mode: u32,
    pub gid: u32,
    /// What did not go as planned without costing the mail: a wrong group in a private mailbox, …
    pub remarks: Vec<String>,
}

impl Outcome {
    /// A fault as the outcome that its code asks for.
    pub fn refused(fault: Fault) -> Outcome {
        match fault.code.is_temporary() {
            true => Outcome::Deferred(fault),
            false => Outcome::Rejected(fault),
        }
    }

    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Outcome::Saved(_) => None,
            Outcome::Deferred(fault) | Outcome::Rejected(fault) => Some(fault),
        }
    }
}
