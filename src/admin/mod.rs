//! What the admin's command does: `postroom explain`, `check`, `doctor`, `acl`, `share`, `config show`, `config import`,
//! `status`, `user`, `demo`, `completions`.

pub mod acl;
pub mod check;
pub mod completions;
pub mod config_import;
pub mod config_show;
pub mod demo;
pub mod doctor;
pub mod explain;
pub mod share;
pub mod status;
pub mod user;

use std::io::{self, Write};
use std::path::Path;

use crate::config::{self, Config};
use crate::deliver::Settings;
use crate::sys::dir;

/// The configuration. A wrong one is told on stderr, and is exit code 78.
fn load(path: Option<&Path>) -> Result<Config, u8> {
    config::load(path).map_err(|errors| {
        // Nobody may be there to read it; the exit code says it too.
        let _ = write!(io::stderr(), "{errors}");
        78
    })
}

/// While one of [`Settings::required_paths`] is missing mailboxes are not where they belong.
fn check_required_paths(settings: &Settings) -> Result<(), String> {
    settings.required_paths.iter().try_for_each(|path| {
        let failed = |error| format!("the required path {}: {error}", path.display());
        dir::stat(path).map(drop).map_err(failed)
    })
}
