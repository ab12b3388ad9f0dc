//! The fields that a delivery over LMTP puts on top of a message (RFC 5321 section 4.4, Dovecot's layout).
//!
//! They are built from parsed addresses and cleaned words only: nothing that a client sends can begin a line of its own.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::message::{Address, Message};

/// Bytes of a host name or id within a field.
const MAX_WORD: usize = 255;

/// Return-Path, Delivered-To and Received, in this order; lines end in LF. `recipient` is the address that the fields name,
/// none where one copy serves several; Received only where it `adds_received`. A message without `trace.received` did not come over LMTP: it gets nothing, the MTA
/// has written these fields.
pub fn added_headers(
    message: &Message,
    recipient: Option<&Address>,
    adds_received: bool,
) -> Vec<u8> {
    let Some(received) = &message.trace.received else {
        return Vec::new();
    };
    let mut out = format!("Return-Path: <{}>\n", message.envelope.sender);
    // Writing to a String cannot fail.
    if let Some(address) = recipient {
        let _ = writeln!(out, "Delivered-To: {address}");
    }
    if !adds_received {
        return out.into_bytes();
    }
    let _ = write!(out, "Received: from {}", word(&received.helo));
    if let Some(peer) = &received.peer {
        let _ = write!(out, " ([{}])", word(peer));
    }
    let mut protocol = "LMTP";
    if let Some(tls) = &received.tls {
        let _ = write!(out, "\n\t(using {})", plain(tls));
        protocol = "LMTPS";
    }
    let _ = write!(
        out,
        "\n\tby {} with {protocol}\n\tid {}",
        word(&received.hostname),
        word(&message.trace.session)
    );
    let _ = write!(out, "\n\t(envelope-from <{}>)", message.envelope.sender);
    if let Some(address) = recipient {
        let _ = write!(out, "\n\tfor <{address}>");
    }
    let _ = writeln!(out, "; {}", plain(&received.date));
    out.into_bytes()
}

/// What can stand in a field without being read as something else; `unknown` where nothing is left.
fn word(text: &str) -> Cow<'_, str> {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || ".-_:[]+/".contains(*c);
    if !text.is_empty() && text.len() <= MAX_WORD && text.chars().all(|c| is_plain(&c)) {
        return text.into();
    }
    let word: String = text.chars().filter(is_plain).take(MAX_WORD).collect();
    match word.is_empty() {
        true => "unknown".into(),
        false => word.into(),
    }
}

/// A date, or names with spaces between them.
fn plain(text: &str) -> String {
    text.chars()
        .filter(|c| matches!(c, ' '..='~'))
        .take(64)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::body::{BodyWriter, Spool};
    use crate::message::{Envelope, Received, ReversePath, Trace};

    fn message(sender: ReversePath, received: Option<Received>) -> Message {
        let spool = Spool::of(vec![std::env::temp_dir()]);
        let body = BodyWriter::new(&spool).finish().unwrap();
        let envelope = Envelope {
            sender,
            queue_id: None,
        };
        Message {
            envelope,
            body,
            trace: Trace {
                session: "k3Jx/+:T2".into(),
                received,
            },
        }
    }

    fn received(peer: Option<&str>) -> Option<Received> {
        Some(Received {
            helo: "me.example".into(),
            peer: peer.map(str::to_string),
            tls: None,
            hostname: "mx.example.org".into(),
            date: "Sun, 22 Nov 2026 07:15:52 +0000".into(),
        })
    }

    fn added(message: &Message, recipient: Option<&str>) -> String {
        let address = recipient.map(|text| Address::parse(text).unwrap());
        String::from_utf8(added_headers(message, address.as_ref(), true)).unwrap()
    }

    #[test]
    fn one_recipient() {
        let message = message(
            ReversePath::parse_lenient("s@x.org"),
            received(Some("192.0.2.1")),
        );
        let want = "Return-Path: <s@x.org>\n\
                    Delivered-To: \"a b\"+Work@y\n\
                    Received: from me.example ([192.0.2.1])\n\
                    \tby mx.example.org with LMTP\n\
                    \tid k3Jx/+:T2\n\
                    \t(envelope-from <s@x.org>)\n\
                    \tfor <\"a b\"+Work@y>; Sun, 22 Nov 2026 07:15:52 +0000\n";
        let want = want.replace("\"a b\"+Work", "\"a b+Work\"");
        assert_eq!(added(&message, Some("\"a b+Work\"@y")), want);
    }

    #[test]
    fn several_recipients_on_a_unix_socket() {
        let message = message(ReversePath::Null, received(None));
        let want = "Return-Path: <>\n\
                    Received: from me.example\n\
                    \tby mx.example.org with LMTP\n\
                    \tid k3Jx/+:T2\n\
                    \t(envelope-from <>); Sun, 22 Nov 2026 07:15:52 +0000\n";
        assert_eq!(added(&message, None), want);
    }

    #[test]
    fn nothing_without_lmtp() {
        let message = message(ReversePath::parse_lenient("s@x.org"), None);
        assert_eq!(added(&message, Some("a@y")), "");
    }

    proptest! {
        /// The block has exactly its own lines, none of 998 bytes or more, whatever the parts hold.
        #[test]
        fn no_part_begins_a_line(
            text in any::<String>(), other in "(?s).{0,400}",
            local in any::<String>(), domain in any::<String>(),
        ) {
            let part = Received { helo: text.clone(), peer: Some(other.clone()), tls: Some(text.clone()), hostname: other.clone(), date: text.clone() };
            let address = Address { local, domain: Some(domain) };
            let mut message = message(ReversePath::Address(address.clone()), Some(part));
            message.trace.session = text;
            let block = String::from_utf8(added_headers(&message, Some(&address), true)).unwrap();
            prop_assert!(!block.contains(['\r', '\0']));
            let starts = ["Return-Path: <", "Delivered-To: ", "Received: from ", "\t(using ", "\tby ", "\tid ", "\t(envelope-from <", "\tfor <"];
            let lines: Vec<&str> = block.strip_suffix('\n').unwrap().split('\n').collect();
            prop_assert_eq!(lines.len(), starts.len());
            for (line, start) in lines.iter().zip(starts) {
                prop_assert!(line.starts_with(start), "{}", line);
            }
        }

        #[test]
        fn parsed_addresses_keep_lines_short(local in "[a\"\\\\ ]{320}", domain in "[a-z]{255}") {
            let address = Address::parse(&Address { local, domain: Some(domain) }.to_string()).unwrap();
            let message = message(ReversePath::Address(address.clone()), received(None));
            let block = added_headers(&message, Some(&address), true);
            prop_assert!(block.split(|b| *b == b'\n').all(|line| line.len() <= 998));
        }
    }
}
