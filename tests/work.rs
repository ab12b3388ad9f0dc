//! The work of a delivery, counted by strace: it does not grow with what is in a mailbox already, and nothing is made where others
//! may write.

mod support;

use std::collections::HashMap;
use std::fs;
use std::io::Write;

use support::agent::{AGENTS, Agent, Tracer};
use support::places::{self, INBOX, KEYWORD, MBOX, NEW, Place};
use support::{MAIL, Store, installed, not_root, own, skip};

fn is_possible() -> bool {
    !not_root() && (installed("strace") || !skip("strace is not installed"))
}

/// A delivery to a place: its calls, one a line.
fn calls(store: &Store, agent: Agent, place: &Place, message: &[u8]) -> Vec<String> {
    let trace = store.scratch.text("run/trace");
    let delivered = agent.deliver(store, place, message, &["-y", "-o", &trace]);
    assert!(delivered.is_stored(0), "{} {delivered:?}", place.kind);
    joined(&fs::read_to_string(&trace).unwrap())
}

/// Lines of strace, those in one piece that another thread's call has divided.
fn joined(trace: &str) -> Vec<String> {
    let mut begun = HashMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let (thread, rest) = line.split_once(' ').unwrap();
        let resumed = rest.split_once(" resumed>");
        let resumed = resumed.filter(|_| rest.trim_start().starts_with("<... "));
        if let Some(beginning) = line.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, beginning);
        } else if let Some((_, end)) = resumed {
            let beginning = begun.remove(thread).unwrap_or_default();
            calls.push(format!("{beginning}{end}"));
        } else {
            calls.push(line.to_owned());
        }
    }
    calls
}

/// Its name.
fn name(call: &str) -> &str {
    let behind_pid = call
        .split_once(' ')
        .map_or("", |(_, rest)| rest.trim_start());
    behind_pid.split('(').next().unwrap_or_default()
}

/// Bytes that were read of files whose path has this in it, names in directories too.
fn bytes_read(calls: &[String], path: &str) -> u64 {
    const READS: [&str; 5] = ["read", "pread64", "readv", "preadv", "getdents64"];
    let is_read = |call: &&String| READS.contains(&name(call)) && call.contains(path);
    let result = |call: &String| {
        let (_, result) = call.rsplit_once(" = ")?;
        result.split(' ').next()?.parse::<u64>().ok()
    };
    calls.iter().filter(is_read).filter_map(result).sum()
}

/// Its messages and the list of UIDs.
#[test]
fn a_large_mailbox_costs_no_more() {
    const MANY: usize = 20_000;
    if !is_possible() {
        return;
    }
    for agent in AGENTS {
        let [small, large] = [0, MANY].map(|many| {
            let store = Store::new();
            places::configure(&store, "", "", "");
            let maildir = store.path(INBOX.path);
            calls(&store, agent, &INBOX, b"Subject: first\n\nx\n");
            let first = fs::read_dir(maildir.join("new")).unwrap().next().unwrap();
            let first = first.unwrap().path();
            let list = maildir.join("dovecot-uidlist");
            let mut list = fs::File::options().append(true).open(list).unwrap();
            let mut lines = String::new();
            for at in 0..many {
                let name = format!("1700000000.M{at}P1.mx,S=20,W=23");
                fs::hard_link(&first, maildir.join("new").join(&name)).unwrap();
                lines += &format!("{} :{name}\n", at + 2);
            }
            list.write_all(lines.as_bytes()).unwrap();
            let calls = calls(&store, agent, &INBOX, b"Subject: another\n\nx\n");
            let there: Vec<_> = { calls }
                .into_iter()
                .filter(|it| it.contains("/Maildir"))
                .collect();
            (there.len(), bytes_read(&there, ""), there)
        });
        let case = format!(
            "{agent:?}: {} and {} calls, {} and {} bytes",
            small.0, large.0, small.1, large.1
        );
        assert!(
            small.0 > 10 && large.0 <= small.0 + 5,
            "{case}: {:#?}",
            large.2
        );
        assert!(large.1 <= small.1 + 64 * 1024, "{case}");
    }
}

