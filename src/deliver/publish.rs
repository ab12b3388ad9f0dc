//! Messages become visible: a name for each, one sync for all, then UIDs and Dovecot's index.
//!
//! Files first, UIDs second, index last: whatever fails behind the sync is for the log, and Dovecot does it when it looks.

use std::path::Path;
use std::sync::Arc;

use super::carry_out::Heard;
use crate::fault::Fault;
use crate::index::log::LockMethod;
use crate::index::{Log, Pair, Transaction, Walks};
use crate::mailbox::path::Paths;
use crate::maildir::Maildir;
use crate::maildir::filename::Names;
use crate::maildir::save::Written;
use crate::maildir::uidlist::{self, List, Lock};
use crate::message::Flags;
use crate::sys::dir::Dir;

/// A message that is to be seen.
#[derive(Debug)]
pub struct Message {
    pub written: Arc<Written>,
    pub flags: Flags,
    /// Of its mailbox, as its user has them.
    pub paths: Paths,
    pub heard: Heard,
}

/// A message that readers see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its name in `new/` or `cur/`.
    pub file: String,
    /// None where Dovecot is to give it.
    pub uid: Option<u32>,
    pub remarks: Vec<String>,
}

/// Where and how messages are published.
#[derive(Debug)]
pub struct Publishing<'a> {
    pub mailbox: &'a Maildir,
    pub names: &'a Names,
    pub walks: &'a Walks,
    /// Durable before it is answered.
    pub sync: bool,
    /// The index too.
    pub sync_index: bool,
    /// How the index's log is locked; none: it is left alone.
    pub index_log: Option<LockMethod>,
}

type Results = Vec<Result<Published, Fault>>;

impl Publishing<'_> {
    /// An answer for each, in their order.
    pub fn publish(&self, batch: Vec<Message>) -> Results {
        let mut results: Vec<_> = batch.iter().map(|_| None).collect();
        let mut rest: Vec<_> = batch.into_iter().enumerate().collect();
        // Users may have control files or indexes of their own: then each place has its turn.
        while let Some((_, first)) = rest.first() {
            let paths = first.paths.clone();
            let (here, elsewhere): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, it)| {
                it.paths.control == paths.control && it.paths.index == paths.index
            });
            rest = elsewhere;
            let (at, here): (Vec<_>, Vec<_>) = here.into_iter().unzip();
            let published = self.publish_here(&paths, here);
            for (at, result) in at.into_iter().zip(published) {
                results[at] = Some(result);
            }
        }
        results.into_iter().flatten().collect()
    }

    /// When the sync fails none of them is durable: all names are taken back.
    fn publish_here(&self, paths: &Paths, batch: Vec<Message>) -> Results {
        let lock = self.lock(&paths.control);
        let list = match &lock {
            Ok(Some(lock)) => lock.list(),
            Ok(None) => Ok(None),
            Err(why) => Err(why.clone()),
        };
        let flags: Vec<Flags> = batch.iter().map(|message| message.flags).collect();
        let mut results: Results = batch
            .into_iter()
            .map(|message| self.link(message))
            .collect();
        if let Err(fault) = self.sync(&results) {
            let take_back = |result: Result<Published, Fault>| {
                // A name that cannot be taken back is there twice after the retry: better than not at all.
                let _ = self.mailbox.unlink(&result?.file);
                Err(fault.clone())
            };
            return results.into_iter().map(take_back).collect();
        }
        let mut published: Vec<(&mut Published, Flags)> = results
            .iter_mut()
            .zip(flags)
            .filter_map(|(result, flags)| Some((result.as_mut().ok()?, flags)))
            .collect();
        if published.is_empty() {
            return results;
        }
        let told = list.and_then(|list| match list {
            Some(list) => self.tell(list, paths.index.as_deref(), &mut published),
            None => Ok(()),
        });
        if let Err(why) = told {
            for (published, _) in &mut published {
                published.remarks.push(format!("no UID yet: {why}"));
            }
        }
        results
    }

    /// The lock of the control files. None: there is no list of UIDs that would need it.
    fn lock(&self, control: &Path) -> Result<Option<Lock>, String> {
        let text = |error: std::io::Error| error.to_string();
        let Ok(control) = Dir::open(control) else {
            return Ok(None);
        };
        if control.stat_name(uidlist::FILE).is_err() {
            return Ok(None);
        }
        let mode = self.mailbox.permission().file_mode;
        Lock::take(control, mode).map(Some).map_err(text)
    }

    fn link(&self, mut message: Message) -> Result<Published, Fault> {
        message.heard.check()?;
        let file = self
            .mailbox
            .link(self.names, &mut message.written, message.flags)?;
        Ok(Published {
            file,
            uid: None,
            remarks: Vec::new(),
        })
    }

    fn sync(&self, results: &Results) -> Result<(), Fault> {
        let linked = results.iter().flatten().map(|published| &published.file);
        if !self.sync || linked.clone().next().is_none() {
            return Ok(());
        }
        let doing = || format!("sync {}", self.mailbox.path().display());
        self.mailbox
            .sync(linked)
            .map_err(|error| Fault::io(doing(), &error))
    }

    /// Gives the UIDs, and tells the index of them.
    fn tell(
        &self,
        mut list: List,
        index: Option<&Path>,
        published: &mut [(&mut Published, Flags)],
    ) -> Result<(), String> {
        let lock = |(index, method)| Log::lock(index, Pair::MAILBOX, method, self.walks);
        let log = index
            .zip(self.index_log)
            .map_or(Ok(None), lock)
            .and_then(|log| match log {
                Some(log) if log.state().validity != list.validity() => {
                    Err("its UIDVALIDITY is another one".into())
                }
                log => Ok(log),
            });
        let (log, mut why_not) = match log {
            Ok(log) => (log, None),
            Err(why) => (None, Some(why)),
        };
        let mut first = list.next()?;
        // What is in the list and not yet in the index has to go before ours.
        let mut missed = Vec::new();
        let log = match log {
            None => None,
            Some(log) => {
                // A list that came from a backup is behind its index.
                first = first.max(log.state().next_uid);
                match list.since(log.state().next_uid) {
                    Some(uids) => {
                        missed = uids;
                        Some(log)
                    }
                    None => {
                        why_not = Some("Dovecot has not looked for too long".into());
                        None
                    }
                }
            }
        };
        let names: Vec<&str> = published.iter().map(|(it, _)| it.file.as_str()).collect();
        let uids = list.append(first, &names)?;
        for ((published, _), uid) in published.iter_mut().zip(&uids) {
            published.uid = Some(*uid);
        }
        if let Some(log) = log {
            let missed = missed.into_iter().map(|uid| (uid, 0));
            let flags = published.iter().map(|(_, flags)| flags.index_bits());
            let new: Vec<_> = missed.chain(uids.into_iter().zip(flags)).collect();
            let mut transaction = Transaction::default();
            transaction.append(&new);
            let told = list.stat().and_then(|stat| {
                transaction.uidlist(&stat);
                log.append(transaction, self.sync_index)
            });
            why_not = told.err().map(|error| error.to_string());
        }
        if let Some(why) = why_not {
            for (published, _) in published {
                let remark = format!("dovecot.index.log is left to Dovecot: {why}");
                published.remarks.push(remark);
            }
        }
        Ok(())
    }
}
