//! The examples of Dovecot's documents, each by its heading: what we deliver by a name is what Dovecot shows by it.

mod support;

use std::fs;

use support::imap::Imap;
use support::peers::{Dovecot, VERSIONS, Version};
use support::{MAIL, Server, Store, as_user, not_root, program, run_with_input};

/// One configuration, three times. `ROOT` is the scratch folder.
struct Example {
    /// Above all tables of ours, and the namespaces.
    ours: &'static str,
    /// Of Dovecot 2.3: `mail_location` and the namespaces.
    old: &'static str,
    /// Of Dovecot 2.4.
    new: &'static str,
}

impl Example {
    /// A server and a Dovecot on the same store; None, with the reason, where there is no Dovecot.
    fn run(&self, version: Version, store: &Store) -> Option<(Server, Dovecot)> {
        self.run_with(version, store, &FIELDS)
    }

    fn run_with(
        &self,
        version: Version,
        store: &Store,
        fields: &Fields,
    ) -> Option<(Server, Dovecot)> {
        let root = store.scratch.text("");
        let config = store.configure("", "");
        let roots = match fields.ours {
            "" => "",
            _ => "mail_roots = [\"ROOT\"]",
        };
        let text = store.config(roots, "");
        let (before, from) = text.split_once("[namespace.inbox]").unwrap();
        let (_, after) = from.split_once("[acl]").unwrap();
        let (above, namespaces) = match self.ours.find("[namespace") {
            Some(at) => self.ours.split_at(at),
            None => (self.ours, ""),
        };
        let text = match self.ours.contains("[acl]") {
            true => format!(
                "{above}{before}{namespaces}\n{}",
                &after[after.find("[lmtp]").unwrap()..]
            ),
            false => format!("{above}{before}{namespaces}\n[acl]{after}"),
        };
        let text = match fields.ours {
            "" => text,
            ours => {
                let (before, from) = text.split_once("passwd-file = ").unwrap();
                let (_, after) = from.split_once('\n').unwrap();
                let home = "uid = 8, gid = 8, home = \"ROOT/home/%{user}\"";
                format!("{before}static = {{ {home}, {ours} }}\n{after}")
            }
        };
        fs::write(&config, text.replace("ROOT", &root)).unwrap();
        let dovecot = Dovecot::start_with(version, store, |text| {
            let (before, from) = text.split_once("namespace inbox {").unwrap();
            let end = from.find("service anvil {").unwrap();
            let (location, usual) = match version {
                Version::V23 => (self.old, "mail_location = maildir:~/Maildir\n"),
                Version::V24 => (self.new, "mail_driver = maildir\nmail_path = ~/Maildir\n"),
            };
            let mut before = before.replace(usual, "");
            if self.ours.contains("driver = \"none\"") {
                for plugin in [
                    "mail_plugins = acl\n",
                    "mail_plugins {\n  acl = yes\n}\nacl_driver = vfile\n",
                ] {
                    before = before.replace(plugin, "");
                }
            }
            let location = location.replace("ROOT", &root);
            let home = match version {
                Version::V23 => ("home/%n\n", fields.old),
                Version::V24 => ("home/%{user | username}\n  }", fields.new),
            };
            let told = home.0.replace('\n', &format!(" {}\n", home.1));
            let told = match version {
                Version::V23 => told,
                Version::V24 => home.0.replace("\n  }", &format!("\n{}\n  }}", home.1)),
            };
            let before = match home.1 {
                "" => before,
                _ => {
                    let at = before.rfind(home.0).unwrap();
                    let (start, end) = before.split_at(at);
                    format!("{start}{}", end.replacen(home.0, &told, 1))
                }
            };
            let before = before.replace("ROOT", &root);
            format!("{before}{location}\n{}", &from[end..])
        })?;
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        Some((server, dovecot))
    }
}

/// What the userdb says of every user, beside his home.
struct Fields {
    ours: &'static str,
    old: &'static str,
    new: &'static str,
}

const FIELDS: Fields = Fields {
    ours: "",
    old: "",
    new: "",
};

