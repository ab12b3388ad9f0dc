//! The hand-over of a message to the running server, where the rights of this process do not suffice: an MTA has dropped the groups
//! of its user.

use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::wire::{Answer, MAX_LINE, MAX_PIECE, Offer};
use crate::fault::{Code, Fault};
use crate::message::Body;

/// How long the server may say nothing: longer than a delivery takes.
const PATIENCE: Duration = Duration::from_secs(330);

/// Hands the message over. No answer is a temporary fault: it may be stored or not.
pub fn hand_over(socket: &Path, offer: &Offer, body: &Body) -> Result<(), Fault> {
    let doing = || format!("hand the message to {}", socket.display());
    let answer = exchange(socket, offer, body);
    match answer.map_err(|error| Fault::new(Code::Storage, doing(), error.to_string()))? {
        Answer::Stored => Ok(()),
        Answer::Refused(code) => Err(Fault::new(code, doing(), "it says no; its log says why")),
        Answer::Send => Err(Fault::new(
            Code::Internal,
            doing(),
            "it answers another question",
        )),
    }
}

fn exchange(socket: &Path, offer: &Offer, body: &Body) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut answers = BufReader::new(&stream);
    let mut out = BufWriter::with_capacity(MAX_PIECE, &stream);
    serde_json::to_writer(&mut out, offer)?;
    out.write_all(b"\n")?;
    out.flush()?;
    match answer(&mut answers)? {
        Answer::Send => {}
        refused => return Ok(refused),
    }
    body.each_piece(|piece| {
        for line in piece.split_inclusive(|&byte| byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(text) => {
                    send(&mut out, text)?;
                    send(&mut out, b"\r\n")?;
                }
                None => send(&mut out, line)?,
            }
        }
        Ok(())
    })?;
    out.write_all(&0u32.to_be_bytes())?;
    out.flush()?;
    answer(&mut answers)
}

fn send(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    for piece in bytes.chunks(MAX_PIECE) {
        out.write_all(&(piece.len() as u32).to_be_bytes())?;
        out.write_all(piece)?;
    }
    Ok(())
}

fn answer(answers: &mut impl BufRead) -> io::Result<Answer> {
    let mut line = String::new();
    let mut limited = io::Read::take(answers, MAX_LINE as u64);
    limited.read_line(&mut line)?;
    match line.ends_with('\n') {
        true => Ok(serde_json::from_str(&line)?),
        false => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it closed without an answer",
        )),
    }
}
