//! The outcomes of one message: they come as they happen, and what nobody waits for is not made visible.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;

use super::dispatch::Dispatch;
use crate::deliver::{Outcome, Transaction};

/// The outcomes of one message, as they happen. Dropped early, nothing more is made visible: nobody would be told.
pub struct Outcomes {
    /// Those that are on their way: they go on while they are waited for, or at once when nobody does any more.
    running: FuturesUnordered<Running>,
    source: Source,
}

/// One recipient's, with his index.
pub type Running = Pin<Box<dyn Future<Output = (usize, Outcome)> + Send>>;

/// Who would make something visible.
pub(super) enum Source {
    Here(Arc<Transaction>),
    Workers(Arc<Dispatch>),
}

impl Outcomes {
    /// Those of deliveries in this process.
    pub fn here(running: impl Iterator<Item = Running>, of: Arc<Transaction>) -> Outcomes {
        Outcomes::of(running, Source::Here(of))
    }

    /// All of `running` go on at once; `source` is who works for them.
    pub(super) fn of(running: impl Iterator<Item = Running>, source: Source) -> Outcomes {
        Outcomes {
            running: running.collect(),
            source,
        }
    }

    /// The next outcome with the index of its recipient; `None` when all have come. May be given up and asked again.
    pub async fn recv(&mut self) -> Option<(usize, Outcome)> {
        self.running.next().await
    }

    /// Nobody hears the answers any more: what is not visible yet stays so, and the MTA sends it again.
    pub fn abandon(&self) {
        match &self.source {
            Source::Here(transaction) => transaction.abandon(),
            Source::Workers(dispatch) => dispatch.abandon(),
        }
    }
}

impl Drop for Outcomes {
    fn drop(&mut self) {
        self.abandon();
        // What has become of it is written down, whoever hears of it.
        if let Ok(runtime) = Handle::try_current() {
            for running in mem::take(&mut self.running) {
                runtime.spawn(running);
            }
        }
    }
}
