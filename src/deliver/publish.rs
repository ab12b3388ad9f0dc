//! Messages become visible: a name and a line in the list of UIDs for each, one sync for all, then Dovecot's index.
//!
//! Files first, UIDs second, index last. What fails of UIDs and index is for the log, and Dovecot does it when it looks; where the
//! names are not durable they are taken back, and their lines are those of messages that are gone: Dovecot leaves them out when it
//! writes its list anew, at its next look at the mailbox.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::busy::Busy;
use super::carry_out::Heard;
use super::place::{self, Place};
use crate::fault::Fault;
use crate::index::log::LockMethod;
use crate::index::{Log, Pair, Transaction, Walks};
use crate::mailbox::path::Paths;
use crate::maildir::Maildir;
use crate::maildir::filename::Names;
use crate::maildir::keywords;
use crate::maildir::save::Written;
use crate::maildir::uidlist::{List, Lock};
use crate::message::{Flags, Keywords};

/// A message that is to be seen.
#[derive(Debug)]
pub struct Message {
    pub written: Arc<Written>,
    /// The name that it is to have, without sizes and flags; none: any.
    pub name: Option<String>,
    pub flags: Flags,
    pub keywords: Keywords,
    /// Of its mailbox, as its user has them.
    pub paths: Arc<Paths>,
    pub heard: Heard,
}

/// A message that readers see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its name in `new/` or `cur/`.
    pub file: String,
    /// None where Dovecot is to give it.
    pub uid: Option<u32>,
    /// Waiting for locks, and for the disk.
    pub locked: Duration,
    pub synced: Duration,
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
    written: Arc<Written>,
    flags: Flags,
    keywords: Keywords,
    /// Those of its keywords that only an index can hold.
    unlettered: Keywords,
    is_in_index: bool,
}

