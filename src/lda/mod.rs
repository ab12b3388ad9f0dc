//! The stdin LDA: one message from a pipe, into the mailboxes of one user or of some addresses.
//!
//! | file | what it is |
//! |---|---|
//! | [`options`] | the command line and the environment, in dovecot-lda's words |
//! | [`input`] | stdin, or a file, on its way into a body |
//! | [`hand_over`] | to the running server, where the rights of this process do not suffice |
//! | [`wire`] | what is said there |
//! | [`exit`] | the only exit codes that there are |
//!
//! All work is done by a child, what touches mail under the identity of the user; the process that the MTA started only
//! waits for it and turns its end, however abnormal, into one of five exit codes. An MTA retries 75 and believes the others.

pub mod exit;
pub mod hand_over;
pub mod input;
pub mod options;
pub mod wire;

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::config::{self, Config};
use crate::deliver::{
    self, Answers, Core, Done, Outcome, Remembered, Report, Retry, Settings, Transaction,
};
use crate::fault::{Code, Fault};
use crate::log::{self, Entry};
use crate::message::body::Spool;
use crate::message::{Envelope, Message, Recipient, ReversePath, Trace, header};
use crate::run::relay::Relay;
use crate::run::{Next, dovecot};
use crate::sys::credentials::{self, Credentials};
use crate::sys::dir::Dir;
use crate::sys::process;
use crate::sys::socket::is_null;
use crate::user::{Userdb, passwd};
use exit::{TEMPFAIL, worst};
use input::Input;
use options::{Options, Refused};
use wire::Offer;

/// Delivers what the command line and stdin say. Answers the exit code.
pub fn run(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> u8 {
    process::close_inherited();
    // Neither of the two calls can fail, and mail is not held up for them.
    let _ = process::keep_private();
    if process::is_privileged_by_file() {
        say(
            "4.3.0",
            "postroom-lda must not be set-user-ID or have file capabilities",
        );
        return TEMPFAIL;
    }
    log_panics();
    // It cannot fail for this signal; without it, a write to stderr could end this process.
    let _ = process::ignore_file_size_signal();
    // At once: what this process has in memory the other one must copy.
    in_child(None, || {
        begin_log();
        work(arguments)
    })
}

fn begin_log() {
    log::init(match io::stderr().is_terminal() {
        true => log::Target::Text,
        false => log::Target::from_environment(log::Target::Syslog("postroom-lda")),
    });
}

/// Does `work` in a process of its own: whatever becomes of that one, this one leaves with a code that an MTA knows.
fn in_child(identity: Option<&Credentials>, work: impl FnOnce() -> u8) -> u8 {
    exit::of_child(process::in_child(identity, work)).unwrap_or_else(|why| {
        begin_log();
        let fault = Fault::new(Code::Internal, "wait for the delivery", why);
        complain(None, &fault);
        TEMPFAIL
    })
}

fn work(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> u8 {
    let options = match Options::parse(arguments) {
        Ok(options) => options,
        Err(refused) => return refuse(refused),
    };
    match prepare(options) {
        Ok(job) => job.run(),
        Err(fault) => {
            complain(None, &fault);
            TEMPFAIL
        }
    }
}

/// A panic is a line in the log, not a letter to the sender: stderr travels into bounces.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        begin_log();
        tracing::error!(panic = panic.to_string().as_str(), "panicked");
    }));
}

fn refuse(refused: Refused) -> u8 {
    match refused {
        // In a pipe nobody reads it, and the mail must not be gone.
        Refused::Shown(text) => {
            let written = io::stdout().write_all(text.as_bytes());
            exit::of_a_look(written.map_or(TEMPFAIL, |()| 0))
        }
        Refused::Usage(why) => {
            say("4.3.5", &why);
            exit::of_wrong_usage()
        }
        Refused::NotYet(why) => {
            say("4.3.5", &why);
            TEMPFAIL
        }
        Refused::NoAddress(why) => {
            drain(&mut io::stdin());
            let (_, status) = Code::BadAddress.smtp();
            say(status, &format!("{}: {why}", Code::BadAddress.text()));
            Code::BadAddress.exit()
        }
    }
}

/// What is to be done, for whom.
struct Job {
    options: Options,
    core: Core,
    recipients: Vec<Recipient>,
    spool: Spool,
    /// Where a running server takes the message, if the rights of this process do not suffice.
    server: Option<PathBuf>,
}

