//! `postroom-lda` as an MTA, a `.forward` or a human calls it: arguments, environment and stdin in; exit code, stderr
//! and mailboxes out.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use support::{
    MAIL, Store, as_user, children_of, installed, messages, messages_below, not_root, program,
    run_with_input, skip, wait_until,
};

const MESSAGE: &[u8] = b"Subject: hello\n\nbody\n";

/// postroom-lda as the mail user, with this environment.
fn lda(store: &Store, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = program("postroom-lda");
    command.arg("-c").arg(store.path("postroom.toml"));
    command.args(arguments).envs(environment.iter().copied());
    command.env("POSTROOM_LOG", "json");
    as_user(&mut command, MAIL, MAIL, &[]);
    command
}

fn exit_code(output: &Output) -> i32 {
    output.status.code().expect("never by a signal")
}

/// The lines on stderr that begin with an enhanced status code.
fn said(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let is_status = |line: &&str| line.starts_with(['4', '5']);
    text.lines().filter(is_status).map(str::to_owned).collect()
}

fn bodies(folder: &Path) -> Vec<String> {
    let found = messages(folder).into_iter();
    found
        .map(|(_, bytes)| String::from_utf8(bytes).unwrap())
        .collect()
}

#[test]
fn arguments_and_what_becomes_of_the_message() {
    // arguments, environment, exit code, stderr, the mailbox that has it
    type Case = (
        &'static [&'static str],
        &'static [(&'static str, &'static str)],
        i32,
        &'static str,
        &'static str,
    );
    const ALICE: &str = "home/alice/Maildir";
    const WORK: &str = "home/alice/Maildir/.Work";
    let cases: &[Case] = &[
        (&["-d", "alice"], &[], 0, "", ALICE),
        (
            &[
                "-e", "-k", "-d", "alice", "-f", "a@b", "-a", "x@y", "-r", "alice@y",
            ],
            &[],
            0,
            "",
            ALICE,
        ),
        (&["-d", "alice", "-m", "Work"], &[], 0, "", WORK),
        (&["-d", "alice", "-m", ""], &[], 0, "", ALICE),
        (&["-d", "alice", "-m", "inbox"], &[], 0, "", ALICE),
        (
            &["-d", "alice", "-m", "Spam"],
            &[],
            0,
            "",
            "home/alice/Maildir/.Spam",
        ),
        (&["-d", "alice", "-m", "Nowhere"], &[], 0, "", ALICE),
        (
            &["-d", "alice", "-m", "Public/info"],
            &[],
            0,
            "",
            "public/.info",
        ),
        (
            &["-d", "alice", "-m", "shared/bob/Projects"],
            &[],
            0,
            "",
            "home/bob/Maildir/.Projects",
        ),
        (&["-d", "alice"], &[("EXTENSION", "Work")], 0, "", WORK),
        (
            &["-d", "alice", "-m", "Work"],
            &[("EXTENSION", "Spam")],
            0,
            "",
            WORK,
        ),
        (
            &["alice+Work@example.test"],
            &[("EXTENSION", "Spam")],
            0,
            "",
            WORK,
        ),
        (&["--", "alice@example.test"], &[], 0, "", ALICE),
        (
            &[
                "-d",
                "alice",
                "-o",
                "delivery.on_missing=create",
                "-m",
                "New",
            ],
            &[],
            0,
            "",
            "home/alice/Maildir/.New",
        ),
        (
            &[
                "-d",
                "alice",
                "-o",
                "delivery.on_missing=reject",
                "-m",
                "Nowhere",
            ],
            &[],
            67,
            "5.1.1 <alice> No such mailbox",
            "",
        ),
        (
            &["-d", "nobody-here"],
            &[],
            67,
            "5.1.1 <nobody-here> No such user",
            "",
        ),
        (
            &["nobody-here@example.test"],
            &[],
            67,
            "5.1.1 <nobody-here@example.test> No such user",
            "",
        ),
        (
            &["-d", "alice", "-o", "delivery.message_size=10"],
            &[],
            77,
            "5.3.4 <alice> Message too big",
            "",
        ),
        (
            &[
                "-d",
                "alice",
                "-o",
                "delivery.on_denied=reject",
                "-m",
                "shared/carol",
            ],
            &[],
            0,
            "",
            ALICE,
        ),
        (
            &["-d", "alice", "-m", "a/../b"],
            &[],
            75,
            "4.3.0 <alice> Cannot tell where to deliver, try again later",
            "",
        ),
        (
            &["-d", "alice", "-o", "delivery.detial=ignore"],
            &[],
            75,
            "4.3.0 Cannot tell where to deliver, try again later",
            "",
        ),
        (
            &["-d", "alice", "-a", "a@b@c", "-r", "a b"],
            &[],
            0,
            "",
            ALICE,
        ),
        (&["-d", "Alice"], &[], 0, "", ALICE),
        (&["-d", "Alice@Example.test"], &[], 0, "", ALICE),
        (
            &["-d", ""],
            &[],
            75,
            "4.3.5 -d \"\": a user must be named",
            "",
        ),
        (&[""], &[], 75, "4.3.5 an empty RECIPIENT", ""),
        (
            &["a b@example.test"],
            &[],
            67,
            "5.1.3 No mailbox can have this address: \"a b@example.test\": ",
            "",
        ),
        (
            &["-d", "alice", "-n"],
            &[],
            75,
            "4.3.5 -n is dovecot-lda 1.x: set delivery.on_missing",
            "",
        ),
        (
            &["-d", "alice", "--keyword", "\\Work"],
            &[],
            75,
            "4.3.5 --keyword \"\\\\Work\" is no keyword",
            "",
        ),
        (
            &["-d", "alice", "--flag", "Work"],
            &[],
            75,
            "4.3.5 --flag \"Work\" is no system flag",
            "",
        ),
        (
            &["-d", "alice", "--flag", "\\seen", "--flag", "\\Flagged"],
            &[],
            0,
            "",
            ALICE,
        ),
        (
            &["-d", "alice", "-Q"],
            &[],
            75,
            "4.3.5 unexpected argument '-Q'",
            "",
        ),
        (&["-d", "alice", "bob@example.test"], &[], 75, "4.3.5 ", ""),
        (
            &["-d", "alice", "-p", "/nonexistent/mail"],
            &[],
            75,
            "4.2.0 Message could not be stored, try again later",
            "",
        ),
        (&["--help"], &[], 75, "", ""),
        (&["-V"], &[], 75, "", ""),
        (&["-d", "alice", "--dry-run"], &[], 75, "", ""),
    ];
    for (arguments, environment, code, stderr, folder) in cases {
        let store = Store::new();
        store.scratch.maildir(ALICE, MAIL, MAIL, 0o700);
        store.scratch.maildir(WORK, MAIL, MAIL, 0o700);
        store.configure("", "");
        let output = run_with_input(&mut lda(&store, arguments, environment), MESSAGE);
        let lines = said(&output);
        let case = format!(
            "{arguments:?} {environment:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(exit_code(&output), *code, "{case}");
        assert_eq!(lines.len(), usize::from(!stderr.is_empty()), "{case}");
        assert!(lines.iter().all(|line| line.starts_with(stderr)), "{case}");
        let everywhere = messages_below(&store.path(""));
        match folder.is_empty() {
            true => assert!(everywhere.is_empty(), "{case}"),
            false => {
                assert_eq!(everywhere.len(), 1, "{case}");
                assert_eq!(messages(&store.path(folder)).len(), 1, "{case}");
                assert_eq!(everywhere[0].1, MESSAGE);
            }
        }
    }
}

