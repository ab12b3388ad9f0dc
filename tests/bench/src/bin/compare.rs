//! Postroom and its peers in turn on one disk, as `run` prepares it.
//! usage: compare DISK PROGRAMS [--quick] [--rounds N] [--case TEXT]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postroom_bench::client::Target;
use postroom_bench::floor;
use postroom_bench::load::{Load, Measured, Message};
use postroom_bench::postfix::{Postfix, Transport};
use postroom_bench::process;
use postroom_bench::servers::{Contestant, has_dovecot, select};
use postroom_bench::store::{Kind, Store};
use postroom_bench::table::{self, Round};

/// An LMTP server under a load, beside Dovecot's.
struct Case {
    name: &'static str,
    load: Load,
    kind: Kind,
    /// Messages that the mailbox has already.
    held: usize,
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn cases() -> Vec<Case> {
    let load = |connections, messages, mailboxes| Load {
        connections,
        messages,
        mailboxes,
        ..Load::default()
    };
    let sized = |size, load: Load| Load { size, ..load };
    let to = |recipients, load: Load| Load { recipients, ..load };
    let named = |detail, load: Load| Load { detail, ..load };
    let case = |name, load| Case {
        name,
        load,
        kind: Kind::Maildir,
        held: 0,
    };
    let of = |kind, case: Case| Case { kind, ..case };
    let holding = |held, case: Case| Case { held, ..case };
    vec![
        case("c=1 m=64", load(1, 600, 64)),
        case("c=4 m=64", load(4, 1500, 64)),
        case("c=16 m=64", load(16, 3000, 64)),
        case("c=64 m=64", load(64, 3000, 64)),
        case("c=256 m=64", load(256, 3000, 64)),
        case("c=1 m=1", load(1, 600, 1)),
        case("c=16 m=1", load(16, 3000, 1)),
        holding(10_000, case("c=16 m=1 holding 10,000", load(16, 1000, 1))),
        holding(100_000, case("c=16 m=1 holding 100,000", load(16, 300, 1))),
        case("r=10", to(10, load(4, 200, 10))),
        case("r=100", to(100, load(4, 40, 100))),
        of(
            Kind::Single,
            case("r=10, one copy", to(10, load(4, 200, 10))),
        ),
        of(
            Kind::Single,
            case("r=100, one copy", to(100, load(4, 40, 100))),
        ),
        case("s=64K c=4 m=4", sized(64 * KIB, load(4, 800, 4))),
        case("s=1M c=4 m=4", sized(MIB, load(4, 200, 4))),
        case("s=20M c=2 m=2", sized(20 * MIB, load(2, 20, 2))),
        case("s=1G c=1 m=1", sized(1 << 30, load(1, 1, 1))),
        case(
            "a connection per message, c=4 m=64",
            Load {
                reconnects: true,
                ..load(4, 1200, 64)
            },
        ),
        case("detail, c=16 m=64", named("+Spam", load(16, 2000, 64))),
        case(
            "public with ACL, c=16",
            named("+Public/info", load(16, 2000, 64)),
        ),
        case(
            "shared with ACL, c=16",
            named("+shared/u0/Work", load(16, 2000, 64)),
        ),
        of(Kind::Mbox, case("mbox of 1 GB, c=1", load(1, 600, 1))),
        of(Kind::Mbox, case("mbox of 1 GB, c=16", load(16, 400, 1))),
    ]
}

/// Users with uids of their own, each with a process, beside one uid for all.
const UIDS: [(&str, usize); 2] = [("200 uids / one uid", 200), ("1000 uids / one uid", 1000)];
const LDA_RUNS: usize = 200;
/// Messages that are new to Dovecot when a user opens his mailbox.
const UNSEEN: usize = 10_000;
/// Above this a round's messages go before the next one begins, bytes.
const ROOM: usize = 300 * MIB;

struct Bench {
    store: Store,
    bin: PathBuf,
    has_dovecot: bool,
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
        let (mut rounds, mut part, mut only) = (5, 1, String::new());
        let mut options = options.iter();
        while let Some(option) = options.next() {
            match option.as_str() {
                "--quick" => (rounds, part) = (1, 4),
                "--rounds" => {
                    let number = options.next().and_then(|number| number.parse().ok());
                    rounds = number.filter(|&number| number > 0).ok_or_else(usage)?;
                }
                "--case" => only = options.next().ok_or_else(usage)?.clone(),
                _ => return Err(usage()),
            }
        }
        let has_dovecot = has_dovecot();
        if !has_dovecot {
            eprintln!("SKIPPED: there is no Dovecot 2.3 to compare with");
        }
        Ok(Bench {
            store: Store::new(Path::new(disk))?,
            bin: bin.into(),
            has_dovecot,
            rounds,
            part,
            only,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        println!("{}", table::HEAD);
        for case in cases() {
            self.lmtp_case(&case)?;
        }
        for (name, users) in UIDS {
            self.uids(name, users)?;
        }
        let runs = LDA_RUNS / self.part;
        for peer in [
            Contestant::Dovecot,
            Contestant::Procmail,
            Contestant::Maildrop,
        ] {
            let name = format!("LDA / {}", peer.lda_name());
            self.pair(&name, peer, &mut |bench, contestant| {
                bench.lda(contestant, runs, 1)
            })?;
        }
        self.store.kind = Kind::Mbox;
        self.pair(
            "mbox of 1 GB, 16 LDAs / dovecot-lda",
            Contestant::Dovecot,
            &mut |bench, it| bench.lda(it, runs, 16),
        )?;
        self.store.kind = Kind::Maildir;
        for peer in [Transport::Dovecot, Transport::Virtual] {
            self.behind_postfix(peer)?;
        }
        let unseen = UNSEEN / self.part;
        self.pair(
            &format!("SELECT after {unseen}"),
            Contestant::Dovecot,
            &mut |bench, it| bench.select(it, unseen, false),
        )?;
        self.pair(
            &format!("all headers after {unseen}"),
            Contestant::Dovecot,
            &mut |bench, it| bench.select(it, unseen, true),
        )
    }

    fn is_wanted(&self, name: &str) -> bool {
        name.contains(&self.only)
    }

    fn lmtp_case(&mut self, case: &Case) -> io::Result<()> {
        if !self.is_wanted(case.name) {
            return Ok(());
        }
        (self.store.kind, self.store.held) = (case.kind, case.held);
        let load = Load {
            messages: (case.load.messages / self.part).max(1),
            ..case.load
        };
        let mut rounds = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..self.rounds {
            for (at, contestant) in [(0, Contestant::Postroom), (1, Contestant::Dovecot)] {
                if contestant == Contestant::Postroom || self.has_dovecot {
                    let round = self.lmtp(contestant, load);
                    rounds[at].push(self.with_words(case.name, contestant, round)?);
                }
            }
            // What the detail or the format adds is not the floor's.
            if case.kind != Kind::Mbox && load.detail.is_empty() {
                rounds[2].push(self.floor(load)?);
            }
        }
        let [ours, theirs, floor] = &rounds;
        println!("{}", table::line(case.name, ours, theirs, floor));
        (self.store.kind, self.store.held) = (Kind::Maildir, 0);
        self.store.clear()
    }

    /// The rounds of one case, Postroom and the peer in turn.
    fn pair(
        &mut self,
        name: &str,
        peer: Contestant,
        round: &mut dyn FnMut(&mut Bench, Contestant) -> io::Result<Round>,
    ) -> io::Result<()> {
        if !self.is_wanted(name) || !peer.is_installed() {
            return Ok(());
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            for (contestant, rounds) in [(Contestant::Postroom, &mut ours), (peer, &mut theirs)] {
                let measured = round(self, contestant);
                rounds.push(self.with_words(name, contestant, measured)?);
            }
        }
        println!("{}", table::line(name, &ours, &theirs, &[]));
        self.store.clear()
    }

    /// What its log says where it has failed.
    fn with_words(
        &self,
        name: &str,
        contestant: Contestant,
        round: io::Result<Round>,
    ) -> io::Result<Round> {
        round.map_err(|error| {
            let said = contestant.last_words(&self.store);
            io::Error::other(format!("{name}, {}: {error}\n{said}", contestant.name()))
        })
    }

    /// Postroom against itself.
    fn uids(&mut self, name: &str, users: usize) -> io::Result<()> {
        if !self.is_wanted(name) {
            return Ok(());
        }
        let load = Load {
            connections: 16,
            messages: 4000 / self.part,
            mailboxes: users,
            ..Load::default()
        };
        let (mut many, mut one) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            for (own_uids, rounds) in [(true, &mut many), (false, &mut one)] {
                self.store.own_uids = own_uids;
                let measured = self.lmtp(Contestant::Postroom, load);
                self.store.own_uids = false;
                rounds.push(self.with_words(name, Contestant::Postroom, measured)?);
            }
        }
        println!("{}", table::line(name, &many, &one, &[]));
        self.store.clear()
    }

