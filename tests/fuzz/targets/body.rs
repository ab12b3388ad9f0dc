//! A message on the wire: it ends at CRLF . CRLF only, however it is cut, and is stored with LF.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::lmtp::codec::DataDecoder;
use postroom::message::body::{BodyWriter, Spool};

fn decoded(wire: &[u8], cut: usize) -> (Vec<u8>, usize, bool) {
    let (mut decoder, mut out, mut taken) = (DataDecoder::default(), Vec::new(), 0);
    for piece in wire.chunks(cut) {
        taken += decoder.decode(piece, |bytes| out.extend_from_slice(bytes));
        if decoder.is_done() {
            break;
        }
    }
    (out, taken, decoder.is_done())
}

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (cut, bytes) = input;
    let (body, taken, done) = decoded(&bytes, bytes.len().max(1));
    assert_eq!(
        decoded(&bytes, usize::from(cut).max(1)),
        (body.clone(), taken, done)
    );
    let end = match bytes.starts_with(b".\r\n") {
        true => Some(3),
        false => bytes
            .windows(5)
            .position(|it| it == b"\r\n.\r\n")
            .map(|at| at + 5),
    };
    assert_eq!(done, end.is_some());
    assert_eq!(taken, end.unwrap_or(bytes.len()));
    let mut writer = BodyWriter::new(&Spool::default());
    if writer.write(&body).is_ok()
        && let Ok(stored) = writer.finish()
    {
        let crlf = body.windows(2).filter(|it| it == b"\r\n").count();
        assert_eq!(stored.size() as usize, body.len() - crlf);
        assert!(stored.virtual_size() >= stored.size());
    }
});
