//! Bytes of the wire into commands and message bodies (RFC 5321 sections 2.3.8 and 4.5.2, RFC 3030). No I/O.
//!
//! How the bytes were cut into packets never changes what comes out. A command ends at CRLF and nowhere else, DATA at
//! CRLF `.` CRLF and nowhere else: whoever sees other line ends than we do could smuggle commands in a body.

use memchr::memmem;

/// The longest command without its CRLF. RFC 5321 asks for 512, parameters for more.
pub const MAX_LINE: usize = 4096;

/// What stands at the front of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// All before a CRLF. It may hold bare CRs, LFs and NULs: no command does, so it will be refused.
    Line(&'a [u8]),
    /// More than [`MAX_LINE`] bytes before a CRLF; none of them is a command.
    TooLong,
}

/// Cuts commands off the input.
#[derive(Debug, Default)]
pub struct Lines {
    /// Inside a line that is too long: its rest is thrown away.
    discarding: bool,
    /// So many bytes at the front are known to hold no CRLF.
    scanned: usize,
}

impl Lines {
    /// The next frame and the number of bytes to take off the front of `input` (also without a frame). `input` holds all
    /// that has arrived and was not taken off yet.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> (usize, Option<Frame<'a>>) {
        let from = self.scanned.min(input.len()).saturating_sub(1);
        match memmem::find(&input[from..], b"\r\n") {
            Some(found) => {
                let end = from + found;
                let too_long = std::mem::take(&mut self.discarding) || end > MAX_LINE;
                self.scanned = 0;
                let frame = if too_long {
                    Frame::TooLong
                } else {
                    Frame::Line(&input[..end])
                };
                (end + 2, Some(frame))
            }
            None if self.discarding || input.len() > MAX_LINE + 1 => {
                self.discarding = true;
                self.scanned = 0;
                // A CR at the end may be half of the CRLF.
                (
                    input.len() - usize::from(input.last() == Some(&b'\r')),
                    None,
                )
            }
            None => {
                self.scanned = input.len();
                (0, None)
            }
        }
    }
}

/// Takes the dots off a DATA body and finds its end.
///
/// The sink gets final bytes, line ends as they came: nothing that was handed over is ever taken back, so it may be a file.
#[derive(Debug, Default)]
pub struct DataDecoder {
    state: State,
}

/// What came last.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// CRLF, or nothing yet: a dot is stuffing or the end.
    #[default]
    LineStart,
    /// CRLF `.`, the dot withheld.
    Dot,
    /// CRLF `.` CR, both withheld.
    DotCr,
    Text,
    /// A CR that was handed over.
    Cr,
    /// CRLF `.` CRLF.
    End,
}

impl DataDecoder {
    /// Decodes up to the end of `input` or of the message, and says how many bytes were taken.
    pub fn decode(&mut self, input: &[u8], mut sink: impl FnMut(&[u8])) -> usize {
        let mut at = 0;
        while at < input.len() && self.state != State::End {
            let step = match (self.state, input[at]) {
                (State::LineStart, b'.') => (1, State::Dot),
                (State::Dot, b'\r') => (1, State::DotCr),
                (State::DotCr, b'\n') => (1, State::End),
                (State::DotCr, _) => {
                    // The dot was stuffing after all; this byte is looked at again behind the CR.
                    sink(b"\r");
                    (0, State::Cr)
                }
                (State::Cr, b'\n') => {
                    sink(b"\n");
                    (1, State::LineStart)
                }
                _ => text(&input[at..], &mut sink),
            };
            at += step.0;
            self.state = step.1;
        }
        at
    }

    /// The end of the message was seen; what follows are commands.
    pub fn is_done(&self) -> bool {
        self.state == State::End
    }
}

/// Hands over all up to a dot at the start of a line, or everything.
fn text(rest: &[u8], sink: &mut impl FnMut(&[u8])) -> (usize, State) {
    if let Some(found) = memmem::find(rest, b"\r\n.") {
        sink(&rest[..found + 2]);
        return (found + 2, State::LineStart);
    }
    sink(rest);
    let state = match rest {
        [.., b'\r', b'\n'] => State::LineStart,
        [.., b'\r'] => State::Cr,
        _ => State::Text,
    };
    (rest.len(), state)
}

/// The octets of one BDAT chunk that are still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    left: u64,
}

impl Chunk {
    /// The size that BDAT has announced.
    pub fn new(octets: u64) -> Chunk {
        Chunk { left: octets }
    }

