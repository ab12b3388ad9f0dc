//! The order of the system calls that make an answer true, as strace sees them: one named row for each rule, for postroom-lda
//! and for the LMTP server. A sync that is missing, or comes too late, fails its row.

mod support;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use support::agent::{AGENTS, AS_MAIL, Agent, Delivered, USERS, dialogue};
use support::imap::Imap;
use support::mount::Mount;
use support::peers::Version;
use support::places::{self, INBOX, KEYWORD, LINKED, MBOX, NEW, Place};
use support::{
    MAIL, Server, Store, children_of, installed, messages, not_root, own, program, signal, skip,
    uid_of, wait_until,
};

const TRACED: &str = "trace=openat,mkdirat,write,writev,pwrite64,pwritev,sendto,linkat,renameat,renameat2,unlinkat,fsync,\
                      sync_file_range,fdatasync,fallocate,fstat,newfstatat,fchmod,fchown,fchownat,ftruncate,fcntl,utimensat,fsetxattr,fremovexattr,\
                      exit_group";

/// One call: its line of the trace, the paths of descriptors in it; from where it began to where it ended.
#[derive(Debug)]
struct Call {
    /// Whose calls these are.
    agent: Agent,
    pid: String,
    name: String,
    text: String,
    began: usize,
    ended: usize,
}

