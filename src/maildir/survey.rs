//! A look at all files of a mailbox, for `postroom doctor`: what is wrong, and what mends it. Nothing is written.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::keywords;
use super::mend::Whole;
use super::uidlist::{self, base};
use crate::mailbox::permission::{Permission, SETGID};
use crate::sys::dir::{self, Dir, Stat};
use crate::sys::dotlock;

/// Dovecot's for the locks that name a process.
const STALE: Duration = Duration::from_secs(120);
/// What Dovecot takes out of `tmp/`.
const OLD: Duration = Duration::from_secs(36 * 3600);
/// The same trouble in more files is told by their number.
const MAX_TOLD: usize = 5;
const PARTS: [&str; 3] = ["cur", "new", "tmp"];
const CONTROL_FILES: [&str; 3] = [uidlist::FILE, keywords::FILE, "dovecot-acl"];
const INDEX_FILES: [&str; 3] = ["dovecot.index", "dovecot.index.log", "dovecot.index.cache"];

/// One thing that is worth a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub file: PathBuf,
    /// Counted from 1.
    pub line: Option<usize>,
    pub what: String,
    pub cure: Cure,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cure {
    /// `doctor --fix` does it.
    Fix,
    /// For the admin to run.
    Command(String),
    /// Neither: in words, whose it is.
    Others(&'static str),
    /// Nothing is broken; what is becoming of it.
    Note(&'static str),
}

/// The directories of one mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub mailbox: PathBuf,
    pub control: PathBuf,
    pub index: PathBuf,
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
    full: String,
    stat: Option<Stat>,
}

impl Survey {
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
        survey.twice(place, &names);
        survey.sizes(place, &mailbox, &names);
        survey.keywords(place, &names);
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

    /// By their names without flags.
    fn names(&mut self, place: &Place, mailbox: &Dir) -> io::Result<HashMap<String, Vec<Name>>> {
        let mut names: HashMap<String, Vec<Name>> = HashMap::new();
        // New ones first: a message moves from there to `cur/`.
        for part in ["new", "cur"] {
            let dir = match mailbox.open_dir(part) {
                Ok(dir) => dir,
                Err(error) => {
                    let path = place.mailbox.join(part);
                    let cure = "a delivery makes it again";
                    self.add(path, error.to_string(), Cure::Note(cure));
                    continue;
                }
            };
            for full in dir.names()? {
                if full.starts_with('.') {
                    continue;
                }
                let stat = dir.stat_name(&full).ok();
                if stat.is_some_and(|stat| !stat.is_file) {
                    let path = place.mailbox.join(part).join(&full);
                    let cure = "nobody reads it: take it away";
                    self.add(path, "is no file", Cure::Others(cure));
                    continue;
                }
                let name = Name { part, full, stat };
                names
                    .entry(base(&name.full).to_owned())
                    .or_default()
                    .push(name);
            }
        }
        Ok(names)
    }

    fn list(
        &mut self,
        place: &Place,
        list: Result<Option<Whole>, String>,
        names: &HashMap<String, Vec<Name>>,
    ) {
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
        let is_there = |name: &str| {
            let again = || super::base_names(&place.mailbox).unwrap_or_default();
            names.contains_key(name) || again_names.get_or_init(again).contains(name)
        };
        let (faults, _) = list.judge(is_there);
        for fault in faults {
            self.findings.push(Finding {
                file: path.clone(),
                line: Some(fault.line),
                what: fault.what,
                cure: Cure::Fix,
            });
        }
        let uids = list.uids();
        let without = names
            .iter()
            .filter(|(base, files)| {
                files.iter().all(|file| file.part == "cur") && !uids.contains_key(base.as_str())
            })
            .count();
        if without > 0 {
            let what = format!("{without} messages have no UID yet");
            let cure = "Dovecot gives it when it looks";
            self.add(place.mailbox.join("cur"), what, Cure::Note(cure));
        }
    }

    fn twice(&mut self, place: &Place, names: &HashMap<String, Vec<Name>>) {
        for files in names.values().filter(|files| files.len() > 1) {
            let [first, second, ..] = &files[..] else {
                continue;
            };
            let path = place.mailbox.join(second.part).join(&second.full);
            let what = format!("is there as {}/{} too", first.part, first.full);
            let cure = "Dovecot gives one of them another name when it looks";
            self.add(path, what, Cure::Others(cure));
        }
    }

    /// `S=` and `W=` of a name are believed by Dovecot until it reads the message.
    fn sizes(&mut self, place: &Place, mailbox: &Dir, names: &HashMap<String, Vec<Name>>) {
        let mut wrong = Vec::new();
        for name in names.values().flatten() {
            let (size, virtual_size) = (field(&name.full, "S"), field(&name.full, "W"));
            let Some(real) = name.stat.map(|stat| stat.size) else {
                continue;
            };
            let said = match (size, virtual_size) {
                (Some(size), _) if size != real => Some(format!("has {real} bytes, not {size}")),
                (_, Some(said)) => match count(mailbox, name) {
                    Ok(counted) if counted != said => {
                        Some(format!("has {counted} bytes with CRLF, not {said}"))
                    }
                    Ok(_) => None,
                    Err(error) => Some(format!("cannot be read: {error}")),
                },
                _ => None,
            };
            wrong.extend(said.map(|what| (place.mailbox.join(name.part).join(&name.full), what)));
        }
        wrong.sort();
        let cure = "Dovecot gives it a right name when it reads it";
        let more = wrong.len().saturating_sub(MAX_TOLD);
        for (path, what) in wrong.into_iter().take(MAX_TOLD) {
            self.add(path, what, Cure::Others(cure));
        }
        if more > 0 {
            let what = format!("{more} more have sizes that are not those of their names");
            self.add(place.mailbox.clone(), what, Cure::Others(cure));
        }
    }

    fn keywords(&mut self, place: &Place, names: &HashMap<String, Vec<Name>>) {
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
            let flags = name.full.split(":2,").nth(1).unwrap_or_default();
            let letters: BTreeSet<char> = flags.chars().filter(char::is_ascii_lowercase).collect();
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

    fn locks(&mut self, place: &Place) {
        let in_control = [
            "dovecot-uidlist.lock",
            "dovecot-keywords.lock",
            "dovecot-uidlist.tmp",
            "dovecot-acl.lock",
            "subscriptions.lock",
        ];
        let in_control = in_control.map(|name| (&place.control, name));
        for (directory, name) in in_control
            .into_iter()
            .chain([(&place.index, "dovecot.index.log.lock")])
        {
            let Some(holder) = Dir::open(directory)
                .ok()
                .and_then(|dir| dotlock::holder(&dir, name))
            else {
                continue;
            };
            let age = holder.age.as_secs();
            let by = match holder.who.as_str() {
                "" => String::new(),
                who => format!(", held by {who}"),
            };
            let (what, cure) = match holder.is_gone {
                Some(true) => ("which is gone", Cure::Fix),
                Some(false) => ("which is at work", Cure::Note("it is in use")),
                None if holder.age > STALE => ("and left behind", Cure::Fix),
                None => ("", Cure::Note("somebody may be at work")),
            };
            let cure = match (cure, name) {
                // Not locks of ours to break: without the lock above them nobody may.
                (
                    Cure::Fix,
                    "dovecot-acl.lock" | "subscriptions.lock" | "dovecot.index.log.lock",
                ) => Cure::Others("whoever takes it next removes it"),
                (cure, _) => cure,
            };
            let what = format!("is {age} s old{by}, {what}");
            let what = what.trim_end_matches(", ").to_owned();
            self.add(directory.join(name), what, cure);
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

    /// Against what the mailbox's own directory asks for.
    fn permissions(
        &mut self,
        place: &Place,
        mailbox: &Dir,
        names: &HashMap<String, Vec<Name>>,
    ) -> io::Result<()> {
        let stat = mailbox.stat()?;
        let permission = Permission::of(&stat, &place.mailbox);
        let setgid = if permission.setgid { SETGID } else { 0 };
        let dir_mode = permission.dir_mode | setgid;
        for part in PARTS {
            let path = place.mailbox.join(part);
            if let Ok(stat) = dir::stat(&path) {
                self.compare(&path, &stat, dir_mode, permission.gid);
            }
        }
        let control = CONTROL_FILES.map(|name| place.control.join(name));
        let index = INDEX_FILES.map(|name| place.index.join(name));
        for path in control.into_iter().chain(index) {
            match dir::stat(&path) {
                Ok(stat) => self.compare(&path, &stat, permission.file_mode, permission.gid),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    self.add(
                        path,
                        error.to_string(),
                        Cure::Others("look at it as its owner"),
                    );
                }
            }
        }
        for part in ["cur", "new"] {
            let files = names.values().flatten().filter(|name| name.part == part);
            let stats: Vec<Stat> = files.filter_map(|name| name.stat).collect();
            let path = place.mailbox.join(part);
            let mode = permission.file_mode;
            let other_mode = stats.iter().filter(|stat| stat.mode != mode).count();
            let shown = quoted(&path);
            if other_mode > 0 {
                let what = format!("{other_mode} messages have another mode than {mode:04o}");
                let cure = format!(
                    "find {shown} -type f ! -perm {mode:04o} -exec chmod {mode:04o} {{}} +"
                );
                self.add(path.clone(), what, Cure::Command(cure));
            }
            let Some(gid) = permission.gid else {
                continue;
            };
            let other_group = stats.iter().filter(|stat| stat.gid != gid).count();
            if other_group > 0 {
                let what = format!("{other_group} messages have another group than {gid}");
                let cure = format!("find {shown} -type f ! -gid {gid} -exec chgrp {gid} {{}} +");
                self.add(path, what, Cure::Command(cure));
            }
        }
        Ok(())
    }

    fn compare(&mut self, path: &Path, stat: &Stat, mode: u32, gid: Option<u32>) {
        if let Some(gid) = gid.filter(|gid| *gid != stat.gid) {
            let what = format!("has group {}, not {gid}", stat.gid);
            let cure = format!("chgrp {gid} {}", quoted(path));
            self.add(path.to_owned(), what, Cure::Command(cure));
        }
        if stat.mode != mode {
            let what = format!("has mode {:04o}, not {mode:04o}", stat.mode);
            let cure = format!("chmod {mode:04o} {}", quoted(path));
            self.add(path.to_owned(), what, Cure::Command(cure));
        }
    }
}

/// `S=177` in a name.
fn field(name: &str, key: &str) -> Option<u64> {
    let fields = base(name).split(',').skip(1);
    let mut values = fields.filter_map(|field| field.split_once('='));
    values
        .find(|(known, _)| *known == key)
        .and_then(|(_, value)| value.parse().ok())
}

/// Bytes with every line end as CRLF.
fn count(mailbox: &Dir, name: &Name) -> io::Result<u64> {
    let mut file = mailbox.open_dir(name.part)?.read(&name.full)?;
    let mut buffer = vec![0; 64 * 1024];
    let (mut size, mut last) = (0, 0);
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(size);
        }
        for &byte in &buffer[..length] {
            size += 1 + u64::from(byte == b'\n' && last != b'\r');
            last = byte;
        }
    }
}

/// For a shell.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._+-@%,".contains(c);
    match text.chars().all(is_plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}
