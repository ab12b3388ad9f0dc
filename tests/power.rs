//! Power cuts: nine clients deliver to every kind of mailbox, three of them to one mbox, while the disk goes off, and now and then Dovecot writes to
//! the same mailbox. Whatever had a 250 by then is there afterwards, whole, with the UID that its reply said; and no UID ever stands for two
//! messages.
//!
//! `POSTROOM_POWER_CUTS` cuts (`tests/powercut --cuts 1000`), half of them on ext4 and half on xfs; Dovecot 2.3 and 2.4 look in turn.

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use support::imap::Imap;
use support::mount::{Disk, FileSystem, is_done_apart};
use support::peers::{Dovecot, VERSIONS, lines_of};
use support::places::{self, INBOX, KEYWORD, LINKED, MBOX, NEW, PLACES, PUBLIC, Place};
use support::random::{self, Random};
use support::{Lmtp, MAIL, PATIENCE, Server, Store, children_of, not_root, subject, uid_of};

/// Cuts of one disk: everything that was acknowledged on it is looked for after each.
const CUTS_OF_A_DISK: usize = 10;
const MAILDIRS: [Place; 5] = [INBOX, NEW, KEYWORD, LINKED, PUBLIC];
/// Where Dovecot meanwhile writes the list of UIDs and the keywords anew, again and again.
const REWRITTEN: Place = Place {
    kind: "rewritten",
    mailbox: "Rewritten",
    path: "home/alice/Maildir/.Rewritten",
};
/// At one of so many cuts.
const REWRITTEN_EVERY: usize = 3;
/// Deliveries to a mailbox that its first one makes.
const TO_A_NEW_ONE: usize = 4;

/// A message that had a 250.
#[derive(Debug, Clone)]
struct Stored {
    mailbox: String,
    id: String,
    uid: Option<u32>,
}

