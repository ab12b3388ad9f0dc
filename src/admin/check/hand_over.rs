//! Whether Dovecot can be given what only Dovecot writes.

use std::io::{self, Write};
use std::path::Path;

use super::Findings;
use crate::config::Config;
use crate::mailbox::agent::Agent;
use crate::mailbox::namespace::{OnDenied, OnMissing};
use crate::sys::dir;

impl<W: Write> Findings<'_, W> {
    /// The ways to Dovecot that are in use, each once.
    pub(super) fn hand_over(&mut self, config: &Config) -> io::Result<()> {
        let all = config.delivery.namespaces.iter();
        let dovecots = all.clone().filter(|it| it.location.dovecots().is_some());
        let mut agents: Vec<&Agent> = Vec::new();
        for agent in dovecots.filter_map(|it| it.location.hand_over.as_ref()) {
            if !agents.contains(&agent) {
                agents.push(agent);
            }
        }
        for agent in agents {
            let found = match agent {
                Agent::Lmtp { host, .. } if host.starts_with('/') => {
                    dir::stat(Path::new(host)).map(|_| ())
                }
                Agent::Lmtp { .. } => Ok(()),
                Agent::Lda { program, .. } => dir::may_run(program),
            };
            if let Err(error) = found {
                let what = format!("hand_over {agent}: {error}: mail for Dovecot is deferred");
                self.error(&what, "start Dovecot, or write where it is")?;
            }
        }
        let settings = &config.delivery;
        for namespace in all.filter(|it| it.location.dovecots().is_some()) {
            let on_missing = namespace.on_missing.unwrap_or(settings.on_missing);
            let is_kept = matches!(on_missing, OnMissing::Inbox | OnMissing::Create)
                && settings.on_denied == OnDenied::Inbox;
            if !is_kept {
                let what = format!(
                    "namespace {}: Dovecot takes INBOX for a mailbox that is missing or closed, \
                     whatever on_missing and on_denied say",
                    namespace.name
                );
                let advice =
                    "set both to \"inbox\", or keep its mailboxes in a format that Postroom writes";
                self.warning(&what, advice)?;
            }
        }
        if config.delivery.runs_programs() {
            self.note("hand_over runs dovecot-lda: workers go without Landlock")?;
        }
        Ok(())
    }
}
