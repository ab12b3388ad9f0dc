//! Programs of others, run to their end.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, getpid, getppid};

use super::process::End;

/// Bytes of what it says that are kept.
const MAX_SAID: usize = 2000;
/// Between two looks at a program that has closed its stderr.
const NAP: Duration = Duration::from_millis(5);

/// What became of a program.
#[derive(Debug)]
pub struct Ended {
    pub end: End,
    /// The start of what it wrote to stderr.
    pub said: String,
}

/// Starts `program` with `input` as its stdin, which it finds at its end with all of it: whatever becomes of this process, it never
/// takes a part for the whole. Nothing of this process's environment goes to it. It dies with this thread, and is killed when
/// nobody waits for it any more. An error: it has done nothing.
pub fn start(program: &Path, arguments: &[impl AsRef<OsStr>], input: File) -> io::Result<Running> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .current_dir("/")
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let parent = getpid();
    // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(move || begin(parent)) };
    Ok(Running(Some(command.spawn()?)))
}

fn begin(parent: Pid) -> io::Result<()> {
    umask(Mode::from_bits_truncate(0o077));
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    match getppid() == parent {
        true => Ok(()),
        false => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// Dropped before its end, it is killed.
#[derive(Debug)]
pub struct Running(Option<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // One that has ended is reaped already, and neither does anything.
            let _ = child.kill();
            // Killed, it may still wait for a dead file system, which must not hold the answer back.
            if !matches!(child.try_wait(), Ok(Some(_))) {
                // Without a thread it is reaped when this process ends.
                let _ = thread::Builder::new().spawn(move || child.wait());
            }
        }
    }
}

impl Running {
    /// Waits for its end; it is killed when `patience` is over (TimedOut). After an error nobody knows what it has done.
    pub fn end(mut self, patience: Duration) -> io::Result<Ended> {
        let until = Instant::now() + patience;
        let said = self.hear(until)?;
        let status = loop {
            if let Some(status) = self.ended()? {
                break status;
            }
            if Instant::now() >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(NAP);
        };
        let end = match (status.code(), status.signal()) {
            (Some(code), _) => End::Exit(code),
            (None, signal) => End::Signal(signal.unwrap_or_default()),
        };
        Ok(Ended { end, said })
    }

    fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.as_mut().map_or(Ok(None), Child::try_wait)
    }

    /// Reads its stderr until it is closed.
    fn hear(&mut self, until: Instant) -> io::Result<String> {
        let Some(mut stderr) = self.0.as_mut().and_then(|it| it.stderr.take()) else {
            return Ok(String::new());
        };
        fcntl(&stderr, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let (mut said, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            if Instant::now() >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match stderr.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => {
                    let room = MAX_SAID.saturating_sub(said.len());
                    said.extend_from_slice(&piece[..count.min(room)]);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let left = until.saturating_duration_since(Instant::now());
            // Its end is seen even where a child of its own keeps its stderr open.
            if self.ended()?.is_some() {
                break;
            }
            let wait = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).min(250);
            let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::from(wait)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(String::from_utf8_lossy(&said).trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::packet::sealed;

    fn shell(script: &str, input: &[u8], patience: Duration) -> io::Result<Ended> {
        let mut input = sealed(input)?;
        io::Seek::rewind(&mut input)?;
        start(Path::new("/bin/sh"), &["-c", script], input)?.end(patience)
    }

    #[test]
    fn what_becomes_of_programs() {
        for (script, end, said) in [
            ("exit 0", End::Exit(0), ""),
            ("exit 77", End::Exit(77), ""),
            ("echo why >&2; exit 75", End::Exit(75), "why"),
            ("cat >&2", End::Exit(0), "a letter"),
            ("kill -9 $$", End::Signal(9), ""),
            // Nothing of ours is in its environment, and its files are nobody else's.
            ("echo $HOME $(umask) >&2", End::Exit(0), "0077"),
            // A child that lives on does not keep us.
            ("sleep 5 & exit 3", End::Exit(3), ""),
            ("exec 2>&-; sleep 0.1; exit 4", End::Exit(4), ""),
        ] {
            let began = Instant::now();
            let ended = shell(script, b"a letter\n", Duration::from_secs(4)).unwrap();
            assert_eq!((ended.end, ended.said.as_str()), (end, said), "{script}");
            assert!(began.elapsed() < Duration::from_secs(3), "{script}");
        }
        let much = shell("yes | head -c 100000 >&2", b"", Duration::from_secs(9)).unwrap();
        assert_eq!(much.said.len(), MAX_SAID - 1);
        for script in ["exec sleep 60", "exec 2>&-; exec sleep 60", "exec yes >&2"] {
            let error = shell(script, b"", Duration::from_millis(300)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{script}");
        }
        let nothing: [&str; 0] = [];
        let input = sealed(b"").unwrap();
        let missing = start(Path::new("/nonexistent"), &nothing, input).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
