//! Who may do what: the acl plugin (2.3), `acl_*` and `acl { }` (2.4), and the map of who shares to whom.

use super::Import;
use super::block::{Block, Entry, Place, is_yes};
use super::source;
use super::users::{server_of, without_password};
use super::version::Dialect;
use crate::mailbox::acl::rights::KNOWN;
use crate::mailbox::acl::sources::matches;

/// The tables of Dovecot's documents, which are the ones that Postroom reads.
const TABLES: [&str; 2] = ["user_shares", "anyone_shares"];

impl Import<'_> {
    /// Writes `[acl]`.
    pub fn acl(&mut self) {
        let root = self.root;
        let is_open = |it: &Block| matches!(it.text("type"), Some("public" | "shared"));
        let has_open = root.of_kind("namespace").any(is_open);
        let driver = self.option("acl").or_else(|| self.option("acl_driver"));
        let is_loaded = self.plugins.iter().any(|it| it == "acl");
        let name = driver.map(|it| it.value.split(':').next().unwrap_or_default());
        let is_on = is_loaded && name.is_some_and(|it| it == "vfile");
        if let Some(entry) = driver.filter(|_| !is_on) {
            let what = format!("{} ({})", entry.key, entry.place);
            self.out
                .leave_out(what, "mail_plugins of the delivery has no acl");
        }
        if !is_on && !has_open {
            return;
        }
        self.out.table("[acl]");
        match driver.filter(|_| is_on) {
            Some(entry) => self.out.set("driver", "vfile", &entry.place),
            None => {
                let why = match (driver, is_loaded) {
                    (None, true) => "the acl plugin has no driver",
                    _ => "mail_plugins of the delivery has no acl",
                };
                self.out.warn(format!(
                    "{why}: Dovecot lets everybody deliver wherever the permissions of the files allow it, and so does this"
                ));
                self.out.line("driver = \"none\"");
            }
        }
        self.out.usual("delivery_right", "post");
        self.out.usual("dovecot", self.dialect.name());
        for key in ["defaults_from_inbox", "globals_only"] {
            if let Some(entry) = self.option(&format!("acl_{key}")) {
                let is_set = match self.dialect {
                    Dialect::V23 => is_there(&entry.value),
                    Dialect::V24 => is_yes(&entry.value),
                };
                self.out.set(key, is_set, &entry.place);
            }
        }
        let global = self.option("acl_global_path");
        let old = driver
            .filter(|_| self.dialect == Dialect::V23)
            .and_then(|entry| {
                let parts = entry.value.split(':').skip(1);
                let path = parts.into_iter().find(|it| it.starts_with('/'))?;
                Some((path.to_owned(), entry))
            });
        match (old, global) {
            (Some((path, entry)), _) => self.out.set("global_path", path, &entry.place),
            (None, Some(entry)) => self
                .out
                .set("global_path", entry.value.as_str(), &entry.place),
            (None, None) => {}
        }
        for number in 1..=9 {
            let key = match number {
                1 => "acl_ignore_namespace".to_owned(),
                number => format!("acl_ignore_namespace{number}"),
            };
            if let Some(entry) = self.option(&key) {
                let what = format!("{key} ({})", entry.place);
                self.out
                    .leave_out(what, "written at the namespaces whose prefix it fits");
            }
        }
        self.ignored(root, "acl");
        if let Some(groups) = self.option("acl_groups") {
            self.out.mend(format!(
                "{}: acl_groups for all users: give them as a field of the userdb",
                groups.place
            ));
        }
        if let Some(user) = self.option("acl_user") {
            match user.value.as_str() {
                "" | "%u" | "%{user}" => {
                    let what = format!("acl_user ({})", user.place);
                    self.out.leave_out(what, "the user himself, as without it");
                }
                _ => self.out.mend(format!(
                    "{}: acl_user for all users: give it as a field of the userdb",
                    user.place
                )),
            }
        }
        for key in ["acl_anyone", "imap_acl_allow_anyone"] {
            if let Some(entry) = self.option(key) {
                let what = format!("{key} ({})", entry.place);
                self.out
                    .leave_out(what, "what IMAP's SETACL may set, not what holds");
            }
        }
        for key in ["acl_cache_ttl", "acl_dict_index"] {
            if let Some(entry) = self.option(key) {
                let what = format!("{key} ({})", entry.place);
                self.out
                    .leave_out(what, "Postroom reads an ACL for each delivery");
            }
        }
        self.entries_of(root, "acl");
    }

    /// `acl_ignore` of the file, a namespace or a mailbox.
    pub fn ignored(&mut self, block: &Block, header: &str) {
        if let Some(entry) = block.get("acl_ignore") {
            let is_set = block.flag("acl_ignore").unwrap_or(false);
            match header {
                "acl" => self.out.set("ignore", is_set, &entry.place),
                _ => self
                    .out
                    .line(&format!("acl.ignore = {is_set}  # {}", entry.place)),
            }
        }
    }

    /// `acl_ignore_namespace`, `…2`, `…3` of 2.3: patterns that the prefix fits.
    pub fn ignored_prefix(&mut self, block: &Block, header: &str) {
        self.ignored(block, header);
        let prefix = block.text("prefix").unwrap_or_default().to_owned();
        let mut number = 1;
        loop {
            let key = match number {
                1 => "acl_ignore_namespace".to_owned(),
                number => format!("acl_ignore_namespace{number}"),
            };
            let Some(entry) = self.option(&key) else {
                return;
            };
            if matches(&entry.value, &prefix) {
                self.out
                    .line(&format!("acl.ignore = true  # {}", entry.place));
                return;
            }
            number += 1;
        }
    }

    /// `acl user=bob { rights = lookup read }`
    pub fn entries_of(&mut self, block: &Block, header: &str) {
        let acls: Vec<&Block> = block.of_kind("acl").collect();
        if acls.is_empty() {
            return;
        }
        let table = match header {
            "acl" => "[acl.entries]".to_owned(),
            header => format!("[{header}.acl.entries]"),
        };
        self.out.table(&table);
        let mut seen: Vec<String> = Vec::new();
        for acl in acls {
            acl.explain();
            let name = acl.text("id").or(acl.text("acl_id")).unwrap_or(&acl.name);
            let (sign, identifier) = match name.strip_prefix('-') {
                Some(identifier) => ("-", identifier),
                None => ("", name),
            };
            let mut words = acl.words("rights");
            if words.is_empty() {
                words = acl.words("acl_rights");
            }
            if seen.iter().any(|it| it == identifier) {
                let text = format!(
                    "{}: a second entry for {identifier:?}: write the result of both",
                    acl.place
                );
                self.out.mend(text);
                continue;
            }
            seen.push(identifier.to_owned());
            match letters(&words) {
                Ok(letters) => self
                    .out
                    .set(identifier, format!("{sign}{letters}"), &acl.place),
                Err(word) => self
                    .out
                    .mend(format!("{}: {word:?} is no right", acl.place)),
            }
        }
    }

    /// Writes `[acl_sharing_map.…]`, from `acl_shared_dict` (2.3) or the block of 2.4.
    pub fn sharing_map(&mut self) {
        let root = self.root;
        if let Some(entry) = self
            .option("acl_shared_dict")
            .filter(|it| !it.value.is_empty())
        {
            return self.old_map(entry);
        }
        let Some(block) = root.of_kind("acl_sharing_map").next() else {
            return;
        };
        block.explain();
        let Some(dict) = block.of_kind("dict").next() else {
            return self.out.mend(format!("{}: it names no dict", block.place));
        };
        match dict.text("driver").unwrap_or(&dict.name) {
            "file" => match dict.get("path").or(dict.get("dict_file_path")) {
                Some(entry) => self.map_file(&entry.value, entry),
                None => self.out.mend(format!("{}: it has no path", dict.place)),
            },
            "proxy" => {
                let name = dict
                    .text("name")
                    .or(dict.text("dict_proxy_name"))
                    .unwrap_or_default();
                let served = root
                    .of_kind("dict_server")
                    .flat_map(|it| it.of_kind("dict"))
                    .find(|it| it.name == name);
                match served {
                    Some(served) => self.new_sql(served),
                    None => self
                        .out
                        .mend(format!("{}: there is no dict {name:?}", dict.place)),
                }
            }
            "sql" => self.new_sql(dict),
            other => self.out.mend(format!(
                "{}: Postroom writes no map of shares to {other:?}",
                dict.place
            )),
        }
    }

    fn map_file(&mut self, path: &str, entry: &Entry) {
        self.out.table("[acl_sharing_map.file]");
        self.template("path", path, entry);
    }

    fn new_sql(&mut self, dict: &Block) {
        dict.explain();
        let root = self.root;
        let driver = dict
            .text("sql_driver")
            .or(root.text("sql_driver"))
            .unwrap_or_default();
        let tables = dict.of_kind("dict_map").chain(root.of_kind("dict_map"));
        let mut odd = None;
        for map in tables {
            map.explain();
            if !map.name.contains("shared-boxes/") {
                continue;
            }
            let table = map
                .text("sql_table")
                .or(map.text("dict_map_sql_table"))
                .unwrap_or_default();
            if !TABLES.contains(&table) {
                odd = Some(table.to_owned());
            }
        }
        match driver {
            "sqlite" => match dict.get("sqlite_path").or(root.get("sqlite_path")) {
                Some(entry) => {
                    self.out.table("[acl_sharing_map.sqlite]");
                    self.template("path", &entry.value, entry);
                }
                None => self
                    .out
                    .mend(format!("{}: it has no sqlite_path", dict.place)),
            },
            "pgsql" => {
                let server = dict.of_kind("pgsql").chain(root.of_kind("pgsql")).next();
                match server {
                    Some(server) => {
                        let (open, has_password) = server_of(server);
                        self.map_postgresql(&open, has_password, &server.place);
                    }
                    None => self.out.mend(format!("{}: it has no server", dict.place)),
                }
            }
            other => self.out.mend(format!(
                "{}: Postroom writes no map of shares to {other:?}",
                dict.place
            )),
        }
        self.odd_table(odd, &dict.place);
    }

    fn odd_table(&mut self, table: Option<String>, place: &Place) {
        if let Some(table) = table {
            self.out.mend(format!(
                "{place}: the table {table:?}: Postroom's are {}, make views of these names",
                TABLES.join(" and ")
            ));
        }
    }

    fn map_postgresql(&mut self, connection: &str, has_password: bool, place: &Place) {
        self.out.table("[acl_sharing_map.postgresql]");
        self.out.set("connection", connection, place);
        if has_password {
            self.out.warn(format!(
                "{place}: write its password into this file, readable for whoever delivers"
            ));
            self.out
                .line("password_file = \"/etc/postroom/sharing-map.password\"");
        }
    }

    /// `acl_shared_dict = file:/path` or `proxy::acl`, whose `dict { acl = pgsql:/etc/… }` names a file of settings.
    fn old_map(&mut self, entry: &Entry) {
        let (driver, rest) = entry.value.split_once(':').unwrap_or((&entry.value, ""));
        match driver {
            "file" => {
                let (path, options) = rest.split_once(':').unwrap_or((rest, ""));
                if !options.is_empty() {
                    self.out.mend(format!(
                        "{} ({}): {options:?}: Postroom locks a map by a file beside it, as Dovecot does without this: take it out",
                        entry.key, entry.place
                    ));
                }
                self.map_file(path, entry);
            }
            "proxy" => {
                let name = rest.rsplit(':').next().unwrap_or_default();
                let root = self.root;
                let served = root.of_kind("dict").find_map(|it| it.get(name));
                match served {
                    Some(served) => {
                        self.out
                            .table(&format!("# {} ({})", entry.key, entry.place));
                        self.old_sql(served)
                    }
                    None => self
                        .out
                        .mend(format!("{}: there is no dict {name:?}", entry.place)),
                }
            }
            other => self.out.mend(format!(
                "{}: Postroom writes no map of shares to {other:?}",
                entry.place
            )),
        }
    }

    fn old_sql(&mut self, entry: &Entry) {
        let (driver, path) = entry.value.split_once(':').unwrap_or((&entry.value, ""));
        let whole = self.folder.join(path);
        let file = match source::read_settings(&whole) {
            Ok(file) => file,
            Err(error) => {
                return self
                    .out
                    .mend(format!("{}: cannot be read here ({error})", entry.place));
            }
        };
        let Some(connect) = file.get("connect") else {
            return self.out.mend(format!("{}: it has no connect", entry.place));
        };
        match driver {
            "sqlite" => {
                self.out.table("[acl_sharing_map.sqlite]");
                self.template("path", &connect.value, connect);
            }
            "pgsql" => {
                let Some((open, has_password)) = without_password(&connect.value) else {
                    let text = format!("{}: connect is not understood", connect.place);
                    return self.out.mend(text);
                };
                self.map_postgresql(&open, has_password, &connect.place);
            }
            other => {
                return self.out.mend(format!(
                    "{}: Postroom writes no map of shares to {other:?}",
                    entry.place
                ));
            }
        }
        let maps = file.of_kind("map");
        let odd = maps
            .filter(|it| {
                it.text("pattern")
                    .is_some_and(|it| it.contains("shared-boxes/"))
            })
            .find_map(|it| it.text("table").filter(|it| !TABLES.contains(it)));
        self.odd_table(odd.map(str::to_owned), &entry.place);
    }
}

/// A flag of 2.3's `plugin { }`: there is one, unless its first letter says no.
fn is_there(value: &str) -> bool {
    !value.starts_with(['n', 'N', '0', 'f', 'F'])
}

/// Words or letters, as letters and names.
fn letters(words: &[String]) -> Result<String, String> {
    let mut found = String::new();
    for word in words {
        match KNOWN.iter().find(|(_, name)| name == word) {
            Some((letter, _)) => found.push(*letter),
            None if word
                .chars()
                .all(|c| KNOWN.iter().any(|(known, _)| *known == c)) =>
            {
                found.push_str(word)
            }
            None => return Err(word.clone()),
        }
    }
    Ok(found)
}
