//! Who a process or a user is to the kernel.

use serde::{Deserialize, Serialize};

/// Numeric ids. `groups` are the supplementary ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

pub fn effective() -> Credentials {
    Credentials {
        uid: 0,
        gid: 0,
        groups: vec![],
    }
}
