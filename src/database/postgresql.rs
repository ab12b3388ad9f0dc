//! PostgreSQL: a server that may be down, or slow, or silent, and comes back.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Config, NoTls};

use super::{Row, Rows};

/// How long a connection may take until the server has answered on it.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a statement may take, milliseconds: the server ends it then.
const STATEMENT: u32 = 10_000;
/// How long we wait for that: longer, a connection that broke without a word must not hold a delivery.
const ANSWER: Duration = Duration::from_secs(15);

/// Connections that are kept: the server has a number of them for everybody.
const IDLE: usize = 16;

/// A server, with the connections that are idle.
#[derive(Clone)]
pub struct Postgresql(Arc<Server>);

struct Server {
    config: Config,
    idle: Mutex<Vec<Client>>,
}

/// A connection, with the runtime that moves its bytes.
struct Client {
    client: tokio_postgres::Client,
    runtime: Runtime,
    /// Whose it is: a forked child must not talk on its parent's connection.
    process: u32,
}

impl Postgresql {
    /// `parameters`: `host=/run/postgresql dbname=mail user=postroom`.
    pub fn new(parameters: &str, password: Option<&str>) -> Result<Postgresql, String> {
        let mut config: Config = parameters.parse().map_err(|error| format!("{error}"))?;
        config.connect_timeout(CONNECT);
        config.application_name("postroom");
        if config.get_options().is_none() {
            config.options(format!("-c statement_timeout={STATEMENT}"));
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
        match idle {
            Some(client) if client.process != std::process::id() => std::mem::forget(client),
            Some(client) => {
                if let Ok(done) = self.attempt(client, work) {
                    return done;
                }
            }
            None => {}
        }
        let client = Client::connect(&self.0.config)?;
        self.attempt(client, work)?
    }

    /// The outer error: the connection is gone, and nothing was done.
    fn attempt(
        &self,
        mut client: Client,
        work: &mut dyn FnMut(&mut dyn super::Transaction) -> Result<(), String>,
    ) -> Result<Result<(), String>, String> {
        client.wait(CONNECT, client.client.batch_execute("BEGIN"))?;
        let done = work(&mut client);
        let (end, limit) = match done {
            Ok(()) => ("COMMIT", ANSWER),
            Err(_) => ("ROLLBACK", CONNECT),
        };
        let ended = client.wait(limit, client.client.batch_execute(end));
        if client.client.is_closed() && ended.is_err() {
            return done.and(ended).map(Ok);
        }
        let mut idle = self.idle();
        if ended.is_ok() && idle.len() < IDLE {
            idle.push(client);
        }
        drop(idle);
        Ok(done.and(ended))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Client>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    fn connect(config: &Config) -> Result<Client, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let connected = runtime.block_on(async { timeout(CONNECT, config.connect(NoTls)).await });
        let (client, connection) = connected.map_err(silent)?.map_err(text)?;
        runtime.spawn(connection);
        let process = std::process::id();
        Ok(Client {
            client,
            runtime,
            process,
        })
    }

    fn wait<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, String> {
        let done = self.runtime.block_on(async { timeout(limit, work).await });
        done.map_err(silent)?.map_err(text)
    }
}

/// Without the password.
impl fmt::Debug for Postgresql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Postgresql")
    }
}

impl super::Transaction for Client {
    fn rows(&mut self, query: &str, parameters: &[&str]) -> Result<Rows, String> {
        let mut statement = self.wait(ANSWER, self.client.prepare(query))?;
        let columns = statement.columns().iter();
        let columns: Vec<String> = columns.map(|it| it.name().to_owned()).collect();
        if !statement.columns().iter().all(|it| is_read(it.type_())) {
            let query = as_text(query, statement.columns());
            statement = self.wait(ANSWER, self.client.prepare(&query))?;
        }
        let parameters = as_sql(parameters);
        let rows = self.wait(ANSWER, self.client.query(&statement, &parameters))?;
        let row = |row: &tokio_postgres::Row| (0..row.len()).map(|at| cell(row, at)).collect();
        Ok(Rows {
            columns,
            rows: rows.iter().map(row).collect::<Result<Vec<Row>, String>>()?,
        })
    }

    fn execute(&mut self, statement: &str, parameters: &[&str]) -> Result<(), String> {
        let parameters = as_sql(parameters);
        let done = self.wait(ANSWER, self.client.execute(statement, &parameters));
        done.map(drop)
    }

    fn has_table(&mut self, name: &str) -> Result<bool, String> {
        const QUERY: &str = "SELECT to_regclass($1::text) IS NOT NULL";
        let found = self.wait(ANSWER, self.client.query_one(QUERY, &[&name]))?;
        found.try_get(0).map_err(text)
    }
}

/// Whether [`cell`] reads it.
fn is_read(kind: &Type) -> bool {
    let numbers = [Type::INT2, Type::INT4, Type::INT8, Type::OID, Type::BOOL];
    numbers.contains(kind) || <String as FromSql>::accepts(kind)
}

/// The query with its other columns as text: a date, a UUID.
fn as_text(query: &str, columns: &[tokio_postgres::Column]) -> String {
    // Whatever they are called, also twice the same.
    let names: Vec<String> = (0..columns.len()).map(|at| format!("c{at}")).collect();
    let shown = names.iter().zip(columns);
    let shown: Vec<String> = shown
        .map(|(name, column)| match is_read(column.type_()) {
            true => name.clone(),
            false => format!("{name}::text"),
        })
        .collect();
    let query = query.trim_end().trim_end_matches(';');
    let (shown, names) = (shown.join(", "), names.join(", "));
    format!("SELECT {shown} FROM ({query}) AS postroom ({names})")
}

/// A column as text, as psql shows it.
fn cell(row: &tokio_postgres::Row, at: usize) -> Result<Option<String>, String> {
    fn shown<'a, T: FromSql<'a> + ToString>(
        row: &'a tokio_postgres::Row,
        at: usize,
    ) -> Result<Option<String>, tokio_postgres::Error> {
        Ok(row.try_get::<_, Option<T>>(at)?.map(|it| it.to_string()))
    }
    let found = match *row.columns()[at].type_() {
        Type::INT2 => shown::<i16>(row, at),
        Type::INT4 => shown::<i32>(row, at),
        Type::INT8 => shown::<i64>(row, at),
        Type::OID => shown::<u32>(row, at),
        Type::BOOL => row
            .try_get::<_, Option<bool>>(at)
            .map(|it| it.map(|it| if it { "t" } else { "f" }.to_owned())),
        _ => shown::<String>(row, at),
    };
    found.map_err(text)
}

fn as_sql<'a>(parameters: &'a [&'a str]) -> Vec<&'a (dyn ToSql + Sync)> {
    parameters
        .iter()
        .map(|it| it as &(dyn ToSql + Sync))
        .collect()
}

fn silent(_: tokio::time::error::Elapsed) -> String {
    "the server says nothing".into()
}

/// The library's own words leave the server's out.
fn text(error: tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{error}: {}", said.message()),
        None => match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}
