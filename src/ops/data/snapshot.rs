//! `data snapshot` and `data restore`: states of a volume, apart from those of sparks.

use std::os::fd::OwnedFd;

use super::super::Sparks;
use super::super::snapshot::{self, SnapshotInfo, all_of, is_leftover, settle_all};
use super::super::spark::SparkId;
use super::VolumeId;
use crate::domain::name::{Name, SparkRef};
use crate::domain::place::{SnapshotPaths, VolumePaths};
use crate::domain::snapshot::{Kind, SnapshotRecord};
use crate::domain::spark::State;
use crate::error::{Error, Result};
use crate::pool::{btrfs, stage};
use crate::sys::flock::Mode;
use crate::{fault, sys};

impl Sparks {
    /// Takes a snapshot of a volume, whoever writes to it meanwhile. It is called by its time if no name is given. Returns
    /// the name.
    ///
    /// # Errors
    /// `exists` if the name is taken.
    pub fn data_snapshot(&self, volume: &SparkRef, name: Option<&Name>) -> Result<Name> {
        let volume = self.resolve_volume(volume)?;
        let _lock = self.lock_settled(&volume, Mode::Shared)?;
        let dir = self.volume_dir(&volume);
        let record = SnapshotRecord::new(if name.is_some() { Kind::Named } else { Kind::Timed });
        let stage = self.pool.stage()?;
        stage.write("snapshot.json", &record)?;
        btrfs::snapshot_read_only(&VolumePaths(&dir).fs(), &SnapshotPaths(stage.path()).root())?;
        fault::point("data-snapshot.staged")?;
        let published = snapshot::publish(&dir, stage, &record, name)?;
        let (name, _lock) = published.map_err(|name| Error::Exists {
            kind: "snapshot",
            name: format!("{volume}@{name}"),
            in_project: Some(volume.project.to_string()),
        })?;
        fault::point("data-snapshot.published")?;
        Ok(name)
    }

    /// A volume's snapshots, oldest first.
    pub fn data_snapshots(&self, volume: &SparkRef) -> Result<Vec<SnapshotInfo>> {
        let volume = self.resolve_volume(volume)?;
        let dir = self.volume_dir(&volume);
        let mut all = all_of(&dir)?;
        all.retain(|s| !is_leftover(&VolumePaths(&dir).snapshot(&s.name)));
        Ok(all)
    }

    /// Deletes a snapshot of a volume.
    pub fn data_snapshot_delete(&self, volume: &SparkRef, snapshot: &Name) -> Result<()> {
        let volume = self.resolve_volume(volume)?;
        match self.remove(&VolumePaths(&self.volume_dir(&volume)).snapshot(snapshot))? {
            true => Ok(()),
            false => Err(no_such_snapshot(&volume, snapshot)),
        }
    }

    /// Puts a volume's files back to what a snapshot holds. Returns the name of a snapshot of what they were.
    ///
    /// # Errors
    /// `wrong_state` while a spark that has it runs: that would go on with the files it had.
    pub fn data_restore(&self, volume: &SparkRef, snapshot: &Name) -> Result<Name> {
        let volume = self.resolve_volume(volume)?;
        let _lock = self.lock_settled(&volume, Mode::Exclusive)?;
        let dir = self.volume_dir(&volume);
        settle_all(&dir)?;
        self.refuse_used(&volume)?;
        let source = VolumePaths(&dir).snapshot(snapshot);
        if !source.is_dir() {
            return Err(no_such_snapshot(&volume, snapshot));
        }
        let fs = VolumePaths(&dir).fs();
        let replaced = Some(btrfs::info(&fs)?.uuid);
        let record = SnapshotRecord { replaced, ..SnapshotRecord::new(Kind::Undo) };
        let stage = self.pool.stage()?;
        stage.write("snapshot.json", &record)?;
        btrfs::snapshot(&SnapshotPaths(&source).root(), &SnapshotPaths(stage.path()).root())?;
        let (name, _snapshot) = snapshot::publish(&dir, stage, &record, None)?
            .map_err(|name| no_such_snapshot(&volume, &name))?;
        let undo = VolumePaths(&dir).snapshot(&name);
        let old = SnapshotPaths(&undo).root();
        let exchanged = fault::point("data-restore.published")
            .and_then(|()| sys::file::exchange(&fs, &old).map_err(Error::io("restore", &fs)));
        if let Err(first) = exchanged {
            return Err(match stage::destroy(&undo) {
                Ok(()) => first,
                Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
            });
        }
        fault::point("data-restore.exchanged")?;
        snapshot::keep_exchanged(&[(fs, old)])?;
        Ok(name)
    }

    fn refuse_used(&self, volume: &VolumeId) -> Result<()> {
        for user in self.users_of(volume)? {
            let spark = SparkId { project: volume.project.clone(), name: user.spark };
            if self.record(&spark).is_ok_and(|record| self.state(&record) != State::Stopped) {
                return Err(Error::WrongState {
                    action: "restore",
                    kind: "data volume",
                    name: volume.to_string(),
                    state: format!("in use by `{spark}`, which runs"),
                    hint: format!("stop it first with `spark stop {spark}`"),
                });
            }
        }
        Ok(())
    }

    /// Locks a volume that no killed restore of a spark is about to exchange.
    fn lock_settled(&self, volume: &VolumeId, mode: Mode) -> Result<OwnedFd> {
        loop {
            let lock = self.pool.lock(&self.volume_dir(volume), mode)?;
            let lock = lock.ok_or_else(|| self.no_such_volume(volume))?;
            let unsettled = self.unsettled_users(&volume.project, &[&volume.name])?;
            if unsettled.is_empty() {
                return Ok(lock);
            }
            // A spark's lock comes first.
            drop(lock);
            for spark in unsettled {
                self.open_spark(&spark, Mode::Exclusive)?;
            }
        }
    }
}

fn no_such_snapshot(volume: &VolumeId, snapshot: &Name) -> Error {
    Error::NotFound {
        kind: "volume snapshot",
        name: format!("{volume}@{snapshot}"),
        in_project: Some(volume.project.to_string()),
        near: Vec::new(),
    }
}
