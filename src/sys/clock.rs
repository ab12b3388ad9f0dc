//! The clock that files are dated by: whether somebody has set it ahead since this process began.
//!
//! Whoever has been asleep with the whole machine sees the same.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// What two looks at both clocks differ by at most where nobody sets one: they are slewed together.
const DIFFERENCE: Duration = Duration::from_secs(1);

static CLOCK: LazyLock<Mutex<Clock>> =
    LazyLock::new(|| Mutex::new(Clock::at(Instant::now(), SystemTime::now())));

/// From here on it is noticed.
pub fn watch() {
    LazyLock::force(&CLOCK);
}

/// Whether it was noticed within `time` that it has been set ahead: then nothing need be as old as it looks.
pub fn was_set_ahead(time: Duration) -> bool {
    #[cfg(test)]
    if let Some(was) = tests::WAS_SET_AHEAD.get() {
        return was;
    }
    let mut clock = CLOCK.lock().unwrap_or_else(PoisonError::into_inner);
    clock.was_set_ahead(Instant::now(), SystemTime::now(), time)
}

/// The last look, and when it was noticed.
#[derive(Debug)]
struct Clock {
    looked: Instant,
    showed: SystemTime,
    noticed: Option<Instant>,
}

impl Clock {
    fn at(looked: Instant, showed: SystemTime) -> Clock {
        Clock {
            looked,
            showed,
            noticed: None,
        }
    }

    fn was_set_ahead(&mut self, now: Instant, shows: SystemTime, time: Duration) -> bool {
        let passed = now.saturating_duration_since(self.looked);
        // Set back, everything looks younger: that harms nobody.
        let seems = shows.duration_since(self.showed).unwrap_or_default();
        if seems > passed.saturating_add(DIFFERENCE) {
            self.noticed = Some(now);
        }
        (self.looked, self.showed) = (now, shows);
        self.noticed
            .is_some_and(|noticed| now.saturating_duration_since(noticed) <= time)
    }
}

#[cfg(test)]
pub mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// As it is told; none: as it is.
        pub static WAS_SET_AHEAD: Cell<Option<bool>> = const { Cell::new(None) };
    }

    #[test]
    fn what_is_noticed() {
        let (began, showed) = (Instant::now(), SystemTime::now());
        let minutes = |count: i64| count * 60;
        // seconds that have passed and that the clock shows, at each look, and whether it was set ahead within two minutes
        for looks in [
            &[(0, 0, false), (minutes(1000), minutes(1000), false)][..],
            &[(10, 11, false), (20, 22, false)],
            &[(10, 190, true), (130, 310, true), (131, 311, false)],
            &[(10, 190, true), (100, 460, true), (200, 560, true)],
            // Set back, and ahead again to where it was.
            &[(10, -500, false), (20, 20, true)],
            &[(10, -500, false), (500, -10, false)],
        ] {
            let mut clock = Clock::at(began, showed);
            for (passed, shows, is_ahead) in looks {
                let now = began + Duration::from_secs(*passed as u64);
                let seconds = Duration::from_secs(i64::abs(*shows) as u64);
                let shown = match *shows < 0 {
                    true => showed - seconds,
                    false => showed + seconds,
                };
                let was = clock.was_set_ahead(now, shown, Duration::from_secs(120));
                assert_eq!(was, *is_ahead, "{looks:?} at {passed}");
            }
        }
    }
}
