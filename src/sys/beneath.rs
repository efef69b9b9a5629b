//! Opening paths below a directory whose content is not trusted.
//!
//! `openat2(2)` resolves every link as if the directory were `/`, and crosses no magic link, so that nothing
//! planted inside leads out.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Opens `path` for reading, with `root` as `/`. Does not block on a fifo.
pub fn open(root: impl AsFd, path: &Path) -> io::Result<File> {
    open_with(root, path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
}

/// Opens the directory `path`, with `root` as `/`.
pub fn open_dir(root: impl AsFd, path: &Path) -> io::Result<File> {
    open_with(root, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}

/// Opens `path` with flags of the caller's, with `root` as `/`.
pub fn open_with(root: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> io::Result<File> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // openat2(2) refuses with O_PATH what it could not mean.
    let extra = if flags.contains(OFlags::PATH) { OFlags::CLOEXEC } else { OFlags::CLOEXEC | OFlags::NOCTTY };
    resolving(root.as_fd(), path, flags | extra, mode, resolve)
}

/// How often openat2(2) is called again. Only somebody who renames without pause on purpose makes it fail so often.
const TRIES: usize = 1000;

/// Opens a path as `resolve` says.
///
/// # Errors
/// `EAGAIN` where somebody inside keeps it from being opened: by renaming without pause, or by a lease, see fcntl(2).
pub(super) fn resolving(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> io::Result<File> {
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, flags, mode, resolve) {
            Err(Errno::INTR) => {}
            // A rename somewhere on the way: the kernel could not be sure, and asks to try again.
            Err(Errno::AGAIN) if tries < TRIES => tries += 1,
            other => return Ok(File::from(other?)),
        }
    }
}

/// Opens `path` to be mounted upon, with `root` as `/`.
pub fn open_place(root: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    open_with(root, path, OFlags::PATH, Mode::empty())
}

/// The same where the place has to be the very one that its path says.
///
/// # Errors
/// `ELOOP` where a part of the path is a symbolic link.
pub fn open_place_exact(root: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    resolving(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Makes sure that `path` is there to be mounted upon: a directory, or anything else. What is there stays as it is,
/// and nothing is opened, so a fifo does not block. Missing directories are made, also where a link points.
///
/// # Errors
/// `ELOOP` where links lead on and on.
pub fn make_mount_point(root: impl AsFd, path: &Path, is_dir: bool) -> io::Result<()> {
    make(root.as_fd(), path, is_dir, 16)
}

/// Makes sure that `path` is a directory, with `root` as `/`. What is there stays as it is; a new one belongs to `owner`, a
/// user and a group, and those on the way to it to root.
///
/// # Errors
/// `ENOTDIR` where something else is there.
pub fn make_dir(root: impl AsFd, path: &Path, owner: (u32, u32)) -> io::Result<()> {
    let root = root.as_fd();
    let there = |flags| open_with(root, path, flags | OFlags::DIRECTORY, Mode::empty());
    match there(OFlags::PATH) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other.map(drop),
    }
    make(root, path, true, 16)?;
    let made = there(OFlags::RDONLY)?;
    let (user, group) = (rustix::fs::Uid::from_raw(owner.0), rustix::fs::Gid::from_raw(owner.1));
    Ok(rustix::fs::fchown(made, Some(user), Some(group))?)
}

fn make(root: BorrowedFd<'_>, path: &Path, is_dir: bool, links: u32) -> io::Result<()> {
    match open_with(root, path, OFlags::PATH, Mode::empty()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        there => return there.map(drop),
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    make(root, parent, true, links)?;
    let dir = open_with(root, parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    if let Ok(target) = rustix::fs::readlinkat(&dir, name, Vec::new()) {
        let left = links.checked_sub(1).ok_or_else(|| io::Error::from_raw_os_error(libc::ELOOP))?;
        // Joining an absolute target replaces the parent, and the root stays what it is.
        return make(root, &parent.join(OsStr::from_bytes(target.as_bytes())), is_dir, left);
    }
    if is_dir {
        return Ok(rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))?);
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o644))?;
    Ok(())
}

/// Reads a regular file of at most `max` bytes.
pub fn read(root: impl AsFd, path: &Path, max: u64) -> io::Result<Vec<u8>> {
    super::file::read_bounded(open(root, path)?, max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    #[test]
    fn mount_points_are_made_inside_wherever_links_point() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        let root = File::open(top).unwrap();
        symlink(outside.path(), top.join("etc")).unwrap();
        symlink("../../../../run/resolve/stub", top.join("resolv.conf")).unwrap();
        symlink("loop", top.join("loop")).unwrap();
        make_mount_point(&root, Path::new("/etc/hosts"), false).unwrap();
        make_mount_point(&root, Path::new("/resolv.conf"), false).unwrap();
        make_mount_point(&root, Path::new("/spark/bin"), true).unwrap();
        assert!(top.join("run/resolve/stub").is_file() && top.join("spark/bin").is_dir());
        assert!(top.join(outside.path().strip_prefix("/").unwrap()).join("hosts").is_file());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(make_mount_point(&root, Path::new("/loop/x"), true).is_err());
    }

    #[test]
    fn a_fifo_blocks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(&root, "hosts", fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        make_mount_point(&root, Path::new("/hosts"), false).unwrap();
        assert!(read(&root, Path::new("hosts"), 10).is_err());
    }

    #[test]
    fn a_file_that_somebody_has_a_lease_on_is_refused_and_not_tried_until_the_lease_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let root = File::open(file.path().parent().unwrap()).unwrap();
        let name = Path::new(file.path().file_name().unwrap());
        // Whoever breaks the lease sends this signal in place of SIGIO, which would end the process.
        // SAFETY: fcntl(2) takes plain numbers for these.
        let lease = |command: i32, value: i32| unsafe { libc::fcntl(file.as_raw_fd(), command, value) };
        const F_SETSIG: i32 = 10;
        assert_eq!(lease(F_SETSIG, libc::SIGURG), 0);
        assert_eq!(lease(libc::F_SETLEASE, libc::F_WRLCK), 0, "{}", io::Error::last_os_error());
        let begun = std::time::Instant::now();
        let refused = [
            read(&root, name, 10).unwrap_err(),
            open_with(&root, name, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).unwrap_err(),
        ];
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
        assert!(refused.iter().all(|e| e.kind() == io::ErrorKind::WouldBlock), "{refused:?}");
        assert_eq!(lease(libc::F_SETLEASE, libc::F_UNLCK), 0);
        assert_eq!(read(&root, name, 10).unwrap(), b"");
    }
}
