//! The dialogue over a real socket: bytes in; replies, files and log lines out.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::{
    MAIL, Server, Store, as_user, messages, messages_below, not_root, program, unfinished,
    wait_until,
};

/// Everything that the server answers to these bytes, behind the greeting.
fn answers(server: &Server, bytes: &[u8]) -> Vec<String> {
    let mut client = server.client();
    client.send(bytes);
    client.rest().lines().map(str::to_owned).collect()
}

/// The answer with the words that differ from run to run taken out.
fn plain(lines: &[String]) -> Vec<String> {
    let word = |word: &str| match word.split(':').next().is_some_and(|id| id.len() == 22) {
        true => "ID".to_owned(),
        false => word.to_owned(),
    };
    let line = |line: &String| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
    lines.iter().map(line).collect()
}

#[test]
fn dialogues() {
    let store = Store::new();
    let server = store.serve("message_size = 100000\non_missing = \"reject\"", "");
    for (sent, want) in [
        (
            "LHLO me\r\nQUIT\r\n",
            &[
                "250-mx.example.test",
                "250-PIPELINING",
                "250-ENHANCEDSTATUSCODES",
                "250-8BITMIME",
                "250-SMTPUTF8",
                "250-CHUNKING",
                "250 SIZE 100000",
                "221 2.0.0 Bye",
            ][..],
        ),
        (
            "LHLO me\r\nMAIL FROM:<a@b> SIZE=100001\r\nMAIL FROM:<a@b> BODY=8BITMIME SMTPUTF8\r\nRCPT TO:<nobody-here@x>\r\nDATA\r\nQUIT\r\n",
            &[
                "552 5.3.4 Message too big",
                "250 2.1.0 OK",
                "550 5.1.1 <nobody-here@x> ID No such user",
                "503 5.5.0 No valid recipients",
                "221 2.0.0 Bye",
            ],
        ),
        (
            "MAIL FROM:<a@b>\r\nRCPT TO:<alice@x>\r\nRCPT TO:<nobody-here@x>\r\nRCPT TO:<alice+Nope@x>\r\nRCPT TO:<alice@x>\r\nDATA\r\n\
             Subject: x\r\n\r\n..\r\n.\r\nQUIT\r\n",
            &[
                "250 2.1.0 OK",
                "250 2.1.5 <alice@x> OK",
                "550 5.1.1 <nobody-here@x> ID No such user",
                "550 5.1.1 <alice+Nope@x> ID No such mailbox",
                "250 2.1.5 <alice@x> OK",
                "354 OK",
                "250 2.0.0 <alice@x> ID mailbox=\"INBOX\" uid=1 Saved",
                "250 2.0.0 <alice@x> ID mailbox=\"INBOX\" uid=1 Saved",
                "221 2.0.0 Bye",
            ],
        ),
        (
            "MAIL FROM:<>\r\nRCPT TO:<bob@x>\r\nBDAT 6\r\nx\r\n.\r\nBDAT 0 LAST\r\nMAIL FROM:<>\r\nBDAT 3 LAST\r\nabcRSET\r\nQUIT\r\n",
            &[
                "250 2.1.0 OK",
                "250 2.1.5 <bob@x> OK",
                "250 2.0.0 6 octets taken",
                "250 2.0.0 <bob@x> ID mailbox=\"INBOX\" uid=1 Saved",
                "250 2.1.0 OK",
                "250 2.0.0 OK",
                "221 2.0.0 Bye",
            ],
        ),
    ] {
        let lines = answers(&server, sent.as_bytes());
        let want: Vec<String> = want.iter().map(|line| line.to_string()).collect();
        let got = plain(&lines);
        let greeted = sent.starts_with("LHLO") && !sent.contains("LHLO me\r\nQUIT");
        let got = if greeted { &got[7..] } else { &got[..] };
        assert_eq!(got, want, "{sent:?}");
    }
    let alice = messages(&store.path("home/alice/Maildir"));
    assert_eq!(alice.len(), 1, "the same recipient twice is stored once");
    let text = String::from_utf8(alice[0].1.clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["Return-Path: <a@b>", "Delivered-To: alice@x"]);
    assert_eq!(
        lines[2..4],
        ["Received: from unknown", "\tby mx.example.test with LMTP"]
    );
    assert!(
        lines[4].starts_with("\tid ") && lines[6].starts_with("\tfor <alice@x>; "),
        "{text}"
    );
    assert_eq!(lines[5], "\t(envelope-from <a@b>)");
    assert!(text.ends_with("+0000\nSubject: x\n\n.\n"), "{text}");
    let bob = messages(&store.path("home/bob/Maildir"));
    assert!(bob[0].1.ends_with(b"\nx\n.\n"));
    assert_eq!(
        unfinished(&store.path("home")),
        Vec::<std::path::PathBuf>::new()
    );
    let log = server.log();
    assert_eq!(log.matches(" stored ").count(), 2, "{log}");
    assert_eq!(log.matches(" rejected ").count(), 3, "{log}");
}

