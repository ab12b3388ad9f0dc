//! Messages become visible: a name for each, one sync for all, then UIDs and Dovecot's index.
//!
//! Files first, UIDs second, index last: whatever fails behind the sync is for the log, and Dovecot does it when it looks.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::carry_out::Heard;
use crate::fault::Fault;
use crate::index::log::LockMethod;
use crate::index::{Log, Pair, Transaction, Walks};
use crate::mailbox::path::Paths;
use crate::mailbox::permission::Permission;
use crate::maildir::filename::Names;
use crate::maildir::keywords;
use crate::maildir::save::Written;
use crate::maildir::uidlist::{self, List, Lock};
use crate::maildir::{Maildir, create, guid, uidvalidity};
use crate::message::{Flags, Keywords};
use crate::sys::dir::Dir;

/// A message that is to be seen.
#[derive(Debug)]
pub struct Message {
    pub written: Arc<Written>,
    pub flags: Flags,
    pub keywords: Keywords,
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

/// A message that is in the mailbox, and what it has got.
struct Member {
    published: Published,
    flags: Flags,
    keywords: Keywords,
    /// Those of its keywords that only an index can hold.
    unlettered: Keywords,
    is_in_index: bool,
}

impl Member {
    fn remark_on_unlettered(&mut self) {
        if self.unlettered.is_empty() {
            return;
        }
        let what = match self.is_in_index {
            true => "only in Dovecot's index",
            false => "stored without",
        };
        let remark = format!("{what} {}: 26 others have the letters", self.unlettered);
        self.published.remarks.push(remark);
    }
}

fn remark(members: &mut [&mut Member], remark: &str) {
    for member in members {
        member.published.remarks.push(remark.to_owned());
    }
}

impl Publishing<'_> {
    /// An answer for each, in their order.
    pub fn publish(&self, batch: Vec<Message>) -> Vec<Result<Published, Fault>> {
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
    fn publish_here(&self, paths: &Paths, batch: Vec<Message>) -> Vec<Result<Published, Fault>> {
        let wants_keywords = batch.iter().any(|message| !message.keywords.is_empty());
        let lock = self.lock(paths, wants_keywords);
        let list = match &lock {
            Ok(Some(lock)) => self.list(paths, lock),
            Ok(None) => Ok(None),
            Err(why) => Err(why.clone()),
        };
        let batch = batch.into_iter();
        let mut results: Vec<_> = batch.map(|message| self.link(message, &lock)).collect();
        if let Err(fault) = self.sync(&results) {
            let take_back = |result: Result<Member, Fault>| {
                // A name that cannot be taken back is there twice after the retry: better than not at all.
                let _ = self.mailbox.unlink(&result?.published.file);
                Err(fault.clone())
            };
            return results.into_iter().map(take_back).collect();
        }
        let mut members: Vec<&mut Member> = results.iter_mut().flatten().collect();
        if !members.is_empty() {
            self.settle(list, paths.index.as_deref(), &mut members);
        }
        let published = results.into_iter();
        published
            .map(|result| result.map(|member| member.published))
            .collect()
    }

    /// The lock of the control files. None: there is no list of UIDs that would need it.
    fn lock(&self, paths: &Paths, wants_keywords: bool) -> Result<Option<Lock>, String> {
        let text = |error: io::Error| error.to_string();
        let permission = self.mailbox.permission();
        let control = match Dir::open(&paths.control) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !wants_keywords && !self.is_untouched(paths) {
                    return Ok(None);
                }
                create::directory(&paths.control, permission).map_err(|fault| fault.to_string())?
            }
            other => other.map_err(text)?,
        };
        let is_needed = wants_keywords || control.stat_name(uidlist::FILE).is_ok();
        match is_needed || self.is_untouched(paths) {
            true => Lock::take(control, permission.file_mode)
                .map(Some)
                .map_err(text),
            false => Ok(None),
        }
    }

    /// The list of UIDs, made where the mailbox is a new one.
    fn list(&self, paths: &Paths, lock: &Lock) -> Result<Option<List>, String> {
        match lock.list()? {
            None if self.is_untouched(paths) => {
                let now = UNIX_EPOCH.elapsed().unwrap_or_default();
                let guid = guid::mailbox_guid(now, std::process::id());
                let validity = || {
                    let root = Dir::open(&paths.control_root)?;
                    let permission = Permission::of(&root.stat()?, &paths.control_root);
                    Ok(uidvalidity::next(&root, &permission, now.as_secs() as u32))
                };
                lock.make_list(validity, &guid, self.mailbox.permission())
                    .map(Some)
            }
            list => Ok(list),
        }
    }

    /// Nobody has ever stored a message here, nor looked: one that others have filled has UIDs that only Dovecot knows.
    fn is_untouched(&self, paths: &Paths) -> bool {
        let has_index = |path: &Path| match Dir::open(path) {
            Ok(dir) => Pair::MAILBOX
                .files()
                .any(|file| dir.stat_name(file).is_ok()),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        !paths.index.as_deref().is_some_and(has_index) && self.mailbox.is_empty().unwrap_or(false)
    }

    fn link(
        &self,
        mut message: Message,
        lock: &Result<Option<Lock>, String>,
    ) -> Result<Member, Fault> {
        message.heard.check()?;
        let mut remarks = Vec::new();
        let mut keywords = message.keywords;
        let lettered = match lock {
            _ if keywords.is_empty() => Ok(keywords::Lettered::default()),
            Ok(Some(lock)) => {
                keywords::letters(lock.control(), self.mailbox.permission(), &keywords)
            }
            Ok(None) => Err("its control files are not locked".into()),
            Err(why) => Err(why.clone()),
        };
        let lettered = lettered.unwrap_or_else(|why| {
            remarks.push(format!("stored without {keywords}: {why}"));
            keywords = Keywords::default();
            keywords::Lettered::default()
        });
        let (flags, letters) = (message.flags, &lettered.letters);
        let file = self
            .mailbox
            .link(self.names, &mut message.written, flags, letters)?;
        Ok(Member {
            published: Published {
                file,
                uid: None,
                remarks,
            },
            flags,
            keywords,
            unlettered: lettered.without,
            is_in_index: false,
        })
    }

    fn sync(&self, results: &[Result<Member, Fault>]) -> Result<(), Fault> {
        let linked = results.iter().flatten().map(|it| &it.published.file);
        if !self.sync || linked.clone().next().is_none() {
            return Ok(());
        }
        let doing = || format!("sync {}", self.mailbox.path().display());
        self.mailbox
            .sync(linked)
            .map_err(|error| Fault::io(doing(), &error))
    }

    /// UIDs and index; what goes wrong becomes a remark.
    fn settle(
        &self,
        list: Result<Option<List>, String>,
        index: Option<&Path>,
        members: &mut [&mut Member],
    ) {
        let given = list.and_then(|list| match list {
            Some(list) => self.give(list, index, members),
            None => Ok(()),
        });
        if let Err(why) = given {
            remark(members, &format!("no UID yet: {why}"));
        }
        for member in members {
            member.remark_on_unlettered();
        }
    }

    fn give(
        &self,
        mut list: List,
        index: Option<&Path>,
        members: &mut [&mut Member],
    ) -> Result<(), String> {
        let log = self.index_log(&list, index);
        let known = log.as_ref().ok().and_then(Option::as_ref);
        let known = known.map(|log| log.state().next_uid);
        // A list that came from a backup is behind its index.
        let first = list.next()?.max(known.unwrap_or(1));
        // What is in the list and not yet in the index has to go before ours.
        let missed = known.map_or(Some(Vec::new()), |known| list.since(known));
        let names = members.iter().map(|it| it.published.file.as_str());
        let uids = list.append(first, &names.collect::<Vec<_>>())?;
        for (member, uid) in members.iter_mut().zip(uids) {
            member.published.uid = Some(uid);
        }
        let told = log.and_then(|log| match log {
            Some(log) => self.tell(log, &list, missed, members),
            None => Ok(()),
        });
        if let Err(why) = told {
            let why = format!("{} is left to Dovecot: {why}", Pair::MAILBOX.log());
            remark(members, &why);
        }
        Ok(())
    }

    /// `missed`: the UIDs before those of `members` that the index does not know either.
    fn tell(
        &self,
        log: Log,
        list: &List,
        missed: Option<Vec<u32>>,
        members: &mut [&mut Member],
    ) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let missed = missed.ok_or("Dovecot has not looked for too long")?;
        let with = |keyword: Option<&str>| {
            let has = |it: &&&mut Member| keyword.is_none_or(|name| it.keywords.contains(name));
            let members = members.iter().filter(has);
            members
                .filter_map(|it| Some((it.published.uid?, it.flags.index_bits())))
                .collect::<Vec<_>>()
        };
        let mut transaction = Transaction::default();
        if log.state().validity == 0 {
            transaction.validity(list.validity());
        }
        let missed = missed.into_iter().map(|uid| (uid, 0));
        transaction.append(&missed.chain(with(None)).collect::<Vec<_>>());
        let keywords = members.iter().map(|it| &it.keywords);
        for keyword in keywords.fold(Keywords::default(), Keywords::with).iter() {
            transaction.keyword(keyword, with(Some(keyword)).into_iter().map(|(uid, _)| uid));
        }
        transaction.uidlist(&list.stat().map_err(text)?);
        log.append(transaction, self.sync_index).map_err(text)?;
        for member in members {
            member.is_in_index = true;
        }
        Ok(())
    }

    /// The log of this list's index, locked. None: there is none.
    fn index_log(&self, list: &List, index: Option<&Path>) -> Result<Option<Log>, String> {
        let Some((index, method)) = index.zip(self.index_log) else {
            return Ok(None);
        };
        match Log::lock(index, Pair::MAILBOX, method, self.walks)? {
            // That of a mailbox that has just been made does not know it yet.
            Some(log) if ![list.validity(), 0].contains(&log.state().validity) => {
                Err("its UIDVALIDITY is another one".into())
            }
            log => Ok(log),
        }
    }
}
