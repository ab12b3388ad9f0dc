//! What was delivered lately, so that a message which is sent again because its client has not heard of it is stored once.
//!
//! A row for each message and recipient: the name that the file is to have, written before anything becomes visible, and what
//! became of it. A process that is killed in between leaves the row, and the file's name decides. Nothing here is synced: after a
//! power cut a retry may be stored twice, never not at all.

use std::collections::HashMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::digest::{Context, SHA256, digest};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::time::timeout;

use crate::deliver::{Alike, Earlier, Outcome, Retry, Saved};
use crate::fault::{Code, Fault};
use crate::message::{Message, Recipient, header};
use crate::sys::fault_point;

/// How long a retry waits for the end of the delivery before it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same, for another message with its Message-ID.
const ALIKE_PATIENCE: Duration = Duration::from_secs(5);
/// How long the database may take: mail does not wait for it.
const ANSWER: Duration = Duration::from_secs(3);
/// Requests that become one transaction of the database.
const BATCH: usize = 256;
/// How often old rows are thrown away: few at a time, since others wait meanwhile.
const ROUND: Duration = Duration::from_secs(5);

/// `delivery.duplicate_*`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a message may be sent again; zero: each is stored.
    pub window: Duration,
    /// The longest time that a namespace looks at Message-IDs for; zero: none does.
    pub alike: Duration,
    /// SQLite. None: in memory, and a restart forgets.
    pub path: Option<PathBuf>,
}

/// The rows, and who works on which.
#[derive(Debug)]
pub struct Ledger {
    settings: Settings,
    rows: Keeper,
    busy: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

/// Who has the rows.
#[derive(Debug)]
enum Keeper {
    /// In memory: whoever asks does it himself.
    Here(Mutex<Rows>),
    /// In a file: a thread, which makes one transaction of what many ask for.
    Thread(mpsc::Sender<Request>),
}

type Key = [u8; 32];
type Known = Result<(Option<Earlier>, Vec<Alike>), String>;

/// Names that a file may have got in deliveries of which nobody knows the end.
const MAX_NAMES: usize = 4;

/// One delivery that is written down; nobody else delivers the same meanwhile.
#[derive(Debug)]
pub struct Begun {
    ledger: Arc<Ledger>,
    delivery: Option<Id>,
    message_id: Option<Key>,
    /// To be given to the delivery.
    pub retry: Retry,
    keys: Vec<(Key, Option<OwnedMutexGuard<()>>)>,
}

/// A message, its recipient, and the MTA's queue id, which is empty where it said none.
#[derive(Debug, Clone)]
struct Id {
    key: Key,
    queue_id: String,
}

#[derive(Debug)]
enum Request {
    Begin {
        delivery: Option<Id>,
        message_id: Option<Key>,
        name: String,
        answer: oneshot::Sender<Known>,
    },
    Saved(Option<Id>, Option<Key>, Box<Saved>),
    Forget(Id),
}

impl Ledger {
    /// None where nothing is to be remembered. A database that cannot be had is no reason to refuse mail.
    pub fn open(settings: Settings) -> Option<Arc<Ledger>> {
        if settings.window.is_zero() && settings.alike.is_zero() {
            return None;
        }
        let opened = Rows::open(&settings).or_else(|why| {
            tracing::warn!(why, "retries are known until the server ends only");
            let in_memory = Settings {
                path: None,
                ..settings.clone()
            };
            Rows::open(&in_memory)
        });
        let rows = opened
            .inspect_err(|why| tracing::error!(why, "retries may be stored twice"))
            .ok()?;
        let rows = match rows.settings.path {
            None => Keeper::Here(Mutex::new(rows)),
            Some(_) => {
                let (thread, requests) = mpsc::channel();
                thread::Builder::new()
                    .name("ledger".into())
                    .spawn(move || rows.work(&requests))
                    .ok()?;
                Keeper::Thread(thread)
            }
        };
        Some(Arc::new(Ledger {
            settings,
            rows,
            busy: Mutex::default(),
        }))
    }

