//! One line of the client into one [`Command`], or the reply that refuses it (RFC 2033, 5321, 3030, 1870, 6531).
//!
//! Verbs, paths and numbers are read here, strictly; `smtp-proto` reads the values of the ESMTP parameters, after their
//! form was checked: it wraps at large sizes and passes over what it does not know.

use std::borrow::Cow;

use smtp_proto::request::parser::Rfc5321Parser;
use smtp_proto::{MAIL_BODY_BINARYMIME, MAIL_SMTPUTF8};

use super::codec::Frame;
use super::reply::Reply;
use crate::message::{Address, ReversePath};

/// A verb has letters only, and no more of them.
const MAX_VERB: usize = 32;

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
        /// SIZE: bytes, as the client estimates them.
        size: Option<u64>,
        smtputf8: bool,
        /// AUTH: who sends, as the client knows (RFC 4954 section 5).
        authenticated: Option<String>,
    },
    Rcpt {
        address: Address,
        /// ORCPT of type rfc822, decoded.
        original: Option<String>,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Mail,
    Rcpt,
    Other,
}

type Parsed = Result<Command, Reply>;

/// Reads what the codec cut off.
pub fn parse(frame: Frame<'_>) -> Result<Command, Refusal> {
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
        "MAIL" => mail(argument).map_err(|reply| refuse(Verb::Mail, reply)),
        "RCPT" => rcpt(argument).map_err(|reply| refuse(Verb::Rcpt, reply)),
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

fn parameters_refused(why: &str) -> Reply {
    Reply::new(501, "5.5.4", why)
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
        "STARTTLS" => Err(Reply::new(502, "5.5.1", "TLS is not available")),
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

fn mail(argument: &str) -> Parsed {
    let path = path(argument, "FROM:")?;
    let bad = |error| Reply::new(501, "5.1.7", format!("Invalid FROM: {error}"));
    let taken = ReversePath::parse_path(path, true).map_err(bad)?;
    let words = words(taken.rest)?;
    let authenticated = auth_parameter(&words)?;
    let others: Vec<_> = words
        .into_iter()
        .filter(|(keyword, _)| keyword != "AUTH")
        .collect();
    let (size, smtputf8) = mail_parameters(&others)?;
    // Only the parameters tell how the path was to be read.
    let taken = ReversePath::parse_path(path, smtputf8).map_err(bad)?;
    Ok(Command::Mail {
        sender: taken.path,
        broken: taken.broken,
        size,
        smtputf8,
        authenticated,
    })
}

/// `AUTH=` with an address or name in xtext; `<>`: nobody is vouched for.
fn auth_parameter(words: &[(String, &str)]) -> Result<Option<String>, Reply> {
    let Some((_, xtext)) = words.iter().find(|(keyword, _)| keyword == "AUTH") else {
        return Ok(None);
    };
    let malformed = || parameters_refused("AUTH is xtext");
    if xtext.is_empty() || !is_xtext(xtext) {
        return Err(malformed());
    }
    let mut pieces = xtext.split('+');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(&piece[..2], 16).map_err(|_| malformed())?);
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    let name = String::from_utf8(bytes).map_err(|_| malformed())?;
    match name.as_str() {
        "<>" => Ok(None),
        name if name.contains(char::is_control) => Err(malformed()),
        _ => Ok(Some(name)),
    }
}

fn rcpt(argument: &str) -> Parsed {
    let path = path(argument, "TO:")?;
    // Whether the transaction has SMTPUTF8 is for the session to say.
    let (address, rest) = Address::parse_path(path, true)
        .map_err(|error| Reply::new(501, "5.1.3", format!("Invalid TO: {error}")))?;
    let original = rcpt_parameters(&words(rest)?)?;
    Ok(Command::Rcpt { address, original })
}

/// What follows `FROM:` or `TO:`.
fn path<'a>(argument: &'a str, keyword: &str) -> Result<&'a [u8], Reply> {
    match argument.split_at_checked(keyword.len()) {
        Some((word, path)) if word.eq_ignore_ascii_case(keyword) => Ok(path.as_bytes()),
        _ => Err(parameters_refused(&format!("{keyword}<path> expected"))),
    }
}

