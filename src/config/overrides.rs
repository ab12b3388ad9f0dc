//! Settings of the command line (`-o delivery.detail=ignore`) over those of the file.
//!
//! They are written below the file's text, each parsed at its place there: an error in one has its line and caret too.

use toml::de::{DeTable, DeValue, Error};

/// The file's text, and the settings that follow it.
pub struct Overrides {
    /// All of it: what the places of problems point into.
    pub text: String,
    file: usize,
    /// Each with as many line ends before it as the text has bytes.
    settings: Vec<String>,
}

impl Overrides {
    /// `settings`: `key=value`. A value that is no TOML is a string.
    pub fn new(file: &str, settings: &[String]) -> Overrides {
        let mut text = file.to_owned();
        let mut placed = Vec::new();
        for setting in settings {
            let line = line(setting);
            text.push_str("\n# from the command line:\n");
            placed.push("\n".repeat(text.len()) + &line);
            text.push_str(&line);
        }
        Overrides {
            text,
            file: file.len(),
            settings: placed,
        }
    }

    /// The file's table with the settings over it, and every error of syntax in either. Places count in `text`.
    pub fn parse(&self) -> (DeTable<'_>, Vec<Error>) {
        let (table, mut errors) = DeTable::parse_recoverable(&self.text[..self.file]);
        let mut table = table.into_inner();
        for setting in &self.settings {
            let (over, more) = DeTable::parse_recoverable(setting);
            errors.extend(more);
            lay_over(&mut table, over.into_inner());
        }
        (table, errors)
    }
}

fn line(setting: &str) -> String {
    let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
    let as_it_is = format!("{key} = {value}");
    match DeTable::parse(&as_it_is) {
        Ok(_) => as_it_is,
        Err(_) => format!("{key} = {}", toml::Value::from(value)),
    }
}

fn lay_over<'a>(below: &mut DeTable<'a>, above: DeTable<'a>) {
    for (key, mut value) in above {
        if let Some(old) = below.get_mut(&key) {
            match (old.get_mut(), value.get_mut()) {
                (DeValue::Table(old), DeValue::Table(new)) => lay_over(old, std::mem::take(new)),
                _ => *old = value,
            }
        } else {
            below.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::deliver::settings::Detail;

    fn load(file: &str, settings: &[&str]) -> Result<Config, String> {
        let settings: Vec<String> = settings.iter().map(|it| it.to_string()).collect();
        Config::parse("c.toml", file, &settings, None).map_err(|errors| errors.to_string())
    }

    #[test]
    fn the_command_line_wins() {
        let file = "hostname = \"a\"\n[delivery]\ndetail = \"private\"\nmax_mailboxes = 5";
        for (settings, hostname, detail, mailboxes) in [
            (&[][..], "a", Detail::Private, 5),
            (&["hostname=b"], "b", Detail::Private, 5),
            (
                &["delivery.detail=ignore", "delivery.max_mailboxes=7"],
                "a",
                Detail::Ignore,
                7,
            ),
            (
                &["delivery.detail=ignore", "delivery.detail=\"mailbox\""],
                "a",
                Detail::Mailbox,
                5,
            ),
        ] {
            let config = load(file, settings).unwrap().delivery;
            assert_eq!(
                (
                    config.hostname.as_str(),
                    config.detail,
                    config.max_mailboxes
                ),
                (hostname, detail, mailboxes)
            );
        }
        assert_eq!(load("", &["hostname=c"]).unwrap().delivery.hostname, "c");
    }

    #[test]
    fn errors_have_their_place() {
        for (setting, want) in [
            ("hostnam=b", "hostnam = \"b\""),
            ("delivery.detail=x", "delivery.detail = \"x\""),
            ("hostname", "hostname = \"\""),
            ("=b", "= \"b\""),
        ] {
            match load("hostname = \"a\"\n", &[setting]) {
                Ok(_) => assert_eq!(setting, "hostname"),
                Err(errors) => assert!(errors.contains(want), "{errors}"),
            }
        }
    }
}
