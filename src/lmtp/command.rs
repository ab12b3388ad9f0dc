//! One line of the client into one [`Command`], or the reply that refuses it (RFC 2033, 5321, 3030, 1870, 6531).
//!
//! Verbs, paths and numbers are read here, strictly; [`parameters`](super::parameters) reads what stands behind them.

use std::borrow::Cow;

use super::codec::Frame;
use super::parameters::{OfMail, OfRcpt, attributes, number, parameters_refused};
use super::reply::Reply;
use crate::message::{Address, ReversePath};

/// A verb has letters only, and no more of them.
const MAX_VERB: usize = 32;

/// What a client says, with its arguments parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The name that the client gives itself, as far as it is a domain or literal; else `unknown`.
    Lhlo {
        name: String,
    },
    Mail {
        sender: ReversePath,
        /// What stood there when `sender` is `<>` instead of it.
        broken: Option<String>,
        parameters: OfMail,
    },
    Rcpt {
        address: Address,
        parameters: OfRcpt,
    },
    Data,
    Bdat {
        octets: u64,
        marker: Marker,
    },
    Rset,
    Noop,
    Vrfy,
    Quit,
    StartTls,
    /// Whom the client speaks for: names in capitals, values decoded.
    Xclient(Vec<(String, String)>),
    /// Where the next message comes from.
    Xforward(Vec<(String, String)>),
}

/// `lmtp_client_workarounds`: what clients may write in spite of RFC 5321.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Workarounds {
    /// `FROM: <path>`
    pub whitespace_before_path: bool,
    /// `FROM:mailbox`
    pub mailbox_for_path: bool,
}

/// What stands behind the size of a BDAT. Its octets follow in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    More,
    Last,
    /// Neither nothing nor LAST: the chunk must be read, and refused.
    Unknown,
}

/// A line that is no command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// So that the session can say first that the command was out of place.
    pub verb: Verb,
    pub reply: Reply,
    /// What follows can be anything: the size of a chunk could not be held.
    pub framing_is_lost: bool,
}

/// What a refused line began with, as far as its order in the session counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Mail,
    Rcpt,
    Other,
}

type Parsed = Result<Command, Reply>;

/// Reads what the codec cut off.
pub fn parse(frame: Frame<'_>, workarounds: Workarounds) -> Result<Command, Refusal> {
    let refuse = |verb: Verb, reply: Reply| Refusal {
        verb,
        reply,
        framing_is_lost: false,
    };
    let Frame::Line(line) = frame else {
        return Err(refuse(
            Verb::Other,
            Reply::new(500, "5.5.2", "Line too long"),
        ));
    };
    let (verb, argument) = split(line).map_err(|reply| refuse(Verb::Other, reply))?;
    match verb.as_str() {
        "LHLO" => lhlo(argument).map_err(|reply| refuse(Verb::Other, reply)),
        "MAIL" => mail(argument, workarounds).map_err(|reply| refuse(Verb::Mail, reply)),
        "RCPT" => rcpt(argument, workarounds).map_err(|reply| refuse(Verb::Rcpt, reply)),
        "BDAT" => bdat(argument),
        _ => simple(&verb, argument).map_err(|reply| refuse(Verb::Other, reply)),
    }
}

/// Verb in capitals and argument: exactly one space between them, none behind.
fn split(line: &[u8]) -> Result<(String, &str), Reply> {
    let bad = || Reply::new(500, "5.5.2", "Not a command line");
    let line = std::str::from_utf8(line)
        .map_err(|_| bad())?
        .trim_end_matches([' ', '\t']);
    if line.chars().any(char::is_control) {
        return Err(bad());
    }
    let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
    if verb.is_empty() && argument.is_empty() {
        return Err(unknown());
    }
    let is_verb =
        (1..=MAX_VERB).contains(&verb.len()) && verb.bytes().all(|b| b.is_ascii_alphabetic());
    match is_verb && !argument.starts_with(' ') {
        true => Ok((verb.to_ascii_uppercase(), argument)),
        false => Err(bad()),
    }
}

fn unknown() -> Reply {
    Reply::new(500, "5.5.1", "Unknown command")
}

