//! What becomes of a spark's volumes in a snapshot or a fork of it, and the copies, taken at one instant with its root.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::super::origin::Found;
use super::super::spark::{Opened, SparkId};
use super::super::{Observer, Sparks};
use super::{VolumeId, new_record};
use crate::domain::name::{MAX, Name};
use crate::domain::options::Changes;
use crate::domain::place::{SnapshotPaths, SparkPaths, VolumePaths};
use crate::domain::snapshot::{Kept, SnapshotRecord};
use crate::domain::spark::{Origin, SparkRecord};
use crate::domain::volume::{Attached, Data, VolumeRecord};
use crate::error::{Error, Result};
use crate::pool::{btrfs, names_in, record, stage};
use crate::sys::flock::Mode;
use crate::{fault, sys};

/// A volume that a new spark gets a copy of.
#[derive(Debug)]
pub(crate) struct Copied {
    /// As its source has it.
    pub(crate) attached: Attached,
    /// The subvolume to copy.
    pub(crate) source: PathBuf,
}

impl Sparks {
    /// What becomes of a spark's volumes: copied are those that nobody else has, unless told otherwise.
    pub(crate) fn fates(&self, opened: &Opened, wanted: Option<Data>) -> Result<Vec<Kept>> {
        let fate = |attached: &Attached| {
            let data = match wanted {
                Some(data) => data,
                None if self.is_shared(&opened.id, &attached.volume)? => Data::Share,
                None => Data::Copy,
            };
            Ok(Kept { attached: attached.clone(), data, replaced: None, source: None })
        };
        opened.record.options.volumes.iter().map(fate).collect()
    }

    /// Whether another spark has a volume that this one has.
    pub(crate) fn is_shared(&self, spark: &SparkId, volume: &Name) -> Result<bool> {
        let users = self.users_of(&VolumeId { project: spark.project.clone(), name: volume.clone() })?;
        Ok(!self.has_own(spark, volume) && users.iter().any(|user| user.spark != spark.name))
    }

    /// Copies a spark's root and volumes into a directory, as a snapshot holds them. The spark stands still meanwhile.
    pub(crate) fn copy_at_once(&self, opened: &Opened, volumes: &[Attached], to: &Path) -> Result<()> {
        let (root, to) = (SparkPaths(&opened.dir).root(), SnapshotPaths(to));
        let _held = self.hold_volumes(&opened.id, volumes)?;
        let found = self.volumes_of(&opened.id, volumes)?;
        if !found.is_empty() {
            make_dir(&to.data())?;
        }
        let still = self.hold_still(Some(&opened.record.id))?;
        btrfs::snapshot_read_only(&root, &to.root())?;
        for (fs, attached) in found {
            fault::point("copies.between")?;
            btrfs::snapshot_read_only(&fs, &to.volume(&attached.volume))?;
        }
        drop(still);
        Ok(())
    }

    /// Decides which volumes of its source a new spark shares, and which it gets copies of. If those are to be taken of a
    /// spark as it is now, they are, with its root: in the returned directory, which is needed until the new spark is made.
    pub(crate) fn divide(
        &self,
        found: &mut Found,
        project: &Name,
        changes: &Changes,
    ) -> Result<Option<stage::Stage>> {
        let Some(opened) = &found.opened else {
            return match changes.data {
                None => Ok(None),
                Some(_) => Err(Error::usage("`--data` has no meaning here: a base has no data volumes")),
            };
        };
        let (kept, snapshot) = match &found.origin {
            Origin::Spark { snapshot: Some(name), .. } => {
                (self.snapshot_record(&opened.id, name)?.volumes, Some(self.snapshot_dir(&opened.id, name)))
            }
            _ => (self.fates(opened, None)?, None),
        };
        let replaced = |had: &Attached| {
            changes.volumes.iter().any(|new| new.replaces(had))
                || changes.mounts.iter().any(|new| new.dst == had.path)
        };
        found.options.volumes.clear();
        for Kept { attached, data, .. } in kept.into_iter().filter(|k| !replaced(&k.attached)) {
            let away = opened.id.project != *project || self.has_own(&opened.id, &attached.volume);
            let held = snapshot.is_none() || data == Data::Copy;
            let default = if away && data == Data::Share { Data::Copy } else { data };
            let source = match &snapshot {
                Some(dir) => SnapshotPaths(dir).volume(&attached.volume),
                None => VolumePaths(&self.home_of(&opened.id, &attached.volume)).fs(),
            };
            match changes.data.unwrap_or(default) {
                Data::None => {}
                Data::Share if away => return Err(cannot(&attached, "be shared with it", "copy")),
                Data::Share => found.options.volumes.push(attached),
                Data::Copy if !held => {
                    return Err(cannot(&attached, "be copied: the snapshot has none", "none"));
                }
                Data::Copy => found.copies.push(Copied { attached, source }),
            }
        }
        if found.copies.is_empty() || snapshot.is_some() {
            return Ok(None);
        }
        opened.refuse_damaged()?;
        let moment = self.pool.stage()?;
        let volumes: Vec<Attached> = found.copies.iter().map(|c| c.attached.clone()).collect();
        self.copy_at_once(opened, &volumes, moment.path())?;
        let at = SnapshotPaths(moment.path());
        found.root = at.root();
        for copy in &mut found.copies {
            copy.source = at.volume(&copy.attached.volume);
        }
        (found.opened, found.at_work) = (None, None);
        Ok(Some(moment))
    }

