//! The doing: make the mailbox where it has to be made, write, publish, answer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::header::added_headers;
use super::inspect::Plan;
use super::outcome::Saved;
use super::publish::{self, Publishing};
use super::retry::Retry;
use super::settings::{MailFsync, Permissions, RecipientHeaders};
use super::targets::Target;
use super::{Core, add, announce, program, quota, size, warning};
use crate::fault::{Code, Fault};
use crate::mailbox::acl::store;
use crate::mailbox::agent::Agent;
use crate::mailbox::location::Driver;
use crate::maildir::created::Created;
use crate::maildir::save::{Demands, Written};
use crate::maildir::{Maildir, create};
use crate::message::{Message, Recipient};

/// After this long the MTA may have given up: nothing is made visible any more, it will send again.
pub(super) const DEADLINE: Duration = Duration::from_secs(300);

/// One message for some recipients.
#[derive(Debug)]
pub struct Transaction {
    message: Arc<Message>,
    recipients: usize,
    heard: Heard,
    shared: Mutex<HashMap<LinkKey, SharedFile>>,
}

/// Whether anybody will hear the answer.
#[derive(Debug, Clone)]
pub struct Heard {
    begun: Instant,
    abandoned: Arc<AtomicBool>,
}

/// Device, mode, group, ACL: where these are the same, the same bytes can be one file with several links.
type LinkKey = (u64, u32, Option<u32>, Option<Vec<u8>>);
/// Empty until the first mailbox that needs it has written it; the others link to it.
type SharedFile = Arc<Mutex<Option<Arc<Written>>>>;

impl Transaction {
    /// Its time is that of [`Heard::from_now`]. `recipients`: how many the server has for it, all workers together; in the LDA, how many
    /// one process delivers to.
    pub fn new(message: Arc<Message>, recipients: usize) -> Transaction {
        Transaction {
            message,
            recipients,
            heard: Heard::from_now(),
            shared: Mutex::default(),
        }
    }

    /// As it came: what a delivery writes on top is not in it.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// As [`Transaction::new`] was told. With more than one, `recipient_headers = "single"` names nobody.
    pub fn recipients(&self) -> usize {
        self.recipients
    }

    /// A clone has the same deadline, and hears of [`Transaction::abandon`] too.
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// [`Transaction::message`], for whoever keeps it beside the transaction.
    pub fn shared_message(&self) -> &Arc<Message> {
        &self.message
    }

    /// [`Heard::check`]: [`Code::NotNow`] when nobody will hear the answer any more.
    pub fn check_heard(&self) -> Result<(), Fault> {
        self.heard.check()
    }

    /// Nobody will hear the answer: what is not yet visible is not made visible, and the MTA sends it again.
    pub fn abandon(&self) {
        self.heard.abandon();
    }
}

impl Heard {
    /// [`DEADLINE`] counts from here: to be called when the whole message is there.
    pub fn from_now() -> Heard {
        Heard {
            begun: Instant::now(),
            abandoned: Arc::default(),
        }
    }

    /// Of a message that came so long ago.
    #[cfg(test)]
    pub(super) fn since(age: Duration) -> Heard {
        Heard {
            begun: Instant::now().checked_sub(age).unwrap(),
            ..Heard::from_now()
        }
    }

    /// The peer is gone: for all clones, and for good.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// How long it is until nobody does any more.
    pub fn left(&self) -> Duration {
        match self.abandoned.load(Ordering::Relaxed) {
            true => Duration::ZERO,
            false => DEADLINE.saturating_sub(self.begun.elapsed()),
        }
    }

    /// To be asked right before something becomes visible.
    pub fn check(&self) -> Result<(), Fault> {
        let why = match () {
            () if self.abandoned.load(Ordering::Relaxed) => "the peer is gone",
            () if self.begun.elapsed() > DEADLINE => "it took longer than an MTA waits",
            () => return Ok(()),
        };
        Err(Fault::new(Code::NotNow, "make a message visible", why))
    }
}

