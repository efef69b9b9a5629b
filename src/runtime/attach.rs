//! Mounting in a spark that runs: a forked helper joins its mount namespace and no other, so that nothing inside sees
//! the helper, and what was mounted before it joined is attached by descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::live::Live;
use super::place::{Maps, Place, detached};
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::deadline::Deadline;
use crate::sys::mount::Planned;

/// What the helper says besides an errno: it is done, or there was nothing to do.
const DONE: i32 = 0;
const NOTHING: i32 = 255;

/// Mounts something in a running spark, or one that is about to run, whose root is at `root` in the pool.
///
/// # Errors
/// What the kernel said, and then nothing is mounted; with advice where the path leads through a link: it could go
/// to /proc or /sys, which would be the spark's own no longer.
pub fn attach(live: &Live, root: &Path, mount: &Planned) -> Result<()> {
    let tree = detached(mount, &mut Maps::default())?;
    attach_tree(live, root, (&tree, &mount.at, mount.is_dir)).map_err(|e| match e.raw_os_error() {
        Some(libc::ELOOP) => Error::NotSupported {
            what: format!("cannot mount something at {}: the path leads through a link", mount.at.display()),
            hint: Some("attach it where the link leads to".into()),
        },
        _ => Error::io("mount something at", &mount.at)(e),
    })
}

/// The same with a mount that has been made: itself, its place, and whether that is a directory.
pub(super) fn attach_tree(
    live: &Live,
    root: &Path,
    (tree, at, is_dir): (&OwnedFd, &Path, bool),
) -> io::Result<()> {
    let bare = sys::file::open_dir(root)?;
    let done = Inside::of(live)?.run(|mapped| {
        let place = Place { bare: bare.as_fd(), mapped: mapped.as_fd(), first_id: live.first_id };
        let place = place.open(at, is_dir, sys::beneath::open_place_exact)?;
        sys::mount::attach_upon(tree, &place).map(|()| true)
    });
    done.map(drop)
}

/// The root of a running spark, as what runs in it sees it.
pub(super) fn root_of(live: &Live) -> io::Result<OwnedFd> {
    Inside::of(live).map(|inside| inside.root)
}

/// Takes a volume away from a running spark: `fs` is its subvolume in the pool. What has files open in it keeps them.
/// False if it is not what is on top at `at`.
pub fn detach(live: &Live, fs: &Path, at: &Path) -> Result<bool> {
    let subvolume = sys::file::open_dir(fs).map_err(Error::io("open", fs))?;
    let inside = Inside::of(live).map_err(Error::sys("open the spark's mount namespace"))?;
    let done = inside.run(|mapped| {
        let place = match sys::beneath::open_place_exact(mapped.as_fd(), at) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {
                return Ok(false);
            }
            place => place?,
        };
        if !sys::file::same(&place, &subvolume)? || !sys::file::is_mount_top(&place)? {
            return Ok(false);
        }
        sys::mount::detach(&place).map(|()| true)
    });
    done.map_err(Error::io("unmount", at))
}

/// The mount namespace of a running spark, and its root.
struct Inside {
    namespace: OwnedFd,
    root: OwnedFd,
}

impl Inside {
    fn of(live: &Live) -> io::Result<Inside> {
        let pidfd = live.pidfd()?;
        let of = |what| format!("/proc/{}/{what}", live.init.pid);
        let namespace = File::open(of("ns/mnt"))?.into();
        let root = sys::file::open_dir(of("root").as_ref())?;
        // Opened by number: they are the ones meant only if PID 1 is still that process.
        if sys::deadline::ended(&pidfd, std::time::Duration::ZERO)? {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(Inside { namespace, root })
    }

    /// Does something in a helper that has joined.
    fn run(&self, work: impl FnOnce(&OwnedFd) -> io::Result<bool>) -> io::Result<bool> {
        let helper =
            sys::process::fork(|| match sys::mount::join(&self.namespace).and_then(|()| work(&self.root)) {
                Ok(true) => DONE,
                Ok(false) => NOTHING,
                Err(e) => e.raw_os_error().unwrap_or(libc::EIO),
            })?;
        match sys::deadline::reap(helper, Deadline::inside()) {
            Ok(Some(ended)) => match ended.status() {
                DONE => Ok(true),
                NOTHING => Ok(false),
                errno => Err(io::Error::from_raw_os_error(errno)),
            },
            late => {
                sys::deadline::end_child(helper)?;
                late.and_then(|_| Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)))
            }
        }
    }
}