/// Which address the headers name, and whether there is a Received.
#[test]
fn headers_of_the_config() {
    let original = "Delivered-To: first@x|\tfor <first@x>";
    let last = "Delivered-To: alice@x|\tfor <alice@x>";
    for (more, orcpt, want) in [
        ("", " ORCPT=rfc822;first@x", last),
        (
            "lmtp_hdr_delivery_address = \"original\"",
            " ORCPT=rfc822;first@x",
            original,
        ),
        ("lmtp_hdr_delivery_address = \"original\"", "", last),
        (
            "lmtp_hdr_delivery_address = \"original\"",
            " ORCPT=rfc822;a+20b",
            last,
        ),
        (
            "lmtp_hdr_delivery_address = \"none\"",
            " ORCPT=rfc822;first@x",
            "",
        ),
        (
            "lmtp_add_received_header = false",
            "",
            "Delivered-To: alice@x",
        ),
    ] {
        let store = Store::new();
        let config = store.configure("", "");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, format!("{more}\n{text}")).unwrap();
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let letter = format!(
            "MAIL FROM:<a@b>\r\nRCPT TO:<alice@x>{orcpt}\r\nDATA\r\nSubject: x\r\n.\r\nQUIT\r\n"
        );
        let said = answers(&server, letter.as_bytes());
        assert!(said.iter().any(|it| it.contains(" Saved")), "{said:?}");
        let stored = messages(&store.path("home/alice/Maildir"));
        let text = String::from_utf8(stored[0].1.clone()).unwrap();
        let names = |line: &&str| line.starts_with("Delivered-To") || line.starts_with("\tfor ");
        let found: Vec<&str> = text.lines().filter(names).collect();
        let found: Vec<&str> = found
            .iter()
            .map(|it| it.split(';').next().unwrap())
            .collect();
        assert_eq!(found.join("|"), want, "{more} {orcpt}: {text}");
        let has_received = !more.contains("received");
        assert_eq!(text.contains("\nReceived: "), has_received, "{text}");
    }
}

#[test]
fn one_copy_for_several_where_the_headers_are_the_same() {
    let store = Store::new();
    let server = store.serve("recipient_headers = \"single\"", "");
    let recipients = ["alice@x", "carol@x", "bob@x", "alice+Public/info@x"];
    let replies = server.client().deliver(&recipients, b"Subject: x\n\ny\n");
    assert!(
        replies.iter().all(|reply| reply.starts_with("250 2.0.0")),
        "{replies:?}"
    );
    let stored = messages_below(&store.path(""));
    assert_eq!(stored.len(), 4);
    let mut inodes: Vec<(u64, u64)> = stored
        .iter()
        .map(|(path, _)| fs::metadata(path).unwrap())
        .map(|meta| (meta.ino(), meta.nlink()))
        .collect();
    inodes.sort();
    inodes.dedup();
    // Three mailboxes of one mode share a file; the public one has a mode and group of its own.
    let links: Vec<u64> = inodes.iter().map(|(_, links)| *links).collect();
    assert!(links == [3, 1] || links == [1, 3], "{inodes:?}");
    for (_, bytes) in &stored {
        let text = String::from_utf8_lossy(bytes);
        assert!(
            !text.contains("Delivered-To") && !text.contains("for <"),
            "{text}"
        );
    }
}

