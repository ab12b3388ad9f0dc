//! Whom the userdbs of two configurations know, and what they say of each.

use super::against::shown;
use crate::config::Config;
use crate::user::Userdb;

/// A setting of one, as [`Config::settings`] names it.
pub struct Difference {
    pub setting: String,
    pub ours: String,
    pub theirs: String,
}

/// Where the two differ. Of a userdb that is Dovecot's own answer, on either side, nothing is known.
pub fn differences(ours: &Config, theirs: &Config) -> Vec<Difference> {
    let (ours, theirs) = (&ours.delivery.userdbs.list, &theirs.delivery.userdbs.list);
    let is_open = |it: &Userdb| matches!(it, Userdb::Dovecot(_) | Userdb::Current(_));
    if ours.iter().chain(theirs).any(is_open) {
        return Vec::new();
    }
    let kinds = |list: &[Userdb]| list.iter().map(kind).collect::<Vec<_>>().join(", ");
    if kinds(ours) != kinds(theirs) {
        return vec![Difference {
            setting: "userdb".into(),
            ours: kinds(ours),
            theirs: kinds(theirs),
        }];
    }
    let pairs = ours.iter().zip(theirs).enumerate();
    pairs
        .flat_map(|(at, (one, other))| of_pair(at, one, other))
        .collect()
}

fn of_pair(at: usize, one: &Userdb, other: &Userdb) -> Vec<Difference> {
    let (ours, theirs) = (values(one), values(other));
    let value = |list: &[(String, String)], key: &str| {
        let found = list.iter().find(|(known, _)| known == key);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let mut keys: Vec<&String> = ours.iter().chain(&theirs).map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    let differences = keys.into_iter().map(|key| Difference {
        setting: format!("userdb[{at}].{}.{key}", kind(one)),
        ours: value(&ours, key),
        theirs: value(&theirs, key),
    });
    differences.filter(|it| it.ours != it.theirs).collect()
}

/// As the configuration writes it.
fn kind(userdb: &Userdb) -> &'static str {
    use crate::database::Database;
    match userdb {
        Userdb::Passwd(_) => "passwd",
        Userdb::PasswdFile(_) => "passwd-file",
        Userdb::Static(_) => "static",
        Userdb::Sql(sql) => match sql.database {
            Database::Sqlite(_) => "sqlite",
            Database::Postgresql(_) => "postgresql",
        },
        Userdb::Dovecot(_) => "dovecot",
        Userdb::Ldap(_) => "ldap",
        Userdb::Current(_) => "current",
    }
}

/// What it answers with, or where it looks.
fn values(userdb: &Userdb) -> Vec<(String, String)> {
    let id = |id: Option<u32>| id.map(|it| it.to_string()).unwrap_or_default();
    match userdb {
        Userdb::Static(fixed) => {
            let home = fixed.home.as_ref().map(shown).unwrap_or_default();
            let extra = fixed
                .extra
                .iter()
                .map(|(key, value)| (key.clone(), shown(value)));
            let known = [
                ("uid", id(fixed.uid)),
                ("gid", id(fixed.gid)),
                ("home", home),
            ];
            let known = known.map(|(key, value)| (key.to_owned(), value));
            known.into_iter().chain(extra).collect()
        }
        Userdb::PasswdFile(file) => vec![("path".into(), file.name())],
        Userdb::Sql(sql) => vec![(
            "query".into(),
            format!(
                "{} with {:?}",
                sql.query.statement,
                sql.query
                    .parameters(&super::against::SOMEBODY)
                    .unwrap_or_default()
            ),
        )],
        Userdb::Passwd(_) | Userdb::Dovecot(_) | Userdb::Ldap(_) | Userdb::Current(_) => Vec::new(),
    }
}
