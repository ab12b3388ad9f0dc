//! Mailboxes that only Dovecot writes: the message is handed over, and is where Dovecot shows it.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use support::imap::Imap;
use support::peers::{Dovecot, VERSIONS, Version};
use support::{MAIL, Server, Store, as_user, not_root, program, run_with_input, tree};

const LETTER: &[u8] =
    b"Message-ID: <1@x.test>\r\nSubject: box\r\n\r\nHello\r\n.dot\r\nFrom me\r\n";

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
                text.replace(
                    "mail_location = maildir:~/Maildir",
                    &format!("mail_location = {v23}"),
                )
                .replace(
                    "protocols = imap",
                    "protocols = imap lmtp\nauth_username_format = %Ln",
                ) + LMTP
            }
            Version::V24 => {
                text.replacen("mail_driver = maildir\nmail_path = ~/Maildir", v24, 1)
                    .replace(
                        "protocols = imap",
                        "protocols = imap lmtp\nauth_username_format = %{user | username | lower}",
                    )
                    + LMTP
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
            if way == Way::Lmtp {
                "550 5.1.1"
            } else {
                "250 2.1.5"
            },
            "550 5.1.1",
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
        (&["-d", "dave"], 67, ""),
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
