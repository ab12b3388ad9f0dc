//! The exit codes of sysexits.h that an LDA may leave with. An MTA bounces on any other: there is no other.

use std::io::{self, IsTerminal};

use crate::sys::process::End;
use crate::sys::socket::brings_bytes;

/// Wrong usage, by a human.
pub const USAGE: u8 = 64;
/// The MTA keeps the message and tries again.
pub const TEMPFAIL: u8 = 75;

/// The code of all: temporary before permanent, permanent before stored.
pub fn worst(codes: impl IntoIterator<Item = u8>) -> u8 {
    let worse = |one: u8, two: u8| match (one, two) {
        (TEMPFAIL, _) | (_, TEMPFAIL) => TEMPFAIL,
        (0, code) | (code, _) => code,
    };
    codes.into_iter().fold(0, worse)
}

/// The code of the process that did the work, or how else it ended: that is temporary.
pub fn of_child(end: io::Result<End>) -> Result<u8, String> {
    match end {
        Ok(End::Exit(code @ (0 | 64 | 67 | 75 | 77))) => Ok(code as u8),
        Ok(End::Exit(code)) => Err(format!("exit code {code}")),
        Ok(End::Signal(signal)) => Err(format!("signal {signal}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Usage errors are permanent to a human only: in an MTA's configuration they must not cost mail.
pub fn of_wrong_usage() -> u8 {
    if io::stdin().is_terminal() {
        USAGE
    } else {
        TEMPFAIL
    }
}

/// The end of a run that stored nothing on purpose (`--dry-run`, `--help`). One that was left in an MTA's configuration
/// must not eat mail: with a message on stdin and nobody who reads stdout, it is no success.
pub fn of_a_look(code: u8) -> u8 {
    match code == 0 && brings_bytes(&io::stdin()) && !io::stdout().is_terminal() {
        true => TEMPFAIL,
        false => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_before_permanent() {
        for (codes, want) in [
            (&[][..], 0),
            (&[0, 0], 0),
            (&[0, 67], 67),
            (&[77, 67], 77),
            (&[67, 75, 0], 75),
        ] {
            assert_eq!(worst(codes.iter().copied()), want, "{codes:?}");
        }
    }

    #[test]
    fn no_other_code_leaves() {
        for code in -1..=255 {
            let left = of_child(Ok(End::Exit(code)));
            let is_known = [0, 64, 67, 75, 77].contains(&code);
            assert_eq!(left.map(i32::from).ok(), is_known.then_some(code));
        }
        assert!(of_child(Ok(End::Signal(9))).is_err());
        assert!(of_child(Err(io::ErrorKind::OutOfMemory.into())).is_err());
    }
}
