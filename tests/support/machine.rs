//! A machine of its own: a real systemd in namespaces, on a copy (an overlay) of the Debian 13 that the tests have.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::peers::cache;
use super::{Lmtp, PATIENCE, Scratch, children_of, skip};

/// Becomes systemd: $1 is the root, $2 the tree below it, $3 and $4 what the overlay needs.
const BOOT: &str = r#"
set -e
mount --make-rprivate /
ip link set lo up
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

const USERS: &str = "\
vmail:x:5000:5000::/srv/mail:/bin/false\n\
postroom:x:5001:5001::/:/bin/false\n\
alice:x:20001:20001::/home/alice:/bin/sh\n\
bob:x:20002:20002::/home/bob:/bin/sh\n\
Debian-exim:x:5003:5003::/:/bin/false\n\
opensmtpd:x:5004:5004::/var/lib/opensmtpd/empty:/bin/false\n\
opensmtpq:x:5005:5005::/:/bin/false\n\
";
const GROUPS: &str = "\
vmail:x:5000:\n\
postroom:x:5001:\n\
alice:x:20001:\n\
bob:x:20002:\n\
Debian-exim:x:5003:\n\
opensmtpd:x:5004:\n\
opensmtpq:x:5005:\n\
";

pub struct Machine {
    scratch: Scratch,
    child: Child,
    /// systemd, as its parent sees it.
    pub pid: u32,
}

impl Machine {
    /// A machine with our programs, accounts and `files` (path, mode, text); none where it cannot be had.
    pub fn boot(files: &[(&str, u32, &str)]) -> Option<Machine> {
        Machine::boot_with("", files)
    }

    /// The same with a package that excludes others: exim4-daemon-light, opensmtpd.
    pub fn boot_with(package: &str, files: &[(&str, u32, &str)]) -> Option<Machine> {
        Machine::boot_on(package, |tree, put| {
            for (name, path) in [
                ("postroom", env!("CARGO_BIN_EXE_postroom")),
                ("postroom-lda", env!("CARGO_BIN_EXE_postroom-lda")),
                ("postroom-lmtpd", env!("CARGO_BIN_EXE_postroom-lmtpd")),
            ] {
                let program = fs::read(path).unwrap();
                put(&format!("/usr/local/bin/{name}"), 0o755, &program);
            }
            for (path, mode, text) in files {
                put(path, *mode, text.as_bytes());
            }
            for (file, lines) in [("etc/passwd", USERS), ("etc/group", GROUPS)] {
                let text = fs::read_to_string(tree.join(file)).unwrap();
                put(file, 0o644, (text + lines).as_bytes());
            }
        })
    }

    /// A fresh machine, with nothing of ours but these files.
    pub fn boot_fresh(files: &[(&str, u32, &[u8])]) -> Option<Machine> {
        Machine::boot_on("", |_, put| {
            for (path, mode, bytes) in files {
                put(path, *mode, bytes);
            }
        })
    }

    /// `fill`: is given the tree below, and what puts a file over it.
    fn boot_on(
        package: &str,
        fill: impl FnOnce(&Path, &dyn Fn(&str, u32, &[u8])),
    ) -> Option<Machine> {
        let tree = cache().join("trixie");
        let beside = cache().join("trixie-mta").join(package);
        let lower = match package {
            "" => tree.display().to_string(),
            _ => format!("{}:{}", beside.display(), tree.display()),
        };
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
        fill(&tree, &put);
        let mut command = Command::new("unshare");
        command
            .args([
                "--pid",
                "--mount",
                "--cgroup",
                "--net",
                "--ipc",
                "--uts",
                "--fork",
                "--kill-child",
            ])
            .args(["sh", "-c", BOOT, "sh"])
            .args([
                scratch.path("root"),
                lower.into(),
                upper,
                scratch.path("work"),
            ])
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
        let children = children_of(self.child.id());
        let pid = children.first().copied().unwrap_or(0);
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.trim() == "systemd" { pid } else { 0 }
    }

    /// What a command says in there.
    pub fn run(&self, words: &[&str]) -> String {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.pid.to_string(), "-m", "-p", "-C", "-n", "-r"])
            .args(words);
        let output = command.env("SYSTEMD_PAGER", "").output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }

    /// A command in there as this user, with this on its stdin.
    pub fn feed(&self, user: &str, words: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "-m", "-p", "-C", "-n", "-r"]);
        command.args(["runuser", "-u", user, "--"]).args(words);
        super::run_with_input(&mut command, input)
    }

    pub fn put(&self, path: &str, owner: u32, mode: u32, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        super::own(&path, owner, owner);
    }

    pub fn gid(&self, group: &str) -> u32 {
        let text = fs::read_to_string(self.path("/etc/group")).unwrap();
        let line = text.lines().find(|it| it.split(':').next() == Some(group));
        line.unwrap().split(':').nth(2).unwrap().parse().unwrap()
    }

    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    pub fn systemctl(&self, words: &[&str]) -> String {
        self.run(&[&["systemctl"], words].concat())
    }

    pub fn property(&self, name: &str) -> String {
        let text = self.systemctl(&["show", "postroom", "--value", "--property", name]);
        text.trim().to_owned()
    }

    pub fn start(&self, unit: &str) {
        let said = self.systemctl(&["start", unit]);
        let status = || self.systemctl(&["status", "--no-pager", "-l", unit]);
        let log = || fs::read_to_string(self.path("/dev/console")).unwrap();
        assert_eq!(said, "", "{}\n{}", status(), log());
    }

    pub fn deliver(&self, to: &str, letter: &[u8]) -> String {
        Lmtp::connect(&self.path("/run/postroom/lmtp"))
            .deliver(&[to], letter)
            .remove(0)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With the first process of the namespace all others end.
        if self.pid != 0 {
            super::signal(self.pid, "KILL");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file of `contrib/`, as it is.
pub fn contrib(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib");
    fs::read_to_string(folder.join(name)).unwrap()
}
