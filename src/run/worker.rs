//! A process of one identity: inspects and carries out what the front asks for, several deliveries at a time.
//!
//! Paths come from the configuration that the monitor read; the front says only who is meant and what the userdbs know of him.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime;

use super::AT_ONCE;
use super::wire::{self, Announced, Answer, Request};
use crate::deliver::{Answers, Core, Done, Outcome, Report, Saved, Settings, Transaction};
use crate::fault::{Code, Fault};
use crate::message::{Body, Message};
use crate::sys::children;
use crate::sys::packet::{Buffer, Packets};
use crate::sys::sandbox::{self, Level, Sandbox};

/// How long a thread waits for another delivery.
const KEEP: Duration = Duration::from_secs(10);
const FAILED: u8 = 70;

/// Works until the other end of `socket` says no more. Answers the exit code.
pub fn work(settings: Settings, socket: Packets) -> u8 {
    match serve(settings, socket) {
        Ok(()) => 0,
        Err(error) => {
            let error = error.to_string();
            tracing::error!(error = error.as_str(), "a worker cannot go on");
            FAILED
        }
    }
}

fn serve(settings: Settings, socket: Packets) -> io::Result<()> {
    // Whoever ends the server ends the front, and its end is ours.
    children::ignore_wishes()?;
    let threads = runtime::Builder::new_current_thread()
        .max_blocking_threads(AT_ONCE)
        .thread_keep_alive(KEEP)
        .build()?;
    let (core, socket) = (Arc::new(Core::new(settings)), Arc::new(socket));
    let mut transactions: HashMap<u64, Result<Arc<Transaction>, Fault>> = HashMap::new();
    let mut packet = Buffer::default();
    let mut fence = Fence::default();
    while let Some(descriptor) = socket.receive(&mut packet)? {
        let request: Request = wire::unpacked(packet.packet())?;
        if let Some((id, answers)) = request.work()
            && !fence.holds(core.settings(), answers)
        {
            say(&socket, Answer::Elsewhere { id });
            continue;
        }
        match request {
            Request::Message(announced) => {
                let number = announced.transaction;
                let transaction = message(&core, *announced, descriptor.map(File::from));
                transactions.insert(number, transaction);
            }
            Request::Forget { transaction } => drop(transactions.remove(&transaction)),
            Request::Abandon { transaction } => {
                if let Some(Ok(transaction)) = transactions.get(&transaction) {
                    transaction.abandon();
                }
            }
            Request::Inspect {
                id,
                recipient,
                answers,
            } => {
                let (core, socket) = (Arc::clone(&core), Arc::clone(&socket));
                threads.spawn_blocking(move || {
                    let report = guarded(|| core.inspect_with(&answers, &recipient));
                    let report =
                        report.unwrap_or_else(|fault| Report::failed(recipient.shown(), fault));
                    say(&socket, Answer::Report { id, report });
                });
            }
            Request::Deliver {
                id,
                transaction,
                recipient,
                answers,
                retry,
            } => {
                let transaction = transactions.get(&transaction).cloned();
                let (core, socket) = (Arc::clone(&core), Arc::clone(&socket));
                threads.spawn_blocking(move || {
                    let done = match transaction {
                        Some(Ok(transaction)) => guarded(|| {
                            core.deliver_with(&answers, &transaction, &recipient, &retry)
                        }),
                        Some(Err(fault)) => Err(fault),
                        None => Err(Fault::new(Code::Internal, "deliver", "there is no message")),
                    };
                    let done = done.unwrap_or_else(|it| Done::Outcome(Outcome::Deferred(it)));
                    say(&socket, Answer::Done { id, done });
                });
            }
        }
    }
    // It waits for what is being done.
    drop(threads);
    // To give back what is shared with the parent would copy it first.
    std::mem::forget(core);
    Ok(())
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
