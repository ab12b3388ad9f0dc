//! A message that is sent again because nobody heard that it was stored.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use support::{
    Lmtp, MAIL, Scratch, Server, Store, messages, messages_below, not_root, replace_in,
    write_long_ago,
};

const LETTER: &[u8] = b"Received: from a by b; Sun, 29 Nov 2026 09:00:00 +0000\r\nMessage-ID: <one@x.test>\r\nSubject: once\r\n\r\nHello\r\n";

/// A server whose clients are believed.
fn serve(store: &Store, delivery: &str, more: &str) -> Server {
    let config = store.configure(delivery, more);
    let trusted = "mode = \"0666\", trusted = true }]";
    replace_in(&config, "mode = \"0666\" }]", trusted);
    Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"))
}

/// One transaction after these lines; the reply to the message.
fn send(server: &Server, before: &[&str], from: &str, rcpt: &str, letter: &[u8]) -> String {
    let mut client = server.client();
    for line in before {
        assert!(client.say(line).starts_with("250"), "{line}");
    }
    client.say(&format!("MAIL FROM:<{from}>"));
    let reply = client.say(&format!("RCPT TO:{rcpt}"));
    assert!(reply.starts_with("250"), "{reply}");
    client.say("DATA");
    client.send(&support::stuffed(letter));
    client.reply()
}

#[test]
fn what_is_the_same_message() {
    let other = [LETTER, b"more\r\n"].concat();
    let bare: &[u8] = b"Subject: no mark\r\n\r\nHello\r\n";
    let ids = ["XFORWARD IDENT=4Xq1", "XFORWARD IDENT=4Xq2"];
    // settings; the second transaction: its XFORWARD, sender, recipient, bytes; whether it is stored too
    for (what, delivery, first, second, is_stored) in [
        (
            "the same",
            "",
            (None, "s@x.test", "<alice@x.test>", LETTER),
            (None, "s@x.test", "<alice@x.test>", LETTER),
            false,
        ),
        (
            "one more byte",
            "",
            (None, "s@x.test", "<alice@x.test>", LETTER),
            (None, "s@x.test", "<alice@x.test>", &other[..]),
            true,
        ),
        (
            "another sender",
            "",
            (None, "s@x.test", "<alice@x.test>", LETTER),
            (None, "t@x.test", "<alice@x.test>", LETTER),
            true,
        ),
        (
            "another mailbox",
            "",
            (None, "s@x.test", "<alice@x.test>", LETTER),
            (None, "s@x.test", "<alice+Public/info@x.test>", LETTER),
            true,
        ),
        (
            "another alias",
            "",
            (None, "s@x.test", "<alice@x.test> ORCPT=rfc822;a@x", LETTER),
            (None, "s@x.test", "<alice@x.test> ORCPT=rfc822;b@x", LETTER),
            true,
        ),
        (
            "the same queue id",
            "",
            (Some(ids[0]), "s@x.test", "<alice@x.test>", LETTER),
            (Some(ids[0]), "s@x.test", "<alice@x.test>", LETTER),
            false,
        ),
        (
            "a queue id now",
            "",
            (None, "s@x.test", "<alice@x.test>", LETTER),
            (Some(ids[0]), "s@x.test", "<alice@x.test>", LETTER),
            false,
        ),
        (
            "another queue id",
            "",
            (Some(ids[0]), "s@x.test", "<alice@x.test>", LETTER),
            (Some(ids[1]), "s@x.test", "<alice@x.test>", LETTER),
            true,
        ),
        (
            "nothing tells it from others",
            "",
            (None, "s@x.test", "<alice@x.test>", bare),
            (None, "s@x.test", "<alice@x.test>", bare),
            true,
        ),
        (
            "but a queue id",
            "",
            (Some(ids[0]), "s@x.test", "<alice@x.test>", bare),
            (Some(ids[0]), "s@x.test", "<alice@x.test>", bare),
            false,
        ),
        (
            "off",
            "duplicate_window = \"0\"",
            (None, "s@x.test", "<alice@x.test>", LETTER),
            (None, "s@x.test", "<alice@x.test>", LETTER),
            true,
        ),
    ] {
        let store = Store::with_inbox();
        let server = serve(&store, delivery, "");
        let mut replies = Vec::new();
        for (forward, from, rcpt, letter) in [first, second] {
            replies.push(send(&server, forward.as_slice(), from, rcpt, letter));
        }
        assert!(
            replies.iter().all(|it| it.starts_with("250 2.0.0")),
            "{what}: {replies:?}"
        );
        let stored = messages_below(&store.path("")).len();
        assert_eq!(stored, 1 + usize::from(is_stored), "{what}: {replies:?}");
        assert_eq!(
            replies[1].ends_with(" Saved before"),
            !is_stored,
            "{what}: {replies:?}"
        );
        let log = server.log();
        assert_eq!(log.contains("INFO duplicate "), !is_stored, "{what}: {log}");
        if !is_stored {
            // It names the mailbox and the UID of the first one.
            let place =
                |reply: &str| reply[reply.find(" mailbox=").unwrap()..].replace(" before", "");
            assert_eq!(place(&replies[0]), place(&replies[1]), "{what}");
        }
    }
}

