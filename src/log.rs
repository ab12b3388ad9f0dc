//! Where log lines go, and the one line that tells of a delivery.
//!
//! Values are quoted and escaped by the formatter, so that nothing that came from a client can end a line or start another;
//! messages are fixed sentences.

use std::io::{self, IsTerminal, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::fmt::{FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{registry, reload};

/// Where syslog listens.
pub const SYSLOG: &str = "/dev/log";

/// Bytes of one syslog datagram: longer ones are cut, some daemons drop them whole.
const MAX_DATAGRAM: usize = 8192;
/// The facility `mail` (RFC 3164).
const FACILITY_MAIL: u8 = 2;

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Lines on stderr, with a time where that is a terminal or a file; the journal adds its own.
    Text,
    /// One JSON object per line on stderr.
    Json,
    /// Entries of the journal, with each fact as a field of its own (`POSTROOM_RCPT=…`). On stderr where there is no journal.
    Journal,
    /// Datagrams to `/dev/log` under this name, facility mail. Nothing at all where nobody listens.
    Syslog(&'static str),
}

impl Target {
    /// `usual`, or what `POSTROOM_LOG` in the environment says: `json`, `journal`.
    pub fn from_environment(usual: Target) -> Target {
        match std::env::var("POSTROOM_LOG").as_deref() {
            Ok("json") => Target::Json,
            Ok("journal") => Target::Journal,
            _ => usual,
        }
    }
}

/// Sets up logging for the whole process, level info, `RUST_LOG` may say otherwise. A second call changes nothing.
pub fn init(target: Target) {
    // What does not parse is left out without a word: stderr is for status lines.
    let wanted = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default();
    if let (Target::Syslog(name), "") = (&target, wanted.as_str()) {
        // An error means that logging is set up already.
        let _ = tracing::subscriber::set_global_default(Syslog::new(name, SYSLOG));
        return;
    }
    let usual = || EnvFilter::builder().with_default_directive(Level::INFO.into());
    let filter = usual()
        .parse(wanted)
        .unwrap_or_else(|_| usual().parse_lossy(""));
    if target == Target::Journal
        && let Ok(journal) = to_journal()
    {
        let (journal, handle) = reload::Layer::new(Some(journal));
        // An error means that logging is set up already.
        if registry().with(filter).with(journal).try_init().is_ok() {
            let _ = FORKED.set(Box::new(move || {
                // The number of the old descriptor may be that of another by now.
                let journal = to_journal().inspect_err(|error| {
                    let _ = writeln!(
                        io::stderr(),
                        "postroom: nothing is logged: the journal: {error}"
                    );
                });
                let journal = journal.ok();
                let _ = handle.modify(|it| std::mem::forget(std::mem::replace(it, journal)));
            }));
        }
        return;
    }
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false);
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some() && !io::stderr().is_terminal();
    // An error means that logging is set up already.
    let _ = match target {
        Target::Text | Target::Journal if in_journal => {
            lines.without_time().with_writer(|| Stderr).try_init()
        }
        Target::Text | Target::Journal => lines.with_writer(|| Stderr).try_init(),
        Target::Json => lines
            .json()
            .flatten_event(true)
            .with_writer(|| Stderr)
            .try_init(),
        Target::Syslog(name) => lines
            .without_time()
            .with_level(false)
            .with_writer(Syslog::new(name, SYSLOG))
            .try_init(),
    };
}

/// What a child does for the log whose descriptors were closed.
static FORKED: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// To be called in a child that has closed the descriptors of its parent, before it says anything.
pub fn forked() {
    if let Some(forked) = FORKED.get() {
        forked();
    }
}

fn to_journal() -> io::Result<tracing_journald::Layer> {
    Ok(tracing_journald::layer()?.with_field_prefix(Some("POSTROOM".into())))
}

/// The end of one delivery, or of a recipient that was refused. What is none is left out of the line.
#[derive(Debug, Clone, Default)]
pub struct Entry<'a> {
    /// The id that the reply carries.
    pub session: &'a str,
    /// The MTA's queue id.
    pub queue_id: Option<&'a str>,
    /// Where the MTA has it from: `mail.example.org[192.0.2.1]`.
    pub client: Option<&'a str>,
    pub recipient: &'a str,
    /// ORCPT or `-a`.
    pub original: Option<&'a str>,
    /// Empty for `<>`.
    pub sender: &'a str,
    pub message_id: Option<&'a str>,
    /// The mailbox that was asked for, where the final one differs, and why it does.
    pub wanted: Option<&'a str>,
    pub why: Option<&'a str>,
    /// The final mailbox.
    pub mailbox: Option<&'a str>,
    pub user: Option<&'a str>,
    /// The server that has stored it, where it was another one.
    pub node: Option<&'a str>,
    /// How Dovecot was given it, which knows the final mailbox.
    pub handed_over: Option<&'a str>,
    /// The IMAP UID.
    pub uid: Option<u32>,
    pub file: Option<&'a str>,
    /// Bytes on disk.
    pub size: Option<u64>,
    pub mode: Option<u32>,
    pub gid: Option<u32>,
    pub took: Duration,
    /// Of that, waiting for locks, and for the disk.
    pub locked: Duration,
    pub synced: Duration,
    /// The enhanced status code: `2.0.0`.
    pub code: &'a str,
    /// What failed, why, and what mends it.
    pub fault: Option<&'a str>,
    pub remarks: &'a [String],
    /// It was there already.
    pub is_again: bool,
}

