//! The examples of Dovecot's documents, each by its heading: Dovecot and Postroom run from the same file, by
//! `postroom config import`. What Dovecot makes Postroom finds, and what Postroom makes Dovecot shows, by the same names.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use Version::{V23, V24};
use support::imap::Imap;
use support::peers::{Dovecot, Version};
use support::{MAIL, Server, Store, as_user, not_root, program, run_with_input};

/// A block of the documents. `ROOT` is the scratch folder.
struct Example {
    heading: &'static str,
    version: Version,
    /// Word for word, but for the paths.
    block: &'static str,
    /// Names of mailboxes, each with the directory or file that it is, below the scratch folder.
    mailboxes: &'static [(&'static str, &'static str)],
    /// What must be there before.
    prepare: fn(&Store),
}

/// What a machine has around the block: the same for all.
fn around(text: &str, version: Version, root: &str, block: &str) -> String {
    let (before, from) = text.split_once("namespace inbox {").unwrap();
    let end = from.find("service anvil {").unwrap();
    let mut before = before.to_owned();
    for usual in [
        "mail_location = maildir:~/Maildir\n",
        "mail_driver = maildir\nmail_path = ~/Maildir\n",
        "mail_plugins = acl\n",
        "mail_plugins {\n  acl = yes\n}\nacl_driver = vfile\n",
    ] {
        before = before.replace(usual, "");
    }
    if block.contains("userdb {") {
        let (kept, rest) = before.split_once("userdb {").unwrap();
        let (_, rest) = rest.split_once("}\n").unwrap();
        before = format!("{kept}{rest}");
    }
    let after = from[end..].replace("plugin {\n  acl = vfile\n}\n", "");
    let format = match version {
        V23 => "%Ln",
        V24 => "%{user | username | lower}",
    };
    let (mode, service) = ("  mode = 0660\n", format!("{root}/run/lmtp"));
    let ours = format!(
        "auth_username_format = {format}\nlmtp_save_to_detail_mailbox = yes\nlda_mailbox_autocreate = yes\n\
         service lmtp {{\n  unix_listener {service} {{\n  {mode}  }}\n}}\n"
    );
    format!("{before}{ours}{}\n{after}", block.replace("ROOT", root))
}

/// One configuration at work: a Dovecot, and a Postroom that was made from its file.
struct Both {
    store: Store,
    dovecot: Dovecot,
    server: Server,
    /// What the import printed.
    toml: String,
}

impl Both {
    fn start(version: Version, block: &str, prepare: fn(&Store)) -> Option<Both> {
        let store = Store::new();
        prepare(&store);
        let root = store.scratch.text("");
        let dovecot =
            Dovecot::start_with(version, &store, |text| around(&text, version, &root, block))?;
        let (code, toml, said) = import(&dovecot.config);
        assert_eq!(code, 0, "{said}\n{toml}");
        let config = store.path("postroom.toml");
        fs::write(&config, &toml).unwrap();
        let server = Server::start(&config, &store.path("run/lmtp"), &store.path("run/log"));
        Some(Both {
            store,
            dovecot,
            server,
            toml,
        })
    }

    /// Through the LDA to a mailbox of Alice's.
    fn deliver(&self, mailbox: &str, subject: &str) {
        let mut lda = program("postroom-lda");
        lda.arg("-c").arg(self.store.path("postroom.toml"));
        lda.args(["-d", "alice", "-m", mailbox, "-f", "s@else.test"]);
        lda.env("POSTROOM_LOG", "json");
        as_user(&mut lda, MAIL, MAIL, &[]);
        let message = format!("Subject: {subject}\n\nbody\n");
        let output = run_with_input(&mut lda, message.as_bytes());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{mailbox}: {said}\n{}",
            self.toml
        );
        let named = format!("\"mailbox\":{}", serde_json::to_string(mailbox).unwrap());
        assert!(said.contains(&named), "{mailbox}: {said}");
    }

    fn subjects(&self, user: &str, mailbox: &str) -> Vec<String> {
        let mut imap = Imap::login(self.dovecot.port, user);
        let opened = imap.command(&format!("SELECT \"{}\"", escaped(mailbox)));
        let why = self.dovecot.complaints();
        assert!(
            opened.last().unwrap().contains(" OK "),
            "{mailbox}: {opened:?} {why:?}"
        );
        let found = imap.fetch_all();
        let mut subjects: Vec<String> =
            found.iter().map(|it| support::subject(&it.bytes)).collect();
        imap.command("LOGOUT");
        subjects.sort();
        subjects
    }

    fn create(&self, user: &str, mailbox: &str) {
        let mut imap = Imap::login(self.dovecot.port, user);
        let done = imap.command(&format!("CREATE \"{}\"", escaped(mailbox)));
        assert!(done.last().unwrap().contains(" OK "), "{mailbox}: {done:?}");
        imap.logout();
    }
}