/// What was moved, read or thrown away since then was there nevertheless.
#[test]
fn what_a_retry_finds() {
    let store = Store::with_inbox();
    let server = serve(&store, "on_missing = \"reject\"", "");
    let inbox = store.path("home/alice/Maildir");
    let send = || send(&server, &[], "s@x.test", "<alice@x.test>", LETTER);

    assert!(send().ends_with(" Saved"));
    // Read meanwhile, and then thrown away: it was there.
    let (path, _) = messages(&inbox).remove(0);
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    fs::rename(&path, inbox.join(format!("cur/{name}:2,S"))).unwrap();
    assert!(send().ends_with(" Saved before"));
    fs::remove_file(inbox.join(format!("cur/{name}:2,S"))).unwrap();
    assert!(send().ends_with(" Saved before"));
    assert_eq!(messages(&inbox).len(), 0);
    // A try in between that fails before it looks makes nobody forget.
    let mut client = server.client();
    client.say("MAIL FROM:<s@x.test>");
    client.say("RCPT TO:<alice@x.test>");
    // A mailbox stays open for a moment.
    thread::sleep(Duration::from_millis(1500));
    fs::rename(inbox.join("new"), inbox.join("away")).unwrap();
    fs::write(inbox.join("new"), "").unwrap();
    client.say("DATA");
    client.send(&support::stuffed(LETTER));
    let reply = client.reply();
    assert!(reply.starts_with("451 "), "{reply}");
    fs::remove_file(inbox.join("new")).unwrap();
    fs::rename(inbox.join("away"), inbox.join("new")).unwrap();
    assert!(send().ends_with(" Saved before"));
    // A mailbox that was made anew has not got it.
    fs::rename(&inbox, store.path("home/alice/old")).unwrap();
    store
        .scratch
        .maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
    assert!(send().ends_with(" Saved"));
    assert_eq!(messages(&inbox).len(), 1);
}

/// The connection breaks between the last byte and the reply, a thousand times: one copy each.
#[test]
fn a_reply_that_is_never_heard() {
    const CUTS: usize = 1000;
    let store = Store::with_inbox();
    let server = serve(&store, "", "");
    thread::scope(|scope| {
        for part in 0..4 {
            let socket = store.path("run/lmtp");
            scope.spawn(move || {
                for number in (part..CUTS).step_by(4) {
                    let letter =
                        String::from_utf8_lossy(LETTER).replace("<one@", &format!("<{number}@"));
                    cut(
                        &socket,
                        &letter,
                        Duration::from_micros((number as u64 * 37) % 4000),
                    );
                    let mut client = Lmtp::connect(&socket);
                    let replies = client.deliver(&["alice@x.test"], letter.as_bytes());
                    assert!(replies[0].starts_with("250 2.0.0"), "{replies:?}");
                }
            });
        }
    });
    let found = messages(&store.path("home/alice/Maildir"));
    assert_eq!(found.len(), CUTS);
    let before = server.log().matches("INFO duplicate ").count();
    assert!(
        before > CUTS / 10,
        "{before} of {CUTS} retries came behind the store"
    );
}

/// A whole message, and no ear for the answer.
fn cut(socket: &Path, letter: &str, after: Duration) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let text = format!(
        "LHLO a\r\nMAIL FROM:<sender@else.test>\r\nRCPT TO:<alice@x.test>\r\nDATA\r\n{letter}.\r\n"
    );
    stream.write_all(text.as_bytes()).unwrap();
    thread::sleep(after);
    stream.shutdown(std::net::Shutdown::Both).unwrap();
}

