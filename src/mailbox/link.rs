//! The one rule for symlinks on the way to a mailbox (Dovecot "Mailbox Sharing with Symlinks").
//!
//! 1. Whatever leads to the root of a namespace, and to the directory of an INBOX outside of it, is the admin's: followed.
//! 2. Below that, a symlink is followed when it belongs to root, to the user who delivers or to the owner of what it leads to,
//!    and when what it leads to is there and lies below a mail root. Where it leads to another symlink, the owner of that one
//!    does not matter: only where both end does. A link of the user who delivers does not count on the way to a mailbox that only a
//!    group opens which is lent to him while he delivers.
//! 3. In a mailbox, and for locks and control files, nothing is followed.
//!
//! The rights are those of the name: of the namespace that holds the link. Modes and groups are those of what it leads to.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::sys::dir::{self, Dir, Stat};
use crate::sys::{is_no_directory, is_no_way};

/// The rule, for one user who delivers.
#[derive(Debug)]
pub struct Links {
    /// Who delivers.
    pub uid: u32,
    /// Groups that are his only while mail is delivered.
    pub lent: Vec<u32>,
    /// What a symlink may lead to.
    pub mail_roots: Vec<PathBuf>,
}

/// Why a symlink is not followed.
#[derive(Debug, thiserror::Error)]
#[error("the symlink {} {why}", .link.display())]
pub struct NotFollowed {
    link: PathBuf,
    pub why: Why,
}

/// For `Refused` and `Nowhere` a stranger's name may be denied; `Unknown` says nothing of the link.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// By the rule.
    #[error("{0}")]
    Refused(String),
    /// What it leads to is gone, or not mounted.
    #[error("leads nowhere")]
    Nowhere,
    /// Nobody can tell now what it leads to.
    #[error("cannot be followed: {0}")]
    Unknown(io::Error),
}

impl Why {
    fn of(error: io::Error) -> Why {
        match error.kind() {
            ErrorKind::NotFound => Why::Nowhere,
            _ if is_no_way(&error) => Why::Refused(format!("cannot be followed: {error}")),
            _ => Why::Unknown(error),
        }
    }

    /// The rule has said nothing: an error of the system was in the way.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Why::Unknown(_))
    }
}

impl Links {
    /// Looks at each symlink that is there on the way to `mailbox`, whose namespace has this `root`. A part that is missing or
    /// cannot be looked at is not judged. What is opened later is judged again: it may have changed. Answers what the last of them
    /// leads to.
    pub fn check(&self, root: &Path, mailbox: &Path) -> Result<Option<PathBuf>, NotFollowed> {
        let (base, components) = way(root, mailbox);
        let (mut path, mut real, mut own) = (base.to_owned(), None, None);
        for component in components {
            path.push(component);
            match dir::stat_link(&path) {
                Ok(stat) if stat.is_link => {
                    real = Some(self.check_link(&path, &stat)?);
                    own = own.or_else(|| self.is_own(&stat).then(|| path.clone()));
                }
                Ok(_) => {}
                Err(_) => {
                    path.pop();
                    break;
                }
            }
        }
        if let Some(link) = own
            && let Ok(end) = dir::stat(&path)
        {
            self.judge_end(&end)
                .map_err(|why| NotFollowed { link, why })?;
        }
        Ok(real)
    }

    /// Whether he may have made it: of one with several names (hard links) nobody knows who has made which, and the kernel lets anybody
    /// make one where `fs.protected_hardlinks` is off.
    fn is_own(&self, link: &Stat) -> bool {
        (link.uid == self.uid || link.links > 1) && self.uid != 0
    }

    /// Whether a link of his own may be on the way to a mailbox, or to the directory that it would be in.
    fn judge_end(&self, end: &Stat) -> Result<(), Why> {
        let is_lent = self.lent.contains(&end.gid) && end.mode & 0o002 == 0;
        match is_lent && end.uid != self.uid {
            false => Ok(()),
            true => Err(Why::Refused(format!(
                "may be of uid {}, who delivers, and only gid {} of mail_access_groups opens what it leads to: a link to that is root's, or its owner's, and has one name",
                self.uid, end.gid
            ))),
        }
    }

    fn check_link(&self, link: &Path, own: &Stat) -> Result<PathBuf, NotFollowed> {
        let not_followed = |why: Why| NotFollowed {
            link: link.to_owned(),
            why,
        };
        let look = || Ok((dir::stat(link)?, link.canonicalize()?));
        let (target, real) = look().map_err(|error| not_followed(Why::of(error)))?;
        self.judge(own, &target, &real).map_err(not_followed)?;
        Ok(real)
    }

