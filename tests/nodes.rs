//! Several servers: each mail is stored where its mailbox is.

mod support;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::peers::{Exim, Postfix, Postgresql, free_port};
use support::{MAIL, PATIENCE, Scratch, Server, messages_below, not_root, program};

const LETTER: &[u8] = b"Message-ID: <1@x.test>\r\nSubject: node\r\n\r\nHello\r\n.dot\r\n";

/// Servers with a store each, and one table of users and placements.
struct Site {
    scratch: Scratch,
    ports: Vec<u16>,
    addresses: Vec<String>,
    postgresql: Option<Postgresql>,
}

impl Site {
    /// `addresses`: where node1, node2, … listen. The users are in a file, or in PostgreSQL.
    fn new(addresses: &[&str], in_postgresql: bool) -> Option<Site> {
        let scratch = Scratch::new();
        let postgresql = match in_postgresql {
            true => Some(Postgresql::new(&scratch)?),
            false => None,
        };
        let mut ports = Vec::new();
        for number in 1..=addresses.len() {
            scratch.dir(&format!("node{number}"), MAIL, MAIL, 0o755);
            scratch.dir(&format!("node{number}/run"), MAIL, MAIL, 0o755);
            ports.push(free_port());
        }
        let addresses = addresses.iter().map(|it| it.to_string()).collect();
        Some(Site {
            scratch,
            ports,
            addresses,
            postgresql,
        })
    }

    fn root(&self, node: usize) -> PathBuf {
        self.scratch.path(&format!("node{node}"))
    }

    /// A mailbox of a node, with these rights.
    fn mailbox(&self, node: usize, path: &str, acl: &str) {
        let below = format!("node{node}/{path}");
        for (at, _) in below.match_indices('/') {
            if !self.scratch.path(&below[..at]).exists() {
                self.scratch.dir(&below[..at], MAIL, MAIL, 0o700);
            }
        }
        self.scratch.maildir(&below, MAIL, MAIL, 0o700);
        if !acl.is_empty() {
            self.scratch
                .file(&format!("{below}/dovecot-acl"), MAIL, MAIL, 0o600, acl);
        }
    }

    fn users(&self, lines: &[(&str, &str)]) {
        let lines: String = lines
            .iter()
            .map(|(name, extra)| format!("{name}::{MAIL}:{MAIL}::/nonexistent::{extra}\n"))
            .collect();
        support::write_long_ago(&self.scratch.path("users"), &lines);
    }

    fn configure(&self, node: usize, delivery: &str, more: &str) -> PathBuf {
        let root = self.root(node).display().to_string();
        let userdb = match &self.postgresql {
            None => format!(
                "passwd-file = {{ path = \"{}\" }}",
                self.scratch.text("users")
            ),
            Some(server) => format!(
                "postgresql = {{ connection = \"{}\", query = \"SELECT uid, gid, host FROM users WHERE name = '%n'\" }}",
                server.parameters()
            ),
        };
        let table = match &self.postgresql {
            None => String::new(),
            Some(server) => format!(
                "[placement.postgresql]\nconnection = \"{}\"\n",
                server.parameters()
            ),
        };
        let mut nodes = String::new();
        for (other, (address, port)) in self.addresses.iter().zip(&self.ports).enumerate() {
            nodes.push_str(&format!(
                "[node.node{}]\nhost = \"{address}\"\nport = {port}\ntimeout = \"5s\"\n",
                other + 1
            ));
        }
        let (address, port) = (&self.addresses[node - 1], self.ports[node - 1]);
        let text = format!(
            r#"hostname = "node{node}"
auth_username_format = "%{{user | username | lower}}"
first_valid_uid = 1
mail_path = "{root}/%{{user}}/Maildir"
[[userdb]]
{userdb}
[namespace.inbox]
separator = "/"
inbox = true
[namespace.public]
type = "public"
separator = "/"
prefix = "Public/"
mail_path = "{root}/public"
subscriptions = false
[namespace.shared]
type = "shared"
separator = "/"
prefix = "shared/$user/"
mail_path = "{root}/%{{owner_user}}/Maildir"
subscriptions = false
[acl]
driver = "vfile"
[delivery]
detail = "mailbox"
spool_dir = "{root}/run"
duplicate_db = "{root}/run/retries.db"
{delivery}
[placement]
{table}
{nodes}
[lmtp]
# Bound in this order: the test waits for the last one.
listen = [{{ tcp = "{address}:{port}", trusted = true }}, {{ unix = "{root}/run/lmtp", mode = "0660" }}]
{more}
"#
        );
        let path = self.scratch.path(&format!("node{node}.toml"));
        fs::write(&path, text).unwrap();
        path
    }

