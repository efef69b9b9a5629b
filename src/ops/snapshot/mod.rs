//! `snapshot`: read-only copies of a spark's root, made in an instant whatever the spark is doing.

mod restore;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::spark::{Opened, SparkId};
use super::{Sparks, data, near};
use crate::domain::name::{Name, SparkRef};
use crate::domain::place::{SnapshotPaths, SparkPaths};
use crate::domain::snapshot::{Kind, SnapshotRecord, timed_name};
use crate::domain::spark::{Id, Origin, Time};
use crate::domain::volume::Data;
use crate::error::{Error, Result};
use crate::pool::{btrfs, changes, names_in, record, stage};
use crate::sys::flock::{self, Mode};
use crate::{fault, sys};

pub(crate) use restore::{Files, keep_exchanged};
pub use restore::{Options, Restored};

/// A snapshot to make.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Called by its time if none.
    pub name: Option<Name>,
    pub label: Option<String>,
    /// What becomes of its data volumes: copied are those that no other spark has, unless told otherwise.
    pub data: Option<Data>,
    /// How many of those that are called by their time and have the same label to keep, this one included.
    pub keep: Option<u32>,
}

/// One snapshot. Of a broken one only the name is certain.
#[derive(Debug, Clone, serde::Serialize)]
pub struct SnapshotInfo {
    pub name: Name,
    pub id: Option<Id>,
    pub created: Option<Time>,
    pub kind: Option<Kind>,
    pub label: Option<String>,
    /// Bytes that only it holds, if they were asked for and can be told.
    pub own_bytes: Option<u64>,
    /// The root filesystem.
    pub path: PathBuf,
    /// Why nothing can be restored from it.
    pub broken: Option<String>,
}

impl Sparks {
    /// Takes a snapshot of a spark, which goes on with what it is doing. Returns the snapshot's name.
    ///
    /// # Errors
    /// `exists` if the name is taken.
    pub fn snapshot_create(&self, spark: &SparkRef, request: &Request) -> Result<Name> {
        let spark = self.resolve(spark)?;
        let opened = self.open_spark(&spark, Mode::Shared)?;
        let kind = if request.name.is_some() { Kind::Named } else { Kind::Timed };
        let volumes = self.fates(&opened, request.data)?;
        let record = SnapshotRecord { label: request.label.clone(), volumes, ..SnapshotRecord::new(kind) };
        if let Some(name) = &request.name
            && self.snapshot_dir(&opened.id, name).exists()
        {
            return Err(taken(&spark, name));
        }
        let name = self.take_snapshot(&opened, &record, request.name.as_ref())?;
        if let Some(keep) = request.keep {
            self.thin(&opened, &record, keep)?;
        }
        Ok(name)
    }

    /// Makes the snapshot of a record.
    pub(crate) fn take_snapshot(
        &self,
        opened: &Opened,
        record: &SnapshotRecord,
        name: Option<&Name>,
    ) -> Result<Name> {
        let stage = self.pool.stage()?;
        stage.write("snapshot.json", record)?;
        fault::point("snapshot.after-record")?;
        opened.refuse_damaged()?;
        let volumes: Vec<_> = data::held(record).map(|kept| kept.attached.clone()).collect();
        self.copy_at_once(opened, &volumes, stage.path())?;
        fault::point("snapshot.after-snapshot")?;
        let (name, _lock) = self.publish_snapshot(opened, stage, record, name)?;
        fault::point("snapshot.after-publish")?;
        Ok(name)
    }

    /// Gives what is staged its place and its name, durably.
    pub(crate) fn publish_snapshot(
        &self,
        opened: &Opened,
        stage: stage::Stage,
        record: &SnapshotRecord,
        name: Option<&Name>,
    ) -> Result<(Name, OwnedFd)> {
        publish(&opened.dir, stage, record, name)?.map_err(|name| taken(&opened.id, &name))
    }

    /// A spark's snapshots, oldest first. Takes no lock.
    pub fn snapshot_list(&self, spark: &SparkRef) -> Result<Vec<SnapshotInfo>> {
        let spark = self.resolve(spark)?;
        let mut all = self.snapshots_of(&spark)?;
        all.retain(|s| !is_leftover(&self.snapshot_dir(&spark, &s.name)));
        Ok(all)
    }

