//! Modes and groups against what the mailbox's own directory asks for. What mends them is printed, and never done.

use std::io::{self, ErrorKind};
use std::path::Path;

use super::super::{keywords, uidlist};
use super::{Cure, Names, Place, Survey};
use crate::mailbox::permission::{Permission, SETGID};
use crate::sys::credentials;
use crate::sys::dir::{Dir, Stat};
use crate::text::quote::shell;

const PARTS: [&str; 3] = ["cur", "new", "tmp"];
/// Those of the root among them.
const CONTROL_FILES: [&str; 4] = [
    uidlist::FILE,
    keywords::FILE,
    "dovecot-uidvalidity",
    "subscriptions",
];
const ACL_FILE: &str = "dovecot-acl";
const INDEX_FILES: [&str; 4] = [
    "dovecot.index",
    "dovecot.index.log",
    "dovecot.index.log.2",
    "dovecot.index.cache",
];

impl Survey {
    pub(super) fn permissions(
        &mut self,
        place: &Place,
        mailbox: &Dir,
        names: &Names,
    ) -> io::Result<()> {
        let stat = mailbox.stat()?;
        let permission = Permission::of(&stat, &place.mailbox);
        let mut tmp = None;
        for part in PARTS {
            // What is no directory was told when it was to be opened.
            if let Ok(stat) = mailbox.stat_name(part)
                && stat.is_dir
            {
                // More than is asked for harms nobody.
                let setgid = if permission.setgid { SETGID } else { 0 };
                let mode = permission.dir_mode | setgid | stat.mode & 0o7000;
                self.compare(&place.mailbox.join(part), &stat, mode, permission.gid);
                tmp = Some(stat);
            }
        }
        self.group_of_new_files(place, &permission, &tmp.unwrap_or(stat));
        self.files(&place.mailbox, &[ACL_FILE], &permission);
        self.files(&place.control, &CONTROL_FILES, &permission);
        self.files(&place.index, &INDEX_FILES, &permission);
        for part in ["cur", "new"] {
            let files = names.values().flatten().filter(|name| name.part == part);
            let stats: Vec<Stat> = files.filter_map(|name| name.stat).collect();
            self.messages(&place.mailbox.join(part), &stats, &permission);
        }
        Ok(())
    }

    /// A mailbox that gives its group no way into new files: their delivery is deferred.
    fn group_of_new_files(&mut self, place: &Place, permission: &Permission, tmp: &Stat) {
        let who = credentials::effective();
        let is_root = credentials::is_root();
        let can_be_had = permission.group_can_be_had(tmp, who.gid, &who.groups, is_root);
        if let Some(gid) = permission.gid.filter(|_| !can_be_had && !permission.setgid) {
            let what = format!(
                "is for group {gid}, which new files of uid {} do not get",
                who.uid
            );
            let path = shell(&place.mailbox);
            let command = format!("chmod g+s {path} {path}/cur {path}/new {path}/tmp");
            self.add(place.mailbox.clone(), what, Cure::Command(command));
        }
    }

    /// Symlinks are not followed: whoever owns the mailbox makes them, and root may run what is printed.
    fn files(&mut self, directory: &Path, names: &[&str], permission: &Permission) {
        let Ok(dir) = Dir::open(directory) else {
            return;
        };
        for name in names {
            let path = directory.join(name);
            match dir.stat_name(name) {
                Ok(stat) if stat.is_file => {
                    self.compare(&path, &stat, permission.file_mode, permission.gid);
                    if let Err(error) = dir.read(name) {
                        let cure = Cure::Others("see whose it is, and its mode");
                        self.add(path, format!("cannot be read: {error}"), cure);
                    }
                }
                // Dovecot and we read what it leads to, and whoever made the link decides who may.
                Ok(_) if *name == ACL_FILE && dir.read_through(name).is_ok() => {}
                Ok(_) => {
                    let cure = Cure::Others("nobody uses it: see what it is, and take it away");
                    self.add(path, "is no regular file", cure);
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    let cure = Cure::Others("look at it as its owner");
                    self.add(path, error.to_string(), cure);
                }
            }
        }
    }

    fn messages(&mut self, path: &Path, stats: &[Stat], permission: &Permission) {
        let (mode, shown) = (permission.file_mode, shell(path));
        let other_mode = stats.iter().filter(|stat| stat.mode != mode).count();
        if other_mode > 0 {
            let what = format!("{other_mode} messages have another mode than {mode:04o}");
            let cure =
                format!("find {shown} -type f ! -perm {mode:04o} -exec chmod {mode:04o} {{}} +");
            self.add(path.to_owned(), what, Cure::Command(cure));
        }
        let Some(gid) = permission.gid else {
            return;
        };
        let other_group = stats.iter().filter(|stat| stat.gid != gid).count();
        if other_group > 0 {
            let what = format!("{other_group} messages have another group than {gid}");
            let cure = format!("find {shown} -type f ! -gid {gid} -exec chgrp {gid} {{}} +");
            self.add(path.to_owned(), what, Cure::Command(cure));
        }
    }

    fn compare(&mut self, path: &Path, stat: &Stat, mode: u32, gid: Option<u32>) {
        if let Some(gid) = gid.filter(|gid| *gid != stat.gid) {
            let what = format!("has group {}, not {gid}", stat.gid);
            // Not to whatever a symlink in its place leads.
            let cure = format!("chgrp -h {gid} {}", shell(path));
            self.add(path.to_owned(), what, Cure::Command(cure));
        }
        if stat.mode != mode {
            let what = format!("has mode {:04o}, not {mode:04o}", stat.mode);
            let cure = format!("chmod {mode:04o} {}", shell(path));
            self.add(path.to_owned(), what, Cure::Command(cure));
        }
    }
}
