//! Names of files by a pattern.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What fits a pattern with `*`, `?`, `[…]` and `{a,b}`, sorted, each of `{a,b}` by itself (glob(3), as Dovecot asks it). Nothing is
/// no error.
pub fn matching(pattern: &Path) -> io::Result<Vec<PathBuf>> {
    let pattern = CString::new(pattern.as_os_str().to_owned().into_vec())?;
    // SAFETY: glob_t is numbers and pointers, which may be 0.
    let mut found: libc::glob_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pattern ends with NUL and the result is ours; both live longer than the call.
    let code = unsafe { libc::glob(pattern.as_ptr(), libc::GLOB_BRACE, None, &mut found) };
    let texts = match code {
        0 => 0..found.gl_pathc,
        _ => 0..0,
    };
    let paths = texts.map(|at| {
        // SAFETY: there are gl_pathc texts, each of which ends with NUL, until globfree.
        let text = unsafe { CStr::from_ptr(*found.gl_pathv.add(at)) };
        PathBuf::from(OsStr::from_bytes(text.to_bytes()))
    });
    let paths = paths.collect();
    // SAFETY: it came from glob, or is zero, and nothing of it is used any more.
    unsafe { libc::globfree(&mut found) };
    match code {
        0 | libc::GLOB_NOMATCH => Ok(paths),
        libc::GLOB_NOSPACE => Err(io::ErrorKind::OutOfMemory.into()),
        _ => Err(io::Error::other("a directory cannot be read")),
    }
}