#[test]
fn what_the_log_says_of_sender_and_recipients() {
    let store = Store::new();
    store.configure("", "");
    // arguments, environment, stdin, what the log line holds
    type Case = (
        &'static [&'static str],
        &'static [(&'static str, &'static str)],
        &'static [u8],
        &'static [&'static str],
    );
    let cases: &[Case] = &[
        (
            &["-f", "a@b"],
            &[("SENDER", "c@d")],
            b"From e@f Mon\nx\n",
            &["\"from\":\"a@b\""],
        ),
        (
            &[],
            &[("SENDER", "c@d")],
            b"From e@f Mon\nx\n",
            &["\"from\":\"c@d\""],
        ),
        (&[], &[], b"From e@f Mon\nx\n", &["\"from\":\"e@f\""]),
        (&["-f", ""], &[], b"x\n", &["\"from\":\"\""]),
        (
            &["-f", "<>"],
            &[("SENDER", "c@d")],
            b"x\n",
            &["\"from\":\"\""],
        ),
        (&["-f", "not an address"], &[], b"x\n", &["\"from\":\"\""]),
        (
            &["-a", "<old@x>"],
            &[("ORIGINAL_RECIPIENT", "o@y")],
            b"x\n",
            &["\"orcpt\":\"old@x\""],
        ),
        (
            &[],
            &[("ORIGINAL_RECIPIENT", "o@y")],
            b"Message-ID: <1@x>\n\n",
            &["\"orcpt\":\"o@y\"", "\"msgid\":\"<1@x>\""],
        ),
    ];
    for (arguments, environment, stdin, want) in cases {
        let arguments = [&["-d", "carol"], *arguments].concat();
        let output = run_with_input(&mut lda(&store, &arguments, environment), stdin);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(exit_code(&output), 0, "{log}");
        assert!(
            want.iter().all(|part| log.contains(part)),
            "{arguments:?}: {log}"
        );
        assert_eq!(log.lines().count(), 1, "one line per recipient: {log}");
    }
}

