use std::time::Instant;

use super::*;
use crate::message::body::{BodyWriter, Spool};
use crate::message::{Address, ReversePath, Trace};
use crate::run::wire::packed;

const DAY: Duration = Duration::from_secs(86400);

fn ledger(path: Option<PathBuf>) -> Arc<Ledger> {
    remembering(Duration::ZERO, path)
}

fn remembering(window: Duration, path: Option<PathBuf>) -> Arc<Ledger> {
    let ledger = Ledger::open(Settings {
        window,
        alike: DAY,
        is_asked_at_rcpt: false,
        is_durable: true,
        path,
    });
    ledger.unwrap()
}

fn message() -> Message {
    let mut body = BodyWriter::digesting(&Spool::default());
    body.write(b"Message-ID: <one@x.test>\r\n\r\nbody\r\n")
        .unwrap();
    Message {
        envelope: Envelope {
            sender: ReversePath::Null,
            queue_id: None,
        },
        body: body.finish().unwrap(),
        trace: Trace {
            session: "t".into(),
            received: None,
        },
    }
}

async fn begin(ledger: &Arc<Ledger>, message: &Message, place: &str) -> Begun {
    let recipient = Recipient::new(Address::parse("alice@x.test").unwrap());
    let places = [place.to_owned()];
    let begun = ledger.begin(message, &recipient, &places, "name".into());
    begun.await.unwrap().unwrap()
}

fn stored(begun: Begun, place: &str) {
    let saved = Saved {
        place: place.into(),
        ..Saved::empty("INBOX".into(), "alice".into())
    };
    begun.end(&Outcome::Saved(saved));
}

fn run(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().build().unwrap().block_on(test);
}

/// What is told of a delivery fits into a packet, however many mailboxes have a message with its Message-ID.
#[test]
fn a_message_id_in_many_mailboxes() {
    let folder = tempfile::tempdir().unwrap();
    for path in [None, Some(folder.path().join("ledger"))] {
        let (ledger, message) = (ledger(path), message());
        run(async {
            let place = |user: usize| format!("/srv/mail/example.org/user{user}/Maildir/.Lists");
            for user in 0..2000 {
                let place = place(user);
                stored(begin(&ledger, &message, &place).await, &place);
            }
            for (user, known) in [(7, 1), (1999, 1), (2000, 0)] {
                let begun = begin(&ledger, &message, &place(user)).await;
                let retry = &begun.retry;
                let places: Vec<_> = retry.alike.iter().map(|it| it.place.clone()).collect();
                let case = format!("{user}: {places:?}");
                assert_eq!(places, vec![place(user); known], "{case}");
                assert!(packed(retry).unwrap().len() < 1000, "{case}");
            }
        });
    }
}

/// Killed before it has answered; the retry finds the file, and another address leads to the same mailbox.
#[test]
fn a_message_id_of_what_a_retry_has_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    // the name that the retry finds it by, if it is not by its Message-ID
    for (path, file, known) in [
        (None, "name,S=1,W=2", 1),
        (Some(path), "name,S=1,W=2", 1),
        (None, "", 0),
    ] {
        let (ledger, message) = (remembering(DAY, path), message());
        run(async {
            drop(begin(&ledger, &message, "here").await);
            let found = Saved {
                place: "here".into(),
                file: file.into(),
                is_again: true,
                ..Saved::empty("INBOX".into(), "alice".into())
            };
            let retry = begin(&ledger, &message, "here").await;
            retry.end(&Outcome::Saved(found));
            let other = Recipient::new(Address::parse("team@x.test").unwrap());
            let places = ["here".to_owned()];
            let begun = ledger.begin(&message, &other, &places, "other".into());
            let begun = begun.await.unwrap().unwrap();
            assert_eq!(begun.retry.alike.len(), known, "{file}: {begun:?}");
        });
    }
}

/// The database cannot be had: the next server, which has it, cannot know what this one has stored.
#[test]
fn what_was_stored_beside_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    std::fs::create_dir(&path).unwrap();
    let open = || remembering(DAY, Some(path.clone()));
    let (first, mark) = (open(), folder.path().join("ledger.doubt"));
    assert!(first.doubt.holds());
    let long_ago = || {
        let mark = std::fs::File::options().append(true).open(&mark).unwrap();
        mark.set_modified(UNIX_EPOCH).unwrap();
    };
    let is_marked = || {
        let changed = std::fs::metadata(&mark).unwrap().modified().unwrap();
        changed.elapsed().unwrap() < DAY
    };
    let began = Instant::now();
    let wait = || {
        while !is_marked() {
            assert!(began.elapsed() < DAY / 1440, "nothing is marked");
            thread::sleep(Duration::from_millis(1));
        }
    };
    wait();
    long_ago();
    run(async { stored(begin(&first, &message(), "here").await, "here") });
    wait();
    std::fs::remove_dir(&path).unwrap();
    assert!(open().doubt.holds());
}

/// The disk of the database hangs: what waits for it is bounded, and nobody waits for more.
#[test]
fn a_queue_that_is_full() {
    let (thread, requests) = mpsc::sync_channel(1);
    let mut ledger = Arc::into_inner(remembering(DAY, None)).unwrap();
    ledger.settings.is_asked_at_rcpt = true;
    ledger.rows = Keeper::File(thread);
    let ledger = Arc::new(ledger);
    let id = || Id {
        key: [1; 32],
        queue_id: String::new(),
    };
    ledger.ask(Request::Forget(id()));
    assert!(!ledger.doubt.holds());
    run(async {
        let begun = begin(&ledger, &message(), "here").await;
        assert!(begun.is_doubtful());
        let recipient = Recipient::new(Address::parse("bob@x.test").unwrap());
        assert!(ledger.may_have(&message().envelope, &recipient).await);
        stored(begun, "here");
    });
    assert_eq!(requests.try_iter().count(), 1);
}

#[test]
fn a_mailbox_that_hangs() {
    let (ledger, message) = (ledger(None), message());
    run(async {
        let hangs = begin(&ledger, &message, "here").await;
        let began = Instant::now();
        // Another mailbox does not wait for it.
        stored(begin(&ledger, &message, "there").await, "there");
        assert!(began.elapsed() < ALIKE_PATIENCE);
        // Who comes for the same one does, not for ever, and is remembered.
        stored(begin(&ledger, &message, "here").await, "here");
        assert!(began.elapsed() >= ALIKE_PATIENCE);
        drop(hangs);
        let third = begin(&ledger, &message, "here").await;
        assert_eq!(third.retry.alike.len(), 1);
        drop(third);
        assert!(ledger.busy().is_empty());
    });
}
