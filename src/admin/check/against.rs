//! `postroom check --against FILE`: where our configuration and Dovecot's would put the same mailbox, its files or its locks in
//! different places.

use std::io::{self, Write};
use std::path::Path;

use super::{Findings, userdbs};
use crate::config::Config;
use crate::import::{self, Imported};
use crate::mailbox::location::{Driver, Location};
use crate::mailbox::namespace::Namespace;
use crate::text::template::{Template, Variables};

/// Somebody, to fill in variables with: two ways to write one path are no difference.
pub const SOMEBODY: Variables<'static> = Variables {
    user: "Some.Body+x@Example.org",
    home: Some("/HOME"),
    owner_user: Some("An.Owner@Example.com"),
    owner_home: Some("/OWNER"),
    hostname: "host.example.net",
};

/// Settings, each with what it comes to.
type Values = Vec<(&'static str, String)>;

impl<W: Write> Findings<'_, W> {
    /// Compares `config` with the Dovecot configuration in `file`.
    pub fn against(&mut self, config: &Config, file: &Path) -> io::Result<()> {
        let imported = match import::import(file) {
            Ok(imported) => imported,
            Err(error) => {
                let advice = "give the file that this Dovecot reads: doveconf -n shows it";
                return self.error(&format!("against: {error}"), advice);
            }
        };
        for left in &imported.to_mend {
            let what = format!("against: cannot be compared: {left}");
            self.warning(&what, "look at it by hand")?;
        }
        let theirs = match Config::from_str("Dovecot's configuration", &imported.toml) {
            Ok(theirs) => theirs,
            Err(errors) => {
                let what = format!("against: {} cannot be compared:\n{errors}", file.display());
                let advice = "mend that first; postroom config import shows the result";
                return self.error(&what, advice);
            }
        };
        self.compare(config, &theirs, &imported)
    }

    fn compare(&mut self, ours: &Config, theirs: &Config, imported: &Imported) -> io::Result<()> {
        let mut general: Vec<_> = values(ours).into_iter().zip(values(theirs)).collect();
        if ours.delivery.index_log.is_none() {
            // We lock nothing of theirs.
            general.retain(|((setting, _), _)| *setting != "lock_method");
        }
        let general = general.into_iter();
        for ((setting, value), (_, other)) in general.filter(|(one, other)| one != other) {
            self.difference(ours, theirs, imported, setting, (&value, &other))?;
        }
        for it in userdbs::differences(ours, theirs) {
            self.difference(ours, theirs, imported, &it.setting, (&it.ours, &it.theirs))?;
        }
        let namespaces = &ours.delivery.namespaces;
        // Two ways to write one variable are one prefix.
        let is_same = |own: &Namespace, other: &Namespace| {
            own.prefix_for(SOMEBODY.user) == other.prefix_for(SOMEBODY.user)
        };
        for other in theirs.delivery.namespaces.iter() {
            let same = |it: &&Namespace| is_same(it, other);
            let Some(own) = namespaces.iter().find(same) else {
                let what = format!(
                    "against: Dovecot has a namespace with the prefix {:?} ({:?}), and Postroom has none",
                    other.prefix, other.name
                );
                let advice = "add it: mail for its mailboxes goes elsewhere or nowhere";
                self.error(&what, advice)?;
                continue;
            };
            for (setting, value, other_value) in places(own, other) {
                if value == other_value {
                    continue;
                }
                let keys = (
                    format!("namespace.{}.{setting}", own.name),
                    format!("namespace.{}.{setting}", other.name),
                );
                let what = format!(
                    "against: mailboxes of {:?}: {setting} is {value:?} here{} and {other_value:?} in Dovecot{}",
                    own.prefix,
                    origin(ours, &keys.0),
                    of_dovecot(theirs, imported, &keys.1)
                );
                self.error(&what, "make them the same")?;
            }
        }
        let without = |own: &&Namespace| {
            let others = &theirs.delivery.namespaces;
            !others.iter().any(|it| is_same(own, it))
        };
        for own in namespaces.iter().filter(without) {
            let what = format!(
                "against: Postroom has a namespace with the prefix {:?} ({:?}), and Dovecot has none",
                own.prefix, own.name
            );
            self.warning(&what, "add it there: nobody sees what is stored in it")?;
        }
        Ok(())
    }

    fn difference(
        &mut self,
        ours: &Config,
        theirs: &Config,
        imported: &Imported,
        setting: &str,
        (value, other): (&str, &str),
    ) -> io::Result<()> {
        let what = format!(
            "against: {setting} is {value:?} here{} and {other:?} in Dovecot{}",
            origin(ours, setting),
            of_dovecot(theirs, imported, setting)
        );
        self.error(&what, "make them the same")
    }
}

