//! Where the pool's bytes are: on the btrfs that is there, in a sparse loop image, or on a device.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::layout::InitOptions;
use super::{record, repair};
use crate::domain::FORMAT;
use crate::domain::place::Place;
use crate::error::{Error, Result};
use crate::sys;

/// Smallest pool: btrfs itself needs about 110 MB.
const LEAST: u64 = 256 << 20;

/// Below this, mkfs.btrfs(8) advises to keep data and metadata together. Apart, data takes all but 8 MiB of such a
/// pool, and when it is full nothing can be made any more, however much is deleted.
const MIXED_BELOW: u64 = 1 << 30;

/// `pool.json` beside the pool: what to mount after a reboot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Source {
    version: u32,
    #[serde(flatten)]
    pub kind: Kind,
}

/// The kinds of places.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Kind {
    /// A directory of a btrfs that is mounted anyway.
    Directory,
    /// `pool.btrfs`, through a loop device.
    Loop,
    /// A block device, by the UUID of its filesystem.
    Device { uuid: String },
}

fn source_path(place: &Place) -> PathBuf {
    place.root.join("pool.json")
}

/// Where this installation's pool is, once that was decided.
pub fn source(place: &Place) -> Result<Option<Source>> {
    record::read(&source_path(place))
}

/// Whether there is a pool that has to be mounted.
pub fn is_unmounted(place: &Place) -> Result<bool> {
    match source(place)? {
        Some(Source { kind: Kind::Loop | Kind::Device { .. }, .. }) => {
            Ok(!sys::file::is_mount_point(&place.pool()).unwrap_or(false))
        }
        _ => Ok(false),
    }
}

/// Mounts the pool. Says what it did, if that took a repair. The caller holds the root's lock.
pub fn mount(place: &Place) -> Result<Option<String>> {
    let Some(source) = source(place)? else { return Ok(None) };
    let (what, options) = match &source.kind {
        Kind::Directory => return Ok(None),
        Kind::Loop => (place.loop_image().into_os_string(), "loop,noatime"),
        Kind::Device { uuid } => (format!("UUID={uuid}").into(), "noatime"),
    };
    repair::mount(place, &what, options)
}

/// Makes what the pool is on, and mounts it. The caller holds the root's lock.
pub fn make(place: &Place, options: &InitOptions) -> Result<()> {
    let kind = if let Some(device) = &options.device {
        make_filesystem(device, &[])?;
        let mut blkid = Command::new("blkid");
        blkid.args(["-p", "-s", "UUID", "-o", "value"]).arg(device);
        let uuid = run(blkid, "blkid is part of util-linux")?.trim().to_owned();
        Kind::Device { uuid }
    } else if options.size.is_none()
        && sys::file::is_btrfs(&place.root).map_err(Error::io("inspect", &place.root))?
    {
        if options.quota {
            return Err(Error::NotSupported {
                what: format!(
                    "{} is on a btrfs of yours, and quotas change the whole of it",
                    place.root.display()
                ),
                hint: Some("give the pool a filesystem of its own: add `--size 50G`, say".into()),
            });
        }
        Kind::Directory
    } else {
        make_image(place, options.size)?;
        Kind::Loop
    };
    record::replace(&source_path(place), &Source { version: FORMAT, kind })?;
    mount(place).map(drop)
}

fn make_image(place: &Place, size: Option<u64>) -> Result<()> {
    let size = match size {
        Some(size) if size < LEAST => {
            return Err(Error::Usage {
                message: format!("a pool of {size} bytes is too small"),
                hint: Some("give it at least 256M".into()),
            });
        }
        Some(size) => size,
        None => default_size(&place.root)?,
    };
    let image = place.loop_image();
    let half_made = place.root.join(".new-pool.btrfs");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&half_made)
        .map_err(Error::io("create", &half_made))?;
    file.set_len(size).map_err(Error::io("size", &half_made))?;
    make_filesystem(&half_made, if size < MIXED_BELOW { &["--mixed"] } else { &[] })?;
    file.sync_all().map_err(Error::io("sync", &half_made))?;
    std::fs::rename(&half_made, &image).map_err(Error::io("create", &image))?;
    sys::file::sync_dir(&place.root).map_err(Error::io("sync", &place.root))
}

