//! Links the unwinder of the compiler into the programs, as every compiler has it, in place of the shared `libgcc_s`: to load and
//! start that one is a tenth of what a delivery by an LDA costs.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src/build.rs");
    let is = |key, value: &str| env::var(key).is_ok_and(|it| it == value);
    if !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") {
        return Ok(());
    }
    let directory = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    let directory = Path::new(&directory);
    // The standard library asks for `gcc_s`: this is found first, and names what is linked instead.
    fs::write(directory.join("libgcc_s.so"), "INPUT(-lgcc_eh -lgcc)\n")?;
    println!("cargo::rustc-link-search=native={}", directory.display());
    Ok(())
}
