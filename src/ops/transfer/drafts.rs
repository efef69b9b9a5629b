//! What a stream holds, made true in `staging/`: the root filesystem first, then data volumes.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::super::Observer;
use super::super::data::held;
use super::format;
use super::incoming::Incoming;
use super::{Header, MOST_VOLUMES, Point, ROOT, Section, VOLUME, Volume};
use crate::domain::name::Name;
use crate::domain::place::SnapshotPaths;
use crate::domain::snapshot::{Kept, Kind, SnapshotRecord, Source, VolumeSource};
use crate::domain::volume::{Attached, Data, parse_path};
use crate::error::{Error, Result};
use crate::fault;
use crate::pool::apply::{Summary, Target, apply};
use crate::pool::{btrfs, record, stage};

/// A stream whose header has been read.
pub(super) struct Stream<'a, R: Read> {
    pub(super) header: Header,
    pub(super) incoming: Incoming<R>,
    /// Files that may be made, all subvolumes together.
    pub(super) entries: u64,
    pub(super) observer: &'a dyn Observer,
}

/// The snapshot that an increment starts from, as it was received, and its lock.
pub(super) struct Parent {
    pub(super) dir: PathBuf,
    pub(super) record: SnapshotRecord,
    pub(super) _lock: OwnedFd,
}

/// What a stream holds, verified to its last byte.
pub(super) struct Drafts {
    snapshot: Point,
    root: PathBuf,
    pub(super) volumes: Vec<(Volume, PathBuf)>,
}

impl<R: Read> Stream<'_, R> {
    /// Applies the stream to subvolumes that it makes in `dir`, and verifies it.
    pub(super) fn make(mut self, dir: &Path, parent: Option<&Parent>) -> Result<Drafts> {
        fault::point("receive.staged")?;
        let mut summary = Summary::default();
        match self.incoming.section()? {
            Some(section) if section.kind == ROOT => {}
            Some(other) => return Err(unknown(&other.kind)),
            None => return Err(format::corrupt("it has no root filesystem")),
        }
        let root = dir.join("draft");
        let Header { snapshot, parent: point, .. } = self.header.clone();
        let copy = parent.map(|parent| SnapshotPaths(&parent.dir).root());
        self.apply(&root, (&snapshot.uuid, point.as_ref().map(|p| p.uuid.as_str()).zip(copy)), &mut summary)?;
        let mut volumes: Vec<(Volume, PathBuf)> = Vec::new();
        while let Some(section) = self.incoming.section()? {
            let volume = volume_of(section, &volumes)?;
            let copy = match &volume.parent {
                Some(uuid) => Some((uuid.as_str(), copy_of(&volume, uuid, parent)?)),
                None => None,
            };
            let draft = dir.join(format!("draft-{}", volumes.len()));
            self.apply(&draft, (&volume.uuid, copy), &mut summary)?;
            volumes.push((volume, draft));
        }
        self.incoming.finish()?;
        fault::point("receive.verified")?;
        report(&summary, self.observer);
        Ok(Drafts { snapshot, root, volumes })
    }

    /// Applies a section to a new subvolume: an empty one, or a copy of the parent.
    fn apply(
        &mut self,
        top: &Path,
        (uuid, parent): (&str, Option<(&str, PathBuf)>),
        summary: &mut Summary,
    ) -> Result<()> {
        match &parent {
            Some((_, parent)) => btrfs::snapshot(parent, top)?,
            None => btrfs::create(top)?,
        }
        let parent = parent.as_ref().map(|(uuid, path)| (*uuid, path.as_path()));
        let entries = self.entries - summary.entries;
        let target = Target { top, uuid, parent, entries };
        let observer = self.observer;
        let progress = |bytes| observer.advance(bytes);
        let made = apply(self.incoming.commands(&progress), &target)?;
        summary.entries += made.entries;
        summary.ids_mapped += made.ids_mapped;
        summary.xattrs_dropped += made.xattrs_dropped;
        Ok(())
    }
}

