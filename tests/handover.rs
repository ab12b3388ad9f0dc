//! An LDA whose MTA has dropped its groups: the running server stores the message, for its own user and nobody else.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{
    PATIENCE, Scratch, Server, as_user, messages, not_root, program, replace_in, run_with_input,
    wait_until, write_long_ago,
};

/// u1 and u2, with a public tree of a group that the userdb gives to u1 only.
struct Site {
    scratch: Scratch,
}

const UID: u32 = 20_000;
const GROUP: u32 = 30_000;

impl Site {
    fn new(lda: &str, more: &str) -> Site {
        let scratch = Scratch::new();
        scratch.dir("run", 0, 0, 0o755);
        scratch.dir("home", 0, 0, 0o755);
        let root = scratch.text("");
        let mut users = String::new();
        for number in 1..=2 {
            let uid = UID + number;
            scratch.dir(&format!("home/u{number}"), uid, uid, 0o700);
            let group = match number {
                1 => format!("userdb_mail_access_groups={GROUP}"),
                _ => String::new(),
            };
            users += &format!("u{number}::{uid}:{uid}::{root}/home/u{number}::{group}\n");
        }
        write_long_ago(&scratch.path("users"), &users);
        scratch.dir("public", 0, GROUP, 0o2770);
        scratch.maildir("public/.info", 0, GROUP, 0o2770);
        let acl = "user=u1 lrwip\nuser=u2 lrwip\n";
        scratch.file("public/.info/dovecot-acl", 0, GROUP, 0o660, acl);
        let config = format!(
            r#"
mail_path = "~/Maildir"
[[userdb]]
passwd-file = {{ path = "{root}/users" }}
[namespace.own]
inbox = true
separator = "/"
[namespace.public]
type = "public"
prefix = "Public/"
separator = "/"
mail_path = "{root}/public"
[acl]
driver = "vfile"
subject = "anonymous"
[delivery]
spool_dir = "/var/tmp"
message_size = 100000
[lmtp]
listen = [{{ unix = "{root}/run/lmtp", mode = "0600" }}]
[lda]
listen = [{{ unix = "{root}/run/lda", mode = "0666" }}]
{lda}
{more}
"#
        );
        fs::write(scratch.path("postroom.toml"), config).unwrap();
        Site { scratch }
    }

    fn serve(&self) -> Server {
        let config = self.scratch.path("postroom.toml");
        let (socket, log) = (self.scratch.path("run/lmtp"), self.scratch.path("run/log"));
        Server::start_as_root(&config, &socket, &log)
    }

    /// The LDA as u1, without any group. Answers its exit code and stderr.
    fn lda(&self, arguments: &[&str], message: &[u8]) -> (i32, String) {
        self.lda_as(UID + 1, arguments, message)
    }

    fn lda_as(&self, uid: u32, arguments: &[&str], message: &[u8]) -> (i32, String) {
        let mut lda = program("postroom-lda");
        lda.args(arguments);
        lda.env("POSTROOM_CONFIG", self.scratch.path("postroom.toml"));
        lda.env("SENDER", "a@b");
        as_user(&mut lda, uid, uid, &[]);
        let output = run_with_input(&mut lda, message);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap(), said)
    }

    fn public(&self) -> Vec<(PathBuf, Vec<u8>)> {
        messages(&self.scratch.path("public/.info"))
    }

    fn inbox(&self, user: &str) -> usize {
        messages(&self.scratch.path(&format!("home/{user}/Maildir"))).len()
    }
}

const LETTER: &[u8] = b"From x  Mon Nov 02 07:02:09 2026\nSubject: x\n\nh\xe4llo\r\r\n.\nlast";

#[test]
fn where_its_own_rights_do_not_suffice() {
    if not_root() {
        return;
    }
    let site = Site::new("", "");
    let public = ["-d", "u1", "-m", "Public/info"];
    // Nobody is there who could.
    let (code, said) = site.lda(&public, LETTER);
    assert_eq!(code, 75, "{said}");
    let server = site.serve();
    let (code, said) = site.lda(&public, LETTER);
    assert_eq!((code, said.as_str()), (0, ""), "{}", server.log());
    let stored = site.public();
    let meta = fs::metadata(&stored[0].0).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (UID + 1, GROUP, 0o660)
    );
    let text = stored[0].1.as_slice();
    assert!(
        text.ends_with(b"Subject: x\n\nh\xe4llo\r\n.\nlast"),
        "{}",
        String::from_utf8_lossy(text)
    );
    assert!(server.log().contains("Public/info"), "{}", server.log());
    // A large one, over many pieces.
    let large = [b"Subject: y\n\n".as_slice(), &b"x".repeat(70), b"\n"].concat();
    let large = [
        large.as_slice(),
        &[b"y".repeat(71), b"\n".to_vec()].concat().repeat(1000),
    ]
    .concat();
    assert_eq!(site.lda(&public, &large).0, 0);
    assert!(site.public().iter().any(|(_, text)| text.ends_with(&large)));
    // His own INBOX needs no server.
    drop(server);
    let (code, said) = site.lda(&["-d", "u1"], LETTER);
    assert_eq!(code, 0, "{said}");
    assert_eq!(site.inbox("u1"), 1);
    assert_eq!(site.lda(&public, LETTER).0, 75);
}