/// The server is killed again and again; whoever has heard no 250 sends the message again: one copy each.
#[test]
fn a_server_that_is_killed() {
    const MESSAGES: usize = 300;
    let store = Store::with_inbox();
    let db = store.path("run/retries.db");
    let delivery = format!("duplicate_db = \"{}\"", db.display());
    let socket = store.path("run/lmtp");
    let (heard, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for part in 0..4 {
            let (socket, heard, ended) = (&socket, &heard, &ended);
            scope.spawn(move || {
                for number in (part..MESSAGES).step_by(4) {
                    let letter =
                        String::from_utf8_lossy(LETTER).replace("<one@", &format!("<{number}@"));
                    while !tried(socket, &letter) {
                        thread::sleep(Duration::from_millis(2));
                    }
                    heard.fetch_add(1, Relaxed);
                }
                ended.fetch_add(1, Relaxed);
            });
        }
        let mut round = 0;
        while ended.load(Relaxed) < 4 {
            let before = heard.load(Relaxed);
            let mut server = serve(&store, &delivery, "");
            round += 1;
            thread::sleep(Duration::from_millis(20 + round % 30));
            // A busy machine gets somewhere too.
            support::wait_until("a message is stored", || {
                heard.load(Relaxed) > before || ended.load(Relaxed) == 4
            });
            if ended.load(Relaxed) < 4 {
                support::signal(server.pid(), "KILL");
                server.wait();
            }
        }
    });
    let found = messages(&store.path("home/alice/Maildir"));
    let mut ids: Vec<&[u8]> = found.iter().map(|(_, bytes)| id(bytes)).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), found.len()), (MESSAGES, MESSAGES));
}

fn id(bytes: &[u8]) -> &[u8] {
    let lines = bytes.split(|&byte| byte == b'\n');
    lines
        .into_iter()
        .find(|it| it.starts_with(b"Message-ID:"))
        .unwrap()
}

/// Whether the server said 250 to it.
fn tried(socket: &Path, letter: &str) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return false;
    };
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let text = format!(
        "LHLO a\r\nMAIL FROM:<sender@else.test>\r\nRCPT TO:<alice@x.test>\r\nDATA\r\n{letter}.\r\nQUIT\r\n"
    );
    if stream.write_all(text.as_bytes()).is_err() {
        return false;
    }
    let mut said = String::new();
    let _ = std::io::Read::read_to_string(&mut stream, &mut said);
    said.lines()
        .any(|line| line.starts_with("250 2.0.0") && line.contains("mailbox="))
}

/// By Message-ID, where a namespace wants it: two ways to one mailbox bring one message.
#[test]
fn message_ids_of_a_namespace() {
    let store = Store::with_inbox();
    let more = "[[address]]\nmatch = \"info@x.test\"\nuser = \"alice\"\nmailbox = \"Public/info\"\n[[address]]\nmatch = \"team@x.test\"\nuser = \"alice\"\nmailbox = \"Public/info\"";
    let config = store.configure("duplicate_window = \"0\"", more);
    let once = "type = \"public\"\nduplicate_message_ids = \"1d\"";
    replace_in(&config, "type = \"public\"", once);
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    let info = store.path("public/.info");
    let both = server
        .client()
        .deliver(&["info@x.test", "team@x.test"], LETTER);
    assert!(
        both.iter().all(|it| it.starts_with("250 2.0.0")),
        "{both:?}"
    );
    assert_eq!(messages(&info).len(), 1, "{both:?}");
    let other = [LETTER, b"a footer\r\n"].concat();
    assert!(server.client().deliver(&["team@x.test"], &other)[0].ends_with(" Saved before"));
    let others_id = String::from_utf8_lossy(LETTER).replace("<one@", "<two@");
    assert!(
        server
            .client()
            .deliver(&["team@x.test"], others_id.as_bytes())[0]
            .ends_with(" Saved")
    );
    assert_eq!(messages(&info).len(), 2);
    // Elsewhere nobody looks at it.
    for _ in 0..2 {
        assert!(server.client().deliver(&["alice@x.test"], LETTER)[0].ends_with(" Saved"));
    }
}

