//! `snapshot restore` and `undo`: another root in the place of a spark's own, by one exchange of names.
//!
//! The order matters. The new root is published in the very directory that the old one is to be kept in, then the two
//! are exchanged: at no moment is the user's data anywhere that `gc` collects.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::Sparks;
use super::super::spark::{Opened, SparkId};
use super::is_leftover;
use crate::domain::FORMAT;
use crate::domain::name::{Name, SparkRef};
use crate::domain::place::{SnapshotPaths, SparkPaths};
use crate::domain::snapshot::{Kind, SnapshotRecord};
use crate::domain::spark::{Id, State};
use crate::error::{Error, Result};
use crate::pool::{btrfs, names_in, record, stage};
use crate::sys::flock::Mode;
use crate::{fault, sys};

/// How many of the states before a restore are kept. A loop of restores would fill the pool else.
const UNDO_KEPT: u32 = 10;

/// What a restore did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Restored {
    /// The snapshot of what was there before.
    pub undo: Name,
    /// What the spark is doing now.
    pub state: State,
}

impl Sparks {
    /// Puts a spark's files back to what a snapshot holds. What they were becomes a snapshot too. A spark that runs is
    /// ended at once, and started again if `resume` says so.
    pub fn restore(&self, spark: &SparkRef, snapshot: &Name, resume: bool) -> Result<Restored> {
        let spark = self.resolve(spark)?;
        let opened = self.open_spark(&spark, Mode::Exclusive)?;
        let root = self.snapshot_root(&spark, snapshot)?;
        self.replace_root(&opened, &root, resume)
    }

    /// Puts a spark's files back to what they were before the last restore, pick or undo. What they are now takes the
    /// place of those, so that the next undo goes forth again.
    ///
    /// # Errors
    /// `wrong_state` if nothing was restored.
    pub fn undo(&self, spark: &SparkRef, resume: bool) -> Result<Restored> {
        let spark = self.resolve(spark)?;
        let opened = self.open_spark(&spark, Mode::Exclusive)?;
        self.settle(&spark)?;
        opened.refuse_damaged()?;
        let newest = self.snapshots_of(&spark)?.into_iter().rfind(|s| s.kind == Some(Kind::Undo));
        let Some(before) = newest else {
            return Err(Error::WrongState {
                action: "undo a restore of",
                kind: "spark",
                name: spark.to_string(),
                state: "as it always was: nothing has been restored in it".into(),
                hint: format!("see what can be restored with `spark snapshot list {spark}`"),
            });
        };
        self.while_ended(&opened, resume, || self.exchange_back(&opened, &before.name))
    }

    /// Exchanges a spark's root for a copy of another one. The caller holds its exclusive lock.
    pub(crate) fn replace_root(&self, opened: &Opened, source: &Path, resume: bool) -> Result<Restored> {
        self.settle(&opened.id)?;
        opened.refuse_damaged()?;
        let root = SparkPaths(&opened.dir).root();
        let record = SnapshotRecord {
            version: FORMAT,
            id: Id::generate(),
            created: chrono::Utc::now(),
            kind: Kind::Undo,
            label: None,
            replaced: Some(btrfs::info(&root)?.uuid),
            rest: Default::default(),
        };
        // Before the spark is ended, so that it is away no longer than it has to be.
        let stage = self.pool.stage()?;
        stage.write("snapshot.json", &record)?;
        btrfs::snapshot(source, &SnapshotPaths(stage.path()).root())?;
        fault::point("restore.staged")?;
        let restored = self.while_ended(opened, resume, || self.exchange_root(opened, stage, &record))?;
        self.thin(opened, &record, UNDO_KEPT)?;
        Ok(restored)
    }

    /// Ends what runs of a spark, does something that names the snapshot to undo it with, and starts the spark again if
    /// it ran: also where that failed, since then it is as it was.
    fn while_ended(
        &self,
        opened: &Opened,
        resume: bool,
        work: impl FnOnce() -> Result<Name>,
    ) -> Result<Restored> {
        let ran = self.runs_on(&opened.record);
        self.end(&opened.record, Duration::ZERO)?;
        let undo = fault::point("restore.ended").and_then(|()| work());
        if ran && (resume || undo.is_err()) {
            self.start(opened)?;
        }
        Ok(Restored { undo: undo?, state: self.state(&opened.record) })
    }

    /// Exchanges a spark's root for the very subvolume that was it before: a copy would lack the subvolumes inside.
    fn exchange_back(&self, opened: &Opened, name: &Name) -> Result<Name> {
        let dir = self.snapshot_dir(&opened.id, name);
        let old = self.snapshot_record(&opened.id, name)?;
        // Both are somebody's data from here on, and neither is ever a leftover.
        let record = SnapshotRecord { replaced: None, created: chrono::Utc::now(), ..old };
        record::replace(&SnapshotPaths(&dir).record(), &record)?;
        fault::point("undo.recorded")?;
        btrfs::set_writable(&SnapshotPaths(&dir).root())?;
        fault::point("undo.writable")?;
        sys::file::exchange(&SparkPaths(&opened.dir).root(), &SnapshotPaths(&dir).root())
            .map_err(Error::io("restore", &dir))?;
        fault::point("undo.exchanged")?;
        self.finish_exchange(opened, &dir)?;
        Ok(name.clone())
    }

    fn exchange_root(&self, opened: &Opened, stage: stage::Stage, record: &SnapshotRecord) -> Result<Name> {
        let root = SparkPaths(&opened.dir).root();
        let (name, _lock) = self.publish_snapshot(opened, stage, record, None)?;
        let dir = self.snapshot_dir(&opened.id, &name);
        let old = SnapshotPaths(&dir).root();
        let exchanged = fault::point("restore.published")
            .and_then(|()| sys::file::exchange(&root, &old).map_err(Error::io("restore", &root)));
        if let Err(first) = exchanged {
            return Err(match stage::destroy(&dir) {
                Ok(()) => first,
                Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
            });
        }
        fault::point("restore.exchanged")?;
        self.finish_exchange(opened, &dir)?;
        fault::point("restore.read-only")?;
        Ok(name)
    }

    /// Makes an exchange durable.
    fn finish_exchange(&self, opened: &Opened, dir: &Path) -> Result<()> {
        for dir in [opened.dir.as_path(), dir] {
            sys::file::sync_dir(dir).map_err(Error::io("sync", dir))?;
        }
        // Only now: a read-only subvolume cannot be moved to another directory.
        btrfs::set_read_only(&SnapshotPaths(dir).root())
    }

    /// What a killed restore left before it had exchanged anything.
    pub(crate) fn unfinished(&self, spark: &SparkId) -> Result<Vec<PathBuf>> {
        let names = names_in(&SparkPaths(&self.dir(spark)).snapshots())?;
        let dirs = names.iter().map(|name| self.snapshot_dir(spark, name));
        Ok(dirs.filter(|dir| is_leftover(dir)).collect())
    }

    /// Finishes what a killed restore left, or removes it. The caller holds the spark's exclusive lock.
    pub(crate) fn settle(&self, spark: &SparkId) -> Result<()> {
        for name in names_in(&SparkPaths(&self.dir(spark)).snapshots())? {
            let dir = self.snapshot_dir(spark, &name);
            let root = SnapshotPaths(&dir).root();
            if is_leftover(&dir) {
                stage::destroy(&dir)?;
            } else if btrfs::info(&root).is_ok_and(|now| !now.read_only) {
                btrfs::set_read_only(&root)?;
            }
        }
        Ok(())
    }
}
