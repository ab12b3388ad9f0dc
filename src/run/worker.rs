//! A process of one identity: inspects and carries out what the front asks for, several deliveries at a time.
//!
//! Paths come from the configuration that the monitor read; the front says only who is meant and what the userdbs know of him.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::AT_ONCE;
use super::wire::{self, Announced, Answer, Request};
use crate::deliver::{Answers, Core, Done, Outcome, Report, Saved, Settings, Transaction};
use crate::fault::{Code, Fault};
use crate::message::{Body, Message};
use crate::sys::children;
use crate::sys::packet::{Buffer, Packets};
use crate::sys::sandbox::{self, Level, Sandbox};

/// Threads that wait for something to do; the others leave when they have done what they had.
const SPARE: usize = 2;
/// How long what is said of a message waits for the message, which another thread has received.
const PATIENCE: Duration = Duration::from_secs(5);
/// Messages that may be given up before they are known.
const MAX_GIVEN_UP: usize = 64;
const FAILED: u8 = 70;

/// Works until the other end of `socket` says no more. Answers the exit code.
pub fn work(settings: Settings, socket: Packets) -> u8 {
    let worker = Arc::new(Worker {
        core: Core::new(settings),
        socket,
        state: Mutex::default(),
        changed: Condvar::new(),
        fence: Mutex::default(),
        threads: Threads::default(),
    });
    // Whoever ends the server ends the front, and its end is ours.
    let served = children::ignore_wishes().and_then(|()| worker.receive());
    worker.threads.wait();
    // To give back what is shared with the parent would copy it first.
    std::mem::forget(worker);
    match served {
        Ok(()) => 0,
        Err(error) => {
            let error = error.to_string();
            tracing::error!(error = error.as_str(), "a worker cannot go on");
            FAILED
        }
    }
}

/// This process. Each of its threads takes the next packet from the socket and does what it asks for: nothing goes from one to another.
struct Worker {
    core: Core,
    socket: Packets,
    state: Mutex<State>,
    changed: Condvar,
    fence: Mutex<Fence>,
    threads: Threads,
}

/// The messages that the front has told of.
#[derive(Default)]
struct State {
    transactions: HashMap<u64, Result<Arc<Transaction>, Fault>>,
    /// Nobody hears of these any more, and they are not known yet.
    given_up: VecDeque<u64>,
}

/// How many threads there are beside the first, and how many of all wait for a packet.
#[derive(Default)]
struct Threads {
    count: Mutex<Count>,
    gone: Condvar,
}

#[derive(Default)]
struct Count {
    alive: usize,
    waiting: usize,
}

impl Worker {
    /// Receives until there is nobody who could say more.
    fn receive(self: &Arc<Worker>) -> io::Result<()> {
        let mut packet = Buffer::default();
        self.threads.count().waiting += 1;
        loop {
            let received = self.socket.receive(&mut packet);
            let Some(descriptor) = received? else {
                return Ok(());
            };
            let request: Request = wire::unpacked(packet.packet())?;
            if self.is_work(&request) {
                self.wake_another();
                self.answer(request);
                if !self.threads.stay() {
                    return Ok(());
                }
            } else {
                self.note(request, descriptor);
            }
        }
    }

    /// False: it is for this thread alone, or was answered.
    fn is_work(&self, request: &Request) -> bool {
        let Some((id, answers)) = request.work() else {
            return false;
        };
        // By the first request, before there is a second thread.
        let holds = lock(&self.fence).holds(self.core.settings(), answers);
        if !holds {
            say(&self.socket, Answer::Elsewhere { id });
        }
        holds
    }

    /// Somebody waits for the next packet while this thread works.
    fn wake_another(self: &Arc<Worker>) {
        let mut count = self.threads.count();
        count.waiting -= 1;
        if count.waiting > 0 || count.alive >= AT_ONCE {
            return;
        }
        let worker = Arc::clone(self);
        let begun = thread::Builder::new().spawn(move || {
            // What cannot be received ends the first thread too.
            let _ = worker.receive();
            worker.threads.leave();
        });
        // Without one the next packet waits for this one's end.
        count.alive += usize::from(begun.is_ok());
    }

    fn note(&self, request: Request, descriptor: Option<OwnedFd>) {
        let mut state = lock(&self.state);
        match request {
            Request::Message(announced) => {
                let number = announced.transaction;
                let transaction = message(&self.core, *announced, descriptor.map(File::from));
                if let (Some(_), Ok(known)) = (state.take_given_up(number), &transaction) {
                    known.abandon();
                }
                state.transactions.insert(number, transaction);
                self.changed.notify_all();
            }
            Request::Forget { transaction } => drop(state.transactions.remove(&transaction)),
            Request::Abandon { transaction } => match state.transactions.get(&transaction) {
                Some(Ok(transaction)) => transaction.abandon(),
                Some(Err(_)) => {}
                None => state.give_up(transaction),
            },
            Request::Inspect { .. } | Request::Deliver { .. } => {}
        }
    }

    /// The message of this number, which was sent before anything that is to be done with it.
    fn transaction(&self, number: u64) -> Result<Arc<Transaction>, Fault> {
        let state = lock(&self.state);
        let is_unknown = |state: &mut State| !state.transactions.contains_key(&number);
        let waited = self.changed.wait_timeout_while(state, PATIENCE, is_unknown);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let known = state.transactions.get(&number).cloned();
        known.unwrap_or_else(|| Err(Fault::new(Code::Internal, "deliver", "there is no message")))
    }

