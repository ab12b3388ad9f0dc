//! A mailbox that a delivery has made: who is told of it. What fails here is for the log.

use std::io::ErrorKind;

use super::Core;
use super::targets::Target;
use crate::index::{Log, Pair, Transaction, log};
use crate::mailbox::path::Paths;
use crate::mailbox::subscriptions;
use crate::maildir::create;
use crate::sys::dir::Dir;

/// Dovecot's index of the namespace's mailboxes, where there is one, is not up to date. Answers what went wrong.
pub fn to_list_index(core: &Core, paths: &Paths) -> Option<String> {
    let (root, method) = paths.index_root.as_deref().zip(core.settings.index_log)?;
    let mut transaction = Transaction::default();
    transaction.refresh_list();
    let log = match Dir::open(root) {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        other => other,
    };
    let lock = |root| Log::lock(&root, Pair::LIST, method, &core.walks, log::TIMEOUT);
    let told = log.and_then(lock).and_then(|log| match log {
        Some(mut log) => log.append(transaction),
        None => Ok(()),
    });
    let why = told.err()?;
    Some(format!(
        "{} is not told of the new mailbox: {why}",
        Pair::LIST.log()
    ))
}

/// The user's subscriptions, where a setting asks for that. Answers what went wrong.
pub fn to_subscriptions(target: &Target) -> Option<String> {
    let wanted = target.subscription.as_ref()?;
    let added = create::control_root(&wanted.paths)
        .map_err(|fault| fault.to_string())
        .and_then(|made| {
            subscriptions::add(&wanted.paths.control_root, &wanted.filename, &wanted.name)?;
            made.keep();
            Ok(())
        });
    let why = added.err()?;
    let file = wanted.file();
    Some(format!(
        "{} is left without the new mailbox: {why}",
        file.display()
    ))
}
