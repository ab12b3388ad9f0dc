//! Bytes behind the end of a file, wherever that is by now.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Seek, SeekFrom, Write};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::fault_point::pass;

/// A file whose writes go to its end (`O_APPEND`), until this is dropped: never over the bytes of one who has added to it a moment ago,
/// and never behind a hole where somebody has cut it. A file server knows of no such end: there its locks have to do.
#[derive(Debug)]
pub struct Appending<'a> {
    file: &'a File,
    flags: OFlag,
}

impl<'a> Appending<'a> {
    /// `end`: where it is expected, and where a file system writes that does not do what it is asked for.
    pub fn to(mut file: &'a File, end: u64) -> io::Result<Appending<'a>> {
        file.seek(SeekFrom::Start(end))?;
        let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
        fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_APPEND))?;
        Ok(Appending { file, flags })
    }

    /// How many bytes were written.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = self.file;
        match file.write_vectored(&[IoSlice::new(bytes)])? {
            0 if !bytes.is_empty() => Err(ErrorKind::WriteZero.into()),
            written => Ok(written),
        }
    }

    /// Writes are to where they say again. Until then one that says where would go to the end, too.
    pub fn stop(self) -> io::Result<()> {
        pass()?;
        fcntl(self.file, FcntlArg::F_SETFL(self.flags))?;
        std::mem::forget(self);
        Ok(())
    }

    /// Where they end.
    pub fn end(&self) -> io::Result<u64> {
        let mut file = self.file;
        file.stream_position()
    }
}

impl Drop for Appending<'_> {
    fn drop(&mut self) {
        // What was written before may still get its last UID.
        let _ = fcntl(self.file, FcntlArg::F_SETFL(self.flags));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn behind_what_others_have_written() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        std::fs::write(&path, "one ").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let appending = Appending::to(&file, 4).unwrap();
        let append = |bytes| (appending.write(bytes).unwrap(), appending.end().unwrap());
        assert_eq!(append(b"two "), (4, 8));
        std::fs::write(&path, "cut ").unwrap();
        assert_eq!(append(b"three"), (5, 9));
        appending.stop().unwrap();
        file.write_all_at(b"C", 0).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "Cut three");
    }

    /// Where the flag counts for nothing it is written where the end was expected, not over what is there.
    #[test]
    fn it_stands_at_the_end_that_is_expected() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        std::fs::write(&path, "one ").unwrap();
        let mut file = File::options().write(true).open(&path).unwrap();
        drop(Appending::to(&file, 4).unwrap());
        file.write_all(b"two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one two");
    }
}
