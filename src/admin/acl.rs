//! `postroom acl`: the rights of a mailbox, shown and changed, in doveadm's words.

use std::io::{self, Write};
use std::path::Path;

use clap::Subcommand;

use crate::config::Config;
use crate::deliver::targets::Wanted;
use crate::deliver::{self, Target};
use crate::fault::Code;
use crate::mailbox::acl::entry::{Entry, Identifier};
use crate::mailbox::acl::rights::KNOWN;
use crate::mailbox::acl::{Acl, Effective, Identity, Rights, Sources, store};
use crate::mailbox::location::Driver;
use crate::mailbox::permission::Permission;
use crate::maildir::create;
use crate::maildir::created::Created;
use crate::sys::{credentials, dir, process};

/// The exit codes of doveadm.
const USAGE: u8 = 64;
const NO_USER: u8 = 67;
const NO_MAILBOX: u8 = 68;
const TEMPFAIL: u8 = 75;

/// What is asked: the subcommands of `doveadm acl` but for `recalc`, which is `postroom share rebuild` here.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The entries of a mailbox
    Get {
        #[command(flatten)]
        of: Of,
        /// Only those that are about the user
        #[arg(short = 'm')]
        matching: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// The rights that the user has
    Rights {
        #[command(flatten)]
        of: Of,
    },
    /// Replace the rights of an identifier
    Set(Change),
    /// Give an identifier more rights
    Add(Change),
    /// Take rights from an identifier
    Remove(Change),
    /// Take an identifier out
    Delete {
        #[command(flatten)]
        of: Of,
        /// user=NAME, group=NAME, group-override=NAME, owner, authenticated, anyone
        identifier: String,
    },
    /// How the rights come about, entry by entry, and whether mail gets in
    Debug {
        #[command(flatten)]
        of: Of,
    },
}

/// A mailbox, as a user names it.
#[derive(Debug, clap::Args)]
pub struct Of {
    /// The user as whom
    #[arg(short, long)]
    user: String,
    /// The mailbox by its full name
    mailbox: String,
}

/// What `set`, `add` and `remove` take, as it was typed: a wrong identifier or right is exit code 64, before anything is looked up.
#[derive(Debug, clap::Args)]
pub struct Change {
    #[command(flatten)]
    of: Of,
    /// user=NAME, group=NAME, group-override=NAME, owner, authenticated, anyone
    identifier: String,
    /// lookup read write write-seen write-deleted insert post expunge create delete admin, all; -NAME takes, :NAME is of your own
    #[arg(required = true, allow_hyphen_values = true)]
    rights: Vec<String>,
}

/// What is done with the lists of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Set,
    Add,
    Remove,
}

/// Why there is no answer, and the exit code.
struct Failed(u8, String);

type Answer<T> = Result<T, Failed>;

/// Carries the command out. Exit 0, 64 wrong usage, 67 no such user, 68 no such mailbox, 75 cannot tell, 78 wrong config.
pub fn run(path: Option<&Path>, command: &Command, out: &mut impl Write) -> io::Result<u8> {
    let config = match super::load(path) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    match answer(&config, command, out) {
        Ok(()) => Ok(0),
        Err(Failed(code, why)) => {
            let _ = writeln!(io::stderr(), "postroom acl: {why}");
            Ok(code)
        }
    }
}

fn answer(config: &Config, command: &Command, out: &mut impl Write) -> Answer<()> {
    match command {
        Command::Get { of, matching, json } => get(config, of, *matching, *json, out),
        Command::Rights { of } => rights(config, of, out),
        Command::Set(change) => update(config, change, Mode::Set),
        Command::Add(change) => update(config, change, Mode::Add),
        Command::Remove(change) => update(config, change, Mode::Remove),
        Command::Delete { of, identifier } => {
            let identifier = parse_identifier(identifier)?;
            change(config, of, true, |acl| {
                acl.entries.retain(|entry| entry.identifier != identifier);
            })
        }
        Command::Debug { of } => debug(config, of, out),
    }
}