/// What a row wants to see: a call, and words that are all in its line.
type Step = (&'static str, &'static [&'static str]);

/// A rule, where it is asked, what is made to fail, at which path; whether the message is stored then, and what has to be seen.
type Failing = (
    &'static str,
    Place,
    &'static str,
    &'static str,
    bool,
    &'static [Step],
);

const ANSWER: Step = ("answer", &[]);

impl Call {
    fn is(&self, (name, words): Step) -> bool {
        let is_named = match name {
            "answer" => self.is_answer(),
            // Either is enough for the bytes and the size.
            "sync" => matches!(self.name.as_str(), "fsync" | "fdatasync"),
            "fstat" => matches!(self.name.as_str(), "fstat" | "newfstatat"),
            "rename" => self.name.starts_with("rename"),
            "write" => self.is_write(),
            name => self.name == name,
        };
        is_named && words.iter().all(|word| self.text.contains(word))
    }

    fn is_write(&self) -> bool {
        ["write", "writev", "pwrite64", "pwritev"].contains(&self.name.as_str())
    }

    /// An exit with 0, or a 250 for a recipient.
    fn is_answer(&self) -> bool {
        match self.agent {
            Agent::Lda => self.name == "exit_group" && self.text.contains("(0)"),
            _ => {
                let is_sent = self.is_write() || self.name == "sendto";
                is_sent && self.text.contains("\"250 2.0.0 <")
            }
        }
    }

    /// The path of its last descriptor.
    fn last_path(&self) -> &str {
        let start = self.text.rfind("</").map_or(0, |at| at + 1);
        self.text[start..].split('>').next().unwrap()
    }

    /// The path of its first descriptor.
    fn path(&self) -> &str {
        let start = self.text.find('<').map_or(0, |at| at + 1);
        let end = self.text[start..].find('>').map_or(start, |at| start + at);
        &self.text[start..end]
    }
}

/// `PID call(arguments) = result`; a call that another thread's interrupts has two lines.
fn parse(text: &str, agent: Agent) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut open: Vec<(String, usize)> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let Some((pid, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some(known) = open.iter().position(|(who, _)| who == pid) else {
                continue;
            };
            let call = &mut calls[open.remove(known).1];
            call.text += resumed;
            call.ended = at;
        } else if let Some((name, _)) = rest.split_once('(') {
            if rest.ends_with("<unfinished ...>") {
                open.push((pid.to_owned(), calls.len()));
            }
            calls.push(Call {
                agent,
                pid: pid.to_owned(),
                name: name.to_owned(),
                text: rest.to_owned(),
                began: at,
                ended: at,
            });
        }
    }
    // What failed has done nothing.
    calls.retain(|call| !call.text.contains(" = -1 "));
    calls
}

/// The first step that does not come behind those before it. An answer is the first of all.
fn missing(calls: &[Call], steps: &[Step]) -> Option<Step> {
    let mut after = None;
    for &step in steps {
        let is_behind = |call: &&Call| after.is_none_or(|after| call.began > after);
        let found = match step == ANSWER {
            true => calls.iter().find(|call| call.is_answer()).filter(is_behind),
            false => calls.iter().filter(is_behind).find(|call| call.is(step)),
        };
        match found {
            Some(call) => after = Some(call.ended),
            None => return Some(step),
        }
    }
    None
}

/// A delivery under strace, with more arguments of that: how it ended, and its calls.
fn deliver(store: &Store, agent: Agent, place: &Place, more: &[&str]) -> (Delivered, Vec<Call>) {
    let trace = store.scratch.text("run/trace");
    let arguments = [&["-y", "-s", "300", "-e", TRACED, "-o", &trace], more].concat();
    let delivered = agent.deliver(store, place, &place.message("x", 3), &arguments);
    let text = fs::read_to_string(&trace).unwrap();
    (delivered, parse(&text, agent))
}

/// Makes one of those of [`Mount`].
type FileSystem = fn(&Path, PathBuf, u32) -> Option<Mount>;

/// A store where Dovecot has been: there are lists and indexes. Its homes are on a file system of their own.
fn used_store(top: &str, delivery: &str, on: FileSystem) -> Option<(Store, Mount)> {
    let store = places::store();
    places::configure(&store, top, delivery, "");
    let disk = on(&store.path("image"), store.path("home"), 64)?;
    let dovecot = places::dovecot(Version::V23, &store)?;
    for place in [INBOX, MBOX] {
        let (delivered, _) = deliver(&store, Agent::Lda, &place, &[]);
        assert!(delivered.is_stored(0), "{delivered:?}");
        let mut imap = Imap::login(dovecot.port, "alice");
        imap.select(place.mailbox);
        imap.fetch_all();
        imap.logout();
    }
    Some((store, disk))
}

fn is_possible() -> bool {
    !not_root() && (installed("strace") || !skip("strace is not installed"))
}

const MESSAGE: &[&str] = &["/tmp/#"];

#[test]
fn each_rule_in_its_order() {
    if !is_possible() {
        return;
    }
    let Some((used, _disk)) = used_store("", "", Mount::unordered) else {
        return;
    };
    // A mailbox of another group, and one whose list ends in the middle of a line.
    own(&used.path(LINKED.path), MAIL, 100);
    for part in ["cur", "new", "tmp"] {
        own(&used.path(LINKED.path).join(part), MAIL, 100);
    }
    let list = used.path("home/alice/Maildir/.Torn/dovecot-uidlist");
    used.scratch
        .maildir("home/alice/Maildir/.Torn", MAIL, MAIL, 0o700);
    let torn = Place {
        kind: "torn list",
        mailbox: "Torn",
        path: "home/alice/Maildir/.Torn",
    };
    let new_mbox = Place {
        kind: "new mbox",
        mailbox: "mbox/New",
        path: "home/alice/mail/New",
    };
    let rows: [(&str, Place, &[Step]); 13] = [
        (
            "C1 a message is made unseen, written, and its size looked at",
            INBOX,
            &[
                ("openat", &["/tmp>", "O_TMPFILE"]),
                ("write", MESSAGE),
                ("fstat", MESSAGE),
                ("fsync", MESSAGE),
                ANSWER,
            ],
        ),
        (
            "C2 its group is set before its sync",
            LINKED,
            &[
                ("openat", &["/tmp>", "O_TMPFILE"]),
                ("fchown", MESSAGE),
                ("fsync", MESSAGE),
                ("linkat", &["/new>"]),
                ANSWER,
            ],
        ),
        (
            "C3 it has a name only when it is synced",
            INBOX,
            &[
                ("write", MESSAGE),
                ("fsync", MESSAGE),
                ("linkat", &["/new>"]),
                ANSWER,
            ],
        ),
        (
            "C4 its name is synced before the answer",
            INBOX,
            &[("linkat", &["/new>"]), ("fsync", &["Maildir/new>"]), ANSWER],
        ),
        (
            "C4 in cur/, with a flag",
            KEYWORD,
            &[("linkat", &["/cur>"]), ("fsync", &[".Key/cur>"]), ANSWER],
        ),
        (
            "C5 a mailbox and its directories are synced before anything is in them",
            NEW,
            &[
                ("mkdirat", &["postroom."]),
                ("mkdirat", &["\"new\""]),
                ("fsync", &["postroom."]),
                ("rename", &["\".New\""]),
                ("fsync", &["Maildir>"]),
                ("linkat", &[".New/new>"]),
                ("fsync", &[".New/new>"]),
                ANSWER,
            ],
        ),
        (
            "C6 a letter is known before a name has it",
            KEYWORD,
            &[
                ("write", &["dovecot-keywords.lock>", "$Key3"]),
                ("fsync", &["dovecot-keywords.lock>"]),
                ("rename", &["\"dovecot-keywords\""]),
                ("fsync", &[".Key>"]),
                ("linkat", &["/cur>"]),
                ANSWER,
            ],
        ),
        (
            "C7 a UID is synced before anybody hears of it",
            INBOX,
            &[
                ("write", &["dovecot-uidlist>"]),
                ("sync", &["dovecot-uidlist>"]),
                ("fsync", &["Maildir/new>"]),
                ("write", &["dovecot.index.log>"]),
                ANSWER,
            ],
        ),
        (
            "C7 a new list is synced, and its name",
            torn,
            &[
                ("write", &["dovecot-uidlist.tmp>"]),
                ("sync", &["dovecot-uidlist.tmp>"]),
                ("rename", &["\"dovecot-uidlist\""]),
                ("fsync", &[".Torn>"]),
                ("write", &["dovecot-uidlist>"]),
                ("sync", &["dovecot-uidlist>"]),
                ANSWER,
            ],
        ),
        (
            "C9 an mbox is written and synced under its locks",
            MBOX,
            &[
                ("fcntl", &["mail/Work>", "F_WRLCK"]),
                ("linkat", &["Work.lock"]),
                ("write", &["mail/Work>"]),
                ("fdatasync", &["mail/Work>"]),
                ("unlinkat", &["Work.lock"]),
                ANSWER,
            ],
        ),
        (
            "C9 a new mbox has its name synced",
            new_mbox,
            &[
                ("linkat", &["\"New\""]),
                ("write", &["mail/New>"]),
                ("fdatasync", &["mail/New>"]),
                ("fsync", &["alice/mail>"]),
                ANSWER,
            ],
        ),
        (
            "C10 the index is told under its lock",
            INBOX,
            &[
                ("fcntl", &["dovecot.index.log>", "F_WRLCK"]),
                ("write", &["dovecot.index.log>"]),
                ("unlinkat", &["dovecot-uidlist.lock"]),
                ANSWER,
            ],
        ),
        (
            "C10 that of an mbox too",
            MBOX,
            &[
                ("fdatasync", &["mail/Work>"]),
                ("write", &["dovecot.index.log>"]),
                ANSWER,
            ],
        ),
    ];
    for agent in AGENTS {
        for (rule, place, steps) in rows {
            // As it is for the first delivery.
            for made in [
                NEW.path,
                new_mbox.path,
                "home/alice/Maildir/.Key/dovecot-keywords",
            ] {
                let made = used.path(made);
                let _ = fs::remove_dir_all(&made).or_else(|_| fs::remove_file(&made));
            }
            fs::write(
                &list,
                "3 V1795332733 N5 G86371b0c7d9a026bb73a000083ecc375\n4 :x\n5 :",
            )
            .unwrap();
            own(&list, MAIL, MAIL);
            let (delivered, calls) = deliver(&used, agent, &place, &[]);
            assert!(delivered.is_stored(0), "{agent:?} {rule}: {delivered:?}");
            let missing = missing(&calls, steps);
            let shown: Vec<&str> = calls.iter().map(|call| call.text.as_str()).collect();
            assert_eq!(missing, None, "{agent:?}: {rule}\n{}", shown.join("\n"));
            assert_nothing_behind_the_sync(&calls, &format!("{agent:?}: {rule}"));
        }
    }
}

/// C5: each directory on the way to a new mailbox, up to the first one that was there, has its name synced before the answer.
#[test]
fn new_directories() {
    if !is_possible() {
        return;
    }
    let deep = Place {
        kind: "new mbox, two levels down",
        mailbox: "mbox/x/y/New",
        path: "home/alice/mail/x/y/New",
    };
    for on in [Mount::unordered, Mount::journaled] {
        let Some((store, _disk)) = used_store("", "", on) else {
            return;
        };
        // What is not there, and the least that is made.
        let rows = [
            (NEW, NEW.path, 4),
            (NEW, "home/alice/Maildir", 5),
            (INBOX, "home/alice/Maildir", 4),
            (INBOX, "home/alice", 5),
            (INBOX, "home/alice/Maildir/new", 1),
            (deep, "home/alice/mail/x", 2),
            (deep, "home/alice/mail", 3),
        ];
        for (agent, (place, gone, least)) in AGENTS.iter().flat_map(|it| rows.map(|row| (*it, row)))
        {
            let case = format!("{agent:?} {} without {gone}", place.kind);
            let _ = fs::remove_dir_all(store.path(gone));
            let (delivered, calls) = deliver(&store, agent, &place, &[]);
            assert!(delivered.is_stored(0), "{case}: {delivered:?}");
            let shown: Vec<&str> = calls.iter().map(|call| call.text.as_str()).collect();
            let shown = shown.join("\n");
            let answer = calls.iter().find(|call| call.is_answer()).unwrap();
            // The first name of a new mailbox is hidden.
            let makes_a_name =
                |call: &&Call| call.name == "mkdirat" || call.is(("rename", &["\"postroom."]));
            let made: Vec<&Call> = calls.iter().filter(makes_a_name).collect();
            assert!(made.len() >= least, "{case}: {made:?}");
            for call in made {
                let is_synced = calls.iter().any(|it| {
                    let is_between = it.began > call.ended && it.ended < answer.began;
                    is_between && it.is(("fsync", &[])) && it.path() == call.last_path()
                });
                assert!(is_synced, "{case}: {}\n{shown}", call.text);
            }
            // And none again where nothing has come meanwhile.
            let synced: Vec<&Call> = calls.iter().filter(|it| it.is(("fsync", &[]))).collect();
            for (at, call) in synced.iter().enumerate() {
                let next = synced[at + 1..].iter().find(|it| it.path() == call.path());
                let Some(next) = next else { continue };
                let inside = format!("<{}>, \"", call.path());
                let has_come = calls.iter().any(|it| {
                    let is_between = it.began > call.ended && it.ended < next.began;
                    let is_change = ["mkdirat", "linkat"].contains(&it.name.as_str())
                        || it.name.starts_with("rename");
                    is_between && is_change && it.text.contains(&inside)
                });
                assert!(has_come, "{case}: again {}\n{shown}", next.text);
            }
        }
    }
}

/// No sync more than there has to be, and none of a message by itself under the lock that others wait for.
#[test]
fn few_syncs() {
    if !is_possible() {
        return;
    }
    let rows: [(FileSystem, &[&str]); 2] = [
        (Mount::journaled, &["Maildir/dovecot-uidlist"]),
        (
            Mount::unordered,
            &["Maildir/tmp/#", "Maildir/dovecot-uidlist", "Maildir/new"],
        ),
    ];
    for (on, want) in rows {
        let Some((store, _disk)) = used_store("", "", on) else {
            return;
        };
        for agent in AGENTS {
            let (delivered, calls) = deliver(&store, agent, &INBOX, &[]);
            assert!(delivered.is_stored(0), "{agent:?}: {delivered:?}");
            let synced = calls.iter().filter(|call| call.is(("sync", &[])));
            let paths: Vec<&str> = synced.map(Call::path).collect();
            let is_wanted = paths
                .iter()
                .zip(want)
                .all(|(path, want)| path.contains(want));
            assert!(
                is_wanted && paths.len() == want.len(),
                "{agent:?}: {paths:?}"
            );
            let is_of_lock = |call: &&Call| call.is(("linkat", &["\"dovecot-uidlist.lock\""]));
            let locked = calls.iter().find(is_of_lock).unwrap().began;
            let mut of_message = calls.iter().filter(|call| call.is(("sync", MESSAGE)));
            assert!(of_message.all(|call| call.ended < locked), "{agent:?}");
        }
    }
}

/// Where the file system is ordered: the bytes go first, and one commit has them, the name and the list.
#[test]
fn on_a_journaled_file_system() {
    if !is_possible() {
        return;
    }
    let store = places::store();
    places::configure(&store, "", "recipient_headers = \"single\"\n", "");
    let image = store.path("image");
    let Some(_disk) = Mount::journaled(&image, store.path("home"), 64) else {
        return;
    };
    const ARRIVED: &[&str] = &["/tmp/#", "SYNC_FILE_RANGE_WAIT_AFTER"];
    // Somebody else has filled it: its UIDs are Dovecot's to give.
    let unlisted = Place {
        kind: "no list",
        mailbox: "Unlisted",
        path: "home/alice/Maildir/.Unlisted",
    };
    store.scratch.maildir(unlisted.path, MAIL, MAIL, 0o700);
    fs::write(store.path(unlisted.path).join("cur/1.x:2,S"), "x").unwrap();
    let rows: [(&str, Place, &[Step]); 5] = [
        (
            "C1, C3 its bytes have arrived before it has a name",
            INBOX,
            &[
                ("openat", &["/tmp>", "O_TMPFILE"]),
                ("write", MESSAGE),
                ("fstat", MESSAGE),
                ("sync_file_range", MESSAGE),
                ("sync_file_range", ARRIVED),
                ("linkat", &["/new>"]),
                ANSWER,
            ],
        ),
        (
            "C4, C7 bytes, name and UID are synced with the list",
            INBOX,
            &[
                ("linkat", &["/new>"]),
                ("write", &["dovecot-uidlist>"]),
                ("sync", &["dovecot-uidlist>"]),
                ANSWER,
            ],
        ),
        (
            "C4 without a list by themselves",
            unlisted,
            &[("linkat", &["/new>"]), ("fsync", MESSAGE), ANSWER],
        ),
        (
            "C4 in cur/, with a flag",
            KEYWORD,
            &[
                ("linkat", &["/cur>"]),
                ("sync", &["dovecot-uidlist>"]),
                ANSWER,
            ],
        ),
        (
            "C4 in a mailbox that is made for it",
            NEW,
            &[
                ("rename", &["\".New\""]),
                ("fsync", &["Maildir>"]),
                ("linkat", &[".New/new>"]),
                ("sync", &["dovecot-uidlist>"]),
                ANSWER,
            ],
        ),
    ];
    let failing: [Failing; 3] = [
        (
            "C3 what has not arrived gets no name",
            INBOX,
            "sync_file_range:error=EIO:when=2",
            "",
            false,
            &[("sync_file_range", MESSAGE)],
        ),
        (
            "C4 a message that is not synced is taken back",
            unlisted,
            "fsync:error=EIO",
            "/tmp/#",
            false,
            &[("linkat", &["/new>"]), ("unlinkat", &["/new>"])],
        ),
        (
            "C8 where the list is not synced the message is, by itself",
            INBOX,
            "fsync:error=EIO",
            "dovecot-uidlist>",
            true,
            &[("linkat", &["/new>"]), ("fsync", MESSAGE), ANSWER],
        ),
    ];
    for agent in AGENTS {
        for (rule, place, steps) in rows {
            let _ = fs::remove_dir_all(store.path(NEW.path));
            let (delivered, calls) = deliver(&store, agent, &place, &[]);
            assert!(delivered.is_stored(0), "{agent:?} {rule}: {delivered:?}");
            let shown: Vec<&str> = calls.iter().map(|call| call.text.as_str()).collect();
            let missing = missing(&calls, steps);
            assert_eq!(missing, None, "{agent:?}: {rule}\n{}", shown.join("\n"));
            assert_nothing_behind_the_sync(&calls, &format!("{agent:?}: {rule}"));
        }
        for (rule, place, inject, on, stored, steps) in failing {
            let case = format!("{agent:?}: {rule}");
            let inject = match on {
                "" => format!("inject={inject}"),
                on => {
                    let nth = nth_with(&store, agent, &place, "fsync", on);
                    format!("inject={inject}:when={nth}")
                }
            };
            let before = messages(&store.path(place.path)).len();
            let (delivered, calls) = deliver(&store, agent, &place, &["-e", &inject]);
            assert_eq!(delivered.is_stored(0), stored, "{case}: {delivered:?}");
            assert_ne!(delivered.is_deferred(0), stored, "{case}: {delivered:?}");
            let shown: Vec<&str> = calls.iter().map(|call| call.text.as_str()).collect();
            assert_eq!(missing(&calls, steps), None, "{case}\n{}", shown.join("\n"));
            let after = messages(&store.path(place.path)).len();
            assert_eq!(after, before + usize::from(stored), "{case}");
        }
    }
    // One file for all of them: each name is synced by its list, by the file or by its directory.
    let addresses = USERS.map(|user| format!("{user}@x"));
    let addresses = addresses.each_ref().map(String::as_str);
    let trace = store.scratch.text("run/trace");
    let arguments = ["-y", "-s", "300", "-e", TRACED, "-o", &trace];
    let delivered = Agent::Lmtp.deliver_to(&store, &addresses, &INBOX.message("x", 3), &arguments);
    let calls = parse(&fs::read_to_string(trace).unwrap(), Agent::Lmtp);
    for (at, user) in USERS.into_iter().enumerate() {
        assert!(delivered.is_stored(at), "{delivered:?}");
        let new: &'static str = format!("{user}/Maildir/new>").leak();
        let list: &'static str = format!("{user}/Maildir/dovecot-uidlist>").leak();
        let answer: &'static str = format!("250 2.0.0 <{user}@x>").leak();
        let by = |synced: &'static [&'static str]| {
            let steps: [Step; 3] = [
                ("linkat", vec![new].leak()),
                ("sync", synced),
                ("answer", vec![answer].leak()),
            ];
            missing(&calls, &steps).is_none()
        };
        let list: &'static [&'static str] = vec![list].leak();
        assert!(by(MESSAGE) || by(list) || by(vec![new].leak()), "{user}");
        let bytes: [Step; 2] = [
            ("sync_file_range", ARRIVED),
            ("answer", vec![answer].leak()),
        ];
        assert_eq!(missing(&calls, &bytes), None, "{user}");
    }
}

