//! The one rule of the layout: use only what stands below you.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// From top to bottom; those in one row do not know each other.
const LAYERS: [&[&str]; 14] = [
    &["bin"],
    &["socketmap", "handover", "status"],
    &["lmtp", "lda", "admin"],
    &["import"],
    &["config"],
    &["run"],
    &["deliver"],
    &["user", "sharing"],
    &["maildir", "mbox", "index"],
    &["mailbox"],
    &["message"],
    &["database"],
    &["observe"],
    &["fault", "log", "text", "sys"],
];

/// Said in the layers and not kept: each has its reason.
const EXCEPTIONS: [(&str, &str); 3] = [
    // The config builds the settings of the LMTP server.
    ("config", "lmtp"),
    // The demo runs a server.
    ("admin", "lmtp"),
    // What an errno means is asked of `sys`.
    ("fault", "sys"),
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false => found.push(path),
        }
    }
}

/// The top modules that a file names: `crate::X`, `postroom::X`, in code, not in comments.
fn named(text: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for line in text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
    {
        for root in ["crate::", "postroom::"] {
            for (at, _) in line.match_indices(root) {
                let name: String = line[at + root.len()..]
                    .chars()
                    .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                    .collect();
                modules.insert(name);
            }
        }
    }
    modules
}

/// Without the tests in it; a test-only item further up hides nothing.
fn code(text: &str) -> &str {
    let inline = ["mod tests {", "pub mod tests {", "pub(crate) mod tests {"];
    let starts = inline
        .iter()
        .filter_map(|it| text.find(&format!("#[cfg(test)]\n{it}")));
    &text[..starts.min().unwrap_or(text.len())]
}

#[test]
fn modules_use_what_stands_below_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for file in files {
        let below = file.strip_prefix(&root).unwrap();
        let first = below.iter().next().unwrap().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        // Tests of the whole may name everything; what builds the crate is not of it.
        if ["lib", "every_step_fails", "build"].contains(&module) {
            continue;
        }
        let Some(own) = layer(module) else {
            wrong.push(format!("{} is in no layer", below.display()));
            continue;
        };
        let text = fs::read_to_string(&file).unwrap();
        let code = code(&text);
        assert!(
            !code.contains("crate::{"),
            "{}: name each module",
            below.display()
        );
        for other in named(code) {
            let Some(there) = layer(&other) else { continue };
            if other == module || there > own {
                continue;
            }
            match EXCEPTIONS.contains(&(module, other.as_str())) {
                true => drop(used.insert((module.to_owned(), other))),
                false => wrong.push(format!("{} uses {other}", below.display())),
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    let idle = EXCEPTIONS
        .iter()
        .filter(|(from, to)| !used.contains(&(from.to_string(), to.to_string())));
    assert_eq!(
        idle.collect::<Vec<_>>(),
        Vec::<&(&str, &str)>::new(),
        "exceptions that nobody needs"
    );
}

/// One place, which hands its arguments over as they are: no shell, and nothing of this process's environment.
#[test]
fn programs_are_run_in_one_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let place = root.join("sys/program.rs");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code = code(&text);
        let words = [
            "process::Command",
            "Command, Stdio",
            "exec(",
            "execv",
            "posix_spawn",
            "fexecve",
        ];
        if file == place {
            assert!(code.contains("Command::new(program)") && code.contains(".env_clear()"));
            assert!(!code.contains("/sh\""), "a shell");
        } else if !file.ends_with("every_step_fails.rs") && !file.ends_with("tests.rs") {
            for word in words {
                assert!(!code.contains(word), "{} has {word}", file.display());
            }
        }
    }
}

#[test]
fn unsafe_code_and_system_calls_are_in_sys() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files
        .iter()
        .filter(|file| !file.starts_with(root.join("sys")))
    {
        let text = fs::read_to_string(file).unwrap();
        for word in ["libc::", " nix::", "(nix::", "unsafe {", "unsafe fn"] {
            assert!(!text.contains(word), "{} has {word}", file.display());
        }
    }
}
