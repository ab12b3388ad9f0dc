//! What has been found and opened a moment ago: RCPT's for the DATA that comes right behind it, a mailbox for the next message.
//!
//! Who looks again a moment later finds the same; who comes later looks anew. Whether an open mailbox still has its name is looked at
//! each time, by RCPT, and by the delivery under its lock.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::directory::Answers;
use super::inspect::Plan;
use super::settings::Settings;
use crate::mailbox::location::Driver;
use crate::maildir::Maildir;
use crate::message::Recipient;

/// How long a look holds, and how long a mailbox stays open: then symlinks are judged anew.
const FRESH: Duration = Duration::from_secs(1);
/// Looks that are kept, the newest.
const MOST: usize = 256;
/// Mailboxes that stay open, the newest.
const MOST_OPEN: usize = 128;

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
            make_room(&mut kept.plans, MOST);
            kept.plans.push_back(found);
        });
    }

    /// What was found for this recipient a moment ago, once. `answers`: of the userdbs, where another process has asked them.
    pub fn take(&self, recipient: &Recipient, answers: Option<&Answers>) -> Option<Plan> {
        let mut kept = lock(&self.0);
        let at = kept
            .plans
            .iter()
            .rposition(|it| it.recipient == *recipient && it.answers.as_ref() == answers)?;
        let found = kept.plans.remove(at)?;
        (found.at.elapsed() <= FRESH).then_some(found.plan)
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
            make_room(&mut kept.mailboxes, MOST_OPEN);
            let opened = (Instant::now(), Arc::clone(mailbox));
            kept.mailboxes.push_back(opened);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Kept)) {
        let mut kept = lock(&self.0);
        change(&mut kept);
        if !kept.is_watched {
            let own = Arc::clone(&self.0);
            let watch = thread::Builder::new().name("let go".into());
            match watch.spawn(move || let_go(&own)) {
                Ok(_) => kept.is_watched = true,
                Err(_) => *kept = Kept::default(),
            }
        }
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        let kept = &mut *lock(&self.0);
        kept.plans.clear();
        kept.mailboxes.clear();
    }
}

/// Until nothing is kept.
fn let_go(kept: &Mutex<Kept>) {
    loop {
        thread::sleep(FRESH);
        let mut kept = lock(kept);
        kept.plans.retain(|it| it.at.elapsed() <= FRESH);
        kept.mailboxes.retain(|(at, _)| at.elapsed() <= FRESH);
        if kept.plans.is_empty() && kept.mailboxes.is_empty() {
            kept.is_watched = false;
            return;
        }
    }
}

/// For one more.
fn make_room<T>(kept: &mut VecDeque<T>, most: usize) {
    kept.drain(..(kept.len() + 1).saturating_sub(most));
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
        assert_eq!(Arc::strong_count(&mailbox), MOST_OPEN + 1);
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
