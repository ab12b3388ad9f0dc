//! Mixed load for minutes, while workers and the server are killed, a disk is full now and then, and others sleep with locks in
//! their hands: nothing that was answered for is lost, and nothing is there more often than it was sent unheard. With
//! `duplicate_window` what came by LMTP, from Postfix too, is in a Maildir once; postroom-lda does not ask it, and of an mbox it knows
//! only what was answered.
//!
//! `POSTROOM_SOAK_MINUTES` of it (`tests/soak --minutes N`), half of them without `duplicate_window` and read by Dovecot 2.3, half with it and read by 2.4.

mod support;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::imap::Imap;
use support::mount::{Disk, FileSystem, is_done_apart};
use support::peers::{Postfix, VERSIONS, Version, lines_of};
use support::places::{self, INBOX, KEYWORD, LINKED, MBOX, NEW, PLACES, PUBLIC, Place};
use support::random::{self, Random};
use support::{
    Lmtp, MAIL, Server, Store, as_user, children_of, installed, not_root, own, program, replace_in,
    skip, stuffed, subject, uid_of,
};

/// Deliveries to a mailbox that its first one makes.
const TO_A_NEW_ONE: usize = 30;
/// Messages of each run of smtp-source, and bytes of each body.
const BATCH: usize = 20;
const LENGTH: usize = 4000;

/// A message that somebody was told is stored.
struct Stored {
    id: String,
    user: &'static str,
    /// As the reply says it; none: nobody said it.
    place: Option<(String, Option<u32>)>,
    /// How often it was sent and nobody heard what became of it.
    unheard: usize,
    /// Of which somebody said why not.
    refused: Vec<String>,
    by: By,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Lmtp,
    Lda,
    Postfix,
}

/// Locks that somebody holds now and then: a list's, and that of an mbox.
const LOCKS: [&str; 2] = [
    "home/alice/Maildir/dovecot-uidlist.lock",
    "home/alice/mail/Work.lock",
];

/// What goes on at once.
struct Load<'a> {
    store: &'a Store,
    socket: &'a Path,
    stored: Mutex<Vec<Stored>>,
    is_over: AtomicBool,
    /// The subject of each run of smtp-source, and whether all of it was answered for.
    runs: Mutex<Vec<(String, bool)>>,
    /// How often each of [`LOCKS`] was held.
    held: [AtomicUsize; 2],
}

/// It is known again by its Message-ID.
fn message(place: &Place, id: &str, number: usize) -> Vec<u8> {
    [
        format!("Message-ID: <{id}@soak.test>\n").into_bytes(),
        place.message(id, number),
    ]
    .concat()
}

fn pause(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}

