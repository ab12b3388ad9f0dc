//! The other end of [`hand_over`](crate::lda::hand_over): messages from LDAs whose own rights do not suffice.
//!
//! An LDA says less here than a client of LMTP: no addresses and no address map, nobody who vouches for a sender. It delivers to the
//! user that it runs as, who is then the subject of all rights; to others only where `trusted_uids` has its uid.

mod limits;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::config::LdaServer;
use crate::deliver::Outcome;
use crate::fault::{Code, Fault};
use crate::lda::wire::{Answer, MAX_LINE, MAX_PIECE, Offer};
use crate::lmtp::incoming::Incoming;
use crate::lmtp::{self, Bound, Door, Stream};
use crate::log::Entry;
use crate::message::body::BodyWriter;
use crate::message::{Envelope, Message, Recipient, Trace, header};
use crate::run::Runner;
use crate::sys::{nss, socket};
use limits::Limits;

/// How long an LDA may take with its offer.
const OFFER: Duration = Duration::from_secs(10);
/// LDAs at once.
const MAX_CLIENTS: usize = 500;

/// Takes messages until `stop` is true, and finishes those that it has as a whole, as long as LMTP's clients may take for theirs.
pub async fn serve(
    listeners: Vec<Bound>,
    runner: Runner,
    lda_server: LdaServer,
    settings: Arc<lmtp::Settings>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut doors = JoinSet::new();
    let limits = Arc::new(Limits::new(&lda_server));
    let (alive, mut last) = tokio::sync::mpsc::channel::<()>(1);
    for listener in listeners {
        let door = Door::new(listener)?;
        let server = Server {
            runner: runner.clone(),
            settings: Arc::clone(&settings),
            trusted_uids: lda_server.trusted_uids.clone(),
            limits: Arc::clone(&limits),
            stop: stop.clone(),
            _alive: alive.clone(),
        };
        doors.spawn(welcome(door, server));
    }
    drop(alive);
    if doors.is_empty() {
        return Ok(());
    }
    // Nobody left who could say so: the end too.
    let _ = stop.wait_for(|stop| *stop).await;
    doors.shutdown().await;
    let _ = timeout(lmtp::WIND_DOWN, last.recv()).await;
    Ok(())
}

#[derive(Clone)]
struct Server {
    runner: Runner,
    settings: Arc<lmtp::Settings>,
    trusted_uids: Vec<u32>,
    limits: Arc<Limits>,
    stop: watch::Receiver<bool>,
    /// Gone with the last client.
    _alive: tokio::sync::mpsc::Sender<()>,
}

async fn welcome(door: Door, server: Server) {
    let (mut failures, clients) = (0, Arc::new(tokio::sync::Semaphore::new(MAX_CLIENTS)));
    loop {
        match door.accept().await {
            Ok(arrival) => {
                failures = 0;
                // Dropped: its MTA tries again.
                let Ok(place) = Arc::clone(&clients).try_acquire_owned() else {
                    continue;
                };
                if let Stream::Unix(stream) = arrival.stream
                    && let Ok(stream) = UnixStream::from_std(stream)
                {
                    let server = server.clone();
                    tokio::spawn(async move {
                        server.client(stream).await;
                        drop(place);
                    });
                }
            }
            Err(_) => {
                failures += 1;
                sleep(socket::back_off(failures)).await;
            }
        }
    }
}

