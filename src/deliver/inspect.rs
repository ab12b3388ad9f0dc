//! stub
use super::{Report, Settings, Targets};
use crate::fault::{Code, Fault};
#[derive(Debug)]
pub struct Plan;
pub fn inspect(_s: &Settings, _t: &Targets) -> (Result<Plan, Fault>, Report) {
    let f = Fault::new(Code::Internal, "inspect", "stub");
    (Err(f.clone()), Report::failed(String::new(), f))
}
