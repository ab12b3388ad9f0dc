//! Modes and groups of what a delivery creates (Dovecot "Filesystem Permissions"). Nothing existing is ever changed.
//!
//! Pure: the rules are functions of what `stat` said.

use std::path::{Path, PathBuf};

use crate::sys::dir::Stat;

/// Set-group-ID: on a directory, new files and directories take its group.
pub const SETGID: u32 = 0o2000;

/// Mode and group for new files and directories, copied from a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// `0o660`, never with an execute bit.
    pub file_mode: u32,
    /// `0o770`, without setgid.
    pub dir_mode: u32,
    /// New directories are setgid too.
    pub setgid: bool,
    /// The group that the result must have; none where the group does not matter (its bits equal the world's).
    pub gid: Option<u32>,
    /// The directory that these were copied from.
    pub origin: PathBuf,
}

impl Permission {
    /// Read and write bits for files, all bits for directories; always usable by the owner.
    ///
    /// Where group bits equal world bits a group gives nobody anything, and a chown could only fail.
    pub fn of(directory: &Stat, origin: &Path) -> Permission {
        let mode = directory.mode;
        let group_matters = (mode >> 3) & 7 != mode & 7;
        let wants_group = directory.mode & SETGID != 0 || group_matters;
        Permission {
            file_mode: (mode & 0o666) | 0o600,
            dir_mode: (mode & 0o777) | 0o700,
            setgid: mode & SETGID != 0,
            gid: wants_group.then_some(directory.gid),
            origin: origin.to_owned(),
        }
    }

    /// For the directories of a root that has no directory to copy from.
    pub fn private(origin: &Path) -> Permission {
        Permission {
            file_mode: 0o600,
            dir_mode: 0o700,
            setgid: false,
            gid: None,
            origin: origin.to_owned(),
        }
    }

    /// Whether a file or directory created below `parent` gets the group by itself or can be given it.
    pub fn group_can_be_had(&self, parent: &Stat, egid: u32, groups: &[u32], root: bool) -> bool {
        let inherited = if parent.mode & SETGID != 0 {
            parent.gid
        } else {
            egid
        };
        self.gid
            .is_none_or(|gid| gid == inherited || gid == egid || groups.contains(&gid) || root)
    }

    /// Bits that this gives and `parent` does not: a delivery never creates a mailbox wider than its parent. To the
    /// parent another group is a part of the world.
    pub fn wider_than(&self, parent: &Stat) -> bool {
        let is_foreign = self.gid.is_some_and(|gid| gid != parent.gid);
        let foreign = if is_foreign { self.dir_mode >> 3 } else { 0 };
        (self.dir_mode | foreign & 7) & !parent.mode & 0o077 != 0
    }
}

/// The commands after which new files in the mailbox at `path` have this group, whoever makes them.
pub fn how_to_inherit(path: &Path, gid: u32) -> String {
    let path = path.display();
    let parts = format!("{path}/cur {path}/new {path}/tmp");
    format!("chgrp {gid} {parts} && chmod g+s {path} {parts}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(mode: u32, gid: u32) -> Stat {
        Stat {
            dev: 1,
            ino: 1,
            mode,
            uid: 6001,
            gid,
            size: 0,
            modified: std::time::UNIX_EPOCH,
            changed: std::time::UNIX_EPOCH,
            accessed: std::time::UNIX_EPOCH,
            is_dir: true,
            links: 2,
            is_file: false,
            is_link: false,
        }
    }

    #[test]
    fn copied_from_the_directory() {
        const TEAM: u32 = 6100;
        for (mode, file_mode, dir_mode, gid) in [
            (0o2770, 0o660, 0o770, Some(TEAM)),
            (0o770, 0o660, 0o770, Some(TEAM)),
            (0o775, 0o664, 0o775, Some(TEAM)),
            (0o755, 0o644, 0o755, None),
            (0o700, 0o600, 0o700, None),
            (0o715, 0o604, 0o715, Some(TEAM)),
            (0o777, 0o666, 0o777, None),
            (0o2700, 0o600, 0o700, Some(TEAM)),
            (0o3770, 0o660, 0o770, Some(TEAM)),
            (0o070, 0o660, 0o770, Some(TEAM)),
        ] {
            let got = Permission::of(&directory(mode, TEAM), Path::new("/p"));
            assert_eq!(
                (got.file_mode, got.dir_mode, got.gid),
                (file_mode, dir_mode, gid),
                "{mode:o}"
            );
        }
    }

    #[test]
    fn whether_the_group_can_be_had() {
        // mode and group of the directory; our gid and groups; can a file there get the group?
        for (mode, gid, egid, groups, want) in [
            (0o2770, 6100, 6001, &[][..], true),
            (0o770, 6100, 6001, &[6100][..], true),
            (0o770, 6100, 6001, &[][..], false),
            (0o770, 6001, 6001, &[][..], true),
            (0o755, 6100, 6001, &[][..], true),
        ] {
            let parent = directory(mode, gid);
            let permission = Permission::of(&parent, Path::new("/p"));
            assert_eq!(
                permission.group_can_be_had(&parent, egid, groups, false),
                want,
                "{mode:o} {gid}"
            );
        }
    }

    #[test]
    fn never_wider_than_the_parent() {
        let root = Permission::of(&directory(0o755, 1), Path::new("/r"));
        assert!(root.wider_than(&directory(0o700, 1)));
        assert!(!root.wider_than(&directory(0o777, 1)));
        assert!(!root.wider_than(&directory(0o755, 1)));
        let team = Permission::of(&directory(0o2770, 1), Path::new("/r"));
        assert!(!team.wider_than(&directory(0o770, 1)));
        assert!(team.wider_than(&directory(0o770, 2)));
        assert!(!team.wider_than(&directory(0o777, 2)));
    }
}
