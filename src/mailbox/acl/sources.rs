//! Where the entries of one mailbox come from: its own file, the configuration, a global file, and the namespace's default.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::entry::Line;
use super::list::{Acl, Effective, Step};
use super::{AclError, FILE, Identity, Rights, read};
use crate::sys::fault_point;

/// All that decides about one mailbox. Plain data: it is read under the identity that delivers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The directory whose `dovecot-acl` counts; none where own files do not (`acl.globals_only`).
    pub own: Option<PathBuf>,
    /// Entries of the configuration that apply to this mailbox.
    pub configured: Vec<Configured>,
    /// Dovecot 2.3's global file or directory, and the mailbox's name as it is matched there.
    pub global: Option<(PathBuf, String)>,
    /// Asked instead, for whomever nothing here names.
    pub default: Option<Box<Sources>>,
}

/// An entry of the configuration, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    pub line: Line,
    /// `acl.entries`, `namespace.public.acl.entries`
    pub from: String,
}

/// What the configuration says for all mailboxes, for those of a namespace, or for one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// `acl_ignore`: no ACL counts. None: as one level up.
    pub ignore: Option<bool>,
    pub entries: Vec<Configured>,
}

/// A file that cannot be read or understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub file: PathBuf,
    pub error: AclError,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AclError { line, why, .. } = &self.error;
        write!(f, "{}:{line}: {why}", self.file.display())
    }
}

impl Sources {
    /// What `identity` may do. The last step of the trace tells what decided.
    pub fn effective(&self, identity: &Identity<'_>) -> Result<Effective, Unreadable> {
        if let Some(effective) = self.acl()?.effective(identity) {
            return Ok(effective);
        }
        match &self.default {
            Some(default) => default.effective(identity),
            None => Ok(Effective {
                rights: Rights::none(),
                trace: vec![Step {
                    entry: "no entry names this user".into(),
                    left: Rights::none(),
                }],
            }),
        }
    }

    /// The same mailbox, before it exists: its file will be a copy of `parent`'s, or of the default's where there is none.
    pub fn of_new(&self, parent: Option<PathBuf>) -> Sources {
        let inherited = self
            .default
            .as_ref()
            .and_then(|default| default.own.clone());
        Sources {
            own: self.own.as_ref().and(parent.or(inherited)),
            ..self.clone()
        }
    }

    /// The bytes that a new mailbox gets as its file.
    pub fn inherited(&self) -> Result<Option<Vec<u8>>, Unreadable> {
        self.own.as_deref().map_or(Ok(None), read_own)
    }

    /// All entries, without those of the default.
    pub fn acl(&self) -> Result<Acl, Unreadable> {
        let mut acl = Acl::default();
        let configured = self.configured.iter().cloned();
        acl.add(configured.map(|it| (it.line, it.from)), false);
        if let Some(directory) = &self.own
            && let Some(text) = read_own(directory)?
        {
            let file = directory.join(FILE);
            let shown = file.display().to_string();
            acl.add_file(&text, &shown)
                .map_err(|error| Unreadable { file, error })?;
        }
        if let Some((path, name)) = &self.global {
            add_global(&mut acl, path, name)?;
        }
        Ok(acl)
    }
}

fn read_own(directory: &Path) -> Result<Option<Vec<u8>>, Unreadable> {
    read(directory).map_err(|error| Unreadable {
        file: directory.join(FILE),
        error,
    })
}

/// A file has lines `pattern identifier rights`; a directory has a file of the usual form for each mailbox, or a
/// directory with `.DEFAULT` in it.
fn add_global(acl: &mut Acl, path: &Path, name: &str) -> Result<(), Unreadable> {
    let unreadable = |file: &Path, error: AclError| Unreadable {
        file: file.to_owned(),
        error,
    };
    let text = |file: &Path| match fault_point::pass().and_then(|()| fs::read(file)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(file, AclError::of_file(&error))),
    };
    if !path.is_dir() {
        let Some(text) = text(path)? else {
            return Ok(());
        };
        return add_patterns(acl, &text, path, name).map_err(|error| unreadable(path, error));
    }
    // A name that climbs is one where the storage escapes it.
    let is_below = |part| matches!(part, Component::Normal(_));
    if !Path::new(name).components().all(is_below) {
        return Ok(());
    }
    let own = path.join(name);
    let file = if own.is_dir() {
        own.join(".DEFAULT")
    } else {
        own
    };
    if let Some(text) = text(&file)? {
        let shown = file.display().to_string();
        let mut entries = Vec::new();
        for (number, line) in lines(&text).map_err(|error| unreadable(&file, error))? {
            let line = Line::parse(&line)
                .map_err(|why| unreadable(&file, AclError::of_line(number, why)))?;
            entries.extend(line.map(|line| (line, format!("{shown}:{number}"))));
        }
        acl.add(entries, true);
    }
    Ok(())
}

