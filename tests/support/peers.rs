//! The real neighbours: Dovecot 2.3 and 2.4, Postfix. Private instances with their own folders, ended by their pid.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{MAIL, PATIENCE, Scratch, Store, installed, signal, skip};

/// Where `tests/run` puts what takes long to make: the Debian trixie with Dovecot 2.4.
pub fn cache() -> PathBuf {
    match std::env::var_os("POSTROOM_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").unwrap_or("/root".into()))
            .join(".cache/postroom"),
    }
}

/// A loopback port that nobody uses now. Each program has some of its own, and none is one that the kernel gives to clients.
pub fn free_port() -> u16 {
    const OF_ONE: u16 = 100;
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + (std::process::id() % 200) as u16 * OF_ONE;
    let mut ports =
        std::iter::repeat_with(|| first + GIVEN.fetch_add(1, Ordering::Relaxed) % OF_ONE);
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.find(is_free).unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V23,
    V24,
}

pub const VERSIONS: [Version; 2] = [Version::V23, Version::V24];

/// A Dovecot that serves a [`Store`] over IMAP.
pub struct Dovecot {
    child: Child,
    pub port: u16,
    log: PathBuf,
    pub config: PathBuf,
    pub version: Version,
    /// Runs a program where this Dovecot lives.
    inside: Vec<String>,
}

impl Dovecot {
    /// Its socket for userdb look-ups.
    pub fn auth_userdb(&self) -> PathBuf {
        self.config.parent().unwrap().join("run/auth-userdb")
    }

    /// `None`, with the reason, where it is not installed.
    pub fn start(version: Version, store: &Store) -> Option<Dovecot> {
        Dovecot::start_with(version, store, |text| text)
    }

    /// With another configuration. `@USERS@` in it is the passwd-file: user and password.
    pub fn start_with(
        version: Version,
        store: &Store,
        change: impl Fn(String) -> String,
    ) -> Option<Dovecot> {
        let chroot = cache().join("trixie");
        let missing = match version {
            Version::V23 => !installed("dovecot"),
            Version::V24 => !chroot.join("usr/sbin/dovecot").exists(),
        };
        if missing {
            skip(&format!(
                "Dovecot {version:?} is not installed (tests/run installs it)"
            ));
            return None;
        }
        let name = format!("dovecot-{version:?}");
        let scratch = &store.scratch;
        scratch.dir(&name, 0, 0, 0o755);
        let log = scratch.dir(&format!("{name}/log"), 0, 0, 0o777);
        scratch.dir(&format!("{name}/run"), 0, 0, 0o755);
        let users = ["alice", "bob", "carol"].map(|user| format!("{user}:{{PLAIN}}pw::::::\n"));
        let users = scratch.file(&format!("{name}/users"), 0, 0, 0o644, &users.concat());
        let port = free_port();
        let text = match version {
            Version::V23 => config23(scratch, &name, port),
            Version::V24 => config24(scratch, &name, port),
        };
        let text = change(text).replace("@USERS@", users.to_str().unwrap());
        let config = scratch.file(&format!("{name}/dovecot.conf"), 0, 0, 0o644, &text);
        let inside = match version {
            Version::V23 => Vec::new(),
            Version::V24 => into_chroot(&chroot, &scratch.path("")),
        };
        let mut command = command_inside(&inside, "dovecot");
        command.arg("-F").arg("-c").arg(&config);
        let out = fs::File::create(scratch.path(&format!("{name}/out"))).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        let child = command.spawn().unwrap();
        let mut dovecot = Dovecot {
            child,
            port,
            log,
            config,
            version,
            inside,
        };
        let began = Instant::now();
        // Its sockets come one after the other.
        while TcpStream::connect(("127.0.0.1", port)).is_err() || !dovecot.auth_userdb().exists() {
            let ended = dovecot.child.try_wait().unwrap();
            let said = fs::read_to_string(scratch.path(&format!("{name}/out"))).unwrap_or_default();
            assert!(
                ended.is_none() && began.elapsed() < PATIENCE,
                "{version:?} does not start: {said}"
            );
            thread::sleep(Duration::from_millis(50));
        }
        Some(dovecot)
    }

