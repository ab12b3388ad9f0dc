//! stub
use super::Settings;
use crate::fault::{Code, Fault};
use crate::message::Recipient;
#[derive(Debug)]
pub struct Target;
#[derive(Debug)]
pub struct Targets;
pub fn resolve(_s: &Settings, _r: &Recipient) -> Result<Targets, Fault> {
    Err(Fault::new(Code::Internal, "resolve", "stub"))
}
