//! One message on its way to the workers of its recipients: each is told of it once, and forgets it when all is answered.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{Mutex, OnceCell};

use super::out_of_step;
use super::pool::{Identity, Lease, Pool};
use super::wire::{Announced, Answer, Request};
use crate::deliver::{Answers, Done, Retry};
use crate::fault::{Code, Fault};
use crate::message::{Message, Recipient};

/// One message for some recipients: each worker is told of it once.
#[derive(Debug)]
pub struct Dispatch {
    pool: Arc<Pool>,
    pub message: Arc<Message>,
    recipients: usize,
    /// The message's bytes, for all workers.
    handle: OnceCell<File>,
    /// The workers that know of the message now, by their process IDs.
    told: Mutex<HashMap<i32, Arc<Told>>>,
    is_abandoned: AtomicBool,
}

/// A worker that stays until it has forgotten the message.
#[derive(Debug)]
struct Told {
    lease: Lease,
    /// The message's number there.
    transaction: u64,
    announced: OnceCell<()>,
    /// Recipients that wait for it.
    waiting: AtomicUsize,
}

/// Numbers of transactions, unlike each other in this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Dispatch {
    /// No worker is told yet. `recipients`: how many the message has, all workers together.
    pub fn new(pool: Arc<Pool>, message: Arc<Message>, recipients: usize) -> Dispatch {
        Dispatch {
            pool,
            message,
            recipients,
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
        retry: Retry,
    ) -> Result<Option<Done>, Fault> {
        let told = self.tell(who).await?;
        let answer = self.ask(&told, recipient, answers, retry).await;
        self.is_answered(told).await;
        match answer? {
            Answer::Done { done, .. } => Ok(Some(done)),
            Answer::Elsewhere { .. } => Ok(None),
            Answer::Report { .. } => Err(out_of_step()),
        }
    }

    /// A worker of this identity, as one of those that have been told of the message or are just being told.
    async fn tell(&self, who: &Identity) -> Result<Arc<Told>, Fault> {
        let lease = self.pool.lease(who).await?;
        let mut told = self.told.lock().await;
        let pid = lease.pid();
        let new = || {
            Arc::new(Told {
                lease,
                transaction: NEXT.fetch_add(1, Ordering::Relaxed),
                announced: OnceCell::new(),
                waiting: AtomicUsize::new(0),
            })
        };
        let told = told.entry(pid).or_insert_with(new);
        told.waiting.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::clone(told))
    }

    async fn ask(
        &self,
        told: &Told,
        recipient: Recipient,
        answers: Answers,
        retry: Retry,
    ) -> Result<Answer, Fault> {
        let announce = || self.announce(told);
        told.announced.get_or_try_init(announce).await?;
        if self.is_abandoned.load(Ordering::Relaxed) {
            return Err(Fault::new(Code::NotNow, "deliver", "the peer is gone"));
        }
        told.lease.count_delivery();
        let transaction = told.transaction;
        let request = |id| Request::Deliver {
            id,
            transaction,
            recipient,
            answers,
            retry: Box::new(retry),
        };
        told.lease.ask(request).await
    }

    async fn announce(&self, told: &Told) -> Result<(), Fault> {
        let handle = self.handle.get_or_try_init(|| async {
            let handle = self.message.body.handle();
            handle.map_err(|error| Fault::io("hand over a message", &error))
        });
        let message = Request::Message(Box::new(Announced {
            transaction: told.transaction,
            recipients: self.recipients,
            envelope: self.message.envelope.clone(),
            trace: self.message.trace.clone(),
            size: self.message.body.size(),
            virtual_size: self.message.body.virtual_size(),
        }));
        told.lease.tell(&message, Some(handle.await?)).await
    }

    /// Behind the last recipient that waits for it a worker forgets the message, and is free for others.
    async fn is_answered(&self, told: Arc<Told>) {
        {
            let mut all = self.told.lock().await;
            if told.waiting.fetch_sub(1, Ordering::Relaxed) > 1 {
                return;
            }
            all.remove(&told.lease.pid());
        }
        let transaction = told.transaction;
        // One that is gone has forgotten.
        let _ = told
            .lease
            .tell(&Request::Forget { transaction }, None)
            .await;
    }

    /// From [`Dispatch::abandon`] on, for good: nothing is begun any more.
    pub fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Relaxed)
    }

    /// Nobody hears the answers any more: what is not visible yet stays so.
    pub fn abandon(self: &Arc<Dispatch>) {
        self.is_abandoned.store(true, Ordering::Relaxed);
        // Without a runtime the front is at its end, and with it the workers are.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let dispatch = Arc::clone(self);
        runtime.spawn(async move {
            let told: Vec<Arc<Told>> = dispatch.told.lock().await.values().cloned().collect();
            for told in told {
                let transaction = told.transaction;
                let abandon = Request::Abandon { transaction };
                let _ = told.lease.tell(&abandon, None).await;
            }
        });
    }
}
