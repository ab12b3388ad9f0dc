//! Addresses as LMTP and the LDA take them.

use std::fmt;

/// A mailbox address. The local part is unquoted; the domain may be missing (LMTP, Dovecot).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    pub local: String,
    pub domain: Option<String>,
}

/// MAIL FROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReversePath {
    /// `<>`
    Null,
    Address(Address),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.local)
    }
}

impl Address {
    pub fn split_detail(&self, delimiters: &str) -> (Address, Option<String>) {
        match self.local.find(|c| delimiters.contains(c)) {
            Some(at) => (
                Address {
                    local: self.local[..at].into(),
                    domain: self.domain.clone(),
                },
                Some(self.local[at + 1..].into()),
            ),
            None => (self.clone(), None),
        }
    }
}
