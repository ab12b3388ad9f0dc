//! `postroom doctor`: what is wrong in the files of mailboxes, and what mends it.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::deliver;
use crate::fault::Fault;
use crate::mailbox::namespace::{Kind, Namespace};
use crate::mailbox::path::Paths;
use crate::mailbox::permission::Permission;
use crate::maildir::locks::{self, Place};
use crate::maildir::survey::{Cure, Finding, Survey};
use crate::maildir::{self, mend};
use crate::sys::credentials::{self, Credentials};
use crate::sys::dir::{self, Dir, Stat};
use crate::sys::{self, nss, process};
use crate::text::quote::shown;

const FOUND: u8 = 1;
const USAGE: u8 = 64;
const NO_USER: u8 = 67;
const TEMPFAIL: u8 = 75;
/// How deep below a path mailboxes are looked for.
const MAX_LEVELS: usize = 32;

/// Which mailboxes.
#[derive(Debug, clap::Args)]
#[group(id = "which", required = true, multiple = true, args = ["path", "user", "namespace"])]
pub struct Arguments {
    /// A Maildir, and all below it
    #[arg(conflicts_with_all = ["user", "namespace"])]
    path: Option<PathBuf>,
    /// The mailboxes of a user's own namespaces
    #[arg(long, conflicts_with = "namespace")]
    user: Option<String>,
    /// The mailboxes of a public namespace
    #[arg(long)]
    namespace: Option<String>,
    /// Mend the control files, under Dovecot's lock; owner, group and mode of nothing are changed
    #[arg(long)]
    fix: bool,
}

/// Why there is no answer, and the exit code.
struct Failed(u8, String);

/// Exit 0 where all is well, 1 where something is not, 64 wrong usage, 67 no such user, 75 cannot tell, 78 wrong config.
pub fn run(config: Option<&Path>, arguments: &Arguments, out: &mut impl Write) -> io::Result<u8> {
    process::clear_umask();
    let mut notes = Vec::new();
    let places = match places(config, arguments, &mut notes) {
        Ok(places) => places,
        Err(Failed(code, why)) => {
            if !why.is_empty() {
                let _ = writeln!(io::stderr(), "postroom doctor: {why}");
            }
            return Ok(code);
        }
    };
    for note in notes {
        writeln!(out, "{}", shown(&note))?;
    }
    let (mut messages, mut wrong, mut unseen) = (0, 0, 0);
    for place in &places {
        match examine(place, arguments.fix, out)? {
            Ok((in_it, left)) => {
                messages += in_it;
                wrong += left;
            }
            Err(error) => {
                unseen += 1;
                let path = shown(&place.mailbox.display().to_string());
                writeln!(out, "{path}: cannot tell: {error}")?;
            }
        }
    }
    let mailboxes = places.len();
    writeln!(
        out,
        "{mailboxes} mailboxes, {messages} messages, {wrong} findings"
    )?;
    Ok(match (wrong, unseen) {
        (0, 0) => 0,
        (0, _) => TEMPFAIL,
        _ => FOUND,
    })
}

/// The mailboxes that are meant; `notes` says of which there are none. As root, goes on as the identity that delivers there.
fn places(
    config: Option<&Path>,
    arguments: &Arguments,
    notes: &mut Vec<String>,
) -> Result<Vec<Place>, Failed> {
    let config = || {
        let config = super::load(config).map_err(|code| Failed(code, String::new()))?;
        super::check_required_paths(&config.delivery).map_err(|why| Failed(TEMPFAIL, why))?;
        Ok(config)
    };
    match arguments {
        Arguments {
            path: Some(path), ..
        } => {
            become_owner(path, None)?;
            let failed = |error| Failed(TEMPFAIL, format!("{}: {error}", path.display()));
            let dir = Dir::open(path).map_err(failed)?;
            let mut places = Vec::new();
            collect(&dir, path, MAX_LEVELS, &mut places);
            match places.is_empty() {
                true => Err(Failed(
                    USAGE,
                    format!("{}: there is no Maildir", path.display()),
                )),
                false => Ok(places),
            }
        }
        Arguments {
            user: Some(user), ..
        } => of_user(&config()?, user, notes),
        Arguments {
            namespace: Some(name),
            ..
        } => of_namespace(&config()?, name),
        // The command line has asked for one of them.
        Arguments { .. } => Err(Failed(USAGE, "which mailboxes?".into())),
    }
}

