//! Names, places and messages that no mailbox can have, and peers that vanish: the right answer, a line in the log, and
//! nothing stored anywhere else.

#[path = "bad_input/bodies.rs"]
mod bodies;
#[path = "bad_input/clock.rs"]
mod clock;
#[path = "bad_input/disks.rs"]
mod disks;
#[path = "bad_input/names.rs"]
mod names;
#[path = "bad_input/peers.rs"]
mod peers;
#[path = "bad_input/places.rs"]
mod places;
mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use support::{
    Lmtp, MAIL, Server, Store, as_user, messages, not_root, program, run_with_input, tree,
    unfinished,
};

const MESSAGE: &[u8] = b"Subject: bad input\n\ntext\n";

/// A store whose INBOXes are there, so that a message is all that a fallback adds.
fn store() -> Store {
    let store = Store::new();
    for user in ["alice", "carol"] {
        let maildir = format!("home/{user}/Maildir");
        store.scratch.maildir(&maildir, MAIL, MAIL, 0o700);
    }
    store
}

/// Our server; `top` stands above all tables of the config.
fn serve(store: &Store, top: &str, delivery: &str) -> Server {
    let path = store.configure(delivery, "");
    let config = format!("{top}\n{}", fs::read_to_string(&path).unwrap());
    fs::write(&path, config).unwrap();
    Server::start(&path, &store.path("run/lmtp"), &store.path("run/log"))
}

/// Everything in the store, and nothing that a server needs for itself.
fn picture(store: &Store) -> Vec<String> {
    let is_mail = |line: &String| !line.contains(" run") && !line.contains(" postroom.toml");
    let is_kept = |line: &String| line.ends_with(".lock") && line.contains("/tmp/");
    let tree = tree(&store.path("")).into_iter();
    tree.filter(|line| is_mail(line) && !is_kept(line))
        .collect()
}

/// What `picture` has more than `before`, by path.
fn added(store: &Store, before: &[String]) -> Vec<String> {
    let mut new = picture(store);
    for line in before {
        let at = new.iter().position(|it| it == line);
        new.remove(at.unwrap_or_else(|| panic!("{line} has changed")));
    }
    new.iter()
        .map(|line| line.splitn(3, ' ').last().unwrap().to_owned())
        .collect()
}

/// One recipient, as bytes, and one message: the last reply.
fn deliver(server: &Server, recipient: &[u8]) -> String {
    let mut client = server.client();
    client.say("MAIL FROM:<s@else.test> SMTPUTF8");
    client.send(&[b"RCPT TO:<", recipient, b">\r\n"].concat());
    let reply = client.reply();
    if !reply.starts_with("250 ") {
        return reply;
    }
    assert_eq!(client.say("DATA"), "354 OK");
    client.send(&support::stuffed(MESSAGE));
    let reply = client.reply();
    assert_eq!(client.say("NOOP"), "250 2.0.0 OK");
    reply
}

/// The same by BDAT, in two chunks.
fn chunks(client: &mut Lmtp, recipients: &[&str], message: &[u8]) -> Vec<String> {
    client.say("MAIL FROM:<s@else.test>");
    for recipient in recipients {
        client.say(&format!("RCPT TO:<{recipient}>"));
    }
    let (first, last) = message.split_at(message.len() / 2);
    client.send(format!("BDAT {}\r\n", first.len()).as_bytes());
    client.send(first);
    client.reply();
    client.send(format!("BDAT {} LAST\r\n", last.len()).as_bytes());
    client.send(last);
    recipients.iter().map(|_| client.reply()).collect()
}

/// The LDA as the mail user: exit code and what it told.
fn lda(store: &Store, arguments: &[&OsStr], input: &[u8]) -> (i32, String) {
    lda_as(MAIL, store, arguments, input)
}

/// The same, started by this user: root's becomes the recipient.
fn lda_as(uid: u32, store: &Store, arguments: &[&OsStr], input: &[u8]) -> (i32, String) {
    let mut command = program("postroom-lda");
    command.arg("-c").arg(store.path("postroom.toml"));
    command.args(arguments).env("POSTROOM_LOG", "json");
    if uid != 0 {
        as_user(&mut command, uid, uid, &[]);
    }
    let output = run_with_input(&mut command, input);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), told)
}

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}
