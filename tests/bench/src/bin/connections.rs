//! What connections cost: ten thousand that wait, and five hundred that send a byte a second beside sixteen that deliver.
//! usage: connections DISK PROGRAMS

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use postroom_bench::load::Load;
use postroom_bench::servers::{Contestant, Server};
use postroom_bench::store::Store;

const IDLE: usize = 10_000;
const SLOW: usize = 500;
const ROUNDS: usize = 5;
const LOAD: Load = Load {
    connections: 16,
    messages: 4000,
    recipients: 1,
    size: 4096,
    mailboxes: 16,
    detail: "",
    reconnects: false,
};

fn main() -> ExitCode {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [disk, bin] = words.as_slice() else {
        eprintln!("usage: connections DISK PROGRAMS");
        return ExitCode::FAILURE;
    };
    match measure(disk, bin) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("connections: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(disk: &Path, bin: &Path) -> io::Result<()> {
    let (server, _store, socket) = start(disk, bin)?;
    idle(&server, &socket)?;
    slow(&server, &socket)
}

/// A server that takes so many connections, and where it listens.
fn start(disk: &Path, bin: &Path) -> io::Result<(Server, Store, PathBuf)> {
    let mut store = Store::new(disk)?;
    store.fresh(LOAD.mailboxes)?;
    Contestant::Postroom.configure(&store)?;
    let config = store.path("postroom.conf");
    let text = fs::read_to_string(&config)?;
    fs::write(
        &config,
        text.replace("[lmtp]", "[lmtp]\nmax_connections = 12000"),
    )?;
    let server = Contestant::Postroom.start(&store, bin)?;
    let socket = store.path("run/postroom");
    Ok((server, store, socket))
}

/// One that has said LHLO and been answered.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"LHLO bench.test\r\n")?;
    let mut said = Vec::new();
    while !said.windows(10).any(|it| it == b"\r\n250 SIZE") {
        let mut bytes = [0; 512];
        match stream.read(&mut bytes)? {
            0 => {
                return Err(io::Error::other(
                    String::from_utf8_lossy(&said).into_owned(),
                ));
            }
            count => said.extend_from_slice(&bytes[..count]),
        }
    }
    Ok(stream)
}

fn resident(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
    let number = line.and_then(|it| it.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| io::Error::other("no VmRSS"))
}

fn idle(server: &Server, socket: &Path) -> io::Result<()> {
    let first: Vec<_> = (0..100)
        .map(|_| connect(socket))
        .collect::<io::Result<_>>()?;
    let before = resident(server.pid())?;
    let all: Vec<_> = (0..IDLE)
        .map(|_| connect(socket))
        .collect::<io::Result<_>>()?;
    let each = (resident(server.pid())? - before) as f64 / IDLE as f64;
    println!("{IDLE} idle connections: {each:.1} KiB each");
    drop((first, all));
    Ok(())
}

fn slow(server: &Server, socket: &Path) -> io::Result<()> {
    LOAD.priming().run(&server.target)?;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(LOAD.run(&server.target)?.wait(0.99));
        let mut streams: Vec<_> = (0..SLOW)
            .map(|_| connect(socket))
            .collect::<io::Result<_>>()?;
        for stream in &mut streams {
            stream.write_all(b"MAIL FROM:<s@bench.test>\r\nRCPT TO:<u0@bench.test>\r\nDATA\r\n")?;
        }
        let ended = AtomicBool::new(false);
        let wait = thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    for stream in &mut streams {
                        // A byte a second each, spread over it.
                        let _ = stream.write_all(b"x");
                        thread::sleep(Duration::from_secs(1) / SLOW as u32);
                    }
                }
            });
            let measured = LOAD.run(&server.target);
            ended.store(true, Ordering::Relaxed);
            measured
        })?;
        beside.push(wait.wait(0.99));
    }
    alone.sort_by(f64::total_cmp);
    beside.sort_by(f64::total_cmp);
    let (alone, beside) = (alone[ROUNDS / 2], beside[ROUNDS / 2]);
    println!(
        "16 connections, p99: {alone:.1} ms alone, {beside:.1} ms beside {SLOW} that send a byte a second: x{:.2}",
        beside / alone
    );
    Ok(())
}
