//! A task that does its work where it is polled, in place of a hop to another thread and back for each piece.
//!
//! ```text
//! talkers ── it has work that may wait for a disk ──> a thread of its own: works, polls it, hears its sockets
//!    ^                                                   │
//!    ├── nothing to do for LINGER <──────────────────────┤
//!    └── the work takes longer than PATIENCE <───────────┘ the thread stays with the work alone
//! ```
//!
//! So a busy client costs no switch between threads, one that waits costs no thread, and one whose mailbox hangs is heard all the
//! same: deadlines and clients that go away are the task's, and it is never where something hangs.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::spawn_blocking;
use tokio::task::unconstrained;
use tokio::time::{sleep, timeout};

/// Tasks that may have a thread of their own at once.
const OWN_THREADS: usize = 64;
/// How long a thread waits for more work of its task.
const LINGER: Duration = Duration::from_millis(100);
/// Homes that are kept for the next tasks.
const IDLE_HOMES: usize = 16;
/// Work that takes longer is left alone with its thread.
const PATIENCE: Duration = Duration::from_millis(250);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
type Work = Box<dyn FnOnce() + Send>;

thread_local! {
    /// What the task that is being polled wants done. None: no task of ours is.
    static WANTED: RefCell<Option<Vec<Work>>> = const { RefCell::new(None) };
    /// Where sockets are heard, on a thread that has a task.
    static HOME: RefCell<Option<Home>> = const { RefCell::new(None) };
    static PLACE: Cell<Place> = const { Cell::new(Place::TALKERS) };
    /// Of the thread that works for its task: it polls it right after.
    static WORKS_AT: Cell<Place> = const { Cell::new(Place::TALKERS) };
}

/// Who hears sockets: all talkers together, or a thread for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u64);

impl Place {
    const TALKERS: Place = Place(0);

    /// That of the task which is being polled.
    pub fn here() -> Place {
        PLACE.get()
    }

    /// Registers a socket here.
    pub fn register<T>(make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if Place::here() == Place::TALKERS {
            return make();
        }
        HOME.with_borrow(|home| {
            let _here = home.as_ref().map(|home| home.runtime.enter());
            make()
        })
    }
}

/// Hears the sockets of one thread.
struct Home {
    runtime: Runtime,
    place: Place,
}

/// Those that no thread has now: to make one takes a few system calls, and each holds some descriptors.
static IDLE: Mutex<Vec<Home>> = Mutex::new(Vec::new());

/// Gives back the descriptors of threads that have nothing to do, for whoever is short of them.
pub fn let_go() {
    for home in mem::take(&mut *lock(&IDLE)) {
        home.runtime.shutdown_background();
    }
}

/// A thread that has a task; where its sockets are heard is another's at the end.
struct Guest;

impl Guest {
    /// Whether there is such a place.
    fn arrive() -> bool {
        HOME.with_borrow_mut(|home| {
            if home.is_none() {
                *home = lock(&IDLE).pop().or_else(|| Home::new().ok());
            }
            home.is_some()
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let Some(home) = HOME.take() else { return };
        let mut idle = lock(&IDLE);
        match idle.len() < IDLE_HOMES {
            true => idle.push(home),
            false => home.runtime.shutdown_background(),
        }
    }
}

impl Home {
    fn new() -> io::Result<Home> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Ok(Home {
            runtime: Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build()?,
            place: Place(NEXT.fetch_add(1, Ordering::Relaxed)),
        })
    }
}

/// Wakes a thread that waits for its task; a system call that the thread itself can do without.
struct Bell {
    place: Place,
    waker: Waker,
}

impl Wake for Bell {
    fn wake(self: Arc<Bell>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Bell>) {
        if WORKS_AT.get() != self.place {
            self.waker.wake_by_ref();
        }
    }
}

/// The runtime of a server: so many threads that talk, and others for what waits, of which there is always one. Where no more
/// can be had, work waits until one of them is free.
pub fn runtime(talkers: usize) -> io::Result<Runtime> {
    // What follows panics without them.
    have_threads(talkers + 1)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(talkers)
        .thread_keep_alive(Duration::MAX)
        .enable_all()
        .build()?;
    runtime.spawn_blocking(|| ());
    Ok(runtime)
}

/// Err: so many threads cannot be had at once.
fn have_threads(count: usize) -> io::Result<()> {
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let _closed = lock(&gate);
        (0..count).try_for_each(|_| {
            let thread = thread::Builder::new().spawn_scoped(scope, || drop(lock(&gate)));
            thread.map(drop)
        })
    })
}