impl Load<'_> {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// A connection of its own, by which each message is sent until it is stored.
    fn lmtp(&self, client: usize, user: &'static str) {
        let mut connection = None;
        for number in 0.. {
            if self.is_over() {
                return;
            }
            let place = match user {
                "alice" => PLACES[(client + number) % PLACES.len()],
                _ => INBOX,
            };
            let address = match place {
                NEW => format!("alice+New{client}-{}@x", number / TO_A_NEW_ONE),
                _ => place.address().replace("alice", user),
            };
            let id = format!("{}-{client}-{user}-{number}", place.kind);
            let message = message(&place, &id, number);
            let (mut unheard, mut refused) = (0, Vec::new());
            let reply = loop {
                let mut is_sent = false;
                match self.attempt(&mut connection, &address, &message, &mut is_sent) {
                    Ok(reply) if reply.starts_with("250 ") => break reply,
                    Ok(reply) => {
                        assert!(reply.starts_with('4'), "{id}: {reply}");
                        // Killed, it may have stored the message: nobody knows.
                        unheard += usize::from(reply.contains("its worker process has ended"));
                        refused.push(reply);
                    }
                    Err(_) => {
                        connection = None;
                        unheard += usize::from(is_sent);
                    }
                }
                pause(30);
            };
            let mailbox = reply
                .split("mailbox=\"")
                .nth(1)
                .and_then(|it| it.split('"').next());
            let place = (mailbox.unwrap().to_owned(), uid_of(&reply));
            self.store_one(Stored {
                id,
                user,
                place: Some(place),
                unheard,
                refused,
                by: By::Lmtp,
            });
        }
    }

    fn attempt(
        &self,
        connection: &mut Option<Lmtp>,
        address: &str,
        message: &[u8],
        is_sent: &mut bool,
    ) -> io::Result<String> {
        let client = match connection {
            Some(client) => client,
            None => connection.insert(Lmtp::try_connect(self.socket)?),
        };
        client.try_send(
            format!("RSET\r\nMAIL FROM:<s@else.test>\r\nRCPT TO:<{address}>\r\nDATA\r\n")
                .as_bytes(),
        )?;
        for want in ["2", "2", "2", "354 "] {
            let reply = client.try_reply()?;
            if !reply.starts_with(want) {
                // With the replies to the rest.
                *connection = None;
                return Ok(reply);
            }
        }
        *is_sent = true;
        client.try_send(&stuffed(message))?;
        client.try_reply()
    }

    fn store_one(&self, stored: Stored) {
        self.stored.lock().unwrap().push(stored);
    }

    /// postroom-lda, some of which are killed.
    fn lda(&self, client: usize, mut random: Random) {
        for number in 0.. {
            if self.is_over() {
                return;
            }
            let place = [INBOX, KEYWORD, LINKED, PUBLIC, MBOX][number % 5];
            let id = format!("{}-lda{client}-{number}", place.kind);
            let message = message(&place, &id, number);
            let (mut unheard, mut refused) = (0, Vec::new());
            loop {
                let mut command = program("postroom-lda");
                command
                    .arg("-c")
                    .arg(self.store.path("postroom.toml"))
                    .args(place.arguments());
                as_user(&mut command, MAIL, MAIL, &[100]);
                command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped());
                let mut child = command.spawn().unwrap();
                // One that is killed does not read everything.
                let _ = io::Write::write_all(&mut child.stdin.take().unwrap(), &message);
                if random.below(8) == 0 {
                    pause(random.below(60));
                    let _ = child.kill();
                }
                let output = child.wait_with_output().unwrap();
                match output.status.code() {
                    Some(0) => break,
                    Some(75) => refused.push(String::from_utf8(output.stderr).unwrap()),
                    None => unheard += 1,
                    Some(_) => panic!("{id}: {output:?}"),
                }
                pause(30);
            }
            self.store_one(Stored {
                id,
                user: "alice",
                place: None,
                unheard,
                refused,
                by: By::Lda,
            });
        }
    }

    /// Postfix has a queue, and tries again by itself.
    fn postfix(&self, postfix: &Postfix) {
        for number in 0.. {
            if self.is_over() {
                return;
            }
            let place = [INBOX, KEYWORD, LINKED, PUBLIC][number % 4];
            let id = format!("{}-postfix-{number}", place.kind);
            postfix.send(&[&place.address()], &message(&place, &id, number));
            self.store_one(Stored {
                id,
                user: "alice",
                place: None,
                unheard: 0,
                refused: Vec::new(),
                by: By::Postfix,
            });
            pause(30);
        }
    }

    /// smtp-source, to bob.
    fn smtp_source(&self) {
        for number in 0.. {
            if self.is_over() {
                return;
            }
            let subject = format!("run-{number}");
            let [count, length] = [BATCH, LENGTH].map(|it| it.to_string());
            let mut command = Command::new("smtp-source");
            command.args(["-L", "-s", "4", "-m", &count, "-l", &length, "-S", &subject]);
            command.args(["-f", "s@else.test", "-t", "bob@x"]);
            command.arg(format!("unix:{}", self.socket.display()));
            let ended = command
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .status()
                .unwrap();
            self.runs.lock().unwrap().push((subject, ended.success()));
            pause(200);
        }
    }

    /// A reader who flags what he sees.
    fn imap(&self, port: u16) {
        let mut imap = Imap::login(port, "alice");
        while !self.is_over() {
            for mailbox in [INBOX, KEYWORD, LINKED, PUBLIC].map(|place| place.mailbox) {
                let count = imap.select(mailbox);
                let last = count.saturating_sub(20).max(1);
                if count > 0 {
                    imap.command(&format!("STORE {last}:* +FLAGS (\\Seen)"));
                    imap.command(&format!("STORE {last}:* +FLAGS ($Seen)"));
                }
                pause(100);
            }
        }
        imap.logout();
    }

    /// Somebody who holds a lock for longer than anybody waits.
    fn hold_locks(&self) {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let content = format!("{}:{}", std::process::id(), host.trim());
        for (lock, held) in LOCKS.iter().zip(&self.held).cycle() {
            if self.is_over() {
                return;
            }
            let path = self.store.path(lock);
            let fresh = path.with_extension(format!("lock.{}", std::process::id()));
            fs::write(&fresh, &content).unwrap();
            own(&fresh, MAIL, MAIL);
            let has = fs::hard_link(&fresh, &path).is_ok();
            fs::remove_file(&fresh).unwrap();
            if has {
                held.fetch_add(1, Ordering::Relaxed);
                pause(3000);
                fs::remove_file(&path).unwrap();
            }
            pause(1000);
        }
    }

    /// Fills carol's disk, and empties it.
    fn fill(&self) {
        let home = self.store.path("home/carol");
        let filler = home.join("filler");
        while !self.is_over() {
            pause(3000);
            let free = lines_of(
                Command::new("df")
                    .args(["--output=avail", "-B1"])
                    .arg(&home),
            );
            let mut command = Command::new("fallocate");
            command
                .args(["-l", free[1].trim()])
                .arg(&filler)
                .stderr(Stdio::null());
            command.status().unwrap();
            // The rest of it.
            let _ = fs::write(home.join("rest"), vec![0; 1 << 20]);
            pause(2000);
            let _ = fs::remove_file(&filler);
            let _ = fs::remove_file(home.join("rest"));
        }
    }
}

