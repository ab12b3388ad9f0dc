//! What stands behind a path or a verb: ESMTP parameters (RFC 5321 section 4.1.2) and attributes in xtext (RFC 3461 section 4).
//!
//! `smtp-proto` reads their values after their form was checked: it wraps at large sizes and passes over what it does not know.

use std::borrow::Cow;

use smtp_proto::request::parser::Rfc5321Parser;
use smtp_proto::{MAIL_BODY_BINARYMIME, MAIL_SMTPUTF8};

use super::reply::Reply;
use crate::message::Errand;

/// What MAIL says beside its path.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct OfMail {
    /// SIZE: bytes, as the client estimates them.
    pub size: Option<u64>,
    pub smtputf8: bool,
    /// AUTH: who sends, as the client knows (RFC 4954 section 5).
    pub authenticated: Option<String>,
}

/// A parameter of RCPT: an [`Errand`], as JSON in xtext.
pub const ERRAND: &str = "XPOSTROOM";

/// What RCPT says beside its path.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct OfRcpt {
    /// ORCPT of type rfc822, decoded.
    pub original: Option<String>,
    /// IGNOREQUOTA: the mail is to be stored however full the mailbox is.
    pub ignore_quota: bool,
    /// XPOSTROOM: what another server of ours asks for.
    pub errand: Option<Errand>,
    /// XRCPTFORWARD: what a proxy in front knows of the recipient, fields between tabs.
    pub forward: Option<String>,
}

impl OfMail {
    /// `rest`: what stands behind the path. Err: 501 for a wrong value, 555 for an unknown parameter (RFC 5321, 4.1.1.11).
    pub fn parse(rest: &[u8]) -> Result<OfMail, Reply> {
        let words = words(rest)?;
        let mut found = OfMail::default();
        let mut others = Vec::new();
        for (keyword, value) in &words {
            match keyword.as_str() {
                "SIZE" => {
                    let size = number(value);
                    let bad = || parameters_refused("SIZE is not a number of bytes");
                    found.size = Some(size.ok_or_else(bad)?);
                }
                "AUTH" => found.authenticated = auth(value)?,
                "BODY" if !value.is_empty() => others.push((keyword.as_str(), *value)),
                "SMTPUTF8" if value.is_empty() => others.push((keyword.as_str(), *value)),
                "BODY" | "SMTPUTF8" => return Err(parameters_refused("Malformed parameter")),
                _ => return Err(unsupported()),
            }
        }
        let line = parameter_line(&others);
        let mut bytes = line.as_bytes().iter();
        let mut parser = Rfc5321Parser::new(&mut bytes);
        parser.stop_char = b' ';
        let mail = parser
            .mail_from_parameters(Cow::Borrowed(""))
            .map_err(|_| parameters_refused("BODY is 7BIT or 8BITMIME"))?;
        if mail.flags & MAIL_BODY_BINARYMIME != 0 {
            return Err(Reply::new(555, "5.5.4", "BODY=BINARYMIME is not supported"));
        }
        found.smtputf8 = mail.flags & MAIL_SMTPUTF8 != 0;
        Ok(found)
    }
}

