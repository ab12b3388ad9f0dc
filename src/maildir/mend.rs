//! A whole `dovecot-uidlist`: what is wrong in it, and a list without that. For `postroom doctor`; a delivery reads no more
//! than its end.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind, Read, Write};

use memchr::memmem;

use super::filename::base;
use super::uidlist::{FILE, Header, Lock, NEW_FILE};
use crate::sys::dir::{self, Dir, Stat};
use crate::sys::fault_point;

/// More than a million messages, bytes.
const MAX_SIZE: u64 = 128 * 1024 * 1024;
/// The same trouble in more lines is told by their number: anything may be in a list.
const MAX_TOLD: usize = 5;

/// A line that should not be as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Counted from 1. None: of many lines.
    pub line: Option<usize>,
    pub what: String,
}

/// A list that is understood, in its order.
#[derive(Debug)]
pub struct Whole {
    stat: Stat,
    bytes: Vec<u8>,
    header: Header,
}

/// What a list is worth.
#[derive(Debug)]
pub struct Judgement<'a> {
    pub faults: Vec<Fault>,
    /// How many lines are of messages that are gone: Dovecot leaves them until they are a quarter of the list.
    pub gone: usize,
    /// The lines that are right, by their UIDs.
    pub kept: Vec<Line<'a>>,
}

/// `17 S12 :name:2,S`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    pub uid: u32,
    /// Without its flags.
    pub name: &'a [u8],
    /// Counted from 1.
    number: usize,
    /// With its end.
    bytes: &'a [u8],
}

impl<'a> Line<'a> {
    /// None: Dovecot would not take it. A name may be any bytes.
    fn parse(number: usize, bytes: &'a [u8]) -> Option<Line<'a>> {
        let line = bytes.strip_suffix(b"\n")?;
        let end = memmem::find(line, b" :")?;
        let digits = line.split(|&byte| byte == b' ').next()?;
        let is_number = digits.iter().all(u8::is_ascii_digit);
        let uid = std::str::from_utf8(digits).ok()?.parse().ok()?;
        let name = &line[end + 2..];
        let is_odd = !is_number || uid == 0 || base(name).is_empty() || name.contains(&b'/');
        (!is_odd).then_some(Line {
            uid,
            name: base(name),
            number,
            bytes,
        })
    }

    /// The line that Dovecot adds behind a torn one ends up in it.
    fn is_glued(&self) -> bool {
        memmem::find_iter(self.bytes, b" :").count() > 1
    }
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
        fault_point::pass()
            .and_then(|()| file.take(MAX_SIZE + 1).read_to_end(&mut bytes))
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

    /// What is wrong, and what stays. `is_there`: whether a file of this name, without its flags, is in the mailbox.
    ///
    /// The first line of a UID has it: Dovecot reads no further. Of two lines of a file the one with the higher UID stays, as
    /// with Dovecot: once it has read them, the lower one is an expunged message to it.
    pub fn judge(&self, is_there: impl Fn(&[u8]) -> bool) -> Judgement<'_> {
        let mut faults = Faults::default();
        let (mut uids, mut files) = (HashMap::new(), HashMap::<&[u8], Line>::new());
        let (mut gone, mut highest) = (0, 0);
        // The header is line 1.
        for (number, bytes) in (2..).zip(self.lines()) {
            if bytes.last() != Some(&b'\n') {
                faults.add(number, "are torn", || "is torn".into());
                continue;
            }
            let Some(line) = Line::parse(number, bytes) else {
                let what = || "is no line of a list".into();
                faults.add(number, "are no lines of a list", what);
                continue;
            };
            let uid = line.uid;
            if let Some(other) = uids.insert(uid, number as u32) {
                uids.insert(uid, other);
                let what = || format!("has the UID of line {other}");
                faults.add(number, "have the UID of another", what);
                continue;
            }
            let is_there = is_there(line.name);
            if !is_there && line.is_glued() {
                let what = || "is two lines without an end between them".into();
                faults.add(number, "are two in one", what);
            } else if uid < highest {
                let what = || format!("has UID {uid}, and stands behind {highest}");
                faults.add(number, "are out of order", what);
            }
            highest = highest.max(uid);
            if !is_there {
                gone += usize::from(!line.is_glued());
                continue;
            }
            let Some(other) = files.insert(line.name, line) else {
                continue;
            };
            let (lower, higher) = match other.uid < uid {
                true => (other, line),
                false => (line, other),
            };
            files.insert(line.name, higher);
            let what = || format!("has the file of line {}", higher.number);
            faults.add(lower.number, "have the file of another", what);
        }
        let mut kept: Vec<Line> = files.into_values().collect();
        kept.sort_unstable_by_key(|line| line.uid);
        Judgement {
            faults: faults.told(),
            gone,
            kept,
        }
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
            // Each that is glued to it may have had the next one.
            let more = memmem::find_iter(line, b" :").count().saturating_sub(1);
            let uid = digits.parse::<u32>().ok()?;
            Some(uid.saturating_add(u32::try_from(more).ok()?))
        });
        // A torn line may have lost digits of its UID, and was at least the next one.
        let highest = numbers.max().unwrap_or(0);
        let torn = u32::from(self.bytes.last() != Some(&b'\n'));
        let next = highest.checked_add(1 + torn).ok_or("it is full")?;
        self.header
            .with_next(&self.bytes, next.max(self.header.next))
    }
}

