//! What was made for a mailbox, until it is in use: undone when the making or the delivery fails, unless somebody has stored
//! something in it meanwhile.

use std::io;
use std::path::Path;

use super::{keywords, uidlist};
use crate::fault::Fault;
use crate::mailbox::acl::FILE as ACL_FILE;
use crate::sys::dir::{self, Dir};

/// Tells other Maildir++ software that a directory is a folder of the one above.
pub(super) const FOLDER_MARK: &str = "maildirfolder";
/// What a delivery writes beside the messages.
const CONTROL: [&str; 2] = [uidlist::FILE, keywords::FILE];

/// What was made for a mailbox, in its order. Dropped before [`Created::keep`], it is removed again.
#[derive(Debug, Default)]
pub struct Created {
    made: Vec<Made>,
    /// The mailbox, seen by others.
    mailbox: Option<Revealed>,
}

#[derive(Debug)]
struct Made {
    parent: Dir,
    name: String,
    is_dir: bool,
}

/// A directory that has got its name, and the one that it was made under.
#[derive(Debug)]
struct Revealed {
    parent: Dir,
    name: String,
    hidden: String,
    /// Device and inode.
    identity: (u64, u64),
}

impl Created {
    /// `name` has been made in `parent`, after all that was added before.
    pub(super) fn add(&mut self, parent: &Dir, name: &str, is_dir: bool) {
        self.made.push(Made {
            parent: parent.clone(),
            name: name.to_owned(),
            is_dir,
        });
    }

    /// The mailbox is complete and in use.
    pub fn keep(mut self) {
        self.forget();
    }

    fn forget(&mut self) {
        self.made.clear();
        self.mailbox = None;
    }

    /// Gives an assembled directory its name. Where another delivery was faster its directory stays, and what was made here
    /// goes.
    pub(super) fn reveal(
        &mut self,
        hidden: &str,
        path: &Path,
        is_mailbox: bool,
    ) -> Result<(), Fault> {
        let failed = |error: io::Error| Fault::io(format!("create {}", path.display()), &error);
        let made = self.made.iter_mut().find(|made| made.name == hidden);
        let (Some(made), Some(name)) = (made, path.file_name()) else {
            return Ok(());
        };
        let name = name.to_string_lossy().into_owned();
        let stat = made.parent.stat_name(hidden).map_err(failed)?;
        let parent = made.parent.clone();
        let revealed = Revealed {
            parent: parent.clone(),
            name: name.clone(),
            hidden: hidden.to_owned(),
            identity: stat.identity(),
        };
        match parent.rename_dir(hidden, &name) {
            Ok(()) => {
                made.name = name;
                // From here on others see it, whatever fails.
                self.mailbox = is_mailbox.then_some(revealed);
                parent.sync().map_err(failed)
            }
            Err(error) if dir::is_taken(&error) => {
                drop(std::mem::take(self));
                // The other may not have come so far yet.
                parent.sync().map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }
}

impl Revealed {
    /// Nobody sees it any more, and nothing is in it but what we have made. False: it is somebody else's by now.
    fn hide(&self) -> bool {
        if !self.is_ours(&self.name).unwrap_or(false)
            || self.parent.rename_dir(&self.name, &self.hidden).is_err()
        {
            return false;
        }
        // Whoever had it open may have stored something since.
        match self.is_ours(&self.hidden) {
            Ok(true) => true,
            _ => !self.show() && self.is_ours(&self.hidden).unwrap_or(false),
        }
    }

    /// Whether the directory of this name is the one that was made, without anybody's message: that has the letters and the UIDs
    /// of its control files.
    fn is_ours(&self, name: &str) -> io::Result<bool> {
        const KNOWN: [&str; 5] = ["cur", "new", "tmp", FOLDER_MARK, ACL_FILE];
        let dir = self.parent.open_dir(name)?;
        let stat = dir.stat()?;
        let names = dir.names()?;
        let is_known = |name: &&String| KNOWN.contains(&name.as_str());
        let (known, control): (Vec<_>, Vec<_>) = names.iter().partition(is_known);
        let is_control = |name: &&String| CONTROL.contains(&name.as_str());
        if stat.identity() != self.identity || !control.iter().all(is_control) {
            return Ok(false);
        }
        for part in known
            .iter()
            .filter(|name| ["cur", "new"].contains(&name.as_str()))
        {
            if !dir.open_dir(part)?.is_empty()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Its parts are gone: nobody can store in it any more.
    fn remove_control_files(&self) {
        if let Ok(dir) = self.parent.open_dir(&self.hidden) {
            CONTROL.iter().for_each(|name| drop(dir.unlink(name)));
        }
    }

    /// False: somebody has made another mailbox of this name meanwhile. Messages of others that are in this one go there: they
    /// were answered for by this name.
    fn show(&self) -> bool {
        let shown = self.parent.rename_dir(&self.hidden, &self.name).is_ok();
        if !shown {
            // What cannot be moved stays, and is not removed.
            let _ = self.hand_over();
        }
        shown
    }

    fn hand_over(&self) -> io::Result<()> {
        let hidden = self.parent.open_dir(&self.hidden)?;
        let there = self.parent.open_dir(&self.name)?;
        for part in ["new", "cur"] {
            let (from, to) = (hidden.open_dir(part)?, there.open_dir(part)?);
            for name in from.names()? {
                // Letters are keywords of the mailbox that it was in.
                let (base, flags) = name.split_once(":2,").unwrap_or((&name, ""));
                let flags: String = flags.chars().filter(char::is_ascii_uppercase).collect();
                let new = match part {
                    "cur" => format!("{base}:2,{flags}"),
                    _ => name.clone(),
                };
                from.rename(&name, &to, &new)?;
            }
            to.sync()?;
        }
        Ok(())
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        let mailbox = self.mailbox.take();
        match &mailbox {
            Some(mailbox) if !mailbox.hide() => return self.forget(),
            Some(mailbox) => {
                let made = self.made.iter_mut().rev();
                let own = made.filter(|made| made.is_dir && made.name == mailbox.name);
                own.take(1)
                    .for_each(|made| made.name = mailbox.hidden.clone());
            }
            None => {}
        }
        // Latest first: `new`, which another delivery may have begun to use. Then everything stays, its ACL above all.
        for made in self.made.drain(..).rev() {
            if let Some(mailbox) = mailbox.as_ref().filter(|it| it.hidden == made.name) {
                mailbox.remove_control_files();
            }
            let removed = match made.is_dir {
                true => made.parent.rmdir(&made.name),
                false => made.parent.unlink(&made.name),
            };
            if removed.is_err() {
                if let Some(mailbox) = &mailbox {
                    mailbox.show();
                }
                return;
            }
        }
    }
}
