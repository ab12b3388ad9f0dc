//! System calls: the only place with `unsafe`, nix and libc.
#![allow(unsafe_code)]

pub mod credentials;
pub mod dir;
pub mod fault_point;
pub mod process;
pub mod socket;

use std::io;

/// EMFILE, ENFILE, ENOMEM, EAGAIN: a shortage that passes.
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN)
    )
}
