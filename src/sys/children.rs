//! Children that live on beside their parent, which has one thread and waits for signals and packets.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid};

use super::credentials::Credentials;
use super::packet::Packets;
use super::process::{End, be_child, set_handler};

/// A process that has forked or will.
#[derive(Debug)]
pub struct Parent {
    signals: SignalFd,
}

/// What somebody wants from the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// SIGTERM, SIGINT
    Stop,
    /// SIGHUP
    Reload,
}

/// What has happened.
#[derive(Debug, Default)]
pub struct Events {
    pub wishes: Vec<Wish>,
    /// Which of the sockets have something to read, or their end.
    pub ready: Vec<usize>,
}

/// A child that was forked here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child(Pid);

impl Parent {
    /// From here on signals are taken by [`Parent::wait`].
    pub fn new() -> io::Result<Parent> {
        // Ignored by whoever started us, the end of a child would be lost.
        set_handler(Signal::SIGCHLD, SigHandler::SigDfl)?;
        let taken = [
            Signal::SIGCHLD,
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGTERM,
        ];
        let taken: SigSet = taken.into_iter().collect();
        taken.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&taken, flags)?;
        Ok(Parent { signals })
    }

    /// Runs `work` in a child called `name`, as `identity` for good, with no descriptors but `kept` and the standard ones. The child
    /// dies with this process. To be called while the process has one thread.
    pub fn fork(
        &self,
        name: &CStr,
        identity: &Credentials,
        kept: &[RawFd],
        work: impl FnOnce() -> u8,
    ) -> io::Result<Child> {
        let parent = getpid();
        // SAFETY: one thread, so the child may do all that the parent could.
        match unsafe { fork() }? {
            ForkResult::Child => be_child(Some(identity), parent, || {
                // For those who look at a list of processes only.
                let _ = prctl::set_name(name);
                close_others(kept);
                work()
            }),
            ForkResult::Parent { child } => Ok(Child(child)),
        }
    }

    /// Waits for a signal, or for one of the sockets, for so long at most.
    pub fn wait(&self, sockets: &[&Packets], patience: Duration) -> io::Result<Events> {
        let watched = sockets.iter().map(|socket| socket.as_fd());
        let watched = watched.chain([self.signals.as_fd()]);
        let mut watched: Vec<PollFd> = watched
            .map(|it| PollFd::new(it, PollFlags::POLLIN))
            .collect();
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut watched, patience) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |it: &PollFd| it.any().unwrap_or(false);
        let ready = (0..sockets.len()).filter(|&at| is_ready(&watched[at]));
        let mut events = Events {
            ready: ready.collect(),
            wishes: Vec::new(),
        };
        while let Some(signal) = self.signals.read_signal()? {
            match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGHUP) => events.wishes.push(Wish::Reload),
                Ok(Signal::SIGTERM | Signal::SIGINT) => events.wishes.push(Wish::Stop),
                _ => {}
            }
        }
        Ok(events)
    }

    /// The children that have ended since the last time, and how.
    pub fn ended(&self) -> Vec<(Child, End)> {
        let mut ended = Vec::new();
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => ended.push((Child(pid), End::Exit(code))),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    ended.push((Child(pid), End::Signal(signal as i32)));
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return ended,
            }
        }
    }
}

impl Child {
    /// Its own until [`Parent::ended`] has told of it; then another process may get it.
    pub fn pid(self) -> i32 {
        self.0.as_raw()
    }

    /// To be asked only of children that have not [ended](Parent::ended): their pids may be others' by then.
    pub fn stop(self) {
        let _ = kill(self.0, Signal::SIGTERM);
    }

    /// SIGKILL. To be asked when [`Child::stop`] may be.
    pub fn kill(self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

/// What is meant for the parent, a terminal's ^C among it, does not end this process.
pub fn ignore_wishes() -> io::Result<()> {
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        set_handler(signal, SigHandler::SigIgn)?;
    }
    Ok(())
}

/// Closes whatever else came along: what still names it in memory is never used again.
pub(super) fn close_others(kept: &[RawFd]) {
    let mut kept: Vec<u32> = kept.iter().map(|&it| it as u32).collect();
    kept.extend([0, 1, 2, u32::MAX]);
    kept.sort_unstable();
    let mut gaps = kept.windows(2).filter(|gap| gap[0] + 1 < gap[1]);
    let is_done = gaps.all(|gap| {
        // SAFETY: numbers only; no descriptor in the gap is used by this process again.
        unsafe { libc::syscall(libc::SYS_close_range, gap[0] + 1, gap[1] - 1, 0) == 0 }
    });
    // Linux before 5.9, or a filter that does not know the call.
    if !is_done {
        for other in descriptors().into_iter().filter(|it| !kept.contains(it)) {
            // SAFETY: as above; one that is not open is an error and nothing else.
            unsafe { libc::close(other as RawFd) };
        }
    }
}

/// All that are open, and perhaps more.
fn descriptors() -> Vec<u32> {
    /// Higher ones nobody has, and where there is no limit it would take minutes.
    const MOST: u64 = 1 << 20;
    let number = |it: io::Result<fs::DirEntry>| it.ok()?.file_name().to_str()?.parse().ok();
    match fs::read_dir("/proc/self/fd") {
        Ok(open) => open.filter_map(number).collect(),
        Err(_) => {
            let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(MOST, |(_, most)| most);
            (0..limit.min(MOST) as u32).collect()
        }
    }
}
