//! The file as written, turned into settings: one function a section.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::section::Section;
use super::{Config, Service};
use crate::deliver::settings::{
    Acl, AclDriver, DeliveryRight, Detail, MailFsync, NewMailboxPermissions, Permissions,
    RecipientHeaders, Settings,
};
use crate::lmtp::{self, Listen};
use crate::mailbox::location::{Driver, Layout, Location};
use crate::mailbox::namespace::{
    self, Auto, Kind, List, MailboxBlock, Namespace, OnDenied, OnMissing,
};
use crate::message::body::Spool;
use crate::sys::{nss, process};
use crate::text::template::Template;
use crate::user::fixed::Static;
use crate::user::passwd::Passwd;
use crate::user::passwd_file::PasswdFile;
use crate::user::{Limits, Userdb, Userdbs};

/// Reads the whole file. Problems are in the section's notes; the config is to be used only without errors.
pub fn read(root: &Section<'_>) -> Config {
    let hostname = root.text_or("hostname", process::hostname);
    let limits = limits(root, &hostname);
    let service = Service {
        mail_uid: limits.mail_uid,
        mail_gid: limits.mail_gid,
        groups: limits.mail_access_groups.clone(),
    };
    let location = location(root, None);
    let namespaces = namespaces(root, &location);
    let acl = acl(root, &namespaces);
    let delivery = delivery(
        root,
        hostname.clone(),
        Userdbs {
            list: userdbs(root),
            limits,
        },
        namespaces,
        acl,
    );
    let lmtp = lmtp(root, hostname, &delivery);
    root.finish();
    Config {
        delivery,
        lmtp,
        service,
        path: None,
        settings: Vec::new(),
        warnings: None,
    }
}

/// What a setting names, and how it is looked up.
type IdKind = (&'static str, fn(&str) -> io::Result<Option<u32>>);
const USER: IdKind = ("user", nss::uid);
const GROUP: IdKind = ("group", nss::gid);

/// A uid or gid, by number or name.
fn id(section: &Section<'_>, key: &'static str, (kind, find): IdKind) -> Option<u32> {
    if !section.has(key) {
        return None;
    }
    if section.is_number(key) {
        return section.number(key, None);
    }
    let name = section.text(key)?;
    let found = find(&name).ok().flatten();
    if found.is_none() {
        section.error(
            key,
            format!("there is no {kind} {name:?}"),
            format!("write the name of a {kind}, or a number"),
        );
    }
    found
}

fn limits(root: &Section<'_>, hostname: &str) -> Limits {
    let defaults = Limits::default();
    let groups = root
        .texts("mail_access_groups")
        .into_iter()
        .filter_map(|group| match nss::gid(&group) {
            Ok(Some(gid)) => Some(gid),
            _ => {
                root.error(
                    "mail_access_groups",
                    format!("there is no group {group:?}"),
                    "groupadd it, or take it out",
                );
                None
            }
        });
    Limits {
        hostname: hostname.into(),
        mail_uid: id(root, "mail_uid", USER),
        mail_gid: id(root, "mail_gid", GROUP),
        mail_home: root.template("mail_home"),
        mail_access_groups: groups.collect(),
        first_valid_uid: root
            .number("first_valid_uid", Some(defaults.first_valid_uid))
            .unwrap_or_default(),
        last_valid_uid: root
            .number("last_valid_uid", Some(defaults.last_valid_uid))
            .unwrap_or_default(),
        first_valid_gid: root
            .number("first_valid_gid", Some(defaults.first_valid_gid))
            .unwrap_or_default(),
        last_valid_gid: root
            .number("last_valid_gid", Some(defaults.last_valid_gid))
            .unwrap_or_default(),
    }
}

fn userdbs(root: &Section<'_>) -> Vec<Userdb> {
    let sections = root.tables("userdb");
    if sections.is_empty() {
        return vec![Userdb::Passwd(Passwd)];
    }
    sections.iter().filter_map(userdb).collect()
}

fn userdb(section: &Section<'_>) -> Option<Userdb> {
    let (passwd, file, fixed) = (
        section.section("passwd"),
        section.section("passwd-file"),
        section.section("static"),
    );
    let chosen = [&passwd, &file, &fixed]
        .into_iter()
        .filter(|driver| driver.is_present())
        .count();
    section.finish();
    if chosen != 1 {
        section.error(
            "",
            "a [[userdb]] has one driver",
            "write passwd = {}, passwd-file = { path = \"…\" } or static = { … }",
        );
        return None;
    }
    if passwd.is_present() {
        passwd.finish();
        return Some(Userdb::Passwd(Passwd));
    }
    if file.is_present() {
        let path = file.text("path");
        file.finish();
        match path {
            Some(path) => return Some(Userdb::PasswdFile(PasswdFile::new(PathBuf::from(path)))),
            None => file.error(
                "path",
                "a passwd-file needs its path",
                "write path = \"/etc/postroom/users\"",
            ),
        }
        return None;
    }
    const EXTRA: [&str; 2] = ["mail_access_groups", "system_groups_user"];
    let extra = EXTRA
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), fixed.template(key)?)))
        .collect();
    let (uid, gid) = (id(&fixed, "uid", USER), id(&fixed, "gid", GROUP));
    let home = fixed.template("home");
    fixed.finish();
    Some(Userdb::Static(Static {
        uid,
        gid,
        home,
        extra,
    }))
}

