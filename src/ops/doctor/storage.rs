//! Where the pool is: loop devices, room, its kind, and whether its mounts can be idmapped.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::fix::Fix;
use super::{Check, Probe};
use crate::pool::image::{self, Kind, Usage};
use crate::pool::room::Host;
use crate::sys;
use crate::sys::idmap::IdMap;

/// Below this a base and a few sparks do not fit.
const COMFORT: u64 = 2 << 30;

pub(super) fn checks(probe: &Probe) -> Vec<Check> {
    let kind = image::source(&probe.place).ok().flatten().map(|source| source.kind);
    let ancestor = existing(&probe.place.root);
    let on_btrfs = sys::file::is_btrfs(&ancestor).unwrap_or(false);
    let mut checks = vec![pool(probe, kind.as_ref(), on_btrfs)];
    if kind == Some(Kind::Loop) || (kind.is_none() && !on_btrfs) {
        checks.push(loop_devices(probe));
    }
    let below = Host::of(&ancestor).ok();
    checks.push(match kind {
        None => room_for_new(below),
        Some(_) => room(image::usage(&probe.place).ok()),
    });
    checks.extend(idmap(try_idmap(probe)));
    checks
}

/// The directory itself, or the nearest above it that is there.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/")).to_owned()
}

/// A loop image costs a third more on small synchronous writes and half the speed on large ones. That is only
/// worth a word where the host has a btrfs to use instead.
fn pool(probe: &Probe, kind: Option<&Kind>, on_btrfs: bool) -> Check {
    let root = probe.place.root.display();
    let found = match kind {
        Some(Kind::Directory) => {
            format!(
                "a directory of the btrfs at {root}: it has no bound of its own, sparks can fill that btrfs"
            )
        }
        Some(Kind::Device { uuid }) => format!("the btrfs {uuid}"),
        Some(Kind::Loop) => {
            format!("a loop image in {root}: large writes take about twice as long as on a btrfs")
        }
        None if on_btrfs => format!("none yet: it will be a directory of the btrfs at {root}"),
        None => format!("none yet: it will be a loop image in {root}, slower than a btrfs"),
    };
    let by_image = kind == Some(&Kind::Loop) || (kind.is_none() && !on_btrfs);
    let better = by_image.then(|| other_btrfs(probe)).flatten();
    Check::recommended("pool", better.is_none(), found).or(better
        .map(|at| {
            format!(
                "SPARK_ROOT={}/spark spark pool init  # a new pool, on the host's btrfs",
                at.trim_end_matches('/')
            )
        })
        .unwrap_or_default())
}

/// A writable btrfs of the host's that is not the pool itself.
fn other_btrfs(probe: &Probe) -> Option<String> {
    let pool = probe.place.pool();
    let text = probe.text(probe.proc.join("self/mountinfo"))?;
    text.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(4);
        let (at, options) = (mount.next()?, mount.next()?);
        let writable = options.split(',').any(|o| o == "rw");
        // Pools of other installations are loop devices too.
        let mut filesystem = filesystem.split(' ');
        let fits = filesystem.next() == Some("btrfs") && !filesystem.next()?.starts_with("/dev/loop");
        (fits && writable && Path::new(at) != pool).then(|| at.to_owned())
    })
}

fn loop_devices(probe: &Probe) -> Check {
    let there = probe.dev.join("loop-control").exists();
    let loadable = probe.has_module("loop");
    let found = match (there, loadable) {
        (true, _) => "/dev/loop-control is there",
        (false, true) => "a module that is not loaded",
        (false, false) => "no /dev/loop-control, and no module for it",
    };
    Check::required("loop devices", there, found)
        .or("modprobe loop  # or put the pool on a device: `spark pool init --device /dev/…`")
        .fixed_by(Fix::Module("loop"))
}

const ROOM: &str = "room";

/// Room for a pool that is not there yet.
fn room_for_new(host: Option<Host>) -> Check {
    let Some(host) = host else {
        return Check::required(ROOM, false, "cannot be told").or("df -h /var/lib");
    };
    let found = format!("{} MiB free", host.free >> 20);
    let remedy = "SPARK_ROOT=/other/disk spark pool init";
    if host.free < host.least() {
        return Check::required(ROOM, false, found).or(remedy);
    }
    Check::recommended(ROOM, host.free >= COMFORT, found).or(remedy)
}

