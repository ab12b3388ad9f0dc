//! A look at all files of a mailbox, for `postroom doctor`: what is wrong, and what mends it. Nothing is written.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use super::filename::base;
use super::locks::{LOCKS, Place};
use super::mend::{Whole, gone_lines};
use super::{keywords, uidlist};
use crate::mailbox::acl::{self, Acl};
use crate::sys::dir::{Dir, Stat};
use crate::sys::dotlock;

mod permissions;
mod sizes;

/// Dovecot's for the locks that name a process.
const STALE: Duration = Duration::from_secs(120);
/// What Dovecot takes out of `tmp/`.
const OLD: Duration = Duration::from_secs(36 * 3600);
/// The same trouble in more files is told by their number.
const MAX_TOLD: usize = 5;

/// One thing that is worth a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub file: PathBuf,
    /// Counted from 1.
    pub line: Option<usize>,
    pub what: String,
    pub cure: Cure,
}

/// Who mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cure {
    /// `doctor --fix` does it.
    Fix,
    /// `doctor --fix` does it, and Dovecot in time: nothing is broken.
    Tidy,
    /// For the admin to run.
    Command(String),
    /// Neither: in words, whose it is.
    Others(&'static str),
    /// Nothing is broken; what is becoming of it.
    Note(&'static str),
}

/// What was found, and in how many messages.
#[derive(Debug, Default)]
pub struct Survey {
    pub messages: usize,
    pub findings: Vec<Finding>,
}

/// A message's name.
struct Name {
    part: &'static str,
    full: OsString,
    stat: Option<Stat>,
}

/// The messages, by their names without flags.
type Names = HashMap<Vec<u8>, Vec<Name>>;

impl Survey {
    /// Reads the whole mailbox, and takes no lock.
    pub fn of(place: &Place) -> io::Result<Survey> {
        let mut survey = Survey::default();
        let mailbox = Dir::open(&place.mailbox)?;
        // Before the names: what is listed has had its file for some time.
        let list = match Dir::open(&place.control) {
            Ok(control) => Whole::read(&control),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        let names = survey.names(place, &mailbox)?;
        survey.messages = names.values().map(Vec::len).sum();
        survey.list(place, list, &names);
        survey.twice(place, &mailbox, &names);
        survey.sizes(place, &mailbox, &names);
        survey.keywords(place, &names);
        survey.acl(place);
        survey.locks(place);
        survey.leftovers(place, &mailbox);
        survey.permissions(place, &mailbox, &names)?;
        Ok(survey)
    }

    fn add(&mut self, file: PathBuf, what: impl Into<String>, cure: Cure) {
        self.findings.push(Finding {
            file,
            line: None,
            what: what.into(),
            cure,
        });
    }

    /// The same trouble of many files: the first are named.
    fn add_each(
        &mut self,
        mut found: Vec<(PathBuf, String)>,
        place: &Place,
        many: &str,
        cure: Cure,
    ) {
        found.sort();
        let more = found.len().saturating_sub(MAX_TOLD);
        for (path, what) in found.into_iter().take(MAX_TOLD) {
            self.add(path, what, cure.clone());
        }
        if more > 0 {
            self.add(place.mailbox.clone(), format!("{more} more {many}"), cure);
        }
    }

    fn names(&mut self, place: &Place, mailbox: &Dir) -> io::Result<Names> {
        let (mut names, mut others) = (Names::new(), Vec::new());
        // New ones first: a message moves from there to `cur/`.
        for part in ["new", "cur"] {
            let dir = match mailbox.open_dir(part) {
                Ok(dir) => dir,
                Err(error) => {
                    let cure = match error.kind() {
                        ErrorKind::NotFound => Cure::Note("a delivery makes it again"),
                        _ => Cure::Others("nothing is delivered or read: see what it is"),
                    };
                    self.add(place.mailbox.join(part), error.to_string(), cure);
                    continue;
                }
            };
            let mut all = Vec::new();
            dir.each_raw_name(|full| match full.as_bytes().first() {
                Some(b'.') => {}
                _ => all.push(full.to_owned()),
            })?;
            for full in all {
                let stat = dir.stat_name(&full).ok();
                if stat.is_some_and(|stat| !stat.is_file) {
                    let path = place.mailbox.join(part).join(&full);
                    others.push((path, "is no file".to_owned()));
                    continue;
                }
                names
                    .entry(base(full.as_bytes()).to_owned())
                    .or_default()
                    .push(Name { part, full, stat });
            }
        }
        let cure = Cure::Others("nobody reads it: take it away");
        self.add_each(others, place, "are no files", cure);
        Ok(names)
    }

    fn list(&mut self, place: &Place, list: Result<Option<Whole>, String>, names: &Names) {
        let path = place.control.join(uidlist::FILE);
        let list = match list {
            Ok(Some(list)) => list,
            Ok(None) => return,
            Err(why) => {
                let cure = "left to Dovecot, which gives new UIDs if it cannot read it either";
                return self.add(path, why, Cure::Others(cure));
            }
        };
        // A file that was renamed while the directory was read may have been missed: looked for again.
        let again_names = OnceCell::new();
        let is_there = |name: &[u8]| {
            let again = || super::base_names(&place.mailbox).unwrap_or_default();
            names.contains_key(name) || again_names.get_or_init(again).contains(name)
        };
        let judgement = list.judge(is_there);
        for fault in judgement.faults {
            self.findings.push(Finding {
                file: path.clone(),
                line: fault.line,
                what: fault.what,
                cure: Cure::Fix,
            });
        }
        if judgement.gone > 0 {
            self.add(path, gone_lines(judgement.gone), Cure::Tidy);
        }
        let listed: HashSet<&[u8]> = judgement.kept.iter().map(|line| line.name).collect();
        let without = names
            .iter()
            .filter(|(base, files)| {
                files.iter().all(|file| file.part == "cur") && !listed.contains(base.as_slice())
            })
            .count();
        if without > 0 {
            let what = format!("{without} messages have no UID yet");
            let cure = "Dovecot gives it when it looks";
            self.add(place.mailbox.join("cur"), what, Cure::Note(cure));
        }
    }

    fn twice(&mut self, place: &Place, mailbox: &Dir, names: &Names) {
        // One that has moved while we looked is not there twice.
        let is_there = |file: &&Name| {
            let dir = mailbox.open_dir(file.part);
            dir.and_then(|dir| dir.stat_name(&file.full)).is_ok()
        };
        let mut found = Vec::new();
        for files in names.values().filter(|files| files.len() > 1) {
            let files: Vec<&Name> = files.iter().filter(is_there).collect();
            if let [first, second, ..] = &files[..] {
                let path = place.mailbox.join(second.part).join(&second.full);
                let what = format!("is there as {}/{} too", first.part, first.full.display());
                found.push((path, what));
            }
        }
        let cure = Cure::Others("Dovecot gives one of them another name when it looks");
        self.add_each(found, place, "messages are there twice", cure);
    }

    fn keywords(&mut self, place: &Place, names: &Names) {
        let path = place.control.join(keywords::FILE);
        let known = match Dir::open(&place.control) {
            Ok(control) => keywords::known_letters(&control),
            Err(_) => Ok(BTreeSet::new()),
        };
        let known = match known {
            Ok(known) => known,
            Err(why) => {
                let cure = "messages get no keywords while it is so: see what Dovecot says of it";
                return self.add(path, why, Cure::Others(cure));
            }
        };
        let mut unknown: BTreeMap<char, usize> = BTreeMap::new();
        for name in names.values().flatten() {
            let info = &name.full.as_bytes()[base(name.full.as_bytes()).len()..];
            // What is behind another comma is not of Dovecot.
            let flags = info.strip_prefix(b":2,").unwrap_or_default();
            let flags = flags.iter().take_while(|byte| **byte != b',');
            let letters: BTreeSet<char> = flags
                .filter(|byte| byte.is_ascii_lowercase())
                .map(|byte| char::from(*byte))
                .collect();
            for letter in letters.difference(&known) {
                *unknown.entry(*letter).or_default() += 1;
            }
        }
        for (letter, count) in unknown {
            let what = format!("has no line for the letter {letter:?} of {count} messages");
            let cure = "Dovecot shows it as unknown: its name is lost, or only in the index";
            self.add(path.clone(), what, Cure::Others(cure));
        }
    }

    /// One bad line spoils the whole file.
    fn acl(&mut self, place: &Place) {
        let text = acl::read(&place.mailbox).map(Option::unwrap_or_default);
        let parsed = text.and_then(|text| Acl::parse(&text, acl::FILE));
        if let Err(error) = parsed {
            self.findings.push(Finding {
                file: place.mailbox.join(acl::FILE),
                line: Some(error.line).filter(|line| *line > 0),
                what: error.why,
                cure: Cure::Others("where it counts nobody can tell who may, and mail is deferred"),
            });
        }
    }

    fn locks(&mut self, place: &Place) {
        for lock in LOCKS {
            let directory = place.directory(lock.place);
            let Some(holder) = Dir::open(directory)
                .ok()
                .and_then(|dir| dotlock::holder(&dir, &lock.file()))
            else {
                continue;
            };
            let age = holder.age.as_secs();
            let by = match holder.who.as_str() {
                "" => String::new(),
                who => format!(", held by {who}"),
            };
            let fix = match lock.can_be_taken() {
                true => Cure::Fix,
                false => Cure::Others("Dovecot removes it when it needs it"),
            };
            let (what, cure) = match holder.is_gone {
                Some(true) => ("which is gone", fix),
                Some(false) => ("which is at work", Cure::Note("it is in use")),
                None if holder.age > STALE => ("and left behind", fix),
                None => ("", Cure::Note("somebody may be at work")),
            };
            let what = format!("is {age} s old{by}, {what}");
            let what = what.trim_end_matches(", ").to_owned();
            self.add(directory.join(lock.file()), what, cure);
        }
    }

    fn leftovers(&mut self, place: &Place, mailbox: &Dir) {
        let Ok(tmp) = mailbox.open_dir("tmp") else {
            return;
        };
        let names = tmp.names().unwrap_or_default();
        let is_old = |name: &String| {
            let stat = tmp.stat_name(name).ok();
            stat.is_some_and(|stat| stat.modified.elapsed().is_ok_and(|age| age > OLD))
        };
        let old = names.iter().filter(|name| is_old(name)).count();
        if old > 0 {
            let what = format!("{old} files are older than 36 hours: deliveries that never ended");
            self.add(
                place.mailbox.join("tmp"),
                what,
                Cure::Note("Dovecot removes them"),
            );
        }
    }
}