/// The `mail_*` settings of the file, or of a namespace with those of the file as defaults.
fn location(section: &Section<'_>, above: Option<&Location>) -> Location {
    let template = |key: &'static str, of: fn(&Location) -> Option<Template>| {
        section.template(key).or_else(|| above.and_then(of))
    };
    let driver = section.choice(
        "mail_driver",
        &[("maildir", Driver::Maildir), ("mbox", Driver::Mbox)],
        Some(above.map_or(Driver::Maildir, |above| above.driver)),
    );
    let layout = section.choice(
        "mailbox_list_layout",
        &[("maildir++", Layout::MaildirPlusPlus), ("fs", Layout::Fs)],
        Some(above.map_or(Layout::MaildirPlusPlus, |above| above.layout)),
    );
    let escape = section
        .text("mailbox_list_storage_escape_char")
        .filter(|text| !text.is_empty());
    if escape
        .as_ref()
        .is_some_and(|text| text.chars().count() != 1)
    {
        section.error(
            "mailbox_list_storage_escape_char",
            "one character escapes",
            "write one, e.g. \"\\\\\"",
        );
    }
    Location {
        driver: driver.unwrap_or(Driver::Maildir),
        path: match above {
            Some(above) => section
                .template("mail_path")
                .unwrap_or_else(|| above.path.clone()),
            None => section.template_or("mail_path", "~/Maildir"),
        },
        inbox_path: template("mail_inbox_path", |above| above.inbox_path.clone())
            .filter(|path| !path.source().is_empty()),
        control_path: template("mail_control_path", |above| above.control_path.clone()),
        index_path: template("mail_index_path", |above| above.index_path.clone()),
        index_private_path: template("mail_index_private_path", |above| {
            above.index_private_path.clone()
        }),
        layout: layout.unwrap_or(Layout::MaildirPlusPlus),
        utf8: section.flag("mailbox_list_utf8", above.is_some_and(|above| above.utf8)),
        directory_name: section
            .text("mailbox_directory_name")
            .or_else(|| above.map(|above| above.directory_name.clone()))
            .unwrap_or_default(),
        storage_escape_char: escape
            .and_then(|text| text.chars().next())
            .or_else(|| above.and_then(|above| above.storage_escape_char)),
    }
}

fn namespaces(root: &Section<'_>, above: &Location) -> Vec<Namespace> {
    let sections = root.sections("namespace");
    let mut all: Vec<Namespace> = sections
        .iter()
        .map(|(name, section)| namespace(name, section, above))
        .collect();
    if all.is_empty() {
        all.push(private(above.clone()));
    }
    name_aliases(&mut all);
    all.retain(|namespace| !namespace.disabled);
    let mut failed = Vec::new();
    for problem in namespace::check(&all) {
        let section = sections
            .iter()
            .find(|(name, _)| *name == problem.namespace)
            .map(|(_, section)| section);
        let optional = all
            .iter()
            .any(|namespace| namespace.name == problem.namespace && namespace.ignore_on_failure);
        let section = section.unwrap_or(root);
        match problem.is_warning || optional {
            true => section.warning(problem.setting, problem.message, problem.advice),
            false => section.error(problem.setting, problem.message, problem.advice),
        }
        if optional && !problem.is_warning {
            failed.push(problem.namespace);
        }
    }
    all.retain(|namespace| !failed.contains(&namespace.name));
    all
}

/// What Dovecot has when no namespace is configured.
fn private(location: Location) -> Namespace {
    Namespace {
        name: "inbox".into(),
        kind: Kind::Private,
        prefix: String::new(),
        separator: location.layout.separator(),
        inbox: true,
        hidden: false,
        list: List::Yes,
        subscriptions: true,
        alias_for: None,
        order: 0,
        disabled: false,
        ignore_on_failure: false,
        location,
        mailboxes: Vec::new(),
        on_missing: None,
    }
}

