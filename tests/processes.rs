//! A server that was started by root: who its processes are, what each of them can open, and what happens when one of them dies,
//! hangs, or is told to read its configuration again.

#[path = "processes/hostile_front.rs"]
mod hostile_front;
#[path = "processes/kernels.rs"]
mod kernels;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::mount::Mount;
use support::peers::Postfix;
use support::{
    Lmtp, MAIL, PATIENCE, Scratch, Server, Store, as_user, children_of, installed, let_time_pass,
    messages, messages_below, not_root, program, replace_in, run_with_input, signal, skip,
    unfinished, wait_until, write_long_ago,
};

const LETTER: &[u8] = b"Subject: x\n\nhello\n";

/// Users of the machine, as only the server sees them: u0 has uid 20000 and so on, each in one of four groups.
struct Site {
    scratch: Scratch,
    users: u32,
}

const UID: u32 = 20_000;
const GROUP: u32 = 30_000;

impl Site {
    fn new(users: u32) -> Site {
        let scratch = Scratch::new();
        scratch.dir("run", 0, 0, 0o755);
        scratch.dir("home", 0, 0, 0o755);
        let mut passwd = String::from(
            "root:x:0:0::/root:/bin/sh\nmail:x:8:8::/var/mail:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/sh\n",
        );
        let mut members = vec![Vec::new(); 4];
        for number in 0..users {
            let (uid, home) = (UID + number, scratch.text(&format!("home/u{number}")));
            scratch.dir(&format!("home/u{number}"), uid, uid, 0o700);
            passwd += &format!("u{number}:x:{uid}:{uid}::{home}:/bin/sh\n");
            members[number as usize % 4].push(format!("u{number}"));
        }
        let mut group = String::from("root:x:0:\nmail:x:8:\nnogroup:x:65534:\n");
        for (number, members) in members.iter().enumerate() {
            group += &format!(
                "g{number}:x:{}:{}\n",
                GROUP + number as u32,
                members.join(",")
            );
        }
        fs::write(scratch.path("passwd"), passwd).unwrap();
        fs::write(scratch.path("group"), group).unwrap();
        // A public tree of one group, and a folder that u5 shares with his.
        scratch.dir("public", UID, GROUP, 0o2770);
        scratch.maildir("public/.info", UID, GROUP, 0o2770);
        scratch.file(
            "public/.info/dovecot-acl",
            UID,
            GROUP,
            0o660,
            "anyone lrwip\n",
        );
        scratch.dir("shared", 0, 0, 0o755);
        if users > 5 {
            scratch.dir("shared/u5", UID + 5, GROUP + 1, 0o2770);
            scratch.maildir("shared/u5/.Team", UID + 5, GROUP + 1, 0o2770);
            let acl = "shared/u5/.Team/dovecot-acl";
            scratch.file(acl, UID + 5, GROUP + 1, 0o660, "anyone lrwip\n");
        }
        Site { scratch, users }
    }

    fn configure(&self, more: &str) -> PathBuf {
        self.configure_with(more, "1000000")
    }

    fn configure_with(&self, more: &str, message_size: &str) -> PathBuf {
        let root = self.scratch.text("");
        let text = format!(
            r#"
hostname = "mx.example.test"
auth_username_format = "%{{user | username | lower}}"
mail_path = "~/Maildir"
[[userdb]]
passwd = {{}}
[namespace.own]
inbox = true
separator = "/"
[namespace.public]
type = "public"
prefix = "Public/"
separator = "/"
mail_path = "{root}/public"
[namespace.shared]
type = "shared"
prefix = "shared/$user/"
separator = "/"
mail_path = "{root}/shared/%{{owner_user}}"
[acl]
driver = "vfile"
[delivery]
detail = "mailbox"
spool_dir = "/var/tmp"
message_size = {message_size}
[lmtp]
listen = [{{ unix = "{root}/run/lmtp", mode = "0666" }}]
{more}
"#
        );
        let path = self.scratch.path("postroom.toml");
        fs::write(&path, text).unwrap();
        path
    }

    /// Root's server, in a name space where the site's users are those of the machine.
    fn serve(&self, more: &str) -> Server {
        self.configure(more);
        self.serve_under(&[])
    }

    /// With the configuration that is there, by these words before the program's name.
    fn serve_under(&self, words: &[&str]) -> Server {
        let log = self.scratch.path("run/log");
        let command = self.command(words, "postroom-lmtpd");
        Server::spawn(command, &self.scratch.path("run/lmtp"), &log)
    }

    /// Root's, in that name space.
    fn command(&self, words: &[&str], name: &str) -> Command {
        let ours = program(name);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg(
            "mount --bind $1 /etc/passwd && mount --bind $2 /etc/group && shift 2 && exec \"$@\"",
        );
        command.arg("sh");
        command.args([self.scratch.path("passwd"), self.scratch.path("group")]);
        command.args(words).arg(ours.get_program());
        command.arg("-c").arg(self.scratch.path("postroom.toml"));
        for (key, value) in ours.get_envs() {
            command.env(key, value.unwrap());
        }
        command
    }

    fn home(&self, number: u32) -> PathBuf {
        self.scratch.path(&format!("home/u{number}"))
    }
}

/// A process, as the kernel describes it.
struct Process {
    pid: u32,
    name: String,
    status: BTreeMap<String, String>,
}

impl Process {
    fn of(pid: u32) -> Option<Process> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let fields = status.lines().filter_map(|line| line.split_once(':'));
        let status: BTreeMap<String, String> = fields
            .map(|(key, value)| {
                (
                    key.to_owned(),
                    value.split_whitespace().collect::<Vec<_>>().join(" "),
                )
            })
            .collect();
        Some(Process {
            pid,
            name: status["Name"].clone(),
            status,
        })
    }

    fn uid(&self) -> u32 {
        self.status["Uid"]
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// The descriptors that it can have from its parent, but for the standard ones.
    fn came_along(&self) -> Vec<PathBuf> {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap();
        let open = open.filter_map(|it| fs::read_link(it.unwrap().path()).ok());
        let kinds = ["socket:", "anon_inode:[signalfd]"];
        open.filter(|it| {
            kinds
                .iter()
                .any(|kind| it.to_string_lossy().starts_with(kind))
        })
        .collect()
    }

    /// Whether somebody with exactly its identity can do this.
    fn can(&self, test: &str, path: &Path) -> bool {
        let mut command = Command::new("setpriv");
        let word = |key: &str| self.status[key].split(' ').next().unwrap().to_owned();
        command.arg(format!("--reuid={}", word("Uid")));
        command.arg(format!("--regid={}", word("Gid")));
        match self.status["Groups"].as_str() {
            "" => command.arg("--clear-groups"),
            groups => command.arg(format!("--groups={}", groups.replace(' ', ","))),
        };
        command.args(["--no-new-privs", "test", test]).arg(path);
        command.status().unwrap().success()
    }
}

