//! Who the users are. What Postroom cannot ask itself it asks Dovecot: the answer is Dovecot's own then.

use std::collections::BTreeSet;

use super::Import;
use super::block::{Block, Entry, Place, is_yes};
use super::document::quoted;
use super::source;
use super::user_places::Named;
use super::version::Dialect;
use crate::database::query::Query;
use crate::text::template::{Template, Variables};

/// A `[[userdb]]`, or why it is Dovecot that is asked.
type Found = Result<String, String>;

impl Import<'_> {
    /// Writes each `[[userdb]]`.
    pub fn userdbs(&mut self) {
        let root = self.root;
        for passdb in root.of_kind("passdb") {
            passdb.explain();
            let what = format!("passdb {} ({})", name_of(passdb), passdb.place);
            self.out
                .leave_out(what, "passwords, which no delivery needs");
        }
        let answers = |it: &Block| name_of(it) != "prefetch";
        if !root.of_kind("userdb").any(answers) {
            let text = "there is no userdb: Dovecot delivers to nobody, and Postroom to the users of the machine";
            self.out.warn(text.into());
        }
        let mut asks_dovecot = false;
        let userdbs: Vec<&Block> = root.of_kind("userdb").collect();
        for block in userdbs {
            let driver = name_of(block);
            if driver == "prefetch" {
                block.explain();
                let what = format!("userdb prefetch ({})", block.place);
                self.out
                    .leave_out(what, "an answer for logins, which no delivery has");
                continue;
            }
            self.unknown_keys(block);
            let found = self.userdb(block, &driver);
            block.explain();
            self.open_places(block, &driver);
            match found {
                Ok(line) => {
                    self.out.table("[[userdb]]");
                    self.out.line(&format!("{line}  # {}", block.place));
                }
                Err(why) if asks_dovecot => {
                    let what = format!("userdb {driver} ({})", block.place);
                    self.out
                        .leave_out(what, &format!("Dovecot is asked already ({why})"));
                }
                Err(why) => {
                    asks_dovecot = true;
                    self.out.table("[[userdb]]");
                    let text = format!(
                        "userdb {driver} ({}): Dovecot is asked, for {why}. Whoever delivers needs its socket: service auth {{ unix_listener auth-userdb {{ group = … }} }}",
                        block.place
                    );
                    self.out.comment(&text);
                    let socket = self.root.text("auth_socket_path").unwrap_or("auth-userdb");
                    let socket = match socket.starts_with('/') {
                        true => socket.to_owned(),
                        false => format!("{}/{socket}", self.base_dir()),
                    };
                    let socket = toml::Value::from(socket);
                    self.out.line(&format!("dovecot = {{ socket = {socket} }}"));
                }
            }
        }
    }

    /// Where its answers may be any directory, or any format.
    fn open_places(&mut self, block: &Block, driver: &str) {
        let is_open = |it: &&Named| it.place == block.place && !it.is_home() && it.roots().is_err();
        let open: BTreeSet<String> = self
            .named
            .iter()
            .filter(is_open)
            .map(|it| it.field.clone())
            .collect();
        let (lost, open): (Vec<_>, Vec<_>) = open.into_iter().partition(|it| self.is_lost(it));
        let what = format!("userdb {driver} ({})", block.place);
        if !open.is_empty() {
            self.out.mend(format!(
                "{what}: {} of each user is not written here: name in delivery.mail_roots the directories of mail that are not beside the homes, and write hand_over where some are of dbox",
                open.join(" and ")
            ));
        }
        if !lost.is_empty() {
            self.out.mend(format!(
                "{what}: it answers {}, which Dovecot {} does not look at, and Postroom does: take it out",
                lost.join(" and "),
                self.dialect.name()
            ));
        }
    }

    /// What no userdb has.
    fn unknown_keys(&mut self, block: &Block) {
        const BOTH: [&str; 6] = [
            "driver",
            "name",
            "result_success",
            "result_failure",
            "result_internalfail",
            "skip",
        ];
        const OLD: [&str; 8] = [
            "args",
            "default_fields",
            "override_fields",
            "auth_verbose",
            "deny",
            "master",
            "pass",
            "username_filter",
        ];
        const NEW: [&str; 8] = [
            "fields_import_all",
            "use_cache",
            "use_worker",
            "query",
            "iterate_query",
            "allow_all_users",
            "passwd_file_path",
            "auth_username_format",
        ];
        // Of what a userdb asks.
        const OTHERS: [&str; 8] = [
            "ldap_",
            "lua_",
            "sql_",
            "sqlite_",
            "mysql_",
            "pgsql_",
            "dict_",
            "cassandra_",
        ];
        let driver = name_of(block).replace('-', "_") + "_";
        for entry in &block.entries {
            let key = entry.key.strip_prefix("userdb_").unwrap_or(&entry.key);
            let short = key.strip_prefix(&driver).unwrap_or(key);
            let is_new = self.dialect == Dialect::V24;
            let known = if is_new { NEW } else { OLD };
            let is_known = [key, short]
                .iter()
                .any(|it| BOTH.contains(it) || known.contains(it));
            let is_other = OTHERS.iter().any(|it| key.starts_with(it)) || driver == "ldap_";
            if !(is_known || is_new && is_other) {
                let text = format!(
                    "userdb / {} ({}): not known to Postroom",
                    entry.key, entry.place
                );
                self.out.warn(text);
            }
        }
        for inner in &block.blocks {
            let kind = inner.kind.strip_prefix("userdb_").unwrap_or(&inner.kind);
            let is_server = ["mysql", "pgsql", "ldap", "cassandra"].contains(&kind);
            let is_list = [
                "fields",
                "default_fields",
                "override_fields",
                "ldap_iterate_fields",
            ];
            if !is_server && !is_list.contains(&kind) && !kind.starts_with("lua_") {
                let text = format!(
                    "userdb / {} ({}): not known to Postroom",
                    inner.kind, inner.place
                );
                self.out.warn(text);
            }
        }
    }

    fn userdb(&mut self, block: &Block, driver: &str) -> Found {
        let has_fields = |it: &Block| it.kind.ends_with("fields") && !it.entries.is_empty();
        if driver != "static" && block.blocks.iter().any(has_fields) {
            return Err("it has fields for all users".into());
        }
        let results = [
            "result_success",
            "result_failure",
            "result_internalfail",
            "skip",
        ];
        for key in results {
            let usual = match key {
                "result_success" => "return-ok",
                "skip" => "never",
                _ => "continue",
            };
            let said = block.text(key).or(block.text(&format!("userdb_{key}")));
            if let Some(value) = said.filter(|value| *value != usual) {
                return Err(format!("its {key} is {value}"));
            }
        }
        let is_empty = |it: &Block| it.entries.is_empty() && it.blocks.is_empty();
        for (inner, key) in [
            ("default_fields", "default_fields"),
            ("override_fields", "override_fields"),
        ] {
            if block.text(key).is_some() || block.of_kind(inner).any(|it| !is_empty(it)) {
                return Err(format!("it has {key}"));
            }
        }
        if block
            .text("auth_username_format")
            .or(block.text("username_format"))
            .is_some()
        {
            return Err("it has a user name format of its own".into());
        }
        let arguments = match self.dialect {
            Dialect::V23 => block.text("args").unwrap_or_default().to_owned(),
            Dialect::V24 => String::new(),
        };
        match driver {
            "passwd" if matches!(arguments.as_str(), "" | "blocking=yes" | "blocking=no") => {
                Ok("passwd = {}".into())
            }
            "passwd" => Err("it has args".into()),
            "passwd-file" => self.passwd_file(block, &arguments),
            "static" => self.fixed(block, &arguments),
            "sql" => match self.dialect {
                Dialect::V23 => self.sql_file(&arguments),
                Dialect::V24 => self.sql_section(block),
            },
            "ldap" => Err("directories (postroom.toml(5) has a userdb ldap too)".into()),
            other => Err(format!("Postroom has no userdb {other}")),
        }
    }

    /// `args = username_format=%u /etc/dovecot/users`: a path, which may have blanks in it, behind one option.
    fn passwd_file(&mut self, block: &Block, arguments: &str) -> Found {
        let mut path = setting(block, "passwd-file", "path").unwrap_or_default();
        if !arguments.is_empty() {
            let option = arguments.strip_prefix("username_format=");
            let (format, file) = match option.map(|it| it.split_once(' ').unwrap_or((it, ""))) {
                Some((format, file)) => (format, file),
                None => ("%u", arguments),
            };
            // The name is looked up as auth_username_format has left it.
            let is_same = match format {
                "%u" | "%{user}" => true,
                "%Lu" => self.names_are_lower(),
                _ => false,
            };
            if !is_same {
                return Err(format!("its username_format {format}"));
            }
            path = file.to_owned();
        }
        if path.contains('%') {
            return Err("its path differs from user to user".into());
        }
        if !path.starts_with('/') {
            return Err(format!("its path {path:?} does not begin with a slash"));
        }
        let path = toml::Value::from(path);
        Ok(format!("passwd-file = {{ path = {path} }}"))
    }

    /// Whether every name is in lower case before it is looked up.
    fn names_are_lower(&self) -> bool {
        let format = self.root.look("auth_username_format");
        let format = match format.map_or("%Lu", |it| it.value.as_str()) {
            "" => "%u",
            format => format,
        };
        let somebody = Variables {
            user: "Some.Body@Example.ORG",
            ..Variables::default()
        };
        let name = Template::parse(format).map(|it| it.expand(&somebody));
        matches!(name, Ok(Ok(name)) if name == name.to_lowercase())
    }

    fn fixed(&mut self, block: &Block, arguments: &str) -> Found {
        let mut fields: Vec<(String, String)> = arguments
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        if let Some(word) = arguments.split_whitespace().find(|it| !it.contains('=')) {
            return Err(format!("{word:?} in its args is no field"));
        }
        let is_fields = |it: &&Block| matches!(it.kind.as_str(), "fields" | "userdb_fields");
        let sections = block.blocks.iter().filter(is_fields);
        for entry in sections.flat_map(|it| &it.entries) {
            fields.push((entry.key.clone(), entry.value.clone()));
        }
        let all = setting(block, "static", "allow_all_users");
        let mut is_for_all = all.is_some_and(|it| is_yes(&it));
        fields.retain(|(key, value)| match key.as_str() {
            "allow_all_users" => {
                is_for_all = is_yes(value);
                false
            }
            _ => true,
        });
        // The last of a name counts.
        let all = fields.clone();
        let mut at = 0;
        fields.retain(|(key, _)| {
            at += 1;
            !all[at..].iter().any(|(later, _)| later == key)
        });
        let (lost, fields): (Vec<_>, Vec<_>) =
            fields.into_iter().partition(|(key, _)| self.is_lost(key));
        for (key, _) in lost {
            let what = format!("userdb static / {key} ({})", block.place);
            let why = "a field that this Dovecot does not look at";
            self.out.leave_out(what, why);
        }
        let odd = fields.iter().find(|(key, _)| key.contains([':', '+']));
        if let Some((key, _)) = odd {
            return Err(format!("its {key}"));
        }
        let of_owner = |value: &str| Template::parse(value).is_ok_and(|it| it.uses_owner());
        if let Some((key, _)) = fields.iter().find(|(_, value)| of_owner(value)) {
            return Err(format!("a percent sign in its {key}"));
        }
        // Of these a delivery knows nothing.
        let others = [
            "nice",
            "password",
            "nopassword",
            "proxy",
            "proxy_maybe",
            "allow_nets",
        ];
        let lost = fields
            .iter()
            .find(|(key, _)| !is_ours(key) && !others.contains(&key.as_str()));
        if let Some((key, _)) = lost {
            return Err(format!("its {key}"));
        }
        let known: Vec<String> = fields
            .iter()
            .filter(|(key, _)| is_ours(key))
            .map(|(key, value)| format!("{} = {}", quoted(key), toml::Value::from(value.as_str())))
            .collect();
        let line = format!("static = {{ {} }}", known.join(", "));
        match is_for_all {
            true => Ok(line),
            false => Err(format!(
                "its passdb says who exists. Where the MTA knows that: {line}"
            )),
        }
    }

    /// `args = /etc/dovecot/dovecot-sql.conf.ext`
    fn sql_file(&mut self, path: &str) -> Found {
        let whole = self.folder.join(path);
        let file = source::read_settings(&whole)
            .map_err(|error| format!("its settings cannot be read here ({error})"))?;
        let driver = file.text("driver").unwrap_or_default().to_owned();
        let connect = file.get("connect").ok_or("it has no connect")?;
        let text = connect.value.clone();
        let query = file.text("user_query").unwrap_or_default().to_owned();
        let names = file.text("iterate_query").map(str::to_owned);
        let place = connect.place.clone();
        match driver.as_str() {
            "sqlite" => self.sqlite(&text, &query, names.as_deref()),
            "pgsql" => {
                let (open, password) =
                    without_password(&text).ok_or("its connect is not understood")?;
                self.postgresql(&open, password, &query, names.as_deref(), &place)
            }
            other => Err(format!("Postroom does not speak with {other:?}")),
        }
    }

    fn sql_section(&mut self, block: &Block) -> Found {
        let root = self.root;
        let driver = setting(block, "sql", "driver")
            .filter(|it| it != "sql")
            .or(block.text("sql_driver").map(str::to_owned))
            .or(root.text("sql_driver").map(str::to_owned))
            .unwrap_or_default();
        let query = setting(block, "sql", "query").unwrap_or_default();
        let names = setting(block, "sql", "iterate_query");
        match driver.as_str() {
            "sqlite" => {
                let path = block.text("sqlite_path").or(root.text("sqlite_path"));
                let path = path.ok_or("it has no sqlite_path")?.to_owned();
                self.sqlite(&path, &query, names.as_deref())
            }
            "pgsql" => {
                let servers: Vec<&Block> = root
                    .of_kind("pgsql")
                    .chain(block.of_kind("pgsql"))
                    .collect();
                let [server] = servers.as_slice() else {
                    return Err("it has not one server".into());
                };
                let (open, password) = server_of(server);
                self.postgresql(&open, password, &query, names.as_deref(), &server.place)
            }
            other => Err(format!("Postroom does not speak with {other:?}")),
        }
    }

    fn sqlite(&mut self, path: &str, query: &str, names: Option<&str>) -> Found {
        let path = toml::Value::from(path);
        Ok(format!(
            "sqlite = {{ path = {path}, {} }}",
            queries(query, names)?
        ))
    }

    fn postgresql(
        &mut self,
        connection: &str,
        has_password: bool,
        query: &str,
        names: Option<&str>,
        place: &Place,
    ) -> Found {
        let queries = queries(query, names)?;
        let words = connection.split_whitespace();
        if words.filter(|it| it.starts_with("host=")).count() > 1 {
            return Err("it has several servers".into());
        }
        let password = match has_password {
            false => String::new(),
            true => {
                let text = format!(
                    "{place}: write its password into /etc/postroom/userdb.password, readable for whoever delivers"
                );
                self.out.warn_above(text);
                "password_file = \"/etc/postroom/userdb.password\", ".into()
            }
        };
        let connection = toml::Value::from(connection);
        Ok(format!(
            "postgresql = {{ connection = {connection}, {password}{queries} }}"
        ))
    }

    /// Where Dovecot's sockets are.
    pub fn base_dir(&self) -> String {
        let said = self.root.text("base_dir").unwrap_or("/run/dovecot");
        said.trim_end_matches('/').to_owned()
    }
}

