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
//! | [`spooling`] | work at the spool, whose disk may hang |
//! | [`tls`] | STARTTLS, and TLS from the first byte on |
//! | [`proxied`] | the PROXY protocol of load balancers |
//! | [`guests`] | how many connections each peer has |
//! | [`listeners`] | the sockets, from one configuration to the next |
//! | [`doors`] | small services beside it |
//! | [`listen`] | what is listened on, and binding it |
//! | [`arrival`] | a client that comes |
//! | [`stream`] | a client's socket, which comes along with its task |
//! | [`stdio`] | one client on stdin and stdout |
//! | [`connection`] | one client's bytes, session and deliveries together |

pub mod arrival;
pub mod client;
pub mod codec;
pub mod command;
pub mod connection;
pub mod doors;
pub mod guests;
pub mod incoming;
pub mod listen;
pub mod listeners;
pub mod parameters;
pub mod proxied;
pub mod reply;
pub mod session;
mod spooling;
mod stdio;
mod stream;
pub mod tls;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::rustls::ServerConfig;

use crate::deliver::Report;
use crate::message::body::Spool;
use crate::message::{Envelope, Message, Recipient};
use crate::run::{Outcomes, Runner, turns};
pub use arrival::{Arrival, Door, Stream};
use arrival::{is_among, welcome};
use command::Workarounds;
use connection::{Connection, Deliveries, Peer, Phase};
use guests::Guests;
pub use listen::{Bound, Listen, bind};
use stdio::{Stdio, stdin_peer};

/// On the way down: how long a client that has just come may take to begin.
const LEAVE: Duration = Duration::from_secs(2);
/// Then: how long clients may take to finish their messages.
const FINISH: Duration = Duration::from_secs(20);
/// And then the deliveries, before they are left to themselves.
const HALT: Duration = Duration::from_secs(40);
/// All of it.
pub const WIND_DOWN: Duration =
    Duration::from_secs(LEAVE.as_secs() + FINISH.as_secs() + HALT.as_secs());

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
        doors.spawn(welcome(listener, arrive.clone(), stop.clone()));
    }
    drop(arrive);
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
    // Until the last of them has closed its socket.
    while let Some(arrival) = arrived.recv().await {
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

impl Settings {
    /// Whether a client from there is believed.
    fn trusts(&self, address: Option<IpAddr>) -> bool {
        address.is_some_and(|it| is_among(&self.trusted_networks, it))
    }
}

impl Deliveries for Runner {
    async fn inspect(&self, recipient: Recipient, envelope: &Envelope) -> Report {
        Runner::inspect(self, recipient, Some(envelope)).await
    }

    fn deliver(&self, message: Arc<Message>, recipients: Vec<Recipient>) -> Outcomes {
        Runner::deliver(self, message, recipients)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::time::sleep;

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
