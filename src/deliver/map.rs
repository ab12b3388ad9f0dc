//! The address map: mailboxes with addresses of their own, from the configuration, a file or a database.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::settings::Subject;
use serde::{Deserialize, Serialize};

use crate::database::{Database, Row};
use crate::fault::{Code, Fault};
use crate::mailbox::namespace::OnMissing;
use crate::text::line_file::{self, LineFile};

/// What an address leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The mailbox by the full name that `user` has for it.
    pub mailbox: String,
    /// Whose namespaces, uid and groups deliver. His INBOX is never the fallback.
    pub user: String,
    /// Whose rights count; none: as everywhere.
    pub subject: Option<Subject>,
    pub on_missing: OnMissing,
    /// Where it is written: `address 3`.
    pub from: String,
}

/// All rules: those of the configuration, then each table.
#[derive(Debug, Default)]
pub struct AddressMap {
    /// By the address in small letters: `sales@example.org`, `*@example.org`.
    pub rules: HashMap<String, Rule>,
    pub tables: Vec<Table>,
}

/// More rules, asked for one at a time.
#[derive(Debug)]
pub enum Table {
    File(AddressFile),
    /// Answers mailbox, user, subject and on_missing for `$1`, the address; the last two may be NULL.
    Database {
        database: Database,
        query: String,
    },
}

/// Lines of address, mailbox, user, subject and on_missing, with tabs between them; the last two may be missing.
#[derive(Debug)]
pub struct AddressFile(LineFile<Lines>);

/// By address: the columns behind it, and the line's number.
type Lines = HashMap<String, (Vec<String>, usize)>;

/// The query where the config has none.
pub const QUERY: &str =
    "SELECT mailbox, user_name, subject, on_missing FROM addresses WHERE address = $1";

impl AddressMap {
    /// Neither rules in the configuration nor a table: no address needs to be looked up.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.tables.is_empty()
    }

    /// Why some of the rules cannot be had now.
    pub fn unavailable(&self) -> Vec<String> {
        self.tables.iter().filter_map(Table::unavailable).collect()
    }

    /// The rule of `address`, in small letters. A table that cannot be asked is "cannot tell".
    pub fn rule(&self, address: &str) -> Result<Option<Rule>, Fault> {
        if let Some(rule) = self.rules.get(address) {
            return Ok(Some(rule.clone()));
        }
        for table in &self.tables {
            let found = table.rule(address).map_err(|why| {
                Fault::new(
                    Code::CannotTell,
                    format!("look up the address {address:?}"),
                    why,
                )
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

impl Table {
    /// Why it cannot answer, whatever is asked for.
    fn unavailable(&self) -> Option<String> {
        match self {
            Table::File(file) => match file.lines() {
                Ok(lines) => lines
                    .unended()
                    .map(|why| format!("{}: {why}", file.0.path().display())),
                Err(why) => Some(why),
            },
            Table::Database { .. } => self.rule("").err(),
        }
    }

    fn rule(&self, address: &str) -> Result<Option<Rule>, String> {
        match self {
            Table::File(file) => {
                let lines = file.lines()?;
                let path = file.0.path().display();
                let Some((columns, number)) = lines.content.get(address) else {
                    // The next one would be asked, or the address be a user's: not while this one may be about to be written.
                    let lacks = lines.may_lack().map(|why| format!("{path}: {why}"));
                    return lacks.map_or(Ok(None), Err);
                };
                let columns = columns.iter().cloned().map(Some);
                rule(columns.collect(), format!("{path}:{number}")).map(Some)
            }
            Table::Database { database, query } => {
                let rows = database
                    .rows(query, &[address])
                    .map_err(|error| error.to_string())?;
                let from = format!("{database}: {address}");
                match <[Row; 1]>::try_from(rows.rows) {
                    Ok([row]) => rule(row, from).map(Some),
                    Err(none) if none.is_empty() => Ok(None),
                    Err(rows) => Err(format!("{from}: {} rows, and one is right", rows.len())),
                }
            }
        }
    }
}

/// Mailbox, user, subject, on_missing.
fn rule(columns: Vec<Option<String>>, from: String) -> Result<Rule, String> {
    // Forms write an empty text where they mean NULL.
    let mut columns = columns
        .into_iter()
        .map(|it| it.filter(|text| !text.is_empty()));
    let (mailbox, user) = (columns.next().flatten(), columns.next().flatten());
    let (subject, on_missing) = (columns.next().flatten(), columns.next().flatten());
    let (Some(mailbox), Some(user)) = (mailbox, user) else {
        return Err(format!("{from}: a mailbox and a user are needed"));
    };
    let subject = subject
        .map(|word| Subject::parse(&word).ok_or_else(|| format!("{from}: {word:?} is no subject")));
    let on_missing = on_missing.map(|word| {
        OnMissing::parse(&word).ok_or_else(|| format!("{from}: {word:?} is no on_missing"))
    });
    Ok(Rule {
        mailbox,
        user,
        subject: subject.transpose()?,
        on_missing: on_missing.transpose()?.unwrap_or(OnMissing::Parent),
        from,
    })
}

impl AddressFile {
    /// Read when it is asked for the first time.
    pub fn new(path: PathBuf) -> AddressFile {
        AddressFile(LineFile::new(path))
    }

    /// The file as it is now.
    fn lines(&self) -> Result<Arc<line_file::Lines<Lines>>, String> {
        let lines = self.0.read(split);
        lines.map_err(|why| format!("{}: {why}", self.0.path().display()))
    }
}

/// The first line of an address counts.
fn split(bytes: &[u8]) -> Result<Lines, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    if text.is_empty() {
        // Truncated, or about to be written.
        return Err("no line is in it: a comment says that this is meant".into());
    }
    let mut lines = Lines::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if !line.contains('\t') {
            // Torn, or with blanks for tabs: whose line it was to be nobody knows.
            return Err(format!("line {number}: no tab behind an address"));
        }
        let mut columns = line.split('\t').map(|column| column.trim().to_owned());
        let address = columns.next().unwrap_or_default().to_lowercase();
        lines
            .entry(address)
            .or_insert_with(|| (columns.collect(), number));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn who_is_not_in_a_file_that_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("addresses");
        let file = AddressMap {
            tables: vec![Table::File(AddressFile::new(path.clone()))],
            ..AddressMap::default()
        };
        fs::write(&path, "info@x\tPublic/info\tbob\n").unwrap();
        assert_eq!(file.rule("info@x").unwrap().unwrap().user, "bob");
        let fault = file.rule("sales@x").unwrap_err();
        assert_eq!(fault.code, Code::CannotTell);
        assert!(fault.to_string().contains("just changed"), "{fault}");
        // For an admin who has just written it.
        assert_eq!(file.unavailable(), Vec::<String>::new());
        let long_ago = SystemTime::now() - Duration::from_secs(4);
        let written = fs::File::options().write(true).open(&path).unwrap();
        written.set_modified(long_ago).unwrap();
        assert_eq!(file.rule("sales@x").unwrap(), None);
        fs::write(&path, "info@x\tPublic/info\tbob\nsales@x\tPublic/").unwrap();
        written.set_modified(long_ago).unwrap();
        assert!(file.unavailable()[0].contains("does not end"));
    }
}