fn escaped(mailbox: &str) -> String {
    mailbox.replace('\\', "\\\\")
}

/// Exit code, the result, and what was said beside it.
fn import(file: &Path) -> (i32, String, String) {
    let output = program("postroom")
        .args(["config", "import"])
        .arg(file)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// How many messages a Maildir or an mbox holds.
fn stored(path: &PathBuf) -> usize {
    match path.is_dir() {
        true => support::messages(path).len(),
        false => fs::read_to_string(path)
            .unwrap_or_default()
            .matches("\nSubject: ")
            .count(),
    }
}

fn nothing(_: &Store) {}

/// `/var/mail/public`, to which everybody may write.
fn public(store: &Store) {
    for folder in [
        "var",
        "var/mail",
        "var/mail/public",
        "var/mail/team",
        "var/index",
    ] {
        store.scratch.dir(folder, MAIL, MAIL, 0o755);
    }
}

/// The namespaces of the documents are written without a name, which no version with these settings takes: they have one here.
const EXAMPLES: &[Example] = &[
    Example {
        heading: "Namespaces: Configuration",
        version: V23,
        block: r#"
mail_location = maildir:~/Maildir
namespace inbox {
  separator = .
  prefix =
  inbox = yes
}
"#,
        mailboxes: &[
            ("INBOX", "home/alice/Maildir"),
            ("foo", "home/alice/Maildir/.foo"),
            ("foo.bar", "home/alice/Maildir/.foo.bar"),
        ],
        prepare: nothing,
    },
    Example {
        heading: "Namespaces: Hierarchy Separators, layout Maildir++ with /",
        version: V23,
        block: r#"
mail_location = maildir:~/Maildir
namespace inbox {
  separator = /
  inbox = yes
}
"#,
        mailboxes: &[("foo/bar", "home/alice/Maildir/.foo.bar")],
        prepare: nothing,
    },
    Example {
        heading: "Namespaces: Hierarchy Separators, layout fs with .",
        version: V23,
        block: r#"
mail_location = maildir:~/Maildir:LAYOUT=fs
namespace inbox {
  separator = .
  inbox = yes
}
"#,
        mailboxes: &[("foo.bar", "home/alice/Maildir/foo/bar")],
        prepare: nothing,
    },
    Example {
        heading: "Namespaces: Hierarchy Separators, layout fs with /",
        version: V23,
        block: r#"
mail_location = maildir:~/Maildir:LAYOUT=fs
namespace inbox {
  separator = /
  inbox = yes
}
"#,
        mailboxes: &[("foo/bar", "home/alice/Maildir/foo/bar")],
        prepare: nothing,
    },
    Example {
        heading: "Namespaces: Hierarchy Separators, a backslash",
        version: V23,
        block: r#"
mail_location = maildir:~/Maildir
namespace {
  separator = "\\"
  inbox = yes
}
"#,
        mailboxes: &[("foo\\bar", "home/alice/Maildir/.foo.bar")],
        prepare: nothing,
    },
    Example {
        heading: "Namespaces: Values From userdb",
        version: V23,
        block: r#"
mail_location = maildir:~/Maildir
namespace inbox {
  separator = /
  prefix =
  inbox = yes
}
userdb {
  driver = static
  args = uid=8 gid=8 home=ROOT/home/%n namespace=inbox,special namespace/special/location=maildir:ROOT/special/%n namespace/special/prefix=special/ namespace/special/separator=/
}
"#,
        mailboxes: &[
            ("INBOX", "home/alice/Maildir"),
            ("special/Box", "special/alice/.Box"),
        ],
        prepare: |store| drop(store.scratch.dir("special", MAIL, MAIL, 0o755)),
    },
    Example {
        heading: "Namespaces: Mixed mbox and Maildir",
        version: V23,
        block: r##"
mail_fsync = optimized
namespace {
  separator = /
  prefix = "#mbox/"
  location = mbox:~/mail:INBOX=ROOT/var/mail/%n
  inbox = yes
  hidden = yes
  list = no
}
namespace {
  separator = /
  prefix =
  location = maildir:~/Maildir
}
"##,
        mailboxes: &[
            ("INBOX", "var/mail/alice"),
            ("Work", "home/alice/Maildir/.Work"),
            ("#mbox/Old", "home/alice/mail/Old"),
        ],
        prepare: |store| {
            store.scratch.dir("var", MAIL, MAIL, 0o755);
            store.scratch.dir("var/mail", MAIL, MAIL, 0o755);
        },
    },
    Example {
        heading: "Namespaces: Backwards Compatibility: UW-IMAP",
        version: V23,
        block: r#"
mail_location = mbox:~/mail
# default namespace
namespace inbox {
  separator = /
  prefix =
  inbox = yes
}

# for backwards compatibility:
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
        mailboxes: &[
            ("INBOX", "home/alice/mail/inbox"),
            ("one", "home/alice/mail/one"),
            ("mail/two", "home/alice/mail/two"),
            ("~/mail/three", "home/alice/mail/three"),
            ("~alice/mail/four", "home/alice/mail/four"),
        ],
        prepare: nothing,
    },
    Example {
        heading: "Namespaces: Backwards Compatibility: Courier IMAP, recommended",
        version: V23,
        block: r#"
mail_location = maildir:~/Maildir
namespace inbox {
  separator = .
  prefix = INBOX.
  inbox = yes
}
"#,
        mailboxes: &[
            ("INBOX", "home/alice/Maildir"),
            ("INBOX.foo", "home/alice/Maildir/.foo"),
            ("INBOX.a.b", "home/alice/Maildir/.a.b"),
        ],
        prepare: nothing,
    },
    Example {
        heading: "Namespaces: Backwards Compatibility: Courier IMAP, alternatively",
        version: V23,
        block: r#"
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
        mailboxes: &[
            ("INBOX", "home/alice/Maildir"),
            ("INBOX/foo", "home/alice/Maildir/.INBOX.foo"),
            ("INBOX.bar", "home/alice/Maildir/.bar"),
            ("a/b", "home/alice/Maildir/.a.b"),
        ],
        prepare: nothing,
    },
    Example {
        heading: "Namespaces: Per-user Namespace Location From SQL, the hidden subscription namespace (as Maildir, with the separator of mdbox)",
        version: V23,
        block: r#"
mail_location = maildir:~/Maildir
namespace subscriptions {
  subscriptions = yes
  prefix = ""
  list = no
  hidden = yes
}

namespace inbox {
  inbox = yes
  location =
  subscriptions = no

  prefix = INBOX/
  separator = /

  mailbox Drafts {
    auto = subscribe
    special_use = \Drafts
  }

  mailbox Sent {
    auto = subscribe
    special_use = \Sent
  }

  mailbox "Sent Messages" {
    special_use = \Sent
  }

  mailbox Spam {
    auto = subscribe
    special_use = \Junk
  }

  mailbox Trash {
    auto = subscribe
    special_use = \Trash
  }
}

namespace {
  type = shared
  separator = /
  prefix = shared/%%u/
  location = maildir:%%h/Maildir:INDEXPVT=%h/Maildir/shared
  list = children
  subscriptions = no
}

namespace {
  type = public
  separator = /
  prefix = public/
  location = maildir:ROOT/var/mail/public:INDEXPVT=%h
  subscriptions = no
  list = children
}
"#,
        mailboxes: &[
            ("INBOX", "home/alice/Maildir"),
            ("INBOX/Work", "home/alice/Maildir/.Work"),
            ("public/info", "var/mail/public/.info"),
            ("shared/bob/Work", "home/bob/Maildir/.Work"),
        ],
        prepare: public,
    },
    Example {
        heading: "Namespaces: Mailbox Settings",
        version: V23,
        block: r#"
mail_location = maildir:~/Maildir
namespace inbox {
  # the namespace prefix isn't added again to the mailbox names.
  prefix = INBOX.
  inbox = yes
  # ...

  mailbox Trash {
    auto = no
    special_use = \Trash
  }

  mailbox Drafts {
    auto = no
    special_use = \Drafts
  }

  mailbox Sent {
    auto = subscribe # autocreate and autosubscribe the Sent mailbox
    special_use = \Sent
  }

  mailbox "Sent Messages" {
    auto = no
    special_use = \Sent
  }

  mailbox Spam {
    auto = create # autocreate Spam, but don't autosubscribe
    special_use = \Junk
  }

  mailbox virtual/All { # if you have a virtual "All messages" mailbox
    auto = no
    special_use = \All
  }
}
"#,
        mailboxes: &[
            ("INBOX.Trash", "home/alice/Maildir/.Trash"),
            ("INBOX.Sent Messages", "home/alice/Maildir/.Sent Messages"),
        ],
        prepare: nothing,
    },
    Example {
        heading: "Shared Mailboxes: Public Shared Mailboxes",
        version: V24,
        block: r#"
# User's private mail location
mail_driver = maildir
mail_path = ~/Maildir

# When creating any namespaces, you must also have a private namespace:
namespace private {
  type = private
  separator = /
  prefix =
  # use global mail_path
  inbox = yes
}

namespace public {
  type = public
  separator = /
  prefix = Public/
  mail_path = ROOT/var/mail/public
  subscriptions = no
}
"#,
        mailboxes: &[
            ("INBOX", "home/alice/Maildir"),
            ("Public/info", "var/mail/public/.info"),
            ("Public/company/news", "var/mail/public/.company.news"),
        ],
        prepare: public,
    },
    Example {
        heading: "Shared Mailboxes: Public Shared Mailboxes, layout fs",
        version: V24,
        block: r#"
mail_driver = maildir
mail_path = ~/Maildir
namespace private {
  type = private
  separator = /
  prefix =
  inbox = yes
}
namespace public {
  type = public
  separator = /
  prefix = Public/
  mail_path = ROOT/var/mail/public
  mailbox_list_layout = fs
  subscriptions = no
}
"#,
        mailboxes: &[
            ("Public/info", "var/mail/public/info"),
            ("Public/company", "var/mail/public/company"),
        ],
        prepare: public,
    },
    Example {
        heading: "Shared Mailboxes: Per-user \\Seen Flag",
        version: V24,
        block: r#"
mail_driver = maildir
mail_path = ~/Maildir
namespace private {
  separator = /
  inbox = yes
}
namespace public {
  type = public
  separator = /
  prefix = Public/
  mail_driver = maildir
  mail_path = ROOT/var/mail/public
  mail_index_private_path = ~/Maildir/public
  subscriptions = no
}
"#,
        mailboxes: &[("Public/info", "var/mail/public/.info")],
        prepare: public,
    },
    Example {
        heading: "Shared Mailboxes: Subscriptions",
        version: V24,
        block: r#"
mail_driver = maildir
mail_path = ~/Maildir
namespace inbox {
  separator = /
  prefix = INBOX/
  inbox = yes
}
namespace subscriptions {
  prefix =
  separator = /
  subscriptions = yes
  hidden = yes
  list = no
  alias_for = inbox # the INBOX namespace's name
  mailbox_subscriptions_filename = subscriptions-shared
}
"#,
        mailboxes: &[
            ("INBOX/Work", "home/alice/Maildir/.Work"),
            ("Play", "home/alice/Maildir/.Play"),
        ],
        prepare: nothing,
    },
    Example {
        heading: "Shared Mailboxes: Read-Only Mailboxes, mbox (with permission to write)",
        version: V24,
        block: r#"
mail_driver = maildir
mail_path = ~/Maildir
namespace inbox {
  separator = /
  inbox = yes
}
namespace public {
  type = public
  prefix = Public/
  mail_driver = mbox
  mail_path = ROOT/var/mail/public/
  mail_index_path = ROOT/var/index
  subscriptions = no
}
"#,
        mailboxes: &[("Public/info", "var/mail/public/info")],
        prepare: public,
    },
    Example {
        heading: "Shared Mailboxes: Read-Only Mailboxes, Maildir (with permission to write)",
        version: V24,
        block: r#"
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
  mail_driver = maildir
  mail_path = ROOT/var/mail/public
  mail_control_path = ~/Maildir/public
  mail_index_path = ~/Maildir/public
  subscriptions = no
}

namespace team {
  type = public
  separator = /
  prefix = Team/
  mail_driver = maildir
  mail_path = ROOT/var/mail/team
  mail_control_path = ~/Maildir/team
  mail_index_path = ~/Maildir/team
  subscriptions = no
}
"#,
        mailboxes: &[
            ("Public/info", "var/mail/public/.info"),
            ("Team/info", "var/mail/team/.info"),
        ],
        prepare: public,
    },
    Example {
        heading: "Shared Mailboxes: Example: Public mailboxes with ACLs",
        version: V24,
        block: r#"
mail_driver = maildir
mail_path = ~/Maildir
mail_plugins {
  acl = yes
}
namespace inbox {
  separator = .
  inbox = yes
}
namespace public {
  type = public
  separator = .
  prefix = public.
  mail_driver = maildir
  mail_path = ROOT/var/mail/public
  subscriptions = no
  list = children
}

acl_driver = vfile
"#,
        mailboxes: &[],
        prepare: public,
    },
    Example {
        heading: "Shared Mailboxes: User Shared Mailboxes",
        version: V24,
        block: r#"
# User's private mail location.
mail_driver = maildir
mail_path = ~/Maildir

# When creating any namespaces, you must also have a private namespace:
namespace private {
  type = private
  separator = /
  prefix =
  # use global mail_path
  inbox = yes
}

namespace shared {
  type = shared
  separator = /
  prefix = shared/$user/
  mail_path = %{owner_home}/Maildir
  mail_index_private_path = ~/Maildir/shared/%{owner_user}
  subscriptions = no
  list = children
}

mail_plugins {
  acl = yes
}

acl_driver = vfile
"#,
        mailboxes: &[],
        prepare: nothing,
    },
    Example {
        heading: "Shared Mailboxes: User Shared Mailboxes, the owner in a template",
        version: V24,
        block: r#"
mail_driver = maildir
mail_path = ROOT/home/%{user | username}/Maildir
namespace private {
  separator = /
  inbox = yes
}
namespace shared {
  type = shared
  separator = /
  prefix = shared/$user/
  mail_driver = maildir
  mail_path = ROOT/home/%{owner_user | username}/Maildir
  mail_index_private_path = ~/Maildir/shared/%{owner_user}
  subscriptions = no
  list = children
}
mail_plugins {
  acl = yes
}
acl_driver = vfile
"#,
        mailboxes: &[],
        prepare: nothing,
    },
    Example {
        heading: "Shared Mailboxes: Permissions to New /domain/user Directories",
        version: V24,
        block: r#"
mail_driver = maildir
mail_path = ROOT/var/mail/%{user | domain | default('none')}/%{user | username}/Maildir
mail_access_groups = users
namespace inbox {
  separator = /
  inbox = yes
}
"#,
        mailboxes: &[
            ("INBOX", "var/mail/none/alice/Maildir"),
            ("Work", "var/mail/none/alice/Maildir/.Work"),
        ],
        prepare: public,
    },
];

