//! The sockets that a server listens on, kept open from one configuration to the next.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;

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

    /// Binds what is new; nothing of what is there changes yet.
    pub fn prepare(&self, wanted: &[Listen]) -> io::Result<Change> {
        let mut change = Change::default();
        for listen in wanted {
            let mut known = self.bound.iter();
            let known = known.find(|(known, _)| known.is_same_socket(listen));
            let given = self.given.iter().find(|it| is_for(it, listen));
            let bound = match (known, given) {
                (known, Some(given)) => {
                    if !known.is_some_and(|(known, _)| known.has_same_access(listen)) {
                        given.check(listen)?;
                    }
                    (listen.clone(), given.try_clone()?)
                }
                (None, None) => {
                    let listener = listen.bind()?;
                    if let Listen::Unix { path, .. } = listen {
                        change.made.push(Made(Some(path.clone())));
                    }
                    (listen.clone(), listener)
                }
                (Some((known, listener)), None) if known.has_same_access(listen) => {
                    (listen.clone(), listener.try_clone()?)
                }
                (Some((known, listener)), None) => match Replacement::bind(listen) {
                    Ok((replacement, listener)) => {
                        change.replacements.push(replacement);
                        (listen.clone(), listener)
                    }
                    Err(error) => {
                        let error = error.to_string();
                        let error = error.as_str();
                        tracing::error!(
                            error,
                            "mode, user and group need a restart: or a reload that succeeds: until then nobody is believed there"
                        );
                        // Whoever can connect to it may be one whom the new mode keeps out.
                        (known.with_trust(Some(false)), listener.try_clone()?)
                    }
                },
            };
            change.bound.push(bound);
        }
        Ok(change)
    }

    /// What was prepared holds from here on, and what is wanted no more is closed.
    pub fn commit(&mut self, change: Change) {
        for replacement in change.replacements {
            if let Err(error) = replacement.take_place() {
                let error = error.to_string();
                tracing::error!(
                    error = error.as_str(),
                    "a socket is not where it should be: restart"
                );
            }
        }
        change.made.into_iter().for_each(Made::stays);
        self.bound = change.bound;
        let wanted = self.bound.iter().map(|(listen, _)| listen.clone());
        self.complain(&wanted.collect::<Vec<_>>());
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
}

/// What a new configuration makes of the sockets. Dropped, it has changed nothing.
#[derive(Debug, Default)]
pub struct Change {
    bound: Vec<(Listen, Listener)>,
    made: Vec<Made>,
    replacements: Vec<Replacement>,
}

/// A unix socket that is removed, unless it stays.
#[derive(Debug)]
struct Made(Option<PathBuf>);

impl Made {
    fn stays(mut self) {
        self.0 = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

impl Change {
    /// Those of `listen`, for one server.
    pub fn of(&self, listen: &[Listen]) -> io::Result<Vec<Bound>> {
        let bound = listen.iter().filter_map(|wanted| {
            let mut bound = self.bound.iter();
            let (listen, listener) = bound.find(|(it, _)| it.is_same_socket(wanted))?;
            let bound = |listener| Bound {
                listener,
                terms: listen.terms(),
            };
            Some(listener.try_clone().map(bound))
        });
        bound.collect()
    }
}

/// A unix socket that waits beside the one whose place it is to take: nobody who could connect to the old one is taken for somebody
/// who may connect to this one.
#[derive(Debug)]
struct Replacement {
    waits: Made,
    place: PathBuf,
}

impl Replacement {
    fn bind(listen: &Listen) -> io::Result<(Replacement, Listener)> {
        let Listen::Unix { path, .. } = listen else {
            return Err(io::Error::other("not a unix socket"));
        };
        if !fs::symlink_metadata(path)?.file_type().is_socket() {
            return Err(io::Error::other("somebody has put something else there"));
        }
        let (place, mut beside) = (path.clone(), path.clone().into_os_string());
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let listener = listen.at(&beside).bind()?;
        let waits = Made(Some(beside));
        Ok((Replacement { waits, place }, listener))
    }

    fn take_place(self) -> io::Result<()> {
        if let Made(Some(waits)) = &self.waits {
            fs::rename(waits, &self.place)?;
        }
        self.waits.stays();
        Ok(())
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
        let found = fs::metadata(path).map_err(|error| {
            io::Error::new(error.kind(), format!("listen on {listen}: {error}"))
        })?;
        let found = found.permissions().mode() & 0o777;
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
