//! Mounts made from descriptors, in a mount namespace of our own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::thread::UnshareFlags;

use super::idmap::IdMap;

/// A mount to be made upon a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    pub source: PathBuf,
    /// Where it is inside.
    pub at: PathBuf,
    /// How ids on disk look to the host; as they are if none.
    pub ids: Option<IdMap>,
    pub is_dir: bool,
    pub read_only: bool,
    /// Whether a symbolic link in `source` has to be refused: a spark may be able to put one there.
    pub exact: bool,
}

/// Gives this process a mount namespace of its own: what it mounts, the host's table never shows.
pub fn unshare() -> io::Result<()> {
    // SAFETY: a new mount namespace changes no memory and no descriptor of this process.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", slave)?)
}

/// No mount namespace can be made ready for a container where `/` is no mount, as in a chroot.
///
/// # Errors
/// `EINVAL`, as of the kernel.
pub fn check_root() -> io::Result<()> {
    if super::file::is_mount_point(Path::new("/"))? {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

/// The same, but only what is mounted where `place` is stays unseen on the host: other mounts go both ways as before.
pub fn unshare_beside(place: &Path) -> io::Result<()> {
    let mut tops = place.ancestors();
    let top = loop {
        match tops.next() {
            Some(dir) if super::file::is_mount_point(dir)? => break dir,
            Some(_) => {}
            None => return check_root(),
        }
    };
    // SAFETY: a new mount namespace changes no memory and no descriptor of this process.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    Ok(rustix::mount::mount_change(top, MountPropagationFlags::DOWNSTREAM)?)
}

/// A detached copy of the mount at `path`, in which no part may be a symbolic link.
///
/// # Errors
/// `ELOOP` where one is: whoever may write there could lead anywhere.
pub fn clone_tree_exact(path: &Path) -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let resolve = rustix::fs::ResolveFlags::NO_SYMLINKS;
    let fd = rustix::fs::openat2(CWD, path, flags, rustix::fs::Mode::empty(), resolve)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(fd, "", flags)?)
}

/// A detached copy of the mount at `path`.
pub fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// A detached tmpfs of a size, whose top belongs to a user of the host: nothing in it is executed, gains privileges or
/// is a device, and where the kernel can promise that (6.4 and later), nothing in it is swapped.
pub fn tmpfs(size: usize, owner: u32) -> io::Result<OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    let make = |no_swap: bool| -> rustix::io::Result<OwnedFd> {
        let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let (size, owner) = (size.to_string(), owner.to_string());
        let options =
            [("size", &*size), ("nr_inodes", "1024"), ("mode", "0755"), ("uid", &*owner), ("gid", &*owner)];
        for (key, value) in options {
            rustix::mount::fsconfig_set_string(&fs, key, value)?;
        }
        if no_swap {
            rustix::mount::fsconfig_set_flag(&fs, "noswap")?;
        }
        rustix::mount::fsconfig_create(&fs)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    Ok(make(true).or_else(|_| make(false))?)
}

/// A detached tmpfs with options of its own, `KEY=VALUE` or a word.
pub fn tmpfs_with<'a>(options: impl IntoIterator<Item = &'a str>) -> io::Result<OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for option in options {
        match option.split_once('=') {
            Some((key, value)) => rustix::mount::fsconfig_set_string(&fs, key, value)?,
            None => rustix::mount::fsconfig_set_flag(&fs, option)?,
        }
    }
    rustix::mount::fsconfig_create(&fs)?;
    Ok(rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// A detached copy of the mount at an open file or directory, from there on; with what is mounted below it if asked for.
pub fn clone_tree_of(place: impl AsFd, with_below: bool) -> io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, with_below);
    Ok(rustix::mount::open_tree(place, "", flags)?)
}