/// A message for a mailbox of Alice's, by its name.
fn lda(store: &Store, mailbox: &str, subject: &str) -> (i32, String) {
    let mut lda = program("postroom-lda");
    lda.arg("-c").arg(store.path("postroom.toml"));
    lda.args(["-d", "alice", "-m", mailbox, "-f", "s@else.test"]);
    lda.env("POSTROOM_LOG", "json");
    as_user(&mut lda, MAIL, MAIL, &[]);
    let message = format!("Subject: {subject}\n\nbody\n");
    let output = run_with_input(&mut lda, message.as_bytes());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), said)
}

fn subjects(dovecot: &Dovecot, mailbox: &str) -> Vec<String> {
    let mut imap = Imap::login(dovecot.port, "alice");
    imap.select(mailbox);
    let found = imap.fetch_all();
    let mut subjects: Vec<String> = found
        .iter()
        .map(|message| support::subject(&message.bytes))
        .collect();
    imap.command("LOGOUT");
    subjects.sort();
    subjects
}

/// Each of these names is the same mailbox.
fn one_mailbox(store: &Store, dovecot: &Dovecot, names: &[&str]) {
    let by = |name: &str| format!("by {name}");
    for name in names {
        let (code, said) = lda(store, name, &by(name));
        assert_eq!(code, 0, "{name}: {said}");
    }
    let mut want: Vec<String> = names.iter().map(|name| by(name)).collect();
    want.sort();
    for name in names {
        assert_eq!(
            subjects(dovecot, name),
            want,
            "{:?} {name}",
            dovecot.version
        );
    }
    assert_eq!(dovecot.complaints(), Vec::<String>::new());
}

const UW_IMAP: Example = Example {
    ours: r#"
mail_driver = "mbox"
mail_path = "~/mail"
[namespace.inbox]
separator = "/"
prefix = ""
inbox = true
[namespace.compat1]
separator = "/"
prefix = "mail/"
hidden = true
list = false
alias_for = ""
[namespace.compat2]
separator = "/"
prefix = "~/mail/"
hidden = true
list = false
alias_for = ""
[namespace.compat3]
separator = "/"
prefix = "~%u/mail/"
hidden = true
list = false
alias_for = ""
"#,
    old: r#"
mail_location = mbox:~/mail
namespace inbox {
  separator = /
  prefix =
  inbox = yes
}
namespace compat1 {
  separator = /
  prefix = mail/
  hidden = yes
  list = no
  alias_for =
}
namespace compat2 {
  separator = /
  prefix = ~/mail/
  hidden = yes
  list = no
  alias_for =
}
namespace compat3 {
  separator = /
  prefix = ~%u/mail/
  hidden = yes
  list = no
  alias_for =
}
"#,
    new: r#"
mail_driver = mbox
mail_path = ~/mail
namespace inbox {
  separator = /
  prefix =
  inbox = yes
}
namespace compat1 {
  separator = /
  prefix = mail/
  hidden = yes
  list = no
  alias_for = inbox
}
namespace compat2 {
  separator = /
  prefix = ~/mail/
  hidden = yes
  list = no
  alias_for = inbox
}
namespace compat3 {
  separator = /
  prefix = ~%{user}/mail/
  hidden = yes
  list = no
  alias_for = inbox
}
"#,
};

#[test]
fn backwards_compatibility_uw_imap() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::new();
        store.scratch.dir("home/alice/mail", MAIL, MAIL, 0o700);
        store
            .scratch
            .file("home/alice/mail/Work", MAIL, MAIL, 0o600, "");
        let Some((_server, dovecot)) = UW_IMAP.run(version, &store) else {
            return;
        };
        let names = ["Work", "mail/Work", "~/mail/Work", "~alice/mail/Work"];
        one_mailbox(&store, &dovecot, &names);
        // Somebody else's is a name like any other.
        let (code, said) = lda(&store, "~bob/mail/Work", "not bob's");
        assert!(code == 75 && said.contains("begins with '~'"), "{said}");
        assert!(!store.path("home/bob/mail").exists());
    }
}

const COURIER: Example = Example {
    ours: r#"
[namespace.inbox]
separator = "."
prefix = "INBOX."
inbox = true
"#,
    old: r#"
mail_location = maildir:~/Maildir
namespace inbox {
  separator = .
  prefix = INBOX.
  inbox = yes
}
"#,
    new: r#"
mail_driver = maildir
mail_path = ~/Maildir
namespace inbox {
  separator = .
  prefix = INBOX.
  inbox = yes
}
"#,
};

