//! The delivery core: plan, then do.
//!
//! 1. [`resolve`]: address -> user -> the mailbox wanted and what may stand in for it. Asks userdbs, touches no mail.
//! 2. [`inspect`]: what is there, what is allowed, what would the file look like -> [`Plan`] and [`Report`]. Reads only.
//! 3. [`carry_out`]: prepare, publish together with whoever waits for the same mailbox, settle -> [`Outcome`].
//!
//! RCPT, `explain` and `--dry-run` stop after the second step, a delivery runs all three: there is no other path.
//! Plain blocking code; it knows nothing of LMTP, of pipes or of processes.
//!
//! | first: who, and which mailbox | |
//! |---|---|
//! | [`address`], [`map`] | an address becomes a user and a name; mailboxes with addresses of their own |
//! | [`route`] | a field of the header sends elsewhere |
//! | [`placement`] | which server has it |
//! | [`directory`] | users, rules and groups, asked here or answered by somebody else |
//! | [`targets`] | what comes of it: plain data |
//!
//! | second: what is there | |
//! |---|---|
//! | [`quota`], [`size`] | is there room, is it too large |
//! | [`roots`] | where the mailboxes of a user or a namespace lie |
//! | [`recent`] | what was looked at and opened a moment ago |
//! | [`report`], `forecast` | the steps of the decision, for RCPT and for people |
//!
//! | third: the doing | |
//! |---|---|
//! | [`retry`] | is it there already |
//! | [`header`] | the fields on top |
//! | [`queue`], [`publish`], [`place`], [`busy`] | Maildir: together with others, visible and durable, UIDs and index, locks |
//! | [`add`] | the same for an mbox |
//! | [`parcel`], [`program`] | mailboxes that only Dovecot writes |
//! | [`announce`], [`warning`] | who is told of a new mailbox, and of one that is nearly full |
//! | [`outcome`] | what came of it: plain data |

pub mod add;
pub mod address;
pub mod announce;
pub mod busy;
pub mod carry_out;
pub mod directory;
mod forecast;
pub mod header;
pub mod inspect;
pub mod map;
pub mod outcome;
pub mod parcel;
pub mod place;
pub mod placement;
pub mod program;
pub mod publish;
pub mod queue;
pub mod quota;
pub mod recent;
pub mod report;
pub mod resolve;
pub mod retry;
pub mod roots;
pub mod route;
pub mod settings;
pub mod size;
pub mod targets;
pub mod warning;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use crate::fault::{Code, Fault};
use crate::index::Walks;
use crate::maildir::filename::Names;
use crate::mbox::open::Key;
use crate::message::{Message, Recipient};
use crate::sys;
use crate::sys::credentials::{self, Credentials};

pub use address::user_of;
pub use carry_out::Transaction;
pub use directory::{Answers, Directory, Remembered};
use inspect::Plan;
pub use outcome::{Outcome, Saved};
pub use parcel::{Done, Parcel};
use recent::Recent;
pub use report::{Line, Report};
pub use retry::{Alike, Earlier, Retry};
pub use roots::{Root, inbox_of, is_closed, mailbox_of, mailboxes_of, own, roots_of};
pub use settings::Settings;
pub use targets::{Target, Targets};

/// The delivery core with its settings: built once, shared by all deliveries.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    /// By device and inode of `new/`.
    maildirs: queue::Queues<(u64, u64), publish::Message, publish::Published>,
    mboxes: queue::Queues<Key, add::Addition, Saved>,
    /// What is known of Dovecot's index logs.
    walks: Walks,
    busy: busy::Busy,
    names: Names,
    recent: Recent,
    /// Who this process is, asked once: at the first delivery, when it is what it will be.
    identity: OnceLock<Credentials>,
}

impl Core {
    /// Names of files get the host name, and the pid of the process that calls this: one that delivers beside its parent makes its own.
    pub fn new(settings: Settings) -> Core {
        let names = Names::new(sys::process::hostname(), std::process::id());
        Core {
            settings,
            maildirs: queue::Queues::default(),
            mboxes: queue::Queues::default(),
            walks: Walks::default(),
            busy: busy::Busy::default(),
            names,
            recent: Recent::default(),
            identity: OnceLock::new(),
        }
    }

    fn identity(&self) -> &Credentials {
        self.identity.get_or_init(credentials::effective)
    }

    /// A reload makes another core: these stay as they are.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What a delivery to `recipient` would do, and answer. Nothing is opened for writing.
    pub fn inspect(&self, recipient: &Recipient) -> Report {
        self.inspect_with(&self.settings, recipient)
    }

    /// [`Core::inspect`] for RCPT: the delivery is expected. `answers`: of the userdbs, where another process has asked them.
    pub fn expect(&self, answers: Option<&Answers>, recipient: &Recipient) -> Report {
        let recent = Some(&self.recent);
        let (plan, report) = self.look(self.directory(answers), recipient, recent);
        if let Ok(plan) = plan {
            self.recent.put(&self.settings, recipient, answers, plan);
        }
        report
    }

