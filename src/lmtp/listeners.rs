//! The sockets that a server listens on, kept open from one configuration to the next.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;

use super::listen::{Bound, Listen, Listener};
use crate::sys::service::Given;

/// All that were ever asked for and still are.
#[derive(Debug, Default)]
pub struct Listeners {
    bound: Vec<(Listen, Listener)>,
    /// Opened by whoever started us, until somebody asks for them.
    given: Vec<Given>,
}

impl Listeners {
    /// `given`: sockets that are open already; the configuration says what they are for.
    pub fn new(given: Vec<Given>) -> Listeners {
        Listeners {
            bound: Vec::new(),
            given,
        }
    }

    /// Binds what is new, and closes what is wanted no more. After an error all is as it was.
    pub fn change(&mut self, wanted: &[Listen]) -> io::Result<()> {
        let bound = &self.bound;
        let is_known = |it: &&Listen| bound.iter().any(|(known, _)| known.is_same_socket(it));
        let mut new = Vec::new();
        for listen in wanted.iter().filter(|it| !is_known(it)) {
            let listener = match self.given.iter().find(|it| is_for(it, listen)) {
                Some(given) => given.check(listen).and_then(|()| given.try_clone())?,
                None => listen.bind()?,
            };
            new.push((listen.clone(), listener));
        }
        let is_wanted = |known: &Listen| wanted.iter().any(|it| it.is_same_socket(known));
        self.bound.retain(|(known, _)| is_wanted(known));
        self.bound.extend(new);
        self.complain(wanted);
        Ok(())
    }

    /// A client of a socket that nobody asks for would wait for ever.
    fn complain(&mut self, wanted: &[Listen]) {
        let is_wanted = |it: &Given| wanted.iter().any(|listen| is_for(it, listen));
        self.given.retain(|it| {
            if !is_wanted(it) {
                let address = it.address();
                let address = address.as_str();
                tracing::warn!(
                    address,
                    "the socket unit has a socket that no `listen` names"
                );
            }
            is_wanted(it)
        });
    }

    /// Those of `listen`, for one server.
    pub fn of(&self, listen: &[Listen]) -> io::Result<Vec<Bound>> {
        let bound = listen.iter().filter_map(|wanted| {
            let mut known = self.bound.iter();
            let (_, listener) = known.find(|(known, _)| known.is_same_socket(wanted))?;
            let bound = |listener| Bound {
                listener,
                terms: wanted.terms(),
            };
            Some(listener.try_clone().map(bound))
        });
        bound.collect()
    }
}

/// Whether this socket is the one that `listen` names.
fn is_for(given: &Given, listen: &Listen) -> bool {
    match (given, listen) {
        (Given::Unix(it), Listen::Unix { path, .. }) => it
            .local_addr()
            .is_ok_and(|address| address.as_pathname() == Some(path)),
        (Given::Tcp(it), Listen::Tcp { address, .. }) => {
            it.local_addr().is_ok_and(|it| it == *address)
        }
        _ => false,
    }
}

impl Given {
    fn address(&self) -> String {
        match self {
            Given::Unix(it) => it.local_addr().map(|it| format!("{it:?}")),
            Given::Tcp(it) => it.local_addr().map(|it| it.to_string()),
        }
        .unwrap_or_default()
    }

    /// The mode of a socket says whose word counts: it must be the one that the configuration knows.
    fn check(&self, listen: &Listen) -> io::Result<()> {
        let Listen::Unix { path, mode, .. } = listen else {
            return Ok(());
        };
        let found = std::fs::metadata(path)?.permissions().mode() & 0o777;
        if found == *mode {
            return Ok(());
        }
        let why = format!(
            "listen on {listen}: the socket unit gives it the mode {found:04o}, the configuration {mode:04o}: write SocketMode={mode:04o} there"
        );
        Err(io::Error::other(why))
    }

    fn try_clone(&self) -> io::Result<Listener> {
        Ok(match self {
            Given::Unix(it) => Listener::Unix(it.try_clone()?),
            Given::Tcp(it) => Listener::Tcp(it.try_clone()?),
        })
    }
}

impl Listener {
    fn try_clone(&self) -> io::Result<Listener> {
        Ok(match self {
            Listener::Unix(it) => Listener::Unix(it.try_clone()?),
            Listener::Tcp(it) => Listener::Tcp(it.try_clone()?),
        })
    }
}

impl Bound {
    /// For a child that is to keep it.
    pub fn descriptor(&self) -> RawFd {
        match &self.listener {
            Listener::Unix(it) => it.as_raw_fd(),
            Listener::Tcp(it) => it.as_raw_fd(),
        }
    }
}
