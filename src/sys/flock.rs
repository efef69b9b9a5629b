//! Locks on directories: `flock(2)`, close-on-exec, gone with the process.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::FlockOperation;

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Many at once.
    Shared,
    /// One alone.
    Exclusive,
}

/// Locks a directory, waiting for it. After locking, the path is compared with what was locked: a rename or a
/// delete in between means that another one has the name now, and it is tried again.
///
/// # Errors
/// `NotFound` if the directory does not exist, or does not any more.
pub fn lock_dir(path: &Path, mode: Mode) -> io::Result<OwnedFd> {
    let (now, wait) = match mode {
        Mode::Shared => (FlockOperation::NonBlockingLockShared, FlockOperation::LockShared),
        Mode::Exclusive => (FlockOperation::NonBlockingLockExclusive, FlockOperation::LockExclusive),
    };
    loop {
        let fd = super::file::open_dir(path)?;
        match rustix::fs::flock(&fd, now) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                tracing::info!(path = %path.display(), "waiting for another command");
                retry_on_intr(|| rustix::fs::flock(&fd, wait))?;
            }
            Err(e) => return Err(e.into()),
        }
        if super::file::same_file(&fd, path)? {
            return Ok(fd);
        }
    }
}

/// Locks a directory if nobody else has it.
pub fn try_lock_dir(path: &Path) -> io::Result<Option<OwnedFd>> {
    let fd = super::file::open_dir(path)?;
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) if super::file::same_file(&fd, path)? => Ok(Some(fd)),
        Ok(()) | Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn retry_on_intr(mut call: impl FnMut() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other,
        }
    }
}