/// The children of the monitor.
fn children(server: &Server) -> Vec<Process> {
    let pids = children_of(server.pid()).into_iter();
    pids.filter_map(Process::of).collect()
}

fn front(server: &Server) -> Process {
    let mut all = children(server).into_iter();
    all.find(|it| it.name == "postroom-front").unwrap()
}

fn worker(server: &Server, uid: u32) -> Option<Process> {
    let mut all = children(server).into_iter();
    all.find(|it| it.name == "postroom-worker" && it.uid() == uid)
}

fn facts(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

/// Sixteen clients at once; each address gets a letter, and its reply is looked at.
fn deliver_all(server: &Server, addresses: &[String], check: impl Fn(&str, &str) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut client = server.client();
                while let Some(address) = addresses.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let reply = client.deliver(&[address], LETTER).remove(0);
                    check(address, &reply);
                }
            });
        }
    });
}

#[test]
fn two_hundred_users_with_uids_of_their_own() {
    if not_root() {
        return;
    }
    let site = Site::new(200);
    let server = site.serve("[workers]\nmax = 32");
    let users = 0..site.users;
    let own = users.clone().map(|number| format!("u{number}@x"));
    let public = users
        .clone()
        .map(|number| format!("u{number}+Public/info@x"));
    let shared = users
        .clone()
        .map(|number| format!("u{number}+shared/u5/Team@x"));
    let all: Vec<String> = own.chain(public).chain(shared).collect();
    deliver_all(&server, &all, |address, reply| {
        let number: u32 = address[1..]
            .split(['+', '@'])
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let mailbox = match address.split_once('+') {
            Some((_, name)) if name.starts_with("Public") && number.is_multiple_of(4) => {
                "Public/info"
            }
            Some((_, name)) if name.starts_with("shared") && number % 4 == 1 => "shared/u5/Team",
            // The directory is closed to him: what a detail names and cannot be had is in INBOX.
            _ => "INBOX",
        };
        let want = format!("mailbox=\"{mailbox}\"");
        assert!(
            reply.starts_with("250 ") && reply.contains(&want),
            "{address}: {reply}"
        );
    });
    assert!(
        children(&server).len() <= 33,
        "workers: {}",
        children(&server).len() - 1
    );
    for number in 0..site.users {
        let own = messages(&site.home(number).join("Maildir"));
        let shared = usize::from(number % 4 < 2);
        assert_eq!(own.len(), 3 - shared, "u{number}");
        let uid = UID + number;
        for (path, _) in own {
            assert_eq!(facts(&path), (uid, uid, 0o600), "{}", path.display());
        }
        assert_eq!(facts(&site.home(number).join("Maildir")), (uid, uid, 0o700));
    }
    for (tree, group, first) in [
        ("public/.info", GROUP, 0),
        ("shared/u5/.Team", GROUP + 1, 1),
    ] {
        let stored = messages(&site.scratch.path(tree));
        let mut owners: Vec<u32> = stored.iter().map(|(path, _)| facts(path).0).collect();
        owners.sort_unstable();
        let members = (0..site.users)
            .filter(|it| it % 4 == first)
            .map(|it| UID + it);
        assert_eq!(owners, members.collect::<Vec<_>>(), "{tree}");
        for (path, _) in stored {
            let (_, gid, mode) = facts(&path);
            assert_eq!((gid, mode), (group, 0o660), "{}", path.display());
        }
    }
    assert_eq!(unfinished(&site.scratch.path("")), Vec::<PathBuf>::new());
}