/// The mailbox as the user sees it; as root, under the identity of a delivery to him.
fn open(config: &Config, of: &Of) -> Answer<(Target, Sources)> {
    let failed = |fault: crate::fault::Fault| {
        let code = match fault.code {
            Code::NoSuchUser => NO_USER,
            _ => TEMPFAIL,
        };
        Failed(code, fault.to_string())
    };
    super::check_required_paths(&config.delivery).map_err(|why| Failed(TEMPFAIL, why))?;
    let found = deliver::mailbox_of(&config.delivery, &of.user, &of.mailbox).map_err(failed)?;
    let user = &found.user;
    if let Some(node) = &found.node {
        let why = format!("{node} has the mailboxes of {}", user.name);
        return Err(Failed(TEMPFAIL, why));
    }
    process::clear_umask();
    if credentials::is_root() {
        let become_user = credentials::become_forever(&user.credentials);
        become_user.map_err(|error| Failed(TEMPFAIL, error.to_string()))?;
    }
    let missing = format!("there is no mailbox {:?}", of.mailbox);
    let target = match found.wanted {
        Wanted::Target(target) => *target,
        Wanted::Missing { why, .. } => {
            return Err(Failed(NO_MAILBOX, format!("{missing}: {why}")));
        }
        Wanted::Denied { mailbox, why } => {
            return Err(Failed(TEMPFAIL, format!("{mailbox}: {why}")));
        }
        Wanted::Elsewhere { mailbox, places } => {
            let nodes = places.iter().map(|(_, node)| node.to_string());
            let why = format!("{} has {mailbox}", nodes.collect::<Vec<_>>().join(", "));
            return Err(Failed(TEMPFAIL, why));
        }
    };
    if target.hand_over.is_some() {
        let why = format!(
            "only Dovecot knows the rights on {:?}: doveadm acl",
            of.mailbox
        );
        return Err(Failed(TEMPFAIL, why));
    }
    let path = &target.paths.mailbox;
    let cannot_tell = |why: &str| Failed(TEMPFAIL, format!("{}: {why}", path.display()));
    match (dir::stat(path), target.driver) {
        (Ok(stat), Driver::Mbox) if stat.is_file => {}
        // Mailboxes lie in it.
        (Ok(stat), Driver::Mbox) if stat.is_dir => return Err(Failed(NO_MAILBOX, missing)),
        (Ok(_), Driver::Mbox) => return Err(cannot_tell("it is no regular file")),
        (Ok(stat), _) if stat.is_dir => {}
        (Ok(_), _) => return Err(cannot_tell("it is no directory")),
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Failed(NO_MAILBOX, missing));
        }
        (Err(error), _) => return Err(cannot_tell(&error.to_string())),
    }
    let sources = target.acl.clone();
    let sources = sources.ok_or_else(|| Failed(TEMPFAIL, "no ACL counts there".into()))?;
    Ok((target, sources))
}

fn get(config: &Config, of: &Of, matching: bool, json: bool, out: &mut impl Write) -> Answer<()> {
    let (target, sources) = open(config, of)?;
    let acl = sources
        .acl()
        .map_err(|it| Failed(TEMPFAIL, it.to_string()))?;
    let identity = identity(&target);
    let entries = acl
        .entries
        .iter()
        .filter(|entry| !matching || identity.is_named_by(&entry.identifier));
    let rows: Vec<[String; 3]> = entries
        .map(|entry| {
            let global = if entry.is_global { "global" } else { "" };
            [entry.identifier.to_string(), global.into(), names(entry)]
        })
        .collect();
    let written = match json {
        true => print_json(&rows, out),
        false => print_table(&rows, out),
    };
    written.map_err(|error| Failed(TEMPFAIL, error.to_string()))
}

/// Full names by the alphabet, those that are taken behind those that are given.
fn names(entry: &Entry) -> String {
    let list = |rights: &Option<Rights>, sign: &str| {
        let mut names: Vec<String> = rights
            .iter()
            .flat_map(|rights| rights.names())
            .map(|name| format!("{sign}{name}"))
            .collect();
        names.sort();
        names
    };
    [list(&entry.positive, ""), list(&entry.negative, "-")]
        .concat()
        .join(" ")
}