fn namespace(name: &str, section: &Section<'_>, above: &Location) -> Namespace {
    let kinds = [
        ("private", Kind::Private),
        ("public", Kind::Public),
        ("shared", Kind::Shared),
    ];
    let kind = section
        .choice("type", &kinds, Some(Kind::Private))
        .unwrap_or(Kind::Private);
    let location = location(section, Some(above));
    let usual = location.layout.separator();
    let separator = section.text_or("separator", || usual.to_string());
    if separator.chars().count() > 1 {
        section.error(
            "separator",
            "the hierarchy separator is one character",
            "write \"/\" or \".\"",
        );
    }
    let mut prefix = section.text_or("prefix", String::new);
    if kind == Kind::Shared {
        prefix = owner_variables(&prefix);
    } else if prefix.contains("%%") {
        section.warning(
            "prefix",
            "%% in a prefix means an owner only in a shared namespace",
            "write type = \"shared\"",
        );
    }
    let mailboxes = section.sections("mailbox");
    let lists = [
        ("yes", List::Yes),
        ("no", List::No),
        ("children", List::Children),
    ];
    let namespace = Namespace {
        name: name.into(),
        kind,
        prefix,
        separator: separator.chars().next().unwrap_or(usual),
        inbox: section.flag("inbox", false),
        hidden: section.flag("hidden", false),
        list: match section.is_flag("list") {
            true if section.flag("list", true) => List::Yes,
            true => List::No,
            false => section
                .choice("list", &lists, Some(List::Yes))
                .unwrap_or(List::Yes),
        },
        subscriptions: section.flag("subscriptions", true),
        alias_for: section.text("alias_for"),
        order: section.number("order", Some(0)).unwrap_or(0),
        disabled: section.flag("disabled", false),
        ignore_on_failure: section.flag("ignore_on_failure", false),
        location,
        mailboxes: mailboxes
            .iter()
            .map(|(name, section)| mailbox(name, section))
            .collect(),
        on_missing: section.choice("on_missing", &ON_MISSING, None),
    };
    section.finish();
    namespace
}

/// The ways of 2.3 and 2.4 to name the owner in a prefix, as one.
fn owner_variables(prefix: &str) -> String {
    const WAYS: [(&str, &str); 6] = [
        ("%%u", "$user"),
        ("%%n", "$username"),
        ("%%d", "$domain"),
        ("%{owner_username}", "$username"),
        ("%{owner_user}", "$user"),
        ("%{owner_domain}", "$domain"),
    ];
    WAYS.iter().fold(prefix.to_owned(), |prefix, (way, ours)| {
        prefix.replace(way, ours)
    })
}

/// `alias_for` names a section (2.4), or gives the prefix of one (2.3); an empty text is the empty prefix.
fn name_aliases(all: &mut [Namespace]) {
    let names: Vec<(String, String)> = all
        .iter()
        .map(|it| (it.name.clone(), it.prefix.clone()))
        .collect();
    for namespace in all {
        let Some(alias) = &namespace.alias_for else {
            continue;
        };
        if names.iter().any(|(name, _)| name == alias) {
            continue;
        }
        let by_prefix = names
            .iter()
            .find(|(name, prefix)| prefix == alias && *name != namespace.name);
        if let Some((name, _)) = by_prefix {
            namespace.alias_for = Some(name.clone());
        }
    }
}

fn mailbox(name: &str, section: &Section<'_>) -> MailboxBlock {
    let autos = [
        ("no", Auto::No),
        ("create", Auto::Create),
        ("subscribe", Auto::Subscribe),
    ];
    let special_use = match section.is_list("special_use") {
        true => section.texts("special_use"),
        false => section
            .text("special_use")
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
    };
    let block = MailboxBlock {
        name: name.into(),
        auto: section
            .choice("auto", &autos, Some(Auto::No))
            .unwrap_or(Auto::No),
        special_use,
    };
    section.finish();
    block
}

fn acl(root: &Section<'_>, namespaces: &[Namespace]) -> Acl {
    let section = root.section("acl");
    let open = namespaces
        .iter()
        .find(|namespace| namespace.kind != Kind::Private);
    if let Some(open) = open.filter(|_| !section.is_present()) {
        let message = format!(
            "namespace {:?} is open to others, and nothing says who may store there",
            open.name
        );
        let advice = "write [acl] with driver = \"vfile\" (dovecot-acl files), or driver = \"none\" if file modes alone decide";
        root.error("namespace", message, advice);
    }
    let drivers = [("vfile", AclDriver::Vfile), ("none", AclDriver::None)];
    let none = if section.is_present() {
        AclDriver::Vfile
    } else {
        AclDriver::None
    };
    let rights = [
        ("insert-or-post", DeliveryRight::InsertOrPost),
        ("post", DeliveryRight::Post),
        ("insert", DeliveryRight::Insert),
    ];
    let right = section.choice("delivery_right", &rights, Some(DeliveryRight::InsertOrPost));
    section.choice("subject", &[("recipient", ())], Some(()));
    let acl = Acl {
        driver: section
            .choice("driver", &drivers, Some(none))
            .unwrap_or(none),
        delivery_right: right.unwrap_or(DeliveryRight::InsertOrPost),
    };
    section.finish();
    acl
}

