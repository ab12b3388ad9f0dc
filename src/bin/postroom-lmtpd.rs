//! `postroom-lmtpd`: the LMTP server. Exit codes: 0 ended on request, 64 wrong usage, 75 cannot serve.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use postroom::config::{self, Config, Isolation, LdaServer, Service, Workers};
use postroom::deliver::{Core, Settings};
use postroom::handover;
use postroom::lmtp::listeners::{Change, Listeners};
use postroom::lmtp::{self, Bound};
use postroom::log;
use postroom::observe::{hook, snapshot};
use postroom::run::Runner;
use postroom::run::in_place;
use postroom::run::monitor::{self, Generation};
use postroom::run::pool::Pool;
use postroom::socketmap;
use postroom::status;
use postroom::sys::clock;
use postroom::sys::credentials::{self, Credentials};
use postroom::sys::packet::Packets;
use postroom::sys::process;
use postroom::sys::sandbox::Sandbox;
use postroom::sys::service;
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
    let mut arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // stdout and stderr may be closed; the exit code says it too.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    log::init(log::Target::from_environment(log::Target::Text));
    match leave_directory(&mut arguments).and_then(|()| start(&arguments)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => ExitCode::from(complain(&error)),
    }
}

/// Threads that talk to clients; others do what waits. Each more wakes the rest whenever there is something to do.
fn talkers() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors / 4).max(1)
}

/// Nothing is looked for where the server was started, and no file system is held there. The configuration is read again by its
/// whole path.
fn leave_directory(arguments: &mut Arguments) -> io::Result<()> {
    let named = config::named(arguments.config.as_deref());
    arguments.config = named.map(std::path::absolute).transpose()?;
    std::env::set_current_dir("/")
}

fn complain(error: &io::Error) -> u8 {
    let _ = writeln!(io::stderr(), "postroom-lmtpd: {error}");
    TEMPFAIL
}

/// Root binds the sockets, forks and touches no mail; anybody else does all of it in this process. There is one thread yet.
fn start(arguments: &Arguments) -> io::Result<u8> {
    clock::watch();
    process::clear_umask();
    process::keep_private()?;
    process::ignore_file_size_signal()?;
    process::raise_open_files()?;
    let config = load(arguments)?;
    let mut listeners = Listeners::new(service::given_sockets()?);
    let watchdog = service::watchdog();
    if !credentials::is_root() || config.workers.isolation == Isolation::None {
        let (server, settings, change) =
            Server::new(config, &listeners, arguments.stdio, watchdog)?;
        listeners.commit(change);
        // What the server closes must be open nowhere else.
        drop(listeners);
        if credentials::is_root() {
            become_one(&server.service)?;
        }
        return server.serve(settings, None).map(|()| 0);
    }
    let mut first = Some(config);
    let load = move |start: &mut dyn FnMut(Generation) -> io::Result<()>| {
        let config = first.take().map_or_else(|| load(arguments), Ok)?;
        let front = config.workers.front_identity()?;
        let (server, settings, change) =
            Server::new(config, &listeners, arguments.stdio, watchdog)?;
        start(server.generation(front, settings))?;
        listeners.commit(change);
        Ok(())
    };
    monitor::run(Box::new(load))
}

fn load(arguments: &Arguments) -> io::Result<Config> {
    let path: Option<&Path> = arguments.config.as_deref();
    let config = config::load(path).map_err(|errors| io::Error::other(errors.to_string()))?;
    if let Some(warnings) = &config.warnings {
        let _ = write!(io::stderr(), "{warnings}");
    }
    if config.path.is_none() {
        let why = "no configuration: write /etc/postroom/postroom.toml, or give -c FILE";
        return Err(io::Error::other(why));
    }
    Ok(config)
}

/// What a server has beside the settings of its deliveries.
struct Server {
    lmtp: Arc<lmtp::Settings>,
    mails: Vec<Bound>,
    maps: Vec<Bound>,
    ldas: Vec<Bound>,
    shows: Vec<Bound>,
    notify: hook::Settings,
    lda_server: LdaServer,
    service: Service,
    workers: Workers,
    stdio: bool,
    /// How often systemd wants to hear of us.
    watchdog: Option<Duration>,
}

