//! Who speaks to the server: TLS, networks that are trusted, proxies and load balancers in front of the client.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use support::peers::{Dovecot, Postfix, VERSIONS, free_port, lines_of};
use support::{MAIL, PATIENCE, Server, Store, messages, not_root};

/// A server that listens on its unix socket, and on a TCP port with these words in its listener.
fn serve(store: &Store, listener: &str, more: &str) -> (Server, u16) {
    let port = free_port();
    let config = store.configure("on_missing = \"reject\"", "");
    let unix = "mode = \"0666\" }]";
    let both = format!("mode = \"0666\" }}, {{ tcp = \"127.0.0.1:{port}\"{listener} }}]");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains(unix));
    fs::write(&config, format!("{more}\n{}", text.replace(unix, &both))).unwrap();
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    // Its sockets are opened one after the other.
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < PATIENCE, "{}", server.log());
    }
    (server, port)
}

/// Everything that the server says to these bytes.
fn said(port: u16, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut text = Vec::new();
    // A server that closes while we still talk resets the connection: what it said came before.
    let _ = stream.read_to_end(&mut text);
    String::from_utf8(text).unwrap()
}

/// A certificate for `mx.example.test`, and the settings that name it.
fn certificate(store: &Store) -> String {
    let (certificate, key) = (store.path("run/cert.pem"), store.path("run/key.pem"));
    let mut command = Command::new("openssl");
    command
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args(["-subj", "/CN=mx.example.test", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    let made = command.output().unwrap();
    assert!(made.status.success(), "{made:?}");
    std::os::unix::fs::chown(&key, Some(MAIL), Some(MAIL)).unwrap();
    format!(
        "ssl_server_cert_file = \"{}\"\nssl_server_key_file = \"{}\"",
        certificate.display(),
        key.display()
    )
}

const LETTER: &str = "MAIL FROM:<s@x.test>\r\nRCPT TO:<alice@x.test>\r\nDATA\r\nSubject: x\r\n\r\nhi\r\n.\r\nQUIT\r\n";

/// A client of Python's standard library; answers the last reply, or what went wrong.
fn python(port: u16, script: &str) -> String {
    let program = format!(
        r#"
import os, smtplib, ssl, sys
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
def letter(client):
    client.sendmail("s@x.test", ["alice@x.test"], "Subject: x\r\n\r\nhi\r\n")
    print("sent", client.sock.version() if hasattr(client.sock, "version") else "plain")
try:
    port = {port}
{script}
except Exception as error:
    print(type(error).__name__, error)
"#
    );
    let mut command = Command::new("python3");
    lines_of(command.args(["-c", &program])).join("\n")
}

#[test]
fn tls() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let more = certificate(&store);
    let client = "    client = smtplib.LMTP('127.0.0.1', port, local_hostname='me.test')\n";
    let starttls = format!("{client}    client.starttls(context=context)\n    letter(client)\n");
    let old = "    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2\n";
    for (what, more, script, want) in [
        ("offered", more.clone(), starttls.clone(), "sent TLSv1.3"),
        (
            "offered",
            more.clone(),
            format!("{old}{starttls}"),
            "sent TLSv1.2",
        ),
        (
            "offered",
            more.clone(),
            format!("{client}    letter(client)\n"),
            "sent plain",
        ),
        (
            "required",
            format!("{more}\nssl = \"required\""),
            format!("{client}    letter(client)\n"),
            "(530, b'5.7.0 STARTTLS comes first'",
        ),
        (
            "required",
            format!("{more}\nssl = \"required\""),
            starttls.clone(),
            "sent TLSv1.3",
        ),
        (
            "1.3 only",
            format!("{more}\nssl_min_protocol = \"TLSv1.3\""),
            format!("{old}{starttls}"),
            "SSL",
        ),
        (
            "off",
            format!("{more}\nssl = \"no\""),
            starttls.clone(),
            "SMTPNotSupportedError",
        ),
    ] {
        let store_before = messages(&store.path("home/alice/Maildir")).len();
        let (server, port) = serve(&store, "", &more);
        let found = python(port, &script);
        assert!(
            found.contains(want),
            "{what} {script}: {found} {}",
            server.log()
        );
        let stored = messages(&store.path("home/alice/Maildir"));
        let is_sent = want.starts_with("sent");
        assert_eq!(stored.len(), store_before + usize::from(is_sent), "{what}");
        if let Some(version) = want.strip_prefix("sent TLS") {
            let using = format!("\n\t(using TLS{version} with cipher TLS");
            let traces = stored
                .iter()
                .map(|(_, bytes)| String::from_utf8_lossy(bytes));
            let traced = traces.filter(|it| it.contains(&using) && it.contains("with LMTPS\n"));
            assert!(traced.count() > 0, "{using}");
        }
    }
}

#[test]
fn tls_from_the_first_byte_on() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let more = certificate(&store);
    let (server, port) = serve(
        &store,
        ", ssl = true",
        &format!("{more}\nssl = \"required\""),
    );
    let script = "    import socket\n    sock = context.wrap_socket(socket.create_connection(('127.0.0.1', port)))\n    client = smtplib.LMTP(local_hostname='me.test')\n    client.sock = sock\n    client.file = None\n    print(client.getreply()[0])\n    print(client.lhlo('me.test')[1].count(b'STARTTLS') if hasattr(client, 'lhlo') else client.ehlo('me.test')[1].count(b'STARTTLS'))\n    letter(client)\n";
    assert_eq!(
        python(port, script),
        "220\n0\nsent TLSv1.3",
        "{}",
        server.log()
    );
    // Somebody without TLS is not served, and holds nobody up.
    assert_eq!(said(port, LETTER.as_bytes()).matches("250").count(), 0);
    // Nobody listens on a unix socket: nothing is required there.
    let reply = server
        .client()
        .deliver(&["alice@x"], b"Subject: x\n\nhi\n")
        .remove(0);
    assert!(reply.starts_with("250"), "{reply}");
}

