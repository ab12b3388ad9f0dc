//! `postroom check`: every problem of the config and of what it points to, with advice.

mod addresses;
mod against;
mod front;
mod hand_over;
mod mboxes;
mod userdbs;

use std::io::{self, Write};
use std::path::Path;

use crate::config::{self, Config};
use crate::deliver::settings::{Acl, AclDriver, Detail, Subject};
use crate::lmtp::Listen;
use crate::mailbox::namespace::{Kind, Namespace};
use crate::mailbox::permission::SETGID;
use crate::sys::{dir, nss, process};
use crate::user::Userdb;

/// Prints all findings; with `against`, also what a Dovecot configuration says otherwise. Exit 0, or 78 when one of them is an error.
pub fn check(path: Option<&Path>, against: Option<&Path>, out: &mut impl Write) -> io::Result<u8> {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(errors) => {
            write!(out, "{errors}")?;
            return Ok(78);
        }
    };
    if let Some(warnings) = &config.warnings {
        write!(out, "{warnings}")?;
    }
    let mut findings = Findings {
        out,
        errors: 0,
        warnings: 0,
    };
    // Before root has read what the front may not.
    findings.front(&config)?;
    for namespace in config.delivery.namespaces.iter() {
        findings.namespace(namespace)?;
    }
    findings.mboxes(&config)?;
    findings.hand_over(&config)?;
    findings.userdbs(&config)?;
    findings.placement(&config)?;
    findings.addresses(&config)?;
    findings.routes(&config)?;
    findings.places(&config)?;
    findings.listeners(&config)?;
    findings.reach(&config)?;
    findings.sender(&config)?;
    findings.container()?;
    if let Some(file) = against {
        findings.against(&config, file)?;
    }
    if !config.lmtp.listen.is_empty() {
        let what = "lmtp: DSN is not offered: who asks for a notice of delivery hears from the MTA that his mail was relayed";
        findings.note(what)?;
    }
    let Findings {
        errors, warnings, ..
    } = findings;
    let file = config
        .path
        .as_ref()
        .map_or("built-in defaults".into(), |path| {
            path.display().to_string()
        });
    writeln!(
        out,
        "{file}: {errors} errors, {warnings} warnings outside the file"
    )?;
    Ok(if errors > 0 { 78 } else { 0 })
}

struct Findings<'a, W> {
    out: &'a mut W,
    errors: usize,
    warnings: usize,
}