/// Of a message: after its sync its bytes, mode, group and time stay as they are. (C2)
fn assert_nothing_behind_the_sync(calls: &[Call], case: &str) {
    let mut synced = HashSet::new();
    for call in calls {
        let changes = call.is_write()
            || ["fchmod", "fchown", "utimensat", "ftruncate"].contains(&call.name.as_str());
        if call.is(("sync_file_range", MESSAGE)) {
            synced.insert(call.path());
        } else if call.is(("fsync", MESSAGE)) && !synced.is_empty() {
            // Sent on its way before.
        } else if call.is(("fsync", MESSAGE)) {
            assert!(
                synced.insert(call.path()),
                "{case}: synced twice: {}",
                call.text
            );
        } else if changes {
            assert!(!synced.contains(call.path()), "{case}: {}", call.text);
        }
    }
}

/// `mail_fsync`: what is synced behind "optimized", and that "never" means what it says.
#[test]
fn mail_fsync() {
    if !is_possible() {
        return;
    }
    let is_sync_of = |word: &'static str| {
        move |call: &Call| call.is(("sync", &[])) && call.path().ends_with(word)
    };
    for (setting, place, synced, unsynced) in [
        (
            "optimized",
            INBOX,
            &["/new", "dovecot-uidlist"][..],
            &["dovecot.index.log"][..],
        ),
        ("optimized", MBOX, &["mail/Work"], &["dovecot.index.log"]),
        (
            "always",
            INBOX,
            &["/new", "dovecot-uidlist", "dovecot.index.log"],
            &[],
        ),
        ("never", INBOX, &[], &[""]),
        ("never", MBOX, &[], &[""]),
    ] {
        let top = format!("mail_fsync = \"{setting}\"");
        let Some((store, _disk)) = used_store(&top, "", Mount::unordered) else {
            return;
        };
        for agent in AGENTS {
            let case = format!("{setting} {agent:?} {}", place.kind);
            let (delivered, calls) = deliver(&store, agent, &place, &[]);
            assert!(delivered.is_stored(0), "{case}: {delivered:?}");
            for word in synced {
                assert!(
                    calls.iter().any(is_sync_of(word)),
                    "{case}: {word} is not synced"
                );
            }
            for word in unsynced {
                let found = calls.iter().find(|call| is_sync_of(word)(call));
                assert!(found.is_none(), "{case}: {found:?}");
            }
        }
    }
}

