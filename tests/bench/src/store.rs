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
    rounds: usize,
}

impl Store {
    pub fn new(root: &Path) -> io::Result<Store> {
        for part in ["run", "public", "old"] {
            make(&root.join(part), 0o755)?;
        }
        maildir(&root.join("public/.info"))?;
        fs::write(root.join("public/.info/dovecot-acl"), "anyone lrwip\n")?;
        Ok(Store {
            root: root.to_owned(),
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
        let user = |user| format!("u{user}:x:{MAIL}:{MAIL}::{}/u{user}::\n", home.display());
        let users: String = (0..mailboxes).map(user).collect();
        fs::write(self.path("users"), users)?;
        for user in 0..mailboxes {
            make(&home.join(format!("u{user}")), 0o700)?;
            maildir(&home.join(format!("u{user}/Maildir")))?;
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
    make(path, 0o700)?;
    ["cur", "new", "tmp"]
        .iter()
        .try_for_each(|part| make(&path.join(part), 0o700))
}

fn make(path: &Path, mode: u32) -> io::Result<()> {
    let made = DirBuilder::new().mode(mode).create(path);
    made.and_then(|()| chown(path, Some(MAIL), Some(MAIL)))
        .map_err(failed(path.display()))
}
