//! Users where sites have them: in databases, or wherever Dovecot looks them up.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use support::peers::{Dovecot, Postgresql, VERSIONS};
use support::{MAIL, Server, Store, as_user, messages, not_root, program};

/// The store, with this userdb in the place of its file.
fn configure(store: &Store, userdb: &str) {
    let path = store.configure("", "");
    let text = fs::read_to_string(&path).unwrap();
    let line = text
        .lines()
        .find(|it| it.starts_with("passwd-file"))
        .unwrap();
    let userdb = userdb.replace("ROOT", &store.scratch.text(""));
    fs::write(&path, text.replace(line, &userdb)).unwrap();
}

fn serve(store: &Store) -> Server {
    let config = store.path("postroom.toml");
    Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"))
}

/// `postroom user NAME`: its exit code and words.
fn user(store: &Store, name: &str) -> (i32, String) {
    let mut command = program("postroom");
    command.arg("-c").arg(store.path("postroom.toml"));
    command.args(["user", name]);
    as_user(&mut command, MAIL, MAIL, &[]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code().unwrap(), said)
}

fn rcpt(server: &Server, address: &str) -> String {
    server
        .client()
        .deliver(&[address], b"Subject: x\n\ny\n")
        .remove(0)
}

/// Names that somebody may choose, of nobody who is there.
const NOBODY: [&str; 8] = [
    "nobody",
    "x' OR '1'='1",
    "x'; DROP TABLE users; --",
    "%u",
    "%{user}",
    "ali\\ce",
    "$1",
    "\u{1}t",
];

const TABLE: &str = "
CREATE TABLE users (name varchar(100), uid INTEGER, gid INTEGER, home varchar(100), acl_groups varchar(100), location varchar(100));
INSERT INTO users VALUES ('alice', 8, 8, 'ROOT/home/alice', 'staff,ops', NULL);
INSERT INTO users VALUES ('bob', 8, 8, 'ROOT/home/bob', NULL, 'maildir:ROOT/home/bob/Elsewhere');
INSERT INTO users VALUES ('carol', 8, NULL, 'ROOT/home/carol', NULL, NULL);
INSERT INTO users VALUES ('twice', 8, 8, 'ROOT/home/bob', NULL, NULL);
INSERT INTO users VALUES ('twice', 8, 8, 'ROOT/home/carol', NULL, NULL);
INSERT INTO users VALUES ('root', 0, 0, '/root', NULL, NULL);
INSERT INTO users VALUES ('noname', 8, 8, 'ROOT/home/alice', NULL, NULL);
";
const QUERY: &str = r#"query = "SELECT uid, gid, home, acl_groups, CASE name WHEN 'noname' THEN '' END AS \"user\", location AS \"namespace/inbox/location\" FROM users WHERE name = '%n'", iterate_query = "SELECT name AS user FROM users WHERE name <> 'twice'""#;