/// Does what may wait for a disk. Err: it panicked, and how.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (send, receive) = oneshot::channel();
    let work = Box::new(move || {
        let done = catch_unwind(AssertUnwindSafe(work));
        // Whoever wanted it may be gone.
        let _ = send.send(done.map_err(|panic| message(&*panic)));
    });
    let work = WANTED.with_borrow_mut(|wanted| match wanted {
        Some(wanted) => {
            wanted.push(work);
            None
        }
        None => Some(work),
    });
    if let Some(work) = work {
        spawn_blocking(work);
    }
    let done = receive.await;
    done.unwrap_or_else(|_| Err("the server is at its end".into()))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("without a word"))
}

/// What a poll has come to.
enum Polled {
    Over,
    Wants(Vec<Work>),
}

/// Polls the task for what it has to say; work that it wants done is not begun.
fn poll(task: &mut Task, context: &mut Context<'_>) -> Poll<Polled> {
    WANTED.set(Some(Vec::new()));
    // A panic is the task's end.
    let polled = catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(context)));
    let wanted = WANTED.take().unwrap_or_default();
    match polled {
        Ok(Poll::Pending) if wanted.is_empty() => Poll::Pending,
        Ok(Poll::Pending) => Poll::Ready(Polled::Wants(wanted)),
        ended => {
            wanted
                .into_iter()
                .for_each(|work| drop(spawn_blocking(work)));
            if ended.is_err() {
                tracing::error!("a client's task panicked");
            }
            Poll::Ready(Polled::Over)
        }
    }
}

/// Runs `task` to its end, on the threads of the runtime that this is called in.
pub fn run(task: impl Future<Output = ()> + Send + 'static) -> impl Future<Output = ()> + Send {
    // Here: a future that is moved once it runs has its room twice.
    run_boxed(Box::pin(task))
}

async fn run_boxed(mut task: Task) {
    static OWN: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(OWN_THREADS)));
    loop {
        let Polled::Wants(wanted) = poll_fn(|context| poll(&mut task, context)).await else {
            return;
        };
        let Ok(permit) = Arc::clone(&OWN).try_acquire_owned() else {
            wanted
                .into_iter()
                .for_each(|work| drop(spawn_blocking(work)));
            continue;
        };
        match on_own_thread(task, wanted, permit).await {
            Some(back) => task = back,
            None => return,
        }
    }
}

/// Gives the task a thread until that has nothing to do, or hangs. None: the task is over.
async fn on_own_thread(
    task: Task,
    wanted: Vec<Work>,
    permit: OwnedSemaphorePermit,
) -> Option<Task> {
    let held = Arc::new(Held::default());
    held.put(task);
    // Whoever aborts the task aborts it wherever it is.
    let _guard = Guard(Arc::clone(&held));
    let (talkers, own) = (Handle::current(), Arc::clone(&held));
    let mut thread = spawn_blocking(move || {
        let _permit = permit;
        own.work(wanted, &talkers)
    });
    loop {
        tokio::select! {
            biased;
            back = &mut thread => return back.ok().flatten(),
            () = sleep(held.patience()) => if let Some(task) = held.take_from_hanging() {
                return Some(task);
            },
        }
    }
}

/// Where a task lies while its thread works.
#[derive(Default)]
struct Held {
    task: Mutex<Option<(Task, Instant)>>,
    /// Nobody waits for it any more.
    is_aborted: AtomicBool,
    aborted: Notify,
}

struct Guard(Arc<Held>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.is_aborted.store(true, Ordering::Relaxed);
        self.0.aborted.notify_one();
        drop(self.0.take());
    }
}

impl Held {
    fn put(&self, task: Task) {
        *lock(&self.task) = Some((task, Instant::now()));
    }

    fn take(&self) -> Option<Task> {
        lock(&self.task).take().map(|(task, _)| task)
    }

    /// Until the work that is being done now takes too long.
    fn patience(&self) -> Duration {
        let since = lock(&self.task).as_ref().map(|(_, since)| since.elapsed());
        PATIENCE.saturating_sub(since.unwrap_or_default())
    }