/// Fields of a userdb that a delivery looks at.
fn is_ours(key: &str) -> bool {
    let known = [
        "uid",
        "gid",
        "home",
        "system_groups_user",
        "acl_groups",
        "acl_user",
        "master_user",
        "mail_access_groups",
    ];
    known.contains(&key) || crate::user::is_place(key)
}

/// The driver: what `driver` says (2.3), else the name of the section (2.4).
pub fn name_of(block: &Block) -> String {
    let driver = block.text("driver").unwrap_or(&block.name);
    driver.to_owned()
}

/// A setting of a userdb of 2.4, in any of its lengths: `userdb_sql_query`, `sql_query`, `passwd_file_path`, `path`, `query`.
pub fn setting(block: &Block, driver: &str, key: &str) -> Option<String> {
    let driver = driver.replace('-', "_");
    [
        key.to_owned(),
        format!("{driver}_{key}"),
        format!("userdb_{key}"),
        format!("userdb_{driver}_{key}"),
    ]
    .iter()
    .find_map(|name| block.text(name).map(str::to_owned))
}

fn queries(query: &str, names: Option<&str>) -> Found {
    let parsed = |text: &str| {
        Query::parse(text).map_err(|bad| format!("its query is not understood: {}", bad.message))
    };
    if query.is_empty() {
        return Err("it has no query of its own".into());
    }
    parsed(query)?;
    let mut text = format!("query = {}", toml::Value::from(query));
    if let Some(names) = names {
        parsed(names)?;
        text.push_str(&format!(", iterate_query = {}", toml::Value::from(names)));
    }
    Ok(text)
}

