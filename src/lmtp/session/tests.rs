use proptest::prelude::*;

use super::*;
use crate::deliver::{Outcome, Saved};
use crate::lmtp::codec::Frame;
use crate::lmtp::command::{self, Workarounds};

/// A client, and a server whose deliveries all succeed, except to `nobody`, `full` and `later`.
struct Talk {
    session: Session,
    intake: Intake,
    delivered: Vec<Vec<String>>,
    closed: bool,
}

fn parsed(line: &str) -> Result<Command, Refusal> {
    command::parse(Frame::Line(line.as_bytes()), Workarounds::default())
}

fn talk_with(limits: Limits) -> Talk {
    Talk {
        session: Session::new(limits, Client::default(), "id".into()),
        intake: Intake::Complete,
        delivered: vec![],
        closed: false,
    }
}

fn limits() -> Limits {
    Limits {
        hostname: "mx".into(),
        max_recipients: 3,
        message_size: Some(1000),
        verbose_replies: false,
        is_trusted: false,
        takes_errands: false,
        starttls: StartTls::Unavailable,
    }
}

fn talk() -> Talk {
    talk_with(limits())
}

fn verdict(local: &str) -> Option<Fault> {
    let code = match local {
        "nobody" => Code::NoSuchUser,
        "full" => Code::OverQuota,
        _ => return None,
    };
    Some(Fault::new(code, "look", "it is so"))
}

fn outcome(local: &str) -> Outcome {
    if local == "later" {
        return Outcome::refused(Fault::new(Code::Storage, "write", "I/O error"));
    }
    Outcome::Saved(Saved::empty("INBOX".into(), local.into()))
}

impl Talk {
    /// The replies to one line. A DATA and a BDAT get their body at once.
    fn say(&mut self, line: &str) -> Vec<Reply> {
        let step = self.session.command(parsed(line));
        self.follow(step)
    }

    fn follow(&mut self, step: Step) -> Vec<Reply> {
        match step {
            Step::Answer(replies) => replies,
            Step::GiveUp(mut delivery, fault) => delivery.abandon(&fault),
            Step::Close(reply) => {
                self.closed = true;
                vec![reply]
            }
            Step::StartTls(reply) => {
                self.session.secured();
                vec![reply]
            }
            Step::Check(recipient) => {
                let mut report = Report::failed(
                    recipient.address.to_string(),
                    Fault::new(Code::Internal, "", ""),
                );
                report.fault = verdict(&recipient.address.local);
                let step = self.session.checked(&report);
                self.follow(step)
            }
            Step::Data { go_ahead, .. } => {
                let step = self.session.data_received(self.intake.clone());
                [vec![go_ahead], self.follow(step)].concat()
            }
            Step::Chunk { .. } => {
                let step = self.session.chunk_received(self.intake.clone());
                self.follow(step)
            }
            Step::Deliver(mut delivery) => {
                self.delivered.push(
                    delivery
                        .recipients
                        .iter()
                        .map(|r| r.address.to_string())
                        .collect(),
                );
                let locals: Vec<_> = delivery
                    .recipients
                    .iter()
                    .map(|r| r.address.local.clone())
                    .collect();
                // Backwards: the order of the replies must not depend on it.
                let settled = locals.iter().enumerate().rev();
                settled
                    .flat_map(|(index, local)| delivery.settle(index, outcome(local)))
                    .collect()
            }
        }
    }

    fn codes(&mut self, line: &str) -> Vec<u16> {
        self.say(line).iter().map(Reply::code).collect()
    }
}

fn text(reply: &Reply) -> String {
    let mut out = Vec::new();
    reply.write_to(&mut out);
    String::from_utf8(out).unwrap()
}

