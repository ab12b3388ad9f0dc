//! The bytes of a message between the socket and the store.

/// A complete message: lines end in LF, as every store keeps them.
#[derive(Debug)]
pub struct Body;
