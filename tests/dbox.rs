//! Mailboxes that only Dovecot writes: the message is handed over, and is where Dovecot shows it.

mod support;

use std::fs;
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use support::imap::Imap;
use support::peers::{Dovecot, VERSIONS, Version};
use support::{
    MAIL, Server, Store, as_user, messages, not_root, program, replaced, run_with_input, tree,
};

const LETTER: &[u8] = b"Message-ID: <1@x.test>\r\nSubject: box\r\n\r\nHello\r\n.dot\r\nFrom me\r\n";

/// A format that only Dovecot writes: our words for it, those of 2.3 and of 2.4.
const FORMATS: [(&str, &str, &str); 3] = [
    (
        "mail_driver = \"sdbox\"",
        "sdbox:~/box",
        "mail_driver = sdbox\nmail_path = ~/box",
    ),
    (
        "mail_driver = \"mdbox\"",
        "mdbox:~/box",
        "mail_driver = mdbox\nmail_path = ~/box",
    ),
    (
        "mailbox_list_layout = \"index\"",
        "maildir:~/box:LAYOUT=index",
        "mail_driver = maildir\nmail_path = ~/box\nmailbox_list_layout = index",
    ),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Lmtp,
    Lda,
}

/// A Dovecot with mailboxes of one format, and our config for them.
struct Site {
    store: Store,
    dovecot: Dovecot,
    /// Our programs run in the chroot where this Dovecot is: dovecot-lda is one of its programs.
    inside: bool,
}

impl Site {
    fn start(version: Version, format: &(&str, &str, &str), way: Way) -> Option<Site> {
        let store = Store::new();
        let (_, v23, v24) = format;
        let dovecot = Dovecot::start_with(version, &store, |text| match version {
            Version::V23 => {
                let usual = "mail_location = maildir:~/Maildir";
                replaced(&text, usual, &format!("mail_location = {v23}")).replace(
                    "protocols = imap",
                    "protocols = imap lmtp\nauth_username_format = %Ln",
                ) + LMTP
            }
            Version::V24 => {
                replaced(&text, "mail_driver = maildir\nmail_path = ~/Maildir", v24).replace(
                    "protocols = imap",
                    "protocols = imap lmtp\nauth_username_format = %{user | username | lower}",
                ) + LMTP
            }
        })?;
        let run = dovecot.config.parent().unwrap().join("run/lmtp");
        let hand_over = match way {
            Way::Lmtp => format!("lmtp:{}\"\nhand_over_detail = true #", run.display()),
            Way::Lda => format!(
                "lda:/usr/lib/dovecot/dovecot-lda -c {} -o log_path=/dev/stderr -o info_log_path=/dev/stderr -o debug_log_path=/dev/stderr",
                dovecot.config.display()
            ),
        };
        let inside = version == Version::V24 && way == Way::Lda;
        configure(
            &store,
            &format!("{}\nhand_over = \"{hand_over}\"", format.0),
        );
        Some(Site {
            store,
            dovecot,
            inside,
        })
    }

    /// A program of ours where it finds dovecot-lda.
    fn program(&self, name: &str) -> Command {
        let mut command = program(name);
        if self.inside {
            let copy = self.store.path(name);
            if !copy.exists() {
                let done = Command::new("cp")
                    .arg(command.get_program())
                    .arg(&copy)
                    .status();
                assert!(done.unwrap().success());
            }
            command = Command::new(copy);
        }
        command.arg("-c").arg(self.store.path("postroom.toml"));
        command
    }

    fn run(&self, mut command: Command) -> Command {
        as_user(&mut command, MAIL, MAIL, &[]);
        match self.inside {
            true => self.dovecot.inside(&command),
            false => command,
        }
    }

    fn serve(&self) -> Server {
        let command = self.run(self.program("postroom-lmtpd"));
        let (socket, log) = (self.store.path("run/lmtp"), self.store.path("run/log"));
        Server::spawn(command, &socket, &log)
    }

    /// Our LDA: its exit code and what it says.
    fn lda(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = self.program("postroom-lda");
        command.args(arguments).args(["-f", "sender@else.test"]);
        let output = run_with_input(&mut self.run(command), LETTER);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    }

    fn explain(&self, address: &str) -> String {
        let mut command = self.program("postroom");
        command.args(["explain", address]);
        let output = self.run(command).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

const LMTP: &str = r#"
protocol lmtp {
  lmtp_save_to_detail_mailbox = yes
}
service lmtp {
  unix_listener lmtp {
    mode = 0666
  }
}
"#;

/// Dave is a user of ours, and none of Dovecot's.
fn configure(store: &Store, inbox: &str) -> PathBuf {
    let path = store.configure("", "");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace(
        "[namespace.inbox]\n",
        &format!("[namespace.inbox]\n{inbox}\n"),
    );
    fs::write(&path, text).unwrap();
    let users = fs::read_to_string(store.path("users")).unwrap();
    let dave = format!(
        "dave::{MAIL}:{MAIL}::{}::\n",
        store.path("home/dave").display()
    );
    support::write_long_ago(&store.path("users"), &format!("{users}{dave}"));
    path
}

#[test]
fn what_is_handed_over_is_where_dovecot_shows_it() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        for format in &FORMATS {
            for way in [Way::Lmtp, Way::Lda] {
                let Some(site) = Site::start(version, format, way) else {
                    return;
                };
                deliver_and_read(&site, way, &format!("{version:?} {} {way:?}", format.0));
            }
        }
    }
}

