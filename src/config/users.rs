//! `[[userdb]]` and what holds for every user.

use std::io;
use std::path::PathBuf;

use super::map::required;
use super::rights;
use super::section::Section;
use crate::database::Database;
use crate::database::query::Query;
use crate::sys::nss;
use crate::user::dovecot_auth::DovecotAuth;
use crate::user::fixed::Static;
use crate::user::ldap::{Directory, Ldap, Scope};
use crate::user::passwd::Passwd;
use crate::user::passwd_file::PasswdFile;
use crate::user::sql::Sql;
use crate::user::{self, Limits, Userdb};

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

/// `mail_uid`, `first_valid_uid`, `mail_access_groups` and the like. `hostname`: for the variables of userdbs.
pub fn limits(root: &Section<'_>, hostname: &str) -> Limits {
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
        mail_home: root.path_template("mail_home"),
        mail_access_groups: groups.collect(),
        mail_privileged_group: id(root, "mail_privileged_group", GROUP).filter(|gid| {
            if *gid == 0 {
                let advice = "write the group of the spool: \"mail\"";
                root.error("mail_privileged_group", "that of root is nobody's", advice);
            }
            *gid != 0
        }),
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

/// `query` and `iterate_query`.
fn sql(section: &Section<'_>, database: Option<Database>) -> Option<Userdb> {
    let parsed = |key| match Query::parse(&section.text(key)?) {
        Ok(query) => Some(query),
        Err(bad) => {
            section.error(key, bad.message, bad.advice);
            None
        }
    };
    if !section.has("query") {
        required(section, "query");
    }
    let (query, iterate) = (parsed("query"), parsed("iterate_query"));
    section.finish();
    Some(Userdb::Sql(Sql {
        database: database?,
        query: query?,
        iterate: iterate.map(|query| query.statement),
    }))
}

fn directory(section: &Section<'_>) -> Option<Directory> {
    if !Ldap::IS_BUILT {
        let advice =
            "build it with: cargo build --release --features ldap; or ask Dovecot: dovecot = {}";
        section.error("", "this program was built without LDAP", advice);
        return None;
    }
    let scopes = [
        ("base", Scope::Base),
        ("one", Scope::One),
        ("subtree", Scope::Subtree),
    ];
    let template = |key| match section.has(key) {
        true => section.template(key),
        false => required(section, key).and(None),
    };
    let (uri, base, filter) = (
        required(section, "uri"),
        template("base"),
        template("filter"),
    );
    let fields = section.section("fields");
    let names = section.text("iterate_filter");
    let attribute = section.text_or("iterate_attribute", || "uid".into());
    let bind = section.text("bind_dn");
    let file = section.text("password_file");
    if bind.is_some() != file.is_some() {
        let advice = "write bind_dn = \"…\" and password_file = \"…\", or neither";
        section.error("", "bind_dn and password_file go together", advice);
    }
    let directory = Directory {
        starttls: section.flag("starttls", false),
        scope: section.choice_or("scope", &scopes, Scope::Subtree),
        bind: bind.zip(file.map(PathBuf::from)),
        fields: fields.free_texts(),
        iterate: names.map(|filter| (filter, attribute)),
        uri: uri?,
        base: base?,
        filter: filter?,
    };
    section.finish();
    Some(directory)
}

/// `[[userdb]]`; where there is none, `/etc/passwd`.
pub fn userdbs(root: &Section<'_>) -> Vec<Userdb> {
    let sections = root.tables("userdb");
    if sections.is_empty() {
        return vec![Userdb::Passwd(Passwd)];
    }
    sections.iter().filter_map(userdb).collect()
}

/// Where Debian's Dovecot listens.
const AUTH_USERDB: &str = "/run/dovecot/auth-userdb";

/// What a `[[userdb]]` may be.
const DRIVERS: [&str; 7] = [
    "passwd",
    "passwd-file",
    "static",
    "sqlite",
    "postgresql",
    "dovecot",
    "ldap",
];

fn userdb(section: &Section<'_>) -> Option<Userdb> {
    let drivers = DRIVERS.map(|name| section.section(name));
    let chosen = drivers.iter().filter(|driver| driver.is_present()).count();
    section.finish();
    if chosen != 1 {
        let advice = "write passwd = {}, passwd-file = { path = \"…\" }, static = { … }, sqlite = { … }, postgresql = { … }, dovecot = {} or ldap = { … }";
        section.error("", "a [[userdb]] has one driver", advice);
        return None;
    }
    let [passwd, file, fixed, sqlite, postgresql, dovecot, ldap] = drivers;
    if sqlite.is_present() {
        let path = required(&sqlite, "path");
        return sql(
            &sqlite,
            path.map(|path| Database::Sqlite(PathBuf::from(path))),
        );
    }
    if postgresql.is_present() {
        let connection = required(&postgresql, "connection");
        let server = connection.and_then(|_| rights::postgresql(&postgresql));
        return sql(&postgresql, server.map(Database::Postgresql));
    }
    if ldap.is_present() {
        return directory(&ldap).map(|it| Userdb::Ldap(Ldap::new(it)));
    }
    if dovecot.is_present() {
        let socket = dovecot.text_or("socket", || AUTH_USERDB.into());
        dovecot.finish();
        return Some(Userdb::Dovecot(DovecotAuth::new(PathBuf::from(socket))));
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
    let extra = fixed.free_templates(|key| {
        let known = [
            "system_groups_user",
            "acl_groups",
            "acl_user",
            "master_user",
        ];
        known.contains(&key) || key == "mail_access_groups" || user::is_place(key)
    });
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
