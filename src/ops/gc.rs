//! `gc`: what crashes and expired trash left.

use std::path::{Path, PathBuf};

use super::Sparks;
use super::spark::SparkId;
use crate::domain::place::SparkPaths;
use crate::domain::secret::Reference;
use crate::domain::spark::{Id, SparkRecord};
use crate::error::{Error, Result};
use crate::pool::{index::Identity, names_in, record, stage};
use crate::runtime::{ids, live};
use crate::{fault, sys};

/// One thing that was, or would be, collected.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Item {
    /// What it is.
    pub what: String,
    /// Whose it was.
    pub owner: String,
    pub path: String,
}

impl Item {
    pub(super) fn new(what: &str, owner: impl ToString, path: &Path) -> Item {
        Item { what: what.into(), owner: owner.to_string(), path: path.display().to_string() }
    }
}

impl Sparks {
    /// Collects what is left over, or only says what. What another command is working on is never touched.
    pub fn gc(&self, dry_run: bool) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        self.gc_waiting(dry_run, &mut items)?;
        self.gc_still(dry_run, &mut items)?;
        self.gc_ephemeral(dry_run, &mut items)?;
        self.gc_staging(dry_run, &mut items)?;
        self.gc_restores(dry_run, &mut items)?;
        self.gc_trash(dry_run, &mut items)?;
        self.gc_containers(dry_run, &mut items)?;
        self.gc_index(dry_run, &mut items)?;
        self.gc_quotas(dry_run, &mut items)?;
        self.gc_networks(dry_run, &mut items)?;
        self.gc_ids(dry_run, &mut items);
        self.gc_unwritten(dry_run, &mut items)?;
        self.gc_images(dry_run, &mut items)?;
        self.gc_secrets(dry_run, &mut items)?;
        Ok(items)
    }

    /// Files that a command was killed over while it wrote them.
    fn gc_unwritten(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
        let (place, paths) = (&self.pool.place, &self.pool.paths);
        let mut dirs = vec![place.state(), place.index(), place.ephemeral(), paths.top.clone()];
        for project in names_in(&paths.projects())? {
            dirs.push(paths.project(&project));
            dirs.extend(self.sparks_of(&project)?.iter().map(|spark| self.dir(spark)));
        }
        for base in names_in(&paths.bases())? {
            dirs.push(paths.base(&base));
        }
        dirs.extend(entries(&place.secrets())?);
        dirs.push(self.nets().dir_of_members());
        for dir in dirs {
            for path in entries(&dir)?.into_iter().filter(|path| sys::file::is_abandoned(path)) {
                items.push(Item::new("half-written file", "a command that was killed", &path));
                if !dry_run {
                    sys::file::remove(&path).map_err(Error::io("remove", path))?;
                }
            }
        }
        Ok(())
    }

    /// Values in the built-in store whose project or spark is gone, and that nobody else refers to.
    fn gc_secrets(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
        // Whoever sets or deletes one holds its lock. Where there is no store, there is nothing in it.
        let Ok(Some(_lock)) = sys::flock::try_lock_dir(&self.pool.place.secrets()) else { return Ok(()) };
        for dir in entries(&self.pool.place.secrets())? {
            let owner = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            if self.owns_secrets(&owner)? {
                continue;
            }
            for path in entries(&dir)? {
                let key = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".age"));
                let Some(Ok(reference)) = key.map(|key| Reference::stored(&format!("{owner}/{key}"))) else {
                    continue;
                };
                if !self.is_referred(&reference)? {
                    items.push(Item::new("stored secret", &owner, &path));
                    if !dry_run {
                        sys::file::remove(&path).map_err(Error::io("remove", path))?;
                    }
                }
            }
            if !dry_run {
                // Only if nothing is left in it.
                let _ = std::fs::remove_dir(&dir);
            }
        }
        Ok(())
    }

    /// Whether there is a project of a name, or a spark of an id, in the trash or not.
    fn owns_secrets(&self, owner: &str) -> Result<bool> {
        let projects = names_in(&self.pool.paths.projects())?;
        if projects.iter().any(|project| project.as_str() == owner) {
            return Ok(true);
        }
        for project in &projects {
            for spark in self.sparks_of(project)? {
                // What cannot be read may be the one.
                if self.record(&spark).map_or(true, |record| record.id.as_str() == owner) {
                    return Ok(true);
                }
            }
        }
        let trashed = entries(&self.pool.paths.trash())?;
        let is = |dir: &PathBuf| match record::read::<SparkRecord>(&SparkPaths(dir).record()) {
            Ok(record) => record.is_some_and(|record| record.id.as_str() == owner),
            Err(_) => true,
        };
        Ok(trashed.iter().any(is))
    }

    /// Processes that a killed command left waiting for it, with its lock.
    fn gc_waiting(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
        for path in entries(&self.pool.place.run.join("bundles"))? {
            let id = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let Some(found) = self.pool.find_container(id)? else { continue };
            let dir = self.pool.paths.spark(&found.project, &found.name);
            let Ok(fd) = sys::file::open_dir(&dir) else { continue };
            if !matches!(sys::flock::try_lock_dir(&dir), Ok(None)) {
                continue;
            }
            let failed = || Error::io("look at the lock of", &dir);
            for pid in sys::flock::orphans(&fd).map_err(failed())? {
                let owner = format!("{}/{}", found.project, found.name);
                items.push(Item::new("waiting process", owner, Path::new(&format!("/proc/{pid}"))));
            }
            if !dry_run {
                sys::flock::end_orphans(&fd).map_err(failed())?;
            }
        }
        Ok(())
    }

    /// Sparks that a killed command held still.
    fn gc_still(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
        for path in entries(&self.pool.place.run.join("bundles"))? {
            let Some(id) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<Id>().ok())
            else {
                continue;
            };
            let left = if dry_run { self.left_still(&id)?.is_some() } else { self.let_go(&id)? };
            if left {
                items.push(Item::new("frozen spark", "a command that was killed", &path));
            }
        }
        Ok(())
    }

    fn gc_ephemeral(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
        for left in self.pool.abandoned()? {
            let spark = SparkId { project: left.project, name: left.name };
            items.push(Item::new(
                "ephemeral spark",
                format!("{}/{}", spark.project, spark.name),
                &self.dir(&spark),
            ));
        }
        if dry_run { Ok(()) } else { self.collect_abandoned() }
    }

    fn gc_staging(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
        for path in entries(&self.pool.paths.staging())? {
            // Whoever is making something holds its lock.
            let lock = sys::flock::try_lock_dir(&path);
            match &lock {
                Ok(None) => continue,
                // It was being finished while we looked.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                _ => {}
            }
            let owner = owner_of(&path);
            items.push(Item::new("half-made", owner, &path));
            if !dry_run {
                stage::destroy(&path)?;
            }
        }
        Ok(())
    }

    /// Roots that were to take a spark's place, and did not.
    fn gc_restores(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
        for project in names_in(&self.pool.paths.projects())? {
            for spark in self.sparks_of(&project)? {
                let leftovers = self.unfinished(&spark)?;
                if leftovers.is_empty() {
                    continue;
                }
                // Somebody who restores it holds its lock.
                let Ok(Some(_lock)) = sys::flock::try_lock_dir(&self.dir(&spark)) else { continue };
                let owner = format!("{}/{}", spark.project, spark.name);
                items.extend(
                    leftovers.iter().map(|dir| Item::new("restore that did not happen", &owner, dir)),
                );
                if !dry_run {
                    self.settle(&spark)?;
                }
            }
        }
        Ok(())
    }

    fn gc_trash(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
        let now = chrono::Utc::now();
        for entry in self.pool.trashed()?.iter().filter(|entry| entry.origin.until <= now) {
            // Somebody is bringing it back.
            let Ok(Some(_lock)) = sys::flock::try_lock_dir(&entry.path) else { continue };
            let owner = format!("{}/{}", entry.origin.project, entry.origin.name);
            items.push(Item::new("deleted spark", owner, &entry.path));
            if !dry_run {
                self.pool.free(entry)?;
            }
        }
        if !dry_run {
            fault::point("gc.freed")?;
            self.pool.note_left();
        }
        Ok(())
    }

    /// Whether something in the trash has expired. Costs the look at one file.
    pub fn has_expired_trash(&self) -> bool {
        self.pool.next_expiry().is_some_and(|next| next <= chrono::Utc::now())
    }

    /// Frees what has expired in the trash, and nothing else.
    ///
    /// # Errors
    /// What cannot be freed is tried again by a command a minute later.
    pub fn empty_trash(&self) -> Result<()> {
        // Before: whoever looks meanwhile finds a time that is not past.
        self.pool.postpone_expiry();
        self.gc_trash(false, &mut Vec::new())
    }

    /// Containers and bundles that belong to no running spark.
    fn gc_containers(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
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
            items.push(Item::new("container that ended", owner, &path));
            if !dry_run {
                self.remove_container(&id, &bundle)?;
            }
            seen.push(id);
        }
        Ok(())
    }

    /// Removes what is left of sparks that ended by themselves.
    pub(super) fn collect_ended(&self) -> Result<()> {
        self.gc_containers(false, &mut Vec::new())
    }

    fn remove_container(&self, id: &Id, bundle: &Path) -> Result<()> {
        self.note_killed(id);
        self.handle_of(id).remove()?;
        self.clear_bundle(bundle, ids::claimed_by(bundle));
        Ok(())
    }

    /// What counted for sparks that are gone.
    fn gc_quotas(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
        let paths = &self.pool.paths;
        let mut dirs = entries(&paths.trash())?;
        dirs.extend(entries(&paths.staging())?);
        for project in names_in(&paths.projects())? {
            dirs.extend(self.sparks_of(&project)?.iter().map(|spark| self.dir(spark)));
        }
        let mut ids = Vec::new();
        for dir in dirs {
            match record::read::<SparkRecord>(&dir.join("spark.json")) {
                Ok(Some(record)) => ids.push(record.id),
                Ok(None) => {}
                // Whose group that is, nobody can tell now.
                Err(_) => return Ok(()),
            }
        }
        for group in self.pool.groups_but(&ids)? {
            items.push(Item::new("disk quota", "a spark that is gone", &paths.top));
            if !dry_run {
                self.pool.remove_group(group)?;
            }
        }
        Ok(())
    }

    fn gc_index(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
        for path in entries(&self.pool.place.index())? {
            let id = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            // An entry that is being written is no entry yet.
            if id.starts_with('.') {
                continue;
            }
            // A record that cannot be read may be mended, and its spark may run.
            let damaged = || {
                let entry = self.pool.indexed(id)?;
                let spark = SparkId { project: entry.project, name: entry.name };
                matches!(self.record(&spark), Err(Error::Corrupt { .. })).then_some(())
            };
            if self.pool.find_container(id)?.is_none() && damaged().is_none() {
                items.push(Item::new("index entry", "no spark", &path));
                if !dry_run {
                    self.pool.unindex_spark(id)?;
                }
            }
        }
        Ok(())
    }

    /// Networks of sparks that ended by themselves, and rules that somebody has flushed.
    fn gc_networks(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
        for id in self.left_networks() {
            items.push(Item::new("network of a spark that ended", &id, &self.pool.place.run.join("net")));
        }
        if !dry_run {
            self.collect_networks()?;
            self.nets().sweep()?;
        }
        if self.nets().lacks_filter(!dry_run)? {
            items.push(Item::new(
                "packet filter that was flushed",
                "project networks",
                &self.pool.place.run.join("net"),
            ));
        }
        if self.nets().is_cut(!dry_run)? {
            items.push(Item::new(
                "chain of the packet filter that drops what sparks send",
                "somebody else",
                &self.pool.place.run.join("net"),
            ));
        }
        Ok(())
    }

    /// Ids of bundles of ours that are gone. Other installations of this host look after their own.
    fn gc_ids(&self, dry_run: bool, items: &mut Vec<Item>) {
        for (first, bundle) in ids::claims() {
            if bundle.starts_with(&self.pool.place.run) && !bundle.exists() {
                items.push(Item::new("range of user ids", first, &bundle));
                if !dry_run {
                    ids::release(first, &bundle);
                }
            }
        }
    }
}

/// Whose something half-made or half-freed was, as far as that can be told.
fn owner_of(path: &Path) -> String {
    if let Ok(Some(record)) = record::read::<SparkRecord>(&path.join("spark.json")) {
        return format!("spark {}", record.id);
    }
    let kinds = [
        ("base.json", "a base"),
        ("layer.json", "a layer of an image"),
        ("image.json", "an image"),
        ("volume.json", "a data volume"),
        ("project.json", "a project"),
        ("project", "a project"),
    ];
    let kind = kinds.iter().find(|(file, _)| path.join(file).exists());
    kind.map_or("an operation that did not finish", |(_, kind)| kind).to_owned()
}

pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().map(|e| e.path()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io("list", dir)(e)),
    }
}
