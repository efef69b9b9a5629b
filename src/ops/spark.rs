//! A spark, found and locked: what every operation on one begins with.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::Sparks;
use crate::bundle::spec::cgroup;
use crate::domain::name::{Name, SparkRef};
use crate::domain::place::SparkPaths;
use crate::domain::spark::{Id, SparkRecord, State};
use crate::error::{Error, Result};
use crate::pool::{btrfs, names_in, record};
use crate::runtime::live::{self, Live, Stillness};
use crate::runtime::youki::Handle;
use crate::sys::flock::Mode;

/// A spark, by project and name.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SparkId {
    pub project: Name,
    pub name: Name,
}

impl SparkId {
    /// The same as a reference, which means this spark wherever the caller is.
    pub(crate) fn reference(&self) -> SparkRef {
        SparkRef { project: Some(self.project.clone()), name: self.name.clone() }
    }
}

impl fmt::Display for SparkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// A locked spark and its record.
#[derive(Debug)]
pub(crate) struct Opened {
    pub id: SparkId,
    pub dir: PathBuf,
    pub record: SparkRecord,
    /// Held as long as this is.
    pub lock: OwnedFd,
}

impl Opened {
    /// Fails if the root filesystem is not what it should be.
    pub(crate) fn refuse_damaged(&self) -> Result<()> {
        refuse_damaged(&self.id, &SparkPaths(&self.dir).root())
    }
}

/// Fails if a spark's root filesystem is not what it should be.
pub(crate) fn refuse_damaged(spark: &SparkId, root: &Path) -> Result<()> {
    match damage_of(root) {
        None => Ok(()),
        Some(why) => Err(Error::Corrupt {
            path: root.to_owned(),
            why: why.into(),
            hint: Some(format!(
                "go back to one of `spark snapshot list {0}`, or remove what is left with `spark delete {0}`",
                spark.name
            )),
        }),
    }
}

/// What is wrong with a root filesystem.
pub(crate) fn damage_of(root: &Path) -> Option<&'static str> {
    if btrfs::is_subvolume(root) {
        None
    } else if root.symlink_metadata().is_ok() {
        Some("the root filesystem is not a subvolume")
    } else {
        Some("the root filesystem is missing")
    }
}

impl Sparks {
    /// The spark that a reference means.
    ///
    /// # Errors
    /// `not_found`, with names that look alike.
    pub fn resolve(&self, spark: &SparkRef) -> Result<SparkId> {
        let id = SparkId { project: self.project_of(spark)?, name: spark.name.clone() };
        if self.dir(&id).is_dir() { Ok(id) } else { Err(self.no_such_spark(&id.project, &id.name)) }
    }

    /// All sparks of a project, by name.
    pub(crate) fn sparks_of(&self, project: &Name) -> Result<Vec<SparkId>> {
        let names = names_in(&self.pool.paths.sparks(project))?;
        Ok(names.into_iter().map(|name| SparkId { project: project.clone(), name }).collect())
    }

    pub(crate) fn dir(&self, spark: &SparkId) -> PathBuf {
        self.pool.paths.spark(&spark.project, &spark.name)
    }

    /// Reads a record, without a lock: what it says may be old, but is whole.
    pub(crate) fn record(&self, spark: &SparkId) -> Result<SparkRecord> {
        let dir = self.dir(spark);
        let path = SparkPaths(&dir).record();
        let damaged = |path: PathBuf, why: String| {
            let root = SparkPaths(&dir).root();
            let hint = format!(
                "its files are in {}; remove it with `spark delete {}/{}`",
                root.display(),
                spark.project,
                spark.name
            );
            Error::Corrupt { path, why, hint: Some(hint) }
        };
        match record::read(&path) {
            Ok(Some(record)) => Ok(record),
            Ok(None) if dir.is_dir() => Err(damaged(path, "it is missing".into())),
            Ok(None) => Err(self.no_such_spark(&spark.project, &spark.name)),
            Err(Error::Corrupt { path, why, hint: None }) => Err(damaged(path, why)),
            Err(e) => Err(e),
        }
    }

    /// Locks a spark, and finishes first a restore of it that was killed. Every operation that reads or writes a spark's files
    /// begins here: else it would find some of them restored and others not.
    ///
    /// # Errors
    /// `not_found`, and those of the restore.
    pub(crate) fn lock_spark(&self, spark: &SparkId, mode: Mode) -> Result<OwnedFd> {
        let lock = |mode| {
            let locked = self.pool.lock(&self.dir(spark), mode)?;
            locked.ok_or_else(|| self.no_such_spark(&spark.project, &spark.name))
        };
        let mut held = lock(mode)?;
        while self.is_unsettled(spark) {
            drop(held);
            let alone = lock(Mode::Exclusive)?;
            self.settle(spark)?;
            drop(alone);
            held = lock(mode)?;
        }
        Ok(held)
    }

    /// Locks a spark and reads its record.
    pub(crate) fn open_spark(&self, spark: &SparkId, mode: Mode) -> Result<Opened> {
        let dir = self.dir(spark);
        let lock = self.lock_spark(spark, mode)?;
        let record = self.record(spark)?;
        if self.let_go(&record.id)? {
            tracing::debug!(%spark, "it was held still by a snapshot that was killed");
        }
        Ok(Opened { id: spark.clone(), dir, record, lock })
    }

    pub(crate) fn handle(&self, record: &SparkRecord) -> Handle {
        Handle {
            id: record.oci_id.clone(),
            oci: self.pool.place.oci(),
            cgroup: cgroup(&record.id),
            before: Vec::new(),
        }
    }

    /// The container of a spark of which nothing but its id is known.
    pub(crate) fn handle_of(&self, id: &Id) -> Handle {
        Handle { id: id.to_string(), oci: self.pool.place.oci(), cgroup: cgroup(id), before: Vec::new() }
    }

    pub(crate) fn bundle(&self, record: &SparkRecord) -> PathBuf {
        self.pool.place.bundle(&record.id)
    }

    pub(crate) fn live(&self, record: &SparkRecord) -> Option<Live> {
        live::read(&self.bundle(record))
    }

    /// Makes libcontainer's records of a spark that runs anew if a command was killed over them.
    pub(crate) fn mend(&self, record: &SparkRecord) -> Result<()> {
        let live = self.live(record);
        live.map_or(Ok(()), |live| self.handle(record).mend(&self.bundle(record), &live))
    }

    /// Whether a spark runs, and is to go on doing so: a stop that was killed has told it to end.
    pub(crate) fn runs_on(&self, record: &SparkRecord) -> bool {
        self.state(record) == State::Running && !live::is_stopping(&self.bundle(record))
    }

    /// What a spark is doing.
    pub(crate) fn state(&self, record: &SparkRecord) -> State {
        match self.live(record) {
            None => State::Stopped,
            // Not while a snapshot is being taken of it.
            Some(_) if Stillness::of(&self.bundle(record)).is_begun() => State::Running,
            Some(_) if live::is_frozen(&cgroup(&record.id)) => State::Paused,
            Some(_) => State::Running,
        }
    }
}