fn deliver_and_read(site: &Site, way: Way, case: &str) {
    let mut imap = Imap::login(site.dovecot.port, "alice");
    for mailbox in ["Work", "Work/Deep", "My Work"] {
        let lines = imap.command(&format!("CREATE \"{mailbox}\""));
        assert!(lines.last().unwrap().contains(" OK "), "{case}: {lines:?}");
    }
    imap.logout();
    let server = site.serve();
    // recipient; the start of RCPT's answer; of the message's; the mailbox that has it then
    for (rcpt, at_rcpt, at_data, mailbox) in [
        ("alice@example.test", "250 2.1.5", "250 2.0.0", "INBOX"),
        ("alice+Work@example.test", "250 2.1.5", "250 2.0.0", "Work"),
        (
            "alice+Work/Deep@example.test",
            "250 2.1.5",
            "250 2.0.0",
            "Work/Deep",
        ),
        (
            "\"alice+My Work\"@example.test",
            "250 2.1.5",
            "250 2.0.0",
            "My Work",
        ),
        // Dovecot says what stands in for it.
        (
            "alice+Nothing@example.test",
            "250 2.1.5",
            "250 2.0.0",
            "INBOX",
        ),
        (
            "dave@example.test",
            // We know him, and Dovecot does not: which of us is wrong?
            if way == Way::Lmtp {
                "451 4.3.0"
            } else {
                "250 2.1.5"
            },
            "451 4.3.0",
            "",
        ),
        ("nobody@example.test", "550 5.1.1", "", ""),
    ] {
        let before = count(site, mailbox);
        let mut client = server.client();
        client.say("MAIL FROM:<sender@else.test>");
        let reply = client.say(&format!("RCPT TO:<{rcpt}>"));
        let logs = || format!("{} {:?}", server.log(), site.dovecot.complaints());
        assert!(
            reply.starts_with(at_rcpt),
            "{case}: {rcpt}: {reply} {}",
            logs()
        );
        if reply.starts_with("250") {
            client.say("DATA");
            // Each one another, or Postroom takes it for the same.
            client.send(&support::stuffed(
                &[b"X-For: ", rcpt.as_bytes(), b"\r\n", LETTER].concat(),
            ));
            let reply = client.reply();
            assert!(
                reply.starts_with(at_data),
                "{case}: {rcpt}: {reply} {}",
                logs()
            );
            // Where it is only Dovecot knows.
            assert!(!reply.contains("mailbox="), "{reply}");
            let is_said = reply.ends_with("Handed over to Dovecot");
            assert_eq!(is_said, reply.starts_with("250"), "{reply}");
        }
        if mailbox.is_empty() {
            continue;
        }
        assert_eq!(
            count(site, mailbox),
            before + 1,
            "{case}: {rcpt} {}",
            logs()
        );
        let mut imap = Imap::login(site.dovecot.port, "alice");
        imap.select(mailbox);
        let letter = imap.fetch_all().pop().unwrap();
        let text = String::from_utf8(letter.bytes).unwrap();
        assert!(
            text.ends_with(std::str::from_utf8(LETTER).unwrap()),
            "{case}: {text:?}"
        );
        for field in [
            "Return-Path: <sender@else.test>",
            "Delivered-To: ",
            "Received: ",
        ] {
            let found = text.matches(field).count();
            assert_eq!(found, 1, "{case}: {field} in {text}");
        }
        let line = server.log();
        let line = line
            .lines()
            .rev()
            .find(|it| it.contains("stored"))
            .unwrap_or_default();
        assert!(
            line.contains(" handed_over=") && !line.contains(" mailbox="),
            "{line}"
        );
    }
    let shown = site.explain("alice+Work@example.test");
    let way_said = if way == Way::Lmtp { "lmtp:/" } else { "lda:/" };
    for part in [
        "Work  Dovecot's",
        way_said,
        "RCPT 250 2.1.5, DATA as Dovecot says",
    ] {
        assert!(shown.contains(part), "{case}: {shown}");
    }
    // arguments; exit code; where it is then
    for (arguments, code, mailbox) in [
        (&["-d", "alice"][..], 0, "INBOX"),
        (&["-d", "alice", "-m", "Work/Deep"], 0, "Work/Deep"),
        (&["-d", "alice", "-a", "info@example.test"], 0, "INBOX"),
        (&["alice+Work@example.test"], 0, "Work"),
        (&["-d", "dave"], 75, ""),
    ] {
        let before = count(site, mailbox);
        let (left, said) = site.lda(arguments);
        assert_eq!(left, Some(code), "{case}: {arguments:?}: {said}");
        if !mailbox.is_empty() {
            assert_eq!(
                count(site, mailbox),
                before + 1,
                "{case}: {arguments:?}: {said}"
            );
        }
    }
    // None of our files is there: a Maildir has a list of UIDs, and its names are Dovecot's.
    for path in tree(&site.store.path("home/alice/box")) {
        assert!(!path.contains("postroom"), "{case}: {path}");
    }
    let (config, signal) = (site.dovecot.config.clone(), site.dovecot.pid());
    support::signal(signal, "TERM");
    while config.parent().unwrap().join("run/master.pid").exists() {
        thread::sleep(Duration::from_millis(20));
    }
    let mut client = server.client();
    let replies = client.deliver(&["alice@example.test"], LETTER);
    let want = if way == Way::Lmtp {
        "451 4.4.1"
    } else {
        "451 4.2.0"
    };
    assert!(
        replies[0].starts_with(want),
        "{case}: {replies:?} {}",
        server.log()
    );
    assert_eq!(site.lda(&["-d", "alice"]).0, Some(75), "{case}");
}

