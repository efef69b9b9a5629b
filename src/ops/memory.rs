//! Who was killed because no memory was left: told while it can be, and kept in the log when the group goes.

use super::Sparks;
use super::spark::SparkId;
use crate::bundle::spec::cgroup;
use crate::domain::limits::size;
use crate::domain::name::SparkRef;
use crate::domain::spark::Id;
use crate::error::Result;
use crate::runtime::cgroup::Cgroup;
use crate::runtime::log;

impl Sparks {
    /// Processes that the kernel killed for want of memory, since the spark last started.
    pub fn oom_kills(&self, spark: &SparkRef) -> Result<u64> {
        let record = self.record(&self.resolve(spark)?)?;
        Ok(Cgroup::new(&cgroup(&record.id)).oom_kills().unwrap_or_default())
    }

    /// Completes a spark's log before its group is removed: waits for what its commands wrote last, and writes down who was
    /// killed, since that is counted in the group. A crash between the two has it written twice.
    pub(crate) fn complete_log(&self, id: &Id) {
        let path = cgroup(id);
        let group = Cgroup::new(&path);
        log::wait_end(&path);
        let Some(kills @ 1..) = group.oom_kills() else { return };
        let Some(entry) = self.pool.find_container(id.as_str()).ok().flatten() else { return };
        let limit = group.memory_limit();
        let within = limit.map(|bytes| format!(" with a limit of {}", size(bytes))).unwrap_or_default();
        let spark = SparkId { project: entry.project, name: entry.name };
        if let Err(e) = self.note_in_log(&spark, &format!("out of memory{within}: killed {kills}")) {
            tracing::warn!("{e}");
        }
    }
}
