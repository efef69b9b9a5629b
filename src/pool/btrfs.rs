//! Subvolumes: the only user of btrfsutil.
//!
//! btrfsutil panics on a NUL in a path and drops the errno of what failed, so paths are checked before and the
//! errno is read at once.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use btrfsutil::subvolume::{DeleteFlags, SnapshotFlags, Subvolume};

use crate::error::{Error, Result};

/// What btrfs knows of a subvolume.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Info {
    pub id: u64,
    pub uuid: String,
    pub read_only: bool,
    /// The transaction that made it: what it was made from is older.
    #[serde(skip)]
    pub made: u64,
    /// The transaction of the last change of a file in it: a base's content is not younger.
    #[serde(skip)]
    pub changed: u64,
    /// The subvolume that it stands in, and the directory there, by their numbers. None for the top of all.
    #[serde(skip)]
    pub within: Option<(u64, u64)>,
}

fn checked<T>(action: &'static str, path: &Path, call: impl FnOnce() -> btrfsutil::Result<T>) -> Result<T> {
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(Error::io(action, path)(io::ErrorKind::InvalidInput.into()));
    }
    call().map_err(|_| Error::io(action, path)(io::Error::last_os_error()))
}

/// Makes an empty subvolume, durably. The kernel commits a snapshot, but not a subvolume that is made: without a commit,
/// an fsync of a directory above it may keep the directory that it is in and lose the subvolume.
pub fn create(path: &Path) -> Result<()> {
    checked("create subvolume", path, || Subvolume::create(path, None)).map(drop)?;
    commit(path)
}

/// Makes a writable snapshot of `source` at `target`, which must not exist.
pub fn snapshot(source: &Path, target: &Path) -> Result<()> {
    checked("snapshot to", target, || Subvolume::get(source)?.snapshot(target, SnapshotFlags::empty(), None))
        .map(drop)
}

/// Makes a read-only snapshot of `source` at `target`, which must not exist. Its parent directory can be moved, it
/// cannot be moved to another.
pub fn snapshot_read_only(source: &Path, target: &Path) -> Result<()> {
    checked("snapshot to", target, || {
        Subvolume::get(source)?.snapshot(target, SnapshotFlags::READ_ONLY, None)
    })
    .map(drop)
}

/// Makes a subvolume read-only, in its final place: a read-only one cannot be moved to another parent.
pub fn set_read_only(path: &Path) -> Result<()> {
    checked("make read-only", path, || Subvolume::get(path)?.set_ro(true))
}

/// Makes a read-only subvolume writable.
pub fn set_writable(path: &Path) -> Result<()> {
    checked("make writable", path, || Subvolume::get(path)?.set_ro(false))
}

/// Deletes a subvolume and those inside it. The space is freed later, by the kernel.
pub fn delete(path: &Path) -> Result<()> {
    let delete =
        || checked("delete subvolume", path, || Subvolume::get(path)?.delete(DeleteFlags::RECURSIVE));
    match delete() {
        // Those inside cannot be taken out of a read-only one: a root with some became a snapshot.
        Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EROFS) => {
            set_writable(path)?;
            delete()
        }
        other => other,
    }
}

/// Commits the transaction that is open: whatever was made, renamed or deleted before is durable once this returned. The
/// content of files is not, unless it was synced.
pub fn commit(path: &Path) -> Result<()> {
    checked("commit", path, || btrfsutil::sync::sync(path))
}

/// The deleted subvolumes of this filesystem that the kernel has not freed yet, by their numbers.
pub fn unfreed(path: &Path) -> Result<Vec<u64>> {
    let found = crate::sys::file::open_dir(path).and_then(crate::sys::btrfs::unfreed_subvolumes);
    found.map_err(Error::io("look for deleted subvolumes in", path))
}

/// Whether a path is a subvolume's top.
pub fn is_subvolume(path: &Path) -> bool {
    // The top of every subvolume has inode 256; nothing else on btrfs does.
    std::fs::symlink_metadata(path).is_ok_and(|m| m.is_dir() && m.ino() == 256)
        && crate::sys::file::is_btrfs(path).unwrap_or(false)
}

/// Identifies a subvolume.
pub fn info(path: &Path) -> Result<Info> {
    checked("inspect subvolume", path, || {
        let subvolume = Subvolume::get(path)?;
        let info = subvolume.info()?;
        Ok(Info {
            id: info.id,
            uuid: info.uuid.to_string(),
            read_only: subvolume.is_ro()?,
            made: info.otransid,
            changed: info.ctransid,
            within: info.parent_id.zip(info.dir_id),
        })
    })
}
