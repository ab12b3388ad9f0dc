use std::sync::Mutex;

use tokio::io::{AsyncReadExt, DuplexStream};

use super::*;
use crate::deliver::{Saved, Transaction};
use crate::message::body::Spool;
use crate::run::Running;

impl Wire for DuplexStream {
    fn is_gone(&self) -> bool {
        false
    }
}

/// A recipient and what he got.
pub type Stored = (String, Vec<u8>);

/// Stores everything in memory. `nobody` does not exist, `later` fails, `slow` waits to be let go, `lost` never answers.
#[derive(Clone, Default)]
pub struct Store {
    pub stored: Arc<Mutex<Vec<Stored>>>,
    pub let_go: Arc<tokio::sync::Notify>,
}

impl Store {
    fn names(&self) -> Vec<String> {
        self.stored
            .lock()
            .unwrap()
            .iter()
            .map(|(name, _)| name.clone())
            .collect()
    }
}

impl Deliveries for Store {
    async fn inspect(&self, recipient: Recipient, _: &Envelope) -> Report {
        let fault = Fault::new(Code::NoSuchUser, "look up the user", "not found");
        let mut report = Report::failed(recipient.address.to_string(), fault);
        if recipient.address.local != "nobody" {
            report.fault = None;
        }
        report
    }

    fn deliver(&self, message: Arc<Message>, recipients: Vec<Recipient>) -> Outcomes {
        let transaction = Transaction::new(Arc::clone(&message), recipients.len());
        let with_names = recipients.into_iter().map(|it| it.address.local);
        let answering = with_names.enumerate().filter(|(_, name)| name != "lost");
        let running = answering.map(|(index, name)| {
            let (store, message) = (self.clone(), Arc::clone(&message));
            Box::pin(async move {
                if name == "slow" {
                    store.let_go.notified().await;
                }
                let outcome = match name.as_str() {
                    "later" => Outcome::refused(Fault::new(Code::Storage, "write", "I/O error")),
                    _ => saved(),
                };
                store
                    .stored
                    .lock()
                    .unwrap()
                    .push((name, message.body.head().to_vec()));
                (index, outcome)
            }) as Running
        });
        Outcomes::here(running, Arc::new(transaction))
    }
}

fn saved() -> Outcome {
    Outcome::Saved(Saved {
        uid: Some(1),
        ..Saved::empty("INBOX".into(), "u".into())
    })
}

pub fn settings() -> Settings {
    Settings {
        listen: vec![],
        hostname: "mx".into(),
        max_recipients: 100,
        message_size: Some(300_000),
        max_connections: 10,
        max_connections_per_peer: 10,
        turns: Default::default(),
        idle_timeout: Duration::from_secs(5),
        data_deadline: Duration::from_secs(5),
        verbose_replies: false,
        spool: Spool::of(vec![std::env::temp_dir()]),
        takes_errands: false,
        knows_retries: true,
        trusted_networks: vec![],
        balancers: vec![],
        workarounds: Default::default(),
        tls: None,
        requires_tls: false,
        certificate: None,
    }
}

struct Caller {
    stream: DuplexStream,
    store: Store,
    phase: watch::Sender<Phase>,
    server: tokio::task::JoinHandle<()>,
}

fn connect(settings: Settings) -> Caller {
    let (stream, there) = tokio::io::duplex(1 << 20);
    let (phase, watched) = watch::channel(Phase::Serving);
    let store = Store::default();
    let mut connection = Connection::new(
        there,
        Peer::default(),
        store.clone(),
        Arc::new(settings),
        watched,
    );
    connection.session = Session::new(
        Limits {
            hostname: "mx".into(),
            max_recipients: 100,
            message_size: Some(300_000),
            verbose_replies: false,
            is_trusted: false,
            takes_errands: false,
            starttls: StartTls::Unavailable,
        },
        Client::default(),
        "id".into(),
    );
    Caller {
        stream,
        store,
        phase,
        server: tokio::spawn(connection.run()),
    }
}