fn of_user(config: &Config, name: &str, notes: &mut Vec<String>) -> Result<Vec<Place>, Failed> {
    let settings = &config.delivery;
    let cannot_tell = |fault: Fault| Failed(TEMPFAIL, fault.to_string());
    let user = match settings.userdbs.find(name) {
        Ok(Some(user)) => user,
        Ok(None) => return Err(Failed(NO_USER, format!("no such user: {name:?}"))),
        Err(unavailable) => return Err(Failed(TEMPFAIL, unavailable.to_string())),
    };
    let placement = settings.placement.as_ref();
    let node = placement.map(|it| it.of_user(settings, &user)).transpose();
    if let Some(node) = node.map_err(cannot_tell)?.flatten() {
        let why = format!("{node} has the mailboxes of {}", user.name);
        return Err(Failed(TEMPFAIL, why));
    }
    let namespaces = settings.namespaces_of(&user).map_err(cannot_tell)?;
    become_who(&user.credentials)?;
    // Where nothing can be looked at, that is the answer.
    let (mut ours, others): (Vec<_>, Vec<_>) =
        deliver::own(&namespaces).partition(|it| deliver::is_closed(it).is_none());
    if ours.is_empty() {
        ours.extend(others);
    } else {
        let note = |it: &Namespace| {
            Some(format!(
                "namespace {}: {}",
                it.name,
                deliver::is_closed(it)?
            ))
        };
        notes.extend(others.into_iter().filter_map(note));
    }
    let (mut places, mut missing) = (Vec::new(), Vec::new());
    for namespace in &ours {
        let inbox = deliver::inbox_of(settings, namespace, Some(&user)).map_err(cannot_tell)?;
        let is_missing =
            |path: &Path| dir::stat(path).is_err_and(|it| it.kind() == io::ErrorKind::NotFound);
        if !is_missing(&inbox.root) {
            let found = deliver::mailboxes_of(settings, namespace, Some(&user));
            places.extend(found.map_err(cannot_tell)?.into_iter().map(place));
        } else if namespace.inbox && !is_missing(&inbox.inbox) {
            let root = inbox.root.display();
            notes.push(format!("{root}: is not there: no mail but in INBOX yet"));
            places.push(place(inbox));
        } else {
            missing.push(inbox.root);
        }
    }
    // Several namespaces may have one INBOX.
    let mut seen = BTreeSet::new();
    places.retain(|it| seen.insert(it.mailbox.clone()));
    if missing.len() == ours.len() {
        let note = |root: PathBuf| format!("{}: is not there: no mail yet", root.display());
        notes.extend(missing.into_iter().map(note));
    }
    Ok(places)
}

fn of_namespace(config: &Config, name: &str) -> Result<Vec<Place>, Failed> {
    let settings = &config.delivery;
    let mut all = settings.namespaces.iter();
    let namespace = all.find(|it| it.name == name);
    let namespace =
        namespace.ok_or_else(|| Failed(USAGE, format!("there is no namespace {name:?}")))?;
    if namespace.kind != Kind::Public {
        let why = format!("namespace {name:?} is not public: name the user with --user");
        return Err(Failed(USAGE, why));
    }
    let inbox = deliver::inbox_of(settings, namespace, None);
    let inbox = inbox.map_err(|fault| Failed(TEMPFAIL, fault.to_string()))?;
    become_owner(&inbox.root, Some(config))?;
    let found = deliver::mailboxes_of(settings, namespace, None);
    let found = found.map_err(|fault| Failed(TEMPFAIL, fault.to_string()))?;
    Ok(found.into_iter().map(place).collect())
}

fn place(paths: Paths) -> Place {
    Place {
        index: paths.index.unwrap_or_else(|| paths.mailbox.clone()),
        control: paths.control,
        mailbox: paths.mailbox,
    }
}

/// The owner of a directory, with the groups that a delivery by him would have.
fn become_owner(path: &Path, config: Option<&Config>) -> Result<(), Failed> {
    let failed = |error| Failed(TEMPFAIL, format!("{}: {error}", path.display()));
    let Stat { uid, gid, .. } = dir::stat(path).map_err(failed)?;
    let limits = config.map(|config| &config.delivery.userdbs.limits);
    let limits = limits.filter(|limits| limits.mail_uid == Some(uid));
    let account = nss::account_of_uid(uid).map_err(failed)?;
    let mut who = match (limits, account) {
        (Some(limits), _) => Credentials::new(
            uid,
            limits.mail_gid.unwrap_or(gid),
            limits.mail_access_groups.clone(),
        ),
        (None, Some(account)) => Credentials::new(
            uid,
            account.gid,
            nss::groups(&account.name, account.gid).map_err(failed)?,
        ),
        (None, None) => Credentials::new(uid, gid, Vec::new()),
    };
    // That of root is nobody's who delivers.
    who.groups.retain(|group| *group != 0);
    become_who(&who)
}

