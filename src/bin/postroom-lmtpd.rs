//! `postroom-lmtpd`: the LMTP server. Exit codes: 0 ended on request, 64 wrong usage, 75 cannot serve.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use postroom::config::{self, Config};
use postroom::deliver::Core;
use postroom::lmtp;
use postroom::log;
use postroom::run::Runner;
use postroom::socketmap;
use postroom::sys::credentials::{self, Credentials};
use postroom::sys::process;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Takes mail over LMTP and delivers it into private, public and shared mailboxes.
#[derive(Parser)]
#[command(name = "postroom-lmtpd", version, max_term_width = 100)]
struct Arguments {
    /// The configuration file [default: $POSTROOM_CONFIG, else /etc/postroom/postroom.toml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Serve one client on stdin and stdout, then leave
    #[arg(long)]
    stdio: bool,
}

const USAGE: u8 = 64;
/// Whatever stops the server from serving is worth another try once it is mended.
const TEMPFAIL: u8 = 75;
/// How long a thread in a system call that hangs may hold up the end: its client has its answer.
const LEAVE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // stdout and stderr may be closed; the exit code says it too.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    log::init(log::Target::from_environment(log::Target::Text));
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "postroom-lmtpd: {error}");
            ExitCode::from(TEMPFAIL)
        }
    }
}

fn serve(arguments: &Arguments) -> io::Result<()> {
    let config = config::load(arguments.config.as_deref())
        .map_err(|errors| io::Error::other(errors.to_string()))?;
    if let Some(warnings) = &config.warnings {
        let _ = write!(io::stderr(), "{warnings}");
    }
    if !arguments.stdio && config.lmtp.listen.is_empty() {
        let advice = "there is nothing to listen on: write [lmtp] listen = [{ unix = \"/run/postroom/lmtp\" }]";
        return Err(io::Error::other(advice));
    }
    process::clear_umask();
    process::ignore_file_size_signal()?;
    let (bound, maps) = match arguments.stdio {
        true => (Vec::new(), Vec::new()),
        false => (
            lmtp::bind(&config.lmtp.listen)?,
            lmtp::bind(&config.socketmap)?,
        ),
    };
    leave_root(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    // It outlives the runtime: what it holds may wait when it goes.
    let core = Arc::new(Core::new(config.delivery));
    let served = runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(stop_on_signal(stop));
        let runner = Runner::new(Arc::clone(&core));
        let settings = Arc::new(config.lmtp);
        match arguments.stdio {
            true => lmtp::serve_stdio(runner, settings, stopped).await,
            false => {
                let maps = socketmap::serve(maps, runner.clone(), stopped.clone());
                let mails = lmtp::serve(bound, runner, settings, stopped);
                let (mails, maps) = tokio::join!(mails, maps);
                mails.and(maps)?;
            }
        }
        Ok(())
    });
    runtime.shutdown_timeout(LEAVE);
    served
}

/// Root binds the sockets and touches no mail. There is one thread yet.
fn leave_root(config: &Config) -> io::Result<()> {
    if !credentials::is_root() {
        return Ok(());
    }
    match (config.service.mail_uid, config.service.mail_gid) {
        (Some(uid), Some(gid)) => {
            let groups = config.service.groups.clone();
            credentials::become_forever(&Credentials {
                privileged: config.service.privileged,
                ..Credentials::new(uid, gid, groups)
            })
        }
        _ => Err(io::Error::other(
            "root never touches mail: set mail_uid and mail_gid to whom the server shall become, or start it as that user",
        )),
    }
}

/// SIGTERM and SIGINT end the server gracefully. SIGHUP ends nothing: whoever sends it wants another config.
async fn stop_on_signal(stop: watch::Sender<bool>) {
    let (Ok(mut term), Ok(mut int), Ok(mut hup)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::hangup()),
    ) else {
        tracing::error!("no signal handlers: SIGTERM ends the server at once");
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => tracing::warn!("the configuration is read at the start only: restart to change it"),
        }
    }
    stop.send_replace(true);
}