#[test]
fn only_for_who_runs_it() {
    if not_root() {
        return;
    }
    let site = Site::new("trusted_uids = [\"20009\"]\nmax_per_minute = 6", "");
    let server = site.serve();
    for (uid, arguments, code) in [
        // Whoever he says he is.
        (UID + 2, &["-d", "u1"][..], 75),
        (UID + 2, &["-d", "u1", "-m", "Public/info"], 75),
        (UID + 1, &["-d", "u2"], 75),
        // The userdb does not give him the group.
        (UID + 2, &["-d", "u2", "-m", "Public/info"], 75),
        // An MTA.
        (20_009, &["-d", "u1"], 0),
        (20_009, &["-d", "u2"], 0),
        (20_009, &["-d", "u1", "-m", "Public/info"], 0),
        (20_009, &["-d", "nobody-here"], 67),
        // With a configuration of its own, and for an address, it is on its own.
        (
            UID + 1,
            &[
                "-d",
                "u1",
                "-m",
                "Public/info",
                "-o",
                "delivery.on_missing=reject",
            ],
            75,
        ),
        (UID + 1, &["u1"], 0),
    ] {
        let before = (site.inbox("u1"), site.inbox("u2"), site.public().len());
        let (got, said) = site.lda_as(uid, arguments, LETTER);
        assert_eq!(got, code, "{uid} {arguments:?}: {said}\n{}", server.log());
        let after = (site.inbox("u1"), site.inbox("u2"), site.public().len());
        let stored = after.0 + after.1 + after.2 - before.0 - before.1 - before.2;
        assert_eq!(stored, usize::from(code == 0), "{uid} {arguments:?}");
        // Nothing that a sender may not read.
        assert!(!said.contains("uid") && !said.contains('/'), "{said}");
    }
    // So many a minute for each uid.
    let public = ["-d", "u1", "-m", "Public/info"];
    let codes: Vec<i32> = (0..8).map(|_| site.lda(&public, LETTER).0).collect();
    assert_eq!(
        codes.iter().filter(|code| **code == 0).count(),
        5,
        "{codes:?}"
    );
    assert!(codes.ends_with(&[75, 75]), "{codes:?}");
    assert!(
        server.log().contains("too many a minute"),
        "{}",
        server.log()
    );
    let (code, said) = site.lda_as(20_009, &["-d", "u1"], &b"x\n".repeat(60_000));
    assert_eq!(code, 77, "{said}");
}

/// What is said to the socket by hand.
#[test]
fn what_is_no_offer() {
    if not_root() {
        return;
    }
    let site = Site::new("", "");
    let _server = site.serve();
    let socket = site.scratch.path("run/lda");
    for said in [
        &b"LHLO me\r\n"[..],
        b"XCLIENT ADDR=1.2.3.4\r\n",
        b"{}\n",
        b"{\"user\":\"u1\"}\n",
        b"\n",
        b"\xff\xfe\n",
        &[b'x'; 20_000],
    ] {
        let heard = talk(&socket, said);
        assert_eq!(heard, "", "{}", String::from_utf8_lossy(said));
    }
    assert_eq!((site.inbox("u1"), site.inbox("u2")), (0, 0));
}

/// What somebody trusted offers for u1, with one part changed.
fn offer(part: &str, value: Value) -> Vec<u8> {
    let mut offer = json!({
        "user": "u1", "last": null, "original": null, "sender": "Null", "mailbox": null,
        "detail": null, "flags": 0, "keywords": [], "size": 10,
    });
    offer[part] = value;
    format!("{offer}\n").into_bytes()
}

