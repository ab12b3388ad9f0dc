//! A header route: whatever keeps its mailbox from taking the message, at whatever step, the message is there once, or comes again.

use super::one::{BOXES, let_time_pass, seen, store};
use super::*;

const INBOX: &str = "home/Maildir";

#[test]
fn a_message_of_a_route_is_there_once() {
    if !as_ordinary_user("every_step_fails::routed::a_message_of_a_route_is_there_once") {
        return;
    }
    // the mailbox of the route; its flags; where it is; what the log says where INBOX stands in behind the look
    for (mailbox, flags, place, why) in [
        (
            "Public/info",
            "",
            "public/.info",
            "make a message visible in",
        ),
        (
            "Public/info",
            "\"\\\\Seen\"",
            "public/.info",
            "make a message visible in",
        ),
        ("Box/old", "", "home/boxes/old", "append to"),
    ] {
        for errno in fault_point::REFUSALS {
            let mut instead = 0;
            for step in 0.. {
                let store = store(true);
                let core = store.core(&format!(
                    "{BOXES}[[route]]\nheader = \"Subject\"\nmailbox = \"{mailbox}\"\nflags = [{flags}]\n"
                ));
                let deliver = || core.deliver(&core.transaction(message(), 1), &recipient("alice"));
                fault_point::arm(step, errno);
                let outcome = deliver();
                let fired = !fault_point::disarm();
                let case = format!("{mailbox} {flags}, step {step}, errno {errno}: {outcome:?}");
                let copies = || [INBOX, place].map(|it| seen(&store, it, &case));
                match &outcome {
                    Outcome::Saved(saved) => {
                        let is_inbox = saved.mailbox == "INBOX";
                        let want = [is_inbox, !is_inbox].map(usize::from);
                        assert_eq!(copies(), want, "{case}");
                        let said = saved.instead_of.as_ref().map(|(_, why)| why.as_str());
                        assert_eq!(said.is_some(), is_inbox, "{case}");
                        // Its name may be there without its bytes.
                        let was_seen = said.is_some_and(|it| it.starts_with("sync /"));
                        assert!(!was_seen, "{case}");
                        instead += usize::from(said.is_some_and(|it| it.contains(why)));
                    }
                    Outcome::Deferred(_) => {
                        assert_eq!(copies(), [0, 0], "{case}");
                        let_time_pass(&store);
                        let again = deliver();
                        assert!(matches!(again, Outcome::Saved(_)), "{case}\n{again:?}");
                        assert_eq!(copies().iter().sum::<usize>(), 1, "{case}");
                    }
                    Outcome::Rejected(_) => panic!("{case}"),
                }
                if !fired {
                    break;
                }
            }
            assert!(instead > 0, "{mailbox} {flags} {errno}");
        }
    }
}
