//! What the server shows of itself, over HTTP: `/metrics` for Prometheus, `/status` for `postroom status`.
//!
//! On a unix socket, or on a loopback address: there is no password. One request a connection.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::lmtp::Bound;
use crate::lmtp::doors::{self, Duplex};
use crate::observe::metrics::metrics;
use crate::observe::snapshot::Snapshot;
use crate::run::Runner;

/// The longest request that is read, bytes.
const MAX_REQUEST: usize = 8192;
/// Clients at once.
const MAX_CLIENTS: usize = 50;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers until `stop` is true.
pub async fn serve(
    listeners: Vec<Bound>,
    runner: Runner,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let client = move |stream| {
        let runner = runner.clone();
        async move {
            let _ = timeout(PATIENCE, client(stream, &runner)).await;
        }
    };
    doors::serve(listeners, MAX_CLIENTS, stop, client).await
}

async fn client(mut stream: Box<dyn Duplex>, runner: &Runner) -> io::Result<()> {
    let request = request(&mut stream).await?;
    let (status, kind, body) = answer(&request, runner);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if !request.starts_with("HEAD ") {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// The first line of the request; what follows up to the empty line is read too.
pub async fn request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|it| it == b"\r\n\r\n") {
        if bytes.len() >= MAX_REQUEST || stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Status, type and body.
fn answer(request: &str, runner: &Runner) -> (&'static str, &'static str, String) {
    const TEXT: &str = "text/plain; charset=utf-8";
    let mut words = request.split(' ');
    let (method, path) = (words.next(), words.next().unwrap_or_default());
    if !matches!(method, Some("GET" | "HEAD")) {
        return ("405 Method Not Allowed", TEXT, "GET or HEAD\n".into());
    }
    let workers = runner.workers();
    let made = match path.split('?').next().unwrap_or_default() {
        "/metrics" => {
            let count = workers.as_ref().map_or(0, Vec::len);
            metrics()
                .workers
                .set(i64::try_from(count).unwrap_or(i64::MAX));
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            metrics().text().ok().map(|text| (kind, text))
        }
        "/status" => {
            let text = serde_json::to_string(&Snapshot::take(workers));
            text.ok().map(|text| ("application/json", text + "\n"))
        }
        _ => return ("404 Not Found", TEXT, "/metrics or /status\n".into()),
    };
    match made {
        Some((kind, text)) => ("200 OK", kind, text),
        None => ("500 Internal Server Error", TEXT, String::new()),
    }
}
