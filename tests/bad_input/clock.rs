//! A clock that somebody sets while mail comes in.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::process::Command;

use super::support::{installed, own, skip, uid_of};
use super::*;

/// In front of the C library: its clock, and so many seconds more as stand in a file.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long *ahead;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("POSTROOM_TEST_CLOCK"), O_RDONLY);
    void *mapped = mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED)
        abort();
    close(file);
    ahead = mapped;
}

int clock_gettime(clockid_t id, struct timespec *time) {
    int done = syscall(SYS_clock_gettime, id, time);
    if (!done && id == CLOCK_REALTIME && ahead)
        time->tv_sec += *ahead;
    return done;
}
"#;

const DAY: i64 = 24 * 3600;

/// Names and UIDs are given once, UIDVALIDITYs rise, and a lock that somebody holds on another machine stays his.
#[test]
fn a_clock_that_jumps() {
    if not_root() || !installed("cc") && skip("no C compiler") {
        return;
    }
    let store = store();
    let (source, library) = (store.path("clock.c"), store.path("clock.so"));
    fs::write(&source, CLOCK).unwrap();
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source]);
    assert!(compiler.status().unwrap().success());
    let ahead = store.path("ahead");
    fs::write(&ahead, 0i64.to_ne_bytes()).unwrap();
    let ahead = fs::File::options().write(true).open(ahead).unwrap();
    let set = |seconds: i64| ahead.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();

    let config = store.configure("on_missing = \"create\"", "");
    let mut command = program("postroom-lmtpd");
    command.arg("-c").arg(config);
    command
        .env("LD_PRELOAD", &library)
        .env("POSTROOM_TEST_CLOCK", store.path("ahead"));
    as_user(&mut command, MAIL, MAIL, &[]);
    let server = Server::spawn(command, &store.path("run/lmtp"), &store.path("run/log"));

    let lock = store.path("home/alice/Maildir/dovecot-uidlist.lock");
    fs::write(&lock, "1:elsewhere").unwrap();
    own(&lock, MAIL, MAIL);
    set(30 * DAY);
    let reply = deliver(&server, b"alice@x.test");
    assert!(
        reply.starts_with("250 ") && uid_of(&reply).is_none(),
        "{reply}"
    );
    assert_eq!(fs::read_to_string(&lock).unwrap(), "1:elsewhere");
    fs::remove_file(lock).unwrap();

    let (mut uids, mut validities) = (Vec::new(), Vec::new());
    for (step, seconds) in [0, 30 * DAY, -3650 * DAY, 0, -1, 0].into_iter().enumerate() {
        set(seconds);
        for _ in 0..10 {
            let reply = deliver(&server, b"carol@x.test");
            uids.extend(uid_of(&reply));
        }
        let address = format!("alice+At{step}@x.test");
        let reply = deliver(&server, address.as_bytes());
        assert_eq!(uid_of(&reply), Some(1), "{reply}");
        let list = store.path(&format!("home/alice/Maildir/.At{step}/dovecot-uidlist"));
        let list = fs::read_to_string(list).unwrap();
        let validity = list.split(['V', ' ']).nth(2).unwrap();
        validities.push(validity.parse::<u32>().unwrap());
    }
    assert!(
        uids.len() == 60 && uids.is_sorted_by(|one, next| one < next),
        "{uids:?}"
    );
    let rise = validities.is_sorted_by(|one, next| one < next);
    assert!(rise && validities[0] > 0, "{validities:?}");
    let bare = |path: &std::path::Path| path.file_name().unwrap().to_owned();
    let stored = support::messages_below(&store.path("home"));
    let names: BTreeSet<_> = stored.iter().map(|(path, _)| bare(path)).collect();
    assert_eq!((stored.len(), names.len()), (67, 67));
}
