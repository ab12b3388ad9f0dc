//! The files of a Dovecot configuration, read into one tree.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::block::{Block, Entry, Place};
use super::line::{self, Line, Value};

/// What Dovecot would not take, or what cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct SyntaxError {
    pub place: Place,
    pub message: String,
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

/// Files that include files that include files.
const MAX_DEPTH: usize = 20;
/// A configuration is not larger than this, in bytes, with all that it includes.
const MAX_SIZE: u64 = 8 << 20;

struct Reader {
    /// The root, and the sections that are open.
    open: Vec<Block>,
    version: Option<String>,
    warnings: Vec<String>,
    size: u64,
}

/// Reads `path` and what it includes.
pub fn read(path: &Path) -> Result<Source, SyntaxError> {
    let place = Place {
        file: path.display().to_string().into(),
        line: 1,
    };
    let root = Block::new(String::new(), String::new(), place.clone());
    let mut reader = Reader {
        open: vec![root],
        version: None,
        warnings: Vec::new(),
        size: 0,
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
        let name: Rc<str> = shown.to_string().into();
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
            let stated = line::without_comment(raw);
            if stated.is_empty() && !continued.is_empty() {
                self.lost(&mut continued, &place);
            }
            if let Some(before) = stated.strip_suffix('\\') {
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
        let text = std::mem::take(continued);
        let odd = format!(
            "{place}: nothing follows the backslash of {text:?}: Dovecot does not see this setting"
        );
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
        if text.contains('\u{fffd}') {
            let odd = format!("{place}: this is no UTF-8: {text:?}");
            self.warnings.push(odd);
        }
        match line::parse(text).map_err(wrong)? {
            Line::Nothing => {}
            Line::Begin { kind, name } => self.open.push(Block::new(kind, name, place)),
            Line::End => match self.open.len() {
                1 => return Err(wrong("this brace closes nothing".into())),
                _ => self.close(),
            },
            Line::Setting { key, value } => {
                let entry = self.entry(key, value, place)?;
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
        let place = entry.place.clone();
        let Some(block) = self.open.last_mut() else {
            return;
        };
        let parts: Vec<String> = entry.key.split('/').map(str::to_owned).collect();
        match parts.as_slice() {
            [kind, name, key] if kind == "namespace" => {
                let mut section = Block::new(kind.clone(), name.clone(), place);
                entry.key.clone_from(key);
                section.entries.push(Rc::new(entry));
                block.take(section);
            }
            _ => block.entries.push(Rc::new(entry)),
        }
    }

    fn close(&mut self) {
        if let Some(block) = self.open.pop()
            && let Some(above) = self.open.last_mut()
        {
            above.take(block);
        }
    }

    fn entry(&self, key: String, value: Value, place: Place) -> Result<Entry, SyntaxError> {
        let (value, file) = match value {
            Value::Quoted(text) => (text, None),
            Value::File(path) => (String::new(), Some(path)),
            Value::Plain(text) => {
                let value = self.expanded(&text).map_err(|message| SyntaxError {
                    place: place.clone(),
                    message,
                })?;
                (value, None)
            }
        };
        Ok(Entry {
            key,
            value,
            file,
            place,
            is_explained: Cell::new(false),
        })
    }

    /// `$mail_plugins` (2.3), `$SET:mail_plugins` (2.4) and `$ENV:NAME`: what is set so far.
    fn expanded(&self, text: &str) -> Result<String, String> {
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
            let name = name.strip_prefix("SET:").unwrap_or(name);
            let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
            let scopes = self.open.iter().rev();
            let known = scopes
                .flat_map(|block| block.entries.iter().rev())
                .find(|entry| entry.key == name);
            match known {
                Some(entry) => out.push_str(&entry.value),
                // Settings that are empty unless something is said.
                None if name.ends_with("plugins") => {}
                None if is_name => return Err(format!("${name} is not set before this line")),
                None => out.push_str(word),
            }
        }
        Ok(out.trim().to_owned())
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
        let folder = file.parent().unwrap_or(Path::new(""));
        let whole = folder.join(pattern);
        let is_pattern = pattern.contains(['*', '?', '[']);
        if !is_pattern && whole.is_file() {
            return Ok(vec![whole]);
        }
        let found = glob::glob(&whole.to_string_lossy())
            .map_err(|error| wrong(format!("{pattern:?}: {error}")))?;
        let found: Vec<PathBuf> = found.filter_map(Result::ok).collect();
        match found.is_empty() {
            true if may_miss => Ok(found),
            true if is_pattern => {
                let odd = format!("{place}: nothing is called {}", whole.display());
                self.warnings.push(odd);
                Ok(found)
            }
            true => Err(wrong(format!("there is no {}", whole.display()))),
            false => Ok(found),
        }
    }
}

/// `# 2.3.19.1 (9b53102964): /etc/dovecot/dovecot.conf`, as `doveconf -n` begins.
fn version(line: &str) -> Option<String> {
    let version = line.strip_prefix("# ")?.split(' ').next()?;
    let numbers = version.split('.').take(2);
    let is_version =
        numbers.clone().count() == 2 && numbers.into_iter().all(|it| it.parse::<u8>().is_ok());
    is_version.then(|| version.to_owned())
}
