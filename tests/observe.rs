//! What a server shows of itself, and whom it tells.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{MAIL, PATIENCE, Server, Store, not_root, program};

const LETTER: &[u8] = b"Message-ID: <one@x.test>\r\nSubject: once\r\n\r\nHello\r\n";

/// A GET, and the answer behind its head.
fn get(socket: &Path, request: &str) -> (String, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream
        .write_all(format!("{request}\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn serve(store: &Store, more: &str) -> (Server, std::path::PathBuf) {
    let socket = store.path("run/status");
    let status = format!(
        "[status]\nlisten = [{{ unix = \"{}\" }}]\n{more}",
        socket.display()
    );
    let config = store.configure("on_missing = \"reject\"", &status);
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    (server, socket)
}

/// What the config says of the server shows what it does.
#[test]
fn counters_and_clients() {
    let store = Store::with_inbox();
    let (server, socket) = serve(&store, "");
    for _ in 0..2 {
        server.client().deliver(
            &["alice@x.test", "alice+Public/info@x.test", "nobody@x.test"],
            LETTER,
        );
    }
    let mut busy = server.client();
    busy.say("MAIL FROM:<s@x.test>");
    busy.say("NOOP");
    let (head, text) = get(&socket, "GET /metrics HTTP/1.1\r\nHost: x");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for line in [
        "postroom_deliveries_total{result=\"stored\",code=\"2.0.0\"} 2",
        "postroom_deliveries_total{result=\"duplicate\",code=\"2.0.0\"} 2",
        "postroom_deliveries_total{result=\"rejected\",code=\"5.1.1\"} 2",
        "postroom_sessions{state=\"envelope\"} 1",
        "postroom_delivery_seconds_count 4",
        "postroom_sync_seconds_count 2",
        "postroom_connections_total 4",
        "# EOF",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}: {text}");
    }
    // The same to the admin, in his words.
    let ask = |arguments: &[&str]| {
        let mut command = program("postroom");
        command
            .arg("-c")
            .arg(store.path("postroom.toml"))
            .arg("status")
            .args(arguments);
        support::as_user(&mut command, MAIL, MAIL, &[]);
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, shown) = ask(&[]);
    assert_eq!(code, Some(0));
    for part in [
        "1 envelope",
        " envelope, ",
        "         2  duplicate 2.0.0",
        "workers       none",
        "lock waits    ",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(ask(&["--metrics"]).1.lines().last(), Some("# EOF"));
    let parsed = Command::new("python3")
        .args([
            "-c",
            "import json,sys; print(json.loads(sys.argv[1])['pid'])",
            &ask(&["--json"]).1,
        ])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&parsed.stdout).trim(),
        server.pid().to_string()
    );
    for (request, status) in [
        ("POST /metrics HTTP/1.1", "405"),
        ("GET / HTTP/1.1", "404"),
        ("GET /status HTTP/1.1", "200"),
        ("HEAD /status HTTP/1.0", "200"),
    ] {
        let (head, body) = get(&socket, request);
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {head}"
        );
        assert_eq!(body.is_empty(), request.starts_with("HEAD"), "{request}");
    }
    drop(server);
    assert_eq!(ask(&[]).0, Some(75));
}

/// What cannot be stored is named with its reason, and what somebody has not asked for is not shown.
#[test]
fn the_last_faults() {
    let store = Store::with_inbox();
    let (server, socket) = serve(&store, "");
    fs::write(
        store.path("public/.info/dovecot-acl"),
        "nonsense without end\0",
    )
    .unwrap();
    let reply = server
        .client()
        .deliver(&["alice+Public/info@x.test"], LETTER)
        .remove(0);
    assert!(reply.starts_with("451 "), "{reply}");
    let (_, text) = get(&socket, "GET /status HTTP/1.1");
    assert!(
        text.contains("\"result\":\"deferred\"") && text.contains("dovecot-acl"),
        "{text}"
    );
}

/// A request that never ends holds nobody up.
#[test]
fn hostile_requests() {
    let store = Store::with_inbox();
    let (server, socket) = serve(&store, "");
    let mut endless = UnixStream::connect(&socket).unwrap();
    let mut answer = Vec::new();
    let _ = endless.write_all(&vec![b'x'; 100_000]);
    let _ = endless.read_to_end(&mut answer);
    assert!(answer.is_empty());
    let _silent: Vec<UnixStream> = (0..40)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    assert!(
        get(&socket, "GET /metrics HTTP/1.1")
            .0
            .starts_with("HTTP/1.1 200")
    );
    assert!(server.client().say("NOOP").starts_with("250"));
}

