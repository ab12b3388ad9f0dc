//! stub
#[derive(Debug)]
pub struct Static;