    /// Gives the copies names, in the record of the spark that gets them: `VOLUME-SPARK`. One that ends with its command
    /// keeps them to itself.
    pub(crate) fn name_copies(&self, spark: &SparkId, record: &mut SparkRecord, found: &Found) -> Result<()> {
        for Copied { attached, .. } in &found.copies {
            let taken = |name: &Name| {
                *name == attached.volume || record.options.volumes.iter().any(|other| other.volume == *name)
            };
            let volume = match record.ephemeral {
                true => attached.volume.clone(),
                false => self.free_name(spark, &attached.volume, taken)?,
            };
            record.options.volumes.push(Attached { volume, ..attached.clone() });
        }
        Ok(())
    }

    /// A name that no volume of the spark's project has: the wanted one, or `VOLUME-SPARK`.
    pub(crate) fn free_name(
        &self,
        spark: &SparkId,
        wanted: &Name,
        taken: impl Fn(&Name) -> bool,
    ) -> Result<Name> {
        let mut name = wanted.clone();
        let mut number = 1;
        while taken(&name) || self.pool.paths.volume(&spark.project, &name).exists() {
            name = copy_name(wanted, &spark.name, number)?;
            number += 1;
        }
        Ok(name)
    }

    /// Makes the copies of a spark's record below a directory that is going to be the spark's.
    pub(crate) fn stage_copies(
        &self,
        record: &SparkRecord,
        copies: &[Copied],
        stage: &stage::Stage,
    ) -> Result<()> {
        let data = SparkPaths(stage.path()).data();
        for Copied { attached, source } in copies {
            let Some(new) = record.options.volumes.iter().find(|v| v.path == attached.path) else { continue };
            let dir = data.join(&new.volume);
            make_dir(&dir)?;
            let record = new_record(Some(attached.volume.clone()));
            stage.write(&format!("data/{}/volume.json", new.volume), &record)?;
            btrfs::snapshot(source, &VolumePaths(&dir).fs())?;
        }
        Ok(())
    }

    /// Makes what was copied for a spark volumes like any other. The caller holds the spark's exclusive lock.
    pub(crate) fn publish_copies(&self, spark: &SparkId, record: &SparkRecord) -> Result<()> {
        let dir = self.dir(spark);
        let data = SparkPaths(&dir).data();
        if record.ephemeral || !data.exists() {
            return Ok(());
        }
        let mut moved: Vec<(PathBuf, PathBuf)> = Vec::new();
        let published = names_in(&data)?.into_iter().try_for_each(|name| {
            let (from, to) = (data.join(&name), self.pool.paths.volume(&spark.project, &name));
            fault::point("fork-data.before-rename")?;
            sys::file::rename_new(&from, &to).map_err(Error::io("make data volume", &to))?;
            moved.push((from, to));
            fault::point("fork-data.renamed")
        });
        if let Err(first) = published {
            let mut back = moved.iter().rev();
            return Err(match back.try_for_each(|(from, to)| sys::file::rename_new(to, from)) {
                Ok(()) => first,
                Err(e) => Error::Undo { first: first.into(), undo: Error::io("take back", data)(e).into() },
            });
        }
        for dir in [self.pool.paths.volumes(&spark.project), data.clone()] {
            sys::file::sync_dir(&dir).map_err(Error::io("sync", &dir))?;
        }
        std::fs::remove_dir(&data).map_err(Error::io("remove", &data))
    }

    /// Of the copies in a spark's record those that have become volumes like any other.
    pub(crate) fn published(
        &self,
        spark: &SparkId,
        record: &SparkRecord,
        copies: &[Copied],
    ) -> Vec<VolumeId> {
        let there_before = not_copied(record, copies);
        let volumes = record.options.volumes.iter().filter(|v| !there_before.contains(v));
        let volumes = volumes.map(|v| &v.volume).filter(|name| !self.has_own(spark, name));
        volumes.map(|name| VolumeId { project: spark.project.clone(), name: name.clone() }).collect()
    }