#[test]
fn a_message_is_stored_as_it_came() {
    for (stdin, stored) in [
        (
            &b"From a@b Mon Jan  1 00:00:00 2026\nSubject: x\n\nFrom y\n"[..],
            &b"Subject: x\n\nFrom y\n"[..],
        ),
        (b"Subject: x\r\n\r\nline\r\n", b"Subject: x\n\nline\n"),
        (b"no last line end", b"no last line end"),
        (b"", b""),
        (b"a\0b\n\n.\n.\r\n\r\r\n", b"a\0b\n\n.\n.\n\r\n"),
        (b"\xff\xfe\n", b"\xff\xfe\n"),
    ] {
        let store = Store::new();
        store.configure("", "");
        let output = run_with_input(&mut lda(&store, &["-d", "alice"], &[]), stdin);
        assert_eq!(exit_code(&output), 0);
        let found = messages(&store.path("home/alice/Maildir"));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, stored);
    }
}

#[test]
fn an_ordinary_user_needs_no_config() {
    let store = Store::new();
    let home = store.path("home/alice");
    let mut command = program("postroom-lda");
    command.env("HOME", &home).env("POSTROOM_LOG", "json");
    as_user(&mut command, MAIL, MAIL, &[]);
    if Path::new("/etc/postroom/postroom.toml").exists() {
        support::skip("/etc/postroom/postroom.toml exists: the built-in defaults do not serve");
        return;
    }
    let output = run_with_input(&mut command, MESSAGE);
    assert_eq!(
        exit_code(&output),
        0,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(messages(&home.join("Maildir")).len(), 1);
    // But whoever delivers to others does, and so does a server: without it they know nobody, and that is no answer.
    for (name, arguments) in [
        ("postroom-lda", &["foo@example.org"][..]),
        ("postroom-lda", &["-d", "foo"]),
        ("postroom-lmtpd", &["--stdio"]),
    ] {
        let mut command = program(name);
        as_user(command.args(arguments), MAIL, MAIL, &[]);
        let output = run_with_input(&mut command, MESSAGE);
        assert_eq!(exit_code(&output), 75, "{name} {arguments:?}: {output:?}");
    }
}

#[test]
fn a_file_is_read_with_the_rights_of_the_user() {
    let store = Store::new();
    store.configure("", "");
    let open = store
        .scratch
        .file("message", MAIL, MAIL, 0o600, "From here on\n");
    let output = run_with_input(
        &mut lda(&store, &["-d", "alice", "-p", open.to_str().unwrap()], &[]),
        b"",
    );
    assert_eq!(exit_code(&output), 0);
    assert_eq!(
        bodies(&store.path("home/alice/Maildir")),
        ["From here on\n"]
    );
    if not_root() {
        return;
    }
    let closed = store.scratch.file("secret", 0, 0, 0o600, "root's\n");
    let mut as_root = program("postroom-lda");
    as_root
        .arg("-c")
        .arg(store.path("postroom.toml"))
        .args(["-d", "bob", "-p"])
        .arg(&closed);
    let output = run_with_input(&mut as_root, b"");
    assert_eq!(exit_code(&output), 75);
    assert!(messages_below(&store.path("home/bob")).is_empty());
}

#[test]
fn several_recipients_are_all_or_none() {
    let cases: &[(&[&str], &str, i32, usize)] = &[
        (&["alice@x", "bob@x", "carol@x"], "", 0, 3),
        (&["alice@x", "alice@X", "bob@x", "alice@x"], "", 0, 2),
        (&["alice@x", "nobody-here@x"], "", 67, 0),
        (&["alice@x", "alice+a/../b@x"], "detail = \"ignore\"", 0, 2),
        (
            &["alice@x", "bob+Nowhere@x"],
            "on_missing = \"reject\"",
            67,
            0,
        ),
    ];
    for (recipients, delivery, code, stored) in cases {
        let store = Store::new();
        let config = store.config(delivery, "");
        store.configure("", "");
        // `detail` is in the usual config already.
        let config = match delivery.starts_with("detail") {
            true => config.replacen("detail = \"mailbox\"\n", "", 1),
            false => config,
        };
        fs::write(store.path("postroom.toml"), config).unwrap();
        let output = run_with_input(&mut lda(&store, recipients, &[]), MESSAGE);
        assert_eq!(
            exit_code(&output),
            *code,
            "{recipients:?} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(
            messages_below(&store.path("home")).len(),
            *stored,
            "{recipients:?}"
        );
    }
}

#[test]
fn as_root_each_user_is_himself() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let root = store.scratch.text("");
    store.configure("", "");
    let users: Vec<String> = [("alice", 6001), ("bob", 6002)]
        .iter()
        .map(|(user, uid)| format!("{user}::{uid}:{uid}::{root}/home/{user}::\n"))
        .collect();
    support::write_long_ago(&store.path("users"), &users.concat());
    store.scratch.dir("home/alice", 6001, 6001, 0o700);
    fs::remove_dir_all(store.path("home/bob")).unwrap();
    store.scratch.dir("home/bob", 6002, 6002, 0o700);
    let as_root = |arguments: &[&str], stdin: &[u8]| {
        let mut command = program("postroom-lda");
        command
            .arg("-c")
            .arg(store.path("postroom.toml"))
            .args(arguments)
            .env("POSTROOM_LOG", "json");
        run_with_input(&mut command, stdin)
    };
    let big = [MESSAGE, &b"0123456789\n".repeat(100_000)].concat();
    let output = as_root(&["alice@x", "bob@x"], &big);
    assert_eq!(
        exit_code(&output),
        0,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for (user, uid) in [("alice", 6001), ("bob", 6002)] {
        let found = messages(&store.path(&format!("home/{user}/Maildir")));
        assert_eq!(found.len(), 1);
        for (path, bytes) in found {
            assert_eq!(fs::metadata(&path).unwrap().uid(), uid);
            assert!(bytes == big);
        }
    }
    assert_eq!(
        exit_code(&as_root(&["alice@x", "nobody-here@x", "bob@x"], MESSAGE)),
        67
    );
    // bob's home is not his: that is temporary, and goes before alice's permanent one.
    fs::rename(store.path("home/bob"), store.path("home/was-bob")).unwrap();
    fs::write(store.path("home/bob"), "a file").unwrap();
    assert_eq!(
        exit_code(&as_root(&["alice@x", "nobody-here@x", "bob@x"], MESSAGE)),
        75
    );
    assert_eq!(
        messages_below(&store.path("home")).len(),
        2,
        "nothing more was stored"
    );
    assert_eq!(exit_code(&as_root(&[], MESSAGE)), 75, "root has no mailbox");
    // A root that may not become anybody: a container without the capability.
    let mut bound = Command::new("setpriv");
    bound.args(["--bounding-set=-setuid", "--inh-caps=-all"]);
    bound.arg(program("postroom-lda").get_program()).arg("-c");
    bound.arg(store.path("postroom.toml")).args(["-d", "alice"]);
    let output = run_with_input(&mut bound, MESSAGE);
    assert_eq!(exit_code(&output), 75);
    assert_eq!(said(&output), ["4.3.0 Internal error, try again later"]);
}

#[test]
fn dry_run_prints_the_decision() {
    let store = Store::new();
    store.configure("", "");
    let mut command = lda(
        &store,
        &["-d", "alice", "-m", "Public/info", "--dry-run"],
        &[],
    );
    command.stdin(std::process::Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(exit_code(&output), 0, "{text}");
    for part in ["Public/info", "public/.info", "exit code     0"] {
        assert!(text.contains(part), "{text}");
    }
    // qmail's local delivery has the message itself on stdin.
    let mail = store
        .scratch
        .file("mail", MAIL, MAIL, 0o600, "Subject: x\n");
    let mut command = lda(&store, &["-d", "alice", "--dry-run"], &[]);
    command.stdin(fs::File::open(mail).unwrap());
    assert_eq!(exit_code(&command.output().unwrap()), 75);
    let mut command = lda(&store, &["-d", "nobody-here", "--dry-run", "--json"], &[]);
    let output = run_with_input(&mut command, b"");
    assert_eq!(exit_code(&output), 67);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["fault"]["code"], "NoSuchUser");
    assert!(messages_below(&store.path("")).is_empty());
}

/// Whatever is wrong with its surroundings, the exit code is one of the five, and the MTA's line is the only one.
#[test]
fn hostile_surroundings() {
    // What a shell does before it becomes postroom-lda, the arguments, the exit code, messages stored
    let cases: &[(&str, &str, i32, usize)] = &[
        ("exec 2>/dev/full", "-d alice", 0, 1),
        (
            "exec 2>/dev/full; export POSTROOM_LOG=json",
            "-d alice",
            0,
            1,
        ),
        ("exec 2>/dev/full; export RUST_LOG=a=b=c", "-d alice", 0, 1),
        ("exec 2>/dev/full", "-d nobody-here", 67, 0),
        ("export RUST_LOG=a=b=c", "-d alice", 0, 1),
        ("ulimit -f 0", "-d alice", 75, 0),
        (
            "ulimit -f 0; exec 2>$(dirname \"$1\")/run/stderr",
            "-Q",
            75,
            0,
        ),
    ];
    for (before, arguments, code, stored) in cases {
        let store = Store::new();
        store.configure("", "");
        let lda = program("postroom-lda");
        let mut command = Command::new("sh");
        let script = format!("{before}; exec \"$0\" -c \"$1\" {arguments}");
        command.arg("-c").arg(script);
        command
            .arg(lda.get_program())
            .arg(store.path("postroom.toml"));
        as_user(&mut command, MAIL, MAIL, &[]);
        let output = run_with_input(&mut command, MESSAGE);
        let case = format!("{before}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(*code), "{case}");
        assert_eq!(messages_below(&store.path("")).len(), *stored, "{case}");
        let lines = String::from_utf8_lossy(&output.stderr).lines().count();
        assert_eq!(lines, said(&output).len(), "{case}");
    }
}

/// A queue that the MTA has locked, a pipe to somebody else: nothing of it stays open while a message is waited for.
#[test]
fn descriptors_of_the_caller() {
    // By a kernel that closes all of them at once, and by one that does not know how.
    let older =
        "strace -D -f -qqq -o /dev/null -e trace=close_range -e inject=close_range:error=ENOSYS";
    for words in ["", older] {
        if !words.is_empty() && !installed("strace") && skip("strace is not installed") {
            return;
        }
        let store = Store::new();
        store.configure("", "");
        let mut command = Command::new("sh");
        let script =
            format!("exec 3>\"$2\" 7<\"$2\" 9>>\"$2\"; exec {words} \"$0\" -c \"$1\" -d alice");
        command.arg("-c").arg(script);
        command.arg(program("postroom-lda").get_program());
        let held = store.path("run/held");
        command.arg(store.path("postroom.toml")).arg(&held);
        as_user(&mut command, MAIL, MAIL, &[]);
        let mut lda = command.stdin(Stdio::piped()).spawn().unwrap();
        // strace is a child too, of this name for a moment only.
        let child = || {
            let mut children = children_of(lda.id()).into_iter();
            let name = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            children.rfind(|pid| name(*pid).starts_with("postroom"))
        };
        wait_until("a child", || child().is_some());
        for pid in [child().unwrap(), lda.id()] {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            let open = open.map(|it| fs::read_link(it.unwrap().path()).unwrap_or_default());
            assert_eq!(open.filter(|it| *it == held).count(), 0, "{words} {pid}");
        }
        lda.stdin.take().unwrap().write_all(MESSAGE).unwrap();
        assert_eq!(lda.wait().unwrap().code(), Some(0), "{words}");
        assert_eq!(messages_below(&store.path("")).len(), 1, "{words}");
    }
}

/// Nothing where it is started is configuration: only the file that is named, and nobody's home.
#[test]
fn the_working_directory() {
    let store = Store::new();
    let config = store.configure("", "");
    let hostile = "mail_path = \"/tmp/elsewhere\"\nno_setting = 1\n";
    let places = [
        "postroom.toml",
        ".postroom.toml",
        ".config/postroom/postroom.toml",
        "etc/postroom/postroom.toml",
        "postroom/postroom.toml",
    ];
    for folder in ["here", "home/alice"] {
        store.scratch.dir(folder, MAIL, MAIL, 0o755);
        for place in places {
            let path = store.path(folder).join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, hostile).unwrap();
        }
    }
    for (named, code) in [(Some(&config), 0), (None, 75)] {
        let mut command = Command::new("sh");
        let script = "cd \"$1\" && export HOME=\"$2\" && shift 2 && exec \"$0\" -d alice \"$@\"";
        command.arg("-c").arg(script);
        command.arg(program("postroom-lda").get_program());
        command.args([store.path("here"), store.path("home/alice")]);
        command.args(named.iter().flat_map(|path| ["-c", path.to_str().unwrap()]));
        as_user(&mut command, MAIL, MAIL, &[]);
        let output = run_with_input(&mut command, MESSAGE);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("no_setting"), "{named:?}: {said}");
        // On a machine without /etc/postroom/postroom.toml.
        if named.is_some() || !Path::new("/etc/postroom/postroom.toml").exists() {
            assert_eq!(output.status.code(), Some(code), "{named:?}: {said}");
        }
    }
    assert_eq!(messages_below(&store.path("home/alice/Maildir")).len(), 1);
}

