//! The disk that both contestants deliver to: a home with an empty Maildir for each user.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use crate::failed;

/// The user and group that mail is delivered as: Debian's `mail`.
pub const MAIL: u32 = 8;

#[derive(Debug)]
pub struct Store {
    pub root: PathBuf,
    /// Each user has a uid of his own, and the server is root's.
    pub own_uids: bool,
    rounds: usize,
}

/// That of u0, where each user has one.
const FIRST_UID: u32 = 20_000;

impl Store {
    pub fn new(root: &Path) -> io::Result<Store> {
        for part in ["run", "public", "old"] {
            make(&root.join(part), 0o755)?;
        }
        maildir(&root.join("public/.info"))?;
        fs::write(root.join("public/.info/dovecot-acl"), "anyone lrwip\n")?;
        Ok(Store {
            root: root.to_owned(),
            own_uids: false,
            rounds: 0,
        })
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// Empty Maildirs for so many users. Those of the round before are put aside: removing them would be work for the
    /// disk while the next round is measured.
    pub fn fresh(&mut self, mailboxes: usize) -> io::Result<()> {
        let home = self.path("home");
        if home.exists() {
            fs::rename(&home, self.path(&format!("old/{}", self.rounds)))?;
            self.rounds += 1;
        }
        make(&home, 0o755)?;
        let uid = |user| match self.own_uids {
            true => FIRST_UID + user as u32,
            false => MAIL,
        };
        let user = |user| {
            let (uid, home) = (uid(user), home.display());
            format!("u{user}:x:{uid}:{uid}::{home}/u{user}::\n")
        };
        let users: String = (0..mailboxes).map(user).collect();
        fs::write(self.path("users"), users)?;
        for user in 0..mailboxes {
            let uid = uid(user);
            make_for(uid, &home.join(format!("u{user}")), 0o700)?;
            maildir_for(uid, &home.join(format!("u{user}/Maildir")))?;
        }
        Ok(())
    }

    /// Between two cases: room for the next.
    pub fn clear(&self) -> io::Result<()> {
        fs::remove_dir_all(self.path("old"))?;
        make(&self.path("old"), 0o755)
    }

    /// Fails unless exactly so many messages are in the users' Maildirs.
    pub fn check(&self, expected: usize) -> io::Result<()> {
        let mut found = 0;
        for user in fs::read_dir(self.path("home"))? {
            let maildir = user?.path().join("Maildir");
            for part in ["new", "cur"] {
                let folder = maildir.join(part);
                found += fs::read_dir(&folder)
                    .map_err(failed(folder.display()))?
                    .count();
            }
        }
        match found == expected {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "{expected} messages were delivered, {found} are in the Maildirs"
            ))),
        }
    }
}

fn maildir(path: &Path) -> io::Result<()> {
    maildir_for(MAIL, path)
}

fn maildir_for(uid: u32, path: &Path) -> io::Result<()> {
    make_for(uid, path, 0o700)?;
    ["cur", "new", "tmp"]
        .iter()
        .try_for_each(|part| make_for(uid, &path.join(part), 0o700))
}

fn make(path: &Path, mode: u32) -> io::Result<()> {
    make_for(MAIL, path, mode)
}

fn make_for(uid: u32, path: &Path, mode: u32) -> io::Result<()> {
    let made = DirBuilder::new().mode(mode).create(path);
    made.and_then(|()| chown(path, Some(uid), Some(uid)))
        .map_err(failed(path.display()))
}
