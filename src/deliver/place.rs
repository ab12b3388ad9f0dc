//! The control files and the index of a mailbox, as one of its users has them: locked and open before anything is visible.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::publish::Publishing;
use crate::fault::Fault;
use crate::index::{Log, Pair, State, log};
use crate::mailbox::path::Paths;
use crate::mailbox::permission::Permission;
use crate::maildir::Maildir;
use crate::maildir::create;
use crate::maildir::created::Created;
use crate::maildir::keywords;
use crate::maildir::uidlist::{self, List, Lock};
use crate::maildir::uidvalidity;
use crate::sys::dir::Dir;

/// How long its locks are waited for, all together.
pub const TIMEOUT: Duration = uidlist::TIMEOUT;

/// What a delivery changes beside the message itself. Dropped, its locks are free again.
pub struct Place<'a> {
    publishing: &'a Publishing<'a>,
    paths: &'a Paths,
    /// The directory of the index; none where it is in memory, or not there yet.
    index: Result<Option<Dir>, String>,
    /// The lock of the control files. None: there is no list of UIDs that would need it.
    pub lock: Result<Option<Lock>, String>,
    /// The control directory, where it was not there.
    made: Option<Created>,
    has_made_list: Cell<bool>,
    until: Instant,
}

impl<'a> Place<'a> {
    /// Waits `until` then at most.
    pub fn open(
        publishing: &'a Publishing<'a>,
        paths: &'a Paths,
        wants_keywords: bool,
        until: Instant,
    ) -> Place<'a> {
        let index = paths.index.as_deref();
        let index = index.map(|index| open(publishing, index)).transpose();
        let mut place = Place {
            publishing,
            paths,
            index: index
                .map(Option::flatten)
                .map_err(|error| error.to_string()),
            lock: Ok(None),
            made: None,
            has_made_list: Cell::new(false),
            until,
        };
        place.lock = place.take_lock(wants_keywords);
        place
    }

    fn take_lock(&mut self, wants_keywords: bool) -> Result<Option<Lock>, String> {
        let text = |error: io::Error| error.to_string();
        let permission = self.publishing.mailbox.permission();
        let control = match open(self.publishing, &self.paths.control).map_err(text)? {
            Some(control) => control,
            None if !wants_keywords && !self.is_untouched() => return Ok(None),
            None => {
                let made = self
                    .check_name()
                    .and_then(|()| create::directory(&self.paths.control, permission));
                let (control, made) = made.map_err(|fault| fault.to_string())?;
                self.made = Some(made);
                control
            }
        };
        let mailbox = self.publishing.mailbox;
        let own = Some(mailbox).filter(|it| it.path() == self.paths.control);
        let mut spare = own.and_then(Maildir::spare_lock);
        let has_list = match &spare {
            // There was one.
            Some(_) => true,
            None => has_list(&control).map_err(text)?,
        };
        let is_needed = wants_keywords || has_list;
        if !is_needed && !self.is_untouched() {
            return Ok(None);
        }
        if spare.is_none() {
            spare = own.and_then(|it| it.make_spare_lock(self.publishing.names));
        }
        let file = self.paths.control.join(uidlist::FILE);
        let take = |timeout| Lock::take_with(spare, control, permission.file_mode, timeout);
        let busy = self.publishing.busy;
        busy.take(&file, uidlist::TIMEOUT, self.until, take)
            .map(Some)
            .map_err(text)
    }

    /// The list of UIDs, made where the mailbox is a new one.
    pub fn list(&self) -> Result<Option<List<'_>>, String> {
        let Some(lock) = self.lock.as_ref().map_err(String::clone)? else {
            return Ok(None);
        };
        match lock.list()? {
            None if self.is_untouched() => {
                self.check_name().map_err(|fault| fault.to_string())?;
                let validity = || {
                    let now = UNIX_EPOCH.elapsed().unwrap_or_default();
                    let root = Dir::open(&self.paths.control_root)?;
                    let permission = Permission::of(&root.stat()?, &self.paths.control_root);
                    Ok(uidvalidity::next(&root, &permission, now.as_secs() as u32))
                };
                self.has_made_list.set(true);
                lock.make_list(validity, self.publishing.mailbox.permission())
                    .map(Some)
            }
            list => Ok(list),
        }
    }

    /// The log of the index that belongs to `list`, locked. None: there is none, or it is left alone.
    pub fn index_log(&self, list: &List<'_>) -> Result<Option<Log>, String> {
        let index = self.index.as_ref().map_err(String::clone)?;
        let (Some(dir), Some(method), Some(path)) =
            (index, self.publishing.index_log, &self.paths.index)
        else {
            return Ok(None);
        };
        let file = path.join(Pair::MAILBOX.log());
        let walks = self.publishing.walks;
        let take = |timeout| Log::lock(dir, Pair::MAILBOX, method, walks, timeout);
        let busy = self.publishing.busy;
        let log = busy
            .take(&file, log::TIMEOUT, self.until, take)
            .map_err(|error| error.to_string())?;
        match log.as_ref().map(Log::state) {
            Some(state) if !is_of(&state, list) => Err("its UIDVALIDITY is another one".into()),
            _ => Ok(log),
        }
    }

    /// The next UID as the index has it, whether its log can be appended to or not. None: it knows none. Err: nobody can tell,
    /// so no UID can be given.
    pub fn next_of_index(
        &self,
        list: &List<'_>,
        log: &Result<Option<Log>, String>,
    ) -> Result<Option<u32>, String> {
        match log {
            Ok(Some(log)) => return Ok(Some(log.state().next_uid)),
            // It was looked for.
            Ok(None) if self.publishing.index_log.is_some() => return Ok(None),
            _ => {}
        }
        let Some(dir) = self.index.as_ref().map_err(String::clone)? else {
            return Ok(None);
        };
        let state = Log::look(dir, Pair::MAILBOX, self.publishing.walks);
        let state = state.map_err(|error| format!("{}: {error}", Pair::MAILBOX.log()))?;
        let state = state.filter(|state| is_of(state, list));
        Ok(state.map(|state| state.next_uid))
    }

    /// Nobody has ever stored a message here, nor looked: one that others have filled has UIDs that only Dovecot knows.
    fn is_untouched(&self) -> bool {
        let has_index = |dir: &Dir| {
            let mut files = Pair::MAILBOX.files();
            files.any(|file| dir.stat_name(file).is_ok())
        };
        let is_new = match &self.index {
            Ok(index) => !index.as_ref().is_some_and(has_index),
            Err(_) => false,
        };
        is_new && self.publishing.mailbox.is_empty().unwrap_or(false)
    }

    /// Whether the mailbox is still the one of this place.
    pub fn check_name(&self) -> Result<(), Fault> {
        self.publishing.mailbox.check_name(&self.paths.mailbox)
    }

    /// Messages are in it.
    pub fn keep(self) {
        if let Some(made) = self.made {
            made.keep();
        }
    }

    /// No message is in it. A list stays where the mailbox and its directory were there before: somebody may have read it.
    pub fn leave(self) {
        match self.made.is_some() || self.check_name().is_err() {
            true => self.take_back(),
            false => self.keep(),
        }
    }

    /// Nothing has come of it: what was made for it goes, and would be in the way of a mailbox that gets this name.
    pub fn take_back(self) {
        if self.has_made_list.get()
            && let Ok(Some(lock)) = &self.lock
        {
            lock.unmake_list();
        }
        if self.made.is_some()
            && let Ok(Some(lock)) = &self.lock
        {
            lock.remove(keywords::FILE);
        }
        drop(self.lock);
        drop(self.made);
    }
}

/// That of a mailbox that has just been made does not know its UIDVALIDITY yet.
fn is_of(state: &State, list: &List<'_>) -> bool {
    (state.validity == 0 && state.next_uid == 1) || state.validity == list.validity()
}

fn has_list(control: &Dir) -> io::Result<bool> {
    match control.stat_name(uidlist::FILE) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        there => there.map(|_| true),
    }
}

/// The mailbox's own directory is the one that is open, whatever has its name by now. None: there is none.
fn open(publishing: &Publishing<'_>, directory: &Path) -> io::Result<Option<Dir>> {
    let opened = match directory == publishing.mailbox.path() {
        true => Ok(publishing.mailbox.dir().clone()),
        false => Dir::open(directory),
    };
    match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}
