//! What holds for the answers of all userdbs: who may have mail at all, and what stands where an answer says nothing.

use std::path::PathBuf;

use super::{Answer, Credentials, Unavailable, User};
use crate::sys::nss;
use crate::text::template::{Template, Variables};

/// Bounds and defaults for every answer (Dovecot's settings of these names).
#[derive(Debug, Clone)]
pub struct Limits {
    /// `%{hostname}` in what a userdb says.
    pub hostname: String,
    pub mail_uid: Option<u32>,
    pub mail_gid: Option<u32>,
    pub mail_home: Option<Template>,
    /// Supplementary groups that every user has while mail is delivered.
    pub mail_access_groups: Vec<u32>,
    /// Of a spool that root has given to a group: for the locks and the new INBOXes in it.
    pub mail_privileged_group: Option<u32>,
    pub first_valid_uid: u32,
    /// 0: no limit.
    pub last_valid_uid: u32,
    pub first_valid_gid: u32,
    /// 0: no limit.
    pub last_valid_gid: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            hostname: String::new(),
            mail_uid: None,
            mail_gid: None,
            mail_home: None,
            mail_access_groups: Vec::new(),
            mail_privileged_group: None,
            first_valid_uid: 500,
            last_valid_uid: 0,
            first_valid_gid: 1,
            last_valid_gid: 0,
        }
    }
}

/// The uid of whoever has none here, in file systems and user namespaces: it owns what is nobody's.
const NOBODY: u32 = 65_534;
/// -1, which system calls take for "as it is": a process that root has forked would stay root.
const NO_ID: u32 = u32::MAX;

impl Limits {
    /// Within `first_valid_uid` and `last_valid_uid`; never root or nobody, whatever these say.
    pub(super) fn uid_is_valid(&self, uid: u32) -> bool {
        ![0, NOBODY, NO_ID].contains(&uid)
            && uid >= self.first_valid_uid
            && (self.last_valid_uid == 0 || uid <= self.last_valid_uid)
    }

    fn gid_is_valid(&self, gid: u32) -> bool {
        ![0, NO_ID].contains(&gid)
            && gid >= self.first_valid_gid
            && (self.last_valid_gid == 0 || gid <= self.last_valid_gid)
    }

    /// Whether a process may take on this identity to deliver; an error says why not.
    pub fn check_identity(&self, who: &Credentials) -> Result<(), String> {
        if !self.uid_is_valid(who.uid) {
            return Err(format!("uid {} may not have mail", who.uid));
        }
        let is_access_group = |gid: &u32| self.mail_access_groups.contains(gid);
        let all = who.groups.iter().chain([&who.gid]);
        if let Some(gid) = all
            .filter(|gid| !is_access_group(gid))
            .find(|gid| !self.gid_is_valid(**gid))
        {
            return Err(format!("gid {gid} may not have mail"));
        }
        match who.privileged == self.mail_privileged_group {
            true => Ok(()),
            false => Err("its privileged group is not that of the configuration".into()),
        }
    }

    /// Fills in what the userdb left open. An answer that cannot be used is "cannot tell", not "no such user".
    pub(super) fn complete(&self, answer: Answer) -> Result<User, Unavailable> {
        let unavailable = |why: String| Unavailable {
            userdb: answer.origin.clone(),
            why,
        };
        if answer.extra.contains_key("chroot") {
            // Not followed, mail would lie elsewhere than its readers look.
            let why = format!("{} has chroot, and mail is stored in none", answer.name);
            return Err(unavailable(why));
        }
        let uid = answer.uid.or(self.mail_uid);
        let uid =
            uid.ok_or_else(|| unavailable(format!("{} has no uid (see mail_uid)", answer.name)))?;
        let gid = answer.gid.or(self.mail_gid);
        let gid =
            gid.ok_or_else(|| unavailable(format!("{} has no gid (see mail_gid)", answer.name)))?;
        if !self.uid_is_valid(uid) {
            return Err(unavailable(format!(
                "uid {uid} of {} may not have mail (see first_valid_uid)",
                answer.name
            )));
        }
        if !self.gid_is_valid(gid) {
            return Err(unavailable(format!(
                "gid {gid} of {} may not have mail (see first_valid_gid)",
                answer.name
            )));
        }
        let home = match (&answer.home, &self.mail_home) {
            (Some(home), _) => Some(home.clone()),
            (None, Some(template)) => {
                let variables = Variables {
                    user: &answer.name,
                    hostname: &self.hostname,
                    ..Variables::default()
                };
                Some(PathBuf::from(
                    template
                        .expand(&variables)
                        .map_err(|missing| unavailable(missing.to_string()))?,
                ))
            }
            (None, None) => None,
        };
        if let Some(relative) = home.as_ref().filter(|home| !home.is_absolute()) {
            return Err(unavailable(format!(
                "the home {} of {} is not absolute",
                relative.display(),
                answer.name
            )));
        }
        let (groups, lent) = self.groups(&answer, gid).map_err(unavailable)?;
        let Answer {
            name,
            extra,
            origin,
            ..
        } = answer;
        Ok(User {
            name,
            credentials: Credentials {
                privileged: self.mail_privileged_group,
                ..Credentials::new(uid, gid, groups)
            },
            lent,
            home,
            extra,
            origin,
        })
    }

    /// Groups of the userdb, of `system_groups_user`, of `mail_access_groups`; and those that only the last one gives. Out of range:
    /// not taken.
    fn groups(&self, answer: &Answer, gid: u32) -> Result<(Vec<u32>, Vec<u32>), String> {
        let groups = answer.groups.iter().copied();
        let mut groups: Vec<u32> = groups.filter(|&gid| self.gid_is_valid(gid)).collect();
        if let Some(name) = answer.extra.get("system_groups_user") {
            let more =
                nss::groups(name, gid).map_err(|error| format!("groups of {name:?}: {error}"))?;
            groups.extend(more.into_iter().filter(|&gid| self.gid_is_valid(gid)));
        }
        let own = groups.clone();
        let mut lent = Vec::new();
        match answer.extra.get("mail_access_groups") {
            Some(named) => {
                for group in named
                    .split(',')
                    .map(str::trim)
                    .filter(|group| !group.is_empty())
                {
                    let gid =
                        nss::gid(group).map_err(|error| format!("group {group:?}: {error}"))?;
                    let gid = gid.ok_or_else(|| {
                        format!("there is no group {group:?} (mail_access_groups)")
                    })?;
                    if self.gid_is_valid(gid) || self.mail_access_groups.contains(&gid) {
                        lent.push(gid);
                    }
                }
            }
            None => lent.extend(&self.mail_access_groups),
        }
        groups.extend(&lent);
        lent.retain(|lent| *lent != gid && !own.contains(lent));
        groups.retain(|&gid| gid != 0);
        groups.sort_unstable();
        groups.dedup();
        Ok((groups, lent))
    }
}