#[test]
fn examples_of_the_documents() {
    if not_root() {
        return;
    }
    for example in EXAMPLES {
        let heading = example.heading;
        let Some(both) = Both::start(example.version, example.block, example.prepare) else {
            return;
        };
        for (name, place) in example.mailboxes {
            // Dovecot makes it: Postroom finds it.
            if *name != "INBOX" {
                both.create("alice", name);
            }
            both.deliver(name, "first");
            assert_eq!(both.subjects("alice", name), ["first"], "{heading}: {name}");
            let path = both.store.path(place);
            assert_eq!(stored(&path), 1, "{heading}: {name}: {}", path.display());
            if *name == "INBOX" {
                continue;
            }
            // Postroom makes it: Dovecot shows it.
            let other = format!("{name}2");
            both.deliver(&other, "second");
            assert_eq!(
                both.subjects("alice", &other),
                ["second"],
                "{heading}: {other}"
            );
            let path = both.store.path(&format!("{place}2"));
            assert_eq!(stored(&path), 1, "{heading}: {other}: {}", path.display());
        }
        let replies = both
            .server
            .client()
            .deliver(&["alice@example.test"], b"Subject: by LMTP\r\n\r\nx\r\n");
        assert!(
            replies[0].starts_with("250 2.0.0"),
            "{heading}: {replies:?}"
        );
        assert!(
            both.subjects("alice", "INBOX")
                .contains(&"by LMTP".to_owned()),
            "{heading}"
        );
        assert_eq!(both.dovecot.complaints(), Vec::<String>::new(), "{heading}");
    }
}

