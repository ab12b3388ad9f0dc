//! The bytes of a message between the socket and the store.
//!
//! Lines end in LF, as every store keeps them: the CR of each CRLF goes while the message comes in, and a lone CR stays.
//! Small messages are held in memory, and some larger ones as long as there is room for them; the rest waits in files
//! without a name: what the process needs does not grow with the message.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use blake3::Hasher;
use memchr::memchr2;

use super::room::Room;
use crate::sys::dir::Dir;
use crate::sys::{fault_point, packet};

/// The largest message that stays in memory in any case, bytes.
const SMALL: usize = 64 * 1024;
/// Larger ones do so up to one of these sizes while there is room, bytes: to write a message to a spool and read it back costs
/// more than its delivery.
const LARGER: [usize; 2] = [256 * 1024, 2 * 1024 * 1024];
/// What is read from the spool at once, bytes: with 64 KiB a copy takes twice as long.
const PIECE: usize = 512 * 1024;
/// How much of its start is kept for looking at header fields, bytes.
const HEAD: usize = 64 * 1024;

/// Where messages that are too large for memory wait: the first of these that takes a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spool {
    pub dirs: Vec<PathBuf>,
    /// Bytes that are to stay free there.
    pub min_free: u64,
}

/// A complete message.
pub struct Body {
    storage: Storage,
    /// Given back when the body goes.
    _room: Option<Room>,
    size: u64,
    virtual_size: u64,
    digest: Option<[u8; 32]>,
}

enum Storage {
    Memory(Vec<u8>),
    File { file: File, head: Vec<u8> },
}

/// A message that is coming in.
pub struct BodyWriter {
    spool: Spool,
    room: Option<Room>,
    memory: Vec<u8>,
    file: Option<(File, Vec<u8>)>,
    digest: Option<Box<Hasher>>,
    /// The last byte was a CR that may belong to a CRLF: not stored yet.
    held_cr: bool,
    /// The last stored byte.
    last: u8,
    received: u64,
    size: u64,
    /// LFs without a CR before them as stored: each is a CRLF to IMAP.
    bare_lines: u64,
}

impl BodyWriter {
    /// A file is made in `spool` when there is no more room in memory, not before. The body has no [digest](Body::digest).
    pub fn new(spool: &Spool) -> BodyWriter {
        BodyWriter {
            spool: spool.clone(),
            room: None,
            memory: Vec::new(),
            file: None,
            digest: None,
            held_cr: false,
            last: 0,
            received: 0,
            size: 0,
            bare_lines: 0,
        }
    }

    /// The same, with a [digest](Body::digest).
    pub fn digesting(spool: &Spool) -> BodyWriter {
        BodyWriter {
            digest: Some(Box::new(Hasher::new())),
            ..BodyWriter::new(spool)
        }
    }

    /// Bytes as they came, CRs included.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether `more` bytes can be taken without waiting for a disk.
    pub fn fits_in_memory(&mut self, more: usize) -> bool {
        let needed = self.memory.len() + usize::from(self.held_cr) + more;
        self.file.is_none() && needed <= self.limit(needed)
    }

    /// The most that memory may hold of this message, which needs `needed` bytes.
    fn limit(&mut self, needed: usize) -> usize {
        let limit = self.room.as_ref().map_or(SMALL, |room| room.0);
        if self.file.is_some() || needed <= limit {
            return limit;
        }
        let Some(size) = LARGER.into_iter().find(|size| needed <= *size) else {
            return limit;
        };
        let Some(room) = Room::find(size) else {
            return limit;
        };
        self.memory.reserve_exact(size - self.memory.len());
        self.room = Some(room);
        size
    }

    /// Takes bytes as they came. After an error the message is lost: the writer is of no more use.
    pub fn write(&mut self, wire: &[u8]) -> io::Result<()> {
        self.received += wire.len() as u64;
        if let Some(digest) = &mut self.digest {
            digest.update(wire);
        }
        if self.file.is_none() && self.memory.is_empty() {
            self.memory.reserve_exact(wire.len().min(SMALL));
        }
        if let Some(first) = wire.first()
            && std::mem::take(&mut self.held_cr)
            && *first != b'\n'
        {
            self.store(b"\r")?;
        }
        // Nothing before `start` is to be stored still, and no line end before `at` is to be looked at.
        let (mut start, mut at) = (0, 0);
        while let Some(found) = memchr2(b'\r', b'\n', &wire[at..]) {
            let found = at + found;
            let before = if found > start {
                wire[found - 1]
            } else {
                self.last
            };
            at = found + 1;
            match (wire[found], wire.get(at)) {
                (b'\n', _) => self.bare_lines += u64::from(before != b'\r'),
                (_, Some(b'\n')) => {
                    self.bare_lines += u64::from(before != b'\r');
                    self.store(&wire[start..found])?;
                    start = at;
                    at += 1;
                }
                (_, Some(_)) => {}
                (_, None) => {
                    self.held_cr = true;
                    return self.store(&wire[start..found]);
                }
            }
        }
        self.store(&wire[start..])
    }

