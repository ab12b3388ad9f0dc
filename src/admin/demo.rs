//! `postroom demo`: the main job on a throw-away mail root, with nothing else installed.
//!
//! Alice, Bob and Carol, a private, a public and a shared namespace, rights, an LMTP server, and real messages to all
//! of them. Every delivery states beforehand what must become of it.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::config::Config;
use crate::deliver::Core;
use crate::lmtp;
use crate::message::{Address, Recipient};
use crate::run::Runner;
use crate::sys::credentials::{self, Credentials};
use crate::sys::process;

/// Whom root becomes: a demo needs no rights. A uid without an account; not 65534 (nobody), who
/// may not have mail.
const NO_ACCOUNT: u32 = 65533;

/// The configuration of the demo; `@…@` is filled in.
const CONFIG: &str = r#"hostname = "mx.example.org"
mail_path = "~/Maildir"
first_valid_uid = 1

[[userdb]]
passwd-file = { path = "@ROOT@/users" }

[namespace.inbox]
type = "private"
separator = "/"
prefix = ""
inbox = true

[namespace.public]
type = "public"
separator = "/"
prefix = "Public/"
mail_path = "@ROOT@/public"
mail_index_private_path = "~/Maildir/public"
subscriptions = false

[namespace.shared]
type = "shared"
separator = "/"
prefix = "shared/$user/"
mail_path = "%{owner_home}/Maildir"
mail_index_private_path = "~/Maildir/shared/%{owner_user}"
list = "children"
subscriptions = false

[acl]
driver = "vfile"

[delivery]
detail = "mailbox"
spool_dir = "@ROOT@"

[lmtp]
listen = [{ unix = "@ROOT@/lmtp", mode = "0600" }]
"#;

/// A recipient, what the delivery shows, and what the reply must begin with and hold.
const DELIVERIES: [(&str, &str, &str, &str); 7] = [
    (
        "alice@example.org",
        "a private INBOX",
        "250 2.0.0",
        "mailbox=\"INBOX\"",
    ),
    (
        "alice+Work@example.org",
        "a folder of her own",
        "250 2.0.0",
        "mailbox=\"Work\"",
    ),
    (
        "alice+Public/info@example.org",
        "a public mailbox, setgid",
        "250 2.0.0",
        "mailbox=\"Public/info\"",
    ),
    (
        "alice+shared/bob/Projects@example.org",
        "Bob shares it with Alice",
        "250 2.0.0",
        "mailbox=\"shared/bob/Projects\"",
    ),
    (
        "carol+shared/bob/Projects@example.org",
        "Bob does not share it with Carol",
        "250 2.0.0",
        "mailbox=\"INBOX\"",
    ),
    (
        "carol+../../etc/passwd@example.org",
        "a hostile name",
        "250 2.0.0",
        "mailbox=\"INBOX\"",
    ),
    (
        "dave@example.org",
        "nobody of this name",
        "550 5.1.1",
        "dave@example.org",
    ),
];

const MESSAGE: &str = "From: Erin <erin@else.example>\r
To: @RCPT@\r
Subject: @SUBJECT@\r
Message-ID: <demo-@NUMBER@@else.example>\r
Date: Sun, 22 Nov 2026 09:00:00 +0000\r
Content-Type: text/plain; charset=utf-8\r
\r
Grüße aus dem Postraum.\r
..a line that begins with a dot\r
";

/// Runs the demo. Without `once` it stays up until Ctrl-C. Answers the exit code.
pub fn run(once: bool, out: &mut impl Write) -> io::Result<u8> {
    if credentials::is_root() {
        writeln!(
            out,
            "Root never touches mail: going on as uid {NO_ACCOUNT}, which has no account.\n"
        )?;
        credentials::become_forever(&Credentials::new(NO_ACCOUNT, NO_ACCOUNT, vec![]))?;
    }
    process::clear_umask();
    let root = Root::make()?;
    let config = match Config::from_str("demo.toml", &CONFIG.replace("@ROOT@", &root.text())) {
        Ok(config) => config,
        Err(errors) => return Err(io::Error::other(errors.to_string())),
    };
    write(
        &root.0.join("postroom.toml"),
        &CONFIG.replace("@ROOT@", &root.text()),
    )?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let core = Arc::new(Core::new(config.delivery));
    let listeners = {
        let _inside = runtime.enter();
        lmtp::bind(&config.lmtp.listen)?
    };
    let (stop, stopped) = watch::channel(false);
    let runner = Runner::new(Arc::clone(&core), config.lmtp.turns);
    let server = runtime.spawn(lmtp::serve(
        listeners,
        runner,
        Arc::new(config.lmtp),
        stopped,
    ));
    let as_stated = deliver_all(&root.0.join("lmtp"), out)?;
    writeln!(out, "\nThe mail root (mode owner:group path):")?;
    print_tree(&root.0, &root.0, out)?;
    explain_two(&core, out)?;
    match as_stated {
        true => writeln!(out, "\nAll deliveries came out as stated.")?,
        false => writeln!(out, "\nNOT all deliveries came out as stated.")?,
    }
    if !once {
        stay(&root, out)?;
        runtime.block_on(async { tokio::signal::ctrl_c().await })?;
    }
    stop.send_replace(true);
    let ended = runtime.block_on(server);
    ended.map_err(io::Error::other)??;
    Ok(if as_stated { 0 } else { 1 })
}