fn simple(verb: &str, argument: &str) -> Parsed {
    let alone = |command: Command| match argument.is_empty() {
        true => Ok(command),
        false => Err(parameters_refused("This command takes no parameters")),
    };
    match verb {
        "DATA" => alone(Command::Data),
        "RSET" => alone(Command::Rset),
        "QUIT" => alone(Command::Quit),
        "NOOP" if argument.is_empty() || is_string(argument) => Ok(Command::Noop),
        "NOOP" => Err(parameters_refused("NOOP takes one string")),
        "VRFY" if argument.is_empty() => Err(parameters_refused("VRFY takes a string")),
        "VRFY" => Ok(Command::Vrfy),
        "STARTTLS" => alone(Command::StartTls),
        "XCLIENT" => attributes(argument).map(Command::Xclient),
        "XFORWARD" => attributes(argument).map(Command::Xforward),
        "AUTH" => Err(Reply::new(502, "5.5.1", "Authentication is not available")),
        _ => Err(unknown()),
    }
}

/// RFC 5321 String: an atom or a quoted string.
fn is_string(text: &str) -> bool {
    let Some(quoted) = text.strip_prefix('"') else {
        return !text.contains([
            ' ', '"', '\\', '(', ')', '<', '>', '@', ',', ';', ':', '[', ']',
        ]);
    };
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return chars.next().is_none(),
            '\\' if chars.next().is_none() => return false,
            _ => {}
        }
    }
    false
}

/// Anything is a greeting; what goes into `Received` is only what can be a name.
fn lhlo(argument: &str) -> Parsed {
    if argument.is_empty() {
        return Err(Reply::bare(501, "LHLO needs a host name"));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    let name: String = argument
        .chars()
        .take_while(|c| is_name(*c))
        .take(255)
        .collect();
    Ok(Command::Lhlo {
        name: if name.is_empty() {
            "unknown".into()
        } else {
            name
        },
    })
}

fn mail(argument: &str, workarounds: Workarounds) -> Parsed {
    let path = path(argument, "FROM:", workarounds)?;
    let bad = |error| Reply::new(501, "5.1.7", format!("Invalid FROM: {error}"));
    let taken = ReversePath::parse_path(&path, true).map_err(bad)?;
    let parameters = OfMail::parse(taken.rest)?;
    // Only the parameters tell how the path was to be read.
    let taken = ReversePath::parse_path(&path, parameters.smtputf8).map_err(bad)?;
    Ok(Command::Mail {
        sender: taken.path,
        broken: taken.broken,
        parameters,
    })
}

fn rcpt(argument: &str, workarounds: Workarounds) -> Parsed {
    let path = path(argument, "TO:", workarounds)?;
    // Whether the transaction has SMTPUTF8 is for the session to say.
    let (address, rest) = Address::parse_path(&path, true)
        .map_err(|error| Reply::new(501, "5.1.3", format!("Invalid TO: {error}")))?;
    let parameters = OfRcpt::parse(rest)?;
    Ok(Command::Rcpt {
        address,
        parameters,
    })
}

/// What follows `FROM:` or `TO:`, with its angle brackets.
fn path<'a>(
    argument: &'a str,
    keyword: &str,
    workarounds: Workarounds,
) -> Result<Cow<'a, [u8]>, Reply> {
    let path = match argument.split_at_checked(keyword.len()) {
        Some((word, path)) if word.eq_ignore_ascii_case(keyword) => path,
        _ => return Err(parameters_refused(&format!("{keyword}<path> expected"))),
    };
    let path = match workarounds.whitespace_before_path {
        true => path.trim_start_matches([' ', '\t']),
        false => path,
    };
    if !workarounds.mailbox_for_path || path.is_empty() || path.starts_with(['<', ' ']) {
        return Ok(Cow::Borrowed(path.as_bytes()));
    }
    let (mailbox, rest) = path.split_at(path.find(' ').unwrap_or(path.len()));
    Ok(Cow::Owned(format!("<{mailbox}>{rest}").into_bytes()))
}

