use std::fs;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::sys::clock::tests::WAS_SET_AHEAD;
use crate::sys::fault_point;

const NONE: Patience = Patience {
    timeout: Duration::ZERO,
    stale: Duration::from_secs(120),
};
const LONG: Patience = Patience {
    timeout: Duration::from_secs(20),
    stale: Duration::from_secs(120),
};
const SHORT: Patience = Patience {
    timeout: Duration::from_millis(300),
    stale: Duration::from_secs(120),
};

/// Of so long ago; less than nothing: of a time to come.
fn old(path: &std::path::Path, seconds: i64) {
    let file = File::options().write(true).open(path).unwrap();
    let (now, distance) = (
        SystemTime::now(),
        Duration::from_secs(seconds.unsigned_abs()),
    );
    let time = match seconds < 0 {
        true => now + distance,
        false => now - distance,
    };
    file.set_modified(time).unwrap();
}

/// Whatever fails, a lock is had or it is not, and none of ours stays.
#[test]
fn every_step_fails_once() {
    for (holds, there) in [
        (Holds::Pid, None),
        (Holds::Content, None),
        (Holds::Pid, Some("999999999")),
        (Holds::Content, Some("999999999")),
    ] {
        for failure in fault_point::FAILURES.into_iter().chain(fault_point::ENDS) {
            for step in 0.. {
                let root = tempfile::tempdir().unwrap();
                let dir = Dir::open(root.path()).unwrap();
                let path = root.path().join("f.lock");
                if let Some(pid) = there {
                    fs::write(&path, format!("{pid}:{}", hostname())).unwrap();
                    old(&path, 10);
                }
                fault_point::arm(step, failure);
                let taken = Dotlock::take(&dir, "f", 0o600, holds, NONE);
                let case = format!("{holds:?}, {there:?}, {failure:?} at {step}: {taken:?}");
                assert!(taken.is_err() || is_of_us(&path, holds), "{case}");
                let is_taken = taken.is_ok();
                drop(taken);
                let fired = !fault_point::disarm();
                let left = fs::read_to_string(&path).ok();
                let is_dead = left.as_ref().is_some_and(|it| it.starts_with("999999999"));
                let has_ended = fault_point::ENDS.contains(&failure) && fired;
                assert!(left.is_none() || is_dead || has_ended, "{case}: {left:?}");
                if left.is_some() && holds == Holds::Pid {
                    old(&path, 10);
                    let again = Dotlock::take(&dir, "f", 0o600, holds, NONE);
                    assert!(again.is_ok(), "{case}: {left:?}, {again:?}");
                }
                if !fired {
                    assert!(is_taken, "{case}");
                    assert!(
                        failure.is_of_writes() || step > 4,
                        "only {step} steps can fail"
                    );
                    break;
                }
            }
        }
    }
}

fn is_of_us(lock: &std::path::Path, holds: Holds) -> bool {
    let text = fs::read_to_string(lock).unwrap();
    let own = format!("{}:{}", std::process::id(), hostname());
    text == if holds == Holds::Pid {
        own
    } else {
        String::new()
    }
}

#[test]
fn one_holder_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let dir = Dir::open(root.path()).unwrap();
    let path = root.path().join("f.lock");
    let lock = Dotlock::take(&dir, "f", 0o600, Holds::Pid, SHORT).unwrap();
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        format!("{}:{}", std::process::id(), hostname())
    );
    let busy = Dotlock::take(&dir, "f", 0o600, Holds::Pid, SHORT).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::TimedOut);
    drop(lock);
    assert!(!path.exists());
    Dotlock::take(&dir, "f", 0o600, Holds::Pid, SHORT).unwrap();
}

/// A second without a change is long.
const HASTY: Patience = Patience {
    timeout: Duration::from_millis(300),
    stale: Duration::from_secs(1),
};

fn let_it_age() {
    thread::sleep(HASTY.stale + Duration::from_millis(100));
}

thread_local! {
    /// How long this machine has been running, as it is told; none: for ever.
    pub static RUNNING: std::cell::Cell<Option<Duration>> = const { std::cell::Cell::new(None) };
}