const COURIER_ALIAS: Example = Example {
    ours: r#"
[namespace.inbox]
separator = "/"
prefix = ""
inbox = true
[namespace.compat]
separator = "."
prefix = "INBOX."
inbox = false
hidden = true
list = false
alias_for = ""
"#,
    old: r#"
mail_location = maildir:~/Maildir
namespace inbox {
  separator = /
  prefix =
  inbox = yes
}
namespace compat {
  separator = .
  prefix = INBOX.
  inbox = no
  hidden = yes
  list = no
  alias_for =
}
"#,
    new: r#"
mail_driver = maildir
mail_path = ~/Maildir
namespace inbox {
  separator = /
  prefix =
  inbox = yes
}
namespace compat {
  separator = .
  prefix = INBOX.
  inbox = no
  hidden = yes
  list = no
  alias_for = inbox
}
"#,
};

#[test]
fn backwards_compatibility_courier_imap() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        for example in [COURIER, COURIER_ALIAS] {
            let store = Store::with_inbox();
            for folder in [".foo", ".INBOX.foo", ".a.b"] {
                let folder = format!("home/alice/Maildir/{folder}");
                store.scratch.maildir(&folder, MAIL, MAIL, 0o700);
            }
            let Some((_server, dovecot)) = example.run(version, &store) else {
                return;
            };
            let rows: &[&[&str]] = match example.ours == COURIER.ours {
                true => &[&["INBOX"], &["INBOX.foo"], &["INBOX.a.b"]],
                // INBOX's child is no child of the root.
                false => &[
                    &["INBOX"],
                    &["foo", "INBOX.foo"],
                    &["INBOX/foo"],
                    &["a/b", "INBOX.a.b"],
                ],
            };
            for names in rows {
                one_mailbox(&store, &dovecot, names);
            }
            let there = |folder: &str| {
                let folder = store.path(&format!("home/alice/Maildir/{folder}"));
                support::messages(&folder).len()
            };
            let is_alias = example.ours != COURIER.ours;
            assert_eq!(there(".foo"), 1 + usize::from(is_alias));
            assert_eq!(there(".INBOX.foo"), usize::from(is_alias));
        }
    }
}

const READ_ONLY_MBOX: Example = Example {
    ours: r#"
[namespace.inbox]
separator = "/"
inbox = true
[namespace.public]
type = "public"
separator = "/"
prefix = "Public/"
mail_driver = "mbox"
mail_path = "ROOT/public-mbox/"
mail_index_path = "ROOT/indexes/public"
subscriptions = false
[acl]
driver = "none"
"#,
    old: r#"
mail_location = maildir:~/Maildir
namespace inbox {
  separator = /
  inbox = yes
}
namespace public {
  type = public
  separator = /
  prefix = Public/
  location = mbox:ROOT/public-mbox:INDEX=ROOT/indexes/public
  subscriptions = no
}
"#,
    new: r#"
mail_driver = maildir
mail_path = ~/Maildir
namespace inbox {
  separator = /
  inbox = yes
}
namespace public {
  type = public
  separator = /
  prefix = Public/
  mail_driver = mbox
  mail_path = ROOT/public-mbox/
  mail_index_path = ROOT/indexes/public
  subscriptions = no
}
"#,
};

