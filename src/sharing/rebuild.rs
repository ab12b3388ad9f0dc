//! The rows that follow from the ACL files of a tree.

use std::collections::BTreeSet;
use std::io;

use super::{Share, With};
use crate::mailbox::acl::{Acl, FILE, Identifier, read, store};
use crate::mailbox::location::{Driver, Layout};
use crate::mailbox::path::Paths;

/// What `owner` shares out of his tree. A file that makes no sense shares nothing, and is named; one that cannot be
/// looked at may share anything, and is an error.
pub fn shares_of(
    owner: &str,
    paths: &Paths,
    layout: Layout,
    driver: Driver,
) -> io::Result<(BTreeSet<Share>, Vec<String>)> {
    let (mut shares, mut problems) = (BTreeSet::new(), Vec::new());
    let of_root = |error: io::Error| {
        let why = format!("{}: {error}", paths.root.display());
        io::Error::other(why)
    };
    for (_, directory) in store::of_files(paths, layout, driver).map_err(of_root)? {
        let text = match read(&directory) {
            Ok(Some(text)) => text,
            Ok(None) => continue,
            Err(error) => {
                let file = directory.join(FILE);
                let why = format!("{}: {}", file.display(), error.why);
                return Err(io::Error::other(why));
            }
        };
        match Acl::parse(&text, FILE) {
            Ok(acl) => shares.extend(with(&acl, owner).map(|with| Share {
                from: owner.to_owned(),
                with,
            })),
            Err(error) => {
                let file = directory.join(FILE);
                problems.push(format!("{}:{}: {}", file.display(), error.line, error.why));
            }
        }
    }
    Ok((shares, problems))
}

/// Whoever is positively given `l`, but the owner.
fn with<'a>(acl: &'a Acl, owner: &'a str) -> impl Iterator<Item = With> + 'a {
    let seen = acl.entries.iter().filter(|entry| {
        entry
            .positive
            .as_ref()
            .is_some_and(|rights| rights.lookup())
    });
    seen.filter_map(move |entry| match &entry.identifier {
        Identifier::Anyone | Identifier::Authenticated => Some(With::Anyone),
        Identifier::Group(group) | Identifier::GroupOverride(group) => {
            Some(With::Group(group.clone()))
        }
        Identifier::User(user) if user != owner => Some(With::User(user.clone())),
        Identifier::User(_) | Identifier::Owner => None,
    })
}
