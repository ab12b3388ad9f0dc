//! stub
pub fn hostname() -> String {
    String::new()
}
