//! stub
use crate::message::{Address, Message};
pub fn added_headers(_m: &Message, _r: Option<&Address>) -> Vec<u8> {
    Vec::new()
}
