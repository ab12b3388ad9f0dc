//! With the real neighbours: an MTA in front, readers behind.

mod support;

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use support::imap::Imap;
use support::peers::{Dovecot, Postfix, VERSIONS, Version};
use support::{Lmtp, Store, corpus, installed, messages, not_root, skip, tree, unfinished};

/// Where Postfix sends the messages, and where they must be found.
const ROUTES: [(&str, &str, &str); 4] = [
    ("alice@example.test", "INBOX", "home/alice/Maildir"),
    (
        "alice+Work@example.test",
        "Work",
        "home/alice/Maildir/.Work",
    ),
    (
        "alice+Public/info@example.test",
        "Public/info",
        "public/.info",
    ),
    (
        "alice+shared/bob/Projects@example.test",
        "shared/bob/Projects",
        "home/bob/Maildir/.Projects",
    ),
];

#[test]
fn postfix_relays_and_dovecot_serves_byte_for_byte() {
    if not_root() {
        return;
    }
    for version in [Version::V23, Version::V24] {
        let store = Store::new();
        store
            .scratch
            .maildir("home/alice/Maildir", support::MAIL, support::MAIL, 0o700);
        store.scratch.maildir(
            "home/alice/Maildir/.Work",
            support::MAIL,
            support::MAIL,
            0o700,
        );
        let server = store.serve("", "");
        let Some(postfix) = Postfix::start(&store.scratch, &server.socket, "/bin/false") else {
            return;
        };
        let Some(dovecot) = Dovecot::start(version, &store) else {
            return;
        };
        let sent = corpus(200);
        for (number, message) in sent.iter().enumerate() {
            let mut marked = format!("X-Number: {number}\n").into_bytes();
            marked.extend(message);
            postfix.send(&[ROUTES[number % 4].0], &marked);
        }
        postfix.drain();
        for (route, (_, mailbox, folder)) in ROUTES.iter().enumerate() {
            let mut imap = Imap::login(dovecot.port, "alice");
            let count = imap.select(mailbox);
            let fetched = imap.fetch_all();
            let expected: Vec<usize> = (0..sent.len())
                .filter(|number| number % 4 == route)
                .collect();
            assert_eq!(
                count,
                expected.len(),
                "{mailbox} in {version:?}: {}",
                server.log()
            );
            let mut found = HashSet::new();
            for message in &fetched {
                let (number, body) = without_added_headers(&message.bytes);
                assert!(found.insert(number), "{number} is there twice");
                let want = with_crlf(&sent[number]);
                let differ = body
                    .iter()
                    .zip(&want)
                    .position(|(a, b)| a != b)
                    .unwrap_or(body.len().min(want.len()));
                let near = |bytes: &[u8]| {
                    String::from_utf8_lossy(
                        &bytes[differ.saturating_sub(60)..bytes.len().min(differ + 60)],
                    )
                    .into_owned()
                };
                assert!(
                    body == want,
                    "message {number} in {mailbox}, at {differ}: {:?}, sent {:?}",
                    near(&body),
                    near(&want)
                );
            }
            assert_eq!(found, expected.into_iter().collect(), "{mailbox}");
            let uids: HashSet<u32> = fetched.iter().map(|message| message.uid).collect();
            assert_eq!(uids.len(), fetched.len(), "{mailbox}");
            let mode = if *mailbox == "Public/info" {
                "-0660 8:100"
            } else {
                "-0600 8:8"
            };
            let mode = if *mailbox == "shared/bob/Projects" {
                "-0660 8:8"
            } else {
                mode
            };
            let lines = tree(&store.path(folder));
            let stored: Vec<&String> = lines
                .iter()
                .filter(|line| line.ends_with("cur/MESSAGE"))
                .collect();
            assert!(
                stored.iter().filter(|line| line.starts_with(mode)).count() >= count,
                "{lines:#?}"
            );
        }
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
        assert_eq!(
            unfinished(&store.path("home")),
            Vec::<std::path::PathBuf>::new()
        );
    }
}

