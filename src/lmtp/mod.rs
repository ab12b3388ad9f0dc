//! The LMTP server (RFC 2033): listens, limits, and ends gracefully.
//!
//! | file | what it is |
//! |---|---|
//! | [`codec`] | bytes into commands and bodies; pure |
//! | [`command`] | one line into one command |
//! | [`parameters`] | what stands behind a path or a verb |
//! | [`session`] | the dialogue: (state, command) -> step; pure |
//! | [`client`] | who is at the other end, and whom he speaks for |
//! | [`reply`] | reply lines, always whole and printable |
//! | [`incoming`] | a body between wire and spool |
//! | [`tls`] | STARTTLS, and TLS from the first byte on |
//! | [`proxied`] | the PROXY protocol of load balancers |
//! | [`guests`] | how many connections each peer has |
//! | [`listeners`] | the sockets, from one configuration to the next |
//! | [`doors`] | small services beside it |
//! | [`connection`] | one client's bytes, session and deliveries together |

pub mod client;
pub mod codec;
pub mod command;
pub mod connection;
pub mod doors;
pub mod guests;
pub mod incoming;
pub mod listeners;
pub mod parameters;
pub mod proxied;
pub mod reply;
pub mod session;
pub mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, Stdin, Stdout};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::ServerConfig;

use crate::deliver::Report;
use crate::message::body::Spool;
use crate::message::{Message, Recipient};
use crate::observe::metrics::metrics;
use crate::run::{Outcomes, Runner, turns};
use crate::sys::socket;
use command::Workarounds;
use connection::{Connection, Deliveries, Peer, Phase, Wire};
use guests::Guests;
use tls::Channel;

/// On the way down: how long a client that has just come may take to begin.
const LEAVE: Duration = Duration::from_secs(2);
/// Then: how long clients may take to finish their messages.
const FINISH: Duration = Duration::from_secs(20);
/// And then the deliveries, before they are left to themselves.
const HALT: Duration = Duration::from_secs(40);

/// How long a load balancer may take for its header, and a client for TLS from the first byte on.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// `[lmtp]` and what belongs to it, every default filled in.
#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: Vec<Listen>,
    pub hostname: String,
    /// Accepted RCPTs in one transaction; 452 4.5.3 beyond.
    pub max_recipients: usize,
    /// Bytes; none: no limit.
    pub message_size: Option<u64>,
    /// 421 4.3.2 beyond.
    pub max_connections: usize,
    /// Of one address, over TCP; 421 4.3.2 beyond.
    pub max_connections_per_peer: usize,
    /// 451 4.2.1 beyond.
    pub turns: turns::Limits,
    /// A client that says nothing for so long is sent away.
    pub idle_timeout: Duration,
    /// A body that takes longer must keep up 1 KiB a second; deliveries that take longer are answered 451.
    pub data_deadline: Duration,
    /// Tell clients why: for closed sites.
    pub verbose_replies: bool,
    pub spool: Spool,
    /// There are [other servers](crate::deliver::placement).
    pub takes_errands: bool,
    /// Each message has a digest, so that one which is sent again is known.
    pub knows_retries: bool,
    /// `login_trusted_networks`: whose clients are believed when they say who sends, or whom they speak for.
    pub trusted_networks: Vec<IpNet>,
    /// `haproxy_trusted_networks`: whose PROXY headers are believed.
    pub balancers: Vec<IpNet>,
    pub workarounds: Workarounds,
    pub tls: Option<tls::Files>,
    /// `ssl = "required"`: no mail over TCP without it.
    pub requires_tls: bool,
    /// What `tls` names, once it was [loaded](Settings::load_certificate).
    pub certificate: Option<Arc<ServerConfig>>,
}

impl Settings {
    /// No more connections than there can be files for: deliveries and the spool need some too.
    pub fn fit_into(&mut self, open_files: u64) {
        let most = usize::try_from(open_files / 4 * 3)
            .unwrap_or(usize::MAX)
            .max(1);
        if self.max_connections > most {
            let (wanted, most) = (self.max_connections, most);
            tracing::warn!(
                wanted,
                most,
                open_files,
                "fewer connections than max_connections: raise LimitNOFILE"
            );
            self.max_connections = most;
        }
    }

