//! Addresses as LMTP and the LDA take them: RFC 5321 paths and bare addresses.
//!
//! A parsed [`Address`] holds no control character, and what [`Display`](fmt::Display) makes of *any* `Address` holds
//! none either: headers, replies and log lines may be built from it. Parsing what was displayed gives the same address.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

/// The longest local part, unquoted. RFC 5321 says 64 and mailing lists do not care; with everything quoted a header
/// line still stays below 998 bytes.
pub const MAX_LOCAL: usize = 320;
/// The longest domain or address literal (RFC 5321 section 4.5.3.1.2).
pub const MAX_DOMAIN: usize = 255;
/// The longest source route that is skipped.
const MAX_ROUTE: usize = 1024;

/// A mailbox address. The local part is unquoted; the domain may be missing (LMTP, Dovecot).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address {
    pub local: String,
    pub domain: Option<String>,
}

/// MAIL FROM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReversePath {
    /// `<>`
    Null,
    Address(Address),
}

/// A MAIL path as it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SenderPath<'a> {
    pub path: ReversePath,
    /// What stood between the brackets when it was no address and `<>` stands in for it; control characters are gone.
    pub broken: Option<String>,
    /// What follows the `>`.
    pub rest: &'a [u8],
}

/// Why bytes are not an address. The words go into 501 replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("the path must begin with '<'")]
    NoOpeningBracket,
    #[error("the path must end with '>'")]
    NoClosingBracket,
    #[error("a recipient cannot be the null path")]
    Null,
    #[error("the source route does not end")]
    Route,
    #[error("the local part is empty")]
    EmptyLocal,
    #[error("the quoted string does not end")]
    OpenQuote,
    #[error("a character that no local part can have")]
    Local,
    #[error("the domain is missing behind '@'")]
    EmptyDomain,
    #[error("not a domain or address literal")]
    Domain,
    #[error("the address is not UTF-8")]
    NotUtf8,
    #[error("a non-ASCII address needs SMTPUTF8")]
    NeedsUtf8,
    #[error("the address is too long")]
    TooLong,
    #[error("unexpected text behind the address")]
    Trailing,
}

impl Address {
    /// The path of RCPT TO, from its `<`, and what follows its `>`. `utf8` allows what SMTPUTF8 allows (RFC 6531).
    ///
    /// The domain may be missing, dots may stand anywhere in the local part, source routes are dropped.
    pub fn parse_path(bytes: &[u8], utf8: bool) -> Result<(Address, &[u8]), AddressError> {
        let inner = bytes
            .strip_prefix(b"<")
            .ok_or(AddressError::NoOpeningBracket)?;
        if inner.first() == Some(&b'>') {
            return Err(AddressError::Null);
        }
        let (address, rest) = mailbox(route(inner)?, utf8)?;
        let rest = rest
            .strip_prefix(b">")
            .ok_or(AddressError::NoClosingBracket)?;
        Ok((address, rest))
    }

    /// An address as an option or argument gives it: `alice+Work@example.org`, also in angle brackets. UTF-8 is fine.
    pub fn parse(text: &str) -> Result<Address, AddressError> {
        let (address, rest) = match text.starts_with('<') {
            true => Address::parse_path(text.as_bytes(), true)?,
            false => mailbox(text.as_bytes(), true)?,
        };
        match rest.is_empty() {
            true => Ok(address),
            false => Err(AddressError::Trailing),
        }
    }

    /// The address without its detail, and the detail: the local part is divided at the first character that is one
    /// of `delimiters`. Where that is the very first one, the user is empty (Dovecot, and no user has that name).
    pub fn split_detail(&self, delimiters: &str) -> (Address, Option<String>) {
        let Some((at, delimiter)) = self
            .local
            .char_indices()
            .find(|(_, c)| delimiters.contains(*c))
        else {
            return (self.clone(), None);
        };
        let user = Address {
            local: self.local[..at].into(),
            domain: self.domain.clone(),
        };
        (user, Some(self.local[at + delimiter.len_utf8()..].into()))
    }

    /// Whether both name one mailbox for sure: local parts to the letter, domains in any case (RFC 5321 section 2.4).
    pub fn is_same_as(&self, other: &Address) -> bool {
        let domains_agree = match (&self.domain, &other.domain) {
            (Some(one), Some(two)) => one.eq_ignore_ascii_case(two),
            (None, None) => true,
            _ => false,
        };
        domains_agree && self.local == other.local
    }

    /// False: the address needs SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.local.is_ascii() && self.domain.as_ref().is_none_or(|domain| domain.is_ascii())
    }
}

