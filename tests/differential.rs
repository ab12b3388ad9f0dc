//! Files that we share with Dovecot, as fuzzing has come upon them, and real ones that are cut or have another byte: what a delivery
//! makes of one is what Dovecot makes of its twin.

mod support;

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use support::imap::Imap;
use support::peers::{Dovecot, VERSIONS};
use support::random::{Random, seed};
use support::{MAIL, Server, Store, messages, not_root, uid_of};

/// Of each file, beside those of the corpus.
const MUTANTS: usize = 32;
/// The most that was ever needed is three.
const LOOKS: usize = 6;

/// What Dovecot says of a mailbox.
#[derive(Debug)]
struct Known {
    validity: u32,
    next: u32,
    uids: Vec<u32>,
}

impl Known {
    fn shows_all(&self, mailbox: &Path) -> bool {
        self.uids.len() == messages(mailbox).len()
    }
}

fn deliver(server: &Server, mailbox: &str) -> Option<u32> {
    let recipient = format!("alice+{mailbox}@x");
    let mut client = server.client();
    let replies = client.deliver(&[&recipient], b"Subject: new\n\ntext\n");
    assert!(replies[0].starts_with("250 2.0.0"), "{replies:?}");
    uid_of(&replies[0])
}

/// What it says as soon as it shows all messages: from what is torn, or says wrong UIDs, it comes to that by and by. None: it cannot
/// open it.
fn look(dovecot: &Dovecot, imap: &mut Imap, mailbox: &Path) -> Option<Known> {
    let name = mailbox.file_name().unwrap().to_str().unwrap();
    let mut last = None;
    for _ in 0..LOOKS {
        match try_look(imap, name.trim_start_matches('.')) {
            Ok(Some(known)) => last = Some(known),
            Ok(None) => {}
            // Now and then its process ends of it.
            Err(_) => *imap = Imap::login(dovecot.port, "alice"),
        }
        if last.as_ref().is_some_and(|it| it.shows_all(mailbox)) {
            break;
        }
    }
    last
}

fn try_look(imap: &mut Imap, mailbox: &str) -> io::Result<Option<Known>> {
    let selected = imap.try_command(&format!("SELECT {mailbox}"))?;
    if !selected.last().unwrap().contains(" OK ") {
        return Ok(None);
    }
    let number = |key: &str| {
        let found = selected.iter().find_map(|line| line.split_once(key));
        let (_, rest) = found.unwrap();
        rest.split(']').next().unwrap().parse().unwrap()
    };
    let found = imap.try_command("UID SEARCH ALL")?;
    let uids = found.iter().find_map(|line| line.strip_prefix("* SEARCH"));
    let uids = uids.unwrap_or_default().split_whitespace();
    // CLOSE would expunge what a flag in a log has marked.
    imap.try_command("UNSELECT")?;
    Ok(Some(Known {
        validity: number("[UIDVALIDITY "),
        next: number("[UIDNEXT "),
        uids: uids.map(|it| it.parse().unwrap()).collect(),
    }))
}

/// Of a log that begins with what the target has: its ID, its number and none before it, its time, modseq and byte order.
fn log(records: &[u8]) -> Vec<u8> {
    let header = [0x0028_0301, 7, 1, 0, 0, 7, 1, 0, 1, 0_u32];
    [&header.map(u32::to_le_bytes).concat(), records].concat()
}

/// As the target takes its input: a bit, whether there is a header, and lines.
fn list(input: &[u8]) -> Vec<u8> {
    match input.split_first() {
        Some((first, lines)) if first & 1 == 1 => [b"3 V5 N2\n", lines].concat(),
        Some((_, lines)) => lines.to_vec(),
        None => Vec::new(),
    }
}

/// The file of a mailbox as it is, then those of the corpus, then as it is not.
fn variants(file: &Path, corpus: &str, made: fn(&[u8]) -> Vec<u8>) -> Vec<Vec<u8>> {
    let good = fs::read(file).unwrap();
    let corpus = fs::read_dir(Path::new("tests/fuzz/corpus").join(corpus)).unwrap();
    let mut found: Vec<Vec<u8>> = corpus
        .map(|entry| made(&fs::read(entry.unwrap().path()).unwrap()))
        .collect();
    found.sort();
    // The rest would take longer, and tell no more.
    let found = found.into_iter().step_by(4);
    let mut random = Random(seed());
    let mutants = (0..MUTANTS).map(|number| {
        let at = random.below(good.len() as u64) as usize;
        let mut odd = good.clone();
        match number % 4 {
            0 => odd.truncate(at),
            1 => odd[at] = b"+ \n:0G\0\xff"[random.below(8) as usize],
            _ => odd[at] ^= 1 << random.below(8),
        }
        odd
    });
    let first = std::iter::once(good.clone());
    first.chain(found).chain(mutants).collect()
}

