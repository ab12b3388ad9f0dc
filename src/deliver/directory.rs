//! What a delivery asks of others: users, rules of the address map, names of groups.
//!
//! It may be asked in one process and told to another, which may not ask: passwords of databases stay away from users' identities.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::map::Rule;
use super::settings::Settings;
use crate::fault::{Code, Fault};
use crate::sys::nss;
use crate::user::User;

/// Three answers each: found, no such thing, and a fault for "cannot tell".
pub trait Directory {
    /// `name`: before `auth_username_format`, which [`Userdbs::find`](crate::user::Userdbs::find) applies; the user has the canonical one.
    fn user(&self, name: &str) -> Result<Option<User>, Fault>;
    /// `address`: in small letters.
    fn rule(&self, address: &str) -> Result<Option<Rule>, Fault>;
    /// For `acl_groups`, where UNIX groups count as such (`acl.unix_groups`). None: the gid has no name.
    fn group_name(&self, gid: u32) -> Result<Option<String>, Fault>;
    /// What the table of placements says of a user or owner, or of a public mailbox: the name of a node.
    fn node(&self, user: &str, mailbox: &str) -> Result<Option<String>, Fault>;
}

/// Asks the userdbs, the maps and the name service.
impl Directory for Settings {
    fn user(&self, name: &str) -> Result<Option<User>, Fault> {
        self.userdbs.find(name).map_err(|unavailable| {
            let doing = format!("look up the user {name:?}");
            Fault::new(Code::CannotTell, doing, unavailable.to_string())
        })
    }

    fn rule(&self, address: &str) -> Result<Option<Rule>, Fault> {
        self.addresses.rule(address)
    }

    fn group_name(&self, gid: u32) -> Result<Option<String>, Fault> {
        nss::group_name(gid).map_err(|error| {
            let doing = format!("look up the name of group {gid}");
            Fault::new(Code::CannotTell, doing, error.to_string())
        })
    }

    fn node(&self, user: &str, mailbox: &str) -> Result<Option<String>, Fault> {
        match &self.placement {
            Some(placement) => placement.asked(user, mailbox),
            None => Ok(None),
        }
    }
}

/// What is asked of the table of placements, as one text.
fn place(user: &str, mailbox: &str) -> String {
    format!("{user}\0{mailbox}")
}

/// Answers that were given once. Whatever else is asked cannot be told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    users: BTreeMap<String, Option<User>>,
    rules: BTreeMap<String, Option<Rule>>,
    groups: BTreeMap<u32, Option<String>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    nodes: BTreeMap<String, Option<String>>,
}

impl Directory for Answers {
    fn user(&self, name: &str) -> Result<Option<User>, Fault> {
        told(&self.users, &name.to_owned(), "user")
    }

    fn rule(&self, address: &str) -> Result<Option<Rule>, Fault> {
        told(&self.rules, &address.to_owned(), "address")
    }

    fn group_name(&self, gid: u32) -> Result<Option<String>, Fault> {
        told(&self.groups, &gid, "group")
    }

    fn node(&self, user: &str, mailbox: &str) -> Result<Option<String>, Fault> {
        told(&self.nodes, &place(user, mailbox), "node")
    }
}

impl Answers {
    /// Whoever was found.
    pub fn users(&self) -> impl Iterator<Item = &User> {
        self.users.values().flatten()
    }

    /// Where both have an answer, that of `more` counts.
    pub fn extend(&mut self, more: Answers) {
        self.users.extend(more.users);
        self.rules.extend(more.rules);
        self.groups.extend(more.groups);
        self.nodes.extend(more.nodes);
    }
}

/// What was answered once, and whoever can be asked for the rest.
pub struct Remembered<'a> {
    pub answers: &'a Answers,
    pub otherwise: &'a dyn Directory,
}

impl Directory for Remembered<'_> {
    fn user(&self, name: &str) -> Result<Option<User>, Fault> {
        let known = self.answers.users.get(name).cloned();
        known.map_or_else(|| self.otherwise.user(name), Ok)
    }

    fn rule(&self, address: &str) -> Result<Option<Rule>, Fault> {
        let known = self.answers.rules.get(address).cloned();
        known.map_or_else(|| self.otherwise.rule(address), Ok)
    }

    fn group_name(&self, gid: u32) -> Result<Option<String>, Fault> {
        let known = self.answers.groups.get(&gid).cloned();
        known.map_or_else(|| self.otherwise.group_name(gid), Ok)
    }

    fn node(&self, user: &str, mailbox: &str) -> Result<Option<String>, Fault> {
        let known = self.answers.nodes.get(&place(user, mailbox)).cloned();
        known.map_or_else(|| self.otherwise.node(user, mailbox), Ok)
    }
}

fn told<K: Ord + std::fmt::Debug, V: Clone>(
    answers: &BTreeMap<K, Option<V>>,
    asked: &K,
    kind: &str,
) -> Result<Option<V>, Fault> {
    answers.get(asked).cloned().ok_or_else(|| {
        let doing = format!("look up the {kind} {asked:?}");
        Fault::new(Code::CannotTell, doing, "it was not looked up before")
    })
}

/// Asks, and keeps what it was told.
pub struct Recorder<'a> {
    asked: &'a dyn Directory,
    answers: RefCell<Answers>,
}

impl<'a> Recorder<'a> {
    /// `asked` is asked once for each user, and each time for the rest; a fault is not kept.
    pub fn new(asked: &'a dyn Directory) -> Recorder<'a> {
        Recorder {
            asked,
            answers: RefCell::default(),
        }
    }

    /// What it has been asked, and was answered, so far.
    pub fn answers(self) -> Answers {
        self.answers.into_inner()
    }
}

impl Directory for Recorder<'_> {
    fn user(&self, name: &str) -> Result<Option<User>, Fault> {
        let known = self.answers.borrow().users.get(name).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let found = self.asked.user(name)?;
        let users = &mut self.answers.borrow_mut().users;
        users.insert(name.to_owned(), found.clone());
        Ok(found)
    }

    fn rule(&self, address: &str) -> Result<Option<Rule>, Fault> {
        let found = self.asked.rule(address)?;
        let rules = &mut self.answers.borrow_mut().rules;
        rules.insert(address.to_owned(), found.clone());
        Ok(found)
    }

    fn group_name(&self, gid: u32) -> Result<Option<String>, Fault> {
        let found = self.asked.group_name(gid)?;
        self.answers.borrow_mut().groups.insert(gid, found.clone());
        Ok(found)
    }

    fn node(&self, user: &str, mailbox: &str) -> Result<Option<String>, Fault> {
        let found = self.asked.node(user, mailbox)?;
        let nodes = &mut self.answers.borrow_mut().nodes;
        nodes.insert(place(user, mailbox), found.clone());
        Ok(found)
    }
}