/// What the answer is when a call of a rule fails: `on` is the path that it is made to fail for.
#[test]
fn a_call_that_fails() {
    if !is_possible() {
        return;
    }
    let Some((store, _disk)) = used_store("", "", Mount::unordered) else {
        return;
    };
    let inbox = "home/alice/Maildir";
    let rows: [Failing; 7] = [
        (
            "C3 a name that is taken is another's",
            INBOX,
            "linkat:error=EEXIST:when=1",
            "home/alice/Maildir/new",
            true,
            &[("linkat", &["/new>"]), ("fsync", &["Maildir/new>"]), ANSWER],
        ),
        (
            "C4 a name that is not synced is taken back",
            INBOX,
            "fsync:error=EIO:when=1",
            "home/alice/Maildir/new",
            false,
            &[("linkat", &["/new>"]), ("unlinkat", &["/new>"])],
        ),
        (
            "C6 without its letter it is stored without the keyword",
            KEYWORD,
            "fsync:error=EIO:when=1",
            "home/alice/Maildir/.Key/dovecot-keywords.lock",
            true,
            &[
                ("unlinkat", &["dovecot-keywords.lock"]),
                ("linkat", &["/cur>"]),
                ANSWER,
            ],
        ),
        (
            "C8 a list that is not synced defers nothing",
            INBOX,
            "fsync:error=EIO:when=1",
            "home/alice/Maildir/dovecot-uidlist",
            true,
            &[("fsync", &["Maildir/new>"]), ANSWER],
        ),
        (
            "C8 nor an index that is full",
            INBOX,
            "pwrite64:error=ENOSPC:when=1",
            "home/alice/Maildir/dovecot.index.log",
            true,
            &[("fsync", &["Maildir/new>"]), ANSWER],
        ),
        (
            "C9 an mbox that is not synced is as it was, and that is synced",
            MBOX,
            "fdatasync:error=EIO:when=1",
            "home/alice/mail/Work",
            false,
            &[
                ("write", &["mail/Work>"]),
                ("ftruncate", &["mail/Work>"]),
                ("fdatasync", &["mail/Work>"]),
                ("unlinkat", &["Work.lock"]),
            ],
        ),
        (
            "C9 nor one that is full",
            MBOX,
            "fallocate:error=ENOSPC:when=1",
            "home/alice/mail/Work",
            false,
            &[("linkat", &["Work.lock"]), ("unlinkat", &["Work.lock"])],
        ),
    ];
    for agent in AGENTS {
        for (rule, place, inject, on, stored, steps) in rows {
            let case = format!("{agent:?}: {rule}");
            let _ = fs::remove_file(store.path(KEYWORD.path).join("dovecot-keywords"));
            let before = (
                messages(&store.path(inbox)).len(),
                fs::read(store.path(MBOX.path)).unwrap(),
            );
            let nth = nth_on(&store, agent, &place, inject, on);
            let inject = format!(
                "inject={}",
                inject.replace("when=1", &format!("when={nth}"))
            );
            // The delivery that counted was a whole one.
            let _ = fs::remove_file(store.path(KEYWORD.path).join("dovecot-keywords"));
            let counted = (
                messages(&store.path(inbox)).len(),
                fs::read(store.path(MBOX.path)).unwrap(),
            );
            assert_ne!(before == counted, place != KEYWORD, "{case}");
            let (delivered, calls) = deliver(&store, agent, &place, &["-e", &inject]);
            assert_eq!(delivered.is_stored(0), stored, "{case}: {delivered:?}");
            assert_ne!(delivered.is_deferred(0), stored, "{case}: {delivered:?}");
            let shown: Vec<&str> = calls.iter().map(|call| call.text.as_str()).collect();
            assert_eq!(missing(&calls, steps), None, "{case}\n{}", shown.join("\n"));
            let after = (
                messages(&store.path(inbox)).len(),
                fs::read(store.path(MBOX.path)).unwrap(),
            );
            assert!(stored || after == counted, "{case}");
        }
    }
}

