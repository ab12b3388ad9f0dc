//! Dovecot's passwd-file: `user:password:uid:gid:(gecos):home:(shell):extra_fields`.
//!
//! The file is read again when it has changed. A line that makes no sense concerns its own user only, and for him the
//! answer is "cannot tell". So it is for whoever is not in a file that is being written: one that has just changed, or whose last
//! line does not end.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Answer, Unavailable};
use crate::text::line_file::{LineFile, Lines};
use crate::text::template::{Template, Variables};

/// `[[userdb]] passwd-file = { path = "/etc/postroom/users" }`
#[derive(Debug)]
pub struct PasswdFile(LineFile<Users>);

/// By user name: the rest of his line; none where that is no UTF-8.
type Users = HashMap<String, Option<String>>;

impl PasswdFile {
    /// The file is read when somebody is asked for. One that is missing then is "cannot tell".
    pub fn new(path: PathBuf) -> PasswdFile {
        PasswdFile(LineFile::new(path))
    }

    /// As [`Answer::origin`] has it.
    pub fn name(&self) -> String {
        format!("passwd-file {}", self.0.path().display())
    }

    /// The file as it is now. A line that makes no sense is "cannot tell", and so is a file that may still be written.
    pub fn find(&self, name: &str) -> Result<Option<Answer>, Unavailable> {
        let lines = self.lines()?;
        match (lines.content.get(name), lines.may_lack()) {
            (Some(line), _) => {
                let no_text = || format!("the line of {name:?} is not UTF-8");
                let line = line.as_deref().ok_or_else(no_text);
                line.and_then(|line| parse(name, line, self.name()))
                    .map(Some)
                    .map_err(|why| self.cannot_tell(why))
            }
            (None, Some(why)) => Err(self.cannot_tell(why.into())),
            (None, None) => Ok(None),
        }
    }

    /// Why it cannot answer, whoever is asked for.
    pub fn unavailable(&self) -> Option<Unavailable> {
        match self.lines() {
            Ok(lines) => lines.unended().map(|why| self.cannot_tell(why.into())),
            Err(unavailable) => Some(unavailable),
        }
    }

    /// In no order. "Cannot tell": nobody is in the file, or its last line does not end.
    pub fn names(&self) -> Result<Vec<String>, Unavailable> {
        let lines = self.lines()?;
        match lines.unended() {
            None => Ok(lines.content.keys().cloned().collect()),
            // Whoever is not among them would be taken for one who is no more.
            Some(why) => Err(self.cannot_tell(why.into())),
        }
    }

    /// Those who are users where no other userdb knows them ([`Answer::is_for_logins`]), sorted.
    pub fn for_logins(&self) -> Result<Vec<String>, Unavailable> {
        let lines = self.lines()?;
        let users = lines.content.iter();
        let users = users.filter(|(_, rest)| rest.as_deref().is_some_and(is_for_logins));
        let mut names: Vec<String> = users.map(|(name, _)| name.clone()).collect();
        names.sort();
        Ok(names)
    }

    fn lines(&self) -> Result<Arc<Lines<Users>>, Unavailable> {
        let lines = self.0.read(|bytes| {
            let users = split(bytes);
            match users.is_empty() {
                // Truncated, or about to be written: nobody in it is no answer about anybody.
                true => Err("nobody is in it".into()),
                false => Ok(users),
            }
        });
        lines.map_err(|why| self.cannot_tell(why))
    }

    fn cannot_tell(&self, why: String) -> Unavailable {
        Unavailable {
            userdb: self.name(),
            why,
        }
    }
}

/// The first line of a name counts.
fn split(bytes: &[u8]) -> Users {
    let mut users = Users::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let end = line.iter().position(|byte| *byte == b':');
        let (name, rest) = line.split_at(end.unwrap_or(line.len()));
        let rest = str::from_utf8(rest.strip_prefix(b":").unwrap_or(rest));
        users
            .entry(String::from_utf8_lossy(name).into_owned())
            .or_insert_with(|| rest.ok().map(str::to_owned));
    }
    users
}

/// Whether what is behind the name ends before the gid.
fn is_for_logins(rest: &str) -> bool {
    rest.matches(':').count() < 2
}

