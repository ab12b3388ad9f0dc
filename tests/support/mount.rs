//! File systems in the scratch folder, gone with their value.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{PATIENCE, installed, skip};

/// Where it is mounted.
pub struct Mount(PathBuf);

impl Mount {
    pub fn new(at: PathBuf, arguments: &[&str]) -> Option<Mount> {
        let mut command = Command::new("mount");
        let mounted = command.args(arguments).arg(&at).output();
        match mounted.is_ok_and(|output| output.status.success()) {
            true => Some(Mount(at)),
            false => {
                skip("nothing can be mounted here");
                None
            }
        }
    }

    /// What lies at `at`, where nothing can be written.
    pub fn read_only(at: PathBuf) -> Option<Mount> {
        let source = at.to_str().unwrap().to_owned();
        let mount = Mount::new(at, &["--bind", &source])?;
        let mut command = Command::new("mount");
        command.args(["-o", "remount,ro,bind"]).arg(&mount.0);
        assert!(command.status().unwrap().success());
        Some(mount)
    }

    /// A journaled ext4 of so many megabytes in place of the directory `at`, with what was in it. `image` is made.
    pub fn journaled(image: &Path, at: PathBuf, megabytes: u32) -> Option<Mount> {
        Mount::ext4("has_journal", image, at, megabytes)
    }

    /// The same without a journal, where each thing has to be synced by itself.
    pub fn unordered(image: &Path, at: PathBuf, megabytes: u32) -> Option<Mount> {
        Mount::ext4("^has_journal", image, at, megabytes)
    }

    fn ext4(features: &str, image: &Path, at: PathBuf, megabytes: u32) -> Option<Mount> {
        let run = |command: &mut Command| assert!(command.output().unwrap().status.success());
        let before = at.with_extension("before");
        fs::rename(&at, &before).unwrap();
        fs::create_dir(&at).unwrap();
        let size = format!("{megabytes}M");
        run(Command::new("truncate").args(["-s", &size]).arg(image));
        run(Command::new("mkfs.ext4")
            .args(["-q", "-O", features])
            .arg(image));
        let mount = Mount::new(at, &["-o", "loop", image.to_str().unwrap()])?;
        let mut copy = Command::new("cp");
        run(copy.arg("-aT").arg(&before).arg(&mount.0));
        fs::remove_dir_all(before).unwrap();
        Some(mount)
    }

    /// A file system of so many kilobytes and files, which belongs to this uid.
    pub fn small(at: PathBuf, kilobytes: u32, files: u32, uid: u32) -> Option<Mount> {
        let options = format!("size={kilobytes}k,nr_inodes={files},mode=0700,uid={uid},gid={uid}");
        Mount::new(at, &["-t", "tmpfs", "-o", &options, "tmpfs"])
    }

    /// A file system of this uid's that takes two megabytes. `image` is made.
    pub fn with_quota(image: &Path, at: PathBuf, uid: u32) -> Option<Mount> {
        if !installed("mkfs.btrfs") {
            skip("btrfs-progs is not installed");
            return None;
        }
        let run = |command: &mut Command| assert!(command.output().unwrap().status.success());
        run(Command::new("truncate").args(["-s", "128M"]).arg(image));
        run(Command::new("mkfs.btrfs").arg(image));
        let mount = Mount::new(at, &["-o", "loop", image.to_str().unwrap()])?;
        run(Command::new("btrfs")
            .args(["quota", "enable"])
            .arg(&mount.0));
        run(Command::new("btrfs")
            .args(["qgroup", "limit", "2M"])
            .arg(&mount.0));
        run(Command::new("chown").arg(uid.to_string()).arg(&mount.0));
        Some(mount)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A disk of the test's own, with a journaled file system, whose power can be cut.
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
}

/// Asked for a cut by a line, it tells the file system that its disk is gone: what is not written yet never is.
const CUTTER: &str = "
import fcntl, os, struct, sys
disk = os.open(sys.argv[1], os.O_RDONLY)
print(flush=True)
sys.stdin.readline()
FS_IOC_SHUTDOWN, NOLOGFLUSH = 0x8004587d, 2
fcntl.ioctl(disk, FS_IOC_SHUTDOWN, struct.pack('I', NOLOGFLUSH))
";

/// Waits to cut the power of a [`Disk`], so that nothing but the cut lies between the call and the cut.
pub struct Cutter(Child);

impl Disk {
    /// A new one of so many megabytes, mounted at `at`. `image` is made.
    pub fn new(kind: FileSystem, megabytes: u32, image: PathBuf, at: PathBuf) -> Option<Disk> {
        let program = match kind {
            FileSystem::Ext4 => "mkfs.ext4",
            FileSystem::Xfs => "mkfs.xfs",
        };
        if !installed(program) {
            skip(&format!("{program} is not installed"));
            return None;
        }
        let run = |command: &mut Command| {
            let output = command.output().unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        let size = format!("{megabytes}M");
        run(Command::new("truncate").args(["-s", &size]).arg(&image));
        run(Command::new(program).arg("-q").arg(&image));
        let disk = Disk { image, at };
        match disk.mount() {
            true => Some(disk),
            false => {
                skip("nothing can be mounted here");
                None
            }
        }
    }

    fn mount(&self) -> bool {
        let mut command = Command::new("mount");
        command.args(["-o", "loop"]).arg(&self.image).arg(&self.at);
        command.output().is_ok_and(|output| output.status.success())
    }

    fn unmount(&self) -> bool {
        let mut command = Command::new("umount");
        let unmounted = command.arg(&self.at).output();
        unmounted.is_ok_and(|output| output.status.success())
    }

    pub fn cutter(&self) -> Cutter {
        let mut command = Command::new("python3");
        command.args(["-c", CUTTER]).arg(&self.at);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut ready = [0];
        child.stdout.take().unwrap().read_exact(&mut ready).unwrap();
        Cutter(child)
    }

    /// The power is there again: what is on the disk is all there is. Whoever has files of it open has to be gone.
    pub fn restart(&self) {
        let began = Instant::now();
        while !self.unmount() {
            assert!(began.elapsed() < PATIENCE, "somebody has the disk open");
            thread::sleep(Duration::from_millis(5));
        }
        assert!(self.mount(), "it cannot be mounted any more");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let began = Instant::now();
        while !self.unmount() && began.elapsed() < Duration::from_secs(2) {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = fs::remove_file(&self.image);
    }
}

impl Cutter {
    /// Asks for it, and does not wait.
    pub fn cut(&mut self) {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    }

    /// Waits until the disk is off.
    pub fn wait(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

/// Runs this test again in a mount namespace of its own, and answers whether that is done: a namespace that somebody else makes
/// meanwhile has a copy of every mount, and would keep a disk that is to be unmounted. Those that the test makes follow it.
pub fn is_done_apart(test: &str) -> bool {
    const MARK: &str = "POSTROOM_TEST_APART";
    if std::env::var_os(MARK).is_some() {
        return false;
    }
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private"]);
    command.args(["sh", "-c", "mount --make-rshared / && exec \"$@\"", "sh"]);
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(MARK, "");
    assert!(command.status().unwrap().success());
    true
}
