//! `[workers]`

use std::time::Duration;

use super::section::Section;
use crate::run::pool::Limits;
use crate::sys::nss;

/// How a server that was started by root divides its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    pub isolation: Isolation,
    /// Whom the process becomes that talks to clients.
    pub front_user: String,
    pub limits: Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// A process for clients, and one for each identity that has mail.
    Process,
    /// One process, which becomes `mail_uid`.
    None,
}

/// Where the config names nobody: the first of these that there is.
const FRONT_USERS: [&str; 2] = ["postroom", "nobody"];

pub fn workers(root: &Section<'_>) -> Workers {
    let section = root.section("workers");
    let isolations = [("process", Isolation::Process), ("none", Isolation::None)];
    let isolation = section.choice("isolation", &isolations, Some(Isolation::Process));
    let usual = || {
        let exists = |name: &&str| matches!(nss::account(name), Ok(Some(_)));
        let found = FRONT_USERS.into_iter().find(exists);
        found.unwrap_or(FRONT_USERS[0]).to_owned()
    };
    let front_user = section.text_or("front_user", usual);
    let has_name = section.has("front_user");
    if has_name && matches!(nss::account(&front_user), Ok(None)) {
        let advice = "useradd --system it, or leave the setting out";
        section.error(
            "front_user",
            format!("there is no user {front_user:?}"),
            advice,
        );
    }
    let defaults = Limits::default();
    let number = |key, default: u32| {
        let number = section.number(key, Some(default)).unwrap_or(default);
        if number == 0 {
            section.error(key, "0 lets nobody work", format!("write {default}"));
        }
        number
    };
    let workers = Workers {
        isolation: isolation.unwrap_or(Isolation::Process),
        front_user,
        limits: Limits {
            max: number("max", defaults.max as u32) as usize,
            idle: section.duration("idle_timeout", defaults.idle),
            deliveries: number("max_deliveries", defaults.deliveries as u32).into(),
        },
    };
    if workers.limits.idle < Duration::from_secs(1) {
        let advice = "write \"60s\"";
        section.error("idle_timeout", "shorter than a second", advice);
    }
    section.finish();
    workers
}
