use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::*;
use crate::mailbox::link::Links;
use crate::mailbox::permission::Permission;
use crate::mbox::lock::Locking;
use crate::mbox::open::MORE_NAMES;
use crate::mbox::text::Quoting;
use crate::message::body::{BodyWriter, Spool};
use crate::sys::dir::Dir;
use crate::sys::{credentials, fault_point};

const FROM: &str = "From a@b  Mon Nov 02 07:02:09 2026";
const OLD: &str = "From x  Mon Nov 02 07:02:09 2026\nA: b\n\nold\n\n";

fn body(text: &str) -> Body {
    let mut body = BodyWriter::new(&Spool::of(vec![std::env::temp_dir()]));
    body.write(text.as_bytes()).unwrap();
    body.finish().unwrap()
}

/// What came of one message.
type Added = Result<(Appended, Sure), Fault>;

fn append(path: &Path, text: &str, make: Option<&Permission>) -> Added {
    append_body(path, &body(text), make)
}

fn append_body(path: &Path, body: &Body, make: Option<&Permission>) -> Added {
    let added = append_all(path, std::slice::from_ref(body), make);
    added.map(|(all, sure)| (all[0], sure))
}

/// Together, under one lock.
fn append_all(
    path: &Path,
    bodies: &[Body],
    make: Option<&Permission>,
) -> Result<(Vec<Appended>, Sure), Fault> {
    let demands = Demands {
        locking: Locking {
            timeout: Duration::from_millis(50),
            ..Locking::default()
        },
        make: make.cloned(),
        ..demands()
    };
    let folder = path.parent().unwrap().to_owned();
    let links = Links {
        uid: credentials::effective().uid,
        lent: Vec::new(),
        mail_roots: vec![folder.clone()],
    };
    let holder = links.open_holder(&folder, path);
    let (dir, path) = holder.map_err(|error| Fault::io("open", &error))?;
    let mbox = Mbox::at(dir, path)?;
    let mut open = mbox.lock(&demands, Duration::MAX, |_| Ok(false))?;
    let messages: Vec<_> = bodies.iter().map(message).collect();
    let written = open.write(&messages)?;
    Ok((written, open.make_sure()?))
}

fn message(body: &Body) -> Message<'_> {
    Message {
        from_line: FROM,
        header: b"R: p\n",
        body,
        flags: Flags::default(),
        uid: None,
    }
}

fn demands() -> Demands {
    Demands {
        locking: Locking::default(),
        quoting: Quoting::Mboxrd,
        sync: true,
        make: None,
        owner: None,
    }
}