    /// How many bytes at the front of `input` belong to the chunk; they count as taken.
    pub fn take(&mut self, input: &[u8]) -> usize {
        let taken = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(input.len());
        self.left -= taken as u64;
        taken
    }

    /// What follows are commands. True at once for a chunk of 0 octets, as in `BDAT 0 LAST` (RFC 3030).
    pub fn is_done(&self) -> bool {
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All frames of `stream`, which arrives in pieces that end at `cuts`.
    fn frames(stream: &[u8], cuts: &[usize]) -> Vec<Option<Vec<u8>>> {
        let (mut lines, mut buffer, mut found) = (Lines::default(), Vec::new(), Vec::new());
        for piece in pieces(stream, cuts) {
            buffer.extend_from_slice(piece);
            loop {
                let (taken, frame) = lines.next(&buffer);
                let frame = frame.map(|frame| match frame {
                    Frame::Line(line) => Some(line.to_vec()),
                    Frame::TooLong => None,
                });
                buffer.drain(..taken);
                match frame {
                    Some(frame) => found.push(frame),
                    None => break,
                }
            }
            assert!(
                buffer.len() <= MAX_LINE + 1,
                "a line that never ends must not fill memory"
            );
        }
        found
    }

    fn pieces<'a>(stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
        ends.extend([0, stream.len()]);
        ends.sort_unstable();
        ends.windows(2)
            .map(|pair| &stream[pair[0]..pair[1]])
            .collect()
    }

    /// Body and number of bytes taken; none while the end has not come.
    fn decoded(stream: &[u8], cuts: &[usize]) -> Option<(Vec<u8>, usize)> {
        let (mut decoder, mut body, mut taken) = (DataDecoder::default(), Vec::new(), 0);
        for piece in pieces(stream, cuts) {
            taken += decoder.decode(piece, |bytes| body.extend_from_slice(bytes));
            if decoder.is_done() {
                return Some((body, taken));
            }
        }
        None
    }

    /// RFC 5321 section 4.5.2 word by word: lines end at CRLF; `.` alone ends; one leading dot goes.
    fn reference(stream: &[u8]) -> Option<(Vec<u8>, usize)> {
        let (mut body, mut at) = (Vec::new(), 0);
        loop {
            let end =
                (at..stream.len().saturating_sub(1)).find(|i| &stream[*i..*i + 2] == b"\r\n")? + 2;
            let line = &stream[at..end];
            at = end;
            match line {
                b".\r\n" => return Some((body, at)),
                [b'.', rest @ ..] => body.extend_from_slice(rest),
                line => body.extend_from_slice(line),
            }
        }
    }

