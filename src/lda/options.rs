//! The command line of `postroom-lda`, in dovecot-lda's words, and the environment that stands in for what it leaves out.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::message::{Address, Flags, Keywords, Recipient, ReversePath};

/// Stores the message on stdin in a mailbox.
///
/// Exit codes: 0 stored and synced, 67 no such user or mailbox, 77 refused, 75 try again; 64 wrong usage on a terminal.
#[derive(Debug, Default, PartialEq, Eq, Parser)]
#[command(
    name = "postroom-lda",
    version,
    args_override_self = true,
    max_term_width = 100
)]
struct Arguments {
    /// The configuration file [default: $POSTROOM_CONFIG, else /etc/postroom/postroom.toml]
    #[arg(short = 'c', value_name = "FILE")]
    config: Option<PathBuf>,
    /// The user whose mail it is, as a userdb knows him [default: who runs this]
    #[arg(short = 'd', value_name = "USER", allow_hyphen_values = true)]
    user: Option<OsString>,
    /// The envelope sender [default: $SENDER, else that of a first line `From `]
    #[arg(short = 'f', value_name = "SENDER", allow_hyphen_values = true)]
    sender: Option<OsString>,
    /// The recipient before aliases, for the log [default: $ORIGINAL_RECIPIENT]
    #[arg(short = 'a', value_name = "ORIGINAL", allow_hyphen_values = true)]
    original: Option<OsString>,
    /// The final recipient, for the log [default: $RECIPIENT]
    #[arg(short = 'r', value_name = "FINAL", allow_hyphen_values = true)]
    last: Option<OsString>,
    /// The mailbox by its full name [default: the one of $EXTENSION, else INBOX]
    #[arg(short = 'm', value_name = "MAILBOX", allow_hyphen_values = true)]
    mailbox: Option<OsString>,
    /// Read the message from a file, as the user
    #[arg(short = 'p', value_name = "FILE")]
    file: Option<PathBuf>,
    /// Reject with exit code 77 instead of a bounce: always so, taken for dovecot-lda's sake
    #[arg(short = 'e')]
    _exit_on_rejection: bool,
    /// Keep the environment: nothing is run, taken for dovecot-lda's sake
    #[arg(short = 'k')]
    _keep_environment: bool,
    /// A setting of the configuration file, for this run: -o delivery.on_missing=reject
    #[arg(short = 'o', value_name = "KEY=VALUE", action = clap::ArgAction::Append)]
    overrides: Vec<String>,
    /// dovecot-lda 1.x
    #[arg(short = 'n', hide = true)]
    no_autocreate: bool,
    /// Store the message with this flag: \Seen, \Flagged, \Answered, \Draft, \Deleted
    #[arg(long, value_name = "FLAG")]
    flag: Vec<String>,
    /// Store the message with this keyword, like $Junk
    #[arg(long, value_name = "WORD")]
    keyword: Vec<String>,
    /// Who sends, as the MTA knows for sure: believed from root and from mail_uid
    #[arg(long, value_name = "USER")]
    authenticated: Option<String>,
    /// Print the decision; store nothing
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: one JSON object for each recipient
    #[arg(long, requires = "dry_run")]
    json: bool,
    /// Full addresses, resolved as LMTP would
    #[arg(value_name = "RECIPIENT", conflicts_with = "user")]
    addresses: Vec<OsString>,
}

impl Arguments {
    /// What MTAs write, without the parser that first describes all options to itself: a delivery in thirty is its price. None: it
    /// has to look.
    fn plain(words: &[OsString]) -> Option<Arguments> {
        let mut arguments = Arguments::default();
        let mut words = words.iter().skip(1);
        while let Some(word) = words.next() {
            let mut value = || {
                let value = words.next().filter(|it| !it.is_empty())?;
                (!value.as_encoded_bytes().starts_with(b"-")).then(|| value.clone())
            };
            match word.to_str()? {
                "-c" => arguments.config = Some(value()?.into()),
                "-d" => arguments.user = Some(value()?),
                "-f" => arguments.sender = Some(value()?),
                "-a" => arguments.original = Some(value()?),
                "-r" => arguments.last = Some(value()?),
                "-m" => arguments.mailbox = Some(value()?),
                "-e" => arguments._exit_on_rejection = true,
                option if option.starts_with('-') => return None,
                _ => arguments.addresses.push(word.clone()),
            }
        }
        let is_wrong = arguments.user.is_some() && !arguments.addresses.is_empty();
        (!is_wrong).then_some(arguments)
    }
}

/// How the command line is parsed, for the completions of shells.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub config: Option<PathBuf>,
    /// `-o`: `key=value`, as written.
    pub overrides: Vec<String>,
    /// `-d`
    pub user: Option<String>,
    /// None: whatever a `From ` line says.
    pub sender: Option<ReversePath>,
    /// `-a`
    pub original: Option<String>,
    /// `-r`
    pub last: Option<Address>,
    /// `-m`
    pub mailbox: Option<String>,
    pub detail: Option<String>,
    pub authenticated: Option<String>,
    pub flags: Flags,
    pub keywords: Keywords,
    /// Absolute.
    pub file: Option<PathBuf>,
    pub dry_run: bool,
    pub json: bool,
    pub addresses: Vec<Address>,
}

/// Why there is nothing to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// `--help` and `-V`: the text to print.
    Shown(String),
    Usage(String),
    /// Understood, and not to be had.
    NotYet(String),
    /// A recipient that is no address: a sender's word, that never becomes one.
    NoAddress(String),
}