    /// The whole message.
    pub fn finish(mut self) -> io::Result<Body> {
        if std::mem::take(&mut self.held_cr) {
            self.store(b"\r")?;
        }
        let storage = match self.file {
            None => Storage::Memory(self.memory),
            Some((mut file, head)) => {
                fault_point::write(&self.memory, |bytes| file.write_all(bytes))?;
                Storage::File { file, head }
            }
        };
        Ok(Body {
            storage,
            _room: self.room,
            size: self.size,
            virtual_size: self.size + self.bare_lines,
            digest: self.digest.map(|hasher| hasher.finalize().into()),
        })
    }

    fn store(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(&last) = bytes.last() else {
            return Ok(());
        };
        self.last = last;
        self.size += bytes.len() as u64;
        let needed = self.memory.len() + bytes.len();
        let mut bytes = bytes;
        if needed > self.limit(needed) {
            if self.file.is_none() {
                // The head is the start of the message, however it comes.
                let missing = HEAD.saturating_sub(self.memory.len()).min(bytes.len());
                self.memory.extend_from_slice(&bytes[..missing]);
                bytes = &bytes[missing..];
            }
            self.spill()?;
        }
        match &mut self.file {
            Some((file, _)) if bytes.len() > SMALL => {
                fault_point::write(bytes, |bytes| file.write_all(bytes))
            }
            _ => {
                self.memory.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Moves what is in memory to the file.
    fn spill(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            let head = self.memory[..self.memory.len().min(HEAD)].to_vec();
            self.file = Some((self.spool.file()?, head));
        }
        if let Some((file, _)) = &mut self.file {
            fault_point::write(&self.memory, |bytes| file.write_all(bytes))?;
        }
        self.memory.clear();
        self.memory.shrink_to(SMALL);
        self.room = None;
        Ok(())
    }
}

impl Spool {
    /// `dirs` in the order in which they are tried. No space has to stay free in them.
    pub fn of(dirs: Vec<PathBuf>) -> Spool {
        Spool { dirs, min_free: 0 }
    }

    /// Whether a message of so many bytes may come to lie here.
    pub fn needs_space(&self, bytes: u64) -> bool {
        bytes > SMALL as u64 || self.min_free > 0
    }

    /// An error where so many bytes do not fit, beside those that are to stay free.
    pub fn check_space(&self, bytes: u64) -> io::Result<()> {
        let free = self
            .dirs
            .iter()
            .find_map(|dir| fs2::available_space(dir).ok());
        match free {
            Some(free) if free < bytes.saturating_add(self.min_free) => {
                let why = format!("No space left in the spool: {free} bytes are free");
                Err(io::Error::new(io::ErrorKind::StorageFull, why))
            }
            // No directory at all: a small message needs none.
            _ => Ok(()),
        }
    }

    fn file(&self) -> io::Result<File> {
        let mut failed = io::Error::new(
            io::ErrorKind::NotFound,
            "no spool directory for a large message is configured",
        );
        for dir in &self.dirs {
            match Dir::open(dir).and_then(|dir| dir.anonymous_file()) {
                Ok(file) => return Ok(file),
                Err(error) => {
                    failed = io::Error::new(
                        error.kind(),
                        format!("spool directory {}: {error}", dir.display()),
                    );
                }
            }
        }
        Err(failed)
    }
}

impl Body {
    /// The message that another process has [given](Body::handle). `size`, `virtual_size`: what it says of it.
    pub fn from_file(file: File, size: u64, virtual_size: u64) -> io::Result<Body> {
        let start = match size {
            size if size <= SMALL as u64 => size as usize,
            _ => HEAD,
        };
        let mut head = vec![0; start];
        file.read_exact_at(&mut head, 0)?;
        Ok(Body {
            storage: match head.len() as u64 == size {
                true => Storage::Memory(head),
                false => Storage::File { file, head },
            },
            _room: None,
            size,
            virtual_size,
            digest: None,
        })
    }

    /// The message for another process, which can read it only.
    pub fn handle(&self) -> io::Result<File> {
        match &self.storage {
            Storage::Memory(bytes) => packet::sealed(bytes),
            Storage::File { file, .. } => packet::read_only(file),
        }
    }

    /// BLAKE3 of every byte as it came, where it was asked for.
    pub fn digest(&self) -> Option<&[u8; 32]> {
        self.digest.as_ref()
    }

    /// Bytes as stored.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes with every line end as CRLF: what IMAP calls the size.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// The start of the message, at most 64 KiB.
    pub fn head(&self) -> &[u8] {
        match &self.storage {
            Storage::Memory(bytes) => &bytes[..bytes.len().min(HEAD)],
            Storage::File { head, .. } => head,
        }
    }

    /// Appends `header` and the message to `file`. Several threads may do so at once, each into its own file.
    pub fn copy_to(&self, header: &[u8], mut file: &File) -> io::Result<()> {
        let mut write = |bytes: &[u8]| fault_point::write(bytes, |bytes| file.write_all(bytes));
        match &self.storage {
            Storage::Memory(bytes) => {
                // One call for both; of more, what follows begins at a whole page.
                let first = match bytes.len() <= SMALL {
                    true => bytes.len(),
                    false => SMALL - header.len() % SMALL,
                };
                let (first, rest) = bytes.split_at(first);
                write(&[header, first].concat())?;
                match rest.is_empty() {
                    true => Ok(()),
                    false => write(rest),
                }
            }
            Storage::File { .. } => {
                write(header)?;
                self.each_piece_behind(header.len(), write)
            }
        }
    }

    /// `header` and the message in a file of its own, with CRLF, to be read from where it is: by a program that makes them LF again, and
    /// would take a CR for its own that stands before one.
    pub fn in_a_file(&self, header: &[u8], spool: &Spool) -> io::Result<File> {
        let with_cr = |piece: &[u8], out: &mut dyn Write| {
            piece
                .split_inclusive(|&byte| byte == b'\n')
                .try_for_each(|line| match line.strip_suffix(b"\n") {
                    Some(text) => out.write_all(text).and_then(|()| out.write_all(b"\r\n")),
                    None => out.write_all(line),
                })
        };
        let mut file = match self.size <= SMALL as u64 {
            true => {
                let mut all = Vec::new();
                with_cr(header, &mut all)?;
                self.each_piece(|piece| with_cr(piece, &mut all))?;
                packet::sealed(&all)?
            }
            false => {
                let mut out = BufWriter::new(spool.file()?);
                with_cr(header, &mut out)?;
                self.each_piece(|piece| with_cr(piece, &mut out))?;
                out.into_inner()?
            }
        };
        file.rewind()?;
        Ok(file)
    }

    /// The message piece by piece.
    pub fn each_piece(&self, take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.each_piece_behind(0, take)
    }

    /// The same for a file that has `start` bytes already: whole pages are written, whatever came before.
    fn each_piece_behind(
        &self,
        start: usize,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let spooled = match &self.storage {
            Storage::Memory(bytes) => return take(bytes),
            Storage::File { file, .. } => file,
        };
        let mut buffer = vec![0; PIECE.min(usize::try_from(self.size).unwrap_or(PIECE))];
        let mut at = 0;
        while at < self.size {
            fault_point::pass()?;
            let behind = (start as u64 + at) % PIECE as u64;
            let wanted = buffer.len().min(PIECE - behind as usize);
            let count = spooled.read_at(&mut buffer[..wanted], at)?;
            if count == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the spooled message is shorter than it was",
                ));
            }
            take(&buffer[..count])?;
            at += count as u64;
        }
        Ok(())
    }
}

