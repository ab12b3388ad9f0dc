//! Where one mailbox lies: the configured paths with their variables filled in, and the layout's directories below.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::location::{Driver, Layout, Location};
use super::name::StorageName;
use crate::text::template::{Template, Variables};

/// Where Dovecot keeps what belongs to mboxes.
pub const BESIDE: &str = ".imap";

/// The directories of one mailbox; an mbox is a file. All absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// The namespace's root (`mail_path`).
    pub root: PathBuf,
    /// The directory that holds `cur`, `new` and `tmp`.
    pub mailbox: PathBuf,
    /// The INBOX of this location.
    pub inbox: PathBuf,
    /// The last directory of each other mailbox below the root (`mailbox_directory_name`); empty: none.
    pub directory_name: String,
    /// The directories of the levels above, nearest first, ending with the root.
    pub above: Vec<PathBuf>,
    /// Holds `dovecot-uidlist` and `dovecot-keywords`.
    pub control: PathBuf,
    /// Holds the namespace's `dovecot-uidvalidity` and `subscriptions`.
    pub control_root: PathBuf,
    /// Holds `dovecot.index*`; none for `MEMORY`.
    pub index: Option<PathBuf>,
    /// Holds the namespace's `dovecot.list.index*`.
    pub index_root: Option<PathBuf>,
    /// The user's own `\Seen` flags of a public or shared mailbox.
    pub index_private: Option<PathBuf>,
    /// How a root that does not exist yet may take its permissions.
    pub root_rule: RootRule,
}

/// The two rules by which a new root takes group and mode from a setgid parent (Dovecot "Permissions to New
/// /domain/user Directories", "Permissions to New User Home Directories").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootRule {
    /// `~/…` without a variable: copied from the first existing parent of the root.
    Home,
    /// A path with variables: the first existing parent of this directory, the one above the component with the last
    /// variable.
    Above(PathBuf),
    /// A fixed path.
    None,
}

/// Why a mailbox has no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoPlace {
    /// `~` or `%{home}`, and the user has no home. Or another variable without a value.
    NoValue(String),
    /// The owner of a shared namespace has no home: nobody to share.
    NoOwnerHome,
    /// Not absolute, or a value that would leave its component.
    Bad(String),
}

impl Paths {
    /// The place of `name` in `location` as `variables` describe the accessing user and the owner.
    pub fn of(
        location: &Location,
        name: &StorageName,
        variables: &Variables<'_>,
    ) -> Result<Paths, NoPlace> {
        let place = |template: &Template| expand(template, variables);
        let optional = |template: &Option<Template>| template.as_ref().map(place).transpose();
        let root = place(&location.path)?;
        let inbox = match &location.inbox_path {
            Some(template) => root.join(expand_relative(template, variables)?),
            None if location.driver == Driver::Mbox => root.join("inbox"),
            None => root.clone(),
        };
        let mailbox = match name {
            StorageName::Inbox => inbox.clone(),
            StorageName::Box(_) => below(&root, location, name),
        };
        // What is not kept apart lies with the mail.
        let apart = |base: Option<PathBuf>| match (location.driver, base) {
            (Driver::Maildir | Driver::Sdbox | Driver::Mdbox, Some(base)) => {
                (below(&base, location, name), base)
            }
            (Driver::Maildir | Driver::Sdbox | Driver::Mdbox, None) => {
                (mailbox.clone(), root.clone())
            }
            // A file has nothing below it.
            (Driver::Mbox, base) => {
                let base = base.unwrap_or_else(|| root.clone());
                (beside(&below(&base, location, name)), base)
            }
        };
        let (control, control_root) = apart(optional(&location.control_path)?);
        let in_memory = location
            .index_path
            .as_ref()
            .is_some_and(|path| path.source() == "MEMORY");
        let (index, index_root) = match in_memory {
            true => (None, None),
            false => {
                let (index, root) = apart(optional(&location.index_path)?);
                let root = match location.driver {
                    Driver::Maildir | Driver::Sdbox | Driver::Mdbox => root,
                    Driver::Mbox => root.join(BESIDE),
                };
                (Some(index), Some(root))
            }
        };
        let mut above: Vec<PathBuf> = name
            .ancestors()
            .map(|name| below(&root, location, &name))
            .collect();
        above.push(root.clone());
        Ok(Paths {
            index_private: optional(&location.index_private_path)?
                .map(|base| below(&base, location, name)),
            root_rule: match location.is_users {
                true => RootRule::None,
                false => root_rule(&location.path, variables, &root)?,
            },
            root,
            inbox,
            directory_name: match location.layout {
                Layout::MaildirPlusPlus => String::new(),
                Layout::Fs | Layout::Index => location.directory_name.clone(),
            },
            mailbox,
            above,
            control,
            control_root,
            index,
            index_root,
        })
    }
}

