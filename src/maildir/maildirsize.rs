//! `maildirsize`: how much a user's mailboxes hold (Maildir++, Courier's README.maildirquota; Dovecot's `quota-maildir.c`).
//!
//! ```text
//! 1000000S,50C      the limits: where they are others now, the rest says nothing
//! 52000 12          bytes and messages when it was made,
//! 2048 1            and each change since, appended by whoever made it
//! ```
//!
//! It is made anew by counting all mailboxes: when it is missing, of other limits, odd, longer than 5120 bytes, or says
//! "full" for long. Whatever goes wrong here costs no mail.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use super::filename::field;
use crate::mailbox::acl::store;
use crate::mailbox::permission::Permission;
use crate::mailbox::quota::{Quota, Tree, Usage};
use crate::sys::dir::{self, Dir};
use crate::sys::fault_point;

/// In [`Quota::directory`]: one for all mailboxes of a quota.
pub const FILE: &str = "maildirsize";
/// A longer one is made anew (Courier's and Dovecot's limit).
const MAX_SIZE: u64 = 5120;
/// A file that says "full" is believed for so long, where it was made by counting alone.
const BELIEVED: Duration = Duration::from_secs(15 * 60);

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    pub usage: Usage,
    /// There were changes since it was made, or it is old: where it says "full", it is to be counted.
    pub is_doubtful: bool,
}

/// None: it has to be made anew.
pub fn read(quota: &Quota) -> io::Result<Option<Known>> {
    let directory = match Dir::open(&quota.directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        directory => directory?,
    };
    let file = match directory.read(FILE) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = Vec::new();
    let modified = dir::stat_file(&file)?.modified;
    file.take(MAX_SIZE + 1).read_to_end(&mut text)?;
    let Some((usage, changes)) = parse(&text, &quota.limits.line()) else {
        return Ok(None);
    };
    let age = SystemTime::now().duration_since(modified);
    Ok(Some(Known {
        usage,
        is_doubtful: changes > 0 || age.is_ok_and(|it| it > BELIEVED),
    }))
}

