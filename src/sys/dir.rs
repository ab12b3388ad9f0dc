//! Directories by descriptor, and one name at a time below them.
//!
//! Whatever is created is new (`O_EXCL`), is never reached through a symlink and is closed on exec. A name is a single
//! path component, so nothing outside the directory can be named.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{
    AT_FDCWD, AtFlags, FallocateFlags, OFlag, RenameFlags, fallocate, open, openat, renameat,
    renameat2,
};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{AccessFlags, Gid, UnlinkatFlags, faccessat, fchown, fsync, linkat, unlinkat};

use super::credentials::{self, BorrowedGroup};
use super::fault_point::pass;

/// An open directory. A clone is another handle on it.
#[derive(Debug, Clone)]
pub struct Dir {
    /// One for all handles on it.
    fd: Arc<OwnedFd>,
    /// The group that is borrowed whenever a name changes in it.
    group: Option<u32>,
}

/// What delivery wants to know of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    /// Permission bits with setuid, setgid and sticky: `0o2770`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Names of it.
    pub links: u64,
    pub modified: SystemTime,
    /// When anything about it changed, its names too: nobody can set it back.
    pub changed: SystemTime,
    pub accessed: SystemTime,
    pub is_dir: bool,
    pub is_file: bool,
    /// A symlink that was not followed.
    pub is_link: bool,
}

impl Stat {
    /// Device and inode: equal for all names of one file.
    pub fn identity(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }
}

impl From<OwnedFd> for Dir {
    fn from(fd: OwnedFd) -> Dir {
        Dir {
            fd: Arc::new(fd),
            group: None,
        }
    }
}

impl Dir {
    /// The same directory; where root has given it to the privileged group, and only that may change names in it, with that
    /// group. Never one that a user has made: then its names may be anybody's.
    pub fn with_privileged_group(mut self) -> io::Result<Dir> {
        if let Some(gid) = credentials::privileged_group()
            && self.may_change().is_err()
        {
            let stat = self.stat()?;
            let is_its = stat.uid == 0 && stat.gid == gid && stat.mode & 0o020 != 0;
            self.group = is_its.then_some(gid);
        }
        Ok(self)
    }

    /// Whether this process may create and remove names in it: EACCES, EROFS say why not.
    pub fn may_change(&self) -> io::Result<()> {
        self.check_access(OsStr::new("."))
    }

    fn check_access(&self, name: &OsStr) -> io::Result<()> {
        pass()?;
        let _group = self.borrow_group()?;
        let wanted = AccessFlags::W_OK | AccessFlags::X_OK | AccessFlags::R_OK;
        Ok(faccessat(&self.fd, name, wanted, AtFlags::AT_EACCESS)?)
    }

    fn borrow_group(&self) -> io::Result<Option<BorrowedGroup>> {
        self.group.map(credentials::borrow_group).transpose()
    }

    /// Opens a configured path; symlinks on the way are the admin's.
    pub fn open(path: &Path) -> io::Result<Dir> {
        pass()?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(open(path, flags, Mode::empty())?.into())
    }

    /// Opens a directory right below this one; a symlink is refused (ELOOP or ENOTDIR).
    pub fn open_dir(&self, name: impl AsRef<OsStr>) -> io::Result<Dir> {
        self.open_dir_with(name.as_ref(), OFlag::O_NOFOLLOW)
    }

    /// The same, wherever a symlink leads.
    pub fn open_dir_through(&self, name: impl AsRef<OsStr>) -> io::Result<Dir> {
        self.open_dir_with(name.as_ref(), OFlag::empty())
    }

    fn open_dir_with(&self, name: &OsStr, flags: OFlag) -> io::Result<Dir> {
        pass()?;
        let flags = flags | OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let name = component(&name)?;
        Ok(openat(&self.fd, name, flags, Mode::empty())?.into())
    }

    /// An extended attribute. An error without /proc.
    pub fn xattr(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        pass()?;
        xattr::get_deref(format!("/proc/self/fd/{}", self.fd.as_raw_fd()), name)
    }

