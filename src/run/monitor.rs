//! The parent of all processes: root, one thread, no network. It forks the front and the workers, and knows who may be forked.
//!
//! From the front it reads a few numbers. No byte of a message, no name of a mailbox and no path of a user comes here.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::wire::{self, Forked, Order};
use super::worker;
use crate::deliver::Settings;
use crate::log;
use crate::sys::children::{Child, Parent, Wish};
use crate::sys::clock;
use crate::sys::credentials::Credentials;
use crate::sys::packet::{self, Buffer, Packets};
use crate::sys::process::End;
use crate::sys::service;

/// How long workers may take to finish what they have when their front is gone.
const FINISH: Duration = Duration::from_secs(60);
/// Workers that the front knows to have ended, and that are not buried yet.
const SLACK: usize = 16;
/// How often an end is looked for when nothing happens.
const ROUND: Duration = Duration::from_secs(60);

/// One reading of the configuration.
pub struct Generation {
    pub settings: Settings,
    /// Whom the front becomes.
    pub front: Credentials,
    /// Workers at once, whatever the front asks for.
    pub max_workers: usize,
    /// The sockets that it listens on.
    pub descriptors: Vec<RawFd>,
    /// The front's whole life, with its end of the monitor's socket. Answers its exit code.
    pub serve: Serve,
}

/// The front: what it serves by, and its socket to the monitor. Answers its exit code.
pub type Serve = Box<dyn FnOnce(Settings, Packets) -> u8>;

/// Reads the configuration, and gives what it makes of it to the function, which starts it. After an error all is as it was. What it
/// holds open for the next time is closed with it.
pub type Load<'a> =
    Box<dyn FnMut(&mut dyn FnMut(Generation) -> io::Result<()>) -> io::Result<()> + 'a>;

/// A generation at work.
struct Running {
    /// Taken by a child, never here.
    settings: Option<Settings>,
    max_workers: usize,
    front: Child,
    /// None: it gives no more.
    orders: Option<Packets>,
    workers: Vec<Child>,
    /// Its front is gone.
    has_ended: bool,
}

/// Runs until the last front has ended; `load` reads the configuration, now and at each SIGHUP. Answers the exit code: that of
/// the front; an error where a front died, or where the first configuration is of no use.
pub fn run(mut load: Load<'_>) -> io::Result<u8> {
    let parent = Parent::new()?;
    let mut monitor = Monitor {
        running: Vec::new(),
        parent,
        load: None,
        packet: Buffer::default(),
        end: Ok(0),
    };
    load(&mut |first| monitor.start(first))?;
    monitor.load = Some(load);
    while !monitor.running.iter().all(|it| it.has_ended) {
        monitor.step()?;
    }
    monitor.wait_for_workers();
    monitor.end
}

struct Monitor<'a> {
    parent: Parent,
    /// The last one is the one that takes new clients.
    running: Vec<Running>,
    /// None: the end is near.
    load: Option<Load<'a>>,
    packet: Buffer,
    end: io::Result<u8>,
}

