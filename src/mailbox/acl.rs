//! Rights: what a `dovecot-acl` file gives to one user.
//!
//! Understood today: `user=NAME` and `anyone` lines with right letters, comments, empty lines. Any other line is
//! [`AclError`]: cannot tell, never a guess. A more specific entry replaces a less specific one
//! (anyone < user), as in Dovecot.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use crate::sys::dir::Dir;

/// The largest file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;
/// The file's name in a mailbox directory.
pub const FILE: &str = "dovecot-acl";
/// Every right (RFC 4314 and Dovecot's `p`).
const ALL: &str = "lrwstipekxa";

/// A set of right letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights(String);

/// What an ACL file says about one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub rights: Rights,
    /// The entry that decided: `.Sales/dovecot-acl:3 "anyone p"`, or the default.
    pub by: String,
}

/// "Cannot tell": unreadable, malformed or not understood, with file and line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclError {
    /// 1-based; 0 when the file as a whole could not be read.
    pub line: usize,
    pub why: String,
    /// This process may not read it: for a mailbox that a stranger named, that is a no.
    pub closed: bool,
}

impl Rights {
    pub fn all() -> Rights {
        Rights(ALL.into())
    }

    pub fn none() -> Rights {
        Rights(String::new())
    }

    pub fn lookup(&self) -> bool {
        self.0.contains('l')
    }

    pub fn insert(&self) -> bool {
        self.0.contains('i')
    }

    pub fn post(&self) -> bool {
        self.0.contains('p')
    }

    pub fn create(&self) -> bool {
        self.0.contains('k')
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { &self.0 })
    }
}

impl AclError {
    fn of_file(error: &io::Error) -> AclError {
        AclError {
            line: 0,
            why: error.to_string(),
            closed: crate::sys::is_no_way(error),
        }
    }

    fn of_line(line: usize, why: impl Into<String>) -> AclError {
        AclError {
            line,
            why: why.into(),
            closed: false,
        }
    }
}

/// Reads the ACL file of a mailbox directory. `None`: there is none.
pub fn read(directory: &Path) -> Result<Option<Vec<u8>>, AclError> {
    let unreadable = |error: io::Error| AclError::of_file(&error);
    let dir = Dir::open(directory).map_err(unreadable)?;
    let file = match dir.read(FILE) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut text = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    match text.len() as u64 > MAX_FILE {
        true => Err(AclError::of_line(
            0,
            format!("larger than {MAX_FILE} bytes"),
        )),
        false => Ok(Some(text)),
    }
}

/// What `text` gives to `user`; `None` when no entry is about him. `anyone` is not about the owner.
pub fn grant(
    text: &[u8],
    user: &str,
    shown: &str,
    is_owner: bool,
) -> Result<Option<Grant>, AclError> {
    let (mut anyone, mut own): (Option<Grant>, Option<Grant>) = (None, None);
    for (number, line) in (1..).zip(text.split(|&byte| byte == b'\n')) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = std::str::from_utf8(line).map_err(|_| AclError::of_line(number, "not UTF-8"))?;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (identifier, letters) = line.split_once(' ').unwrap_or((line, ""));
        let letters = letters.trim_matches([' ', '\t']);
        if let Some(odd) = letters.chars().find(|&c| !ALL.contains(c)) {
            return Err(AclError::of_line(
                number,
                format!("{odd:?} is not a right letter"),
            ));
        }
        let entry = match identifier {
            "anyone" => &mut anyone,
            _ => match identifier.strip_prefix("user=") {
                Some(name) if name == user => &mut own,
                Some(_) => continue,
                None => {
                    return Err(AclError::of_line(
                        number,
                        format!("cannot tell what {identifier:?} means"),
                    ));
                }
            },
        };
        // Two lines with one identifier are one entry with the rights of both.
        let mut rights = entry
            .take()
            .map_or(String::new(), |earlier| earlier.rights.0);
        rights.push_str(letters);
        *entry = Some(Grant {
            rights: Rights(rights),
            by: format!("{shown}:{number} {line:?}"),
        });
    }
    Ok(if is_owner { own } else { own.or(anyone) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_file_gives_to_bob() {
        for (file, want) in [
            ("", None),
            ("# all\n\n", None),
            ("anyone lp", Some("lp")),
            ("anyone lp\r\n", Some("lp")),
            ("user=alice lrwip\n", None),
            ("anyone lr\nuser=bob lp\n", Some("lp")),
            ("user=bob lp\nanyone lrwi\n", Some("lp")),
            ("user=bob\nanyone lrwi\n", Some("")),
            ("user=bob l\nuser=bob p\n", Some("lp")),
            ("user=BOB lp\n", None),
            ("user=bob  lp \n", Some("lp")),
        ] {
            let got = grant(file.as_bytes(), "bob", "f", false).unwrap();
            assert_eq!(got.map(|grant| grant.rights.0).as_deref(), want, "{file:?}");
        }
    }

    #[test]
    fn what_cannot_be_told() {
        for (file, line) in [
            ("anyone lrZ", 1),
            ("anyone lr foo", 1),
            ("\nowner lr", 2),
            ("group=staff lr", 1),
            ("-user=bob r", 1),
            (" user=bob lr", 1),
            ("\"user=bob\" lr", 1),
            ("anyone lr\n\nauthenticated p", 3),
        ] {
            assert_eq!(
                grant(file.as_bytes(), "bob", "f", false).unwrap_err().line,
                line,
                "{file:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_answer(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = grant(&text, "bob", "f", false);
        }
    }
}
