//! `receive`: a spark made of a stream, or brought up to what a stream says has changed.
//!
//! Everything is made in `staging/`, and nothing leaves it before the last byte has been verified.

use std::io::Read;
use std::path::Path;

use super::super::create::{Publication, taken};
use super::super::data::{Copied, Held, held};
use super::super::snapshot::{self, Restored};
use super::super::spark::{Opened, SparkId};
use super::super::{Observer, Sparks};
use super::drafts::{Drafts, Parent, Stream, unaltered};
use super::format;
use super::incoming::Incoming;
use super::parse::PARSER;
use super::{Header, Point};
use crate::domain::FORMAT;
use crate::domain::name::{Name, SparkRef};
use crate::domain::options::{HARDENED, Network, SparkOptions};
use crate::domain::place::{SnapshotPaths, SparkPaths};
use crate::domain::port;
use crate::domain::shared::Shared;
use crate::domain::snapshot::{Kept, SnapshotRecord};
use crate::domain::spark::{Id, Origin, SparkRecord};
use crate::domain::volume::Attached;
use crate::error::{Error, Result};
use crate::fault;
use crate::image::reading::{Flow, Source};
use crate::pool::{btrfs, names_in, record};
use crate::sys::flock::Mode;

/// What to do with a stream.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The spark to make, or to bring up to date; called as it is where it came from if none.
    pub name: Option<SparkRef>,
    /// Of an increment, only add the snapshot: the spark's own files stay as they are.
    pub keep_files: bool,
    /// The network of a new spark; what the stream says if none, but for the host's.
    pub network: Option<Network>,
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
    pub fn receive(
        &self,
        input: impl Source + 'static,
        request: &Request,
        observer: &dyn Observer,
    ) -> Result<Received> {
        let _room = self.room()?;
        let limits = self.import_limits()?;
        let records = Flow::start(self.reader()?, &PARSER, input).map_err(Error::sys("start a reader"))?;
        let (header, incoming) = Incoming::open(records, limits.bytes)?;
        let name =
            request.name.clone().unwrap_or(SparkRef { project: None, name: header.spark.name.clone() });
        observer.step(&format!("receiving {}@{}", header.spark.name, header.snapshot.name), None);
        let stream = Stream { header, incoming, entries: limits.entries, observer };
        if stream.header.parent.is_some() {
            if request.network.is_some() {
                return Err(Error::Usage {
                    message:
                        "the network is chosen when a spark is made, and this stream brings one up to date"
                            .into(),
                    hint: None,
                });
            }
            self.receive_increment(stream, &name, request.keep_files)
        } else {
            self.receive_whole(stream, &name, request.network)
        }
    }

    fn receive_whole(
        &self,
        mut stream: Stream<'_, impl Read>,
        name: &SparkRef,
        network: Option<Network>,
    ) -> Result<Received> {
        name.name.check_for_spark()?;
        let mut spark = SparkId { project: self.project_of(name)?, name: name.name.clone() };
        if self.dir(&spark).exists() {
            return Err(taken(&spark));
        }
        let observer = stream.observer;
        let wanted = &mut stream.header.spark.options.network;
        if network.is_none() && *wanted == Network::Host {
            observer.notice(
                "left out that it was on the host's own network: it was another one; `receive --network host` gives it this one's",
            );
            *wanted = Network::Project;
        }
        *wanted = network.unwrap_or(*wanted);
        let header = stream.header.clone();
        let (had, snapshot) = (header.spark.options.volumes.clone(), header.snapshot.name.clone());
        let mut record = record_of(header, observer)?;
        let stage = self.pool.stage()?;
        let drafts = stream.make(stage.path(), None)?;
        let dir = SparkPaths(stage.path()).snapshot(&snapshot);
        std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let kept = drafts.keep(&self.local_names(&spark, &drafts, &[])?, &dir)?;
        // Those of the stream, or none: one that happens to have the same name here is somebody else's.
        record.options.volumes = held(&kept).map(|kept| kept.attached.clone()).collect();
        stage.write("spark.json", &record)?;
        let copies = copies_of(&drafts, &kept, &dir);
        self.stage_copies(&record, &copies, &stage)?;
        // The last, since it makes durable what was written before.
        btrfs::snapshot(&SnapshotPaths(&dir).root(), &SparkPaths(stage.path()).root())?;
        fault::point("receive.complete")?;
        spark.project = self.ensure_project_of(name)?;
        // Its volumes come with it: there is none yet that anybody could take away.
        let volumes = Held::default();
        let given = Default::default();
        let publication =
            Publication { record: &record, start: false, given, volumes: &volumes, copies: &copies };
        self.publish_spark(stage, &spark, &publication)?;
        tell_volumes(&had, &kept, observer);
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
        let (observer, known) = (stream.observer, self.received(&spark)?);
        let parent = self.parent_of(&spark, &stream.header)?;
        let stage = self.pool.stage()?;
        let drafts = stream.make(stage.path(), Some(&parent))?;
        let record = drafts.keep(&self.local_names(&spark, &drafts, &known)?, stage.path())?;
        fault::point("receive.increment")?;
        let mode = if keep_files { Mode::Shared } else { Mode::Exclusive };
        let opened = self.open_spark(&spark, mode)?;
        if opened.record.id != id {
            return Err(Error::Busy {
                what: format!("spark `{spark}`"),
                why: "another one has taken its place".into(),
            });
        }
        self.with_service(opened, |opened| {
            let (_, lock) = self.publish_snapshot(opened, stage, &record, Some(&snapshot))?;
            let restore = || match keep_files {
                true => Ok(None),
                false => self.restore_received(opened, &snapshot).map(Some),
            };
            match fault::point("receive.published").and_then(|()| restore()) {
                Ok(restored) => {
                    tell_new(opened, &snapshot, &record, observer);
                    Ok(Received { spark, snapshot, restored })
                }
                Err(first) => {
                    drop(lock);
                    Err(match self.remove_snapshot(&spark, &snapshot) {
                        Ok(()) => first,
                        Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
                    })
                }
            }
        })
    }

    /// Restores root and volumes to a snapshot that has been received, but for volumes that the spark does not have.
    fn restore_received(&self, opened: &Opened, snapshot: &Name) -> Result<Restored> {
        let mut files = self.source(&opened.id, snapshot, true)?;
        files.volumes.retain(|(kept, _)| has(opened, kept));
        self.replace_files(opened, &files, true).map_err(|e| match e {
            Error::WrongState { action, kind: kind @ "data volume", name, state, .. } => {
                let hint = "add the snapshot alone with `--no-restore`".into();
                Error::WrongState { action, kind, name, state, hint }
            }
            e => e,
        })
    }

    /// The snapshot that an increment starts from.
    fn parent_of(&self, spark: &SparkId, header: &Header) -> Result<Parent> {
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
        let record = self.snapshot_record(spark, &name)?;
        unaltered(&SnapshotPaths(&dir).root(), &copy)?;
        Ok(Parent { dir, record, _lock: lock })
    }

    /// The snapshot that was received of another one, and its subvolume's UUID.
    fn copy_of(&self, spark: &SparkId, point: &Point) -> Result<Option<(Name, String)>> {
        let all = self.received(spark)?.into_iter();
        let mut all = all.filter_map(|(name, record)| Some((name, record.source?)));
        let found = all.find(|(_, source)| source.id == point.id && source.uuid == point.uuid);
        Ok(found.map(|(name, source)| (name, source.copy)))
    }

    /// The snapshots that a spark has received, the newest first.
    fn received(&self, spark: &SparkId) -> Result<Vec<(Name, SnapshotRecord)>> {
        let mut all: Vec<(Name, SnapshotRecord)> = Vec::new();
        for name in names_in(&SparkPaths(&self.dir(spark)).snapshots())? {
            let path = SnapshotPaths(&self.snapshot_dir(spark, &name)).record();
            // A damaged one is nobody's parent, and no reason to refuse another.
            if let Ok(Some(record)) = record::read::<SnapshotRecord>(&path)
                && record.source.is_some()
            {
                all.push((name, record));
            }
        }
        all.sort_by_key(|(_, record)| std::cmp::Reverse(record.created));
        Ok(all)
    }

    /// What a stream's volumes are called here: as before if they have come before, else as nobody's is.
    fn local_names(
        &self,
        spark: &SparkId,
        drafts: &Drafts,
        known: &[(Name, SnapshotRecord)],
    ) -> Result<Vec<Name>> {
        let known = || known.iter().flat_map(|(_, record)| held(record));
        let mut names: Vec<Name> = Vec::with_capacity(drafts.volumes.len());
        for (super::Volume { attached, .. }, _) in &drafts.volumes {
            let same = |kept: &&Kept| kept.source.as_ref().is_some_and(|s| s.volume == attached.volume);
            let taken =
                |name: &Name| names.contains(name) || known().any(|kept| kept.attached.volume == *name);
            let name = match known().find(same) {
                Some(kept) if !names.contains(&kept.attached.volume) => kept.attached.volume.clone(),
                _ => self.free_name(spark, &attached.volume, taken)?,
            };
            names.push(name);
        }
        Ok(names)
    }
}

