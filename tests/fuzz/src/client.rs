//! A client of the LMTP server, in memory.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use postroom::deliver::{Outcome, Report, Transaction};
use postroom::fault::{Code, Fault};
use postroom::lmtp::Settings;
use postroom::lmtp::connection::{Connection, Deliveries, Peer, Phase, Wire};
use postroom::message::body::Spool;
use postroom::message::{Envelope, Message, Recipient};
use postroom::run::{Outcomes, Running};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().unwrap();
}

/// Says its bytes so many times over, in pieces, and forgets what it is told.
pub struct Client<'a> {
    pub bytes: &'a [u8],
    pub times: usize,
    pub piece: usize,
    pub is_trusted: bool,
}

impl Client<'_> {
    /// Until one of the two has enough.
    pub fn is_served(self) {
        let settings = Settings {
            listen: Vec::new(),
            hostname: "mx".into(),
            max_recipients: 3,
            message_size: Some(1000),
            max_connections: 1,
            max_connections_per_peer: 1,
            turns: Default::default(),
            idle_timeout: Duration::from_secs(60),
            data_deadline: Duration::from_secs(60),
            verbose_replies: false,
            spool: Spool::default(),
            takes_errands: self.is_trusted,
            knows_retries: true,
            trusted_networks: Vec::new(),
            balancers: Vec::new(),
            workarounds: Default::default(),
            tls: None,
            requires_tls: false,
            certificate: None,
        };
        let peer = Peer {
            is_trusted: self.is_trusted,
            ..Peer::default()
        };
        let (_serving, phase) = watch::channel(Phase::Serving);
        let stream = Stream {
            rest: self.bytes,
            client: self,
        };
        let connection = Connection::new(stream, peer, Nowhere, Arc::new(settings), phase);
        RUNTIME.with(|runtime| runtime.block_on(Box::pin(connection.run())));
    }
}

/// What of the bytes is still to be said this time.
struct Stream<'a> {
    rest: &'a [u8],
    client: Client<'a>,
}

impl Wire for Stream<'_> {
    fn is_gone(&self) -> bool {
        false
    }
}

impl AsyncRead for Stream<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() && self.client.times > 1 {
            self.client.times -= 1;
            self.rest = self.client.bytes;
        }
        let most = self.client.piece.min(into.remaining());
        let (piece, rest) = self.rest.split_at(most.min(self.rest.len()));
        into.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Some recipients are refused, and whatever comes for the others.
#[derive(Clone)]
struct Nowhere;

impl Deliveries for Nowhere {
    async fn inspect(&self, recipient: Recipient, _: &Envelope) -> Report {
        let mut report = Report::failed(String::new(), fault());
        report.fault = recipient.address.local.starts_with('n').then(fault);
        report
    }

    fn deliver(&self, message: Arc<Message>, recipients: Vec<Recipient>) -> Outcomes {
        let count = recipients.len();
        let refused =
            |index| Box::pin(async move { (index, Outcome::refused(fault())) }) as Running;
        Outcomes::here(
            (0..count).map(refused),
            Arc::new(Transaction::new(message, count)),
        )
    }
}

/// Of every recipient who is refused.
pub fn fault() -> Fault {
    Fault::new(Code::NotNow, "test", "it is one")
}
