//! What one client, one user, one mailbox and one disk may cost the others.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::agent::Tracer;
use support::mount::Mount;
use support::peers::free_port;
use support::{
    MAIL, PATIENCE, Server, Store, as_user, installed, messages, not_root, own, program,
    replace_in, skip, wait_until, write_long_ago,
};

/// A server with this in place of the usual listener, and with `more` behind.
fn serve(store: &Store, listeners: &str, delivery: &str, lmtp: &str) -> Server {
    let config = store.configure(delivery, "");
    let changed = format!("mode = \"0666\" }}{listeners}]\n{lmtp}");
    replace_in(&config, "mode = \"0666\" }]", &changed);
    Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"))
}

#[test]
fn each_address_has_so_many_connections() {
    let (store, port) = (Store::new(), free_port());
    let listener = format!(", {{ tcp = \"127.0.0.1:{port}\" }}");
    let server = serve(&store, &listener, "", "max_connections_per_peer = 2");
    let connect = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut greeting = [0; 9];
        stream.read_exact(&mut greeting).unwrap();
        (stream, String::from_utf8_lossy(&greeting).into_owned())
    };
    let first = connect();
    let second = connect();
    assert!(first.1.starts_with("220 ") && second.1.starts_with("220 "));
    assert_eq!(connect().1, "421 4.3.2");
    // A unix socket has no addresses.
    assert!(server.client().say("NOOP").starts_with("250"));
    drop(first);
    let began = Instant::now();
    while connect().1 != "220 mx.ex" {
        assert!(began.elapsed() < PATIENCE);
    }
}

/// The locks of alice's mailbox are held; those who wait for it take no room from bob.
#[test]
fn a_mailbox_that_hangs_leaves_room_for_others() {
    let store = Store::new();
    let config = store.configure("", "");
    let mbox = "mail_driver = \"mbox\"\nmail_path = \"~/mail\"\nmail_inbox_path = \"~/inbox\"\nmbox_write_locks = [\"dotlock\"]\n";
    replace_in(&config, "hostname", &format!("{mbox}hostname"));
    for others in ["type = \"public\"", "type = \"shared\""] {
        let maildir = format!("mail_driver = \"maildir\"\n{others}");
        replace_in(&config, others, &maildir);
    }
    let limits = "[lmtp]\nmax_per_user = 4\nmax_waiting_per_user = 3";
    replace_in(&config, "[lmtp]", limits);
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    for user in ["alice", "bob"] {
        store
            .scratch
            .file(&format!("home/{user}/inbox"), MAIL, MAIL, 0o600, "");
    }
    // A living process of this host holds it.
    let lock = store.path("home/alice/inbox.lock");
    fs::write(&lock, format!("{}", std::process::id())).unwrap();

    // One after the other as far as their messages: a look takes its turn too.
    let begin = |user: &str| {
        let mut client = server.client();
        client.say("MAIL FROM:<s@x.test>");
        let rcpt = client.say(&format!("RCPT TO:<{user}@x.test>"));
        assert!(rcpt.starts_with("250"), "{rcpt}");
        client.say("DATA");
        client
    };
    let finish = |mut client: support::Lmtp| {
        thread::spawn(move || {
            client.send(b"Subject: x\r\n\r\nx\r\n.\r\n");
            client.reply()
        })
    };
    let clients: Vec<_> = (0..12).map(|_| begin("alice")).collect();
    let alices: Vec<_> = clients.into_iter().map(finish).collect();
    // Four at work and three behind them: the others have their answer.
    let began = Instant::now();
    while alices.iter().filter(|it| it.is_finished()).count() < 5 {
        assert!(began.elapsed() < PATIENCE, "{}", server.log());
        thread::sleep(Duration::from_millis(10));
    }
    let bob = finish(begin("bob")).join().unwrap();
    assert!(bob.starts_with("250 2.0.0"), "{bob}");
    assert_eq!(alices.iter().filter(|it| it.is_finished()).count(), 5);
    fs::remove_file(&lock).unwrap();
    let answers: Vec<String> = alices.into_iter().map(|it| it.join().unwrap()).collect();
    let count = |start: &str| answers.iter().filter(|it| it.starts_with(start)).count();
    assert_eq!(
        (count("451 4.2.1"), count("250 2.0.0")),
        (5, 7),
        "{answers:?}"
    );
    assert_eq!(
        fs::read_to_string(store.path("home/alice/inbox"))
            .unwrap()
            .matches("\nSubject: x\n")
            .count(),
        7
    );
}

