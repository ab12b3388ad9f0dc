//! Every step of a delivery fails once, in every way that matters: after each failure nothing of the message stays, the
//! answer is temporary, and the next try delivers it exactly once.
//!
//! Where failures take turns, each run begins with another one: `POSTROOM_SEED`, which it prints, says with which. Each failure at
//! each step with `POSTROOM_FAULTS=all`.

mod again;
mod batch;
mod exchanged;
mod one;
mod published;
mod routed;
mod several;

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use crate::config::Config;
use crate::deliver::{Core, Outcome};
use crate::index::log::{LockMethod, log_for_tests};
use crate::index::{Log, Pair, Walks, log};
use crate::maildir::maildirsize;
use crate::message::body::{BodyWriter, Spool};
use crate::message::{Address, Envelope, Message, Recipient, ReversePath, Trace};
use crate::sys::dir::{self, Dir};
use crate::sys::{fault_point, write_back};

const BODY: &[u8] = b"Subject: one\r\n\r\n.a line\r\nlast\r\n";
const UIDLIST: &str = "3 V1795332733 N5 G86371b0c7d9a026bb73a000083ecc375\n3 :other\n";
const VALIDITY: u32 = 1795332733;
const STORED: &[u8] = b"Subject: one\n\n.a line\nlast\n";