    /// Reads what `tls` names, while the process still may.
    pub fn load_certificate(&mut self) -> io::Result<()> {
        self.certificate = match &self.tls {
            Some(files) => Some(files.load()?),
            None => None,
        };
        Ok(())
    }
}

/// One entry of `lmtp.listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    Unix {
        path: PathBuf,
        mode: u32,
        /// Names or numbers; none: as the process has it.
        user: Option<String>,
        group: Option<String>,
        trusted: Option<bool>,
    },
    Tcp {
        address: SocketAddr,
        trusted: Option<bool>,
        /// TLS from the first byte on.
        ssl: bool,
        /// A load balancer says who the client is.
        haproxy: bool,
    },
}

/// A socket that listens.
#[derive(Debug)]
pub struct Bound {
    listener: Listener,
    terms: Terms,
}

/// How the clients of one socket are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Terms {
    is_trusted: bool,
    ssl: bool,
    haproxy: bool,
}

#[derive(Debug)]
enum Listener {
    Unix(std::os::unix::net::UnixListener),
    Tcp(std::net::TcpListener),
}

/// Binds all sockets, while the process still may: before it gives its privileges away. Errors name the socket.
pub fn bind(listen: &[Listen]) -> io::Result<Vec<Bound>> {
    let bound = listen.iter().map(|it| {
        Ok(Bound {
            listener: it.bind()?,
            terms: it.terms(),
        })
    });
    bound.collect()
}

impl Listen {
    fn bind(&self) -> io::Result<Listener> {
        let listener = match self {
            Listen::Unix {
                path,
                mode,
                user,
                group,
                ..
            } => {
                let uid = user.as_deref().map(socket::uid_of).transpose();
                let gid = group.as_deref().map(socket::gid_of).transpose();
                uid.and_then(|uid| socket::bind_unix(path, *mode, uid, gid?))
                    .map(Listener::Unix)
            }
            Listen::Tcp { address, .. } => std::net::TcpListener::bind(address).map(Listener::Tcp),
        };
        listener.map_err(|error| io::Error::new(error.kind(), format!("listen on {self}: {error}")))
    }

    /// Clients are believed when they say who sends: those of a unix socket, by its mode, unless the config says.
    fn terms(&self) -> Terms {
        match *self {
            Listen::Unix { trusted, mode, .. } => Terms {
                is_trusted: trusted.unwrap_or(mode & 0o002 == 0),
                ssl: false,
                haproxy: false,
            },
            Listen::Tcp {
                trusted,
                ssl,
                haproxy,
                ..
            } => Terms {
                is_trusted: trusted.unwrap_or(false),
                ssl,
                haproxy,
            },
        }
    }

    /// One socket serves both.
    fn is_same_socket(&self, other: &Listen) -> bool {
        match (self, other) {
            (Listen::Tcp { address, .. }, Listen::Tcp { address: it, .. }) => address == it,
            _ => self == other,
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listen::Unix { path, .. } => path.display().fmt(f),
            Listen::Tcp { address, .. } => address.fmt(f),
        }
    }
}

/// Serves until `stop` is true. Then: no new clients; those between messages are sent away, running transactions get their
/// answers; it returns after a minute at the latest.
pub async fn serve(
    listeners: Vec<Bound>,
    runner: Runner,
    settings: Arc<Settings>,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    serve_with(listeners, runner, settings, stop).await
}

/// Serves one client on stdin and stdout: a terminal, pipes, or the socket that inetd hands over.
pub async fn serve_stdio(runner: Runner, settings: Arc<Settings>, stop: watch::Receiver<bool>) {
    let stdio = Stdio {
        stdin: tokio::io::stdin(),
        stdout: tokio::io::stdout(),
    };
    let (phase, watched) = watch::channel(Phase::Serving);
    let mut clients = JoinSet::new();
    let address = stdin_peer();
    let peer = Peer {
        address,
        is_trusted: settings.trusts(address),
        is_secure: false,
    };
    clients.spawn(Connection::new(stdio, peer, runner, settings, watched).run());
    tokio::select! {
        () = stopped(stop) => wind_down(clients, &phase).await,
        _ = clients.join_next() => {}
    }
}

