//! stub
use crate::message::body::Spool;
use std::{net::SocketAddr, path::PathBuf, time::Duration};
#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: Vec<Listen>,
    pub hostname: String,
    pub max_recipients: usize,
    pub message_size: Option<u64>,
    pub max_connections: usize,
    pub idle_timeout: Duration,
    pub data_timeout: Duration,
    pub verbose_replies: bool,
    pub spool: Spool,
}
#[derive(Debug, Clone)]
pub enum Listen {
    Unix {
        path: PathBuf,
        mode: u32,
        user: Option<String>,
        group: Option<String>,
        trusted: Option<bool>,
    },
    Tcp {
        address: SocketAddr,
        trusted: Option<bool>,
    },
}
