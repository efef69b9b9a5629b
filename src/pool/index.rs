//! `state/`: from container ids to sparks, and the sparks that end with their command.
//!
//! An index, not a truth: the records are. Every entry is checked against them, and made again where it is
//! missing or wrong, so nothing here is synced.

use std::io;
use std::path::{Path, PathBuf};

use super::{Pool, names_in, record};
use crate::domain::name::Name;
use crate::domain::spark::{Id, SparkRecord};
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::process::ProcessId;

/// Which spark a container is, as it stands in `state/oci/CONTAINER`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    pub project: Name,
    pub name: Name,
    pub id: Id,
}

/// A spark that ends with the command that made it, as it stands in `state/ephemeral/ID`.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Ephemeral {
    pub spark: Identity,
    pub owner: ProcessId,
}

impl Pool {
    /// Enters a spark, or corrects its entry. An entry that cannot be written costs time, and no operation fails over it:
    /// the records are the truth.
    pub fn index_spark(&self, oci_id: &str, identity: &Identity) {
        if let Err(e) = write(&self.place.index(), oci_id, identity) {
            tracing::warn!("cannot write the index: {e}");
        }
    }

    /// Removes a spark's entry. `gc` names what cannot be removed.
    pub fn unindex_spark(&self, oci_id: &str) {
        if let Err(e) = remove(&self.place.index().join(oci_id)) {
            tracing::warn!("cannot correct the index: {e}");
        }
    }

    /// Finds the spark of a container. A wrong or missing entry is found from the records, and corrected.
    pub fn find_container(&self, oci_id: &str) -> Result<Option<Identity>> {
        let id: Id = match oci_id.parse() {
            Ok(id) => id,
            Err(_) => return Ok(None),
        };
        if let Some(found) = read::<Identity>(&self.place.index().join(id.as_str()))
            && self.holds(&found, oci_id)
        {
            return Ok(Some(found));
        }
        for project in names_in(&self.paths.projects())? {
            for name in names_in(&self.paths.sparks(&project))? {
                let found = Identity { project: project.clone(), name, id: id.clone() };
                if self.holds(&found, oci_id) {
                    self.index_spark(oci_id, &found);
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// What stands in the index of a container, checked against nothing.
    pub fn indexed(&self, oci_id: &str) -> Option<Identity> {
        read(&self.place.index().join(oci_id))
    }

    /// The containers that a spark has had, for one whose record cannot be read. None of them is another spark's.
    pub fn containers_of(&self, project: &Name, name: &Name) -> Result<Vec<Id>> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(self.place.index()).into_iter().flatten().flatten() {
            let Some(found) = read::<Identity>(&entry.path()) else { continue };
            if found.project == *project
                && found.name == *name
                && self.find_container(found.id.as_str())?.is_none_or(|now| now == found)
            {
                ids.push(found.id);
            }
        }
        Ok(ids)
    }

    fn holds(&self, identity: &Identity, oci_id: &str) -> bool {
        let path = self.paths.spark(&identity.project, &identity.name).join("spark.json");
        matches!(record::read::<SparkRecord>(&path), Ok(Some(r)) if r.oci_id == oci_id && r.id == identity.id)
    }

    /// Says that a spark ends with this process.
    pub fn index_ephemeral(&self, entry: &Ephemeral) -> Result<()> {
        write(&self.place.ephemeral(), entry.spark.id.as_str(), entry)
    }

    /// Removes that again.
    pub fn unindex_ephemeral(&self, id: &Id) -> Result<()> {
        remove(&self.place.ephemeral().join(id.as_str()))
    }

    /// The sparks whose command is gone.
    pub fn abandoned(&self) -> Result<Vec<Identity>> {
        let dir = self.place.ephemeral();
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("list", dir)(e)),
        };
        Ok(entries
            .filter_map(|e| read::<Ephemeral>(&e.ok()?.path()))
            .filter(|e| !e.owner.alive())
            .map(|e| e.spark)
            .collect())
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write<T: serde::Serialize>(dir: &Path, name: &str, value: &T) -> Result<()> {
    let path: PathBuf = dir.join(name);
    let content = record::bytes(value)?;
    match sys::file::replace_volatile(&path, &content) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
            sys::file::replace_volatile(&path, &content)
        }
        other => other,
    }
    .map_err(Error::io("write", path))
}

fn remove(path: &Path) -> Result<()> {
    sys::file::remove(path).map_err(Error::io("remove", path))
}
