//! The doing, for an mbox: one message behind the others.

use super::Core;
use super::carry_out::Transaction;
use super::header::added_headers;
use super::inspect::Plan;
use super::outcome::Saved;
use super::settings::MailFsync;
use crate::fault::Fault;
use crate::maildir::create;
use crate::mbox::append::{Demands, Mbox, Message};
use crate::mbox::from_line::from_line;
use crate::message::Recipient;

/// Adds the message to the mbox of the plan. On any failure the file is as it was.
pub fn add(
    core: &Core,
    transaction: &Transaction,
    recipient: &Recipient,
    plan: Plan,
) -> Result<Saved, Fault> {
    let settings = &core.settings;
    let message = transaction.message();
    let target = &plan.target;
    let folders = match (&plan.create, target.paths.mailbox.parent()) {
        (Some(permission), Some(folder)) => Some(create::directory(folder, permission)?.1),
        _ => None,
    };
    let header = added_headers(message, Some(&recipient.address));
    let from_line = from_line(&message.envelope.sender, &jiff::Zoned::now());
    let demands = Demands {
        locking: &settings.mbox.locking,
        quoting: settings.mbox.quoting,
        sync: settings.mail_fsync != MailFsync::Never,
        make: plan.create.as_ref(),
    };
    let added = Message {
        from_line: &from_line,
        header: &header,
        body: &message.body,
        flags: plan.flags,
    };
    let mbox = Mbox::at(&target.paths.mailbox)?;
    let appended = mbox.append(&added, &demands, || transaction.check_heard())?;
    if let Some(folders) = folders {
        folders.keep();
    }
    let mut remarks: Vec<String> = plan.dropped.iter().cloned().collect();
    if !plan.keywords.is_empty() {
        remarks.push(format!("stored without {}: it is an mbox", plan.keywords));
    }
    Ok(Saved {
        file: format!("{}@{}", target.paths.mailbox.display(), appended.offset),
        mailbox: plan.target.mailbox,
        instead_of: plan.instead_of,
        user: plan.user,
        uid: None,
        size: appended.size,
        mode: appended.mode,
        gid: appended.gid,
        remarks,
    })
}
