//! Names, places and messages that no mailbox can have, and peers that vanish: the right answer, a line in the log, and
//! nothing stored anywhere else.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{
    Lmtp, MAIL, Server, Store, as_user, leftovers, messages, not_root, program, run_with_input,
    skip, tree,
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
    tree(&store.path("")).into_iter().filter(is_mail).collect()
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

/// The LDA as the mail user: exit code and what it told.
fn lda(store: &Store, arguments: &[&OsStr], input: &[u8]) -> (i32, String) {
    let mut command = program("postroom-lda");
    command.arg("-c").arg(store.path("postroom.toml"));
    command.args(arguments).env("POSTROOM_LOG", "json");
    as_user(&mut command, MAIL, MAIL, &[]);
    let output = run_with_input(&mut command, input);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), told)
}

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

#[test]
fn recipients_that_nobody_is() {
    let store = store();
    let server = store.serve("", "");
    let before = picture(&store);
    let (long, too_long) = ("a".repeat(300), "a".repeat(400));
    let (long, too_long) = (format!("{long}@x.test"), format!("{too_long}@x.test"));
    const UNKNOWN: &str = "no userdb has this user";
    for (recipient, reply, exit, log) in [
        (&b"nobody@x.test"[..], "550 5.1.1 ", 67, UNKNOWN),
        (b"nobody+Work@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b".@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"..@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"+Work@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"\"../alice\"@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"\"alice/\"@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"\"~alice\"@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"\"alice \"@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"\"#\"@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"\"alice:\"@x.test", "550 5.1.1 ", 67, UNKNOWN),
        (b"%{home}@x.test", "550 5.1.1 ", 67, UNKNOWN),
        ("jörg@x.test".as_bytes(), "550 5.1.1 ", 67, UNKNOWN),
        (long.as_bytes(), "550 5.1.1 ", 67, UNKNOWN),
        (too_long.as_bytes(), "501 5.1.3 ", 75, ""),
        (b"\"\"@x.test", "501 5.1.3 ", 75, ""),
        (b"alice@", "501 5.1.3 ", 75, ""),
        (b"alice@..", "501 5.1.3 ", 75, ""),
        (b"alice@x.test\r\n", "501 5.1.3 ", 75, ""),
        (b"\"alice\x01\"@x.test", "500 5.5.2 ", 75, ""),
        (b"\"alice\x7f\"@x.test", "500 5.5.2 ", 75, ""),
        (b"\"alice\xc2\x85\"@x.test", "500 5.5.2 ", 75, ""),
        (b"alice\xff@x.test", "500 5.5.2 ", 75, ""),
        (b"alice\0@x.test", "500 5.5.2 ", 75, ""),
    ] {
        let shown = String::from_utf8_lossy(recipient);
        // A line end is a new command: the client is not in step any more, and nothing came of it.
        let known = server.log().len();
        let got = deliver(&server, recipient);
        assert!(got.starts_with(reply), "{shown:?}: {got}");
        assert!(server.log()[known..].contains(log), "{shown:?}");
        if !recipient.contains(&0) {
            let (code, told) = lda(&store, &[os(recipient)], MESSAGE);
            assert_eq!(code, exit, "{shown:?}: {told}");
            assert!(told.contains(log), "{shown:?}: {told}");
        }
        assert_eq!(picture(&store), before, "{shown:?}");
    }
    for (user, exit) in [
        (&b"nobody"[..], 67),
        (b"", 67),
        (b".", 67),
        (b"..", 67),
        (b"../alice", 67),
        (b"alice/", 67),
        (b"alice\n", 67),
        (b"alice\x01", 67),
        (b"alice\xff", 75),
    ] {
        let (code, told) = lda(&store, &[os(b"-d"), os(user)], MESSAGE);
        assert_eq!(code, exit, "{:?}: {told}", os(user));
        assert_eq!(picture(&store), before, "{:?}", os(user));
    }
}

