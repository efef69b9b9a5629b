//! `info`: everything known of one spark.

use std::path::PathBuf;

use super::Sparks;
use crate::bundle::spec::cgroup;
use crate::domain::name::{Name, SparkRef};
use crate::domain::options::SparkOptions;
use crate::domain::place::SparkPaths;
use crate::domain::spark::{Id, Origin, State, Time};
use crate::error::Result;
use crate::pool::btrfs;

/// One spark, with both of its identities.
#[derive(Debug, serde::Serialize)]
pub struct Info {
    pub name: Name,
    pub project: Name,
    pub state: State,
    pub id: Id,
    pub created: Time,
    /// The base, spark or snapshot that it was made from.
    pub origin: Origin,
    pub ephemeral: bool,
    /// PID 1, as the host numbers it.
    pub pid: Option<i32>,
    pub oci: Oci,
    pub root: Root,
    pub options: SparkOptions,
    /// What detached commands wrote.
    pub log: PathBuf,
    /// The spark's directory in the pool.
    pub path: PathBuf,
}

/// The container.
#[derive(Debug, serde::Serialize)]
pub struct Oci {
    pub id: String,
    /// The OCI bundle. It is made when the spark starts, and gone when it stops.
    pub bundle: Option<PathBuf>,
    /// libcontainer's root: `youki --root` of this knows the container.
    pub root: PathBuf,
    pub cgroup: PathBuf,
    /// First host id of its range of 65,536.
    pub first_id: Option<u32>,
}

/// The root filesystem.
#[derive(Debug, serde::Serialize)]
pub struct Root {
    /// The subvolume in the pool.
    pub path: PathBuf,
    /// The same as the spark sees it, with all that is mounted.
    pub inside: Option<PathBuf>,
    pub subvolume: Option<btrfs::Info>,
}

impl Sparks {
    /// Everything known of one spark. Takes no lock, so it never waits for another command.
    pub fn info(&self, spark: &SparkRef) -> Result<Info> {
        let spark = self.resolve(spark)?;
        let record = self.record(&spark)?;
        let dir = self.dir(&spark);
        let root = SparkPaths(&dir).root();
        let live = self.live(&record);
        let pid = live.as_ref().map(|l| l.init.pid);
        let subvolume = btrfs::info(&root).ok();
        Ok(Info {
            state: if subvolume.is_some() { self.state(&record) } else { State::Broken },
            name: spark.name,
            project: spark.project,
            created: record.created,
            origin: record.origin.clone(),
            ephemeral: record.ephemeral,
            pid,
            oci: Oci {
                bundle: live.as_ref().map(|_| self.bundle(&record)),
                root: self.pool.place.oci(),
                cgroup: cgroup(&record.id),
                first_id: live.map(|l| l.first_id),
                id: record.oci_id,
            },
            root: Root { inside: pid.map(|p| format!("/proc/{p}/root").into()), path: root, subvolume },
            options: record.options,
            id: record.id,
            log: SparkPaths(&dir).log(),
            path: dir,
        })
    }
}
