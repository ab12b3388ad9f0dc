//! Mailbox names: what users write, and what stands on disk.
//!
//! A name as users, config and logs know it ("virtual") has the namespace's prefix and separator and is NFC. The
//! storage name is the rest behind the prefix, in the layout's separator and encoding. A [`StorageName`] can be made only
//! from a name that passed every rule of the layout, so nothing below checks again.

use std::fmt;

use unicode_normalization::UnicodeNormalization;

use super::location::{Driver, Layout, Location};
use super::namespace::Namespace;
use crate::text::mutf7;

/// The longest name, in bytes (Dovecot "Folder Name Lengths").
const MAX_NAME: usize = 4096;
/// The longest level of the hierarchy, in bytes as stored.
const MAX_COMPONENT: usize = 255;
/// What follows the name of an mbox in that of its lock.
const LOCK: &str = ".lock";
/// The longest Maildir++ directory name without its leading dot.
const MAX_MAILDIR_PLUS_PLUS: usize = 254;

/// A mailbox within its namespace, as it stands on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageName {
    /// The INBOX of the namespace's user or owner: it may lie elsewhere.
    Inbox,
    /// Components in the layout's order, encoded and escaped; never empty.
    Box(Vec<String>),
}

/// Why no mailbox can have this name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadName(pub String);

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// NFC, and INBOX in capitals where it stands alone or as the first level. `separators`: those of all namespaces.
pub fn normalise(name: &str, separators: &[char]) -> String {
    let name: String = name.nfc().collect();
    match name.get(..5) {
        Some(first) if first.eq_ignore_ascii_case("INBOX") => match name[5..].chars().next() {
            None => "INBOX".into(),
            Some(next) if separators.contains(&next) => format!("INBOX{}", &name[5..]),
            Some(_) => name,
        },
        _ => name,
    }
}

impl StorageName {
    /// `rest` is the name behind the prefix, NFC. Every rule of Dovecot's for names that a delivery could create; a
    /// name that only an existing mailbox could have is refused too.
    pub fn parse(rest: &str, namespace: &Namespace) -> Result<StorageName, BadName> {
        if rest.len() > MAX_NAME {
            return Err(bad(format!("it is longer than {MAX_NAME} bytes")));
        }
        if let Some(c) = rest.chars().find(|&c| is_forbidden(c)) {
            return Err(bad(format!(
                "it has the forbidden character U+{:04X}",
                c as u32
            )));
        }
        if rest == "INBOX" && namespace.inbox {
            return Ok(StorageName::Inbox);
        }
        let separator = namespace.separator;
        check_separators(rest, separator)?;
        let components = rest
            .split(separator)
            .enumerate()
            .map(|(level, part)| stored(part, level, namespace));
        let components = components.collect::<Result<Vec<_>, _>>()?;
        check_length(&components, &namespace.location)?;
        Ok(StorageName::Box(components))
    }

    /// The levels above this mailbox, nearest first, without the root. INBOX has none.
    pub fn ancestors(&self) -> impl Iterator<Item = StorageName> {
        let components: &[String] = match self {
            StorageName::Inbox => &[],
            StorageName::Box(components) => components,
        };
        (1..components.len())
            .rev()
            .map(|levels| StorageName::Box(components[..levels].to_vec()))
    }
}

fn bad(why: impl Into<String>) -> BadName {
    BadName(why.into())
}

fn check_separators(rest: &str, separator: char) -> Result<(), BadName> {
    let double: String = [separator, separator].iter().collect();
    if rest.is_empty() {
        return Err(bad("it names the namespace itself"));
    }
    if rest.starts_with(separator) {
        return Err(bad("it begins with the hierarchy separator"));
    }
    if rest.ends_with(separator) {
        return Err(bad("it ends with the hierarchy separator"));
    }
    if rest.contains(&double) {
        return Err(bad("it has adjacent hierarchy separators"));
    }
    Ok(())
}