    /// The same, with what each of them holds alone: what the kernel tells by comparing neighbours.
    pub fn snapshot_sizes(&self, spark: &SparkRef) -> Result<Vec<SnapshotInfo>> {
        let mut all = self.snapshot_list(spark)?;
        let origin = self.origin_of(&self.resolve(spark)?);
        let roots: Vec<PathBuf> = all.iter().map(|s| s.path.clone()).collect();
        for (place, snapshot) in all.iter_mut().enumerate().filter(|(_, s)| s.broken.is_none()) {
            let before = place.checked_sub(1).map(|before| &roots[before]);
            let Some(relative) = before.or(roots.get(place + 1)).or(origin.as_ref()) else { continue };
            // Deleted meanwhile, or compared with what is damaged: nothing that a list should fail on.
            snapshot.own_bytes = changes::own_bytes(&snapshot.path, relative)
                .inspect_err(|e| tracing::debug!("cannot tell the size of {}: {e}", snapshot.name))
                .ok();
        }
        Ok(all)
    }

    /// The root that a spark was made from, if it is there and does not change.
    fn origin_of(&self, spark: &SparkId) -> Option<PathBuf> {
        match self.record(spark).ok()?.origin {
            Origin::Base { name, id } => {
                let (_, base, root) = self.find_base(Some(&name)).ok()?;
                (base.id == id).then_some(root)
            }
            Origin::Received { .. } => None,
            Origin::Spark { id, snapshot, .. } => {
                let found = self.pool.find_container(id.as_str()).ok()??;
                let spark = SparkId { project: found.project, name: found.name };
                self.snapshot_root(&spark, &snapshot?).ok()
            }
        }
    }

    fn snapshots_of(&self, spark: &SparkId) -> Result<Vec<SnapshotInfo>> {
        all_of(&self.dir(spark))
    }

    /// Deletes a snapshot at once. What was forked from it stays: btrfs needs the origin no longer.
    pub fn snapshot_delete(&self, spark: &SparkRef, snapshot: &Name) -> Result<()> {
        let spark = self.resolve(spark)?;
        // A restore that was killed may have left in it what is still to be restored.
        let _lock = self.lock_spark(&spark, Mode::Shared)?;
        self.remove_snapshot(&spark, snapshot)
    }

    pub(crate) fn remove_snapshot(&self, spark: &SparkId, snapshot: &Name) -> Result<()> {
        match self.remove(&self.snapshot_dir(spark, snapshot))? {
            true => Ok(()),
            false => Err(self.no_such_snapshot(spark, snapshot)),
        }
    }

    /// Removes a snapshot's directory. False if it is not there.
    pub(crate) fn remove(&self, dir: &Path) -> Result<bool> {
        let Some(_lock) = self.pool.lock(dir, Mode::Exclusive)? else { return Ok(false) };
        self.remove_locked(dir).map(|()| true)
    }

    fn remove_locked(&self, dir: &Path) -> Result<()> {
        fault::point("snapshot-delete.before-rename")?;
        self.pool.remove(dir, || fault::point("snapshot-delete.after-rename"))
    }

    /// Deletes the oldest of a spark's snapshots that are like this one, and keeps `keep`.
    fn thin(&self, opened: &Opened, like: &SnapshotRecord, keep: u32) -> Result<()> {
        let mut alike = self.snapshots_of(&opened.id)?;
        alike.retain(|s| s.kind == Some(like.kind) && s.label == like.label && s.broken.is_none());
        let many = alike.len().saturating_sub(keep as usize);
        for old in &alike[..many] {
            let dir = self.snapshot_dir(&opened.id, &old.name);
            match flock::try_lock_dir(&dir) {
                Ok(Some(_lock)) => self.remove_locked(&dir)?,
                // Somebody sends it or copies from it. Waiting for that would keep the spark locked as long: the next
                // snapshot thins it out.
                Ok(None) => {}
                // Somebody else has thinned it out.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("lock", dir)(e)),
            }
        }
        Ok(())
    }

    /// The root of a snapshot: a read-only subvolume.
    ///
    /// # Errors
    /// `not_found` with names that look alike; `corrupt` if its files are damaged.
    pub(crate) fn snapshot_root(&self, spark: &SparkId, snapshot: &Name) -> Result<PathBuf> {
        self.snapshot_record(spark, snapshot)
            .map(|_| SnapshotPaths(&self.snapshot_dir(spark, snapshot)).root())
    }

    pub(crate) fn snapshot_record(&self, spark: &SparkId, snapshot: &Name) -> Result<SnapshotRecord> {
        let dir = self.snapshot_dir(spark, snapshot);
        if !dir.is_dir() || is_leftover(&dir) {
            return Err(self.no_such_snapshot(spark, snapshot));
        }
        inspect(&dir).map_err(|e| match e {
            Error::Corrupt { path, why, hint: None } => Error::Corrupt {
                path,
                why,
                hint: Some(format!("remove it with `spark snapshot delete {spark} {snapshot}`")),
            },
            e => e,
        })
    }

    pub(crate) fn snapshot_dir(&self, spark: &SparkId, snapshot: &Name) -> PathBuf {
        SparkPaths(&self.dir(spark)).snapshot(snapshot)
    }

