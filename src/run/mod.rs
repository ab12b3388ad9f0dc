//! Where a delivery runs: in this process on a pool of threads, or in worker processes, one for each identity.
//!
//! ```text
//! monitor   root, one thread, no network: forks, reads the configuration
//!   ├─ front     an identity that owns no mail: clients, userdbs, logs
//!   ├─ worker    uid 1007: inspects and carries out
//!   └─ worker    uid 1008
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | [`outcomes`] | of one message, as they happen |
//! | [`asked`] | a look by a worker |
//! | [`monitor`] | the parent of all: who may be forked, and what ends when |
//! | [`pool`] | the workers as the front sees them |
//! | [`worker`] | one identity at work |
//! | [`elsewhere`] | what other servers have |
//! | [`dovecot`] | what only Dovecot writes, by its LMTP server |
//! | [`mod@relay`] | talking to them |
//! | [`mod@ledger`] | what was delivered lately |
//! | [`turns`] | how much of it one user may have |
//! | [`in_place`] | a client's task, and the threads that do its work |
//! | [`dispatch`] | one message on its way to the workers |
//! | [`wire`] | what they say to each other |

mod asked;
pub mod dispatch;
pub mod dovecot;
mod elsewhere;
pub mod in_place;
pub mod ledger;
pub mod monitor;
mod outcomes;
pub mod pool;
pub mod relay;
pub mod turns;
pub mod wire;
pub mod worker;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::deliver::quota::Quotas;
use crate::deliver::settings::MailFsync;
use crate::deliver::{self, Answers, Core, Done, Outcome, Report, Retry, Transaction};
use crate::fault::{Code, Fault};
use crate::mailbox::namespace::Namespace;
use crate::message::{Envelope, Message, Recipient};
use crate::observe::snapshot;
use crate::user::User;
use asked::Asked;
use dispatch::Dispatch;
pub use elsewhere::Next;
use ledger::{Begun, Ledger};
use outcomes::Source;
pub use outcomes::{Outcomes, Running};
use pool::{Identity, Pool};
use relay::Relay;
use turns::{Turn, Turns};
use wire::{Answer, Request};

/// Deliveries that may be at work at once in one process: enough threads in sync to let the kernel group their commits.
const AT_ONCE: usize = 64;
/// Look-ups at once, where workers do the rest: those of a slow userdb leave room for others.
const LOOK_UPS: usize = 256;
/// Workers that a request may be given to, where what it needs is mounted meanwhile.
const ATTEMPTS: usize = 3;
/// What outlives the server lies there, where nothing else is said.
const STATE: &str = "/var/lib/postroom";
/// How long RCPT waits for a mailbox that may be on a dead file server.
const INSPECTION: Duration = Duration::from_secs(60);

/// Runs the core. Cheap to clone.
#[derive(Clone)]
pub struct Runner {
    core: Arc<Core>,
    slots: Arc<Semaphore>,
    turns: Arc<Turns>,
    /// None: this is the only server.
    relay: Option<Arc<Relay>>,
    /// To Dovecot's own LMTP server, where there are mailboxes that only Dovecot writes.
    dovecot: Arc<Relay>,
    /// None: nobody asks whether a message was delivered before.
    ledger: Option<Arc<Ledger>>,
    /// None: everything in this process.
    workers: Option<Arc<Pool>>,
}

impl Runner {
    /// Everything in this process, under its identity.
    pub fn new(core: Arc<Core>, limits: turns::Limits) -> Runner {
        Runner {
            ledger: ledger(&core),
            ..Runner::of(core, AT_ONCE, limits)
        }
    }

    /// For looks alone: nothing is remembered.
    pub fn for_looks(core: Arc<Core>) -> Runner {
        Runner::of(core, AT_ONCE, turns::Limits::default())
    }

    /// Here only what touches no mail.
    pub fn with_workers(core: Arc<Core>, workers: Arc<Pool>, limits: turns::Limits) -> Runner {
        Runner {
            ledger: ledger(&core),
            workers: Some(workers),
            ..Runner::of(core, LOOK_UPS, limits)
        }
    }

    fn of(core: Arc<Core>, slots: usize, limits: turns::Limits) -> Runner {
        Runner {
            relay: relay(&core),
            dovecot: Relay::plain(&core.settings().hostname),
            core,
            slots: Arc::new(Semaphore::new(slots)),
            turns: Turns::new(limits),
            ledger: None,
            workers: None,
        }
    }