    fn take_from_hanging(&self) -> Option<Task> {
        let mut held = lock(&self.task);
        let hangs = held
            .as_ref()
            .is_some_and(|(_, since)| since.elapsed() >= PATIENCE);
        held.take_if(|_| hangs).map(|(task, _)| task)
    }

    /// Works as long as there is something to do. None: the task is over, or was taken away.
    fn work(&self, mut wanted: Vec<Work>, talkers: &Handle) -> Option<Task> {
        let _guest = Guest;
        loop {
            let last = wanted.pop();
            // All at once, this thread one of them.
            wanted
                .into_iter()
                .for_each(|work| drop(talkers.spawn_blocking(work)));
            WORKS_AT.set(place());
            last.into_iter().for_each(|work| work());
            WORKS_AT.set(Place::TALKERS);
            let mut task = self.take()?;
            if self.is_aborted.load(Ordering::Relaxed) {
                return None;
            }
            match hear(&mut task, talkers, &self.aborted) {
                Some(Polled::Over) => return None,
                Some(Polled::Wants(more)) => wanted = more,
                None => return Some(task),
            }
            self.put(task);
        }
    }
}

/// Polls the task here until it wants something done. None: it does not for long.
fn hear(task: &mut Task, talkers: &Handle, aborted: &Notify) -> Option<Polled> {
    if !Guest::arrive() {
        return None;
    }
    HOME.with_borrow(|home| {
        let home = home.as_ref()?;
        let polled = poll_fn(|context| {
            PLACE.set(home.place);
            // Its timers, and what it spawns, outlive its stay.
            let _talkers = talkers.enter();
            let (place, waker) = (home.place, context.waker().clone());
            let bell = Waker::from(Arc::new(Bell { place, waker }));
            // It is the only task here: to interrupt it is of no use, and a runtime that is left forgets whom it has interrupted.
            let poll = poll_fn(|context| poll(task, context));
            let polled = pin!(unconstrained(poll)).poll(&mut Context::from_waker(&bell));
            PLACE.set(Place::TALKERS);
            polled
        });
        home.runtime.block_on(async {
            tokio::select! {
                biased;
                () = aborted.notified() => Some(Polled::Over),
                polled = timeout(LINGER, polled) => polled.ok(),
            }
        })
    })
}

