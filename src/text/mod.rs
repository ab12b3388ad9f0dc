//! Encodings and other small texts.

pub mod mutf7;
pub mod quote;
pub mod template;