/// The first copy fills the mailbox that both addresses lead to, and another message does not fit any more.
#[test]
fn message_ids_in_a_mailbox_that_is_full() {
    let store = Store::with_inbox();
    let addresses = "[[address]]\nmatch = \"info@x.test\"\nuser = \"alice\"\nmailbox = \"Public/info\"\n[[address]]\nmatch = \"team@x.test\"\nuser = \"alice\"\nmailbox = \"Public/info\"\n";
    let quota = "[namespace.public.quota]\nmessage_count = 1\n[quota]\ndriver = \"maildir\"\n";
    let config = store.configure("", &format!("{quota}{addresses}"));
    let once = "type = \"public\"\nduplicate_message_ids = \"1d\"";
    replace_in(&config, "type = \"public\"", once);
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    let mut early = server.client();
    early.say("MAIL FROM:<t@x.test>");
    assert!(early.say("RCPT TO:<team@x.test>").starts_with("250"));
    let both = ["info@x.test", "team@x.test"];
    let replies = server.client().deliver(&both, LETTER);
    let case = format!("{replies:?} {}", server.log());
    let ending = |end: &str| replies.iter().filter(|it| it.ends_with(end)).count();
    assert_eq!(
        (ending(" Saved"), ending(" Saved before")),
        (1, 1),
        "{case}"
    );
    let other = String::from_utf8_lossy(LETTER).replace("<one@", "<two@");
    early.say("DATA");
    early.send(&support::stuffed(other.as_bytes()));
    let reply = early.reply();
    assert!(reply.starts_with("552 5.2.2"), "{reply}");
    assert_eq!(messages(&store.path("public/.info")).len(), 1, "{case}");
}

/// The folder that has it has another name by then, and INBOX, which stands in for it, no room for a second copy.
#[test]
fn what_no_longer_fits_where_it_would_go_now() {
    let store = Store::with_inbox();
    let folder = |name| store.path(&format!("home/alice/Maildir/.{name}"));
    store
        .scratch
        .maildir("home/alice/Maildir/.Work", MAIL, MAIL, 0o700);
    let quota = "[quota]\ndriver = \"maildir\"\nstorage_size = \"1k\"\nstorage_grace = \"0\"\n";
    let server = serve(&store, "", quota);
    let letter = [LETTER, "x".repeat(500).as_bytes(), b"\r\n"].concat();
    let send = || send(&server, &[], "s@x.test", "<alice+Work@x.test>", &letter);
    let first = send();
    assert!(first.ends_with(" Saved"), "{first}");
    fs::rename(folder("Work"), folder("Old")).unwrap();
    let again = send();
    assert!(again.ends_with(" Saved before"), "{again} {}", server.log());
    assert_eq!(messages_below(&store.path("home")).len(), 1);
}

