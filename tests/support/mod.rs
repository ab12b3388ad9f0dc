//! What the tests stand on: a scratch folder, our server in it, a client that speaks raw bytes, and a picture of a tree.
#![allow(dead_code)]

pub mod agent;
pub mod imap;
pub mod machine;
pub mod meddle;
pub mod mount;
pub mod peers;
pub mod places;
pub mod random;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// The user and group that mail is delivered as: Debian's `mail`.
pub const MAIL: u32 = 8;
/// How long a server may take to come up or go down.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Skips a test, with the reason on stderr, of which libtest shows nothing where a test passes, and in the file `POSTROOM_SKIPPED`. Under
/// CI nothing may be skipped: there it fails.
pub fn skip(why: &str) -> bool {
    assert!(
        std::env::var_os("CI").is_none(),
        "under CI nothing is skipped: {why}"
    );
    eprintln!("SKIPPED: {why}");
    if let Some(list) = std::env::var_os("POSTROOM_SKIPPED") {
        let file = fs::File::options().append(true).create(true).open(list);
        let (program, thread) = (env!("CARGO_CRATE_NAME"), thread::current());
        let test = thread.name().unwrap_or_default();
        let line = format!("SKIPPED: {program}::{test}: {why}\n");
        file.unwrap().write_all(line.as_bytes()).unwrap();
    }
    true
}

/// `text` with `to` for each `from`. One must be there: else the test would be of the usual settings, and pass.
#[track_caller]
pub fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no {from:?} in {text}");
    text.replace(from, to)
}

/// [`replaced`], in a file.
#[track_caller]
pub fn replace_in(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    fs::write(file, replaced(&text, from, to)).unwrap();
}

/// Whether the test must be skipped because it is not run by root.
pub fn not_root() -> bool {
    !is_root() && skip("this test makes files of several users: run it as root")
}

pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

pub fn installed(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .any(|dir| Path::new(dir).join(program).exists())
}