fn parse(name: &str, rest: &str, origin: String) -> Result<Answer, String> {
    let fields: Vec<&str> = rest.splitn(7, ':').collect();
    let field = |at: usize| fields.get(at).copied().filter(|field| !field.is_empty());
    let mut answer = Answer::new(name, origin);
    answer.is_for_logins = is_for_logins(rest);
    for (key, at) in [("uid", 1), ("gid", 2), ("home", 4)] {
        field(at).map_or(Ok(()), |value| answer.set(key, value))?;
    }
    let home = answer.home.clone();
    let home = home.as_ref().and_then(|home| home.to_str());
    // Fields for logins stand beside those for delivery, which begin with userdb_.
    let extra = field(6).into_iter().flat_map(|extra| extra.split(' '));
    let extra = extra.filter(|word| !word.is_empty());
    for word in extra {
        if word.contains('\t') {
            return Err(format!(
                "{word:?} has a tab in it: blanks divide the fields"
            ));
        }
        let (key, value) = word.split_once('=').unwrap_or((word, "yes"));
        if let Some(key) = key.strip_prefix("userdb_") {
            answer.set(key, &expanded(value, name, home)?)?;
        }
    }
    Ok(answer)
}

/// Dovecot's variables in a field.
fn expanded(value: &str, user: &str, home: Option<&str>) -> Result<String, String> {
    let variables = Variables {
        user,
        home,
        ..Variables::default()
    };
    let template = Template::parse(value).map_err(|error| format!("{value:?}: {error}"))?;
    let expanded = template.expand(&variables);
    expanded.map_err(|missing| format!("{value:?}: {missing}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_of_users() {
        for (line, uid, gid, home, extra) in [
            (
                "{PLAIN}pw:5000:5001::/srv/bob::",
                Some(5000),
                Some(5001),
                Some("/srv/bob"),
                "",
            ),
            ("{PLAIN}pw::::::", None, None, None, ""),
            ("", None, None, None, ""),
            (":root:root::/root", Some(0), Some(0), Some("/root"), ""),
            (
                "x:1:2::/h::nologin userdb_mail_path=~/M userdb_uid=7",
                Some(7),
                Some(2),
                Some("/h"),
                "mail_path=~/M",
            ),
            (
                "x:1:2::/h::userdb_mail=maildir:~/M",
                Some(1),
                Some(2),
                Some("/h"),
                "mail=maildir:~/M",
            ),
        ] {
            let got = parse("bob", line, "t".into()).unwrap();
            assert_eq!((got.uid, got.gid), (uid, gid), "{line}");
            assert_eq!(
                got.home.as_deref().and_then(|home| home.to_str()),
                home,
                "{line}"
            );
            let extras: Vec<String> = got
                .extra
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            assert_eq!(extras.join(" "), extra, "{line}");
        }
    }

    #[test]
    fn a_wrong_line_concerns_its_own_user() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        fs::write(
            &path,
            "# users\nann:x:no-such-user:1::/h::\nbob:x:5000:5000::/h::\nbob:x:1:1::/other::\n",
        )
        .unwrap();
        let long_ago = || {
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(4))
                .unwrap();
        };
        long_ago();
        let file = PasswdFile::new(path.clone());
        assert!(file.find("ann").unwrap_err().why.contains("no-such-user"));
        assert_eq!(file.find("bob").unwrap().unwrap().uid, Some(5000));
        assert_eq!(file.find("Bob").unwrap(), None);
        fs::write(&path, "carl:x:5000:5000::/h::\n").unwrap();
        let why = file.find("bob").unwrap_err().why;
        assert!(why.contains("just changed"), "{why}");
        long_ago();
        assert_eq!(file.find("bob").unwrap(), None);
        assert_eq!(file.names().unwrap(), ["carl"]);
        fs::write(&path, "carl:x:5000:5000::/h::\nbob:x:5000:5000::/h").unwrap();
        long_ago();
        for name in ["bob", "dora"] {
            let why = file.find(name).unwrap_err().why;
            assert!(why.contains("does not end"), "{why}");
        }
        assert!(file.find("carl").unwrap().is_some());
        let why = file.names().unwrap_err().why;
        assert!(why.contains("does not end"), "{why}");
        fs::remove_file(&path).unwrap();
        assert!(file.find("carl").is_err());
    }

    /// What would lead to another directory than Dovecot's.
    #[test]
    fn lines_that_are_no_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let text = b"jos:x:1:2::/h/jos\xe9::\nann:x:1:2::/h::userdb_mail=maildir:~/M\tuserdb_a=b\ntab:x:1:2::/h::nologin\tuserdb_mail=x\nbob:x:1:2::/h::\r\n";
        fs::write(&path, text).unwrap();
        let file = PasswdFile::new(path);
        for (name, why) in [("jos", "not UTF-8"), ("ann", "a tab"), ("tab", "a tab")] {
            let found = file.find(name).unwrap_err().why;
            assert!(found.contains(why), "{name}: {found}");
        }
        assert_eq!(file.find("bob").unwrap().unwrap().extra.len(), 0);
    }

    proptest! {
        #[test]
        fn any_file_has_an_answer(text in "[a-z:=# \\n0-9]{0,80}") {
            for (name, line) in split(text.as_bytes()) {
                let _ = parse(&name, &line.unwrap(), "t".into());
            }
        }
    }
}
