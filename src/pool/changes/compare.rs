//! One path of each of two read-only trees, compared. No link is followed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Stat, StatxFlags};

use super::What;
use super::memory::Memory;
use crate::error::{Error, Result};
use crate::sys;

/// Files up to this size are read to see whether what was written is what was there. A sparse file of a hostile
/// spark could be of any size.
const MAX_READ: i64 = 16 << 20;

/// A read-only tree.
#[derive(Debug)]
pub(super) struct Tree {
    path: PathBuf,
    top: OwnedFd,
}

/// Which differences to look for beyond those that inspecting shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub(super) content: bool,
    pub(super) attributes: bool,
}

impl Tree {
    pub(super) fn open(path: &Path) -> Result<Tree> {
        let top = sys::file::open_dir(path).map_err(Error::io("open", path))?;
        Ok(Tree { path: path.to_owned(), top })
    }

    /// A descriptor of the top, for the kernel.
    pub(super) fn top(&self) -> Result<OwnedFd> {
        self.top.try_clone().map_err(Error::io("open", &self.path))
    }

    pub(super) fn stat(&self, path: &[u8]) -> Result<Stat> {
        self.with(path, "inspect", |dir, name| sys::tree::stat(dir, name))
    }

    /// All paths of an inode, as far as the kernel tells.
    pub(super) fn paths_of(&self, inode: u64) -> Result<Vec<Vec<u8>>> {
        sys::btrfs::paths_of(&self.top, inode).map_err(Error::io("list the names of a file in", &self.path))
    }

    /// Since when it exists: no other file of that inode number was born at that nanosecond.
    pub(super) fn born(&self, path: &[u8]) -> Result<(i64, u32)> {
        self.with(path, "inspect", |dir, name| {
            let (flags, mask) = (AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BTIME);
            let born = rustix::fs::statx(dir, OsStr::from_bytes(name), flags, mask)?.stx_btime;
            Ok((born.tv_sec, born.tv_nsec))
        })
    }

    fn with<T>(
        &self,
        path: &[u8],
        action: &'static str,
        call: impl FnOnce(&OwnedFd, &[u8]) -> io::Result<T>,
    ) -> Result<T> {
        let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], if path.is_empty() { b"." } else { path }),
        };
        sys::tree::open_dir(&self.top, dir)
            .and_then(|dir| call(&dir, name))
            .map_err(Error::io(action, self.path.join(OsStr::from_bytes(path))))
    }

    /// The names in a directory. Who drops them gives them back.
    pub(super) fn names(&self, path: &[u8], memory: &Memory) -> Result<BTreeSet<Vec<u8>>> {
        let (mut names, mut refused) = (BTreeSet::new(), None);
        let mut keep = |name: &[u8]| {
            refused = memory.take::<Vec<u8>>(name.len()).err();
            names.insert(name.to_owned());
            refused.is_some()
        };
        sys::tree::open_dir(&self.top, path)
            .and_then(|dir| sys::tree::find_name(dir, &mut keep))
            .map_err(Error::io("list", self.path.join(OsStr::from_bytes(path))))?;
        refused.map_or(Ok(names), Err)
    }

    pub(super) fn open_file(&self, path: &[u8]) -> Result<File> {
        self.with(path, "open", |dir, name| sys::tree::open_file(dir, name))
    }

    fn target(&self, path: &[u8]) -> Result<Vec<u8>> {
        self.with(path, "read", |dir, name| sys::tree::read_link(sys::tree::open_node(dir, name)?))
    }

    /// What has the extended attributes of a file or directory, and their names. What is neither has none that anybody could set.
    fn attributes(&self, path: &[u8], stat: &Stat) -> Result<Option<(OwnedFd, Vec<Vec<u8>>)>> {
        self.with(path, "read attributes of", |dir, name| {
            let node: OwnedFd = match kind(stat) {
                FileType::RegularFile => sys::tree::open_file(dir, name)?.into(),
                FileType::Directory => sys::tree::open_child(dir, name)?,
                _ => return Ok(None),
            };
            let mut names = sys::tree::xattr_names(&node)?;
            names.sort();
            Ok(Some((node, names)))
        })
    }
}

/// Whether two files have the same attributes. One value of each is held at a time: all of a file may be 128 MiB.
fn has_other_attributes(a: (&Tree, &[u8], &Stat), b: (&Tree, &[u8], &Stat)) -> Result<bool> {
    let (Some((x, of_x)), Some((y, of_y))) = (a.0.attributes(a.1, a.2)?, b.0.attributes(b.1, b.2)?) else {
        return Ok(false);
    };
    if of_x != of_y {
        return Ok(true);
    }
    for name in &of_x {
        let values = sys::tree::xattr(&x, name).and_then(|value| Ok((value, sys::tree::xattr(&y, name)?)));
        let (value, other) = values.map_err(Error::sys("compare attributes"))?;
        if value != other {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// How a path of one tree differs from one of another. Times do not count.
pub(super) fn compare(a: (&Tree, &[u8], &Stat), b: (&Tree, &[u8], &Stat), look: Look) -> Result<Vec<What>> {
    let mut what = Vec::new();
    let same_kind = kind(a.2) == kind(b.2);
    if !same_kind {
        what.push(What::Type);
    } else if is_other_content(a, b, look)? {
        what.push(What::Content);
    }
    // The mode of a link means nothing.
    let has_mode = |stat| kind(stat) != FileType::Symlink;
    if has_mode(a.2) && has_mode(b.2) && a.2.st_mode & 0o7777 != b.2.st_mode & 0o7777 {
        what.push(What::Mode);
    }
    if (a.2.st_uid, a.2.st_gid) != (b.2.st_uid, b.2.st_gid) {
        what.push(What::Owner);
    }
    if look.attributes && same_kind && has_other_attributes(a, b)? {
        what.push(What::Xattr);
    }
    Ok(what)
}

fn is_other_content(a: (&Tree, &[u8], &Stat), b: (&Tree, &[u8], &Stat), look: Look) -> Result<bool> {
    match kind(a.2) {
        FileType::RegularFile if a.2.st_size != b.2.st_size => Ok(true),
        FileType::RegularFile if !look.content => Ok(false),
        FileType::RegularFile if a.2.st_size > MAX_READ => Ok(last_change(a.2) != last_change(b.2)),
        FileType::RegularFile => {
            let (mut x, mut y) = (a.0.open_file(a.1)?, b.0.open_file(b.1)?);
            same_bytes(&mut x, &mut y).map(|same| !same).map_err(Error::sys("compare two files"))
        }
        FileType::Symlink => Ok(a.0.target(a.1)? != b.0.target(b.1)?),
        FileType::BlockDevice | FileType::CharacterDevice => Ok(a.2.st_rdev != b.2.st_rdev),
        _ => Ok(false),
    }
}

/// The kernel's own time of the last change, which nobody can set, and what it is the time of.
fn last_change(stat: &Stat) -> (u64, i64, u64) {
    (stat.st_ino, stat.st_ctime, stat.st_ctime_nsec)
}

fn same_bytes(a: &mut File, b: &mut File) -> io::Result<bool> {
    let (mut x, mut y) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let read = a.read(&mut x)?;
        if read == 0 {
            // Both have the same size.
            return Ok(true);
        }
        b.read_exact(&mut y[..read])?;
        if x[..read] != y[..read] {
            return Ok(false);
        }
    }
}
