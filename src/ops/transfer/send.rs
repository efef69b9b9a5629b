//! `send`: a snapshot of a spark as a stream, whole or as what differs from another snapshot.

use std::io::Write;
use std::os::fd::OwnedFd;

use super::super::spark::SparkId;
use super::super::{Observer, Sparks};
use super::format::Writer;
use super::{Header, Point, ROOT, Section, Spark};
use crate::domain::name::{Name, SourceRef};
use crate::domain::place::SnapshotPaths;
use crate::domain::snapshot::{Kind, SnapshotRecord};
use crate::domain::spark::Time;
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
}

/// A snapshot that stays what it is.
struct Held {
    point: Point,
    created: Time,
    root: std::path::PathBuf,
    /// The id of its subvolume.
    subvolume: u64,
    _lock: OwnedFd,
}

impl Sparks {
    /// Writes a spark, or one of its snapshots, to `out`: whole, or as what differs from the snapshot `since`. Of a spark
    /// a snapshot is taken, and kept.
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
                self.take_snapshot(&opened, &SnapshotRecord::new(Kind::Sent), None)?
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
        let record = self.record(spark)?;
        let header = Header {
            spark: Spark { name: spark.name.clone(), id: record.id, options: record.options },
            snapshot: held.point.clone(),
            parent: parent.map(|p| p.point.clone()),
        };
        observer.step(&format!("sending {spark}@{name}"), None);
        let top = sys::file::open_dir(&held.root).map_err(Error::io("open", &held.root))?;
        let options = SendOptions {
            parent: parent.map(|p| p.subvolume),
            clone_sources: parent.iter().map(|p| p.subvolume).collect(),
            no_file_data: false,
        };
        let content = sys::btrfs::send(top, options).map_err(Error::io("send", &held.root))?;
        let mut writer = Writer::begin(out, &header)?;
        writer.section(&Section { kind: ROOT.into() }, content, &|bytes| observer.advance(bytes))?;
        let bytes = writer.finish()?;
        fault::point("send.sent")?;
        Ok(Sent { spark: spark.name.clone(), snapshot: name.clone(), bytes })
    }

    /// A snapshot with its lock: nobody deletes it meanwhile.
    fn hold(&self, spark: &SparkId, name: &Name) -> Result<Held> {
        let dir = self.snapshot_dir(spark, name);
        let Some(lock) = self.pool.lock(&dir, Mode::Shared)? else {
            return Err(self.no_such_snapshot(spark, name));
        };
        let record = self.snapshot_record(spark, name)?;
        let root = SnapshotPaths(&dir).root();
        let info = btrfs::info(&root)?;
        let point = Point { name: name.clone(), id: record.id, uuid: info.uuid };
        Ok(Held { point, created: record.created, root, subvolume: info.id, _lock: lock })
    }
}