/// A userdb that knows everybody, and a path made of what it is asked for.
#[test]
fn recipients_that_would_leave_their_place() {
    let store = store();
    let root = store.scratch.text("");
    store.scratch.dir("vmail", MAIL, MAIL, 0o700);
    let config = format!(
        "hostname = \"mx\"\nfirst_valid_uid = 1\n\
         [[userdb]]\nstatic = {{ uid = {MAIL}, gid = {MAIL}, home = \"{root}/vmail/%{{user | domain}}/%{{user | username}}\" }}\n\
         [namespace.inbox]\ninbox = true\nmail_path = \"~/Maildir\"\n\
         [lmtp]\nlisten = [{{ unix = \"{root}/run/lmtp\", mode = \"0666\" }}]\n\
         [delivery]\nspool_dir = \"{root}/run\"\n"
    );
    fs::write(store.path("postroom.toml"), config).unwrap();
    let before = picture(&store);
    let config = store.path("postroom.toml");
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    for recipient in [
        ".@d.test",
        "..@d.test",
        "+x@d.test",
        "\"a/b\"@d.test",
        "\"/\"@d.test",
        "\"../d.test/alice\"@d.test",
        "\"a@..\"",
        "\"a@.\"",
        "\"..@..\"@d.test",
        "\"@\"",
    ] {
        let reply = deliver(&server, recipient.as_bytes());
        assert!(reply.starts_with("550 5.1.1 "), "{recipient}: {reply}");
        let (code, told) = lda(&store, &[os(recipient.as_bytes())], MESSAGE);
        assert_eq!(code, 67, "{recipient}: {told}");
        let now: Vec<String> = picture(&store);
        assert_eq!(now, before, "{recipient}");
    }
    let reply = deliver(&server, b"alice@d.test");
    assert!(reply.starts_with("250 2.0.0 "), "{reply}");
    assert_eq!(messages(&store.path("vmail/d.test/alice/Maildir")).len(), 1);
}

