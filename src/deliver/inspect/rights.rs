//! The rights step: may this subject store here?

use super::{Finding, Inspection};
use crate::deliver::report::Line;
use crate::deliver::resolve::Target;
use crate::fault::{Code, Fault};
use crate::mailbox::acl::sources::Unreadable;
use crate::mailbox::acl::{Identity, Rights, Sources};
use crate::message::Flags;

/// What a missing mailbox is called, and one that the subject may not know of.
const MISSING: &str = "the mailbox does not exist";

impl Inspection<'_> {
    /// The finding that ends the look at an existing mailbox; none where the subject may store.
    pub fn check_rights(&mut self, target: &Target) -> Result<Option<Finding>, Fault> {
        let Some(sources) = target.acl.as_ref().filter(|_| !target.own_inbox) else {
            return Ok(None);
        };
        self.rights = self.rights(target, sources)?;
        match self.refusal(&self.rights) {
            // Were it missing, it would be made or be refused for that: so is this.
            Some(Finding::Missing(why)) if target.create => {
                let refusal = self.check_rights_to_create(target)?;
                Ok(refusal.or(Some(Finding::Missing(why))))
            }
            refusal => Ok(refusal),
        }
    }

    /// For a mailbox that a delivery would make: the right to make it, and the right to store in it, by the
    /// entries that it would inherit.
    pub fn check_rights_to_create(&mut self, target: &Target) -> Result<Option<Finding>, Fault> {
        let Some(sources) = target.acl.as_ref().filter(|_| !target.own_inbox) else {
            return Ok(None);
        };
        self.rights = self.rights(target, &sources.of_new(target.parent()))?;
        if !self.rights.create() && !target.is_configured {
            let why = "there is no right to create a mailbox there (k)";
            return Ok(Some(match self.rights.lookup() {
                true => Finding::Denied(why.into()),
                false => Finding::Missing(why.into()),
            }));
        }
        Ok(self.refusal(&self.rights))
    }

    /// The flags that the rights allow, and what is said of the others.
    pub fn flags(&self, target: &Target) -> (Flags, Option<String>) {
        let wanted = self.targets.flags;
        let allowed = wanted.allowed_by(|right| self.rights.has(right));
        // Where each user has a \Seen of his own, it is not set for all of them.
        let stored = match target.paths.index_private.is_some() {
            true => allowed.without(Flags::SEEN),
            false => allowed,
        };
        let dropped = wanted.without(stored);
        let said = (!dropped.is_empty()).then(|| format!("stored without {dropped}"));
        (stored, said)
    }

    fn rights(&mut self, target: &Target, sources: &Sources) -> Result<Rights, Fault> {
        let subject = &target.subject;
        let identity = Identity {
            name: subject.name.as_deref(),
            groups: &subject.groups,
            is_owner: subject.is_owner,
        };
        let effective = match sources.effective(&identity) {
            Ok(effective) => effective,
            Err(unreadable) => return self.without_a_file(target, unreadable),
        };
        let who = subject.name.as_deref().unwrap_or("nobody in particular");
        let by = match effective.trace.last() {
            Some(step) => step.entry.clone(),
            None => "the owner has all".into(),
        };
        let text = format!("{who} has {} by {by}", effective.rights);
        self.lines.push(Line::ok("rights", text));
        Ok(effective.rights)
    }

    /// What a file that says nothing means: the owner is not stopped by it, which is the one stated difference to Dovecot.
    fn without_a_file(&mut self, target: &Target, unreadable: Unreadable) -> Result<Rights, Fault> {
        let Unreadable { file, error } = unreadable;
        let shown = format!("{}:{}: {}", file.display(), error.line, error.why);
        if target.subject.is_owner {
            let text = format!("the owner is not stopped by {shown}");
            self.lines.push(Line::ok("rights", text));
            return Ok(Rights::all());
        }
        if error.closed && self.targets.by.is_strangers() {
            self.lines
                .push(Line::ok("rights", format!("none; {shown}")));
            return Ok(Rights::none());
        }
        let doing = format!("read the rights in {}, line {}", file.display(), error.line);
        self.end("rights", Fault::new(Code::CannotTell, doing, error.why))
    }

    /// The finding when these rights do not allow a delivery. Without `l` nobody learns that the mailbox exists.
    fn refusal(&self, rights: &Rights) -> Option<Finding> {
        let allowed = self.settings.acl.delivery_right.is_given_by(rights);
        match (allowed, rights.lookup()) {
            (true, _) => None,
            (false, true) => Some(Finding::Denied("there is no right to deliver".into())),
            (false, false) => Some(Finding::Missing(MISSING.into())),
        }
    }
}
