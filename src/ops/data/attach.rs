//! `data attach` and `data detach`: the record first, then the mount of a spark that runs.

use super::super::Sparks;
use super::super::spark::Opened;
use super::VolumeId;
use crate::bundle::spec::volume_mount;
use crate::domain::name::{Name, SparkRef};
use crate::domain::place::{SparkPaths, VolumePaths};
use crate::domain::spark::SparkRecord;
use crate::domain::volume::Attached;
use crate::error::{Error, Result};
use crate::fault;
use crate::pool::record;
use crate::runtime;
use crate::sys::flock::Mode;

/// When what was said takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// It has: also for what runs in the spark already.
    Now,
    /// When the spark starts the next time.
    NextStart,
}

impl Sparks {
    /// Attaches a volume to a spark, at once if it runs.
    ///
    /// # Errors
    /// `exists` if the spark has it already, or something else at that path.
    pub fn data_attach(&self, spark: &SparkRef, wanted: Attached) -> Result<Effect> {
        let spark = self.resolve(spark)?;
        let volume = VolumeId { project: spark.project.clone(), name: wanted.volume.clone() };
        let opened = self.open_spark(&spark, Mode::Exclusive)?;
        if !self.volume_dir(&volume).is_dir() {
            return Err(self.no_such_volume(&volume));
        }
        let _held = self.hold_volumes(&spark, std::slice::from_ref(&wanted))?;
        refuse_second(&opened, &wanted)?;
        let mut record = opened.record.clone();
        record.options.volumes.push(wanted.clone());
        self.rewrite(&opened, &record)?;
        let mounted = fault::point("data-attach.after-record").and_then(|()| self.mount(&opened, &wanted));
        mounted.map_err(|first| match self.rewrite(&opened, &opened.record) {
            Ok(()) => first,
            Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
        })
    }

    fn mount(&self, opened: &Opened, wanted: &Attached) -> Result<Effect> {
        let Some(live) = self.live(&opened.record) else { return Ok(Effect::NextStart) };
        let root = SparkPaths(&opened.dir).root();
        for (fs, at) in self.volumes_of(&opened.id, std::slice::from_ref(wanted))? {
            match runtime::attach::attach(&live, &root, &volume_mount(&fs, &at, live.first_id)) {
                // It was idle, and has left.
                Err(_) if live.has_ended() => return Ok(Effect::NextStart),
                attached => attached?,
            }
        }
        Ok(Effect::Now)
    }

    /// Detaches a volume from a spark, at once if it runs. What has files of it open there keeps them until it closes
    /// them. One that is gone can be detached too.
    pub fn data_detach(&self, spark: &SparkRef, volume: &Name) -> Result<Effect> {
        let spark = self.resolve(spark)?;
        let opened = self.open_spark(&spark, Mode::Exclusive)?;
        let mut record = opened.record.clone();
        let Some(at) = record.options.volumes.iter().position(|had| had.volume == *volume) else {
            return Err(Error::NotFound {
                kind: "attached data volume",
                name: volume.to_string(),
                in_project: None,
                near: Vec::new(),
            });
        };
        let had = record.options.volumes.remove(at);
        let effect = self.unmount(&opened, &had)?;
        let written = fault::point("data-detach.unmounted").and_then(|()| self.rewrite(&opened, &record));
        if let Err(first) = written {
            return Err(match self.mount(&opened, &had) {
                Ok(_) => first,
                Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
            });
        }
        fault::point("data-detach.after-record")?;
        Ok(effect)
    }

    fn unmount(&self, opened: &Opened, had: &Attached) -> Result<Effect> {
        let Some(live) = self.live(&opened.record) else { return Ok(Effect::Now) };
        let fs = VolumePaths(&self.home_of(&opened.id, &had.volume)).fs();
        if !fs.is_dir() {
            return Ok(Effect::NextStart);
        }
        match runtime::attach::detach(&live, &fs, &had.path) {
            Err(_) if live.has_ended() => Ok(Effect::Now),
            Ok(false) => Ok(Effect::NextStart),
            detached => detached.map(|_| Effect::Now),
        }
    }

    pub(in crate::ops) fn rewrite(&self, opened: &Opened, record: &SparkRecord) -> Result<()> {
        record::replace(&SparkPaths(&opened.dir).record(), record)
    }
}

fn refuse_second(opened: &Opened, wanted: &Attached) -> Result<()> {
    let options = &opened.record.options;
    let taken = |what: String| Error::WrongState {
        action: "attach to",
        kind: "spark",
        name: opened.id.to_string(),
        state: what,
        hint: "see what it has with `spark info`, and choose another path".into(),
    };
    if let Some(had) = options.volumes.iter().find(|had| had.volume == wanted.volume) {
        return Err(Error::WrongState {
            action: "attach to",
            kind: "spark",
            name: opened.id.to_string(),
            state: format!("one that has `{}` already, at {}", had.volume, had.path.display()),
            hint: format!("detach it first with `spark data detach {} {}`", had.volume, opened.id),
        });
    }
    if let Some(had) = options.volumes.iter().find(|had| had.path == wanted.path) {
        return Err(taken(format!("one that has `{}` at {} already", had.volume, had.path.display())));
    }
    if options.mounts.iter().any(|mount| mount.dst == wanted.path) {
        let at = wanted.path.display();
        return Err(taken(format!("one that has a directory of the host at {at} already")));
    }
    Ok(())
}
