//! Locks on sparks: exclusive to change one, shared to start something in it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::Pool;
use crate::error::{Error, Result};
use crate::sys::flock::{self, Mode};

impl Pool {
    /// Locks a directory of the pool. `None` if it does not exist.
    pub fn lock(&self, dir: &Path, mode: Mode) -> Result<Option<OwnedFd>> {
        match flock::lock_dir(dir, mode) {
            Ok(fd) => Ok(Some(fd)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("lock", dir)(e)),
        }
    }
}
