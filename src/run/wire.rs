//! What the processes say to each other: one packet each, JSON, a descriptor beside it where it says so.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::deliver::{Answers, Done, Report, Retry};
use crate::message::{Envelope, Recipient, Trace};
use crate::sys::credentials::Credentials;

/// From the front to the monitor.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// A worker of this identity. Answered by [`Forked`].
    Fork(Credentials),
    /// A worker that has not answered for too long. Without an answer.
    Kill(i32),
}

/// From the monitor: the worker's process ID, its socket beside it; or why there is none.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Forked {
    Worker(i32),
    /// As many as may be have not quite ended yet: later.
    Full,
    Refused(String),
}

/// From the front to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    Inspect {
        id: u64,
        recipient: Recipient,
        answers: Answers,
    },
    /// A message that is going to be delivered to some recipients; its bytes are in the descriptor.
    Message(Box<Announced>),
    Deliver {
        id: u64,
        transaction: u64,
        recipient: Recipient,
        answers: Answers,
        retry: Box<Retry>,
    },
    /// Nobody will hear the answers of this transaction any more.
    Abandon { transaction: u64 },
    /// All of it has been answered.
    Forget { transaction: u64 },
}

/// What is known of a message beside its bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Announced {
    pub transaction: u64,
    pub recipients: usize,
    pub envelope: Envelope,
    pub trace: Trace,
    /// Bytes.
    pub size: u64,
    /// Bytes with every line end as CRLF.
    pub virtual_size: u64,
}

/// From a worker: the answer to the request with this id.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Report {
        id: u64,
        report: Report,
    },
    Done {
        id: u64,
        done: Done,
    },
    /// Not begun: this worker cannot reach what it must, and leaves.
    Elsewhere {
        id: u64,
    },
}

impl Request {
    /// Its number, and what was looked up for it. None: nothing is to be done.
    pub fn work(&self) -> Option<(u64, &Answers)> {
        match self {
            Request::Inspect { id, answers, .. } | Request::Deliver { id, answers, .. } => {
                Some((*id, answers))
            }
            Request::Message(_) | Request::Abandon { .. } | Request::Forget { .. } => None,
        }
    }
}

impl Answer {
    /// That of the [`Request`] that it answers. Each worker has numbers of its own.
    pub fn id(&self) -> u64 {
        match self {
            Answer::Report { id, .. } | Answer::Done { id, .. } | Answer::Elsewhere { id } => *id,
        }
    }
}

/// A request or an answer as the bytes of a packet: JSON.
pub fn packed(value: &impl Serialize) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

/// The other way. Err: the bytes are no JSON, or that of something else.
pub fn unpacked<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(bytes)?)
}