impl ReversePath {
    /// The path of MAIL FROM, from its `<`. As Dovecot does, a sender that is no address is taken as `<>`: the message
    /// counts more than the place that its bounce would go to. Only what blurs where the path ends is an error.
    pub fn parse_path(bytes: &[u8], utf8: bool) -> Result<SenderPath<'_>, AddressError> {
        if let Some(rest) = bytes.strip_prefix(b"<>") {
            return Ok(SenderPath {
                path: ReversePath::Null,
                broken: None,
                rest,
            });
        }
        match Address::parse_path(bytes, utf8) {
            Ok((address, rest)) if address.is_sender() => Ok(SenderPath {
                path: ReversePath::Address(address),
                broken: None,
                rest,
            }),
            Ok((address, rest)) => Ok(SenderPath {
                path: ReversePath::Null,
                broken: Some(address.to_string()),
                rest,
            }),
            Err(error) => broken_sender(bytes, error),
        }
    }

    /// A sender as an option gives it, with or without brackets; what is no address is `<>`.
    pub fn parse_lenient(text: &str) -> ReversePath {
        Address::parse(text.trim()).map_or(ReversePath::Null, ReversePath::Address)
    }
}

impl fmt::Display for Address {
    /// `alice@example.org`, `"al ice"@example.org`. No brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match is_dot_string(&self.local) {
            true => f.write_str(&self.local)?,
            false => quoted(&self.local, f)?,
        }
        let Some(domain) = &self.domain else {
            return Ok(());
        };
        f.write_char('@')?;
        // A parsed domain passes unchanged; one that was put together elsewhere must not break a header.
        let is_fit = |c: char| is_domain_char(c) || "[]:".contains(c);
        match domain.chars().all(is_fit) {
            true => f.write_str(domain),
            false => f.write_str(&domain.replace(|c| !is_fit(c), "?")),
        }
    }
}

impl fmt::Display for ReversePath {
    /// Without brackets: the empty string for `<>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReversePath::Null => Ok(()),
            ReversePath::Address(address) => address.fmt(f),
        }
    }
}

impl Address {
    /// What Dovecot takes as a sender: with a domain, and a local part that is a dot-string or was quoted for a reason.
    fn is_sender(&self) -> bool {
        let dots =
            self.local.starts_with('.') || self.local.ends_with('.') || self.local.contains("..");
        self.domain.is_some() && !dots
    }
}

/// `<foo@>`, `<foo@bar@baz>`: taken as `<>` as long as it is plain where the path ends.
fn broken_sender(bytes: &[u8], error: AddressError) -> Result<SenderPath<'_>, AddressError> {
    if matches!(
        error,
        AddressError::NoOpeningBracket | AddressError::OpenQuote
    ) {
        return Err(error);
    }
    let end = bytes
        .iter()
        .position(|b| *b == b'>')
        .ok_or(AddressError::NoClosingBracket)?;
    let raw = &bytes[1..end];
    if raw.iter().any(|b| matches!(b, 0..=b' ' | 0x7f | b'"')) {
        return Err(error);
    }
    if raw.len() > MAX_LOCAL + MAX_DOMAIN {
        return Err(AddressError::TooLong);
    }
    let shown = String::from_utf8_lossy(raw)
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    Ok(SenderPath {
        path: ReversePath::Null,
        broken: Some(shown),
        rest: &bytes[end + 1..],
    })
}

/// Drops `@relay,@relay:` (RFC 5321 appendix C).
fn route(bytes: &[u8]) -> Result<&[u8], AddressError> {
    if bytes.first() != Some(&b'@') {
        return Ok(bytes);
    }
    let is_route = |b: &u8| b.is_ascii_alphanumeric() || b"@,.-_".contains(b);
    let end = bytes
        .iter()
        .position(|b| !is_route(b))
        .ok_or(AddressError::Route)?;
    match bytes[end] == b':' && end <= MAX_ROUTE {
        true => Ok(&bytes[end + 1..]),
        false => Err(AddressError::Route),
    }
}

/// `local[@domain]`, and what follows.
fn mailbox(bytes: &[u8], utf8: bool) -> Result<(Address, &[u8]), AddressError> {
    let (local, rest) = match bytes.first() {
        Some(b'"') => quoted_string(&bytes[1..])?,
        _ => dot_string(bytes),
    };
    let local = text(local, utf8)?;
    if local.is_empty() {
        return Err(AddressError::EmptyLocal);
    }
    if local.len() > MAX_LOCAL {
        return Err(AddressError::TooLong);
    }
    if local.chars().any(char::is_control) {
        return Err(AddressError::Local);
    }
    match rest.first() {
        Some(b'@') => {
            let (domain, rest) = domain(&rest[1..], utf8)?;
            Ok((
                Address {
                    local,
                    domain: Some(domain),
                },
                rest,
            ))
        }
        Some(b'>') | None => Ok((
            Address {
                local,
                domain: None,
            },
            rest,
        )),
        Some(_) => Err(AddressError::Local),
    }
}

