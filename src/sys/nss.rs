//! Users and groups of the system, by name (`/etc/passwd`, or whatever nsswitch.conf says).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// A user of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
}

impl From<User> for Account {
    fn from(user: User) -> Account {
        Account {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            home: user.dir,
        }
    }
}

/// `None`: there is no such user. An error: the name service did not answer.
///
/// glibc forgets that `/etc/passwd` could not be read where a later source of nsswitch.conf knows nobody.
pub fn account(name: &str) -> io::Result<Option<Account>> {
    let found = User::from_name(name)?;
    if found.is_none() {
        File::open("/etc/passwd")?;
    }
    Ok(found.map(Account::from))
}

/// None: there is no such account. Err: nobody can tell now.
pub fn account_of_uid(uid: u32) -> io::Result<Option<Account>> {
    Ok(User::from_uid(Uid::from_raw(uid))?.map(Account::from))
}

/// Every user that the system can list.
pub fn accounts() -> Vec<Account> {
    let mut accounts = Vec::new();
    // SAFETY: one thread walks the list, and each entry is copied before the next call.
    unsafe {
        libc::setpwent();
        while let Some(entry) = libc::getpwent().as_ref() {
            accounts.push(Account::from(User::from(entry)));
        }
        libc::endpwent();
    }
    accounts
}

/// The supplementary groups of `name`, `gid` among them.
pub fn groups(name: &str, gid: u32) -> io::Result<Vec<u32>> {
    let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    let groups = getgrouplist(&name, Gid::from_raw(gid))?;
    if groups.len() < 2 {
        // It has no way to say that it could not read them.
        File::open("/etc/group")?;
    }
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

/// A uid by number or name. `None`: there is no such user.
pub fn uid(text: &str) -> io::Result<Option<u32>> {
    match text.parse() {
        Ok(uid) => Ok(Some(uid)),
        Err(_) => Ok(account(text)?.map(|account| account.uid)),
    }
}

/// A gid by number or name. `None`: there is no such group.
pub fn gid(text: &str) -> io::Result<Option<u32>> {
    match text.parse() {
        Ok(gid) => Ok(Some(gid)),
        Err(_) => Ok(Group::from_name(text)?.map(|group| group.gid.as_raw())),
    }
}

/// The name of a group. `None`: it has none.
pub fn group_name(gid: u32) -> io::Result<Option<String>> {
    Ok(Group::from_gid(Gid::from_raw(gid))?.map(|group| group.name))
}