/// The number of a message, and its bytes behind the line that carries it.
fn without_added_headers(bytes: &[u8]) -> (usize, Vec<u8>) {
    let mark = b"X-Number: ";
    let at = bytes
        .windows(mark.len())
        .position(|window| window == mark)
        .unwrap();
    let end = at + bytes[at..].iter().position(|&byte| byte == b'\n').unwrap();
    let number = String::from_utf8_lossy(&bytes[at + mark.len()..end])
        .trim()
        .parse()
        .unwrap();
    (number, bytes[end + 1..].to_vec())
}

/// As it goes over the wire, with a last line end.
fn with_crlf(message: &[u8]) -> Vec<u8> {
    let mut wire = support::stuffed(message);
    wire.truncate(wire.len() - 3);
    let mut out = Vec::new();
    for line in wire.split_inclusive(|&byte| byte == b'\n') {
        // A bare LF on the wire is a CRLF to IMAP: the store keeps LF.
        out.extend(line.strip_prefix(b".").unwrap_or(line));
    }
    // IMAP cannot say NUL: Dovecot shows 0x80 in its place.
    out.iter_mut()
        .filter(|byte| **byte == 0)
        .for_each(|byte| *byte = 0x80);
    out
}

#[test]
fn smtp_source_with_twenty_connections() {
    if !installed("smtp-source") {
        skip("smtp-source (Postfix) is not installed");
        return;
    }
    let store = Store::new();
    let server = store.serve("", "");
    let target = format!("unix:{}", server.socket.display());
    for extra in [&["-d"][..], &[]] {
        let mut command = Command::new("smtp-source");
        command
            .args([
                "-L",
                "-s",
                "20",
                "-m",
                "1000",
                "-l",
                "4000",
                "-t",
                "alice@example.test",
            ])
            .args(extra)
            .arg(&target);
        assert!(command.output().unwrap().status.success());
    }
    let stored = messages(&store.path("home/alice/Maildir"));
    assert_eq!(stored.len(), 2000);
    assert!(stored.iter().all(|(path, bytes)| {
        path.to_str()
            .unwrap()
            .contains(&format!(",S={},", bytes.len()))
    }));
    assert_eq!(
        unfinished(&store.path("home")),
        Vec::<std::path::PathBuf>::new()
    );
}

#[test]
fn what_was_answered_250_is_there_after_a_stop_in_the_middle() {
    let store = Store::new();
    let mut server = store.serve("", "");
    let socket = server.socket.clone();
    let answers = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..20)
        .map(|client| {
            let (socket, answers) = (socket.clone(), Arc::clone(&answers));
            thread::spawn(move || {
                let mut lmtp = support::Lmtp::connect(&socket);
                let mut stored = Vec::new();
                for number in 0..2000 {
                    let name = format!("{client}-{number}");
                    let message = format!("Subject: {name}\r\n\r\ntext\r\n.\r\n");
                    let commands =
                        "MAIL FROM:<a@b.test>\r\nRCPT TO:<alice@example.test>\r\nDATA\r\n";
                    if lmtp.try_send(commands.as_bytes()).is_err() {
                        break;
                    }
                    let accepted = (0..3).all(|_| {
                        lmtp.try_reply()
                            .is_ok_and(|reply| reply.starts_with(['2', '3']))
                    });
                    if !accepted || lmtp.try_send(message.as_bytes()).is_err() {
                        break;
                    }
                    match lmtp.try_reply() {
                        Ok(reply) if reply.starts_with("250 2.0.0") => stored.push(name),
                        _ => break,
                    }
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                stored
            })
        })
        .collect();
    support::wait_until("some are answered", || {
        answers.load(Ordering::Relaxed) > 500
    });
    server.terminate();
    let answered: Vec<String> = clients
        .into_iter()
        .flat_map(|client| client.join().unwrap())
        .collect();
    assert_eq!(server.wait(), Some(0), "{}", server.log());
    assert!(
        answered.len() < 20 * 2000,
        "all of them, and no stop in the middle"
    );
    let mut found = HashSet::new();
    for (path, bytes) in messages(&store.path("home/alice/Maildir")) {
        let text = String::from_utf8(bytes).unwrap();
        let subject = text
            .lines()
            .find_map(|line| line.strip_prefix("Subject: "))
            .unwrap()
            .to_owned();
        assert!(found.insert(subject), "{} is there twice", path.display());
    }
    let lost: Vec<&String> = answered
        .iter()
        .filter(|name| !found.contains(*name))
        .collect();
    assert_eq!(lost, Vec::<&String>::new());
}

