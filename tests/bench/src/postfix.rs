//! Postfix between the load and the contestants: the whole way of a message, its queue included.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::failed;
use crate::servers::Contestant;
use crate::store::{MAIL, Store};

const MASTER: &str = "/usr/lib/postfix/sbin/master";
const PATIENCE: Duration = Duration::from_secs(20);

/// What Postfix gives its mail to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Postroom,
    Dovecot,
    /// Its own delivery agent.
    Virtual,
}

impl Transport {
    pub fn name(self) -> &'static str {
        match self {
            Transport::Postroom => "postroom",
            Transport::Dovecot => "dovecot",
            Transport::Virtual => "virtual(8)",
        }
    }

    pub fn contestant(self) -> Option<Contestant> {
        match self {
            Transport::Postroom => Some(Contestant::Postroom),
            Transport::Dovecot => Some(Contestant::Dovecot),
            Transport::Virtual => None,
        }
    }
}

/// A running one with a queue of its own, ended with this.
pub struct Postfix {
    child: Child,
    port: u16,
}

impl Postfix {
    pub fn is_installed() -> bool {
        Path::new(MASTER).exists()
    }

    pub fn start(store: &Store, transport: Transport, users: usize) -> io::Result<Postfix> {
        let root = store.path("postfix");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        for part in ["etc", "queue", "data"] {
            fs::create_dir_all(root.join(part))?;
        }
        chown(root.join("data"), Some(uid_of("postfix")?), None)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let (shown, home) = (root.display(), store.path("home"));
        let agent = match transport {
            Transport::Virtual => "virtual".to_owned(),
            other => format!("lmtp:unix:{}/{}", store.path("run").display(), other.name()),
        };
        let boxes: String = (0..users)
            .map(|user| format!("u{user}@bench.test u{user}/Maildir/\n"))
            .collect();
        fs::write(root.join("etc/boxes"), boxes)?;
        fs::write(
            root.join("etc/main.cf"),
            format!(
                "compatibility_level = 3.6\nqueue_directory = {shown}/queue\ndata_directory = {shown}/data\n\
                 command_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\nmail_owner = postfix\n\
                 setgid_group = postdrop\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmyhostname = mta.bench.test\n\
                 mydestination =\nlocal_recipient_maps =\nalias_maps =\nalias_database =\n\
                 virtual_mailbox_domains = static:all\nvirtual_transport = {agent}\n\
                 virtual_mailbox_base = {}\nvirtual_mailbox_maps = texthash:{shown}/etc/boxes\n\
                 virtual_uid_maps = static:{MAIL}\nvirtual_gid_maps = static:{MAIL}\nvirtual_minimum_uid = 1\n\
                 mynetworks = 127.0.0.0/8\nsmtpd_relay_restrictions = permit_mynetworks, reject\nsmtpd_recipient_restrictions = permit_mynetworks, reject\nsmtpd_peername_lookup = no\n\
                 smtpd_reject_unlisted_recipient = no\ndisable_dns_lookups = yes\nmaillog_file = {shown}/mail.log\n\
                 maillog_file_prefixes = {shown}\n",
                home.display()
            ),
        )?;
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
            ("virtual", "- n n - -", "virtual"),
            ("proxymap", "- - n - -", "proxymap"),
        ] {
            master.push_str(&format!("{service} unix {columns} {program}\n"));
        }
        master.push_str("postlog unix-dgram n - n - 1 postlogd\n");
        fs::write(root.join("etc/master.cf"), master)?;
        // Makes the queue's folders.
        Command::new("postfix")
            .arg("-c")
            .arg(root.join("etc"))
            .arg("check")
            .stderr(Stdio::null())
            .status()?;
        let said = fs::File::create(root.join("master"))?;
        let mut command = Command::new(MASTER);
        command.arg("-c").arg(root.join("etc")).arg("-d");
        command.stdin(Stdio::null()).stdout(said.try_clone()?);
        let child = command.stderr(said).spawn().map_err(failed(MASTER))?;
        let mut postfix = Postfix { child, port };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if postfix.child.try_wait()?.is_some() || began.elapsed() > PATIENCE {
                return Err(io::Error::other("Postfix does not start"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(postfix)
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.child.wait();
    }
}

fn uid_of(name: &str) -> io::Result<u32> {
    let users = fs::read_to_string("/etc/passwd")?;
    let mut fields = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let user = fields.find(|it| it.first() == Some(&name));
    let uid = user.and_then(|it| it.get(2)?.parse().ok());
    uid.ok_or_else(|| io::Error::other(format!("there is no user {name}")))
}
