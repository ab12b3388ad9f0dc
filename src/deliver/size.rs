//! Whether a message is too large: for the server, for its user, or for the file system.

use std::path::Path;

use super::settings::Settings;
use crate::fault::{Code, Fault};
use crate::mailbox::quota;
use crate::user::User;

/// Fields of a userdb that limit the messages of one user: Dovecot 2.4's, and 2.3's.
const FIELDS: [&str; 2] = ["quota_mail_size", "quota_max_mail_size"];

/// The largest message that this user gets, in bytes, and what says so. None: any.
pub fn most(settings: &Settings, user: &User) -> Result<Option<(u64, &'static str)>, Fault> {
    let mut most = settings.message_size.map(|size| (size, "message_size"));
    for field in FIELDS {
        let Some(value) = user.extra.get(field) else {
            continue;
        };
        let size = quota::size(value, 1).ok_or_else(|| {
            let doing = format!("use what the userdb says of {}", user.name);
            Fault::new(Code::CannotTell, doing, format!("{field} is {value:?}"))
        })?;
        // 0 is no limit.
        if size > 0 && most.is_none_or(|(other, _)| size < other) {
            most = Some((size, field));
        }
    }
    Ok(most)
}

/// Refuses a message of so many bytes where that is more than its user gets.
pub fn check(most: Option<(u64, &'static str)>, size: u64) -> Result<(), Fault> {
    match most.filter(|&(limit, _)| size > limit) {
        Some((limit, setting)) => Err(Fault::new(
            Code::TooBig,
            format!("take {size} bytes"),
            format!("{setting} is {limit}"),
        )),
        None => Ok(()),
    }
}

/// Refuses a message of so many bytes for which the file system below `root` has no space, beside what is to stay free. Where that
/// cannot be told the delivery finds out.
pub fn check_space(settings: &Settings, root: &Path, size: u64) -> Result<(), Fault> {
    let needed = size.saturating_add(settings.min_free_space);
    if needed == 0 {
        return Ok(());
    }
    let Ok(free) = fs2::available_space(root) else {
        return Ok(());
    };
    if needed <= free {
        return Ok(());
    }
    let doing = format!("find space for {size} bytes below {}", root.display());
    let why = match settings.min_free_space {
        0 => format!("{free} bytes are free"),
        kept => format!("{free} bytes are free, of which min_free_space keeps {kept}"),
    };
    Err(Fault::new(Code::NoSpace, doing, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::sys::credentials;

    #[test]
    fn who_gets_how_much() {
        for (setting, fields, want) in [
            ("", &[][..], Some(None)),
            ("message_size = 100", &[], Some(Some(100))),
            ("", &[("quota_mail_size", "50")], Some(Some(50))),
            ("", &[("quota_max_mail_size", "1k")], Some(Some(1024))),
            (
                "message_size = 100",
                &[("quota_mail_size", "50")],
                Some(Some(50)),
            ),
            (
                "message_size = 100",
                &[("quota_mail_size", "1M")],
                Some(Some(100)),
            ),
            (
                "message_size = 100",
                &[("quota_mail_size", "0")],
                Some(Some(100)),
            ),
            ("", &[("quota_mail_size", "unlimited")], Some(None)),
            ("", &[("quota_mail_size", "much")], None),
        ] {
            let text = format!("[delivery]\n{setting}\n");
            let settings = Config::from_str("test", &text).unwrap().delivery;
            let fields = fields
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()));
            let user = User {
                name: "a".into(),
                credentials: credentials::effective(),
                lent: Vec::new(),
                home: None,
                extra: fields.collect(),
                origin: String::new(),
            };
            let found = most(&settings, &user).ok();
            assert_eq!(
                found.map(|it| it.map(|it| it.0)),
                want,
                "{setting} {:?}",
                user.extra
            );
        }
        assert!(check(Some((10, "message_size")), 10).is_ok());
        assert_eq!(
            check(Some((10, "message_size")), 11).unwrap_err().code,
            Code::TooBig
        );
    }
}
