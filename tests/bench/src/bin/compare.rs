//! Postroom and Dovecot in turn on one disk, as `run` prepares it.
//! usage: compare DISK PROGRAMS [--quick] [--rounds N] [--case TEXT]

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use postroom_bench::load::{Load, Measured, Message};
use postroom_bench::process;
use postroom_bench::servers::{Contestant, has_dovecot, select};
use postroom_bench::store::Store;
use postroom_bench::table::{self, Round};

/// Connections, messages, recipients of each, size, mailboxes.
const CASES: [(&str, [usize; 5]); 5] = [
    ("c=1 s=4K", [1, 1200, 1, 4096, 1]),
    ("c=20 s=4K", [20, 2500, 1, 4096, 1]),
    ("c=20 s=4K m=20", [20, 5000, 1, 4096, 20]),
    ("c=10 s=4K r=10", [10, 400, 10, 4096, 10]),
    ("c=4 s=1M", [4, 200, 1, 1 << 20, 4]),
];
/// Users with uids of their own, each with processes between him and root, beside one uid for all.
const UIDS: [(&str, [usize; 5]); 2] = [
    ("200 uids / one uid", [16, 4000, 1, 4096, 200]),
    ("1000 uids / one uid", [16, 4000, 1, 4096, 1000]),
];
const LDA_RUNS: usize = 200;
/// Messages that are new to Dovecot when a user opens his mailbox.
const UNSEEN: usize = 10_000;

