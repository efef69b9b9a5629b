//! Where a location is: on the host, in a spark's root, in a data volume that the spark has, or in a snapshot of these.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode as Bits, OFlags};

use super::super::Sparks;
use super::super::spark::SparkId;
use crate::domain::location::Location;
use crate::domain::name::Name;
use crate::domain::place::{SnapshotPaths, SparkPaths};
use crate::domain::volume::{Attached, Data};
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::flock::Mode;

/// Where paths begin.
pub(super) enum Tree {
    Host,
    /// A spark's root or volume, which nothing leads out of.
    Inside(OwnedFd),
}

impl Tree {
    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> io::Result<File> {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        match self {
            Tree::Host => Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Bits::empty())?.into()),
            Tree::Inside(root) => sys::beneath::open_with(root, path, flags, Bits::empty()),
        }
    }
}

/// A location, found.
pub(super) struct Place {
    pub(super) tree: Tree,
    /// The path in the tree.
    pub(super) path: Vec<u8>,
    /// Volumes that the spark has below the path, and which are not in the tree.
    pub(super) below: Vec<Attached>,
}

impl Sparks {
    /// Finds the files that a location is among. Of a spark that is its root, or the volume that it has at the path: what
    /// else is mounted while it runs, `/spark` and `/proc` among it, is in neither. A link that leads to a volume is not
    /// known to do so.
    pub(super) fn place_of(&self, location: &Location) -> Result<Place> {
        let path = location.bytes().to_vec();
        let Some(source) = location.spark() else {
            return Ok(Place { tree: Tree::Host, path, below: Vec::new() });
        };
        let id = self.resolve(&source.spark)?;
        let dir = self.dir(&id);
        // Only until the root is open: a long copy keeps nobody from stopping or deleting the spark, or taking a snapshot.
        let Some(_lock) = self.pool.lock(&dir, Mode::Shared)? else {
            return Err(self.no_such_spark(&id.project, &id.name));
        };
        let (root, volumes) = match &source.snapshot {
            None => (SparkPaths(&dir).root(), self.record(&id)?.options.volumes),
            Some(snapshot) => {
                let kept = self.snapshot_record(&id, snapshot)?.volumes;
                (self.snapshot_root(&id, snapshot)?, kept.into_iter().map(|kept| kept.attached).collect())
            }
        };
        let wanted = plain(Path::new(location.path()));
        let open = |top: PathBuf| sys::file::open_dir(&top).map(Tree::Inside).map_err(Error::io("open", top));
        match volumes.iter().find(|v| wanted.starts_with(&v.path)) {
            Some(volume) => {
                let rest = wanted.strip_prefix(&volume.path).unwrap_or(&wanted);
                // What its end means stays: a directory, or what is in it.
                let end = [&b"/."[..], b"/"].into_iter().find(|end| path.ends_with(end)).unwrap_or_default();
                let path = [b"./", rest.as_os_str().as_bytes(), end].concat();
                let tree = open(self.volume_in(&id, source.snapshot.as_ref(), volume)?)?;
                Ok(Place { tree, path, below: Vec::new() })
            }
            None => {
                let below = volumes.into_iter().filter(|v| v.path.starts_with(&wanted)).collect();
                Ok(Place { tree: open(root)?, path, below })
            }
        }
    }

    /// The files of a volume, or of the copy that a snapshot has of it.
    fn volume_in(&self, spark: &SparkId, snapshot: Option<&Name>, volume: &Attached) -> Result<PathBuf> {
        let Some(name) = snapshot else {
            let found = self.volumes_of(spark, std::slice::from_ref(volume))?;
            return Ok(found.into_iter().map(|(fs, _)| fs).next().unwrap_or_default());
        };
        let record = self.snapshot_record(spark, name)?;
        let copied =
            |kept: &crate::domain::snapshot::Kept| kept.attached == *volume && kept.data == Data::Copy;
        if record.volumes.iter().any(copied) {
            return Ok(SnapshotPaths(&self.snapshot_dir(spark, name)).volume(&volume.volume));
        }
        Err(Error::Usage {
            message: format!("snapshot `{spark}@{name}` holds no copy of data volume `{}`", volume.volume),
            hint: Some(format!("copy from the volume as it is now: `{spark}:{}`", volume.path.display())),
        })
    }
}

/// An absolute path without `.`, `..` and double slashes, by its words alone.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => drop(out.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_plain_by_its_words_alone() {
        for (path, expected) in [("/a//b/./c", "/a/b/c"), ("a/../../b", "/b"), ("", "/"), ("/..", "/")] {
            assert_eq!(plain(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}