/// Commands that somebody put behind STARTTLS are never carried out (CVE-2011-0411).
#[test]
fn nothing_is_smuggled_into_tls() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let more = certificate(&store);
    let (_server, port) = serve(&store, "", &more);
    let found = said(port, format!("LHLO me\r\nSTARTTLS\r\n{LETTER}").as_bytes());
    assert!(
        found.ends_with("503 5.5.1 Nothing may follow STARTTLS\r\n"),
        "{found}"
    );
    assert!(messages(&store.path("home/alice/Maildir")).is_empty());
}

/// A client ends TLS in the middle of a message: nothing of it is stored, and what it says afterwards in the clear is not heard.
#[test]
fn tls_that_ends_in_a_message() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let more = certificate(&store);
    let (server, port) = serve(&store, "", &more);
    for (begun, rest) in [
        (
            "BDAT 20\\r\\nSubject: x\\r\\n",
            "\\r\\n123456\\r\\nBDAT 0 LAST",
        ),
        ("BDAT 12\\r\\nSubject: x\\r\\n", "BDAT 0 LAST"),
        ("DATA\\r\\nSubject: x\\r\\n", "\\r\\nhi\\r\\n."),
    ] {
        let script = format!(
            "    import socket
    client = smtplib.LMTP('127.0.0.1', port, local_hostname='me.test')
    client.starttls(context=context)
    client.ehlo_or_helo_if_needed()
    print(client.docmd('MAIL FROM:<s@x.test>')[0], client.docmd('RCPT TO:<alice@x.test>')[0])
    plain = socket.socket(fileno=os.dup(client.sock.fileno()))
    plain.settimeout(5)
    client.sock.sendall(b'{begun}')
    try:
        client.sock.unwrap()
    except OSError:
        pass
    heard = b''
    try:
        plain.sendall(b'{rest}\\r\\nNOOP\\r\\n')
        while more := plain.recv(4096):
            heard += more
    except OSError:
        pass
    print(b'250' in heard)
"
        );
        let answer = python(port, &script);
        assert_eq!(answer, "250 250\nFalse", "{begun} {}", server.log());
        assert!(
            messages(&store.path("home/alice/Maildir")).is_empty(),
            "{begun}"
        );
    }
}

