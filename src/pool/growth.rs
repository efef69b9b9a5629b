//! A loop image that grows: when, by how much, and in which steps, each of which the next command can repeat.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::image::{self, Kind};
use super::room::{self, GIB, Host, MIB, Space};
use super::{Pool, layout};
use crate::domain::place::Place;
use crate::error::{Error, Result};
use crate::fault;
use crate::sys;
use crate::sys::loopdev::LoopDevice;

/// What an image grows by.
const STEP: u64 = 4 * GIB;
/// The smallest step that is worth a commit.
const LEAST_STEP: u64 = 16 * MIB;
/// An image grows when less than this is free in it, or less than a quarter of a smaller image.
const LOW: u64 = 2 * GIB;
/// btrfs counts in blocks of this size.
const BLOCK: u64 = 4096;
/// Bytes a second that no writer exceeds for long: how soon to look again follows from it.
const FASTEST: u64 = 4 * GIB;

/// A loop image with its mounted btrfs, measured.
#[derive(Debug)]
pub struct Image {
    pub space: Space,
    len: u64,
    /// The size of the btrfs.
    pub size: u64,
    /// Free in the btrfs.
    pub free: u64,
}

impl Image {
    /// Measures the image of a pool. `None` if the pool has none, or is not mounted.
    ///
    /// # Errors
    /// `corrupt` if the image was deleted or truncated under the mounted pool.
    pub fn of(place: &Place) -> Result<Option<Image>> {
        let Some(image::Source { kind: Kind::Loop, space, .. }) = image::source(place)? else {
            return Ok(None);
        };
        let (pool, path) = (place.pool(), place.loop_image());
        if !sys::file::is_mount_point(&pool).map_err(Error::io("inspect", &pool))? {
            return Ok(None);
        }
        let fs = rustix::fs::statvfs(&pool).map_err(|e| Error::io("inspect", &pool)(e.into()))?;
        let (size, free) = (fs.f_blocks * fs.f_frsize, fs.f_bavail * fs.f_frsize);
        let len = match std::fs::metadata(&path) {
            Ok(file) => file.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(deleted(&pool, &path)),
            Err(e) => return Err(Error::io("inspect", &path)(e)),
        };
        if len < size {
            return Err(room::truncated(&path, len, size));
        }
        Ok(Some(Image { space: space.unwrap_or(Space::Fixed), len, size, free }))
    }

    /// Whether a growth was interrupted: the file is longer than the btrfs on it.
    fn is_unfinished(&self) -> bool {
        self.len / BLOCK * BLOCK > self.size
    }

    /// The image grows when less than this is free.
    fn low(&self) -> u64 {
        (self.size / 4).min(LOW)
    }

    /// What it grows by now. 0 if it has enough room, or the host has none.
    fn step(&self, promised: u64, host: Host) -> u64 {
        let wanted = self.space == Space::Growing && self.free.saturating_sub(promised) < self.low();
        let step = if wanted { host.spare().min(STEP) / MIB * MIB } else { 0 };
        if step < LEAST_STEP { 0 } else { step }
    }

    /// How long the room lasts at least, where `promised` bytes of what is free are promised to writers already.
    pub fn lasts(&self, promised: u64) -> Duration {
        const SHORTEST: Duration = Duration::from_millis(50);
        const LONGEST: Duration = Duration::from_secs(5);
        let free = self.free.saturating_sub(promised);
        if free < self.low() {
            // This is asked after a growth, so the host has no room for one.
            return Duration::from_secs(1);
        }
        Duration::from_micros((free - self.low() / 2) / (FASTEST / 1_000_000)).clamp(SHORTEST, LONGEST)
    }
}

fn deleted(pool: &Path, image: &Path) -> Error {
    let device = LoopDevice::under(pool).ok().flatten().map_or(PathBuf::from("/dev/loopN"), |d| d.path());
    let (at, device, to) = (pool.display(), device.display(), image.display());
    Error::Corrupt {
        path: image.to_owned(),
        why: "it was deleted. What it held is there until the pool is unmounted, and lost then".into(),
        hint: Some(format!(
            "stop all sparks, then make it anew: `fsfreeze -f {at}; cp {device} {to}; fsfreeze -u {at}; umount {at}`"
        )),
    }
}

