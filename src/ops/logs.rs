//! `logs`: what detached commands wrote.

use std::path::{Path, PathBuf};

use super::Sparks;
use super::spark::SparkId;
use crate::bundle::spec::cgroup;
use crate::domain::name::SparkRef;
use crate::domain::place::SparkPaths;
use crate::error::{Error, Result};
use crate::runtime::log::{self, Log};

/// A spark's log, to be read.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    reader: log::Reader,
}

impl Sparks {
    /// The log of a spark, from its last `tail` lines on or from its beginning: all that was written before this was called.
    pub fn read_log(&self, spark: &SparkRef, tail: Option<u64>) -> Result<Reader> {
        let spark = self.resolve(spark)?;
        let path = SparkPaths(&self.dir(&spark)).log();
        let group = cgroup(&self.record(&spark)?.id);
        log::settle(&group, &path).map_err(Error::io("read", &path))?;
        Ok(Reader { reader: log::Reader::new(&path, tail), path })
    }

    /// The log of the spark in a directory, to be written.
    pub(super) fn open_log(&self, dir: &Path) -> Result<Log> {
        let path = SparkPaths(dir).log();
        Log::open(&path).map_err(Error::io("open", path))
    }

    /// Writes a line of ours to a spark's log.
    pub(super) fn note_in_log(&self, spark: &SparkId, line: &str) -> Result<()> {
        let dir = self.dir(spark);
        let log = self.open_log(&dir)?;
        log.append(&format!("spark: {line}\n")).map_err(Error::io("write", SparkPaths(&dir).log()))
    }
}

impl Reader {
    /// The newer file of the log. It is there once something was written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Passes on what is new, in pieces. `to` may fail.
    pub fn pass_on(&mut self, to: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let failed = |e| Error::io("read", &self.path)(e);
        self.reader.pass_on(to, failed)
    }

    /// The bytes that were gone before they could be passed on, since this was last asked.
    pub fn take_lost(&mut self) -> u64 {
        self.reader.take_lost()
    }
}
