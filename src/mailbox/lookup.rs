//! Which namespace a mailbox name belongs to, and, in a shared one, whose mailbox it is.

use std::borrow::Cow;

use super::namespace::{Kind, Namespace};

/// A name with its namespace.
#[derive(Debug, Clone, PartialEq)]
pub struct Found<'a> {
    pub namespace: &'a Namespace,
    /// The name behind the prefix; `INBOX` for the namespace's INBOX.
    pub rest: String,
    /// In a shared namespace with `$user` in its prefix: whose mailbox this is.
    pub owner: Option<String>,
    /// The prefix with the owner filled in: `shared/bob/`.
    pub prefix: String,
}

impl Found<'_> {
    /// The whole name, as the accessing user sees it: another user's INBOX is `shared/bob`.
    pub fn full_name(&self) -> String {
        let owners = self.prefix.strip_suffix(self.namespace.separator);
        match (self.rest == "INBOX", &self.owner, owners) {
            (true, Some(_), Some(name)) => name.into(),
            (true, None, _) if self.namespace.inbox => "INBOX".into(),
            _ => format!("{}{}", self.prefix, self.rest),
        }
    }
}

/// Why a name belongs to no mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotFound {
    /// No namespace has this prefix.
    NoNamespace,
    /// It names a namespace, not a mailbox in it.
    PrefixOnly(String),
    /// A shared name without a user in it.
    NoOwner(String),
}

/// Finds the namespace of `name` (NFC, INBOX in capitals) by the longest prefix. `user` is the accessing user: his
/// domain completes a `$username`.
pub fn find<'a>(
    namespaces: &'a [Namespace],
    name: &str,
    user: &str,
) -> Result<Found<'a>, NotFound> {
    let inbox = |namespace: &'a Namespace| Found {
        namespace,
        rest: "INBOX".into(),
        owner: None,
        prefix: namespace.prefix_for(user).into_owned(),
    };
    let owns_inbox = || namespaces.iter().find(|namespace| namespace.inbox);
    if name == "INBOX" || owns_inbox().is_some_and(|it| it.prefix_for(user) == name) {
        return owns_inbox().map(inbox).ok_or(NotFound::NoNamespace);
    }
    let mut best: Option<&Namespace> = None;
    for namespace in namespaces
        .iter()
        .filter(|namespace| matches(namespace, name, user))
    {
        // At equal length the later one wins, as in Dovecot.
        let length = |namespace| static_prefix(namespace, user).len();
        if best.is_none_or(|best| length(namespace) >= length(best)) {
            best = Some(namespace);
        }
    }
    let namespace = best.ok_or(NotFound::NoNamespace)?;
    let prefix = static_prefix(namespace, user);
    let rest = name.strip_prefix(&*prefix).unwrap_or("");
    // The INBOX by the name that an alias has for it; Dovecot 2.3 makes a mailbox of `mail/INBOX` that no client lists.
    if let Some(original) = owns_inbox()
        && namespace.alias_for.as_ref() == Some(&original.name)
        && (rest.is_empty() || rest.eq_ignore_ascii_case("INBOX"))
    {
        return Ok(inbox(original));
    }
    if rest.is_empty() {
        return Err(NotFound::PrefixOnly(namespace.name.clone()));
    }
    match namespace.kind == Kind::Shared && namespace.prefix.contains('$') {
        true => shared(namespace, name, user),
        false => Ok(Found {
            namespace,
            rest: rest.into(),
            owner: None,
            prefix: prefix.into_owned(),
        }),
    }
}

/// Whether `name` is a full name: it begins with a prefix that is not empty.
pub fn is_full_name(namespaces: &[Namespace], name: &str, user: &str) -> bool {
    namespaces.iter().any(|namespace| {
        !static_prefix(namespace, user).is_empty() && matches(namespace, name, user)
    })
}

/// The prefix up to the first `$` variable of a shared one.
fn static_prefix<'a>(namespace: &'a Namespace, user: &str) -> Cow<'a, str> {
    match namespace.kind {
        Kind::Shared => namespace.prefix.split('$').next().unwrap_or("").into(),
        Kind::Private | Kind::Public => namespace.prefix_for(user),
    }
}

fn matches(namespace: &Namespace, name: &str, user: &str) -> bool {
    let prefix = static_prefix(namespace, user);
    name.starts_with(&*prefix) || prefix.strip_suffix(namespace.separator) == Some(name)
}

/// Takes the owner out of `shared/bob/Work` by the template `shared/$user/` (Dovecot's way of matching).
fn shared<'a>(namespace: &'a Namespace, name: &str, user: &str) -> Result<Found<'a>, NotFound> {
    let no_owner = || NotFound::NoOwner(namespace.name.clone());
    let (mut template, mut text) = (namespace.prefix.as_str(), name);
    let (mut whole, mut local, mut domain) = (None, None, None);
    let mut inbox = false;
    while !template.is_empty() {
        let Some(at) = template.find('$') else {
            text = text.strip_prefix(template).ok_or_else(no_owner)?;
            break;
        };
        text = text.strip_prefix(&template[..at]).ok_or_else(no_owner)?;
        let (variable, after) = variable(&template[at..]);
        let end = after.chars().next().unwrap_or(namespace.separator);
        let value = match text.find(end) {
            Some(end) => &text[..end],
            None => {
                inbox = true;
                text
            }
        };
        text = &text[value.len()..];
        match variable {
            "$username" => local = Some(value),
            "$domain" => domain = Some(value),
            _ => whole = Some(value),
        }
        template = after;
        if inbox {
            break;
        }
    }
    let own_domain = user.split_once('@').map(|(_, domain)| domain);
    let owner = match (whole, local, domain) {
        (Some(whole), _, _) => whole.to_owned(),
        (None, Some(local), domain) if !local.is_empty() => match domain.or(own_domain) {
            Some(domain) => format!("{local}@{domain}"),
            None => local.to_owned(),
        },
        _ => return Err(no_owner()),
    };
    if owner.is_empty() {
        return Err(no_owner());
    }
    let rest = if inbox || text.is_empty() {
        "INBOX"
    } else {
        text
    };
    let prefix = match inbox {
        true => format!("{name}{}", namespace.separator),
        false => name[..name.len() - text.len()].to_owned(),
    };
    Ok(Found {
        namespace,
        rest: rest.into(),
        owner: Some(owner),
        prefix,
    })
}

