//! Dovecot's `file` dict: a line with the key, a line with the value, again and again; both escaped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use super::{Difference, MapError, Share, With};
use crate::sys::dir::{self, Dir, Stat};
use crate::sys::dotlock::{Dotlock, Holds, Patience};
use crate::sys::fault_point;

const PATIENCE: Patience = Patience {
    timeout: Duration::from_secs(30),
    stale: Duration::from_secs(60),
};
/// Bytes that are read of a map: its directory is open to all who share.
const MAX_SIZE: u64 = 16 * 1024 * 1024;
const USER: &str = "shared/shared-boxes/user/";
const GROUP: &str = "shared/shared-boxes/group/";
const ANYONE: &str = "shared/shared-boxes/anyone/";

/// The rows. A file that is not there has none.
pub fn read(path: &Path) -> Result<BTreeSet<Share>, MapError> {
    let pairs = pairs(path)?;
    Ok(pairs.keys().filter_map(|key| share(key)).collect())
}

/// Under Dovecot's lock; what is not ours to say stays in the file.
pub fn replace(
    path: &Path,
    owners: &BTreeSet<String>,
    wanted: &BTreeSet<Share>,
) -> Result<Difference, MapError> {
    let failed = |error: io::Error| MapError::Io(path.display().to_string(), error);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|it| it.to_str()))
    else {
        return Err(failed(ErrorKind::InvalidFilename.into()));
    };
    make_parents(parent).map_err(failed)?;
    let dir = Dir::open(parent).map_err(failed)?;
    let stat = dir.stat().map_err(failed)?;
    let (mode, gid) = permission(&dir, name, &stat).map_err(failed)?;
    let mut lock = Dotlock::take(&dir, name, mode, Holds::Content, PATIENCE).map_err(failed)?;
    let mut pairs = pairs(path)?;
    let there: BTreeSet<Share> = pairs.keys().filter_map(|key| share(key)).collect();
    let difference = Difference::between(&there, wanted, owners);
    if difference.is_none() {
        return Ok(difference);
    }
    let surplus: BTreeSet<&Share> = difference.surplus.iter().collect();
    pairs.retain(|key, _| share(key).is_none_or(|share| !surplus.contains(&share)));
    for share in &difference.missing {
        pairs.insert(key(share)?, "1".into());
    }
    let mut text = String::new();
    for (key, value) in &pairs {
        text.push_str(&format!("{}\n{}\n", escaped(key), escaped(value)));
    }
    let write = || {
        dir::set_rights(&lock.file, mode, gid)?;
        fault_point::write(text.as_bytes(), |bytes| lock.file.write_all(bytes))?;
        lock.replace()
    };
    write().map_err(failed)?;
    Ok(difference)
}

/// The existing file's mode and group, else the directory's ("Dictionary Files"); the group where it matters.
fn permission(dir: &Dir, name: &str, parent: &Stat) -> io::Result<(u32, Option<u32>)> {
    let stat = match dir.stat_name(name) {
        Err(error) if error.kind() == ErrorKind::NotFound => *parent,
        stat => stat?,
    };
    let mode = stat.mode & 0o666;
    let group_matters = (mode >> 3) & 7 != mode & 7;
    Ok((mode | 0o600, group_matters.then_some(stat.gid)))
}

/// 0700, or the mode of the first parent that exists where that is setgid.
fn make_parents(path: &Path) -> io::Result<()> {
    let (existing, stat) = dir::nearest_existing(path)?;
    if existing == path {
        return Ok(());
    }
    let is_setgid = stat.mode & 0o2000 != 0;
    let mode = if is_setgid { stat.mode & 0o2777 } else { 0o700 };
    fault_point::pass()?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
}

fn pairs(path: &Path) -> Result<BTreeMap<String, String>, MapError> {
    let text = match text_of(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(MapError::Io(path.display().to_string(), error)),
    };
    let mut lines = text.lines();
    let mut pairs = BTreeMap::new();
    // A key without a value at the end is what a torn write leaves.
    while let (Some(key), Some(value)) = (lines.next(), lines.next()) {
        pairs.insert(unescaped(key), unescaped(value));
    }
    Ok(pairs)
}

/// Whatever somebody of its group has put there instead: no link is followed and nothing is waited for.
fn text_of(path: &Path) -> io::Result<String> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidFilename.into());
    };
    let file = Dir::open(parent)?.read(name)?;
    let mut bytes = Vec::new();
    fault_point::pass()?;
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(io::Error::other("larger than 16 MiB"));
    }
    // Read as something else, rows of others would be written again as something else.
    String::from_utf8(bytes).map_err(|_| io::Error::new(ErrorKind::InvalidData, "not UTF-8"))
}

fn share(key: &str) -> Option<Share> {
    let two = |rest: &str| {
        rest.split_once('/')
            .map(|(to, from)| (to.to_owned(), from.to_owned()))
    };
    if let Some(rest) = key.strip_prefix(USER) {
        let (to, from) = two(rest)?;
        return Some(Share {
            from,
            with: With::User(to),
        });
    }
    if let Some(rest) = key.strip_prefix(GROUP) {
        let (group, from) = two(rest)?;
        return Some(Share {
            from,
            with: With::Group(group),
        });
    }
    let from = key.strip_prefix(ANYONE)?.to_owned();
    Some(Share {
        from,
        with: With::Anyone,
    })
}

