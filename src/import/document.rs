//! The TOML that comes out, with where each line comes from.

use std::fmt::{self, Write};

use super::block::Place;

/// Our configuration as it grows.
#[derive(Debug, Default)]
pub struct Document {
    text: String,
    /// What has to be mended by hand before the result says what Dovecot's file said.
    pub to_mend: Vec<String>,
    /// What an admin has to know.
    pub warnings: Vec<String>,
    /// What came from nowhere in the result: the reason, and the settings with it.
    left_out: Vec<(String, Vec<String>)>,
}

impl Document {
    /// `[namespace.inbox]`, or `[[userdb]]`.
    pub fn table(&mut self, header: &str) {
        let _ = writeln!(self.text, "\n{header}");
    }

    pub fn comment(&mut self, text: &str) {
        for line in wrapped(text) {
            let _ = writeln!(self.text, "# {line}");
        }
    }

    /// A line with its origin.
    pub fn set(&mut self, key: &str, value: impl Into<toml::Value>, origin: &Place) {
        let value = value.into();
        let _ = writeln!(self.text, "{} = {value}  # {origin}", quoted(key));
    }

    /// What Dovecot does where nothing is said, and we do something else.
    pub fn usual(&mut self, key: &str, value: impl Into<toml::Value>) {
        let value = value.into();
        let _ = writeln!(self.text, "{key} = {value}  # as Dovecot does");
    }

    /// A line whose right side is TOML.
    pub fn line(&mut self, text: &str) {
        let _ = writeln!(self.text, "{text}");
    }

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

    pub fn leave_out(&mut self, setting: String, why: &str) {
        match self.left_out.iter_mut().find(|(known, _)| known == why) {
            Some((_, settings)) if settings.contains(&setting) => {}
            Some((_, settings)) => settings.push(setting),
            None => self.left_out.push((why.to_owned(), vec![setting])),
        }
    }

    /// All that was left out, each with its reason.
    pub fn finish(&mut self) {
        if self.left_out.is_empty() {
            return;
        }
        self.text.push_str("\n# Left out, and why:\n");
        for (why, settings) in std::mem::take(&mut self.left_out) {
            self.comment(&format!("{why}: {}", settings.join(", ")));
        }
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
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
        false => toml::Value::from(key).to_string(),
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
