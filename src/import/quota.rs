//! How much may lie where: the quota plugin (2.3), `quota NAME { }` and `quota_*` (2.4).

use super::Import;
use super::block::{Block, Entry, Place, is_yes};

/// What Dovecot enforces and Postroom cannot.
const NOT_COUNTED: &str = "Dovecot keeps the account in files of its own: Postroom stores mail however full the mailbox is, and Dovecot counts it. driver = maildir is counted by both";

/// A limit as the admin wrote it.
struct Limit {
    key: &'static str,
    value: toml::Value,
    place: Place,
}

impl<'a> Import<'a> {
    /// Writes `[quota]`, from the plugin's settings of 2.3 or the blocks of 2.4.
    pub fn quota(&mut self) {
        if !self.plugins.iter().any(|it| it == "quota") {
            for entry in self.quota_settings() {
                let what = format!("{} ({})", entry.0, entry.1);
                self.out
                    .leave_out(what, "mail_plugins of the delivery has no quota");
            }
            return;
        }
        let root = self.root;
        let first = self.option("quota");
        // An empty prefix is that of the INBOX, which is ours.
        let of_namespace = |it: &Entry| {
            it.value
                .split(':')
                .any(|it| it.starts_with("ns=") && it != "ns=")
        };
        let is_own = |it: &&Entry| !it.value.is_empty() && !of_namespace(it);
        if let Some(entry) = first.filter(is_own) {
            let driver = entry.value.split(':').next().unwrap_or_default();
            let is_enforced = !entry.value.split(':').any(|it| it == "noenforcing");
            if !is_enforced {
                let text = format!(
                    "{}: noenforcing: mail is counted, and no mailbox is ever full",
                    entry.place
                );
                self.out.warn_above(text);
            }
            let limits = match driver {
                "maildir" if is_enforced => self.old_limits("quota", "*"),
                _ => Vec::new(),
            };
            self.quota_table("[quota]", driver, &entry.place, limits);
        }
        let sections: Vec<&Block> = root.of_kind("quota").collect();
        if let [first, more @ ..] = sections.as_slice() {
            let driver = first
                .text("driver")
                .or(first.text("quota_driver"))
                .or(root.text("quota_driver"))
                .unwrap_or("count")
                .to_owned();
            let mut limits = self.limits(root);
            limits.extend(self.limits(first));
            if self.is_unenforced(root) || self.is_unenforced(first) {
                let text = format!(
                    "{}: not enforced: mail is counted, and no mailbox is ever full",
                    first.place
                );
                self.out.warn_above(text);
                limits.clear();
            }
            self.quota_table("[quota]", &driver, &first.place, limits);
            first.explain();
            for more in more {
                more.explain();
                let text = format!(
                    "{}: Postroom knows one quota for the private mailboxes",
                    more.place
                );
                self.out.warn(text);
            }
        }
        self.explain_quota();
    }

    /// `enforce = no` and `ignore = yes` of 2.4.
    fn is_unenforced(&self, block: &Block) -> bool {
        let is_quota = block.kind == "quota";
        let flag = |short: &str| {
            let long = block.look(&format!("quota_{short}"));
            let entry = long.or(block.look(short).filter(|_| is_quota));
            entry.map(|it| is_yes(&it.value))
        };
        flag("enforce") == Some(false) || flag("ignore") == Some(true)
    }

    fn quota_table(&mut self, header: &str, driver: &str, place: &Place, limits: Vec<Limit>) {
        if driver != "maildir" {
            let text = format!("{place}: quota {driver}: {NOT_COUNTED}");
            self.out.heading(&format!("Warning: {text}"));
            return self.out.warn_above(text);
        }
        self.out.table(header);
        self.out.set("driver", "maildir", place);
        for limit in limits {
            self.out.set(limit.key, limit.value, &limit.place);
        }
    }

