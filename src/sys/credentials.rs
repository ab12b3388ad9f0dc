//! Who a process is to the kernel, and how it becomes someone else for good.

use std::io;

use nix::sys::prctl;
use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

/// Numeric ids. `groups` are the supplementary ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// The effective ids of this process.
pub fn effective() -> Credentials {
    // getgroups fails only for a buffer that is too small, and nix sizes it.
    let groups = getgroups().unwrap_or_default();
    Credentials {
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
    }
}

pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Becomes `who` for good: groups first, which needs root, then gid, then uid, and no program run from here gets more.
/// To be called while the process has one thread.
pub fn become_forever(who: &Credentials) -> io::Result<()> {
    let refused = |why: &str| {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            why.to_owned(),
        ))
    };
    if who.uid == 0 || who.gid == 0 || who.groups.contains(&0) {
        return refused("root never touches mail: no uid, gid or group may be 0");
    }
    let groups: Vec<Gid> = who.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
    setgroups(&groups)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        return refused("this process can still become root");
    }
    Ok(prctl::set_no_new_privs()?)
}