/// That of this thread's own sockets.
fn place() -> Place {
    HOME.with_borrow(|home| home.as_ref().map_or(Place::TALKERS, |home| home.place))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::sync::mpsc;

    use super::*;

    fn runtime() -> Runtime {
        super::runtime(1).unwrap()
    }

    async fn where_it_is_done() -> ThreadId {
        blocking(|| thread::current().id()).await.unwrap()
    }

    #[test]
    fn a_busy_task_has_a_thread_of_its_own() {
        runtime().block_on(async {
            let (say, mut said) = mpsc::unbounded_channel();
            run(async move {
                let first = where_it_is_done().await;
                for _ in 0..10 {
                    let polled = thread::current().id();
                    say.send((first, where_it_is_done().await, polled)).unwrap();
                }
            })
            .await;
            while let Some((first, then, polled)) = said.recv().await {
                assert_eq!((then, polled), (first, first));
            }
        });
    }

    /// A client that says something now and then, and one whose task sleeps.
    #[test]
    fn one_that_waits_goes_back_and_comes_again() {
        runtime().block_on(async {
            let (mut client, mut server) = UnixStream::pair().unwrap();
            let (say, mut said) = mpsc::unbounded_channel();
            let task = tokio::spawn(run(async move {
                let mut byte = [0];
                loop {
                    where_it_is_done().await;
                    let before = Place::here();
                    let read = server.read(&mut byte).await.unwrap();
                    say.send((before, Place::here())).unwrap();
                    if read == 0 {
                        return;
                    }
                }
            }));
            client.write_all(b"x").await.unwrap();
            let (before, after) = said.recv().await.unwrap();
            assert_ne!(before, Place::TALKERS);
            assert_eq!(after, before, "it was said at once");
            sleep(3 * LINGER).await;
            drop(client);
            let (before, after) = said.recv().await.unwrap();
            assert_ne!(before, Place::TALKERS);
            assert_eq!(after, Place::TALKERS, "nothing was said for long");
            task.await.unwrap();
        });
    }

    #[test]
    fn what_hangs_is_left_alone() {
        runtime().block_on(async {
            let (let_go, hangs) = std::sync::mpsc::channel::<()>();
            let (say, mut said) = mpsc::unbounded_channel();
            let task = tokio::spawn(run(async move {
                let hanging = blocking(move || hangs.recv());
                tokio::pin!(hanging);
                let heard = timeout(2 * PATIENCE, &mut hanging).await;
                say.send((heard.is_err(), Place::here())).unwrap();
                // What comes behind it has another thread.
                where_it_is_done().await;
                say.send((true, Place::here())).unwrap();
                hanging.await.unwrap().unwrap();
            }));
            assert_eq!(said.recv().await, Some((true, Place::TALKERS)));
            assert!(said.recv().await.unwrap().0);
            let_go.send(()).unwrap();
            task.await.unwrap();
        });
    }

    /// All of what a task wants is done at once, and a panic is an answer.
    #[test]
    fn much_at_once() {
        runtime().block_on(run(async {
            let barrier = Arc::new(std::sync::Barrier::new(3));
            let meet = || {
                let barrier = Arc::clone(&barrier);
                blocking(move || barrier.wait().is_leader())
            };
            let met = tokio::join!(meet(), meet(), meet());
            let leaders = [met.0, met.1, met.2].map(|it| usize::from(it.unwrap()));
            assert_eq!(leaders.iter().sum::<usize>(), 1);
            let panicked = blocking(|| panic!("of no use")).await;
            assert_eq!(panicked, Err::<(), _>("panicked: of no use".into()));
        }));
    }

    /// Each of them awaits more than one thing: together more than a runtime lets one task do at once.
    #[test]
    fn many_parts_of_a_task() {
        use futures_util::StreamExt;
        use futures_util::stream::FuturesUnordered;

        runtime().block_on(async {
            let slots = Arc::new(Semaphore::new(8));
            let all = run(async move {
                // On a thread of its own from here on.
                where_it_is_done().await;
                let free = Semaphore::new(1);
                let part = |_| async {
                    for _ in 0..4 {
                        drop(free.acquire().await);
                    }
                    let slot = Arc::clone(&slots).acquire_owned().await;
                    blocking(move || drop(slot)).await.unwrap();
                };
                let parts = (0..500).map(part).collect::<FuturesUnordered<_>>();
                assert_eq!(parts.count().await, 500);
            });
            timeout(Duration::from_secs(30), all).await.unwrap();
        });
    }

    /// More of them than may have a thread are served all the same.
    #[test]
    fn more_tasks_than_threads() {
        runtime().block_on(async {
            let tasks = (0..3 * OWN_THREADS).map(|_| {
                tokio::spawn(run(async {
                    for _ in 0..5 {
                        blocking(|| thread::sleep(Duration::from_millis(1)))
                            .await
                            .unwrap();
                    }
                }))
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
        });
    }

    /// As at the end of the server: nothing of it goes on behind that, whether it works or waits.
    #[test]
    fn aborted_on_its_own_thread() {
        let done = Arc::new(AtomicU64::new(0));
        let (counted, waits) = (Arc::clone(&done), Arc::new(()));
        let waiting = Arc::clone(&waits);
        let runtime = runtime();
        let behind = runtime.block_on(async {
            let idle = tokio::spawn(run(async move {
                let _waiting = waiting;
                where_it_is_done().await;
                std::future::pending::<()>().await;
            }));
            let busy = tokio::spawn(run(async move {
                loop {
                    let pause = || thread::sleep(Duration::from_millis(10));
                    blocking(pause).await.unwrap();
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }));
            sleep(LINGER / 2).await;
            for task in [idle, busy] {
                task.abort();
                assert!(task.await.unwrap_err().is_cancelled());
            }
            let before = done.load(Ordering::Relaxed);
            sleep(LINGER / 2).await;
            assert_eq!(Arc::strong_count(&waits), 1);
            done.load(Ordering::Relaxed) - before
        });
        runtime.shutdown_timeout(Duration::ZERO);
        assert!(behind <= 1, "{behind} more");
    }

    #[test]
    fn the_end_of_a_task() {
        runtime().block_on(async {
            // Over while its work is under way, and by a panic on a thread of its own.
            run(async {
                let _ = timeout(Duration::ZERO, blocking(|| thread::sleep(LINGER))).await;
            })
            .await;
            run(async {
                where_it_is_done().await;
                panic!("of a client");
            })
            .await;
        });
    }
}
