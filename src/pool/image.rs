//! Where the pool's bytes are: on the btrfs that is there, in a loop image, or on a device.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::layout::InitOptions;
use super::room::{self, Host, Space};
use super::{growth, layout, record, repair};
use crate::domain::FORMAT;
use crate::domain::place::Place;
use crate::error::{Error, Result};
use crate::sys;

/// Below this, mkfs.btrfs(8) advises to keep data and metadata together. Apart, data takes all but 8 MiB of such a
/// pool, and when it is full nothing can be made any more, however much is deleted.
const MIXED_BELOW: u64 = 1 << 30;

/// `pool.json` beside the pool: what to mount after a reboot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Source {
    version: u32,
    #[serde(flatten)]
    pub kind: Kind,
    /// Of a loop image. Versions that made sparse images did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<Space>,
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

/// Mounts the pool. Returns what the user has to know: what was repaired, and what endangers data. The caller holds the
/// root's lock.
///
/// # Errors
/// `corrupt` if a loop image is gone or truncated.
pub fn mount(place: &Place) -> Result<Vec<String>> {
    let Some(source) = source(place)? else { return Ok(Vec::new()) };
    let space = source.space.unwrap_or(Space::Fixed);
    let mut notices = Vec::new();
    let mut attached = None;
    let (what, options) = match &source.kind {
        Kind::Directory => return Ok(notices),
        Kind::Loop => {
            let image = place.loop_image();
            notices.extend(room::fill(&image, space)?);
            attached = if space == Space::Overcommit { None } else { growth::attach(&image) };
            match &attached {
                // Else btrfs gives back to the disk what is allocated: newer kernels do so unasked.
                Some((device, _)) => (device.path().into_os_string(), "noatime,nodiscard"),
                None if space == Space::Overcommit => (image.into_os_string(), "loop,noatime"),
                None => (image.into_os_string(), "loop,noatime,nodiscard"),
            }
        }
        Kind::Device { uuid } => (format!("UUID={uuid}").into(), "noatime"),
    };
    notices.extend(repair::mount(place, &what, options)?);
    drop(attached);
    if source.kind == Kind::Loop
        && let Err(e) = growth::settle(place, space)
    {
        // What is there can be used, and the next command tries again.
        notices.push(format!("cannot finish the growth of the pool: {e}"));
    }
    Ok(notices)
}

/// Makes what the pool is on, and mounts it. The caller holds the root's lock.
pub fn make(place: &Place, options: &InitOptions) -> Result<()> {
    let mut space = None;
    let kind = if let Some(device) = &options.device {
        make_filesystem(device, &[])?;
        let mut blkid = sys::host::command("blkid");
        blkid.args(["-p", "-s", "UUID", "-o", "value"]).arg(device);
        let uuid = run(blkid, "blkid is part of util-linux")?.trim().to_owned();
        Kind::Device { uuid }
    } else if options.size.is_none()
        && sys::file::is_btrfs(&place.root).map_err(Error::io("inspect", &place.root))?
    {
        refuse_for_directory(place, options)?;
        Kind::Directory
    } else {
        space = Some(match (options.overcommit, options.size) {
            (true, _) => Space::Overcommit,
            (false, Some(_)) => Space::Fixed,
            (false, None) => Space::Growing,
        });
        // An image without `pool.json` is one whose making was cut short after it was whole, or one that lost that file:
        // it is used, and never made anew.
        if !place.loop_image().exists() {
            make_image(place, options)?;
        }
        Kind::Loop
    };
    record::replace(&source_path(place), &Source { version: FORMAT, kind, space })?;
    mount(place).map(drop)
}

/// Refuses options that have no meaning for a directory of the host's own btrfs.
fn refuse_for_directory(place: &Place, options: &InitOptions) -> Result<()> {
    let hint = "give the pool a filesystem of its own: add `--size 50G`, say";
    if options.quota {
        return Err(Error::NotSupported {
            what: format!(
                "{} is on a btrfs of yours, and quotas change the whole of it",
                place.root.display()
            ),
            hint: Some(hint.into()),
        });
    }
    if options.overcommit {
        return Err(Error::Usage {
            message: format!(
                "`--overcommit` is for a loop image, and {} is on a btrfs, which needs none",
                place.root.display()
            ),
            hint: Some(hint.into()),
        });
    }
    Ok(())
}

fn make_image(place: &Place, options: &InitOptions) -> Result<()> {
    let half_made = place.root.join(".new-pool.btrfs");
    // What a killed one left, before the free space is looked at.
    sys::file::remove(&half_made).map_err(Error::io("remove", &half_made))?;
    let size = match options.size {
        Some(size) if size < room::LEAST => {
            return Err(Error::Usage {
                message: format!("a pool of {size} bytes is too small"),
                hint: Some("give it at least 256M".into()),
            });
        }
        Some(size) if !options.overcommit => {
            room::refuse_more_than_free(&place.root, size)?;
            size
        }
        Some(size) => size,
        None => room::default_size(&place.root)?,
    };
    let made = fill_image(place, &half_made, size, options.overcommit);
    if made.is_err() {
        sys::file::remove(&half_made).map_err(Error::io("remove", &half_made))?;
    }
    made
}

