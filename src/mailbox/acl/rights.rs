//! Rights: the letters of RFC 4314 with Dovecot's `p`, and names that others have added.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Letter and name of each right, in the order in which Dovecot shows letters.
pub const KNOWN: [(char, &str); 11] = [
    ('l', "lookup"),
    ('r', "read"),
    ('w', "write"),
    ('s', "write-seen"),
    ('t', "write-deleted"),
    ('i', "insert"),
    ('p', "post"),
    ('e', "expunge"),
    ('k', "create"),
    ('x', "delete"),
    ('a', "admin"),
];

/// A set of rights.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// One bit for each of [`KNOWN`].
    letters: u16,
    /// Names without a letter: kept and shown, of no effect.
    others: BTreeSet<String>,
}

impl Rights {
    /// Each of [`KNOWN`] and no other name: what `all` stands for, and what an owner has of whom nothing is said.
    pub fn all() -> Rights {
        Rights {
            letters: (1 << KNOWN.len()) - 1,
            others: BTreeSet::new(),
        }
    }

    /// Not the same as nothing said, for which defaults count. Shown as `none`.
    pub fn none() -> Rights {
        Rights::default()
    }

    /// Letters only, as tests and configs write them. The first that is none is the error.
    pub fn of_letters(letters: &str) -> Result<Rights, char> {
        let mut rights = Rights::none();
        for letter in letters.chars() {
            rights.letters |= bit(letter).ok_or(letter)?;
        }
        Ok(rights)
    }

    /// Adds a right by its full name, whatever it is.
    pub fn add_name(&mut self, name: &str) {
        match KNOWN.iter().find(|(_, known)| *known == name) {
            Some((letter, _)) => self.letters |= bit(*letter).unwrap_or(0),
            None => drop(self.others.insert(name.to_owned())),
        }
    }

    /// `letter`: one of [`KNOWN`]. False for any other, and for rights that have names only.
    pub fn has(&self, letter: char) -> bool {
        bit(letter).is_some_and(|bit| self.letters & bit != 0)
    }

    /// `l`: the mailbox may be seen. Without it a refused delivery goes by `on_missing`, not by `on_denied`.
    pub fn lookup(&self) -> bool {
        self.has('l')
    }

    /// `i`: messages may be added, by APPEND and COPY (RFC 4314 section 2.1). `acl.delivery_right`: whether a delivery needs it.
    pub fn insert(&self) -> bool {
        self.has('i')
    }

    /// `p`: mail may be sent to it; IMAP does not ask for it (RFC 4314 section 2.1). `acl.delivery_right`: whether a delivery needs it.
    pub fn post(&self) -> bool {
        self.has('p')
    }

    /// `k`: mailboxes may be made below it (RFC 4314 section 2.1). A delivery looks for it in what a new mailbox would inherit.
    pub fn create(&self) -> bool {
        self.has('k')
    }

    /// Neither a letter nor a name without one.
    pub fn is_empty(&self) -> bool {
        self.letters == 0 && self.others.is_empty()
    }

    /// Those of `more` too, letters and other names.
    pub fn add(&mut self, more: &Rights) {
        self.letters |= more.letters;
        self.others.extend(more.others.iter().cloned());
    }

    /// These but those of `less`; other names go where they are spelt the same.
    pub fn without(&self, less: &Rights) -> Rights {
        Rights {
            letters: self.letters & !less.letters,
            others: self.others.difference(&less.others).cloned().collect(),
        }
    }

    /// Full names, the known ones in their order first.
    pub fn names(&self) -> Vec<&str> {
        let known = KNOWN.iter().filter(|(letter, _)| self.has(*letter));
        let known = known.map(|(_, name)| *name);
        known
            .chain(self.others.iter().map(String::as_str))
            .collect()
    }

    /// As Dovecot writes them into a file: letters by the order of their names, then ` :` and the other names.
    pub fn stored(&self) -> String {
        let mut by_name = KNOWN;
        by_name.sort_by_key(|(_, name)| *name);
        let letters = by_name.iter().map(|(letter, _)| *letter);
        let mut text: String = letters.filter(|letter| self.has(*letter)).collect();
        if !self.others.is_empty() {
            let others: Vec<&str> = self.others.iter().map(String::as_str).collect();
            text.push_str(&format!(" :{}", others.join(" ")));
        }
        text
    }
}

fn bit(letter: char) -> Option<u16> {
    let at = KNOWN.iter().position(|(known, _)| *known == letter)?;
    Some(1 << at)
}

impl fmt::Display for Rights {
    /// `lrwsti`, `lr +custom`, `none`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let letters: String = KNOWN
            .iter()
            .map(|(letter, _)| *letter)
            .filter(|it| self.has(*it))
            .collect();
        f.write_str(&letters)?;
        self.others
            .iter()
            .try_for_each(|name| write!(f, " +{name}"))
    }
}