fn by_heading(heading: &str) -> &'static Example {
    EXAMPLES.iter().find(|it| it.heading == heading).unwrap()
}

/// `dovecot-acl` decides, for both: without `p` nothing is stored there, and Dovecot's own word is the same.
#[test]
fn public_mailboxes_with_acls() {
    if not_root() {
        return;
    }
    let example = by_heading("Shared Mailboxes: Example: Public mailboxes with ACLs");
    let Some(both) = Both::start(example.version, example.block, example.prepare) else {
        return;
    };
    for (folder, acl) in [
        ("open", "user=alice lrp\n"),
        ("closed", "user=alice lr\n"),
        ("inserted", "user=alice lri\n"),
    ] {
        let folder = format!("var/mail/public/.{folder}");
        both.store.scratch.maildir(&folder, MAIL, MAIL, 0o700);
        both.store
            .scratch
            .file(&format!("{folder}/dovecot-acl"), MAIL, MAIL, 0o600, acl);
    }
    both.deliver("public.open", "posted");
    assert_eq!(both.subjects("alice", "public.open"), ["posted"]);
    for closed in ["closed", "inserted"] {
        let to = format!("alice+public.{closed}@example.test");
        let replies = both
            .server
            .client()
            .deliver(&[&to], b"Subject: not there\r\n\r\nx\r\n");
        assert!(replies[0].contains("mailbox=\"INBOX\""), "{replies:?}");
        let name = format!("public.{closed}");
        assert!(both.subjects("alice", &name).is_empty());
        // Dovecot's own delivery goes to INBOX too.
        let code = both
            .dovecot
            .lda("alice", &name, b"Subject: by dovecot\n\nx\n");
        assert_eq!(code, Some(0));
        assert!(both.subjects("alice", &name).is_empty());
    }
    assert_eq!(both.subjects("alice", "INBOX").len(), 4);
}

