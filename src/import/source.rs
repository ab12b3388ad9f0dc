//! The files of a Dovecot configuration, read into one tree.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::block::{Block, Entry, Place, is_yes};
use super::line::{self, Line, Value};
use crate::sys::paths;

/// What Dovecot would not take, or what cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct SyntaxError {
    pub place: Place,
    pub message: String,
}

/// What a `$` in a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dollar {
    /// `$mail_plugins`: 2.3.
    Name,
    /// `$SET:mail_plugins`: 2.4.
    Set,
    /// A letter: files of settings that are no dovecot.conf.
    Letter,
}

/// A configuration with its includes.
#[derive(Debug)]
pub struct Source {
    pub root: Block,
    /// Dovecot's version, where the file says it: `2.4.1`
    pub version: Option<String>,
    /// What is odd and stops nobody.
    pub warnings: Vec<String>,
}

/// What Dovecot has where a file says nothing, as far as other settings are made of it.
const DEFAULTS: [(&str, &str); 4] = [
    ("default_internal_user", "dovecot"),
    ("default_internal_group", "dovecot"),
    ("default_login_user", "dovenull"),
    ("base_dir", "/run/dovecot"),
];

/// Files that include files that include files.
const MAX_DEPTH: usize = 20;
/// A configuration is not larger than this, in bytes, with all that it includes.
const MAX_SIZE: u64 = 8 << 20;
/// Commas in one `!include`, those between braces among them: each may double what is looked for.
const MAX_COMMAS: usize = 10;

struct Reader {
    /// The root, and the sections that are open.
    open: Vec<Block>,
    version: Option<String>,
    warnings: Vec<String>,
    size: u64,
    dollar: Dollar,
    /// That of the first file: places are named from here.
    folder: PathBuf,
}

/// Reads `path` and what it includes.
pub fn read(path: &Path) -> Result<Source, SyntaxError> {
    read_with(path, Dollar::Name)
}

/// Reads a file with settings of a database, which is written in the same way.
pub fn read_settings(path: &Path) -> Result<Block, SyntaxError> {
    read_with(path, Dollar::Letter).map(|source| source.root)
}

fn read_with(path: &Path, dollar: Dollar) -> Result<Source, SyntaxError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let place = Place {
        file: below(path, folder).into(),
        line: 1,
    };
    let root = Block::new(String::new(), String::new(), place.clone());
    let mut reader = Reader {
        open: vec![root],
        version: None,
        warnings: Vec::new(),
        size: 0,
        dollar,
        folder: folder.to_owned(),
    };
    reader.file(path, &place, 0)?;
    if let [_, .., open] = reader.open.as_slice() {
        let message = format!("this {} has no closing brace", open.kind);
        return Err(SyntaxError {
            place: open.place.clone(),
            message,
        });
    }
    let root = reader.open.remove(0);
    Ok(Source {
        root,
        version: reader.version,
        warnings: reader.warnings,
    })
}

impl Reader {
    /// `from`: what names the file.
    fn file(&mut self, path: &Path, from: &Place, depth: usize) -> Result<(), SyntaxError> {
        let wrong = |message: String| SyntaxError {
            place: from.clone(),
            message,
        };
        if depth > MAX_DEPTH {
            return Err(wrong(format!("{} includes itself", path.display())));
        }
        let shown = path.display();
        let is_small = |size: u64| size <= MAX_SIZE;
        match fs::metadata(path) {
            Ok(meta) if !meta.is_file() => return Err(wrong(format!("{shown} is no file"))),
            Ok(meta) if !is_small(self.size + meta.len()) => {
                return Err(wrong(format!("{shown}: more than 8 MiB of configuration")));
            }
            Ok(meta) => self.size += meta.len(),
            Err(error) => return Err(wrong(format!("{shown}: {error}"))),
        }
        let bytes = fs::read(path).map_err(|error| wrong(format!("{shown}: {error}")))?;
        let name: Rc<str> = below(path, &self.folder).into();
        let text = String::from_utf8_lossy(&bytes);
        let mut continued = String::new();
        for (at, raw) in text.split('\n').enumerate() {
            let place = Place {
                file: Rc::clone(&name),
                line: at + 1,
            };
            let raw = raw.strip_suffix('\r').unwrap_or(raw);
            if at == 0 && depth == 0 {
                self.version = version(raw);
            }
            let raw = match raw.split_once('\0') {
                Some((before, _)) => {
                    let odd =
                        format!("{place}: Dovecot does not see what stands behind the NUL byte");
                    self.warnings.push(odd);
                    before
                }
                None => raw,
            };
            // What doveconf has printed is a line each, and a # in it is no comment.
            let is_printed = self.version.is_some() && depth == 0;
            let stated = match is_printed {
                true => line::of_doveconf(raw),
                false => line::without_comment(raw),
            };
            if stated.is_empty() && !continued.is_empty() {
                self.lost(&mut continued, &place);
            }
            if let Some(before) = stated.strip_suffix('\\').filter(|_| !is_printed) {
                continued.push_str(before.trim_end());
                continued.push(' ');
                continue;
            }
            let whole = std::mem::take(&mut continued) + stated;
            self.line(&whole, place, path, depth)?;
        }
        if !continued.is_empty() {
            let end = Place {
                file: name,
                line: text.lines().count(),
            };
            self.lost(&mut continued, &end);
        }
        Ok(())
    }

