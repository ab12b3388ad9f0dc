//! Others are told of new messages and full mailboxes, with the names of RFC 5423: a datagram or a POST for each.
//!
//! Never in the way of a delivery: what the hook does not take in time is lost, and counted.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::faults::now;
use super::metrics::metrics;
use crate::log::Entry;

/// Events that wait for a slow hook.
const WAITING: usize = 1000;
/// How long a POST may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// `[notify]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// A unix datagram socket.
    pub socket: Option<PathBuf>,
    /// `http://…` or `https://…`
    pub url: Option<String>,
    /// What the events say of the server.
    pub hostname: String,
}

/// An event (RFC 5423 sections 4 and 5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    /// `MessageNew` or `QuotaExceed`.
    event: &'static str,
    /// Seconds since 1970.
    timestamp: u64,
    hostname: &'static str,
    service: &'static str,
    recipient: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mailbox: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uidset: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<String>,
    sender: String,
    session: String,
}

struct Hook {
    events: SyncSender<Event>,
    hostname: String,
}

static HOOK: OnceLock<Hook> = OnceLock::new();

/// From here on this process tells. A second call changes nothing.
pub fn start(settings: &Settings) {
    if settings.socket.is_none() && settings.url.is_none() {
        return;
    }
    let (events, waiting) = sync_channel(WAITING);
    let hook = Hook {
        events,
        hostname: settings.hostname.clone(),
    };
    if HOOK.set(hook).is_ok() {
        let settings = settings.clone();
        let named = thread::Builder::new().name("notify".into());
        let started = named.spawn(move || work(&settings, &waiting));
        if let Err(error) = started {
            let error = error.to_string();
            tracing::error!(error = error.as_str(), "nobody is told of new messages");
        }
    }
}

/// Tells of a stored message, or of one that a full mailbox has not taken.
pub fn tell(entry: &Entry<'_>) {
    let Some(hook) = HOOK.get() else { return };
    let event = match entry.code {
        _ if entry.is_again => return,
        "2.0.0" => "MessageNew",
        "5.2.2" | "4.2.2" => "QuotaExceed",
        _ => return,
    };
    let event = Event {
        event,
        timestamp: now(),
        hostname: &hook.hostname,
        service: "postroom",
        recipient: entry.recipient.to_owned(),
        user: entry.user.map(str::to_owned),
        mailbox: entry.mailbox.map(str::to_owned),
        uidset: entry.uid.map(|uid| uid.to_string()),
        message_size: entry.size,
        message_id: entry.message_id.map(str::to_owned),
        sender: entry.sender.to_owned(),
        session: entry.session.to_owned(),
    };
    if hook.events.try_send(event).is_err() {
        metrics().events_lost.inc();
    }
}

fn work(settings: &Settings, waiting: &Receiver<Event>) {
    let socket = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .build()
        .into();
    let mut is_heard = true;
    while let Ok(event) = waiting.recv() {
        let Ok(text) = serde_json::to_string(&event) else {
            continue;
        };
        let told = match (&settings.socket, &socket) {
            (Some(path), Ok(socket)) => socket
                .send_to(text.as_bytes(), path)
                .map(drop)
                .map_err(|error| format!("{}: {error}", path.display())),
            (Some(_), Err(error)) => Err(error.to_string()),
            (None, _) => Ok(()),
        };
        let posted = match &settings.url {
            Some(url) => agent
                .post(url)
                .header("Content-Type", "application/json")
                .send(&text)
                .map(drop)
                .map_err(|error| format!("{url}: {error}")),
            None => Ok(()),
        };
        match told.and(posted) {
            Ok(()) => is_heard = true,
            Err(why) => {
                metrics().events_lost.inc();
                // Once, until it hears again.
                if std::mem::take(&mut is_heard) {
                    tracing::warn!(why, "the hook of [notify] does not hear");
                }
            }
        }
    }
}
