//! Bytes on their way to the disk before they are synced, and the file systems where that is enough to show their names.
//!
//! A file system that is ordered makes changes durable in their order: never a name without the bytes that were written back before
//! the name was made, and with the sync of a file all that was done before it. ext4 and XFS have one journal for that, and empty the
//! disk's own cache before they write an entry of it. Then bytes, name and list need one commit, where a file that is synced first
//! costs one of its own, and the directory another.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{
    SYNC_FILE_RANGE_WAIT_AFTER, SYNC_FILE_RANGE_WAIT_BEFORE, SYNC_FILE_RANGE_WRITE, major, minor,
};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, fstatfs};

use super::fault_point::pass;

/// A device may be mounted anew, with another file system on it.
const KNOWN: Duration = Duration::from_secs(1);

/// Sends the bytes of a file on their way. Nothing is promised of them yet.
pub fn start(file: &File) -> io::Result<()> {
    pass()?;
    // What is on its way already would be left for later.
    sync_range(file, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE)
}

/// Waits until they have arrived, and says what went wrong on the way; a disk's own cache may have them still.
pub fn wait(file: &File) -> io::Result<()> {
    pass()?;
    let write = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    sync_range(file, write)
}

fn sync_range(file: &File, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; no memory is passed.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    Ok(Errno::result(done).map(drop)?)
}

/// Tests with this in their environment take every file system for an ordered one.
#[cfg(test)]
pub const ORDERED: &str = "POSTROOM_TEST_ORDERED";

/// Whether the file system of this file, on `device`, is ordered: XFS, and ext4 with a journal. Others may be, and are not asked.
pub fn is_ordered(file: &File, device: u64) -> bool {
    #[cfg(test)]
    if std::env::var_os(ORDERED).is_some_and(|it| it == "1") {
        return true;
    }
    static DEVICES: Mutex<BTreeMap<u64, (Instant, bool)>> = Mutex::new(BTreeMap::new());
    let devices = || DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    let known = devices().get(&device).copied();
    match known {
        Some((since, known)) if since.elapsed() < KNOWN => known,
        _ => {
            // A file server that hangs holds nobody else up.
            let is_ordered = look(file, device);
            devices().insert(device, (Instant::now(), is_ordered));
            is_ordered
        }
    }
}

fn look(file: &File, device: u64) -> bool {
    match fstatfs(file).map(|it| it.filesystem_type()) {
        Ok(XFS_SUPER_MAGIC) => true,
        Ok(EXT4_SUPER_MAGIC) => has_journal(device),
        _ => false,
    }
}

/// ext2 and ext4 without a journal have the same number. One on a disk of its own says nothing of the bytes on the other.
fn has_journal(device: u64) -> bool {
    let block = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let Ok(link) = fs::read_link(block) else {
        return false;
    };
    // With the inode that it has in its file system.
    let name = link.file_name().unwrap_or_default().to_string_lossy();
    Path::new(&format!("/proc/fs/jbd2/{name}-8")).exists()
}
