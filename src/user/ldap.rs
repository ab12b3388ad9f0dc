//! Users in a directory (LDAP, RFC 4511). What a name brings into a filter is escaped (RFC 4515).

use std::path::PathBuf;

use crate::text::template::Template;

/// `[[userdb]] ldap = { uri = "ldap://…", base = "ou=people,dc=example,dc=org", filter = "(uid=%n)", fields = { home = "homeDirectory" } }`
#[derive(Debug)]
pub struct Directory {
    pub uri: String,
    /// Before anything else is said on a connection without TLS.
    pub starttls: bool,
    /// Who asks; none: nobody in particular.
    pub bind: Option<(String, PathBuf)>,
    pub base: Template,
    pub scope: Scope,
    pub filter: Template,
    /// Our fields, and the attributes that hold them.
    pub fields: Vec<(String, String)>,
    /// All users, and the attribute with their names.
    pub iterate: Option<(String, String)>,
}

/// How far below the base users are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Base,
    One,
    Subtree,
}

#[cfg(not(feature = "ldap"))]
mod client {
    use super::super::{Answer, Unavailable};
    use super::Directory;

    /// This program was built without LDAP: a configuration with it is refused before anybody asks.
    #[derive(Debug)]
    pub struct Ldap;

    impl Ldap {
        /// False: the feature `ldap` is off, and the configuration refuses such a userdb.
        pub const IS_BUILT: bool = false;

        /// For code that is the same with the feature: nothing is kept.
        pub fn new(_: Directory) -> Ldap {
            Ldap
        }

        /// Always "cannot tell".
        pub fn find(&self, _: &str, _: &str) -> Result<Option<Answer>, Unavailable> {
            Err(self.unavailable())
        }

        /// Always "cannot tell".
        pub fn names(&self) -> Result<Vec<String>, Unavailable> {
            Err(self.unavailable())
        }

        fn unavailable(&self) -> Unavailable {
            Unavailable {
                userdb: "ldap".into(),
                why: "this program was built without it".into(),
            }
        }
    }
}

#[cfg(feature = "ldap")]
mod client {
    use std::fmt;
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    use ldap3::{LdapConn, LdapConnSettings, SearchEntry, dn_escape, ldap_escape};

    use super::super::{Answer, Unavailable};
    use super::{Directory, Scope};
    use crate::text::template::{Template, Variables};

    /// How long a connection may take, and each answer.
    const CONNECT: Duration = Duration::from_secs(5);
    const ANSWER: Duration = Duration::from_secs(15);
    /// Connections that are kept.
    const IDLE: usize = 16;

    /// A directory server, with the connections that are idle, and whose they are: a forked child must not talk on its parent's.
    pub struct Ldap {
        directory: Directory,
        idle: Mutex<Vec<(u32, LdapConn)>>,
    }

    impl Ldap {
        /// True: the feature `ldap` is on.
        pub const IS_BUILT: bool = true;

        /// Connects when somebody is asked for.
        pub fn new(directory: Directory) -> Ldap {
            Ldap {
                directory,
                idle: Mutex::default(),
            }
        }

        fn name(&self) -> String {
            format!("ldap {}", self.directory.uri)
        }

        /// None: no entry. Several entries are "cannot tell", and so are several values of uid, gid, home or user. `name` is escaped here.
        pub fn find(&self, name: &str, hostname: &str) -> Result<Option<Answer>, Unavailable> {
            let expand = |template: &Template, user: &str| {
                let variables = Variables {
                    user,
                    hostname,
                    ..Variables::default()
                };
                let expanded = template.expand(&variables);
                expanded.map_err(|missing| self.unavailable(missing.to_string()))
            };
            let base = expand(&self.directory.base, &dn_escape(name))?;
            let filter = expand(&self.directory.filter, &ldap_escape(name))?;
            let wanted = self.directory.fields.iter().map(|(_, it)| it.as_str());
            let found = self.search(&base, &filter, wanted.collect());
            let mut found = found.map_err(|why| self.unavailable(why))?;
            let entry = match (found.pop(), found.len()) {
                (None, _) => return Ok(None),
                (Some(entry), 0) => entry,
                (Some(_), more) => {
                    let why = format!("{} entries for {name:?}, and one is right", more + 1);
                    return Err(self.unavailable(why));
                }
            };
            let mut answer = Answer::new(name, self.name());
            for (field, attribute) in &self.directory.fields {
                let Some(values) = values(&entry, attribute) else {
                    continue;
                };
                if values.len() > 1 && ["uid", "gid", "home", "user"].contains(&field.as_str()) {
                    let why = format!("{} has {} of {attribute}", entry.dn, values.len());
                    return Err(self.unavailable(why));
                }
                let set = answer.set(field, &values.join(","));
                set.map_err(|why| self.unavailable(why))?;
            }
            Ok(Some(answer))
        }

