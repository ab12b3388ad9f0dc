//! How much a user's mailboxes may hold, in the words of Dovecot 2.3 and 2.4, and whether one more message fits.
//!
//! Pure: what is used comes from `maildirsize`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::acl::sources::matches;
use super::name::spelled_back;

/// What may be over the limit by a little, so that one large message does not bounce from a mailbox with some room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grace {
    Bytes(u64),
    /// Of the limit.
    Percent(u64),
}

/// The limits of one user. 0: no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes (`quota_storage_size`).
    pub storage: u64,
    /// Of `storage` (`quota_storage_percentage`).
    pub percentage: u64,
    /// Bytes beside them (`quota_storage_extra`).
    pub extra: u64,
    /// `quota_storage_grace`
    pub grace: Grace,
    /// Messages (`quota_message_count`).
    pub messages: u64,
    /// 2.3's rules for some mailboxes.
    pub rules: Vec<Rule>,
}

/// `Trash:storage=+100M`, `Junk*:ignore`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// A full name, in which `*` and `?` stand for any.
    pub mailbox: String,
    /// Bytes beside the limit.
    pub extra: u64,
    /// The same, of `storage`.
    pub percent: u64,
    pub ignore: bool,
    /// The limit that nobody understands: whether there is room in these mailboxes cannot be told.
    pub unclear: Option<String>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            storage: 0,
            percentage: 100,
            extra: 0,
            grace: Grace::Bytes(10 << 20),
            messages: 0,
            rules: Vec::new(),
        }
    }
}

/// What is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: i64,
    pub messages: i64,
}

/// The quota that a mailbox counts for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Whose it is.
    pub of: String,
    pub limits: Limits,
    /// Bytes that this mailbox may hold beside.
    pub extra: u64,
    /// Holds `maildirsize`.
    pub directory: PathBuf,
    /// The root of the mailboxes there, whose mode and group the file gets.
    pub root: PathBuf,
    /// All directories that hold messages which count, one mailbox each; asked for when the file is made anew.
    pub trees: Vec<Tree>,
}

/// A root with mailboxes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    pub paths: super::path::Paths,
    pub layout: super::location::Layout,
    /// Mailboxes, by their storage names, that do not count.
    pub ignored: Vec<String>,
    /// How its user names them; none where no rule is about names.
    pub names: Option<Names>,
}

/// What makes full names of storage names, and rules about these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Before each of them, but for the INBOX where this is the user's own.
    pub prefix: String,
    pub has_inbox: bool,
    pub separator: char,
    /// `mailbox_list_utf8`, `mailbox_list_storage_escape_char`
    pub utf8: bool,
    pub escape: Option<char>,
    /// Full names with `*` and `?`, and whether what is meant does not count. The first that fits counts.
    pub rules: Vec<(String, bool)>,
}

impl Tree {
    /// Whether the mailbox of this storage name counts.
    pub fn counts(&self, name: &str) -> bool {
        let is_ignored = |names: &Names| {
            let full = names.full_name(name, self.layout.separator());
            let rule = names.rules.iter().find(|(mask, _)| matches(mask, &full));
            rule.is_some_and(|(_, ignore)| *ignore)
        };
        !self.ignored.iter().any(|it| it == name) && !self.names.as_ref().is_some_and(is_ignored)
    }
}

impl Names {
    fn full_name(&self, stored: &str, separator: char) -> String {
        if self.has_inbox && stored == "INBOX" {
            return stored.to_owned();
        }
        let levels = stored.split(separator);
        let levels: Vec<String> = levels
            .map(|level| spelled_back(level, self.utf8, self.escape))
            .collect();
        format!(
            "{}{}",
            self.prefix,
            levels.join(&self.separator.to_string())
        )
    }
}

impl Rule {
    /// One of its limits. None: it is not understood.
    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match (key, value.strip_prefix('+')) {
            ("storage", Some(more)) if more.ends_with('%') => {
                self.percent = more.trim_end_matches('%').parse().ok()?;
            }
            // Without a unit: kilobytes.
            ("storage", Some(more)) => self.extra = size(more, 1 << 10)?,
            ("bytes", Some(more)) => self.extra = size(more, 1)?,
            ("messages" | "noenforcing", _) => {}
            ("ignore", _) => self.ignore = true,
            _ => return None,
        }
        Some(())
    }
}