/// Every command in every state.
#[test]
fn commands_by_states() {
    let states: [(&str, &[&str]); 6] = [
        ("connected", &[]),
        ("greeted", &["LHLO me"]),
        ("mail", &["LHLO me", "MAIL FROM:<s@x>"]),
        (
            "rcpt",
            &[
                "LHLO me",
                "MAIL FROM:<s@x>",
                "RCPT TO:<a>",
                "RCPT TO:<later>",
            ],
        ),
        (
            "chunk",
            &[
                "MAIL FROM:<s@x>",
                "RCPT TO:<a>",
                "RCPT TO:<later>",
                "BDAT 5",
            ],
        ),
        (
            "bad chunk",
            &[
                "MAIL FROM:<s@x>",
                "RCPT TO:<a>",
                "RCPT TO:<later>",
                "BDAT 5 X",
            ],
        ),
    ];
    #[rustfmt::skip]
    let table: [(&str, [&[u16]; 6]); 32] = [
        // command                   connected greeted  mail     rcpt              chunk        bad chunk
        ("LHLO me",                  [&[250], &[250], &[250], &[250],           &[250],      &[250]]),
        ("LHLO",                     [&[501], &[501], &[501], &[501],           &[501],      &[501]]),
        ("EHLO me",                  [&[500], &[500], &[500], &[500],           &[500],      &[500]]),
        ("HELO me",                  [&[500], &[500], &[500], &[500],           &[500],      &[500]]),
        ("MAIL FROM:<s@x>",          [&[250], &[250], &[503], &[503],           &[503],      &[503]]),
        ("MAIL FROM:<>",             [&[250], &[250], &[503], &[503],           &[503],      &[503]]),
        ("MAIL",                     [&[501], &[501], &[503], &[503],           &[503],      &[503]]),
        ("MAIL FROM:<s@x> SIZE=1001",[&[552], &[552], &[503], &[503],           &[503],      &[503]]),
        ("MAIL FROM:<s@x> SIZE=1000",[&[250], &[250], &[503], &[503],           &[503],      &[503]]),
        ("MAIL FROM:<s@x> RET=FULL", [&[555], &[555], &[503], &[503],           &[503],      &[503]]),
        ("RCPT TO:<b>",              [&[503], &[503], &[250], &[250],           &[503],      &[503]]),
        ("RCPT TO:<nobody>",         [&[503], &[503], &[550], &[550],           &[503],      &[503]]),
        ("RCPT TO:<full>",           [&[503], &[503], &[552], &[552],           &[503],      &[503]]),
        ("RCPT TO:<>",               [&[503], &[503], &[501], &[501],           &[503],      &[503]]),
        ("RCPT TO:<jörg>",           [&[503], &[503], &[553], &[553],           &[503],      &[503]]),
        ("DATA",                     [&[503], &[503], &[503], &[354, 250, 451], &[503],      &[503]]),
        ("DATA x",                   [&[501], &[501], &[501], &[501],           &[501],      &[501]]),
        ("BDAT 5",                   [&[503], &[503], &[503], &[250],           &[250],      &[503]]),
        ("BDAT 5 LAST",              [&[],    &[],    &[],    &[250, 451],      &[250, 451], &[451, 451]]),
        ("BDAT 1000 LAST",           [&[],    &[],    &[],    &[250, 451],      &[552, 552], &[451, 451]]),
        ("BDAT 1001",                [&[503], &[503], &[503], &[552],           &[552],      &[503]]),
        ("BDAT x",                   [&[501], &[501], &[501], &[501],           &[501],      &[501]]),
        ("RCPT TO:<b> IGNOREQUOTA",  [&[503], &[503], &[250], &[250],           &[503],      &[503]]),
        ("RCPT TO:<b> XRCPTFORWARD=a",[&[503],&[503], &[550], &[550],           &[503],      &[503]]),
        ("RCPT TO:<b> XPOSTROOM={}", [&[503], &[503], &[501], &[501],           &[503],      &[503]]),
        ("STARTTLS",                 [&[502], &[502], &[502], &[502],           &[502],      &[502]]),
        ("XCLIENT ADDR=192.0.2.1",   [&[550], &[550], &[550], &[550],           &[550],      &[550]]),
        ("XFORWARD IDENT=x",         [&[550], &[550], &[550], &[550],           &[550],      &[550]]),
        ("VRFY x",                   [&[252], &[252], &[252], &[252],           &[252],      &[252]]),
        ("NOOP",                     [&[250], &[250], &[250], &[250],           &[250],      &[250]]),
        ("RSET",                     [&[250], &[250], &[250], &[250],           &[250],      &[250]]),
        ("QUIT",                     [&[221], &[221], &[221], &[221],           &[221],      &[221]]),
    ];
    for (command, row) in table {
        for ((state, script), want) in states.iter().zip(row) {
            let mut talk = talk();
            script.iter().for_each(|line| drop(talk.say(line)));
            assert_eq!(talk.codes(command), want, "{command} when {state}");
            assert_eq!(talk.closed, command == "QUIT", "{command} when {state}");
        }
    }
}