/// Who each process is, to the kernel; and what somebody with this identity can open.
#[test]
fn nobody_can_open_what_is_not_his() {
    if not_root() {
        return;
    }
    let site = Site::new(8);
    let server = site.serve("");
    let sent = server.client().deliver(&["u1@x", "u2@x"], LETTER);
    assert!(sent.iter().all(|it| it.starts_with("250")), "{sent:?}");
    let letter = |number: u32| messages(&site.home(number).join("Maildir")).remove(0).0;
    let (front, one, two) = (
        front(&server),
        worker(&server, UID + 1).unwrap(),
        worker(&server, UID + 2).unwrap(),
    );
    for process in [&front, &one, &two] {
        for (key, want) in [
            ("CapEff", "0000000000000000"),
            ("CapPrm", "0000000000000000"),
            ("CapInh", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
            ("NoNewPrivs", "1"),
        ] {
            assert_eq!(process.status[key], want, "{} {key}", process.name);
        }
        for key in ["Uid", "Gid"] {
            let ids: Vec<&str> = process.status[key].split(' ').collect();
            assert!(ids.iter().all(|id| *id == ids[0] && *id != "0"), "{ids:?}");
        }
        assert!(!process.status["Groups"].split(' ').any(|gid| gid == "0"));
    }
    assert_eq!(front.uid(), 65534);
    let groups = format!("{} {}", UID + 1, GROUP + 1);
    assert_eq!(one.status["Groups"], groups);
    for (process, path, is_open) in [
        (&one, letter(1), true),
        (&one, letter(2), false),
        (&two, letter(2), true),
        (&two, letter(1), false),
        (&front, letter(1), false),
        (&front, letter(2), false),
        (&front, site.scratch.path("public/.info"), false),
    ] {
        let name = format!("{} {}: {}", process.name, process.uid(), path.display());
        assert_eq!(process.can("-r", &path), is_open, "{name}");
    }
    // No descriptor of another process came along: three standard ones, and the socket to the front.
    for worker in [&one, &two] {
        let open = worker.came_along();
        assert_eq!(open.len(), 1, "{open:?}");
    }
}

/// Neither a debugger of the same uid nor the image of a crash shows what another user has got.
#[test]
fn nobody_looks_into_a_process() {
    if not_root() {
        return;
    }
    let site = Site::new(4);
    let many = site.serve("");
    assert!(many.client().deliver(&["u1@x"], LETTER)[0].starts_with("250"));
    let store = Store::new();
    let one = store.serve("", "");
    let monitor = Process::of(many.pid()).unwrap();
    let one = Process::of(one.pid()).unwrap();
    // Waits for its message for ever.
    let mut lda = program("postroom-lda");
    lda.arg("-c").arg(store.path("postroom.toml"));
    lda.args(["-d", "alice"]);
    as_user(&mut lda, MAIL, MAIL, &[]);
    let mut lda = lda.stdin(Stdio::piped()).spawn().unwrap();
    let child = || Process::of(*children_of(lda.id()).first()?);
    wait_until("a child of the LDA", || child().is_some());
    let processes = [
        ("monitor", monitor),
        ("front", front(&many)),
        ("worker", worker(&many, UID + 1).unwrap()),
        ("server of one account", one),
        ("LDA", Process::of(lda.id()).unwrap()),
        ("child of the LDA", child().unwrap()),
    ];
    for (what, process) in processes {
        let proc = PathBuf::from(format!("/proc/{}", process.pid));
        assert_eq!(
            fs::metadata(proc.join("environ")).unwrap().uid(),
            0,
            "{what}"
        );
        if process.uid() != 0 {
            assert!(!process.can("-r", &proc.join("environ")), "{what}");
        }
        let limits = fs::read_to_string(proc.join("limits")).unwrap();
        let mut core = limits
            .lines()
            .filter(|line| line.starts_with("Max core file size"));
        let core: Vec<_> = core.next().unwrap().split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"], "{what}");
    }
    drop(lda.stdin.take());
    lda.wait().unwrap();
}

/// Where the roots of the configuration cannot be named to the kernel, the log says which; a root that comes later is found.
#[test]
fn a_store_that_is_not_there() {
    if not_root() {
        return;
    }
    let site = Site::new(4);
    let missing = format!("/postroom-{}/control", std::process::id());
    let more = format!(
        "[namespace.late]\nprefix = \"Late/\"\nseparator = \"/\"\nmail_path = \"{missing}\"\n"
    );
    let server = site.serve(&more);
    assert!(server.client().deliver(&["u1@x"], LETTER)[0].starts_with("250"));
    let log = server.log();
    let line = log.lines().find(|line| line.contains("without Landlock"));
    assert!(line.is_some_and(|line| line.contains(&missing)), "{log}");
}

/// Each file that a process names before it has become somebody else: none is in a home, where links and pipes may be, whatever its user
/// has made of it.
#[test]
fn root_looks_at_no_home() {
    if not_root() || !installed("strace") && skip("strace is not installed") {
        return;
    }
    let usual: Spoil = |site, _| {
        let uid = UID + 1;
        site.scratch.maildir("home/u1/Maildir", uid, uid, 0o700);
        site.scratch
            .file("home/u1/letter", uid, uid, 0o600, "Subject: x\n\n");
    };
    for (what, spoil) in [("usual", usual)].into_iter().chain(SPOILERS) {
        let is_usual = what == "usual";
        let site = Site::new(4);
        site.scratch
            .file("precious", UID + 2, UID + 2, 0o644, "precious\n");
        for number in [0, 2, 3] {
            let (uid, maildir) = (UID + number, format!("home/u{number}/Maildir"));
            site.scratch.maildir(&maildir, uid, uid, 0o700);
        }
        spoil(&site, &site.home(1));
        site.configure("");
        let letter = site.scratch.text("home/u1/letter");
        let runs: [(&str, &[&str]); 6] = [
            ("postroom-lda", &["-d", "u1"]),
            ("postroom", &["explain", "u1+Work@x"]),
            ("postroom-lmtpd", &["--stdio"]),
            ("postroom-lda", &["u1@x", "u2@x", "u3+Public/info@x"]),
            ("postroom", &["doctor", "--user", "u1"]),
            ("postroom-lda", &["-d", "u1", "-p", &letter]),
        ];
        let count = if is_usual { 6 } else { 3 };
        for (name, arguments) in &runs[..count] {
            let code = looks_at_no_home(&site, name, arguments, what);
            // An answer that may come again at worst.
            let is_answer = code == Some(0) || !is_usual && matches!(code, Some(1 | 75));
            assert!(is_answer, "{what}: {name} {arguments:?}: {code:?}");
        }
    }
}

/// Runs it by root, and answers its exit code.
fn looks_at_no_home(site: &Site, name: &str, arguments: &[&str], what: &str) -> Option<i32> {
    let home = site.scratch.text("home/u");
    let folder = site.scratch.dir("trace", 0, 0, 0o700);
    let of = folder.join("of");
    let strace = [
        "strace",
        "-ff",
        "-qq",
        "-e",
        "trace=%file,%process,setresuid",
        "-o",
        of.to_str().unwrap(),
    ];
    let mut command = site.command(&strace, name);
    command.args(arguments);
    let input: &[u8] = match name {
        "postroom-lmtpd" => b"LHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<u1+Work@x>\r\nDATA\r\nSubject: x\r\n\r\n.\r\nQUIT\r\n",
        _ => LETTER,
    };
    let output = run_with_input(&mut command, input);
    let case = format!("{what}: {name} {arguments:?}: {output:?}");
    let traces = fs::read_dir(&folder).unwrap().map(|trace| {
        let path = trace.unwrap().path();
        let pid = path.extension().unwrap().to_str().unwrap().to_owned();
        (pid, fs::read_to_string(path).unwrap())
    });
    let traces: BTreeMap<String, String> = traces.collect();
    let is_birth = |line: &&str| {
        ["clone", "fork", "vfork"]
            .iter()
            .any(|it| line.starts_with(it))
    };
    let born = |line: &str| line.rsplit("= ").next().unwrap().trim().to_owned();
    let children = traces
        .values()
        .flat_map(|text| text.lines().filter(is_birth).map(born));
    let children: Vec<String> = children.collect();
    let first = traces.keys().find(|pid| !children.contains(*pid)).unwrap();
    // Each process and thread, and whether it was somebody else from its birth on.
    let mut all = vec![(first.clone(), false)];
    let (mut at, mut as_user) = (0, 0);
    while let Some((pid, mut is_somebody)) = all.get(at).cloned() {
        at += 1;
        for line in traces[&pid].lines() {
            is_somebody |=
                line.starts_with("setresuid(2000") || line.starts_with("setresuid(65534");
            if is_birth(&line) && traces.contains_key(&born(line)) {
                all.push((born(line), is_somebody));
            }
            if line.contains(&home) && !line.starts_with("execve(") {
                assert!(is_somebody, "{case}: {pid}: {line}");
                as_user += 1;
            }
        }
    }
    assert_eq!(all.len(), traces.len(), "{case}");
    let least = if what == "usual" { 3 } else { 1 };
    assert!(as_user >= least, "{case}");
    fs::remove_dir_all(folder).unwrap();
    output.status.code()
}

/// Who only asks is answered by the next process, and nobody else notices.
#[test]
fn a_worker_that_hangs_and_dies() {
    if not_root() {
        return;
    }
    let site = Site::new(4);
    let server = site.serve("");
    assert!(server.client().deliver(&["u1@x"], LETTER)[0].starts_with("250"));
    let hanging = worker(&server, UID + 1).unwrap().pid;
    signal(hanging, "STOP");
    let mut waiting = server.client();
    waiting.say("MAIL FROM:<a@b>");
    waiting.send(b"RCPT TO:<u1@x>\r\n");
    let mut others = server.client();
    for _ in 0..3 {
        let replies = others.deliver(&["u2@x", "u3@x"], LETTER);
        assert!(
            replies.iter().all(|it| it.starts_with("250")),
            "{replies:?}"
        );
    }
    signal(hanging, "KILL");
    let reply = waiting.reply();
    assert!(reply.starts_with("250 2.1.5 "), "{reply}");
    assert!(server.client().deliver(&["u1@x"], LETTER)[0].starts_with("250"));
    assert_ne!(worker(&server, UID + 1).unwrap().pid, hanging);
    assert_eq!(messages(&site.home(1).join("Maildir")).len(), 2);
    assert!(
        server.log().contains("a worker process died"),
        "{}",
        server.log()
    );
}

/// In the middle of a delivery: answered, and what it had begun is swept up or whole.
#[test]
fn a_worker_that_dies_while_it_stores() {
    if not_root() {
        return;
    }
    let site = Site::new(4);
    let server = site.serve("");
    let (mut told, mut wait) = (0, Duration::ZERO);
    // The kills keep to the end of a delivery, before it and behind it.
    for _ in 0..20 {
        let mut client = server.client();
        let mail = client.say("MAIL FROM:<a@b>");
        assert!(mail.starts_with("250"), "{mail}");
        assert!(client.say("RCPT TO:<u1@x>").starts_with("250"));
        let pid = worker(&server, UID + 1).unwrap().pid;
        client.say("DATA");
        client.send(b"Subject: x\r\n\r\nhello\r\n.\r\n");
        thread::sleep(wait);
        let _ = Command::new("kill")
            .args(["-KILL", &pid.to_string()])
            .stderr(Stdio::null())
            .status();
        let reply = client.reply();
        let is_told = reply.starts_with("250");
        assert!(is_told || reply.starts_with("451 4.3.0"), "{reply}");
        told += usize::from(is_told);
        wait = match is_told {
            true => wait * 2 / 3,
            false => wait * 3 / 2 + Duration::from_micros(500),
        };
        wait_until("the worker is gone", || {
            Process::of(pid).is_none_or(|it| it.status["State"].starts_with('Z'))
        });
    }
    let maildir = site.home(1).join("Maildir");
    let stored = messages(&maildir);
    assert!(
        (told..=20).contains(&stored.len()),
        "{} of {told}",
        stored.len()
    );
    assert!(told > 0 && told < 20, "{told}");
    assert!(stored.iter().all(|(_, text)| text.ends_with(b"hello\n")));
    let_time_pass(&unfinished(&maildir));
    assert!(server.client().deliver(&["u1@x"], LETTER)[0].starts_with("250"));
    assert_eq!(messages(&maildir).len(), stored.len() + 1);
    assert_eq!(unfinished(&maildir), Vec::<PathBuf>::new());
}

#[test]
fn the_end_of_the_front_is_the_end_of_all() {
    if not_root() {
        return;
    }
    let site = Site::new(4);
    for (how, code) in [("KILL", 75), ("TERM", 0)] {
        let mut server = site.serve("");
        assert!(server.client().deliver(&["u1@x"], LETTER)[0].starts_with("250"));
        let all = children(&server);
        assert_eq!(all.len(), 2);
        match how {
            "KILL" => signal(front(&server).pid, how),
            _ => server.terminate(),
        }
        assert_eq!(server.wait(), Some(code), "{}", server.log());
        let left: Vec<u32> = all.iter().map(|it| it.pid).collect();
        assert!(
            left.iter().all(|pid| Process::of(*pid).is_none()),
            "{left:?}"
        );
    }
}

/// What it has kept for the next message goes with it.
#[test]
fn a_worker_that_ends_right_behind_its_last_message() {
    if not_root() {
        return;
    }
    let site = Site::new(1);
    let mut server = site.serve("");
    let tmp = site.home(0).join("Maildir/tmp");
    let mut client = server.client();
    wait_until("a lock file that is kept", || {
        let replies = client.deliver(&["u0@x"], b"Subject: x\r\n\r\nx\r\n");
        assert!(replies[0].starts_with("250 2.0.0"), "{replies:?}");
        fs::read_dir(&tmp).unwrap().next().is_some()
    });
    server.terminate();
    assert_eq!(server.wait(), Some(0));
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
}

#[test]
fn the_configuration_is_read_again() {
    if not_root() {
        return;
    }
    let site = Site::new(4);
    let server = site.serve("");
    let size = |client: &mut Lmtp| client.say("LHLO me");
    // Begun before, and ended behind the change.
    let mut old = server.client();
    assert_eq!(size(&mut old), "250 SIZE 1000000");
    old.say("MAIL FROM:<a@b>");
    assert!(old.say("RCPT TO:<u1@x>").starts_with("250"));
    let first = front(&server).pid;
    site.configure_with("", "2000000");
    signal(server.pid(), "HUP");
    wait_until("the new size", || {
        size(&mut server.client()) == "250 SIZE 2000000"
    });
    assert_eq!(old.say("DATA"), "354 OK");
    old.send(b"Subject: x\r\n\r\nhello\r\n.\r\n");
    let reply = old.reply();
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    wait_until("the old front is gone", || Process::of(first).is_none());
    // What is wrong is said, and changes nothing.
    let second = front(&server).pid;
    site.configure_with("", "\"large\"");
    signal(server.pid(), "HUP");
    wait_until("a word about it", || {
        server.log().contains("the old one stays")
    });
    assert_eq!(front(&server).pid, second);
    assert_eq!(size(&mut server.client()), "250 SIZE 2000000");
    // A socket that cannot be had is one of these mistakes too.
    let config = site.configure_with("", "3000000");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("/run/lmtp", "/nowhere/lmtp")).unwrap();
    signal(server.pid(), "HUP");
    wait_until("a word about it", || {
        server.log().matches("the old one stays").count() == 2
    });
    let reply = server.client().deliver(&["u1@x"], LETTER).remove(0);
    assert!(reply.starts_with("250"), "{reply}");
    // And where it moves, the old one is closed.
    fs::write(&config, text.replace("/run/lmtp", "/run/other")).unwrap();
    signal(server.pid(), "HUP");
    let other = site.scratch.path("run/other");
    wait_until("the new socket", || UnixStream::connect(&other).is_ok());
    assert_eq!(size(&mut Lmtp::connect(&other)), "250 SIZE 3000000");
    wait_until("the old socket is closed", || {
        UnixStream::connect(site.scratch.path("run/lmtp")).is_err()
    });
    wait_until("one front", || {
        children(&server)
            .iter()
            .filter(|it| it.name == "postroom-front")
            .count()
            == 1
    });
    assert_eq!(messages_below(&site.home(1)).len(), 2);
}