#[test]
fn twins() {
    if not_root() {
        return;
    }
    type Made = fn(&[u8]) -> Vec<u8>;
    let files: [(&str, &str, Made); 2] = [
        ("dovecot-uidlist", "uidlist", list),
        ("dovecot.index.log", "index_log", log),
    ];
    for version in VERSIONS {
        let store = Store::with_inbox();
        let scratch = &store.scratch;
        let work = scratch.maildir("home/alice/Maildir/.Work", MAIL, MAIL, 0o700);
        let Some(dovecot) = Dovecot::start(version, &store) else {
            return;
        };
        let server = store.serve("", "");
        for _ in 0..5 {
            deliver(&server, "Work");
        }
        let mut imap = Imap::login(dovecot.port, "alice");
        imap.select("Work");
        imap.command("UID STORE 2:4 +FLAGS (\\Flagged $Label1)");
        imap.command("UID STORE 3 +FLAGS (\\Deleted)");
        imap.command("EXPUNGE");
        deliver(&server, "Work");
        let good = look(&dovecot, &mut imap, &work).unwrap();
        imap.logout();
        // What is in it is in the log too.
        let _ = fs::remove_file(work.join("dovecot.index"));
        for (file, corpus, made) in files {
            let variants = variants(&work.join(file), corpus, made);
            for (number, bytes) in variants.iter().enumerate() {
                for name in ["ours", "theirs", "third"] {
                    let twin = work.with_file_name(format!(".{name}-{corpus}-{number}"));
                    let copied = Command::new("cp").arg("-a").args([&work, &twin]).status();
                    assert!(copied.unwrap().success());
                    fs::write(twin.join(file), bytes).unwrap();
                }
                // Mail that nobody has told Dovecot of.
                let third = format!("home/alice/Maildir/.third-{corpus}-{number}/new/9.M1P1.mx");
                scratch.file(&third, MAIL, MAIL, 0o600, "Subject: new\n\ntext\n");
            }
            let given: Vec<_> = (0..variants.len())
                .map(|number| deliver(&server, &format!("ours-{corpus}-{number}")))
                .collect();
            let understood = given.iter().flatten().count();
            assert!(
                given[0].is_some() && understood > MUTANTS / 4,
                "{corpus} {given:?}"
            );
            let mut imap = Imap::login(dovecot.port, "alice");
            for (number, uid) in given.into_iter().enumerate() {
                let case = format!("{version:?} {corpus} {number}");
                let bytes = String::from_utf8_lossy(&variants[number]);
                let twin = |name| work.with_file_name(format!(".{name}-{corpus}-{number}"));
                let theirs = look(&dovecot, &mut imap, &twin("theirs"));
                let ours = look(&dovecot, &mut imap, &twin("ours"));
                let is_log = corpus == "index_log";
                let Some(theirs) = theirs else {
                    assert!(uid.is_none() || is_log, "{case}: {uid:?} {bytes}");
                    continue;
                };
                let Some(ours) = ours else {
                    let third = look(&dovecot, &mut imap, &twin("third"));
                    assert!(
                        third.is_none(),
                        "{case}: ours does not open: {uid:?} {bytes}"
                    );
                    continue;
                };
                assert!(ours.shows_all(&twin("ours")), "{case}: {ours:?} {bytes}");
                if !theirs.shows_all(&twin("theirs")) {
                    // Until mail comes: a UID in the log is too high.
                    assert!(is_log, "{case}: {theirs:?} {bytes}");
                    continue;
                }
                let Some(uid) = uid else { continue };
                let all = format!("{case}: {uid} {theirs:?} {ours:?}\n{bytes}");
                assert!(ours.uids.contains(&uid), "{all}");
                assert_eq!(ours.validity, theirs.validity, "{all}");
                // To a message that has lost its line Dovecot gives a new UID too.
                let is_new = |uid: &&u32| !good.uids.contains(uid);
                let first = *theirs.uids.iter().find(is_new).unwrap_or(&theirs.next);
                // That of a torn line, which may have been a higher one, we do not give again.
                let is_torn = corpus == "uidlist" && !variants[number].ends_with(b"\n");
                let is_next = uid == first || uid == theirs.next;
                assert!(is_next || is_torn && uid > first, "{all}");
            }
        }
    }
}