/// What is known of a disk.
#[derive(Default)]
struct Ledger {
    stored: Vec<Stored>,
    /// Messages that were seen: UIDVALIDITY and UID of a mailbox.
    seen: HashMap<(String, u32, u32), String>,
    validities: HashMap<String, u32>,
    /// Up to this UID Dovecot may have expunged all of [`REWRITTEN`].
    expunged: u32,
    /// Of the mbox: what Dovecot has shown of a message that was never whole, by its UID.
    torn: HashMap<u32, String>,
    /// And those with the zeros of another one behind them.
    with_zeros: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Figures {
    stored: usize,
    lost: usize,
    /// Visible, and not all there.
    partial: usize,
    /// With another UID than was said, or one that was another's.
    wrong_uids: usize,
    /// Answered for without a UID.
    unlisted: usize,
    /// Of an mbox, shown by a Dovecot that came before the next delivery.
    torn: usize,
    /// Messages of an mbox with zeros behind them.
    with_zeros: usize,
    twice: usize,
    /// Cuts behind which Dovecot had something to say.
    complaints: usize,
    /// Lists and files of keywords that Dovecot had written before the cuts.
    rewrites: usize,
    empty_locks: usize,
    /// By a Dovecot that had to make its index anew.
    opened_twice: usize,
}

fn mailbox_of(place: &Place, cut: usize, number: usize) -> String {
    match *place == places::NEW {
        true => format!("New{cut}-{}", number / TO_A_NEW_ONE),
        false => place.mailbox.to_owned(),
    }
}

fn address_of(place: &Place, mailbox: &str) -> String {
    match *place == places::NEW {
        true => format!("alice+{mailbox}@x"),
        false => place.address(),
    }
}

fn start(store: &Store) -> Server {
    let config = store.path("postroom.toml");
    let (socket, log) = (store.path("run/lmtp"), store.path("run/log"));
    Server::start_as(&config, &socket, &log, &[100])
}

/// Delivers until something fails.
fn deliver_until_the_end(
    socket: &Path,
    place: &Place,
    name: &str,
    cut: usize,
    stored: &Mutex<Vec<Stored>>,
) {
    let mut client = Lmtp::connect(socket);
    for number in 0.. {
        let id = format!("{cut}-{}{name}-{number}", place.kind);
        let mailbox = mailbox_of(place, cut, number);
        let address = address_of(place, &mailbox);
        let message = place.message(&id, number);
        match attempt(&mut client, &address, &message) {
            Ok(reply) if reply.starts_with("250 ") => {
                assert!(reply.contains(&format!("mailbox={mailbox:?}")), "{reply}");
                let uid = uid_of(&reply);
                stored.lock().unwrap().push(Stored { mailbox, id, uid });
            }
            _ => return,
        }
    }
}

fn attempt(client: &mut Lmtp, address: &str, message: &[u8]) -> io::Result<String> {
    client.try_send(
        format!("MAIL FROM:<s@else.test>\r\nRCPT TO:<{address}>\r\nDATA\r\n").as_bytes(),
    )?;
    for _ in 0..2 {
        client.try_reply()?;
    }
    let go = client.try_reply()?;
    if !go.starts_with("354") {
        return Ok(go);
    }
    client.try_send(&support::stuffed(message))?;
    client.try_reply()
}

/// A reader gives each message in [`REWRITTEN`] a keyword that is new there, and expunges it, until he is gone: Dovecot writes the list of
/// UIDs and the keywords anew. Answers how often, and up to which UID.
fn rewrite(mut imap: Imap, cut: usize) -> (usize, u32) {
    let (mut count, mut expunged) = (0, 0);
    // Before the first delivery it is not there.
    while let Ok(selected) = imap.try_command(&format!("SELECT \"{}\"", REWRITTEN.mailbox)) {
        let next = selected.iter().find_map(|it| it.split("UIDNEXT ").nth(1));
        let next = next.and_then(|it| it.split(']').next()?.parse::<u32>().ok());
        let Some(next) = next.filter(|it| *it > 1) else {
            continue;
        };
        let last = next - 1;
        let marks = format!("\\Deleted $Cut{cut} $Number{}", count % 8);
        let mark = format!("UID STORE 1:{last} +FLAGS.SILENT ({marks})");
        let mut is_done = |command: &str| {
            let said = imap.try_command(command);
            said.is_ok_and(|it| it.last().unwrap().contains(" OK "))
        };
        if !is_done(&mark) {
            continue;
        }
        // Whatever he hears of it.
        expunged = last;
        count += usize::from(is_done("EXPUNGE"));
    }
    (count, expunged)
}

/// Ends Dovecot's readers: they wait for minutes for locks on a disk that is gone.
fn end_readers(dovecot: &Dovecot) {
    for pid in children_of(dovecot.pid()) {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name == "imap\n" {
            // It may be gone by then.
            let _ = Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .output();
        }
    }
}

/// Starts a server, lets it have mail, and cuts the power.
fn cut(
    store: &Store,
    disk: &Disk,
    number: usize,
    random: &mut Random,
    dovecot: &Dovecot,
    ledger: &mut Ledger,
    figures: &mut Figures,
) {
    let mut server = start(store);
    let mut cutter = disk.cutter();
    let stored = Mutex::new(Vec::new());
    let mut counted = 0;
    let is_rewritten = number.is_multiple_of(REWRITTEN_EVERY);
    let reader = is_rewritten.then(|| Imap::login(dovecot.port, "alice"));
    thread::scope(|scope| {
        let reader = reader.map(|reader| scope.spawn(move || rewrite(reader, number)));
        let first = PLACES.iter().chain([&REWRITTEN]).map(|place| (place, ""));
        for (place, name) in first.chain([(&MBOX, "-two"), (&MBOX, "-three")]) {
            let (stored, socket) = (&stored, server.socket.clone());
            scope.spawn(move || deliver_until_the_end(&socket, place, name, number, stored));
        }
        // Not when nothing has happened yet, and at any moment then.
        let (wanted, began) = (10 + random.below(40) as usize, Instant::now());
        while stored.lock().unwrap().len() < wanted && began.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_micros(random.below(10_000)));
        {
            let stored = stored.lock().unwrap();
            counted = stored.len();
            cutter.cut();
        }
        cutter.wait();
        server.kill();
        end_readers(dovecot);
        if let Some(reader) = reader {
            let (rewrites, expunged) = reader.join().unwrap();
            figures.rewrites += rewrites;
            ledger.expunged = ledger.expunged.max(expunged);
        }
    });
    let mut stored = stored.into_inner().unwrap();
    stored.truncate(counted);
    ledger.stored.append(&mut stored);
    disk.restart();
    // Nobody knows whose they are, so everybody waits two minutes for them: too long for a test.
    figures.empty_locks += remove(&store.path("home"), &["-name", "*.lock", "-empty"]);
    if is_rewritten {
        // It syncs none of its index, and does not always get over what is left of it.
        let maildir = store.path("home/alice/Maildir");
        remove(&maildir, &["-name", "dovecot*index*"]);
        remove(&maildir, &["-name", "*.lock"]);
    }
}