/// The variable at the start of a template, and what follows it.
fn variable(template: &str) -> (&str, &str) {
    let end = template[1..]
        .find(|c: char| !c.is_ascii_alphanumeric())
        .map_or(template.len(), |end| end + 1);
    template.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::super::tests::namespace;
    use super::*;

    fn all() -> Vec<Namespace> {
        vec![
            Namespace {
                inbox: true,
                ..namespace("inbox", Kind::Private, "")
            },
            namespace("public", Kind::Public, "Public/"),
            namespace("shared", Kind::Shared, "shared/$user/"),
            namespace("team", Kind::Shared, "team/$domain/$username/"),
            namespace("mates", Kind::Shared, "mates/$username/"),
        ]
    }

    #[test]
    fn names_find_their_namespace() {
        let namespaces = all();
        for (name, want) in [
            ("INBOX", Some(("inbox", "INBOX", None))),
            ("Work", Some(("inbox", "Work", None))),
            ("INBOX/Kid", Some(("inbox", "INBOX/Kid", None))),
            ("Publicity", Some(("inbox", "Publicity", None))),
            ("Public/info", Some(("public", "info", None))),
            ("Public", None),
            ("Public/", None),
            ("shared/bob", Some(("shared", "INBOX", Some("bob")))),
            ("shared/bob/Work/x", Some(("shared", "Work/x", Some("bob")))),
            (
                "shared/bob@d1.test/Work",
                Some(("shared", "Work", Some("bob@d1.test"))),
            ),
            ("shared/bob/", Some(("shared", "INBOX", Some("bob")))),
            ("shared", None),
            ("shared/", None),
            ("shared//x", None),
            (
                "team/d1.test/bob/Work",
                Some(("team", "Work", Some("bob@d1.test"))),
            ),
            ("team/d1.test", None),
            (
                "mates/bob/Work",
                Some(("mates", "Work", Some("bob@home.test"))),
            ),
        ] {
            let found = find(&namespaces, name, "alice@home.test").ok();
            let got = found.as_ref().map(|f| {
                (
                    f.namespace.name.as_str(),
                    f.rest.as_str(),
                    f.owner.as_deref(),
                )
            });
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn an_alias_of_the_inbox() {
        let mut namespaces = all();
        namespaces.push(Namespace {
            alias_for: Some("inbox".into()),
            ..namespace("compat", Kind::Private, "mail/")
        });
        namespaces.push(Namespace {
            alias_for: Some("public".into()),
            ..namespace("old", Kind::Public, "Old/")
        });
        for (name, want) in [
            ("mail/INBOX", Some(("inbox", "INBOX"))),
            ("mail/Inbox", Some(("inbox", "INBOX"))),
            ("mail/", Some(("inbox", "INBOX"))),
            ("mail", Some(("inbox", "INBOX"))),
            ("mail/INBOX/Kid", Some(("compat", "INBOX/Kid"))),
            ("mail/Work", Some(("compat", "Work"))),
            ("Old/INBOX", Some(("old", "INBOX"))),
            ("Old", None),
        ] {
            let found = find(&namespaces, name, "alice").ok();
            let got = found
                .as_ref()
                .map(|it| (it.namespace.name.as_str(), it.rest.as_str()));
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn names_that_users_see() {
        for (name, want) in [
            ("INBOX", "INBOX"),
            ("Work", "Work"),
            ("Public/info", "Public/info"),
            ("shared/bob", "shared/bob"),
            ("shared/bob/", "shared/bob"),
            ("shared/bob/INBOX", "shared/bob"),
            ("shared/bob/Work", "shared/bob/Work"),
        ] {
            let namespaces = all();
            let found = find(&namespaces, name, "alice@home.test").unwrap();
            assert_eq!(found.full_name(), want, "{name}");
        }
    }

    #[test]
    fn a_prefix_with_variables() {
        let mut namespaces = all();
        namespaces.push(namespace("compat", Kind::Private, "~%{user}/mail/"));
        for (name, want) in [
            ("~alice@home.test/mail/Work", Some(("compat", "Work"))),
            ("~bob/mail/Work", Some(("inbox", "~bob/mail/Work"))),
        ] {
            let found = find(&namespaces, name, "alice@home.test").ok();
            let got = found
                .as_ref()
                .map(|it| (it.namespace.name.as_str(), it.rest.as_str()));
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn courier_names() {
        let namespaces = [Namespace {
            inbox: true,
            separator: '.',
            ..namespace("inbox", Kind::Private, "INBOX.")
        }];
        for (name, want) in [
            ("INBOX", Some("INBOX")),
            ("INBOX.", Some("INBOX")),
            ("INBOX.foo", Some("foo")),
            ("foo", None),
        ] {
            let found = find(&namespaces, name, "alice")
                .ok()
                .map(|found| found.rest);
            assert_eq!(found.as_deref(), want, "{name}");
        }
    }
}
