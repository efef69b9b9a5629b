//! Finding, mounting and making the pool.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use super::{Pool, btrfs, image, record};
use crate::domain::FORMAT;
use crate::domain::name::Name;
use crate::domain::place::{Place, PoolPaths};
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::flock::Mode;

/// `layout.json`: written last, so that a pool without it is not finished.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Layout {
    pub version: u32,
    /// The base that `create` takes where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_base: Option<Name>,
}

/// Where a new pool's bytes are to be.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// Bytes of a loop image, which then keeps this size. Without, it begins with 8 GiB or less and grows.
    pub size: Option<u64>,
    /// Whether the space of a loop image stays unallocated: when the disk below is full, data is lost.
    pub overcommit: bool,
    /// A block device to format.
    pub device: Option<std::path::PathBuf>,
    /// Whether it counts what is whose, so that a spark's share of it can be limited.
    pub quota: bool,
}

impl Pool {
    /// Opens the pool, mounting it if a reboot unmounted it. `None` if there has never been one.
    pub fn open(place: &Place) -> Result<Option<Pool>> {
        if let Some(pool) = Pool::open_mounted(place)? {
            return Ok(Some(pool));
        }
        if !image::is_unmounted(place)? {
            return Ok(None);
        }
        let _lock = lock_root(place)?;
        let notices = if image::is_unmounted(place)? { image::mount(place)? } else { Vec::new() };
        Ok(Pool::open_mounted(place)?.map(|pool| Pool { notices, ..pool }))
    }

    /// Opens the pool where it is mounted. `None` if it is not.
    pub fn open_mounted(place: &Place) -> Result<Option<Pool>> {
        let pool = Pool { place: place.clone(), paths: PoolPaths { top: place.pool() }, notices: Vec::new() };
        let layout = record::read::<Layout>(&pool.paths.layout())?;
        Ok(layout.map(|layout| {
            tracing::debug!(version = layout.version, "pool is open");
            pool
        }))
    }

    /// Opens the pool, making it with its defaults if there is none.
    pub fn open_or_init(place: &Place) -> Result<Pool> {
        match Pool::open(place)? {
            Some(pool) => Ok(pool),
            None => Pool::init(place, &InitOptions::default()).map(|(pool, _)| pool),
        }
    }

    /// Makes the pool. The flag says whether it is new: of two that start at once, one makes it.
    pub fn init(place: &Place, options: &InitOptions) -> Result<(Pool, bool)> {
        make_dir(&place.root, 0o700)?;
        let _lock = lock_root(place)?;
        if let Some(pool) = Pool::open_locked(place)? {
            if options.quota && !pool.has_quota()? {
                return Err(Error::WrongState {
                    action: "count what is whose in",
                    kind: "pool",
                    name: place.pool().display().to_string(),
                    state: "there already, and was made without `--quota`".into(),
                    hint: "make another one, with another SPARK_ROOT, and move sparks with `spark send`"
                        .into(),
                });
            }
            return Ok((pool, false));
        }
        if options.quota {
            super::quota::refuse_old_kernel()?;
        }
        let pool = Pool { place: place.clone(), paths: PoolPaths { top: place.pool() }, notices: Vec::new() };
        make_dir(&pool.paths.top, 0o700)?;
        if image::is_unmounted(place)? {
            image::mount(place)?;
        } else if !sys::file::is_mount_point(&pool.paths.top)
            .map_err(Error::io("inspect", &pool.paths.top))?
        {
            image::make(place, options)?;
        }
        if options.quota {
            pool.enable_quota()?;
        }
        pool.lay_out()?;
        Ok((pool, true))
    }

    fn open_locked(place: &Place) -> Result<Option<Pool>> {
        let pool = Pool { place: place.clone(), paths: PoolPaths { top: place.pool() }, notices: Vec::new() };
        Ok(record::read::<Layout>(&pool.paths.layout())?.map(|_| pool))
    }

    fn lay_out(&self) -> Result<()> {
        let p = &self.paths;
        std::fs::set_permissions(&p.top, PermissionsExt::from_mode(0o700))
            .map_err(Error::io("set mode of", &p.top))?;
        for dir in [p.projects(), p.bases(), p.staging(), p.trash(), p.system(), p.reserve()] {
            make_dir(&dir, 0o700)?;
        }
        for (name, mode) in [("bin", 0o755), ("all", 0o1777)] {
            make_shared(&p.system().join(name), mode)?;
        }
        self.fill_reserve();
        record::replace(&p.layout(), &Layout { version: FORMAT, default_base: None })
    }

    /// The layout as it is on disk.
    pub fn layout(&self) -> Result<Layout> {
        let path = self.paths.layout();
        record::read(&path)?.ok_or_else(|| Error::corrupt(&path, "it is gone"))
    }

    /// Sets the base that `create` takes where none is named.
    pub fn set_default_base(&self, base: &Name) -> Result<()> {
        let layout = Layout { default_base: Some(base.clone()), ..self.layout()? };
        record::replace(&self.paths.layout(), &layout)
    }
}

/// Locks the root: while the pool is made, mounted or grown.
pub(super) fn lock_root(place: &Place) -> Result<std::os::fd::OwnedFd> {
    sys::flock::lock_dir(&place.root, Mode::Exclusive).map_err(Error::io("lock", &place.root))
}

/// Makes a directory that is shared between sparks: a subvolume, so that it can be snapshotted on its own.
pub fn make_shared(path: &Path, mode: u32) -> Result<()> {
    if !path.exists() {
        btrfs::create(path)?;
    }
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(Error::io("set mode of", path))
}

/// Makes a directory with its parents, if it is not there.
pub fn make_dir(path: &Path, mode: u32) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|e| {
        if e.kind() == std::io::ErrorKind::PermissionDenied && !sys::process::is_root() {
            not_root()
        } else {
            Error::io("create", path)(e)
        }
    })
}

/// What to say to somebody who is not root.
pub fn not_root() -> Error {
    Error::Denied {
        what: "spark needs root: it makes containers, mounts and snapshots".into(),
        hint: "run it with `sudo`".into(),
    }
}
