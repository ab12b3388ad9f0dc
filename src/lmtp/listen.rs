//! `lmtp.listen`: the sockets, bound while the process still may.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::sys::socket;

/// One entry of `lmtp.listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    Unix {
        path: PathBuf,
        mode: u32,
        /// Names or numbers; none: as the process has it.
        user: Option<String>,
        group: Option<String>,
        trusted: Option<bool>,
    },
    Tcp {
        address: SocketAddr,
        trusted: Option<bool>,
        /// TLS from the first byte on.
        ssl: bool,
        /// A load balancer says who the client is.
        haproxy: bool,
    },
}

/// A socket that listens.
#[derive(Debug)]
pub struct Bound {
    pub(super) listener: Listener,
    pub(super) terms: Terms,
}

/// How the clients of one socket are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    pub is_trusted: bool,
    pub ssl: bool,
    pub haproxy: bool,
}

#[derive(Debug)]
pub(super) enum Listener {
    Unix(std::os::unix::net::UnixListener),
    Tcp(std::net::TcpListener),
}

/// Binds all sockets, while the process still may: before it gives its privileges away. Errors name the socket.
pub fn bind(listen: &[Listen]) -> io::Result<Vec<Bound>> {
    let bound = listen.iter().map(|it| {
        Ok(Bound {
            listener: it.bind()?,
            terms: it.terms(),
        })
    });
    bound.collect()
}

impl Listen {
    pub(super) fn bind(&self) -> io::Result<Listener> {
        let listener = match self {
            Listen::Unix {
                path,
                mode,
                user,
                group,
                ..
            } => {
                let uid = user.as_deref().map(socket::uid_of).transpose();
                let gid = group.as_deref().map(socket::gid_of).transpose();
                uid.and_then(|uid| socket::bind_unix(path, *mode, uid, gid?))
                    .map(Listener::Unix)
            }
            Listen::Tcp { address, .. } => std::net::TcpListener::bind(address).map(Listener::Tcp),
        };
        listener.map_err(|error| io::Error::new(error.kind(), format!("listen on {self}: {error}")))
    }

    /// Clients are believed when they say who sends: those of a unix socket, by its mode, unless the config says.
    pub(super) fn terms(&self) -> Terms {
        match *self {
            Listen::Unix { trusted, mode, .. } => Terms {
                is_trusted: trusted.unwrap_or(mode & 0o002 == 0),
                ssl: false,
                haproxy: false,
            },
            Listen::Tcp {
                trusted,
                ssl,
                haproxy,
                ..
            } => Terms {
                is_trusted: trusted.unwrap_or(false),
                ssl,
                haproxy,
            },
        }
    }

    /// One socket serves both.
    pub(super) fn is_same_socket(&self, other: &Listen) -> bool {
        match (self, other) {
            (Listen::Tcp { address, .. }, Listen::Tcp { address: it, .. }) => address == it,
            (Listen::Unix { path, .. }, Listen::Unix { path: it, .. }) => path == it,
            _ => false,
        }
    }

    /// The same may connect.
    pub(super) fn has_same_access(&self, other: &Listen) -> bool {
        match (self, other) {
            (Listen::Unix { .. }, Listen::Unix { .. }) => {
                self.with_trust(None) == other.with_trust(None)
            }
            _ => true,
        }
    }

    /// The same, with this as `trusted` where it is a unix socket.
    pub(super) fn with_trust(&self, trust: Option<bool>) -> Listen {
        let mut new = self.clone();
        if let Listen::Unix { trusted, .. } = &mut new {
            *trusted = trust;
        }
        new
    }

    /// The same unix socket, in another place.
    pub(super) fn at(&self, place: &Path) -> Listen {
        let mut new = self.clone();
        if let Listen::Unix { path, .. } = &mut new {
            *path = place.to_owned();
        }
        new
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listen::Unix { path, .. } => path.display().fmt(f),
            Listen::Tcp { address, .. } => address.fmt(f),
        }
    }
}