fn count(site: &Site, mailbox: &str) -> usize {
    if mailbox.is_empty() {
        return 0;
    }
    Imap::login(site.dovecot.port, "alice").select(mailbox)
}

/// In the place of dovecot-lda: writes down what it is given, and leaves with a code.
fn script(store: &Store, end: &str) -> String {
    let given = store.scratch.dir("given", MAIL, MAIL, 0o777);
    let given = given.display();
    let text = format!(
        "#!/bin/sh\numask 022\necho \"$@\" >{given}/arguments\nid -u >{given}/uid\n\
         cat >{given}/message\nls -l /proc/self/fd >{given}/files\n{end}\n"
    );
    let path = store.path("agent");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    format!("lda:{} -c /x.conf", path.display())
}

#[test]
fn what_the_program_is_told_and_what_its_end_means() {
    // How it ends; the reply; our LDA's exit code
    for (end, reply, code) in [
        ("exit 0", "250 2.0.0", 0),
        ("echo 'no such user' >&2; exit 67", "451 4.3.0", 75),
        ("echo 'over quota' >&2; exit 77", "550 5.7.1", 77),
        ("exit 64", "451 4.2.0", 75),
        ("exit 75", "451 4.2.0", 75),
        ("exit 1", "451 4.2.0", 75),
        ("exit 127", "451 4.2.0", 75),
        ("kill -9 $$", "451 4.2.0", 75),
    ] {
        let store = Store::new();
        let agent = script(&store, end);
        let config = configure(
            &store,
            &format!("mail_driver = \"sdbox\"\nhand_over = \"{agent}\""),
        );
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let replies = server
            .client()
            .deliver(&["alice+Work@example.test"], LETTER);
        assert!(
            replies[0].starts_with(reply),
            "{end}: {replies:?} {}",
            server.log()
        );
        let given = |name: &str| fs::read_to_string(store.path("given").join(name)).unwrap();
        assert_eq!(
            given("arguments"),
            "-c /x.conf -d alice -m Work -f <sender@else.test> -a alice+Work@example.test -e\n"
        );
        let message = given("message");
        assert!(
            message.starts_with("Return-Path: <sender@else.test>\r\nDelivered-To: "),
            "{message}"
        );
        assert!(
            message.ends_with(std::str::from_utf8(LETTER).unwrap()),
            "{message}"
        );
        // The message is its stdin; our clients are none of its own.
        let files = given("files");
        assert!(
            files.contains("memfd:message") && !files.contains("socket:"),
            "{files}"
        );
        // What it says is in our log, and not said to the sender.
        let why = end.split('\'').nth(1).unwrap_or("");
        assert!(server.log().contains(why) && (why.is_empty() || !replies[0].contains(why)));
        let mut command = program("postroom-lda");
        command
            .arg("-c")
            .arg(&config)
            .args(["-d", "alice", "-m", "A B", "-f", ""]);
        as_user(&mut command, MAIL, MAIL, &[]);
        let left = run_with_input(&mut command, LETTER).status.code();
        assert_eq!(left, Some(code), "{end}");
        assert_eq!(
            given("arguments"),
            "-c /x.conf -d alice -m A B -f <> -a alice -e\n"
        );
        // The MTA has written its fields already.
        assert_eq!(given("message").as_bytes(), LETTER, "{end}");
        // A line that dovecot-lda would take off the top of a file (-p) is not the first one.
        let odd = "From me to you\r\n\r\nHello\r\n";
        let file = store.scratch.file("letter", MAIL, MAIL, 0o644, odd);
        let mut command = program("postroom-lda");
        command
            .arg("-c")
            .arg(&config)
            .args(["-d", "alice", "-f", "s@x.test", "-p"]);
        command.arg(file);
        as_user(&mut command, MAIL, MAIL, &[]);
        assert_eq!(command.output().unwrap().status.code(), Some(code), "{end}");
        let message = given("message");
        let (line, rest) = message.split_once("\r\n").unwrap();
        assert!(
            line.starts_with("From s@x.test  ") && rest == odd,
            "{message}"
        );
        assert!(!store.path("home/alice/Maildir").exists());
    }
}

/// A message that needs a file to wait in, whole.
#[test]
fn large_messages() {
    let store = Store::new();
    let agent = script(&store, "exit 0");
    let config = configure(
        &store,
        &format!("mail_driver = \"mdbox\"\nhand_over = \"{agent}\""),
    );
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    let line = "x".repeat(98) + "\r\n";
    let letter = format!("Subject: large\r\n\r\n{}", line.repeat(200_000));
    let replies = server
        .client()
        .deliver(&["alice@example.test"], letter.as_bytes());
    assert!(
        replies[0].starts_with("250"),
        "{replies:?} {}",
        server.log()
    );
    let given = fs::read_to_string(store.path("given/message")).unwrap();
    assert!(given.ends_with(&letter));
    assert!(
        server.peak_memory() < 60_000,
        "{} KiB",
        server.peak_memory()
    );
}

