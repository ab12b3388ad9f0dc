//! The worker processes as the front sees them: one for each identity that is at work, kept for the next delivery, counted.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{interval, sleep, timeout};

use super::AT_ONCE;
use super::wire::{self, Answer, Forked, Order};
use crate::fault::{Code, Fault};
use crate::observe::snapshot;
use crate::sys::channel::Channel;
use crate::sys::credentials::Credentials;
use crate::sys::packet::{Buffer, Packets};

/// How long a delivery waits for a worker, or for its turn at one.
const PATIENCE: Duration = Duration::from_secs(30);
/// A worker that has owed an answer for so long is ended: longer than any delivery waits.
const STUCK: Duration = Duration::from_secs(330);
/// How long processes may take to end before it is asked again for room.
const ENDING: Duration = Duration::from_millis(20);
/// How often idle and stuck workers are looked for.
const ROUND: Duration = Duration::from_secs(1);

/// `[workers]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Processes at once, whoever they are.
    pub max: usize,
    /// One that had nothing to do for so long ends.
    pub idle: Duration,
    /// Deliveries until another process takes over.
    pub deliveries: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max: 1000,
            idle: Duration::from_secs(60),
            deliveries: 10_000,
        }
    }
}

/// What a worker is, for as long as it lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    pub credentials: Credentials,
    /// Directories that it can open beside those of the configuration.
    pub bases: BTreeSet<PathBuf>,
}

/// All workers.
#[derive(Debug)]
pub struct Pool {
    limits: Limits,
    /// One order at a time.
    monitor: tokio::sync::Mutex<Channel>,
    table: Mutex<Table>,
    /// A worker has become idle, or has gone.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    workers: HashMap<Identity, Arc<Worker>>,
    /// Those that get nothing new.
    leaving: Vec<Arc<Worker>>,
    /// Processes, those among them that only finish what they have.
    alive: usize,
}

/// Who waits for which answer, and since when.
type Pending = HashMap<u64, (Instant, oneshot::Sender<Answer>)>;

/// One process.
#[derive(Debug)]
pub struct Worker {
    pid: i32,
    uid: u32,
    channel: Channel,
    /// None: the process is gone.
    pending: Mutex<Option<Pending>>,
    next: AtomicU64,
    /// Requests that it may have at once.
    turns: Semaphore,
    leases: AtomicUsize,
    deliveries: AtomicU64,
    is_retired: AtomicBool,
    /// It takes nothing any more: it has ended, and what it answered before may still come in.
    is_deaf: AtomicBool,
    last_used: Mutex<Instant>,
}

enum Made {
    Here,
    /// There are as many as may be; an idle one leaves, if there is one.
    NoRoom,
    /// Too many have closed their sockets and not quite ended: nobody will say when they have.
    NotYet,
}

/// A worker that stays until this is dropped.
#[derive(Debug)]
pub struct Lease {
    worker: Arc<Worker>,
    pool: Arc<Pool>,
}

impl Pool {
    /// To be called in a runtime. `monitor`: the front's end of the monitor's socket.
    pub fn new(monitor: Packets, limits: Limits) -> io::Result<Arc<Pool>> {
        let pool = Arc::new(Pool {
            limits,
            monitor: tokio::sync::Mutex::new(Channel::new(monitor)?),
            table: Mutex::default(),
            changed: Notify::new(),
        });
        tokio::spawn(look_after(Arc::clone(&pool)));
        Ok(pool)
    }

    /// All that live.
    pub fn list(&self) -> Vec<snapshot::Worker> {
        let table = self.table();
        let workers = table.workers.values().chain(&table.leaving);
        let workers = workers.map(|worker| snapshot::Worker {
            pid: worker.pid,
            uid: worker.uid,
            at_work: worker.pending().as_ref().map_or(0, HashMap::len),
            deliveries: worker.deliveries.load(Ordering::Relaxed),
        });
        workers.collect()
    }