/// What is wrong, in a bounded number of words.
#[derive(Default)]
struct Faults {
    told: Vec<Fault>,
    counts: BTreeMap<&'static str, usize>,
}

impl Faults {
    fn add(&mut self, line: usize, many: &'static str, what: impl FnOnce() -> String) {
        let count = self.counts.entry(many).or_default();
        *count += 1;
        if *count <= MAX_TOLD {
            self.told.push(Fault {
                line: Some(line),
                what: what(),
            });
        }
    }

    fn told(mut self) -> Vec<Fault> {
        let counts = self.counts.into_iter();
        let many = counts.filter(|(_, count)| *count > MAX_TOLD);
        self.told.extend(many.map(|(many, count)| Fault {
            line: None,
            what: format!("{} more lines {many}", count - MAX_TOLD),
        }));
        self.told
    }
}

/// Writes the list anew without what is wrong in it and what is gone; answers that. Its UIDs are not used again.
///
/// Group and mode stay as they are, or the list does.
pub fn mend(lock: &Lock, is_there: impl Fn(&[u8]) -> bool) -> Result<Vec<Fault>, String> {
    let Some(list) = Whole::read(lock.control())? else {
        return Ok(Vec::new());
    };
    let Judgement {
        mut faults,
        gone,
        kept,
    } = list.judge(is_there);
    if gone > 0 {
        faults.push(Fault {
            line: None,
            what: gone_lines(gone),
        });
    }
    if faults.is_empty() {
        return Ok(faults);
    }
    let header = list.header()?;
    let written = lock.write_anew(NEW_FILE, FILE, |file| {
        dir::set_rights(file, list.stat.mode, Some(list.stat.gid))?;
        let lines = kept.iter().map(|line| line.bytes);
        let bytes: Vec<&[u8]> = [header.as_bytes()].into_iter().chain(lines).collect();
        fault_point::write(&bytes.concat(), |bytes| (&*file).write_all(bytes))
    });
    written.map_err(|error| error.to_string())?;
    Ok(faults)
}