/// What a header route sends elsewhere by then was stored nevertheless, there or in INBOX, and is there once.
#[test]
fn what_a_route_sends_elsewhere_by_then() {
    let info = "public/.info";
    let open = |store: &Store, mode| {
        let new = store.path(info).join("new");
        fs::set_permissions(new, fs::Permissions::from_mode(mode)).unwrap();
        // A mailbox stays open for a moment.
        thread::sleep(Duration::from_millis(1500));
    };
    let quota = "[namespace.public.quota]\nstorage_size = \"1k\"\nstorage_grace = \"0\"\n[quota]\ndriver = \"maildir\"\nstorage_grace = \"0\"\n";
    let full = "x".repeat(900);
    // settings; what is done before, between the tries, and where it is
    type Change<'a> = &'a dyn Fn(&Store);
    let fill = |store: &Store| {
        let file = store.path(info).join("new/1.filling");
        fs::write(&file, &full).unwrap();
        support::own(&file, MAIL, 100);
    };
    let empty = |store: &Store| fs::remove_file(store.path(info).join("new/1.filling")).unwrap();
    #[rustfmt::skip]
    let cases: [(&str, &str, Change<'_>, Change<'_>, &str); 5] = [
        ("it was closed",  "",    &|store| open(store, 0o500), &|store| open(store, 0o2770), "INBOX"),
        ("it was open",    "",    &|_| (),                     &|store| open(store, 0o500),  "Public/info"),
        ("nobody may see", "",    &|_| (),                     &|store| open(store, 0),      "Public/info"),
        ("it was full",    quota, &fill,                       &empty,                       "INBOX"),
        ("it had room",    quota, &|_| (),                     &fill,                        "Public/info"),
    ];
    for (what, more, before, between, mailbox) in cases {
        let store = Store::with_inbox();
        let route = "[[route]]\nheader = \"Received\"\nmailbox = \"Public/info\"\n";
        let server = serve(&store, "", &format!("{more}{route}"));
        let send = || send(&server, &[], "s@x.test", "<alice@x.test>", LETTER);
        before(&store);
        let first = send();
        between(&store);
        let replies = [first, send()];
        let case = format!("{what}: {replies:?} {}", server.log());
        let is_there = |it: &String| it.contains(&format!("mailbox={mailbox:?}"));
        assert!(replies.iter().all(is_there), "{case}");
        assert!(replies[0].ends_with(" Saved"), "{case}");
        assert!(replies[1].ends_with(" Saved before"), "{case}");
        open(&store, 0o2770);
        let found = messages_below(&store.path(""));
        let letters = found.iter().filter(|(_, text)| text.ends_with(b"Hello\n"));
        assert_eq!(letters.count(), 1, "{case}");
    }
    // Where it was stored is gone since then.
    let store = Store::with_inbox();
    let route = "[[route]]\nheader = \"Received\"\nmailbox = \"Public/info\"\n";
    let server = serve(&store, "", route);
    let send = || send(&server, &[], "s@x.test", "<alice@x.test>", LETTER);
    assert!(send().contains("mailbox=\"Public/info\""));
    fs::remove_dir_all(store.path(info)).unwrap();
    let again = send();
    assert!(again.contains("mailbox=\"INBOX\""), "{again}");
    assert!(again.ends_with(" Saved"), "{again}");
}

/// The last message that fits is stored, and its client has not heard of it: its retry is no bounce, others are, at RCPT.
#[test]
fn what_fills_a_mailbox_is_sent_again() {
    let other = String::from_utf8_lossy(LETTER).replace("<one@", "<two@");
    let other = other.as_bytes();
    const AT_RCPT: (&str, &str) = ("552 5.2.2", "");
    const AFTER_DATA: (&str, &str) = ("250 2.1.5", "552 5.2.2");
    const BEFORE: (&str, &str) = ("250 2.1.5", "Saved before");
    let sender = "s@x.test";
    let ids = ["XFORWARD IDENT=4Xq1", "XFORWARD IDENT=4Xq2"];
    // The first transaction's XFORWARD; the second's, its sender and its bytes; the answers to it
    #[rustfmt::skip]
    let cases = [
        ("the same",                        None,         None,         sender,     LETTER, BEFORE),
        ("another message",                 None,         None,         sender,     other,  AFTER_DATA),
        ("another sender",                  None,         None,         "t@x.test", LETTER, AT_RCPT),
        ("another server asks, or a bounce", None,        None,         "",         other,  AFTER_DATA),
        ("the same, by its queue id",       Some(ids[0]), Some(ids[0]), sender,     LETTER, BEFORE),
        ("another one, by its queue id",    Some(ids[0]), Some(ids[1]), sender,     LETTER, AT_RCPT),
        ("one time no queue id",            Some(ids[0]), None,         sender,     LETTER, BEFORE),
        ("killed before it has answered",   None,         None,         sender,     LETTER, BEFORE),
    ];
    for in_file in [false, true] {
        for (what, first, second, from, letter, want) in cases {
            let is_killed = what.starts_with("killed");
            if is_killed && !in_file {
                continue;
            }
            let store = Store::with_inbox();
            support::own(&store.path("run"), MAIL, MAIL);
            let db = store.path("run/retries.db");
            let delivery = match in_file {
                true => format!("duplicate_db = \"{}\"", db.display()),
                false => String::new(),
            };
            let quota = "[quota]\ndriver = \"maildir\"\nmessage_count = 1\n";
            let server = serve(&store, &delivery, quota);
            let lines: Vec<&str> = first.into_iter().collect();
            let reply = send(&server, &lines, sender, "<alice@x.test>", LETTER);
            assert!(reply.ends_with(" Saved"), "{what}: {reply}");
            if is_killed {
                let db = rusqlite::Connection::open(&db).unwrap();
                // Its end is not written down, a name that it may have is.
                let forget = "UPDATE deliveries SET saved = NULL WHERE saved NOT NULL";
                // The answer does not wait for the row.
                while db.execute(forget, []).unwrap() == 0 {
                    thread::sleep(Duration::from_millis(50));
                }
            }
            let mut client = server.client();
            if let Some(line) = second {
                assert!(client.say(line).starts_with("250"), "{line}");
            }
            client.say(&format!("MAIL FROM:<{from}>"));
            let at_rcpt = client.say("RCPT TO:<alice@x.test>");
            let mut after_data = String::new();
            if at_rcpt.starts_with("250") {
                client.say("DATA");
                client.send(&support::stuffed(letter));
                after_data = client.reply();
            }
            let case = format!("{what} {in_file}: {at_rcpt} {after_data} {}", server.log());
            assert!(at_rcpt.starts_with(want.0), "{case}");
            assert!(after_data.contains(want.1), "{case}");
            let inbox = store.path("home/alice/Maildir");
            assert_eq!(messages(&inbox).len(), 1, "{case}");
        }
    }
}

