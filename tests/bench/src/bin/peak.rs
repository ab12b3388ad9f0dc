//! Runs a program and prints the most memory that it, or a process that it waited for, had at once: KiB.
//! usage: peak PROGRAM [ARGUMENTS]

use std::process::{Command, ExitCode, Stdio};

use nix::sys::resource::{UsageWho, getrusage};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("usage: peak PROGRAM [ARGUMENTS]");
        return ExitCode::from(64);
    };
    // What it prints is not what is asked for.
    let status = Command::new(program)
        .args(words)
        .stdout(Stdio::null())
        .status();
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).map(|it| it.max_rss());
    match (status, peak) {
        (Ok(status), Ok(peak)) if status.success() => {
            println!("{peak}");
            ExitCode::SUCCESS
        }
        (status, peak) => {
            eprintln!("peak: {status:?}, {peak:?}");
            ExitCode::FAILURE
        }
    }
}