async fn serve_with<D: Deliveries>(
    listeners: Vec<Bound>,
    deliveries: D,
    settings: Arc<Settings>,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let (phase, watched) = watch::channel(Phase::Serving);
    let (arrive, mut arrived) = mpsc::channel(1);
    let mut doors = JoinSet::new();
    for listener in listeners {
        let listener = Door::new(listener)?;
        doors.spawn(welcome(listener, arrive.clone()));
    }
    let mut clients = JoinSet::new();
    let guests = Guests::new(settings.max_connections_per_peer);
    let stopped = stopped(stop);
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            biased;
            () = &mut stopped => break,
            Some(_) = clients.join_next() => {}
            Some(arrival) = arrived.recv() => match clients.len() < settings.max_connections {
                true => arrival.serve(&mut clients, &deliveries, &settings, &watched, &guests),
                false => arrival.turn_away(&settings, "Too many connections").await,
            },
        }
    }
    // Closes the listening sockets.
    doors.shutdown().await;
    while let Ok(arrival) = arrived.try_recv() {
        arrival.serve(&mut clients, &deliveries, &settings, &watched, &guests);
    }
    wind_down(clients, &phase).await;
    Ok(())
}

/// True, or nobody left who could say so.
async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn wind_down(mut clients: JoinSet<()>, phase: &watch::Sender<Phase>) {
    for (next, patience) in [
        (Phase::Leaving, LEAVE),
        (Phase::Finishing, FINISH),
        (Phase::Halting, HALT),
    ] {
        phase.send_replace(next);
        let all_gone = async { while clients.join_next().await.is_some() {} };
        if timeout(patience, all_gone).await.is_ok() {
            return;
        }
    }
    tracing::warn!(
        clients = clients.len(),
        "deliveries left behind without their answers"
    );
    clients.shutdown().await;
}

/// Accepts for ever: no error of one client, and no shortage, closes the door for the next.
async fn welcome(door: Door, arrive: mpsc::Sender<Arrival>) {
    let mut failures = 0;
    loop {
        match door.accept().await {
            Ok(arrival) => {
                failures = 0;
                if arrive.send(arrival).await.is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                failures += 1;
                if failures == 1 {
                    tracing::warn!(
                        error = error.to_string().as_str(),
                        "cannot accept a connection for now"
                    );
                }
                sleep(socket::back_off(failures)).await;
            }
        }
    }
}

/// A socket that clients come through.
pub struct Door {
    entrance: Entrance,
    terms: Terms,
}

enum Entrance {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A client that has come.
pub struct Arrival {
    pub stream: Stream,
    terms: Terms,
}

pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr),
}

impl Door {
    pub fn new(bound: Bound) -> io::Result<Door> {
        let entrance = match bound.listener {
            Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Entrance::Unix(UnixListener::from_std(listener)?)
            }
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Entrance::Tcp(TcpListener::from_std(listener)?)
            }
        };
        Ok(Door {
            entrance,
            terms: bound.terms,
        })
    }

    pub async fn accept(&self) -> io::Result<Arrival> {
        let stream = match &self.entrance {
            Entrance::Unix(listener) => Stream::Unix(listener.accept().await?.0),
            Entrance::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Stream::Tcp(stream, peer)
            }
        };
        Ok(Arrival {
            stream,
            terms: self.terms,
        })
    }
}