    fn start(&self, node: usize) -> Server {
        let config = self.scratch.path(&format!("node{node}.toml"));
        let root = self.root(node);
        Server::start(&config, &root.join("run/lmtp"), &root.join("run/log"))
    }

    /// Where in all stores messages are: `node2/bob/Maildir`.
    fn found(&self) -> Vec<String> {
        let mut found: Vec<String> = messages_below(&self.scratch.path(""))
            .iter()
            .map(|(path, _)| {
                let folder = path.parent().unwrap().parent().unwrap();
                folder
                    .strip_prefix(self.scratch.path(""))
                    .unwrap()
                    .display()
                    .to_string()
            })
            .collect();
        found.sort();
        found
    }
}

fn two_nodes() -> Site {
    let site = Site::new(&["127.0.0.1", "127.0.0.1"], false).unwrap();
    site.users(&[
        ("alice", "userdb_host=node1"),
        ("bob", "userdb_host=node2"),
        ("renamed", "userdb_host=node2 userdb_destuser=bob@x.test"),
        ("broken", "userdb_host=node2 userdb_port=x"),
        ("here", ""),
        ("first", ""),
    ]);
    site.mailbox(1, "alice/Maildir", "");
    site.mailbox(2, "bob/Maildir", "");
    site.mailbox(2, "bob/Maildir/.Projects", "user=alice lrwip\n");
    site.mailbox(2, "bob/Maildir/.Secret", "user=alice lr\n");
    site.mailbox(1, "alice/Maildir/.Team", "user=bob lrwip\n");
    site
}

#[test]
fn one_transaction_for_mailboxes_everywhere() {
    // recipient; policy; the start of RCPT's answer; of the message's; where it is then
    for (rcpt, policy, at_rcpt, at_data, place) in [
        (
            "alice@x.test",
            "",
            "250",
            "250 2.0.0",
            "node1/alice/Maildir",
        ),
        ("here@x.test", "", "250", "250 2.0.0", "node1/here/Maildir"),
        ("bob@x.test", "", "250", "250 2.0.0", "node2/bob/Maildir"),
        (
            "bob+Projects@x.test",
            "",
            "250",
            "250 2.0.0",
            "node2/bob/Maildir/.Projects",
        ),
        (
            "bob+shared/alice/Team@x.test",
            "",
            "250",
            "250 2.0.0",
            "node1/alice/Maildir/.Team",
        ),
        (
            "renamed+Projects@x.test",
            "",
            "250",
            "250 2.0.0",
            "node2/bob/Maildir/.Projects",
        ),
        (
            "alice+shared/bob/Projects@x.test",
            "",
            "250",
            "250 2.0.0",
            "node2/bob/Maildir/.Projects",
        ),
        // The server with her INBOX decides what stands in.
        (
            "alice+shared/bob/Secret@x.test",
            "",
            "250",
            "250 2.0.0",
            "node1/alice/Maildir",
        ),
        (
            "alice+shared/bob/Secret@x.test",
            "on_denied = \"reject\"",
            "550 5.7.1",
            "",
            "",
        ),
        (
            "alice+shared/bob/Nothing@x.test",
            "",
            "250",
            "250 2.0.0",
            "node1/alice/Maildir",
        ),
        (
            "alice+shared/bob/Nothing@x.test",
            "on_missing = \"reject\"",
            "550 5.1.1",
            "",
            "",
        ),
        (
            "alice+shared/bob/Projects/Child@x.test",
            "on_missing = \"parent\"",
            "250",
            "250 2.0.0",
            "node2/bob/Maildir/.Projects",
        ),
        ("nobody@x.test", "", "550 5.1.1", "", ""),
        ("broken@x.test", "", "451 4.3.0", "", ""),
    ] {
        let site = two_nodes();
        site.configure(1, policy, "");
        site.configure(2, "", "");
        let (one, two) = (site.start(1), site.start(2));
        let mut client = one.client();
        client.say("MAIL FROM:<s@x.test>");
        // Before and behind it, others: answers stay in their order.
        let first = client.say("RCPT TO:<first@x.test>");
        assert!(first.starts_with("250"), "{rcpt}: {first} {}", one.log());
        let reply = client.say(&format!("RCPT TO:<{rcpt}>"));
        let logs = || format!("{}\n{}", one.log(), two.log());
        assert!(reply.starts_with(at_rcpt), "{rcpt}: {reply} {}", logs());
        client.say("DATA");
        client.send(&support::stuffed(LETTER));
        let first = client.reply();
        assert!(first.starts_with("250 2.0.0 <first@x.test>"), "{first}");
        let mut want = vec!["node1/first/Maildir".to_owned()];
        if !at_data.is_empty() {
            let reply = client.reply();
            assert!(reply.starts_with(at_data), "{rcpt}: {reply} {}", logs());
            assert!(reply.contains(&format!("<{rcpt}>")), "{reply}");
            assert!(reply.contains(" mailbox=\""), "{reply}");
            want.push(place.to_owned());
        }
        want.sort();
        assert_eq!(site.found(), want, "{rcpt} {policy}: {}", logs());
        assert!(client.say("NOOP").starts_with("250"));
        // What comes out at the other end are the same bytes.
        for (_, bytes) in messages_below(&site.scratch.path("")) {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.ends_with("Subject: node\n\nHello\n.dot\n"), "{text}");
        }
    }
}

