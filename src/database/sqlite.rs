//! SQLite: a file.

use std::path::Path;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, TransactionBehavior, params_from_iter};

use super::{Row, Rows};

/// How long another writer may take.
const BUSY: Duration = Duration::from_secs(10);

/// [`Database::transaction`](super::Database::transaction) in this file; one that may not be written will do where `work` only
/// reads.
pub fn transaction(
    path: &Path,
    work: &mut dyn FnMut(&mut dyn super::Transaction) -> Result<(), String>,
) -> Result<(), String> {
    // Made by whoever set it up: an empty one of ours would hide a wrong path.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let reading = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags);
    let mut connection = connection
        .or_else(|_| Connection::open_with_flags(path, reading))
        .map_err(text)?;
    connection.busy_timeout(BUSY).map_err(text)?;
    let mut transaction = connection
        .transaction_with_behavior(TransactionBehavior::Deferred)
        .map_err(text)?;
    work(&mut transaction)?;
    transaction.commit().map_err(text)
}

impl super::Transaction for rusqlite::Transaction<'_> {
    fn rows(&mut self, query: &str, parameters: &[&str]) -> Result<Rows, String> {
        let mut statement = self.prepare(query).map_err(text)?;
        let names = statement.column_names();
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let columns = names.len();
        let rows = statement.query_map(params_from_iter(parameters), |row| {
            (0..columns)
                .map(|column| {
                    Ok(match row.get_ref(column)? {
                        ValueRef::Null => None,
                        ValueRef::Integer(number) => Some(number.to_string()),
                        ValueRef::Real(number) => Some(number.to_string()),
                        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(
                            str::from_utf8(bytes)
                                .map_err(rusqlite::Error::Utf8Error)?
                                .to_owned(),
                        ),
                    })
                })
                .collect::<rusqlite::Result<Row>>()
        });
        let rows = rows.map_err(text)?.collect::<rusqlite::Result<_>>();
        Ok(Rows {
            columns: names,
            rows: rows.map_err(text)?,
        })
    }

    fn execute(&mut self, statement: &str, parameters: &[&str]) -> Result<(), String> {
        let done = rusqlite::Connection::execute(self, statement, params_from_iter(parameters));
        done.map(drop).map_err(text)
    }

    fn has_table(&mut self, name: &str) -> Result<bool, String> {
        self.table_exists(None, name).map_err(text)
    }
}

fn text(error: rusqlite::Error) -> String {
    error.to_string()
}
