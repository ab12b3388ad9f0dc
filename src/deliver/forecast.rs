//! What Dovecot's files would be told of a message: a look for whoever explains, without their locks.

use super::Core;
use super::inspect::Plan;
use super::report::Line;
use crate::index::{Log, Pair};
use crate::mailbox::location::Driver;
use crate::maildir::uidlist;
use crate::sys::dir::Dir;

/// None: Dovecot itself writes the mailbox, or the files are those of an mbox.
pub fn index(core: &Core, plan: &Plan) -> Option<Line> {
    let target = &plan.target;
    if target.hand_over.is_some() || target.driver == Driver::Mbox {
        return None;
    }
    if plan.create.is_some() {
        return Some(Line::ok("index", "a new list of UIDs, UID 1"));
    }
    let list = match uidlist::look(&target.paths.control) {
        Ok(Some(next)) => format!("UID {next} or later"),
        Ok(None) => {
            // None: a part of it is missing.
            match plan.mailbox.as_ref().map(|it| it.is_empty()) {
                Some(Ok(true)) => "a new list of UIDs, UID 1".into(),
                Some(Ok(false)) => "no list of UIDs: Dovecot gives the UID when it looks".into(),
                None | Some(Err(_)) => "no list of UIDs yet".into(),
            }
        }
        Err(why) => format!("Dovecot gives the UID: {}: {why}", uidlist::FILE),
    };
    Some(Line::ok("index", format!("{list}; {}", log(core, plan))))
}

fn log(core: &Core, plan: &Plan) -> String {
    let name = Pair::MAILBOX.log();
    if core.settings.index_log.is_none() {
        return format!("{name} is left alone (index_log)");
    }
    let Some(path) = &plan.target.paths.index else {
        return "no index on disk".into();
    };
    let look = |dir: Dir| Log::look(&dir, Pair::MAILBOX, &core.walks);
    match Dir::open(path).and_then(look) {
        Ok(Some(_)) => format!("{name} is told"),
        Ok(None) => format!("there is no {name}"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            format!("there is no {name}")
        }
        Err(error) => format!("{name} is left to Dovecot: {error}"),
    }
}
