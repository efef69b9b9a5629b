//! Making files below one directory, whatever their names say.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use crate::domain::ids;
use crate::error::Error;
use crate::sys::tree::{self, Mtime, Nearby};

/// Longest path of an entry: a tree can be deeper than a path that the kernel takes.
const LONGEST_PATH: usize = 64 << 10;
/// Longest target of a link and longest name, as `PATH_MAX` and `NAME_MAX` have it.
const LONGEST_TARGET: usize = 4096;
const LONGEST_NAME: usize = 255;

/// What an import may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of content, and of an archive also of what the pool needs for names and attributes.
    pub bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { bytes: u64::MAX, entries: 10_000_000 }
    }
}

/// What was imported or copied, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Device nodes and sockets, which are left out.
    pub left_out: u64,
    /// Files whose owner or group is beyond what a spark has, given to 65534.
    pub ids_mapped: u64,
    /// Extended attributes that are not kept.
    pub xattrs_dropped: u64,
    /// Directories that another filesystem is mounted on, where their content is left out.
    pub mounts_skipped: u64,
    /// Files that were removed before they were reached.
    pub vanished: u64,
    /// Set-id bits and file capabilities that were not let out of a spark.
    pub privileges_dropped: u64,
    /// Names of files with several names that became files of their own.
    pub links_split: u64,
}

/// What is said of [`Summary::links_split`].
pub(super) const LINKS_SPLIT: &str = "names of files that have several names became files of their own: 64 MiB of memory, which \
                                   is the most for such names, hold no more";

impl Summary {
    /// Counts another one in.
    pub fn add(&mut self, other: &Summary) {
        self.entries += other.entries;
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.left_out += other.left_out;
        self.ids_mapped += other.ids_mapped;
        self.xattrs_dropped += other.xattrs_dropped;
        self.mounts_skipped += other.mounts_skipped;
        self.vanished += other.vanished;
        self.privileges_dropped += other.privileges_dropped;
        self.links_split += other.links_split;
    }