/// The UIDs of a batch: their lines are in the list.
struct Given<'l> {
    list: List<'l>,
    /// Locked, where there is one to be told.
    log: Result<Option<Log>, String>,
    /// UIDs before those of the batch that the index does not know either.
    missed: Option<Vec<u32>>,
    uids: Vec<u32>,
    synced: Duration,
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
        let until = Instant::now() + place::TIMEOUT;
        // Users may have control files or indexes of their own: then each place has its turn.
        while let Some((_, first)) = rest.first() {
            let paths = Arc::clone(&first.paths);
            let (here, elsewhere): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, it)| {
                let own = &it.paths;
                own.mailbox == paths.mailbox
                    && own.control == paths.control
                    && own.index == paths.index
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
        let began = Instant::now();
        let place = Place::open(self, paths, wants_keywords, until);
        let locked = began.elapsed();
        let list = place.list();
        // With the lock, and whatever it is in, open: they stay together from here on, or nothing comes of it.
        if let Err(fault) = place.check_name() {
            drop(list);
            place.take_back();
            return batch.iter().map(|_| Err(fault.clone())).collect();
        }
        let batch = batch.into_iter();
        let mut results: Vec<_> = batch
            .map(|message| self.link(message, &place.lock))
            .collect();
        // The list first: file systems with a journal write names and bytes with it. Nobody is told a UID before all are durable. A line
        // whose name a crash has lost is one of a message that is gone.
        let linked = results.iter().flatten();
        let names = linked.map(|it| it.published.file.clone());
        let given = self.give(list, &place, names.collect());
        let began = Instant::now();
        let synced = self.sync(&results, &given);
        let took = match &given {
            Ok(Some(given)) => given.synced + began.elapsed(),
            _ => began.elapsed(),
        };
        for member in results.iter_mut().flatten() {
            (member.published.locked, member.published.synced) = (locked, took);
        }
        if let Err(fault) = synced.and_then(|()| place.check_name()) {
            let take_back = |result: Result<Member, Fault>| {
                match self.mailbox.unlink(&result?.published.file) {
                    // Its bytes are there.
                    Err(_) if !fault.is_not_durable => Err(fault.clone().perhaps_stored()),
                    // A name that cannot be taken back is there twice after the retry: better than not at all.
                    _ => Err(fault.clone()),
                }
            };
            results = results.into_iter().map(take_back).collect();
        }
        let mut members: Vec<&mut Member> = results.iter_mut().flatten().collect();
        match members.is_empty() {
            true => {
                drop(given);
                place.leave();
            }
            false => {
                self.settle(given, &mut members);
                place.keep();
            }
        }
        let published = results.into_iter();
        published
            .map(|result| result.map(|member| member.published))
            .collect()
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
        // A disk may take its time.
        self.mailbox.arrive(&message.written)?;
        message.heard.check()?;
        let file = self.mailbox.link(
            self.names,
            message.name,
            &mut message.written,
            flags,
            letters,
        )?;
        Ok(Member {
            published: Published {
                file,
                uid: None,
                locked: Duration::ZERO,
                synced: Duration::ZERO,
                remarks,
            },
            written: message.written,
            flags,
            keywords,
            unlettered: lettered.without,
            is_in_index: false,
        })
    }

    fn sync(
        &self,
        results: &[Result<Member, Fault>],
        given: &Result<Option<Given<'_>>, String>,
    ) -> Result<(), Fault> {
        let linked = results.iter().flatten();
        let linked = linked.map(|it| (&*it.written, it.published.file.as_str()));
        let linked: Vec<_> = linked.collect();
        if !self.sync || linked.is_empty() {
            return Ok(());
        }
        let doing = || format!("sync {}", self.mailbox.path().display());
        let given = given.as_ref().ok().and_then(Option::as_ref);
        let is_committed = || given.is_some_and(|it| it.list.device() == self.mailbox.device());
        self.mailbox
            .sync(&linked, is_committed)
            .map_err(|error| Fault::io(doing(), &error).not_durable())
    }

    /// UIDs and index; what goes wrong becomes a remark.
    fn settle(&self, given: Result<Option<Given<'_>>, String>, members: &mut [&mut Member]) {
        match given {
            Ok(None) => {}
            Ok(Some(given)) => {
                for (member, uid) in members.iter_mut().zip(&given.uids) {
                    member.published.uid = Some(*uid);
                }
                if let Err(why) = self.tell(given, members) {
                    let why = format!("{} is left to Dovecot: {why}", Pair::MAILBOX.log());
                    remark(members, &why);
                }
            }
            Err(why) => remark(members, &format!("no UID yet: {why}")),
        }
        for member in members {
            member.remark_on_unlettered();
        }
    }

    /// Writes the lines of these files into the list, synced.
    fn give<'l>(
        &self,
        list: Result<Option<List<'l>>, String>,
        place: &Place<'_>,
        names: Vec<String>,
    ) -> Result<Option<Given<'l>>, String> {
        let Some(list) = list?.filter(|_| !names.is_empty()) else {
            return Ok(None);
        };
        let log = place.index_log(&list);
        let known = place.next_of_index(&list, &log)?;
        // A list that came from a backup is behind its index; so was a line of it that is lost.
        let lost = u32::from(list.is_mended());
        let known_next = known.map_or(1, |next| next.saturating_add(lost));
        let first = list.next()?.max(known_next);
        // What is in the list and not yet in the index has to go before ours.
        let missed = known.map_or(Some(Vec::new()), |known| list.since(known));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let uids = list.append(first, &names)?;
        let began = Instant::now();
        if self.sync {
            // Told, and not there after a crash, it would be given twice.
            list.sync()
                .map_err(|error| format!("the list is not synced: {error}"))?;
        }
        Ok(Some(Given {
            list,
            log,
            missed,
            uids,
            synced: began.elapsed(),
        }))
    }

    /// Tells Dovecot's index. Flags are in the names of those that were `missed`, in `cur/`, where the next session looks: nothing is
    /// said of that directory.
    fn tell(&self, given: Given<'_>, members: &mut [&mut Member]) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let Given {
            list, log, missed, ..
        } = given;
        let Some(mut log) = log? else {
            return Ok(());
        };
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
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::index::log::{self, log_for_tests};
    use crate::maildir::save::Demands;
    use crate::maildir::uidlist;
    use crate::message::body::{BodyWriter, Spool};
    use crate::sys::dir::Dir;
    use crate::sys::process::hostname;
    use crate::sys::{fault_point, file_lock};

    fn maildir(path: &Path) -> Maildir {
        for part in ["cur", "new", "tmp"] {
            fs::create_dir_all(path.join(part)).unwrap();
        }
        Maildir::at(Dir::open(path).unwrap(), path).unwrap()
    }

    /// Publishes messages into `mailbox`, one for each of `paths`; `meddle` comes when they are prepared.
    fn publish(
        mailbox: &Maildir,
        busy: &Busy,
        paths: Vec<Paths>,
        meddle: impl FnOnce(),
    ) -> Vec<Result<Published, Fault>> {
        let names = Names::new("mx", 1);
        let demands = Demands {
            verified: false,
            sync: true,
        };
        let body = BodyWriter::new(&Spool::default()).finish().unwrap();
        let message = |paths: Paths| Message {
            name: None,
            written: Arc::new(mailbox.write(&names, b"", &body, demands).unwrap()),
            flags: Flags::default(),
            keywords: Keywords::default(),
            paths: paths.into(),
            heard: Heard::from_now(),
        };
        let publishing = Publishing {
            mailbox,
            names: &names,
            walks: &Walks::default(),
            busy,
            sync: true,
            sync_index: false,
            index_log: Some(LockMethod::Fcntl),
        };
        let messages = paths.into_iter().map(message).collect();
        meddle();
        publishing.publish(messages)
    }

    /// Publishes a message for each of `places`, which have control files and index of the users.
    fn published(root: &Path, busy: &Busy, places: &[&str]) -> Vec<Published> {
        let mailbox = maildir(&root.join("box"));
        let paths = places.iter().map(|place| Paths {
            mailbox: mailbox.path().to_owned(),
            ..Paths::for_tests(mailbox.path(), &root.join(place))
        });
        let results = publish(&mailbox, busy, paths.collect(), || ());
        results.into_iter().map(Result::unwrap).collect()
    }

    fn list(place: &Path, next: u32) {
        fs::create_dir_all(place).unwrap();
        let guid = "86371b0c7d9a026bb73a000083ecc375";
        fs::write(place.join(uidlist::FILE), format!("3 V5 N{next} G{guid}\n")).unwrap();
    }

    /// As long as for one, and for each only once: the client waits for the answer.
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
        for allowed in [5, 5, 5, 1] {
            let began = Instant::now();
            let published = published(root.path(), &busy, &places);
            let took = began.elapsed();
            assert!(took < Duration::from_secs(allowed), "{took:?}");
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

    /// Whoever holds the log of the index holds up one message, and not the list of UIDs again and again.
    #[test]
    fn a_log_that_is_held() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("a");
        list(&place, 7);
        let log = place.join("dovecot.index.log");
        fs::write(&log, log_for_tests(2, (0, 0), 5)).unwrap();
        let file = fs::File::options().write(true).open(&log).unwrap();
        file_lock::exclusive(&file, file_lock::Method::Fcntl, Duration::ZERO).unwrap();
        let (busy, began) = (Busy::default(), Instant::now());
        for _ in 0..20 {
            let published = published(root.path(), &busy, &["a"]);
            assert!(published[0].uid.is_some());
            assert!(published[0].remarks[0].contains("left to Dovecot"));
        }
        assert!(began.elapsed() < 6 * log::TIMEOUT, "{:?}", began.elapsed());
    }

    /// What the index knows counts, whoever has its log: no UID is given twice.
    #[test]
    fn a_log_that_is_held_and_ahead_of_the_list() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("a");
        list(&place, 7);
        let mut transaction = Transaction::default();
        transaction.append(&[(20, 0)]);
        let log = [log_for_tests(2, (0, 0), 5), transaction.into_bytes()].concat();
        let path = place.join("dovecot.index.log");
        fs::write(&path, log).unwrap();
        let file = fs::File::options().write(true).open(path).unwrap();
        file_lock::exclusive(&file, file_lock::Method::Fcntl, Duration::ZERO).unwrap();
        let published = published(root.path(), &Busy::default(), &["a"]);
        assert_eq!(published[0].uid, Some(21));
        assert!(published[0].remarks[0].contains("left to Dovecot"));
    }

    /// What fails behind the sync of the mailbox costs the UID, which is told to nobody before its line is synced.
    #[test]
    fn a_uid_is_told_behind_its_synced_line() {
        let mut unsynced = 0;
        for step in 0.. {
            let root = tempfile::tempdir().unwrap();
            let place = root.path().join("a");
            list(&place, 7);
            let log = place.join("dovecot.index.log");
            let before = log_for_tests(2, (0, 0), 5);
            fs::write(&log, &before).unwrap();
            let mailbox = maildir(&root.path().join("box"));
            let paths = Paths {
                mailbox: mailbox.path().to_owned(),
                ..Paths::for_tests(mailbox.path(), &place)
            };
            let results = publish(&mailbox, &Busy::default(), vec![paths], move || {
                fault_point::arm(step, fault_point::ERRNOS[0]);
            });
            if fault_point::disarm() {
                break;
            }
            let Ok(published) = &results[0] else { continue };
            let is_unsynced = published.remarks.iter().any(|it| it.contains("not synced"));
            unsynced += usize::from(is_unsynced);
            let is_told = fs::read(&log).unwrap() != before;
            let case = format!("step {step}: {published:?}");
            assert!(!is_told || published.uid.is_some(), "{case}");
            if is_unsynced {
                let lines = fs::read_to_string(place.join(uidlist::FILE)).unwrap();
                assert!(lines.contains("\n7 :"), "{case}: {lines}");
                assert_eq!((published.uid, is_told), (None, false), "{case}");
            }
        }
        assert_eq!(unsynced, 1, "there is one sync of the list");
    }

    /// The sync fails, or the mailbox gets another name, and a reader has moved the message to `cur/` by then: it goes from there too.
    #[test]
    fn what_a_reader_has_moved_is_taken_back() {
        let mut taken_back = 0;
        for is_renamed in [false, true] {
            for step in 0.. {
                let root = tempfile::tempdir().unwrap();
                let (place, away) = (root.path().join("box"), root.path().join("away"));
                let mailbox = maildir(&place);
                list(&place, 7);
                let read = {
                    let (place, away) = (place.clone(), away.clone());
                    move || {
                        for entry in fs::read_dir(place.join("new")).unwrap() {
                            let name = entry.unwrap().file_name().into_string().unwrap();
                            let (from, to) =
                                (place.join("new").join(&name), format!("cur/{name}:2,S"));
                            fs::rename(from, place.join(to)).unwrap();
                        }
                        if is_renamed {
                            fs::rename(&place, &away).unwrap();
                        }
                    }
                };
                let paths = Paths::for_tests(root.path(), &place);
                let results =
                    publish(
                        &mailbox,
                        &Busy::default(),
                        vec![paths],
                        move || match is_renamed {
                            true => fault_point::meddle(step, read),
                            false => fault_point::fail_behind(step, fault_point::ERRNOS[0], read),
                        },
                    );
                if fault_point::disarm() {
                    break;
                }
                let place = if is_renamed { &away } else { &place };
                let count = |part: &str| fs::read_dir(place.join(part)).unwrap().count();
                let (stored, case) = (
                    count("new") + count("cur"),
                    format!("step {step}: {results:?}"),
                );
                let is_saved = results[0].is_ok();
                assert_eq!(stored, usize::from(is_saved), "{case}");
                taken_back += usize::from(!is_saved);
            }
        }
        assert!(taken_back > 4, "{taken_back}");
    }

    /// A link led to the mailbox when the message was prepared, and leads to another one when its turn comes.
    #[test]
    fn another_path_of_the_mailbox() {
        let root = tempfile::tempdir().unwrap();
        let (place, link) = (root.path().join("box"), root.path().join("link"));
        let (mailbox, other) = (maildir(&place), maildir(&root.path().join("other")));
        list(&place, 7);
        list(other.path(), 7);
        std::os::unix::fs::symlink("box", &link).unwrap();
        let paths = [&place, &link].map(|path| Paths::for_tests(root.path(), path));
        let results = publish(&mailbox, &Busy::default(), paths.into(), || {
            fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink("other", &link).unwrap();
        });
        assert!(results[0].as_ref().is_ok_and(|one| one.uid == Some(7)));
        assert!(results[1].is_err(), "{results:?}");
        let lines = |place: &Path| {
            let list = fs::read_to_string(place.join(uidlist::FILE)).unwrap();
            list.lines().count() - 1
        };
        assert_eq!((lines(&place), lines(other.path())), (1, 0));
        assert_eq!(fs::read_dir(place.join("new")).unwrap().count(), 1);
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
            let after = Log::lock(
                &dir,
                Pair::MAILBOX,
                LockMethod::Fcntl,
                &Walks::default(),
                log::TIMEOUT,
            );
            let after = after.unwrap().unwrap().state().next_uid;
            assert_eq!(after, told.unwrap_or(known + 1), "{case}");
            assert_eq!(published[0].remarks.is_empty(), told.is_some(), "{case}");
        }
    }
}
