//! How much of all large messages may lie in memory at once.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The room for all of them in the process, bytes.
const MOST: usize = 128 * 1024 * 1024;
/// Where the kernel limits the memory of the process, they get one such part of it: the rest is for clients, threads, and pages that
/// have not reached their disk.
const PARTS: u64 = 4;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// The right to hold so many bytes in memory; given back when it goes.
#[derive(Debug)]
pub(super) struct Room(pub usize);

impl Room {
    pub fn find(size: usize) -> Option<Room> {
        let taken = TAKEN.fetch_add(size, Ordering::Relaxed);
        // Dropped, it gives back what was just counted.
        Some(Room(size)).filter(|_| taken + size <= of_all())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        TAKEN.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// The room for all, bytes: found out once.
pub(super) fn of_all() -> usize {
    static ROOM: OnceLock<usize> = OnceLock::new();
    *ROOM.get_or_init(|| {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let limit = limit(&groups, Path::new("/sys/fs/cgroup")).unwrap_or(u64::MAX);
        usize::try_from(limit / PARTS).map_or(MOST, |part| part.min(MOST))
    })
}

/// The least limit on the memory of a process in these groups (as in `/proc/PID/cgroup`, cgroups(7)) and of all above them, bytes.
fn limit(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.strip_prefix('/')?);
        let (root, name) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|it| it == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // "max" is none.
        let read = |group: &Path| {
            fs::read_to_string(root.join(group).join(name))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        Path::new(path).ancestors().filter_map(read).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_holds() {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("memory.max", "max\n"),
            ("system.slice/memory.max", "4000000\n"),
            ("system.slice/postroom.service/memory.max", "5000000\n"),
            ("user.slice/memory.max", "max\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/box/memory.limit_in_bytes", "67108864\n"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        for (groups, want) in [
            ("0::/system.slice/postroom.service\n", Some(4_000_000)),
            ("0::/system.slice/other.service\n", Some(4_000_000)),
            ("0::/user.slice\n", None),
            ("0::/\n", None),
            (
                "5:cpu,cpuacct:/box\n4:memory:/box\n0::/user.slice\n",
                Some(67_108_864),
            ),
            ("4:blkio,memory:/box/inner\n", Some(67_108_864)),
            ("4:memory:/\n", Some(9_223_372_036_854_771_712)),
            ("3:devices:/box\n", None),
            ("0::/../elsewhere\nrubbish\n1:memory\n\n", None),
            ("", None),
        ] {
            assert_eq!(limit(groups, root.path()), want, "{groups}");
        }
    }
}