fn print_table(rows: &[[String; 3]], out: &mut impl Write) -> io::Result<()> {
    let width = rows.iter().map(|row| row[0].chars().count()).max();
    let width = width.unwrap_or(0).max("ID".len());
    writeln!(out, "{:width$} Global Rights", "ID")?;
    rows.iter()
        .try_for_each(|[id, global, rights]| writeln!(out, "{id:width$} {global:6} {rights}"))
}

fn print_json(rows: &[[String; 3]], out: &mut impl Write) -> io::Result<()> {
    let rows = rows.iter().map(
        |[id, global, rights]| serde_json::json!({ "id": id, "global": global, "rights": rights }),
    );
    writeln!(out, "{}", serde_json::Value::Array(rows.collect()))
}

fn identity(target: &Target) -> Identity<'_> {
    Identity {
        name: target.subject.name.as_deref(),
        groups: &target.subject.groups,
        is_owner: target.subject.is_owner,
    }
}

fn rights(config: &Config, of: &Of, out: &mut impl Write) -> Answer<()> {
    let (target, sources) = open(config, of)?;
    let effective = sources.effective(&identity(&target));
    let effective = effective.map_err(|it| Failed(TEMPFAIL, it.to_string()))?;
    let written = writeln!(out, "Rights\n{}", effective.rights.names().join(" "));
    written.map_err(|error| Failed(TEMPFAIL, error.to_string()))
}

fn debug(config: &Config, of: &Of, out: &mut impl Write) -> Answer<()> {
    let (target, sources) = open(config, of)?;
    let mut say =
        |text: String| writeln!(out, "{text}").map_err(|error| Failed(TEMPFAIL, error.to_string()));
    let identity = identity(&target);
    let name = identity.name.unwrap_or("nobody in particular");
    say(format!(
        "mailbox {} is {}",
        of.mailbox,
        target.paths.mailbox.display()
    ))?;
    let owner = if identity.is_owner {
        ", who owns it"
    } else {
        ""
    };
    say(format!(
        "rights of {name}{owner}, groups {:?}",
        identity.groups
    ))?;
    let effective = match sources.effective(&identity) {
        Ok(effective) => effective,
        Err(unreadable) if identity.is_owner => {
            say(format!("the owner is not stopped by {unreadable}"))?;
            of_the_owner()
        }
        Err(unreadable) => {
            say(format!("cannot tell: {unreadable}"))?;
            return Err(Failed(TEMPFAIL, "the rights cannot be told".into()));
        }
    };
    for step in &effective.trace {
        say(format!("  {} -> {}", step.entry, step.left))?;
    }
    say(format!("rights: {}", effective.rights))?;
    let verdict = match (
        target.own_inbox,
        config
            .delivery
            .acl
            .delivery_right
            .is_given_by(&effective.rights),
    ) {
        (true, _) => "mail gets in: nothing stops it on the way into the own INBOX",
        (false, true) => "mail gets in",
        (false, false) if effective.rights.lookup() => "mail does not get in: denied",
        (false, false) => "mail does not get in, as if the mailbox did not exist",
    };
    say(verdict.into())
}

/// What a delivery takes for his rights where the file says nothing.
fn of_the_owner() -> Effective {
    Effective {
        rights: Rights::all(),
        trace: Vec::new(),
    }
}

fn update(config: &Config, command: &Change, mode: Mode) -> Answer<()> {
    let identifier = parse_identifier(&command.identifier)?;
    let (given, taken) = parse_rights(&command.rights)?;
    let shows = given.as_ref().is_some_and(|given| given.lookup()) || mode == Mode::Set;
    change(config, &command.of, shows, |acl| {
        let is_there = acl
            .entries
            .iter()
            .any(|entry| entry.identifier == identifier);
        if mode == Mode::Remove && !is_there {
            return;
        }
        // What is left may be nothing, and says so: that is not the default.
        let entry = acl.entry(identifier);
        if mode == Mode::Set {
            (entry.positive, entry.negative) = (None, None);
        }
        apply(&mut entry.positive, given, mode);
        apply(&mut entry.negative, taken, mode);
    })
}