/// Under root, each user's own process runs it; a mailbox of ours that is missing ends in Dovecot's INBOX.
#[test]
fn workers_run_the_program_as_the_user() {
    if not_root() {
        return;
    }
    for (rcpt, mailbox) in [
        ("alice@example.test", "INBOX"),
        ("alice+Work@example.test", "Work"),
        ("alice+Public/none@example.test", "INBOX"),
        ("alice+Public/info@example.test", ""),
    ] {
        let store = Store::new();
        let agent = script(&store, "exit 0");
        let config = configure(
            &store,
            &format!("mail_driver = \"sdbox\"\nhand_over = \"{agent}\""),
        );
        let users = format!(
            "alice::7001:7001::{}::\n",
            store.path("home/alice").display()
        );
        support::write_long_ago(&store.path("users"), &users);
        support::own(&store.path("home/alice"), 7001, 7001);
        let text = fs::read_to_string(&config).unwrap() + "[workers]\nfront_user = \"nobody\"\n";
        fs::write(&config, text).unwrap();
        for part in [
            "public",
            "public/.info",
            "public/.info/new",
            "public/.info/tmp",
            "public/.info/cur",
        ] {
            fs::set_permissions(store.path(part), Permissions::from_mode(0o777)).unwrap();
        }
        fs::set_permissions(
            store.path("public/.info/dovecot-acl"),
            Permissions::from_mode(0o644),
        )
        .unwrap();
        let server =
            Server::start_as_root(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let replies = server.client().deliver(&[rcpt], LETTER);
        assert!(
            replies[0].starts_with("250 2.0.0"),
            "{rcpt}: {replies:?} {}",
            server.log()
        );
        let given =
            |name: &str| fs::read_to_string(store.path("given").join(name)).unwrap_or_default();
        if mailbox.is_empty() {
            assert!(
                replies[0].contains("mailbox=\"Public/info\""),
                "{replies:?}"
            );
            assert_eq!(given("uid"), "", "{rcpt}");
            continue;
        }
        assert_eq!(given("uid"), "7001\n", "{rcpt}");
        assert!(
            given("arguments").contains(&format!(" -d alice -m {mailbox} ")),
            "{rcpt}"
        );
    }
}

/// Answers RCPT and the message with these lines, in the place of Dovecot; "" closes. It hears what it is told. It takes all once
/// there is `run/takes`, and is full once there is `run/full`.
fn answering(store: &Store, rcpt: &'static str, data: &'static str) -> PathBuf {
    let path = store.path("run/dovecot");
    let (listener, log) = (UnixListener::bind(&path).unwrap(), store.path("run/heard"));
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (mut lines, log_path) = (BufReader::new(stream), log.clone());
            thread::spawn(move || -> std::io::Result<()> {
                let mut options = fs::File::options();
                let mut log = options.create(true).append(true).open(&log_path)?;
                lines.get_mut().write_all(b"220 x Dovecot ready.\r\n")?;
                let mut is_message = false;
                let takes = log_path.with_file_name("takes");
                let full = log_path.with_file_name("full");
                loop {
                    let mut line = String::new();
                    if lines.read_line(&mut line)? == 0 {
                        return Ok(());
                    }
                    log.write_all(line.as_bytes())?;
                    let answer = match (is_message, line.as_str()) {
                        (true, ".\r\n") if takes.exists() => "250 2.0.0 Saved",
                        (true, ".\r\n") if full.exists() => "552 5.2.2 <a> full",
                        (true, ".\r\n") => data,
                        (true, _) => continue,
                        (false, line) if line.starts_with("RCPT") && takes.exists() => "250 OK",
                        (false, line) if line.starts_with("RCPT") => rcpt,
                        (false, line) if line.starts_with("LHLO") => "250-x\r\n250 XCLIENT TTL",
                        // As Dovecot does, also where it trusts.
                        (false, line) if line.contains(" AUTH=") => "555 5.5.4 Unsupported",
                        (false, "DATA\r\n") => "354 OK",
                        (false, _) => "250 2.0.0 OK",
                    };
                    is_message = answer == "354 OK";
                    if answer.is_empty() {
                        return Ok(());
                    }
                    lines
                        .get_mut()
                        .write_all(format!("{answer}\r\n").as_bytes())?;
                }
            });
        }
    });
    path
}