#[test]
fn others_are_told() {
    let store = Store::with_inbox();
    support::own(&store.path("run"), MAIL, MAIL);
    let hook = store.path("run/hook");
    let datagrams = UnixDatagram::bind(&hook).unwrap();
    support::own(&hook, MAIL, MAIL);
    datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = web.local_addr().unwrap().port();
    let notify = format!(
        "[notify]\nsocket = \"{}\"\nurl = \"http://127.0.0.1:{port}/mail\"\n[quota]\ndriver = \"maildir\"\nstorage_size = \"1k\"\nstorage_grace = \"0\"",
        hook.display()
    );
    let (server, socket) = serve(&store, &notify);
    let told = |letter: &[u8]| {
        let reply = server.client().deliver(&["alice@x.test"], letter).remove(0);
        let mut bytes = [0; 4096];
        let count = datagrams.recv(&mut bytes).unwrap();
        let datagram = String::from_utf8(bytes[..count].to_vec()).unwrap();
        let (mut stream, _) = web.accept().unwrap();
        let mut posted = String::new();
        while !posted.contains("\r\n\r\n{") || !posted.ends_with('}') {
            let count = stream.read(&mut bytes).unwrap();
            posted.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        assert!(posted.starts_with("POST /mail HTTP/1.1\r\n"), "{posted}");
        assert!(posted.ends_with(&datagram), "{posted}");
        (reply, datagram)
    };
    let (reply, event) = told(LETTER);
    let uid = support::uid_of(&reply).unwrap();
    for part in [
        "\"event\":\"MessageNew\"",
        "\"user\":\"alice\"",
        "\"mailbox\":\"INBOX\"",
        &format!("\"uidset\":\"{uid}\""),
        "\"messageId\":\"<one@x.test>\"",
        "\"hostname\":\"mx.example.test\"",
    ] {
        assert!(event.contains(part), "{part}: {event}");
    }
    let (reply, event) = told(&[LETTER, &b"0123456789\r\n".repeat(200)].concat());
    assert!(
        reply.starts_with("552 5.2.2") && event.contains("\"event\":\"QuotaExceed\""),
        "{reply} {event}"
    );
    // Nobody hears any more: mail goes on, and what is lost is counted.
    drop((datagrams, web));
    let reply = server.client().deliver(&["bob@x.test"], LETTER).remove(0);
    assert!(reply.starts_with("250 "), "{reply}");
    let began = Instant::now();
    while !get(&socket, "GET /metrics HTTP/1.1")
        .1
        .contains("postroom_events_lost_total 1")
    {
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(server.log().contains("does not hear"), "{}", server.log());
}

/// The journal gets each fact as a field. It is one of our own here, in a mount namespace.
#[test]
fn the_journal() {
    if not_root() {
        return;
    }
    // As one process, and as root's, whose descriptors its children close.
    for identity in ["setpriv --reuid=mail --regid=mail --clear-groups", ""] {
        journal_of(identity);
    }
}

fn journal_of(identity: &str) {
    let store = Store::with_inbox();
    let config = store.configure("", "");
    let journal = store.scratch.dir("journal/journal", 0, 0, 0o755);
    fs::create_dir_all("/run/systemd").unwrap();
    let entries = UnixDatagram::bind(journal.join("socket")).unwrap();
    fs::set_permissions(
        journal.join("socket"),
        std::os::unix::fs::PermissionsExt::from_mode(0o666),
    )
    .unwrap();
    fs::set_permissions(
        store.path("journal"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    entries.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = program("postroom-lmtpd");
    let server = command.get_program().to_owned();
    command = Command::new("unshare");
    let script =
        "mount --bind \"$1\" /run/systemd && exec $2 env POSTROOM_LOG=journal \"$3\" -c \"$4\"";
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(store.path("journal"))
        .arg(identity)
        .arg(server)
        .arg(&config);
    let server = Server::spawn(command, &store.path("run/lmtp"), &store.path("run/log"));
    server.client().deliver(&["alice@x.test"], LETTER);
    let mut bytes = [0; 8192];
    loop {
        let count = entries.recv(&mut bytes);
        let count = count.unwrap_or_else(|error| panic!("{identity:?}: {error}"));
        let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
        if text.contains("stored") {
            for field in [
                "POSTROOM_RCPT",
                "POSTROOM_MAILBOX",
                "POSTROOM_UID",
                "POSTROOM_SESSION",
            ] {
                assert!(text.contains(field), "{field}: {text}");
            }
            break;
        }
    }
}
