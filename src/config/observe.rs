//! `[status]` and `[notify]`: what the server shows of itself, and whom it tells.

use super::listeners::plain_listener;
use super::section::Section;
use crate::lmtp::Listen;
use crate::observe::hook;

/// `[status]`
pub fn status(root: &Section<'_>) -> Vec<Listen> {
    let section = root.section("status");
    let tables = section.tables("listen");
    let listen: Vec<Listen> = tables.iter().filter_map(plain_listener).collect();
    for (listen, table) in listen.iter().zip(&tables) {
        if let Listen::Tcp { address, .. } = listen
            && !address.ip().is_loopback()
        {
            let why = "others would read the names of users: there is no password";
            table.error("tcp", why, "write a loopback address: \"127.0.0.1:9154\"");
        }
    }
    section.finish();
    listen
}

/// `[notify]`
pub fn notify(root: &Section<'_>, hostname: &str) -> hook::Settings {
    let section = root.section("notify");
    let url = section.text("url");
    let is_url = |url: &String| url.starts_with("http://") || url.starts_with("https://");
    if url.as_ref().is_some_and(|url| !is_url(url)) {
        section.error(
            "url",
            "it is no URL",
            "write \"http://127.0.0.1:8080/mail\"",
        );
    }
    let settings = hook::Settings {
        socket: section.text("socket").map(Into::into),
        url,
        hostname: hostname.to_owned(),
    };
    section.finish();
    settings
}
