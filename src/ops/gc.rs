//! `gc`: what crashes and expired trash left.

use std::path::{Path, PathBuf};

use super::Sparks;
use super::spark::SparkId;
use crate::domain::spark::{Id, SparkRecord};
use crate::error::{Error, Result};
use crate::pool::{index::Identity, names_in, record, stage};
use crate::runtime::{ids, live};
use crate::sys;

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
    fn new(what: &str, owner: impl ToString, path: &Path) -> Item {
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
        self.gc_ids(dry_run, &mut items);
        self.gc_unwritten(dry_run, &mut items)?;
        Ok(items)
    }

    /// Files that a command was killed over while it wrote them.
    fn gc_unwritten(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
        let (place, paths) = (&self.pool.place, &self.pool.paths);
        let mut dirs = vec![place.index(), place.ephemeral(), paths.top.clone()];
        for project in names_in(&paths.projects())? {
            dirs.push(paths.project(&project));
            dirs.extend(self.sparks_of(&project)?.iter().map(|spark| self.dir(spark)));
        }
        for base in names_in(&paths.bases())? {
            dirs.push(paths.base(&base));
        }
        for dir in dirs {
            for path in entries(&dir)?.into_iter().filter(|path| sys::file::is_abandoned(path)) {
                items.push(Item::new("half-written file", "a command that was killed", &path));
                if !dry_run {
                    remove_file(&path)?;
                }
            }
        }
        Ok(())
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
        let (expired, kept): (Vec<_>, Vec<_>) =
            self.pool.trashed()?.into_iter().partition(|entry| entry.origin.until <= now);
        for entry in &expired {
            // Somebody is bringing it back.
            let Ok(Some(_lock)) = sys::flock::try_lock_dir(&entry.path) else { continue };
            let owner = format!("{}/{}", entry.origin.project, entry.origin.name);
            items.push(Item::new("deleted spark", owner, &entry.path));
            if !dry_run {
                self.pool.free(entry)?;
            }
        }
        if !dry_run {
            self.pool.set_next_expiry(kept.iter().map(|entry| entry.origin.until).min());
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
        // Before: whoever deletes something meanwhile, or looks, finds a time that is not past.
        self.pool.set_next_expiry(Some(chrono::Utc::now() + chrono::Duration::minutes(1)));
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

    fn remove_container(&self, id: &Id, bundle: &Path) -> Result<()> {
        self.handle_of(id).remove()?;
        self.clear_bundle(bundle, ids::claimed_by(bundle));
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
        ("volume.json", "a data volume"),
        ("project.json", "a project"),
        ("project", "a project"),
    ];
    let kind = kinds.iter().find(|(file, _)| path.join(file).exists());
    kind.map_or("an operation that did not finish", |(_, kind)| kind).to_owned()
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().map(|e| e.path()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io("list", dir)(e)),
    }
}
