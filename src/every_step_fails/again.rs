//! A message that is sent again after a step of its delivery has failed, or of the one before.

use super::*;
use crate::deliver::{Done, Retry};
use crate::run::ledger::{Begun, Ledger, Settings};
use crate::sys::fault_point::Failure;

/// Written down as one that begins; the MTA says no queue id in the first one.
fn begin(ledger: &Arc<Ledger>, message: &Message, name: &str) -> Begun {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().unwrap();
    let recipient = recipient("alice");
    let begun = ledger.begin(message, &recipient, &[], name.into());
    runtime.block_on(begun).unwrap().unwrap()
}

fn message_of(queue_id: &str) -> Arc<Message> {
    let mut body = BodyWriter::digesting(&Spool::default());
    body.write(b"Message-ID: <one@x.test>\r\n\r\nbody\r\n")
        .unwrap();
    let mut message = Arc::into_inner(message()).unwrap();
    message.body = body.finish().unwrap();
    message.envelope.queue_id = Some(queue_id.into());
    Arc::new(message)
}

fn deliver(core: &Core, message: &Arc<Message>, retry: &Retry) -> Outcome {
    let transaction = core.transaction(Arc::clone(message), 1);
    match core.deliver_expected(None, &transaction, &recipient("alice"), retry) {
        Done::Outcome(outcome) => outcome,
        parcel => panic!("{parcel:?}"),
    }
}

/// A disk that fails tells it once: the next sync says that all is well. Whatever fails from a step on, the removal of the name too,
/// no retry takes what is there for a message that was stored.
#[test]
fn a_name_that_was_not_made_durable_proves_nothing() {
    if !as_ordinary_user("every_step_fails::again::a_name_that_was_not_made_durable_proves_nothing")
    {
        return;
    }
    // Whether the file of the first one is there, which was killed before anybody heard of its end.
    for (is_there, in_file) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut doubted = 0;
        for step in 0.. {
            let store = Store::new(true);
            let (core, message) = (store.core(""), message_of("Q"));
            let ledger = Ledger::open(Settings {
                window: Duration::from_secs(1000),
                alike: Duration::ZERO,
                is_asked_at_rcpt: true,
                is_durable: true,
                path: in_file.then(|| store.path("home/ledger")),
            });
            let ledger = ledger.unwrap();
            drop(begin(&ledger, &message_of(""), "first"));
            if is_there {
                let first = store.path("home/Maildir/new/first,S=27,W=32");
                fs::write(first, STORED).unwrap();
            }
            let second = begin(&ledger, &message, "second");
            fault_point::arm(step, Failure::End);
            let outcome = deliver(&core, &message, &second.retry);
            let fired = !fault_point::disarm();
            second.end(&outcome);
            one::let_time_pass(&store);
            let left = fs::read_dir(store.path("home/Maildir/new")).unwrap();
            let mut left = left.map(|it| it.unwrap().file_name());
            let is_left = left.any(|it| it.to_string_lossy().starts_with("second"));
            let case = format!("{is_there} {in_file}, step {step}: {outcome:?}");
            let is_doubtful = match &outcome {
                Outcome::Deferred(fault) => fault.is_not_durable,
                _ => false,
            };
            let third = begin(&ledger, &message, "third");
            let again = deliver(&core, &message, &third.retry);
            let Outcome::Saved(saved) = &again else {
                panic!("{case}\nthe next try: {again:?}");
            };
            // One whose name could not be taken back is there, and durable unless its sync has failed.
            let is_known = matches!(outcome, Outcome::Saved(_)) || is_there || is_left;
            assert_eq!(
                saved.is_again,
                is_known && !is_doubtful,
                "{case}\nthe next try: {again:?}"
            );
            doubted += usize::from(is_doubtful);
            if !fired {
                break;
            }
        }
        assert!(doubted > 1, "{is_there}: only {doubted} steps");
    }
}

/// A file server goes away while it makes the name: whether it has, the next try sees.
#[test]
fn a_name_that_may_have_been_made_is_looked_for() {
    if !as_ordinary_user("every_step_fails::again::a_name_that_may_have_been_made_is_looked_for") {
        return;
    }
    let mut unknown = 0;
    for step in 0.. {
        let store = Store::new(true);
        let (core, message, ledger) = (store.core(""), message_of("Q"), remembering());
        let first = begin(&ledger, &message, "first");
        fault_point::arm(step, Failure::End);
        let outcome = deliver(&core, &message, &first.retry);
        if fault_point::disarm() {
            break;
        }
        first.end(&outcome);
        if outcome.fault().is_some_and(|it| it.may_be_stored) {
            unknown += 1;
            left_by_the_first(&store);
            let second = begin(&ledger, &message, "second");
            let again = deliver(&core, &message, &second.retry);
            let is_again = matches!(&again, Outcome::Saved(saved) if saved.is_again);
            assert!(
                is_again,
                "step {step}: {outcome:?}\nthe next try: {again:?}"
            );
        }
    }
    assert!(
        unknown > 1,
        "the name, and what is asked behind the sync: {unknown}"
    );
}