/// What Bob shares with Alice, and what he does not.
#[test]
fn user_shared_mailboxes() {
    if not_root() {
        return;
    }
    for heading in [
        "Shared Mailboxes: User Shared Mailboxes",
        "Shared Mailboxes: User Shared Mailboxes, the owner in a template",
    ] {
        let example = by_heading(heading);
        let Some(both) = Both::start(example.version, example.block, example.prepare) else {
            return;
        };
        both.create("bob", "Work");
        both.create("bob", "Private");
        let acl = "home/bob/Maildir/.Work/dovecot-acl";
        both.store
            .scratch
            .file(acl, MAIL, MAIL, 0o600, "user=alice lrp\n");
        both.deliver("shared/bob/Work", "for bob");
        assert_eq!(both.subjects("bob", "Work"), ["for bob"], "{heading}");
        assert_eq!(
            both.subjects("alice", "shared/bob/Work"),
            ["for bob"],
            "{heading}"
        );
        let replies = both.server.client().deliver(
            &["alice+shared/bob/Private@example.test"],
            b"Subject: no\r\n\r\nx\r\n",
        );
        assert!(replies[0].contains("mailbox=\"INBOX\""), "{replies:?}");
        assert!(both.subjects("bob", "Private").is_empty());
        assert_eq!(both.dovecot.complaints(), Vec::<String>::new(), "{heading}");
    }
}

