//! `[placement]` and `[node.NAME]`: several servers.

use std::path::PathBuf;

use super::map::required;
use super::rights::postgresql;
use super::section::Section;
use crate::database::Database;
use crate::deliver::placement::{Node, Placement, QUERY, Table, Tls};

/// None: this server is the only one.
pub fn placement(root: &Section<'_>, hostname: &str) -> Option<Placement> {
    let section = root.section("placement");
    let (sqlite, server) = (section.section("sqlite"), section.section("postgresql"));
    let mut own = section.texts("self");
    own.push(hostname.to_owned());
    let ca_file = section.text("ssl_client_ca_file").map(PathBuf::from);
    section.finish();
    let sections = root.sections("node");
    let is_present = section.is_present() || !sections.is_empty();
    let mut nodes = std::collections::HashMap::new();
    for (name, section) in sections {
        let node = node(&name, &section);
        if node.tls == Tls::Verified && ca_file.is_none() {
            let advice = "set placement.ssl_client_ca_file, or write \"any-cert\"";
            section.error("starttls", "nobody says whose certificates count", advice);
        }
        section.finish();
        nodes.insert(name.clone(), node);
    }
    let query = |section: &Section<'_>| section.text_or("query", || QUERY.into());
    let mut table = None;
    if sqlite.is_present() {
        let database = required(&sqlite, "path").map(|it| Database::Sqlite(PathBuf::from(it)));
        table = database.zip(Some(query(&sqlite)));
    }
    if sqlite.is_present() && server.is_present() {
        section.error("sqlite", "there is one table", "take one of the two out");
    }
    if server.is_present() {
        let database = match server.has("connection") {
            true => postgresql(&server).map(Database::Postgresql),
            false => required(&server, "connection").and(None),
        };
        table = database.zip(Some(query(&server)));
    }
    [sqlite, server].iter().for_each(Section::finish);
    let table = table.map(|(database, query)| Table { database, query });
    is_present.then_some(Placement {
        own,
        nodes,
        table,
        ca_file,
    })
}

fn node(name: &str, section: &Section<'_>) -> Node {
    let port = section.number("port", Some(Node::PORT.into()));
    let port = port.unwrap_or(Node::PORT.into());
    let port = u16::try_from(port)
        .ok()
        .filter(|&it| it > 0)
        .unwrap_or_else(|| {
            section.error("port", "a port is a number from 1 to 65535", "write 24");
            Node::PORT
        });
    let timeout = section.duration("timeout", std::time::Duration::from_secs(Node::TIMEOUT));
    Node {
        name: name.to_owned(),
        host: section.text_or("host", || name.to_owned()),
        port,
        tls: section.choice_or("starttls", &Tls::WORDS, Tls::No),
        timeout: timeout.as_secs().max(1),
    }
}
