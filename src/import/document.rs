//! The TOML that comes out, with where each line comes from.

use std::fmt;

/// Our configuration as it grows.
#[derive(Debug, Default)]
pub struct Document {
    lines: Vec<String>,
    /// Tables that have been begun, and the keys of the last one with their lines.
    tables: Vec<String>,
    keys: Vec<(String, usize)>,
    /// In a table that was there before.
    is_again: bool,
    /// What has to be mended by hand before the result says what Dovecot's file said.
    pub to_mend: Vec<String>,
    /// What an admin has to know.
    pub warnings: Vec<String>,
    /// What came from nowhere in the result: the reason, and the settings with it.
    left_out: Vec<(String, Vec<String>)>,
}

impl Document {
    /// `[namespace.inbox]`, or `[[userdb]]`. A table that is there already is not begun again.
    pub fn table(&mut self, header: &str) {
        self.keys.clear();
        let is_list = header.starts_with("[[");
        self.is_again = !is_list && self.tables.iter().any(|it| it == header);
        if self.is_again {
            self.to_mend.push(format!(
                "{header} would be there twice: the first one is written"
            ));
            return;
        }
        self.tables.push(header.to_owned());
        self.lines.push(String::new());
        self.lines.push(header.to_owned());
    }

    /// A comment with a blank line before it.
    pub fn heading(&mut self, text: &str) {
        self.lines.push(String::new());
        self.comment(text);
    }

    /// Broken into lines that fit.
    pub fn comment(&mut self, text: &str) {
        let lines = wrapped(text);
        self.lines
            .extend(lines.iter().map(|line| format!("# {line}")));
    }

    /// A line with its origin. What was set before under this key in the same table is not any more.
    pub fn set(&mut self, key: &str, value: impl Into<toml::Value>, origin: impl fmt::Display) {
        let value = value.into();
        self.put(key, format!("{} = {value}  # {origin}", quoted(key)));
    }

    /// What Dovecot does where nothing is said, and we do something else.
    pub fn usual(&mut self, key: &str, value: impl Into<toml::Value>) {
        self.set(key, value, "as Dovecot does");
    }

    fn put(&mut self, key: &str, line: String) {
        if self.is_again {
            return;
        }
        match self.keys.iter().find(|(known, _)| known == key) {
            Some((_, at)) => self.lines[*at] = line,
            None => {
                self.keys.push((key.to_owned(), self.lines.len()));
                self.lines.push(line);
            }
        }
    }

    /// A line that is a part of a value.
    pub fn part(&mut self, text: &str) {
        self.lines.push(text.to_owned());
    }

    /// A line whose right side is TOML.
    pub fn line(&mut self, text: &str) {
        let key = text.split(" = ").next().unwrap_or(text);
        self.put(key, text.to_owned());
    }

    /// What the admin is to know, with a comment at this place.
    pub fn warn(&mut self, text: String) {
        self.comment(&format!("Warning: {text}"));
        self.warnings.push(text);
    }

    /// Without a comment at the place where the document is.
    pub fn warn_above(&mut self, text: String) {
        self.warnings.push(text);
    }

    /// What could not be carried over, and nobody but the admin can.
    pub fn mend(&mut self, text: String) {
        self.comment(&format!("To mend: {text}"));
        self.to_mend.push(text);
    }

    /// What is not carried over, and why nobody misses it: one list for each reason.
    pub fn leave_out(&mut self, setting: String, why: &str) {
        match self.left_out.iter_mut().find(|(known, _)| known == why) {
            Some((_, settings)) if settings.contains(&setting) => {}
            Some((_, settings)) => settings.push(setting),
            None => self.left_out.push((why.to_owned(), vec![setting])),
        }
    }

    /// What the result will say.
    pub fn everything(&self) -> String {
        let left = self.left_out.iter().flat_map(|(_, settings)| settings);
        let lines = self.lines.iter().chain(left);
        lines.map(|line| format!("{line}\n")).collect()
    }

    /// All that was left out, each with its reason.
    pub fn finish(&mut self) {
        if self.left_out.is_empty() {
            return;
        }
        self.heading("Left out, and why:");
        for (why, settings) in std::mem::take(&mut self.left_out) {
            self.comment(&format!("{why}: {}", settings.join(", ")));
        }
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

/// A key as TOML wants it.
pub fn quoted(key: &str) -> String {
    let is_bare = !key.is_empty()
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    match is_bare {
        true => key.to_owned(),
        // A string of JSON is one of TOML, in one line, but for the DEL that JSON leaves as it is.
        false => serde_json::Value::from(key)
            .to_string()
            .replace('\u{7f}', "\\u007F"),
    }
}

/// Lines of a comment. What comes from a file cannot end one.
fn wrapped(text: &str) -> Vec<String> {
    const WIDTH: usize = 118;
    let shown: String = text
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    let mut lines = vec![String::new()];
    for word in shown.split(' ') {
        let full = lines
            .last()
            .is_some_and(|line| !line.is_empty() && line.len() + word.len() >= WIDTH);
        match lines.last_mut() {
            Some(line) if !full => {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            _ => lines.push(format!("  {word}")),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_toml() {
        for key in ["Work", "a b", "", "\"\\", "\u{7f}", "\0\t\n", "ü", "a.b"] {
            let line = format!("{} = 1", quoted(key));
            let table: toml::Table = line.parse().unwrap();
            assert_eq!(table.keys().collect::<Vec<_>>(), [key], "{line}");
        }
    }
}
