//! This process, and the children that work for it.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, sigaction,
};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, gethostname, getpid, getppid};

use super::children;
use super::credentials::{self, Credentials};

/// The exit code of a child that has no result (EX_SOFTWARE).
const FAILED: u8 = 70;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Exit(i32),
    Signal(i32),
}

/// What is another one each time that the machine is started; none where the kernel does not say.
pub fn boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}

/// The machine's name, `localhost` where it has none; as it was when it was asked for first, as Dovecot has it too.
pub fn hostname() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let name = gethostname().ok().and_then(|name| name.into_string().ok());
        name.unwrap_or_else(|| "localhost".into())
    })
}

/// Whether process IDs here are not those of the machine: in a container. Locks that name one say nothing outside it.
pub fn has_own_pids() -> bool {
    /// `PROC_PID_INIT_INO` of Linux: the first namespace of process IDs.
    const OF_THE_MACHINE: &str = "pid:[4026531836]";
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|own| own.as_os_str() != OF_THE_MACHINE)
}

/// From here on modes are what the code says: the caller's umask never matters.
pub fn clear_umask() {
    umask(Mode::empty());
}

/// Whether this program has rights that its caller does not have (set-user-ID, file capabilities): then arguments and
/// environment are those of an attacker.
pub fn is_privileged_by_file() -> bool {
    // SAFETY: getauxval reads a value that the kernel gave at the start.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Nobody of this uid looks into this process, which may hold mail of others, and its end leaves no image of it. A program that is run
/// is as others are, but for its core.
pub fn keep_private() -> io::Result<()> {
    prctl::set_dumpable(false)?;
    Ok(setrlimit(Resource::RLIMIT_CORE, 0, 0)?)
}

/// Closes what the caller left open beside stdin, stdout and stderr: its locks and its peers are not ours to hold. To be called
/// before anything has been opened.
pub fn close_inherited() {
    children::close_others(&[]);
}

/// A file that outgrows a limit becomes an error of the write (EFBIG) instead of the end of the process.
pub fn ignore_file_size_signal() -> io::Result<()> {
    set_handler(Signal::SIGXFSZ, SigHandler::SigIgn)
}

/// As many open files as the system allows this process: one for each client, and one for each worker.
pub fn raise_open_files() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// How many files this process may have open.
pub fn open_files() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// Runs `work` in a child, as `identity` for good where one is given, and waits for its end. The child dies with this
/// process, and it is killed when this process is asked to end. To be called while the process has one thread.
///
/// `work` answers the exit code; [`FAILED`] where it panics or cannot begin.
pub fn in_child(identity: Option<&Credentials>, work: impl FnOnce() -> u8) -> io::Result<End> {
    // Ignored by whoever started us, the end of a child would be lost.
    set_handler(Signal::SIGCHLD, SigHandler::SigDfl)?;
    let awaited: SigSet = [
        Signal::SIGCHLD,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
    ]
    .into_iter()
    .filter(|signal| !is_ignored(*signal))
    .collect();
    let before = awaited.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let parent = getpid();
    // SAFETY: one thread, so the child may do all that the parent could.
    match unsafe { fork() }? {
        ForkResult::Child => be_child(identity, parent, work),
        ForkResult::Parent { child } => {
            let end = wait_for(child, &awaited);
            before.thread_set_mask()?;
            end
        }
    }
}

/// Asks a child, as `identity` for good, and takes what it writes. An error where it ends in any other way than well.
pub fn ask_child(
    identity: Option<&Credentials>,
    work: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<Vec<u8>> {
    let mut answer = File::from(memfd_create("answer", MFdFlags::MFD_CLOEXEC)?);
    let mut written = BufWriter::new(answer.try_clone()?);
    let write = move || work(&mut written).and_then(|()| written.flush());
    let end = in_child(identity, move || match write() {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(error = error.to_string().as_str(), "no answer");
            FAILED
        }
    })?;
    match end {
        End::Exit(0) => {
            let mut bytes = Vec::new();
            answer.seek(SeekFrom::Start(0))?;
            answer.read_to_end(&mut bytes)?;
            Ok(bytes)
        }
        other => Err(io::Error::other(format!("the child ended with {other:?}"))),
    }
}

/// The rest of a child's life.
pub(super) fn be_child(
    identity: Option<&Credentials>,
    parent: Pid,
    work: impl FnOnce() -> u8,
) -> ! {
    let code = catch_unwind(AssertUnwindSafe(|| match begin_child(identity, parent) {
        Ok(()) => work(),
        Err(error) => {
            tracing::error!(error = error.to_string().as_str(), "cannot begin to work");
            FAILED
        }
    }));
    leave(code.unwrap_or(FAILED))
}

/// The end of this process, without what libraries have registered for it.
pub fn leave(code: u8) -> ! {
    // What cannot be said has nobody to hear it.
    let _ = io::stdout().flush();
    // SAFETY: nothing of this process is used behind it, and what the parent of a child has registered for its own end is not run.
    unsafe { libc::_exit(code.into()) }
}

fn begin_child(identity: Option<&Credentials>, parent: Pid) -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    if let Some(identity) = identity {
        credentials::become_forever(identity)?;
    }
    // After the change of identity, which would undo it.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    match getppid() == parent {
        true => Ok(()),
        false => Err(io::Error::other("the parent is gone already")),
    }
}

fn wait_for(child: Pid, awaited: &SigSet) -> io::Result<End> {
    loop {
        if next_of(awaited).is_some_and(|signal| signal != Signal::SIGCHLD as i32) {
            // Not reaped yet, so the pid is still the child's.
            let _ = kill(child, Signal::SIGKILL);
        }
        match waitpid(child, Some(nix::sys::wait::WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(End::Exit(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(End::Signal(signal as i32)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A caller that ignores a signal wants us to live through it (`nohup`).
fn is_ignored(signal: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a query: nothing is set, and where it succeeds `action` is filled in.
    unsafe {
        libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// The next of these signals. None after a second: a SIGCHLD that another thread took delays an end and does not hide it.
fn next_of(awaited: &SigSet) -> Option<i32> {
    let second = libc::timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    // SAFETY: both pointers are to values that live; nothing is written.
    let signal = unsafe { libc::sigtimedwait(awaited.as_ref(), std::ptr::null_mut(), &second) };
    (signal > 0).then_some(signal)
}

pub(super) fn set_handler(signal: Signal, handler: SigHandler) -> io::Result<()> {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: neither the default nor ignoring runs code of ours.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}
