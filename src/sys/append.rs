//! Bytes behind the end of a file, wherever that is by now.

use std::fs::File;
use std::io::{self, ErrorKind, Seek};
use std::os::fd::AsRawFd;

/// Writes at the end of the file, as with `O_APPEND`: never over the bytes of one who has added to it a moment ago, and never behind a
/// hole where somebody has cut it. Answers how many bytes were written, and where they end.
pub fn append(mut file: &File, bytes: &[u8]) -> io::Result<(usize, u64)> {
    let piece = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the one piece is `bytes`, which the call only reads and which outlives it. -1: the file's own offset, which then is the end.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &piece, 1, -1, libc::RWF_APPEND) };
    match usize::try_from(written) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(0) if !bytes.is_empty() => Err(ErrorKind::WriteZero.into()),
        Ok(written) => Ok((written, file.stream_position()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_what_others_have_written() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        std::fs::write(&path, "one ").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        assert_eq!(append(&file, b"two ").unwrap(), (4, 8));
        std::fs::write(&path, "cut ").unwrap();
        assert_eq!(append(&file, b"three").unwrap(), (5, 9));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "cut three");
        let read_only = File::open(&path).unwrap();
        assert!(append(&read_only, b"x").is_err());
    }
}
