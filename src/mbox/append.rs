//! Messages added to an mbox: whole and synced, or the file is as it was.
//!
//! All that wait for the mailbox are [written](Open::write) under one lock, and then [made sure](Open::make_sure) by one sync, before
//! the lock goes: a message behind which others write could not be taken back any more when its sync fails, and Dovecot's index, which
//! is told under the lock, must know of none that a power cut takes away.

use std::cell::Cell;
use std::fs::{File, FileTimes};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::FileExt;

use super::last_uid;
use super::lock::{Locked, in_place};
use super::open::{Demands, Mbox};
use super::text::{Notes, Text, Uid};
use super::torn::{self, Note};
use crate::fault::Fault;
use crate::message::{Body, Flags};
use crate::sys::append::Appending;
use crate::sys::dir::{self, Stat};
use crate::sys::fault_point::{self, pass};

/// Bytes written at once, at most.
const BUFFER: u64 = 128 * 1024;
/// No size of a file: there are bytes of ours among those of others.
const NOWHERE: u64 = u64::MAX;
/// How much of the first message is looked at, bytes.
const MAX_FIRST: usize = 4096;

/// What is added.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The line before it, without its end.
    pub from_line: &'a str,
    /// Fields that come before its own.
    pub header: &'a [u8],
    pub body: &'a Body,
    pub flags: Flags,
    /// Its UIDVALIDITY is written where the message is the first of the file.
    pub uid: Option<Uid<'a>>,
}

/// An mbox that is locked.
#[derive(Debug)]
pub struct Open<'a> {
    mbox: &'a Mbox,
    demands: &'a Demands,
    locked: Locked,
    before: Stat,
    /// What is written and not yet sure.
    added: Option<Note>,
    /// Where the next message goes.
    end: u64,
    /// Where the last byte of ours ends.
    reach: Cell<u64>,
    /// Something is behind that which could not be taken back.
    is_spoilt: bool,
}

/// Where a message is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Where its line `From ` begins.
    pub offset: u64,
    /// Bytes, with that line.
    pub size: u64,
}

/// The file with messages that stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sure {
    /// As it is now.
    pub stat: Stat,
    /// Nobody has added to the file meanwhile, as one may who knows none of its locks.
    pub is_last: bool,
}

/// Where a message goes, and what is in it.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// Where its line `From ` begins, and where it ends.
    offset: u64,
    end: u64,
    /// Bytes of its body.
    content_length: u64,
    /// NUL bytes.
    zeros: u64,
}

