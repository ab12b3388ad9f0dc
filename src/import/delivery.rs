//! What holds for every delivery: the settings that have our name, and the defaults of Dovecot that are not ours.

use super::Import;
use super::block::{Block, Entry};
use super::user_places::Named;
use super::version::Dialect;
use crate::text::template::{Template, Variables};

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Variables,
    Flag,
    Number,
    List,
    Time,
    /// A name, or a number.
    Id,
}

/// Settings of the file as a whole that have the same name and meaning.
const SAME: [(&str, Kind); 22] = [
    ("hostname", Kind::Text),
    ("auth_username_format", Kind::Variables),
    ("mail_uid", Kind::Id),
    ("mail_gid", Kind::Id),
    ("mail_home", Kind::Variables),
    ("mail_access_groups", Kind::List),
    ("mail_privileged_group", Kind::Id),
    ("first_valid_uid", Kind::Number),
    ("last_valid_uid", Kind::Number),
    ("first_valid_gid", Kind::Number),
    ("last_valid_gid", Kind::Number),
    ("login_trusted_networks", Kind::List),
    ("lmtp_client_workarounds", Kind::List),
    ("lmtp_hdr_delivery_address", Kind::Text),
    ("lmtp_add_received_header", Kind::Flag),
    ("quota_full_tempfail", Kind::Flag),
    ("lda_mailbox_autosubscribe", Kind::Flag),
    ("lock_method", Kind::Text),
    ("mbox_read_locks", Kind::List),
    ("mbox_lock_timeout", Kind::Time),
    ("mbox_dotlock_change_timeout", Kind::Time),
    ("mail_fsync", Kind::Text),
];

/// Both Dovecots' default of `auth_username_chars`.
const USERNAME_CHARS: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ01234567890.-_@";
/// Our own default of `max_per_user`, which has to have a limit.
const USUAL_PER_USER: i64 = 32;

