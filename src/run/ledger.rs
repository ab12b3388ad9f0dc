//! What was delivered lately, so that a message which is sent again because its client has not heard of it is stored once.
//!
//! A row for each message and recipient: the name that the file is to have, written before anything becomes visible, and what
//! became of it. A process that is killed in between leaves the row, and the file's name decides. Nothing here is synced: after a
//! power cut a retry may be stored twice, never not at all.

mod memory;
mod rows;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::time::timeout;

use crate::deliver::{Alike, Earlier, Outcome, Retry, Saved};
use crate::fault::{Code, Fault};
use crate::message::{Message, Recipient, header};
use memory::Memory;
use rows::Rows;

/// How long a retry waits for the end of the delivery before it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same, for another message with its Message-ID.
const ALIKE_PATIENCE: Duration = Duration::from_secs(5);
/// How long the database may take: mail does not wait for it.
const ANSWER: Duration = Duration::from_secs(3);

/// `delivery.duplicate_*`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a message may be sent again; zero: each is stored.
    pub window: Duration,
    /// The longest time that a namespace looks at Message-IDs for; zero: none does.
    pub alike: Duration,
    /// SQLite. None: in memory, and a restart forgets.
    pub path: Option<PathBuf>,
}

/// The rows, and who works on which.
#[derive(Debug)]
pub struct Ledger {
    settings: Settings,
    rows: Keeper,
    busy: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

/// Who has the rows.
#[derive(Debug)]
enum Keeper {
    /// Whoever asks does it himself.
    Memory(Box<Mutex<Memory>>),
    /// A thread, which makes one transaction of what many ask for.
    File(mpsc::Sender<Request>),
}

type Key = [u8; 32];
type Known = Result<(Option<Earlier>, Vec<Alike>), String>;

/// Names that a file may have got in deliveries of which nobody knows the end: one for each time in a row that a server is killed
/// before it has answered. Nobody is that unlucky; but the name that is left out may be the one that is there.
const MAX_NAMES: usize = 64;

/// One delivery that is written down; nobody else delivers the same meanwhile.
#[derive(Debug)]
pub struct Begun {
    ledger: Arc<Ledger>,
    delivery: Option<Id>,
    message_id: Option<Key>,
    /// To be given to the delivery.
    pub retry: Retry,
    keys: Vec<(Key, Option<OwnedMutexGuard<()>>)>,
}

/// A message, its recipient, and the MTA's queue id, which is empty where it said none.
#[derive(Debug, Clone)]
struct Id {
    key: Key,
    queue_id: String,
}

impl Id {
    /// An MTA that says no queue id may mean any.
    fn may_be(&self, queue_id: &str) -> bool {
        self.queue_id == queue_id || self.queue_id.is_empty() || queue_id.is_empty()
    }
}

#[derive(Debug)]
enum Request {
    Begin {
        delivery: Option<Id>,
        message_id: Option<Key>,
        name: String,
        answer: oneshot::Sender<Known>,
    },
    Saved(Option<Id>, Option<Key>, Box<Saved>),
    Forget(Id),
}

impl Ledger {
    /// None where nothing is to be remembered. A database that cannot be had is no reason to refuse mail.
    pub fn open(settings: Settings) -> Option<Arc<Ledger>> {
        if settings.window.is_zero() && settings.alike.is_zero() {
            return None;
        }
        let in_memory = || Keeper::Memory(Box::new(Mutex::new(Memory::new(settings.clone()))));
        let rows = match &settings.path {
            None => in_memory(),
            Some(path) => in_file(path, &settings).unwrap_or_else(|why| {
                tracing::warn!(why, "retries are known until the server ends only");
                in_memory()
            }),
        };
        Some(Arc::new(Ledger {
            settings,
            rows,
            busy: Mutex::default(),
        }))
    }