/// What RCPT has found is another thing when the message comes, right behind it.
#[test]
fn a_mailbox_that_changes_behind_rcpt() {
    const WORK: &str = "home/alice/Maildir/.Work";
    const INBOX: &str = "home/alice/Maildir";
    for (change, place) in [
        ("nothing", WORK),
        // As RCPT would have said it then.
        ("it is deleted", INBOX),
        ("it is renamed", INBOX),
        ("another one gets its name", WORK),
        ("a link of another user's", INBOX),
    ] {
        // Not opened for the first time, where others have come right before.
        for before in [0, 6] {
            let store = Store::new();
            for made in [INBOX, WORK] {
                store.scratch.maildir(made, MAIL, MAIL, 0o700);
            }
            let server = store.serve("", "");
            let mut client = server.client();
            for _ in 0..before {
                let replies = client.deliver(&["alice+Work@x"], b"Subject: before\n\n");
                assert!(replies[0].starts_with("250 2.0.0"), "{replies:?}");
            }
            client.say("MAIL FROM:<s@x>");
            let rcpt = client.say("RCPT TO:<alice+Work@x>");
            assert!(rcpt.starts_with("250"), "{rcpt}");
            let (work, old) = (store.path(WORK), store.path("home/alice/Maildir/.Old"));
            match change {
                "nothing" => {}
                "it is deleted" => fs::remove_dir_all(&work).unwrap(),
                "it is renamed" => fs::rename(&work, old).unwrap(),
                "another one gets its name" => {
                    fs::rename(&work, old).unwrap();
                    store.scratch.maildir(WORK, MAIL, MAIL, 0o700);
                }
                _ => {
                    fs::rename(&work, old).unwrap();
                    store.scratch.maildir("elsewhere", MAIL, MAIL, 0o700);
                    std::os::unix::fs::symlink(store.path("elsewhere"), &work).unwrap();
                }
            }
            client.say("DATA");
            client.send(b"Subject: behind\r\n\r\nx\r\n.\r\n");
            let reply = client.reply();
            let case = format!("{change} {before}: {reply}{}", server.log());
            assert!(reply.starts_with("250 2.0.0"), "{case}");
            let mut found: Vec<_> = messages_below(&store.path("")).into_iter().collect();
            found.retain(|(_, message)| message.windows(6).any(|it| it == b"behind"));
            assert_eq!(found.len(), 1, "{case} {found:?}");
            let folder = found[0].0.parent().unwrap().parent().unwrap();
            assert_eq!(folder, store.path(place), "{case}");
        }
    }
}

/// Its lock is the same file again and again: others get it in between, and nothing of it stays.
#[test]
fn a_mailbox_with_much_mail() {
    let store = Store::new();
    let inbox = store
        .scratch
        .maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
    let mut server = store.serve("", "");
    let mut client = server.client();
    for number in 1..=40 {
        if number == 20 {
            // From here on files are to be open to the group.
            fs::set_permissions(&inbox, fs::Permissions::from_mode(0o770)).unwrap();
        }
        let replies = client.deliver(&["alice@x"], b"Subject: x\n\n");
        assert!(
            replies[0].contains(&format!("uid={number} ")),
            "{replies:?}"
        );
        assert!(!inbox.join("dovecot-uidlist.lock").exists());
    }
    let modes = fs::read_dir(inbox.join("new")).unwrap();
    let modes = modes.map(|it| it.unwrap().metadata().unwrap().mode() & 0o777);
    let is_open = |mode: &u32| *mode == 0o660;
    assert_eq!(modes.filter(is_open).count(), 21);
    drop(client);
    server.terminate();
    assert_eq!(server.wait(), Some(0));
    assert_eq!(
        unfinished(&store.path("")),
        Vec::<PathBuf>::new(),
        "{}",
        server.log()
    );
}

