//! One client: moves bytes between its socket, the [`Session`] and the deliveries. All decisions are the session's.
//!
//! Memory does not depend on the size of a message. A client that goes away before the end of its message leaves nothing
//! behind; one that goes away later loses only its answers.

use std::collections::VecDeque;
use std::future::{Future, pending, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Settings;
use super::client::Client;
use super::codec::{Chunk, DataDecoder, Lines};
use super::command::{self, Command, Refusal};
use super::incoming::Incoming;
use super::reply::Reply;
use super::session::{Delivery, Intake, Limits, Session, StartTls, Step};
use super::spooling::spooling;
use super::tls::Channel;
use crate::deliver::{Outcome, Report};
use crate::fault::{Code, Fault};
use crate::log::Entry;
use crate::message::body::BodyWriter;
use crate::message::{Envelope, Message, Received, Recipient, Trace, header};
use crate::observe;
use crate::observe::metrics::metrics;
use crate::observe::sessions::{self, State};
use crate::run::Outcomes;

/// Bytes read at once, and the most that wait to be read as commands.
const INPUT: usize = 64 * 1024;
/// The most that is kept for them while nothing is there: most clients wait most of the time.
const IDLE_INPUT: usize = 1024;
/// Replies to pipelined commands that are gathered into one packet.
const OUTPUT: usize = 4 * 1024;
/// How often a session that waits for its deliveries looks whether its client still does.
const LISTEN: Duration = Duration::from_millis(500);
/// A body must come in at this rate, once its deadline has passed.
const BYTES_PER_SECOND: u64 = 1024;

/// A byte stream to a client.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {
    /// Nobody will read our answer any more; false when in doubt.
    fn is_gone(&self) -> bool;
}

/// What a session delivers with: the [`Runner`](crate::run::Runner), or a test's.
pub trait Deliveries: Clone + Send + Sync + 'static {
    /// RCPT: what a delivery would come to, its fault included. Writes nothing, and may be given up.
    fn inspect(
        &self,
        recipient: Recipient,
        envelope: &Envelope,
    ) -> impl Future<Output = Report> + Send;
    /// The whole message, to those whom RCPT has accepted: each outcome has the recipient's index in `recipients`.
    fn deliver(&self, message: Arc<Message>, recipients: Vec<Recipient>) -> Outcomes;
}

/// How far the server is on its way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// Clients behind a message are sent away. Who has just come may begin one: to be refused at the door, an MTA takes for a
    /// fault of ours, and holds its queue back.
    Leaving,
    /// Clients outside a message are sent away, the others may finish theirs.
    Finishing,
    /// Nothing is waited for but deliveries.
    Halting,
}

/// Why a dialogue ended other than by QUIT.
#[derive(Debug)]
enum End {
    /// The client closed its side.
    Closed,
    Silent,
    Stopping,
    Io(io::Error),
}

/// Who is at the other end.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// None on a unix socket.
    pub address: Option<IpAddr>,
    /// Believed when it says who sends (`AUTH=`), or whom it speaks for.
    pub is_trusted: bool,
    /// Nobody can listen: TLS is not asked for.
    pub is_secure: bool,
}

/// One client, from its greeting to its end.
pub struct Connection<S, D> {
    stream: Channel<S>,
    deliveries: D,
    settings: Arc<Settings>,
    phase: watch::Receiver<Phase>,
    session: Session,
    lines: Lines,
    input: Vec<u8>,
    output: Vec<u8>,
    /// The body of the transaction; BDAT brings it in pieces.
    incoming: Option<Incoming>,
    /// The date of the transaction, for Received.
    date: String,
    /// What others see of it.
    shown: Option<sessions::Session>,
}

impl<S: Wire, D: Deliveries> Connection<S, D> {
    /// A client that was let in, to whom nothing has been said yet. `stream`: behind its PROXY header, where one is due, and in TLS where
    /// its listener begins with it.
    pub fn new(
        stream: impl Into<Channel<S>>,
        peer: Peer,
        deliveries: D,
        settings: Arc<Settings>,
        phase: watch::Receiver<Phase>,
    ) -> Connection<S, D> {
        let stream = stream.into();
        let limits = Limits {
            hostname: settings.hostname.clone(),
            max_recipients: settings.max_recipients,
            message_size: settings.message_size,
            verbose_replies: settings.verbose_replies,
            is_trusted: peer.is_trusted,
            takes_errands: settings.takes_errands,
            starttls: match (&stream, &settings.certificate) {
                (Channel::Tls(_), _) => StartTls::Done,
                (_, None) => StartTls::Unavailable,
                (_, Some(_)) if settings.requires_tls && !peer.is_secure => StartTls::Required,
                (_, Some(_)) => StartTls::Offered,
            },
        };
        Connection {
            stream,
            deliveries,
            settings,
            phase,
            session: Session::new(limits, Client::at(peer.address), session_id()),
            lines: Lines::default(),
            input: Vec::new(),
            output: Vec::new(),
            incoming: None,
            date: String::new(),
            shown: None,
        }
    }