/// Removes what find(1) finds. Answers how many there were.
fn remove(root: &Path, what: &[&str]) -> usize {
    let mut find = Command::new("find");
    find.arg(root).args(["-type", "f"]).args(what);
    lines_of(find.args(["-print", "-delete"])).len()
}

/// As the kernel does it after a while. Whatever a reader has written to his own files is there after the next cut: he syncs none.
fn write_back(store: &Store) {
    lines_of(Command::new("sync").arg("-f").arg(store.path("home")));
}

/// One message to each of `places`, behind whatever the cut has left there.
fn deliver_after(store: &Store, cut: usize, places: &[Place], ledger: &mut Ledger) {
    let server = start(store);
    let mut client = server.client();
    let last_new = (0..ledger.stored.len())
        .map(|number| mailbox_of(&NEW, cut, number))
        .take_while(|name| ledger.stored.iter().any(|it| it.mailbox == *name))
        .last();
    for place in places {
        let mailbox = match *place == NEW {
            true => last_new.clone().unwrap_or_else(|| mailbox_of(&NEW, cut, 0)),
            false => place.mailbox.to_owned(),
        };
        let id = format!("{cut}-{}-after-0", place.kind);
        let address = address_of(place, &mailbox);
        let reply = client
            .deliver(&[&address], &place.message(&id, 0))
            .remove(0);
        let is_stored =
            reply.starts_with("250 ") && reply.contains(&format!("mailbox={mailbox:?}"));
        assert!(is_stored, "{cut} {mailbox}: {reply} {}", server.log());
        let uid = uid_of(&reply);
        ledger.stored.push(Stored { mailbox, id, uid });
    }
}

