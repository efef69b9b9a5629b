//! Mounts made from descriptors, in a mount namespace of our own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::thread::UnshareFlags;

/// Gives this process a mount namespace of its own: what it mounts, the host's table never shows.
pub fn unshare() -> io::Result<()> {
    // SAFETY: a new mount namespace changes no memory and no descriptor of this process.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", slave)?)
}

/// A detached copy of the mount at `path`.
pub fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// Maps the ids of a detached mount through a user namespace.
///
/// # Errors
/// `EINVAL` where the filesystem cannot be idmapped.
pub fn set_idmap(tree: impl AsFd, user_ns: impl AsFd) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_ns.as_fd().as_raw_fd() as u64,
    };
    // SAFETY: the path is an empty C string, and `attr` a valid mount_attr of the size given.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Attaches a detached mount at a path.
pub fn attach(tree: impl AsFd, path: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}