    /// Serves the client until one of the two has enough.
    pub async fn run(mut self) {
        self.shown = Some(sessions::Session::new(self.session.id(), &self.peer()));
        metrics().connections.inc();
        tracing::debug!(
            session = self.session.id(),
            peer = self.peer().as_str(),
            "connected"
        );
        let farewell = match self.talk().await {
            Ok(()) => None,
            Err(End::Closed) => None,
            Err(End::Silent) => Some(self.session.farewell("4.4.2", "Nothing heard for too long")),
            Err(End::Stopping) => Some(self.session.farewell("4.3.2", "Shutting down")),
            Err(End::Io(error)) => {
                tracing::debug!(
                    session = self.session.id(),
                    error = error.to_string().as_str(),
                    "connection failed"
                );
                return;
            }
        };
        if self.session.in_transaction() {
            tracing::info!(
                session = self.session.id(),
                peer = self.peer().as_str(),
                "connection ended within a transaction"
            );
        }
        if let Some(reply) = farewell {
            self.queue([reply]);
        }
        // The client may be gone; there is nobody else to tell.
        let _ = self.flush().await;
        let _ = timeout(Duration::from_secs(1), self.stream.shutdown()).await;
        tracing::debug!(
            session = self.session.id(),
            peer = self.peer().as_str(),
            "disconnected"
        );
    }

    /// For the log.
    fn peer(&self) -> String {
        let literal = self.session.client().literal();
        literal.unwrap_or_else(|| "local".into())
    }

    async fn talk(&mut self) -> Result<(), End> {
        self.queue([self.session.greeting()]);
        loop {
            let command = self.next_command().await?;
            let was_open = self.session.in_transaction();
            let step = self.session.command(command);
            if !was_open && self.session.in_transaction() {
                self.date = now();
                self.incoming = None;
            }
            self.show(match self.session.in_transaction() {
                true => State::Envelope,
                false => State::Idle,
            });
            if self.follow(step).await? {
                return self.flush().await;
            }
        }
    }

    fn show(&self, state: State) {
        if let Some(shown) = &self.shown {
            shown.set(state);
        }
    }

    /// Does what the session asks for. True: the dialogue is over.
    async fn follow(&mut self, mut step: Step) -> Result<bool, End> {
        loop {
            step = match step {
                Step::Answer(replies) => {
                    self.queue(replies);
                    return Ok(false);
                }
                Step::Close(reply) => {
                    self.queue([reply]);
                    return Ok(true);
                }
                Step::StartTls(reply) => {
                    self.start_tls(reply).await?;
                    return Ok(false);
                }
                Step::Check(recipient) => self.check(recipient).await,
                Step::Data {
                    go_ahead,
                    limit,
                    announced,
                } => match self.check_spool(announced).await {
                    Err(fault) => self.session.no_space(&fault),
                    Ok(()) => {
                        self.queue([go_ahead]);
                        self.flush().await?;
                        let intake = self.read_data(limit).await?;
                        self.session.data_received(intake)
                    }
                },
                Step::Chunk { octets, keep } => {
                    // It comes in any case.
                    let checked = match keep {
                        true => self.check_spool(octets).await,
                        false => Ok(()),
                    };
                    let taken = self.read_chunk(octets, keep && checked.is_ok()).await?;
                    let intake = checked.map_or_else(Intake::Failed, |()| taken);
                    self.session.chunk_received(intake)
                }
                Step::Deliver(delivery) => {
                    self.deliver(delivery).await?;
                    return Ok(false);
                }
                Step::GiveUp(mut delivery, fault) => {
                    self.give_up(&mut delivery, None, Instant::now(), fault)?;
                    return Ok(false);
                }
            }
        }
    }

    /// Whoever stands between the client and us could have put there what waits behind the command (CVE-2011-0411).
    async fn start_tls(&mut self, reply: Reply) -> Result<(), End> {
        let certificate = self.settings.certificate.clone();
        let (Some(certificate), true) = (certificate, self.input.is_empty()) else {
            let why = "Nothing may follow STARTTLS";
            self.queue([Reply::new(503, "5.5.1", why)]);
            self.flush().await?;
            return Err(End::Closed);
        };
        self.queue([reply]);
        self.flush().await?;
        let secured = timeout(self.settings.idle_timeout, self.stream.secure(certificate)).await;
        secured
            .map_err(|_| End::Io(io::ErrorKind::TimedOut.into()))?
            .map_err(End::Io)?;
        self.session.secured();
        self.incoming = None;
        Ok(())
    }

