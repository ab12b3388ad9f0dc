//! Three that wait for one mbox: whatever fails, each that is answered for is there once, whole, and the others come again.

use super::one::{assert_whole, core, ends, let_time_pass, seen, store};
use super::*;
use crate::deliver::add::add_together;
use crate::deliver::{Earlier, Retry, Saved, Transaction};
use crate::fault::{Code, Fault};
use crate::message::{Flags, Keywords};
use crate::sys::fault_point::{ENDS, FAILURES, Failure};

const PLACE: &str = "home/boxes/old";

/// The last one with a flag and a keyword.
fn recipients() -> [Recipient; 3] {
    let mut all = ["alice+Box/old"; 3].map(recipient);
    all[2].flags = Flags::SEEN;
    all[2].keywords = Keywords::parse("$Junk").unwrap();
    all
}

fn transactions(core: &Core) -> [Transaction; 3] {
    [(); 3].map(|()| core.transaction(message(), 1))
}

fn add(core: &Core, retry: impl Fn(usize) -> Retry) -> Vec<Result<Saved, Fault>> {
    let (recipients, transactions) = (recipients(), transactions(core));
    add_these(core, &transactions, &recipients, retry)
}

fn add_these(
    core: &Core,
    transactions: &[Transaction],
    recipients: &[Recipient],
    retry: impl Fn(usize) -> Retry,
) -> Vec<Result<Saved, Fault>> {
    let waiting = transactions.iter().zip(recipients).enumerate();
    let waiting: Vec<_> = waiting.map(|(at, (it, to))| (it, to, retry(at))).collect();
    add_together(core, &waiting)
}

fn new(_: usize) -> Retry {
    Retry::default()
}

fn uids(results: &[Result<Saved, Fault>]) -> Vec<Option<u32>> {
    results.iter().flatten().map(|saved| saved.uid).collect()
}

/// Lets one step fail. False: there was no such step any more.
fn fails_well(is_in_step: bool, failure: Failure, step: usize) -> bool {
    let store = store(true);
    if !is_in_step {
        fs::remove_dir_all(store.path("home/boxes/.imap/old")).unwrap();
    }
    let core = core(&store, "");
    fault_point::arm(step, failure);
    let results = add(&core, new);
    let fired = !fault_point::disarm();
    let case = format!("in step: {is_in_step}, {failure:?} at {step}: {results:?}");
    let has_ended = fired && ENDS.contains(&failure);
    let stored = results.iter().flatten().count();
    for fault in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(fault.code.is_temporary() && fired, "{case}");
    }
    if !has_ended {
        assert_eq!(seen(&store, PLACE, &case), stored, "{case}");
        if is_in_step {
            assert_whole(&store, &case);
        }
    }
    let known: Vec<u32> = uids(&results).into_iter().flatten().collect();
    assert!(known.is_sorted_by(|one, next| one + 1 == *next), "{case}");
    if stored == 3 && !fired {
        return false;
    }
    let_time_pass(&store);
    let again = add(&self::core(&store, ""), new);
    let case = format!("{case}\nthe next try: {again:?}");
    assert_eq!(again.iter().flatten().count(), 3, "{case}");
    let has = seen(&store, PLACE, &case);
    let most = if has_ended { 6 } else { 3 + stored };
    assert!((3 + stored..=most).contains(&has), "{case}: {has}");
    true
}

#[test]
fn each_that_is_answered_for_is_there_once() {
    if !as_ordinary_user("every_step_fails::batch::each_that_is_answered_for_is_there_once") {
        return;
    }
    for failure in FAILURES.into_iter().chain(ends()) {
        for is_in_step in [true, false] {
            let mut steps = 0;
            while fails_well(is_in_step, failure, steps) {
                steps += 1;
            }
            let is_of_writes = matches!(failure, Failure::Short(_) | Failure::EndWithin);
            assert!(
                steps > if is_of_writes { 0 } else { 12 },
                "{failure:?}: {steps} steps"
            );
        }
    }
}

