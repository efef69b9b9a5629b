//! Room on the disk below a loop image.
//!
//! A loop device reports a write as done although the disk below has no room for it. So all space of an image is allocated
//! before btrfs may use it, and nothing gives it back: see docs/adr/0020-allocated-images.md.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::FallocateFlags;

use crate::domain::limits::size;
use crate::error::{Error, Result};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
/// Smallest pool: btrfs itself needs about 110 MB.
pub const LEAST: u64 = 256 * MIB;
/// Size of a new image where none is given and the disk has room.
const DEFAULT: u64 = 8 * GIB;
/// The most that an image leaves to the host. On a smaller disk it leaves 5 %.
const RESERVE: u64 = 5 * GIB;

/// How the space of a loop image is provided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// Allocated, and more is allocated when it is needed.
    Growing,
    /// Allocated, of the size that was asked for.
    Fixed,
    /// Not allocated: when the disk below is full, data that was reported as written is lost.
    Overcommit,
}

/// The filesystem that an image is on.
#[derive(Debug, Clone, Copy)]
pub struct Host {
    pub size: u64,
    /// Free for everybody, without what the filesystem keeps for root.
    pub free: u64,
}

impl Host {
    /// Measures the filesystem of a directory.
    pub fn of(dir: &Path) -> Result<Host> {
        let fs = rustix::fs::statvfs(dir).map_err(|e| Error::io("inspect", dir)(e.into()))?;
        Ok(Host { size: fs.f_blocks * fs.f_frsize, free: fs.f_bavail * fs.f_frsize })
    }

    /// Bytes that stay free for the host.
    fn reserve(self) -> u64 {
        (self.size / 20).min(RESERVE)
    }

    /// Bytes that images may still take without being asked to.
    pub fn spare(self) -> u64 {
        self.free.saturating_sub(self.reserve())
    }

    /// Bytes that have to be free before a pool can be made without a size.
    pub fn least(self) -> u64 {
        LEAST + self.reserve()
    }
}

/// Returns the size of a new image where none is given.
pub fn default_size(dir: &Path) -> Result<u64> {
    let host = Host::of(dir)?;
    if host.spare() < LEAST {
        return Err(Error::Host {
            what: format!("there is too little room for a pool below {}", dir.display()),
            hint: format!("free at least {}, or set SPARK_ROOT to another disk", size(host.least())),
            source: Some(io::Error::from_raw_os_error(libc::ENOSPC)),
        });
    }
    Ok((host.free / 2).clamp(LEAST, DEFAULT) / MIB * MIB)
}

/// Refuses to take more than is free.
pub fn refuse_more_than_free(dir: &Path, bytes: u64) -> Result<()> {
    let full = || full(dir, bytes, io::Error::from_raw_os_error(libc::ENOSPC));
    if bytes <= Host::of(dir)?.free { Ok(()) } else { Err(full()) }
}

fn full(dir: &Path, bytes: u64, source: io::Error) -> Error {
    let why = match (source.raw_os_error(), Host::of(dir)) {
        (Some(libc::EDQUOT), _) => "a quota of the host does not allow that".into(),
        (_, Ok(host)) => format!("{} are free", size(host.free)),
        (_, Err(_)) => "it is full".into(),
    };
    Error::Host {
        what: format!("the pool needs {} of the disk at {}, and {why}", size(bytes), dir.display()),
        hint: "free some there, or choose a smaller size. With `--overcommit` nothing is allocated, and data is lost when \
               the disk is full"
            .into(),
        source: Some(source),
    }
}

/// Allocates all space of an image up to `len`, and makes it that long.
///
/// # Errors
/// `no_space`; `not_supported` where the filesystem does not allocate, or only says that it does. The file then has the
/// length that it had.
pub fn allocate(file: &File, path: &Path, len: u64) -> Result<()> {
    let dir = path.parent().unwrap_or(path);
    let before = file.metadata().map_err(Error::io("inspect", path))?;
    let done = match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) => check_allocated(file, path),
        Err(e) => Err(match io::Error::from(e) {
            e if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                full(dir, len.saturating_sub(before.blocks() * 512), e)
            }
            e if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                cannot_allocate(dir, "cannot allocate space for a file in advance")
            }
            e => Error::io("allocate", path)(e),
        }),
    };
    if done.is_err() {
        file.set_len(before.len()).map_err(Error::io("shorten", path))?;
    }
    done
}