/// A node that is gone, one that says nothing, and two that each take the other for the right one: their recipients wait.
#[test]
fn nodes_that_are_of_no_use() {
    let site = two_nodes();
    site.configure(1, "", "");
    let one = site.start(1);
    let deliver = || {
        let began = Instant::now();
        let replies = one
            .client()
            .deliver(&["bob@x.test", "alice@x.test"], LETTER);
        assert!(began.elapsed() < Duration::from_secs(20));
        replies
    };
    let replies = deliver();
    assert!(
        replies[0].starts_with("451 4.4.1") && replies[1].starts_with("250"),
        "{replies:?}"
    );
    // It accepts and is silent.
    let silent = TcpListener::bind(("127.0.0.1", site.ports[1])).unwrap();
    let replies = deliver();
    assert!(
        replies[0].starts_with("451 4.4.1") && replies[1].starts_with("250"),
        "{replies:?}"
    );
    drop(silent);

    let users = fs::read_to_string(site.scratch.path("users")).unwrap();
    let ports = site.ports.clone();
    // node2 is told that bob is at node1.
    let text = fs::read_to_string(site.configure(2, "", "")).unwrap();
    let text = text
        .replace("hostname = \"node2\"", "hostname = \"other\"")
        .replace("/users\"", "/users2\"");
    support::write_long_ago(
        &site.scratch.path("users2"),
        &users.replace("bob::", "bobs::").replace("alice::", "bob::"),
    );
    fs::write(site.scratch.path("node2.toml"), text).unwrap();
    let two = site.start(2);
    let reply = deliver().remove(0);
    assert!(
        reply.starts_with("451 4.4.1"),
        "{reply} {ports:?} {}",
        two.log()
    );
    let passed = one.log().matches("passed on too often").count()
        + two.log().matches("passed on too often").count();
    assert!(passed > 0, "{} {}", one.log(), two.log());
}

/// What stands behind the answer to STARTTLS may be of somebody else (CVE-2021-33515): nothing more is said on that connection.
#[test]
fn what_waits_before_tls_of_a_node() {
    for (injected, is_begun) in [("", true), ("250 2.0.0 injected\r\n", false)] {
        let site = two_nodes();
        let text = fs::read_to_string(site.configure(1, "", "")).unwrap();
        let starttls = "[node.node2]\nstarttls = \"any-cert\"\n";
        let text = text.replace("[node.node2]\n", starttls);
        fs::write(site.scratch.path("node1.toml"), text).unwrap();
        let fake = TcpListener::bind(("127.0.0.1", site.ports[1])).unwrap();
        let node = thread::spawn(move || {
            let (stream, _) = fake.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut lines = BufReader::new(&stream);
            let answer = format!("220 2.0.0 go\r\n{injected}");
            for said in ["220 node2\r\n", "250-node2\r\n250 STARTTLS\r\n", &answer] {
                // In one segment.
                (&stream).write_all(said.as_bytes()).unwrap();
                if said != answer {
                    lines.read_line(&mut String::new()).unwrap();
                }
            }
            // A server without certificates: it says nothing more.
            let mut begun = [0; 5];
            lines.read(&mut begun).unwrap_or_default() > 0
        });
        let one = site.start(1);
        let reply = one.client().deliver(&["bob@x.test"], LETTER).remove(0);
        let case = format!("{injected:?}: {reply} {}", one.log());
        assert!(reply.starts_with("451 4.4.1"), "{case}");
        assert_eq!(node.join().unwrap(), is_begun, "{case}");
    }
}