/// What Dovecot shows of each mailbox, beside what was acknowledged. `is_first`: nobody has delivered to the mbox since the cut, so the
/// beginning of a message may be there, which stays from now on.
fn look(dovecot: &Dovecot, case: &str, is_first: bool, ledger: &mut Ledger, figures: &mut Figures) {
    let mut imap = Imap::login(dovecot.port, "alice");
    let mailboxes: BTreeSet<String> = ledger.stored.iter().map(|it| it.mailbox.clone()).collect();
    let listed = imap.mailboxes("New*");
    for mailbox in mailboxes.into_iter().chain(listed).collect::<BTreeSet<_>>() {
        let mut selected = imap.command(&format!("SELECT \"{mailbox}\""));
        let is_open = |selected: &[String]| selected.last().unwrap().contains(" OK ");
        // Its log ends in zeros: the size that it got by a later record was there before the bytes of that.
        if !is_open(&selected) {
            figures.opened_twice += 1;
            imap = Imap::login(dovecot.port, "alice");
            selected = imap.command(&format!("SELECT \"{mailbox}\""));
        }
        if !is_open(&selected) {
            eprintln!("{case}: {mailbox}: {selected:?}");
            figures.lost += ledger
                .stored
                .iter()
                .filter(|it| it.mailbox == mailbox)
                .count();
            continue;
        }
        let validity = selected
            .iter()
            .find_map(|line| line.split("UIDVALIDITY ").nth(1))
            .unwrap();
        let validity: u32 = validity.split(']').next().unwrap().parse().unwrap();
        if *ledger.validities.entry(mailbox.clone()).or_insert(validity) != validity {
            eprintln!("{case}: {mailbox}: another UIDVALIDITY");
            figures.wrong_uids += 1;
        }
        let mut there: BTreeMap<String, u32> = BTreeMap::new();
        let mut torn = HashMap::new();
        for message in imap.fetch_all() {
            let (uid, id) = (message.uid, subject(&message.bytes));
            let number = id
                .rsplit('-')
                .next()
                .and_then(|it| it.parse().ok())
                .unwrap_or(0);
            let place = PLACES
                .iter()
                .chain([&REWRITTEN])
                .find(|it| id.contains(it.kind));
            let is_whole_in = |bytes: &[u8]| {
                places::body_of(bytes).trim_end() == places::body(&id, number).trim_end()
            };
            let mut is_whole = is_whole_in(&message.bytes);
            // The length of one that was never answered, without its bytes: a Dovecot that comes before the next delivery takes it for
            // the end of the one before, and so it stays.
            if !is_whole && mailbox == MBOX.mailbox && (is_first || ledger.with_zeros.contains(&id))
            {
                let zeros = message.bytes.iter().rev().take_while(|&&byte| byte == 0x80);
                let end = message.bytes.len() - zeros.count();
                is_whole = is_whole_in(&message.bytes[..end]);
                figures.with_zeros += usize::from(is_whole && ledger.with_zeros.insert(id.clone()));
            }
            let is_torn = !is_whole || place.is_none();
            if is_torn && mailbox == MBOX.mailbox {
                let text = String::from_utf8_lossy(&message.bytes);
                torn.insert(uid, text.trim_end().to_owned());
                continue;
            }
            if is_torn {
                eprintln!(
                    "{case}: {mailbox}: partial: {uid} {id:?} {} bytes",
                    message.bytes.len()
                );
                figures.partial += 1;
                continue;
            }
            let mut flags: Vec<&str> = message
                .flags
                .split(' ')
                .filter(|it| *it != "\\Recent")
                .collect();
            flags.sort_unstable();
            let is_marked = mailbox == REWRITTEN.mailbox;
            if !is_marked && flags.join(" ") != place.unwrap().flags(number) {
                eprintln!("{case}: {mailbox}: {id} has {flags:?}");
                figures.wrong_uids += 1;
            }
            let known = ledger
                .seen
                .entry((mailbox.clone(), validity, uid))
                .or_insert_with(|| id.clone());
            if *known != id {
                eprintln!("{case}: {mailbox}: UID {uid} was {known} and is {id}");
                figures.wrong_uids += 1;
            }
            if there.insert(id.clone(), uid).is_some() {
                eprintln!("{case}: {mailbox}: {id} is there twice");
                figures.twice += 1;
            }
        }
        if mailbox == MBOX.mailbox && torn != ledger.torn {
            let stays = |(uid, text)| torn.get(uid) == Some(text);
            if is_first && ledger.torn.iter().all(stays) {
                figures.torn += torn.len() - ledger.torn.len();
            } else {
                eprintln!(
                    "{case}: {mailbox}: partial: {torn:?} and not {:?}",
                    ledger.torn
                );
                figures.partial += 1;
            }
            ledger.torn = torn;
        }
        let mut told = HashMap::new();
        for stored in ledger.stored.iter().filter(|it| it.mailbox == mailbox) {
            let other = stored.uid.and_then(|uid| told.insert(uid, &stored.id));
            if let Some(other) = other {
                eprintln!("{case}: {stored:?} has the UID of {other}");
                figures.wrong_uids += 1;
            }
            let may_be_expunged = mailbox == REWRITTEN.mailbox
                && ledger.expunged > 0
                && stored.uid.is_none_or(|it| it <= ledger.expunged);
            match there.get(&stored.id) {
                None if may_be_expunged => {}
                None => {
                    eprintln!("{case}: lost: {stored:?}");
                    figures.lost += 1;
                }
                Some(uid) if stored.uid.is_some_and(|told| told != *uid) => {
                    eprintln!("{case}: {stored:?} has UID {uid}");
                    figures.wrong_uids += 1;
                }
                Some(_) => {}
            }
        }
    }
    imap.logout();
}

