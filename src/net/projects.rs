//! Which projects have a network now, and which sparks are in each: names of files, so that a start reads no other spark's.

use std::path::{Path, PathBuf};

use super::router::Router;
use super::{Member, Nets, host, ids_in};
use crate::domain::name::Name;
use crate::domain::spark::Id;
use crate::domain::subnet::Subnet;
use crate::error::{Error, Result};
use crate::{fault, sys};

/// The file of the subnet of a project, beside those of its sparks.
const SUBNET: &str = "subnet";

fn read_subnet(path: &Path) -> Option<Subnet> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

impl Nets {
    /// Where it is known which subnet a project has now, and which sparks are in it.
    pub(super) fn project_dir(&self, project: &Name) -> PathBuf {
        self.dir.join("projects").join(project)
    }

    /// All projects that something is known of: the subnet, and who is in it.
    pub(super) fn known_projects(&self) -> Vec<(Name, Option<Subnet>, Vec<Id>)> {
        let entries = std::fs::read_dir(self.dir.join("projects")).into_iter().flatten().flatten();
        let known = entries.filter_map(|entry| {
            let name = entry.file_name().to_str()?.parse().ok()?;
            Some((name, read_subnet(&entry.path().join(SUBNET)), ids_in(&entry.path()).collect()))
        });
        known.collect()
    }

    /// The subnets of all projects that have a network now.
    pub(super) fn projects(&self) -> Vec<Subnet> {
        let entries = std::fs::read_dir(self.dir.join("projects")).into_iter().flatten().flatten();
        entries.filter_map(|entry| read_subnet(&entry.path().join(SUBNET))).collect()
    }

    /// Puts a spark into its project, and makes that known where it is the first. Returns the project's subnet.
    pub(super) fn project_for(
        &self,
        member: &Member,
        had: Option<Subnet>,
        used: impl Fn() -> Vec<Subnet>,
        router: &Router,
    ) -> Result<Subnet> {
        let dir = self.project_dir(&member.project);
        let path = dir.join(SUBNET);
        let has = read_subnet(&path);
        let subnet = match has {
            Some(subnet) if ids_in(&dir).any(|id| id != member.id) => subnet,
            // What a crash left, with nobody in it.
            _ => {
                let had = has.or(had);
                let _host = host::lock()?;
                if let Some(had) = &had {
                    router.remove_project(had)?;
                }
                let subnet = host::choose(had, member.project.as_str().as_bytes(), &used())?;
                sys::file::make_dirs(&dir, 0o700).map_err(Error::io("create", &dir))?;
                let text = serde_json::to_vec(&subnet).map_err(|e| Error::corrupt(&path, e))?;
                sys::file::replace_volatile(&path, &text).map_err(Error::io("write", &path))?;
                fault::point("net-join.project-chosen")?;
                router.add_project(&subnet)?;
                fault::point("net-join.project-made")?;
                subnet
            }
        };
        let own = dir.join(member.id.as_str());
        std::fs::write(&own, "").map_err(Error::io("write", own))?;
        Ok(subnet)
    }

    /// Takes a spark out of its project. Whether that was the last one.
    pub(super) fn leave_project(&self, member: &Member) -> Result<bool> {
        let dir = self.project_dir(&member.project);
        let own = dir.join(member.id.as_str());
        sys::file::remove(&own).map_err(Error::io("remove", own))?;
        Ok(ids_in(&dir).next().is_none())
    }

    /// Forgets a project that nobody is in.
    pub(super) fn forget_project(&self, project: &Name) -> Result<()> {
        let dir = self.project_dir(project);
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir)(e)),
            _ => Ok(()),
        }
    }
}