        /// In no order, by `iterate_filter`: without it, "cannot tell".
        pub fn names(&self) -> Result<Vec<String>, Unavailable> {
            let Some((filter, attribute)) = &self.directory.iterate else {
                return Err(self.unavailable("it has no iterate_filter: name the users".into()));
            };
            let base = self.directory.base.expand(&Variables::default());
            let base = base.map_err(|missing| self.unavailable(missing.to_string()))?;
            let found = self.search(&base, filter, vec![attribute]);
            let found = found.map_err(|why| self.unavailable(why))?;
            let names = found.iter().filter_map(|entry| values(entry, attribute));
            Ok(names.flatten().cloned().collect())
        }

        /// A connection that broke while it was idle costs a second attempt, not an answer.
        fn search(
            &self,
            base: &str,
            filter: &str,
            attributes: Vec<&str>,
        ) -> Result<Vec<SearchEntry>, String> {
            let own = std::process::id();
            let idle = self.idle().pop();
            match idle {
                Some((process, connection)) if process != own => std::mem::forget(connection),
                Some((_, mut connection)) => {
                    if let Ok(found) = self.ask(&mut connection, base, filter, &attributes) {
                        self.keep(connection);
                        return Ok(found);
                    }
                }
                None => {}
            }
            let mut connection = self.connect().map_err(text)?;
            let found = self.ask(&mut connection, base, filter, &attributes);
            let found = found.map_err(text)?;
            self.keep(connection);
            Ok(found)
        }

        fn connect(&self) -> ldap3::result::Result<LdapConn> {
            let settings = LdapConnSettings::new()
                .set_conn_timeout(CONNECT)
                .set_starttls(self.directory.starttls);
            let mut connection = LdapConn::with_settings(settings, &self.directory.uri)?;
            if let Some((who, file)) = &self.directory.bind {
                let password = std::fs::read_to_string(file)?;
                let password = password.trim_end_matches('\n');
                let bound = connection.with_timeout(CONNECT).simple_bind(who, password);
                bound?.success()?;
            }
            Ok(connection)
        }

        fn ask(
            &self,
            connection: &mut LdapConn,
            base: &str,
            filter: &str,
            attributes: &[&str],
        ) -> ldap3::result::Result<Vec<SearchEntry>> {
            let scope = match self.directory.scope {
                Scope::Base => ldap3::Scope::Base,
                Scope::One => ldap3::Scope::OneLevel,
                Scope::Subtree => ldap3::Scope::Subtree,
            };
            let asked = connection.with_timeout(ANSWER);
            let found = asked.search(base, scope, filter, attributes)?;
            let (found, _) = found.success()?;
            // Where else one could ask is no entry.
            let entries = found.into_iter().filter(|it| !it.is_ref());
            Ok(entries.map(SearchEntry::construct).collect())
        }

        fn keep(&self, connection: LdapConn) {
            let mut idle = self.idle();
            if idle.len() < IDLE {
                idle.push((std::process::id(), connection));
            }
        }

        fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(u32, LdapConn)>> {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn unavailable(&self, why: String) -> Unavailable {
            Unavailable {
                userdb: self.name(),
                why,
            }
        }
    }

    /// Names of attributes have no case.
    fn values<'a>(entry: &'a SearchEntry, attribute: &str) -> Option<&'a Vec<String>> {
        let mut all = entry.attrs.iter();
        let found = all.find(|(name, _)| name.eq_ignore_ascii_case(attribute));
        found.map(|(_, values)| values).filter(|it| !it.is_empty())
    }

    fn text(error: ldap3::LdapError) -> String {
        error.to_string()
    }

    impl fmt::Debug for Ldap {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "Ldap({:?})", self.directory)
        }
    }
}

pub use client::Ldap;