impl Server {
    fn new(
        mut config: Config,
        listeners: &Listeners,
        stdio: bool,
        watchdog: Option<Duration>,
    ) -> io::Result<(Server, Settings, Change)> {
        config.lmtp.load_certificate()?;
        config.lmtp.fit_into(process::open_files()?);
        let (mails, maps, ldas, shows) = match stdio {
            true => (&[][..], &[][..], &[][..], &[][..]),
            false => (
                &config.lmtp.listen[..],
                &config.socketmap[..],
                &config.lda_server.listen[..],
                &config.status[..],
            ),
        };
        if !stdio && mails.is_empty() {
            let advice = "there is nothing to listen on: write [lmtp] listen = [{ unix = \"/run/postroom/lmtp\" }]";
            return Err(io::Error::other(advice));
        }
        // Whoever can reach the server over LMTP can reach all of it.
        let change = listeners.prepare(&[maps, ldas, shows, mails].concat())?;
        let server = Server {
            mails: change.of(mails)?,
            maps: change.of(maps)?,
            ldas: change.of(ldas)?,
            shows: change.of(shows)?,
            notify: config.notify.clone(),
            lda_server: config.lda_server.clone(),
            lmtp: Arc::new(config.lmtp),
            service: config.service,
            workers: config.workers,
            stdio,
            watchdog,
        };
        Ok((server, config.delivery, change))
    }

    /// This server as the monitor starts it.
    fn generation(self, front: Credentials, settings: Settings) -> Generation {
        let bound = self
            .mails
            .iter()
            .chain(&self.maps)
            .chain(&self.ldas)
            .chain(&self.shows);
        let descriptors = bound.map(Bound::descriptor).collect();
        Generation {
            front,
            descriptors,
            max_workers: self.workers.limits.max,
            settings,
            serve: Box::new(
                move |settings, monitor| match self.serve(settings, Some(monitor)) {
                    Ok(()) => 0,
                    Err(error) => complain(&error),
                },
            ),
        }
    }

    /// `monitor`: where workers come from. None: everything in this process.
    fn serve(self, settings: Settings, monitor: Option<Packets>) -> io::Result<()> {
        let runtime = in_place::runtime(talkers())?;
        // It outlives the runtime: what it holds may wait when it goes.
        let core = Arc::new(Core::new(settings));
        // A task of its own: this thread would hear of each client from another one.
        let serving = runtime.spawn(self.serve_with(Arc::clone(&core), monitor));
        let served = runtime.block_on(serving);
        runtime.shutdown_timeout(LEAVE);
        served?
    }

    async fn serve_with(self, core: Arc<Core>, monitor: Option<Packets>) -> io::Result<()> {
        snapshot::began();
        hook::start(&self.notify);
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(stop_on_signal(stop, monitor.is_some()));
        let runner = match monitor {
            None => Runner::new(core, self.lmtp.turns),
            Some(monitor) => {
                if self.workers.landlock {
                    let level = format!("{:?}", Sandbox::of_this_kernel()).to_lowercase();
                    tracing::info!(level = level.as_str(), "Landlock for workers");
                }
                let pool = Pool::new(monitor, self.workers.limits)?;
                Runner::with_workers(core, pool, self.lmtp.turns)
            }
        };
        service::ready();
        if let Some(period) = self.watchdog {
            tokio::spawn(stay_alive(period));
        }
        if self.stdio {
            lmtp::serve_stdio(runner, self.lmtp, stopped).await;
            return Ok(());
        }
        let maps = socketmap::serve(self.maps, runner.clone(), stopped.clone());
        let ldas = handover::serve(
            self.ldas,
            runner.clone(),
            self.lda_server,
            Arc::clone(&self.lmtp),
            stopped.clone(),
        );
        let shows = status::serve(self.shows, runner.clone(), stopped.clone());
        let mails = lmtp::serve(self.mails, runner, self.lmtp, stopped);
        let (mails, maps, ldas, shows) = tokio::join!(mails, maps, ldas, shows);
        mails.and(maps).and(ldas).and(shows)
    }
}

/// One process for everything.
fn become_one(service: &Service) -> io::Result<()> {
    match (service.mail_uid, service.mail_gid) {
        (Some(uid), Some(gid)) => credentials::become_forever(&Credentials {
            privileged: service.privileged,
            ..Credentials::new(uid, gid, service.groups.clone())
        }),
        _ => Err(io::Error::other(
            "root never touches mail: with workers.isolation = \"none\" set mail_uid and mail_gid to whom the server shall become",
        )),
    }
}

/// SIGTERM and SIGINT end the server gracefully. SIGHUP ends nothing: whoever sends it wants another config, and the monitor
/// reads it.
async fn stop_on_signal(stop: watch::Sender<bool>, has_monitor: bool) {
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
            _ = hup.recv() => if !has_monitor {
                tracing::warn!("the configuration is read at the start only: restart to change it");
            },
        }
    }
    if !has_monitor {
        service::stopping();
    }
    stop.send_replace(true);
}

/// As long as this runs clients are heard.
async fn stay_alive(period: Duration) {
    let mut rounds = tokio::time::interval(period / 2);
    loop {
        rounds.tick().await;
        service::alive();
    }
}
