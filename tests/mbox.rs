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
