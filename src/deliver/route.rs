//! Header routes: mail for an INBOX that a field of its header sends elsewhere. First match wins.

use crate::message::{Flags, Keywords, header};

/// One `[[route]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The name of the field; the topmost of that name counts, which is the one that a reader sees.
    pub header: String,
    pub test: Test,
    /// A mailbox by its full name, or by its special use: `\Junk`.
    pub mailbox: String,
    /// What the message is stored with.
    pub flags: Flags,
    pub keywords: Keywords,
    /// Where it is written: `route 2`.
    pub from: String,
}

/// What the field's value must be like, without regard to case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// There is such a field.
    Exists,
    Equals(String),
    Contains(String),
    BeginsWith(String),
}

impl Route {
    /// Whether a message that begins with `head` takes this route.
    pub fn takes(&self, head: &[u8]) -> bool {
        let Some(value) = header::field(head, &self.header) else {
            return false;
        };
        let value = value.to_lowercase();
        match &self.test {
            Test::Exists => true,
            Test::Equals(text) => value == text.to_lowercase(),
            Test::Contains(text) => value.contains(&text.to_lowercase()),
            Test::BeginsWith(text) => value.starts_with(&text.to_lowercase()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_a_route() {
        let head = b"X-Spam-Flag: YES\nX-Spam-Flag: NO\nSubject: [List] =?utf-8?Q?Gr=C3=BC=C3=9Fe?=\n\nX-Body: x\n";
        for (header, test, want) in [
            ("X-Spam-Flag", Test::Equals("yes".into()), true),
            ("x-spam-flag", Test::Equals("NO".into()), false),
            ("X-Spam-Flag", Test::Exists, true),
            ("X-Body", Test::Exists, false),
            ("Subject", Test::BeginsWith("[list]".into()), true),
            ("Subject", Test::BeginsWith("list".into()), false),
            ("Subject", Test::Contains("grüße".into()), true),
        ] {
            let route = Route {
                header: header.into(),
                test: test.clone(),
                mailbox: "\\Junk".into(),
                flags: Flags::default(),
                keywords: Keywords::default(),
                from: String::new(),
            };
            assert_eq!(route.takes(head), want, "{header} {test:?}");
        }
    }
}
