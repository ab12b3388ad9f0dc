//! The contestants, each with the same users, namespaces and ACLs, syncing as they do by default.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Target;
use crate::failed;
use crate::store::{Kind, MAIL, Store};

/// How long a server may take to come up or go down.
const PATIENCE: Duration = Duration::from_secs(20);
const DOVECOT_LDA: &str = "/usr/lib/dovecot/dovecot-lda";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contestant {
    Postroom,
    Dovecot,
    /// LDAs alone.
    Procmail,
    Maildrop,
}

/// Whether there is a Dovecot that this configuration is for.
pub fn has_dovecot() -> bool {
    let version = Command::new("dovecot").arg("--version").output();
    version.is_ok_and(|out| out.stdout.starts_with(b"2.3.")) && Path::new(DOVECOT_LDA).exists()
}

/// A running server, ended with this.
pub struct Server {
    child: Child,
    pub target: Target,
}

impl Contestant {
    pub fn name(self) -> &'static str {
        match self {
            Contestant::Postroom => "postroom",
            Contestant::Dovecot => "dovecot",
            Contestant::Procmail => "procmail",
            Contestant::Maildrop => "maildrop",
        }
    }

    pub fn lda_name(self) -> &'static str {
        match self {
            Contestant::Postroom => "postroom-lda",
            Contestant::Dovecot => "dovecot-lda",
            other => other.name(),
        }
    }

    pub fn is_installed(self) -> bool {
        match self {
            Contestant::Postroom => true,
            Contestant::Dovecot => has_dovecot(),
            other => other.lda(Path::new("")).exists(),
        }
    }

    fn lda(self, bin: &Path) -> PathBuf {
        match self {
            Contestant::Postroom => bin.join("postroom-lda"),
            Contestant::Dovecot => DOVECOT_LDA.into(),
            other => Path::new("/usr/bin").join(other.name()),
        }
    }

    fn config(self, store: &Store) -> PathBuf {
        store.path(&format!("{}.conf", self.name()))
    }

    fn log(self, store: &Store) -> PathBuf {
        store.path(&format!("{}.errors", self.name()))
    }

    /// Writes its configuration.
    pub fn configure(self, store: &Store) -> io::Result<()> {
        let mut text = match self {
            Contestant::Postroom => include_str!("../postroom.toml"),
            Contestant::Dovecot => include_str!("../dovecot.conf"),
            Contestant::Procmail => "DEFAULT=@ROOT@/home/u0/Maildir/\nLOGFILE=/dev/null\n",
            Contestant::Maildrop => "to \"@ROOT@/home/u0/Maildir\"\n",
        }
        .replace("@ROOT@", &store.root.display().to_string());
        match (self, store.kind) {
            (Contestant::Postroom, Kind::Single) => {
                text.push_str("recipient_headers = \"single\"\n")
            }
            (Contestant::Postroom, Kind::Mbox) => {
                let mbox = "mail_driver = \"mbox\"\nmail_path = \"~/mail\"\nmail_inbox_path = \"~/inbox\"\n";
                let inbox = "[namespace.inbox]\n";
                text = replaced(&text, inbox, &format!("{inbox}{mbox}"));
            }
            (Contestant::Dovecot, Kind::Mbox) => {
                text = replaced(&text, "maildir:~/Maildir\n", "mbox:~/mail:INBOX=~/inbox\n");
            }
            _ => {}
        }
        fs::write(self.config(store), text)?;
        // maildrop reads a filter that is its user's alone.
        if self == Contestant::Maildrop {
            fs::set_permissions(self.config(store), fs::Permissions::from_mode(0o600))?;
            chown(self.config(store), Some(MAIL), Some(MAIL))?;
        }
        for log in ["errors", "info"] {
            // Dovecot's is written by dovecot-lda too, as the user.
            let log = store.path(&format!("{}.{log}", self.name()));
            File::create(&log)?;
            fs::set_permissions(&log, fs::Permissions::from_mode(0o666))?;
        }
        Ok(())
    }

    /// `bin` is where Postroom's programs are.
    pub fn start(self, store: &Store, bin: &Path) -> io::Result<Server> {
        let mut command = match self {
            Contestant::Postroom => {
                let mut command = Command::new(bin.join("postroom-lmtpd"));
                if !store.own_uids {
                    command.uid(MAIL).gid(MAIL);
                }
                command.arg("-c");
                command
            }
            Contestant::Dovecot => {
                let mut command = Command::new("dovecot");
                command.args(["-F", "-c"]);
                command
            }
            lda => return Err(io::Error::other(format!("{} is no server", lda.name()))),
        };
        let said = File::options().append(true).open(self.log(store))?;
        command
            .arg(self.config(store))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said);
        let socket = store.path(&format!("run/{}", self.name()));
        let child = command.spawn().map_err(failed(self.name()))?;
        let mut server = Server {
            child,
            target: Target::Unix(socket.clone()),
        };
        let began = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            if server.child.try_wait()?.is_some() || began.elapsed() > PATIENCE {
                return Err(io::Error::other("it does not start"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// The end of its log, which goes with the disk.
    pub fn last_words(self, store: &Store) -> String {
        let log = fs::read(self.log(store)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// One run of its LDA as the mail user, for u0. Answers how long it took.
    pub fn deliver(self, store: &Store, bin: &Path, message: &[u8]) -> io::Result<Duration> {
        let program = self.lda(bin);
        let mut command = Command::new(&program);
        self.give_arguments(store, &mut command);
        let began = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .spawn()
            .map_err(failed(program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(message)?;
        }
        let status = child.wait()?;
        let took = began.elapsed();
        match status.success() {
            true => Ok(took),
            false => Err(io::Error::other(format!("{}: {status}", program.display()))),
        }
    }

    /// One run, for the most memory that a process of it had, in KiB.
    pub fn peak(self, store: &Store, bin: &Path, message: &[u8]) -> io::Result<u64> {
        let mut command = Command::new(bin.join("peak"));
        command.arg(self.lda(bin));
        self.give_arguments(store, &mut command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed("peak"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(message)?;
        }
        let said = child.wait_with_output()?.stdout;
        let said = String::from_utf8_lossy(&said);
        let peak = said.trim().parse();
        peak.map_err(|_| io::Error::other(format!("{}: {said:?}", self.lda_name())))
    }

    fn give_arguments(self, store: &Store, command: &mut Command) {
        command.uid(MAIL).gid(MAIL).current_dir("/").env_clear();
        match self {
            Contestant::Procmail => command.arg("-m").arg(self.config(store)),
            Contestant::Maildrop => command.arg(self.config(store)),
            _ => {
                command.arg("-c").arg(self.config(store));
                command.args(["-d", "u0", "-f", "sender@bench.test"])
            }
        };
    }
}

/// Without what is to be replaced, another thing would be measured.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in the configuration");
    text.replace(from, to)
}

/// What a user of Dovecot waits for who opens INBOX, or lists it; a Dovecot is running. Answers how long it took.
pub fn select(store: &Store, with_headers: bool) -> io::Result<Duration> {
    const IMAP: &str = "/usr/lib/dovecot/imap";
    let mut command = Command::new(IMAP);
    command.args(["-u", "u0", "-c"]);
    command.arg(Contestant::Dovecot.config(store));
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed(IMAP))?;
    if let Some(mut stdin) = child.stdin.take() {
        let list: &[u8] = match with_headers {
            true => b"h FETCH 1:* (FLAGS BODY.PEEK[HEADER.FIELDS (FROM TO SUBJECT DATE)])\r\n",
            false => b"",
        };
        stdin.write_all(&[b"a SELECT INBOX\r\n", list, b"b LOGOUT\r\n"].concat())?;
    }
    let said = child.wait_with_output()?.stdout;
    let took = began.elapsed();
    let said = String::from_utf8_lossy(&said);
    match said.contains("\na OK ") {
        true => Ok(took),
        false => Err(io::Error::other(format!("{IMAP}: {said}"))),
    }
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end and waits for that.
    fn end(&mut self) -> io::Result<()> {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status()?;
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > PATIENCE {
                self.child.kill()?;
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("a server does not end: {error}");
        }
    }
}
