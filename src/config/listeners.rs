//! `[lmtp]`, `[socketmap]` and `[lda]`: what the server listens on.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::section::Section;
use crate::deliver::Settings;
use crate::lmtp::command::Workarounds;
use crate::lmtp::tls::Files;
use crate::lmtp::{self, Listen};
use crate::message::body::Spool;
use crate::run::turns;
use crate::sys::nss;

/// `[lmtp]`, and TLS for it.
pub fn lmtp(root: &Section<'_>, hostname: String, delivery: &Settings) -> lmtp::Settings {
    let section = root.section("lmtp");
    let tables = section.tables("listen");
    let listen = tables.iter().filter_map(lmtp_listener).collect();
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
    let (tls, requires_tls) = tls(root);
    let balancers = networks(root, "haproxy_trusted_networks");
    check_listeners(&tables, tls.is_some(), !balancers.is_empty());
    let settings = lmtp::Settings {
        listen,
        hostname,
        max_recipients: number("max_recipients", 1000),
        message_size: delivery.message_size,
        max_connections: number("max_connections", 1000),
        max_connections_per_peer: number("max_connections_per_peer", 500),
        turns: turns::Limits {
            at_once: number("max_per_user", 32),
            waiting: number("max_waiting_per_user", 1000),
        },
        idle_timeout: limit("idle_timeout", 300),
        data_deadline: limit("data_deadline", 300),
        verbose_replies: section.flag("verbose_replies", false),
        spool: Spool {
            dirs: spool,
            min_free: delivery.min_free_space,
        },
        takes_errands: delivery.placement.is_some(),
        knows_retries: !delivery.duplicate_window.is_zero(),
        trusted_networks: networks(root, "login_trusted_networks"),
        balancers,
        workarounds: workarounds(root),
        tls,
        requires_tls,
        certificate: None,
    };
    section.finish();
    settings
}

/// What a listener needs beside itself.
fn check_listeners(tables: &[Section<'_>], has_certificate: bool, has_balancers: bool) {
    for listener in tables {
        if listener.is_flag("ssl") && listener.flag("ssl", false) && !has_certificate {
            let advice = "set ssl_server_cert_file and ssl_server_key_file";
            listener.error("ssl", "there is no certificate", advice);
        }
        if listener.is_flag("haproxy") && listener.flag("haproxy", false) && !has_balancers {
            let why = "nobody is trusted to say who the client is";
            let advice = "set haproxy_trusted_networks = [\"192.0.2.1\"]";
            listener.error("haproxy", why, advice);
        }
    }
}

/// `ssl` and its files; whether nothing goes without.
fn tls(root: &Section<'_>) -> (Option<Files>, bool) {
    #[derive(Clone, Copy, PartialEq)]
    enum Ssl {
        No,
        Yes,
        Required,
    }
    let words = [
        ("no", Ssl::No),
        ("yes", Ssl::Yes),
        ("required", Ssl::Required),
    ];
    let versions = [("TLSv1.2", false), ("TLSv1.3", true)];
    let (certificate, key) = (
        root.text("ssl_server_cert_file"),
        root.text("ssl_server_key_file"),
    );
    let only_tls13 = root.choice_or("ssl_min_protocol", &versions, false);
    let ssl = root.choice("ssl", &words, None);
    let files = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Files {
            certificate: certificate.into(),
            key: key.into(),
            only_tls13,
        }),
        (None, None) => None,
        (Some(_), None) => {
            let advice = "set ssl_server_key_file too";
            root.error("ssl_server_cert_file", "its key is missing", advice);
            None
        }
        (None, Some(_)) => {
            let advice = "set ssl_server_cert_file too";
            root.error("ssl_server_key_file", "its certificate is missing", advice);
            None
        }
    };
    if matches!(ssl, Some(Ssl::Yes | Ssl::Required)) && files.is_none() {
        let advice = "set ssl_server_cert_file and ssl_server_key_file";
        root.error("ssl", "there is no certificate", advice);
    }
    match ssl {
        Some(Ssl::No) => (None, false),
        ssl => (files, ssl == Some(Ssl::Required)),
    }
}