    /// A worker of this identity.
    pub async fn lease(self: &Arc<Pool>, who: &Identity) -> Result<Lease, Fault> {
        let doing = || format!("find a worker of uid {}", who.credentials.uid);
        let are_ending = AtomicBool::new(false);
        let worker = match timeout(PATIENCE, self.find(who, &are_ending)).await {
            Ok(found) => found.map_err(|why| Fault::new(Code::Resources, doing(), why))?,
            Err(_) if are_ending.load(Ordering::Relaxed) => {
                let why = "workers that are to end do not end";
                return Err(
                    Fault::new(Code::Resources, doing(), why).with_advice("does a disk hang?")
                );
            }
            Err(_) => {
                let why = format!("all {} workers are busy", self.limits.max);
                return Err(Fault::new(Code::Resources, doing(), why)
                    .with_advice("give it more: workers.max"));
            }
        };
        Ok(Lease {
            worker,
            pool: Arc::clone(self),
        })
    }

    /// `are_ending`: whether those that end are what it waits for.
    async fn find(
        self: &Arc<Pool>,
        who: &Identity,
        are_ending: &AtomicBool,
    ) -> Result<Arc<Worker>, String> {
        loop {
            if let Some(worker) = self.table().take(who) {
                return Ok(worker);
            }
            let changed = self.changed.notified();
            // To its end, whoever gives up: half an exchange with the monitor would be the next one's.
            let (pool, who) = (Arc::clone(self), who.clone());
            let made = tokio::spawn(async move { pool.make(&who).await });
            let made = made.await.map_err(|error| error.to_string())??;
            are_ending.store(matches!(made, Made::NotYet), Ordering::Relaxed);
            match made {
                Made::Here => {}
                Made::NoRoom => changed.await,
                Made::NotYet => sleep(ENDING).await,
            }
        }
    }

    /// One at a time: whoever came first may have made the one that is wanted.
    async fn make(self: &Arc<Pool>, who: &Identity) -> Result<Made, String> {
        let monitor = self.monitor.lock().await;
        {
            let mut table = self.table();
            if table.workers.contains_key(who) {
                return Ok(Made::Here);
            }
            if table.alive >= self.limits.max {
                table.retire_oldest();
                return Ok(Made::NoRoom);
            }
            table.alive += 1;
        }
        let made = self.fork(&monitor, who).await;
        match &made {
            Ok(Made::Here) => {}
            // Nobody else gets further by that.
            Ok(_) => self.table().alive -= 1,
            Err(_) => self.gone(None),
        }
        made
    }

    async fn fork(self: &Arc<Pool>, monitor: &Channel, who: &Identity) -> Result<Made, String> {
        let text = |error: io::Error| error.to_string();
        let order = wire::packed(&Order::Fork(who.credentials.clone())).map_err(text)?;
        monitor.send(&order, None).await.map_err(text)?;
        let mut packet = Buffer::default();
        let received = monitor.receive(&mut packet).await.map_err(text)?;
        let made = wire::unpacked(packet.packet()).map_err(text)?;
        let (pid, socket) = match (made, received.flatten()) {
            (Forked::Worker(pid), Some(socket)) => (pid, Packets::from(socket)),
            (Forked::Full, _) => return Ok(Made::NotYet),
            (Forked::Refused(why), _) => return Err(why),
            (Forked::Worker(_), None) => return Err("its socket did not come".into()),
        };
        let worker = Worker::new(pid, who, Channel::new(socket).map_err(text)?);
        let worker = Arc::new(worker);
        tokio::spawn(listen(Arc::clone(self), Arc::clone(&worker)));
        self.table().workers.insert(who.clone(), worker);
        Ok(Made::Here)
    }

    /// A process has ended, or was never made.
    fn gone(&self, worker: Option<&Arc<Worker>>) {
        let mut table = self.table();
        table.alive -= 1;
        if let Some(gone) = worker {
            table.workers.retain(|_, it| !Arc::ptr_eq(it, gone));
            table.leaving.retain(|it| !Arc::ptr_eq(it, gone));
        }
        drop(table);
        self.changed.notify_waiters();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn take(&mut self, who: &Identity) -> Option<Arc<Worker>> {
        let worker = self.workers.get(who)?;
        worker.leases.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(worker))
    }

    /// Makes room: the one that has been idle for longest ends.
    fn retire_oldest(&mut self) {
        let idle = self.workers.iter().filter(|(_, worker)| worker.is_idle());
        let oldest = idle.min_by_key(|(_, worker)| worker.last_used());
        if let Some(who) = oldest.map(|(who, _)| who.clone()) {
            self.retire(&who);
        }
    }