/// What becomes of a detail where every mailbox may be made, with Maildir++ and with nested directories: the new
/// directory, or INBOX. And the exit code for the same name behind `-m`.
#[test]
fn names_that_no_mailbox_can_have() {
    let long = "x".repeat(256);
    let inbox = (Some("INBOX"), Some("INBOX"));
    let rows = [
        ("..", inbox, 75, "the level|inside a level"),
        ("../../x", inbox, 75, "the level|inside a level"),
        ("a/../b", inbox, 75, "the level|inside a level"),
        ("./a", inbox, 75, "the level|inside a level"),
        ("INBOX/../../x", inbox, 75, "the level|inside a level"),
        ("/etc/passwd", inbox, 75, "begins with the hierarchy"),
        ("a//b", inbox, 75, "adjacent hierarchy"),
        ("a/", inbox, 75, "ends with the hierarchy"),
        ("~", inbox, 75, "begins with '~'"),
        ("~bob/x", inbox, 75, "begins with '~'"),
        (&long, inbox, 75, "longer than"),
        ("a\u{2028}b", inbox, 75, "U+2028"),
        ("a\u{feff}", inbox, 75, "U+FEFF"),
        ("dovecot.index", inbox, 75, "storage's own|inside a level"),
        ("cur", (Some(".cur"), Some("INBOX")), 75, "storage's own"),
        (
            "new/x",
            (Some(".new.x"), Some("INBOX")),
            75,
            "storage's own",
        ),
        (
            "dovecot-acl",
            (Some(".dovecot-acl"), Some("INBOX")),
            75,
            "storage's own",
        ),
        ("a.b", (Some("INBOX"), Some("a.b")), 75, "inside a level"),
        ("%{home}", (Some(".%{home}"), Some("%{home}")), 0, ""),
        ("shared/nobody/x", inbox, 0, "no such owner"),
        ("shared/nobody", inbox, 0, "no such owner"),
        ("shared/../x", inbox, 0, "no such owner"),
        ("shared/%{home}/x", inbox, 0, "no such owner"),
        ("shared//x", inbox, 0, "needs a user"),
        ("shared/", inbox, 0, "prefix of namespace"),
        ("Public/", inbox, 0, "prefix of namespace"),
        ("Public/..", inbox, 75, "the level|inside a level"),
        (
            "Public/../home/bob/Maildir",
            inbox,
            75,
            "the level|inside a level",
        ),
        ("Public/fresh", inbox, 0, "no right to create"),
        ("shared/bob/../alice", inbox, 75, "the level|inside a level"),
        (
            "shared/bob/Projects/../../../alice",
            inbox,
            75,
            "the level|inside a level",
        ),
        ("shared/bob/new2", inbox, 0, "no right to create"),
    ];
    for (top, layout) in [("", 0), ("mailbox_list_layout = \"fs\"", 1)] {
        let store = store();
        let server = serve(&store, top, "on_missing = \"create\"");
        for (detail, places, exit, why) in &rows {
            let place = if layout == 0 { places.0 } else { places.1 }.unwrap();
            let (before, known) = (picture(&store), server.log().len());
            let recipient = format!("\"alice+{detail}\"@x.test");
            let reply = deliver(&server, recipient.as_bytes());
            let new = added(&store, &before);
            let is_refused = place == "INBOX";
            let mailbox = if is_refused { "INBOX" } else { detail };
            let want = format!("mailbox=\"{mailbox}\" Saved");
            assert!(
                reply.starts_with("250 ") && reply.contains(&want),
                "{detail}: {reply}"
            );
            if is_refused {
                assert_eq!(new, ["home/alice/Maildir/new/MESSAGE"], "{detail} {top}");
                let line = &server.log()[known..];
                assert!(line.contains("wanted="), "{detail}: {line}");
                assert!(tells(line, why), "{detail}: {line}");
            } else {
                let below = format!("home/alice/Maildir/{place}");
                assert!(new.iter().all(|path| path.starts_with(&below)), "{new:?}");
                assert_eq!(messages(&store.path(&below)).len(), 1, "{detail}");
            }
            // `-m` is an admin's word: what can never be is to be mended, what is not there has its rule.
            let before = picture(&store);
            let arguments = [os(b"-d"), os(b"alice"), os(b"-m"), os(detail.as_bytes())];
            let (code, told) = lda(&store, &arguments, MESSAGE);
            let want = if is_refused { *exit } else { 0 };
            assert_eq!(code, want, "-m {detail} {top}: {told}");
            if want != 0 {
                assert!(tells(&told, why), "-m {detail}: {told}");
                assert_eq!(picture(&store), before, "-m {detail}");
            }
        }
        let arguments = [os(b"-d"), os(b"alice"), os(b"-m"), os(b"a\xff")];
        let before = picture(&store);
        assert_eq!(lda(&store, &arguments, MESSAGE).0, 75);
        let arguments = [os(b"-d"), os(b"alice"), os(b"-m"), os(b"a\nb")];
        assert_eq!(lda(&store, &arguments, MESSAGE).0, 75);
        assert_eq!(picture(&store), before);
        assert!(leftovers(&store.path("")).is_empty());
    }
}

/// Whether a log has one of these `|` words.
fn tells(log: &str, words: &str) -> bool {
    words.split('|').any(|words| log.contains(words))
}

