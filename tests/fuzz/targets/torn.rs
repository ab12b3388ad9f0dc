//! An mbox with a note of a delivery that was killed: what was there before stays, and nothing but an end goes.
#![no_main]

use std::fs::{self, File};

use libfuzzer_sys::fuzz_target;
use postroom::mbox::torn::{self, Note};
use postroom::sys::dir;

const FROM: &str = "From a@b  Mon Nov 02 07:02:09 2026";
const OTHER: &[u8] = b"From z  Tue Nov 03 07:02:09 2026\n";

fuzz_target!(|input: (&[u8], u8, &[u8], bool, Vec<u16>)| {
    let (before, gap, behind, is_seen, lengths) = input;
    let path = postroom_fuzz::file("box", &[before, behind].concat());
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let size = before.len() as u64;
    let note = Note {
        size,
        offset: size + u64::from(gap % 4),
        zeros: 0,
        lengths: lengths.iter().copied().map(u64::from).collect(),
        mark: torn::mark(FROM),
    };
    let mut starts = vec![note.offset];
    note.lengths
        .iter()
        .for_each(|length| starts.push(starts[starts.len() - 1] + length));
    note.write(&file);
    let stat = torn::remove(&file, dir::stat_file(&file).unwrap(), |_| Ok(is_seen)).unwrap();
    let after = fs::read(&path).unwrap();
    assert_eq!(stat.size as usize, after.len());
    let is_whole = after.len() == before.len() + behind.len();
    assert!(is_whole || after.starts_with(before) && !is_seen);
    assert!(is_whole || after.len() == before.len() || starts.contains(&(after.len() as u64)));
    // Another's message behind it, whatever it is behind; one in the place of ours is ours.
    if let Some(at) = memchr::memmem::find(behind, OTHER) {
        let is_ours = starts.contains(&((before.len() + at) as u64));
        assert!(is_whole || at == 0 || is_ours, "a message is lost");
    }
    let again = torn::remove(&file, stat, |_| Ok(false)).unwrap();
    assert_eq!(again.size, stat.size);
});
