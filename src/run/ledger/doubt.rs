//! Whether deliveries may be missing from what is written down.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Behind the name of the database.
const MARK: &str = ".doubt";

/// So long nobody would remember a delivery: "no" is "cannot tell". Shared by all that can lose one.
#[derive(Debug, Clone)]
pub struct Doubt {
    window: Duration,
    until: Arc<Mutex<Option<Instant>>>,
    /// Who marks it for the next server: its disk may hang, and nobody waits for that. None: nothing outlives this process anyway.
    marker: Option<SyncSender<()>>,
}

impl Doubt {
    /// None so far. `window`: how long a delivery counts.
    pub fn new(window: Duration) -> Doubt {
        Doubt {
            window,
            until: Arc::default(),
            marker: None,
        }
    }

    /// That of the last server, which an empty file beside the database tells: it was raised last when that was changed. Where nobody can
    /// tell it is raised. To be asked before the database is made.
    pub fn recalled(window: Duration, database: &Path) -> Doubt {
        let mut doubt = Doubt::new(window);
        let marked = open_mark(database).and_then(|(mark, is_lone)| {
            let raised = mark.metadata()?.modified()?;
            let (marker, raises) = mpsc::sync_channel(1);
            let mark_each = move || {
                for () in raises {
                    // Where that fails a restart forgets it.
                    let _ = mark.set_modified(SystemTime::now());
                }
            };
            thread::Builder::new()
                .name("doubt".into())
                .spawn(mark_each)?;
            doubt.marker = Some(marker);
            Ok((raised, is_lone))
        });
        // Where the clock has gone back nobody knows how long ago that was.
        let age = match marked {
            Ok((raised, false)) => raised.elapsed().ok(),
            _ => None,
        };
        match age {
            None => doubt.raise(),
            Some(age) => {
                let left = window.checked_sub(age);
                *doubt.until() = left.and_then(|left| Instant::now().checked_add(left));
            }
        }
        doubt
    }

    /// One may have been lost now, or before.
    pub fn raise(&self) {
        *self.until() = Instant::now().checked_add(self.window);
        self.mark();
    }

    /// The next server has it raised now.
    pub fn mark(&self) {
        if let Some(marker) = &self.marker {
            // Full: it is about to be marked.
            let _ = marker.try_send(());
        }
    }

    pub fn holds(&self) -> bool {
        self.until().is_some_and(|it| Instant::now() < it)
    }

    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// There before it is needed: a disk that is full still takes its time of change. Whether the one of mark and database is there without
/// the other: then that one was removed since, with what it told.
fn open_mark(database: &Path) -> io::Result<(File, bool)> {
    let has_database = database.try_exists()?;
    let mut path = database.as_os_str().to_owned();
    path.push(MARK);
    let mut options = OpenOptions::new();
    options.append(true).mode(0o600);
    if let Ok(mark) = options.open(&path) {
        return Ok((mark, !has_database));
    }
    let mark = options.create_new(true).open(&path)?;
    mark.set_modified(SystemTime::UNIX_EPOCH)?;
    Ok((mark, has_database))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// What the next server thinks of it.
    #[test]
    fn over_a_restart() {
        let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
        // when it was raised
        for (case, raised, want) in [
            ("right now", ago(0), true),
            ("within the window", ago(50), true),
            ("before it", ago(70), false),
            (
                "by a clock that was ahead",
                SystemTime::now() + 60 * MINUTE,
                true,
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("db");
            let first = Doubt::recalled(MINUTE, &path);
            assert!(!first.holds(), "{case}: the first server");
            File::create(&path).unwrap();
            open_mark(&path).unwrap().0.set_modified(raised).unwrap();
            let next = Doubt::recalled(MINUTE, &path);
            assert_eq!(next.holds(), want, "{case}");
            assert!(!Doubt::recalled(Duration::ZERO, &path).holds(), "{case}");
        }
    }

    /// An administrator, or a backup that has one of them.
    #[test]
    fn one_of_the_files_is_removed() {
        let path = |dir: &tempfile::TempDir| dir.path().join("db");
        for (case, removed, want) in [
            ("neither", None, false),
            ("the database", Some("db"), true),
            ("the mark", Some("db.doubt"), true),
        ] {
            let dir = tempfile::tempdir().unwrap();
            assert!(!Doubt::recalled(MINUTE, &path(&dir)).holds(), "{case}");
            File::create(path(&dir)).unwrap();
            if let Some(name) = removed {
                std::fs::remove_file(dir.path().join(name)).unwrap();
            }
            let next = Doubt::recalled(MINUTE, &path(&dir));
            assert_eq!(next.holds(), want, "{case} is removed");
        }
    }

    /// The next server learns of it, however often it was raised.
    #[test]
    fn what_is_raised_is_marked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let first = Doubt::recalled(MINUTE, &path);
        File::create(&path).unwrap();
        (0..1000).for_each(|_| first.raise());
        assert!(first.holds());
        let began = Instant::now();
        while !Doubt::recalled(MINUTE, &path).holds() {
            assert!(began.elapsed() < MINUTE, "nothing is marked");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// No folder, or one that is not ours: nobody knows what the last server has lost.
    #[test]
    fn without_a_file() {
        assert!(Doubt::recalled(MINUTE, Path::new("/nowhere/db")).holds());
    }
}
