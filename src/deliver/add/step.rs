//! An index that is in step with its mbox: then the next UIDs are known, and it is told of them.

use std::io::{self, ErrorKind};
use std::time::Instant;

use crate::deliver::Core;
use crate::index::{self, Log, Pair, State, Walks, log};
use crate::mailbox::path::Paths;
use crate::mbox::append::{Open, Sure};
use crate::message::{Flags, Keywords};
use crate::sys;
use crate::sys::dir::Dir;

/// Whether Dovecot may know more than `size` bytes of the file. Err: nobody can tell now.
pub fn has_seen(walks: &Walks, paths: &Paths, size: u64) -> io::Result<bool> {
    match known(walks, paths) {
        Ok(Known::Size(known)) => Ok(known > size),
        Ok(Known::Nothing) => Ok(false),
        Ok(Known::Untold) => Ok(true),
        // The index of somebody else, today and tomorrow.
        Err(error) if sys::is_no_way(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

/// How much of the file an index knows.
enum Known {
    Nothing,
    Size(u64),
    /// Nobody can tell, ever, and mail does not wait for it: it is in memory, of a later Dovecot, or broken.
    Untold,
}

fn known(walks: &Walks, paths: &Paths) -> io::Result<Known> {
    let Some(index) = paths.index.as_deref() else {
        return Ok(Known::Untold);
    };
    let dir = match Dir::open(index) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Known::Nothing),
        dir => dir?,
    };
    match Log::look(&dir, Pair::MAILBOX, walks) {
        Ok(None) => Ok(Known::Nothing),
        Ok(Some(state)) => Ok(Known::Size(state.mbox.size())),
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            let torn = Log::look_at_torn(&dir, Pair::MAILBOX)?;
            Ok(torn.map_or(Known::Untold, |state| Known::Size(state.mbox.size())))
        }
        Err(error) => Err(error),
    }
}

/// Its log is locked behind the file, as by Dovecot.
pub struct Step {
    log: Log,
    state: State,
    /// Where the file has the last UID; none in an empty one.
    last_uid_at: Option<u64>,
}

/// A message that the index is told of.
pub struct Told<'a> {
    pub uid: u32,
    pub flags: Flags,
    pub keywords: &'a Keywords,
    /// Where its line `From ` begins.
    pub offset: u64,
}