fn fill_image(place: &Place, half_made: &Path, size: u64, overcommit: bool) -> Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(half_made)
        .map_err(Error::io("create", half_made))?;
    if sys::file::is_btrfs(half_made).map_err(Error::io("inspect", half_made))? {
        // While it is empty. Else each write needs room anew, allocated or not.
        let flags = rustix::fs::ioctl_getflags(&file).map(|flags| flags | rustix::fs::IFlags::NOCOW);
        flags
            .and_then(|flags| rustix::fs::ioctl_setflags(&file, flags))
            .map_err(|e| Error::io("turn off copy-on-write of", half_made)(e.into()))?;
    }
    file.set_len(size).map_err(Error::io("size", half_made))?;
    // A mixed filesystem stays mixed when it grows. That is slower from some 5 GiB on, and loses nothing.
    make_filesystem(half_made, if size < MIXED_BELOW { &["--mixed"] } else { &[] })?;
    if !overcommit {
        room::allocate(&file, half_made, size)?;
    }
    file.sync_all().map_err(Error::io("sync", half_made))?;
    let image = place.loop_image();
    sys::file::rename_new(half_made, &image).map_err(Error::io("create", &image))?;
    sys::file::sync_dir(&place.root).map_err(Error::io("sync", &place.root))
}

fn make_filesystem(on: &Path, more: &[&str]) -> Result<()> {
    let mut mkfs = sys::host::command("mkfs.btrfs");
    // The disk below owns redundancy: a second copy of the metadata on it costs a third of every snapshot.
    // Without a discard, which would give back what is allocated.
    mkfs.args(["-q", "-K", "-m", "single", "-d", "single", "-L", "sparks"]).args(more).arg(on);
    run(mkfs, "install btrfs-progs: `apt-get install btrfs-progs`").map(drop)
}

/// How large the pool is and how much of it is used.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Usage {
    pub source: Option<Kind>,
    /// How the space of a loop image is provided.
    pub space: Option<Space>,
    pub size: u64,
    /// Free in the pool, and also on the disk below if the image is not allocated.
    pub free: u64,
    /// What a loop image takes of the disk below.
    pub allocated: Option<u64>,
    /// What a growing image may still take.
    pub can_grow_bytes: Option<u64>,
}

/// Measures the pool.
pub fn usage(place: &Place) -> Result<Usage> {
    use std::os::unix::fs::MetadataExt;
    let pool = place.pool();
    let fs = rustix::fs::statvfs(&pool).map_err(|e| Error::io("inspect", &pool)(e.into()))?;
    let source = source(place)?;
    let is_loop = source.as_ref().is_some_and(|s| s.kind == Kind::Loop);
    let space = source.as_ref().and_then(|s| s.space).or(is_loop.then_some(Space::Fixed));
    let image = std::fs::metadata(place.loop_image()).ok().filter(|_| is_loop);
    let host = Host::of(&place.root)?;
    let mut free = fs.f_bavail * fs.f_frsize;
    if image.as_ref().is_some_and(|image| room::missing(image) > 0) {
        free = free.min(host.free);
    }
    Ok(Usage {
        source: source.map(|s| s.kind),
        space,
        size: fs.f_blocks * fs.f_frsize,
        free,
        allocated: image.map(|image| image.blocks() * 512),
        can_grow_bytes: (space == Some(Space::Growing)).then(|| host.spare()),
    })
}

/// Grows a loop image, or takes what a device has grown by.
///
/// # Errors
/// `no_space` if the host does not have as much free, and it is not overcommitted.
pub fn grow(place: &Place, size: Option<u64>, overcommit: bool) -> Result<()> {
    let _lock = layout::lock_root(place)?;
    match source(place)? {
        Some(Source { kind: Kind::Loop, space, .. }) => {
            let now = growth::Image::of(place)?;
            let Some(size) = size else {
                return Err(Error::Usage {
                    message: "the new size is missing".into(),
                    hint: Some("give it with `spark pool grow 200G`".into()),
                });
            };
            let now = now.map(|image| image.size).unwrap_or_default();
            if size < now {
                return Err(Error::Usage {
                    message: format!(
                        "the pool has {} already, and cannot shrink to {}",
                        crate::domain::limits::size(now),
                        crate::domain::limits::size(size)
                    ),
                    hint: None,
                });
            }
            grow_image(place, space.unwrap_or(Space::Fixed), size, overcommit)
        }
        Some(Source { kind: Kind::Device { .. }, .. }) => growth::extend_btrfs(&place.pool()),
        _ => Err(Error::NotSupported {
            what: "this pool is a directory of a btrfs of yours, which has its own size".into(),
            hint: None,
        }),
    }
}

/// Grows an image, and changes how its space is provided: an allocated image becomes overcommitted before it grows, and
/// an overcommitted one is allocated first.
fn grow_image(place: &Place, before: Space, size: u64, overcommit: bool) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let space = match before {
        _ if overcommit => Space::Overcommit,
        Space::Overcommit => Space::Fixed,
        other => other,
    };
    let note = |space| {
        let source = Source { version: FORMAT, kind: Kind::Loop, space: Some(space) };
        if space == before { Ok(()) } else { record::replace(&source_path(place), &source) }
    };
    let image = place.loop_image();
    if overcommit {
        note(space)?;
        return growth::grow_to(place, size, space);
    }
    let allocated = std::fs::metadata(&image).map_err(Error::io("inspect", &image))?.blocks() * 512;
    room::refuse_more_than_free(&place.root, size.saturating_sub(allocated))?;
    growth::grow_to(place, size, space)?;
    note(space)?;
    growth::settle(place, space)
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