impl Server {
    /// One message. Whoever goes away, or says something that is no offer, gets no answer, and that is temporary.
    async fn client(&self, stream: UnixStream) {
        let Ok(peer) = socket::peer(&stream) else {
            return;
        };
        let began = Instant::now();
        let mut stream = BufReader::new(stream);
        // Before it may say anything: one uid must not use up the places of all.
        let _turn = match self.limits.enter(peer.uid) {
            Ok(turn) => turn,
            Err(fault) => {
                let why = fault.to_string();
                tracing::warn!(fault = why.as_str(), "a message was not taken over");
                let _ = say(&mut stream, Answer::Refused(fault.code)).await;
                return;
            }
        };
        let offer = self.unless_stopped(timeout(OFFER, offer(&mut stream)));
        let Some(Ok(Ok(offer))) = offer.await else {
            return;
        };
        let session = format!("lda-{}-{}", peer.uid, peer.pid);
        let shown = offer.shown();
        let mut message_id = None;
        let received = self.receive(&mut stream, peer.uid, &offer, &session);
        let taken = match self.unless_stopped(received).await {
            None | Some(Ok(None)) => return,
            Some(Ok(Some((message, recipient)))) => {
                message_id = header::message_id(message.body.head());
                self.store(&mut stream, message, recipient).await
            }
            Some(Err(fault)) => Err(fault),
        };
        let (answer, outcome) = match taken {
            Ok(None) => return,
            Ok(Some(outcome)) => (answer_to(&outcome), outcome),
            Err(fault) => (Answer::Refused(fault.code), Outcome::refused(fault)),
        };
        outcome.log(Entry {
            session: &session,
            recipient: &shown,
            original: offer.original.as_deref(),
            sender: &offer.sender.to_string(),
            message_id: message_id.as_deref(),
            took: began.elapsed(),
            ..Entry::default()
        });
        let _ = say(&mut stream, answer).await;
    }

    /// None: the server ends. Nothing is stored yet, and its MTA tries again.
    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            done = work => Some(done),
            _ = stop.wait_for(|stop| *stop) => None,
        }
    }

    /// None: the LDA is gone.
    async fn receive(
        &self,
        stream: &mut BufReader<UnixStream>,
        uid: u32,
        offer: &Offer,
        session: &str,
    ) -> Result<Option<(Message, Recipient)>, Fault> {
        let limit = self.settings.message_size;
        let fits = |size| {
            let why = || format!("it has {size} bytes");
            match limit.is_some_and(|limit| size > limit) {
                true => Err(Fault::new(Code::TooBig, "take over a message", why())),
                false => Ok(()),
            }
        };
        fits(offer.size)?;
        let recipient = self.recipient(uid, offer).await?;
        let envelope = Envelope {
            sender: offer.sender.clone(),
            queue_id: None,
        };
        let report = self.runner.inspect(recipient.clone(), Some(&envelope));
        let report = report.await;
        if let Some(fault) = report.fault {
            return Err(fault);
        }
        if say(stream, Answer::Send).await.is_err() {
            return Ok(None);
        }
        let (writer, patience) = (
            BodyWriter::new(&self.settings.spool),
            self.settings.data_deadline,
        );
        // The limit is of the message, without the CRs that its lines are said with.
        let said = limit.map(|limit| limit.saturating_mul(2));
        let mut incoming = Incoming::new(writer, said, patience);
        let received = timeout(self.settings.data_deadline, pieces(stream, &mut incoming));
        if !matches!(received.await, Ok(Ok(()))) {
            return Ok(None);
        }
        let body = incoming.finish().await?;
        fits(body.size())?;
        let message = Message {
            envelope,
            body,
            // No `received`: the MTA has written those fields.
            trace: Trace {
                session: session.to_owned(),
                received: None,
            },
        };
        Ok(Some((message, recipient)))
    }

    /// None: the LDA is gone.
    async fn store(
        &self,
        stream: &mut BufReader<UnixStream>,
        message: Message,
        recipient: Recipient,
    ) -> Result<Option<Outcome>, Fault> {
        let mut outcomes = self.runner.deliver(Arc::new(message), vec![recipient]);
        let mut more = [0];
        tokio::select! {
            outcome = timeout(self.settings.data_deadline, outcomes.recv()) => match outcome {
                Ok(Some((_, outcome))) => Ok(Some(outcome)),
                _ => Err(Fault::new(Code::Storage, "take over a message", "it takes too long")),
            },
            // Nobody waits for the answer any more: dropped, nothing more becomes visible.
            _ = stream.read(&mut more) => Ok(None),
        }
    }

    /// Whom the LDA may deliver to.
    async fn recipient(&self, uid: u32, offer: &Offer) -> Result<Recipient, Fault> {
        let refused = |why: String| {
            let doing = format!("take over a message from uid {uid}");
            Fault::new(Code::CannotTell, doing, why)
        };
        let name = match &offer.user {
            Some(name) => name.clone(),
            None => {
                let account = spawn_blocking(move || nss::account_of_uid(uid)).await;
                let account = account.map_err(|error| refused(error.to_string()))?;
                let account = account.map_err(|error| refused(error.to_string()))?;
                let unknown = || refused("the machine has no such account".into());
                account.ok_or_else(unknown)?.name
            }
        };
        let recipient = Recipient::of_user(&name);
        let recipient = Recipient {
            address: offer.last.clone().unwrap_or(recipient.address.clone()),
            original: offer.original.clone(),
            mailbox: offer.mailbox.clone(),
            detail: offer.detail.clone(),
            flags: offer.flags,
            keywords: offer.keywords.clone(),
            is_himself: true,
            ..recipient
        };
        let user = self.runner.user_of(recipient.clone()).await?;
        match user.credentials.uid == uid || self.trusted_uids.contains(&uid) {
            true => Ok(recipient),
            false => Err(refused(format!(
                "{} has uid {}, and lda.trusted_uids has not this one",
                user.name, user.credentials.uid
            ))),
        }
    }
}

