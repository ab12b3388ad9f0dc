//! The rights step: may this subject store here?

use super::{Finding, Inspection};
use crate::deliver::report::Line;
use crate::deliver::targets::Target;
use crate::fault::{Code, Fault};
use crate::mailbox::acl::sources::Unreadable;
use crate::mailbox::acl::{Identity, Rights, Sources};
use crate::message::{Flags, Keywords};

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
        let parent = match target.parent() {
            Ok(parent) => parent,
            Err(error) => {
                let doing = format!("look above {}", target.paths.mailbox.display());
                return self.end("rights", Fault::io(doing, &error));
            }
        };
        self.rights = self.rights(target, &sources.of_new(parent))?;
        if !self.rights.create() && !target.is_configured {
            let why = "there is no right to create a mailbox there (k)";
            return Ok(Some(match self.rights.lookup() {
                true => Finding::Denied(why.into()),
                false => Finding::Missing(why.into()),
            }));
        }
        Ok(self.refusal(&self.rights))
    }

    /// The flags and keywords that the message can have there, and what is said of the others.
    pub fn flags(&self, target: &Target) -> (Flags, Keywords, Option<String>) {
        let (wanted, keywords) = self.targets.marks_in(target);
        // Neither LMTP nor dovecot-lda has a word for them.
        if target.hand_over.is_some() {
            let dropped = [wanted.to_string(), keywords.to_string()];
            let dropped: Vec<&str> = dropped
                .iter()
                .map(String::as_str)
                .filter(|it| !it.is_empty())
                .collect();
            let said =
                (!dropped.is_empty()).then(|| format!("stored without {}", dropped.join(" ")));
            return (Flags::default(), Keywords::default(), said);
        }
        let allowed = wanted.allowed_by(|right| self.rights.has(right));
        // Where each user has a \Seen of his own, it is not set for all of them.
        let stored = match target.paths.index_private.is_some() {
            true => allowed.without(Flags::SEEN),
            false => allowed,
        };
        let why = match (self.rights.has('w'), target.control_per_user) {
            (true, false) => None,
            (true, true) => {
                Some(" (its control files are per user: to others they would be other keywords)")
            }
            (false, _) => Some(""),
        };
        let mut dropped = Vec::new();
        if stored != wanted {
            dropped.push(wanted.without(stored).to_string());
        }
        if let Some(why) = why.filter(|_| !keywords.is_empty()) {
            dropped.push(format!("{keywords}{why}"));
        }
        let said = (!dropped.is_empty()).then(|| format!("stored without {}", dropped.join(" ")));
        let keywords = match why {
            None => keywords,
            Some(_) => Keywords::default(),
        };
        (stored, keywords, said)
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use crate::config::Config;
    use crate::deliver::inspect::{Plan, inspect};
    use crate::deliver::resolve::resolve;
    use crate::message::{Flags, Keywords, Recipient};
    use crate::sys::credentials::Credentials;

    /// The plan for a message with \Seen, \Flagged and two keywords.
    fn planned(root: &Path, mailbox: &str) -> Plan {
        let root = root.display();
        let text = format!(
            "[[userdb]]\nstatic = {{ uid = 6001, gid = 6001, home = \"{root}/home\" }}\n\
             [acl]\ndriver = \"vfile\"\n\
             [namespace.inbox]\nseparator = \"/\"\ninbox = true\nmail_path = \"~/Maildir\"\n\
             mail_control_path = \"~/control\"\n\
             [namespace.public]\ntype = \"public\"\nseparator = \"/\"\nprefix = \"Public/\"\n\
             mail_path = \"{root}/public\"\nmail_index_private_path = \"~/seen\"\n\
             [namespace.apart]\ntype = \"public\"\nseparator = \"/\"\nprefix = \"Apart/\"\n\
             mail_path = \"{root}/apart\"\nmail_control_path = \"{root}/control/%{{user}}\"\n\
             mail_index_path = \"{root}/index/%{{user}}\"\n"
        );
        let settings = match Config::from_str("t.toml", &text) {
            Ok(config) => config.delivery,
            Err(errors) => panic!("{errors}"),
        };
        let keywords = ["$Junk", "Work"].map(|name| Keywords::parse(name).unwrap());
        let recipient = Recipient {
            mailbox: Some(mailbox.into()),
            flags: Flags::SEEN.with(Flags::parse("\\Flagged").unwrap()),
            keywords: keywords[0].clone().with(&keywords[1]),
            ..Recipient::of_user("alice")
        };
        let identity = Credentials::new(6001, 6001, vec![]);
        let targets = resolve(&settings, &settings, &recipient, None).unwrap();
        inspect(&settings, &targets, &identity, None).0.unwrap()
    }

    #[test]
    fn what_the_message_cannot_have_there_is_dropped() {
        const APART: &str =
            "(its control files are per user: to others they would be other keywords)";
        for (mailbox, folder, acl, letters, keywords, dropped) in [
            ("INBOX", "home/Maildir", "", "FS", "$Junk Work", ""),
            ("Public/a", "public/.a", "lpws", "F", "$Junk Work", "\\Seen"),
            (
                "Public/a",
                "public/.a",
                "lps",
                "",
                "",
                "\\Flagged \\Seen $Junk Work",
            ),
            (
                "Apart/a",
                "apart/.a",
                "lpws",
                "FS",
                "",
                &format!("$Junk Work {APART}"),
            ),
            (
                "Apart/a",
                "apart/.a",
                "lps",
                "S",
                "",
                "\\Flagged $Junk Work",
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            for part in ["cur", "new", "tmp"] {
                fs::create_dir_all(root.path().join(folder).join(part)).unwrap();
            }
            let file = root.path().join(folder).join("dovecot-acl");
            fs::write(file, format!("anyone {acl}\n")).unwrap();
            let plan = planned(root.path(), mailbox);
            assert_eq!(plan.flags.letters(), letters, "{mailbox} {acl}");
            assert_eq!(plan.keywords.to_string(), keywords, "{mailbox} {acl}");
            let said = plan.dropped.unwrap_or_default();
            let said = said.strip_prefix("stored without ").unwrap_or_default();
            assert_eq!(said, dropped, "{mailbox} {acl}");
        }
    }
}
