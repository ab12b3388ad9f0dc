//! What was delivered lately, so that a message which is sent again because its client has not heard of it is stored once.
//!
//! A row for each message and recipient: the name that the file is to have, written before anything becomes visible, and what
//! became of it. A process that is killed in between leaves the row, and the file's name decides. Nothing here is synced: after a
//! power cut a retry may be stored twice, never not at all.

mod doubt;
mod memory;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::deliver::{Alike, Earlier, Outcome, Retry, Saved};
use crate::fault::{Code, Fault};
use crate::message::{Envelope, Message, Recipient, header};
use doubt::Doubt;
use memory::Memory;
use rows::Rows;

/// How long a retry waits for the end of the delivery before it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same, for other messages with its Message-ID, all of them.
const ALIKE_PATIENCE: Duration = Duration::from_secs(5);
/// How long the database may take: mail does not wait for it.
const ANSWER: Duration = Duration::from_secs(3);
/// Requests that wait for the database: of more it is told nothing.
const QUEUE: usize = 8192;

/// `delivery.duplicate_*`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a message may be sent again; zero: each is stored.
    pub window: Duration,
    /// The longest time that a namespace looks at Message-IDs for; zero: none does.
    pub alike: Duration,
    /// RCPT says for good that a mailbox is full: asked whether it may be the message itself that fills it.
    pub is_asked_at_rcpt: bool,
    /// What was stored outlives a power cut (`mail_fsync`).
    pub is_durable: bool,
    /// SQLite. None: in memory, and a restart forgets.
    pub path: Option<PathBuf>,
}

/// The rows, and who works on which.
#[derive(Debug)]
pub struct Ledger {
    settings: Settings,
    rows: Keeper,
    /// There is a database, and it does not have the rows: the next server will not know them.
    is_beside_database: bool,
    doubt: Doubt,
    busy: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

/// Who has the rows.
#[derive(Debug)]
enum Keeper {
    /// Whoever asks does it himself. Seconds count from when it was made: no clock is set back there.
    Memory(Box<Mutex<Memory>>, Instant),
    /// A thread, which makes one transaction of what many ask for.
    File(mpsc::SyncSender<Request>),
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
    /// None: no namespace looks at it.
    message_id: Option<Key>,
    /// What RCPT may ask of it by, where that is not written down.
    rcpt: Vec<Key>,
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
        /// Of the Message-ID at each place that it may go to.
        alike: Vec<Key>,
        /// What RCPT may ask of this delivery by.
        rcpt: Vec<Key>,
        name: String,
        answer: oneshot::Sender<Known>,
    },
    /// Whether there may be a delivery of what RCPT knows.
    Asked(Id, oneshot::Sender<bool>),
    /// With the key of the Message-ID, and with what RCPT may ask by where `Begin` has not told it.
    Saved(Option<Id>, Option<Key>, Box<Saved>, Vec<Key>),
    Forget(Id),
}

impl Ledger {
    /// None where nothing is to be remembered. A database that cannot be had is no reason to refuse mail.
    pub fn open(settings: Settings) -> Option<Arc<Ledger>> {
        if settings.window.is_zero() && settings.alike.is_zero() {
            return None;
        }
        let doubt = match &settings.path {
            Some(path) => Doubt::recalled(settings.window, path),
            None => Doubt::new(settings.window),
        };
        let memory = || Memory::new(settings.clone(), doubt.clone());
        let in_memory = || Keeper::Memory(Box::new(Mutex::new(memory())), Instant::now());
        let mut is_beside_database = false;
        let rows = match &settings.path {
            None => in_memory(),
            Some(path) => in_file(path, &settings, &doubt).unwrap_or_else(|why| {
                tracing::warn!(why, "retries are known until the server ends only");
                doubt.raise();
                is_beside_database = true;
                in_memory()
            }),
        };
        Some(Arc::new(Ledger {
            settings,
            rows,
            is_beside_database,
            doubt,
            busy: Mutex::default(),
        }))
    }

    /// Whether some namespace looks at Message-IDs.
    pub fn looks_at_ids(&self) -> bool {
        !self.settings.alike.is_zero()
    }

