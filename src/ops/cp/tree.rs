//! Copying a tree that may change at any time, into one that may as well.
//!
//! Every step goes from an open directory to a name in it and follows no link, so nothing is read or written but
//! below the two directories that the copy began with.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Stat};

use super::Owner;
use super::meta::Meta;
use super::node::{self, At, Node};
use super::place;
use super::view::{Files, What};
use crate::error::{Error, Result};
use crate::fault;
use crate::image::links::Links;
use crate::image::{Limits, Summary};
use crate::ops::Observer;
use crate::sys::copy::{self, Flush};
use crate::sys::inherited;
use crate::sys::new_file::{self, NewFile};
use crate::sys::tree::{self, Mtime};

/// A copy of one source.
pub(in crate::ops) struct Copier<'a> {
    pub owner: Owner,
    pub observer: &'a dyn Observer,
    /// What source and target are called in errors.
    pub from: PathBuf,
    pub to: PathBuf,
    pub summary: Summary,
    /// Set where the copy is to be a whole root filesystem.
    pub as_root: Option<AsRoot>,
    /// Whether the target is the host's own: its devices and fifos are written into, those of a spark are not touched.
    pub to_host: bool,
    /// A user and group of the host that are root in the spark, where the source is a mount of theirs.
    pub seen_as_root: Option<(u32, u32)>,
    /// What is mounted at and below the target, by the path from there.
    pub(super) mounted: HashMap<Vec<u8>, What>,
    /// Files that are mounted below the source, by the path from there: those are read.
    pub mounted_files: HashMap<Vec<u8>, PathBuf>,
    /// Where the copy was written to, to be synced.
    pub(super) reached: Vec<Files>,
    /// What several sources have made, none of which replaces what another one made.
    pub made: Option<HashSet<(u64, u64)>>,
    /// What was not copied for something is mounted there: where, and why.
    pub(super) covered: Vec<(PathBuf, String)>,
    /// Bytes that were written since the filesystem was synced.
    unflushed: u64,
    /// Entries so far.
    done: u64,
    /// What is being copied, below source and target.
    pub(super) path: Vec<u8>,
    links: Links<(u64, u64)>,
}

/// How a directory of the host becomes a root filesystem: without what is mounted below it, and with its own owner
/// and mode for the top that was made for it.
#[derive(Clone, Copy)]
pub(in crate::ops) struct AsRoot {
    pub limits: Limits,
    /// A directory to leave out, by device and inode: where the copy itself is.
    pub except: (u64, u64),
}

/// A directory that is being filled.
struct Level {
    from: Dir,
    to: OwnedFd,
    /// Set when it is full, since filling it changes it; only on one that the copy made.
    mtime: Option<Mtime>,
    /// Length of its path.
    path: usize,
    /// Whose the copies in it are.
    owner: Owner,
    /// Whether the copy made it, so that nothing was in it.
    is_new: bool,
}

/// How many bytes may wait to be written in files that were copied: a snapshot of the target waits for all of them.
const UNFLUSHED: u64 = 64 << 20;