/// The sums, and how many changes there were. A last line that is not whole yet does not count.
pub fn parse(text: &[u8], limits: &str) -> Option<(Usage, usize)> {
    if text.len() as u64 >= MAX_SIZE || text.contains(&0) {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    let (whole, _) = text.rsplit_once('\n')?;
    let mut lines = whole.split('\n');
    if lines.next() != Some(limits) {
        return None;
    }
    let mut usage = Usage::default();
    let mut count = 0_usize;
    for line in lines {
        let (bytes, messages) = line.trim().split_once(' ')?;
        let number = |text: &str| text.trim().parse::<i64>().ok();
        usage.bytes = usage.bytes.checked_add(number(bytes)?)?;
        usage.messages = usage.messages.checked_add(number(messages)?)?;
        count += 1;
    }
    let is_whole = count > 0 && usage.bytes >= 0 && usage.messages >= 0;
    is_whole.then(|| (usage, count - 1))
}

/// Counts all mailboxes, and writes nothing.
pub fn count(quota: &Quota) -> io::Result<Usage> {
    count_with_times(quota).map(|(_, usage)| usage)
}

/// Counts all mailboxes and makes the file anew. What is counted counts, whether it could be written or not: `Err` is for the log.
pub fn rebuild(quota: &Quota) -> io::Result<(Usage, io::Result<()>)> {
    let (before, usage) = count_with_times(quota)?;
    let written = write(quota, usage).and_then(|()| {
        // Somebody has delivered meanwhile: the next one counts.
        match count_times(quota)? == before {
            true => Ok(()),
            false => Dir::open(&quota.directory)?.unlink(FILE),
        }
    });
    Ok((usage, written))
}

/// Tells the file of a message that has come; `bytes` is its size on disk. One that is not there is made by the next who asks.
pub fn add(quota: &Quota, bytes: u64) -> io::Result<()> {
    let directory = Dir::open(&quota.directory)?;
    let appended = directory.open_to_append(FILE).and_then(|file| {
        // One write, so that lines of several writers do not mix.
        let line = format!("{bytes} 1\n");
        fault_point::write(line.as_bytes(), |bytes| {
            match (&file).write(bytes)? == bytes.len() {
                true => Ok(()),
                false => Err(ErrorKind::WriteZero.into()),
            }
        })
    });
    match appended {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => {
            // What it says would be wrong for ever; missing it is made anew.
            let _ = directory.unlink(FILE);
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

fn write(quota: &Quota, usage: Usage) -> io::Result<()> {
    let directory = Dir::open(&quota.directory)?;
    let permission = match dir::stat(&quota.root) {
        Ok(stat) => Permission::of(&stat, &quota.root),
        Err(error) if error.kind() == ErrorKind::NotFound => Permission::private(&quota.root),
        Err(error) => return Err(error),
    };
    let line = quota.limits.line();
    let text = format!("{line}\n{} {}\n", usage.bytes, usage.messages);
    // Others may be making it at the same time.
    let temporary = format!(
        "{FILE}.{}.{:?}",
        std::process::id(),
        std::thread::current().id()
    );
    let temporary = temporary.replace(['(', ')'], ".");
    let file = directory.create_new(&temporary, 0o600)?;
    let filled = fault_point::write(text.as_bytes(), |bytes| (&file).write_all(bytes))
        .and_then(|()| dir::set_rights(&file, permission.file_mode, permission.gid))
        .and_then(|()| directory.replace(&temporary, FILE));
    filled.inspect_err(|_| drop(directory.unlink(&temporary)))
}

/// When the directories were last changed.
type Times = Vec<Option<SystemTime>>;

fn count_with_times(quota: &Quota) -> io::Result<(Times, Usage)> {
    let (mut times, mut usage) = (Times::new(), Usage::default());
    for_each_part(quota, |part| {
        times.push(part.as_ref().and_then(time_of));
        match part {
            Some(dir) => count_part(&dir, &mut usage),
            None => Ok(()),
        }
    })?;
    Ok((times, usage))
}

fn count_times(quota: &Quota) -> io::Result<Times> {
    let mut times = Times::new();
    for_each_part(quota, |part| {
        times.push(part.as_ref().and_then(time_of));
        Ok(())
    })?;
    Ok(times)
}

fn time_of(dir: &Dir) -> Option<SystemTime> {
    dir.stat().ok().map(|stat| stat.modified)
}

fn for_each_part(
    quota: &Quota,
    mut look: impl FnMut(Option<Dir>) -> io::Result<()>,
) -> io::Result<()> {
    let mut seen = BTreeSet::new();
    for tree in &quota.trees {
        for mailbox in mailboxes(tree)? {
            // Of several namespaces that have one INBOX.
            if !seen.insert(mailbox.clone()) {
                continue;
            }
            for part in ["cur", "new"] {
                look(Dir::open(&mailbox.join(part)).ok())?;
            }
        }
    }
    Ok(())
}

fn mailboxes(tree: &Tree) -> io::Result<Vec<std::path::PathBuf>> {
    let found = match store::mailboxes(&tree.paths, tree.layout) {
        // It may lie elsewhere.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            vec![("INBOX".to_owned(), tree.paths.inbox.clone())]
        }
        found => found?,
    };
    let counts = found.into_iter().filter(|(name, _)| tree.counts(name));
    Ok(counts.map(|(_, path)| path).collect())
}

fn count_part(dir: &Dir, usage: &mut Usage) -> io::Result<()> {
    dir.each_raw_name(|name| {
        if name.as_bytes().starts_with(b".") {
            return;
        }
        let said = field(name.as_bytes(), b"S=");
        let size = said.or_else(|| dir.stat_name(name).ok().map(|stat| stat.size));
        usage.bytes = usage.bytes.saturating_add_unsigned(size.unwrap_or(0));
        usage.messages += 1;
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;
    use crate::mailbox::location::Layout;
    use crate::mailbox::path::Paths;
    use crate::mailbox::quota::Limits;

    #[test]
    fn what_the_file_says() {
        let long = "1 1\n".repeat(1300);
        for (text, want) in [
            ("1000S\n", None),
            ("1000S\n5 1\n", Some((5, 1, 0))),
            ("1000S\n5 1\n10 2\n-3 -1\n", Some((12, 2, 2))),
            // The last line is being written.
            ("1000S\n5 1\n10", Some((5, 1, 0))),
            ("1000S\n       5   1\n", Some((5, 1, 0))),
            ("1000S,5C\n5 1\n", None),
            ("0S\n5 1\n", None),
            ("", None),
            ("1000S", None),
            ("1000S\n5\n", None),
            ("1000S\n5 x\n", None),
            ("1000S\n-5 0\n", None),
            ("1000S\n5 -1\n", None),
            ("1000S\n\n5 1\n", None),
            ("1000S\n5\0 1\n", None),
            ("1000S\n9223372036854775807 1\n1 1\n", None),
            (&format!("1000S\n{long}"), None),
        ] {
            let found = parse(text.as_bytes(), "1000S");
            let found = found.map(|(it, changes)| (it.bytes, it.messages, changes));
            assert_eq!(found, want, "{text:?}");
        }
    }

    /// A root with some messages, of which one says no size.
    fn quota(root: &std::path::Path) -> Quota {
        for mailbox in ["", ".Work", ".Trash"] {
            for part in ["cur", "new", "tmp"] {
                fs::create_dir_all(root.join(mailbox).join(part)).unwrap();
            }
        }
        fs::write(root.join("cur/1.x,S=100:2,S"), "other").unwrap();
        fs::write(root.join("new/2.x"), "ten bytes\n").unwrap();
        fs::write(root.join(".Work/new/3.x,S=20,W=25"), "").unwrap();
        fs::write(root.join(".Trash/new/4.x,S=1000"), "").unwrap();
        fs::write(root.join("tmp/5.x,S=1000"), "").unwrap();
        let mut limits = Limits::default();
        limits.set("quota_storage_size", "5000").unwrap();
        Quota {
            of: "alice".into(),
            limits,
            extra: 0,
            directory: root.to_owned(),
            root: root.to_owned(),
            trees: vec![Tree {
                paths: Paths::for_tests(root, root),
                layout: Layout::MaildirPlusPlus,
                ignored: vec!["Trash".into()],
                names: None,
            }],
        }
    }

    #[test]
    fn made_anew_and_added_to() {
        let root = tempfile::tempdir().unwrap();
        let quota = quota(root.path());
        let file = root.path().join(FILE);
        assert_eq!(read(&quota).unwrap(), None);
        add(&quota, 5).unwrap();
        assert!(!file.exists(), "to count it is not for those who add");
        let (usage, written) = rebuild(&quota).unwrap();
        written.unwrap();
        assert_eq!((usage.bytes, usage.messages), (130, 3));
        assert_eq!(fs::read_to_string(&file).unwrap(), "5000S\n130 3\n");
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().mode() & 0o666;
        assert_eq!(mode(&file), mode(root.path()) | 0o600);
        add(&quota, 7).unwrap();
        let known = read(&quota).unwrap().unwrap();
        assert_eq!((known.usage.bytes, known.usage.messages), (137, 4));
        assert!(known.is_doubtful);
        let left: Vec<String> = Dir::open(root.path()).unwrap().names().unwrap();
        assert!(
            left.iter().all(|name| !name.contains("maildirsize.")),
            "{left:?}"
        );
    }

    /// Nothing that a user puts there is followed, and it costs no mail.
    #[test]
    fn odd_files() {
        let root = tempfile::tempdir().unwrap();
        let quota = quota(root.path());
        let file = root.path().join(FILE);
        let other = root.path().join("other");
        fs::write(&other, "5000S\n1 1\n").unwrap();
        std::os::unix::fs::symlink(&other, &file).unwrap();
        assert!(read(&quota).is_err());
        assert!(add(&quota, 5).is_err());
        assert_eq!(fs::read_to_string(&other).unwrap(), "5000S\n1 1\n");
        fs::create_dir(&file).unwrap();
        assert!(read(&quota).is_err());
        assert!(rebuild(&quota).unwrap().1.is_err());
    }

    proptest! {
        #[test]
        fn no_file_panics(text in prop::collection::vec(any::<u8>(), 0..200), lines in "1S\n([-0-9 ]{0,22}\n){0,5}") {
            let _ = parse(&text, "1S");
            if let Some((usage, _)) = parse(lines.as_bytes(), "1S") {
                prop_assert!(usage.bytes >= 0 && usage.messages >= 0);
            }
        }
    }
}
