//! Encodings and other small texts.

pub mod date;
pub mod escape;
pub mod mutf7;
pub mod template;
