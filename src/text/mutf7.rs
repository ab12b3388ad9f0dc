//! Modified UTF-7: mailbox names on disk (RFC 3501, 5.1.3).
//!
//! Strict and canonical: [`decode`] answers `None` for everything that [`encode`] would not write, so a mailbox has
//! one spelling only and nothing can be smuggled past a check that was made on the decoded name.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,";

/// A name as it is written on disk.
pub fn encode(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let run = rest
            .find(|c: char| is_direct(c) != is_direct(first))
            .unwrap_or(rest.len());
        let (part, tail) = rest.split_at(run);
        match is_direct(first) {
            true => out.push_str(&part.replace('&', "&-")),
            false => encode_run(part, &mut out),
        }
        rest = tail;
    }
    out
}

/// The name behind a spelling, if it is the spelling that [`encode`] gives.
pub fn decode(spelling: &str) -> Option<String> {
    let mut out = String::with_capacity(spelling.len());
    let mut rest = spelling;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let end = at + rest[at..].find('-')?;
        match &rest[at + 1..end] {
            "" => out.push('&'),
            run => out.push_str(&decode_run(run)?),
        }
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    (encode(&out) == spelling).then_some(out)
}

/// Printable ASCII stands for itself.
fn is_direct(c: char) -> bool {
    (' '..='~').contains(&c)
}

fn encode_run(run: &str, out: &mut String) {
    out.push('&');
    let (mut bits, mut held) = (0u32, 0);
    for byte in run.encode_utf16().flat_map(u16::to_be_bytes) {
        bits = bits << 8 | u32::from(byte);
        held += 8;
        while held >= 6 {
            held -= 6;
            out.push(char::from(ALPHABET[(bits >> held & 63) as usize]));
        }
        bits &= (1 << held) - 1;
    }
    if held > 0 {
        out.push(char::from(ALPHABET[(bits << (6 - held) & 63) as usize]));
    }
    out.push('-');
}

fn decode_run(run: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(run.len());
    let (mut bits, mut held) = (0u32, 0);
    for letter in run.bytes() {
        let value = ALPHABET.iter().position(|&a| a == letter)?;
        bits = bits << 6 | value as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
        bits &= (1 << held) - 1;
    }
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
        .collect();
    String::from_utf16(&units).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_as_dovecot_writes_them() {
        for (name, spelling) in [
            ("Work", "Work"),
            ("Größe", "Gr&APYA3w-e"),
            ("x&y", "x&-y"),
            ("é", "&AOk-"),
            ("ünï", "&APw-n&AO8-"),
            ("日本語", "&ZeVnLIqe-"),
            ("📁", "&2D3cwQ-"),
            ("a\u{7f}", "a&AH8-"),
        ] {
            assert_eq!(encode(name), spelling);
            assert_eq!(decode(spelling).as_deref(), Some(name));
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for spelling in [
            "&AGE-",
            "&",
            "&A-",
            "&!!!-",
            "&AOk",
            "&AOl-",
            "&APw-&AO8-",
            "é",
            "&2D0-",
            "&-&",
        ] {
            assert_eq!(decode(spelling), None, "{spelling}");
        }
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(name in "\\PC*") {
            prop_assert_eq!(decode(&encode(&name)), Some(name));
        }

        #[test]
        fn one_spelling_for_each_name(spelling in "[ -~]{0,12}") {
            if let Some(name) = decode(&spelling) {
                prop_assert_eq!(encode(&name), spelling);
            }
        }
    }
}
