//! The ledger in a file: SQLite.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use tokio::sync::oneshot;

use super::doubt::Doubt;
use super::{Id, Key, Known, MAX_NAMES, Request, Settings, now};
use crate::deliver::{Alike, Earlier, Saved};
use crate::sys::{fault_point, process};

/// Requests that become one transaction.
const BATCH: usize = 256;
/// How often old rows are thrown away.
const ROUND: Duration = Duration::from_secs(60);

/// Rows that are further in the future count from now on.
const AHEAD: Duration = Duration::from_secs(86400);

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
pub struct Rows {
    connection: Connection,
    settings: Settings,
    doubt: Doubt,
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
  file TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (key, device, inode, place)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS message_ids_at ON message_ids (at);
CREATE TABLE IF NOT EXISTS rcpts (
  rcpt BLOB NOT NULL, key BLOB NOT NULL, queue_id TEXT NOT NULL, at INTEGER NOT NULL,
  PRIMARY KEY (rcpt, key, queue_id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS rcpts_at ON rcpts (at);
CREATE TABLE IF NOT EXISTS boot (id TEXT NOT NULL);
";

/// What the table of an older server has not got.
const FILE: &str = "ALTER TABLE message_ids ADD COLUMN file TEXT NOT NULL DEFAULT ''";

/// A file proves by its name that it is there, and of an mbox nobody knows; what Dovecot has taken is its own care.
const UNPROVEN: &str = "
UPDATE deliveries SET saved = NULL WHERE json_extract(saved, '$.is_handed_over') IS NOT 1;
DELETE FROM message_ids";

impl Rows {
    /// Made where it is missing; one that is broken is put aside, and made anew.
    pub fn open(path: &Path, settings: &Settings, doubt: &Doubt) -> Result<Rows, String> {
        let made = || Rows::made(private(path), settings, doubt);
        let rows = made().or_else(|failed| {
            if !failed.is_broken {
                return Err(failed);
            }
            // Never more than a cache: after a power cut it may be torn. Put aside, whatever it is.
            tracing::warn!(why = failed.why, "the database of retries is made anew");
            for end in ["", "-wal", "-shm"] {
                let mut name = path.to_owned().into_os_string();
                name.push(end);
                let mut aside = name.clone();
                aside.push(".broken");
                let _ = std::fs::rename(&name, &aside);
            }
            doubt.raise();
            made()
        });
        rows.map_err(|Failed { why, .. }| format!("{}: {why}", path.display()))
    }

    fn made(
        connection: rusqlite::Result<Connection>,
        settings: &Settings,
        doubt: &Doubt,
    ) -> Result<Rows, Failed> {
        let connection = connection?;
        // Another generation of the server may be at its end.
        connection.busy_timeout(BUSY)?;
        let _: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        connection.execute_batch("PRAGMA synchronous = OFF;")?;
        connection.execute_batch(TABLES)?;
        if connection.prepare("SELECT file FROM message_ids").is_err() {
            connection.execute_batch(FILE)?;
        }
        let whole: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if whole != "ok" {
            return Err(Failed {
                why: whole,
                is_broken: true,
            });
        }
        // A power cut may have cost rows.
        if is_of_another_boot(&connection, settings.is_durable)? {
            doubt.raise();
        }
        Ok(Rows {
            connection,
            settings: settings.clone(),
            doubt: doubt.clone(),
            cleaned: 0,
        })
    }

    /// Works until nobody can ask any more.
    pub fn work(mut self, requests: &mpsc::Receiver<Request>) {
        while let Ok(first) = requests.recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(next) = requests.try_recv()
            {
                batch.push(next);
            }
            self.answer(batch, now());
        }
    }

    fn answer(&mut self, batch: Vec<Request>, now: u64) {
        // A clock that was ahead too.
        let is_due = now < self.cleaned || now - self.cleaned >= ROUND.as_secs();
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
        let ends = batch.iter();
        let ends = ends.filter(|it| matches!(it, Request::Saved(..) | Request::Forget(_)));
        let ends = ends.count();
        if let Err(error) = self.run("BEGIN IMMEDIATE") {
            let why = error.to_string();
            tracing::warn!(why, ends, "retries may be stored twice");
            self.doubt.raise();
            return refused(batch, &why);
        }
        for request in batch {
            let done = match request {
                Request::Begin {
                    delivery,
                    alike,
                    rcpt,
                    name,
                    answer,
                } => {
                    let known = self.begin(delivery.as_ref(), &alike, &rcpt, &name, now);
                    answers.push((answer, known.map_err(|error| error.to_string())));
                    Ok(())
                }
                Request::Saved(delivery, message_id, saved, rcpt) => {
                    let id = delivery.as_ref();
                    let done = self.saved(id, message_id.as_ref(), &saved, &rcpt, now);
                    done.inspect_err(|_| self.doubt.raise())
                }
                Request::Forget(id) => self.forget(&id),
                Request::Asked(id, answer) => self.may_have(&id, now).map(|may| {
                    // Whoever asked may have given up.
                    let _ = answer.send(may);
                }),
            };
            warn(done);
        }
        if is_due {
            warn(self.clean(now));
        }
        if let Err(error) = self.run("COMMIT") {
            let _ = self.run("ROLLBACK");
            let why = error.to_string();
            tracing::warn!(why, ends, "retries may be stored twice");
            self.doubt.raise();
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
        keys: &[Key],
        rcpt: &[Key],
        name: &str,
        now: u64,
    ) -> rusqlite::Result<(Option<Earlier>, Vec<Alike>)> {
        let mut earlier = None;
        if let Some(Id { key, queue_id }) = delivery {
            step()?;
            let since = now.saturating_sub(self.settings.window.as_secs());
            let mut statement = self.connection.prepare_cached(
                "SELECT names, saved FROM deliveries WHERE key = ?1 AND at > ?2
                 AND (queue_id = ?3 OR queue_id = '' OR ?3 = '')",
            )?;
            let rows = statement.query_map(params![key, since as i64, queue_id], |row| {
                let (names, saved): (String, Option<String>) = (row.get(0)?, row.get(1)?);
                Ok(Earlier {
                    names: names.split(' ').map(str::to_owned).collect(),
                    saved: saved.and_then(|saved| serde_json::from_str(&saved).ok()),
                })
            })?;
            for row in rows {
                earlier = Some(Earlier::of_both(earlier, row?));
            }
            if earlier.as_ref().is_none_or(|it| it.saved.is_none()) {
                step()?;
                let mut names = vec![name];
                names.extend(earlier.iter().flat_map(|it| &it.names).map(String::as_str));
                names.truncate(MAX_NAMES);
                let insert = "INSERT OR REPLACE INTO deliveries (key, queue_id, names, at) VALUES (?1, ?2, ?3, ?4)";
                self.connection.prepare_cached(insert)?.execute(params![
                    key,
                    queue_id,
                    names.join(" "),
                    now as i64
                ])?;
                self.may_be_asked(rcpt, key, queue_id, now)?;
            }
        }
        let mut alike = Vec::new();
        for key in keys {
            step()?;
            let mut statement = self.connection.prepare_cached(
                "SELECT device, inode, at, place, file FROM message_ids WHERE key = ?1",
            )?;
            let rows = statement.query_map([key], |row| {
                let at: i64 = row.get(2)?;
                Ok(Alike {
                    mailbox: (row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64),
                    place: row.get(3)?,
                    file: row.get(4)?,
                    age: now.saturating_sub(at.max(0) as u64),
                })
            })?;
            alike.extend(rows.collect::<rusqlite::Result<Vec<_>>>()?);
        }
        Ok((earlier, alike))
    }

    fn may_be_asked(
        &self,
        rcpt: &[Key],
        key: &Key,
        queue_id: &str,
        now: u64,
    ) -> rusqlite::Result<()> {
        for asked in rcpt {
            step()?;
            let insert = "INSERT OR REPLACE INTO rcpts (rcpt, key, queue_id, at)
                          VALUES (?1, ?2, ?3, ?4)";
            self.connection
                .prepare_cached(insert)?
                .execute(params![asked, key, queue_id, now as i64])?;
        }
        Ok(())
    }

    fn saved(
        &self,
        delivery: Option<&Id>,
        message_id: Option<&Key>,
        saved: &Saved,
        rcpt: &[Key],
        now: u64,
    ) -> rusqlite::Result<()> {
        if let Some(Id { key, queue_id }) = delivery {
            step()?;
            let text = serde_json::to_string(saved).unwrap_or_default();
            let insert = "INSERT OR REPLACE INTO deliveries (key, queue_id, names, saved, at)
                          VALUES (?1, ?2, ?3, ?4, ?5)";
            self.connection
                .prepare_cached(insert)?
                .execute(params![key, queue_id, saved.file, text, now as i64])?;
            self.may_be_asked(rcpt, key, queue_id, now)?;
        }
        if let Some(key) = message_id {
            step()?;
            let (device, inode) = saved.mailbox_id;
            let insert = "INSERT OR REPLACE INTO message_ids (key, device, inode, place, at, file)
                          VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            self.connection.prepare_cached(insert)?.execute(params![
                key,
                device as i64,
                inode as i64,
                saved.place,
                now as i64,
                saved.file
            ])?;
        }
        Ok(())
    }

    fn may_have(&self, id: &Id, now: u64) -> rusqlite::Result<bool> {
        let since = now.saturating_sub(self.settings.window.as_secs());
        let mut statement = self.connection.prepare_cached(
            "SELECT 1 FROM rcpts JOIN deliveries USING (key, queue_id) WHERE rcpt = ?1
             AND (queue_id = ?2 OR queue_id = '' OR ?2 = '') AND deliveries.at > ?3",
        )?;
        statement.exists(params![id.key, id.queue_id, since as i64])
    }

    fn forget(&self, id: &Id) -> rusqlite::Result<()> {
        step()?;
        let delete = "DELETE FROM deliveries
                      WHERE key = ?1 AND (queue_id = ?2 OR queue_id = '' OR ?2 = '')";
        self.connection
            .prepare_cached(delete)?
            .execute(params![id.key, id.queue_id])?;
        Ok(())
    }

    fn clean(&self, now: u64) -> rusqlite::Result<()> {
        for (table, keep) in [
            ("deliveries", self.settings.window),
            ("rcpts", self.settings.window),
            ("message_ids", self.settings.alike),
        ] {
            let before = now.saturating_sub(keep.as_secs());
            let delete = format!("DELETE FROM {table} WHERE at <= ?1");
            self.connection.execute(&delete, [before as i64])?;
            // The clock was ahead, or is behind: nobody knows when that was.
            let date = format!("UPDATE {table} SET at = ?1 WHERE at > ?2");
            let ahead = now + AHEAD.as_secs();
            self.connection.execute(&date, [now as i64, ahead as i64])?;
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
        Request::Saved(..) | Request::Forget(_) | Request::Asked(..) => None,
    });
    asked.collect()
}

/// Whether the machine was started since the file was made, or since this was asked.
/// Mail that was not synced may have gone since then, and its rows prove nothing.
fn is_of_another_boot(connection: &Connection, is_durable: bool) -> rusqlite::Result<bool> {
    let Some(boot) = process::boot_id() else {
        return Ok(false);
    };
    let known = connection.query_row("SELECT id FROM boot", [], |row| row.get(0));
    let known: Option<String> = known.optional()?;
    if known.as_ref() == Some(&boot) {
        return Ok(false);
    }
    if known.is_some() && !is_durable {
        connection.execute_batch(UNPROVEN)?;
    }
    // One statement: whoever is killed here leaves the old one, or the new one.
    let tell = match known {
        None => "INSERT INTO boot VALUES (?1)",
        Some(_) => "UPDATE boot SET id = ?1",
    };
    connection.execute(tell, [boot])?;
    Ok(known.is_some())
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

    fn open(path: &Path) -> Rows {
        let settings = Settings {
            window: ROUND,
            alike: ROUND,
            is_asked_at_rcpt: true,
            is_durable: true,
            path: None,
        };
        Rows::open(path, &settings, &Doubt::new(ROUND)).unwrap()
    }

    fn begin(rows: &mut Rows, name: &str) -> Known {
        begin_of(rows, id(), name)
    }

    fn begin_of(rows: &mut Rows, delivery: Option<Id>, name: &str) -> Known {
        let request = Request::Begin {
            delivery,
            alike: vec![KEY],
            rcpt: Vec::new(),
            name: name.into(),
            answer: oneshot::channel().0,
        };
        let mut answers = rows.together(vec![request], NOW, false);
        answers.remove(0).1
    }

    /// Two that nobody knows the end of, with a queue id and without: the file may have the name of either.
    #[test]
    fn names_of_several_rows() {
        let dir = tempfile::tempdir().unwrap();
        let mut rows = open(&dir.path().join("db"));
        for (name, queue_id) in [("one", ""), ("two", "Q"), ("three", "")] {
            let queue_id = queue_id.into();
            let delivery = Some(Id { key: KEY, queue_id });
            begin_of(&mut rows, delivery, name).unwrap();
        }
        let names = begin(&mut rows, "four").unwrap().0.unwrap().names;
        for name in ["one", "two", "three"] {
            assert!(names.contains(&name.into()), "{name}: {names:?}");
        }
    }

    /// The first delivery has made the file, and the servers behind it end before they have found it.
    #[test]
    fn a_name_outlives_many_retries() {
        let dir = tempfile::tempdir().unwrap();
        let mut rows = open(&dir.path().join("db"));
        for retry in 0..MAX_NAMES {
            let known = begin(&mut rows, &format!("name{retry}")).unwrap().0;
            let names = known.map(|it| it.names).unwrap_or_default();
            assert_eq!(names.len(), retry);
            assert!(retry == 0 || names.contains(&"name0".into()), "{names:?}");
        }
    }

    fn saved(rows: &mut Rows, rcpt: Vec<Key>) {
        let saved = Box::new(Saved::empty("INBOX".into(), "alice".into()));
        rows.together(
            vec![Request::Saved(id(), Some(KEY), saved, rcpt)],
            NOW,
            false,
        );
    }

    /// What costs a row makes "no" a "cannot tell", and nothing else does.
    #[test]
    fn what_makes_it_doubtful() {
        type Change<'a> = &'a dyn Fn(&Path);
        let torn = |path: &Path| std::fs::write(path, [b'x'; 5000]).unwrap();
        let booted = |path: &Path| {
            let db = Connection::open(path).unwrap();
            db.execute("UPDATE boot SET id = 'another'", []).unwrap();
        };
        // what becomes of the file while no server runs
        let cases: [(&str, Change<'_>, bool); 3] = [
            ("nothing", &|_| (), false),
            ("it is torn", &torn, true),
            ("the machine is started anew", &booted, true),
        ];
        for (what, between, want) in cases {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("db");
            let mut rows = open(&path);
            saved(&mut rows, Vec::new());
            assert!(!rows.doubt.holds(), "{what}: a new file");
            drop(rows);
            between(&path);
            assert_eq!(open(&path).doubt.holds(), want, "{what}");
            assert!(!open(&path).doubt.holds(), "{what}: once");
        }
        let mut lost = 0;
        for step in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let mut rows = open(&dir.path().join("db"));
            fault_point::arm(step, fault_point::ERRNOS[0]);
            saved(&mut rows, vec![KEY]);
            let fired = !fault_point::disarm();
            assert_eq!(rows.doubt.holds(), fired, "step {step}");
            if !fired {
                break;
            }
            lost += 1;
        }
        assert_eq!(lost, 5, "begin, three rows, commit");
    }

    /// With `mail_fsync = never` what was stored before a power cut may be gone: only its name proves it.
    #[test]
    fn what_was_not_synced_and_another_boot() {
        for (is_durable, is_cut) in [(false, true), (false, false), (true, true)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("db");
            let mut rows = open(&path);
            saved(&mut rows, Vec::new());
            if is_cut {
                let another = "UPDATE boot SET id = 'another'";
                rows.connection.execute(another, []).unwrap();
            }
            let settings = Settings {
                is_durable,
                ..rows.settings.clone()
            };
            drop(rows);
            let mut rows = Rows::open(&path, &settings, &Doubt::new(ROUND)).unwrap();
            let (earlier, alike) = begin(&mut rows, "two").unwrap();
            let is_proven = is_durable || !is_cut;
            let case = format!("{is_durable} {is_cut}: {earlier:?} {alike:?}");
            assert_eq!(earlier.unwrap().saved.is_some(), is_proven, "{case}");
            assert_eq!(alike.len(), usize::from(is_proven), "{case}");
        }
    }

    /// Its beginning was refused, its end is not.
    #[test]
    fn rcpt_may_ask_of_what_was_only_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut rows = open(&dir.path().join("db"));
        for (rcpt, may) in [(Vec::new(), false), (vec![KEY], true)] {
            saved(&mut rows, rcpt);
            assert_eq!(rows.may_have(&id().unwrap(), NOW).unwrap(), may);
        }
    }

    /// The clock is ahead by two days for a while, or is behind now: what was delivered is known, and forgotten in time.
    #[test]
    fn a_clock_that_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut rows = open(&dir.path().join("db"));
        let day = AHEAD.as_secs();
        for at in [NOW, NOW + 60, NOW + 2 * day] {
            let saved = Box::new(Saved::empty("INBOX".into(), "alice".into()));
            rows.answer(vec![Request::Saved(id(), Some(KEY), saved, Vec::new())], at);
            rows.answer(Vec::new(), NOW);
            let (earlier, alike) = begin(&mut rows, "two").unwrap();
            assert!(earlier.unwrap().saved.is_some(), "{at}");
            assert_eq!(alike.len(), 1, "{at}");
            rows.answer(Vec::new(), NOW + 2 * day - 1);
            let left =
                "SELECT (SELECT count(*) FROM deliveries) + (SELECT count(*) FROM message_ids)";
            let left: i64 = rows
                .connection
                .query_row(left, [], |row| row.get(0))
                .unwrap();
            assert_eq!(left, 0, "{at}");
        }
    }

    /// Once it is said that a delivery is written down, a retry knows its end, or the name of its file.
    #[test]
    fn every_step_fails_once() {
        let dir = tempfile::tempdir().unwrap();
        let is_write = |failure: &fault_point::Failure| failure.is_of_writes();
        let failures = fault_point::FAILURES.into_iter().chain(fault_point::ENDS);
        for failure in failures.filter(|failure| !is_write(failure)) {
            for step in 0.. {
                let path = dir.path().join(format!("{failure:?}{step}"));
                let mut rows = open(&path);
                fault_point::arm(step, failure);
                let begun = begin(&mut rows, "one");
                if begun.is_ok() {
                    let saved = Box::new(Saved::empty("INBOX".into(), "alice".into()));
                    rows.together(
                        vec![Request::Saved(id(), Some(KEY), saved, Vec::new())],
                        NOW,
                        false,
                    );
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
