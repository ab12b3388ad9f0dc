//! What a userdb says of one user's mailboxes, in either dialect: settings of the file for him alone.

use std::sync::Arc;

use super::mail_location;
use super::overrides::Overrides;
use super::places::{location, namespaces};
use super::report::Errors;
use super::rights::check_open;
use super::section::{Notes, Section};
use crate::mailbox::namespace::Namespace;
use crate::user::Field;

/// Settings that are true or false.
const FLAGS: [&str; 6] = [
    "inbox",
    "hidden",
    "subscriptions",
    "disabled",
    "ignore_on_failure",
    "mailbox_list_utf8",
];
/// Settings that are paths.
const PATHS: [&str; 5] = [
    "mail_path",
    "mail_inbox_path",
    "mail_control_path",
    "mail_index_path",
    "mail_index_private_path",
];
/// Other settings of a place.
const PLACE: [&str; 5] = [
    "mail_driver",
    "mailbox_list_layout",
    "mailbox_directory_name",
    "mailbox_list_storage_escape_char",
    "mailbox_subscriptions_filename",
];
/// Other settings of a namespace and its mailboxes.
const NAMESPACE: [&str; 8] = [
    "type",
    "prefix",
    "separator",
    "list",
    "alias_for",
    "order",
    "auto",
    "special_use",
];

/// The namespaces of a user with these fields, where `usual` are those of the file with this `text`.
pub fn namespaces_of(
    text: &str,
    usual: &[Namespace],
    fields: &[Field],
) -> Result<Vec<Namespace>, String> {
    let overrides = Overrides::new(text, &settings(usual, fields)?);
    let notes = Notes {
        text: &overrides.text,
        problems: Default::default(),
        settings: None,
    };
    let (table, _) = overrides.parse();
    let root = Section::root(&notes, &table);
    let mut all = namespaces(&root, &location(&root, None));
    check_open(&root, &all);
    let errors = Errors {
        file: "the userdb".into(),
        text: overrides.text.clone(),
        problems: notes.problems.take(),
    };
    if let Some(problem) = errors.problems.iter().find(|it| !it.is_warning) {
        return Err(problem.message.clone());
    }
    for namespace in &mut all {
        let known = usual.iter().find(|it| it.name == namespace.name);
        let is_known = known.is_some_and(|it| it.location.path == namespace.location.path);
        namespace.location.is_users = !is_known;
    }
    Ok(all)
}

/// The fields as settings of the command line.
fn settings(usual: &[Namespace], fields: &[Field]) -> Result<Vec<String>, String> {
    let mut settings = Vec::new();
    for (field, value) in fields {
        match field.as_str() {
            "mail" | "mail_location" => settings.extend(of_location("", value)?),
            "namespace" => {
                let names: Vec<&str> = value.split(',').map(str::trim).collect();
                let others = usual.iter().filter(|it| !names.contains(&it.name.as_str()));
                let name = |it: &Namespace| quoted(&it.name);
                settings.extend(others.map(|it| format!("namespace.{}.disabled=true", name(it))));
            }
            field => {
                let (above, key) = field.rsplit_once('/').unwrap_or(("", field));
                let above: String = above
                    .split('/')
                    .filter(|it| !it.is_empty())
                    .map(|it| {
                        if it == "namespace" || it == "mailbox" {
                            format!("{it}.")
                        } else {
                            format!("{}.", quoted(it))
                        }
                    })
                    .collect();
                match key {
                    "location" => settings.extend(of_location(&above, value)?),
                    key => settings.extend(setting(&above, key, value)?),
                }
            }
        }
    }
    Ok(settings)
}

fn of_location(above: &str, value: &str) -> Result<Vec<String>, String> {
    let mut settings = Vec::new();
    for (key, value) in mail_location::whole(value)? {
        settings.extend(setting(above, key, &value)?);
    }
    Ok(settings)
}

