//! `delete`: into the trash, or away at once.

use std::time::Duration;

use super::Sparks;
use super::spark::SparkId;
use crate::domain::name::SparkRef;
use crate::domain::spark::{SparkRecord, State, Time};
use crate::error::{Error, Result};
use crate::pool::trash;
use crate::sys::flock::Mode;

/// How to delete.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Also a spark that runs.
    pub force: bool,
    /// Not into the trash.
    pub now: bool,
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
        match self.record(&spark) {
            Ok(record) => {
                let state = self.state(&record);
                if matches!(state, State::Running | State::Paused) && !options.force {
                    return Err(Error::WrongState {
                        action: "delete",
                        kind: "spark",
                        name: spark.name.to_string(),
                        state: state.to_string(),
                        hint: format!(
                            "stop it first with `spark stop {0}`, or use `spark delete -f {0}`",
                            spark.name
                        ),
                    });
                }
                self.end(&record, Duration::ZERO)?;
                let deleted = self.discard(&spark, options.now)?;
                self.forget(&record)?;
                Ok(deleted)
            }
            Err(Error::Corrupt { .. }) => self.discard(&spark, options.now),
            Err(e) => Err(e),
        }
    }

    fn discard(&self, spark: &SparkId, now: bool) -> Result<Deleted> {
        let entry = self.pool.discard(&self.dir(spark), &spark.project, &spark.name, trash::KEEP)?;
        if now {
            self.pool.free(&entry)?;
        }
        Ok(Deleted { until: (!now).then_some(entry.origin.until) })
    }

    fn forget(&self, record: &SparkRecord) -> Result<()> {
        self.pool.unindex_spark(&record.oci_id)?;
        if record.ephemeral {
            self.pool.unindex_ephemeral(&record.id)?;
        }
        Ok(())
    }

    /// Removes a spark and everything of it, whatever it is doing.
    pub(crate) fn remove_now(&self, spark: &SparkId) -> Result<()> {
        let by_name = SparkRef { project: Some(spark.project.clone()), name: spark.name.clone() };
        self.delete(&by_name, Options { force: true, now: true }).map(drop)
    }

    /// Removes a spark that was to end with its command.
    pub fn remove_ephemeral(&self, spark: &SparkId) -> Result<()> {
        self.remove_now(spark)
    }

    /// Removes the sparks whose command was killed. Costs one look into a directory where there are none.
    pub fn collect_abandoned(&self) -> Result<()> {
        for left in self.pool.abandoned()? {
            let spark = SparkId { project: left.project.clone(), name: left.name.clone() };
            match self.record(&spark) {
                Ok(record) if record.id == left.id && record.ephemeral => self.remove_now(&spark)?,
                // Its command died before it existed, or somebody else has removed it.
                _ => self.pool.unindex_ephemeral(&left.id)?,
            }
        }
        Ok(())
    }
}