/// A client in the middle of a message to u1.
fn begun(server: &Server) -> Lmtp {
    let mut client = server.client();
    client.say("MAIL FROM:<a@b>");
    client.say("RCPT TO:<u1@x>");
    assert_eq!(client.say("DATA"), "354 OK");
    client
}

fn end(mut client: Lmtp) {
    client.send(b"Subject: x\r\n\r\nhello\r\n.\r\n");
    let reply = client.reply();
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
}

/// A socket that is wanted no more, by a new configuration or at the end, lets nobody wait who still comes.
#[test]
fn sockets_are_closed_before_the_last_message_ends() {
    if not_root() {
        return;
    }
    let site = Site::new(2);
    let mut server = site.serve("");
    let busy = begun(&server);
    let first = front(&server).pid;
    let config = site.scratch.path("postroom.toml");
    replace_in(&config, "/run/lmtp", "/run/other");
    signal(server.pid(), "HUP");
    let old = std::mem::replace(&mut server.socket, site.scratch.path("run/other"));
    wait_until("the old socket is closed", || {
        UnixStream::connect(&old).is_err()
    });
    assert!(Process::of(first).is_some(), "{}", server.log());
    end(busy);
    let busy = begun(&server);
    server.terminate();
    wait_until("the socket is closed", || {
        UnixStream::connect(&server.socket).is_err()
    });
    assert!(!server.has_ended(), "{}", server.log());
    end(busy);
    assert_eq!(server.wait(), Some(0));
}