/// Logs one line for one recipient: `stored`, `duplicate`, `deferred` or `rejected`, then the facts.
pub fn delivery(entry: &Entry<'_>) {
    let mode = entry.mode.map(|mode| format!("{mode:04o}"));
    let remarks = (!entry.remarks.is_empty()).then(|| entry.remarks.join("; "));
    macro_rules! line {
        ($what:literal) => {
            tracing::info!(
                session = entry.session,
                queue_id = entry.queue_id,
                client = entry.client,
                rcpt = entry.recipient,
                orcpt = entry.original,
                from = entry.sender,
                msgid = entry.message_id,
                wanted = entry.wanted,
                why = entry.why,
                mailbox = entry.mailbox,
                user = entry.user,
                node = entry.node,
                handed_over = entry.handed_over,
                uid = entry.uid,
                file = entry.file,
                size = entry.size,
                mode = mode.as_deref(),
                gid = entry.gid,
                ms = entry.took.as_millis() as u64,
                lock_ms = millis(entry.locked),
                sync_ms = millis(entry.synced),
                dsn = entry.code,
                fault = entry.fault,
                remarks = remarks.as_deref(),
                $what
            )
        };
    }
    match entry.code.as_bytes().first() {
        Some(b'2') if entry.is_again => line!("duplicate"),
        Some(b'2') => line!("stored"),
        Some(b'5') => line!("rejected"),
        _ => line!("deferred"),
    }
}

fn millis(duration: Duration) -> Option<u64> {
    u64::try_from(duration.as_millis())
        .ok()
        .filter(|&millis| millis > 0)
}

/// Stderr that never fails: a log on a full disk, or one that nobody reads any more, must not cost mail.
struct Stderr;

impl io::Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes each line as one datagram (RFC 3164): `<22>name[pid]: line`.
#[derive(Debug, Clone)]
struct Syslog {
    name: &'static str,
    path: PathBuf,
    /// None where it could not be made; then nothing is logged.
    socket: Option<Arc<UnixDatagram>>,
}

/// One line on its way; sent when it is dropped.
struct Datagram<'a> {
    syslog: &'a Syslog,
    line: Vec<u8>,
}

impl Syslog {
    fn new(name: &'static str, path: impl AsRef<Path>) -> Syslog {
        let socket = UnixDatagram::unbound().and_then(|socket| {
            // A syslogd that hangs must not hold up mail.
            socket.set_nonblocking(true)?;
            Ok(Arc::new(socket))
        });
        Syslog {
            name,
            path: path.as_ref().into(),
            socket: socket.ok(),
        }
    }

    fn datagram(&self, level: &Level) -> Datagram<'_> {
        let severity = match *level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let head = format!(
            "<{}>{}[{}]: ",
            FACILITY_MAIL * 8 + severity,
            self.name,
            std::process::id()
        );
        Datagram {
            syslog: self,
            line: head.into_bytes(),
        }
    }
}

