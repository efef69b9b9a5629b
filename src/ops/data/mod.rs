//! `data`: volumes, which outlive the sparks that they are attached to.
//!
//! Who has a volume stands in the sparks' records and nowhere else. A volume's directory is locked shared by whoever is
//! about to write its name into a record or to mount it, and exclusively to delete it or to exchange its files; a
//! spark's lock is taken first.

mod attach;
mod copies;
mod snapshot;

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::snapshot::all_of;
use super::spark::SparkId;
use super::{Observer, Sparks, near};
use crate::domain::FORMAT;
use crate::domain::name::{Name, SparkRef};
use crate::domain::place::VolumePaths;
use crate::domain::spark::{Id, Time};
use crate::domain::volume::{Attached, VolumeRecord};
use crate::error::{Error, Result};
use crate::pool::{btrfs, names_in, record};
use crate::sys::flock::Mode;
use crate::{fault, sys};

pub use attach::Effect;
pub(crate) use copies::{Copied, held, not_copied};

/// A data volume, by project and name.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct VolumeId {
    pub project: Name,
    pub name: Name,
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// One data volume.
#[derive(Debug, Clone, serde::Serialize)]
pub struct VolumeInfo {
    pub project: Name,
    pub name: Name,
    /// None if it is broken.
    pub id: Option<Id>,
    pub created: Option<Time>,
    /// The volume that it was copied from.
    pub origin: Option<Name>,
    /// The sparks that have it, and where.
    pub attached: Vec<User>,
    /// How many snapshots of its own it has.
    pub snapshots: usize,
    /// Its files, in the pool.
    pub path: PathBuf,
    /// What is wrong with it.
    pub broken: Option<String>,
}

/// A spark that has a volume.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct User {
    pub spark: Name,
    pub path: PathBuf,
    pub ro: bool,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.spark, self.path.display(), if self.ro { ":ro" } else { "" })
    }
}

/// Locks of volumes. As long as they are held, the volumes stay where they are.
#[derive(Debug, Default)]
pub(crate) struct Held(Vec<OwnedFd>);

impl Held {
    pub(crate) fn locks(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }
}

impl Sparks {
    /// Makes an empty volume.
    ///
    /// # Errors
    /// `exists` if the name is taken.
    pub fn data_create(&self, volume: &SparkRef) -> Result<VolumeId> {
        let project = self.ensure_project_of(volume)?;
        let volume = VolumeId { project, name: volume.name.clone() };
        self.make_volume(&volume)?;
        Ok(volume)
    }

    fn make_volume(&self, volume: &VolumeId) -> Result<()> {
        let dir = self.volume_dir(volume);
        let taken = || Error::Exists {
            kind: "data volume",
            name: volume.to_string(),
            in_project: Some(volume.project.to_string()),
        };
        if dir.exists() {
            return Err(taken());
        }
        let stage = self.pool.stage()?;
        stage.write("volume.json", &new_record(None))?;
        fault::point("data-create.after-record")?;
        btrfs::create(&VolumePaths(stage.path()).fs())?;
        fault::point("data-create.after-subvolume")?;
        let _project = self.hold_project(&volume.project)?;
        if stage.try_publish(&dir)?.is_err() {
            return Err(taken());
        }
        let all = self.pool.paths.volumes(&volume.project);
        sys::file::sync_dir(&all).map_err(Error::io("sync", &all))?;
        fault::point("data-create.after-publish")
    }

