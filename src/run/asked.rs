//! A question that a worker answers, also where nobody waits for the answer any more.

use std::future::Future;
use std::pin::Pin;

use tokio::runtime::Handle;

use super::out_of_step;
use crate::deliver::Report;
use crate::fault::Fault;

type Look = Pin<Box<dyn Future<Output = Result<Report, Fault>> + Send>>;

/// A look by a worker. It goes on where nobody waits for it any more: its turn lasts as long as the worker is at it.
pub(super) struct Asked(Option<Look>);

impl Asked {
    pub(super) fn of(asked: impl Future<Output = Result<Report, Fault>> + Send + 'static) -> Asked {
        Asked(Some(Box::pin(asked)))
    }

    /// May be given up and asked again; once it has answered there is nothing more.
    pub(super) async fn answer(&mut self) -> Result<Report, Fault> {
        let asked = self.0.as_mut().ok_or_else(out_of_step)?;
        let answer = asked.await;
        self.0 = None;
        answer
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let (Some(asked), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(asked);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;
    use tokio::task::yield_now;
    use tokio::time::timeout;

    use super::*;
    use crate::run::turns::{self, Turns};

    /// Nobody waits for the look any more, and its worker is still at it.
    #[tokio::test]
    async fn a_look_that_hangs_keeps_its_turn() {
        let limits = turns::Limits {
            at_once: 1,
            waiting: 0,
        };
        let turns = Turns::new(limits);
        let turn = turns.take("alice".into()).await.unwrap();
        let (go, answered) = oneshot::channel::<()>();
        let mut asked = Asked::of(async move {
            let _ = answered.await;
            drop(turn);
            Err(out_of_step())
        });
        let answer = timeout(Duration::from_millis(1), asked.answer()).await;
        assert!(answer.is_err());
        drop(asked);
        assert!(turns.take("alice".into()).await.is_err());
        go.send(()).unwrap();
        while turns.take("alice".into()).await.is_err() {
            yield_now().await;
        }
    }
}
