//! How much a spark may keep on disk: a group of simple quotas for each, which its root is in.
//!
//! A limit hangs on a subvolume's id, and a restore gives a spark another one. So every start puts the root that is there
//! into the group that the spark's own id names, and nothing of it is recorded but the limit.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::{Pool, btrfs};
use crate::domain::place::SparkPaths;
use crate::domain::spark::Id;
use crate::error::{Error, Result};
use crate::sys;

/// What a spark keeps on disk, as its group counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Counted {
    /// Bytes that were written by it and are there still, in snapshots too, and metadata.
    pub used_bytes: u64,
    pub limit_bytes: Option<u64>,
}

fn too_old() -> Error {
    Error::NotSupported {
        what: "this kernel's btrfs has no simple quotas".into(),
        hint: Some("they came with Linux 6.7; without `--quota` a pool needs none".into()),
    }
}

/// The kernel removes what counted for a subvolume too, some time after that.
fn gone(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Fails before anything is made, where the kernel says what its btrfs can do.
pub(super) fn refuse_old_kernel() -> Result<()> {
    let features = Path::new("/sys/fs/btrfs/features");
    if features.is_dir() && !features.join("simple_quota").exists() { Err(too_old()) } else { Ok(()) }
}

impl Pool {
    fn top(&self) -> Result<OwnedFd> {
        sys::file::open_dir(&self.paths.top).map_err(Error::io("open", &self.paths.top))
    }

    /// Turns counting on. The pool is new.
    pub(super) fn enable_quota(&self) -> Result<()> {
        sys::quota::enable(self.top()?).map_err(|e| match e.raw_os_error() {
            Some(libc::EINVAL | libc::ENOTTY | libc::EOPNOTSUPP) => too_old(),
            _ => Error::io("turn on quotas in", &self.paths.top)(e),
        })
    }

    /// Whether the pool counts what is whose.
    pub fn has_quota(&self) -> Result<bool> {
        sys::quota::is_on(self.top()?).map_err(Error::io("look for quotas in", &self.paths.top))
    }

    /// Fails for a limit that this pool cannot keep.
    pub fn can_limit(&self, disk: Option<u64>) -> Result<()> {
        if disk.is_none() || self.has_quota()? {
            return Ok(());
        }
        Err(Error::NotSupported {
            what: "this pool counts nothing, so a spark's share of the disk cannot be limited".into(),
            hint: Some("that is decided when a pool is made: see `spark help pool init`; lift a limit with `spark set NAME --disk none`".into()),
        })
    }

    /// Puts what a spark writes from now on into its group, and gives that its limit. The caller holds its lock.
    pub fn hold_to(&self, id: &Id, spark: &SparkPaths<'_>, disk: Option<u64>) -> Result<()> {
        self.can_limit(disk)?;
        if !self.has_quota()? {
            return Ok(());
        }
        let root = spark.root();
        let (top, group) = (self.top()?, sys::quota::group(id.number()));
        let subvolume = btrfs::info(&root)?.id;
        sys::quota::create(&top, group)
            .and_then(|()| sys::quota::limit(&top, group, disk))
            .and_then(|()| sys::quota::assign(&top, subvolume, group))
            .map_err(Error::io("limit the disk of", root))
    }

    /// What the group of a spark counts. None if it has none.
    pub fn counted(&self, id: &Id, limit_bytes: Option<u64>) -> Option<Counted> {
        let group = sys::quota::group(id.number());
        let all = self.groups().ok()?;
        let (_, used_bytes) = all.into_iter().find(|(found, _)| *found == group)?;
        Some(Counted { used_bytes, limit_bytes })
    }

    fn groups(&self) -> Result<Vec<(u64, u64)>> {
        let top = self.top()?;
        let failed = Error::io("read the quotas of", &self.paths.top);
        if !self.has_quota()? { Ok(Vec::new()) } else { sys::search::quota_groups(top).map_err(failed) }
    }

    /// Groups of sparks that are none of these.
    pub fn groups_but(&self, ids: &HashSet<Id>) -> Result<Vec<u64>> {
        let of_sparks: Vec<u64> = ids.iter().map(|id| sys::quota::group(id.number())).collect();
        let all = self.groups()?.into_iter().map(|(group, _)| group);
        Ok(all.filter(|group| *group >> 48 == 1 && !of_sparks.contains(group)).collect())
    }

    /// Removes the group of a spark that is gone. What it wrote may be there still, in what was made from it.
    pub fn remove_group(&self, group: u64) -> Result<()> {
        let top = self.top()?;
        let removed = sys::search::quota_members(&top, group).and_then(|members| {
            members.into_iter().try_for_each(|member| gone(sys::quota::take_out(&top, member, group)))?;
            gone(sys::quota::remove(&top, group))
        });
        removed.map_err(Error::io("remove a quota of", &self.paths.top))
    }
}
