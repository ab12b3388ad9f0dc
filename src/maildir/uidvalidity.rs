//! `dovecot-uidvalidity`: the last UIDVALIDITY of a root's mailboxes, so that no two of them get the same one
//! (`mailbox-uidvalidity.c`).
//!
//! An empty file `dovecot-uidvalidity.6b029a7d` has the value in its name: whoever renames it to the next one has that. The
//! main file says where to begin. Whatever is odd here, the time is a good value too: a mailbox is never refused for it.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::mailbox::permission::Permission;
use crate::sys::dir::{self, Dir};
use crate::sys::fault_point;

const FILE: &str = "dovecot-uidvalidity";
/// Others may be taking the next value at the same time.
const ATTEMPTS: usize = 10;

/// The UIDVALIDITY of a mailbox that is being made. Never 0.
///
/// `root` is the namespace's root of control files, `permission` its own and `now` the time in seconds. Nothing is synced: a
/// value that is given again after a crash goes to another mailbox.
pub fn next(root: &Dir, permission: &Permission, now: u32) -> u32 {
    let from_main = read(root).and_then(|last| advance(root, last));
    if let Some(value) = from_main.or_else(|| from_markers(root, now)) {
        write(root, permission, value);
        return value;
    }
    from_time(now)
}

fn marker(value: u32) -> String {
    format!("{FILE}.{value:08x}")
}

/// The value of eight hex digits; 0 is none.
fn parse(digits: &str) -> Option<u32> {
    let value = u32::from_str_radix(digits, 16).ok()?;
    (value > 0 && format!("{value:08x}") == digits).then_some(value)
}

/// What the main file says. None: it is missing, or no such file.
fn read(root: &Dir) -> Option<u32> {
    let file = root.read(FILE).ok()?;
    let mut digits = [0; 8];
    fault_point::pass().ok()?;
    file.read_exact_at(&mut digits, 0).ok()?;
    parse(std::str::from_utf8(&digits).ok()?)
}

/// Takes the value behind `last`, or the next one that nobody has taken. None as well where there is none: the largest one
/// is not followed by a small one.
fn advance(root: &Dir, last: u32) -> Option<u32> {
    for last in (last..u32::MAX).take(ATTEMPTS) {
        match root.replace(&marker(last), &marker(last + 1)) {
            Ok(()) => return Some(last + 1),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(_) => return None,
        }
    }
    None
}

/// By the markers alone; the first value of a root is the time.
fn from_markers(root: &Dir, now: u32) -> Option<u32> {
    let mut found: Option<(u32, u32)> = None;
    root.each_name(|name| {
        let value = name
            .strip_prefix(FILE)
            .and_then(|rest| parse(rest.strip_prefix('.')?));
        if let Some(value) = value {
            let (least, most) = found.unwrap_or((value, value));
            found = Some((least.min(value), most.max(value)));
        }
    })
    .ok()?;
    match found {
        Some((least, most)) => {
            if least != most {
                let _ = root.unlink(marker(least));
            }
            advance(root, most)
        }
        None => first(root, now),
    }
}

/// The first marker of a root.
fn first(root: &Dir, now: u32) -> Option<u32> {
    for value in (now.max(1)..=u32::MAX).take(ATTEMPTS) {
        match root.create_new(&marker(value), 0o444) {
            Ok(_) => return Some(value),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(_) => return None,
        }
    }
    None
}

/// The main file saves a search: without it, or with an old value in it, the markers count.
fn write(root: &Dir, permission: &Permission, value: u32) {
    let digits = format!("{value:08x}");
    let fill =
        |file: &File| fault_point::write(digits.as_bytes(), |bytes| file.write_all_at(bytes, 0));
    match root.open_to_change(FILE) {
        Ok(file) => drop(fill(&file)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // Nobody else writes to it before it has its group.
            let Ok(file) = root.create_new(FILE, 0o600) else {
                return;
            };
            let written = fill(&file)
                .and_then(|()| dir::set_rights(&file, permission.file_mode, permission.gid));
            if written.is_err() {
                // Others could not write to it, and Dovecot would say so each time.
                let _ = root.unlink(FILE);
            }
        }
        Err(_) => {}
    }
}

