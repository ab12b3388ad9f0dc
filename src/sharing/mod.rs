//! The sharing map: who shares something with whom. Dovecot's LIST finds shared namespaces by it; delivery needs none.
//!
//! It follows from the ACL files, and can be made again from them: [`rebuild`]. Post-only shares (`p` without `l`) never
//! appear, by design: nobody sees them in a list.

pub mod file;
pub mod rebuild;
pub mod table;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::database::{Database, DatabaseError, Postgresql};
use crate::text::template::{Template, Variables};

/// Whom something is shared with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum With {
    /// `anyone` and `authenticated`.
    Anyone,
    /// `group=` and `group-override=`.
    Group(String),
    User(String),
}

/// One row: `from` shares at least one mailbox.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Share {
    pub from: String,
    pub with: With,
}

/// `[acl_sharing_map.…]`
#[derive(Debug, Clone)]
pub enum SharingMap {
    /// A file of Dovecot's `file` dict; with the owner's domain in its path, one for each domain.
    File(Template),
    /// SQLite, likewise.
    Sqlite(Template),
    Postgresql(Postgresql),
}

/// What a change did to the rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Rows that the map did not have.
    pub missing: Vec<Share>,
    /// Rows that it should not have had.
    pub surplus: Vec<Share>,
}

/// "Cannot tell", or it could not be changed: which file or database, and why.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("{0}: {1}")]
    Io(String, io::Error),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("{0}: {1}")]
    Odd(String, String),
}

impl SharingMap {
    /// The map of this owner's domain.
    pub fn of(&self, owner: &str) -> Result<Map, MapError> {
        let variables = Variables {
            user: owner,
            ..Variables::default()
        };
        let path = |template: &Template| {
            let path = template.expand(&variables);
            path.map(PathBuf::from)
                .map_err(|missing| MapError::Odd(template.source().to_owned(), missing.to_string()))
        };
        Ok(match self {
            SharingMap::File(template) => Map::File(path(template)?),
            SharingMap::Sqlite(template) => Map::Database(Database::Sqlite(path(template)?)),
            SharingMap::Postgresql(server) => Map::Database(Database::Postgresql(server.clone())),
        })
    }
}

/// One map, for reading and writing.
#[derive(Debug, Clone)]
pub enum Map {
    File(PathBuf),
    Database(Database),
}

impl Map {
    /// The file that it is; none for a server.
    pub fn file(&self) -> Option<&PathBuf> {
        match self {
            Map::File(path) | Map::Database(Database::Sqlite(path)) => Some(path),
            Map::Database(Database::Postgresql(_)) => None,
        }
    }

    /// Everybody's rows. A file that is not there has none; a database that is not there is an error.
    pub fn read(&self) -> Result<BTreeSet<Share>, MapError> {
        match self {
            Map::File(path) => file::read(path),
            Map::Database(database) => table::read(database),
        }
    }

    /// Makes the rows of `owners` those of `wanted`, in one step; rows of others stay. Nothing is written where nothing
    /// differs.
    pub fn replace(
        &self,
        owners: &BTreeSet<String>,
        wanted: &BTreeSet<Share>,
    ) -> Result<Difference, MapError> {
        match self {
            Map::File(path) => file::replace(path, owners, wanted),
            Map::Database(database) => table::replace(database, owners, wanted),
        }
    }
}

impl Difference {
    /// What `there` lacks, and has too much, of the rows of `owners`.
    pub fn between(
        there: &BTreeSet<Share>,
        wanted: &BTreeSet<Share>,
        owners: &BTreeSet<String>,
    ) -> Difference {
        let surplus = there.difference(wanted);
        Difference {
            missing: wanted.difference(there).cloned().collect(),
            surplus: surplus
                .filter(|share| owners.contains(&share.from))
                .cloned()
                .collect(),
        }
    }

    /// Nothing differs.
    pub fn is_none(&self) -> bool {
        self.missing.is_empty() && self.surplus.is_empty()
    }
}

impl fmt::Display for Share {
    /// `alice -> bob`, `alice -> group staff`, `alice -> anyone`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.with {
            With::Anyone => write!(f, "{} -> anyone", self.from),
            With::Group(group) => write!(f, "{} -> group {group}", self.from),
            With::User(user) => write!(f, "{} -> {user}", self.from),
        }
    }
}
