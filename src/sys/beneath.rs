//! Opening paths below a directory whose content is not trusted.
//!
//! `openat2(2)` resolves every link as if the directory were `/`, and crosses no magic link, so that nothing
//! planted inside leads out.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Opens `path` for reading, with `root` as `/`. Does not block on a fifo.
pub fn open(root: impl AsFd, path: &Path) -> io::Result<File> {
    open_with(root, path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
}

/// Opens `path` with flags of the caller's, with `root` as `/`.
pub fn open_with(root: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> io::Result<File> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    loop {
        match rustix::fs::openat2(&root, path, flags, mode, resolve) {
            Ok(fd) => return Ok(File::from(fd)),
            // A rename somewhere on the way: the kernel could not be sure, and asks to try again.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Reads a regular file of at most `max` bytes.
pub fn read(root: impl AsFd, path: &Path, max: u64) -> io::Result<Vec<u8>> {
    super::file::read_bounded(open(root, path)?, max)
}
