//! `postroom config import`: Dovecot's configurations, whole ones, broken ones, and what comes out of them.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use postroom::import::{self, Imported};
use support::peers::{VERSIONS, Version, doveconf};
use support::{Scratch, program, skip};

/// The configurations below `tests/import/FOLDER`, by their names.
fn configurations(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/import")
        .join(folder);
    let mut found: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "conf"))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{}", folder.display());
    found
}

/// Numbers that look random and are the same each time (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

/// A line dropped, doubled or cut, or a byte changed.
fn mutated(bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    let lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
    let at = dice.below(lines.len());
    let mut out: Vec<&[u8]> = lines.clone();
    match dice.below(4) {
        0 => drop(out.remove(at)),
        1 => out.insert(at, lines[at]),
        2 => out[at] = &lines[at][..dice.below(lines[at].len())],
        _ => {
            let mut bytes = bytes.to_vec();
            let at = dice.below(bytes.len());
            let letters = b"\"'#{}=$%<\\!/ \t\r\n\0ax0\xff";
            bytes[at] = letters[dice.below(letters.len())];
            return bytes;
        }
    }
    out.concat()
}

/// What is said, without the numbers of lines.
fn said(imported: &Imported) -> BTreeSet<String> {
    let all = imported.warnings.iter().chain(&imported.to_mend);
    all.map(|text| text.chars().filter(|c| !c.is_ascii_digit()).collect())
        .collect()
}

fn version_of(text: &str) -> Version {
    match text.contains("dovecot_config_version") {
        true => Version::V24,
        false => Version::V23,
    }
}

/// Neither a panic nor a hang; and what Dovecot does not take is not taken without a word.
#[test]
fn broken_configurations() {
    if !VERSIONS.iter().all(|&version| doveconf(version).is_some()) {
        skip("doveconf of both versions is not here");
        return;
    }
    let scratch = Scratch::new();
    let files: Vec<PathBuf> = ["seeds", "sites", "shipped"]
        .iter()
        .flat_map(|folder| configurations(folder))
        .filter(|path| !path.to_string_lossy().ends_with(".rejected.conf"))
        .collect();
    let texts: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    let path = scratch.path("dovecot.conf");
    let usual: Vec<BTreeSet<String>> = texts
        .iter()
        .map(|text| {
            fs::write(&path, text).unwrap();
            import::import(&path)
                .map(|it| said(&it))
                .unwrap_or_default()
        })
        .collect();
    // This doveconf may lack what a package brings.
    let lacking: Vec<bool> = texts
        .iter()
        .map(|text| {
            fs::write(&path, text).unwrap();
            let version = version_of(&String::from_utf8_lossy(text));
            !doveconf_of(version, &path).status.success()
        })
        .collect();
    let known = lacking.iter().filter(|it| !**it).count();
    assert!(known > 25, "{known} configurations can be compared");
    let mut dice = Dice(20_261_129);
    let (mut rejected, mut silent) = (0, 0);
    for round in 0..10_000 {
        let which = round % texts.len();
        let text = mutated(&texts[which], &mut dice);
        fs::write(&path, &text).unwrap();
        let imported = match import::import(&path) {
            Err(_) => {
                rejected += 1;
                continue;
            }
            Ok(imported) => imported,
        };
        if round % 20 == 0 {
            let toml = scratch.path("postroom.toml");
            fs::write(&toml, &imported.toml).unwrap();
            let code = postroom::admin::check::check(Some(&toml), Some(&path), &mut Vec::new());
            assert!(matches!(code.unwrap(), 0 | 78));
        }
        if said(&imported).difference(&usual[which]).next().is_some() {
            continue;
        }
        if lacking[which] {
            continue;
        }
        silent += 1;
        let version = version_of(&String::from_utf8_lossy(&texts[which]));
        let output = doveconf_of(version, &path);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let words = error
            .lines()
            .filter(|line| is_syntax(line) && !is_elsewhere(line, &imported.toml));
        let words: Vec<&str> = words.collect();
        let said = error_line(&words, &text);
        assert!(
            words.is_empty(),
            "{}, round {round}: {words:?}\n{said:?}\n{}",
            files[which].display(),
            String::from_utf8_lossy(&text)
        );
    }
    eprintln!("{rejected} rejected, {silent} taken without a word");
    assert!(rejected > 500 && silent > 500, "{rejected} {silent}");
}