/// A folder of the test's own, readable by all, gone at its end.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Scratch {
        let folder = tempfile::Builder::new()
            .prefix("postroom-")
            .tempdir()
            .unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Scratch(folder)
    }

    pub fn path(&self, below: &str) -> PathBuf {
        if below.is_empty() {
            self.0.path().to_owned()
        } else {
            self.0.path().join(below)
        }
    }

    pub fn text(&self, below: &str) -> String {
        self.path(below).to_str().unwrap().to_owned()
    }

    /// A directory with owner, group and mode.
    pub fn dir(&self, below: &str, owner: u32, group: u32, mode: u32) -> PathBuf {
        let path = self.path(below);
        fs::create_dir_all(&path).unwrap();
        own(&path, owner, group);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// A Maildir with all its parts alike.
    pub fn maildir(&self, below: &str, owner: u32, group: u32, mode: u32) -> PathBuf {
        let path = self.dir(below, owner, group, mode);
        for part in ["cur", "new", "tmp"] {
            self.dir(&format!("{below}/{part}"), owner, group, mode);
        }
        path
    }

    pub fn file(&self, below: &str, owner: u32, group: u32, mode: u32, text: &str) -> PathBuf {
        let path = self.path(below);
        write_long_ago(&path, text);
        own(&path, owner, group);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

/// As a file that nobody is writing any more.
pub fn write_long_ago(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(60);
    file.set_modified(long_ago).unwrap();
}

pub fn own(path: &Path, owner: u32, group: u32) {
    if is_root() {
        chown(path, Some(owner), Some(group)).unwrap();
    }
}

/// The usual mail root: alice, bob and carol, a public mailbox of group 100 (users), a folder of bob's for alice.
pub struct Store {
    pub scratch: Scratch,
}

impl Store {
    pub fn new() -> Store {
        let scratch = Scratch::new();
        scratch.dir("home", MAIL, MAIL, 0o755);
        scratch.dir("run", MAIL, MAIL, 0o755);
        for user in ["alice", "bob", "carol"] {
            scratch.dir(&format!("home/{user}"), MAIL, MAIL, 0o700);
        }
        scratch.dir("public", MAIL, 100, 0o2770);
        scratch.maildir("public/.info", MAIL, 100, 0o2770);
        scratch.file(
            "public/.info/dovecot-acl",
            MAIL,
            100,
            0o660,
            "anyone lrwip\n",
        );
        scratch.maildir("home/bob/Maildir", MAIL, MAIL, 0o700);
        scratch.maildir("home/bob/Maildir/.Projects", MAIL, MAIL, 0o770);
        scratch.file(
            "home/bob/Maildir/.Projects/dovecot-acl",
            MAIL,
            MAIL,
            0o660,
            "user=alice lrwip\n",
        );
        Store { scratch }
    }

    /// The same, and alice has an INBOX without messages.
    pub fn with_inbox() -> Store {
        let store = Store::new();
        let inbox = "home/alice/Maildir";
        store.scratch.maildir(inbox, MAIL, MAIL, 0o700);
        store
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.scratch.path(below)
    }

    /// The config for this store; `delivery` and `more` are put in.
    pub fn config(&self, delivery: &str, more: &str) -> String {
        let root = self.scratch.text("");
        format!(
            r#"hostname = "mx.example.test"
auth_username_format = "%{{user | username | lower}}"
first_valid_uid = 1
[[userdb]]
passwd-file = {{ path = "{root}/users" }}
[namespace.inbox]
separator = "/"
inbox = true
[namespace.inbox.mailbox.Spam]
auto = "create"
special_use = "\\Junk"
[namespace.inbox.mailbox.Sent]
special_use = "\\Sent"
[namespace.public]
type = "public"
separator = "/"
prefix = "Public/"
mail_path = "{root}/public"
mail_index_private_path = "~/Maildir/public"
subscriptions = false
list = "children"
[namespace.shared]
type = "shared"
separator = "/"
prefix = "shared/$user/"
mail_path = "%{{owner_home}}/Maildir"
mail_index_private_path = "~/Maildir/shared/%{{owner_user}}"
subscriptions = false
list = "children"
[acl]
driver = "vfile"
[lmtp]
listen = [{{ unix = "{root}/run/lmtp", mode = "0666" }}]
[delivery]
detail = "mailbox"
spool_dir = "{root}/run"
{delivery}
{more}
"#
        )
    }

    /// Writes the config and the users; answers the config's path.
    pub fn configure(&self, delivery: &str, more: &str) -> PathBuf {
        let root = self.scratch.text("");
        let users = ["alice", "bob", "carol"]
            .map(|user| format!("{user}::{MAIL}:{MAIL}::{root}/home/{user}::\n"));
        write_long_ago(&self.path("users"), &users.concat());
        fs::write(self.path("postroom.toml"), self.config(delivery, more)).unwrap();
        self.path("postroom.toml")
    }

    /// [`Store::configure`], with alice's folders nested and `D` inside each; with `INBOX` and these she has mailboxes there.
    pub fn with_directory_names(&self, below: &[&str], more: &str) -> PathBuf {
        for name in ["INBOX"].iter().chain(below) {
            let path = Path::new("home/alice/Maildir").join(name);
            for above in path.ancestors().filter(|it| it.starts_with("home/alice/")) {
                self.scratch.dir(above.to_str().unwrap(), MAIL, MAIL, 0o700);
            }
            let path = path.join("D");
            self.scratch
                .maildir(path.to_str().unwrap(), MAIL, MAIL, 0o700);
        }
        let config = self.configure("", more);
        let layout = "mailbox_list_layout = \"fs\"\nmailbox_directory_name = \"D\"\nmail_inbox_path = \"INBOX/D\"";
        let section = "[namespace.inbox]";
        replace_in(&config, section, &format!("{section}\n{layout}"));
        config
    }

    /// What the userdb says of a user beside, once there is a config.
    pub fn set_fields(&self, user: &str, fields: &str) {
        let users = fs::read_to_string(self.path("users")).unwrap();
        let home = format!("{}::", self.scratch.text(&format!("home/{user}")));
        let users = replaced(&users, &home, &format!("{home}{fields}"));
        write_long_ago(&self.path("users"), &users);
    }

    /// Large messages wait in this folder of the store.
    pub fn move_spool(&self, config: &Path, folder: &str) {
        let spool = |folder| format!("spool_dir = \"{}\"", self.scratch.text(folder));
        replace_in(config, &spool("run"), &spool(folder));
    }

    /// Our server on this store.
    pub fn serve(&self, delivery: &str, more: &str) -> Server {
        let config = self.configure(delivery, more);
        Server::start(
            &config,
            &self.path("run/lmtp"),
            &self.path("run/postroom.log"),
        )
    }
}

/// A program of ours, as the mail user where the test is root.
pub fn program(name: &str) -> Command {
    let path = match name {
        "postroom" => env!("CARGO_BIN_EXE_postroom"),
        "postroom-lda" => env!("CARGO_BIN_EXE_postroom-lda"),
        "postroom-lmtpd" => env!("CARGO_BIN_EXE_postroom-lmtpd"),
        _ => unreachable!(),
    };
    let mut command = Command::new(for_everybody(Path::new(path)));
    command
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("TZ", "UTC")
        .env("RUST_BACKTRACE", "1");
    command
}

/// The program where every user can run it: the build may lie where only root can go.
fn for_everybody(path: &Path) -> PathBuf {
    let is_open = |folder: &Path| fs::metadata(folder).is_ok_and(|meta| meta.mode() & 0o001 != 0);
    if path.ancestors().skip(1).all(is_open) {
        return path.to_owned();
    }
    let name = path.file_name().unwrap();
    let folder = std::env::temp_dir().join("postroom-tests");
    fs::create_dir_all(&folder).unwrap();
    let copy = folder.join(name);
    let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    if modified(&copy) != modified(path) {
        let fresh = folder.join(format!(
            "{}.{:?}",
            std::process::id(),
            thread::current().id()
        ));
        // By another process: a file that this one has open for writing cannot be run while another thread forks.
        let copied = Command::new("cp").arg("-p").arg(path).arg(&fresh).status();
        assert!(copied.unwrap().success());
        fs::rename(&fresh, &copy).unwrap();
    }
    copy
}

/// Lets a command run with these ids, where the test is root.
pub fn as_user(command: &mut Command, uid: u32, gid: u32, groups: &[u32]) {
    if !is_root() {
        return;
    }
    // setpriv: the standard library drops no supplementary groups on stable Rust.
    let mut set = Command::new("setpriv");
    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
    let groups = match groups.is_empty() {
        true => "--clear-groups".to_owned(),
        false => format!("--groups={}", groups.join(",")),
    };
    set.arg(format!("--reuid={uid}"))
        .arg(format!("--regid={gid}"))
        .arg(groups);
    set.arg(command.get_program()).args(command.get_args());
    set.current_dir("/").env_clear();
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            set.env(key, value);
        }
    }
    *command = set;
}

