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
    // Each is an item with a type.
    let items = manual
        .lines()
        .filter_map(|line| line.strip_prefix(".It Cm ")?.split_once(" Pq "));
    let items: Vec<&str> = items.flat_map(|(keys, _)| keys.split([' ', ','])).collect();
    for name in names {
        assert!(items.contains(&name), "{name} is not in postroom.toml(5)");
        assert!(
            example.contains(name),
            "{name} is not in contrib/postroom.toml"
        );
    }
}

#[test]
fn every_option_and_command_is_in_its_manual_page() {
    for (name, page) in [
        ("postroom", "postroom.1"),
        ("postroom-lda", "postroom-lda.1"),
        ("postroom-lmtpd", "postroom-lmtpd.8"),
    ] {
        let manual = fs::read_to_string(project("man").join(page)).unwrap();
        let mut missing = Vec::new();
        let seen = compare(name, &mut Vec::new(), &manual, &mut missing);
        assert_eq!(missing, Vec::<String>::new(), "not in {page}");
        assert!(seen > 3, "{name}: {seen}");
    }
}

/// What the help of a command names and its manual does not tell of, and so for those below it. Answers how much is named.
fn compare(name: &str, path: &mut Vec<String>, manual: &str, missing: &mut Vec<String>) -> usize {
    let output = program(name).args(&*path).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{name} {path:?}: {help}");
    let own = path.first().map(|command| about(command, manual));
    let (options, commands) = (options(&help), commands(&help));
    for option in &options {
        // Those of all commands are told of once.
        let is_common = ["-c", "--config", "-h", "--help"].contains(&option.as_str());
        let place = own.as_deref().filter(|_| !is_common).unwrap_or(manual);
        if !has_word(place, "Fl", &option[1..]) {
            missing.push(format!("{name} {path:?}: {option}"));
        }
    }
    for command in &commands {
        if !has_word(own.as_deref().unwrap_or(manual), "Cm", command) {
            missing.push(format!("{name} {path:?}: {command}"));
        }
        path.push(command.clone());
        compare(name, path, manual, missing);
        path.pop();
    }
    options.len() + commands.len()
}

/// What a manual says about a command: its lines of the synopsis, and the items that begin with it.
fn about(command: &str, manual: &str) -> String {
    let (before, behind) = manual.split_once(".Sh DESCRIPTION").unwrap();
    let lines = before.split("\n.Nm\n").filter(|it| {
        let first = it.lines().find(|line| line.starts_with(".Cm"));
        first.is_some_and(|line| has_word(line, "Cm", command))
    });
    let (behind, _) = behind.split_once(".Sh ").unwrap();
    // The options of a command are a list in its item.
    let items = behind.split("\n.It Cm ").skip(1);
    let items = items.filter(|it| it.split_whitespace().next() == Some(command));
    lines.chain(items).map(|it| format!(".Cm {it}\n")).collect()
}

/// Whether a line with the macro `Fl` or `Cm` has this word behind it.
fn has_word(text: &str, name: &str, word: &str) -> bool {
    text.lines().any(|line| {
        let words = line.trim_start_matches('.').split_whitespace();
        words.skip_while(|it| *it != name).any(|it| it == word)
    })
}

/// `-c, --config <FILE>  The file`: `-c` and `--config`.
fn options(help: &str) -> Vec<String> {
    let lines = help
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with('-'));
    let words = lines.flat_map(|line| line.split([' ', ',']).take(3));
    words
        .filter(|word| word.starts_with('-'))
        .map(str::to_owned)
        .collect()
}

/// Those of the section `Commands:`, but `help`.
fn commands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    // Whatever stands further to the right goes on with a description.
    let names = lines.filter_map(|line| {
        line.strip_prefix("  ")?
            .split_whitespace()
            .next()
            .filter(|_| !line.starts_with("   "))
    });
    names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// The scripts are for the shells, and bash, which is everywhere, completes with them.
#[test]
fn completions() {
    let script = |words: &[&str]| {
        let output = program("postroom")
            .arg("completions")
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for (shell, mark) in [
        ("bash", "complete -F _postroom"),
        ("zsh", "#compdef postroom"),
        ("fish", "complete -c postroom"),
        ("elvish", "set edit:completion:arg-completer[postroom"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        for program in ["postroom", "postroom-lda"] {
            let text = script(&[shell, program]);
            assert!(text.contains(mark), "{shell} {program}: {text}");
        }
    }
    for (program, line, want) in [
        ("postroom", "postroom ch", "check"),
        ("postroom", "postroom config s", "show"),
        ("postroom", "postroom acl get --js", "--json"),
        ("postroom", "postroom completions z", "zsh"),
        ("postroom-lda", "postroom-lda --dry", "--dry-run"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let last = words.len() - 1;
        let function = program.replace('-', "__");
        let ask = format!(
            "{}\nCOMP_WORDS=({line}); COMP_CWORD={last}\n_{function} {program} {} {}\necho \"${{COMPREPLY[@]}}\"",
            script(&["bash", program]),
            words[last],
            words[last - 1]
        );
        let output = Command::new("bash").args(["-c", &ask]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.trim(), want, "{line}: {output:?}");
    }
}

/// Each test, fuzz target and file that `contrib/SECURITY.md` names is there.
#[test]
fn tests_that_the_security_document_names() {
    let text = fs::read_to_string(project("contrib/SECURITY.md")).unwrap();
    let words: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    let mut count = 0;
    for (file, function) in words.iter().filter_map(|word| word.split_once("::")) {
        let text = fs::read_to_string(project(file)).unwrap_or_default();
        assert!(
            text.contains(&format!("fn {function}(")),
            "{file} has no {function}"
        );
        count += 1;
    }
    assert!(count > 200, "{count}");
    let is_file = |word: &&&str| word.starts_with("src/") || word.starts_with("tests/");
    for word in words.iter().filter(is_file) {
        let file = word.split([' ', ':']).next().unwrap();
        assert!(project(file).exists(), "{file}");
    }
    let lines = text.lines().filter_map(|line| line.split_once("fuzz: "));
    for (_, named) in lines {
        let named = named.split(['|', ';', '`']).next().unwrap();
        for target in named.split(',').map(str::trim) {
            let path = project(&format!("tests/fuzz/targets/{target}.rs"));
            assert!(path.exists(), "fuzz: {target}");
        }
    }
}

/// Each test that `contrib/DOVECOT.md` names is there.
#[test]
fn tests_that_the_documents_name() {
    let document = project("contrib/DOVECOT.md");
    let text = fs::read_to_string(&document).unwrap();
    let words = text.split('`').skip(1).step_by(2);
    let named: Vec<&str> = words.filter(|word| word.contains("::")).collect();
    assert!(named.len() > 40, "{named:?}");
    for name in named {
        let parts: Vec<&str> = name.split("::").collect();
        let (module, function) = (parts[0], parts[parts.len() - 1]);
        let within = parts[..parts.len() - 1].join("/");
        let above = parts[..parts.len().saturating_sub(2)].join("/");
        let files = [
            format!("tests/{module}.rs"),
            format!("tests/{within}.rs"),
            format!("src/{within}.rs"),
            format!("src/{above}.rs"),
        ];
        let found = files.iter().any(|file| {
            let text = fs::read_to_string(project(file)).unwrap_or_default();
            text.contains(&format!("fn {function}("))
        });
        assert!(found, "{name} is in none of {files:?}");
    }
}