    /// A line that goes on, with nothing behind it: Dovecot forgets it.
    fn lost(&mut self, continued: &mut String, place: &Place) {
        continued.clear();
        let odd =
            format!("{place}: nothing follows the backslash: Dovecot does not see this setting");
        self.warnings.push(odd);
    }

    fn line(
        &mut self,
        text: &str,
        place: Place,
        file: &Path,
        depth: usize,
    ) -> Result<(), SyntaxError> {
        let wrong = |message: String| SyntaxError {
            place: place.clone(),
            message,
        };
        if text.contains('\r') {
            let odd = format!("{place}: a CR within the line, which Dovecot may not take");
            self.warnings.push(odd);
        }
        if text.contains('\u{fffd}') {
            let odd = format!("{place}: this is no UTF-8");
            self.warnings.push(odd);
        }
        match line::parse(text).map_err(wrong)? {
            Line::Nothing => {}
            Line::Begin { kind, name } => {
                self.odd_name(&kind, &place);
                self.open.push(Block::new(kind, name, place));
            }
            Line::End => match self.open.len() {
                1 => return Err(wrong("this brace closes nothing".into())),
                _ => self.close(),
            },
            Line::Setting { key, value } => {
                self.odd_name(&key, &place);
                let entry = self.entry(key, value, place);
                self.put(entry);
            }
            Line::Include { pattern, may_miss } => {
                for path in self.included(&pattern, may_miss, file, &place)? {
                    self.file(&path, &place, depth + 1)?;
                }
            }
        }
        Ok(())
    }

    /// `namespace/inbox/prefix = x` is a setting of a section too.
    fn put(&mut self, mut entry: Entry) {
        if entry.key == "dovecot_config_version" {
            self.dollar = Dollar::Set;
        }
        let place = entry.place.clone();
        let Some(block) = self.open.last_mut() else {
            return;
        };
        let parts: Vec<String> = entry.key.split('/').map(str::to_owned).collect();
        match parts.as_slice() {
            [kind, name, key] if kind == "namespace" && block.kind.is_empty() => {
                let mut section = Block::new(kind.clone(), name.clone(), place);
                entry.key.clone_from(key);
                section.entries.push(Rc::new(entry));
                block.take(section);
            }
            // A word of a list: `mail_plugins/acl = yes`.
            [list, word] if is_list(list) => block.entries.push(step(list, word, &entry)),
            [list, key] if list.ends_with("fields") => {
                let mut section = Block::new(list.clone(), String::new(), place);
                entry.key.clone_from(key);
                section.entries.push(Rc::new(entry));
                block.take(section);
            }
            _ => block.entries.push(Rc::new(entry)),
        }
    }

    /// `mail_plugins { acl = yes }` is a list, whose words count in their order with what else is said of it.
    fn close(&mut self) {
        let Some(block) = self.open.pop() else { return };
        let Some(above) = self.open.last_mut() else {
            return;
        };
        match is_list(&block.kind) && block.name.is_empty() {
            true => {
                let words = block.entries.iter();
                let steps = words.map(|entry| step(&block.kind, &entry.key, entry));
                above.entries.extend(steps);
            }
            false => above.take(block),
        }
    }

    fn entry(&mut self, key: String, value: Value, place: Place) -> Entry {
        let (value, file) = match value {
            Value::Quoted(text) => (text, None),
            Value::File(path) => (self.contents(&key, &path, &place), Some(path)),
            Value::Plain(text) => {
                let value = self.expanded(&text, &place);
                (value, None)
            }
        };
        Entry {
            key,
            value,
            step: None,
            file,
            place,
            is_explained: Cell::new(false),
            is_overridden: Cell::new(false),
        }
    }

    fn odd_name(&mut self, name: &str, place: &Place) {
        // Keys of these are the admin's.
        let free = [
            "plugin",
            "fields",
            "parameters",
            "environment",
            "dict",
            "acl",
        ];
        let is_free = self
            .open
            .last()
            .is_some_and(|block| free.iter().any(|it| block.kind.ends_with(it)));
        if !is_free && self.dollar != Dollar::Letter && line::is_odd(name) {
            let odd = format!("{place}: Dovecot has nothing that is called {name:?}");
            self.warnings.push(odd);
        }
    }

