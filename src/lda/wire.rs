//! What an LDA and the server say to each other when one hands a message to the other: lines of JSON, then the message in pieces.
//!
//! The LDA offers; the server looks, and answers before it takes a byte. Then come the pieces, each behind its length in four bytes,
//! the last one empty, with CRLF at the ends of lines, and the server answers once more.

use serde::{Deserialize, Serialize};

use crate::fault::Code;
use crate::message::{Address, Flags, Keywords, ReversePath};

/// The longest line, bytes.
pub const MAX_LINE: usize = 16 * 1024;
/// The longest piece, bytes.
pub const MAX_PIECE: usize = 64 * 1024;

/// What the LDA knows of a message. Its user is the kernel's to say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// `-d`; none: whoever runs the LDA.
    pub user: Option<String>,
    /// For the log, and for Delivered-To.
    pub last: Option<Address>,
    /// ORCPT or `-a`.
    pub original: Option<String>,
    pub sender: ReversePath,
    pub mailbox: Option<String>,
    pub detail: Option<String>,
    pub flags: Flags,
    pub keywords: Keywords,
    /// Bytes of the message.
    pub size: u64,
}

impl Offer {
    /// Whether its addresses are such as the options of an LDA can name.
    pub fn is_sound(&self) -> bool {
        let sender = match &self.sender {
            ReversePath::Null => None,
            ReversePath::Address(address) => Some(address),
        };
        let is_parsed =
            |it: &Address| Address::parse(&it.to_string()).is_ok_and(|same| same == *it);
        sender.into_iter().chain(&self.last).all(is_parsed)
    }
}

/// What the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To the offer: it would be stored.
    Send,
    /// To the message: complete, on stable storage, visible.
    Stored,
    /// Why not; the log of the server says more.
    Refused(Code),
}
