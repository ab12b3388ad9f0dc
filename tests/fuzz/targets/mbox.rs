//! An mbox: whatever is in the file stays, and whatever is added are two messages that say how long they are.
#![no_main]

use std::fs;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use memchr::memmem;
use postroom::mailbox::link::Links;
use postroom::mbox::append::Message;
use postroom::mbox::lock::Locking;
use postroom::mbox::open::{Demands, Mbox};
use postroom::mbox::text::Quoting;
use postroom::message::Flags;
use postroom::message::body::{BodyWriter, Spool};
use postroom::sys::credentials;

const FROM: &str = "From a@b  Mon Nov 02 07:02:09 2026";

fuzz_target!(|both: (&[u8], &[u8])| {
    let (file, message) = both;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("box");
    let before = [b"From ", file].concat();
    fs::write(&path, &before).unwrap();
    let links = Links {
        lent: Vec::new(),
        uid: credentials::effective().uid,
        mail_roots: vec![root.path().to_owned()],
    };
    let (dir, path) = links.open_holder(root.path(), &path).unwrap();
    let mbox = Mbox::at(dir, path.clone()).unwrap();
    let demands = Demands {
        locking: Locking::default(),
        quoting: Quoting::Mboxrd,
        sync: false,
        make: None,
        owner: None,
    };
    let mut open = mbox.lock(&demands, Duration::MAX, |_| Ok(false)).unwrap();
    let validity = u32::from_be_bytes([0, 0, 0, file.len() as u8]);
    if let Some((at, _)) = open.last_uid(validity).unwrap() {
        let digits = &before[at as usize..at as usize + 10];
        assert!(digits.iter().all(u8::is_ascii_digit));
    }
    let mut body = BodyWriter::new(&Spool::default());
    body.write(message).unwrap();
    let body = body.finish().unwrap();
    let added = Message {
        from_line: FROM,
        header: b"",
        body: &body,
        flags: Flags::default(),
        uid: None,
    };
    let appended = open.write(&[added, added]).unwrap();
    open.make_sure().unwrap();
    let after = fs::read(&path).unwrap();
    assert!(after.starts_with(&before));
    let end = appended[1].offset + appended[1].size;
    assert_eq!(
        (appended[0].offset + appended[0].size, end),
        (appended[1].offset, after.len() as u64)
    );
    appended
        .iter()
        .for_each(|one| check(&after[one.offset as usize..][..one.size as usize]));
});

fn check(text: &[u8]) {
    let text = text.strip_prefix(format!("{FROM}\n").as_bytes()).unwrap();
    let end = memmem::find(text, b"\n\n").unwrap();
    let (header, body) = (&text[..end], &text[end + 2..]);
    let last = header.rsplit(|&byte| byte == b'\n').next().unwrap();
    assert_eq!(
        last,
        format!("Content-Length: {}", body.len() - 1).as_bytes()
    );
    for name in ["status:", "x-uid:", "x-imapbase:", "x-keywords:"] {
        let lines = header.split(|&byte| byte == b'\n');
        let mut names = lines.map(|line| line.to_ascii_lowercase());
        assert!(!names.any(|line| line.starts_with(name.as_bytes())));
    }
    assert!(!body.starts_with(b"From ") && memmem::find(body, b"\nFrom ").is_none());
    assert!(body.ends_with(b"\n"));
}
