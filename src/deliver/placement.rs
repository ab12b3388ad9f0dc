//! Several servers: which of them has the mailboxes of whom.
//!
//! A user lies where the field `host` of his userdb says, else where the table says. A mailbox that somebody shares lies with its
//! owner, a public one where the table says. Whoever is nowhere is here.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::directory::Directory;
use crate::database::Database;
use crate::fault::{Code, Fault};
use crate::user::User;

/// Where LMTP listens.
const PORT: u16 = 24;

/// `[placement]` and `[node.NAME]`
#[derive(Debug, Default)]
pub struct Placement {
    /// What userdbs and the table call this server.
    pub own: Vec<String>,
    /// By their names.
    pub nodes: HashMap<String, Node>,
    pub table: Option<Table>,
    /// Whom the certificates of nodes are signed by.
    pub ca_file: Option<PathBuf>,
}

/// Answers the name of a node for `$1`, the user or owner, and `$2`, a public mailbox; one of the two is empty. No row, or NULL: here.
#[derive(Debug)]
pub struct Table {
    pub database: Database,
    pub query: String,
}

/// The query where the config has none.
pub const QUERY: &str = "SELECT node FROM placement WHERE user_name = $1 AND mailbox = $2";

/// Another server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    /// A name or an address; a path is a unix socket.
    pub host: String,
    pub port: u16,
    pub tls: Tls,
    /// Seconds that it may take for an answer.
    pub timeout: u64,
}

/// How a connection to a node is secured (Dovecot's `starttls`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tls {
    No,
    /// By STARTTLS, with a certificate for the host.
    Verified,
    /// By STARTTLS, whatever the certificate: nobody can listen who only listens.
    Any,
}

impl Tls {
    /// The words of `starttls`, in `[node.NAME]` as in a userdb's field; `no` where nothing is said.
    pub const WORDS: [(&str, Tls); 3] = [
        ("no", Tls::No),
        ("yes", Tls::Verified),
        ("any-cert", Tls::Any),
    ];
}

impl Placement {
    /// The node that has all of this user's mailboxes; none: this one.
    pub fn of_user(&self, directory: &dyn Directory, user: &User) -> Result<Option<Node>, Fault> {
        let field = |name: &str| {
            user.extra
                .get(name)
                .map(String::as_str)
                .filter(|it| !it.is_empty())
        };
        let Some(host) = field("host") else {
            return self.of_table(directory, &user.name, "");
        };
        let bad = |what: &str| {
            let doing = format!("find the node of {}", user.name);
            Fault::new(Code::CannotTell, doing, format!("its userdb says {what}"))
        };
        if let Some(protocol) = field("protocol").filter(|it| *it != "lmtp") {
            return Err(bad(&format!("protocol={protocol}, and lmtp it must be")));
        }
        let Some(mut node) = self.node(host) else {
            return Ok(None);
        };
        if let Some(port) = field("port") {
            node.port = port.parse().map_err(|_| bad(&format!("port={port}")))?;
        }
        if let Some(word) = field("starttls") {
            let found = Tls::WORDS.iter().find(|(known, _)| *known == word);
            node.tls = found.ok_or_else(|| bad(&format!("starttls={word}")))?.1;
        }
        if let Some(timeout) = field("proxy_timeout") {
            let seconds = timeout.trim_end_matches('s').parse();
            node.timeout = seconds.map_err(|_| bad(&format!("proxy_timeout={timeout}")))?;
        }
        Ok(Some(node))
    }

    /// The node of a public mailbox: the table's row for its name, or for the nearest name above; none: this one.
    pub fn of_mailbox(
        &self,
        directory: &dyn Directory,
        mailbox: &str,
        separator: char,
    ) -> Result<Option<Node>, Fault> {
        if self.table.is_none() {
            return Ok(None);
        }
        let mut next = Some(mailbox);
        while let Some(name) = next {
            let node = directory.node("", name)?;
            if let Some(node) = node.filter(|it| !it.is_empty()) {
                return Ok(self.node(&node));
            }
            next = name.rsplit_once(separator).map(|(above, _)| above);
        }
        Ok(None)
    }