    fn lmtp(&mut self, contestant: Contestant, load: Load) -> io::Result<Round> {
        self.fresh(load)?;
        contestant.configure(&self.store)?;
        let server = contestant.start(&self.store, &self.bin)?;
        if self.store.held > 0 && self.has_dovecot {
            // It knows what is there.
            match contestant {
                Contestant::Dovecot => drop(select(&self.store, false)?),
                _ => {
                    Contestant::Dovecot.configure(&self.store)?;
                    let dovecot = Contestant::Dovecot.start(&self.store, &self.bin)?;
                    select(&self.store, false)?;
                    drop(dovecot);
                }
            }
        }
        let priming = load.priming();
        priming.run(&server.target)?;
        settle()?;
        let before = process::usage(server.pid())?;
        let measured = load.run(&server.target)?;
        let after = process::usage(server.pid())?;
        drop(server);
        let delivered = priming.deliveries() + load.deliveries();
        self.store.check(self.store.held + delivered)?;
        Ok(round(
            &measured,
            after.cpu.saturating_sub(before.cpu),
            Some(after.peak),
        ))
    }

    fn fresh(&mut self, load: Load) -> io::Result<()> {
        if load.deliveries() * load.size > ROOM || self.store.kind == Kind::Mbox {
            self.store.clear()?;
        }
        self.store.fresh(load.mailboxes)
    }

