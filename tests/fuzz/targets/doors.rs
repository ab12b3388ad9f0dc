//! What comes in beside LMTP: PROXY headers of balancers, netstrings of Postfix, requests of browsers. Nothing behind one is taken.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postroom::lmtp::proxied;
use postroom::{socketmap, status};
use postroom_fuzz::ready;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    if let Ok(client) = ready(proxied::read(&mut rest)) {
        let header = &bytes[..bytes.len() - rest.len()];
        assert!(header.starts_with(b"PROXY ") && header.ends_with(b"\r\n") || header[0] == b'\r');
        assert!(client.is_none() || header.len() > 12);
    }
    let mut rest = bytes;
    if let Some(request) = ready(socketmap::request(&mut rest)) {
        let netstring = &bytes[..bytes.len() - rest.len()];
        let (length, text) =
            netstring.split_at(netstring.iter().position(|it| *it == b':').unwrap());
        assert_eq!(
            std::str::from_utf8(length).unwrap().parse(),
            Ok(request.len())
        );
        assert_eq!(text, [b":", &request[..], b","].concat());
    }
    let mut rest = bytes;
    if let Ok(line) = ready(status::request(&mut rest)) {
        assert!(!line.contains('\n') && bytes.windows(4).any(|it| it == b"\r\n\r\n"));
    }
});
