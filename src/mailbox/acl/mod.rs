//! Rights: what `dovecot-acl` files give to a user (RFC 4314, Dovecot's `vfile` driver).
//!
//! | file | what it is |
//! |---|---|
//! | [`rights`] | a set of right letters |
//! | [`entry`] | one line: identifier and rights |
//! | [`list`] | all entries of a mailbox, and what they come to for one user |
//! | [`sources`] | where the entries of a mailbox come from |
//! | [`store`] | changing a mailbox's file, and the list of those that others may see |

pub mod entry;
pub mod list;
pub mod rights;
pub mod sources;
pub mod store;

use std::io::{self, Read};
use std::path::Path;

pub use entry::{Entry, Identifier};
pub use list::{Acl, Effective};
pub use rights::Rights;
pub use sources::Sources;

use crate::sys::dir::Dir;
use crate::sys::fault_point;

/// The largest file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;
/// The file's name in a mailbox directory.
pub const FILE: &str = "dovecot-acl";

/// Whose rights are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// None: nobody in particular, whom only `anyone` names.
    pub name: Option<&'a str>,
    /// `acl_groups`; UNIX groups do not count.
    pub groups: &'a [String],
    /// Of the private namespace that the mailbox is in.
    pub is_owner: bool,
}

impl Identity<'_> {
    /// The owner has his own entries: those of a mailbox for everybody and for groups are not about him. Global ones are.
    fn matches(&self, entry: &Entry) -> bool {
        use Identifier::{Anyone, Authenticated, Group};
        let is_general = matches!(entry.identifier, Anyone | Authenticated | Group(_));
        let is_not_his = self.is_owner && is_general && !entry.is_global;
        !is_not_his && self.is_named_by(&entry.identifier)
    }

    /// Whether he is one of those that an entry is about; everybody who has a name is authenticated.
    pub fn is_named_by(&self, identifier: &Identifier) -> bool {
        match identifier {
            Identifier::Anyone => true,
            Identifier::Authenticated => self.name.is_some(),
            Identifier::Group(group) | Identifier::GroupOverride(group) => {
                self.groups.contains(group)
            }
            Identifier::Owner => self.is_owner,
            Identifier::User(user) => self.name == Some(user.as_str()),
        }
    }
}

/// "Cannot tell": unreadable or malformed, with the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclError {
    /// 1-based; 0 when the file as a whole could not be read.
    pub line: usize,
    pub why: String,
    /// This process may not read it: for a mailbox that a stranger named, that is a no.
    pub closed: bool,
}

impl AclError {
    fn of_file(error: &io::Error) -> AclError {
        AclError {
            line: 0,
            why: error.to_string(),
            closed: crate::sys::is_no_way(error),
        }
    }

    fn of_line(line: usize, why: impl Into<String>) -> AclError {
        AclError {
            line,
            why: why.into(),
            closed: false,
        }
    }
}

/// Reads the ACL file of a mailbox directory, or what it is a symlink to, as Dovecot does. `None`: there is none.
pub fn read(directory: &Path) -> Result<Option<Vec<u8>>, AclError> {
    match bytes(directory).map_err(|error| AclError::of_file(&error))? {
        Some(text) if text.len() as u64 > MAX_FILE => {
            let why = format!("larger than {MAX_FILE} bytes");
            Err(AclError::of_line(0, why))
        }
        text => Ok(text),
    }
}

/// The same, cut off behind the most that is read.
fn bytes(directory: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match Dir::open(directory).and_then(|dir| dir.read_through(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = Vec::new();
    fault_point::pass()?;
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests;
