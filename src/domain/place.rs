//! Where everything is: the paths below `SPARK_ROOT` and `SPARK_RUN`.

use std::path::{Path, PathBuf};

use super::image::Digest;
use super::name::Name;
use super::spark::Id;

/// Default of `SPARK_ROOT`.
pub const ROOT: &str = "/var/lib/spark";
/// Default of `SPARK_RUN`.
pub const RUN: &str = "/run/spark";

/// The two directories that everything of one installation is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What persists.
    pub root: PathBuf,
    /// What a reboot ends.
    pub run: PathBuf,
}

impl Default for Place {
    fn default() -> Self {
        Place { root: ROOT.into(), run: RUN.into() }
    }
}

impl Place {
    /// The file that holds the pool where `root` is not on btrfs.
    pub fn loop_image(&self) -> PathBuf {
        self.root.join("pool.btrfs")
    }

    /// The btrfs.
    pub fn pool(&self) -> PathBuf {
        self.root.join("pool")
    }

    /// What was done to pools that could not be mounted, a line each.
    pub fn repairs(&self) -> PathBuf {
        self.root.join("repairs.log")
    }

    /// The built-in store of secrets.
    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// What makes commands fast and could be found again.
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// The index from container ids to sparks.
    pub fn index(&self) -> PathBuf {
        self.state().join("oci")
    }

    /// The index of sparks that end with the command that made them.
    pub fn ephemeral(&self) -> PathBuf {
        self.state().join("ephemeral")
    }

    /// What commands make at this moment.
    pub fn making(&self) -> PathBuf {
        self.state().join("making")
    }

    /// When the first of the trash expires.
    pub fn next_expiry(&self) -> PathBuf {
        self.state().join("trash")
    }

    /// libcontainer's own root: `youki --root` of this lists the sparks.
    pub fn oci(&self) -> PathBuf {
        self.run.join("oci")
    }

    /// Locked by the process that watches the room of a growing pool.
    pub fn watch(&self) -> PathBuf {
        self.run.join("watch")
    }

    /// Locked, shared, by commands that write into a growing pool.
    pub fn writers(&self) -> PathBuf {
        self.watch().join("writers")
    }

    /// The OCI bundle of a running spark.
    pub fn bundle(&self, id: &Id) -> PathBuf {
        self.run.join("bundles").join(id.as_str())
    }
}

/// Paths inside the pool.
#[derive(Debug, Clone)]
pub struct PoolPaths {
    /// The pool's top.
    pub top: PathBuf,
}

impl PoolPaths {
    pub fn layout(&self) -> PathBuf {
        self.top.join("layout.json")
    }
    /// What is kept free for commands that make room.
    pub fn reserve(&self) -> PathBuf {
        self.top.join("reserve")
    }
    pub fn projects(&self) -> PathBuf {
        self.top.join("projects")
    }
    pub fn project(&self, project: &Name) -> PathBuf {
        self.projects().join(project)
    }
    /// What its network is like.
    pub fn network(&self, project: &Name) -> PathBuf {
        self.project(project).join("network.json")
    }
    pub fn sparks(&self, project: &Name) -> PathBuf {
        self.project(project).join("sparks")
    }
    pub fn spark(&self, project: &Name, spark: &Name) -> PathBuf {
        self.sparks(project).join(spark)
    }
    pub fn shared(&self, project: &Name) -> PathBuf {
        self.project(project).join("shared")
    }
    pub fn volumes(&self, project: &Name) -> PathBuf {
        self.project(project).join("data")
    }
    pub fn volume(&self, project: &Name, volume: &Name) -> PathBuf {
        self.volumes(project).join(volume)
    }
    pub fn bases(&self) -> PathBuf {
        self.top.join("bases")
    }
    pub fn base(&self, base: &Name) -> PathBuf {
        self.bases().join(base)
    }
    pub fn images(&self) -> PathBuf {
        self.top.join("images")
    }
    /// Layers of images, each upon those below it, by chain id.
    pub fn layers(&self) -> PathBuf {
        self.images().join("layers")
    }
    pub fn layer(&self, chain: &Digest) -> PathBuf {
        self.layers().join(chain.hex())
    }
    /// What images are made of, by the digest of their manifests.
    pub fn manifests(&self) -> PathBuf {
        self.images().join("manifests")
    }
    pub fn manifest(&self, digest: &Digest) -> PathBuf {
        self.manifests().join(digest.hex())
    }
    pub fn system(&self) -> PathBuf {
        self.top.join("system")
    }
    pub fn staging(&self) -> PathBuf {
        self.top.join("staging")
    }
    pub fn trash(&self) -> PathBuf {
        self.top.join("trash")
    }
}

/// Files of one spark's directory.
#[derive(Debug, Clone, Copy)]
pub struct SparkPaths<'a>(pub &'a Path);

impl SparkPaths<'_> {
    pub fn record(&self) -> PathBuf {
        self.0.join("spark.json")
    }
    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }
    /// Data volumes of its own: those of a spark that ends with its command, and copies about to become volumes.
    pub fn data(&self) -> PathBuf {
        self.0.join("data")
    }
    /// What a restore of more than the root is about to do.
    pub fn intent(&self) -> PathBuf {
        self.0.join("restore.json")
    }
    pub fn snapshots(&self) -> PathBuf {
        self.0.join("snapshots")
    }
    pub fn snapshot(&self, snapshot: &Name) -> PathBuf {
        self.snapshots().join(snapshot)
    }
    /// Where a deleted spark came from; beside the record, and only of meaning in the trash.
    pub fn origin(&self) -> PathBuf {
        self.0.join("trash.json")
    }
}

/// Files of one data volume's directory.
#[derive(Debug, Clone, Copy)]
pub struct VolumePaths<'a>(pub &'a Path);

impl VolumePaths<'_> {
    pub fn record(&self) -> PathBuf {
        self.0.join("volume.json")
    }
    /// The subvolume that sparks see.
    pub fn fs(&self) -> PathBuf {
        self.0.join("fs")
    }
    pub fn snapshot(&self, snapshot: &Name) -> PathBuf {
        self.0.join("snapshots").join(snapshot)
    }
}

/// Files of one snapshot's directory.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotPaths<'a>(pub &'a Path);

impl SnapshotPaths<'_> {
    pub fn data(&self) -> PathBuf {
        self.0.join("data")
    }
    /// The copy of a data volume.
    pub fn volume(&self, volume: &Name) -> PathBuf {
        self.data().join(volume)
    }
    pub fn record(&self) -> PathBuf {
        self.0.join("snapshot.json")
    }
    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }
}