/// Room in the pool, and what it may grow by.
fn room(usage: Option<Usage>) -> Check {
    let Some(usage) = usage else {
        return Check::required(ROOM, false, "cannot be told").or("spark pool info");
    };
    let free = usage.free + usage.can_grow_bytes.unwrap_or_default();
    let found = format!("{} MiB free", free >> 20);
    Check::recommended(ROOM, free >= COMFORT, found).or("spark gc && spark pool info")
}

/// Tries what every start of a spark does: an idmapped copy of a mount, which nobody sees and which is gone at
/// once. None if there is no pool to try it on.
fn try_idmap(probe: &Probe) -> Option<io::Result<()>> {
    // The namespace comes from a forked child, which a process with several threads cannot have.
    if probe.user != 0 || !probe.place.pool().join("layout.json").exists() || !sys::process::single_threaded()
    {
        return None;
    }
    Some((|| {
        let namespace = sys::idmap::namespace(IdMap::range(1 << 20, 1 << 16))?;
        let tree = sys::mount::clone_tree(&probe.place.pool())?;
        sys::mount::set_attributes(&tree, Some(namespace.as_fd()), Default::default())
    })())
}

fn idmap(tried: Option<io::Result<()>>) -> Option<Check> {
    let (ok, found) = match tried? {
        Ok(()) => (true, "the pool can be idmapped".to_owned()),
        Err(e) => (false, format!("the pool cannot be idmapped: {e}")),
    };
    Some(
        Check::required("idmapped mounts", ok, found)
            .or("uname -r  # has to be 5.15 or newer, and spark has to run on the host itself"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::tests::Bare;
    use super::*;

    #[test]
    fn a_loop_image_is_worth_a_word_only_where_there_is_a_btrfs_to_use() {
        let bare = Bare::new();
        bare.write("proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n");
        assert!(pool(&bare.probe, Some(&Kind::Loop), false).ok);
        let own = bare.probe.place.pool();
        let own = format!("2 1 0:5 / {} rw - btrfs /dev/sdb rw\n", own.display());
        let others = "3 1 0:6 / /p rw - btrfs /dev/loop1 rw\n4 1 0:7 / /ro ro - btrfs /dev/sdc rw\n";
        bare.write("proc/self/mountinfo", &(own + others));
        assert!(pool(&bare.probe, Some(&Kind::Loop), false).ok);
        bare.write("proc/self/mountinfo", "5 1 0:8 / /data rw,noatime shared:1 - btrfs /dev/sdd rw\n");
        let check = pool(&bare.probe, Some(&Kind::Loop), false);
        assert!(!check.ok && check.remedy.unwrap().contains("SPARK_ROOT=/data/spark"));
        assert!(pool(&bare.probe, Some(&Kind::Directory), true).ok);
        assert!(pool(&bare.probe, None, true).ok);
    }

    #[test]
    fn loop_devices_may_be_missing() {
        let bare = Bare::new();
        assert!(!loop_devices(&bare.probe).ok);
        bare.write("dev/loop-control", "");
        assert!(loop_devices(&bare.probe).ok);
    }

    #[test]
    fn too_little_room_is_bad_before_there_is_a_pool_and_a_warning_after() {
        let host = |free| Some(Host { size: 1 << 40, free });
        let none = room_for_new(host(100 << 20));
        assert!(!none.ok && none.severity == Severity::Required);
        assert!(room_for_new(host(1 << 39)).ok);
        assert!(!room_for_new(None).ok);
        let usage = |free, can_grow_bytes| {
            let (source, space) = (None, None);
            Some(Usage { source, space, size: 1 << 40, free, allocated: None, can_grow_bytes })
        };
        let little = room(usage(1 << 20, None));
        assert!(!little.ok && little.severity == Severity::Recommended && little.found == "1 MiB free");
        assert!(room(usage(1 << 20, Some(1 << 40))).ok, "it grows");
        assert!(!room(None).ok);
    }

    #[test]
    fn idmapping_that_fails_says_why() {
        assert!(idmap(None).is_none());
        assert!(idmap(Some(Ok(()))).unwrap().ok);
        let check = idmap(Some(Err(io::Error::from_raw_os_error(libc::EINVAL)))).unwrap();
        assert!(!check.ok && check.found.contains("Invalid argument"));
    }
}