/// A log as Dovecot begins it, in which so many messages were appended since anybody has written the index.
fn index_log(messages: u32) -> Vec<u8> {
    const ID: u32 = 1_700_000_000;
    let record = |kind: u32, data: &[u32]| {
        let size = (8 + 4 * data.len()) as u32 / 4;
        let size = [21, 14, 7, 0].map(|shift| 0x80 | (size >> shift) as u8 & 0x7f);
        let fields = [kind].into_iter().chain(data.iter().copied());
        let fields: Vec<u8> = fields.flat_map(u32::to_le_bytes).collect();
        [&size[..], &fields].concat()
    };
    let mut log = vec![1, 3, 40, 0];
    for field in [ID, 1, 0, 0, ID, 1, 0, 1, 0] {
        log.extend(field.to_le_bytes());
    }
    // The field of the UIDVALIDITY, at 24 of the index's header.
    log.extend(record(0x20, &[24 | 4 << 16, ID]));
    (1..=messages).for_each(|uid| log.extend(record(0x1000_0002, &[uid, 0])));
    log
}

/// Of a log that has grown for too long 16 MiB are read for the next UID, and nothing of a longer one.
#[test]
fn a_long_index_log() {
    if !is_possible() {
        return;
    }
    const MIB: u64 = 1 << 20;
    let large = index_log(600_000);
    for agent in AGENTS {
        // The log, its size, the next UID, and whether that can be known
        let rows = [
            (&index_log(10), 0, 11, true),
            (&large, 0, 600_001, true),
            (&index_log(10), 32 * MIB, 11, false),
        ];
        let costs = rows.map(|(bytes, size, next, is_known)| {
            let store = Store::with_inbox();
            places::configure(&store, "", "", "");
            let path = store.path(INBOX.path);
            let (list, log) = (path.join("dovecot-uidlist"), path.join("dovecot.index.log"));
            fs::write(
                &list,
                format!("3 V1700000000 N{next} G86371b0c7d9a026bb73a000083ecc375\n"),
            )
            .unwrap();
            fs::write(&log, bytes).unwrap();
            let file = fs::File::options().write(true).open(&log).unwrap();
            file.set_len(size.max(bytes.len() as u64)).unwrap();
            for file in [&list, &log] {
                own(file, MAIL, MAIL);
            }
            let calls = calls(&store, agent, &INBOX, b"Subject: x\n\nx\n");
            let list = fs::read_to_string(list).unwrap();
            let is_listed = list.contains(&format!("\n{next} "));
            assert_eq!(is_listed, is_known, "{agent:?} {size} {next}: {list}");
            let calls = { calls }.into_iter().filter(|it| it.contains("/Maildir"));
            let calls: Vec<String> = calls.collect();
            (calls.len(), bytes_read(&calls, "dovecot.index.log"))
        });
        let [small, large, longest] = costs;
        let case = format!("{agent:?}: calls and bytes: {costs:?}");
        assert!(
            large.0 <= small.0 + 10 && longest.0 <= small.0 + 5,
            "{case}"
        );
        assert!((8 * MIB..16 * MIB).contains(&large.1), "{case}");
        assert!(longest.1 < 64 * 1024, "{case}");
    }
}

