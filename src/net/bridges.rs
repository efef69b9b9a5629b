//! What earlier versions made: a bridge per project in the host's namespace, and three tables of the packet filter. Sparks that
//! have run since then stay on them until they end, and so do the rules that keep them apart.

use super::{Nets, PREFIX, device_of, hash, host, link, nft};
use crate::domain::name::Name;
use crate::domain::spark::Id;
use crate::error::Result;

/// The bridge of a project.
fn bridge_of(nets: &Nets, project: &Name) -> String {
    let mut seed = nets.run.as_os_str().as_encoded_bytes().to_owned();
    seed.push(0);
    seed.extend(project.as_str().bytes());
    let hex: String = hash(&seed)[..5].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{hex}")
}

impl Nets {
    /// Bridges of earlier versions: of these projects, those that are there, and whether no spark is on them any more.
    pub fn old_bridges<'a>(
        &self,
        projects: impl IntoIterator<Item = &'a Name>,
    ) -> Result<Vec<(String, bool)>> {
        let all = projects.into_iter().map(|project| bridge_of(self, project));
        let there: Vec<String> = all.filter(|name| link::exists(name)).collect();
        there
            .into_iter()
            .map(|name| {
                let ports = link::ports_of(&name)?;
                Ok((name, !ports.iter().any(|port| port.starts_with("spv"))))
            })
            .collect()
    }

    /// The sparks that an earlier version has started and that run still: their devices are the host's own.
    pub fn on_old_bridges(&self) -> Vec<Id> {
        self.ids().into_iter().filter(|id| link::exists(&device_of(id))).collect()
    }

    /// Removes one on which no spark is, and with the last one the rules for all. `others` are there too.
    pub fn remove_old_bridge(&self, bridge: &str, others: bool) -> Result<()> {
        let _lock = self.lock()?;
        let _host = host::lock()?;
        link::remove(&format!("spq-{}", bridge.trim_start_matches(PREFIX)))?;
        link::remove(bridge)?;
        if !others {
            let table = self.table.replacen("sparks-", "spark-", 1);
            // The last kept the host from forwarding, which rules of routing do now.
            for table in [("inet", &*table), ("bridge", &table), ("netdev", &table), ("inet", "spark-host")] {
                let (family, name) = table;
                nft::run(&format!("add table {family} {name}\ndelete table {family} {name}\n"))?;
            }
        }
        host::release(bridge)
    }
}