#[test]
fn what_dovecot_answers_is_our_answer() {
    // What it says to RCPT, and to the message; our answer to RCPT, and to the message; our LDA's exit code
    for (rcpt, data, at_rcpt, at_data, code) in [
        (
            "250 2.1.5 OK",
            "250 2.0.0 <a> id Saved",
            "250 2.1.5",
            "250 2.0.0",
            0,
        ),
        (
            "250 2.1.5 OK",
            "451 4.2.0 <a> not now",
            "250 2.1.5",
            "451 4.2.0",
            75,
        ),
        (
            "250 2.1.5 OK",
            "552 5.2.2 <a> full",
            "250 2.1.5",
            "552 5.2.2",
            77,
        ),
        // It may have stored it: nobody knows.
        ("250 2.1.5 OK", "", "250 2.1.5", "451 4.2.0", 75),
        ("550 5.1.1 <a> User doesn't exist", "", "451 4.3.0", "", 75),
        (
            "550 5.3.5 <a> Internal user lookup failure",
            "",
            "451 4.3.0",
            "",
            75,
        ),
        (
            "554 5.4.6 <a> Proxying loops to itself",
            "",
            "451 4.3.0",
            "",
            75,
        ),
        ("550 5.7.1 <a> refused", "", "550 5.7.1", "", 77),
        ("552 5.2.2 <a> full", "", "552 5.2.2", "", 77),
        ("451 4.3.0 <a> later", "", "451 4.3.0", "", 75),
        ("", "", "451 4.4.1", "", 75),
    ] {
        let case = format!("{rcpt} {data}");
        let store = Store::new();
        let socket = answering(&store, rcpt, data);
        let agent = format!("lmtp:{}", socket.display());
        let config = configure(
            &store,
            &format!("mail_driver = \"sdbox\"\nhand_over = \"{agent}\""),
        );
        let text = fs::read_to_string(&config).unwrap();
        let who = format!("mail_uid = {MAIL}\nmail_gid = {MAIL}\nfirst_valid_uid");
        fs::write(&config, text.replacen("first_valid_uid", &who, 1)).unwrap();
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let mut client = server.client();
        client.say("MAIL FROM:<sender@else.test>");
        let reply = client.say("RCPT TO:<alice@example.test>");
        assert!(
            reply.starts_with(at_rcpt),
            "{case}: {reply} {}",
            server.log()
        );
        if reply.starts_with("250") {
            client.say("DATA");
            client.send(&support::stuffed(LETTER));
            let reply = client.reply();
            assert!(
                reply.starts_with(at_data),
                "{case}: {reply} {}",
                server.log()
            );
        }
        let heard = || fs::read_to_string(store.path("run/heard")).unwrap();
        assert!(
            heard().contains("RCPT TO:<alice@example.test>\r\n"),
            "{}",
            heard()
        );
        // Dovecot writes these fields.
        assert!(
            !heard().contains("Return-Path") && !heard().contains("Received:"),
            "{}",
            heard()
        );
        let mut command = program("postroom-lda");
        command.arg("-c").arg(&config).args([
            "-d",
            "alice",
            "-f",
            "sender@else.test",
            "--authenticated",
            "bob",
        ]);
        as_user(&mut command, MAIL, MAIL, &[]);
        let output = run_with_input(&mut command, LETTER);
        assert_eq!(output.status.code(), Some(code), "{case}: {output:?}");
    }
}

/// A retry after an answer that was lost: Dovecot gets it once.
#[test]
fn the_same_message_is_handed_over_once() {
    for way in [Way::Lmtp, Way::Lda] {
        let store = Store::new();
        let agent = match way {
            Way::Lmtp => format!(
                "lmtp:{}",
                answering(&store, "250 2.1.5 OK", "250 2.0.0 Saved").display()
            ),
            Way::Lda => script(&store, "echo >>$(dirname $0)/given/times"),
        };
        let config = configure(
            &store,
            &format!("mail_driver = \"sdbox\"\nhand_over = \"{agent}\""),
        );
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        for (letter, is_again) in [
            (LETTER, false),
            (LETTER, true),
            (b"Message-ID: <2@x.test>\r\n\r\n", false),
        ] {
            let replies = server.client().deliver(&["alice@example.test"], letter);
            assert!(
                replies[0].starts_with("250 2.0.0"),
                "{replies:?} {}",
                server.log()
            );
            assert_eq!(
                replies[0].ends_with("Saved before"),
                is_again,
                "{replies:?}"
            );
        }
        let times = match way {
            Way::Lmtp => fs::read_to_string(store.path("run/heard"))
                .unwrap()
                .matches("DATA")
                .count(),
            Way::Lda => fs::read_to_string(store.path("given/times"))
                .unwrap()
                .lines()
                .count(),
        };
        assert_eq!(times, 2, "{way:?}");
    }
}

/// It is full of what it was given: that is no bounce when it comes again.
#[test]
fn what_fills_dovecots_mailbox_is_sent_again() {
    let store = Store::new();
    let socket = answering(&store, "552 5.2.2 <a> full", "552 5.2.2 <a> full");
    let agent = format!("lmtp:{}", socket.display());
    let config = configure(
        &store,
        &format!("mail_driver = \"sdbox\"\nhand_over = \"{agent}\""),
    );
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    let takes = store.path("run/takes");
    fs::write(&takes, "").unwrap();
    let first = server.client().deliver(&["alice@example.test"], LETTER);
    assert!(first[0].starts_with("250"), "{first:?} {}", server.log());
    fs::remove_file(&takes).unwrap();
    let again = server.client().deliver(&["alice@example.test"], LETTER);
    assert!(
        again[0].ends_with("Saved before"),
        "{again:?} {}",
        server.log()
    );
    let mut client = server.client();
    client.say("MAIL FROM:<another@else.test>");
    let reply = client.say("RCPT TO:<alice@example.test>");
    assert!(reply.starts_with("552 5.2.2"), "{reply}");
}

/// INBOX is ours, and a header route leads to a mailbox that `agent` gets.
fn with_a_route(store: &Store, agent: &str) -> PathBuf {
    let config = configure(store, "");
    let archive = format!(
        "[namespace.archive]\nseparator = \"/\"\nprefix = \"Archive/\"\nmail_driver = \"mdbox\"\n\
         mail_path = \"~/mdbox\"\nhand_over = \"{agent}\"\nhand_over_detail = true\n\
         [[route]]\nheader = \"Message-ID\"\nmailbox = \"Archive/Old\"\n"
    );
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + &archive).unwrap();
    config
}