fn stay(root: &Root, out: &mut impl Write) -> io::Result<()> {
    let root = root.text();
    writeln!(
        out,
        "\nThe server stays up until Ctrl-C; then all of {root} is removed. Meanwhile, in another terminal:\n"
    )?;
    writeln!(
        out,
        "  postroom -c {root}/postroom.toml explain alice+Public/info@example.org"
    )?;
    writeln!(
        out,
        "  printf 'Subject: hi\\n\\nhello\\n' | postroom-lda -c {root}/postroom.toml -d alice -m Public/info"
    )?;
    writeln!(
        out,
        "  smtp-source -L -m 100 -s 10 -t bob@example.org unix:{root}/lmtp      # Postfix's load generator"
    )?;
    writeln!(out, "  ls -l {root}/home/bob/Maildir/new")?;
    out.flush()
}

/// The throw-away mail root; gone with this value.
struct Root(PathBuf);

impl Root {
    fn make() -> io::Result<Root> {
        let nanos = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.subsec_nanos());
        let path =
            std::env::temp_dir().join(format!("postroom-demo-{}-{nanos}", std::process::id()));
        let named = |error: io::Error| {
            let why = format!("make {}: {error} (TMPDIR says where)", path.display());
            io::Error::new(error.kind(), why)
        };
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(named)?;
        let root = Root(path);
        let Credentials { uid, gid, .. } = credentials::effective();
        let mut users = String::new();
        for user in ["alice", "bob", "carol"] {
            users.push_str(&format!(
                "{user}@example.org::{uid}:{gid}::{}/home/{user}::\n",
                root.text()
            ));
            users.push_str(&format!(
                "{user}::{uid}:{gid}::{}/home/{user}::\n",
                root.text()
            ));
            fs::DirBuilder::new()
                .mode(0o700)
                .recursive(true)
                .create(root.0.join("home").join(user))?;
        }
        write(&root.0.join("users"), &users)?;
        // Nobody is writing it any more: whoever is not in it does not exist.
        let file = fs::File::options().write(true).open(root.0.join("users"))?;
        file.set_modified(SystemTime::now() - Duration::from_secs(60))?;
        root.mailbox("home/alice/Maildir/.Work", 0o700, None)?;
        root.mailbox(
            "home/bob/Maildir/.Projects",
            0o770,
            Some("user=alice@example.org lrwip\n"),
        )?;
        fs::DirBuilder::new()
            .mode(0o750)
            .create(root.0.join("public"))?;
        fs::set_permissions(root.0.join("public"), fs::Permissions::from_mode(0o2750))?;
        root.mailbox("public/.info", 0o2770, Some("anyone lrip\n"))?;
        Ok(root)
    }

    fn mailbox(&self, path: &str, mode: u32, acl: Option<&str>) -> io::Result<()> {
        let path = self.0.join(path);
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&path)?;
        for part in ["", "cur", "new", "tmp"] {
            fs::DirBuilder::new()
                .mode(mode)
                .recursive(true)
                .create(path.join(part))?;
            fs::set_permissions(path.join(part), fs::Permissions::from_mode(mode))?;
        }
        match acl {
            Some(acl) => write(&path.join("dovecot-acl"), acl),
            None => Ok(()),
        }
    }

    fn text(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // A leftover below the temporary directory harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file for its owner alone, whatever the umask.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// Speaks LMTP as an MTA would, and compares each reply with what was stated.
fn deliver_all(socket: &Path, out: &mut impl Write) -> io::Result<bool> {
    let stream = UnixStream::connect(socket)?;
    let mut peer = Peer {
        lines: BufReader::new(stream.try_clone()?),
        stream,
    };
    peer.reply()?;
    peer.say("LHLO demo.example.org")?;
    let mut all = true;
    for (number, (recipient, subject, status, holds)) in DELIVERIES.iter().enumerate() {
        peer.say("MAIL FROM:<erin@else.example>")?;
        let mut reply = peer.say(&format!("RCPT TO:<{recipient}>"))?;
        if reply.starts_with('2') {
            peer.say("DATA")?;
            let text = MESSAGE
                .replace("@RCPT@", recipient)
                .replace("@SUBJECT@", subject);
            reply = peer.say(&format!(
                "{}.",
                text.replace("@NUMBER@", &number.to_string())
            ))?;
        }
        peer.say("RSET")?;
        let as_stated = reply.starts_with(status) && reply.contains(holds);
        all &= as_stated;
        writeln!(
            out,
            "{} {recipient}  ({subject})\n     {reply}",
            if as_stated { "ok  " } else { "FAIL" }
        )?;
    }
    peer.say("QUIT")?;
    Ok(all)
}

struct Peer {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Peer {
    fn say(&mut self, line: &str) -> io::Result<String> {
        self.stream.write_all(format!("{line}\r\n").as_bytes())?;
        self.reply()
    }

    /// The last line of a reply.
    fn reply(&mut self) -> io::Result<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line.trim_end().to_owned());
            }
        }
    }
}

fn print_tree(path: &Path, root: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(path)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let meta = entry.metadata()?;
        let path = entry.path();
        let shown = path.strip_prefix(root).unwrap_or(&path).display();
        writeln!(
            out,
            "  {:04o} {}:{} {shown}{}",
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid(),
            if meta.is_dir() { "/" } else { "" }
        )?;
        if meta.is_dir() {
            print_tree(&path, root, out)?;
        }
    }
    Ok(())
}

/// One address that is delivered where it says, and one that is not.
fn explain_two(core: &Core, out: &mut impl Write) -> io::Result<()> {
    for address in [
        "alice+Public/info@example.org",
        "carol+shared/bob/Projects@example.org",
    ] {
        writeln!(out, "\n$ postroom explain {address}")?;
        let address = Address::parse(address).map_err(io::Error::other)?;
        core.inspect(&Recipient::new(address)).print(false, out)?;
    }
    Ok(())
}