fn apply(list: &mut Option<Rights>, rights: Option<Rights>, mode: Mode) {
    let Some(rights) = rights else { return };
    match (mode, list) {
        (Mode::Set, list) => *list = Some(rights),
        (Mode::Add, list) => list.get_or_insert_default().add(&rights),
        (Mode::Remove, Some(list)) => *list = list.without(&rights),
        (Mode::Remove, None) => {}
    }
}

/// Changes the mailbox's file, and what tells others of its mailboxes.
fn change(config: &Config, of: &Of, renew: bool, change: impl FnOnce(&mut Acl)) -> Answer<()> {
    let (target, sources) = open(config, of)?;
    let no_own = || {
        Failed(
            TEMPFAIL,
            "the files of mailboxes do not count (acl.globals_only)".into(),
        )
    };
    let directory = sources.own.ok_or_else(no_own)?;
    let made = match target.driver {
        Driver::Mbox => make(&directory)?,
        Driver::Maildir | Driver::Sdbox | Driver::Mdbox => Created::default(),
    };
    store::update(&directory, change).map_err(|error| Failed(TEMPFAIL, error.to_string()))?;
    made.keep();
    if renew && let Some(owner) = &target.owner {
        let said = match super::share::follow(config, owner) {
            Ok(None) => None,
            Ok(Some(why)) => Some(format!(
                "the rights are set; rows of {owner} in the sharing map stay that may be too many: {why}"
            )),
            Err(super::share::Failed(_, why)) => {
                Some(format!("the rights are set, the sharing map is not: {why}"))
            }
        };
        if let Some(said) = said {
            let _ = writeln!(io::stderr(), "postroom acl: {said}");
        }
    }
    if renew && let Err(error) = store::renew_list(&target.paths, target.layout, target.driver) {
        // The rights are as they were asked for; who may see the mailbox finds it by its name.
        let place = store::list_root(&target.paths, target.driver).join(store::LIST);
        let _ = writeln!(io::stderr(), "postroom acl: {}: {error}", place.display());
    }
    Ok(())
}

/// The directory beside an mbox, for its file: with the mode and group of the one that is there.
fn make(directory: &Path) -> Answer<Created> {
    let failed = |error: io::Error| Failed(TEMPFAIL, format!("{}: {error}", directory.display()));
    let (above, stat) = dir::nearest_existing(directory).map_err(failed)?;
    let made = create::directory(directory, &Permission::of(&stat, &above));
    let (_, created) = made.map_err(|fault| Failed(TEMPFAIL, fault.to_string()))?;
    Ok(created)
}

fn parse_identifier(text: &str) -> Answer<Identifier> {
    let odd = text.contains(char::is_control) || text.len() > 1024;
    let identifier = Identifier::parse(text).filter(|_| !odd);
    identifier.ok_or_else(|| Failed(USAGE, format!("Invalid ID: {text:?}")))
}

fn parse_rights(words: &[String]) -> Answer<(Option<Rights>, Option<Rights>)> {
    let (mut given, mut taken) = (None, None);
    for word in words.iter().flat_map(|words| words.split_whitespace()) {
        let (list, name) = match word.strip_prefix('-') {
            Some(name) => (&mut taken, name),
            None => (&mut given, word),
        };
        let rights: &mut Rights = list.get_or_insert_default();
        match name.strip_prefix(':') {
            Some(name) if !name.contains(char::is_control) && !name.is_empty() => {
                rights.add_name(name)
            }
            _ if name == "all" => rights.add(&Rights::all()),
            _ if KNOWN.iter().any(|(_, known)| *known == name) => rights.add_name(name),
            _ => return Err(Failed(USAGE, format!("Invalid right {name:?}"))),
        }
    }
    Ok((given, taken))
}
