//! A file of lines, read again when it has changed, also while somebody writes it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// A file, and what was made of its lines.
#[derive(Debug)]
pub struct LineFile<T> {
    path: PathBuf,
    read: Mutex<Option<Last<T>>>,
}

/// What was read last.
#[derive(Debug)]
struct Last<T> {
    version: Version,
    /// It was read so soon after its change that another one of the same moment and size may have followed.
    was_young: bool,
    digest: blake3::Hash,
    lines: Arc<Lines<T>>,
}

/// Inode, size and modification time: what tells one version of the file from the next.
type Version = (u64, u64, SystemTime);

/// One version of it.
#[derive(Debug)]
pub struct Lines<T> {
    pub content: T,
    is_whole: bool,
    modified: SystemTime,
}

const UNENDED: &str = "its last line does not end: it is being written, or the newline is missing";
/// How long after a change something may be missing that is about to be written.
const YOUNG: Duration = Duration::from_secs(2);

impl<T> LineFile<T> {
    /// Read when it is asked for the first time.
    pub fn new(path: PathBuf) -> LineFile<T> {
        LineFile {
            path,
            read: Mutex::default(),
        }
    }

    /// As it was given: nothing is resolved, and it may be missing.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file as it is now. `parse` gets the lines that end: what does not is not a line yet.
    pub fn read(
        &self,
        parse: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<Arc<Lines<T>>, String> {
        let failed = |error: io::Error| error.to_string();
        let meta = fs::metadata(&self.path).map_err(failed)?;
        let modified = meta.modified().map_err(failed)?;
        let version = (meta.ino(), meta.size(), modified);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let last = read.as_mut().filter(|it| it.version == version);
        if let Some(last) = &last
            && !last.was_young
        {
            return Ok(Arc::clone(&last.lines));
        }
        let read_from = SystemTime::now();
        let mut file = File::open(&self.path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        // By now it may be one that somebody writes.
        let read_at = file.metadata().and_then(|meta| meta.modified());
        let modified = modified.max(read_at.map_err(failed)?);
        let was_young = is_young(modified, read_from);
        let digest = blake3::hash(&bytes);
        if let Some(last) = last
            && (last.digest, last.lines.modified) == (digest, modified)
        {
            last.was_young = was_young;
            return Ok(Arc::clone(&last.lines));
        }
        let end = bytes.iter().rposition(|byte| *byte == b'\n');
        let ended = &bytes[..end.map_or(0, |end| end + 1)];
        let lines = Arc::new(Lines {
            content: parse(ended)?,
            is_whole: ended.len() == bytes.len(),
            modified,
        });
        *read = Some(Last {
            version,
            was_young,
            digest,
            lines: Arc::clone(&lines),
        });
        Ok(lines)
    }
}

impl<T> Lines<T> {
    /// Why something may be missing, whenever it is asked for.
    pub fn unended(&self) -> Option<&'static str> {
        (!self.is_whole).then_some(UNENDED)
    }

    /// Why what is not in it may be about to be written.
    pub fn may_lack(&self) -> Option<&'static str> {
        let is_young = is_young(self.modified, SystemTime::now());
        self.unended()
            .or_else(|| is_young.then_some("it has just changed, and more may follow"))
    }
}

/// Also where the clock of its file server is a little ahead. One that is far ahead tells nothing.
fn is_young(modified: SystemTime, now: SystemTime) -> bool {
    let age = now.duration_since(modified);
    age.unwrap_or_else(|ahead| ahead.duration()) < YOUNG
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aged(path: &Path, text: &str, age: i64) {
        fs::write(path, text).unwrap();
        let now = SystemTime::now();
        let seconds = Duration::from_secs(age.unsigned_abs());
        let modified = if age < 0 {
            now + seconds
        } else {
            now - seconds
        };
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(modified).unwrap();
    }

    #[test]
    fn what_may_be_about_to_be_written() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("map");
        // what is in it, seconds since its change, whether something may be missing
        for (text, age, may_lack) in [
            ("a\n", 60, false),
            ("a\n", 0, true),
            ("a\n", -1, true),
            ("a\n", -600, false),
            ("a\nb", 60, true),
        ] {
            aged(&path, text, age);
            let lines = LineFile::new(path.clone());
            let lines = lines.read(|bytes| Ok(bytes.to_vec())).unwrap();
            assert_eq!(lines.content, b"a\n");
            assert_eq!(lines.may_lack().is_some(), may_lack, "{text:?} {age}");
        }
    }

    /// Both within one tick of the clock, as long as the first: only what it says tells them apart.
    #[test]
    fn two_changes_at_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("map");
        let file: LineFile<Vec<u8>> = LineFile::new(path.clone());
        let read = || file.read(|bytes| Ok(bytes.to_vec())).unwrap();
        fs::write(&path, "a\n").unwrap();
        let moment = SystemTime::now();
        for text in ["a\n", "b\n"] {
            fs::write(&path, text).unwrap();
            let times = File::options().write(true).open(&path).unwrap();
            times.set_modified(moment).unwrap();
            assert_eq!(read().content, text.as_bytes());
            // As long as it says the same it is parsed once.
            assert!(Arc::ptr_eq(&read(), &read()));
        }
        // An old one is read once.
        aged(&path, "c\n", 60);
        assert!(Arc::ptr_eq(&read(), &read()));
    }
}
