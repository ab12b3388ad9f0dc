//! stub
use super::{Outcome, Settings, inspect::Plan, queue::Queues};
use crate::{
    fault::{Code, Fault},
    message::{Message, Recipient},
};
use std::sync::Arc;
#[derive(Debug)]
pub struct Transaction {
    pub message: Arc<Message>,
    pub recipients: usize,
}
impl Transaction {
    pub fn new(message: Arc<Message>, recipients: usize) -> Transaction {
        Transaction {
            message,
            recipients,
        }
    }
}
pub fn carry_out(
    _s: &Settings,
    _q: &Queues,
    _t: &Transaction,
    _r: &Recipient,
    _p: Plan,
) -> Outcome {
    Outcome::refused(Fault::new(Code::Internal, "x", "stub"))
}