/// Something else is where `Work` should be: a stranger's mail goes to INBOX, the admin's waits.
#[test]
fn places_that_are_no_mailbox() {
    if not_root() {
        return;
    }
    for (what, script) in [
        ("a file", "touch .Work"),
        ("a pipe", "mkfifo .Work"),
        ("a loop", "ln -s .Work .Work"),
        ("a link to nothing", "ln -s nowhere .Work"),
        ("a link to a file", "ln -s /etc/passwd .Work"),
        (
            "a directory of somebody else",
            "mkdir -m 0700 .Work && chown 0:0 .Work",
        ),
        (
            "tmp is a file",
            "mkdir -p .Work/cur .Work/new && touch .Work/tmp",
        ),
        (
            "tmp is a program",
            "mkdir -p .Work/cur .Work/new && touch .Work/tmp && chmod 777 .Work/tmp",
        ),
        (
            "new is a program",
            "mkdir -p .Work/cur .Work/tmp && touch .Work/new && chmod 777 .Work/new",
        ),
        (
            "new is a loop",
            "mkdir -p .Work/cur .Work/tmp && ln -s new .Work/new",
        ),
        (
            "new is a link to nothing",
            "mkdir -p .Work/cur .Work/tmp && ln -s nowhere .Work/new",
        ),
        (
            "tmp leads elsewhere",
            "mkdir -p .Work/cur .Work/new && ln -s ../tmp .Work/tmp",
        ),
        (
            "new leads elsewhere",
            "mkdir -p .Work/cur .Work/tmp && ln -s ../cur .Work/new",
        ),
        (
            "new is closed",
            "mkdir -p .Work/cur .Work/new .Work/tmp && chown 0:0 .Work/new",
        ),
    ] {
        let store = store();
        let script = format!(
            "find . -exec chown -h {MAIL}:{MAIL} {{}} + && {script} && find .Work -user 0 ! -type d -exec chown -h {MAIL}:{MAIL} {{}} +"
        );
        let script = script.replace(
            "mkdir -p",
            "install -d -o 8 -g 8 .Work && install -d -o 8 -g 8",
        );
        shell(&store.path("home/alice/Maildir"), &script);
        let server = serve(&store, "", "on_missing = \"create\"");
        let before = picture(&store);
        let reply = deliver(&server, b"alice+Work@x.test");
        assert!(
            reply.contains("mailbox=\"INBOX\""),
            "{what}: {reply} {}",
            server.log()
        );
        let new = added(&store, &before);
        assert_eq!(new, ["home/alice/Maildir/new/MESSAGE"], "{what}");
        assert!(server.log().contains(".Work"), "{what}: {}", server.log());
        let before = picture(&store);
        let arguments = [os(b"-d"), os(b"alice"), os(b"-m"), os(b"Work")];
        let (code, told) = lda(&store, &arguments, MESSAGE);
        assert_eq!(code, 75, "{what}: {told}");
        assert!(told.contains(".Work"), "{what}: {told}");
        assert_eq!(picture(&store), before, "{what}");
    }
}

/// Where INBOX itself cannot be had there is nothing to fall back to, and RCPT says so already.
#[test]
fn an_inbox_that_cannot_be_had() {
    if not_root() {
        return;
    }
    for (what, script) in [
        ("a file", "touch Maildir"),
        ("a loop", "ln -s Maildir Maildir"),
        ("a link to nothing", "ln -s nowhere Maildir"),
        ("somebody else's", "mkdir -m 0700 Maildir"),
        ("read-only", "mkdir -m 0755 Maildir"),
        (
            "new is read-only",
            "install -d -o 8 -g 8 Maildir Maildir/cur Maildir/tmp && mkdir Maildir/new",
        ),
        (
            "new is a file",
            "install -d -o 8 -g 8 Maildir Maildir/cur Maildir/tmp && touch Maildir/new",
        ),
        ("the home is not ours", "chown 0:0 ."),
        ("the home is a file", "rmdir ../alice && touch ../alice"),
        (
            "the home is a loop",
            "rmdir ../alice && ln -s alice ../alice",
        ),
    ] {
        let store = Store::new();
        shell(&store.path("home/alice"), script);
        let server = store.serve("", "");
        let before = picture(&store);
        for recipient in ["alice@x.test", "alice+Work@x.test", "alice+Public/x@x.test"] {
            let mut client = server.client();
            client.say("MAIL FROM:<s@else.test>");
            let reply = client.say(&format!("RCPT TO:<{recipient}>"));
            assert!(reply.starts_with("451 4."), "{what} {recipient}: {reply}");
            let (code, told) = lda(&store, &[os(recipient.as_bytes())], MESSAGE);
            assert_eq!(code, 75, "{what} {recipient}: {told}");
        }
        assert!(
            server.log().contains("home/alice"),
            "{what}: {}",
            server.log()
        );
        assert_eq!(picture(&store), before, "{what}");
    }
}

fn shell(at: &Path, script: &str) {
    let mut command = Command::new("/bin/sh");
    command.args(["-ec", script]).current_dir(at);
    assert!(command.status().unwrap().success(), "{script}");
}

