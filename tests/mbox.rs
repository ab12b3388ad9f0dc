//! mbox beside a live Dovecot: what we write every reader takes for the messages that they are.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::imap::Imap;
use support::peers::{Dovecot, VERSIONS, Version};
use support::{MAIL, Server, Store, corpus, installed, not_root, skip};

/// The documents' "Mixed mbox and Maildir": INBOX is an mbox in a spool, folders are Maildirs, and `#mbox/` has mboxes too.
fn mixed(store: &Store) -> PathBuf {
    let spool = store.scratch.dir("spool", MAIL, MAIL, 0o770);
    for user in ["alice", "bob"] {
        store
            .scratch
            .dir(&format!("home/{user}/mail"), MAIL, MAIL, 0o700);
    }
    let text = store.config("on_missing = \"create\"", "");
    let inbox = "[namespace.inbox]\nseparator = \"/\"\ninbox = true\n";
    let both = format!(
        "[namespace.mbox]\nseparator = \"/\"\nprefix = \"#mbox/\"\nmail_driver = \"mbox\"\nmail_path = \"~/mail\"\n\
         mail_inbox_path = \"{}/%{{user}}\"\ninbox = true\nhidden = true\nlist = false\n\
         [namespace.inbox]\nseparator = \"/\"\nprefix = \"\"\nmail_path = \"~/Maildir\"\n",
        spool.display()
    );
    assert!(text.contains(inbox));
    store.configure("", "");
    fs::write(store.path("postroom.toml"), text.replace(inbox, &both)).unwrap();
    store.path("postroom.toml")
}

fn dovecot(version: Version, store: &Store) -> Option<Dovecot> {
    let spool = store.scratch.text("spool");
    Dovecot::start_with(version, store, |text| {
        let inbox = "namespace inbox {\n  separator = /\n  prefix =\n  inbox = yes\n}\n";
        assert!(text.contains(inbox));
        let place = match version {
            Version::V23 => format!("  location = mbox:~/mail:INBOX={spool}/%n\n"),
            Version::V24 => format!(
                "  mail_driver = mbox\n  mail_path = ~/mail\n  mail_inbox_path = {spool}/%{{user | username}}\n"
            ),
        };
        let both = format!(
            "namespace mbox {{\n  separator = /\n  prefix = \"#mbox/\"\n{place}  inbox = yes\n  hidden = yes\n  list = no\n}}\n\
             namespace inbox {{\n  separator = /\n  prefix =\n}}\n"
        );
        text.replace(inbox, &both)
    })
}

/// Its body as an mbox has it: with a last line end, and without a line that begins like a message.
fn quoted(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in body.split_inclusive(|&byte| byte == b'\n') {
        let marks = line.iter().take_while(|&&byte| byte == b'>').count();
        if line[marks..].starts_with(b"From ") {
            out.push(b'>');
        }
        out.extend_from_slice(line);
    }
    if !out.is_empty() && !out.ends_with(b"\n") {
        out.push(b'\n');
    }
    out
}

/// The body of a message, by lines that end in LF.
fn body(message: &[u8]) -> Vec<u8> {
    let text: Vec<u8> = message.to_vec();
    let mut lines = Vec::new();
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        match line.strip_suffix(b"\r\n") {
            Some(line) => lines.push([line, b"\n"].concat()),
            None => lines.push(line.to_vec()),
        }
    }
    let end = lines.iter().position(|line| line == b"\n");
    lines[end.map_or(lines.len(), |end| end + 1)..].concat()
}

/// How often each body is there.
fn count(bodies: impl Iterator<Item = Vec<u8>>) -> BTreeMap<Vec<u8>, usize> {
    let mut counts = BTreeMap::new();
    bodies.for_each(|body| *counts.entry(body).or_default() += 1);
    counts
}

fn hard_ones() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 7] = [
        b"Subject: from\n\nFrom here on\n>From there\n\nFrom a@b  Mon Nov 02 07:02:09 2026\nSubject: no\n\nx\n",
        b"Subject: noted\nStatus: RO\nX-Status: AD\nX-UID: 77\nX-IMAPbase: 1 9\nX-Keywords: x\nContent-Length: 3\n\nbody\n",
        b"Subject: open end\n\nlast line",
        b"Subject: empty\n\n",
        b"Subject: lines\n\n\n\n\n",
        b"Subject: \xe4\xf6\xfc\n\n\xe4\n",
        b"Subject: end\n\nFrom ",
    ];
    texts.map(<[u8]>::to_vec).into()
}

