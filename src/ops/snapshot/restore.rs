//! `snapshot restore` and `undo`: another root in the place of a spark's own, by one exchange of names.
//!
//! The order matters. The new root is published in the very directory that the old one is to be kept in, then the two
//! are exchanged: at no moment is the user's data anywhere that `gc` collects. Where data volumes are restored too, what
//! is going to be exchanged is written down before. From the exchange of the root on the restore has happened, and
//! whoever opens the spark next does what is left of it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::Sparks;
use super::super::data::{VolumeId, held};
use super::super::spark::{Opened, SparkId};
use super::{is_leftover, settle_all};
use crate::domain::FORMAT;
use crate::domain::name::{Name, SparkRef};
use crate::domain::place::{SnapshotPaths, SparkPaths, VolumePaths};
use crate::domain::snapshot::{Kept, Kind, SnapshotRecord};
use crate::domain::spark::State;
use crate::error::{Error, Result};
use crate::pool::{btrfs, names_in, record, stage};
use crate::sys::flock::Mode;
use crate::{fault, sys};

/// How many of the states before a restore are kept. A loop of restores would fill the pool else.
const UNDO_KEPT: u32 = 10;

/// How to restore.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Start a spark again that ran.
    pub resume: bool,
    /// Also the data volumes that the snapshot holds.
    pub data: bool,
}

/// What a restore did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Restored {
    /// The snapshot of what was there before.
    pub undo: Name,
    /// What the spark is doing now.
    pub state: State,
    /// The data volumes that were restored too.
    pub volumes: Vec<Name>,
}

/// `restore.json`: the snapshot of what was there before a restore of more than the root, which is under way.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Intent {
    version: u32,
    undo: Name,
}

/// What a spark's files are to be.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) root: PathBuf,
    /// Volumes, and the copies of them.
    pub(crate) volumes: Vec<(Kept, PathBuf)>,
}