impl<W: Write> Findings<'_, W> {
    fn error(&mut self, what: &str, advice: &str) -> io::Result<()> {
        self.errors += 1;
        writeln!(self.out, "error: {what}\n  = help: {advice}")
    }

    fn warning(&mut self, what: &str, advice: &str) -> io::Result<()> {
        self.warnings += 1;
        writeln!(self.out, "warning: {what}\n  = help: {advice}")
    }

    /// Neither wrong nor odd: what the admin may not expect.
    fn note(&mut self, what: &str) -> io::Result<()> {
        writeln!(self.out, "note: {what}")
    }

    fn placement(&mut self, config: &Config) -> io::Result<()> {
        let Some(placement) = &config.delivery.placement else {
            return Ok(());
        };
        if let Err(fault) = placement.asked("", "") {
            let what = format!("placement: {fault}: every delivery is deferred");
            self.error(&what, "see that its table can be asked")?;
        }
        if let Some(path) = &placement.ca_file
            && let Err(error) = std::fs::File::open(path)
        {
            let what = format!("placement.ssl_client_ca_file: {}: {error}", path.display());
            let advice = "make it: without it no certificate of another server counts";
            self.error(&what, advice)?;
        }
        Ok(())
    }

    /// A root that is the same for all users can be looked at without one.
    fn namespace(&mut self, namespace: &Namespace) -> io::Result<()> {
        let path = &namespace.location.path;
        let is_dovecots = namespace.location.dovecots().is_some();
        if is_dovecots || path.has_variables() || path.uses_user() {
            return Ok(());
        }
        let (name, root) = (&namespace.name, path.source());
        let stat = match dir::stat(Path::new(root)) {
            Ok(stat) => stat,
            Err(error) => {
                let advice = format!(
                    "mkdir -p {root}, with the group and mode that its mailboxes shall have"
                );
                return self.error(&format!("namespace {name:?}: {root}: {error}"), &advice);
            }
        };
        let group_matters = (stat.mode >> 3) & 7 != stat.mode & 7;
        if namespace.kind != Kind::Private && group_matters && stat.mode & SETGID == 0 {
            let what = format!(
                "namespace {name:?}: {root} is for its group and not setgid: new files get it only from members"
            );
            return self.warning(
                &what,
                &format!("chmod g+s {root}, and its mailboxes with cur, new and tmp"),
            );
        }
        Ok(())
    }

    fn userdbs(&mut self, config: &Config) -> io::Result<()> {
        for unavailable in config.delivery.userdbs.unavailable() {
            let what = format!("{unavailable}: every delivery is deferred");
            self.error(&what, "make the file, readable for whoever delivers")?;
        }
        let list = &config.delivery.userdbs.list;
        let before_others = list.split_last().map_or(&[][..], |(_, before)| before);
        for userdb in before_others {
            let Userdb::PasswdFile(file) = userdb else {
                continue;
            };
            let users = file.for_logins().unwrap_or_default();
            if let Some(first) = users.first() {
                let what = format!(
                    "{}: {} of its lines, as that of {first:?}, end before the gid: the userdbs behind it are asked for them first",
                    file.name(),
                    users.len()
                );
                let advice = format!("write {first}::: where mail is meant to go by this file");
                self.warning(&what, &advice)?;
            }
        }
        Ok(())
    }

    /// What must be there.
    fn places(&mut self, config: &Config) -> io::Result<()> {
        if let Some(path) = &config.delivery.spool_dir
            && let Err(error) = dir::stat(path)
        {
            let path = path.display();
            let what = format!("delivery.spool_dir: {path}: {error}: large messages are deferred");
            self.error(
                &what,
                &format!("mkdir -m 0700 {path}, owned by whoever delivers"),
            )?;
        }
        if let Some(path) = &config.delivery.acl.global_path
            && let Err(error) = dir::stat(path)
        {
            let what = format!("acl.global_path: {}: {error}", path.display());
            self.error(&what, "make it, or take the setting out: it stops nobody")?;
        }
        for path in &config.delivery.required_paths {
            if let Err(error) = dir::stat(path) {
                let what = format!(
                    "required path {}: {error}: every delivery is deferred",
                    path.display()
                );
                self.error(
                    &what,
                    "mount the store, or take the path off delivery.required_paths",
                )?;
            }
        }
        Ok(())
    }

    fn listeners(&mut self, config: &Config) -> io::Result<()> {
        let mails = config.lmtp.listen.iter();
        let others = [&config.socketmap, &config.status, &config.lda_server.listen];
        for listen in mails.chain(others.into_iter().flatten()) {
            let Listen::Unix {
                path,
                mode,
                user,
                group,
                ..
            } = listen
            else {
                continue;
            };
            let owner = user.as_deref().map(|it| ("user", it, nss::uid(it)));
            let group = group.as_deref().map(|it| ("group", it, nss::gid(it)));
            for (kind, name, found) in [owner, group].into_iter().flatten() {
                if !matches!(found, Ok(Some(_))) {
                    let what = format!("listen {}: there is no {kind} {name:?}", path.display());
                    self.error(&what, &format!("write the name of a {kind}, or a number"))?;
                }
            }
            let folder = path.parent().unwrap_or(Path::new("/"));
            if let Err(error) = dir::stat(folder) {
                let what = format!("listen {}: {}: {error}", path.display(), folder.display());
                self.error(&what, &format!("mkdir {}", folder.display()))?;
            }
            // An LDA of anybody may come to its socket.
            let (may, group) = match () {
                () if config.lmtp.listen.contains(listen) => ("inject mail", "postfix"),
                () if config.socketmap.contains(listen) => ("find out who has mail", "postfix"),
                () if config.status.contains(listen) => ("read who is connected", "adm"),
                () => continue,
            };
            if mode & 0o002 != 0 {
                let place = path.display();
                let what = format!("listen {place}: mode {mode:04o} lets every local user {may}");
                let advice = format!("write mode = \"0660\" and group = \"{group}\"");
                self.warning(&what, &advice)?;
            }
        }
        Ok(())
    }

    /// Who says who sends.
    fn sender(&mut self, config: &Config) -> io::Result<()> {
        let settings = &config.delivery;
        let of_rules = settings
            .addresses
            .rules
            .values()
            .filter_map(|rule| rule.subject);
        let mut subjects = of_rules.chain([settings.acl.subject]);
        if !subjects.any(|subject| subject == Subject::AuthenticatedSender) {
            return Ok(());
        }
        self.warning(
            "subject \"authenticated-sender\": Postfix's lmtp client vouches for nobody",
            "only an MTA that sends AUTH= to a trusted socket does, or the LDA's --authenticated; else what anyone may counts",
        )
    }

    /// Dovecot's locks name a process and a host.
    fn container(&mut self) -> io::Result<()> {
        if !process::has_own_pids() {
            return Ok(());
        }
        let what = format!(
            "this container has process IDs of its own: a Dovecot outside it whose host name is {:?} too takes our locks for \
             those of the dead",
            process::hostname()
        );
        self.warning(
            &what,
            "give each container that shares the store a host name of its own",
        )
    }

    /// What a stranger can reach by a detail.
    fn reach(&mut self, config: &Config) -> io::Result<()> {
        let settings = &config.delivery;
        if settings.detail != Detail::Mailbox {
            return Ok(());
        }
        for namespace in settings
            .namespaces
            .iter()
            .filter(|namespace| namespace.kind != Kind::Private)
        {
            let Namespace { name, prefix, .. } = namespace;
            let who = match settings.acl {
                Acl {
                    driver: AclDriver::None,
                    ..
                } => "whatever file modes allow",
                Acl {
                    driver: AclDriver::Vfile,
                    ..
                } => "where its dovecot-acl lets the user insert or post",
            };
            let what = format!(
                "namespace {name:?}: mail from outside reaches {prefix}… by user+{prefix}…, {who}"
            );
            self.warning(
                &what,
                "that is what delivery.detail = \"mailbox\" says; \"private\" closes it",
            )?;
        }
        Ok(())
    }
}