    /// Whether so many bytes can be kept; an answer to the client is due before it sends them.
    async fn check_spool(&self, bytes: u64) -> Result<(), Fault> {
        if !self.settings.spool.needs_space(bytes) {
            return Ok(());
        }
        let spool = self.settings.spool.clone();
        let check = move || spool.check_space(bytes);
        let checked = Box::pin(spooling(self.settings.data_deadline, check)).await;
        let doing = || format!("find space for {bytes} bytes");
        let checked = checked.and_then(|it| it.map_err(|error| Fault::io(doing(), &error)));
        checked.inspect_err(|fault| {
            let (session, error) = (self.session.id(), fault.to_string());
            tracing::warn!(session, error = error.as_str(), "no space for a message");
        })
    }

    async fn next_command(&mut self) -> Result<Result<Command, Refusal>, End> {
        // However much is in the pipeline: a server that stops takes no new message.
        if *self.phase.borrow() >= self.patience() {
            return Err(End::Stopping);
        }
        let deadline = Instant::now() + self.settings.idle_timeout;
        loop {
            let (taken, frame) = self.lines.next(&self.input);
            let command = frame.map(|it| command::parse(it, self.settings.workarounds));
            self.input.drain(..taken);
            if let Some(command) = command {
                return Ok(command);
            }
            self.flush().await?;
            self.fill(deadline).await?;
        }
    }

    async fn check(&mut self, recipient: Recipient) -> Step {
        let began = Instant::now();
        // Boxed: else each command would move room for it.
        let envelope = self.session.envelope();
        let inspected = Box::pin(self.deliveries.inspect(recipient.clone(), &envelope));
        let report = match timeout(self.settings.data_deadline, inspected).await {
            Ok(report) => report,
            Err(_) => {
                let why = "the store or a userdb takes too long";
                Report::failed(recipient.shown(), Fault::new(Code::CannotTell, "look", why))
            }
        };
        if let Some(fault) = &report.fault {
            let sender = self.session.sender_text();
            let why = fault.to_string();
            let forwarded = self.session.forwarded();
            observe::delivery(&Entry {
                session: self.session.id(),
                queue_id: forwarded.queue_id.as_deref(),
                client: forwarded.client.as_deref(),
                recipient: &recipient.address.to_string(),
                original: recipient.original.as_deref(),
                sender: &sender,
                took: began.elapsed(),
                code: fault.code.smtp().1,
                fault: Some(&why),
                ..Entry::default()
            });
        }
        self.session.checked(&report)
    }

    fn incoming(&self, limit: Option<u64>) -> Incoming {
        let spool = &self.settings.spool;
        let writer = match self.settings.knows_retries {
            true => BodyWriter::digesting(spool),
            false => BodyWriter::new(spool),
        };
        Incoming::new(writer, limit, self.settings.data_deadline)
    }

    /// Reads a body to its dot.
    async fn read_data(&mut self, limit: Option<u64>) -> Result<Intake, End> {
        self.show(State::Data);
        let mut incoming = self.incoming(limit);
        let mut decoder = DataDecoder::default();
        let (began, mut received) = (Instant::now(), 0);
        loop {
            let taken = decoder.decode(&self.input, |bytes| incoming.push(bytes));
            self.input.drain(..taken);
            received += taken as u64;
            incoming.spill().await;
            if decoder.is_done() {
                break;
            }
            self.fill(self.body_deadline(began, received)).await?;
        }
        let intake = incoming.state();
        self.incoming = Some(incoming);
        Ok(intake)
    }

    /// Reads the octets of one chunk.
    async fn read_chunk(&mut self, octets: u64, keep: bool) -> Result<Intake, End> {
        let kept = self.incoming.take();
        self.show(State::Data);
        // The session counts the octets of all chunks itself.
        let mut incoming = kept.unwrap_or_else(|| self.incoming(None));
        let mut chunk = Chunk::new(octets);
        let (began, mut received) = (Instant::now(), 0);
        loop {
            let taken = chunk.take(&self.input);
            if keep {
                incoming.push(&self.input[..taken]);
            }
            self.input.drain(..taken);
            received += taken as u64;
            incoming.spill().await;
            if chunk.is_done() {
                break;
            }
            self.flush().await?;
            self.fill(self.body_deadline(began, received)).await?;
        }
        let intake = incoming.state();
        self.incoming = Some(incoming);
        Ok(intake)
    }