/// The parameters behind a path: each `KEYWORD` or `KEYWORD=value` (RFC 5321 section 4.1.2), none twice.
fn words(rest: &[u8]) -> Result<Vec<(String, &str)>, Reply> {
    // The line was UTF-8, and a path ends at an ASCII character.
    let rest =
        std::str::from_utf8(rest).map_err(|_| parameters_refused("Parameters are not UTF-8"))?;
    if !rest.is_empty() && !rest.starts_with(' ') {
        return Err(parameters_refused("A space must follow the path"));
    }
    let mut words: Vec<(String, &str)> = Vec::new();
    for word in rest.split(' ').filter(|word| !word.is_empty()) {
        let (keyword, value) = word.split_once('=').unwrap_or((word, ""));
        let is_keyword = keyword.starts_with(|c: char| c.is_ascii_alphanumeric())
            && keyword
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-');
        if !is_keyword || value.contains('=') || (value.is_empty() && word.contains('=')) {
            return Err(parameters_refused("Malformed parameter"));
        }
        let keyword = keyword.to_ascii_uppercase();
        if words.iter().any(|(known, _)| *known == keyword) {
            return Err(parameters_refused("A parameter is given twice"));
        }
        words.push((keyword, value));
    }
    Ok(words)
}

/// SIZE in bytes, and whether SMTPUTF8 is given.
fn mail_parameters(words: &[(String, &str)]) -> Result<(Option<u64>, bool), Reply> {
    let mut size = None;
    for (keyword, value) in words {
        match keyword.as_str() {
            "SIZE" => {
                size = Some(
                    number(value)
                        .ok_or_else(|| parameters_refused("SIZE is not a number of bytes"))?,
                )
            }
            "BODY" if !value.is_empty() => {}
            "SMTPUTF8" if value.is_empty() => {}
            "BODY" | "SMTPUTF8" => return Err(parameters_refused("Malformed parameter")),
            _ => return Err(unsupported()),
        }
    }
    let without_size: Vec<_> = words
        .iter()
        .filter(|(keyword, _)| keyword != "SIZE")
        .collect();
    let line = parameter_line(without_size.into_iter());
    let mut bytes = line.as_bytes().iter();
    let mut parser = Rfc5321Parser::new(&mut bytes);
    parser.stop_char = b' ';
    let mail = parser
        .mail_from_parameters(Cow::Borrowed(""))
        .map_err(|_| Reply::new(501, "5.5.4", "BODY is 7BIT or 8BITMIME"))?;
    match mail.flags & MAIL_BODY_BINARYMIME {
        0 => Ok((size, mail.flags & MAIL_SMTPUTF8 != 0)),
        _ => Err(Reply::new(555, "5.5.4", "BODY=BINARYMIME is not supported")),
    }
}

/// ORCPT, where it is an e-mail address that can be shown (RFC 3461 section 4.2).
fn rcpt_parameters(words: &[(String, &str)]) -> Result<Option<String>, Reply> {
    let Some((keyword, value)) = words.first() else {
        return Ok(None);
    };
    if keyword != "ORCPT" || words.len() > 1 {
        return Err(unsupported());
    }
    let malformed = || parameters_refused("ORCPT is type;xtext");
    let (kind, xtext) = value.split_once(';').ok_or_else(malformed)?;
    if !kind.eq_ignore_ascii_case("rfc822") {
        return Ok(None);
    }
    if xtext.is_empty() || !is_xtext(xtext) {
        return Err(malformed());
    }
    let line = parameter_line(words.iter());
    let mut bytes = line.as_bytes().iter();
    let mut parser = Rfc5321Parser::new(&mut bytes);
    parser.stop_char = b' ';
    let rcpt = parser
        .rcpt_to_parameters(Cow::Borrowed(""))
        .map_err(|_| malformed())?;
    let is_shown = |c: char| matches!(c, ' '..='~');
    Ok(rcpt
        .orcpt
        .filter(|original| original.chars().all(is_shown))
        .map(Cow::into_owned))
}

