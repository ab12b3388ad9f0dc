//! What userdbs have answered a moment ago: a message asks for the same user at RCPT, at DATA, and as an owner.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Answer;

/// How long a user is who he was.
const FOUND: Duration = Duration::from_secs(30);
/// Short: mail for a new account must not bounce.
const MISSING: Duration = Duration::from_secs(2);
/// Answers that are kept.
const MOST: usize = 10_000;

/// By the place of the userdb in the list, and the name. "Cannot tell" is never kept.
#[derive(Debug, Default)]
pub struct Cache(Mutex<HashMap<(usize, String), Known>>);

#[derive(Debug)]
struct Known {
    answer: Option<Answer>,
    until: Instant,
}

impl Cache {
    /// None: not known, or too long ago. Some(None): no such user. `userdb`: its place in the list.
    pub fn get(&self, userdb: usize, name: &str, now: Instant) -> Option<Option<Answer>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(&(userdb, name.to_owned()))?;
        (now < known.until).then(|| known.answer.clone())
    }

    /// From `now` on a user is kept for 30 s, "no such user" for 2 s. Where 10000 are kept those go whose time is over, or else all.
    pub fn put(&self, userdb: usize, name: &str, answer: &Option<Answer>, now: Instant) {
        let life = if answer.is_some() { FOUND } else { MISSING };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, it| now < it.until);
        }
        if known.len() >= MOST {
            known.clear();
        }
        let it = Known {
            answer: answer.clone(),
            until: now + life,
        };
        known.insert((userdb, name.to_owned()), it);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_account_is_soon_there() {
        let (cache, now) = (Cache::default(), Instant::now());
        let bob = Some(Answer::new("bob", "test".into()));
        cache.put(0, "bob", &bob, now);
        cache.put(1, "bob", &None, now);
        for (userdb, name, after, want) in [
            (0, "bob", 29, Some(bob.clone())),
            (0, "bob", 31, None),
            (1, "bob", 1, Some(None)),
            (1, "bob", 3, None),
            (2, "bob", 0, None),
            (0, "Bob", 0, None),
        ] {
            let got = cache.get(userdb, name, now + Duration::from_secs(after));
            assert_eq!(got, want, "{userdb} {name} {after}");
        }
    }

    #[test]
    fn it_does_not_grow_for_ever() {
        let (cache, now) = (Cache::default(), Instant::now());
        for number in 0..MOST * 2 {
            cache.put(0, &number.to_string(), &None, now);
        }
        assert!(cache.0.lock().unwrap().len() <= MOST);
    }
}
