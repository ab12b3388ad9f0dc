//! Under a real systemd: the units of `contrib/` as they are, with all their restrictions.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use support::machine::{Machine, contrib};
use support::peers::cache;
use support::{Lmtp, PATIENCE, not_root, replaced, skip};

const LETTER: &[u8] = b"Subject: unit\r\n\r\nHello\r\n";

const ONE: &str = r#"
hostname = "mx.example.org"
mail_uid = 5000
mail_gid = 5000
mail_home = "/srv/mail/%{user | domain}/%{user | username}"
mail_path = "~/Maildir"
[[userdb]]
static = { uid = 5000, gid = 5000, home = "/srv/mail/%{user | domain}/%{user | username}" }
[delivery]
on_missing = "create"
[lmtp]
listen = [{ unix = "/run/postroom/lmtp", mode = "0660", group = "postfix" }]
"#;

/// What systemd thinks of their restrictions, in tenths: 100 is none at all.
#[test]
fn exposure_of_the_units() {
    let systemd = cache().join("trixie");
    if not_root() || !systemd.join("usr/bin/systemd-analyze").exists() && skip("no systemd") {
        return;
    }
    for (unit, most) in [("postroom.service", 20), ("postroom-root.service", 35)] {
        let inside = format!("/tmp/{}/{unit}", std::process::id());
        let path = systemd.join(inside.trim_start_matches('/'));
        let folder = path.parent().unwrap();
        fs::create_dir_all(folder).unwrap();
        fs::write(&path, contrib(unit)).unwrap();
        let mut analyze = Command::new("chroot");
        analyze.arg(&systemd);
        analyze.args([
            "systemd-analyze",
            "security",
            "--offline=true",
            "--no-pager",
        ]);
        let threshold = format!("--threshold={most}");
        let said = analyze.args([&threshold, &inside]).output().unwrap();
        fs::remove_dir_all(folder).unwrap();
        assert!(
            said.status.success(),
            "{unit}: {}",
            String::from_utf8_lossy(&said.stdout)
        );
    }
}

