//! A client's socket, heard where its task is polled.

use std::io;
use std::os::unix::net;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::connection::Wire;
use crate::run::in_place::Place;
use crate::sys::socket;

/// A socket that can be registered anew.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send + Sized {
    type Std;
    fn leave(self) -> io::Result<Self::Std>;
    fn register(socket: Self::Std) -> io::Result<Self>;
    fn is_gone(&self) -> bool;
}

impl Socket for UnixStream {
    type Std = net::UnixStream;

    fn leave(self) -> io::Result<net::UnixStream> {
        self.into_std()
    }

    fn register(socket: net::UnixStream) -> io::Result<UnixStream> {
        UnixStream::from_std(socket)
    }

    fn is_gone(&self) -> bool {
        socket::is_gone(self)
    }
}

impl Socket for TcpStream {
    type Std = std::net::TcpStream;

    fn leave(self) -> io::Result<std::net::TcpStream> {
        self.into_std()
    }

    fn register(socket: std::net::TcpStream) -> io::Result<TcpStream> {
        TcpStream::from_std(socket)
    }

    fn is_gone(&self) -> bool {
        socket::is_gone(self)
    }
}

/// Comes along when its task [moves](crate::run::in_place) between threads.
#[derive(Debug)]
pub struct Stream<S> {
    /// None after it could not be registered.
    socket: Option<S>,
    place: Place,
}

impl<S: Socket> Stream<S> {
    pub fn new(socket: S) -> Stream<S> {
        Stream {
            socket: Some(socket),
            place: Place::here(),
        }
    }

    /// The socket, registered where it is asked for.
    fn socket(&mut self) -> io::Result<Pin<&mut S>> {
        let here = Place::here();
        if self.place != here
            && let Some(socket) = self.socket.take()
        {
            let socket = socket.leave()?;
            self.socket = Some(Place::register(|| S::register(socket))?);
            self.place = here;
        }
        let socket = self.socket.as_mut().map(Pin::new);
        socket.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<S: Socket> Wire for Stream<S> {
    fn is_gone(&self) -> bool {
        self.socket.as_ref().is_none_or(Socket::is_gone)
    }
}

impl<S: Socket> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.socket()?.poll_read(context, bytes)
    }
}

impl<S: Socket> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.socket()?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket()?.poll_shutdown(context)
    }
}
