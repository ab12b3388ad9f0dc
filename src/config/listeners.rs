//! `[lmtp]` and `[socketmap]`.

use std::path::PathBuf;
use std::time::Duration;

use super::section::Section;
use crate::deliver::Settings;
use crate::lmtp::{self, Listen};
use crate::message::body::Spool;

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
