//! Where the mailboxes of a user or of a namespace lie.

use std::path::PathBuf;

use super::resolve::resolve;
use super::settings::Settings;
use super::targets::Targets;
use crate::fault::{Code, Fault};
use crate::mailbox::acl::store;
use crate::mailbox::location::{Driver, Layout, Location};
use crate::mailbox::name::StorageName;
use crate::mailbox::namespace::{Kind, Namespace};
use crate::mailbox::path::Paths;
use crate::maildir::list::exists;
use crate::message::Recipient;
use crate::text::template::Variables;
use crate::user::User;

/// What a mailbox is by the name that `user` has for it.
pub fn mailbox_of(settings: &Settings, user: &str, mailbox: &str) -> Result<Targets, Fault> {
    let recipient = Recipient {
        mailbox: Some(mailbox.into()),
        ..Recipient::of_user(user)
    };
    resolve(settings, settings, &recipient, None)
}

/// The root of a private namespace, as INBOX has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Root {
    pub paths: Paths,
    pub layout: Layout,
    pub driver: Driver,
    /// What is the same for all users at the start of its path.
    pub base: Option<PathBuf>,
}

/// Where the user's own mailboxes lie. Second: those of his namespaces of which only Dovecot knows.
pub fn roots_of(settings: &Settings, user: &User) -> Result<(Vec<Root>, Vec<String>), Fault> {
    let namespaces = settings.namespaces_of(user)?;
    let roots = own_roots_of(settings, &namespaces, user)?.into_iter();
    let mut roots: Vec<_> = roots
        .map(|(namespace, paths)| Root {
            paths,
            layout: namespace.location.layout,
            driver: namespace.location.driver,
            base: namespace.location.path.fixed_part().map(PathBuf::from),
        })
        .collect();
    roots.dedup();
    let dovecots = own(&namespaces).filter_map(|it| {
        let format = it.location.dovecots()?;
        Some(format!("{} ({format})", it.name))
    });
    Ok((roots, dovecots.collect()))
}

/// The private ones of these, each once.
pub fn own(namespaces: &[Namespace]) -> impl Iterator<Item = &Namespace> {
    let own = namespaces.iter();
    own.filter(|it| it.kind == Kind::Private && it.alias_for.is_none())
}

/// His private namespaces, of these, with the place of each; none of those that only Dovecot writes.
pub fn own_roots_of<'a>(
    settings: &Settings,
    namespaces: &'a [Namespace],
    user: &User,
) -> Result<Vec<(&'a Namespace, Paths)>, Fault> {
    let home = home_of(user)?;
    let variables = Variables {
        user: &user.name,
        home: home.as_deref(),
        hostname: &settings.hostname,
        ..Variables::default()
    };
    let own = own(namespaces).filter(|it| it.location.dovecots().is_none());
    let mut roots = Vec::new();
    for namespace in own {
        match Paths::of(&namespace.location, &StorageName::Inbox, &variables) {
            Ok(paths) => roots.push((namespace, paths)),
            Err(why) => {
                let doing = format!("find the mailboxes of {}", user.name);
                return Err(Fault::new(Code::CannotTell, doing, format!("{why:?}")));
            }
        }
    }
    Ok(roots)
}

/// Why nobody but Dovecot, or nobody at all, can look at the files of this namespace's mailboxes.
pub fn is_closed(namespace: &Namespace) -> Option<String> {
    match (namespace.location.dovecots(), namespace.location.driver) {
        (Some(format), _) => Some(format!("only Dovecot knows its mailboxes ({format})")),
        (None, Driver::Mbox) => {
            Some("its mailboxes are mboxes, which have no files of their own to look at".to_owned())
        }
        (None, _) => None,
    }
}

/// The place of a namespace's INBOX as `user` has it; a public one needs none.
pub fn inbox_of(
    settings: &Settings,
    namespace: &Namespace,
    user: Option<&User>,
) -> Result<Paths, Fault> {
    let closed = is_closed(namespace).or_else(|| {
        let needs_user = user.is_none() && namespace.location.uses_user();
        needs_user.then(|| "its paths need a user".to_owned())
    });
    match closed {
        Some(why) => Err(failed(namespace, why)),
        None => place(settings, namespace, user, &StorageName::Inbox),
    }
}

fn failed(namespace: &Namespace, why: String) -> Fault {
    let doing = format!("find the mailboxes of namespace {}", namespace.name);
    Fault::new(Code::CannotTell, doing, why)
}

fn place(
    settings: &Settings,
    namespace: &Namespace,
    user: Option<&User>,
    name: &StorageName,
) -> Result<Paths, Fault> {
    let home = user.map(home_of).transpose()?.flatten();
    let variables = Variables {
        user: user.map_or("", |user| &user.name),
        home: home.as_deref(),
        hostname: &settings.hostname,
        ..Variables::default()
    };
    // Each user's own flags are not looked at.
    let location = &Location {
        index_private_path: None,
        ..namespace.location.clone()
    };
    Paths::of(location, name, &variables).map_err(|why| failed(namespace, format!("{why:?}")))
}

/// The mailboxes that are there below the root of a namespace, as `user` has them; a public one needs none.
pub fn mailboxes_of(
    settings: &Settings,
    namespace: &Namespace,
    user: Option<&User>,
) -> Result<Vec<Paths>, Fault> {
    let inbox = inbox_of(settings, namespace, user)?;
    let layout = namespace.location.layout;
    let names = match store::mailboxes(&inbox, layout) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(|error| failed(namespace, error.to_string()))?,
    };
    let mut all = Vec::new();
    for (name, _) in names {
        let paths = match name.as_str() {
            "INBOX" => inbox.clone(),
            name => {
                let levels = name.split(layout.separator()).map(str::to_owned).collect();
                place(settings, namespace, user, &StorageName::Box(levels))?
            }
        };
        // A root may hold mailboxes and be none. What cannot be looked at is the caller's to report.
        if !matches!(exists(&paths.mailbox, layout, name == "INBOX"), Ok(None)) {
            all.push(paths);
        }
    }
    Ok(all)
}

/// The home as text; one that is not UTF-8 cannot be put into a path setting.
pub fn home_of(user: &User) -> Result<Option<String>, Fault> {
    let text = |home: &PathBuf| {
        home.to_str().map(str::to_owned).ok_or_else(|| {
            Fault::new(
                Code::CannotTell,
                format!("use the home of {}", user.name),
                format!("{home:?} is not UTF-8"),
            )
        })
    };
    user.home.as_ref().map(text).transpose()
}
