//! A client's socket, heard where its task is polled.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use super::connection::Wire;
use crate::run::in_place::Place;
use crate::sys::socket;
use crate::sys::watched::{Socket, watch};

/// Comes along when its task [moves](crate::run::in_place) between threads.
///
/// It is told when there is something to read, and only while something cannot be written that there is room: a client that takes its
/// answer wakes nobody. One side waits at a time: a reader that waits beside a writer is forgotten when that moves.
#[derive(Debug)]
pub struct Stream<S: AsRawFd> {
    /// None after it could not be registered.
    socket: Option<AsyncFd<S>>,
    place: Place,
    interest: Interest,
}

impl<S: Socket> Stream<S> {
    /// `socket`: it does not block.
    pub fn new(socket: S) -> io::Result<Stream<S>> {
        let interest = Interest::READABLE;
        Ok(Stream {
            socket: Some(watch(socket, interest)?),
            place: Place::here(),
            interest,
        })
    }

    /// The socket, registered here, for this at least.
    fn socket(&mut self, interest: Interest) -> io::Result<&AsyncFd<S>> {
        let here = Place::here();
        let wanted = match (self.place == here, interest.is_writable()) {
            (true, false) => self.interest,
            (false, false) => Interest::READABLE,
            (_, true) => Interest::READABLE | Interest::WRITABLE,
        };
        if (self.place != here || wanted != self.interest)
            && let Some(socket) = self.socket.take()
        {
            let socket = socket.into_inner();
            let register = || watch(socket, wanted);
            self.socket = Some(Place::register(register)?);
            (self.place, self.interest) = (here, wanted);
        }
        let socket = self.socket.as_ref();
        socket.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<S: Socket> Wire for Stream<S> {
    fn is_gone(&self) -> bool {
        let socket = self.socket.as_ref();
        socket.is_none_or(|socket| socket::is_gone(socket.get_ref()))
    }
}

impl<S: Socket> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = self.socket(Interest::READABLE)?;
        loop {
            let mut guard = ready!(socket.poll_read_ready(context))?;
            let wanted = bytes.remaining();
            match socket.get_ref().receive(bytes) {
                Ok(length) => {
                    // There was no more: the next bytes are told of anew.
                    if length > 0 && length < wanted {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl<S: Socket> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            // What is taken at once needs nobody who watches: not even where nobody can be had.
            let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
            match socket.get_ref().writer().write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                done => return Poll::Ready(done),
            }
            let socket = self.socket(Interest::WRITABLE)?;
            let mut guard = ready!(socket.poll_write_ready(context))?;
            // Until there is no more room again.
            match socket.get_ref().writer().write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.socket.as_ref();
        Poll::Ready(socket.map_or(Ok(()), |socket| socket.get_ref().shut_down()))
    }
}