/// A `/` in a name would make another key of it.
fn key(share: &Share) -> Result<String, MapError> {
    let (text, name) = match &share.with {
        With::User(to) => (format!("{USER}{to}/{}", share.from), to.as_str()),
        With::Group(group) => (format!("{GROUP}{group}/{}", share.from), group.as_str()),
        With::Anyone => (format!("{ANYONE}{}", share.from), ""),
    };
    match name.contains('/') || share.from.contains('/') {
        true => Err(MapError::Odd(
            share.to_string(),
            "a name with a slash cannot stand in the map".into(),
        )),
        false => Ok(text),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\0' => out.push_str("\x010"),
            '\x01' => out.push_str("\x011"),
            '\t' => out.push_str("\x01t"),
            '\n' => out.push_str("\x01n"),
            '\r' => out.push_str("\x01r"),
            c => out.push(c),
        }
    }
    out
}

fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\x01' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('0') => out.push('\0'),
            Some('1') => out.push('\x01'),
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some(c) => out.push(c),
            None => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn to(from: &str, with: With) -> Share {
        Share {
            from: from.into(),
            with,
        }
    }

    #[test]
    fn only_what_differs_is_written() {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o770)).unwrap();
        let path = root.path().join("map");
        let owners = BTreeSet::from(["alice".to_owned()]);
        let wanted = BTreeSet::from([
            to("alice", With::User("bob".into())),
            to("alice", With::Group("staff".into())),
            to("alice", With::Anyone),
        ]);
        let first = replace(&path, &owners, &wanted).unwrap();
        assert_eq!((first.missing.len(), first.surplus.len()), (3, 0));
        assert_eq!(read(&path).unwrap(), wanted);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o660
        );
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        assert!(replace(&path, &owners, &wanted).unwrap().is_none());
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), modified);

        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("other/key\nvalue\nshared/shared-boxes/user/x/carol\n1\ntorn");
        fs::write(&path, text).unwrap();
        let fewer = BTreeSet::from([to("alice", With::Anyone)]);
        let second = replace(&path, &owners, &fewer).unwrap();
        assert_eq!((second.missing.len(), second.surplus.len()), (0, 2));
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("other/key\nvalue\n") && text.contains("/user/x/carol\n1\n"),
            "{text}"
        );
        assert!(!text.contains("torn") && !text.contains("bob"), "{text}");
        let slash = BTreeSet::from([to("alice", With::User("a/b".into()))]);
        assert!(replace(&path, &owners, &slash).is_err());
        assert_eq!(
            fs::read_dir(root.path()).unwrap().count(),
            1,
            "no lock stays"
        );
    }

    /// The map is the old one or the new one, and nobody is locked out.
    #[test]
    fn every_step_fails_once() {
        const OLD: &str = "other/key\nvalue\nshared/shared-boxes/user/bob/alice\n1\n";
        let owners = BTreeSet::from(["alice".to_owned()]);
        let wanted = BTreeSet::from([to("alice", With::Anyone)]);
        for old in [None, Some(OLD)] {
            for failure in fault_point::FAILURES.into_iter().chain(fault_point::ENDS) {
                for step in 0.. {
                    let root = tempfile::tempdir().unwrap();
                    let path = root.path().join("db/map");
                    if let Some(old) = old {
                        fs::create_dir(path.parent().unwrap()).unwrap();
                        fs::write(&path, old).unwrap();
                        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
                    }
                    fault_point::arm(step, failure);
                    let replaced = replace(&path, &owners, &wanted);
                    let fired = !fault_point::disarm();
                    let case = format!("{old:?}, {failure:?} at {step}: {replaced:?}");
                    if let (Some(_), Ok(meta)) = (old, fs::metadata(&path)) {
                        assert_eq!(meta.permissions().mode() & 0o777, 0o640, "{case}");
                    }
                    let now = fs::read_to_string(&path).ok();
                    let is_new = read(&path).is_ok_and(|rows| rows == wanted)
                        && now
                            .as_ref()
                            .is_some_and(|now| now.contains("value") == old.is_some());
                    assert!(
                        is_new || replaced.is_err() && now.as_deref() == old,
                        "{case}: {now:?}"
                    );
                    if !fault_point::ENDS.contains(&failure) {
                        let files = path.parent().unwrap().read_dir();
                        let count = files.map_or(0, |files| files.count());
                        assert_eq!(count, usize::from(now.is_some()), "{case}: a lock stays");
                    }
                    if !fired {
                        assert!(replaced.is_ok() && is_new, "{case}");
                        assert!(
                            failure.is_of_writes() || step > 12,
                            "only {step} steps can fail"
                        );
                        break;
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn escapes(text in any::<String>()) {
            let shown = escaped(&text);
            prop_assert!(!shown.contains(['\n', '\r', '\0', '\t']));
            prop_assert_eq!(unescaped(&shown), text);
        }
    }
}