    /// Where it is now. An error without /proc.
    pub fn real_path(&self) -> io::Result<PathBuf> {
        pass()?;
        std::fs::read_link(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// A file without a name, to be [linked](Dir::link) when it is complete. EOPNOTSUPP or EISDIR where the file
    /// system has none.
    pub fn unnamed_file(&self, mode: u32) -> io::Result<File> {
        pass()?;
        #[cfg(test)]
        if has_names() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if !proc_is_mounted() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let _group = self.borrow_group()?;
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        Ok(openat(&self.fd, ".", flags, mode_bits(mode))?.into())
    }

    /// A file without a name that never gets one: gone with its descriptor, whatever happens.
    pub fn anonymous_file(&self) -> io::Result<File> {
        match self.unnamed_file(0o600) {
            Err(error) if super::is_unsupported(&error) => {
                let name = format!("postroom.{}.{:p}", std::process::id(), self);
                let file = self.create_new(&name, 0o600)?;
                self.unlink(&name)?;
                Ok(file)
            }
            other => other,
        }
    }

    /// A new file; EEXIST when the name is taken.
    pub fn create_new(&self, name: &str, mode: u32) -> io::Result<File> {
        pass()?;
        let _group = self.borrow_group()?;
        let flags =
            OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        Ok(openat(&self.fd, component(name)?, flags, mode_bits(mode))?.into())
    }

    /// Opens a regular file for reading without following a symlink or waiting on a FIFO.
    pub fn read(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.open_file(name.as_ref(), OFlag::O_RDONLY | OFlag::O_NOFOLLOW)
    }

    /// The same, wherever a symlink leads: for what Dovecot reads so.
    pub fn read_through(&self, name: &str) -> io::Result<File> {
        self.open_file(name.as_ref(), OFlag::O_RDONLY)
    }

    /// Opens a regular file for reading and writing, without following a symlink or waiting on a FIFO.
    pub fn open_to_change(&self, name: &str) -> io::Result<File> {
        self.open_to_change_and_stat(name).map(|(file, _)| file)
    }

    /// The same, and what it is.
    pub fn open_to_change_and_stat(&self, name: &str) -> io::Result<(File, Stat)> {
        self.open_and_stat(name.as_ref(), OFlag::O_RDWR | OFlag::O_NOFOLLOW)
    }

    /// The same of an mbox: where it is our own, reading it does not count as that.
    pub fn open_to_change_unread(&self, name: &str) -> io::Result<(File, Stat)> {
        self.open_unread_with(name, OFlag::O_RDWR)
    }

    /// The same, to be read only.
    pub fn open_unread(&self, name: &str) -> io::Result<(File, Stat)> {
        self.open_unread_with(name, OFlag::O_RDONLY)
    }

    fn open_unread_with(&self, name: &str, flags: OFlag) -> io::Result<(File, Stat)> {
        let flags = flags | OFlag::O_NOFOLLOW;
        match self.open_and_stat(name.as_ref(), flags | OFlag::O_NOATIME) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.open_and_stat(name.as_ref(), flags)
            }
            opened => opened,
        }
    }

    /// Opens a regular file for appending.
    pub fn open_to_append(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_NOFOLLOW;
        self.open_file(name.as_ref(), flags)
    }

    fn open_file(&self, name: &OsStr, flags: OFlag) -> io::Result<File> {
        self.open_and_stat(name, flags).map(|(file, _)| file)
    }

    fn open_and_stat(&self, name: &OsStr, flags: OFlag) -> io::Result<(File, Stat)> {
        pass()?;
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = File::from(openat(&self.fd, component(name)?, flags, Mode::empty())?);
        let stat: Stat = fstat(&file)?.into();
        match stat.is_file {
            true => Ok((file, stat)),
            false => Err(io::Error::other("not a regular file")),
        }
    }

    /// Gives an open file (another) name here; EEXIST when the name is taken.
    pub fn link(&self, file: &File, name: &str) -> io::Result<()> {
        pass()?;
        let _group = self.borrow_group()?;
        // By /proc: AT_EMPTY_PATH without privilege needs Linux 6.10, Debian 12 has 6.1.
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(linkat(
            AT_FDCWD,
            source.as_str(),
            &self.fd,
            component(name)?,
            AtFlags::AT_SYMLINK_FOLLOW,
        )?)
    }

    /// Moves `name` to `to/new_name`; EEXIST when that is taken.
    pub fn rename(&self, name: &str, to: &Dir, new_name: &str) -> io::Result<()> {
        pass()?;
        let (from, new) = (component(name)?, component(new_name)?);
        Ok(renameat2(
            &self.fd,
            from,
            &to.fd,
            new,
            RenameFlags::RENAME_NOREPLACE,
        )?)
    }