impl Pool {
    /// Looks whether the pool has room, and grows it if it has little and may grow: see [`tend`].
    ///
    /// # Errors
    /// `corrupt` if the image was deleted or truncated.
    pub fn tend(&self) -> Result<Option<Image>> {
        tend(&self.place, 0)
    }
}

/// Looks whether the pool has room, and grows it if it has little and may grow. `promised` bytes of what is free are
/// promised to writers already. A growth that was interrupted is finished. `None` if the pool has no image.
///
/// # Errors
/// `corrupt` if the image was deleted or truncated. A growth that fails is no error: the pool has what it had.
pub fn tend(place: &Place, promised: u64) -> Result<Option<Image>> {
    let Some(image) = Image::of(place)? else { return Ok(None) };
    if next_len(place, &image, promised).is_none() {
        return Ok(Some(image));
    }
    let lock = layout::lock_root(place)?;
    // Another command may have done it meanwhile.
    let Some(image) = Image::of(place)? else { return Ok(None) };
    if let Some(len) = next_len(place, &image, promised)
        && let Err(e) = extend(place, &image, len)
    {
        tracing::warn!("cannot grow the pool: {e}");
    }
    drop(lock);
    Image::of(place)
}

/// The length that an image should have, if there is something to do.
fn next_len(place: &Place, image: &Image, promised: u64) -> Option<u64> {
    let step = match image.space {
        Space::Growing => Host::of(&place.root).map_or(0, |host| image.step(promised, host)),
        Space::Fixed | Space::Overcommit => 0,
    };
    (image.is_unfinished() || step > 0).then_some(image.len + step)
}

/// Extends an image, by less if the host refuses the step: it may have a quota. The caller holds the root's lock.
fn extend(place: &Place, image: &Image, mut len: u64) -> Result<()> {
    loop {
        let step = (len - image.len) / 2 / MIB * MIB;
        match grow_to(place, len, image.space) {
            Err(Error::Host { .. }) if step >= LEAST_STEP => len = image.len + step,
            done => return done,
        }
    }
}

/// Makes an image that long, then its device and its btrfs. If this is killed, the next command goes on with it.
/// The caller holds the root's lock.
///
/// # Errors
/// `no_space`, `not_supported`: see [`room::allocate`]. `busy` while the btrfs is balanced.
pub fn grow_to(place: &Place, len: u64, space: Space) -> Result<()> {
    let (pool, path) = (place.pool(), place.loop_image());
    // First of all: what is shorter than its device afterwards would lose data.
    let device = device_of(&pool, &path)?;
    let file = std::fs::File::options().write(true).open(&path).map_err(Error::io("open", &path))?;
    if space == Space::Overcommit {
        file.set_len(len).map_err(Error::io("grow", &path))?;
        file.sync_all().map_err(Error::io("sync", &path))?;
    } else {
        room::allocate(&file, &path, len)?;
    }
    fault::point("grow.allocated")?;
    device.take_size_of_file().map_err(Error::io("grow", device.path()))?;
    fault::point("grow.device")?;
    extend_btrfs(&pool)?;
    match Image::of(place)? {
        Some(image) if image.is_unfinished() => Err(Error::Busy {
            what: format!("the pool at {}", pool.display()),
            why: "its btrfs is being balanced".into(),
        }),
        _ => fault::point("grow.btrfs"),
    }
}

/// Extends the btrfs of a mounted pool to its whole device.
pub fn extend_btrfs(pool: &Path) -> Result<()> {
    let top = sys::file::open_dir(pool).map_err(Error::io("open", pool))?;
    sys::btrfs::resize_to_device(top).map_err(Error::io("grow", pool))
}

/// The loop device of the pool, if its data is in this file.
fn device_of(pool: &Path, path: &Path) -> Result<LoopDevice> {
    let stat = rustix::fs::stat(path).map_err(|e| Error::io("inspect", path)(e.into()))?;
    let device = LoopDevice::under(pool).map_err(Error::io("find the device of", pool))?;
    let device = device.ok_or_else(|| Error::corrupt(pool, "it is not mounted from a loop device"))?;
    if device.is_backed_by(stat.st_dev, stat.st_ino).map_err(Error::io("inspect", device.path()))? {
        Ok(device)
    } else {
        Err(Error::corrupt(path, "the pool is mounted from another file"))
    }
}

