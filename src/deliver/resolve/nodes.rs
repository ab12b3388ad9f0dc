//! Which server has a mailbox.

use super::Resolver;
use crate::deliver::placement::Node;
use crate::deliver::targets::By;
use crate::fault::Fault;
use crate::mailbox::lookup::{self, Found};
use crate::mailbox::namespace::Kind;

impl Resolver<'_> {
    /// The server that has this mailbox, where it is not this one.
    pub(super) fn node_of(&self, mailbox: &str, found: &Found<'_>) -> Result<Option<Node>, Fault> {
        let Some(placement) = &self.settings.placement else {
            return Ok(None);
        };
        match (found.namespace.kind, &found.owner) {
            (Kind::Private, _) => Ok(None),
            (Kind::Public, _) => {
                placement.of_mailbox(self.directory, mailbox, found.namespace.separator)
            }
            (Kind::Shared, None) => Ok(None),
            (Kind::Shared, Some(owner)) => match self.directory.user(owner)? {
                Some(owner) => placement.of_user(self.directory, &owner),
                None => Ok(None),
            },
        }
    }

    /// Those of its parents that other servers have, nearest first.
    pub(super) fn parents_elsewhere(
        &self,
        mailbox: &str,
        by: By,
    ) -> Result<Vec<(String, Node)>, Fault> {
        let mut places = Vec::new();
        let mut name = mailbox;
        while let Ok(found) = lookup::find(self.namespaces, name, &self.user.name)
            && let Some((parent, _)) = name.rsplit_once(found.namespace.separator)
            && let Ok(above) = lookup::find(self.namespaces, parent, &self.user.name)
            && above.namespace.name == found.namespace.name
        {
            if self.closed_to(by, &above).is_none()
                && let Some(node) = self.node_of(parent, &above)?
            {
                places.push((parent.to_owned(), node));
            }
            name = parent;
        }
        Ok(places)
    }
}
