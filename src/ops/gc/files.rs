//! Collectors of what is left on disk, in the pool and in its indexes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::super::Sparks;
use super::super::spark::SparkId;
use super::{Collection, Item, entries};
use crate::domain::place::SparkPaths;
use crate::domain::secret::Reference;
use crate::domain::spark::{Id, SparkRecord};
use crate::error::{Error, Result};
use crate::pool::{names_in, record, stage};
use crate::{fault, sys};

impl Sparks {
    /// Things half-made or half-freed.
    pub(super) fn gc_staging(&self, collection: &mut Collection) -> Result<()> {
        for path in entries(&self.pool.paths.staging())? {
            // Whoever is making something holds its lock.
            let lock = sys::flock::try_lock_dir(&path);
            match &lock {
                Ok(None) => continue,
                // It was being finished while we looked.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                _ => {}
            }
            collection.free(Item::new("half-made", owner_of(&path), &path), || stage::destroy(&path));
        }
        Ok(())
    }

    /// Signs that a killed command made something.
    pub(super) fn gc_making(&self, collection: &mut Collection) -> Result<()> {
        for path in entries(&self.pool.place.making())? {
            // Whoever makes something holds its lock.
            let Ok(Some(_lock)) = sys::flock::try_lock_dir(&path) else { continue };
            let item = Item::new("lock", "a command that was killed", &path);
            collection.free(item, || std::fs::remove_dir(&path).map_err(Error::io("remove", &path)));
        }
        Ok(())
    }

    /// Roots that were to take a spark's place, and did not.
    pub(super) fn gc_restores(&self, collection: &mut Collection) -> Result<()> {
        for spark in self.all_sparks()? {
            match self.unfinished(&spark) {
                Ok(leftovers) if leftovers.is_empty() => {}
                Ok(leftovers) => self.gc_restore(&spark, &leftovers, collection),
                Err(e) => collection.fail(e),
            }
        }
        Ok(())
    }

    fn gc_restore(&self, spark: &SparkId, leftovers: &[PathBuf], collection: &mut Collection) {
        // Somebody who restores it holds its lock.
        let Ok(Some(_lock)) = sys::flock::try_lock_dir(&self.dir(spark)) else { return };
        let settled = if collection.is_dry_run() { Ok(()) } else { self.settle(spark) };
        if let Err(e) = settled {
            return collection.fail(e);
        }
        let owner = format!("{}/{}", spark.project, spark.name);
        for dir in leftovers {
            collection.free(Item::new("restore that did not happen", &owner, dir), || Ok(()));
        }
    }

    /// Deleted sparks whose time in the trash is over.
    pub(super) fn gc_trash(&self, collection: &mut Collection) -> Result<()> {
        let now = chrono::Utc::now();
        for entry in self.pool.trashed()?.iter().filter(|entry| entry.origin.until <= now) {
            // Somebody is bringing it back.
            let Ok(Some(_lock)) = sys::flock::try_lock_dir(&entry.path) else { continue };
            let owner = format!("{}/{}", entry.origin.project, entry.origin.name);
            collection.free(Item::new("deleted spark", owner, &entry.path), || self.pool.free(entry));
        }
        if !collection.is_dry_run() {
            fault::point("gc.freed")?;
            self.pool.note_left();
        }
        Ok(())
    }

