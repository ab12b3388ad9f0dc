//! The ledger in memory: a restart forgets it.

use std::collections::{HashMap, VecDeque};

use super::doubt::Doubt;
use super::{Id, Key, Known, MAX_NAMES, Request, Settings};
use crate::deliver::{Alike, Earlier, Saved};

/// What is kept at once, a delivery's beginning and its end: of more the oldest are forgotten before their time.
const MOST: usize = 400_000;

/// What has been delivered within the window, and is forgotten with the process.
#[derive(Debug)]
pub struct Memory {
    settings: Settings,
    doubt: Doubt,
    deliveries: HashMap<Key, Vec<Delivery>>,
    message_ids: HashMap<Key, Vec<Place>>,
    /// By what RCPT knows: deliveries, and when they were begun.
    rcpts: HashMap<Key, Vec<(Key, u64)>>,
    /// Each time that something was written down.
    written: VecDeque<(u64, Key)>,
    ids_written: VecDeque<(u64, Key)>,
    rcpts_written: VecDeque<(u64, Key)>,
}

#[derive(Debug)]
struct Delivery {
    queue_id: String,
    earlier: Earlier,
    at: u64,
}

#[derive(Debug)]
struct Place {
    mailbox: (u64, u64),
    place: String,
    file: String,
    at: u64,
}

impl Memory {
    pub fn new(settings: Settings, doubt: Doubt) -> Memory {
        Memory {
            settings,
            doubt,
            deliveries: HashMap::new(),
            message_ids: HashMap::new(),
            rcpts: HashMap::new(),
            written: VecDeque::new(),
            ids_written: VecDeque::new(),
            rcpts_written: VecDeque::new(),
        }
    }

    /// `now`: seconds, never fewer than before.
    pub fn answer(&mut self, request: Request, now: u64) {
        self.forget_old(now);
        match request {
            Request::Begin {
                delivery,
                alike,
                rcpt,
                name,
                answer,
            } => {
                let known = self.begin(delivery.as_ref(), &alike, &rcpt, name, now);
                // Whoever asked may have given up.
                let _ = answer.send(known);
            }
            // It has begun here, and RCPT may ask.
            Request::Saved(delivery, message_id, saved, _) => {
                self.saved(delivery, message_id, *saved, now);
            }
            Request::Asked(id, answer) => {
                let mut begun = self.rcpts.get(&id.key).into_iter().flatten();
                let is_known = |key: Key| self.earlier(&Id { key, ..id.clone() }, now).is_some();
                let _ = answer.send(begun.any(|(key, _)| is_known(*key)));
            }
            Request::Forget(id) => {
                if let Some(known) = self.deliveries.get_mut(&id.key) {
                    known.retain(|it| !id.may_be(&it.queue_id));
                }
            }
        }
    }

    fn begin(
        &mut self,
        delivery: Option<&Id>,
        keys: &[Key],
        rcpt: &[Key],
        name: String,
        now: u64,
    ) -> Known {
        let mut earlier = None;
        if let Some(id) = delivery {
            earlier = self.earlier(id, now);
            if earlier.as_ref().is_none_or(|it| it.saved.is_none()) {
                let mut names = vec![name];
                names.extend(earlier.iter().flat_map(|it| it.names.iter().cloned()));
                names.truncate(MAX_NAMES);
                self.write(id, Earlier { names, saved: None }, now);
                for asked in rcpt {
                    let begun = self.rcpts.entry(*asked).or_default();
                    begun.push((id.key, now));
                    self.rcpts_written.push_back((now, *asked));
                }
            }
        }
        let places = keys.iter().filter_map(|key| self.message_ids.get(key));
        let alike = places.flatten().map(|it| Alike {
            mailbox: it.mailbox,
            place: it.place.clone(),
            file: it.file.clone(),
            age: now.saturating_sub(it.at),
        });
        Ok((earlier, alike.collect()))
    }

    /// Of those with this queue id, or without one.
    fn earlier(&self, id: &Id, now: u64) -> Option<Earlier> {
        let window = self.settings.window.as_secs();
        let is_it = |it: &&Delivery| id.may_be(&it.queue_id) && now.saturating_sub(it.at) < window;
        let known = self.deliveries.get(&id.key)?.iter().filter(is_it);
        known.fold(None, |earlier, it| {
            Some(Earlier::of_both(earlier, it.earlier.clone()))
        })
    }

    fn write(&mut self, id: &Id, earlier: Earlier, now: u64) {
        let known = self.deliveries.entry(id.key).or_default();
        known.retain(|it| it.queue_id != id.queue_id);
        known.push(Delivery {
            queue_id: id.queue_id.clone(),
            earlier,
            at: now,
        });
        self.written.push_back((now, id.key));
    }

    fn saved(&mut self, delivery: Option<Id>, message_id: Option<Key>, saved: Saved, now: u64) {
        if let Some(key) = message_id {
            let places = self.message_ids.entry(key).or_default();
            places.retain(|it| (it.mailbox, &it.place) != (saved.mailbox_id, &saved.place));
            places.push(Place {
                mailbox: saved.mailbox_id,
                place: saved.place.clone(),
                file: saved.file.clone(),
                at: now,
            });
            self.ids_written.push_back((now, key));
        }
        if let Some(id) = delivery {
            let names = vec![saved.file.clone()];
            let saved = Some(saved);
            self.write(&id, Earlier { names, saved }, now);
        }
    }

