//! Under a real systemd: the units of `contrib/` as they are, with all their restrictions. It runs in namespaces of its own, on a copy
//! (an overlay) of the Debian 13 that the tests have.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::{Lmtp, PATIENCE, Scratch, not_root, skip};

const LETTER: &[u8] = b"Subject: unit\r\n\r\nHello\r\n";

/// Becomes systemd: $1 is the root, $2 the tree below it, $3 and $4 what the overlay needs.
const BOOT: &str = r#"
set -e
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$2,upperdir=$3,workdir=$4" "$1"
cd "$1"
mount --rbind /sys sys
mount -t proc proc proc
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs dev
for n in null zero random urandom full tty; do touch dev/$n; mount --bind /dev/$n dev/$n; done
mkdir dev/pts dev/shm dev/mqueue
mount -t devpts devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
touch dev/console
mkdir run/old
pivot_root . run/old
exec chroot . sh -c 'umount -l /run/old && exec /lib/systemd/systemd --system --unit=basic.target --log-target=console'
"#;

struct Machine {
    scratch: Scratch,
    child: Child,
    /// systemd, as its parent sees it.
    pid: u32,
}

impl Machine {
    /// A machine with our programs, accounts and `files` (path, mode, text); none where it cannot be had.
    fn boot(files: &[(&str, u32, &str)]) -> Option<Machine> {
        let cache = std::env::var("POSTROOM_CACHE").unwrap_or_default();
        let tree = Path::new(&cache).join("trixie");
        if !tree.join("usr/lib/systemd/systemd").exists() {
            skip("there is no systemd in $POSTROOM_CACHE/trixie");
            return None;
        }
        let scratch = Scratch::new();
        for part in ["root", "upper", "work"] {
            fs::create_dir(scratch.path(part)).unwrap();
            fs::set_permissions(scratch.path(part), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let upper = scratch.path("upper");
        let put = |path: &str, mode: u32, bytes: &[u8]| {
            let path = upper.join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let program = fs::read(env!("CARGO_BIN_EXE_postroom-lmtpd")).unwrap();
        put("/usr/local/bin/postroom-lmtpd", 0o755, &program);
        for (path, mode, text) in files {
            put(path, *mode, text.as_bytes());
        }
        for (file, lines) in [
            (
                "etc/passwd",
                "vmail:x:5000:5000::/srv/mail:/bin/false\npostroom:x:5001:5001::/:/bin/false\nalice:x:20001:20001::/home/alice:/bin/sh\nbob:x:20002:20002::/home/bob:/bin/sh\n",
            ),
            (
                "etc/group",
                "vmail:x:5000:\npostroom:x:5001:\npostfix:x:5002:postroom\nalice:x:20001:\nbob:x:20002:\n",
            ),
        ] {
            let text = fs::read_to_string(tree.join(file)).unwrap();
            put(file, 0o644, (text + lines).as_bytes());
        }
        let mut command = Command::new("unshare");
        command
            .args([
                "--pid",
                "--mount",
                "--cgroup",
                "--ipc",
                "--uts",
                "--fork",
                "--kill-child",
            ])
            .args(["sh", "-c", BOOT, "sh"])
            .args([scratch.path("root"), tree, upper, scratch.path("work")])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("container", "other")
            // Where the machine has the old control groups only.
            .env(
                "SYSTEMD_PROC_CMDLINE",
                "systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
            )
            .stdin(Stdio::null())
            .stdout(fs::File::create(scratch.path("boot.log")).unwrap())
            .stderr(fs::File::create(scratch.path("boot.err")).unwrap());
        let child = command.spawn().unwrap();
        let mut machine = Machine {
            scratch,
            child,
            pid: 0,
        };
        let began = Instant::now();
        loop {
            machine.pid = machine.find();
            if machine.pid != 0 {
                let state = machine.run(&["systemctl", "is-system-running"]);
                if ["running", "degraded"].contains(&state.trim()) {
                    return Some(machine);
                }
            }
            let log = || fs::read_to_string(machine.scratch.path("boot.err")).unwrap();
            assert!(
                began.elapsed() < PATIENCE,
                "systemd does not come up: {}",
                log()
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The process that has become systemd; 0 while there is none.
    fn find(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let text = fs::read_to_string(children).unwrap_or_default();
        let pid: u32 = text
            .split_whitespace()
            .next()
            .and_then(|it| it.parse().ok())
            .unwrap_or(0);
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.trim() == "systemd" { pid } else { 0 }
    }

    /// What a command says in there.
    fn run(&self, words: &[&str]) -> String {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.pid.to_string(), "-m", "-p", "-C", "-r"])
            .args(words);
        let output = command.env("SYSTEMD_PAGER", "").output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }

    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    fn systemctl(&self, words: &[&str]) -> String {
        self.run(&[&["systemctl"], words].concat())
    }

    fn property(&self, name: &str) -> String {
        let text = self.systemctl(&["show", "postroom", "--value", "--property", name]);
        text.trim().to_owned()
    }

    fn start(&self, unit: &str) {
        let said = self.systemctl(&["start", unit]);
        let status = || self.systemctl(&["status", "--no-pager", "-l", unit]);
        let log = || fs::read_to_string(self.path("/dev/console")).unwrap();
        assert_eq!(said, "", "{}\n{}", status(), log());
    }

    fn deliver(&self, to: &str) -> String {
        Lmtp::connect(&self.path("/run/postroom/lmtp"))
            .deliver(&[to], LETTER)
            .remove(0)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With the first process of the namespace all others end.
        if self.pid != 0 {
            support::signal(self.pid, "KILL");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unit(name: &str) -> String {
    fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("contrib")
            .join(name),
    )
    .unwrap()
}

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

/// The unit of one account: what is below `/domain/user` becomes setgid as its directory is, which RestrictSUIDSGID= would not let
/// it become.
#[test]
fn one_account() {
    if not_root() {
        return;
    }
    let service = unit("postroom.service");
    let Some(machine) = Machine::boot(&[
        ("/etc/systemd/system/postroom.service", 0o644, &service),
        (
            "/etc/systemd/system/postroom.socket",
            0o644,
            &unit("postroom.socket"),
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
        let reply = machine.deliver(to);
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
        let reply = machine.deliver(to);
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
    let given = ONE
        .replace("/run/postroom/lmtp", "/run/postroom.sock")
        .replace(", group = \"postfix\"", "");
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
    assert_eq!((stat.mode() & 0o777, stat.gid()), (0o660, 5002));

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
            &unit("postroom-root.service"),
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
    // The unit lets it write here; what is not there cannot be bound.
    for (path, uid) in [
        ("/srv/mail", 0),
        ("/home/alice", 20001),
        ("/home/bob", 20002),
    ] {
        fs::create_dir_all(machine.path(path)).unwrap();
        support::own(&machine.path(path), uid, uid);
    }
    machine.start("postroom");
    for (user, uid) in [("alice", 20001), ("bob", 20002)] {
        let reply = machine.deliver(&format!("{user}@example.org"));
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