/// A mount in the scratch folder, gone with its value.
struct Mount(PathBuf);

impl Mount {
    fn new(at: PathBuf, arguments: &[&str]) -> Option<Mount> {
        let mut command = Command::new("mount");
        let mounted = command.args(arguments).arg(&at).output();
        match mounted.is_ok_and(|output| output.status.success()) {
            true => Some(Mount(at)),
            false => {
                skip("nothing can be mounted here");
                None
            }
        }
    }

    /// What lies at `at`, where nothing can be written.
    fn read_only(at: PathBuf) -> Option<Mount> {
        let source = at.to_str().unwrap().to_owned();
        let mount = Mount::new(at, &["--bind", &source])?;
        let mut command = Command::new("mount");
        command.args(["-o", "remount,ro,bind"]).arg(&mount.0);
        assert!(command.status().unwrap().success());
        Some(mount)
    }

    /// A file system of so many kilobytes and files.
    fn small(at: PathBuf, kilobytes: u32, files: u32) -> Option<Mount> {
        let options =
            format!("size={kilobytes}k,nr_inodes={files},mode=0700,uid={MAIL},gid={MAIL}");
        Mount::new(at, &["-t", "tmpfs", "-o", &options, "tmpfs"])
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_root_that_is_read_only() {
    if not_root() {
        return;
    }
    let store = store();
    let Some(_mount) = Mount::read_only(store.path("public")) else {
        return;
    };
    let server = serve(&store, "", "on_missing = \"create\"");
    for (recipient, reply, exit) in [
        ("alice+Public/info@x.test", "451 4.2.0 ", 75),
        ("alice+Public/new@x.test", "250 2.0.0 ", 0),
        ("alice+Public/info/new@x.test", "250 2.0.0 ", 0),
    ] {
        let before = picture(&store);
        let got = deliver(&server, recipient.as_bytes());
        assert!(got.starts_with(reply), "{recipient}: {got}");
        let (code, told) = lda(&store, &[os(recipient.as_bytes())], MESSAGE);
        assert_eq!(code, exit, "{recipient}: {told}");
        let new = added(&store, &before);
        let want = match exit {
            0 => &["home/alice/Maildir/new/MESSAGE"; 2][..],
            _ => &[],
        };
        assert_eq!(new, want, "{recipient}");
    }
    assert!(
        server.log().contains("Read-only file system"),
        "{}",
        server.log()
    );
    drop(server);
    let Some(_home) = Mount::read_only(store.path("home/carol")) else {
        return;
    };
    let server = store.serve("", "");
    let before = picture(&store);
    assert!(deliver(&server, b"carol@x.test").starts_with("451 4.2.0 "));
    assert_eq!(lda(&store, &[os(b"carol@x.test")], MESSAGE).0, 75);
    assert_eq!(picture(&store), before);
}

/// Space or files run out: at every size of the hole nothing stays of a message that did not fit.
#[test]
fn a_disk_that_is_full() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let root = store.path("home/alice");
    let Some(_mount) = Mount::small(root.clone(), 256, 64) else {
        return;
    };
    let server = serve(&store, "", "on_missing = \"create\"");
    let message = [MESSAGE, &b"0123456789\n".repeat(3000)].concat();
    let deliver = |recipient: &str| server.client().deliver(&[recipient], &message).remove(0);
    let filler = root.join("filler");
    // No space for the message.
    let reply = deliver("alice@x.test");
    assert!(reply.starts_with("250 2.0.0 "), "{reply} {}", server.log());
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[b'x'; 4096]).is_ok() {}
    let before = picture(&store);
    for recipient in ["alice@x.test", "alice+Spam@x.test", "alice+Work@x.test"] {
        let reply = deliver(recipient);
        assert!(reply.starts_with("452 4.3.1 "), "{recipient}: {reply}");
        let (code, told) = lda(&store, &[os(recipient.as_bytes())], &message);
        assert_eq!(code, 75, "{recipient}: {told}");
        assert!(told.contains("4.3.1 "), "{told}");
        assert_eq!(picture(&store), before, "{recipient}");
    }
    assert!(server.log().contains("No space left"), "{}", server.log());
    // The others of the transaction are not concerned.
    let both = ["alice@x.test", "bob@x.test"];
    let replies = server.client().deliver(&both, &message);
    assert!(
        replies[0].starts_with("452 4.3.1 ") && replies[1].starts_with("250 2.0.0 "),
        "{replies:?}"
    );
    drop(file);
    fs::remove_file(&filler).unwrap();
    let reply = deliver("alice@x.test");
    assert!(reply.starts_with("250 2.0.0 "), "{reply} {}", server.log());
    // No inodes, or too few of them for a mailbox: none of its directories stays.
    let mut fillers = Vec::new();
    while let Ok(file) = fs::File::create_new(root.join(fillers.len().to_string())) {
        drop(file);
        fillers.push(root.join(fillers.len().to_string()));
    }
    for _ in 0..5 {
        let before = picture(&store);
        let reply = deliver("alice+Work@x.test");
        assert!(reply.starts_with("452 4.3.1 "), "{reply}");
        let (code, told) = lda(
            &store,
            &[os(b"-m"), os(b"Work"), os(b"-d"), os(b"alice")],
            &message,
        );
        assert_eq!(code, 75, "{told}");
        assert_eq!(picture(&store), before);
        fs::remove_file(fillers.pop().unwrap()).unwrap();
    }
    assert!(leftovers(&store.path("home")).is_empty());
}

