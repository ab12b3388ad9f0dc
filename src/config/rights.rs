//! `[acl]`, the entries that namespaces and mailboxes have in the configuration, and `[acl_sharing_map]`.

use std::path::PathBuf;

use super::section::Section;
use crate::database::Postgresql;
use crate::deliver::settings::{Acl, AclDriver, DeliveryRight, Dovecot, Subject};
use crate::mailbox::acl::entry::Line;
use crate::mailbox::acl::sources::{Configured, Rules};
use crate::mailbox::namespace::{Kind, Namespace};
use crate::sharing::SharingMap;

/// Where others may come, something says who may store there.
pub fn check_open(root: &Section<'_>, namespaces: &[Namespace]) {
    let open = namespaces
        .iter()
        // Dovecot decides for its own.
        .filter(|namespace| namespace.location.dovecots().is_none())
        .find(|namespace| namespace.kind != Kind::Private);
    if let Some(open) = open.filter(|_| !root.section("acl").is_present()) {
        let message = format!(
            "namespace {:?} is open to others, and nothing says who may store there",
            open.name
        );
        let advice = "write [acl] with driver = \"vfile\" (dovecot-acl files), or driver = \"none\" if file modes alone decide";
        root.error("namespace", message, advice);
    }
}

/// `[acl]`. Without it a public or shared namespace is an error: nobody has said who may store there.
pub fn acl(root: &Section<'_>, namespaces: &[Namespace]) -> Acl {
    check_open(root, namespaces);
    let section = root.section("acl");
    let usual = match section.is_present() {
        true => AclDriver::Vfile,
        false => AclDriver::None,
    };
    let drivers = [("vfile", AclDriver::Vfile), ("none", AclDriver::None)];
    let rights = [
        ("insert-or-post", DeliveryRight::InsertOrPost),
        ("post", DeliveryRight::Post),
        ("insert", DeliveryRight::Insert),
    ];
    let versions = [("2.3", Dovecot::V23), ("2.4", Dovecot::V24)];
    let acl = Acl {
        driver: section.choice_or("driver", &drivers, usual),
        delivery_right: section.choice_or("delivery_right", &rights, DeliveryRight::InsertOrPost),
        subject: section.choice_or("subject", &Subject::WORDS, Subject::Recipient),
        unix_groups: unix_groups(&section),
        dovecot: section.choice_or("dovecot", &versions, Dovecot::V23),
        defaults_from_inbox: section.flag("defaults_from_inbox", false),
        globals_only: section.flag("globals_only", false),
        global_path: section.text("global_path").map(PathBuf::from),
        rules: rules_of(&section),
    };
    section.finish();
    acl
}

/// `groups_from`: the userdb's `acl_groups` in any case, and UNIX groups with `nss`.
fn unix_groups(section: &Section<'_>) -> bool {
    let mut unix = false;
    for source in section.texts("groups_from") {
        match source.as_str() {
            "userdb" => {}
            "nss" => unix = true,
            _ => section.error(
                "groups_from",
                format!("{source:?} is no source of groups"),
                "write [\"userdb\"] or [\"userdb\", \"nss\"]",
            ),
        }
    }
    unix
}

/// The `acl` table of a namespace or mailbox.
pub fn rules(section: &Section<'_>) -> Rules {
    let rules = rules_of(section);
    section.finish();
    rules
}

fn rules_of(section: &Section<'_>) -> Rules {
    let ignore = section.has("ignore").then(|| section.flag("ignore", false));
    let entries = section.section("entries");
    let from = entries.name().to_owned();
    let mut lines = Vec::new();
    for (identifier, rights) in entries.free_texts() {
        match Line::configured(&identifier, &rights) {
            Ok(line) => lines.push(Configured {
                line,
                from: from.clone(),
            }),
            Err(why) => entries.error(
                &identifier,
                why,
                "write it like \"user=bob\" = \"lrp\"; a sign before the rights takes them: \"-p\"",
            ),
        }
    }
    Rules {
        ignore,
        entries: lines,
    }
}

/// `[acl_sharing_map.file]`, `.sqlite` or `.postgresql`.
pub fn sharing_map(root: &Section<'_>) -> Option<SharingMap> {
    let section = root.section("acl_sharing_map");
    let (file, sqlite) = (section.section("file"), section.section("sqlite"));
    let server = section.section("postgresql");
    section.finish();
    let chosen = [&file, &sqlite, &server].map(|it| it.is_present());
    let map = match chosen {
        [true, false, false] => file.template("path").map(SharingMap::File),
        [false, true, false] => sqlite.template("path").map(SharingMap::Sqlite),
        [false, false, true] => postgresql(&server).map(SharingMap::Postgresql),
        [false, false, false] if !section.is_present() => return None,
        _ => None,
    };
    [file, sqlite, server].iter().for_each(Section::finish);
    if map.is_none() {
        section.error(
            "",
            "a sharing map is one file or one database",
            "write [acl_sharing_map.file] or .sqlite with path = \"…\", or .postgresql with connection = \"…\"",
        );
    }
    map
}

/// `connection = "host=/run/postgresql dbname=mail"`, and the file with the password.
pub fn postgresql(section: &Section<'_>) -> Option<Postgresql> {
    let connection = section.text("connection")?;
    let password = match section.text("password_file") {
        None => None,
        Some(path) => match std::fs::read_to_string(&path) {
            Ok(password) => Some(password.trim_end_matches('\n').to_owned()),
            Err(error) => {
                let advice = "make the file, readable for whoever delivers";
                section.error("password_file", format!("{path}: {error}"), advice);
                return None;
            }
        },
    };
    match Postgresql::new(&connection, password.as_deref()) {
        Ok(server) => Some(server),
        Err(why) => {
            let advice = "write it like \"host=/run/postgresql dbname=mail user=postroom\"";
            section.error("connection", why, advice);
            None
        }
    }
}
