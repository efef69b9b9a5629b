//! `send`: a snapshot of a spark as a stream, whole or as what differs from another snapshot.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::super::data::held;
use super::super::spark::SparkId;
use super::super::{Observer, Sparks};
use super::format::Writer;
use super::{Header, MOST_VOLUMES, Point, ROOT, Section, Spark, VOLUME, Volume};
use crate::domain::name::{Name, SourceRef};
use crate::domain::place::SnapshotPaths;
use crate::domain::snapshot::{Kind, SnapshotRecord};
use crate::domain::spark::Time;
use crate::domain::volume::{Attached, Data};
use crate::error::{Error, Result};
use crate::pool::btrfs;
use crate::sys::btrfs::SendOptions;
use crate::sys::flock::Mode;
use crate::{fault, sys};

/// What was sent.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Sent {
    pub spark: Name,
    /// Kept, so that the next time only what differs from it has to be sent.
    pub snapshot: Name,
    /// Bytes of the stream.
    pub bytes: u64,
    /// The data volumes that were sent, and those that the snapshot only notes.
    pub volumes: Vec<Name>,
    pub left_out: Vec<Name>,
}

/// A snapshot that stays what it is.
struct Held {
    point: Point,
    created: Time,
    root: Subvolume,
    /// The data volumes that it holds, and those that it only notes.
    volumes: Vec<(Attached, Subvolume)>,
    noted: Vec<Name>,
    _lock: OwnedFd,
}

struct Subvolume {
    path: PathBuf,
    id: u64,
    uuid: String,
}

impl Subvolume {
    fn at(path: PathBuf) -> Result<Subvolume> {
        let info = btrfs::info(&path)?;
        Ok(Subvolume { path, id: info.id, uuid: info.uuid })
    }
}

impl Held {
    /// Its copy of a data volume.
    fn volume(&self, name: &Name) -> Option<&Subvolume> {
        self.volumes.iter().find(|(attached, _)| attached.volume == *name).map(|(_, copy)| copy)
    }
}

impl Sparks {
    /// Writes a spark, or one of its snapshots, to `out`: whole, or as what differs from the snapshot `since`. Of a spark
    /// a snapshot is taken, and kept. Data volumes are sent that the snapshot holds: of a spark those that only it has.
    ///
    /// # Errors
    /// `not_found` if a snapshot is not there, `usage` if `since` is not the older one. A snapshot that was taken is gone
    /// again if sending failed.
    pub fn send(
        &self,
        source: &SourceRef,
        since: Option<&Name>,
        out: impl Write,
        observer: &dyn Observer,
    ) -> Result<Sent> {
        let spark = self.resolve(&source.spark)?;
        let parent = since.map(|name| self.hold(&spark, name)).transpose()?;
        let Some(name) = &source.snapshot else {
            let name = {
                let opened = self.open_spark(&spark, Mode::Shared)?;
                let volumes = self.fates(&opened, None)?;
                let record = SnapshotRecord { volumes, ..SnapshotRecord::new(Kind::Sent) };
                self.take_snapshot(&opened, &record, None)?
            };
            let sent = fault::point("send.taken")
                .and_then(|()| self.send_snapshot((&spark, &name), parent.as_ref(), out, observer));
            return sent.map_err(|first| match self.remove_snapshot(&spark, &name) {
                Ok(()) => first,
                Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
            });
        };
        self.send_snapshot((&spark, name), parent.as_ref(), out, observer)
    }

    fn send_snapshot(
        &self,
        (spark, name): (&SparkId, &Name),
        parent: Option<&Held>,
        out: impl Write,
        observer: &dyn Observer,
    ) -> Result<Sent> {
        let held = self.hold(spark, name)?;
        if let Some(parent) = parent.filter(|p| p.created >= held.created) {
            return Err(Error::Usage {
                message: format!("`{name}` is no newer than `{}`", parent.point.name),
                hint: Some(format!("see which is older with `spark snapshot list {spark}`")),
            });
        }
        if held.volumes.len() > MOST_VOLUMES {
            return Err(Error::NotSupported {
                what: format!("a stream cannot carry more than {MOST_VOLUMES} data volumes"),
                hint: Some("send a snapshot that holds fewer: `spark snapshot create --data none`".into()),
            });
        }
        let record = self.record(spark)?;
        let header = Header {
            spark: Spark { name: spark.name.clone(), id: record.id, options: record.options },
            snapshot: held.point.clone(),
            parent: parent.map(|p| p.point.clone()),
        };
        observer.step(&format!("sending {spark}@{name}"), None);
        let mut writer = Writer::begin(out, &header)?;
        let root = Section { kind: ROOT.into(), what: serde_json::Map::new() };
        write(&mut writer, &root, (&held.root, parent.map(|p| &p.root)), observer)?;
        for (attached, copy) in &held.volumes {
            let before = parent.and_then(|parent| parent.volume(&attached.volume));
            let (attached, uuid) = (attached.clone(), copy.uuid.clone());
            let what = Volume { attached, uuid, parent: before.map(|before| before.uuid.clone()) };
            write(&mut writer, &Section { kind: VOLUME.into(), what }, (copy, before), observer)?;
        }
        let bytes = writer.finish()?;
        fault::point("send.sent")?;
        Ok(Sent {
            spark: spark.name.clone(),
            snapshot: name.clone(),
            bytes,
            volumes: held.volumes.into_iter().map(|(attached, _)| attached.volume).collect(),
            left_out: held.noted,
        })
    }

    /// A snapshot with its lock: nobody deletes it meanwhile.
    fn hold(&self, spark: &SparkId, name: &Name) -> Result<Held> {
        let dir = self.snapshot_dir(spark, name);
        // The older snapshot may be locked already.
        let _settled = self.lock_spark(spark, Mode::SharedToo)?;
        let Some(lock) = self.pool.lock(&dir, Mode::Shared)? else {
            return Err(self.no_such_snapshot(spark, name));
        };
        let record = self.snapshot_record(spark, name)?;
        let paths = SnapshotPaths(&dir);
        let root = Subvolume::at(paths.root())?;
        let volumes = held(&record)
            .map(|kept| Ok((kept.attached.clone(), Subvolume::at(paths.volume(&kept.attached.volume))?)));
        let volumes = volumes.collect::<Result<_>>()?;
        let noted = record.volumes.into_iter().filter(|kept| kept.data != Data::Copy);
        let noted = noted.map(|kept| kept.attached.volume).collect();
        let point = Point { name: name.clone(), id: record.id, uuid: root.uuid.clone() };
        Ok(Held { point, created: record.created, root, volumes, noted, _lock: lock })
    }
}

/// Writes a section: a subvolume whole, or what differs from another.
fn write(
    writer: &mut Writer<impl Write>,
    section: &Section<impl serde::Serialize>,
    (subvolume, parent): (&Subvolume, Option<&Subvolume>),
    observer: &dyn Observer,
) -> Result<()> {
    let path = &subvolume.path;
    let top = sys::file::open_dir(path).map_err(Error::io("open", path))?;
    let options = SendOptions {
        parent: parent.map(|p| p.id),
        clone_sources: parent.iter().map(|p| p.id).collect(),
        no_file_data: false,
    };
    let content = sys::btrfs::send(top, options).map_err(Error::io("send", path))?;
    writer.section(section, content, &|bytes| observer.advance(bytes))
}
