//! Whether deliveries may be missing from what is written down.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So long nobody would remember a delivery: "no" is "cannot tell". Shared by all that can lose one.
#[derive(Debug, Clone)]
pub struct Doubt {
    window: Duration,
    until: Arc<Mutex<Option<Instant>>>,
}

impl Doubt {
    /// None so far. `window`: how long a delivery counts.
    pub fn new(window: Duration) -> Doubt {
        Doubt {
            window,
            until: Arc::default(),
        }
    }

    /// One may have been lost now, or before.
    pub fn raise(&self) {
        *self.until() = Instant::now().checked_add(self.window);
    }

    pub fn holds(&self) -> bool {
        self.until().is_some_and(|it| Instant::now() < it)
    }

    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
