//! `rename`: one rename. A running spark goes on; its host name changes at its next start.

use super::spark::SparkId;
use super::{Sparks, hosts};
use crate::domain::name::{Name, SparkRef};
use crate::domain::place::SparkPaths;
use crate::error::{Error, Result};
use crate::pool::index::Identity;
use crate::sys::flock::Mode;
use crate::{fault, sys};

impl Sparks {
    /// Gives a spark another name in its project.
    pub fn rename(&self, spark: &SparkRef, to: &Name) -> Result<()> {
        to.check_for_spark()?;
        let old = self.resolve(spark)?;
        let opened = self.open_spark(&old, Mode::Exclusive)?;
        let new = SparkId { project: old.project.clone(), name: to.clone() };
        let dir = self.dir(&new);
        fault::point("rename.before-rename")?;
        let renamed = || sys::file::rename_new(&opened.dir, &dir).map_err(Error::io("rename", &opened.dir));
        self.pool.with_reserve(renamed).map_err(|e| match e {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => Error::Exists {
                kind: "spark",
                name: to.to_string(),
                in_project: Some(new.project.to_string()),
            },
            e => e,
        })?;
        fault::point("rename.after-rename")?;
        let sparks = self.pool.paths.sparks(&new.project);
        sys::file::sync_dir(&sparks).map_err(Error::io("sync", &sparks))?;
        let identity =
            Identity { project: new.project.clone(), name: new.name.clone(), id: opened.record.id.clone() };
        self.pool.index_spark(&opened.record.oci_id, &identity);
        self.nets().rename(&opened.record.id, to)?;
        if self.live(&opened.record).is_some() {
            let member = self.nets().member(&opened.record.id);
            let section = hosts::section(&new, &opened.record.options, member.as_ref());
            hosts::write(&new, &SparkPaths(&dir).root(), &section);
        }
        Ok(())
    }
}