/// Mounts a subvolume of a device by its id, and nowhere: it is there for as long as the descriptor is.
///
/// # Errors
/// `ENOENT` if there is no such subvolume.
pub fn subvolume(device: &Path, id: u64) -> io::Result<OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    let fs = rustix::mount::fsopen("btrfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, "source", device)?;
    rustix::mount::fsconfig_set_string(&fs, "subvolid", id.to_string())?;
    rustix::mount::fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// What a mount forbids to those who use it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub read_only: bool,
    /// No device files.
    pub no_devices: bool,
    /// No set-uid programs.
    pub no_set_uid: bool,
}

impl Limits {
    /// Those of what is mounted beside a root: no set-uid programs, no device files.
    pub fn inert(read_only: bool) -> Limits {
        Limits { read_only, no_devices: true, no_set_uid: true }
    }
}

/// Limits a detached mount, and maps its ids through a user namespace.
///
/// # Errors
/// `EINVAL` where the filesystem cannot be idmapped.
pub fn set_attributes(tree: impl AsFd, user_ns: Option<BorrowedFd<'_>>, limits: Limits) -> io::Result<()> {
    let mut attr_set = 0;
    if user_ns.is_some() {
        attr_set |= libc::MOUNT_ATTR_IDMAP;
    }
    if limits.read_only {
        attr_set |= libc::MOUNT_ATTR_RDONLY;
    }
    if limits.no_devices {
        attr_set |= libc::MOUNT_ATTR_NODEV;
    }
    if limits.no_set_uid {
        attr_set |= libc::MOUNT_ATTR_NOSUID;
    }
    let userns_fd = user_ns.map_or(0, |ns| ns.as_raw_fd() as u64);
    let attr = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd };
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

/// Makes the mount at `path`, and all below it, read-only. No part of the path may be a symbolic link.
pub fn set_read_only(path: &Path) -> io::Result<()> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let resolve = rustix::fs::ResolveFlags::NO_SYMLINKS;
    let fd = rustix::fs::openat2(CWD, path, flags, rustix::fs::Mode::empty(), resolve)?;
    forbid(fd, libc::MOUNT_ATTR_RDONLY)
}

/// Sets attributes of mount_setattr(2) of the mount whose top is open here, and of all below it.
pub fn forbid(top: impl AsFd, attributes: u64) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is an empty C string, and `attr` a valid mount_attr of the size given.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            top.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Joins a mount namespace, and its root and working directory with it. For a process that does nothing else.
pub fn join(namespace: impl AsFd) -> io::Result<()> {
    let kind = rustix::thread::LinkNameSpaceType::Mount;
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind))?)
}

/// The number of the mount namespace of this thread.
pub fn namespace() -> io::Result<u64> {
    Ok(rustix::fs::stat("/proc/thread-self/ns/mnt")?.st_ino)
}

/// The roots of the processes of a mount namespace: what is mounted there is seen through them.
pub fn roots_in(namespace: u64) -> Vec<PathBuf> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let is_in = |process: &PathBuf| {
        rustix::fs::stat(process.join("ns/mnt")).is_ok_and(|stat| stat.st_ino == namespace)
    };
    processes.filter(is_in).map(|process| process.join("root")).collect()
}

/// Takes the mount away whose top is open here, at once for all who look and later for those who use it.
pub fn detach(top: impl AsFd) -> io::Result<()> {
    // umount2(2) takes paths only, and there may be no /proc to name a descriptor by.
    rustix::process::fchdir(top)?;
    let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
    Ok(rustix::mount::unmount(".", flags)?)
}

/// Attaches a detached mount at a path.
pub fn attach(tree: impl AsFd, path: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Attaches a detached mount upon an open file or directory.
pub fn attach_upon(tree: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", target, "", flags)?)
}

/// Mounts a new filesystem of programs and maps of the kernel's (bpf(2)) at a path, for root alone.
pub fn bpf(path: &Path) -> io::Result<()> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    let fs = rustix::mount::fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, "mode", "0700")?;
    rustix::mount::fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    attach(rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?, path)
}

/// Takes everything away that is mounted at a path, however often. Nothing is as well, and nothing at the path.
pub fn detach_all(path: &Path) -> io::Result<()> {
    let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
    loop {
        match rustix::mount::unmount(path, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}
