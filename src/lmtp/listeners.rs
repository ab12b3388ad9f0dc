//! The sockets that a server listens on, kept open from one configuration to the next.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::{Bound, Listen};

/// All that were ever asked for and still are.
#[derive(Debug, Default)]
pub struct Listeners(Vec<(Listen, Bound)>);

impl Listeners {
    /// Binds what is new, and closes what is wanted no more. After an error all is as it was.
    pub fn change(&mut self, wanted: &[Listen]) -> io::Result<()> {
        let is_known = |it: &&Listen| self.0.iter().any(|(known, _)| known == *it);
        let new = wanted.iter().filter(|it| !is_known(it));
        let new = new.map(|it| Ok((it.clone(), it.bind()?)));
        let new = new.collect::<io::Result<Vec<_>>>()?;
        self.0.retain(|(known, _)| wanted.contains(known));
        self.0.extend(new);
        Ok(())
    }

    /// Those of `listen`, for one server.
    pub fn of(&self, listen: &[Listen]) -> io::Result<Vec<Bound>> {
        let asked = self.0.iter().filter(|(known, _)| listen.contains(known));
        asked.map(|(_, bound)| bound.try_clone()).collect()
    }
}

impl Bound {
    fn try_clone(&self) -> io::Result<Bound> {
        Ok(Bound {
            listener: match &self.listener {
                super::Listener::Unix(it) => super::Listener::Unix(it.try_clone()?),
                super::Listener::Tcp(it) => super::Listener::Tcp(it.try_clone()?),
            },
            is_trusted: self.is_trusted,
        })
    }

    /// For a child that is to keep it.
    pub fn descriptor(&self) -> RawFd {
        match &self.listener {
            super::Listener::Unix(it) => it.as_raw_fd(),
            super::Listener::Tcp(it) => it.as_raw_fd(),
        }
    }
}
