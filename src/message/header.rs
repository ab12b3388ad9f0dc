//! Single fields of a message's header block: what routes and log lines need, nothing more.
//!
//! The block is walked by hand: parsers give the *last* of several fields of a name and take `Fr om:` for `From:`, while a
//! route must see what the reader sees first. `mail-parser` only decodes encoded words. Time is linear in the block, of
//! which at most [`MAX_HEAD`] bytes are looked at; no MIME is parsed.

use mail_parser::MessageParser;
use memchr::memchr;

/// Bytes at the front of a message in which fields are looked for.
pub const MAX_HEAD: usize = 64 * 1024;
/// Characters of a Message-ID that are kept.
const MAX_MESSAGE_ID: usize = 200;

/// The topmost Message-ID as it stands there, in printable ASCII. `head` begins with the first byte of the message.
pub fn message_id(head: &[u8]) -> Option<String> {
    let raw = topmost(head, "Message-ID")?;
    let id: String = raw
        .iter()
        .take(MAX_MESSAGE_ID)
        .map(|b| {
            if b.is_ascii_graphic() {
                char::from(*b)
            } else {
                '?'
            }
        })
        .collect();
    (!id.is_empty()).then_some(id)
}

/// The topmost Message-ID, every byte of it.
pub fn raw_message_id(head: &[u8]) -> Option<Vec<u8>> {
    topmost(head, "Message-ID").filter(|id| !id.is_empty())
}

/// The topmost field of this name: unfolded, encoded words (RFC 2047) decoded, without control characters. None where
/// there is no such field.
pub fn field(head: &[u8], name: &str) -> Option<String> {
    let raw = topmost(head, name)?;
    let text = match memchr::memmem::find(&raw, b"=?") {
        Some(_) => decoded(&raw).unwrap_or_else(|| lossy(&raw)),
        None => lossy(&raw),
    };
    Some(
        text.chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect::<String>()
            .trim()
            .to_string(),
    )
}

fn lossy(raw: &[u8]) -> String {
    String::from_utf8_lossy(raw).into_owned()
}

fn decoded(raw: &[u8]) -> Option<String> {
    let block = [b"Subject: ", raw, b"\n\n"].concat();
    let message = MessageParser::new()
        .header_text(mail_parser::HeaderName::Subject)
        .parse_headers(&block)?;
    message.subject().map(str::to_string)
}

/// The value of the first field of this name, trimmed, its line ends taken out (RFC 5322 section 2.2.3).
fn topmost(head: &[u8], name: &str) -> Option<Vec<u8>> {
    let mut lines = lines(&head[..head.len().min(MAX_HEAD)]).peekable();
    while let Some(line) = lines.next() {
        if line.is_empty() {
            return None;
        }
        let Some(value) = value_of(line, name) else {
            continue;
        };
        let mut value = value.to_vec();
        while let Some(folded) = lines.next_if(|line| matches!(line.first(), Some(b' ' | b'\t'))) {
            value.extend_from_slice(folded);
        }
        return Some(value.trim_ascii().to_vec());
    }
    None
}

/// `name: value`, also the obsolete `name : value`.
fn value_of<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    let rest = rest.trim_ascii_start();
    match start.eq_ignore_ascii_case(name.as_bytes()) {
        true => rest.strip_prefix(b":"),
        false => None,
    }
}

/// Lines without their LF or CRLF. A bare CR ends nothing.
fn lines(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (line, next) = match memchr(b'\n', rest) {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, &rest[rest.len()..]),
        };
        rest = next;
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields() {
        for (head, name, want) in [
            ("X-Spam-Flag: YES\n\n", "X-Spam-Flag", Some("YES")),
            ("X-Spam-Flag: YES\r\n\r\n", "x-spam-flag", Some("YES")),
            ("X-Spam-Flag:YES", "X-Spam-Flag", Some("YES")),
            ("X-Spam-Flag : YES\n", "X-Spam-Flag", Some("YES")),
            ("X-Spam-Flag:\n", "X-Spam-Flag", Some("")),
            (
                "To: a\nX-Spam-Flag: NO\nX-Spam-Flag: YES\n\n",
                "X-Spam-Flag",
                Some("NO"),
            ),
            (
                "Subject: a\n b\r\n\tc\nTo: d\n\n",
                "Subject",
                Some("a b\tc"),
            ),
            ("To: a\n\nX-Spam-Flag: YES\n", "X-Spam-Flag", None),
            ("\nX-Spam-Flag: YES\n", "X-Spam-Flag", None),
            ("Fr om: a\n\n", "From", None),
            ("From : a\n\n", "From", Some("a")),
            ("Fromage: a\n\n", "From", None),
            (" From: a\n\n", "From", None),
            ("To: a\rFrom: b\n\n", "From", None),
            (
                "Subject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?= x\n\n",
                "Subject",
                Some("Grüße x"),
            ),
            ("X-A: =?iso-8859-1?B?4Q==?=\n\n", "X-A", Some("á")),
            ("X-A: =?utf-8?Q?a=0Ab?=\n\n", "X-A", Some("a b")),
            ("X-A: a\0b\u{1b}c\n\n", "X-A", Some("a b c")),
            ("", "X-A", None),
        ] {
            let want = want.map(|want: &str| want.replace('\t', " "));
            assert_eq!(field(head.as_bytes(), name), want, "{head:?}");
        }
        assert_eq!(
            field(b"X-A: a\xffb\n\n", "X-A").as_deref(),
            Some("a\u{fffd}b")
        );
    }

    #[test]
    fn message_ids() {
        for (head, want) in [
            ("Message-ID: <a@b>\n\n", Some("<a@b>".to_string())),
            ("message-id:\r\n <a@b>\r\n\r\n", Some("<a@b>".into())),
            ("Message-ID: <a@b> <c@d>\n\n", Some("<a@b>?<c@d>".into())),
            (
                "Message-ID: <a@b>\nMessage-ID: <c@d>\n\n",
                Some("<a@b>".into()),
            ),
            ("Message-ID: <\u{1b}ü>\n\n", Some("<???>".into())),
            ("Message-ID:  \n\n", None),
            ("To: a\n\nMessage-ID: <a@b>\n\n", None),
            (
                &format!("Message-ID: {}\n\n", "x".repeat(500)),
                Some("x".repeat(200)),
            ),
        ] {
            assert_eq!(message_id(head.as_bytes()), want, "{head:?}");
        }
    }

    #[test]
    fn what_lies_beyond_the_bound_is_not_seen() {
        let head = format!("X-Long: {}\nX-A: b\n\n", "x".repeat(MAX_HEAD));
        assert_eq!(field(head.as_bytes(), "X-A"), None);
    }

    proptest! {
        #[test]
        fn no_head_panics(head in prop::collection::vec(prop::sample::select(b"ab:=?Q utf-8\r\n\t\0\xff".to_vec()), 0..200)) {
            let head = [b"A: ", &head[..]].concat();
            let value = field(&head, "a").unwrap();
            prop_assert!(!value.chars().any(char::is_control));
            message_id(&head);
        }
    }
}
