//! The file as written, turned into settings: the whole of it, and `[delivery]`.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::listeners::{self, lda_server, socketmap};
use super::map::{addresses, routes};
use super::observe::{notify, status};
use super::placement::placement;
use super::places::{location, namespaces};
use super::quota::quotas;
use super::rights::{acl, sharing_map};
use super::section::Section;
use super::users::{limits, userdbs};
use super::workers::workers;
use super::{Config, Service};
use crate::deliver::settings::{
    Acl, DeliveryAddress, Detail, MailFsync, Mbox, NewMailboxPermissions, OwnNamespaces,
    Permissions, RecipientHeaders, Settings,
};
use crate::index::log::LockMethod;
use crate::lmtp::{self, Listen};
use crate::mailbox::agent::Agent;
use crate::mailbox::namespace::{Namespace, OnDenied, OnMissing};
use crate::mailbox::subscriptions::holder;
use crate::mbox::lock::{Kind, Locking};
use crate::mbox::text::Quoting;
use crate::sys::process;
use crate::user::Userdbs;

/// Reads the whole file. Problems are in the section's notes; the config is to be used only without errors.
pub fn read(root: &Section<'_>) -> Config {
    let hostname = root.text_or("hostname", || process::hostname().to_owned());
    let limits = limits(root, &hostname);
    let service = Service {
        mail_uid: limits.mail_uid,
        mail_gid: limits.mail_gid,
        groups: limits.mail_access_groups.clone(),
        privileged: limits.mail_privileged_group,
    };
    let location = location(root, None);
    let namespaces = namespaces(root, &location);
    let acl = acl(root, &namespaces);
    let mut delivery = delivery(
        root,
        hostname.clone(),
        Userdbs {
            list: userdbs(root),
            limits,
            username_format: root.template_or("auth_username_format", "%{user | lower}"),
            username_chars: root.text("auth_username_chars").unwrap_or_default(),
            cache: Default::default(),
        },
        Arc::new(namespaces),
        acl,
    );
    let lmtp = listeners::lmtp(root, hostname, &delivery);
    no_circle(root, &delivery, &lmtp);
    let sharing_map = sharing_map(root);
    let socketmap = socketmap(root);
    let mut workers = workers(root);
    // A program of Dovecot's would inherit it, and writes where no worker of ours does.
    workers.landlock &= !delivery.runs_programs();
    delivery.landlock = workers.landlock;
    let lda_server = lda_server(root);
    let (status, notify) = (status(root), notify(root, &delivery.hostname));
    root.finish();
    Config {
        delivery,
        lmtp,
        socketmap,
        service,
        workers,
        lda_server,
        status,
        notify,
        sharing_map,
        path: None,
        settings: Vec::new(),
        warnings: None,
    }
}

/// Handed over to ourselves, mail would go round for ever.
fn no_circle(root: &Section<'_>, delivery: &Settings, lmtp: &lmtp::Settings) {
    let is_at = |listen: &Listen, server: (&str, u16)| match listen {
        Listen::Unix { path, .. } => is_same_socket(path, Path::new(server.0)),
        Listen::Tcp { address, .. } => reaches(server, *address),
    };
    let is_ours = |agent: &Agent| match agent {
        Agent::Lmtp { host, port } => lmtp.listen.iter().any(|it| is_at(it, (host, *port))),
        Agent::Lda { .. } => false,
    };
    let agents = delivery.namespaces.iter();
    let mut agents = agents.filter_map(|it| it.location.hand_over.as_ref());
    if let Some(agent) = agents.find(|it| is_ours(it)) {
        let message = format!("{agent} is our own socket, of lmtp.listen");
        root.error("hand_over", message, "write the socket of Dovecot");
    }
}

/// One socket by two paths, where directories are symlinks (`/var/run`).
fn is_same_socket(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| {
        let directory = path.parent().and_then(|it| it.canonicalize().ok());
        let real = directory.and_then(|it| Some(it.join(path.file_name()?)));
        real.unwrap_or_else(|| path.to_owned())
    };
    one == other || real(one) == real(other)
}

/// Whether this host and port are surely this machine's `address`; names but `localhost` are not looked up.
fn reaches((host, port): (&str, u16), address: SocketAddr) -> bool {
    let is_there = match (host.parse::<IpAddr>(), address.ip()) {
        (Err(_), own) => host == "localhost" && (own.is_loopback() || own.is_unspecified()),
        (Ok(ip), own) if own.is_unspecified() => {
            ip.is_ipv4() == own.is_ipv4() && (ip.is_loopback() || ip == own)
        }
        (Ok(ip), own) => ip == own,
    };
    port == address.port() && is_there
}