    /// What a file holds that is named by `<`. Keys and certificates are named by their path.
    fn contents(&mut self, key: &str, path: &str, place: &Place) -> String {
        const LARGE: u64 = 64 << 10;
        if key.starts_with("ssl") {
            return String::new();
        }
        let whole = self.folder.join(path);
        let is_small = fs::metadata(&whole).is_ok_and(|it| it.is_file() && it.len() <= LARGE);
        match is_small.then(|| fs::read_to_string(&whole)) {
            Some(Ok(text)) => text.trim_end_matches('\n').to_owned(),
            _ => {
                let odd = format!("{place}: {} cannot be read here", whole.display());
                self.warnings.push(odd);
                String::new()
            }
        }
    }

    /// `$mail_plugins` (2.3), `$SET:mail_plugins` (2.4) and `$ENV:NAME`: what is set so far.
    fn expanded(&mut self, text: &str, place: &Place) -> String {
        if self.dollar == Dollar::Letter {
            return text.to_owned();
        }
        let mut out = String::new();
        for (at, word) in text.split(' ').enumerate() {
            if at > 0 {
                out.push(' ');
            }
            let Some(name) = word.strip_prefix('$') else {
                out.push_str(word);
                continue;
            };
            if let Some(name) = name.strip_prefix("ENV:") {
                out.push_str(&std::env::var(name).unwrap_or_default());
                continue;
            }
            let name = match (name.strip_prefix("SET:"), self.dollar) {
                (Some(name), _) => name,
                (None, Dollar::Name) => name,
                (None, _) => {
                    out.push_str(word);
                    continue;
                }
            };
            let scopes = self.open.iter().rev();
            let known = scopes
                .flat_map(|block| block.entries.iter().rev())
                .find(|entry| entry.key == name);
            match known {
                Some(entry) => out.push_str(&entry.value),
                // Settings that are empty unless something is said.
                None if name.ends_with("plugins") || name == "protocols" => {}
                None if DEFAULTS.iter().any(|(known, _)| *known == name) => {
                    let usual = DEFAULTS.iter().find(|(known, _)| *known == name);
                    out.push_str(usual.map_or("", |(_, value)| value));
                }
                None => {
                    let odd =
                        format!("{place}: {word} is not set before this line: it is left as it is");
                    self.warnings.push(odd);
                    out.push_str(word);
                }
            }
        }
        out.trim().to_owned()
    }

    fn included(
        &mut self,
        pattern: &str,
        may_miss: bool,
        file: &Path,
        place: &Place,
    ) -> Result<Vec<PathBuf>, SyntaxError> {
        let wrong = |message: String| SyntaxError {
            place: place.clone(),
            message,
        };
        if pattern.is_empty() {
            return Ok(Vec::new());
        }
        let folder = file.parent().unwrap_or(Path::new(""));
        let whole = folder.join(pattern);
        if pattern.contains('{') && pattern.matches(',').count() > MAX_COMMAS {
            return Err(wrong(format!("{pattern:?}: write several lines")));
        }
        let found =
            paths::matching(&whole).map_err(|error| wrong(format!("{pattern:?}: {error}")))?;
        match found.is_empty() && !may_miss {
            true => Err(wrong(format!("there is no {}", whole.display()))),
            false => Ok(found.into_iter().filter(|it| !it.is_dir()).collect()),
        }
    }
}

/// Whether a setting is a list of words.
fn is_list(key: &str) -> bool {
    let ends = [
        "plugins",
        "protocols",
        "groups",
        "locks",
        "networks",
        "workarounds",
        "special_use",
        "rights",
    ];
    ends.iter().any(|it| key.ends_with(it))
}

/// `word = yes` in a list.
fn step(list: &str, word: &str, from: &Entry) -> Rc<Entry> {
    Rc::new(Entry {
        key: list.to_owned(),
        value: word.to_owned(),
        step: Some(is_yes(&from.value)),
        file: None,
        place: from.place.clone(),
        is_explained: Cell::new(false),
        is_overridden: Cell::new(false),
    })
}

/// A path as it is shown: from `folder` on.
fn below(path: &Path, folder: &Path) -> String {
    path.strip_prefix(folder)
        .unwrap_or(path)
        .display()
        .to_string()
}

/// `# 2.3.19.1 (9b53102964): /etc/dovecot/dovecot.conf`, as `doveconf -n` begins.
fn version(line: &str) -> Option<String> {
    let (version, rest) = line.strip_prefix("# ")?.split_once(' ')?;
    if !rest.starts_with('(') || !rest.contains("): /") {
        return None;
    }
    let numbers = version.split('.').take(2);
    let is_version =
        numbers.clone().count() == 2 && numbers.into_iter().all(|it| it.parse::<u8>().is_ok());
    is_version.then(|| version.to_owned())
}