/// A copy with the set-user-ID bit, or with capabilities, is of no use to whoever starts it.
#[test]
fn with_more_rights_than_its_caller() {
    if not_root() {
        return;
    }
    let store = Store::new();
    store.configure("", "");
    let copy = store.path("lda");
    let copied = Command::new("cp")
        .arg(program("postroom-lda").get_program())
        .arg(&copy)
        .status();
    assert!(copied.unwrap().success());
    for (rights, code) in [
        ("chmod 755", 0),
        ("chown 0:0", 0),
        ("chmod 4755", 75),
        ("chmod 2755", 75),
        ("chmod 755", 0),
        ("setcap cap_net_admin+ep", 75),
    ] {
        let mut words = rights.split(' ');
        let mut change = Command::new(words.next().unwrap());
        if !change.args(words).arg(&copy).status().unwrap().success() {
            panic!("{rights}");
        }
        let before = messages_below(&store.path("")).len();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=8", "--regid=8", "--clear-groups"]);
        command.arg(&copy).args(["-d", "alice", "-c"]);
        command.arg(store.path("postroom.toml"));
        let output = run_with_input(&mut command, MESSAGE);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{rights}: {said}");
        let stored = messages_below(&store.path("")).len() - before;
        assert_eq!(stored, usize::from(code == 0), "{rights}");
    }
}

