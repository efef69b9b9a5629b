//! `create`: a new spark, from a base or from another spark.

use std::os::fd::{AsFd, BorrowedFd};

use super::data::{Copied, Held, not_copied};
use super::origin::Found;
use super::secrets::Given;
use super::spark::SparkId;
use super::{Observer, Sparks, clone, defaults, delete, identity, image, service};
use crate::bundle::spec;
use crate::domain::FORMAT;
use crate::domain::name::{Name, SparkRef};
use crate::domain::options::{Changes, SparkOptions};
use crate::domain::place::SparkPaths;
use crate::domain::port::Published;
use crate::domain::spark::{Id, Origin, SparkRecord};
use crate::error::{Error, Result};
use crate::pool::btrfs;
use crate::pool::index::{Ephemeral, Identity};
use crate::pool::stage::Stage;
use crate::runtime::cgroup;
use crate::sys::process::ProcessId;
use crate::{fault, sys};

pub use super::origin::Source;

/// What to make.
#[derive(Debug, Clone)]
pub struct Request {
    /// None for an ephemeral spark, which ends with this process.
    pub name: Option<SparkRef>,
    pub source: Source,
    /// Laid over the options of a spark that it starts from.
    pub changes: Changes,
    /// Whether to start it too.
    pub start: bool,
}

/// A spark to make of a record.
pub(super) struct New<'a> {
    pub record: &'a SparkRecord,
    /// Who hears of the clone that is put into it, if it gets one: a fork has its origin's already.
    pub cloning: Option<&'a dyn Observer>,
    pub start: bool,
    /// The values of its secrets, if it is to start.
    pub given: Given,
}

/// A spark that is staged, and what belongs to it.
pub(super) struct Publication<'a> {
    pub record: &'a SparkRecord,
    pub start: bool,
    pub given: Given,
    /// The volumes that it has, which must not go meanwhile.
    pub volumes: &'a Held,
    /// Those that it gets copies of.
    pub copies: &'a [Copied],
}

/// What would be made.
#[derive(Debug, serde::Serialize)]
pub struct Plan {
    pub project: Name,
    pub name: Option<Name>,
    /// The base or spark that it starts from.
    pub from: String,
    pub options: SparkOptions,
    /// The OCI configuration. Ids of users are claimed only at the start: these are an example.
    pub config: serde_json::Value,
}

impl Sparks {
    /// Makes a spark and starts it. Until this returns `Ok` there is all of it or nothing.
    pub fn create(&self, request: Request, observer: &dyn Observer) -> Result<SparkId> {
        let _room = self.room()?;
        let id = Id::generate();
        let mut spark = self.name_new(&request, &id)?;
        if request.name.is_some() && self.dir(&spark).exists() {
            return Err(taken(&spark));
        }
        let mut changes = resolved(request.changes)?;
        self.settle_ports(&mut changes, &id)?;
        let mut found = self.find_source(&request.source, observer)?;
        self.check_new(&mut changes, &found)?;
        if changes.ports.iter().any(Published::is_open) {
            // For what the image exposes.
            self.settle_ports(&mut changes, &id)?;
        }
        // Two repositories of one name that begin at once: one of them gets another project than it looked like.
        spark.project = self.ensure_project_of(
            &request.name.clone().unwrap_or(SparkRef { project: None, name: spark.name.clone() }),
        )?;
        self.refuse_host_entries(&spark, &changes.add_host)?;
        let cloning = changes.clone.is_some().then_some(observer);
        let _moment = self.divide(&mut found, &spark.project, &changes)?;
        self.ensure_volumes(&spark.project, &changes.volumes, observer)?;
        let mut record = record_of(id, &found, changes, request.name.is_none());
        self.name_copies(&spark, &mut record, &found)?;
        let given = self.give_new(&spark.project, &record, request.start)?;
        self.give_address(&spark.project, &mut record)?;
        self.create_from(&spark, &New { record: &record, cloning, start: request.start, given }, &found)?;
        found.tell_copies(&record, observer);
        found.tell_ports(&record, observer);
        self.tell_published(&spark, request.start, observer);
        Ok(spark)
    }

    /// Checks the options of new sparks against what they start from and what this host can do, and adds a port of the host,
    /// which is to be chosen, for each that the image exposes, if that is wanted. Makes nothing.
    ///
    /// # Errors
    /// `usage`, or `not_supported` for what this host cannot do.
    pub(super) fn check_new(&self, changes: &mut Changes, found: &Found) -> Result<()> {
        changes.check_over(&found.options).map_err(Error::usage)?;
        self.publish_exposed(changes, found)?;
        let options = changes.clone().over(found.options.clone());
        self.pool.can_limit(options.limits.disk)?;
        service::check(&options)
    }