/// Its answer to the message is lost, and it refuses the message when that comes again: it may be full of it. That is no bounce; a
/// route leads on to INBOX.
#[test]
fn what_dovecot_may_have_is_no_bounce() {
    for (way, is_routed, later, another) in [
        (Way::Lmtp, false, "452 4.2.2", "552 5.2.2"),
        (Way::Lmtp, true, "250 2.0.0", "250 2.0.0"),
        (Way::Lda, false, "451 4.2.0", "550 5.7.1"),
        (Way::Lda, true, "250 2.0.0", "250 2.0.0"),
    ] {
        let store = Store::with_inbox();
        let agent = match way {
            Way::Lmtp => format!("lmtp:{}", answering(&store, "250 OK", "").display()),
            Way::Lda => script(
                &store,
                "test ! -e $(dirname $0)/run/full || exit 77\nkill -9 $$",
            ),
        };
        let config = match is_routed {
            false => configure(
                &store,
                &format!("mail_driver = \"sdbox\"\nhand_over = \"{agent}\""),
            ),
            true => with_a_route(&store, &agent),
        };
        let case = format!("{way:?} {is_routed}");
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let deliver = |letter: &[u8], want: &str| {
            let replies = server.client().deliver(&["alice@example.test"], letter);
            let reply = &replies[0];
            assert!(reply.starts_with(want), "{case}: {reply} {}", server.log());
        };
        deliver(LETTER, "451 4.2.0");
        fs::write(store.path("run/full"), "").unwrap();
        for _ in 0..2 {
            deliver(LETTER, later);
        }
        let stored = || messages(&store.path("home/alice/Maildir")).len();
        assert_eq!(stored(), usize::from(is_routed), "{case}");
        // Of another one nobody doubts that it is not there.
        deliver(b"Message-ID: <2@x.test>\r\n\r\n", another);
        assert_eq!(stored(), 2 * usize::from(is_routed), "{case}");
    }
}

/// Without lmtp_save_to_detail_mailbox Dovecot would put it into INBOX, and say nothing of that.
#[test]
fn over_lmtp_only_what_dovecot_can_be_told_has_a_name() {
    // Settings; recipient; the start of our answer; what Dovecot hears; part of the log line
    const DETAIL: &str = "\nhand_over_detail = true";
    for (settings, rcpt, reply, heard, log) in [
        (
            "",
            "alice@example.test",
            "250 2.0.0",
            "<alice@example.test>",
            "wanted=\"INBOX\"",
        ),
        (
            "",
            "alice+Work@example.test",
            "250 2.0.0",
            "<alice@example.test>",
            "why=\"hand mail for \\\"Work\\\" over to Dovecot",
        ),
        (
            DETAIL,
            "alice+Work@example.test",
            "250 2.0.0",
            "<alice+Work@example.test>",
            "wanted=\"Work\"",
        ),
        (
            DETAIL,
            "alice+W&APY-rk@example.test",
            "250 2.0.0",
            "<alice+W&APY-rk@example.test>",
            "W&APY-rk",
        ),
        (
            DETAIL,
            "\"alice+a b\"@example.test",
            "250 2.0.0",
            "<\"alice+a b\"@example.test>",
            "wanted=\"a b\"",
        ),
        // Alice's INBOX is not for mail to info@.
        (
            DETAIL,
            "info@example.test",
            "451 4.3.0",
            "",
            "into the INBOX of alice",
        ),
        // By the name of the user whom the map means.
        (
            DETAIL,
            "own@example.test",
            "250 2.0.0",
            "<alice>",
            "wanted=\"INBOX\"",
        ),
        ("", "info@example.test", "451 4.3.0", "", "hand_over_detail"),
        // It would take the plus for a divider.
        (
            DETAIL,
            "plus@example.test",
            "451 4.3.0",
            "",
            "it would read a detail",
        ),
    ] {
        let case = format!("{rcpt} {settings}");
        let store = Store::new();
        let agent = format!(
            "lmtp:{}",
            answering(&store, "250 2.1.5 OK", "250 2.0.0 Saved").display()
        );
        let config = configure(
            &store,
            &format!("mail_driver = \"sdbox\"\nhand_over = \"{agent}\"{settings}"),
        );
        let users = fs::read_to_string(store.path("users")).unwrap();
        let plus = format!(
            "a+b::{MAIL}:{MAIL}::{}::\n",
            store.path("home/plus").display()
        );
        support::write_long_ago(&store.path("users"), &format!("{users}{plus}"));
        let map = "[[address]]\nmatch = \"info@example.test\"\nmailbox = \"Info\"\nuser = \"alice\"\n\
                   [[address]]\nmatch = \"own@example.test\"\nmailbox = \"INBOX\"\nuser = \"alice\"\n\
                   [[address]]\nmatch = \"plus@example.test\"\nmailbox = \"INBOX\"\nuser = \"a+b\"\n";
        let text = fs::read_to_string(&config).unwrap() + map;
        fs::write(&config, text).unwrap();
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let replies = server.client().deliver(&[rcpt], LETTER);
        assert!(
            replies[0].starts_with(reply),
            "{case}: {replies:?} {}",
            server.log()
        );
        let told = fs::read_to_string(store.path("run/heard")).unwrap_or_default();
        match heard {
            "" => assert!(!told.contains("RCPT"), "{case}: {told}"),
            heard => assert!(
                told.contains(&format!("RCPT TO:{heard}\r\n")),
                "{case}: {told}"
            ),
        }
        assert!(server.log().contains(log), "{case}: {}", server.log());
    }
}