    /// It gets nothing new, and ends when it has nothing left.
    fn retire(&mut self, who: &Identity) {
        if let Some(worker) = self.workers.remove(who) {
            worker.is_retired.store(true, Ordering::Relaxed);
            if worker.is_idle() {
                worker.channel.say_no_more();
            }
            self.leaving.push(worker);
        }
    }
}

impl Worker {
    fn new(pid: i32, who: &Identity, channel: Channel) -> Worker {
        Worker {
            pid,
            uid: who.credentials.uid,
            channel,
            pending: Mutex::new(Some(HashMap::new())),
            next: AtomicU64::new(0),
            turns: Semaphore::new(AT_ONCE),
            leases: AtomicUsize::new(0),
            deliveries: AtomicU64::new(0),
            is_retired: AtomicBool::new(false),
            is_deaf: AtomicBool::new(false),
            last_used: Mutex::new(Instant::now()),
        }
    }

    fn is_idle(&self) -> bool {
        self.leases.load(Ordering::Relaxed) == 0
    }

    fn last_used(&self) -> Instant {
        *self
            .last_used
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stuck(&self) -> bool {
        let pending = self.pending();
        let mut waiting = pending.iter().flat_map(HashMap::values);
        waiting.any(|(since, _)| since.elapsed() > STUCK)
    }

    fn pending(&self) -> MutexGuard<'_, Option<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> Fault {
        let doing = format!("deliver as uid {}", self.uid);
        Fault::new(Code::Internal, doing, "its worker process has ended")
    }
}

impl Lease {
    /// One worker each.
    pub fn pid(&self) -> i32 {
        self.worker.pid
    }

    /// The process has ended: what was asked of it has no answer.
    pub fn is_gone(&self) -> bool {
        self.worker.is_deaf.load(Ordering::Relaxed) || self.worker.pending().is_none()
    }

    /// A packet that is not answered.
    pub async fn tell(
        &self,
        request: &impl Serialize,
        descriptor: Option<&(dyn AsRawFd + Sync)>,
    ) -> Result<(), Fault> {
        let packet = wire::packed(request);
        let packet = packet.map_err(|error| Fault::io("address a worker", &error))?;
        let sent = self.worker.channel.send(&packet, descriptor).await;
        use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotConnected};
        sent.map_err(|error| match error.kind() {
            BrokenPipe | ConnectionRefused | ConnectionReset | NotConnected => {
                self.worker.is_deaf.store(true, Ordering::Relaxed);
                self.retire();
                self.worker.ended()
            }
            _ => Fault::io("address a worker", &error),
        })
    }

    /// A request by its number, and what the worker says to it.
    pub async fn ask<R: Serialize>(&self, request: impl FnOnce(u64) -> R) -> Result<Answer, Fault> {
        let worker = &self.worker;
        let Ok(Ok(_turn)) = timeout(PATIENCE, worker.turns.acquire()).await else {
            let doing = format!("deliver as uid {}", worker.uid);
            let why = format!("{AT_ONCE} deliveries wait for it already");
            return Err(Fault::new(Code::Resources, doing, why));
        };
        let id = worker.next.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = oneshot::channel();
        match worker.pending().as_mut() {
            Some(pending) => pending.insert(id, (Instant::now(), send)),
            None => return Err(worker.ended()),
        };
        if let Err(fault) = self.tell(&request(id), None).await {
            if let Some(pending) = worker.pending().as_mut() {
                pending.remove(&id);
            }
            return Err(fault);
        }
        let answer = receive.await.map_err(|_| worker.ended())?;
        if matches!(answer, Answer::Elsewhere { .. }) {
            self.retire();
        }
        Ok(answer)
    }

    /// The next delivery gets another process.
    fn retire(&self) {
        let mut table = self.pool.table();
        let same = |it: &&Arc<Worker>| Arc::ptr_eq(it, &self.worker);
        let who = table.workers.iter().find(|(_, it)| same(it));
        if let Some(who) = who.map(|(who, _)| who.clone()) {
            table.retire(&who);
        }
    }

    /// After enough of them the next delivery gets another process.
    pub fn count_delivery(&self) {
        let before = self.worker.deliveries.fetch_add(1, Ordering::Relaxed);
        if before + 1 == self.pool.limits.deliveries {
            self.retire();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let worker = &self.worker;
        *worker
            .last_used
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
        // Under the lock: nobody takes it meanwhile.
        let table = self.pool.table();
        let left = worker.leases.fetch_sub(1, Ordering::Relaxed) - 1;
        if left == 0 && worker.is_retired.load(Ordering::Relaxed) {
            worker.channel.say_no_more();
        }
        drop(table);
        if left == 0 {
            self.pool.changed.notify_waiters();
        }
    }
}

