//! From MAIL to the end of the message: what has been said so far.

use super::Intake;
use crate::fault::{Code, Fault};
use crate::lmtp::client::Forwarded;
use crate::message::{Recipient, ReversePath};

/// MAIL and the RCPTs and chunks behind it.
#[derive(Debug)]
pub struct Transaction {
    pub id: String,
    pub sender: ReversePath,
    /// What stood where a path was expected; `sender` is `<>` then.
    pub broken_sender: Option<String>,
    pub forwarded: Forwarded,
    pub smtputf8: bool,
    /// Bytes that the message will have, as the client says; 0 where it says nothing.
    pub announced: u64,
    pub authenticated: Option<String>,
    pub recipients: Vec<Recipient>,
    /// For each accepted RCPT its place in `recipients`: the same address twice is one recipient with two answers.
    pub accepted: Vec<usize>,
    pub chunks: Chunks,
}

/// What BDAT has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunks {
    /// No BDAT yet.
    None,
    /// So many octets so far.
    Some(u64),
    /// The message cannot become complete any more.
    Failed(Fault),
}

impl Transaction {
    /// As the client wrote it, also where it is no path.
    pub fn sender_text(&self) -> String {
        self.broken_sender
            .clone()
            .unwrap_or_else(|| self.sender.to_string())
    }

    /// Whether a chunk of this size can still become part of a message.
    pub fn wants(&self, octets: u64, limit: Option<u64>) -> bool {
        !self.accepted.is_empty()
            && self
                .size_with(octets)
                .is_some_and(|size| limit.is_none_or(|limit| size <= limit))
    }

    /// None: a chunk has failed, or the size is beyond all bounds.
    pub fn size_with(&self, octets: u64) -> Option<u64> {
        match &self.chunks {
            Chunks::None => Some(octets),
            Chunks::Some(size) => size.checked_add(octets),
            Chunks::Failed(_) => None,
        }
    }

    /// Counts a chunk of so many octets. What fails once cannot become complete any more.
    pub fn take_chunk(&mut self, octets: u64, intake: Intake, limit: Option<u64>) {
        if matches!(self.chunks, Chunks::Failed(_)) {
            return;
        }
        self.chunks = match (intake, self.size_with(octets)) {
            (Intake::Failed(fault), _) => Chunks::Failed(fault),
            (Intake::Complete, Some(size)) if limit.is_none_or(|limit| size <= limit) => {
                Chunks::Some(size)
            }
            _ => Chunks::Failed(too_big()),
        };
    }
}

pub fn too_big() -> Fault {
    Fault::new(
        Code::TooBig,
        "receive the message",
        "it is larger than message_size",
    )
}