/// By each of its names a mailbox is one: what its namespace says of Message-IDs holds by an alias too, which may say otherwise.
#[test]
fn message_ids_of_an_alias() {
    for (of_alias, stored) in [("", 1), ("duplicate_message_ids = \"0\"\n", 2)] {
        let store = Store::with_inbox();
        let work = "home/alice/Maildir/.Work";
        store.scratch.maildir(work, MAIL, MAIL, 0o700);
        let alias = format!(
            "[namespace.old]\nprefix = \"mail/\"\nseparator = \"/\"\nalias_for = \"inbox\"\nhidden = true\nlist = \"no\"\n{of_alias}"
        );
        let config = store.configure("duplicate_window = \"0\"", &alias);
        let once = "inbox = true\nduplicate_message_ids = \"1d\"";
        replace_in(&config, "inbox = true", once);
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let both = ["alice+Work@x.test", "alice+mail/Work@x.test"];
        let replies = both.map(|it| server.client().deliver(&[it], LETTER).remove(0));
        let case = format!("{of_alias:?}: {replies:?} {}", server.log());
        assert!(
            replies.iter().all(|it| it.starts_with("250 2.0.0")),
            "{case}"
        );
        assert_eq!(messages(&store.path(work)).len(), stored, "{case}");
    }
}

/// What is remembered costs no mail, whatever has become of it.
#[test]
fn a_database_that_is_of_no_use() {
    let store = Store::with_inbox();
    for (what, path) in [
        ("torn", "run/torn.db"),
        ("nowhere", "nowhere/retries.db"),
        ("a directory", "run/dir.db"),
    ] {
        let db = store.path(path);
        match what {
            "torn" => fs::write(&db, vec![b'x'; 5000]).unwrap(),
            "a directory" => fs::create_dir(&db).unwrap(),
            _ => {}
        }
        support::own(&store.path("run"), MAIL, MAIL);
        if db.exists() {
            support::own(&db, MAIL, MAIL);
        }
        let delivery = format!("duplicate_db = \"{}\"", db.display());
        let server = serve(&store, &delivery, "");
        let letter = String::from_utf8_lossy(LETTER).replace("<one@", &format!("<{what}@"));
        let send = || {
            send(
                &server,
                &[],
                "s@x.test",
                "<alice@x.test>",
                letter.as_bytes(),
            )
        };
        assert!(send().ends_with(" Saved"), "{what}");
        assert!(send().ends_with(" Saved before"), "{what}");
        assert!(server.log().contains("WARN"), "{what}: {}", server.log());
    }
}

/// A server with a process for the user `u`, whose own namespace says `more`.
fn with_workers(more: &str) -> (Scratch, Server) {
    let scratch = Scratch::new();
    scratch.dir("run", 0, 0, 0o755);
    scratch.dir("home", 20001, 20001, 0o700);
    let root = scratch.text("");
    write_long_ago(
        &scratch.path("users"),
        &format!("u::20001:20001::{root}/home::\n"),
    );
    let text = format!(
        "mail_path = \"~/Maildir\"\nauth_username_format = \"%{{user | username}}\"\n[[userdb]]\npasswd-file = {{ path = \"{root}/users\" }}\n[lmtp]\nlisten = [{{ unix = \"{root}/run/lmtp\" }}]\n[namespace.inbox]\ninbox = true\n{more}[delivery]\nspool_dir = \"/var/tmp\"\n"
    );
    fs::write(scratch.path("postroom.toml"), text).unwrap();
    let (config, socket) = (scratch.path("postroom.toml"), scratch.path("run/lmtp"));
    let server = Server::start_as_root(&config, &socket, &scratch.path("run/log"));
    (scratch, server)
}

