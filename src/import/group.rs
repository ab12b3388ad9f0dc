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

/// `mbox { write_locks = fcntl }` is `mbox_write_locks = fcntl`.
fn formats(root: &mut Block) {
    let (formats, rest): (Vec<Block>, Vec<Block>) = std::mem::take(&mut root.blocks)
        .into_iter()
        .partition(|it| FORMATS.contains(&it.kind.as_str()) && it.name.is_empty());
    root.blocks = rest;
    let driver = root.text("mail_driver").unwrap_or_default().to_owned();
    for format in formats {
        for entry in &format.entries {
            let is_long = entry.key.starts_with(&format!("{}_", format.kind));
            let is_general = entry.key.starts_with("mail");
            match (is_long, is_general, format.kind == driver) {
                (true, ..) | (_, true, true) => root.entries.push(Rc::clone(entry)),
                // Of a format that one namespace may have.
                (_, true, false) => {
                    let key = format!("{} {{ {} }}", format.kind, entry.key);
                    root.entries.push(renamed(entry, key));
                }
                _ => {
                    let key = format!("{}_{}", format.kind, entry.key);
                    root.entries.push(renamed(entry, key));
                }
            }
        }
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
