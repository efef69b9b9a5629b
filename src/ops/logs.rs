//! `logs`: what detached commands wrote.

use std::path::PathBuf;

use super::Sparks;
use crate::domain::name::SparkRef;
use crate::domain::place::SparkPaths;
use crate::error::Result;

impl Sparks {
    /// The log's file. It is there once something was written.
    pub fn log_path(&self, spark: &SparkRef) -> Result<PathBuf> {
        let spark = self.resolve(spark)?;
        Ok(SparkPaths(&self.dir(&spark)).log())
    }
}
