//! What a message looks like in an mbox: its header without what readers would take for their own notes, then those notes,
//! then the body, in which no line begins like a message (Dovecot's `mbox-save.c`; quoting: mboxrd).
//!
//! One pass over the message, whatever its size; what is kept meanwhile is the beginning of a line.

use std::io::{self, Write};

use memchr::memchr;

use crate::message::{Flags, Keywords};

const FROM: &[u8] = b"From ";
/// Fields that only readers write: one from outside would be believed.
const NOTES: [&str; 8] = [
    "Content-Length",
    "Status",
    "X-Delivery-ID",
    "X-IMAP",
    "X-IMAPbase",
    "X-Keywords",
    "X-Status",
    "X-UID",
];
/// Longer than the longest of [`NOTES`]; what is a note so far, with blanks up to here, is one.
const MAX_NAME: usize = 64;
/// Blanks behind the keywords, as many as Dovecot leaves.
const ROOM: usize = 71;

/// Whether a line of the body that begins like a message gets a `>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quoting {
    /// `From `, `>From `, … get one more: it can be undone.
    Mboxrd,
    /// The body as it is: readers that know no Content-Length split it.
    None,
}

impl Quoting {
    /// As the configuration spells them (`mbox_quoting`); `mboxrd` where it says nothing.
    pub const WORDS: [(&'static str, Quoting); 2] =
        [("mboxrd", Quoting::Mboxrd), ("none", Quoting::None)];
}

/// What readers note about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notes<'a> {
    pub flags: Flags,
    /// None: Dovecot gives it.
    pub uid: Option<Uid<'a>>,
    /// Bytes of the body as it stands in the file.
    pub content_length: u64,
}

/// The UID of a message, and what can be noted only with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uid<'a> {
    pub uid: u32,
    /// UIDVALIDITY, in the first message of a file.
    pub validity: Option<u32>,
    pub keywords: &'a Keywords,
}

impl Notes<'_> {
    /// The fields, in Dovecot's order. A message without a UID has its length, and flags if it has any: Dovecot adds the rest.
    fn fields(&self) -> String {
        // Maildir has other letters for the same flags.
        let has = |letter: char| self.flags.letters().contains(letter);
        let letters = [('R', 'A'), ('F', 'F'), ('D', 'T'), ('T', 'D')];
        let letters = letters.iter().filter(|(maildir, _)| has(*maildir));
        let letters: String = letters.map(|(_, letter)| *letter).collect();
        let mut fields = String::new();
        if let Some(Uid { uid, validity, .. }) = self.uid {
            if let Some(validity) = validity {
                fields.push_str(&format!("X-IMAPbase: {validity} {uid:010}\n"));
            }
            fields.push_str(&format!("X-UID: {uid}\n"));
        }
        if self.uid.is_some() || has('S') {
            fields.push_str(&format!("Status: {}\n", if has('S') { "R" } else { "" }));
        }
        if !letters.is_empty() {
            fields.push_str(&format!("X-Status: {letters}\n"));
        }
        if let Some(Uid { keywords, .. }) = self.uid {
            // Room to write flags into, without moving what follows.
            let room = " ".repeat(ROOM);
            fields.push_str(&format!("X-Keywords: {keywords}{room}\n"));
        }
        fields.push_str(&format!("Content-Length: {}\n", self.content_length));
        fields
    }
}

/// Takes a message piece by piece, and writes what stands in the file.
pub struct Text<'a, W> {
    out: W,
    quoting: Quoting,
    notes: Notes<'a>,
    state: State,
    /// The beginning of a line that is not yet told.
    held: Vec<u8>,
    /// Bytes of the body that were written.
    body: u64,
    ends_a_line: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the beginning of a line of the header; whether what folds the one before it is kept.
    Name {
        is_kept: bool,
    },
    /// Within a line of the header.
    Line {
        is_kept: bool,
    },
    /// At the beginning of a line of the body, behind any number of `>`.
    Start,
    Body,
}