/// Which of the calls of this name is the first one at `on`: strace counts those of each process.
fn nth_on(store: &Store, agent: Agent, place: &Place, inject: &str, on: &str) -> usize {
    let name = inject.split(':').next().unwrap();
    nth_with(
        store,
        agent,
        place,
        name,
        &format!("{}>", store.scratch.text(on)),
    )
}

/// The same, by a word of its line.
fn nth_with(store: &Store, agent: Agent, place: &Place, name: &str, word: &str) -> usize {
    let (_, calls) = deliver(store, agent, place, &[]);
    let is_on = |call: &&Call| call.name == name && call.text.contains(word);
    let found = calls.iter().find(is_on);
    let found = found.unwrap_or_else(|| panic!("no {name} of {word}"));
    let of_its =
        |call: &&Call| call.name == name && call.pid == found.pid && call.began <= found.began;
    calls.iter().filter(of_its).count()
}

/// C12: one copy, written and synced once; each recipient's name is synced before his own answer.
#[test]
fn three_recipients() {
    if !is_possible() {
        return;
    }
    let single = "recipient_headers = \"single\"\n";
    let Some((store, _disk)) = used_store("", single, Mount::unordered) else {
        return;
    };
    let addresses = USERS.map(|user| format!("{user}@x"));
    let addresses = addresses.each_ref().map(String::as_str);
    let trace = store.scratch.text("run/trace");
    let arguments = ["-y", "-s", "300", "-e", TRACED, "-o", &trace];
    let delivered = Agent::Lmtp.deliver_to(&store, &addresses, &INBOX.message("x", 3), &arguments);
    assert!(
        (0..3).all(|user| delivered.is_stored(user)),
        "{delivered:?}"
    );
    let calls = parse(&fs::read_to_string(trace).unwrap(), Agent::Lmtp);
    let count = |step| calls.iter().filter(|call| call.is(step)).count();
    assert_eq!(count(("fsync", MESSAGE)), 1, "one copy is synced, once");
    for user in USERS {
        let new = format!("{user}/Maildir/new>");
        let address = format!("250 2.0.0 <{user}@x>");
        let (new, address): (&'static str, &'static str) = (new.leak(), address.leak());
        let steps: [Step; 4] = [
            ("fsync", MESSAGE),
            ("linkat", vec![new].leak()),
            ("fsync", vec![new].leak()),
            ("answer", vec![address].leak()),
        ];
        assert_eq!(missing(&calls, &steps), None, "{user}");
    }
}