/// Ends the load with its own end.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The children of the server: pid, and whether it is a worker.
fn children(server: &Server) -> Vec<(u32, bool)> {
    let pids = children_of(server.pid()).into_iter();
    pids.map(|pid| {
        let owner =
            fs::metadata(format!("/proc/{pid}")).map(|it| std::os::unix::fs::MetadataExt::uid(&it));
        (pid, owner.is_ok_and(|uid| uid == MAIL))
    })
    .collect()
}

/// KiB of their own and descriptors of all processes of the server.
fn size(server: &Server) -> (u64, usize) {
    let pids = children(server)
        .into_iter()
        .map(|(pid, _)| pid)
        .chain([server.pid()]);
    let of = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let size = line.and_then(|it| it.split_whitespace().next()?.parse::<u64>().ok());
        let files = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        (size.unwrap_or(0), files)
    };
    pids.map(of)
        .fold((0, 0), |(size, files), one| (size + one.0, files + one.1))
}

fn start(store: &Store) -> Server {
    let config = store.path("postroom.toml");
    Server::start_as_root(&config, &store.path("run/lmtp"), &store.path("run/log"))
}

/// Kills one of its processes, if there is one of the kind that chance wants.
fn kill_one(server: &mut Server, random: &mut Random) -> bool {
    let children = children(server);
    let wanted = random.below(4);
    if wanted == 0 {
        server.kill();
        return true;
    }
    let is_worker = wanted > 1;
    let found = children.iter().find(|(_, it)| *it == is_worker);
    found.is_some_and(|(pid, _)| {
        // It may end by itself meanwhile.
        let mut kill = Command::new("kill");
        kill.args(["-KILL", &pid.to_string()]);
        kill.stderr(Stdio::null()).status().unwrap().success()
    })
}

/// As an init system does it.
fn supervise(store: &Store, server: &mut Server) {
    if server.has_ended() {
        *server = start(store);
    }
}

/// How often Postfix has sent each message and not heard what became of it, by the names in their Message-IDs.
fn unheard_by_postfix(log: &str) -> HashMap<String, usize> {
    const UNHEARD: [&str; 2] = ["while sending end of data", "its worker process has ended"];
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut tries: HashMap<String, usize> = HashMap::new();
    for line in log.lines() {
        // `Nov 29 07:02:09 host postfix/lmtp[17]: 4CDF12E0: to=<alice@x>, …`
        let said = line.split_once("]: ").and_then(|it| it.1.split_once(": "));
        let Some((queue_id, said)) = said else {
            continue;
        };
        if let Some(id) = said.strip_prefix("message-id=<") {
            names.insert(queue_id, id.split('@').next().unwrap());
        }
        // One that was not even sent, for what another one met, says "delivery temporarily suspended" before that.
        let is_sent = said.contains("status=deferred") && !said.contains("suspended: ");
        let is_unheard = is_sent && UNHEARD.iter().any(|it| said.contains(it));
        if let Some(id) = names.get(queue_id).filter(|_| is_unheard) {
            *tries.entry((*id).to_owned()).or_default() += 1;
        }
    }
    tries
}