struct Bench {
    store: Store,
    bin: PathBuf,
    contestants: Vec<Contestant>,
    rounds: usize,
    /// A quick run measures this part of the messages.
    part: usize,
    /// Only cases with this in their names.
    only: String,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = Bench::new(&words).and_then(|mut bench| bench.run());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Bench {
    fn new(words: &[String]) -> io::Result<Bench> {
        let usage = || {
            io::Error::other("usage: compare DISK PROGRAMS [--quick] [--rounds N] [--case TEXT]")
        };
        let [disk, bin, options @ ..] = words else {
            return Err(usage());
        };
        let (mut rounds, mut part, mut only) = (3, 1, String::new());
        let mut options = options.iter();
        while let Some(option) = options.next() {
            match option.as_str() {
                "--quick" => (rounds, part) = (1, 2),
                "--rounds" => {
                    let number = options.next().and_then(|number| number.parse().ok());
                    rounds = number.filter(|&number| number > 0).ok_or_else(usage)?;
                }
                "--case" => only = options.next().ok_or_else(usage)?.clone(),
                _ => return Err(usage()),
            }
        }
        let mut contestants = vec![Contestant::Postroom];
        match has_dovecot() {
            true => contestants.push(Contestant::Dovecot),
            false => eprintln!("SKIPPED: there is no Dovecot 2.3 to compare with"),
        }
        let store = Store::new(Path::new(disk))?;
        for contestant in &contestants {
            contestant.configure(&store)?;
        }
        Ok(Bench {
            store,
            bin: bin.into(),
            contestants,
            rounds,
            part,
            only,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        println!("{}", table::HEAD);
        for (name, [connections, messages, recipients, size, mailboxes]) in CASES {
            let load = Load {
                connections,
                messages: messages / self.part,
                recipients,
                size,
                mailboxes,
            };
            self.case(name, |bench, contestant| bench.lmtp(contestant, load))?;
        }
        for (name, [connections, messages, recipients, size, mailboxes]) in UIDS {
            let load = Load {
                connections,
                messages: messages / self.part,
                recipients,
                size,
                mailboxes,
            };
            self.uids(name, load)?;
        }
        let runs = LDA_RUNS / self.part;
        self.case("LDA s=4K", |bench, contestant| bench.lda(contestant, runs))?;
        if !self.contestants.contains(&Contestant::Dovecot) {
            return Ok(());
        }
        let unseen = UNSEEN / self.part;
        let name = format!("SELECT after {unseen}");
        self.case(&name, |bench, contestant| bench.select(contestant, unseen))
    }

    /// The rounds of one case, the contestants in turn.
    fn case(
        &mut self,
        name: &str,
        round: impl Fn(&mut Bench, Contestant) -> io::Result<Round>,
    ) -> io::Result<()> {
        if !name.contains(&self.only) {
            return Ok(());
        }
        let (mut postroom, mut dovecot) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            for contestant in self.contestants.clone() {
                let measured = round(self, contestant).map_err(|error| {
                    let said = contestant.last_words(&self.store);
                    io::Error::other(format!("{name}, {}: {error}\n{said}", contestant.name()))
                })?;
                match contestant {
                    Contestant::Postroom => postroom.push(measured),
                    Contestant::Dovecot => dovecot.push(measured),
                }
            }
        }
        println!("{}", table::line(name, &postroom, &dovecot));
        self.store.clear()
    }

    /// Postroom against itself.
    fn uids(&mut self, name: &str, load: Load) -> io::Result<()> {
        if !name.contains(&self.only) {
            return Ok(());
        }
        let (mut many, mut one) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            for (own_uids, rounds) in [(true, &mut many), (false, &mut one)] {
                self.store.own_uids = own_uids;
                let measured = self.lmtp(Contestant::Postroom, load).map_err(|error| {
                    let said = Contestant::Postroom.last_words(&self.store);
                    io::Error::other(format!("{name}: {error}\n{said}"))
                });
                self.store.own_uids = false;
                rounds.push(measured?);
            }
        }
        println!("{}", table::line(name, &many, &one));
        self.store.clear()
    }

    fn lmtp(&mut self, contestant: Contestant, load: Load) -> io::Result<Round> {
        self.store.fresh(load.mailboxes)?;
        let server = contestant.start(&self.store, &self.bin)?;
        let priming = load.priming();
        priming.run(&server.target)?;
        settle()?;
        let before = process::usage(server.pid())?;
        let measured = load.run(&server.target)?;
        let after = process::usage(server.pid())?;
        drop(server);
        self.store.check(priming.deliveries() + load.deliveries())?;
        Ok(round(
            &measured,
            after.cpu.saturating_sub(before.cpu),
            Some(after.peak),
        ))
    }

    fn lda(&mut self, contestant: Contestant, runs: usize) -> io::Result<Round> {
        self.store.fresh(1)?;
        // dovecot-lda asks the server for the user.
        let server = match contestant {
            Contestant::Postroom => None,
            Contestant::Dovecot => Some(contestant.start(&self.store, &self.bin)?),
        };
        let text = Message::text(4096);
        contestant.deliver(&self.store, &self.bin, &text)?;
        settle()?;
        let before = process::children()?;
        let mut waits = (0..runs)
            .map(|_| contestant.deliver(&self.store, &self.bin, &text))
            .collect::<io::Result<Vec<_>>>()?;
        let cpu = process::children()?.saturating_sub(before);
        drop(server);
        self.store.check(runs + 1)?;
        let took = waits.iter().sum();
        waits.sort_unstable();
        let measured = Measured {
            deliveries: runs,
            took,
            waits,
        };
        Ok(round(&measured, cpu, None))
    }
}

impl Bench {
    /// Dovecot's first look at what the contestant has delivered since its last.
    fn select(&mut self, contestant: Contestant, unseen: usize) -> io::Result<Round> {
        self.store.fresh(1)?;
        let dovecot = Contestant::Dovecot.start(&self.store, &self.bin)?;
        select(&self.store)?;
        let load = Load {
            connections: 20,
            messages: unseen,
            recipients: 1,
            size: 1024,
            mailboxes: 1,
        };
        match contestant {
            Contestant::Dovecot => drop(load.run(&dovecot.target)?),
            Contestant::Postroom => {
                let server = contestant.start(&self.store, &self.bin)?;
                load.run(&server.target)?;
            }
        }
        settle()?;
        let before = process::children()?;
        let took = select(&self.store)?;
        let cpu = process::children()?.saturating_sub(before);
        self.store.check(unseen)?;
        let measured = Measured {
            deliveries: 1,
            took,
            waits: vec![took],
        };
        Ok(round(&measured, cpu, None))
    }
}

fn round(measured: &Measured, cpu: Duration, peak: Option<u64>) -> Round {
    Round {
        per_second: measured.per_second(),
        p50: measured.wait(0.50),
        p99: measured.wait(0.99),
        cpu: cpu / u32::try_from(measured.deliveries).unwrap_or(u32::MAX),
        peak,
    }
}

/// What was prepared is on the disk before the clock runs.
fn settle() -> io::Result<()> {
    Command::new("sync").status().map(drop)
}
