//! Paths that a container does not see, and those that it cannot write to.
//!
//! libcontainer takes a path that it cannot look at for one that is not there, and leaves it unmasked: a loop of links, a
//! name below a file, a name that is too long. It also makes read-only paths `noexec`. So neither is left to it.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::runtime::labels::check_mount_label;
use crate::sys;
use crate::sys::mount::Limits;

/// What `linux.maskedPaths` and `linux.readonlyPaths` list.
#[derive(Debug, Clone, Default)]
pub(super) struct Paths {
    masked: Vec<String>,
    read_only: Vec<String>,
    /// Where control groups are mounted, and what that forbids, as bits of mount_setattr(2).
    cgroups: Vec<(String, u64)>,
    /// Where anything is mounted.
    mounts: Vec<String>,
    /// SELinux's, for what is mounted over a directory.
    label: Option<String>,
}

impl Paths {
    /// # Errors
    /// `usage` where there is no mount namespace to do it in; `not_supported` if mounts cannot have the label.
    pub(super) fn of(config: &Value) -> Result<Paths> {
        let list = |at: &str| -> Vec<String> {
            let list = config.pointer(at).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let label = config.pointer("/linux/mountLabel").and_then(Value::as_str).filter(|l| !l.is_empty());
        label.map_or(Ok(()), check_mount_label)?;
        let paths = Paths {
            masked: list("/linux/maskedPaths"),
            read_only: list("/linux/readonlyPaths"),
            cgroups: cgroups(config),
            mounts: mounts(config)
                .filter_map(|mount| Some(mount["destination"].as_str()?.to_owned()))
                .collect(),
            label: label.map(str::to_owned),
        };
        let namespaces = config.pointer("/linux/namespaces").and_then(Value::as_array);
        let has_own = namespaces.into_iter().flatten().any(|n| n["type"] == "mount");
        let asks = !paths.masked.is_empty() || !paths.read_only.is_empty();
        if asks && !has_own {
            let text = "linux.maskedPaths and linux.readonlyPaths need a mount namespace in linux.namespaces";
            return Err(Error::usage(text));
        }
        Ok(paths)
    }

    /// In the container's root, while every capability is held.
    ///
    /// # Errors
    /// With the path, if it is there or cannot be told not to be.
    pub(super) fn apply(&self) -> Result<(), String> {
        for (path, attributes) in &self.cgroups {
            self.limit_hierarchies(path, *attributes)
                .map_err(|e| format!("cannot limit what is mounted at `{}`: {e}", path.escape_default()))?;
        }
        for path in &self.read_only {
            limit(path)
                .map_err(|e| format!("cannot make the path `{}` read-only: {e}", path.escape_default()))?;
        }
        for path in &self.masked {
            self.mask(path).map_err(|e| format!("cannot mask the path `{}`: {e}", path.escape_default()))?;
        }
        Ok(())
    }

    /// What libcontainer forgets where each hierarchy of version 1 is a mount of its own.
    fn limit_hierarchies(&self, at: &str, attributes: u64) -> io::Result<()> {
        const CGROUP_V1: i64 = 0x0027_e0eb;
        for entry in std::fs::read_dir(at)? {
            let path = entry?.path();
            let named = path.to_str().is_some_and(|path| self.mounts.iter().any(|mount| mount == path));
            let Some(place) = open(&path)?.filter(|_| !named) else { continue };
            if rustix::fs::fstatfs(&place)?.f_type == CGROUP_V1 && sys::file::is_mount_top(&place)? {
                sys::mount::forbid(place, attributes)?;
            }
        }
        Ok(())
    }

    fn mask(&self, path: &str) -> io::Result<()> {
        let Some(place) = open(path)? else { return Ok(()) };
        let cover = if is_dir(&place)? {
            let label = self.label.as_ref().map(|label| format!("context={label}"));
            let tree = sys::mount::tmpfs_with(["source=tmpfs", "ro"].into_iter().chain(label.as_deref()))?;
            sys::mount::set_attributes(&tree, None, Limits { read_only: true, ..Limits::default() })?;
            tree
        } else {
            sys::mount::clone_tree_of(null()?, false)?
        };
        sys::mount::attach_upon(cover, place)
    }
}

/// The mounts of control groups with what they are to forbid.
fn cgroups(config: &Value) -> Vec<(String, u64)> {
    let bit = |option: &str| match option {
        "ro" => libc::MOUNT_ATTR_RDONLY,
        "nosuid" => libc::MOUNT_ATTR_NOSUID,
        "nodev" => libc::MOUNT_ATTR_NODEV,
        "noexec" => libc::MOUNT_ATTR_NOEXEC,
        _ => 0,
    };
    let of = |mount: &Value| {
        let options = mount.get("options").and_then(Value::as_array).into_iter().flatten();
        let bits = options.filter_map(Value::as_str).map(bit).fold(0, |all, one| all | one);
        Some((mount.get("destination")?.as_str()?.to_owned(), bits)).filter(|(_, bits)| *bits != 0)
    };
    mounts(config).filter(|mount| mount["type"] == "cgroup").filter_map(of).collect()
}

fn mounts(config: &Value) -> impl Iterator<Item = &Value> {
    config.get("mounts").and_then(Value::as_array).into_iter().flatten()
}

fn limit(path: &str) -> io::Result<()> {
    let Some(place) = open(path)? else { return Ok(()) };
    let tree = sys::mount::clone_tree_of(&place, true)?;
    sys::mount::set_attributes(&tree, None, Limits { read_only: true, ..Limits::default() })?;
    sys::mount::attach_upon(tree, place)
}

/// None if it is not there. Whatever else keeps it from being opened could hide it.
fn open(path: impl rustix::path::Arg) -> io::Result<Option<std::os::fd::OwnedFd>> {
    match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(place) => Ok(Some(place)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn is_dir(place: impl AsFd) -> io::Result<bool> {
    let stat = rustix::fs::fstat(place)?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// The container's null device: certainly that one, or what a container put there would show through every mask.
fn null() -> io::Result<std::os::fd::OwnedFd> {
    let null =
        rustix::fs::open("/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&null)?;
    let is_device = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_char_device();
    if !is_device || stat.st_rdev != rustix::fs::makedev(1, 3) {
        return Err(io::Error::other("/dev/null is not the null device"));
    }
    Ok(null)
}