    /// Lines of the log that are not information.
    pub fn complaints(&self) -> Vec<String> {
        let text = fs::read_to_string(self.log.join("errors")).unwrap_or_default();
        text.lines()
            .filter(|line| !line.contains("Warning: SIGHUP"))
            .map(str::to_owned)
            .collect()
    }

    /// One message through dovecot-lda; answers its exit code.
    pub fn lda(&self, user: &str, mailbox: &str, message: &[u8]) -> Option<i32> {
        let mut command = command_inside(&self.inside, "/usr/lib/dovecot/dovecot-lda");
        command.arg("-c").arg(&self.config);
        command.args(["-e", "-d", user, "-m", mailbox, "-f", "sender@else.test"]);
        super::run_with_input(&mut command, message).status.code()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A command that runs where this Dovecot lives. What it names has to be there.
    pub fn inside(&self, command: &Command) -> Command {
        let mut inside = command_inside(&self.inside, command.get_program().to_str().unwrap());
        inside.args(command.get_args());
        inside
    }

    pub fn doveadm(&self, arguments: &[&str]) -> std::process::Output {
        command_inside(&self.inside, "doveadm")
            .arg("-c")
            .arg(&self.config)
            .args(arguments)
            .output()
            .unwrap()
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// TERM, time to go, then KILL.
fn end(child: &mut Child) {
    signal(child.id(), "TERM");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        if child.try_wait().unwrap().is_some() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn command_inside(inside: &[String], program: &str) -> Command {
    match inside.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

/// The words that run a program in the chroot, with `shared` at its own path and a mount namespace of its own, where what is
/// mounted and unmounted outside is too.
fn into_chroot(chroot: &Path, shared: &Path) -> Vec<String> {
    let (chroot, shared) = (chroot.display(), shared.display());
    let script = format!(
        "mount --rbind /dev {chroot}/dev && mount -t proc proc {chroot}/proc && \
         mkdir -p {chroot}{shared} && mount --rbind {shared} {chroot}{shared} && exec chroot {chroot} \"$@\""
    );
    let apart = ["unshare", "-m", "--propagation", "slave"];
    let words = apart.into_iter().chain(["sh", "-c", &script, "inside"]);
    words.map(str::to_owned).collect()
}

fn config23(scratch: &Scratch, name: &str, port: u16) -> String {
    let root = scratch.text("");
    format!(
        r#"base_dir = {root}/{name}/run
state_dir = {root}/{name}/state
log_path = {root}/{name}/log/errors
info_log_path = {root}/{name}/log/info
debug_log_path = {root}/{name}/log/debug
protocols = imap
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
mail_uid = {MAIL}
mail_gid = {MAIL}
mail_access_groups = users
first_valid_uid = 1
first_valid_gid = 1
mail_home = {root}/home/%n
mail_location = maildir:~/Maildir
mail_plugins = acl
passdb {{
  driver = passwd-file
  args = username_format=%n @USERS@
}}
userdb {{
  driver = static
  args = uid={MAIL} gid={MAIL} home={root}/home/%n
}}
namespace inbox {{
  separator = /
  prefix =
  inbox = yes
}}
namespace public {{
  type = public
  separator = /
  prefix = Public/
  location = maildir:{root}/public:INDEXPVT=~/Maildir/public
  subscriptions = no
  list = children
}}
namespace shared {{
  type = shared
  separator = /
  prefix = shared/%%u/
  location = maildir:%%h/Maildir:INDEXPVT=~/Maildir/shared/%%u
  subscriptions = no
  list = children
}}
service anvil {{
  chroot =
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    address = 127.0.0.1
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
plugin {{
  acl = vfile
}}
"#
    )
}

fn config24(scratch: &Scratch, name: &str, port: u16) -> String {
    let root = scratch.text("");
    format!(
        r#"dovecot_config_version = 2.4.1
dovecot_storage_version = 2.4.1
base_dir = {root}/{name}/run
state_dir = {root}/{name}/state
log_path = {root}/{name}/log/errors
info_log_path = {root}/{name}/log/info
debug_log_path = {root}/{name}/log/debug
protocols = imap
listen = 127.0.0.1
ssl = no
auth_allow_cleartext = yes
mail_uid = {MAIL}
mail_gid = {MAIL}
mail_access_groups = users
first_valid_uid = 1
first_valid_gid = 1
mail_home = {root}/home/%{{user | username}}
mail_driver = maildir
mail_path = ~/Maildir
passdb passwd-file {{
  passwd_file_path = @USERS@
  default_password_scheme = PLAIN
}}
userdb static {{
  fields {{
    uid = {MAIL}
    gid = {MAIL}
    home = {root}/home/%{{user | username}}
  }}
}}
mail_plugins {{
  acl = yes
}}
acl_driver = vfile
namespace inbox {{
  separator = /
  prefix =
  inbox = yes
}}
namespace public {{
  type = public
  separator = /
  prefix = Public/
  mail_driver = maildir
  mail_path = {root}/public
  mail_inbox_path =
  mail_index_private_path = ~/Maildir/public
  subscriptions = no
  list = children
}}
namespace shared {{
  type = shared
  separator = /
  prefix = shared/$user/
  mail_driver = maildir
  mail_path = %{{owner_home}}/Maildir
  mail_index_private_path = ~/Maildir/shared/%{{owner_user}}
  subscriptions = no
  list = children
}}
service anvil {{
  chroot =
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    listen = 127.0.0.1
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
"#
    )
}

/// A Postfix that hands everything to an LMTP socket; `*@lda.test` goes to a command.
pub struct Postfix {
    child: Child,
    pub port: u16,
    pub root: PathBuf,
}

impl Postfix {
    pub fn start(scratch: &Scratch, socket: &Path, lda: &str) -> Option<Postfix> {
        if !installed("postfix") {
            skip("Postfix is not installed (tests/run installs it)");
            return None;
        }
        let port = free_port();
        let root = scratch.dir("postfix", 0, 0, 0o755);
        for part in ["etc", "queue", "data", "log"] {
            scratch.dir(&format!("postfix/{part}"), 0, 0, 0o755);
        }
        chown(root.join("data"), Some(uid_of("postfix")), None).unwrap();
        let shown = root.display();
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {shown}/queue\ndata_directory = {shown}/data\n\
             command_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\nmail_owner = postfix\n\
             setgid_group = postdrop\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmyhostname = mta.example.test\n\
             mydestination =\nlocal_recipient_maps =\nalias_maps =\nalias_database =\nvirtual_mailbox_domains = static:all\n\
             virtual_transport = lmtp:unix:{}\nmynetworks = 127.0.0.0/8\nsmtpd_relay_restrictions = permit_mynetworks, reject\n\
             smtpd_recipient_restrictions = permit_mynetworks, reject\nsmtpd_peername_lookup = no\n\
             smtpd_reject_unlisted_recipient = no\ndisable_dns_lookups = yes\nrecipient_delimiter = +\n\
             lmtp_destination_concurrency_limit = 20\nlmtp_send_xforward_command = yes\nminimal_backoff_time = 3s\nmaximal_backoff_time = 6s\n\
             queue_run_delay = 3s\nlocal_header_rewrite_clients =\nmessage_drop_headers =\nlmtp_line_length_limit = 0\nmessage_size_limit = 52428800\nmaillog_file = {shown}/log/mail.log\n\
             maillog_file_prefixes = {shown}/log\ndefault_transport = error:no outside delivery\n\
             relay_transport = error:no outside delivery\ntransport_maps = inline:{{ {{ lda.test = lda: }} }}\n\
             lda_destination_recipient_limit = 1\n",
            socket.display()
        );
        let mut master = format!("127.0.0.1:{port} inet n - n - - smtpd\n");
        for (service, columns, program) in [
            ("pickup", "n - n 1 1", "pickup"),
            ("cleanup", "n - n - 0", "cleanup"),
            ("qmgr", "n - n 300 1", "qmgr"),
            ("rewrite", "- - n - -", "trivial-rewrite"),
            ("bounce", "- - n - 0", "bounce"),
            ("defer", "- - n - 0", "bounce"),
            ("trace", "- - n - 0", "bounce"),
            ("error", "- - n - -", "error"),
            ("retry", "- - n - -", "error"),
            ("lmtp", "- - n - -", "lmtp"),
            // Without it each lmtp waits a second for it.
            ("scache", "- - n - 1", "scache"),
            ("showq", "n - n - -", "showq"),
            ("proxymap", "- - n - -", "proxymap"),
        ] {
            master.push_str(&format!("{service} unix {columns} {program}\n"));
        }
        master.push_str("postlog unix-dgram n - n - 1 postlogd\n");
        master.push_str(&format!(
            "lda unix - n n - 10 pipe\n  flags=DRXhu user=mail argv={lda}\n"
        ));
        fs::write(root.join("etc/main.cf"), main).unwrap();
        fs::write(root.join("etc/master.cf"), master).unwrap();
        let etc = root.join("etc");
        // Makes the queue's folders; its remarks about a chroot that is not used do not matter.
        let checked = Command::new("postfix")
            .arg("-c")
            .arg(&etc)
            .arg("check")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        let out = fs::File::create(root.join("log/master")).unwrap();
        let mut command = Command::new("/usr/lib/postfix/sbin/master");
        command.arg("-c").arg(&etc).arg("-d").stdin(Stdio::null());
        command.stdout(out.try_clone().unwrap()).stderr(out);
        let mut child = command.spawn().unwrap();
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = child.try_wait().unwrap();
            assert!(
                ended.is_none() && began.elapsed() < PATIENCE,
                "Postfix does not start: {said}"
            );
            thread::sleep(Duration::from_millis(50));
        }
        Some(Postfix { child, port, root })
    }

    /// Gives a message to Postfix over SMTP.
    pub fn send(&self, recipients: &[&str], message: &[u8]) {
        use std::io::{BufRead, BufReader, Write};
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut lines = BufReader::new(stream);
        let mut say = |text: &[u8]| {
            lines.get_mut().write_all(text).unwrap();
            loop {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                if line.as_bytes().get(3) != Some(&b'-') {
                    assert!(line.starts_with(['2', '3']), "{line}");
                    return;
                }
            }
        };
        say(b"");
        say(b"EHLO client.test\r\n");
        say(b"MAIL FROM:<sender@else.test> BODY=8BITMIME\r\n");
        for recipient in recipients {
            say(format!("RCPT TO:<{recipient}>\r\n").as_bytes());
        }
        say(b"DATA\r\n");
        say(&super::stuffed(message));
        say(b"QUIT\r\n");
    }

    /// Waits until the queue is empty.
    pub fn drain(&self) {
        let began = Instant::now();
        let waiting = || {
            let queue = self.root.join("queue");
            let folders =
                ["maildrop", "incoming", "active", "deferred"].map(|name| queue.join(name));
            folders
                .iter()
                .map(|folder| count_files(folder))
                .sum::<usize>()
        };
        while waiting() > 0 {
            assert!(
                began.elapsed() < Duration::from_secs(120),
                "queue not empty: {}",
                self.log()
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the log says so.
    pub fn wait_for(&self, says: impl Fn(&str) -> bool) {
        let began = Instant::now();
        while !says(&self.log()) {
            assert!(began.elapsed() < PATIENCE, "{}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.root.join("log/mail.log")).unwrap_or_default()
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Exim, without a daemon: a message is delivered at once.
pub struct Exim {
    root: PathBuf,
}

impl Exim {
    /// `*@example.test` goes over the LMTP socket, `*@lda.test` to a command (`$local_part_data` in it is the user),
    /// `*@mbox.test` to an mbox in `spool`. `None`, with the reason, where it is not there.
    pub fn new(scratch: &Scratch, socket: &Path, lda: &str, spool: &Path) -> Option<Exim> {
        let unpacked = cache().join("exim");
        if !unpacked.join("usr/sbin/exim4").exists() {
            skip("Exim is not there (tests/run unpacks it)");
            return None;
        }
        let root = scratch.dir("exim", MAIL, MAIL, 0o755);
        // With a config of ours it gives its privileges up, and then runs itself again: from where everybody can.
        for part in ["usr/sbin/exim4", "usr/lib"] {
            lines_of(
                Command::new("cp")
                    .arg("-r")
                    .arg(unpacked.join(part))
                    .arg(&root),
            );
        }
        // Two that start at once make them with modes of the one and owners of the other.
        for part in ["", "/input", "/msglog", "/db"] {
            scratch.dir(&format!("exim/spool{part}"), MAIL, MAIL, 0o750);
        }
        let program = root.join("exim4");
        make_executable(&program);
        let text = format!(
            r#"exim_path = {program}
exim_user = {MAIL}
exim_group = {MAIL}
spool_directory = {root}/spool
log_file_path = {root}/%slog
pid_file_path = {root}/pid
primary_hostname = exim.test
never_users =
trusted_users = root
keep_environment = LD_LIBRARY_PATH
begin routers
lda:
  driver = accept
  domains = lda.test
  local_parts = alice : bob : nobody-here
  transport = lda
mbox:
  driver = accept
  domains = mbox.test
  local_parts = alice : bob
  transport = mbox
lmtp:
  driver = accept
  domains = example.test
  transport = lmtp
begin transports
lmtp:
  driver = lmtp
  socket = {socket}
  batch_max = 100
  user = {MAIL}
  group = {MAIL}
lda:
  driver = pipe
  command = {lda}
  user = {MAIL}
  group = {MAIL}
  temp_errors = 75
  return_fail_output
  log_output
mbox:
  driver = appendfile
  file = {spool}/$local_part_data
  user = {MAIL}
  group = {MAIL}
  lock_retries = 2
  lock_interval = 1s
begin retry
* * F,1h,5s
"#,
            program = program.display(),
            root = root.display(),
            socket = socket.display(),
            spool = spool.display(),
        );
        scratch.file("exim/conf", 0, 0, 0o644, &text);
        Some(Exim { root })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.root.join("exim4"));
        command
            .arg("-C")
            .arg(self.root.join("conf"))
            .args(arguments);
        let libraries = self.root.join("lib/x86_64-linux-gnu");
        command.env("LD_LIBRARY_PATH", libraries);
        command
    }

    /// Tries until nothing is in the queue.
    pub fn drain(&self) {
        let began = Instant::now();
        while lines_of(&mut self.command(&["-bpc"])) != ["0"] {
            assert!(
                began.elapsed() < 4 * PATIENCE,
                "Exim's queue does not empty"
            );
            lines_of(&mut self.command(&["-qff"]));
        }
    }

    /// Answers what the log says: without its privileges it writes that to stderr.
    pub fn send(&self, recipients: &[&str], message: &[u8]) -> String {
        let mut command = self.command(&["-v", "-odf", "-oi", "-f", "sender@else.test"]);
        command.args(recipients);
        let output = super::run_with_input(&mut command, message);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    }
}

fn count_files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            if entry.path().is_dir() {
                count_files(&entry.path())
            } else {
                1
            }
        })
        .sum()
}

pub fn uid_of(name: &str) -> u32 {
    let out = Command::new("id").arg("-u").arg(name).output().unwrap();
    String::from_utf8_lossy(&out.stdout).trim().parse().unwrap()
}

/// The lines of a command's output.
pub fn lines_of(command: &mut Command) -> Vec<String> {
    let out = command.output().unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .map(str::to_owned)
        .collect()
}

pub fn make_executable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A PostgreSQL cluster of the test's own, on a unix socket.
pub struct Postgresql {
    root: PathBuf,
    bin: PathBuf,
}

impl Postgresql {
    /// Made, and not started. `None`, with the reason, where it is not installed.
    pub fn new(scratch: &Scratch) -> Option<Postgresql> {
        let versions = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten();
        let Some(bin) = versions
            .map(|entry| entry.path().join("bin"))
            .find(|bin| bin.join("initdb").exists())
        else {
            skip("PostgreSQL is not installed (tests/run installs it)");
            return None;
        };
        let root = scratch.dir("postgresql", MAIL, MAIL, 0o700);
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        let server = Postgresql { root, bin };
        let data = server.root.join("data");
        let mut command = server.command("initdb");
        command
            .args(["-A", "trust", "-U", "mail", "--no-sync", "-D"])
            .arg(data);
        server.done(command);
        Some(server)
    }

    pub fn parameters(&self) -> String {
        format!("host={} user=mail dbname=postgres", self.root.display())
    }

    pub fn start(&mut self) {
        let options = format!("-k {} -c listen_addresses= -F", self.root.display());
        self.control(&["start", "-w", "-o", &options]);
    }

    pub fn stop(&mut self) {
        self.control(&["stop", "-m", "immediate"]);
    }

    pub fn run(&self, statements: &str) {
        let mut command = self.command("psql");
        command.arg("-h").arg(&self.root).args([
            "-U",
            "mail",
            "-v",
            "ON_ERROR_STOP=1",
            "postgres",
            "-c",
            statements,
        ]);
        self.done(command);
    }

    /// A session that has got as far as the row 1, and stays.
    pub fn session(&self, statements: &str) -> Child {
        let mut command = self.command("psql");
        command
            .arg("-h")
            .arg(&self.root)
            .args(["-U", "mail", "-At", "postgres"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = statements.replace("; ", ";\n") + ";\n";
        let mut stdin = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, lines.as_bytes()).unwrap();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line.trim() != "1" {
            line.clear();
            assert!(std::io::BufRead::read_line(&mut out, &mut line).unwrap() > 0);
        }
        child.stdin = Some(stdin);
        child
    }

    fn control(&self, arguments: &[&str]) {
        let mut command = self.command("pg_ctl");
        command
            .arg("-D")
            .arg(self.root.join("data"))
            .arg("-l")
            .arg(self.root.join("log"))
            .args(arguments);
        self.done(command);
    }

    fn command(&self, program: &str) -> Command {
        Command::new(self.bin.join(program))
    }

    /// As the mail user: it does not run as root.
    fn done(&self, mut command: Command) {
        command
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        super::as_user(&mut command, MAIL, MAIL, &[]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let output = command.stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let log = fs::read_to_string(self.root.join("log")).unwrap_or_default();
        assert!(output.status.success(), "{command:?}: {said} {log}");
    }
}

impl Drop for Postgresql {
    fn drop(&mut self) {
        let mut command = self.command("pg_ctl");
        command
            .arg("-D")
            .arg(self.root.join("data"))
            .args(["stop", "-m", "immediate"]);
        super::as_user(&mut command, MAIL, MAIL, &[]);
        // It may be down already.
        let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// A Dovecot's `doveconf`.
pub struct Doveconf {
    chroot: Option<PathBuf>,
}

/// None where this Dovecot is not installed.
pub fn doveconf(version: Version) -> Option<Doveconf> {
    let chroot = cache().join("trixie");
    let found = match version {
        Version::V23 => installed("doveconf"),
        Version::V24 => chroot.join("usr/bin/doveconf").exists(),
    };
    let chroot = (version == Version::V24).then_some(chroot);
    found.then_some(Doveconf { chroot })
}

impl Doveconf {
    /// `doveconf -n -c FILE`
    pub fn show(&self, file: &Path) -> std::process::Output {
        let Some(chroot) = &self.chroot else {
            let mut command = Command::new("doveconf");
            return command.args(["-n", "-c"]).arg(file).output().unwrap();
        };
        let name = format!("tmp/doveconf-{:?}.conf", thread::current().id());
        let copy = chroot.join(&name);
        fs::copy(file, &copy).unwrap();
        let mut command = Command::new("chroot");
        command.arg(chroot).args(["doveconf", "-n", "-c"]);
        let output = command.arg(format!("/{name}")).output().unwrap();
        fs::remove_file(copy).unwrap();
        output
    }
}