    fn answer(&self, request: Request) {
        match request {
            Request::Inspect {
                id,
                recipient,
                answers,
            } => {
                let report = guarded(|| self.core.expect(Some(&answers), &recipient));
                let report =
                    report.unwrap_or_else(|fault| Report::failed(recipient.shown(), fault));
                say(&self.socket, Answer::Report { id, report });
            }
            Request::Deliver {
                id,
                transaction,
                recipient,
                answers,
                retry,
            } => {
                let done = self.transaction(transaction).and_then(|transaction| {
                    let deliver = || {
                        let core = &self.core;
                        core.deliver_expected(Some(&answers), &transaction, &recipient, &retry)
                    };
                    guarded(deliver)
                });
                let done = done.unwrap_or_else(|it| Done::Outcome(Outcome::Deferred(it)));
                say(&self.socket, Answer::Done { id, done });
            }
            Request::Message(_) | Request::Forget { .. } | Request::Abandon { .. } => {}
        }
    }
}

impl State {
    fn give_up(&mut self, transaction: u64) {
        if self.given_up.len() >= MAX_GIVEN_UP {
            self.given_up.pop_front();
        }
        self.given_up.push_back(transaction);
    }

    fn take_given_up(&mut self, transaction: u64) -> Option<u64> {
        let at = self.given_up.iter().position(|it| *it == transaction)?;
        self.given_up.remove(at)
    }
}

impl Threads {
    fn count(&self) -> MutexGuard<'_, Count> {
        lock(&self.count)
    }

    /// Whether this thread is to wait for more.
    fn stay(&self) -> bool {
        let mut count = self.count();
        let stays = count.waiting < SPARE;
        count.waiting += usize::from(stays);
        stays
    }

    fn leave(&self) {
        self.count().alive -= 1;
        self.gone.notify_all();
    }

    /// Until the first thread is the only one.
    fn wait(&self) {
        let is_other = |count: &mut Count| count.alive > 0;
        drop(self.gone.wait_while(self.count(), is_other));
    }
}

/// What this process has been restricted to: by its first request, before there is a second thread.
#[derive(Default)]
struct Fence {
    bases: BTreeSet<PathBuf>,
    sandbox: Option<Sandbox>,
}

impl Fence {
    /// Whether all that a request needs is within.
    fn holds(&mut self, settings: &Settings, answers: &Answers) -> bool {
        if !settings.landlock {
            return true;
        }
        let bases = settings.bases(answers.users());
        let sandbox = match &self.sandbox {
            Some(sandbox) => sandbox,
            None => {
                let roots = settings
                    .places()
                    .iter()
                    .cloned()
                    .chain(bases.iter().cloned());
                let readable: Vec<PathBuf> = settings.acl.global_path.iter().cloned().collect();
                self.bases = bases.clone();
                let restricted = sandbox::restrict(&roots.collect::<Vec<_>>(), &readable);
                if let Ok(Sandbox {
                    missing: Some(root),
                    ..
                }) = &restricted
                {
                    let root = root.display().to_string();
                    let why = "neither it nor a directory above it is there";
                    tracing::warn!(root = root.as_str(), why, "a worker without Landlock");
                }
                self.sandbox.insert(restricted.unwrap_or_else(|error| {
                    let error = error.to_string();
                    tracing::warn!(error = error.as_str(), "a worker without Landlock");
                    Sandbox::default()
                }))
            }
        };
        let is_free = sandbox.level == Level::None;
        (is_free || bases.is_subset(&self.bases)) && sandbox.is_current()
    }
}

fn message(
    core: &Core,
    announced: Announced,
    bytes: Option<File>,
) -> Result<Arc<Transaction>, Fault> {
    let bytes = bytes.ok_or_else(|| io::Error::other("its bytes did not come"));
    let body =
        bytes.and_then(|bytes| Body::from_file(bytes, announced.size, announced.virtual_size));
    let body = body.map_err(|error| Fault::io("take over a message", &error))?;
    let message = Message {
        envelope: announced.envelope,
        body,
        trace: announced.trace,
    };
    let transaction = core.transaction(Arc::new(message), announced.recipients);
    Ok(Arc::new(transaction))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A panic is a temporary fault, and the others' deliveries go on.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| Fault::new(Code::Internal, "deliver", "panicked"))
}

/// Where the front is gone nobody waits for it.
fn say(socket: &Packets, answer: Answer) {
    let sent = wire::packed(&answer).and_then(|packet| socket.send(&packet, None));
    let Err(error) = sent else { return };
    if error.kind() == io::ErrorKind::InvalidInput {
        // Too long: the answer is "cannot tell", not silence.
        let fault = Fault::io("answer the front", &error);
        let short = match answer {
            Answer::Report { id, report } => Answer::Report {
                id,
                report: Report::failed(report.recipient, fault),
            },
            Answer::Elsewhere { .. } => return,
            Answer::Done { id, done } => Answer::Done {
                id,
                done: Done::Outcome(match done {
                    Done::Outcome(Outcome::Saved(saved)) => Outcome::Saved(Saved {
                        remarks: vec![fault.to_string()],
                        ..saved
                    }),
                    Done::Outcome(Outcome::Deferred(_) | Outcome::Rejected(_))
                    | Done::Parcel(_) => Outcome::Deferred(fault),
                }),
            },
        };
        let _ = wire::packed(&short).and_then(|packet| socket.send(&packet, None));
    }
}
