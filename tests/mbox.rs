//! mbox beside a live Dovecot: what we write every reader takes for the messages that they are.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use support::imap::Imap;
use support::peers::{Dovecot, Exim, VERSIONS, Version};
use support::{MAIL, Server, Store, corpus, installed, not_root, own, replace_in, replaced, skip};

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
    let config = store.configure("", "");
    fs::write(&config, replaced(&text, inbox, &both)).unwrap();
    config
}

fn dovecot(version: Version, store: &Store) -> Option<Dovecot> {
    let spool = store.scratch.text("spool");
    Dovecot::start_with(version, store, |text| {
        let inbox = "namespace inbox {\n  separator = /\n  prefix =\n  inbox = yes\n}\n";
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
        // As procmail and Exim: those and a Dovecot with Debian's order wait for each other for minutes.
        let locks = "mbox_write_locks = dotlock fcntl\n";
        let (first, rest) = text.split_once("base_dir").unwrap();
        format!("{first}{locks}base_dir{}", replaced(rest, inbox, &both))
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
    let texts: [&[u8]; 9] = [
        b"Subject: from\n\nFrom here on\n>From there\n\nFrom a@b  Mon Nov 02 07:02:09 2026\nSubject: no\n\nx\n",
        b"Subject: noted\nStatus: RO\nX-Status: AD\nX-UID: 77\nX-IMAPbase: 1 9\nX-Keywords: x\nContent-Length: 3\n\nbody\n",
        b"Subject: open end\n\nlast line",
        b"Subject: empty\n\n",
        b"Subject: lines\n\n\n\n\n",
        b"Subject: \xe4\xf6\xfc\n\n\xe4\n",
        b"Subject: end\n\nFrom ",
        b"Subject: nul\n\na\0b\n\0From x\n",
        b"",
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
        // IMAP has no NUL.
        let shown_as = |mut body: Vec<u8>| {
            body.iter_mut()
                .filter(|byte| **byte == 0)
                .for_each(|byte| *byte = 0x80);
            body
        };
        let ours = |message: &&Vec<u8>| shown_as(quoted(&body(message)));
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
                shown_as(body)
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
    assert_eq!(lda_exit(config, mailbox, message), 0, "{mailbox}");
}

fn lda_exit(config: &Path, mailbox: &str, message: &[u8]) -> i32 {
    let mut lda = support::program("postroom-lda");
    lda.arg("-c").arg(config);
    lda.args(["-d", "alice", "-m", mailbox, "-f", "a@b"]);
    support::as_user(&mut lda, MAIL, MAIL, &[]);
    let output = support::run_with_input(&mut lda, message);
    output.status.code().unwrap()
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

/// Files that fuzzing has come upon, behind a first message, each twice: with a delivery Dovecot counts one message more, and it is the
/// last.
#[test]
fn odd_files_have_one_message_more() {
    if not_root() {
        return;
    }
    let mut odd: Vec<Vec<u8>> = fs::read_dir("tests/fuzz/corpus/mbox")
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    odd.sort();
    let first = b"From a@b  Mon Nov 02 07:02:09 2026\nSubject: first\n\n";
    for version in VERSIONS {
        let store = Store::new();
        let config = mixed(&store);
        let Some(dovecot) = dovecot(version, &store) else {
            return;
        };
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let mut client = server.client();
        for (number, bytes) in odd.iter().enumerate() {
            for name in ["ours", "theirs"] {
                let path = store.path(&format!("home/alice/mail/{name}{number}"));
                fs::write(&path, [first, &bytes[..]].concat()).unwrap();
                own(&path, MAIL, MAIL);
            }
            let recipient = format!("alice+#mbox/ours{number}@x");
            let replies = client.deliver(&[&recipient], b"Subject: last\n\ntext\n");
            assert!(replies[0].starts_with("250 2.0.0"), "{replies:?}");
        }
        let mut imap = Imap::login(dovecot.port, "alice");
        for (number, bytes) in odd.iter().enumerate() {
            let mut look = |name: &str| {
                imap.select(&format!("#mbox/{name}{number}"));
                let all = imap.fetch_all();
                imap.command("CLOSE");
                all
            };
            let (theirs, ours) = (look("theirs"), look("ours"));
            let all = String::from_utf8_lossy(bytes);
            assert_eq!(ours.len(), theirs.len() + 1, "{version:?} {all}");
            let last = ours.last().unwrap();
            assert_eq!(support::subject(&last.bytes), "last", "{version:?} {all}");
            assert_eq!(body(&last.bytes), b"text\n", "{version:?} {all}");
        }
    }
}

/// Appends messages under all three locks, as other programs do, so many or for so many seconds; says how many.
const APPENDER: &str = "import fcntl, mailbox, sys, time\n\
    box = mailbox.mbox(sys.argv[1])\n\
    count, until, number = int(sys.argv[3]), time.time() + float(sys.argv[4]), 0\n\
    while number < count or time.time() < until:\n\
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
    \tfile.close()\n\
    \tnumber += 1\n\
    print(number)\n";

/// Subject and body of each message in an mbox, by the lines `From ` behind an empty line.
fn split(text: &[u8]) -> Vec<(String, &[u8])> {
    let starts = memchr::memmem::find_iter(text, b"\n\nFrom ").map(|at| at + 2);
    let starts: Vec<usize> = [0].into_iter().chain(starts).collect();
    let ends = starts.iter().copied().skip(1).chain([text.len()]);
    let messages = starts.iter().zip(ends).map(|(start, end)| {
        let message = &text[*start..end];
        let header = memchr::memmem::find(message, b"\n\n").unwrap();
        (support::subject(&message[..header]), &message[header + 2..])
    });
    messages.collect()
}

/// The headers of all messages of that name, which tell who has added them, and when.
fn headers_of(text: &[u8], name: &str) -> Vec<String> {
    let line = format!("\nSubject: {name}\n");
    let found = memchr::memmem::find_iter(text, line.as_bytes()).map(|at| {
        let from = memchr::memmem::rfind(&text[..at], b"\n\n").map_or(0, |at| at + 2);
        let length = memchr::memmem::find(&text[at..], b"\n\n");
        String::from_utf8_lossy(&text[from..at + length.unwrap()]).into_owned()
    });
    found.collect()
}

/// All kinds of programs add to one mbox, while a client of Dovecot's takes messages out: each is there once, and whole.
///
/// `POSTROOM_STRESS_SECONDS`: for so long, on an mbox of a gigabyte (`tests/stress` does a minute).
#[test]
fn many_writers() {
    if not_root() {
        return;
    }
    let seconds = std::env::var("POSTROOM_STRESS_SECONDS").map_or(0, |it| it.parse().unwrap());
    for version in VERSIONS {
        let store = Store::new();
        let config = mixed(&store);
        let Some(dovecot) = dovecot(version, &store) else {
            return;
        };
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let spool = store.path("spool");
        let Some(exim) = Exim::new(&store.scratch, &server.socket, "/bin/false", &spool) else {
            return;
        };
        let file = spool.join("alice");
        lda(&config, "INBOX", b"Subject: first\n\n");
        let old = match seconds {
            0 => 20,
            _ => 1000,
        };
        let padding = "text of an old message\n".repeat(if seconds > 0 { 45_000 } else { 10 });
        let mut text = fs::read(&file).unwrap();
        for number in 0..old {
            text.extend(
                format!("From old  Mon Nov 02 07:02:09 2026\nSubject: old-{number}\n\n{padding}\n")
                    .bytes(),
            );
        }
        fs::write(&file, &text).unwrap();
        drop(text);
        let filler = "From here on it is text.\n".repeat(400);
        // What it does not quote it knows by the length only.
        let plain = filler.replace("From", "Text");
        let text_of =
            |name: &str, filler: &str| format!("Subject: {name}\n\n{filler}").into_bytes();
        let procmailrc = format!(
            "SHELL=/bin/sh\nDEFAULT={0}\nORGMAIL={0}\nLOGFILE=/dev/null\nLOCKSLEEP=1\n:0:\n{0}\n",
            file.display()
        );
        let procmailrc = store
            .scratch
            .file("procmailrc", MAIL, MAIL, 0o600, &procmailrc);
        let began = std::time::Instant::now();
        let is_over =
            |number: usize, least: usize| number >= least && began.elapsed().as_secs() >= seconds;
        // How many of each name were stored.
        let stored = Mutex::new(vec![("first".to_owned(), 0), ("old".into(), old)]);
        let store_until_over = |name: String, least: usize, deliver: &mut dyn FnMut(&str)| {
            let mut number = 0;
            while !is_over(number, least) {
                deliver(&format!("{name}-{number}"));
                number += 1;
            }
            stored.lock().unwrap().push((name, number));
        };
        let mut expunged = Vec::new();
        std::thread::scope(|scope| {
            let store_until_over = &store_until_over;
            for writer in 0..4 {
                let (server, filler) = (&server, &filler);
                scope.spawn(move || {
                    let mut client = server.client();
                    store_until_over(format!("lmtp{writer}"), 12, &mut |name| {
                        let message = text_of(name, filler);
                        let replies = client.deliver(&["alice@example.test"], &message);
                        assert!(replies[0].starts_with("250 "), "{replies:?}");
                    });
                });
            }
            for writer in 0..3 {
                let (config, filler) = (&config, &filler);
                scope.spawn(move || {
                    store_until_over(format!("lda{writer}"), 12, &mut |name| {
                        lda(config, "INBOX", &text_of(name, filler));
                    });
                });
            }
            for writer in 0..2 {
                let (dovecot, plain, filler) = (&dovecot, &plain, &filler);
                scope.spawn(move || {
                    store_until_over(format!("dovecot{writer}"), 3, &mut |name| {
                        assert_eq!(
                            dovecot.lda("alice", "INBOX", &text_of(name, plain)),
                            Some(0)
                        );
                    });
                });
                let procmailrc = &procmailrc;
                scope.spawn(move || {
                    store_until_over(format!("procmail{writer}"), 3, &mut |name| {
                        let mut procmail = Command::new("procmail");
                        procmail.args(["-f", "a@b", "-m"]).arg(procmailrc);
                        support::as_user(&mut procmail, MAIL, MAIL, &[]);
                        let output = support::run_with_input(&mut procmail, &text_of(name, filler));
                        assert_eq!(output.status.code(), Some(0), "{output:?}");
                    });
                });
                let exim = &exim;
                scope.spawn(move || {
                    store_until_over(format!("exim{writer}"), 3, &mut |name| {
                        exim.send(&["alice@mbox.test"], &text_of(name, filler));
                    });
                });
            }
            for writer in 0..3 {
                let (file, stored) = (&file, &stored);
                scope.spawn(move || {
                    let name = format!("python{writer}");
                    let mut python = Command::new("/usr/bin/python3");
                    python.args(["-c", APPENDER]).arg(file);
                    python.args([&name, "12", &seconds.to_string()]);
                    support::as_user(&mut python, MAIL, MAIL, &[]);
                    let output = python.output().unwrap();
                    assert!(output.status.success(), "{output:?}");
                    let said = String::from_utf8(output.stdout).unwrap();
                    let count = said.trim().parse().unwrap();
                    stored.lock().unwrap().push((name, count));
                });
            }
            // Takes out some of the last that it sees, now and then.
            let (dovecot, expunged) = (&dovecot, &mut expunged);
            scope.spawn(move || {
                let mut rounds = 0;
                while !is_over(rounds, 6) {
                    let mut imap = Imap::login(dovecot.port, "alice");
                    let count = imap.select("INBOX");
                    let recent = format!("{}:*", count.saturating_sub(20).max(2));
                    let lines = imap.command(&format!("FETCH {recent} (UID)"));
                    let uids = lines.iter().filter_map(|line| line.split("UID ").nth(1));
                    let uids: Vec<u32> = uids
                        .filter_map(|it| it.trim_end_matches(')').parse().ok())
                        .collect();
                    let before = expunged.len();
                    let mut said = Vec::new();
                    for uid in uids.iter().step_by(4) {
                        let what = "BODY.PEEK[HEADER.FIELDS (SUBJECT)]";
                        for message in imap.fetch(&uid.to_string(), what) {
                            expunged.push(support::subject(&message.bytes));
                        }
                        // Dovecot's OK may mean nothing where somebody has added since it last looked: then it asks for a
                        // second one.
                        let store = format!("UID STORE {uid} +FLAGS (\\Deleted)");
                        for _ in 0..5 {
                            let lines = imap.command(&store);
                            let is_kept = lines.iter().any(|it| it.contains("\\Deleted"));
                            said.extend(lines);
                            if is_kept {
                                break;
                            }
                        }
                    }
                    said.extend(imap.command("EXPUNGE"));
                    let gone = said.iter().filter(|it| it.ends_with(" EXPUNGE")).count();
                    let wanted = &expunged[before..];
                    let complaints = dovecot.complaints();
                    assert_eq!(
                        gone,
                        wanted.len(),
                        "{version:?}: {wanted:?}: {said:?} {complaints:?}"
                    );
                    imap.command("LOGOUT");
                    std::thread::sleep(std::time::Duration::from_millis(200));
                    rounds += 1;
                }
            });
        });
        exim.drain();
        let text = fs::read(&file).unwrap();
        let left = split(&text);
        for (name, body) in &left {
            let kind = name.split(|c: char| c.is_ascii_digit() || c == '-').next();
            let body = body.trim_ascii_end();
            let is_whole = match kind.unwrap() {
                "python" => body == b"body",
                "lmtp" | "lda" => body == quoted(filler.as_bytes()).trim_ascii_end(),
                "dovecot" => body == plain.trim_ascii_end().as_bytes(),
                "old" => body == padding.trim_ascii_end().as_bytes(),
                "first" => body.is_empty(),
                _ => body.len() >= filler.trim_ascii_end().len(),
            };
            assert!(is_whole, "{version:?}: {name}");
        }
        let names = left.iter().map(|(name, _)| name).chain(&expunged);
        let mut all: BTreeMap<&str, usize> = BTreeMap::new();
        names.for_each(|name| *all.entry(name).or_default() += 1);
        let stored = stored.into_inner().unwrap();
        let mut wanted = vec!["first".to_owned()];
        for (name, count) in &stored {
            wanted.extend((0..*count).map(|number| format!("{name}-{number}")));
        }
        for name in &wanted {
            assert_eq!(
                all.get(name.as_str()),
                Some(&1),
                "{version:?}: {name}: taken out: {}, there: {:?}",
                expunged.contains(name),
                headers_of(&text, name)
            );
        }
        assert_eq!(all.len(), wanted.len());
        eprintln!(
            "{version:?}: {} bytes, {} expunged, in {} s: {stored:?}",
            text.len(),
            expunged.len(),
            began.elapsed().as_secs()
        );
        let names: Vec<_> = fs::read_dir(&spool)
            .unwrap()
            .map(|it| it.unwrap().file_name())
            .collect();
        assert_eq!(names, ["alice"], "no lock is left");
        let mut imap = Imap::login(dovecot.port, "alice");
        assert_eq!(imap.select("INBOX"), left.len(), "{version:?}");
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

/// Those that wait for an mbox are appended together, also by two ways to it: each is there once and whole, in the order of its place
/// and of its UID, which is the one that was said.
#[test]
fn many_connections() {
    const CONNECTIONS: usize = 16;
    const EACH: usize = 6;
    if not_root() {
        return;
    }
    let subjects = "import mailbox, sys\n\
        for message in mailbox.mbox(sys.argv[1]):\n\
        \tprint(message['Subject'], len(message.get_payload()))\n";
    for version in VERSIONS {
        let store = Store::new();
        let config = mixed(&store);
        let Some(dovecot) = dovecot(version, &store) else {
            return;
        };
        let file = store.path("spool/alice");
        lda(&config, "INBOX", b"Subject: first\n\n");
        let mut imap = Imap::login(dovecot.port, "alice");
        imap.select("INBOX");
        imap.command("LOGOUT");
        let link = store.path("home/bob/mail/linked");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(MAIL), Some(MAIL)).unwrap();
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let body = |name: &str| format!("{name}\nFrom me\n").repeat(name.len() * 40);
        // Where a message went: its subject, its UID if one was said.
        let said = Mutex::new(Vec::new());
        for ways in [
            ["alice@example.test"; 2],
            ["alice@example.test", "bob+#mbox/linked@example.test"],
        ] {
            std::thread::scope(|scope| {
                for connection in 0..CONNECTIONS {
                    let (server, said) = (&server, &said);
                    scope.spawn(move || {
                        let mut client = server.client();
                        for number in 0..EACH {
                            let (first, way) = (ways[0], ways[number % 2]);
                            let name =
                                format!("{}-{connection}-{number}", usize::from(way != first));
                            let name = format!("{name}-{}", usize::from(ways[0] != ways[1]));
                            let message = format!("Subject: {name}\n\n{}", body(&name));
                            let replies = client.deliver(&[way], message.as_bytes());
                            assert!(replies[0].starts_with("250 "), "{replies:?}");
                            said.lock()
                                .unwrap()
                                .push((name, support::uid_of(&replies[0])));
                        }
                    });
                }
            });
        }
        let said = said.into_inner().unwrap();
        let with_uid: BTreeMap<u32, &str> = said
            .iter()
            .filter_map(|(name, uid)| Some(((*uid)?, name.as_str())))
            .collect();
        let count = said.iter().filter(|(_, uid)| uid.is_some()).count();
        assert!(
            with_uid.len() == count && count >= CONNECTIONS * EACH,
            "{count}: {}",
            server.log()
        );
        let text = fs::read(&file).unwrap();
        let left = split(&text);
        assert_eq!(left.len(), 1 + said.len(), "{version:?}");
        let bodies: BTreeMap<&str, &[u8]> = left
            .iter()
            .map(|(name, body)| (name.as_str(), *body))
            .collect();
        for (name, _) in &said {
            let want = quoted(body(name).as_bytes());
            let found = bodies.get(name.as_str()).map(|it| it.trim_ascii_end());
            assert_eq!(found, Some(want.trim_ascii_end()), "{version:?}: {name}");
        }
        let in_order: Vec<&str> = left.iter().map(|(name, _)| name.as_str()).collect();
        let named: Vec<&str> = with_uid.values().copied().collect();
        let known = in_order.iter().filter(|name| named.contains(name));
        assert_eq!(known.copied().collect::<Vec<_>>(), named, "{version:?}");
        let mut python = Command::new("/usr/bin/python3");
        let python = python.args(["-c", subjects]).arg(&file).output().unwrap();
        let shown = String::from_utf8(python.stdout).unwrap();
        let shown: Vec<&str> = shown
            .lines()
            .filter_map(|it| it.split(' ').next())
            .collect();
        assert_eq!(shown, in_order, "{version:?}");
        let mut imap = Imap::login(dovecot.port, "alice");
        assert_eq!(imap.select("INBOX"), left.len(), "{version:?}");
        for message in imap.fetch_all() {
            let subject = support::subject(&message.bytes);
            let known = with_uid.get(&message.uid);
            assert!(
                known.is_none_or(|name| *name == subject),
                "{version:?}: {subject}"
            );
        }
        imap.command("LOGOUT");
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
        assert!(!file.with_extension("lock").exists());
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
    if installed("mutt") || !skip("mutt is not installed") {
        assert_eq!(read_by_mutt(&own), messages.len());
    }
}

/// How many messages it pipes into a command, each by itself.
fn read_by_mutt(mbox: &Path) -> usize {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    let count = format!("#!/bin/sh\ncat >/dev/null\necho one >> {}\n", at("counted"));
    fs::write(at("count"), count).unwrap();
    support::peers::make_executable(&home.path().join("count"));
    // It asks for it.
    fs::create_dir(at("Mail")).unwrap();
    let keys = format!(
        "push <tag-pattern>~A<enter><pipe-message>{}<enter><exit>",
        at("count")
    );
    let mutt = format!(
        "mutt -n -F /dev/null -R -f {} -e 'set pipe_split=yes' -e 'set auto_tag=yes' -e 'set wait_key=no' -e '{keys}'",
        mbox.display()
    );
    let mut script = Command::new("timeout");
    script.args(["60", "script", "-qec", &mutt, "/dev/null"]);
    script.env("HOME", home.path()).env("TERM", "xterm");
    script.stdin(std::process::Stdio::piped());
    script.stdout(std::process::Stdio::null());
    let mut child = script.spawn().unwrap();
    // Open until the end: that of the terminal is a key too.
    let stdin = child.stdin.take();
    child.wait().unwrap();
    drop(stdin);
    fs::read_to_string(at("counted")).unwrap().lines().count()
}

/// /var/mail is root's and its group's: mail_privileged_group makes the locks and new INBOXes there, and nothing else.
#[test]
fn a_spool_of_the_privileged_group() {
    const USER: u32 = 6001;
    const SPOOL: u32 = 7001;
    if not_root() {
        return;
    }
    let scratch = support::Scratch::new();
    scratch.dir("spool", 0, SPOOL, 0o2775);
    scratch.dir("home", 0, 0, 0o755);
    scratch.dir("home/u1", USER, USER, 0o700);
    scratch.dir("home/u1/mail", USER, USER, 0o700);
    let others = scratch.file("spool/u2", 6002, SPOOL, 0o660, "");
    std::os::unix::fs::symlink(&others, scratch.path("home/u1/mail/other")).unwrap();
    std::os::unix::fs::lchown(scratch.path("home/u1/mail/other"), Some(USER), None).unwrap();
    let root = scratch.text("");
    let users = format!("u1::{USER}:{USER}::{root}/home/u1::\n");
    scratch.file("users", 0, 0, 0o644, &users);
    let lda = |group: &str, as_root: bool, mailbox: &str| {
        let config = format!(
            "{group}\n[[userdb]]\npasswd-file = {{ path = \"{root}/users\" }}\n[namespace.inbox]\ninbox = true\n\
             mail_driver = \"mbox\"\nmail_path = \"~/mail\"\nmail_inbox_path = \"{root}/spool/%{{user}}\"\n"
        );
        let config = scratch.file("postroom.toml", 0, 0, 0o644, &config);
        let mut lda = support::program("postroom-lda");
        lda.arg("-c").arg(config).args(["-d", "u1", "-m", mailbox]);
        lda.env("POSTROOM_LOG", "json");
        if !as_root {
            support::as_user(&mut lda, USER, USER, &[]);
        }
        let output = support::run_with_input(&mut lda, b"Subject: x\n\n");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap(), said)
    };
    const GROUP: &str = "mail_privileged_group = 7001";
    const BIG: &str = "mail_privileged_group = 7001\nmbox_lock_timeout = \"1s\"";
    for (group, as_root, mailbox, code, why) in [
        ("", true, "INBOX", 75, "Permission denied"),
        // Whoever is not root has no group to put aside.
        (GROUP, false, "INBOX", 75, "Permission denied"),
        (GROUP, true, "INBOX", 0, ""),
        (GROUP, true, "INBOX", 0, ""),
        // A user's symlink to what only the group may open.
        (GROUP, true, "other", 75, "Permission denied"),
    ] {
        let (exit, said) = lda(group, as_root, mailbox);
        assert_eq!(exit, code, "{group} {as_root} {mailbox}: {said}");
        assert!(said.contains(why), "{group} {as_root} {mailbox}: {said}");
    }
    let spool = |name: &str| fs::metadata(scratch.path("spool").join(name));
    let inbox = spool("u1").unwrap();
    assert_eq!(
        (inbox.uid(), inbox.gid(), inbox.mode() & 0o7777),
        (USER, SPOOL, 0o600)
    );
    assert_eq!(
        fs::read_to_string(scratch.path("spool/u1"))
            .unwrap()
            .matches("Subject: x")
            .count(),
        2
    );
    assert_eq!(spool("u2").unwrap().len(), 0);
    assert!(spool("u1.lock").is_err());
    // The lock of a living process is waited for, that of a dead one taken away.
    let lock = scratch.path("spool/u1.lock");
    fs::write(&lock, std::process::id().to_string()).unwrap();
    assert_eq!(lda(BIG, true, "INBOX").0, 75);
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    fs::write(&lock, format!("999999999:{}", host.trim())).unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(10);
    fs::File::options()
        .write(true)
        .open(&lock)
        .unwrap()
        .set_modified(old)
        .unwrap();
    let (exit, said) = lda(BIG, true, "INBOX");
    assert_eq!(exit, 0, "{said}");
    assert!(spool("u1.lock").is_err());
}

/// What other programs lock we leave alone, and take when they let it go.
#[test]
fn locks_of_other_programs() {
    if not_root() {
        return;
    }
    const PYTHON: &str = "import fcntl, sys, time\n\
        file = open(sys.argv[1], 'r+b')\n\
        fcntl.lockf(file, fcntl.LOCK_EX)\n\
        print(flush=True)\n\
        sys.stdin.read()\n";
    // The program, what it is told with FILE for the mbox, our locks, and how it lets go.
    #[rustfmt::skip]
    let rows = [
        ("dotlockfile", "dotlockfile -l FILE.lock; echo; cat; dotlockfile -u FILE.lock", "\"fcntl\", \"dotlock\""),
        ("lockfile", "lockfile FILE.lock; echo; cat; rm -f FILE.lock", "\"dotlock\""),
        ("mutt_dotlock", "mutt_dotlock -r1 FILE; echo; cat; mutt_dotlock -u FILE", "\"dotlock\", \"fcntl\""),
        ("flock", "flock FILE sh -c 'echo; cat'", "\"flock\", \"dotlock\""),
        ("flock", "flock FILE sh -c 'echo; cat'", "\"fcntl\", \"flock\""),
        ("python3", "python3 -c \"$PYTHON\" FILE", "\"lockf\""),
        ("python3", "python3 -c \"$PYTHON\" FILE", "\"dotlock\", \"fcntl\""),
    ];
    for (program, script, locks) in rows {
        if !installed(program) && skip(&format!("{program} is not installed")) {
            continue;
        }
        let store = Store::new();
        let config = mixed(&store);
        lda(&config, "INBOX", b"Subject: first\n\n");
        let file = store.path("spool/alice");
        let text = fs::read_to_string(&config).unwrap();
        let settings = format!("mbox_write_locks = [{locks}]\nmbox_lock_timeout = \"1s\"\n{text}");
        fs::write(&config, settings).unwrap();
        let before = fs::read(&file).unwrap();
        let mut holder = Command::new("sh");
        holder
            .arg("-c")
            .arg(script.replace("FILE", file.to_str().unwrap()));
        holder.env("PYTHON", PYTHON).env("PATH", "/usr/bin:/bin");
        support::as_user(&mut holder, MAIL, MAIL, &[]);
        holder.stdin(std::process::Stdio::piped());
        let mut holder = holder.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut said = [0];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
        let deliver = || lda_exit(&config, "INBOX", b"Subject: second\n\n");
        assert_eq!(deliver(), 75, "{script}");
        assert!(fs::read(&file).unwrap() == before, "{script}");
        drop(holder.stdin.take());
        holder.wait().unwrap();
        assert_eq!(deliver(), 0, "{script}");
        assert!(fs::read(&file).unwrap().len() > before.len(), "{script}");
        assert!(!file.with_extension("lock").exists(), "{script}");
    }
}

/// c-client's and Dovecot's first message that is none: it keeps the last UID.
#[test]
fn a_pseudo_message_stays() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::new();
        let config = mixed(&store);
        let Some(dovecot) = dovecot(version, &store) else {
            return;
        };
        let pseudo = "From MAILER-DAEMON Mon Nov 02 07:02:09 2026\n\
            Date: 02 Nov 2026 07:02:09 +0000\n\
            From: Mail System Internal Data <MAILER-DAEMON@example.test>\n\
            Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\n\
            Message-ID: <1@example.test>\n\
            X-IMAP: 1795600000 0000000007\n\
            Status: RO\n\n\
            This text is part of the internal format of your mail folder.\n\n";
        let file = store.scratch.file("spool/alice", MAIL, MAIL, 0o600, pseudo);
        let mut uids = Vec::new();
        for number in 0..3 {
            lda(
                &config,
                "INBOX",
                format!("Subject: {number}\n\n").as_bytes(),
            );
            let mut imap = Imap::login(dovecot.port, "alice");
            assert_eq!(imap.select("INBOX"), number + 1, "{version:?}");
            uids = imap.fetch_all().iter().map(|message| message.uid).collect();
            imap.command("LOGOUT");
        }
        assert_eq!(uids, [8, 9, 10], "{version:?}");
        let text = fs::read_to_string(&file).unwrap();
        let (start, end) = pseudo.split_once("0000000007").unwrap();
        assert!(text.starts_with(start), "{version:?}: {text}");
        assert!(text.contains(end), "{version:?}: {text}");
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

/// A new mbox is told of like any other new mailbox.
/// A stranger's name for what is no mailbox, and can be none, fills no queue: RCPT says what comes of it.
#[test]
fn what_can_be_no_mbox() {
    let longest = "n".repeat(250);
    let too_long = "n".repeat(251);
    // the detail; what is there; whether it is taken for a mailbox
    let cases: [(&str, Option<&[u8]>, bool); 9] = [
        ("notes.txt", Some(b"From me to you\n"), true),
        ("notes.txt", Some(b""), true),
        ("notes.txt", Some(b"Buy milk.\n"), false),
        ("notes.txt", Some(b"Fro"), false),
        ("notes.txt", Some(b"\0\0\0\0\0\0\0\0"), false),
        ("made", None, true),
        (&longest, None, true),
        (&too_long, None, false),
        (&too_long, Some(b""), false),
    ];
    for (name, there, is_mailbox) in cases {
        for on_denied in ["inbox", "reject"] {
            let store = Store::new();
            let config = mixed(&store);
            let denied = format!("[delivery]\non_denied = \"{on_denied}\"\n");
            replace_in(&config, "[delivery]\n", &denied);
            let file = store.path(&format!("home/alice/mail/{name}"));
            if let Some(there) = there {
                fs::write(&file, there).unwrap();
                support::own(&file, MAIL, MAIL);
            }
            let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
            let mut client = server.client();
            client.say("MAIL FROM:<s@x.test>");
            let rcpt = client.say(&format!("RCPT TO:<alice+#mbox/{name}@example.test>"));
            let case = format!("{name} {there:?} {on_denied}: {rcpt} {}", server.log());
            if !is_mailbox && on_denied == "reject" {
                assert!(rcpt.starts_with("550 5.7.1"), "{case}");
                continue;
            }
            assert!(rcpt.starts_with("250 2.1.5"), "{case}");
            client.say("DATA");
            client.send(b"Subject: x\r\n\r\n.\r\n");
            let data = client.reply();
            assert!(data.starts_with("250 2.0.0"), "{case}{data}");
            let inbox = fs::read(store.path("spool/alice")).unwrap_or_default();
            assert_eq!(inbox.is_empty(), is_mailbox, "{case}{data}");
            let now = fs::read(&file).ok();
            assert_eq!(now.as_deref() != there, is_mailbox, "{case}{data}");
        }
    }
}

/// All that is there is what a power cut has left of a message: the next one takes its place.
#[test]
fn an_mbox_that_begins_with_a_torn_message() {
    let store = Store::new();
    let config = mixed(&store);
    let file = store.path("home/alice/mail/torn");
    fs::write(&file, [0; 50]).unwrap();
    support::own(&file, MAIL, MAIL);
    let noted = xattr::set(&file, "user.postroom.appending", b"0 0 0 0 100");
    if noted.is_err() {
        skip("no attributes of files here");
        return;
    }
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    let recipient = "alice+#mbox/torn@example.test";
    let replies = server.client().deliver(&[recipient], b"Subject: x\n\ny\n");
    assert!(
        replies[0].contains("mailbox=\"#mbox/torn\""),
        "{replies:?} {}",
        server.log()
    );
    assert!(fs::read(&file).unwrap().starts_with(b"From "));
}

#[test]
fn a_new_mbox_is_subscribed_to() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::new();
        let config = mixed(&store);
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("lda_mailbox_autosubscribe = true\n{text}")).unwrap();
        let Some(dovecot) = dovecot(version, &store) else {
            return;
        };
        let subscribed = || {
            let mut imap = Imap::login(dovecot.port, "alice");
            let lines = imap.command("LSUB \"\" \"#mbox/*\"");
            lines.iter().filter(|line| line.contains("#mbox/a")).count()
        };
        assert_eq!(subscribed(), 0, "{version:?}");
        lda(&config, "#mbox/a", b"Subject: x\n\n");
        assert_eq!(subscribed(), 1, "{version:?}");
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

/// Rights on an mbox: what either sets the other has.
#[test]
fn rights() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::new();
        let config = mixed(&store);
        let Some(dovecot) = dovecot(version, &store) else {
            return;
        };
        let words = |output: std::process::Output| {
            assert!(output.status.success(), "{version:?}: {output:?}");
            let text = String::from_utf8(output.stdout).unwrap();
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let ours = |arguments: &[&str]| {
            let mut command = support::program("postroom");
            command.arg("-c").arg(&config).arg("acl").args(arguments);
            words(command.output().unwrap())
        };
        let theirs = |arguments: &[&str]| words(dovecot.doveadm(&[&["acl"], arguments].concat()));
        for name in ["Work", "Old/2025", "INBOX"] {
            let path = match name {
                "INBOX" => "spool/alice".to_owned(),
                name => format!("home/alice/mail/{name}"),
            };
            if name == "Old/2025" {
                store.scratch.dir("home/alice/mail/Old", MAIL, MAIL, 0o700);
            }
            store.scratch.file(&path, MAIL, MAIL, 0o600, "");
            let mailbox = match name {
                "INBOX" => name.to_owned(),
                name => format!("#mbox/{name}"),
            };
            let change = |verb, user, right| [verb, "-u", "alice", &mailbox, user, "lookup", right];
            ours(&change("set", "user=bob", "post"));
            theirs(&change("set", "user=carol", "read"));
            ours(&change("add", "user=carol", "insert"));
            let all = ["get", "-u", "alice", mailbox.as_str()];
            let (ours, theirs) = (ours(&all), theirs(&all));
            assert_eq!(ours, theirs, "{version:?} {mailbox}");
            assert!(ours.iter().any(|it| it == "insert") && ours.iter().any(|it| it == "post"));
        }
        let listed = ours(&["rights", "-u", "alice", "#mbox/Work"]);
        assert!(listed.iter().any(|it| it == "admin"), "{listed:?}");
        let list = fs::read_to_string(store.path("home/alice/mail/dovecot-acl-list")).unwrap();
        let names: Vec<&str> = list
            .lines()
            .filter_map(|line| Some(line.split_once(' ')?.1))
            .collect();
        assert_eq!(names, ["INBOX", "Old/2025", "Work"], "{version:?}");
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}
