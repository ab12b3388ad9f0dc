//! The LMTP dialogue as a state machine: (state, command) -> [`Step`]. No I/O, no clock, no delivery.
//!
//! The caller does what a step asks for and comes back with the result. Guarantees (RFC 2033 section 4): every command but
//! BDAT LAST has one answer; a whole message has one for each accepted RCPT, in their order, whatever became of it; a
//! transaction ends with its message.

use super::command::{Command, Marker, Refusal, Verb};
use super::reply::Reply;
use crate::deliver::{Outcome, Report};
use crate::fault::{Code, Fault};
use crate::message::{Address, Recipient, ReversePath};

/// Protocol errors in a row that a client may make; one more ends the connection.
const MAX_ERRORS: u32 = 10;

/// What the server promises its clients.
#[derive(Debug, Clone)]
pub struct Limits {
    pub hostname: String,
    /// Accepted RCPTs in one transaction.
    pub max_recipients: usize,
    /// Bytes of a message as it comes over the wire, without dot-stuffing.
    pub message_size: Option<u64>,
    /// Tell the client why something failed.
    pub verbose_replies: bool,
}

/// One connection's dialogue.
#[derive(Debug)]
pub struct Session {
    limits: Limits,
    id: String,
    helo: Option<String>,
    /// MAILs accepted so far.
    transactions: u32,
    errors_in_a_row: u32,
    transaction: Option<Transaction>,
    /// What the last step asked for.
    pending: Option<Pending>,
}

/// What the caller has to do.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Send these (none after a BDAT LAST that no recipient waits for) and read the next command.
    Answer(Vec<Reply>),
    /// Send this and close.
    Close(Reply),
    /// Inspect the recipient, then [`Session::checked`].
    Check(Recipient),
    /// Send this, read a body up to its dot, then [`Session::data_received`]. A body of more bytes than the limit is read too.
    Data { go_ahead: Reply, limit: Option<u64> },
    /// Read so many octets, and `keep` them behind those of earlier chunks; then [`Session::chunk_received`].
    Chunk { octets: u64, keep: bool },
    /// The message is complete. Deliver it, and send what [`Delivery::settle`] says.
    Deliver(Delivery),
    /// The message is lost. Log that for each recipient, and send what [`Delivery::abandon`] says.
    GiveUp(Delivery, Fault),
}

/// How a body or chunk came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intake {
    Complete,
    TooBig,
    /// It could not be kept.
    Failed(Fault),
}

#[derive(Debug)]
struct Transaction {
    id: String,
    sender: ReversePath,
    broken_sender: Option<String>,
    smtputf8: bool,
    recipients: Vec<Recipient>,
    /// For each accepted RCPT its place in `recipients`: the same address twice is one recipient with two answers.
    accepted: Vec<usize>,
    chunks: Chunks,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Chunks {
    /// No BDAT yet.
    None,
    /// So many octets so far.
    Some(u64),
    /// The message cannot become complete any more.
    Failed(Fault),
}

#[derive(Debug)]
enum Pending {
    Check(Recipient),
    Data,
    Chunk { octets: u64, marker: Marker },
}

impl Session {
    /// `id` is printable ASCII; replies, log and `Received` carry it.
    pub fn new(limits: Limits, id: String) -> Session {
        Session {
            limits,
            id,
            helo: None,
            transactions: 0,
            errors_in_a_row: 0,
            transaction: None,
            pending: None,
        }
    }

    pub fn greeting(&self) -> Reply {
        Reply::bare(220, format!("{} Postroom LMTP", self.limits.hostname))
    }

    /// A MAIL was accepted and its message has not come yet.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// The id of the transaction, of the connection where there is none.
    pub fn id(&self) -> &str {
        self.transaction
            .as_ref()
            .map_or(&self.id, |transaction| &transaction.id)
    }

    /// What LHLO said.
    pub fn helo(&self) -> Option<&str> {
        self.helo.as_deref()
    }

    /// The sender for the log: what the client wrote, even where `<>` stands in for it.
    pub fn sender_text(&self) -> String {
        self.transaction
            .as_ref()
            .map(Transaction::sender_text)
            .unwrap_or_default()
    }

    /// The farewell for a client that is not the reason: `4.3.2` shutting down, `4.4.2` silent for too long.
    pub fn farewell(&self, enhanced: &'static str, why: &str) -> Reply {
        Reply::new(421, enhanced, format!("{} {why}", self.limits.hostname))
    }

