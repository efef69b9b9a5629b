//! `du`: how much of the disk only one spark holds, and how much it shares.
//!
//! The metadata of every subvolume is read, and no file. An extent counts whole for each spark that refers to any of it, since
//! it is on disk whole; what is in the metadata, small files among it, is not counted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::spark::SparkId;
use super::{Observer, Sparks};
use crate::domain::name::Name;
use crate::error::{Error, Result};
use crate::pool::{btrfs, names_in};
use crate::sys;
use crate::sys::flock::Mode;

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

/// Nobody alone.
const SEVERAL: u32 = u32::MAX;

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
        let mut extents = Extents::default();
        for (n, spark) in holders.iter().enumerate() {
            extents.add(&self.dir(spark), n as u32)?;
            observer.advance(n as u64 + 1);
        }
        for dir in others {
            extents.add(&dir, holders.len() as u32)?;
        }
        let project = self.project()?;
        let wanted = |spark: &SparkId| match of {
            [] => all_projects || spark.project == project,
            some => some.contains(spark),
        };
        let mut rows = Vec::new();
        for (n, spark) in holders.into_iter().enumerate().filter(|(_, spark)| wanted(spark)) {
            let (own_bytes, shared_bytes) = extents.of(n as u32);
            rows.push(Held { project: spark.project, name: spark.name, own_bytes, shared_bytes });
        }
        Ok(rows)
    }
}

/// By its place on disk, who holds an extent, and how long it is.
#[derive(Default)]
struct Extents {
    holder: HashMap<u64, u32>,
    /// Of each holder, what it refers to.
    held: HashMap<u32, HashMap<u64, u64>>,
}

impl Extents {
    /// Adds all subvolumes below a directory, in a holder's name.
    fn add(&mut self, dir: &Path, holder: u32) -> Result<()> {
        let mut subvolumes = Vec::new();
        find_subvolumes(dir, DEEPEST, &mut subvolumes);
        let held = self.held.entry(holder).or_default();
        for path in subvolumes {
            let Ok(top) = sys::file::open_dir(&path) else { continue };
            let found = sys::search::extents_since(&top, 0, |at, length| _ = held.insert(at, length));
            match found {
                // Deleted while we looked.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                other => other.map_err(Error::io("read the metadata of", path))?,
            }
        }
        for at in held.keys() {
            self.holder
                .entry(*at)
                .and_modify(|had| {
                    if *had != holder {
                        *had = SEVERAL;
                    }
                })
                .or_insert(holder);
        }
        Ok(())
    }

    /// Bytes that only one holds, and bytes that others hold too.
    fn of(&self, holder: u32) -> (u64, u64) {
        let (mut own, mut shared) = (0, 0);
        for (at, length) in self.held.get(&holder).into_iter().flatten() {
            let alone = self.holder.get(at) == Some(&holder);
            *(if alone { &mut own } else { &mut shared }) += length;
        }
        (own, shared)
    }
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
