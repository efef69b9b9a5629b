//! Mounts upon a spark's root, and the places for them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys;
use crate::sys::idmap::IdMap;
use crate::sys::mount::Planned;

/// The user namespaces of a start, each made once: that of the spark, and those that mounts are mapped through.
#[derive(Default)]
pub(super) struct Maps(Vec<(IdMap, OwnedFd)>);

impl Maps {
    pub(super) fn namespace(&mut self, ids: IdMap) -> Result<BorrowedFd<'_>> {
        let known = self.0.iter().position(|(known, _)| *known == ids);
        let at = match known {
            Some(at) => at,
            None => {
                let ns = sys::idmap::namespace(ids).map_err(|source| Error::Host {
                    what: "cannot make a user namespace".into(),
                    hint: "see `spark doctor`".into(),
                    source: Some(source),
                })?;
                self.0.push((ids, ns));
                self.0.len() - 1
            }
        };
        Ok(self.0[at].1.as_fd())
    }
}

pub(super) fn no_idmap(path: &Path, e: std::io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::EINVAL) => Error::NotSupported {
            what: format!("the filesystem of {} cannot map user ids", path.display()),
            hint: Some("use a directory on ext4, xfs, btrfs or tmpfs".into()),
        },
        _ => Error::io("map the ids of", path)(e),
    }
}

/// Why there is no mount namespace to make mounts in.
pub(in crate::runtime) fn no_mount_namespace(source: std::io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::EINVAL) => Error::Host {
            what: "cannot make a mount namespace: `/` is not a mount point here, as in a chroot".into(),
            hint: "make it one before chroot(8) is called: `mount --bind DIR DIR`".into(),
            source: None,
        },
        _ => Error::sys("make a mount namespace")(source),
    }
}

/// A mount that is not attached anywhere yet.
pub(super) fn detached(mount: &Planned, maps: &mut Maps) -> Result<OwnedFd> {
    let clone = if mount.exact { sys::mount::clone_tree_exact } else { sys::mount::clone_tree };
    let tree = clone(&mount.source).map_err(Error::io("mount", &mount.source))?;
    let ns = mount.ids.map(|ids| maps.namespace(ids)).transpose()?;
    let limits = sys::mount::Limits::inert(mount.read_only);
    sys::mount::set_attributes(&tree, ns, limits).map_err(|e| no_idmap(&mount.source, e))?;
    Ok(tree)
}

/// What the kernel provides below a root. The runtime library joins these to the root's path as text and follows links
/// there (CVE-2026-41579 of runc).
const OF_KERNEL: [&str; 5] = ["dev", "dev/pts", "dev/shm", "proc", "sys"];

/// The first of `/dev`, `/dev/pts`, `/dev/shm`, `/proc` and `/sys` that is a symbolic link in a root.
///
/// # Errors
/// What hinders looking there, but for what is missing.
pub fn linked(root: &Path) -> io::Result<Option<&'static str>> {
    let root = sys::file::open_dir(root)?;
    for path in OF_KERNEL {
        match sys::beneath::open_place_exact(root.as_fd(), Path::new(path)) {
            Err(e) if e.raw_os_error() == Some(libc::ELOOP) => return Ok(Some(path)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            other => drop(other?),
        }
    }
    Ok(None)
}

/// What in a root keeps something from being mounted at a path, if that can be seen: the path of the obstacle, and what it
/// is. `exact` where no link may be followed on the way.
pub(super) fn obstacle(
    root: BorrowedFd<'_>,
    at: &Path,
    is_dir: bool,
    exact: bool,
) -> Option<(PathBuf, &'static str)> {
    use rustix::fs::{FileType, Mode, OFlags};
    let mut path = PathBuf::from("/");
    for part in at.strip_prefix("/").unwrap_or(at) {
        path.push(part);
        let wants_dir = is_dir || path != at;
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let found = sys::beneath::open_with(root, &path, flags, Mode::empty()).ok()?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found).ok()?.st_mode);
        let what = match kind {
            FileType::Symlink if exact => "a symbolic link",
            FileType::Symlink => match sys::beneath::open_with(root, &path, OFlags::PATH, Mode::empty()) {
                // Where it leads is made if it is not there.
                Ok(_) => continue,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(_) => "a symbolic link that leads nowhere",
            },
            FileType::Directory if wants_dir => continue,
            FileType::Directory => "a directory",
            _ if !wants_dir => continue,
            FileType::RegularFile => "a file",
            _ => "no directory",
        };
        return Some((path, what));
    }
    None
}

/// How a path is followed, with the root as `/`.
pub(super) type Opener = fn(BorrowedFd<'_>, &Path) -> io::Result<File>;

/// Where places are made: a root as it is in the pool, and as the spark sees it, with all that is mounted.
pub(super) struct Place<'a> {
    pub(super) bare: BorrowedFd<'a>,
    pub(super) mapped: BorrowedFd<'a>,
    /// The host's number of root inside.
    pub(super) first_id: u32,
}

impl Place<'_> {
    /// Opens the place at a path inside, making it where it is missing. Whatever is planted there, nothing is opened for
    /// reading or writing, and nothing leads out.
    pub(super) fn open(&self, at: &Path, is_dir: bool, how: Opener) -> io::Result<File> {
        let open = || how(self.mapped, at);
        // In the pool, where no directory inside is closed to the host's root. Through the mapped mount it is nobody.
        sys::beneath::make_mount_point(self.bare, at, is_dir)?;
        match open() {
            // Something is mounted above it, and there it has to be made as root inside.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                sys::process::as_ids(self.first_id, self.first_id, || {
                    sys::beneath::make_mount_point(self.mapped, at, is_dir)
                })??;
                open()
            }
            opened => opened,
        }
    }
}
