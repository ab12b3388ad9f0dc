//! `postroom`: the admin's command. Exit codes: those of each command; 64 wrong usage, 75 cannot tell, 78 wrong config.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use postroom::admin::{self, completions::Program};
use postroom::lda;
use postroom::sys::process;

/// Where would a mail go, and why? Delivery into private, public and shared mailboxes.
#[derive(Parser)]
#[command(name = "postroom", version, max_term_width = 100)]
struct Arguments {
    /// The configuration file [default: $POSTROOM_CONFIG, else /etc/postroom/postroom.toml]
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the full decision for one delivery; nothing is written
    Explain(admin::explain::Arguments),
    /// Check the configuration, the mail roots and the sockets: every problem with its line and advice
    Check {
        /// A Dovecot configuration beside it: where would the two put the same mailbox in different places?
        #[arg(long, value_name = "DOVECOT_CONF")]
        against: Option<PathBuf>,
    },
    /// Show what is configured
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show and change the rights of a mailbox
    #[command(subcommand)]
    Acl(admin::acl::Command),
    /// The map of who shares to whom, for IMAP's LIST
    #[command(subcommand)]
    Share(admin::share::Command),
    /// Look for what is wrong in the files of mailboxes, and mend the control files
    Doctor(admin::doctor::Arguments),
    /// What the running server does
    Status(admin::status::Arguments),
    /// Show what the userdbs say about a user
    User {
        /// The name as a userdb knows it
        name: String,
    },
    /// Try it out: a throw-away mail root, an LMTP server on it, and real deliveries
    Demo {
        /// Leave when the deliveries are done; exit 0 only if all came out as stated
        #[arg(long)]
        once: bool,
    },
    /// Print what a shell needs to complete the command line
    Completions(admin::completions::Arguments),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// What is set, and where
    Show {
        /// The defaults too
        #[arg(long)]
        all: bool,
        /// One setting only, e.g. `delivery.detail`
        key: Option<String>,
    },
    /// Print Dovecot's configuration, 2.3 or 2.4, as ours
    Import {
        /// Its dovecot.conf, or what `doveconf -n` printed
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let Arguments { config, command } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // stdout and stderr may be closed; the exit code says it too.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    if let Err(error) = process::keep_private() {
        let _ = writeln!(io::stderr(), "postroom: {error}");
        return ExitCode::from(75);
    }
    let mut out = io::stdout().lock();
    let config = config.as_deref();
    let done = match command {
        Command::Explain(arguments) => admin::explain::run(config, &arguments, &mut out),
        Command::Check { against } => admin::check::check(config, against.as_deref(), &mut out),
        Command::Config(ConfigCommand::Show { all, key }) => {
            admin::config_show::show(config, all, key.as_deref(), &mut out)
        }
        Command::Config(ConfigCommand::Import { file }) => {
            admin::config_import::run(&file, &mut out)
        }
        Command::Acl(command) => admin::acl::run(config, &command, &mut out),
        Command::Share(command) => admin::share::run(config, &command, &mut out),
        Command::Doctor(arguments) => admin::doctor::run(config, &arguments, &mut out),
        Command::Status(arguments) => admin::status::run(config, &arguments, &mut out),
        Command::User { name } => admin::user::show(config, &name, &mut out),
        Command::Demo { once } => admin::demo::run(once, &mut out),
        Command::Completions(arguments) => admin::completions::print(&arguments, parser, &mut out),
    };
    let flushed = done.and_then(|code| out.flush().map(|()| code));
    match flushed {
        Ok(code) => ExitCode::from(code),
        // `postroom … | head`: the reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "postroom: {error}");
            ExitCode::from(75)
        }
    }
}

/// How the command line of a program is parsed.
fn parser(program: Program) -> clap::Command {
    match program {
        Program::Postroom => Arguments::command(),
        Program::PostroomLda => lda::options::command(),
    }
}
