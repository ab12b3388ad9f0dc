//! The deliveries of one user at once: whoever has many, or a mailbox that hangs, leaves room for others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::fault::{Code, Fault};

/// Nothing of a user has ended for so long: who comes now does not wait.
const STALLED: Duration = Duration::from_secs(5);
/// The longest wait for a turn.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much of the server one user may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Deliveries and look-ups at work.
    pub at_once: usize,
    /// Those that wait for their turn.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            at_once: 32,
            waiting: 1000,
        }
    }
}

/// The turns of all users who have something going on.
#[derive(Debug)]
pub struct Turns {
    limits: Limits,
    /// Each with how many hold it.
    users: Mutex<HashMap<String, (Arc<Line>, usize)>>,
}

/// One user's.
#[derive(Debug)]
struct Line {
    free: Semaphore,
    waiting: AtomicUsize,
    /// When a turn has begun or ended last.
    moved: Mutex<Instant>,
}

/// One turn; it ends with this value.
#[derive(Debug)]
pub struct Turn {
    turns: Arc<Turns>,
    user: String,
    line: Arc<Line>,
    has_it: bool,
}

impl Turns {
    /// `limits`: for each user alone.
    pub fn new(limits: Limits) -> Arc<Turns> {
        Arc::new(Turns {
            limits,
            users: Mutex::default(),
        })
    }

    /// Waits for a turn of this user; an error where that has no prospect.
    pub async fn take(self: &Arc<Turns>, user: String) -> Result<Turn, Fault> {
        let mut turn = self.enter(user);
        let line = Arc::clone(&turn.line);
        if let Ok(permit) = line.free.try_acquire() {
            permit.forget();
            turn.begin();
            return Ok(turn);
        }
        let doing = format!("deliver to {}", turn.user);
        let busy = |why: String| Err(Fault::new(Code::Busy, doing, why));
        if line.moved().elapsed() > STALLED {
            return busy("all earlier deliveries to this user hang".into());
        }
        if line.waiting.fetch_add(1, Ordering::Relaxed) >= self.limits.waiting {
            line.waiting.fetch_sub(1, Ordering::Relaxed);
            return busy(format!("{} wait already", self.limits.waiting));
        }
        let _waiting = Waiting(&line.waiting);
        match timeout(PATIENCE, line.free.acquire()).await {
            Ok(Ok(permit)) => {
                permit.forget();
                turn.begin();
                Ok(turn)
            }
            _ => busy(format!("no turn within {} s", PATIENCE.as_secs())),
        }
    }

    fn enter(self: &Arc<Turns>, user: String) -> Turn {
        let line = {
            let mut users = self.users();
            let new = || {
                let line = Line {
                    free: Semaphore::new(self.limits.at_once),
                    waiting: AtomicUsize::new(0),
                    moved: Mutex::new(Instant::now()),
                };
                (Arc::new(line), 0)
            };
            let (line, holders) = users.entry(user.clone()).or_insert_with(new);
            *holders += 1;
            Arc::clone(line)
        };
        Turn {
            turns: Arc::clone(self),
            user,
            line,
            has_it: false,
        }
    }

    fn users(&self) -> MutexGuard<'_, HashMap<String, (Arc<Line>, usize)>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn moved(&self) -> MutexGuard<'_, Instant> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    fn begin(&mut self) {
        self.has_it = true;
        self.moved_now();
    }

    fn moved_now(&self) {
        *self.line.moved() = Instant::now();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.has_it {
            self.moved_now();
            self.line.free.add_permits(1);
        }
        let mut users = self.turns.users();
        if let Some((_, holders)) = users.get_mut(&self.user) {
            *holders -= 1;
            if *holders == 0 {
                users.remove(&self.user);
            }
        }
    }
}

/// Whoever gives up waits no more.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns() -> Arc<Turns> {
        Turns::new(Limits {
            at_once: 2,
            waiting: 1,
        })
    }

    async fn take(turns: &Arc<Turns>, user: &str) -> Result<Turn, Code> {
        turns.take(user.into()).await.map_err(|fault| fault.code)
    }

    #[tokio::test]
    async fn one_user_leaves_room_for_others() {
        let turns = turns();
        let first = take(&turns, "a").await.unwrap();
        let _second = take(&turns, "a").await.unwrap();
        let third = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { take(&turns, "a").await.is_ok() }
        });
        while turns.users()["a"].0.waiting.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(take(&turns, "a").await.unwrap_err(), Code::Busy);
        assert!(take(&turns, "b").await.is_ok());
        drop(first);
        assert!(third.await.unwrap());
        assert_eq!(turns.users().len(), 1);
    }

    #[tokio::test]
    async fn who_hangs_is_not_waited_for() {
        let turns = turns();
        let hung = [take(&turns, "a").await, take(&turns, "a").await];
        *turns.users()["a"].0.moved() -= 2 * STALLED;
        assert_eq!(take(&turns, "a").await.unwrap_err(), Code::Busy);
        drop(hung);
        assert!(take(&turns, "a").await.is_ok());
        assert!(turns.users().is_empty());
    }
}
