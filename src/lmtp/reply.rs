//! Replies: lines that are always whole, at most 512 bytes long and printable, whatever is put into them.
//!
//! What a sender may learn is decided here: the code, one fixed sentence of [`Code`](crate::fault::Code), the final
//! mailbox, and the id under which the log tells the rest.

use std::io::Write as _;

use crate::deliver::{Outcome, Report, Saved};
use crate::fault::Fault;
use crate::message::Address;

/// A reply line with its CRLF (RFC 5321 section 4.5.3.1.5).
const MAX_LINE: usize = 512;
/// Bytes of an address or a mailbox name within a reply: the id behind them must not be cut off.
const MAX_NAME: usize = 160;

/// One reply, of one line or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    code: u16,
    enhanced: Option<&'static str>,
    /// One line each; never empty.
    lines: Vec<String>,
}

impl Reply {
    /// `enhanced`: `5.1.1` (RFC 3463).
    pub fn new(code: u16, enhanced: &'static str, text: impl Into<String>) -> Reply {
        Reply {
            code,
            enhanced: Some(enhanced),
            lines: vec![text.into()],
        }
    }

    /// A reply that has no enhanced status code: the greeting, 354.
    pub fn bare(code: u16, text: impl Into<String>) -> Reply {
        Reply {
            code,
            enhanced: None,
            lines: vec![text.into()],
        }
    }

    /// `250-first`, `250 last`: the capabilities.
    pub fn list(
        code: u16,
        first: impl Into<String>,
        rest: impl IntoIterator<Item = String>,
    ) -> Reply {
        let mut lines = vec![first.into()];
        lines.extend(rest);
        Reply {
            code,
            enhanced: None,
            lines,
        }
    }

    /// What failed for no recipient in particular.
    pub fn to_fault(fault: &Fault) -> Reply {
        let (code, enhanced) = fault.code.smtp();
        Reply::new(code, enhanced, fault.code.text())
    }

    /// RCPT: what a delivery to `address` would be answered.
    pub fn to_rcpt(address: &Address, session: &str, report: &Report, verbose: bool) -> Reply {
        match &report.fault {
            None => Reply::accepted(address),
            Some(fault) => Reply::refused(address, session, fault, verbose),
        }
    }

    /// RCPT of an address that can be delivered to.
    pub fn accepted(address: &Address) -> Reply {
        Reply::new(
            250,
            "2.1.5",
            format!("<{}> OK", short(&address.to_string())),
        )
    }

    /// The answer for one recipient after the message.
    pub fn to_data(address: &Address, session: &str, outcome: &Outcome, verbose: bool) -> Reply {
        match outcome {
            Outcome::Saved(saved) => Reply::saved(address, session, saved),
            Outcome::Deferred(fault) | Outcome::Rejected(fault) => {
                Reply::refused(address, session, fault, verbose)
            }
        }
    }

    fn saved(address: &Address, session: &str, saved: &Saved) -> Reply {
        let address = short(&address.to_string());
        let mailbox = short(&saved.mailbox.replace('\\', "\\\\").replace('"', "\\\""));
        let what = match (saved.is_again, saved.is_handed_over) {
            (true, _) => "Saved before",
            (false, true) => "Handed over to Dovecot",
            (false, false) => "Saved",
        };
        let uid = saved
            .uid
            .map(|uid| format!(" uid={uid}"))
            .unwrap_or_default();
        // Other servers than ours do not say which.
        let place = match saved.known_mailbox() {
            None => String::new(),
            Some(_) => format!(" mailbox=\"{mailbox}\"{uid}"),
        };
        Reply::new(250, "2.0.0", format!("<{address}> {session}{place} {what}"))
    }

    fn refused(address: &Address, session: &str, fault: &Fault, verbose: bool) -> Reply {
        let (code, enhanced) = fault.code.smtp();
        let mut text = format!(
            "<{}> {session} {}",
            short(&address.to_string()),
            fault.code.text()
        );
        if verbose {
            text.push_str(": ");
            text.push_str(&fault.to_string());
        }
        Reply::new(code, enhanced, text)
    }

    /// Three digits, the same on each of its lines (RFC 5321 section 4.2.1).
    pub fn code(&self) -> u16 {
        self.code
    }

    /// Whether it tells of a client that does not speak the protocol; many in a row end the connection.
    pub fn is_protocol_error(&self) -> bool {
        matches!(self.code, 500..=503)
    }

