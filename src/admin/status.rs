//! `postroom status`: what the running server does.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::lmtp::Listen;
use crate::observe::metrics::LockWaits;
use crate::observe::snapshot::Snapshot;
use crate::text::quote::shown;

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print one JSON object
    #[arg(long, conflicts_with = "metrics")]
    json: bool,
    /// Print the counters as Prometheus reads them
    #[arg(long)]
    metrics: bool,
}

/// How long the server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the server that `[status] listen` names, and prints its answer; answers the exit code: 75 where it does not answer.
pub fn run(path: Option<&Path>, arguments: &Arguments, out: &mut impl Write) -> io::Result<u8> {
    let config = match super::load(path) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let Some(listen) = config.status.first() else {
        let advice = "the server shows nothing of itself: write [status] listen = [{ unix = \"/run/postroom/status\" }]";
        writeln!(io::stderr(), "postroom: {advice}")?;
        return Ok(78);
    };
    let what = if arguments.metrics {
        "/metrics"
    } else {
        "/status"
    };
    let text = match ask(listen, what) {
        Ok(text) => text,
        Err(error) => {
            writeln!(
                io::stderr(),
                "postroom: ask the server at {listen}: {error}"
            )?;
            return Ok(75);
        }
    };
    if arguments.json || arguments.metrics {
        out.write_all(text.as_bytes())?;
        return Ok(0);
    }
    let snapshot: Snapshot = serde_json::from_str(&text)?;
    print(&snapshot, out)?;
    Ok(0)
}

fn ask(listen: &Listen, what: &str) -> io::Result<String> {
    let request = format!("GET {what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    match listen {
        Listen::Unix { path, .. } => {
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(request.as_bytes())?;
            stream.read_to_end(&mut answer)?;
        }
        Listen::Tcp { address, .. } => {
            let mut stream = TcpStream::connect_timeout(address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(request.as_bytes())?;
            stream.read_to_end(&mut answer)?;
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        _ => Err(io::Error::other("it is no server of ours")),
    }
}

fn print(snapshot: &Snapshot, out: &mut impl Write) -> io::Result<()> {
    let Snapshot {
        version,
        pid,
        uptime,
        ..
    } = snapshot;
    writeln!(
        out,
        "postroom {version}, pid {pid}, up {}",
        duration(*uptime)
    )?;
    let states = snapshot.sessions.iter();
    let states: Vec<String> = states
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let all: usize = snapshot.sessions.iter().map(|it| it.1).sum();
    writeln!(out, "\nclients       {all}: {}", states.join(", "))?;
    for client in &snapshot.clients {
        let (state, age) = (&client.state, duration(client.age));
        let messages = client.messages;
        writeln!(
            out,
            "  {}  {}  {state}, {age}, {messages} messages",
            client.id, client.peer
        )?;
    }
    match &snapshot.workers {
        None => writeln!(out, "\nworkers       none: one process delivers")?,
        Some(workers) => {
            writeln!(out, "\nworkers       {}", workers.len())?;
            for worker in workers {
                writeln!(
                    out,
                    "  pid {}  uid {}  {} at work, {} delivered",
                    worker.pid, worker.uid, worker.at_work, worker.deliveries
                )?;
            }
        }
    }
    writeln!(out, "\ndeliveries")?;
    for (ending, count) in &snapshot.deliveries {
        writeln!(out, "  {count:>10}  {ending}")?;
    }
    let LockWaits {
        deliveries,
        total,
        longest,
    } = snapshot.lock_waits;
    writeln!(
        out,
        "\nlock waits    {deliveries} deliveries, {total} ms together, the longest {longest} ms"
    )?;
    writeln!(out, "\nlast faults")?;
    for fault in &snapshot.faults {
        let at = i64::try_from(fault.at).unwrap_or_default();
        let at = jiff::Timestamp::from_second(at).unwrap_or_default();
        writeln!(
            out,
            "  {at}  {} {}  {}  {}  {}",
            fault.result,
            fault.code,
            shown(&fault.session),
            shown(&fault.recipient),
            shown(&fault.why)
        )?;
    }
    Ok(())
}

/// `3d 4h`, `5m 10s`
fn duration(seconds: u64) -> String {
    let parts = [(86400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds;
    let mut shown = Vec::new();
    for (size, unit) in parts {
        if rest >= size {
            shown.push(format!("{}{unit}", rest / size));
            rest %= size;
        }
    }
    shown.truncate(2);
    match shown.is_empty() {
        true => "0s".into(),
        false => shown.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, want) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m 1s"),
            (3600, "1h"),
            (90061, "1d 1h"),
        ] {
            assert_eq!(duration(seconds), want);
        }
    }
}