    /// Writes down that this message is about to be delivered to `recipient` as a file of this `name`. None: nothing tells it from
    /// others like it.
    pub async fn begin(
        self: &Arc<Ledger>,
        message: &Message,
        recipient: &Recipient,
        name: String,
    ) -> Result<Option<Begun>, Fault> {
        let head = message.body.head();
        let message_id = header::message_id(head);
        let queue_id = message.envelope.queue_id.clone().unwrap_or_default();
        let has_mark = || message_id.is_some() || header::field(head, "Received").is_some();
        let delivery = message
            .body
            .digest()
            .filter(|_| !self.settings.window.is_zero() && (!queue_id.is_empty() || has_mark()))
            .map(|bytes| Id {
                key: key_of(bytes, message, recipient),
                queue_id,
            });
        let message_id = header::raw_message_id(head)
            .filter(|_| !self.settings.alike.is_zero())
            .map(|id| hash(&[b"Message-ID", &id]));
        let mut keys: Vec<Key> = message_id.into_iter().collect();
        keys.extend(delivery.as_ref().map(|it| it.key));
        if keys.is_empty() {
            return Ok(None);
        }
        let mut begun = Begun {
            ledger: Arc::clone(self),
            delivery,
            message_id,
            retry: Retry::default(),
            keys: Vec::new(),
        };
        for key in keys {
            let lock = Arc::clone(self.busy().entry(key).or_default());
            begun.keys.push((key, None));
            let is_alike = message_id == Some(key);
            let patience = if is_alike { ALIKE_PATIENCE } else { PATIENCE };
            match timeout(patience, lock.lock_owned()).await {
                Ok(held) => drop(begun.keys.last_mut().map(|it| it.1.replace(held))),
                // Another recipient's mailbox hangs: this one need not wait for it.
                Err(_) if is_alike => begun.message_id = None,
                Err(_) => {
                    let why = "the same message is being delivered still";
                    return Err(Fault::new(Code::Busy, "deliver a message again", why));
                }
            }
        }
        let (answer, answered) = oneshot::channel();
        let request = Request::Begin {
            delivery: begun.delivery.clone(),
            message_id: begun.message_id,
            name: name.clone(),
            answer,
        };
        self.rows.ask(request);
        let known = match timeout(ANSWER, answered).await {
            Ok(answered) => answered.unwrap_or_else(|_| Err("its thread has ended".into())),
            Err(_) => Err("it does not answer".into()),
        };
        match known {
            Ok((earlier, alike)) => {
                begun.retry = Retry {
                    name: Some(name),
                    earlier,
                    alike,
                };
            }
            Err(why) => tracing::warn!(why, "a retry of this message may be stored twice"),
        }
        Ok(Some(begun))
    }