fn delivery(
    root: &Section<'_>,
    hostname: String,
    userdbs: Userdbs,
    namespaces: Arc<Vec<Namespace>>,
    acl: Acl,
) -> Settings {
    let section = root.section("delivery");
    let fsync = root.choice_or("mail_fsync", &MailFsync::WORDS, MailFsync::Optimized);
    if fsync == MailFsync::Never {
        root.warning(
            "mail_fsync",
            "without fsync a 250 is no promise: a power cut loses mail",
            "write mail_fsync = \"optimized\"",
        );
    }
    let lock = root.choice_or("lock_method", &LockMethod::WORDS, LockMethod::Fcntl);
    let logs = [("append", true), ("off", false)];
    let index_log = section.choice_or("index_log", &logs, true);
    let autosubscribe = root.flag("lda_mailbox_autosubscribe", false);
    let without = |it: &&Namespace| autosubscribe && holder(&namespaces, it).is_none();
    if let Some(without) = namespaces.iter().find(without) {
        root.warning(
            "lda_mailbox_autosubscribe",
            format!("no namespace holds the subscriptions of {:?}", without.name),
            "add a namespace with subscriptions = true, prefix = \"\", list = false and hidden = true",
        );
    }
    let placement = placement(root, &hostname);
    let settings = Settings {
        hostname,
        userdbs,
        addresses: addresses(root),
        routes: routes(root),
        namespaces,
        own: OwnNamespaces::default(),
        landlock: false,
        places: Default::default(),
        acl,
        recipient_delimiter: section.text_or("recipient_delimiter", || "+".into()),
        detail: section.choice_or("detail", &Detail::WORDS, Detail::Private),
        on_missing: section.choice_or("on_missing", &OnMissing::WORDS, OnMissing::Inbox),
        on_denied: section.choice_or("on_denied", &OnDenied::WORDS, OnDenied::Inbox),
        max_mailboxes: section.number("max_mailboxes", Some(1000)).unwrap_or(1000),
        permissions: section.choice("permissions", &Permissions::WORDS, None),
        new_mailbox_permissions: section.choice_or(
            "new_mailbox_permissions",
            &NewMailboxPermissions::WORDS,
            NewMailboxPermissions::Root,
        ),
        recipient_headers: section.choice_or(
            "recipient_headers",
            &RecipientHeaders::WORDS,
            RecipientHeaders::Each,
        ),
        delivery_address: root.choice_or(
            "lmtp_hdr_delivery_address",
            &DeliveryAddress::WORDS,
            DeliveryAddress::Final,
        ),
        adds_received: root.flag("lmtp_add_received_header", true),
        quotas: quotas(root),
        placement,
        required_paths: paths(&section, "required_paths"),
        mail_roots: section
            .has("mail_roots")
            .then(|| paths(&section, "mail_roots")),
        message_size: section.size("message_size"),
        duplicate_window: section.duration("duplicate_window", Duration::from_secs(1800)),
        duplicate_db: section
            .text("duplicate_db")
            .and_then(|path| absolute(&section, "duplicate_db", path)),
        min_free_space: section.size("min_free_space").unwrap_or(0),
        spool_dir: section
            .text("spool_dir")
            .and_then(|path| absolute(&section, "spool_dir", path)),
        mail_fsync: fsync,
        autosubscribe,
        index_log: index_log.then_some(lock),
        mbox: mbox(root),
    };
    section.finish();
    settings
}

/// The locks that a setting names, each once.
fn mbox_locks(root: &Section<'_>, key: &'static str, default: &[&str]) -> Vec<Kind> {
    let mut kinds = Vec::new();
    for word in &root.texts_or(key, default) {
        let found = Kind::WORDS.iter().find(|(known, _)| known == word);
        match found {
            Some((_, kind)) if !kinds.contains(kind) => kinds.push(*kind),
            Some(_) => {}
            None => {
                let known = Kind::WORDS.map(|(known, _)| known).join(", ");
                let message = format!("{word:?} is no lock of an mbox");
                root.error(key, message, format!("write some of {known}"));
            }
        }
    }
    kinds
}

fn mbox(root: &Section<'_>) -> Mbox {
    let defaults = Locking::default();
    let word_of = |kind: &Kind| Kind::WORDS.iter().find(|(_, it)| it == kind);
    let words = defaults.kinds.iter().filter_map(word_of);
    let words: Vec<&str> = words.map(|(word, _)| *word).collect();
    let kinds = mbox_locks(root, "mbox_write_locks", &words);
    if kinds.is_empty() {
        let advice = format!("write the locks of the other programs: {words:?}");
        root.error("mbox_write_locks", "an mbox needs a lock", advice);
    }
    let readers = mbox_locks(root, "mbox_read_locks", &[]);
    if !readers.is_empty() && !readers.iter().any(|kind| kinds.contains(kind)) {
        root.warning(
            "mbox_read_locks",
            "whoever reads takes no lock that a delivery takes: he may see half a message",
            "write one of them in mbox_write_locks too",
        );
    }
    Mbox {
        locking: Locking {
            kinds,
            timeout: root.duration("mbox_lock_timeout", defaults.timeout),
            stale: root.duration("mbox_dotlock_change_timeout", defaults.stale),
        },
        quoting: root.choice_or("mbox_quoting", &Quoting::WORDS, Quoting::Mboxrd),
    }
}

fn paths(section: &Section<'_>, key: &'static str) -> Vec<PathBuf> {
    let paths = section.texts(key).into_iter();
    paths
        .filter_map(|path| absolute(section, key, path))
        .collect()
}

fn absolute(section: &Section<'_>, key: &'static str, path: String) -> Option<PathBuf> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        return Some(path);
    }
    let message = format!("{} is not absolute", path.display());
    section.error(key, message, "write it from / on");
    None
}
