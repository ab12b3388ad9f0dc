//! `subscriptions`: the mailboxes that a user's IMAP clients show (Dovecot's `subscription-file.c`).
//!
//! One name a line. Version 2 has a header and TABs between the levels; a file without a header is version 1, with the
//! storage separator. What is not understood here is left as it is: its names are the user's.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::lookup::Found;
use super::name::StorageName;
use super::namespace::{Kind, Namespace};
use super::path::Paths;
use super::permission::Permission;
use crate::sys::dir::{self, Dir};
use crate::sys::dotlock::{Dotlock, Holds, Patience};
use crate::sys::fault_point;

const HEADER: &[u8] = b"V\t2\n\n";
/// Dovecot waits for 120 s, and nobody for its answer.
const PATIENCE: Patience = Patience {
    timeout: Duration::from_secs(2),
    stale: Duration::from_secs(30),
};
/// Thousands of mailboxes, bytes.
const MAX_SIZE: u64 = 1024 * 1024;
/// Dovecot reads no file with a longer line, bytes.
const MAX_LINE: usize = 4096;

/// A mailbox as a subscriptions file names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Of the namespace that has the file, in its control root.
    pub paths: Paths,
    pub filename: String,
    pub name: Name,
}

impl Subscription {
    /// In the control root. Neither of the two needs to be there yet.
    pub fn file(&self) -> PathBuf {
        self.paths.control_root.join(&self.filename)
    }
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// What of the mailbox's prefix that namespace does not have, and the name as stored.
    text: String,
    /// The storage separator of that namespace. A mailbox of another layout has another one, and then Dovecot sees no
    /// levels in its name.
    separator: char,
}

/// The namespace whose file has the mailboxes of `namespace`: itself, or the one with the longest prefix that theirs
/// begins with; at equal length the later one, as in Dovecot.
pub fn holder<'a>(all: &'a [Namespace], namespace: &'a Namespace) -> Option<&'a Namespace> {
    if namespace.subscriptions {
        return Some(namespace);
    }
    all.iter()
        .filter(|it| it.subscriptions && it.kind != Kind::Shared)
        .filter(|it| namespace.prefix.starts_with(&it.prefix))
        .max_by_key(|it| it.prefix.len())
}

impl Name {
    /// `text`: the whole line of version 1. `separator`: what divides its levels, for which version 2 has a TAB.
    pub fn new(text: String, separator: char) -> Name {
        Name { text, separator }
    }

    /// The name that `holder` has for a mailbox. None: the INBOX, which nobody is told of.
    pub fn of(found: &Found<'_>, storage: &StorageName, holder: &Namespace) -> Option<Name> {
        let StorageName::Box(levels) = storage else {
            return None;
        };
        let prefix = match holder.name == found.namespace.name {
            true => "",
            false => found.prefix.strip_prefix(&holder.prefix)?,
        };
        let own = found.namespace.location.layout.separator().to_string();
        let text = format!("{prefix}{}", levels.join(&own));
        Some(Name::new(text, holder.location.layout.separator()))
    }

    /// The file with this name in it; none where it has it already.
    pub fn added_to(&self, old: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
        let is_new = old.is_empty();
        let is_v2 = is_new || old.starts_with(HEADER);
        let lines = || {
            let lines = old.split(|&byte| byte == b'\n');
            lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        };
        if old.starts_with(b"V\t") && !is_v2 {
            return Err("its version is not known");
        }
        if old.contains(&0) || lines().any(|line| line.len() > MAX_LINE) {
            return Err("it is damaged");
        }
        if self.text.contains(char::is_control) || self.text.len() > MAX_LINE {
            return Err("it cannot have this name");
        }
        let line = match is_v2 {
            true => self.text.replace(self.separator, "\t"),
            false => self.text.clone(),
        };
        if lines().any(|it| it == line.as_bytes()) {
            return Ok(None);
        }
        let mut new = if is_new { HEADER } else { old }.to_vec();
        if new.last() != Some(&b'\n') {
            new.push(b'\n');
        }
        new.extend(line.as_bytes());
        new.push(b'\n');
        Ok(Some(new))
    }
}