const ERRAND: &str = "RCPT TO:<b> XPOSTROOM={\"user\":\"b\",\"mailbox\":\"x\",\"subject\":null}";

/// What depends on who it is, and on TLS.
#[test]
fn commands_of_clients() {
    let trusted = Limits {
        is_trusted: true,
        ..limits()
    };
    let with = |starttls: StartTls| Limits {
        starttls,
        ..limits()
    };
    let rcpt = ["MAIL FROM:<s@x>", "RCPT TO:<a>"];
    for (limits, script, command, want) in [
        (trusted.clone(), &[][..], "XCLIENT ADDR=192.0.2.1", 220),
        (trusted.clone(), &[], "XCLIENT ADDR=mx", 501),
        (trusted.clone(), &[], "XCLIENT SESSION=a<b", 501),
        (trusted.clone(), &rcpt, "XCLIENT ADDR=192.0.2.1", 503),
        (trusted.clone(), &[], "XFORWARD IDENT=4XqZ2v NAME=mx", 250),
        (trusted.clone(), &rcpt, "XFORWARD IDENT=4XqZ2v", 503),
        (
            trusted.clone(),
            &rcpt,
            "RCPT TO:<b> XRCPTFORWARD=a+3D1",
            250,
        ),
        (trusted.clone(), &rcpt, "RCPT TO:<b> IGNOREQUOTA", 250),
        (trusted.clone(), &rcpt, ERRAND, 550),
        (
            Limits {
                takes_errands: true,
                ..limits()
            },
            &rcpt,
            ERRAND,
            550,
        ),
        (
            Limits {
                takes_errands: true,
                ..trusted.clone()
            },
            &rcpt,
            ERRAND,
            250,
        ),
        (with(StartTls::Offered), &[], "STARTTLS", 220),
        (with(StartTls::Offered), &rcpt, "STARTTLS", 220),
        (with(StartTls::Offered), &rcpt, "DATA", 354),
        (with(StartTls::Done), &[], "STARTTLS", 502),
        (with(StartTls::Done), &[], "MAIL FROM:<s@x>", 250),
        (with(StartTls::Required), &[], "MAIL FROM:<s@x>", 530),
        (with(StartTls::Required), &rcpt, "RCPT TO:<b>", 503),
        (
            with(StartTls::Required),
            &["STARTTLS"],
            "MAIL FROM:<s@x>",
            250,
        ),
        (with(StartTls::Required), &["STARTTLS"], "STARTTLS", 502),
    ] {
        let mut talk = talk_with(limits);
        script.iter().for_each(|line| drop(talk.say(line)));
        assert_eq!(talk.codes(command)[0], want, "{command} after {script:?}");
    }
    // TLS begins from nothing.
    let mut talk = talk_with(with(StartTls::Offered));
    rcpt.iter().for_each(|line| drop(talk.say(line)));
    talk.say("STARTTLS");
    assert_eq!(talk.codes("DATA"), [503]);
}

/// What others say of a client, and how long it counts.
#[test]
fn whom_a_client_speaks_for() {
    let mut talk = talk_with(Limits {
        is_trusted: true,
        ..limits()
    });
    talk.say("LHLO proxy");
    talk.say("XCLIENT ADDR=IPV6:2001:db8::1 HELO=mx LOGIN=bob SESSION=abc:P1 TTL=4");
    talk.say("LHLO proxy");
    assert_eq!(talk.session.helo(), Some("mx"));
    let client = talk.session.client().clone();
    assert_eq!(client.literal().as_deref(), Some("IPv6:2001:db8::1"));
    assert_eq!(client.ttl, Some(4));
    talk.say("XFORWARD IDENT=4XqZ2v");
    for (command, want) in [
        ("MAIL FROM:<s@x>", (Some("4XqZ2v"), "abc:P1", Some("bob"))),
        ("MAIL FROM:<s@x> AUTH=eve", (None, "abc:P1:T2", Some("eve"))),
    ] {
        talk.say(command);
        let step = talk.session.command(parsed("RCPT TO:<a>"));
        let Step::Check(recipient) = &step else {
            panic!("{step:?}")
        };
        let queue_id = talk.session.forwarded().queue_id.as_deref();
        let found = (
            queue_id,
            talk.session.id(),
            recipient.authenticated.as_deref(),
        );
        assert_eq!(found, want, "{command}");
        talk.follow(step);
        talk.say("RSET");
    }
}

