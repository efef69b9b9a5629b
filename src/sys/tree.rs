//! Trees that are made and read through descriptors. No symbolic link is followed anywhere.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;

use super::beneath;

/// Seconds and nanoseconds since 1970.
pub type Mtime = (i64, u32);

/// Opens the directory `path` below `root`; `root` itself where it is empty. The path may be longer than `PATH_MAX`: a
/// tree can be deeper than any path that the kernel takes.
///
/// # Errors
/// `ELOOP` or `ENOTDIR` where a part of it is a link or no directory, `EXDEV` where it leads out.
pub fn open_dir(root: impl AsFd, path: &[u8]) -> io::Result<OwnedFd> {
    let (mut from, mut path) = (None::<OwnedFd>, path);
    while path.len() >= libc::PATH_MAX as usize {
        let cut = path[..libc::PATH_MAX as usize].iter().rposition(|b| *b == b'/');
        let cut = cut.filter(|at| *at > 0).ok_or(Errno::NAMETOOLONG)?;
        from = Some(open_part(from.as_ref().map_or(root.as_fd(), AsFd::as_fd), &path[..cut])?);
        path = &path[cut + 1..];
    }
    open_part(from.as_ref().map_or(root.as_fd(), AsFd::as_fd), path)
}

fn open_part(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let path = OsStr::from_bytes(if path.is_empty() { b"." } else { path });
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(beneath::resolving(root, Path::new(path), flags, Mode::empty(), resolve)?.into())
}

/// Opens directories below one, each from the one before if that is above it: archives go directory by directory, and
/// from the top the way to a deep one is long.
#[derive(Debug)]
pub struct Nearby {
    top: Rc<OwnedFd>,
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

impl Nearby {
    pub fn new(top: OwnedFd) -> Nearby {
        Nearby { top: Rc::new(top), last: None }
    }

    /// The directory that all are below.
    pub fn top(&self) -> &Rc<OwnedFd> {
        &self.top
    }

    /// Forgets the directory that was opened last: it may be about to go.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Opens a directory, as [`open_dir`].
    pub fn open(&mut self, path: &[u8]) -> io::Result<Rc<OwnedFd>> {
        let (from, rest) = self.nearest(path);
        let fd = match rest {
            [] => from,
            rest => Rc::new(open_dir(&*from, rest)?),
        };
        self.keep(path, &fd);
        Ok(fd)
    }

    /// The nearest directory above a path that is open, and the way from there.
    pub fn nearest<'p>(&self, path: &'p [u8]) -> (Rc<OwnedFd>, &'p [u8]) {
        if let Some((last, fd)) = &self.last {
            match path.strip_prefix(&last[..]) {
                Some([]) => return (fd.clone(), b""),
                Some([b'/', rest @ ..]) if !last.is_empty() => return (fd.clone(), rest),
                _ => {}
            }
        }
        (self.top.clone(), path)
    }

    /// Notes the directory of a path, which is open.
    pub fn keep(&mut self, path: &[u8], fd: &Rc<OwnedFd>) {
        self.last = Some((path.to_owned(), fd.clone()));
    }
}

/// Opens the directory `name` in `dir`.
pub fn open_child(dir: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, OsStr::from_bytes(name), flags, Mode::empty())?)
}

/// Opens the regular file `name` in `dir` for writing. A fifo does not block it, and is refused.
pub fn open_file_to_write(dir: impl AsFd, name: &[u8]) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, OsStr::from_bytes(name), flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Opens the device or fifo `name` in `dir` to write into it. A fifo waits for its reader.
///
/// # Errors
/// `EBUSY` if it is a regular file by now, `ENXIO` for a socket.
pub fn open_node_to_write(dir: impl AsFd, name: &[u8]) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, OsStr::from_bytes(name), flags, Mode::empty())?);
    if file.metadata()?.is_file() { Err(io::Error::from_raw_os_error(libc::EBUSY)) } else { Ok(file) }
}

/// Opens the regular file `name` in `dir` for reading. A fifo does not block it, and is refused.
pub fn open_file(dir: impl AsFd, name: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, OsStr::from_bytes(name), flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Makes a new file, mode 0600.
pub fn create_file(dir: impl AsFd, name: &[u8]) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, OsStr::from_bytes(name), flags, Mode::from_raw_mode(0o600))?.into())
}