    /// The next line of the client.
    pub fn command(&mut self, command: Result<Command, Refusal>) -> Step {
        debug_assert!(self.pending.is_none(), "the last step was not answered");
        match command {
            Err(refusal) => self.refused(refusal),
            Ok(Command::Lhlo { name }) => self.lhlo(name),
            Ok(Command::Mail {
                sender,
                broken,
                size,
                smtputf8,
            }) => self.mail(sender, broken, size, smtputf8),
            Ok(Command::Rcpt { address, original }) => self.rcpt(address, original),
            Ok(Command::Data) => self.data(),
            Ok(Command::Bdat { octets, marker }) => self.bdat(octets, marker),
            Ok(Command::Rset) => {
                self.transaction = None;
                self.answer(Reply::new(250, "2.0.0", "OK"))
            }
            Ok(Command::Noop) => self.answer(Reply::new(250, "2.0.0", "OK")),
            Ok(Command::Vrfy) => self.answer(Reply::new(252, "2.3.3", "RCPT will tell")),
            Ok(Command::Quit) => Step::Close(Reply::new(221, "2.0.0", "Bye")),
        }
    }

    /// The result of [`Step::Check`].
    pub fn checked(&mut self, report: &Report) -> Step {
        let (Some(Pending::Check(recipient)), Some(transaction)) =
            (self.pending.take(), &mut self.transaction)
        else {
            return self.out_of_step();
        };
        let reply = Reply::to_rcpt(
            &recipient.address,
            &transaction.id,
            report,
            self.limits.verbose_replies,
        );
        if report.fault.is_none() {
            transaction.accepted.push(transaction.recipients.len());
            transaction.recipients.push(recipient);
        }
        self.answer(reply)
    }

    /// The result of [`Step::Data`].
    pub fn data_received(&mut self, intake: Intake) -> Step {
        let (Some(Pending::Data), Some(transaction)) =
            (self.pending.take(), self.transaction.take())
        else {
            return self.out_of_step();
        };
        self.errors_in_a_row = 0;
        self.finish(transaction, intake)
    }

    /// The result of [`Step::Chunk`].
    pub fn chunk_received(&mut self, intake: Intake) -> Step {
        let Some(Pending::Chunk { octets, marker }) = self.pending.take() else {
            return self.out_of_step();
        };
        let recipients = self
            .transaction
            .as_ref()
            .map_or(0, |transaction| transaction.accepted.len());
        if marker == Marker::Unknown {
            // The octets are gone, so the message will not be what the client sent.
            self.fail_chunks(Fault::new(
                Code::Storage,
                "receive the message",
                "a chunk was refused",
            ));
            return self.answer(Reply::new(501, "5.5.4", "LAST or nothing follows the size"));
        }
        if recipients == 0 {
            return self.chunk_for_nobody(marker);
        }
        let Some(mut transaction) = self.transaction.take() else {
            return self.out_of_step();
        };
        let before = transaction.chunks.clone();
        transaction.take_chunk(octets, intake, self.limits.message_size);
        if marker == Marker::Last {
            self.errors_in_a_row = 0;
            let intake = match &transaction.chunks {
                Chunks::Failed(fault) => Intake::Failed(fault.clone()),
                _ => Intake::Complete,
            };
            return self.finish(transaction, intake);
        }
        let reply = match (&before, &transaction.chunks) {
            (Chunks::Failed(_), _) => {
                Reply::new(503, "5.5.0", "An earlier chunk failed, send RSET")
            }
            (_, Chunks::Failed(fault)) => {
                let (code, enhanced) = fault.code.smtp();
                Reply::new(code, enhanced, fault.code.text())
            }
            _ => Reply::new(250, "2.0.0", format!("{octets} octets taken")),
        };
        self.transaction = Some(transaction);
        self.answer(reply)
    }

    fn refused(&mut self, refusal: Refusal) -> Step {
        // Out of place goes before malformed.
        if let Some(reply) = self.out_of_place(refusal.verb) {
            return self.answer(reply);
        }
        match refusal.framing_is_lost {
            true => Step::Close(refusal.reply),
            false => self.answer(refusal.reply),
        }
    }

    fn out_of_place(&self, verb: Verb) -> Option<Reply> {
        match (verb, &self.transaction) {
            (Verb::Mail, Some(_)) => Some(Reply::new(503, "5.5.0", "MAIL was given already")),
            (Verb::Rcpt, None) => Some(need_mail()),
            (Verb::Rcpt, Some(transaction)) if transaction.chunks != Chunks::None => Some(
                Reply::new(503, "5.5.0", "No recipients once the message has begun"),
            ),
            _ => None,
        }
    }

