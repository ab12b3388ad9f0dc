//! A process of one identity: inspects and carries out what the front asks for, several deliveries at a time.
//!
//! Paths come from the configuration that the monitor read; the front says only who is meant and what the userdbs know of him.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::AT_ONCE;
use super::wire::{self, Announced, Answer, Request};
use crate::deliver::{Answers, Core, Done, Outcome, Report, Retry, Saved, Settings, Transaction};
use crate::fault::{Code, Fault};
use crate::message::{Body, Message, Recipient};
use crate::sys::children;
use crate::sys::packet::{Buffer, Packets};
use crate::sys::sandbox::{self, Level, Sandbox};

/// Threads that wait for their turn; the others leave when they have done what they had.
const SPARE: usize = 2;
const FAILED: u8 = 70;

/// Works until the other end of `socket` says no more. Answers the exit code.
pub fn work(settings: Settings, socket: Packets) -> u8 {
    let worker = Arc::new(Worker {
        core: Core::new(settings),
        socket,
        turn: Mutex::default(),
        threads: Threads::default(),
    });
    // Whoever ends the server ends the front, and its end is ours.
    let begun = children::ignore_wishes();
    if begun.is_ok() {
        worker.serve();
    }
    worker.threads.wait();
    worker.core.let_go();
    let failed = begun.err().or_else(|| lock(&worker.turn).failed.take());
    // To give back what is shared with the parent would copy it first.
    std::mem::forget(worker);
    let Some(error) = failed else { return 0 };
    let error = error.to_string();
    tracing::error!(error = error.as_str(), "a worker cannot go on");
    FAILED
}

/// This process. Whoever of its threads has the turn takes the next packet, gives the turn to another one and does what is asked for.
struct Worker {
    core: Core,
    socket: Packets,
    turn: Mutex<Turn>,
    threads: Threads,
}

/// What the thread has that receives.
#[derive(Default)]
struct Turn {
    packet: Buffer,
    /// The messages that the front has told of.
    transactions: HashMap<u64, Result<Arc<Transaction>, Fault>>,
    fence: Fence,
    /// There is nobody who could say more, or nobody is understood.
    is_over: bool,
    failed: Option<io::Error>,
}

/// How many threads there are beside the first, and how many of all wait for their turn or for a packet.
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

/// A thread that ends, however it does.
struct Leave<'a>(&'a Threads);

/// What a thread is asked for.
enum Work {
    Inspect(u64, Recipient, Answers),
    Deliver(
        u64,
        Result<Arc<Transaction>, Fault>,
        Recipient,
        Answers,
        Box<Retry>,
    ),
}

impl Worker {
    fn serve(self: &Arc<Worker>) {
        self.threads.count().waiting += 1;
        while let Some(work) = self.next() {
            self.call_another();
            self.answer(work);
            if !self.threads.stay() {
                return;
            }
        }
    }

    /// None: there is no more.
    fn next(&self) -> Option<Work> {
        let mut turn = lock(&self.turn);
        while !turn.is_over {
            let received = guarded(|| turn.receive(&self.core, &self.socket));
            match received.unwrap_or_else(|fault| Err(io::Error::other(fault.to_string()))) {
                Ok(None) => {}
                Ok(work) => return work,
                Err(error) => {
                    turn.is_over = true;
                    turn.failed = Some(error);
                }
            }
        }
        None
    }

    /// Somebody receives while this thread works.
    fn call_another(self: &Arc<Worker>) {
        let mut count = self.threads.count();
        count.waiting -= 1;
        if count.waiting > 0 || count.alive >= AT_ONCE {
            return;
        }
        let worker = Arc::clone(self);
        let begun = thread::Builder::new().spawn(move || {
            let _leave = Leave(&worker.threads);
            worker.serve();
        });
        // Without one the next packet waits for this one's end.
        count.alive += usize::from(begun.is_ok());
    }

    fn answer(&self, work: Work) {
        match work {
            Work::Inspect(id, recipient, answers) => {
                let report = guarded(|| self.core.expect(Some(&answers), &recipient));
                let report =
                    report.unwrap_or_else(|fault| Report::failed(recipient.shown(), fault));
                say(&self.socket, Answer::Report { id, report });
            }
            Work::Deliver(id, transaction, recipient, answers, retry) => {
                let done = transaction.and_then(|transaction| {
                    guarded(|| {
                        let (core, answers) = (&self.core, Some(&answers));
                        core.deliver_expected(answers, &transaction, &recipient, &retry)
                    })
                });
                let done = done.unwrap_or_else(|it| Done::Outcome(Outcome::Deferred(it)));
                say(&self.socket, Answer::Done { id, done });
            }
        }
    }
}

impl Turn {
    /// The next packet. None: it asks for nothing that would take long.
    fn receive(&mut self, core: &Core, socket: &Packets) -> io::Result<Option<Work>> {
        let Some(descriptor) = socket.receive(&mut self.packet)? else {
            self.is_over = true;
            // Those that are left had clients, who will hear of nothing.
            let left = self.transactions.values().flatten();
            left.for_each(|transaction| transaction.abandon());
            return Ok(None);
        };
        let request: Request = wire::unpacked(self.packet.packet())?;
        // By the first request, before there is a second thread.
        if let Some((id, answers)) = request.work()
            && !self.fence.holds(core.settings(), answers)
        {
            say(socket, Answer::Elsewhere { id });
            return Ok(None);
        }
        match request {
            Request::Message(announced) => {
                let number = announced.transaction;
                let transaction = message(core, *announced, descriptor.map(File::from));
                self.transactions.insert(number, transaction);
            }
            Request::Forget { transaction } => drop(self.transactions.remove(&transaction)),
            Request::Abandon { transaction } => {
                if let Some(Ok(transaction)) = self.transactions.get(&transaction) {
                    transaction.abandon();
                }
            }
            Request::Inspect {
                id,
                recipient,
                answers,
            } => return Ok(Some(Work::Inspect(id, recipient, answers))),
            Request::Deliver {
                id,
                transaction,
                recipient,
                answers,
                retry,
            } => {
                let transaction = self.transactions.get(&transaction).cloned();
                let transaction = transaction.unwrap_or_else(|| {
                    let why = "there is no message";
                    Err(Fault::new(Code::Internal, "deliver", why))
                });
                let work = Work::Deliver(id, transaction, recipient, answers, retry);
                return Ok(Some(work));
            }
        }
        Ok(None)
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

    /// Until the first thread is the only one.
    fn wait(&self) {
        let is_other = |count: &mut Count| count.alive > 0;
        drop(self.gone.wait_while(self.count(), is_other));
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.count().alive -= 1;
        self.0.gone.notify_all();
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