    /// What is not as it was, in words.
    pub fn notices(&self) -> impl Iterator<Item = String> {
        [
            (self.left_out, "device nodes or sockets were left out"),
            (self.ids_mapped, "files of users or groups beyond 65535 belong to 65534 now"),
            (
                self.xattrs_dropped,
                "extended attributes were dropped: ACLs, labels, or what cannot be held here",
            ),
            (self.mounts_skipped, "directories with another filesystem mounted on them are empty"),
            (self.vanished, "files were removed before they could be copied"),
            (
                self.privileges_dropped,
                "set-id bits or capabilities were dropped: no spark hands those to the host",
            ),
            (self.links_split, LINKS_SPLIT),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
    }
}

/// Why an entry was not made.
#[derive(Debug)]
pub(super) enum Problem {
    /// It is what no honest archive holds. The text follows the entry's name.
    Refused(String),
    /// The system would not.
    Io(&'static str, io::Error),
}

pub(super) type Made<T> = Result<T, Problem>;

pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Problem {
    move |e| Problem::Io(action, e)
}

fn refused<T>(why: &str) -> Made<T> {
    Err(Problem::Refused(why.to_owned()))
}

/// More than [`Limits::bytes`]: said as the full disk that it would become.
pub(super) fn no_room() -> Problem {
    Problem::Io("make room for", io::Error::from_raw_os_error(libc::ENOSPC))
}

impl Problem {
    /// The error for the entry `name` of `what`, made in `root`.
    pub(super) fn of(self, what: &str, root: &Path, name: &[u8]) -> Error {
        match self {
            Problem::Refused(why) => {
                Error::Image { what: what.to_owned(), why: format!("`{}` {why}", shown(name)) }
            }
            Problem::Io(action, source) => Error::Io { action, path: root.join(shown(name)), source },
        }
    }
}

/// A name as it may be printed: escaped, and not too long.
pub(super) fn shown(name: &[u8]) -> String {
    match name.get(..200) {
        Some(start) => format!("{}…", start.escape_ascii()),
        None => name.escape_ascii().to_string(),
    }
}

/// The path below the root that a name means: an absolute one is taken from the root, `.` is nothing.
pub(super) fn relative(name: &[u8]) -> Made<Vec<u8>> {
    if name.contains(&0) {
        return refused("has a NUL in its name");
    }
    let mut path = Vec::with_capacity(name.len());
    for part in name.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".") {
        if part == b".." {
            return refused("has `..` in its name");
        }
        if part.len() > LONGEST_NAME {
            return refused("has a name that is too long");
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    if path.len() >= LONGEST_PATH { refused("has a path that is too long") } else { Ok(path) }
}

/// Whether an extended attribute is kept. Others are of the host (ACLs name its users, labels its policy), or
/// of filesystems stacked on it.
pub(super) fn keeps_xattr(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && name.len() > 5 && !name.contains(&0))
}

/// Whether an extended attribute with this value is kept: see [`keeps_xattr`] and [`ids::is_foreign_capability`].
pub fn keeps_value(name: &[u8], value: &[u8]) -> bool {
    keeps_xattr(name) && !(name == b"security.capability" && ids::is_foreign_capability(value))
}

/// What a file is besides its name and content.
#[derive(Debug, Clone, Default)]
pub(super) struct Meta {
    /// Permission bits, set-id bits included: they act inside the spark's user namespace only.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Now if none.
    pub mtime: Option<Mtime>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A directory that files are made in. All paths are as [`relative`] gives them.
#[derive(Debug)]
pub(super) struct Root {
    dirs: Nearby,
    /// Attributes that the filesystem would not take.
    pub xattrs_dropped: u64,
    /// Directories that were made because entries are in them. One entry may need thousands.
    pub implied: u64,
    /// Whether what is there may be another layer's, and gives way: directories that are not empty too.
    pub replaces: bool,
}

pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Why the directory `dir` of an entry could not be opened.
pub(super) fn not_inside(top: &OwnedFd, dir: &[u8], e: io::Error) -> Problem {
    match e.raw_os_error() {
        Some(libc::ELOOP | libc::ENOTDIR | libc::EXDEV) => {
            let in_the_way = in_the_way(top, dir);
            let in_the_way = in_the_way.unwrap_or_else(|| "what is not a directory".to_owned());
            Problem::Refused(format!("leads through {in_the_way}"))
        }
        _ => Problem::Io("open the directory of", e),
    }
}

/// The first part of a path that is not a directory, in words.
fn in_the_way(top: &OwnedFd, dir: &[u8]) -> Option<String> {
    let ends = dir.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i).chain([dir.len()]);
    for path in ends.map(|end| &dir[..end]) {
        if tree::open_dir(top, path).is_ok() {
            continue;
        }
        let (above, name) = split(path);
        let above = tree::open_dir(top, above).ok()?;
        let stat = tree::stat(&above, name).ok()?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFLNK {
            return Some(format!("`{}`, which is not a directory", shown(path)));
        }
        let target = tree::open_node(&above, name).and_then(tree::read_link).ok()?;
        return Some(format!("`{}`, which is a symbolic link to `{}`", shown(path), shown(&target)));
    }
    None
}

pub(super) fn is(e: &io::Error, errno: i32) -> bool {
    e.raw_os_error() == Some(errno)
}

impl Root {
    pub(super) fn open(path: &Path) -> io::Result<Root> {
        Ok(Root {
            dirs: Nearby::new(crate::sys::file::open_dir(path)?),
            xattrs_dropped: 0,
            implied: 0,
            replaces: false,
        })
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        self.dirs.top()
    }

    /// Opens a directory that is there.
    pub(super) fn open_dir(&mut self, path: &[u8]) -> io::Result<Rc<OwnedFd>> {
        self.dirs.open(path)
    }

    /// Forgets what is kept open: it may be about to go.
    pub(super) fn forget(&mut self) {
        self.dirs.forget();
    }

    /// Opens a directory, making what is missing of it.
    fn dir(&mut self, path: &[u8]) -> Made<Rc<OwnedFd>> {
        match self.dirs.open(path) {
            Ok(fd) => Ok(fd),
            Err(e) if is(&e, libc::ENOENT) => self.make_dirs(path),
            Err(e) => Err(not_inside(self.fd(), path, e)),
        }
    }