    /// The bare calls of the same promise, by as many threads as there are connections.
    fn floor(&mut self, load: Load) -> io::Result<Round> {
        self.fresh(Load { ..load })?;
        settle()?;
        let before = process::own()?;
        let measured = floor::run(&self.store, load)?;
        let cpu = process::own()?.saturating_sub(before);
        Ok(round(&measured, cpu, None))
    }

    /// So many runs of an LDA, `at_once`.
    fn lda(&mut self, contestant: Contestant, runs: usize, at_once: usize) -> io::Result<Round> {
        self.fresh(Load::default())?;
        contestant.configure(&self.store)?;
        // dovecot-lda asks the server for the user.
        let server = match contestant {
            Contestant::Dovecot => Some(contestant.start(&self.store, &self.bin)?),
            _ => None,
        };
        let text = Message::text(4096);
        let peak = contestant.peak(&self.store, &self.bin, &text)?;
        settle()?;
        let before = process::children()?;
        let (next, began) = (AtomicUsize::new(0), Instant::now());
        let deliver = || {
            let mut waits = Vec::new();
            while next.fetch_add(1, Ordering::Relaxed) < runs {
                waits.push(contestant.deliver(&self.store, &self.bin, &text)?);
            }
            io::Result::Ok(waits)
        };
        let mut waits = thread::scope(|scope| {
            let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(deliver)).collect();
            let waits = threads
                .into_iter()
                .map(|it| it.join().expect("no thread panics"));
            waits.collect::<io::Result<Vec<_>>>().map(|it| it.concat())
        })?;
        let took = began.elapsed();
        let cpu = process::children()?.saturating_sub(before);
        drop(server);
        self.store.check(runs + 1)?;
        waits.sort_unstable();
        let measured = Measured {
            deliveries: runs,
            took,
            waits,
        };
        Ok(round(&measured, cpu, Some(peak)))
    }

