//! What is wrong with a set of namespaces: Dovecot's start-up checks, and what its documents warn of.

use super::{Kind, List, Namespace};
use crate::mailbox::agent::Agent;
use crate::mailbox::location::Location;
use crate::text::template::Template;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The namespace's section; empty for the whole set.
    pub namespace: String,
    pub setting: &'static str,
    pub message: String,
    pub advice: String,
    pub is_warning: bool,
}

/// Every problem of the namespaces that are in use.
pub fn check(namespaces: &[Namespace]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for namespace in namespaces {
        check_prefix(namespace, &mut problems);
        check_shared(namespace, &mut problems);
        check_paths(namespace, &mut problems);
        check_hand_over(namespace, namespaces, &mut problems);
        check_alias(namespace, namespaces, &mut problems);
    }
    check_pairs(namespaces, &mut problems);
    check_set(namespaces, &mut problems);
    problems
}

fn problem(
    namespace: &Namespace,
    setting: &'static str,
    message: String,
    advice: String,
) -> Problem {
    Problem {
        namespace: namespace.name.clone(),
        setting,
        message,
        advice,
        is_warning: false,
    }
}

fn check_prefix(namespace: &Namespace, problems: &mut Vec<Problem>) {
    let Namespace {
        name,
        prefix,
        separator,
        ..
    } = namespace;
    if prefix.is_empty() || namespace.list == List::No {
        return;
    }
    if !prefix.ends_with(*separator) {
        let message = format!(
            "namespace {name:?}: a listed prefix must end with the separator {separator:?}"
        );
        problems.push(problem(
            namespace,
            "prefix",
            message,
            format!("write it as \"{prefix}{separator}\""),
        ));
    }
    if prefix.starts_with(*separator) {
        let message = format!(
            "namespace {name:?}: a listed prefix must not begin with the separator {separator:?}"
        );
        let advice = format!("write it as {:?}", prefix.trim_start_matches(*separator));
        problems.push(problem(namespace, "prefix", message, advice));
    }
}

fn check_shared(namespace: &Namespace, problems: &mut Vec<Problem>) {
    let Namespace { name, prefix, .. } = namespace;
    if namespace.kind != Kind::Shared {
        if prefix.contains('$') && namespace.list != List::No {
            let message =
                format!("namespace {name:?}: only a shared namespace has a variable in its prefix");
            problems.push(problem(
                namespace,
                "prefix",
                message,
                "write type = \"shared\"".into(),
            ));
        }
        return;
    }
    let words = prefix.split('$').skip(1).map(|rest| {
        rest.split(|c: char| !c.is_ascii_alphanumeric())
            .next()
            .unwrap_or("")
    });
    let words: Vec<&str> = words.collect();
    if !words
        .iter()
        .any(|word| matches!(*word, "user" | "username"))
    {
        let message =
            format!("namespace {name:?}: a shared prefix names the owner with $user or $username");
        problems.push(problem(
            namespace,
            "prefix",
            message,
            "write it like \"shared/$user/\"".into(),
        ));
    }
    if let Some(unknown) = words
        .iter()
        .find(|word| !matches!(**word, "user" | "username" | "domain"))
    {
        let message = format!("namespace {name:?}: ${unknown} is no variable of a prefix");
        problems.push(problem(
            namespace,
            "prefix",
            message,
            "use $user, $username and $domain".into(),
        ));
    }
    if !namespace.location.path.uses_owner() && namespace.location.dovecots().is_none() {
        let message = format!("namespace {name:?}: its mail_path is the same for every owner");
        let advice =
            "write it with %{owner_home} or %{owner_user}, like \"%{owner_home}/Maildir\"".into();
        problems.push(problem(namespace, "mail_path", message, advice));
    }
    if namespace.location.dovecots().is_none() {
        check_shared_paths(namespace, problems);
    }
}

/// What lies beside the mail of an owner has him in its path too.
fn check_shared_paths(namespace: &Namespace, problems: &mut Vec<Problem>) {
    let Namespace { name, location, .. } = namespace;
    let is_of_nobody = |path: &Option<Template>| {
        path.as_ref()
            .is_some_and(|path| path.source().starts_with(['/', '~', '%']) && !path.uses_owner())
    };
    let none = "or none, in this namespace: \"\"";
    for (setting, path, effect) in [
        (
            "mail_inbox_path",
            &location.inbox_path,
            "mail for the INBOX of an owner would lie in that of somebody else",
        ),
        (
            "mail_control_path",
            &location.control_path,
            "mailboxes of one name would have one list of UIDs",
        ),
        (
            "mail_index_path",
            &location.index_path,
            "mailboxes of one name would have one index",
        ),
    ] {
        if is_of_nobody(path) {
            let message = format!("namespace {name:?}: its {setting} names no owner: {effect}");
            let advice = format!("write it with %{{owner_user}} or %{{owner_home}}, {none}");
            problems.push(problem(namespace, setting, message, advice));
        }
    }
}