    /// Silence ends a body like a command; so does one that drips.
    fn body_deadline(&self, began: Instant, received: u64) -> Instant {
        let earned = Duration::from_secs(received / BYTES_PER_SECOND);
        let whole = began + self.settings.data_deadline + earned;
        whole.min(Instant::now() + self.settings.idle_timeout)
    }

    /// Delivers a complete message. Each reply leaves as soon as those before it have.
    async fn deliver(&mut self, mut delivery: Delivery) -> Result<(), End> {
        self.show(State::Delivering);
        self.flush().await?;
        if self.stream.is_gone() {
            // Whoever sent it has given up and will send it again.
            tracing::info!(
                session = delivery.id.as_str(),
                "client gone before its message was stored"
            );
            return Err(End::Closed);
        }
        let incoming = self.incoming.take().unwrap_or_else(|| self.incoming(None));
        let began = Instant::now();
        let body = match incoming.finish().await {
            Ok(body) => body,
            Err(fault) => return self.give_up(&mut delivery, None, began, fault),
        };
        let message_id = header::message_id(body.head());
        let message = Arc::new(Message {
            envelope: self.envelope(&delivery),
            body,
            trace: self.trace(&delivery),
        });
        let mut outcomes = self
            .deliveries
            .deliver(message, delivery.recipients.clone());
        let (mut sent, mut left) = (Ok(()), delivery.recipients.len());
        let mut fault = Fault::new(
            Code::Internal,
            "deliver",
            "the delivery ended without an outcome",
        );
        let deadline = began + self.patience_of_client();
        let mut arrived = VecDeque::new();
        loop {
            let next = tokio::select! {
                biased;
                next = async {
                    match arrived.pop_front() {
                        Some(next) => Some(next),
                        None => outcomes.recv().await.map(|next| (began.elapsed(), next)),
                    }
                } => next,
                () = sleep(LISTEN) => {
                    if Instant::now() > deadline {
                        // A store that hangs: the client hears so while it still listens.
                        fault = Fault::new(Code::Storage, "deliver", "the store takes too long");
                        break;
                    }
                    if self.stream.is_gone() {
                        outcomes.abandon();
                    }
                    continue;
                }
            };
            let Some((took, (index, outcome))) = next else {
                break;
            };
            let id = message_id.as_deref();
            log_outcome(&delivery, index, id, took, &outcome);
            self.queue(delivery.settle(index, outcome));
            if sent.is_ok() {
                let arrives = |next| arrived.push_back((began.elapsed(), next));
                sent = self.flush_meanwhile(&mut outcomes, arrives).await;
            }
            left = left.saturating_sub(1);
            // What the client will not hear of it sends again. Each recipient has his log line all the same.
            if left > 0 && (sent.is_err() || self.stream.is_gone()) {
                outcomes.abandon();
            }
        }
        drop(outcomes);
        self.show(State::Idle);
        self.give_up(&mut delivery, message_id.as_deref(), began, fault)?;
        sent
    }