/// C12, for a batch: whoever's message is in it is answered behind a sync that began when his name was there.
#[test]
fn eight_at_once() {
    if !is_possible() {
        return;
    }
    const NEW_FILES: &[&str] = &["alice/Maildir/new>"];
    const LIST: &[&str] = &["dovecot-uidlist>"];
    // All of these; and where the file system is ordered, one.
    let rows: [(FileSystem, &[&[&'static [&'static str]]]); 2] = [
        (Mount::unordered, &[&[NEW_FILES], &[LIST]]),
        (Mount::journaled, &[&[LIST, MESSAGE]]),
    ];
    for (on, synced) in rows {
        let Some((store, _disk)) = used_store("", "", on) else {
            return;
        };
        assert_eight_at_once(&store, synced);
    }
}

/// A server that is traced from its beginning.
fn traced_server(store: &Store, trace: &Path) -> Server {
    let lmtp = program("postroom-lmtpd");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-s", "300", "-qqq", "-e", TRACED, "-o"]);
    command.arg(trace).arg("--").args(AS_MAIL);
    command.arg(lmtp.get_program());
    command.arg("-c").arg(store.path("postroom.toml"));
    Server::spawn(command, &store.path("run/lmtp"), &store.path("run/log"))
}

/// Of each of `synced` one is, between the name and the answer.
fn assert_eight_at_once(store: &Store, synced: &[&[&'static [&'static str]]]) {
    let trace = store.path("run/trace");
    let mut server = traced_server(store, &trace);
    let replies: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|number| {
                let server = &server;
                scope.spawn(move || {
                    let mut client = server.client();
                    let deliver = |at| {
                        let message = INBOX.message(&format!("{number}-{at}"), 1);
                        client.deliver(&["alice@x"], &message).remove(0)
                    };
                    (0..6).map(deliver).collect::<Vec<_>>()
                })
            })
            .collect();
        clients
            .into_iter()
            .flat_map(|it| it.join().unwrap())
            .collect()
    });
    // Of the server, not of strace.
    signal(children_of(server.pid())[0], "TERM");
    assert_eq!(server.wait(), Some(0));
    let calls = parse(&fs::read_to_string(trace).unwrap(), Agent::Lmtp);
    let list = fs::read_to_string(store.path(INBOX.path).join("dovecot-uidlist")).unwrap();
    let uids: HashSet<u32> = replies.iter().filter_map(|reply| uid_of(reply)).collect();
    assert_eq!(uids.len(), 48, "{replies:?}");
    for uid in uids {
        let line = list
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{uid} :")));
        let file: &'static str = line.unwrap().to_owned().leak();
        let answer: &'static str = format!("uid={uid} ").leak();
        let name: &'static [&'static str] = vec!["/new>", file].leak();
        let answer: &'static [&'static str] = vec![answer].leak();
        let is_synced = |by: &&'static [&'static str]| {
            let steps: [Step; 3] = [("linkat", name), ("sync", by), ("answer", answer)];
            missing(&calls, &steps).is_none()
        };
        for any_of in synced {
            assert!(any_of.iter().any(is_synced), "{uid} {any_of:?}");
        }
    }
    let syncs = calls
        .iter()
        .filter(|it| it.is(("fsync", &["alice/Maildir/new>"])))
        .count();
    eprintln!("48 messages, {syncs} syncs of new/");
}

