//! Mail for mailboxes that only Dovecot writes, by its LMTP server: its answer is ours.

use std::sync::Arc;

use super::Next;
use super::relay::{Answer, Heard, Job, Relay};
use crate::deliver::placement::Node;
use crate::deliver::{Done, Line, Outcome, Report, Settings};
use crate::fault::{Code, Fault};
use crate::mailbox::agent::HandOver;
use crate::message::{Address, Message, Recipient};

/// RCPT there, where the report says that it would get the message.
pub async fn ask(
    relay: &Relay,
    settings: &Settings,
    recipient: &Recipient,
    report: Report,
) -> Report {
    let hand_over = report.hand_over.as_ref().filter(|_| report.fault.is_none());
    let Some((hand_over, node)) = hand_over.and_then(|it| Some((it, it.server()?))) else {
        return report;
    };
    if let Err(fault) = check(settings, hand_over) {
        return refused(report, fault);
    }
    let recipient = understood(recipient);
    let job = job(&recipient, &hand_over.recipient, None);
    // Boxed, here and below: large, and most mail does without.
    let fault = match Box::pin(relay.ask(&node, &job)).await {
        Ok(answer) => fault_of(&answer, &node),
        Err(fault) => Some(fault),
    };
    match fault {
        None => report,
        Some(fault) => refused(report, fault),
    }
}

/// Takes there what is to be taken. What Dovecot refuses of a header route's goes on here. `may_be_there`: its answer to an earlier try
/// was lost, so that a no may come of that very message.
pub async fn finish(
    relay: &Relay,
    settings: &Settings,
    done: Done,
    recipient: &Recipient,
    message: &Arc<Message>,
    heard: Heard<'_>,
    may_be_there: bool,
) -> Next<Outcome> {
    let parcel = match done {
        Done::Outcome(outcome) => return Next::Answered(outcome),
        Done::Parcel(parcel) => parcel,
    };
    let Some(node) = parcel.hand_over.server() else {
        return Next::Answered(Outcome::refused(super::out_of_step()));
    };
    if let Err(fault) = check(settings, &parcel.hand_over) {
        return Next::Answered(Outcome::refused(fault));
    }
    let understood = understood(recipient);
    let job = job(&understood, &parcel.hand_over.recipient, Some(message));
    let answer = Box::pin(relay.deliver(&node, &job, message, heard)).await;
    let (fault, has_refused) = match answer {
        Ok(answer) => match fault_of(&answer, &node) {
            None => return Next::Answered(Outcome::Saved(parcel.saved)),
            Some(fault) => (fault, !answer.may_have_stored()),
        },
        Err(fault) => {
            let was_out_of_reach = fault.code == Code::Unreachable;
            (fault, was_out_of_reach)
        }
    };
    match parcel.is_routed && recipient.refusal.is_none() && has_refused && heard() {
        true => Next::Here(Box::new(recipient.refused_at(parcel.saved.mailbox, &fault))),
        false => Next::Answered(Outcome::refused(match has_refused {
            false => fault.perhaps_stored(),
            true if may_be_there => fault.for_now(),
            true => fault,
        })),
    }
}

/// A worker of the user's has said it: it names no server but those of the file, and nobody but one recipient.
fn check(settings: &Settings, HandOver { agent, recipient }: &HandOver) -> Result<(), Fault> {
    let mut namespaces = settings.namespaces.iter();
    let is_ours = namespaces.any(|it| it.location.hand_over.as_ref() == Some(agent));
    let is_address = Address::parse(recipient).is_ok_and(|it| it.to_string() == *recipient);
    match is_ours && is_address {
        true => Ok(()),
        false => Err(super::out_of_step()),
    }
}

/// Our userdb has this user. Where its own has not: which of us is wrong?
fn fault_of(answer: &Answer, node: &Node) -> Option<Fault> {
    let fault = answer.fault(node)?;
    Some(match fault.code {
        Code::NoSuchUser | Code::BadAddress => Fault {
            code: Code::CannotTell,
            ..fault
        },
        _ => fault,
    })
}

/// It takes XCLIENT from whom it trusts, and no `AUTH=` from anybody.
fn understood(recipient: &Recipient) -> Recipient {
    Recipient {
        authenticated: None,
        ..recipient.clone()
    }
}

fn job<'a>(recipient: &'a Recipient, address: &str, message: Option<&'a Arc<Message>>) -> Job<'a> {
    Job {
        recipient,
        address: address.to_owned(),
        errand: None,
        queue_id: message.and_then(|it| it.envelope.queue_id.as_deref()),
        session: message.map(|it| it.trace.session.as_str()),
    }
}

fn refused(mut report: Report, fault: Fault) -> Report {
    report
        .lines
        .push(Line::fail("hand over", fault.to_string()));
    Report {
        mailbox: None,
        fault: Some(fault),
        ..report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::mailbox::agent::Agent;

    /// A worker belongs to a user: what it says opens no other server, and speaks for nobody else.
    #[test]
    fn what_a_worker_may_name() {
        let text = "mail_driver = \"mdbox\"\nhand_over = \"lmtp:/run/dovecot/lmtp\"\n";
        let settings = Config::from_str("test", text).unwrap().delivery;
        for (agent, recipient, is_taken) in [
            ("lmtp:/run/dovecot/lmtp", "alice@example.org", true),
            ("lmtp:/run/dovecot/lmtp", "alice+Work/Deep", true),
            ("lmtp:/run/dovecot/lmtp", "\"a b\"@example.org", true),
            ("lmtp:/run/other", "alice@example.org", false),
            ("lmtp:db.example.org:5432", "alice@example.org", false),
            ("lmtp:/run/dovecot/lmtp", "", false),
            ("lmtp:/run/dovecot/lmtp", "alice>\r\nRCPT TO:<bob", false),
            ("lmtp:/run/dovecot/lmtp", "alice> ORCPT=rfc822;x <", false),
        ] {
            let hand_over = HandOver {
                agent: Agent::parse(agent).unwrap(),
                recipient: recipient.into(),
            };
            let taken = check(&settings, &hand_over).is_ok();
            assert_eq!(taken, is_taken, "{agent} {recipient:?}");
        }
    }
}