#[test]
fn mixed_mbox_and_maildir() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::new();
        store
            .scratch
            .maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
        let config = mixed(&store);
        let Some(dovecot) = dovecot(version, &store) else {
            return;
        };
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let mut client = server.client();
        let mut messages = hard_ones();
        messages.extend(corpus(40));
        messages.retain(|message| !message.contains(&0));
        let places = [
            ("alice", "INBOX", "spool/alice"),
            ("alice+#mbox/a/b", "#mbox/a/b", "home/alice/mail/a/b"),
        ];
        for (at, message) in messages.iter().enumerate() {
            for (recipient, mailbox, _) in places {
                let replies = client.deliver(&[&format!("{recipient}@example.test")], message);
                let want = format!("mailbox={mailbox:?}");
                assert!(replies[0].contains(&want), "{replies:?} {}", server.log());
                // And now and then by Dovecot.
                if at % 10 == 0 && at > 0 {
                    assert_eq!(dovecot.lda("alice", mailbox, message), Some(0));
                }
            }
        }
        lda(&config, "Work", b"Subject: x\n\n");
        let work = store.path("home/alice/Maildir/.Work");
        assert_eq!(support::messages(&work).len(), 1);
        let ours = |message: &&Vec<u8>| quoted(&body(message));
        for (_, mailbox, file) in places {
            let mut imap = Imap::login(dovecot.port, "alice");
            imap.select(mailbox);
            let shown = count(imap.fetch_all().iter().map(|message| body(&message.bytes)));
            let of_dovecot = messages
                .iter()
                .enumerate()
                .filter(|(at, _)| at % 10 == 0 && *at > 0);
            let of_dovecot = of_dovecot.map(|(_, message)| {
                let mut body = body(message);
                if !body.is_empty() && !body.ends_with(b"\n") {
                    body.push(b'\n');
                }
                body
            });
            let want = count(
                messages
                    .iter()
                    .map(|message| ours(&message))
                    .chain(of_dovecot),
            );
            assert!(shown == want, "{version:?} {mailbox}: other bodies");
            imap.command("LOGOUT");
            assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
            assert!(!store.path(&format!("{file}.lock")).exists());
        }
        read_by_others(&store.path("home/alice/mail"), &config, &messages);
    }
}