fn add_patterns(acl: &mut Acl, text: &[u8], path: &Path, name: &str) -> Result<(), AclError> {
    let mut entries = Vec::new();
    for (number, line) in lines(text)? {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (pattern, rest) = match line.strip_prefix('"') {
            Some(rest) => rest.split_once("\" "),
            None => line.split_once(' '),
        }
        .ok_or_else(|| AclError::of_line(number, "an identifier must follow the pattern"))?;
        let line = Line::parse(rest).map_err(|why| AclError::of_line(number, why))?;
        let line = line.filter(|_| matches(pattern, name));
        entries.extend(line.map(|line| (line, format!("{}:{number}", path.display()))));
    }
    acl.add(entries, true);
    Ok(())
}

fn lines(text: &[u8]) -> Result<Vec<(usize, String)>, AclError> {
    let lines = text.split(|&byte| byte == b'\n').zip(1..);
    lines
        .map(|(line, number)| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let line =
                std::str::from_utf8(line).map_err(|_| AclError::of_line(number, "not UTF-8"))?;
            Ok((number, line.to_owned()))
        })
        .collect()
}

/// `*` stands for any characters, separators too, `?` for one.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    // The last star, and what it stands for so far.
    let (mut at, mut here, mut star) = (0, 0, None);
    while here < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, here));
                at += 1;
            }
            Some(&c) if c == '?' || c == name[here] => {
                at += 1;
                here += 1;
            }
            _ => match star {
                Some((star_at, taken)) => {
                    star = Some((star_at, taken + 1));
                    at = star_at + 1;
                    here = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, want) in [
            ("Work", "Work", true),
            ("Work", "shared/a/Work", false),
            ("*Work", "shared/a/Work", true),
            ("shared/*/Work", "shared/a/b/Work", true),
            ("W?rk", "Wörk", true),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, name), want, "{pattern} {name}");
        }
    }

    fn bob() -> Identity<'static> {
        Identity {
            name: Some("bob"),
            groups: &[],
            is_owner: false,
        }
    }

    #[test]
    fn files_of_all_kinds() {
        let root = tempfile::tempdir().unwrap();
        let dir = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(FILE), text).unwrap();
            path
        };
        let configured = |line: &str| Configured {
            line: Line::parse(line).unwrap().unwrap(),
            from: "config".into(),
        };
        let default = Sources {
            own: Some(dir("default", "user=bob lk\n")),
            ..Sources::default()
        };
        let own = |text: &str| Sources {
            own: Some(dir("own", text)),
            default: Some(Box::new(default.clone())),
            ..Sources::default()
        };
        let rights = |sources: &Sources| sources.effective(&bob()).unwrap().rights.to_string();
        assert_eq!(rights(&own("user=bob lp\n")), "lp");
        assert_eq!(
            rights(&own("user=carol lp\n")),
            "lk",
            "the default, for whom nothing names"
        );
        assert_eq!(
            rights(&own("-user=bob l\n")),
            "none",
            "a negative entry names too"
        );
        assert_eq!(
            rights(&Sources {
                configured: vec![configured("user=bob i")],
                ..own("user=bob lp\n")
            }),
            "lip"
        );

        let global = root.path().join("global");
        fs::write(
            &global,
            "# all\nOther user=bob a\n\"Pub lic/*\" user=bob r\n* anyone p\n",
        )
        .unwrap();
        let with_global = |name: &str| Sources {
            global: Some((global.clone(), name.into())),
            ..own("user=bob lp\n")
        };
        assert_eq!(rights(&with_global("Work")), "p", "a global entry replaces");
        assert_eq!(rights(&with_global("Pub lic/x")), "r");
        fs::write(&global, "Work user=bob Q\n").unwrap();
        let error = with_global("x").effective(&bob()).unwrap_err();
        assert_eq!((error.file, error.error.line), (global.clone(), 1));

        let many = root.path().join("many");
        fs::create_dir_all(many.join("Deep")).unwrap();
        fs::write(many.join("Work"), "user=bob e\n").unwrap();
        fs::write(many.join("Deep/.DEFAULT"), "user=bob x\n").unwrap();
        let absolute = global.to_str().unwrap();
        fs::write(&global, "user=bob a\n").unwrap();
        #[rustfmt::skip]
        let names = [("Work", "e"), ("Deep", "x"), ("None", "lp"), ("../global", "lp"), (absolute, "lp")];
        for (name, want) in names {
            let sources = Sources {
                global: Some((many.clone(), name.into())),
                ..own("user=bob lp\n")
            };
            assert_eq!(rights(&sources), want, "{name}");
        }

        let new = own("user=bob lp\n").of_new(None);
        assert_eq!(
            rights(&new),
            "lk",
            "a new mailbox without a parent inherits the default"
        );
        assert_eq!(
            rights(&own("").of_new(Some(dir("parent", "user=bob p\n")))),
            "p"
        );
    }
}
