//! The LMTP dialogue as a state machine: (state, command) -> [`Step`]. No I/O, no clock, no delivery.
//!
//! The caller does what a step asks for and comes back with the result. Guarantees (RFC 2033 section 4): every command but
//! BDAT LAST has one answer; a whole message has one for each accepted RCPT, in their order, whatever became of it; a
//! transaction ends with its message.

mod delivery;
mod transaction;

use super::client::{Client, Forwarded, XCLIENT, XFORWARD};
use super::command::{Command, Marker, Refusal, Verb};
use super::parameters::{ERRAND, OfMail, OfRcpt};
use super::reply::Reply;
use crate::deliver::Report;
use crate::fault::{Code, Fault};
use crate::message::{Address, Envelope, MAX_HOPS, Recipient, ReversePath};
pub use delivery::Delivery;
use transaction::{Chunks, Transaction, too_big};

/// Protocol errors in a row that a client may make; one more ends the connection.
const MAX_ERRORS: u32 = 10;

/// Bytes of the reply to LHLO, line ends as LF: Exim's transport has room for 255, and takes a longer one for malformed.
const MAX_GREETING: usize = 250;

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
    /// The client is believed when it says who sends.
    pub is_trusted: bool,
    /// There are other servers, whose errands are done where they are trusted.
    pub takes_errands: bool,
    pub starttls: StartTls,
}

/// Where the connection stands with TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartTls {
    /// There is no certificate.
    Unavailable,
    Offered,
    /// No mail before it.
    Required,
    Done,
}

/// One connection's dialogue.
#[derive(Debug)]
pub struct Session {
    limits: Limits,
    id: String,
    client: Client,
    /// Where the next message comes from.
    forwarded: Forwarded,
    helo: Option<String>,
    /// It has said by XCLIENT for whom it speaks.
    is_proxy: bool,
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
    /// Send this, begin TLS, then [`Session::secured`]. Where bytes of the client wait already, close instead.
    StartTls(Reply),
    /// Inspect the recipient, then [`Session::checked`].
    Check(Recipient),
    /// Send this, read a body up to its dot, then [`Session::data_received`]. A body of more bytes than the limit is read too.
    /// Where there is no space for the bytes that are announced nothing is sent but what [`Session::no_space`] says.
    Data {
        go_ahead: Reply,
        limit: Option<u64>,
        announced: u64,
    },
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
enum Pending {
    Check(Box<Recipient>),
    Data,
    Chunk { octets: u64, marker: Marker },
}

impl Session {
    /// `id` is printable ASCII; replies, log and `Received` carry it.
    pub fn new(limits: Limits, client: Client, id: String) -> Session {
        Session {
            limits,
            id,
            client,
            forwarded: Forwarded::default(),
            helo: None,
            is_proxy: false,
            transactions: 0,
            errors_in_a_row: 0,
            transaction: None,
            pending: None,
        }
    }

    /// 220, for a client that has just come, and for one that has said by XCLIENT for whom it speaks.
    pub fn greeting(&self) -> Reply {
        Reply::bare(220, format!("{} Postroom LMTP", self.limits.hostname))
    }

    /// A MAIL was accepted and its message has not come yet.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// No MAIL was accepted yet.
    pub fn is_new(&self) -> bool {
        self.transactions == 0
    }

    /// The id of the transaction, of the connection where there is none.
    pub fn id(&self) -> &str {
        self.transaction
            .as_ref()
            .map_or(&self.id, |transaction| &transaction.id)
    }

    /// What LHLO said, that of the client behind a proxy where we know it.
    pub fn helo(&self) -> Option<&str> {
        self.client.helo.as_deref().or(self.helo.as_deref())
    }

    /// Who speaks, or whom he speaks for.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Where the message of the transaction comes from, as the client says.
    pub fn forwarded(&self) -> &Forwarded {
        let transaction = self.transaction.as_ref();
        transaction.map_or(&self.forwarded, |it| &it.forwarded)
    }

    /// The sender for the log: what the client wrote, even where `<>` stands in for it.
    pub fn sender_text(&self) -> String {
        self.transaction
            .as_ref()
            .map(Transaction::sender_text)
            .unwrap_or_default()
    }

