//! Sockets that a runtime watches: of clients, and those that listen for them.

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, ReadBuf};

/// It owns its descriptor, and never gives it away.
pub trait Owner: AsFd + AsRawFd {}

impl Owner for UnixListener {}
impl Owner for TcpListener {}
impl Owner for UnixStream {}
impl Owner for TcpStream {}

/// A client's; it does not block.
pub trait Socket: Owner + Send + Sync + Unpin {
    /// For one write, which does not wait: `WouldBlock` where the other side leaves no room.
    fn writer(&self) -> impl Write;

    /// Appends what is there to read, as far as there is room; none: the other side is closed.
    fn receive(&self, bytes: &mut ReadBuf<'_>) -> io::Result<usize> {
        // SAFETY: the kernel writes at most so many bytes, and says how many: those are there, and none is taken back.
        unsafe {
            let room = bytes.unfilled_mut();
            let (start, length) = (room.as_mut_ptr().cast(), room.len());
            let received = libc::recv(self.as_raw_fd(), start, length, 0);
            let received = Errno::result(received)? as usize;
            bytes.assume_init(received);
            bytes.advance(received);
            Ok(received)
        }
    }

    /// Nothing more is said.
    fn shut_down(&self) -> io::Result<()> {
        Ok(shutdown(self.as_raw_fd(), Shutdown::Write)?)
    }
}

impl Socket for UnixStream {
    fn writer(&self) -> impl Write {
        self
    }
}

impl Socket for TcpStream {
    fn writer(&self) -> impl Write {
        self
    }
}

/// Has the runtime that this is called in watch the socket.
pub fn watch<S: Owner>(socket: S, interest: Interest) -> io::Result<AsyncFd<S>> {
    // SAFETY: an owner of a descriptor keeps it open until the runtime has let it go.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}
