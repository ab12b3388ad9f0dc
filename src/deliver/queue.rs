//! One queue per mailbox: whoever waits for it joins the next batch.
//!
//! The first to come publishes what is there (each message gets its name, then one directory sync for all); those that
//! come while it does so wait, and one of them publishes the next batch. A message is answered after the sync that covers
//! it, never before.

use std::collections::HashMap;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::carry_out::Heard;
use crate::fault::{Code, Fault};
use crate::maildir::Maildir;
use crate::maildir::filename::Names;
use crate::maildir::save::Written;
use crate::maildir::uidlist;
use crate::message::Flags;

/// The queues of one process, by device and inode of `new/`.
#[derive(Debug, Default)]
pub struct Queues(Mutex<HashMap<(u64, u64), Arc<Queue>>>);

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

/// A message that readers see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its name in `new/` or `cur/`.
    pub file: String,
    /// None where Dovecot is to give it.
    pub uid: Option<u32>,
    pub remark: Option<String>,
}

impl Published {
    fn of(file: String) -> Published {
        Published {
            file,
            uid: None,
            remark: None,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    waiting: Vec<(u64, Message)>,
    leading: bool,
    done: HashMap<u64, Result<Published, Fault>>,
}

/// A message that is to be seen.
#[derive(Debug)]
pub struct Message {
    pub written: Arc<Written>,
    pub flags: Flags,
    /// The directory of `dovecot-uidlist`.
    pub control: PathBuf,
    pub heard: Heard,
}

impl Queues {
    /// Makes `written` visible in `mailbox` and durable, unless nobody hears of it any more by then: behind a store that
    /// hangs it may wait longer than its client. Answers its name.
    pub fn publish(
        &self,
        mailbox: &Maildir,
        names: &Names,
        message: Message,
        sync: bool,
    ) -> Result<Published, Fault> {
        let key = mailbox.identity();
        let queue = Arc::clone(lock(&self.0).entry(key).or_default());
        let result = queue.publish(mailbox, names, message, sync);
        let mut queues = lock(&self.0);
        // The map and this call hold it: nobody waits, and an idle mailbox costs nothing.
        if Arc::strong_count(&queue) == 2 {
            queues.remove(&key);
        }
        result
    }
}

impl Queue {
    fn publish(
        &self,
        mailbox: &Maildir,
        names: &Names,
        message: Message,
        sync: bool,
    ) -> Result<Published, Fault> {
        let mut state = lock(&self.state);
        let own = state.next;
        state.next += 1;
        state.waiting.push((own, message));
        loop {
            if let Some(result) = state.done.remove(&own) {
                return result;
            }
            if state.leading {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.leading = true;
            let batch = mem::take(&mut state.waiting);
            drop(state);
            let lead = Lead {
                queue: self,
                members: batch.iter().map(|(member, _)| *member).collect(),
            };
            let batch = batch.into_iter().map(|(_, message)| message).collect();
            lead.settle(publish(mailbox, names, batch, sync));
            state = lock(&self.state);
        }
    }
}

/// The duty to answer every member of a batch, whatever happens to its leader.
struct Lead<'a> {
    queue: &'a Queue,
    members: Vec<u64>,
}

impl Lead<'_> {
    fn settle(mut self, results: Vec<Result<Published, Fault>>) {
        let members = mem::take(&mut self.members);
        lock(&self.queue.state)
            .done
            .extend(members.into_iter().zip(results));
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let lost = || {
            Err(Fault::new(
                Code::Internal,
                "make a message visible",
                "the batch ended without an answer",
            ))
        };
        let mut state = lock(&self.queue.state);
        state
            .done
            .extend(self.members.drain(..).map(|member| (member, lost())));
        state.leading = false;
        self.queue.changed.notify_all();
    }
}

/// A name for each, one sync for all, then their UIDs. When the sync fails none of them is durable: all names are taken back.
fn publish(
    mailbox: &Maildir,
    names: &Names,
    batch: Vec<Message>,
    sync: bool,
) -> Vec<Result<Published, Fault>> {
    let mut lists: HashMap<PathBuf, List> = HashMap::new();
    for control in batch.iter().map(|message| &message.control) {
        lists.entry(control.clone()).or_insert_with(|| List {
            mark: uidlist::mark(control),
            members: Vec::new(),
        });
    }
    let mut results = Vec::new();
    for (at, mut message) in batch.into_iter().enumerate() {
        let heard = message.heard.check();
        let linked = heard.and_then(|()| mailbox.link(names, &mut message.written, message.flags));
        if linked.is_ok()
            && let Some(list) = lists.get_mut(&message.control)
        {
            list.members.push(at);
        }
        results.push(linked.map(Published::of));
    }
    let linked = || results.iter().flatten().map(|published| &published.file);
    if sync
        && linked().next().is_some()
        && let Err(error) = mailbox.sync(linked())
    {
        let fault = Fault::io(format!("sync {}", mailbox.path().display()), &error);
        let take_back = |result: Result<Published, Fault>| {
            // A name that cannot be taken back is there twice after the retry: better than not at all.
            let _ = mailbox.unlink(&result?.file);
            Err(fault.clone())
        };
        return results.into_iter().map(take_back).collect();
    }
    // From here on the messages are safe; what goes wrong is for the log.
    for (control, list) in lists {
        list.give(&control, mailbox, &mut results);
    }
    results
}

/// The UIDs of one control directory: users may have their own.
struct List {
    mark: Option<uidlist::Mark>,
    /// Places in the batch.
    members: Vec<usize>,
}

impl List {
    fn give(self, control: &Path, mailbox: &Maildir, results: &mut [Result<Published, Fault>]) {
        let Some(mark) = self.mark.filter(|_| !self.members.is_empty()) else {
            return;
        };
        let name = |at: &usize| results[*at].as_ref().map_or("", |it| it.file.as_str());
        let names: Vec<&str> = self.members.iter().map(name).collect();
        let mode = mailbox.permission().file_mode;
        let given = uidlist::give(control, mark, mode, &names);
        for (nth, at) in self.members.iter().enumerate() {
            if let Ok(published) = &mut results[*at] {
                match &given {
                    Ok(uids) => published.uid = uids.get(nth).copied(),
                    Err(why) => published.remark = Some(format!("no UID yet: {why}")),
                }
            }
        }
    }
}

/// A panic elsewhere leaves the state as it was between two steps, which is a good state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;
    use crate::maildir::save::Demands;
    use crate::message::body::{BodyWriter, Spool};