/// A thousand recipients of a client that does not listen to what has become of them: others have their turn.
#[test]
fn whoever_does_not_listen() {
    const USERS: usize = 100;
    const RECIPIENTS: usize = 1000;
    if not_root() {
        return;
    }
    for isolation in ["none", "process"] {
        let store = Store::with_inbox();
        let config = store.configure("", "");
        let mut users = fs::read_to_string(store.path("users")).unwrap();
        for number in 0..USERS {
            let home = format!("home/u{number}");
            let inbox = format!("{home}/Maildir");
            store.scratch.maildir(&inbox, MAIL, MAIL, 0o700);
            let home = store.scratch.text(&home);
            writeln!(users, "u{number}:x:{MAIL}:{MAIL}::{home}::").unwrap();
        }
        write_long_ago(&store.path("users"), &users);
        let text = fs::read_to_string(&config).unwrap();
        let text = format!("{text}[workers]\nisolation = \"{isolation}\"\n");
        fs::write(&config, text).unwrap();
        let (socket, log) = (store.path("run/lmtp"), store.path("run/log"));
        let server = match isolation {
            "none" => Server::start(&config, &socket, &log),
            _ => Server::start_as_root(&config, &socket, &log),
        };
        // Their answers are more than the socket takes.
        let domain = ["d".repeat(60), "e".repeat(60), "f".repeat(60)].join(".");
        let rcpts = (0..RECIPIENTS).map(|number| {
            let user = number % USERS;
            format!("RCPT TO:<u{user}@{domain}.x{number}>\r\n")
        });
        let mut deaf = server.client();
        deaf.say("MAIL FROM:<s@x.test>");
        for rcpt in rcpts {
            let answer = deaf.say(rcpt.trim_end());
            assert!(answer.starts_with("250 "), "{answer}");
        }
        assert_eq!(deaf.say("DATA"), "354 OK");
        deaf.send(b"Subject: x\r\n\r\nx\r\n.\r\n");
        let new = |number| store.path(&format!("home/u{number}/Maildir/new"));
        let count = |number| fs::read_dir(new(number)).unwrap().count();
        let stored = || (0..USERS).map(count).sum::<usize>();
        wait_until("a few are stored", || stored() > 20);
        for user in ["alice", "bob"] {
            let answers = server
                .client()
                .deliver(&[&format!("{user}@x.test")], b"Subject: y\r\n\r\ny\r\n");
            assert!(
                answers[0].starts_with("250 2.0.0"),
                "{isolation}: {answers:?}"
            );
        }
        let began = Instant::now();
        while stored() < RECIPIENTS {
            assert!(began.elapsed() < 4 * PATIENCE, "{isolation}: {}", stored());
            thread::sleep(Duration::from_millis(50));
        }
        let answers: Vec<String> = (0..RECIPIENTS).map(|_| deaf.reply()).collect();
        let odd: Vec<_> = answers
            .iter()
            .filter(|it| !it.starts_with("250 "))
            .collect();
        assert_eq!(odd, Vec::<&String>::new(), "{isolation}");
    }
}

/// What is announced as too large for its user, or for the disk, is not sent at all.
#[test]
fn too_large_is_said_before_the_message_comes() {
    let store = Store::with_inbox();
    let free = free_bytes(&store);
    let users = [
        "alice:::userdb_quota_mail_size=2k",
        "bob:::userdb_quota_max_mail_size=1k",
        "carol:::",
    ];
    for (delivery, user, size, want) in [
        ("", "carol", 5_000, &["250 2.1.5", "354", "250 2.0.0"][..]),
        ("", "alice", 1_000, &["250 2.1.5", "354", "250 2.0.0"]),
        ("", "alice", 3_000, &["552 5.3.4"]),
        ("", "bob", 1_025, &["552 5.3.4"]),
        ("message_size = \"1k\"", "alice", 1_500, &["552 5.3.4"]),
        ("", "carol", 2 * free, &["452 4.3.1"]),
        (
            "min_free_space = \"10000000G\"",
            "carol",
            10,
            &["452 4.3.1"],
        ),
    ] {
        let config = store.configure(delivery, "");
        let lines = users.map(|line| {
            let (name, rest) = line.split_once(":::").unwrap();
            let home = store.path(&format!("home/{name}"));
            format!("{name}::{MAIL}:{MAIL}::{}::{rest}\n", home.display())
        });
        write_long_ago(&store.path("users"), &lines.concat());
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        let mut client = server.client();
        let mail = client.say(&format!("MAIL FROM:<s@x.test> SIZE={size}"));
        let mut found = Vec::new();
        match mail.starts_with("250") {
            false => found.push(mail),
            true => {
                found.push(client.say(&format!("RCPT TO:<{user}@x.test>")));
                if found[0].starts_with("250") {
                    found.push(client.say("DATA"));
                    client.send(b"Subject: x\r\n\r\nx\r\n.\r\n");
                    found.push(client.reply());
                }
            }
        }
        let fits = found
            .iter()
            .zip(want)
            .all(|(found, want)| found.starts_with(want));
        assert!(
            fits && found.len() == want.len(),
            "{delivery} {user} {size}: {found:?}"
        );
    }
}

