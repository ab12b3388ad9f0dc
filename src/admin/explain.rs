//! `postroom explain`: the whole decision for one delivery, nothing written.

use std::io::{self, Write};
use std::path::Path;

use crate::config::{self, Config};
use crate::deliver::{self, Core, Report};
use crate::message::{Address, Recipient};
use crate::sys::{credentials, process};

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The address as an MTA would give it
    #[arg(required_unless_present = "user")]
    address: Option<String>,
    /// A user, as `postroom-lda -d` takes it
    #[arg(long, conflicts_with = "address")]
    user: Option<String>,
    /// The mailbox to deliver to, as `postroom-lda -m` takes it
    #[arg(long)]
    mailbox: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints the decision; answers the exit code that the delivery would have (78: the config is wrong).
///
/// As root the decision is made under the identity of the user, in a process of its own: root sees more than a delivery.
pub fn run(path: Option<&Path>, arguments: &Arguments, out: &mut impl Write) -> io::Result<u8> {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(errors) => {
            eprint!("{errors}");
            return Ok(78);
        }
    };
    let recipient = match recipient(arguments) {
        Ok(recipient) => recipient,
        Err(why) => {
            eprintln!("postroom: {why}");
            return Ok(64);
        }
    };
    become_the_user(&config, &recipient)?;
    let report = Core::new(config.delivery).inspect(&recipient);
    match arguments.json {
        true => print_json(&report, out)?,
        false => print(&report, out)?,
    }
    Ok(report.fault.map_or(0, |fault| fault.code.exit()))
}

fn recipient(arguments: &Arguments) -> Result<Recipient, String> {
    let mut recipient = match (&arguments.user, &arguments.address) {
        (Some(user), _) => Recipient::of_user(user),
        (None, Some(address)) => {
            let address = address.trim_start_matches('<').trim_end_matches('>');
            Recipient::new(
                Address::parse(address)
                    .map_err(|why| format!("{address:?} is not an address: {why}"))?,
            )
        }
        (None, None) => return Err("an address or --user is needed".into()),
    };
    recipient.mailbox = arguments.mailbox.clone();
    Ok(recipient)
}

/// As root: goes on as the user whose mail it is. A user who cannot be found is the report's to say.
fn become_the_user(config: &Config, recipient: &Recipient) -> io::Result<()> {
    process::clear_umask();
    if !credentials::is_root() {
        return Ok(());
    }
    match deliver::user_of(&config.delivery, recipient) {
        Ok(user) => credentials::become_forever(&user.credentials),
        Err(_) => Ok(()),
    }
}

/// Width of the labels.
const LABEL: usize = 12;

/// The table of product page "Explain": one line a step, FAIL on the one that ends the delivery, then the replies.
pub fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", report.recipient.escape_debug())?;
    for line in &report.lines {
        let fail = if line.ok { "" } else { "   FAIL" };
        writeln!(
            out,
            "  {:LABEL$}  {}{fail}",
            line.label,
            printable(&line.text)
        )?;
    }
    match (&report.fault, &report.mailbox) {
        (Some(fault), _) => {
            if let Some(advice) = &fault.advice {
                writeln!(out, "  {:LABEL$}  {}", "to mend it", printable(advice))?;
            }
            let (code, status) = fault.code.smtp();
            writeln!(
                out,
                "  {:LABEL$}  RCPT {code} {status} {}",
                "reply",
                fault.code.text()
            )?;
            writeln!(out, "  {:LABEL$}  {}", "exit code", fault.code.exit())
        }
        (None, mailbox) => {
            let mailbox = printable(mailbox.as_deref().unwrap_or("INBOX"));
            writeln!(
                out,
                "  {:LABEL$}  RCPT 250 2.1.5, DATA 250 2.0.0 mailbox=\"{mailbox}\"",
                "reply"
            )?;
            writeln!(out, "  {:LABEL$}  0", "exit code")
        }
    }
}

/// The report for programs: one JSON object.
pub fn print_json(report: &Report, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, report)?;
    writeln!(out)
}

/// No control character of a name or a path reaches the terminal.
fn printable(text: &str) -> String {
    let safe = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(safe).collect()
}