/// What is found wrong late has changed nothing either: the next configuration finds the sockets as they were.
#[test]
fn a_configuration_that_is_of_no_use_changes_no_socket() {
    if not_root() {
        return;
    }
    let site = Site::new(2);
    let server = site.serve("");
    let socket = site.scratch.path("run/lmtp");
    for (number, (more, from, to)) in [
        (
            "[workers]\nfront_user = \"root\"",
            "/run/lmtp",
            "/run/other",
        ),
        (
            "",
            "mode = \"0666\" }",
            "mode = \"0600\" }, { unix = \"ROOT/run/other\" }, { unix = \"/nonexistent/lmtp\" }",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let to = to.replace("ROOT", &site.scratch.text(""));
        replace_in(&site.configure(more), from, &to);
        signal(server.pid(), "HUP");
        wait_until("a word about it", || {
            server.log().matches("the old one stays").count() == number + 1
        });
        assert!(server.client().say("LHLO me").contains("1000000"));
        assert_eq!(facts(&socket), (0, 0, 0o666));
        for made in ["other", "lmtp.new"] {
            let path = site.scratch.path("run").join(made);
            assert!(!path.exists(), "{made}");
        }
    }
    site.configure_with("", "2000000");
    signal(server.pid(), "HUP");
    wait_until("the new size", || {
        server.client().say("LHLO me").contains("2000000")
    });
}

/// Mode, owner, group and trust of a socket are as the last configuration has them.
#[test]
fn a_socket_that_is_to_be_another_one() {
    if not_root() {
        return;
    }
    let site = Site::new(2);
    let server = site.serve("");
    let socket = site.scratch.path("run/lmtp");
    // Whoever waits at a socket when another takes its place is sent away.
    let hears = |text: &str| {
        let heard = Lmtp::try_connect(&socket).and_then(|mut client| {
            client.try_send(b"LHLO me\r\nQUIT\r\n")?;
            Ok(client.rest())
        });
        heard.ok().filter(|heard| heard.contains(text))
    };
    // The front before may still hear somebody for a moment.
    let wait_to_hear = |text: &str| {
        let mut heard = None;
        wait_until(text, || {
            heard = hears(text);
            heard.is_some()
        });
        heard.unwrap()
    };
    for (number, (entry, want, is_trusted)) in [
        ("mode = \"0666\", trusted = true", (0, 0, 0o666), true),
        ("mode = \"0666\", trusted = false", (0, 0, 0o666), false),
        ("mode = \"0660\"", (0, 0, 0o660), true),
        (
            "mode = \"0660\", group = \"g1\"",
            (0, GROUP + 1, 0o660),
            true,
        ),
        ("mode = \"0600\", user = \"u1\"", (UID + 1, 0, 0o600), true),
        ("mode = \"0666\"", (0, 0, 0o666), false),
    ]
    .into_iter()
    .enumerate()
    {
        // Begun under the old one.
        let busy = begun(&server);
        let size = format!("SIZE {}", 2_000_000 + number);
        let config = site.configure_with("", &size[5..]);
        replace_in(&config, "mode = \"0666\"", entry);
        signal(server.pid(), "HUP");
        let heard = wait_to_hear(&size);
        assert_eq!(heard.contains("XFORWARD"), is_trusted, "{entry}: {heard}");
        assert_eq!(facts(&socket), want, "{entry}");
        let names = fs::read_dir(site.scratch.path("run")).unwrap();
        assert_eq!(names.count(), 2, "{entry}");
        end(busy);
    }
    // Where it cannot be had the rest holds, and nobody is believed whom the new mode would keep out.
    fs::create_dir(site.scratch.path("run/lmtp.new")).unwrap();
    let config = site.configure_with("", "3000000");
    replace_in(
        &config,
        "mode = \"0666\"",
        "mode = \"0600\", trusted = true",
    );
    signal(server.pid(), "HUP");
    let heard = wait_to_hear("SIZE 3000000");
    assert!(!heard.contains("XFORWARD"), "{heard}");
    assert_eq!(facts(&socket), (0, 0, 0o666));
    let log = server.log();
    assert!(log.contains("mode, user and group need a restart"), "{log}");
    assert!(!log.contains("the old one stays"), "{log}");
}

/// More users than processes: each has his mail, and no more processes than allowed ever live.
#[test]
fn a_thousand_users_and_a_few_processes() {
    if not_root() {
        return;
    }
    let site = Site::new(1000);
    let mut server = site.serve("[workers]\nmax = 12\nidle_timeout = \"1s\"");
    let all: Vec<String> = (0..site.users)
        .map(|number| format!("u{number}@x"))
        .collect();
    let most = AtomicUsize::new(0);
    deliver_all(&server, &all, |address, reply| {
        assert!(reply.starts_with("250 2.0.0"), "{address}: {reply}");
        most.fetch_max(children(&server).len(), Ordering::Relaxed);
    });
    // The front, and those that have ended and are not buried yet: some, where the machine is busy.
    assert!(
        (12..=20).contains(&most.load(Ordering::Relaxed)),
        "{most:?}"
    );
    for number in 0..site.users {
        assert_eq!(
            messages(&site.home(number).join("Maildir")).len(),
            1,
            "u{number}"
        );
    }
    wait_until("idle workers end", || children(&server).len() == 1);
    let memory = |pid: u32| -> u64 {
        let peak = Process::of(pid).unwrap().status["VmHWM"].clone();
        peak.split(' ').next().unwrap().parse().unwrap()
    };
    let (monitor, front) = (memory(server.pid()), memory(front(&server).pid));
    assert!(monitor < 40_000 && front < 80_000, "KiB: {monitor} {front}");
    server.terminate();
    assert_eq!(server.wait(), Some(0));
    // After so many deliveries another process takes over.
    let server = site.serve("[workers]\nmax_deliveries = 2");
    let mut pids: Vec<u32> = Vec::new();
    for _ in 0..6 {
        assert!(server.client().deliver(&["u1@x"], LETTER)[0].starts_with("250"));
        pids.extend(worker(&server, UID + 1).map(|it| it.pid));
    }
    pids.dedup();
    assert!(pids.len() >= 3, "{pids:?}");
}

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// What a user can do to his own home: u1, who has none but this.
type Spoil = fn(&Site, &Path);
const SPOILERS: [(&str, Spoil); 8] = [
    ("Maildir leads to another's", |site, home| {
        symlink(site.home(2).join("Maildir"), home.join("Maildir")).unwrap();
    }),
    ("Maildir leads to /etc", |_, home| {
        symlink("/etc", home.join("Maildir")).unwrap();
    }),
    ("new is a FIFO", |site, home| {
        site.scratch
            .maildir("home/u1/Maildir", UID + 1, UID + 1, 0o700);
        fs::remove_dir(home.join("Maildir/new")).unwrap();
        make_fifo(&home.join("Maildir/new"));
    }),
    ("Maildir is a FIFO", |_, home| {
        make_fifo(&home.join("Maildir"));
    }),
    ("the list of UIDs is another's file", |site, home| {
        site.scratch
            .maildir("home/u1/Maildir", UID + 1, UID + 1, 0o700);
        fs::hard_link(
            site.scratch.path("precious"),
            home.join("Maildir/dovecot-uidlist"),
        )
        .unwrap();
    }),
    ("no way in", |site, _| {
        site.scratch.dir("home/u1/Maildir", UID + 1, UID + 1, 0o600);
    }),
    ("Maildir is somebody else's", |site, _| {
        site.scratch
            .maildir("home/u1/Maildir", UID + 3, UID + 3, 0o700);
    }),
    ("the home is not there", |_, home| {
        fs::remove_dir(home).unwrap()
    }),
];

/// The right answer, no other file touched, nobody else delayed.
#[test]
fn hostile_homes() {
    if not_root() {
        return;
    }
    // With the kernel's help, and where it has none to give.
    let rows = SPOILERS
        .into_iter()
        .flat_map(|it| [(it, ""), (it, "[workers]\nlandlock = false")]);
    for ((case, spoil), workers) in rows {
        let site = Site::new(4);
        site.scratch
            .file("precious", UID + 2, UID + 2, 0o644, "precious\n");
        let server = site.serve(workers);
        assert!(
            server.client().deliver(&["u2@x"], LETTER)[0].starts_with("250"),
            "{case}"
        );
        let before = support::tree(&site.home(2));
        spoil(&site, &site.home(1));
        let began = Instant::now();
        let replies = server.client().deliver(&["u1@x", "u3@x"], LETTER);
        assert!(replies[1].starts_with("250"), "{case}: {replies:?}");
        assert!(
            began.elapsed() < PATIENCE / 3,
            "{case}: {:?}",
            began.elapsed()
        );
        match case {
            // It is only not written to.
            "the list of UIDs is another's file" => {
                assert!(replies[0].starts_with("250"), "{case}: {replies:?}")
            }
            _ => assert!(replies[0].starts_with("451"), "{case}: {replies:?}"),
        }
        assert_eq!(support::tree(&site.home(2)), before, "{case}");
        assert_eq!(
            fs::read_to_string(site.scratch.path("precious")).unwrap(),
            "precious\n"
        );
        assert!(!Path::new("/etc/new").exists() && !Path::new("/etc/tmp").exists());
    }
}

/// Identities that have no mail, whatever the userdb says.
#[test]
fn nobody_becomes_root() {
    if not_root() {
        return;
    }
    for (line, extra) in [
        ("0:20001", ""),
        ("20001:0", ""),
        ("100:20001", ""),
        ("20001:20001", "userdb_mail_access_groups=root"),
    ] {
        let site = Site::new(4);
        let home = site.scratch.text("home/u1");
        let users = site.scratch.path("users");
        write_long_ago(
            &users,
            &format!("u1::{line}::{home}::{extra}\nu2::20002:20002::{home}2::\n"),
        );
        let config = site.configure("");
        let userdb = format!("passwd-file = {{ path = \"{}\" }}", users.display());
        replace_in(&config, "passwd = {}", &userdb);
        let (socket, log) = (site.scratch.path("run/lmtp"), site.scratch.path("run/log"));
        let server = Server::start_as_root(&config, &socket, &log);
        let reply = server.client().deliver(&["u1@x"], LETTER).remove(0);
        match extra {
            // A group of root's is only left out.
            "" => assert!(reply.starts_with("451 4.3.0"), "{line}: {reply}"),
            _ => {
                assert!(reply.starts_with("250"), "{line}: {reply}");
                assert_eq!(worker(&server, 20_001).unwrap().status["Groups"], "");
            }
        }
    }
}

/// A list of users that only root may read: he asks, and goes on as the user. The server cannot, and `check` says so.
#[test]
fn what_only_root_may_read() {
    if not_root() {
        return;
    }
    let site = Site::new(4);
    let home = site.scratch.text("home/u1");
    let users = site.scratch.path("users");
    write_long_ago(&users, &format!("u1::20001:20001::{home}::\n"));
    fs::set_permissions(&users, fs::Permissions::from_mode(0o600)).unwrap();
    let config = site.configure("");
    let userdb = format!("passwd-file = {{ path = \"{}\" }}", users.display());
    replace_in(&config, "passwd = {}", &userdb);
    let run = |name: &str, arguments: &[&str], input: &[u8]| {
        let mut command = program(name);
        command.arg("-c").arg(&config).args(arguments);
        let output = support::run_with_input(&mut command, input);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = said + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), said)
    };
    let (code, said) = run("postroom", &["explain", "--user", "u1"], b"");
    assert!(code == 0 && said.contains("uid=20001"), "{said}");
    let (code, said) = run("postroom-lda", &["-d", "u1"], LETTER);
    assert_eq!(code, 0, "{said}");
    let stored = messages(&site.home(1).join("Maildir"));
    assert_eq!(facts(&stored[0].0), (20_001, 20_001, 0o600));
    let (code, said) = run("postroom", &["check"], b"");
    assert_eq!(code, 0, "{said}");
    let warned = "a server that root starts asks as \"nobody\": userdb passwd-file";
    assert!(said.contains(warned), "{said}");
    fs::set_permissions(&users, fs::Permissions::from_mode(0o644)).unwrap();
    let (_, said) = run("postroom", &["check"], b"");
    assert!(!said.contains("as \"nobody\""), "{said}");
}