    /// `quota_rule = *:storage=1G:messages=1000`, `quota_rule2`, … and `quota_grace`.
    fn old_limits(&mut self, root: &str, mailbox: &str) -> Vec<Limit> {
        let mut limits = Vec::new();
        for entry in self.rules(root) {
            let Some((name, rule)) = entry.value.split_once(':') else {
                self.out.mend(format!("{}: this is no rule", entry.place));
                continue;
            };
            let name = if name == "?" { "*" } else { name };
            if name != mailbox {
                continue;
            }
            entry.is_explained.set(true);
            for limit in rule.split(':') {
                let (key, value) = limit.split_once('=').unwrap_or((limit, ""));
                match (key, value.strip_prefix('+')) {
                    ("storage", None) => {
                        limits.push(limit_of("storage_size", kilobytes(value), entry))
                    }
                    ("bytes", None) => limits.push(limit_of("storage_size", value.into(), entry)),
                    ("messages", None) => match value.parse::<i64>() {
                        Ok(number) => limits.push(Limit {
                            key: "message_count",
                            value: number.into(),
                            place: entry.place.clone(),
                        }),
                        Err(_) => self
                            .out
                            .mend(format!("{}: {value:?} is no number", entry.place)),
                    },
                    ("ignoreunlimited" | "noenforcing", _) => {}
                    _ => self.out.mend(format!(
                        "{}: {limit:?} is a limit that Postroom does not know",
                        entry.place
                    )),
                }
            }
        }
        let grace = self.option(&format!("{root}_grace"));
        if grace.is_none()
            && let Some(entry) = self.option(root)
        {
            // What 2.3 has where nothing is said.
            limits.push(limit_of("storage_grace", "10%".into(), entry));
        }
        if let Some(entry) = grace.filter(|it| !it.value.is_empty()) {
            let grace = entry.value.replace("%%", "%");
            limits.push(limit_of("storage_grace", grace, entry));
        }
        limits
    }

