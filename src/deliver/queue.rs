//! stub
#[derive(Debug, Default)]
pub struct Queues;