    /// RCPT: resolve and inspect, nothing is opened for writing. A panic becomes a temporary fault.
    /// `envelope`: of the message that is to come.
    pub async fn inspect(&self, recipient: Recipient, envelope: Option<&Envelope>) -> Report {
        let shown = recipient.shown();
        let turn = match self.turn(&recipient).await {
            Ok(turn) => turn,
            Err(fault) => return Report::failed(shown, fault),
        };
        let recipient = match self.ask_elsewhere(recipient).await {
            Ok(Next::Here(recipient)) => *recipient,
            Ok(Next::Answered(report)) => return report,
            Err(fault) => return Report::failed(shown, fault),
        };
        let given = recipient.clone();
        let report = match &self.workers {
            None => {
                let core = Arc::clone(&self.core);
                let inspect = move || core.expect(None, &recipient);
                self.blocking_in(turn, inspect).await
            }
            Some(workers) => {
                let (runner, workers) = (self.clone(), Arc::clone(workers));
                let mut asked = Asked::of(async move {
                    let report = runner.ask(&workers, recipient).await;
                    drop(turn);
                    report
                });
                let report = timeout(INSPECTION, asked.answer()).await;
                report.unwrap_or_else(|_| {
                    let why = "its file system does not answer";
                    Err(Fault::new(Code::Storage, "look at the mailbox", why))
                })
            }
        };
        let report = match report {
            Ok(report) => dovecot::ask(&self.dovecot, self.core.settings(), &given, report).await,
            Err(fault) => return Report::failed(shown, fault),
        };
        let is_full = report.fault.as_ref().map(|it| it.code) == Some(Code::OverQuota);
        match (&self.ledger, envelope.filter(|_| is_full)) {
            // It may be full of this message, whose client has not heard that it is stored: what DATA brings tells.
            (Some(ledger), Some(envelope)) if ledger.may_have(envelope, &given).await => Report {
                fault: None,
                ..report
            },
            _ => report,
        }
    }

    async fn ask(&self, workers: &Arc<Pool>, recipient: Recipient) -> Result<Report, Fault> {
        let core = Arc::clone(&self.core);
        let looked_up = self.blocking(move || {
            core.look_up(&recipient, None)
                .map(|(targets, answers)| (targets.user, answers, recipient))
        });
        let (user, answers, recipient) = looked_up.await??;
        let who = self.identity(user, &answers);
        let mut failed = out_of_reach();
        for _ in 0..ATTEMPTS {
            let lease = workers.lease(&who).await?;
            let (recipient, answers) = (recipient.clone(), answers.clone());
            let answer = lease.ask(|id| Request::Inspect {
                id,
                recipient,
                answers,
            });
            match answer.await {
                Ok(Answer::Report { report, .. }) => return Ok(report),
                Ok(Answer::Elsewhere { .. }) => failed = out_of_reach(),
                Ok(Answer::Done { .. }) => return Err(out_of_step()),
                // A look can be had again.
                Err(fault) if lease.is_gone() => failed = fault,
                Err(fault) => return Err(fault),
            }
        }
        Err(failed)
    }

    /// The worker processes; none where there are none.
    pub fn workers(&self) -> Option<Vec<snapshot::Worker>> {
        self.workers.as_ref().map(|pool| pool.list())
    }

    /// The user whose mail it is.
    pub async fn user_of(&self, recipient: Recipient) -> Result<User, Fault> {
        let core = Arc::clone(&self.core);
        self.blocking(move || deliver::user_of(core.settings(), &recipient))
            .await?
    }

    /// DATA: resolve and inspect, unless RCPT has just done so, then carry out, for each recipient. Outcomes come as they happen, each with
    /// the index of its recipient, until [`Outcomes::recv`] answers none.
    pub fn deliver(&self, message: Arc<Message>, recipients: Vec<Recipient>) -> Outcomes {
        match &self.workers {
            None => {
                let transaction = Arc::new(self.core.transaction(message, recipients.len()));
                let source = Source::Here(Arc::clone(&transaction));
                self.deliver_each(recipients, source, move |runner, recipient| {
                    runner.deliver_here(Arc::clone(&transaction), recipient)
                })
            }
            Some(workers) => {
                let dispatch = Dispatch::new(Arc::clone(workers), message, recipients.len());
                let dispatch = Arc::new(dispatch);
                let source = Source::Workers(Arc::clone(&dispatch));
                self.deliver_each(recipients, source, move |runner, recipient| {
                    runner.deliver_by_worker(Arc::clone(&dispatch), recipient)
                })
            }
        }
    }

