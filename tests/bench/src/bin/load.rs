//! Sends mail to an LMTP server as fast as it takes it, and says how fast that was.

use std::io;
use std::process::ExitCode;

use postroom_bench::client::Target;
use postroom_bench::load::Load;
use postroom_bench::process::usage;

const USAGE: &str = "\
usage: load [options] unix:PATH|HOST:PORT
  -c N       connections, a thread each [1]
  -n N       messages [1000]
  -r N       recipients of each message [1]
  -s BYTES   size of each message [4096]
  -m N       mailboxes u0, u1 … taken in turn [as many as -r]
  --pid PID  say what this server and all processes below it used";

struct Arguments {
    load: Load,
    target: Target,
    pid: Option<u32>,
}

fn main() -> ExitCode {
    let arguments = match arguments(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("load: {why}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn arguments(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut load = Load {
        mailboxes: 0,
        ..Load::default()
    };
    let (mut target, mut pid) = (None, None);
    while let Some(word) = words.next() {
        let mut number = || {
            let value = words.next().and_then(|value| value.parse::<u32>().ok());
            value
                .filter(|&value| value > 0)
                .ok_or(format!("{word} takes a number above 0"))
        };
        match word.as_str() {
            "-c" => load.connections = number()? as usize,
            "-n" => load.messages = number()? as usize,
            "-r" => load.recipients = number()? as usize,
            "-s" => load.size = number()? as usize,
            "-m" => load.mailboxes = number()? as usize,
            "--pid" => pid = Some(number()?),
            other if !other.starts_with('-') && target.is_none() => target = Some(other.parse()?),
            other => return Err(format!("what is {other:?}?")),
        }
    }
    if load.mailboxes == 0 {
        load.mailboxes = load.recipients;
    }
    let target = target.ok_or("where to?")?;
    Ok(Arguments { load, target, pid })
}

fn measure(arguments: &Arguments) -> io::Result<()> {
    let before = arguments.pid.map(usage).transpose()?;
    let measured = arguments.load.run(&arguments.target)?;
    println!("deliveries/s  {:.0}", measured.per_second());
    println!("p50 ms        {:.2}", measured.wait(0.50));
    println!("p99 ms        {:.2}", measured.wait(0.99));
    if let (Some(pid), Some(before)) = (arguments.pid, before) {
        let after = usage(pid)?;
        let cpu = after.cpu.saturating_sub(before.cpu);
        println!("CPU seconds   {:.2}", cpu.as_secs_f64());
        println!("peak MiB      {:.1}", after.peak as f64 / 1024.0);
    }
    Ok(())
}