    /// Whether a symlink may lead to `real`.
    fn judge(&self, link: &Stat, target: &Stat, real: &Path) -> Result<(), Why> {
        let uid = self.uid;
        if ![0, uid, target.uid].contains(&link.uid) {
            return Err(Why::Refused(format!(
                "belongs to uid {}: not to root, nor to uid {uid}, who delivers, nor to uid {}, who has what it leads to",
                link.uid, target.uid
            )));
        }
        if self.is_own(link) {
            self.judge_end(target)?;
        }
        let mut unknown = None;
        for root in &self.mail_roots {
            match root.canonicalize() {
                Ok(root) if real.starts_with(&root) => return Ok(()),
                Err(error) => unknown = Some(Why::of(error)).filter(Why::is_unknown).or(unknown),
                Ok(_) => {}
            }
        }
        Err(unknown.unwrap_or_else(|| {
            let real = real.display();
            Why::Refused(format!(
                "leads to {real}, which is below none of delivery.mail_roots"
            ))
        }))
    }

    /// Opens the directory of a mailbox by this rule: step by step, and each symlink is judged by what has been opened.
    pub fn open(&self, root: &Path, mailbox: &Path) -> io::Result<Dir> {
        let (base, components) = way(root, mailbox);
        let (dir, own) = self.walk(base, &components)?;
        if let Some(link) = own {
            let judged = self.judge_end(&dir.stat()?);
            judged.map_err(|why| refused(&link, why))?;
        }
        Ok(dir)
    }

    /// The directory that a mailbox which is a file lies in, opened, and its name there. A symlink to it has been followed; the
    /// file may be missing.
    pub fn open_holder(&self, root: &Path, mailbox: &Path) -> io::Result<(Dir, PathBuf)> {
        let (base, mut components) = way(root, mailbox);
        let name = components.pop().ok_or(ErrorKind::IsADirectory)?;
        let (dir, own) = self.walk(base, &components)?;
        let link = match dir.stat_name(name) {
            Ok(stat) if stat.is_link => stat,
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            found => {
                if let Some(link) = own {
                    let end = found.or_else(|_| dir.stat())?;
                    let judged = self.judge_end(&end);
                    judged.map_err(|why| refused(&link, why))?;
                }
                return Ok((dir, mailbox.to_owned()));
            }
        };
        let path = dir.real_path()?.join(name);
        let real = path.canonicalize()?;
        let (Some(folder), Some(file)) = (real.parent(), real.file_name()) else {
            return Err(ErrorKind::IsADirectory.into());
        };
        let holder = Dir::open(folder)?;
        let (target, real) = (holder.stat_name(file)?, holder.real_path()?.join(file));
        let judged = self.judge(&link, &target, &real).and(match &own {
            Some(_) => self.judge_end(&target),
            None => Ok(()),
        });
        judged.map_err(|why| refused(&path, why))?;
        is_still(&dir, name, &link, &path)?;
        Ok((holder, real))
    }

    /// The directory at the end, and the first link of his own on the way.
    fn walk(&self, base: &Path, components: &[&OsStr]) -> io::Result<(Dir, Option<PathBuf>)> {
        let (mut dir, mut own) = (Dir::open(base)?, None);
        for name in components {
            dir = match dir.open_dir(name) {
                Err(error) if is_no_directory(&error) => self.open_link(&dir, name, &mut own)?,
                opened => opened?,
            };
        }
        Ok((dir, own))
    }

    fn open_link(&self, dir: &Dir, name: &OsStr, own: &mut Option<PathBuf>) -> io::Result<Dir> {
        let link = dir.stat_name(name)?;
        if !link.is_link {
            // By now: what it is next is not followed unjudged.
            return dir.open_dir(name);
        }
        let opened = dir.open_dir_through(name)?;
        let judged = self.judge(&link, &opened.stat()?, &opened.real_path()?);
        let path = dir.real_path()?.join(name);
        judged.map_err(|why| refused(&path, why))?;
        is_still(dir, name, &link, &path)?;
        if self.is_own(&link) {
            own.get_or_insert(path);
        }
        Ok(opened)
    }
}

/// An error when the link that was judged is not the one that was followed.
fn is_still(dir: &Dir, name: &OsStr, link: &Stat, path: &Path) -> io::Result<()> {
    let now = dir.stat_name(name)?;
    // An inode number is soon another's; a time of change with it is not.
    match (now.identity(), now.changed) == (link.identity(), link.changed) {
        true => Ok(()),
        false => Err(refused(path, Why::Refused("is another one by now".into()))),
    }
}

fn refused(link: &Path, why: Why) -> io::Error {
    let link = link.to_owned();
    match why {
        Why::Unknown(error) => error,
        why => io::Error::other(NotFollowed { link, why }.to_string()),
    }
}