/// Those recipients that one identity delivers for. None: this process as it is.
struct Group {
    identity: Option<Credentials>,
    recipients: Vec<Recipient>,
    /// What root was told of them: the identity may not be allowed to ask.
    answers: Answers,
}

fn prepare(options: Options) -> Result<Job, Fault> {
    let unusable = |why: String| Fault::new(Code::CannotTell, "begin", why);
    let mut config = config::load_with(options.config.as_deref(), &options.overrides)
        .map_err(|errors| unusable(errors.to_string()))?;
    if config.path.is_none() && (options.user.is_some() || !options.addresses.is_empty()) {
        let why = "no configuration: the built-in one is for a user who delivers to himself";
        return Err(
            unusable(why.into()).with_advice("write /etc/postroom/postroom.toml, or give -c FILE")
        );
    }
    let is_believed =
        || credentials::is_root() || config.service.mail_uid == Some(credentials::effective().uid);
    if options.authenticated.is_some() && !is_believed() {
        let why = "only root and mail_uid can say who sends (--authenticated)";
        return Err(unusable(why.into()));
    }
    let recipients = recipients(&options, &mut config).map_err(unusable)?;
    process::clear_umask();
    let system = |error: io::Error| Fault::io("begin", &error);
    std::env::set_current_dir("/").map_err(system)?;
    let spool = spool(&config, &recipients);
    let server = server(&options, &config);
    let core = Core::new(config.delivery);
    Ok(Job {
        options,
        core,
        recipients,
        spool,
        server,
    })
}

/// The addresses of the command line, the user of `-d`, or the user who runs this.
fn recipients(options: &Options, config: &mut Config) -> Result<Vec<Recipient>, String> {
    if !options.addresses.is_empty() {
        let mut recipients: Vec<Recipient> = Vec::new();
        for address in &options.addresses {
            // The same one twice is one message, as over LMTP.
            if !recipients.iter().any(|it| it.address.is_same_as(address)) {
                recipients.push(options.complete(Recipient::new(address.clone())));
            }
        }
        return Ok(recipients);
    }
    if let Some(user) = &options.user {
        return Ok(vec![options.complete_user(Recipient::of_user(user))]);
    }
    if credentials::is_root() {
        return Err("as root it needs -d USER or a RECIPIENT: root has no mailbox here".into());
    }
    let user = passwd::current().map_err(|unavailable| unavailable.to_string())?;
    let recipient = Recipient::of_user(&user.name);
    // Last: what a userdb says of him counts, and he exists in any case.
    config
        .delivery
        .userdbs
        .list
        .push(Userdb::Current(Box::new(user)));
    Ok(vec![options.complete_user(recipient)])
}

/// The server goes by its own configuration and knows users only; root needs none.
fn server(options: &Options, config: &Config) -> Option<PathBuf> {
    let is_own = options.config.is_some() || !options.overrides.is_empty();
    let says_more = !options.addresses.is_empty() || options.authenticated.is_some();
    if is_own || says_more || credentials::is_root() {
        return None;
    }
    config.lda_server.socket().map(Path::to_owned)
}

/// Where a large message waits: best on the file system of the mailbox.
fn spool(config: &Config, recipients: &[Recipient]) -> Spool {
    let mut dirs: Vec<PathBuf> = config.delivery.spool_dir.iter().cloned().collect();
    if let [recipient] = recipients
        && let Ok(user) = deliver::user_of(&config.delivery, recipient)
    {
        dirs.extend(user.home);
    }
    dirs.extend(["/var/tmp".into(), "/tmp".into()]);
    Spool::of(dirs)
}

impl Job {
    fn run(&self) -> u8 {
        let (groups, refused) = self.groups();
        if self.options.dry_run {
            let plans = groups
                .iter()
                .map(|group| self.in_child(group, |job| job.explain(group)));
            return exit::of_a_look(worst(refused.into_iter().chain(plans)));
        }
        if self.options.file.is_none() && is_null(&io::stdin()) {
            let why = "it is closed, or /dev/null";
            complain(
                None,
                &Fault::new(Code::CannotTell, "read the message on stdin", why),
            );
            return TEMPFAIL;
        }
        match (groups.as_slice(), refused) {
            ([group], None) => self.in_child(group, |job| job.deliver_from_stdin(group)),
            (_, None) => self.deliver_to_several(&groups),
            (_, Some(code)) => {
                let plans = groups
                    .iter()
                    .map(|group| self.in_child(group, |job| job.plan(group)));
                let code = worst([code].into_iter().chain(plans));
                drain(&mut io::stdin());
                code
            }
        }
    }

