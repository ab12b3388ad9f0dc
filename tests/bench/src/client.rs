//! One LMTP connection. As Postfix does: MAIL, RCPT and DATA in one packet, the body when DATA is answered.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::failed;

/// A server that is silent for this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the server listens: `unix:PATH` or `HOST:PORT`.
#[derive(Debug, Clone)]
pub enum Target {
    Unix(PathBuf),
    Tcp(String),
    /// An MTA: one reply to the message, whoever gets it.
    Smtp(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Target::Unix(path.into())),
            None if text.contains(':') => Ok(Target::Tcp(text.to_owned())),
            None => Err(format!("{text:?} is neither unix:PATH nor HOST:PORT")),
        }
    }
}

trait Wire: Read + Write + Send {}
impl Wire for UnixStream {}
impl Wire for TcpStream {}

pub struct Client {
    wire: BufReader<Box<dyn Wire>>,
    is_smtp: bool,
    commands: String,
    line: String,
}

impl Client {
    /// Connects and says LHLO.
    pub fn connect(target: &Target) -> io::Result<Client> {
        let wire: Box<dyn Wire> = match target {
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(failed(path.display()))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            Target::Tcp(address) | Target::Smtp(address) => {
                let stream = TcpStream::connect(address).map_err(failed(address))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        let mut client = Client {
            wire: BufReader::new(wire),
            is_smtp: matches!(target, Target::Smtp(_)),
            commands: String::new(),
            line: String::new(),
        };
        client.expect("220")?;
        let hello: &[u8] = match target {
            Target::Smtp(_) => b"EHLO bench.test\r\n",
            _ => b"LHLO bench.test\r\n",
        };
        client.wire.get_mut().write_all(hello)?;
        client.expect("250")?;
        Ok(client)
    }

    /// Sends one message, its final dot included. Answers the time from that dot to the last reply.
    pub fn deliver(
        &mut self,
        recipients: impl Iterator<Item = usize>,
        detail: &str,
        message: &[u8],
    ) -> io::Result<Duration> {
        self.commands.clear();
        self.commands.push_str("MAIL FROM:<sender@bench.test>\r\n");
        let mut count = 0;
        for user in recipients {
            // Writing into a String cannot fail.
            let _ = write!(self.commands, "RCPT TO:<u{user}{detail}@bench.test>\r\n");
            count += 1;
        }
        self.commands.push_str("DATA\r\n");
        self.wire.get_mut().write_all(self.commands.as_bytes())?;
        for _ in 0..=count {
            self.expect("250")?;
        }
        self.expect("354")?;
        self.wire.get_mut().write_all(message)?;
        let dot = Instant::now();
        for _ in 0..if self.is_smtp { 1 } else { count } {
            self.expect("250")?;
        }
        Ok(dot.elapsed())
    }

    pub fn quit(mut self) -> io::Result<()> {
        self.wire.get_mut().write_all(b"QUIT\r\n")?;
        self.expect("221")
    }

    /// The next reply, all its lines.
    fn expect(&mut self, code: &str) -> io::Result<()> {
        loop {
            self.line.clear();
            if self.wire.read_line(&mut self.line)? == 0 {
                return Err(io::Error::other("the server closed the connection"));
            }
            if !self.line.starts_with(code) {
                let line = self.line.trim_end();
                return Err(io::Error::other(format!("{code} expected: {line}")));
            }
            if self.line.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }
}