/// Whether a command ends the transaction that was open, seen by what MAIL says next.
#[test]
fn what_ends_a_transaction() {
    for (command, ends) in [
        ("LHLO me", true),
        ("LHLO", false),
        ("RSET", true),
        ("RSET x", false),
        ("NOOP", false),
        ("VRFY x", false),
        ("DATA", true),
        ("BDAT 5", false),
        ("BDAT 5 LAST", true),
        ("BDAT 5 FOO", false),
        ("RCPT TO:<nobody>", false),
        ("FOO", false),
        ("STARTTLS", false),
        ("XCLIENT ADDR=192.0.2.1", false),
        ("XFORWARD IDENT=x", false),
    ] {
        let mut talk = talk();
        talk.say("MAIL FROM:<s@x>");
        talk.say("RCPT TO:<a>");
        talk.say(command);
        assert_eq!(
            talk.codes("MAIL FROM:<s@x>"),
            [if ends { 250 } else { 503 }],
            "{command}"
        );
    }
}

/// Exim's transport has a buffer of 256 bytes for them.
#[test]
fn capabilities_that_fit() {
    for length in [1, 20, 40, 60, 63, 200] {
        let mut talk = talk_with(Limits {
            hostname: "x".repeat(length),
            message_size: Some(u64::MAX),
            is_trusted: true,
            takes_errands: true,
            starttls: StartTls::Offered,
            ..limits()
        });
        let reply = text(&talk.say("LHLO me")[0]).replace("\r\n", "\n");
        assert!(reply.len() <= 255, "{length}: {reply}");
        assert!(reply.contains("PIPELINING"), "{reply}");
        assert_eq!(reply.contains("XCLIENT"), length < 100, "{length}: {reply}");
        talk.say("XCLIENT ADDR=192.0.2.1");
        let reply = text(&talk.say("LHLO me")[0]);
        assert!(
            reply.contains("XPOSTROOM") && reply.contains("XRCPTFORWARD"),
            "{reply}"
        );
    }
}

#[test]
fn capabilities() {
    let reply = talk().say("LHLO me").remove(0);
    let want = "250-mx\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250 SIZE 1000\r\n";
    assert_eq!(text(&reply), want);
    let mut trusted = talk_with(Limits {
        is_trusted: true,
        starttls: StartTls::Offered,
        ..limits()
    });
    let reply = text(&trusted.say("LHLO me")[0]);
    let want = "250-SIZE 1000\r\n250-STARTTLS\r\n250-XCLIENT ADDR HELO LOGIN SESSION TTL TIMEOUT\r\n250 XFORWARD NAME ADDR IDENT\r\n";
    assert!(reply.ends_with(want), "{reply}");
    trusted.say("STARTTLS");
    assert!(!text(&trusted.say("LHLO me")[0]).contains("STARTTLS"));
    let mut unlimited = talk_with(Limits {
        message_size: None,
        ..limits()
    });
    assert!(text(&unlimited.say("LHLO me")[0]).ends_with("250 SIZE\r\n"));
}