/// Runs a command with this on its standard input.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    // A program that refuses does not read everything.
    let _ = writer.join().unwrap();
    output
}

/// A running postroom-lmtpd, ended by its pid.
pub struct Server {
    child: Child,
    pub socket: PathBuf,
    pub log: PathBuf,
}

impl Server {
    pub fn start(config: &Path, socket: &Path, log: &Path) -> Server {
        Server::start_as(config, socket, log, &[])
    }

    pub fn start_as(config: &Path, socket: &Path, log: &Path, groups: &[u32]) -> Server {
        let mut command = program("postroom-lmtpd");
        command.arg("-c").arg(config);
        as_user(&mut command, MAIL, MAIL, groups);
        Server::spawn(command, socket, log)
    }

    /// Started by root, as an init system would.
    pub fn start_as_root(config: &Path, socket: &Path, log: &Path) -> Server {
        let mut command = program("postroom-lmtpd");
        command.arg("-c").arg(config);
        Server::spawn(command, socket, log)
    }

    /// A command that becomes the server.
    pub fn spawn(mut command: Command, socket: &Path, log: &Path) -> Server {
        let file = fs::File::create(log).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        let child = command.spawn().unwrap();
        let mut server = Server {
            child,
            socket: socket.to_owned(),
            log: log.to_owned(),
        };
        let began = Instant::now();
        while UnixStream::connect(socket).is_err() {
            let ended = server.child.try_wait().unwrap();
            assert!(
                ended.is_none() && began.elapsed() < PATIENCE,
                "no server: {}",
                server.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
        server
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn client(&self) -> Lmtp {
        Lmtp::connect(&self.socket)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that the process ever had, in KiB.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn terminate(&self) {
        signal(self.child.id(), "TERM");
    }

    /// Waits for the end; answers the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let began = Instant::now();
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status.code(),
                None if began.elapsed() > PATIENCE => {
                    panic!("the server does not end: {}", self.log())
                }
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The children of a process, as far as its first thread has made them; none where it is gone.
pub fn children_of(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    text.split_whitespace()
        .map(|it| it.parse().unwrap())
        .collect()
}

/// The threads of a process.
pub fn threads_of(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = threads.map(|it| it.unwrap().file_name().into_string().unwrap());
    names.map(|it| it.parse().unwrap()).collect()
}

pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "not yet: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status()
        .unwrap();
    assert!(sent.success());
}

/// A client that says what it is told to say.
pub struct Lmtp {
    lines: BufReader<UnixStream>,
}

impl Lmtp {
    /// Connects and takes the greeting.
    pub fn connect(socket: &Path) -> Lmtp {
        Lmtp::try_connect(socket).unwrap()
    }

    pub fn try_connect(socket: &Path) -> io::Result<Lmtp> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut client = Lmtp {
            lines: BufReader::new(stream),
        };
        let greeting = client.try_reply()?;
        assert!(greeting.starts_with("220 "), "{greeting}");
        Ok(client)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.lines.get_mut().write_all(bytes).unwrap();
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.lines.get_mut().write_all(bytes)
    }

    /// The last line of one reply, without its line end.
    pub fn reply(&mut self) -> String {
        self.try_reply().unwrap()
    }

    pub fn try_reply(&mut self) -> io::Result<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            assert!(line.ends_with("\r\n"), "{line:?}");
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line.trim_end().to_owned());
            }
        }
    }

    pub fn say(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n").as_bytes());
        self.reply()
    }

    /// A whole transaction for one sender: the reply of each recipient, refused ones by their RCPT reply.
    pub fn deliver(&mut self, recipients: &[&str], message: &[u8]) -> Vec<String> {
        let mail = self.say("MAIL FROM:<sender@else.test>");
        assert!(mail.starts_with("250 "), "{mail}");
        let mut replies: Vec<String> = recipients
            .iter()
            .map(|it| self.say(&format!("RCPT TO:<{it}>")))
            .collect();
        if replies.iter().any(|reply| reply.starts_with('2')) {
            assert_eq!(self.say("DATA"), "354 OK");
            self.send(&stuffed(message));
            for reply in replies.iter_mut().filter(|reply| reply.starts_with('2')) {
                *reply = self.reply();
            }
        } else {
            self.say("RSET");
        }
        replies
    }

    pub fn stream(&mut self) -> &mut UnixStream {
        self.lines.get_mut()
    }

    /// Everything until the server closes.
    pub fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = self.lines.read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// `uid=17` of a reply.