#[test]
fn behind_whatever_is_there() {
    let new = format!("{FROM}\nR: p\nS: x\nContent-Length: 2\n\ny\n\n");
    for (before, gap) in [
        ("", ""),
        (OLD, ""),
        (OLD.trim_end_matches('\n'), "\n\n"),
        (&OLD[..OLD.len() - 1], "\n"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("box");
        fs::write(&path, before).unwrap();
        let (appended, _) = append(&path, "S: x\n\ny\n", None).unwrap();
        let all = fs::read_to_string(&path).unwrap();
        assert_eq!(all, format!("{before}{gap}{new}"));
        assert_eq!(appended.offset as usize, before.len() + gap.len());
        assert_eq!(appended.size as usize, new.len());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}

#[test]
fn what_is_no_mbox_stays_as_it_is() {
    for text in ["export PATH=x\n", "Fro", "from a\n", "\nFrom a\n"] {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(".bashrc");
        fs::write(&path, text).unwrap();
        let fault = append(&path, "S: x\n\ny\n", None).unwrap_err();
        assert!(fault.why.contains("no mbox"), "{fault}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

/// Somebody's mail by another name: made before, or while the lock is waited for.
#[test]
fn a_file_with_a_second_name() {
    let root = tempfile::tempdir().unwrap();
    let (path, other) = (root.path().join("box"), root.path().join("other"));
    fs::write(&path, OLD).unwrap();
    fs::hard_link(&path, &other).unwrap();
    let fault = append(&path, "S: x\n\ny\n", None).unwrap_err();
    assert_eq!(fault.why, MORE_NAMES);
    assert_eq!(fs::read_to_string(&path).unwrap(), OLD);
}

/// The lock of a mailbox is beside the mailbox.
#[test]
fn through_a_symlink() {
    let root = tempfile::tempdir().unwrap();
    let (link, real) = (root.path().join("link"), root.path().join("real"));
    fs::create_dir(&real).unwrap();
    fs::write(real.join("box"), OLD).unwrap();
    symlink("real/box", &link).unwrap();
    let lock = real.join("box.lock");
    fs::write(&lock, "1:elsewhere").unwrap();
    assert!(append(&link, "S: x\n\ny\n", None).is_err());
    fs::remove_file(lock).unwrap();
    append(&link, "S: x\n\ny\n", None).unwrap();
    assert!(fs::read_to_string(real.join("box")).unwrap().len() > OLD.len());
    for target in ["nowhere", "link2", "real"] {
        let other = root.path().join("link2");
        symlink(target, &other).unwrap();
        assert!(append(&other, "S: x\n\ny\n", None).is_err(), "{target}");
        fs::remove_file(other).unwrap();
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
}

#[test]
fn every_step_fails_once() {
    let body = body(&format!("S: x\n\n{}\nline\nline\n", "x".repeat(135_000)));
    for failure in fault_point::FAILURES {
        for before in [None, Some(""), Some(OLD)] {
            for step in 0.. {
                let root = tempfile::tempdir().unwrap();
                let path = root.path().join("box");
                if let Some(before) = before {
                    fs::write(&path, before).unwrap();
                }
                let permission = Permission::private(root.path());
                fault_point::arm(step, failure);
                let appended = append_body(&path, &body, Some(&permission));
                let fired = !fault_point::disarm();
                let case = format!("{before:?}, step {step}, {failure:?}: {appended:?}");
                let after = fs::read_to_string(&path).ok();
                match appended {
                    Ok(_) => assert!(after.unwrap().ends_with("line\nline\n\n"), "{case}"),
                    Err(fault) => {
                        assert!(fault.code.is_temporary(), "{case}");
                        let after = after.filter(|it| !it.is_empty());
                        assert_eq!(
                            after.as_deref(),
                            before.filter(|it| !it.is_empty()),
                            "{case}"
                        );
                    }
                }
                assert!(!root.path().join("box.lock").exists(), "{case}");
                if !fired {
                    assert!(failure.is_of_writes() || step > 12, "only {step} steps");
                    break;
                }
            }
        }
    }
}

/// Locked by one who has lost his lock, or gone while it is written to: then nothing is promised, and nothing of others goes.
#[test]
fn what_happens_behind_the_lock() {
    type Meddle = fn(&Path);
    let setups: [(&str, Meddle); 3] = [
        ("broken", |path| {
            fs::remove_file(path.with_extension("lock")).unwrap();
            let mut file = File::options().append(true).open(path).unwrap();
            file.write_all(OLD.as_bytes()).unwrap();
        }),
        ("unlinked", |path| fs::remove_file(path).unwrap()),
        ("renamed", |path| {
            fs::rename(path, path.with_extension("else")).unwrap();
        }),
    ];
    for (case, setup) in setups {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("box");
        fs::write(&path, OLD).unwrap();
        let demands = demands();
        let body = body("S: x\n\ny\n");
        let mbox = Mbox::at(Dir::open(root.path()).unwrap(), path.clone()).unwrap();
        let mut open = mbox.lock(&demands, Duration::MAX, |_| Ok(false)).unwrap();
        setup(&path);
        let written = open.write(&[message(&body)]);
        let fault = written.and_then(|_| open.make_sure()).unwrap_err();
        assert!(fault.code.is_temporary(), "{case}");
        let left = fs::read_to_string(&path);
        let left = left.or_else(|_| fs::read_to_string(path.with_extension("else")));
        let want = match case {
            "broken" => OLD.repeat(2),
            "renamed" => OLD.into(),
            _ => String::new(),
        };
        assert_eq!(left.unwrap_or_default(), want, "{case}");
    }
}

/// What those do who know none of our locks, before each step: a promise holds, and nothing goes that they have added behind it.
#[test]
fn what_others_do_without_locks() {
    type Meddle = fn(&Path);
    let add: Meddle = |path| {
        let mut file = File::options().append(true).open(path).unwrap();
        file.write_all(OLD.as_bytes()).unwrap();
    };
    let cut: Meddle = |path| File::create(path).unwrap().set_len(0).unwrap();
    let unlock: Meddle = |path| {
        let _ = fs::remove_file(path.with_extension("lock"));
    };
    let take_over: Meddle = |path| {
        let lock = path.with_extension("lock");
        if fs::remove_file(&lock).is_ok() {
            fs::write(lock, "1:elsewhere").unwrap();
        }
    };
    let link: Meddle = |path| {
        let _ = fs::hard_link(path, path.with_extension("second"));
    };
    let mut refusals = Vec::new();
    for (case, meddle) in [
        ("add", add),
        ("cut", cut),
        ("unlock", unlock),
        ("take over", take_over),
        ("link", link),
    ] {
        let case_name = case;
        let (mut refused, mut not_last) = (0, 0);
        for step in 0.. {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("box");
            fs::write(&path, OLD).unwrap();
            let theirs = path.clone();
            fault_point::meddle(step, move || meddle(&theirs));
            let appended = append(&path, "S: x\n\ny\n", None);
            let fired = !fault_point::disarm();
            let case = format!("{case}, step {step}: {appended:?}");
            let after = fs::read_to_string(&path).unwrap();
            let theirs = after.matches(OLD).count();
            match case_name {
                "add" => assert_eq!(theirs, 1 + usize::from(fired), "{case}"),
                "cut" => assert!(
                    !after.contains('\0') && theirs == usize::from(!fired),
                    "{case}"
                ),
                _ => assert_eq!(theirs, 1, "{case}"),
            }
            match appended {
                // Behind the last look at it: its reader's to do.
                Ok(_) if after.is_empty() => {}
                Ok((appended, sure)) => {
                    let (from, size) = (appended.offset as usize, appended.size as usize);
                    let new = format!("{FROM}\nR: p\nS: x\nContent-Length: 2\n\ny\n\n");
                    assert_eq!(after[from..from + size], new, "{case}");
                    let seen = sure.stat.size as usize;
                    assert_eq!(sure.is_last, seen == from + size, "{case}");
                    not_last += usize::from(!sure.is_last);
                    assert!(sure.is_last || after.ends_with(OLD), "{case}");
                }
                Err(fault) => {
                    refused += 1;
                    assert!(fault.code.is_temporary(), "{case}");
                    // Whoever has the lock now may be writing: what is there stays, and is not promised.
                    assert!(!after.contains(FROM) || case_name == "take over", "{case}");
                }
            }
            if !fired {
                break;
            }
        }
        match case {
            "add" => assert!(refused > 0 && not_last > 0, "{not_last}"),
            _ => assert!(refused > 1 && not_last == 0, "{case}: {refused}"),
        }
        refusals.push(refused);
    }
    // A lock that is gone behind the last byte has done its work; one that somebody else has makes it unknown what he does.
    assert!(refusals[3] > refusals[2], "{refusals:?}");
}

/// What `test` makes of an mbox that is locked and has the first of three at its end, not yet sure.
fn behind_one<T>(test: impl FnOnce(Open<'_>, &Path, &[Body; 3]) -> T) -> T {
    let (bodies, _) = three();
    let root = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = root.path().join("box");
    fs::write(&path, OLD).unwrap();
    let mbox = Mbox::at(Dir::open(root.path()).unwrap(), path.clone()).unwrap();
    let demands = demands();
    let mut open = mbox.lock(&demands, Duration::MAX, |_| Ok(false)).unwrap();
    open.write(&[message(&bodies[0])]).unwrap();
    test(open, &path, &bodies)
}

/// One that has others before it, which are sure; the next one finds that somebody has added: only that one has to come again.
#[test]
fn others_add_between_two_of_a_batch() {
    behind_one(|mut open, path, bodies| {
        let mut file = File::options().append(true).open(path).unwrap();
        file.write_all(OLD.as_bytes()).unwrap();
        let before = fs::read_to_string(path).unwrap();
        let fault = open.write(&[message(&bodies[1])]).unwrap_err();
        assert!(fault.why.contains("without its locks"), "{fault}");
        let sure = open.make_sure().unwrap();
        assert!(!sure.is_last);
        drop(open);
        assert_eq!(fs::read_to_string(path).unwrap(), before);
        assert!(!torn::is_noted(&file));
    });
}

/// It is not touched, whatever was left in it.
#[test]
fn an_inbox_of_somebody_else() {
    let root = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = root.path().join("box");
    let begun = format!("{OLD}{FROM}\nS: cut");
    fs::write(&path, &begun).unwrap();
    let own = fs::metadata(&path).unwrap().uid();
    for (owner, is_taken) in [(None, true), (Some(own), true), (Some(own + 7), own == 0)] {
        let file = File::options().write(true).open(&path).unwrap();
        let note = Note {
            size: OLD.len() as u64,
            offset: OLD.len() as u64,
            zeros: 0,
            lengths: vec![1000],
            mark: torn::mark(FROM),
        };
        note.write(&file);
        let demands = Demands { owner, ..demands() };
        let mbox = Mbox::at(Dir::open(root.path()).unwrap(), path.clone()).unwrap();
        assert_eq!(
            mbox.lock(&demands, Duration::MAX, |_| Ok(false)).is_ok(),
            is_taken,
            "{owner:?}"
        );
        let left = if is_taken { OLD } else { &begun };
        assert_eq!(fs::read_to_string(&path).unwrap(), left, "{owner:?}");
        fs::write(&path, &begun).unwrap();
    }
}

/// New mail: written behind the last time it was read.
#[test]
fn it_is_unread_and_keeps_its_mode() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("box");
    fs::write(&path, OLD).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let read = SystemTime::now() - Duration::from_secs(1000);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_times(FileTimes::new().set_accessed(read)).unwrap();
    append(&path, "S: x\n\ny\n", None).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(meta.accessed().unwrap(), read);
    assert!(meta.modified().unwrap() > read);
    assert_eq!(meta.permissions().mode() & 0o777, 0o640);
}

/// Three, and the whole of them in the file.
fn three() -> ([Body; 3], String) {
    let bodies = ["S: x\n\none\n", "S: y\n\n", "S: z\n\nFrom\0me\n"].map(body);
    let texts = [("S: x", "one\n"), ("S: y", ""), ("S: z", "From\0me\n")];
    let text = texts.map(|(header, body)| {
        let length = body.len();
        format!("{FROM}\nR: p\n{header}\nContent-Length: {length}\n\n{body}\n")
    });
    (bodies, text.concat())
}

/// Whatever fails, and whoever ends in the middle: all of them, or none, also behind the next delivery.
#[test]
fn every_step_of_a_batch_fails_once() {
    let (bodies, whole) = three();
    for failure in fault_point::FAILURES.into_iter().chain(fault_point::ENDS) {
        for before in ["", OLD, &OLD[..OLD.len() - 1]] {
            for step in 0.. {
                let root = tempfile::tempdir_in("/var/tmp").unwrap();
                let path = root.path().join("box");
                fs::write(&path, before).unwrap();
                fault_point::arm(step, failure);
                let added = append_all(&path, &bodies, None);
                let fired = !fault_point::disarm();
                let has_ended = fired && fault_point::ENDS.contains(&failure);
                let case = format!("{before:?}, step {step}, {failure:?}: {added:?}");
                let after = fs::read_to_string(&path).unwrap();
                let gap = if before.len() + 1 == OLD.len() {
                    "\n"
                } else {
                    ""
                };
                let all = format!("{before}{gap}{whole}");
                match &added {
                    Ok((written, sure)) => {
                        assert_eq!(after, all, "{case}");
                        assert!(
                            sure.is_last && sure.stat.size as usize == all.len(),
                            "{case}"
                        );
                        let mut at = before.len() + gap.len();
                        for one in written {
                            assert_eq!(one.offset as usize, at, "{case}");
                            at += one.size as usize;
                        }
                        assert_eq!(at, all.len(), "{case}");
                    }
                    Err(_) if has_ended => assert!(all.starts_with(&after), "{case}: {after}"),
                    Err(_) => assert_eq!(after, before, "{case}"),
                }
                let lock = path.with_extension("lock");
                assert!(has_ended || !lock.exists(), "{case}");
                let _ = fs::remove_file(lock);
                append(&path, "S: next\n\nn\n", None).unwrap();
                let text = fs::read_to_string(&path).unwrap();
                let next = format!("{FROM}\nR: p\nS: next\nContent-Length: 2\n\nn\n\n");
                let kept = text.strip_suffix(&next).unwrap();
                let starts: Vec<usize> = memchr::memmem::find_iter(all.as_bytes(), FROM)
                    .map(|at| at.max(before.len()))
                    .chain([all.len()])
                    .collect();
                assert!(
                    all.starts_with(kept)
                        && (starts.contains(&kept.len()) || kept.trim_end() == before.trim_end()),
                    "{case}: {text}"
                );
                assert!(added.is_err() || kept == all, "{case}: {text}");
                if !fired {
                    assert!(failure.is_of_writes() || step > 12, "only {step} steps");
                    break;
                }
            }
        }
    }
}

/// One that fails by itself is taken back, and those before it are made sure.
#[test]
fn one_behind_others_fails() {
    for failure in fault_point::FAILURES {
        for step in 0.. {
            let fired = behind_one(|mut open, path, bodies| {
                let first = fs::read_to_string(path).unwrap();
                fault_point::arm(step, failure);
                let second = open.write(&[message(&bodies[1])]);
                let fired = !fault_point::disarm();
                let case = format!("step {step}, {failure:?}: {second:?}");
                let after = fs::read_to_string(path).unwrap();
                assert!(second.is_ok() || after == first, "{case}");
                open.write(&[message(&bodies[2])]).unwrap();
                open.make_sure().unwrap();
                drop(open);
                let all = fs::read_to_string(path).unwrap();
                assert!(
                    all.starts_with(&after) && all.ends_with("From\0me\n\n"),
                    "{case}: {all}"
                );
                // Nothing of it goes later.
                append(path, "S: next\n\nn\n", None).unwrap();
                assert!(
                    fs::read_to_string(path).unwrap().starts_with(&all),
                    "{case}"
                );
                fired
            });
            if !fired {
                assert!(failure.is_of_writes() || step > 3, "only {step} steps");
                break;
            }
        }
    }
}

/// What cannot be taken back is behind nothing that is promised, and goes with the next delivery.
#[test]
fn what_cannot_be_taken_back() {
    behind_one(|mut open, path, bodies| {
        // A file system that goes off in the middle, and comes back.
        fault_point::arm(0, fault_point::Failure::EndWithin);
        assert!(open.write(&[message(&bodies[1])]).is_err());
        fault_point::disarm();
        for body in bodies {
            assert!(open.write(&[message(body)]).is_err());
        }
        assert!(open.make_sure().is_err());
        drop(open);
        append(path, "S: next\n\nn\n", None).unwrap();
        let next = format!("{FROM}\nR: p\nS: next\nContent-Length: 2\n\nn\n\n");
        assert_eq!(fs::read_to_string(path).unwrap(), format!("{OLD}{next}"));
    });
}

/// A note that could not be taken away says nothing of a message that failed: what stands in its place is somebody else's.
#[test]
fn a_note_that_is_left() {
    for step in 0.. {
        let fired = behind_one(|mut open, path, bodies| {
            fault_point::arm(0, fault_point::FAILURES[7]);
            assert!(open.write(&[message(&bodies[1])]).is_err());
            fault_point::disarm();
            fault_point::arm(step, fault_point::ERRNOS[0]);
            let sure = open.make_sure();
            let fired = !fault_point::disarm();
            drop(open);
            if sure.is_ok() {
                let mut text = fs::read_to_string(path).unwrap();
                assert!(text.ends_with("\n\none\n\n"), "step {step}: {text}");
                text.push_str("From z\n\n\0\0\n\n");
                fs::write(path, &text).unwrap();
                append(path, "S: next\n\nn\n", None).unwrap();
                let after = fs::read_to_string(path).unwrap();
                assert!(after.starts_with(&text), "step {step}: {after}");
            }
            fired
        });
        if !fired {
            assert!(step > 3, "only {step} steps");
            break;
        }
    }
}