#[test]
fn python_and_mutt_read_what_we_write() {
    let store = Store::new();
    let server = store.serve("", "");
    let message =
        "From: a@b.test\nSubject: Size\nContent-Type: text/plain; charset=utf-8\n\nGrüße\n.dot\n";
    let replies = server.client().deliver(
        &["alice@example.test", "alice+Spam@example.test"],
        message.as_bytes(),
    );
    assert!(
        replies.iter().all(|reply| reply.starts_with("250 2.0.0")),
        "{replies:?}"
    );
    let path = store.path("home/alice/Maildir");
    if installed("python3") {
        let script = "import mailbox, sys\nbox = mailbox.Maildir(sys.argv[1], create=False)\n\
                      for m in box: print(m['subject'], m.get_payload(decode=True).decode().replace(chr(10), '|'))\nprint(box.list_folders())";
        let lines =
            support::peers::lines_of(Command::new("python3").args(["-c", script]).arg(&path));
        assert_eq!(lines, ["Size Grüße|.dot|", "['Spam']"]);
    }
    if !installed("mutt") {
        skip("mutt is not installed");
        return;
    }
    let mut mutt = Command::new("mutt");
    mutt.args(["-n", "-F", "/dev/null", "-R", "-f"])
        .arg(path.join(".Spam"));
    mutt.args(["-e", "push <limit>~A<enter><exit>"])
        .env("HOME", store.path("run"))
        .env("TERM", "dumb");
    mutt.stdin(std::process::Stdio::null());
    let status = Command::new("timeout")
        .arg("20")
        .arg("mutt")
        .args(mutt.get_args())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&status.stderr).into_owned();
    assert!(!shown.contains("not a mailbox"), "{shown}");
}

