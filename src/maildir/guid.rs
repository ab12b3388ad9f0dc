//! The GUID of a mailbox: it stays when the mailbox is renamed, and a new mailbox has a new one (`lib/guid.c`).

use std::hash::{BuildHasher, RandomState};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

/// A GUID for a new mailbox, 32 hex digits.
pub fn new_guid() -> String {
    mailbox_guid(UNIX_EPOCH.elapsed().unwrap_or_default(), process::id())
}

/// No two of one process are alike; `now` is the time since 1970.
fn mailbox_guid(now: Duration, pid: u32) -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = now.as_nanos() as u64;
    // The clock may stand still, or go back.
    let next = |last: u64| last.wrapping_add(1).max(now);
    let time = next(LAST.update(Ordering::Relaxed, Ordering::Relaxed, next));
    // Each has keys of its own.
    let random = RandomState::new().hash_one(pid) as u32;
    text(Duration::from_nanos(time), pid, random)
}

/// In the shape of Dovecot's: nanoseconds, seconds and pid, each with its low byte first, and four bytes that are its host's.
fn text(time: Duration, pid: u32, random: u32) -> String {
    [time.subsec_nanos(), time.as_secs() as u32, pid, random]
        .map(|word| format!("{:08x}", word.swap_bytes()))
        .concat()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_shape_is_dovecots() {
        let time = Duration::new(0x6b02_9a7d, 0x0c1b_3786);
        let guid = text(time, 15031, 0x75c3_ec83);
        assert_eq!(guid, "86371b0c7d9a026bb73a000083ecc375");
        let guid = mailbox_guid(Duration::ZERO, u32::MAX);
        assert!(guid.len() == 32 && guid.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }

    #[test]
    fn no_two_are_alike() {
        let many = |now| move || (0..1000).map(|_| mailbox_guid(now, 1)).collect();
        let all: Vec<Vec<String>> = std::thread::scope(|scope| {
            let threads = [0, 0, 1, 2].map(|now| scope.spawn(many(Duration::from_secs(now))));
            threads.map(|thread| thread.join().unwrap()).into()
        });
        let times: HashSet<&str> = all.iter().flatten().map(|guid| &guid[..16]).collect();
        assert_eq!(times.len(), 4000);
    }
}
