//! A part of the way to a mailbox that is exchanged for a symlink between two looks, and is as it was at the second.

use std::os::unix::fs::symlink;

use super::*;
use crate::deliver::{Done, Retry};

const NESTED: &str = "[namespace.nested]\ntype = \"private\"\nseparator = \"/\"\nprefix = \"Nested/\"\n\
                      mail_path = \"~/nested\"\nmailbox_list_layout = \"fs\"\nsubscriptions = false\n";

/// Calls between the two exchanges.
const BETWEEN: [usize; 3] = [0, 1, 3];

fn exchange(one: &Path, other: &Path) {
    let aside = one.with_extension("aside");
    fs::rename(one, &aside).unwrap();
    fs::rename(other, one).unwrap();
    fs::rename(aside, other).unwrap();
}

/// A store with the mailboxes below `root` twice: in the home, and where nobody's link may lead.
fn furnished() -> Store {
    let store = Store::new(true);
    for root in ["home", "elsewhere"] {
        for mailbox in ["Maildir/.Work", "nested/a/b"] {
            for part in ["cur", "new", "tmp"] {
                fs::create_dir_all(store.path(root).join(mailbox).join(part)).unwrap();
            }
        }
        fs::create_dir_all(store.path(root).join("boxes/a")).unwrap();
        fs::write(store.path(root).join("boxes/a/b"), "").unwrap();
    }
    store
}

#[test]
fn nothing_gets_where_the_link_leads() {
    if !as_ordinary_user("every_step_fails::exchanged::nothing_gets_where_the_link_leads") {
        return;
    }
    for (address, part) in [
        ("alice+Work", "Maildir/.Work"),
        ("alice+Work", "Maildir/.Work/new"),
        ("alice+Nested/a/b", "nested/a"),
        ("alice+Box/a/b", "boxes/a"),
        ("alice+Box/a/b", "boxes/a/b"),
    ] {
        for between in BETWEEN {
            let mut stored = 0;
            for step in 0.. {
                let store = furnished();
                let roots = format!(
                    "mail_roots = [\"{}\"]\n{NESTED}",
                    store.path("home").display()
                );
                let core = one::core(&store, &roots);
                let fired = Rc::new(Cell::new(false));
                let (own, swap) = (store.path("home").join(part), store.path("home/swap"));
                symlink(store.path("elsewhere").join(part), &swap).unwrap();
                let fires = Rc::clone(&fired);
                fault_point::meddle(step, move || {
                    fires.set(true);
                    exchange(&own, &swap);
                    fault_point::meddle(between, move || exchange(&own, &swap));
                });
                let outcome = core.deliver(&core.transaction(message(), 1), &recipient(address));
                fault_point::disarm();
                let case = format!("{address} {part}, at {step} and {between} later: {outcome:?}");
                let left = files(&store.path("elsewhere"));
                assert!(!left.iter().any(|it| !it.1.is_empty()), "{case}: {left:?}");
                let is_message =
                    |it: &(PathBuf, Vec<u8>)| it.1.windows(6).any(|it| it == b"a line");
                let messages = files(&store.path("home")).into_iter().filter(is_message);
                let is_saved = matches!(outcome, Outcome::Saved(_));
                assert_eq!(messages.count(), usize::from(is_saved), "{case}");
                stored += usize::from(is_saved);
                if !fired.get() {
                    break;
                }
            }
            assert!(stored > 4, "{address} {part}: only {stored} were stored");
        }
    }
}

/// The next message looks as its mailbox asks for now, whatever RCPT has seen.
#[test]
fn a_mode_that_changes_behind_rcpt() {
    if !as_ordinary_user("every_step_fails::exchanged::a_mode_that_changes_behind_rcpt") {
        return;
    }
    let store = Store::new(true);
    let core = store.core("");
    let maildir = store.path("home/Maildir");
    for (of_mailbox, of_message) in [(0o700, 0o600), (0o770, 0o660), (0o750, 0o640)] {
        core.expect(None, &recipient("alice"));
        fs::set_permissions(&maildir, fs::Permissions::from_mode(of_mailbox)).unwrap();
        let transaction = core.transaction(message(), 1);
        let retry = Retry::default();
        let done = core.deliver_expected(None, &transaction, &recipient("alice"), &retry);
        let Done::Outcome(Outcome::Saved(saved)) = done else {
            panic!("{done:?}");
        };
        assert_eq!(saved.mode, of_message, "{of_mailbox:o}");
    }
}