/// Root never touches mail: started by root, the test runs itself again as somebody else. True: this is the one that tests.
fn as_ordinary_user(test: &str) -> bool {
    if !crate::sys::credentials::is_root() {
        return true;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("test");
    // By another process: a child that another test forks meanwhile would hold it open for writing, and it could not be run.
    let mut copy = Command::new("cp");
    copy.arg(std::env::current_exe().unwrap()).arg(&program);
    assert!(copy.status().unwrap().success());
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let seed = seed();
    // Where names are written behind their bytes, where nobody knows, and where files have names from the start.
    let runs = [("", ""), ("1", ""), ("", "1")].map(|(ordered, named)| {
        let mut again = Command::new(&program);
        again
            .args(["--exact", test, "--nocapture"])
            .env("RUST_BACKTRACE", "0")
            .env(write_back::ORDERED, ordered)
            .env(dir::NAMED, named)
            .env(SEED, seed.to_string())
            .current_dir("/")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .gid(20001)
            .uid(20001);
        (ordered, named, again.spawn().unwrap())
    });
    for (ordered, named, run) in runs {
        // What a program says on stderr of each failure is of interest only when one of them is not as it should be.
        let done = run.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        let lines: Vec<&str> = said.lines().collect();
        let end = lines[lines.len().saturating_sub(30)..].join("\n");
        assert!(
            done.status.success(),
            "{SEED}={seed} ordered={ordered} named={named}: {end}"
        );
    }
    false
}

const SEED: &str = "POSTROOM_SEED";

/// With which failure those begin that take turns.
fn seed() -> usize {
    let now = UNIX_EPOCH.elapsed().unwrap().as_secs() as usize;
    let seed = std::env::var(SEED).map_or(now, |it| it.parse().unwrap());
    eprintln!("{SEED}={seed}");
    seed
}

/// A mail root with a private INBOX, a folder and a setgid public mailbox.
struct Store(tempfile::TempDir);

impl Store {
    fn new(with_inbox: bool) -> Store {
        crate::sys::process::clear_umask();
        // In memory where it can be: no power is cut here, and there are thousands of them.
        let memory = Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let store = Store(folder.unwrap());
        fs::create_dir(store.path("home")).unwrap();
        fs::create_dir(store.path("public")).unwrap();
        fs::set_permissions(store.path("public"), fs::Permissions::from_mode(0o2770)).unwrap();
        for part in ["cur", "new", "tmp"] {
            fs::create_dir_all(store.path("public/.info").join(part)).unwrap();
            if with_inbox {
                fs::create_dir_all(store.path("home/Maildir").join(part)).unwrap();
            }
        }
        fs::write(store.path("public/.info/dovecot-acl"), "anyone lip\n").unwrap();
        fs::write(store.path("public/.info/dovecot-uidlist"), UIDLIST).unwrap();
        let log = log_for_tests(2, (0, 0), VALIDITY);
        fs::write(store.path("public/.info/dovecot.index.log"), log).unwrap();
        store
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    fn core(&self, more: &str) -> Core {
        let meta = fs::metadata(self.path("home")).unwrap();
        let text = format!(
            "hostname = \"mx\"\nmail_path = \"~/Maildir\"\nlda_mailbox_autosubscribe = true\n\
             [[userdb]]\nstatic = {{ uid = {}, gid = {}, home = \"{}\" }}\n\
             [namespace.inbox]\ntype = \"private\"\nseparator = \"/\"\nprefix = \"\"\ninbox = true\n\
             [namespace.public]\ntype = \"public\"\nseparator = \"/\"\nprefix = \"Public/\"\nmail_path = \"{}\"\nsubscriptions = false\n\
             [acl]\ndriver = \"vfile\"\n[delivery]\ndetail = \"mailbox\"\non_missing = \"create\"\n{more}",
            meta.uid(),
            meta.gid(),
            self.path("home").display(),
            self.path("public").display()
        );
        match Config::from_str("test.toml", &text) {
            Ok(config) => Core::new(config.delivery),
            Err(errors) => panic!("{errors}"),
        }
    }
}

fn message() -> Arc<Message> {
    let mut body = BodyWriter::new(&Spool::default());
    body.write(BODY).unwrap();
    Arc::new(Message {
        envelope: Envelope {
            sender: ReversePath::Null,
            queue_id: None,
        },
        body: body.finish().unwrap(),
        trace: Trace {
            session: "s".into(),
            received: None,
        },
    })
}

fn recipient(address: &str) -> Recipient {
    Recipient::new(Address::parse(address).unwrap())
}

/// All files of a tree with their content.
fn files(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found
}

/// The messages of a store: everything in `new`, `cur` and `tmp`.
fn messages(store: &Store) -> Vec<(PathBuf, Vec<u8>)> {
    let in_maildir = |path: &Path| {
        let folder = path
            .parent()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str());
        matches!(folder, Some("new" | "cur" | "tmp"))
    };
    files(store.0.path())
        .into_iter()
        .filter(|(path, _)| in_maildir(path))
        .collect()
}

/// Whatever fails, the account of a quota says what is there, or is gone and will be made anew, or the log says more.
#[test]
fn the_account_of_a_quota_is_right_or_gone() {
    if !as_ordinary_user("every_step_fails::the_account_of_a_quota_is_right_or_gone") {
        return;
    }
    let quota = "[quota]\ndriver = \"maildir\"\nstorage_size = \"1M\"\n";
    for failure in fault_point::FAILURES {
        for before in [0, 1] {
            let mut step = 0;
            loop {
                let store = Store::new(true);
                let core = store.core(quota);
                let deliver = || core.deliver(&core.transaction(message(), 1), &recipient("alice"));
                for _ in 0..before {
                    assert!(matches!(deliver(), Outcome::Saved(_)));
                }
                fault_point::arm(step, failure);
                let outcome = deliver();
                let fired = !fault_point::disarm();
                let case = format!("{before} before, step {step}, {failure:?}: {outcome:?}");
                let is_saved = matches!(outcome, Outcome::Saved(_));
                let stored = messages(&store);
                assert_eq!(stored.len(), before + usize::from(is_saved), "{case}");
                let root = store.path("home/Maildir");
                if let Ok(account) = fs::read(root.join(maildirsize::FILE)) {
                    let mode = fs::metadata(root.join(maildirsize::FILE)).unwrap().mode();
                    assert_eq!(mode & 0o777, 0o666, "{case}: not that of its directory");
                    let (usage, _) = maildirsize::parse(&account, "1048576S").unwrap();
                    let bytes: usize = stored.iter().map(|(_, bytes)| bytes.len()).sum();
                    let real = (bytes as i64, stored.len() as i64);
                    // Behind, where its directory could not even be opened: the log line says so.
                    let is_said = case.contains("quota of alice: ");
                    let is_behind = is_said && usage.messages + 1 == real.1;
                    let is_right = (usage.bytes, usage.messages) == real;
                    assert!(is_right || is_behind, "{case}: {usage:?}");
                }
                let names = Dir::open(&root).unwrap().names().unwrap();
                let left = names.iter().find(|it| it.starts_with("maildirsize."));
                assert_eq!(left, None, "{case}");
                if !fired {
                    assert!(is_saved, "{case}");
                    assert!(failure.is_of_writes() || step > 10, "{case}");
                    break;
                }
                step += 1;
            }
        }
    }
}

/// The client goes while the disk takes the bytes: only the name that is being made then is made nevertheless.
#[test]
fn a_client_that_goes_before_its_message_is_visible() {
    if !as_ordinary_user("every_step_fails::a_client_that_goes_before_its_message_is_visible") {
        return;
    }
    let mut stored = Vec::new();
    for step in 0.. {
        let store = Store::new(true);
        let core = store.core("");
        let transaction = core.transaction(message(), 1);
        let was_visible = Rc::new(Cell::new(false));
        fault_point::meddle(step, {
            let (heard, was_visible) = (transaction.heard().clone(), Rc::clone(&was_visible));
            let new = store.path("home/Maildir/new");
            move || {
                was_visible.set(fs::read_dir(new).unwrap().count() > 0);
                heard.abandon();
            }
        });
        let outcome = core.deliver(&transaction, &recipient("alice"));
        if fault_point::disarm() {
            break;
        }
        if matches!(outcome, Outcome::Saved(_)) && !was_visible.get() {
            stored.push(step);
        }
    }
    assert_eq!(stored.len(), 1, "{stored:?}");
}

/// Its mailbox is renamed or deleted at any moment, and another one gets its name: the message is in the mailbox that it was
/// seen in before that, or in the one that has the name now, or it comes again. No list names a file that is elsewhere; one that
/// was taken back is nowhere.
#[test]
fn another_mailbox_takes_the_name() {
    if !as_ordinary_user("every_step_fails::another_mailbox_takes_the_name") {
        return;
    }
    let public = |store: &Store, name: &str| store.path("public").join(name);
    for former in [".former", "..DOVECOT-TRASHED"] {
        let mut step = 0;
        loop {
            let (store, was_seen) = (Store::new(true), Rc::new(Cell::new(false)));
            let core = store.core("");
            let (info, moved) = (public(&store, ".info"), public(&store, former));
            fault_point::meddle(step, {
                let was_seen = Rc::clone(&was_seen);
                move || {
                    was_seen.set(fs::read_dir(info.join("new")).unwrap().count() > 0);
                    fs::rename(&info, moved).unwrap();
                    for part in ["cur", "new", "tmp"] {
                        fs::create_dir_all(info.join(part)).unwrap();
                    }
                    fs::write(info.join("dovecot-acl"), "anyone lip\n").unwrap();
                    fs::write(info.join("dovecot-uidlist"), UIDLIST).unwrap();
                }
            });
            let to = recipient("alice+Public/info");
            let outcome = core.deliver(&core.transaction(message(), 1), &to);
            let fired = !fault_point::disarm();
            let case = format!("{former}, step {step}: {outcome:?}");
            let files = |mailbox: &str| {
                let new = fs::read_dir(public(&store, mailbox).join("new"));
                let names = new.into_iter().flatten();
                names
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .collect::<Vec<_>>()
            };
            let (there, elsewhere) = (files(".info"), files(former));
            let is_taken_back = matches!(outcome, Outcome::Deferred(_));
            match outcome {
                Outcome::Saved(_) => {
                    assert_eq!(there.len() + elsewhere.len(), 1, "{case}");
                    assert!(elsewhere.is_empty() || was_seen.get(), "{case}");
                }
                Outcome::Deferred(_) => assert_eq!(messages(&store), vec![], "{case}"),
                Outcome::Rejected(_) => panic!("{case}"),
            }
            for (mailbox, files) in [(".info", there), (former, elsewhere)] {
                let list = fs::read_to_string(public(&store, mailbox).join("dovecot-uidlist"));
                let list = list.unwrap_or_default();
                let added = list.strip_prefix(UIDLIST).unwrap_or_default().lines();
                let named: Vec<_> = added.filter_map(|line| line.split_once(" :")).collect();
                let has = |(_, name): &(&str, &str)| files.iter().any(|file| file == name);
                assert!(is_taken_back || named.iter().all(has), "{case}: {list}");
            }
            if !fired {
                assert!(step > 20, "only {step} steps");
                break;
            }
            step += 1;
        }
    }
}

/// Where control files and index lie apart, whatever is made for a mailbox that is elsewhere by then is gone again: it would
/// be in the way of one that gets the name.
#[test]
fn control_files_apart_follow_no_other_mailbox() {
    if !as_ordinary_user("every_step_fails::control_files_apart_follow_no_other_mailbox") {
        return;
    }
    for has_successor in [false, true] {
        let mut step = 0;
        loop {
            let store = Store::new(true);
            let root = store.0.path().to_owned();
            for file in ["dovecot-uidlist", "dovecot.index.log"] {
                fs::remove_file(root.join("public/.info").join(file)).unwrap();
            }
            let core = store.core(&format!(
                "[namespace.apart]\ntype = \"public\"\nseparator = \"/\"\nprefix = \"Apart/\"\nmail_path = \"{0}/public\"\n\
                 mail_control_path = \"{0}/control\"\nmail_index_path = \"{0}/index\"\nsubscriptions = false\n",
                root.display()
            ));
            let at = root.clone();
            fault_point::meddle(step, move || {
                for place in ["public", "control", "index"] {
                    let place = at.join(place);
                    let _ = fs::rename(place.join(".info"), place.join(".former"));
                }
                if has_successor {
                    let info = at.join("public/.info");
                    for part in ["cur", "new", "tmp"] {
                        fs::create_dir_all(info.join(part)).unwrap();
                    }
                    fs::write(info.join("dovecot-acl"), "anyone lip\n").unwrap();
                    fs::write(info.join("cur/1.x.mx:2,"), "x\n").unwrap();
                    fs::create_dir_all(at.join("index/.info")).unwrap();
                    let mut log = log_for_tests(2, (0, 0), 77);
                    let mut transaction = crate::index::Transaction::default();
                    transaction.append(&[(9, 0)]);
                    log.extend(transaction.into_bytes());
                    fs::write(at.join("index/.info/dovecot.index.log"), log).unwrap();
                }
            });
            let outcome = core.deliver(
                &core.transaction(message(), 1),
                &recipient("alice+Apart/info"),
            );
            let fired = !fault_point::disarm();
            let case = format!("{has_successor}, step {step}: {outcome:?}");
            if !fired {
                assert!(step > 20, "only {step} steps");
                break;
            }
            let has = |place: &str| root.join(place).exists();
            // A message that came there before it was renamed has taken its list along.
            if !has("public/.info") {
                assert!(!has("control/.info"), "{case}");
            }
            if has_successor {
                let messages = fs::read_dir(root.join("public/.info/new")).unwrap().count();
                let list = fs::read_to_string(root.join("control/.info/dovecot-uidlist"));
                assert!(messages > 0 || list.is_err(), "{case}: {list:?}");
            }
            step += 1;
        }
    }
}

/// A mailbox that the delivery makes is renamed by its user at once: it is his, with its ACL and all its parts.
#[test]
fn a_new_mailbox_is_renamed() {
    if !as_ordinary_user("every_step_fails::a_new_mailbox_is_renamed") {
        return;
    }
    let mut step = 0;
    loop {
        let store = Store::new(true);
        fs::write(store.path("public/.info/dovecot-acl"), "anyone lipk\n").unwrap();
        let core = store.core("");
        let (made, other) = (store.path("public/.info.Sub"), store.path("public/.Other"));
        fault_point::meddle(step, {
            let other = other.clone();
            move || drop(fs::rename(made, other))
        });
        let to = recipient("alice+Public/info/Sub");
        let outcome = core.deliver(&core.transaction(message(), 1), &to);
        let fired = !fault_point::disarm();
        for part in ["new", "cur", "tmp", "dovecot-acl"] {
            let is_whole = !other.exists() || other.join(part).exists();
            assert!(is_whole, "step {step}: no {part}: {outcome:?}");
        }
        let is_saved = matches!(outcome, Outcome::Saved(_));
        assert_eq!(messages(&store).len(), usize::from(is_saved), "step {step}");
        if !fired {
            assert!(step > 60, "only {step} steps");
            break;
        }
        step += 1;
    }
}

#[test]
fn many_at_once_into_one_mailbox() {
    if !as_ordinary_user("every_step_fails::many_at_once_into_one_mailbox") {
        return;
    }
    let store = Store::new(false);
    let core = store.core("");
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let outcome =
                        core.deliver(&core.transaction(message(), 1), &recipient("alice+Work"));
                    assert!(matches!(outcome, Outcome::Saved(_)), "{outcome:?}");
                }
            });
        }
    });
    let stored = messages(&store);
    assert_eq!(stored.len(), 320);
    assert!(
        stored
            .iter()
            .all(|(path, bytes)| bytes == STORED && path.parent().unwrap().ends_with("new"))
    );
}

