//! Counters and histograms, in the text format of Prometheus (OpenMetrics 1.0). No name of a user or a mailbox is a label: their
//! number would grow without end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use serde::{Deserialize, Serialize};

use super::sessions;
use crate::log::Entry;

/// All that this process counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    deliveries: Family<Ending, Counter>,
    /// The same counters: a family does not show what it has.
    endings: Mutex<Endings>,
    fallbacks: Counter,
    without_uid: Counter,
    waits: Mutex<LockWaits>,
    seconds: Histogram,
    lock_seconds: Histogram,
    sync_seconds: Histogram,
    pub connections: Counter,
    pub turned_away: Counter,
    sessions: Family<State, Gauge>,
    pub workers: Gauge,
    pub events_lost: Counter,
}

/// How deliveries have waited for the locks of mailboxes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockWaits {
    /// Those that waited for a millisecond or more.
    pub deliveries: u64,
    /// Milliseconds, of all of them and of the longest.
    pub total: u64,
    pub longest: u64,
}

type Endings = BTreeMap<(&'static str, String), Counter>;

/// How a delivery ended, and its enhanced status code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ending {
    result: &'static str,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// The metrics of this process.
pub fn metrics() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(Metrics::new)
}

impl Metrics {
    fn new() -> Metrics {
        // 0.5 ms to 16 s.
        let histogram = || Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        let mut metrics = Metrics {
            registry: Registry::with_prefix("postroom"),
            deliveries: Family::default(),
            endings: Mutex::default(),
            fallbacks: Counter::default(),
            without_uid: Counter::default(),
            waits: Mutex::default(),
            seconds: histogram(),
            lock_seconds: histogram(),
            sync_seconds: histogram(),
            connections: Counter::default(),
            turned_away: Counter::default(),
            sessions: Family::default(),
            workers: Gauge::default(),
            events_lost: Counter::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "deliveries",
            "Recipients by how their delivery ended",
            self.deliveries.clone(),
        );
        registry.register(
            "fallbacks",
            "Messages stored elsewhere than asked for",
            self.fallbacks.clone(),
        );
        registry.register(
            "stored_without_uid",
            "Messages whose UID is left to Dovecot",
            self.without_uid.clone(),
        );
        for (name, help, histogram) in [
            (
                "delivery",
                "From the end of a message to the end of its delivery",
                &self.seconds,
            ),
            (
                "lock_wait",
                "Waiting for the locks of a mailbox",
                &self.lock_seconds,
            ),
            ("sync", "Waiting for the disk", &self.sync_seconds),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        registry.register(
            "connections",
            "LMTP clients that have come",
            self.connections.clone(),
        );
        registry.register(
            "connections_refused",
            "LMTP clients that were turned away: there were too many",
            self.turned_away.clone(),
        );
        registry.register(
            "sessions",
            "LMTP clients by what they do now",
            self.sessions.clone(),
        );
        registry.register("workers", "Worker processes", self.workers.clone());
        registry.register(
            "events_lost",
            "Events that nobody was told of: the hook is too slow",
            self.events_lost.clone(),
        );
    }

    /// One recipient.
    pub fn count(&self, entry: &Entry<'_>) {
        let (result, code) = (result(entry), entry.code.to_owned());
        self.endings()
            .entry((result, code.clone()))
            .or_insert_with(|| {
                let ending = Ending { result, code };
                self.deliveries.get_or_create(&ending).clone()
            })
            .inc();
        if entry.fault.is_some() {
            return;
        }
        self.seconds.observe(entry.took.as_secs_f64());
        if entry.is_again {
            return;
        }
        self.lock_seconds.observe(entry.locked.as_secs_f64());
        self.note_wait(entry.locked);
        self.sync_seconds.observe(entry.synced.as_secs_f64());
        if entry.wanted.is_some() {
            self.fallbacks.inc();
        }
        if entry.uid.is_none() {
            self.without_uid.inc();
        }
    }

    fn note_wait(&self, locked: Duration) {
        let millis = u64::try_from(locked.as_millis()).unwrap_or(u64::MAX);
        if millis > 0 {
            let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
            waits.deliveries += 1;
            waits.total = waits.total.saturating_add(millis);
            waits.longest = waits.longest.max(millis);
        }
    }

    /// Since the process began, of deliveries that have stored something: one that has found its message there is not in it.
    pub fn lock_waits(&self) -> LockWaits {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything, as a scraper reads it.
    pub fn text(&self) -> Result<String, fmt::Error> {
        for (state, count) in sessions::count() {
            let gauge = self.sessions.get_or_create(&State { state });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Deliveries by result and code.
    pub fn results(&self) -> Vec<(String, u64)> {
        let endings = self.endings().clone();
        let results = endings.into_iter();
        results
            .map(|((result, code), counter)| (format!("{result} {code}"), counter.get()))
            .collect()
    }

    fn endings(&self) -> MutexGuard<'_, Endings> {
        self.endings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a log line calls the end of a delivery.
pub fn result(entry: &Entry<'_>) -> &'static str {
    match entry.code.as_bytes().first() {
        Some(b'2') if entry.is_again => "duplicate",
        Some(b'2') => "stored",
        Some(b'5') => "rejected",
        _ => "deferred",
    }
}
