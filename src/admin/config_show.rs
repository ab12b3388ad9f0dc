//! `postroom config show`: what is set, and where.

use std::io::{self, Write};
use std::path::Path;

/// Prints the settings of the file, with `all` the defaults too; with `key` that one, or those below it. Exit 0, 67 for
/// an unknown key, 78 for a wrong config.
pub fn show(
    path: Option<&Path>,
    all: bool,
    key: Option<&str>,
    out: &mut impl Write,
) -> io::Result<u8> {
    let config = match super::load(path) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let file = config
        .path
        .as_ref()
        .map_or("built-in".into(), |path| path.display().to_string());
    let below = |setting: &str, key: &str| {
        setting == key
            || setting
                .strip_prefix(key)
                .is_some_and(|rest| rest.starts_with('.'))
    };
    let mut found = false;
    for setting in &config.settings {
        if !key.is_none_or(|key| below(&setting.key, key)) {
            continue;
        }
        found = true;
        match setting.line {
            Some(line) => writeln!(out, "{} = {}  # {file}:{line}", setting.key, setting.value)?,
            None if all || key.is_some() => {
                writeln!(out, "{} = {}  # default", setting.key, setting.value)?
            }
            None => {}
        }
    }
    if let Some(key) = key.filter(|_| !found) {
        writeln!(out, "there is no setting {key:?}, or it has no value")?;
        return Ok(67);
    }
    Ok(0)
}
