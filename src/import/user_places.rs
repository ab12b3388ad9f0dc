//! What userdbs say of where mail lies: directories beside those of the file, and formats that Dovecot alone writes.

use std::fs;

use super::Import;
use super::block::{Block, Place};
use super::source;
use super::users::{name_of, setting};
use super::version::Dialect;
use crate::config::mail_location;
use crate::user::is_place;

/// A field that is a home, or says where mail lies.
pub struct Named {
    pub field: String,
    /// As far as it is known here: `maildir:/srv/%` with what varies behind a percent sign. None: the database knows.
    pub value: Option<String>,
    /// In a file of users: others are beside this one.
    is_of_one: bool,
    /// Of its userdb.
    pub place: Place,
    /// Only Dovecot writes such mailboxes.
    pub is_dovecots: bool,
}

/// What is known of a directory.
enum Lies {
    /// Where the home is, or below another of these.
    Within,
    /// Below this one.
    Below(String),
    Anywhere,
}

impl Named {
    pub fn is_home(&self) -> bool {
        self.field == "home"
    }

    /// The directories, each as far as it is the same for all users; an error where one may be any.
    pub fn roots(&self) -> Result<Vec<String>, ()> {
        let value = self.value.as_deref().ok_or(())?;
        let key = self.field.rsplit('/').next().unwrap_or(&self.field);
        let paths: Vec<String> = match key {
            "mail" | "mail_location" | "location" => {
                let settings = mail_location::settings(value).map_err(drop)?;
                let paths = settings
                    .into_iter()
                    .filter(|(key, _)| key.ends_with("_path"));
                paths.map(|(_, path)| path).collect()
            }
            key if key.ends_with("_path") || key == "home" => vec![value.to_owned()],
            _ => Vec::new(),
        };
        let mut roots = Vec::new();
        for path in paths {
            match lies(&path) {
                Lies::Within => {}
                Lies::Below(root) => roots.push(match root.rsplit_once('/') {
                    Some((beside, _)) if self.is_of_one && !beside.is_empty() => beside.to_owned(),
                    _ => root,
                }),
                Lies::Anywhere => return Err(()),
            }
        }
        Ok(roots)
    }
}

impl Import<'_> {
    /// The homes and places of all userdbs.
    pub fn named_places(&mut self) -> Vec<Named> {
        let root = self.root;
        let mut all = Vec::new();
        for block in root.of_kind("userdb") {
            let mut unread = None;
            for (field, value) in self.fields_of(block, &mut unread) {
                let field = field.strip_prefix("userdb_").unwrap_or(&field).to_owned();
                // A variable of any dialect: what stands there is not known.
                let (known, text) = match value {
                    Value::Text(text) => (Some(text.clone()), text),
                    Value::Of(expression) => (beginning(&expression), expression),
                };
                let is_lost = self.is_lost(&field);
                if field == "home" || is_place(&field) && !(is_lost && name_of(block) == "static") {
                    all.push(Named {
                        is_of_one: name_of(block) == "passwd-file",
                        is_dovecots: !is_lost
                            && (is_dovecots(&field, known.as_ref().unwrap_or(&text))
                                || known.is_none() && text.contains("dbox")),
                        value: known.filter(|_| !is_lost),
                        place: block.place.clone(),
                        field,
                    });
                }
            }
            if let Some(file) = unread {
                self.out.warn_above(format!(
                    "userdb {} ({}): {file} cannot be read here: where it names directories of mail, write delivery.mail_roots",
                    name_of(block),
                    block.place
                ));
            }
        }
        all
    }

    /// A location of 2.3, which 2.4 does not look at in a userdb's answer, and the settings of 2.4 in 2.3.
    pub fn is_lost(&self, field: &str) -> bool {
        let key = field.rsplit('/').next().unwrap_or(field);
        let is_location = matches!(key, "mail" | "mail_location" | "location");
        match self.dialect {
            Dialect::V23 => {
                let is_new = key == "mail_driver" || key.ends_with("_path");
                is_new || key.starts_with("mailbox_")
            }
            Dialect::V24 => is_location,
        }
    }

    /// The fields that a userdb answers, as far as its settings tell. `unread` becomes a file that is not here.
    fn fields_of(&self, block: &Block, unread: &mut Option<String>) -> Vec<(String, Value)> {
        let mut found = Vec::new();
        let driver = name_of(block);
        let look = |key: &str| block.look(key).map_or("", |it| it.value.as_str());
        for key in ["args", "default_fields", "override_fields"] {
            if key != "args" || driver == "static" {
                found.extend(assignments(look(key)));
            }
        }
        let sections = block.blocks.iter().filter(|it| it.kind.ends_with("fields"));
        for entry in sections.flat_map(|it| &it.entries) {
            found.push((entry.key.clone(), Value::Text(entry.value.clone())));
        }
        let is_old = self.dialect == Dialect::V23;
        match driver.as_str() {
            "sql" if !is_old => {
                let query = setting(block, "sql", "query");
                found.extend(columns(&query.unwrap_or_default()));
            }
            "sql" | "ldap" if is_old => {
                match source::read_settings(&self.folder.join(look("args"))) {
                    Ok(file) if driver == "sql" => {
                        found.extend(columns(file.text("user_query").unwrap_or_default()));
                    }
                    Ok(file) => {
                        found.extend(attributes(file.text("user_attrs").unwrap_or_default()))
                    }
                    Err(_) => *unread = Some(look("args").to_owned()),
                }
            }
            "passwd-file" => {
                let path = match is_old {
                    true => look("args")
                        .rsplit_once("username_format=")
                        .map_or(look("args"), |(_, it)| {
                            it.split_once(' ').map_or("", |(_, path)| path)
                        }),
                    false => &setting(block, "passwd-file", "path").unwrap_or_default(),
                };
                match fs::read_to_string(path) {
                    Ok(text) => found.extend(text.lines().flat_map(of_line)),
                    Err(_) if path.contains('%') => {}
                    Err(_) => *unread = Some(path.to_owned()),
                }
            }
            _ => {}
        }
        found
    }
}

