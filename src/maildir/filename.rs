//! Names of messages: `<seconds>.M<microseconds>P<pid>Q<count>.<host>,S=<bytes>,W=<bytes with CRLF>`.
//!
//! Unique in time, process and host, and in the order of their time: the microseconds have six digits. They come from the clock and
//! not from a counter: names whose numbers rise together collide in Dovecot's hash and cost it seconds in a large mailbox.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::message::Flags;

/// What makes names unique in one process.
#[derive(Debug)]
pub struct Names {
    host: String,
    pid: u32,
    count: AtomicU64,
}

impl Names {
    /// `host` as the system calls itself; `/` and `:` are written as `\057` and `\072`.
    pub fn new(host: &str, pid: u32) -> Names {
        Names {
            host: host.replace('/', "\\057").replace(':', "\\072"),
            pid,
            count: AtomicU64::new(1),
        }
    }

    /// A name that no other delivery has, without the sizes.
    pub fn unique(&self) -> String {
        // A clock before 1970 gives names that are odd but still unique.
        self.at(SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default())
    }

    fn at(&self, time: Duration) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        format!(
            "{}.M{:06}P{}Q{count}.{}",
            time.as_secs(),
            time.subsec_micros(),
            self.pid,
            self.host
        )
    }
}

/// The final name: `base` with its sizes.
pub fn with_sizes(base: &str, size: u64, virtual_size: u64) -> String {
    format!("{base},S={size},W={virtual_size}")
}

/// Behind this, flags: a name in `cur/`.
const INFO: &str = ":2,";

/// The name in `cur/` of a message with flags, or with the letters of keywords; without any it stays as it is.
pub fn with_flags(name: String, flags: Flags, keywords: &str) -> String {
    match flags.is_empty() && keywords.is_empty() {
        true => name,
        false => format!("{name}{INFO}{}{keywords}", flags.letters()),
    }
}

/// What a name says of its message: `S=177` is its size in bytes, `W=187` that with every line end as CRLF.
pub fn field(name: &[u8], key: &[u8]) -> Option<u64> {
    let mut fields = base(name).split(|&byte| byte == b',').skip(1);
    let value = fields.find_map(|field| field.strip_prefix(key))?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// A name of whoever's without its flags: what Dovecot compares, up to the first colon.
pub fn base(name: &[u8]) -> &[u8] {
    &name[..memchr::memchr(b':', name).unwrap_or(name.len())]
}

/// Whether a name that we made is one in `cur/`.
pub fn has_flags(name: &str) -> bool {
    name.contains(INFO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_when_who_and_where() {
        let names = Names::new("mx/1:a", 42);
        let time = Duration::new(1_795_331_000, 42_000);
        assert_eq!(names.at(time), "1795331000.M000042P42Q1.mx\\0571\\072a");
        assert_eq!(names.at(time), "1795331000.M000042P42Q2.mx\\0571\\072a");
        assert_eq!(with_sizes("a", 177, 187), "a,S=177,W=187");
        for (flags, keywords, name) in [
            (Flags::default(), "", "a"),
            (Flags::SEEN, "", "a:2,S"),
            (Flags::default(), "bd", "a:2,bd"),
            (Flags::SEEN, "bd", "a:2,Sbd"),
        ] {
            let made = with_flags("a".into(), flags, keywords);
            assert_eq!(made, name);
            assert_eq!(has_flags(&made), name != "a");
            assert_eq!(base(made.as_bytes()), b"a");
        }
    }

    #[test]
    fn sizes_of_names() {
        for (name, size, virtual_size) in [
            ("1.M2P3.x,S=177,W=187:2,S", Some(177), Some(187)),
            ("1.M2P3.x,W=187", None, Some(187)),
            ("1.M2P3.x", None, None),
            ("S=5", None, None),
            ("x:2,S=5", None, None),
            ("x,S=,W=-1", None, None),
            ("x,S=99999999999999999999", None, None),
        ] {
            assert_eq!(field(name.as_bytes(), b"S="), size, "{name}");
            assert_eq!(field(name.as_bytes(), b"W="), virtual_size, "{name}");
        }
    }

    /// `maildir_filename_base_hash` of Dovecot's maildir-filename.c.
    fn hash_of_dovecot(name: &str) -> u32 {
        base(name.as_bytes()).iter().fold(0_u32, |hash, byte| {
            let hash = (hash << 4).wrapping_add(u32::from(*byte));
            let high = hash & 0xf000_0000;
            hash ^ (high >> 24) ^ high
        })
    }

    /// How many names Dovecot compares until it has found one, on the average: 1.6 where chance rules.
    fn compared(names: &[String]) -> f64 {
        // What its table has for 10,000: a prime.
        let mut chains = vec![0_u64; 16_411];
        for name in names {
            chains[hash_of_dovecot(name) as usize % 16_411] += 1;
        }
        let all: u64 = chains.iter().map(|length| length * length).sum();
        all as f64 / names.len() as f64
    }

    #[test]
    fn names_are_unique_and_in_order_and_spread_in_dovecots_hash() {
        const COUNT: u64 = 10_000;
        // Microseconds between two messages, at most: as fast as they can be stored, and all day long.
        for most in [5_000, 2_000_000] {
            let names = Names::new("mx.example.org", 4242);
            let (mut time, mut random) = (Duration::from_secs(1_795_331_000), 1_u64);
            let made = (0..COUNT).map(|_| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                time += Duration::from_micros(1 + (random >> 33) % most);
                names.at(time)
            });
            let made: Vec<String> = made.collect();
            assert!(made.is_sorted_by(|one, next| one < next), "{most}");
            let compared = compared(&made);
            assert!(compared < 2.0, "{most}: {compared}");
        }
        // What cannot be told from chance above would not be told from this either.
        let counters = (0..COUNT).map(|at| format!("{}.M{at}P1.mx", 1_795_331_000 + at));
        let compared = compared(&counters.collect::<Vec<_>>());
        assert!(compared > 100.0, "{compared}");
    }
}
