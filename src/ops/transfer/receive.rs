//! `receive`: a spark made of a stream, or brought up to what a stream says has changed.
//!
//! Everything is made in `staging/`, and nothing leaves it before the last byte has been verified.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::super::create::{Publication, taken};
use super::super::snapshot::{self, Restored};
use super::super::spark::SparkId;
use super::super::{Observer, Sparks};
use super::format::{self, Incoming};
use super::{Header, Point, ROOT};
use crate::domain::FORMAT;
use crate::domain::name::{Name, SparkRef};
use crate::domain::options::SparkOptions;
use crate::domain::place::{SnapshotPaths, SparkPaths};
use crate::domain::snapshot::{Kind, SnapshotRecord, Source};
use crate::domain::spark::{Id, Origin, SparkRecord};
use crate::error::{Error, Result};
use crate::fault;
use crate::pool::apply::{Summary, Target, apply};
use crate::pool::{btrfs, names_in, record, stage};
use crate::sys::flock::Mode;

/// What to do with a stream.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The spark to make, or to bring up to date; called as it is where it came from if none.
    pub name: Option<SparkRef>,
    /// Of an increment, only add the snapshot: the spark's own files stay as they are.
    pub keep_files: bool,
}

/// What was received.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Received {
    #[serde(flatten)]
    pub spark: SparkId,
    /// The snapshot of what was received, as it was sent.
    pub snapshot: Name,
    /// What became of the spark's files before, if they were there.
    pub restored: Option<Restored>,
}

impl Sparks {
    /// Makes a spark of a stream, or, if the stream holds only what differs from a snapshot, restores a spark that has
    /// that snapshot to the new one. What is in a stream is not trusted.
    ///
    /// # Errors
    /// `corrupt` if it is cut, altered or hostile, `not_found` without the snapshot that it starts from, `exists` if it is
    /// here already. Then nothing is left of it.
    pub fn receive(&self, input: impl Read, request: &Request, observer: &dyn Observer) -> Result<Received> {
        let limits = self.import_limits()?;
        let (header, incoming) = Incoming::open(input, limits.bytes)?;
        let name =
            request.name.clone().unwrap_or(SparkRef { project: None, name: header.spark.name.clone() });
        observer.step(&format!("receiving {}@{}", header.spark.name, header.snapshot.name), None);
        let stream = Stream { header, incoming, entries: limits.entries, observer };
        if stream.header.parent.is_some() {
            self.receive_increment(stream, &name, request.keep_files)
        } else {
            self.receive_whole(stream, &name)
        }
    }

    fn receive_whole(&self, stream: Stream<'_, impl Read>, name: &SparkRef) -> Result<Received> {
        let mut spark = SparkId { project: self.project_of(name)?, name: name.name.clone() };
        if self.dir(&spark).exists() {
            return Err(taken(&spark));
        }
        let header = stream.header.clone();
        let options = usable(header.spark.options, stream.observer)?;
        let id = Id::generate();
        let snapshot = header.snapshot.name;
        let record = SparkRecord {
            version: FORMAT,
            oci_id: id.to_string(),
            id,
            created: chrono::Utc::now(),
            origin: Origin::Received {
                name: header.spark.name,
                id: header.spark.id,
                snapshot: snapshot.clone(),
            },
            options,
            ephemeral: false,
            rest: Default::default(),
        };
        let stage = self.pool.stage()?;
        let draft = stage.path().join("draft");
        btrfs::create(&draft)?;
        let dir = SparkPaths(stage.path()).snapshot(&snapshot);
        std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        stream.keep_at(&draft, None, &dir)?;
        stage.write("spark.json", &record)?;
        // The last, since it makes durable what was written before.
        btrfs::snapshot(&SnapshotPaths(&dir).root(), &SparkPaths(stage.path()).root())?;
        fault::point("receive.complete")?;
        spark.project = self.ensure_project_of(name)?;
        let publication = Publication { record: &record, start: false, volumes: None, found: None };
        self.publish_spark(stage, &spark, &publication)?;
        Ok(Received { spark, snapshot, restored: None })
    }

    fn receive_increment(
        &self,
        stream: Stream<'_, impl Read>,
        name: &SparkRef,
        keep_files: bool,
    ) -> Result<Received> {
        let spark = self.resolve(name)?;
        let id = self.record(&spark)?.id;
        let snapshot = stream.header.snapshot.name.clone();
        if self.copy_of(&spark, &stream.header.snapshot)?.is_some()
            || self.snapshot_dir(&spark, &snapshot).exists()
        {
            return Err(snapshot::taken(&spark, &snapshot));
        }
        let (parent, _held) = self.parent_of(&spark, &stream.header)?;
        let stage = self.pool.stage()?;
        let draft = stage.path().join("draft");
        btrfs::snapshot(&parent, &draft)?;
        let record = stream.keep_at(&draft, Some(&parent), stage.path())?;
        fault::point("receive.increment")?;
        let mode = if keep_files { Mode::Shared } else { Mode::Exclusive };
        let opened = self.open_spark(&spark, mode)?;
        if opened.record.id != id {
            return Err(Error::Busy {
                what: format!("spark `{spark}`"),
                why: "another one has taken its place".into(),
            });
        }
        let (_, lock) = self.publish_snapshot(&opened, stage, &record, Some(&snapshot))?;
        let root = SnapshotPaths(&self.snapshot_dir(&spark, &snapshot)).root();
        let restore = || match keep_files {
            true => Ok(None),
            false => {
                self.replace_files(&opened, &snapshot::Files { root, volumes: Vec::new() }, true).map(Some)
            }
        };
        match fault::point("receive.published").and_then(|()| restore()) {
            Ok(restored) => Ok(Received { spark, snapshot, restored }),
            Err(first) => {
                drop(lock);
                Err(match self.remove_snapshot(&spark, &snapshot) {
                    Ok(()) => first,
                    Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
                })
            }
        }
    }

