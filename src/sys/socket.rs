//! Listening sockets with exactly the owner and mode that the config names, and what the kernel knows of a peer.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstat};
use nix::unistd::{Gid, Group, Uid, User, fchownat, geteuid};

use super::fault_point::pass;

/// The process at the other end of a unix socket when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

/// A listening unix socket at `path` with this mode, owner and group (none: as the process has it).
///
/// A socket file that nobody listens on is replaced; one that answers, or a file that is no socket, is an error. Nobody but
/// the final owner, or we, can connect at any moment.
pub fn bind_unix(
    path: &Path,
    mode: u32,
    uid: Option<u32>,
    gid: Option<u32>,
) -> io::Result<UnixListener> {
    remove_stale(path)?;
    let listener = bind_private(path)?;
    give_away(path, mode, uid, gid)?;
    Ok(listener)
}

/// Gives the socket that was just bound its owner and mode. Whoever may change names in its directory has perhaps put something else
/// there by now: no link is followed, and only a socket as we make it, with no name elsewhere, is given away.
fn give_away(path: &Path, mode: u32, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    pass()?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = open(path, flags, Mode::empty())?;
    let stat = fstat(&file)?;
    let is_private = stat.st_mode & !(libc::S_IRUSR | libc::S_IWUSR) == libc::S_IFSOCK;
    if !is_private || stat.st_nlink != 1 || stat.st_uid != geteuid().as_raw() {
        return Err(io::Error::other("somebody has put something else there"));
    }
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    fchownat(&file, "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
    // fchmod(2) of such a descriptor is refused; this is the same file, whatever has the name now.
    let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mode = Mode::from_bits_truncate(mode);
    Ok(fchmodat(
        AT_FDCWD,
        opened.as_str(),
        mode,
        FchmodatFlags::FollowSymlink,
    )?)
}

/// A socket that only our own uid can connect to.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // Linux gives the file the mode of the unbound socket, less the umask: no window, and no umask to change for all threads.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(UnixListener::from(socket))
}

/// Removes the socket that a dead server left.
fn remove_stale(path: &Path) -> io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is something that is no socket",
        ));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another server listens there",
        )),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// The uid of a user by name or number.
pub fn uid_of(user: &str) -> io::Result<u32> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    let found = User::from_name(user)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no user {user:?}")))?;
    Ok(found.uid.as_raw())
}

/// The gid of a group by name or number.
pub fn gid_of(group: &str) -> io::Result<u32> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let found = Group::from_name(group)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no group {group:?}")))?;
    Ok(found.gid.as_raw())
}

/// SO_PEERCRED of a unix socket.
pub fn peer(socket: &impl AsFd) -> io::Result<Peer> {
    let peer = getsockopt(socket, sockopt::PeerCredentials)?;
    Ok(Peer {
        pid: peer.pid(),
        uid: peer.uid(),
        gid: peer.gid(),
    })
}

/// The address at the other end; none where `socket` is no TCP socket.
pub fn tcp_peer(socket: &impl AsFd) -> Option<SocketAddr> {
    let socket = socket.as_fd().try_clone_to_owned().ok()?;
    TcpStream::from(socket).peer_addr().ok()
}

/// Whether nobody can read what would be written: the peer has closed, or the connection is broken. A peer that only ended
/// its own half is still there. Does not wait; false when in doubt.
pub fn is_gone(socket: &impl AsFd) -> bool {
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let events = poll(&mut polled, PollTimeout::ZERO)
        .ok()
        .and_then(|_| polled[0].revents());
    events.is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}

/// Whether a pipe, a socket or a file gives its bytes: there is a message. qmail hands over a file.
pub fn brings_bytes(stream: &impl AsFd) -> bool {
    fstat(stream).is_ok_and(|stat| {
        matches!(
            SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT,
            SFlag::S_IFIFO | SFlag::S_IFSOCK | SFlag::S_IFREG
        )
    })
}

