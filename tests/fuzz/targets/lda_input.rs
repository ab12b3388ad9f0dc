//! A message on stdin: without its first line `From `, and else as it is, however it comes.
#![no_main]

use std::io::{self, Read};

use libfuzzer_sys::fuzz_target;
use postroom::lda::input;
use postroom::message::body::Spool;

/// So many bytes at a time.
struct Slow<'a>(&'a [u8], usize);

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.1.min(buffer.len()).min(self.0.len());
        buffer[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        Ok(count)
    }
}

fn stored(bytes: &[u8], cut: usize, is_mbox: bool) -> Vec<u8> {
    let input = input::read(&mut Slow(bytes, cut), is_mbox, &Spool::default(), None).unwrap();
    let mut all = Vec::new();
    let copied = input.body.each_piece(|piece| {
        all.extend_from_slice(piece);
        Ok(())
    });
    copied.unwrap();
    all
}

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, bytes) = input;
    if bytes.len() > 60_000 {
        return;
    }
    let crlf = |at: &usize| bytes[*at] == b'\r' && bytes.get(at + 1) == Some(&b'\n');
    let all: Vec<u8> = (0..bytes.len())
        .filter(|at| !crlf(at))
        .map(|at| bytes[at])
        .collect();
    assert_eq!(stored(bytes, 60_000, false), all);
    let whole = stored(bytes, 60_000, true);
    assert_eq!(stored(bytes, usize::from(cut).max(1), true), whole);
    assert!(all.ends_with(&whole));
    let taken = &all[..all.len() - whole.len()];
    assert!(taken.is_empty() || taken.starts_with(b"From "));
    let lines = taken.iter().filter(|byte| **byte == b'\n').count();
    assert!(
        lines == 1 && taken.ends_with(b"\n")
            || lines == 0 && (taken.is_empty() || whole.is_empty())
    );
});
