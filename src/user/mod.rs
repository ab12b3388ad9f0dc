//! Users and where they are looked up.
//!
//! A look-up has three answers: found, no such user, cannot tell. Only the second may ever become a 550.

pub mod fixed;
pub mod passwd;
pub mod passwd_file;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::sys::credentials::Credentials;

/// A mail user, as a userdb described it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The canonical name: what `%{user}` stands for.
    pub name: String,
    pub credentials: Credentials,
    /// Absolute. None: mailboxes below `~` cannot be had.
    pub home: Option<PathBuf>,
    /// Fields of the userdb that are not uid, gid and home: `mail_path`, `namespace/x/prefix`, `acl_groups`, …
    pub extra: BTreeMap<String, String>,
    /// Which userdb answered: `passwd-file /etc/postroom/users`.
    pub origin: String,
}

/// "Cannot tell": the userdb did not answer, or its answer makes no sense. Always temporary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// Which userdb: `passwd-file /etc/postroom/users`.
    pub userdb: String,
    pub why: String,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "userdb {}: {}", self.userdb, self.why)
    }
}

/// Where users are looked up: a closed set.
#[derive(Debug)]
pub enum Userdb {
    Passwd(passwd::Passwd),
    PasswdFile(passwd_file::PasswdFile),
    Static(fixed::Static),
}

/// Bounds and defaults for every answer (`first_valid_uid`, `mail_uid`, …).
#[derive(Debug, Clone, Default)]
pub struct Limits;

/// The userdbs in their order, with what holds for the answers of all of them.
#[derive(Debug)]
pub struct Userdbs {
    pub list: Vec<Userdb>,
    pub limits: Limits,
}

impl Userdbs {
    pub fn find(&self, _name: &str) -> Result<Option<User>, Unavailable> {
        Ok(None)
    }
}