    /// All at once.
    fn deliver_each<F: Future<Output = Outcome> + Send + 'static>(
        &self,
        recipients: Vec<Recipient>,
        source: Source,
        deliver: impl Fn(Runner, Recipient) -> F,
    ) -> Outcomes {
        let running = recipients
            .into_iter()
            .enumerate()
            .map(|(index, recipient)| {
                // Boxed before it is moved about.
                let outcome = Box::pin(deliver(self.clone(), recipient));
                let outcome = AssertUnwindSafe(outcome).catch_unwind();
                let panicked = |_| {
                    let why = "the delivery ended without an outcome";
                    Outcome::refused(Fault::new(Code::Internal, "deliver", why))
                };
                Box::pin(async move { (index, outcome.await.unwrap_or_else(panicked)) }) as Running
            });
        Outcomes::of(running, source)
    }

    async fn deliver_here(self, transaction: Arc<Transaction>, recipient: Recipient) -> Outcome {
        let outcome = self.store(&transaction, recipient).await;
        outcome.unwrap_or_else(Outcome::refused)
    }

    async fn store(
        &self,
        transaction: &Arc<Transaction>,
        recipient: Recipient,
    ) -> Result<Outcome, Fault> {
        let message = transaction.shared_message();
        let mut turn = self.turn(&recipient).await?;
        let heard = || transaction.check_heard().is_ok();
        let next = self.deliver_elsewhere(message, recipient, &heard).await?;
        let mut recipient = match next {
            Next::Here(recipient) => *recipient,
            Next::Answered(outcome) => return Ok(outcome),
        };
        let places = self.places(message, &recipient).await;
        let begun = self.begin(message, &recipient, &places).await?;
        loop {
            let (core, retry) = (Arc::clone(&self.core), retry_of(&begun));
            let (work, to) = (Arc::clone(transaction), recipient.clone());
            let work = move || {
                let done = core.deliver_expected(None, &work, &to, &retry);
                (done, turn)
            };
            let done;
            (done, turn) = self.blocking(work).await?;
            match self.finish(done, &recipient, message, &heard, &begun).await {
                Next::Here(again) => recipient = *again,
                Next::Answered(outcome) => {
                    return Ok(end(begun, outcome));
                }
            }
        }
    }

    async fn deliver_by_worker(self, dispatch: Arc<Dispatch>, recipient: Recipient) -> Outcome {
        let outcome = self.send_off(&dispatch, recipient).await;
        outcome.unwrap_or_else(Outcome::refused)
    }

    async fn send_off(&self, dispatch: &Dispatch, recipient: Recipient) -> Result<Outcome, Fault> {
        let _turn = self.turn(&recipient).await?;
        let heard = || !dispatch.is_abandoned();
        let next = self
            .deliver_elsewhere(&dispatch.message, recipient, &heard)
            .await?;
        let recipient = match next {
            Next::Here(recipient) => *recipient,
            Next::Answered(outcome) => return Ok(outcome),
        };
        let (core, message) = (Arc::clone(&self.core), Arc::clone(&dispatch.message));
        let looked_up = self.blocking(move || {
            core.look_up(&recipient, Some(message.body.head()))
                .map(|(targets, answers)| (targets, answers, recipient))
        });
        let (targets, answers, mut recipient) = looked_up.await??;
        let places = targets.alike_places();
        let begun = self.begin(&dispatch.message, &recipient, &places).await?;
        let retry = retry_of(&begun);
        let user = targets.user;
        let who = self.identity(user, &answers);
        let mut failures = 0;
        while failures < ATTEMPTS {
            let retry = retry.clone();
            let asked = dispatch.deliver(&who, recipient.clone(), answers.clone(), retry);
            let done = match asked.await {
                Ok(Some(done)) => done,
                Ok(None) => {
                    failures += 1;
                    continue;
                }
                Err(fault) => return Ok(end(begun, Outcome::refused(fault))),
            };
            match self
                .finish(done, &recipient, &dispatch.message, &heard, &begun)
                .await
            {
                Next::Here(again) => recipient = *again,
                Next::Answered(outcome) => {
                    return Ok(end(begun, outcome));
                }
            }
        }
        Ok(end(begun, Outcome::refused(out_of_reach())))
    }

    /// Takes to Dovecot what is for it.
    async fn finish(
        &self,
        done: Done,
        recipient: &Recipient,
        message: &Arc<Message>,
        heard: relay::Heard<'_>,
        begun: &Option<Begun>,
    ) -> Next<Outcome> {
        let may_be_there = begun.as_ref().is_some_and(|it| it.retry.is_unknown());
        let (relay, settings) = (&self.dovecot, self.core.settings());
        dovecot::finish(
            relay,
            settings,
            done,
            recipient,
            message,
            heard,
            may_be_there,
        )
        .await
    }

    /// Writes down that a delivery begins, and finds out whether it is a second one.
    async fn begin(
        &self,
        message: &Message,
        to: &Recipient,
        places: &[String],
    ) -> Result<Option<Begun>, Fault> {
        match &self.ledger {
            Some(ledger) => {
                let name = self.core.unique_name();
                ledger.begin(message, to, places, name).await
            }
            None => Ok(None),
        }
    }

    /// `Targets::alike_places`: none where nobody asks. What cannot be looked up the delivery says.
    async fn places(&self, message: &Arc<Message>, to: &Recipient) -> Vec<String> {
        if !self.ledger.as_ref().is_some_and(|it| it.looks_at_ids()) {
            return Vec::new();
        }
        let (core, message, to) = (Arc::clone(&self.core), Arc::clone(message), to.clone());
        let looked_up = self.blocking(move || {
            let looked_up = core.look_up(&to, Some(message.body.head()));
            looked_up.map(|(targets, _)| targets.alike_places())
        });
        looked_up.await.and_then(|it| it).unwrap_or_default()
    }

    /// Who does the rest.
    fn identity(&self, user: User, answers: &Answers) -> Identity {
        let settings = self.core.settings();
        let bases = match settings.landlock {
            true => settings.bases(answers.users()),
            false => Default::default(),
        };
        Identity {
            credentials: user.credentials,
            bases,
        }
    }

    /// The turn of the user that this address seems to mean: no userdb has been asked yet.
    async fn turn(&self, recipient: &Recipient) -> Result<Turn, Fault> {
        let settings = self.core.settings();
        let delimiter = &settings.recipient_delimiter;
        let shown = recipient.shown().to_lowercase();
        let (local, domain) = shown.rsplit_once('@').unwrap_or((&shown, ""));
        let user = local
            .split(|c| delimiter.contains(c))
            .next()
            .unwrap_or(local);
        let name = format!("{user}@{domain}");
        // Many domains may mean one user.
        let user = settings.userdbs.username(&name);
        self.turns.take(user.unwrap_or(name)).await
    }

    /// The turn lasts until the work is done, also where nobody waits for it any more.
    async fn blocking_in<T: Send + 'static>(
        &self,
        turn: Turn,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        self.blocking(move || {
            let _turn = turn;
            work()
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let done = in_place::blocking(move || {
            let _slot = slot;
            work()
        });
        done.await
            .map_err(|why| Fault::new(Code::Internal, "deliver", why))
    }
}