    /// Who delivers for whom. As root, whoever is not known or cannot be looked up is refused here.
    fn groups(&self) -> (Vec<Group>, Option<u8>) {
        if !credentials::is_root() {
            let recipients = self.recipients.clone();
            return (
                vec![Group {
                    identity: None,
                    recipients,
                    answers: Answers::default(),
                }],
                None,
            );
        }
        let (mut groups, mut refused) = (Vec::<Group>::new(), None);
        for recipient in &self.recipients {
            let (targets, answers) = match self.core.look_up(recipient, None) {
                Ok(looked_up) => looked_up,
                Err(fault) => {
                    self.refuse(recipient, fault.clone());
                    if self.options.dry_run {
                        self.print(&Report::failed(recipient.shown(), fault.clone()));
                    }
                    refused = Some(worst(refused.into_iter().chain([fault.code.exit()])));
                    continue;
                }
            };
            let identity = Some(targets.user.credentials);
            match groups.iter_mut().find(|group| group.identity == identity) {
                Some(group) => {
                    group.recipients.push(recipient.clone());
                    group.answers.extend(answers);
                }
                None => groups.push(Group {
                    identity,
                    recipients: vec![recipient.clone()],
                    answers,
                }),
            }
        }
        (groups, refused)
    }

    fn in_child(&self, group: &Group, work: impl FnOnce(&Job) -> u8) -> u8 {
        match &group.identity {
            Some(_) => in_child(group.identity.as_ref(), || work(self)),
            None => work(self),
        }
    }

    fn directory<'a>(&'a self, group: &'a Group) -> Remembered<'a> {
        Remembered {
            answers: &group.answers,
            otherwise: self.core.settings(),
        }
    }

    /// The decisions, those of Dovecot's LMTP server among them.
    fn inspect(&self, group: &Group, recipient: &Recipient) -> Report {
        let report = self.core.inspect_with(&self.directory(group), recipient);
        if report.hand_over.is_none() {
            return report;
        }
        let (settings, shown) = (self.core.settings(), report.recipient.clone());
        let asked = with_dovecot(settings, async |relay| {
            dovecot::ask(relay, settings, recipient, report).await
        });
        asked.unwrap_or_else(|fault| Report::failed(shown, fault))
    }

    /// The decisions, printed.
    fn explain(&self, group: &Group) -> u8 {
        let reports = group
            .recipients
            .iter()
            .map(|recipient| self.inspect(group, recipient));
        let code = |report: Report| {
            self.print(&report);
            report.fault.map_or(0, |fault| fault.code.exit())
        };
        worst(reports.map(code))
    }

    fn print(&self, report: &Report) {
        // Whoever does not read it does not need it; the exit code stands.
        let _ = report.print(self.options.json, &mut io::stdout());
    }

    /// The decisions; only refusals are told.
    fn plan(&self, group: &Group) -> u8 {
        worst(
            group
                .recipients
                .iter()
                .map(|recipient| match self.inspect(group, recipient).fault {
                    None => 0,
                    Some(fault) => self.refuse(recipient, fault),
                }),
        )
    }

    /// The plain case: one identity.
    fn deliver_from_stdin(&self, group: &Group) -> u8 {
        let planned = if group.recipients.len() > 1 {
            self.plan(group)
        } else {
            0
        };
        if planned != 0 {
            drain(&mut io::stdin());
            return planned;
        }
        let server = self.server.as_deref();
        let server = server.filter(|_| group.recipients.iter().any(|it| self.needs_server(it)));
        let store = |source: &mut dyn Read, is_mbox| match server {
            Some(server) => self.hand_over(server, &group.recipients[0], source, is_mbox),
            None => self.deliver(group, source, is_mbox),
        };
        match &self.options.file {
            None => store(&mut io::stdin().lock(), true),
            // Opened here, with the rights of the user.
            Some(path) => match File::open(path) {
                Ok(mut file) => store(&mut file, false),
                Err(error) => {
                    complain(None, &Fault::io(format!("open {}", path.display()), &error));
                    TEMPFAIL
                }
            },
        }
    }