/// Stores the message as planned. On any failure nothing of it stays, but where the fault says that it may.
pub fn carry_out(
    core: &Core,
    transaction: &Transaction,
    recipient: &Recipient,
    plan: Plan,
    retry: &Retry,
) -> Result<Saved, Fault> {
    let settings = &core.settings;
    let message = &transaction.message;
    size::check(plan.most, message.body.size())?;
    if let Some(hand_over) = &plan.target.hand_over {
        let Agent::Lda { program, arguments } = &hand_over.agent else {
            let why = "whoever talks to servers has it";
            return Err(Fault::new(Code::Internal, "hand a message over", why));
        };
        let way = (hand_over, program.as_path(), arguments.as_slice());
        return program::hand_over(settings, transaction, recipient, &plan, retry, way);
    }
    if plan.target.driver == Driver::Mbox {
        return add::add(core, transaction, recipient, plan, retry);
    }
    let created = make(&plan)?;
    let mailbox = match &plan.mailbox {
        Some(mailbox) => Arc::clone(mailbox),
        None => Arc::new(open(&plan)?),
    };
    if let Some(saved) = retry.find_file(&plan, &mailbox)? {
        return Ok(saved);
    }
    let demands = Demands {
        verified: plan.target.permissions == Permissions::Verified,
        sync: settings.mail_fsync != MailFsync::Never,
    };
    let alike =
        settings.recipient_headers == RecipientHeaders::Single && transaction.recipients > 1;
    let shown = settings.delivery_address.of(recipient).filter(|_| !alike);
    let header = added_headers(message, shown.as_ref(), settings.adds_received);
    let size = header.len() as u64 + message.body.size();
    let about_quota = quota::admit(settings, &plan, size)?;
    let write = || {
        mailbox
            .write(&core.names, &header, &message.body, demands)
            .map(Arc::new)
    };
    let written = match alike {
        true => transaction.write_once(&mailbox, write)?,
        false => write()?,
    };
    let (size, mode, gid) = (written.size, written.mode, written.gid);
    let synced = written.synced;
    let mut remarks: Vec<String> = written.remark.iter().cloned().collect();
    remarks.extend(plan.dropped.clone());
    remarks.extend(about_quota);
    let publishing = Publishing {
        mailbox: &mailbox,
        names: &core.names,
        walks: &core.walks,
        busy: &core.busy,
        sync: demands.sync,
        sync_index: settings.mail_fsync == MailFsync::Always,
        index_log: settings.index_log,
    };
    let publish = |written| {
        let message = publish::Message {
            written,
            name: retry.name.clone(),
            flags: plan.flags,
            keywords: plan.keywords.clone(),
            paths: Arc::clone(&plan.target.paths),
            heard: transaction.heard.clone(),
        };
        let store = |batch| publishing.publish(batch);
        core.maildirs.join(mailbox.identity(), message, store)
    };
    let published = match publish(written) {
        // Too many links, or a file system that has none: a copy of its own.
        Err(fault) if alike && fault.code == Code::NoLinks && !fault.may_be_stored => {
            publish(write()?)?
        }
        other => other?,
    };
    if let Some(created) = created {
        created.keep();
        remarks.extend(announce::to_list_index(core, &plan.target.paths));
        remarks.extend(announce::to_subscriptions(&plan.target));
    }
    remarks.extend(quota::add(plan.target.quota.as_deref(), size));
    remarks.extend(warning::warn(core, &plan, size));
    if settings.mail_fsync == MailFsync::Never {
        remarks.push("not synced (mail_fsync = never)".into());
    }
    remarks.extend(published.remarks);
    Ok(Saved {
        uid: published.uid,
        file: published.file,
        size,
        mode,
        gid,
        locked: published.locked,
        synced: synced + published.synced,
        remarks,
        ..Saved::nothing(&plan, mailbox.identity())
    })
}

/// Whether the mailbox takes nothing as it is, and has nothing of the message.
pub fn has_refused(fault: &Fault) -> bool {
    let is_its = matches!(
        fault.code,
        Code::OverQuota | Code::QuotaOfDisk | Code::Permissions | Code::Unusable
    );
    is_its && !fault.is_not_durable
}

fn open(plan: &Plan) -> Result<Maildir, Fault> {
    let paths = &plan.target.paths;
    let doing = || format!("open the mailbox {}", paths.mailbox.display());
    let dir = plan.links.open(&paths.root, &paths.mailbox);
    let dir = dir.map_err(|error| Fault::io(doing(), &error))?;
    Maildir::at(dir, &paths.mailbox)
}

/// Makes the mailbox if the plan says so, with the ACL of its parent.
fn make(plan: &Plan) -> Result<Option<Created>, Fault> {
    let Some(permission) = &plan.create else {
        return Ok(None);
    };
    let target = &plan.target;
    let acl = parent_acl(target)?;
    let created = create::create(&target.paths, permission, target.layout, acl.as_deref())?;
    if acl.is_some() && target.paths.root.join(store::LIST).exists() {
        // Only LIST needs it, and it shows the new mailbox to others a little later.
        let _ = store::renew_list(&target.paths, target.layout, target.driver);
    }
    Ok(Some(created))
}

/// The rights that a new mailbox inherits: a copy of the nearest parent's own file.
fn parent_acl(target: &Target) -> Result<Option<Vec<u8>>, Fault> {
    let Some(sources) = target.acl.as_ref().filter(|_| !target.own_inbox) else {
        return Ok(None);
    };
    let parent = target.parent().map_err(|error| {
        let doing = format!("look above {}", target.paths.mailbox.display());
        Fault::io(doing, &error)
    })?;
    sources.of_new(parent).inherited().map_err(|unreadable| {
        let doing = format!("read {}", unreadable.file.display());
        Fault::new(Code::CannotTell, doing, unreadable.error.why)
    })
}

impl Transaction {
    /// The file that this mailbox can link to; written by the first that needs it.
    fn write_once(
        &self,
        mailbox: &Maildir,
        write: impl FnOnce() -> Result<Arc<Written>, Fault>,
    ) -> Result<Arc<Written>, Fault> {
        let permission = mailbox.permission();
        let Ok(acl) = mailbox.acl_of_new() else {
            // Nobody can tell: one of its own has it.
            return write();
        };
        let key = (mailbox.device(), permission.file_mode, permission.gid, acl);
        let file = {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(shared.entry(key).or_default())
        };
        // Held while the first one writes: the others need its bytes.
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(written) = file.as_ref().filter(|written| written.remark.is_none()) {
            return Ok(Arc::clone(written));
        }
        let written = write()?;
        *file = Some(Arc::clone(&written));
        Ok(written)
    }
}
