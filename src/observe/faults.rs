//! The last reasons not to store something.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::metrics::result;
use crate::log::Entry;

/// How many are kept.
const KEPT: usize = 20;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Seconds since 1970.
    pub at: u64,
    /// `deferred` or `rejected`.
    pub result: String,
    pub code: String,
    pub session: String,
    pub recipient: String,
    pub why: String,
}

static LAST: Mutex<VecDeque<Failed>> = Mutex::new(VecDeque::new());

fn last() -> MutexGuard<'static, VecDeque<Failed>> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a fault. That there is no such user is none.
pub fn note(entry: &Entry<'_>) {
    let Some(why) = entry.fault.filter(|_| entry.code != "5.1.1") else {
        return;
    };
    let failed = Failed {
        at: now(),
        result: result(entry).to_owned(),
        code: entry.code.to_owned(),
        session: entry.session.to_owned(),
        recipient: entry.recipient.to_owned(),
        why: why.to_owned(),
    };
    let mut last = last();
    if last.len() >= KEPT {
        last.pop_front();
    }
    last.push_back(failed);
}

/// The oldest first.
pub fn list() -> Vec<Failed> {
    last().iter().cloned().collect()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}
