//! `postroom explain`: the whole decision for one delivery, nothing written.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use crate::deliver::{Core, Report};
use crate::message::{Address, Recipient};
use crate::run::{Next, Runner};
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
    /// Who sends, where the MTA vouches for him
    #[arg(long, value_name = "ADDRESS")]
    from: Option<String>,
    /// The size of the message in bytes, as MAIL would announce it
    #[arg(long, value_name = "BYTES")]
    size: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints the decision; answers the exit code that the delivery would have (78: the config is wrong).
///
/// As root the decision is made under the identity of the user, in a process of its own: root sees more than a delivery.
pub fn run(path: Option<&Path>, arguments: &Arguments, out: &mut impl Write) -> io::Result<u8> {
    let config = match super::load(path) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let recipient = match recipient(arguments) {
        Ok(recipient) => recipient,
        Err(why) => {
            let _ = writeln!(io::stderr(), "postroom: {why}");
            return Ok(64);
        }
    };
    let core = Arc::new(Core::new(config.delivery));
    let report = match ask_elsewhere(&core, recipient)? {
        Next::Answered(report) => report,
        Next::Here(recipient) if credentials::is_root() => as_the_user(&core, &recipient)?,
        Next::Here(recipient) => core.inspect(&recipient),
    };
    report.print(arguments.json, out)?;
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
    recipient.authenticated = arguments.from.clone();
    recipient.announced = arguments.size;
    Ok(recipient)
}

/// Where another server has the mailbox it is asked, as for a RCPT.
fn ask_elsewhere(core: &Arc<Core>, recipient: Recipient) -> io::Result<Next<Report>> {
    if core.settings().placement.is_none() {
        return Ok(Next::Here(Box::new(recipient)));
    }
    let shown = recipient.shown();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let runner = Runner::for_looks(Arc::clone(core));
    let asked = runtime.block_on(runner.ask_elsewhere(recipient));
    Ok(asked.unwrap_or_else(|fault| Next::Answered(Report::failed(shown, fault))))
}

/// Root asks the userdbs, and goes on as the user whose mail it is.
fn as_the_user(core: &Core, recipient: &Recipient) -> io::Result<Report> {
    process::clear_umask();
    let (targets, answers) = match core.look_up(recipient, None) {
        Ok(looked_up) => looked_up,
        Err(fault) => return Ok(Report::failed(recipient.shown(), fault)),
    };
    credentials::become_forever(&targets.user.credentials)?;
    Ok(core.inspect_with(&answers, recipient))
}
