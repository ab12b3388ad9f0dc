//! Reading a TOML table key by key, with the place of everything.
//!
//! A wrong value is noted and the default taken, so that one run reports all that is wrong. Every key that is asked for is
//! known; [`Section::finish`] reports the others, with the nearest known name.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Problem, line_of};
use crate::text::template::Template;

/// The longest time: beyond what anything is meant for, and no clock that it is added to overflows.
const LONGEST_DAYS: u64 = 365;

/// A setting as it came out: for `config show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `delivery.detail`
    pub key: String,
    pub value: String,
    /// Where it is set; none for a default.
    pub line: Option<usize>,
}

/// What is collected while a file is read.
#[derive(Debug)]
pub struct Notes<'t> {
    /// What places of problems point into.
    pub text: &'t str,
    pub problems: RefCell<Vec<Problem>>,
    /// None: nobody will ask how it came out.
    pub settings: Option<RefCell<Vec<Setting>>>,
}

/// One table, or the absence of it.
pub struct Section<'t> {
    notes: &'t Notes<'t>,
    /// `namespace.public`; empty for the whole file.
    path: String,
    table: Option<&'t DeTable<'t>>,
    place: Range<usize>,
    known: RefCell<Vec<&'t str>>,
}

impl<'t> Section<'t> {
    /// The table outside of all sections.
    pub fn root(notes: &'t Notes<'t>, table: &'t DeTable<'t>) -> Section<'t> {
        Section::new(notes, String::new(), Some(table), 0..0)
    }

    fn new(
        notes: &'t Notes<'t>,
        path: String,
        table: Option<&'t DeTable<'t>>,
        place: Range<usize>,
    ) -> Section<'t> {
        Section {
            notes,
            path,
            table,
            place,
            known: RefCell::default(),
        }
    }

    pub fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// Where `key` is set, or else the section.
    pub fn place(&self, key: &str) -> Range<usize> {
        let entry = self
            .table
            .and_then(|table| table.iter().find(|(name, _)| name.get_ref() == key));
        entry.map_or(self.place.clone(), |(_, value)| value.span())
    }

    /// Where `key` stands, or its section; an empty `advice` is none. The config is not used.
    pub fn error(&self, key: &str, message: impl Into<String>, advice: impl Into<String>) {
        self.note(key, message.into(), advice.into(), false);
    }

    /// [`error`](Section::error) that stops nobody.
    pub fn warning(&self, key: &str, message: impl Into<String>, advice: impl Into<String>) {
        self.note(key, message.into(), advice.into(), true);
    }

    fn note(&self, key: &str, message: String, advice: String, is_warning: bool) {
        let advice = (!advice.is_empty()).then_some(advice);
        let problem = Problem {
            message,
            advice,
            place: self.place(key),
            is_warning,
        };
        self.notes.problems.borrow_mut().push(problem);
    }

    /// Whether `key` is set at all.
    pub fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// The type that `key` is written in, where a setting takes two.
    pub fn is_flag(&self, key: &'static str) -> bool {
        self.value(key)
            .is_some_and(|value| value.get_ref().is_bool())
    }

    pub fn is_number(&self, key: &'static str) -> bool {
        self.value(key)
            .is_some_and(|value| value.get_ref().is_integer())
    }

    pub fn is_list(&self, key: &'static str) -> bool {
        self.value(key)
            .is_some_and(|value| value.get_ref().is_array())
    }

    /// This and those below read one setting, which is known from then on. None: not set, or of another type, an error.
    pub fn text(&self, key: &'static str) -> Option<String> {
        let text = self.typed(key, "a text in quotes", |value| {
            value.as_str().map(str::to_owned)
        });
        self.record(key, || text.as_ref().map(|text| format!("{text:?}")));
        text
    }

    /// A text that is never missing.
    pub fn text_or(&self, key: &'static str, default: impl FnOnce() -> String) -> String {
        self.text(key).unwrap_or_else(|| {
            let default = default();
            self.record(key, || Some(format!("{default:?}")));
            default
        })
    }

    /// What holds where `key` is not set, for whoever asks: the delivery finds it out itself.
    pub fn usual(&self, key: &'static str, default: impl FnOnce() -> String) {
        self.record(key, || Some(format!("{:?}", default())));
    }

    pub fn flag(&self, key: &'static str, default: bool) -> bool {
        let flag = self
            .typed(key, "true or false", DeValue::as_bool)
            .unwrap_or(default);
        self.record(key, || Some(flag.to_string()));
        flag
    }

    pub fn number(&self, key: &'static str, default: Option<u32>) -> Option<u32> {
        let number = self.typed(key, "a number from 0 to 4294967295", |value| {
            let integer = value.as_integer()?;
            u32::from_str_radix(integer.as_str(), integer.radix()).ok()
        });
        let number = number.or(default);
        self.record(key, || number.map(|number| number.to_string()));
        number
    }

    /// [`choice`](Section::choice) of a setting that is never missing.
    pub fn choice_or<T: Copy + PartialEq>(
        &self,
        key: &'static str,
        words: &[(&str, T)],
        default: T,
    ) -> T {
        self.choice(key, words, Some(default)).unwrap_or(default)
    }

    /// One word of a closed set. A word that is not of it is an error, and the default stands for it.
    pub fn choice<T: Copy + PartialEq>(
        &self,
        key: &'static str,
        words: &[(&str, T)],
        default: Option<T>,
    ) -> Option<T> {
        let choice = self
            .typed(key, "a word in quotes", |value| {
                value.as_str().map(str::to_owned)
            })
            .and_then(|word| {
                let found = words
                    .iter()
                    .find(|(known, _)| *known == word)
                    .map(|(_, choice)| *choice);
                if found.is_none() {
                    let known: Vec<String> = words
                        .iter()
                        .map(|(known, _)| format!("{known:?}"))
                        .collect();
                    self.error(
                        key,
                        format!("{word:?} is no value of {key}"),
                        format!("write one of {}", known.join(", ")),
                    );
                }
                found
            });
        let choice = choice.or(default);
        self.record(key, || {
            let (word, _) = words.iter().find(|(_, known)| Some(*known) == choice)?;
            Some(format!("{word:?}"))
        });
        choice
    }

    /// A setting with variables that is never missing.
    pub fn template_or(&self, key: &'static str, default: &str) -> Template {
        self.or_default(key, self.template(key), default)
    }

    /// [`path_template`](Section::path_template) that is never missing.
    pub fn path_template_or(&self, key: &'static str, default: &str) -> Template {
        self.or_default(key, self.path_template(key), default)
    }

    fn or_default(&self, key: &'static str, set: Option<Template>, default: &str) -> Template {
        set.unwrap_or_else(|| {
            if !self.has(key) {
                self.record(key, || Some(format!("{default:?}")));
            }
            Template::parse(default).expect("a default of the config, parsed in its tests")
        })
    }

    /// A path with variables: one that cannot come out absolute is wrong.
    pub fn path_template(&self, key: &'static str) -> Option<Template> {
        let template = self.template(key)?;
        let source = template.source();
        let is_none = key == "mail_index_path" && source == "MEMORY";
        if !source.is_empty() && !is_none && !source.starts_with(['/', '~', '%']) {
            let message = format!("{source:?} is not absolute");
            self.error(key, message, format!("write \"~/{source}\", or from / on"));
        }
        Some(template)
    }

    /// A setting with variables.
    pub fn template(&self, key: &'static str) -> Option<Template> {
        match Template::parse(&self.text(key)?) {
            Ok(template) => Some(template),
            Err(error) => {
                self.error(
                    key,
                    format!("{key}: {error}"),
                    error.advice.unwrap_or_default(),
                );
                None
            }
        }
    }

    /// A list of texts; empty where it is not set.
    pub fn texts(&self, key: &'static str) -> Vec<String> {
        self.texts_or(key, &[])
    }

    pub fn texts_or(&self, key: &'static str, default: &[&str]) -> Vec<String> {
        let texts = self.typed(key, "a list of texts: [\"a\", \"b\"]", |value| {
            let texts = value
                .as_array()?
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned));
            texts.collect::<Option<Vec<_>>>()
        });
        let default = || default.iter().map(|text| (*text).to_owned()).collect();
        let texts = texts.unwrap_or_else(default);
        self.record(key, || Some(format!("{texts:?}")));
        texts
    }

    /// Bytes: a number, or a text like `"50M"`. 0 or absent: none.
    pub fn size(&self, key: &'static str) -> Option<u64> {
        let size = self.typed(
            key,
            "a size: \"50M\", \"10k\" or a number of bytes",
            |value| match value {
                DeValue::Integer(integer) => {
                    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
                }
                value => scaled(
                    value.as_str()?,
                    &[
                        ("k", 1 << 10),
                        ("M", 1 << 20),
                        ("G", 1 << 30),
                        ("T", 1 << 40),
                    ],
                ),
            },
        );
        self.record(key, || Some(size.unwrap_or(0).to_string()));
        size.filter(|&size| size > 0)
    }

    /// A text like `"5m"`, `"300s"`, or a number of seconds.
    pub fn duration(&self, key: &'static str, default: Duration) -> Duration {
        let seconds = self.typed(
            key,
            "a time: \"5m\", \"30s\" or a number of seconds",
            |value| match value {
                DeValue::Integer(integer) => {
                    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
                }
                value => scaled(
                    value.as_str()?,
                    &[("s", 1), ("m", 60), ("h", 3600), ("d", 86400)],
                ),
            },
        );
        let is_too_long = |seconds: &u64| *seconds > LONGEST_DAYS * 86400;
        if seconds.as_ref().is_some_and(is_too_long) {
            self.error(
                key,
                format!("{key} is longer than {LONGEST_DAYS} days"),
                format!("write \"{LONGEST_DAYS}d\" at most"),
            );
        }
        let seconds = seconds.filter(|seconds| !is_too_long(seconds));
        let duration = seconds.map_or(default, Duration::from_secs);
        self.record(key, || Some(format!("\"{}s\"", duration.as_secs())));
        duration
    }

    /// A sub-table; an absent one has nothing but defaults.
    pub fn section(&self, key: &'static str) -> Section<'t> {
        let value = self.value(key);
        let table = value.and_then(|value| value.get_ref().as_table());
        if value.is_some() && table.is_none() {
            self.error(
                key,
                format!("{key} is a table"),
                format!("write [{}]", self.full(key)),
            );
        }
        Section::new(
            self.notes,
            self.full(key),
            table,
            value.map_or(self.place.clone(), Spanned::span),
        )
    }

    /// The tables below `key`, by their names: `[namespace.public]`.
    pub fn sections(&self, key: &'static str) -> Vec<(String, Section<'t>)> {
        let section = self.section(key);
        let entries = section.table.into_iter().flat_map(|table| table.iter());
        let mut named: Vec<_> = entries.collect();
        named.sort_by_key(|(name, _)| name.span().start);
        let children = named.into_iter().filter_map(|(name, value)| {
            let path = format!("{}.{}", section.path, name.get_ref());
            match value.get_ref().as_table() {
                Some(table) => Some((
                    name.get_ref().to_string(),
                    Section::new(self.notes, path, Some(table), name.span()),
                )),
                None => {
                    let message = format!("{} is no section", name.get_ref());
                    section.error(
                        name.get_ref(),
                        message,
                        format!("write [{path}] and its settings below"),
                    );
                    None
                }
            }
        });
        children.collect()
    }

    /// The tables of a list: `[[userdb]]`, or `listen = [{ … }]`.
    pub fn tables(&self, key: &'static str) -> Vec<Section<'t>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let tables = value.get_ref().as_array().and_then(|items| {
            let sections = items.iter().enumerate().map(|(at, item)| {
                let path = format!("{}[{at}]", self.full(key));
                Some(Section::new(
                    self.notes,
                    path,
                    Some(item.get_ref().as_table()?),
                    item.span(),
                ))
            });
            sections.collect::<Option<Vec<_>>>()
        });
        if tables.is_none() {
            self.error(
                key,
                format!("{key} is a list of tables"),
                format!("write [[{}]]", self.full(key)),
            );
        }
        tables.unwrap_or_default()
    }

    /// `namespace.public`
    pub fn name(&self) -> &str {
        &self.path
    }

    /// Every key with its text, for a table whose keys are the admin's.
    pub fn free_texts(&self) -> Vec<(String, String)> {
        let mut texts = Vec::new();
        for (name, value) in self.table.into_iter().flat_map(|table| table.iter()) {
            let key = name.get_ref().to_string();
            match value.get_ref().as_str() {
                Some(text) => texts.push((key, text.to_owned())),
                None => self.error(&key, format!("{key} is a text"), "write it in quotes"),
            }
        }
        texts
    }

    /// The settings whose keys are `taken`, with variables in their texts.
    pub fn free_templates(&self, taken: impl Fn(&str) -> bool) -> BTreeMap<String, Template> {
        let mut templates = BTreeMap::new();
        for (name, value) in self.table.into_iter().flat_map(|table| table.iter()) {
            let key: &'t str = name.get_ref();
            if !taken(key) {
                continue;
            }
            self.known.borrow_mut().push(key);
            let template = match value.get_ref().as_str() {
                Some(text) => Template::parse(text),
                None => {
                    self.error(key, format!("{key} is a text"), "write it in quotes");
                    continue;
                }
            };
            match template {
                Ok(template) => drop(templates.insert(key.to_owned(), template)),
                Err(error) => {
                    let advice = error.advice.clone().unwrap_or_default();
                    self.error(key, format!("{key}: {error}"), advice);
                }
            }
        }
        templates
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(&self) {
        let known = self.known.borrow();
        for (name, _) in self.table.into_iter().flat_map(|table| table.iter()) {
            let key: &str = name.get_ref();
            if known.contains(&key) {
                continue;
            }
            let nearest = known
                .iter()
                .map(|known| (distance(key, known), known))
                .min();
            let advice = match nearest {
                Some((distance, known)) if distance <= 1 + key.len() / 4 => {
                    Some(format!("did you mean {known:?}?"))
                }
                _ => None,
            };
            let place = if self.path.is_empty() {
                String::new()
            } else {
                format!(" in [{}]", self.path)
            };
            let message = format!("unknown setting {key:?}{place}");
            let problem = Problem {
                message,
                advice,
                place: name.span(),
                is_warning: false,
            };
            self.notes.problems.borrow_mut().push(problem);
        }
    }

    fn value(&self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.known.borrow_mut().push(key);
        self.table?
            .iter()
            .find(|(name, _)| name.get_ref() == key)
            .map(|(_, value)| value)
    }

    fn typed<T>(
        &self,
        key: &'static str,
        wanted: &str,
        take: impl Fn(&DeValue<'t>) -> Option<T>,
    ) -> Option<T> {
        let value = self.value(key)?.get_ref();
        let taken = take(value);
        if taken.is_none() {
            self.error(
                key,
                format!("{key} cannot be this {}", value.type_str()),
                format!("write {wanted}"),
            );
        }
        taken
    }

    fn record(&self, key: &'static str, value: impl FnOnce() -> Option<String>) {
        let Some(settings) = &self.notes.settings else {
            return;
        };
        let Some(value) = value() else { return };
        let set = self
            .table
            .and_then(|table| table.iter().find(|(name, _)| name.get_ref() == key));
        let line = set.map(|(name, _)| line_of(self.notes.text, name.span().start));
        settings.borrow_mut().push(Setting {
            key: self.full(key),
            value,
            line,
        });
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[digits.len()..];
    let number: u64 = digits.trim().parse().ok()?;
    match unit {
        "" => Some(number),
        unit => {
            let (_, factor) = units
                .iter()
                .find(|(known, _)| known.eq_ignore_ascii_case(unit))?;
            number.checked_mul(*factor)
        }
    }
}

/// Edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, from) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = at + 1;
        for (to, &c) in b.iter().enumerate() {
            let cost = before + usize::from(from != c);
            before = row[to + 1];
            row[to + 1] = cost.min(before + 1).min(row[to] + 1);
        }
    }
    row[b.len()]
}
