//! A whole dialogue: however the bytes of a client are cut, the same messages come out for the same recipients, each RCPT that was
//! accepted has one answer a message, and a body is what the RFC's words make of its bytes, to the same end. However much comes, the
//! server holds little of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::deliver::{Outcome, Report};
use postroom::lmtp::client::Client;
use postroom::lmtp::codec::{Chunk, DataDecoder, Lines};
use postroom::lmtp::command::{self, Command, Marker, Workarounds};
use postroom::lmtp::reply::Reply;
use postroom::lmtp::session::{Intake, Limits, Session, StartTls, Step};
use postroom_fuzz::client::{self, fault};
use postroom_fuzz::{Counted, most_held};

#[global_allocator]
static HEAP: Counted = Counted;

/// What a client is held with, bytes: half a line that may become 4 KiB, three recipients, replies that wait until they are 4 KiB, and
/// a message, here of 1000 bytes; longer ones have [their own limits](postroom::message::body).
const HELD: usize = 64 * 1024;
/// So many times over it says what it says.
const TIMES: usize = 32;

/// What a client has caused.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    replies: Vec<u8>,
    /// Recipients and bytes of each message that was taken.
    messages: Vec<(Vec<String>, Vec<u8>)>,
}

/// Bytes in pieces of this size.
struct Wire<'a> {
    rest: &'a [u8],
    cut: usize,
    waiting: Vec<u8>,
}

impl Wire<'_> {
    /// False: the client has nothing more.
    fn fill(&mut self) -> bool {
        let count = self.cut.min(self.rest.len());
        self.waiting.extend_from_slice(&self.rest[..count]);
        self.rest = &self.rest[count..];
        count > 0
    }

    /// All that the client has still to say.
    fn left(&self) -> Vec<u8> {
        [&self.waiting, self.rest].concat()
    }
}

fn dialogue(input: &[u8], cut: usize, trusted: bool) -> Seen {
    let limits = Limits {
        hostname: "mx".into(),
        max_recipients: 3,
        message_size: Some(1000),
        verbose_replies: false,
        is_trusted: trusted,
        takes_errands: trusted,
        starttls: StartTls::Unavailable,
    };
    let mut session = Session::new(limits, Client::at(None), "ID".into());
    // How many RCPTs of the transaction had a 250.
    let (mut seen, mut body, mut accepted) = (Seen::default(), Vec::new(), 0);
    let mut wire = Wire {
        rest: input,
        cut,
        waiting: Vec::new(),
    };
    let mut lines = Lines::default();
    loop {
        let (taken, frame) = lines.next(&wire.waiting);
        let command = frame.map(|it| command::parse(it, Workarounds::default()));
        wire.waiting.drain(..taken);
        let Some(command) = command else {
            if !wire.fill() {
                return seen;
            }
            continue;
        };
        let is_rcpt = matches!(&command, Ok(Command::Rcpt { .. }));
        let is_last = matches!(
            &command,
            Ok(Command::Bdat {
                marker: Marker::Last,
                ..
            })
        );
        let was_open = session.in_transaction();
        let mut step = session.command(command);
        if !was_open {
            body.clear();
            accepted = 0;
        }
        loop {
            step = match step {
                Step::Answer(replies) => {
                    // RFC 3030: the last chunk of a message for nobody has no answer.
                    assert_eq!(replies.len(), usize::from(!is_last));
                    accepted += usize::from(is_rcpt && replies[0].code() == 250);
                    say(&mut seen, replies);
                    break;
                }
                Step::Close(reply) => {
                    say(&mut seen, vec![reply]);
                    return seen;
                }
                Step::StartTls(_) => unreachable!("there is no TLS"),
                Step::Check(recipient) => {
                    let mut report = Report::failed(String::new(), fault());
                    // Some are refused.
                    report.fault = recipient.address.local.starts_with('n').then(fault);
                    session.checked(&report)
                }
                Step::Data {
                    go_ahead, limit, ..
                } => {
                    say(&mut seen, vec![go_ahead]);
                    let mut decoder = DataDecoder::default();
                    let wanted = postroom_fuzz::decoded(&wire.left());
                    let (mut all, began) = (0, body.len());
                    loop {
                        let taken =
                            decoder.decode(&wire.waiting, |bytes| body.extend_from_slice(bytes));
                        wire.waiting.drain(..taken);
                        all += taken;
                        if decoder.is_done() {
                            break;
                        }
                        if !wire.fill() {
                            assert_eq!(wanted, None);
                            return seen;
                        }
                    }
                    assert_eq!(wanted, Some((body[began..].to_vec(), all)));
                    let fits = limit.is_none_or(|limit| body.len() as u64 <= limit);
                    session.data_received(if fits {
                        Intake::Complete
                    } else {
                        Intake::TooBig
                    })
                }
                Step::Chunk { octets, keep } => {
                    let mut chunk = Chunk::new(octets);
                    let (left, began) = (wire.left(), body.len());
                    loop {
                        let taken = chunk.take(&wire.waiting);
                        if keep {
                            body.extend_from_slice(&wire.waiting[..taken]);
                        }
                        wire.waiting.drain(..taken);
                        if chunk.is_done() {
                            break;
                        }
                        if !wire.fill() {
                            return seen;
                        }
                    }
                    assert!(!keep || body[began..] == left[..octets as usize]);
                    session.chunk_received(Intake::Complete)
                }
                Step::Deliver(mut delivery) => {
                    assert!(body.len() <= 1000);
                    let recipients = delivery.recipients.iter().map(|it| it.address.to_string());
                    seen.messages.push((recipients.collect(), body.clone()));
                    // The last one first: the order of the answers is that of RCPT.
                    let mut answered = 0;
                    for index in (0..delivery.recipients.len()).rev() {
                        let replies = delivery.settle(index, Outcome::refused(fault()));
                        assert!(replies.is_empty() || index == 0);
                        answered += replies.len();
                        say(&mut seen, replies);
                    }
                    assert_eq!(answered, accepted);
                    assert!(delivery.unsettled().is_empty());
                    break;
                }
                Step::GiveUp(mut delivery, fault) => {
                    let replies = delivery.abandon(&fault);
                    assert_eq!(replies.len(), accepted);
                    say(&mut seen, replies);
                    break;
                }
            };
        }
    }
}

/// Whole lines of printable ASCII.
fn say(seen: &mut Seen, replies: Vec<Reply>) {
    for reply in replies {
        let start = seen.replies.len();
        reply.write_to(&mut seen.replies);
        for line in seen.replies[start..].split_inclusive(|&byte| byte == b'\n') {
            let text = line.strip_suffix(b"\r\n").expect("a whole line");
            assert!(text.iter().all(|byte| (b' '..=b'~').contains(byte)));
        }
    }
}

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (cut, trusted, bytes) = input;
    let whole = dialogue(bytes, bytes.len().max(1), trusted);
    let piece = usize::from(cut).max(1);
    assert_eq!(dialogue(bytes, piece, trusted), whole);
    let client = client::Client {
        bytes,
        times: TIMES,
        piece,
        is_trusted: trusted,
    };
    let ((), held) = most_held(|| client.is_served());
    assert!(held <= HELD, "{held}");
});