/// After a power cut: a lock whose content never got to the disk, and one whose pid is another's by now.
#[test]
fn locks_of_before_the_start() {
    let patient = Patience {
        stale: Duration::MAX,
        ..SHORT
    };
    for (content, age, patience, is_free) in [
        (format!("1:{}", hostname()), 1000, HASTY, true),
        // A clock that has jumped, or that of a file server: not at once.
        (format!("1:{}", hostname()), 1000, patient, false),
        (format!("1:{}", hostname()), 50, HASTY, false),
        ("".into(), 1000, patient, false),
        ("1:elsewhere".into(), 1000, patient, false),
    ] {
        RUNNING.set(Some(Duration::from_secs(100)));
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let path = root.path().join("f.lock");
        fs::write(&path, &content).unwrap();
        old(&path, age);
        let taken = Dotlock::take(&dir, "f", 0o600, Holds::Pid, patience);
        assert_eq!(taken.is_ok(), is_free, "{content:?} {age} {patience:?}");
    }
}

#[test]
fn what_is_stale() {
    let elsewhere = || "999999999:elsewhere".to_owned();
    for (content, age, patience, is_free) in [
        (format!("999999999:{}", hostname()), 10, SHORT, true),
        (format!("999999999:{}", hostname()), 0, SHORT, false),
        // Of a clock that was set back since.
        (format!("999999999:{}", hostname()), -1000, SHORT, true),
        (format!("1:{}", hostname()), -1000, SHORT, false),
        (elsewhere(), -1000, HASTY, false),
        (format!("1:{}", hostname()), 1000, HASTY, false),
        (
            format!("{}:{}", std::process::id(), hostname()),
            10,
            SHORT,
            true,
        ),
        (elsewhere(), 10, SHORT, false),
        (elsewhere(), 1000, HASTY, true),
        (String::new(), 1000, HASTY, true),
        ("new content".into(), 60, SHORT, false),
    ] {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let path = root.path().join("f.lock");
        fs::write(&path, &content).unwrap();
        old(&path, age);
        if patience == HASTY {
            let_it_age();
        }
        let taken = Dotlock::take(&dir, "f", 0o600, Holds::Pid, patience);
        assert_eq!(taken.is_ok(), is_free, "{content:?} {age}");
    }
}

/// A lock of a living process of another machine, or one that names nobody.
#[test]
fn a_clock_that_was_set_ahead() {
    for (content, is_free) in [
        ("1:elsewhere".to_owned(), false),
        (String::new(), false),
        (format!("999999999:{}", hostname()), true),
    ] {
        for was_set_ahead in [true, false] {
            WAS_SET_AHEAD.set(Some(was_set_ahead));
            let root = tempfile::tempdir().unwrap();
            let dir = Dir::open(root.path()).unwrap();
            let path = root.path().join("f.lock");
            fs::write(&path, &content).unwrap();
            old(&path, 1000);
            let taken = Dotlock::take(&dir, "f", 0o600, Holds::Pid, SHORT);
            let case = format!("{content:?} {was_set_ahead}");
            assert_eq!(taken.is_ok(), is_free || !was_set_ahead, "{case}");
        }
    }
}

/// Made long ago, and linked just now.
#[test]
fn a_lock_is_not_older_than_its_name() {
    for (by_name, is_free) in [(false, true), (true, false)] {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let path = root.path().join("f.lock");
        fs::write(&path, "17").unwrap();
        old(&path, 1000);
        let asking = Asking::new(&dir, "f", 0o600, Holds::Pid).unwrap();
        let mut asking = match by_name {
            true => asking.of_any_program(),
            false => asking,
        };
        let asked = [(); 2].map(|()| asking.ask(SHORT.stale).unwrap().is_some());
        assert_eq!(asked, [false, is_free], "{by_name}");
    }
}

/// Its holder may be dead, or be at work: then the file changes.
#[test]
fn the_file_tells_too() {
    for is_changed in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        for name in ["f", "f.lock"] {
            fs::write(root.path().join(name), "").unwrap();
            old(&root.path().join(name), 1000);
        }
        let_it_age();
        if is_changed {
            fs::write(root.path().join("f"), "x").unwrap();
        }
        let taken = Dotlock::take(&dir, "f", 0o600, Holds::Content, HASTY);
        assert_eq!(taken.is_ok(), !is_changed);
    }
}

/// Root reads anything: what nobody can read here is a lock that is a symlink.
#[test]
fn a_lock_that_cannot_be_read_becomes_stale() {
    let root = tempfile::tempdir().unwrap();
    let dir = Dir::open(root.path()).unwrap();
    let lock = root.path().join("f.lock");
    std::os::unix::fs::symlink("nowhere", &lock).unwrap();
    let touched = std::process::Command::new("touch")
        .args(["-h", "-d", "2020-01-01"])
        .arg(&lock)
        .status();
    assert!(touched.unwrap().success());
    let_it_age();
    Dotlock::take(&dir, "f", 0o600, Holds::Content, HASTY).unwrap();
}