    /// Whether the message that is to come may be one that was delivered: RCPT does not know its bytes. A database that does not
    /// answer is no reason to say no.
    pub async fn may_have(&self, envelope: &Envelope, recipient: &Recipient) -> bool {
        if !self.settings.is_asked_at_rcpt {
            return false;
        }
        if self.doubt.holds() {
            return true;
        }
        let (answer, answered) = oneshot::channel();
        let id = Id {
            key: key_at_rcpt(&envelope.sender.to_string(), recipient),
            queue_id: envelope.queue_id.clone().unwrap_or_default(),
        };
        self.ask(Request::Asked(id, answer));
        !matches!(timeout(ANSWER, answered).await, Ok(Ok(false)))
    }

    /// Writes down that this message is about to be delivered to `recipient` as a file of this `name`. None: nothing tells it from
    /// others like it. `places`: where another one with its Message-ID would count.
    pub async fn begin(
        self: &Arc<Ledger>,
        message: &Message,
        recipient: &Recipient,
        places: &[String],
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
            .filter(|_| self.looks_at_ids())
            .map(|id| hash(&[b"Message-ID", &id]));
        let alike = message_id.iter();
        let alike = alike.flat_map(|id| places.iter().map(|place| key_at(id, place)));
        // In one order: no two wait for each other.
        let alike: Vec<Key> = alike.collect::<BTreeSet<_>>().into_iter().collect();
        if message_id.is_none() && delivery.is_none() {
            return Ok(None);
        }
        let mut begun = Begun {
            ledger: Arc::clone(self),
            delivery,
            message_id,
            rcpt: Vec::new(),
            retry: Retry::default(),
            keys: Vec::new(),
        };
        let patience = Instant::now() + ALIKE_PATIENCE;
        for key in &alike {
            // Another one's delivery hangs there: this one need not wait for it, and looks all the same.
            begun.lock(*key, patience).await;
        }
        let key = begun.delivery.as_ref().map(|it| it.key);
        if let Some(key) = key
            && !begun.lock(key, Instant::now() + PATIENCE).await
        {
            let why = "the same message is being delivered still";
            return Err(Fault::new(Code::Busy, "deliver a message again", why));
        }
        let (answer, answered) = oneshot::channel();
        let is_asked = begun.delivery.is_some() && self.settings.is_asked_at_rcpt;
        // Another server asks at RCPT with `<>`, whoever has sent it.
        let senders = BTreeSet::from([message.envelope.sender.to_string(), String::new()]);
        let senders = senders.iter().filter(|_| is_asked);
        let rcpt = senders.map(|sender| key_at_rcpt(sender, recipient));
        let rcpt: Vec<Key> = rcpt.collect();
        let request = Request::Begin {
            delivery: begun.delivery.clone(),
            alike,
            rcpt: rcpt.clone(),
            name: name.clone(),
            answer,
        };
        self.ask(request);
        let known = match timeout(ANSWER, answered).await {
            Ok(answered) => answered.unwrap_or_else(|_| Err("it takes no more".into())),
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
            Err(why) => {
                tracing::warn!(why, "a retry of this message may be stored twice");
                self.doubt.raise();
                begun.rcpt = rcpt;
            }
        }
        Ok(Some(begun))
    }

    fn ask(&self, request: Request) {
        if self.is_beside_database {
            self.doubt.mark();
        }
        if !self.rows.ask(request) {
            self.doubt.raise();
        }
    }

    fn busy(&self) -> MutexGuard<'_, HashMap<Key, Arc<tokio::sync::Mutex<()>>>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_file(path: &Path, settings: &Settings, doubt: &Doubt) -> Result<Keeper, String> {
    let rows = Rows::open(path, settings, doubt)?;
    let (thread, requests) = mpsc::sync_channel(QUEUE);
    thread::Builder::new()
        .name("ledger".into())
        .spawn(move || rows.work(&requests))
        .map_err(|error| error.to_string())?;
    Ok(Keeper::File(thread))
}

