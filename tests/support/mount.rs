//! File systems in the scratch folder, gone with their value.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{installed, skip};

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
