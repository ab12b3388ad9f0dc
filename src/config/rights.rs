//! `[acl]`, and the entries that namespaces and mailboxes have in the configuration.

use std::path::PathBuf;

use super::section::Section;
use crate::deliver::settings::{Acl, AclDriver, DeliveryRight, Dovecot, Subject};
use crate::mailbox::acl::entry::Line;
use crate::mailbox::acl::sources::{Configured, Rules};
use crate::mailbox::namespace::{Kind, Namespace};
use crate::sharing::SharingMap;

pub const SUBJECTS: [(&str, Subject); 4] = [
    ("recipient", Subject::Recipient),
    ("owner", Subject::Owner),
    ("anonymous", Subject::Anonymous),
    ("authenticated-sender", Subject::AuthenticatedSender),
];

pub fn acl(root: &Section<'_>, namespaces: &[Namespace]) -> Acl {
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
    let right = section.choice("delivery_right", &rights, Some(DeliveryRight::InsertOrPost));
    let subject = section.choice("subject", &SUBJECTS, Some(Subject::Recipient));
    let acl = Acl {
        driver: section
            .choice("driver", &drivers, Some(usual))
            .unwrap_or(usual),
        delivery_right: right.unwrap_or(DeliveryRight::InsertOrPost),
        subject: subject.unwrap_or(Subject::Recipient),
        unix_groups: unix_groups(&section),
        dovecot: section
            .choice("dovecot", &versions, Some(Dovecot::V23))
            .unwrap_or(Dovecot::V23),
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

/// `[acl_sharing_map.file]` or `[acl_sharing_map.sqlite]`
pub fn sharing_map(root: &Section<'_>) -> Option<SharingMap> {
    let section = root.section("acl_sharing_map");
    let (file, sqlite) = (section.section("file"), section.section("sqlite"));
    section.finish();
    let map = match (file.is_present(), sqlite.is_present()) {
        (true, false) => file.template("path").map(SharingMap::File),
        (false, true) => sqlite.template("path").map(SharingMap::Sqlite),
        (false, false) if !section.is_present() => return None,
        _ => None,
    };
    file.finish();
    sqlite.finish();
    if map.is_none() {
        section.error(
            "",
            "a sharing map is one file or one database",
            "write [acl_sharing_map.file] or [acl_sharing_map.sqlite] with path = \"…\"",
        );
    }
    map
}