/// A system whose files of users cannot be read knows nobody: that is no reason to send mail back.
#[test]
fn a_name_service_that_cannot_tell() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let config = store.configure("", "");
    let text = fs::read_to_string(&config).unwrap();
    let users = format!(
        "passwd-file = {{ path = \"{}\" }}",
        store.path("users").display()
    );
    assert!(text.contains(&users));
    fs::write(&config, text.replace(&users, "passwd = {}")).unwrap();
    // What even root cannot open.
    let socket = store.path("run/socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (hidden, user, code) in [
        ("/dev/full", "mail", 0),
        ("/dev/full", "nobody-here", 67),
        ("/etc/passwd", "mail", 75),
        ("/etc/passwd", "nobody-here", 75),
        ("/etc/group", "mail", 75),
    ] {
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$4\" \"$2\" && exec \"$0\" -c \"$1\" -d \"$3\" --dry-run";
        command.args(["-m", "sh", "-c", script]);
        command.arg(program("postroom-lda").get_program());
        command.arg(&config).args([hidden, user]).arg(&socket);
        let output = command.stdin(std::process::Stdio::null()).output().unwrap();
        assert_eq!(exit_code(&output), code, "{hidden} {user}");
    }
}

/// A hang-up ends the work and leaves the mail with the caller, who may as well ignore it: then the work goes on.
#[test]
fn a_hang_up() {
    for (before, code, stored) in [("true", 75, 0), ("trap '' HUP", 0, 1)] {
        let store = Store::new();
        store.configure("", "");
        // Whoever runs the tests may ignore it too.
        let mut command = Command::new("env");
        let script = format!("{before}; exec \"$0\" -c \"$1\" -d alice");
        command.args(["--default-signal=HUP", "sh", "-c", &script]);
        command.arg(program("postroom-lda").get_program());
        command.arg(store.path("postroom.toml"));
        as_user(&mut command, MAIL, MAIL, &[]);
        let mut parent = command
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        wait_until("a child", || !children_of(parent.id()).is_empty());
        support::signal(parent.id(), "HUP");
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(parent.stdin.take());
        assert_eq!(parent.wait().unwrap().code(), Some(code), "{before}");
        assert_eq!(messages_below(&store.path("")).len(), stored, "{before}");
    }
}

