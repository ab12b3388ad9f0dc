//! Files whose lock somebody holds on and on: waited for once, and then for a while only asked for.
//!
//! Each message would else wait as long as the first one, and with it those behind it in this process.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a lock is not waited for.
const REST: Duration = Duration::from_secs(10);
/// Files that are remembered.
const MAX_KNOWN: usize = 1024;

/// Locked files, and until when their locks are not waited for.
#[derive(Debug, Default)]
pub struct Busy(Mutex<HashMap<PathBuf, Instant>>);

impl Busy {
    /// Takes the lock of `file`, which `take` waits for as long as it is told: for `whole`, and at most `until` then.
    pub fn take<T>(
        &self,
        file: &Path,
        whole: Duration,
        until: Instant,
        take: impl FnOnce(Duration) -> io::Result<T>,
    ) -> io::Result<T> {
        let now = Instant::now();
        let timeout = match self.lock().get(file).is_some_and(|rest| *rest > now) {
            true => Duration::ZERO,
            false => whole.min(until.saturating_duration_since(now)),
        };
        let taken = take(timeout);
        match &taken {
            Ok(_) => drop(self.lock().remove(file)),
            // Others have used the time up, or it rests: that says nothing of whoever holds it.
            Err(error) if error.kind() == ErrorKind::TimedOut && timeout * 2 > whole => {
                self.let_rest(file);
            }
            Err(_) => {}
        }
        taken
    }

    fn let_rest(&self, file: &Path) {
        let (mut known, now) = (self.lock(), Instant::now());
        if known.len() >= MAX_KNOWN {
            known.retain(|_, rest| *rest > now);
        }
        if known.len() < MAX_KNOWN {
            known.insert(file.to_owned(), now + REST);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Duration = Duration::from_secs(2);

    /// How long it is waited for; then somebody holds it still.
    fn waited(busy: &Busy, file: &str, left: Duration) -> Duration {
        let mut waited = None;
        let _ = busy.take(Path::new(file), WHOLE, Instant::now() + left, |timeout| {
            waited = Some(timeout);
            io::Result::<()>::Err(ErrorKind::TimedOut.into())
        });
        waited.unwrap()
    }

    #[test]
    fn a_lock_that_is_held_is_only_asked_for() {
        let busy = Busy::default();
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(10));
        // Not waited for long enough: nothing is known of it.
        assert!(waited(&busy, "a", Duration::ZERO).is_zero());
        assert!(waited(&busy, "a", short) <= short);
        assert_eq!(waited(&busy, "a", long), WHOLE);
        assert!(waited(&busy, "a", long).is_zero());
        assert_eq!(waited(&busy, "b", long), WHOLE);
        // Asked for in vain meanwhile: its rest ends nevertheless.
        busy.lock().values_mut().for_each(|rest| *rest -= 2 * REST);
        assert_eq!(waited(&busy, "a", long), WHOLE);
        let until = Instant::now() + long;
        busy.take(Path::new("a"), WHOLE, until, |_| Ok(())).unwrap();
        assert_eq!(waited(&busy, "a", long), WHOLE);
        // Those that are over make room; while there is none nobody is forgotten.
        for number in 0..2 * MAX_KNOWN {
            waited(&busy, &number.to_string(), long);
        }
        assert_eq!(busy.lock().len(), MAX_KNOWN);
        assert!(waited(&busy, "0", long).is_zero());
        busy.lock().values_mut().for_each(|rest| *rest -= 2 * REST);
        assert_eq!(waited(&busy, "0", long), WHOLE);
        assert_eq!(busy.lock().len(), 1);
    }
}
