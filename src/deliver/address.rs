//! From an address to a user and the name of the mailbox that is wanted: the address map, the userdbs, the detail.

use std::sync::Arc;

use super::directory::Directory;
use super::map::Rule;
use super::report::Line;
use super::settings::{Detail, Settings};
use super::targets::By;
use crate::fault::{Code, Fault};
use crate::mailbox::lookup;
use crate::mailbox::name::{self, StorageName};
use crate::mailbox::namespace::Namespace;
use crate::message::{Address, Errand, Recipient};
use crate::user::User;

/// Who delivers, and the mailbox that is asked for.
#[derive(Debug)]
pub struct Asked {
    pub user: User,
    /// As he has them.
    pub namespaces: Arc<Vec<Namespace>>,
    pub by: By,
    /// By its full name.
    pub mailbox: String,
    /// The rule of the address map that named it.
    pub rule: Option<Rule>,
    /// The decisions so far.
    pub lines: Vec<Line>,
}

/// The map before the userdbs, `*@domain` only after "no such user", and never after "cannot tell".
pub fn asked(
    settings: &Settings,
    directory: &dyn Directory,
    recipient: &Recipient,
) -> Result<Asked, Fault> {
    if let Some(errand) = &recipient.errand {
        return of_errand(settings, directory, errand);
    }
    if let Some((rule, detail)) = exact_rule(settings, directory, recipient)? {
        return of_rule(settings, directory, recipient, rule, detail.as_deref());
    }
    let (name, detail) = split(settings, recipient);
    let Some(user) = directory.user(&name)? else {
        let domain = recipient
            .address
            .domain
            .as_deref()
            .filter(|_| recipient.user.is_none());
        let rule = domain.map(|domain| format!("*@{}", domain.to_lowercase()));
        let rule = rule.map(|key| directory.rule(&key)).transpose()?.flatten();
        return match rule {
            Some(rule) => of_rule(settings, directory, recipient, rule, None),
            None => Err(unknown(&name)),
        };
    };
    let namespaces = settings.namespaces_of(&user)?;
    let mut lines = vec![Line::ok(
        "user",
        format!("{}  ({})", user.name, user.origin),
    )];
    let (by, mailbox) = wanted_name(
        settings,
        &namespaces,
        recipient,
        detail.as_deref(),
        &user.name,
    );
    if by != By::Default {
        lines.push(Line::ok("wanted", format!("{mailbox}  by {}", by.text())));
    }
    Ok(Asked {
        user,
        namespaces,
        by,
        mailbox,
        rule: None,
        lines,
    })
}

/// The other server has looked for the rest.
fn of_errand(
    settings: &Settings,
    directory: &dyn Directory,
    errand: &Errand,
) -> Result<Asked, Fault> {
    let user = directory.user(&errand.user)?;
    // The other server knows him: which of us is wrong?
    let user = user.ok_or_else(|| Fault {
        code: Code::CannotTell,
        ..unknown(&errand.user)
    })?;
    let namespaces = settings.namespaces_of(&user)?;
    let mailbox = normalised(&namespaces, &errand.mailbox);
    let text = format!("{mailbox} as {}, for another server", user.name);
    Ok(Asked {
        user,
        namespaces,
        by: By::Errand,
        mailbox,
        rule: None,
        lines: vec![Line::ok("wanted", text)],
    })
}

/// The user whose mail this is: no such user and cannot tell are faults.
pub fn user_of(settings: &Settings, recipient: &Recipient) -> Result<User, Fault> {
    asked(settings, settings, recipient).map(|asked| asked.user)
}

fn unknown(name: &str) -> Fault {
    let doing = format!("look up the user {name:?}");
    Fault::new(Code::NoSuchUser, doing, "no userdb has this user")
}

/// The rule of the whole address, or else of the address without its detail, and that detail.
fn exact_rule(
    settings: &Settings,
    directory: &dyn Directory,
    recipient: &Recipient,
) -> Result<Option<(Rule, Option<String>)>, Fault> {
    // `*@domain` is a pattern, not somebody's address.
    let is_pattern = recipient.address.local.starts_with('*');
    if recipient.user.is_some() || settings.addresses.is_empty() || is_pattern {
        return Ok(None);
    }
    let rule = |address: &Address| directory.rule(&address.to_string().to_lowercase());
    if let Some(rule) = rule(&recipient.address)? {
        return Ok(Some((rule, None)));
    }
    let (address, detail) = recipient
        .address
        .split_detail(&settings.recipient_delimiter);
    match detail {
        Some(detail) => Ok(rule(&address)?.map(|rule| (rule, Some(detail)))),
        None => Ok(None),
    }
}

