//! A message to the user whose mailboxes are nearly full, once a day, as Courier's and maildrop's `quotawarnmsg`.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Core;
use super::carry_out::Heard;
use super::inspect::Plan;
use super::publish::{self, Publishing};
use super::quota;
use super::settings::{MailFsync, Settings};
use crate::fault::Fault;
use crate::mailbox::quota::{Quota, Usage};
use crate::maildir::Maildir;
use crate::maildir::maildirsize;
use crate::maildir::save::Demands;
use crate::message::body::{BodyWriter, Spool};
use crate::message::{Flags, Keywords};
use crate::sys::dir::{self, Dir};

/// `[quota] warning_…`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// From this share of a limit on.
    pub percent: u64,
    /// A whole message, as it is in the file.
    pub message: Vec<u8>,
}

/// Its age says when the user was warned last, beside `maildirsize` (the name is Courier's).
const FILE: &str = "quotawarn";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Warns whose mailbox this is, where what he has is near his limit now. `size`: of the message that was just stored. A remark for the
/// log line where something was done, or could not be.
pub fn warn(core: &Core, plan: &Plan, size: u64) -> Option<String> {
    let settings = &core.settings;
    let warning = settings.quotas.as_ref()?.warning.as_ref()?;
    let quota = plan.target.quota.as_deref()?;
    // Whoever delivers to a mailbox of somebody else has no business in his INBOX.
    if quota.of != plan.user || !is_near(settings, plan, warning, size) {
        return None;
    }
    match turn(core, plan, warning) {
        Ok(true) => Some(format!("{} was warned: his quota is nearly used", quota.of)),
        Ok(false) => None,
        Err(fault) => Some(format!("{} was not warned: {fault}", quota.of)),
    }
}

fn is_near(settings: &Settings, plan: &Plan, warning: &Warning, size: u64) -> bool {
    let (Some(_), Some(quota)) = (&settings.quotas, plan.target.quota.as_deref()) else {
        return false;
    };
    let Some(quota::Room::Known(known)) = &plan.room else {
        return false;
    };
    let used = Usage {
        bytes: known.usage.bytes.saturating_add_unsigned(size),
        messages: known.usage.messages.saturating_add(1),
    };
    quota.limits.is_near(used, warning.percent)
}

/// True: he was warned now.
fn turn(core: &Core, plan: &Plan, warning: &Warning) -> Result<bool, Fault> {
    let Some(quota) = plan.target.quota.as_deref() else {
        return Ok(false);
    };
    let failed = |error: io::Error| {
        Fault::io(
            format!("write {}/{FILE}", quota.directory.display()),
            &error,
        )
    };
    let directory = Dir::open(&quota.directory).map_err(failed)?;
    if !is_due(&directory).map_err(failed)? {
        return Ok(false);
    }
    let delivered = deliver(core, quota, warning);
    if delivered.is_err() {
        // The next delivery tries again.
        let _ = directory.unlink(FILE);
    }
    delivered
}

/// True: the message is in his INBOX.
fn deliver(core: &Core, quota: &Quota, warning: &Warning) -> Result<bool, Fault> {
    let Some(inbox) = quota.trees.first() else {
        return Ok(false);
    };
    let paths = &inbox.paths;
    let opened = Dir::open(&paths.mailbox);
    let opened =
        opened.map_err(|error| Fault::io(format!("open {}", paths.mailbox.display()), &error))?;
    let mailbox = Maildir::at(opened, &paths.mailbox)?;
    let mut body = BodyWriter::new(&Spool::default());
    let written = body.write(&warning.message).and_then(|()| body.finish());
    let body = written.map_err(|error| Fault::io("write a warning", &error))?;
    let sync = core.settings.mail_fsync != MailFsync::Never;
    let demands = Demands {
        verified: false,
        sync,
    };
    let header = header(&core.settings.hostname, &core.unique_name());
    let written = mailbox.write(&core.names, header.as_bytes(), &body, demands)?;
    let size = written.size;
    let publishing = Publishing {
        mailbox: &mailbox,
        names: &core.names,
        walks: &core.walks,
        busy: &core.busy,
        sync,
        sync_index: false,
        index_log: core.settings.index_log,
    };
    let message = publish::Message {
        written: Arc::new(written),
        name: None,
        flags: Flags::default(),
        keywords: Keywords::default(),
        paths: paths.clone().into(),
        heard: Heard::from_now(),
    };
    core.maildirs.join(mailbox.identity(), message, |batch| {
        publishing.publish(batch)
    })?;
    // What it says of itself is no reason to fail.
    let _ = maildirsize::add(quota, size);
    Ok(true)
}

/// Takes the turn of today. Two who find an old mark in the same moment may both get it.
fn is_due(directory: &Dir) -> io::Result<bool> {
    match directory.read(FILE) {
        Ok(file) => {
            let modified = dir::stat_file(&file)?.modified;
            let age = SystemTime::now().duration_since(modified);
            if age.is_ok_and(|age| age < DAY) {
                return Ok(false);
            }
            directory.unlink(FILE)?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    match directory.create_new(FILE, 0o600) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// What changes from one to the next; the rest is in the file.
fn header(hostname: &str, name: &str) -> String {
    let now = jiff::Zoned::now();
    let date = jiff::fmt::rfc2822::to_string(&now).unwrap_or_default();
    format!("Date: {date}\nMessage-ID: <quota.{name}@{hostname}>\n")
}