    fn busy(&self) -> MutexGuard<'_, HashMap<Key, Arc<tokio::sync::Mutex<()>>>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    /// Without a thread that lives nothing is remembered, and nothing answered.
    fn ask(&self, request: Request) {
        match self {
            Keeper::Here(rows) => {
                let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
                rows.answer(vec![request]);
            }
            Keeper::Thread(thread) => drop(thread.send(request)),
        }
    }
}

impl Begun {
    /// Writes down what became of it. Without it, because nobody knows, the row stays, and the file's name decides.
    pub fn end(self, outcome: &Outcome) {
        let request = match (outcome, &self.delivery) {
            (Outcome::Saved(saved), delivery) if !saved.is_again => {
                let saved = Box::new(saved.clone());
                Request::Saved(delivery.clone(), self.message_id, saved)
            }
            // What an earlier one has left stays: this one may have failed before it looked.
            (Outcome::Rejected(fault) | Outcome::Deferred(fault), Some(delivery))
                if self.retry.name.is_some()
                    && self.retry.earlier.is_none()
                    && fault.code != Code::Internal =>
            {
                Request::Forget(delivery.clone())
            }
            _ => return,
        };
        self.ledger.rows.ask(request);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut busy = self.ledger.busy();
        for (key, held) in self.keys.drain(..) {
            drop(held);
            // The map alone holds it: nobody waits.
            if busy.get(&key).is_some_and(|it| Arc::strong_count(it) == 1) {
                busy.remove(&key);
            }
        }
    }
}

/// All that makes a delivery the same one.
fn key_of(bytes: &[u8; 32], message: &Message, recipient: &Recipient) -> Key {
    let sender = message.envelope.sender.to_string();
    let original = recipient.original.as_deref().unwrap_or_default();
    let mailbox = recipient.mailbox.as_deref().unwrap_or_default();
    let shown = recipient.shown();
    hash(&[
        bytes,
        sender.as_bytes(),
        shown.as_bytes(),
        original.as_bytes(),
        mailbox.as_bytes(),
    ])
}

fn hash(parts: &[&[u8]]) -> Key {
    let mut context = Context::new(&SHA256);
    for part in parts {
        // No two lists of parts are the same bytes.
        context.update(digest(&SHA256, part).as_ref());
    }
    let mut key = [0; 32];
    key.copy_from_slice(context.finish().as_ref());
    key
}

/// Why there is no database.
struct Failed {
    why: String,
    /// The file is no whole database: waiting does not help.
    is_broken: bool,
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Failed {
        let code = error.sqlite_error_code();
        let broken = [ErrorCode::NotADatabase, ErrorCode::DatabaseCorrupt];
        Failed {
            is_broken: code.is_some_and(|code| broken.contains(&code)),
            why: error.to_string(),
        }
    }
}

/// How long another server may hold the database.
const BUSY: Duration = Duration::from_secs(1);

/// The database.
#[derive(Debug)]
struct Rows {
    connection: Connection,
    settings: Settings,
    /// When old rows were thrown away; seconds since 1970.
    cleaned: u64,
}

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS deliveries (
  key BLOB NOT NULL, queue_id TEXT NOT NULL, names TEXT NOT NULL, saved TEXT, at INTEGER NOT NULL,
  PRIMARY KEY (key, queue_id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS deliveries_at ON deliveries (at);
CREATE TABLE IF NOT EXISTS message_ids (
  key BLOB NOT NULL, device INTEGER NOT NULL, inode INTEGER NOT NULL, place TEXT NOT NULL, at INTEGER NOT NULL,
  PRIMARY KEY (key, device, inode, place)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS message_ids_at ON message_ids (at);
";

impl Rows {
    fn open(settings: &Settings) -> Result<Rows, String> {
        let rows = match &settings.path {
            None => Rows::made(Connection::open_in_memory(), settings),
            Some(path) => Rows::made(private(path), settings).or_else(|failed| {
                if !failed.is_broken {
                    return Err(failed);
                }
                // Never more than a cache: after a power cut it may be torn. Put aside, whatever it is.
                tracing::warn!(why = failed.why, "the database of retries is made anew");
                for end in ["", "-wal", "-shm"] {
                    let mut name = path.clone().into_os_string();
                    name.push(end);
                    let mut aside = name.clone();
                    aside.push(".broken");
                    let _ = std::fs::rename(&name, &aside);
                }
                Rows::made(private(path), settings)
            }),
        };
        rows.map_err(|Failed { why, .. }| match &settings.path {
            Some(path) => format!("{}: {why}", path.display()),
            None => why,
        })
    }

    fn made(connection: rusqlite::Result<Connection>, settings: &Settings) -> Result<Rows, Failed> {
        let connection = connection?;
        // Another generation of the server may be at its end.
        connection.busy_timeout(BUSY)?;
        let _: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        connection.execute_batch("PRAGMA synchronous = OFF;")?;
        connection.execute_batch(TABLES)?;
        let whole: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        match whole.as_str() {
            "ok" => Ok(Rows {
                connection,
                settings: settings.clone(),
                cleaned: 0,
            }),
            _ => Err(Failed {
                why: whole,
                is_broken: true,
            }),
        }
    }

    /// Works until nobody can ask any more.
    fn work(mut self, requests: &mpsc::Receiver<Request>) {
        while let Ok(first) = requests.recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(next) = requests.try_recv()
            {
                batch.push(next);
            }
            self.answer(batch);
        }
    }

    fn answer(&mut self, batch: Vec<Request>) {
        let now = now();
        let is_due = now.saturating_sub(self.cleaned) >= ROUND.as_secs();
        let answers = self.together(batch, now, is_due);
        if is_due {
            self.cleaned = now;
        }
        for (answer, known) in answers {
            // Whoever asked may have given up.
            let _ = answer.send(known);
        }
    }

    /// All of a batch in one transaction, and then what is answered.
    fn together(
        &mut self,
        batch: Vec<Request>,
        now: u64,
        is_due: bool,
    ) -> Vec<(oneshot::Sender<Known>, Known)> {
        let mut answers: Vec<(_, Known)> = Vec::new();
        if let Err(error) = self.run("BEGIN IMMEDIATE") {
            let why = error.to_string();
            tracing::warn!(why, "retries may be stored twice");
            return refused(batch, &why);
        }
        for request in batch {
            let done = match request {
                Request::Begin {
                    delivery,
                    message_id,
                    name,
                    answer,
                } => {
                    let known = self.begin(delivery.as_ref(), message_id.as_ref(), &name, now);
                    answers.push((answer, known.map_err(|error| error.to_string())));
                    Ok(())
                }
                Request::Saved(delivery, message_id, saved) => {
                    self.saved(delivery.as_ref(), message_id.as_ref(), &saved, now)
                }
                Request::Forget(id) => self.forget(&id),
            };
            warn(done);
        }
        if is_due {
            warn(self.clean(now));
        }
        if let Err(error) = self.run("COMMIT") {
            let _ = self.run("ROLLBACK");
            let why = error.to_string();
            for (_, known) in &mut answers {
                *known = known.clone().and(Err(why.clone()));
            }
        }
        answers
    }

    fn run(&self, words: &str) -> rusqlite::Result<()> {
        step()?;
        self.connection.execute_batch(words)
    }

    fn begin(
        &self,
        delivery: Option<&Id>,
        message_id: Option<&Key>,
        name: &str,
        now: u64,
    ) -> rusqlite::Result<(Option<Earlier>, Vec<Alike>)> {
        let mut earlier = None;
        if let Some(Id { key, queue_id }) = delivery {
            step()?;
            let since = now.saturating_sub(self.settings.window.as_secs());
            let mut statement = self.connection.prepare_cached(
                "SELECT names, saved FROM deliveries WHERE key = ?1 AND at > ?2
                 AND (queue_id = ?3 OR queue_id = '' OR ?3 = '') ORDER BY saved IS NULL LIMIT 1",
            )?;
            let row = statement.query_row(params![key, since as i64, queue_id], |row| {
                let (names, saved): (String, Option<String>) = (row.get(0)?, row.get(1)?);
                Ok(Earlier {
                    names: names.split(' ').map(str::to_owned).collect(),
                    saved: saved.and_then(|saved| serde_json::from_str(&saved).ok()),
                })
            });
            earlier = row.optional()?;
            if earlier.as_ref().is_none_or(|it| it.saved.is_none()) {
                step()?;
                let mut names = vec![name];
                names.extend(earlier.iter().flat_map(|it| &it.names).map(String::as_str));
                names.truncate(MAX_NAMES);
                let insert = "INSERT OR REPLACE INTO deliveries VALUES (?1, ?2, ?3, NULL, ?4)";
                self.connection.prepare_cached(insert)?.execute(params![
                    key,
                    queue_id,
                    names.join(" "),
                    now as i64
                ])?;
            }
        }
        let mut alike = Vec::new();
        if let Some(key) = message_id {
            step()?;
            let mut statement = self.connection.prepare_cached(
                "SELECT device, inode, at, place FROM message_ids WHERE key = ?1",
            )?;
            let rows = statement.query_map([key], |row| {
                let at: i64 = row.get(2)?;
                Ok(Alike {
                    mailbox: (row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64),
                    place: row.get(3)?,
                    age: now.saturating_sub(at.max(0) as u64),
                })
            })?;
            alike = rows.collect::<rusqlite::Result<_>>()?;
        }
        Ok((earlier, alike))
    }

    fn saved(
        &self,
        delivery: Option<&Id>,
        message_id: Option<&Key>,
        saved: &Saved,
        now: u64,
    ) -> rusqlite::Result<()> {
        if let Some(Id { key, queue_id }) = delivery {
            step()?;
            let text = serde_json::to_string(saved).unwrap_or_default();
            let insert = "INSERT OR REPLACE INTO deliveries VALUES (?1, ?2, ?3, ?4, ?5)";
            self.connection
                .prepare_cached(insert)?
                .execute(params![key, queue_id, saved.file, text, now as i64])?;
        }
        if let Some(key) = message_id {
            step()?;
            let (device, inode) = saved.mailbox_id;
            let insert = "INSERT OR REPLACE INTO message_ids VALUES (?1, ?2, ?3, ?4, ?5)";
            self.connection.prepare_cached(insert)?.execute(params![
                key,
                device as i64,
                inode as i64,
                saved.place,
                now as i64
            ])?;
        }
        Ok(())
    }

    fn forget(&self, id: &Id) -> rusqlite::Result<()> {
        step()?;
        let delete = "DELETE FROM deliveries WHERE key = ?1 AND queue_id = ?2";
        self.connection
            .prepare_cached(delete)?
            .execute(params![id.key, id.queue_id])?;
        Ok(())
    }

    fn clean(&self, now: u64) -> rusqlite::Result<()> {
        for (table, keep) in [
            ("deliveries", self.settings.window),
            ("message_ids", self.settings.alike),
        ] {
            let before = now.saturating_sub(keep.as_secs());
            let delete = format!("DELETE FROM {table} WHERE at <= ?1");
            self.connection.execute(&delete, [before as i64])?;
        }
        Ok(())
    }
}

/// A statement that can fail.
fn step() -> rusqlite::Result<()> {
    fault_point::pass().map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// Nobody is told anything.
fn refused(batch: Vec<Request>, why: &str) -> Vec<(oneshot::Sender<Known>, Known)> {
    let asked = batch.into_iter().filter_map(|request| match request {
        Request::Begin { answer, .. } => Some((answer, Err(why.to_owned()))),
        Request::Saved(..) | Request::Forget(_) => None,
    });
    asked.collect()
}

/// It has names of users and mailboxes in it.
fn private(path: &Path) -> rusqlite::Result<Connection> {
    let mut options = std::fs::OpenOptions::new();
    // What fails here SQLite says.
    let _ = options.append(true).create(true).mode(0o600).open(path);
    Connection::open(path)
}

fn warn(done: rusqlite::Result<()>) {
    if let Err(error) = done {
        let why = error.to_string();
        tracing::warn!(why, "a retry may be stored twice");
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;
    const KEY: Key = [1; 32];

    fn id() -> Option<Id> {
        Some(Id {
            key: KEY,
            queue_id: "Q".into(),
        })
    }

    fn begin(rows: &mut Rows, name: &str) -> Known {
        let request = Request::Begin {
            delivery: id(),
            message_id: Some(KEY),
            name: name.into(),
            answer: oneshot::channel().0,
        };
        let mut answers = rows.together(vec![request], NOW, false);
        answers.remove(0).1
    }

    /// Once it is said that a delivery is written down, a retry knows its end, or the name of its file.
    #[test]
    fn every_step_fails_once() {
        let settings = Settings {
            window: ROUND,
            alike: ROUND,
            path: None,
        };
        let is_write = |failure: &fault_point::Failure| failure.is_of_writes();
        let failures = fault_point::FAILURES.into_iter().chain(fault_point::ENDS);
        for failure in failures.filter(|failure| !is_write(failure)) {
            for step in 0.. {
                let mut rows = Rows::open(&settings).unwrap();
                fault_point::arm(step, failure);
                let begun = begin(&mut rows, "one");
                if begun.is_ok() {
                    let saved = Box::new(Saved::empty("INBOX".into(), "alice".into()));
                    rows.together(vec![Request::Saved(id(), Some(KEY), saved)], NOW, false);
                }
                let fired = !fault_point::disarm();
                // What has ended leaves no transaction that it has not committed.
                let _ = rows.connection.execute_batch("ROLLBACK");
                let case = format!("{failure:?} at {step}: {begun:?}");
                let (earlier, _) = begin(&mut rows, "two").unwrap();
                let knows = |it: &Earlier| it.saved.is_some() || it.names.contains(&"one".into());
                assert!(
                    begun.is_err() || earlier.as_ref().is_some_and(knows),
                    "{case}: {earlier:?}"
                );
                if !fired {
                    assert!(earlier.unwrap().saved.is_some(), "{case}");
                    assert!(step > 8, "only {step} steps can fail");
                    break;
                }
            }
        }
    }
}
