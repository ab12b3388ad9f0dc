//! What Dovecot 2.4 lets an admin write shorter: groups of settings, sections of a storage format, long names.

use std::cell::Cell;
use std::rc::Rc;

use super::block::{Block, Entry};

/// `@mailbox_defaults = english`, which comes with Dovecot: names and special uses.
const ENGLISH: [(&str, &str); 4] = [
    ("Drafts", "\\Drafts"),
    ("Junk", "\\Junk"),
    ("Sent", "\\Sent"),
    ("Trash", "\\Trash"),
];

/// Sections whose settings are those of the file with this before their names.
const FORMATS: [&str; 5] = ["mbox", "maildir", "sdbox", "mdbox", "dbox"];

/// Writes everything out. Answers the groups that nobody has defined.
pub fn write_out(root: &mut Block) -> Vec<String> {
    let (groups, rest): (Vec<Block>, Vec<Block>) = std::mem::take(&mut root.blocks)
        .into_iter()
        .partition(|it| it.kind == "group");
    root.blocks = rest;
    let mut unknown = Vec::new();
    expand(root, &groups, &mut unknown, 0);
    groups.iter().for_each(Block::explain);
    formats(root);
    defaults_of_namespaces(root);
    defaults_of_userdbs(root);
    names(root);
    unknown
}

/// `@x = a` is the text of `group @x a { … }`, below what is said beside it.
fn expand(block: &mut Block, groups: &[Block], unknown: &mut Vec<String>, depth: usize) {
    let named: Vec<Rc<Entry>> = block
        .entries
        .iter()
        .filter(|it| it.key.starts_with('@'))
        .cloned()
        .collect();
    for entry in named {
        entry.is_explained.set(true);
        let wanted = format!("{} {}", entry.key, entry.value);
        let group = match groups.iter().find(|it| it.name == wanted) {
            Some(group) => group.clone(),
            None if wanted == "@mailbox_defaults english" => english(&entry),
            None => {
                unknown.push(format!("{}: there is no group {wanted}", entry.place));
                continue;
            }
        };
        lay_under(block, group);
    }
    // A group in a group in a group is not more than that.
    if depth < 20 {
        for inner in &mut block.blocks {
            expand(inner, groups, unknown, depth + 1);
        }
    }
}

fn english(entry: &Entry) -> Block {
    let place = &entry.place;
    let setting = |key: &str, value: &str| {
        Rc::new(Entry {
            key: key.into(),
            value: value.into(),
            step: None,
            file: None,
            place: place.clone(),
            is_explained: Cell::new(true),
            is_overridden: Cell::new(false),
        })
    };
    let section = |kind: &str, name: &str| Block::new(kind.into(), name.into(), place.clone());
    let mut inbox = section("namespace", "inbox");
    inbox.entries.push(setting("inbox", "yes"));
    for (name, special_use) in ENGLISH {
        let mut mailbox = section("mailbox", name);
        mailbox.entries.push(setting("special_use", special_use));
        inbox.blocks.push(mailbox);
    }
    let mut group = section("group", "@mailbox_defaults english");
    group.blocks.push(inbox);
    group
}

/// Puts `below` where `block` says nothing.
fn lay_under(block: &mut Block, below: Block) {
    let above = std::mem::take(&mut block.entries);
    block.entries = below.entries;
    block.entries.extend(above);
    for inner in below.blocks {
        let known = block
            .blocks
            .iter_mut()
            .find(|it| it.kind == inner.kind && it.name == inner.name);
        match known {
            Some(known) => lay_under(known, inner),
            None => block.blocks.push(inner),
        }
    }
}

/// `mbox { write_locks = fcntl }` is `mbox_write_locks = fcntl`; `mbox { mail_path = ~/mail }` holds where that is the format, and
/// there against what the file says for all.
fn formats(root: &mut Block) {
    let (formats, rest): (Vec<Block>, Vec<Block>) = std::mem::take(&mut root.blocks)
        .into_iter()
        .partition(|it| FORMATS.contains(&it.kind.as_str()) && it.name.is_empty());
    root.blocks = rest;
    let usual = root.text("mail_driver").unwrap_or_default().to_owned();
    let driver_of = |it: &Block| match it.text("mail_driver") {
        Some(driver) => driver.to_owned(),
        None => usual.clone(),
    };
    let is_space = |it: &Block| it.kind == "namespace";
    let mut namespaces = root.blocks.iter().filter(|it| is_space(it));
    let is_one = namespaces.all(|it| driver_of(it) == usual);
    for format in formats {
        let is_general = |it: &&Rc<Entry>| it.key.starts_with("mail");
        let (general, own): (Vec<_>, Vec<_>) = format.entries.iter().partition(is_general);
        for entry in own {
            let long = format!("{}_", format.kind);
            let key = entry.key.strip_prefix(&long).unwrap_or(&entry.key);
            root.entries.push(renamed(entry, long + key));
        }
        if is_one && format.kind == usual {
            root.entries.extend(general.into_iter().cloned());
            continue;
        }
        let is_format = |it: &&mut Block| is_space(it) && driver_of(it) == format.kind;
        let mut users: Vec<&mut Block> = root.blocks.iter_mut().filter(is_format).collect();
        for block in &mut users {
            block
                .entries
                .splice(0..0, general.iter().map(|it| Rc::clone(it)));
        }
        // Of a format that no namespace has.
        if users.is_empty() {
            let named = |it: &Rc<Entry>| renamed(it, format!("{} {{ {} }}", format.kind, it.key));
            root.entries.extend(general.into_iter().map(named));
        }
    }
}