/// What Postroom does not write Dovecot does, and the same mailboxes come out.
#[test]
fn the_hidden_subscription_namespace_in_mdbox() {
    if not_root() {
        return;
    }
    // dovecot-lda writes its log as the user.
    let block = r#"
log_path = /dev/stderr
info_log_path =
debug_log_path =
mail_location = mdbox:~/mdbox
namespace subscriptions {
  subscriptions = yes
  prefix = ""
  list = no
  hidden = yes
}

namespace inbox {
  inbox = yes
  location =
  subscriptions = no

  prefix = INBOX/
  separator = /

  mailbox Spam {
    auto = subscribe
    special_use = \Junk
  }
}

namespace {
  type = shared
  prefix = shared/%%u/
  location = mdbox:%%h/mdbox:INDEXPVT=%h/mdbox/shared
  list = children
  subscriptions = no
}

namespace {
  type = public
  separator = /
  prefix = public/
  location = mdbox:ROOT/var/mail/public:INDEXPVT=%h
  subscriptions = no
  list = children
}
"#;
    let Some(both) = Both::start(V23, block, public) else {
        return;
    };
    for name in ["INBOX/Work", "public/info"] {
        both.create("alice", name);
    }
    both.create("bob", "INBOX/Work");
    let names = [
        "INBOX",
        "INBOX/Work",
        "INBOX/Spam",
        "public/info",
        "shared/bob/Work",
    ];
    for name in names {
        let to = match name {
            "INBOX" => "alice@example.test".to_owned(),
            name => format!("alice+{name}@example.test"),
        };
        let message = b"Subject: handed over\r\n\r\nx\r\n";
        let replies = both.server.client().deliver(&[&to], message);
        let log = both.server.log();
        assert!(
            replies[0].starts_with("250 2.0.0"),
            "{name}: {replies:?} {log}"
        );
        assert_eq!(both.subjects("alice", name), ["handed over"], "{name}");
    }
    assert_eq!(both.subjects("bob", "INBOX/Work"), ["handed over"]);
    assert!(!both.store.path("home/alice/Maildir").exists());
}

