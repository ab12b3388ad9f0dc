//! A message for a mailbox that only Dovecot writes, and how far we get it ourselves.

use serde::{Deserialize, Serialize};

use super::inspect::Plan;
use super::outcome::{Outcome, Saved};
use super::placement::{Node, Tls};
use super::targets::By;
use crate::mailbox::agent::{Agent, HandOver};

/// The end of a delivery, as far as it is made here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    Outcome(Outcome),
    /// Nothing is stored yet: whoever talks to servers goes on.
    Parcel(Parcel),
}

/// What Dovecot's LMTP server is to get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parcel {
    pub hand_over: HandOver,
    /// A header route leads there: where Dovecot refuses it, the message goes where it would have gone without.
    pub is_routed: bool,
    /// What is said of it once Dovecot has taken it.
    pub saved: Saved,
}

impl Parcel {
    /// None: the delivery is made here.
    pub fn of(plan: &Plan, by: By) -> Option<Parcel> {
        let hand_over = plan.target.hand_over.clone()?;
        hand_over.server()?;
        Some(Parcel {
            saved: Saved::handed_over(plan, &hand_over),
            hand_over,
            is_routed: is_routed(plan, by),
        })
    }
}

/// Whether a header route leads there, and INBOX stands in for it.
pub fn is_routed(plan: &Plan, by: By) -> bool {
    by == By::Route && !plan.target.own_inbox
}

impl HandOver {
    /// Dovecot's LMTP server, as a server that is asked for nothing but what every other one can do. None: a program is run.
    pub fn server(&self) -> Option<Node> {
        match &self.agent {
            Agent::Lda { .. } => None,
            Agent::Lmtp { host, port } => Some(Node {
                name: "Dovecot".into(),
                host: host.clone(),
                port: *port,
                tls: Tls::No,
                timeout: Node::TIMEOUT,
            }),
        }
    }
}
