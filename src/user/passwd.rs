//! The system's users (NSS), with their UNIX groups.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::{env, fs};

use super::{Answer, Unavailable, User};
use crate::sys::credentials::Credentials;
use crate::sys::nss;

/// `[[userdb]] passwd = {}`
#[derive(Debug, Clone, Copy, Default)]
pub struct Passwd;

impl Passwd {
    /// As [`Answer::origin`] has it.
    pub const NAME: &'static str = "passwd";

    /// Any account: daemons are left out by [`Userdbs::find`](super::Userdbs::find). "Cannot tell": the name service has failed.
    pub fn find(&self, name: &str) -> Result<Option<Answer>, Unavailable> {
        let unavailable = |error: std::io::Error| Unavailable {
            userdb: Self::NAME.into(),
            why: error.to_string(),
        };
        let Some(account) = nss::account(name).map_err(unavailable)? else {
            return Ok(None);
        };
        let groups = nss::groups(&account.name, account.gid).map_err(unavailable)?;
        Ok(Some(Answer {
            name: account.name,
            uid: Some(account.uid),
            gid: Some(account.gid),
            groups,
            home: Some(account.home),
            ..Answer::new(name, Self::NAME.into())
        }))
    }
}

/// The user that this process runs as: for an LDA in a user's own `.forward`. `$HOME` counts where it is a directory of
/// his.
pub fn current() -> Result<User, Unavailable> {
    let unavailable = |why: String| Unavailable {
        userdb: Passwd::NAME.into(),
        why,
    };
    let Credentials {
        uid, gid, groups, ..
    } = crate::sys::credentials::effective();
    let account = nss::account_of_uid(uid).map_err(|error| unavailable(error.to_string()))?;
    let account = account.ok_or_else(|| unavailable(format!("there is no user with uid {uid}")))?;
    let own = |home: &PathBuf| {
        home.is_absolute() && fs::metadata(home).is_ok_and(|it| it.is_dir() && it.uid() == uid)
    };
    let home = env::var_os("HOME").map(PathBuf::from).filter(own);
    Ok(User {
        name: account.name,
        credentials: Credentials::new(uid, gid, groups),
        lent: Vec::new(),
        home: Some(home.unwrap_or(account.home)),
        extra: Default::default(),
        origin: "this process".into(),
    })
}