/// Hands out the answers of a worker until it has gone.
async fn listen(pool: Arc<Pool>, worker: Arc<Worker>) {
    let mut packet = Buffer::default();
    while let Ok(Some(_)) = worker.channel.receive(&mut packet).await {
        let Ok(answer) = wire::unpacked::<Answer>(packet.packet()) else {
            break;
        };
        let waiting = worker
            .pending()
            .as_mut()
            .and_then(|it| it.remove(&answer.id()));
        if let Some((_, waiting)) = waiting {
            // It may have given up.
            let _ = waiting.send(answer);
        }
    }
    // First: who is told that it is gone gets another one.
    pool.gone(Some(&worker));
    let unanswered = worker.pending().take();
    if unanswered.is_some_and(|it| !it.is_empty()) {
        tracing::warn!(uid = worker.uid, pid = worker.pid, "a worker process died");
    }
}

/// Ends the workers that nobody needs, and those that do not answer.
async fn look_after(pool: Arc<Pool>) {
    let mut rounds = interval(ROUND);
    loop {
        rounds.tick().await;
        let mut stuck = Vec::new();
        {
            let mut table = pool.table();
            let idle = table.workers.iter().filter(|(_, worker)| {
                worker.is_idle() && worker.last_used().elapsed() > pool.limits.idle
            });
            let idle: Vec<Identity> = idle.map(|(who, _)| who.clone()).collect();
            idle.iter().for_each(|who| table.retire(who));
            let workers = table.workers.values().chain(&table.leaving);
            let workers = workers.filter(|it| it.is_stuck());
            stuck.extend(workers.map(|it| (it.pid, it.uid)));
        }
        for (pid, uid) in stuck {
            tracing::warn!(uid, pid, "a worker process does not answer, and is ended");
            if let Ok(order) = wire::packed(&Order::Kill(pid)) {
                let _ = pool.monitor.lock().await.send(&order, None).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::packet::pair;

    fn somebody() -> Identity {
        Identity {
            credentials: Credentials::new(20_000, 20_000, Vec::new()),
            bases: BTreeSet::new(),
        }
    }

    /// Those that end at once have closed their sockets before the monitor hears of their end.
    #[tokio::test]
    async fn where_the_monitor_has_no_room_yet_it_is_asked_again() {
        let who = somebody();
        let (here, monitor) = pair().unwrap();
        let pool = Pool::new(here, Limits::default()).unwrap();
        let (_its, socket) = pair().unwrap();
        let asked = std::thread::spawn(move || {
            let answers = [
                (Forked::Full, None),
                (Forked::Full, None),
                (Forked::Worker(1), Some(&socket as &dyn AsRawFd)),
            ];
            for (answer, beside) in answers {
                monitor.receive(&mut Buffer::default()).unwrap();
                let packet = wire::packed(&answer).unwrap();
                monitor.send(&packet, beside).unwrap();
            }
        });
        assert_eq!(pool.lease(&who).await.unwrap().pid(), 1);
        assert_eq!(pool.table().alive, 1);
        asked.join().unwrap();
    }

    /// Between the end of a process and the moment when that is seen.
    #[tokio::test]
    async fn one_that_has_just_ended_is_gone_and_gets_nothing_new() {
        let who = somebody();
        let (monitor, _its) = pair().unwrap();
        let pool = Pool::new(monitor, Limits::default()).unwrap();
        let (socket, its) = pair().unwrap();
        let worker = Worker::new(1, &who, Channel::new(socket).unwrap());
        pool.table().workers.insert(who.clone(), Arc::new(worker));
        pool.table().alive = 1;
        let lease = pool.lease(&who).await.unwrap();
        assert!(!lease.is_gone());
        drop(its);
        assert!(lease.ask(|id| id).await.is_err());
        assert!(lease.is_gone());
        let table = pool.table();
        assert!(table.workers.is_empty() && table.leaving.len() == 1);
    }
}
