//! The message on its way: who sent it, to whom, and its bytes.

pub mod address;
pub mod body;
pub mod flags;
pub mod header;
pub mod keywords;
mod room;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;

pub use address::{Address, ReversePath};
pub use body::Body;
pub use flags::Flags;
pub use keywords::Keywords;

/// One message with what its transaction said about it. Shared by all its recipients.
#[derive(Debug)]
pub struct Message {
    pub envelope: Envelope,
    pub body: Body,
    pub trace: Trace,
}

/// MAIL FROM and what came with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    pub sender: ReversePath,
    /// Postfix's queue id, where a trusted peer gave one.
    pub queue_id: Option<String>,
}

/// How the message came in: what `Received:` and the log line are made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trace {
    /// The id that the replies carry, e.g. `k3Jx…:T2`.
    pub session: String,
    pub received: Option<Received>,
}

/// The parts of a `Received:` field that an LMTP transaction adds. The LDA adds none: the MTA did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Received {
    /// The argument of LHLO as it was parsed, `unknown` when it did not.
    pub helo: String,
    /// `192.0.2.1` or `IPv6:…`; none for a unix socket.
    pub peer: Option<String>,
    /// Protocol and cipher of TLS: `TLSv1.3 with cipher TLS13_AES_256_GCM_SHA384`.
    pub tls: Option<String>,
    pub hostname: String,
    /// The start of the transaction, RFC 5322 (`Sun, 22 Nov 2026 07:15:52 +0000`).
    pub date: String,
}

/// How many servers may pass a message on, one to the next.
pub const MAX_HOPS: u32 = 5;

/// A mailbox that this server has, for a user of another: it, and nothing in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errand {
    /// Whose namespaces, uid and groups deliver.
    pub user: String,
    /// The full name that he has for it.
    pub mailbox: String,
    /// Whose rights count, where that is not as everywhere: a word of `subject`.
    pub subject: Option<String>,
}

/// What a server has answered that was asked to take the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was asked for, by its full name.
    pub mailbox: String,
    /// Missing; else denied.
    pub is_missing: bool,
    pub why: String,
}

/// One accepted RCPT, or one target of the LDA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// The address that delivery goes by.
    pub address: Address,
    /// ORCPT or `-a`: what the sender wrote before aliases.
    pub original: Option<String>,
    /// `-d`: the user to look up, as is: the address is not taken apart.
    pub user: Option<String>,
    /// A detail that came beside the address (`$EXTENSION`); it counts where the address has none.
    pub detail: Option<String>,
    /// `-m`: a mailbox by its full name; it goes before the detail.
    pub mailbox: Option<String>,
    /// Who sends, as somebody trusted knows for sure. Never the envelope sender.
    pub authenticated: Option<String>,
    /// What the message is stored with.
    pub flags: Flags,
    pub keywords: Keywords,
    /// His own process delivers: the rights that count are his.
    pub is_himself: bool,
    /// Somebody trusted says that a full mailbox is no reason to refuse it.
    pub ignore_quota: bool,
    /// What another server asks for, which cannot do it itself.
    pub errand: Option<Errand>,
    /// The mailbox that is wanted is on another server, or Dovecot's, which has refused it.
    pub refusal: Option<Refusal>,
    /// How many more servers it may be passed on to.
    pub hops: u32,
    /// Bytes of the message that is to come, as the client says (SIZE).
    pub announced: Option<u64>,
    /// What a proxy in front knows of him: fields between tabs.
    pub forward: Option<String>,
}

impl Recipient {
    /// As over LMTP without parameters.
    pub fn new(address: Address) -> Recipient {
        Recipient {
            address,
            original: None,
            user: None,
            detail: None,
            mailbox: None,
            authenticated: None,
            flags: Flags::default(),
            keywords: Keywords::default(),
            is_himself: false,
            ignore_quota: false,
            errand: None,
            refusal: None,
            hops: MAX_HOPS,
            announced: None,
            forward: None,
        }
    }

    /// The recipient as given: for log lines, reports and replies.
    pub fn shown(&self) -> String {
        self.user
            .clone()
            .unwrap_or_else(|| self.address.to_string())
    }

    /// The same, once whoever has `mailbox` has refused the message: a header route never costs the mail.
    pub fn refused_at(&self, mailbox: String, why: &Fault) -> Recipient {
        let refusal = Refusal {
            mailbox,
            is_missing: true,
            why: why.to_string(),
        };
        Recipient {
            refusal: Some(refusal),
            ..self.clone()
        }
    }

    /// A user by his name, as a userdb knows it (`-d`).
    pub fn of_user(name: &str) -> Recipient {
        let (local, domain) = match name.rsplit_once('@') {
            Some((local, domain)) => (local.to_owned(), Some(domain.to_owned())),
            None => (name.to_owned(), None),
        };
        let user = Some(name.to_owned());
        Recipient {
            user,
            ..Recipient::new(Address { local, domain })
        }
    }
}
