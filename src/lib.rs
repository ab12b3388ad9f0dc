//! Postroom delivers mail into private, public and shared mailboxes.
//!
//! The modules, from top to bottom. The one rule: **use only what stands below you** (`tests/layers.rs` checks it).
//!
//! | layer | modules | what they are |
//! |---|---|---|
//! | faces | [`lmtp`], [`socketmap`], [`handover`], [`status`], [`lda`], [`admin`] | the LMTP server, Postfix's question about recipients, messages from LDAs without rights, what the server shows of itself, the stdin LDA, the admin's commands |
//! | another's | [`import`] | Dovecot's configuration, 2.3 and 2.4, as ours |
//! | config | [`config`] | the TOML file, checked; builds the settings of everything below it |
//! | where it runs | [`run`] | hands a delivery to the core: in this process, or in a worker of the user's identity |
//! | delivery core | [`deliver`] | plan, then do: resolve, inspect, carry out |
//! | who | [`user`], [`sharing`] | userdbs: three answers; who shares with whom |
//! | storage | [`maildir`], [`mbox`], [`index`] | two formats: making a mailbox, saving a message, its UID; Dovecot's index log |
//! | where | [`mailbox`] | names, namespaces, locations, layouts, permissions, rights |
//! | the message | [`message`] | addresses, envelope, body, headers |
//! | what is shown | [`observe`] | counters, clients, faults, events |
//! | ground | [`database`], [`fault`], [`log`], [`text`], [`sys`] | databases, errors and their codes, log lines, encodings, system calls |

pub mod admin;
pub mod handover;
pub mod lda;
pub mod lmtp;
pub mod socketmap;
pub mod status;

pub mod import;

pub mod config;

pub mod run;

pub mod deliver;

pub mod sharing;
pub mod user;

pub mod index;
pub mod maildir;
pub mod mbox;

pub mod mailbox;

pub mod message;

pub mod database;

pub mod observe;

pub mod fault;
pub mod log;
pub mod sys;
pub mod text;

#[cfg(test)]
mod every_step_fails;
