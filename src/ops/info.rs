//! `info`: everything known of one spark.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Sparks, defaults};
use crate::bundle::limits;
use crate::bundle::spec::cgroup;
use crate::domain::limits::{LimitSource, Limits, MEMORY_DEFAULT, PIDS_DEFAULT};
use crate::domain::name::{Name, SparkRef};
use crate::domain::options::SparkOptions;
use crate::domain::place::SparkPaths;
use crate::domain::spark::{Id, Origin, State, Time};
use crate::error::Result;
use crate::pool::btrfs;
use crate::pool::quota::Counted;
use crate::runtime::cgroup::{Cgroup, Usage};
use crate::runtime::live;

/// One spark, with both of its identities.
#[derive(Debug, serde::Serialize)]
pub struct Info {
    pub name: Name,
    pub project: Name,
    pub state: State,
    /// Why it is stopped, if no command has stopped it.
    pub ended: Option<Ended>,
    pub id: Id,
    pub created: Time,
    /// The base, spark or snapshot that it was made from.
    pub origin: Origin,
    pub ephemeral: bool,
    /// PID 1, as the host numbers it.
    pub pid: Option<i32>,
    pub oci: Oci,
    pub root: Root,
    pub options: SparkOptions,
    /// The limits that are in force. They differ from those of the options where the bundle template has some, and
    /// where a `spark set` was killed.
    pub limits: Option<Limits>,
    /// Who set the limits that every spark has, for its next start.
    pub limits_from: BTreeMap<&'static str, &'static str>,
    pub usage: Option<Usage>,
    /// What it keeps on disk, where the pool was made with `--quota`.
    pub disk: Option<Counted>,
    /// Its addresses, while it runs in its project's network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Addresses>,
    /// What detached commands wrote.
    pub log: PathBuf,
    /// The spark's directory in the pool.
    pub path: PathBuf,
}

/// Why a spark ended that was not told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Ended {
    /// It was to end when idle, and ended. Nobody is there to tell an idle end from one that was asked for inside.
    #[serde(rename = "idle")]
    Idle,
    /// PID 1 was told to end inside, or was killed.
    #[serde(rename = "by itself")]
    ByItself,
    /// The kernel killed it for memory. To be known until the next start removes what is left of it.
    #[serde(rename = "out of memory")]
    OutOfMemory,
}

/// The container.
#[derive(Debug, serde::Serialize)]
pub struct Oci {
    pub id: String,
    /// The OCI bundle. It is made when the spark starts, and gone when it stops.
    pub bundle: Option<PathBuf>,
    /// libcontainer's root: `youki --root` of this knows the container.
    pub root: PathBuf,
    pub cgroup: PathBuf,
    /// First host id of its range of 65,536.
    pub first_id: Option<u32>,
}

/// Where other sparks of the project reach it.
#[derive(Debug, serde::Serialize)]
pub struct Addresses {
    pub ipv4: std::net::Ipv4Addr,
    pub ipv6: std::net::Ipv6Addr,
    /// What its network lacks, and what to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The root filesystem.
#[derive(Debug, serde::Serialize)]
pub struct Root {
    /// The subvolume in the pool.
    pub path: PathBuf,
    /// The same as the spark sees it, with all that is mounted.
    pub inside: Option<PathBuf>,
    pub subvolume: Option<btrfs::Info>,
}

impl Sparks {
    /// Everything known of one spark. Takes no lock, so it never waits for another command.
    pub fn info(&self, spark: &SparkRef) -> Result<Info> {
        let spark = self.resolve(spark)?;
        let record = self.record(&spark)?;
        let dir = self.dir(&spark);
        let root = SparkPaths(&dir).root();
        let live = self.live(&record);
        let pid = live.as_ref().map(|l| l.init.pid);
        let subvolume = btrfs::info(&root).ok();
        let group = Cgroup::new(&cgroup(&record.id));
        let disks = if live.is_some() { self.disks_or_none() } else { Vec::new() };
        let (live_limits, usage) = match &live {
            Some(_) => (
                Some(Limits { disk: record.options.limits.disk, ..group.limits(&disks) }),
                Usage::of(&group, &disks),
            ),
            None => (None, None),
        };
        // Nobody waits for PID 1, so nobody is told how it ended. But its group stays until the next start.
        let ended = live::has_left(&self.bundle(&record)).then(|| match record.options.idle_stop {
            None | Some(0) if group.oom_kills().is_some_and(|n| n > 0) => Ended::OutOfMemory,
            None | Some(0) => Ended::ByItself,
            Some(_) => Ended::Idle,
        });
        let network = self.nets().member(&record.id).filter(|_| live.is_some()).map(|m| Addresses {
            ipv4: m.v4,
            ipv6: m.v6,
            problem: self.problem_of_networks(),
        });
        Ok(Info {
            state: if subvolume.is_some() { self.state(&record) } else { State::Broken },
            name: spark.name,
            project: spark.project,
            created: record.created,
            origin: record.origin.clone(),
            ephemeral: record.ephemeral,
            pid,
            oci: Oci {
                bundle: live.as_ref().map(|_| self.bundle(&record)),
                root: self.pool.place.oci(),
                cgroup: cgroup(&record.id),
                first_id: live.map(|l| l.first_id),
                id: record.oci_id,
            },
            root: Root { inside: pid.map(|p| format!("/proc/{p}/root").into()), path: root, subvolume },
            limits: live_limits,
            limits_from: self.limits_from(&record.options),
            usage,
            disk: self.pool.counted(&record.id, record.options.limits.disk),
            ended,
            options: record.options,
            network,
            id: record.id,
            log: SparkPaths(&dir).log(),
            path: dir,
        })
    }

    /// Who says what a spark's limits of memory and processes are. Empty if its template cannot be read.
    fn limits_from(&self, options: &SparkOptions) -> BTreeMap<&'static str, &'static str> {
        let defaults = defaults::of_host();
        let Ok(limits) = limits::of(options, &self.context.templates, &defaults) else {
            return BTreeMap::new();
        };
        let name = |from, default| match from {
            LimitSource::Options => "options",
            LimitSource::Template => "bundle template",
            LimitSource::Default => default,
        };
        let memory =
            if defaults.memory.is_some() { MEMORY_DEFAULT } else { "none: this host cannot limit memory" };
        [("memory", name(limits.memory_from, memory)), ("pids", name(limits.pids_from, PIDS_DEFAULT))].into()
    }
}