/// A route never costs the mail, and never stores it twice.
#[test]
fn what_dovecot_refuses_of_a_route() {
    // The way, and its answers to RCPT and to the message; our answer; where the message is
    for (way, rcpt, data, reply, place) in [
        (
            Way::Lmtp,
            "250 2.1.5 OK",
            "250 2.0.0 Saved",
            "250 2.0.0",
            "Dovecot",
        ),
        (Way::Lmtp, "550 5.7.1 <a> refused", "", "250 2.0.0", "INBOX"),
        (Way::Lmtp, "550 5.1.1 <a> unknown", "", "250 2.0.0", "INBOX"),
        (Way::Lmtp, "451 4.2.0 <a> later", "", "250 2.0.0", "INBOX"),
        (Way::Lmtp, "", "", "250 2.0.0", "INBOX"),
        (
            Way::Lmtp,
            "250 2.1.5 OK",
            "552 5.2.2 <a> full",
            "250 2.0.0",
            "INBOX",
        ),
        // It may have stored it.
        (
            Way::Lmtp,
            "250 2.1.5 OK",
            "451 4.2.0 <a> not now",
            "451 4.2.0",
            "",
        ),
        (Way::Lmtp, "250 2.1.5 OK", "", "451 4.2.0", ""),
        (Way::Lda, "exit 0", "", "250 2.0.0", "Dovecot"),
        (Way::Lda, "exit 77", "", "250 2.0.0", "INBOX"),
        (Way::Lda, "exit 67", "", "250 2.0.0", "INBOX"),
        (Way::Lda, "exit 64", "", "250 2.0.0", "INBOX"),
        (Way::Lda, "exit 75", "", "451 4.2.0", ""),
        (Way::Lda, "exit 89", "", "451 4.2.0", ""),
        (Way::Lda, "kill -9 $$", "", "451 4.2.0", ""),
    ] {
        let case = format!("{way:?} {rcpt} {data}");
        let store = Store::with_inbox();
        let agent = match way {
            Way::Lmtp => format!("lmtp:{}", answering(&store, rcpt, data).display()),
            Way::Lda => script(&store, rcpt),
        };
        let config = with_a_route(&store, &agent);
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let replies = server.client().deliver(&["alice@example.test"], LETTER);
        assert!(
            replies[0].starts_with(reply),
            "{case}: {replies:?} {}",
            server.log()
        );
        let inbox = || messages(&store.path("home/alice/Maildir")).len();
        assert_eq!(inbox(), usize::from(place == "INBOX"), "{case}");
        assert_eq!(
            replies[0].ends_with("Handed over to Dovecot"),
            place == "Dovecot",
            "{case}: {replies:?}"
        );
        if place == "INBOX" {
            assert!(
                server.log().contains("wanted=\"Archive/Old\""),
                "{case}: {}",
                server.log()
            );
        }
        // And by our LDA: a copy more where it was one.
        let mut command = program("postroom-lda");
        command
            .arg("-c")
            .arg(&config)
            .args(["-d", "alice", "-f", "s@x.test"]);
        as_user(&mut command, MAIL, MAIL, &[]);
        let code = run_with_input(&mut command, LETTER).status.code();
        assert_eq!(code, Some(if place.is_empty() { 75 } else { 0 }), "{case}");
        assert_eq!(inbox(), 2 * usize::from(place == "INBOX"), "{case}");
    }
}

/// Nothing stands behind INBOX itself: Dovecot's answer is ours, whatever led there.
#[test]
fn a_route_to_dovecots_inbox() {
    for (rcpt, data, code) in [
        ("451 4.2.0 <a> later", "", 75),
        ("550 5.1.1 <a> unknown", "", 75),
        ("", "", 75),
        ("250 2.1.5 OK", "451 4.2.0 <a> later", 75),
        ("250 2.1.5 OK", "552 5.2.2 <a> full", 77),
        ("250 2.1.5 OK", "250 2.0.0 Saved", 0),
    ] {
        for route in ["INBOX", "No/Such/Namespace", "W\u{f6}rk"] {
            let store = Store::new();
            let socket = answering(&store, rcpt, data);
            let inbox = format!(
                "mail_driver = \"sdbox\"\nhand_over = \"lmtp:{}\"",
                socket.display()
            );
            let config = configure(&store, &inbox);
            let reject = "[delivery]\non_missing = \"reject\"\n";
            let route = format!("[[route]]\nheader = \"Message-ID\"\nmailbox = \"{route}\"\n");
            let text = fs::read_to_string(&config).unwrap();
            fs::write(&config, replaced(&text, "[delivery]\n", reject) + &route).unwrap();
            let mut command = program("postroom-lda");
            command
                .arg("-c")
                .arg(&config)
                .args(["-d", "alice", "-f", "s@x.test"]);
            as_user(&mut command, MAIL, MAIL, &[]);
            let output = run_with_input(&mut command, LETTER);
            assert_eq!(
                output.status.code(),
                Some(code),
                "{rcpt} {data} {route}: {output:?}"
            );
            let heard = fs::read_to_string(store.path("run/heard")).unwrap();
            assert_eq!(
                heard.matches("RCPT").count(),
                1,
                "{rcpt} {data} {route}: {heard}"
            );
        }
    }
}

/// The answer to a message that INBOX has got is lost, and it comes again: Dovecot is not asked a second time.
#[test]
fn what_dovecot_has_refused_is_not_stored_twice() {
    let store = Store::with_inbox();
    let socket = answering(&store, "550 5.7.1 <a> refused", "");
    let config = with_a_route(&store, &format!("lmtp:{}", socket.display()));
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    for is_again in [false, true] {
        let replies = server.client().deliver(&["alice@example.test"], LETTER);
        assert!(replies[0].starts_with("250 2.0.0"), "{replies:?}");
        assert_eq!(
            replies[0].ends_with("Saved before"),
            is_again,
            "{replies:?} {}",
            server.log()
        );
        fs::write(store.path("run/takes"), "").unwrap();
    }
    let heard = fs::read_to_string(store.path("run/heard")).unwrap();
    assert!(!heard.contains("DATA"), "{heard}");
    assert_eq!(messages(&store.path("home/alice/Maildir")).len(), 1);
}

