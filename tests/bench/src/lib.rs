//! Measures Postroom, and Dovecot beside it on the same disk.
//!
//! | file | what it is |
//! |---|---|
//! | [`client`] | one LMTP connection that speaks as Postfix does |
//! | [`floor`] | the bare calls of the same promise |
//! | [`load`] | many of them at once, and how long the replies took |
//! | [`postfix`] | an MTA in front of the contestants |
//! | [`process`] | processor time and memory of a process and all below it |
//! | [`store`] | homes with empty Maildirs, and what is in them afterwards |
//! | [`servers`] | the contestants: configured, started, ended |
//! | [`table`] | medians and ratios, printed |

pub mod client;
pub mod floor;
pub mod load;
pub mod postfix;
pub mod process;
pub mod servers;
pub mod store;
pub mod table;

use std::io;

/// An error with what was being done.
pub fn failed(doing: impl std::fmt::Display) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{doing}: {error}"))
}