    /// Removes copies that were made for a spark which in the end was not.
    pub(crate) fn take_back_copies(&self, published: &[VolumeId]) -> Result<()> {
        for volume in published {
            let lock = self.pool.lock(&self.volume_dir(volume), Mode::Exclusive)?;
            if lock.is_some() && self.users_of(volume)?.is_empty() {
                self.destroy_volume(volume)?;
            }
        }
        Ok(())
    }

    /// Of a fork's volumes the copies of those that its origin has at the same place: the origin's, and the copy's files.
    pub(crate) fn copies_of(&self, fork: &Opened, origin: &Opened) -> Result<Vec<(Kept, PathBuf)>> {
        let mut found = Vec::new();
        for attached in &origin.record.options.volumes {
            for copy in fork.record.options.volumes.iter().filter(|v| v.path == attached.path) {
                if self.copied_from(&fork.id, &copy.volume)?.as_ref() == Some(&attached.volume) {
                    let kept =
                        Kept { attached: attached.clone(), data: Data::Copy, replaced: None, source: None };
                    found.push((kept, VolumePaths(&self.home_of(&fork.id, &copy.volume)).fs()));
                }
            }
        }
        Ok(found)
    }

    /// The volume that a spark's volume was copied from.
    pub(crate) fn copied_from(&self, spark: &SparkId, volume: &Name) -> Result<Option<Name>> {
        let home = self.home_of(spark, volume);
        Ok(record::read::<VolumeRecord>(&VolumePaths(&home).record())?.and_then(|record| record.origin))
    }

    /// Whether a spark keeps a volume of this name to itself.
    pub(crate) fn has_own(&self, spark: &SparkId, volume: &Name) -> bool {
        SparkPaths(&self.dir(spark)).data().join(volume).is_dir()
    }

    /// The directory of a volume that a spark has.
    pub(crate) fn home_of(&self, spark: &SparkId, volume: &Name) -> PathBuf {
        match self.has_own(spark, volume) {
            true => SparkPaths(&self.dir(spark)).data().join(volume),
            false => self.pool.paths.volume(&spark.project, volume),
        }
    }
}

impl Found {
    /// Says which volumes were made.
    pub(crate) fn tell_copies(&self, record: &SparkRecord, observer: &dyn Observer) {
        for Copied { attached, .. } in &self.copies {
            if let Some(new) = record.options.volumes.iter().find(|v| v.path == attached.path)
                && !record.ephemeral
            {
                observer.notice(&format!("copied data volume `{}` to `{}`", attached.volume, new.volume));
            }
        }
    }
}

/// The volumes of a spark made with these copies that are there already.
pub(crate) fn not_copied(record: &SparkRecord, copies: &[Copied]) -> Vec<Attached> {
    let copied = |v: &Attached| copies.iter().any(|copy| copy.attached.path == v.path);
    record.options.volumes.iter().filter(|v| !copied(v)).cloned().collect()
}

/// Of a record's volumes those that the snapshot holds.
pub(crate) fn held(record: &SnapshotRecord) -> impl Iterator<Item = &Kept> {
    record.volumes.iter().filter(|kept| kept.data == Data::Copy)
}

/// A copy's name, the volume's own shortened if need be.
fn copy_name(volume: &Name, spark: &Name, number: u32) -> Result<Name> {
    let end = if number == 1 { format!("-{spark}") } else { format!("-{spark}-{number}") };
    let room = MAX.saturating_sub(end.len());
    let start = &volume.as_str()[..volume.as_str().len().min(room)];
    Ok(format!("{start}{end}").parse()?)
}

fn cannot(attached: &Attached, what: &str, other: &str) -> Error {
    Error::Usage {
        message: format!("data volume `{}` cannot {what}", attached.volume),
        hint: Some(format!("choose `--data {other}`")),
    }
}

fn make_dir(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(Error::io("create", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_copy_is_a_name_however_long_its_parts_are() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        assert_eq!(copy_name(&name("v"), &name("web"), 1).unwrap().as_str(), "v-web");
        assert_eq!(copy_name(&name("v"), &name("web"), 2).unwrap().as_str(), "v-web-2");
        let long = copy_name(&name(&"v".repeat(63)), &name("web"), 10).unwrap();
        assert!(long.as_str().ends_with("v-web-10") && long.as_str().len() == 63);
        assert!(copy_name(&name("v"), &name(&"w".repeat(63)), 1).is_err());
    }
}
