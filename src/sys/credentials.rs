//! Who a process is to the kernel, and how it becomes someone else for good.

use std::io;
use std::marker::PhantomData;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, getegid, geteuid, getresgid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

/// Numeric ids. `groups` are the supplementary ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// `mail_privileged_group`: not one of the groups, but one that [can be borrowed](borrow_group).
    pub privileged: Option<u32>,
}

impl Credentials {
    /// Without a privileged group. Nothing is checked: [`become_forever`] decides what a process may become.
    pub fn new(uid: u32, gid: u32, groups: Vec<u32>) -> Credentials {
        Credentials {
            uid,
            gid,
            groups,
            privileged: None,
        }
    }
}

impl Credentials {
    /// Whether who has these may do whatever `other` may.
    pub fn include(&self, other: &Credentials) -> bool {
        let has = |gid: &u32| self.gid == *gid || self.groups.contains(gid);
        self.uid == other.uid && has(&other.gid) && other.groups.iter().all(has)
    }
}

/// The effective ids of this process.
pub fn effective() -> Credentials {
    Credentials {
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        groups: groups(),
        privileged: privileged_group(),
    }
}

/// The supplementary groups of this process: as many as it has. nix would ask a file of the kernel for how many it could have.
fn groups() -> Vec<u32> {
    // SAFETY: with room for none it writes nothing and answers how many there are.
    let count = unsafe { libc::getgroups(0, std::ptr::null_mut()) };
    let mut groups = vec![0; usize::try_from(count).unwrap_or(0)];
    if groups.is_empty() {
        return groups;
    }
    // SAFETY: there is room for as many as it is told.
    let count = unsafe { libc::getgroups(count, groups.as_mut_ptr()) };
    // It fails only where there is not room for all, and they do not change meanwhile.
    groups.truncate(usize::try_from(count).unwrap_or(0));
    groups
}

/// The group that this process has put aside, to borrow it.
pub fn privileged_group() -> Option<u32> {
    let ids = getresgid().ok()?;
    let is_aside = ids.saved != ids.effective && ids.saved != ids.real;
    is_aside.then_some(ids.saved.as_raw())
}

/// The privileged group as the effective one of this thread, until it is dropped. Other threads do not have it.
#[derive(Debug)]
pub struct BorrowedGroup {
    own: u32,
    death: Option<Signal>,
    /// It is given back where it was borrowed.
    of_this_thread: PhantomData<*const ()>,
}

/// For the moment in which a name changes in a directory that root has given to this group.
pub fn borrow_group(gid: u32) -> io::Result<BorrowedGroup> {
    // A change of credentials forgets with whom this thread dies.
    let death = prctl::get_pdeathsig()?;
    let own = getegid().as_raw();
    set_effective_group(gid)?;
    Ok(BorrowedGroup {
        own,
        death,
        of_this_thread: PhantomData,
    })
}

impl Drop for BorrowedGroup {
    fn drop(&mut self) {
        // Nothing may go on with a group that is not its own.
        if set_effective_group(self.own).is_err() || prctl::set_pdeathsig(self.death).is_err() {
            std::process::abort();
        }
    }
}

/// Of this thread alone: the C library's function changes all of them.
fn set_effective_group(gid: u32) -> io::Result<()> {
    const AS_IT_IS: libc::gid_t = libc::gid_t::MAX;
    // SAFETY: three numbers, no memory.
    let done = unsafe { libc::syscall(libc::SYS_setresgid, AS_IT_IS, gid, AS_IT_IS) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// By the effective uid.
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
    if who.uid == 0 || who.gid == 0 || who.groups.contains(&0) || who.privileged == Some(0) {
        return refused("root never touches mail: no uid, gid or group may be 0");
    }
    // -1: to the kernel "as it is", and that is root's.
    if [who.uid, who.gid].contains(&u32::MAX) || who.privileged == Some(u32::MAX) {
        return refused("no uid or gid may be -1");
    }
    let groups: Vec<Gid> = who.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
    setgroups(&groups)?;
    setresgid(gid, gid, who.privileged.map_or(gid, Gid::from_raw))?;
    setresuid(uid, uid, uid)?;
    if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        return refused("this process can still become root");
    }
    // Nor can anybody of this uid look into it: it may hold what another user of the uid has got.
    prctl::set_dumpable(false)?;
    Ok(prctl::set_no_new_privs()?)
}
