//! The beginning of messages that a killed delivery has left at the end of an mbox.
//!
//! Who adds messages notes first, as an attribute of the file, where each of them begins. The next delivery finds the note under the
//! lock. It removes what is there only if it is still that beginning: the same first line `From `, each message where it was to begin, the
//! last one shorter than its Content-Length says, or any of them with holes, and nothing of anybody else behind. Where the last one is cut
//! the others stay: they are whole. Where there are holes all go: none of them was synced, and so none is promised. It stays where that
//! cannot be told: on a file system without attributes, where Dovecot keeps its index in memory, and where a line of the body could be
//! somebody else's `From `.

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
/// A line `From ` is no longer, bytes.
const MAX_LINE: u64 = 1024;
const FROM: &[u8] = b"From ";
/// Line ends between a message and the next one, at most.
const MAX_GAP: u64 = 2;

/// What tells a line `From ` without its end from others (FNV-1a): short enough for a note to lie in the inode of an ext4.
pub fn mark(from_line: &str) -> u32 {
    let bytes = from_line.bytes();
    bytes.fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// Messages that are being added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The size of the file before.
    pub size: u64,
    /// Where the line `From ` of the first one begins.
    pub offset: u64,
    /// NUL bytes of all. A power cut may leave the whole length, and zeros where nothing was written yet.
    pub zeros: u64,
    /// Bytes of each, without a gap between them.
    pub lengths: Vec<u64>,
    /// The [mark] of the first one's line.
    pub mark: u32,
}

/// What is left of messages that were being added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Whole messages, or what others have made of it.
    Mail,
    /// Their beginning: from here on it goes.
    Torn(u64),
}

/// The messages are whole, or gone.
pub fn forget(file: &File) {
    let _ = fault_point::pass().and_then(|()| file.remove_xattr(NOTE));
}

/// Whether a killed delivery may have left something in the file.
pub fn is_noted(file: &File) -> bool {
    !matches!(Note::read(file), Ok(None))
}

/// Removes what a killed delivery has left in the file, which is locked, unless a reader `has_seen` more than what was there before:
/// then it has a UID, which is not the next message's. Answers the file as it is now; after an error the note is still there.
pub fn remove(
    file: &File,
    stat: Stat,
    has_seen: impl FnOnce(u64) -> io::Result<bool>,
) -> io::Result<Stat> {
    let Some(note) = Note::read(file)? else {
        return Ok(stat);
    };
    let removed = match note.left(file, stat.size)? {
        Left::Torn(from) if !has_seen(note.size)? => {
            dir::set_file_size(file, from)?;
            true
        }
        _ => false,
    };
    forget(file);
    match removed {
        true => dir::stat_file(file),
        false => Ok(stat),
    }
}

impl Note {
    /// What cannot be noted is not.
    pub fn write(&self, file: &File) {
        let mut text = format!(
            "{} {} {} {:x}",
            self.size, self.offset, self.zeros, self.mark
        );
        self.lengths
            .iter()
            .for_each(|length| text.push_str(&format!(" {length}")));
        let _ = fault_point::pass().and_then(|()| file.set_xattr(NOTE, text.as_bytes()));
    }

