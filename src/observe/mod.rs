//! What a server shows of itself: counters, who is connected, the last faults, and events for others.
//!
//! | file | what it is |
//! |---|---|
//! | [`metrics`] | counters and histograms, as Prometheus reads them |
//! | [`sessions`] | the clients that are connected, and what they do |
//! | [`faults`] | the last reasons not to store something |
//! | [`hook`] | new messages and full mailboxes, told to others |
//! | [`snapshot`] | all of it as `postroom status` shows it |
//!
//! Nothing here waits, and nothing here costs a mail.

pub mod faults;
pub mod hook;
pub mod metrics;
pub mod sessions;
pub mod snapshot;

use crate::log::{self, Entry};

/// The end of one delivery, or of a recipient that was refused: logged, counted and told.
pub fn delivery(entry: &Entry<'_>) {
    log::delivery(entry);
    metrics::metrics().count(entry);
    faults::note(entry);
    hook::tell(entry);
}
