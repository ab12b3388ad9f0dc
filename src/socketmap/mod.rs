//! Postfix's socketmap (socketmap_table(5)): it asks whether a recipient can have mail before it takes the message.
//!
//! Requests and answers are netstrings: `<length>:<map> <key>,`. The map `recipient` answers from the same plan as RCPT.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::fault::Code;
use crate::lmtp::{Bound, doors};
use crate::message::{Address, Recipient};
use crate::run::Runner;

/// The longest request that is read, bytes.
const MAX_REQUEST: usize = 4096;
/// Digits of its length.
const MAX_DIGITS: usize = 5;
/// Clients at once; Postfix has one connection for each of its processes.
const MAX_CLIENTS: usize = 500;
/// A client that asks nothing for so long, or hears nothing, is sent away.
const IDLE: Duration = Duration::from_secs(600);

/// Answers until `stop` is true.
pub async fn serve(
    listeners: Vec<Bound>,
    runner: Runner,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let client = move |stream| client(stream, runner.clone());
    doors::serve(listeners, MAX_CLIENTS, stop, client).await
}

/// One client, until it has enough or says something that is no request.
async fn client(mut stream: impl AsyncRead + AsyncWrite + Unpin, runner: Runner) {
    while let Ok(Some(request)) = timeout(IDLE, request(&mut stream)).await {
        let answer = answer(&request, &runner).await;
        let answer = format!("{}:{answer},", answer.len());
        let sent = timeout(IDLE, stream.write_all(answer.as_bytes())).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// The next request; none at the end, and where there is no netstring.
pub async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut length = 0;
    for digits in 0.. {
        match stream.read_u8().await.ok()? {
            b':' if digits > 0 => break,
            digit @ b'0'..=b'9' if digits < MAX_DIGITS => {
                length = length * 10 + usize::from(digit - b'0');
            }
            _ => return None,
        }
    }
    if length > MAX_REQUEST {
        return None;
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.ok()?;
    (stream.read_u8().await.ok()? == b',').then_some(bytes)
}

async fn answer(request: &[u8], runner: &Runner) -> String {
    let Ok(request) = std::str::from_utf8(request) else {
        return "NOTFOUND ".into();
    };
    let Some(("recipient", key)) = request.split_once(' ') else {
        return "PERM there is one map here: recipient".into();
    };
    let Ok(address) = Address::parse(key) else {
        return "NOTFOUND ".into();
    };
    let report = runner.inspect(Recipient::new(address), None).await;
    match report.fault {
        None => "OK deliverable".into(),
        // Who is asked about is there, and LMTP says that no mail fits.
        Some(fault) if fault.code == Code::OverQuota => "OK mailbox full".into(),
        Some(fault) if fault.code.is_temporary() => format!("TEMP {}", fault.code.text()),
        Some(_) => "NOTFOUND ".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn netstrings() {
        for (bytes, want) in [
            (&b"3:abc,"[..], Some(&b"abc"[..])),
            (b"0:,", Some(b"")),
            (b"3:abc;", None),
            (b"3:ab", None),
            (b":,", None),
            (b"x:abc,", None),
            (b"99999:abc,", None),
            (b"000003:abc,", None),
            (b"", None),
        ] {
            let got = request(&mut &bytes[..]).await;
            assert_eq!(got.as_deref(), want, "{bytes:?}");
        }
    }
}