/// A worker is restricted to directories as they are; what is mounted over them later is for the next one.
#[test]
fn a_store_that_is_mounted_later() {
    if not_root() {
        return;
    }
    let site = Site::new(4);
    let users = site.scratch.path("users");
    let home = site.scratch.text("home/u0");
    let group = format!("userdb_mail_access_groups={GROUP}");
    write_long_ago(&users, &format!("u0::20000:20000::{home}::{group}\n"));
    let config = site.configure("");
    let userdb = format!("passwd-file = {{ path = \"{}\" }}", users.display());
    replace_in(&config, "passwd = {}", &userdb);
    let log = site.scratch.path("run/log");
    let server = Server::start_as_root(&config, &site.scratch.path("run/lmtp"), &log);
    let deliver = || {
        server
            .client()
            .deliver(&["u0+Public/info@x"], LETTER)
            .remove(0)
    };
    let public = site.scratch.path("public");
    let stored = || messages(&public.join(".info")).len();
    assert!(
        deliver().contains("mailbox=\"Public/info\""),
        "{}",
        server.log()
    );
    assert_eq!(stored(), 1);
    let first = worker(&server, UID).unwrap().pid;
    let Some(mount) = Mount::new(public.clone(), &["-t", "tmpfs", "tmpfs"]) else {
        return;
    };
    site.scratch.dir("public", UID, GROUP, 0o2770);
    site.scratch.maildir("public/.info", UID, GROUP, 0o2770);
    let acl = "public/.info/dovecot-acl";
    site.scratch.file(acl, UID, GROUP, 0o660, "anyone lrwip\n");
    let reply = deliver();
    assert!(
        reply.contains("mailbox=\"Public/info\""),
        "{reply} {}",
        server.log()
    );
    assert_eq!(stored(), 1);
    let second = worker(&server, UID).unwrap().pid;
    if server.log().contains("level=\"full\"") {
        assert_ne!(first, second);
    }
    drop(mount);
    assert!(
        deliver().contains("mailbox=\"Public/info\""),
        "{}",
        server.log()
    );
    assert_eq!(stored(), 2);
}

