//! Encodings and other small texts.

pub mod mutf7;
pub mod template;
