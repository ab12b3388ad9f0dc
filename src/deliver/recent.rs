//! What has been found and opened a moment ago: RCPT's for the DATA that comes right behind it, a mailbox for the next message.
//!
//! Who looks again a moment later finds the same; who comes later looks anew. Whether an open mailbox still has its name is looked at
//! each time, by RCPT, and by the delivery under its lock.

use std::collections::VecDeque;
use std::mem;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::directory::Answers;
use super::inspect::Plan;
use super::settings::Settings;
use crate::mailbox::location::Driver;
use crate::maildir::Maildir;
use crate::message::Recipient;
use crate::sys::process;

/// How long a look holds, and how long a mailbox stays open: then symlinks are judged anew.
const FRESH: Duration = Duration::from_secs(1);
/// Looks that are kept, the newest.
const MOST: usize = 256;
/// Mailboxes that stay open, the newest.
const MOST_OPEN: usize = 128;
/// One look and one mailbox for so many files that the process may have: each has four at most, and deliveries need some too.
const FILES: u64 = 64;

/// What RCPT has found, and mailboxes that are open.
#[derive(Debug, Default)]
pub struct Recent(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    plans: VecDeque<Found>,
    mailboxes: VecDeque<(Instant, Arc<Maildir>)>,
    /// A thread lets go of what is old: a server that nobody writes to holds no mailbox open.
    is_watched: bool,
}

#[derive(Debug)]
struct Found {
    at: Instant,
    recipient: Recipient,
    answers: Option<Answers>,
    plan: Plan,
}

impl Recent {
    /// Keeps what holds for every message: no header decides, nothing has to be made or counted.
    pub fn put(
        &self,
        settings: &Settings,
        recipient: &Recipient,
        answers: Option<&Answers>,
        plan: Plan,
    ) {
        let is_maildir = plan.target.driver == Driver::Maildir && plan.target.hand_over.is_none();
        let is_plain = plan.create.is_none() && plan.room.is_none() && settings.routes.is_empty();
        if !is_maildir || !is_plain {
            return;
        }
        let found = Found {
            at: Instant::now(),
            recipient: recipient.clone(),
            answers: answers.cloned(),
            plan,
        };
        self.change(|kept| {
            let old = make_room(&mut kept.plans, fitting(MOST));
            kept.plans.push_back(found);
            old
        });
    }

    /// What was found for this recipient a moment ago, once, unless new files are to look otherwise by now. `answers`: of the userdbs, where
    /// another process has asked them.
    pub fn take(&self, recipient: &Recipient, answers: Option<&Answers>) -> Option<Plan> {
        let found = {
            let mut kept = lock(&self.0);
            let is_it = |it: &Found| it.recipient == *recipient && it.answers.as_ref() == answers;
            let at = kept.plans.iter().rposition(is_it)?;
            kept.plans.remove(at)?
        };
        let mailbox = found.plan.mailbox.as_ref();
        let is_still = mailbox.is_none_or(|it| it.has_its_permission());
        (found.at.elapsed() <= FRESH && is_still).then_some(found.plan)
    }

    /// The mailbox with this path, where it was opened a moment ago and is what it was.
    pub fn mailbox(&self, path: &Path) -> Option<Arc<Maildir>> {
        let found = {
            let kept = lock(&self.0);
            let path = path.as_os_str();
            let mut newest = kept.mailboxes.iter().rev();
            newest
                .find(|(at, it)| it.path().as_os_str() == path && at.elapsed() <= FRESH)
                .map(|(_, mailbox)| Arc::clone(mailbox))
        };
        found.filter(|mailbox| mailbox.is_unchanged())
    }

    /// Keeps a mailbox open that has just been opened.
    pub fn keep(&self, mailbox: &Arc<Maildir>) {
        self.change(|kept| {
            let old = make_room(&mut kept.mailboxes, fitting(MOST_OPEN));
            let opened = (Instant::now(), Arc::clone(mailbox));
            kept.mailboxes.push_back(opened);
            old
        });
    }

    /// Keeps nothing any more.
    pub fn let_go(&self) {
        let all = lock(&self.0).take_all();
        drop(all);
    }