impl Step {
    /// None: there is no index, or it is not in step. Err: why nobody knows.
    pub fn find(core: &Core, paths: &Paths, open: &Open<'_>) -> Result<Option<Step>, String> {
        let Some((index, method)) = paths.index.as_deref().zip(core.settings.index_log) else {
            return Ok(None);
        };
        let dir = match Dir::open(index) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| error.to_string())?,
        };
        let file = index.join(Pair::MAILBOX.log());
        let until = Instant::now() + log::TIMEOUT;
        let take = |timeout| Log::lock(&dir, Pair::MAILBOX, method, &core.walks, timeout);
        let log = core.busy.take(&file, log::TIMEOUT, until, take);
        let Some(log) = log.map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let state = log.state();
        if state.validity == 0 || !state.mbox.is_up_to_date(open.stat()) {
            return Ok(None);
        }
        let last_uid = open.last_uid(state.validity);
        let last_uid = last_uid.map_err(|error| error.to_string())?;
        // Written by somebody who has given more: a UID is never lowered.
        let is_known = match last_uid {
            None => open.stat().size == 0,
            Some((_, last)) => last < state.next_uid,
        };
        let last_uid_at = last_uid.map(|(at, _)| at);
        Ok(is_known.then_some(Step {
            log,
            state,
            last_uid_at,
        }))
    }

    pub fn validity(&self) -> u32 {
        self.state.validity
    }

    /// Of the next message.
    pub fn next_uid(&self) -> u32 {
        self.state.next_uid
    }

    /// What goes wrong is left to Dovecot.
    pub fn tell(mut self, open: &Open<'_>, sure: &Sure, told: &[Told<'_>]) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let Some(last) = told.last() else {
            return Ok(());
        };
        let last_uid_at = match self.last_uid_at {
            // It has its own.
            None if told.len() == 1 => None,
            None => open
                .last_uid(self.state.validity)
                .map_err(text)?
                .map(|(at, _)| at),
            known => known,
        };
        let stat = match last_uid_at {
            Some(at) => open.set_last_uid(at, last.uid).map_err(text)?,
            None => sure.stat,
        };
        let mut transaction = index::Transaction::default();
        transaction.mbox(&stat);
        let messages = told.iter().map(|it| (it.uid, it.flags.index_bits()));
        transaction.append(&messages.collect::<Vec<_>>());
        let offsets = told.iter().map(|it| (it.uid, it.offset.saturating_sub(1)));
        transaction.mbox_offsets(&offsets.collect::<Vec<_>>());
        let keywords = told.iter().map(|it| it.keywords);
        for keyword in keywords.fold(Keywords::default(), Keywords::with).iter() {
            let with = told.iter().filter(|it| it.keywords.contains(keyword));
            transaction.keyword(keyword, with.map(|it| it.uid));
        }
        self.log.append(transaction).map_err(text)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::index::log::log_for_tests;
    use crate::sys::{dir, fault_point};

    /// An index that knows an mbox of 100 bytes.
    fn log_of_a_hundred(root: &std::path::Path) -> Vec<u8> {
        let mbox = root.join("box");
        fs::write(&mbox, [b'x'; 100]).unwrap();
        let mut transaction = index::Transaction::default();
        transaction.mbox_for_tests(&dir::stat(&mbox).unwrap());
        [log_for_tests(2, (0, 0), 5), transaction.into_bytes()].concat()
    }

    #[test]
    fn what_a_reader_knows_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let whole = log_of_a_hundred(root.path());
        let zeros = [&whole[..], &[0; 40]].concat();
        let later = [&[2][..], &whole[1..]].concat();
        let log = |bytes: &[u8]| Some(Some(bytes.to_vec()));
        for (case, has_path, index, seen) in [
            ("in memory", false, None, [true, true, true]),
            ("no directory", true, None, [false, false, false]),
            ("no log", true, Some(None), [false, false, false]),
            ("a log", true, log(&whole), [true, false, false]),
            ("a torn log", true, log(&zeros), [true, false, false]),
            ("of a later Dovecot", true, log(&later), [true, true, true]),
        ] {
            let place = root.path().join("index");
            let _ = fs::remove_dir_all(&place);
            if let Some(log) = &index {
                fs::create_dir(&place).unwrap();
                if let Some(bytes) = log {
                    fs::write(place.join("dovecot.index.log"), bytes).unwrap();
                }
            }
            let paths = Paths {
                index: has_path.then(|| place.clone()),
                ..Paths::for_tests(root.path(), root.path())
            };
            let told =
                [99, 100, 101].map(|size| has_seen(&Walks::default(), &paths, size).unwrap());
            assert_eq!(told, seen, "{case}");
        }
    }

    /// What cannot be read now is asked for again, what is not ours to read never will be.
    #[test]
    fn an_index_that_cannot_be_read() {
        let root = tempfile::tempdir().unwrap();
        let whole = log_of_a_hundred(root.path());
        let torn = [&whole[..], &[0; 40]].concat();
        let paths = Paths::for_tests(root.path(), root.path());
        for log in [&whole, &torn] {
            fs::write(root.path().join("dovecot.index.log"), log).unwrap();
            for errno in [13, 5] {
                for step in 0.. {
                    fault_point::arm(step, errno);
                    let told = has_seen(&Walks::default(), &paths, 200);
                    if fault_point::disarm() {
                        assert!(!told.unwrap() && step > 4, "only {step} steps");
                        break;
                    }
                    let is_refused = errno == 13;
                    assert_eq!(told.ok(), is_refused.then_some(true), "{errno} at {step}");
                }
            }
        }
    }
}
