//! The last UID that was given, in the header of an mbox's first message.

use memchr::memmem;

/// Where it is in the `start` of a file, and which, if it is one of this UIDVALIDITY: ten digits, to be written over.
pub fn find(start: &[u8], validity: u32) -> Option<(u64, u32)> {
    let header = memmem::find(start, b"\n\n").unwrap_or(start.len());
    let validity = validity.to_string();
    let mut at = 0;
    for line in start[..header].split_inclusive(|&byte| byte == b'\n') {
        let names = ["X-IMAPbase: ", "X-IMAP: "];
        let value = names
            .iter()
            .find_map(|name| line.strip_prefix(name.as_bytes()));
        if let Some(value) = value {
            let mut words = value.split(|byte| matches!(byte, b' ' | b'\n'));
            let is_its = words.next() == Some(validity.as_bytes());
            let digits = words.next()?;
            let is_whole = digits.len() == 10 && digits.iter().all(u8::is_ascii_digit);
            let offset = line.len() - value.len() + validity.len() + 1;
            let last = str::from_utf8(digits).ok()?.parse().ok()?;
            return (is_its && is_whole).then_some(((at + offset) as u64, last));
        }
        at += line.len();
    }
    None
}