/// A message for more users than there may be processes: those that have answered make room.
#[test]
fn one_message_for_many() {
    if not_root() {
        return;
    }
    let site = Site::new(60);
    let server = site.serve("[workers]\nmax = 5");
    let all: Vec<String> = (0..site.users)
        .map(|number| format!("u{number}@x"))
        .collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let large = [LETTER, &b"line\n".repeat(100_000)].concat();
    for message in [LETTER, &large] {
        let replies = server.client().deliver(&all, message);
        assert!(
            replies.iter().all(|it| it.starts_with("250 2.0.0")),
            "{replies:?}"
        );
    }
    for number in 0..site.users {
        let stored = messages(&site.home(number).join("Maildir"));
        let bodies = stored.iter().filter(|(_, text)| text.ends_with(&large));
        assert_eq!((stored.len(), bodies.count()), (2, 1), "u{number}");
    }
    assert!(children(&server).len() <= 8, "{}", children(&server).len());
}

/// Clients that go away in the middle of everything cost their own messages and nothing else.
#[test]
fn clients_that_go_away() {
    if not_root() {
        return;
    }
    let site = Site::new(30);
    let server = site.serve("[workers]\nmax = 4");
    thread::scope(|scope| {
        for thread in 0..8 {
            let server = &server;
            scope.spawn(move || {
                for round in 0..40u32 {
                    let mut client = server.client();
                    let user = (thread * 7 + round) % 30;
                    let end = if round % 2 == 0 { ".\r\n" } else { "" };
                    let said = format!(
                        "MAIL FROM:<a@b>\r\nRCPT TO:<u{user}@x>\r\nDATA\r\nSubject: x\r\n\r\nhello\r\n{end}"
                    );
                    client.send(said.as_bytes());
                    thread::sleep(Duration::from_micros(u64::from(round) * 150));
                }
            });
        }
    });
    let all: Vec<String> = (0..site.users)
        .map(|number| format!("u{number}@x"))
        .collect();
    deliver_all(&server, &all, |address, reply| {
        assert!(reply.starts_with("250 2.0.0"), "{address}: {reply}");
    });
    wait_until("no more processes than allowed", || {
        children(&server).len() <= 5
    });
    for number in 0..site.users {
        let stored = messages(&site.home(number).join("Maildir"));
        assert!(
            stored.iter().all(|(_, text)| text.ends_with(b"hello\n")),
            "u{number}"
        );
        assert!(!stored.is_empty(), "u{number}");
    }
    assert_eq!(unfinished(&site.scratch.path("")), Vec::<PathBuf>::new());
}