    fn lhlo(&mut self, name: String) -> Step {
        self.helo = Some(name);
        self.transaction = None;
        let size = self
            .limits
            .message_size
            .map_or("SIZE".into(), |limit| format!("SIZE {limit}"));
        let words = [
            "8BITMIME",
            "CHUNKING",
            "ENHANCEDSTATUSCODES",
            "PIPELINING",
            "SMTPUTF8",
        ];
        let capabilities = words.into_iter().map(String::from).chain([size]);
        self.answer(Reply::list(250, &self.limits.hostname, capabilities))
    }

    /// LHLO is not asked for first: Dovecot does not either, and nothing depends on it.
    fn mail(
        &mut self,
        sender: ReversePath,
        broken: Option<String>,
        size: Option<u64>,
        smtputf8: bool,
    ) -> Step {
        if let Some(reply) = self.out_of_place(Verb::Mail) {
            return self.answer(reply);
        }
        if let (Some(size), Some(limit)) = (size, self.limits.message_size)
            && size > limit
        {
            return self.answer(Reply::new(552, "5.3.4", Code::TooBig.text()));
        }
        self.transactions = self.transactions.saturating_add(1);
        let id = match self.transactions {
            1 => self.id.clone(),
            n => format!("{}:T{n}", self.id),
        };
        self.transaction = Some(Transaction {
            id,
            sender,
            broken_sender: broken,
            smtputf8,
            recipients: Vec::new(),
            accepted: Vec::new(),
            chunks: Chunks::None,
        });
        self.answer(Reply::new(250, "2.1.0", "OK"))
    }

    fn rcpt(&mut self, address: Address, original: Option<String>) -> Step {
        if let Some(reply) = self.out_of_place(Verb::Rcpt) {
            return self.answer(reply);
        }
        let Some(transaction) = &mut self.transaction else {
            return self.answer(need_mail());
        };
        if !transaction.smtputf8 && !address.is_ascii() {
            return self.answer(Reply::new(553, "5.6.7", "This address needs SMTPUTF8"));
        }
        if transaction.accepted.len() >= self.limits.max_recipients {
            return self.answer(Reply::new(452, "4.5.3", "Too many recipients"));
        }
        let same = transaction
            .recipients
            .iter()
            .position(|known| known.address.is_same_as(&address));
        if let Some(known) = same {
            transaction.accepted.push(known);
            return self.answer(Reply::accepted(&address));
        }
        let recipient = Recipient {
            original,
            ..Recipient::new(address)
        };
        self.pending = Some(Pending::Check(recipient.clone()));
        Step::Check(recipient)
    }

    fn data(&mut self) -> Step {
        let refusal = match &self.transaction {
            None => need_mail(),
            Some(transaction) if transaction.chunks != Chunks::None => {
                Reply::new(503, "5.5.0", "DATA cannot follow BDAT")
            }
            Some(transaction) if transaction.accepted.is_empty() => {
                Reply::new(503, "5.5.0", "No valid recipients")
            }
            Some(_) => {
                self.pending = Some(Pending::Data);
                return Step::Data {
                    go_ahead: Reply::bare(354, "OK"),
                    limit: self.limits.message_size,
                };
            }
        };
        self.answer(refusal)
    }

    /// The octets follow whatever we think of them.
    fn bdat(&mut self, octets: u64, marker: Marker) -> Step {
        let keep = marker != Marker::Unknown
            && self
                .transaction
                .as_ref()
                .is_some_and(|transaction| transaction.wants(octets, self.limits.message_size));
        self.pending = Some(Pending::Chunk { octets, marker });
        Step::Chunk { octets, keep }
    }

    /// RFC 2033 section 4.3: LAST has as many replies as there were successful RCPTs.
    fn chunk_for_nobody(&mut self, marker: Marker) -> Step {
        let reply = match &self.transaction {
            None => need_mail(),
            Some(_) => Reply::new(503, "5.5.0", "No valid recipients"),
        };
        if marker == Marker::Last {
            self.transaction = None;
            return Step::Answer(Vec::new());
        }
        self.fail_chunks(Fault::new(
            Code::Storage,
            "receive the message",
            "a chunk came before the recipients",
        ));
        self.answer(reply)
    }

    fn fail_chunks(&mut self, fault: Fault) {
        if let Some(transaction) = &mut self.transaction {
            transaction.chunks = Chunks::Failed(fault);
        }
    }

