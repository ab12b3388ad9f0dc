//! Our ways in, one delivery at a time, so that strace can meddle with each of its calls.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::places::{self, Place};
use super::{
    MAIL, PATIENCE, Server, Store, as_user, program, run_with_input, signal, stuffed, threads_of,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    Lda,
    /// The server, for one client.
    Lmtp,
    /// A server that runs before and after: [`deliver_at`].
    Running,
}

pub const AGENTS: [Agent; 2] = [Agent::Lda, Agent::Lmtp];

/// A delivery that is over.
#[derive(Debug)]
pub struct Delivered {
    pub agent: Agent,
    pub output: Output,
    recipients: usize,
    took: Duration,
}

impl Agent {
    /// Delivers to a place, under strace with these arguments.
    pub fn deliver(
        self,
        store: &Store,
        place: &Place,
        message: &[u8],
        strace: &[&str],
    ) -> Delivered {
        let address = place.address();
        let arguments = place.arguments();
        self.run(store, &[&address], &arguments, message, strace)
    }

    /// Delivers to several addresses.
    pub fn deliver_to(
        self,
        store: &Store,
        addresses: &[&str],
        message: &[u8],
        strace: &[&str],
    ) -> Delivered {
        self.run(store, addresses, addresses, message, strace)
    }

    fn run(
        self,
        store: &Store,
        addresses: &[&str],
        arguments: &[&str],
        message: &[u8],
        strace: &[&str],
    ) -> Delivered {
        let (mut ours, input) = match self {
            Agent::Lda => (program("postroom-lda"), message.to_vec()),
            Agent::Lmtp => (program("postroom-lmtpd"), dialogue(addresses, message)),
            Agent::Running => unreachable!("it is not started for one delivery"),
        };
        ours.arg("-c").arg(store.path("postroom.toml"));
        match self {
            Agent::Lda => ours.args(arguments),
            _ => ours.arg("--stdio"),
        };
        // A hang is an end, and one that no delivery has.
        let mut command = Command::new("timeout");
        let patience = PATIENCE.as_secs().to_string();
        command.args(["-s", "KILL", &patience, "strace", "-f", "-qqq"]);
        command.args(strace).arg("--");
        // Only root sees what the descriptors are of a process that keeps itself private; its calls are counted from there on.
        let sees_descriptors = strace.contains(&"-y");
        if sees_descriptors {
            command.args(AS_MAIL);
        }
        command.arg(ours.get_program()).args(ours.get_args());
        for (key, value) in ours.get_envs() {
            command.env(key, value.unwrap());
        }
        if !sees_descriptors {
            as_user(&mut command, MAIL, MAIL, &[100]);
        }
        let began = Instant::now();
        let output = run_with_input(&mut command, &input);
        Delivered {
            agent: self,
            output,
            recipients: addresses.len(),
            took: began.elapsed(),
        }
    }
}

/// Delivers by a server that runs, to whose threads strace goes with these arguments meanwhile.
pub fn deliver_at(
    server: &Server,
    addresses: &[&str],
    message: &[u8],
    strace: &[&str],
) -> Delivered {
    let tracer = Tracer::of(server, strace);
    let began = Instant::now();
    let mut said = Vec::new();
    // An end of the connection is an answer.
    let _ = talk(server, addresses, message, &mut said);
    let took = began.elapsed();
    let output = Output {
        stdout: said,
        ..tracer.leave()
    };
    Delivered {
        agent: Agent::Running,
        output,
        recipients: addresses.len(),
        took,
    }
}

/// A client that waits for each reply, as MTAs do; what is said to it goes to `said`.
fn talk(server: &Server, addresses: &[&str], message: &[u8], said: &mut Vec<u8>) -> io::Result<()> {
    let stream = UnixStream::connect(&server.socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream);
    let mut reply = |lines: &mut BufReader<UnixStream>| loop {
        let start = said.len();
        match lines.read_until(b'\n', said)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ if said.get(start + 3) != Some(&b'-') => return Ok(said[start..].to_vec()),
            _ => {}
        }
    };
    reply(&mut lines)?;
    let mut accepted = 0;
    let recipients = addresses.iter().map(|it| format!("RCPT TO:<{it}>"));
    let first = ["LHLO c.test", "MAIL FROM:<s@else.test>"].map(str::to_owned);
    for line in first.into_iter().chain(recipients) {
        lines
            .get_mut()
            .write_all(format!("{line}\r\n").as_bytes())?;
        let is_taken = reply(&mut lines)?.starts_with(b"2");
        accepted += usize::from(is_taken && line.starts_with("RCPT"));
    }
    lines.get_mut().write_all(b"DATA\r\n")?;
    if reply(&mut lines)?.starts_with(b"354 ") {
        lines.get_mut().write_all(&stuffed(message))?;
        for _ in 0..accepted {
            reply(&mut lines)?;
        }
    }
    lines.get_mut().write_all(b"QUIT\r\n")?;
    reply(&mut lines).map(drop)
}