impl Paths {
    /// Of a mailbox that only Dovecot finds: nothing can be opened there.
    pub fn unknown() -> Paths {
        Paths {
            root: PathBuf::new(),
            mailbox: PathBuf::new(),
            inbox: PathBuf::new(),
            directory_name: String::new(),
            above: Vec::new(),
            control: PathBuf::new(),
            control_root: PathBuf::new(),
            index: None,
            index_root: None,
            index_private: None,
            root_rule: RootRule::None,
        }
    }
}

#[cfg(test)]
impl Paths {
    /// Everything in one place.
    pub fn for_tests(root: &Path, mailbox: &Path) -> Paths {
        Paths {
            root: root.into(),
            mailbox: mailbox.into(),
            inbox: root.into(),
            directory_name: String::new(),
            above: vec![root.into()],
            control: mailbox.into(),
            control_root: root.into(),
            index: Some(mailbox.into()),
            index_root: Some(root.into()),
            index_private: None,
            root_rule: RootRule::None,
        }
    }
}

/// `name` below one of the roots (mail, control, index) of a location.
fn below(root: &Path, location: &Location, name: &StorageName) -> PathBuf {
    let inbox = ["INBOX".to_owned()];
    let components = match name {
        StorageName::Inbox => &inbox[..],
        StorageName::Box(components) => components,
    };
    let path = match location.layout {
        Layout::MaildirPlusPlus => root.join(format!(".{}", components.join("."))),
        Layout::Fs | Layout::Index => components
            .iter()
            .fold(root.to_owned(), |path, component| path.join(component)),
    };
    match location.layout == Layout::MaildirPlusPlus || location.directory_name.is_empty() {
        true => path,
        false => path.join(&location.directory_name),
    }
}

/// The directory of an mbox's control and index files: `a/.imap/b` for `a/b`.
pub fn beside(path: &Path) -> PathBuf {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => parent.join(BESIDE).join(name),
        _ => path.to_owned(),
    }
}

fn expand(template: &Template, variables: &Variables<'_>) -> Result<PathBuf, NoPlace> {
    let path = expand_relative(template, variables)?;
    match path.is_absolute() {
        true => Ok(path),
        false => Err(NoPlace::Bad(format!(
            "{} gives {}, which is not absolute",
            template.source(),
            path.display()
        ))),
    }
}

/// A path setting with `~` and variables filled in.
fn expand_relative(template: &Template, variables: &Variables<'_>) -> Result<PathBuf, NoPlace> {
    let text = template
        .expand(variables)
        .map_err(|missing| match missing.variable.as_str() {
            "owner_home" | "%{owner_home}" => NoPlace::NoOwnerHome,
            _ => NoPlace::NoValue(missing.to_string()),
        })?;
    let text = match text
        .strip_prefix('~')
        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
    {
        Some(rest) => {
            let home = variables
                .home
                .ok_or_else(|| NoPlace::NoValue("the user has no home for ~".into()))?;
            format!("{home}{rest}")
        }
        None => text,
    };
    // Values come from addresses: none may climb out of the place that the setting gives it.
    if text.contains(char::is_control) || text.split('/').any(|component| component == "..") {
        return Err(NoPlace::Bad(format!(
            "{} gives {text:?}",
            template.source()
        )));
    }
    Ok(PathBuf::from(if text.len() > 1 {
        text.trim_end_matches('/').to_owned()
    } else {
        text
    }))
}

fn root_rule(path: &Template, variables: &Variables<'_>, root: &Path) -> Result<RootRule, NoPlace> {
    let source = path.source();
    let at_home =
        source.starts_with('~') || source.starts_with("%{home}") || source.starts_with("%h");
    let rest = source
        .trim_start_matches("%{home}")
        .trim_start_matches("%h")
        .trim_start_matches('~');
    if at_home && !rest.contains('%') {
        return Ok(RootRule::Home);
    }
    let Some(above) = path.before_last_variable() else {
        return Ok(RootRule::None);
    };
    let above = expand_relative(&above, variables)?;
    // A value with a slash in it (a user name, say) moves the levels: then nothing can be said.
    match root.starts_with(&above) && above.is_absolute() {
        true => Ok(RootRule::Above(above)),
        false => Ok(RootRule::None),
    }
}
