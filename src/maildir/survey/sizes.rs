//! The sizes that names say: Dovecot believes them until it reads the message.

use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use super::super::filename::field;
use super::{Cure, Names, Place, Survey};
use crate::sys::dir::{Dir, Stat};

/// A larger message is believed, bytes: a file with a hole may seem to have any size.
const MAX_READ: u64 = 1024 * 1024 * 1024;
/// How the files of Dovecot's plugins begin (gzip, bzip2, xz, zstd, LZ4, mail_crypt): their names say what is in them.
const PACKED: [&[u8]; 6] = [
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd",
    b"Dovecot-LZ4\r*\x9b\xc5",
    b"CRYPTED\x03\x07",
];

impl Survey {
    pub(super) fn sizes(&mut self, place: &Place, mailbox: &Dir, names: &Names) {
        let (mut wrong, mut unreadable) = (Vec::new(), Vec::new());
        for part in ["new", "cur"] {
            let Ok(dir) = mailbox.open_dir(part) else {
                continue;
            };
            for name in names.values().flatten().filter(|name| name.part == part) {
                let Some(stat) = name.stat else { continue };
                let path = || place.mailbox.join(part).join(&name.full);
                match judge(&dir, &name.full, &stat) {
                    Ok(None) => {}
                    Ok(Some(what)) => wrong.push((path(), what)),
                    // A reader has given it other flags, or has expunged it.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => unreadable.push((path(), format!("cannot be read: {error}"))),
                }
            }
        }
        let cure = Cure::Others("Dovecot gives it a right name when it reads it");
        self.add_each(wrong, place, "have other sizes than their names say", cure);
        let cure = Cure::Others("see whose it is, and its mode");
        self.add_each(unreadable, place, "messages cannot be read", cure);
    }
}

/// What is wrong with the sizes in the name of this file.
fn judge(dir: &Dir, name: &std::ffi::OsStr, stat: &Stat) -> io::Result<Option<String>> {
    let file = dir.read(name)?;
    let (size, virtual_size) = (field(name.as_bytes(), b"S="), field(name.as_bytes(), b"W="));
    let real = stat.size;
    if let Some(size) = size.filter(|size| *size != real) {
        let mut start = [0; 16];
        let length = file.read_at(&mut start, 0)?;
        let is_packed = PACKED.iter().any(|it| start[..length].starts_with(it));
        return Ok((!is_packed).then(|| format!("has {real} bytes, not {size}")));
    }
    let Some(said) = virtual_size.filter(|_| real <= MAX_READ) else {
        return Ok(None);
    };
    let counted = count(file.take(MAX_READ))?;
    Ok((counted != said).then(|| format!("has {counted} bytes with CRLF, not {said}")))
}

/// Bytes with every line end as CRLF.
fn count(mut from: impl Read) -> io::Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let (mut size, mut last) = (0, 0);
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(size);
        }
        for &byte in &buffer[..length] {
            size += 1 + u64::from(byte == b'\n' && last != b'\r');
            last = byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_with_their_crlf() {
        for (text, want) in [("", 0), ("\n", 2), ("a\r\nb\n", 6), ("\r\r\n", 3), ("a", 1)] {
            assert_eq!(count(text.as_bytes()).unwrap(), want, "{text:?}");
        }
    }
}
