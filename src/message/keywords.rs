//! Keywords of IMAP: flags that people and programs name, like `$Junk` (RFC 3501 section 2.3.2).

use std::fmt;

use serde::{Deserialize, Serialize};

/// What no atom of IMAP holds, beside blanks and control characters.
const SPECIAL: [char; 8] = ['(', ')', '{', '%', '*', '"', '\\', ']'];
/// Dovecot's `mail_max_keyword_length`: it makes no longer ones, bytes.
const MAX_LENGTH: usize = 50;

/// A set of keywords in the order in which they came. Case does not count, the first spelling stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Keywords(Vec<String>);

/// From another process, whose word is as good as a client's.
impl TryFrom<Vec<String>> for Keywords {
    type Error = String;

    fn try_from(names: Vec<String>) -> Result<Keywords, String> {
        names.iter().try_fold(Keywords::default(), |all, name| {
            let one = Keywords::parse(name).ok_or_else(|| format!("{name:?} is no keyword"))?;
            Ok(all.with(&one))
        })
    }
}

impl Keywords {
    /// `$Junk`. None: no keyword, a system flag for one.
    pub fn parse(name: &str) -> Option<Keywords> {
        let is_atom = name
            .chars()
            .all(|c| c.is_ascii_graphic() && !SPECIAL.contains(&c));
        let fits = (1..=MAX_LENGTH).contains(&name.len());
        (is_atom && fits).then(|| Keywords(vec![name.to_owned()]))
    }

    /// System flags are not among them. A message without either is stored in `new/`.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the order in which they came, each in its first spelling.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// In any case of its ASCII letters.
    pub fn contains(&self, name: &str) -> bool {
        self.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// These, and behind them those of `more` that are not here in any case.
    pub fn with(mut self, more: &Keywords) -> Keywords {
        for name in more.iter() {
            if !self.contains(name) {
                self.0.push(name.to_owned());
            }
        }
        self
    }

    /// Those for which `which` is true.
    pub fn only(mut self, which: impl Fn(&str) -> bool) -> Keywords {
        self.0.retain(|name| which(name));
        self
    }
}

impl fmt::Display for Keywords {
    /// `$Junk Work`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keywords(names: &[&str]) -> Keywords {
        names.iter().fold(Keywords::default(), |all, name| {
            all.with(&Keywords::parse(name).unwrap())
        })
    }

    #[test]
    fn what_is_a_keyword() {
        let (longest, too_long) = ("x".repeat(50), "x".repeat(51));
        for (name, is_one) in [
            ("$Junk", true),
            ("Work", true),
            ("a[b}c~+-.,:/'!", true),
            (&longest, true),
            (&too_long, false),
            ("", false),
            ("\\Seen", false),
            ("\\Mine", false),
            ("two words", false),
            ("tab\t", false),
            ("line\n", false),
            ("nul\0", false),
            ("del\u{7f}", false),
            ("grün", false),
            ("a(", false),
            ("a)", false),
            ("a{", false),
            ("a%", false),
            ("a*", false),
            ("a\"", false),
            ("a]", false),
        ] {
            assert_eq!(Keywords::parse(name).is_some(), is_one, "{name:?}");
        }
    }

    #[test]
    fn case_does_not_count_and_the_first_spelling_stays() {
        for (one, other, with) in [
            (&[][..], &[][..], ""),
            (&["b", "A"], &["B", "c"], "b A c"),
            (&["$Junk", "$JUNK"], &["$junk"], "$Junk"),
            (&["a"], &[], "a"),
            (&[], &["a"], "a"),
        ] {
            let with_other = keywords(one).with(&keywords(other));
            assert_eq!(with_other.to_string(), with);
            assert_eq!(with_other.is_empty(), with.is_empty());
        }
    }

    proptest! {
        #[test]
        fn a_keyword_can_stand_on_a_line(name in any::<String>()) {
            if let Some(keywords) = Keywords::parse(&name) {
                let line = keywords.to_string();
                prop_assert_eq!(line.split_whitespace().collect::<Vec<_>>(), [name]);
            }
        }
    }
}
