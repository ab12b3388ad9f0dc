//! Where a delivery runs. Today: in this process, on a pool of blocking threads.
//!
//! What goes in and comes out ([`crate::deliver::Targets`], [`Report`], [`Outcome`]) is plain data, so that
//! processes of other uids can take over the second half without the callers noticing.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use crate::deliver::{Core, Outcome, Report};
use crate::fault::{Code, Fault};
use crate::message::{Message, Recipient};

/// Deliveries that may be at work at once: enough threads in sync to let the kernel group their commits.
const AT_ONCE: usize = 64;

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
    pub fn deliver(
        &self,
        message: Arc<Message>,
        recipients: Vec<Recipient>,
    ) -> mpsc::Receiver<(usize, Outcome)> {
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
        receive
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
