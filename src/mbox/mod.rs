//! mbox: all messages of a mailbox in one file, each behind a line `From `.
//!
//! | file | what it is |
//! |---|---|
//! | [`from_line`] | the line before a message |
//! | [`text`] | what a message looks like in the file |
//! | [`lock`] | the locks, in the order of the setting |
//! | [`torn`] | what a killed delivery has left |
//! | [`open`] | an mbox by its real place, opened under them |
//! | [`append`] | messages added: whole and synced, or not at all |
//! | `last_uid` | the last UID that was given, in the first message |

pub mod append;
pub mod from_line;
mod last_uid;
pub mod lock;
pub mod open;
pub mod text;
pub mod torn;
