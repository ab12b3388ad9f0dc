//! `[workers]`

use std::io;
use std::time::Duration;

use super::section::Section;
use crate::run::pool::Limits;
use crate::sys::credentials::Credentials;
use crate::sys::nss;

/// How a server that was started by root divides its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    pub isolation: Isolation,
    /// Whom the process becomes that talks to clients, where the config names somebody.
    named: Option<String>,
    /// Workers can open nothing but mail, where the kernel knows how.
    pub landlock: bool,
    pub limits: Limits,
}

impl Workers {
    /// Whom the process becomes that talks to clients.
    pub fn front_user(&self) -> String {
        self.named.clone().unwrap_or_else(usual_front_user)
    }

    /// [`Workers::front_user`] with his groups.
    pub fn front_identity(&self) -> io::Result<Credentials> {
        let name = &self.front_user();
        let refused = |why: &str| io::Error::other(format!("workers.front_user {name:?}: {why}"));
        let account = nss::account(name)?.ok_or_else(|| refused("there is no such user"))?;
        if account.uid == 0 || account.gid == 0 {
            return Err(refused("root talks to nobody"));
        }
        let groups = nss::groups(name, account.gid)?;
        let groups = groups.into_iter().filter(|gid| *gid != 0).collect();
        Ok(Credentials::new(account.uid, account.gid, groups))
    }
}

/// `workers.isolation`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// A process for clients, and one for each identity that has mail.
    Process,
    /// One process, which becomes `mail_uid`.
    None,
}

/// Where the config names nobody: the first of these that there is.
const FRONT_USERS: [&str; 2] = ["postroom", "nobody"];

fn usual_front_user() -> String {
    let exists = |name: &&str| matches!(nss::account(name), Ok(Some(_)));
    let found = FRONT_USERS.into_iter().find(exists);
    found.unwrap_or(FRONT_USERS[0]).to_owned()
}

/// `[workers]`
pub fn workers(root: &Section<'_>) -> Workers {
    let section = root.section("workers");
    let isolations = [("process", Isolation::Process), ("none", Isolation::None)];
    let isolation = section.choice_or("isolation", &isolations, Isolation::Process);
    let named = section.text("front_user");
    match &named {
        // Not now: the name service may load half a system for somebody who is not there.
        None => section.usual("front_user", usual_front_user),
        Some(name) if matches!(nss::account(name), Ok(None)) => {
            let advice = "useradd --system it, or leave the setting out";
            section.error("front_user", format!("there is no user {name:?}"), advice);
        }
        Some(_) => {}
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
        isolation,
        named,
        landlock: section.flag("landlock", true),
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
