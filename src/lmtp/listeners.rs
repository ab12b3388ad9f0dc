//! The sockets that a server listens on, kept open from one configuration to the next.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::{Bound, Listen, Listener};

/// All that were ever asked for and still are.
#[derive(Debug, Default)]
pub struct Listeners(Vec<(Listen, Listener)>);

impl Listeners {
    /// Binds what is new, and closes what is wanted no more. After an error all is as it was.
    pub fn change(&mut self, wanted: &[Listen]) -> io::Result<()> {
        let is_known = |it: &&Listen| self.0.iter().any(|(known, _)| known.is_same_socket(it));
        let new = wanted.iter().filter(|it| !is_known(it));
        let new = new.map(|it| Ok((it.clone(), it.bind()?)));
        let new = new.collect::<io::Result<Vec<_>>>()?;
        let is_wanted = |known: &Listen| wanted.iter().any(|it| it.is_same_socket(known));
        self.0.retain(|(known, _)| is_wanted(known));
        self.0.extend(new);
        Ok(())
    }

    /// Those of `listen`, for one server.
    pub fn of(&self, listen: &[Listen]) -> io::Result<Vec<Bound>> {
        let bound = listen.iter().filter_map(|wanted| {
            let mut known = self.0.iter();
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