    /// Entries of the index that lead to no spark.
    pub(super) fn gc_index(&self, collection: &mut Collection) -> Result<()> {
        for path in entries(&self.pool.place.index())? {
            let id = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            // An entry that is being written is no entry yet.
            if id.starts_with('.') {
                continue;
            }
            if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                let hint = Some("nothing of Sparks makes one there: move it away".into());
                let why = "it is a directory, and an entry of the index is a file".into();
                collection.fail(Error::Corrupt { path, why, hint });
                continue;
            }
            // A record that cannot be read may be mended, and its spark may run.
            let damaged = || {
                let entry = self.pool.indexed(id)?;
                let spark = SparkId { project: entry.project, name: entry.name };
                matches!(self.record(&spark), Err(Error::Corrupt { .. })).then_some(())
            };
            if self.pool.find_container(id)?.is_none() && damaged().is_none() {
                let item = Item::new("index entry", "no spark", &path);
                collection.free(item, || sys::file::remove(&path).map_err(Error::io("remove", &path)));
            }
        }
        Ok(())
    }

    /// What counted the disk space of sparks that are gone.
    pub(super) fn gc_quotas(&self, collection: &mut Collection) -> Result<()> {
        let Some(ids) = self.recorded_ids()? else { return Ok(()) };
        for group in self.pool.groups_but(&ids)? {
            let item = Item::new("disk quota", "a spark that is gone", &self.pool.paths.top);
            collection.free(item, || self.pool.remove_group(group));
        }
        Ok(())
    }

    /// Claims on addresses of sparks that are gone: a command that makes or deletes a spark was killed.
    pub(super) fn gc_addresses(&self, collection: &mut Collection) -> Result<()> {
        let nets = self.nets();
        // Listed first: a spark that is made meanwhile has its record before the records are read. If it has none yet, it claims
        // its number again when it starts.
        let claims = nets.claims();
        let Some(ids) = self.recorded_ids()? else { return Ok(()) };
        for claim in claims.iter().filter(|claim| !ids.contains(&claim.id)) {
            let item = Item::new("address", "a spark that is gone", &claim.path);
            collection.free(item, || {
                nets.release_number(&claim.project, &claim.id, claim.number);
                Ok(())
            });
        }
        Ok(())
    }

    /// The ids of all sparks, in the trash and half-made too. None if a record cannot be read: then nobody can tell whose what is.
    fn recorded_ids(&self) -> Result<Option<HashSet<Id>>> {
        let paths = &self.pool.paths;
        let mut dirs = entries(&paths.trash())?;
        dirs.extend(entries(&paths.staging())?);
        dirs.extend(self.all_sparks()?.iter().map(|spark| self.dir(spark)));
        let mut ids = HashSet::new();
        for dir in dirs {
            match record::read::<SparkRecord>(&dir.join("spark.json")) {
                Ok(found) => ids.extend(found.map(|record| record.id)),
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(ids))
    }

    /// Files that a command was killed over while it wrote them.
    pub(super) fn gc_unwritten(&self, collection: &mut Collection) -> Result<()> {
        let (place, paths) = (&self.pool.place, &self.pool.paths);
        let mut dirs = vec![place.state(), place.index(), place.ephemeral(), paths.top.clone()];
        dirs.extend(names_in(&paths.projects())?.iter().map(|project| paths.project(project)));
        dirs.extend(self.all_sparks()?.iter().map(|spark| self.dir(spark)));
        dirs.extend(names_in(&paths.bases())?.iter().map(|base| paths.base(base)));
        dirs.extend(entries(&place.secrets())?);
        dirs.push(self.nets().dir_of_members());
        dirs.extend(self.nets().dirs_of_claims());
        for dir in dirs {
            for path in entries(&dir)?.into_iter().filter(|path| sys::file::is_abandoned(path)) {
                let item = Item::new("half-written file", "a command that was killed", &path);
                collection.free(item, || sys::file::remove(&path).map_err(Error::io("remove", &path)));
            }
        }
        Ok(())
    }

    /// Values in the built-in store whose project or spark is gone, and that nobody else refers to.
    pub(super) fn gc_secrets(&self, collection: &mut Collection) -> Result<()> {
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
                    let item = Item::new("stored secret", &owner, &path);
                    collection.free(item, || sys::file::remove(&path).map_err(Error::io("remove", &path)));
                }
            }
            if !collection.is_dry_run() {
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
        for spark in self.all_sparks()? {
            // What cannot be read may be the one.
            if self.record(&spark).map_or(true, |record| record.id.as_str() == owner) {
                return Ok(true);
            }
        }
        let trashed = entries(&self.pool.paths.trash())?;
        let is = |dir: &PathBuf| match record::read::<SparkRecord>(&SparkPaths(dir).record()) {
            Ok(record) => record.is_some_and(|record| record.id.as_str() == owner),
            Err(_) => true,
        };
        Ok(trashed.iter().any(is))
    }

    /// The sparks of all projects.
    fn all_sparks(&self) -> Result<Vec<SparkId>> {
        let mut all = Vec::new();
        for project in names_in(&self.pool.paths.projects())? {
            all.extend(self.sparks_of(&project)?);
        }
        Ok(all)
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
