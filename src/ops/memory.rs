//! Who was killed because no memory was left: told while it can be, and kept in the log when the group goes.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use super::Sparks;
use super::spark::SparkId;
use crate::bundle::spec::cgroup;
use crate::domain::limits::size;
use crate::domain::name::SparkRef;
use crate::domain::place::SparkPaths;
use crate::domain::spark::Id;
use crate::error::Result;
use crate::runtime::cgroup::Cgroup;

impl Sparks {
    /// Processes that the kernel killed for want of memory, since the spark last started.
    pub fn oom_kills(&self, spark: &SparkRef) -> Result<u64> {
        let record = self.record(&self.resolve(spark)?)?;
        Ok(Cgroup::new(&cgroup(&record.id)).oom_kills().unwrap_or_default())
    }

    /// Writes into a spark's log what is gone with its group. Called before that is removed; a crash between the two has it
    /// written twice.
    pub(crate) fn note_killed(&self, id: &Id) {
        let group = Cgroup::new(&cgroup(id));
        let Some(kills @ 1..) = group.oom_kills() else { return };
        let Some(entry) = self.pool.find_container(id.as_str()).ok().flatten() else { return };
        let log = SparkPaths(&self.dir(&SparkId { project: entry.project, name: entry.name })).log();
        let limit = group.limits(&[]).memory;
        let within = limit.map(|bytes| format!(" with a limit of {}", size(bytes))).unwrap_or_default();
        let line = format!("spark: out of memory{within}: killed {kills}\n");
        let file = OpenOptions::new().append(true).create(true).mode(0o622).open(&log);
        if let Err(e) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            tracing::warn!("cannot write {}: {e}", log.display());
        }
    }
}
