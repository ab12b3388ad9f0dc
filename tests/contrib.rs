//! The files of `contrib/`, as they are, each with Debian's package that they are for.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use support::machine::{Machine, contrib};
use support::{PATIENCE, messages, not_root};

const LETTER: &[u8] = b"Subject: contrib\nMessage-ID: <1@else.example>\n\n.dot\nHello\n";

/// One account owns the mail of all users of a domain.
const VIRTUAL: &str = r#"
hostname = "mx.example.org"
auth_username_format = "%{user | username}"
mail_uid = 5000
mail_gid = 5000
mail_home = "/srv/mail/%{user | username}"
mail_path = "~/Maildir"
[[userdb]]
passwd-file = { path = "/etc/postroom/users" }
[lmtp]
listen = [{ unix = "/run/postroom/lmtp", mode = "0666", trusted = true }]
"#;

/// The accounts of the machine, each with his own mail.
const LOCAL: &str = r#"
hostname = "mx.example.org"
auth_username_format = "%{user | username}"
mail_path = "~/Maildir"
[[userdb]]
passwd = {}
[delivery]
on_missing = "create"
[lmtp]
listen = [{ unix = "/run/postroom/lmtp", mode = "0666" }]
"#;

fn virtual_machine(package: &str) -> Option<Machine> {
    let unit = contrib("postroom.service");
    let machine = Machine::boot_with(
        package,
        &[
            ("/etc/systemd/system/postroom.service", 0o644, &unit),
            ("/etc/postroom/postroom.toml", 0o644, VIRTUAL),
        ],
    )?;
    support::write_long_ago(
        &machine.path("/etc/postroom/users"),
        "alice:::::::\nbob:::::::\n",
    );
    for folder in ["/srv/mail", "/srv/mail/alice/Maildir/.Work"] {
        fs::create_dir_all(machine.path(folder)).unwrap();
    }
    for part in ["cur", "new", "tmp"] {
        for folder in ["/srv/mail/alice/Maildir", "/srv/mail/alice/Maildir/.Work"] {
            fs::create_dir(machine.path(&format!("{folder}/{part}"))).unwrap();
        }
    }
    machine.run(&["chown", "-R", "vmail:vmail", "/srv/mail"]);
    machine.start("postroom");
    Some(machine)
}

fn local_machine(package: &str) -> Option<Machine> {
    let machine = Machine::boot_with(package, &[("/etc/postroom/postroom.toml", 0o644, LOCAL)])?;
    for (user, uid) in [("alice", 20001), ("bob", 20002)] {
        let home = machine.path(&format!("/home/{user}"));
        fs::create_dir_all(&home).unwrap();
        support::own(&home, uid, uid);
    }
    Some(machine)
}

