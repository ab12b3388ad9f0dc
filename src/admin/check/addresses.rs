//! The address map and the routes: each must lead somewhere.

use std::io::{self, Write};

use super::Findings;
use crate::config::Config;
use crate::deliver::Settings;
use crate::deliver::resolve::resolve;
use crate::deliver::targets::Wanted;
use crate::message::{Address, Recipient};

impl<W: Write> Findings<'_, W> {
    /// The address map: whether its tables answer, and each rule of the file leads to a mailbox.
    pub fn addresses(&mut self, config: &Config) -> io::Result<()> {
        let settings = &config.delivery;
        for why in settings.addresses.unavailable() {
            let what = format!("{why}: every delivery is deferred");
            self.error(&what, "mend it, or take it out of [address_map]")?;
        }
        let mut rules: Vec<_> = settings.addresses.rules.iter().collect();
        rules.sort_by(|(_, one), (_, other)| one.from.cmp(&other.from));
        for (address, rule) in rules {
            // A pattern is tried as somebody whom it may stand for.
            let address = Address::parse(&address.replacen('*', "postmaster", 1));
            let recipient = address.map(|address| Recipient {
                user: Some(rule.user.clone()),
                mailbox: Some(rule.mailbox.clone()),
                ..Recipient::new(address)
            });
            if let Ok(recipient) = recipient
                && let Some(why) = leads_nowhere(settings, &recipient)
            {
                let what = format!("{}: {why}", rule.from);
                self.error(&what, "write a user and a mailbox as he names it")?;
            }
        }
        Ok(())
    }

    /// `[[route]]`: whether there is a mailbox of the special use that one names.
    pub fn routes(&mut self, config: &Config) -> io::Result<()> {
        let settings = &config.delivery;
        for route in &settings.routes {
            let has_it = |special: &str| special.eq_ignore_ascii_case(&route.mailbox);
            let mut blocks = settings.namespaces.iter().flat_map(|it| &it.mailboxes);
            let is_special = route.mailbox.starts_with('\\');
            if is_special && !blocks.any(|block| block.special_use.iter().any(|it| has_it(it))) {
                let what = format!("{}: no mailbox is {}", route.from, route.mailbox);
                let advice = "give one that special_use: [namespace.….mailbox.NAME]";
                self.warning(&what, advice)?;
            }
        }
        Ok(())
    }
}

/// Why mail for `recipient`, whom a rule has made, has no place, whatever is there.
fn leads_nowhere(settings: &Settings, recipient: &Recipient) -> Option<String> {
    match resolve(settings, settings, recipient, None) {
        Err(fault) => Some(fault.to_string()),
        Ok(targets) if targets.node.is_some() => None,
        Ok(targets) => match targets.wanted {
            Wanted::Target(target) if target.hand_over.is_some() && !target.own_inbox => {
                Some(format!(
                    "{}: only Dovecot writes it, and what it cannot store there it would put into the INBOX of {}",
                    target.mailbox, targets.user.name
                ))
            }
            // Whoever has it says what it is.
            Wanted::Target(_) | Wanted::Elsewhere { .. } => None,
            Wanted::Missing { mailbox, why } | Wanted::Denied { mailbox, why } => {
                Some(format!("{mailbox}: {why}"))
            }
        },
    }
}
