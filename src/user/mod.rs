//! Users and where they are looked up.
//!
//! A look-up has three answers: found, no such user, cannot tell. Only the second may ever become a 550.

pub mod cache;
pub mod dovecot_auth;
pub mod fixed;
pub mod ldap;
mod limits;
pub mod passwd;
pub mod passwd_file;
pub mod sql;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use cache::Cache;
pub use limits::Limits;

pub use crate::sys::credentials::Credentials;
use crate::sys::nss;
use crate::text::template::{Template, Variables};

/// A mail user, as a userdb described it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The canonical name: what `%{user}` stands for.
    pub name: String,
    pub credentials: Credentials,
    /// Those of his groups that are his only while mail is delivered (`mail_access_groups`).
    pub lent: Vec<u32>,
    /// Absolute. None: mailboxes below `~` cannot be had.
    pub home: Option<PathBuf>,
    /// Fields of the userdb that are not uid, gid and home: `mail_access_groups`, `acl_groups`, …
    pub extra: BTreeMap<String, String>,
    /// Which userdb answered: `passwd-file /etc/postroom/users`.
    pub origin: String,
}

/// "Cannot tell": the userdb did not answer, or its answer makes no sense. Always temporary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// Which userdb: `passwd-file /etc/postroom/users`.
    pub userdb: String,
    pub why: String,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "userdb {}: {}", self.userdb, self.why)
    }
}

/// What a userdb says of a user, before the limits and defaults of all userdbs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The canonical name.
    pub name: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub groups: Vec<u32>,
    pub home: Option<PathBuf>,
    pub extra: BTreeMap<String, String>,
    pub origin: String,
    /// A line of a passwd-file that ends before the gid: no user of Dovecot's, who asks the next userdb.
    pub is_for_logins: bool,
}

impl Answer {
    /// Of somebody of whom nothing more is known.
    pub fn new(name: &str, origin: String) -> Answer {
        Answer {
            name: name.to_owned(),
            uid: None,
            gid: None,
            groups: Vec::new(),
            home: None,
            extra: BTreeMap::new(),
            origin,
            is_for_logins: false,
        }
    }

    /// Takes a field, by its name in Dovecot. An error: its value makes no sense.
    pub fn set(&mut self, field: &str, value: &str) -> Result<(), String> {
        let number = |kind: &str, found: io::Result<Option<u32>>| match found {
            Ok(Some(id)) => Ok(Some(id)),
            Ok(None) => Err(format!(
                "{kind} {value:?} of {:?} does not exist",
                self.name
            )),
            Err(error) => Err(format!("{kind} {value:?} of {:?}: {error}", self.name)),
        };
        // As for logins, which ask for both kinds of fields at once.
        let field = field.strip_prefix("userdb_").unwrap_or(field);
        match field {
            // As if it were not there, like everywhere else.
            "uid" | "gid" | "user" if value.is_empty() => {}
            "home" if value.is_empty() => self.home = None,
            "uid" => self.uid = number("uid", nss::uid(value))?,
            "gid" => self.gid = number("gid", nss::gid(value))?,
            "home" => self.home = Some(PathBuf::from(value)),
            "user" => self.name = value.to_owned(),
            _ => drop(self.extra.insert(field.to_owned(), value.to_owned())),
        }
        Ok(())
    }
}

/// Where users are looked up: a closed set.
#[derive(Debug)]
pub enum Userdb {
    Passwd(passwd::Passwd),
    PasswdFile(passwd_file::PasswdFile),
    Static(fixed::Static),
    Sql(sql::Sql),
    Dovecot(dovecot_auth::DovecotAuth),
    Ldap(ldap::Ldap),
    /// The user that runs the process, and nobody else: an LDA without `-d`.
    Current(Box<User>),
}

/// The userdbs in their order, with what holds for the answers of all of them.
#[derive(Debug)]
pub struct Userdbs {
    pub list: Vec<Userdb>,
    pub limits: Limits,
    /// What is made of a name before it is looked up (Dovecot's `auth_username_format`).
    pub username_format: Template,
    /// The letters that a name may have (Dovecot's `auth_username_chars`); empty: all.
    pub username_chars: String,
    pub cache: Cache,
}