    /// The message is here, or will never be.
    fn finish(&mut self, transaction: Transaction, intake: Intake) -> Step {
        let delivery = Delivery::new(transaction, self.limits.verbose_replies);
        match intake {
            Intake::Complete => Step::Deliver(delivery),
            Intake::TooBig => Step::GiveUp(delivery, too_big()),
            Intake::Failed(fault) => Step::GiveUp(delivery, fault),
        }
    }

    /// A single reply; too many protocol errors in a row end the connection.
    fn answer(&mut self, reply: Reply) -> Step {
        self.errors_in_a_row = if reply.is_protocol_error() {
            self.errors_in_a_row + 1
        } else {
            0
        };
        match self.errors_in_a_row > MAX_ERRORS {
            true => Step::Close(self.farewell("4.7.0", "Too many protocol errors")),
            false => Step::Answer(vec![reply]),
        }
    }

    /// The caller came back with something that was not asked for: nothing is promised any more.
    fn out_of_step(&self) -> Step {
        Step::Close(self.farewell("4.3.0", "Internal error"))
    }
}

impl Transaction {
    fn sender_text(&self) -> String {
        self.broken_sender
            .clone()
            .unwrap_or_else(|| self.sender.to_string())
    }

    /// Whether a chunk of this size can still become part of a message.
    fn wants(&self, octets: u64, limit: Option<u64>) -> bool {
        !self.accepted.is_empty()
            && self
                .size_with(octets)
                .is_some_and(|size| limit.is_none_or(|limit| size <= limit))
    }

    /// None: a chunk has failed, or the size is beyond all bounds.
    fn size_with(&self, octets: u64) -> Option<u64> {
        match &self.chunks {
            Chunks::None => Some(octets),
            Chunks::Some(size) => size.checked_add(octets),
            Chunks::Failed(_) => None,
        }
    }

    fn take_chunk(&mut self, octets: u64, intake: Intake, limit: Option<u64>) {
        if matches!(self.chunks, Chunks::Failed(_)) {
            return;
        }
        self.chunks = match (intake, self.size_with(octets)) {
            (Intake::Failed(fault), _) => Chunks::Failed(fault),
            (Intake::Complete, Some(size)) if limit.is_none_or(|limit| size <= limit) => {
                Chunks::Some(size)
            }
            _ => Chunks::Failed(too_big()),
        };
    }
}

fn need_mail() -> Reply {
    Reply::new(503, "5.5.0", "MAIL comes first")
}

fn too_big() -> Fault {
    Fault::new(
        Code::TooBig,
        "receive the message",
        "it is larger than message_size",
    )
}

/// A complete message on its way: who waits for which answer.
#[derive(Debug, PartialEq)]
pub struct Delivery {
    /// The transaction's id.
    pub id: String,
    pub sender: ReversePath,
    /// The sender for the log.
    pub sender_text: String,
    /// Whom to deliver to: each once, in the order of RCPT.
    pub recipients: Vec<Recipient>,
    accepted: Vec<usize>,
    outcomes: Vec<Option<Outcome>>,
    answered: usize,
    verbose: bool,
}

impl Delivery {
    fn new(transaction: Transaction, verbose: bool) -> Delivery {
        Delivery {
            sender_text: transaction.sender_text(),
            id: transaction.id,
            sender: transaction.sender,
            outcomes: vec![None; transaction.recipients.len()],
            recipients: transaction.recipients,
            accepted: transaction.accepted,
            answered: 0,
            verbose,
        }
    }

    /// Takes the outcome of `recipients[index]` and gives the replies that are now due: a reply waits for those before
    /// it, for no other. The first outcome counts.
    pub fn settle(&mut self, index: usize, outcome: Outcome) -> Vec<Reply> {
        if let Some(place @ None) = self.outcomes.get_mut(index) {
            *place = Some(outcome);
        }
        let mut due = Vec::new();
        while let Some(recipient) = self.accepted.get(self.answered)
            && let Some(outcome) = &self.outcomes[*recipient]
        {
            due.push(Reply::to_data(
                &self.recipients[*recipient].address,
                &self.id,
                outcome,
                self.verbose,
            ));
            self.answered += 1;
        }
        due
    }

    /// The recipients that have no outcome yet.
    pub fn unsettled(&self) -> Vec<usize> {
        (0..self.outcomes.len())
            .filter(|index| self.outcomes[*index].is_none())
            .collect()
    }