/// Read on purpose only: a stranger's mail goes to INBOX, the admin's is refused with a reason that says what to do.
#[test]
fn read_only_mailboxes_mbox() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::with_inbox();
        store.scratch.dir("public-mbox", 0, 0, 0o755);
        store.scratch.dir("indexes", MAIL, MAIL, 0o755);
        store.scratch.dir("indexes/public", MAIL, MAIL, 0o755);
        let text = "From x  Mon Nov 02 07:02:09 2026\nSubject: old\n\nold\n\n";
        let file = store.scratch.file("public-mbox/info", 0, 0, 0o644, text);
        store.scratch.dir("public-mbox/sub", 0, 0, 0o755);
        store
            .scratch
            .file("public-mbox/sub/news", 0, 0, 0o644, text);
        let Some((server, dovecot)) = READ_ONLY_MBOX.run(version, &store) else {
            return;
        };
        let read_only = "Permission denied (os error 13)";
        for (mailbox, exit, why) in [
            ("Public/info", 75, read_only),
            ("Public/sub/news", 75, read_only),
            ("Public/new", 0, "the mailbox does not exist"),
        ] {
            let replies = server.client().deliver(
                &[&format!("alice+{mailbox}@example.test")],
                b"Subject: x\n\n",
            );
            assert!(
                replies[0].contains("mailbox=\"INBOX\""),
                "{replies:?} {}",
                server.log()
            );
            assert!(server.log().contains(why), "{mailbox}: {}", server.log());
            let (code, said) = lda(&store, mailbox, "x");
            assert_eq!(code, exit, "{mailbox}: {said}");
            assert!(said.contains(why), "{mailbox}: {said}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        assert_eq!(subjects(&dovecot, "Public/info"), ["old"], "{version:?}");
        assert_eq!(dovecot.complaints(), Vec::<String>::new(), "{version:?}");
    }
}

const FROM_USERDB: Example = Example {
    ours: r#"
[namespace.inbox]
separator = "/"
prefix = ""
inbox = true
[namespace.unused]
separator = "/"
prefix = "unused/"
mail_path = "ROOT/unused/%{user}"
"#,
    old: r#"
mail_location = maildir:~/Maildir
namespace inbox {
  separator = /
  prefix =
  inbox = yes
}
namespace unused {
  separator = /
  prefix = unused/
  location = maildir:ROOT/unused/%u
}
"#,
    new: r#"
mail_driver = maildir
mail_path = ~/Maildir
namespace inbox {
  separator = /
  prefix =
  inbox = yes
}
namespace unused {
  separator = /
  prefix = unused/
  mail_path = ROOT/unused/%{user}
}
"#,
};

#[test]
fn values_from_userdb() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::with_inbox();
        store.scratch.dir("special", MAIL, MAIL, 0o755);
        store.scratch.maildir("special/alice", MAIL, MAIL, 0o700);
        store
            .scratch
            .maildir("special/alice/.Box", MAIL, MAIL, 0o700);
        let fields = Fields {
            ours: r#"namespace = "inbox,special", "namespace/special/location" = "maildir:ROOT/special/%u", "namespace/special/prefix" = "special/", "namespace/special/separator" = "/""#,
            old: "namespace=inbox,special namespace/special/location=maildir:ROOT/special/%u namespace/special/prefix=special/ namespace/special/separator=/",
            new: "    namespace = inbox special\n    namespace/special/mail_path = ROOT/special/%{user}\n    namespace/special/prefix = special/\n    namespace/special/separator = /",
        };
        let Some((_server, dovecot)) = FROM_USERDB.run_with(version, &store, &fields) else {
            return;
        };
        one_mailbox(&store, &dovecot, &["special/Box"]);
        one_mailbox(&store, &dovecot, &["INBOX"]);
        assert_eq!(
            support::messages(&store.path("special/alice/.Box")).len(),
            1
        );
        // What the list leaves out is not there.
        let (code, said) = lda(&store, "unused/x", "elsewhere");
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("\"mailbox\":\"INBOX\""), "{said}");
        assert!(!store.path("unused").exists());
    }
}

