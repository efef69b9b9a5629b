//! Whether what sparks have written is on the disk: the space of a loop image.

use std::fs::{File, Metadata};
use std::path::Path;

use super::{Check, Probe};
use crate::domain::limits::size;
use crate::pool::growth::Image;
use crate::pool::image::{self, Kind};
use crate::pool::room::{self, Space};
use crate::sys;
use crate::sys::loopdev::LoopDevice;

/// What is known of a loop image.
struct Facts {
    space: Space,
    /// Why the image is damaged.
    damage: Option<(String, String)>,
    len: u64,
    missing: u64,
    /// On a btrfs of the host: bytes that a snapshot or a copy of the host shares.
    shared: Option<u64>,
    /// The device, if a discard on it would free space of the image.
    discards: Option<String>,
}

pub(super) fn checks(probe: &Probe) -> Vec<Check> {
    let place = &probe.place;
    let Ok(Some(image::Source { kind: Kind::Loop, space, .. })) = image::source(place) else {
        return Vec::new();
    };
    let path = place.loop_image();
    let damage = Image::of(place).err().map(|e| {
        let hint = e.hint().unwrap_or_else(|| format!("ls -l {}", path.display()));
        (e.to_string(), hint)
    });
    let file = std::fs::metadata(&path);
    let on_btrfs = sys::file::is_btrfs(&place.root).unwrap_or(false);
    let device = LoopDevice::under(&place.pool()).ok().flatten();
    let facts = Facts {
        space: space.unwrap_or(Space::Fixed),
        damage,
        len: file.as_ref().map_or(0, Metadata::len),
        missing: file.as_ref().map_or(0, room::missing),
        shared: on_btrfs.then(|| file.as_ref().map_or(0, |file| shared(&path, file))),
        discards: device
            .filter(|d| d.discards().unwrap_or(false))
            .map(|d| d.path().display().to_string().replace("/dev/", "")),
    };
    judge(&facts, &path)
}

/// Bytes of the image that something else refers to as well.
fn shared(path: &Path, file: &Metadata) -> u64 {
    let own = File::open(path).and_then(sys::btrfs::unshared_bytes);
    own.map_or(0, |own| (file.len() - room::missing(file)).saturating_sub(own))
}

fn judge(facts: &Facts, path: &Path) -> Vec<Check> {
    let mut checks = vec![allocation(facts)];
    if facts.space == Space::Overcommit {
        return checks;
    }
    if let Some(shared) = facts.shared {
        let found = match shared {
            0 => "the image is on a btrfs: while a snapshot of the host holds it, a write needs room anew, and is lost if the disk is full".into(),
            shared => format!(
                "a snapshot or a copy of the host shares {} of the image: if the disk is full, what sparks write is lost",
                size(shared)
            ),
        };
        let dir = path.parent().unwrap_or(path).display();
        checks.push(Check::recommended("host snapshots", false, found).or(format!(
            "# leave {dir} out of snapshots, or use the host's btrfs: SPARK_ROOT=/elsewhere spark pool init"
        )));
    }
    if let Some(device) = &facts.discards {
        let found = "fstrim would give the image's space back to the disk";
        checks.push(
            Check::recommended("discard", false, found)
                .or(format!("echo 0 > /sys/block/{device}/queue/discard_max_bytes")),
        );
    }
    checks
}

fn allocation(facts: &Facts) -> Check {
    const NAME: &str = "allocation";
    if let Some((found, remedy)) = &facts.damage {
        return Check::required(NAME, false, found).or(remedy);
    }
    if facts.space == Space::Overcommit || facts.missing > 0 {
        let why = if facts.space == Space::Overcommit { "overcommitted: " } else { "" };
        let found = format!(
            "{why}{} of the image's {} are not allocated: if the disk is full, what sparks have written is lost",
            size(facts.missing),
            size(facts.len)
        );
        return Check::recommended(NAME, false, found)
            .or(format!("spark pool grow {}  # allocates it, if as much is free", facts.len));
    }
    let grows = if facts.space == Space::Growing { ", and it grows while the disk has room" } else { "" };
    Check::recommended(NAME, true, format!("all {} of the image are allocated{grows}", size(facts.len)))
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    const FINE: Facts =
        Facts { space: Space::Fixed, damage: None, len: 1 << 30, missing: 0, shared: None, discards: None };

    fn failed(facts: Facts) -> Vec<&'static str> {
        let checks = judge(&facts, Path::new("/s/pool.btrfs"));
        assert!(checks.iter().all(|c| c.ok == c.remedy.is_none()));
        checks.into_iter().filter(|c| !c.ok).map(|c| c.name).collect()
    }

    #[test]
    fn what_endangers_written_data_is_told() {
        assert!(failed(FINE).is_empty());
        assert_eq!(failed(Facts { missing: 4096, ..FINE }), ["allocation"]);
        assert_eq!(failed(Facts { space: Space::Overcommit, ..FINE }), ["allocation"]);
        assert_eq!(failed(Facts { shared: Some(0), ..FINE }), ["host snapshots"]);
        assert_eq!(failed(Facts { shared: Some(1), ..FINE }), ["host snapshots"]);
        assert_eq!(failed(Facts { discards: Some("loop1".into()), ..FINE }), ["discard"]);
        let damaged = Facts { damage: Some(("gone".into(), "cp".into())), ..FINE };
        assert_eq!(allocation(&damaged).severity, Severity::Required);
        assert_eq!(failed(damaged), ["allocation"]);
    }
}