/// What both databases answer.
fn answers(store: &Store) {
    let root = store.scratch.text("");
    let (code, said) = user(store, "alice");
    assert_eq!(code, 0, "{said}");
    for line in [
        "uid     8",
        "gid     8",
        "acl_groups = staff,ops",
        &format!("home    {root}/home/alice"),
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(!said.contains("namespace/"), "{said}");
    let (code, said) = user(store, "noname");
    assert!(code == 0 && said.contains("noname"), "{said}");
    for name in NOBODY {
        assert_eq!(user(store, name).0, 67, "{name}");
    }
    for (name, why) in [("twice", "2 rows"), ("root", "uid 0"), ("carol", "no gid")] {
        let (code, said) = user(store, name);
        assert!(code == 75 && said.contains(why), "{name}: {said}");
    }
    let server = serve(store);
    assert!(
        rcpt(&server, "alice@x").starts_with("250"),
        "{}",
        server.log()
    );
    assert!(rcpt(&server, "nobody@x").starts_with("550 5.1.1"));
    assert!(rcpt(&server, "twice@x").starts_with("451 4.3.0"));
    // Per-user namespace location from SQL.
    assert!(
        rcpt(&server, "bob@x").starts_with("250"),
        "{}",
        server.log()
    );
    assert_eq!(messages(&store.path("home/bob/Elsewhere")).len(), 1);
    // A new account: nobody for two seconds at the most.
    assert!(rcpt(&server, "dora@x").starts_with("550"));
}

#[test]
fn sqlite() {
    let store = Store::new();
    let root = store.scratch.text("");
    let path = store.path("users.db");
    let database = rusqlite::Connection::open(&path).unwrap();
    database
        .execute_batch(&TABLE.replace("ROOT", &root))
        .unwrap();
    support::own(&path, MAIL, MAIL);
    configure(
        &store,
        &format!("sqlite = {{ path = \"ROOT/users.db\", {QUERY} }}"),
    );
    answers(&store);
    let server = serve(&store);
    assert!(rcpt(&server, "dora@x").starts_with("550"));
    let dora = format!("INSERT INTO users VALUES ('dora', 8, 8, '{root}/home/alice', NULL, NULL)");
    database.execute_batch(&dora).unwrap();
    thread::sleep(Duration::from_millis(2100));
    assert!(rcpt(&server, "dora@x").starts_with("250"));
    // What was found counts for a while; what cannot be asked is no answer.
    fs::rename(&path, store.path("gone.db")).unwrap();
    assert!(rcpt(&server, "dora@x").starts_with("250"));
    assert!(rcpt(&server, "carol@x").starts_with("451 4.3.0"));
    fs::write(&path, "this is no database\n".repeat(100)).unwrap();
    assert!(rcpt(&server, "carol@x").starts_with("451 4.3.0"));
    fs::rename(store.path("gone.db"), &path).unwrap();
    assert!(rcpt(&server, "bob@x").starts_with("250"));
}

#[test]
fn postgresql() {
    if not_root() {
        return;
    }
    let store = Store::new();
    let Some(mut postgresql) = Postgresql::new(&store.scratch) else {
        return;
    };
    let root = store.scratch.text("");
    postgresql.start();
    postgresql.run(&TABLE.replace("ROOT", &root));
    let connection = postgresql.parameters();
    // Behind it another userdb, whose users are not concerned, and before it one.
    fs::write(
        store.path("others"),
        format!("carl:x:8:8::{root}/home/carol::\n"),
    )
    .unwrap();
    let others = "passwd-file = { path = \"ROOT/others\" }\n[[userdb]]\n";
    configure(
        &store,
        &format!("{others}postgresql = {{ connection = \"{connection}\", {QUERY} }}"),
    );
    thread::sleep(Duration::from_millis(2100));
    answers(&store);
    let server = serve(&store);
    assert!(rcpt(&server, "alice@x").starts_with("250"));
    postgresql.stop();
    let began = Instant::now();
    // Known for half a minute.
    assert!(rcpt(&server, "alice@x").starts_with("250"));
    assert!(rcpt(&server, "carl@x").starts_with("250"));
    for name in ["bob@x", "nobody@x"] {
        let reply = rcpt(&server, name);
        assert!(reply.starts_with("451 4.3.0"), "{reply}");
    }
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    let (code, said) = user(&store, "bob");
    assert!(code == 75 && said.contains("postgresql"), "{said}");
    let check = |store: &Store| {
        let mut command = program("postroom");
        command
            .arg("-c")
            .arg(store.path("postroom.toml"))
            .arg("check");
        as_user(&mut command, MAIL, MAIL, &[]);
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    };
    assert!(check(&store).contains("postgresql"), "{}", check(&store));
    postgresql.start();
    assert!(
        rcpt(&server, "bob@x").starts_with("250"),
        "{}",
        server.log()
    );
    assert!(!check(&store).contains("postgresql"), "{}", check(&store));
    odd_columns(&store, &postgresql);
    // A table that somebody holds: its users wait, others do not.
    let mut holder = postgresql.session("BEGIN; LOCK TABLE users; SELECT 1");
    let slow = thread::scope(|scope| {
        let slow = scope.spawn(|| rcpt(&server, "nobody@x"));
        let began = Instant::now();
        assert!(rcpt(&server, "carl@x").starts_with("250"));
        assert!(began.elapsed() < Duration::from_secs(5));
        slow.join().unwrap()
    });
    assert!(slow.starts_with("451 4.3.0"), "{slow}");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

/// Of types that are no text and no number: what is not known is left alone, what is is text.
fn odd_columns(store: &Store, postgresql: &Postgresql) {
    postgresql.run("ALTER TABLE users ADD made timestamptz DEFAULT now(), ADD quota numeric DEFAULT 12.5, ADD id uuid DEFAULT gen_random_uuid();");
    let connection = postgresql.parameters();
    let query = "SELECT *, quota AS \\\"quota_x\\\" FROM users WHERE name = '%n' ORDER BY name; ";
    configure(
        store,
        &format!("postgresql = {{ connection = \"{connection}\", query = \"{query}\" }}"),
    );
    let (code, said) = user(store, "alice");
    assert!(code == 0 && said.contains("quota_x = 12.5"), "{said}");
    assert!(said.contains("made = 20"), "{said}");
}

#[test]
fn dovecot() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::new();
        let Some(dovecot) = Dovecot::start_with(version, &store, |text| {
            // A userdb that knows who exists, and has another name for bob.
            let root = store.scratch.text("");
            let users = format!(
                "alice:{{PLAIN}}x:8:8::{root}/home/alice::userdb_acl_groups=staff,ops\nbob:{{PLAIN}}x:8:8::{root}/home/bob::userdb_user=robert\neve:{{PLAIN}}x:20001:8::/x::\n"
            );
            fs::write(store.path("dovecot-users"), users).unwrap();
            let old = format!(
                "userdb {{\n  driver = static\n  args = uid={MAIL} gid={MAIL} home={root}/home/%n\n}}"
            );
            let new = format!(
                "userdb static {{\n  fields {{\n    uid = {MAIL}\n    gid = {MAIL}\n    home = {root}/home/%{{user | username}}\n  }}\n}}"
            );
            let file = format!(
                "userdb {{\n  driver = passwd-file\n  args = username_format=%n {root}/dovecot-users\n}}"
            );
            let file24 =
                format!("userdb passwd-file {{\n  passwd_file_path = {root}/dovecot-users\n}}");
            assert!(text.contains(&old) || text.contains(&new), "{text}");
            text.replace(&old, &file).replace(&new, &file24)
        }) else {
            return;
        };
        let socket = dovecot.auth_userdb();
        configure(
            &store,
            &format!("dovecot = {{ socket = \"{}\" }}", socket.display()),
        );
        let (code, said) = user(&store, "alice");
        assert_eq!(code, 0, "{version:?}: {said}");
        for line in ["uid     8", "acl_groups = staff,ops", "/home/alice"] {
            assert!(said.contains(line), "{line}: {said}");
        }
        // Its name for him counts.
        let (code, said) = user(&store, "bob");
        assert!(
            code == 0 && said.contains("user    robert"),
            "{version:?}: {said}"
        );
        for name in NOBODY.iter().filter(|name| !name.contains('\u{1}')) {
            assert_eq!(user(&store, name).0, 67, "{version:?} {name}");
        }
        // Not to a process of another uid.
        let (code, said) = user(&store, "eve");
        assert_eq!(code, 75, "{version:?}: {said}");
        let server = serve(&store);
        assert!(
            rcpt(&server, "alice@x").starts_with("250"),
            "{}",
            server.log()
        );
        assert!(rcpt(&server, "nobody@x").starts_with("550 5.1.1"));
        drop(dovecot);
        // Its auth process answers whom it knows until they leave; nobody else.
        let (code, said) = user(&store, "carol");
        assert_eq!(code, 75, "{version:?}: {said}");
    }
}