/// For all namespaces that say nothing else, in the words of either version.
#[test]
fn a_place_from_userdb() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let rows = [
            ("mail = \"maildir:ROOT/special/%u\"", "", "special/alice"),
            ("mail_path = \"ROOT/special/%u\"", "", "special/alice"),
            // Its own path comes first.
            (
                "mail_path = \"ROOT/special/%u\"",
                "ROOT/unused/%u",
                "unused/alice",
            ),
            (
                "\"namespace/inbox/mail_path\" = \"ROOT/special/%u\"",
                "ROOT/unused/%u",
                "special/alice",
            ),
        ];
        for (ours, own, place) in rows {
            let store = Store::with_inbox();
            for folder in ["special", "unused"] {
                store.scratch.dir(folder, MAIL, MAIL, 0o755);
                let folder = format!("{folder}/alice");
                store.scratch.maildir(&folder, MAIL, MAIL, 0o700);
                let folder = format!("{folder}/.Box");
                store.scratch.maildir(&folder, MAIL, MAIL, 0o700);
            }
            let set = |before: &str, after: &str| match own {
                "" => String::new(),
                own => format!("{before}{own}{after}\n"),
            };
            let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
            let namespace = "separator = /\n  inbox = yes\n";
            let example = Example {
                ours: leak(format!(
                    "[namespace.inbox]\nseparator = \"/\"\ninbox = true\n{}",
                    set("mail_path = \"", "\"")
                )),
                old: leak(format!(
                    "mail_location = maildir:~/Maildir\nnamespace inbox {{\n  {namespace}{}}}\n",
                    set("  location = maildir:", "")
                )),
                new: leak(format!(
                    "mail_driver = maildir\nmail_path = ~/Maildir\nnamespace inbox {{\n  {namespace}{}}}\n",
                    set("  mail_path = ", "").replace("%u", "%{user}")
                )),
            };
            let path = "maildir:ROOT/special/%u";
            let fields = Fields {
                ours,
                old: match ours.contains("namespace/") {
                    true => leak(format!("namespace/inbox/location={path}")),
                    false => leak(format!("mail={path}")),
                },
                new: match ours.contains("namespace/") {
                    true => "    namespace/inbox/mail_path = ROOT/special/%{user}",
                    false => "    mail_path = ROOT/special/%{user}",
                },
            };
            let Some((_server, dovecot)) = example.run_with(version, &store, &fields) else {
                return;
            };
            one_mailbox(&store, &dovecot, &["Box"]);
            let stored = support::messages(&store.path(&format!("{place}/.Box"))).len();
            assert_eq!(stored, 1, "{version:?} {ours} {own}");
        }
    }
}

const DOCS: Example = Example {
    ours: r#"
[namespace.inbox]
separator = "/"
prefix = ""
inbox = true
[namespace.docs]
type = "public"
separator = "/"
prefix = "Public/"
[acl]
driver = "none"
"#,
    old: r#"
mail_location = maildir:~/Maildir
namespace inbox {
  separator = /
  prefix =
  inbox = yes
}
namespace docs {
  type = public
  separator = /
  prefix = Public/
}
"#,
    new: r#"
mail_driver = maildir
mail_path = ~/Maildir
namespace inbox {
  separator = /
  prefix =
  inbox = yes
}
namespace docs {
  type = public
  separator = /
  prefix = Public/
}
"#,
};

#[test]
fn per_user_namespace_location_from_sql() {
    if not_root() {
        return;
    }
    for version in VERSIONS {
        let store = Store::with_inbox();
        let root = store.scratch.text("");
        store.scratch.dir("docs", MAIL, MAIL, 0o755);
        store.scratch.maildir("docs/.Box", MAIL, MAIL, 0o700);
        let fields = Fields {
            ours: "acl_groups = \"none\"",
            old: "namespace/docs/location=maildir:ROOT/docs",
            new: "    namespace/docs/mail_path = ROOT/docs",
        };
        let Some((server, dovecot)) = DOCS.run_with(version, &store, &fields) else {
            return;
        };
        drop(server);
        // The document's table, and its query.
        let database = rusqlite::Connection::open(store.path("namespaces.db")).unwrap();
        let table = "CREATE TABLE Namespaces (Location varchar(255) NOT NULL, Username varchar(100) NOT NULL)";
        database.execute(table, ()).unwrap();
        let row = "INSERT INTO Namespaces VALUES ($1, 'alice')";
        database
            .execute(row, [format!("maildir:{root}/docs")])
            .unwrap();
        support::own(&store.path("namespaces.db"), MAIL, MAIL);
        let config = store.path("postroom.toml");
        let text = fs::read_to_string(&config).unwrap();
        let line = text.lines().find(|it| it.starts_with("static = ")).unwrap();
        let query = "SELECT Location as 'namespace/docs/location', 8 AS uid, 8 AS gid, 'ROOT/home/alice' AS home FROM Namespaces WHERE Username = '%n'";
        let query = query.replace("ROOT", &root);
        let userdb = format!("sqlite = {{ path = \"{root}/namespaces.db\", query = \"{query}\" }}");
        fs::write(&config, text.replace(line, &userdb)).unwrap();
        one_mailbox(&store, &dovecot, &["Public/Box"]);
        assert_eq!(support::messages(&store.path("docs/.Box")).len(), 1);
    }
}
