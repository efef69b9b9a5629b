//! What a container's cgroup holds, has used, and may use.

use libcgroups::common::{
    AnyCgroupManager, CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager,
};
use libcgroups::stats::{BlkioDeviceStat, MemoryData, Stats};
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::scope;
use super::state::{Container, State};
use crate::error::{Error, Result};
use crate::runtime::cgroup::Cgroup;
use crate::runtime::live;
use crate::sys::flock::Mode;

impl Container {
    fn manager(&self, action: &'static str) -> Result<AnyCgroupManager> {
        create_cgroup_manager(CgroupConfig {
            cgroup_path: self.cgroup()?,
            systemd_cgroup: false,
            container_name: self.id.clone(),
        })
        .map_err(|e| self.failed(action, &e))
    }

    /// Its processes, as the host numbers them.
    pub fn processes(&self) -> Result<Vec<i32>> {
        match self.state()? {
            State::Creating => Err(self.refused("look into", State::Creating)),
            _ => {
                let handle = self.handle()?;
                Ok(live::processes_beside(&handle.cgroup, &handle.before))
            }
        }
    }

    /// Changes what it may use.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        let _lock = self.lock(Mode::Exclusive)?;
        match self.state()? {
            State::Stopped => return Err(self.refused("update", State::Stopped)),
            State::Creating => return Err(self.refused("update", State::Creating)),
            _ => {}
        }
        self.apply(resources)
    }

    /// Limits it while it is made: `resources` is the specification's `linux.resources`, or nothing.
    pub(super) fn limit(&self, resources: &Value) -> Result<()> {
        let resources: Option<LinuxResources> = serde_json::from_value(resources.clone())
            .map_err(|e| Error::usage(format!("linux.resources is not as the specification has it: {e}")))?;
        self.apply(&resources.unwrap_or_default())
    }

    fn apply(&self, resources: &LinuxResources) -> Result<()> {
        let options =
            ControllerOpt { resources, disable_oom_killer: false, oom_score_adj: None, freezer_state: None };
        self.manager("update")?.apply(&options).map_err(|e| self.failed("update", &e))?;
        let group = self.cgroup()?;
        match (scope::of(&group), Cgroup::new(&group).unified()) {
            (Some(name), Some(dir)) => scope::tell(&name, &dir),
            _ => Ok(()),
        }
    }

    /// What it has used, as runc's `events --stats` has it: the object `data`.
    pub fn stats(&self) -> Result<Value> {
        match self.state()? {
            State::Running | State::Paused | State::Created => {}
            other => return Err(self.refused("look into", other)),
        }
        let stats = self.manager("look into")?.stats().map_err(|e| self.failed("look into", &e))?;
        Ok(as_runc(&stats))
    }
}

fn as_runc(stats: &Stats) -> Value {
    let (usage, throttling) = (&stats.cpu.usage, &stats.cpu.throttling);
    let blkio = &stats.blkio;
    let huge = stats.hugetlb.iter().map(|(size, h)| {
        (size.clone(), json!({"usage": h.usage, "max": h.max_usage, "failcnt": h.fail_count}))
    });
    json!({
        "cpu": {
            "usage": {
                "total": usage.usage_total,
                "percpu": usage.per_core_usage_total,
                "kernel": usage.usage_kernel,
                "user": usage.usage_user,
            },
            "throttling": {
                "periods": throttling.periods,
                "throttledPeriods": throttling.throttled_periods,
                "throttledTime": throttling.throttled_time,
            },
        },
        "memory": {
            "cache": stats.memory.cache,
            "usage": memory(&stats.memory.memory),
            "swap": memory(&stats.memory.memswap),
            "kernel": memory(&stats.memory.kernel),
            "kernelTCP": memory(&stats.memory.kernel_tcp),
            "raw": stats.memory.stats,
        },
        "pids": {"current": stats.pids.current, "limit": stats.pids.limit},
        "blkio": {
            "ioServiceBytesRecursive": devices(&blkio.service_bytes),
            "ioServicedRecursive": devices(&blkio.serviced),
            "ioQueueRecursive": devices(&blkio.queued),
            "ioServiceTimeRecursive": devices(&blkio.service_time),
            "ioWaitTimeRecursive": devices(&blkio.wait_time),
            "ioMergedRecursive": devices(&blkio.merged),
            "ioTimeRecursive": devices(&blkio.time),
            "sectorsRecursive": devices(&blkio.sectors),
        },
        "hugetlb": huge.collect::<serde_json::Map<_, _>>(),
    })
}

fn memory(data: &MemoryData) -> Value {
    json!({"limit": data.limit, "usage": data.usage, "max": data.max_usage, "failcnt": data.fail_count})
}

fn devices(stats: &[BlkioDeviceStat]) -> Vec<Value> {
    let one = |d: &BlkioDeviceStat| json!({"major": d.major, "minor": d.minor, "op": d.op_type.as_deref().unwrap_or_default(), "value": d.value});
    stats.iter().map(one).collect()
}
