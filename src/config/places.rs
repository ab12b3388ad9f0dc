//! Where mailboxes lie: the `mail_*` settings, `[namespace.…]` and its mailboxes.

use std::time::Duration;

use unicode_normalization::UnicodeNormalization;

use super::quota::limits;
use super::rights::rules;
use super::section::Section;
use crate::mailbox::acl::sources::Rules;
use crate::mailbox::agent::Agent;
use crate::mailbox::location::{Driver, Layout, Location};
use crate::mailbox::namespace::{
    self, Auto, Kind, List, MailboxBlock, Namespace, OnMissing, check,
};
use crate::text::template::Template;

/// The `mail_*` settings of the file, or of a namespace with those of the file as defaults.
pub fn location(section: &Section<'_>, above: Option<&Location>) -> Location {
    let template = |key: &'static str, of: fn(&Location) -> Option<Template>| {
        match section.path_template(key) {
            // Not what holds above, and nothing in its place.
            Some(template) if template.source().is_empty() => None,
            Some(template) => Some(template),
            None => above.and_then(of),
        }
    };
    let driver = section.choice_or(
        "mail_driver",
        &[
            ("maildir", Driver::Maildir),
            ("mbox", Driver::Mbox),
            ("sdbox", Driver::Sdbox),
            ("mdbox", Driver::Mdbox),
        ],
        above.map_or(Driver::Maildir, |above| above.driver),
    );
    // What the file says of another driver is not meant for this one.
    let alike = above.filter(|above| above.driver == driver);
    let (usual_layout, usual_subscriptions) = match driver {
        Driver::Maildir => (Layout::MaildirPlusPlus, "subscriptions"),
        Driver::Mbox => (Layout::Fs, ".subscriptions"),
        Driver::Sdbox | Driver::Mdbox => (Layout::Fs, "subscriptions"),
    };
    let layout = section.choice_or(
        "mailbox_list_layout",
        &[
            ("maildir++", Layout::MaildirPlusPlus),
            ("fs", Layout::Fs),
            ("index", Layout::Index),
        ],
        alike.map_or(usual_layout, |above| above.layout),
    );
    if driver == Driver::Mbox && layout == Layout::MaildirPlusPlus {
        section.error(
            "mailbox_list_layout",
            "mboxes lie in nested directories",
            "write mailbox_list_layout = \"fs\", or nothing",
        );
    }
    let escape = section
        .text("mailbox_list_storage_escape_char")
        .filter(|text| !text.is_empty());
    if escape
        .as_ref()
        .is_some_and(|text| text.chars().count() != 1)
    {
        section.error(
            "mailbox_list_storage_escape_char",
            "one character escapes",
            "write one, e.g. \"\\\\\"",
        );
    }
    let subscriptions = section.text_or("mailbox_subscriptions_filename", || {
        alike.map_or(usual_subscriptions.into(), |above| {
            above.subscriptions_filename.clone()
        })
    });
    if matches!(subscriptions.as_str(), "" | "." | "..") || subscriptions.contains(['/', '\0']) {
        section.error(
            "mailbox_subscriptions_filename",
            format!("{subscriptions:?} is not the name of a file"),
            "write a name without a slash",
        );
    }
    let hand_over = agent(section).or_else(|| above.and_then(|above| above.hand_over.clone()));
    Location {
        is_users: false,
        hand_over,
        hand_over_detail: section.flag(
            "hand_over_detail",
            above.is_some_and(|above| above.hand_over_detail),
        ),
        subscriptions_filename: subscriptions,
        driver,
        path: match above {
            Some(above) => section
                .path_template("mail_path")
                .unwrap_or_else(|| above.path.clone()),
            None => section.path_template_or("mail_path", "~/Maildir"),
        },
        inbox_path: section
            .template("mail_inbox_path")
            .or_else(|| alike.and_then(|above| above.inbox_path.clone()))
            .filter(|path| !path.source().is_empty()),
        control_path: template("mail_control_path", |above| above.control_path.clone()),
        index_path: template("mail_index_path", |above| above.index_path.clone()),
        index_private_path: template("mail_index_private_path", |above| {
            above.index_private_path.clone()
        }),
        layout,
        utf8: section.flag("mailbox_list_utf8", above.is_some_and(|above| above.utf8)),
        directory_name: section
            .text("mailbox_directory_name")
            .or_else(|| above.map(|above| above.directory_name.clone()))
            .unwrap_or_default(),
        storage_escape_char: escape
            .and_then(|text| text.chars().next())
            .or_else(|| above.and_then(|above| above.storage_escape_char)),
    }
}