/// Nothing is taken that the options of an LDA could not say.
#[test]
fn the_parts_of_an_offer() {
    if not_root() {
        return;
    }
    let site = Site::new("trusted_uids = [\"0\"]", "");
    let server = site.serve();
    let socket = site.scratch.path("run/lda");
    let address = |local: &str, domain: &str| json!({ "local": local, "domain": domain });
    let sender = |local: &str, domain: &str| json!({ "Address": address(local, domain) });
    for (part, value, is_one) in [
        ("keywords", json!(["$Junk", "Work"]), true),
        ("keywords", json!(["a\n1 b"]), false),
        ("keywords", json!(["Work", "x\0y"]), false),
        ("keywords", json!(["two words"]), false),
        ("keywords", json!([""]), false),
        ("keywords", json!(["\\Seen"]), false),
        ("keywords", json!(["k".repeat(51)]), false),
        ("sender", sender("al ice", "x.test"), true),
        ("sender", sender("a\nb", "x.test"), false),
        ("sender", sender("", "x.test"), false),
        ("sender", sender(&"a".repeat(400), "x.test"), false),
        ("sender", sender("a", "x\r\ny"), false),
        ("last", address("u1+Work", "x.test"), true),
        ("last", address("a\0b", "x.test"), false),
        ("last", address("a", "x y"), false),
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&offer(part, value.clone())).unwrap();
        let heard = hear(&mut stream);
        let want = if is_one { "\"Send\"\n" } else { "" };
        assert_eq!(heard, want, "{part} {value}: {}", server.log());
    }
}

/// The limit is of the message, and not of the CRs that the two say to each other.
#[test]
fn as_large_as_a_message_may_be() {
    if not_root() {
        return;
    }
    let site = Site::new("trusted_uids = [\"0\"]", "");
    let server = site.serve();
    let largest = b"x\n".repeat(50_000);
    for arguments in [&["-d", "u1"][..], &["-d", "u1", "-m", "Public/info"]] {
        let (code, said) = site.lda(arguments, &largest);
        assert_eq!(code, 0, "{arguments:?} {said} {}", server.log());
        let (code, _) = site.lda(arguments, &[&largest[..], b"x"].concat());
        assert_eq!(code, 77, "{arguments:?}");
    }
    // Whatever was offered.
    for (size, want) in [
        (100_000, "\"Stored\"\n"),
        (100_001, "{\"Refused\":\"TooBig\"}\n"),
        (500_000, "{\"Refused\":\"TooBig\"}\n"),
    ] {
        let mut stream = offered(&site);
        for piece in vec![b'x'; size].chunks(50_000) {
            send(&mut stream, piece);
        }
        send(&mut stream, b"");
        assert_eq!(hear(&mut stream), want, "{size}: {}", server.log());
    }
}

/// Who has sent half of a message does not hold up the end of the server; who has sent all of it gets his answer.
#[test]
fn the_end_of_the_server() {
    if not_root() {
        return;
    }
    let site = Site::new("trusted_uids = [\"0\"]", "");
    // A delivery that takes as long as the test wants.
    let meet = site.scratch.dir("meet", UID + 1, UID + 1, 0o700);
    let meet = meet.display();
    let script = format!(
        "#!/bin/sh\ncat > {meet}/message\ntouch {meet}/began\nwhile [ ! -e {meet}/go ]; do sleep 0.1; done\n"
    );
    let agent = site.scratch.file("agent", 0, 0, 0o755, &script);
    let path = "mail_path = \"~/Maildir\"\n";
    let agent = format!(
        "{path}mail_driver = \"sdbox\"\nhand_over = \"lda:{}\"\n",
        agent.display()
    );
    replace_in(&site.scratch.path("postroom.toml"), path, &agent);
    let mut server = site.serve();
    let mut silent = UnixStream::connect(site.scratch.path("run/lda")).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut slow = offered(&site);
    let mut half = offered(&site);
    send(&mut half, b"Subject: half\r\n");
    let mut whole = offered(&site);
    send(&mut whole, b"Subject: whole\r\n\r\nx\r\n");
    send(&mut whole, b"");
    let began = site.scratch.path("meet/began");
    wait_until("it is being stored", || began.exists());
    server.terminate();
    for stream in [&mut silent, &mut slow, &mut half] {
        assert_eq!(hear(stream), "");
    }
    fs::write(site.scratch.path("meet/go"), "").unwrap();
    assert_eq!(hear(&mut whole), "\"Stored\"\n", "{}", server.log());
    assert_eq!(server.wait(), Some(0), "{}", server.log());
}

/// A client whose offer for u1 was taken.
fn offered(site: &Site) -> UnixStream {
    let mut stream = UnixStream::connect(site.scratch.path("run/lda")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&offer("size", json!(10))).unwrap();
    assert_eq!(hear(&mut stream), "\"Send\"\n");
    stream
}

/// One piece; the server may have had enough.
fn send(stream: &mut UnixStream, piece: &[u8]) {
    let _ = stream.write_all(&(piece.len() as u32).to_be_bytes());
    let _ = stream.write_all(piece);
}

/// One line, or nothing where the server closes.
fn hear(stream: &mut UnixStream) -> String {
    let mut heard = String::new();
    let mut byte = [0];
    while !heard.ends_with('\n') && stream.read(&mut byte).expect("no answer yet") == 1 {
        heard.push(byte[0].into());
    }
    heard
}

fn talk(socket: &Path, said: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(said);
    let mut heard = String::new();
    let _ = stream.read_to_string(&mut heard);
    heard
}