    /// Whether this process cannot do what the user could, as the userdb describes him.
    fn needs_server(&self, recipient: &Recipient) -> bool {
        let targets = match self.core.look_up(recipient, None) {
            Ok((targets, _)) => targets,
            // The server may be able to ask.
            Err(fault) => return fault.code == Code::CannotTell,
        };
        if credentials::effective().include(&targets.user.credentials) {
            return false;
        }
        let report = self.core.inspect(recipient);
        let has_routes = !self.core.settings().routes.is_empty();
        has_routes
            || report.fault.is_some()
            || report.mailbox.as_deref() != Some(targets.wanted_name())
    }

    /// The server stores the message, or says why not.
    fn hand_over(
        &self,
        server: &Path,
        recipient: &Recipient,
        source: &mut dyn Read,
        is_mbox: bool,
    ) -> u8 {
        let limit = self.core.settings().message_size;
        let input = match input::read(source, is_mbox, &self.spool, limit) {
            Ok(input) => input,
            Err(fault) => return self.refuse(recipient, fault),
        };
        let options = &self.options;
        let sender = options.sender.clone().or(input.sender);
        let offer = Offer {
            user: options.user.clone(),
            last: options.last.clone(),
            original: options.original.clone(),
            sender: sender.unwrap_or(ReversePath::Null),
            mailbox: options.mailbox.clone(),
            detail: options.detail.clone(),
            flags: options.flags,
            keywords: options.keywords.clone(),
            size: input.body.size(),
        };
        match hand_over::hand_over(server, &offer, &input.body) {
            Ok(()) => 0,
            Err(fault) => self.refuse(recipient, fault),
        }
    }

    /// As root, for users of several uids: a child for each plans, then a child for each delivers. Stdin is read once, by
    /// the first of them, into a file without a name.
    fn deliver_to_several(&self, groups: &[Group]) -> u8 {
        let planned = worst(
            groups
                .iter()
                .map(|group| self.in_child(group, |job| job.plan(group))),
        );
        let Some(first) = groups.first().filter(|_| planned == 0) else {
            drain(&mut io::stdin());
            return planned;
        };
        if self.options.file.is_some() {
            let why = "several users and -p: whose file would that be?";
            complain(None, &Fault::new(Code::CannotTell, "read -p", why));
            return TEMPFAIL;
        }
        let spooled = match self
            .spool
            .dirs
            .iter()
            .find_map(|dir| Dir::open(dir).ok()?.anonymous_file().ok())
        {
            Some(file) => file,
            None => {
                complain(
                    None,
                    &Fault::new(
                        Code::Storage,
                        "spool the message",
                        "no spool directory takes a file",
                    ),
                );
                return TEMPFAIL;
            }
        };
        let copied = self.in_child(first, |_| {
            match io::copy(&mut io::stdin().lock(), &mut &spooled) {
                Ok(_) => 0,
                Err(error) => {
                    complain(None, &Fault::io("spool the message", &error));
                    drain(&mut io::stdin());
                    TEMPFAIL
                }
            }
        });
        if copied != 0 {
            return copied;
        }
        for (done, group) in groups.iter().enumerate() {
            let code = self.in_child(group, |job| {
                let mut file = &spooled;
                match file.seek(SeekFrom::Start(0)) {
                    Ok(_) => job.deliver(group, &mut file, true),
                    Err(_) => TEMPFAIL,
                }
            });
            if code != 0 {
                return if done == 0 { code } else { TEMPFAIL };
            }
        }
        0
    }

    /// Stores the message for everyone of the group, or says why not. What is stored is stored: after that only 75.
    fn deliver(&self, group: &Group, source: &mut dyn Read, is_mbox: bool) -> u8 {
        let began = Instant::now();
        let limit = self.core.settings().message_size;
        let input = match input::read(source, is_mbox, &self.spool, limit) {
            Ok(input) => input,
            Err(fault) => {
                return worst(
                    group
                        .recipients
                        .iter()
                        .map(|recipient| self.refuse(recipient, fault.clone())),
                );
            }
        };
        let message_id = header::message_id(input.body.head());
        let message = Arc::new(self.message(input));
        let transaction = self
            .core
            .transaction(Arc::clone(&message), group.recipients.len());
        for (done, recipient) in group.recipients.iter().enumerate() {
            let outcome = self.deliver_to(group, &transaction, recipient);
            outcome.tell(
                Entry {
                    message_id: message_id.as_deref(),
                    took: began.elapsed(),
                    sender: &message.envelope.sender.to_string(),
                    ..self.entry(recipient, &recipient.shown(), &message.trace.session)
                },
                log::delivery,
            );
            if let Some(fault) = outcome.fault() {
                complain(Some(recipient), fault);
                return if done == 0 {
                    fault.code.exit()
                } else {
                    TEMPFAIL
                };
            }
        }
        0
    }

