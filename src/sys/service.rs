//! systemd, where it is the one that started us: sockets that it has opened, and what it wants to hear (sd_notify(3),
//! sd_listen_fds(3)). Nobody else hears anything.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
use sd_notify::NotifyState;

/// A socket that was opened for us.
#[derive(Debug)]
pub enum Given {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// The sockets that were opened for this process. To be called once, at the start. Error: one is not for streams.
pub fn given_sockets() -> io::Result<Vec<Given>> {
    sd_notify::listen_fds()?
        .map(|fd| {
            // SAFETY: whoever started us says that this descriptor is ours, and nobody else takes it.
            #[allow(unsafe_code)]
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            given(socket)
        })
        .collect()
}

fn given(socket: OwnedFd) -> io::Result<Given> {
    let refused = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if getsockopt(&socket, sockopt::SockType)? != SockType::Stream
        || !getsockopt(&socket, sockopt::AcceptConn)?
    {
        return refused(
            "a socket of the socket unit is not one that listens (ListenStream=, Accept=no)",
        );
    }
    let address: SockaddrStorage = getsockname(std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd()))?;
    match address.family() {
        Some(AddressFamily::Unix) => Ok(Given::Unix(UnixListener::from(socket))),
        Some(AddressFamily::Inet | AddressFamily::Inet6) => {
            Ok(Given::Tcp(TcpListener::from(socket)))
        }
        _ => refused("a socket of the socket unit is neither unix nor TCP"),
    }
}

/// Clients are served from here on.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A new configuration is being read; [`ready`] follows in any case.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// The way down begins (`STOPPING=1`). Told by the monitor where there is one, else by the server; twice does no harm.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// We are well.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often it wants to hear that we are well, asked by the process that it has started.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Nobody who does not hear costs a mail.
fn tell(what: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(what);
}
