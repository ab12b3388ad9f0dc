//! Mailboxes: what they are called, where they lie, who may store in them, what their files look like.

pub mod acl;
pub mod location;
pub mod name;
pub mod namespace;
pub mod path;
pub mod permission;