/// The value of a field.
enum Value {
    /// As it is written, with variables.
    Text(String),
    /// What SQL, or an attribute of a directory, comes to.
    Of(String),
}

/// `uid=vmail home=/srv/%n`
fn assignments(text: &str) -> Vec<(String, Value)> {
    let words = text.split_whitespace().filter_map(|it| it.split_once('='));
    words
        .map(|(key, value)| (key.to_owned(), Value::Text(value.to_owned())))
        .collect()
}

/// The home in a line of a passwd-file, and what its fields say.
fn of_line(line: &str) -> Vec<(String, Value)> {
    let parts: Vec<&str> = line.splitn(8, ':').collect();
    if line.starts_with('#') {
        return Vec::new();
    }
    let mut fields = assignments(parts.get(7).unwrap_or(&""));
    fields.retain(|(key, _)| key.starts_with("userdb_"));
    let home = parts.get(5).filter(|it| !it.is_empty());
    fields.extend(home.map(|it| ("home".to_owned(), Value::Text((*it).to_owned()))));
    fields
}

/// `homeDirectory=home, =mail=maildir:/srv/%{ldap:uid}` of 2.3.
fn attributes(text: &str) -> Vec<(String, Value)> {
    let mut fields = Vec::new();
    for part in text.split(',') {
        let Some((attribute, rest)) = part.trim().split_once('=') else {
            continue;
        };
        fields.push(match rest.split_once('=') {
            Some((field, template)) => (field.trim().to_owned(), Value::Text(template.to_owned())),
            None => (rest.trim().to_owned(), Value::Of(attribute.to_owned())),
        });
    }
    fields
}

/// `SELECT 'maildir:/srv/' || name AS mail, home FROM …`: each column with its expression.
fn columns(query: &str) -> Vec<(String, Value)> {
    let mut parts = vec![String::new()];
    let (mut depth, mut quote) = (0, None);
    for letter in query.chars() {
        match (quote, letter) {
            (Some(open), _) if open == letter => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"' | '`') => quote = Some(letter),
            (None, '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, ',') if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            (None, _) => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
    }
    parts.iter().filter_map(|part| column(part)).collect()
}

fn column(part: &str) -> Option<(String, Value)> {
    let is_word = |word: &str, known: &str| word.eq_ignore_ascii_case(known);
    let mut words: Vec<&str> = part.split_whitespace().collect();
    if words.first().is_some_and(|it| is_word(it, "select")) {
        words.remove(0);
    }
    if let Some(end) = words.iter().position(|it| is_word(it, "from")) {
        words.truncate(end);
    }
    let named = words.iter().rposition(|it| is_word(it, "as"));
    let (expression, name) = match named {
        Some(at) => (words[..at].join(" "), *words.get(at + 1)?),
        None => (words.join(" "), words.last()?.rsplit('.').next()?),
    };
    let is_quote = |c: char| matches!(c, '"' | '\'' | '`');
    Some((
        name.trim_matches(is_quote).to_owned(),
        Value::Of(expression),
    ))
}

/// How the text begins that an expression of SQL comes to, `%` where it goes on; none where that is not written in it.
fn beginning(expression: &str) -> Option<String> {
    let lower = expression.to_ascii_lowercase();
    let inside = match lower.starts_with("concat") {
        true => expression[6..].trim_start().strip_prefix('(')?,
        false => expression,
    };
    let (text, rest) = inside.trim_start().strip_prefix('\'')?.split_once('\'')?;
    let goes_on = rest.contains(|c: char| !c.is_whitespace() && c != ')');
    Some(format!("{text}{}", if goes_on { "%" } else { "" }))
}

fn lies(path: &str) -> Lies {
    let is_homes = ["~", "%h", "%{home}"].iter().any(|it| path.starts_with(it));
    match path {
        "" | "." | "MEMORY" => Lies::Within,
        _ if is_homes => Lies::Within,
        path if path.starts_with('/') => fixed_part(path).map_or(Lies::Anywhere, Lies::Below),
        path if path.starts_with('%') => Lies::Anywhere,
        _ => Lies::Within,
    }
}

/// The directory that holds a path for every user: `/srv/%d/%n` is below `/srv`.
pub fn fixed_part(path: &str) -> Option<String> {
    let fixed = match path.split_once('%') {
        Some((before, _)) => before.rsplit_once('/')?.0,
        None => path,
    };
    (fixed.starts_with('/') && fixed.len() > 1).then(|| fixed.to_owned())
}

/// Whether a setting, or a field of a userdb, makes mailboxes that only Dovecot can write.
pub fn is_dovecots(key: &str, value: &str) -> bool {
    let value = value.to_lowercase();
    match key.rsplit('/').next().unwrap_or(key) {
        "mail" | "mail_location" | "location" => {
            value.starts_with("sdbox:")
                || value.starts_with("mdbox:")
                || value.contains(":layout=index")
        }
        "mail_driver" => matches!(value.as_str(), "sdbox" | "mdbox"),
        "mailbox_list_layout" => value == "index",
        _ => false,
    }
}