impl Import<'_> {
    /// What stands before the first table.
    pub fn general(&mut self) {
        let root = self.root;
        for (key, kind) in SAME {
            let entry = match kind {
                Kind::List => root.look(key),
                _ => root.get(key),
            };
            if let Some(entry) = entry.filter(|it| !it.value.is_empty()) {
                self.same(key, kind, entry, root);
            }
        }
        self.names();
        match root
            .get("mbox_write_locks")
            .filter(|it| !it.value.is_empty())
        {
            Some(entry) => self.same("mbox_write_locks", Kind::List, entry, root),
            None => {
                let usual = match self.dialect {
                    Dialect::V23 => ["fcntl", "dotlock"],
                    Dialect::V24 => ["dotlock", "fcntl"],
                };
                self.out.usual("mbox_write_locks", usual.to_vec());
            }
        }
        self.out.usual("mbox_quoting", "none");
        match root.get("lmtp_rcpt_check_quota") {
            Some(entry) => self.same("lmtp_rcpt_check_quota", Kind::Flag, entry, root),
            None => self.out.usual("lmtp_rcpt_check_quota", false),
        }
        self.certificate();
    }

    /// What is made of a name: `auth_username_format`, behind the domain that one without has.
    fn names(&mut self) {
        let root = self.root;
        match root.get("auth_username_chars") {
            Some(entry) => {
                let letters = entry.value.as_str();
                self.out.set("auth_username_chars", letters, &entry.place);
            }
            None => self.out.usual("auth_username_chars", USERNAME_CHARS),
        }
        let format = root.get("auth_username_format");
        let domain = root.get(match self.dialect {
            Dialect::V23 => "auth_default_realm",
            Dialect::V24 => "auth_default_domain",
        });
        let Some(domain) = domain.filter(|it| !it.value.is_empty()) else {
            if let Some(entry) = format.filter(|it| it.value.is_empty()) {
                self.out
                    .set("auth_username_format", "%{user}", &entry.place);
            }
            return;
        };
        let (key, name) = ("auth_username_format", &domain.value);
        let is_odd = name.contains(['"', '\'', '(', ')', '{', '}', '|', '%', '@']);
        match format.map_or("%Lu", |it| it.value.as_str()) {
            "%Lu" | "%{user | lower}" | "%{user|lower}" if !is_odd => {
                let value = format!(
                    "%{{user | username | lower}}@%{{user | domain | lower | default('{}')}}",
                    name.to_lowercase()
                );
                self.out.set(key, value, &domain.place);
            }
            "" | "%u" | "%{user}" if !is_odd => {
                let value = format!("%{{user | username}}@%{{user | domain | default('{name}')}}");
                self.out.set(key, value, &domain.place);
            }
            // Whatever the domain is.
            format if !uses_domain(format) => {
                let what = format!("{} ({})", domain.key, domain.place);
                self.out.leave_out(what, "auth_username_format takes no domain");
            }
            _ => self.out.mend(format!(
                "{}: a name without a domain stays so here: write an auth_username_format that gives it {name:?}",
                domain.place
            )),
        }
    }

    fn same(&mut self, key: &str, kind: Kind, entry: &Entry, block: &Block) {
        let value = entry.value.as_str();
        let place = &entry.place;
        match kind {
            Kind::Text => self.out.set(key, value, place),
            Kind::Variables => self.template(key, value, entry),
            Kind::Flag => self.out.set(key, block.flag(key).unwrap_or(false), place),
            Kind::List => self.out.set(key, block.words(key), place),
            Kind::Time => match time(value) {
                Some(time) => self.out.set(key, time, place),
                None => self.out.mend(format!("{place}: {value:?} is no time")),
            },
            Kind::Number => match value.parse::<u32>() {
                Ok(number) => self.out.set(key, i64::from(number), place),
                Err(_) => self.out.mend(format!("{place}: {value:?} is no number")),
            },
            Kind::Id => match value.parse::<u32>() {
                Ok(number) => self.out.set(key, i64::from(number), place),
                Err(_) => self.out.set(key, value, place),
            },
        }
    }

    /// Writes `[delivery]`.
    pub fn delivery(&mut self) {
        let root = self.root;
        self.out.table("[delivery]");
        if let Some(entry) = root.get("recipient_delimiter") {
            self.out
                .set("recipient_delimiter", entry.value.as_str(), &entry.place);
        }
        match root.get("lmtp_save_to_detail_mailbox") {
            Some(entry) if root.flag("lmtp_save_to_detail_mailbox") == Some(true) => {
                self.out.set("detail", "mailbox", &entry.place)
            }
            Some(entry) => self.out.set("detail", "ignore", &entry.place),
            None => self.out.usual("detail", "ignore"),
        }
        match root.get("lda_mailbox_autocreate") {
            Some(entry) if root.flag("lda_mailbox_autocreate") == Some(true) => {
                self.out.set("on_missing", "create", &entry.place)
            }
            Some(entry) => self.out.set("on_missing", "inbox", &entry.place),
            None => self.out.usual("on_missing", "inbox"),
        }
        self.out.usual("on_denied", "inbox");
        self.out.usual("permissions", "best-effort");
        self.out.usual("new_mailbox_permissions", "parent");
        self.out.usual("recipient_headers", "single");
        self.out.usual("duplicate_window", 0);
        self.mail_roots();
    }

    /// What userdbs name beside the directories of the file and the homes.
    fn mail_roots(&mut self) {
        let (homes, places): (Vec<&Named>, Vec<&Named>) =
            self.named.iter().partition(|it| it.is_home());
        if places.is_empty() {
            return;
        }
        let known = |some: &[&Named]| {
            let roots = some.iter().flat_map(|it| it.roots().unwrap_or_default());
            roots.collect::<Vec<String>>()
        };
        let mut roots = known(&places);
        roots.append(&mut self.roots_beside.clone());
        if roots.is_empty() {
            return;
        }
        roots.append(&mut known(&homes));
        roots.append(&mut self.roots.clone());
        roots.sort();
        roots.dedup();
        let is_open = homes.iter().any(|it| it.roots().is_err());
        let why = "Dovecot opens whatever a userdb names, Postroom what lies below these.";
        self.out.comment(why);
        let roots = toml::Value::from(roots);
        self.out.line(&format!("mail_roots = {roots}"));
        if is_open {
            let text =
                "mail_roots: add the directories that the homes lie in, which a userdb knows";
            self.out.mend(text.into());
        }
    }

    /// Writes `[lmtp]`.
    pub fn lmtp(&mut self) {
        let root = self.root;
        self.out.table("[lmtp]");
        self.listeners();
        if let Some(entry) = root.get("lmtp_verbose_replies") {
            let is_set = root.flag("lmtp_verbose_replies").unwrap_or(false);
            self.out.set("verbose_replies", is_set, &entry.place);
        }
        self.deliveries_at_once();
        if root.flag("lmtp_proxy") == Some(true) {
            self.out.warn("lmtp_proxy: recipients whose passdb says proxy are other servers' in Dovecot; for Postroom the userdb's field host, or [placement], says whose mailboxes are where".into());
        }
    }

    /// `lmtp_user_concurrency_limit`: 10 from 2.4.1 on, none before. Beyond it Dovecot refuses, and here mail waits.
    fn deliveries_at_once(&mut self) {
        let root = self.root;
        let version = root.text("dovecot_config_version").unwrap_or_default();
        let is_limited = self.dialect == Dialect::V24 && version != "2.4.0";
        let said = root.get("lmtp_user_concurrency_limit");
        let said = said.filter(|it| !it.value.is_empty());
        match said.map(|it| (it.value.parse::<i64>(), &it.place)) {
            Some((Ok(limit), place)) if limit > 0 => self.out.set("max_per_user", limit, place),
            Some((_, place)) => self.out.set(
                "max_per_user",
                USUAL_PER_USER,
                format!("{place}: no limit there; beyond it mail waits here"),
            ),
            None if is_limited => self.out.usual("max_per_user", 10),
            None => self.out.set(
                "max_per_user",
                USUAL_PER_USER,
                "Dovecot has no limit; beyond it mail waits here",
            ),
        }
    }

    /// Plugins of the delivery that change what becomes of a message.
    pub fn plugins(&mut self) {
        let names = self.plugins.clone();
        for name in &names {
            let (why, matters) = match name.as_str() {
                "acl" | "quota" | "listescape" => continue,
                "sieve" | "imapsieve" => (
                    "the scripts of the users are not run: [[route]] sorts by a header, an address's detail names a mailbox",
                    true,
                ),
                "mail_crypt" | "mail-crypt" => (
                    "Dovecot stores messages encrypted, Postroom does not: do not use it for these mailboxes",
                    true,
                ),
                "zlib" | "mail_compress" | "mail-compress" => (
                    "messages are stored uncompressed; Dovecot reads both",
                    false,
                ),
                "virtual" => ("no mail is delivered to a virtual mailbox", false),
                "trash" => ("nothing is expunged to make room for a message", true),
                "mailbox_alias" => (
                    "mailboxes that are other names for one are not known: write them as [[address]]",
                    true,
                ),
                "fts" | "fts_solr" | "fts_lucene" | "fts_xapian" | "fts_flatcurve"
                | "fts_squat" => ("Dovecot indexes what it finds when it looks", false),
                "notify" | "mail_log" | "push_notification" | "push-notification"
                | "notify_status" => (
                    "Postroom has a log line for each recipient, and [notify]",
                    false,
                ),
                "quota_clone" => ("only Dovecot copies the account", false),
                "replication" | "dsync" => (
                    "what Postroom stores, Dovecot replicates when it next looks",
                    true,
                ),
                "expire" | "lazy_expunge" | "last_login" | "old_stats" | "stats"
                | "charset_alias" | "snarf" | "autocreate" | "autosubscribe" | "mail_lua"
                | "var_expand_crypt" | "imap_acl" | "imap_quota" => {
                    ("does nothing at a delivery", false)
                }
                _ => ("Postroom does not know this plugin", true),
            };
            if matters {
                self.out
                    .warn_above(format!("mail_plugins has {name}: {why}"));
            }
            self.out.leave_out(format!("mail_plugins {name}"), why);
        }
    }
}