    /// Appends the reply as it goes over the wire.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        for (at, text) in self.lines.iter().enumerate() {
            let start = out.len();
            let dash = if at + 1 < self.lines.len() { '-' } else { ' ' };
            // Writing to a Vec cannot fail.
            let _ = write!(out, "{}{dash}", self.code);
            if let Some(enhanced) = self.enhanced {
                let _ = write!(out, "{enhanced} ");
            }
            let room = MAX_LINE - 2 - (out.len() - start);
            push_printable(text, room, out);
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// The text in printable ASCII, `\xNN` for every other byte, and no more than `room` bytes of it.
fn push_printable(text: &str, room: usize, out: &mut Vec<u8>) {
    let limit = out.len() + room;
    for byte in text.bytes() {
        let end = out.len();
        push_escaped(byte, out);
        if out.len() > limit {
            return out.truncate(end);
        }
    }
}

fn push_escaped(byte: u8, out: &mut Vec<u8>) {
    match byte {
        b' '..=b'~' => out.push(byte),
        // Writing to a Vec cannot fail.
        byte => drop(write!(out, "\\x{byte:02x}")),
    }
}

/// A name that leaves room for what follows it.
fn short(name: &str) -> String {
    let mut out = Vec::with_capacity(name.len());
    for byte in name.bytes() {
        push_escaped(byte, &mut out);
        if out.len() > MAX_NAME {
            out.truncate(MAX_NAME - 3);
            out.extend_from_slice(b"...");
            break;
        }
    }
    // It is ASCII.
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fault::Code;

    fn wire(reply: &Reply) -> String {
        let mut out = Vec::new();
        reply.write_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    fn saved(mailbox: &str, uid: Option<u32>) -> Outcome {
        Outcome::Saved(Saved {
            uid,
            ..Saved::empty(mailbox.into(), "alice".into())
        })
    }

    fn refused(code: Code) -> Outcome {
        Outcome::refused(
            Fault::new(code, "open /srv/mail", "Permission denied")
                .with_advice("chmod g+w /srv/mail"),
        )
    }

    #[test]
    fn after_the_message() {
        for (outcome, verbose, want) in [
            (
                saved("Public/Sales", Some(17)),
                false,
                "250 2.0.0 <a@x> id:T2 mailbox=\"Public/Sales\" uid=17 Saved\r\n",
            ),
            (
                saved("INBOX", None),
                false,
                "250 2.0.0 <a@x> id:T2 mailbox=\"INBOX\" Saved\r\n",
            ),
            (
                Outcome::Saved(Saved {
                    is_handed_over: true,
                    ..Saved::empty("Work".into(), "alice".into())
                }),
                false,
                "250 2.0.0 <a@x> id:T2 Handed over to Dovecot\r\n",
            ),
            (
                saved("a\"b\r\n250 é", None),
                false,
                "250 2.0.0 <a@x> id:T2 mailbox=\"a\\\"b\\x0d\\x0a250 \\xc3\\xa9\" Saved\r\n",
            ),
            (
                refused(Code::NoSuchUser),
                false,
                "550 5.1.1 <a@x> id:T2 No such user\r\n",
            ),
            (
                refused(Code::Permissions),
                false,
                "451 4.3.0 <a@x> id:T2 Mailbox cannot take the message as configured, try again later\r\n",
            ),
            (
                refused(Code::OverQuota),
                true,
                "552 5.2.2 <a@x> id:T2 Mailbox is full: open /srv/mail: Permission denied (chmod g+w /srv/mail)\r\n",
            ),
        ] {
            assert_eq!(
                wire(&Reply::to_data(&address("a@x"), "id:T2", &outcome, verbose)),
                want
            );
        }
    }

    #[test]
    fn to_recipients() {
        let mut report = Report::failed(
            "a@x".into(),
            Fault::new(Code::Denied, "check rights", "no i in /srv/dovecot-acl"),
        );
        let reply =
            |report: &Report| wire(&Reply::to_rcpt(&address("\"a b\"@x"), "id", report, false));
        assert_eq!(
            reply(&report),
            "550 5.7.1 <\"a b\"@x> id Delivery to this mailbox is not permitted\r\n"
        );
        report.fault = None;
        assert_eq!(reply(&report), "250 2.1.5 <\"a b\"@x> OK\r\n");
    }

    #[test]
    fn names_that_are_long_leave_the_id_and_the_verdict() {
        let long = Address {
            local: "ü".repeat(150),
            domain: Some("d".repeat(250)),
        };
        let line = wire(&Reply::to_data(
            &long,
            "k3JxAAAAAAAAAAAAAAAAAA:T1000",
            &saved(&"m".repeat(2000), Some(u32::MAX)),
            false,
        ));
        assert!(line.len() <= MAX_LINE, "{}", line.len());
        assert!(
            line.contains("...> k3JxAAAAAAAAAAAAAAAAAA:T1000 mailbox=\"mmm"),
            "{line}"
        );
        assert!(line.ends_with("...\" uid=4294967295 Saved\r\n"), "{line}");
    }

    #[test]
    fn lists() {
        let reply = Reply::list(250, "mx", ["A".to_string(), "B".to_string()]);
        assert_eq!(wire(&reply), "250-mx\r\n250-A\r\n250 B\r\n");
    }

    proptest! {
        #[test]
        fn a_reply_is_one_printable_line(text in any::<String>(), local in any::<String>(), mailbox in "\\PC{0,200}|(?s).{0,600}") {
            let address = Address { local, domain: Some(text.clone()) };
            for reply in [Reply::new(550, "5.1.1", text.clone()), Reply::to_data(&address, "id", &saved(&mailbox, None), true), Reply::accepted(&address)] {
                let line = wire(&reply);
                prop_assert!(line.len() <= MAX_LINE);
                let body = line.strip_suffix("\r\n").unwrap();
                prop_assert!(body.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line:?}");
            }
        }
    }
}