#[test]
fn the_same_recipient_is_stored_once_and_answered_each_time() {
    let mut talk = talk_with(Limits {
        max_recipients: 10,
        ..limits()
    });
    talk.say("MAIL FROM:<s@x>");
    for (rcpt, code) in [
        ("a@x", 250),
        ("nobody", 550),
        ("b@x", 250),
        ("a@X", 250),
        ("A@x", 250),
        ("later", 250),
        ("a@x", 250),
    ] {
        assert_eq!(talk.codes(&format!("RCPT TO:<{rcpt}>")), [code], "{rcpt}");
    }
    let replies = talk.say("DATA");
    let got: Vec<String> = replies[1..]
        .iter()
        .map(|reply| text(reply)[..12].trim_end().to_string())
        .collect();
    assert_eq!(
        got,
        [
            "250 2.0.0 <a",
            "250 2.0.0 <b",
            "250 2.0.0 <a",
            "250 2.0.0 <A",
            "451 4.2.0 <l",
            "250 2.0.0 <a"
        ]
    );
    assert_eq!(talk.delivered, [["a@x", "b@x", "A@x", "later"]]);
}

#[test]
fn a_failed_body_answers_every_recipient() {
    let disk = Fault::new(Code::NoSpace, "spool", "No space left on device");
    for (intake, code) in [(Intake::TooBig, 552), (Intake::Failed(disk), 452)] {
        for data in ["DATA", "BDAT 7 LAST"] {
            let mut talk = talk();
            talk.intake = intake.clone();
            talk.say("MAIL FROM:<s@x>");
            talk.say("RCPT TO:<a>");
            talk.say("RCPT TO:<b>");
            talk.say("RCPT TO:<a>");
            let codes = talk.codes(data);
            assert_eq!(codes[codes.len() - 3..], [code; 3], "{data}");
            assert!(talk.delivered.is_empty());
            assert_eq!(talk.codes("MAIL FROM:<s@x>"), [250], "{data}");
        }
    }
}

#[test]
fn chunks_after_a_failed_one() {
    let mut talk = talk();
    talk.say("MAIL FROM:<s@x>");
    talk.say("RCPT TO:<a>");
    for (line, codes) in [
        ("BDAT 900", vec![250]),
        ("BDAT 101", vec![552]),
        ("BDAT 1", vec![503]),
        ("BDAT 1 LAST", vec![552]),
    ] {
        assert_eq!(talk.codes(line), codes, "{line}");
    }
    assert!(talk.delivered.is_empty());
}

#[test]
fn only_octets_of_a_message_are_kept() {
    for (script, line, want) in [
        (vec![], "BDAT 5", false),
        (vec!["MAIL FROM:<s@x>"], "BDAT 5", false),
        (vec!["MAIL FROM:<s@x>", "RCPT TO:<a>"], "BDAT 5", true),
        (vec!["MAIL FROM:<s@x>", "RCPT TO:<a>"], "BDAT 5 X", false),
        (
            vec!["MAIL FROM:<s@x>", "RCPT TO:<a>"],
            "BDAT 9223372036854775808",
            false,
        ),
        (
            vec!["MAIL FROM:<s@x>", "RCPT TO:<a>", "BDAT 1"],
            "BDAT 18446744073709551615",
            false,
        ),
        (
            vec!["MAIL FROM:<s@x>", "RCPT TO:<a>", "BDAT 5 X"],
            "BDAT 5",
            false,
        ),
    ] {
        let mut talk = talk();
        script.iter().for_each(|line| drop(talk.say(line)));
        let step = talk.session.command(parsed(line));
        assert!(
            matches!(step, Step::Chunk { keep, .. } if keep == want),
            "{line} after {script:?}: {step:?}"
        );
    }
}

#[test]
fn recipients_are_limited() {
    let mut talk = talk();
    talk.say("MAIL FROM:<s@x>");
    for (rcpt, code) in [
        ("a", 250),
        ("nobody", 550),
        ("b", 250),
        ("a", 250),
        ("c", 452),
        ("a", 452),
    ] {
        assert_eq!(talk.codes(&format!("RCPT TO:<{rcpt}>")), [code], "{rcpt}");
    }
    assert_eq!(talk.codes("DATA"), [354, 250, 250, 250]);
}

#[test]
fn protocol_errors_in_a_row() {
    let mut talk = talk();
    for _ in 0..10 {
        assert_eq!(talk.codes("FOO"), [500]);
    }
    assert_eq!(talk.codes("NOOP"), [250]);
    for line in [
        "FOO",
        "DATA",
        "RSET x",
        "RCPT TO:<a>",
        "FOO",
        "DATA",
        "RSET x",
        "RCPT TO:<a>",
        "FOO",
        "DATA",
    ] {
        talk.say(line);
        assert!(!talk.closed);
    }
    let farewell = talk.say("BAR").remove(0);
    assert!(talk.closed);
    assert_eq!(text(&farewell), "421 4.7.0 mx Too many protocol errors\r\n");
}