    /// Its client was answered 451 meanwhile and sends it again: stored now, it would be there twice.
    #[test]
    fn whoever_gives_up_while_he_waits_is_not_published() {
        let root = tempfile::tempdir().unwrap();
        for part in ["cur", "new", "tmp"] {
            fs::create_dir(root.path().join(part)).unwrap();
        }
        let mailbox = Maildir::open(root.path()).unwrap();
        let names = Names::new("mx", 1);
        let demands = Demands {
            verified: false,
            sync: true,
        };
        for gives_up in [false, true] {
            let body = BodyWriter::new(&Spool::default()).finish().unwrap();
            let written = mailbox.write(&names, b"", &body, demands).unwrap();
            let (queue, heard) = (Queue::default(), Heard::from_now());
            // Another one is at work, and its sync hangs.
            lock(&queue.state).leading = true;
            let result = thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    let message = Message {
                        written: Arc::new(written),
                        flags: Flags::default(),
                        control: root.path().to_owned(),
                        heard: heard.clone(),
                    };
                    queue.publish(&mailbox, &names, message, true)
                });
                while lock(&queue.state).waiting.is_empty() {
                    thread::yield_now();
                }
                if gives_up {
                    heard.abandon();
                }
                drop(Lead {
                    queue: &queue,
                    members: Vec::new(),
                });
                waiting.join().unwrap()
            });
            assert_eq!(
                result.err().map(|it| it.code),
                gives_up.then_some(Code::NotNow)
            );
        }
        assert_eq!(fs::read_dir(root.path().join("new")).unwrap().count(), 1);
    }
}