impl Limits {
    /// Takes a field of a userdb; false: it is not about quotas. An error: its value makes no sense.
    pub fn set(&mut self, field: &str, value: &str) -> Result<bool, String> {
        let bad = || format!("{field} is {value:?}");
        // `quota/NAME/storage_size`: a quota by its name.
        let named = field
            .strip_prefix("quota/")
            .and_then(|it| it.rsplit('/').next());
        let short = named.map(|it| it.strip_prefix("quota_").unwrap_or(it));
        match short.or_else(|| field.strip_prefix("quota_")) {
            Some("storage_size") => self.storage = size(value, 1).ok_or_else(bad)?,
            Some("storage_percentage") => self.percentage = value.parse().map_err(|_| bad())?,
            Some("storage_extra") => self.extra = size(value, 1).ok_or_else(bad)?,
            Some("storage_grace" | "grace") => self.grace = grace(value).ok_or_else(bad)?,
            Some("message_count") => self.messages = count(value).ok_or_else(bad)?,
            Some(rule) if rule.trim_end_matches(|c: char| c.is_ascii_digit()) == "rule" => {
                self.set_rule(value).ok_or_else(bad)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `MAILBOX:LIMIT[:LIMIT…]`, 2.3's `quota_rule`. `*` stands for all.
    fn set_rule(&mut self, text: &str) -> Option<()> {
        let (mailbox, limits) = text.split_once(':')?;
        let is_of_all = ["*", "?"].contains(&mailbox);
        let mut rule = Rule {
            mailbox: mailbox.to_owned(),
            ..Rule::default()
        };
        for limit in limits.split(':') {
            let (key, value) = limit.split_once('=').unwrap_or((limit, ""));
            if !is_of_all {
                if rule.set(key, value).is_none() {
                    rule.unclear = Some(text.to_owned());
                }
                continue;
            }
            match key {
                // Without a unit: kilobytes.
                "storage" => self.storage = size(value, 1 << 10)?,
                "bytes" => self.storage = size(value, 1)?,
                "messages" => self.messages = count(value)?,
                "ignore" | "noenforcing" => {}
                _ => return None,
            }
        }
        if !is_of_all {
            self.rules.push(rule);
        }
        Some(())
    }

    /// What a mailbox of this full name may hold beside, in bytes. None: it does not count. An error: nobody can tell.
    pub fn beside(&self, mailbox: &str) -> Result<Option<u64>, String> {
        let mut rules = self.rules.iter();
        let Some(rule) = rules.find(|it| matches(&it.mailbox, mailbox)) else {
            return Ok(Some(0));
        };
        if let Some(unclear) = &rule.unclear {
            return Err(format!("quota_rule is {unclear:?}"));
        }
        let share = (self.storage / 100).saturating_mul(rule.percent);
        let share = share.saturating_add((self.storage % 100).saturating_mul(rule.percent) / 100);
        Ok((!rule.ignore).then(|| rule.extra.saturating_add(share)))
    }

    /// Neither bytes nor messages are limited: nothing is counted. Rules of single mailboxes limit nothing.
    pub fn are_none(&self) -> bool {
        self.storage_limit() == 0 && self.messages == 0
    }

    /// Bytes, 0: none.
    fn storage_limit(&self) -> u64 {
        match self.storage {
            0 => 0,
            storage => (storage / 100)
                .saturating_mul(self.percentage)
                .saturating_add(storage % 100 * self.percentage / 100)
                .saturating_add(self.extra),
        }
    }

    /// The first line of `maildirsize`: `1000000S,50C`.
    pub fn line(&self) -> String {
        match (self.storage_limit(), self.messages) {
            (0, 0) => "0S".into(),
            (bytes, 0) => format!("{bytes}S"),
            (0, messages) => format!("{messages}C"),
            (bytes, messages) => format!("{bytes}S,{messages}C"),
        }
    }

    /// Whether so much is this share of a limit or more.
    pub fn is_near(&self, used: Usage, percent: u64) -> bool {
        let near = |used: i64, limit: u64| {
            let used = u128::from(used.max(0).unsigned_abs()) * 100;
            limit > 0 && used >= u128::from(limit) * u128::from(percent)
        };
        near(used.bytes, self.storage_limit()) || near(used.messages, self.messages)
    }

    /// Why a message of so many bytes does not fit; 0: any message. `extra`: bytes that its mailbox may hold beside.
    pub fn refuse(&self, used: Usage, size: u64, extra: u64) -> Option<String> {
        let (bytes, messages) = (used.bytes.max(0) as u64, used.messages.max(0) as u64);
        if self.messages > 0 && messages >= self.messages {
            return Some(format!(
                "{messages} of {} messages are there",
                self.messages
            ));
        }
        let limit = match self.storage_limit() {
            0 => return None,
            limit => limit.saturating_add(extra),
        };
        let grace = match self.grace {
            Grace::Bytes(bytes) => bytes,
            Grace::Percent(percent) => limit / 100 * percent,
        };
        // Nothing is forgiven to a mailbox that is full already.
        let fits = bytes < limit && bytes.saturating_add(size) <= limit.saturating_add(grace);
        (!fits).then(|| format!("{bytes} of {limit} bytes are used"))
    }
}

/// `10%` or a size.
pub fn grace(text: &str) -> Option<Grace> {
    match text.trim_end_matches('%') {
        percent if percent.len() < text.len() => percent.parse().ok().map(Grace::Percent),
        text => size(text, 1).map(Grace::Bytes),
    }
}

/// `1G`, `10 MB`, `unlimited`; a bare number in this unit.
pub fn size(text: &str, unit: u64) -> Option<u64> {
    if text.eq_ignore_ascii_case("unlimited") {
        return Some(0);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => unit,
        "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1 << 40,
        _ => return None,
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(factor)
}

fn count(text: &str) -> Option<u64> {
    match text.eq_ignore_ascii_case("unlimited") {
        true => Some(0),
        false => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn limits(fields: &str) -> Result<Limits, String> {
        let mut limits = Limits::default();
        for field in fields.split_terminator(' ') {
            let (key, value) = field.split_once('=').unwrap();
            assert!(limits.set(key, value)?, "{field}");
        }
        Ok(limits)
    }

    #[test]
    fn what_userdbs_say() {
        for (fields, want) in [
            ("", "0S"),
            ("quota_storage_size=1G", "1073741824S"),
            ("quota_storage_size=1000", "1000S"),
            (
                "quota_storage_size=1000 quota_storage_percentage=90",
                "900S",
            ),
            ("quota_storage_size=1000 quota_storage_extra=1k", "2024S"),
            ("quota_storage_size=unlimited quota_message_count=7", "7C"),
            (
                "quota/User/storage_size=5k quota/User/quota_message_count=7",
                "5120S,7C",
            ),
            ("quota_rule=*:storage=1", "1024S"),
            ("quota_rule=*:storage=1M:messages=10", "1048576S,10C"),
            (
                "quota_rule=*:bytes=1000 quota_rule2=Trash:storage=+100M",
                "1000S",
            ),
            ("quota_rule=?:bytes=1000 quota_rule2=Junk:ignore", "1000S"),
            ("quota_rule=*:storage=0", "0S"),
        ] {
            assert_eq!(limits(fields).unwrap().line(), want, "{fields}");
        }
        for fields in [
            "quota_storage_size=much",
            "quota_storage_size=-1",
            "quota_storage_size=99999999999T",
            "quota_rule=*",
            "quota_rule=*:storage",
            "quota_grace=x%",
        ] {
            assert!(limits(fields).is_err(), "{fields}");
        }
        let mut others = Limits::default();
        for field in ["quota", "quota_over_flag", "quotas", "uid", "quota_warning"] {
            assert_eq!(others.set(field, "x"), Ok(false), "{field}");
        }
    }

    #[test]
    fn what_mailboxes_may_hold_beside() {
        for (rules, mailbox, want) in [
            ("", "Trash", Ok(Some(0))),
            ("quota_rule2=Trash:storage=+1", "Trash", Ok(Some(1024))),
            ("quota_rule2=Trash:storage=+1", "INBOX.Trash", Ok(Some(0))),
            ("quota_rule2=Trash:bytes=+7", "Trash", Ok(Some(7))),
            ("quota_rule2=Trash:storage=+10%", "Trash", Ok(Some(105))),
            ("quota_rule2=Trash:storage=+10%%", "Trash", Ok(Some(105))),
            ("quota_rule2=Trash*:ignore", "Trash/old", Ok(None)),
            ("quota_rule2=Trash*:ignore", "Old Trash", Ok(Some(0))),
            (
                "quota_rule2=T*:bytes=+7 quota_rule3=Trash:ignore",
                "Trash",
                Ok(Some(7)),
            ),
            ("quota_rule2=Trash:storage=10", "INBOX", Ok(Some(0))),
            (
                "quota_rule2=Trash:storage=10",
                "Trash",
                Err("quota_rule is \"Trash:storage=10\"".to_owned()),
            ),
        ] {
            let fields = format!("quota_rule=*:bytes=1050 {rules}");
            let limits = limits(fields.trim_end()).unwrap();
            assert_eq!(limits.line(), "1050S", "{rules}");
            assert_eq!(limits.beside(mailbox), want, "{rules}: {mailbox}");
        }
    }

    #[test]
    fn what_counts() {
        let tree = |prefix: &str, rules: &[(&str, bool)]| Tree {
            paths: crate::mailbox::path::Paths::for_tests(Path::new("/m"), Path::new("/m")),
            layout: crate::mailbox::location::Layout::MaildirPlusPlus,
            ignored: vec!["Junk".into()],
            names: Some(Names {
                prefix: prefix.into(),
                has_inbox: true,
                separator: '/',
                utf8: false,
                escape: Some('%'),
                rules: rules
                    .iter()
                    .map(|(mask, ignore)| ((*mask).into(), *ignore))
                    .collect(),
            }),
        };
        for (prefix, rules, name, want) in [
            ("", &[][..], "Spam", true),
            ("", &[], "Junk", false),
            ("", &[("Spam", true)], "Spam", false),
            ("INBOX/", &[("Spam", true)], "Spam", true),
            ("INBOX/", &[("INBOX/Spam", true)], "Spam", false),
            ("INBOX/", &[("*Spam", true)], "Spam", false),
            ("INBOX/", &[("INBOX*Spam", true)], "Old.Spam", false),
            ("INBOX/", &[("INBOX", true)], "INBOX", false),
            ("INBOX/", &[("INBOX/*", true)], "INBOX", true),
            ("", &[("Old/Mail", true)], "Old.Mail", false),
            ("", &[("Old/Mail", true)], "Old%2eMail", true),
            ("", &[("Old.Mail", true)], "Old%2eMail", false),
            ("", &[("Спам*", true)], "&BCEEPwQwBDwERwQ4BDo-", false),
            ("", &[("?пам*", true)], "&BCEEPwQwBDwERwQ4BDo-", false),
            ("", &[("Хлам*", true)], "&BCEEPwQwBDwERwQ4BDo-", true),
            ("", &[("S*", false), ("Spam", true)], "Spam", true),
            ("", &[("Spam", true), ("S*", false)], "Spam", false),
        ] {
            let counts = tree(prefix, rules).counts(name);
            assert_eq!(counts, want, "{prefix} {rules:?} {name}");
        }
    }

    #[test]
    fn what_fits() {
        let thousand = "quota_storage_size=1000 quota_storage_grace=0";
        let graced = "quota_storage_size=1000 quota_storage_grace=100";
        let tenth = "quota_rule=*:bytes=1000 quota_grace=10%";
        for (fields, bytes, messages, size, extra, fits) in [
            (thousand, 0, 0, 1000, 0, true),
            (thousand, 0, 0, 1001, 0, false),
            (thousand, 999, 0, 0, 0, true),
            (thousand, 1000, 0, 0, 0, false),
            (thousand, 1000, 0, 0, 1, true),
            (thousand, 1000, 0, 500, 500, true),
            (thousand, -5, 0, 1000, 0, true),
            (graced, 999, 0, 101, 0, true),
            (graced, 999, 0, 102, 0, false),
            (graced, 1000, 0, 1, 0, false),
            (tenth, 999, 0, 101, 0, true),
            (tenth, 999, 0, 102, 0, false),
            ("quota_message_count=2", 1 << 40, 1, 1 << 40, 0, true),
            ("quota_message_count=2", 0, 2, 1, 0, false),
            ("", i64::MAX, i64::MAX, u64::MAX, 0, true),
        ] {
            let used = Usage { bytes, messages };
            let found = limits(fields).unwrap().refuse(used, size, extra);
            assert_eq!(
                found.is_none(),
                fits,
                "{fields} {used:?} {size} {extra}: {found:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_field_panics(field in "quota[_/][a-zA-Z_0-9/]{0,20}", value in "\\PC{0,30}") {
            let mut limits = Limits::default();
            let _ = limits.set(&field, &value);
            let _ = limits.line();
            let _ = limits.refuse(Usage { bytes: i64::MAX, messages: i64::MIN }, u64::MAX, u64::MAX);
        }
    }
}
