//! One client on stdin and stdout: a terminal, pipes, or the socket that inetd hands over.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, Stdin, Stdout};

use super::connection::Wire;
use crate::sys::socket;

/// Both as one stream.
pub struct Stdio {
    pub stdin: Stdin,
    pub stdout: Stdout,
}

impl Wire for Stdio {
    fn is_gone(&self) -> bool {
        socket::is_gone(&self.stdout)
    }
}

impl AsyncRead for Stdio {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdout).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_shutdown(cx)
    }
}

/// The client's address where inetd accepted a TCP connection.
pub fn stdin_peer() -> Option<IpAddr> {
    socket::tcp_peer(&std::io::stdin()).map(|peer| peer.ip().to_canonical())
}
