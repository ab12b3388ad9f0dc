//! The first line of a `dovecot-uidlist`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::sys::fault_point;

/// It is far shorter, bytes.
const MAX_HEADER: usize = 4096;

/// `3 V1795332733 N17 G86371b0c7d9a026bb73a000083ecc375`
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    pub length: usize,
    /// UIDVALIDITY, never 0.
    pub validity: u32,
    /// The next UID when the list was last written anew.
    pub next: u32,
}

impl Header {
    /// The start of a list, in which its header is.
    pub fn bytes(file: &File) -> io::Result<Vec<u8>> {
        fault_point::pass()?;
        let mut bytes = vec![0; MAX_HEADER];
        let length = file.read_at(&mut bytes, 0)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// The header line of `list`, whose header this is, with another next UID.
    pub fn with_next(&self, list: &[u8], next: u32) -> Result<String, String> {
        let line = list.get(..self.length).unwrap_or_default();
        let line = std::str::from_utf8(line).map_err(|_| "its header is not UTF-8")?;
        let next = format!("N{next}");
        let mut header = String::new();
        for field in line.trim_end_matches('\n').split(' ') {
            header.push_str(if field.starts_with('N') { &next } else { field });
            header.push(' ');
        }
        header.pop();
        header.push('\n');
        Ok(header)
    }

    pub fn parse(bytes: &[u8]) -> Option<Header> {
        let length = memchr::memchr(b'\n', bytes)?;
        let line = std::str::from_utf8(&bytes[..length]).ok()?;
        let mut fields = line.split(' ');
        if fields.next() != Some("3") {
            return None;
        }
        let (mut validity, mut next) = (None, None);
        for field in fields {
            match field.split_at_checked(1) {
                Some(("V", value)) => validity = number(value),
                Some(("N", value)) => next = number(value),
                // With another one Dovecot takes the whole list for broken, and gives new UIDs.
                Some(("G", guid)) if !is_guid(guid) => return None,
                _ => {}
            }
        }
        Some(Header {
            length: length + 1,
            validity: validity?,
            next: next?,
        })
    }
}

/// Digits, and not 0.
pub fn number(text: &str) -> Option<u32> {
    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| is_digits && *number > 0)
}

fn is_guid(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
