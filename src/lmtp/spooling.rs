//! Work at the spool, whose disk may hang: so many messages wait for it at once, and none of them for ever.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::fault::{Code, Fault};
use crate::run::in_place;

/// Threads that a hanging spool may take: the deliveries of all others need some too.
const THREADS: usize = 64;
/// Whoever sends the message gives up soon after.
const PATIENCE: Duration = Duration::from_secs(60);

static SPOOL: LazyLock<Disk> = LazyLock::new(|| Disk::of(THREADS));

/// Does `work` at the spool, for `patience` or a minute at most. What hangs keeps its thread until it ends.
pub async fn spooling<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    SPOOL.work(patience.min(PATIENCE), work).await
}

struct Disk(Arc<Semaphore>);

impl Disk {
    fn of(threads: usize) -> Disk {
        Disk(Arc::new(Semaphore::new(threads)))
    }

    async fn work<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let failed = |code, why: &str| Fault::new(code, "spool the message", why);
        let done = async {
            // Nobody closes it.
            let permit = Arc::clone(&self.0).acquire_owned().await.ok();
            in_place::blocking(move || {
                let _permit = permit;
                work()
            })
            .await
        };
        match timeout(patience, done).await {
            Ok(done) => done.map_err(|why| failed(Code::Internal, &why)),
            Err(_) => Err(failed(
                Code::Storage,
                "the disk of the spool takes too long",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(30);

    /// Two threads hang; nothing more begins, and whoever asks has an answer, until one of them comes back.
    #[tokio::test]
    async fn a_disk_that_hangs() {
        let disk = Disk::of(2);
        let (let_go, hangs) = mpsc::channel::<()>();
        let hangs = Arc::new(std::sync::Mutex::new(hangs));
        for _ in 0..2 {
            let hangs = Arc::clone(&hangs);
            let hanging = disk.work(SHORT, move || hangs.lock().map(|it| it.recv()).is_ok());
            assert_eq!(hanging.await.unwrap_err().code, Code::Storage);
        }
        let third = disk.work(SHORT, || panic!("it was begun"));
        let third: Result<(), Fault> = third.await;
        assert_eq!(third.unwrap_err().code, Code::Storage);
        let_go.send(()).unwrap();
        assert_eq!(disk.work(LONG, || 7).await.unwrap(), 7);
        drop(let_go);
    }
}