/// Adds `name` to the file of this name in `directory`, under Dovecot's lock. A new file has the mode and group that the directory asks
/// for; an existing one keeps its own, or stays as it is.
pub fn add(directory: &Path, filename: &str, name: &Name) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let dir = Dir::open(directory).map_err(text)?;
    // Nobody else reads it before it has its group.
    let mut lock = Dotlock::take(&dir, filename, 0o600, Holds::Content, PATIENCE).map_err(text)?;
    let (old, mode, gid) = match dir.read(filename) {
        Ok(file) => {
            let stat = dir::stat_file(&file).map_err(text)?;
            (read(file)?, stat.mode, Some(stat.gid))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let root = dir.stat().map_err(text)?;
            let permission = Permission::of(&root, directory);
            (Vec::new(), permission.file_mode, permission.gid)
        }
        Err(error) => return Err(text(error)),
    };
    let Some(new) = name.added_to(&old)? else {
        return Ok(());
    };
    dir::set_rights(&lock.file, mode, gid).map_err(text)?;
    fault_point::write(&new, |bytes| lock.file.write_all(bytes)).map_err(text)?;
    lock.replace().map_err(text)
}

fn read(file: File) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    fault_point::pass()
        .and_then(|()| file.take(MAX_SIZE + 1).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    match bytes.len() as u64 > MAX_SIZE {
        true => Err(format!("it is longer than {MAX_SIZE} bytes")),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use proptest::prelude::*;

    use super::super::location::Layout;
    use super::super::lookup::find;
    use super::super::tests::namespace;
    use super::*;

    const FILE: &str = "subscriptions";

    fn name(text: &str) -> Name {
        Name::new(text.into(), '.')
    }

    fn add_to(root: &Path, text: &str) -> Result<(), String> {
        add(root, FILE, &name(text))
    }

    fn without(namespace: Namespace) -> Namespace {
        Namespace {
            subscriptions: false,
            ..namespace
        }
    }

    /// What Dovecot 2.3 and 2.4 write at SUBSCRIBE and in dovecot-lda.
    #[test]
    fn dovecots_file_and_name() {
        let inbox = |prefix| Namespace {
            inbox: true,
            ..namespace("inbox", Kind::Private, prefix)
        };
        let public = namespace("public", Kind::Public, "Public/");
        let mut nested = inbox("");
        nested.location.layout = Layout::Fs;
        let shared = without(namespace("shared", Kind::Shared, "shared/$user/"));
        let usual = vec![inbox(""), without(public.clone()), shared.clone()];
        let hidden = vec![
            without(inbox("INBOX/")),
            without(public.clone()),
            shared,
            namespace("hidden", Kind::Private, ""),
        ];
        let own = vec![inbox(""), public.clone()];
        let fs = vec![nested, without(public.clone())];
        let none = vec![inbox("INBOX/"), without(public)];
        for (namespaces, mailbox, want) in [
            (&usual, "INBOX", None),
            (&usual, "Work", Some(("inbox", "Work"))),
            (&usual, "Work/Kid", Some(("inbox", "Work\tKid"))),
            (&usual, "Grün", Some(("inbox", "Gr&APw-n"))),
            (&usual, "Public/info", Some(("inbox", "Public/info"))),
            (&usual, "Public/a/b", Some(("inbox", "Public/a\tb"))),
            (
                &usual,
                "shared/bob/C/sub",
                Some(("inbox", "shared/bob/C\tsub")),
            ),
            (&hidden, "INBOX", None),
            (&hidden, "INBOX/Work", Some(("hidden", "INBOX/Work"))),
            (
                &hidden,
                "INBOX/Work/Kid",
                Some(("hidden", "INBOX/Work\tKid")),
            ),
            (&hidden, "Public/a/b", Some(("hidden", "Public/a\tb"))),
            (&own, "Public/a/b", Some(("public", "a\tb"))),
            (&fs, "Work/Kid", Some(("inbox", "Work\tKid"))),
            (&fs, "Public/info", Some(("inbox", "Public\tinfo"))),
            (&fs, "Public/a/b", Some(("inbox", "Public\ta.b"))),
            (&none, "Public/info", None),
        ] {
            let found = find(namespaces, mailbox, "alice").unwrap();
            let storage = StorageName::parse(&found.rest, found.namespace).unwrap();
            let got = holder(namespaces, found.namespace).and_then(|holder| {
                let name = Name::of(&found, &storage, holder)?;
                let file = String::from_utf8(name.added_to(b"").unwrap().unwrap()).unwrap();
                let line = file
                    .strip_prefix("V\t2\n\n")?
                    .strip_suffix('\n')?
                    .to_owned();
                Some((holder.name.as_str(), line))
            });
            let got = got.as_ref().map(|(name, line)| (*name, line.as_str()));
            assert_eq!(got, want, "{mailbox}");
        }
    }

    #[test]
    fn what_becomes_of_a_file() {
        let long = "x".repeat(MAX_LINE + 1);
        for (old, name, want) in [
            ("", "a.b", Ok(Some("V\t2\n\na\tb\n"))),
            ("V\t2\n\n", "a", Ok(Some("V\t2\n\na\n"))),
            ("V\t2\n\nx\ty\n", "a.b", Ok(Some("V\t2\n\nx\ty\na\tb\n"))),
            ("V\t2\n\nx", "a", Ok(Some("V\t2\n\nx\na\n"))),
            ("V\t2\n\na\tb\n", "a.b", Ok(None)),
            ("V\t2\n\na\tb", "a.b", Ok(None)),
            ("V\t2\n\na\tb\n", "a", Ok(Some("V\t2\n\na\tb\na\n"))),
            ("x.y\n", "a.b", Ok(Some("x.y\na.b\n"))),
            ("x.y", "a.b", Ok(Some("x.y\na.b\n"))),
            ("a.b\nx\n", "a.b", Ok(None)),
            ("a.b\r\nx\r\n", "a.b", Ok(None)),
            ("V\t3\n\nx\n", "a", Err("its version is not known")),
            ("V\t2\nx\n", "a", Err("its version is not known")),
            ("x\n\0\0", "a", Err("it is damaged")),
            (&format!("{long}\n"), "a", Err("it is damaged")),
            ("x\n", "a\nb", Err("it cannot have this name")),
        ] {
            let got = super::tests::name(name).added_to(old.as_bytes());
            let want = want.map(|text| text.map(|text| text.as_bytes().to_vec()));
            assert_eq!(got, want, "{old:?} {name:?}");
        }
    }

    #[test]
    fn mode_of_the_directory_or_of_the_file() {
        crate::sys::process::clear_umask();
        for (directory, before, after) in [
            (0o700, None, 0o600),
            (0o2770, None, 0o660),
            (0o755, None, 0o644),
            (0o700, Some(0o640), 0o640),
            (0o755, Some(0o600), 0o600),
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(FILE);
            fs::set_permissions(root.path(), fs::Permissions::from_mode(directory)).unwrap();
            if let Some(mode) = before {
                fs::write(&path, "old\n").unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
            add_to(root.path(), "a").unwrap();
            let stat = fs::metadata(&path).unwrap();
            assert_eq!(stat.mode() & 0o7777, after, "{directory:o} {before:?}");
            // What is there already does not touch it.
            add_to(root.path(), "a").unwrap();
            assert_eq!(fs::metadata(&path).unwrap().ino(), stat.ino());
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn what_is_no_file_or_held_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        let target = root.path().join("target");
        fs::write(&target, "x\n").unwrap();
        symlink(&target, &path).unwrap();
        assert!(add_to(root.path(), "a").is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "x\n");
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        assert!(add_to(root.path(), "a").is_err());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "x\n".repeat(MAX_SIZE as usize / 2 + 1)).unwrap();
        assert!(add_to(root.path(), "a").unwrap_err().contains("longer"));
        fs::write(&path, "x\n").unwrap();
        let lock = root.path().join("subscriptions.lock");
        fs::write(&lock, "x\n").unwrap();
        let began = std::time::Instant::now();
        assert!(add_to(root.path(), "a").unwrap_err().contains("held"));
        assert!(began.elapsed() < Duration::from_secs(4));
        assert_eq!(fs::read_to_string(&path).unwrap(), "x\n");
        assert!(lock.exists(), "it is another's");
    }

    #[test]
    fn every_step_fails_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        for (old, new) in [(None, "V\t2\n\na\n"), (Some("x\n"), "x\na\n")] {
            for failure in fault_point::FAILURES {
                for step in 0.. {
                    match old {
                        Some(old) => fs::write(&path, old).unwrap(),
                        None => drop(fs::remove_file(&path)),
                    }
                    fault_point::arm(step, failure);
                    let added = add_to(root.path(), "a");
                    let fired = !fault_point::disarm();
                    let now = fs::read_to_string(&path).ok();
                    let is_new = now.as_deref() == Some(new);
                    assert!(is_new || added.is_err() && now.as_deref() == old, "{step}");
                    let left = fs::read_dir(root.path()).unwrap().count();
                    assert_eq!(left, usize::from(now.is_some()), "{step}: no lock stays");
                    if !fired {
                        assert!(added.is_ok(), "{added:?}");
                        assert!(
                            failure.is_of_writes() || step > 10,
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
        fn names_are_only_added(
            old in proptest::collection::vec(any::<u8>(), 0..200), is_v2 in any::<bool>(), name in ".{1,20}",
        ) {
            let old = [if is_v2 { HEADER } else { b"" }, &old].concat();
            let name = super::tests::name(&name);
            if let Ok(Some(new)) = name.added_to(&old) {
                prop_assert!(new.starts_with(&old));
                prop_assert_eq!(name.added_to(&new), Ok(None));
            }
        }
    }
}