/// Into a mailbox of Alice's.
fn lda(config: &Path, mailbox: &str, message: &[u8]) {
    let mut lda = support::program("postroom-lda");
    lda.arg("-c").arg(config);
    lda.args(["-d", "alice", "-m", mailbox, "-f", "a@b"]);
    support::as_user(&mut lda, MAIL, MAIL, &[]);
    let output = support::run_with_input(&mut lda, message);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// Where Dovecot has looked at the file since it was last written, the UID is known at once, and so are flags and keywords.
#[test]
fn uids_flags_and_keywords() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::new();
        let config = mixed(&store);
        let Some(dovecot) = dovecot(version, &store) else {
            return;
        };
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let mut given = BTreeMap::new();
        let mut deliver = |subject: String| {
            let message = format!("Subject: {subject}\n\nFrom me\n");
            let replies = server
                .client()
                .deliver(&["alice@example.test"], message.as_bytes());
            assert!(replies[0].starts_with("250 "), "{replies:?}");
            let uid = support::uid_of(&replies[0]);
            if let Some(uid) = uid {
                given.insert(uid, subject);
            }
            uid
        };
        assert_eq!(deliver("no index".into()), None);
        for number in 0..3 {
            let mut imap = Imap::login(dovecot.port, "alice");
            imap.select("INBOX");
            if number == 2 {
                imap.command("STORE 1:2 +FLAGS (\\Deleted)");
                imap.command("EXPUNGE");
            }
            imap.command("LOGOUT");
            for more in 0..3 {
                let uid = deliver(format!("{number}-{more}"));
                assert!(
                    uid.is_some(),
                    "{version:?} {number}-{more}: {}",
                    server.log()
                );
            }
        }
        let mut marked = support::program("postroom-lda");
        marked.arg("-c").arg(&config).args(["-d", "alice"]);
        marked.args([
            "--flag",
            "\\Seen",
            "--flag",
            "\\Flagged",
            "--keyword",
            "$Label1",
        ]);
        support::as_user(&mut marked, MAIL, MAIL, &[]);
        let output = support::run_with_input(&mut marked, b"Subject: marked\n\n");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let mut imap = Imap::login(dovecot.port, "alice");
        imap.select("INBOX");
        let seen = imap.fetch_all();
        for message in &seen {
            let subject = support::subject(&message.bytes);
            if let Some(given) = given.get(&message.uid) {
                assert_eq!(given, &subject, "{version:?}");
            }
            if subject == "marked" {
                for flag in ["\\Seen", "\\Flagged", "$Label1"] {
                    assert!(
                        message.flags.contains(flag),
                        "{version:?}: {}",
                        message.flags
                    );
                }
            }
        }
        // The two that were taken out, and the first, whose UID Dovecot gave.
        assert_eq!(seen.len(), given.len() + 1 + 1 - 2, "{version:?}");
        imap.command("LOGOUT");
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

/// Appends a message under all three locks, as other programs do.
const APPENDER: &str = "import fcntl, mailbox, sys, time\n\
    box = mailbox.mbox(sys.argv[1])\n\
    for number in range(int(sys.argv[3])):\n\
    \twhile True:\n\
    \t\ttry:\n\
    \t\t\tbox.lock()\n\
    \t\t\tbreak\n\
    \t\texcept mailbox.ExternalClashError:\n\
    \t\t\ttime.sleep(0.01)\n\
    \tfile = open(sys.argv[1], 'r+b')\n\
    \tfile.seek(0, 2)\n\
    \ttext = f'From a@b Mon Nov  2 07:02:09 2026\\nSubject: {sys.argv[2]}-{number}\\n\\nbody\\n\\n'\n\
    \tfile.write(text.encode())\n\
    \tfile.flush()\n\
    \tbox.unlock()\n\
    \tfile.close()\n";

/// All kinds of programs add to one mbox, while a client of Dovecot's takes messages out: each is there once, and whole.
#[test]
fn many_writers() {
    const EACH: usize = 12;
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::new();
        let config = mixed(&store);
        let Some(dovecot) = dovecot(version, &store) else {
            return;
        };
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let file = store.path("spool/alice");
        lda(&config, "INBOX", b"Subject: first\n\n");
        let filler = "From here on it is text.\n".repeat(400);
        let message = |name: &str, number: usize| {
            format!("Subject: {name}-{number}\n\n{filler}").into_bytes()
        };
        let procmailrc = format!(
            "SHELL=/bin/sh\nDEFAULT={0}\nORGMAIL={0}\nLOGFILE=/dev/null\nLOCKSLEEP=1\n:0:\n{0}\n",
            file.display()
        );
        let procmailrc = store
            .scratch
            .file("procmailrc", MAIL, MAIL, 0o600, &procmailrc);
        let mut expunged = Vec::new();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let (server, message) = (&server, &message);
                scope.spawn(move || {
                    let mut client = server.client();
                    for number in 0..EACH {
                        let message = message(&format!("lmtp{writer}"), number);
                        let replies = client.deliver(&["alice@example.test"], &message);
                        assert!(replies[0].starts_with("250 "), "{replies:?}");
                    }
                });
            }
            for writer in 0..2 {
                let (config, message, dovecot, procmailrc) =
                    (&config, &message, &dovecot, &procmailrc);
                scope.spawn(move || {
                    for number in 0..EACH {
                        lda(config, "INBOX", &message(&format!("lda{writer}"), number));
                    }
                });
                scope.spawn(move || {
                    for number in 0..EACH / 4 {
                        let message = message(&format!("dovecot{writer}"), number);
                        assert_eq!(dovecot.lda("alice", "INBOX", &message), Some(0));
                    }
                });
                scope.spawn(move || {
                    for number in 0..EACH / 4 {
                        let mut procmail = Command::new("procmail");
                        procmail.args(["-f", "a@b", "-m"]).arg(procmailrc);
                        support::as_user(&mut procmail, MAIL, MAIL, &[]);
                        let message = message(&format!("procmail{writer}"), number);
                        let output = support::run_with_input(&mut procmail, &message);
                        assert_eq!(output.status.code(), Some(0), "{output:?}");
                    }
                });
                let file = &file;
                scope.spawn(move || {
                    let mut python = Command::new("/usr/bin/python3");
                    python.args(["-c", APPENDER]).arg(file);
                    python.args([format!("python{writer}"), EACH.to_string()]);
                    support::as_user(&mut python, MAIL, MAIL, &[]);
                    let output = python.output().unwrap();
                    assert!(output.status.success(), "{output:?}");
                });
            }
            // Takes out what it sees, now and then.
            let (dovecot, expunged) = (&dovecot, &mut expunged);
            scope.spawn(move || {
                for _ in 0..6 {
                    let mut imap = Imap::login(dovecot.port, "alice");
                    imap.select("INBOX");
                    let seen = imap.fetch_all();
                    for message in seen.iter().skip(1).step_by(4) {
                        expunged.push((message.uid, support::subject(&message.bytes)));
                        imap.command(&format!("UID STORE {} +FLAGS (\\Deleted)", message.uid));
                    }
                    imap.command("EXPUNGE");
                    imap.command("LOGOUT");
                    std::thread::sleep(std::time::Duration::from_millis(200));
                }
            });
        });
        let mut imap = Imap::login(dovecot.port, "alice");
        imap.select("INBOX");
        let left = imap.fetch_all();
        let whole = |message: &support::imap::Fetched| {
            let name = support::subject(&message.bytes);
            let body = body(&message.bytes);
            match name.split(['0', '1', '2', '3']).next().unwrap() {
                "python" => body == b"body\n",
                "lmtp" | "lda" => body == quoted(filler.as_bytes()),
                "dovecot" => body == filler.as_bytes(),
                _ => body.len() >= filler.len() || name == "first",
            }
        };
        for message in &left {
            assert!(
                whole(message),
                "{version:?}: {}",
                support::subject(&message.bytes)
            );
        }
        let names = left.iter().map(|message| support::subject(&message.bytes));
        let all = count(
            names
                .chain(expunged.iter().map(|(_, name)| name.clone()))
                .map(String::into_bytes),
        );
        let mut wanted = vec!["first".to_owned()];
        for (kind, writers, each) in [
            ("lmtp", 4, EACH),
            ("lda", 2, EACH),
            ("dovecot", 2, EACH / 4),
            ("procmail", 2, EACH / 4),
            ("python", 2, EACH),
        ] {
            for writer in 0..writers {
                wanted.extend((0..each).map(|number| format!("{kind}{writer}-{number}")));
            }
        }
        let wanted = count(wanted.into_iter().map(String::into_bytes));
        for (name, times) in &wanted {
            let name = String::from_utf8_lossy(name);
            assert_eq!(all.get(name.as_bytes()), Some(times), "{version:?}: {name}");
        }
        assert_eq!(all.len(), wanted.len());
        let spool = fs::read_dir(store.path("spool")).unwrap();
        let names: Vec<_> = spool.map(|it| it.unwrap().file_name()).collect();
        assert_eq!(names, ["alice"], "no lock is left");
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

