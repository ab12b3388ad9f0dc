//! A message body on its way from the wire into its spool, in constant memory.

use std::time::Duration;

use super::session::Intake;
use super::spooling::spooling;
use crate::fault::{Code, Fault};
use crate::message::Body;
use crate::message::body::BodyWriter;

/// Bytes that are gathered before they are written.
const GATHER: usize = 64 * 1024;

/// A body in the making. What is dropped before [`finish`](Incoming::finish) leaves nothing behind.
#[derive(Debug)]
pub struct Incoming {
    /// None while a thread has it, and after a failure.
    writer: Option<BodyWriter>,
    gathered: Vec<u8>,
    taken: u64,
    limit: Option<u64>,
    patience: Duration,
    state: Intake,
}

impl Incoming {
    /// `limit`: bytes that the body may have as it comes over the wire. `patience`: how long the spool may take for some of them.
    pub fn new(writer: BodyWriter, limit: Option<u64>, patience: Duration) -> Incoming {
        Incoming {
            writer: Some(writer),
            gathered: Vec::new(),
            taken: 0,
            limit,
            patience,
            state: Intake::Complete,
        }
    }

    /// Takes bytes; after a failure they are thrown away.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.state != Intake::Complete {
            return;
        }
        self.taken += bytes.len() as u64;
        match self.limit.is_some_and(|limit| self.taken > limit) {
            true => self.fail(Intake::TooBig),
            false => self.take(bytes),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        // What fits into memory waits for no disk.
        let mut writer = self.writer.as_mut().filter(|_| self.gathered.is_empty());
        let writer = writer.take_if(|writer| writer.fits_in_memory(bytes.len()));
        let written = writer.map(|writer| writer.write(bytes));
        match written {
            None => self.gathered.extend_from_slice(bytes),
            Some(Ok(())) => {}
            Some(Err(error)) => {
                let fault = Fault::io("spool the message", &error);
                self.fail(Intake::Failed(fault));
            }
        }
    }

    /// Writes what was gathered, once that is worth it.
    pub async fn spill(&mut self) {
        if self.gathered.len() >= GATHER {
            self.write_out().await;
        }
    }

    /// How it went so far.
    pub fn state(&self) -> Intake {
        self.state.clone()
    }

    /// The complete body.
    pub async fn finish(mut self) -> Result<Body, Fault> {
        self.write_out().await;
        let Some(mut writer) = self.writer.take() else {
            return Err(match self.state {
                Intake::Failed(fault) => fault,
                Intake::TooBig | Intake::Complete => {
                    Fault::new(Code::TooBig, "receive the message", "it is too big")
                }
            });
        };
        let finished = match writer.fits_in_memory(0) {
            true => writer.finish(),
            // Boxed, here and below: large, and most mail does without.
            false => Box::pin(spooling(self.patience, || writer.finish())).await?,
        };
        finished.map_err(|error| Fault::io("spool the message", &error))
    }

    async fn write_out(&mut self) {
        let Some(mut writer) = self.writer.take() else {
            return;
        };
        let bytes = std::mem::take(&mut self.gathered);
        let (written, writer, mut bytes) = match writer.fits_in_memory(bytes.len()) {
            true => (writer.write(&bytes), writer, bytes),
            false => {
                // A disk may be slow: its wait is not for a thread that serves others.
                let work = move || (writer.write(&bytes), writer, bytes);
                match Box::pin(spooling(self.patience, work)).await {
                    Ok(done) => done,
                    Err(fault) => return self.fail(Intake::Failed(fault)),
                }
            }
        };
        if let Err(error) = written {
            return self.fail(Intake::Failed(Fault::io("spool the message", &error)));
        }
        bytes.clear();
        self.gathered = bytes;
        self.writer = Some(writer);
    }

    fn fail(&mut self, state: Intake) {
        self.state = state;
        self.writer = None;
        self.gathered = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::body::Spool;

    fn spool() -> Spool {
        Spool::of(vec![std::env::temp_dir()])
    }

    #[tokio::test]
    async fn bodies_of_all_sizes() {
        for (size, limit, want) in [
            (0, None, Intake::Complete),
            (10, Some(10), Intake::Complete),
            (11, Some(10), Intake::TooBig),
            (200_000, None, Intake::Complete),
            (1_000_000, Some(1_000_000), Intake::Complete),
            (1_000_000, Some(999_999), Intake::TooBig),
        ] {
            let mut incoming = Incoming::new(BodyWriter::new(&spool()), limit, Duration::MAX);
            for piece in vec![b'x'; size].chunks(3001) {
                incoming.push(piece);
                incoming.spill().await;
                assert!(incoming.gathered.len() < GATHER + 3001);
            }
            assert_eq!(incoming.state(), want, "{size} of {limit:?}");
            let body = incoming.finish().await;
            match want {
                Intake::Complete => assert_eq!(body.unwrap().size(), size as u64),
                _ => assert_eq!(body.unwrap_err().code, Code::TooBig),
            }
        }
    }
}