impl Arrival {
    fn serve<D: Deliveries>(
        self,
        clients: &mut JoinSet<()>,
        deliveries: &D,
        settings: &Arc<Settings>,
        phase: &watch::Receiver<Phase>,
        guests: &Guests,
    ) {
        let (deliveries, settings, phase) =
            (deliveries.clone(), Arc::clone(settings), phase.clone());
        let guests = guests.clone();
        match self.stream {
            Stream::Unix(stream) => {
                let peer = Peer {
                    address: None,
                    is_trusted: self.terms.is_trusted,
                    is_secure: true,
                };
                clients.spawn(Connection::new(stream, peer, deliveries, settings, phase).run());
            }
            Stream::Tcp(stream, address) => {
                // Only speed depends on it.
                let _ = stream.set_nodelay(true);
                clients.spawn(async move {
                    let met = meet(stream, address, self.terms, &settings).await;
                    let Ok((stream, peer)) = met.inspect_err(|error| {
                        let (peer, error) = (address.to_string(), error.to_string());
                        let (peer, error) = (peer.as_str(), error.as_str());
                        tracing::info!(peer, error, "a client that is not served");
                    }) else {
                        return;
                    };
                    let guest = guests.admit(peer.address.unwrap_or(address.ip()));
                    let Some(_guest) = guest else {
                        metrics().turned_away.inc();
                        return farewell(stream, &settings, "Too many connections from you").await;
                    };
                    let connection = Connection::new(stream, peer, deliveries, settings, phase);
                    connection.run().await;
                });
            }
        }
    }

    async fn turn_away(self, settings: &Settings, why: &str) {
        metrics().turned_away.inc();
        match self.stream {
            Stream::Unix(stream) => farewell(stream, settings, why).await,
            Stream::Tcp(stream, _) => farewell(stream, settings, why).await,
        }
    }
}

/// The socket is fresh: one line fits without waiting.
async fn farewell(mut stream: impl AsyncWrite + Unpin, settings: &Settings, why: &str) {
    let line = format!("421 4.3.2 {} {why}\r\n", settings.hostname);
    let sent = async {
        stream.write_all(line.as_bytes()).await?;
        stream.flush().await
    };
    let _ = timeout(Duration::from_millis(100), sent).await;
}

/// Who a client over TCP is, and what he is to find out before he can speak.
async fn meet(
    mut stream: TcpStream,
    peer: SocketAddr,
    terms: Terms,
    settings: &Settings,
) -> io::Result<(Channel<TcpStream>, Peer)> {
    let mut address = peer.ip().to_canonical();
    if terms.haproxy {
        if !is_among(&settings.balancers, address) {
            let why = "it is not among haproxy_trusted_networks";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let source = timeout(HANDSHAKE, proxied::read(&mut stream)).await??;
        address = source.map_or(address, |it| it.ip().to_canonical());
    }
    let mut stream = Channel::Plain(stream);
    if terms.ssl {
        let certificate = settings.certificate.clone();
        let certificate = certificate.ok_or_else(|| io::Error::other("there is no certificate"))?;
        timeout(HANDSHAKE, stream.secure(certificate)).await??;
    }
    let peer = Peer {
        address: Some(address),
        is_trusted: terms.is_trusted || settings.trusts(Some(address)),
        is_secure: terms.ssl,
    };
    Ok((stream, peer))
}

impl Settings {
    fn trusts(&self, address: Option<IpAddr>) -> bool {
        address.is_some_and(|it| is_among(&self.trusted_networks, it))
    }
}

fn is_among(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|it| it.contains(&address))
}

/// The client's address where inetd accepted a TCP connection.
fn stdin_peer() -> Option<IpAddr> {
    socket::tcp_peer(&std::io::stdin()).map(|peer| peer.ip().to_canonical())
}

impl Deliveries for Runner {
    async fn inspect(&self, recipient: Recipient) -> Report {
        Runner::inspect(self, recipient).await
    }

    fn deliver(&self, message: Arc<Message>, recipients: Vec<Recipient>) -> Outcomes {
        Runner::deliver(self, message, recipients)
    }
}

impl Wire for UnixStream {
    fn is_gone(&self) -> bool {
        socket::is_gone(self)
    }
}

impl Wire for TcpStream {
    fn is_gone(&self) -> bool {
        socket::is_gone(self)
    }
}

struct Stdio {
    stdin: Stdin,
    stdout: Stdout,
}

impl Wire for Stdio {
    fn is_gone(&self) -> bool {
        socket::is_gone(&self.stdout)
    }
}

