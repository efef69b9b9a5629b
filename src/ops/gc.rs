//! `gc`: what crashes and expired trash left.

use std::path::{Path, PathBuf};

use super::Sparks;
use super::spark::SparkId;
use crate::domain::spark::{Id, SparkRecord};
use crate::error::{Error, Result};
use crate::pool::{index::Identity, record, stage};
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
        self.gc_ephemeral(dry_run, &mut items)?;
        self.gc_staging(dry_run, &mut items)?;
        self.gc_trash(dry_run, &mut items)?;
        self.gc_containers(dry_run, &mut items)?;
        self.gc_index(dry_run, &mut items)?;
        self.gc_ids(dry_run, &mut items);
        Ok(items)
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
            if matches!(lock, Ok(None)) {
                continue;
            }
            let made: Option<SparkRecord> = record::read(&path.join("spark.json")).unwrap_or_default();
            let owner = match made {
                Some(record) => format!("spark {}", record.id),
                None => "an operation that did not finish".to_owned(),
            };
            items.push(Item::new("half-made", owner, &path));
            if !dry_run {
                stage::destroy(&path)?;
            }
        }
        Ok(())
    }

    fn gc_trash(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
        let now = chrono::Utc::now();
        for entry in self.pool.trashed()? {
            if entry.origin.until <= now {
                let owner = format!("{}/{}", entry.origin.project, entry.origin.name);
                items.push(Item::new("deleted spark", owner, &entry.path));
                if !dry_run {
                    self.pool.free(&entry)?;
                }
            }
        }
        Ok(())
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
        let handle = crate::runtime::youki::Handle {
            id: id.to_string(),
            oci: self.pool.place.oci(),
            cgroup: crate::bundle::spec::cgroup(id),
        };
        handle.remove()?;
        self.clear_bundle(bundle, ids::claimed_by(bundle));
        Ok(())
    }

    fn gc_index(&self, dry_run: bool, items: &mut Vec<Item>) -> Result<()> {
        for path in entries(&self.pool.place.index())? {
            let id = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if self.pool.find_container(id)?.is_none() {
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

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().map(|e| e.path()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io("list", dir)(e)),
    }
}