/// A home that takes no more: its user's mail waits, nobody else's does, and what is large for one is not for the other.
#[test]
fn homes_that_are_full() {
    if not_root() {
        return;
    }
    let site = Site::new(4);
    let (quota, disk) = (site.home(1), site.home(2));
    let image = site.scratch.path("image");
    let Some(_quota) = Mount::with_quota(&image, quota, UID + 1) else {
        return;
    };
    let Some(_disk) = Mount::small(disk, 1024, 512, UID + 2) else {
        return;
    };
    site.configure_with("", "100000000");
    let server = site.serve_under(&["prlimit", "--fsize=6000000"]);
    let large = |megabytes: usize| [LETTER, &b"0123456\n".repeat(megabytes << 17)].concat();
    for (user, megabytes, want) in [
        ("u1", 3, "452 4.2.2"),
        ("u2", 3, "452 4.3.1"),
        ("u3", 3, "250"),
        ("u3", 5, "250"),
        ("u1", 0, "250"),
        ("u2", 0, "250"),
    ] {
        let address = format!("{user}@x");
        let reply = server.client().deliver(&[&address], &large(megabytes));
        assert!(reply[0].starts_with(want), "{user} {megabytes}: {reply:?}");
    }
    // No file of the server's may be larger than that, in the spool or in the mailbox.
    let reply = server.client().deliver(&["u3@x"], &large(7)).remove(0);
    assert!(reply.starts_with("452 4.2.2"), "{reply}");
    assert_eq!(
        unfinished(&site.scratch.path("home")),
        Vec::<PathBuf>::new()
    );
    for (number, count) in [(1, 1), (2, 1), (3, 2)] {
        assert_eq!(
            messages(&site.home(number).join("Maildir")).len(),
            count,
            "u{number}"
        );
    }
}

/// One uid for all: the front, and one process that delivers.
#[test]
fn one_uid_for_all_users() {
    if not_root() {
        return;
    }
    let site = Site::new(4);
    let users: String = (0..4)
        .map(|number| {
            format!(
                "u{number}::20001:20001::{}::\n",
                site.home(number).display()
            )
        })
        .collect();
    for number in 0..4 {
        support::own(&site.home(number), UID + 1, UID + 1);
    }
    write_long_ago(&site.scratch.path("users"), &users);
    let config = site.configure("");
    let path = site.scratch.text("users");
    let userdb = format!("passwd-file = {{ path = \"{path}\" }}");
    replace_in(&config, "passwd = {}", &userdb);
    let log = site.scratch.path("run/log");
    let server = Server::start_as_root(&config, &site.scratch.path("run/lmtp"), &log);
    let all = ["u0@x", "u1@x", "u2@x", "u3@x"];
    let replies = server.client().deliver(&all, LETTER);
    assert!(
        replies.iter().all(|it| it.starts_with("250")),
        "{replies:?}"
    );
    assert_eq!(children(&server).len(), 2);
    // Neither of them is root, or can be.
    assert!(children(&server).iter().all(|it| it.uid() != 0));
}

/// Postfix over LMTP, and its pipe, which runs the LDA as an account that owns nobody's mail: the server stores both.
#[test]
fn behind_postfix() {
    if not_root() {
        return;
    }
    let site = Site::new(8);
    // The LDA runs where the site's users are not those of the machine.
    let more = format!(
        r#"
[[userdb]]
passwd-file = {{ path = "{}" }}
[lda]
listen = [{{ unix = "{}", mode = "0666" }}]
trusted_uids = ["mail"]
"#,
        site.scratch.text("passwd"),
        site.scratch.text("run/lda")
    );
    let server = site.serve(&more);
    let lda = program("postroom-lda");
    let lda = format!(
        "/usr/bin/env POSTROOM_CONFIG={} {} -f ${{sender}} -d ${{user}}",
        site.scratch.text("postroom.toml"),
        lda.get_program().to_str().unwrap()
    );
    let Some(postfix) = Postfix::start(&site.scratch, &server.socket, &lda) else {
        return;
    };
    let users = [
        "u1@example.test",
        "u4+Public/info@example.test",
        "nobody-here@example.test",
    ];
    postfix.send(&users, LETTER);
    postfix.send(
        &["u2@lda.test", "u3@lda.test", "nobody-here@lda.test"],
        LETTER,
    );
    for (address, what) in [
        ("u1@example.test", "status=sent (250 2.0.0 "),
        ("u4+Public/info@example.test", "mailbox=\"Public/info\""),
        ("nobody-here@example.test", "dsn=5.1.1, status=bounced"),
        ("u2@lda.test", "dsn=2.0.0, status=sent"),
        ("u3@lda.test", "dsn=2.0.0, status=sent"),
        ("nobody-here@lda.test", "dsn=5.1.1, status=bounced"),
    ] {
        postfix.wait_for(|log| {
            let to = format!("to=<{address}>");
            log.lines()
                .any(|line| line.contains(&to) && line.contains(what))
        });
    }
    for number in 1..=3 {
        let stored = messages(&site.home(number).join("Maildir"));
        assert_eq!(stored.len(), 1, "u{number}: {}", server.log());
        assert_eq!(facts(&stored[0].0), (UID + number, UID + number, 0o600));
    }
    let public = messages(&site.scratch.path("public/.info"));
    assert_eq!(facts(&public[0].0), (UID + 4, GROUP, 0o660));
}