    /// The whole delivery to one recipient, also where Dovecot's LMTP server makes it.
    fn deliver_to(
        &self,
        group: &Group,
        transaction: &Transaction,
        recipient: &Recipient,
    ) -> Outcome {
        let directory = self.directory(group);
        // Whoever called knows the exit code: nothing is sent again unheard.
        let retry = Retry::default();
        let mut recipient = recipient.clone();
        loop {
            let done = self
                .core
                .deliver_with(&directory, transaction, &recipient, &retry);
            if let Done::Outcome(outcome) = done {
                return outcome;
            }
            let settings = self.core.settings();
            let message = transaction.shared_message();
            let finished = with_dovecot(settings, async |relay| {
                dovecot::finish(relay, settings, done, &recipient, message, &|| true, false).await
            });
            match finished {
                Ok(Next::Here(again)) => recipient = *again,
                Ok(Next::Answered(outcome)) => return outcome,
                Err(fault) => return Outcome::refused(fault),
            }
        }
    }

    fn message(&self, input: Input) -> Message {
        let sender = self.options.sender.clone().or(input.sender);
        let envelope = Envelope {
            sender: sender.unwrap_or(ReversePath::Null),
            queue_id: None,
        };
        // No `received`: the MTA has written those fields.
        Message {
            envelope,
            body: input.body,
            trace: Trace {
                session: session(),
                received: None,
            },
        }
    }

    /// Tells stderr and the log; answers the exit code.
    fn refuse(&self, recipient: &Recipient, fault: Fault) -> u8 {
        complain(Some(recipient), &fault);
        let code = fault.code.exit();
        let sender = self
            .options
            .sender
            .as_ref()
            .map(ReversePath::to_string)
            .unwrap_or_default();
        Outcome::refused(fault).tell(
            Entry {
                sender: &sender,
                ..self.entry(recipient, &recipient.shown(), &session())
            },
            log::delivery,
        );
        code
    }

    fn entry<'a>(&self, recipient: &'a Recipient, shown: &'a str, session: &'a str) -> Entry<'a> {
        Entry {
            session,
            recipient: shown,
            original: recipient.original.as_deref(),
            ..Entry::default()
        }
    }
}

/// Talks to Dovecot's LMTP server.
fn with_dovecot<T>(settings: &Settings, talk: impl AsyncFnOnce(&Relay) -> T) -> Result<T, Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::io("talk to Dovecot", &error))?;
    let relay = Relay::plain(&settings.hostname);
    Ok(runtime.block_on(talk(&relay)))
}

fn session() -> String {
    format!("lda-{}", std::process::id())
}

/// The line that an MTA takes over into its log and its bounces: nothing in it that a sender may not read.
fn complain(recipient: Option<&Recipient>, fault: &Fault) {
    let (_, status) = fault.code.smtp();
    match recipient {
        Some(recipient) => say(
            status,
            &format!("<{}> {}", recipient.shown(), fault.code.text()),
        ),
        None => {
            tracing::error!(fault = fault.to_string().as_str(), "nothing delivered");
            say(status, fault.code.text());
        }
    }
}

fn say(status: &str, text: &str) {
    let printable: String = text
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    let _ = writeln!(io::stderr(), "{status} {printable}");
}

/// Reads on to the end: an MTA that cannot write everything may take that for the result.
fn drain(source: &mut dyn Read) {
    let _ = io::copy(source, &mut io::sink());
}

/// What the child of the user does, in this process.
#[cfg(test)]
pub fn deliver_here(core: Core, recipients: Vec<Recipient>, message: &mut dyn Read) -> u8 {
    let job = Job {
        options: Options::parse(["postroom-lda".into()]).ok().unwrap(),
        core,
        recipients: recipients.clone(),
        spool: Spool::default(),
        server: None,
    };
    let group = Group {
        identity: None,
        recipients,
        answers: Answers::default(),
    };
    let planned = match group.recipients.len() > 1 {
        true => job.plan(&group),
        false => 0,
    };
    match planned {
        0 => job.deliver(&group, message, true),
        refused => refused,
    }
}
