//! The doing, for an mbox: a message behind the others, together with those that wait for it, and Dovecot's index told of them where it
//! is in step with the file.

mod batch;
mod step;

use std::sync::Arc;

use super::Core;
use super::announce;
use super::carry_out::{Heard, Transaction};
use super::header::added_headers;
use super::inspect::Plan;
use super::outcome::Saved;
use super::retry::Retry;
use super::settings::MailFsync;
use crate::fault::Fault;
use crate::maildir::create;
use crate::mbox::from_line::from_line;
use crate::mbox::open::{Demands, Mbox};
use crate::message::{Message, Recipient};

/// A message that waits for its mbox.
#[derive(Debug)]
pub struct Addition {
    mbox: Mbox,
    demands: Demands,
    plan: Arc<Plan>,
    retry: Retry,
    heard: Heard,
    message: Arc<Message>,
    from_line: String,
    /// Fields that come before its own.
    header: Vec<u8>,
}

/// Adds the message to the mbox of the plan. On any failure the file is as it was.
pub fn add(
    core: &Core,
    transaction: &Transaction,
    recipient: &Recipient,
    plan: Plan,
    retry: &Retry,
) -> Result<Saved, Fault> {
    let folders = match (&plan.create, plan.target.paths.mailbox.parent()) {
        (Some(permission), Some(folder)) => Some(create::directory(folder, permission)?.1),
        _ => None,
    };
    let plan = Arc::new(plan);
    let addition = Addition::new(core, transaction, recipient, &plan, retry)?;
    let key = addition.mbox.key()?;
    let store = |batch| batch::add(core, batch);
    let mut saved = core.mboxes.join(key, addition, store)?;
    if let Some(folders) = folders {
        folders.keep();
        let told = announce::to_list_index(core, &plan.target.paths);
        saved.remarks.extend(told);
        saved
            .remarks
            .extend(announce::to_subscriptions(&plan.target));
    }
    Ok(saved)
}

impl Addition {
    fn new(
        core: &Core,
        transaction: &Transaction,
        recipient: &Recipient,
        plan: &Arc<Plan>,
        retry: &Retry,
    ) -> Result<Addition, Fault> {
        let (settings, message) = (&core.settings, transaction.shared_message());
        let paths = &plan.target.paths;
        let shown = settings.delivery_address.of(recipient);
        let locking = settings.mbox.locking.clone();
        let demands = Demands {
            locking: match paths.mailbox.is_symlink() {
                true => locking.of_linked(),
                false => locking,
            },
            quoting: settings.mbox.quoting,
            sync: settings.mail_fsync != MailFsync::Never,
            make: plan.create.clone(),
            owner: plan.target.own_inbox.then_some(plan.links.uid),
        };
        let holder = plan.links.open_holder(&paths.root, &paths.mailbox);
        let doing = || format!("open {}", paths.mailbox.display());
        let (holder, path) = holder.map_err(|error| Fault::io(doing(), &error))?;
        Ok(Addition {
            mbox: Mbox::at(holder, path)?,
            demands,
            plan: Arc::clone(plan),
            retry: retry.clone(),
            heard: transaction.heard().clone(),
            from_line: from_line(&message.envelope.sender, &jiff::Zoned::now()),
            header: added_headers(message, shown.as_ref(), settings.adds_received),
            message: Arc::clone(message),
        })
    }

    /// Whether one lock does for both, and one look at one index.
    fn is_alike(&self, other: &Addition) -> bool {
        self.mbox.path() == other.mbox.path()
            && self.demands == other.demands
            && self.plan.target.paths.index == other.plan.target.paths.index
    }

    /// Its answer, where it needs no bytes in the mbox `identity`: it has them, or nobody hears of it any more. Asked under the lock.
    fn is_known(&self, identity: (u64, u64)) -> Option<Result<Saved, Fault>> {
        match self.heard.check() {
            Err(fault) => Some(Err(fault)),
            Ok(()) => self.retry.find(&self.plan, identity).map(Ok),
        }
    }
}

/// What waits for one mbox at once, stored as one batch, for tests without threads.
#[cfg(test)]
pub fn add_together(
    core: &Core,
    waiting: &[(&Transaction, &Recipient, Retry)],
) -> Vec<Result<Saved, Fault>> {
    let addition = |(transaction, recipient, retry): &(&Transaction, &Recipient, Retry)| {
        let head = transaction.message().body.head();
        let targets =
            super::resolve::resolve(&core.settings, &core.settings, recipient, Some(head));
        let plan = super::inspect::inspect(&core.settings, &targets?, core.identity(), None).0?;
        Addition::new(core, transaction, recipient, &Arc::new(plan), retry)
    };
    let batch: Result<Vec<_>, Fault> = waiting.iter().map(addition).collect();
    match batch {
        Ok(batch) => batch::add(core, batch),
        Err(fault) => waiting.iter().map(|_| Err(fault.clone())).collect(),
    }
}