/// Neither is anything looked for where it was started, nor is a file system held there.
#[test]
fn the_server_leaves_the_working_directory() {
    let store = Store::new();
    store.configure("", "");
    let mut command = Command::new("sh");
    let script = "cd \"$1\" && exec \"$0\" -c postroom.toml";
    command.arg("-c").arg(script);
    command.arg(program("postroom-lmtpd").get_program());
    command.arg(store.path(""));
    as_user(&mut command, MAIL, MAIL, &[]);
    let (socket, log) = (store.path("run/lmtp"), store.path("run/log"));
    let server = Server::spawn(command, &socket, &log);
    let directory = format!("/proc/{}/cwd", server.pid());
    assert_eq!(fs::read_link(directory).unwrap(), Path::new("/"));
}

#[test]
fn sockets_have_the_mode_and_group_of_the_config() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let config = store.configure("", "");
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let root = store.scratch.text("");
    let text = fs::read_to_string(&config).unwrap().replace(
        &format!("listen = [{{ unix = \"{root}/run/lmtp\", mode = \"0666\" }}]"),
        &format!(
            "listen = [{{ unix = \"{root}/run/lmtp\", mode = \"0660\", user = \"daemon\", group = \"users\" }}, {{ tcp = \"127.0.0.1:{port}\" }}]"
        ),
    );
    // Started by root, it gives root away for good before it serves.
    let isolation = "[workers]\nisolation = \"none\"\n";
    fs::write(
        &config,
        format!("mail_uid = \"mail\"\nmail_gid = \"mail\"\n{text}{isolation}"),
    )
    .unwrap();
    let log = store.path("run/log");
    let mut server = Server::start_as_root(&config, &store.path("run/lmtp"), &log);
    // With its greeting it serves: root can connect before the socket has its mode.
    drop(server.client());
    let meta = fs::symlink_metadata(store.path("run/lmtp")).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o660, 1, 100)
    );
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    assert!(
        status.contains(&format!("Uid:\t{MAIL}\t{MAIL}\t{MAIL}\t{MAIL}")),
        "{status}"
    );
    let mut tcp = TcpStream::connect(("127.0.0.1", port)).unwrap();
    tcp.write_all(b"MAIL FROM:<>\r\nRCPT TO:<alice@x>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n")
        .unwrap();
    let mut said = String::new();
    tcp.read_to_string(&mut said).unwrap();
    assert!(said.contains("\n250 2.0.0 <alice@x>"), "{said}");
    let stored = messages(&store.path("home/alice/Maildir"));
    assert!(String::from_utf8_lossy(&stored[0].1).contains("Received: from unknown ([127.0.0.1])"));
    server.terminate();
    assert_eq!(server.wait(), Some(0));
}

