//! `create`: a new spark, from a base.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::spark::SparkId;
use super::{Observer, Sparks, delete};
use crate::bundle::spec;
use crate::domain::FORMAT;
use crate::domain::name::{Name, SparkRef};
use crate::domain::options::SparkOptions;
use crate::domain::place::SparkPaths;
use crate::domain::spark::{Id, Origin, SparkRecord};
use crate::error::{Error, Result};
use crate::pool::btrfs;
use crate::pool::index::{Ephemeral, Identity};
use crate::sys::flock::Mode;
use crate::sys::process::ProcessId;
use crate::{fault, sys};

/// What to make.
#[derive(Debug, Clone)]
pub struct Request {
    /// None for an ephemeral spark, which ends with this process.
    pub name: Option<SparkRef>,
    pub base: Option<Name>,
    pub options: SparkOptions,
    /// Whether to start it too.
    pub start: bool,
}

/// What would be made.
#[derive(Debug, serde::Serialize)]
pub struct Plan {
    pub project: Name,
    pub name: Option<Name>,
    pub base: Name,
    pub options: SparkOptions,
    /// The OCI configuration. Ids of users are claimed only at the start: these are an example.
    pub config: serde_json::Value,
}

impl Sparks {
    /// Makes a spark and starts it. Until this returns `Ok` there is all of it or nothing.
    pub fn create(&self, request: Request, observer: &dyn Observer) -> Result<SparkId> {
        let id = Id::generate();
        let mut spark = self.name_new(&request, &id)?;
        if request.name.is_some() && self.dir(&spark).exists() {
            return Err(taken(&spark));
        }
        let options = resolved(request.options.clone())?;
        // Two repositories of one name that begin at once: one of them gets another project than it looked like.
        spark.project = self.ensure_project_of(
            &request.name.clone().unwrap_or(SparkRef { project: None, name: spark.name.clone() }),
        )?;
        let (base, base_record, base_root) = self.base_for(&request, observer)?;
        let record = SparkRecord {
            version: FORMAT,
            oci_id: id.to_string(),
            id,
            created: chrono::Utc::now(),
            origin: Origin::Base { name: base, id: base_record.id },
            options,
            ephemeral: request.name.is_none(),
            rest: Default::default(),
        };
        let identity =
            Identity { project: spark.project.clone(), name: spark.name.clone(), id: record.id.clone() };
        if record.ephemeral {
            // Before it exists: whatever happens from here on, somebody knows that it has to go.
            let owner =
                ProcessId::of(std::process::id() as i32).map_err(Error::sys("identify this process"))?;
            self.pool.index_ephemeral(&Ephemeral { spark: identity.clone(), owner })?;
        }
        let made = fault::point("create.indexed")
            .and_then(|()| self.make(&spark, &record, &base_root, request.start));
        if made.is_err() && record.ephemeral && !self.dir(&spark).exists() {
            self.pool.unindex_ephemeral(&record.id)?;
        }
        made.map(|()| spark)
    }

    fn make(&self, spark: &SparkId, record: &SparkRecord, base_root: &Path, start: bool) -> Result<()> {
        let dir = self.dir(spark);
        let stage = self.pool.stage()?;
        fault::point("create.staged")?;
        stage.write("spark.json", record)?;
        fault::point("create.after-record")?;
        btrfs::snapshot(base_root, &SparkPaths(stage.path()).root())?;
        fault::point("create.after-snapshot")?;
        // Shared, so that the project cannot be deleted from under it.
        let project = self.pool.paths.project(&spark.project);
        let Some(held) = self.pool.lock(&project, Mode::Shared)? else {
            return Err(Error::Busy {
                what: format!("project `{}`", spark.project),
                why: "it is being deleted".into(),
            });
        };
        let lock = stage.publish(&dir).map_err(|e| match &e {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => taken(spark),
            _ => e,
        })?;
        let Err(first) = self.begin(spark, record, start, &[lock.as_fd(), held.as_fd()]) else {
            return Ok(());
        };
        // Under the lock that it appeared with: nobody has begun to use it, or has put another one in its place.
        match self.delete_locked(spark, delete::Options { force: true, now: true }) {
            Ok(_) => Err(first),
            Err(undo) => Err(Error::Undo { first: first.into(), undo: undo.into() }),
        }
    }

    /// What follows the one rename.
    fn begin(
        &self,
        spark: &SparkId,
        record: &SparkRecord,
        start: bool,
        locks: &[BorrowedFd<'_>],
    ) -> Result<()> {
        fault::point("create.after-publish")?;
        let identity =
            Identity { project: spark.project.clone(), name: spark.name.clone(), id: record.id.clone() };
        self.pool.index_spark(&record.oci_id, &identity)?;
        // The name becomes durable while the container starts.
        let starting = start.then(|| self.launch(spark, record, locks)).transpose()?;
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
        let options = resolved(request.options.clone())?;
        // Not the base that `create` would make first: a plan makes nothing.
        let (base, _, _) = self.find_base(request.base.as_ref())?;
        let dir = self.pool.place.bundle(&id);
        let root = SparkPaths(&self.dir(&spark)).root();
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
        };
        let config = serde_json::to_value(spec::compose(&input)?.spec)
            .map_err(|e| Error::Sys { action: "show config.json", source: e.into() })?;
        let name = request.name.as_ref().map(|_| spark.name.clone());
        Ok(Plan { project: spark.project, name, base, options, config })
    }

    fn name_new(&self, request: &Request, id: &Id) -> Result<SparkId> {
        Ok(match &request.name {
            Some(spark) => SparkId { project: self.project_of(spark)?, name: spark.name.clone() },
            None => {
                // The random half of the id: two at one instant differ.
                let name = format!("tmp-{}", id.as_str()[16..].to_ascii_lowercase());
                SparkId { project: self.project()?, name: name.parse()? }
            }
        })
    }

    fn base_for(
        &self,
        request: &Request,
        observer: &dyn Observer,
    ) -> Result<(Name, crate::domain::base::BaseRecord, std::path::PathBuf)> {
        if request.base.is_none() && self.context.base.is_none() {
            self.ensure_default_base(observer)?;
        }
        self.find_base(request.base.as_ref())
    }
}

fn taken(spark: &SparkId) -> Error {
    Error::Exists { kind: "spark", name: spark.name.to_string(), in_project: Some(spark.project.to_string()) }
}

/// Host paths without symbolic links: resolved once, by who makes the spark. What runs in a spark may be able to
/// change a link on the way, and must not choose with it what is mounted at the next start.
fn resolved(mut options: SparkOptions) -> Result<SparkOptions> {
    for mount in &mut options.mounts {
        mount.src = std::fs::canonicalize(&mount.src).map_err(Error::io("mount", &mount.src))?;
    }
    Ok(options)
}
