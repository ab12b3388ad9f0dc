//! `[[address]]`, `[address_map.…]` and `[[route]]`.

use std::path::PathBuf;

use super::rights::postgresql;
use super::section::Section;
use crate::database::Database;
use crate::deliver::map::{AddressFile, AddressMap, QUERY, Rule, Table};
use crate::deliver::route::{Route, Test};
use crate::deliver::settings::Subject;
use crate::mailbox::namespace::OnMissing;
use crate::message::{Address, Flags, Keywords};

/// `[[address]]`; its tables are read apart.
pub fn addresses(root: &Section<'_>) -> AddressMap {
    let mut map = AddressMap::default();
    for (number, section) in (1..).zip(root.tables("address")) {
        let (pattern, mailbox) = (required(&section, "match"), required(&section, "mailbox"));
        let user = required(&section, "user");
        let subject = section.choice("subject", &Subject::WORDS, None);
        let on_missing = section.choice_or("on_missing", &OnMissing::WORDS, OnMissing::Parent);
        section.finish();
        let (Some(pattern), Some(mailbox), Some(user)) = (pattern, mailbox, user) else {
            continue;
        };
        let rule = Rule {
            mailbox,
            user,
            subject,
            on_missing,
            from: format!("address {number} ({pattern})"),
        };
        let key = pattern.to_lowercase();
        let domain = key.strip_prefix("*@");
        let is_domain = domain.is_some_and(|it| !it.is_empty() && !it.contains(['*', '@']));
        let key = match Address::parse(&key) {
            _ if is_domain => key,
            Ok(address) if !key.contains('*') => address.to_string(),
            _ => {
                let advice = "write an address, or \"*@domain\"";
                section.error("match", format!("{pattern:?} is no address"), advice);
                continue;
            }
        };
        let earlier = map.rules.insert(key, rule);
        if let Some(earlier) = earlier {
            let message = format!("{pattern:?} is matched by {} already", earlier.from);
            section.error("match", message, "take one of them out");
        }
    }
    map.tables = tables(&root.section("address_map"));
    map
}

/// More rules, from elsewhere.
fn tables(section: &Section<'_>) -> Vec<Table> {
    let (file, sqlite) = (section.section("file"), section.section("sqlite"));
    let server = section.section("postgresql");
    section.finish();
    let query = |section: &Section<'_>| section.text_or("query", || QUERY.into());
    let mut tables = Vec::new();
    if file.is_present() {
        let path = required(&file, "path");
        tables.extend(path.map(|path| Table::File(AddressFile::new(PathBuf::from(path)))));
    }
    if sqlite.is_present() {
        let query = query(&sqlite);
        tables.extend(required(&sqlite, "path").map(|path| Table::Database {
            database: Database::Sqlite(PathBuf::from(path)),
            query,
        }));
    }
    if server.is_present() {
        let query = query(&server);
        match postgresql(&server) {
            Some(database) => tables.push(Table::Database {
                database: Database::Postgresql(database),
                query,
            }),
            None if !server.has("connection") => drop(required(&server, "connection")),
            None => {}
        }
    }
    [file, sqlite, server].iter().for_each(Section::finish);
    tables
}

/// `[[route]]`
pub fn routes(root: &Section<'_>) -> Vec<Route> {
    let mut routes = Vec::new();
    for (number, section) in (1..).zip(root.tables("route")) {
        let (header, mailbox) = (required(&section, "header"), required(&section, "mailbox"));
        let tests = [
            section.text("equals").map(Test::Equals),
            section.text("contains").map(Test::Contains),
            section.text("begins_with").map(Test::BeginsWith),
        ];
        let (flags, keywords) = flags(&section);
        section.finish();
        let mut tests = tests.into_iter().flatten();
        let test = tests.next().unwrap_or(Test::Exists);
        if tests.next().is_some() {
            let advice = "write equals, contains or begins_with; none of them: the field is there";
            section.error("", "a route has one test", advice);
        }
        let (Some(header), Some(mailbox)) = (header, mailbox) else {
            continue;
        };
        let is_name = |c: char| c.is_ascii_graphic() && c != ':';
        if header.is_empty() || !header.chars().all(is_name) {
            let message = format!("{header:?} is no name of a header field");
            section.error("header", message, "write it like \"X-Spam-Flag\"");
        }
        routes.push(Route {
            header,
            test,
            mailbox,
            flags,
            keywords,
            from: format!("route {number}"),
        });
    }
    routes
}

/// System flags begin with a backslash; everything else is a keyword.
fn flags(section: &Section<'_>) -> (Flags, Keywords) {
    let (mut flags, mut keywords) = (Flags::default(), Keywords::default());
    for name in section.texts("flags") {
        match (Flags::parse(&name), Keywords::parse(&name)) {
            (Some(flag), _) => flags = flags.with(flag),
            (None, Some(keyword)) => keywords = keywords.with(&keyword),
            (None, None) if name.starts_with('\\') => section.error(
                "flags",
                format!("{name:?} is no system flag"),
                "write \"\\\\Seen\", \"\\\\Flagged\", \"\\\\Answered\", \"\\\\Draft\" or \"\\\\Deleted\"",
            ),
            (None, None) => section.error(
                "flags",
                format!("{name:?} is no keyword"),
                "write one word of ASCII, without any of ( ) { % * \" \\ ]",
            ),
        }
    }
    (flags, keywords)
}

/// A text that must be set; none: it is not, and that is an error now.
pub fn required(section: &Section<'_>, key: &'static str) -> Option<String> {
    let text = section.text(key);
    if text.is_none() && !section.has(key) {
        section.error(
            "",
            format!("{key} is missing"),
            format!("write {key} = \"…\""),
        );
    }
    text
}