    /// Through Postfix, until its queue is empty.
    fn behind_postfix(&mut self, peer: Transport) -> io::Result<()> {
        let name = format!("behind Postfix / {}", peer.name());
        let is_there = peer != Transport::Dovecot || self.has_dovecot;
        if !self.is_wanted(&name) || !Postfix::is_installed() || !is_there {
            return Ok(());
        }
        let load = Load {
            connections: 10,
            messages: 1500 / self.part,
            mailboxes: 64,
            ..Load::default()
        };
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            for (transport, rounds) in [(Transport::Postroom, &mut ours), (peer, &mut theirs)] {
                rounds.push(self.through(transport, load)?);
            }
        }
        println!("{}", table::line(&name, &ours, &theirs, &[]));
        self.store.clear()
    }

    fn through(&mut self, transport: Transport, load: Load) -> io::Result<Round> {
        self.store.fresh(load.mailboxes)?;
        let server = match transport.contestant() {
            Some(contestant) => {
                contestant.configure(&self.store)?;
                Some(contestant.start(&self.store, &self.bin)?)
            }
            None => None,
        };
        let postfix = Postfix::start(&self.store, transport, load.mailboxes)?;
        let target = Target::Smtp(postfix.address());
        let priming = load.priming();
        priming.run(&target)?;
        self.arrived(priming.deliveries())?;
        settle()?;
        let pids = [Some(postfix.pid()), server.as_ref().map(|it| it.pid())];
        let used = || -> io::Result<Duration> {
            let pids = pids.iter().flatten();
            pids.map(|pid| Ok(process::usage(*pid)?.cpu)).sum()
        };
        let (before, began) = (used()?, Instant::now());
        let measured = load.run(&target)?;
        self.arrived(priming.deliveries() + load.deliveries())?;
        let measured = Measured {
            took: began.elapsed(),
            ..measured
        };
        let cpu = used()?.saturating_sub(before);
        drop((postfix, server));
        Ok(round(&measured, cpu, None))
    }

    /// Waits until so many messages are there.
    fn arrived(&self, count: usize) -> io::Result<()> {
        let began = Instant::now();
        while self.store.count()? < count {
            if began.elapsed() > Duration::from_secs(120) {
                return Err(io::Error::other("the queue does not empty"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.store.check(count)
    }

    /// Dovecot's first look at what the contestant has delivered since its last.
    fn select(
        &mut self,
        contestant: Contestant,
        unseen: usize,
        with_headers: bool,
    ) -> io::Result<Round> {
        self.store.fresh(1)?;
        for contestant in [Contestant::Postroom, Contestant::Dovecot] {
            contestant.configure(&self.store)?;
        }
        let dovecot = Contestant::Dovecot.start(&self.store, &self.bin)?;
        // With a session that has asked for headers there is a reason to keep them at hand.
        Contestant::Dovecot.deliver(&self.store, &self.bin, &Message::text(1024))?;
        select(&self.store, true)?;
        // One at a time: of many at once Dovecot gives most no UID and keeps nothing at hand.
        let load = Load {
            messages: unseen,
            size: 1024,
            ..Load::default()
        };
        match contestant {
            Contestant::Dovecot => drop(load.run(&dovecot.target)?),
            _ => {
                let server = contestant.start(&self.store, &self.bin)?;
                load.run(&server.target)?;
            }
        }
        settle()?;
        // Cold: what the kernel remembers is forgotten.
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        let before = process::children()?;
        let took = select(&self.store, with_headers)?;
        let cpu = process::children()?.saturating_sub(before);
        self.store.check(unseen + 1)?;
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
