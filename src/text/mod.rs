//! Encodings, templates, files of lines and other small texts.

pub mod line_file;
pub mod mutf7;
pub mod quote;
pub mod template;