fn check_paths(namespace: &Namespace, problems: &mut Vec<Problem>) {
    let Namespace { name, location, .. } = namespace;
    // Dovecot goes by its own.
    if location.dovecots().is_some() {
        return;
    }
    check_owners(namespace, problems);
    if namespace.kind == Kind::Private {
        return;
    }
    let per_user = |path: &Option<Template>| path.as_ref().is_some_and(|path| path.uses_user());
    if per_user(&location.control_path) && !per_user(&location.index_path) {
        let message = format!(
            "namespace {name:?}: control files per user need index files per user, or readers get errors"
        );
        let advice =
            "set mail_index_path to a path per user too, or mail_control_path to a shared one"
                .into();
        problems.push(problem(namespace, "mail_control_path", message, advice));
    } else if per_user(&location.control_path) {
        let message = format!(
            "namespace {name:?}: control files per user do not share dovecot-keywords: messages are stored without keywords"
        );
        let advice = "use one mail_control_path for all users".into();
        let found = problem(namespace, "mail_control_path", message, advice);
        problems.push(Problem {
            is_warning: true,
            ..found
        });
    }
    let private = location.index_private_path.as_ref();
    if namespace.kind == Kind::Shared && private.is_some_and(|path| !path.uses_owner()) {
        let message =
            format!("namespace {name:?}: the private indexes of all owners' mailboxes collide");
        let advice = "put %{owner_user} into mail_index_private_path".into();
        let found = problem(namespace, "mail_index_private_path", message, advice);
        problems.push(Problem {
            is_warning: true,
            ..found
        });
    }
}

/// Mail that would lie elsewhere than the kind of its namespace says.
fn check_owners(namespace: &Namespace, problems: &mut Vec<Problem>) {
    let Namespace {
        name,
        location,
        kind,
        ..
    } = namespace;
    let path = &location.path;
    let (message, advice, is_warning) = match kind {
        Kind::Public if path.uses_owner() => (
            format!("namespace {name:?}: a public mailbox has no owner"),
            "write mail_path without %{owner_user} and %{owner_home}, or type = \"shared\"",
            false,
        ),
        Kind::Public if path.uses_user() => (
            format!(
                "namespace {name:?}: its mail_path differs from user to user, so it is not public"
            ),
            "write one path for all, or type = \"private\"",
            true,
        ),
        Kind::Private if !path.uses_user() && !path.uses_owner() => (
            format!(
                "namespace {name:?}: its mail_path is the same for every user, so it is not private"
            ),
            "write it with ~ or %{user}, or type = \"public\"",
            true,
        ),
        _ => return,
    };
    let found = problem(namespace, "mail_path", message, advice.into());
    problems.push(Problem {
        is_warning,
        ..found
    });
}

/// What only Dovecot can write needs a way to Dovecot, and a way that can name its mailboxes.
fn check_hand_over(namespace: &Namespace, all: &[Namespace], problems: &mut Vec<Problem>) {
    let Namespace { name, location, .. } = namespace;
    let Some(format) = location.dovecots() else {
        return;
    };
    let setting = match format {
        "layout index" => "mailbox_list_layout",
        _ => "mail_driver",
    };
    let inbox_prefix = all.iter().find(|it| it.inbox).map(|it| &it.prefix);
    let is_named = inbox_prefix.is_none_or(|prefix| namespace.prefix.starts_with(prefix));
    let (setting, what, advice) = match &location.hand_over {
        None => (
            setting,
            format!("only Dovecot writes {format}, and hand_over does not say how it gets mail"),
            "write hand_over = \"lmtp:/run/dovecot/lmtp\", or hand_over = \"lda:/usr/lib/dovecot/dovecot-lda\"",
        ),
        Some(Agent::Lmtp { .. }) if !namespace.inbox && !location.hand_over_detail => (
            "hand_over",
            "over LMTP Dovecot puts mail into INBOX, and no mailbox of this namespace is that"
                .into(),
            "where Dovecot has lmtp_save_to_detail_mailbox = yes write hand_over_detail = true, else hand_over = \"lda:/usr/lib/dovecot/dovecot-lda\"",
        ),
        Some(Agent::Lmtp { .. }) if !is_named => (
            "hand_over",
            "over LMTP Dovecot can be told only of mailboxes below the prefix of the INBOX's namespace".into(),
            "write hand_over = \"lda:/usr/lib/dovecot/dovecot-lda\"",
        ),
        Some(_) => return,
    };
    let message = format!("namespace {name:?}: {what}");
    problems.push(problem(namespace, setting, message, advice.into()));
}

