//! What a command makes at this moment, so that another one waits for it instead of making it too.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::Pool;
use super::layout::make_dir;
use crate::error::{Error, Result};
use crate::sys::flock::{self, Mode};

/// The right to make one thing. No other command has it until this is dropped.
///
/// It is a locked directory of the thing's name, since the thing itself is not there yet. A directory that nobody has locked
/// is a killed command's: the next maker takes it over, and `gc` removes it.
#[derive(Debug)]
pub struct Making {
    dir: PathBuf,
    _lock: OwnedFd,
}

impl Pool {
    /// Gets the right to make a thing. If another command makes the thing now, calls `wait` and waits until it has ended.
    pub fn making(&self, thing: &str, wait: impl FnOnce()) -> Result<Making> {
        let all = self.place.making();
        make_dir(&all, 0o700)?;
        let dir = all.join(thing);
        let mut wait = Some(wait);
        loop {
            match std::fs::create_dir(&dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::io("create", dir)(e));
                }
                _ => {}
            }
            let lock = match flock::try_lock_dir(&dir) {
                Ok(None) => {
                    if let Some(wait) = wait.take() {
                        wait();
                    }
                    flock::lock_dir(&dir, Mode::Exclusive)
                }
                Ok(Some(lock)) => Ok(lock),
                Err(e) => Err(e),
            };
            match lock {
                Ok(lock) => return Ok(Making { dir, _lock: lock }),
                // The other command has made the thing, and removed the directory.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("lock", dir)(e)),
            }
        }
    }

    /// Waits until no command makes a thing, and calls `wait` before that if one does.
    pub fn wait_made(&self, thing: &str, wait: impl FnOnce()) -> Result<()> {
        match self.place.making().join(thing).exists() {
            true => self.making(thing, wait).map(drop),
            false => Ok(()),
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // While it is locked, so that nobody takes it for a killed command's.
        let _ = std::fs::remove_dir(&self.dir);
    }
}