    /// The values of the secrets of a new spark, before anything of it is made.
    pub(super) fn give_new(&self, project: &Name, record: &SparkRecord, start: bool) -> Result<Given> {
        if start { self.give(project, &record.options) } else { Ok(Given::default()) }
    }

    /// Makes the spark of a record, whose project exists.
    pub(super) fn create_from(&self, spark: &SparkId, new: &New<'_>, found: &Found) -> Result<()> {
        let record = new.record;
        if record.ephemeral {
            // Before it exists: whatever happens from here on, somebody knows that it has to go.
            let owner =
                ProcessId::of(std::process::id() as i32).map_err(Error::sys("identify this process"))?;
            self.pool.index_ephemeral(&Ephemeral { spark: identity_of(spark, record), owner })?;
        }
        let made = fault::point("create.indexed").and_then(|()| self.make(spark, new, found));
        if made.is_err() && !self.is_there(spark, &record.id) {
            if record.ephemeral {
                self.pool.unindex_ephemeral(&record.id)?;
            }
            self.give_address_back(spark, record);
        }
        made?;
        if !new.start {
            return Ok(());
        }
        let Err(first) = self.run_service(spark, &record.options) else { return Ok(()) };
        let options = delete::Options { force: true, now: true, ..Default::default() };
        let reference = SparkRef { project: Some(spark.project.clone()), name: spark.name.clone() };
        match self.delete(&reference, options) {
            Ok(_) => Err(first),
            Err(undo) => Err(Error::Undo { first: first.into(), undo: undo.into() }),
        }
    }

    /// Whether what has a name is this very spark, and not one that somebody made meanwhile.
    fn is_there(&self, spark: &SparkId, id: &Id) -> bool {
        self.record(spark).map_or_else(|_| self.dir(spark).exists(), |there| there.id == *id)
    }

    fn make(&self, spark: &SparkId, new: &New<'_>, found: &Found) -> Result<()> {
        let record = new.record;
        let volumes = self.hold_volumes(spark, &not_copied(record, &found.copies))?;
        let stage = self.pool.stage()?;
        fault::point("create.staged")?;
        stage.write("spark.json", record)?;
        fault::point("create.after-record")?;
        let root = SparkPaths(stage.path()).root();
        let still = self.hold_still(found.at_work.as_ref())?;
        btrfs::snapshot(&found.root, &root)?;
        drop(still);
        self.pool.hold_to(&record.id, &SparkPaths(stage.path()), record.options.limits.disk)?;
        if matches!(record.origin, Origin::Spark { .. }) {
            identity::remove_host_keys(&root)?;
        }
        if matches!(record.origin, Origin::Base { .. }) {
            image::make_dirs(&record.options, &root)?;
        }
        self.stage_copies(record, &found.copies, &stage)?;
        fault::point("create.after-snapshot")?;
        if let Some(observer) = new.cloning {
            self.put_clone(record, &root, observer)?;
        }
        fault::point("create.after-clone")?;
        let (given, copies) = (new.given.clone(), &found.copies);
        let publication = Publication { record, start: new.start, given, volumes: &volumes, copies };
        self.publish_spark(stage, spark, &publication)
    }

    /// Gives what is staged its place, durably, and starts it if that is wanted. The project exists.
    pub(super) fn publish_spark(&self, stage: Stage, spark: &SparkId, what: &Publication<'_>) -> Result<()> {
        let record = what.record;
        let held = self.hold_project(&spark.project)?;
        let lock = stage.publish(&self.dir(spark)).map_err(|e| match &e {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => taken(spark),
            _ => e,
        })?;
        let locks: Vec<_> = [lock.as_fd(), held.as_fd()].into_iter().chain(what.volumes.locks()).collect();
        let Err(first) = self.begin(spark, what, &locks) else {
            return Ok(());
        };
        // Under the lock that it appeared with: nobody has begun to use it, or has put another one in its place.
        let copies = self.published(spark, record, what.copies);
        let options = delete::Options { force: true, now: true, ..Default::default() };
        match self.delete_locked(spark, options).and_then(|_| self.take_back_copies(&copies)) {
            Ok(()) => Err(first),
            Err(undo) => Err(Error::Undo { first: first.into(), undo: undo.into() }),
        }
    }

