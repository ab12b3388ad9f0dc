//! The documents say what the programs do.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{installed, program, skip};

fn project(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

#[test]
fn manual_pages_are_well_formed() {
    if !installed("mandoc") {
        skip("mandoc is not installed");
        return;
    }
    for entry in fs::read_dir(project("man")).unwrap() {
        let page = entry.unwrap().path();
        let lint = Command::new("mandoc")
            .args(["-T", "lint", "-W", "warning"])
            .arg(&page)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&lint.stdout);
        assert!(lint.status.success(), "{}: {said}", page.display());
    }
}

#[test]
fn every_setting_is_in_the_manual_and_in_the_example() {
    let config = project("contrib/postroom.toml");
    let output = program("postroom")
        .arg("-c")
        .arg(&config)
        .args(["config", "show", "--all"])
        .output()
        .unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let manual = fs::read_to_string(project("man/postroom.toml.5")).unwrap();
    let example = fs::read_to_string(&config).unwrap();
    let keys = shown.lines().filter_map(|line| line.split(" = ").next());
    let names: Vec<&str> = keys.filter_map(|key| key.rsplit('.').next()).collect();
    assert!(names.len() > 30, "{shown}");
    for name in names {
        assert!(manual.contains(name), "{name} is not in postroom.toml(5)");
        assert!(
            example.contains(name),
            "{name} is not in contrib/postroom.toml"
        );
    }
}

#[test]
fn every_option_is_in_its_manual_page() {
    for (name, arguments, page) in [
        ("postroom-lda", &[][..], "postroom-lda.1"),
        ("postroom-lmtpd", &[], "postroom-lmtpd.8"),
        ("postroom", &[], "postroom.1"),
        ("postroom", &["explain"], "postroom.1"),
        ("postroom", &["config", "show"], "postroom.1"),
        ("postroom", &["doctor"], "postroom.1"),
        ("postroom", &["demo"], "postroom.1"),
    ] {
        let output = program(name)
            .args(arguments)
            .arg("--help")
            .output()
            .unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let manual = fs::read_to_string(project("man").join(page)).unwrap();
        let lines = help
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with('-'));
        let words = lines.flat_map(|line| line.split([' ', ',']).take(3));
        for option in words.filter(|word| word.starts_with('-')) {
            let macro_call = format!("Fl {}", &option[1..]);
            assert!(
                manual.contains(&macro_call),
                "{name}: {option} is not in {page}"
            );
        }
    }
}
