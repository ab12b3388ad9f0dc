//! stub
#[derive(Debug)]
pub struct Passwd;