    /// Deliveries go on while the client takes his time to listen: what they hold, others wait for.
    async fn flush_meanwhile(
        &mut self,
        outcomes: &mut Outcomes,
        mut arrives: impl FnMut((usize, Outcome)),
    ) -> Result<(), End> {
        let mut sending = pin!(self.flush());
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => return sent,
                Some(next) = outcomes.recv() => arrives(next),
            }
        }
    }

    /// Whoever has no answer yet gets this one.
    fn give_up(
        &mut self,
        delivery: &mut Delivery,
        id: Option<&str>,
        began: Instant,
        fault: Fault,
    ) -> Result<(), End> {
        let outcome = Outcome::refused(fault.clone());
        for index in delivery.unsettled() {
            log_outcome(delivery, index, id, began.elapsed(), &outcome);
        }
        self.queue(delivery.abandon(&fault));
        Ok(())
    }

    /// A proxy in front gives up before we do, and then sends the message again: it is to hear of our end first.
    fn patience_of_client(&self) -> Duration {
        let ours = self.settings.data_deadline;
        let theirs = self.session.client().patience;
        let shorter = |it: Duration| it.saturating_sub(Duration::from_secs(1)).min(ours);
        theirs.map_or(ours, shorter)
    }

    fn envelope(&self, delivery: &Delivery) -> Envelope {
        Envelope {
            sender: delivery.sender.clone(),
            queue_id: delivery.forwarded.queue_id.clone(),
        }
    }

    fn trace(&self, delivery: &Delivery) -> Trace {
        let received = Received {
            helo: self.session.helo().unwrap_or("unknown").to_string(),
            peer: self.session.client().literal(),
            tls: self.stream.cipher(),
            hostname: self.settings.hostname.clone(),
            date: self.date.clone(),
        };
        Trace {
            session: delivery.id.clone(),
            received: Some(received),
        }
    }

    fn queue(&mut self, replies: impl IntoIterator<Item = Reply>) {
        replies
            .into_iter()
            .for_each(|reply| reply.write_to(&mut self.output));
    }

    /// Sends what waits; a client that does not read is given up.
    async fn flush(&mut self) -> Result<(), End> {
        if self.output.is_empty() {
            return Ok(());
        }
        let sending = async {
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await
        };
        let sent = timeout(self.settings.idle_timeout, sending).await;
        self.output.clear();
        sent.map_err(|_| End::Io(io::ErrorKind::TimedOut.into()))?
            .map_err(End::Io)
    }

    /// Waits for more input, at least one byte.
    async fn fill(&mut self, deadline: Instant) -> Result<(), End> {
        if self.output.len() >= OUTPUT {
            self.flush().await?;
        }
        let patience = self.patience();
        if self.input.is_empty() && self.input.capacity() > IDLE_INPUT {
            self.input = Vec::new();
        }
        tokio::select! {
            biased;
            () = reached(&mut self.phase, patience) => Err(End::Stopping),
            read = read(&mut self.stream, &mut self.input) => match read {
                Ok(0) => Err(End::Closed),
                Ok(_) => Ok(()),
                Err(error) => Err(End::Io(error)),
            },
            () = sleep_until(deadline) => Err(End::Silent),
        }
    }

    /// The phase in which this client is not waited for any more.
    fn patience(&self) -> Phase {
        match (self.session.in_transaction(), self.session.is_new()) {
            (true, _) => Phase::Halting,
            (false, true) => Phase::Finishing,
            (false, false) => Phase::Leaving,
        }
    }
}

/// Appends what has come; none: the other side is closed. Whoever waits holds no room for it.
async fn read(mut stream: impl AsyncRead + Unpin, input: &mut Vec<u8>) -> io::Result<usize> {
    poll_fn(|context| {
        let mut bytes = [MaybeUninit::uninit(); INPUT];
        let room = INPUT - input.len().min(INPUT - 1);
        let mut bytes = ReadBuf::uninit(&mut bytes[..room]);
        ready!(Pin::new(&mut stream).poll_read(context, &mut bytes))?;
        input.extend_from_slice(bytes.filled());
        Poll::Ready(Ok(bytes.filled().len()))
    })
    .await
}

/// Ends when the server has come that far on its way down.
async fn reached(phase: &mut watch::Receiver<Phase>, needed: Phase) {
    if phase.wait_for(|phase| *phase >= needed).await.is_err() {
        // Whoever could stop us is gone: nobody will.
        pending::<()>().await;
    }
}

fn log_outcome(
    delivery: &Delivery,
    index: usize,
    message_id: Option<&str>,
    took: Duration,
    outcome: &Outcome,
) {
    let Some(recipient) = delivery.recipients.get(index) else {
        return;
    };
    let address = recipient.address.to_string();
    let entry = Entry {
        session: &delivery.id,
        queue_id: delivery.forwarded.queue_id.as_deref(),
        client: delivery.forwarded.client.as_deref(),
        recipient: &address,
        original: recipient.original.as_deref(),
        sender: &delivery.sender_text,
        message_id,
        took,
        ..Entry::default()
    };
    outcome.log(entry);
}

/// RFC 5322, local time with its offset.
fn now() -> String {
    let now = jiff::Zoned::now();
    jiff::fmt::rfc2822::to_string(&now)
        .unwrap_or_else(|_| now.strftime("%a, %d %b %Y %T %z").to_string())
}

/// 22 characters of base64, as Dovecot's ids look. Unique, not secret: std's hasher has its keys from the kernel.
fn session_id() -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let keys = RandomState::new();
    let stamp = (std::process::id(), std::time::SystemTime::now());
    let (high, low) = (keys.hash_one((stamp, 0)), keys.hash_one((stamp, 1)));
    let bits = u128::from(high) << 64 | u128::from(low);
    (0..22)
        .map(|n| char::from(DIGITS[(bits >> (6 * n) & 63) as usize]))
        .collect()
}

#[cfg(test)]
pub mod tests;