    fn of_table(
        &self,
        directory: &dyn Directory,
        user: &str,
        mailbox: &str,
    ) -> Result<Option<Node>, Fault> {
        if self.table.is_none() {
            return Ok(None);
        }
        let name = directory.node(user, mailbox)?;
        Ok(name
            .filter(|it| !it.is_empty())
            .and_then(|name| self.node(&name)))
    }

    /// None: it is this one.
    fn node(&self, name: &str) -> Option<Node> {
        if self.own.iter().any(|own| own.eq_ignore_ascii_case(name)) {
            return None;
        }
        Some(self.nodes.get(name).cloned().unwrap_or_else(|| Node {
            name: name.to_owned(),
            host: name.to_owned(),
            port: PORT,
            tls: Tls::No,
            timeout: Node::TIMEOUT,
        }))
    }

    /// What the table says; none: nothing.
    pub fn asked(&self, user: &str, mailbox: &str) -> Result<Option<String>, Fault> {
        let Some(Table { database, query }) = &self.table else {
            return Ok(None);
        };
        let failed = |why: String| {
            let doing = format!("find the node of {user}{mailbox}");
            Fault::new(Code::CannotTell, doing, why)
        };
        let rows = database.rows(query, &[user, mailbox]);
        let rows = rows.map_err(|error| failed(error.to_string()))?;
        match rows.rows.as_slice() {
            [] => Ok(None),
            [row] => Ok(row.first().cloned().flatten()),
            rows => Err(failed(format!("{} rows, and one is right", rows.len()))),
        }
    }
}

impl Node {
    /// 24, where Dovecot's examples let LMTP listen: for a node of which nobody says more.
    pub const PORT: u16 = PORT;
    /// Seconds.
    pub const TIMEOUT: u64 = 30;
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.starts_with('/') {
            true => write!(f, "{} ({})", self.name, self.host),
            false => write!(f, "{} ({}:{})", self.name, self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::sys::credentials;

    #[test]
    fn where_a_user_lies() {
        let text = "[placement]\nssl_client_ca_file = \"/nonexistent\"\nself = [\"node1\", \"192.0.2.1\"]\n[node.node2]\nhost = \"192.0.2.2\"\nport = 2424\nstarttls = \"yes\"\n";
        let settings = Config::from_str("test", text).unwrap().delivery;
        let placement = settings.placement.as_ref().unwrap();
        for (fields, want) in [
            (&[][..], Ok(None)),
            (&[("host", "")], Ok(None)),
            (&[("host", "node1")], Ok(None)),
            (&[("host", "192.0.2.1")], Ok(None)),
            (
                &[("host", "node2")],
                Ok(Some("node2 (192.0.2.2:2424) Verified 30")),
            ),
            (
                &[("host", "192.0.2.9")],
                Ok(Some("192.0.2.9 (192.0.2.9:24) No 30")),
            ),
            (
                &[
                    ("host", "node2"),
                    ("port", "24"),
                    ("starttls", "any-cert"),
                    ("proxy_timeout", "5"),
                    ("protocol", "lmtp"),
                ],
                Ok(Some("node2 (192.0.2.2:24) Any 5")),
            ),
            (&[("host", "node2"), ("port", "lmtp")], Err(())),
            (&[("host", "node2"), ("protocol", "smtp")], Err(())),
            (&[("host", "node2"), ("starttls", "maybe")], Err(())),
        ] {
            let fields = fields
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()));
            let user = User {
                name: "a".into(),
                credentials: credentials::effective(),
                lent: Vec::new(),
                home: None,
                extra: fields.collect(),
                origin: String::new(),
            };
            let found = placement.of_user(&settings, &user);
            let found =
                found.map(|node| node.map(|it| format!("{it} {:?} {}", it.tls, it.timeout)));
            let found = found.map_err(|fault| assert_eq!(fault.code, Code::CannotTell));
            assert_eq!(
                found,
                want.map(|it| it.map(str::to_owned)),
                "{:?}",
                user.extra
            );
        }
    }
}