    /// `change` answers what is not kept any more.
    fn change<T>(&self, change: impl FnOnce(&mut Kept) -> T) {
        let mut kept = lock(&self.0);
        let mut gone = (change(&mut kept), None);
        if !kept.is_watched {
            let own = Arc::clone(&self.0);
            let watch = thread::Builder::new().name("let go".into());
            match watch.spawn(move || let_go(&own)) {
                Ok(_) => kept.is_watched = true,
                Err(_) => gone.1 = Some(kept.take_all()),
            }
        }
        // To close a mailbox may wait for a disk that hangs: that is not for others to wait for.
        drop(kept);
        drop(gone);
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Kept {
    fn take_all(&mut self) -> (VecDeque<Found>, VecDeque<(Instant, Arc<Maildir>)>) {
        (mem::take(&mut self.plans), mem::take(&mut self.mailboxes))
    }

    /// The oldest are the first.
    fn take_old(&mut self) -> (Vec<Found>, Vec<(Instant, Arc<Maildir>)>) {
        let is_old = |at: &Instant| at.elapsed() > FRESH;
        let plans = self.plans.partition_point(|it| is_old(&it.at));
        let mailboxes = self.mailboxes.partition_point(|(at, _)| is_old(at));
        (
            self.plans.drain(..plans).collect(),
            self.mailboxes.drain(..mailboxes).collect(),
        )
    }
}

/// Until nothing is kept, or another thread sees to it.
fn let_go(kept: &Mutex<Kept>) {
    loop {
        thread::sleep(FRESH);
        let old = {
            let mut kept = lock(kept);
            // A disk that hangs may keep this thread.
            kept.is_watched = false;
            kept.take_old()
        };
        drop(old);
        let mut kept = lock(kept);
        let is_empty = kept.plans.is_empty() && kept.mailboxes.is_empty();
        if kept.is_watched || is_empty {
            return;
        }
        kept.is_watched = true;
    }
}

/// For one more; answers what makes room.
fn make_room<T>(kept: &mut VecDeque<T>, most: usize) -> Vec<T> {
    let old = (kept.len() + 1).saturating_sub(most);
    kept.drain(..old).collect()
}

/// As many of so many as there are files for.
fn fitting(most: usize) -> usize {
    static FITTING: LazyLock<usize> = LazyLock::new(|| {
        let fitting = process::open_files().unwrap_or_default() / FILES;
        usize::try_from(fitting).unwrap_or(usize::MAX).max(1)
    });
    most.min(*FITTING)
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sys::dir::Dir;

    fn maildir(path: &Path) {
        for part in ["cur", "new", "tmp"] {
            fs::create_dir_all(path.join(part)).unwrap();
        }
    }

    #[test]
    fn an_open_mailbox_is_used_while_it_is_what_it_was() {
        for (change, is_used) in [
            ("nothing", true),
            ("it is gone", false),
            ("another has its name", false),
            ("new files are to look otherwise", false),
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("box");
            maildir(&path);
            let recent = Recent::default();
            let mailbox = Maildir::at(Dir::open(&path).unwrap(), &path).unwrap();
            recent.keep(&Arc::new(mailbox));
            match change {
                "nothing" => {}
                "it is gone" => fs::remove_dir_all(&path).unwrap(),
                "another has its name" => {
                    fs::rename(&path, root.path().join("other")).unwrap();
                    maildir(&path);
                }
                _ => fs::set_permissions(&path, Permissions::from_mode(0o2770)).unwrap(),
            }
            assert_eq!(recent.mailbox(&path).is_some(), is_used, "{change}");
            assert!(recent.mailbox(root.path()).is_none());
        }
    }

    /// A file system can be unmounted, and no file of ours stays in `tmp/`.
    #[test]
    fn what_nobody_asks_for_is_let_go() {
        let root = tempfile::tempdir().unwrap();
        maildir(root.path());
        let recent = Recent::default();
        let opened = || Maildir::at(Dir::open(root.path()).unwrap(), root.path()).unwrap();
        let mailbox = Arc::new(opened());
        let watched = Arc::downgrade(&mailbox);
        for _ in 0..2 * MOST_OPEN {
            recent.keep(&mailbox);
        }
        assert_eq!(Arc::strong_count(&mailbox), fitting(MOST_OPEN) + 1);
        drop(mailbox);
        while watched.upgrade().is_some() {
            thread::sleep(Duration::from_millis(50));
        }
        // And once more: somebody watches again.
        let mailbox = Arc::new(opened());
        recent.keep(&mailbox);
        let watched = Arc::downgrade(&mailbox);
        drop(mailbox);
        while watched.upgrade().is_some() {
            thread::sleep(Duration::from_millis(50));
        }
        let mailbox = Arc::new(opened());
        recent.keep(&mailbox);
        drop(recent);
        assert_eq!(Arc::strong_count(&mailbox), 1);
    }
}