    /// None: nothing is noted, or nothing can be. Err: nobody can tell now whether the end of the file is a message.
    fn read(file: &File) -> io::Result<Option<Note>> {
        match fault_point::pass().and_then(|()| file.get_xattr(NOTE)) {
            Ok(text) => Ok(text.and_then(Note::parse)),
            Err(error) if sys::is_unsupported(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(text: Vec<u8>) -> Option<Note> {
        let text = String::from_utf8(text).ok()?;
        let mut words = text.split(' ');
        let mut number = || words.next()?.parse().ok();
        Some(Note {
            size: number()?,
            offset: number()?,
            zeros: number()?,
            mark: u32::from_str_radix(words.next()?, 16).ok()?,
            lengths: words.map(str::parse).collect::<Result<_, _>>().ok()?,
        })
    }

    /// Where the last one ends.
    fn end(&self) -> Option<u64> {
        let mut lengths = self.lengths.iter();
        lengths.try_fold(self.offset, |end, length| end.checked_add(*length))
    }

    /// Whether all of them begin in the file where they were written.
    pub fn stands_in(&self, file: &File, size: u64) -> io::Result<bool> {
        let mut at = self.offset;
        for length in &self.lengths {
            let mut from = [0; FROM.len()];
            if at + FROM.len() as u64 > size {
                return Ok(false);
            }
            read_exact_at(file, &mut from, at)?;
            if from != *FROM {
                return Ok(false);
            }
            at += length;
        }
        Ok(at <= size && self.first_line(file, size)?.is_some())
    }

    fn left(&self, file: &File, size: u64) -> io::Result<Left> {
        let gap = self.offset.checked_sub(self.size);
        let (Some(end), Some(0..=MAX_GAP)) = (self.end(), gap) else {
            return Ok(Left::Mail);
        };
        // A longer one has been written to by others.
        if size <= self.size || size > end {
            return Ok(Left::Mail);
        }
        if size <= self.offset {
            // Not even the line: the gap.
            let mut gap = vec![0; (size - self.size) as usize];
            read_exact_at(file, &mut gap, self.size)?;
            let is_gap = gap.iter().all(|&byte| byte == b'\n');
            return Ok(if is_gap {
                Left::Torn(self.size)
            } else {
                Left::Mail
            });
        }
        let Some(line) = self.first_line(file, size)? else {
            return Ok(Left::Mail);
        };
        // Those of which anything is there.
        let mut starts = vec![self.offset];
        for length in &self.lengths {
            let next = starts[starts.len() - 1] + length;
            if next >= size {
                break;
            }
            if !is_written(file, next, FROM, size)? {
                return Ok(Left::Mail);
            }
            starts.push(next);
        }
        let last = starts[starts.len() - 1];
        let left = if count_zeros(file, self.offset, size)? > self.zeros {
            Left::Torn(self.size)
        } else if size < end && is_cut(file, last, size)? {
            // With the gap before the first one.
            Left::Torn(if last == self.offset { self.size } else { last })
        } else {
            Left::Mail
        };
        let mut behind = self.offset + line;
        for next in starts.into_iter().skip(1).chain([size]) {
            if is_from_behind(file, behind, next)? {
                return Ok(Left::Mail);
            }
            behind = next + FROM.len() as u64;
        }
        Ok(left)
    }

    /// Bytes of the line `From ` of the first message, as far as it is there; none: that is not its line.
    fn first_line(&self, file: &File, size: u64) -> io::Result<Option<u64>> {
        if !is_written(file, self.offset, FROM, size)? {
            return Ok(None);
        }
        let mut start = vec![0; (size - self.offset).min(MAX_LINE) as usize];
        read_exact_at(file, &mut start, self.offset)?;
        let end = start.iter().position(|byte| matches!(byte, b'\n' | 0));
        let line = &start[..end.unwrap_or(start.len())];
        // Cut, or with a hole, it is nobody's line yet.
        let is_whole = end.is_some_and(|end| start[end] == b'\n');
        let is_its = !is_whole || str::from_utf8(line).is_ok_and(|line| mark(line) == self.mark);
        Ok(is_its.then_some(line.len() as u64))
    }
}

/// Whether this is what stands at `at`, as far as the file goes, and anything was written there.
fn is_written(file: &File, at: u64, text: &[u8], size: u64) -> io::Result<bool> {
    let mut bytes = vec![0; (size - at).min(text.len() as u64) as usize];
    read_exact_at(file, &mut bytes, at)?;
    let mut pairs = bytes.iter().zip(text);
    Ok(pairs.all(|(&byte, &written)| byte == written || byte == 0))
}

/// Whether the message of ours that begins at `start` goes on behind the end of the file, by what it says itself.
fn is_cut(file: &File, start: u64, size: u64) -> io::Result<bool> {
    let mut text = vec![0; (size - start).min(MAX_HEADER as u64) as usize];
    read_exact_at(file, &mut text, start)?;
    Ok(match memmem::find(&text, b"\n\n") {
        // Without its length it is not as we write it.
        Some(header) => content_length(&text[..header + 1]).is_some_and(|body| {
            size < start
                .saturating_add((header + 2) as u64)
                .saturating_add(body)
        }),
        // A header of this size is nobody's.
        None => text.len() < MAX_HEADER,
    })
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

    /// One message with a line behind `OLD`, which was to have so many bytes.
    fn note(length: usize) -> Note {
        Note {
            size: OLD.len() as u64,
            offset: OLD.len() as u64,
            zeros: 0,
            lengths: vec![length as u64],
            mark: mark(LINE),
        }
    }

    /// What is left of an mbox that ends so, where `LINE` and `NEW` were being added.
    fn left(end: &str) -> String {
        left_of(end, &note(LINE.len() + 1 + NEW.len()))
    }

    /// The same where others were.
    fn left_of(end: &str, note: &Note) -> String {
        let root = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = root.path().join("box");
        fs::write(&path, OLD).unwrap();
        let mut file = File::options().read(true).append(true).open(&path).unwrap();
        note.write(&file);
        let noted = Note::read(&file).unwrap();
        assert_eq!(noted.as_ref(), Some(note), "no attributes in /var/tmp");
        file.write_all(end.as_bytes()).unwrap();
        let stat = remove(&file, dir::stat_file(&file).unwrap(), |_| Ok(false)).unwrap();
        assert_eq!(Note::read(&file).unwrap(), None);
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

    #[test]
    fn all_stand_where_they_were_written() {
        let (all, starts, note) = batch();
        let stands = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            note.stands_in(&file, text.len() as u64).unwrap()
        };
        let whole = format!("{OLD}{all}");
        assert!(stands(&whole) && stands(&format!("{whole}{OLD}")));
        for start in &starts[..3] {
            let at = OLD.len() + start;
            let mut holed = whole.clone();
            holed.replace_range(at..at + 5, "\0\0\0\0\0");
            assert!(!stands(&holed), "{start}");
            assert!(!stands(&whole[..at + 3]), "{start}");
        }
        assert!(!stands(
            &whole.replace(LINE, "From z@b  Mon Nov 02 07:02:09 2026")
        ));
        assert!(!stands(&whole[..whole.len() - 1]));
        assert!(!stands(""));
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
                note(LINE.len() + 1 + NEW.len()).write(&file);
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
            let zeros = "\0".repeat(length);
            assert_eq!(left_of(&zeros, &note(100_000)), OLD, "{length}");
            let theirs = format!("{zeros}\n\n{OLD}");
            for room in [length, 200_000] {
                let left = left_of(&theirs, &note(room));
                assert_eq!(left, format!("{OLD}{theirs}"), "{length} {room}");
            }
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
        let noted = |zeros| Note {
            zeros,
            ..note(sent.len())
        };
        assert_eq!(left_of(&sent, &noted(2)), format!("{OLD}{sent}"));
        assert_eq!(left_of(&sent, &noted(1)), OLD);
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

    /// Three at once, as they stand in the file, with where each of them begins and the last one ends.
    fn batch() -> (String, Vec<usize>, Note) {
        let more = [
            "From x@b  Mon Nov 02 07:02:09 2026",
            "From c@d  Tue Nov 03 07:02:09 2026",
        ];
        let texts = [
            format!("{LINE}\n{NEW}"),
            format!("{}\nS: x\nContent-Length: 2\n\nb\n\n", more[0]),
            format!("{}\nS: y\nContent-Length: 5\n\n\nFor\n\n", more[1]),
        ];
        let lengths = texts.iter().map(String::len);
        let starts = lengths
            .clone()
            .scan(0, |at, length| Some(std::mem::replace(at, *at + length)));
        let all = texts.concat();
        let starts = starts.chain([all.len()]).collect();
        let lengths = lengths.map(|length| length as u64).collect();
        (all, starts, Note { lengths, ..note(0) })
    }

    /// Those before it are whole.
    #[test]
    fn of_a_batch_the_message_that_is_cut_goes() {
        let (all, starts, note) = batch();
        for length in 0..=all.len() {
            let whole = starts.iter().rev().find(|&&start| start <= length).unwrap();
            // All but the empty line behind its body.
            let has_body = starts.contains(&(length + 1));
            let left_over = if has_body { length } else { *whole };
            let want = format!("{OLD}{}", &all[..left_over]);
            assert_eq!(left_of(&all[..length], &note), want, "{length}");
        }
    }

    /// None of them was synced.
    #[test]
    fn of_a_batch_with_holes_nothing_stays() {
        let (all, starts, note) = batch();
        for from in (0..all.len()).step_by(3) {
            for to in [from + 1, from + 70, all.len()] {
                for length in [all.len(), starts[2] + 20]
                    .into_iter()
                    .filter(|&it| it > from)
                {
                    let to = to.min(length);
                    let hole = "\0".repeat(to - from);
                    let text = format!("{}{hole}{}", &all[..from], &all[to..length]);
                    assert_eq!(left_of(&text, &note), OLD, "{from}..{to} of {length}");
                }
            }
        }
    }

    /// Behind a batch of which any part is there, or in place of what somebody has cut away.
    #[test]
    fn what_somebody_else_has_added_to_a_batch_stays() {
        let theirs = "From z  Mon Nov 02 07:02:09 2026\nS: z\n\nz\n\n";
        let (all, _, note) = batch();
        for length in 0..=all.len() {
            for gap in ["", "\n", "\n\n"] {
                let end = format!("{}{gap}{theirs}", &all[..length]);
                assert_eq!(
                    left_of(&end, &note),
                    format!("{OLD}{end}"),
                    "{length} {gap:?}"
                );
            }
        }
    }
}