/// strace at all threads of a server.
pub struct Tracer(Child);

impl Tracer {
    pub fn of(server: &Server, arguments: &[&str]) -> Tracer {
        let (pid, began) = (server.pid(), Instant::now());
        loop {
            let mut command = Command::new("strace");
            command
                .args(["-f", "-qqq"])
                .args(arguments)
                .args(["-p", &pid.to_string()]);
            let piped = command.stdout(Stdio::null()).stderr(Stdio::piped());
            let tracer = Tracer(piped.spawn().unwrap());
            if tracer.has_all(pid) {
                return tracer;
            }
            // A thread that was made just then is none of its.
            assert!(began.elapsed() < PATIENCE, "strace is not at each thread");
            tracer.leave();
        }
    }

    /// Whether it is at each thread soon.
    fn has_all(&self, pid: u32) -> bool {
        let is_traced = |thread: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"));
            // One that has just ended is none.
            status.is_ok_and(|it| it.contains(&format!("TracerPid:\t{}\n", self.0.id())))
        };
        let began = Instant::now();
        while !threads_of(pid).into_iter().all(is_traced) {
            if began.elapsed() > Duration::from_secs(1) {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    pub fn leave(mut self) -> Output {
        signal(self.0.id(), "INT");
        let began = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            if began.elapsed() > Duration::from_millis(500) {
                // It waits for a thread of one that was killed, which never comes.
                self.0.kill().unwrap();
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.0.wait_with_output().unwrap()
    }
}

/// Runs a program as the mail user, where strace is root's.
pub const AS_MAIL: [&str; 5] = ["setpriv", "--reuid=8", "--regid=8", "--groups=100", "--"];

impl Delivered {
    /// Whether the recipient with this number has been told that he has it.
    pub fn is_stored(&self, recipient: usize) -> bool {
        match self.agent {
            Agent::Lda => self.output.status.code() == Some(0),
            _ => self
                .reply(recipient)
                .is_some_and(|it| it.starts_with("250 ")),
        }
    }

    /// The MTA tries again, and tells nobody: 75, or a 4xx, or no answer at all.
    pub fn is_deferred(&self, recipient: usize) -> bool {
        match self.agent {
            Agent::Lda => self.output.status.code() == Some(75),
            _ => self.reply(recipient).is_none_or(|it| it.starts_with('4')),
        }
    }

    /// Nothing was answered, behind which something may be stored.
    pub fn is_unheard(&self, recipient: usize) -> bool {
        self.agent != Agent::Lda && self.reply(recipient).is_none()
    }

    /// It did not end by itself.
    pub fn hangs(&self) -> bool {
        self.took >= PATIENCE
    }

    /// The last reply for a recipient: behind the message, or to his RCPT. None: the connection was closed before.
    fn reply(&self, recipient: usize) -> Option<&str> {
        let said = str::from_utf8(&self.output.stdout).unwrap_or_default();
        let mut replies = said
            .lines()
            .filter(|line| line.as_bytes().get(3) != Some(&b'-'));
        // The greeting, and those to LHLO and MAIL.
        if !(0..3).all(|_| replies.next().is_some_and(|it| it.starts_with('2'))) {
            return Some("4").filter(|_| said.lines().count() > 0);
        }
        let to_rcpt: Vec<&str> = replies.by_ref().take(self.recipients).collect();
        let of_his = *to_rcpt.get(recipient)?;
        if !of_his.starts_with('2') {
            return Some(of_his);
        }
        let before = to_rcpt[..recipient].iter().filter(|it| it.starts_with('2'));
        match replies.next()? {
            go if go.starts_with("354 ") => replies.nth(before.count()),
            refused => Some(refused),
        }
    }
}

/// What a client sends for one message.
pub fn dialogue(recipients: &[&str], message: &[u8]) -> Vec<u8> {
    let recipients: String = recipients
        .iter()
        .map(|it| format!("RCPT TO:<{it}>\r\n"))
        .collect();
    let head = format!("LHLO c.test\r\nMAIL FROM:<s@else.test>\r\n{recipients}DATA\r\n");
    [head.as_bytes(), &stuffed(message), b"QUIT\r\n"].concat()
}

/// A message for three users at once, each in his INBOX.
pub const THREE: Place = Place {
    kind: "three",
    mailbox: "INBOX",
    path: places::INBOX.path,
};
pub const USERS: [&str; 3] = ["alice", "bob", "carol"];