impl AsyncRead for Stdio {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdout).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::connection::tests::{Store, settings};
    use super::*;

    struct Server {
        path: PathBuf,
        store: Store,
        stop: watch::Sender<bool>,
        task: tokio::task::JoinHandle<io::Result<()>>,
        _dir: tempfile::TempDir,
    }

    fn server(max_connections: usize) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lmtp");
        let listen = Listen::Unix {
            path: path.clone(),
            mode: 0o600,
            user: None,
            group: None,
            trusted: None,
        };
        let settings = Settings {
            listen: vec![listen],
            max_connections,
            ..settings()
        };
        let listeners = bind(&settings.listen).unwrap();
        let store = Store::default();
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(serve_with(
            listeners,
            store.clone(),
            Arc::new(settings),
            stopped,
        ));
        Server {
            path,
            store,
            stop,
            task,
            _dir: dir,
        }
    }

    async fn said(stream: &mut UnixStream) -> String {
        let mut bytes = [0; 1000];
        let length = timeout(Duration::from_secs(10), stream.read(&mut bytes))
            .await
            .unwrap()
            .unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn connections_are_limited_and_come_back() {
        let server = server(2);
        let mut one = UnixStream::connect(&server.path).await.unwrap();
        assert!(said(&mut one).await.starts_with("220 mx"));
        let mut two = UnixStream::connect(&server.path).await.unwrap();
        assert!(said(&mut two).await.starts_with("220 mx"));
        let mut three = UnixStream::connect(&server.path).await.unwrap();
        assert_eq!(
            said(&mut three).await,
            "421 4.3.2 mx Too many connections\r\n"
        );
        assert_eq!(said(&mut three).await, "");
        drop(one);
        let mut again = String::new();
        for _ in 0..100 {
            let mut four = UnixStream::connect(&server.path).await.unwrap();
            again = said(&mut four).await;
            if again.starts_with("220") {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(again, "220 mx Postroom LMTP\r\n");
    }

    #[tokio::test]
    async fn stop_answers_what_runs() {
        let server = server(10);
        let mut idle = UnixStream::connect(&server.path).await.unwrap();
        said(&mut idle).await;
        let mut busy = UnixStream::connect(&server.path).await.unwrap();
        said(&mut busy).await;
        busy.write_all(b"MAIL FROM:<>\r\nRCPT TO:<slow>\r\nDATA\r\n")
            .await
            .unwrap();
        let mut before = String::new();
        while !before.contains("354") {
            before += &said(&mut busy).await;
        }
        busy.write_all(b"x\r\n.\r\n").await.unwrap();
        server.stop.send_replace(true);
        assert_eq!(said(&mut idle).await, "421 4.3.2 mx Shutting down\r\n");
        assert!(
            UnixStream::connect(&server.path).await.is_err(),
            "nobody comes in any more"
        );
        assert!(!server.task.is_finished());
        server.store.let_go.notify_one();
        assert!(said(&mut busy).await.starts_with("250 2.0.0 <slow> "));
        timeout(Duration::from_secs(10), server.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn a_client_that_is_gone_before_its_message_is_stored() {
        let server = server(10);
        let client = UnixStream::connect(&server.path).await.unwrap();
        let client = client.into_std().unwrap();
        client.set_nonblocking(false).unwrap();
        std::io::Write::write_all(
            &mut &client,
            b"MAIL FROM:<>\r\nRCPT TO:<a>\r\nDATA\r\nx\r\n.\r\n",
        )
        .unwrap();
        // All of it arrives in one read, together with the hang-up: this thread has not let the server run yet.
        drop(client);
        sleep(Duration::from_millis(50)).await;
        assert!(server.store.stored.lock().unwrap().is_empty());
    }

    #[test]
    fn errors_name_the_socket() {
        let listen = Listen::Unix {
            path: "/nonexistent/lmtp".into(),
            mode: 0o600,
            user: None,
            group: None,
            trusted: None,
        };
        let error = bind(&[listen]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("listen on /nonexistent/lmtp: "),
            "{error}"
        );
    }
}