impl Userdbs {
    /// Those that cannot answer now, whoever is asked for.
    pub fn unavailable(&self) -> Vec<Unavailable> {
        let files = self.list.iter().filter_map(|userdb| match userdb {
            Userdb::PasswdFile(file) => file.unavailable(),
            Userdb::Sql(sql) => sql.find("", &self.limits.hostname).err(),
            Userdb::Dovecot(dovecot) => dovecot.find("nobody").err(),
            Userdb::Ldap(ldap) => ldap.find("nobody", &self.limits.hostname).err(),
            Userdb::Passwd(_) | Userdb::Static(_) | Userdb::Current(_) => None,
        });
        files.collect()
    }

    /// The names of all users. An error where a userdb knows everybody by a rule.
    pub fn names(&self) -> Result<BTreeSet<String>, Unavailable> {
        let mut names = BTreeSet::new();
        for userdb in &self.list {
            match userdb {
                Userdb::Passwd(_) => {
                    let all = nss::accounts().into_iter();
                    let valid = all.filter(|account| self.limits.uid_is_valid(account.uid));
                    names.extend(valid.map(|account| account.name));
                }
                Userdb::PasswdFile(file) => names.extend(file.names()?),
                Userdb::Sql(sql) => names.extend(sql.names()?),
                Userdb::Dovecot(dovecot) => names.extend(dovecot.names()?),
                Userdb::Ldap(ldap) => names.extend(ldap.names()?),
                Userdb::Current(user) => drop(names.insert(user.name.clone())),
                Userdb::Static(_) => {
                    return Err(Unavailable {
                        userdb: fixed::Static::NAME.into(),
                        why: "it has no list of users: name them".into(),
                    });
                }
            }
        }
        Ok(names)
    }

    /// The name that is looked up for `name`.
    pub fn username(&self, name: &str) -> Result<String, Unavailable> {
        let variables = Variables {
            user: name,
            hostname: &self.limits.hostname,
            ..Variables::default()
        };
        self.username_format
            .expand(&variables)
            .map_err(|missing| Unavailable {
                userdb: "auth_username_format".into(),
                why: missing.to_string(),
            })
    }

    /// Asks one after the other. The first that cannot tell ends the search: the next might say "no such user" of one
    /// who exists.
    pub fn find(&self, name: &str) -> Result<Option<User>, Unavailable> {
        let is_known =
            |letter| self.username_chars.is_empty() || self.username_chars.contains(letter);
        if is_odd(name) || !name.chars().all(is_known) {
            return Ok(None);
        }
        let name = self.username(name)?;
        if is_odd(&name) {
            return Ok(None);
        }
        let name = name.as_str();
        let mut last_resort = None;
        for (place, userdb) in self.list.iter().enumerate() {
            let answer = match userdb {
                Userdb::Sql(sql) => {
                    self.cached(place, name, || sql.find(name, &self.limits.hostname))?
                }
                Userdb::Dovecot(dovecot) => self.cached(place, name, || dovecot.find(name))?,
                Userdb::Ldap(ldap) => {
                    self.cached(place, name, || ldap.find(name, &self.limits.hostname))?
                }
                Userdb::Passwd(passwd) => passwd.find(name)?,
                Userdb::PasswdFile(file) => file.find(name)?,
                Userdb::Static(fixed) => fixed.find(name, &self.limits.hostname)?,
                // He runs this: his name is right, however it is written.
                Userdb::Current(user) if user.name.eq_ignore_ascii_case(name) => {
                    return Ok(Some(user.as_ref().clone()));
                }
                Userdb::Current(_) => None,
            };
            let Some(answer) = answer else { continue };
            if let (Userdb::Passwd(_), Some(uid)) = (userdb, answer.uid)
                && !self.limits.uid_is_valid(uid)
            {
                // A daemon's account in /etc/passwd is no mail user.
                continue;
            }
            if is_odd(&answer.name) {
                return Err(Unavailable {
                    why: format!("the user of {name:?} is {:?}", answer.name),
                    userdb: answer.origin,
                });
            }
            if answer.is_for_logins {
                last_resort.get_or_insert(answer);
                continue;
            }
            return self.limits.complete(answer).map(Some);
        }
        let answer = last_resort.map(|answer| self.limits.complete(answer));
        answer.transpose()
    }