/// Where the admin's part of the way ends, and the names behind it.
fn way<'a>(root: &'a Path, mailbox: &'a Path) -> (&'a Path, Vec<&'a OsStr>) {
    let base = match mailbox.starts_with(root) {
        true => root,
        false => mailbox.parent().unwrap_or(root),
    };
    let names = mailbox.strip_prefix(base).unwrap_or(mailbox);
    (base, names.iter().collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};

    use super::*;
    use crate::sys::{credentials, fault_point};

    /// `link -> target`, by way of `link`, from `home/alice/Maildir` to `.Box`.
    #[test]
    fn what_is_followed() {
        let rows = [
            (".Box", "../../bob/Maildir/.Work", None),
            (".Box", "ROOT/home/bob/Maildir/.Work", None),
            (".Box", ".Other", None),
            (".Box", "ROOT/chain", None),
            (".Box", "ROOT/etc", Some("leads to")),
            (".Box", "ROOT/home/bob/Maildir/.Out", Some("leads to")),
            (".Box", "/proc/self/root/etc", Some("leads to")),
            (".Box", "/", Some("leads to")),
            (".Box", "ROOT/home2", Some("leads to")),
            (".Box", "nowhere", Some("leads nowhere")),
            (".Box", ".Box", Some("cannot be followed")),
            ("sub", "../../bob/Maildir", None),
            ("sub", "ROOT/etc", Some("leads to")),
        ];
        for (name, target, want) in rows {
            let scratch = tempfile::tempdir().unwrap();
            let path = |below: &str| scratch.path().join(below);
            for folder in [
                "etc",
                "home2",
                "home/bob/Maildir/.Work",
                "home/alice/Maildir/.Other",
            ] {
                fs::create_dir_all(path(folder)).unwrap();
            }
            symlink(path("etc"), path("home/bob/Maildir/.Out")).unwrap();
            symlink(path("home/bob/Maildir/.Work"), path("chain")).unwrap();
            let root = path("home/alice/Maildir");
            let text = scratch.path().to_str().unwrap();
            symlink(target.replace("ROOT", text), root.join(name)).unwrap();
            let mailbox = match name {
                "sub" => root.join("sub/.Work"),
                name => root.join(name),
            };
            let links = Links {
                uid: credentials::effective().uid,
                lent: Vec::new(),
                mail_roots: vec![path("home")],
            };
            let checked = links.check(&root, &mailbox);
            let why = checked.map(drop).map_err(|it| it.why.to_string());
            let opened = links.open(&root, &mailbox);
            assert_eq!(
                opened.is_ok(),
                want.is_none(),
                "{name} -> {target}: {opened:?}"
            );
            match want {
                None => assert_eq!(why, Ok(()), "{name} -> {target}"),
                Some(want) => assert!(
                    why.as_ref().is_err_and(|why| why.contains(want)),
                    "{name} -> {target}: {why:?}"
                ),
            }
            // Whatever leads to the root is the admin's.
            let link = path("elsewhere");
            symlink(&root, &link).unwrap();
            let links = Links {
                mail_roots: Vec::new(),
                ..links
            };
            assert_eq!(links.check(&link, &link.join(".Other")).unwrap(), None);
            links.open(&link, &link.join(".Other")).unwrap();
        }
    }

    /// Whatever fails for now, the rule has said nothing.
    #[test]
    fn a_disk_that_fails_refuses_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let (root, target) = (scratch.path().join("root"), scratch.path().join("target"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&target).unwrap();
        symlink(&target, root.join(".Box")).unwrap();
        let links = Links {
            uid: credentials::effective().uid,
            lent: Vec::new(),
            mail_roots: vec![scratch.path().to_owned()],
        };
        // EIO, ESTALE, EACCES
        for (errno, is_unknown) in [(5, true), (116, true), (13, false)] {
            fault_point::arm(1, errno);
            let error = links.check(&root, &root.join(".Box")).unwrap_err();
            assert!(!fault_point::disarm());
            assert_eq!(error.why.is_unknown(), is_unknown, "{error}");
        }
    }

    #[test]
    fn whose_links_are_followed() {
        if !credentials::is_root() {
            return;
        }
        const LENT: u32 = 2000;
        for (owner, uid, target_uid, gid, mode, is_followed) in [
            (0, 1000, 1000, 0, 0o770, true),
            (1000, 1000, 1001, 0, 0o770, true),
            (1001, 1000, 1001, 0, 0o770, true),
            (1002, 1000, 1001, 0, 0o770, false),
            (1002, 0, 0, 0, 0o770, false),
            (1000, 1000, 0, LENT, 0o770, false),
            (1000, 1000, 0, LENT, 0o777, true),
            (1000, 1000, 0, LENT + 1, 0o770, true),
            (1000, 1000, 1000, LENT, 0o770, true),
            (0, 1000, 0, LENT, 0o770, true),
            (1001, 1000, 1001, LENT, 0o770, true),
        ] {
            let scratch = tempfile::tempdir().unwrap();
            let (link, target) = (scratch.path().join(".Box"), scratch.path().join("target"));
            fs::create_dir(&target).unwrap();
            lchown(&target, Some(target_uid), Some(gid)).unwrap();
            fs::set_permissions(&target, fs::Permissions::from_mode(mode)).unwrap();
            symlink(&target, &link).unwrap();
            lchown(&link, Some(owner), None).unwrap();
            let links = Links {
                uid,
                lent: vec![LENT],
                mail_roots: vec![scratch.path().to_owned()],
            };
            let checked = links.check(scratch.path(), &link);
            let case = format!("{owner} {uid} {target_uid} {gid} {mode:o}: {checked:?}");
            assert_eq!(checked.is_ok(), is_followed, "{case}");
            let opened = links.open(scratch.path(), &link);
            assert_eq!(opened.is_ok(), is_followed, "{case}");
        }
    }
}