/// Whatever a server says that is no answer: nobody bounces.
#[test]
fn a_dovecot_that_talks_nonsense() {
    let store = Store::new();
    let greeting = "VERSION\t1\t1\nSPID\t1\n";
    for (case, greet, answer) in [
        ("closes", "", ""),
        ("another protocol", "* OK IMAP4rev1\n", ""),
        (
            "the socket for logins",
            "VERSION\t1\t2\nMECH\tPLAIN\nSPID\t1\n",
            "",
        ),
        ("a later protocol", "VERSION\t2\t0\nSPID\t1\n", ""),
        ("closes behind the question", greeting, ""),
        ("another number", greeting, "NOTFOUND\t77\n"),
        ("no number", greeting, "NOTFOUND\n"),
        ("half a line", greeting, "NOTFOUND\t1"),
        ("rubbish", greeting, "\u{1}\u{2}\u{3}\n"),
        (
            "a uid that is none",
            greeting,
            "USER\t1\talice\tuid=x\tgid=8\thome=/h\n",
        ),
        ("no name", greeting, "USER\t1\t\tuid=8\tgid=8\n"),
        ("root", greeting, "USER\t1\talice\tuid=0\tgid=0\thome=/h\n"),
        ("a failure", greeting, "FAIL\t1\treason=database\n"),
        ("an endless line", greeting, "ENDLESS"),
    ] {
        let socket = store.path("auth");
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        configure(&store, "dovecot = { socket = \"ROOT/auth\" }");
        let teller = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(greet.as_bytes());
            if greet != greeting {
                return;
            }
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(line)) = lines.next() {
                if line.starts_with("USER") {
                    let answer = match answer {
                        "ENDLESS" => "USER\t1\t".to_owned() + &"x".repeat(1_000_000),
                        answer => answer.to_owned(),
                    };
                    let _ = stream.write_all(answer.as_bytes());
                    break;
                }
            }
        });
        let (code, said) = user(&store, "alice");
        assert_eq!(code, 75, "{case}: {said}");
        assert!(said.contains("userdb dovecot "), "{case}: {said}");
        teller.join().unwrap();
    }
}