/// Makes a new file that has no name, mode 0600: nothing is left of it unless [`name_file`] gives it one. `None` where
/// the filesystem has no such files.
pub fn create_unnamed(dir: impl AsFd) -> io::Result<Option<File>> {
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, ".", flags, Mode::from_raw_mode(0o600)) {
        Ok(fd) => Ok(Some(fd.into())),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Gives an open file a name that is not taken.
pub fn name_file(file: &File, dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    let name = OsStr::from_bytes(name);
    match rustix::fs::linkat(file, "", &dir, name, AtFlags::EMPTY_PATH) {
        // Only root may, on kernels before 6.10. Whoever acts with the rights of the caller goes through /proc, which root does
        // not have where a spark's mounts are all that it sees.
        Err(Errno::NOENT) => {
            let of_file = format!("/proc/self/fd/{}", file.as_raw_fd());
            Ok(rustix::fs::linkat(rustix::fs::CWD, of_file, dir, name, AtFlags::SYMLINK_FOLLOW)?)
        }
        linked => Ok(linked?),
    }
}

/// Opens `name` in `dir` as what it is, a link itself: to inspect and change it, and not what comes to have its name.
pub fn open_node(dir: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, OsStr::from_bytes(name), flags, Mode::empty())?)
}

/// Makes a directory, mode 0700.
pub fn make_dir(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(dir, OsStr::from_bytes(name), Mode::from_raw_mode(0o700))?)
}

/// Makes a symbolic link.
pub fn make_symlink(dir: impl AsFd, name: &[u8], target: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::symlinkat(OsStr::from_bytes(target), dir, OsStr::from_bytes(name))?)
}

/// Makes a named pipe, mode 0600.
pub fn make_fifo(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::mkfifoat(&dir, OsStr::from_bytes(name), Mode::from_raw_mode(0o600))?)
}

/// Sets the mode of `name` in `dir`, which may be what cannot be opened. A link is refused: `EOPNOTSUPP`.
pub fn set_mode_at(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<()> {
    // chmod(2) of a name would follow a link; through a descriptor of the node itself it cannot.
    set_node_mode(open_node(dir, name)?, mode)
}

/// Sets the mode of what [`open_node`] opened.
pub fn set_node_mode(node: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::chmod(path_of(&node), Mode::from_raw_mode(mode & 0o7777))?)
}

/// A path that means what is open itself: of a name, chmod(2) and setxattr(2) would follow a link.
fn path_of(node: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", node.as_fd().as_raw_fd())
}

/// Sets the owner of what [`open_node`] opened.
pub fn set_node_owner(node: impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    Ok(rustix::fs::chownat(node, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
}

/// Sets the time of the last change of what [`open_node`] opened.
pub fn set_node_mtime(node: impl AsFd, mtime: Mtime) -> io::Result<()> {
    Ok(rustix::fs::utimensat(node, "", &times(mtime), AtFlags::EMPTY_PATH)?)
}

/// Makes a socket's name, or a device 0:0, which is no device: overlay filesystems mark with it what was deleted.
pub fn make_node(dir: impl AsFd, name: &[u8], kind: FileType) -> io::Result<()> {
    Ok(rustix::fs::mknodat(dir, OsStr::from_bytes(name), kind, Mode::from_raw_mode(0o600), 0)?)
}

/// Makes a device file, mode 0600.
pub fn make_device(dir: impl AsFd, name: &[u8], kind: FileType, device: u64) -> io::Result<()> {
    Ok(rustix::fs::mknodat(dir, OsStr::from_bytes(name), kind, Mode::from_raw_mode(0o600), device)?)
}

/// Sets one extended attribute of `name` in `dir`, a link itself.
pub fn set_xattr_at(dir: impl AsFd, name: &[u8], attribute: &[u8], value: &[u8]) -> io::Result<()> {
    let node = open_node(dir, name)?;
    Ok(rustix::fs::setxattr(path_of(&node), OsStr::from_bytes(attribute), value, XattrFlags::empty())?)
}

/// Removes one extended attribute of `name` in `dir`, a link itself. One that is not there is removed.
pub fn remove_xattr_at(dir: impl AsFd, name: &[u8], attribute: &[u8]) -> io::Result<()> {
    let node = open_node(dir, name)?;
    match rustix::fs::removexattr(path_of(&node), OsStr::from_bytes(attribute)) {
        Err(Errno::NODATA) => Ok(()),
        other => Ok(other?),
    }
}

/// Makes a hard link to `from_name`, which is not followed.
pub fn link(from: impl AsFd, from_name: &[u8], dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::linkat(
        from,
        OsStr::from_bytes(from_name),
        dir,
        OsStr::from_bytes(name),
        AtFlags::empty(),
    )?)
}

/// Gives a file another name, which may be another one's: that is gone then.
pub fn rename(from: impl AsFd, from_name: &[u8], dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::renameat(from, OsStr::from_bytes(from_name), dir, OsStr::from_bytes(name))?)
}