/// Whether there is nothing to read, ever: /dev/null, which also stands where a caller closed the descriptor.
pub fn is_null(stream: &impl AsFd) -> bool {
    let null = fs::metadata("/dev/null").map(|null| null.rdev());
    fstat(stream).is_ok_and(|stat| null.is_ok_and(|null| stat.st_rdev == null && null != 0))
}

/// Pause before the next accept after the `failures`-th one in a row that failed: 20 ms, doubling up to 1 s.
pub fn back_off(failures: u32) -> Duration {
    Duration::from_millis(20 << failures.saturating_sub(1).min(6)).min(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sys::fault_point;

    #[test]
    fn mode_is_exact() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o660, 0o666, 0o777] {
            let path = dir.path().join(format!("{mode:o}"));
            let gid = nix::unistd::getegid().as_raw();
            let _listener = bind_unix(&path, mode, None, Some(gid)).unwrap();
            let metadata = fs::symlink_metadata(&path).unwrap();
            assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (mode, gid));
        }
    }

    #[test]
    fn ours_alone_before_it_is_given_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lmtp");
        let _listener = bind_private(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o177, 0);
    }

    /// In a directory of somebody else, who changes the name as soon as the socket has it.
    #[test]
    fn a_swapped_socket_gives_nothing_away() {
        type Swap = fn(&Path, &Path);
        let swaps: [(&str, Swap); 4] = [
            ("a symlink", |path, other| {
                std::os::unix::fs::symlink(other, path).unwrap();
            }),
            ("a file", |path, other| fs::rename(other, path).unwrap()),
            ("a second name", |path, other| {
                fs::hard_link(other, path).unwrap()
            }),
            ("a socket with a second name", |path, other| {
                fs::remove_file(other).unwrap();
                bind_private(other).unwrap();
                fs::hard_link(other, path).unwrap();
            }),
        ];
        for (what, swap) in swaps {
            let dir = tempfile::tempdir().unwrap();
            let (path, other) = (dir.path().join("lmtp"), dir.path().join("other"));
            fs::write(&other, "precious").unwrap();
            fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
            fault_point::meddle(0, {
                let (path, other) = (path.clone(), other.clone());
                move || {
                    fs::remove_file(&path).unwrap();
                    swap(&path, &other);
                }
            });
            let bound = bind_unix(&path, 0o666, None, None);
            assert!(
                !fault_point::disarm() && bound.is_err(),
                "{what}: {bound:?}"
            );
            let mode = fs::metadata(&path).unwrap().mode() & 0o777;
            assert_eq!(mode, 0o600, "{what}");
        }
    }

    #[test]
    fn only_dead_sockets_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lmtp");
        let living = bind_unix(&path, 0o600, None, None).unwrap();
        assert_eq!(
            bind_unix(&path, 0o600, None, None).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(living);
        let _again = bind_unix(&path, 0o600, None, None).unwrap();

        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert_eq!(
            bind_unix(&file, 0o600, None, None).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert_eq!(
            bind_unix(&link, 0o600, None, None).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
    }

    #[test]
    fn peers() {
        let (here, there) = UnixStream::pair().unwrap();
        assert_eq!(peer(&here).unwrap().pid, std::process::id() as i32);
        assert!(!is_gone(&here));
        there.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(
            !is_gone(&here),
            "a peer that has said all still wants its answers"
        );
        drop(there);
        assert!(is_gone(&here));
    }

    #[test]
    fn addresses_of_peers() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert_eq!(tcp_peer(&server), Some(client.local_addr().unwrap()));
        assert_eq!(tcp_peer(&UnixStream::pair().unwrap().0), None);
        assert_eq!(tcp_peer(&fs::File::open("/dev/null").unwrap()), None);
    }

    #[test]
    fn names() {
        assert_eq!(uid_of("root").unwrap(), 0);
        assert_eq!(gid_of("4021").unwrap(), 4021);
        assert!(uid_of("no-such-user-here").is_err());
    }

    #[test]
    fn pauses() {
        for (failures, millis) in [(1, 20), (2, 40), (6, 640), (7, 1000), (u32::MAX, 1000)] {
            assert_eq!(back_off(failures), Duration::from_millis(millis));
        }
    }
}