#[test]
fn a_lost_framing_closes() {
    let mut talk = talk();
    assert_eq!(talk.codes("BDAT 99999999999999999999"), [501]);
    assert!(talk.closed);
}

#[test]
fn ids_count_accepted_mails() {
    let mut talk = talk();
    for (line, id) in [
        ("LHLO me", "id"),
        ("MAIL FROM:<s@x>", "id"),
        ("RSET", "id"),
        ("MAIL FROM:<s@x> SIZE=9999", "id"),
        ("MAIL FROM:<s@x>", "id:T2"),
        ("MAIL FROM:<s@x>", "id:T2"),
        ("RSET", "id"),
        ("MAIL FROM:<s@x>", "id:T3"),
    ] {
        talk.say(line);
        assert_eq!(talk.session.id(), id, "{line}");
    }
}

#[test]
fn non_ascii_addresses_need_smtputf8() {
    let mut talk = talk();
    talk.say("MAIL FROM:<jörg@x> SMTPUTF8");
    assert_eq!(talk.session.sender_text(), "jörg@x");
    assert_eq!(talk.codes("RCPT TO:<bärbel@x>"), [250]);
    talk.say("RSET");
    talk.say("MAIL FROM:<jörg@>");
    assert_eq!(talk.session.sender_text(), "jörg@");
    assert_eq!(talk.codes("RCPT TO:<bärbel@x>"), [553]);
}

proptest! {
    /// RFC 2033: as many replies to the message as accepted RCPTs, whatever came before and in between.
    #[test]
    fn replies_are_counted(lines in prop::collection::vec(prop::sample::select(vec![
        "LHLO me", "MAIL FROM:<s@x>", "MAIL FROM:<s@x>", "RCPT TO:<a>", "RCPT TO:<b>", "RCPT TO:<nobody>", "RCPT TO:<later>",
        "DATA", "BDAT 5", "BDAT 5 LAST", "BDAT 900", "BDAT 2 X", "RSET", "NOOP", "FOO",
    ]), 0..40), too_big: bool) {
        let mut talk = talk();
        talk.intake = if too_big { Intake::TooBig } else { Intake::Complete };
        let mut accepted = 0;
        for line in lines {
            let codes = talk.codes(line);
            if talk.closed { break }
            let last = line == "BDAT 5 LAST";
            let body = last || codes.first() == Some(&354);
            prop_assert_eq!(codes.len(), if last { accepted } else if body { accepted + 1 } else { 1 }, "{}", line);
            if line.starts_with("RCPT") && codes == [250] { accepted += 1 }
            if body || ["LHLO me", "RSET"].contains(&line) { accepted = 0 }
            prop_assert_eq!(talk.session.transaction.as_ref().map_or(0, |t| t.accepted.len()), accepted);
        }
    }

    #[test]
    fn replies_come_in_the_order_of_rcpt(order in Just((0..6).collect::<Vec<usize>>()).prop_shuffle(), twice in 0usize..6) {
        let mut talk = talk_with(Limits { max_recipients: 10, ..limits() });
        talk.say("MAIL FROM:<s@x>");
        (0..6).chain([twice]).for_each(|n| drop(talk.say(&format!("RCPT TO:<r{n}>"))));
        talk.session.command(Ok(Command::Data));
        let Step::Deliver(mut delivery) = talk.session.data_received(Intake::Complete) else { panic!() };
        let mut replies = Vec::new();
        let mut known = Vec::new();
        for index in order {
            known.push(index);
            replies.extend(delivery.settle(index, outcome("x")).iter().map(text));
            let due = (0..6).take_while(|n| known.contains(n)).count();
            prop_assert_eq!(replies.len(), if due == 6 { 7 } else { due });
        }
        for (reply, n) in replies.iter().zip((0..6).chain([twice])) {
            let want = format!("<r{n}>");
            prop_assert!(reply.contains(&want));
        }
    }
}