/// The certificate of a node counts, or does not.
#[test]
fn with_tls() {
    let site = two_nodes();
    for (name, subject) in [
        ("good", "subjectAltName=IP:127.0.0.1"),
        ("bad", "subjectAltName=DNS:elsewhere.test"),
    ] {
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=node",
                "-addext",
                subject,
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ])
            .arg("-keyout")
            .arg(site.scratch.path(&format!("{name}.key")))
            .arg("-out")
            .arg(site.scratch.path(&format!("{name}.pem")))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        support::own(&site.scratch.path(&format!("{name}.key")), MAIL, MAIL);
    }
    for (starttls, certificate, want) in [
        ("yes", Some("good"), "250 2.0.0"),
        ("yes", Some("bad"), "451 4.4.1"),
        ("any-cert", Some("bad"), "250 2.0.0"),
        ("any-cert", None, "451 4.4.1"),
        ("no", Some("good"), "530 5.7.0"),
    ] {
        let path = |name: &str| site.scratch.text(name);
        let text = fs::read_to_string(site.configure(1, "", "")).unwrap();
        let ca = certificate.unwrap_or("good");
        let text = text.replace(
            "[placement]\n",
            &format!(
                "[placement]\nssl_client_ca_file = \"{}\"\n",
                path(&format!("{ca}.pem"))
            ),
        );
        let text = text.replace(
            "[node.node2]\n",
            &format!("[node.node2]\nstarttls = \"{starttls}\"\n"),
        );
        fs::write(site.scratch.path("node1.toml"), text).unwrap();
        let mut text = fs::read_to_string(site.configure(2, "", "")).unwrap();
        if let Some(name) = certificate {
            text = format!(
                "ssl = \"required\"\nssl_server_cert_file = \"{}\"\nssl_server_key_file = \"{}\"\n{text}",
                path(&format!("{name}.pem")),
                path(&format!("{name}.key"))
            );
        }
        fs::write(site.scratch.path("node2.toml"), text).unwrap();
        let (one, two) = (site.start(1), site.start(2));
        let letter =
            String::from_utf8_lossy(LETTER).replace("<1@", &format!("<{starttls}{certificate:?}@"));
        let reply = one
            .client()
            .deliver(&["bob@x.test"], letter.as_bytes())
            .remove(0);
        // A node that wants TLS says so to MAIL: nothing is known of the recipient then.
        let want = if want.starts_with("530") {
            "451 4.4.1"
        } else {
            want
        };
        assert!(
            reply.starts_with(want),
            "{starttls} {certificate:?}: {reply} {} {}",
            one.log(),
            two.log()
        );
    }
}

/// Only whoever is trusted sends on errands, and the admin is told where mail goes.
#[test]
fn errands_and_explanations() {
    let site = two_nodes();
    site.configure(1, "", "");
    let two = site.configure(2, "", "");
    let text = fs::read_to_string(&two).unwrap();
    fs::write(&two, text.replace(", trusted = true", "")).unwrap();
    let (one, two) = (site.start(1), site.start(2));
    let reply = one
        .client()
        .deliver(&["alice+shared/bob/Projects@x.test"], LETTER)
        .remove(0);
    assert!(reply.starts_with("451 4.4.1"), "{reply}");
    let mut stranger = two.client();
    stranger.say("MAIL FROM:<s@x.test>");
    let explain = |address: &str| {
        let mut command = program("postroom");
        command.arg("-c").arg(site.scratch.path("node1.toml"));
        command.args(["explain", address]);
        support::as_user(&mut command, MAIL, MAIL, &[]);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), said)
    };
    // What the other server answers is what is said.
    for (address, code, parts) in [
        (
            "bob@x.test",
            0,
            &["node2 (127.0.0.1:", "RCPT 250 2.1.5"][..],
        ),
        (
            "bob+Projects@x.test",
            0,
            &["node2 (127.0.0.1:", "RCPT 250 2.1.5"],
        ),
        ("alice@x.test", 0, &["mailbox=\"INBOX\""]),
        (
            "alice+shared/bob/Projects@x.test",
            75,
            &["is it ours, and trusts us?", "FAIL"],
        ),
    ] {
        let (found, said) = explain(address);
        assert_eq!(found, Some(code), "{address}: {said}");
        assert!(
            parts.iter().all(|part| said.contains(part)),
            "{address}: {said}"
        );
    }
}

