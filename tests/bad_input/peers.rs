//! Peers that ask for too much, all at once, or go away.

use std::io::Write;
use std::net::Shutdown;
use std::process::Command;
use std::sync::Barrier;
use std::thread;

use super::*;

/// All in one packet stream; each gets its answer, those beyond the limit are sent again by the MTA.
#[test]
fn ten_thousand_recipients() {
    if not_root() {
        return;
    }
    let store = store();
    let server = store.serve("", "");
    let mut client = server.client();
    client.say("MAIL FROM:<s@else.test>");
    let mut writer = client.stream().try_clone().unwrap();
    let sent = thread::spawn(move || {
        for number in 0..10_000 {
            let line = format!("RCPT TO:<alice+n{}@x.test>\r\n", number % 50);
            writer.write_all(line.as_bytes()).unwrap();
        }
    });
    for number in 0..10_000 {
        let want = if number < 1000 {
            "250 2.1.5 "
        } else {
            "452 4.5.3 "
        };
        let reply = client.reply();
        assert!(reply.starts_with(want), "{number}: {reply}");
    }
    sent.join().unwrap();
    assert_eq!(client.say("DATA"), "354 OK");
    client.send(&support::stuffed(MESSAGE));
    for number in 0..1000 {
        let (reply, want) = (client.reply(), format!("<alice+n{}@x.test>", number % 50));
        assert!(
            reply.starts_with("250 2.0.0 ") && reply.contains(&want),
            "{number}: {reply}"
        );
    }
    assert_eq!(client.say("NOOP"), "250 2.0.0 OK");
    assert_eq!(messages(&store.path("home/alice/Maildir")).len(), 50);
    assert!(unfinished(&store.path("home")).is_empty());
}

/// A peer hangs up behind every single byte of a dialogue. Before the last one nothing is stored; behind it at most the
/// whole message, once.
#[test]
fn a_peer_that_vanishes() {
    if not_root() {
        return;
    }
    let store = store();
    let mut server = serve(&store, "", "on_missing = \"create\"");
    let before = picture(&store);
    let dialogue = |number: usize| {
        format!(
            "LHLO me\r\nMAIL FROM:<s@else.test>\r\nRCPT TO:<alice@x.test>\r\nRCPT TO:<alice+Work@x.test>\r\n\
             DATA\r\nSubject: {number:04}\r\n\r\ntext\r\n.\r\nRSET\r\n"
        )
    };
    let chunked = |number: usize| {
        format!(
            "MAIL FROM:<s@else.test>\r\nRCPT TO:<alice@x.test>\r\nRCPT TO:<alice+Work@x.test>\r\n\
             BDAT 17\r\nSubject: {number:04}\r\n\r\nBDAT 6 LAST\r\ntext\r\nNOOP\r\n"
        )
    };
    let mut complete = Vec::new();
    let mut number = 0;
    let whole = [dialogue(0), chunked(0)];
    let ends = [
        whole[0].len() - "RSET\r\n".len(),
        whole[1].len() - "NOOP\r\n".len(),
    ];
    for (way, end) in ends.into_iter().enumerate() {
        for cut in 0..=whole[way].len() {
            for half in [false, true] {
                let text = if way == 0 {
                    dialogue(number)
                } else {
                    chunked(number)
                };
                let mut client = Lmtp::connect(&server.socket);
                client.send(&text.as_bytes()[..cut]);
                if half {
                    // Only its sending ends: it still listens, and hears what became of a complete message.
                    client.stream().shutdown(Shutdown::Write).unwrap();
                    let heard = client.rest();
                    let stored = heard.matches("Saved\r\n").count();
                    assert_eq!(stored, if cut >= end { 2 } else { 0 }, "{cut}: {heard}");
                }
                complete.push((cut >= end, half));
                number += 1;
            }
        }
    }
    server.terminate();
    assert_eq!(server.wait(), Some(0), "{}", server.log());
    for mailbox in ["home/alice/Maildir", "home/alice/Maildir/.Work"] {
        let mut times = vec![0; complete.len()];
        for (path, bytes) in messages(&store.path(mailbox)) {
            let text = String::from_utf8(bytes).unwrap();
            let (_, body) = text.split_once("Subject: ").unwrap();
            let (number, rest) = body.split_at(4);
            assert_eq!(rest, "\n\ntext\n", "{}", path.display());
            times[number.parse::<usize>().unwrap()] += 1;
        }
        for (number, (is_complete, heard)) in complete.iter().enumerate() {
            let allowed = match (is_complete, heard) {
                (false, _) => 0..=0,
                (true, false) => 0..=1,
                (true, true) => 1..=1,
            };
            assert!(
                allowed.contains(&times[number]),
                "{mailbox} {number}: {}",
                times[number]
            );
        }
    }
    assert!(unfinished(&store.path("home")).is_empty());
    let new = added(&store, &before);
    assert!(
        new.iter()
            .all(|path| path.starts_with("home/alice/Maildir/")),
        "{new:?}"
    );
}