/// Nobody comes in any more, and who is there may end his message.
#[test]
fn the_socket_is_closed_before_the_last_message_ends() {
    let store = Store::with_inbox();
    let mut server = store.serve("", "");
    let mut client = server.client();
    client.say("MAIL FROM:<a@b>");
    client.say("RCPT TO:<alice@x>");
    assert_eq!(client.say("DATA"), "354 OK");
    server.terminate();
    wait_until("the socket is closed", || {
        UnixStream::connect(&server.socket).is_err()
    });
    assert!(!server.has_ended(), "{}", server.log());
    client.send(b"Subject: x\r\n\r\nhello\r\n.\r\n");
    let reply = client.reply();
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn one_client_on_stdin_and_stdout() {
    let store = Store::new();
    let config = store.configure("", "");
    let mut command = program("postroom-lmtpd");
    command.arg("-c").arg(config).arg("--stdio");
    as_user(&mut command, MAIL, MAIL, &[]);
    command.stderr(Stdio::null());
    let output = support::run_with_input(
        &mut command,
        b"LHLO me\r\nMAIL FROM:<>\r\nRCPT TO:<alice@x>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n",
    );
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("\r\n250 2.0.0 <alice@x>") && said.ends_with("221 2.0.0 Bye\r\n"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(messages(&store.path("home/alice/Maildir")).len(), 1);
}

/// Whoever reads the log is gone, or its disk is full: the mail is answered all the same, or it would come twice.
#[test]
fn a_log_that_takes_nothing() {
    let store = Store::new();
    let config = store.configure("", "");
    let full = std::path::Path::new("/dev/full");
    let mut server = Server::start(&config, &store.path("run/lmtp"), full);
    let replies = server.client().deliver(&["alice@x"], b"Subject: x\n\ny\n");
    assert!(replies[0].starts_with("250 2.0.0"), "{replies:?}");
    server.terminate();
    assert_eq!(server.wait(), Some(0));
    for arguments in [&["-c", "/nonexistent.toml"][..], &["-c", "/dev/null"]] {
        let mut command = program("postroom-lmtpd");
        let stderr = fs::OpenOptions::new().write(true).open(full).unwrap();
        command.args(arguments).stdin(Stdio::null()).stderr(stderr);
        assert_eq!(command.status().unwrap().code(), Some(75), "{arguments:?}");
    }
}

/// RLIMIT_FSIZE is an answer for one message, not the end of the server.
#[test]
fn a_limit_of_the_size_of_files() {
    let store = Store::new();
    let config = store.configure("", "");
    let mut command = std::process::Command::new("prlimit");
    command.arg("--fsize=100000");
    command.arg(program("postroom-lmtpd").get_program());
    command.arg("-c").arg(config).arg("--stdio");
    as_user(&mut command, MAIL, MAIL, &[]);
    let large = "0123456789\r\n".repeat(20_000);
    let dialogue = ["", &large]
        .map(|body| format!("MAIL FROM:<>\r\nRCPT TO:<alice@x>\r\nDATA\r\n{body}.\r\n"));
    let output = support::run_with_input(&mut command, dialogue.concat().as_bytes());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("\r\n250 2.0.0 <alice@x>"), "{said}");
    assert!(said.contains("\r\n452 4.2.2 <alice@x>"), "{said}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn what_keeps_the_server_from_serving() {
    let store = Store::new();
    let config = store.configure("", "");
    let text = fs::read_to_string(&config).unwrap();
    let root = store.scratch.text("");
    let listen = format!("unix = \"{root}/run/lmtp\"");
    for (arguments, config, code, why) in [
        (&["--nonsense"][..], text.clone(), 64, "unexpected argument"),
        (
            &[],
            format!("hostnam = \"x\"\n{text}"),
            75,
            "unknown setting \"hostnam\"",
        ),
        (
            &[],
            text.replace(&listen, "unix = \"/nonexistent/lmtp\""),
            75,
            "listen on /nonexistent/lmtp",
        ),
        (
            &[],
            text.replace("[acl]\ndriver = \"vfile\"\n", ""),
            75,
            "[acl]",
        ),
        (
            &["-c", "/nonexistent.toml"],
            text.clone(),
            75,
            "/nonexistent.toml",
        ),
    ] {
        fs::write(store.path("postroom.toml"), config).unwrap();
        let mut command = program("postroom-lmtpd");
        command
            .env("POSTROOM_CONFIG", store.path("postroom.toml"))
            .args(arguments);
        as_user(&mut command, MAIL, MAIL, &[]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(why), "{why}: {said}");
    }
}