pub fn uid_of(reply: &str) -> Option<u32> {
    let rest = reply.split("uid=").nth(1)?;
    rest.split(' ').next()?.parse().ok()
}

/// The subject of a message.
pub fn subject(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().find_map(|line| line.strip_prefix("Subject: "));
    line.unwrap_or_default().to_owned()
}

/// A message as DATA sends it: CRLF, dots doubled, the final dot.
pub fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 64);
    let mut line_start = true;
    let mut last = 0;
    for &byte in message {
        if byte == b'\n' && last != b'\r' {
            out.push(b'\r');
        }
        if line_start && byte == b'.' {
            out.push(b'.');
        }
        line_start = byte == b'\n';
        out.push(byte);
        last = byte;
    }
    if !line_start {
        out.extend(b"\r\n");
    }
    out.extend(b".\r\n");
    out
}

/// The files of a Maildir's `new` and `cur`, with their content, in the order of their names.
pub fn messages(maildir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for part in ["new", "cur"] {
        for entry in fs::read_dir(maildir.join(part)).into_iter().flatten() {
            let path = entry.unwrap().path();
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// The messages of every Maildir below `root`.
pub fn messages_below(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = messages(root);
    walk(root, &mut |path| found.extend(messages(path)));
    found
}

/// What is below `root` only while a delivery runs: a file in a `tmp/`, a lock, a file that is to take another's place. Not what a server
/// that lives keeps for a moment.
pub fn unfinished(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(root, &mut |path| {
        let name = path.file_name().unwrap().to_string_lossy();
        let is_in_tmp = path.parent().is_some_and(|parent| parent.ends_with("tmp"));
        // `postroom.1764432000.…`, and not its configuration.
        let number = name.strip_prefix("postroom.").unwrap_or_default();
        let is_to_come =
            name.ends_with(".tmp") || number.starts_with(|it: char| it.is_ascii_digit());
        if (is_in_tmp && !is_kept_lock(path)) || is_to_come || is_lock(path) {
            found.push(path.to_owned());
        }
    });
    found
}

fn is_lock(path: &Path) -> bool {
    let is_lock = path.extension().is_some_and(|it| it == "lock");
    is_lock && !path.parent().unwrap().ends_with("tmp")
}

/// A lock file that a living server keeps for the next lock, in `tmp/`.
pub fn is_kept_lock(path: &Path) -> bool {
    let holder = fs::read_to_string(path).unwrap_or_default();
    let pid = holder.split(':').next().unwrap_or_default();
    let is_lock = path.extension().is_some_and(|it| it == "lock");
    is_lock && !pid.is_empty() && Path::new("/proc").join(pid).exists()
}

/// As if they had been left some time ago: a lock that is young is its holder's.
pub fn let_time_pass(left: &[PathBuf]) {
    for path in left.iter().filter(|path| path.is_file()) {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(10))
            .unwrap();
    }
}

/// Files that come with the first message of a mailbox, and of a namespace.
fn is_of_uids(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    name == "dovecot-uidlist" || name.starts_with("dovecot-uidvalidity")
}

/// Every list of UIDs below `root` has the mode and group that its mailbox asks for.
pub fn assert_lists_fit(root: &Path) {
    walk(root, &mut |path| {
        if !path.ends_with("dovecot-uidlist") {
            return;
        }
        let list = fs::metadata(path).unwrap();
        let mailbox = fs::metadata(path.parent().unwrap()).unwrap();
        let mode = mailbox.mode() & 0o666 | 0o600;
        assert_eq!(list.mode() & 0o7777, mode, "{}", path.display());
        let group_matters = (mailbox.mode() >> 3) & 7 != mailbox.mode() & 7;
        if group_matters || mailbox.mode() & 0o2000 != 0 {
            assert_eq!(list.gid(), mailbox.gid(), "{}", path.display());
        }
    });
}

/// One line for everything below `root`: `drwxrws--- 8:100 .info/new`. Names of messages are `MESSAGE`; lists of UIDs are
/// left out.
pub fn tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    walk(root, &mut |path| {
        if is_of_uids(path) {
            return;
        }
        let meta = fs::symlink_metadata(path).unwrap();
        let shown = path.strip_prefix(root).unwrap().to_str().unwrap();
        let parent = path
            .parent()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str());
        let shown = match (meta.is_file(), parent) {
            (true, Some(part @ ("new" | "cur"))) => {
                let above = Path::new(shown)
                    .parent()
                    .unwrap()
                    .parent()
                    .unwrap()
                    .join(part);
                format!("{}/MESSAGE", above.display())
            }
            _ => shown.to_owned(),
        };
        let kind = if meta.is_dir() { "d" } else { "-" };
        lines.push(format!(
            "{kind}{:04o} {}:{} {shown}",
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid()
        ));
    });
    lines
}

