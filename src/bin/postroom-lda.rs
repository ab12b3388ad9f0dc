//! `postroom-lda`: stores the message on stdin.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(postroom::lda::run(std::env::args_os()))
}