/// The unit of one account: what is below `/domain/user` becomes setgid as its directory is, which RestrictSUIDSGID= would not let
/// it become.
#[test]
fn one_account() {
    if not_root() {
        return;
    }
    let service = contrib("postroom.service");
    let Some(machine) = Machine::boot(&[
        ("/etc/systemd/system/postroom.service", 0o644, &service),
        (
            "/etc/systemd/system/postroom.socket",
            0o644,
            &contrib("postroom.socket"),
        ),
        (
            "/etc/systemd/system/postroom.service.d/test.conf",
            0o644,
            "[Service]\nWatchdogSec=2\nRestartSec=0\n",
        ),
        ("/etc/postroom/postroom.toml", 0o644, ONE),
    ]) else {
        return;
    };
    for (path, mode) in [("/srv/mail", 0o2775), ("/srv/mail/example.org", 0o2770)] {
        let path = machine.path(path);
        fs::create_dir_all(&path).unwrap();
        support::own(&path, 5000, 5000);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    machine.start("postroom");
    assert_eq!(
        (
            machine.property("ActiveState").as_str(),
            machine.property("Type").as_str()
        ),
        ("active", "notify")
    );
    for to in ["alice@example.org", "alice+Work@example.org"] {
        let reply = machine.deliver(to, LETTER);
        assert!(
            reply.starts_with("250 2.0.0"),
            "{reply} {}",
            machine.run(&["journalctl", "--no-pager", "-u", "postroom"])
        );
    }
    for below in ["", "/new", "/.Work", "/.Work/cur"] {
        let path = machine.path(&format!("/srv/mail/example.org/alice/Maildir{below}"));
        let stat = fs::metadata(&path).unwrap();
        assert_eq!(
            (stat.uid(), stat.mode() & 0o2000),
            (5000, 0o2000),
            "{below} {:o}",
            stat.mode()
        );
    }
    // A line a recipient, in the journal.
    let journal = machine.run(&["journalctl", "--no-pager", "-u", "postroom", "-o", "cat"]);
    assert!(journal.contains("INFO stored session="), "{journal}");

    // RestrictSUIDSGID=, which the units leave out: the bit that the kernel passes on is still there, or the mail waits.
    let restricted = machine.path("/etc/systemd/system/postroom.service.d/more.conf");
    fs::write(&restricted, "[Service]\nRestrictSUIDSGID=yes\n").unwrap();
    machine.systemctl(&["daemon-reload"]);
    machine.systemctl(&["restart", "postroom"]);
    for to in ["carol@example.org", "carol+Work@example.org"] {
        let reply = machine.deliver(to, LETTER);
        assert!(reply.starts_with("250 2.0.0"), "{reply}");
    }
    for below in ["/new", "/.Work", "/.Work/cur"] {
        let path = format!("/srv/mail/example.org/carol/Maildir{below}");
        let mode = fs::metadata(machine.path(&path)).unwrap().mode();
        assert_eq!(mode & 0o2000, 0o2000, "{below} {mode:o}");
    }
    fs::remove_file(&restricted).unwrap();
    machine.systemctl(&["daemon-reload"]);
    machine.systemctl(&["restart", "postroom"]);

    // A message that is on its way gets its answer when the server is asked to end.
    let mut client = Lmtp::connect(&machine.path("/run/postroom/lmtp"));
    client.say("MAIL FROM:<s@x.test>");
    client.say("RCPT TO:<alice@example.org>");
    client.say("DATA");
    let stopping = machine.pid;
    let stop = thread::spawn(move || {
        let mut command = Command::new("nsenter");
        command.args([
            "-t",
            &stopping.to_string(),
            "-m",
            "-p",
            "-C",
            "-r",
            "systemctl",
            "stop",
            "postroom",
        ]);
        assert!(command.status().unwrap().success());
    });
    thread::sleep(Duration::from_millis(300));
    client.send(b"Subject: last\r\n\r\nx\r\n.\r\n");
    assert!(client.reply().starts_with("250 2.0.0"));
    stop.join().unwrap();
    assert_eq!(
        (
            machine.property("ActiveState").as_str(),
            machine.property("Result").as_str()
        ),
        ("inactive", "success")
    );

    // With the socket unit an MTA that comes before the server waits for it.
    let given = replaced(ONE, "/run/postroom/lmtp", "/run/postroom.sock");
    let given = replaced(&given, ", group = \"postfix\"", "");
    fs::write(machine.path("/etc/postroom/postroom.toml"), given).unwrap();
    machine.start("postroom.socket");
    assert_eq!(machine.property("ActiveState"), "inactive");
    let socket = machine.path("/run/postroom.sock");
    let reply = Lmtp::connect(&socket)
        .deliver(&["bob@example.org"], LETTER)
        .remove(0);
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    assert_eq!(machine.property("ActiveState"), "active");
    let stat = fs::metadata(&socket).unwrap();
    assert_eq!(
        (stat.mode() & 0o777, stat.gid()),
        (0o660, machine.gid("postfix"))
    );

    // One that hears nobody any more is started again.
    let pid: u32 = machine.property("MainPID").parse().unwrap();
    machine.run(&["kill", "-STOP", &pid.to_string()]);
    let began = Instant::now();
    while machine.property("NRestarts") != "1" {
        assert!(
            began.elapsed() < PATIENCE,
            "{}",
            machine.property("NRestarts")
        );
        thread::sleep(Duration::from_millis(100));
    }
    let mut waiting = UnixStream::connect(&socket).unwrap();
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut greeting = [0; 4];
    waiting.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 ");
    waiting.write_all(b"QUIT\r\n").unwrap();
}

/// The unit that root starts: each user has an identity of his own, and the configuration is read again without a gap.
#[test]
fn an_account_for_each() {
    if not_root() {
        return;
    }
    let config = r#"
auth_username_format = "%{user | username}"
mail_path = "~/Maildir"
[[userdb]]
passwd = {}
[lmtp]
listen = [{ unix = "/run/postroom/lmtp", mode = "0660", group = "postfix" }]
"#;
    let Some(machine) = Machine::boot(&[
        (
            "/etc/systemd/system/postroom.service",
            0o644,
            &contrib("postroom-root.service"),
        ),
        (
            "/etc/systemd/system/postroom.service.d/test.conf",
            0o644,
            "[Service]\nWatchdogSec=5\n",
        ),
        ("/etc/postroom/postroom.toml", 0o644, config),
    ]) else {
        return;
    };
    // The unit names /srv/mail too: it starts where that is missing.
    for (path, uid) in [("/home/alice", 20001), ("/home/bob", 20002)] {
        fs::create_dir_all(machine.path(path)).unwrap();
        support::own(&machine.path(path), uid, uid);
    }
    machine.start("postroom");
    for (user, uid) in [("alice", 20001), ("bob", 20002)] {
        let reply = machine.deliver(&format!("{user}@example.org"), LETTER);
        assert!(
            reply.starts_with("250 2.0.0"),
            "{reply} {}",
            machine.run(&["journalctl", "--no-pager", "-u", "postroom"])
        );
        let found = support::messages(&machine.path(&format!("/home/{user}/Maildir")));
        assert_eq!(found.len(), 1);
        assert_eq!(fs::metadata(&found[0].0).unwrap().uid(), uid);
    }
    let changed = config.replace("[lmtp]", "[lmtp]\nmax_recipients = 1");
    fs::write(machine.path("/etc/postroom/postroom.toml"), changed).unwrap();
    assert_eq!(machine.systemctl(&["reload", "postroom"]), "");
    let began = Instant::now();
    loop {
        let mut client = Lmtp::connect(&machine.path("/run/postroom/lmtp"));
        client.say("MAIL FROM:<s@x.test>");
        client.say("RCPT TO:<alice@example.org>");
        if client
            .say("RCPT TO:<bob@example.org>")
            .starts_with("452 4.5.3")
        {
            break;
        }
        assert!(began.elapsed() < PATIENCE);
    }
    // The old process says good-bye to its clients meanwhile, and nobody takes that for the end of the service.
    thread::sleep(Duration::from_secs(6));
    assert_eq!(
        (
            machine.property("ActiveState").as_str(),
            machine.property("NRestarts").as_str()
        ),
        ("active", "0")
    );
    assert_eq!(machine.systemctl(&["stop", "postroom"]), "");
    assert_eq!(machine.property("Result"), "success");
}
