//! Whose rights count at a mailbox, and what says which he has.

use std::path::Path;

use super::Resolver;
use crate::deliver::settings::{self, AclDriver, Dovecot};
use crate::deliver::targets::Subject;
use crate::fault::Fault;
use crate::mailbox::acl::Sources;
use crate::mailbox::acl::sources::{self, Configured, Rules};
use crate::mailbox::location::Driver;
use crate::mailbox::lookup::Found;
use crate::mailbox::name::StorageName;
use crate::mailbox::namespace::Kind;
use crate::mailbox::path::Paths;
use crate::user::{Credentials, User};

impl Resolver<'_> {
    /// Who that is at a mailbox of this kind and owner, with his groups.
    pub(super) fn subject(&self, kind: Kind, owner: Option<&User>) -> Result<Subject, Fault> {
        let nobody = Subject {
            name: None,
            groups: Vec::new(),
            is_owner: false,
        };
        match (self.subject, kind) {
            (settings::Subject::Recipient, _) => {
                let names = ["acl_user", "master_user"];
                let acting = names.iter().find_map(|name| self.user.extra.get(*name));
                let name = acting.unwrap_or(&self.user.name);
                Ok(Subject {
                    name: Some(name.clone()),
                    groups: self.groups(self.user)?,
                    is_owner: kind == Kind::Private && *name == self.user.name,
                })
            }
            (settings::Subject::Owner, Kind::Private | Kind::Shared) => {
                let owner = owner.unwrap_or(self.user);
                Ok(Subject {
                    name: Some(owner.name.clone()),
                    groups: self.groups(owner)?,
                    is_owner: true,
                })
            }
            (settings::Subject::AuthenticatedSender, _) => {
                let Some(name) = self.authenticated else {
                    return Ok(nobody);
                };
                let (name, groups) = match self.directory.user(name)? {
                    Some(user) => (user.name.clone(), self.groups(&user)?),
                    None => (name.to_owned(), Vec::new()),
                };
                Ok(Subject {
                    is_owner: kind == Kind::Private && name == self.user.name,
                    name: Some(name),
                    groups,
                })
            }
            (settings::Subject::Owner | settings::Subject::Anonymous, _) => Ok(nobody),
        }
    }

    /// `acl_groups` of the userdb, and the UNIX groups where they count.
    pub(super) fn groups(&self, user: &User) -> Result<Vec<String>, Fault> {
        let text = user.extra.get("acl_groups").map_or("", String::as_str);
        // Dovecot 2.3 takes blanks as a part of the names.
        let words: Vec<&str> = match self.settings.acl.dovecot {
            Dovecot::V23 => text.split(',').collect(),
            Dovecot::V24 => text.split([',', ' ', '\t']).collect(),
        };
        let words = words.into_iter().filter(|word| !word.is_empty());
        let mut groups: Vec<String> = words.map(str::to_owned).collect();
        if self.settings.acl.unix_groups {
            let Credentials {
                gid, groups: more, ..
            } = &user.credentials;
            for gid in more.iter().chain([gid]) {
                groups.extend(self.directory.group_name(*gid)?);
            }
        }
        Ok(groups)
    }

    /// What decides about the rights on this mailbox.
    pub(super) fn sources(
        &self,
        found: &Found<'_>,
        storage: &StorageName,
        paths: &Paths,
    ) -> Option<Sources> {
        let (namespace, acl) = (found.namespace, &self.settings.acl);
        let blocks = namespace.mailboxes.iter();
        let blocks: Vec<_> = blocks
            .filter(|block| sources::matches(&block.name, &found.rest))
            .map(|block| &block.acl)
            .collect();
        let ignored = blocks.iter().find_map(|rules| rules.ignore);
        let ignored = ignored.or(namespace.acl.ignore).or(acl.rules.ignore);
        if acl.driver == AclDriver::None || ignored == Some(true) {
            return None;
        }
        let general = [&acl.rules, &namespace.acl];
        let configured = |rules: &[&Rules]| -> Vec<Configured> {
            rules
                .iter()
                .flat_map(|rules| rules.entries.iter().cloned())
                .collect()
        };
        let own = |directory: &Path| (!acl.globals_only).then(|| directory.to_owned());
        let driver = namespace.location.driver;
        let inbox = match *storage == StorageName::Inbox {
            true => paths.mailbox.clone(),
            false => paths.inbox.clone(),
        };
        // The root's file is the default of its mailboxes, unless it is the one of the INBOX. Dovecot 2.4 takes the root of
        // a public namespace for its INBOX.
        let is_inbox = paths.root == inbox;
        let root_counts = match (namespace.kind, acl.dovecot) {
            (Kind::Public, Dovecot::V23) => true,
            _ => !is_inbox,
        };
        let from_inbox = acl.defaults_from_inbox && namespace.kind != Kind::Public;
        let default = match (from_inbox, root_counts) {
            (true, _) => own(&inbox),
            (false, true) => own(&paths.root),
            (false, false) => None,
        };
        let global = acl.global_path.as_ref();
        let global = global.map(|path| (path.clone(), found.full_name()));
        let default = Sources {
            own: default,
            configured: configured(&general),
            global: global.clone(),
            default: None,
        };
        let all: Vec<&Rules> = general.into_iter().chain(blocks).collect();
        Some(Sources {
            own: own(match driver {
                // A file has nothing below it.
                Driver::Mbox => &paths.control,
                Driver::Maildir | Driver::Sdbox | Driver::Mdbox => &paths.mailbox,
            }),
            configured: configured(&all),
            global,
            default: Some(Box::new(default)),
        })
    }
}
