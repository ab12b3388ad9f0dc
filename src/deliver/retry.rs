//! A message that was stored already: its client has not heard of it, and sends it again.
//!
//! Before a delivery begins the name that its file will have is written down, and behind it what became of it. A retry brings both
//! along: what is known to be stored is; where nobody knows, the file's name decides.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::inspect::Plan;
use super::outcome::{Outcome, Saved};
use crate::fault::{Code, Fault};
use crate::maildir::Maildir;
use crate::sys;
use crate::sys::dir;

/// What is known of earlier deliveries of a message to a recipient.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// The name for the file of this one, without sizes and flags; none: any.
    pub name: Option<String>,
    pub earlier: Option<Earlier>,
    /// Where messages with the same Message-ID are.
    pub alike: Vec<Alike>,
}

/// One that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// The names that its file may have.
    pub names: Vec<String>,
    /// None: nobody knows what became of it.
    pub saved: Option<Saved>,
}

impl Earlier {
    /// The one that is known to be stored; where nobody knows, the file may have a name of either.
    pub fn of_both(one: Option<Earlier>, other: Earlier) -> Earlier {
        match one {
            Some(one) if one.saved.is_some() => one,
            Some(one) if other.saved.is_none() => Earlier {
                names: [other.names, one.names].concat(),
                saved: None,
            },
            _ => other,
        }
    }
}

/// Another message with the same Message-ID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alike {
    /// Device and inode of its mailbox, and its path: inodes are given again.
    pub mailbox: (u64, u64),
    pub place: String,
    /// The name of its file; empty where it has none of its own.
    pub file: String,
    /// Seconds since then.
    pub age: u64,
}

const ALIKE: &str = "a message with its Message-ID is there already";

impl Retry {
    /// Whether nobody knows what became of an earlier one.
    pub fn is_unknown(&self) -> bool {
        self.earlier.as_ref().is_some_and(|it| it.saved.is_none())
    }

    /// What comes of this fault: where there is no room for the message, what was stored before, wherever that was.
    pub fn refused(&self, fault: Fault) -> Outcome {
        let earlier = self.earlier.as_ref();
        match earlier.and_then(|it| it.saved.clone()) {
            Some(saved) if matches!(fault.code, Code::OverQuota | Code::QuotaOfDisk) => {
                Outcome::Saved(again(saved, "it was stored already, and is sent again"))
            }
            _ => Outcome::refused(fault),
        }
    }

    /// What Dovecot was given for this mailbox before, or what was stored elsewhere because it refused.
    pub fn handed_over(&self, plan: &Plan) -> Option<Saved> {
        let saved = self.earlier.as_ref()?.saved.as_ref()?;
        let wanted = &plan.target.mailbox;
        let is_there = saved.is_handed_over && saved.mailbox == *wanted;
        let is_instead = saved
            .instead_of
            .as_ref()
            .is_some_and(|(it, _)| it == wanted);
        let is_same = saved.user == plan.user && (is_there || is_instead);
        is_same.then(|| again(saved.clone(), "it was stored already, and is sent again"))
    }

    /// What was stored before in this mailbox, in what stood in for it, or in the one that it stands in for.
    pub fn find(&self, plan: &Plan, mailbox: (u64, u64)) -> Option<Saved> {
        let is_made = plan.create.is_some();
        let known = self.earlier.as_ref().and_then(|it| it.saved.as_ref());
        // What this delivery has made itself holds nothing yet, whatever had its inode before.
        let is_there = |it: &&Saved| !is_made && it.mailbox_id == mailbox || is_beside(it, plan);
        if let Some(saved) = known.filter(is_there) {
            let why = "it was stored already, and is sent again";
            return Some(again(saved.clone(), why));
        }
        if is_made {
            return None;
        }
        let window = plan.target.alike_window;
        let place = plan.target.place();
        let is_there = |it: &&Alike| it.mailbox == mailbox && it.place == place && it.age < window;
        let alike = self.alike.iter().find(is_there);
        alike.map(|_| again(Saved::nothing(plan, mailbox), ALIKE))
    }

    /// [`Retry::find`] in a Maildir, where names decide what nobody knows. What is found is durable.
    pub fn find_file(&self, plan: &Plan, mailbox: &Maildir) -> Result<Option<Saved>, Fault> {
        // It may have been opened a moment ago: what is said of it is said of what has its name now.
        let is_there = || mailbox.check_name(&plan.target.paths.mailbox);
        if let Some(saved) = self.find(plan, mailbox.identity()) {
            return is_there().map(|()| Some(saved));
        }
        let failed = |error: io::Error| {
            let doing = format!("look for a message in {}", mailbox.path().display());
            Fault::io(doing, &error).in_doubt()
        };
        let look = |names: &[String]| {
            let found = mailbox.find(names).map_err(failed)?;
            if let Some(name) = &found {
                let synced = mailbox.sync_found(name).map_err(failed)?;
                synced.map_err(|error| failed(error).not_durable())?;
                is_there()?;
            }
            Ok(found)
        };
        let nothing = || Saved::nothing(plan, mailbox.identity());
        let place = plan.target.place();
        // A device may have another number since; a mailbox that was made anew has not got the file.
        match &self.earlier {
            Some(Earlier { names, saved: None }) => {
                if let Some(file) = look(names)? {
                    let saved = Saved { file, ..nothing() };
                    let why = "it was stored already, before the server ended";
                    return Ok(Some(again(saved, why)));
                }
            }
            Some(Earlier {
                saved: Some(it), ..
            }) if it.user == plan.user
                && it.place == place
                && !it.file.is_empty()
                && look(std::slice::from_ref(&it.file))?.is_some() =>
            {
                let saved = Saved {
                    mailbox_id: mailbox.identity(),
                    ..it.clone()
                };
                let why = "it was stored already, and is sent again";
                return Ok(Some(again(saved, why)));
            }
            _ => {}
        }
        let window = plan.target.alike_window;
        let is_alike = |it: &&Alike| it.place == place && it.age < window && !it.file.is_empty();
        let alike = self.alike.iter().filter(is_alike);
        let names: Vec<String> = alike.map(|it| it.file.clone()).collect();
        if !names.is_empty() && look(&names)?.is_some() {
            return Ok(Some(again(nothing(), ALIKE)));
        }
        Ok(None)
    }
}

/// Whether the one of the two is in place of the other, and what was stored is still where it was, as far as can be seen.
fn is_beside(saved: &Saved, plan: &Plan) -> bool {
    let is = |instead_of: &Option<(String, String)>, mailbox: &str| {
        instead_of.as_ref().is_some_and(|(it, _)| it == mailbox)
    };
    let is_instead =
        is(&saved.instead_of, &plan.target.mailbox) || is(&plan.instead_of, &saved.mailbox);
    let has_it = |path: &Path| match dir::stat(path) {
        Ok(stat) => stat.identity() == saved.mailbox_id,
        Err(error) => sys::is_read_only(&error),
    };
    let place = Path::new(&saved.place);
    saved.user == plan.user && is_instead && (has_it(place) || has_it(&place.join("new")))
}

fn again(saved: Saved, why: &str) -> Saved {
    Saved {
        is_again: true,
        remarks: vec![why.into()],
        ..saved
    }
}
