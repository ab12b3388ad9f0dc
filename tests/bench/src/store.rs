//! The disk that all contestants deliver to: a home with an empty mailbox for each user, or one that holds something already.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use crate::failed;
use crate::load::Message;

/// The user and group that mail is delivered as: Debian's `mail`.
pub const MAIL: u32 = 8;

#[derive(Debug)]
pub struct Store {
    pub root: PathBuf,
    /// Each user has a uid of his own, and the server is root's.
    pub own_uids: bool,
    pub kind: Kind,
    /// Messages that each Maildir holds at first.
    pub held: usize,
    rounds: usize,
}

/// What mailboxes are, and how recipients of one message share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Maildir,
    /// One copy for all recipients of a message.
    Single,
    /// One file of 1 GB.
    Mbox,
}

/// Of an mbox at first, bytes.
const MBOX: usize = 1 << 30;
const MBOX_MESSAGE: usize = 50_000;
/// Names that one file of ext4 can have: fewer than 65,000.
const MAX_LINKS: usize = 50_000;

/// That of u0, where each user has one.
const FIRST_UID: u32 = 20_000;

impl Store {
    pub fn new(root: &Path) -> io::Result<Store> {
        for part in ["run", "old"] {
            make(&root.join(part), 0o755)?;
        }
        Ok(Store {
            root: root.to_owned(),
            own_uids: false,
            kind: Kind::Maildir,
            held: 0,
            rounds: 0,
        })
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// New mailboxes for so many users. Those of the round before are put aside: removing them would be work for the
    /// disk while the next round is measured.
    pub fn fresh(&mut self, mailboxes: usize) -> io::Result<()> {
        for part in ["home", "public"] {
            let before = self.path(part);
            if before.exists() {
                fs::rename(&before, self.path(&format!("old/{}", self.rounds)))?;
                self.rounds += 1;
            }
            make(&before, 0o755)?;
        }
        mailbox_for_all(MAIL, &self.path("public/.info"))?;
        let home = self.path("home");
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
            let home = home.join(format!("u{user}"));
            make_for(uid, &home, 0o700)?;
            maildir_for(uid, &home.join("Maildir"))?;
            self.fill(&home.join("Maildir"))?;
            if user == 0 {
                mailbox_for_all(uid, &home.join("Maildir/.Work"))?;
            }
            if self.kind == Kind::Mbox {
                mbox(&home)?;
            }
        }
        Ok(())
    }

    /// The messages that it holds at first, in its list of UIDs.
    fn fill(&self, maildir: &Path) -> io::Result<()> {
        if self.held == 0 {
            return Ok(());
        }
        let text = Message::text(4096);
        let mut list = format!("3 V1700000000 N{} G{:032x}\n", self.held + 1, 7);
        let mut first = maildir.to_owned();
        for number in 0..self.held {
            let name = format!(
                "{}.M{}P1.mx,S={}",
                1_600_000_000 + number,
                number * 7919 % 1_000_000,
                text.len()
            );
            list.push_str(&format!("{} :{name}\n", number + 1));
            let path = maildir.join(format!("cur/{name}:2,S"));
            match number % MAX_LINKS {
                0 => {
                    fs::write(&path, &text)?;
                    chown(&path, Some(MAIL), Some(MAIL))?;
                    first = path;
                }
                _ => fs::hard_link(&first, &path)?,
            }
        }
        let file = maildir.join("dovecot-uidlist");
        fs::write(&file, list)?;
        chown(&file, Some(MAIL), Some(MAIL))
    }

    /// Between two cases: room for the next.
    pub fn clear(&self) -> io::Result<()> {
        fs::remove_dir_all(self.path("old"))?;
        make(&self.path("old"), 0o755)
    }

    /// Fails unless exactly so many messages are in the mailboxes.
    pub fn check(&self, expected: usize) -> io::Result<()> {
        match self.count()? {
            found if found == expected => Ok(()),
            found => Err(io::Error::other(format!(
                "{expected} messages were delivered, {found} are there"
            ))),
        }
    }

    /// The messages in all mailboxes; in an mbox those that came after its first gigabyte.
    pub fn count(&self) -> io::Result<usize> {
        let mut found = maildir_count(&self.path("public/.info"))?;
        for user in fs::read_dir(self.path("home"))? {
            let home = user?.path();
            if self.kind == Kind::Mbox {
                found += mbox_count(&home)?;
            }
            let inbox = home.join("Maildir");
            found += maildir_count(&inbox)?;
            for folder in fs::read_dir(&inbox)? {
                let folder = folder?;
                let is_mailbox = folder.file_name().as_encoded_bytes().starts_with(b".");
                if is_mailbox && folder.file_type()?.is_dir() {
                    found += maildir_count(&folder.path())?;
                }
            }
        }
        Ok(found)
    }
}

fn maildir_count(maildir: &Path) -> io::Result<usize> {
    ["new", "cur"]
        .iter()
        .map(|part| {
            let folder = maildir.join(part);
            Ok(fs::read_dir(&folder)
                .map_err(failed(folder.display()))?
                .count())
        })
        .sum()
}

/// A gigabyte of messages, as others have left it.
fn mbox(home: &Path) -> io::Result<()> {
    let path = home.join("inbox");
    let mut message = b"From old@bench.test Mon Jan  1 12:00:00 2024\n".to_vec();
    message.extend(Message::text(MBOX_MESSAGE));
    message.push(b'\n');
    let mut file = BufWriter::new(File::create_new(&path)?);
    for _ in 0..MBOX / message.len() {
        file.write_all(&message)?;
    }
    file.into_inner()?.sync_all()?;
    make_for(MAIL, &home.join("mail"), 0o700)?;
    chown(&path, Some(MAIL), Some(MAIL))
}

/// Of those that a contestant has added: Dovecot writes into the header of others too, so their places are not what they were.
fn mbox_count(home: &Path) -> io::Result<usize> {
    let mut lines = BufReader::with_capacity(1 << 20, File::open(home.join("inbox"))?);
    let (mut line, mut count) = (Vec::new(), 0);
    while lines.read_until(b'\n', &mut line)? > 0 {
        count += usize::from(line.starts_with(b"From sender@bench.test"));
        line.clear();
    }
    Ok(count)
}

fn mailbox_for_all(uid: u32, path: &Path) -> io::Result<()> {
    maildir_for(uid, path)?;
    fs::write(path.join("dovecot-acl"), "anyone lrwip\n")
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
