//! Settings with variables, in the dialects of Dovecot 2.3 (`%u`) and 2.4 (`%{user | lower}`).
//!
//! A template is parsed once, when the config is read. Values are inserted as opaque text and never parsed again.

/// A parsed setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    source: String,
}

/// What the variables stand for in one expansion. An absent value that a template needs is an error.
#[derive(Debug, Clone, Copy, Default)]
pub struct Variables<'a> {
    /// `%{user}`: the accessing user.
    pub user: &'a str,
    /// `%{home}`: the accessing user's home.
    pub home: Option<&'a str>,
    /// `%{owner_user}`: whose mailboxes a shared namespace shows.
    pub owner_user: Option<&'a str>,
    /// `%{owner_home}`.
    pub owner_home: Option<&'a str>,
    pub hostname: &'a str,
    /// `%{service}`: `lmtp` or `lda`.
    pub service: &'a str,
}

/// Why a template could not be expanded for these values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} has no value here")]
pub struct NoValue {
    pub variable: String,
}

impl Template {
    pub fn parse(source: &str) -> Result<Template, String> {
        Ok(Template {
            source: source.into(),
        })
    }

    /// The setting as written.
    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn expand(&self, _variables: &Variables<'_>) -> Result<String, NoValue> {
        Ok(self.source.clone())
    }

    /// Whether any variable occurs (a leading `~` is none).
    pub fn has_variables(&self) -> bool {
        self.source.contains('%')
    }

    /// The part of a path before the component with the last variable: `/vmail/%d/%n/Maildir` -> `/vmail/%d`.
    pub fn before_last_variable(&self) -> Option<Template> {
        None
    }
}
