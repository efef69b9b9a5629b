//! Collectors of what sparks that do not run any more left outside their files.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::Sparks;
use super::super::spark::SparkId;
use super::{Collection, Item, entries};
use crate::domain::spark::Id;
use crate::error::{Error, Result};
use crate::net::Lack;
use crate::pool::index::Identity;
use crate::pool::names_in;
use crate::runtime::{ids, live};
use crate::sys;

/// How long the kernel may take to let go of what a process had that was killed with its command.
const LETTING_GO: Duration = Duration::from_secs(2);

/// Whether a directory is locked, and does not come free now that whoever locked it is dead.
fn is_locked(dir: &Path, fd: &OwnedFd) -> bool {
    let deadline = Instant::now() + LETTING_GO;
    while matches!(sys::flock::try_lock_dir(dir), Ok(None)) {
        let lives = sys::flock::is_held(fd).unwrap_or(true);
        let waits = sys::flock::orphans(fd).map_or(true, |orphans| !orphans.is_empty());
        if lives || waits || Instant::now() > deadline {
            return true;
        }
        let _ = sys::deadline::pause(Duration::from_millis(1));
    }
    false
}

impl Sparks {
    /// Processes that a killed command left waiting for it, with its lock.
    pub(super) fn gc_waiting(&self, collection: &mut Collection) -> Result<()> {
        for path in entries(&self.pool.place.run.join("bundles"))? {
            let id = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let Some(found) = self.pool.find_container(id)? else { continue };
            let dir = self.pool.paths.spark(&found.project, &found.name);
            let Ok(fd) = sys::file::open_dir(&dir) else { continue };
            if !is_locked(&dir, &fd) {
                continue;
            }
            let failed = || Error::io("look at the lock of", &dir);
            let orphans = sys::flock::orphans(&fd).map_err(failed())?;
            if orphans.is_empty() {
                continue;
            }
            let ended = match collection.is_dry_run() {
                true => Ok(()),
                false => sys::flock::end_orphans(&fd).map_err(failed()),
            };
            if let Err(e) = ended {
                collection.fail(e);
                continue;
            }
            for pid in orphans {
                let owner = format!("{}/{}", found.project, found.name);
                let process = format!("/proc/{pid}");
                collection.free(Item::new("waiting process", owner, Path::new(&process)), || Ok(()));
            }
        }
        Ok(())
    }