/// The mailbox of a rule, or the child of it that a detail names where that is a name at all.
fn of_rule(
    settings: &Settings,
    directory: &dyn Directory,
    recipient: &Recipient,
    rule: Rule,
    detail: Option<&str>,
) -> Result<Asked, Fault> {
    let Some(user) = directory.user(&rule.user)? else {
        let doing = format!("deliver as {:?}, by {}", rule.user, rule.from);
        return Err(Fault::new(
            Code::CannotTell,
            doing,
            "no userdb has this user",
        ));
    };
    let namespaces = settings.namespaces_of(&user)?;
    let own = normalised(
        &namespaces,
        recipient.mailbox.as_deref().unwrap_or(&rule.mailbox),
    );
    let child = detail
        .filter(|detail| !detail.is_empty() && settings.detail != Detail::Ignore)
        .filter(|_| recipient.mailbox.is_none())
        .and_then(|detail| child(&namespaces, &user, &own, detail));
    let by = if child.is_some() { By::Child } else { By::Map };
    let mailbox = child.unwrap_or(own);
    let lines = vec![
        Line::ok(
            "address map",
            format!("{}: {mailbox} as {}", rule.from, rule.user),
        ),
        Line::ok("user", format!("{}  ({})", user.name, user.origin)),
    ];
    Ok(Asked {
        user,
        namespaces,
        by,
        mailbox,
        rule: Some(rule),
        lines,
    })
}

fn child(namespaces: &[Namespace], user: &User, parent: &str, detail: &str) -> Option<String> {
    let above = lookup::find(namespaces, parent, &user.name).ok()?;
    let name = normalised(
        namespaces,
        &format!("{parent}{}{detail}", above.namespace.separator),
    );
    let found = lookup::find(namespaces, &name, &user.name).ok()?;
    let is_below = found.namespace.name == above.namespace.name && found.owner == above.owner;
    let is_name = is_below && StorageName::parse(&found.rest, found.namespace).is_ok();
    is_name.then_some(name)
}

/// The name to look up, and the detail.
fn split(settings: &Settings, recipient: &Recipient) -> (String, Option<String>) {
    if let Some(user) = &recipient.user {
        return (user.clone(), recipient.detail.clone());
    }
    let (address, detail) = recipient
        .address
        .split_detail(&settings.recipient_delimiter);
    let whole = match &address.domain {
        Some(domain) => format!("{}@{domain}", address.local),
        None => address.local.clone(),
    };
    (
        whole,
        detail
            .filter(|detail| !detail.is_empty())
            .or_else(|| recipient.detail.clone()),
    )
}

/// A mailbox name as somebody wrote it, in NFC, with INBOX in capitals.
pub fn normalised(namespaces: &[Namespace], name: &str) -> String {
    let separators = namespaces.iter().map(|it| it.separator);
    name::normalise(name, &separators.collect::<Vec<char>>())
}

fn wanted_name(
    settings: &Settings,
    namespaces: &[Namespace],
    recipient: &Recipient,
    detail: Option<&str>,
    user: &str,
) -> (By, String) {
    let inbox = || (By::Default, "INBOX".to_owned());
    if let Some(mailbox) = recipient.mailbox.as_deref() {
        return match normalised(namespaces, mailbox) {
            name if name.is_empty() => inbox(),
            name => (By::Flag, name),
        };
    }
    let Some(detail) =
        detail.filter(|detail| !detail.is_empty() && settings.detail != Detail::Ignore)
    else {
        return inbox();
    };
    let name = normalised(namespaces, detail);
    if name == "INBOX" || lookup::is_full_name(namespaces, &name, user) {
        return (By::Detail, name);
    }
    let inbox_prefix = namespaces
        .iter()
        .find(|namespace| namespace.inbox)
        .map_or("".into(), |it| it.prefix_for(user));
    (By::Detail, format!("{inbox_prefix}{name}"))
}
