//! Messages become visible: a name for each, one sync for all, then UIDs and Dovecot's index.
//!
//! Files first, UIDs second, index last: whatever fails behind the sync is for the log, and Dovecot does it when it looks.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};

use super::busy::Busy;
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
use crate::maildir::{Maildir, create, uidvalidity};
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
    pub busy: &'a Busy,
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
        // However many places have locks.
        let until = Instant::now() + uidlist::TIMEOUT;
        // Users may have control files or indexes of their own: then each place has its turn.
        while let Some((_, first)) = rest.first() {
            let paths = first.paths.clone();
            let (here, elsewhere): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, it)| {
                it.paths.control == paths.control && it.paths.index == paths.index
            });
            rest = elsewhere;
            let (at, here): (Vec<_>, Vec<_>) = here.into_iter().unzip();
            let published = self.publish_here(&paths, here, until);
            for (at, result) in at.into_iter().zip(published) {
                results[at] = Some(result);
            }
        }
        results.into_iter().flatten().collect()
    }

    /// When the sync fails none of them is durable, and when the mailbox is another one by now they are elsewhere: all names
    /// are taken back. The locks are waited for `until` then.
    fn publish_here(
        &self,
        paths: &Paths,
        batch: Vec<Message>,
        until: Instant,
    ) -> Vec<Result<Published, Fault>> {
        let wants_keywords = batch.iter().any(|message| !message.keywords.is_empty());
        let lock = self.lock(paths, wants_keywords, until);
        let list = match &lock {
            Ok(Some(lock)) => self.list(paths, lock),
            Ok(None) => Ok(None),
            Err(why) => Err(why.clone()),
        };
        // With the lock, and whatever it is in, open: they stay together from here on, or nothing comes of it.
        if let Err(fault) = self.mailbox.check_name() {
            return batch.iter().map(|_| Err(fault.clone())).collect();
        }
        let batch = batch.into_iter();
        let mut results: Vec<_> = batch.map(|message| self.link(message, &lock)).collect();
        if let Err(fault) = self.sync(&results).and_then(|()| self.mailbox.check_name()) {
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

    /// The mailbox's own directory is the one that is open, whatever has its name by now.
    fn open(&self, directory: &Path) -> io::Result<Dir> {
        match directory == self.mailbox.path() {
            true => self.mailbox.dir().try_clone(),
            false => Dir::open(directory),
        }
    }

    /// The lock of the control files. None: there is no list of UIDs that would need it.
    fn lock(
        &self,
        paths: &Paths,
        wants_keywords: bool,
        until: Instant,
    ) -> Result<Option<Lock>, String> {
        let text = |error: io::Error| error.to_string();
        let permission = self.mailbox.permission();
        let control = match self.open(&paths.control) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !wants_keywords && !self.is_untouched(paths) {
                    return Ok(None);
                }
                create::directory(&paths.control, permission).map_err(|fault| fault.to_string())?
            }
            other => other.map_err(text)?,
        };
        let is_needed = wants_keywords || control.stat_name(uidlist::FILE).is_ok();
        if !is_needed && !self.is_untouched(paths) {
            return Ok(None);
        }
        let timeout = self.busy.timeout(&paths.control, until);
        let lock = Lock::take(control, permission.file_mode, timeout);
        let is_held = lock.as_ref().err().map(io::Error::kind) == Some(io::ErrorKind::TimedOut);
        self.busy.note(&paths.control, is_held);
        lock.map(Some).map_err(text)
    }

    /// The list of UIDs, made where the mailbox is a new one.
    fn list<'l>(&self, paths: &Paths, lock: &'l Lock) -> Result<Option<List<'l>>, String> {
        match lock.list()? {
            None if self.is_untouched(paths) => {
                let validity = || {
                    let now = UNIX_EPOCH.elapsed().unwrap_or_default();
                    let root = Dir::open(&paths.control_root)?;
                    let permission = Permission::of(&root.stat()?, &paths.control_root);
                    Ok(uidvalidity::next(&root, &permission, now.as_secs() as u32))
                };
                lock.make_list(validity, self.mailbox.permission())
                    .map(Some)
            }
            list => Ok(list),
        }
    }

    /// Nobody has ever stored a message here, nor looked: one that others have filled has UIDs that only Dovecot knows.
    fn is_untouched(&self, paths: &Paths) -> bool {
        let has_index = |path: &Path| match self.open(path) {
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
            Ok(Some(lock)) => keywords::letters(lock, self.mailbox.permission(), &keywords),
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
        list: Result<Option<List<'_>>, String>,
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
        mut list: List<'_>,
        index: Option<&Path>,
        members: &mut [&mut Member],
    ) -> Result<(), String> {
        let log = self.index_log(&list, index);
        let known = log.as_ref().ok().and_then(Option::as_ref);
        let known = known.map(|log| log.state().next_uid);
        // A list that came from a backup is behind its index; so was a line of it that is lost.
        let lost = u32::from(list.is_mended());
        let known_next = known.map_or(1, |next| next.saturating_add(lost));
        let first = list.next()?.max(known_next);
        // What is in the list and not yet in the index has to go before ours.
        let missed = known.map_or(Some(Vec::new()), |known| list.since(known));
        let names = members.iter().map(|it| it.published.file.as_str());
        let uids = list.append(first, &names.collect::<Vec<_>>())?;
        for (member, uid) in members.iter_mut().zip(uids) {
            member.published.uid = Some(uid);
        }
        if self.sync
            && let Err(why) = list.sync()
        {
            let why = format!("its UID may be another one after a crash: {why}");
            remark(members, &why);
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

    /// `missed`: the UIDs before those of `members` that the index does not know either. Their flags are in their names, in
    /// `cur/`, where the next session looks: nothing is said of that directory.
    fn tell(
        &self,
        mut log: Log,
        list: &List<'_>,
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
        transaction.uidlist(list.stat());
        log.append(transaction).map_err(text)?;
        for member in members.iter_mut() {
            member.is_in_index = true;
        }
        if self.sync_index
            && let Err(why) = log.sync()
        {
            remark(
                members,
                &format!("{} is not synced: {why}", Pair::MAILBOX.log()),
            );
        }
        Ok(())
    }

    /// The log of this list's index, locked. None: there is none.
    fn index_log(&self, list: &List<'_>, index: Option<&Path>) -> Result<Option<Log>, String> {
        let Some((index, method)) = index.zip(self.index_log) else {
            return Ok(None);
        };
        let dir = match self.open(index) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| error.to_string())?,
        };
        let log = Log::lock(&dir, Pair::MAILBOX, method, self.walks)?;
        let state = log.as_ref().map(Log::state);
        match state {
            // That of a mailbox that has just been made does not know it yet.
            Some(state) if state.validity == 0 && state.next_uid == 1 => Ok(log),
            Some(state) if state.validity != list.validity() => {
                Err("its UIDVALIDITY is another one".into())
            }
            _ => Ok(log),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::index::log::log_for_tests;
    use crate::maildir::save::Demands;
    use crate::message::body::{BodyWriter, Spool};
    use crate::sys::process::hostname;

    /// Publishes a message for each of `places`, which have control files and index of the users.
    fn published(root: &Path, busy: &Busy, places: &[&str]) -> Vec<Published> {
        for part in ["cur", "new", "tmp"] {
            fs::create_dir_all(root.join("box").join(part)).unwrap();
        }
        let mailbox = Maildir::open(&root.join("box")).unwrap();
        let names = Names::new("mx", 1);
        let demands = Demands {
            verified: false,
            sync: true,
        };
        let body = BodyWriter::new(&Spool::default()).finish().unwrap();
        let message = |place: &&str| Message {
            written: Arc::new(mailbox.write(&names, b"", &body, demands).unwrap()),
            flags: Flags::default(),
            keywords: Keywords::default(),
            paths: Paths::for_tests(mailbox.path(), &root.join(place)),
            heard: Heard::from_now(),
        };
        let publishing = Publishing {
            mailbox: &mailbox,
            names: &names,
            walks: &Walks::default(),
            busy,
            sync: true,
            sync_index: false,
            index_log: Some(LockMethod::Fcntl),
        };
        let results = publishing.publish(places.iter().map(message).collect());
        results.into_iter().map(Result::unwrap).collect()
    }

    fn list(place: &Path, next: u32) {
        fs::create_dir_all(place).unwrap();
        let guid = "86371b0c7d9a026bb73a000083ecc375";
        fs::write(place.join(uidlist::FILE), format!("3 V5 N{next} G{guid}\n")).unwrap();
    }

    /// The second for the first lock, and then for none: the client waits for the answer.
    #[test]
    fn locks_of_several_users_are_waited_for_once() {
        let root = tempfile::tempdir().unwrap();
        let (places, busy) = (["a", "b", "c", "d"], Busy::default());
        for place in places {
            list(&root.path().join(place), 7);
        }
        for place in ["a", "b", "c"] {
            let lock = root.path().join(place).join("dovecot-uidlist.lock");
            fs::write(lock, format!("1:{}", hostname())).unwrap();
        }
        for allowed in [Duration::from_secs(5), Duration::from_secs(1)] {
            let began = Instant::now();
            let published = published(root.path(), &busy, &places);
            assert!(began.elapsed() < allowed, "{:?}", began.elapsed());
            for one in &published[..3] {
                assert_eq!(one.uid, None);
                assert!(
                    one.remarks[0].contains("held by another process"),
                    "{one:?}"
                );
            }
            assert!(published[3].uid.is_some());
        }
    }

    #[test]
    fn uids_go_on_behind_the_index_and_never_by_one_that_is_not_its() {
        // UIDVALIDITY and messages of the index; next UID of the list; the UID, and the one that the index has afterwards
        for (validity, known, next, uid, told) in [
            (5, 0, 7, 7, Some(8)),
            (5, 20, 7, 21, Some(22)),
            (0, 0, 7, 7, Some(8)),
            (0, 20, 7, 7, None),
            (6, 20, 7, 7, None),
        ] {
            let root = tempfile::tempdir().unwrap();
            let place = root.path().join("a");
            list(&place, next);
            let mut log = log_for_tests(2, (0, 0), validity);
            if known > 0 {
                let mut transaction = Transaction::default();
                transaction.append(&[(known, 0)]);
                log.extend(transaction.into_bytes());
            }
            fs::write(place.join("dovecot.index.log"), &log).unwrap();
            let published = published(root.path(), &Busy::default(), &["a"]);
            let case = format!("{validity} {known}: {published:?}");
            assert_eq!(published[0].uid, Some(uid), "{case}");
            let dir = Dir::open(&place).unwrap();
            let after = Log::lock(&dir, Pair::MAILBOX, LockMethod::Fcntl, &Walks::default());
            let after = after.unwrap().unwrap().state().next_uid;
            assert_eq!(after, told.unwrap_or(known + 1), "{case}");
            assert_eq!(published[0].remarks.is_empty(), told.is_some(), "{case}");
        }
    }
}
