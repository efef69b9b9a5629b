//! Files that survive a crash, and renames that never replace by accident.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};

/// Opens a directory, close-on-exec.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes a directory, and those above it that are missing, with a mode that no umask narrows. One that is there gets the
/// bits of the mode that it lacks: an older version, or another program, may have made it under a narrow umask.
pub fn make_dirs(path: &Path, mode: u32) -> io::Result<()> {
    let make = || match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    };
    match make() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let above = path.parent().filter(|above| !above.as_os_str().is_empty()).ok_or(e)?;
            make_dirs(above, mode)?;
            // Once more, and not until it succeeds: /proc answers so although it is there.
            make()?;
        }
        made => made?,
    }
    let is = std::fs::metadata(path)?.permissions().mode() & 0o7777;
    if is | mode != is {
        std::fs::set_permissions(path, PermissionsExt::from_mode(is | mode))?;
    }
    Ok(())
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::fsync(open_dir(path)?)?)
}

/// Renames, failing with `EEXIST` where `to` exists.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// Exchanges two names: at every moment both are there.
pub fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

/// Writes a file whole: temporary file, fsync, rename, fsync of the directory. Mode 0600.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = temporary(dir)?;
    file.write_all(content).map_err(plain)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    sync_dir(dir)
}

/// Writes a new file whole and durable, where the directory's own name is made durable by somebody else.
pub fn create_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Writes a file whole, without fsync: for what a reboot ends anyway. Readers see the old or the new.
pub fn replace_volatile(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = temporary(dir)?;
    file.write_all(content).map_err(plain)?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Writes a new file whole, without fsync. False if the path exists already.
pub fn create_volatile(path: &Path, content: &[u8]) -> io::Result<bool> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = temporary(dir)?;
    file.write_all(content).map_err(plain)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(true),
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e.error),
    }
}

/// The same for what others may read. Mode 0644.
pub fn replace_readable(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = temporary(dir)?;
    file.write_all(content).map_err(plain)?;
    file.as_file().set_permissions(PermissionsExt::from_mode(0o644))?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Removes a file. One that is not there is as well.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes a directory with all that is in it. Succeeds if it does not exist.
pub fn remove_all(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// What files that are being written are called: this, the writer's pid, `-` and a random word.
const TEMPORARY: &str = ".new-";

fn temporary(dir: &Path) -> io::Result<tempfile::NamedTempFile> {
    let prefix = format!("{TEMPORARY}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempfile_in(dir).map_err(plain)
}

/// Whether a file is one that [`replace`] was killed over: nobody of its writer's pid lives.
pub fn is_abandoned(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let pid = name.strip_prefix(TEMPORARY).and_then(|rest| rest.split('-').next());
    pid.and_then(|p| p.parse::<u32>().ok())
        .is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// tempfile wraps errors, with a name that nobody knows, so that the errno is lost: only the kind is left of it.
fn plain(e: io::Error) -> io::Error {
    let errno = match e.kind() {
        _ if e.raw_os_error().is_some() => return e,
        io::ErrorKind::StorageFull => libc::ENOSPC,
        io::ErrorKind::QuotaExceeded => libc::EDQUOT,
        io::ErrorKind::ReadOnlyFilesystem => libc::EROFS,
        io::ErrorKind::PermissionDenied => libc::EACCES,
        io::ErrorKind::NotFound => libc::ENOENT,
        _ => return e,
    };
    io::Error::from_raw_os_error(errno)
}

/// Reads a regular file of at most `max` bytes. Never blocks on a fifo.
pub fn read_bounded(file: File, max: u64) -> io::Result<Vec<u8>> {
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    // Room for all of it: two reads, the second of which finds the end.
    let mut content = Vec::with_capacity(meta.len().min(max) as usize + 1);
    file.take(max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than it may be"));
    }
    Ok(content)
}

/// Whether a path is on btrfs.
pub fn is_btrfs(path: &Path) -> io::Result<bool> {
    const BTRFS_SUPER_MAGIC: i64 = 0x9123_683e;
    Ok(rustix::fs::statfs(path)?.f_type as i64 == BTRFS_SUPER_MAGIC)
}

/// Whether a fifo has no name: made by pipe(2), and of nobody but those who hold it.
pub fn is_pipe(fd: impl AsFd) -> io::Result<bool> {
    const PIPEFS_MAGIC: i64 = 0x5049_5045;
    Ok(rustix::fs::fstatfs(fd)?.f_type as i64 == PIPEFS_MAGIC)
}

/// Whether a directory is the top of a mount.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let flags = rustix::fs::StatxFlags::BASIC_STATS;
    let stat = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, flags)?;
    Ok(stat.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
}

/// Whether an open directory is the top of a mount.
pub fn is_mount_top(dir: impl AsFd) -> io::Result<bool> {
    let flags = rustix::fs::StatxFlags::BASIC_STATS;
    let stat = rustix::fs::statx(dir, "", AtFlags::EMPTY_PATH, flags)?;
    Ok(stat.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
}

/// Whether two descriptors are one file: device and inode.
pub fn same(a: impl AsFd, b: impl AsFd) -> io::Result<bool> {
    let (a, b) = (rustix::fs::fstat(a)?, rustix::fs::fstat(b)?);
    Ok(a.st_dev == b.st_dev && a.st_ino == b.st_ino)
}

/// Whether two descriptors or paths are one file: device and inode.
pub fn same_file(fd: impl AsFd, path: &Path) -> io::Result<bool> {
    let a = rustix::fs::fstat(fd)?;
    match rustix::fs::stat(path) {
        Ok(b) => Ok(a.st_dev == b.st_dev && a.st_ino == b.st_ino),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_cannot_be_made_is_an_error_and_not_tried_for_good() {
        // The kernel says of all new names there that they are not found.
        let e = make_dirs(Path::new("/proc/nosuch/x"), 0o700).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_directory_has_its_mode_whatever_the_umask_was_and_keeps_more_than_that() {
        let top = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let deep = top.path().join("a/b");
        make_dirs(&deep, 0o711).unwrap();
        assert_eq!((mode(&top.path().join("a")), mode(&deep)), (0o711, 0o711));
        for (was, becomes) in [(0o700, 0o711), (0o755, 0o755), (0o1777, 0o1777)] {
            std::fs::set_permissions(&deep, PermissionsExt::from_mode(was)).unwrap();
            make_dirs(&deep, 0o711).unwrap();
            assert_eq!(mode(&deep), becomes, "{was:o}");
        }
        std::fs::write(top.path().join("file"), "").unwrap();
        assert!(make_dirs(&top.path().join("file"), 0o711).is_err());
        assert!(make_dirs(&top.path().join("file/below"), 0o711).is_err());
    }
}
