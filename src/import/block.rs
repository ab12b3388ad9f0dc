//! A Dovecot configuration as a tree, with where each setting stands and whether anybody has asked for it.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: Rc<str>,
    /// From 1 on.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A setting.
#[derive(Debug)]
pub struct Entry {
    pub key: String,
    pub value: String,
    /// A word of a list, `kind { word = yes }`: put in, or taken out. None: the value is all.
    pub step: Option<bool>,
    /// The value is in this file (`<path`).
    pub file: Option<String>,
    pub place: Place,
    /// Something of ours comes from it, or says why nothing does.
    pub is_explained: Cell<bool>,
    /// The same setting is said again.
    pub is_overridden: Cell<bool>,
}

/// A section: what stands between `kind name {` and `}`, those of one name together.
#[derive(Debug, Clone)]
pub struct Block {
    pub kind: String,
    pub name: String,
    pub place: Place,
    pub entries: Vec<Rc<Entry>>,
    pub blocks: Vec<Block>,
}

/// yes, as Dovecot writes it, in any case.
pub fn is_yes(value: &str) -> bool {
    ["yes", "y", "1"]
        .iter()
        .any(|it| value.eq_ignore_ascii_case(it))
}

impl Block {
    pub fn new(kind: String, name: String, place: Place) -> Block {
        Block {
            kind,
            name,
            place,
            entries: Vec::new(),
            blocks: Vec::new(),
        }
    }

    /// The setting that counts, the last of its name; all of that name are explained then.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        let mut found = None;
        for entry in self.entries.iter().filter(|entry| entry.key == key) {
            entry.is_explained.set(true);
            let before: Option<&Entry> = found.replace(&**entry);
            before.inspect(|it| it.is_overridden.set(true));
        }
        found
    }

    /// [`Block::get`] for somebody who may not need it.
    pub fn look(&self, key: &str) -> Option<&Entry> {
        let mut entries = self.entries.iter();
        entries.rfind(|entry| entry.key == key).map(|it| &**it)
    }

    /// The value of [`Block::get`]; an empty one is none.
    pub fn text(&self, key: &str) -> Option<&str> {
        let value = self.get(key)?.value.as_str();
        Some(value).filter(|value| !value.is_empty())
    }

    /// yes or no, as Dovecot reads it.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.text(key).map(is_yes)
    }

    /// Those directly in it: `namespace`, `userdb`, `plugin`.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Block> {
        self.blocks.iter().filter(move |block| block.kind == kind)
    }

    /// A list: what a setting says is instead of all before it, a word in a block beside it.
    pub fn words(&self, key: &str) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.key == key) {
            entry.is_explained.set(true);
            let split = entry.value.split([' ', '\t', ',']);
            let named = split.filter(|word| !word.is_empty()).map(str::to_owned);
            match entry.step {
                None => words = named.collect(),
                Some(is_in) => {
                    words.retain(|word| *word != entry.value);
                    words.extend(is_in.then(|| entry.value.clone()));
                }
            }
        }
        words
    }

    /// Nothing in it needs another word.
    pub fn explain(&self) {
        self.entries
            .iter()
            .for_each(|entry| entry.is_explained.set(true));
        self.blocks.iter().for_each(Block::explain);
    }

    /// Puts a section in, or together with one of the same name.
    pub fn take(&mut self, block: Block) {
        let same = |it: &&mut Block| it.kind == block.kind && it.name == block.name;
        let is_list = matches!(
            block.kind.as_str(),
            "namespace" | "passdb" | "userdb" | "mailbox"
        );
        let known = match block.name.is_empty() && is_list {
            true => None,
            false => self.blocks.iter_mut().find(same),
        };
        match known {
            None => self.blocks.push(block),
            Some(known) => {
                known.entries.extend(block.entries);
                block.blocks.into_iter().for_each(|it| known.take(it));
            }
        }
    }

    /// What counts where `protocol` is spoken: what its sections say lies over the rest.
    pub fn for_protocol(&self, protocol: &str) -> Block {
        let mut all = self.clone();
        let filters = std::mem::take(&mut all.blocks);
        let (filters, rest): (Vec<_>, Vec<_>) =
            filters.into_iter().partition(|it| it.kind == "protocol");
        all.blocks = rest;
        for filter in filters {
            let applies = match filter.name.strip_prefix('!') {
                Some(other) => other != protocol,
                None => filter.name == protocol,
            };
            if applies {
                all.entries.extend(filter.entries);
                filter.blocks.into_iter().for_each(|it| all.take(it));
            }
        }
        all
    }
}