    /// Makes those of the volumes that are not there, as `-v` does.
    pub(crate) fn ensure_volumes(
        &self,
        project: &Name,
        volumes: &[Attached],
        observer: &dyn Observer,
    ) -> Result<()> {
        for Attached { volume, .. } in volumes {
            let volume = VolumeId { project: project.clone(), name: volume.clone() };
            match self.make_volume(&volume) {
                Ok(()) => observer.notice(&format!("made data volume `{volume}`")),
                Err(Error::Exists { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The volumes of this project, by name.
    pub fn data_list(&self) -> Result<Vec<VolumeInfo>> {
        let project = self.project()?;
        let mut users = self.users(&project)?;
        let names = names_in(&self.pool.paths.volumes(&project))?;
        let describe = |name: Name| {
            let attached = users.remove(&name).unwrap_or_default();
            self.describe_volume(VolumeId { project: project.clone(), name }, attached)
        };
        Ok(names.into_iter().map(describe).collect())
    }

    /// One volume.
    pub fn data_info(&self, volume: &SparkRef) -> Result<VolumeInfo> {
        let volume = self.resolve_volume(volume)?;
        let attached = self.users_of(&volume)?;
        Ok(self.describe_volume(volume, attached))
    }

    fn describe_volume(&self, volume: VolumeId, attached: Vec<User>) -> VolumeInfo {
        let dir = self.volume_dir(&volume);
        let paths = VolumePaths(&dir);
        let record = record::read::<VolumeRecord>(&paths.record())
            .and_then(|found| found.ok_or_else(|| Error::corrupt(&paths.record(), "it is missing")));
        let broken = match &record {
            Err(e) => Some(e.to_string()),
            Ok(_) if !btrfs::is_subvolume(&paths.fs()) => Some("its files are missing".to_owned()),
            Ok(_) => None,
        };
        let record = record.ok();
        VolumeInfo {
            project: volume.project,
            name: volume.name,
            id: record.as_ref().map(|r| r.id.clone()),
            created: record.as_ref().map(|r| r.created),
            origin: record.and_then(|r| r.origin),
            attached,
            snapshots: all_of(&dir).map_or(0, |all| all.len()),
            path: paths.fs(),
            broken,
        }
    }

    /// Deletes a volume and its snapshots, for good.
    ///
    /// # Errors
    /// `wrong_state` while a spark has it, running or not.
    pub fn data_delete(&self, volume: &SparkRef) -> Result<()> {
        let volume = self.resolve_volume(volume)?;
        let dir = self.volume_dir(&volume);
        let Some(_lock) = self.pool.lock(&dir, Mode::Exclusive)? else {
            return Err(self.no_such_volume(&volume));
        };
        let users = self.users_of(&volume)?;
        if let Some(first) = users.first() {
            let names: Vec<String> = users.iter().map(|user| format!("`{}`", user.spark)).collect();
            return Err(Error::WrongState {
                action: "delete",
                kind: "data volume",
                name: volume.to_string(),
                state: format!("attached to {}", names.join(", ")),
                hint: format!("detach it first with `spark data detach {volume} {}`", first.spark),
            });
        }
        self.destroy_volume(&volume)
    }

    /// Frees a volume at once. The caller holds its exclusive lock.
    fn destroy_volume(&self, volume: &VolumeId) -> Result<()> {
        let dir = self.volume_dir(volume);
        fault::point("data-delete.before-rename")?;
        self.pool.remove(&dir, || fault::point("data-delete.after-rename"))
    }

    /// The volume that a reference means.
    ///
    /// # Errors
    /// `not_found`, with names that look alike.
    pub(crate) fn resolve_volume(&self, volume: &SparkRef) -> Result<VolumeId> {
        let volume = VolumeId { project: self.project_of(volume)?, name: volume.name.clone() };
        if self.volume_dir(&volume).is_dir() { Ok(volume) } else { Err(self.no_such_volume(&volume)) }
    }

    pub(crate) fn volume_dir(&self, volume: &VolumeId) -> PathBuf {
        self.pool.paths.volume(&volume.project, &volume.name)
    }

    pub(crate) fn no_such_volume(&self, volume: &VolumeId) -> Error {
        let names = names_in(&self.pool.paths.volumes(&volume.project)).unwrap_or_default();
        Error::NotFound {
            kind: "data volume",
            name: volume.to_string(),
            in_project: Some(volume.project.to_string()),
            near: near(volume.name.as_str(), names.iter().map(Name::as_str)),
        }
    }

    /// The sparks that have a volume. A spark whose record is damaged tells nothing, and those in the trash do not count.
    pub(crate) fn users_of(&self, volume: &VolumeId) -> Result<Vec<User>> {
        Ok(self.users(&volume.project)?.remove(&volume.name).unwrap_or_default())
    }

    fn users(&self, project: &Name) -> Result<BTreeMap<Name, Vec<User>>> {
        let mut users: BTreeMap<Name, Vec<User>> = BTreeMap::new();
        for spark in self.sparks_of(project)? {
            let Ok(record) = self.record(&spark) else { continue };
            for Attached { volume, path, ro } in record.options.volumes {
                if self.has_own(&spark, &volume) {
                    continue;
                }
                users.entry(volume).or_default().push(User { spark: spark.name.clone(), path, ro });
            }
        }
        Ok(users)
    }

    /// Where a spark's volumes are, to be mounted.
    ///
    /// # Errors
    /// `wrong_state` if one is gone, saying how to do without.
    pub(crate) fn volumes_of(
        &self,
        spark: &SparkId,
        volumes: &[Attached],
    ) -> Result<Vec<(PathBuf, Attached)>> {
        let found = volumes.iter().map(|attached| {
            let volume = VolumeId { project: spark.project.clone(), name: attached.volume.clone() };
            let fs = VolumePaths(&self.home_of(spark, &volume.name)).fs();
            if btrfs::is_subvolume(&fs) { Ok((fs, attached.clone())) } else { Err(lost(spark, &volume)) }
        });
        found.collect()
    }

    /// Where the volumes of a spark that is not made yet would be.
    pub(crate) fn planned_volumes(&self, project: &Name, volumes: &[Attached]) -> Vec<(PathBuf, Attached)> {
        let fs = |volume| VolumePaths(&self.pool.paths.volume(project, volume)).fs();
        volumes.iter().map(|attached| (fs(&attached.volume), attached.clone())).collect()
    }

    /// Keeps a spark's volumes from being deleted, and their files from being exchanged.
    pub(crate) fn hold_volumes(&self, spark: &SparkId, volumes: &[Attached]) -> Result<Held> {
        loop {
            let held = self.lock_volumes(spark, volumes)?;
            let names: Vec<&Name> = volumes.iter().map(|attached| &attached.volume).collect();
            let mut unsettled = self.unsettled_users(&spark.project, &names)?;
            unsettled.retain(|other| other != spark);
            if unsettled.is_empty() {
                return Ok(held);
            }
            drop(held);
            for other in unsettled {
                self.open_spark(&other, Mode::Exclusive)?;
            }
        }
    }

    /// The sparks that have one of the volumes and whose restore was killed: it is not what it is going to be.
    fn unsettled_users(&self, project: &Name, volumes: &[&Name]) -> Result<Vec<SparkId>> {
        if volumes.is_empty() {
            return Ok(Vec::new());
        }
        let mut unsettled = self.sparks_of(project)?;
        // There is hardly ever one, and to ask costs less than to read what it has.
        unsettled.retain(|spark| self.is_unsettled(spark));
        if unsettled.is_empty() {
            return Ok(unsettled);
        }
        let users = self.users(project)?;
        let used = volumes.iter().filter_map(|volume| users.get(*volume)).flatten();
        let used: Vec<&Name> = used.map(|user| &user.spark).collect();
        unsettled.retain(|spark| used.contains(&&spark.name));
        Ok(unsettled)
    }

    fn lock_volumes(&self, spark: &SparkId, volumes: &[Attached]) -> Result<Held> {
        // In one order, which is that of a restore too: nobody holds one of two and waits for the other.
        let mut names: Vec<&Name> = volumes.iter().map(|attached| &attached.volume).collect();
        names.sort();
        let locks = names.into_iter().map(|name| {
            let volume = VolumeId { project: spark.project.clone(), name: name.clone() };
            let lock = self.pool.lock(&self.home_of(spark, &volume.name), Mode::Shared)?;
            lock.ok_or_else(|| lost(spark, &volume))
        });
        locks.collect::<Result<_>>().map(Held)
    }
}

fn new_record(origin: Option<Name>) -> VolumeRecord {
    VolumeRecord {
        version: FORMAT,
        id: Id::generate(),
        created: chrono::Utc::now(),
        origin,
        rest: Default::default(),
    }
}

/// A spark whose volume is gone does not start: it would write into its root what belongs to the volume.
fn lost(spark: &SparkId, volume: &VolumeId) -> Error {
    Error::WrongState {
        action: "start",
        kind: "spark",
        name: spark.to_string(),
        state: format!("attached to data volume `{volume}`, which is gone"),
        hint: format!("detach it with `spark data detach {volume} {spark}`"),
    }
}
