//! Where a delivery runs. Today: in this process, on a pool of blocking threads.
//!
//! What goes in and comes out ([`crate::deliver::Targets`], [`Report`], [`Outcome`]) is plain data, so that
//! processes of other uids can take over the second half without the callers noticing.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use crate::deliver::{Core, Outcome, Report, Transaction};
use crate::fault::{Code, Fault};
use crate::message::{Message, Recipient};

/// Deliveries that may be at work at once: enough threads in sync to let the kernel group their commits.
const AT_ONCE: usize = 64;

/// The outcomes of one message, as they happen. Dropped early, nothing more is made visible: nobody would be told.
#[derive(Debug)]
pub struct Outcomes {
    receive: mpsc::Receiver<(usize, Outcome)>,
    transaction: Option<Arc<Transaction>>,
}

impl From<mpsc::Receiver<(usize, Outcome)>> for Outcomes {
    /// Outcomes that come from elsewhere: there is nothing to abandon.
    fn from(receive: mpsc::Receiver<(usize, Outcome)>) -> Outcomes {
        Outcomes {
            receive,
            transaction: None,
        }
    }
}

impl Outcomes {
    /// The next outcome with the index of its recipient; `None` when all have come.
    pub async fn recv(&mut self) -> Option<(usize, Outcome)> {
        self.receive.recv().await
    }
}

impl Outcomes {
    /// Nobody hears the answers any more: what is not visible yet stays so, and the MTA sends it again.
    pub fn abandon(&self) {
        if let Some(transaction) = &self.transaction {
            transaction.abandon();
        }
    }
}

impl Drop for Outcomes {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// Runs the core. Cheap to clone.
#[derive(Clone)]
pub struct Runner {
    core: Arc<Core>,
    slots: Arc<Semaphore>,
}

impl Runner {
    pub fn new(core: Arc<Core>) -> Runner {
        Runner {
            core,
            slots: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// RCPT: resolve and inspect, nothing is opened for writing. A panic becomes a temporary fault.
    pub async fn inspect(&self, recipient: Recipient) -> Report {
        let core = Arc::clone(&self.core);
        let shown = recipient.address.to_string();
        self.blocking(move || core.inspect(&recipient))
            .await
            .unwrap_or_else(|fault| Report::failed(shown, fault))
    }

    /// DATA: resolve and inspect anew, then carry out, for each recipient. Outcomes come as they happen, each with
    /// the index of its recipient; a closed channel means that all have come.
    pub fn deliver(&self, message: Arc<Message>, recipients: Vec<Recipient>) -> Outcomes {
        let (send, receive) = mpsc::channel(recipients.len().max(1));
        let transaction = Arc::new(self.core.transaction(message, recipients.len()));
        for (index, recipient) in recipients.into_iter().enumerate() {
            let (runner, send, transaction) =
                (self.clone(), send.clone(), Arc::clone(&transaction));
            tokio::spawn(async move {
                let core = Arc::clone(&runner.core);
                let outcome = runner
                    .blocking(move || core.deliver(&transaction, &recipient))
                    .await;
                // The session may be gone; what is stored stays stored.
                let _ = send
                    .send((index, outcome.unwrap_or_else(Outcome::Deferred)))
                    .await;
            });
        }
        Outcomes {
            receive,
            transaction: Some(transaction),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            work()
        });
        done.await
            .map_err(|error| Fault::new(Code::Internal, "deliver", format!("panicked: {error}")))
    }
}
