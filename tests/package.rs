//! The Debian package, on a fresh Debian 13: installed, upgraded, removed and purged.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use support::machine::Machine;
use support::{PATIENCE, Scratch, not_root};

const LETTER: &[u8] = b"Subject: package\r\n\r\nHello\r\n";
const DEB: &str = "/root/postroom.deb";

/// The package of the programs that are tested.
fn build() -> Vec<u8> {
    let programs = Path::new(env!("CARGO_BIN_EXE_postroom")).parent().unwrap();
    let scratch = Scratch::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/debian/build");
    let output = Command::new(script)
        .args([programs, &scratch.path("")])
        // Half a minute less.
        .env("DPKG_DEB_COMPRESSOR_TYPE", "none")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let path = String::from_utf8(output.stdout).unwrap();
    fs::read(path.trim_end()).unwrap()
}

/// All paths of the machine, but for what systemd and dpkg note of others.
fn paths(machine: &Machine) -> BTreeSet<String> {
    let found = machine.run(&[
        "find",
        "/",
        "-xdev",
        "-not",
        "-path",
        "/tmp/*",
        "-not",
        "-path",
        "/var/tmp/*",
    ]);
    let not_ours = [
        "/var/log/",
        "/var/cache/",
        "/var/lib/dpkg/",
        "/var/lib/systemd/",
    ];
    let paths = found.lines().map(str::to_owned);
    paths
        .filter(|path| !not_ours.iter().any(|it| path.starts_with(it)) || path.contains("postroom"))
        .collect()
}

/// Must succeed; answers what it said.
fn dpkg(machine: &Machine, words: &[&str]) -> String {
    let words = [&["sh", "-c", "dpkg \"$@\" && echo DONE", "dpkg"], words].concat();
    let said = machine.run(&words);
    assert!(said.contains("DONE\n"), "{said}");
    said
}

fn owner_and_mode(machine: &Machine, path: &str) -> (u32, u32) {
    let stat = fs::metadata(machine.path(path)).unwrap_or_else(|why| panic!("{path}: {why}"));
    (stat.uid(), stat.mode() & 0o7777)
}

