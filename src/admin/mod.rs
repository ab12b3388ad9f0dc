//! What the admin's command does: `postroom explain`, `check`, `config`, `user`, `demo`.

pub mod explain;