/// Clients that deliver to the same mailboxes, each of them at the same moment. Answers all replies.
fn at_once(server: &Server, clients: usize, mailboxes: usize) -> Vec<String> {
    let together = Barrier::new(clients);
    thread::scope(|scope| {
        let deliver = || {
            let mut client = server.client();
            let one = |number| {
                client.say("MAIL FROM:<s@else.test>");
                let reply = client.say(&format!("RCPT TO:<alice+n{number}@x.test>"));
                together.wait();
                if !reply.starts_with("250 ") {
                    client.say("RSET");
                    return reply;
                }
                client.say("DATA");
                client.send(&support::stuffed(MESSAGE));
                client.reply()
            };
            (0..mailboxes).map(one).collect::<Vec<_>>()
        };
        let running: Vec<_> = (0..clients).map(|_| scope.spawn(deliver)).collect();
        let replies = running.into_iter().map(|it| it.join().unwrap());
        replies.collect::<Vec<_>>().concat()
    })
}

/// Whoever finds a mailbox that another one is making finds all of it: its group, its parts.
#[test]
fn many_at_once_make_one_mailbox() {
    if not_root() {
        return;
    }
    const TEAM: u32 = 7001;
    let store = Store::new();
    let maildir = store
        .scratch
        .maildir("home/alice/Maildir", MAIL, TEAM, 0o770);
    store.scratch.dir("home/alice", MAIL, MAIL, 0o700);
    let config = store.configure("on_missing = \"create\"", "");
    let (socket, log) = (store.path("run/lmtp"), store.path("run/log"));
    let server = Server::start_as(&config, &socket, &log, &[TEAM]);
    let replies = at_once(&server, 12, 50);
    assert!(
        replies.iter().all(|it| it.starts_with("250 2.0.0 ")),
        "{replies:?}"
    );
    let lines = tree(&maildir);
    let wrong: Vec<_> = lines
        .iter()
        .filter(|line| !line.starts_with("d0770 8:7001 ") && !line.starts_with("-0660 8:7001 "))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The INBOX's three parts; for each mailbox four directories, the mark, and a message of each client.
    assert_eq!(lines.len(), 3 + 50 * (4 + 1 + 12));
}

/// No file descriptors left: later is the only other answer, and what was answered is there.
#[test]
fn a_server_that_runs_out_of_files() {
    if not_root() {
        return;
    }
    if !support::installed("prlimit") {
        support::skip("prlimit (util-linux) is not installed");
        return;
    }
    let store = store();
    let server = serve(&store, "", "on_missing = \"create\"");
    let limit = |files: &str| {
        let mut command = Command::new("prlimit");
        command.args([files, "--pid", &server.pid().to_string()]);
        as_user(&mut command, MAIL, MAIL, &[]);
        assert!(command.status().unwrap().success());
    };
    limit("--nofile=40:");
    let replies = at_once(&server, 16, 10);
    let stored = replies.iter().filter(|it| it.contains(" mailbox=\"n"));
    let later = replies.iter().filter(|it| it.starts_with("451 4."));
    let (stored, later) = (stored.count(), later.count());
    assert_eq!(stored + later, replies.len(), "{}", server.log());
    let found = support::messages_below(&store.path("home/alice/Maildir"));
    assert_eq!(found.len(), stored);
    assert!(unfinished(&store.path("home")).is_empty());
    // Many more than can be connected at once take their turns.
    limit("--nofile=64:");
    let replies = thread::scope(|scope| {
        let deliver = || server.client().deliver(&["alice@x.test"], MESSAGE);
        let clients: Vec<_> = (0..200).map(|_| scope.spawn(deliver)).collect();
        let replies = clients.into_iter().map(|it| it.join().unwrap());
        replies.collect::<Vec<_>>().concat()
    });
    let stored = replies.iter().filter(|it| it.starts_with("250 2.0.0 "));
    let later = replies
        .iter()
        .filter(|it| it.starts_with("451 4.") || it.starts_with("452 4."));
    let (stored, later) = (stored.count(), later.count());
    assert_eq!(stored + later, 200, "{replies:?}");
    let inbox = support::messages(&store.path("home/alice/Maildir"));
    assert_eq!(inbox.len(), stored);
    assert!(stored > 0, "{replies:?}");
    limit("--nofile=1024:");
    let replies = at_once(&server, 4, 10);
    assert!(
        replies.iter().all(|it| it.starts_with("250 2.0.0 ")),
        "{replies:?}"
    );
}
