//! A packet socket for tasks.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;

use super::packet::{Buffer, Packets};

/// A socket that tasks wait for, not threads.
#[derive(Debug)]
pub struct Channel(AsyncFd<Packets>);

impl Channel {
    /// Makes the socket non-blocking. To be called within a runtime: elsewhere it panics.
    pub fn new(socket: Packets) -> io::Result<Channel> {
        socket.set_nonblocking()?;
        // SAFETY: the channel owns the socket and never gives it away: it stays open until the reactor has let it go.
        Ok(Channel(unsafe { AsyncFd::register(socket) }?))
    }

    /// [`Packets::send`]
    pub async fn send(
        &self,
        bytes: &[u8],
        descriptor: Option<&(dyn AsRawFd + Sync)>,
    ) -> io::Result<()> {
        loop {
            let mut ready = self.0.writable().await?;
            let descriptor = descriptor.map(|it| it as &dyn AsRawFd);
            if let Ok(sent) = ready.try_io(|socket| socket.get_ref().send(bytes, descriptor)) {
                return sent;
            }
        }
    }

    /// [`Packets::receive`]
    pub async fn receive(&self, buffer: &mut Buffer) -> io::Result<Option<Option<OwnedFd>>> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(received) = ready.try_io(|socket| socket.get_ref().receive(buffer)) {
                return received;
            }
        }
    }

    /// [`Packets::say_no_more`]
    pub fn say_no_more(&self) {
        self.0.get_ref().say_no_more();
    }
}