/// `2 lines are of messages that are gone`
pub fn gone_lines(count: usize) -> String {
    format!("{count} lines are of messages that are gone")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::uidlist::TIMEOUT;
    use super::*;

    const HEADER: &str = "3 V1795332733 N5 G86371b0c7d9a026bb73a000083ecc375 Pold\n";

    fn mended(root: &Path) -> Result<Vec<String>, String> {
        let dir = Dir::open(root).unwrap();
        let lock = Lock::take(dir, 0o600, TIMEOUT).unwrap();
        let faults = mend(&lock, |name| !name.starts_with(b"gone"))?;
        let line = |fault: &Fault| fault.line.map_or(String::new(), |line| format!("{line} "));
        let faults = faults.into_iter();
        Ok(faults.map(|it| line(&it) + &it.what).collect())
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
                &["2 has the file of line 3"],
                9,
                "8 :x:2,F\n",
            ),
            (
                "9 :x\n7 :y\n8 :x\n",
                &[
                    "3 has UID 7, and stands behind 9",
                    "4 has UID 8, and stands behind 9",
                    "4 has the file of line 2",
                ],
                10,
                "7 :y\n9 :x\n",
            ),
            // What is no line of a file does not stand against one that is.
            (
                "7 :x\n7 :y\n8 :y\n",
                &["3 has the UID of line 2"],
                9,
                "7 :x\n8 :y\n",
            ),
            (
                "7 :gone\n7 :y\n",
                &[
                    "3 has the UID of line 2",
                    "1 lines are of messages that are gone",
                ],
                8,
                "",
            ),
            (
                "7 :x\n900 :gone1\n",
                &["1 lines are of messages that are gone"],
                901,
                "7 :x\n",
            ),
            (
                "900 :gone1\n7 :x\n",
                &[
                    "3 has UID 7, and stands behind 900",
                    "1 lines are of messages that are gone",
                ],
                901,
                "7 :x\n",
            ),
            (
                "7 :x\n8 :gone9 :y\n",
                &["3 is two lines without an end between them"],
                10,
                "7 :x\n",
            ),
            ("7 :a :b\n8 :c:1,x\n", &[], 5, "7 :a :b\n8 :c:1,x\n"),
            (
                "x\nx\nx\nx\nx\nx\nx\n7 :x\n",
                &[
                    "2 is no line of a list",
                    "3 is no line of a list",
                    "4 is no line of a list",
                    "5 is no line of a list",
                    "6 is no line of a list",
                    "2 more lines are no lines of a list",
                ],
                8,
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
            ("+7 :x\n", &["2 is no line of a list"], 5, ""),
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

    /// Maildir names are bytes: a line that we cannot print has a UID like any other.
    #[test]
    fn a_name_that_is_not_utf8_keeps_its_uid() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        let lines = b"7 :caf\xe9:2,S\n9 :\xff\n";
        fs::write(&path, [HEADER.as_bytes(), lines, b"10 :to"].concat()).unwrap();
        assert_eq!(mended(root.path()).unwrap(), ["4 is torn"]);
        let header = HEADER.replace("N5", "N12");
        let after = fs::read(&path).unwrap();
        assert_eq!(after, [header.as_bytes(), lines].concat());
    }

    #[test]
    fn every_step_fails_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        let wrong = format!("{HEADER}9 :y\n7 :x\n8 :t");
        let right = HEADER.replace("N5", "N11") + "7 :x\n9 :y\n";
        for failure in fault_point::FAILURES {
            for step in 0.. {
                fs::write(&path, &wrong).unwrap();
                let lock = Lock::take(Dir::open(root.path()).unwrap(), 0o600, TIMEOUT).unwrap();
                fault_point::arm(step, failure);
                let done = mend(&lock, |_| true);
                let fired = !fault_point::disarm();
                drop(lock);
                let after = fs::read_to_string(&path).unwrap();
                match done {
                    Ok(_) => assert_eq!(after, right),
                    Err(_) => assert!(after == wrong || after == right, "{step}: {after}"),
                }
                let names = fs::read_dir(root.path()).unwrap().count();
                assert_eq!(names, 1, "{step}: neither lock nor new list stays");
                if !fired {
                    assert!(
                        failure.is_of_writes() || step > 6,
                        "only {step} steps can fail"
                    );
                    break;
                }
            }
        }
    }

    #[test]
    fn what_is_not_understood_stays() {
        let full = format!("{HEADER}x\n4294967295 :x\n");
        for list in ["", "1 5 7\n1 x\n", "3 V5\n7 :x\n", "4 V5 N5\n", &full] {
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
        fn any_list_is_mended(lines in proptest::collection::vec("[0-9]{0,3}( S1)? ?:?[a-c]{0,2}(:1,)?\n?", 0..8)) {
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