/// Nobody gets it while Dovecot will not take it for somebody else: all are asked first, also by `--dry-run`.
#[test]
fn all_are_asked_before_anything_is_stored() {
    // Dovecot's answer to RCPT; the exit code
    for (rcpt, code) in [
        ("250 2.1.5 OK", 0),
        ("550 5.7.1 <a> refused", 77),
        ("552 5.2.2 <a> full", 77),
        ("451 4.3.0 <a> later", 75),
        ("550 5.1.1 <a> unknown", 75),
        ("", 75),
    ] {
        let store = Store::new();
        let socket = answering(&store, rcpt, "250 2.0.0 Saved");
        let config = configure(&store, "");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(
            &config,
            format!("hand_over = \"lmtp:{}\"\n{text}", socket.display()),
        )
        .unwrap();
        let line = |name: &str, fields: &str| {
            let home = store.path("home").join(name);
            format!("{name}::{MAIL}:{MAIL}::{}::{fields}\n", home.display())
        };
        let users =
            line("alice", "userdb_namespace/inbox/location=mdbox:~/mdbox") + &line("bob", "");
        support::write_long_ago(&store.path("users"), &users);
        for (arguments, expected) in [
            (&["--dry-run", "alice@example.test"][..], 0),
            (
                &["bob@example.test", "alice@example.test"],
                usize::from(code == 0),
            ),
        ] {
            let mut command = program("postroom-lda");
            command
                .arg("-c")
                .arg(&config)
                .args(["-f", "s@x.test"])
                .args(arguments);
            as_user(&mut command, MAIL, MAIL, &[]);
            let output = run_with_input(&mut command, LETTER);
            // Nobody sees what a look says in a pipe, and it is no delivery.
            let is_look = arguments[0] == "--dry-run";
            let said = String::from_utf8_lossy(&output.stdout);
            let said_code = format!("exit code     {code}\n");
            assert_eq!(is_look, said.ends_with(&said_code), "{rcpt}: {said}");
            let expected_code = if is_look && code == 0 { 75 } else { code };
            assert_eq!(
                output.status.code(),
                Some(expected_code),
                "{rcpt} {output:?}"
            );
            assert_eq!(
                messages(&store.path("home/bob/Maildir")).len(),
                expected,
                "{rcpt}"
            );
        }
    }
}

#[test]
fn without_a_way_to_dovecot_nothing_starts() {
    let store = Store::new();
    let config = configure(&store, "mail_driver = \"sdbox\"");
    let want = "namespace \"inbox\": only Dovecot writes sdbox";
    for (name, arguments, code) in [
        ("postroom-lmtpd", &[][..], 75),
        ("postroom", &["check"], 78),
        ("postroom-lda", &["-d", "alice"], 75),
    ] {
        let mut command = program(name);
        command.arg("-c").arg(&config).args(arguments);
        as_user(&mut command, MAIL, MAIL, &[]);
        let output = run_with_input(&mut command, LETTER);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(code), "{name}: {said}");
        // Stderr of the LDA travels into bounces.
        assert!(
            name == "postroom-lda" || said.contains(want) && said.contains("hand_over = "),
            "{name}: {said}"
        );
    }
}

/// What a userdb says of one user.
#[test]
fn one_user_of_many() {
    // With a way to Dovecot; the fields; the reply
    for (has_way, fields, reply) in [
        (
            true,
            "userdb_mail=mdbox:~/mdbox:ALT=/slow:MAILBOXDIR=x",
            "250 2.0.0 <alice@example.test>",
        ),
        (
            true,
            "userdb_namespace/inbox/location=sdbox:/anywhere",
            "250 2.0.0",
        ),
        (
            true,
            "userdb_mail_driver=sdbox userdb_mail_path=/anywhere",
            "250 2.0.0",
        ),
        (true, "userdb_mail=maildir:~/box:LAYOUT=INDEX", "250 2.0.0"),
        (false, "userdb_mail=mdbox:~/mdbox", "451 4.3.0"),
        (false, "userdb_mailbox_list_layout=index", "451 4.3.0"),
    ] {
        let store = Store::new();
        let agent = script(&store, "exit 0");
        let config = configure(&store, "");
        let line = format!(
            "alice::{MAIL}:{MAIL}::{}::{fields}\n",
            store.path("home/alice").display()
        );
        let bob = format!(
            "bob::{MAIL}:{MAIL}::{}::\n",
            store.path("home/bob").display()
        );
        support::write_long_ago(&store.path("users"), &(line + &bob));
        if has_way {
            let text = fs::read_to_string(&config).unwrap();
            fs::write(&config, format!("hand_over = \"{agent}\"\n{text}")).unwrap();
        }
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let replies = server
            .client()
            .deliver(&["alice@example.test", "bob@example.test"], LETTER);
        assert!(
            replies[0].starts_with(reply),
            "{fields}: {replies:?} {}",
            server.log()
        );
        assert_eq!(
            replies[0].ends_with("Handed over to Dovecot"),
            has_way,
            "{replies:?}"
        );
        assert!(replies[1].contains("mailbox=\"INBOX\""), "{replies:?}");
        assert!(
            has_way || server.log().contains("hand_over"),
            "{}",
            server.log()
        );
        assert!(
            !store.path("home/alice/Maildir").exists() && !store.path("home/alice/mdbox").exists()
        );
    }
}
