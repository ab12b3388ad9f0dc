//! What the ACL files of one user say, and why he may share more than that.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Answer, text};
use crate::config::Config;
use crate::deliver::{self, Root, Settings};
use crate::mailbox::path::RootRule;
use crate::sharing::{Share, rebuild};
use crate::sys::{credentials, dir, process};
use crate::user::User;

/// What was found.
#[derive(Default)]
pub struct Seen {
    pub shares: BTreeSet<Share>,
    /// Not all could be seen: no row of his is surplus.
    pub unseen: Option<Unseen>,
}

/// Why not.
pub enum Unseen {
    /// It is meant to be so: another server has his mailboxes, or only Dovecot knows some of them.
    Elsewhere(String),
    /// A root is missing. Whoever has no rows has no mail yet.
    NoRoot(String),
    /// Nobody can tell now.
    Unreadable(String),
}

impl Unseen {
    pub fn why(&self) -> &str {
        match self {
            Unseen::Elsewhere(why) | Unseen::NoRoot(why) | Unseen::Unreadable(why) => why,
        }
    }
}

/// Of a user who may be on another server, or no more: then he shares nothing.
pub fn of(config: &Config, name: &str) -> Answer<Seen> {
    let settings = &config.delivery;
    let Some(user) = settings.userdbs.find(name).map_err(text)? else {
        return Ok(Seen::default());
    };
    let placement = settings.placement.as_ref();
    let node = placement.map(|it| it.of_user(settings, &user)).transpose();
    Ok(match node.map_err(text)?.flatten() {
        Some(node) => Seen {
            shares: BTreeSet::new(),
            unseen: Some(Unseen::Elsewhere(format!("{node} has his mailboxes"))),
        },
        None => here(settings, &user),
    })
}

/// Of a user whose mailboxes are here, read as himself where we are root.
pub fn here(settings: &Settings, user: &User) -> Seen {
    found(settings, user).unwrap_or_else(|why| Seen {
        shares: BTreeSet::new(),
        unseen: Some(Unseen::Unreadable(why)),
    })
}

fn found(settings: &Settings, user: &User) -> Result<Seen, String> {
    let (roots, dovecots) = deliver::roots_of(settings, user).map_err(|it| it.to_string())?;
    let identity = credentials::is_root().then(|| user.credentials.clone());
    let read = move |out: &mut io::BufWriter<std::fs::File>| {
        let found = read(user, &roots).map_err(|error| error.to_string());
        serde_json::to_writer(out, &found).map_err(io::Error::from)
    };
    let answer = process::ask_child(identity.as_ref(), read).map_err(|error| error.to_string())?;
    let answer: Result<Found, String> =
        serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
    let (shares, problems, missing) = answer?;
    for problem in problems {
        let _ = writeln!(io::stderr(), "postroom share: shares nothing: {problem}");
    }
    let missing = missing.map(|root| Unseen::NoRoot(format!("{} is missing", root.display())));
    let of_dovecot = || {
        let names = dovecots.join(", ");
        let why = format!("only Dovecot knows the mailboxes of namespace {names}");
        (!dovecots.is_empty()).then_some(Unseen::Elsewhere(why))
    };
    Ok(Seen {
        shares,
        unseen: missing.or_else(of_dovecot),
    })
}

/// Shares, ACL files that make no sense, and a root that is gone.
type Found = (BTreeSet<Share>, Vec<String>, Option<PathBuf>);

fn read(user: &User, roots: &[Root]) -> io::Result<Found> {
    let (mut shares, mut problems) = (BTreeSet::new(), Vec::new());
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for root in roots {
        let path = &root.paths.root;
        match dir::stat(path) {
            Ok(_) => there.push(path.as_path()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                missing.push(root);
                continue;
            }
            Err(error) => return Err(io::Error::other(format!("{}: {error}", path.display()))),
        }
        let (more, odd) = rebuild::shares_of(&user.name, &root.paths, root.layout, root.driver)?;
        shares.extend(more);
        problems.extend(odd);
    }
    let lost = missing
        .into_iter()
        .find(|root| !is_unmade(root, user, &there));
    Ok((shares, problems, lost.map(|root| root.paths.root.clone())))
}

/// Another root is there below the same directory of the user's own, his home or one with his name: this one has had no mail yet.
fn is_unmade(root: &Root, user: &User, there: &[&Path]) -> bool {
    let paths = &root.paths;
    if dir::stat(&paths.inbox).is_ok() {
        return false;
    }
    let local = user.name.split('@').next();
    let names = [Some(user.name.as_str()), local];
    let base = root.base.as_deref();
    let has_his_name = |above: &Path| {
        let own = base.and_then(|base| above.strip_prefix(base).ok());
        let mut parts = own.into_iter().flat_map(Path::components);
        parts.any(|part| names.contains(&part.as_os_str().to_str()))
    };
    let in_his_home = |above: &Path| {
        let home = user.home.as_ref();
        paths.root_rule == RootRule::Home && home.is_some_and(|it| above.starts_with(it))
    };
    dir::nearest_existing(&paths.root).is_ok_and(|(above, _)| {
        let is_his = in_his_home(&above) || has_his_name(&above);
        is_his && there.iter().any(|it| it.starts_with(&above))
    })
}