    /// The root of the snapshot that an increment starts from, and its lock.
    fn parent_of(&self, spark: &SparkId, header: &Header) -> Result<(PathBuf, std::os::fd::OwnedFd)> {
        let missing = |point: &Point| Error::NotFound {
            kind: "parent snapshot",
            name: format!("{spark}@{}", point.name),
            in_project: Some(spark.project.to_string()),
            near: Vec::new(),
        };
        let point = header.parent.as_ref().ok_or_else(|| format::corrupt("it has no parent"))?;
        let (name, copy) = self.copy_of(spark, point)?.ok_or_else(|| missing(point))?;
        let dir = self.snapshot_dir(spark, &name);
        let lock = self.pool.lock(&dir, Mode::Shared)?.ok_or_else(|| missing(point))?;
        let root = self.snapshot_root(spark, &name)?;
        let now = btrfs::info(&root)?;
        if !now.read_only || now.uuid != copy {
            return Err(Error::Corrupt {
                path: root,
                why: "it is not what was received".into(),
                hint: Some("send the spark whole, as another name".into()),
            });
        }
        Ok((root, lock))
    }

    /// The snapshot that was received of another one, and its subvolume's UUID.
    fn copy_of(&self, spark: &SparkId, point: &Point) -> Result<Option<(Name, String)>> {
        for name in names_in(&SparkPaths(&self.dir(spark)).snapshots())? {
            let path = SnapshotPaths(&self.snapshot_dir(spark, &name)).record();
            // A damaged one is nobody's parent, and no reason to refuse another.
            if let Ok(Some(SnapshotRecord { source: Some(source), .. })) = record::read(&path)
                && source.id == point.id
                && source.uuid == point.uuid
            {
                return Ok(Some((name, source.copy)));
            }
        }
        Ok(None)
    }
}

/// A stream whose header has been read.
struct Stream<'a, R: Read> {
    header: Header,
    incoming: Incoming<R>,
    entries: u64,
    observer: &'a dyn Observer,
}

impl<R: Read> Stream<'_, R> {
    /// Applies the stream to the subvolume `draft`, verifies it to its last byte, and keeps the result as the snapshot of
    /// `dir`, read-only and with its record.
    fn keep_at(mut self, draft: &Path, parent: Option<&Path>, dir: &Path) -> Result<SnapshotRecord> {
        fault::point("receive.staged")?;
        let summary = self.apply(draft, parent)?;
        self.incoming.finish()?;
        fault::point("receive.verified")?;
        let root = SnapshotPaths(dir).root();
        // A snapshot of it, and not itself made read-only: the one is durable when it is made, the other is not.
        btrfs::snapshot_read_only(draft, &root)?;
        stage::destroy(draft)?;
        let Point { id, uuid, .. } = self.header.snapshot;
        let source = Some(Source { id, uuid, copy: btrfs::info(&root)?.uuid });
        let record = SnapshotRecord { source, ..SnapshotRecord::new(Kind::Received) };
        let path = SnapshotPaths(dir).record();
        crate::sys::file::create_synced(&path, &record::bytes(&record)?).map_err(Error::io("write", path))?;
        report(&summary, self.observer);
        Ok(record)
    }

    fn apply(&mut self, top: &Path, parent: Option<&Path>) -> Result<Summary> {
        match self.incoming.section()? {
            Some(section) if section.kind == ROOT => {}
            Some(other) => return Err(unknown(&other.kind)),
            None => return Err(format::corrupt("it has no root filesystem")),
        }
        let uuid = self.header.parent.as_ref().map(|p| p.uuid.as_str());
        let target =
            Target { top, uuid: &self.header.snapshot.uuid, parent: uuid.zip(parent), entries: self.entries };
        let observer = self.observer;
        let progress = |bytes| observer.advance(bytes);
        let mut content = BufReader::with_capacity(128 << 10, self.incoming.content(&progress));
        let summary = apply(&mut content, &target).map_err(format::blame)?;
        match content.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => return Err(format::corrupt("something follows the root filesystem")),
            Err(e) => return Err(format::blame(Error::sys("read the stream")(e))),
        }
        match self.incoming.section()? {
            None => Ok(summary),
            Some(section) => Err(unknown(&section.kind)),
        }
    }
}

fn unknown(kind: &str) -> Error {
    format::later(format!("the stream has a section `{}`", kind.escape_default()))
}

/// The options that have a meaning here, of those that a stranger wrote.
fn usable(mut options: SparkOptions, observer: &dyn Observer) -> Result<SparkOptions> {
    options.check().map_err(|why| format::corrupt(format!("its options are refused: {why}")))?;
    for mount in std::mem::take(&mut options.mounts) {
        observer.notice(&format!(
            "left out the mount on {}: it is of the host it came from",
            mount.dst.display()
        ));
    }
    // A template of a name that happens to be on this host too may give away more than anybody meant to.
    if let Some(bundle) = options.bundle.take_if(|b| !["default", "hardened"].contains(&b.as_str())) {
        observer.notice(&format!("left out the bundle template `{bundle}`: it is of the host it came from"));
    }
    Ok(options)
}

/// Says what is not as it was sent.
fn report(summary: &Summary, observer: &dyn Observer) {
    let say = |count: u64, what: &str| {
        if count > 0 {
            observer.notice(&format!("{count} {what}"));
        }
    };
    say(summary.ids_mapped, "files of users or groups beyond 65535 belong to 65534 now");
    say(
        summary.xattrs_dropped,
        "extended attributes were dropped: labels and others of the host it came from",
    );
}