/// Waits for so many messages in a folder; answers the first.
fn arrived(machine: &Machine, folder: &str, count: usize) -> String {
    let began = Instant::now();
    loop {
        let found = messages(&machine.path(folder));
        if found.len() >= count {
            assert_eq!(found.len(), count, "{folder}");
            let text = String::from_utf8(found[0].1.clone()).unwrap();
            assert!(text.contains("\n\n.dot\nHello\n"), "{text}");
            return text;
        }
        let journal = || machine.run(&["journalctl", "--no-pager", "-n", "60", "-o", "cat"]);
        assert!(
            began.elapsed() < PATIENCE,
            "nothing in {folder}: {}",
            journal()
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// Speaks SMTP to port 25 in there; the reply to each RCPT.
fn smtp(machine: &Machine, recipients: &[&str]) -> Vec<String> {
    let script = "import smtplib,sys
s=smtplib.SMTP('127.0.0.1',25); s.ehlo(); s.mail('sender@else.example')
for r in sys.argv[1:]:
  print(*s.rcpt(r))
s.data(sys.stdin.buffer.read())
s.quit()";
    let words = [&["python3", "-c", script], recipients].concat();
    let output = machine.feed("bob", &words, LETTER);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    said.lines().map(str::to_owned).collect()
}

fn start_postfix(machine: &Machine, main: &str, master: &str) {
    let base = "compatibility_level = 3.9\nmyhostname = mx.example.org\nmynetworks = 192.0.2.0/24\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmaillog_file = /var/log/postfix.log\nsmtp_dns_support_level = disabled\nmaximal_backoff_time = 5s\nminimal_backoff_time = 2s\nqueue_run_delay = 2s\naddress_verify_poll_delay = 1s\nalias_maps = hash:/etc/aliases\nalias_database = hash:/etc/aliases\n";
    let usual = match main.contains("mydestination =") {
        true => "",
        false => "mydestination = localhost\n",
    };
    machine.put(
        "/etc/postfix/main.cf",
        0,
        0o644,
        &format!("{base}{usual}{main}"),
    );
    let usual = fs::read_to_string(machine.path("/etc/postfix/master.cf")).unwrap();
    machine.put("/etc/postfix/master.cf", 0, 0o644, &(usual + master));
    machine.put("/etc/aliases", 0, 0o644, "postmaster: root\n");
    machine.run(&["newaliases"]);
    // As README says.
    machine.run(&["postconf", "-F", "lmtp/unix/chroot=n"]);
    machine.start("postfix");
}

#[test]
fn postfix() {
    if not_root() {
        return;
    }
    let Some(machine) = virtual_machine("") else {
        return;
    };
    start_postfix(&machine, &contrib("postfix-main.cf"), "");
    let replies = smtp(&machine, &["alice@example.org", "alice+Work@example.org"]);
    assert!(
        replies.iter().all(|it| it.starts_with("250 ")),
        "{replies:?}"
    );
    arrived(&machine, "/srv/mail/alice/Maildir", 1);
    arrived(&machine, "/srv/mail/alice/Maildir/.Work", 1);
    // Asked before the message is taken, Postroom says who does not exist.
    let script = "import smtplib
s=smtplib.SMTP('127.0.0.1',25); s.ehlo(); s.mail('sender@else.example')
print(*s.rcpt('nobody-here@example.org'))";
    let began = Instant::now();
    loop {
        let output = machine.feed("bob", &["python3", "-c", script], b"");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said.starts_with("550 ") {
            assert!(said.contains("No such user"), "{said}");
            break;
        }
        assert!(
            said.starts_with("45") && began.elapsed() < PATIENCE,
            "{said}"
        );
    }
}

#[test]
fn postfix_by_its_pipe() {
    if not_root() {
        return;
    }
    let Some(machine) = virtual_machine("") else {
        return;
    };
    // The lines that the file says go with it.
    let main = "virtual_mailbox_domains = example.org\nvirtual_transport = postroom\npostroom_destination_recipient_limit = 1\nrecipient_delimiter = +\n";
    start_postfix(&machine, main, &contrib("postfix-master.cf"));
    smtp(
        &machine,
        &[
            "alice@example.org",
            "alice+Work@example.org",
            "nobody-here@example.org",
        ],
    );
    let text = arrived(&machine, "/srv/mail/alice/Maildir", 1);
    assert!(
        text.starts_with("Return-Path: <sender@else.example>\n"),
        "{text}"
    );
    arrived(&machine, "/srv/mail/alice/Maildir/.Work", 1);
    let began = Instant::now();
    let log = || fs::read_to_string(machine.path("/var/log/postfix.log")).unwrap();
    while !log().contains("dsn=5.1.1, status=bounced") {
        assert!(began.elapsed() < PATIENCE, "{}", log());
        thread::sleep(Duration::from_millis(100));
    }
}

/// `mailbox_command`, `.forward`, procmail and maildrop: run by Postfix's local(8), as the user.
#[test]
fn commands_of_a_user() {
    if not_root() {
        return;
    }
    let Some(machine) = local_machine("") else {
        return;
    };
    start_postfix(
        &machine,
        "mydestination = example.org\nrecipient_delimiter = +\nmailbox_command = /usr/local/bin/postroom-lda\n",
        "",
    );
    let mut inbox = 0;
    let mut work = 0;
    let mut both = |what: &str| {
        smtp(&machine, &["alice@example.org"]);
        smtp(&machine, &["alice+Work@example.org"]);
        (inbox, work) = (inbox + 1, work + 1);
        arrived(&machine, "/home/alice/Maildir", inbox);
        // local(8) makes all of it small.
        arrived(&machine, "/home/alice/Maildir/.work", work);
        let owner = fs::metadata(machine.path("/home/alice/Maildir/new"))
            .unwrap()
            .uid();
        assert_eq!(owner, 20001, "{what}");
    };
    both("mailbox_command");
    machine.put("/home/alice/.forward", 20001, 0o644, &contrib("forward"));
    both(".forward");
    fs::remove_file(machine.path("/home/alice/.forward")).unwrap();
    for (command, file, text) in [
        (
            "/usr/bin/procmail -a \"$EXTENSION\"",
            "/home/alice/.procmailrc",
            contrib("procmailrc"),
        ),
        (
            "/usr/bin/maildrop",
            "/home/alice/.mailfilter",
            contrib("mailfilter"),
        ),
    ] {
        machine.put(file, 20001, 0o600, &text);
        let setting = format!("mailbox_command={command}");
        machine.run(&["postconf", "-e", &setting]);
        machine.run(&["postfix", "reload"]);
        both(command);
        // Where nothing can be stored the mail waits.
        let words: Vec<&str> = match file.ends_with("procmailrc") {
            true => vec!["procmail", "-a", ""],
            false => vec!["maildrop"],
        };
        let config = machine.path("/etc/postroom/postroom.toml");
        fs::write(&config, "nonsense").unwrap();
        let output = machine.feed("alice", &words, LETTER);
        assert_eq!(output.status.code(), Some(75), "{output:?}");
        fs::write(&config, LOCAL).unwrap();
    }
}

#[test]
fn exim() {
    if not_root() {
        return;
    }
    let main = "primary_hostname = mx.example.org\ndomainlist local_domains = localhost\nkeep_environment =\nexim_user = Debian-exim\nexim_group = Debian-exim\nspool_directory = /var/spool/exim4\nlog_file_path = /var/log/exim4-%slog\nnever_users =\nacl_not_smtp = accept\n";
    let config = format!("{main}{}\nbegin retry\n* * F,1h,5s\n", contrib("exim.conf"));
    let deliver = |machine: &Machine, to: &[&str]| {
        let program = machine.run(&["sh", "-c", "mkdir -p /var/spool/exim4 /var/log; chown Debian-exim:Debian-exim /var/spool/exim4 /var/log; chmod 4755 /usr/sbin/exim4; ls /usr/sbin/exim4"]);
        assert_eq!(program.trim(), "/usr/sbin/exim4");
        machine.put("/etc/exim4/exim4.conf", 0, 0o644, &config);
        let words = [
            &["exim4", "-v", "-odf", "-oi", "-f", "sender@else.example"],
            to,
        ]
        .concat();
        let output = machine.feed("root", &words, LETTER);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let Some(machine) = virtual_machine("exim4-daemon-light") else {
        return;
    };
    let said = deliver(
        &machine,
        &[
            "alice@example.org",
            "alice+Work@example.org",
            "nobody-here@example.org",
        ],
    );
    assert!(
        said.contains("nobody-here@example.org: Unrouteable address"),
        "{said}"
    );
    arrived(&machine, "/srv/mail/alice/Maildir", 1);
    arrived(&machine, "/srv/mail/alice/Maildir/.Work", 1);
    drop(machine);
    let Some(machine) = local_machine("exim4-daemon-light") else {
        return;
    };
    let said = deliver(&machine, &["alice@localhost", "alice+Work@localhost"]);
    assert!(said.contains("=> alice"), "{said}");
    let text = arrived(&machine, "/home/alice/Maildir", 1);
    assert!(
        text.starts_with("Return-path: <sender@else.example>\n"),
        "{text} {said}"
    );
    arrived(&machine, "/home/alice/Maildir/.Work", 1);
}

fn wait_for_smtp(machine: &Machine, said: &str) {
    let connect = "import smtplib; smtplib.SMTP('127.0.0.1',25)";
    let began = Instant::now();
    while !machine
        .feed("bob", &["python3", "-c", connect], b"")
        .status
        .success()
    {
        assert!(began.elapsed() < PATIENCE, "{said}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn opensmtpd() {
    if not_root() {
        return;
    }
    let start = |machine: &Machine, config: &str| {
        machine.put(
            "/etc/smtpd.conf",
            0,
            0o644,
            &format!("listen on lo port 25\n{config}"),
        );
        machine.run(&["mkdir", "-p", "/var/lib/opensmtpd/empty"]);
        machine.put("/etc/aliases", 0, 0o644, "postmaster: root\n");
        machine.put("/etc/mailname", 0, 0o644, "mx.example.org\n");
        let said = machine.run(&["smtpd", "-n"]);
        assert!(said.contains("configuration OK"), "{said}");
        machine.run(&["smtpd"])
    };
    let Some(machine) = virtual_machine("opensmtpd") else {
        return;
    };
    let said = start(&machine, &contrib("opensmtpd.conf"));
    wait_for_smtp(&machine, &said);
    let replies = smtp(&machine, &["alice@example.org", "bob@example.org"]);
    assert!(
        replies.iter().all(|it| it.starts_with("250 ")),
        "{replies:?}"
    );
    arrived(&machine, "/srv/mail/alice/Maildir", 1);
    arrived(&machine, "/srv/mail/bob/Maildir", 1);
    drop(machine);
    // The command, for the accounts of the machine.
    let Some(machine) = local_machine("opensmtpd") else {
        return;
    };
    let text = contrib("opensmtpd.conf")
        .replace("#action \"postroom_lda\"", "action \"postroom_lda\"")
        .replace("#match from any for local", "match from any for local");
    let said = start(
        &machine,
        &format!("table aliases file:/etc/aliases\n{text}"),
    );
    wait_for_smtp(&machine, &said);
    let replies = smtp(&machine, &["alice@localhost"]);
    assert!(replies[0].starts_with("250 "), "{replies:?}");
    arrived(&machine, "/home/alice/Maildir", 1);
}

/// A POP3 server in there with one message; it says how many were deleted, and leaves after one session.
const POP: &str = r#"
import socket,sys
s=socket.socket(); s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1); s.bind(('127.0.0.1',110)); s.listen(8)
letter=sys.stdin.buffer.read().replace(b'\n',b'\r\n')
def serve(f):
  def say(b): f.write(b+b'\r\n'); f.flush()
  say(b'+OK')
  for l in f:
    w=l.split(); v=w[0].upper() if w else b''
    if v==b'STAT': say(b'+OK 1 %d'%len(letter))
    elif v==b'LIST': say(b'+OK 1 %d'%len(letter) if len(w)>1 else b'+OK\r\n1 %d\r\n.'%len(letter))
    elif v==b'UIDL': say(b'+OK 1 u1' if len(w)>1 else b'+OK\r\n1 u1\r\n.')
    elif v in (b'RETR',b'TOP'): say(b'+OK\r\n'+letter.replace(b'\r\n.',b'\r\n..')+b'.')
    elif v==b'DELE': open('/tmp/pop.deleted','a').write('x'); say(b'+OK')
    elif v==b'CAPA': say(b'-ERR')
    elif v==b'QUIT': say(b'+OK'); break
    else: say(b'+OK')
open('/tmp/pop.ready','w').close()
while True:
  c,_=s.accept(); f=c.makefile('rwb')
  try: serve(f)
  except OSError: pass
  try: c.close()
  except OSError: pass
"#;

/// What another server keeps is fetched, and deleted there only once it is stored here.
#[test]
fn fetchmail_and_getmail() {
    if not_root() {
        return;
    }
    let Some(machine) = virtual_machine("") else {
        return;
    };
    let pid = machine.pid.to_string();
    let mut command = std::process::Command::new("nsenter");
    command.args([
        "-t", &pid, "-m", "-p", "-C", "-n", "-r", "python3", "-c", POP,
    ]);
    let mut pop = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    pop.stdin.take().unwrap().write_all(LETTER).unwrap();
    let began = Instant::now();
    while !machine.path("/tmp/pop.ready").exists() {
        assert!(began.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(50));
    }
    let is_deleted = || machine.path("/tmp/pop.deleted").exists();
    machine.put("/etc/hosts", 0, 0o644, "127.0.0.1 localhost vm\n");
    for folder in ["/home/alice", "/home/alice/.config/getmail"] {
        fs::create_dir_all(machine.path(folder)).unwrap();
    }
    let here = |text: String| text.replace("pop.example.net", "127.0.0.1");
    let mut stored = 0;
    for (file, text, words) in [
        (
            "/home/alice/.fetchmailrc",
            here(contrib("fetchmailrc")),
            vec!["fetchmail", "--nosslcertck", "--sslproto", ""],
        ),
        (
            "/home/alice/.config/getmail/getmailrc",
            here(contrib("getmailrc")),
            vec!["getmail", "--getmaildir", "/home/alice/.config/getmail"],
        ),
    ] {
        machine.put(file, 20001, 0o600, &text);
        machine.run(&["chown", "-R", "alice:alice", "/home/alice"]);
        let fetch = || {
            machine.feed(
                "alice",
                &[&["env", "HOME=/home/alice"], &words[..]].concat(),
                b"",
            )
        };
        // Postroom is not there: nothing is deleted.
        machine.systemctl(&["stop", "postroom"]);
        let output = fetch();
        assert!(!output.status.success(), "{file}: {output:?}");
        assert!(!is_deleted(), "{file}");
        machine.start("postroom");
        let output = fetch();
        assert!(output.status.success(), "{file}: {output:?}");
        assert!(is_deleted(), "{file}");
        stored += 1;
        arrived(&machine, "/srv/mail/alice/Maildir", stored);
        fs::remove_file(machine.path("/tmp/pop.deleted")).unwrap();
    }
    let _ = pop.kill();
    let _ = pop.wait();
}
