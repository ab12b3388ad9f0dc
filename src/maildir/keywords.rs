//! `dovecot-keywords`: which letter in a Maildir name stands for which keyword (`maildir-keywords.c`).
//!
//! A line is `0 $Junk`: keyword 0 is the letter `a`, and so on to 25. A letter is for ever: lines are added, never taken away
//! or numbered anew, for files have the letters in their names. So the file is written before a name has the letter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::uidlist::Lock;
use crate::mailbox::permission::Permission;
use crate::message::Keywords;
use crate::sys::dir::{self, Dir, Stat};
use crate::sys::fault_point;

/// In the control directory; written under the [`Lock`] of the list of UIDs.
pub const FILE: &str = "dovecot-keywords";
/// The new content: no lock against anybody, that is the one of `dovecot-uidlist`.
pub(super) const NEW_FILE: &str = "dovecot-keywords.lock";
/// As many letters are there.
const MAX_KEYWORDS: u8 = 26;
/// 26 lines are far shorter, bytes.
const MAX_SIZE: u64 = 64 * 1024;

/// Keywords as a message can have them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lettered {
    /// As they stand behind the flags in a Maildir name.
    pub letters: String,
    /// Those that found no letter: only an index can hold them.
    pub without: Keywords,
}

/// The letters of `keywords` in the mailbox of this control directory, those that are new to it added to its file.
///
/// The caller holds `lock` until the files that use the letters have their names. Why there are none is for the log: then
/// the file is as it was, or has lines that nobody uses yet.
pub fn letters(
    lock: &Lock,
    permission: &Permission,
    keywords: &Keywords,
) -> Result<Lettered, String> {
    let said = |why: String| format!("{FILE}: {why}");
    let (mut table, old) = read(lock.control()).map_err(said)?;
    let known = table.0.len();
    let numbers: BTreeSet<u8> = keywords
        .iter()
        .filter_map(|keyword| table.number(keyword))
        .collect();
    if table.0.len() > known {
        let content = table.text();
        // Durable: a crash must not leave a letter in a name, and no keyword for it.
        lock.write_anew(NEW_FILE, FILE, |file| {
            fill(file, permission, old.as_ref(), &content)
        })
        .map_err(|error| said(error.to_string()))?;
    }
    let letters = numbers.iter().map(|number| char::from(b'a' + number));
    Ok(Lettered {
        letters: letters.collect(),
        without: keywords.clone().only(|name| table.find(name).is_none()),
    })
}

/// The letters that stand for a keyword; none where the file is not understood.
pub fn known_letters(control: &Dir) -> Result<BTreeSet<char>, String> {
    let (table, _) = read(control)?;
    let numbers = table.0.keys();
    Ok(numbers.map(|number| char::from(b'a' + number)).collect())
}

/// The keywords by their numbers.
#[derive(Debug, Default, PartialEq, Eq)]
struct Table(BTreeMap<u8, String>);

impl Table {
    fn parse(bytes: &[u8]) -> Result<Table, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
        let Some(lines) = text.strip_suffix('\n') else {
            return match text.is_empty() {
                true => Ok(Table::default()),
                false => Err("its last line is torn".into()),
            };
        };
        let mut table = Table::default();
        for (at, line) in (1..).zip(lines.split('\n')) {
            let keyword = line.split_once(' ').and_then(|(number, name)| {
                let known = (0..MAX_KEYWORDS).find(|it| it.to_string() == number)?;
                let is_name = !name.is_empty() && !name.contains(char::is_control);
                is_name.then_some((known, name))
            });
            let (number, name) =
                keyword.ok_or_else(|| format!("line {at} is no number and keyword"))?;
            if table.0.contains_key(&number) || table.find(name).is_some() {
                return Err(format!("line {at} has what another has"));
            }
            table.0.insert(number, name.to_owned());
        }
        Ok(table)
    }

    fn find(&self, keyword: &str) -> Option<u8> {
        let mut all = self.0.iter();
        let found = all.find(|(_, name)| name.eq_ignore_ascii_case(keyword));
        found.map(|(number, _)| *number)
    }

    /// The keyword's number; the lowest free one where it has none.
    fn number(&mut self, keyword: &str) -> Option<u8> {
        if let Some(number) = self.find(keyword) {
            return Some(number);
        }
        let free = (0..MAX_KEYWORDS).find(|number| !self.0.contains_key(number))?;
        self.0.insert(free, keyword.to_owned());
        Some(free)
    }

    fn text(&self) -> String {
        let lines = self.0.iter();
        lines
            .map(|(number, name)| format!("{number} {name}\n"))
            .collect()
    }
}