impl<'a> Import<'a> {
    /// A setting of the plugins: in `plugin { }` (2.3), or in the file (2.4).
    pub fn option(&self, key: &str) -> Option<&'a Entry> {
        let root = self.root;
        let old = root.of_kind("plugin").filter_map(|it| it.get(key)).last();
        match self.dialect {
            Dialect::V23 => old.or_else(|| root.get(key)),
            Dialect::V24 => root.get(key).or(old),
        }
    }
}

/// Whether another domain makes another name.
fn uses_domain(format: &str) -> bool {
    let name = |user: &str| {
        let variables = Variables {
            user,
            ..Variables::default()
        };
        Template::parse(format).ok()?.expand(&variables).ok()
    };
    name("a@b").is_none() || name("a@b") != name("a@c")
}

/// `5 mins`, `1 week`, `30s`: seconds, as we write a time.
fn time(text: &str) -> Option<String> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim().to_ascii_lowercase();
    let seconds = match unit.as_str() {
        _ if number == 0 => 0,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1,
        "m" | "min" | "mins" | "minute" | "minutes" => 60,
        "h" | "hour" | "hours" => 3600,
        "d" | "day" | "days" => 86400,
        "w" | "week" | "weeks" => 604_800,
        _ => return None,
    };
    Some(format!("{}s", number.checked_mul(seconds)?))
}
