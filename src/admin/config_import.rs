//! `postroom config import`: Dovecot's configuration as ours.

use std::io::{self, Write};
use std::path::Path;

use crate::import;

/// Prints our configuration; what an admin has to know is on stderr, and what is left to mend. Exit 0, 78 where something is.
pub fn run(file: &Path, out: &mut impl Write) -> io::Result<u8> {
    let imported = match import::import(file) {
        Ok(imported) => imported,
        Err(error) => {
            writeln!(io::stderr(), "error: {error}")?;
            return Ok(78);
        }
    };
    out.write_all(imported.toml.as_bytes())?;
    let mut stderr = io::stderr().lock();
    for warning in &imported.warnings {
        writeln!(stderr, "warning: {warning}")?;
    }
    for left in &imported.to_mend {
        writeln!(stderr, "to mend: {left}")?;
    }
    Ok(if imported.to_mend.is_empty() { 0 } else { 78 })
}