    fn make_dirs(&mut self, path: &[u8]) -> Made<Rc<OwnedFd>> {
        let (mut at, rest) = self.dirs.nearest(path);
        for part in rest.split(|b| *b == b'/') {
            let new = match tree::make_dir(&*at, part) {
                Ok(()) => true,
                Err(e) if is(&e, libc::EEXIST) => false,
                Err(e) => return Err(Problem::Io("create the directory of", e)),
            };
            let next = tree::open_child(&*at, part).map_err(|e| not_inside(self.fd(), path, e))?;
            if new {
                self.implied += 1;
                let root = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                tree::set_owner_and_mode(&next, root, 0o755)
                    .map_err(io("set the mode of the directory of"))?;
            }
            at = Rc::new(next);
        }
        self.dirs.keep(path, &at);
        Ok(at)
    }

    /// Makes something with `make`, in the place of what has its name.
    fn place<T>(
        &mut self,
        path: &[u8],
        action: &'static str,
        make: impl Fn(&OwnedFd, &[u8]) -> io::Result<T>,
    ) -> Made<T> {
        let (dir, name) = split(path);
        if name.is_empty() {
            return refused("is the root itself, and not a directory");
        }
        let dir = self.dir(dir)?;
        match make(&dir, name) {
            Err(e) if is(&e, libc::EEXIST) => {
                self.clear(&dir, name)?;
                make(&dir, name).map_err(io(action))
            }
            other => other.map_err(io(action)),
        }
    }

    fn clear(&mut self, dir: &OwnedFd, name: &[u8]) -> Made<()> {
        match tree::remove(dir, name) {
            Ok(false) => Ok(()),
            Ok(true) => {
                // It may be the very directory that is kept open.
                self.forget();
                Ok(())
            }
            Err(e) if is(&e, libc::ENOTEMPTY) && self.replaces => {
                self.forget();
                let all = tree::open_child(dir, name).map_err(io("replace"))?;
                tree::clear(&all).map_err(io("replace"))?;
                tree::remove_dir(dir, name).map_err(io("replace"))
            }
            Err(e) if is(&e, libc::ENOTEMPTY) => refused("replaces a directory that has something in it"),
            Err(e) => Err(Problem::Io("replace", e)),
        }
    }

    /// Makes an empty file. [`Root::finish`] gives it what else it has.
    pub(super) fn file(&mut self, path: &[u8]) -> Made<std::fs::File> {
        self.place(path, "create", |dir, name| tree::create_file(dir, name))
    }

    /// Owner, mode, attributes and time of a file or directory that is open. The order matters: changes of
    /// owner clear set-id bits and capabilities.
    pub(super) fn finish(&mut self, fd: impl std::os::fd::AsFd, meta: &Meta) -> Made<()> {
        tree::set_owner_and_mode(&fd, (meta.uid, meta.gid), meta.mode)
            .map_err(io("set owner and mode of"))?;
        for (name, value) in &meta.xattrs {
            if !tree::try_set_xattr(&fd, name, value).map_err(io("set an attribute of"))? {
                self.xattrs_dropped += 1;
            }
        }
        match meta.mtime {
            Some(mtime) => tree::set_mtime(&fd, mtime).map_err(io("set the time of")),
            None => Ok(()),
        }
    }

    /// Makes a directory, or changes one that is there.
    pub(super) fn directory(&mut self, path: &[u8], meta: &Meta) -> Made<()> {
        if path.is_empty() {
            let top = self.dirs.top().clone();
            return self.finish(&*top, meta);
        }
        let (parent, name) = split(path);
        let parent = self.dir(parent)?;
        let mut there = match tree::make_dir(&*parent, name) {
            Ok(()) => false,
            Err(e) if is(&e, libc::EEXIST) => true,
            Err(e) => return Err(Problem::Io("create", e)),
        };
        let fd = loop {
            match tree::open_child(&*parent, name) {
                Ok(fd) => break fd,
                // A file or a link has the name: the later entry wins.
                Err(e) if there && (is(&e, libc::ENOTDIR) || is(&e, libc::ELOOP)) => {
                    self.clear(&parent, name)?;
                    tree::make_dir(&*parent, name).map_err(io("create"))?;
                    there = false;
                }
                Err(e) => return Err(Problem::Io("open", e)),
            }
        };
        if there && self.replaces {
            for name in tree::xattr_names(&fd).map_err(io("inspect"))? {
                if keeps_xattr(&name) && !meta.xattrs.iter().any(|(new, _)| *new == name) {
                    tree::remove_xattr(&fd, &name).map_err(io("remove an attribute of"))?;
                }
            }
        }
        self.finish(fd, meta)
    }