impl OfRcpt {
    /// [`OfMail::parse`] for those of RCPT.
    pub fn parse(rest: &[u8]) -> Result<OfRcpt, Reply> {
        let mut found = OfRcpt::default();
        for (keyword, value) in words(rest)? {
            match keyword.as_str() {
                "ORCPT" => found.original = original(value)?,
                "IGNOREQUOTA" if value.is_empty() => found.ignore_quota = true,
                ERRAND => {
                    let errand = decoded(value).and_then(|it| serde_json::from_str(&it).ok());
                    let bad = || parameters_refused("XPOSTROOM is an errand in xtext");
                    found.errand = Some(errand.ok_or_else(bad)?);
                }
                "XRCPTFORWARD" => {
                    let fields = decoded(value).filter(|it| !it.contains(['\r', '\n', '\0']));
                    let bad = || parameters_refused("XRCPTFORWARD is xtext");
                    found.forward = Some(fields.ok_or_else(bad)?);
                }
                _ => return Err(unsupported()),
            }
        }
        Ok(found)
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
        if !is_keyword(keyword) || value.contains('=') || (value.is_empty() && word.contains('=')) {
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

/// The attributes of XCLIENT and XFORWARD: `NAME=xtext`, as many as there are, at least one. What the client does not know
/// (`[UNAVAILABLE]`, `[TEMPUNAVAIL]`) is left out.
pub fn attributes(argument: &str) -> Result<Vec<(String, String)>, Reply> {
    let mut found: Vec<(String, String)> = Vec::new();
    for word in argument.split(' ') {
        let (name, xtext) = word.split_once('=').unwrap_or((word, ""));
        let value = decoded(xtext).filter(|it| !it.is_empty() && !it.contains(char::is_control));
        let (true, Some(value)) = (is_keyword(name), value) else {
            return Err(parameters_refused("NAME=value expected, in xtext"));
        };
        let is_unknown = ["[UNAVAILABLE]", "[TEMPUNAVAIL]"].contains(&value.as_str());
        if !is_unknown {
            found.push((name.to_ascii_uppercase(), value));
        }
    }
    Ok(found)
}

fn is_keyword(word: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
    word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.chars().all(is_inner)
}

/// `AUTH=` with an address or name in xtext; `<>`: nobody is vouched for.
fn auth(xtext: &str) -> Result<Option<String>, Reply> {
    let name = decoded(xtext).filter(|it| !it.is_empty() && !it.contains(char::is_control));
    let name = name.ok_or_else(|| parameters_refused("AUTH is xtext"))?;
    Ok(Some(name).filter(|it| it != "<>"))
}

/// ORCPT, where it is an e-mail address that can be shown (RFC 3461 section 4.2).
fn original(value: &str) -> Result<Option<String>, Reply> {
    let malformed = || parameters_refused("ORCPT is type;xtext");
    let (kind, xtext) = value.split_once(';').ok_or_else(malformed)?;
    if !kind.eq_ignore_ascii_case("rfc822") {
        return Ok(None);
    }
    if xtext.is_empty() || !is_xtext(xtext) {
        return Err(malformed());
    }
    let line = parameter_line(&[("ORCPT", value)]);
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

fn parameter_line(words: &[(&str, &str)]) -> String {
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

/// None: it is not xtext, or what it says is not UTF-8.
fn decoded(xtext: &str) -> Option<String> {
    if !is_xtext(xtext) {
        return None;
    }
    let mut pieces = xtext.split('+');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(piece.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

/// A number of at most 20 digits that 64 bits hold.
pub fn number(digits: &str) -> Option<u64> {
    let is_number = (1..=20).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

/// 501 5.5.4, invalid command arguments (RFC 3463 section 3.6), with `why` for the client. It counts as a protocol error.
pub fn parameters_refused(why: &str) -> Reply {
    Reply::new(501, "5.5.4", why)
}

fn unsupported() -> Reply {
    Reply::new(555, "5.5.4", "Unsupported parameter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_rcpt() {
        for (text, want) in [
            ("", Ok((None, false, None))),
            (" IGNOREQUOTA", Ok((None, true, None))),
            (
                " ignorequota ORCPT=rfc822;a+2Bb@x",
                Ok((Some("a+b@x"), true, None)),
            ),
            (
                " XRCPTFORWARD=a+3D1+09b+3Dx",
                Ok((None, false, Some("a=1\tb=x"))),
            ),
            (" XRCPTFORWARD=", Err(501)),
            (" XRCPTFORWARD=a+3d", Err(501)),
            (" XRCPTFORWARD=a+0Ab", Err(501)),
            (" IGNOREQUOTA=1", Err(555)),
            (" IGNOREQUOTA IGNOREQUOTA", Err(501)),
        ] {
            let found = OfRcpt::parse(text.as_bytes()).map_err(|reply| reply.code());
            let found = found.as_ref().map(|it| {
                (
                    it.original.as_deref(),
                    it.ignore_quota,
                    it.forward.as_deref(),
                )
            });
            assert_eq!(found.map_err(|code| *code), want, "{text}");
        }
    }

    #[test]
    fn attributes_of_a_client() {
        for (text, want) in [
            ("ADDR=192.0.2.1", Ok("ADDR=192.0.2.1")),
            (
                "addr=IPV6:2001:db8::1 PORT=5",
                Ok("ADDR=IPV6:2001:db8::1 PORT=5"),
            ),
            ("NAME=[UNAVAILABLE] HELO=a+2Bb", Ok("HELO=a+b")),
            ("LOGIN=[TEMPUNAVAIL]", Ok("")),
            ("", Err(501)),
            ("ADDR", Err(501)),
            ("ADDR=", Err(501)),
            ("ADDR=a  PORT=5", Err(501)),
            ("HELO=a+0Ab", Err(501)),
            ("HELO=a+C3", Err(501)),
            ("=x", Err(501)),
        ] {
            let found = attributes(text).map_err(|reply| reply.code());
            let found = found.map(|found| {
                let words = found.iter().map(|(name, value)| format!("{name}={value}"));
                words.collect::<Vec<_>>().join(" ")
            });
            assert_eq!(found.as_deref().map_err(|code| *code), want, "{text}");
        }
    }
}
