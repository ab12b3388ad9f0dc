//! Small services beside LMTP: each client gets a task of its own.

use std::future::Future;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Bound, Door, Stream};
use crate::sys::socket;

/// A byte stream to a client.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Serves no more than `most` clients at once through each listener, until `stop` is true. One too many is closed: he comes again.
pub async fn serve<F: Future<Output = ()> + Send + 'static>(
    listeners: Vec<Bound>,
    most: usize,
    mut stop: watch::Receiver<bool>,
    client: impl Fn(Box<dyn Duplex>) -> F + Send + Sync + 'static,
) -> io::Result<()> {
    let mut doors = JoinSet::new();
    let client = Arc::new(client);
    for listener in listeners {
        doors.spawn(welcome(Door::new(listener)?, most, Arc::clone(&client)));
    }
    if doors.is_empty() {
        return Ok(());
    }
    // Nobody left who could say so: the end too.
    let _ = stop.wait_for(|stop| *stop).await;
    doors.shutdown().await;
    Ok(())
}

async fn welcome<F: Future<Output = ()> + Send + 'static>(
    door: Door,
    most: usize,
    client: Arc<impl Fn(Box<dyn Duplex>) -> F>,
) {
    let mut clients = JoinSet::new();
    let mut failures = 0;
    loop {
        match door.accept().await {
            Ok(arrival) => {
                failures = 0;
                while clients.try_join_next().is_some() {}
                if clients.len() >= most {
                    continue;
                }
                let stream: io::Result<Box<dyn Duplex>> = match arrival.stream {
                    Stream::Unix(it) => UnixStream::from_std(it).map(|it| Box::new(it) as _),
                    Stream::Tcp(it, _) => TcpStream::from_std(it).map(|it| Box::new(it) as _),
                };
                // One that cannot be watched is closed.
                if let Ok(stream) = stream {
                    clients.spawn(client(stream));
                }
            }
            Err(_) => {
                failures += 1;
                sleep(socket::back_off(failures)).await;
            }
        }
    }
}