    fn cached(
        &self,
        place: usize,
        name: &str,
        find: impl FnOnce() -> Result<Option<Answer>, Unavailable>,
    ) -> Result<Option<Answer>, Unavailable> {
        if let Some(known) = self.cache.get(place, name, Instant::now()) {
            return Ok(known);
        }
        let answer = find()?;
        self.cache.put(place, name, &answer, Instant::now());
        Ok(answer)
    }
}

/// User and domain become directories of their own in paths.
fn is_odd(name: &str) -> bool {
    name.split('@').any(|part| matches!(part, "" | "." | ".."))
        || name.contains(|c: char| c == '/' || c.is_control())
}

/// A field of a userdb: its name, its value.
pub type Field = (String, String);

impl User {
    /// What the userdb says of where his mail lies.
    pub fn places(&self) -> Vec<Field> {
        let places = self.extra.iter().filter(|(field, _)| is_place(field));
        let places = places.map(|(field, value)| (field.clone(), value.clone()));
        places.collect()
    }
}

/// Whether a field says where mail lies.
pub fn is_place(field: &str) -> bool {
    const PREFIXES: [&str; 3] = ["namespace/", "mailbox_", "mail_"];
    let others = field == "mail_access_groups";
    let is_place = |field: &str| PREFIXES.iter().any(|it| field.starts_with(it));
    !others && (matches!(field, "mail" | "namespace") || is_place(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(uid: Option<u32>, gid: Option<u32>, home: &str) -> Userdb {
        let home = Some(Template::parse(home).unwrap());
        Userdb::Static(fixed::Static {
            uid,
            gid,
            home,
            extra: BTreeMap::new(),
        })
    }

    fn find(list: Vec<Userdb>, limits: Limits, name: &str) -> Result<Option<User>, Unavailable> {
        let username_format = Template::parse("%{user | lower}").unwrap();
        Userdbs {
            list,
            limits,
            username_format,
            username_chars: String::new(),
            cache: Cache::default(),
        }
        .find(name)
    }

    #[test]
    fn what_cannot_be_used_is_not_no_such_user() {
        for (uid, gid, home, why) in [
            (None, Some(1), "/h", "has no uid"),
            (Some(5000), None, "/h", "has no gid"),
            (Some(0), Some(5000), "/h", "uid 0"),
            (Some(100), Some(5000), "/h", "uid 100"),
            (Some(65_534), Some(5000), "/h", "uid 65534"),
            (Some(u32::MAX), Some(5000), "/h", "uid 4294967295"),
            (Some(5000), Some(0), "/h", "gid 0"),
            (Some(5000), Some(u32::MAX), "/h", "gid 4294967295"),
            (Some(5000), Some(5000), "h/%n", "not absolute"),
            (Some(5000), Some(5000), "%{home}/x", "no value"),
        ] {
            let got = find(vec![fixed(uid, gid, home)], Limits::default(), "bob").unwrap_err();
            assert!(got.why.contains(why), "{got}");
        }
    }

    #[test]
    fn defaults_fill_what_is_open() {
        let limits = Limits {
            mail_uid: Some(5000),
            mail_gid: Some(5001),
            mail_access_groups: vec![7],
            ..Limits::default()
        };
        let user = find(vec![fixed(None, None, "/srv/%d/%n")], limits, "bob@d1.test")
            .unwrap()
            .unwrap();
        assert_eq!(user.credentials, Credentials::new(5000, 5001, vec![7]));
        assert_eq!(user.lent, [7]);
        assert_eq!(user.home.unwrap().to_str(), Some("/srv/d1.test/bob"));
    }

    #[test]
    fn the_order_of_the_userdbs() {
        let gone = || Userdb::PasswdFile(passwd_file::PasswdFile::new("/nonexistent/users".into()));
        let known = || fixed(Some(5000), Some(5000), "/h");
        assert!(
            find(vec![known(), gone()], Limits::default(), "bob")
                .unwrap()
                .is_some()
        );
        assert!(find(vec![gone(), known()], Limits::default(), "bob").is_err());
        // root exists in passwd and is no mail user
        assert_eq!(
            find(
                vec![Userdb::Passwd(passwd::Passwd)],
                Limits::default(),
                "root"
            )
            .unwrap(),
            None
        );
        for name in ["", "a/b", "a\nb", "a\0b"] {
            assert_eq!(
                find(vec![known()], Limits::default(), name).unwrap(),
                None,
                "{name:?}"
            );
        }
    }

    /// As Dovecot 2.3 has it, beside a userdb that knows everybody.
    #[test]
    fn a_passwd_file_before_another_userdb() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let limits = || Limits {
            mail_uid: Some(5000),
            mail_gid: Some(5000),
            mail_home: Some(Template::parse("/usual/%u").unwrap()),
            ..Limits::default()
        };
        // the line, and alice's home with and without another userdb behind
        for (line, want, alone) in [
            ("alice", Some("/other/alice"), Some("/usual/alice")),
            ("alice:", Some("/other/alice"), Some("/usual/alice")),
            ("alice:x", Some("/other/alice"), Some("/usual/alice")),
            ("alice:x:5000", Some("/other/alice"), Some("/usual/alice")),
            ("alice:x::", Some("/usual/alice"), Some("/usual/alice")),
            ("alice:x::::/h::", Some("/h"), Some("/h")),
            (
                "alice:x::::/h::userdb_home=",
                Some("/usual/alice"),
                Some("/usual/alice"),
            ),
            ("alice:x::::/h::userdb_user=", Some("/h"), Some("/h")),
            ("alice:x::::/h::userdb_user=..", None, None),
            ("alice:x::::/h::userdb_user=a/b", None, None),
            ("bob:x::", Some("/other/alice"), None),
        ] {
            std::fs::write(&path, format!("{line}\n")).unwrap();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(9);
            file.set_modified(long_ago).unwrap();
            let file = || Userdb::PasswdFile(passwd_file::PasswdFile::new(path.clone()));
            let home = |list| {
                let found = find(list, limits(), "alice").ok().flatten();
                found.map(|user| (user.name, user.home.unwrap().display().to_string()))
            };
            let known = |home: &str| ("alice".to_owned(), home.to_owned());
            let both = home(vec![file(), fixed(Some(5000), Some(5000), "/other/%n")]);
            assert_eq!(both, want.map(known), "{line}");
            assert_eq!(home(vec![file()]), alone.map(known), "{line} alone");
        }
    }

    #[test]
    fn groups_out_of_range() {
        let limits = Limits {
            first_valid_gid: 1000,
            mail_access_groups: vec![7],
            ..Limits::default()
        };
        let answer = |field: &str| Answer {
            uid: Some(5000),
            gid: Some(5000),
            groups: vec![5, 1001],
            extra: BTreeMap::from([("mail_access_groups".into(), field.into())]),
            ..Answer::new("bob", "t".into())
        };
        let user = limits.complete(answer("7")).unwrap();
        assert_eq!(user.credentials.groups, [7, 1001]);
        assert_eq!(limits.check_identity(&user.credentials), Ok(()));
        let user = limits.complete(answer("8")).unwrap();
        assert_eq!(user.credentials.groups, [1001]);
    }

    #[test]
    fn letters_of_names() {
        let userdbs = |chars: &str| Userdbs {
            list: vec![fixed(Some(5000), Some(5000), "/h")],
            limits: Limits::default(),
            username_format: Template::parse("%{user | lower}").unwrap(),
            username_chars: chars.into(),
            cache: Cache::default(),
        };
        for (name, is_known) in [
            ("bob", true),
            ("Bob@b.o", true),
            ("o'b", false),
            ("b+o", false),
            ("böb", false),
            ("b b", false),
        ] {
            let found = userdbs("Bob@.").find(name).unwrap();
            assert_eq!(found.is_some(), is_known, "{name}");
            assert!(userdbs("").find(name).unwrap().is_some(), "{name}");
        }
    }
}
