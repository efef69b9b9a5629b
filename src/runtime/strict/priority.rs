//! `scheduler` and `ioPriority` of a process.

use std::io;

use oci_spec::runtime::{
    IOPriorityClass as Class, LinuxSchedulerFlag as Flag, LinuxSchedulerPolicy as Policy, Process, Scheduler,
};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::sys::schedule::{self, Schedule};

/// What a process that joins asks for. libcontainer sees to the first one's.
#[derive(Debug)]
pub(super) struct Priority {
    schedule: Option<Schedule>,
    io: Option<(u8, u8)>,
}

impl Priority {
    /// # Errors
    /// `usage` for what libcontainer refuses in a bundle too.
    pub(super) fn of(process: &Process) -> Result<Priority> {
        let io = process.io_priority().map(|io| {
            let level = u8::try_from(io.priority()).ok().filter(|level| *level < 8);
            let class = match io.class() {
                Class::IoprioClassRt => 1,
                Class::IoprioClassBe => 2,
                Class::IoprioClassIdle => 3,
            };
            let wrong = || Error::usage(format!("ioPriority.priority is from 0 to 7, not {}", io.priority()));
            level.map(|level| (class, level)).ok_or_else(wrong)
        });
        let schedule = process.scheduler().as_ref().map(schedule_of);
        Ok(Priority { schedule: schedule.transpose()?, io: io.transpose()? })
    }

    /// Takes effect on this process. Done where it is in its cgroup, which may have no share of real time, and before it
    /// is in its user namespace, where nobody may ask for much.
    pub(super) fn take(&self) -> io::Result<()> {
        if let Some((class, level)) = self.io {
            schedule::set_io_priority(class, level)?;
        }
        self.schedule.as_ref().map_or(Ok(()), schedule::set)
    }
}

fn schedule_of(asked: &Scheduler) -> Result<Schedule> {
    let wrong = |what: &str| Err(Error::usage(format!("process.scheduler: {what}")));
    let policy = *asked.policy();
    let (nice, priority) = (asked.nice().unwrap_or(0), asked.priority().unwrap_or(0));
    let times = [asked.runtime(), asked.deadline(), asked.period()].map(|time| time.unwrap_or(0));
    if !(-20..=19).contains(&nice) {
        return wrong("nice is from -20 to 19");
    }
    if priority < 0 || (priority != 0 && !matches!(policy, Policy::SchedFifo | Policy::SchedRr)) {
        return wrong("priority is for SCHED_FIFO and SCHED_RR");
    }
    if policy != Policy::SchedDeadline && times != [0; 3] {
        return wrong("runtime, deadline and period are for SCHED_DEADLINE");
    }
    let flag = |flag: &Flag| match flag {
        Flag::SchedResetOnFork => 0x01,
        Flag::SchedFlagReclaim => 0x02,
        Flag::SchedFlagDLOverrun => 0x04,
        Flag::SchedFlagKeepPolicy => 0x08,
        Flag::SchedFlagKeepParams => 0x10,
        Flag::SchedFlagUtilClampMin => 0x20,
        Flag::SchedFlagUtilClampMax => 0x40,
    };
    Ok(Schedule {
        policy: match policy {
            Policy::SchedOther => 0,
            Policy::SchedFifo => 1,
            Policy::SchedRr => 2,
            Policy::SchedBatch => 3,
            Policy::SchedIso => 4,
            Policy::SchedIdle => 5,
            Policy::SchedDeadline => 6,
        },
        flags: asked.flags().iter().flatten().map(flag).fold(0, |all, flag| all | flag),
        nice,
        priority: priority.unsigned_abs(),
        runtime: times[0],
        deadline: times[1],
        period: times[2],
    })
}

/// Calls the flags of a `process` object as oci-spec 0.10 knows them: it has two of them wrong.
pub(super) fn rename_flags(process: &mut Map<String, Value>) {
    let flags = process.get_mut("scheduler").and_then(|s| s.get_mut("flags")).and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = json!(Flag::SchedResetOnFork),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = json!(Flag::SchedFlagDLOverrun),
            _ => {}
        }
    }
}

/// Reads the specification's `process` object.
pub fn process_of(mut value: Value) -> serde_json::Result<Process> {
    if let Some(process) = value.as_object_mut() {
        rename_flags(process);
    }
    serde_json::from_value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(process: Value) -> Result<Priority> {
        let mut whole = json!({"cwd": "/", "user": {"uid": 0, "gid": 0}});
        whole.as_object_mut().unwrap().extend(process.as_object().unwrap().clone());
        Priority::of(&process_of(whole).unwrap())
    }

    #[test]
    fn all_flags_of_the_specification_are_known() {
        let flags = [
            "SCHED_FLAG_RESET_ON_FORK",
            "SCHED_FLAG_RECLAIM",
            "SCHED_FLAG_DL_OVERRUN",
            "SCHED_FLAG_KEEP_POLICY",
            "SCHED_FLAG_KEEP_PARAMS",
            "SCHED_FLAG_UTIL_CLAMP_MIN",
            "SCHED_FLAG_UTIL_CLAMP_MAX",
        ];
        let priority = of(json!({"scheduler": {"policy": "SCHED_OTHER", "flags": flags}})).unwrap();
        assert_eq!(priority.schedule.unwrap().flags, 0x7f);
    }

    #[test]
    fn what_a_policy_does_not_have_is_refused() {
        for wrong in [
            json!({"scheduler": {"policy": "SCHED_OTHER", "nice": 20}}),
            json!({"scheduler": {"policy": "SCHED_OTHER", "priority": 1}}),
            json!({"scheduler": {"policy": "SCHED_FIFO", "priority": -1}}),
            json!({"scheduler": {"policy": "SCHED_RR", "runtime": 1}}),
            json!({"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}}),
        ] {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
        let idle = of(json!({"ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0}})).unwrap();
        assert_eq!((idle.io, idle.schedule), (Some((3, 0)), None));
    }
}
