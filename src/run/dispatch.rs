//! One message on its way to the workers of its recipients: each is told of it once, and forgets it when all is answered.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tokio::sync::{Mutex, OnceCell};

use super::out_of_step;
use super::pool::{Identity, Lease, Pool};
use super::wire::{Announced, Answer, Request};
use crate::deliver::{Answers, Outcome};
use crate::fault::{Code, Fault};
use crate::message::{Message, Recipient};

#[derive(Debug)]
pub struct Dispatch {
    pool: Arc<Pool>,
    pub message: Arc<Message>,
    recipients: usize,
    /// Recipients that still wait for their outcome.
    unanswered: AtomicUsize,
    transaction: u64,
    /// The message's bytes, for all workers.
    handle: OnceCell<File>,
    /// The workers that know of the message, and stay until they have forgotten it.
    told: Mutex<HashMap<i32, Arc<Told>>>,
    is_abandoned: AtomicBool,
}

#[derive(Debug)]
struct Told {
    lease: Lease,
    announced: OnceCell<()>,
}

/// Numbers of transactions, unlike each other in this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Dispatch {
    pub fn new(pool: Arc<Pool>, message: Arc<Message>, recipients: usize) -> Dispatch {
        Dispatch {
            pool,
            message,
            recipients,
            unanswered: AtomicUsize::new(recipients),
            transaction: NEXT.fetch_add(1, Ordering::Relaxed),
            handle: OnceCell::new(),
            told: Mutex::default(),
            is_abandoned: AtomicBool::new(false),
        }
    }

    /// The delivery to one recipient, by a worker of this identity. None: not begun, another one may reach the mailbox.
    pub async fn deliver(
        &self,
        who: &Identity,
        recipient: Recipient,
        answers: Answers,
    ) -> Result<Option<Outcome>, Fault> {
        let told = self.tell(who).await?;
        if self.is_abandoned.load(Ordering::Relaxed) {
            return Err(Fault::new(Code::NotNow, "deliver", "the peer is gone"));
        }
        told.lease.count_delivery();
        let transaction = self.transaction;
        let answer = told.lease.ask(|id| Request::Deliver {
            id,
            transaction,
            recipient,
            answers,
        });
        match answer.await? {
            Answer::Outcome { outcome, .. } => Ok(Some(outcome)),
            Answer::Elsewhere { .. } => Ok(None),
            Answer::Report { .. } => Err(out_of_step()),
        }
    }

    async fn tell(&self, who: &Identity) -> Result<Arc<Told>, Fault> {
        let lease = self.pool.lease(who).await?;
        let told = {
            let mut told = self.told.lock().await;
            let pid = lease.pid();
            let new = || {
                Arc::new(Told {
                    announced: OnceCell::new(),
                    lease,
                })
            };
            Arc::clone(told.entry(pid).or_insert_with(new))
        };
        let announce = || async {
            let handle = self.handle.get_or_try_init(|| async {
                let handle = self.message.body.handle();
                handle.map_err(|error| Fault::io("hand over a message", &error))
            });
            let message = Request::Message(Box::new(Announced {
                transaction: self.transaction,
                recipients: self.recipients,
                envelope: self.message.envelope.clone(),
                trace: self.message.trace.clone(),
                size: self.message.body.size(),
                virtual_size: self.message.body.virtual_size(),
            }));
            told.lease.tell(&message, Some(handle.await?)).await
        };
        told.announced.get_or_try_init(announce).await?;
        Ok(told)
    }

    /// One recipient has its outcome; behind the last one the workers forget the message.
    pub async fn is_answered(&self) {
        if self.unanswered.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        let told = std::mem::take(&mut *self.told.lock().await);
        let transaction = self.transaction;
        for told in told.into_values() {
            // One that is gone has forgotten.
            let _ = told
                .lease
                .tell(&Request::Forget { transaction }, None)
                .await;
        }
    }

    /// Nobody hears the answers any more: what is not visible yet stays so. To be called in a runtime.
    pub fn abandon(self: &Arc<Dispatch>) {
        if self.unanswered.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.is_abandoned.store(true, Ordering::Relaxed);
        let dispatch = Arc::clone(self);
        tokio::spawn(async move {
            let told: Vec<Arc<Told>> = dispatch.told.lock().await.values().cloned().collect();
            let transaction = dispatch.transaction;
            for told in told {
                let abandon = Request::Abandon { transaction };
                let _ = told.lease.tell(&abandon, None).await;
            }
        });
    }
}