/// Dovecot would put it into the INBOX of whoever delivers where it cannot store it: nobody there waits for it.
#[test]
fn an_errand_for_what_only_dovecot_writes() {
    let site = two_nodes();
    site.configure(1, "", "");
    let two = site.configure(2, "", "");
    let text = fs::read_to_string(&two).unwrap();
    let shared = "[namespace.shared]\n";
    let handed_over = format!("{shared}mail_driver = \"mdbox\"\nhand_over = \"lda:/bin/true\"\n");
    fs::write(&two, text.replace(shared, &handed_over)).unwrap();
    let (one, two) = (site.start(1), site.start(2));
    let reply = one
        .client()
        .deliver(&["alice+shared/bob/Projects@x.test"], LETTER)
        .remove(0);
    let logs = || format!("{}\n{}", one.log(), two.log());
    assert!(reply.starts_with("451 4.3.0"), "{reply}\n{}", logs());
    assert!(two.log().contains("into the INBOX of alice"), "{}", logs());
    assert_eq!(site.found(), [""; 0]);
}

/// Three machines, one of which is killed and comes back: nothing is lost, nothing is there twice.
#[test]
fn three_nodes() {
    const DELIVERIES: usize = 3000;
    if not_root() {
        return;
    }
    let Some(mut site) = Site::new(&["10.77.0.1", "10.77.0.2", "10.77.0.3"], true) else {
        return;
    };
    let mut rows = String::from(
        "CREATE TABLE users (name text, uid int, gid int, host text); CREATE TABLE placement (user_name text, mailbox text, node text);",
    );
    for (user, node) in [("alice", 1), ("bob", 2), ("carol", 3)] {
        rows.push_str(&format!(
            "INSERT INTO users VALUES ('{user}', {MAIL}, {MAIL}, 'node{node}');"
        ));
        site.mailbox(node, &format!("{user}/Maildir"), "");
        site.mailbox(node, &format!("{user}/Maildir/.Team"), "anyone lrwip\n");
        site.mailbox(node, &format!("public/.box{node}"), "anyone lrwip\n");
        rows.push_str(&format!(
            "INSERT INTO placement VALUES ('', 'Public/box{node}', 'node{node}');"
        ));
    }
    let postgresql = site.postgresql.as_mut().unwrap();
    postgresql.start();
    postgresql.run(&rows);
    for node in 1..=3 {
        site.configure(node, "", "");
    }
    let network = Network::new(&site.scratch);
    let start = |node: usize| network.start(&site, node);
    let servers: Vec<Mutex<Option<Server>>> =
        (1..=3).map(|node| Mutex::new(Some(start(node)))).collect();
    let mut wanted: HashMap<String, usize> = HashMap::new();
    let mut jobs = Vec::new();
    let users = ["alice", "bob", "carol"];
    for number in 0..DELIVERIES {
        let (user, other) = (users[number % 3], users[(number / 3) % 3]);
        let (detail, place) = match number % 5 {
            0 => (
                String::new(),
                format!("node{}/{user}/Maildir", number % 3 + 1),
            ),
            1 | 2 if other != user => (
                format!("+shared/{other}/Team"),
                format!("node{0}/{other}/Maildir/.Team", (number / 3) % 3 + 1),
            ),
            1 | 2 => (
                "+Team".into(),
                format!("node{}/{user}/Maildir/.Team", number % 3 + 1),
            ),
            _ => {
                let at = (number / 7) % 3 + 1;
                (
                    format!("+Public/box{at}"),
                    format!("node{at}/public/.box{at}"),
                )
            }
        };
        *wanted.entry(place).or_default() += 1;
        jobs.push((number, format!("{user}{detail}@x.test")));
    }
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for client in 0..6 {
            let (jobs, next, done, site) = (&jobs, &next, &done, &site);
            scope.spawn(move || {
                // Each client has a server of its own that takes its mail; the second one's is killed in between.
                let socket = site.root(client % 3 + 1).join("run/lmtp");
                loop {
                    let Some((number, rcpt)) = jobs.get(next.fetch_add(1, Ordering::Relaxed))
                    else {
                        return;
                    };
                    let letter = format!(
                        "Message-ID: <{number}@x.test>\r\nSubject: {number}\r\n\r\nHello\r\n"
                    );
                    let began = Instant::now();
                    while !tried(&socket, rcpt, &letter) {
                        assert!(began.elapsed() < PATIENCE * 2, "{rcpt}");
                        thread::sleep(Duration::from_millis(20));
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while done.load(Ordering::Relaxed) < DELIVERIES / 3 {
            thread::sleep(Duration::from_millis(5));
        }
        let mut second = servers[1].lock().unwrap();
        let server = second.take().unwrap();
        network.kill(2);
        drop(server);
        thread::sleep(Duration::from_millis(700));
        *second = Some(start(2));
    });
    let mut found: HashMap<String, usize> = HashMap::new();
    for place in site.found() {
        *found.entry(place).or_default() += 1;
    }
    assert_eq!(found, wanted);
    let mut subjects: Vec<String> = messages_below(&site.scratch.path(""))
        .iter()
        .map(|(_, bytes)| support::subject(bytes))
        .collect();
    subjects.sort();
    subjects.dedup();
    assert_eq!(subjects.len(), DELIVERIES);
    drop(servers);
}

fn tried(socket: &Path, rcpt: &str, letter: &str) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::os::unix::net::UnixStream::connect(socket) else {
        return false;
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let text = format!(
        "LHLO a\r\nMAIL FROM:<sender@else.test>\r\nRCPT TO:<{rcpt}>\r\nDATA\r\n{letter}.\r\nQUIT\r\n"
    );
    if stream.write_all(text.as_bytes()).is_err() {
        return false;
    }
    let mut said = String::new();
    let _ = stream.read_to_string(&mut said);
    said.lines().any(|line| line.starts_with("250 2.0.0 <"))
}

/// Three network namespaces on a bridge in a fourth one; each lives as long as its sleeper.
struct Network {
    sleepers: Vec<std::process::Child>,
    pids: Mutex<HashMap<usize, u32>>,
}

impl Network {
    fn new(_: &Scratch) -> Network {
        let sleeper = || {
            let child = Command::new("unshare")
                .args(["--net", "sleep", "600"])
                .spawn()
                .unwrap();
            // It has its namespace once it has become the sleeper.
            let began = Instant::now();
            while fs::read_to_string(format!("/proc/{}/comm", child.id()))
                .unwrap()
                .trim()
                != "sleep"
            {
                assert!(began.elapsed() < PATIENCE);
                thread::sleep(Duration::from_millis(5));
            }
            child
        };
        let sleepers: Vec<_> = (0..4).map(|_| sleeper()).collect();
        let ip = |at: usize, words: &str| {
            let mut command = Command::new("nsenter");
            command
                .args(["-t", &sleepers[at].id().to_string(), "-n", "ip"])
                .args(words.split(' '));
            let output = command.output().unwrap();
            assert!(output.status.success(), "{words}: {output:?}");
        };
        ip(0, "link add bridge type bridge");
        ip(0, "link set bridge up");
        for (node, sleeper) in sleepers.iter().enumerate().skip(1) {
            ip(
                0,
                &format!(
                    "link add to{node} type veth peer name eth0 netns {}",
                    sleeper.id()
                ),
            );
            ip(0, &format!("link set to{node} master bridge up"));
            ip(node, "link set lo up");
            ip(node, &format!("addr add 10.77.0.{node}/24 dev eth0"));
            ip(node, "link set eth0 up");
        }
        Network {
            sleepers,
            pids: Mutex::default(),
        }
    }

    fn start(&self, site: &Site, node: usize) -> Server {
        let config = site.scratch.path(&format!("node{node}.toml"));
        let root = site.root(node);
        let server = program("postroom-lmtpd").get_program().to_owned();
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.sleepers[node].id().to_string(), "-n", "setpriv"]);
        command.args([
            format!("--reuid={MAIL}"),
            format!("--regid={MAIL}"),
            "--clear-groups".into(),
        ]);
        command.arg(server).arg("-c").arg(&config);
        let server = Server::spawn(command, &root.join("run/lmtp"), &root.join("run/log"));
        self.pids.lock().unwrap().insert(node, server.pid());
        server
    }

    fn kill(&self, node: usize) {
        support::signal(self.pids.lock().unwrap()[&node], "KILL");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for sleeper in &mut self.sleepers {
            let _ = sleeper.kill();
            let _ = sleeper.wait();
        }
    }
}

/// Real MTAs in front of two servers: each recipient has the reply of whoever has his mailbox in the MTA's log, and the MTA's queue ids
/// are in ours.
#[test]
fn behind_mtas() {
    if not_root() {
        return;
    }
    let site = two_nodes();
    let users = |later: &str| {
        site.users(&[
            ("alice", "userdb_host=node1"),
            ("bob", "userdb_host=node2"),
            ("later", later),
        ]);
    };
    users("userdb_host=node2 userdb_port=x");
    let text = fs::read_to_string(site.configure(1, "", "")).unwrap();
    let text = text.replace("mode = \"0660\" }", "mode = \"0666\", trusted = true }");
    fs::write(site.scratch.path("node1.toml"), text).unwrap();
    site.configure(2, "", "");
    let (one, two) = (site.start(1), site.start(2));
    let socket = site.root(1).join("run/lmtp");
    let corpus = support::corpus(25);
    let (Some(postfix), Some(exim)) = (
        Postfix::start(&site.scratch, &socket, "/bin/false"),
        Exim::new(
            &site.scratch,
            &socket,
            "/bin/false",
            &site.scratch.path("spool"),
        ),
    ) else {
        return;
    };
    let everybody = [
        "alice@example.test",
        "bob@example.test",
        "alice+shared/bob/Projects@example.test",
        "nobody-here@example.test",
        "later@example.test",
    ];
    for message in &corpus {
        postfix.send(&everybody, message);
    }
    let count = |log: &str, parts: &[&str]| {
        log.lines()
            .filter(|line| parts.iter().all(|part| line.contains(part)))
            .count()
    };
    let messages = corpus.len();
    for (rcpt, status, reply) in [
        ("alice", "status=sent", "(250 2.0.0 <alice@example.test> "),
        ("bob", "status=sent", "(250 2.0.0 <bob@example.test> "),
        (
            "alice+shared/bob/Projects",
            "status=sent",
            "mailbox=\"shared/bob/Projects\"",
        ),
        ("nobody-here", "status=bounced", "550 5.1.1 "),
        ("later", "status=deferred", "451 4.3.0 "),
    ] {
        let to = format!("to=<{rcpt}@example.test>");
        postfix.wait_for(|log| count(log, &[&to, status, reply]) >= messages);
    }
    // Postfix tries again, and then there is a place for the rest.
    users("userdb_host=node2");
    postfix.wait_for(|log| {
        count(
            log,
            &["to=<later@example.test>", "status=sent", "250 2.0.0 "],
        ) == messages
    });
    let ids: Vec<String> = postfix
        .log()
        .lines()
        .filter(|line| line.contains("to=<alice@example.test>") && line.contains("status=sent"))
        .filter_map(|line| Some(line.split("]: ").nth(1)?.split(':').next()?.to_owned()))
        .collect();
    assert_eq!(ids.len(), messages);
    let log = one.log();
    for id in &ids {
        let ours = format!("queue_id=\"{id}\"");
        // Local, passed on, refused and deferred ones: all of its recipients.
        for rcpt in everybody {
            let rcpt = format!("rcpt=\"{rcpt}\"");
            assert!(count(&log, &[&ours, &rcpt]) >= 1, "{id} {rcpt}: {log}");
        }
    }
    for message in &corpus {
        let said = exim.send(&everybody[..4], message);
        for (rcpt, reply) in [
            (
                "<alice@example.test> R=lmtp",
                "250 2.0.0 <alice@example.test> ",
            ),
            ("<bob@example.test> R=lmtp", "250 2.0.0 <bob@example.test> "),
            (
                "<alice+shared/bob/Projects@example.test> R=lmtp",
                "mailbox=\\\"shared/bob/Projects\\\"",
            ),
            ("** nobody-here@example.test", "550 5.1.1 "),
        ] {
            assert!(
                count(&said, &[rcpt, reply]) >= 1,
                "{rcpt}: {said} {}",
                two.log()
            );
        }
    }
    let mut want: HashMap<String, usize> = HashMap::new();
    want.insert("node1/alice/Maildir".into(), 2 * messages);
    want.insert("node2/bob/Maildir".into(), 2 * messages);
    want.insert("node2/bob/Maildir/.Projects".into(), 2 * messages);
    want.insert("node2/later/Maildir".into(), messages);
    let mut found: HashMap<String, usize> = HashMap::new();
    for place in site.found() {
        *found.entry(place).or_default() += 1;
    }
    assert_eq!(found, want);
}

/// Public mailboxes lie where a table says, also those that a route names; what another server refuses has what stands in for it here.
#[test]
fn public_mailboxes_by_a_table() {
    let routed = [b"X-Team: yes\r\n".as_slice(), LETTER].concat();
    let route = "[[route]]\nheader = \"X-Team\"\nmailbox = \"Public/team\"\n[[address]]\nmatch = \"info@x.test\"\nuser = \"alice\"\nmailbox = \"Public/team\"";
    let child = "on_missing = \"parent\"";
    let reject = "on_missing = \"reject\"\non_denied = \"reject\"";
    for (rcpt, letter, policy, acl, place) in [
        (
            "alice+Public/team@x.test",
            LETTER,
            "",
            "anyone lrwip\n",
            "node2/public/.team",
        ),
        (
            "alice+Public/team@x.test",
            LETTER,
            "",
            "anyone lr\n",
            "node1/alice/Maildir",
        ),
        (
            "alice+Public/team/child@x.test",
            LETTER,
            child,
            "anyone lrwip\n",
            "node2/public/.team",
        ),
        (
            "alice+Public/none/child@x.test",
            LETTER,
            child,
            "anyone lrwip\n",
            "node1/alice/Maildir",
        ),
        (
            "alice@x.test",
            &routed[..],
            reject,
            "anyone lrwip\n",
            "node2/public/.team",
        ),
        // A mailbox with an address: an unused detail of it is its parent's.
        (
            "info@x.test",
            LETTER,
            "",
            "anyone lrwip\n",
            "node2/public/.team",
        ),
        (
            "info+foo@x.test",
            LETTER,
            "",
            "anyone lrwip\n",
            "node2/public/.team",
        ),
        // A route never costs the mail.
        (
            "alice@x.test",
            &routed[..],
            reject,
            "anyone lr\n",
            "node1/alice/Maildir",
        ),
    ] {
        let site = two_nodes();
        site.mailbox(2, "public/.team", acl);
        let table = site.scratch.path("placement.db");
        let script = "import sqlite3,sys
d=sqlite3.connect(sys.argv[1]); d.execute('CREATE TABLE placement (user_name text, mailbox text, node text)')
for m in ('team','none'): d.execute(\"INSERT INTO placement VALUES ('', 'Public/'||?, 'node2')\", (m,))
d.commit()";
        let made = Command::new("python3")
            .args(["-c", script])
            .arg(&table)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        for node in 1..=2 {
            let config = site.configure(node, policy, route);
            let text = fs::read_to_string(&config).unwrap();
            let sqlite = format!(
                "[placement]\n[placement.sqlite]\npath = \"{}\"\n",
                table.display()
            );
            fs::write(&config, text.replace("[placement]\n", &sqlite)).unwrap();
        }
        let (one, two) = (site.start(1), site.start(2));
        let reply = one.client().deliver(&[rcpt], letter).remove(0);
        assert!(
            reply.starts_with("250 2.0.0"),
            "{rcpt}: {reply} {} {}",
            one.log(),
            two.log()
        );
        assert_eq!(
            site.found(),
            [place],
            "{rcpt} {policy} {acl}: {}",
            one.log()
        );
        if rcpt == "alice@x.test" {
            // Also where the other server is gone.
            drop(two);
            let letter = String::from_utf8_lossy(letter).replace("<1@", "<2@");
            let reply = one.client().deliver(&[rcpt], letter.as_bytes()).remove(0);
            assert!(reply.contains("mailbox=\"INBOX\""), "{reply}");
        }
    }
}