/// Without a letter of its content.
impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.size)
    }
}

impl fmt::Debug for BodyWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BodyWriter({} bytes so far)", self.received)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom};

    use proptest::prelude::*;

    use super::super::room;
    use super::*;

    fn stored(body: &Body) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        body.copy_to(b"", &file).unwrap();
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn body(pieces: &[&[u8]]) -> Body {
        let mut writer = BodyWriter::new(&Spool::of(vec![std::env::temp_dir()]));
        pieces.iter().for_each(|piece| writer.write(piece).unwrap());
        writer.finish().unwrap()
    }

    #[test]
    fn line_ends() {
        for (wire, want, virtual_size) in [
            (&b"a\r\nb\r\n"[..], &b"a\nb\n"[..], 6),
            (b"a\nb", b"a\nb", 4),
            (b"a\rb\r", b"a\rb\r", 4),
            (b"a\r\r\nb", b"a\r\nb", 4),
            (b"\r\n\r\n", b"\n\n", 4),
            (b"\n\r\n", b"\n\n", 4),
            (b"a\0\r\n", b"a\0\n", 4),
            (b"", b"", 0),
        ] {
            let body = body(&[wire]);
            assert_eq!(stored(&body), want, "{wire:?}");
            assert_eq!(
                (body.size(), body.virtual_size()),
                (want.len() as u64, virtual_size),
                "{wire:?}"
            );
        }
    }

    #[test]
    fn a_large_message_goes_to_the_spool() {
        let line = b"0123456789012345678901234567890123456789012345678901234567890123456789\r\n";
        let wire = line.repeat(40_000);
        let body = body(&wire.chunks(30_011).collect::<Vec<_>>());
        let want = wire.replace_crlf();
        assert!(stored(&body) == want);
        assert_eq!(body.head(), &want[..HEAD]);
        assert_eq!(body.virtual_size(), wire.len() as u64);
        for header in [b"Header: of its own\r\n".repeat(70), vec![b'x'; PIECE + 1]] {
            let mut file = tempfile::tempfile().unwrap();
            body.copy_to(&header, &file).unwrap();
            let mut copy = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut copy).unwrap();
            assert!(copy == [header, want.clone()].concat());
        }
    }

    #[test]
    fn the_head_of_one_large_piece() {
        let wire = b"0123456789\n".repeat(300_000);
        let body = body(&[&wire]);
        assert_eq!(body.head(), &wire[..HEAD]);
        assert!(stored(&body) == wire);
    }

    /// One test: the room is the whole process's.
    #[test]
    fn there_is_room_for_some_large_messages() {
        let spool = Spool::of(vec![std::env::temp_dir()]);
        let writer = |size: usize| {
            let mut writer = BodyWriter::new(&spool);
            let in_memory = writer.fits_in_memory(size);
            writer.write(&vec![b'x'; size]).unwrap();
            (in_memory, writer.finish().unwrap())
        };
        assert!(writer(SMALL).0);
        let [medium, large] = LARGER;
        assert!(writer(medium).0 && writer(medium + 1).0);
        assert!(!writer(large + 1).0);
        let at_once = room::of_all() / large;
        let bodies: Vec<_> = (0..at_once + 10).map(|_| writer(large)).collect();
        let held = bodies.iter().filter(|(in_memory, _)| *in_memory).count();
        // Other tests have some of it.
        assert!((1..=at_once).contains(&held));
        assert!(bodies.iter().all(|(_, body)| body.size() == large as u64));
        drop(bodies);
        assert!(writer(large).0, "room was given back");
    }

    /// A message that is spooled is whole, or an error.
    #[test]
    fn every_step_of_spooling_fails_once() {
        // No room in memory.
        let wire = vec![b'x'; LARGER[1] + 100_000];
        for failure in fault_point::FAILURES {
            for step in 0.. {
                let mut writer = BodyWriter::new(&Spool::of(vec![std::env::temp_dir()]));
                let copy = tempfile::tempfile().unwrap();
                fault_point::arm(step, failure);
                let copied = (|| {
                    for piece in wire.chunks(wire.len() / 4) {
                        writer.write(piece)?;
                    }
                    writer.finish()?.copy_to(b"", &copy)
                })();
                let fired = !fault_point::disarm();
                assert_ne!(fired, copied.is_ok(), "{failure:?} at {step}");
                if !fired {
                    assert!(stored(&Body::from_file(copy, wire.len() as u64, 0).unwrap()) == wire);
                    assert!(step > 4, "only {step} steps can fail");
                    break;
                }
            }
        }
    }

    #[test]
    fn without_a_spool_a_large_message_is_an_error() {
        let mut writer = BodyWriter::new(&Spool::of(vec!["/nonexistent".into()]));
        let error = (0..1000).find_map(|_| writer.write(&[b'x'; 10_000]).err());
        assert!(error.unwrap().to_string().contains("/nonexistent"));
    }

    trait ReplaceCrlf {
        fn replace_crlf(&self) -> Vec<u8>;
    }

    impl ReplaceCrlf for Vec<u8> {
        fn replace_crlf(&self) -> Vec<u8> {
            let keep = |&at: &usize| !(self[at] == b'\r' && self.get(at + 1) == Some(&b'\n'));
            (0..self.len()).filter(keep).map(|at| self[at]).collect()
        }
    }

    proptest! {
        #[test]
        fn however_it_is_cut(wire in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'x')], 0..40),
                             cuts in proptest::collection::vec(0usize..40, 0..5)) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut <= wire.len()).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &wire[cut[0]..cut[1]]).collect();
            let body = body(&pieces);
            let want = wire.replace_crlf();
            prop_assert_eq!(&stored(&body), &want);
            let bare = (0..want.len()).filter(|&at| want[at] == b'\n' && (at == 0 || want[at - 1] != b'\r')).count();
            prop_assert_eq!(body.virtual_size(), (want.len() + bare) as u64);
        }
    }

    /// A CR that is held needs room, too.
    #[test]
    fn what_fits_needs_no_file() {
        let mut writer = BodyWriter::new(&Spool::default());
        writer.write(&vec![b'x'; LARGER[1] - 1]).unwrap();
        writer.write(b"\r").unwrap();
        assert!(writer.fits_in_memory(0));
        let fits = writer.fits_in_memory(1);
        assert_eq!(writer.write(b"x").is_ok(), fits);
    }
}
