//! Dovecot's index of a mailbox: told of our messages, so that it need not look for them.
//!
//! One transaction is appended to an existing transaction log that is understood to its end. Nothing else is ever written:
//! no log and no index is created, and what is odd is left alone, for Dovecot finds the messages in any case.

mod header;
pub mod log;
mod mbox;
pub mod record;
mod walk;

pub use log::{Log, Pair};
pub use record::{State, Transaction};
pub use walk::Walks;
