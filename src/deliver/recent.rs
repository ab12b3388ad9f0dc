//! What RCPT has found, for the DATA that comes right behind it.
//!
//! Who looks again a moment later finds the same; who comes later looks anew. What a delivery opens is checked when it is opened,
//! either way.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::directory::Answers;
use super::inspect::Plan;
use super::settings::Settings;
use crate::mailbox::location::Driver;
use crate::message::Recipient;

/// How long a look holds.
const FRESH: Duration = Duration::from_secs(1);
/// Looks that are kept, the newest.
const MOST: usize = 256;

#[derive(Debug, Default)]
pub struct Recent(Mutex<VecDeque<Found>>);

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
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while found.len() >= MOST || found.front().is_some_and(|it| it.at.elapsed() > FRESH) {
            found.pop_front();
        }
        found.push_back(Found {
            at: Instant::now(),
            recipient: recipient.clone(),
            answers: answers.cloned(),
            plan,
        });
    }

    /// What was found for this recipient a moment ago, once. `answers`: of the userdbs, where another process has asked them.
    pub fn take(&self, recipient: &Recipient, answers: Option<&Answers>) -> Option<Plan> {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = found
            .iter()
            .rposition(|it| it.recipient == *recipient && it.answers.as_ref() == answers)?;
        let found = found.remove(at)?;
        (found.at.elapsed() <= FRESH).then_some(found.plan)
    }
}