impl<'a> Open<'a> {
    pub(super) fn new(
        mbox: &'a Mbox,
        demands: &'a Demands,
        locked: Locked,
        before: Stat,
    ) -> Open<'a> {
        Open {
            mbox,
            demands,
            locked,
            before,
            added: None,
            end: before.size,
            reach: Cell::new(before.size),
            is_spoilt: false,
        }
    }

    /// As it was when it was locked.
    pub fn stat(&self) -> &Stat {
        &self.before
    }

    /// Writes the messages behind those that are there. What fails leaves the file as it was before this call.
    pub fn write(&mut self, messages: &[Message<'_>]) -> Result<Vec<Appended>, Fault> {
        let failed = |error| self.mbox.failed(error);
        if self.is_spoilt {
            return Err(failed(spoilt()));
        }
        let gap = gap(&self.locked.file, self.end).map_err(failed)?;
        let rooms = self.rooms(messages, gap).map_err(failed)?;
        let Some(end) = rooms.last().map(|room| room.end) else {
            return Ok(Vec::new());
        };
        let note = self.note_with(messages, &rooms);
        if let Err(error) = self.write_to(messages, &rooms, gap, &note) {
            self.take_back(self.end);
            let fault = self.mbox.failed(error);
            return Err(match self.is_spoilt {
                true => fault.not_durable(),
                false => fault,
            });
        }
        (self.added, self.end) = (Some(note), end);
        let appended = |room: Room| Appended {
            offset: room.offset,
            size: room.end - room.offset,
        };
        Ok(rooms.into_iter().map(appended).collect())
    }

    /// What was written is there, it stays, and whoever opens the file finds it. What fails leaves the file as it was when it was locked.
    pub fn make_sure(&mut self) -> Result<Sure, Fault> {
        self.check_sure().map_err(|error| {
            self.take_back(self.before.size);
            self.mbox.failed(error).not_durable()
        })
    }

    fn check_sure(&self) -> io::Result<Sure> {
        if self.is_spoilt {
            return Err(spoilt());
        }
        let (file, dir) = (&self.locked.file, &self.mbox.dir);
        if self.demands.sync {
            dir::sync_data(file)?;
            if self.before.size == 0 {
                dir.sync()?;
            }
        }
        let there = in_place(dir, &self.mbox.name, self.before.identity())?;
        let stat = there.ok_or_else(|| io::Error::other("it was removed or renamed meanwhile"))?;
        if stat.size < self.end {
            let why = "somebody has cut or rewritten it meanwhile, without its locks";
            return Err(io::Error::other(why));
        }
        self.check_lock(&stat)?;
        torn::forget(file);
        self.keep_unread(&stat);
        Ok(Sure {
            stat,
            is_last: stat.size == self.end,
        })
    }

    /// A dotlock that was lost behind the last byte has done its work, where the kernel's lock is held, nobody has another one, and nobody
    /// has rewritten the file: the messages are there, and sent again they would be there twice.
    fn check_lock(&self, stat: &Stat) -> io::Result<()> {
        let checked = self.locked.check();
        let Some(added) = self.added.as_ref().filter(|_| checked.is_err()) else {
            return checked;
        };
        let other = self.mbox.dir.stat_name(format!("{}.lock", self.mbox.name));
        let is_free = other.is_err_and(|error| error.kind() == ErrorKind::NotFound);
        match self.locked.is_kernels && is_free && added.stands_in(&self.locked.file, stat.size)? {
            true => Ok(()),
            false => checked,
        }
    }

    /// The file as it was when it had the size `to`; not where there may be what others have written.
    fn take_back(&mut self, to: u64) {
        let file = &self.locked.file;
        let size = self.locked.check().and_then(|()| dir::stat_file(file));
        let size = size.map(|stat| stat.size);
        let reach = self.reach.get();
        let is_back = match size {
            Ok(size) if size == to => true,
            Ok(size) => to < size && size == reach && dir::set_file_size(file, to).is_ok(),
            Err(_) => false,
        };
        // What others have added; nothing of ours is behind it.
        let is_theirs = reach == to && size.is_ok_and(|size| size > to);
        if !is_back && !is_theirs {
            // It goes with the next delivery.
            self.is_spoilt = true;
            return;
        }
        self.reach.set(to);
        match &self.added {
            Some(added) if to > self.before.size => added.write(file),
            _ => {
                torn::forget(file);
                if is_back {
                    let _ = dir::set_file_modified(file, self.before.modified);
                    let _ = dir::sync_data(file);
                }
                (self.added, self.end) = (None, to);
            }
        }
    }

    /// Where the first message of the file has the last UID, and which, if it is one of this UIDVALIDITY: ten digits, to be written
    /// over.
    pub fn last_uid(&self, validity: u32) -> io::Result<Option<(u64, u32)>> {
        let mut start = vec![0; MAX_FIRST];
        pass()?;
        let length = self.locked.file.read_at(&mut start, 0)?;
        Ok(last_uid::find(&start[..length], validity))
    }

    /// Writes the last UID at `at`. Answers the file as it is now.
    pub fn set_last_uid(&self, at: u64, uid: u32) -> io::Result<Stat> {
        self.locked.check()?;
        let file = &self.locked.file;
        let digits = format!("{uid:010}");
        fault_point::write(digits.as_bytes(), |bytes| file.write_all_at(bytes, at))?;
        let stat = dir::stat_file(file)?;
        self.keep_unread(&stat);
        Ok(stat)
    }

    /// Shells and biff tell new mail by an mbox that was read before it was written.
    fn keep_unread(&self, now: &Stat) {
        if now.accessed != self.before.accessed {
            // Not ours to change: then it is so.
            let times = FileTimes::new().set_accessed(self.before.accessed);
            let _ = pass().and_then(|()| self.locked.file.set_times(times));
        }
    }

    /// What there is to write, and where.
    fn rooms(&self, messages: &[Message<'_>], gap: &[u8]) -> io::Result<Vec<Room>> {
        let mut offset = self.end + gap.len() as u64;
        let mut rooms = Vec::with_capacity(messages.len());
        for message in messages {
            // Written twice: the length of the body stands before it.
            let mut text = Counted::default();
            let (_, content_length) = self.put(message, offset, 0, &mut text)?;
            let digits = content_length.to_string().len() as u64;
            let from_line = message.from_line.len() as u64 + 1;
            let room = Room {
                offset,
                end: offset + from_line + text.bytes + digits - 1,
                content_length,
                zeros: text.zeros,
            };
            offset = room.end;
            rooms.push(room);
        }
        Ok(rooms)
    }

    /// What is not yet sure, and these.
    fn note_with(&self, messages: &[Message<'_>], rooms: &[Room]) -> Note {
        let mut note = self.added.clone().unwrap_or_else(|| Note {
            size: self.before.size,
            offset: rooms[0].offset,
            zeros: 0,
            lengths: Vec::new(),
            mark: torn::mark(messages[0].from_line),
        });
        note.zeros += rooms.iter().map(|room| room.zeros).sum::<u64>();
        let lengths = rooms.iter().map(|room| room.end - room.offset);
        note.lengths.extend(lengths);
        note
    }

    /// Writes behind the end.
    fn write_to(
        &self,
        messages: &[Message<'_>],
        rooms: &[Room],
        gap: &[u8],
        note: &Note,
    ) -> io::Result<()> {
        let file = &self.locked.file;
        let length = rooms.last().map_or(0, |room| room.end - self.end);
        // A dotlock that somebody has broken holds nobody off.
        self.locked.check()?;
        dir::reserve(file, self.end, length)?;
        note.write(file);
        let checked = Checked {
            locked: &self.locked,
            appending: Appending::to(file, self.end)?,
            reach: &self.reach,
            is_checked: true,
            has_failed: false,
        };
        let mut out = BufWriter::with_capacity(length.min(BUFFER) as usize, checked);
        out.write_all(gap)?;
        for (message, room) in messages.iter().zip(rooms) {
            writeln!(out, "{}", message.from_line)?;
            self.put(message, room.offset, room.content_length, &mut out)?;
        }
        let checked = out.into_inner().map_err(|error| error.into_error())?;
        checked.appending.stop()
    }

    /// The message as it stands in the file, and the length of its body.
    fn put<W: Write>(
        &self,
        message: &Message<'_>,
        offset: u64,
        content_length: u64,
        out: W,
    ) -> io::Result<(W, u64)> {
        let uid = message.uid.map(|uid| Uid {
            validity: uid.validity.filter(|_| offset == 0),
            ..uid
        });
        let notes = Notes {
            flags: message.flags,
            uid,
            content_length,
        };
        let mut text = Text::new(out, self.demands.quoting, notes);
        text.take(message.header)?;
        message.body.each_piece(|piece| text.take(piece))?;
        text.finish()
    }
}

fn spoilt() -> io::Error {
    io::Error::other("what is behind its messages could not be taken back")
}

/// What is missing between the last message and the next one: the end of its last line, and an empty line.
fn gap(file: &File, size: u64) -> io::Result<&'static [u8]> {
    let mut end = [b'\n'; 2];
    let known = size.min(2) as usize;
    pass()?;
    file.read_exact_at(&mut end[2 - known..], size - known as u64)?;
    Ok(match end {
        [b'\n', b'\n'] => b"",
        [_, b'\n'] => b"\n",
        _ => b"\n\n",
    })
}

/// How many bytes there would be.
#[derive(Default)]
struct Counted {
    bytes: u64,
    zeros: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes += bytes.len() as u64;
        self.zeros += memchr::memchr_iter(0, bytes).count() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Each write is a step that can fail, and nothing is written without the dotlock, nor behind one that has failed: a buffer tries
/// again when it is dropped.
struct Checked<'a> {
    locked: &'a Locked,
    appending: Appending<'a>,
    /// Where the next byte goes.
    reach: &'a Cell<u64>,
    /// The dotlock, right now.
    is_checked: bool,
    has_failed: bool,
}

impl Checked<'_> {
    /// Where the end is not where it was, our bytes go again, if nobody else's are behind them.
    fn append_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let file = &self.locked.file;
        while !bytes.is_empty() {
            let written = match self.appending.write(bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                written => written?,
            };
            // Until it is known where they are.
            let reach = self.reach.replace(NOWHERE);
            let end = self.appending.end()?;
            let begin = end - written as u64;
            if begin != reach {
                if dir::stat_file(file)?.size == end {
                    dir::set_file_size(file, begin)?;
                    self.reach.set(reach);
                }
                let why = "somebody has added to it or cut it meanwhile, without its locks";
                return Err(io::Error::other(why));
            }
            self.reach.set(end);
            bytes = &bytes[written..];
        }
        Ok(())
    }
}

impl Write for Checked<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if std::mem::replace(&mut self.has_failed, true) {
            return Err(io::Error::other("a write before has failed"));
        }
        if !std::mem::take(&mut self.is_checked) {
            self.locked.check()?;
        }
        fault_point::write(bytes, |bytes| self.append_all(bytes))?;
        self.has_failed = false;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
