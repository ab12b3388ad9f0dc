//! Deliveries that another server makes: we are its LMTP client.
//!
//! RCPT asks it, DATA sends it the message; what it answers is our answer. Each delivery is a transaction of its own, on a
//! connection that is kept for the next one.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::deliver::placement::{Node, Tls};
use crate::fault::{Code, Fault};
use crate::message::{Errand, Message, Recipient, ReversePath};

mod certificates;

/// Connections to one node at once.
const AT_ONCE: usize = 64;
/// How long an idle connection is kept.
const KEEP: Duration = Duration::from_secs(20);
/// The longest line of an answer, bytes.
const MAX_LINE: u64 = 2048;
/// Lines of one answer.
const MAX_LINES: usize = 100;
/// How long a node may take for a message that it has: longer than its own deliveries do.
const STORING: Duration = Duration::from_secs(310);

/// All other servers.
#[derive(Debug)]
pub struct Relay {
    tls: Option<Arc<ClientConfig>>,
    any_tls: Option<Arc<ClientConfig>>,
    hostname: String,
    nodes: Mutex<HashMap<Node, Arc<Known>>>,
}

#[derive(Debug)]
struct Known {
    free: Semaphore,
    idle: Mutex<Vec<(Instant, Connection)>>,
}

/// What a node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub code: u16,
    /// `5.1.1`; empty where there is none.
    pub enhanced: String,
    /// The last line, without the codes.
    pub text: String,
    /// To the message, not to RCPT: below 500 nobody knows whether it is there.
    pub is_of_message: bool,
}

/// Whether anybody will still hear the answer.
pub type Heard<'a> = &'a (dyn Fn() -> bool + Send + Sync);

/// One delivery at a node.
#[derive(Debug)]
pub struct Job<'a> {
    pub recipient: &'a Recipient,
    /// The address as the node knows it.
    pub address: String,
    pub errand: Option<&'a Errand>,
    /// The MTA's queue id.
    pub queue_id: Option<&'a str>,
    /// The id that our replies and log lines carry, once there is a message.
    pub session: Option<&'a str>,
}

impl Relay {
    /// `ca_file`: whom certificates of nodes are signed by.
    pub fn new(hostname: &str, ca_file: Option<&std::path::Path>) -> io::Result<Arc<Relay>> {
        Ok(Arc::new(Relay {
            tls: ca_file.map(certificates::verified).transpose()?,
            any_tls: Some(certificates::any()?),
            hostname: hostname.to_owned(),
            nodes: Mutex::default(),
        }))
    }

    /// For nodes that are spoken to without TLS.
    pub fn plain(hostname: &str) -> Arc<Relay> {
        Arc::new(Relay {
            tls: None,
            any_tls: None,
            hostname: hostname.to_owned(),
            nodes: Mutex::default(),
        })
    }

    /// What the node says of the recipient. A fault: it cannot be asked.
    pub async fn ask(&self, node: &Node, job: &Job<'_>) -> Result<Answer, Fault> {
        self.with(node, async |connection| {
            let sender = ReversePath::Null;
            let answer = connection.begin(&sender, job).await?;
            connection.say("RSET", &[250]).await?;
            Ok(answer)
        })
        .await
    }

    /// The delivery. An answer of 2xx: the node has stored the message.
    pub async fn deliver(
        &self,
        node: &Node,
        job: &Job<'_>,
        message: &Arc<Message>,
        heard: Heard<'_>,
    ) -> Result<Answer, Fault> {
        let check = || match heard() {
            true => Ok(()),
            // The client sends it again: the node is not to have it twice.
            false => Err(io::Error::other("the client is gone")),
        };
        let is_sent = AtomicBool::new(false);
        let done = self
            .with(node, async |connection| {
                let answer = connection.begin(&message.envelope.sender, job).await?;
                if answer.code >= 300 {
                    connection.say("RSET", &[250]).await?;
                    return Ok(answer);
                }
                check()?;
                connection.say("DATA", &[354]).await?;
                let end = connection.send_message(message).await?;
                check()?;
                is_sent.store(true, Ordering::Relaxed);
                connection.send_end(end).await?;
                let answer = connection.answer(STORING).await?;
                Ok(Answer {
                    is_of_message: true,
                    ..answer
                })
            })
            .await;
        // Once it has all of it, it may have stored it too.
        done.map_err(|fault| match is_sent.load(Ordering::Relaxed) {
            true => Fault {
                code: Code::Storage,
                ..fault
            },
            false => fault,
        })
    }

