//! All that a server shows of itself at one moment.

use std::sync::OnceLock;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::faults::{self, Failed};
use super::metrics::{LockWaits, metrics};
use super::sessions::{self, Client};

/// Clients that are named.
const CLIENTS: usize = 200;

/// What `postroom status` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub version: String,
    pub pid: u32,
    /// Seconds.
    pub uptime: u64,
    /// Clients by what they do.
    pub sessions: Vec<(String, usize)>,
    pub clients: Vec<Client>,
    /// None: there are none, the server delivers itself.
    pub workers: Option<Vec<Worker>>,
    /// `stored 2.0.0`: how many.
    pub deliveries: Vec<(String, u64)>,
    pub lock_waits: LockWaits,
    pub faults: Vec<Failed>,
}

/// A worker process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    pub pid: i32,
    pub uid: u32,
    /// Requests that it has now.
    pub at_work: usize,
    /// Deliveries since it was made.
    pub deliveries: u64,
}

/// To be called at the start: from here the uptime counts.
pub fn began() -> Instant {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    *BEGAN.get_or_init(Instant::now)
}

impl Snapshot {
    /// Of this process. `workers`: those that it has.
    pub fn take(workers: Option<Vec<Worker>>) -> Snapshot {
        let sessions = sessions::count().into_iter();
        Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: began().elapsed().as_secs(),
            sessions: sessions
                .map(|(state, count)| (state.to_owned(), count))
                .collect(),
            clients: sessions::list(CLIENTS),
            workers,
            deliveries: metrics().results(),
            lock_waits: metrics().lock_waits(),
            faults: faults::list(),
        }
    }
}