#[test]
fn content_takes_the_place_of_the_file() {
    let root = tempfile::tempdir().unwrap();
    let dir = Dir::open(root.path()).unwrap();
    fs::write(root.path().join("f"), "old").unwrap();
    let mut lock = Dotlock::take(&dir, "f", 0o640, Holds::Content, SHORT).unwrap();
    lock.file.write_all(b"new").unwrap();
    assert_eq!(fs::read_to_string(root.path().join("f")).unwrap(), "old");
    lock.replace().unwrap();
    assert_eq!(fs::read_to_string(root.path().join("f")).unwrap(), "new");
    assert_eq!(dir.names().unwrap(), ["f"]);
    let dropped = Dotlock::take(&dir, "f", 0o640, Holds::Content, SHORT).unwrap();
    drop(dropped);
    assert_eq!(dir.names().unwrap(), ["f"]);
}

/// Several find it at the same moment: one breaks it, and nobody breaks the lock of the one that came then.
#[test]
fn a_stale_lock_with_many_takers() {
    const TAKERS: usize = 3;
    let root = tempfile::tempdir().unwrap();
    let dir = Dir::open(root.path()).unwrap();
    let path = root.path().join("f.lock");
    let holders = AtomicUsize::new(0);
    for round in 0..200 {
        fs::write(&path, format!("999999999:{}", hostname())).unwrap();
        old(&path, 10);
        let start = Barrier::new(TAKERS);
        thread::scope(|scope| {
            for _ in 0..TAKERS {
                scope.spawn(|| {
                    start.wait();
                    let lock = Dotlock::take(&dir, "f", 0o600, Holds::Pid, LONG).unwrap();
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "round {round}");
                    thread::sleep(Duration::from_micros(100));
                    lock.check().unwrap();
                    holders.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(dir.names().unwrap(), Vec::<String>::new());
    }
}

/// Another process has broken it meanwhile, and has the lock now: in the same inode, as file systems do.
#[test]
fn the_lock_of_whoever_was_faster_stays() {
    let root = tempfile::tempdir().unwrap();
    let dir = Dir::open(root.path()).unwrap();
    let path = root.path().join("f.lock");
    fs::write(&path, "999999999:elsewhere").unwrap();
    old(&path, 10);
    let judged = version(&dir, "f.lock").unwrap();
    fs::write(&path, "1:elsewhere").unwrap();
    assert!(take_away(&dir, "f.lock", judged).unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), "1:elsewhere");
    assert_eq!(dir.names().unwrap(), ["f.lock"]);
}

/// It is for whoever has the directory's own lock to do.
#[test]
fn another_one_is_breaking_it() {
    let root = tempfile::tempdir().unwrap();
    let dir = Dir::open(root.path()).unwrap();
    let path = root.path().join("f.lock");
    fs::write(&path, format!("999999999:{}", hostname())).unwrap();
    old(&path, 10);
    let other = dir.try_lock().unwrap();
    let busy = Dotlock::take(&dir, "f", 0o600, Holds::Pid, SHORT).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::TimedOut);
    drop(other);
    Dotlock::take(&dir, "f", 0o600, Holds::Pid, SHORT).unwrap();
}

/// However long it was waited for.
#[test]
fn a_lock_that_has_just_been_taken_is_young() {
    let root = tempfile::tempdir().unwrap();
    let dir = Dir::open(root.path()).unwrap();
    let held = Dotlock::take(&dir, "f", 0o600, Holds::Pid, SHORT).unwrap();
    let mut asking = Asking::new(&dir, "f", 0o600, Holds::Pid).unwrap();
    assert!(asking.ask(LONG.stale).unwrap().is_none());
    let waiting = &asking.waiting.as_ref().unwrap().file;
    let long_ago = SystemTime::now() - Duration::from_secs(200);
    waiting.set_modified(long_ago).unwrap();
    drop(held);
    let lock = asking.ask(LONG.stale).unwrap();
    let age = age(&version(&dir, "f.lock").unwrap());
    assert!(lock.is_some() && age < Duration::from_secs(60), "{age:?}");
}
