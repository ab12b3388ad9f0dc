//! What a worker can open by the kernel's help, and what it does where the kernel has none to give.

use super::support::peers::lines_of;
use super::*;

/// The version of Landlock that the kernel has, not asked by us; below 1 it has none, or it is off.
pub fn version_of_landlock() -> i32 {
    let ask = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))";
    lines_of(Command::new("python3").args(["-c", ask]))[0]
        .parse()
        .unwrap()
}

/// His own link, in place of a whole Maildir, to a directory of his that is no place of mail: his uid may write there, his worker cannot.
#[test]
fn a_worker_opens_its_places_only() {
    if not_root() {
        return;
    }
    // The first version cannot be used.
    let has_landlock = version_of_landlock() >= 2;
    for (workers, is_closed) in [("", has_landlock), ("[workers]\nlandlock = false", false)] {
        let site = Site::new(4);
        let uid = UID + 1;
        site.scratch.dir("elsewhere", 0, 0, 0o755);
        let elsewhere = site.scratch.maildir("elsewhere/u1", uid, uid, 0o700);
        symlink(&elsewhere, site.home(1).join("Maildir")).unwrap();
        let server = site.serve(workers);
        let replies = server.client().deliver(&["u1@x", "u2@x"], LETTER);
        let case = format!("{workers}: {replies:?} {}", server.log());
        let want = if is_closed { "451 4." } else { "250 2.0.0" };
        assert!(replies[0].starts_with(want), "{case}");
        assert!(replies[1].starts_with("250 2.0.0"), "{case}");
        let stored = messages(&elsewhere).len();
        assert_eq!(stored, usize::from(!is_closed), "{case}");
    }
}

/// A kernel of before has no Landlock, or less of it, and misses other calls: mail goes the same ways. strace answers in its place.
#[test]
fn older_kernels() {
    if not_root() || !installed("strace") && skip("strace is not installed") {
        return;
    }
    let version = |number| format!("landlock_create_ruleset:retval={number}:when=1");
    let newer = "openat2,close_range,faccessat2,clone3,statx,copy_file_range,epoll_pwait2";
    #[rustfmt::skip]
    let kernels = [
        ("no Landlock", "landlock_create_ruleset:error=ENOSYS".into(), "none"),
        ("Landlock is off", "landlock_create_ruleset:error=EOPNOTSUPP".into(), "none"),
        ("its first version", version(1), "none"),
        ("its second version", version(2), "partial"),
        ("other calls are missing", format!("{newer}:error=ENOSYS"), "full"),
    ];
    #[rustfmt::skip]
    let places = [
        ("u1@x", "INBOX", "home/u1/Maildir", (UID + 1, UID + 1, 0o600)),
        ("u2@x", "INBOX", "home/u2/Maildir", (UID + 2, UID + 2, 0o600)),
        ("u4+Public/info@x", "Public/info", "public/.info", (UID + 4, GROUP, 0o660)),
        ("u1+shared/u5/Team@x", "shared/u5/Team", "shared/u5/.Team", (UID + 1, GROUP + 1, 0o660)),
        ("u1+Public/info@x", "INBOX", "home/u1/Maildir", (UID + 1, UID + 1, 0o600)),
    ];
    for (what, inject, level) in kernels {
        if version_of_landlock() < 3 && level != "none" {
            continue;
        }
        let site = Site::new(8);
        site.configure("");
        let trace = site.scratch.text("run/trace");
        let calls = format!("trace={}", inject.split(':').next().unwrap());
        let inject = format!("inject={inject}");
        // The traced process keeps the number of the one that was started.
        let strace = [
            "strace",
            "-D",
            "-f",
            "-qqq",
            "--seccomp-bpf",
            "-o",
            &trace,
            "-e",
            &calls,
            "-e",
            &inject,
        ];
        let server = site.serve_under(&strace);
        for (address, mailbox, path, facts_of) in places {
            let path = site.scratch.path(path);
            let before = messages(&path);
            let reply = server.client().deliver(&[address], LETTER).remove(0);
            let case = format!("{what}: {address} {reply} {}", server.log());
            let want = format!("mailbox=\"{mailbox}\"");
            assert!(reply.starts_with("250 ") && reply.contains(&want), "{case}");
            let stored = messages(&path).into_iter().find(|it| !before.contains(it));
            assert_eq!(facts(&stored.expect(&case).0), facts_of, "{case}");
        }
        // The first one had nobody before him, the third one three processes.
        for number in [1, 2, 4] {
            let open = worker(&server, UID + number).unwrap().came_along();
            assert_eq!(open.len(), 1, "{what}: u{number}: {open:?}");
        }
        let level = format!("Landlock for workers level=\"{level}\"");
        assert!(server.log().contains(&level), "{what}: {}", server.log());
        let met = fs::read_to_string(&trace).unwrap();
        assert!(met.contains("(INJECTED)"), "{what}: {met}");
        for user in ["u3", "u6"] {
            let mut lda = site.command(&strace, "postroom-lda");
            let output = run_with_input(lda.args(["-d", user]), LETTER);
            assert_eq!(output.status.code(), Some(0), "{what}: {output:?}");
            let stored = messages(&site.scratch.path(&format!("home/{user}/Maildir")));
            assert_eq!(stored.len(), 1, "{what}: {user}");
        }
    }
}