    /// The rules of a quota root of 2.3. Whoever makes something of one explains it.
    fn rules(&self, root: &str) -> Vec<&'a Entry> {
        let keys = (1..=30).map(|number| match number {
            1 => format!("{root}_rule"),
            number => format!("{root}_rule{number}"),
        });
        let plugins: Vec<&Block> = self.root.of_kind("plugin").collect();
        // Dovecot looks for the next number until one is missing.
        let found = keys.map_while(|key| plugins.iter().rev().find_map(|it| it.look(&key)));
        found.filter(|entry| !entry.value.is_empty()).collect()
    }

    /// Mailboxes that have a rule of their own and no section in `namespace`.
    pub fn mailboxes_of_rules(&self, namespace: &Block) -> Vec<Block> {
        let names = self.rules("quota").into_iter().filter_map(|rule| {
            let (name, _) = rule.value.split_once(':')?;
            let prefix = namespace.look("prefix").map_or("", |it| it.value.as_str());
            let name = name.strip_prefix(prefix)?;
            let is_known = namespace.of_kind("mailbox").any(|it| it.name == name);
            let is_new = !is_known && self.is_counted() && !matches!(name, "*" | "?" | "");
            is_new.then(|| Block::new("mailbox".into(), name.into(), rule.place.clone()))
        });
        names.collect()
    }

    /// Whether the account is one that Postroom keeps too.
    fn is_counted(&self) -> bool {
        let quota = self
            .root
            .of_kind("plugin")
            .filter_map(|it| it.look("quota"));
        let is_loaded = self.plugins.iter().any(|it| it == "quota");
        is_loaded
            && quota
                .last()
                .is_some_and(|it| it.value.split(':').next() == Some("maildir"))
    }

    /// `+10%%` of the limit of all, in bytes.
    fn share(&self, more: &str) -> Option<i64> {
        let percent: i64 = more.strip_prefix('+')?.trim_end_matches('%').parse().ok()?;
        let rules = self.rules("quota");
        let all = rules
            .iter()
            .find_map(|it| it.value.strip_prefix("*:storage="))?;
        let limit = bytes(&kilobytes(all.split(':').next()?))?;
        more.ends_with('%')
            .then(|| limit.checked_mul(percent).map(|it| it / 100))?
    }

    /// A rule of 2.3 for one mailbox: `Trash:storage=+100M`, `Spam:ignore`.
    pub fn mailbox_rule(&mut self, block: &Block, prefix: &str) {
        if !self.is_counted() {
            return;
        }
        for rule in self.rules("quota") {
            let Some((name, rest)) = rule.value.split_once(':') else {
                continue;
            };
            if name.strip_prefix(prefix) != Some(block.name.as_str()) {
                continue;
            }
            rule.is_explained.set(true);
            for limit in rest.split(':') {
                match limit.split_once('=') {
                    None if limit == "ignore" => self.out.set("quota_ignore", true, &rule.place),
                    Some(("storage", more)) if self.share(more).is_some() => {
                        let bytes = self.share(more).unwrap_or_default();
                        self.out.set("quota_storage_extra", bytes, &rule.place);
                    }
                    Some(("storage", more)) if more.starts_with('+') && !more.contains('%') => {
                        let size = kilobytes(more.trim_start_matches('+'));
                        self.out.set("quota_storage_extra", size, &rule.place);
                    }
                    Some(("bytes", more)) if more.starts_with('+') => {
                        let size = more.trim_start_matches('+').to_owned();
                        self.out.set("quota_storage_extra", size, &rule.place);
                    }
                    _ => self.out.mend(format!(
                        "{}: {limit:?} is a limit of one mailbox that Postroom does not know",
                        rule.place
                    )),
                }
            }
        }
    }

    /// What 2.4 may say of a namespace or a mailbox, and we cannot.
    pub fn unknown_limits(&mut self, block: &Block) {
        if !self.plugins.iter().any(|it| it == "quota") {
            return;
        }
        let section = self.root.of_kind("quota").next();
        let driver = section.and_then(|it| it.look("driver").or(it.look("quota_driver")));
        let is_kept = self.is_counted() || driver.is_some_and(|it| it.value == "maildir");
        let known = ["quota_ignore", "quota_storage_extra"];
        for entry in &block.entries {
            if !entry.key.starts_with("quota_") || known.contains(&entry.key.as_str()) {
                continue;
            }
            entry.is_explained.set(true);
            let what = format!("{} ({})", entry.key, entry.place);
            match is_kept {
                true => self.out.mend(format!(
                    "{what} of one {}: a limit that Postroom does not know",
                    block.kind
                )),
                false => self
                    .out
                    .leave_out(what, "a limit of an account that Postroom does not keep"),
            }
        }
    }

    /// What a namespace has for itself: `quota2 = maildir:Shared:ns=Public/`, or a section in it (2.4).
    pub fn namespace_quota(&mut self, block: &Block, header: &str, kind: &str) {
        let prefix = block.text("prefix").unwrap_or_default().to_owned();
        let mut found = None;
        for number in 1..=9 {
            let root = match number {
                1 => "quota".to_owned(),
                number => format!("quota{number}"),
            };
            let Some(entry) = self.option(&root) else {
                continue;
            };
            let wanted = format!("ns={prefix}");
            let is_this = entry.value.split(':').any(|it| it == wanted);
            if !prefix.is_empty() && is_this {
                let driver = entry.value.split(':').next().unwrap_or_default().to_owned();
                let place = entry.place.clone();
                let limits = match driver.as_str() {
                    "maildir" => self.old_limits(&root, "*"),
                    _ => Vec::new(),
                };
                found = Some((driver, place, limits));
            }
        }
        if let Some(section) = block.of_kind("quota").next() {
            let driver = section.text("driver").or(section.text("quota_driver"));
            let driver = driver.unwrap_or("count").to_owned();
            found = Some((driver, section.place.clone(), self.limits(section)));
            section.explain();
        }
        let Some((driver, place, limits)) = found else {
            return;
        };
        match (kind, driver.as_str()) {
            ("public", "maildir") => {
                self.out.table(&format!("[{header}.quota]"));
                for limit in limits {
                    self.out.set(limit.key, limit.value, &limit.place);
                }
            }
            ("public", driver) => self
                .out
                .warn(format!("{place}: quota {driver}: {NOT_COUNTED}")),
            _ => self.out.warn(format!(
                "{place}: Postroom knows a quota of its own only for public namespaces"
            )),
        }
    }

    /// `quota_storage_size` and its like, of the file or of a section.
    fn limits(&mut self, block: &Block) -> Vec<Limit> {
        let mut limits = Vec::new();
        let percentage = match block.kind.as_str() {
            "quota" => block
                .get("message_percentage")
                .or(block.get("quota_message_percentage")),
            _ => block.get("quota_message_percentage"),
        };
        if let Some(entry) = percentage.filter(|it| it.value != "100") {
            let text = format!(
                "{}: message_percentage: write message_count as what it comes to",
                entry.place
            );
            self.out.to_mend.push(text);
        }
        for key in [
            "storage_size",
            "storage_percentage",
            "storage_extra",
            "storage_grace",
            "message_count",
        ] {
            let long = format!("quota_{key}");
            let short = block.get(key).filter(|_| block.kind == "quota");
            let Some(entry) = block.get(&long).or(short) else {
                continue;
            };
            if matches!(entry.value.as_str(), "" | "unlimited") {
                continue;
            }
            let value = match entry.value.parse::<i64>() {
                Ok(number) if key != "storage_grace" => number.into(),
                _ => size(&entry.value).into(),
            };
            limits.push(Limit {
                key,
                value,
                place: entry.place.clone(),
            });
        }
        limits
    }

    pub fn size(&mut self, key: &str, entry: &Entry) {
        self.out.set(key, size(&entry.value), &entry.place);
    }

    fn quota_settings(&self) -> Vec<(String, Place)> {
        let plugins = self.root.of_kind("plugin").flat_map(|it| &it.entries);
        let is_quota =
            |key: &str| key == "quota" || key.starts_with("quota_") || key.starts_with("quota2");
        let mut found = Vec::new();
        for entry in plugins.chain(&self.root.entries) {
            let is_taken =
                entry.key == "quota_full_tempfail" || entry.key.starts_with("quota_clone");
            if is_quota(&entry.key) && !is_taken && !entry.is_explained.replace(true) {
                found.push((entry.key.clone(), entry.place.clone()));
            }
        }
        for block in self.root.of_kind("quota") {
            block.explain();
            found.push((format!("quota {:?}", block.name), block.place.clone()));
        }
        found
    }

    /// The rest of the plugin's settings.
    fn explain_quota(&mut self) {
        let found: Vec<(String, Place)> = self.quota_settings();
        for (key, place) in found {
            let what = format!("{key} ({place})");
            if key.contains("_rule") && self.is_counted() {
                self.out.to_mend.push(format!(
                    "{what}: no section mailbox has this name: write [namespace.….mailbox.…] with quota_ignore or quota_storage_extra"
                ));
            } else if key.contains("_rule") {
                self.out
                    .leave_out(what, "a limit of an account that Postroom does not keep");
            } else if key.contains("warning") || key.contains("over") {
                let why = "a program of Dovecot's ([quota] warning_message_file sends a message)";
                self.out.leave_out(what, why);
            } else if key.contains("mail_size") {
                let why = "a limit of single messages: delivery.message_size for all, a field of the userdb for one";
                self.out.warn_above(format!("{what}: {why}"));
                self.out.leave_out(what, why);
            } else {
                self.out
                    .leave_out(what, "how Dovecot shows and keeps its account");
            }
        }
    }
}

fn limit_of(key: &'static str, value: String, from: &Entry) -> Limit {
    Limit {
        key,
        value: value.into(),
        place: from.place.clone(),
    }
}

/// 2.3's storage is in kilobytes where it has no unit.
fn kilobytes(text: &str) -> String {
    match text.chars().all(|c| c.is_ascii_digit()) {
        true => format!("{text}k"),
        false => size(text),
    }
}

/// A size as we write it, in bytes.
fn bytes(size: &str) -> Option<i64> {
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: i64 = match &size[digits.len()..] {
        "" => 1,
        "k" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return None,
    };
    digits.parse::<i64>().ok()?.checked_mul(factor)
}

/// `10 M`, `10MB`, `10b` as we have them.
pub fn size(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let unit = text[digits..].to_ascii_uppercase();
    let unit = match unit.as_str() {
        "B" => "",
        "K" | "KB" | "KIB" => "k",
        "M" | "MB" | "MIB" => "M",
        "G" | "GB" | "GIB" => "G",
        "T" | "TB" | "TIB" => "T",
        _ => return text,
    };
    format!("{}{unit}", &text[..digits])
}