impl Caller {
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(
                timeout(Duration::from_secs(10), self.stream.read_u8())
                    .await
                    .unwrap()
                    .unwrap(),
            );
        }
        String::from_utf8(line).unwrap().trim_end().to_string()
    }

    async fn lines(&mut self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..count {
            lines.push(self.line().await);
        }
        lines
    }

    /// All that the server still says, until it closes.
    async fn rest(&mut self) -> String {
        let mut rest = String::new();
        timeout(
            Duration::from_secs(10),
            self.stream.read_to_string(&mut rest),
        )
        .await
        .unwrap()
        .unwrap();
        rest
    }
}

const DIALOGUE: &str = "LHLO me\r\nMAIL FROM:<s@x>\r\nRCPT TO:<a>\r\nRCPT TO:<nobody>\r\nRCPT TO:<later>\r\nRCPT TO:<a>\r\n\
    DATA\r\nSubject: x\r\n\r\n..dot\r\n.\r\n\
    MAIL FROM:<>\r\nRCPT TO:<b>\r\nBDAT 8\r\na\r\n.\r\n\r\nBDAT 4 LAST\r\nb\n\r\n\
    MAIL FROM:<>\r\nBDAT 3 LAST\r\nNO\rNOOP\r\nFOO\r\nQUIT\r\n";

const ANSWERS: &str = "220 mx Postroom LMTP\r\n\
    250-mx\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250 SIZE 300000\r\n\
    250 2.1.0 OK\r\n250 2.1.5 <a> OK\r\n550 5.1.1 <nobody> id No such user\r\n250 2.1.5 <later> OK\r\n250 2.1.5 <a> OK\r\n354 OK\r\n\
    250 2.0.0 <a> id mailbox=\"INBOX\" uid=1 Saved\r\n\
    451 4.2.0 <later> id Message could not be stored, try again later\r\n\
    250 2.0.0 <a> id mailbox=\"INBOX\" uid=1 Saved\r\n\
    250 2.1.0 OK\r\n250 2.1.5 <b> OK\r\n250 2.0.0 8 octets taken\r\n250 2.0.0 <b> id:T2 mailbox=\"INBOX\" uid=1 Saved\r\n\
    250 2.1.0 OK\r\n250 2.0.0 OK\r\n500 5.5.1 Unknown command\r\n221 2.0.0 Bye\r\n";