    /// Of the message that is to come, as far as it is known.
    pub fn envelope(&self) -> Envelope {
        let sender = self.transaction.as_ref().map(|it| it.sender.clone());
        Envelope {
            sender: sender.unwrap_or(ReversePath::Null),
            queue_id: self.forwarded().queue_id.clone(),
        }
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
                parameters,
            }) => self.mail(sender, broken, parameters),
            Ok(Command::Rcpt {
                address,
                parameters,
            }) => self.rcpt(address, parameters),
            Ok(Command::Data) => self.data(),
            Ok(Command::Bdat { octets, marker }) => self.bdat(octets, marker),
            Ok(Command::Rset) => {
                self.transaction = None;
                self.answer(Reply::new(250, "2.0.0", "OK"))
            }
            Ok(Command::Noop) => self.answer(Reply::new(250, "2.0.0", "OK")),
            Ok(Command::Vrfy) => self.answer(Reply::new(252, "2.3.3", "RCPT will tell")),
            Ok(Command::Quit) => Step::Close(Reply::new(221, "2.0.0", "Bye")),
            Ok(Command::StartTls) => self.start_tls(),
            Ok(Command::Xclient(attributes)) => self.xclient(&attributes),
            Ok(Command::Xforward(attributes)) => self.xforward(&attributes),
        }
    }

    /// The result of [`Step::StartTls`]: nothing that was said before counts (RFC 3207 section 4.2).
    pub fn secured(&mut self) {
        self.limits.starttls = StartTls::Done;
        self.helo = None;
        self.transaction = None;
        self.forwarded = Forwarded::default();
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
            transaction.recipients.push(*recipient);
        }
        self.answer(reply)
    }

    /// Instead of [`Session::data_received`]: the message cannot be taken, and has not been sent yet.
    pub fn no_space(&mut self, fault: &Fault) -> Step {
        self.pending = None;
        self.answer(Reply::to_fault(fault))
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
            (_, Chunks::Failed(fault)) => Reply::to_fault(fault),
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
        let capabilities = self.capabilities();
        self.answer(Reply::list(250, &self.limits.hostname, capabilities))
    }

    /// The most important first: what would make the reply too long for Exim is left out, and understood nevertheless.
    fn capabilities(&self) -> Vec<String> {
        let size = self.limits.message_size;
        let size = size.map_or("SIZE".into(), |limit| format!("SIZE {limit}"));
        let usual = [
            "PIPELINING",
            "ENHANCEDSTATUSCODES",
            "8BITMIME",
            "SMTPUTF8",
            "CHUNKING",
        ];
        let mut words: Vec<String> = usual.map(String::from).to_vec();
        words.push(size);
        if self.offers_tls() {
            words.push("STARTTLS".into());
        }
        if self.limits.is_trusted {
            words.extend([XCLIENT, XFORWARD].map(String::from));
        }
        if self.is_proxy {
            words.extend(["XRCPTFORWARD", "IGNOREQUOTA"].map(String::from));
            if self.takes_errands() {
                words.push(ERRAND.into());
            }
            return words;
        }
        let mut length = line_length(&self.limits.hostname);
        words.retain(|word| {
            let longer = length + line_length(word);
            let fits = longer <= MAX_GREETING;
            if fits {
                length = longer;
            }
            fits
        });
        words
    }

    fn takes_errands(&self) -> bool {
        self.limits.is_trusted && self.limits.takes_errands
    }

    fn offers_tls(&self) -> bool {
        matches!(self.limits.starttls, StartTls::Offered | StartTls::Required)
    }

    fn start_tls(&mut self) -> Step {
        let reply = match self.limits.starttls {
            StartTls::Unavailable => Reply::new(502, "5.5.1", "TLS is not available"),
            StartTls::Done => Reply::new(502, "5.5.1", "TLS has begun already"),
            StartTls::Offered | StartTls::Required => {
                return Step::StartTls(Reply::new(220, "2.0.0", "Begin TLS now"));
            }
        };
        self.answer(reply)
    }

    /// Whom the client speaks for. What was said before counts no more, as after a new connection.
    fn xclient(&mut self, attributes: &[(String, String)]) -> Step {
        if let Some(reply) = self.not_to_be_believed() {
            return self.answer(reply);
        }
        let session = match self.client.take(attributes) {
            Ok(session) => session,
            Err(reply) => return self.answer(reply),
        };
        if let Some(id) = session {
            self.id = id;
            self.transactions = 0;
        }
        self.helo = None;
        self.is_proxy = true;
        self.forwarded = Forwarded::default();
        let greeting = self.greeting();
        self.answer(greeting)
    }

    fn xforward(&mut self, attributes: &[(String, String)]) -> Step {
        if let Some(reply) = self.not_to_be_believed() {
            return self.answer(reply);
        }
        self.forwarded.take(attributes);
        self.answer(Reply::new(250, "2.0.0", "OK"))
    }

    /// Why somebody is not believed when he says who he is.
    fn not_to_be_believed(&self) -> Option<Reply> {
        match (self.limits.is_trusted, &self.transaction) {
            (false, _) => Some(Reply::new(550, "5.7.14", "You are not trusted here")),
            (true, Some(_)) => Some(Reply::new(503, "5.5.0", "Not within a transaction")),
            (true, None) => None,
        }
    }

    /// LHLO is not asked for first: Dovecot does not either, and nothing depends on it.
    fn mail(&mut self, sender: ReversePath, broken: Option<String>, parameters: OfMail) -> Step {
        if let Some(reply) = self.out_of_place(Verb::Mail) {
            return self.answer(reply);
        }
        if self.limits.starttls == StartTls::Required {
            return self.answer(Reply::new(530, "5.7.0", "STARTTLS comes first"));
        }
        if let (Some(size), Some(limit)) = (parameters.size, self.limits.message_size)
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
            forwarded: std::mem::take(&mut self.forwarded),
            smtputf8: parameters.smtputf8,
            announced: parameters.size.unwrap_or(0),
            // From anybody else it says nothing (RFC 4954 section 5).
            authenticated: parameters
                .authenticated
                .filter(|_| self.limits.is_trusted)
                .or_else(|| self.client.login.clone()),
            recipients: Vec::new(),
            accepted: Vec::new(),
            chunks: Chunks::None,
        });
        self.answer(Reply::new(250, "2.1.0", "OK"))
    }

    fn rcpt(&mut self, address: Address, parameters: OfRcpt) -> Step {
        if let Some(reply) = self.out_of_place(Verb::Rcpt) {
            return self.answer(reply);
        }
        if parameters.forward.is_some() && !self.limits.is_trusted {
            let why = "XRCPTFORWARD: you are not trusted here";
            return self.answer(Reply::new(550, "5.7.14", why));
        }
        if parameters.errand.is_some() && !self.takes_errands() {
            let why = "XPOSTROOM: no errands are done for you";
            return self.answer(Reply::new(550, "5.7.14", why));
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
        let same = transaction.recipients.iter().position(|known| {
            known.address.is_same_as(&address) && known.errand == parameters.errand
        });
        if let Some(known) = same {
            transaction.accepted.push(known);
            return self.answer(Reply::accepted(&address));
        }
        let recipient = Recipient {
            original: parameters.original,
            authenticated: transaction.authenticated.clone(),
            ignore_quota: parameters.ignore_quota && self.limits.is_trusted,
            forward: parameters.forward,
            errand: parameters.errand,
            hops: self.client.ttl.unwrap_or(MAX_HOPS),
            announced: Some(transaction.announced),
            ..Recipient::new(address)
        };
        self.pending = Some(Pending::Check(Box::new(recipient.clone())));
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
            Some(transaction) => {
                self.pending = Some(Pending::Data);
                return Step::Data {
                    go_ahead: Reply::bare(354, "OK"),
                    limit: self.limits.message_size,
                    announced: transaction.announced,
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

/// Of `250-word` and a line end.
fn line_length(word: &str) -> usize {
    "250-".len() + word.len() + 1
}

fn need_mail() -> Reply {
    Reply::new(503, "5.5.0", "MAIL comes first")
}

#[cfg(test)]
mod tests;
