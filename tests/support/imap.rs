//! A small IMAP client: enough to see what a reader sees.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use super::PATIENCE;

pub struct Imap {
    stream: BufReader<TcpStream>,
    tag: u32,
}

/// One message as IMAP shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    pub uid: u32,
    pub flags: String,
    pub bytes: Vec<u8>,
}

impl Imap {
    pub fn login(port: u16, user: &str) -> Imap {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut imap = Imap {
            stream: BufReader::new(stream),
            tag: 0,
        };
        imap.line();
        let done = imap.command(&format!("LOGIN {user} pw"));
        assert!(done.last().unwrap().contains(" OK "), "{done:?}");
        imap
    }

    fn line(&mut self) -> String {
        self.try_line().unwrap()
    }

    fn try_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        match self.stream.read_until(b'\n', &mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(String::from_utf8_lossy(&line).trim_end().to_owned()),
        }
    }

    /// What no command answers: IDLE.
    pub fn send_line(&mut self, line: &str) {
        let line = format!("{line}\r\n");
        self.stream.get_mut().write_all(line.as_bytes()).unwrap();
    }

    pub fn read_line(&mut self) -> String {
        self.line()
    }

    /// The untagged lines and the tagged one. Not for answers with literals.
    pub fn command(&mut self, command: &str) -> Vec<String> {
        self.try_command(command).unwrap()
    }

    /// Err: the connection is closed, or nothing comes.
    pub fn try_command(&mut self, command: &str) -> io::Result<Vec<String>> {
        self.tag += 1;
        let tag = format!("a{}", self.tag);
        let command = format!("{tag} {command}\r\n");
        self.stream.get_mut().write_all(command.as_bytes())?;
        let mut lines = Vec::new();
        loop {
            let line = self.try_line()?;
            let done = line.starts_with(&tag);
            lines.push(line);
            if done {
                return Ok(lines);
            }
        }
    }

    /// Until the server has put everything away.
    pub fn logout(mut self) {
        self.command("LOGOUT");
        let _ = self.stream.read_to_end(&mut Vec::new());
    }

    pub fn append(&mut self, mailbox: &str, message: &str) {
        self.tag += 1;
        let tag = format!("a{}", self.tag);
        let size = message.len();
        self.send_line(&format!("{tag} APPEND \"{mailbox}\" {{{size}}}"));
        while !self.line().starts_with('+') {}
        self.send_line(message);
        let done = loop {
            let line = self.line();
            if line.starts_with(&tag) {
                break line;
            }
        };
        assert!(done.contains(" OK "), "{done}");
    }

    /// The names of all mailboxes that LIST shows for this pattern and that can be opened.
    pub fn mailboxes(&mut self, pattern: &str) -> Vec<String> {
        let lines = self.command(&format!("LIST \"\" \"{pattern}\""));
        let lines = lines.iter().filter_map(|it| it.strip_prefix("* LIST "));
        let is_one = |line: &&str| {
            let line = line.to_lowercase();
            !line.contains("\\noselect") && !line.contains("\\nonexistent")
        };
        let names = lines.filter(is_one).map(|line| {
            let name = line.rsplit("\"/\" ").next().unwrap();
            name.trim_matches('"').to_owned()
        });
        // A namespace itself, of which Dovecot does not say that it is none.
        names.filter(|name| name != "mbox").collect()
    }

    /// Opens a mailbox; answers how many messages it has.
    pub fn select(&mut self, mailbox: &str) -> usize {
        let lines = self.command(&format!("SELECT \"{mailbox}\""));
        assert!(
            lines.last().unwrap().contains(" OK "),
            "{mailbox}: {lines:?}"
        );
        let exists = lines.iter().find(|line| line.ends_with(" EXISTS")).unwrap();
        exists.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Every message of the open mailbox.
    pub fn fetch_all(&mut self) -> Vec<Fetched> {
        self.fetch("1:*", "BODY.PEEK[]")
    }

    /// Messages by their UIDs: `17:*`. `what` of each is one literal.
    pub fn fetch(&mut self, uids: &str, what: &str) -> Vec<Fetched> {
        self.tag += 1;
        let tag = format!("a{}", self.tag);
        let command = format!("{tag} UID FETCH {uids} (UID FLAGS {what})\r\n");
        self.stream.get_mut().write_all(command.as_bytes()).unwrap();
        let mut messages = Vec::new();
        loop {
            let line = self.line();
            if line.starts_with(&tag) {
                assert!(line.contains(" OK ") || messages.is_empty(), "{line}");
                return messages;
            }
            let Some(start) = line.rfind('{').filter(|_| line.ends_with('}')) else {
                continue;
            };
            let size: usize = line[start + 1..line.len() - 1].parse().unwrap();
            let mut bytes = vec![0; size];
            self.stream.read_exact(&mut bytes).unwrap();
            let after = |key: &str, end: char| {
                let rest = &line[line.find(key).unwrap() + key.len()..];
                rest[..rest.find(end).unwrap_or(rest.len())].to_owned()
            };
            messages.push(Fetched {
                uid: after("UID ", ' ').parse().unwrap(),
                flags: after("FLAGS (", ')'),
                bytes,
            });
            self.line();
        }
    }
}
