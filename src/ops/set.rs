//! `set`: limits, idle stop and labels of a spark that is there.
//!
//! The kernel first, then the record: the kernel can say no, and what it refused is not to be recorded. Killed between the
//! two, the new limits hold until the spark ends, and the recorded ones from its next start. `info` shows both.

use std::collections::BTreeSet;

use super::spark::Opened;
use super::{Sparks, defaults};
use crate::bundle::{limits, spec};
use crate::domain::host_entry::{self, HostEntry};
use crate::domain::limits::{LimitChanges, Limits};
use crate::domain::name::SparkRef;
use crate::domain::options::SparkOptions;
use crate::domain::place::SparkPaths;
use crate::domain::spark::Labels;
use crate::error::{Error, Result};
use crate::fault;
use crate::runtime::cgroup::{self, Cgroup};
use crate::runtime::live;
use crate::sys;
use crate::sys::block::Device;
use crate::sys::flock::Mode;

/// What to change.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub limits: LimitChanges,
    /// Labels to attach, or to change.
    pub labels: Labels,
    /// Keys of labels to take off.
    pub unlabel: BTreeSet<String>,
    /// Addresses for names in its `/etc/hosts`, from its next start on.
    pub add_host: Vec<HostEntry>,
    /// Names to have no address there any more.
    pub remove_host: BTreeSet<String>,
    /// Seconds without a process after which it ends; 0 is never.
    pub idle_stop: Option<u32>,
}

impl Settings {
    fn over(&self, mut options: SparkOptions) -> SparkOptions {
        options.limits = self.limits.over(&options.limits);
        options.labels.retain(|key, _| !self.unlabel.contains(key));
        options.labels.extend(self.labels.clone());
        options.add_host.retain(|entry| !self.remove_host.contains(&entry.name));
        options.add_host = host_entry::over(self.add_host.clone(), options.add_host);
        options.idle_stop = self.idle_stop.or(options.idle_stop);
        options
    }
}

impl Sparks {
    /// Changes limits, idle stop and labels of a spark: at once, and for its next starts.
    ///
    /// # Errors
    /// `wrong_state` for a memory limit that is below what the spark uses, and stays as it was. `not_supported` for a
    /// limit that the host or the pool cannot keep.
    pub fn set(&self, spark: &SparkRef, settings: &Settings) -> Result<()> {
        let spark = self.resolve(spark)?;
        self.refuse_host_entries(&spark, &settings.add_host)?;
        let opened = self.open_spark(&spark, Mode::Exclusive)?;
        let mut record = opened.record.clone();
        record.options = settings.over(record.options);
        if record.options == opened.record.options && !self.runs_on(&opened.record) {
            return Ok(());
        }
        // A command enters more carefully where the record says that PID 1 may leave: never may it say less than is so.
        let leaves = record.options.idle_stop.is_some_and(|seconds| seconds > 0);
        let limited = self
            .limit(&opened, &record.options)
            .and_then(|()| fault::point("set.limited"))
            .and_then(|()| if leaves { Ok(()) } else { self.tell_idle_stop(&opened, settings.idle_stop) })
            .and_then(|()| self.rewrite(&opened, &record));
        limited.map_err(|first| {
            let old = &opened.record.options;
            let idle_stop = settings.idle_stop.and(old.idle_stop);
            match self.limit(&opened, old).and_then(|()| self.tell_idle_stop(&opened, idle_stop)) {
                Ok(()) => first,
                Err(undo) => Error::Undo { first: first.into(), undo: undo.into() },
            }
        })?;
        fault::point("set.recorded")?;
        if leaves { self.tell_idle_stop(&opened, settings.idle_stop) } else { Ok(()) }
    }

    /// Tells PID 1, if there is one, when to leave. It counts anew then.
    fn tell_idle_stop(&self, opened: &Opened, seconds: Option<u32>) -> Result<()> {
        let Some(seconds) = seconds else { return Ok(()) };
        // It may be about to leave, and then there is nobody to tell.
        match self.live(&opened.record).and_then(|live| live.pidfd().ok()) {
            Some(init) => match live::set_idle_stop(init, seconds) {
                Err(e) if e.raw_os_error() != Some(libc::ESRCH) => Err(Error::sys("signal PID 1")(e)),
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Gives a spark that runs the limits of these options.
    fn limit(&self, opened: &Opened, options: &SparkOptions) -> Result<()> {
        self.pool.hold_to(&opened.record.id, &SparkPaths(&opened.dir), options.limits.disk)?;
        if self.live(&opened.record).is_none() {
            return Ok(());
        }
        let limits = limits::of(options, &self.context.templates, &defaults::of_host())?;
        let disks = self.disks_or_none();
        let group = Cgroup::new(&spec::cgroup(&opened.record.id));
        cgroup::set(&group, &limits, &disks).map_err(|refused| refused.about(opened.id.name.as_str()))
    }

    /// The disks below the pool, for limits that are about them.
    pub(crate) fn disks(&self, limits: &Limits) -> Result<Vec<Device>> {
        let top = &self.pool.paths.top;
        match limits.io {
            None => Ok(Vec::new()),
            Some(_) => sys::block::disks(top).map_err(Error::io("find the disks of", top)),
        }
    }

    /// The same where a host without them is no reason to fail.
    pub(crate) fn disks_or_none(&self) -> Vec<Device> {
        sys::block::disks(&self.pool.paths.top).unwrap_or_default()
    }
}
