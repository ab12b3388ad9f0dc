//! Whether the locks of mboxes can be made where they lie.

use std::io::{self, Write};
use std::path::Path;

use super::Findings;
use crate::config::Config;
use crate::mailbox::location::Driver;
use crate::mailbox::namespace::Namespace;
use crate::mbox::lock::{Kind, Locking};
use crate::sys::dir::{self, Dir, Stat};

impl<W: Write> Findings<'_, W> {
    /// Looks at the directories that are the same for all users.
    pub(super) fn mboxes(&mut self, config: &Config) -> io::Result<()> {
        let locking = &config.delivery.mbox.locking;
        let namespaces = config.delivery.namespaces.iter();
        let namespaces = namespaces.filter(|it| it.location.dovecots().is_none());
        for namespace in namespaces.filter(|it| it.location.driver == Driver::Mbox) {
            let location = &namespace.location;
            for path in [Some(&location.path), location.inbox_path.as_ref()] {
                let fixed = path.and_then(|path| path.fixed_part()).map(Path::new);
                let Some(folder) = fixed else { continue };
                if let Ok(stat) = dir::stat(folder) {
                    self.mbox_folder(config, namespace, folder, &stat)?;
                }
                self.mbox_links(config, locking, folder)?;
            }
        }
        Ok(())
    }

    fn mbox_folder(
        &mut self,
        config: &Config,
        namespace: &Namespace,
        folder: &Path,
        stat: &Stat,
    ) -> io::Result<()> {
        let locking = &config.delivery.mbox.locking;
        if !locking.kinds.contains(&Kind::Dotlock) || can_be_changed(config, stat) {
            return Ok(());
        }
        let (name, folder, gid) = (&namespace.name, folder.display(), stat.gid);
        let what = format!(
            "namespace {name:?}: dotlocks in {folder} can be made only by who has it (mode {:04o} uid {} gid {gid})",
            stat.mode, stat.uid
        );
        let advice = match (stat.uid, stat.mode & 0o020) {
            (0, 0o020) => format!(
                "set mail_privileged_group = {gid}, or mbox_write_locks = [\"fcntl\"] in all programs"
            ),
            _ => "give it to a group that may write to it, and let mail_access_groups name that, or set mbox_write_locks = \
                  [\"fcntl\"] in all programs"
                .to_owned(),
        };
        self.warning(&what, &advice)
    }

    /// Mboxes that are reached by a symlink.
    fn mbox_links(&mut self, config: &Config, locking: &Locking, folder: &Path) -> io::Result<()> {
        let names = Dir::open(folder).and_then(|dir| dir.names());
        for name in names.unwrap_or_default() {
            let link = folder.join(name);
            let Some(real) = link.canonicalize().ok().filter(|_| link.is_symlink()) else {
                continue;
            };
            let holder = real.parent().and_then(|holder| dir::stat(holder).ok());
            let can_be_made = holder.is_some_and(|stat| can_be_changed(config, &stat));
            if !real.is_file() || can_be_made || !locking.kinds.contains(&Kind::Dotlock) {
                continue;
            }
            let shown = format!("{} -> {}", link.display(), real.display());
            match locking.clone().of_linked().kinds.contains(&Kind::Dotlock) {
                false => self.warning(
                    &format!("{shown}: no dotlock can be made beside it, fcntl or flock alone lock it"),
                    "let all programs that write to it use the same kernel lock",
                )?,
                true => self.warning(
                    &format!("{shown}: no dotlock can be made beside it, and mbox_write_locks has no other lock"),
                    "add \"fcntl\" to mbox_write_locks",
                )?,
            }
        }
        Ok(())
    }
}

/// By whoever delivers: as far as that can be told for all users.
fn can_be_changed(config: &Config, stat: &Stat) -> bool {
    let service = &config.service;
    let own = service.mail_uid == Some(stat.uid) && stat.mode & 0o200 != 0;
    let groups = service.groups.iter().chain(&service.mail_gid);
    let is_in_group = { groups }.any(|gid| *gid == stat.gid);
    let is_privileged = service.privileged == Some(stat.gid) && stat.uid == 0;
    let of_group = stat.mode & 0o020 != 0 && (is_in_group || is_privileged);
    own || of_group || stat.mode & 0o002 != 0
}