/// `auto` makes what nothing else would.
#[test]
fn mailboxes_that_are_made_by_themselves() {
    if not_root() {
        return;
    }
    let example = by_heading("Namespaces: Mailbox Settings");
    let block = format!("lda_mailbox_autocreate = no\n{}", example.block);
    let Some(both) = Both::start(example.version, &block, example.prepare) else {
        return;
    };
    for (name, is_made) in [
        ("Spam", true),
        ("Sent", true),
        ("Trash", false),
        ("Drafts", false),
        ("unheard", false),
    ] {
        let to = format!("alice+INBOX.{name}@example.test");
        let message = b"Subject: auto\r\n\r\nx\r\n";
        let replies = both.server.client().deliver(&[&to], message);
        let place = match is_made {
            true => format!("INBOX.{name}"),
            false => "INBOX".into(),
        };
        let named = format!("mailbox=\"{place}\"");
        assert!(replies[0].contains(&named), "{name}: {replies:?}");
        let folder = both.store.path(&format!("home/alice/Maildir/.{name}"));
        assert_eq!(folder.exists(), is_made, "{name}");
        assert!(both.subjects("alice", &place).contains(&"auto".to_owned()));
    }
}

/// The map of who shares to whom: the same file for both.
#[test]
fn maps_of_shares() {
    if not_root() {
        return;
    }
    let example = by_heading("Shared Mailboxes: User Shared Mailboxes");
    let map = "acl_sharing_map {\n  dict file {\n    path = ROOT/db/shared-mailboxes.db\n  }\n}\n\
               protocol imap {\n  mail_plugins {\n    imap_acl = yes\n  }\n}\n";
    let block = format!("{}{map}", example.block);
    let prepare = |store: &Store| drop(store.scratch.dir("db", MAIL, MAIL, 0o770));
    let Some(both) = Both::start(example.version, &block, prepare) else {
        return;
    };
    both.create("bob", "Work");
    let mut imap = Imap::login(both.dovecot.port, "bob");
    let done = imap.command("SETACL Work alice lrp");
    assert!(done.last().unwrap().contains(" OK "), "{done:?}");
    let mut share = program("postroom");
    share.arg("-c").arg(both.store.path("postroom.toml"));
    share.args(["share", "list", "bob"]);
    as_user(&mut share, MAIL, MAIL, &[]);
    let listed = share.output().unwrap();
    let rows = String::from_utf8_lossy(&listed.stdout);
    assert_eq!(rows, "bob -> alice\n", "{listed:?}");
    both.deliver("shared/bob/Work", "by the map");
    assert_eq!(both.subjects("bob", "Work"), ["by the map"]);
}