#[test]
fn copies_of_the_same_bytes_are_hard_links() {
    if !as_ordinary_user("every_step_fails::copies_of_the_same_bytes_are_hard_links") {
        return;
    }
    let store = Store::new(true);
    let core = store.core("recipient_headers = \"single\"\n");
    let transaction = core.transaction(message(), 3);
    for address in ["alice", "alice+Work", "alice+Public/info"] {
        let outcome = core.deliver(&transaction, &recipient(address));
        assert!(matches!(outcome, Outcome::Saved(_)), "{outcome:?}");
    }
    drop(transaction);
    let mut links: Vec<_> = messages(&store)
        .iter()
        .map(|(path, _)| fs::metadata(path).unwrap().nlink())
        .collect();
    links.sort();
    // INBOX and Work have one mode; the public mailbox has another, so it has a copy of its own.
    assert_eq!(links, [1, 2, 2]);
}

/// Somebody stores in the mailbox that a failing delivery has made, and when that one hides it somebody else makes one of its name:
/// the message is in the mailbox of this name.
#[test]
fn a_mailbox_that_goes_keeps_no_message() {
    use crate::mailbox::location::Layout;
    use crate::mailbox::path::Paths;
    use crate::mailbox::permission::Permission;
    use crate::maildir::create::create;
    for step in 0.. {
        let root = tempfile::tempdir().unwrap();
        let mailbox = root.path().join(".Work");
        let paths = Paths {
            mailbox: mailbox.clone(),
            ..Paths::for_tests(root.path(), &mailbox)
        };
        let permission = Permission::private(root.path());
        let created = create(&paths, &permission, Layout::MaildirPlusPlus, None).unwrap();
        fs::write(mailbox.join("new/1.b.mx"), "answered for").unwrap();
        fault_point::meddle(step, {
            let mailbox = mailbox.clone();
            move || {
                for part in ["cur", "new", "tmp"] {
                    fs::create_dir_all(mailbox.join(part)).unwrap();
                }
            }
        });
        drop(created);
        let fired = !fault_point::disarm();
        assert!(mailbox.join("new/1.b.mx").exists(), "step {step}");
        if !fired {
            assert!(step > 4, "only {step} steps");
            break;
        }
    }
}
