//! One line of a `dovecot-acl` file: an identifier, and rights that it gives or takes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::rights::Rights;

/// Whom an entry is about. The order is that of increasing precedence, and the order in which Dovecot writes them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Identifier {
    Anyone,
    /// Everybody with a name: for a delivery, everybody.
    Authenticated,
    Group(String),
    Owner,
    User(String),
    /// Beats what a user is given by name.
    GroupOverride(String),
}

/// The entries of one identifier, merged. A list that is there and empty is not the same as none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Of a global file: it comes after all others and replaces what they came to.
    pub is_global: bool,
    pub identifier: Identifier,
    pub positive: Option<Rights>,
    pub negative: Option<Rights>,
    /// Where it was said: `dovecot-acl:3`, for the trace.
    pub from: Vec<String>,
}

/// One line that says something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub identifier: Identifier,
    pub is_negative: bool,
    pub rights: Rights,
}

impl Identifier {
    /// `user=bob`, `group-override=ops`, `anyone`.
    pub fn parse(text: &str) -> Option<Identifier> {
        Some(match text {
            "anyone" | "anonymous" => Identifier::Anyone,
            "authenticated" => Identifier::Authenticated,
            "owner" => Identifier::Owner,
            _ => match text.split_once('=')? {
                ("user", name) => Identifier::User(name.into()),
                ("group", name) => Identifier::Group(name.into()),
                ("group-override", name) => Identifier::GroupOverride(name.into()),
                _ => return None,
            },
        })
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identifier::Anyone => f.write_str("anyone"),
            Identifier::Authenticated => f.write_str("authenticated"),
            Identifier::Owner => f.write_str("owner"),
            Identifier::User(name) => write!(f, "user={name}"),
            Identifier::Group(name) => write!(f, "group={name}"),
            Identifier::GroupOverride(name) => write!(f, "group-override={name}"),
        }
    }
}

impl Entry {
    /// `from`: where it is written, for `postroom acl debug`.
    pub fn of_line(line: Line, from: String, is_global: bool) -> Entry {
        let (positive, negative) = match line.is_negative {
            true => (None, Some(line.rights)),
            false => (Some(line.rights), None),
        };
        Entry {
            is_global,
            identifier: line.identifier,
            positive,
            negative,
            from: vec![from],
        }
    }

    /// What entries are sorted by, and what there is one entry for.
    pub fn key(&self) -> (bool, &Identifier) {
        (self.is_global, &self.identifier)
    }

    /// Takes over what another one of the same identifier says: then both lists are explicit.
    pub fn merge(&mut self, other: &mut Entry) {
        let lists = [
            (&mut self.positive, &other.positive),
            (&mut self.negative, &other.negative),
        ];
        for (own, more) in lists {
            own.get_or_insert_default()
                .add(more.as_ref().unwrap_or(&Rights::none()));
        }
        self.from.append(&mut other.from);
    }
}

impl Line {
    /// An entry of the configuration: `identifier = "rights"`, where a sign before the rights takes them.
    pub fn configured(identifier: &str, rights: &str) -> Result<Line, String> {
        let (is_negative, rights) = match rights.strip_prefix('-') {
            Some(rights) => (true, rights),
            None => (false, rights),
        };
        let unknown = || format!("{identifier:?} is no identifier");
        Ok(Line {
            identifier: Identifier::parse(identifier).ok_or_else(unknown)?,
            is_negative,
            rights: parse_rights(rights)?,
        })
    }

    /// `None`: an empty line or a comment. An error says what Dovecot would not take either.
    pub fn parse(line: &str) -> Result<Option<Line>, String> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        let (identifier, rights) = match line.strip_prefix('"') {
            Some(rest) => quoted(rest)?,
            None => {
                let (identifier, rights) = line.split_once(' ').unwrap_or((line, ""));
                (identifier.to_owned(), rights)
            }
        };
        let (is_negative, name) = match identifier.strip_prefix('-') {
            Some(name) => (true, name),
            None => (false, identifier.as_str()),
        };
        let unknown = || format!("{identifier:?} is no identifier");
        Ok(Some(Line {
            identifier: Identifier::parse(name).ok_or_else(unknown)?,
            is_negative,
            rights: parse_rights(rights)?,
        }))
    }
}

/// Up to the closing quote, and what follows the blank behind it.
fn quoted(rest: &str) -> Result<(String, &str), String> {
    let mut identifier = String::new();
    let mut chars = rest.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => identifier.extend(chars.next().map(|(_, c)| c)),
            '"' => {
                let rest = &rest[at + 1..];
                return match rest.strip_prefix(' ') {
                    Some(rights) => Ok((identifier, rights)),
                    None if rest.is_empty() => Ok((identifier, "")),
                    None => Err("a blank must follow the closing quote".into()),
                };
            }
            c => identifier.push(c),
        }
    }
    Err("the quoted identifier does not end".into())
}

/// `lrw`, `lr :name other,third`.
fn parse_rights(text: &str) -> Result<Rights, String> {
    let blank = |c: char| c == ' ' || c == '\t';
    let text = text.trim_matches(blank);
    let end = text.find(|c| blank(c) || c == ':').unwrap_or(text.len());
    let (letters, rest) = text.split_at(end);
    let mut rights = Rights::of_letters(letters)
        .map_err(|letter| format!("{letter:?} is not a right letter"))?;
    let rest = rest.trim_start_matches(blank);
    if rest.is_empty() {
        return Ok(rights);
    }
    let names = rest
        .strip_prefix(':')
        .ok_or_else(|| format!("names of rights begin with ':', {rest:?} does not"))?;
    let names = names.split(|c| blank(c) || c == ',');
    // One with a control character could not be written again, and no writer makes one.
    names
        .filter(|name| !name.is_empty() && !name.contains(char::is_control))
        .for_each(|name| rights.add_name(name));
    Ok(rights)
}

impl Entry {
    /// The lines that stand for it in a file.
    pub fn stored(&self) -> String {
        let line = |sign: &str, rights: &Rights| {
            let identifier = format!("{sign}{}", self.identifier);
            let identifier = match identifier.contains(' ') {
                true => format!("\"{}\"", escaped(&identifier)),
                false => identifier,
            };
            format!("{identifier} {}\n", rights.stored())
        };
        let positive = self.positive.iter().map(|rights| line("", rights));
        let negative = self.negative.iter().map(|rights| line("-", rights));
        positive.chain(negative).collect()
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if matches!(c, '"' | '\'' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
