//! A message from a pipe. A first line `From ` is the mbox separator of whoever writes it, not a part of the message.

use std::io::{self, ErrorKind, Read};

use crate::fault::{Code, Fault};
use crate::message::body::{Body, BodyWriter, Spool};
use crate::message::{Address, ReversePath};

/// Bytes read at once: what most messages have, and what a pipe holds where there are more.
const BUFFERS: [usize; 2] = [8 * 1024, 64 * 1024];
/// How much of a `From ` line is looked at; the rest of it is skipped.
const MAX_LINE: usize = 1000;
const FROM: &[u8] = b"From ";

/// What came in.
pub struct Input {
    pub body: Body,
    /// Of the `From ` line, where there was one with an address.
    pub sender: Option<ReversePath>,
}

/// Reads to the end, also when the message is refused: its writer is not to be cut off. `is_mbox`: a `From ` line may
/// come first. `limit`: bytes.
pub fn read(
    source: &mut dyn Read,
    is_mbox: bool,
    spool: &Spool,
    limit: Option<u64>,
) -> Result<Input, Fault> {
    let mut line = FromLine {
        state: if is_mbox { State::Begin } else { State::Passed },
        line: Vec::new(),
    };
    let mut writer = Ok(BodyWriter::new(spool));
    let mut buffer = vec![0; BUFFERS[0]];
    let take = |writer: &mut Result<BodyWriter, Fault>, bytes: &[u8]| {
        let Ok(open) = writer else { return };
        let written = open.write(bytes);
        let too_big = limit.filter(|&limit| open.received() > limit);
        match (written, too_big) {
            (Err(error), _) => *writer = Err(Fault::io("spool the message", &error)),
            (_, Some(limit)) => {
                let why = format!("message_size is {limit}");
                *writer = Err(Fault::new(Code::TooBig, "read the message", why));
            }
            (Ok(()), None) => {}
        }
    };
    loop {
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                line.take(&buffer[..count], |bytes| take(&mut writer, bytes));
                if count == buffer.len() {
                    buffer.resize(BUFFERS[1], 0);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Fault::io("read the message", &error)),
        }
    }
    let rest = line.rest();
    take(&mut writer, &rest);
    let body = writer?
        .finish()
        .map_err(|error: io::Error| Fault::io("spool the message", &error))?;
    Ok(Input {
        body,
        sender: line.sender(),
    })
}

/// Takes the first line off, where it begins with `From ` and is no field `From : a@b`.
struct FromLine {
    state: State,
    /// What is kept of the line, or of what may become one.
    line: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Fewer bytes than `From ` has, all of them alike.
    Begin,
    /// Nothing but blanks behind it.
    Blanks,
    Within,
    Passed,
}

impl FromLine {
    fn take(&mut self, mut bytes: &[u8], mut pass: impl FnMut(&[u8])) {
        if self.state == State::Begin {
            let missing = FROM.len() - self.line.len();
            let (head, rest) = bytes.split_at(missing.min(bytes.len()));
            self.line.extend_from_slice(head);
            bytes = rest;
            if !FROM.starts_with(&self.line) {
                self.state = State::Passed;
                pass(&std::mem::take(&mut self.line));
            } else if self.line.len() == FROM.len() {
                self.state = State::Blanks;
            }
        }
        if self.state == State::Blanks {
            let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
            let end = bytes.iter().position(|byte| !is_blank(byte));
            let (blanks, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            let room = MAX_LINE - self.line.len();
            self.line
                .extend_from_slice(&blanks[..blanks.len().min(room)]);
            bytes = rest;
            self.state = match rest.first() {
                None if self.line.len() < MAX_LINE => State::Blanks,
                Some(b':') if self.line.len() < MAX_LINE => {
                    pass(&std::mem::take(&mut self.line));
                    State::Passed
                }
                _ => State::Within,
            };
        }
        if self.state == State::Within {
            let end = memchr::memchr(b'\n', bytes);
            let (line, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            let room = MAX_LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&line[..line.len().min(room)]);
            bytes = rest;
            if end.is_some() {
                self.state = State::Passed;
            }
        }
        if self.state == State::Passed && !bytes.is_empty() {
            pass(bytes);
        }
    }

    /// The end came before it could be told: these bytes are the message.
    fn rest(&mut self) -> Vec<u8> {
        match self.state {
            State::Begin => std::mem::take(&mut self.line),
            State::Blanks | State::Within | State::Passed => Vec::new(),
        }
    }

    fn sender(&self) -> Option<ReversePath> {
        let line = self.line.strip_prefix(FROM)?;
        let word = line
            .split(|b| b.is_ascii_whitespace())
            .find(|word| !word.is_empty())?;
        match std::str::from_utf8(word).ok()? {
            "MAILER-DAEMON" | "<>" => Some(ReversePath::Null),
            word => Address::parse(word).ok().map(ReversePath::Address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out a byte or some at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn spool() -> Spool {
        Spool::of(vec![std::env::temp_dir()])
    }

    #[test]
    fn from_lines() {
        for (bytes, want, sender) in [
            (
                &b"From a@b Mon\nTo: x\n\ny\n"[..],
                &b"To: x\n\ny\n"[..],
                Some("a@b"),
            ),
            (b"From a@b Mon\r\nTo: x\r\n", b"To: x\n", Some("a@b")),
            (b"From MAILER-DAEMON Mon\nx", b"x", Some("")),
            (b"From a@b", b"", Some("a@b")),
            (b"From \nx", b"x", None),
            (b"From:a@b\nx", b"From:a@b\nx", None),
            (b"From : a@b\nx", b"From : a@b\nx", None),
            (b"From  \t :a@b\nx", b"From  \t :a@b\nx", None),
            (b"From  a@b:c Mon\nx", b"x", None),
            (b">From a\nx", b">From a\nx", None),
            (b"Fro", b"Fro", None),
            (b"", b"", None),
            (b"x\nFrom a@b\n", b"x\nFrom a@b\n", None),
        ] {
            for cut in [1, 2, 5, 1000] {
                let input = read(&mut Slow(bytes, cut), true, &spool(), None).unwrap();
                assert_eq!(input.body.head(), want, "{bytes:?} {cut}");
                let got = input.sender.map(|sender| sender.to_string());
                assert_eq!(got.as_deref(), sender, "{bytes:?}");
            }
            let whole = read(&mut Slow(bytes, 3), false, &spool(), None).unwrap();
            assert_eq!(
                whole.body.size() as usize,
                bytes.len() - bytes.iter().filter(|b| **b == b'\r').count()
            );
        }
    }

    #[test]
    fn a_long_from_line_costs_no_memory() {
        let bytes = [b"From ".to_vec(), vec![b'x'; 3_000_000], b"\nbody".to_vec()].concat();
        let input = read(&mut &bytes[..], true, &spool(), Some(10)).unwrap();
        assert_eq!(input.body.head(), b"body");
        assert!(input.sender.is_none());
    }

    #[test]
    fn too_big_is_read_to_its_end() {
        let mut source = Slow(&[b'x'; 100_000], 999);
        let fault = read(&mut source, true, &spool(), Some(50_000))
            .err()
            .unwrap();
        assert_eq!(fault.code, Code::TooBig);
        assert!(source.0.is_empty());
    }
}
