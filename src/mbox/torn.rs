//! The beginning of a message that a killed delivery has left at the end of an mbox.
//!
//! Who adds a message notes first, as an attribute of the file, where it begins and how. The next delivery finds the note under the
//! lock. It removes what is there only if it is still that beginning: the same line `From `, a body that is shorter than its
//! Content-Length says, or has holes, and nothing of anybody else behind it. It stays where that cannot be told: on a file system without
//! attributes, where Dovecot keeps its index in memory, and where a line of the body could be somebody else's `From `.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memchr::memmem;
use xattr::FileExt as _;

use crate::sys;
use crate::sys::dir::{self, Stat};
use crate::sys::fault_point;

const NOTE: &str = "user.postroom.appending";
/// How much of the message is looked at for the end of its header, bytes.
const MAX_HEADER: usize = 1 << 20;
const PIECE: usize = 64 * 1024;
const FROM: &[u8] = b"From ";

/// A message that is being added.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Note {
    /// The size of the file before.
    size: u64,
    /// Where the line `From ` begins.
    offset: u64,
    /// NUL bytes of the message. A power cut may leave the whole length, and zeros where nothing was written yet.
    zeros: u64,
    from_line: String,
}

/// Notes that a message with so many NUL bytes is added behind `size`. What cannot be noted is not.
pub fn note(file: &File, size: u64, offset: u64, zeros: u64, from_line: &str) {
    let text = format!("{size} {offset} {zeros} {from_line}");
    let _ = fault_point::pass().and_then(|()| file.set_xattr(NOTE, text.as_bytes()));
}

/// The message is whole, or gone.
pub fn forget(file: &File) {
    let _ = fault_point::pass().and_then(|()| file.remove_xattr(NOTE));
}

/// Removes what a killed delivery has left in the file, which is locked, unless a reader `has_seen` more than what was there before:
/// then it has a UID, which is not the next message's. Answers the file as it is now; after an error the note is still there.
pub fn remove(
    file: &File,
    stat: Stat,
    has_seen: impl FnOnce(u64) -> io::Result<bool>,
) -> io::Result<Stat> {
    let Some(note) = read(file)? else {
        return Ok(stat);
    };
    let is_torn = note.is_beginning(file, stat.size)? && !has_seen(note.size)?;
    if is_torn {
        dir::set_file_size(file, note.size)?;
    }
    forget(file);
    match is_torn {
        true => dir::stat_file(file),
        false => Ok(stat),
    }
}

