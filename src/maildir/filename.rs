//! Names of messages: `<seconds>.M<microseconds>P<pid>Q<count>.<host>,S=<bytes>,W=<bytes with CRLF>`.
//!
//! Unique in time, process and host. The microseconds come from the clock and not from a counter: names whose numbers
//! rise together collide in Dovecot's hash and cost it seconds in a large mailbox.

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
            "{}.M{}P{}Q{count}.{}",
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
        assert_eq!(names.at(time), "1795331000.M42P42Q1.mx\\0571\\072a");
        assert_eq!(names.at(time), "1795331000.M42P42Q2.mx\\0571\\072a");
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
}
