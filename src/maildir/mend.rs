//! A whole `dovecot-uidlist`: what is wrong in it, and a list without that. For `postroom doctor`; a delivery reads no more
//! than its end.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use super::keywords;
use super::uidlist::{FILE, Header, Lock, NEW_FILE, base, uid_of};
use crate::sys::dir::{self, Dir, Stat};

/// Some million messages, bytes.
const MAX_SIZE: u64 = 256 * 1024 * 1024;

/// A line that should not be as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Counted from 1.
    pub line: usize,
    pub what: String,
}

/// A list that is understood, in its order.
#[derive(Debug)]
pub struct Whole {
    stat: Stat,
    bytes: Vec<u8>,
    header: Header,
}

impl Whole {
    /// None: there is none. Err: why it is Dovecot's to make a new one.
    pub fn read(control: &Dir) -> Result<Option<Whole>, String> {
        let text = |error: io::Error| error.to_string();
        let file = match control.read(FILE) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(text)?,
        };
        let stat = dir::stat_file(&file).map_err(text)?;
        let mut bytes = Vec::new();
        file.take(MAX_SIZE + 1)
            .read_to_end(&mut bytes)
            .map_err(text)?;
        if bytes.len() as u64 > MAX_SIZE {
            return Err("it is too long".into());
        }
        let header = Header::parse(&bytes).ok_or("its header is not that of version 3")?;
        Ok(Some(Whole {
            stat,
            bytes,
            header,
        }))
    }

    /// The UID of each file that has one.
    pub fn uids(&self) -> HashMap<&str, u32> {
        let lines = self.lines().filter_map(|line| parsed(line));
        lines.map(|(uid, name)| (name, uid)).collect()
    }

    /// What is wrong, and the lines that are right, by their UIDs. `is_there`: whether a file of this name, without its
    /// flags, is in the mailbox.
    pub fn judge(&self, is_there: impl Fn(&str) -> bool) -> (Vec<Fault>, Vec<&[u8]>) {
        let (mut uids, mut names) = (HashMap::new(), HashMap::new());
        let (mut faults, mut kept) = (Vec::new(), Vec::new());
        let mut highest = 0;
        // The header is line 1.
        for (number, line) in (2..).zip(self.lines()) {
            let mut fault = |what: String| faults.push(Fault { line: number, what });
            if line.last() != Some(&b'\n') {
                fault("is torn".into());
                continue;
            }
            let Some((uid, name)) = parsed(line) else {
                fault("is no line of a list".into());
                continue;
            };
            if let Some(other) = names.insert(name, number) {
                fault(format!("has the file of line {other}"));
            } else if let Some(other) = uids.insert(uid, number) {
                fault(format!("has the UID of line {other}"));
            } else if !is_there(name) {
                fault(format!("has UID {uid}, and its file is not there"));
            } else {
                if uid < highest {
                    fault(format!("has UID {uid}, and stands behind {highest}"));
                }
                highest = highest.max(uid);
                kept.push((uid, line));
            }
        }
        kept.sort_by_key(|(uid, _)| *uid);
        (faults, kept.into_iter().map(|(_, line)| line).collect())
    }

    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let lines = &self.bytes[self.header.length..];
        lines.split_inclusive(|&byte| byte == b'\n')
    }

    /// The header line, with a next UID above all that were ever seen in this list.
    fn header(&self) -> Result<String, String> {
        let numbers = self.lines().filter_map(|line| {
            let digits = line.iter().take_while(|byte| byte.is_ascii_digit());
            let digits: String = digits.map(|&byte| char::from(byte)).collect();
            digits.parse::<u32>().ok()
        });
        // A torn line may have lost digits of its UID, and was at least the next one.
        let highest = numbers.max().unwrap_or(0);
        let torn = u32::from(self.bytes.last() != Some(&b'\n'));
        let next = highest.checked_add(1 + torn).ok_or("it is full")?;
        self.header
            .with_next(&self.bytes, next.max(self.header.next))
    }
}

/// UID and name without flags.
fn parsed(line: &[u8]) -> Option<(u32, &str)> {
    let uid = uid_of(line)?;
    let line = std::str::from_utf8(line).ok()?;
    let (_, name) = line.trim_end_matches('\n').split_once(" :")?;
    Some((uid, base(name))).filter(|(_, name)| !name.is_empty() && !name.contains('/'))
}

/// Takes away what crashes have left of the control files: a stale lock by taking it. Answers the names.
pub fn clear(control: &Path, mode: u32) -> Result<(Lock, Vec<&'static str>), String> {
    /// Those that only the holder of the lock makes.
    const LEFT: [&str; 2] = [NEW_FILE, keywords::NEW_FILE];
    let text = |error: io::Error| error.to_string();
    let control = Dir::open(control).map_err(text)?;
    let was_locked = control.stat_name("dovecot-uidlist.lock").is_ok();
    let mut gone = Vec::new();
    let lock = Lock::take(control, mode).map_err(text)?;
    if was_locked {
        gone.push("dovecot-uidlist.lock");
    }
    for name in LEFT {
        match lock.control().unlink(name) {
            Ok(()) => gone.push(name),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(text(error)),
        }
    }
    Ok((lock, gone))
}