/// None: nothing is noted, or nothing can be. Err: nobody can tell now whether the end of the file is a message.
fn read(file: &File) -> io::Result<Option<Note>> {
    match fault_point::pass().and_then(|()| file.get_xattr(NOTE)) {
        Ok(text) => Ok(text.and_then(Note::parse)),
        Err(error) if sys::is_unsupported(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Note {
    fn parse(text: Vec<u8>) -> Option<Note> {
        let text = String::from_utf8(text).ok()?;
        let mut words = text.splitn(4, ' ');
        Some(Note {
            size: words.next()?.parse().ok()?,
            offset: words.next()?.parse().ok()?,
            zeros: words.next()?.parse().ok()?,
            from_line: words.next()?.to_owned(),
        })
    }

    /// Whether the end of the file is the beginning of the message, and no more.
    fn is_beginning(&self, file: &File, size: u64) -> io::Result<bool> {
        let line = format!("{}\n", self.from_line);
        if size <= self.size || self.size > self.offset || !line.starts_with("From ") {
            return Ok(false);
        }
        if size <= self.offset {
            // Not even the line: the gap.
            let mut gap = vec![0; (size - self.size).min(2) as usize];
            read_exact_at(file, &mut gap, self.size)?;
            return Ok(self.offset - self.size <= 2 && gap.iter().all(|&byte| byte == b'\n'));
        }
        let length = (size - self.offset).min(MAX_HEADER as u64) as usize;
        let mut start = vec![0; length];
        read_exact_at(file, &mut start, self.offset)?;
        let known = start.len().min(line.len());
        let after = self.offset + known as u64;
        let pairs = || start[..known].iter().zip(line.as_bytes());
        if !pairs().all(|(&byte, &noted)| byte == noted || byte == 0) {
            return Ok(false);
        }
        if pairs().any(|(&byte, _)| byte == 0) {
            // A power cut: room was had, and nothing was written to it yet.
            return Ok(!is_from_behind(file, after, size)?);
        }
        let header = &start[known..];
        let is_whole = match memmem::find(header, b"\n\n") {
            Some(end) => match content_length(&header[..end + 1]) {
                Some(body) => size >= self.offset + (known + end + 2) as u64 + body,
                None => true,
            },
            // A header of this size is nobody's.
            None => start.len() == MAX_HEADER,
        };
        let is_torn = !is_whole || count_zeros(file, self.offset, size)? > self.zeros;
        Ok(is_torn && !is_from_behind(file, after, size)?)
    }
}

fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    fault_point::pass()?;
    file.read_exact_at(bytes, at)
}

/// What the last field of a header says, as we write it.
fn content_length(header: &[u8]) -> Option<u64> {
    let line = header
        .trim_ascii_end()
        .rsplit(|&byte| byte == b'\n')
        .next()?;
    let value = line.strip_prefix(b"Content-Length: ")?;
    str::from_utf8(value).ok()?.parse().ok()
}

/// NUL bytes between the two places.
fn count_zeros(file: &File, from: u64, to: u64) -> io::Result<u64> {
    let mut piece = vec![0; PIECE];
    let (mut at, mut zeros) = (from, 0);
    while at < to {
        let length = (to - at).min(PIECE as u64) as usize;
        read_exact_at(file, &mut piece[..length], at)?;
        zeros += memchr::memchr_iter(0, &piece[..length]).count() as u64;
        at += length as u64;
    }
    Ok(zeros)
}

/// Whether somebody has added a message, perhaps right behind an open line: a line `From ` with a date in it. One of the body is
/// quoted, but its `>` may be where the message was cut.
fn is_from_behind(file: &File, from: u64, size: u64) -> io::Result<bool> {
    let mut piece = vec![0; PIECE];
    let mut at = from;
    while at < size {
        let length = (size - at).min(PIECE as u64) as usize;
        read_exact_at(file, &mut piece[..length], at)?;
        let bytes = &piece[..length];
        let is_last = at + length as u64 == size;
        let mut next = length.saturating_sub(FROM.len());
        for start in memmem::find_iter(bytes, FROM) {
            let line = &bytes[start..];
            let end = memchr::memchr(b'\n', line);
            if end.is_none() && !is_last && start > 0 {
                // With the rest of its line.
                next = start;
                break;
            }
            if has_date(&line[..end.unwrap_or(line.len())]) {
                return Ok(true);
            }
        }
        at = match is_last {
            true => size,
            false => at + next.max(1) as u64,
        };
    }
    Ok(false)
}

/// `Mon Nov 02 07:02`, in any order: every line `From ` has it.
fn has_date(line: &[u8]) -> bool {
    const DAYS: [&[u8]; 7] = [b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun"];
    const MONTHS: [&[u8]; 12] = [
        b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov",
        b"Dec",
    ];
    let has = |names: &[&[u8]]| names.iter().any(|name| memmem::find(line, name).is_some());
    let is_time = |it: &[u8]| {
        let digits = [it[0], it[1], it[3], it[4]];
        it[2] == b':' && digits.iter().all(u8::is_ascii_digit)
    };
    has(&DAYS) && has(&MONTHS) && line.windows(5).any(is_time)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    const OLD: &str = "From x  Mon Nov 02 07:02:09 2026\nA: b\n\nold\n\n";
    const LINE: &str = "From a@b  Mon Nov 02 07:02:09 2026";
    const NEW: &str =
        "S: Letter From me\nContent-Length: 33\n\nI am From B\n>From x at 07:02 Mon\n\n";

    /// What is left of an mbox that ends so.
    fn left(end: &str) -> String {
        left_of(end, 0)
    }

    /// The same where the message was to have so many NUL bytes.
    fn left_of(end: &str, zeros: u64) -> String {
        let root = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = root.path().join("box");
        fs::write(&path, OLD).unwrap();
        let mut file = File::options().read(true).append(true).open(&path).unwrap();
        note(&file, OLD.len() as u64, OLD.len() as u64, zeros, LINE);
        assert!(read(&file).unwrap().is_some(), "no attributes in /var/tmp");
        file.write_all(end.as_bytes()).unwrap();
        let stat = remove(&file, dir::stat_file(&file).unwrap(), |_| Ok(false)).unwrap();
        assert_eq!(read(&file).unwrap(), None);
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(stat.size as usize, text.len());
        text
    }

    #[test]
    fn every_beginning_goes_and_the_whole_stays() {
        let whole = format!("{LINE}\n{NEW}");
        let is_body_whole = |length: usize| length + 1 >= whole.len();
        for length in 0..=whole.len() {
            let text = left(&whole[..length]);
            let want = match is_body_whole(length) {
                true => format!("{OLD}{}", &whole[..length]),
                false => OLD.to_owned(),
            };
            assert_eq!(text, want, "{length}");
        }
    }

    /// What nobody can tell now is told by the next delivery.
    #[test]
    fn every_step_of_removing_fails_once() {
        for failure in fault_point::FAILURES.into_iter().chain(fault_point::ENDS) {
            for step in 0.. {
                let root = tempfile::tempdir_in("/var/tmp").unwrap();
                let path = root.path().join("box");
                fs::write(&path, format!("{OLD}{LINE}\n{}", &NEW[..NEW.len() - 9])).unwrap();
                let file = File::options().read(true).write(true).open(&path).unwrap();
                note(&file, OLD.len() as u64, OLD.len() as u64, 0, LINE);
                let stat = dir::stat_file(&file).unwrap();
                fault_point::arm(step, failure);
                let removed = remove(&file, stat, |_| Ok(false));
                let fired = !fault_point::disarm();
                let is_gone = || fs::read_to_string(&path).unwrap() == OLD;
                assert!(
                    removed.is_err() || is_gone(),
                    "{failure:?} at {step}: {removed:?}"
                );
                let again = remove(&file, dir::stat_file(&file).unwrap(), |_| Ok(false));
                assert!(
                    again.is_ok() && is_gone(),
                    "{failure:?} at {step}: {again:?}"
                );
                if !fired {
                    removed.unwrap();
                    assert!(
                        failure.is_of_writes() || step > 4,
                        "only {step} steps can fail"
                    );
                    break;
                }
            }
        }
    }

    #[test]
    fn room_that_was_never_written_to_goes() {
        for length in [1, 4, 40, 100_000] {
            assert_eq!(left(&"\0".repeat(length)), OLD, "{length}");
            let theirs = format!("{}\n\n{OLD}", "\0".repeat(length));
            assert_eq!(left(&theirs), format!("{OLD}{theirs}"), "{length}");
        }
    }

    /// A power cut: the length is that of the whole message, and some blocks of it were never written.
    #[test]
    fn a_message_with_holes_goes() {
        let whole = format!("{LINE}\n{NEW}");
        for from in 0..whole.len() {
            for to in [from + 1, whole.len()] {
                let hole = "\0".repeat(to - from);
                let text = format!("{}{hole}{}", &whole[..from], &whole[to..]);
                assert_eq!(left(&text), OLD, "{from}..{to}");
            }
        }
        // What was sent with them stays.
        let sent = whole.replace("I am", "\0\0am");
        assert_eq!(left_of(&sent, 2), format!("{OLD}{sent}"));
        assert_eq!(left_of(&sent, 1), OLD);
    }

    #[test]
    fn what_somebody_else_has_added_stays() {
        let theirs = "From z  Mon Nov 02 07:02:09 2026\nS: z\n\nz\n\n";
        let whole = format!("{LINE}\n{NEW}");
        for length in 0..=whole.len() {
            for gap in ["", "\n", "\n\n", ">", "\n>"] {
                let end = format!("{}{gap}{theirs}", &whole[..length]);
                assert_eq!(left(&end), format!("{OLD}{end}"), "{length}");
            }
        }
    }
}