/// Behind the opening quote: the unquoted bytes, and what follows the closing quote.
fn quoted_string(bytes: &[u8]) -> Result<(Vec<u8>, &[u8]), AddressError> {
    let mut local = Vec::new();
    let mut at = 0;
    loop {
        match *bytes.get(at).ok_or(AddressError::OpenQuote)? {
            b'"' => return Ok((local, &bytes[at + 1..])),
            b'\\' => {
                local.push(*bytes.get(at + 1).ok_or(AddressError::OpenQuote)?);
                at += 2;
            }
            byte => {
                local.push(byte);
                at += 1;
            }
        }
    }
}

/// Characters and dots, the dots anywhere.
fn dot_string(bytes: &[u8]) -> (Vec<u8>, &[u8]) {
    let is_atom = |b: &u8| *b >= 0x80 || *b == b'.' || is_atext(char::from(*b));
    let end = bytes
        .iter()
        .position(|b| !is_atom(b))
        .unwrap_or(bytes.len());
    (bytes[..end].to_vec(), &bytes[end..])
}

fn domain(bytes: &[u8], utf8: bool) -> Result<(String, &[u8]), AddressError> {
    if bytes.first() == Some(&b'[') {
        return literal(bytes);
    }
    let is_inside = |b: &u8| *b >= 0x80 || b.is_ascii_alphanumeric() || b"-_.".contains(b);
    let end = bytes
        .iter()
        .position(|b| !is_inside(b))
        .unwrap_or(bytes.len());
    let (domain, rest) = (text(bytes[..end].to_vec(), utf8)?, &bytes[end..]);
    if domain.is_empty() {
        return Err(AddressError::EmptyDomain);
    }
    if domain.len() > MAX_DOMAIN {
        return Err(AddressError::TooLong);
    }
    let is_label = |label: &str| !label.is_empty() && label.chars().all(is_domain_char);
    match domain.split('.').all(is_label) && matches!(rest.first(), Some(b'>') | None) {
        true => Ok((domain, rest)),
        false if rest.first().is_some_and(u8::is_ascii_whitespace) => {
            Err(AddressError::NoClosingBracket)
        }
        false => Err(AddressError::Domain),
    }
}

/// `[192.0.2.1]`, `[IPv6:2001:db8::1]`: kept as it stands.
fn literal(bytes: &[u8]) -> Result<(String, &[u8]), AddressError> {
    let end = bytes
        .iter()
        .position(|b| *b == b']')
        .ok_or(AddressError::Domain)?;
    let inner = &bytes[1..end];
    let is_literal = !inner.is_empty()
        && inner
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b".:-".contains(b));
    if inner.len() + 2 > MAX_DOMAIN {
        return Err(AddressError::TooLong);
    }
    match is_literal {
        true => Ok((
            String::from_utf8_lossy(&bytes[..=end]).into_owned(),
            &bytes[end + 1..],
        )),
        false => Err(AddressError::Domain),
    }
}

fn text(bytes: Vec<u8>, utf8: bool) -> Result<String, AddressError> {
    let text = String::from_utf8(bytes).map_err(|_| AddressError::NotUtf8)?;
    match utf8 || text.is_ascii() {
        true => Ok(text),
        false => Err(AddressError::NeedsUtf8),
    }
}

/// RFC 5321 Dot-string with the characters of RFC 6531.
fn is_dot_string(local: &str) -> bool {
    local
        .split('.')
        .all(|atom| !atom.is_empty() && atom.chars().all(is_atext))
}

/// RFC 5322 atext. Beyond ASCII all that is neither control nor space.
fn is_atext(c: char) -> bool {
    match c.is_ascii() {
        true => c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c),
        false => !c.is_control() && !c.is_whitespace(),
    }
}

fn is_domain_char(c: char) -> bool {
    match c.is_ascii() {
        true => c.is_ascii_alphanumeric() || "-_.".contains(c),
        false => !c.is_control() && !c.is_whitespace(),
    }
}