/// The time, and another one for each mailbox of this process.
fn from_time(now: u32) -> u32 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let next = |last: u32| last.checked_add(1).unwrap_or(1).max(now);
    next(LAST.update(Ordering::Relaxed, Ordering::Relaxed, next))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const NOW: u32 = 0x6b02_9a7d;

    fn given(root: &Path) -> u32 {
        let permission = Permission {
            file_mode: 0o640,
            ..Permission::private(root)
        };
        next(&Dir::open(root).unwrap(), &permission, NOW)
    }

    /// What is there: the values of the markers, and the main file.
    fn there(root: &Path) -> String {
        let dir = Dir::open(root).unwrap();
        let names = dir.names().unwrap().into_iter();
        let mut found: Vec<String> = names
            .filter_map(|name| Some(name.strip_prefix(FILE)?.strip_prefix('.')?.to_owned()))
            .collect();
        found.sort();
        found.push(format!(
            "={}",
            fs::read_to_string(root.join(FILE)).unwrap_or_default()
        ));
        found.join(" ")
    }

    #[test]
    fn the_value_behind_the_last() {
        // the main file and the markers that are there; the value, and what is there then
        for (main, markers, value, then) in [
            ("", &[][..], NOW, "6b029a7d =6b029a7d"),
            ("00000005", &["00000005"], 6, "00000006 =00000006"),
            ("00000005", &["00000007"], 8, "00000008 =00000008"),
            ("00000005", &["0000000e"], 15, "0000000f =0000000f"),
            ("00000005", &["0000000f"], 16, "00000010 =00000010"),
            ("00000005", &["00000003"], 4, "00000004 =00000004"),
            (
                "00000005\nand more",
                &["00000005"],
                6,
                "00000006 =00000006\nand more",
            ),
            ("", &["00000005"], 6, "00000006 =00000006"),
            (
                "",
                &["00000003", "00000004", "00000005"],
                6,
                "00000004 00000006 =00000006",
            ),
            ("00000005", &[], NOW, "6b029a7d =6b029a7d"),
            ("garbage!", &["00000005"], 6, "00000006 =00000006"),
            ("12", &["00000005"], 6, "00000006 =00000006"),
            (
                "00000000",
                &["00000000", "00000005"],
                6,
                "00000000 00000006 =00000006",
            ),
            (
                "+0000005",
                &["00000005", "0000000A", "+0000009", "9", "x"],
                6,
                "+0000009 00000006 0000000A 9 x =00000006",
            ),
            ("fffffffe", &["fffffffe"], u32::MAX, "ffffffff =ffffffff"),
        ] {
            let root = tempfile::tempdir().unwrap();
            if !main.is_empty() {
                fs::write(root.path().join(FILE), main).unwrap();
            }
            for marker in markers {
                fs::write(root.path().join(format!("{FILE}.{marker}")), "").unwrap();
            }
            fs::write(root.path().join("dovecot-uidvalidity-not"), "").unwrap();
            assert_eq!(given(root.path()), value, "{main:?} {markers:?}");
            assert_eq!(there(root.path()), then, "{main:?} {markers:?}");
        }
    }

    #[test]
    fn the_largest_value_is_not_followed_by_a_small_one() {
        for main in ["", "ffffffff"] {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join(FILE), main).unwrap();
            fs::write(root.path().join(marker(u32::MAX)), "").unwrap();
            let (one, two) = (given(root.path()), given(root.path()));
            assert!(one >= NOW && two > one, "{one} {two}");
            assert_eq!(there(root.path()), format!("ffffffff ={main}"));
        }
        let root = tempfile::tempdir().unwrap();
        let permission = Permission::private(root.path());
        assert_eq!(next(&Dir::open(root.path()).unwrap(), &permission, 0), 1);
    }

    #[test]
    fn what_stands_in_the_way_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let (main, elsewhere) = (root.path().join(FILE), root.path().join("elsewhere"));
        fs::write(&elsewhere, "00000005").unwrap();
        symlink(&elsewhere, &main).unwrap();
        assert_eq!(given(root.path()), NOW);
        assert_eq!(given(root.path()), NOW + 1);
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "00000005");
        fs::remove_file(&main).unwrap();
        fs::create_dir(&main).unwrap();
        assert_eq!(given(root.path()), NOW + 2);
        assert!(main.is_dir());
        // A marker that nothing can be renamed to.
        fs::create_dir_all(root.path().join(marker(NOW + 3)).join("full")).unwrap();
        assert_eq!(given(root.path()), NOW + 4);
    }

    #[test]
    fn the_modes_are_those_of_the_root() {
        crate::sys::process::clear_umask();
        let root = tempfile::tempdir().unwrap();
        let value = given(root.path());
        let mode = |name: &str| fs::metadata(root.path().join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode(&marker(value)), mode(FILE)), (0o444, 0o640));
    }

    #[test]
    fn callers_get_different_values() {
        for (begun, times) in [(false, 1), (true, 50)] {
            let root = tempfile::tempdir().unwrap();
            if begun {
                fs::write(root.path().join(FILE), "00000005").unwrap();
                fs::write(root.path().join(marker(5)), "").unwrap();
            }
            let many = || (0..times).map(|_| given(root.path())).collect();
            let values: Vec<Vec<u32>> = std::thread::scope(|scope| {
                let threads = [scope.spawn(many), scope.spawn(many)];
                threads.map(|thread| thread.join().unwrap()).into()
            });
            let all: HashSet<u32> = values.iter().flatten().copied().collect();
            assert_eq!(all.len(), 2 * times, "{values:?}");
        }
    }

    #[test]
    fn every_step_fails_once() {
        for files in [&[][..], &[FILE][..], &["marker"], &[FILE, "marker"]] {
            for failure in fault_point::FAILURES {
                for step in 0.. {
                    let root = tempfile::tempdir().unwrap();
                    for file in files {
                        match *file {
                            FILE => fs::write(root.path().join(FILE), "00000005").unwrap(),
                            _ => fs::write(root.path().join(marker(5)), "").unwrap(),
                        }
                    }
                    let dir = Dir::open(root.path()).unwrap();
                    let permission = Permission::private(root.path());
                    fault_point::arm(step, failure);
                    let value = next(&dir, &permission, NOW);
                    let fired = !fault_point::disarm();
                    let again = next(&dir, &permission, NOW);
                    // A first value is the time, as it is where nothing could be done.
                    assert!(value != again || value >= NOW);
                    let case = format!("{files:?}, {step}: {value} {again}");
                    assert!(value > 5 && again > 5, "{case}");
                    let main = fs::read_to_string(root.path().join(FILE)).unwrap();
                    assert_eq!(main, format!("{again:08x}"), "{case}");
                    if !fired {
                        assert!(
                            failure.is_of_writes() || step > 3,
                            "{files:?}: only {step} steps can fail"
                        );
                        break;
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn only_what_we_would_write_is_a_value(text in "[0-9a-fA-F+-]{8}|.*", value in 1u32..) {
            if let Some(value) = parse(&text) {
                prop_assert_eq!(marker(value), format!("{FILE}.{text}"));
            }
            prop_assert_eq!(parse(&format!("{value:08x}")), Some(value));
        }
    }
}
