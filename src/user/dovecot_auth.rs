//! Dovecot's own userdb, over its socket `auth-userdb`: MySQL, LDAP, Lua and whatever else it has.
//!
//! Lines of fields with tabs between them; the protocol is Dovecot's "Authentication Protocol for masters", version 1.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Answer, Unavailable};

/// How long an answer may take: its own databases may be slow.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest line of an answer, bytes: Dovecot's clients take no longer ones.
const MAX_LINE: u64 = 8192;
/// The longest line that Dovecot takes, bytes.
const MAX_QUESTION: usize = 1024;
/// Connections that are kept.
const IDLE: usize = 16;

/// `[[userdb]] dovecot = { socket = "/run/dovecot/auth-userdb" }`
#[derive(Debug)]
pub struct DovecotAuth {
    socket: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

#[derive(Debug)]
struct Connection {
    stream: BufReader<UnixStream>,
    /// Of the last question.
    id: u32,
    /// Whose it is: a forked child must not talk on its parent's connection.
    process: u32,
}

/// An answer, or a part of one.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// His canonical name, and fields.
    User(Vec<String>),
    NotFound,
    /// With its reason.
    Fail(String),
    /// One of the names that were asked for.
    Listed(String),
    /// All names have come.
    Done {
        is_complete: bool,
    },
}

impl DovecotAuth {
    /// `socket`: the path of `auth-userdb`, which is connected to when somebody is asked for.
    pub fn new(socket: PathBuf) -> DovecotAuth {
        DovecotAuth {
            socket,
            idle: Mutex::default(),
        }
    }

    /// As [`Answer::origin`] has it.
    pub fn name(&self) -> String {
        format!("dovecot {}", self.socket.display())
    }

    /// `USER` of Dovecot's auth protocol. FAIL is "cannot tell".
    pub fn find(&self, name: &str) -> Result<Option<Answer>, Unavailable> {
        let reply = self.ask(|connection| connection.user(name));
        match reply.map_err(|error| self.unavailable(error.to_string()))? {
            Reply::NotFound => Ok(None),
            Reply::Fail(reason) => {
                Err(self.unavailable(format!("it failed for {name:?}: {reason}")))
            }
            Reply::User(fields) => self.answer(name, fields).map(Some),
            other => Err(self.unavailable(format!("it answers another question: {other:?}"))),
        }
    }

    fn answer(&self, name: &str, fields: Vec<String>) -> Result<Answer, Unavailable> {
        let mut fields = fields.into_iter();
        // Its name for him counts from here on.
        let canonical = fields.next().filter(|it| !it.is_empty());
        let canonical =
            canonical.ok_or_else(|| self.unavailable(format!("no name for {name:?}")))?;
        let mut answer = Answer::new(&canonical, self.name());
        for field in fields {
            let (key, value) = field.split_once('=').unwrap_or((&field, "yes"));
            let set = answer.set(key, value);
            set.map_err(|why| self.unavailable(why))?;
        }
        Ok(answer)
    }

    /// `LIST` of the protocol.
    pub fn names(&self) -> Result<Vec<String>, Unavailable> {
        let names = self.ask(Connection::names);
        names.map_err(|error| self.unavailable(error.to_string()))
    }