impl Keeper {
    /// Without a thread that lives and has not too much to do nothing is remembered, and nothing answered. Whether it was told.
    fn ask(&self, request: Request) -> bool {
        match self {
            Keeper::Memory(rows, since) => {
                let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
                rows.answer(request, since.elapsed().as_secs());
                true
            }
            Keeper::File(thread) => thread.try_send(request).is_ok(),
        }
    }
}

impl Begun {
    /// Whether nobody else has it now.
    async fn lock(&mut self, key: Key, until: Instant) -> bool {
        let lock = Arc::clone(self.ledger.busy().entry(key).or_default());
        self.keys.push((key, None));
        let held = timeout_at(until, lock.lock_owned()).await.ok();
        let is_held = held.is_some();
        if let Some(it) = self.keys.last_mut() {
            it.1 = held;
        }
        is_held
    }

    /// Writes down what became of it. Without it, because nobody knows, the row stays, and the file's name decides.
    pub fn end(self, outcome: &Outcome) {
        let request = match (outcome, &self.delivery) {
            (Outcome::Saved(saved), delivery) if !saved.is_again => {
                let message_id = self.message_id.map(|id| key_at(&id, &saved.place));
                let saved = Box::new(saved.clone());
                Request::Saved(delivery.clone(), message_id, saved, self.rcpt.clone())
            }
            // Found by the name of its file, which the next retry may not find any more; or by its Message-ID, which is known.
            (Outcome::Saved(saved), Some(delivery)) if self.retry.is_unknown() => {
                let message_id = self.message_id.filter(|_| !saved.file.is_empty());
                let message_id = message_id.map(|id| key_at(&id, &saved.place));
                let saved = Box::new(saved.clone());
                Request::Saved(Some(delivery.clone()), message_id, saved, Vec::new())
            }
            // The next retry need not search for it.
            (Outcome::Saved(saved), Some(delivery)) if self.has_moved(saved) => {
                let saved = Box::new(saved.clone());
                Request::Saved(Some(delivery.clone()), None, saved, Vec::new())
            }
            (Outcome::Rejected(fault) | Outcome::Deferred(fault), Some(delivery))
                if self.is_known()
                    && fault.code != Code::Internal
                    && !fault.may_be_stored
                    && self.proves_nothing(fault) =>
            {
                Request::Forget(delivery.clone())
            }
            _ => return,
        };
        self.ledger.ask(request);
    }

    /// Whether what was written down before has been told.
    fn is_known(&self) -> bool {
        self.retry.name.is_some()
    }

    /// Whether the message may be there though nothing says so.
    pub fn is_doubtful(&self) -> bool {
        !self.is_known() || self.delivery.is_some() && self.ledger.doubt.holds()
    }

    /// Whether it was found where it was known to be, by the name of its file: the device has another number by now.
    fn has_moved(&self, saved: &Saved) -> bool {
        let earlier = self.retry.earlier.as_ref();
        earlier.and_then(|it| it.saved.as_ref()).is_some_and(|it| {
            it.place == saved.place && it.file == saved.file && it.mailbox_id != saved.mailbox_id
        })
    }

    /// Whether no name is to be believed behind this failure.
    fn proves_nothing(&self, fault: &Fault) -> bool {
        // What an earlier one has left stays: this one may have failed before it looked. A sync that has failed tells it once.
        self.retry.earlier.is_none() || self.retry.is_unknown() && fault.is_not_durable
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
    addressed(bytes, &message.envelope.sender.to_string(), recipient)
}

/// What RCPT knows of that.
fn key_at_rcpt(sender: &str, recipient: &Recipient) -> Key {
    addressed(b"RCPT", sender, recipient)
}

fn addressed(what: &[u8], sender: &str, recipient: &Recipient) -> Key {
    let original = recipient.original.as_deref().unwrap_or_default();
    let mailbox = recipient.mailbox.as_deref().unwrap_or_default();
    let shown = recipient.shown();
    hash(&[
        what,
        sender.as_bytes(),
        shown.as_bytes(),
        original.as_bytes(),
        mailbox.as_bytes(),
    ])
}

/// A Message-ID in one mailbox.
fn key_at(message_id: &Key, place: &str) -> Key {
    hash(&[message_id, place.as_bytes()])
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