/// Some filesystems accept fallocate(2) and reserve nothing.
fn check_allocated(file: &File, path: &Path) -> Result<()> {
    file.sync_all().map_err(Error::io("sync", path))?;
    let now = file.metadata().map_err(Error::io("inspect", path))?;
    if missing(&now) == 0 {
        return Ok(());
    }
    let dir = path.parent().unwrap_or(path);
    Err(cannot_allocate(dir, "says that it allocates space for a file in advance, and does not"))
}

fn cannot_allocate(dir: &Path, how: &str) -> Error {
    Error::NotSupported {
        what: format!(
            "the filesystem at {} {how}: when it is full, data that sparks have written would be lost",
            dir.display()
        ),
        hint: Some(
            "set SPARK_ROOT to another disk, or accept that loss with `spark pool init --overcommit`".into(),
        ),
    }
}

/// Returns how many bytes of a file are not allocated.
pub fn missing(file: &Metadata) -> u64 {
    file.len().saturating_sub(file.blocks() * 512)
}

/// Allocates what is missing of an image that a pool is about to be mounted from, if the host can spare it. Returns what
/// the user has to know if not.
///
/// # Errors
/// `corrupt` if the image is gone or truncated.
pub fn fill(path: &Path, space: Space) -> Result<Option<String>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Corrupt {
                path: path.to_owned(),
                why: "it is gone, and all sparks with it".into(),
                hint: Some("restore it from a backup; to begin anew, remove `pool.json` beside it".into()),
            });
        }
        other => other.map_err(Error::io("open", path))?,
    };
    let now = file.metadata().map_err(Error::io("inspect", path))?;
    if let Some(size) = superblock_size(&file)
        && now.len() < size
    {
        return Err(truncated(path, now.len(), size));
    }
    let missing = missing(&now);
    if space == Space::Overcommit || missing == 0 {
        return Ok(None);
    }
    let filled = match Host::of(path.parent().unwrap_or(path))?.spare() {
        spare if spare < missing => Err(format!("the disk at its place can spare {}", size(spare))),
        _ => File::options()
            .write(true)
            .open(path)
            .map_err(Error::io("open", path))
            .and_then(|file| allocate(&file, path, now.len()))
            .map_err(|e| e.to_string()),
    };
    Ok(filled.err().map(|why| {
        format!(
            "{} of the pool's image {} are not allocated: {why}. When that disk is full, data that sparks have written is \
             lost. Free space there, then run `spark pool grow {}`",
            size(missing),
            path.display(),
            now.len()
        )
    }))
}

/// The size that a btrfs has by its own superblock: `total_bytes` of `struct btrfs_super_block`.
fn superblock_size(image: &File) -> Option<u64> {
    const AT: u64 = 64 << 10;
    let mut block = [0; 0x78];
    image.read_exact_at(&mut block, AT).ok()?;
    let total: [u8; 8] = block[0x70..0x78].try_into().ok()?;
    (block[0x40..0x48] == *b"_BHRfS_M").then_some(u64::from_le_bytes(total))
}

/// An image that is shorter than its btrfs.
pub(super) fn truncated(path: &Path, len: u64, size: u64) -> Error {
    let image = path.display();
    Error::Corrupt {
        path: path.to_owned(),
        why: format!("it has {len} bytes, and its btrfs {size}: somebody truncated it"),
        hint: Some(format!(
            "what was behind is lost. With the pool unmounted, `truncate -s {size} {image}` makes it mountable again, and \
             `btrfs check --check-data-csum {image}` says what is damaged"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_keeps_5_percent_and_at_most_5_gib() {
        assert_eq!(Host { size: 100 * MIB, free: 50 * MIB }.spare(), 45 * MIB);
        assert_eq!(Host { size: 4000 * GIB, free: 50 * GIB }.spare(), 45 * GIB);
        assert_eq!(Host { size: 4000 * GIB, free: 4 * GIB }.spare(), 0);
    }

    #[test]
    fn an_image_has_its_size_from_the_superblock() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(superblock_size(&file), None);
        file.set_len(1 << 20).unwrap();
        assert_eq!(superblock_size(&file), None);
        file.write_all_at(b"_BHRfS_M", (64 << 10) + 0x40).unwrap();
        file.write_all_at(&(300_u64 << 20).to_le_bytes(), (64 << 10) + 0x70).unwrap();
        assert_eq!(superblock_size(&file), Some(300 << 20));
    }
}