/// The process that talks to clients asks, those that deliver are told.
#[test]
fn by_a_process_for_each_user() {
    if not_root() {
        return;
    }
    let (scratch, server) = with_workers("");
    let socket = scratch.path("run/lmtp");
    for number in 0..100 {
        let letter = String::from_utf8_lossy(LETTER).replace("<one@", &format!("<{number}@"));
        let mut stream = UnixStream::connect(&socket).unwrap();
        let text = format!(
            "LHLO a\r\nMAIL FROM:<sender@else.test>\r\nRCPT TO:<u@x.test>\r\nDATA\r\n{letter}.\r\n"
        );
        stream.write_all(text.as_bytes()).unwrap();
        thread::sleep(Duration::from_micros(number * 50));
        drop(stream);
        let reply = server
            .client()
            .deliver(&["u@x.test"], letter.as_bytes())
            .remove(0);
        assert!(reply.starts_with("250 2.0.0"), "{reply}");
    }
    assert_eq!(
        messages(&scratch.path("home/Maildir")).len(),
        100,
        "{}",
        server.log()
    );
}

/// By Message-ID, too.
#[test]
fn message_ids_by_a_process_for_each_user() {
    if not_root() {
        return;
    }
    let (scratch, server) = with_workers("duplicate_message_ids = \"1d\"\n");
    let other = [LETTER, b"a footer\r\n"].concat();
    for (letter, end) in [(LETTER, " Saved"), (&other, " Saved before")] {
        let reply = server.client().deliver(&["u@x.test"], letter).remove(0);
        assert!(reply.ends_with(end), "{reply} {}", server.log());
    }
    assert_eq!(messages(&scratch.path("home/Maildir")).len(), 1);
}

/// What was delivered lately is in this file.
fn with_database(more: &str) -> (Store, PathBuf, Server) {
    let store = Store::with_inbox();
    support::own(&store.path("run"), MAIL, MAIL);
    let db = store.path("run/held.db");
    let delivery = format!("duplicate_db = \"{}\"", db.display());
    let server = serve(&store, &delivery, more);
    (store, db, server)
}

/// Nobody else can write to it, until the process is killed.
fn hold(db: &Path) -> Child {
    let script = "import sqlite3,sys
d=sqlite3.connect(sys.argv[1],isolation_level=None); d.execute('BEGIN EXCLUSIVE'); print('held',flush=True); sys.stdin.read()";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(db);
    command.stdin(Stdio::piped());
    let mut holder = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 4];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
    holder
}