impl Drafts {
    /// Keeps all of it as the snapshot of `dir`, read-only and with its record. Volumes are called `names`.
    pub(super) fn keep(&self, names: &[Name], dir: &Path) -> Result<SnapshotRecord> {
        let paths = SnapshotPaths(dir);
        // A snapshot of it, and not itself made read-only: the one is durable when it is made, the other is not.
        let keep = |draft: &Path, to: PathBuf| {
            btrfs::snapshot_read_only(draft, &to)?;
            stage::destroy(draft)?;
            btrfs::info(&to).map(|info| info.uuid)
        };
        if !self.volumes.is_empty() {
            std::fs::create_dir(paths.data()).map_err(Error::io("create", paths.data()))?;
        }
        let mut volumes = Vec::with_capacity(names.len());
        for ((Volume { attached, uuid, .. }, draft), name) in self.volumes.iter().zip(names) {
            let (volume, uuid) = (attached.volume.clone(), uuid.clone());
            let source = VolumeSource { volume, uuid, copy: keep(draft, paths.volume(name))? };
            let attached = Attached { volume: name.clone(), ..attached.clone() };
            volumes.push(Kept { attached, data: Data::Copy, replaced: None, source: Some(source) });
        }
        let Point { id, uuid, .. } = self.snapshot.clone();
        let source = Some(Source { id, uuid, copy: keep(&self.root, paths.root())? });
        let record = SnapshotRecord { source, volumes, ..SnapshotRecord::new(Kind::Received) };
        let path = paths.record();
        crate::sys::file::create_synced(&path, &record::bytes(&record)?).map_err(Error::io("write", path))?;
        Ok(record)
    }
}

/// What a section says of a data volume, which no other of the stream may be or be in the place of.
fn volume_of(section: Section, before: &[(Volume, PathBuf)]) -> Result<Volume> {
    if section.kind != VOLUME {
        return Err(unknown(&section.kind));
    }
    let mut volume: Volume = serde_json::from_value(section.what.into()).map_err(format::misread)?;
    let attached = &mut volume.attached;
    let refused = |why: String| format::corrupt(format!("a data volume is refused: {why}"));
    attached.path = parse_path(&attached.path.to_string_lossy()).map_err(refused)?;
    if before.len() == MOST_VOLUMES {
        return Err(refused(format!("it is more than the {MOST_VOLUMES}th")));
    }
    match before.iter().find(|(other, _)| other.attached.replaces(attached)) {
        Some(_) => Err(refused(format!("`{}` or its place is in the stream twice", attached.volume))),
        None => Ok(volume),
    }
}

/// The copy of a volume that an increment of it starts from: the same volume's, in the parent snapshot.
fn copy_of(volume: &Volume, uuid: &str, parent: Option<&Parent>) -> Result<PathBuf> {
    let name = &volume.attached.volume;
    let same = |source: &VolumeSource| source.volume == *name && source.uuid == uuid;
    let found = parent.and_then(|parent| {
        let kept = held(&parent.record).find(|kept| kept.source.as_ref().is_some_and(same))?;
        Some((SnapshotPaths(&parent.dir).volume(&kept.attached.volume), &kept.source.as_ref()?.copy))
    });
    let Some((path, copy)) = found else {
        return Err(format::corrupt(format!("data volume `{name}` has no such parent")));
    };
    unaltered(&path, copy)?;
    Ok(path)
}

/// Fails if a subvolume is no longer what was received.
pub(super) fn unaltered(path: &Path, copy: &str) -> Result<()> {
    let now = btrfs::info(path)?;
    if now.read_only && now.uuid == copy {
        return Ok(());
    }
    Err(Error::Corrupt {
        path: path.to_owned(),
        why: "it is not what was received".into(),
        hint: Some("send the spark whole, as another name".into()),
    })
}

fn unknown(kind: &str) -> Error {
    format::later(format!("the stream has a section `{}`", kind.escape_default()))
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