fn soak(seconds: u64, window: &str, version: Version, mut random: Random) {
    let store = Store::new();
    fs::remove_dir_all(store.path("home")).unwrap();
    store.scratch.dir("home", MAIL, MAIL, 0o755);
    let at = store.scratch.dir("home/carol", MAIL, MAIL, 0o700);
    let Some(_disk) = Disk::new(FileSystem::Ext4, 4096, store.path("disk"), at) else {
        return;
    };
    places::furnish(&store.scratch);
    let root = store.scratch.text("");
    let delivery =
        format!("duplicate_window = \"{window}\"\nduplicate_db = \"{root}/db/duplicates.db\"\n");
    store.scratch.dir("db", 0, 0, 0o777);
    let config = places::configure(&store, "", &delivery, "");
    replace_in(&config, "[lmtp]\n", "[lmtp]\nverbose_replies = true\n");
    let Some(dovecot) = places::dovecot(version, &store) else {
        return;
    };
    let mut server = start(&store);
    let socket = store.path("run/lmtp");
    let Some(postfix) = Postfix::start(&store.scratch, &socket, "/bin/false") else {
        return;
    };
    let load = Load {
        store: &store,
        socket: &socket,
        stored: Mutex::new(Vec::new()),
        is_over: AtomicBool::new(false),
        runs: Mutex::new(Vec::new()),
        held: [const { AtomicUsize::new(0) }; 2],
    };
    let mut kills = 0;
    let mut sizes = Vec::new();
    thread::scope(|scope| {
        let load = &load;
        for client in 0..4 {
            scope.spawn(move || load.lmtp(client, "alice"));
        }
        scope.spawn(|| load.lmtp(4, "carol"));
        for client in 0..2 {
            let random = Random(random.below(1 << 31));
            scope.spawn(move || load.lda(client, random));
        }
        scope.spawn(|| load.postfix(&postfix));
        if installed("smtp-source") {
            scope.spawn(|| load.smtp_source());
        }
        for _ in 0..2 {
            scope.spawn(|| load.imap(dovecot.port));
        }
        scope.spawn(|| load.hold_locks());
        scope.spawn(|| load.fill());
        // Also where this fails: the others wait for it.
        let _end = End(&load.is_over);
        let began = Instant::now();
        let so_long =
            |part: u64| began.elapsed() < Duration::from_millis(seconds * 1000 * part / 3);
        while so_long(2) {
            pause(500 + random.below(2500));
            kills += usize::from(kill_one(&mut server, &mut random));
            pause(100);
            supervise(&store, &mut server);
        }
        // And nobody is killed any more: it does not grow. Who was killed last may end a little later.
        let mut run_for = |time: Duration| {
            let began = Instant::now();
            while began.elapsed() < time {
                pause(200);
                supervise(&store, &mut server);
            }
            sizes.push(size(&server));
        };
        run_for(Duration::from_millis(seconds * 1000 / 9));
        run_for(Duration::from_secs(seconds).saturating_sub(began.elapsed()));
    });
    postfix.drain();
    let mut stored = load.stored.into_inner().unwrap();
    let tries = unheard_by_postfix(&postfix.log());
    for one in stored.iter_mut().filter(|one| one.by == By::Postfix) {
        one.unheard = tries.get(&one.id).copied().unwrap_or(0);
    }
    let held = load.held.map(AtomicUsize::into_inner);
    let runs = load.runs.into_inner().unwrap();
    let mut found: HashMap<(String, String), usize> = HashMap::new();
    let mut by_uid: HashMap<(String, String, u32), String> = HashMap::new();
    for user in ["alice", "bob", "carol"] {
        let mut imap = Imap::login(dovecot.port, user);
        for name in imap.mailboxes("*") {
            // Another name of what is read already.
            if user != "alice" && name != "INBOX" || name.starts_with("shared/") {
                continue;
            }
            imap.select(&name);
            for message in imap.fetch_all() {
                let id = subject(&message.bytes);
                if user == "bob" {
                    let body = places::body_of(&message.bytes).replace('\n', "\r\n");
                    assert_eq!(body.trim_end().len(), LENGTH, "{id}");
                    *found.entry((user.into(), id)).or_default() += 1;
                    continue;
                }
                let number = id
                    .rsplit('-')
                    .next()
                    .and_then(|it| it.parse().ok())
                    .unwrap_or(0);
                let body = places::body_of(&message.bytes);
                assert_eq!(
                    body.trim_end(),
                    places::body(&id, number).trim_end(),
                    "{name} {id}"
                );
                by_uid.insert((user.into(), name.clone(), message.uid), id.clone());
                *found.entry((user.into(), id)).or_default() += 1;
            }
        }
        imap.logout();
    }
    let places: HashSet<(&str, &str, &str)> = by_uid
        .iter()
        .map(|((user, mailbox, _), id)| (user.as_str(), mailbox.as_str(), id.as_str()))
        .collect();
    let mut elsewhere = Vec::new();
    let (mut lost, mut doubled, mut too_often, mut wrong_uids) =
        (Vec::new(), [0, 0], Vec::new(), Vec::new());
    for one in &stored {
        let count = found
            .get(&(one.user.to_owned(), one.id.clone()))
            .copied()
            .unwrap_or(0);
        let is_known = window != "0" && one.by != By::Lda && !one.id.starts_with(MBOX.kind);
        let allowed = 1 + if is_known { 0 } else { one.unheard };
        if count == 0 {
            lost.push(&one.id);
        }
        doubled[usize::from(is_known)] += count.saturating_sub(1);
        if count > allowed {
            too_often.push((&one.id, count, one.unheard, &one.refused));
        }
        if let Some((mailbox, None)) = &one.place
            && count > 0
            && !places.contains(&(one.user, mailbox.as_str(), one.id.as_str()))
        {
            elsewhere.push((&one.id, mailbox));
        }
        if let Some((mailbox, Some(uid))) = &one.place {
            let there = by_uid.get(&(one.user.to_owned(), mailbox.clone(), *uid));
            if there != Some(&one.id) {
                wrong_uids.push((&one.id, mailbox, uid, there));
            }
        }
    }
    let of_runs = runs.iter().map(|(subject, is_whole)| {
        let count = found.get(&("bob".to_owned(), subject.clone())).copied();
        (subject, *is_whole, count.unwrap_or(0))
    });
    let of_runs: Vec<_> = of_runs.collect();
    let wrong_runs = of_runs
        .iter()
        .filter(|(_, is_whole, count)| *count > BATCH || *is_whole && *count < BATCH)
        .collect::<Vec<_>>();
    let whole_runs = runs.iter().filter(|(_, is_whole)| *is_whole).count();
    let unheard: usize = stored.iter().map(|one| one.unheard).sum();
    let refused = stored.iter().flat_map(|one| &one.refused);
    let full = refused.filter(|reply| reply.starts_with("452 ")).count();
    let is_without_uid = |one: &&Stored| one.place == Some(("INBOX".to_owned(), None));
    let unlisted = stored.iter().filter(is_without_uid).count();
    eprintln!(
        "duplicate_window = {window}, read by {version:?}: {seconds} s, {} messages and {whole_runs} whole runs of {} of smtp-source, {kills} kills, {unheard} unheard, \
         {} of Postfix, {full} times no room, locks held {held:?} times, {unlisted} without a UID: {} lost, \
         {} doubled, of those that are known again {}, {} too often, {} wrong UIDs; KiB and descriptors without kills, soon and at the end: {sizes:?}",
        stored.len(),
        runs.len(),
        tries.values().sum::<usize>(),
        lost.len(),
        doubled[0] + doubled[1],
        doubled[1],
        too_often.len(),
        wrong_uids.len(),
    );
    assert_eq!(lost, Vec::<&String>::new());
    assert!(wrong_runs.is_empty(), "{wrong_runs:?}");
    let of_bob = found.iter().filter(|((user, _), _)| user == "bob");
    assert_eq!(
        of_bob.map(|(_, count)| count).sum::<usize>(),
        of_runs.iter().map(|(_, _, count)| count).sum()
    );
    assert!(too_often.is_empty(), "{too_often:?}");
    assert!(wrong_uids.is_empty(), "{wrong_uids:?}");
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    let [(soon, few), (late, many)] = sizes[..] else {
        panic!("{sizes:?}");
    };
    // Deliveries that are at work just then have some; one left by each would be thousands.
    assert!(late < 2 * soon && many < few + 200, "it grows: {sizes:?}");
    let complaints = dovecot.complaints();
    assert_eq!(complaints, Vec::<String>::new());
    assert!(kills > 2 && stored.len() > 100, "{kills} {}", stored.len());
    // A disk that is full, and locks that are held, were met.
    assert!(full > 0 && unlisted > 0, "{full} {unlisted}");
    assert!(held.iter().all(|it| *it > 0), "{held:?}");
}

#[test]
fn nothing_is_lost_and_nothing_too_often() {
    if not_root()
        || !installed("postfix") && skip("Postfix is not installed")
        || is_done_apart("nothing_is_lost_and_nothing_too_often")
    {
        return;
    }
    let minutes: f64 = std::env::var("POSTROOM_SOAK_MINUTES").map_or(2.0, |it| it.parse().unwrap());
    let seed = random::seed();
    for (window, version) in ["0", "30m"].into_iter().zip(VERSIONS) {
        soak((minutes * 30.0) as u64, window, version, Random(seed));
    }
}