/// Attaches an image to a loop device of our own that refuses discards: the mount option `nodiscard` concerns btrfs itself,
/// and fstrim(8) ignores it. `None` if that cannot be: then mount(8) takes a device of the host's.
pub fn attach(image: &Path) -> Option<(LoopDevice, std::fs::File)> {
    let attached = LoopDevice::attach(image);
    let refused = attached.and_then(|(device, open)| device.refuse_discards().map(|()| (device, open)));
    refused.inspect_err(|e| tracing::warn!("cannot attach {} to a new device: {e}", image.display())).ok()
}

/// Has the space stay allocated, and finishes a growth that was interrupted, once the pool is mounted. The caller holds
/// the root's lock.
pub fn settle(place: &Place, space: Space) -> Result<()> {
    let pool = place.pool();
    if space != Space::Overcommit {
        // A device of our own does already: see [`attach`].
        let device = LoopDevice::under(&pool).map_err(Error::io("find the device of", &pool))?;
        let discarding = device.filter(|device| device.discards().unwrap_or(true));
        if let Some(Err(e)) = discarding.map(|device| device.refuse_discards()) {
            tracing::warn!("cannot turn off discards below {}: {e}", pool.display());
        }
    }
    match Image::of(place)? {
        Some(image) if image.is_unfinished() => grow_to(place, image.len, space),
        _ => Ok(()),
    }
}

/// Returns the bytes that are promised to writers and not counted as used yet: what is in memory only.
pub fn promised(pool: &Path) -> u64 {
    let allocation = sys::file::open_dir(pool).and_then(sys::block::sysfs).map(|fs| fs.join("allocation"));
    let Ok(allocation) = allocation else { return 0 };
    let read = |kind| std::fs::read_to_string(allocation.join(kind).join("bytes_may_use")).ok();
    ["data", "mixed"].iter().filter_map(|kind| read(*kind)?.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(space: Space, size: u64, free: u64) -> Image {
        Image { space, len: size, size, free }
    }

    #[test]
    fn an_image_grows_by_4_gib_when_little_is_free_and_by_less_where_the_host_has_less() {
        let plenty = Host { size: 1000 * GIB, free: 500 * GIB };
        assert_eq!(image(Space::Growing, 8 * GIB, 2 * GIB).step(0, plenty), 0);
        assert_eq!(image(Space::Growing, 8 * GIB, 2 * GIB - 1).step(0, plenty), 4 * GIB);
        assert_eq!(image(Space::Growing, 8 * GIB, 3 * GIB).step(2 * GIB, plenty), 4 * GIB);
        assert_eq!(image(Space::Growing, 400 * MIB, 100 * MIB).step(0, plenty), 0);
        assert_eq!(image(Space::Growing, 400 * MIB, 99 * MIB).step(0, plenty), 4 * GIB);
        let little = Host { size: 1000 * GIB, free: 6 * GIB };
        assert_eq!(image(Space::Growing, 8 * GIB, GIB).step(0, little), GIB);
        let none = Host { size: 1000 * GIB, free: 5 * GIB };
        assert_eq!(image(Space::Growing, 8 * GIB, GIB).step(0, none), 0);
        for space in [Space::Fixed, Space::Overcommit] {
            assert_eq!(image(space, 8 * GIB, 0).step(0, plenty), 0);
        }
    }

    #[test]
    fn an_image_is_looked_at_again_before_half_of_its_margin_can_be_written() {
        let image = image(Space::Growing, 8 * GIB, 7 * GIB);
        for promised in [0, GIB, 4 * GIB] {
            let free = image.free - promised;
            let written = image.lasts(promised).as_millis() as u64 * FASTEST / 1000;
            assert!(written <= free - image.low() / 2, "{promised}: {written}");
        }
        assert!(image.lasts(0) <= Duration::from_secs(5));
    }
}
