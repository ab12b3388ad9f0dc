//! The clients that are connected, and what they do.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Between messages.
    Idle,
    /// Names recipients.
    Envelope,
    /// Sends a message.
    Data,
    /// Waits for its answers.
    Delivering,
}

impl State {
    const ALL: [(State, &'static str); 4] = [
        (State::Idle, "idle"),
        (State::Envelope, "envelope"),
        (State::Data, "data"),
        (State::Delivering, "delivering"),
    ];
}

#[derive(Debug)]
struct Seen {
    id: String,
    peer: String,
    since: Instant,
    state: AtomicU8,
    messages: AtomicU32,
}

/// One client; it is gone with this value.
#[derive(Debug)]
pub struct Session {
    number: u64,
    seen: Arc<Seen>,
}

/// A client as `postroom status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    pub id: String,
    pub peer: String,
    pub state: String,
    /// Seconds since it has come.
    pub age: u64,
    pub messages: u32,
}

type Table = Mutex<HashMap<u64, Arc<Seen>>>;

fn table() -> MutexGuard<'static, HashMap<u64, Arc<Seen>>> {
    static TABLE: OnceLock<Table> = OnceLock::new();
    let table = TABLE.get_or_init(Table::default);
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// A client has come. `id`: what its replies and log lines carry.
    pub fn new(id: &str, peer: &str) -> Session {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let seen = Arc::new(Seen {
            id: id.to_owned(),
            peer: peer.to_owned(),
            since: Instant::now(),
            state: AtomicU8::new(State::Idle as u8),
            messages: AtomicU32::new(0),
        });
        table().insert(number, Arc::clone(&seen));
        Session { number, seen }
    }

    /// What the client does from now on; each time that it is delivering counts as a message.
    pub fn set(&self, state: State) {
        if state == State::Delivering {
            self.seen.messages.fetch_add(1, Ordering::Relaxed);
        }
        self.seen.state.store(state as u8, Ordering::Relaxed);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        table().remove(&self.number);
    }
}

/// How many do what.
pub fn count() -> Vec<(&'static str, usize)> {
    let mut counts = State::ALL.map(|(_, name)| (name, 0));
    for seen in table().values() {
        if let Some(count) = counts.get_mut(usize::from(seen.state.load(Ordering::Relaxed))) {
            count.1 += 1;
        }
    }
    counts.to_vec()
}

/// The oldest ones first, no more than `most`.
pub fn list(most: usize) -> Vec<Client> {
    let mut all: Vec<Arc<Seen>> = table().values().cloned().collect();
    all.sort_by_key(|seen| seen.since);
    let clients = all.iter().take(most).map(|seen| {
        let state = usize::from(seen.state.load(Ordering::Relaxed));
        Client {
            id: seen.id.clone(),
            peer: seen.peer.clone(),
            state: State::ALL.get(state).map_or("", |it| it.1).to_owned(),
            age: seen.since.elapsed().as_secs(),
            messages: seen.messages.load(Ordering::Relaxed),
        }
    });
    clients.collect()
}