    /// The replies that are still due when the rest of the delivery will not happen.
    pub fn abandon(&mut self, fault: &Fault) -> Vec<Reply> {
        let unsettled = self.unsettled();
        unsettled
            .into_iter()
            .flat_map(|index| self.settle(index, Outcome::refused(fault.clone())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::deliver::Saved;
    use crate::lmtp::codec::Frame;
    use crate::lmtp::command;

    /// A client, and a server whose deliveries all succeed, except to `nobody`, `full` and `later`.
    struct Talk {
        session: Session,
        intake: Intake,
        delivered: Vec<Vec<String>>,
        closed: bool,
    }

    fn talk_with(limits: Limits) -> Talk {
        Talk {
            session: Session::new(limits, "id".into()),
            intake: Intake::Complete,
            delivered: vec![],
            closed: false,
        }
    }

    fn limits() -> Limits {
        Limits {
            hostname: "mx".into(),
            max_recipients: 3,
            message_size: Some(1000),
            verbose_replies: false,
        }
    }

    fn talk() -> Talk {
        talk_with(limits())
    }

    fn verdict(local: &str) -> Option<Fault> {
        let code = match local {
            "nobody" => Code::NoSuchUser,
            "full" => Code::OverQuota,
            _ => return None,
        };
        Some(Fault::new(code, "look", "it is so"))
    }

    fn outcome(local: &str) -> Outcome {
        if local == "later" {
            return Outcome::refused(Fault::new(Code::Storage, "write", "I/O error"));
        }
        Outcome::Saved(Saved {
            mailbox: "INBOX".into(),
            instead_of: None,
            user: local.into(),
            uid: None,
            file: String::new(),
            size: 0,
            mode: 0,
            gid: 0,
            remarks: vec![],
        })
    }

    impl Talk {
        /// The replies to one line. A DATA and a BDAT get their body at once.
        fn say(&mut self, line: &str) -> Vec<Reply> {
            let step = self
                .session
                .command(command::parse(Frame::Line(line.as_bytes())));
            self.follow(step)
        }

        fn follow(&mut self, step: Step) -> Vec<Reply> {
            match step {
                Step::Answer(replies) => replies,
                Step::GiveUp(mut delivery, fault) => delivery.abandon(&fault),
                Step::Close(reply) => {
                    self.closed = true;
                    vec![reply]
                }
                Step::Check(recipient) => {
                    let mut report = Report::failed(
                        recipient.address.to_string(),
                        Fault::new(Code::Internal, "", ""),
                    );
                    report.fault = verdict(&recipient.address.local);
                    let step = self.session.checked(&report);
                    self.follow(step)
                }
                Step::Data { go_ahead, .. } => {
                    let step = self.session.data_received(self.intake.clone());
                    [vec![go_ahead], self.follow(step)].concat()
                }
                Step::Chunk { .. } => {
                    let step = self.session.chunk_received(self.intake.clone());
                    self.follow(step)
                }
                Step::Deliver(mut delivery) => {
                    self.delivered.push(
                        delivery
                            .recipients
                            .iter()
                            .map(|r| r.address.to_string())
                            .collect(),
                    );
                    let locals: Vec<_> = delivery
                        .recipients
                        .iter()
                        .map(|r| r.address.local.clone())
                        .collect();
                    // Backwards: the order of the replies must not depend on it.
                    let settled = locals.iter().enumerate().rev();
                    settled
                        .flat_map(|(index, local)| delivery.settle(index, outcome(local)))
                        .collect()
                }
            }
        }

        fn codes(&mut self, line: &str) -> Vec<u16> {
            self.say(line).iter().map(Reply::code).collect()
        }
    }

    fn text(reply: &Reply) -> String {
        let mut out = Vec::new();
        reply.write_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    /// Every command in every state.
    #[test]
    fn commands_by_states() {
        let states: [(&str, &[&str]); 6] = [
            ("connected", &[]),
            ("greeted", &["LHLO me"]),
            ("mail", &["LHLO me", "MAIL FROM:<s@x>"]),
            (
                "rcpt",
                &[
                    "LHLO me",
                    "MAIL FROM:<s@x>",
                    "RCPT TO:<a>",
                    "RCPT TO:<later>",
                ],
            ),
            (
                "chunk",
                &[
                    "MAIL FROM:<s@x>",
                    "RCPT TO:<a>",
                    "RCPT TO:<later>",
                    "BDAT 5",
                ],
            ),
            (
                "bad chunk",
                &[
                    "MAIL FROM:<s@x>",
                    "RCPT TO:<a>",
                    "RCPT TO:<later>",
                    "BDAT 5 X",
                ],
            ),
        ];
        #[rustfmt::skip]
        let table: [(&str, [&[u16]; 6]); 24] = [
            // command                   connected greeted  mail     rcpt              chunk        bad chunk
            ("LHLO me",                  [&[250], &[250], &[250], &[250],           &[250],      &[250]]),
            ("LHLO",                     [&[501], &[501], &[501], &[501],           &[501],      &[501]]),
            ("EHLO me",                  [&[500], &[500], &[500], &[500],           &[500],      &[500]]),
            ("HELO me",                  [&[500], &[500], &[500], &[500],           &[500],      &[500]]),
            ("MAIL FROM:<s@x>",          [&[250], &[250], &[503], &[503],           &[503],      &[503]]),
            ("MAIL FROM:<>",             [&[250], &[250], &[503], &[503],           &[503],      &[503]]),
            ("MAIL",                     [&[501], &[501], &[503], &[503],           &[503],      &[503]]),
            ("MAIL FROM:<s@x> SIZE=1001",[&[552], &[552], &[503], &[503],           &[503],      &[503]]),
            ("MAIL FROM:<s@x> SIZE=1000",[&[250], &[250], &[503], &[503],           &[503],      &[503]]),
            ("MAIL FROM:<s@x> RET=FULL", [&[555], &[555], &[503], &[503],           &[503],      &[503]]),
            ("RCPT TO:<b>",              [&[503], &[503], &[250], &[250],           &[503],      &[503]]),
            ("RCPT TO:<nobody>",         [&[503], &[503], &[550], &[550],           &[503],      &[503]]),
            ("RCPT TO:<full>",           [&[503], &[503], &[552], &[552],           &[503],      &[503]]),
            ("RCPT TO:<>",               [&[503], &[503], &[501], &[501],           &[503],      &[503]]),
            ("RCPT TO:<jörg>",           [&[503], &[503], &[553], &[553],           &[503],      &[503]]),
            ("DATA",                     [&[503], &[503], &[503], &[354, 250, 451], &[503],      &[503]]),
            ("DATA x",                   [&[501], &[501], &[501], &[501],           &[501],      &[501]]),
            ("BDAT 5",                   [&[503], &[503], &[503], &[250],           &[250],      &[503]]),
            ("BDAT 5 LAST",              [&[],    &[],    &[],    &[250, 451],      &[250, 451], &[451, 451]]),
            ("BDAT 1000 LAST",           [&[],    &[],    &[],    &[250, 451],      &[552, 552], &[451, 451]]),
            ("BDAT 1001",                [&[503], &[503], &[503], &[552],           &[552],      &[503]]),
            ("BDAT x",                   [&[501], &[501], &[501], &[501],           &[501],      &[501]]),
            ("RSET",                     [&[250], &[250], &[250], &[250],           &[250],      &[250]]),
            ("QUIT",                     [&[221], &[221], &[221], &[221],           &[221],      &[221]]),
        ];
        for (command, row) in table {
            for ((state, script), want) in states.iter().zip(row) {
                let mut talk = talk();
                script.iter().for_each(|line| drop(talk.say(line)));
                assert_eq!(talk.codes(command), want, "{command} when {state}");
                assert_eq!(talk.closed, command == "QUIT", "{command} when {state}");
            }
        }
    }

    /// Whether a command ends the transaction that was open, seen by what MAIL says next.
    #[test]
    fn what_ends_a_transaction() {
        for (command, ends) in [
            ("LHLO me", true),
            ("LHLO", false),
            ("RSET", true),
            ("RSET x", false),
            ("NOOP", false),
            ("VRFY x", false),
            ("DATA", true),
            ("BDAT 5", false),
            ("BDAT 5 LAST", true),
            ("BDAT 5 FOO", false),
            ("RCPT TO:<nobody>", false),
            ("FOO", false),
        ] {
            let mut talk = talk();
            talk.say("MAIL FROM:<s@x>");
            talk.say("RCPT TO:<a>");
            talk.say(command);
            assert_eq!(
                talk.codes("MAIL FROM:<s@x>"),
                [if ends { 250 } else { 503 }],
                "{command}"
            );
        }
    }

    #[test]
    fn capabilities() {
        let reply = talk().say("LHLO me").remove(0);
        let want = "250-mx\r\n250-8BITMIME\r\n250-CHUNKING\r\n250-ENHANCEDSTATUSCODES\r\n250-PIPELINING\r\n250-SMTPUTF8\r\n250 SIZE 1000\r\n";
        assert_eq!(text(&reply), want);
        let mut unlimited = talk_with(Limits {
            message_size: None,
            ..limits()
        });
        assert!(text(&unlimited.say("LHLO me")[0]).ends_with("250 SIZE\r\n"));
    }

    #[test]
    fn the_same_recipient_is_stored_once_and_answered_each_time() {
        let mut talk = talk_with(Limits {
            max_recipients: 10,
            ..limits()
        });
        talk.say("MAIL FROM:<s@x>");
        for (rcpt, code) in [
            ("a@x", 250),
            ("nobody", 550),
            ("b@x", 250),
            ("a@X", 250),
            ("A@x", 250),
            ("later", 250),
            ("a@x", 250),
        ] {
            assert_eq!(talk.codes(&format!("RCPT TO:<{rcpt}>")), [code], "{rcpt}");
        }
        let replies = talk.say("DATA");
        let got: Vec<String> = replies[1..]
            .iter()
            .map(|reply| text(reply)[..12].trim_end().to_string())
            .collect();
        assert_eq!(
            got,
            [
                "250 2.0.0 <a",
                "250 2.0.0 <b",
                "250 2.0.0 <a",
                "250 2.0.0 <A",
                "451 4.2.0 <l",
                "250 2.0.0 <a"
            ]
        );
        assert_eq!(talk.delivered, [["a@x", "b@x", "A@x", "later"]]);
    }

    #[test]
    fn a_failed_body_answers_every_recipient() {
        let disk = Fault::new(Code::NoSpace, "spool", "No space left on device");
        for (intake, code) in [(Intake::TooBig, 552), (Intake::Failed(disk), 452)] {
            for data in ["DATA", "BDAT 7 LAST"] {
                let mut talk = talk();
                talk.intake = intake.clone();
                talk.say("MAIL FROM:<s@x>");
                talk.say("RCPT TO:<a>");
                talk.say("RCPT TO:<b>");
                talk.say("RCPT TO:<a>");
                let codes = talk.codes(data);
                assert_eq!(codes[codes.len() - 3..], [code; 3], "{data}");
                assert!(talk.delivered.is_empty());
                assert_eq!(talk.codes("MAIL FROM:<s@x>"), [250], "{data}");
            }
        }
    }

    #[test]
    fn chunks_after_a_failed_one() {
        let mut talk = talk();
        talk.say("MAIL FROM:<s@x>");
        talk.say("RCPT TO:<a>");
        for (line, codes) in [
            ("BDAT 900", vec![250]),
            ("BDAT 101", vec![552]),
            ("BDAT 1", vec![503]),
            ("BDAT 1 LAST", vec![552]),
        ] {
            assert_eq!(talk.codes(line), codes, "{line}");
        }
        assert!(talk.delivered.is_empty());
    }

    #[test]
    fn only_octets_of_a_message_are_kept() {
        for (script, line, want) in [
            (vec![], "BDAT 5", false),
            (vec!["MAIL FROM:<s@x>"], "BDAT 5", false),
            (vec!["MAIL FROM:<s@x>", "RCPT TO:<a>"], "BDAT 5", true),
            (vec!["MAIL FROM:<s@x>", "RCPT TO:<a>"], "BDAT 5 X", false),
            (
                vec!["MAIL FROM:<s@x>", "RCPT TO:<a>"],
                "BDAT 9223372036854775808",
                false,
            ),
            (
                vec!["MAIL FROM:<s@x>", "RCPT TO:<a>", "BDAT 1"],
                "BDAT 18446744073709551615",
                false,
            ),
            (
                vec!["MAIL FROM:<s@x>", "RCPT TO:<a>", "BDAT 5 X"],
                "BDAT 5",
                false,
            ),
        ] {
            let mut talk = talk();
            script.iter().for_each(|line| drop(talk.say(line)));
            let step = talk
                .session
                .command(command::parse(Frame::Line(line.as_bytes())));
            assert!(
                matches!(step, Step::Chunk { keep, .. } if keep == want),
                "{line} after {script:?}: {step:?}"
            );
        }
    }

    #[test]
    fn recipients_are_limited() {
        let mut talk = talk();
        talk.say("MAIL FROM:<s@x>");
        for (rcpt, code) in [
            ("a", 250),
            ("nobody", 550),
            ("b", 250),
            ("a", 250),
            ("c", 452),
            ("a", 452),
        ] {
            assert_eq!(talk.codes(&format!("RCPT TO:<{rcpt}>")), [code], "{rcpt}");
        }
        assert_eq!(talk.codes("DATA"), [354, 250, 250, 250]);
    }

    #[test]
    fn protocol_errors_in_a_row() {
        let mut talk = talk();
        for _ in 0..10 {
            assert_eq!(talk.codes("FOO"), [500]);
        }
        assert_eq!(talk.codes("NOOP"), [250]);
        for line in [
            "FOO",
            "DATA",
            "RSET x",
            "RCPT TO:<a>",
            "FOO",
            "DATA",
            "RSET x",
            "RCPT TO:<a>",
            "FOO",
            "DATA",
        ] {
            talk.say(line);
            assert!(!talk.closed);
        }
        let farewell = talk.say("BAR").remove(0);
        assert!(talk.closed);
        assert_eq!(text(&farewell), "421 4.7.0 mx Too many protocol errors\r\n");
    }

    #[test]
    fn a_lost_framing_closes() {
        let mut talk = talk();
        assert_eq!(talk.codes("BDAT 99999999999999999999"), [501]);
        assert!(talk.closed);
    }

    #[test]
    fn ids_count_accepted_mails() {
        let mut talk = talk();
        for (line, id) in [
            ("LHLO me", "id"),
            ("MAIL FROM:<s@x>", "id"),
            ("RSET", "id"),
            ("MAIL FROM:<s@x> SIZE=9999", "id"),
            ("MAIL FROM:<s@x>", "id:T2"),
            ("MAIL FROM:<s@x>", "id:T2"),
            ("RSET", "id"),
            ("MAIL FROM:<s@x>", "id:T3"),
        ] {
            talk.say(line);
            assert_eq!(talk.session.id(), id, "{line}");
        }
    }

    #[test]
    fn non_ascii_addresses_need_smtputf8() {
        let mut talk = talk();
        talk.say("MAIL FROM:<jörg@x> SMTPUTF8");
        assert_eq!(talk.session.sender_text(), "jörg@x");
        assert_eq!(talk.codes("RCPT TO:<bärbel@x>"), [250]);
        talk.say("RSET");
        talk.say("MAIL FROM:<jörg@>");
        assert_eq!(talk.session.sender_text(), "jörg@");
        assert_eq!(talk.codes("RCPT TO:<bärbel@x>"), [553]);
    }

    proptest! {
        /// RFC 2033: as many replies to the message as accepted RCPTs, whatever came before and in between.
        #[test]
        fn replies_are_counted(lines in prop::collection::vec(prop::sample::select(vec![
            "LHLO me", "MAIL FROM:<s@x>", "MAIL FROM:<s@x>", "RCPT TO:<a>", "RCPT TO:<b>", "RCPT TO:<nobody>", "RCPT TO:<later>",
            "DATA", "BDAT 5", "BDAT 5 LAST", "BDAT 900", "BDAT 2 X", "RSET", "NOOP", "FOO",
        ]), 0..40), too_big: bool) {
            let mut talk = talk();
            talk.intake = if too_big { Intake::TooBig } else { Intake::Complete };
            let mut accepted = 0;
            for line in lines {
                let codes = talk.codes(line);
                if talk.closed { break }
                let last = line == "BDAT 5 LAST";
                let body = last || codes.first() == Some(&354);
                prop_assert_eq!(codes.len(), if last { accepted } else if body { accepted + 1 } else { 1 }, "{}", line);
                if line.starts_with("RCPT") && codes == [250] { accepted += 1 }
                if body || ["LHLO me", "RSET"].contains(&line) { accepted = 0 }
                prop_assert_eq!(talk.session.transaction.as_ref().map_or(0, |t| t.accepted.len()), accepted);
            }
        }

        #[test]
        fn replies_come_in_the_order_of_rcpt(order in Just((0..6).collect::<Vec<usize>>()).prop_shuffle(), twice in 0usize..6) {
            let mut talk = talk_with(Limits { max_recipients: 10, ..limits() });
            talk.say("MAIL FROM:<s@x>");
            (0..6).chain([twice]).for_each(|n| drop(talk.say(&format!("RCPT TO:<r{n}>"))));
            talk.session.command(Ok(Command::Data));
            let Step::Deliver(mut delivery) = talk.session.data_received(Intake::Complete) else { panic!() };
            let mut replies = Vec::new();
            let mut known = Vec::new();
            for index in order {
                known.push(index);
                replies.extend(delivery.settle(index, outcome("x")).iter().map(text));
                let due = (0..6).take_while(|n| known.contains(n)).count();
                prop_assert_eq!(replies.len(), if due == 6 { 7 } else { due });
            }
            for (reply, n) in replies.iter().zip((0..6).chain([twice])) {
                let want = format!("<r{n}>");
                prop_assert!(reply.contains(&want));
            }
        }
    }
}