    /// A connection that broke while it was idle costs a second attempt, not an answer.
    fn ask<T>(&self, question: impl Fn(&mut Connection) -> io::Result<T>) -> io::Result<T> {
        let idle = self
            .idle()
            .pop()
            .filter(|it| it.process == std::process::id());
        if let Some(mut connection) = idle {
            match question(&mut connection) {
                Ok(reply) => {
                    self.keep(connection);
                    return Ok(reply);
                }
                Err(silent) if silent.kind() == io::ErrorKind::TimedOut => return Err(silent),
                Err(_) => {}
            }
        }
        let mut connection = Connection::open(&self.socket)?;
        let reply = question(&mut connection)?;
        self.keep(connection);
        Ok(reply)
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle();
        if idle.len() < IDLE {
            idle.push(connection);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unavailable(&self, why: String) -> Unavailable {
        Unavailable {
            userdb: self.name(),
            why,
        }
    }
}

impl Connection {
    fn open(socket: &Path) -> io::Result<Connection> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Connection {
            stream: BufReader::new(stream),
            id: 0,
            process: std::process::id(),
        };
        connection.say("VERSION\t1\t0\n")?;
        loop {
            let line = connection.line()?;
            match line.split('\t').collect::<Vec<_>>()[..] {
                ["VERSION", "1", ..] => {}
                ["VERSION", other, ..] => {
                    return Err(odd(format!("version {other} of its protocol is not ours")));
                }
                ["SPID", ..] => return Ok(connection),
                ["MECH" | "COOKIE" | "CUID", ..] => {
                    let why = "it is Dovecot's socket for logins: auth-userdb is the one";
                    return Err(odd(why.into()));
                }
                _ => return Err(odd(format!("it greets with {line:?}"))),
            }
        }
    }

    fn user(&mut self, name: &str) -> io::Result<Reply> {
        let id = self.next();
        let question = format!("USER\t{id}\t{}\tservice=lmtp\n", escaped(name));
        if question.len() > MAX_QUESTION {
            // Nobody has such a name: Dovecot reads no such line.
            return Ok(Reply::NotFound);
        }
        self.say(&question)?;
        self.reply(id)
    }

    fn names(&mut self) -> io::Result<Vec<String>> {
        let id = self.next();
        self.say(&format!("LIST\t{id}\tservice=lmtp\n"))?;
        let mut names = Vec::new();
        loop {
            match self.reply(id)? {
                Reply::Listed(name) => names.push(name),
                Reply::Done { is_complete: true } => return Ok(names),
                Reply::Done { is_complete: false } => {
                    return Err(io::Error::other("it cannot list its users, or not to us"));
                }
                other => return Err(odd(format!("it answers another question: {other:?}"))),
            }
        }
    }

    fn next(&mut self) -> u32 {
        self.id = self.id.wrapping_add(1);
        self.id
    }

    fn reply(&mut self, id: u32) -> io::Result<Reply> {
        let line = self.line()?;
        parse(&line, id).ok_or_else(|| odd(format!("it answers {line:?}")))
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(line.as_bytes())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let read = (&mut self.stream)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "it says nothing"),
            _ => error,
        })?;
        if line.pop() != Some(b'\n') {
            let why = "it ended, or said too much at once";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        String::from_utf8(line).map_err(|_| odd("it answers what is no text".into()))
    }
}

/// One line. None: no answer to the question of this number.
pub fn parse(line: &str, asked: u32) -> Option<Reply> {
    let mut fields = line.split('\t');
    let (verb, id) = (fields.next()?, fields.next()?);
    if id.parse() != Ok(asked) {
        return None;
    }
    let fields: Vec<String> = fields.map(plain).collect::<Option<_>>()?;
    Some(match verb {
        "USER" => Reply::User(fields),
        "NOTFOUND" => Reply::NotFound,
        "FAIL" => {
            let reason = fields.iter().find_map(|it| it.strip_prefix("reason="));
            Reply::Fail(reason.unwrap_or("its log says why").to_owned())
        }
        "LIST" => Reply::Listed(fields.into_iter().next()?),
        "DONE" => Reply::Done {
            is_complete: !fields.iter().any(|it| it == "fail"),
        },
        _ => return None,
    })
}

/// Dovecot's escapes: \001 and a letter.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter {
            '\0' => out.push_str("\x010"),
            '\x01' => out.push_str("\x011"),
            '\t' => out.push_str("\x01t"),
            '\n' => out.push_str("\x01n"),
            '\r' => out.push_str("\x01r"),
            letter => out.push(letter),
        }
    }
    out
}

fn plain(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        out.push(match letter {
            '\x01' => match letters.next()? {
                '0' => '\0',
                '1' => '\x01',
                't' => '\t',
                'n' => '\n',
                'r' => '\r',
                _ => return None,
            },
            letter => letter,
        });
    }
    Some(out)
}

fn odd(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines() {
        let user =
            |fields: &[&str]| Some(Reply::User(fields.iter().map(|it| (*it).into()).collect()));
        for (line, want) in [
            (
                "USER\t7\tbob\tuid=5\thome=/h",
                user(&["bob", "uid=5", "home=/h"]),
            ),
            ("USER\t7\tb\x01tx\tnologin", user(&["b\tx", "nologin"])),
            ("NOTFOUND\t7", Some(Reply::NotFound)),
            ("FAIL\t7\treason=no", Some(Reply::Fail("no".into()))),
            ("FAIL\t7", Some(Reply::Fail("its log says why".into()))),
            ("LIST\t7\tbob", Some(Reply::Listed("bob".into()))),
            ("DONE\t7\t", Some(Reply::Done { is_complete: true })),
            ("DONE\t7\tfail", Some(Reply::Done { is_complete: false })),
            ("USER\t8\tbob", None),
            ("USER\t7\tb\x01x", None),
            ("USER", None),
            ("WHAT\t7", None),
            ("NOTFOUND\t4294967303", None),
            ("", None),
        ] {
            assert_eq!(parse(line, 7), want, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_line(line in ".{0,60}", id in 0u32..9) {
            let _ = parse(&line, id);
        }

        #[test]
        fn names_come_back(name in ".{0,30}") {
            let question = escaped(&name);
            prop_assert!(!question.contains(['\t', '\n', '\r', '\0']));
            prop_assert_eq!(plain(&question), Some(name));
        }
    }
}