    pub(crate) fn no_such_snapshot(&self, spark: &SparkId, snapshot: &Name) -> Error {
        let names = names_in(&SparkPaths(&self.dir(spark)).snapshots()).unwrap_or_default();
        Error::NotFound {
            kind: "snapshot",
            name: format!("{spark}@{snapshot}"),
            in_project: Some(spark.project.to_string()),
            near: near(snapshot.as_str(), names.iter().map(Name::as_str)),
        }
    }
}

/// Gives a staged snapshot its place and its name below what it is of, durably. The name, where that is taken.
pub(crate) fn publish(
    of: &Path,
    mut stage: stage::Stage,
    record: &SnapshotRecord,
    name: Option<&Name>,
) -> Result<std::result::Result<(Name, OwnedFd), Name>> {
    let dir = SparkPaths(of).snapshots();
    match std::fs::create_dir(&dir) {
        Ok(()) => sys::file::sync_dir(of).map_err(Error::io("sync", of))?,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(Error::io("create", dir)(e)),
    }
    let prefix = match record.kind {
        Kind::Undo => "undo-",
        Kind::Sent => "sent-",
        Kind::Named | Kind::Timed | Kind::Received => "",
    };
    let mut number = 0;
    loop {
        let free = name.cloned().unwrap_or_else(|| timed_name(prefix, record.created, number));
        match stage.try_publish(&dir.join(&free))? {
            Ok(lock) => {
                sys::file::sync_dir(&dir).map_err(Error::io("sync", &dir))?;
                return Ok(Ok((free, lock)));
            }
            Err(_) if name.is_some() => return Ok(Err(free)),
            Err(back) => stage = back,
        }
        number += 1;
    }
}

/// The snapshots of what is in a directory, oldest first, also what a killed restore left.
pub(crate) fn all_of(dir: &Path) -> Result<Vec<SnapshotInfo>> {
    let names = names_in(&SparkPaths(dir).snapshots())?;
    let mut all: Vec<SnapshotInfo> =
        names.into_iter().map(|name| describe(&SparkPaths(dir).snapshot(&name), name)).collect();
    all.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    Ok(all)
}

/// Removes what killed restores left over, and makes read-only what they kept. What it is of is locked exclusively.
pub(crate) fn settle_all(of: &Path) -> Result<()> {
    for name in names_in(&SparkPaths(of).snapshots())? {
        let dir = SparkPaths(of).snapshot(&name);
        if is_leftover(&dir) {
            stage::destroy(&dir)?;
            continue;
        }
        let paths = SnapshotPaths(&dir);
        let volumes = names_in(&paths.data())?.into_iter().map(|volume| paths.volume(&volume));
        for kept in volumes.chain([paths.root()]) {
            if btrfs::info(&kept).is_ok_and(|now| !now.read_only) {
                btrfs::set_read_only(&kept)?;
            }
        }
    }
    Ok(())
}

pub(crate) fn taken(spark: &SparkId, name: &Name) -> Error {
    Error::Exists {
        kind: "snapshot",
        name: format!("{spark}@{name}"),
        in_project: Some(spark.project.to_string()),
    }
}

/// A snapshot's record, if its root is as it should be too.
fn inspect(dir: &Path) -> Result<SnapshotRecord> {
    let paths = SnapshotPaths(dir);
    let (path, root) = (paths.record(), paths.root());
    let record = record::read(&path)?.ok_or_else(|| Error::corrupt(&path, "it is missing"))?;
    match super::spark::damage_of(&root) {
        None => Ok(record),
        Some(why) => Err(Error::corrupt(&root, why)),
    }
}

fn describe(dir: &Path, name: Name) -> SnapshotInfo {
    let path = SnapshotPaths(dir).root();
    match inspect(dir) {
        Ok(r) => SnapshotInfo {
            name,
            id: Some(r.id),
            created: Some(r.created),
            kind: Some(r.kind),
            label: r.label,
            own_bytes: None,
            path,
            broken: None,
        },
        Err(e) => SnapshotInfo {
            name,
            id: None,
            created: None,
            kind: None,
            label: None,
            own_bytes: None,
            path,
            broken: Some(e.to_string()),
        },
    }
}

/// Whether this is what a restore was killed over before it had exchanged anything: no snapshot, and nobody's data.
pub(crate) fn is_leftover(dir: &Path) -> bool {
    let paths = SnapshotPaths(dir);
    match record::read::<SnapshotRecord>(&paths.record()) {
        Ok(Some(SnapshotRecord { kind: Kind::Undo, replaced: Some(replaced), undone: false, .. })) => {
            btrfs::info(&paths.root()).is_ok_and(|now| !now.read_only && now.uuid != replaced)
        }
        _ => false,
    }
}
