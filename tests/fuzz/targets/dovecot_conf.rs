//! Dovecot's configuration: whatever it is, the import ends, and what it prints is TOML.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use postroom::import;
use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = tempfile::tempdir().unwrap();
}

fuzz_target!(|bytes: &[u8]| {
    // What lies elsewhere on this machine is not part of the input.
    if bytes.contains(&b'<')
        || bytes.windows(8).any(|it| it == b"!include")
        || bytes.windows(7).any(|it| it == b"/dovecot")
    {
        return;
    }
    FOLDER.with(|folder| {
        let path = folder.path().join("dovecot.conf");
        fs::write(&path, bytes).unwrap();
        if let Ok(imported) = import::import(&path) {
            let parsed = imported.toml.parse::<toml::Table>();
            assert!(parsed.is_ok(), "{parsed:?}\n{}", imported.toml);
        }
    });
});
