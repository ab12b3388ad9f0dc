//! System flags of IMAP that a message can be stored with. Keywords are [others](super::keywords).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Name, letter in a Maildir name (in their order there), the right that setting it needs, and Dovecot's bit in an index.
const KNOWN: [(&str, char, char, u8); 5] = [
    ("\\Draft", 'D', 'w', 0x10),
    ("\\Flagged", 'F', 'w', 0x02),
    ("\\Answered", 'R', 'w', 0x01),
    ("\\Seen", 'S', 's', 0x08),
    ("\\Deleted", 'T', 't', 0x04),
];

/// A set of flags: one bit for each of [`KNOWN`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flags(u8);

impl Flags {
    /// `\Seen`: a delivery does not set it where each user has one of his own (`mail_index_private_path`).
    pub const SEEN: Flags = Flags(1 << 3);

    /// `\Seen`, in any case. None: no system flag.
    pub fn parse(name: &str) -> Option<Flags> {
        let at = KNOWN
            .iter()
            .position(|(known, ..)| known.eq_ignore_ascii_case(name))?;
        Some(Flags(1 << at))
    }

    /// Keywords are not among them. A message without either is stored in `new/`.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those of either.
    pub fn with(self, more: Flags) -> Flags {
        Flags(self.0 | more.0)
    }

    /// These but those of `less`, which may have others too.
    pub fn without(self, less: Flags) -> Flags {
        Flags(self.0 & !less.0)
    }

    /// Those that need no more than these rights (RFC 4314).
    pub fn allowed_by(self, has: impl Fn(char) -> bool) -> Flags {
        let allowed = self.each().filter(|(_, (_, _, right, _))| has(*right));
        Flags(allowed.fold(0, |bits, (at, _)| bits | 1 << at))
    }

    /// As they stand behind `:2,` in a Maildir name.
    pub fn letters(self) -> String {
        self.each().map(|(_, (_, letter, ..))| *letter).collect()
    }

    /// As Dovecot's index has them.
    pub fn index_bits(self) -> u8 {
        self.each().fold(0, |bits, (_, (.., bit))| bits | bit)
    }

    fn each(self) -> impl Iterator<Item = (usize, &'static (&'static str, char, char, u8))> {
        KNOWN
            .iter()
            .enumerate()
            .filter(move |(at, _)| self.0 & 1 << at != 0)
    }
}

impl fmt::Display for Flags {
    /// `\Flagged \Seen`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.each().map(|(_, (name, ..))| *name).collect();
        f.write_str(&names.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_letters_and_rights() {
        let all = ["\\seen", "\\FLAGGED", "\\Deleted", "\\Answered", "\\Draft"];
        let all = all.iter().fold(Flags::default(), |flags, name| {
            flags.with(Flags::parse(name).unwrap())
        });
        assert_eq!(all.letters(), "DFRST");
        assert_eq!(all.index_bits(), 0x1f);
        assert_eq!(Flags::SEEN.index_bits(), 0x08);
        for (rights, letters) in [
            ("", ""),
            ("w", "DFR"),
            ("s", "S"),
            ("t", "T"),
            ("wst", "DFRST"),
        ] {
            assert_eq!(
                all.allowed_by(|right| rights.contains(right)).letters(),
                letters
            );
        }
        assert_eq!(all.without(Flags::SEEN).letters(), "DFRT");
        for odd in ["Seen", "$Label1", "\\Recent", ""] {
            assert_eq!(Flags::parse(odd), None, "{odd}");
        }
    }
}
