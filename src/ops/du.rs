//! `du`: how much of the disk only one spark holds, and how much it shares.
//!
//! The metadata of every subvolume is read, and no file. An extent counts whole for each spark that refers to any of it, since
//! it is on disk whole; what is in the metadata, small files among it, is not counted.

use std::path::{Path, PathBuf};

use super::spark::SparkId;
use super::{Observer, Sparks};
use crate::domain::name::Name;
use crate::error::{Error, Result};
use crate::pool::{btrfs, names_in};
use crate::sys;
use crate::sys::flock::Mode;
use crate::sys::tally;

/// What one spark holds, with its snapshots.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Held {
    pub project: Name,
    pub name: Name,
    /// Bytes that would be freed if it were gone.
    pub own_bytes: u64,
    /// Bytes that something else holds too: a base, another spark, a data volume, the trash.
    pub shared_bytes: u64,
}

/// Levels of directories above the deepest subvolume: `projects/P/sparks/N/snapshots/S/data/V`.
const DEEPEST: usize = 9;

impl Sparks {
    /// How much each of these sparks holds; all of this project if there are none, or of every project. What was written a
    /// moment ago, and is not on disk yet, is not counted.
    pub fn du(&self, of: &[SparkId], all_projects: bool, observer: &dyn Observer) -> Result<Vec<Held>> {
        let mut holders = Vec::new();
        let mut others = vec![self.pool.paths.bases(), self.pool.paths.system()];
        others.extend([self.pool.paths.trash(), self.pool.paths.staging()]);
        for project in names_in(&self.pool.paths.projects())? {
            let dir = self.pool.paths.project(&project);
            holders.extend(self.sparks_of(&project)?);
            let inside = std::fs::read_dir(&dir).map_err(Error::io("list", &dir))?;
            let sparks = self.pool.paths.sparks(&project);
            others.extend(inside.flatten().map(|entry| entry.path()).filter(|path| *path != sparks));
        }
        for spark in holders.iter().filter(|spark| self.is_unsettled(spark)) {
            match self.lock_spark(spark, Mode::Shared) {
                // Deleted while it was waited for.
                Err(Error::NotFound { .. }) => {}
                settled => drop(settled?),
            }
        }
        observer.step("reading metadata", Some(holders.len() as u64 + 1));
        // All others together are the last holder.
        let mut dirs: Vec<Vec<PathBuf>> = holders.iter().map(|spark| vec![self.dir(spark)]).collect();
        dirs.push(others);
        let counted = tally::count(dirs.len() as u32, &mut |holder, found| {
            let of_holder = &dirs[holder as usize];
            of_holder.iter().try_for_each(|dir| extents_below(dir, found))?;
            observer.advance(u64::from(holder) + 1);
            Ok::<(), Error>(())
        })?;
        let project = self.project()?;
        let wanted = |spark: &SparkId| match of {
            [] => all_projects || spark.project == project,
            some => some.contains(spark),
        };
        let mut rows = Vec::new();
        for (spark, bytes) in holders.into_iter().zip(counted).filter(|(spark, _)| wanted(spark)) {
            let (own_bytes, shared_bytes) = (bytes.own, bytes.shared);
            rows.push(Held { project: spark.project, name: spark.name, own_bytes, shared_bytes });
        }
        Ok(rows)
    }
}

/// Calls `found` with each extent that the subvolumes below a directory refer to.
fn extents_below(dir: &Path, found: &mut tally::Found<'_>) -> Result<()> {
    let mut subvolumes = Vec::new();
    find_subvolumes(dir, DEEPEST, &mut subvolumes);
    for path in subvolumes {
        let Ok(top) = sys::file::open_dir(&path) else { continue };
        match sys::search::extents_since(&top, 0, &mut *found) {
            // Deleted while we looked.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            other => other.map_err(Error::io("read the metadata of", path))?,
        }
    }
    Ok(())
}

/// Never goes into one: what is in a root is a stranger's.
fn find_subvolumes(dir: &Path, deepest: usize, found: &mut Vec<PathBuf>) {
    if btrfs::is_subvolume(dir) {
        found.push(dir.to_owned());
    } else if deepest > 0 {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                find_subvolumes(&entry.path(), deepest - 1, found);
            }
        }
    }
}
