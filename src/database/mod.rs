//! Databases of the admin: rows of text by a query, and changes in one transaction. Three answers: an error is "cannot tell".

pub mod postgresql;
pub mod query;
pub mod sqlite;

use std::fmt;
use std::path::PathBuf;

pub use postgresql::Postgresql;

/// Where rows are.
#[derive(Debug, Clone)]
pub enum Database {
    Sqlite(PathBuf),
    Postgresql(Postgresql),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{database}: {why}")]
pub struct DatabaseError {
    pub database: String,
    pub why: String,
}

/// One row: its columns as text, none for NULL.
pub type Row = Vec<Option<String>>;

/// The answer to a query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// The names of the columns.
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
}

impl IntoIterator for Rows {
    type Item = Row;
    type IntoIter = std::vec::IntoIter<Row>;

    fn into_iter(self) -> Self::IntoIter {
        self.rows.into_iter()
    }
}

/// What can be done within one transaction. Parameters stand as `$1`, `$2`.
pub trait Transaction {
    /// `parameters` are bound as text. Err, for the log: what the database says, or a column of PostgreSQL's that is neither text, integer
    /// nor boolean.
    fn rows(&mut self, query: &str, parameters: &[&str]) -> Result<Rows, String>;
    /// A statement that answers no rows; how many it has changed is not told. Err, for the log: what the database says.
    fn execute(&mut self, statement: &str, parameters: &[&str]) -> Result<(), String>;
    /// Whether a statement here finds a table of this name; PostgreSQL looks along its `search_path`.
    fn has_table(&mut self, name: &str) -> Result<bool, String>;
}

impl Database {
    /// The rows of one query.
    pub fn rows(&self, query: &str, parameters: &[&str]) -> Result<Rows, DatabaseError> {
        let mut rows = Rows::default();
        self.transaction(&mut |transaction| {
            rows = transaction.rows(query, parameters)?;
            Ok(())
        })?;
        Ok(rows)
    }

    /// All of `work`, or nothing of it.
    pub fn transaction(
        &self,
        work: &mut dyn FnMut(&mut dyn Transaction) -> Result<(), String>,
    ) -> Result<(), DatabaseError> {
        let done = match self {
            Database::Sqlite(path) => sqlite::transaction(path, work),
            Database::Postgresql(server) => server.transaction(work),
        };
        done.map_err(|why| DatabaseError {
            database: self.to_string(),
            why,
        })
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Database::Sqlite(path) => write!(f, "sqlite {}", path.display()),
            Database::Postgresql(_) => f.write_str("postgresql"),
        }
    }
}
