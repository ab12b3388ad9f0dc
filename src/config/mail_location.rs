//! Dovecot 2.3's `mail_location`, as the settings that 2.4 has in its place: `maildir:~/Maildir:INDEX=/var/index/%u`.

/// Keys that say nothing of where a message is put.
const WITHOUT_EFFECT: [&str; 6] = [
    "VOLATILEDIR",
    "INDEXCACHE",
    "LISTINDEX",
    "NO-NOSELECT",
    "NO-FS-VALIDATION",
    "ITERINDEX",
];

/// The same of Dovecot's own formats, which only Dovecot writes.
const OF_DBOX: [&str; 3] = ["ALT", "ALTNOCHECK", "MAILBOXDIR"];

/// The settings, each with its value.
pub fn settings(location: &str) -> Result<Vec<(&'static str, String)>, String> {
    let (driver, rest) = location
        .split_once(':')
        .ok_or_else(|| format!("{location:?} has no driver: write maildir:PATH or mbox:PATH"))?;
    let is_dbox = ["sdbox", "mdbox"].contains(&driver);
    if !is_dbox && !["maildir", "mbox"].contains(&driver) {
        return Err(format!(
            "{driver:?} is no driver: maildir, mbox, sdbox and mdbox are"
        ));
    }
    let mut parts = parts(rest).into_iter();
    let mut settings = vec![("mail_driver", driver.to_owned())];
    settings.extend(
        parts
            .next()
            .filter(|it| !it.is_empty())
            .map(|path| ("mail_path", path)),
    );
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((&part, ""));
        let setting = match key {
            "INBOX" => "mail_inbox_path",
            "INDEX" => "mail_index_path",
            "INDEXPVT" => "mail_index_private_path",
            "CONTROL" => "mail_control_path",
            "DIRNAME" | "FULLDIRNAME" => "mailbox_directory_name",
            "SUBSCRIPTIONS" => "mailbox_subscriptions_filename",
            "BROKENCHAR" => continue,
            "LAYOUT" => {
                settings.push(("mailbox_list_layout", value.to_lowercase()));
                continue;
            }
            "UTF-8" => {
                settings.push(("mailbox_list_utf8", "yes".into()));
                continue;
            }
            key if WITHOUT_EFFECT.contains(&key) => continue,
            key if is_dbox && OF_DBOX.contains(&key) => continue,
            other => return Err(format!("{other} in {location:?} is not known")),
        };
        settings.push((setting, value.to_owned()));
    }
    settings.extend(inbox_of_fs(driver, &settings));
    Ok(settings)
}

/// Where Maildirs lie in directories of their own, INBOX has one too: `~/Maildir/INBOX/DIRNAME`.
fn inbox_of_fs(driver: &str, said: &[(&str, String)]) -> Option<(&'static str, String)> {
    let value = |key: &str| said.iter().rfind(|it| it.0 == key).map(|it| it.1.as_str());
    let name = value("mailbox_directory_name").filter(|it| !it.is_empty())?;
    let is_fs = driver == "maildir" && value("mailbox_list_layout") == Some("fs");
    let is_open = is_fs && value("mail_inbox_path").is_none();
    is_open.then(|| ("mail_inbox_path", format!("INBOX/{name}")))
}

/// What a location comes to that says nothing of these.
const UNSAID: [&str; 8] = [
    "mail_inbox_path",
    "mail_control_path",
    "mail_index_path",
    "mail_index_private_path",
    "mailbox_directory_name",
    "mailbox_list_utf8",
    "mailbox_list_layout",
    "mailbox_subscriptions_filename",
];

/// [`settings`] with a value for all that is not said: a location is instead of another one, not beside it.
pub fn whole(location: &str) -> Result<Vec<(&'static str, String)>, String> {
    let mut settings = settings(location)?;
    for key in UNSAID {
        if !settings.iter().any(|(said, _)| *said == key) {
            settings.push((key, unsaid(key, location).into()));
        }
    }
    Ok(settings)
}

/// What holds in a location that does not say `key`.
pub fn unsaid(key: &str, location: &str) -> &'static str {
    let is_mbox = location.starts_with("mbox:");
    match key {
        "mailbox_list_utf8" => "no",
        "mailbox_list_layout" if location.starts_with("maildir:") => "maildir++",
        "mailbox_list_layout" => "fs",
        "mailbox_subscriptions_filename" if is_mbox => ".subscriptions",
        "mailbox_subscriptions_filename" => "subscriptions",
        _ => "",
    }
}

/// A colon divides them, two are one of a path, and one in a variable (`%{env:X}`) is of that.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let variable = rest.strip_prefix("%{").and_then(|inside| inside.find('}'));
        let (taken, length) = match (letter, variable) {
            (_, Some(end)) => (&rest[..end + 3], end + 3),
            (':', None) if rest.starts_with("::") => (":", 2),
            (':', None) => {
                parts.push(String::new());
                ("", 1)
            }
            (other, None) => (&rest[..other.len_utf8()], other.len_utf8()),
        };
        if let Some(part) = parts.last_mut() {
            part.push_str(taken);
        }
        rest = &rest[length..];
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        for (location, want) in [
            (
                "maildir:~/Maildir",
                "mail_driver=maildir mail_path=~/Maildir",
            ),
            ("maildir:", "mail_driver=maildir"),
            (
                "mbox:~/mail:INBOX=/var/mail/bob:INDEX=MEMORY",
                "mail_driver=mbox mail_path=~/mail mail_inbox_path=/var/mail/bob mail_index_path=MEMORY",
            ),
            (
                "maildir:/a::b:LAYOUT=Maildir++:UTF-8:VOLATILEDIR=/x:INDEXCACHE=/y:CONTROL=/c:INDEXPVT=/p:DIRNAME=d",
                "mail_driver=maildir mail_path=/a:b mailbox_list_layout=maildir++ mailbox_list_utf8=yes mail_control_path=/c mail_index_private_path=/p mailbox_directory_name=d",
            ),
            (
                "maildir:~/M:LAYOUT=fs:DIRNAME=D",
                "mail_driver=maildir mail_path=~/M mailbox_list_layout=fs mailbox_directory_name=D mail_inbox_path=INBOX/D",
            ),
            (
                "maildir:~/M:LAYOUT=fs:FULLDIRNAME=D:INBOX=~/in",
                "mail_driver=maildir mail_path=~/M mailbox_list_layout=fs mailbox_directory_name=D mail_inbox_path=~/in",
            ),
            (
                "mdbox:~/mdbox:ALT=/slow/%u:ALTNOCHECK:MAILBOXDIR=boxes:LAYOUT=index",
                "mail_driver=mdbox mail_path=~/mdbox mailbox_list_layout=index",
            ),
            (
                "maildir:/srv/%{env:SITE}/%%{owner_user}:INDEX=/i/%{env:SITE}:CONTROL=%{c::",
                "mail_driver=maildir mail_path=/srv/%{env:SITE}/%%{owner_user} mail_index_path=/i/%{env:SITE} mail_control_path=%{c:",
            ),
        ] {
            let got = settings(location).unwrap();
            let got: Vec<String> = got
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            assert_eq!(got.join(" "), want, "{location}");
        }
        for location in ["", "~/Maildir", "imapc:~/x", "maildir:~/x:MAILBOXDIR=y"] {
            assert!(settings(location).is_err(), "{location}");
        }
    }
}