/// C0, DEL, C1, line and paragraph separators, byte order mark.
fn is_forbidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// One level as it is stored: escaped, encoded, and refused where it would be something else on disk.
fn stored(part: &str, level: usize, namespace: &Namespace) -> Result<String, BadName> {
    let location = &namespace.location;
    let separator = location.layout.separator();
    let reserved = !location.directory_name.is_empty() && part == location.directory_name;
    let dots = matches!(part, "." | "..");
    let inbox_of_another =
        level == 0 && part == "INBOX" && location.storage_escape_char.is_some() && !namespace.inbox;
    let escaped = match location.storage_escape_char {
        Some(escape) => {
            let whole = dots || reserved || inbox_of_another;
            let mut out = String::new();
            for (at, c) in part.chars().enumerate() {
                let special = c == escape || c == separator || c == '/' || (c == '~' && at == 0);
                match special || (whole && at == 0) {
                    true => out.push_str(&hex_escape(c, escape)),
                    false => out.push(c),
                }
            }
            out
        }
        None => {
            if let Some(c) = part.chars().find(|&c| c == separator || c == '/') {
                return Err(bad(format!("it has the character {c:?} inside a level")));
            }
            if dots {
                return Err(bad(format!("it has the level {part:?}")));
            }
            if part.starts_with('~') && level == 0 {
                return Err(bad("it begins with '~'"));
            }
            if reserved {
                return Err(bad(format!(
                    "{part:?} is the name that every mailbox directory has inside"
                )));
            }
            part.to_owned()
        }
    };
    let is_ours =
        is_reserved_file(&escaped, location.driver) || escaped == location.subscriptions_filename;
    if location.layout == Layout::Fs && is_ours {
        return Err(bad(format!("{escaped:?} is a name of the storage's own")));
    }
    Ok(match location.utf8 {
        true => escaped,
        false => mutf7::encode(&escaped),
    })
}

/// One level as a user knows it, of what [`StorageName::parse`] has made of it.
pub fn spelled_back(level: &str, utf8: bool, escape: Option<char>) -> String {
    let decoded = match utf8 {
        true => None,
        false => mutf7::decode(level),
    };
    let level = decoded.unwrap_or_else(|| level.to_owned());
    let Some(escape) = escape else {
        return level;
    };
    let mut bytes = Vec::with_capacity(level.len());
    let mut parts = level.split(escape);
    bytes.extend(parts.next().unwrap_or_default().bytes());
    for part in parts {
        let digits = part.get(..2);
        let digits = digits.filter(|it| it.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(part[2..].bytes());
            }
            None => bytes.extend(format!("{escape}{part}").bytes()),
        }
    }
    String::from_utf8(bytes).unwrap_or(level)
}

fn hex_escape(c: char, escape: char) -> String {
    let mut utf8 = [0; 4];
    c.encode_utf8(&mut utf8)
        .bytes()
        .map(|byte| format!("{escape}{byte:02x}"))
        .collect()
}

/// With nested directories a mailbox must not be called like a file or folder that the storage keeps there.
fn is_reserved_file(component: &str, driver: Driver) -> bool {
    let inside = match driver {
        Driver::Maildir => matches!(
            component,
            "cur" | "new" | "tmp" | "subscriptions" | "maildirsize" | "maildirfolder"
        ),
        Driver::Sdbox | Driver::Mdbox => component == "dbox-Mails",
        Driver::Mbox => false,
    };
    inside
        || component == ".imap"
        || component.ends_with(LOCK)
        || component.starts_with("dovecot.")
        || component.starts_with("dovecot-")
}

