//! The doing, for a mailbox that only Dovecot writes: dovecot-lda gets the message.
//!
//! With `-e` its exit code is the whole truth: without, it would answer a refusal with a bounce of its own, and exit 0.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::carry_out::Transaction;
use super::header::added_headers;
use super::inspect::Plan;
use super::outcome::Saved;
use super::retry::Retry;
use super::settings::{RecipientHeaders, Settings};
use crate::fault::{Code, Fault};
use crate::mailbox::agent::HandOver;
use crate::mbox::from_line::from_line;
use crate::message::Recipient;
use crate::message::body::Spool;
use crate::sys::process::End;
use crate::sys::program::{self, Ended};

/// How long it may take: as long as an MTA waits.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs `program` for the mailbox of the plan.
pub fn hand_over(
    settings: &Settings,
    transaction: &Transaction,
    recipient: &Recipient,
    plan: &Plan,
    retry: &Retry,
    way: (&HandOver, &Path, &[String]),
) -> Result<Saved, Fault> {
    let (hand_over, program, arguments) = way;
    if let Some(saved) = retry.handed_over(plan) {
        return Ok(saved);
    }
    let message = transaction.message();
    let alike =
        settings.recipient_headers == RecipientHeaders::Single && transaction.recipients() > 1;
    let shown = settings.delivery_address.of(recipient).filter(|_| !alike);
    // It adds none of its own, and takes a line that begins so off the top: it shall be one of ours.
    let mut header = added_headers(message, shown.as_ref(), settings.adds_received);
    if header.is_empty() && message.body.head().starts_with(b"From ") {
        let line = from_line(&message.envelope.sender, &jiff::Zoned::now());
        header = format!("{line}\n").into_bytes();
    }
    let input = message.body.in_a_file(&header, &spool(settings));
    let input = input.map_err(|error| Fault::io("write the message down for Dovecot", &error))?;
    let mut arguments = arguments.to_vec();
    let sender = format!("<{}>", message.envelope.sender);
    let mut say = |option: &str, value: &str| {
        arguments.extend([option.to_owned(), value.to_owned()]);
    };
    // By its userdb, as for whoever reads the mail: it may say more of him than his environment.
    say("-d", &plan.user);
    say("-m", &plan.target.mailbox);
    say("-f", &sender);
    if !hand_over.recipient.is_empty() {
        say("-a", &hand_over.recipient);
    }
    arguments.push("-e".into());
    transaction.check_heard()?;
    let fault = |code, why: String| Fault::new(code, format!("run {}", program.display()), why);
    let started = program::start(program, &arguments, input);
    let started = started.map_err(|error| fault(Code::Unreachable, error.to_string()))?;
    let failed = match started.end(PATIENCE) {
        Ok(ended) => match code_of(ended.end) {
            None => return Ok(Saved::handed_over(plan, hand_over)),
            Some(code) => fault(code, why(&ended)),
        },
        Err(error) if error.kind() == io::ErrorKind::TimedOut => fault(
            Code::Storage,
            format!("it has not ended after {} s", PATIENCE.as_secs()),
        ),
        Err(error) => fault(Code::Storage, error.to_string()),
    };
    Err(match has_refused(&failed) {
        false => failed.perhaps_stored(),
        // A no may come of the message itself, which an earlier run that nobody knows the end of has stored.
        true if retry.is_unknown() => failed.for_now(),
        true => failed,
    })
}

/// None: it has stored the message.
fn code_of(end: End) -> Option<Code> {
    match end {
        End::Exit(0) => None,
        // Our userdb has this user, its own has not: which of us is wrong?
        End::Exit(67) => Some(Code::CannotTell),
        // Over quota, or Sieve has refused it.
        End::Exit(77) => Some(Code::Denied),
        // sysexits(3): it has not stored it. 75 may come behind a copy that Sieve has kept.
        End::Exit(64..=74 | 76 | 78) => Some(Code::NotNow),
        End::Exit(_) | End::Signal(_) => Some(Code::Storage),
    }
}

/// It never ran, or says itself that it has not stored the message.
pub fn has_refused(fault: &Fault) -> bool {
    matches!(
        fault.code,
        Code::CannotTell | Code::Denied | Code::NotNow | Code::Unreachable
    )
}

fn why(Ended { end, said }: &Ended) -> String {
    let ended = match end {
        End::Exit(code) => format!("it ends with exit code {code}"),
        End::Signal(signal) => format!("it is ended by signal {signal}"),
    };
    match said.is_empty() {
        true => ended,
        false => format!("{ended} and says {said:?}"),
    }
}

/// Where a large message waits for it.
fn spool(settings: &Settings) -> Spool {
    let dirs: Vec<PathBuf> = settings.spool_dir.iter().cloned().collect();
    Spool::of([dirs, vec!["/var/tmp".into(), "/tmp".into()]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dovecot_is_sure_of_is_permanent() {
        for code in -1..=255 {
            let is_permanent = code_of(End::Exit(code)).is_some_and(|code| !code.is_temporary());
            assert_eq!(is_permanent, code == 77, "{code}");
            assert_eq!(code_of(End::Exit(code)).is_none(), code == 0, "{code}");
        }
        assert!(code_of(End::Signal(9)).is_some_and(Code::is_temporary));
    }
}