/// A flag that the rights do not allow is left out, and the log says so.
#[test]
fn flags_and_the_rights_to_set_them() {
    // the mailbox, its ACL, the letters in the file's name
    for (mailbox, folder, acl, letters) in [
        ("INBOX", "home/alice/Maildir", "", "FST"),
        ("Work", "home/alice/Maildir/.Work", "", "FST"),
        ("Public/info", "public/.info", "anyone lpwst\n", "FT"),
        ("Public/info", "public/.info", "anyone lpw\n", "F"),
        ("Public/info", "public/.info", "anyone lpt\n", "T"),
        ("Public/info", "public/.info", "anyone lp\n", ""),
    ] {
        let store = Store::new();
        for below in ["home/alice/Maildir", "home/alice/Maildir/.Work"] {
            store.scratch.maildir(below, MAIL, MAIL, 0o700);
        }
        store.configure("", "");
        if !acl.is_empty() {
            fs::write(store.path(&format!("{folder}/dovecot-acl")), acl).unwrap();
        }
        let flags = [
            "--flag",
            "\\Seen",
            "--flag",
            "\\Flagged",
            "--flag",
            "\\Deleted",
        ];
        let arguments = [&["-d", "alice", "-m", mailbox], &flags[..]].concat();
        let mut command = program("postroom-lda");
        command
            .arg("-c")
            .arg(store.path("postroom.toml"))
            .args(&arguments);
        command.env("POSTROOM_LOG", "json");
        as_user(&mut command, MAIL, MAIL, &[100]);
        let output = run_with_input(&mut command, MESSAGE);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(exit_code(&output), 0, "{log}");
        let found = messages(&store.path(folder));
        assert_eq!(found.len(), 1, "{log}");
        let path = found[0].0.to_str().unwrap();
        match letters {
            "" => assert!(path.contains("/new/") && !path.contains(":2,"), "{path}"),
            _ => assert!(
                path.contains("/cur/") && path.ends_with(&format!(":2,{letters}")),
                "{path}"
            ),
        }
        // A public mailbox has a \Seen for each user.
        assert_eq!(log.contains("stored without"), letters != "FST", "{log}");
    }
}

/// A caller that closed stdin has no message: that is no empty one.
#[test]
fn without_stdin_there_is_no_message() {
    let store = Store::new();
    store.configure("", "");
    for recipients in [&["-d", "alice"][..], &["alice@x", "bob@x"]] {
        let mut command = lda(&store, recipients, &[]);
        let output = command.stdin(std::process::Stdio::null()).output().unwrap();
        assert_eq!(exit_code(&output), 75, "{recipients:?}");
        assert!(messages_below(&store.path("")).is_empty());
    }
}

/// A parent killed takes its child along; a child killed is 75.
#[test]
fn abnormal_ends_are_temporary() {
    let store = Store::new();
    store.configure("", "");
    let mut command = lda(&store, &["-d", "alice"], &[]);
    let parent = command
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("a child", || !children_of(parent.id()).is_empty());
    support::signal(children_of(parent.id())[0], "KILL");
    let output = parent.wait_with_output().unwrap();
    assert_eq!(exit_code(&output), 75);
    assert_eq!(said(&output), ["4.3.0 Internal error, try again later"]);
    assert!(messages_below(&store.path("")).is_empty());
}
