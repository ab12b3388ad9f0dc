//! `[lmtp]` and `[socketmap]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::section::Section;
use crate::deliver::Settings;
use crate::lmtp::{self, Listen};
use crate::message::body::Spool;
use crate::sys::nss;

pub fn lmtp(root: &Section<'_>, hostname: String, delivery: &Settings) -> lmtp::Settings {
    let section = root.section("lmtp");
    let listen = section
        .tables("listen")
        .iter()
        .filter_map(listener)
        .collect();
    let number = |key, default: u32| {
        let number = section.number(key, Some(default)).unwrap_or(default);
        if number == 0 {
            section.error(key, "0 lets nothing in", format!("write {default}"));
        }
        number as usize
    };
    let limit = |key, default: u64| {
        let limit = section.duration(key, Duration::from_secs(default));
        if limit.is_zero() {
            section.error(key, "0 is no time at all", format!("write \"{default}s\""));
        }
        limit
    };
    let spool = match &delivery.spool_dir {
        Some(dir) => vec![dir.clone()],
        None => ["/var/lib/postroom/spool", "/var/tmp"]
            .map(PathBuf::from)
            .to_vec(),
    };
    let settings = lmtp::Settings {
        listen,
        hostname,
        max_recipients: number("max_recipients", 1000),
        message_size: delivery.message_size,
        max_connections: number("max_connections", 1000),
        idle_timeout: limit("idle_timeout", 300),
        data_deadline: limit("data_deadline", 300),
        verbose_replies: section.flag("verbose_replies", false),
        spool: Spool { dirs: spool },
    };
    section.finish();
    settings
}

/// `[socketmap]`
pub fn socketmap(root: &Section<'_>) -> Vec<Listen> {
    let section = root.section("socketmap");
    let tables = section.tables("listen");
    let listen = tables.iter().filter_map(listener).collect();
    section.finish();
    listen
}

/// `[lda]`: who may hand messages over to the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HandOver {
    /// Unix sockets.
    pub listen: Vec<Listen>,
    /// Those who deliver to others too.
    pub trusted_uids: Vec<u32>,
    /// Messages of one uid.
    pub at_once: u32,
    pub a_minute: u32,
}

impl HandOver {
    /// Where an LDA finds the server.
    pub fn socket(&self) -> Option<&Path> {
        self.listen.iter().find_map(|it| match it {
            Listen::Unix { path, .. } => Some(path.as_path()),
            Listen::Tcp { .. } => None,
        })
    }
}

pub fn hand_over(root: &Section<'_>) -> HandOver {
    let section = root.section("lda");
    let tables = section.tables("listen");
    let listen: Vec<Listen> = tables.iter().filter_map(listener).collect();
    let tcp = listen
        .iter()
        .position(|it| matches!(it, Listen::Tcp { .. }));
    if let Some(at) = tcp {
        let why = "over TCP nobody knows whose process it is";
        tables[at].error("tcp", why, "write { unix = \"/run/postroom/lda\" }");
    }
    let number = |key, default: u32| {
        let number = section.number(key, Some(default)).unwrap_or(default);
        if number == 0 {
            section.error(key, "0 lets nothing in", format!("write {default}"));
        }
        number
    };
    let trusted = section
        .texts("trusted_uids")
        .into_iter()
        .filter_map(|name| {
            let found = nss::uid(&name).ok().flatten();
            if found.is_none() {
                let advice = "write the name of a user, or a number in quotes";
                section.error("trusted_uids", format!("there is no user {name:?}"), advice);
            }
            found
        });
    let hand_over = HandOver {
        listen,
        trusted_uids: trusted.collect(),
        at_once: number("max_at_once", 4),
        a_minute: number("max_per_minute", 120),
    };
    section.finish();
    hand_over
}

fn listener(section: &Section<'_>) -> Option<Listen> {
    let trusted = section
        .has("trusted")
        .then(|| section.flag("trusted", false));
    let tcp = section.text("tcp");
    let unix = section.text("unix");
    let mode = section.text("mode").unwrap_or_else(|| "0660".into());
    let (user, group) = (section.text("user"), section.text("group"));
    section.finish();
    match (unix, tcp) {
        (Some(path), None) => {
            let Ok(mode) = u32::from_str_radix(mode.trim_start_matches("0o"), 8) else {
                section.error(
                    "mode",
                    format!("{mode:?} is no mode"),
                    "write it in octal: \"0660\"",
                );
                return None;
            };
            Some(Listen::Unix {
                path: PathBuf::from(path),
                mode,
                user,
                group,
                trusted,
            })
        }
        (None, Some(address)) => match address.parse() {
            Ok(address) => Some(Listen::Tcp { address, trusted }),
            Err(_) => {
                section.error(
                    "tcp",
                    format!("{address:?} is no address"),
                    "write it like \"127.0.0.1:24\"",
                );
                None
            }
        },
        _ => {
            section.error(
                "",
                "a listener is unix or tcp",
                "write { unix = \"/run/postroom/lmtp\" } or { tcp = \"127.0.0.1:24\" }",
            );
            None
        }
    }
}