/// Bytes that nobody has announced are counted when they are there.
#[test]
fn a_message_of_unknown_size_is_counted() {
    let store = Store::with_inbox();
    let server = {
        let config = store.configure("", "");
        let home = store.path("home/alice");
        let line = format!(
            "alice::{MAIL}:{MAIL}::{}::userdb_quota_mail_size=1k\n",
            home.display()
        );
        write_long_ago(&store.path("users"), &line);
        Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"))
    };
    let mut letter = b"Subject: x\r\n\r\n".to_vec();
    letter.extend(b"0123456789\r\n".repeat(200));
    let replies = server.client().deliver(&["alice@x.test"], &letter);
    assert!(
        replies.iter().all(|it| it.starts_with("552 5.3.4")),
        "{replies:?}"
    );
    assert!(messages(&store.path("home/alice/Maildir")).is_empty());
}

/// The spool lies on a small disk: a large message is refused at DATA, a small one needs no spool.
#[test]
fn a_full_spool_is_said_before_the_message_comes() {
    if not_root() {
        return;
    }
    let store = Store::with_inbox();
    fs::create_dir(store.path("spool")).unwrap();
    let Some(_mount) = Mount::small(store.path("spool"), 1024, 100, MAIL) else {
        return;
    };
    let config = store.configure("", "");
    store.move_spool(&config, "spool");
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    for (size, want) in [(1_000, "354"), (5_000_000, "452 4.3.1")] {
        let mut client = server.client();
        client.say(&format!("MAIL FROM:<s@x.test> SIZE={size}"));
        assert!(client.say("RCPT TO:<alice@x.test>").starts_with("250"));
        assert!(client.say("DATA").starts_with(want), "{size}");
    }
    // BDAT brings its octets in any case.
    let mut client = server.client();
    client.say("MAIL FROM:<s@x.test>");
    assert!(client.say("RCPT TO:<alice@x.test>").starts_with("250"));
    client.send(b"BDAT 5000000 LAST\r\n");
    client.send(&vec![b'x'; 5_000_000]);
    let reply = client.reply();
    assert!(reply.starts_with("452 4.3.1"), "{reply}");
    assert!(client.say("NOOP").starts_with("250"));
}

/// A file system where nobody can write for now. Thawed at the end: a process that waits for it cannot even be killed.
struct Frozen(PathBuf);

impl Frozen {
    fn new(at: PathBuf) -> Frozen {
        let frozen = Command::new("fsfreeze").arg("-f").arg(&at).status();
        assert!(frozen.unwrap().success());
        Frozen(at)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
    }
}