/// Readers that know no Content-Length.
fn read_by_others(folder: &Path, config: &Path, messages: &[Vec<u8>]) {
    let own = folder.join("own");
    for message in messages {
        lda(config, "#mbox/own", message);
    }
    let script = "import mailbox, re, sys\n\
        box = mailbox.mbox(sys.argv[1])\n\
        print(len(box))\n\
        for key in box.keys():\n\
        \tbody = box.get_bytes(key).split(b'\\n\\n', 1)[1]\n\
        \tprint(re.sub(b'(?m)^>(>*From )', rb'\\1', body).hex())\n";
    let python = Command::new("python3")
        .args(["-c", script])
        .arg(&own)
        .output()
        .unwrap();
    let said = String::from_utf8(python.stdout).unwrap();
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some(messages.len().to_string().as_str()));
    for (message, line) in messages.iter().zip(lines) {
        let mut want = body(message);
        if !want.is_empty() && !want.ends_with(b"\n") {
            want.push(b'\n');
        }
        let want: String = want.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(line, want, "{}", String::from_utf8_lossy(message));
    }
    if !installed("formail") && skip("formail (procmail) is not installed") {
        return;
    }
    let mut formail = Command::new("formail");
    formail.args(["-e", "-s", "sh", "-c", "cat >/dev/null; echo one"]);
    formail.stdin(fs::File::open(&own).unwrap());
    let said = String::from_utf8(formail.output().unwrap().stdout).unwrap();
    assert_eq!(said.lines().count(), messages.len());
}
