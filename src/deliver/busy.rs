//! Mailboxes whose lock somebody holds on and on: waited for once, and then for a while only asked for.
//!
//! Each message would else wait as long as the first one, and with it those behind it in this process.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a lock is not waited for.
const REST: Duration = Duration::from_secs(10);
/// Directories that are remembered.
const MAX_KNOWN: usize = 1024;

/// Control directories, and until when their locks are not waited for.
#[derive(Debug, Default)]
pub struct Busy(Mutex<HashMap<PathBuf, Instant>>);

impl Busy {
    /// How long to wait for the lock in `control`, at most `until` then.
    pub fn timeout(&self, control: &Path, until: Instant) -> Duration {
        let now = Instant::now();
        match self.lock().get(control).is_some_and(|rest| *rest > now) {
            true => Duration::ZERO,
            false => until.saturating_duration_since(now),
        }
    }

    /// Whether somebody held it until nobody waited any more.
    pub fn note(&self, control: &Path, is_held: bool) {
        let mut known = self.lock();
        match is_held {
            false => drop(known.remove(control)),
            true => {
                let now = Instant::now();
                if known.len() >= MAX_KNOWN {
                    known.retain(|_, rest| *rest > now);
                }
                // Asked for in vain meanwhile: its rest ends nevertheless.
                let is_resting = known.get(control).is_some_and(|rest| *rest > now);
                if !is_resting && known.len() < MAX_KNOWN {
                    known.insert(control.to_owned(), now + REST);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_held_is_only_asked_for() {
        let busy = Busy::default();
        let second = Duration::from_secs(1);
        let until = Instant::now() + 60 * second;
        let waits = |control: &str| busy.timeout(Path::new(control), until) > 50 * second;
        assert!(waits("a"));
        assert!(
            busy.timeout(Path::new("a"), Instant::now() - second)
                .is_zero()
        );
        busy.note(Path::new("a"), true);
        assert!(!waits("a") && waits("b"));
        busy.note(Path::new("a"), false);
        assert!(waits("a"));
        // Those that are over make room; while there is none nobody is forgotten.
        for number in 0..2 * MAX_KNOWN {
            busy.note(Path::new(&number.to_string()), true);
        }
        assert_eq!(busy.lock().len(), MAX_KNOWN);
        assert!(!waits("0"));
        busy.lock().values_mut().for_each(|rest| *rest -= 2 * REST);
        assert!(waits("0"));
        busy.note(Path::new("a"), true);
        assert_eq!(busy.lock().len(), 1);
    }
}