/// The way to Dovecot, where this section says one.
fn agent(section: &Section<'_>) -> Option<Agent> {
    let parsed = Agent::parse(&section.text("hand_over")?);
    parsed
        .map_err(|why| {
            let advice = "write \"lmtp:/run/dovecot/lmtp\", \"lmtp:HOST:PORT\" or \"lda:/usr/lib/dovecot/dovecot-lda\"";
            section.error("hand_over", why, advice);
        })
        .ok()
}

/// `[namespace.NAME]` in the order of the file, but for those that are disabled, or fail and may. `above`: the `mail_*` settings outside of them.
pub fn namespaces(root: &Section<'_>, above: &Location) -> Vec<Namespace> {
    let sections = root.sections("namespace");
    let mut all: Vec<Namespace> = sections
        .iter()
        .map(|(name, section)| namespace(name, section, above))
        .collect();
    if all.is_empty() {
        all.push(private(above.clone()));
    }
    name_aliases(&mut all);
    share_rules(&mut all);
    all.retain(|namespace| !namespace.disabled);
    let mut failed = Vec::new();
    for problem in check::check(&all) {
        let section = sections
            .iter()
            .find(|(name, _)| *name == problem.namespace)
            .map(|(_, section)| section);
        let optional = all
            .iter()
            .any(|namespace| namespace.name == problem.namespace && namespace.ignore_on_failure);
        let section = section.unwrap_or(root);
        match problem.is_warning || optional {
            true => section.warning(problem.setting, problem.message, problem.advice),
            false => section.error(problem.setting, problem.message, problem.advice),
        }
        if optional && !problem.is_warning {
            failed.push(problem.namespace);
        }
    }
    all.retain(|namespace| !failed.contains(&namespace.name));
    all
}

/// What Dovecot has when no namespace is configured.
fn private(location: Location) -> Namespace {
    Namespace {
        name: "inbox".into(),
        kind: Kind::Private,
        prefix: String::new(),
        separator: location.layout.separator(),
        inbox: true,
        hidden: false,
        list: List::Yes,
        subscriptions: true,
        alias_for: None,
        order: 0,
        disabled: false,
        ignore_on_failure: false,
        location,
        mailboxes: Vec::new(),
        on_missing: None,
        duplicate_message_ids: None,
        acl: Default::default(),
        quota: None,
    }
}

fn namespace(name: &str, section: &Section<'_>, above: &Location) -> Namespace {
    let kinds = [
        ("private", Kind::Private),
        ("public", Kind::Public),
        ("shared", Kind::Shared),
    ];
    let kind = section.choice_or("type", &kinds, Kind::Private);
    let location = location(section, Some(above));
    if section.has("hand_over") && location.dovecots().is_none() {
        section.warning(
            "hand_over",
            format!("namespace {name:?}: we write its mailboxes, and hand nothing over"),
            "take it out, or write the mail_driver or mailbox_list_layout that Dovecot has there",
        );
    }
    let usual = location.layout.separator();
    let separator = section.text_or("separator", || usual.to_string());
    if separator.chars().count() > 1 {
        section.error(
            "separator",
            "the hierarchy separator is one character",
            "write \"/\" or \".\"",
        );
    }
    // Names are asked for in NFC.
    let mut prefix: String = section.text_or("prefix", String::new).nfc().collect();
    if let Some((first, rest)) = prefix.split_at_checked(5)
        && first.eq_ignore_ascii_case("INBOX")
        && first != "INBOX"
        && (rest.is_empty() || rest.starts_with(&separator))
    {
        // So it is for Dovecot.
        let advice = format!("write \"INBOX{rest}\"");
        section.error("prefix", "INBOX is looked for in capitals", advice);
    }
    if kind == Kind::Shared {
        prefix = owner_variables(&prefix);
    } else if let Some(error) = namespace::bad_prefix(&prefix) {
        let advice = error.advice.clone();
        let advice = advice.unwrap_or_else(|| "write %{user}, or nothing that varies".into());
        section.error("prefix", error.message, advice);
    } else if prefix.contains("%%") {
        section.warning(
            "prefix",
            "%% in a prefix means an owner only in a shared namespace",
            "write type = \"shared\"",
        );
    }
    let mailboxes = section.sections("mailbox");
    let duplicates = section.duration("duplicate_message_ids", Duration::ZERO);
    let lists = [
        ("yes", List::Yes),
        ("no", List::No),
        ("children", List::Children),
    ];
    let namespace = Namespace {
        name: name.into(),
        kind,
        prefix,
        separator: separator.chars().next().unwrap_or(usual),
        inbox: section.flag("inbox", false),
        hidden: section.flag("hidden", false),
        list: match section.is_flag("list") {
            true if section.flag("list", true) => List::Yes,
            true => List::No,
            false => section.choice_or("list", &lists, List::Yes),
        },
        subscriptions: section.flag("subscriptions", true),
        alias_for: section.text("alias_for"),
        order: section.number("order", Some(0)).unwrap_or(0),
        disabled: section.flag("disabled", false),
        ignore_on_failure: section.flag("ignore_on_failure", false),
        location,
        mailboxes: mailboxes
            .iter()
            .map(|(name, section)| mailbox(name, section))
            .collect(),
        on_missing: section.choice("on_missing", &OnMissing::WORDS, None),
        duplicate_message_ids: section.has("duplicate_message_ids").then_some(duplicates),
        acl: rules(&section.section("acl")),
        quota: {
            let quota = section.section("quota");
            if kind != Kind::Public && quota.is_present() {
                let why = "only a public namespace has a quota of its own";
                section.error("quota", why, "write [quota]: others count for their users");
            }
            let limits = limits(&quota);
            quota.finish();
            (kind == Kind::Public && !limits.are_none()).then_some(limits)
        },
    };
    section.finish();
    namespace
}

