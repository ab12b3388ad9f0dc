//! A client that comes, and what is settled before it can speak: who it is, TLS from the first byte on.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWrite, AsyncWriteExt, Interest};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::connection::{Connection, Deliveries, Peer, Phase};
use super::guests::Guests;
use super::listen::{Bound, Listener, Terms};
use super::tls::Channel;
use super::{Settings, proxied, stream};
use crate::observe::metrics::metrics;
use crate::run::in_place;
use crate::sys::socket;
use crate::sys::watched::watch;

/// A client's TCP stream, wherever its task is.
type TcpClient = stream::Stream<TcpStream>;

/// How long a load balancer may take for its header, and a client for TLS from the first byte on.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// A socket that clients come through.
pub struct Door {
    entrance: Entrance,
    terms: Terms,
}

enum Entrance {
    Unix(AsyncFd<UnixListener>),
    Tcp(AsyncFd<TcpListener>),
}

/// A client that has come.
pub struct Arrival {
    pub stream: Stream,
    terms: Terms,
}

/// It does not block. Whoever takes it has it watched: that of most clients moves from one runtime to another.
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr),
}

impl Door {
    /// Opens it for this runtime.
    pub fn new(bound: Bound) -> io::Result<Door> {
        let entrance = match bound.listener {
            Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Entrance::Unix(watch(listener, Interest::READABLE)?)
            }
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Entrance::Tcp(watch(listener, Interest::READABLE)?)
            }
        };
        Ok(Door {
            entrance,
            terms: bound.terms,
        })
    }

    /// The next client.
    pub async fn accept(&self) -> io::Result<Arrival> {
        let accepted = match &self.entrance {
            Entrance::Unix(listener) => {
                let accept = |listener: &UnixListener| {
                    let (stream, _) = listener.accept()?;
                    stream.set_nonblocking(true)?;
                    Ok(Stream::Unix(stream))
                };
                listener.async_io(Interest::READABLE, accept).await
            }
            Entrance::Tcp(listener) => {
                let accept = |listener: &TcpListener| {
                    let (stream, peer) = listener.accept()?;
                    stream.set_nonblocking(true)?;
                    Ok(Stream::Tcp(stream, peer))
                };
                listener.async_io(Interest::READABLE, accept).await
            }
        };
        // Whoever is short of descriptors may have some that nobody needs now.
        let stream = accepted.inspect_err(|_| in_place::let_go())?;
        Ok(Arrival {
            stream,
            terms: self.terms,
        })
    }
}

impl Arrival {
    /// Its client gets a task of its own among `clients`.
    pub(super) fn serve<D: Deliveries>(
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
                // Without a descriptor for it there is nobody to talk to.
                let Ok(stream) = stream::Stream::new(stream) else {
                    return;
                };
                let connection = Connection::new(stream, peer, deliveries, settings, phase);
                clients.spawn(in_place::run(connection.run()));
            }
            Stream::Tcp(stream, address) => {
                // Only speed depends on it.
                let _ = stream.set_nodelay(true);
                let Ok(stream) = stream::Stream::new(stream) else {
                    return;
                };
                clients.spawn(in_place::run(async move {
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
                }));
            }
        }
    }

    /// Says 421 and `why`, before the client has said anything.
    pub(super) async fn turn_away(self, settings: &Settings, why: &str) {
        metrics().turned_away.inc();
        match self.stream {
            Stream::Unix(stream) => {
                if let Ok(stream) = stream::Stream::new(stream) {
                    farewell(stream, settings, why).await;
                }
            }
            Stream::Tcp(stream, _) => {
                if let Ok(stream) = stream::Stream::new(stream) {
                    farewell(stream, settings, why).await;
                }
            }
        }
    }
}

/// Accepts until `stop` is true: no error of one client, and no shortage, closes the door for the next. Who has come is passed on.
pub(super) async fn welcome(
    door: Door,
    arrive: mpsc::Sender<Arrival>,
    mut stop: watch::Receiver<bool>,
) {
    let mut failures = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = door.accept() => accepted,
        };
        match accepted {
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
    mut stream: TcpClient,
    peer: SocketAddr,
    terms: Terms,
    settings: &Settings,
) -> io::Result<(Channel<TcpClient>, Peer)> {
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

pub(super) fn is_among(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|it| it.contains(&address))
}