/// Root would see, and mend, what a delivery cannot.
fn become_who(who: &Credentials) -> Result<(), Failed> {
    match credentials::is_root() {
        true => {
            credentials::become_forever(who).map_err(|error| Failed(TEMPFAIL, error.to_string()))
        }
        false => Ok(()),
    }
}

/// Every Maildir at or below `path`, in both layouts, and what cannot be looked into. Symlinks are not followed.
fn collect(dir: &Dir, path: &Path, levels: usize, places: &mut Vec<Place>) {
    if dir.stat_name("cur").is_ok_and(|stat| stat.is_dir) {
        places.push(place_of(path.to_owned()));
    }
    let mut names = dir.names().unwrap_or_default();
    names.retain(|name| levels > 0 && !matches!(name.as_str(), "cur" | "new" | "tmp"));
    names.sort();
    for name in names {
        let path = path.join(&name);
        match dir.open_dir(&name) {
            Ok(below) => collect(&below, &path, levels - 1, places),
            Err(error) if sys::is_no_directory(&error) => {}
            // Its survey says why.
            Err(_) => places.push(place_of(path)),
        }
    }
}

/// A mailbox whose files are all in one directory.
fn place_of(path: PathBuf) -> Place {
    Place {
        control: path.clone(),
        index: path.clone(),
        mailbox: path,
    }
}

/// Prints what is wrong in one mailbox. Answers how many messages it has, and how much is wrong, or why there is no answer.
fn examine(
    place: &Place,
    fix: bool,
    out: &mut impl Write,
) -> io::Result<Result<(usize, usize), io::Error>> {
    let mut survey = match Survey::of(place) {
        Ok(survey) => survey,
        Err(error) => return Ok(Err(error)),
    };
    let can_be_mended = |finding: &Finding| matches!(finding.cure, Cure::Fix | Cure::Tidy);
    if fix && survey.findings.iter().any(can_be_mended) {
        match mend(place) {
            Ok(mended) => {
                for what in mended {
                    writeln!(out, "{}: mended", shown(&what))?;
                }
            }
            Err(why) => {
                let control = shown(&place.control.display().to_string());
                writeln!(out, "{control}: not mended: {why}")?;
            }
        }
        survey = match Survey::of(place) {
            Ok(survey) => survey,
            Err(error) => return Ok(Err(error)),
        };
    }
    let mut wrong = 0;
    for finding in &survey.findings {
        wrong += usize::from(!matches!(finding.cure, Cure::Note(_) | Cure::Tidy));
        print(finding, out)?;
    }
    Ok(Ok((survey.messages, wrong)))
}

fn print(finding: &Finding, out: &mut impl Write) -> io::Result<()> {
    let Finding {
        file, line, what, ..
    } = finding;
    let file = file.display().to_string();
    let line = line.map_or(String::new(), |line| format!(":{line}"));
    let cure = match &finding.cure {
        Cure::Fix => "postroom doctor --fix mends it",
        Cure::Tidy => "Dovecot takes them out in time, postroom doctor --fix now",
        Cure::Command(command) => command,
        Cure::Others(words) | Cure::Note(words) => words,
    };
    writeln!(out, "{}", shown(&format!("{file}{line}: {what}: {cure}")))
}

/// What was mended, each with its place.
fn mend(place: &Place) -> Result<Vec<String>, String> {
    let text = |error: io::Error| error.to_string();
    let stat = dir::stat(&place.mailbox).map_err(text)?;
    let mode = Permission::of(&stat, &place.mailbox).file_mode;
    let (lock, gone) = locks::clear(place, mode)?;
    // Under the lock Dovecot moves no file. Others know no lock: a file that one missed look would cost its UID.
    let mut names = maildir::base_names(&place.mailbox).map_err(text)?;
    names.extend(maildir::base_names(&place.mailbox).map_err(text)?);
    let faults = mend::mend(&lock, |name| names.contains(name))?;
    let gone = gone
        .into_iter()
        .map(|path| format!("{} is gone", path.display()));
    let list = place.control.join("dovecot-uidlist");
    let faults = faults.into_iter().map(|fault| match fault.line {
        Some(line) => format!("{}:{line} {}", list.display(), fault.what),
        None => format!("{}: {}", list.display(), fault.what),
    });
    Ok(gone.chain(faults).collect())
}