/// However a message comes, the same bytes are stored, and the same is answered.
#[test]
fn segments_of_one_byte() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let (_server, port) = serve(&store, "", "");
    let smuggled = "a\n.\nMAIL FROM:<evil@x.test>\r\nb\n.\r\nc\r.\rd\r\n..e\r\n";
    let letter = LETTER.replace("hi\r\n", smuggled);
    let bytes = format!("LHLO me\r\n{letter}").into_bytes();
    let codes = |text: String| {
        let lines = text
            .lines()
            .map(|line| line[..9.min(line.len())].to_owned());
        lines.collect::<Vec<_>>()
    };
    let at_once = codes(said(port, &bytes));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in &bytes {
        stream.write_all(&[*byte]).unwrap();
    }
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(codes(text), at_once);
    let stored = messages(&store.path("home/alice/Maildir"));
    let bodies: Vec<&[u8]> = stored
        .iter()
        .map(|(_, bytes)| {
            let at = bytes.windows(2).position(|it| it == b"a\n").unwrap();
            &bytes[at..]
        })
        .collect();
    assert_eq!(bodies.len(), 2);
    assert_eq!(bodies[0], bodies[1]);
}

/// A certificate that is no use, or none where one is needed, is said at the start.
#[test]
fn certificates_that_are_no_use() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let more = certificate(&store);
    fs::write(store.path("run/empty.pem"), "").unwrap();
    let of_key = more.replace("cert.pem", "empty.pem");
    let gone = more.replace("key.pem", "gone.pem");
    for (more, want) in [
        (of_key.as_str(), "empty.pem"),
        (gone.as_str(), "gone.pem"),
        ("ssl = \"yes\"", "there is no certificate"),
        ("ssl_server_cert_file = \"/x\"", "its key is missing"),
        ("ssl = \"maybe\"", "ssl"),
        ("login_trusted_networks = [\"mx\"]", "is no network"),
        ("lmtp_client_workarounds = [\"all\"]", "is no workaround"),
    ] {
        let config = store.configure("", "");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("{more}\n{text}")).unwrap();
        let mut command = support::program("postroom-lmtpd");
        command.arg("-c").arg(&config);
        support::as_user(&mut command, MAIL, MAIL, &[]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(75), "{more}: {said}");
        assert!(said.contains(want), "{more}: {said}");
    }
}

/// Who may say for whom he speaks.
#[test]
fn trusted_networks() {
    let script = format!(
        "LHLO p\r\nXCLIENT ADDR=192.0.2.77 HELO=far.test SESSION=abc:P1\r\nLHLO p\r\nXFORWARD IDENT=4XqZ2v NAME=mx ADDR=192.0.2.5\r\n{LETTER}"
    );
    for (listener, more, is_trusted) in [
        ("", "", false),
        (
            "",
            "login_trusted_networks = [\"192.0.2.0/24\", \"::1\"]",
            false,
        ),
        ("", "login_trusted_networks = [\"127.0.0.0/8\"]", true),
        ("", "login_trusted_networks = [\"127.0.0.1\"]", true),
        (", trusted = true", "", true),
    ] {
        let store = Store::new();
        let (server, port) = serve(&store, listener, more);
        let found = said(port, script.as_bytes());
        assert_eq!(found.contains("\r\n550 5.7.14 "), !is_trusted, "{found}");
        let stored = messages(&store.path("home/alice/Maildir"));
        let text = String::from_utf8_lossy(&stored[0].1).into_owned();
        let traced = text.contains("Received: from far.test ([192.0.2.77])")
            && text.contains("\tid abc:P1\n");
        assert_eq!(traced, is_trusted, "{text}");
        let log = server.log();
        let logged =
            log.contains("queue_id=\"4XqZ2v\"") && log.contains("client=\"mx[192.0.2.5]\"");
        assert_eq!(logged, is_trusted, "{log}");
    }
}

