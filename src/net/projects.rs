//! Which projects have a network now, and which sparks are in each: names of files, so that a start reads no other spark's.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::router::Router;
use super::{Member, Nets, host, ids_in};
use crate::domain::spark::Id;
use crate::domain::subnet::Subnet;
use crate::error::{Error, Result};
use crate::{fault, sys};

/// The file of the network of a project, beside those of its sparks.
const NETWORK: &str = "network";

/// A project that has a network now.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Running {
    subnet: Subnet,
    /// How many of its blocks have routes. A command that was killed has made some of the others', or none.
    routed: usize,
}

impl Running {
    fn read(path: &Path) -> Option<Running> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|e| Error::corrupt(path, e))?;
        sys::file::replace_volatile(path, &text).map_err(Error::io("write", path))
    }

    /// Makes the routes to the networks that have none. The caller holds the lock of the host.
    fn route(&mut self, dir: &Path, router: &Router) -> Result<()> {
        let path = dir.join(NETWORK);
        sys::file::make_dirs(dir, 0o700).map_err(Error::io("create", dir))?;
        self.write(&path)?;
        fault::point("net-join.project-chosen")?;
        router.add_networks(&self.subnet.nets_from(self.routed))?;
        fault::point("net-join.project-made")?;
        self.routed = self.subnet.blocks.len();
        self.write(&path)
    }
}

/// The place of a spark in the network of its project, before it is there.
#[derive(Debug)]
pub struct Place {
    /// The spark's number.
    pub number: u16,
    /// The subnet that its project had.
    pub had: Subnet,
}

/// Finds the blocks of other projects.
pub type Used<'a> = &'a dyn Fn() -> HashSet<Ipv4Addr>;

impl Nets {
    /// Where it is known which network a project has now, and which sparks are in it.
    pub(super) fn project_dir(&self, project: &Id) -> PathBuf {
        self.dir.join("projects").join(project.as_str())
    }

    /// All projects that something is known of: the subnet, and who is in it.
    pub(super) fn known_projects(&self) -> Vec<(Id, Option<Subnet>, Vec<Id>)> {
        let entries = std::fs::read_dir(self.dir.join("projects")).into_iter().flatten().flatten();
        let known = entries.filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let running = Running::read(&entry.path().join(NETWORK));
            Some((id, running.map(|running| running.subnet), ids_in(&entry.path()).collect()))
        });
        known.collect()
    }

    /// The subnets of all projects that have a network now.
    pub(super) fn projects(&self) -> Vec<Subnet> {
        let entries = std::fs::read_dir(self.dir.join("projects")).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some(Running::read(&entry.path().join(NETWORK))?.subnet)).collect()
    }

    /// Puts a spark into its project, and makes the project's network known where it is the first, or the first of its block.
    /// Returns the project's subnet.
    pub(super) fn project_for(
        &self,
        member: &Member,
        place: &Place,
        used: Used<'_>,
        router: &Router,
    ) -> Result<Subnet> {
        let dir = self.project_dir(&member.project_id);
        let block = Subnet::block_of(place.number);
        let found = Running::read(&dir.join(NETWORK));
        let has_others = || ids_in(&dir).any(|id| id != member.id);
        let subnet = match found {
            Some(running) if running.routed > block && has_others() => running.subnet,
            found => {
                let _host = host::lock()?;
                let mut running = match found {
                    Some(running) if has_others() => running,
                    // What a crash left, with nobody in it.
                    Some(left) => {
                        router.remove_networks(&left.subnet)?;
                        Running { subnet: left.subnet, routed: 0 }
                    }
                    None => Running { subnet: place.had.clone(), routed: 0 },
                };
                let seed = member.project_id.bytes();
                host::choose(&mut running.subnet, running.routed, block, &seed, used)?;
                running.route(&dir, router)?;
                running.subnet
            }
        };
        let own = dir.join(member.id.as_str());
        std::fs::write(&own, "").map_err(Error::io("write", own))?;
        Ok(subnet)
    }

    /// Takes a spark out of its project. Returns the project's subnet if that was the last one.
    pub(super) fn leave_project(&self, member: &Member) -> Result<Option<Subnet>> {
        let dir = self.project_dir(&member.project_id);
        let own = dir.join(member.id.as_str());
        sys::file::remove(&own).map_err(Error::io("remove", own))?;
        let is_last = ids_in(&dir).next().is_none();
        Ok(is_last.then(|| Running::read(&dir.join(NETWORK)).map(|left| left.subnet).unwrap_or_default()))
    }

    /// Forgets a project that nobody is in.
    pub(super) fn forget_project(&self, project: &Id) -> Result<()> {
        let dir = self.project_dir(project);
        sys::file::remove_all(&dir).map_err(Error::io("remove", dir))
    }
}
