//! The doing, for an mbox: one message behind the others, and Dovecot's index told of it where it is in step with the file.

use std::io::{self, ErrorKind};
use std::time::Instant;

use super::Core;
use super::announce;
use super::carry_out::Transaction;
use super::header::added_headers;
use super::inspect::Plan;
use super::outcome::Saved;
use super::retry::Retry;
use super::settings::MailFsync;
use crate::fault::Fault;
use crate::index::{self, Log, Pair, State, log};
use crate::mailbox::path::Paths;
use crate::maildir::create;
use crate::mbox::append::{Appended, Demands, Mbox, Message, Open};
use crate::mbox::from_line::from_line;
use crate::mbox::text::Uid;
use crate::message::Recipient;
use crate::sys::dir::Dir;

/// Adds the message to the mbox of the plan. On any failure the file is as it was.
pub fn add(
    core: &Core,
    transaction: &Transaction,
    recipient: &Recipient,
    plan: Plan,
    retry: &Retry,
) -> Result<Saved, Fault> {
    let settings = &core.settings;
    let message = transaction.message();
    let target = &plan.target;
    let folders = match (&plan.create, target.paths.mailbox.parent()) {
        (Some(permission), Some(folder)) => Some(create::directory(folder, permission)?.1),
        _ => None,
    };
    let shown = settings.delivery_address.of(recipient);
    let header = added_headers(message, shown.as_ref(), settings.adds_received);
    let from_line = from_line(&message.envelope.sender, &jiff::Zoned::now());
    let locking = match target.paths.mailbox.is_symlink() {
        true => &settings.mbox.locking.clone().of_linked(),
        false => &settings.mbox.locking,
    };
    let demands = Demands {
        locking,
        quoting: settings.mbox.quoting,
        sync: settings.mail_fsync != MailFsync::Never,
        make: plan.create.as_ref(),
        owner: target.own_inbox.then_some(plan.links.uid),
    };
    let added = Message {
        from_line: &from_line,
        header: &header,
        body: &message.body,
        flags: plan.flags,
        uid: None,
    };
    let mut remarks: Vec<String> = plan.dropped.iter().cloned().collect();
    let paths = &target.paths;
    let holder = plan.links.open_holder(&paths.root, &paths.mailbox);
    let (holder, path) =
        holder.map_err(|error| Fault::io(format!("open {}", paths.mailbox.display()), &error))?;
    let mbox = Mbox::at(holder, path)?;
    transaction.check_heard()?;
    let began = Instant::now();
    let open = mbox.lock(demands, |size| has_seen(core, paths, size))?;
    let locked = began.elapsed();
    transaction.check_heard()?;
    if let Some(saved) = retry.find(&plan, open.stat().identity()) {
        return Ok(saved);
    }
    let step = Step::find(core, &target.paths, &open).unwrap_or_else(|why| {
        remarks.push(format!("no UID yet: {why}"));
        None
    });
    let uid = step.as_ref().map(|step| step.uid(&plan, &open));
    let appended = open.append(&Message { uid, ..added })?;
    let uid = uid.map(|uid| uid.uid).filter(|_| appended.is_last);
    if !appended.is_last {
        remarks.push("no UID yet: somebody has added behind it without a lock".into());
    }
    match (step, uid) {
        (Some(step), Some(uid)) => {
            if let Err(why) = step.tell(&plan, &open, &appended, uid) {
                remarks.push(format!("{} is left to Dovecot: {why}", Pair::MAILBOX.log()));
            }
        }
        _ if !plan.keywords.is_empty() => {
            let why = "Dovecot has not looked at the file since it was last written";
            remarks.push(format!("stored without {}: {why}", plan.keywords));
        }
        _ => {}
    }
    if let Some(folders) = folders {
        folders.keep();
        remarks.extend(announce::to_list_index(core, &target.paths));
        remarks.extend(announce::to_subscriptions(target));
    }
    Ok(Saved {
        file: format!("{}@{}", target.paths.mailbox.display(), appended.offset),
        uid,
        size: appended.size,
        mode: appended.stat.mode,
        gid: appended.stat.gid,
        locked,
        remarks,
        ..Saved::nothing(&plan, appended.stat.identity())
    })
}

/// Whether Dovecot may know more than `size` bytes of the file. Err: nobody can tell now.
fn has_seen(core: &Core, paths: &Paths, size: u64) -> io::Result<bool> {
    let dir = match paths.index.as_deref().map(Dir::open) {
        Some(Err(error)) if error.kind() == ErrorKind::NotFound => return Ok(false),
        // An index in memory: nobody can tell, ever.
        None => return Ok(true),
        Some(dir) => dir?,
    };
    match Log::look(&dir, Pair::MAILBOX, &core.walks) {
        Ok(None) => Ok(false),
        Ok(Some(state)) => Ok(state.mbox.size() > size),
        // Of a later Dovecot, or broken: mail does not wait for it.
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            let torn = Log::look_at_torn(&dir, Pair::MAILBOX)?;
            Ok(torn.is_none_or(|state| state.mbox.size() > size))
        }
        Err(error) => Err(error),
    }
}

/// An index that knows all of the file: then the next UID is known too. Its log is locked behind the file, as by Dovecot.
struct Step {
    log: Log,
    state: State,
    /// Where the file has the last UID; none in an empty one.
    last_uid_at: Option<u64>,
}

impl Step {
    /// None: there is no index, or it is not in step. Err: why nobody knows.
    fn find(core: &Core, paths: &Paths, open: &Open<'_>) -> Result<Option<Step>, String> {
        let Some((index, method)) = paths.index.as_deref().zip(core.settings.index_log) else {
            return Ok(None);
        };
        let dir = match Dir::open(index) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| error.to_string())?,
        };
        let file = index.join(Pair::MAILBOX.log());
        let until = std::time::Instant::now() + log::TIMEOUT;
        let take = |timeout| Log::lock(&dir, Pair::MAILBOX, method, &core.walks, timeout);
        let log = core.busy.take(&file, log::TIMEOUT, until, take);
        let Some(log) = log.map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let state = log.state();
        if state.validity == 0 || !state.mbox.is_up_to_date(open.stat()) {
            return Ok(None);
        }
        let last_uid = open.last_uid(state.validity);
        let last_uid = last_uid.map_err(|error| error.to_string())?;
        // Written by somebody who has given more: a UID is never lowered.
        let is_known = match last_uid {
            None => open.stat().size == 0,
            Some((_, last)) => last < state.next_uid,
        };
        let last_uid_at = last_uid.map(|(at, _)| at);
        Ok(is_known.then_some(Step {
            log,
            state,
            last_uid_at,
        }))
    }

    fn uid<'p>(&self, plan: &'p Plan, open: &Open<'_>) -> Uid<'p> {
        let is_first = open.stat().size == 0;
        Uid {
            uid: self.state.next_uid,
            validity: is_first.then_some(self.state.validity),
            keywords: &plan.keywords,
        }
    }

    fn tell(
        mut self,
        plan: &Plan,
        open: &Open<'_>,
        appended: &Appended,
        uid: u32,
    ) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let stat = match self.last_uid_at {
            Some(at) => open.set_last_uid(at, uid).map_err(text)?,
            None => appended.stat,
        };
        let mut transaction = index::Transaction::default();
        transaction.mbox(&stat);
        transaction.append(&[(uid, plan.flags.index_bits())]);
        transaction.mbox_offset(uid, appended.offset.saturating_sub(1));
        for keyword in plan.keywords.iter() {
            transaction.keyword(keyword, [uid]);
        }
        self.log.append(transaction).map_err(text)
    }
}