impl Monitor<'_> {
    fn start(&mut self, generation: Generation) -> io::Result<()> {
        let (here, there) = packet::pair()?;
        // A front that does not read its answers holds nobody up.
        here.set_nonblocking()?;
        let Generation {
            settings,
            front: identity,
            max_workers,
            descriptors: mut kept,
            serve,
        } = generation;
        kept.push(there.as_raw_fd());
        let mut whole = Some((settings, serve, there));
        let front = self.parent.fork(c"postroom-front", &identity, &kept, || {
            log::forked();
            match whole.take() {
                Some((settings, serve, there)) => serve(settings, there),
                None => unreachable!("the child has what its parent has"),
            }
        })?;
        self.running.push(Running {
            // The rest is the front's alone: what it listens on is open here no longer than `load` wants.
            settings: whole.map(|(settings, ..)| settings),
            max_workers,
            front,
            orders: Some(here),
            workers: Vec::new(),
            has_ended: false,
        });
        Ok(())
    }

    fn step(&mut self) -> io::Result<()> {
        let sockets = self.running.iter().enumerate();
        let sockets = sockets.filter_map(|(at, it)| Some((at, it.orders.as_ref()?)));
        let (open, sockets): (Vec<usize>, Vec<&Packets>) = sockets.unzip();
        let events = self.parent.wait(&sockets, ROUND)?;
        // A look now and then: whoever is forked takes over what was noticed, and when.
        clock::was_set_ahead(Duration::ZERO);
        for ready in events.ready {
            self.obey(open[ready]);
        }
        for wish in events.wishes {
            match wish {
                Wish::Stop => self.stop(),
                Wish::Reload => self.reload(),
            }
        }
        self.bury();
        Ok(())
    }

    fn stop(&mut self) {
        self.load = None;
        service::stopping();
        let living = self.running.iter().filter(|it| !it.has_ended);
        living.for_each(|it| it.front.stop());
    }

    /// The new front listens before the old one stops to.
    fn reload(&mut self) {
        let Some(mut load) = self.load.take() else {
            return;
        };
        let old: Vec<Child> = self.living().map(|it| it.front).collect();
        service::reloading();
        let loaded = load(&mut |generation| self.start(generation));
        self.load = Some(load);
        match loaded {
            Ok(()) => {
                old.into_iter().for_each(Child::stop);
                tracing::info!("the configuration was read again");
            }
            Err(error) => {
                service::ready();
                let error = error.to_string();
                tracing::error!(
                    error = error.as_str(),
                    "the new configuration is of no use, the old one stays"
                );
            }
        }
    }

    fn living(&self) -> impl Iterator<Item = &Running> {
        self.running.iter().filter(|it| !it.has_ended)
    }

    /// One order of a front.
    fn obey(&mut self, at: usize) {
        let running = &mut self.running[at];
        let Some(orders) = &running.orders else {
            return;
        };
        let order = match orders.receive(&mut self.packet) {
            Ok(Some(_)) => wire::unpacked(self.packet.packet()),
            Ok(None) => {
                running.orders = None;
                return;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => Err(error),
        };
        let made = match order {
            Ok(Order::Kill(pid)) => {
                let worker = running.workers.iter().find(|it| it.pid() == pid);
                if let Some(worker) = worker {
                    worker.kill();
                }
                return;
            }
            Ok(Order::Fork(who)) => self.fork(at, &who),
            Err(error) => Err(Forked::Refused(error.to_string())),
        };
        let (made, socket) = match made {
            Ok((worker, socket)) => (Forked::Worker(worker.pid()), Some(socket)),
            Err(none) => {
                if let Forked::Refused(why) = &none {
                    tracing::warn!(why = why.as_str(), "no worker process");
                }
                (none, None)
            }
        };
        let socket = socket.as_ref().map(|it| it as &dyn AsRawFd);
        if let (Ok(packet), Some(orders)) = (wire::packed(&made), &self.running[at].orders) {
            // A front that does not hear is gone or going; without its socket the worker ends.
            let _ = orders.send(&packet, socket);
        }
    }

    fn fork(&mut self, at: usize, who: &Credentials) -> Result<(Child, Packets), Forked> {
        let text = |error: io::Error| Forked::Refused(error.to_string());
        let running = &mut self.running[at];
        let Some(settings) = &running.settings else {
            return Err(Forked::Refused("its configuration is gone".into()));
        };
        let limits = &settings.userdbs.limits;
        limits.check_identity(who).map_err(Forked::Refused)?;
        if running.workers.len() >= running.max_workers + SLACK {
            return Err(Forked::Full);
        }
        let (here, there) = packet::pair().map_err(text)?;
        let kept = [there.as_raw_fd()];
        let (mut there, settings) = (Some(there), &mut running.settings);
        let worker = self.parent.fork(c"postroom-worker", who, &kept, || {
            log::forked();
            match (settings.take(), there.take()) {
                (Some(settings), Some(there)) => worker::work(settings, there),
                _ => unreachable!("the child has what its parent has"),
            }
        });
        let worker = worker.map_err(text)?;
        running.workers.push(worker);
        Ok((worker, here))
    }

    /// Takes note of who has ended.
    fn bury(&mut self) {
        for (child, end) in self.parent.ended() {
            for running in &mut self.running {
                running.workers.retain(|it| *it != child);
            }
            let count = self.running.len();
            let front = self.running.iter_mut().position(|it| it.front == child);
            let Some(at) = front else { continue };
            self.running[at].has_ended = true;
            let is_current = at + 1 == count;
            if is_current {
                self.end = match end {
                    End::Exit(0) if self.load.is_none() => Ok(0),
                    End::Exit(code @ 0..=255) => Ok(code as u8),
                    other => Err(io::Error::other(format!("the front ended: {other:?}"))),
                };
                // The others are on their way down already.
                self.stop();
            }
        }
        // What has nobody left is over; the last one says how it ended.
        let last = self.running.len().saturating_sub(1);
        let mut at = 0;
        self.running.retain(|it| {
            at += 1;
            !it.has_ended || !it.workers.is_empty() || at - 1 == last
        });
    }

    /// They have read the end of their sockets, and finish.
    fn wait_for_workers(&mut self) {
        let begun = Instant::now();
        let has_workers = |it: &Running| !it.workers.is_empty();
        while self.running.iter().any(has_workers) {
            if begun.elapsed() > FINISH {
                let workers = self.running.iter().flat_map(|it| &it.workers);
                workers.for_each(|it| it.kill());
                return;
            }
            let waited = self.parent.wait(&[], Duration::from_secs(1));
            if waited.is_err() {
                return;
            }
            self.bury();
        }
    }
}