/// What holds for all mailboxes: names, homes, locks, and whether rights count.
fn values(config: &Config) -> Values {
    let delivery = &config.delivery;
    let limits = &delivery.userdbs.limits;
    let home = limits.mail_home.as_ref();
    let id = |id: Option<u32>| id.map(|it| it.to_string()).unwrap_or_default();
    vec![
        (
            "auth_username_format",
            shown(&delivery.userdbs.username_format),
        ),
        (
            "auth_username_chars",
            delivery.userdbs.username_chars.clone(),
        ),
        ("mail_home", home.map(shown).unwrap_or_default()),
        ("mail_uid", id(limits.mail_uid)),
        ("mail_gid", id(limits.mail_gid)),
        ("lock_method", format!("{:?}", delivery.index_log)),
        ("mbox_write_locks", locks(config)),
        ("acl.driver", format!("{:?}", delivery.acl.driver)),
    ]
}

/// Only where there are mboxes.
fn locks(config: &Config) -> String {
    let mut namespaces = config.delivery.namespaces.iter();
    match namespaces.any(|it| it.location.driver == Driver::Mbox) {
        true => format!("{:?}", config.delivery.mbox.locking.kinds),
        false => String::new(),
    }
}

/// Where the two have the mailboxes of a namespace, and what belongs to them.
fn places(own: &Namespace, other: &Namespace) -> Vec<(&'static str, String, String)> {
    let pair = |setting, of: fn(&Namespace) -> String| (setting, of(own), of(other));
    let path = |setting, of: fn(&Location) -> Option<&Template>| {
        let (ours, theirs) = (of(&own.location), of(&other.location));
        let shown = |path: Option<&Template>, location: &Location| match (ours, theirs, path) {
            // Both are where the mailboxes are.
            (None, None, _) => String::new(),
            // Below them, or `.`: they themselves.
            (_, _, Some(path)) if path.source() == "." => shown(&location.path),
            (_, _, Some(path)) if !path.source().starts_with(['/', '~', '%']) => {
                format!("{}/{}", shown(&location.path), shown(path))
            }
            _ => shown(path.unwrap_or(&location.path)),
        };
        let (ours, theirs) = (shown(ours, &own.location), shown(theirs, &other.location));
        (setting, ours, theirs)
    };
    vec![
        pair("type", |it| format!("{:?}", it.kind)),
        pair("separator", |it| it.separator.to_string()),
        pair("inbox", |it| it.inbox.to_string()),
        pair("subscriptions", |it| it.subscriptions.to_string()),
        pair("mail_driver", |it| format!("{:?}", it.location.driver)),
        pair("mail_path", |it| shown(&it.location.path)),
        path("mail_inbox_path", |it| it.inbox_path.as_ref()),
        path("mail_control_path", |it| it.control_path.as_ref()),
        path("mail_index_path", |it| it.index_path.as_ref()),
        path("mail_index_private_path", |it| {
            it.index_private_path.as_ref()
        }),
        pair("mailbox_list_layout", |it| {
            format!("{:?}", it.location.layout)
        }),
        pair("mailbox_list_utf8", |it| it.location.utf8.to_string()),
        pair("mailbox_subscriptions_filename", |it| {
            it.location.subscriptions_filename.clone()
        }),
        pair("mailbox_directory_name", |it| {
            it.location.directory_name.clone()
        }),
        pair("mailbox_list_storage_escape_char", |it| {
            let escape = it.location.storage_escape_char;
            escape.map(String::from).unwrap_or_default()
        }),
    ]
}

/// A setting as it is for [`SOMEBODY`].
pub fn shown(template: &Template) -> String {
    let expanded = template
        .expand(&SOMEBODY)
        .unwrap_or_else(|_| template.source().to_owned());
    let whole = match expanded.strip_prefix('~') {
        Some(below) => format!("/HOME{below}"),
        None => expanded,
    };
    match whole.strip_suffix('/') {
        Some(path) if !path.is_empty() => path.to_owned(),
        _ => whole,
    }
}

/// ` (postroom.toml:12)`
fn origin(config: &Config, key: &str) -> String {
    let line = config.settings.iter().find(|it| it.key == key);
    match (line.and_then(|it| it.line), &config.path) {
        (Some(line), Some(path)) => format!(" ({}:{line})", path.display()),
        _ => String::new(),
    }
}

/// ` (dovecot.conf:7)`: what the import has written behind the line.
fn of_dovecot(config: &Config, imported: &Imported, key: &str) -> String {
    let set = config.settings.iter().find(|it| it.key == key);
    let line = set.and_then(|it| it.line).unwrap_or(0);
    let text = line
        .checked_sub(1)
        .and_then(|at| imported.toml.lines().nth(at));
    match text.and_then(|it| it.rsplit_once("  # ")) {
        Some((_, place)) => format!(" ({place})"),
        None => String::new(),
    }
}
