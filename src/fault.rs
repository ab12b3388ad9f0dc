//! What went wrong, to what, and what the sender is told.
//!
//! Every layer returns a [`Fault`]; nobody translates it on the way. [`Code`] is the only place that turns a failure
//! into an SMTP reply and an exit code, and [`Code::from_io`] the only map from errno. When in doubt: temporary.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// A failed step of a delivery.
///
/// `doing` and `why` are for the log and `explain`: they may hold paths and ids. What a sender reads is
/// [`Code::text`], which never does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub code: Code,
    /// What was being done, to what: `create /srv/mail/public/.Sales/tmp/…`.
    pub doing: String,
    /// Why it failed: `Permission denied (os error 13)`.
    pub why: String,
    /// The command or setting that mends it, where there is one.
    pub advice: Option<String>,
    /// A sync has failed: its bytes may be gone while their name is there, and no later sync says so. Or they could not be taken back.
    #[serde(default)]
    pub is_not_durable: bool,
    /// Whoever was to store it has not said that he has not: an answer that was lost, a link whose file server went away.
    #[serde(default)]
    pub may_be_stored: bool,
}

/// The kinds of failure that callers and senders can tell apart (README, "Replies and exit codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Code {
    /// The userdb knows no such user: verified, permanent.
    NoSuchUser,
    /// The mailbox does not exist and `on_missing = reject`.
    NoSuchMailbox,
    /// No right to store there and `on_denied = reject`.
    Denied,
    /// The message is larger than `message_size`.
    TooBig,
    /// Over quota, permanent.
    OverQuota,
    /// Over quota by the file system (EDQUOT, EFBIG), temporary.
    QuotaOfDisk,
    /// No space or no inodes (ENOSPC).
    NoSpace,
    /// The stored file would not have the group or mode that its mailbox asks for.
    Permissions,
    /// A mailbox that takes nothing as it is: closed, gone, or something else in its place. The next try would find the same.
    Unusable,
    /// A mailbox that has enough to do, or hangs.
    Busy,
    /// A mailbox that is missing or denied for now: `on_missing = defer`, `on_denied = defer`.
    NotNow,
    /// An address that no mailbox can have.
    BadAddress,
    /// Another server, which has the mailbox.
    Unreachable,
    /// A userdb, ACL file or rule that could not be read: cannot tell.
    CannotTell,
    /// I/O error, lock, read-only file system, lost peer.
    Storage,
    /// A file that can have no more names: a copy of its own is another one.
    NoLinks,
    /// Too many files, processes or too little memory.
    Resources,
    /// A panic, a wrong config, a broken assumption.
    Internal,
    /// The server is on its way down.
    ShuttingDown,
}

impl Code {
    /// The reply code and the enhanced status code (RFC 3463) for LMTP.
    pub fn smtp(self) -> (u16, &'static str) {
        match self {
            Code::NoSuchUser | Code::NoSuchMailbox => (550, "5.1.1"),
            Code::BadAddress => (550, "5.1.3"),
            Code::Denied => (550, "5.7.1"),
            Code::TooBig => (552, "5.3.4"),
            Code::OverQuota => (552, "5.2.2"),
            Code::QuotaOfDisk => (452, "4.2.2"),
            Code::NoSpace => (452, "4.3.1"),
            Code::Busy => (451, "4.2.1"),
            Code::Unreachable => (451, "4.4.1"),
            Code::Storage | Code::Unusable | Code::NoLinks | Code::NotNow => (451, "4.2.0"),
            Code::Permissions | Code::CannotTell | Code::Internal => (451, "4.3.0"),
            Code::Resources => (451, "4.3.2"),
            Code::ShuttingDown => (421, "4.3.2"),
        }
    }

    /// The exit code of `postroom-lda` (sysexits): 67, 77 or 75.
    pub fn exit(self) -> u8 {
        match self {
            Code::NoSuchUser | Code::NoSuchMailbox | Code::BadAddress => 67,
            Code::Denied | Code::TooBig | Code::OverQuota => 77,
            _ => 75,
        }
    }

    /// What a sender may read: no path, no id, no rule.
    pub fn text(self) -> &'static str {
        match self {
            Code::NoSuchUser => "No such user",
            Code::NoSuchMailbox => "No such mailbox",
            Code::BadAddress => "No mailbox can have this address",
            Code::Denied => "Delivery to this mailbox is not permitted",
            Code::TooBig => "Message too big",
            Code::OverQuota => "Mailbox is full",
            Code::QuotaOfDisk => "Mailbox is full, try again later",
            Code::NoSpace => "No space for the message, try again later",
            Code::Permissions => "Mailbox cannot take the message as configured, try again later",
            Code::Unreachable => "Mailbox cannot be reached now, try again later",
            Code::Busy => "Mailbox is busy, try again later",
            Code::NotNow => "Mailbox not available, try again later",
            Code::CannotTell => "Cannot tell where to deliver, try again later",
            Code::Storage | Code::Unusable | Code::NoLinks => {
                "Message could not be stored, try again later"
            }
            Code::Resources => "Out of resources, try again later",
            Code::Internal => "Internal error, try again later",
            Code::ShuttingDown => "Shutting down, try again later",
        }
    }

    /// Whether the sender should try again.
    pub fn is_temporary(self) -> bool {
        self.smtp().0 < 500
    }

    /// The one map from errno.
    pub fn from_io(error: &io::Error) -> Code {
        use io::ErrorKind::*;
        match error.kind() {
            StorageFull => Code::NoSpace,
            QuotaExceeded | FileTooLarge => Code::QuotaOfDisk,
            OutOfMemory => Code::Resources,
            TooManyLinks | CrossesDevices => Code::NoLinks,
            _ if crate::sys::is_exhaustion(error) => Code::Resources,
            NotFound => Code::Unusable,
            _ if crate::sys::is_read_only(error) || crate::sys::is_no_way(error) => Code::Unusable,
            _ => Code::Storage,
        }
    }
}

impl Fault {
    /// Nothing of the message is stored, but where the code is [`Code::Internal`]. `doing`: a verb and its object, `open /srv/mail/x`.
    pub fn new(code: Code, doing: impl Into<String>, why: impl Into<String>) -> Fault {
        Fault {
            code,
            doing: doing.into(),
            why: why.into(),
            advice: None,
            is_not_durable: false,
            may_be_stored: false,
        }
    }

    /// A failed system call: the code comes from the errno.
    pub fn io(doing: impl Into<String>, error: &io::Error) -> Fault {
        Fault::new(Code::from_io(error), doing, error.to_string())
    }

    /// It kept us from seeing whether the message is there already: a try elsewhere might store it twice.
    pub fn in_doubt(mut self) -> Fault {
        if self.code == Code::Unusable {
            self.code = Code::Storage;
        }
        self
    }

    /// Of a sync, or where what was written may still be there.
    pub fn not_durable(mut self) -> Fault {
        self.is_not_durable = true;
        self
    }

    /// Of what is not known to have failed.
    pub fn perhaps_stored(mut self) -> Fault {
        self.may_be_stored = true;
        self
    }

    /// A no that may come of the message itself, which is there already: for now.
    pub fn for_now(mut self) -> Fault {
        self.code = match self.code {
            Code::OverQuota => Code::QuotaOfDisk,
            Code::Denied => Code::NotNow,
            code => code,
        };
        self
    }

    /// The command or setting that mends it, for an admin. It takes the place of one that was there.
    pub fn with_advice(mut self, advice: impl Into<String>) -> Fault {
        self.advice = Some(advice.into());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.why)?;
        match &self.advice {
            Some(advice) => write!(f, " ({advice})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}
