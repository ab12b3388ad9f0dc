//! What several targets need.

pub mod client;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::{self, File};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = tempfile::tempdir().unwrap();
}

/// A file with these bytes, the same one each time, in which nobody has written for a minute.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = FOLDER.with(|folder| folder.path().join(name));
    fs::write(&path, bytes).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(60);
    file.set_modified(long_ago).unwrap();
    path
}

/// What a future answers that reads from memory: it never waits.
pub fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("it waits"),
    }
}

/// A DATA body and the bytes that it takes, RFC 5321 section 4.5.2 word by word: lines end at CRLF; `.` alone ends it; one leading dot
/// goes. None: its end has not come.
pub fn decoded(stream: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let end = at + memchr::memmem::find(&stream[at..], b"\r\n")? + 2;
        let line = &stream[at..end];
        at = end;
        match line {
            b".\r\n" => return Some((body, at)),
            [b'.', rest @ ..] => body.extend_from_slice(rest),
            line => body.extend_from_slice(line),
        }
    }
}

/// The heap of a target that asks how much is on it.
pub struct Counted;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's, as it is.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MOST.fetch_max(
            HELD.fetch_add(layout.size(), Relaxed) + layout.size(),
            Relaxed,
        );
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Does it, and says how many bytes more than before there were on a [`Counted`] heap at once.
pub fn most_held<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    let done = work();
    (done, MOST.load(Relaxed) - before)
}
