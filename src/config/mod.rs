//! The configuration: read, checked, defaults filled in. It builds the settings of everything below it; nothing below
//! names it.

mod file;
mod listeners;
pub mod mail_location;
mod map;
mod observe;
mod overrides;
mod own;
mod placement;
mod places;
mod quota;
pub mod report;
mod rights;
mod section;
mod users;
mod workers;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use listeners::LdaServer;
use overrides::Overrides;
pub use report::{Errors, Problem};
pub use section::Setting;
use section::{Notes, Section};
pub use workers::{Isolation, Workers};

use crate::deliver;
use crate::deliver::settings::OwnNamespaces;
use crate::lmtp::{self, Listen};
use crate::observe::hook;
use crate::sharing::SharingMap;
use crate::sys::credentials;

/// Where the file is without `-c` and `$POSTROOM_CONFIG`.
pub const DEFAULT_PATH: &str = "/etc/postroom/postroom.toml";

/// Everything that a program needs to know.
#[derive(Debug)]
pub struct Config {
    pub delivery: deliver::Settings,
    pub lmtp: lmtp::Settings,
    /// Where Postfix asks about recipients.
    pub socketmap: Vec<Listen>,
    pub service: Service,
    pub workers: Workers,
    /// Where LDAs hand over what they may not store.
    pub lda_server: LdaServer,
    /// Where the server shows what it does.
    pub status: Vec<Listen>,
    /// Who is told of new messages.
    pub notify: hook::Settings,
    /// None: nobody is told who shares what.
    pub sharing_map: Option<SharingMap>,
    /// The file; none for the built-in defaults.
    pub path: Option<PathBuf>,
    /// Every setting with its origin; none where they were [loaded for one delivery](load_with).
    pub settings: Vec<Setting>,
    /// What is odd and does not stop anybody.
    pub warnings: Option<Errors>,
}

/// Whom a server of one process that was started by root becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub mail_uid: Option<u32>,
    pub mail_gid: Option<u32>,
    /// `mail_access_groups`
    pub groups: Vec<u32>,
    /// `mail_privileged_group`
    pub privileged: Option<u32>,
}

/// The file that is to be read, where somebody names one: `path` (`-c`), else `$POSTROOM_CONFIG`.
pub fn named(path: Option<&Path>) -> Option<PathBuf> {
    path.map(Path::to_owned)
        .or_else(|| std::env::var_os("POSTROOM_CONFIG").map(PathBuf::from))
}

/// `path` (`-c`), else `$POSTROOM_CONFIG`, else [`DEFAULT_PATH`]. Only where the last does not exist, and for an
/// ordinary user, the built-in defaults serve: a wrong file is never silently replaced by a default.
pub fn load(path: Option<&Path>) -> Result<Config, Errors> {
    read(path, Config::from_str)
}

/// [`load`], with settings of the command line (`key=value`, `table.key=value`) in place of those of the file, for one delivery:
/// without [`Config::settings`].
pub fn load_with(path: Option<&Path>, overrides: &[String]) -> Result<Config, Errors> {
    read(path, |name, text| {
        Config::parse(name, text, overrides, None)
    })
}

fn read(
    path: Option<&Path>,
    parse: impl Fn(&str, &str) -> Result<Config, Errors>,
) -> Result<Config, Errors> {
    let named = named(path);
    let path = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
    let shown = path.display().to_string();
    match fs::read_to_string(&path) {
        Ok(text) => parse(&shown, &text).map(|config| Config {
            path: Some(path),
            ..config
        }),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                && named.is_none()
                && !credentials::is_root() =>
        {
            parse("built-in", "")
        }
        Err(error) => {
            let advice = "give a file that can be read: -c FILE, or $POSTROOM_CONFIG";
            Err(Errors::unreadable(
                &shown,
                format!("cannot read the configuration {shown}: {error}"),
                advice,
            ))
        }
    }
}

impl Config {
    /// Reads a file's text. All errors at once; without one, the warnings are in the config.
    pub fn from_str(name: &str, text: &str) -> Result<Config, Errors> {
        Config::parse(name, text, &[], Some(RefCell::default()))
    }

    fn parse(
        name: &str,
        file: &str,
        overrides: &[String],
        settings: Option<RefCell<Vec<Setting>>>,
    ) -> Result<Config, Errors> {
        let overrides = Overrides::new(file, overrides);
        let text = overrides.text.as_str();
        let notes = Notes {
            text,
            problems: Default::default(),
            settings,
        };
        let (table, syntax) = overrides.parse();
        if !syntax.is_empty() {
            let problems = syntax.iter().map(|error| Problem {
                message: error.message().to_owned(),
                advice: None,
                place: error.span().unwrap_or(0..0),
                is_warning: false,
            });
            return Err(Errors {
                file: name.into(),
                text: text.into(),
                problems: problems.collect(),
            });
        }
        let mut config = file::read(&Section::root(&notes, &table));
        let mut problems = notes.problems.take();
        problems.sort_by_key(|problem| problem.place.start);
        let errors = Errors {
            file: name.into(),
            text: text.into(),
            problems,
        };
        config.settings = notes.settings.map(RefCell::into_inner).unwrap_or_default();
        let usual = Arc::clone(&config.delivery.namespaces);
        config.delivery.own = OwnNamespaces::new(own::maker(text.to_owned(), usual));
        match (errors.is_fatal(), errors.problems.is_empty()) {
            (true, _) => Err(errors),
            (false, true) => Ok(config),
            (false, false) => Ok(Config {
                warnings: Some(errors),
                ..config
            }),
        }
    }

    /// Passwd users, `~/Maildir`, one private namespace.
    pub fn built_in() -> Config {
        match Config::from_str("built-in", "") {
            Ok(config) => config,
            Err(errors) => unreachable!("the defaults are a correct config: {errors}"),
        }
    }
}