const ON_MISSING: [(&str, OnMissing); 5] = [
    ("inbox", OnMissing::Inbox),
    ("create", OnMissing::Create),
    ("reject", OnMissing::Reject),
    ("defer", OnMissing::Defer),
    ("parent", OnMissing::Parent),
];

fn delivery(
    root: &Section<'_>,
    hostname: String,
    userdbs: Userdbs,
    namespaces: Vec<Namespace>,
    acl: Acl,
) -> Settings {
    let section = root.section("delivery");
    let details = [
        ("private", Detail::Private),
        ("mailbox", Detail::Mailbox),
        ("ignore", Detail::Ignore),
    ];
    let denied = [
        ("inbox", OnDenied::Inbox),
        ("reject", OnDenied::Reject),
        ("defer", OnDenied::Defer),
    ];
    let permissions = [
        ("verified", Permissions::Verified),
        ("best-effort", Permissions::BestEffort),
    ];
    let news = [
        ("root", NewMailboxPermissions::Root),
        ("parent", NewMailboxPermissions::Parent),
    ];
    let headers = [
        ("each", RecipientHeaders::Each),
        ("single", RecipientHeaders::Single),
    ];
    let fsyncs = [
        ("optimized", MailFsync::Optimized),
        ("always", MailFsync::Always),
        ("never", MailFsync::Never),
    ];
    let fsync = root
        .choice("mail_fsync", &fsyncs, Some(MailFsync::Optimized))
        .unwrap_or(MailFsync::Optimized);
    if fsync == MailFsync::Never {
        root.warning(
            "mail_fsync",
            "without fsync a 250 is no promise: a power cut loses mail",
            "write mail_fsync = \"optimized\"",
        );
    }
    let settings = Settings {
        hostname,
        auth_username_format: root.template_or("auth_username_format", "%{user | lower}"),
        userdbs,
        namespaces,
        acl,
        recipient_delimiter: section.text_or("recipient_delimiter", || "+".into()),
        detail: section
            .choice("detail", &details, Some(Detail::Private))
            .unwrap_or(Detail::Private),
        on_missing: section
            .choice("on_missing", &ON_MISSING, Some(OnMissing::Inbox))
            .unwrap_or(OnMissing::Inbox),
        on_denied: section
            .choice("on_denied", &denied, Some(OnDenied::Inbox))
            .unwrap_or(OnDenied::Inbox),
        max_mailboxes: section.number("max_mailboxes", Some(1000)).unwrap_or(1000),
        permissions: section.choice("permissions", &permissions, None),
        new_mailbox_permissions: section
            .choice(
                "new_mailbox_permissions",
                &news,
                Some(NewMailboxPermissions::Root),
            )
            .unwrap_or(NewMailboxPermissions::Root),
        recipient_headers: section
            .choice("recipient_headers", &headers, Some(RecipientHeaders::Each))
            .unwrap_or(RecipientHeaders::Each),
        required_paths: section
            .texts("required_paths")
            .into_iter()
            .map(PathBuf::from)
            .collect(),
        message_size: section.size("message_size"),
        spool_dir: section.text("spool_dir").map(PathBuf::from),
        mail_fsync: fsync,
    };
    section.finish();
    settings
}

fn lmtp(root: &Section<'_>, hostname: String, delivery: &Settings) -> lmtp::Settings {
    let section = root.section("lmtp");
    let listen = section
        .tables("listen")
        .iter()
        .filter_map(listener)
        .collect();
    let number = |key, default: u32| section.number(key, Some(default)).unwrap_or(default) as usize;
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
        idle_timeout: section.duration("idle_timeout", Duration::from_secs(300)),
        data_deadline: section.duration("data_deadline", Duration::from_secs(300)),
        verbose_replies: section.flag("verbose_replies", false),
        spool: Spool { dirs: spool },
    };
    section.finish();
    settings
}

fn listener(section: &Section<'_>) -> Option<Listen> {
    let trusted = section
        .is_flag("trusted")
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