/// One fails where it is written, or by the batch that it is in: it costs no other its place, and no UID is left out.
#[test]
fn a_batch_that_cannot_be_written_at_once() {
    if !as_ordinary_user("every_step_fails::batch::a_batch_that_cannot_be_written_at_once") {
        return;
    }
    for failure in FAILURES
        .into_iter()
        .filter(|it| matches!(it, Failure::Short(_)))
    {
        let mut all_stored = 0;
        for step in 0.. {
            let store = store(true);
            let core = core(&store, "");
            fault_point::arm(step, failure);
            let results = add(&core, new);
            let fired = !fault_point::disarm();
            let text = fs::read_to_string(store.path(PLACE)).unwrap();
            let case = format!("{failure:?} at {step}: {results:?}\n{text}");
            let uids = uids(&results);
            let is_clean = results.iter().flatten().all(|it| it.remarks.is_empty());
            let are_all = uids == [Some(2), Some(3), Some(4)];
            all_stored += usize::from(fired && is_clean && are_all);
            for uid in uids.into_iter().flatten() {
                assert_eq!(
                    text.matches(&format!("X-UID: {uid}\n")).count(),
                    1,
                    "{case}"
                );
            }
            if !fired {
                break;
            }
        }
        assert!(all_stored > 0, "{failure:?}: none is written by itself");
    }
}

#[test]
fn whoever_is_not_heard_or_known_costs_nobody() {
    if !as_ordinary_user("every_step_fails::batch::whoever_is_not_heard_or_known_costs_nobody") {
        return;
    }
    let store = store(true);
    let core = core(&store, "");
    let before = add(&core, new);
    assert_eq!(uids(&before), [Some(2), Some(3), Some(4)], "{before:?}");
    let saved = before[1].as_ref().unwrap().clone();
    let known = |at: usize| Retry {
        earlier: (at == 1).then(|| Earlier {
            names: Vec::new(),
            saved: Some(saved.clone()),
        }),
        ..Retry::default()
    };
    let (recipients, transactions) = (recipients(), transactions(&core));
    transactions[0].abandon();
    let results = add_these(&core, &transactions, &recipients, known);
    let code = results[0].as_ref().unwrap_err().code;
    assert_eq!(code, Code::NotNow);
    assert!(results[1].as_ref().unwrap().is_again, "{results:?}");
    assert_eq!(results[2].as_ref().unwrap().uid, Some(5), "{results:?}");
    assert_eq!(seen(&store, PLACE, ""), 4);
    assert_whole(&store, "");
}

/// A new file: its first message says what its UIDVALIDITY is, whoever of the batch that is.
#[test]
fn several_in_a_new_file() {
    if !as_ordinary_user("every_step_fails::batch::several_in_a_new_file") {
        return;
    }
    let store = store(true);
    fs::write(store.path(PLACE), "").unwrap();
    let mut known = crate::index::Transaction::default();
    known.mbox_for_tests(&crate::sys::dir::stat(&store.path(PLACE)).unwrap());
    let log = [log_for_tests(2, (0, 0), VALIDITY), known.into_bytes()].concat();
    fs::write(store.path("home/boxes/.imap/old/dovecot.index.log"), log).unwrap();
    let core = core(&store, "");
    let results = add(&core, new);
    assert_eq!(uids(&results), [Some(1), Some(2), Some(3)], "{results:?}");
    let text = fs::read_to_string(store.path(PLACE)).unwrap();
    let base = format!("X-IMAPbase: {VALIDITY} 0000000003\n");
    assert_eq!(
        (
            text.matches("X-IMAPbase").count(),
            text.matches(&base).count()
        ),
        (1, 1),
        "{text}"
    );
    let results = add(&core, new);
    assert_eq!(uids(&results), [Some(4), Some(5), Some(6)], "{results:?}");
}