    /// Makes a symbolic link. Where it points to is not looked at: nothing on the host follows it.
    pub(super) fn symlink(&mut self, path: &[u8], target: &[u8], meta: &Meta) -> Made<()> {
        if target.is_empty() || target.len() >= LONGEST_TARGET || target.contains(&0) {
            return refused("is a link to what cannot be a path");
        }
        self.place(path, "create", |dir, name| {
            tree::make_symlink(dir, name, target)?;
            tree::set_owner(dir, name, meta.uid, meta.gid)?;
            meta.mtime.map_or(Ok(()), |mtime| tree::set_mtime_at(dir, name, mtime))
        })
    }

    /// Makes a named pipe.
    pub(super) fn fifo(&mut self, path: &[u8], meta: &Meta) -> Made<()> {
        self.place(path, "create", |dir, name| {
            tree::make_fifo(dir, name)?;
            tree::set_owner(dir, name, meta.uid, meta.gid)?;
            tree::set_mode_at(dir, name, meta.mode)?;
            meta.mtime.map_or(Ok(()), |mtime| tree::set_mtime_at(dir, name, mtime))
        })
    }

    /// Removes a file, or nothing.
    pub(super) fn remove(&mut self, path: &[u8]) -> Made<()> {
        let (dir, name) = split(path);
        match self.dirs.open(dir) {
            Ok(dir) => self.clear(&dir, name),
            Err(e) if is(&e, libc::ENOENT) => Ok(()),
            Err(e) => Err(not_inside(self.fd(), dir, e)),
        }
    }

    /// Removes the files of a directory whose names begin with `prefix`. Directories in it stay.
    pub(super) fn remove_files(&mut self, path: &[u8], prefix: &[u8]) -> Made<()> {
        let dir = match self.dirs.open(path) {
            Ok(dir) => dir,
            Err(e) if is(&e, libc::ENOENT) => return Ok(()),
            Err(e) => return Err(not_inside(self.fd(), path, e)),
        };
        for name in tree::names(&dir).map_err(io("list"))? {
            let stat = tree::stat(&dir, &name).map_err(io("inspect"))?;
            if name.starts_with(prefix) && stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
                tree::remove(&dir, &name).map_err(io("remove"))?;
            }
        }
        Ok(())
    }

    /// Makes a hard link to a file that is there already, a symbolic link itself.
    pub(super) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Made<()> {
        let (target_dir, target_name) = split(target);
        let from = tree::open_dir(self.fd(), target_dir).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT) => Problem::Refused("is a hard link to what is not there".into()),
            _ => not_inside(self.fd(), target_dir, e),
        })?;
        let there = tree::stat(&from, target_name)
            .map_err(|_| Problem::Refused("is a hard link to what is not there".into()))?;
        if there.st_mode & libc::S_IFMT == libc::S_IFDIR {
            return refused("is a hard link to a directory");
        }
        let (dir, name) = split(path);
        let dir = self.dir(dir)?;
        if tree::stat(&*dir, name).is_ok_and(|s| s.st_dev == there.st_dev && s.st_ino == there.st_ino) {
            return Ok(());
        }
        self.place(path, "link", |dir, name| tree::link(&from, target_name, dir, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_from_the_root_and_never_above_it() {
        assert_eq!(relative(b"/etc//./passwd/").unwrap(), b"etc/passwd");
        assert_eq!(relative(b"./").unwrap(), b"");
        for bad in [&b".."[..], b"a/../b", b"/..", b"a\0b", &[b'a'; 256], &b"a/".repeat(33_000)] {
            assert!(relative(bad).is_err(), "{}", shown(bad));
        }
    }

    #[test]
    fn names_are_printed_without_control_characters() {
        assert_eq!(shown(b"a\x1b[31m\n\xff"), "a\\x1b[31m\\n\\xff");
        assert!(shown(&[b'x'; 5000]).len() < 300);
    }
}