fn has(opened: &Opened, kept: &Kept) -> bool {
    opened.record.options.volumes.iter().any(|had| had.volume == kept.attached.volume)
}

/// Says which volumes of a snapshot its spark does not have, and how it gets them.
fn tell_new(opened: &Opened, snapshot: &Name, record: &SnapshotRecord, observer: &dyn Observer) {
    let spark = &opened.id;
    for Kept { attached, .. } in held(record).filter(|kept| !has(opened, kept)) {
        let volume = &attached.volume;
        observer.notice(&format!(
            "`{spark}` has no data volume `{volume}`, which is in the snapshot only: attach one of that name, and restore `{snapshot}`"
        ));
    }
}

/// The record of a spark that comes with a stream.
fn record_of(header: Header, observer: &dyn Observer) -> Result<SparkRecord> {
    let id = Id::generate();
    let super::Spark { name, id: origin, options } = header.spark;
    Ok(SparkRecord {
        version: FORMAT,
        oci_id: id.to_string(),
        id,
        created: chrono::Utc::now(),
        origin: Origin::Received { name, id: origin, snapshot: header.snapshot.name },
        options: usable(options, observer)?,
        ephemeral: false,
        address: None,
        rest: Default::default(),
    })
}

/// The volumes that a new spark gets: copies of those in the received snapshot.
fn copies_of(drafts: &Drafts, kept: &SnapshotRecord, dir: &Path) -> Vec<Copied> {
    let copy = |((volume, _), kept): (&(super::Volume, _), &Kept)| Copied {
        attached: volume.attached.clone(),
        source: SnapshotPaths(dir).volume(&kept.attached.volume),
    };
    drafts.volumes.iter().zip(held(kept)).map(copy).collect()
}

