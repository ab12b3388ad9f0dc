//! Commands of a peer: however the bytes are cut, the same commands come out, and no reply has a line of its own.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::lmtp::codec::Lines;
use postroom::lmtp::command::{self, Workarounds};

fn commands(input: &[u8], cut: usize) -> Vec<String> {
    let (mut lines, mut waiting, mut found) = (Lines::default(), Vec::new(), Vec::new());
    for piece in input.chunks(cut) {
        waiting.extend_from_slice(piece);
        loop {
            let (taken, frame) = lines.next(&waiting);
            let command =
                frame.map(|frame| format!("{:?}", command::parse(frame, Workarounds::default())));
            waiting.drain(..taken);
            match command {
                Some(command) => found.push(command),
                None => break,
            }
        }
    }
    found
}

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (cut, bytes) = input;
    let whole = commands(&bytes, bytes.len().max(1));
    assert_eq!(commands(&bytes, usize::from(cut).max(1)), whole);
});