    /// Sparks that a killed command left frozen.
    pub(super) fn gc_still(&self, collection: &mut Collection) -> Result<()> {
        for path in entries(&self.pool.place.run.join("bundles"))? {
            let Some(id) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<Id>().ok())
            else {
                continue;
            };
            if self.left_still(&id)?.is_some() {
                let item = Item::new("frozen spark", "a command that was killed", &path);
                collection.free(item, || self.let_go(&id).map(drop));
            }
        }
        Ok(())
    }

    /// Ephemeral sparks whose command was killed.
    pub(super) fn gc_ephemeral(&self, collection: &mut Collection) -> Result<()> {
        for left in self.pool.abandoned()? {
            let spark = SparkId { project: left.project, name: left.name };
            let owner = format!("{}/{}", spark.project, spark.name);
            let item = Item::new("ephemeral spark", owner, &self.dir(&spark));
            collection.free(item, || self.remove_abandoned(&left.id));
        }
        Ok(())
    }

    /// Containers and bundles that belong to no running spark.
    pub(super) fn gc_containers(&self, collection: &mut Collection) -> Result<()> {
        let place = &self.pool.place;
        let mut seen: Vec<Id> = Vec::new();
        for path in entries(&place.run.join("bundles"))?.into_iter().chain(entries(&place.oci())?) {
            let Some(id) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<Id>().ok())
            else {
                continue;
            };
            let bundle = place.bundle(&id);
            if live::read(&bundle).is_some() || seen.contains(&id) {
                continue;
            }
            let found = self.pool.find_container(id.as_str())?;
            // Somebody who starts or stops it holds its lock.
            let _lock = match &found {
                Some(Identity { project, name, .. }) => {
                    match sys::flock::try_lock_dir(&self.pool.paths.spark(project, name)) {
                        Ok(Some(lock)) => Some(lock),
                        _ => continue,
                    }
                }
                None => None,
            };
            let owner = found.map_or_else(|| "no spark".to_owned(), |f| format!("{}/{}", f.project, f.name));
            let item = Item::new("container that ended", owner, &path);
            collection.free(item, || self.remove_container(&id, &bundle));
            seen.push(id);
        }
        Ok(())
    }

    /// Records of the runtime library that a killed command left half-written.
    pub(super) fn gc_records(&self, collection: &mut Collection) -> Result<()> {
        for bundle in entries(&self.pool.place.run.join("bundles"))? {
            let name = bundle.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let (Ok(id), Some(live)) = (name.parse::<Id>(), live::read(&bundle)) else { continue };
            let handle = self.handle_of(&id);
            let Some(found) = self.pool.find_container(name)?.filter(|_| !handle.is_whole()) else {
                continue;
            };
            // Somebody who pauses or stops it holds its lock, and writes the record.
            let dir = self.pool.paths.spark(&found.project, &found.name);
            let Ok(Some(_lock)) = sys::flock::try_lock_dir(&dir) else { continue };
            if !handle.is_whole() {
                let owner = format!("{}/{}", found.project, found.name);
                let item = Item::new("half-written container record", owner, &handle.dir());
                collection.free(item, || handle.mend(&bundle, &live));
            }
        }
        Ok(())
    }

    fn remove_container(&self, id: &Id, bundle: &Path) -> Result<()> {
        self.complete_log(id);
        self.handle_of(id).remove()?;
        self.clear_bundle(bundle, ids::claimed_by(bundle));
        Ok(())
    }

    /// Networks of sparks that ended by themselves, and rules that somebody has flushed.
    pub(super) fn gc_networks(&self, collection: &mut Collection) -> Result<()> {
        let nets = self.pool.place.run.join("net");
        for id in self.ended_networks() {
            let item = Item::new("network of a spark that ended", &id, &nets);
            collection.free(item, || self.drop_network(&id));
        }
        let mend = !collection.is_dry_run();
        if mend {
            self.nets().sweep()?;
        }
        self.gc_old_bridges(collection, &nets)?;
        for (what, whose) in self.nets().unowned(mend)? {
            collection.free(Item::new(what, whose, &nets), || Ok(()));
        }
        let lacks = if mend { self.mend_networks()? } else { self.nets().lacks()? };
        for (what, whose) in lacks.into_iter().map(Lack::item) {
            collection.free(Item::new(what, whose, &nets), || Ok(()));
        }
        Ok(())
    }

    /// Bridges of earlier versions, once the last spark that had been started by them has ended.
    fn gc_old_bridges(&self, collection: &mut Collection, nets: &Path) -> Result<()> {
        let projects = names_in(&self.pool.paths.projects())?;
        let bridges = self.nets().old_bridges(&projects)?;
        let mut others = bridges.len();
        for (bridge, _) in bridges.iter().filter(|(_, is_idle)| *is_idle) {
            others -= 1;
            let item = Item::new("bridge of an earlier version", bridge, nets);
            collection.free(item, || self.nets().remove_old_bridge(bridge, others > 0));
        }
        Ok(())
    }

    /// Ids of bundles of ours that are gone. Other installations of this host look after their own.
    pub(super) fn gc_ids(&self, collection: &mut Collection) -> Result<()> {
        for (first, bundle) in ids::claims() {
            if bundle.starts_with(&self.pool.place.run) && !bundle.exists() {
                collection.free(Item::new("range of user ids", first, &bundle), || {
                    ids::release(first, &bundle);
                    Ok(())
                });
            }
        }
        Ok(())
    }
}