/// Three quarters of what is free: sparse, so it takes only what is written, and never more than there is.
fn default_size(dir: &Path) -> Result<u64> {
    let fs = rustix::fs::statvfs(dir).map_err(|e| Error::io("inspect", dir)(e.into()))?;
    let free = fs.f_bavail * fs.f_frsize;
    let size = free / 4 * 3;
    if size < LEAST {
        return Err(Error::Host {
            what: format!("there is too little room for a pool below {}", dir.display()),
            hint: "free at least 350 MB, or set SPARK_ROOT to another disk".into(),
            source: Some(std::io::Error::from_raw_os_error(libc::ENOSPC)),
        });
    }
    Ok(size & !0xf_ffff)
}

fn make_filesystem(on: &Path, more: &[&str]) -> Result<()> {
    let mut mkfs = Command::new("mkfs.btrfs");
    // The disk below owns redundancy: a second copy of the metadata on it costs a third of every snapshot.
    mkfs.args(["-q", "-m", "single", "-d", "single", "-L", "sparks"]).args(more).arg(on);
    run(mkfs, "install btrfs-progs: `apt-get install btrfs-progs`").map(drop)
}

/// How large the pool is and how much of it is used.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Usage {
    pub source: Option<Kind>,
    pub size: u64,
    pub free: u64,
    /// What a loop image takes of the disk below.
    pub allocated: Option<u64>,
}

/// Measures the pool.
pub fn usage(place: &Place) -> Result<Usage> {
    use std::os::unix::fs::MetadataExt;
    let pool = place.pool();
    let fs = rustix::fs::statvfs(&pool).map_err(|e| Error::io("inspect", &pool)(e.into()))?;
    Ok(Usage {
        source: source(place)?.map(|s| s.kind),
        size: fs.f_blocks * fs.f_frsize,
        free: fs.f_bavail * fs.f_frsize,
        allocated: std::fs::metadata(place.loop_image()).ok().map(|m| m.blocks() * 512),
    })
}

/// Grows a loop image, or takes what a device has grown by.
pub fn grow(place: &Place, size: Option<u64>) -> Result<()> {
    let pool = place.pool();
    match source(place)?.map(|s| s.kind) {
        Some(Kind::Loop) => {
            let image = place.loop_image();
            let Some(size) = size else {
                return Err(Error::Usage {
                    message: "the new size is missing".into(),
                    hint: Some("give it with `spark pool grow 200G`".into()),
                });
            };
            let now = std::fs::metadata(&image).map_err(Error::io("inspect", &image))?.len();
            if size < now {
                return Err(Error::Usage {
                    message: format!("the pool has {now} bytes already, and cannot shrink"),
                    hint: None,
                });
            }
            let file = File::options().write(true).open(&image).map_err(Error::io("open", &image))?;
            file.set_len(size).map_err(Error::io("grow", &image))?;
            file.sync_all().map_err(Error::io("sync", &image))?;
            let mut find = Command::new("losetup");
            find.args(["-n", "-O", "NAME", "-j"]).arg(&image);
            let device = run(find, "losetup is part of util-linux")?.trim().to_owned();
            let mut tell = Command::new("losetup");
            tell.args(["-c", &device]);
            run(tell, "losetup is part of util-linux")?;
        }
        Some(Kind::Device { .. }) => {}
        _ => {
            return Err(Error::NotSupported {
                what: "this pool is a directory of a btrfs of yours, which has its own size".into(),
                hint: None,
            });
        }
    }
    let mut resize = Command::new("btrfs");
    resize.args(["filesystem", "resize", "max"]).arg(&pool);
    run(resize, "install btrfs-progs: `apt-get install btrfs-progs`").map(drop)
}

/// Runs a program of the host, and returns what it wrote.
pub(super) fn run(mut command: Command, if_missing: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|source| Error::Host {
        what: format!("cannot run {program}"),
        hint: if_missing.into(),
        source: Some(source),
    })?;
    if !output.status.success() {
        let detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Program { program, detail });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