    fn forget_old(&mut self, now: u64) {
        let (window, alike) = (&self.settings.window, &self.settings.alike);
        for (at, key) in due(&mut self.written, now, window.as_secs()) {
            if now.saturating_sub(at) < window.as_secs() {
                self.doubt.raise();
            }
            forget(&mut self.deliveries, key, |it| it.at > at);
        }
        for (at, key) in due(&mut self.ids_written, now, alike.as_secs()) {
            forget(&mut self.message_ids, key, |it| it.at > at);
        }
        for (at, key) in due(&mut self.rcpts_written, now, window.as_secs()) {
            if now.saturating_sub(at) < window.as_secs() {
                self.doubt.raise();
            }
            forget(&mut self.rcpts, key, |it| it.1 > at);
        }
    }
}

/// What was written down too long ago: more at once than one request writes down, and never so much that others wait.
fn due(written: &mut VecDeque<(u64, Key)>, now: u64, window: u64) -> Vec<(u64, Key)> {
    let mut due = Vec::new();
    while due.len() < 8
        && let Some(&(at, key)) = written.front()
        && (now.saturating_sub(at) >= window || written.len() > MOST)
    {
        due.push((at, key));
        written.pop_front();
    }
    due
}

fn forget<T>(rows: &mut HashMap<Key, Vec<T>>, key: Key, stays: impl Fn(&T) -> bool) {
    if let Some(known) = rows.get_mut(&key) {
        known.retain(stays);
        if known.is_empty() {
            rows.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn memory() -> Memory {
        let settings = Settings {
            window: MINUTE,
            alike: MINUTE,
            is_asked_at_rcpt: true,
            is_durable: true,
            path: None,
        };
        Memory::new(settings, Doubt::new(MINUTE))
    }

    fn id(key: u8, queue_id: &str) -> Id {
        Id {
            key: [key; 32],
            queue_id: queue_id.into(),
        }
    }

    fn begin(memory: &mut Memory, id: Id, name: &str, now: u64) -> Option<Earlier> {
        let (answer, mut answered) = oneshot::channel();
        let begin = Request::Begin {
            alike: vec![id.key],
            rcpt: vec![id.key],
            delivery: Some(id),
            name: name.into(),
            answer,
        };
        memory.answer(begin, now);
        answered.try_recv().unwrap().unwrap().0
    }

    /// As the database answers it.
    #[test]
    fn what_is_known_of_a_retry() {
        let saved = || Saved {
            file: "stored".into(),
            ..Saved::empty("INBOX".into(), "alice".into())
        };
        // queue ids of the first and the second one; whether the first was stored; seconds between; the second one's names
        for (first, second, is_stored, later, want) in [
            ("Q", "Q", true, 59, Some("stored")),
            ("Q", "Q", false, 59, Some("one")),
            ("Q", "Q", true, 60, None),
            ("Q", "R", true, 1, None),
            ("", "R", true, 1, Some("stored")),
            ("Q", "", false, 1, Some("one")),
        ] {
            let mut memory = memory();
            assert_eq!(begin(&mut memory, id(1, first), "one", 100), None);
            if is_stored {
                let key = Some([1; 32]);
                let saved = Request::Saved(Some(id(1, first)), key, Box::new(saved()), vec![]);
                memory.answer(saved, 100);
            }
            let known = begin(&mut memory, id(1, second), "two", 100 + later);
            let case = format!("{first:?} {second:?} {is_stored} {later}: {known:?}");
            let names = known.as_ref().map(|it| it.names.join(" "));
            assert_eq!(names.as_deref(), want, "{case}");
            assert_eq!(
                known.is_some_and(|it| it.saved.is_some()),
                is_stored && want.is_some()
            );
        }
    }

    #[test]
    fn it_does_not_grow_for_ever() {
        let mut memory = memory();
        for second in 0..1000 {
            let key = (second % 250) as u8;
            begin(&mut memory, id(key, ""), "name", second);
            memory.answer(
                Request::Saved(
                    None,
                    Some([key; 32]),
                    Box::new(Saved::empty("INBOX".into(), "a".into())),
                    Vec::new(),
                ),
                second,
            );
        }
        let sizes = [memory.deliveries.len(), memory.written.len()];
        let of_ids = [memory.message_ids.len(), memory.ids_written.len()];
        let of_rcpts = [memory.rcpts.len(), memory.rcpts_written.len()];
        assert!(
            [sizes, of_ids, of_rcpts]
                .as_flattened()
                .iter()
                .all(|it| *it <= 61),
            "{sizes:?} {of_ids:?} {of_rcpts:?}"
        );
        memory.answer(Request::Forget(id(249, "")), 1000);
        assert_eq!(begin(&mut memory, id(249, ""), "again", 1000), None);
    }

    /// More than is kept: nobody knows any more what is not there.
    #[test]
    fn what_is_forgotten_before_its_time() {
        let mut memory = memory();
        memory.written = VecDeque::from(vec![(100, [9; 32]); MOST]);
        begin(&mut memory, id(1, ""), "name", 100);
        assert!(!memory.doubt.holds());
        begin(&mut memory, id(2, ""), "name", 100);
        assert!(memory.doubt.holds());
    }
}