/// The ways of 2.3 and 2.4 to name the owner in a prefix, as one.
fn owner_variables(prefix: &str) -> String {
    const WAYS: [(&str, &str); 6] = [
        ("%%u", "$user"),
        ("%%n", "$username"),
        ("%%d", "$domain"),
        ("%{owner_username}", "$username"),
        ("%{owner_user}", "$user"),
        ("%{owner_domain}", "$domain"),
    ];
    WAYS.iter().fold(prefix.to_owned(), |prefix, (way, ours)| {
        prefix.replace(way, ours)
    })
}

/// `alias_for` names a section (2.4), or gives the prefix of one (2.3); an empty text is the empty prefix.
fn name_aliases(all: &mut [Namespace]) {
    let names: Vec<(String, String)> = all
        .iter()
        .map(|it| (it.name.clone(), it.prefix.clone()))
        .collect();
    for namespace in all {
        let Some(alias) = &namespace.alias_for else {
            continue;
        };
        if names.iter().any(|(name, _)| name == alias) {
            continue;
        }
        let by_prefix = names
            .iter()
            .find(|(name, prefix)| prefix == alias && *name != namespace.name);
        if let Some((name, _)) = by_prefix {
            namespace.alias_for = Some(name.clone());
        }
    }
}

/// The mailboxes of an alias are those of its namespace: what is said of them there holds by any name, unless the alias says otherwise.
fn share_rules(all: &mut [Namespace]) {
    let known = all.to_vec();
    for namespace in all {
        let alias = namespace.alias_for.as_ref();
        let Some(original) = known.iter().find(|it| Some(&it.name) == alias) else {
            continue;
        };
        let blocks = original.mailboxes.iter();
        let named = blocks
            .filter_map(|block| block.with_separator(original.separator, namespace.separator));
        for block in named.collect::<Vec<_>>() {
            if !namespace.mailboxes.iter().any(|it| it.name == block.name) {
                namespace.mailboxes.push(block);
            }
        }
        if namespace.acl == Rules::default() {
            namespace.acl = original.acl.clone();
        }
        namespace.on_missing = namespace.on_missing.or(original.on_missing);
        namespace.duplicate_message_ids = namespace
            .duplicate_message_ids
            .or(original.duplicate_message_ids);
    }
}

fn mailbox(name: &str, section: &Section<'_>) -> MailboxBlock {
    let autos = [
        ("no", Auto::No),
        ("create", Auto::Create),
        ("subscribe", Auto::Subscribe),
    ];
    let special_use = match section.is_list("special_use") {
        true => section.texts("special_use"),
        false => section
            .text("special_use")
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
    };
    for special in special_use.iter().filter(|it| !it.starts_with('\\')) {
        section.error(
            "special_use",
            format!("{special:?} is no special use"),
            format!("write \"\\\\{special}\""),
        );
    }
    let block = MailboxBlock {
        name: name.nfc().collect(),
        auto: section.choice_or("auto", &autos, Auto::No),
        special_use,
        acl: rules(&section.section("acl")),
        quota_ignore: section.flag("quota_ignore", false),
        quota_storage_extra: section.size("quota_storage_extra").unwrap_or(0),
    };
    section.finish();
    block
}
