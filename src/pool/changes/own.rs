//! How much of a subvolume nothing else holds.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;

use super::compare::{Tree, kind};
use super::memory::Memory;
use super::{FileType, MOST, replayed};
use crate::error::{Error, Result};
use crate::pool::btrfs;
use crate::sys;

/// Bytes of file content that only a read-only subvolume holds: what deleting it would free, but for metadata and
/// compression. `relative` is any other one, the closer the quicker: what both have cannot be the one's own, so only
/// files in which they differ are asked for.
///
/// # Errors
/// As [`between`](super::between); also where the kernel cannot tell the two apart.
pub fn own_bytes(subvolume: &Path, relative: &Path) -> Result<u64> {
    let tree = Tree::open(subvolume)?;
    let (replay, _) = replayed(&tree, btrfs::info(relative)?.id, &Rc::new(Memory::new(MOST)))?;
    let (mut own, mut seen) = (0, HashSet::new());
    for link in replay.links.iter().filter(|link| replay.nodes[link.node].written) {
        let Some(place) = &link.after else { continue };
        let path = replay.path_after(place)?;
        let stat = tree.stat(&path)?;
        if kind(&stat) == FileType::RegularFile && seen.insert(stat.st_ino) {
            let file = tree.open_file(&path)?;
            own += sys::btrfs::unshared_bytes(file.as_fd()).map_err(Error::io("inspect", subvolume))?;
        }
    }
    Ok(own)
}
