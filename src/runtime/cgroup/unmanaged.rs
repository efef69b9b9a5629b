//! The hierarchies in which libcontainer places no container: named ones as systemd's, controllers that it does not know,
//! and version 2 beside version 1. libcontainer shows the container those of version 1 all the same, from the place where
//! the container's first process is. So that this is not the host's root, the maker enters a cgroup of the container's
//! there, and what the maker forks begins in it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::{Cgroup, TOP, is_unified};
use crate::error::{Error, Result};

/// The mount points, by their last part, at which libcgroups 0.7.0 looks for the hierarchies that it manages.
const MANAGED: [&str; 15] = [
    "blkio",
    "cpu",
    "cpu,cpuacct",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_cls,net_prio",
    "net_prio",
    "net_prio,net_cls",
    "perf_event",
    "pids",
];

/// The way back to the cgroups in which a process was.
#[derive(Debug)]
#[must_use]
pub struct Joined(Vec<File>);

impl Joined {
    /// Moves this process back. Its children stay where they are.
    pub fn leave(self) -> Result<()> {
        let back = self.0.into_iter().try_for_each(|mut entrance| entrance.write_all(b"0"));
        back.map_err(Error::sys("go back to the caller's cgroups"))
    }
}

/// The cgroup of processes of ours that serve sparks and belong to none of them. Not below a spark's name: no id is a word.
const HELPERS: &str = "/spark/helpers";

/// Moves this process, which has one thread, out of the cgroup of the command that started it: systemd ends all processes of a
/// session or a service together. A process that cannot be moved stays, and may end with its caller.
pub fn leave_callers() {
    let own = Cgroup::new(Path::new(HELPERS));
    let left = if is_unified() {
        let dir = own.v2();
        let enter = || {
            fs::create_dir_all(&dir)?;
            entrance(&dir)?.write_all(b"0")
        };
        enter().map_err(Error::io("enter", &dir))
    } else {
        own.join_unmanaged().map(drop)
    };
    if let Err(e) = left {
        tracing::warn!("a process stays in the cgroup of its caller: {e}");
    }
}

impl Cgroup {
    /// Makes this cgroup in the hierarchies that libcontainer leaves out, and moves this process there. It has one thread.
    ///
    /// # Errors
    /// If it cannot be made in one of them: a container would see the host's cgroups there.
    pub fn join_unmanaged(&self) -> Result<Joined> {
        if is_unified() {
            return Ok(Joined(Vec::new()));
        }
        let read = |path: &str| fs::read_to_string(path).map_err(Error::io("read", path));
        let found = unmanaged(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        let mut back = Vec::new();
        for Hierarchy { top, current } in found {
            let dir = top.join(&self.below);
            let join = || -> io::Result<File> {
                let back = entrance(&current)?;
                fs::create_dir_all(&dir)?;
                entrance(&dir)?.write_all(b"0")?;
                Ok(back)
            };
            back.push(join().map_err(|source| Error::Host {
                what: format!("cannot make and enter the cgroup {}", dir.display()),
                hint: format!(
                    "mount {} writable, or unmount it: without a cgroup of its own there a container would see the host's",
                    top.display()
                ),
                source: Some(source),
            })?);
        }
        Ok(Joined(back))
    }
}

/// A hierarchy, and where this process is in it.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    top: PathBuf,
    current: PathBuf,
}

/// The file by which a thread gets into a cgroup: in version 1 the one that makes no processor wait.
fn entrance(dir: &Path) -> io::Result<File> {
    let open = |name: &str| File::options().write(true).open(dir.join(name));
    match open("tasks") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => open("cgroup.procs"),
        opened => opened,
    }
}

/// The hierarchies of `/proc/self/mountinfo` that libcontainer leaves out. `places` is `/proc/self/cgroup`.
fn unmanaged(mountinfo: &str, places: &str) -> Vec<Hierarchy> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, top) = (mount.next()?, Path::new(mount.next()?));
        let mut filesystem = filesystem.split(' ');
        let (kind, options) = (filesystem.next()?, filesystem.nth(1)?);
        // As `Handle::hierarchies` finds them later.
        let name = top.strip_prefix(TOP).ok()?.to_str()?;
        let left_out = !name.is_empty() && !name.contains('/') && !MANAGED.contains(&name);
        (left_out && kind.starts_with("cgroup")).then(|| {
            let path = places.lines().find_map(|line| path_in(line, kind, options)).unwrap_or("/");
            // Where the mount shows a part of the hierarchy in which this process is not, its top is the nearest.
            let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
            Hierarchy { top: top.to_owned(), current: top.join(below) }
        })
    });
    mounts.collect()
}

/// The path in a line of `/proc/self/cgroup`, if that is about the hierarchy with these mount options.
fn path_in<'a>(line: &'a str, kind: &str, options: &str) -> Option<&'a str> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let is_it = match kind {
        "cgroup2" => controllers.is_empty(),
        _ => !controllers.is_empty() && controllers.split(',').all(|c| options.split(',').any(|o| o == c)),
    };
    is_it.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw shared:3 - cgroup cgroup rw,memory\n\
        37 31 0:34 / /sys/fs/cgroup/misc rw - cgroup cgroup rw,misc\n\
        40 31 0:37 /outer /sys/fs/cgroup/systemd rw shared:4 - cgroup cgroup rw,xattr,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        42 31 0:39 / /mnt/other rw - cgroup cgroup rw,name=other\n";

    #[test]
    fn hierarchies_that_libcontainer_leaves_out_are_found_with_the_place_of_this_process() {
        let places =
            "7:name=other:/x\n9:name=systemd:/outer/user.slice\n8:misc:/a/b\n4:memory:/a\n0::/init.scope\n";
        let at = |top: &str, current: &str| Hierarchy {
            top: Path::new(TOP).join(top),
            current: Path::new(TOP).join(current),
        };
        let found = unmanaged(HYBRID, places);
        let expected = [
            at("misc", "misc/a/b"),
            at("systemd", "systemd/user.slice"),
            at("unified", "unified/init.scope"),
        ];
        assert_eq!(found, expected);
        // Seen from a namespace whose root is elsewhere.
        assert_eq!(unmanaged(HYBRID, "9:name=systemd:/../x\n")[1], at("systemd", "systemd"));
    }

    #[test]
    fn what_libcgroups_manages_here_is_left_to_it_and_nothing_else() {
        let managed = libcgroups::v1::util::list_supported_mount_points().unwrap();
        for top in libcgroups::v1::util::list_subsystem_mount_points().unwrap() {
            let name = top.file_name().unwrap().to_str().unwrap();
            assert_eq!(managed.values().any(|m| *m == top), MANAGED.contains(&name), "{}", top.display());
        }
    }
}