/// A connection of libpq without its password, and whether it had one; none where it is not written as `key=value key='value'`.
pub fn without_password(connection: &str) -> Option<(String, bool)> {
    let mut kept = Vec::new();
    let mut has_password = false;
    let mut rest = connection.trim_start();
    while !rest.is_empty() {
        let (key, value) = rest.split_once('=')?;
        let key = key.trim();
        let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_key {
            return None;
        }
        let (value, behind) = connection_value(value.trim_start())?;
        match key {
            "password" => has_password = true,
            // Other secrets: Dovecot is asked.
            key if key.contains("pass") => return None,
            key => kept.push(format!("{key}={value}")),
        }
        rest = behind.trim_start();
    }
    Some((kept.join(" "), has_password))
}

/// A value as it is written, with its quotes, and what is behind it.
fn connection_value(text: &str) -> Option<(&str, &str)> {
    if !text.starts_with('\'') {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        return Some(text.split_at(end));
    }
    let mut is_escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            '\'' if !is_escaped => return Some(text.split_at(at + 1)),
            '\\' => is_escaped = !is_escaped,
            _ => is_escaped = false,
        }
    }
    None
}

/// `pgsql HOST { parameters { … } }` as libpq writes it, and whether it has a password.
pub fn server_of(block: &Block) -> (String, bool) {
    let host = block.text("pgsql_host").unwrap_or(&block.name);
    let mut words = vec![format!("host={host}")];
    let mut has_password = false;
    let inner = block
        .of_kind("parameters")
        .chain(block.of_kind("pgsql_parameters"));
    for entry in inner.flat_map(|it| &it.entries) {
        entry.is_explained.set(true);
        match entry.key.as_str() {
            key if key.contains("pass") => has_password = true,
            "host" => words[0] = format!("host={}", entry.value),
            key => words.push(format!("{key}={}", entry.value)),
        }
    }
    block.explain();
    (words.join(" "), has_password)
}

/// The path of a file that a setting names with `<`, or its value.
pub fn path_of(entry: &Entry) -> &str {
    entry.file.as_deref().unwrap_or(&entry.value)
}