    #[test]
    fn commands() {
        let line = |text: &str| Some(text.as_bytes().to_vec());
        for (stream, want) in [
            ("NOOP\r\n", vec![line("NOOP")]),
            ("NOOP\r\nQUIT\r\n", vec![line("NOOP"), line("QUIT")]),
            ("\r\n", vec![line("")]),
            ("NOOP\n", vec![]),
            ("NOOP\nQUIT\r\n", vec![line("NOOP\nQUIT")]),
            ("NOOP\rQUIT\r\n", vec![line("NOOP\rQUIT")]),
            ("NOOP\r\r\n", vec![line("NOOP\r")]),
            ("NOOP", vec![]),
        ] {
            assert_eq!(frames(stream.as_bytes(), &[]), want, "{stream:?}");
            let every_byte: Vec<usize> = (0..stream.len()).collect();
            assert_eq!(frames(stream.as_bytes(), &every_byte), want, "{stream:?}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_one_error_and_no_command() {
        for (length, want) in [
            (MAX_LINE, false),
            (MAX_LINE + 1, true),
            (MAX_LINE + 2, true),
            (3 * MAX_LINE, true),
        ] {
            let stream = format!("{}\r\nNOOP\r\n", "x".repeat(length));
            for cuts in [
                vec![],
                vec![length],
                vec![length + 1],
                vec![100, 5000],
                vec![MAX_LINE + 1, MAX_LINE + 2],
            ] {
                let got = frames(stream.as_bytes(), &cuts);
                assert_eq!(got.len(), 2, "{length} {cuts:?}");
                assert_eq!(got[0].is_none(), want, "{length} {cuts:?}");
                assert_eq!(got[1].as_deref(), Some(&b"NOOP"[..]), "{length} {cuts:?}");
            }
        }
    }

    #[test]
    fn bodies() {
        for (stream, body) in [
            (".\r\n", Some("")),
            ("..\r\n.\r\n", Some(".\r\n")),
            ("..x\r\n.\r\n", Some(".x\r\n")),
            ("a\r\n.\r\n", Some("a\r\n")),
            ("a\r\n..b\r\n.\r\n", Some("a\r\n.b\r\n")),
            ("a\r\n.b\r\n.\r\n", Some("a\r\nb\r\n")),
            ("\r\n\r\n.\r\n", Some("\r\n\r\n")),
            ("a\r\n.\rb\r\n.\r\n", Some("a\r\n\rb\r\n")),
            ("a\r\n.\nb\r\n.\r\n", Some("a\r\n\nb\r\n")),
            ("a\0b\r\n.\r\n", Some("a\0b\r\n")),
        ] {
            for cuts in [vec![], (0..stream.len()).collect()] {
                let got = decoded(stream.as_bytes(), &cuts).map(|(body, _)| body);
                assert_eq!(got.as_deref(), body.map(str::as_bytes), "{stream:?}");
            }
        }
    }

    /// What other servers took, or take, as the end (CVE-2023-51764 and its kin): here it is all body.
    #[test]
    fn nothing_but_crlf_dot_crlf_ends_a_body() {
        for end in [
            "\n.\n",
            "\n.\r\n",
            "\r\n.\n",
            "\r.\r",
            "\r.\r\n",
            "\r\n.\r",
            "\n.\r",
            "\r.\n",
            "\r\n.\r\r\n",
            "\r\n.\0\r\n",
            "\r\n\0.\r\n",
            "\r\n..\r\n",
            "\r\n. \r\n",
            "\r\n .\r\n",
            "\r\r\n.\r\0\n",
            "\n\n.\n\n",
            "\r\n.\x0b\r\n",
            "\n\r.\n\r",
            "\r\n.\x1a\r\n",
            "\r\n.\n\r\n",
            "\u{85}.\u{85}",
            "\r\n.\r.\r\n",
            "\r\0\n.\r\n",
            "\r\n.\r \n",
        ] {
            let stream = format!("body{end}MAIL FROM:<evil@x>\r\nmore\r\n.\r\nQUIT\r\n");
            for cuts in std::iter::once(vec![]).chain((0..stream.len()).map(|cut| vec![cut])) {
                let (body, taken) = decoded(stream.as_bytes(), &cuts).unwrap();
                assert_eq!(&stream.as_bytes()[taken..], b"QUIT\r\n", "{end:?} {cuts:?}");
                assert!(
                    String::from_utf8_lossy(&body).contains("MAIL FROM:<evil@x>"),
                    "{end:?} {cuts:?}"
                );
            }
        }
    }

    #[test]
    fn chunks_count() {
        let mut chunk = Chunk::new(5);
        assert_eq!(chunk.take(b"abc"), 3);
        assert!(!chunk.is_done());
        assert_eq!(chunk.take(b"de\r\n.\r\n"), 2);
        assert!(chunk.is_done());
        assert_eq!(chunk.take(b"x"), 0);
        assert!(Chunk::new(0).is_done());
        assert_eq!(Chunk::new(u64::MAX).take(b"abc"), 3);
    }

    fn dotty() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(b".\r\n.\r\nab\0".to_vec()), 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn decoder_equals_the_slow_reference_however_it_is_cut(stream in dotty(), cuts in prop::collection::vec(any::<usize>(), 0..8)) {
            let want = reference(&stream);
            prop_assert_eq!(decoded(&stream, &cuts), want);
        }

        #[test]
        fn what_was_stuffed_comes_back(body in dotty(), cuts in prop::collection::vec(any::<usize>(), 0..8)) {
            let mut body = body;
            body.extend_from_slice(b"\r\n");
            let mut stuffed: Vec<u8> = Vec::new();
            for (at, byte) in body.iter().enumerate() {
                if *byte == b'.' && (at == 0 || body[..at].ends_with(b"\r\n")) {
                    stuffed.push(b'.');
                }
                stuffed.push(*byte);
            }
            stuffed.extend_from_slice(b".\r\n");
            prop_assert_eq!(decoded(&stuffed, &cuts).map(|(body, _)| body), Some(body));
        }

        #[test]
        fn frames_do_not_depend_on_packets(stream in dotty(), cuts in prop::collection::vec(any::<usize>(), 0..8)) {
            prop_assert_eq!(frames(&stream, &cuts), frames(&stream, &[]));
        }
    }
}
