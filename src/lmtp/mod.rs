//! stub
pub mod codec;
pub mod command;
pub mod reply;
pub mod session;