#[cfg(feature = "ldap")]
mod ldap {
    use super::*;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};
    use support::{PATIENCE, Scratch, installed};

    /// A directory server of the test's own.
    struct Slapd {
        root: PathBuf,
        child: Option<Child>,
    }

    const SLAPD: &str = "
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/nis.schema
modulepath /usr/lib/ldap
moduleload back_mdb.so
pidfile ROOT/pid
database mdb
directory ROOT/data
suffix dc=test
rootdn cn=admin,dc=test
rootpw secret
access to * by anonymous auth by users read by * none
";

    impl Slapd {
        fn new(scratch: &Scratch, entries: &str) -> Option<Slapd> {
            if !installed("slapd") {
                support::skip("slapd is not installed (tests/run installs it)");
                return None;
            }
            let root = scratch.dir("ldap", MAIL, MAIL, 0o755);
            scratch.dir("ldap/data", MAIL, MAIL, 0o700);
            let text = root.display().to_string();
            fs::write(root.join("slapd.conf"), SLAPD.replace("ROOT", &text)).unwrap();
            fs::write(root.join("entries"), entries).unwrap();
            let slapd = Slapd { root, child: None };
            let mut add = slapd.command("slapadd");
            add.arg("-l").arg(slapd.root.join("entries"));
            let output = add.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            Some(slapd)
        }

        fn command(&self, program: &str) -> Command {
            let mut command = Command::new(format!("/usr/sbin/{program}"));
            command.arg("-f").arg(self.root.join("slapd.conf"));
            as_user(&mut command, MAIL, MAIL, &[]);
            command
        }

        fn uri(&self) -> String {
            let path = self.root.join("socket").display().to_string();
            format!("ldapi://{}", path.replace('/', "%2F"))
        }

        fn start(&mut self) {
            let mut command = self.command("slapd");
            command.args(["-d", "0", "-h", &self.uri()]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            self.child = Some(command.spawn().unwrap());
            let began = Instant::now();
            while std::os::unix::net::UnixStream::connect(self.root.join("socket")).is_err() {
                assert!(began.elapsed() < PATIENCE, "slapd does not start");
                thread::sleep(Duration::from_millis(20));
            }
        }

        fn stop(&mut self) {
            if let Some(mut child) = self.child.take() {
                support::signal(child.id(), "TERM");
                child.wait().unwrap();
            }
        }
    }

    impl Drop for Slapd {
        fn drop(&mut self) {
            self.stop();
        }
    }

    #[test]
    fn ldap() {
        if not_root() {
            return;
        }
        let store = Store::new();
        let root = store.scratch.text("");
        let person = |name: &str, uid: &str, more: &str| {
            format!(
                "dn: uid={name},ou=people,dc=test\nobjectClass: account\nobjectClass: posixAccount\nuid: {name}\ncn: {name}\nuidNumber: {uid}\ngidNumber: 8\nhomeDirectory: {root}/home/{name}\n{more}\n"
            )
        };
        let entries = [
            "dn: dc=test\nobjectClass: dcObject\nobjectClass: organization\no: t\ndc: test\n\ndn: ou=people,dc=test\nobjectClass: organizationalUnit\nou: people\n\n".to_owned(),
            person("alice", "8", "description: staff\ndescription: ops\n"),
            person("bob", "8", ""),
            person("root", "0", ""),
            person("twice", "8", ""),
            person("again", "8", "uid: twice\n"),
        ];
        let Some(mut slapd) = Slapd::new(&store.scratch, &entries.concat()) else {
            return;
        };
        slapd.start();
        fs::write(store.path("password"), "secret\n").unwrap();
        let uri = slapd.uri();
        let ldap = format!(
            r#"ldap = {{ uri = "{uri}", base = "ou=people,dc=test", bind_dn = "cn=admin,dc=test", password_file = "ROOT/password", filter = "(&(objectClass=posixAccount)(uid=%n))", iterate_filter = "(objectClass=posixAccount)", fields = {{ uid = "uidNumber", gid = "gidNumber", home = "homeDirectory", acl_groups = "description" }} }}"#
        );
        configure(&store, &ldap);
        let (code, said) = user(&store, "alice");
        assert_eq!(code, 0, "{said}");
        for line in ["uid     8", "/home/alice", "acl_groups = "] {
            assert!(said.contains(line), "{line}: {said}");
        }
        assert!(said.contains("staff") && said.contains("ops"), "{said}");
        for name in NOBODY
            .iter()
            .chain(&["*", "a*", "alice)(uid=*", "(", "\\2a"])
        {
            assert_eq!(user(&store, name).0, 67, "{name}");
        }
        for (name, why) in [("twice", "2 entries"), ("root", "uid 0")] {
            let (code, said) = user(&store, name);
            assert!(code == 75 && said.contains(why), "{name}: {said}");
        }
        let server = serve(&store);
        assert!(
            rcpt(&server, "alice@x").starts_with("250"),
            "{}",
            server.log()
        );
        assert!(rcpt(&server, "nobody@x").starts_with("550 5.1.1"));
        slapd.stop();
        let reply = rcpt(&server, "bob@x");
        assert!(reply.starts_with("451 4.3.0"), "{reply}");
        slapd.start();
        assert!(
            rcpt(&server, "bob@x").starts_with("250"),
            "{}",
            server.log()
        );
        // Not with this password, and not below a base that is not there.
        fs::write(store.path("password"), "wrong\n").unwrap();
        assert_eq!(user(&store, "alice").0, 75);
        fs::write(store.path("password"), "secret\n").unwrap();
        configure(
            &store,
            &ldap.replace("ou=people,dc=test\", bind", "ou=nowhere,dc=test\", bind"),
        );
        assert_eq!(user(&store, "alice").0, 75);
    }
}
