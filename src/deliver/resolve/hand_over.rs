//! The way of a message into a mailbox that only Dovecot writes.

use super::Resolver;
use crate::fault::{Code, Fault};
use crate::mailbox::agent::{Agent, HandOver};
use crate::mailbox::location::Location;
use crate::mailbox::name::StorageName;
use crate::mailbox::namespace::{Kind, Namespace};
use crate::message::Address;

impl Resolver<'_> {
    /// What Dovecot cannot put into a mailbox it puts into the INBOX of the user who delivers. Nobody reads the mail there that
    /// is for an address of a mailbox, or that another server has passed on.
    pub(super) fn check_fallback(
        &self,
        mailbox: &str,
        namespace: &Namespace,
        storage: &StorageName,
    ) -> Result<(), Fault> {
        if namespace.kind == Kind::Private && *storage == StorageName::Inbox {
            return Ok(());
        }
        let doing = format!("hand mail for {mailbox:?} over to Dovecot");
        let why = format!(
            "where it cannot store it, it would put it into the INBOX of {}",
            self.user.name
        );
        let advice = "keep a mailbox with an address of its own, or one that other servers send to, in a format that Postroom writes";
        Err(Fault::new(Code::CannotTell, doing, why).with_advice(advice))
    }

    /// The way of a message into a mailbox that only Dovecot writes; none: we write it. A fault: no way names it.
    pub(super) fn hand_over(
        &self,
        mailbox: &str,
        namespace: &Namespace,
        storage: &StorageName,
    ) -> Result<Option<HandOver>, Fault> {
        let location = &namespace.location;
        let Some(format) = location.dovecots() else {
            return Ok(None);
        };
        let failed = |why: String| {
            let doing = format!("hand mail for {mailbox:?} over to Dovecot");
            Fault::new(Code::CannotTell, doing, why)
        };
        let agent = location.hand_over.clone();
        let agent = agent.ok_or_else(|| failed(format!("{format}, and hand_over is not set")))?;
        let is_inbox = namespace.kind == Kind::Private && *storage == StorageName::Inbox;
        let recipient = match &agent {
            Agent::Lda { .. } => {
                let original = self.recipient.original.clone();
                let original = original.filter(|it| Address::parse(it).is_ok());
                let original = original.unwrap_or_else(|| self.recipient.address.to_string());
                // An address literal ends dovecot-lda with a wrong usage.
                Some(original)
                    .filter(|it| it.is_ascii() && !it.contains("@["))
                    .unwrap_or_default()
            }
            Agent::Lmtp { .. } => {
                let detail = match is_inbox {
                    true => None,
                    false => Some(self.detail_of(mailbox, location).map_err(failed)?),
                };
                self.address_with(detail).map_err(failed)?
            }
        };
        Ok(Some(HandOver { agent, recipient }))
    }

    /// What Dovecot's LMTP server must hear as a detail to put mail into this mailbox: it puts the prefix of INBOX before it.
    pub(super) fn detail_of<'m>(
        &self,
        mailbox: &'m str,
        location: &Location,
    ) -> Result<&'m str, String> {
        if !location.hand_over_detail {
            return Err(
                "over LMTP it puts mail into INBOX, unless it has lmtp_save_to_detail_mailbox (hand_over_detail)".into(),
            );
        }
        let prefix = self.namespaces.iter().find(|it| it.inbox);
        let prefix = prefix.map_or("".into(), |it| it.prefix_for(&self.user.name));
        let detail = mailbox.strip_prefix(prefix.as_ref());
        let detail = detail.filter(|it| !it.is_empty());
        let detail = detail
            .ok_or_else(|| format!("over LMTP only mailboxes below {prefix:?} have a name"))?;
        match detail.is_ascii() {
            true => Ok(detail),
            false => Err("over LMTP only mailboxes in ASCII have a name".into()),
        }
    }

    /// The address that means this user and this detail to Dovecot: as the client gave it, where it is his.
    pub(super) fn address_with(&self, detail: Option<&str>) -> Result<String, String> {
        let ours = &self.settings.recipient_delimiter;
        let (delimiters, divider) = match ours.chars().next() {
            Some(first) => (ours.as_str(), first),
            None => ("+", '+'),
        };
        let is_given =
            !self.by_rule && self.recipient.user.is_none() && self.recipient.errand.is_none();
        let address = match is_given {
            true => self.recipient.address.split_detail(ours).0,
            false => Address::parse(&self.user.name)
                .map_err(|why| format!("{:?} is no address: {why}", self.user.name))?,
        };
        // Whose delimiter is another one has a detail of nobody's in every name with a plus: Dovecot's is that by default.
        if address
            .local
            .contains(|c| delimiters.contains(c) || c == '+')
        {
            return Err(format!("it would read a detail in {}", address.local));
        }
        let local = match detail {
            Some(detail) => format!("{}{divider}{detail}", address.local),
            None => address.local,
        };
        Ok(Address { local, ..address }.to_string())
    }
}