impl<'a> Copier<'a> {
    pub(in crate::ops) fn new(
        owner: Owner,
        observer: &'a dyn Observer,
        from: OsString,
        to: OsString,
    ) -> Copier<'a> {
        Copier {
            owner,
            observer,
            from: from.into(),
            to: to.into(),
            summary: Summary::default(),
            as_root: None,
            to_host: false,
            seen_as_root: None,
            mounted: HashMap::new(),
            mounted_files: HashMap::new(),
            reached: Vec::new(),
            made: None,
            covered: Vec::new(),
            unflushed: 0,
            done: 0,
            path: Vec::new(),
            links: Links::default(),
        }
    }

    /// Copies what has a name to another name.
    pub(in crate::ops) fn copy(&mut self, from: At<'_>, to: At<'_>) -> Result<()> {
        self.path.clear();
        self.links.clear();
        let node = match self.mounted_files.get(&self.path) {
            Some(file) => node::open_mounted(file),
            None => node::open(from),
        };
        let node = node.map_err(self.reading("open"))?;
        if let Node::Other = node {
            let what =
                format!("cannot copy {}: it is a device or a socket, and not a file", self.from.display());
            return Err(Error::NotSupported { what, hint: None });
        }
        let total = match &node {
            // It may be all of the host, with things in it that have no end.
            _ if self.as_root.is_some() => None,
            Node::File(_, stat) => Some(stat.st_size as u64),
            Node::Dir(_, stat) => {
                self.refuse_within(stat, to)?;
                Some(node::count(from))
            }
            _ => Some(1),
        };
        self.observer.step(&format!("copying {}", self.from.display()), total);
        let mut levels: Vec<Level> = self.node(node, (to, false), to)?.into_iter().collect();
        while let Some(level) = levels.last_mut() {
            self.path.truncate(level.path);
            self.owner = level.owner;
            match node::next_name(&mut level.from) {
                Some(name) => {
                    let name = name.map_err(self.reading("list"))?;
                    let below = self.entry(level, &name, to)?;
                    levels.extend(below);
                }
                None => {
                    if let Some(mtime) = level.mtime {
                        tree::set_mtime(&level.to, mtime).map_err(self.writing("set the time of"))?;
                    }
                    levels.pop();
                }
            }
        }
        Ok(())
    }

    /// Copies a name of a directory. A directory is returned, to be filled.
    fn entry(&mut self, level: &Level, name: &[u8], top: At<'_>) -> Result<Option<Level>> {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        let from = level.from.fd().map_err(|e| self.reading("open")(e.into()))?;
        let opened = match self.mounted_files.get(&self.path) {
            Some(file) => node::open_mounted(file),
            None => node::open(At { dir: from, name }),
        };
        let copied = match opened {
            Ok(node) => self.node(node, (At { dir: level.to.as_fd(), name }, level.is_new), top),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.summary.vanished += 1;
                Ok(None)
            }
            Err(e) => Err(self.reading("open")(e)),
        };
        self.observer.advance(self.done);
        copied
    }

    /// `is_new` says that nothing can be in the way, since the directory was made by this copy.
    fn node(&mut self, node: Node, (to, is_new): (At<'_>, bool), top: At<'_>) -> Result<Option<Level>> {
        self.done += 1;
        if self.is_covered(&node)? {
            return Ok(None);
        }
        if let Node::Other = node {
            self.summary.left_out += 1;
            return Ok(None);
        }
        if self.as_root.is_some_and(|root| self.summary.entries >= root.limits.entries) {
            let why = format!("it has more than {} entries", self.summary.entries);
            return Err(Error::Image { what: self.from.display().to_string(), why });
        }
        self.summary.entries += 1;
        match node {
            Node::Dir(from, stat) => return self.directory(from, &stat, to),
            Node::File(from, stat) => {
                if !is_new && self.is_written_into(&from, &stat, to)? {
                    return Ok(None);
                }
                self.linked(&stat, to, top, |copier| copier.file(&from, &stat, to))?;
            }
            Node::Link(_, stat) | Node::Fifo(stat) if !is_new && self.is_kept(&stat, to)? => {}
            Node::Link(target, stat) => self.linked(&stat, to, top, |copier| {
                copier.special(&stat, to, &|dir, name| tree::make_symlink(dir, name, &target))
            })?,
            Node::Fifo(stat) => self.linked(&stat, to, top, |copier| {
                copier.special(&stat, to, &|dir, name| tree::make_fifo(dir, name))
            })?,
            Node::Other => {}
        }
        Ok(None)
    }

    fn directory(&mut self, from: Dir, stat: &Stat, to: At<'_>) -> Result<Option<Level>> {
        let (fd, new) = match self.mounted.get(&self.path) {
            Some(What::Dir { files, .. }) => {
                self.owner = files.owner;
                self.reached.push(files.clone());
                (tree::open_child(&*files.top, b".").map_err(self.writing("open"))?, false)
            }
            _ => place::directory(to).map_err(|e| match e.raw_os_error() {
                Some(libc::ENOTDIR | libc::ELOOP) => self.in_the_way("copy a directory to", "no directory"),
                _ => self.writing("create")(e),
            })?,
        };
        let source = from.fd().map_err(|e| self.reading("open")(e.into()))?;
        let top = self.path.is_empty();
        let mut mtime = None;
        // One that was there stays what it is: to copy into /tmp does not take it away from everybody else.
        if new || (top && self.as_root.is_some()) {
            let meta = self.meta(stat);
            self.describe(&fd, &meta, Some(source))?;
            mtime = Some(meta.mtime);
        }
        if let Some(root) = self.as_root.filter(|_| !top)
            && (root.except == (stat.st_dev, stat.st_ino)
                || tree::is_mount_point(source).map_err(self.reading("inspect"))?)
        {
            self.summary.mounts_skipped += 1;
            return Ok(None);
        }
        Ok(Some(Level { from, to: fd, mtime, path: self.path.len(), owner: self.owner, is_new: new }))
    }

    /// Makes a file, and returns which one it is.
    fn file(&mut self, from: &File, stat: &Stat, to: At<'_>) -> Result<(u64, u64)> {
        // Blocks, and not the size: holes take nothing.
        let takes = (stat.st_size as u64).min(stat.st_blocks as u64 * 512);
        if self.as_root.is_some_and(|root| self.summary.bytes.saturating_add(takes) > root.limits.bytes) {
            return Err(self.writing("make room for")(io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        let new = NewFile::create(to.dir).map_err(self.writing("create"))?;
        let (observer, alone) = (self.observer, self.path.is_empty());
        let mut progress = |bytes| {
            if alone {
                observer.advance(bytes);
            }
        };
        let copied = copy::content(from, &new.file, self.flush(), &mut progress);
        let copied = copied.map_err(self.reading("copy"))?;
        let meta = self.meta(stat);
        self.finish(new, (copied, &meta, Some(from.as_fd())), to)
    }

    /// Makes a file of what comes out of a stream.
    pub(in crate::ops) fn stream(&mut self, from: &File, to: At<'_>) -> Result<()> {
        self.path.clear();
        self.summary.entries += 1;
        let stat = rustix::fs::fstat(from).map_err(|e| self.reading("inspect")(e.into()))?;
        self.observer.step(&format!("copying {}", self.from.display()), None);
        if self.is_covered(&Node::Fifo(stat))? || self.is_written_into(from, &stat, to)? {
            return Ok(());
        }
        let new = NewFile::create(to.dir).map_err(self.writing("create"))?;
        let observer = self.observer;
        let copied = copy::all(from, &new.file, self.flush(), &mut |bytes| observer.advance(bytes));
        let copied = copied.map_err(self.reading("copy"))?;
        let meta = Meta { mode: 0o666 & !inherited::umask(), ..self.meta(&stat) };
        let made = self.finish(new, (copied, &meta, None), to)?;
        self.made.iter_mut().for_each(|all| _ = all.insert(made));
        Ok(())
    }

    /// Describes a file whose content is complete, and gives it its name. Returns which one it is.
    fn finish(
        &mut self,
        new: NewFile<BorrowedFd<'_>>,
        (copied, meta, from): (copy::Copied, &Meta, Option<BorrowedFd<'_>>),
        to: At<'_>,
    ) -> Result<(u64, u64)> {
        self.summary.bytes += copied.bytes;
        self.unflushed += copied.unflushed;
        if self.flush() == Flush::Often && self.unflushed >= UNFLUSHED {
            tree::sync_filesystem(&new.file).map_err(self.writing("sync"))?;
            self.unflushed = 0;
        }
        self.describe(&new.file, meta, from)?;
        tree::set_mtime(&new.file, meta.mtime).map_err(self.writing("set the time of"))?;
        let made = rustix::fs::fstat(&new.file).map_err(|e| self.writing("inspect")(e.into()))?;
        fault::point("cp.before-place")?;
        new.place(to.name).map_err(|e| self.placing(e))?;
        Ok((made.st_dev, made.st_ino))
    }

    /// Of the pool every spark's snapshots wait for what is to be written.
    fn flush(&self) -> Flush {
        if self.to_host { Flush::Later } else { Flush::Often }
    }

    /// Makes a link or a fifo, and returns which one it is.
    fn special(
        &mut self,
        stat: &Stat,
        to: At<'_>,
        make: &dyn Fn(BorrowedFd<'_>, &[u8]) -> io::Result<()>,
    ) -> Result<(u64, u64)> {
        let meta = self.meta(stat);
        let made = new_file::place(to.dir, to.name, |dir, name| {
            make(*dir, name)?;
            let node = tree::open_node(dir, name)?;
            let made = rustix::fs::fstat(&node)?;
            // What somebody inside has put there instead is not what owner and mode are meant for.
            if made.st_mode & libc::S_IFMT == stat.st_mode & libc::S_IFMT && made.st_nlink == 1 {
                tree::set_node_owner(&node, meta.owner.0, meta.owner.1)?;
                if made.st_mode & libc::S_IFMT == libc::S_IFIFO {
                    tree::set_node_mode(&node, meta.mode)?;
                }
                tree::set_node_mtime(&node, meta.mtime)?;
            }
            Ok((made.st_dev, made.st_ino))
        });
        made.map_err(|e| self.placing(e))
    }

    /// Makes one file of several names once, and links it from then on.
    fn linked(
        &mut self,
        stat: &Stat,
        to: At<'_>,
        top: At<'_>,
        make: impl FnOnce(&mut Self) -> Result<(u64, u64)>,
    ) -> Result<()> {
        let file = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 && self.link(file, to, top)? {
            return Ok(());
        }
        let copy = make(self)?;
        self.made.iter_mut().for_each(|made| _ = made.insert(copy));
        // Alone, it has no other name that is copied too.
        if stat.st_nlink > 1 && !self.path.is_empty() {
            let path = [top.name, b"/", &self.path].concat();
            self.links.note(file, path, copy, stat.st_nlink as _);
            self.summary.links_split = self.links.links_split;
        }
        Ok(())
    }

    /// Links to the copy of a file, if it is still where it was made.
    fn link(&mut self, file: (u64, u64), to: At<'_>, top: At<'_>) -> Result<bool> {
        let Some((path, copy)) = self.links.next_name(file) else { return Ok(false) };
        let slash = path.iter().rposition(|b| *b == b'/').unwrap_or_default();
        let (dir, name) = (&path[..slash], &path[slash + 1..]);
        let Ok(dir) = tree::open_dir(top.dir, dir) else { return Ok(false) };
        let same = tree::stat(&dir, name).is_ok_and(|s| (s.st_dev, s.st_ino) == copy);
        if !same {
            return Ok(false);
        }
        let linked = new_file::place(to.dir, to.name, |to, as_name| tree::link(&dir, name, to, as_name));
        linked.map(|()| true).map_err(|e| self.placing(e))
    }

    /// Of a directory that is copied into itself there would be no end.
    fn refuse_within(&self, source: &Stat, to: At<'_>) -> Result<()> {
        let id = (source.st_dev, source.st_ino);
        let onto_itself = tree::stat(to.dir, to.name).is_ok_and(|s| (s.st_dev, s.st_ino) == id);
        if onto_itself || place::is_within(to.dir, id).map_err(self.writing("inspect"))? {
            let message = format!("cannot copy {} into itself: {}", self.from.display(), self.to.display());
            return Err(Error::usage(message));
        }
        Ok(())
    }

    pub(super) fn here(&self, top: &Path) -> PathBuf {
        if self.path.is_empty() { top.to_owned() } else { top.join(OsStr::from_bytes(&self.path)) }
    }

    pub(super) fn reading(&self, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        let (path, to) = (self.here(&self.from), self.here(&self.to));
        move |e| match e.raw_os_error() {
            // Nobody fails to read for that. What copies reads and writes in one step.
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG | libc::EROFS) => Error::io("write", to)(e),
            Some(libc::EBUSY) => Error::Busy {
                what: path.display().to_string(),
                why: "it becomes something else whenever it is looked at".into(),
            },
            _ => Error::io(action, path)(e),
        }
    }

    pub(super) fn writing(&self, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        Error::io(action, self.here(&self.to))
    }

    fn placing(&self, e: io::Error) -> Error {
        match e.raw_os_error() {
            Some(libc::EISDIR) => self.in_the_way("copy a file to", "a directory"),
            _ => self.writing("create")(e),
        }
    }

    pub(super) fn in_the_way(&self, action: &'static str, state: &str) -> Error {
        Error::WrongState {
            action,
            kind: "path",
            name: self.here(&self.to).display().to_string(),
            state: state.into(),
            hint: "choose another name, or remove it first".into(),
        }
    }
}