/// Writes the list anew without what is wrong in it; answers that. Its UIDs are not used again.
///
/// Group and mode stay as they are, or the list does.
pub fn mend(lock: &Lock, is_there: impl Fn(&str) -> bool) -> Result<Vec<Fault>, String> {
    let Some(list) = Whole::read(lock.control())? else {
        return Ok(Vec::new());
    };
    let (faults, lines) = list.judge(is_there);
    if faults.is_empty() {
        return Ok(faults);
    }
    let header = list.header()?;
    let written = lock.control().write_anew(NEW_FILE, FILE, |file| {
        dir::set_rights(file, list.stat.mode, Some(list.stat.gid))?;
        let mut file = io::BufWriter::new(file);
        file.write_all(header.as_bytes())?;
        lines.iter().try_for_each(|line| file.write_all(line))?;
        dir::sync_file(file.into_inner().map_err(io::IntoInnerError::into_error)?)
    });
    written.map_err(|error| error.to_string())?;
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    const HEADER: &str = "3 V1795332733 N5 G86371b0c7d9a026bb73a000083ecc375 Pold\n";

    fn mended(root: &Path) -> Result<Vec<String>, String> {
        let dir = Dir::open(root).unwrap();
        let lock = Lock::take(dir, 0o600).unwrap();
        let faults = mend(&lock, |name| !name.starts_with("gone"))?;
        let faults = faults.into_iter();
        Ok(faults
            .map(|fault| format!("{} {}", fault.line, fault.what))
            .collect())
    }

    #[test]
    fn what_is_wrong_goes_and_what_is_right_stays() {
        for (lines, faults, next, kept) in [
            ("", &[][..], 5, ""),
            (
                "7 :x:2,S\n9 S12 W13 :y\n",
                &[],
                5,
                "7 :x:2,S\n9 S12 W13 :y\n",
            ),
            ("7 :x\n8 :to", &["3 is torn"], 10, "7 :x\n"),
            (
                "9 :y\n7 :x\n",
                &["3 has UID 7, and stands behind 9"],
                10,
                "7 :x\n9 :y\n",
            ),
            ("7 :x\n7 :y\n", &["3 has the UID of line 2"], 8, "7 :x\n"),
            (
                "7 :x\n8 :x:2,F\n",
                &["3 has the file of line 2"],
                9,
                "7 :x\n",
            ),
            (
                "7 :x\n900 :gone1\n",
                &["3 has UID 900, and its file is not there"],
                901,
                "7 :x\n",
            ),
            (
                "x\n0 :a\n3\n\n7 :x\n8 : y/z\n",
                &[
                    "2 is no line of a list",
                    "3 is no line of a list",
                    "4 is no line of a list",
                    "5 is no line of a list",
                    "7 is no line of a list",
                ],
                9,
                "7 :x\n",
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(FILE);
            fs::write(&path, format!("{HEADER}{lines}")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
            assert_eq!(mended(root.path()).unwrap(), faults, "{lines:?}");
            let header = HEADER.replace("N5", &format!("N{next}"));
            let after = fs::read_to_string(&path).unwrap();
            assert_eq!(after, format!("{header}{kept}"));
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o664);
            assert_eq!(mended(root.path()).unwrap(), &[] as &[String], "{lines:?}");
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn what_is_not_understood_stays() {
        for list in ["", "1 5 7\n1 x\n", "3 V5\n7 :x\n", "4 V5 N5\n"] {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join(FILE), list).unwrap();
            assert!(mended(root.path()).is_err());
            let after = fs::read_to_string(root.path().join(FILE)).unwrap();
            assert_eq!(after, list);
        }
        let root = tempfile::tempdir().unwrap();
        assert_eq!(mended(root.path()), Ok(Vec::new()));
    }

    proptest! {
        /// Whatever is in it: afterwards nothing is wrong, and no UID comes back.
        #[test]
        fn any_list_is_mended(lines in proptest::collection::vec("[0-9]{0,3}( S1)? ?:?[a-c]{0,2}\n?", 0..8)) {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(FILE);
            let text = format!("{HEADER}{}", lines.concat());
            fs::write(&path, &text).unwrap();
            mended(root.path()).unwrap();
            prop_assert_eq!(mended(root.path()), Ok(Vec::new()));
            let after = fs::read(&path).unwrap();
            let next = Header::parse(&after).unwrap().next;
            let seen = text.lines().skip(1).filter_map(|line| {
                line.split(' ').next()?.parse::<u32>().ok()
            });
            if after != text.as_bytes() {
                prop_assert!(seen.max().unwrap_or(0) < next);
            }
        }
    }
}
