//! stub
#[derive(Debug)]
pub struct PasswdFile;