/// The file system is mounted anew, and its device has another number: the file's name tells that the mailbox is the same.
#[test]
fn a_device_that_has_another_number() {
    let other = [LETTER, b"a footer\r\n"].concat();
    type Change<'a> = &'a dyn Fn(&Path);
    let only = |inbox: &Path| messages(inbox).remove(0).0;
    let read = |inbox: &Path| {
        let path = only(inbox);
        let name = path.file_name().unwrap().to_str().unwrap();
        fs::rename(&path, inbox.join(format!("cur/{name}:2,S"))).unwrap();
    };
    let make_anew = |inbox: &Path| fs::remove_file(only(inbox)).unwrap();
    // what becomes of the mailbox in between, and whether the second message is stored
    #[rustfmt::skip]
    let cases: [(&str, &[u8], Change<'_>, &str); 6] = [
        ("sent again",          LETTER, &|_| (),    " Saved before"),
        ("read meanwhile",      LETTER, &read,      " Saved before"),
        ("made anew",           LETTER, &make_anew, " Saved"),
        ("its Message-ID",      &other, &|_| (),    " Saved before"),
        ("it, read meanwhile",  &other, &read,      " Saved before"),
        ("it, made anew",       &other, &make_anew, " Saved"),
    ];
    for (what, letter, between, end) in cases {
        let store = Store::with_inbox();
        support::own(&store.path("run"), MAIL, MAIL);
        let db = store.path("run/retries.db");
        let window = if letter == LETTER { "1h" } else { "0" };
        let delivery = format!("duplicate_db = {db:?}\nduplicate_window = \"{window}\"");
        let config = store.configure(&delivery, "");
        let once = "inbox = true\nduplicate_message_ids = \"1d\"";
        if letter != LETTER {
            replace_in(&config, "inbox = true", once);
        }
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let send = |letter| server.client().deliver(&["alice@x.test"], letter).remove(0);
        let first = send(LETTER);
        assert!(first.ends_with(" Saved"), "{what}: {first}");
        let db = rusqlite::Connection::open(&db).unwrap();
        let change = match letter == LETTER {
            true => {
                "UPDATE deliveries SET saved = json_replace(saved, '$.mailbox_id[0]', 1)
                     WHERE saved NOT NULL"
            }
            false => "UPDATE message_ids SET device = 1",
        };
        // The answer does not wait for the row.
        support::wait_until("it is written down", || db.execute(change, []).unwrap() > 0);
        let inbox = store.path("home/alice/Maildir");
        between(&inbox);
        let again = send(letter);
        let case = format!("{what}: {again} {}", server.log());
        assert!(again.ends_with(end), "{case}");
        assert_eq!(messages(&inbox).len(), 1, "{case}");
        // The next one need not search for it.
        if letter == LETTER {
            let old =
                "SELECT count(*) FROM deliveries WHERE json_extract(saved, '$.mailbox_id[0]') = 1";
            let old = || db.query_row(old, [], |row| row.get::<_, i64>(0)).unwrap();
            support::wait_until("it is written down again", || old() == 0);
        }
    }
}

/// Somebody holds the database: mail does not wait for him for long, and is stored.
#[test]
fn a_database_that_somebody_holds() {
    let (_store, db, server) = with_database("");
    let mut holder = hold(&db);
    for _ in 0..2 {
        let reply = send(&server, &[], "s@x.test", "<alice@x.test>", LETTER);
        assert!(reply.ends_with(" Saved"), "{reply}");
    }
    assert!(
        server.log().contains("may be stored twice"),
        "{}",
        server.log()
    );
    holder.kill().unwrap();
    holder.wait().unwrap();
    // And then it is of use again.
    let letter = String::from_utf8_lossy(LETTER).replace("<one@", "<two@");
    let send = || {
        send(
            &server,
            &[],
            "s@x.test",
            "<alice@x.test>",
            letter.as_bytes(),
        )
    };
    assert!(send().ends_with(" Saved"));
    assert!(send().ends_with(" Saved before"));
}

/// Nobody can tell whether it is full of this message: its client asks again, in place of a bounce.
#[test]
fn a_full_mailbox_beside_a_database_that_is_held() {
    let quota = "[quota]\ndriver = \"maildir\"\nmessage_count = 1\n";
    let (_store, db, server) = with_database(quota);
    let send = || send(&server, &[], "s@x.test", "<alice@x.test>", LETTER);
    assert!(send().ends_with(" Saved"));
    let mut holder = hold(&db);
    let reply = send();
    assert!(reply.starts_with("452 4.2.2 "), "{reply}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let reply = send();
    assert!(reply.ends_with(" Saved before"), "{reply}");
}

/// What was remembered is lost: nobody can tell, for as long as it would have been remembered.
#[test]
fn a_full_mailbox_beside_a_database_that_was_lost() {
    let quota = "[quota]\ndriver = \"maildir\"\nmessage_count = 1\n";
    for (is_torn, want) in [(false, "Saved before"), (true, "452 4.2.2 ")] {
        let (store, db, server) = with_database(quota);
        let delivery = format!("duplicate_db = \"{}\"", db.display());
        let send = |server: &Server| send(server, &[], "s@x.test", "<alice@x.test>", LETTER);
        assert!(send(&server).ends_with(" Saved"));
        drop(server);
        if is_torn {
            fs::write(&db, [b'x'; 5000]).unwrap();
            // It would have all of it.
            let _ = fs::remove_file(db.with_extension("db-wal"));
        }
        let server = serve(&store, &delivery, quota);
        let reply = send(&server);
        assert!(reply.contains(want), "{reply} {}", server.log());
    }
}
