//! The load: a thread for each connection, messages handed out one after the other.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Client, Target};

#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub connections: usize,
    pub messages: usize,
    /// Recipients of each message.
    pub recipients: usize,
    /// Bytes of each message as sent.
    pub size: usize,
    /// Users u0, u1 …, taken in turn.
    pub mailboxes: usize,
    /// Behind each user: `+Public/info`.
    pub detail: &'static str,
    /// A connection for each message, its making included.
    pub reconnects: bool,
}

impl Default for Load {
    fn default() -> Load {
        Load {
            connections: 1,
            messages: 1000,
            recipients: 1,
            size: 4096,
            mailboxes: 1,
            detail: "",
            reconnects: false,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Measured {
    pub deliveries: usize,
    pub took: Duration,
    /// From the final dot to the last reply, the quickest first.
    pub waits: Vec<Duration>,
}

impl Measured {
    pub fn per_second(&self) -> f64 {
        self.deliveries as f64 / self.took.as_secs_f64()
    }

    /// Milliseconds that this part of the messages waited at most.
    pub fn wait(&self, part: f64) -> f64 {
        let last = self.waits.len().saturating_sub(1);
        let at = (last as f64 * part).round() as usize;
        self.waits
            .get(at)
            .map_or(0.0, |wait| wait.as_secs_f64() * 1e3)
    }
}

impl Load {
    pub fn deliveries(&self) -> usize {
        self.messages * self.recipients
    }

    /// One message over each connection and into each mailbox at least, none of them huge: what is made once is made.
    pub fn priming(&self) -> Load {
        let rounds = self.mailboxes.div_ceil(self.recipients);
        Load {
            messages: self.connections.max(rounds),
            size: self.size.min(20 << 20),
            ..*self
        }
    }

    /// Sends it all. The clock runs from when every connection has said LHLO.
    pub fn run(&self, target: &Target) -> io::Result<Measured> {
        if self.recipients > self.mailboxes {
            return Err(io::Error::other("more recipients than mailboxes"));
        }
        let clients = (0..self.connections)
            .map(|_| Client::connect(target))
            .collect::<io::Result<Vec<_>>>()?;
        let (next, waits) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let start = Barrier::new(self.connections + 1);
        let began = thread::scope(|scope| {
            let threads: Vec<_> = clients
                .into_iter()
                .map(|client| scope.spawn(|| self.send(target, client, &start, &next, &waits)))
                .collect();
            start.wait();
            let began = Instant::now();
            for thread in threads {
                thread.join().expect("a connection's thread panicked")?;
            }
            io::Result::Ok(began)
        })?;
        let took = began.elapsed();
        let mut waits = waits.into_inner().expect("no thread panicked");
        waits.sort_unstable();
        Ok(Measured {
            deliveries: self.deliveries(),
            took,
            waits,
        })
    }

    /// The part of one connection.
    fn send(
        &self,
        target: &Target,
        mut client: Client,
        start: &Barrier,
        next: &AtomicUsize,
        waits: &Mutex<Vec<Duration>>,
    ) -> io::Result<()> {
        let mut message = Message::new(self.size);
        let mut own = Vec::new();
        start.wait();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.messages {
                break;
            }
            let first = number * self.recipients;
            let users = (first..first + self.recipients).map(|user| user % self.mailboxes);
            // No two of this process are alike: a message that comes again is stored once.
            let number = SENT.fetch_add(1, Ordering::Relaxed);
            let message = message.numbered(number);
            if self.reconnects {
                let began = Instant::now();
                let mut client = Client::connect(target)?;
                client.deliver(users, self.detail, message)?;
                client.quit()?;
                own.push(began.elapsed());
            } else {
                own.push(client.deliver(users, self.detail, message)?);
            }
        }
        waits.lock().expect("no thread panicked").extend(own);
        client.quit()
    }
}

static SENT: AtomicUsize = AtomicUsize::new(0);

/// A message as DATA sends it, of which only the number changes.
pub struct Message(Vec<u8>);

/// Stands first, so that its place is known.
const NUMBER: &str = "Message-ID: <0000000000@bench.test>\r\n";
const NUMBER_AT: usize = "Message-ID: <".len();
const FIELDS: &str = "From: Sender <sender@bench.test>\r\nTo: users@bench.test\r\nSubject: A message of the benchmark\r\n\
    Date: Mon, 1 Jan 2024 12:00:00 +0000\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n";
const LINE: &[u8] =
    b"the quick brown fox jumps over the lazy dog, and the dog does not mind it;\r\n";

impl Message {
    /// `size` bytes with their line ends; one less where a line would have one byte, more where the header alone has more.
    pub fn new(size: usize) -> Message {
        let mut bytes = [NUMBER, FIELDS].concat().into_bytes();
        while bytes.len() + LINE.len() <= size {
            bytes.extend(LINE);
        }
        let rest = size.saturating_sub(bytes.len());
        if rest >= 2 {
            bytes.extend(&LINE[..rest - 2]);
            bytes.extend(b"\r\n");
        }
        bytes.extend(b".\r\n");
        Message(bytes)
    }

    pub fn numbered(&mut self, number: usize) -> &[u8] {
        let digits = format!("{number:010}");
        self.0[NUMBER_AT..NUMBER_AT + 10].copy_from_slice(digits.as_bytes());
        &self.0
    }

    /// As a pipe carries it: line ends of the system, no final dot.
    pub fn text(size: usize) -> Vec<u8> {
        let mut bytes = Message::new(size).0;
        bytes.truncate(bytes.len() - b".\r\n".len());
        bytes.retain(|&byte| byte != b'\r');
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_their_size() {
        let header = NUMBER.len() + FIELDS.len();
        for (size, sent) in [
            (1, header),
            (4096, 4096),
            (4097, 4097),
            (1 << 20, 1 << 20),
            (header + LINE.len() + 1, header + LINE.len()),
            (header + LINE.len() + 2, header + LINE.len() + 2),
        ] {
            let mut message = Message::new(size);
            let bytes = message.numbered(7);
            assert_eq!(bytes.len(), sent + ".\r\n".len(), "{size}");
            assert!(bytes.starts_with(b"Message-ID: <0000000007@"));
            assert!(bytes.ends_with(b"\r\n.\r\n"), "{size}");
        }
    }

    #[test]
    fn who_waited_how_long() {
        let measured = |waits: &[u64]| Measured {
            deliveries: waits.len(),
            took: Duration::from_secs(1),
            waits: waits.iter().copied().map(Duration::from_millis).collect(),
        };
        let hundred: Vec<u64> = (1..=101).collect();
        for (waits, p50, p99) in [
            (&[][..], 0.0, 0.0),
            (&[5], 5.0, 5.0),
            (&hundred, 51.0, 100.0),
        ] {
            let measured = measured(waits);
            assert_eq!((measured.wait(0.50), measured.wait(0.99)), (p50, p99));
        }
    }
}