    /// Work on a connection that is free again afterwards, if it went well.
    async fn with<T>(
        &self,
        node: &Node,
        work: impl AsyncFnOnce(&mut Connection) -> io::Result<T>,
    ) -> Result<T, Fault> {
        let failed = |error: io::Error| {
            let why = match error.kind() {
                io::ErrorKind::TimedOut => "it does not answer".to_owned(),
                _ => error.to_string(),
            };
            Fault::new(Code::Unreachable, format!("deliver at {node}"), why)
        };
        let patience = Duration::from_secs(node.timeout);
        let known = self.known(node);
        let slot = timeout(patience, known.free.acquire()).await;
        let Ok(Ok(_slot)) = slot else {
            let why = format!("{AT_ONCE} deliveries wait for it already");
            return Err(Fault::new(
                Code::Unreachable,
                format!("deliver at {node}"),
                why,
            ));
        };
        let mut connection = match known.idle_one().await {
            Some(connection) => connection,
            None => timeout(patience, self.connect(node))
                .await
                .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
                .map_err(failed)?,
        };
        let done = work(&mut connection).await.map_err(failed)?;
        let mut idle = known.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, _)| since.elapsed() < KEEP);
        idle.push((Instant::now(), connection));
        Ok(done)
    }

    fn known(&self, node: &Node) -> Arc<Known> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(nodes.entry(node.clone()).or_insert_with(|| {
            Arc::new(Known {
                free: Semaphore::new(AT_ONCE),
                idle: Mutex::default(),
            })
        }))
    }

    async fn connect(&self, node: &Node) -> io::Result<Connection> {
        let stream: Box<dyn Stream> = match node.host.starts_with('/') {
            true => Box::new(UnixStream::connect(&node.host).await?),
            false => {
                let stream = TcpStream::connect((node.host.as_str(), node.port)).await?;
                // Only speed depends on it.
                let _ = stream.set_nodelay(true);
                Box::new(stream)
            }
        };
        let mut connection = Connection {
            stream: BufReader::new(stream),
            patience: Duration::from_secs(node.timeout),
            words: Vec::new(),
            hostname: self.hostname.clone(),
        };
        connection.expect(&[220]).await?;
        connection.hello().await?;
        let config = match node.tls {
            Tls::No => return Ok(connection),
            Tls::Any => self.any_tls.as_ref(),
            Tls::Verified => self.tls.as_ref(),
        };
        let missing = || io::Error::other("placement.ssl_client_ca_file is not set");
        let config = config.ok_or_else(missing)?;
        connection.say("STARTTLS", &[220]).await?;
        let name = ServerName::try_from(node.host.clone()).map_err(io::Error::other)?;
        // Whoever stands between us could have put there what waits behind the answer.
        if !connection.stream.buffer().is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let plain = connection.stream.into_inner();
        let secured = TlsConnector::from(Arc::clone(config))
            .connect(name, plain)
            .await?;
        connection = Connection {
            stream: BufReader::new(Box::new(secured)),
            ..connection
        };
        connection.hello().await?;
        Ok(connection)
    }
}