    /// What follows the one rename.
    fn begin(&self, spark: &SparkId, what: &Publication<'_>, locks: &[BorrowedFd<'_>]) -> Result<()> {
        let record = what.record;
        fault::point("create.after-publish")?;
        self.pool.index_spark(&record.oci_id, &identity_of(spark, record));
        self.publish_copies(spark, record)?;
        // The name becomes durable while the container starts.
        let launch = || self.launch(spark, record, locks, what.given.clone());
        let starting = what.start.then(launch).transpose()?;
        let sparks = self.pool.paths.sparks(&spark.project);
        let synced = sys::file::sync_dir(&sparks).map_err(Error::io("sync", &sparks));
        let started = starting.map(|s| s.wait()).transpose();
        synced.and(started)?;
        fault::point("create.started")
    }

    /// What [`create`](Sparks::create) would make.
    pub fn plan(&self, request: &Request) -> Result<Plan> {
        let id = Id::generate();
        let spark = self.name_new(request, &id)?;
        if request.name.is_some() && self.dir(&spark).exists() {
            return Err(taken(&spark));
        }
        let mut changes = resolved(request.changes.clone())?;
        self.settle_ports(&mut changes.clone(), &id)?;
        self.refuse_host_entries(&spark, &changes.add_host)?;
        // Not the base that `create` would make first: a plan makes nothing.
        let found = self.look_up(&request.source)?;
        self.check_new(&mut changes, &found)?;
        let options = changes.over(found.options);
        let dir = self.pool.place.bundle(&id);
        let root = SparkPaths(&self.dir(&spark)).root();
        let volumes = self.planned_volumes(&spark.project, &options.volumes);
        let disks = self.disks(&options.limits)?;
        let input = spec::Input {
            id: &id,
            project: &spark.project,
            name: &spark.name,
            options: &options,
            first_id: 0x7000_0000,
            dir: &dir,
            templates: &self.context.templates,
            root: &root,
            shared: self.shared_dirs(&spark.project),
            disks: &disks,
            defaults: defaults::of_host(),
            counts_swap: cgroup::counts_swap(),
            volumes: &volumes,
            resolv: "",
        };
        let config = serde_json::to_value(spec::compose(&input)?.spec)
            .map_err(|e| Error::Sys { action: "show config.json", source: e.into() })?;
        let name = request.name.as_ref().map(|_| spark.name.clone());
        Ok(Plan { project: spark.project, name, from: found.origin.to_string(), options, config })
    }

    fn name_new(&self, request: &Request, id: &Id) -> Result<SparkId> {
        Ok(match &request.name {
            Some(spark) => {
                spark.name.check_for_spark()?;
                SparkId { project: self.project_of(spark)?, name: spark.name.clone() }
            }
            None => {
                // The random half of the id: two at one instant differ.
                let name = format!("tmp-{}", id.as_str()[16..].to_ascii_lowercase());
                SparkId { project: self.project()?, name: name.parse()? }
            }
        })
    }
}

/// The record of a new spark.
pub(super) fn record_of(id: Id, found: &Found, changes: Changes, ephemeral: bool) -> SparkRecord {
    SparkRecord {
        version: FORMAT,
        oci_id: id.to_string(),
        id,
        created: chrono::Utc::now(),
        origin: found.origin.clone(),
        options: changes.over(found.options.clone()),
        ephemeral,
        address: None,
        rest: Default::default(),
    }
}

fn identity_of(spark: &SparkId, record: &SparkRecord) -> Identity {
    Identity { project: spark.project.clone(), name: spark.name.clone(), id: record.id.clone() }
}

pub(super) fn taken(spark: &SparkId) -> Error {
    Error::Exists { kind: "spark", name: spark.name.to_string(), in_project: Some(spark.project.to_string()) }
}

/// Host paths without symbolic links: resolved once, by who makes the spark. What runs in a spark may be able to
/// change a link on the way, and must not choose with it what is mounted at the next start.
pub(super) fn resolved(mut changes: Changes) -> Result<Changes> {
    refuse_twice(&changes)?;
    for mount in &mut changes.mounts {
        mount.src = std::fs::canonicalize(&mount.src).map_err(Error::io("mount", &mount.src))?;
    }
    clone::resolve(&mut changes)?;
    Ok(changes)
}

/// Two things at one place, or one volume at two: only the last would be seen, and nobody would know.
fn refuse_twice(changes: &Changes) -> Result<()> {
    for (n, volume) in changes.volumes.iter().enumerate() {
        let second = changes.volumes[..n].iter().find(|other| other.replaces(volume));
        // What is below a volume would be hidden by it: volumes are mounted last.
        let host = changes.mounts.iter().find(|mount| mount.dst.starts_with(&volume.path));
        if second.is_some() || host.is_some() {
            let other = second.map_or_else(|| "a directory of the host".to_owned(), |v| format!("`{v}`"));
            return Err(Error::usage(format!("`{volume}` cannot be together with {other}")));
        }
    }
    Ok(())
}