#[test]
fn installed_upgraded_removed_and_purged() {
    if not_root() {
        return;
    }
    let deb = build();
    let Some(machine) = Machine::boot_fresh(&[(DEB, 0o644, &deb)]) else {
        return;
    };
    machine.run(&["useradd", "--create-home", "bob"]);
    let before = paths(&machine);
    let state = |what: &str| machine.property(what);

    // Where policy-rc.d forbids it (this Debian has one) nothing is started.
    let said = dpkg(&machine, &["-i", DEB]);
    assert!(said.contains("policy-rc.d returned 101"), "{said}");
    assert_eq!(state("ActiveState"), "inactive", "{said}");
    assert_eq!(state("UnitFileState"), "enabled");
    fs::remove_file(machine.path("/usr/sbin/policy-rc.d")).unwrap();
    dpkg(&machine, &["-P", "postroom"]);
    let left = paths(&machine);
    let left: Vec<_> = left.difference(&before).collect();
    assert!(left.is_empty(), "after a purge without a start: {left:?}");

    let said = dpkg(&machine, &["-i", DEB]);
    let journal = || machine.run(&["journalctl", "--no-pager", "-u", "postroom", "-o", "cat"]);
    assert_eq!(state("ActiveState"), "active", "{said} {}", journal());
    let passwd = fs::read_to_string(machine.path("/etc/passwd")).unwrap();
    let line = passwd.lines().find(|it| it.starts_with("postroom:"));
    let uid: u32 = line.unwrap().split(':').nth(2).unwrap().parse().unwrap();
    let main = state("MainPID");
    let process = fs::metadata(machine.path(&format!("/proc/{main}"))).unwrap();
    assert_eq!((process.uid(), uid < 1000), (uid, true), "{line:?}");
    for (path, want) in [
        ("/usr/bin/postroom", (0, 0o755)),
        ("/etc/postroom/postroom.toml", (0, 0o644)),
        ("/var/lib/postroom", (uid, 0o755)),
        ("/var/lib/postroom/spool", (uid, 0o755)),
        ("/srv/mail", (uid, 0o750)),
        ("/run/postroom/lmtp", (uid, 0o660)),
        ("/usr/share/man/man5/postroom.toml.5.gz", (0, 0o644)),
        (
            "/usr/share/bash-completion/completions/postroom",
            (0, 0o644),
        ),
    ] {
        assert_eq!(owner_and_mode(&machine, path), want, "{path}");
    }
    let script = "dpkg -L postroom | xargs stat -c '%04a %n'";
    let modes = machine.run(&["sh", "-c", script]);
    let is_set_id = |mode: &&str| mode.starts_with(['2', '3', '4', '5', '6', '7']);
    assert!(modes.contains("0755 /usr/bin/postroom-lda"), "{modes}");
    assert_eq!(modes.lines().find(is_set_id), None);
    let check = machine.feed("root", &["postroom", "check"], b"");
    assert_eq!(check.status.code(), Some(0), "{check:?}");
    let linked = machine.run(&["ldd", "/usr/bin/postroom-lmtpd"]);
    assert!(!linked.contains("not found"), "{linked}");

    // A user is a line of a file.
    support::write_long_ago(
        &machine.path("/etc/postroom/users"),
        "postmaster:\nalice:\n",
    );
    for (to, want) in [
        ("alice@example.org", "250 2.0.0"),
        ("postmaster@example.org", "250 2.0.0"),
        ("nobody-here@example.org", "550 5.1.1"),
    ] {
        let reply = machine.deliver(to, LETTER);
        assert!(reply.starts_with(want), "{to}: {reply} {}", journal());
    }
    let mail = machine.path("/srv/mail/home/alice/Maildir");
    let is_there = || {
        let found = support::messages(&mail);
        assert_eq!(found.len(), 1);
        assert_eq!(fs::metadata(&found[0].0).unwrap().uid(), uid);
    };
    is_there();

    // An upgrade keeps what was changed, and restarts.
    let config = machine.path("/etc/postroom/postroom.toml");
    let changed = fs::read_to_string(&config).unwrap() + "# Changed here.\n";
    fs::write(&config, &changed).unwrap();
    dpkg(&machine, &["--force-confold", "-i", DEB]);
    assert_eq!(fs::read_to_string(&config).unwrap(), changed);
    assert_eq!(state("ActiveState"), "active");
    assert_ne!(state("MainPID"), main);
    is_there();
    // What an administrator has turned off stays off.
    machine.systemctl(&["disable", "--now", "postroom"]);
    dpkg(&machine, &["--force-confold", "-i", DEB]);
    assert_eq!(state("UnitFileState"), "disabled");
    assert_eq!(state("ActiveState"), "inactive");
    machine.systemctl(&["enable", "--now", "postroom"]);
    assert_eq!(state("ActiveState"), "active");

    // For the accounts of the machine, as the configuration says: the other unit, and less in the file.
    let example = "/usr/share/doc/postroom/examples/postroom-root.service";
    let unit = "/etc/systemd/system/postroom.service";
    machine.run(&["cp", example, unit]);
    let is_kept = |line: &&str| {
        !line.starts_with("mail_") && !line.contains("userdb") && !line.starts_with("passwd-file")
    };
    let less: Vec<&str> = changed.lines().filter(is_kept).collect();
    fs::write(&config, less.join("\n")).unwrap();
    machine.systemctl(&["daemon-reload"]);
    machine.systemctl(&["restart", "postroom"]);
    let reply = machine.deliver("bob@example.org", LETTER);
    assert!(reply.starts_with("250 2.0.0"), "{reply} {}", journal());
    assert_eq!(
        support::messages(&machine.path("/home/bob/Maildir")).len(),
        1
    );
    fs::remove_file(machine.path(unit)).unwrap();
    fs::write(&config, &changed).unwrap();
    machine.systemctl(&["daemon-reload"]);
    machine.systemctl(&["restart", "postroom"]);
    assert_eq!(state("ActiveState"), "active", "{}", journal());

    dpkg(&machine, &["-r", "postroom"]);
    let began = Instant::now();
    while Path::new(&machine.path(&format!("/proc/{}", state("MainPID")))).exists() {
        assert!(began.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(state("ActiveState"), "inactive");
    assert!(!machine.path("/usr/bin/postroom-lmtpd").exists());
    assert_eq!(fs::read_to_string(&config).unwrap(), changed);
    is_there();

    dpkg(&machine, &["-P", "postroom"]);
    is_there();
    let after = paths(&machine);
    let left: Vec<_> = after
        .difference(&before)
        .filter(|path| !path.starts_with("/srv/mail") && !path.starts_with("/home/bob/Maildir"))
        .collect();
    assert!(left.is_empty(), "after the purge: {left:?}");
    assert!(!machine.path("/run/postroom").exists());
    // The uid of the mail is nobody else's.
    let passwd = fs::read_to_string(machine.path("/etc/passwd")).unwrap();
    assert!(passwd.contains("\npostroom:x:"), "{passwd}");

    // In a chroot, where no systemd runs.
    for words in [
        "-i /root/postroom.deb",
        "-r postroom",
        "-i /root/postroom.deb",
        "-P postroom",
    ] {
        let script = format!("mount -t tmpfs none /run && dpkg {words} && echo DONE");
        let said = machine.run(&["unshare", "-m", "sh", "-c", &script]);
        assert!(said.contains("DONE\n"), "{words}: {said}");
        assert!(!said.contains("ystemctl"), "{words}: {said}");
    }
    is_there();
}
