//! Where mail lies: `mail_location` and `location` (2.3), the `mail_*` settings (2.4), namespaces and their mailboxes.

use super::Import;
use super::block::{Block, Entry, is_yes};
use super::document::quoted;
use super::user_places::{fixed_part, is_dovecots};
use super::version::Dialect;
use crate::config::mail_location;
use crate::text::template::Template;

/// Settings of where mail lies that have our name. Those with `true` have variables in them.
const PLACE: [(&str, bool); 10] = [
    ("mail_driver", false),
    ("mail_path", true),
    ("mail_inbox_path", true),
    ("mail_control_path", true),
    ("mail_index_path", true),
    ("mail_index_private_path", true),
    ("mailbox_list_layout", false),
    ("mailbox_directory_name", false),
    ("mailbox_list_storage_escape_char", false),
    ("mailbox_subscriptions_filename", false),
];

impl Import<'_> {
    /// What the file says for all namespaces.
    pub fn locations(&mut self) {
        let root = self.root;
        self.hand_over();
        let said = self.location(root, "mail_location");
        if root.of_kind("namespace").next().is_none() {
            self.names_apart(root);
        }
        let usual = root.text("mail_driver").and_then(usual_path);
        if let Some(path) = usual.filter(|_| root.text("mail_path").is_none()) {
            self.out.usual("mail_path", path);
        }
        let is_nothing =
            !said && root.text("mail_driver").is_none() && root.text("mail_path").is_none();
        let has_own = |it: &Block| it.text("location").or(it.text("mail_path")).is_some();
        let spaces: Vec<&Block> = root.of_kind("namespace").collect();
        if let Some(entry) = root.get("mail_chroot").filter(|it| !it.value.is_empty()) {
            let text =
                "mail_chroot: here the paths are those of the machine: write them with it before";
            self.out.mend(format!("{}: {text}", entry.place));
        }
        if is_nothing && (spaces.is_empty() || !spaces.into_iter().all(has_own)) {
            let text = "nothing says where mail lies: Dovecot guesses for each user, from what it finds in his home; Postroom takes ~/Maildir";
            self.out.warn(text.into());
        }
        if self.plugins.iter().any(|it| it == "listescape") {
            let said = self.option("listescape_char");
            let letter = said.and_then(|it| it.value.chars().next()).unwrap_or('\\');
            let origin = match said {
                Some(entry) => entry.place.to_string(),
                None => "mail_plugins has listescape".into(),
            };
            let key = "mailbox_list_storage_escape_char";
            self.out.set(key, letter.to_string(), origin);
        }
    }

    /// What Postroom does not write goes to Dovecot's own delivery.
    fn hand_over(&mut self) {
        let root = self.root;
        let all = std::iter::once(root).chain(root.of_kind("namespace"));
        let mut found: Vec<&Entry> = all.flat_map(needs_dovecot).collect();
        found.dedup_by_key(|entry| entry.place.clone());
        let of_users = self.named.iter().find(|it| it.is_dovecots);
        let Some(place) = found
            .first()
            .map(|it| &it.place)
            .or(of_users.map(|it| &it.place))
        else {
            return;
        };
        let folder = root.text("libexec_dir").unwrap_or("/usr/lib/dovecot");
        self.out.comment("Dovecot alone writes dbox, and mailboxes whose list is in an index. With lmtp_save_to_detail_mailbox also: hand_over = \"lmtp:…\", hand_over_detail = true.");
        let conf = self.conf.as_ref();
        let conf = conf.map_or(String::new(), |it| format!(" -c {}", it.display()));
        let command = format!("lda:{folder}/dovecot-lda{conf}");
        self.out.set("hand_over", command, place);
        for entry in found {
            let is_moved = entry.value.contains(":INDEX=");
            if is_moved && entry.value.contains("dbox:") {
                self.out.warn(format!(
                    "{}: dbox with its indexes elsewhere: where that differs from user to user, a mailbox of several users breaks (INDEXPVT is for their flags)",
                    entry.place
                ));
            }
        }
    }

    /// The settings of where mail lies of the file, or of a namespace. Answers whether an old location says it.
    fn location(&mut self, block: &Block, old: &str) -> bool {
        let mut said = false;
        let found = block.get(old).or_else(|| block.get("mail_location"));
        if let Some(entry) = found.filter(|entry| !entry.value.is_empty()) {
            said = true;
            match mail_location::settings(&entry.value) {
                Ok(settings) => {
                    let is_apart = [":CONTROL=", ":INDEX="]
                        .iter()
                        .any(|it| entry.value.contains(it));
                    if is_apart && !is_of_dovecot(entry) && entry.value.contains(":DIRNAME=") {
                        self.out.mend(format!(
                            "{}: DIRNAME is no part of the paths of CONTROL and INDEX in Dovecot, and here it is",
                            entry.place
                        ));
                    }
                    if !settings.iter().any(|(key, _)| *key == "mail_path") {
                        let text = "no path: Dovecot has no mailboxes then, and here they are where the file says";
                        self.out.mend(format!("{}: {text}", entry.place));
                    }
                    let told: Vec<&str> = settings.iter().map(|(key, _)| *key).collect();
                    for (key, value) in &settings {
                        self.place(key, value, entry);
                    }
                    if block.kind == "namespace" {
                        self.instead(&told, entry);
                    }
                }
                Err(why) => {
                    self.out.mend(format!("{}: {old}: {why}", entry.place));
                    // Nothing else takes its place.
                    let driver = entry.value.split(':').next().unwrap_or_default();
                    self.out.set("mail_driver", driver, &entry.place);
                }
            }
            for key in [
                "ALT",
                "BROKENCHAR",
                "VOLATILEDIR",
                "INDEXCACHE",
                "LISTINDEX",
            ] {
                if entry.value.contains(&format!(":{key}=")) {
                    let what = format!("{key} of {old} ({})", entry.place);
                    self.out
                        .leave_out(what, "says nothing of where a message is put");
                }
            }
        }
        if let Some(entry) = found.filter(|entry| entry.value.is_empty()) {
            let what = format!("{} ({})", entry.key, entry.place);
            self.out
                .leave_out(what, "empty: what holds for all namespaces");
        }
        for (key, _) in PLACE {
            if let Some(entry) = block.get(key) {
                let is_his = block.kind != "namespace" || block.flag("inbox") == Some(true);
                let is_new = self.dialect == Dialect::V24 && key == "mail_inbox_path";
                if is_new && is_his && entry.value.is_empty() {
                    self.out.mend(format!(
                        "{}: INBOX is beside the other mailboxes then: write its path",
                        entry.place
                    ));
                }
                said |= key == "mail_path";
                self.place(key, &entry.value, entry);
            }
        }
        if let Some(entry) = block.get("mailbox_list_utf8") {
            self.place("mailbox_list_utf8", &entry.value, entry);
        }
        said
    }

    /// 2.4's `mailbox_directory_name` beside paths of their own for control files and indexes.
    fn names_apart(&mut self, block: &Block) {
        let root = self.root;
        let text = |key: &str| {
            let entry = block.look(key).or_else(|| root.look(key));
            entry.map_or("", |it| it.value.as_str())
        };
        let is_legacy = text("mailbox_directory_name_legacy") != "no";
        let is_apart = ["mail_control_path", "mail_index_path"]
            .iter()
            .any(|it| !text(it).is_empty());
        let is_named = !text("mailbox_directory_name").is_empty();
        let is_ours = !matches!(text("mail_driver"), "sdbox" | "mdbox");
        if self.dialect == Dialect::V24 && is_named && is_apart && is_legacy && is_ours {
            self.out.mend(format!(
                "{}: mailbox_directory_name is no part of mail_control_path and mail_index_path in Dovecot (mailbox_directory_name_legacy), and here it is",
                block.place
            ));
        }
    }

    /// 2.4 has a path for each format where nothing says one.
    fn usual_path(&mut self, block: &Block) {
        let is_said = |it: &Block| it.look("mail_path").is_some_and(|it| !it.value.is_empty());
        if self.dialect == Dialect::V23 || is_said(block) || is_said(self.root) {
            return;
        }
        if let Some(usual) = block.text("mail_driver").and_then(usual_path) {
            self.out.usual("mail_path", usual);
        }
    }

    /// A location of 2.3 is instead of the one of the file: what that says besides does not hold in the namespace.
    fn instead(&mut self, told: &[&str], entry: &Entry) {
        let above = self.root.look("mail_location");
        let above = above.and_then(|it| mail_location::settings(&it.value).ok());
        for (key, _) in above.unwrap_or_default() {
            if told.contains(&key) {
                continue;
            }
            if !matches!(key, "mail_driver" | "mail_path") {
                self.place(key, mail_location::unsaid(key, &entry.value), entry);
            }
        }
    }

    /// What 2.4 has for all namespaces holds in those of another format too; ours does not.
    fn across_formats(&mut self, block: &Block) {
        let root = self.root;
        let usual = root.text("mail_driver").unwrap_or("maildir");
        let is_other = block.text("mail_driver").is_some_and(|it| it != usual);
        if self.dialect == Dialect::V23 || !is_other {
            return;
        }
        for key in [
            "mail_inbox_path",
            "mailbox_list_layout",
            "mailbox_subscriptions_filename",
        ] {
            if let Some(entry) = root.get(key).filter(|_| block.look(key).is_none()) {
                self.place(key, &entry.value, entry);
            }
        }
    }

    fn place(&mut self, key: &str, value: &str, entry: &Entry) {
        if key == "mailbox_list_utf8" {
            let is_utf8 = is_yes(value);
            return self.out.set(key, is_utf8, &entry.place);
        }
        let has_variables = PLACE.iter().any(|(name, varies)| *name == key && *varies);
        match has_variables {
            true => self.template(key, value, entry),
            false if matches!(key, "mail_driver" | "mailbox_list_layout") => {
                self.out.set(key, value.to_lowercase(), &entry.place)
            }
            false => self.out.set(key, value, &entry.place),
        }
    }

    /// A value with variables: what we cannot fill in is said, and written as it is, so that nothing else takes its place.
    pub fn template(&mut self, key: &str, value: &str, entry: &Entry) {
        if matches!(key, "mail_path" | "mail_inbox_path" | "mail_home") {
            self.roots.extend(fixed_part(value));
        }
        if matches!(
            key,
            "mail_control_path" | "mail_index_path" | "mail_index_private_path"
        ) {
            self.roots_beside.extend(fixed_part(value));
        }
        self.check_variables(key, value, entry);
        self.out.set(key, value, &entry.place);
    }

    /// Says which variables in `value` nobody here fills in.
    pub fn check_variables(&mut self, key: &str, value: &str, entry: &Entry) {
        if let Err(error) = Template::parse(value) {
            let advice = error.advice.as_deref().unwrap_or("write it in another way");
            self.out
                .mend(format!("{}: {key}: {error}; {advice}", entry.place));
        }
        let is_old = value
            .match_indices('%')
            .any(|(at, _)| value[at + 1..].starts_with(|c: char| c.is_ascii_alphanumeric()));
        if self.dialect == Dialect::V24 && is_old {
            self.out.warn(format!(
                "{}: {value:?} has variables of Dovecot 2.3, which 2.4 does not fill in; here they are: 2.4 has %{{user}} for %u, %{{user | username}} for %n, %{{user | domain}} for %d, %{{home}} for %h",
                entry.place
            ));
        }
    }

    /// Writes each `[namespace.NAME]`.
    pub fn namespaces(&mut self) {
        let root = self.root;
        let mut taken: Vec<String> = Vec::new();
        for block in root.of_kind("namespace") {
            if block.flag("disabled") == Some(true) {
                block.explain();
                let what = format!("namespace {:?} ({})", block.name, block.place);
                self.out.leave_out(what, "disabled");
                continue;
            }
            let is_virtual = |key: &str| {
                block
                    .text(key)
                    .is_some_and(|it| it == "virtual" || it.starts_with("virtual:"))
            };
            if is_virtual("location") || is_virtual("mail_driver") {
                block.explain();
                let what = format!("namespace {:?} ({})", block.name, block.place);
                self.out
                    .leave_out(what, "virtual mailboxes, which get no mail");
                continue;
            }
            let kind = block.text("type").unwrap_or("private");
            let usual = match block.flag("inbox") {
                Some(true) => "inbox",
                _ => kind,
            };
            let base = match block.name.as_str() {
                "" => usual,
                name => name,
            };
            let mut name = base.to_owned();
            let mut number = 1;
            while taken.contains(&name) {
                number += 1;
                name = format!("{base}{number}");
            }
            taken.push(name.clone());
            self.namespace(block, &name);
        }
    }

    fn namespace(&mut self, block: &Block, name: &str) {
        let header = format!("namespace.{}", quoted(name));
        self.out.table(&format!("[{header}]"));
        let kind = block.text("type").unwrap_or("private").to_owned();
        for key in ["type", "separator"] {
            if let Some(entry) = block.get(key).filter(|it| !it.value.is_empty()) {
                self.out.set(key, entry.value.as_str(), &entry.place);
            }
        }
        if let Some(entry) = block.get("prefix") {
            self.prefix(entry, &kind);
        }
        for key in ["inbox", "hidden", "subscriptions", "ignore_on_failure"] {
            if let Some(entry) = block.get(key) {
                let is_set = block.flag(key).unwrap_or(false);
                self.out.set(key, is_set, &entry.place);
            }
        }
        if let Some(entry) = block.get("list") {
            match entry.value.as_str() {
                "children" => self.out.set("list", "children", &entry.place),
                _ => {
                    let is_set = block.flag("list").unwrap_or(true);
                    self.out.set("list", is_set, &entry.place);
                }
            }
        }
        if let Some(entry) = block.get("order") {
            match entry.value.parse::<u32>() {
                Ok(order) => self.out.set("order", i64::from(order), &entry.place),
                Err(_) => self.out.mend(format!("{}: order is a number", entry.place)),
            }
        }
        if let Some(entry) = block.get("alias_for") {
            if self.dialect == Dialect::V24 && entry.value.is_empty() {
                self.out.warn(format!(
                    "{}: an empty alias_for is none in Dovecot 2.4; here it is that for the namespace with the empty prefix, as 2.3 has it",
                    entry.place
                ));
            }
            self.out
                .set("alias_for", entry.value.as_str(), &entry.place);
        }
        self.location(block, "location");
        self.across_formats(block);
        self.names_apart(block);
        self.usual_path(block);
        self.ignored_prefix(block, &header);
        self.entries_of(block, &header);
        self.unknown_limits(block);
        self.namespace_quota(block, &header, &kind);
        for mailbox in block.of_kind("mailbox") {
            self.mailbox(mailbox, block, &header);
        }
        if block.flag("inbox") == Some(true) {
            for mailbox in self.mailboxes_of_rules(block) {
                self.mailbox(&mailbox, block, &header);
            }
        }
    }

    /// A shared prefix names the owner: `%%u` (2.3), `$user` (2.4).
    fn prefix(&mut self, entry: &Entry, kind: &str) {
        let value = entry.value.as_str();
        let is_shared = kind == "shared";
        let has_owner = ["%%", "$", "%{owner_"].iter().any(|it| value.contains(it));
        if is_shared && !has_owner && value.contains('%') {
            self.out.mend(format!(
                "{}: {value:?} names whoever asks, not the owner: write %%u (2.3) or $user (2.4)",
                entry.place
            ));
        } else if is_shared && self.dialect == Dialect::V24 && value.contains("%%") {
            self.out.warn(format!(
                "{}: Dovecot 2.4 takes {value:?} for one namespace of this very name; write $user, as it is read here",
                entry.place
            ));
        } else if is_shared && self.dialect == Dialect::V23 && value.contains('$') {
            self.out.warn(format!(
                "{}: Dovecot 2.3 knows no {value:?}; write %%u, as it is read here",
                entry.place
            ));
        } else if !is_shared && value.contains("%%") {
            self.out.warn(format!(
                "{}: {value:?} names an owner, which only a namespace with type = shared has",
                entry.place
            ));
        }
        self.out.set("prefix", value, &entry.place);
    }

    fn mailbox(&mut self, block: &Block, within: &Block, namespace: &str) {
        let header = format!("{namespace}.mailbox.{}", quoted(&block.name));
        self.out.table(&format!("[{header}]"));
        if block.name.is_empty() {
            self.out
                .mend(format!("{}: a mailbox has a name", block.place));
        }
        if let Some(entry) = block.get("auto") {
            let auto = match entry.value.as_str() {
                "" => "no",
                auto => auto,
            };
            self.out.set("auto", auto, &entry.place);
        }
        if let Some(entry) = block.look("special_use") {
            let uses: Vec<String> = block.words("special_use");
            match uses.as_slice() {
                [] => {}
                [one] => self.out.set("special_use", one.as_str(), &entry.place),
                several => self.out.set("special_use", several.to_vec(), &entry.place),
            }
        }
        if let Some(entry) = block.get("quota_ignore") {
            let is_set = block.flag("quota_ignore").unwrap_or(false);
            self.out.set("quota_ignore", is_set, &entry.place);
        }
        if let Some(entry) = block.get("quota_storage_extra") {
            self.size("quota_storage_extra", entry);
        }
        self.unknown_limits(block);
        let prefix = within.look("prefix").map_or("", |it| it.value.as_str());
        self.mailbox_rule(block, prefix);
        self.ignored(block, &header);
        self.entries_of(block, &header);
    }
}

/// Where 2.4 has a format of which nothing is said.
fn usual_path(driver: &str) -> Option<&'static str> {
    match driver {
        "maildir" => Some("~/Maildir"),
        "mbox" => Some("~/mail"),
        "sdbox" => Some("~/sdbox"),
        "mdbox" => Some("~/mdbox"),
        _ => None,
    }
}

/// The settings that make mailboxes which only Dovecot can write.
fn needs_dovecot(block: &Block) -> Vec<&Entry> {
    let entries = block.entries.iter().map(|entry| &**entry);
    entries.filter(|entry| is_of_dovecot(entry)).collect()
}

fn is_of_dovecot(entry: &Entry) -> bool {
    is_dovecots(&entry.key, &entry.value)
}