/// The spool hangs: who needs it hears so, those who do not are served, and it is as good as before when it comes back.
#[test]
fn a_spool_that_hangs() {
    if not_root() {
        return;
    }
    let store = Store::with_inbox();
    let spool = store.path("spool");
    fs::create_dir(&spool).unwrap();
    let Some(_mount) = Mount::journaled(&store.path("image"), spool.clone(), 64) else {
        return;
    };
    own(&spool, MAIL, MAIL);
    let config = store.configure("", "");
    store.move_spool(&config, "spool");
    replace_in(&config, "[lmtp]", "[lmtp]\ndata_deadline = \"1s\"");
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    let large = b"0123456789abcdef0123456789abcdef0123456789\r\n".repeat(60_000);
    let send = |message: &[u8]| {
        server
            .client()
            .deliver(&["alice@x.test"], message)
            .remove(0)
    };
    let frozen = Frozen::new(spool);
    thread::scope(|scope| {
        let hanging: Vec<_> = (0..8).map(|_| scope.spawn(|| send(&large))).collect();
        for _ in 0..8 {
            let reply = send(b"Subject: x\r\n\r\nx\r\n");
            assert!(reply.starts_with("250 "), "{reply}");
        }
        for reply in hanging.into_iter().map(|it| it.join().unwrap()) {
            assert!(reply.starts_with("451 4.2.0 "), "{reply}");
        }
    });
    assert!(
        server
            .log()
            .contains("the disk of the spool takes too long")
    );
    drop(frozen);
    let reply = send(&large);
    assert!(reply.starts_with("250 "), "{reply}");
}

/// The disk of alice's mailbox hangs right behind a few messages: what is kept open of it holds nobody else up.
#[test]
fn a_kept_mailbox_whose_disk_hangs() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let mailbox = store.path("home/alice/Maildir");
    fs::create_dir(&mailbox).unwrap();
    let Some(_mount) = Mount::journaled(&store.path("image"), mailbox.clone(), 64) else {
        return;
    };
    store
        .scratch
        .maildir("home/alice/Maildir", MAIL, MAIL, 0o700);
    let server = store.serve("", "");
    let deliver = |user: &str| {
        let replies = server.client().deliver(&[user], b"Subject: x\r\n\r\nx\r\n");
        assert!(replies[0].starts_with("250 2.0.0"), "{replies:?}");
    };
    let tmp = mailbox.join("tmp");
    wait_until("a lock file that is kept", || {
        deliver("alice@x.test");
        fs::read_dir(&tmp).unwrap().next().is_some()
    });
    let frozen = Frozen::new(mailbox);
    // It is let go, or tried to be, meanwhile.
    thread::sleep(Duration::from_secs(3));
    (0..8).for_each(|_| deliver("bob@x.test"));
    drop(frozen);
    deliver("alice@x.test");
}

/// Looks at many mailboxes leave files for others, however few there are.
#[test]
fn more_mailboxes_than_files() {
    if not_root() || !installed("prlimit") && skip("prlimit is not installed") {
        return;
    }
    let store = Store::with_inbox();
    for number in 0..100 {
        let folder = format!("home/alice/Maildir/.F{number}");
        store.scratch.maildir(&folder, MAIL, MAIL, 0o700);
    }
    let server = store.serve("", "");
    let pid = server.pid().to_string();
    let mut limit = Command::new("prlimit");
    limit.args(["--pid", &pid, "--nofile=128:128"]);
    as_user(&mut limit, MAIL, MAIL, &[]);
    assert!(limit.status().unwrap().success());
    let mut client = server.client();
    client.say("MAIL FROM:<s@x.test>");
    for number in 0..100 {
        let reply = client.say(&format!("RCPT TO:<alice+F{number}@x.test>"));
        assert!(
            reply.starts_with("250"),
            "{number}: {reply} {}",
            server.log()
        );
    }
    assert!(server.client().say("NOOP").starts_with("250"));
}

/// Slow peers hold their own connection, and no more of it than they need.
#[test]
fn an_idle_connection_holds_little() {
    const PEERS: u64 = 300;
    let store = Store::with_inbox();
    let server = serve(&store, "", "", "max_connections = 400");
    let resident = || status(&server, "VmRSS:");
    let connect = |_| {
        let mut stream = UnixStream::connect(store.path("run/lmtp")).unwrap();
        let mut greeting = [0; 64];
        stream.write_all(b"LHLO a\r\n").unwrap();
        assert!(stream.read(&mut greeting).unwrap() > 0);
        stream
    };
    let first: Vec<UnixStream> = (0..30).map(connect).collect();
    let before = resident();
    let all: Vec<UnixStream> = (0..PEERS).map(connect).collect();
    let each = resident().saturating_sub(before) / PEERS;
    assert!(each <= 24, "{each} KiB");
    assert!(server.client().say("NOOP").starts_with("250"));
    drop((first, all));
}

