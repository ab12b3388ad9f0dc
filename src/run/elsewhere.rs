//! Mail for mailboxes that other servers have: their answer is ours.

use std::sync::Arc;

use super::Runner;
use super::relay::{Answer, Heard, Job, Relay};
use crate::deliver::placement::Node;
use crate::deliver::settings::Subject;
use crate::deliver::targets::{By, Wanted};
use crate::deliver::{Line, Outcome, Report, Saved, Targets};
use crate::fault::{Code, Fault};
use crate::message::{Address, Errand, Message, Recipient, Refusal};

/// Who goes on with a recipient.
pub enum Next<T> {
    /// This server: it is its mailbox, or another one has refused and it decides what stands in.
    Here(Box<Recipient>),
    /// Another server has answered.
    Answered(T),
}

impl Runner {
    /// RCPT at another server, where one has the mailbox.
    pub async fn ask_elsewhere(&self, recipient: Recipient) -> Result<Next<Report>, Fault> {
        let Some(relay) = &self.relay else {
            return Ok(Next::Here(Box::new(recipient)));
        };
        // Boxed, here and below: large, and most mail does without.
        let (targets, recipient) = Box::pin(self.targets(recipient, None)).await?;
        let asked = Box::pin(self.go(relay, &targets, recipient, None, &|| true)).await?;
        Ok(match asked {
            Next::Here(recipient) => Next::Here(recipient),
            Next::Answered((node, answer)) => {
                let mut lines = targets.lines;
                let fault = answer.fault(&node);
                if let Some(fault) = &fault {
                    lines.push(Line::fail("node", fault.to_string()));
                }
                Next::Answered(Report {
                    recipient: targets.recipient,
                    lines,
                    mailbox: None,
                    hand_over: None,
                    fault,
                })
            }
        })
    }

    /// The delivery at another server, where one has the mailbox.
    pub(super) async fn deliver_elsewhere(
        &self,
        message: &Arc<Message>,
        recipient: Recipient,
        heard: Heard<'_>,
    ) -> Result<Next<Outcome>, Fault> {
        let Some(relay) = &self.relay else {
            return Ok(Next::Here(Box::new(recipient)));
        };
        let (targets, recipient) = Box::pin(self.targets(recipient, Some(message))).await?;
        let done = Box::pin(self.go(relay, &targets, recipient, Some(message), heard)).await?;
        Ok(match done {
            Next::Here(recipient) => Next::Here(recipient),
            Next::Answered((node, answer)) => Next::Answered(match answer.fault(&node) {
                Some(fault) => Outcome::refused(fault),
                None => {
                    let (mailbox, uid) = answer.place();
                    Outcome::Saved(Saved::elsewhere(&node, targets.user.name, mailbox, uid))
                }
            }),
        })
    }

    async fn targets(
        &self,
        recipient: Recipient,
        message: Option<&Arc<Message>>,
    ) -> Result<(Targets, Recipient), Fault> {
        let (core, message) = (Arc::clone(&self.core), message.cloned());
        let looked_up = self.blocking(move || {
            let head = message.as_ref().map(|it| it.body.head());
            core.look_up(&recipient, head)
                .map(|(targets, _)| (targets, recipient))
        });
        looked_up.await?
    }