fn bdat(argument: &str) -> Result<Command, Refusal> {
    let (size, marker) = argument.split_once(' ').unwrap_or((argument, ""));
    let marker = match marker {
        "" => Marker::More,
        last if last.eq_ignore_ascii_case("LAST") => Marker::Last,
        _ => Marker::Unknown,
    };
    number(size)
        .map(|octets| Command::Bdat { octets, marker })
        .ok_or_else(|| Refusal {
            verb: Verb::Other,
            reply: parameters_refused("BDAT needs the size of the chunk"),
            framing_is_lost: !size.is_empty() && size.bytes().all(|b| b.is_ascii_digit()),
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(text: &str) -> Result<Command, u16> {
        line_with(text, Workarounds::default())
    }

    fn line_with(text: &str, workarounds: Workarounds) -> Result<Command, u16> {
        let parsed = parse(Frame::Line(text.as_bytes()), workarounds);
        parsed.map_err(|refusal| refusal.reply.code())
    }

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    fn sender(text: &str) -> Command {
        let sender = ReversePath::parse_lenient(text);
        Command::Mail {
            sender,
            broken: None,
            parameters: OfMail::default(),
        }
    }

    fn broken(text: &str) -> Command {
        Command::Mail {
            sender: ReversePath::Null,
            broken: Some(text.into()),
            parameters: OfMail::default(),
        }
    }

    fn to(text: &str) -> Command {
        Command::Rcpt {
            address: address(text),
            parameters: OfRcpt::default(),
        }
    }

    fn lhlo(name: &str) -> Command {
        Command::Lhlo { name: name.into() }
    }

    fn bdat(octets: u64, marker: Marker) -> Command {
        Command::Bdat { octets, marker }
    }

    #[test]
    fn lines() {
        for (text, want) in [
            ("LHLO mx.example.org", Ok(lhlo("mx.example.org"))),
            ("lhlo [192.0.2.1]", Ok(lhlo("[192.0.2.1]"))),
            ("LHLO a b", Ok(lhlo("a"))),
            ("LHLO foo_bar", Ok(lhlo("foo"))),
            ("LHLO (x)", Ok(lhlo("unknown"))),
            ("LHLO", Err(501)),
            ("EHLO x", Err(500)),
            ("HELO x", Err(500)),
            ("HELP", Err(500)),
            ("", Err(500)),
            (" NOOP", Err(500)),
            ("NO-OP", Err(500)),
            ("NOOP\0", Err(500)),
            ("NOOP\nQUIT", Err(500)),
            ("NOOP\rQUIT", Err(500)),
            ("NOOP\r", Err(500)),
            (&"N".repeat(33), Err(500)),
            ("NOOP", Ok(Command::Noop)),
            ("noop ", Ok(Command::Noop)),
            ("NOOP \t", Ok(Command::Noop)),
            ("NOOP x", Ok(Command::Noop)),
            ("NOOP \"a b\"", Ok(Command::Noop)),
            ("NOOP a b", Err(501)),
            ("NOOP \"a", Err(501)),
            ("DATA", Ok(Command::Data)),
            ("DATA x", Err(501)),
            ("RSET", Ok(Command::Rset)),
            ("RSET x", Err(501)),
            ("QUIT", Ok(Command::Quit)),
            ("QUIT x", Err(501)),
            ("VRFY alice", Ok(Command::Vrfy)),
            ("VRFY", Err(501)),
            ("STARTTLS", Ok(Command::StartTls)),
            ("STARTTLS x", Err(501)),
            ("AUTH PLAIN", Err(502)),
            ("XCLIENT", Err(501)),
            ("XFORWARD", Err(501)),
            ("MAIL FROM:<bob@x>", Ok(sender("bob@x"))),
            ("mail from:<bob@x>", Ok(sender("bob@x"))),
            ("MAIL FROM:<>", Ok(sender(""))),
            ("MAIL FROM:<@r:bob@x>", Ok(sender("bob@x"))),
            ("MAIL FROM:<foo@>", Ok(broken("foo@"))),
            ("MAIL FROM:<jörg@x>", Ok(broken("jörg@x"))),
            ("MAIL FROM:<bob@x> BODY=8BITMIME", Ok(sender("bob@x"))),
            ("MAIL FROM:<bob@x> body=7bit", Ok(sender("bob@x"))),
            ("MAIL FROM: <bob@x>", Err(501)),
            ("MAIL  FROM:<bob@x>", Err(500)),
            ("MAIL TO:<bob@x>", Err(501)),
            ("MAIL", Err(501)),
            ("MAIL FROM:", Err(501)),
            ("MAIL FROM:bob@x", Err(501)),
            ("MAIL FROM:<a b>", Err(501)),
            ("MAIL FROM:<bob@x>SIZE=1", Err(501)),
            ("MAIL FROM:<bob@x> SIZE=", Err(501)),
            ("MAIL FROM:<bob@x> SIZE", Err(501)),
            ("MAIL FROM:<bob@x> SIZE=-1", Err(501)),
            ("MAIL FROM:<bob@x> SIZE=18446744073709551616", Err(501)),
            ("MAIL FROM:<bob@x> SIZE=1000000000000000000000000", Err(501)),
            ("MAIL FROM:<bob@x> SIZE=1 SIZE=2", Err(501)),
            ("MAIL FROM:<bob@x> BODY=BINARYMIME", Err(555)),
            ("MAIL FROM:<bob@x> BODY=FOO", Err(501)),
            ("MAIL FROM:<bob@x> BODY", Err(501)),
            ("MAIL FROM:<bob@x> SMTPUTF8=1", Err(501)),
            ("MAIL FROM:<bob@x> RET=FULL", Err(555)),
            ("MAIL FROM:<bob@x> ENVID=x", Err(555)),
            ("MAIL FROM:<bob@x> AUTH=<>", Ok(sender("bob@x"))),
            ("MAIL FROM:<bob@x> AUTH=", Err(501)),
            ("MAIL FROM:<bob@x> AUTH=a+0A", Err(501)),
            ("MAIL FROM:<bob@x> FOO=a=b", Err(501)),
            ("MAIL FROM:<bob@x> FOO", Err(555)),
            ("MAIL FROM:<bob@x> =", Err(501)),
            ("RCPT TO:<alice>", Ok(to("alice"))),
            ("RCPT TO:<\"al ice\"@x>", Ok(to("\"al ice\"@x"))),
            ("RCPT TO:<jörg@x>", Ok(to("jörg@x"))),
            ("RCPT  TO:<alice>", Err(500)),
            ("RCPT TO:<>", Err(501)),
            ("RCPT TO:<\"\">", Err(501)),
            ("RCPT TO:<alice@>", Err(501)),
            ("RCPT TO:<a b@x>", Err(501)),
            ("RCPT TO:alice", Err(501)),
            ("RCPT TO:<alice> NOTIFY=NEVER", Err(555)),
            ("RCPT TO:<alice> ORCPT=rfc822;a NOTIFY=NEVER", Err(555)),
            ("RCPT TO:<alice> ORCPT=rfc822;", Err(501)),
            ("RCPT TO:<alice> ORCPT=rfc822", Err(501)),
            ("RCPT TO:<alice> ORCPT=rfc822;a+2", Err(501)),
            ("RCPT TO:<alice> ORCPT=rfc822;a+zz", Err(501)),
            ("BDAT 5", Ok(bdat(5, Marker::More))),
            ("BDAT 00005 LAST", Ok(bdat(5, Marker::Last))),
            ("bdat 0 last", Ok(bdat(0, Marker::Last))),
            ("BDAT 2 FOO", Ok(bdat(2, Marker::Unknown))),
            (
                "BDAT 18446744073709551615",
                Ok(bdat(u64::MAX, Marker::More)),
            ),
            ("BDAT 18446744073709551616", Err(501)),
            ("BDAT -1", Err(501)),
            ("BDAT x", Err(501)),
            ("BDAT", Err(501)),
        ] {
            assert_eq!(line(text), want, "{text:?}");
        }
    }

    #[test]
    fn who_is_vouched_for() {
        for (value, want) in [
            ("bob", Some("bob")),
            ("bob@x.test", Some("bob@x.test")),
            ("b+2Bx@y", Some("b+x@y")),
            ("<>", None),
        ] {
            let command = line(&format!(
                "MAIL FROM:<a@b> SIZE=5 AUTH={value} BODY=8BITMIME"
            ));
            let Ok(Command::Mail { parameters, .. }) = command else {
                panic!("{value}: {command:?}")
            };
            assert_eq!(parameters.authenticated.as_deref(), want, "{value}");
        }
    }

    #[test]
    fn parameters() {
        let Ok(Command::Mail {
            sender,
            broken,
            parameters,
        }) = line("MAIL FROM:<jörg@x> SMTPUTF8  SIZE=99 BODY=8BITMIME ")
        else {
            panic!("refused")
        };
        let OfMail { size, smtputf8, .. } = parameters;
        assert_eq!((size, smtputf8, broken), (Some(99), true, None));
        assert_eq!(sender.to_string(), "jörg@x");
        for (value, want) in [
            ("rfc822;Bob+2Bx@y.org", Some("Bob+x@y.org")),
            ("RFC822;bob@x", Some("bob@x")),
            ("rfc822;a+0D+0Ab", None),
            ("rfc822;a+C3+BCb", None),
            ("utf-8;bob@x", None),
        ] {
            let Ok(Command::Rcpt { parameters, .. }) = line(&format!("RCPT TO:<a> ORCPT={value}"))
            else {
                panic!("{value}")
            };
            assert_eq!(parameters.original.as_deref(), want, "{value}");
        }
    }

    #[test]
    fn workarounds_for_clients() {
        let space = Workarounds {
            whitespace_before_path: true,
            mailbox_for_path: false,
        };
        let bare = Workarounds {
            whitespace_before_path: false,
            mailbox_for_path: true,
        };
        let both = Workarounds {
            whitespace_before_path: true,
            mailbox_for_path: true,
        };
        for (workarounds, text, want) in [
            (space, "MAIL FROM: <bob@x>", Ok(sender("bob@x"))),
            (space, "RCPT TO:\t <bob@x>", Err(500)),
            (space, "RCPT TO:  <bob@x>", Ok(to("bob@x"))),
            (space, "MAIL FROM:bob@x", Err(501)),
            (bare, "MAIL FROM:bob@x", Ok(sender("bob@x"))),
            (bare, "MAIL FROM:bob@x BODY=8BITMIME", Ok(sender("bob@x"))),
            (bare, "RCPT TO:bob", Ok(to("bob"))),
            (bare, "RCPT TO: bob", Err(501)),
            (bare, "RCPT TO:bob>", Err(501)),
            (bare, "RCPT TO:", Err(501)),
            (bare, "MAIL FROM:<bob@x>", Ok(sender("bob@x"))),
            (both, "RCPT TO: bob", Ok(to("bob"))),
            (both, "MAIL FROM: <>", Ok(sender(""))),
        ] {
            assert_eq!(
                line_with(text, workarounds),
                want,
                "{text:?} {workarounds:?}"
            );
        }
    }

    #[test]
    fn a_size_that_does_not_fit_loses_the_framing() {
        for (text, lost) in [
            ("BDAT 99999999999999999999999", true),
            ("BDAT -1", false),
            ("BDAT", false),
        ] {
            assert_eq!(
                parse(Frame::Line(text.as_bytes()), Workarounds::default())
                    .unwrap_err()
                    .framing_is_lost,
                lost,
                "{text}"
            );
        }
        assert_eq!(
            parse(Frame::TooLong, Workarounds::default())
                .unwrap_err()
                .reply
                .code(),
            500
        );
        assert_eq!(
            parse(Frame::Line(b"NOOP \xff"), Workarounds::default())
                .unwrap_err()
                .reply
                .code(),
            500
        );
    }

    proptest! {
        #[test]
        fn no_line_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(Frame::Line(&bytes), Workarounds::default());
        }

        #[test]
        fn no_parameter_panics(path in "(MAIL FROM|RCPT TO):<[a-z@\"]{0,5}>( [A-Za-z0-9]{0,8}=?\\PC{0,12}| ORCPT=rfc822;[+A-F0-9a@]{0,9}){0,3}") {
            let _ = parse(Frame::Line(path.as_bytes()), Workarounds::default());
        }
    }
}