fn walk(path: &Path, visit: &mut impl FnMut(&Path)) {
    let mut entries: Vec<_> = fs::read_dir(path)
        .into_iter()
        .flatten()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.path(), entry.file_type())
        })
        .collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    for (entry, kind) in entries {
        visit(&entry);
        if kind.is_ok_and(|it| it.is_dir()) {
            walk(&entry, visit);
        }
    }
}

/// Real messages, where the caller has a folder of them; else some of our own.
pub fn corpus(count: usize) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    if let Some(folder) = std::env::var_os("POSTROOM_CORPUS") {
        walk(Path::new(&folder), &mut |path| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or("");
            let special = ["README", "ORIGIN", "LICENSE", "index.tsv", "mbox"]
                .iter()
                .any(|it| name.contains(it));
            if !special && path.is_file() {
                found.push(fs::read(path).unwrap());
            }
        });
    } else {
        eprintln!("POSTROOM_CORPUS is not set: made-up messages are used");
    }
    let mut made = 0;
    while found.len() < count {
        let filler = "Zeile mit Umlauten äöü\n".repeat(made % 40);
        found.push(format!("Subject: number {made}\nFrom: a@b\n\n{filler}.dot\n").into_bytes());
        made += 1;
    }
    let mut found: Vec<_> = found.into_iter().map(without_from_line).collect();
    found.retain(|message| message.len() < 1 << 20 && has_a_header(message));
    found.truncate(count);
    found
}

/// Whether every line down to the first empty one is a field or goes on with one: where it is not, an MTA puts the
/// missing empty line in, and the message is no longer the one that was sent.
fn has_a_header(message: &[u8]) -> bool {
    let mut lines = message.split(|&byte| byte == b'\n').enumerate();
    lines
        .by_ref()
        .map(|(number, line)| (number, line.strip_suffix(b"\r").unwrap_or(line)))
        .take_while(|(_, line)| !line.is_empty())
        .all(|(number, line)| {
            let name = line
                .iter()
                .take_while(|&&byte| byte.is_ascii_graphic() && byte != b':');
            let end = name.count();
            (number > 0 && matches!(line[0], b' ' | b'\t'))
                || (end > 0 && line.get(end) == Some(&b':'))
        })
        && lines.next().is_some()
}

fn without_from_line(message: Vec<u8>) -> Vec<u8> {
    match message.starts_with(b"From ") {
        true => message
            .iter()
            .position(|&byte| byte == b'\n')
            .map_or(message.clone(), |end| message[end + 1..].to_vec()),
        false => message,
    }
}