#[tokio::test]
async fn a_dialogue_however_it_is_cut() {
    for cut in [DIALOGUE.len(), 1, 2, 7, 50] {
        let mut client = connect(settings());
        for piece in DIALOGUE.as_bytes().chunks(cut) {
            client.send(piece).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(client.rest().await, ANSWERS, "cut every {cut}");
        let mut stored = client.store.stored.lock().unwrap().clone();
        stored.sort();
        let first = b"Subject: x\n\n.dot\n".to_vec();
        let second = b"a\n.\n\nb\n\n".to_vec();
        assert_eq!(
            stored,
            [
                ("a".into(), first.clone()),
                ("b".into(), second),
                ("later".into(), first)
            ]
        );
    }
}

#[tokio::test]
async fn a_reply_leaves_as_soon_as_those_before_it() {
    let mut client = connect(settings());
    client.send(b"MAIL FROM:<>\r\nRCPT TO:<a>\r\nRCPT TO:<slow>\r\nRCPT TO:<b>\r\nDATA\r\n.\r\nNOOP\r\n").await;
    assert!(client.lines(7).await[6].starts_with("250 2.0.0 <a> "));
    while client.store.names().len() < 2 {
        tokio::task::yield_now().await;
    }
    let nothing = timeout(Duration::from_millis(50), client.stream.read_u8()).await;
    assert!(nothing.is_err(), "b must wait for slow");
    client.store.let_go.notify_one();
    let rest = client.lines(3).await;
    assert!(
        rest[0].starts_with("250 2.0.0 <slow> ") && rest[1].starts_with("250 2.0.0 <b> "),
        "{rest:?}"
    );
    assert_eq!(rest[2], "250 2.0.0 OK");
}

#[tokio::test]
async fn an_outcome_that_never_comes_is_an_answer_too() {
    let mut client = connect(settings());
    client.send(b"MAIL FROM:<>\r\nRCPT TO:<lost>\r\nRCPT TO:<a>\r\nRCPT TO:<lost>\r\nDATA\r\n.\r\nQUIT\r\n").await;
    let codes: Vec<String> = client
        .lines(10)
        .await
        .iter()
        .map(|line| line[..3].to_string())
        .collect();
    assert_eq!(
        codes,
        [
            "220", "250", "250", "250", "250", "354", "451", "250", "451", "221"
        ]
    );
}

#[tokio::test]
async fn a_store_that_hangs_is_an_answer_in_time() {
    let mut client = connect(Settings {
        data_deadline: Duration::from_millis(10),
        ..settings()
    });
    client
        .send(b"MAIL FROM:<>\r\nRCPT TO:<a>\r\nRCPT TO:<slow>\r\nDATA\r\n.\r\nNOOP\r\n")
        .await;
    let lines = client.lines(8).await;
    assert!(lines[5].starts_with("250 2.0.0 <a> "), "{lines:?}");
    assert!(lines[6].starts_with("451 4.2.0 <slow> "), "{lines:?}");
    assert_eq!(lines[7], "250 2.0.0 OK");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_end_stores_nothing() {
    for begin in [
        "LHLO x\r\n",
        "MAIL FROM:<>\r\nRCPT TO:<a>\r\n",
        "MAIL FROM:<>\r\nRCPT TO:<a>\r\nDATA\r\nbody\r\n.\r",
        "MAIL FROM:<>\r\nRCPT TO:<a>\r\nBDAT 9 LAST\r\n12345678",
    ] {
        let mut client = connect(settings());
        client.send(begin.as_bytes()).await;
        client.stream.shutdown().await.unwrap();
        client.rest().await;
        client.server.await.unwrap();
        assert!(client.store.names().is_empty(), "{begin:?}");
    }
}

#[tokio::test]
async fn a_message_that_is_too_big_costs_itself_only() {
    let mut client = connect(settings());
    client
        .send(b"MAIL FROM:<>\r\nRCPT TO:<a>\r\nRCPT TO:<b>\r\nDATA\r\n")
        .await;
    client.lines(5).await;
    client.send(&b"0123456789abcde\r\n".repeat(60_000)).await;
    client
        .send(b".\r\nMAIL FROM:<>\r\nRCPT TO:<c>\r\nDATA\r\nsmall\r\n.\r\n")
        .await;
    let lines = client.lines(6).await;
    assert!(
        lines[..2]
            .iter()
            .all(|line| line.starts_with("552 5.3.4 <")),
        "{lines:?}"
    );
    assert!(lines[5].starts_with("250 2.0.0 <c> "), "{lines:?}");
    assert_eq!(client.store.names(), ["c"]);
}

#[tokio::test]
async fn big_messages_arrive_whole() {
    let mut client = connect(settings());
    client
        .send(b"MAIL FROM:<>\r\nRCPT TO:<a>\r\nDATA\r\n")
        .await;
    let body = b"0123456789abcde\r\n".repeat(17_000);
    client.send(&body).await;
    client.send(b".\r\n").await;
    assert!(client.lines(5).await[4].starts_with("250 2.0.0"));
}

#[tokio::test]
async fn silence_ends_the_dialogue() {
    let quick = Duration::from_millis(60);
    for begin in [
        "",
        "MAIL FROM:<>\r\n",
        "MAIL FROM:<>\r\nRCPT TO:<a>\r\nDATA\r\nx\r\n",
        "MAIL FROM:<>\r\nRCPT TO:<a>\r\nBDAT 5\r\nx",
    ] {
        let mut client = connect(Settings {
            idle_timeout: quick,
            ..settings()
        });
        client.send(begin.as_bytes()).await;
        assert!(
            client
                .rest()
                .await
                .ends_with("421 4.4.2 mx Nothing heard for too long\r\n"),
            "{begin:?}"
        );
        assert!(client.store.names().is_empty());
    }
}

#[tokio::test]
async fn a_body_that_drips_ends_too() {
    let mut client = connect(Settings {
        data_deadline: Duration::from_millis(100),
        ..settings()
    });
    client
        .send(b"MAIL FROM:<>\r\nRCPT TO:<a>\r\nDATA\r\n")
        .await;
    client.lines(4).await;
    for _ in 0..50 {
        if client.stream.write_all(b"x").await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(client.rest().await.starts_with("421 4.4.2"));
    assert!(client.store.names().is_empty());
}

#[tokio::test]
async fn on_the_way_down() {
    let mut idle = connect(settings());
    idle.line().await;
    idle.phase.send_replace(Phase::Finishing);
    assert_eq!(idle.rest().await, "421 4.3.2 mx Shutting down\r\n");

    let mut new = connect(settings());
    new.phase.send_replace(Phase::Leaving);
    new.line().await;
    new.send(b"LHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a>\r\nDATA\r\nx\r\n.\r\n")
        .await;
    let lines = new.rest().await;
    assert!(
        lines.contains("\r\n250 2.0.0 <a> ")
            && lines.ends_with("\r\n421 4.3.2 mx Shutting down\r\n"),
        "{lines}"
    );

    let mut busy = connect(settings());
    busy.send(b"MAIL FROM:<>\r\nRCPT TO:<a>\r\n").await;
    busy.lines(3).await;
    busy.phase.send_replace(Phase::Finishing);
    busy.send(b"DATA\r\nx\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<b>\r\nDATA\r\nx\r\n.\r\n")
        .await;
    let lines = busy.rest().await;
    assert!(
        lines.starts_with("354 OK\r\n250 2.0.0 <a> ")
            && lines.ends_with("\r\n421 4.3.2 mx Shutting down\r\n"),
        "{lines}"
    );
    assert_eq!(busy.store.names(), ["a"]);

    let mut slow = connect(settings());
    slow.send(b"MAIL FROM:<>\r\nRCPT TO:<slow>\r\nDATA\r\n.\r\n")
        .await;
    slow.lines(4).await;
    slow.phase.send_replace(Phase::Halting);
    tokio::time::sleep(Duration::from_millis(20)).await;
    slow.store.let_go.notify_one();
    assert!(
        slow.rest().await.starts_with("250 2.0.0 <slow> "),
        "a delivery at work gets its answer"
    );

    let mut body = connect(settings());
    body.send(b"MAIL FROM:<>\r\nRCPT TO:<a>\r\nDATA\r\nx").await;
    body.lines(4).await;
    body.phase.send_replace(Phase::Halting);
    assert_eq!(body.rest().await, "421 4.3.2 mx Shutting down\r\n");
    assert!(body.store.names().is_empty());
}

#[tokio::test]
async fn a_line_without_end_does_not_fill_memory() {
    let mut client = connect(settings());
    client.line().await;
    client.send(&vec![b'x'; 500_000]).await;
    client.send(b"\r\nNOOP\r\n").await;
    assert_eq!(
        client.lines(2).await,
        ["500 5.5.2 Line too long", "250 2.0.0 OK"]
    );
}

#[test]
fn ids_and_dates() {
    let (one, two) = (session_id(), session_id());
    assert_ne!(one, two);
    assert!(
        one.len() == 22
            && one
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+/".contains(&b))
    );
    let parsed = jiff::fmt::rfc2822::parse(&now());
    assert!(parsed.is_ok(), "{}", now());
}
