//! Every kind of mailbox that a delivery can go to, in one store that Dovecot serves too.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::peers::{Dovecot, Version};
use super::{MAIL, Scratch, Store, replaced, write_long_ago};

/// One kind of mailbox: what alice calls it, in her addresses and in IMAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub kind: &'static str,
    pub mailbox: &'static str,
    /// Below the store.
    pub path: &'static str,
}

const fn place(kind: &'static str, mailbox: &'static str, path: &'static str) -> Place {
    Place {
        kind,
        mailbox,
        path,
    }
}

pub const INBOX: Place = place("INBOX", "INBOX", "home/alice/Maildir");
/// Made by its first delivery.
pub const NEW: Place = place("autocreate", "New", "home/alice/Maildir/.New");
/// Where [`Place::message`] gives messages a keyword and a flag.
pub const KEYWORD: Place = place("keyword", "Key", "home/alice/Maildir/.Key");
pub const LINKED: Place = place("symlink", "Linked", "home/bob/Maildir/.Projects");
pub const PUBLIC: Place = place("public", "Public/info", "home/public/.info");
pub const MBOX: Place = place("mbox", "mbox/Work", "home/alice/mail/Work");
/// Made by its first delivery.
pub const NEW_MBOX: Place = place("new mbox", "mbox/New", "home/alice/mail/New");

pub const PLACES: [Place; 6] = [INBOX, NEW, KEYWORD, LINKED, PUBLIC, MBOX];

/// Keywords that messages get by their number: more than one mailbox ever has at once are none.
const KEYWORDS: usize = 20;

impl Place {
    /// `alice+Work@x`
    pub fn address(&self) -> String {
        match self.mailbox {
            "INBOX" | "Key" => "alice@x".into(),
            folder => format!("alice+{folder}@x"),
        }
    }

    /// The arguments of postroom-lda.
    pub fn arguments(&self) -> Vec<&'static str> {
        match self.mailbox {
            "INBOX" | "Key" => vec!["-d", "alice"],
            folder => vec!["-d", "alice", "-m", folder],
        }
    }

    /// A message for it that says `id`, and is told from every other by its body.
    pub fn message(&self, id: &str, number: usize) -> Vec<u8> {
        let route = match *self == KEYWORD {
            true => format!("X-Key: {}\n", number % KEYWORDS),
            false => String::new(),
        };
        let body = body(id, number);
        format!("Subject: {id}\n{route}\n{body}").into_bytes()
    }

    /// The flags that IMAP shows of it, sorted.
    pub fn flags(&self, number: usize) -> String {
        match *self == KEYWORD {
            true => format!("$Key{} \\Flagged", number % KEYWORDS),
            false => String::new(),
        }
    }

    pub fn is_mbox(&self) -> bool {
        self.mailbox.starts_with("mbox/")
    }
}

/// Some hundred bytes to some kilobytes, of which each part says whose it is.
pub fn body(id: &str, number: usize) -> String {
    let lines: String = (0..5 + number * 37 % 150)
        .map(|line| format!("line {line} of the message {id}\n"))
        .collect();
    format!("{lines}the end of {id}\n")
}

/// The body of a message as a reader shows it, its lines ended by LF.
pub fn body_of(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message).replace("\r\n", "\n");
    let start = text.find("\n\n").map_or(text.len(), |at| at + 2);
    text[start..].to_owned()
}

/// Makes the mailboxes of alice and bob below `home/`, all but the one that is made by its first delivery.
pub fn furnish(scratch: &Scratch) {
    scratch.dir("home", MAIL, MAIL, 0o755);
    for user in ["alice", "bob", "carol"] {
        scratch.dir(&format!("home/{user}"), MAIL, MAIL, 0o700);
        scratch.maildir(&format!("home/{user}/Maildir"), MAIL, MAIL, 0o700);
    }
    scratch.maildir(KEYWORD.path, MAIL, MAIL, 0o700);
    scratch.dir("home/alice/mail", MAIL, MAIL, 0o700);
    scratch.maildir(LINKED.path, MAIL, MAIL, 0o770);
    let link = scratch.path("home/alice/Maildir/.Linked");
    symlink(scratch.path(LINKED.path), link).unwrap();
    scratch.dir("home/public", MAIL, 100, 0o2770);
    scratch.maildir(PUBLIC.path, MAIL, 100, 0o2770);
    for (mailbox, group, line) in [
        (LINKED, MAIL, "user=alice lrwstip\n"),
        (PUBLIC, 100, "anyone lrwip\n"),
    ] {
        let file = format!("{}/dovecot-acl", mailbox.path);
        scratch.file(&file, MAIL, group, 0o660, line);
    }
}

/// Writes the config and the users. `top`: settings before the first table.
pub fn configure(store: &Store, top: &str, delivery: &str, more: &str) -> PathBuf {
    let routes: String = (0..KEYWORDS)
        .map(|number| {
            format!(
                "[[route]]\nheader = \"X-Key\"\nequals = \"{number}\"\nmailbox = \"Key\"\n\
                 flags = [\"\\\\Flagged\", \"$Key{number}\"]\n"
            )
        })
        .collect();
    let mbox = "[namespace.mbox]\nprefix = \"mbox/\"\nseparator = \"/\"\nmail_driver = \"mbox\"\nmail_path = \"~/mail\"\n";
    let delivery = format!("on_missing = \"create\"\n{delivery}");
    let config = store.configure(&delivery, &format!("{mbox}{routes}{more}"));
    let text = fs::read_to_string(&config).unwrap();
    let root = store.scratch.text("");
    let (usual, public) = (format!("{root}/public"), format!("{root}/home/public"));
    let text = replaced(&text, &usual, &public);
    write_long_ago(&config, &format!("{top}\n{text}"));
    config
}

/// The Dovecot that reads them.
pub fn dovecot(version: Version, store: &Store) -> Option<Dovecot> {
    let root = store.scratch.text("");
    Dovecot::start_with(version, store, |text| {
        let location = match version {
            Version::V23 => "  location = mbox:~/mail\n",
            Version::V24 => "  mail_driver = mbox\n  mail_path = ~/mail\n",
        };
        let (usual, public) = (format!("{root}/public"), format!("{root}/home/public"));
        let text = replaced(&text, &usual, &public);
        let mbox = format!("namespace mbox {{\n  separator = /\n  prefix = mbox/\n{location}}}\n");
        let anvil = "service anvil {";
        replaced(&text, anvil, &format!("{mbox}{anvil}"))
    })
}

/// The config and the mailboxes of a store without anything to mount.
pub fn store() -> Store {
    let store = Store::new();
    fs::remove_dir_all(store.path("home")).unwrap();
    furnish(&store.scratch);
    store
}