/// What Dovecot complains of, but for its own cache, which it syncs as little, what it says of the log of one that is opened twice, and readers
/// that we have ended.
fn complaints_of(dovecot: &Dovecot) -> Vec<String> {
    const NOT_COUNTED: [&str; 4] = [
        "Deleting corrupted cache",
        "transaction log",
        "Transaction log",
        "killed with signal 9",
    ];
    let mut said = dovecot.complaints();
    said.retain(|line| !NOT_COUNTED.iter().any(|it| line.contains(it)));
    said
}

#[test]
fn nothing_that_had_a_250_is_lost() {
    if not_root() || is_done_apart("nothing_that_had_a_250_is_lost") {
        return;
    }
    let cuts = std::env::var("POSTROOM_POWER_CUTS").map_or(50, |it| it.parse().unwrap());
    let mut random = Random(random::seed());
    let began = Instant::now();
    for kind in [FileSystem::Ext4, FileSystem::Xfs] {
        let mut figures = Figures::default();
        let of_this_kind = cuts / 2;
        let firsts = (0..of_this_kind).step_by(CUTS_OF_A_DISK);
        for (first, version) in firsts.zip(VERSIONS.into_iter().cycle()) {
            let store = Store::new();
            fs::remove_dir_all(store.path("home")).unwrap();
            let at = store.scratch.dir("home", MAIL, MAIL, 0o755);
            // The least that mkfs.xfs makes; next to nothing of it is ever written.
            let Some(disk) = Disk::new(kind, 320, store.path("disk"), at) else {
                return;
            };
            places::furnish(&store.scratch);
            write_back(&store);
            places::configure(&store, "", "", "");
            let Some(dovecot) = places::dovecot(version, &store) else {
                return;
            };
            let mut ledger = Ledger::default();
            for number in first..of_this_kind.min(first + CUTS_OF_A_DISK) {
                let case = format!("{kind:?}, {version:?}, cut {number}");
                cut(
                    &store,
                    &disk,
                    number,
                    &mut random,
                    &dovecot,
                    &mut ledger,
                    &mut figures,
                );
                // Whatever it has met when the disk was gone.
                let complaints = complaints_of(&dovecot).len();
                // Who comes first, the next delivery or Dovecot: at every second cut to a Maildir, at the others to the mbox.
                if number % 2 == 0 {
                    deliver_after(&store, number, &[MBOX], &mut ledger);
                    look(&dovecot, &case, false, &mut ledger, &mut figures);
                } else {
                    deliver_after(&store, number, &MAILDIRS, &mut ledger);
                    look(&dovecot, &case, true, &mut ledger, &mut figures);
                    deliver_after(&store, number, &[MBOX], &mut ledger);
                    look(&dovecot, &case, false, &mut ledger, &mut figures);
                }
                write_back(&store);
                let said = complaints_of(&dovecot);
                for line in &said[complaints..] {
                    eprintln!("{case}: {line}");
                }
                figures.complaints += usize::from(said.len() > complaints);
            }
            figures.stored += ledger.stored.len();
            figures.unlisted += ledger.stored.iter().filter(|it| it.uid.is_none()).count();
            drop(dovecot);
        }
        eprintln!(
            "{kind:?}: {of_this_kind} cuts, {figures:?}, {:?}",
            began.elapsed()
        );
        assert!(figures.stored > cuts, "{figures:?}");
        assert!(
            figures.rewrites > 0 || of_this_kind < CUTS_OF_A_DISK,
            "{figures:?}"
        );
        let wrong = [
            figures.lost,
            figures.partial,
            figures.wrong_uids,
            figures.twice,
        ];
        assert_eq!(wrong, [0; 4], "{figures:?}");
        // Five in five hundred cuts is the most that was ever seen, beside much other work.
        let most = (cuts / 100).max(2);
        assert!(figures.opened_twice <= most, "{figures:?}");
        assert!(figures.complaints <= most, "{figures:?}");
        // One in a thousand cuts of an ext4, beside much other work.
        assert!(figures.with_zeros <= most, "{figures:?}");
        assert!(figures.unlisted * 2 < figures.stored, "{figures:?}");
    }
}
