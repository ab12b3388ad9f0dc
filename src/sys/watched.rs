//! Sockets of clients that a runtime watches.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A socket that does not block, and owns its descriptor.
pub trait Socket: AsFd + AsRawFd + Send + Sync + Unpin {
    fn read(&self, bytes: &mut [u8]) -> io::Result<usize>;
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    fn shut_down(&self) -> io::Result<()>;
}

impl Socket for UnixStream {
    fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, bytes)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut &*self, bytes)
    }

    fn shut_down(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Socket for TcpStream {
    fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, bytes)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut &*self, bytes)
    }

    fn shut_down(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Has the runtime that this is called in watch the socket.
pub fn watch<S: Socket>(socket: S, interest: Interest) -> io::Result<AsyncFd<S>> {
    // SAFETY: a socket owns its descriptor and never gives it away: it stays open until the runtime has let it go.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}
