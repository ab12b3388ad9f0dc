//! Names that are whoever's, on a terminal and in a command that is copied from there.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One line that does nothing to a terminal.
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\'' | '\\' => out.push(c),
            // Also what turns the writing direction, or cannot be seen.
            c => out.extend(c.escape_debug()),
        }
    }
    out
}

/// One word for a shell: as it is, in quotes, or with escapes, which bash, ksh, zsh and POSIX 2024 know.
pub fn shell(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._+-@%,:=".contains(byte);
    match path.to_str() {
        Some(text) if !text.is_empty() && bytes.iter().all(is_plain) => text.to_owned(),
        Some(text) if shown(text) == text => format!("'{}'", text.replace('\'', "'\\''")),
        _ => {
            let escaped = bytes.iter().map(|byte| match byte {
                byte if is_plain(byte) => char::from(*byte).to_string(),
                byte => format!("\\{byte:03o}"),
            });
            format!("$'{}'", escaped.collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_line_does_nothing() {
        for (text, want) in [
            ("/srv/mail/.Büro 'x' \\057", "/srv/mail/.Büro 'x' \\057"),
            ("a\nb\u{1b}[2J\0", "a\\nb\\u{1b}[2J\\0"),
            ("a\u{202e}b\u{85}", "a\\u{202e}b\\u{85}"),
        ] {
            assert_eq!(shown(text), want);
        }
    }

    #[test]
    fn a_shell_reads_the_same_word() {
        for (bytes, want) in [
            (
                &b"/srv/.Work/cur/1.M2P3.x,S=1:2,S"[..],
                "/srv/.Work/cur/1.M2P3.x,S=1:2,S",
            ),
            (b"/a b;$(c)`d`*", "'/a b;$(c)`d`*'"),
            (b"/it's", "'/it'\\''s'"),
            ("/ü".as_bytes(), "'/ü'"),
            (b"/a\nb'", "$'/a\\012b\\047'"),
            (b"/caf\xe9\x1b1", "$'/caf\\351\\0331'"),
        ] {
            let word = shell(Path::new(OsStr::from_bytes(bytes)));
            assert_eq!(word, want);
            let script = format!("printf %s {word}");
            let printed = Command::new("bash").arg("-c").arg(script).output();
            // Not everywhere is a bash.
            if let Ok(printed) = printed {
                assert_eq!(printed.stdout, bytes);
            }
        }
    }
}
