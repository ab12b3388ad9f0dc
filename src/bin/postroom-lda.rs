//! `postroom-lda`: stores the message on stdin.

use postroom::{lda, sys};

fn main() {
    sys::process::leave(lda::run(std::env::args_os()))
}