/// The usual lines without the filters and the registry of spans of `tracing_subscriber`, which an LDA would make for one line.
impl Subscriber for Syslog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = String::new();
        if DefaultFields::new()
            .format_fields(Writer::new(&mut line), event)
            .is_ok()
        {
            let mut datagram = self.datagram(event.metadata().level());
            datagram.line.extend_from_slice(line.as_bytes());
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Datagram<'a>;

    fn make_writer(&'a self) -> Datagram<'a> {
        self.datagram(&Level::INFO)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Datagram<'a> {
        self.datagram(meta.level())
    }
}

impl io::Write for Datagram<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Datagram<'_> {
    fn drop(&mut self) {
        let line = self.line.trim_ascii_end();
        if let Some(socket) = &self.syslog.socket {
            // Nobody listens, or not fast enough: mail goes on.
            let _ = socket.send_to(&line[..line.len().min(MAX_DATAGRAM)], &self.syslog.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(entry: &Entry<'_>, json: bool) -> String {
        let lines = Lines::default();
        let made = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_target(false)
            .without_time();
        let subscriber = subscriber.with_writer(move || made.clone());
        match json {
            true => tracing::subscriber::with_default(
                subscriber.json().flatten_event(true).finish(),
                || delivery(entry),
            ),
            false => tracing::subscriber::with_default(subscriber.finish(), || delivery(entry)),
        }
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn one_line_with_all_that_is_known() {
        let entry = Entry {
            session: "id:T2",
            recipient: "a+Work@x",
            sender: "s@y",
            wanted: Some("Work"),
            why: Some("missing"),
            mailbox: Some("INBOX"),
            uid: Some(17),
            mode: Some(0o660),
            took: Duration::from_millis(3),
            code: "2.0.0",
            ..Entry::default()
        };
        let want = "INFO stored session=\"id:T2\" rcpt=\"a+Work@x\" from=\"s@y\" wanted=\"Work\" why=\"missing\" \
                    mailbox=\"INBOX\" uid=17 mode=\"0660\" ms=3 dsn=\"2.0.0\"\n";
        assert_eq!(logged(&entry, false).trim_start(), want);
    }

    #[test]
    fn what_a_client_sent_stays_within_its_quotes() {
        let evil = "a\nINFO stored\r\u{1b}[2J\u{202e}\0\" uid=1";
        let entry = Entry {
            recipient: evil,
            sender: evil,
            message_id: Some(evil),
            mailbox: Some(evil),
            code: "4.2.0",
            ..Entry::default()
        };
        for json in [false, true] {
            let line = logged(&entry, json);
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert!(!line.trim_end().chars().any(char::is_control), "{line:?}");
            assert!(line.contains("deferred"), "{line}");
        }
        assert!(
            logged(&entry, false).contains(r#"rcpt="a\nINFO stored\r\u{1b}[2J\u{202e}\0\" uid=1""#)
        );
    }

    #[test]
    fn syslog_gets_one_datagram_per_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::new("postroom-lda", &path);
        let log = || {
            delivery(&Entry {
                recipient: "a\n\"\u{1b}[2J\u{202e}",
                message_id: Some("<1@x>"),
                uid: Some(17),
                code: "2.0.0",
                ..Entry::default()
            });
            tracing::warn!("careful");
            tracing::debug!("nobody wants to know");
        };
        let receive = || {
            let mut bytes = [0; 1000];
            let length = daemon.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..length].to_vec()).unwrap()
        };
        let pid = std::process::id();
        let all = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .with_level(false)
            .with_writer(syslog.clone());
        tracing::subscriber::with_default(all.finish(), log);
        let first = receive();
        let head =
            format!("<22>postroom-lda[{pid}]: stored session=\"\" rcpt=\"a\\n\\\"\\u{{1b}}[2J");
        assert!(first.starts_with(&head), "{first}");
        assert_eq!(receive(), format!("<20>postroom-lda[{pid}]: careful"));
        // The same without filters and spans.
        tracing::subscriber::with_default(syslog, log);
        assert_eq!(receive(), first);
        assert_eq!(receive(), format!("<20>postroom-lda[{pid}]: careful"));
        daemon.set_nonblocking(true).unwrap();
        assert!(daemon.recv(&mut [0; 1]).is_err());
    }

    #[test]
    fn without_syslog_nothing_happens() {
        let syslog = Syslog::new("postroom-lda", "/nonexistent/log");
        let subscriber = tracing_subscriber::fmt().with_writer(syslog).finish();
        tracing::subscriber::with_default(subscriber, || tracing::info!("lost"));
    }
}
