//! mbox: all messages of a mailbox in one file, each behind a line `From `.
//!
//! | file | what it is |
//! |---|---|
//! | [`from_line`] | the line before a message |
//! | [`text`] | what a message looks like in the file |
//! | [`lock`] | the locks, in the order of the setting |
//! | [`torn`] | what a killed delivery has left |
//! | [`append`] | a message added: whole and synced, or not at all |

pub mod append;
pub mod from_line;
pub mod lock;
pub mod text;
pub mod torn;