/// Whether a line of doveconf's is about how the file is written, not about what a value is.
fn is_syntax(line: &str) -> bool {
    let words = [
        "Expecting",
        "Garbage after",
        "Unexpected '}'",
        "Missing '}'",
        "not allowed here",
        "missing section name",
        "Unknown section",
        "Unknown setting",
        "must be dovecot_config_version",
    ];
    words.iter().any(|it| line.contains(it))
}

/// Misspelt where nothing is of a delivery: the result names it, or its section, among what was left out.
fn is_elsewhere(line: &str, toml: &str) -> bool {
    let Some((_, name)) = line.split_once("Unknown setting: ") else {
        return false;
    };
    let sections = [
        "passdb {",
        "service {",
        "protocol imap",
        "(passdb_",
        "(service_",
        "_listener_",
    ];
    let key = name.split(" (").next().unwrap_or(name);
    let key = key.rsplit("{ ").next().unwrap_or(key);
    let is_named = toml.replace("\n#   ", " ").contains(&format!("{key} ("));
    is_named || sections.iter().any(|it| line.contains(it))
}

fn doveconf_of(version: Version, path: &Path) -> Output {
    doveconf(version).unwrap().show(path)
}

/// Each line of a whole configuration has become one of ours, or its reason is said.
#[test]
fn whole_configurations() {
    let scratch = Scratch::new();
    for folder in ["shipped", "sites", "seeds"] {
        for path in configurations(folder) {
            let mut import = program("postroom");
            let output = import
                .args(["config", "import"])
                .arg(&path)
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            let toml = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                matches!(output.status.code(), Some(0)),
                "{}: {error}",
                path.display()
            );
            assert!(
                !error.contains("not known to Postroom"),
                "{}: {error}",
                path.display()
            );
            let file = scratch.path("postroom.toml");
            fs::write(&file, &toml).unwrap();
            explained(&path, &toml);
        }
    }
}

/// Every line with a setting is named by the result, as `file:line`.
fn explained(path: &Path, toml: &str) {
    let text = fs::read_to_string(path).unwrap();
    let mut missing = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        let is_setting = line.contains('=') && !line.starts_with('#');
        let place = format!("{}:{}", name_of(path), at + 1);
        let after = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_digit());
        let named = toml
            .match_indices(&place)
            .any(|(at, _)| after(&toml[at + place.len()..]));
        if is_setting && !named {
            missing.push((at + 1, line.to_owned()));
        }
    }
    // A section that is left out, or taken, as a whole is named by the line that it begins in.
    missing.retain(|(line, _)| !within_named(path, &text, toml, *line));
    assert!(
        missing.is_empty(),
        "{}: {missing:#?}\n{toml}",
        path.display()
    );
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn within_named(path: &Path, text: &str, toml: &str, line: usize) -> bool {
    let mut open: Vec<usize> = Vec::new();
    for (at, text) in text.lines().enumerate().take(line) {
        let text = text.split(" #").next().unwrap_or(text).trim();
        if text.starts_with('#') {
            continue;
        }
        match (text.ends_with('{'), text == "}") {
            (true, _) => open.push(at + 1),
            (_, true) => drop(open.pop()),
            _ => {}
        }
    }
    open.iter().any(|at| {
        let place = format!("{}:{at}", name_of(path));
        let after = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_digit());
        toml.match_indices(&place)
            .any(|(from, _)| after(&toml[from + place.len()..]))
    })
}

/// The line that doveconf names.
fn error_line(words: &[&str], text: &[u8]) -> String {
    let number = words
        .first()
        .and_then(|it| it.split(" line ").nth(1)?.split(':').next()?.parse().ok());
    let line = number.and_then(|at: usize| text.split(|&byte| byte == b'\n').nth(at - 1));
    String::from_utf8_lossy(line.unwrap_or_default()).into_owned()
}
