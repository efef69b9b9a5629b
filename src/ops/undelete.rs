//! `undelete`: out of the trash again.

use super::Sparks;
use super::spark::SparkId;
use crate::domain::name::{Name, SparkRef};
use crate::domain::place::SparkPaths;
use crate::domain::spark::SparkRecord;
use crate::error::{Error, Result};
use crate::pool::index::Identity;
use crate::pool::{record, trash};
use crate::sys::flock::Mode;
use crate::{fault, sys};

impl Sparks {
    /// Brings back the newest deleted spark of a name, or the one with an id.
    pub fn undelete(&self, what: &str, as_name: Option<Name>) -> Result<SparkId> {
        let entry = self.find_deleted(what)?;
        let spark = SparkId {
            project: entry.origin.project.clone(),
            name: as_name.unwrap_or_else(|| entry.origin.name.clone()),
        };
        let not_there = || not_deleted(what, &self.pool.trashed().unwrap_or_default());
        let Some(_lock) = self.pool.lock(&entry.path, Mode::Exclusive)? else { return Err(not_there()) };
        self.ensure_project(&spark.project)?;
        let project = self.pool.paths.project(&spark.project);
        let Some(_project) = self.pool.lock(&project, Mode::Shared)? else { return Err(not_there()) };
        let dir = self.dir(&spark);
        fault::point("undelete.before-rename")?;
        let renamed = || sys::file::rename_new(&entry.path, &dir).map_err(Error::io("bring back", &dir));
        self.pool.with_reserve(renamed).map_err(|e| match e {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => {
                Error::WrongState {
                    action: "bring back",
                    kind: "spark",
                    name: spark.name.to_string(),
                    state: "a name that another spark has now".into(),
                    hint: format!("give it another with `spark undelete {what} --as NEW`"),
                }
            }
            e => e,
        })?;
        fault::point("undelete.after-rename")?;
        for dir in [self.pool.paths.sparks(&spark.project), self.pool.paths.trash()] {
            sys::file::sync_dir(&dir).map_err(Error::io("sync", &dir))?;
        }
        fault::point("undelete.synced")?;
        let _ = std::fs::remove_file(SparkPaths(&dir).origin());
        if let Ok(Some(found)) = record::read::<SparkRecord>(&SparkPaths(&dir).record()) {
            let identity =
                Identity { project: spark.project.clone(), name: spark.name.clone(), id: found.id };
            self.pool.index_spark(&found.oci_id, &identity);
        }
        Ok(spark)
    }

    fn find_deleted(&self, what: &str) -> Result<trash::Entry> {
        let entries = self.pool.trashed()?;
        let by_name: Option<SparkRef> = what.parse().ok();
        let project = by_name.as_ref().map(|r| self.project_of(r)).transpose()?;
        let newest = entries.iter().rev().find(|e| {
            e.id.as_str().eq_ignore_ascii_case(what)
                || by_name
                    .as_ref()
                    .is_some_and(|r| r.name == e.origin.name && project.as_ref() == Some(&e.origin.project))
        });
        newest.cloned().ok_or_else(|| not_deleted(what, &entries))
    }
}

fn not_deleted(what: &str, entries: &[trash::Entry]) -> Error {
    Error::NotFound {
        kind: "deleted spark",
        name: what.escape_default().to_string(),
        in_project: None,
        near: super::near(what, entries.iter().map(|e| e.origin.name.as_str())),
    }
}