/// Addresses (`192.0.2.1`) and networks (`2001:db8::/32`).
fn networks(root: &Section<'_>, key: &'static str) -> Vec<IpNet> {
    let networks = root.texts(key).into_iter().filter_map(|text| {
        let network = text.parse::<IpNet>().ok();
        let network = network.or_else(|| Some(text.parse::<IpAddr>().ok()?.into()));
        if network.is_none() {
            let advice = "write addresses or networks: [\"192.0.2.1\", \"2001:db8::/32\"]";
            root.error(key, format!("{text:?} is no network"), advice);
        }
        network
    });
    networks.collect()
}

fn workarounds(root: &Section<'_>) -> Workarounds {
    let key = "lmtp_client_workarounds";
    let mut workarounds = Workarounds::default();
    for word in root.texts(key) {
        match word.as_str() {
            "whitespace-before-path" => workarounds.whitespace_before_path = true,
            "mailbox-for-path" => workarounds.mailbox_for_path = true,
            _ => {
                let advice = "write some of \"whitespace-before-path\", \"mailbox-for-path\"";
                root.error(key, format!("{word:?} is no workaround"), advice);
            }
        }
    }
    workarounds
}

/// `[socketmap]`
pub fn socketmap(root: &Section<'_>) -> Vec<Listen> {
    let section = root.section("socketmap");
    let tables = section.tables("listen");
    let listen = tables.iter().filter_map(plain_listener).collect();
    section.finish();
    listen
}

/// `[lda]`: the server that LDAs hand their messages over to, where their own rights do not suffice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LdaServer {
    /// Unix sockets.
    pub listen: Vec<Listen>,
    /// Those who deliver to others too.
    pub trusted_uids: Vec<u32>,
    /// Messages that one uid hands over at once (`max_at_once`); never 0.
    pub at_once: u32,
    /// And in a minute (`max_per_minute`); never 0.
    pub a_minute: u32,
}

impl LdaServer {
    /// Where an LDA finds the server.
    pub fn socket(&self) -> Option<&Path> {
        self.listen.iter().find_map(|it| match it {
            Listen::Unix { path, .. } => Some(path.as_path()),
            Listen::Tcp { .. } => None,
        })
    }
}

/// `[lda]`
pub fn lda_server(root: &Section<'_>) -> LdaServer {
    let section = root.section("lda");
    let tables = section.tables("listen");
    let listen: Vec<Listen> = tables.iter().filter_map(plain_listener).collect();
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
    let lda_server = LdaServer {
        listen,
        trusted_uids: trusted.collect(),
        at_once: number("max_at_once", 4),
        a_minute: number("max_per_minute", 120),
    };
    section.finish();
    lda_server
}

/// Where mail servers expect SMTP they would take each other's replies for something else (RFC 2033, 5).
fn lmtp_listener(section: &Section<'_>) -> Option<Listen> {
    let listen = listener(section)?;
    if let Listen::Tcp { address, .. } = &listen
        && address.port() == 25
    {
        let why = "port 25 is for SMTP, and LMTP is never spoken there";
        section.error("tcp", why, "write \"127.0.0.1:24\"");
    }
    Some(listen)
}

/// One beside LMTP: nobody there begins TLS, or says for whom he speaks.
pub(super) fn plain_listener(section: &Section<'_>) -> Option<Listen> {
    for key in ["ssl", "haproxy", "trusted"] {
        if section.has(key) {
            section.error(key, "it is for [lmtp] listen alone", "leave it out");
        }
    }
    listener(section)
}

fn listener(section: &Section<'_>) -> Option<Listen> {
    let trusted = section
        .has("trusted")
        .then(|| section.flag("trusted", false));
    let tcp = section.text("tcp");
    let unix = section.text("unix");
    let mode = section.text("mode").unwrap_or_else(|| "0660".into());
    let (user, group) = (section.text("user"), section.text("group"));
    let (ssl, haproxy) = (section.flag("ssl", false), section.flag("haproxy", false));
    section.finish();
    match (unix, tcp) {
        (Some(path), None) => {
            for key in ["ssl", "haproxy"]
                .into_iter()
                .filter(|key| section.has(key))
            {
                let advice = "leave it out";
                section.error(key, "it is for TCP: a unix socket needs none", advice);
            }
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
            Ok(address) => Some(Listen::Tcp {
                address,
                trusted,
                ssl,
                haproxy,
            }),
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