impl Options {
    /// Reads the command line (the first argument is the program's name) and the environment.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Options, Refused> {
        Options::from(arguments, |name| std::env::var_os(name))
    }

    fn from(
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Options, Refused> {
        let words: Vec<OsString> = arguments.into_iter().collect();
        let arguments = match Arguments::plain(&words) {
            Some(arguments) => arguments,
            None => Arguments::try_parse_from(words).map_err(refused)?,
        };
        arguments.refuse_what_is_not_there()?;
        let set = |name: &str| environment(name).filter(|value| !value.is_empty());
        let text = |flag: &str, value: OsString| {
            value
                .into_string()
                .map_err(|value| Refused::NotYet(format!("{flag} {value:?} is not UTF-8")))
        };
        // What is for the log only, and whoever's: what makes no sense there is left out.
        let spare = |value: Option<OsString>| value.and_then(|value| value.into_string().ok());
        let mut flags = Flags::default();
        for name in &arguments.flag {
            let odd = || Refused::Usage(format!("--flag {name:?} is no system flag"));
            flags = flags.with(Flags::parse(name).ok_or_else(odd)?);
        }
        let mut keywords = Keywords::default();
        for name in &arguments.keyword {
            let odd = || Refused::Usage(format!("--keyword {name:?} is no keyword"));
            keywords = keywords.with(&Keywords::parse(name).ok_or_else(odd)?);
        }
        let last = arguments.last.or_else(|| set("RECIPIENT"));
        let original = arguments.original.or_else(|| set("ORIGINAL_RECIPIENT"));
        let user = arguments.user.map(|user| text("-d", user)).transpose()?;
        if user.as_deref() == Some("") {
            return Err(Refused::Usage("-d \"\": a user must be named".into()));
        }
        let file = arguments.file.map(std::path::absolute).transpose();
        Ok(Options {
            config: arguments.config,
            overrides: arguments.overrides,
            user,
            sender: arguments.sender.or_else(|| set("SENDER")).map(sender),
            original: spare(original).map(|it| match Address::parse(&it) {
                Ok(address) => address.to_string(),
                Err(_) => it,
            }),
            last: spare(last).and_then(|it| Address::parse(&it).ok()),
            mailbox: arguments.mailbox.map(|it| text("-m", it)).transpose()?,
            detail: spare(set("EXTENSION")),
            authenticated: arguments.authenticated,
            flags,
            keywords,
            file: file.map_err(|error| Refused::Usage(format!("-p: {error}")))?,
            dry_run: arguments.dry_run,
            json: arguments.json,
            addresses: arguments
                .addresses
                .into_iter()
                .map(address)
                .collect::<Result<_, _>>()?,
        })
    }

    /// What the options say about every recipient.
    pub fn complete(&self, recipient: Recipient) -> Recipient {
        Recipient {
            original: self.original.clone(),
            mailbox: self.mailbox.clone(),
            authenticated: self.authenticated.clone(),
            flags: self.flags,
            keywords: self.keywords.clone(),
            ..recipient
        }
    }

    /// And about the one that is named by his user, not by an address.
    pub fn complete_user(&self, recipient: Recipient) -> Recipient {
        let address = self
            .last
            .clone()
            .unwrap_or_else(|| recipient.address.clone());
        self.complete(Recipient {
            address,
            detail: self.detail.clone(),
            ..recipient
        })
    }
}

impl Arguments {
    fn refuse_what_is_not_there(&self) -> Result<(), Refused> {
        if !self.no_autocreate {
            return Ok(());
        }
        let why = "-n is dovecot-lda 1.x: set delivery.on_missing (-o delivery.on_missing=inbox)";
        Err(Refused::NotYet(why.into()))
    }
}

/// An empty one is a variable that the MTA's configuration has misspelt.
fn address(value: OsString) -> Result<Address, Refused> {
    match value.to_str().map(Address::parse) {
        Some(Ok(address)) => Ok(address),
        _ if value.is_empty() => Err(Refused::Usage("an empty RECIPIENT".into())),
        Some(Err(why)) => Err(Refused::NoAddress(format!("{value:?}: {why}"))),
        None => Err(Refused::NoAddress(format!("{value:?} is not UTF-8"))),
    }
}

/// What does not parse is `<>`: a broken sender is no reason to keep a message out.
fn sender(value: OsString) -> ReversePath {
    ReversePath::parse_lenient(&value.to_string_lossy())
}

fn refused(error: clap::Error) -> Refused {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            Refused::Shown(error.render().to_string())
        }
        _ => {
            let text = error.render().to_string();
            let first = text
                .lines()
                .next()
                .unwrap_or_default()
                .trim_start_matches("error: ");
            Refused::Usage(format!("{first} (see postroom-lda --help)"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_plain_is_what_the_parser_says(words in prop::collection::vec(
            prop::sample::select(vec![
                "-c", "-d", "-f", "-a", "-r", "-m", "-p", "-e", "-k", "-n", "-o", "-", "--", "-dx", "-ek", "--dry-run",
                "--flag", "", "x", "a@b", "Work/a b", "\u{e9}", "x=y", "\\Seen",
            ]),
            0..6,
        )) {
            let words: Vec<OsString> = ["postroom-lda"].into_iter().chain(words).map(OsString::from).collect();
            if let Some(plain) = Arguments::plain(&words) {
                prop_assert_eq!(Some(plain), Arguments::try_parse_from(words).ok());
            }
        }
    }

    #[test]
    fn mtas_write_plain_words() {
        for line in [
            "lda",
            "lda -d u",
            "lda -c /f -f a@b -a c@d -r e@f -m Work -e -d u",
            "lda a@b c@d",
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert!(Arguments::plain(&words).is_some(), "{line}");
        }
    }
}
