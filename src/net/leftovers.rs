//! What is of no spark that has a network: killed commands and damaged files leave it.

use std::collections::HashSet;

use super::claims::Claims;
use super::router::Router;
use super::{Nets, device_of, host, ids_in, link, nft};
use crate::domain::spark::Id;
use crate::error::{Error, Result};
use crate::sys;

/// Kinds of leftovers, as `gc` calls them.
const ROUTER: &str = "router without sparks";
const DEVICE: &str = "network device of a spark that is gone";
const ENTRY: &str = "permission of a network device that is gone";
const PROJECT: &str = "network of a project without sparks";
const NAME: &str = "name of a spark that is gone";

/// A kind, and whose it was.
type Leftover = (&'static str, String);

impl Nets {
    /// Finds what is of no spark; with `fix`, removes it.
    pub fn unowned(&self, fix: bool) -> Result<Vec<Leftover>> {
        if !self.dir.is_dir() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        if fix { self.remove_unowned(None) } else { self.find_unowned(None, false) }
    }

    /// Removes what is of no spark but `gone`, and what is of that one. The caller holds the lock.
    pub(super) fn remove_unowned(&self, gone: Option<&Id>) -> Result<Vec<Leftover>> {
        let found = self.find_unowned(gone, true)?;
        if let Some(id) = gone {
            let _host = host::lock()?;
            Claims::read().replace(&[], &self.member_path(id))?;
        }
        if (gone.is_some() || !found.is_empty())
            && let Some(router) = self.router()
        {
            // Its published ports were known from its file alone.
            let others: Vec<_> = self.members().into_iter().filter(|m| Some(&m.id) != gone).collect();
            self.rebuild(&router, &others)?;
            self.take_loopback(&router)?;
        }
        Ok(found)
    }

    fn find_unowned(&self, gone: Option<&Id>, fix: bool) -> Result<Vec<Leftover>> {
        let router = self.router();
        // Devices are made after the member, so they are listed before.
        let devices = match &router {
            Some(router) => router.inside(|| link::beginning_with("spv"))?,
            None => Vec::new(),
        };
        let ids: HashSet<Id> = ids_in(&self.dir_of_members()).filter(|id| Some(id) != gone).collect();
        if ids.is_empty() {
            return self.find_last(fix);
        }
        let mut found = Vec::new();
        if let Some(router) = &router {
            found.extend(unowned_devices(router, &devices, &ids, fix)?);
        }
        found.extend(self.unowned_projects(router.as_ref(), &ids, fix)?);
        let names = self.names().forget_all_but(&ids, fix)?;
        found.extend(names.into_iter().map(|name| (NAME, name)));
        Ok(found)
    }

    /// What is left where no spark has a network.
    fn find_last(&self, fix: bool) -> Result<Vec<Leftover>> {
        let has_router = self.has_part_of_router() || nft::there(&self.table);
        if has_router && fix {
            nft::run(&nft::remove(&self.table))?;
            self.remove_router()?;
            let projects = self.dir.join("projects");
            sys::file::remove_all(&projects).map_err(Error::io("remove", projects))?;
            self.names().forget_all_but(&HashSet::new(), true)?;
            let _host = host::lock()?;
            host::release(&self.uplink())?;
        }
        Ok(has_router.then(|| (ROUTER, self.uplink())).into_iter().collect())
    }

    fn unowned_projects(
        &self,
        router: Option<&Router>,
        ids: &HashSet<Id>,
        fix: bool,
    ) -> Result<Vec<Leftover>> {
        let mut found = Vec::new();
        for (project, subnet, members) in self.known_projects() {
            let (left, has): (Vec<Id>, Vec<Id>) = members.into_iter().partition(|id| !ids.contains(id));
            if fix {
                for id in &left {
                    let path = self.project_dir(&project).join(id.as_str());
                    sys::file::remove(&path).map_err(Error::io("remove", path))?;
                }
            }
            if !has.is_empty() {
                continue;
            }
            if fix {
                if let (Some(router), Some(subnet)) = (router, &subnet) {
                    router.remove_networks(subnet)?;
                }
                self.forget_project(&project)?;
            }
            found.push((PROJECT, project.to_string()));
        }
        Ok(found)
    }
}

fn unowned_devices(
    router: &Router,
    devices: &[(String, u32)],
    ids: &HashSet<Id>,
    fix: bool,
) -> Result<Vec<Leftover>> {
    let owned: HashSet<String> = ids.iter().map(device_of).collect();
    let mut found = Vec::new();
    for (name, _) in devices.iter().filter(|(name, _)| !owned.contains(name)) {
        if fix {
            router.inside(|| link::remove(name))?;
        }
        found.push((DEVICE, name.clone()));
    }
    // A device is there before its entries are, so entries are read before devices are listed.
    let entries = router.barrier.devices()?;
    let now = router.inside(|| link::beginning_with("spv"))?;
    let gone: Vec<u32> =
        entries.into_iter().filter(|entry| !now.iter().any(|(_, number)| number == entry)).collect();
    if fix {
        router.barrier.forget(&gone)?;
    }
    found.extend(gone.iter().map(|number| (ENTRY, format!("device {number}"))));
    Ok(found)
}