    /// Moves `name` over `to`, which may exist.
    pub fn replace(&self, name: &str, to: &str) -> io::Result<()> {
        pass()?;
        let (from, to) = (component(name)?, component(to)?);
        Ok(renameat2(
            &self.fd,
            from,
            &self.fd,
            to,
            RenameFlags::empty(),
        )?)
    }

    /// Writes `name` anew, durable: `fill` gets the file that takes its place, which nobody else can open until `fill`
    /// gives it its mode, and syncs it. `temporary` is its name until then; a leftover of that name goes.
    ///
    /// For those who hold a lock on it. When something fails the old file stays.
    pub fn write_anew(
        &self,
        temporary: &str,
        name: &str,
        fill: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.unlink(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.create_new(temporary, 0o600)?;
        fill(&file)
            .and_then(|()| self.replace(temporary, name))
            .inspect_err(|_| drop(self.unlink(temporary)))?;
        self.sync()
    }

    /// Gives a directory another name here; [taken](is_taken) when there is something of that name.
    pub fn rename_dir(&self, name: &str, new_name: &str) -> io::Result<()> {
        match self.rename(name, self, new_name) {
            // NFS; a directory replaces at most an empty one.
            Err(error) if super::is_unsupported(&error) => Ok(renameat(
                &self.fd,
                component(name)?,
                &self.fd,
                component(new_name)?,
            )?),
            other => other,
        }
    }

    /// A symlink goes itself; a directory does not (EISDIR). The privileged group is borrowed for it where there is one.
    pub fn unlink(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        pass()?;
        let _group = self.borrow_group()?;
        Ok(unlinkat(
            &self.fd,
            component(&name)?,
            UnlinkatFlags::NoRemoveDir,
        )?)
    }

    /// Only an empty directory (ENOTEMPTY), and no symlink to one (ENOTDIR). The privileged group is not borrowed for it.
    pub fn rmdir(&self, name: &str) -> io::Result<()> {
        pass()?;
        Ok(unlinkat(
            &self.fd,
            component(name)?,
            UnlinkatFlags::RemoveDir,
        )?)
    }

    /// A new directory, opened. The mode is exact while the umask is 0; a setgid parent passes its bit on.
    pub fn make_dir(&self, name: &str, mode: u32) -> io::Result<Dir> {
        pass()?;
        mkdirat(&self.fd, component(name)?, mode_bits(mode))?;
        // Nobody would know of it.
        self.open_dir(name).inspect_err(|_| drop(self.rmdir(name)))
    }

    /// Whoever has it does alone here what only one may do, until it is dropped. None: somebody has it.
    pub fn try_lock(&self) -> io::Result<Option<File>> {
        pass()?;
        // Opened anew: a copy of the descriptor would share its lock.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let own = File::from(openat(&self.fd, ".", flags, Mode::empty())?);
        match own.try_lock() {
            Ok(()) => Ok(Some(own)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Of the directory that was opened, whatever has its name by now.
    pub fn stat(&self) -> io::Result<Stat> {
        pass()?;
        Ok(fstat(&self.fd)?.into())
    }

    /// All bits of `0o7777`, whatever the umask. The kernel leaves setgid out, without an error, where the group is none of this process's.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        pass()?;
        Ok(fchmod(&self.fd, mode_bits(mode))?)
    }

    /// The owner stays. EPERM where the group is none of this process's. Before [`Dir::set_mode`]: it may take setgid away.
    pub fn set_group(&self, gid: u32) -> io::Result<()> {
        pass()?;
        Ok(fchown(&self.fd, None, Some(Gid::from_raw(gid)))?)
    }

    /// Makes the names in this directory durable.
    pub fn sync(&self) -> io::Result<()> {
        pass()?;
        Ok(fsync(&self.fd)?)
    }

    /// Whether `name` exists here as what: a symlink is not followed.
    pub fn stat_name(&self, name: impl AsRef<OsStr>) -> io::Result<Stat> {
        pass()?;
        Ok(fstatat(&self.fd, component(&name)?, AtFlags::AT_SYMLINK_NOFOLLOW)?.into())
    }

    /// The names in this directory, without `.` and `..`; those that are not UTF-8 are left out.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        self.each_name(|name| names.push(name.to_owned()))?;
        Ok(names)
    }

    /// Looks at each of the [names](Dir::names), in a directory that may have too many to keep.
    pub fn each_name(&self, mut look: impl FnMut(&str)) -> io::Result<()> {
        self.each_raw_name(|name| {
            if let Some(name) = name.to_str() {
                look(name);
            }
        })
    }

    /// Whether nothing is in it. Looks no further than the first name.
    pub fn is_empty(&self) -> io::Result<bool> {
        for entry in self.read_anew()?.iter() {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// From its first name on: others may read it by the same descriptor, which has one place in it.
    fn read_anew(&self) -> io::Result<nix::dir::Dir> {
        pass()?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(nix::dir::Dir::openat(&self.fd, ".", flags, Mode::empty())?)
    }

    /// Also at those that are not UTF-8.
    pub fn each_raw_name(&self, mut look: impl FnMut(&OsStr)) -> io::Result<()> {
        let mut dir = self.read_anew()?;
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                look(OsStr::from_bytes(name));
            }
        }
        Ok(())
    }
}

/// EEXIST, ENOTEMPTY, ENOTDIR: something has this name.
pub fn is_taken(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    matches!(
        error.kind(),
        AlreadyExists | DirectoryNotEmpty | NotADirectory
    )
}

/// `stat` of a configured path, symlinks followed.
pub fn stat(path: &Path) -> io::Result<Stat> {
    pass()?;
    Ok(nix::sys::stat::stat(path)?.into())
}

/// `stat` of the path itself: the last symlink is not followed.
pub fn stat_link(path: &Path) -> io::Result<Stat> {
    pass()?;
    Ok(nix::sys::stat::lstat(path)?.into())
}

/// `fstat` of an open file.
pub fn stat_file(file: &File) -> io::Result<Stat> {
    pass()?;
    Ok(fstat(file)?.into())
}

/// All bits of `0o7777`, whatever the umask. The kernel leaves setgid out, without an error, where the group is none of this process's.
pub fn set_file_mode(file: &File, mode: u32) -> io::Result<()> {
    pass()?;
    Ok(fchmod(file, mode_bits(mode))?)
}

/// The owner stays. EPERM where the group is none of this process's. Before [`set_file_mode`]: it may take set-ID bits away.
pub fn set_file_group(file: &File, gid: u32) -> io::Result<()> {
    pass()?;
    Ok(fchown(file, None, Some(Gid::from_raw(gid)))?)
}

/// The time of the last change, for readers that tell old from new by it.
pub fn set_file_modified(file: &File, time: SystemTime) -> io::Result<()> {
    pass()?;
    file.set_modified(time)
}

/// Cuts the file off, or makes it longer.
pub fn set_file_size(file: &File, size: u64) -> io::Result<()> {
    pass()?;
    file.set_len(size)
}

/// Gives a small file of ours the mode and group of the one it takes the place of, or that its place asks for, or fails:
/// written anew with others it would lock somebody out, or let somebody in. Execute and set-ID bits are nobody's to copy.
pub fn set_rights(file: &File, mode: u32, gid: Option<u32>) -> io::Result<()> {
    let mode = mode & 0o666;
    let mut stat = stat_file(file)?;
    let gid = gid.unwrap_or(stat.gid);
    // Group first: its change may take bits away.
    if stat.gid != gid {
        set_file_group(file, gid)?;
        stat = stat_file(file)?;
    }
    if stat.mode != mode {
        set_file_mode(file, mode)?;
        stat = stat_file(file)?;
    }
    match (stat.mode, stat.gid) == (mode, gid) {
        true => Ok(()),
        false => Err(io::Error::other("it cannot have its mode and group")),
    }
}

/// Has `length` bytes ready behind `offset`, beyond the end of the file too, where the file system can: then neither space nor
/// quota end in the middle, and nothing has to be taken back that a full one may not let go.
pub fn reserve(file: &File, offset: u64, length: u64) -> io::Result<()> {
    pass()?;
    let (offset, length) = (offset.cast_signed(), length.cast_signed());
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
        done => Ok(done?),
    }
}

/// Makes a file's bytes, mode and group durable. Never retried: after an EIO a second fsync may succeed with the data gone.
pub fn sync_file(file: &File) -> io::Result<()> {
    pass()?;
    file.sync_all()
}

/// What is needed to read the file again, not when it was changed.
pub fn sync_data(file: &File) -> io::Result<()> {
    pass()?;
    file.sync_data()
}

/// Whether this process may create and remove names in the directory `path`: EACCES, EROFS, ENOENT say why not.
pub fn may_write(path: &Path) -> io::Result<()> {
    pass()?;
    let wanted = AccessFlags::W_OK | AccessFlags::X_OK | AccessFlags::R_OK;
    Ok(faccessat(AT_FDCWD, path, wanted, AtFlags::AT_EACCESS)?)
}

/// Whether this process may run the program at `path`.
pub fn may_run(path: &Path) -> io::Result<()> {
    pass()?;
    let flags = AtFlags::AT_EACCESS;
    Ok(faccessat(AT_FDCWD, path, AccessFlags::X_OK, flags)?)
}

/// Whether this process may read and write the file at `path`.
pub fn may_change(path: &Path) -> io::Result<()> {
    pass()?;
    let wanted = AccessFlags::W_OK | AccessFlags::R_OK;
    Ok(faccessat(AT_FDCWD, path, wanted, AtFlags::AT_EACCESS)?)
}

/// `path`, or the nearest of its parents that exists, with its stat.
pub fn nearest_existing(path: &Path) -> io::Result<(PathBuf, Stat)> {
    let mut candidate = path;
    loop {
        match stat(candidate) {
            Ok(stat) => return Ok((candidate.to_owned(), stat)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match candidate.parent() {
                Some(parent) => candidate = parent,
                None => return Err(error),
            },
            Err(error) => return Err(error),
        }
    }
}

impl From<FileStat> for Stat {
    fn from(stat: FileStat) -> Stat {
        let kind = stat.st_mode & libc::S_IFMT;
        let time = |seconds: i64, nanos: i64| {
            UNIX_EPOCH + Duration::new(u64::try_from(seconds).unwrap_or_default(), nanos as u32)
        };
        Stat {
            dev: stat.st_dev,
            ino: stat.st_ino,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u64,
            links: stat.st_nlink,
            modified: time(stat.st_mtime, stat.st_mtime_nsec),
            changed: time(stat.st_ctime, stat.st_ctime_nsec),
            accessed: time(stat.st_atime, stat.st_atime_nsec),
            is_dir: kind == libc::S_IFDIR,
            is_file: kind == libc::S_IFREG,
            is_link: kind == libc::S_IFLNK,
        }
    }
}

fn mode_bits(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode)
}

/// The proof that a name is one component of a path.
fn component<N: AsRef<OsStr> + ?Sized>(name: &N) -> io::Result<&OsStr> {
    let name = name.as_ref();
    let is_odd = name.as_bytes().iter().any(|byte| matches!(byte, b'/' | 0));
    match name.is_empty() || name == "." || name == ".." || is_odd {
        true => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is not the name of a file"),
        )),
        false => Ok(name),
    }
}

/// Tests with this in their environment take no file system for one that has files without a name.
#[cfg(test)]
pub const NAMED: &str = "POSTROOM_TEST_NAMED";

#[cfg(test)]
pub fn has_names() -> bool {
    std::env::var_os(NAMED).is_some_and(|it| it == "1")
}

fn proc_is_mounted() -> bool {
    static MOUNTED: OnceLock<bool> = OnceLock::new();
    *MOUNTED.get_or_init(|| Path::new("/proc/self/fd").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_component() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        for name in ["", ".", "..", "a/b", "/etc", "a\0b"] {
            assert!(dir.create_new(name, 0o600).is_err(), "{name:?}");
            assert!(dir.open_dir(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_symlink_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("out")).unwrap();
        let dir = Dir::open(root.path()).unwrap();
        assert!(dir.open_dir("out").is_err());
        assert!(dir.read("out").is_err());
    }

    #[test]
    fn an_unnamed_file_takes_names() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let file = dir.unnamed_file(0o640).unwrap();
        dir.link(&file, "one").unwrap();
        dir.link(&file, "two").unwrap();
        let taken = dir.link(&file, "two").unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(dir.names().unwrap().len(), 2);
    }
}