impl Sparks {
    /// Puts a spark's files back to what a snapshot holds. What they were becomes a snapshot too. A spark that runs is
    /// ended at once, and started again if `resume` says so. One that has lost its root gets one again.
    pub fn restore(&self, spark: &SparkRef, snapshot: &Name, options: Options) -> Result<Restored> {
        let spark = self.resolve(spark)?;
        let opened = self.open_spark(&spark, Mode::Exclusive)?;
        self.with_service(opened, |opened| {
            let source = self.source(&spark, snapshot, options.data)?;
            let root = SparkPaths(&opened.dir).root();
            if root.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
                // Lost, as nothing of ours loses it. There has to be something to exchange.
                btrfs::create(&root)?;
            }
            self.replace_files(opened, &source, options.resume)
        })
    }

    /// Puts a spark's files back to what they were before the last restore, pick or undo. What they are now takes the
    /// place of those, so that the next undo goes forth again.
    ///
    /// # Errors
    /// `wrong_state` if nothing was restored.
    pub fn undo(&self, spark: &SparkRef, options: Options) -> Result<Restored> {
        let spark = self.resolve(spark)?;
        let opened = self.open_spark(&spark, Mode::Exclusive)?;
        self.with_service(opened, |opened| self.undo_opened(opened, options))
    }

    fn undo_opened(&self, opened: &Opened, options: Options) -> Result<Restored> {
        let spark = &opened.id;
        self.settle(spark)?;
        opened.refuse_damaged()?;
        let newest = self.snapshots_of(spark)?.into_iter().rfind(|s| s.kind == Some(Kind::Undo));
        let Some(before) = newest else {
            return Err(Error::WrongState {
                action: "undo a restore of",
                kind: "spark",
                name: spark.to_string(),
                state: "as it always was: nothing has been restored in it".into(),
                hint: format!("see what can be restored with `spark snapshot list {spark}`"),
            });
        };
        let source = self.source(spark, &before.name, options.data)?;
        let old = self.snapshot_record(spark, &before.name)?;
        if held(&old).count() > source.volumes.len() {
            // The volumes that are to stay as they are do so in a snapshot of their own.
            return self.replace_files(opened, &source, options.resume);
        }
        let locks = self.lock_to_restore(opened, &source)?;
        let record = SnapshotRecord { id: old.id, undone: true, ..self.undo_record(opened, &source)? };
        self.while_ended(opened, (options.resume, locks), || self.exchange_back(opened, before.name, record))
    }

    /// What a snapshot holds: the root, and the data volumes if `data` says so.
    pub(crate) fn source(&self, spark: &SparkId, snapshot: &Name, data: bool) -> Result<Files> {
        let root = self.snapshot_root(spark, snapshot)?;
        let record = self.snapshot_record(spark, snapshot)?;
        let dir = self.snapshot_dir(spark, snapshot);
        let kept = held(&record).filter(|_| data);
        let with_copy = |kept: &Kept| (kept.clone(), SnapshotPaths(&dir).volume(&kept.attached.volume));
        Ok(Files { root, volumes: kept.map(with_copy).collect() })
    }

    /// Exchanges a spark's files for copies of others. The caller holds its exclusive lock.
    pub(crate) fn replace_files(&self, opened: &Opened, source: &Files, resume: bool) -> Result<Restored> {
        self.settle(&opened.id)?;
        opened.refuse_damaged()?;
        let locks = self.lock_to_restore(opened, source)?;
        let record = self.undo_record(opened, source)?;
        // Before the spark is ended, so that it is away no longer than it has to be.
        let stage = self.pool.stage()?;
        stage.write("snapshot.json", &record)?;
        let to = SnapshotPaths(stage.path());
        btrfs::snapshot(&source.root, &to.root())?;
        if !source.volumes.is_empty() {
            std::fs::create_dir(to.data()).map_err(Error::io("create", to.data()))?;
        }
        for (kept, copy) in &source.volumes {
            btrfs::snapshot(copy, &to.volume(&kept.attached.volume))?;
        }
        fault::point("restore.staged")?;
        let restored = self.while_ended(opened, (resume, locks), || {
            Ok((self.exchange(opened, stage, &record)?, record.clone()))
        })?;
        self.thin(opened, &record, UNDO_KEPT)?;
        Ok(restored)
    }

    /// Ends what runs of a spark, does something that returns the snapshot to undo it with, and starts the spark again if
    /// it ran and that is wanted, or if it failed, since then it is as it was. The locks are let go of before: a start
    /// takes them too.
    fn while_ended(
        &self,
        opened: &Opened,
        (resume, locks): (bool, Vec<OwnedFd>),
        work: impl FnOnce() -> Result<(Name, SnapshotRecord)>,
    ) -> Result<Restored> {
        let ran = self.runs_on(&opened.record);
        let give = || self.give(&opened.id.project, &opened.record.options);
        // Before it is ended: without its secrets it would not come back.
        let given = (ran && resume).then(give).transpose()?;
        self.end(&opened.record, Duration::ZERO)?;
        let done = fault::point("restore.ended").and_then(|()| work());
        drop(locks);
        if ran && (resume || done.is_err()) {
            self.start(opened, given.map_or_else(give, Ok)?)?;
        }
        let (undo, record) = done?;
        let volumes = record.volumes.into_iter().map(|kept| kept.attached.volume).collect();
        Ok(Restored { undo, state: self.state(&opened.record), volumes })
    }

    /// Exchanges a spark's files for the very subvolumes that they were before: copies would lack the subvolumes inside.
    fn exchange_back(
        &self,
        opened: &Opened,
        undo: Name,
        record: SnapshotRecord,
    ) -> Result<(Name, SnapshotRecord)> {
        let dir = self.snapshot_dir(&opened.id, &undo);
        // Both sides are somebody's data from here on, and neither is ever a leftover.
        record::replace(&SnapshotPaths(&dir).record(), &record)?;
        fault::point("undo.recorded")?;
        for (_, kept) in self.pairs(&opened.id, &undo, &record) {
            btrfs::set_writable(&kept)?;
        }
        fault::point("undo.writable")?;
        if let Err(first) = self.exchange_all(opened, &undo, &record) {
            // All of it is back in its place, or else the next command goes on from here.
            return Err(match first {
                Error::Undo { .. } => first,
                _ => match self.forget_intent(&opened.dir).and_then(|()| self.settle(&opened.id)) {
                    Ok(()) => first,
                    Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
                },
            });
        }
        fault::point("undo.exchanged")?;
        self.finish(&opened.id, &undo, &record)?;
        Ok((undo, record))
    }

    /// Locks the volumes that are to be restored, each of which has to be the spark's, and nobody else's.
    fn lock_to_restore(&self, opened: &Opened, source: &Files) -> Result<Vec<OwnedFd>> {
        let spark = &opened.id;
        let mut names: Vec<&Name> = source.volumes.iter().map(|(kept, _)| &kept.attached.volume).collect();
        names.sort();
        let mut locks = Vec::new();
        for name in names {
            let home = self.home_of(spark, name);
            let refused = |state: String| Error::WrongState {
                action: "restore",
                kind: "data volume",
                name: name.to_string(),
                state,
                hint: "restore the root alone with `--data none`".into(),
            };
            let gone = || refused("gone, or not what it was".into());
            locks.push(self.pool.lock(&home, Mode::Exclusive)?.ok_or_else(gone)?);
            if !btrfs::is_subvolume(&VolumePaths(&home).fs()) {
                return Err(gone());
            }
            if opened.record.options.volumes.iter().all(|had| had.volume != *name) {
                return Err(refused(format!("not attached to `{spark}` any more")));
            }
            if self.is_shared(spark, name)? {
                let volume = VolumeId { project: spark.project.clone(), name: name.clone() };
                let others = self.users_of(&volume)?.into_iter().map(|user| user.spark);
                let other = others.into_iter().find(|other| *other != spark.name);
                let other = other.map_or_else(String::new, |other| format!(" to `{other}`"));
                return Err(refused(format!("attached{other} now, and would change under it")));
            }
        }
        Ok(locks)
    }

    /// The record of the snapshot that what is there now becomes.
    fn undo_record(&self, opened: &Opened, source: &Files) -> Result<SnapshotRecord> {
        let volumes = source.volumes.iter().map(|(kept, _)| {
            let fs = VolumePaths(&self.home_of(&opened.id, &kept.attached.volume)).fs();
            Ok(Kept { replaced: Some(btrfs::info(&fs)?.uuid), source: None, ..kept.clone() })
        });
        Ok(SnapshotRecord {
            replaced: Some(btrfs::info(&SparkPaths(&opened.dir).root())?.uuid),
            volumes: volumes.collect::<Result<_>>()?,
            ..SnapshotRecord::new(Kind::Undo)
        })
    }

    fn exchange(&self, opened: &Opened, stage: stage::Stage, record: &SnapshotRecord) -> Result<Name> {
        let (name, _lock) = self.publish_snapshot(opened, stage, record, None)?;
        let dir = self.snapshot_dir(&opened.id, &name);
        if let Err(first) = self.exchange_all(opened, &name, record) {
            if !is_leftover(&dir) {
                // It could not be put back either: what was there is in it, and the next command goes on from here.
                return Err(first);
            }
            return Err(match stage::destroy(&dir).and_then(|()| self.forget_intent(&opened.dir)) {
                Ok(()) => first,
                Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
            });
        }
        fault::point("restore.exchanged")?;
        self.finish(&opened.id, &name, record)?;
        fault::point("restore.read-only")?;
        Ok(name)
    }

    /// All of the exchanges or none.
    fn exchange_all(&self, opened: &Opened, undo: &Name, record: &SnapshotRecord) -> Result<()> {
        let pairs = self.pairs(&opened.id, undo, record);
        fault::point("restore.published")?;
        if pairs.len() > 1 {
            let intent = Intent { version: FORMAT, undo: undo.clone() };
            record::replace(&SparkPaths(&opened.dir).intent(), &intent)?;
        }
        for (n, (live, kept)) in pairs.iter().enumerate() {
            let step = match n {
                1 => fault::point("restore-data.after-root"),
                _ => Ok(()),
            };
            let exchanged =
                step.and_then(|()| sys::file::exchange(live, kept).map_err(Error::io("restore", live)));
            if let Err(first) = exchanged {
                // The root last: as long as it is exchanged, the restore has happened.
                let back = pairs[..n].iter().rev().try_for_each(|(live, kept)| {
                    sys::file::exchange(live, kept).map_err(Error::io("put back", live))
                });
                return Err(match back {
                    Ok(()) => first,
                    Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
                });
            }
        }
        Ok(())
    }

    /// What a restore exchanges, the root first: where it is, and where what it was is kept.
    fn pairs(&self, spark: &SparkId, undo: &Name, record: &SnapshotRecord) -> Vec<(PathBuf, PathBuf)> {
        let dir = self.snapshot_dir(spark, undo);
        let paths = SnapshotPaths(&dir);
        let mut pairs = vec![(SparkPaths(&self.dir(spark)).root(), paths.root())];
        for Kept { attached, .. } in held(record) {
            let fs = VolumePaths(&self.home_of(spark, &attached.volume)).fs();
            pairs.push((fs, paths.volume(&attached.volume)));
        }
        pairs
    }

    /// What follows the exchange of the root: that of the volumes that were not yet.
    fn finish(&self, spark: &SparkId, undo: &Name, record: &SnapshotRecord) -> Result<()> {
        let pairs = self.pairs(spark, undo, record);
        let replaced = std::iter::once(&record.replaced).chain(held(record).map(|kept| &kept.replaced));
        for ((live, kept), replaced) in pairs.iter().zip(replaced) {
            let is = |path| btrfs::info(path).is_ok_and(|now| Some(&now.uuid) == replaced.as_ref());
            if is(live) && !is(kept) {
                sys::file::exchange(live, kept).map_err(Error::io("restore", live))?;
            }
        }
        keep_exchanged(&pairs)?;
        if pairs.len() > 1 {
            fault::point("restore-data.finished")?;
        }
        self.forget_intent(&self.dir(spark))
    }

    fn forget_intent(&self, dir: &Path) -> Result<()> {
        let path = SparkPaths(dir).intent();
        match std::fs::remove_file(&path) {
            Ok(()) => sys::file::sync_dir(dir).map_err(Error::io("sync", dir)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("remove", path)(e)),
        }
    }

    /// Whether a restore that was killed is to be finished before the spark is used.
    pub(crate) fn is_unsettled(&self, spark: &SparkId) -> bool {
        SparkPaths(&self.dir(spark)).intent().exists()
    }

    /// What a killed restore left before it had exchanged anything.
    pub(crate) fn unfinished(&self, spark: &SparkId) -> Result<Vec<PathBuf>> {
        let names = names_in(&SparkPaths(&self.dir(spark)).snapshots())?;
        let dirs = names.iter().map(|name| self.snapshot_dir(spark, name));
        Ok(dirs.filter(|dir| is_leftover(dir)).collect())
    }

    /// Finishes what a killed restore left, or removes it. The caller holds the spark's exclusive lock.
    pub(crate) fn settle(&self, spark: &SparkId) -> Result<()> {
        let dir = self.dir(spark);
        if let Some(Intent { undo, .. }) = record::read(&SparkPaths(&dir).intent())? {
            let kept = self.snapshot_dir(spark, &undo);
            if !is_leftover(&kept)
                && let Some(record) = record::read(&SnapshotPaths(&kept).record())?
            {
                self.finish(spark, &undo, &record)?;
            }
        }
        settle_all(&dir)?;
        self.forget_intent(&dir)
    }
}

/// Makes exchanges of names durable, and then what was exchanged for the live one read-only, since it cannot be moved to
/// another directory from there on.
pub(crate) fn keep_exchanged(pairs: &[(PathBuf, PathBuf)]) -> Result<()> {
    for path in pairs.iter().flat_map(|(live, kept)| [live, kept]) {
        let dir = path.parent().unwrap_or(path);
        sys::file::sync_dir(dir).map_err(Error::io("sync", dir))?;
    }
    pairs.iter().try_for_each(|(_, kept)| btrfs::set_read_only(kept))
}
