//! `list`: the sparks, and the deleted ones. Takes no lock.

use super::Sparks;
use super::spark::{SparkId, damage_of};
use crate::domain::name::Name;
use crate::domain::place::SparkPaths;
use crate::domain::spark::{Id, Labels, State, Time};
use crate::error::{Error, Result};
use crate::pool::names_in;

/// One spark.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Row {
    pub project: Name,
    pub name: Name,
    /// None if it is broken.
    pub id: Option<Id>,
    pub state: State,
    /// The base or spark that it was made from.
    pub origin: Option<String>,
    pub created: Option<Time>,
    pub labels: Labels,
    pub ephemeral: bool,
    /// What is wrong with it.
    pub broken: Option<String>,
}

/// One deleted spark.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DeletedRow {
    pub project: Name,
    pub name: Name,
    /// What to give to `undelete`.
    pub id: Id,
    pub deleted: Time,
    pub until: Time,
}

impl Sparks {
    /// The sparks of this project, or of all, by name.
    pub fn list(&self, all_projects: bool) -> Result<Vec<Row>> {
        let projects =
            if all_projects { names_in(&self.pool.paths.projects())? } else { vec![self.project()?] };
        let mut rows = Vec::new();
        for project in projects {
            for spark in self.sparks_of(&project)? {
                match self.row(spark) {
                    // Deleted while we looked.
                    Err(Error::NotFound { .. }) => {}
                    row => rows.push(row?),
                }
            }
        }
        Ok(rows)
    }

    fn row(&self, spark: SparkId) -> Result<Row> {
        let record = match self.record(&spark) {
            Ok(record) => record,
            Err(e @ Error::NotFound { .. }) => return Err(e),
            Err(e) => return Ok(Row::broken(spark, e.to_string())),
        };
        let root = SparkPaths(&self.dir(&spark)).root();
        let damage = damage_of(&root);
        Ok(Row {
            state: if damage.is_none() { self.state(&record) } else { State::Broken },
            project: spark.project,
            name: spark.name,
            id: Some(record.id),
            origin: Some(record.origin.to_string()),
            created: Some(record.created),
            labels: record.options.labels,
            ephemeral: record.ephemeral,
            broken: damage.map(str::to_owned),
        })
    }

    /// What can be brought back, oldest first.
    pub fn list_deleted(&self, all_projects: bool) -> Result<Vec<DeletedRow>> {
        let project = self.project()?;
        let now = chrono::Utc::now();
        Ok(self
            .pool
            .trashed()?
            .into_iter()
            .filter(|e| (all_projects || e.origin.project == project) && e.origin.until > now)
            .map(|e| DeletedRow {
                project: e.origin.project,
                name: e.origin.name,
                id: e.id,
                deleted: e.origin.deleted,
                until: e.origin.until,
            })
            .collect())
    }
}

impl Row {
    fn broken(spark: SparkId, why: String) -> Row {
        Row {
            project: spark.project,
            name: spark.name,
            id: None,
            state: State::Broken,
            origin: None,
            created: None,
            labels: Labels::new(),
            ephemeral: false,
            broken: Some(why),
        }
    }
}
