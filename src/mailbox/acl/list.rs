//! The entries of a mailbox, from all their sources, and what they give to one user.

use std::fmt;

use super::entry::{Entry, Identifier, Line};
use super::rights::Rights;
use super::{AclError, Identity};

/// Entries in the order in which they count, one for each identifier.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acl {
    pub entries: Vec<Entry>,
}

/// What an [`Acl`] gives to one user, and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    pub rights: Rights,
    /// The entries that matched, in the order in which they were applied.
    pub trace: Vec<Step>,
}

/// One entry, applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `dovecot-acl:3 user=bob lrp`
    pub entry: String,
    /// What the user has from there on.
    pub left: Rights,
}

impl Acl {
    /// The text of a file; `shown` is its name in the trace.
    pub fn parse(text: &[u8], shown: &str) -> Result<Acl, AclError> {
        let mut acl = Acl::default();
        acl.add_file(text, shown)?;
        Ok(acl)
    }

    /// Adds the text of a mailbox's file. One bad line spoils all of it, as in Dovecot: an entry that cannot be read may
    /// have been one that takes a right.
    pub fn add_file(&mut self, text: &[u8], shown: &str) -> Result<(), AclError> {
        let mut lines = Vec::new();
        for (number, line) in (1..).zip(text.split(|&byte| byte == b'\n')) {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            // Names are bytes to Dovecot; what is not UTF-8 is nobody's name here.
            let line = String::from_utf8_lossy(line);
            let parsed = Line::parse(&line).map_err(|why| AclError::of_line(number, why))?;
            lines.extend(parsed.map(|parsed| (parsed, format!("{shown}:{number}"))));
        }
        self.add(lines, false);
        Ok(())
    }

    /// Adds lines, each with the place it is from; those about one identifier are merged.
    pub fn add(&mut self, lines: impl IntoIterator<Item = (Line, String)>, is_global: bool) {
        let lines = lines.into_iter();
        self.entries
            .extend(lines.map(|(line, from)| Entry::of_line(line, from, is_global)));
        // Whoever owns the file decides how long it is.
        self.entries
            .sort_by(|one, other| one.key().cmp(&other.key()));
        self.entries.dedup_by(|later, entry| {
            let is_same = later.key() == entry.key();
            if is_same {
                entry.merge(later);
            }
            is_same
        });
    }

    /// The entry of an identifier in the mailbox's own file, made where there is none.
    pub fn entry(&mut self, identifier: Identifier) -> &mut Entry {
        let key = (false, &identifier);
        let found = self.entries.binary_search_by(|entry| entry.key().cmp(&key));
        let at = found.unwrap_or_else(|at| {
            let entry = Entry {
                is_global: false,
                identifier,
                positive: None,
                negative: None,
                from: Vec::new(),
            };
            self.entries.insert(at, entry);
            at
        });
        &mut self.entries[at]
    }

    /// What `identity` has. `None`: no entry is about him, and he is not the owner: the namespace's default decides.
    ///
    /// A more specific entry replaces what a less specific one gave; groups add up among themselves; what one level takes
    /// away stays away unless a later level says itself what it takes. The owner has everything unless an entry for the
    /// owner, for his name or for a group-override says otherwise.
    pub fn effective(&self, identity: &Identity<'_>) -> Option<Effective> {
        let mut positive = identity.is_owner.then(Rights::all);
        let mut negative = Rights::none();
        let mut trace = Vec::new();
        let mut last: Option<&Entry> = None;
        for entry in &self.entries {
            if !identity.matches(entry) {
                continue;
            }
            let adds = last.is_some_and(|last| is_same_kind(last, entry));
            if entry.is_global && last.is_none_or(|last| !last.is_global) {
                negative = Rights::none();
            }
            let given = positive.get_or_insert_default();
            match &entry.positive {
                Some(rights) if adds => given.add(rights),
                Some(rights) => *given = rights.clone(),
                None => {}
            }
            match &entry.negative {
                Some(rights) if adds => negative.add(rights),
                Some(rights) => negative = rights.clone(),
                None => {}
            }
            trace.push(Step {
                entry: entry.to_string(),
                left: given.without(&negative),
            });
            last = Some(entry);
        }
        let rights = positive?.without(&negative);
        Some(Effective { rights, trace })
    }

    /// The whole file, as Dovecot writes it.
    pub fn stored(&self) -> String {
        let own = self.entries.iter().filter(|entry| !entry.is_global);
        own.map(Entry::stored).collect()
    }
}

fn is_same_kind(one: &Entry, other: &Entry) -> bool {
    let kind = |entry: &Entry| std::mem::discriminant(&entry.identifier);
    one.is_global == other.is_global && kind(one) == kind(other)
}

impl fmt::Display for Entry {
    /// `dovecot-acl:3 "user=bob lp, -user=bob r"`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.stored();
        let lines: Vec<&str> = lines.lines().map(str::trim_end).collect();
        write!(f, "{} {:?}", self.from.join(","), lines.join(", "))
    }
}