fn check_alias(namespace: &Namespace, all: &[Namespace], problems: &mut Vec<Problem>) {
    let Some(alias) = &namespace.alias_for else {
        return;
    };
    let name = &namespace.name;
    let Some(target) = all.iter().find(|target| target.name == *alias) else {
        let message =
            format!("namespace {name:?}: there is no namespace {alias:?} to be an alias for");
        problems.push(problem(
            namespace,
            "alias_for",
            message,
            "name another [namespace.…] section".into(),
        ));
        return;
    };
    if let Some(next) = &target.alias_for {
        let message = format!("namespace {name:?}: {alias:?} is itself an alias for {next:?}");
        problems.push(problem(
            namespace,
            "alias_for",
            message,
            format!("write alias_for = {next:?}"),
        ));
    }
    if target.location.driver != namespace.location.driver
        || target.location.path != namespace.location.path
    {
        let (own, other) = (
            namespace.location.path.source(),
            target.location.path.source(),
        );
        let message =
            format!("namespace {name:?}: its mail_path {own:?} is not the {other:?} of {alias:?}");
        problems.push(problem(
            namespace,
            "alias_for",
            message,
            "give both the same mail_path and mail_driver".into(),
        ));
    }
}

/// Two namespaces that would share what must be apart.
fn check_pairs(namespaces: &[Namespace], problems: &mut Vec<Problem>) {
    for (at, one) in namespaces.iter().enumerate() {
        for other in &namespaces[at + 1..] {
            let (name, earlier) = (&other.name, &one.name);
            if one.prefix == other.prefix {
                let message = format!(
                    "namespaces {earlier:?} and {name:?} have the same prefix {:?}",
                    one.prefix
                );
                problems.push(problem(
                    other,
                    "prefix",
                    message,
                    "give each its own".into(),
                ));
            }
            let is_dovecots = |it: &Namespace| it.location.dovecots().is_some();
            let is_alias = |it: &Namespace| it.alias_for.is_some();
            if [one, other]
                .iter()
                .any(|it| is_alias(it) || is_dovecots(it))
            {
                continue;
            }
            for setting in colliding(&one.location, &other.location) {
                let message = format!(
                    "namespaces {earlier:?} and {name:?} have the same {setting}: mailboxes of one name would conflict"
                );
                let found = problem(
                    other,
                    setting,
                    message,
                    "give each namespace a path of its own, or make one an alias_for the other"
                        .into(),
                );
                // One that only holds subscriptions or old names may lie over another.
                if setting != "mail_path" {
                    problems.push(found);
                } else if one.list != List::No && other.list != List::No {
                    problems.push(Problem {
                        is_warning: true,
                        ..found
                    });
                }
            }
        }
    }
}

/// The settings by which mailboxes of one name would lie in one place. Control and index files without a path of their own
/// lie with the mail.
fn colliding(one: &Location, other: &Location) -> Vec<&'static str> {
    if one.path == other.path
        && one.control_path == other.control_path
        && one.index_path == other.index_path
    {
        return vec!["mail_path"];
    }
    let same = |path: fn(&Location) -> &Option<Template>| {
        let one = path(one).as_ref().unwrap_or(&one.path);
        let other = path(other).as_ref().unwrap_or(&other.path);
        one == other && one.source() != "MEMORY"
    };
    let mut settings = Vec::new();
    if same(|location| &location.control_path) {
        settings.push("mail_control_path");
    }
    if same(|location| &location.index_path) {
        settings.push("mail_index_path");
    }
    settings
}

fn check_set(namespaces: &[Namespace], problems: &mut Vec<Problem>) {
    let mut whole = |message: String, advice: &str| {
        problems.push(Problem {
            namespace: String::new(),
            setting: "",
            message,
            advice: advice.into(),
            is_warning: false,
        });
    };
    match namespaces
        .iter()
        .filter(|namespace| namespace.inbox)
        .count()
    {
        0 => whole(
            "no namespace has the INBOX".into(),
            "write inbox = true in the users' private namespace",
        ),
        1 => {}
        _ => whole(
            "more than one namespace has inbox = true".into(),
            "leave it in one of them",
        ),
    }
    if let Some(odd) = namespaces
        .iter()
        .find(|namespace| namespace.inbox && namespace.kind != Kind::Private)
    {
        whole(
            format!("namespace {:?} has the INBOX and is not private", odd.name),
            "write type = \"private\"",
        );
    }
    if namespaces
        .iter()
        .all(|namespace| namespace.list == List::No)
    {
        whole(
            "no namespace is listed".into(),
            "write list = \"yes\" in one of them",
        );
    }
    if namespaces.iter().all(|namespace| namespace.hidden) {
        whole(
            "all namespaces are hidden".into(),
            "take hidden = true out of one of them",
        );
    }
    if !namespaces.iter().any(|namespace| namespace.subscriptions) {
        whole(
            "no namespace holds subscriptions".into(),
            "write subscriptions = true in one of them",
        );
    }
    let listed = || {
        namespaces
            .iter()
            .filter(|namespace| namespace.list != List::No)
    };
    if let Some(first) = listed().next()
        && let Some(other) = listed().find(|namespace| namespace.separator != first.separator)
    {
        let (one, two) = (&first.name, &other.name);
        whole(
            format!("the listed namespaces {one:?} and {two:?} have different separators"),
            "use one for all that are listed",
        );
    }
}
