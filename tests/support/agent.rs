//! Our two ways in, one delivery at a time, so that strace can meddle with each of its calls.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use super::places::{self, Place};
use super::{MAIL, PATIENCE, Store, as_user, program, run_with_input, stuffed};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    Lda,
    /// The server, for one client.
    Lmtp,
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
        };
        ours.arg("-c").arg(store.path("postroom.toml"));
        match self {
            Agent::Lda => ours.args(arguments),
            Agent::Lmtp => ours.arg("--stdio"),
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

/// Runs a program as the mail user, where strace is root's.
pub const AS_MAIL: [&str; 5] = ["setpriv", "--reuid=8", "--regid=8", "--groups=100", "--"];

impl Delivered {
    /// Whether the recipient with this number has been told that he has it.
    pub fn is_stored(&self, recipient: usize) -> bool {
        match self.agent {
            Agent::Lda => self.output.status.code() == Some(0),
            Agent::Lmtp => self
                .reply(recipient)
                .is_some_and(|it| it.starts_with("250 ")),
        }
    }

    /// The MTA tries again, and tells nobody: 75, or a 4xx, or no answer at all.
    pub fn is_deferred(&self, recipient: usize) -> bool {
        match self.agent {
            Agent::Lda => self.output.status.code() == Some(75),
            Agent::Lmtp => self.reply(recipient).is_none_or(|it| it.starts_with('4')),
        }
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