    async fn go(
        &self,
        relay: &Relay,
        targets: &Targets,
        recipient: Recipient,
        message: Option<&Arc<Message>>,
        heard: Heard<'_>,
    ) -> Result<Next<(Node, Answer)>, Fault> {
        let (wanted, places) = match (&targets.node, &targets.wanted) {
            (Some(node), _) => {
                check_hops(&recipient, node)?;
                check_plain(&recipient, node)?;
                let delimiter = &self.core.settings().recipient_delimiter;
                let address = address_at(targets, &recipient, delimiter);
                let answer = run(relay, node, &recipient, address, None, message, heard).await?;
                return Ok(Next::Answered((node.clone(), answer)));
            }
            (None, Wanted::Elsewhere { mailbox, places }) => (mailbox, places),
            (None, _) => return Ok(Next::Here(Box::new(recipient))),
        };
        let mut refusal = None;
        for (mailbox, node) in places {
            check_hops(&recipient, node)?;
            let errand = Errand {
                user: targets.user.name.clone(),
                mailbox: mailbox.clone(),
                subject: Some(word(targets.subject).to_owned()),
            };
            let address = recipient.address.to_string();
            let asked = run(
                relay,
                node,
                &recipient,
                address,
                Some(&errand),
                message,
                heard,
            )
            .await;
            let answer = match asked {
                // A route never costs the mail: INBOX stands behind it.
                // Not where it may have the message: then it is asked again.
                Err(fault) if targets.by == By::Route && fault.code == Code::Unreachable => {
                    refusal.get_or_insert(Refusal {
                        mailbox: wanted.clone(),
                        is_missing: true,
                        why: fault.to_string(),
                    });
                    break;
                }
                asked => asked?,
            };
            let Some(fault) = answer.fault(node) else {
                return Ok(Next::Answered((node.clone(), answer)));
            };
            match (answer.code, answer.enhanced.as_str()) {
                _ if targets.by == By::Route && !answer.may_have_stored() => {
                    refusal.get_or_insert(Refusal {
                        mailbox: wanted.clone(),
                        is_missing: true,
                        why: fault.to_string(),
                    });
                    break;
                }
                // The parent may take what its child is not there for.
                (550, "5.1.1" | "5.7.1") => {
                    let is_missing = fault.code == Code::NoSuchUser;
                    refusal.get_or_insert(Refusal {
                        mailbox: wanted.clone(),
                        is_missing,
                        why: fault.to_string(),
                    });
                    if !is_missing {
                        break;
                    }
                }
                (400..500, _) | (_, "5.2.2" | "5.2.3" | "5.3.4") => {
                    return Ok(Next::Answered((node.clone(), answer)));
                }
                // It has not understood what it is asked for.
                _ => return Err(Fault::new(Code::CannotTell, fault.doing, fault.why)),
            }
        }
        Ok(Next::Here(Box::new(Recipient {
            refusal,
            ..recipient
        })))
    }
}

async fn run(
    relay: &Relay,
    node: &Node,
    recipient: &Recipient,
    address: String,
    errand: Option<&Errand>,
    message: Option<&Arc<Message>>,
    heard: Heard<'_>,
) -> Result<Answer, Fault> {
    let session = message.map(|it| it.trace.session.as_str());
    let job = Job {
        recipient,
        address,
        errand,
        queue_id: message.and_then(|it| it.envelope.queue_id.as_deref()),
        session,
    };
    match message {
        None => relay.ask(node, &job).await,
        Some(message) => relay.deliver(node, &job, message, heard).await,
    }
}

/// What an LDA says beside the address (a user, a mailbox, flags) has no words in LMTP.
fn check_plain(recipient: &Recipient, node: &Node) -> Result<(), Fault> {
    let is_more = recipient.user.is_some()
        || recipient.mailbox.is_some()
        || recipient.detail.is_some()
        || recipient.is_himself;
    match is_more {
        true => {
            let why = "it has this user, and what an LDA hands over is not passed on: let the MTA send it by LMTP";
            Err(Fault::new(
                Code::CannotTell,
                format!("deliver at {node}"),
                why,
            ))
        }
        false => Ok(()),
    }
}

/// Servers that each take the other for the right one would pass it on for ever.
fn check_hops(recipient: &Recipient, node: &Node) -> Result<(), Fault> {
    match recipient.hops {
        0 | 1 => {
            let why =
                "it has been passed on too often: whom do the servers take for the right one?";
            Err(Fault::new(
                Code::Unreachable,
                format!("deliver at {node}"),
                why,
            ))
        }
        _ => Ok(()),
    }
}

/// The address as the node knows it: `destuser` of the userdb, with the detail.
fn address_at(targets: &Targets, recipient: &Recipient, delimiter: &str) -> String {
    let given = recipient.address.to_string();
    let Some(user) = targets.user.extra.get("destuser") else {
        return given;
    };
    let Ok(address) = Address::parse(user) else {
        return given;
    };
    match recipient.address.split_detail(delimiter) {
        (_, Some(detail)) => {
            let divider = delimiter.chars().next().unwrap_or('+');
            let local = format!("{}{divider}{detail}", address.local);
            Address { local, ..address }.to_string()
        }
        (_, None) => address.to_string(),
    }
}

fn word(subject: Subject) -> &'static str {
    let known = Subject::WORDS.iter().find(|(_, it)| *it == subject);
    known.map_or("recipient", |(word, _)| word)
}
