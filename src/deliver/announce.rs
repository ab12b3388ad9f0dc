//! A mailbox that a delivery has made: who is told of it. What fails here is for the log.

use super::Core;
use crate::index::{Log, Pair, Transaction};
use crate::mailbox::path::Paths;

/// Dovecot's index of the namespace's mailboxes, where there is one, is not up to date. Answers what went wrong.
pub fn to_list_index(core: &Core, paths: &Paths) -> Option<String> {
    let (root, method) = paths.index_root.as_deref().zip(core.settings.index_log)?;
    let mut transaction = Transaction::default();
    transaction.refresh_list();
    let told = Log::lock(root, Pair::LIST, method, &core.walks).and_then(|log| match log {
        Some(log) => log
            .append(transaction, false)
            .map_err(|error| error.to_string()),
        None => Ok(()),
    });
    let why = told.err()?;
    Some(format!(
        "{} is not told of the new mailbox: {why}",
        Pair::LIST.log()
    ))
}
