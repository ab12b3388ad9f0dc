//! One queue per mailbox: whoever waits for it joins the next batch.
//!
//! The first to come stores what is there (in a Maildir each message gets its name, then they share their syncs; in an mbox all are
//! appended under one lock, by one sync); those that come while it does so wait, and one of them stores the next batch. A message
//! is answered after the sync that covers it, never before.

use std::collections::HashMap;
use std::hash::Hash;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::fault::{Code, Fault};

/// A batch that takes longer hangs: not everybody waits for its end then.
const STALLED: Duration = Duration::from_secs(5);
/// How many still do.
const MAX_WAITING: usize = 4;

/// The queues of one process, by what tells their mailboxes apart: messages `M` become answers `A`.
#[derive(Debug)]
pub struct Queues<K, M, A>(Mutex<HashMap<K, Arc<Queue<M, A>>>>);

#[derive(Debug)]
struct Queue<M, A> {
    state: Mutex<State<M, A>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<M, A> {
    next: u64,
    waiting: Vec<(u64, M)>,
    /// Since when a batch is being stored.
    leading: Option<Instant>,
    done: HashMap<u64, Result<A, Fault>>,
    /// How many wait to be woken.
    asleep: usize,
}

impl<K, M, A> Default for Queues<K, M, A> {
    fn default() -> Self {
        Queues(Mutex::default())
    }
}

impl<M, A> Default for Queue<M, A> {
    fn default() -> Self {
        let state = State {
            next: 0,
            waiting: Vec::new(),
            leading: None,
            done: HashMap::new(),
            asleep: 0,
        };
        Queue {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, M, A> Queues<K, M, A> {
    /// Has the message stored in the mailbox `key`, by whoever leads: `store` answers for each of a batch, in their order. Behind a store
    /// that hangs a message may wait longer than its client.
    pub fn join(
        &self,
        key: K,
        message: M,
        store: impl FnMut(Vec<M>) -> Vec<Result<A, Fault>>,
    ) -> Result<A, Fault> {
        let queue = Arc::clone(lock(&self.0).entry(key.clone()).or_default());
        let result = queue.join(message, store);
        let mut queues = lock(&self.0);
        // The map and this call hold it: nobody waits, and an idle mailbox costs nothing.
        if Arc::strong_count(&queue) == 2 {
            queues.remove(&key);
        }
        result
    }
}

impl<M, A> Queue<M, A> {
    fn join(
        &self,
        message: M,
        mut store: impl FnMut(Vec<M>) -> Vec<Result<A, Fault>>,
    ) -> Result<A, Fault> {
        let mut state = lock(&self.state);
        let own = state.next;
        state.next += 1;
        state.waiting.push((own, message));
        loop {
            if let Some(result) = state.done.remove(&own) {
                return result;
            }
            if let Some(since) = state.leading {
                let place = state.waiting.iter().position(|(member, _)| *member == own);
                if since.elapsed() > STALLED
                    && let Some(place) = place.filter(|&place| place >= MAX_WAITING)
                {
                    state.waiting.remove(place);
                    let why = format!("{MAX_WAITING} wait for one that hangs");
                    return Err(Fault::new(Code::Busy, "make a message visible", why));
                }
                state.asleep += 1;
                let waited = self.changed.wait_timeout(state, STALLED);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                state.asleep -= 1;
                continue;
            }
            state.leading = Some(Instant::now());
            let batch = mem::take(&mut state.waiting);
            drop(state);
            let lead = Lead {
                queue: self,
                members: batch.iter().map(|(member, _)| *member).collect(),
            };
            let batch = batch.into_iter().map(|(_, message)| message).collect();
            lead.settle(store(batch));
            state = lock(&self.state);
        }
    }
}

/// The duty to answer every member of a batch, whatever happens to its leader.
struct Lead<'a, M, A> {
    queue: &'a Queue<M, A>,
    members: Vec<u64>,
}

impl<M, A> Lead<'_, M, A> {
    fn settle(mut self, results: Vec<Result<A, Fault>>) {
        let members = mem::take(&mut self.members);
        lock(&self.queue.state)
            .done
            .extend(members.into_iter().zip(results));
    }
}

impl<M, A> Drop for Lead<'_, M, A> {
    fn drop(&mut self) {
        let lost = || {
            Err(Fault::new(
                Code::Internal,
                "make a message visible",
                "the batch ended without an answer",
            ))
        };
        let mut state = lock(&self.queue.state);
        state
            .done
            .extend(self.members.drain(..).map(|member| (member, lost())));
        state.leading = None;
        let is_awaited = state.asleep > 0;
        // Whoever wakes up needs it.
        drop(state);
        // A system call, also where nobody waits.
        if is_awaited {
            self.queue.changed.notify_all();
        }
    }
}

/// A panic elsewhere leaves the state as it was between two steps, which is a good state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::super::busy::Busy;
    use super::super::carry_out::Heard;
    use super::super::publish::{Message, Publishing};
    use super::*;
    use crate::deliver::carry_out::DEADLINE;
    use crate::index::Walks;
    use crate::mailbox::path::Paths;
    use crate::maildir::Maildir;
    use crate::maildir::filename::Names;
    use crate::maildir::save::Demands;
    use crate::message::body::{BodyWriter, Spool};
    use crate::message::{Flags, Keywords};
    use crate::sys::dir::Dir;

