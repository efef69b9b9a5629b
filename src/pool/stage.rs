//! Things half-made: in `staging/ID`, locked by their maker, and gone again unless published.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Pool, btrfs, record};
use crate::domain::spark::Id;
use crate::error::{Error, Result};
use crate::{fault, sys};

/// A directory in which one thing is made. Dropping it removes it, unless it was published.
#[derive(Debug)]
pub struct Stage {
    path: PathBuf,
    lock: Option<OwnedFd>,
}

impl Pool {
    /// Begins to make something. The directory is locked, so that `gc` tells it from what a crash left.
    pub fn stage(&self) -> Result<Stage> {
        loop {
            let path = self.paths.staging().join(Id::generate().as_str());
            std::fs::create_dir(&path).map_err(Error::io("create", &path))?;
            match sys::flock::lock_dir(&path, sys::flock::Mode::Exclusive) {
                Ok(lock) => return Ok(Stage { path, lock: Some(lock) }),
                // `gc` came between the two, and took it for a crash's.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("lock", &path)(e)),
            }
        }
    }
}

impl Pool {
    /// Frees a directory of ours at once: gone by one rename, durable once this returned. The caller holds its exclusive
    /// lock, which goes along and keeps `gc` from doing the rest a second time. Writes nothing, since this is how to make
    /// room in a pool that is full. `renamed` is called in between, for those who want to fail there.
    pub fn remove(&self, dir: &Path, renamed: impl FnOnce() -> Result<()>) -> Result<()> {
        let gone = self.paths.staging().join(Id::generate().as_str());
        match sys::file::rename_new(dir, &gone) {
            // There is no room even for a name. What removes has a reserve of its own, so it is done in place.
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => return destroy(dir),
            other => other.map_err(Error::io("delete", dir))?,
        }
        renamed()?;
        // Its commit makes the new name durable too.
        destroy(&gone)
    }
}

impl Stage {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a record into it, durable together with its publication.
    pub fn write<T: Serialize>(&self, name: &str, record: &T) -> Result<()> {
        let path = self.path.join(name);
        sys::file::create_synced(&path, &record::bytes(record)?).map_err(Error::io("write", path))
    }

    /// The one rename that makes it exist. Returns the lock, which goes along with the directory.
    ///
    /// The name is durable only after [`sys::file::sync_dir`] of the parent, which the caller does, so that it
    /// can do other work meanwhile.
    ///
    /// # Errors
    /// `EEXIST` in the source if `to` exists.
    pub fn publish(self, to: &Path) -> Result<OwnedFd> {
        self.try_publish(to)?
            .map_err(|_| Error::io("create", to)(std::io::Error::from_raw_os_error(libc::EEXIST)))
    }

    /// The same, giving it back where `to` exists, so that it can get another name.
    pub fn try_publish(mut self, to: &Path) -> Result<std::result::Result<OwnedFd, Stage>> {
        match sys::file::rename_new(&self.path, to) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(Err(self)),
            Err(e) => return Err(Error::io("create", to)(e)),
        }
        // Nothing is left at the old path; the lock is the caller's from here.
        let lock = self.lock.take().ok_or(Error::Sys {
            action: "publish what is staged",
            source: std::io::ErrorKind::InvalidInput.into(),
        })?;
        Ok(Ok(lock))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.lock.is_some() {
            let _ = destroy(&self.path);
        }
    }
}

/// Removes a directory of ours with all subvolumes in it, durably. Never follows a link, and enters no subvolume.
///
/// The subvolumes go first, and no directory is removed in the transaction in which a subvolume in it was deleted. btrfs
/// would write a log of such a transaction that it cannot replay: after a power cut, the pool could not be mounted
/// (docs/upstream/btrfs-log-replay.md). The commit in between is unconditional, since a command that was killed may
/// have deleted the subvolumes a moment ago.
pub fn destroy(path: &Path) -> Result<()> {
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("remove", path)(e)),
    };
    if !meta.is_dir() {
        return std::fs::remove_file(path).map_err(Error::io("remove", path));
    }
    if btrfs::is_subvolume(path) {
        return btrfs::delete(path);
    }
    delete_subvolumes(path)?;
    fault::point("destroy.subvolumes-deleted")?;
    if !fault::skips("destroy.commit") {
        btrfs::commit(path)?;
    }
    fault::point("destroy.committed")?;
    std::fs::remove_dir_all(path).map_err(Error::io("remove", path))
}

fn delete_subvolumes(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io("remove", dir))? {
        let entry = entry.map_err(Error::io("remove", dir))?;
        let path = entry.path();
        if !entry.file_type().map_err(Error::io("remove", &path))?.is_dir() {
            continue;
        }
        if btrfs::is_subvolume(&path) {
            btrfs::delete(&path)?;
        } else {
            delete_subvolumes(&path)?;
        }
    }
    Ok(())
}