/// A load balancer says who the client is; whoever is none says nothing.
#[test]
fn behind_a_load_balancer() {
    let trusted = "haproxy_trusted_networks = [\"127.0.0.1\"]";
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    let inet =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x05\x7f\x00\x00\x01\x30\x39\x00\x18";
    for (more, header, want) in [
        (
            trusted,
            &b"PROXY TCP4 192.0.2.5 127.0.0.1 12345 24\r\n"[..],
            Some("from unknown ([192.0.2.5])"),
        ),
        (
            trusted,
            b"PROXY TCP6 2001:db8::5 ::1 12345 24\r\n",
            Some("from unknown ([IPv6:2001:db8::5])"),
        ),
        (trusted, inet, Some("from unknown ([192.0.2.5])")),
        (trusted, local, Some("from unknown ([127.0.0.1])")),
        (trusted, b"", None),
        (
            "haproxy_trusted_networks = [\"192.0.2.1\"]",
            b"PROXY UNKNOWN\r\n",
            None,
        ),
    ] {
        let store = Store::new();
        let (server, port) = serve(&store, ", haproxy = true", more);
        let found = said(port, &[header, LETTER.as_bytes()].concat());
        let stored = messages(&store.path("home/alice/Maildir"));
        let traced = stored
            .first()
            .map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned());
        match want {
            Some(want) => assert!(
                traced.as_ref().is_some_and(|it| it.contains(want)),
                "{traced:?} {found}"
            ),
            None => {
                assert_eq!((traced, found.as_str()), (None, ""));
                let began = Instant::now();
                while !server.log().contains("a client that is not served") {
                    assert!(began.elapsed() < PATIENCE, "{}", server.log());
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }
}

/// Postfix tells its queue id, and the log line of each recipient has it.
#[test]
fn queue_ids_of_postfix() {
    let store = Store::new();
    let (server, _) = serve(&store, "", "");
    // A unix socket that all may write to is trusted only where the config says so.
    drop(server);
    let config = store.path("postroom.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("mode = \"0666\" }", "mode = \"0666\", trusted = true }"),
    )
    .unwrap();
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    let Some(postfix) = Postfix::start(&store.scratch, &server.socket, "/bin/false") else {
        return;
    };
    let users = [
        "alice@example.test",
        "bob@example.test",
        "nobody-here@example.test",
    ];
    postfix.send(&users, b"Subject: x\n\nhi\n");
    let of = |log: &str, address: &str| {
        let to = format!("to=<{address}>");
        let line = log
            .lines()
            .find(|line| line.contains(&to) && line.contains("/lmtp["))?;
        line.split(": ").nth(1).map(str::to_owned)
    };
    postfix.wait_for(|log| users.iter().all(|user| of(log, user).is_some()));
    let (theirs, ours) = (postfix.log(), server.log());
    for user in users {
        let queue_id = format!("queue_id=\"{}\"", of(&theirs, user).unwrap());
        let rcpt = format!("rcpt=\"{user}\"");
        let lines = ours.lines().filter(|line| line.contains(&rcpt));
        let with = lines.filter(|line| line.contains(&queue_id) && line.contains("client=\""));
        assert_eq!(with.count(), 1, "{user} {queue_id}: {ours}");
    }
}

/// Dovecot's proxy in front: it says for whom it speaks.
#[test]
fn behind_dovecot() {
    for version in VERSIONS {
        let store = Store::new();
        let (server, port) = serve(&store, "", "login_trusted_networks = [\"127.0.0.1\"]");
        let theirs = free_port();
        let Some(_dovecot) = Dovecot::start_with(version, &store, |text| {
            let listener = format!(
                "service lmtp {{\n  inet_listener lmtp {{\n    port = {theirs}\n  }}\n}}\nlmtp_proxy = yes\n"
            );
            let text = text.replace("protocols = imap", "protocols = imap lmtp");
            let old = text.find("passdb passwd-file {").is_some();
            let passdb = match old {
                true => format!(
                    "passdb static {{\n  fields {{\n    proxy = yes\n    host = 127.0.0.1\n    port = {port}\n    nopassword = yes\n  }}\n}}\n"
                ),
                false => format!(
                    "passdb {{\n  driver = static\n  args = proxy=y host=127.0.0.1 port={port} nopassword=y\n}}\n"
                ),
            };
            // The first passdb that knows a user counts.
            let text = text.replacen("passdb ", &format!("{passdb}passdb "), 1);
            format!("{text}{listener}")
        }) else {
            return;
        };
        let listens = || TcpStream::connect(("127.0.0.1", theirs)).is_ok();
        support::wait_until("Dovecot's LMTP server listens", listens);
        let found = said(theirs, LETTER.as_bytes());
        assert!(
            found.contains("250 2.0.0 "),
            "{version:?}: {found} {}",
            server.log()
        );
        let stored = messages(&store.path("home/alice/Maildir"));
        let text = String::from_utf8_lossy(&stored[0].1).into_owned();
        // Our id is theirs, with the leg that it took.
        assert!(
            text.contains("([127.0.0.1])") && text.contains(":P1"),
            "{version:?}: {text}"
        );
    }
}