/// Those who wait for a list have one sync of it together.
#[test]
fn eight_behind_one_lock() {
    if !is_possible() {
        return;
    }
    for on in [Mount::unordered, Mount::journaled] {
        let Some((store, _disk)) = used_store("", "", on) else {
            return;
        };
        let trace = store.path("run/trace");
        let mut server = traced_server(&store, &trace);
        let lock = store.path(INBOX.path).join("dovecot-uidlist.lock");
        fs::write(&lock, format!("{}:elsewhere", std::process::id())).unwrap();
        own(&lock, MAIL, MAIL);
        let replies: Vec<String> = thread::scope(|scope| {
            let clients: Vec<_> = (0..8)
                .map(|number| {
                    let mut client = server.client();
                    let message = INBOX.message(&number.to_string(), 1);
                    scope.spawn(move || client.deliver(&["alice@x"], &message).remove(0))
                })
                .collect();
            // All of them are written, and wait.
            wait_until("eight messages", || {
                let text = fs::read_to_string(&trace).unwrap();
                let calls = parse(&text, Agent::Lmtp);
                let heads = calls.iter().filter(|call| {
                    let is_head = call.text.contains("Return-Path: ");
                    is_head && call.is(("write", MESSAGE))
                });
                heads.count() == 8
            });
            fs::remove_file(&lock).unwrap();
            clients.into_iter().map(|it| it.join().unwrap()).collect()
        });
        signal(children_of(server.pid())[0], "TERM");
        assert_eq!(server.wait(), Some(0));
        let uids: HashSet<u32> = replies.iter().filter_map(|reply| uid_of(reply)).collect();
        assert_eq!(uids.len(), 8, "{replies:?}");
        let calls = parse(&fs::read_to_string(&trace).unwrap(), Agent::Lmtp);
        for name in ["Maildir/dovecot-uidlist", "Maildir/new"] {
            let is_of_it = |call: &&Call| call.is(("sync", &[])) && call.path().ends_with(name);
            let count = calls.iter().filter(is_of_it).count();
            // The first of them, and all that wait.
            assert!(count <= 2, "{count} syncs of {name}");
        }
    }
}

