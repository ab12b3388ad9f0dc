//! What the admin's command does: `postroom explain`, `check`, `config`, `user`, `demo`.

pub mod acl;
pub mod check;
pub mod config_show;
pub mod demo;
pub mod explain;
pub mod share;
pub mod user;