impl Known {
    /// One that is still alive.
    async fn idle_one(&self) -> Option<Connection> {
        loop {
            let next = self
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            let (since, mut connection) = next?;
            if since.elapsed() < KEEP && connection.say("NOOP", &[250]).await.is_ok() {
                return Some(connection);
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

struct Connection {
    stream: BufReader<Box<dyn Stream>>,
    patience: Duration,
    /// What the node can do, in capitals.
    words: Vec<String>,
    hostname: String,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl Connection {
    async fn hello(&mut self) -> io::Result<()> {
        let line = format!("LHLO {}", self.hostname);
        let lines = self.ask(&line).await?;
        let code = lines.first().and_then(|it| it.get(..3));
        if code != Some("250") {
            return Err(unexpected(&lines));
        }
        let words = lines.iter().skip(1).filter_map(|line| line.get(4..));
        self.words = words.map(str::to_ascii_uppercase).collect();
        Ok(())
    }

    fn can(&self, word: &str) -> bool {
        self.words
            .iter()
            .any(|it| it.split(' ').next() == Some(word))
    }

    /// XCLIENT, MAIL and RCPT; the answer to RCPT.
    async fn begin(&mut self, sender: &ReversePath, job: &Job<'_>) -> io::Result<Answer> {
        let recipient = job.recipient;
        if self.can("XCLIENT") {
            let hops = recipient.hops.saturating_sub(1);
            let mut line = format!("XCLIENT TTL={hops} TIMEOUT={}", STORING.as_secs());
            if let Some(session) = job.session {
                let _ = write!(line, " SESSION={}", xtext(session));
            }
            self.say(&line, &[220, 250]).await?;
            self.hello().await?;
        }
        if let Some(id) = job.queue_id.filter(|_| self.can("XFORWARD")) {
            self.say(&format!("XFORWARD IDENT={}", xtext(id)), &[250])
                .await?;
        }
        let mut mail = format!("MAIL FROM:<{sender}>");
        let (smtputf8, known) = (
            !mail.is_ascii() || !job.address.is_ascii(),
            self.can("SMTPUTF8"),
        );
        if smtputf8 && known {
            mail.push_str(" SMTPUTF8");
        }
        if let Some(size) = recipient
            .announced
            .filter(|&size| size > 0 && self.can("SIZE"))
        {
            let _ = write!(mail, " SIZE={size}");
        }
        if let Some(who) = recipient
            .authenticated
            .as_ref()
            .filter(|_| self.can("XCLIENT"))
        {
            let _ = write!(mail, " AUTH={}", xtext(who));
        }
        let lines = self.ask(&mail).await?;
        match Answer::parse(&lines) {
            Some(answer) if answer.code == 250 => {}
            // By the size that was announced.
            Some(answer) if answer.is_too_big() => return Ok(answer),
            _ => return Err(unexpected(&lines)),
        }
        let mut rcpt = format!("RCPT TO:<{}>", job.address);
        if let Some(errand) = job.errand {
            if !self.can("XPOSTROOM") {
                let why = "it does not take what is asked for by another server: is it ours, and trusts us?";
                return Err(io::Error::other(why));
            }
            let errand = serde_json::to_string(errand)?;
            let _ = write!(rcpt, " XPOSTROOM={}", xtext(&errand));
        }
        if let Some(original) = recipient
            .original
            .as_ref()
            .filter(|_| self.can("XPOSTROOM") || self.can("DSN"))
        {
            let _ = write!(rcpt, " ORCPT=rfc822;{}", xtext(original));
        }
        if recipient.ignore_quota && self.can("IGNOREQUOTA") {
            rcpt.push_str(" IGNOREQUOTA");
        }
        if let Some(forward) = recipient
            .forward
            .as_ref()
            .filter(|_| self.can("XRCPTFORWARD"))
        {
            let _ = write!(rcpt, " XRCPTFORWARD={}", xtext(forward));
        }
        let lines = self.ask(&rcpt).await?;
        Answer::parse(&lines).ok_or_else(|| unexpected(&lines))
    }

    /// The message, with CRLF and dots stuffed. Answers what ends it.
    async fn send_message(&mut self, message: &Arc<Message>) -> io::Result<&'static [u8]> {
        let (pieces, mut ready) = mpsc::channel::<Vec<u8>>(2);
        let message = Arc::clone(message);
        let reader = tokio::task::spawn_blocking(move || {
            message.body.each_piece(|piece| {
                let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
                piece
                    .chunks(64 * 1024)
                    .try_for_each(|it| pieces.blocking_send(it.to_vec()).map_err(gone))
            })
        });
        let mut stuffing = Stuffing::default();
        let mut wire = Vec::new();
        while let Some(piece) = ready.recv().await {
            wire.clear();
            stuffing.push(&piece, &mut wire);
            timeout(self.patience, self.stream.write_all(&wire)).await??;
        }
        reader.await.map_err(io::Error::other)??;
        Ok(stuffing.end())
    }

    async fn send_end(&mut self, end: &[u8]) -> io::Result<()> {
        timeout(self.patience, self.stream.write_all(end)).await??;
        timeout(self.patience, self.stream.flush()).await?
    }

    async fn say(&mut self, line: &str, wanted: &[u16]) -> io::Result<()> {
        let lines = self.ask(line).await?;
        match Answer::parse(&lines) {
            Some(answer) if wanted.contains(&answer.code) => Ok(()),
            _ => Err(unexpected(&lines)),
        }
    }

    async fn expect(&mut self, wanted: &[u16]) -> io::Result<()> {
        let answer = self.answer(self.patience).await?;
        match wanted.contains(&answer.code) {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "it says {} {}",
                answer.code, answer.text
            ))),
        }
    }

    async fn ask(&mut self, line: &str) -> io::Result<Vec<String>> {
        let sent = async {
            let line = format!("{line}\r\n");
            self.stream.write_all(line.as_bytes()).await?;
            self.stream.flush().await
        };
        timeout(self.patience, sent).await??;
        self.lines(self.patience).await
    }

    async fn answer(&mut self, patience: Duration) -> io::Result<Answer> {
        let lines = self.lines(patience).await?;
        Answer::parse(&lines).ok_or_else(|| unexpected(&lines))
    }

    /// One answer, line by line.
    async fn lines(&mut self, patience: Duration) -> io::Result<Vec<String>> {
        let read = async {
            let mut lines = Vec::new();
            loop {
                let mut line = Vec::new();
                let mut limited = (&mut self.stream).take(MAX_LINE);
                limited.read_until(b'\n', &mut line).await?;
                if !line.ends_with(b"\n") || lines.len() >= MAX_LINES {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                let goes_on = line.as_bytes().get(3) == Some(&b'-');
                lines.push(line);
                if !goes_on {
                    return Ok(lines);
                }
            }
        };
        timeout(patience, read).await?
    }
}

fn unexpected(lines: &[String]) -> io::Error {
    let said = lines.last().map_or("nothing", String::as_str);
    io::Error::other(format!("it says {said:?}"))
}

impl Answer {
    fn parse(lines: &[String]) -> Option<Answer> {
        let line = lines.last()?;
        let code: u16 = line.get(..3)?.parse().ok()?;
        if !(200..600).contains(&code) {
            return None;
        }
        let rest = line.get(4..).unwrap_or_default();
        let (first, behind) = rest.split_once(' ').unwrap_or((rest, ""));
        let is_enhanced =
            first.split('.').count() == 3 && first.split('.').all(|it| it.parse::<u16>().is_ok());
        let (enhanced, text) = if is_enhanced {
            (first, behind)
        } else {
            ("", rest)
        };
        Some(Answer {
            code,
            enhanced: enhanced.to_owned(),
            text: text.to_owned(),
            is_of_message: false,
        })
    }

    fn is_too_big(&self) -> bool {
        self.code >= 500 && matches!(self.enhanced.as_str(), "5.2.3" | "5.3.4")
    }

    /// Whether the node may have the message, whatever it says.
    pub fn may_have_stored(&self) -> bool {
        self.is_of_message && self.code < 500
    }

    /// Why it is none of 2xx.
    pub fn fault(&self, node: &Node) -> Option<Fault> {
        let code = match (self.code, self.enhanced.as_str()) {
            (200..300, _) => return None,
            (500.., "5.1.1" | "5.1.2" | "5.1.6") => Code::NoSuchUser,
            (500.., "5.1.3") => Code::BadAddress,
            (500.., "5.2.2") => Code::OverQuota,
            _ if self.is_too_big() => Code::TooBig,
            // We do not understand each other, which is no fault of the sender's.
            (500..=504, _) => Code::CannotTell,
            (500.., enhanced) if enhanced.starts_with("5.5.") => Code::CannotTell,
            // How it is configured, and whom it trusts.
            (500.., enhanced) if enhanced.starts_with("5.3.") || enhanced.starts_with("5.4.") => {
                Code::CannotTell
            }
            (500.., "5.7.14") => Code::CannotTell,
            (500.., _) => Code::Denied,
            (_, "4.2.2") => Code::QuotaOfDisk,
            (_, "4.3.1") => Code::NoSpace,
            (_, "4.2.1") => Code::Busy,
            (_, "4.3.0") => Code::CannotTell,
            (_, "4.4.1") => Code::Unreachable,
            _ => Code::NotNow,
        };
        let why = format!("it says {} {} {}", self.code, self.enhanced, self.text);
        Some(Fault::new(code, format!("deliver at {node}"), why))
    }

    /// The mailbox and the UID, where a server of ours says them.
    pub fn place(&self) -> (String, Option<u32>) {
        let Some((_, rest)) = self.text.split_once(" mailbox=\"") else {
            return (String::new(), None);
        };
        let mut mailbox = String::new();
        let mut characters = rest.chars();
        while let Some(c) = characters.next() {
            match c {
                '"' => break,
                '\\' => mailbox.extend(characters.next()),
                c => mailbox.push(c),
            }
        }
        let uid = characters.as_str().strip_prefix(" uid=");
        let uid = uid.and_then(|it| it.split(' ').next()?.parse().ok());
        (mailbox, uid)
    }
}

/// LF to CRLF, and a dot before each dot at the start of a line, over pieces that end anywhere. A CR in a body is a lone one: that of
/// each CRLF went when it came in.
#[derive(Debug)]
struct Stuffing {
    at_start: bool,
}

impl Default for Stuffing {
    fn default() -> Stuffing {
        Stuffing { at_start: true }
    }
}

impl Stuffing {
    fn push(&mut self, piece: &[u8], wire: &mut Vec<u8>) {
        for &byte in piece {
            if self.at_start && byte == b'.' {
                wire.push(b'.');
            }
            if byte == b'\n' {
                wire.push(b'\r');
            }
            wire.push(byte);
            self.at_start = byte == b'\n';
        }
    }

    /// What ends the message.
    fn end(&self) -> &'static [u8] {
        match self.at_start {
            true => b".\r\n",
            false => b"\r\n.\r\n",
        }
    }
}

/// RFC 3461 section 4.
fn xtext(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'+' | b'=' => {
                let _ = write!(out, "+{byte:02X}");
            }
            b'!'..=b'~' => out.push(char::from(byte)),
            byte => {
                let _ = write!(out, "+{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        for (line, want) in [
            ("250 2.1.5 <a@b> OK", Some((250, "2.1.5", "<a@b> OK"))),
            ("250 OK", Some((250, "", "OK"))),
            ("550 5.1.1", Some((550, "5.1.1", ""))),
            ("250", Some((250, "", ""))),
            ("99 no", None),
            ("abc", None),
            ("é50 x", None),
            ("", None),
        ] {
            let found = Answer::parse(&[line.to_owned()]);
            let found = found
                .as_ref()
                .map(|it| (it.code, it.enhanced.as_str(), it.text.as_str()));
            assert_eq!(found, want, "{line:?}");
        }
        for (text, mailbox, uid) in [
            (
                "<a@b> id mailbox=\"Public/info\" uid=17 Saved",
                "Public/info",
                Some(17),
            ),
            ("<a@b> id mailbox=\"a\\\"b\\\\c\" Saved", "a\"b\\c", None),
            ("<a@b> id Saved", "", None),
            ("<a@b> id mailbox=\"never ends", "never ends", None),
        ] {
            let answer = Answer {
                code: 250,
                enhanced: String::new(),
                text: text.to_owned(),
                is_of_message: true,
            };
            assert_eq!(answer.place(), (mailbox.to_owned(), uid), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_answer_panics(lines in proptest::collection::vec("\\PC{0,60}|250 .{0,40}|250 x mailbox=\".{0,20}", 0..4)) {
            if let Some(answer) = Answer::parse(&lines) {
                let _ = answer.place();
            }
        }

        #[test]
        fn what_is_stuffed_is_the_message(body in "[.\r\na]{0,40}") {
            let (mut stuffing, mut wire) = (Stuffing::default(), Vec::new());
            stuffing.push(body.as_bytes(), &mut wire);
            wire.extend_from_slice(stuffing.end());
            let ends = memchr::memmem::find(&wire, b"\r\n.\r\n");
            // Nothing before its end looks like it.
            let end = ends.map_or(0, |at| at + 2);
            proptest::prop_assert_eq!(wire.len(), end + 3);
        }
    }

    #[test]
    fn bytes_on_the_wire() {
        for (body, want) in [
            (&b"a\nb\n"[..], &b"a\r\nb\r\n.\r\n"[..]),
            (b"a", b"a\r\n.\r\n"),
            (b"", b".\r\n"),
            (b".\n..\na.b\n", b"..\r\n...\r\na.b\r\n.\r\n"),
            (b"a\r\nb", b"a\r\r\nb\r\n.\r\n"),
            (b"a\r", b"a\r\r\n.\r\n"),
        ] {
            for size in 1..=body.len().max(1) {
                let (mut stuffing, mut wire) = (Stuffing::default(), Vec::new());
                body.chunks(size)
                    .for_each(|piece| stuffing.push(piece, &mut wire));
                wire.extend_from_slice(stuffing.end());
                assert_eq!(wire, want, "{body:?} in pieces of {size}");
            }
        }
        assert_eq!(xtext("a=b+c d\u{e9}"), "a+3Db+2Bc+20d+C3+A9");
    }
}