/// For the clients of all tests of this program.
fn allow_many_files() {
    let mut raise = Command::new("prlimit");
    raise.args(["--pid", &std::process::id().to_string(), "--nofile=10000"]);
    assert!(raise.status().unwrap().success());
}

/// Thousands that say nothing, and some whose message drips: the others are served, by threads that they do not take.
#[test]
fn many_who_say_nothing() {
    const SILENT: usize = 2000;
    if not_root() {
        return;
    }
    allow_many_files();
    let store = Store::with_inbox();
    let server = serve(
        &store,
        "",
        "",
        &format!("max_connections = {}", SILENT + 200),
    );
    let silent: Vec<_> = (0..SILENT).map(|_| server.client()).collect();
    let dripping = (0..100).map(|_| {
        let mut client = server.client();
        client.say("MAIL FROM:<s@x.test>");
        client.say("RCPT TO:<bob@x.test>");
        assert_eq!(client.say("DATA"), "354 OK");
        client.send(b"Subject: ");
        client
    });
    let mut dripping: Vec<_> = dripping.collect();
    for client in dripping.iter_mut().take(50) {
        client.send(b"x");
        let replies = server
            .client()
            .deliver(&["alice@x.test"], b"Subject: x\r\n\r\nx\r\n");
        assert!(replies[0].starts_with("250 "), "{replies:?}");
    }
    let threads = status(&server, "Threads:");
    assert!(threads < 80, "{threads} threads");
    assert_eq!(messages(&store.path("home/alice/Maildir")).len(), 50);
    drop((silent, dripping));
}

/// Large messages that all come at once share what memory there is for them, and wait in the spool beyond.
#[test]
fn many_large_messages_at_once() {
    const CLIENTS: usize = 80;
    const ROOM: u64 = 128 * 1024;
    let store = Store::with_inbox();
    let server = serve(&store, "", "", "");
    let before = server.peak_memory();
    let large = b"0123456789abcdef0123456789abcdef0123456789abcde\r\n".repeat(40_000);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.client()).collect();
    for client in &mut clients {
        client.say("MAIL FROM:<s@x.test>");
        client.say("RCPT TO:<alice@x.test>");
        assert_eq!(client.say("DATA"), "354 OK");
        client.send(&large);
    }
    // The last has found no room.
    let client = clients.last_mut().unwrap();
    client.send(b".\r\n");
    let reply = client.reply();
    assert!(reply.starts_with("250 "), "{reply}");
    let grown = server.peak_memory() - before;
    let each = grown.saturating_sub(ROOM) / CLIENTS as u64;
    assert!(
        each < 150,
        "{grown} KiB, {each} of them for each beside the room for all"
    );
    drop(clients);
}

/// A group of processes that the kernel gives so much memory (cgroups(7)), of either hierarchy.
struct Group(PathBuf);

impl Group {
    fn with_memory(bytes: u64) -> Option<Group> {
        let name = format!("postroom-test-{}", std::process::id());
        [("memory", "memory.limit_in_bytes"), ("", "memory.max")]
            .into_iter()
            .find_map(|(hierarchy, limit)| {
                let group = Group(PathBuf::from("/sys/fs/cgroup").join(hierarchy).join(&name));
                fs::create_dir(&group.0).ok()?;
                fs::write(group.0.join(limit), bytes.to_string()).ok()?;
                Some(group)
            })
    }

