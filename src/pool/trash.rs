//! `trash/`: what was deleted, with where it came from, until its time is up.

use std::path::{Path, PathBuf};

use super::{Pool, record, stage};
use crate::domain::FORMAT;
use crate::domain::name::Name;
use crate::domain::place::SparkPaths;
use crate::domain::spark::{Id, Time};
use crate::error::{Error, Result};
use crate::{fault, sys};

/// How long a deleted spark can be brought back.
pub const KEEP: chrono::Duration = chrono::Duration::hours(24);

/// `trash.json`: where a deleted spark came from.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    pub version: u32,
    pub project: Name,
    pub name: Name,
    pub deleted: Time,
    pub until: Time,
}

/// One deleted spark.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its directory's name: sorts by the time of deletion.
    pub id: Id,
    pub path: PathBuf,
    pub origin: Origin,
}

impl Pool {
    /// Moves a spark's directory into the trash: one rename, durable once this returned. The caller holds the
    /// spark's exclusive lock.
    pub fn discard(&self, dir: &Path, project: &Name, name: &Name, keep: chrono::Duration) -> Result<Entry> {
        let deleted = chrono::Utc::now();
        let origin = Origin {
            version: FORMAT,
            project: project.clone(),
            name: name.clone(),
            deleted,
            until: deleted + keep,
        };
        record::replace(&SparkPaths(dir).origin(), &origin)?;
        fault::point("delete.before-rename")?;
        let id = Id::generate();
        let path = self.paths.trash().join(id.as_str());
        sys::file::rename_new(dir, &path).map_err(Error::io("delete", dir))?;
        fault::point("delete.after-rename")?;
        for dir in [&self.paths.trash(), &self.paths.sparks(project)] {
            sys::file::sync_dir(dir).map_err(Error::io("sync", dir))?;
        }
        Ok(Entry { id, path, origin })
    }

    /// Frees a spark's directory at once: gone by one rename, durable once this returned. The caller holds its
    /// exclusive lock, which goes along and keeps `gc` from doing the rest a second time. Writes nothing, since this
    /// is how to make room in a pool that is full.
    pub fn destroy(&self, dir: &Path, project: &Name) -> Result<()> {
        fault::point("delete-now.before-rename")?;
        let gone = self.paths.staging().join(Id::generate().as_str());
        match sys::file::rename_new(dir, &gone) {
            // There is no room even for a name. What removes has a reserve of its own, so it is done in place.
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => return stage::destroy(dir),
            other => other.map_err(Error::io("delete", dir))?,
        }
        fault::point("delete-now.after-rename")?;
        let sparks = self.paths.sparks(project);
        sys::file::sync_dir(&sparks).map_err(Error::io("sync", &sparks))?;
        stage::destroy(&gone)
    }

    /// Frees one entry at once.
    pub fn free(&self, entry: &Entry) -> Result<()> {
        stage::destroy(&entry.path)
    }

    /// Everything in the trash, oldest first. What does not say where it came from is passed over: `gc` names it.
    pub fn trashed(&self) -> Result<Vec<Entry>> {
        let dir = self.paths.trash();
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let path = entry.map_err(Error::io("list", &dir))?.path();
            let id = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<Id>().ok());
            if let (Some(id), Ok(Some(origin))) = (id, record::read::<Origin>(&SparkPaths(&path).origin())) {
                entries.push(Entry { id, path, origin });
            }
        }
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(entries)
    }
}
