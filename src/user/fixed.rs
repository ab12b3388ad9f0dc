//! One answer for every name, made from templates (Dovecot's `static`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Answer, Unavailable};
use crate::text::template::{Template, Variables};

/// `[[userdb]] static = { uid = 5000, gid = 5000, home = "/srv/mail/%{user}" }`. It knows everybody: an MTA must know who exists.
#[derive(Debug, Clone)]
pub struct Static {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub home: Option<Template>,
    /// Fields beside those, as a passwd-file has them.
    pub extra: BTreeMap<String, Template>,
}

impl Static {
    /// As [`Answer::origin`] has it.
    pub const NAME: &'static str = "static";

    /// Never none: a template without a value is "cannot tell".
    pub fn find(&self, name: &str, hostname: &str) -> Result<Option<Answer>, Unavailable> {
        let variables = Variables {
            user: name,
            hostname,
            ..Variables::default()
        };
        let expand = |template: &Template| {
            let missing = |error: crate::text::template::NoValue| Unavailable {
                userdb: Self::NAME.into(),
                why: error.to_string(),
            };
            template.expand(&variables).map_err(missing)
        };
        let mut extra = BTreeMap::new();
        for (key, template) in &self.extra {
            extra.insert(key.clone(), expand(template)?);
        }
        Ok(Some(Answer {
            uid: self.uid,
            gid: self.gid,
            home: self
                .home
                .as_ref()
                .map(expand)
                .transpose()?
                .map(PathBuf::from),
            extra,
            ..Answer::new(name, Self::NAME.into())
        }))
    }
}