/// None: a setting that says nothing of where mail lies.
fn setting(above: &str, key: &str, value: &str) -> Result<Option<String>, String> {
    let value = match key {
        _ if FLAGS.contains(&key) => match value {
            "yes" | "true" | "1" => "true".into(),
            "no" | "false" | "0" => "false".into(),
            other => return Err(format!("{key} is {other:?}, and yes or no is right")),
        },
        "order" => value.to_owned(),
        // Its variables have been filled in by the userdb.
        _ if PATHS.contains(&key) && value.contains("%{") => {
            return Err(format!("{key} has a variable in it: {value:?}"));
        }
        _ if PATHS.contains(&key) => quoted(&value.replace('%', "%%")),
        _ if PLACE.contains(&key) || NAMESPACE.contains(&key) => quoted(value),
        _ => return Ok(None),
    };
    Ok(Some(format!("{above}{key}={value}")))
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// [`namespaces_of`] for one file.
pub fn maker(text: String, usual: Arc<Vec<Namespace>>) -> crate::deliver::settings::MakeOwn {
    Box::new(move |fields| namespaces_of(&text, &usual, fields))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// A location is instead of that of the file; a path alone is beside the rest.
    #[test]
    fn locations_of_a_user() {
        const FILE: &str = "mail_driver = \"maildir\"\nmail_path = \"~/Maildir\"\nmail_index_path = \"/i/%u\"\nmail_control_path = \"/c/%u\"\nmailbox_list_layout = \"fs\"\nmailbox_list_utf8 = true\n[namespace.inbox]\ninbox = true\nseparator = \"/\"\nmail_index_path = \"/own\"\n";
        let usual = Config::from_str("t", FILE).unwrap().delivery.namespaces;
        for (fields, want) in [
            (&[("mail_path", "~/M")][..], "~/M /own /c/%u Fs true"),
            (
                &[("mail", "maildir:~/M")],
                "~/M /own - MaildirPlusPlus false",
            ),
            (
                &[("mail_location", "maildir:~/M")],
                "~/M /own - MaildirPlusPlus false",
            ),
            (
                &[("namespace/inbox/location", "maildir:~/M:CONTROL=~/c")],
                "~/M - ~/c MaildirPlusPlus false",
            ),
            (
                &[("mail", "maildir:~/M"), ("mail_control_path", "~/c")],
                "~/M /own ~/c MaildirPlusPlus false",
            ),
        ] {
            let fields: Vec<Field> = fields
                .iter()
                .map(|(field, value)| ((*field).to_owned(), (*value).to_owned()))
                .collect();
            let all = namespaces_of(FILE, &usual, &fields).unwrap();
            let it = &all[0].location;
            let path = |it: &Option<crate::text::template::Template>| {
                it.as_ref()
                    .map_or("-".to_owned(), |it| it.source().to_owned())
            };
            let got = format!(
                "{} {} {} {:?} {}",
                it.path.source(),
                path(&it.index_path),
                path(&it.control_path),
                it.layout,
                it.utf8
            );
            assert_eq!(got, want, "{fields:?}");
        }
    }

    /// Nobody has said who may store there.
    #[test]
    fn a_public_namespace_of_a_userdb() {
        const FILE: &str =
            "mail_path = \"~/Maildir\"\n[namespace.inbox]\ninbox = true\nseparator = \"/\"\n";
        let fields = [
            ("type", "public"),
            ("prefix", "Pub/"),
            ("separator", "/"),
            ("mail_path", "/pub"),
        ]
        .map(|(key, value)| (format!("namespace/pub/{key}"), value.to_owned()));
        for (acl, is_refused) in [
            ("", true),
            ("[acl]\ndriver = \"vfile\"\n", false),
            ("[acl]\ndriver = \"none\"\n", false),
        ] {
            let file = format!("{FILE}{acl}");
            let usual = Config::from_str("t", &file).unwrap().delivery.namespaces;
            let made = namespaces_of(&file, &usual, &fields);
            let said = made.as_ref().err().cloned().unwrap_or_default();
            assert_eq!(
                said.contains("who may store there"),
                is_refused,
                "{acl}: {said}"
            );
            assert_eq!(made.is_err(), is_refused, "{acl}: {said}");
        }
    }
}
