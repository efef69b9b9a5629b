//! Every container of this installation: those of sparks, and those of bundles.

use std::path::{Path, PathBuf};

use super::Runtime;
use crate::domain::spark::Time;
use crate::error::Result;
use crate::ops::Sparks;

/// A container as a row of a list.
#[derive(Debug, serde::Serialize)]
pub struct Row {
    pub id: String,
    pub state: String,
    /// `project/name`, if it is a spark's.
    pub spark: Option<String>,
    /// As the host numbers it.
    pub pid: Option<i32>,
    pub created: Option<Time>,
    /// The directory that it is known in: `--root` for those who look at it.
    pub root: PathBuf,
    pub bundle: PathBuf,
}

impl Runtime {
    /// The containers of bundles, whatever root they are in.
    pub fn rows(run: &Path) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for runtime in Runtime::everywhere(run)? {
            for status in runtime.list()? {
                rows.push(Row {
                    id: status.id,
                    state: status.status.as_str().into(),
                    spark: None,
                    pid: status.pid,
                    created: status.created,
                    root: runtime.root.clone(),
                    bundle: status.bundle,
                });
            }
        }
        Ok(rows)
    }
}

impl Sparks {
    /// The containers of all sparks that run.
    pub fn containers(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for row in self.list(true)? {
            let spark = crate::ops::spark::SparkId { project: row.project, name: row.name };
            let Ok(record) = self.record(&spark) else { continue };
            let Some(live) = self.live(&record) else { continue };
            rows.push(Row {
                id: record.oci_id.clone(),
                state: self.state(&record).to_string(),
                spark: Some(format!("{}/{}", spark.project, spark.name)),
                pid: Some(live.init.pid),
                created: Some(record.created),
                root: self.context.place.oci(),
                bundle: self.bundle(&record),
            });
        }
        Ok(rows)
    }
}