impl Offer {
    fn shown(&self) -> String {
        let last = self.last.as_ref().map(ToString::to_string);
        let shown = self.user.clone().or(last);
        shown.unwrap_or_else(|| "-".into())
    }
}

fn answer_to(outcome: &Outcome) -> Answer {
    match outcome.fault() {
        None => Answer::Stored,
        Some(fault) => Answer::Refused(fault.code),
    }
}

async fn offer(stream: &mut BufReader<UnixStream>) -> io::Result<Offer> {
    let mut line = Vec::new();
    let mut limited = (&mut *stream).take(MAX_LINE as u64);
    limited.read_until(b'\n', &mut line).await?;
    let offer: Offer = serde_json::from_slice(&line)?;
    match offer.is_sound() {
        true => Ok(offer),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

async fn say(stream: &mut BufReader<UnixStream>, answer: Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    timeout(OFFER, stream.get_mut().write_all(&line)).await?
}

async fn pieces(stream: &mut BufReader<UnixStream>, incoming: &mut Incoming) -> io::Result<()> {
    let mut piece = vec![0; MAX_PIECE];
    loop {
        let length = stream.read_u32().await? as usize;
        if length == 0 {
            return Ok(());
        }
        let Some(piece) = piece.get_mut(..length) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        stream.read_exact(piece).await?;
        incoming.push(piece);
        incoming.spill().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::body::Spool;

    async fn received(bytes: &[u8]) -> Option<Vec<u8>> {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(bytes).await.unwrap();
        drop(here);
        let mut incoming = Incoming::new(BodyWriter::new(&Spool::default()), None, OFFER);
        pieces(&mut BufReader::new(there), &mut incoming)
            .await
            .ok()?;
        Some(incoming.finish().await.unwrap().head().to_vec())
    }

    #[tokio::test]
    async fn pieces_of_a_message() {
        for (bytes, want) in [
            (
                &b"\0\0\0\x02ab\0\0\0\x03c\r\n\0\0\0\0"[..],
                Some(&b"abc\n"[..]),
            ),
            (b"\0\0\0\0", Some(b"")),
            (b"\0\0\0\x02ab", None),
            (b"\0\0\0\x02a", None),
            (b"\xff\xff\xff\xffa", None),
            (b"", None),
        ] {
            assert_eq!(received(bytes).await.as_deref(), want, "{bytes:?}");
        }
    }
}