fn quoted(local: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_char('"')?;
    for c in local.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            c if c.is_control() => f.write_char('?')?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(local: &str, domain: &str) -> Address {
        Address {
            local: local.into(),
            domain: (!domain.is_empty()).then(|| domain.into()),
        }
    }

    #[test]
    fn recipients() {
        for (path, want) in [
            ("<alice>", Ok(address("alice", ""))),
            ("<alice@example.org>", Ok(address("alice", "example.org"))),
            (
                "<Alice+Work@EXAMPLE.org>",
                Ok(address("Alice+Work", "EXAMPLE.org")),
            ),
            ("<\"alice\">", Ok(address("alice", ""))),
            ("<\"al ice\"@x>", Ok(address("al ice", "x"))),
            ("<\"a\\\"b\\\\c\"@x>", Ok(address("a\"b\\c", "x"))),
            ("<\"a@b\"@x>", Ok(address("a@b", "x"))),
            ("<al..ice@x>", Ok(address("al..ice", "x"))),
            ("<.alice.@x>", Ok(address(".alice.", "x"))),
            ("<@a,@b.c:alice@x>", Ok(address("alice", "x"))),
            ("<alice@[192.0.2.1]>", Ok(address("alice", "[192.0.2.1]"))),
            (
                "<alice@[IPv6:2001:db8::1]>",
                Ok(address("alice", "[IPv6:2001:db8::1]")),
            ),
            ("<alice@under_score>", Ok(address("alice", "under_score"))),
            ("<postmaster>", Ok(address("postmaster", ""))),
            (
                "<jörg@bücher.example>",
                Ok(address("jörg", "bücher.example")),
            ),
            ("<>", Err(AddressError::Null)),
            ("<\"\">", Err(AddressError::EmptyLocal)),
            ("<\"\"@x>", Err(AddressError::EmptyLocal)),
            ("<@>", Err(AddressError::Route)),
            ("<@x>", Err(AddressError::Route)),
            ("<@x:>", Err(AddressError::EmptyLocal)),
            ("<alice@>", Err(AddressError::EmptyDomain)),
            ("<alice@x@y>", Err(AddressError::Domain)),
            ("<alice@.x>", Err(AddressError::Domain)),
            ("<alice@x..y>", Err(AddressError::Domain)),
            ("<alice@x.>", Err(AddressError::Domain)),
            ("<alice@[]>", Err(AddressError::Domain)),
            ("<alice@[1.2.3.4>", Err(AddressError::Domain)),
            ("<alice@[a b]>", Err(AddressError::Domain)),
            ("<a b@x>", Err(AddressError::Local)),
            ("<a:b@x>", Err(AddressError::Local)),
            ("<a@b c>", Err(AddressError::NoClosingBracket)),
            ("<alice", Err(AddressError::NoClosingBracket)),
            ("<\"alice>", Err(AddressError::OpenQuote)),
            ("<\"alice\\", Err(AddressError::OpenQuote)),
            ("<\"a\"b@x>", Err(AddressError::Local)),
            ("<\"a\tb\"@x>", Err(AddressError::Local)),
            ("<\"a\\\rb\"@x>", Err(AddressError::Local)),
            ("<\"a\u{0}b\"@x>", Err(AddressError::Local)),
            ("<\"a\nb\"@x>", Err(AddressError::Local)),
            ("<a\u{85}b@x>", Err(AddressError::Local)),
            ("<a@x\u{85}y>", Err(AddressError::Domain)),
            ("alice", Err(AddressError::NoOpeningBracket)),
            ("", Err(AddressError::NoOpeningBracket)),
        ] {
            assert_eq!(
                Address::parse_path(path.as_bytes(), true).map(|(address, _)| address),
                want,
                "{path:?}"
            );
        }
    }

    #[test]
    fn lengths_and_encodings() {
        let path =
            |local: usize, domain: usize| format!("<{}@{}>", "l".repeat(local), "d".repeat(domain));
        for (path, want) in [
            (path(MAX_LOCAL, MAX_DOMAIN).into_bytes(), None),
            (
                path(MAX_LOCAL + 1, 1).into_bytes(),
                Some(AddressError::TooLong),
            ),
            (
                path(1, MAX_DOMAIN + 1).into_bytes(),
                Some(AddressError::TooLong),
            ),
            (path(4096, 1).into_bytes(), Some(AddressError::TooLong)),
            ("<jörg@x>".into(), Some(AddressError::NeedsUtf8)),
            ("<a@bücher>".into(), Some(AddressError::NeedsUtf8)),
            (b"<a\xff@x>".to_vec(), Some(AddressError::NotUtf8)),
            (b"<\"a\xc3\"@x>".to_vec(), Some(AddressError::NotUtf8)),
        ] {
            assert_eq!(
                Address::parse_path(&path, false).err(),
                want,
                "{}",
                path.escape_ascii()
            );
        }
    }

    #[test]
    fn senders() {
        let null = |raw: &str| Ok((ReversePath::Null, Some(raw.to_string())));
        for (path, want) in [
            ("<>", Ok((ReversePath::Null, None))),
            (
                "<bob@x>",
                Ok((ReversePath::Address(address("bob", "x")), None)),
            ),
            (
                "<@r:bob@x>",
                Ok((ReversePath::Address(address("bob", "x")), None)),
            ),
            ("<foo..bar@x>", null("\"foo..bar\"@x")),
            ("<foo@>", null("foo@")),
            ("<foo@bar@baz>", null("foo@bar@baz")),
            ("<@>", null("@")),
            ("<foo>", null("foo")),
            ("<a:b@x>", null("a:b@x")),
            ("<jörg@x>", null("jörg@x")),
            ("<a b>", Err(AddressError::Local)),
            ("<a@b c>", Err(AddressError::NoClosingBracket)),
            ("<\"foo>", Err(AddressError::OpenQuote)),
            ("<foo", Err(AddressError::NoClosingBracket)),
            ("foo", Err(AddressError::NoOpeningBracket)),
        ] {
            let got = ReversePath::parse_path(path.as_bytes(), false)
                .map(|sender| (sender.path, sender.broken));
            assert_eq!(got, want, "{path:?}");
        }
        let sender = ReversePath::parse_path(b"<foo@> SIZE=5", false).unwrap();
        assert_eq!(sender.rest, b" SIZE=5");
    }

    #[test]
    fn arguments() {
        assert_eq!(Address::parse("alice@x"), Ok(address("alice", "x")));
        assert_eq!(Address::parse("<alice@x>"), Ok(address("alice", "x")));
        assert_eq!(Address::parse("alice@x>"), Err(AddressError::Trailing));
        assert_eq!(Address::parse("<alice@x> y"), Err(AddressError::Trailing));
        assert_eq!(
            ReversePath::parse_lenient("bob@x"),
            ReversePath::Address(address("bob", "x"))
        );
        assert_eq!(
            ReversePath::parse_lenient("root"),
            ReversePath::Address(address("root", ""))
        );
        for null in ["", "<>", "MAILER DAEMON", "a@b@c", "a\nb@c"] {
            assert_eq!(
                ReversePath::parse_lenient(null),
                ReversePath::Null,
                "{null:?}"
            );
        }
    }

    #[test]
    fn details() {
        for (local, delimiters, user, detail) in [
            ("alice", "+", "alice", None),
            ("alice+Work", "+", "alice", Some("Work")),
            ("alice+Work-x", "-+", "alice", Some("Work-x")),
            ("alice-Work+x", "-+", "alice", Some("Work+x")),
            ("alice+", "+", "alice", Some("")),
            ("+Work", "+", "", Some("Work")),
            ("alice+Work", "", "alice+Work", None),
            ("aliceüx", "ü", "alice", Some("x")),
        ] {
            let (address, got) = address(local, "x").split_detail(delimiters);
            assert_eq!(
                (address.local.as_str(), got.as_deref()),
                (user, detail),
                "{local} by {delimiters:?}"
            );
        }
    }

    #[test]
    fn same_mailbox() {
        assert!(address("a", "X.org").is_same_as(&address("a", "x.ORG")));
        assert!(!address("A", "x").is_same_as(&address("a", "x")));
        assert!(!address("a", "x").is_same_as(&address("a", "")));
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..80), utf8: bool) {
            let _ = Address::parse_path(&bytes, utf8);
            let _ = ReversePath::parse_path(&bytes, utf8);
        }

        #[test]
        fn what_was_displayed_parses_to_the_same(local in "[^\\p{Cc}]{1,60}", domain in proptest::option::of("[a-z0-9_-]{1,20}(\\.[a-zé]{1,9}){0,3}")) {
            let address = Address { local, domain };
            prop_assert_eq!(Address::parse(&address.to_string()), Ok(address.clone()));
            let path = format!("<{address}>");
            prop_assert_eq!(Address::parse_path(path.as_bytes(), true), Ok((address, &b""[..])));
        }

        #[test]
        fn what_was_parsed_displays_to_the_same(path in "<[a-z.@\"\\\\ <>:,+ü]{0,30}>") {
            if let Ok((address, _)) = Address::parse_path(path.as_bytes(), true) {
                prop_assert_eq!(Address::parse(&address.to_string()), Ok(address));
            }
        }

        #[test]
        fn display_never_breaks_a_line(local in any::<String>(), domain in any::<String>()) {
            let shown = Address { local, domain: Some(domain) }.to_string();
            prop_assert!(!shown.chars().any(char::is_control), "{shown:?}");
        }
    }
}