    /// [`Core::deliver_with`] behind [`Core::expect`]. Where that finds another mailbox by now, the message goes there.
    pub fn deliver_expected(
        &self,
        answers: Option<&Answers>,
        transaction: &Transaction,
        recipient: &Recipient,
        retry: &Retry,
    ) -> Done {
        let directory = self.directory(answers);
        let deliver = || self.deliver_with(directory, transaction, recipient, retry);
        let Some(plan) = self.recent.take(recipient, answers) else {
            return deliver();
        };
        let place = place_of(&plan);
        let is_still = |now: Plan| now.create.is_none() && place_of(&now) == place;
        let look = || self.look(directory, recipient, None).0;
        let is_certain =
            |it: &Fault| !it.is_not_durable && !it.may_be_stored && it.code != Code::Internal;
        match carry_out::carry_out(self, transaction, recipient, plan, retry) {
            // A sync that has failed is not asked again: the second one says that all is well.
            // Nor is it stored elsewhere where it may be there.
            Err(fault) if is_certain(&fault) && !look().is_ok_and(is_still) => deliver(),
            stored => Done::Outcome(stored.map_or_else(|it| retry.refused(it), Outcome::Saved)),
        }
    }

    fn directory<'a>(&'a self, answers: Option<&'a Answers>) -> &'a dyn Directory {
        match answers {
            Some(answers) => answers,
            None => &self.settings,
        }
    }

    fn look(
        &self,
        directory: &dyn Directory,
        recipient: &Recipient,
        recent: Option<&Recent>,
    ) -> (Result<Plan, Fault>, Report) {
        match resolve::resolve(&self.settings, directory, recipient, None) {
            Ok(targets) => inspect::inspect(&self.settings, &targets, self.identity(), recent),
            Err(fault) => (Err(fault.clone()), Report::failed(recipient.shown(), fault)),
        }
    }

    /// [`Core::inspect`], with the answers of `directory`.
    pub fn inspect_with(&self, directory: &dyn Directory, recipient: &Recipient) -> Report {
        let (plan, mut report) = self.look(directory, recipient, None);
        let index = plan.ok().and_then(|plan| forecast::index(self, &plan));
        report.lines.extend(index);
        report
    }

    /// Who delivers and what is wanted, and all that a delivery by another process must be told. `head`: the start of the message; none
    /// before there is one.
    pub fn look_up(
        &self,
        recipient: &Recipient,
        head: Option<&[u8]>,
    ) -> Result<(Targets, Answers), Fault> {
        let recorder = directory::Recorder::new(&self.settings);
        let targets = resolve::resolve(&self.settings, &recorder, recipient, head)?;
        Ok((targets, recorder.answers()))
    }

    /// The start of a transaction: one message for `recipients` recipients.
    pub fn transaction(&self, message: Arc<Message>, recipients: usize) -> Transaction {
        Transaction::new(message, recipients)
    }

    /// The whole delivery to one recipient, for tests without a server.
    #[cfg(test)]
    pub fn deliver(&self, transaction: &Transaction, recipient: &Recipient) -> Outcome {
        match self.deliver_with(&self.settings, transaction, recipient, &Retry::default()) {
            Done::Outcome(outcome) => outcome,
            Done::Parcel(parcel) => unreachable!("{parcel:?}"),
        }
    }

    /// Lets go of what is kept for the next delivery: at the end of a process that does not drop this.
    pub fn let_go(&self) {
        self.recent.let_go();
    }

    /// A file name that no other delivery has.
    pub fn unique_name(&self) -> String {
        self.names.unique()
    }

    /// The whole delivery to one recipient, with the answers of `directory`, and with what is known of earlier ones.
    pub fn deliver_with(
        &self,
        directory: &dyn Directory,
        transaction: &Transaction,
        recipient: &Recipient,
        retry: &Retry,
    ) -> Done {
        let head = transaction.message().body.head();
        let leaves_full = retry.is_unknown() || !retry.alike.is_empty();
        let targets = match resolve::resolve(&self.settings, directory, recipient, Some(head)) {
            Ok(targets) => Targets {
                leaves_full,
                ..targets
            },
            Err(fault) => return Done::Outcome(Outcome::refused(fault)),
        };
        let plan = inspect::inspect(&self.settings, &targets, self.identity(), None).0;
        if let Ok(plan) = &plan
            && let Some(parcel) = Parcel::of(plan, targets.by)
            && size::check(plan.most, transaction.message().body.size()).is_ok()
        {
            return match retry.handed_over(plan) {
                Some(saved) => Done::Outcome(Outcome::Saved(saved)),
                None => Done::Parcel(parcel),
            };
        }
        let routed = plan.as_ref().ok();
        let routed = routed.filter(|plan| parcel::is_routed(plan, targets.by));
        let routed_to = routed.map(|plan| {
            let has_refused = match plan.target.hand_over {
                Some(_) => program::has_refused,
                None => carry_out::has_refused,
            };
            (plan.target.mailbox.clone(), has_refused)
        });
        let stored =
            plan.and_then(|plan| carry_out::carry_out(self, transaction, recipient, plan, retry));
        match (stored, routed_to) {
            (Ok(saved), _) => Done::Outcome(Outcome::Saved(saved)),
            // Not where it may have the message.
            (Err(fault), Some((mailbox, has_refused)))
                if recipient.refusal.is_none() && !fault.may_be_stored && has_refused(&fault) =>
            {
                let recipient = recipient.refused_at(mailbox, &fault);
                self.deliver_with(directory, transaction, &recipient, retry)
            }
            (Err(fault), _) => Done::Outcome(retry.refused(fault)),
        }
    }
}

/// The path that a plan leads to, and the mailbox that is there.
fn place_of(plan: &Plan) -> (PathBuf, Option<(u64, u64)>) {
    let identity = plan.mailbox.as_ref().map(|it| it.identity());
    (plan.target.paths.mailbox.clone(), identity)
}