/// A client that is busy, and a mailbox that somebody has come to a moment ago: 38 calls where the client sends its commands at once and
/// the file system has a journal (contrib/PERFORMANCE.md). Here it waits for each reply, there may be two syncs more, and `TZ` is looked at.
#[test]
fn a_delivery_takes_few_calls() {
    const LETTERS: usize = 20;
    const MOST: usize = 46;
    if !is_possible() {
        return;
    }
    let store = Store::with_inbox();
    let server = store.serve("", "");
    let mut client = server.client();
    let mut deliver = |number| {
        let letter = format!("Message-ID: <{number}@x.test>\r\n\r\nx\r\n");
        let replies = client.deliver(&["alice@example.test"], letter.as_bytes());
        assert!(replies[0].starts_with("250 "), "{replies:?}");
    };
    (0..LETTERS).for_each(&mut deliver);
    let trace = store.scratch.text("run/trace");
    let tracer = Tracer::of(&server, &["-o", &trace]);
    (LETTERS..2 * LETTERS).for_each(&mut deliver);
    tracer.leave();
    let text = fs::read_to_string(&trace).unwrap();
    let calls: Vec<String> = text.lines().map(str::to_owned).collect();
    // How often threads meet depends on the machine, and on strace.
    let is_work = |it: &&String| !["futex", "epoll_wait", "sched_yield", ""].contains(&name(it));
    let deliveries = calls.split(|it| it.contains("\"MAIL FROM:")).skip(1);
    let mut counts: Vec<usize> = deliveries
        .map(|calls| calls.iter().filter(is_work).count())
        .collect();
    counts.sort_unstable();
    assert_eq!(counts.len(), LETTERS, "{counts:?}");
    // One that comes late on a busy machine opens the mailbox again.
    let median = counts[LETTERS / 2];
    assert!(
        median > 20 && median <= MOST,
        "{counts:?}: {:#?}",
        &calls[..calls.len().min(200)]
    );
}

/// A message, and a terabyte of nothing behind it.
#[test]
fn a_sparse_mbox() {
    const SIZE: u64 = 1 << 40;
    if !is_possible() {
        return;
    }
    for agent in AGENTS {
        let store = places::store();
        places::configure(&store, "", "", "");
        let path = store.path(MBOX.path);
        fs::write(
            &path,
            "From x  Mon Nov 02 07:02:09 2026\nSubject: x\n\nx\n\n",
        )
        .unwrap();
        own(&path, MAIL, MAIL);
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(SIZE).unwrap();
        let calls = calls(&store, agent, &MBOX, b"Subject: x\n\nx\n");
        let read = bytes_read(&calls, MBOX.path);
        assert!((1..=64 * 1024).contains(&read), "{agent:?}: {read} bytes");
        let there = calls.iter().filter(|it| it.contains(MBOX.path)).count();
        assert!(there < 100, "{agent:?}: {there} calls");
        assert!(fs::metadata(&path).unwrap().len() > SIZE, "{agent:?}");
    }
}

const MAKES: [&str; 9] = [
    "mkdir",
    "mkdirat",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "rename",
    "renameat2",
    "mknodat",
];

/// Neither below `/tmp` nor `/var/tmp`, but for files that have no name there, and nowhere but in the store else.
#[test]
fn nothing_is_made_where_others_write() {
    if !is_possible() {
        return;
    }
    let large = [
        &b"Subject: large\n\n"[..],
        &b"0123456789abcdef\n".repeat(200_000),
    ]
    .concat();
    for agent in AGENTS {
        let store = places::store();
        let config = places::configure(&store, "", "", "");
        // As it is by itself.
        let text = fs::read_to_string(&config).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with("spool_dir"));
        fs::write(&config, lines.collect::<Vec<_>>().join("\n")).unwrap();
        let home = store.scratch.text("home");
        let mut has_spooled = false;
        for place in [INBOX, NEW, KEYWORD, MBOX] {
            for call in calls(&store, agent, &place, &large) {
                let is_unnamed = call.contains("O_TMPFILE");
                has_spooled |= is_unnamed && !call.contains(&home);
                let is_made = match name(&call) {
                    "open" | "openat" => call.contains("O_CREAT"),
                    name => MAKES.contains(&name),
                };
                assert!(
                    !is_made || call.contains(&home),
                    "{agent:?} {}: {call}",
                    place.kind
                );
            }
        }
        assert!(has_spooled || agent == Agent::Lda, "{agent:?}");
    }
}