    /// Behind a store that hangs four may wait; the others are told.
    #[test]
    fn so_many_wait_for_one_that_hangs() {
        let queue: Queue<u32, u32> = Queue::default();
        lock(&queue.state).leading = Some(Instant::now() - 2 * STALLED);
        let join = |number| queue.join(number, |batch| batch.into_iter().map(Ok).collect());
        let results: Vec<Result<u32, Fault>> = thread::scope(|scope| {
            let waiting = (0..MAX_WAITING as u32 + 2).map(|number| {
                let member = scope.spawn(move || join(number));
                while lock(&queue.state).next <= u64::from(number) {
                    thread::yield_now();
                }
                member
            });
            let waiting: Vec<_> = waiting.collect();
            // These two have nobody to wait for.
            while waiting.iter().filter(|it| it.is_finished()).count() < 2 {
                thread::yield_now();
            }
            drop(Lead {
                queue: &queue,
                members: Vec::new(),
            });
            waiting.into_iter().map(|it| it.join().unwrap()).collect()
        });
        let told: Vec<Result<u32, Code>> = results
            .into_iter()
            .map(|it| it.map_err(|fault| fault.code))
            .collect();
        assert_eq!(
            told,
            [Ok(0), Ok(1), Ok(2), Ok(3), Err(Code::Busy), Err(Code::Busy)]
        );
    }

    /// Its client was answered 451 meanwhile and sends it again: stored now, it would be there twice.
    #[test]
    fn whoever_gives_up_while_he_waits_is_not_published() {
        let root = tempfile::tempdir().unwrap();
        for part in ["cur", "new", "tmp"] {
            fs::create_dir(root.path().join(part)).unwrap();
        }
        let mailbox = Maildir::at(Dir::open(root.path()).unwrap(), root.path()).unwrap();
        let names = Names::new("mx", 1);
        let demands = Demands {
            verified: false,
            sync: true,
        };
        let (now, late) = (Heard::from_now(), Heard::since(DEADLINE));
        for (heard, abandons, gives_up) in [
            (now.clone(), false, false),
            (now, true, true),
            (late, false, true),
        ] {
            let body = BodyWriter::new(&Spool::default()).finish().unwrap();
            let written = mailbox.write(&names, b"", &body, demands).unwrap();
            let queue = Queue::default();
            // Another one is at work, and its sync hangs.
            lock(&queue.state).leading = Some(Instant::now());
            let result = thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    let message = Message {
                        name: None,
                        written: Arc::new(written),
                        flags: Flags::default(),
                        keywords: Keywords::default(),
                        paths: Paths::for_tests(root.path(), root.path()).into(),
                        heard: heard.clone(),
                    };
                    let publishing = Publishing {
                        mailbox: &mailbox,
                        names: &names,
                        walks: &Walks::default(),
                        busy: &Busy::default(),
                        sync: true,
                        sync_index: false,
                        index_log: None,
                    };
                    queue.join(message, |batch| publishing.publish(batch))
                });
                while lock(&queue.state).waiting.is_empty() && !waiting.is_finished() {
                    thread::yield_now();
                }
                if abandons {
                    heard.abandon();
                }
                drop(Lead {
                    queue: &queue,
                    members: Vec::new(),
                });
                waiting.join().unwrap()
            });
            assert_eq!(
                result.err().map(|it| it.code),
                gives_up.then_some(Code::NotNow)
            );
        }
        assert_eq!(fs::read_dir(root.path().join("new")).unwrap().count(), 1);
    }
}
