//! An index that is in step with its mbox: then the next UIDs are known, and it is told of them.

use std::io::{self, ErrorKind};
use std::time::Instant;

use crate::deliver::Core;
use crate::index::{self, Log, Pair, State, log};
use crate::mailbox::path::Paths;
use crate::mbox::append::{Open, Sure};
use crate::message::{Flags, Keywords};
use crate::sys::dir::Dir;

/// Whether Dovecot may know more than `size` bytes of the file. Err: nobody can tell now.
pub fn has_seen(core: &Core, paths: &Paths, size: u64) -> io::Result<bool> {
    let dir = match paths.index.as_deref().map(Dir::open) {
        Some(Err(error)) if error.kind() == ErrorKind::NotFound => return Ok(false),
        // An index in memory: nobody can tell, ever.
        None => return Ok(true),
        Some(dir) => dir?,
    };
    match Log::look(&dir, Pair::MAILBOX, &core.walks) {
        Ok(None) => Ok(false),
        Ok(Some(state)) => Ok(state.mbox.size() > size),
        // Of a later Dovecot, or broken: mail does not wait for it.
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            let torn = Log::look_at_torn(&dir, Pair::MAILBOX)?;
            Ok(torn.is_none_or(|state| state.mbox.size() > size))
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