/// A reader moves the message while a retry looks for it: it is there once, whoever has seen it where.
#[test]
fn a_message_that_is_read_meanwhile_is_there_once() {
    if !as_ordinary_user("every_step_fails::again::a_message_that_is_read_meanwhile_is_there_once")
    {
        return;
    }
    let mut missed = 0;
    for step in 0.. {
        let store = Store::new(true);
        let (core, message) = (store.core(""), message_of("Q"));
        let ledger = remembering();
        drop(begin(&ledger, &message, "first"));
        let first = left_by_the_first(&store);
        let second = begin(&ledger, &message, "second");
        let read = store.path("home/Maildir/cur/first,S=27,W=32:2,S");
        fault_point::meddle(step, move || fs::rename(first, read).unwrap());
        let outcome = deliver(&core, &message, &second.retry);
        let fired = !fault_point::disarm();
        second.end(&outcome);
        let third = begin(&ledger, &message, "third");
        let again = deliver(&core, &message, &third.retry);
        let case = format!("step {step}: {outcome:?}\nthe next try: {again:?}");
        for outcome in [&outcome, &again] {
            match outcome {
                Outcome::Saved(saved) => assert!(saved.is_again, "{case}"),
                Outcome::Deferred(fault) => assert!(!fault.is_not_durable, "{case}"),
                other => panic!("{case}: {other:?}"),
            }
        }
        assert!(matches!(again, Outcome::Saved(_)), "{case}");
        missed += usize::from(matches!(outcome, Outcome::Deferred(_)));
        if !fired {
            break;
        }
    }
    assert!(missed > 0, "no step at which it is looked for in vain");
}

fn remembering() -> Arc<Ledger> {
    let ledger = Ledger::open(Settings {
        window: Duration::from_secs(1000),
        alike: Duration::ZERO,
        is_asked_at_rcpt: true,
        is_durable: true,
        path: None,
    });
    ledger.unwrap()
}

/// A message of a delivery before this one, of which nobody knows the end.
fn left_by_the_first(store: &Store) -> PathBuf {
    let first = store.path("home/Maildir/new/first,S=27,W=32");
    fs::write(&first, STORED).unwrap();
    first
}

/// A retry has found the message, and its answer is lost too; then its reader files it elsewhere.
#[test]
fn what_a_retry_has_found_is_known_from_then_on() {
    if !as_ordinary_user("every_step_fails::again::what_a_retry_has_found_is_known_from_then_on") {
        return;
    }
    let store = Store::new(true);
    let (core, message, ledger) = (store.core(""), message_of("Q"), remembering());
    drop(begin(&ledger, &message, "first"));
    let first = left_by_the_first(&store);
    for name in ["second", "third"] {
        let retry = begin(&ledger, &message, name);
        let outcome = deliver(&core, &message, &retry.retry);
        let is_again = matches!(&outcome, Outcome::Saved(saved) if saved.is_again);
        assert!(is_again, "{name}: {outcome:?}");
        retry.end(&outcome);
        let _ = fs::remove_file(&first);
    }
}

/// RCPT has opened it, and somebody renames it before the message comes: what is said is said of what has its name then.
#[test]
fn a_mailbox_that_is_renamed_takes_its_messages_along() {
    if !as_ordinary_user(
        "every_step_fails::again::a_mailbox_that_is_renamed_takes_its_messages_along",
    ) {
        return;
    }
    let store = Store::new(true);
    let (core, message, ledger) = (store.core(""), message_of("Q"), remembering());
    drop(begin(&ledger, &message, "first"));
    left_by_the_first(&store);
    core.expect(None, &recipient("alice"));
    let mailbox = store.path("home/Maildir");
    fs::rename(&mailbox, store.path("home/Old")).unwrap();
    for part in ["cur", "new", "tmp"] {
        fs::create_dir_all(mailbox.join(part)).unwrap();
    }
    let second = begin(&ledger, &message, "second");
    let outcome = deliver(&core, &message, &second.retry);
    let Outcome::Saved(saved) = &outcome else {
        panic!("{outcome:?}");
    };
    assert!(!saved.is_again, "{saved:?}");
    assert!(mailbox.join("new").join(&saved.file).exists(), "{saved:?}");
}

/// RCPT has seen a mailbox without a part, which the delivery makes: it looks again at what has failed, but not at a sync.
#[test]
fn a_failed_sync_is_not_asked_again() {
    if !as_ordinary_user("every_step_fails::again::a_failed_sync_is_not_asked_again") {
        return;
    }
    let mut doubted = 0;
    for step in 0.. {
        let store = Store::new(true);
        let (core, message, ledger) = (store.core(""), message_of("Q"), remembering());
        drop(begin(&ledger, &message, "first"));
        left_by_the_first(&store);
        fs::remove_dir(store.path("home/Maildir/tmp")).unwrap();
        core.expect(None, &recipient("alice"));
        let second = begin(&ledger, &message, "second");
        fault_point::arm(step, fault_point::ERRNOS[0]);
        let outcome = deliver(&core, &message, &second.retry);
        if fault_point::disarm() {
            break;
        }
        let is_doubtful = matches!(&outcome, Outcome::Deferred(fault) if fault.is_not_durable);
        doubted += usize::from(is_doubtful);
    }
    assert_eq!(doubted, 2, "of the file and of its directory");
}
