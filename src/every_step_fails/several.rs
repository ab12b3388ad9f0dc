//! An LMTP transaction and a message from a pipe, for one and for three recipients: what was answered for is stored, once for each,
//! and what was not is not, whichever step of whichever recipient fails.

use std::iter;

use super::one::{assert_whole, core, ends, is_full, let_time_pass, seen, store, turning};
use super::*;
use crate::lda;
use crate::lmtp::client::Client;
use crate::lmtp::codec::Frame;
use crate::lmtp::command::{self, Workarounds};
use crate::lmtp::session::{Intake, Limits, Session, StartTls, Step};
use crate::sys::fault_point::Failure;

/// Addresses, and where their mail is.
type Recipients = &'static [(&'static str, &'static str)];

const RECIPIENTS: [Recipients; 3] = [
    &[("alice", "home/Maildir")],
    // One is made, and the last has another mode: no link can be its copy.
    &[
        ("alice", "home/Maildir"),
        ("alice+Work", "home/Maildir/.Work"),
        ("alice+Public/info", "public/.info"),
    ],
    &[
        ("alice+Public/info", "public/.info"),
        ("alice+Box/old", "home/boxes/old"),
        ("alice+Box/new", "home/boxes/new"),
    ],
];

/// How a message comes in.
#[derive(Debug, Clone, Copy)]
enum Face {
    Lmtp,
    Lda,
}

impl Face {
    /// For each recipient whether it is answered for; none: nobody says.
    fn deliver(self, core: Core, recipients: Recipients, case: &str) -> Vec<Option<bool>> {
        match self {
            Face::Lmtp => {
                let codes = lmtp(&core, recipients);
                assert_eq!(codes.len(), recipients.len(), "{case}: {codes:?}");
                let is_known = |code: &u16| [250, 451, 452].contains(code);
                assert!(codes.iter().all(is_known), "{case}: {codes:?}");
                codes.iter().map(|code| Some(*code == 250)).collect()
            }
            Face::Lda => {
                let recipients: Vec<_> = recipients.iter().map(|(it, _)| recipient(it)).collect();
                let count = recipients.len();
                let wire = b"From MAILER-DAEMON  Mon Nov 02 07:02:09 2026\nSubject: one\n\n.a line\nlast\n";
                let code = lda::deliver_here(core, recipients, &mut &wire[..]);
                assert!([0, 75].contains(&code), "{case}: exit code {code}");
                let is_none = count == 1 && code != 0;
                vec![(code == 0 || is_none).then_some(code == 0); count]
            }
        }
    }
}

/// The last reply for each recipient.
fn lmtp(core: &Core, recipients: Recipients) -> Vec<u16> {
    let limits = Limits {
        hostname: "mx".into(),
        max_recipients: 3,
        message_size: None,
        verbose_replies: false,
        is_trusted: false,
        takes_errands: false,
        starttls: StartTls::Unavailable,
    };
    let mut session = Session::new(limits, Client::default(), "id".into());
    let mut say = |line: &str| {
        let command = command::parse(Frame::Line(line.as_bytes()), Workarounds::default());
        match session.command(command) {
            Step::Check(recipient) => session.checked(&core.inspect(&recipient)),
            step => step,
        }
    };
    let code_of = |step| match step {
        Step::Answer(replies) => replies[0].code(),
        step => panic!("{step:?}"),
    };
    say("LHLO me");
    say("MAIL FROM:<>");
    let rcpt = |(address, _): &(&str, &str)| code_of(say(&format!("RCPT TO:<{address}>")));
    let mut codes: Vec<u16> = recipients.iter().map(rcpt).collect();
    if let Step::Data { .. } = say("DATA")
        && let Step::Deliver(mut delivery) = session.data_received(Intake::Complete)
    {
        let transaction = core.transaction(message(), delivery.recipients.len());
        let mut replies = Vec::new();
        for (index, recipient) in delivery.recipients.clone().iter().enumerate() {
            let outcome = core.deliver(&transaction, recipient);
            replies.extend(delivery.settle(index, outcome));
        }
        let accepted = codes.iter_mut().filter(|code| **code == 250);
        let mut replies = replies.iter();
        for code in accepted {
            *code = replies.next().unwrap().code();
        }
        assert!(replies.next().is_none());
    }
    codes
}

/// Lets one step fail. False: there was no such step any more.
fn fails_well(
    face: Face,
    recipients: Recipients,
    headers: &str,
    failure: Failure,
    step: usize,
) -> bool {
    let store = store(true);
    let new_core = || core(&store, &format!("recipient_headers = \"{headers}\"\n"));
    let mut case = format!("{face:?}, {recipients:?}, {headers}, {failure:?} at {step}");
    let core = new_core();
    fault_point::arm(step, failure);
    let answers = face.deliver(core, recipients, &case);
    let fired = !fault_point::disarm();
    let has_ended = fired && fault_point::ENDS.contains(&failure);
    case = format!("{case}: {answers:?}");
    // Ended within a write to an mbox, it is looked at behind the next delivery.
    let count = |case: &str| -> Vec<usize> {
        let places = recipients.iter().map(|(_, place)| *place);
        places.map(|place| seen(&store, place, case)).collect()
    };
    if !has_ended {
        let seen = count(&case);
        for (answer, seen) in answers.iter().zip(&seen) {
            assert!(
                answer.is_none_or(|yes| usize::from(yes) == *seen),
                "{case}: {seen:?}"
            );
        }
        assert!(
            seen.is_sorted_by(|one, next| matches!(face, Face::Lmtp) || one >= next),
            "{case}: {seen:?}"
        );
        assert_whole(&store, &case);
    }
    let is_answered = |answer: &Option<bool>| *answer == Some(true);
    if answers.iter().all(is_answered) {
        return fired;
    }
    assert!(fired, "{case}");
    let_time_pass(&store);
    let again = face.deliver(new_core(), recipients, &case);
    case = format!("{case}\nthe next try: {again:?}");
    assert!(again.iter().all(is_answered), "{case}");
    for ((answer, seen), (_, place)) in answers.iter().zip(count(&case)).zip(recipients) {
        // Sent again for all: one that was there already is there twice.
        let most = match answer {
            Some(false) if !has_ended => 1,
            _ => 2,
        };
        assert!(seen >= 1 && seen <= most, "{case}: {seen} in {place}");
        assert!(
            *answer != Some(true) || seen == 2,
            "{case}: {seen} in {place}"
        );
    }
    if !has_ended {
        assert_whole(&store, &case);
    }
    true
}

#[test]
fn what_is_answered_for_is_there() {
    if !as_ordinary_user("every_step_fails::several::what_is_answered_for_is_there") {
        return;
    }
    let mut begun = seed();
    for face in [Face::Lmtp, Face::Lda] {
        for recipients in RECIPIENTS {
            for headers in ["single", "each"] {
                begun += 1;
                let fail = |failures: &mut dyn Iterator<Item = Failure>, takes_turns: bool| {
                    let mut steps = 0;
                    for (step, failure) in failures.enumerate() {
                        let fired = fails_well(face, recipients, headers, failure, step);
                        // There are fewer writes than steps.
                        let is_beyond = takes_turns && matches!(failure, Failure::Short(_));
                        if !fired && !is_beyond {
                            break;
                        }
                        steps = step;
                    }
                    assert!(steps > 0, "{face:?} {recipients:?}: no step can fail");
                };
                let one = |failure| fail(&mut iter::repeat(failure), false);
                ends().for_each(one);
                match is_full() {
                    true => fault_point::FAILURES.into_iter().for_each(one),
                    false => fail(&mut turning(begun), true),
                }
            }
        }
    }
}