impl<'a, W: Write> Text<'a, W> {
    /// `out` gets no line `From `: that is the caller's. `notes` hold the length that [`Text::finish`] answers: each text is made twice.
    pub fn new(out: W, quoting: Quoting, notes: Notes<'a>) -> Text<'a, W> {
        Text {
            out,
            quoting,
            notes,
            state: State::Name { is_kept: true },
            held: Vec::new(),
            body: 0,
            ends_a_line: true,
        }
    }

    /// More of the message, cut anywhere.
    pub fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Name { is_kept } => self.name(bytes, is_kept)?,
                State::Line { is_kept } => self.line(bytes, is_kept)?,
                State::Start => self.start(bytes)?,
                State::Body => self.body(bytes)?,
            };
        }
        Ok(())
    }

    /// The end of the message: the body ends a line, and an empty one divides it from what comes. Answers the length of the
    /// body.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        match self.state {
            // The rest of an empty line, as anywhere else.
            State::Name { .. } if self.held == b"\r" => self.held.clear(),
            State::Name { is_kept } if !self.held.is_empty() => {
                self.state = State::Line {
                    is_kept: self.is_kept(is_kept),
                };
                self.pass_held(self.is_kept(is_kept))?;
            }
            State::Start => {
                let held = std::mem::take(&mut self.held);
                self.write_body(&held)?;
            }
            State::Name { .. } | State::Line { .. } | State::Body => {}
        }
        match self.state {
            State::Line { is_kept } => {
                if is_kept {
                    self.out.write_all(b"\n")?;
                }
                self.end_of_header()?;
            }
            State::Name { .. } => self.end_of_header()?,
            State::Start | State::Body if !self.ends_a_line => self.write_body(b"\n")?,
            State::Start | State::Body => {}
        }
        self.out.write_all(b"\n")?;
        Ok((self.out, self.body))
    }

    /// Holds the beginning of a line until its field is known.
    fn name<'b>(&mut self, bytes: &'b [u8], is_kept: bool) -> io::Result<&'b [u8]> {
        let room = MAX_NAME - self.held.len();
        let looked_at = &bytes[..bytes.len().min(room)];
        let end = looked_at
            .iter()
            .position(|byte| matches!(byte, b':' | b'\n'));
        let taken = end.map_or(looked_at.len(), |end| end + 1);
        self.held.extend_from_slice(&bytes[..taken]);
        // Dovecot strips a CR before it looks for the empty line.
        if self.held == b"\n" || self.held == b"\r\n" {
            self.held.clear();
            self.end_of_header()?;
            self.state = State::Start;
            return Ok(&bytes[taken..]);
        }
        if end.is_none() && self.held.len() < MAX_NAME {
            return Ok(&[]);
        }
        let is_kept = self.is_kept(is_kept);
        let is_whole = self.held.ends_with(b"\n");
        self.pass_held(is_kept)?;
        self.state = match is_whole {
            true => State::Name { is_kept },
            false => State::Line { is_kept },
        };
        Ok(&bytes[taken..])
    }

    /// Whether the line that begins with what is held stays. `before`: whether the one before it does.
    fn is_kept(&self, before: bool) -> bool {
        if matches!(self.held.first(), Some(b' ' | b'\t')) {
            return before;
        }
        // As a C program reads it: up to a NUL.
        let name = self.held.split(|&byte| matches!(byte, b':' | 0)).next();
        let name = name.unwrap_or_default().trim_ascii_end();
        // A colon, or so many blanks that it may still come.
        let is_field = self.held.contains(&b':') || self.held.len() >= MAX_NAME;
        let is_note = is_field
            && NOTES
                .iter()
                .any(|note| name.eq_ignore_ascii_case(note.as_bytes()));
        !is_note && !self.held.starts_with(FROM)
    }

    fn pass_held(&mut self, is_kept: bool) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        match is_kept {
            true => self.out.write_all(&held),
            false => Ok(()),
        }
    }

    fn line<'b>(&mut self, bytes: &'b [u8], is_kept: bool) -> io::Result<&'b [u8]> {
        let end = memchr(b'\n', bytes).map(|end| end + 1);
        let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        if is_kept {
            self.out.write_all(line)?;
        }
        if end.is_some() {
            self.state = State::Name { is_kept };
        }
        Ok(rest)
    }

    fn end_of_header(&mut self) -> io::Result<()> {
        self.out.write_all(self.notes.fields().as_bytes())?;
        self.out.write_all(b"\n")
    }

    fn start<'b>(&mut self, bytes: &'b [u8]) -> io::Result<&'b [u8]> {
        if self.quoting == Quoting::None {
            self.state = State::Body;
            return Ok(bytes);
        }
        if self.held.is_empty() {
            let marks = bytes.iter().position(|&byte| byte != b'>');
            let (marks, rest) = bytes.split_at(marks.unwrap_or(bytes.len()));
            if !marks.is_empty() {
                self.write_body(marks)?;
                return Ok(rest);
            }
        }
        let missing = FROM.len() - self.held.len();
        let (head, rest) = bytes.split_at(missing.min(bytes.len()));
        let alike = head.iter().zip(&FROM[self.held.len()..]);
        let alike = alike.take_while(|(one, other)| one == other).count();
        self.held.extend_from_slice(&head[..alike]);
        if alike == head.len() && self.held.len() < FROM.len() {
            return Ok(rest);
        }
        if self.held.len() == FROM.len() {
            self.write_body(b">")?;
        }
        let held = std::mem::take(&mut self.held);
        self.write_body(&held)?;
        self.state = State::Body;
        Ok(&bytes[alike..])
    }

    fn body<'b>(&mut self, bytes: &'b [u8]) -> io::Result<&'b [u8]> {
        let end = match self.quoting {
            Quoting::Mboxrd => memchr(b'\n', bytes).map(|end| end + 1),
            Quoting::None => None,
        };
        let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        self.write_body(line)?;
        if end.is_some() {
            self.state = State::Start;
        }
        Ok(rest)
    }

    fn write_body(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(last) = bytes.last() {
            self.ends_a_line = *last == b'\n';
        }
        self.body += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(message: &[u8], quoting: Quoting, cut: usize) -> Vec<u8> {
        let notes = Notes {
            flags: Flags::default(),
            uid: None,
            content_length: 0,
        };
        let length = {
            let mut text = Text::new(io::sink(), quoting, notes);
            message.chunks(cut).for_each(|it| text.take(it).unwrap());
            text.finish().unwrap().1
        };
        let notes = Notes {
            content_length: length,
            ..notes
        };
        let mut text = Text::new(Vec::new(), quoting, notes);
        message.chunks(cut).for_each(|it| text.take(it).unwrap());
        text.finish().unwrap().0
    }

    #[test]
    fn messages() {
        #[rustfmt::skip]
        let cases: [(&str, &str); 13] = [
            ("A: b\n\nx\n", "A: b\nContent-Length: 2\n\nx\n\n"),
            ("A: b\n\nx", "A: b\nContent-Length: 2\n\nx\n\n"),
            ("A: b\n\n", "A: b\nContent-Length: 0\n\n\n"),
            ("A: b\n", "A: b\nContent-Length: 0\n\n\n"),
            ("A: b", "A: b\nContent-Length: 0\n\n\n"),
            ("A: b\n\r", "A: b\nContent-Length: 0\n\n\n"),
            ("", "Content-Length: 0\n\n\n"),
            ("\nx\n", "Content-Length: 2\n\nx\n\n"),
            ("Status: RO\nX-Status : A\nx-uid:\n 7\n\t8\nA: b\n c\nFrom x\n>From y\n\n\n",
             "A: b\n c\n>From y\nContent-Length: 1\n\n\n\n"),
            ("A: b\n\nFrom x\n>From y\n>>From z\n Fromage\nFrom", "A: b\nContent-Length: 50\n\n>From x\n>>From y\n>>>From z\n Fromage\nFrom\n\n"),
            ("A: b\n\n>", "A: b\nContent-Length: 2\n\n>\n\n"),
            ("Status", "Status\nContent-Length: 0\n\n\n"),
            ("Content-Length-X: 7\nX-IMAPbase: 1 2\n\n", "Content-Length-X: 7\nContent-Length: 0\n\n\n"),
        ];
        for (message, want) in cases {
            for cut in [1, 2, 3, 1000] {
                let got = text(message.as_bytes(), Quoting::Mboxrd, cut);
                let got = String::from_utf8(got).unwrap();
                let want = match want.contains("Content-Length: 50") {
                    true => want.replace(
                        "50",
                        &(want.split("\n\n").nth(1).unwrap().len() + 1).to_string(),
                    ),
                    false => want.to_owned(),
                };
                assert_eq!(got, want, "{message:?} {cut}");
            }
        }
        let same = text(b"A: b\n\nFrom x\n>From y\n", Quoting::None, 3);
        assert!(same.ends_with(b"\n\nFrom x\n>From y\n\n"));
    }

    /// What readers take for their own notes, however it is written, and the end of a header as they see it.
    #[test]
    fn notes_in_disguise() {
        let blanks = " ".repeat(200);
        for (header, left) in [
            (format!("Status{blanks}: RO\n"), ""),
            (format!("X-IMAPbase{}: 7 4294967290\n", "\t".repeat(58)), ""),
            (format!("Content-Length{blanks}: 5\n folded\n"), ""),
            ("Status\0: RO\nX-Status\0x: F\n".into(), ""),
            (format!("X-UID\0{blanks}: 7\n"), ""),
            ("STATUS\t: RO\n".into(), ""),
            ("Status\nA: b\n".into(), "Status\nA: b\n"),
        ] {
            for cut in [1, 7, 1000] {
                let got = text(format!("{header}\nx\n").as_bytes(), Quoting::Mboxrd, cut);
                let want = format!("{left}Content-Length: 2\n\nx\n\n");
                assert_eq!(String::from_utf8(got).unwrap(), want, "{header:?} {cut}");
            }
        }
        for cut in [1, 2, 1000] {
            let got = text(b"A: b\n\r\nStatus: RO\nFrom x\n", Quoting::Mboxrd, cut);
            let want = "A: b\nContent-Length: 19\n\nStatus: RO\n>From x\n\n";
            assert_eq!(String::from_utf8(got).unwrap(), want, "{cut}");
        }
    }

    proptest! {
        /// However it comes: one message to every reader, and its body can be had back.
        #[test]
        fn any_message(
            header in "(Status|A|From b|X-UID)[: ][a-z]{0,9}\n( c\n)?",
            body in "(>{0,2}(From |Fro|\n|x){0,3}\n?){0,6}",
            cut in 1usize..20,
        ) {
            let message = format!("{header}\n{body}");
            let whole = text(message.as_bytes(), Quoting::Mboxrd, 10_000);
            prop_assert_eq!(&whole, &text(message.as_bytes(), Quoting::Mboxrd, cut));
            let whole = String::from_utf8(whole).unwrap();
            prop_assert!(!whole.lines().any(|line| line.starts_with("From ")));
            let (fields, quoted) = whole.split_once("\n\n").unwrap();
            let length: usize = fields.rsplit("Content-Length: ").next().unwrap().parse().unwrap();
            prop_assert_eq!(length + 1, quoted.len());
            let unquoted: String = quoted[..length].split_inclusive('\n').map(|line| {
                match line.trim_start_matches('>').starts_with("From ") {
                    true => &line[1..],
                    false => line,
                }
            }).collect();
            let end = if body.is_empty() || body.ends_with('\n') { "" } else { "\n" };
            prop_assert_eq!(unquoted, format!("{body}{end}"));
        }
    }
}