fn parameter_line<'a>(words: impl Iterator<Item = &'a (String, &'a str)>) -> String {
    let mut line = String::new();
    for (keyword, value) in words {
        line.push_str(keyword);
        if !value.is_empty() {
            line.push('=');
            line.push_str(value);
        }
        line.push(' ');
    }
    line.push_str("\r\n");
    line
}

/// `+` stands before two capital hexadecimal digits and nowhere else.
fn is_xtext(text: &str) -> bool {
    let is_hex = |b: &u8| matches!(b, b'0'..=b'9' | b'A'..=b'F');
    let mut pieces = text.as_bytes().split(|b| *b == b'+');
    let plain = pieces.next().is_none_or(|piece| piece.is_ascii());
    plain
        && pieces.all(|piece| piece.len() >= 2 && piece.is_ascii() && piece[..2].iter().all(is_hex))
}

fn unsupported() -> Reply {
    Reply::new(555, "5.5.4", "Unsupported parameter")
}

/// A number of at most 20 digits that 64 bits hold.
fn number(digits: &str) -> Option<u64> {
    let is_number = (1..=20).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
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
        parse(Frame::Line(text.as_bytes())).map_err(|refusal| refusal.reply.code())
    }

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    fn sender(text: &str) -> Command {
        let sender = ReversePath::parse_lenient(text);
        Command::Mail {
            sender,
            broken: None,
            size: None,
            smtputf8: false,
            authenticated: None,
        }
    }

    fn broken(text: &str) -> Command {
        Command::Mail {
            sender: ReversePath::Null,
            broken: Some(text.into()),
            size: None,
            smtputf8: false,
            authenticated: None,
        }
    }

    fn to(text: &str) -> Command {
        Command::Rcpt {
            address: address(text),
            original: None,
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
            ("STARTTLS", Err(502)),
            ("AUTH PLAIN", Err(502)),
            ("XCLIENT NAME=x", Err(500)),
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
            let Ok(Command::Mail { authenticated, .. }) = command else {
                panic!("{value}: {command:?}")
            };
            assert_eq!(authenticated.as_deref(), want, "{value}");
        }
    }

    #[test]
    fn parameters() {
        let Ok(Command::Mail {
            size,
            smtputf8,
            sender,
            broken,
            ..
        }) = line("MAIL FROM:<jörg@x> SMTPUTF8  SIZE=99 BODY=8BITMIME ")
        else {
            panic!("refused")
        };
        assert_eq!((size, smtputf8, broken), (Some(99), true, None));
        assert_eq!(sender.to_string(), "jörg@x");
        for (value, want) in [
            ("rfc822;Bob+2Bx@y.org", Some("Bob+x@y.org")),
            ("RFC822;bob@x", Some("bob@x")),
            ("rfc822;a+0D+0Ab", None),
            ("rfc822;a+C3+BCb", None),
            ("utf-8;bob@x", None),
        ] {
            let Ok(Command::Rcpt { original, .. }) = line(&format!("RCPT TO:<a> ORCPT={value}"))
            else {
                panic!("{value}")
            };
            assert_eq!(original.as_deref(), want, "{value}");
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
                parse(Frame::Line(text.as_bytes()))
                    .unwrap_err()
                    .framing_is_lost,
                lost,
                "{text}"
            );
        }
        assert_eq!(parse(Frame::TooLong).unwrap_err().reply.code(), 500);
        assert_eq!(
            parse(Frame::Line(b"NOOP \xff")).unwrap_err().reply.code(),
            500
        );
    }

    proptest! {
        #[test]
        fn no_line_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(Frame::Line(&bytes));
        }

        #[test]
        fn no_parameter_panics(path in "(MAIL FROM|RCPT TO):<[a-z@\"]{0,5}>( [A-Za-z0-9]{0,8}=?\\PC{0,12}| ORCPT=rfc822;[+A-F0-9a@]{0,9}){0,3}") {
            let _ = parse(Frame::Line(path.as_bytes()));
        }
    }
}