/// The spool has no space: the message is lost before there is a plan, and every recipient hears and has a line in the log.
#[test]
fn a_spool_that_is_full() {
    if not_root() {
        return;
    }
    let store = store();
    store.scratch.dir("spool", MAIL, MAIL, 0o700);
    let Some(_mount) = Mount::small(store.path("spool"), 3000, 64) else {
        return;
    };
    let config = store.configure("", "");
    let text = fs::read_to_string(&config).unwrap();
    let spool = store.scratch.text("spool");
    let text = text.replace(
        &format!("spool_dir = \"{}\"", store.scratch.text("run")),
        &format!("spool_dir = \"{spool}\""),
    );
    assert!(text.contains(&spool));
    fs::write(&config, text).unwrap();
    let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
    let before = picture(&store);
    let message = [MESSAGE, &b"0123456789\n".repeat(400_000)].concat();
    let both = ["alice@x.test", "bob@x.test"];
    let mut client = server.client();
    for replies in [
        client.deliver(&both, &message),
        chunks(&mut client, &both, &message),
    ] {
        assert_eq!(replies.len(), 2);
        assert!(
            replies.iter().all(|reply| reply.starts_with("452 4.3.1 ")),
            "{replies:?}"
        );
    }
    let log = server.log();
    for recipient in both {
        let lines = log
            .lines()
            .filter(|line| line.contains(recipient) && line.contains("No space left"));
        assert_eq!(lines.count(), 2, "{recipient}: {log}");
    }
    assert_eq!(picture(&store), before);
    // It is used again: what fits goes.
    let replies = client.deliver(&both, &message[..2_500_000]);
    assert!(
        replies.iter().all(|reply| reply.starts_with("250 2.0.0 ")),
        "{replies:?}"
    );
    assert_eq!(tree(&store.path("spool")), Vec::<String>::new());
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

#[test]
fn a_message_that_is_too_big_is_told_and_logged() {
    let store = store();
    let server = store.serve("message_size = \"100K\"", "");
    let before = picture(&store);
    let message = [MESSAGE, &b"0123456789\n".repeat(100_000)].concat();
    let both = ["alice@x.test", "bob@x.test"];
    let mut client = server.client();
    for replies in [
        client.deliver(&both, &message),
        chunks(&mut client, &both, &message),
    ] {
        assert!(
            replies.iter().all(|reply| reply.starts_with("552 5.3.4 ")),
            "{replies:?}"
        );
    }
    assert_eq!(
        client.say("MAIL FROM:<> SIZE=999999").split(' ').next(),
        Some("552")
    );
    assert_eq!(client.say("NOOP"), "250 2.0.0 OK");
    let log = server.log();
    for recipient in both {
        let lines = log
            .lines()
            .filter(|line| line.contains(recipient) && line.contains("message_size"));
        assert_eq!(lines.count(), 2, "{recipient}: {log}");
    }
    assert_eq!(lda(&store, &[os(b"alice@x.test")], &message).0, 77);
    assert_eq!(picture(&store), before);
}

/// What goes over the wire before the final dot, and what is in the file behind the fields that we put on top.
#[test]
fn messages_that_try_to_be_something_else() {
    let store = store();
    let server = store.serve("", "");
    let smuggled = "MAIL FROM:<x@y>\r\nRCPT TO:<carol@x.test>\r\nDATA\r\nsmuggled\r\n";
    let line = "x".repeat(10_000_000);
    let rows: Vec<(&str, Vec<u8>, Vec<u8>)> = [
        ("nothing", "".to_owned(), "".to_owned()),
        ("an empty line", "\r\n".into(), "\n".into()),
        ("one byte, no line end", "x\r\n".into(), "x\n".into()),
        ("one long line", format!("{line}\r\n"), format!("{line}\n")),
        ("NULs", "a\0b\r\n\0\r\n".into(), "a\0b\n\0\n".into()),
        (
            "LF . LF",
            format!("a\n.\n{smuggled}"),
            format!("a\n.\n{}", smuggled.replace("\r\n", "\n")),
        ),
        (
            "LF . CRLF",
            format!("a\n.\r\n{smuggled}"),
            format!("a\n.\n{}", smuggled.replace("\r\n", "\n")),
        ),
        (
            "CR . CRLF",
            format!("a\r.\r\n{smuggled}"),
            format!("a\r.\n{}", smuggled.replace("\r\n", "\n")),
        ),
        (
            "CR . CR",
            format!("a\r.\r{smuggled}"),
            format!("a\r.\r{}", smuggled.replace("\r\n", "\n")),
        ),
        (
            "CRLF . LF",
            format!("a\r\n.\n{smuggled}"),
            format!("a\n\n{}", smuggled.replace("\r\n", "\n")),
        ),
        (
            "CRLF . CR",
            format!("a\r\n.\r{smuggled}"),
            format!("a\n\r{}", smuggled.replace("\r\n", "\n")),
        ),
        (
            "CRLF . NUL CRLF",
            format!("a\r\n.\0\r\n{smuggled}"),
            format!("a\n\0\n{}", smuggled.replace("\r\n", "\n")),
        ),
        ("CR CRLF . CRLF is an end", "a\r".into(), "a\r\n".into()),
        ("dots", "..\r\n...\r\n.x\r\n".into(), ".\n..\nx\n".into()),
    ]
    .map(|(what, wire, stored)| (what, wire.into_bytes(), stored.into_bytes()))
    .into();
    let inbox = store.path("home/alice/Maildir");
    let mut client = server.client();
    for (what, wire, stored) in &rows {
        client.say("MAIL FROM:<s@else.test>");
        client.say("RCPT TO:<alice@x.test>");
        assert_eq!(client.say("DATA"), "354 OK");
        let end: &[u8] = if wire.is_empty() || wire.ends_with(b"\r\n") {
            b".\r\n"
        } else {
            b"\r\n.\r\n"
        };
        client.send(&[wire, end, b"NOOP\r\n"].concat());
        let reply = client.reply();
        assert!(reply.starts_with("250 2.0.0 "), "{what}: {reply}");
        assert_eq!(
            client.reply(),
            "250 2.0.0 OK",
            "{what}: one message, then the next command"
        );
        let found = messages(&inbox);
        assert_eq!(found.len(), 1, "{what}");
        let (path, bytes) = &found[0];
        let head = bytes.len() - stored.len();
        assert!(bytes[head..] == stored[..], "{what}");
        let fields = String::from_utf8(bytes[..head].to_vec()).unwrap();
        assert!(
            fields.starts_with("Return-Path: <s@else.test>\nDelivered-To: "),
            "{what}"
        );
        assert!(
            fields
                .trim_end()
                .lines()
                .last()
                .unwrap()
                .contains("for <alice@x.test>"),
            "{what}: {fields:?}"
        );
        fs::remove_file(path).unwrap();
        // The same from a pipe: every CRLF is an LF, and nothing ends before the end.
        assert_eq!(lda(&store, &[os(b"alice@x.test")], wire).0, 0, "{what}");
        let (path, bytes) = messages(&inbox).remove(0);
        let mut want = Vec::new();
        for line in wire.split_inclusive(|byte| *byte == b'\n') {
            match line.strip_suffix(b"\r\n") {
                Some(line) => want.extend([line, b"\n"].concat()),
                None => want.extend(line),
            }
        }
        assert!(bytes == want, "{what}");
        fs::remove_file(path).unwrap();
    }
    assert_eq!(messages(&store.path("home/carol/Maildir")).len(), 0);
    assert!(leftovers(&store.path("home")).is_empty());
}

/// All in one packet stream; each gets its answer, those beyond the limit are sent again by the MTA.
#[test]
fn ten_thousand_recipients() {
    let store = store();
    let server = store.serve("", "");
    let mut client = server.client();
    client.say("MAIL FROM:<s@else.test>");
    let mut writer = client.stream().try_clone().unwrap();
    let sent = std::thread::spawn(move || {
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
    assert!(leftovers(&store.path("home")).is_empty());
}

/// A peer hangs up behind every single byte of a dialogue. Before the last one nothing is stored; behind it at most the
/// whole message, once.
#[test]
fn a_peer_that_vanishes() {
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
    assert!(leftovers(&store.path("home")).is_empty());
    let new = added(&store, &before);
    assert!(
        new.iter()
            .all(|path| path.starts_with("home/alice/Maildir/")),
        "{new:?}"
    );
}

/// Commands that never end cost an answer and no memory.
#[test]
fn a_command_of_ten_megabytes() {
    let store = store();
    let server = store.serve("", "");
    let mut client = server.client();
    let before = server.peak_memory();
    client.send(
        &[
            b"RCPT TO:<".to_vec(),
            vec![b'x'; 10_000_000],
            b">\r\n".to_vec(),
        ]
        .concat(),
    );
    assert!(client.reply().starts_with("500 5.5.2 "));
    assert_eq!(client.say("NOOP"), "250 2.0.0 OK");
    assert!(server.peak_memory() - before < 4 * 1024);
}

/// A gigabyte goes through in constant memory, to two mailboxes on one file system.
#[test]
fn a_message_of_a_gigabyte() {
    let store = store();
    let server = store.serve("recipient_headers = \"single\"", "");
    let mut client = server.client();
    client.deliver(&["alice@x.test"], MESSAGE);
    let before = server.peak_memory();
    client.say("MAIL FROM:<s@else.test>");
    for recipient in ["alice@x.test", "carol@x.test"] {
        let reply = client.say(&format!("RCPT TO:<{recipient}>"));
        assert!(reply.starts_with("250 "), "{reply}");
    }
    assert_eq!(client.say("DATA"), "354 OK");
    let line = [&b"0123456789abcdef".repeat(255)[..], b"0123456789abcd\r\n"].concat();
    let block = line.repeat(16);
    assert_eq!(block.len(), 1 << 16);
    for _ in 0..1 << 14 {
        client.send(&block);
    }
    client.send(b".\r\n");
    for _ in 0..2 {
        let reply = client.reply();
        assert!(reply.starts_with("250 2.0.0 "), "{reply}");
    }
    let grown = server.peak_memory() - before;
    assert!(grown < 16 * 1024, "{grown} KiB");
    let size = (1_u64 << 30) - (1 << 18);
    let stored = fs::read_dir(store.path("home/carol/Maildir/new")).unwrap();
    let stored: Vec<u64> = stored
        .map(|it| it.unwrap().metadata().unwrap().len())
        .collect();
    assert!(
        stored.len() == 1 && (size..size + 1000).contains(&stored[0]),
        "{stored:?}"
    );
    assert!(leftovers(&store.path("home")).is_empty());
}
