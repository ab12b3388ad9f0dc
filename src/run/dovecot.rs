//! Mail for mailboxes that only Dovecot writes, by its LMTP server: its answer is ours.

use std::sync::Arc;

use super::relay::{Heard, Job, Relay};
use crate::deliver::{Done, Line, Outcome, Parcel, Report, Saved};
use crate::fault::Fault;
use crate::message::{Message, Recipient};

/// RCPT there, where the report says that it would get the message.
pub async fn ask(relay: &Relay, recipient: &Recipient, report: Report) -> Report {
    let hand_over = report.hand_over.as_ref().filter(|_| report.fault.is_none());
    let Some((hand_over, node)) = hand_over.and_then(|it| Some((it, it.server()?))) else {
        return report;
    };
    let recipient = understood(recipient);
    let job = job(&recipient, &hand_over.recipient, None);
    let fault = match relay.ask(&node, &job).await {
        Ok(answer) => answer.fault(&node),
        Err(fault) => Some(fault),
    };
    match fault {
        None => report,
        Some(fault) => refused(report, fault),
    }
}

/// Takes there what is to be taken.
pub async fn finish(
    relay: &Relay,
    done: Done,
    recipient: &Recipient,
    message: &Arc<Message>,
    heard: Heard<'_>,
) -> Outcome {
    match done {
        Done::Outcome(outcome) => outcome,
        Done::Parcel(parcel) => {
            let taken = take(relay, parcel, recipient, message, heard).await;
            taken.map_or_else(Outcome::refused, Outcome::Saved)
        }
    }
}

async fn take(
    relay: &Relay,
    Parcel { hand_over, saved }: Parcel,
    recipient: &Recipient,
    message: &Arc<Message>,
    heard: Heard<'_>,
) -> Result<Saved, Fault> {
    let Some(node) = hand_over.server() else {
        return Err(super::out_of_step());
    };
    let recipient = understood(recipient);
    let job = job(&recipient, &hand_over.recipient, Some(message));
    let answer = relay.deliver(&node, &job, message, heard).await?;
    match answer.fault(&node) {
        None => Ok(saved),
        Some(fault) => Err(fault),
    }
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