fn check_length(components: &[String], location: &Location) -> Result<(), BadName> {
    let most = match location.driver {
        Driver::Mbox => MAX_COMPONENT - LOCK.len(),
        Driver::Maildir | Driver::Sdbox | Driver::Mdbox => MAX_COMPONENT,
    };
    if components.iter().any(|component| component.len() > most) {
        return Err(bad(format!("a level is longer than {most} bytes")));
    }
    let whole = components
        .iter()
        .map(|component| component.len() + 1)
        .sum::<usize>()
        - 1;
    if location.layout == Layout::MaildirPlusPlus && whole > MAX_MAILDIR_PLUS_PLUS {
        return Err(bad(format!(
            "it is longer than the {MAX_MAILDIR_PLUS_PLUS} bytes of a directory name"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::namespace::Kind;
    use super::super::tests::namespace;
    use super::*;

    fn maildir(separator: char) -> Namespace {
        Namespace {
            separator,
            inbox: true,
            ..namespace("inbox", Kind::Private, "")
        }
    }

    fn nested(separator: char) -> Namespace {
        let mut namespace = maildir(separator);
        namespace.location.layout = Layout::Fs;
        namespace
    }

    fn escaping() -> Namespace {
        let mut namespace = maildir('/');
        namespace.location.storage_escape_char = Some('\\');
        namespace
    }

    fn stored(rest: &str, namespace: &Namespace) -> Option<String> {
        match StorageName::parse(rest, namespace).ok()? {
            StorageName::Inbox => Some("(inbox)".into()),
            StorageName::Box(components) => {
                Some(components.join(&namespace.location.layout.separator().to_string()))
            }
        }
    }

    #[test]
    fn names_on_disk() {
        for (namespace, name, want) in [
            (maildir('.'), "foo.bar", Some("foo.bar")),
            (maildir('/'), "foo/bar", Some("foo.bar")),
            (maildir('/'), "foo.bar", None),
            (nested('.'), "foo.bar", Some("foo/bar")),
            (nested('.'), "foo/bar", None),
            (nested('/'), "foo/bar", Some("foo/bar")),
            (maildir('/'), "INBOX", Some("(inbox)")),
            (maildir('/'), "INBOX/kid", Some("INBOX.kid")),
            (maildir('/'), "Größe", Some("Gr&APYA3w-e")),
            (maildir('/'), "x&y", Some("x&-y")),
            (maildir('/'), "&AC8-", Some("&-AC8-")),
            (maildir('/'), "a b ", Some("a b ")),
            (maildir('/'), "a/~x", Some("a.~x")),
            (maildir('/'), "cur", Some("cur")),
            (nested('/'), "a/cur", None),
            (nested('/'), "dovecot.index", None),
            (nested('/'), "subscriptions", None),
            (escaping(), "foo.bar", Some("foo\\2ebar")),
            (escaping(), "..", Some("\\2e\\2e")),
            (escaping(), "~x", Some("\\7ex")),
            (escaping(), "a\\b", Some("a\\5cb")),
        ] {
            assert_eq!(stored(name, &namespace).as_deref(), want, "{name}");
        }
    }

    #[test]
    fn names_that_no_mailbox_can_have() {
        for name in [
            "",
            "/a",
            "a/",
            "a//b",
            "~a",
            ".",
            "..",
            "../x",
            "a/../b",
            "a/./b",
            "a\nb",
            "a\0b",
            "a\u{7f}",
            "a\u{85}",
            "a\u{2028}b",
            "\u{feff}a",
        ] {
            for namespace in [maildir('/'), nested('/')] {
                assert_eq!(stored(name, &namespace), None, "{name:?}");
            }
        }
    }

    #[test]
    fn lengths() {
        let mut mbox = nested('/');
        mbox.location.driver = Driver::Mbox;
        // bytes of one level; whether a Maildir++, nested directories and mboxes with their locks can have it
        for (length, flat, tree, locked) in [
            (1, true, true, true),
            (250, true, true, true),
            (251, true, true, false),
            (254, true, true, false),
            (255, false, true, false),
            (256, false, false, false),
        ] {
            let name = "a".repeat(length);
            assert_eq!(stored(&name, &maildir('/')).is_some(), flat, "{length}");
            assert_eq!(stored(&name, &nested('/')).is_some(), tree, "{length}");
            assert_eq!(stored(&name, &mbox).is_some(), locked, "{length}");
        }
        assert_eq!(
            stored(&vec!["abc"; 1024].join("/"), &nested('/')).map(|name| name.len()),
            Some(4095)
        );
        assert_eq!(stored(&vec!["abc"; 1025].join("/"), &nested('/')), None);
    }

    #[test]
    fn inbox_in_any_case() {
        for (name, want) in [
            ("inbox", "INBOX"),
            ("InBox/Kid", "INBOX/Kid"),
            ("inboxes", "inboxes"),
            ("e\u{301}", "é"),
            ("Work/inbox", "Work/inbox"),
        ] {
            assert_eq!(normalise(name, &['/']), want);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_stored_is_spelled(level in "[%&a-f0-9é+-]{0,12}|\\PC{0,12}") {
            for escape in [None, Some('%'), Some('é')] {
                let _ = spelled_back(&level, false, escape);
                let _ = spelled_back(&level, true, escape);
            }
        }

        #[test]
        fn what_is_stored_stays_below_its_root(name in "\\PC{0,20}|[./~a\\\\-]{0,8}") {
            for namespace in [maildir('/'), maildir('.'), nested('/'), nested('.'), escaping()] {
                if let Ok(StorageName::Box(components)) = StorageName::parse(&name, &namespace) {
                    let location = &namespace.location;
                    let levels = components.iter();
                    let levels = levels.map(|level| spelled_back(level, location.utf8, location.storage_escape_char));
                    let separator = namespace.separator.to_string();
                    prop_assert_eq!(levels.collect::<Vec<_>>().join(&separator), name.as_str());
                    for component in components {
                        prop_assert!(!component.is_empty() && component != "." && component != "..");
                        prop_assert!(!component.contains(['/', '\0', '\n']) && component.len() <= 255);
                    }
                }
            }
        }
    }
}