    fn take(&self, process: u32) {
        fs::write(self.0.join("cgroup.procs"), process.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Not before the kernel has done with its processes.
        wait_until("the group of processes is empty", || {
            fs::remove_dir(&self.0).is_ok()
        });
    }
}

/// The server asks how much memory the kernel leaves it: more large messages than that at once, among a thousand clients.
#[test]
fn memory_that_the_kernel_limits() {
    const CLIENTS: usize = 1000;
    if not_root() {
        return;
    }
    let Some(group) = Group::with_memory(64 * 1024 * 1024) else {
        skip("no group with a limit on memory can be made in /sys/fs/cgroup");
        return;
    };
    allow_many_files();
    let store = Store::with_inbox();
    let room = format!("max_connections = {}", CLIENTS + 200);
    let server = serve(&store, "", "", &room);
    group.take(server.pid());
    let silent: Vec<_> = (0..CLIENTS).map(|_| server.client()).collect();
    let line = b"0123456789abcdef0123456789abcdef0123456789abcde\r\n";
    let mut clients: Vec<_> = (0..60).map(|_| server.client()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.say("MAIL FROM:<s@x.test>");
        client.say("RCPT TO:<alice@x.test>");
        assert_eq!(client.say("DATA"), "354 OK");
        client.send(format!("Subject: {number}\r\n\r\n").as_bytes());
        client.send(&line.repeat(40_000));
    }
    let block = line.repeat(20_000);
    let huge = &mut clients[0];
    for _ in 0..1 << 10 {
        huge.send(&block);
    }
    for client in &mut clients {
        client.send(b".\r\n");
        let reply = client.reply();
        assert!(reply.starts_with("250 "), "{reply}");
    }
    assert_eq!(messages(&store.path("home/alice/Maildir")).len(), 60);
    drop((clients, silent));
    assert!(server.client().say("NOOP").starts_with("250"));
}

/// A number of `/proc/PID/status`.
fn status(server: &Server, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|it| it.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Bytes that are free where the mailboxes are.
fn free_bytes(store: &Store) -> u64 {
    let mut command = std::process::Command::new("df");
    command
        .args(["--output=avail", "-B1"])
        .arg(store.path("home"));
    let lines = support::peers::lines_of(&mut command);
    lines[1].trim().parse().unwrap()
}

/// A server that gets no more threads than it begins with delivers with these, one message after the other.
#[test]
fn threads_that_cannot_be_had() {
    if not_root() || !installed("strace") && skip("strace is not installed") {
        return;
    }
    let store = Store::with_inbox();
    let server = store.serve("", "");
    let strace = [
        "-o",
        "/dev/null",
        "-e",
        "trace=clone,clone3",
        "-e",
        "inject=clone,clone3:error=EAGAIN",
    ];
    // Its socket is there before its threads are.
    assert!(server.client().say("NOOP").starts_with("250"));
    let tracer = Tracer::of(&server, &strace);
    let replies = thread::scope(|scope| {
        let clients = [(); 8]
            .map(|()| scope.spawn(|| server.client().deliver(&["alice@x"], b"Subject: x\n\nx\n")));
        clients.map(|client| client.join().unwrap()).concat()
    });
    tracer.leave();
    assert!(
        replies.iter().all(|it| it.starts_with("250 2.0.0")),
        "{replies:?}"
    );
    assert!(!server.log().contains("panicked"), "{}", server.log());
    // One that does not even get these says so.
    let ours = program("postroom-lmtpd");
    let mut command = Command::new("strace");
    command.arg("-f").args(strace).arg(ours.get_program());
    command
        .arg("-c")
        .arg(store.path("postroom.toml"))
        .arg("--stdio");
    as_user(&mut command, MAIL, MAIL, &[]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(
        said.starts_with("postroom-lmtpd: ") && said.lines().count() == 1,
        "{said}"
    );
}

/// A client whose mailbox was in use for a moment has its answer, also where the kernel watches no more sockets.
#[test]
fn a_socket_that_cannot_be_watched() {
    if not_root() || !installed("strace") && skip("strace is not installed") {
        return;
    }
    let store = Store::with_inbox();
    let server = store.serve("", "");
    assert!(server.client().deliver(&["alice@x"], b"Subject: x\n\n")[0].starts_with("250 2.0.0"));
    let lock = store.path("home/alice/Maildir/dovecot-uidlist.lock");
    fs::write(&lock, format!("{}:elsewhere", std::process::id())).unwrap();
    own(&lock, MAIL, MAIL);
    let mut client = server.client();
    for line in ["MAIL FROM:<s@x>", "RCPT TO:<alice@x>", "DATA"] {
        assert!(client.say(line).starts_with(['2', '3']), "{line}");
    }
    client.send(b"Subject: x\r\n\r\n.\r\n");
    // Its work keeps a thread of its own by now, and it has gone back to the others.
    thread::sleep(Duration::from_millis(600));
    let inject = "inject=epoll_ctl:error=ENOSPC";
    let tracer = Tracer::of(
        &server,
        &["-o", "/dev/null", "-e", "trace=epoll_ctl", "-e", inject],
    );
    fs::remove_file(&lock).unwrap();
    let reply = client.try_reply();
    tracer.leave();
    assert!(
        reply.as_ref().is_ok_and(|it| it.starts_with("250 2.0.0")),
        "{reply:?}"
    );
}
