//! How much one uid may hand over: so many messages at once, so many a minute.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::LdaServer;
use crate::fault::{Code, Fault};

const MINUTE: Duration = Duration::from_secs(60);

/// The limits of each uid, and what all of them use now.
#[derive(Debug)]
pub struct Limits {
    at_once: u32,
    a_minute: u32,
    used: Arc<Mutex<HashMap<u32, Used>>>,
}

#[derive(Debug)]
struct Used {
    now: u32,
    /// Since this minute began.
    messages: u32,
    minute: Instant,
}

/// One message that is being handed over: it counts until it is dropped.
#[derive(Debug)]
pub struct Turn {
    uid: u32,
    used: Arc<Mutex<HashMap<u32, Used>>>,
}

impl Limits {
    pub fn new(server: &LdaServer) -> Limits {
        Limits {
            at_once: server.at_once,
            a_minute: server.a_minute,
            used: Arc::default(),
        }
    }

    /// Counts one more message of this uid; over a limit it is [temporary](Code::Resources).
    pub fn enter(&self, uid: u32) -> Result<Turn, Fault> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, it| it.now > 0 || it.minute.elapsed() < MINUTE);
        let his = used.entry(uid).or_insert_with(|| Used {
            now: 0,
            messages: 0,
            minute: Instant::now(),
        });
        if his.minute.elapsed() >= MINUTE {
            (his.messages, his.minute) = (0, Instant::now());
        }
        let why = match () {
            () if his.now >= self.at_once => "it hands over too many at once",
            () if his.messages >= self.a_minute => "it hands over too many a minute",
            () => {
                his.now += 1;
                his.messages += 1;
                return Ok(Turn {
                    uid,
                    used: Arc::clone(&self.used),
                });
            }
        };
        let doing = format!("take over a message from uid {uid}");
        Err(Fault::new(Code::Resources, doing, why))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(his) = used.get_mut(&self.uid) {
            his.now -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_uid_does_not_use_up_what_others_have() {
        let limits = Limits::new(&LdaServer {
            at_once: 2,
            a_minute: 3,
            ..LdaServer::default()
        });
        let (one, _two) = (limits.enter(7).unwrap(), limits.enter(7).unwrap());
        assert!(limits.enter(7).unwrap_err().why.contains("at once"));
        limits.enter(8).unwrap();
        drop(one);
        drop(limits.enter(7).unwrap());
        let fault = limits.enter(7).unwrap_err();
        assert!(fault.why.contains("a minute") && fault.code.is_temporary());
    }
}
