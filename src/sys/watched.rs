//! Sockets of clients that a runtime watches.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A socket that does not block, and owns its descriptor.
pub trait Socket: AsFd + AsRawFd + Send + Sync + Unpin {
    fn both_ways(&self) -> impl Read + Write;

    /// Nothing more is said.
    fn shut_down(&self) -> io::Result<()> {
        Ok(shutdown(self.as_raw_fd(), Shutdown::Write)?)
    }
}

impl Socket for UnixStream {
    fn both_ways(&self) -> impl Read + Write {
        self
    }
}

impl Socket for TcpStream {
    fn both_ways(&self) -> impl Read + Write {
        self
    }
}

/// Has the runtime that this is called in watch the socket.
pub fn watch<S: Socket>(socket: S, interest: Interest) -> io::Result<AsyncFd<S>> {
    // SAFETY: a socket owns its descriptor and never gives it away: it stays open until the runtime has let it go.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}