fn ledger(core: &Core) -> Option<Arc<Ledger>> {
    let settings = core.settings();
    let namespaces = settings.namespaces.iter();
    let refuses_full = |it: &Quotas| it.checks_at_rcpt && !it.full_is_temporary;
    // Dovecot has its own.
    let is_dovecots = |it: &Namespace| it.location.hand_over.is_some();
    let is_asked_at_rcpt = settings.quotas.as_ref().is_some_and(refuses_full)
        || settings.namespaces.iter().any(is_dovecots);
    Ledger::open(ledger::Settings {
        window: settings.duplicate_window,
        is_asked_at_rcpt,
        is_durable: settings.mail_fsync != MailFsync::Never,
        alike: namespaces
            .filter_map(|it| it.duplicate_message_ids)
            .max()
            .unwrap_or_default(),
        path: settings.duplicate_db.clone().or_else(|| {
            Path::new(STATE)
                .is_dir()
                .then(|| Path::new(STATE).join("duplicates.db"))
        }),
    })
}

fn relay(core: &Core) -> Option<Arc<Relay>> {
    let settings = core.settings();
    let placement = settings.placement.as_ref()?;
    let made = Relay::new(&settings.hostname, placement.ca_file.as_deref());
    let made = made.or_else(|error| {
        let error = error.to_string();
        tracing::error!(
            error = error.as_str(),
            "no certificate of another server counts"
        );
        Relay::new(&settings.hostname, None)
    });
    made.ok()
}

fn retry_of(begun: &Option<Begun>) -> Retry {
    begun
        .as_ref()
        .map(|it| it.retry.clone())
        .unwrap_or_default()
}

fn end(begun: Option<Begun>, outcome: Outcome) -> Outcome {
    let Some(begun) = begun else {
        return outcome;
    };
    let is_doubtful = begun.is_doubtful();
    begun.end(&outcome);
    match outcome {
        // It may be full of this message, and be told better when it comes again.
        Outcome::Rejected(fault) if fault.code == Code::OverQuota && is_doubtful => {
            Outcome::Deferred(fault.for_now())
        }
        outcome => outcome,
    }
}

/// What lies under mounts that come and go all the time.
fn out_of_reach() -> Fault {
    let why = "no worker can open it";
    Fault::new(Code::Storage, "find the mailbox", why)
}

/// An answer to another question.
fn out_of_step() -> Fault {
    Fault::new(
        Code::Internal,
        "hear a worker",
        "it answers another question",
    )
}
