//! `delete`: into the trash, or away at once.

use std::time::Duration;

use super::Sparks;
use super::spark::SparkId;
use crate::domain::name::SparkRef;
use crate::domain::spark::{Id, SparkRecord, State, Time};
use crate::error::{Error, Result};
use crate::fault;
use crate::pool::trash;
use crate::runtime::live;
use crate::sys::flock::Mode;

/// How to delete.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Also a spark that runs.
    pub force: bool,
    /// Not into the trash.
    pub now: bool,
    /// How long it can be brought back.
    pub keep: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { force: false, now: false, keep: trash::KEEP }
    }
}

/// What became of it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Deleted {
    /// Until when it can be brought back.
    pub until: Option<Time>,
}

impl Sparks {
    /// Deletes a spark. A broken one too: that is how to get rid of it.
    pub fn delete(&self, spark: &SparkRef, options: Options) -> Result<Deleted> {
        let spark = self.resolve(spark)?;
        let Some(_lock) = self.pool.lock(&self.dir(&spark), Mode::Exclusive)? else {
            return Err(self.no_such_spark(&spark.project, &spark.name));
        };
        self.delete_locked(&spark, options)
    }

    /// The caller holds the spark's exclusive lock.
    pub(crate) fn delete_locked(&self, spark: &SparkId, options: Options) -> Result<Deleted> {
        match self.record(spark) {
            Ok(record) => {
                refuse_unless_stopped(spark, self.state(&record), options)?;
                self.end(&record, Duration::ZERO)?;
                fault::point("delete.ended")?;
                if self.is_unsettled(spark)
                    && let Err(e) = self.settle(spark)
                {
                    // It goes all the same; what it was about to restore in a volume stays undone.
                    tracing::warn!(%spark, "cannot finish a restore: {e}");
                }
                // An ephemeral one was to be gone anyway.
                let deleted =
                    self.discard(spark, Options { now: options.now || record.ephemeral, ..options })?;
                fault::point("delete.discarded")?;
                self.forget(&record)?;
                self.give_address_back(spark, &record);
                Ok(deleted)
            }
            Err(Error::Corrupt { .. }) => {
                // Its container may run all the same, and nobody would find that again.
                let ids = self.pool.containers_of(&spark.project, &spark.name)?;
                for id in &ids {
                    if live::read(&self.pool.place.bundle(id)).is_some() {
                        refuse_unless_stopped(spark, State::Running, options)?;
                    }
                    self.end_container(id, Duration::ZERO)?;
                }
                let deleted = self.discard(spark, options)?;
                ids.iter().for_each(|id| self.pool.unindex_spark(id.as_str()));
                Ok(deleted)
            }
            Err(e) => Err(e),
        }
    }

    fn discard(&self, spark: &SparkId, options: Options) -> Result<Deleted> {
        let dir = self.dir(spark);
        if options.now {
            fault::point("delete-now.before-rename")?;
            self.pool.remove(&dir, || fault::point("delete-now.after-rename"))?;
            return Ok(Deleted { until: None });
        }
        let entry = self.pool.discard(&dir, &spark.project, &spark.name, options.keep)?;
        Ok(Deleted { until: Some(entry.origin.until) })
    }

    fn forget(&self, record: &SparkRecord) -> Result<()> {
        self.pool.unindex_spark(&record.oci_id);
        self.nets().leave(&record.id)?;
        if record.ephemeral {
            self.pool.unindex_ephemeral(&record.id)?;
        }
        Ok(())
    }

    /// Removes the ephemeral spark with this id and everything of it, whatever it is doing and whatever its name is by
    /// now. One that is none by its own record stays: the index may say anything.
    fn remove_by_id(&self, id: &Id) -> Result<()> {
        // Renamed in between, it is looked for again.
        while let Some(found) = self.pool.find_container(id.as_str())? {
            let spark = SparkId { project: found.project, name: found.name };
            let Some(_lock) = self.pool.lock(&self.dir(&spark), Mode::Exclusive)? else { continue };
            let Ok(record) = self.record(&spark) else { continue };
            if record.id == *id && !record.ephemeral {
                return Ok(());
            }
            if record.id == *id {
                return self
                    .delete_locked(&spark, Options { force: true, now: true, ..Options::default() })
                    .map(drop);
            }
        }
        Ok(())
    }

    /// Removes a spark that was to end with its command.
    pub fn remove_ephemeral(&self, spark: &SparkId) -> Result<()> {
        match self.record(spark) {
            Ok(record) if record.ephemeral => self.remove_by_id(&record.id),
            // Somebody has removed it or given it another name: then `collect_abandoned` finds it by its id.
            Err(Error::NotFound { .. }) | Ok(_) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Removes the sparks whose command was killed. Costs one look into a directory where there are none.
    pub fn collect_abandoned(&self) -> Result<()> {
        for left in self.pool.abandoned()? {
            self.remove_abandoned(&left.id)?;
        }
        Ok(())
    }

    pub(super) fn remove_abandoned(&self, id: &Id) -> Result<()> {
        self.remove_by_id(id)?;
        self.pool.unindex_ephemeral(id)
    }
}

fn refuse_unless_stopped(spark: &SparkId, state: State, options: Options) -> Result<()> {
    if !matches!(state, State::Running | State::Paused) || options.force {
        return Ok(());
    }
    Err(Error::WrongState {
        action: "delete",
        kind: "spark",
        name: spark.name.to_string(),
        state: state.to_string(),
        hint: format!("stop it first with `spark stop {0}`, or use `spark delete -f {0}`", spark.name),
    })
}