    /// Writes down that this message is about to be delivered to `recipient` as a file of this `name`. None: nothing tells it from
    /// others like it.
    pub async fn begin(
        self: &Arc<Ledger>,
        message: &Message,
        recipient: &Recipient,
        name: String,
    ) -> Result<Option<Begun>, Fault> {
        let head = message.body.head();
        let message_id = header::message_id(head);
        let queue_id = message.envelope.queue_id.clone().unwrap_or_default();
        let has_mark = || message_id.is_some() || header::field(head, "Received").is_some();
        let delivery = message
            .body
            .digest()
            .filter(|_| !self.settings.window.is_zero() && (!queue_id.is_empty() || has_mark()))
            .map(|bytes| Id {
                key: key_of(bytes, message, recipient),
                queue_id,
            });
        let message_id = header::raw_message_id(head)
            .filter(|_| !self.settings.alike.is_zero())
            .map(|id| hash(&[b"Message-ID", &id]));
        let mut keys: Vec<Key> = message_id.into_iter().collect();
        keys.extend(delivery.as_ref().map(|it| it.key));
        if keys.is_empty() {
            return Ok(None);
        }
        let mut begun = Begun {
            ledger: Arc::clone(self),
            delivery,
            message_id,
            retry: Retry::default(),
            keys: Vec::new(),
        };
        for key in keys {
            let lock = Arc::clone(self.busy().entry(key).or_default());
            begun.keys.push((key, None));
            let is_alike = message_id == Some(key);
            let patience = if is_alike { ALIKE_PATIENCE } else { PATIENCE };
            match timeout(patience, lock.lock_owned()).await {
                Ok(held) => drop(begun.keys.last_mut().map(|it| it.1.replace(held))),
                // Another recipient's mailbox hangs: this one need not wait for it.
                Err(_) if is_alike => begun.message_id = None,
                Err(_) => {
                    let why = "the same message is being delivered still";
                    return Err(Fault::new(Code::Busy, "deliver a message again", why));
                }
            }
        }
        let (answer, answered) = oneshot::channel();
        let request = Request::Begin {
            delivery: begun.delivery.clone(),
            message_id: begun.message_id,
            name: name.clone(),
            answer,
        };
        self.rows.ask(request);
        let known = match timeout(ANSWER, answered).await {
            Ok(answered) => answered.unwrap_or_else(|_| Err("its thread has ended".into())),
            Err(_) => Err("it does not answer".into()),
        };
        match known {
            Ok((earlier, alike)) => {
                begun.retry = Retry {
                    name: Some(name),
                    earlier,
                    alike,
                };
            }
            Err(why) => tracing::warn!(why, "a retry of this message may be stored twice"),
        }
        Ok(Some(begun))
    }

    fn busy(&self) -> MutexGuard<'_, HashMap<Key, Arc<tokio::sync::Mutex<()>>>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_file(path: &Path, settings: &Settings) -> Result<Keeper, String> {
    let rows = Rows::open(path, settings)?;
    let (thread, requests) = mpsc::channel();
    thread::Builder::new()
        .name("ledger".into())
        .spawn(move || rows.work(&requests))
        .map_err(|error| error.to_string())?;
    Ok(Keeper::File(thread))
}

impl Keeper {
    /// Without a thread that lives nothing is remembered, and nothing answered.
    fn ask(&self, request: Request) {
        match self {
            Keeper::Memory(rows) => {
                let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
                rows.answer(request, now());
            }
            Keeper::File(thread) => drop(thread.send(request)),
        }
    }
}

impl Begun {
    /// Writes down what became of it. Without it, because nobody knows, the row stays, and the file's name decides.
    pub fn end(self, outcome: &Outcome) {
        let request = match (outcome, &self.delivery) {
            (Outcome::Saved(saved), delivery) if !saved.is_again => {
                let saved = Box::new(saved.clone());
                Request::Saved(delivery.clone(), self.message_id, saved)
            }
            // Found by the name of its file, which the next retry may not find any more.
            (Outcome::Saved(saved), Some(delivery)) if self.knows_no_end() => {
                Request::Saved(Some(delivery.clone()), None, Box::new(saved.clone()))
            }
            (Outcome::Rejected(fault) | Outcome::Deferred(fault), Some(delivery))
                if self.retry.name.is_some()
                    && fault.code != Code::Internal
                    && self.proves_nothing(fault) =>
            {
                Request::Forget(delivery.clone())
            }
            _ => return,
        };
        self.ledger.rows.ask(request);
    }

    /// Whether nobody knows what became of an earlier one.
    fn knows_no_end(&self) -> bool {
        let earlier = self.retry.earlier.as_ref();
        earlier.is_some_and(|it| it.saved.is_none())
    }

    /// Whether no name is to be believed behind this failure.
    fn proves_nothing(&self, fault: &Fault) -> bool {
        // What an earlier one has left stays: this one may have failed before it looked. A sync that has failed tells it once.
        self.retry.earlier.is_none() || self.knows_no_end() && fault.is_not_durable
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut busy = self.ledger.busy();
        for (key, held) in self.keys.drain(..) {
            drop(held);
            // The map alone holds it: nobody waits.
            if busy.get(&key).is_some_and(|it| Arc::strong_count(it) == 1) {
                busy.remove(&key);
            }
        }
    }
}

/// All that makes a delivery the same one.
fn key_of(bytes: &[u8; 32], message: &Message, recipient: &Recipient) -> Key {
    let sender = message.envelope.sender.to_string();
    let original = recipient.original.as_deref().unwrap_or_default();
    let mailbox = recipient.mailbox.as_deref().unwrap_or_default();
    let shown = recipient.shown();
    hash(&[
        bytes,
        sender.as_bytes(),
        shown.as_bytes(),
        original.as_bytes(),
        mailbox.as_bytes(),
    ])
}

fn hash(parts: &[&[u8]]) -> Key {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        // No two lists of parts are the same bytes.
        hasher.update(blake3::hash(part).as_bytes());
    }
    hasher.finalize().into()
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}
