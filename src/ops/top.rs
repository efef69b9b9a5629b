//! `top`: what every spark is doing. Files of the kernel's are read, and nothing else: no lock, no libcontainer, no start of
//! anything.

use std::path::Path;

use super::Sparks;
use super::spark::{SparkId, damage_of};
use crate::bundle::spec::cgroup;
use crate::domain::name::Name;
use crate::domain::options::Network;
use crate::domain::place::SparkPaths;
use crate::domain::spark::{Id, Origin, SparkRecord, State};
use crate::error::{Error, Result};
use crate::pool::btrfs;
use crate::runtime::cgroup::Cgroup;
use crate::runtime::traffic;
use crate::sys;
use crate::sys::block::Device;

pub use crate::runtime::cgroup::Usage;
pub use crate::runtime::traffic::Traffic;

/// One spark at one moment.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Load {
    pub project: Name,
    pub name: Name,
    /// None if it is broken.
    pub id: Option<Id>,
    pub state: State,
    /// None if it does not run.
    #[serde(flatten)]
    pub usage: Option<Usage>,
    /// Bytes of memory that it may have.
    pub memory_limit_bytes: Option<u64>,
    /// What came and went over its network since it started. None where it has the host's.
    #[serde(flatten)]
    pub network: Option<Traffic>,
    /// Bytes on disk that it wrote since it was made. None where nobody looked.
    pub own_bytes: Option<u64>,
}

impl Sparks {
    /// What the sparks of this project are doing, or those of all, by name. Their own bytes take longest to find.
    pub fn loads(&self, all_projects: bool, own_bytes: bool) -> Result<Vec<Load>> {
        let projects = if all_projects {
            crate::pool::names_in(&self.pool.paths.projects())?
        } else {
            vec![self.project()?]
        };
        let disks = self.disks_or_none();
        let mut loads = Vec::new();
        for project in projects {
            for spark in self.sparks_of(&project)? {
                let record = match self.record(&spark) {
                    // Deleted while we looked.
                    Err(Error::NotFound { .. }) => continue,
                    other => other.ok(),
                };
                let mut load = self.load(spark, record.as_ref(), &disks);
                if let Some(record) = record.filter(|_| own_bytes) {
                    load.own_bytes = self.written(&load, &record);
                }
                loads.push(load);
            }
        }
        Ok(loads)
    }

    fn load(&self, spark: SparkId, record: Option<&SparkRecord>, disks: &[Device]) -> Load {
        let broken = record.is_none() || damage_of(&SparkPaths(&self.dir(&spark)).root()).is_some();
        let mut load = Load {
            project: spark.project,
            name: spark.name,
            id: record.map(|r| r.id.clone()),
            state: State::Broken,
            usage: None,
            memory_limit_bytes: None,
            network: None,
            own_bytes: None,
        };
        let Some(record) = record.filter(|_| !broken) else { return load };
        load.state = self.state(record);
        if let Some(live) = self.live(record) {
            let group = Cgroup::new(&cgroup(&record.id));
            load.usage = Usage::of(&group, disks);
            load.memory_limit_bytes = group.memory_limit();
            let own = record.options.network != Network::Host;
            load.network = own.then(|| traffic::of(&live)).flatten();
        }
        load
    }

    /// What was written into a spark's root filesystem since it was made, and is still there.
    fn written(&self, load: &Load, record: &SparkRecord) -> Option<u64> {
        let spark = SparkId { project: load.project.clone(), name: load.name.clone() };
        let root = SparkPaths(&self.dir(&spark)).root();
        let since = match &record.origin {
            // A restored root is younger than what the spark wrote into it before.
            Origin::Base { name, id } => self.base_made(name, id),
            _ => None,
        };
        let since = since.or_else(|| made(&root))?;
        sys::search::bytes_since(sys::file::open_dir(&root).ok()?, since).ok()
    }

    fn base_made(&self, name: &Name, id: &Id) -> Option<u64> {
        let base = self.pool.paths.base(name);
        let record: crate::domain::base::BaseRecord =
            crate::pool::record::read(&base.join("base.json")).ok()??;
        let root = btrfs::info(&base.join("root")).ok().filter(|_| record.id == *id)?;
        // It was filled after its subvolume was made.
        Some(root.made.max(root.changed))
    }
}

fn made(subvolume: &Path) -> Option<u64> {
    btrfs::info(subvolume).ok().map(|info| info.made)
}
