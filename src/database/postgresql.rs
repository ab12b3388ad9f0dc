//! PostgreSQL: a server that may be down, or slow, and comes back.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::types::ToSql;
use postgres::{Client, Config, NoTls};

use super::Row;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a statement may take, milliseconds.
const STATEMENT: u32 = 10_000;

/// A server, with the connections that are idle.
#[derive(Clone)]
pub struct Postgresql(Arc<Server>);

struct Server {
    config: Config,
    idle: Mutex<Vec<Client>>,
}

impl Postgresql {
    /// `parameters`: `host=/run/postgresql dbname=mail user=postroom`.
    pub fn new(parameters: &str, password: Option<&str>) -> Result<Postgresql, String> {
        let mut config: Config = parameters.parse().map_err(|error| format!("{error}"))?;
        config.connect_timeout(CONNECT);
        config.application_name("postroom");
        if config.get_options().is_none() {
            config.options(&format!("-c statement_timeout={STATEMENT}"));
        }
        if let Some(password) = password {
            config.password(password);
        }
        let idle = Mutex::default();
        Ok(Postgresql(Arc::new(Server { config, idle })))
    }

    /// A connection that broke while it was idle costs a second attempt, not an answer.
    pub fn transaction(
        &self,
        work: &mut dyn FnMut(&mut dyn super::Transaction) -> Result<(), String>,
    ) -> Result<(), String> {
        // A statement of its own: the lock is not held while the client works.
        let idle = self.idle().pop();
        if let Some(client) = idle
            && let Ok(done) = self.attempt(client, work)
        {
            return done;
        }
        let client = self.0.config.connect(NoTls).map_err(text)?;
        self.attempt(client, work)?
    }

    /// The outer error: the connection is gone, and nothing was done.
    fn attempt(
        &self,
        mut client: Client,
        work: &mut dyn FnMut(&mut dyn super::Transaction) -> Result<(), String>,
    ) -> Result<Result<(), String>, String> {
        let done = match client.transaction() {
            Ok(mut transaction) => {
                work(&mut transaction).and_then(|()| transaction.commit().map_err(text))
            }
            Err(error) => return Err(text(error)),
        };
        if client.is_closed() && done.is_err() {
            return done.map(Ok);
        }
        self.idle().push(client);
        Ok(done)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Client>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without the password.
impl fmt::Debug for Postgresql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Postgresql")
    }
}

impl super::Transaction for postgres::Transaction<'_> {
    fn rows(&mut self, query: &str, parameters: &[&str]) -> Result<Vec<Row>, String> {
        let rows = self.query(query, &as_sql(parameters)).map_err(text)?;
        let columns = |row: &postgres::Row| {
            (0..row.len())
                .map(|column| row.try_get::<_, Option<String>>(column).map_err(text))
                .collect::<Result<Row, String>>()
        };
        rows.iter().map(columns).collect()
    }

    fn execute(&mut self, statement: &str, parameters: &[&str]) -> Result<(), String> {
        let done = postgres::Transaction::execute(self, statement, &as_sql(parameters));
        done.map(drop).map_err(text)
    }

    fn has_table(&mut self, name: &str) -> Result<bool, String> {
        let found = self.query_one("SELECT to_regclass($1::text) IS NOT NULL", &[&name]);
        found.map_err(text)?.try_get(0).map_err(text)
    }
}

fn as_sql<'a>(parameters: &'a [&'a str]) -> Vec<&'a (dyn ToSql + Sync)> {
    parameters
        .iter()
        .map(|it| it as &(dyn ToSql + Sync))
        .collect()
}

/// The library's own words leave the server's out.
fn text(error: postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{error}: {}", said.message()),
        None => match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}
