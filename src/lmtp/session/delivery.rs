//! A complete message on its way: who waits for which answer.

use super::transaction::Transaction;
use crate::deliver::Outcome;
use crate::fault::Fault;
use crate::lmtp::client::Forwarded;
use crate::lmtp::reply::Reply;
use crate::message::{Recipient, ReversePath};

/// A complete message, whom it goes to, and the answers that are due.
#[derive(Debug, PartialEq)]
pub struct Delivery {
    /// The transaction's id.
    pub id: String,
    pub sender: ReversePath,
    /// The sender for the log.
    pub sender_text: String,
    /// Where it comes from, as the client says.
    pub forwarded: Forwarded,
    /// Whom to deliver to: each once, in the order of RCPT.
    pub recipients: Vec<Recipient>,
    accepted: Vec<usize>,
    outcomes: Vec<Option<Outcome>>,
    answered: usize,
    verbose: bool,
}

impl Delivery {
    pub(super) fn new(transaction: Transaction, verbose: bool) -> Delivery {
        Delivery {
            sender_text: transaction.sender_text(),
            forwarded: transaction.forwarded,
            id: transaction.id,
            sender: transaction.sender,
            outcomes: vec![None; transaction.recipients.len()],
            recipients: transaction.recipients,
            accepted: transaction.accepted,
            answered: 0,
            verbose,
        }
    }

    /// Takes the outcome of `recipients[index]` and gives the replies that are now due: a reply waits for those before
    /// it, for no other. The first outcome counts.
    pub fn settle(&mut self, index: usize, outcome: Outcome) -> Vec<Reply> {
        if let Some(place @ None) = self.outcomes.get_mut(index) {
            *place = Some(outcome);
        }
        let mut due = Vec::new();
        while let Some(recipient) = self.accepted.get(self.answered)
            && let Some(outcome) = &self.outcomes[*recipient]
        {
            due.push(Reply::to_data(
                &self.recipients[*recipient].address,
                &self.id,
                outcome,
                self.verbose,
            ));
            self.answered += 1;
        }
        due
    }

    /// The recipients that have no outcome yet.
    pub fn unsettled(&self) -> Vec<usize> {
        (0..self.outcomes.len())
            .filter(|index| self.outcomes[*index].is_none())
            .collect()
    }

    /// The replies that are still due when the rest of the delivery will not happen.
    pub fn abandon(&mut self, fault: &Fault) -> Vec<Reply> {
        let unsettled = self.unsettled();
        unsettled
            .into_iter()
            .flat_map(|index| self.settle(index, Outcome::refused(fault.clone())))
            .collect()
    }
}