/// What the file says, and its stat where there is one.
fn read(control: &Dir) -> Result<(Table, Option<Stat>), String> {
    let text = |error: io::Error| error.to_string();
    let file = match control.read(FILE) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((Table::default(), None)),
        other => other.map_err(text)?,
    };
    let stat = dir::stat_file(&file).map_err(text)?;
    let mut bytes = Vec::new();
    fault_point::pass()
        .and_then(|()| file.take(MAX_SIZE + 1).read_to_end(&mut bytes))
        .map_err(text)?;
    match bytes.len() as u64 > MAX_SIZE {
        true => Err("it is too long".into()),
        false => Ok((Table::parse(&bytes)?, Some(stat))),
    }
}

/// The content, with the group and mode of the old file, or for a first one those that the mailbox asks for.
fn fill(file: &File, permission: &Permission, old: Option<&Stat>, content: &str) -> io::Result<()> {
    match old {
        Some(old) => dir::set_rights(file, old.mode, Some(old.gid))?,
        None => dir::set_rights(file, permission.file_mode, permission.gid)?,
    }
    fault_point::write(content.as_bytes(), |bytes| (&*file).write_all(bytes))?;
    old.map_or(Ok(()), |old| make_newer(file, old))
}

/// Readers look into it only when its time is another one, in seconds.
fn make_newer(file: &File, old: &Stat) -> io::Result<()> {
    let is_newer =
        || Ok::<_, io::Error>(seconds(dir::stat_file(file)?.modified) > seconds(old.modified));
    if is_newer()? {
        return Ok(());
    }
    let later = old.modified.checked_add(Duration::from_secs(1));
    dir::set_file_modified(file, later.ok_or(ErrorKind::InvalidData)?)?;
    match is_newer()? {
        true => Ok(()),
        false => Err(io::Error::other("its time cannot be set")),
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::uidlist::TIMEOUT;
    use super::*;

    fn keywords(names: &str) -> Keywords {
        let names = names.split(' ').filter(|name| !name.is_empty());
        names.fold(Keywords::default(), |all, name| {
            all.with(&Keywords::parse(name).unwrap())
        })
    }

    fn lettered(root: &Path, names: &str) -> Result<Lettered, String> {
        let permission = Permission {
            file_mode: 0o640,
            ..Permission::private(root)
        };
        letters(&locked(root), &permission, &keywords(names))
    }

    fn locked(root: &Path) -> Lock {
        Lock::take(Dir::open(root).unwrap(), 0o600, TIMEOUT).unwrap()
    }

    /// Afterwards there is the file and nothing else.
    fn content(root: &Path) -> String {
        assert_eq!(fs::read_dir(root).unwrap().count(), 1);
        fs::read_to_string(root.join(FILE)).unwrap()
    }

    #[test]
    fn known_ones_keep_their_letters_and_new_ones_take_the_lowest_free() {
        let all: Vec<String> = (0..26)
            .map(|number| format!("{number} k{number}\n"))
            .collect();
        let (full, short) = (all.concat(), all[..25].concat());
        for (before, names, letters, without, added) in [
            ("", "$Junk", "a", "", "0 $Junk\n"),
            ("", "b a B", "ab", "", "0 b\n1 a\n"),
            ("0 $Junk\n1 $Label1\n", "$label1", "b", "", ""),
            ("0 $Junk\n1 $Label1\n", "$label1 $JUNK", "ab", "", ""),
            ("1 b\n", "b c d", "abc", "", "0 c\n1 b\n2 d\n"),
            ("25 z\n0 a\n", "Z", "z", "", ""),
            ("25 z\n0 a\n", "m", "b", "", "0 a\n1 m\n25 z\n"),
            // Whatever Dovecot took for a keyword once.
            (
                "0 two words\n1 gr\u{fc}n\n",
                "x",
                "c",
                "",
                "0 two words\n1 gr\u{fc}n\n2 x\n",
            ),
            (&full, "k25 x k0 y", "az", "x y", ""),
            (&short, "x y", "z", "y", &format!("{short}25 x\n")),
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(FILE);
            if !before.is_empty() {
                fs::write(&path, before).unwrap();
            }
            let inode = fs::metadata(&path).map(|file| file.ino()).ok();
            let got = lettered(root.path(), names).unwrap();
            let without = keywords(without);
            let letters = letters.to_owned();
            assert_eq!(got, Lettered { letters, without }, "{before:?} {names}");
            let after = match added {
                "" => before,
                added => added,
            };
            assert_eq!(content(root.path()), after);
            let same = inode == fs::metadata(&path).map(|file| file.ino()).ok();
            assert_eq!(same, added.is_empty(), "{before:?} {names}: written anew");
        }
    }

    #[test]
    fn what_is_odd_is_left_as_it_is() {
        let long = format!("0 {}\n", "x".repeat(MAX_SIZE as usize));
        for before in [
            "0 a\n1 torn",
            "\n",
            "0 a\n\n1 b\n",
            "0\n",
            "0 \n",
            "a\n",
            "26 a\n",
            "-1 a\n",
            "+1 a\n",
            "01 a\n",
            "99999999999 a\n",
            "0 a\n0 b\n",
            "0 a\n1 A\n",
            "0 a\r\n",
            "0 a\0\n",
            &long,
        ] {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join(FILE), before).unwrap();
            let error = lettered(root.path(), "a").unwrap_err();
            assert!(error.starts_with(FILE) && error.len() < 80, "{error}");
            assert_eq!(content(root.path()), before);
        }
        for name in [FILE, NEW_FILE] {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir(root.path().join(name)).unwrap();
            lettered(root.path(), "a").unwrap_err();
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        }
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("secret"), "0 a\n").unwrap();
        std::os::unix::fs::symlink("secret", root.path().join(FILE)).unwrap();
        lettered(root.path(), "b").unwrap_err();
    }

    #[test]
    fn the_new_file_is_newer_and_has_the_mode_of_the_old() {
        crate::sys::process::clear_umask();
        let now = SystemTime::now();
        // mode and age of the old file, in seconds; the mode of the new one
        for (old, mode) in [
            (None, 0o640),
            (Some((0o600, 10)), 0o600),
            (Some((0o664, 0)), 0o664),
            (Some((0o604, -1000)), 0o604),
            (Some((0o6755, 0)), 0o644),
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(FILE);
            // Left by a process that died.
            fs::write(root.path().join(NEW_FILE), "0 to").unwrap();
            if let Some((mode, age)) = old {
                fs::write(&path, "0 a\n").unwrap();
                let age = Duration::from_secs((2000 + age) as u64);
                let time = now + Duration::from_secs(2000) - age;
                File::open(&path).unwrap().set_modified(time).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
            let before = fs::metadata(&path).map_or(0, |file| file.mtime());
            lettered(root.path(), "b").unwrap();
            content(root.path());
            let after = fs::metadata(&path).unwrap();
            assert_eq!(after.mode() & 0o7777, mode, "{old:?}");
            assert!(after.mtime() > before, "{old:?}");
        }
    }

    #[test]
    fn every_step_fails_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        let permission = Permission::private(root.path());
        for (before, after) in [(None, "0 b\n"), (Some("0 a\n"), "0 a\n1 b\n")] {
            for failure in fault_point::FAILURES {
                for step in 0.. {
                    let _ = fs::remove_file(&path);
                    if let Some(before) = before {
                        fs::write(&path, before).unwrap();
                    }
                    let lock = locked(root.path());
                    fault_point::arm(step, failure);
                    let got = letters(&lock, &permission, &keywords("b"));
                    let fired = !fault_point::disarm();
                    drop(lock);
                    let now = fs::read_to_string(&path).ok();
                    let is_new = now.as_deref() == Some(after);
                    assert!(
                        is_new || got.is_err() && now.as_deref() == before,
                        "{step}: {now:?}"
                    );
                    let names = fs::read_dir(root.path()).unwrap().count();
                    assert_eq!(names, usize::from(now.is_some()), "{step}");
                    if !fired {
                        got.unwrap();
                        assert!(
                            failure.is_of_writes() || step > 6,
                            "only {step} steps can fail"
                        );
                        break;
                    }
                    assert!(got.is_err(), "{step}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_file_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(table) = Table::parse(&bytes) {
                prop_assert_eq!(Table::parse(table.text().as_bytes()), Ok(table));
            }
        }

        #[test]
        fn what_is_understood_is_written_again(lines in "([0-9]{1,2} [a-c ]{1,3}\n){0,4}", name in "[a-d]") {
            if let Ok(mut table) = Table::parse(lines.as_bytes()) {
                let mut before = table.0.clone();
                let number = table.number(&name).unwrap();
                before.entry(number).or_insert(name);
                prop_assert_eq!(&table.0, &before);
                prop_assert_eq!(Table::parse(table.text().as_bytes()), Ok(table));
            }
        }
    }
}