/// Removes a name that is there, and is no directory's.
pub fn unlink(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, OsStr::from_bytes(name), AtFlags::empty())?)
}

/// Removes an empty directory.
pub fn remove_dir(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, OsStr::from_bytes(name), AtFlags::REMOVEDIR)?)
}

/// Removes a file, or an empty directory. Says whether it was a directory; nothing there is a file removed.
pub fn remove(dir: impl AsFd, name: &[u8]) -> io::Result<bool> {
    let name = OsStr::from_bytes(name);
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(false),
        Err(Errno::ISDIR | Errno::PERM) => {
            Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR).map(|()| true)?)
        }
        Err(e) => Err(e.into()),
    }
}

/// Removes everything in a directory, however deep it goes: what is in a directory that is not empty is moved up
/// first, so that no more than two are open at a time.
pub fn clear(dir: impl AsFd) -> io::Result<()> {
    let mut number = 0u64;
    loop {
        let names = names(&dir)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            match remove(&dir, &name) {
                Err(e) if e.raw_os_error() == Some(libc::ENOTEMPTY) => {}
                other => {
                    other?;
                    continue;
                }
            }
            let child = open_child(&dir, &name)?;
            for inner in self::names(&child)? {
                if remove(&child, &inner).is_err() {
                    number += 1;
                    let up = format!(".removed-{number}");
                    match rustix::fs::renameat_with(
                        &child,
                        OsStr::from_bytes(&inner),
                        &dir,
                        up.as_str(),
                        rustix::fs::RenameFlags::NOREPLACE,
                    ) {
                        // The next number is free, or the one after it.
                        Err(Errno::EXIST) | Ok(()) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
            }
        }
    }
}

/// Inspects `name` in `dir`, a link itself.
pub fn stat(dir: impl AsFd, name: &[u8]) -> io::Result<rustix::fs::Stat> {
    Ok(rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Whether an open directory is the top of a mount.
pub fn is_mount_point(dir: impl AsFd) -> io::Result<bool> {
    let stat = rustix::fs::statx(dir, "", AtFlags::EMPTY_PATH, rustix::fs::StatxFlags::empty())?;
    Ok(stat.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
}

/// Where a link that [`open_node`] opened points to.
pub fn read_link(node: impl AsFd) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(node, "", Vec::new())?.into_bytes())
}

/// Whether nothing is in a directory.
pub fn is_empty(dir: impl AsFd) -> io::Result<bool> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The names in a directory, without `.` and `..`.
pub fn names(dir: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    names_at_most(dir, usize::MAX)
}

/// The same, for a directory that may have been filled to exhaust its reader.
///
/// # Errors
/// `InvalidData` where there are more than `most`.
pub fn names_at_most(dir: impl AsFd, most: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    let is_one_more = find_name(dir, |name| {
        let is_full = names.len() == most;
        if !is_full {
            names.push(name.to_owned());
        }
        is_full
    })?;
    if is_one_more {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {most} entries")));
    }
    Ok(names)
}

/// Looks at the names in a directory, without `.` and `..`, until one of them is it. However many there are, none is kept.
pub fn find_name(dir: impl AsFd, mut is_it: impl FnMut(&[u8]) -> bool) -> io::Result<bool> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." && is_it(name) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Sets the owner of `name` in `dir`, a link itself.
pub fn set_owner(dir: impl AsFd, name: &[u8], uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    Ok(rustix::fs::chownat(dir, OsStr::from_bytes(name), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Sets owner and then mode of an open file: the other way round would clear set-id bits. What it has already is not
/// set again: each change is one more of the filesystem's transactions.
pub fn set_owner_and_mode(fd: impl AsFd, (uid, gid): (u32, u32), mode: u32) -> io::Result<()> {
    let now = rustix::fs::fstat(&fd)?;
    let same_owner = (now.st_uid, now.st_gid) == (uid, gid);
    if !same_owner {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        rustix::fs::fchown(&fd, Some(uid), Some(gid))?;
    }
    if !same_owner || now.st_mode & 0o7777 != mode & 0o7777 {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode & 0o7777))?;
    }
    Ok(())
}

/// Sets the time of the last change of an open file.
pub fn set_mtime(fd: impl AsFd, mtime: Mtime) -> io::Result<()> {
    Ok(rustix::fs::futimens(fd, &times(mtime))?)
}

/// Sets the time of the last change of `name` in `dir`, a link itself.
pub fn set_mtime_at(dir: impl AsFd, name: &[u8], mtime: Mtime) -> io::Result<()> {
    Ok(rustix::fs::utimensat(dir, OsStr::from_bytes(name), &times(mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Sets the times of the last access and of the last change of `name` in `dir`, a link itself.
pub fn set_times_at(dir: impl AsFd, name: &[u8], atime: Mtime, mtime: Mtime) -> io::Result<()> {
    let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
    Ok(rustix::fs::utimensat(dir, OsStr::from_bytes(name), &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times(mtime: Mtime) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        last_modification: time(mtime),
    }
}

fn time((seconds, nanos): Mtime) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanos.min(999_999_999).into() }
}

/// Sets one extended attribute.
pub fn set_xattr(fd: impl AsFd, name: &[u8], value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty())?)
}

/// Sets one extended attribute, unless the filesystem cannot hold it. Says whether it did.
pub fn try_set_xattr(fd: impl AsFd, name: &[u8], value: &[u8]) -> io::Result<bool> {
    match set_xattr(fd, name, value) {
        Ok(()) => Ok(true),
        Err(e) => match e.raw_os_error() {
            // Too large for this filesystem, not a valid capability, or none are known here.
            Some(
                libc::E2BIG | libc::ENOSPC | libc::ERANGE | libc::EINVAL | libc::EOPNOTSUPP | libc::EPERM,
            ) => Ok(false),
            _ => Err(e),
        },
    }
}

/// Removes one extended attribute. One that is not there is removed.
pub fn remove_xattr(fd: impl AsFd, name: &[u8]) -> io::Result<()> {
    match rustix::fs::fremovexattr(fd, OsStr::from_bytes(name)) {
        Err(Errno::NODATA) => Ok(()),
        other => Ok(other?),
    }
}

/// The names of all extended attributes; none where the filesystem has none.
pub fn xattr_names(fd: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let split = |list: &[u8]| list.split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
    // Nearly every file has few or none, and trees have many files.
    let mut few = [0; 256];
    match rustix::fs::flistxattr(&fd, &mut few[..]) {
        Err(Errno::RANGE) => {}
        Ok(n) => return Ok(split(&few[..n])),
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    }
    // The kernel's limit: XATTR_LIST_MAX.
    let mut list = vec![0; 64 << 10];
    let n = rustix::fs::flistxattr(fd, &mut list[..])?;
    Ok(split(&list[..n]))
}

/// The value of an extended attribute; `None` if it is gone.
pub fn xattr(fd: impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    // The kernel's limit: XATTR_SIZE_MAX.
    let mut value = vec![0; 64 << 10];
    match rustix::fs::fgetxattr(fd, OsStr::from_bytes(name), &mut value[..]) {
        Ok(n) => {
            value.truncate(n);
            // Whoever keeps all values of a file keeps thousands.
            value.shrink_to_fit();
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Writes everything that is dirty on the filesystem to its disk.
pub fn sync_filesystem(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::syncfs(fd)?)
}