/// Says what the volumes are called here, and which have not come.
fn tell_volumes(had: &[Attached], kept: &SnapshotRecord, observer: &dyn Observer) {
    let sent = |kept: &Kept| kept.source.as_ref().map(|source| source.volume.clone());
    for kept in held(kept) {
        if let Some(sent) = sent(kept).filter(|sent| *sent != kept.attached.volume) {
            observer.notice(&format!("data volume `{sent}` is `{}` here", kept.attached.volume));
        }
    }
    for Attached { volume, .. } in had {
        if held(kept).all(|kept| sent(kept).as_ref() != Some(volume)) {
            observer.notice(&format!("left out data volume `{volume}`: the stream does not hold it"));
        }
    }
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
    if let Some(bundle) = options.bundle.take_if(|b| !["default", HARDENED].contains(&b.as_str())) {
        observer.notice(&format!("left out the bundle template `{bundle}`: it is of the host it came from"));
    }
    // A stranger's reference would have this host fetch its own secrets for what the stranger runs.
    for (key, secret) in std::mem::take(&mut options.secrets) {
        observer.notice(&format!(
            "left out the secret {key}, which was {}: give it with `spark secrets set --spark`",
            secret.reference
        ));
    }
    // It names the repository that `pull` writes into, which is another host's.
    if let Some(clone) = options.clone.take() {
        let inside = clone.path.display();
        observer.notice(&format!(
            "left out where the clone in {inside} came from: `spark pull` cannot fetch it back"
        ));
    }
    options.chosen_ports.clear();
    let ports = port::ranges(&std::mem::take(&mut options.ports));
    if !ports.is_empty() {
        let ports = ports.join(", ");
        observer.notice(&format!("left out what it published ({ports}): ports are of the host it came from"));
    }
    if options.shared == Shared::Rw {
        options.shared = Shared::Default;
        observer.notice(
            "left out that /spark/bin and /spark/all are writable: other projects run what is in them",
        );
    }
    if std::mem::take(&mut options.allow_host) {
        observer.notice("left out that it may reach the host: it was another one");
    }
    Ok(options)
}