/// What an MTA that is out of its mind says, to Dovecot and to us: the first digit of each reply, `x` where the connection ends. Each
/// difference is a row of its own.
#[test]
fn hostile_dialogues() {
    if not_root() {
        return;
    }
    const LMTP: &str = "service lmtp {\n  unix_listener lmtp {\n    mode = 0666\n  }\n}\n";
    let same = |all| [all; 3];
    // Ours, 2.3's and 2.4's.
    let rows: &[(&[&str], [&str; 3])] = &[
        (&["FOO"], same("5")),
        (&["LHLO"], same("5")),
        (&["HELO a"], same("5")),
        (&["EHLO a"], same("5")),
        (&["LHLO a b"], same("2")),
        (&["MAIL FROM:<a@b>"], same("2")),
        (&["LHLO a", "MAIL FROM:a@b"], same("25")),
        (&["LHLO a", "MAIL FROM: <a@b>"], same("25")),
        (&["LHLO a", "MAIL FROM:<a b@c>"], same("25")),
        (&["LHLO a", "MAIL FROM:<a@b> FOO=bar"], same("25")),
        (&["LHLO a", "MAIL FROM:<a@b> BODY=foo"], same("25")),
        (
            &["LHLO a", "MAIL FROM:<a@b> SIZE=99999999999999999999999"],
            same("25"),
        ),
        (&["LHLO a", "MAIL FROM:<>", "MAIL FROM:<>"], same("225")),
        (&["LHLO a", "RCPT TO:<alice@x>"], same("25")),
        (&["LHLO a", "MAIL FROM:<>", "RCPT TO:<>"], same("225")),
        (&["LHLO a", "MAIL FROM:<>", "RCPT TO:<\"\"@x>"], same("225")),
        (
            &["LHLO a", "MAIL FROM:<>", "RCPT TO:<@a,@b:alice@x>"],
            same("222"),
        ),
        (
            &["LHLO a", "MAIL FROM:<>", "RCPT TO:<alice@[127.0.0.1]>"],
            ["222", "225", "225"],
        ),
        (&["LHLO a", "MAIL FROM:<>", "RCPT TO:<alice@x"], same("225")),
        (
            &[
                "LHLO a",
                "MAIL FROM:<>",
                "RCPT TO:<alice@x>",
                "RCPT TO:<alice@x>",
            ],
            same("2222"),
        ),
        (&["LHLO a", "MAIL FROM:<>", "DATA"], same("225")),
        (
            &[
                "LHLO a",
                "MAIL FROM:<>",
                "RCPT TO:<alice@x>",
                "DATA",
                "x\n.\nMAIL FROM:<a@b>\r\n.",
            ],
            ["22232", "2223225", "22232"],
        ),
        (
            &[
                "LHLO a",
                "MAIL FROM:<>",
                "RCPT TO:<alice@x>",
                "DATA",
                "x\n.\r\nMAIL FROM:<a@b>\r\n.",
            ],
            ["22232", "2223225", "22232"],
        ),
        (
            &[
                "LHLO a",
                "MAIL FROM:<>",
                "RCPT TO:<alice@x>",
                "DATA",
                "x\r.\rMAIL FROM:<a@b>\r\n.",
            ],
            same("22232"),
        ),
        (
            &[
                "LHLO a",
                "MAIL FROM:<>",
                "RCPT TO:<alice@x>",
                "BDAT 3 LAST\r\nx",
            ],
            same("2222"),
        ),
        (
            &["LHLO a", "MAIL FROM:<>", "RCPT TO:<alice@x>", "BDAT -1"],
            same("2225"),
        ),
        (
            &[
                "LHLO a",
                "MAIL FROM:<>",
                "RCPT TO:<alice@x>",
                "BDAT 99999999999999999999",
            ],
            same("2225"),
        ),
        (
            &[
                "LHLO a",
                "MAIL FROM:<>",
                "RCPT TO:<alice@x>",
                "BDAT 0",
                "DATA",
            ],
            same("22225"),
        ),
        (&["LHLO a", "VRFY alice"], same("22")),
        (&["LHLO a", "STARTTLS"], same("25")),
        (&["LHLO a", "XCLIENT ADDR=1.2.3.4"], same("25")),
        (&["LHLO a\0b"], same("5")),
        (&["NOOP x y", "RSET x", "QUIT x"], same("555")),
    ];
    let store = Store::with_inbox();
    let server = store.serve("", "");
    let dovecots = VERSIONS.map(|version| {
        let users = match version {
            Version::V23 => "%Ln",
            Version::V24 => "%{user | username | lower}",
        };
        let protocols = format!("protocols = imap lmtp\nauth_username_format = {users}");
        Dovecot::start_with(version, &store, |text| {
            text.replace("protocols = imap", &protocols) + LMTP
        })
    });
    let [Some(v23), Some(v24)] = dovecots else {
        return;
    };
    let run = |it: &Dovecot| it.config.parent().unwrap().join("run/lmtp");
    let sockets = [server.socket.clone(), run(&v23), run(&v24)];
    for (lines, want) in rows {
        let found = sockets.each_ref().map(|socket| digits(socket, lines));
        assert_eq!(found.each_ref().map(String::as_str), *want, "{lines:?}");
    }
}

fn digits(socket: &Path, lines: &[&str]) -> String {
    let mut client = Lmtp::connect(socket);
    let mut found = String::new();
    for line in lines {
        let said = client.try_send(format!("{line}\r\n").as_bytes());
        let reply = said.and_then(|()| client.try_reply());
        found.push(reply.map_or('x', |it| it.chars().next().unwrap()));
    }
    // What comes behind the answer to the last.
    let _ = client.try_send(b"NOOP\r\n");
    while let Ok(reply) = client.try_reply() {
        match reply.starts_with("250 2.0.0 OK") {
            true => break,
            false => found.push(reply.chars().next().unwrap()),
        }
    }
    found
}