/// Drivers of userdbs with settings of their own.
const USERDBS: [&str; 5] = ["static", "passwd_file", "sql", "ldap", "lua"];

/// `userdb_fields { … }`, `userdb_static_allow_all_users` and `passwd_file_path` outside of any userdb are for all of them.
fn defaults_of_userdbs(root: &mut Block) {
    let short = |key: &str| key.strip_prefix("userdb_").map(str::to_owned);
    let is_usual = |it: &&Rc<Entry>| it.key == "passwd_file_path" || short(&it.key).is_some();
    let usual: Vec<Rc<Entry>> = root.entries.iter().filter(is_usual).cloned().collect();
    let (fields, rest): (Vec<Block>, Vec<Block>) = std::mem::take(&mut root.blocks)
        .into_iter()
        .partition(|it| it.kind == "userdb_fields");
    root.blocks = rest;
    for userdb in root.blocks.iter_mut().filter(|it| it.kind == "userdb") {
        let own = userdb
            .text("driver")
            .unwrap_or(&userdb.name)
            .replace('-', "_");
        let is_its = |it: &&Rc<Entry>| {
            let key = short(&it.key).unwrap_or_else(|| it.key.clone());
            let mut drivers = USERDBS.iter();
            drivers.all(|it| *it == own || !key.starts_with(&format!("{it}_")))
        };
        let its: Vec<Rc<Entry>> = usual.iter().filter(is_its).cloned().collect();
        userdb.entries.splice(0..0, its);
        userdb.blocks.splice(0..0, fields.iter().cloned());
    }
}

/// `namespace_separator = /` and `mailbox Trash { … }` outside of any namespace are for all of them.
fn defaults_of_namespaces(root: &mut Block) {
    let usual: Vec<Rc<Entry>> = root
        .entries
        .iter()
        .filter(|it| it.key.starts_with("namespace_"))
        .cloned()
        .collect();
    for entry in &usual {
        entry.is_explained.set(true);
    }
    let (mailboxes, rest): (Vec<Block>, Vec<Block>) = std::mem::take(&mut root.blocks)
        .into_iter()
        .partition(|it| it.kind == "mailbox");
    root.blocks = rest;
    let namespaces = root.blocks.iter_mut().filter(|it| it.kind == "namespace");
    for namespace in namespaces {
        let mut all = Block::new(
            namespace.kind.clone(),
            namespace.name.clone(),
            namespace.place.clone(),
        );
        all.blocks.clone_from(&mailboxes);
        lay_under(namespace, all);
        let own = std::mem::take(&mut namespace.entries);
        namespace.entries = usual.clone();
        namespace.entries.extend(own);
    }
}

/// `namespace_prefix` in a namespace is `prefix`, `mailbox_auto` in a mailbox `auto`; a mailbox may say its name inside.
fn names(block: &mut Block) {
    let prefix = match block.kind.as_str() {
        "namespace" => "namespace_",
        "mailbox" => "mailbox_",
        _ => "",
    };
    let is_setting = |key: &str| !key.starts_with("list_") && !key.starts_with("directory_");
    for entry in &mut block.entries {
        let short = entry
            .key
            .strip_prefix(prefix)
            .filter(|_| !prefix.is_empty());
        if let Some(short) = short.filter(|it| is_setting(it)).map(str::to_owned) {
            *entry = renamed(entry, short);
        }
    }
    if block.kind == "mailbox"
        && let Some(name) = block.text("name").map(str::to_owned)
    {
        block.name = name;
    }
    block.blocks.iter_mut().for_each(names);
}

/// The same setting by another name.
fn renamed(entry: &Rc<Entry>, key: String) -> Rc<Entry> {
    entry.is_explained.set(true);
    Rc::new(Entry {
        key,
        value: entry.value.clone(),
        step: entry.step,
        file: entry.file.clone(),
        place: entry.place.clone(),
        is_explained: Cell::new(false),
        is_overridden: Cell::new(false),
    })
}