/// C11: nobody hears the answer, and the message comes again.
#[test]
fn whoever_has_gone_gets_nothing() {
    if !is_possible() {
        return;
    }
    let store = places::store();
    places::configure(&store, "", "", "");
    let config = store.path("postroom.toml");
    let server = Server::start_as(
        &config,
        &store.path("run/lmtp"),
        &store.path("run/log"),
        &[],
    );
    let inbox = store.path(INBOX.path);
    let deliver = |is_gone: bool| {
        // Somebody has the mailbox, and lets it go a little later.
        let lock = inbox.join("dovecot-uidlist.lock");
        fs::write(&lock, format!("{}:elsewhere", std::process::id())).unwrap();
        own(&lock, MAIL, MAIL);
        let mut client = server.client();
        client.send(&dialogue(&["alice@x"], b"Subject: x\n\n")["LHLO c.test\r\n".len()..]);
        thread::sleep(Duration::from_millis(300));
        match is_gone {
            true => drop(client),
            false => fs::remove_file(&lock).unwrap(),
        }
        thread::sleep(Duration::from_millis(300));
        let _ = fs::remove_file(&lock);
        thread::sleep(Duration::from_millis(300));
        messages(&inbox).len()
    };
    // The first one makes a list, for which there is a lock.
    assert_eq!(deliver(false), 1, "{}", server.log());
    assert_eq!(deliver(false), 2, "{}", server.log());
    assert_eq!(deliver(true), 2, "{}", server.log());
}
