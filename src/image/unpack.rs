//! Unpacking a tar archive that is not trusted.
//!
//! What is refused fails the whole import: `..` in a name, a path through what is not a directory, a hard link
//! to what is not in the archive, damage of any kind, and more than the limits allow. What is left out is
//! counted: device nodes, and attributes that mean something to the host only. What is kept and harmless:
//! set-id bits and file capabilities, which act inside a spark's own user namespace alone, since the pool is
//! mode 0700 and the host executes nothing from it; and the targets of symbolic links, which nothing on the
//! host follows.

use std::cell::Cell;
use std::collections::HashSet;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::ahead;
use super::archive::{Archive, Entry, Kind};
use super::compression;
use super::files::{self, Limits, Made, Meta, Problem, Root, Summary, io};
use super::layer::{self, Layer};
use crate::domain::ids;
use crate::domain::image::Digest;
use crate::error::{Error, Result};
use crate::sys::tree::{self, Mtime};

/// Most bytes of names of directories, which are kept until their times can be set.
const NAMES: usize = 256 << 20;

/// How to unpack.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// What the archive is called in errors.
    pub what: &'a str,
    pub limits: Limits,
    /// Hears how many bytes of the archive were read.
    pub progress: &'a dyn Fn(u64),
}

impl Options<'_> {
    /// The archive's own fault.
    fn damaged(&self, e: &io::Error) -> Error {
        Error::Image { what: self.what.to_owned(), why: e.to_string() }
    }
}

impl std::fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("what", &self.what)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Unpacks an archive, plain or compressed with gzip, xz or zstd, into an empty directory. The archive is read
/// to its end.
///
/// # Errors
/// `image` for an archive that is refused: what was unpacked until then stays, for the caller to remove.
/// `internal`, `no_space` and others for what the system refused.
pub fn unpack(archive: impl Read, target: &Path, options: &Options<'_>) -> Result<Summary> {
    let counted = Counted { inner: archive, read: Cell::new(0), progress: options.progress };
    let plain = compression::open(counted).map_err(|e| options.damaged(&e))?;
    run(plain, target, options, None)
}

/// Unpacks a layer of an image over those below it: what has a name that is taken replaces it, and whiteouts hide
/// what is below. Returns the digest of the archive without its compression too, for the caller to compare. A thread
/// decompresses meanwhile, and has ended when this returns.
///
/// # Errors
/// As [`unpack`].
pub fn apply(archive: impl Read + Send, target: &Path, options: &Options<'_>) -> Result<(Summary, Digest)> {
    std::thread::scope(|scope| {
        let (sender, pieces) = std::sync::mpsc::sync_channel(8);
        let thread = scope.spawn(move || ahead::decompress(archive, &sender));
        let summary = run(ahead::Pieces::new(pieces), target, options, Some(Layer::default()))?;
        let digest = thread.join().ok().and_then(io::Result::ok);
        let gone = || options.damaged(&io::ErrorKind::BrokenPipe.into());
        Ok((summary, digest.ok_or_else(gone)?))
    })
}

fn run(plain: impl Read, target: &Path, options: &Options<'_>, layer: Option<Layer>) -> Result<Summary> {
    let damaged = |e: io::Error| options.damaged(&e);
    let mut archive = Archive::new(plain);
    archive.open_end = layer.is_some();
    let mut root = Root::open(target).map_err(Error::io("open", target))?;
    root.replaces = layer.is_some();
    let mut unpacker = Unpacker {
        root,
        layer,
        summary: Summary::default(),
        limits: options.limits,
        times: Vec::new(),
        names: 0,
        left_out: HashSet::new(),
        buffer: vec![0; 128 << 10],
    };
    while let Some(entry) = archive.next().map_err(damaged)? {
        unpacker.entry(&mut archive, &entry).map_err(|p| match p {
            // The archive's fault, whichever entry it struck.
            Problem::Io(READ, e) => damaged(e),
            p => p.of(options.what, target, &entry.name),
        })?;
    }
    unpacker.finish(target)
}

/// The action of a problem that is in the archive.
const READ: &str = "read";

struct Unpacker {
    root: Root,
    /// What is unpacked is a layer.
    layer: Option<Layer>,
    summary: Summary,
    limits: Limits,
    /// Directories' times, set when nothing is made in them any more.
    times: Vec<(Vec<u8>, Mtime)>,
    names: usize,
    /// The paths of device nodes, which are left out: another may be a hard link to one.
    left_out: HashSet<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, archive: &mut Archive<R>, entry: &Entry) -> Made<()> {
        if self.summary.entries + self.root.implied >= self.limits.entries {
            return Err(Problem::Refused(format!(
                "is one more than the {} entries that it may have",
                self.limits.entries
            )));
        }
        self.summary.entries += 1;
        let path = files::relative(&entry.name)?;
        if let Some(layer) = &mut self.layer {
            let dir = files::split(&path).0;
            if let Some(mtime) = layer.enter(&mut self.root, dir) {
                self.times.push((dir.to_owned(), mtime));
            }
            if let Some(hidden) = layer::whiteout(&path)? {
                return layer.hide(&mut self.root, &hidden);
            }
            layer.made(&path);
        }
        if self.is_left_out(entry)? {
            return self.leave_out(path);
        }
        self.left_out.remove(&path);
        let meta = self.meta(entry);
        match entry.kind {
            Kind::File => self.file(archive, &path, entry, &meta),
            Kind::Directory => {
                self.keep_name(&path)?;
                self.root.directory(&path, &meta)?;
                self.times.push((path, entry.mtime));
                Ok(())
            }
            Kind::Symlink => self.root.symlink(&path, &entry.link, &meta),
            Kind::HardLink => self.root.hard_link(&path, &files::relative(&entry.link)?),
            Kind::Fifo => self.root.fifo(&path, &meta),
            Kind::Device | Kind::Nothing => Ok(()),
        }
    }

    /// Whether an entry is a device node, or a hard link to one.
    fn is_left_out(&self, entry: &Entry) -> Made<bool> {
        Ok(match entry.kind {
            Kind::Device => true,
            Kind::HardLink => self.left_out.contains(&files::relative(&entry.link)?),
            _ => false,
        })
    }

    /// Leaves a device node out. What had its name before is gone, as if it had been made.
    fn leave_out(&mut self, path: Vec<u8>) -> Made<()> {
        self.summary.entries -= 1;
        self.summary.left_out += 1;
        self.keep_name(&path)?;
        self.root.remove(&path)?;
        self.left_out.insert(path);
        Ok(())
    }

    /// Counts a name that is kept in memory until the end.
    fn keep_name(&mut self, path: &[u8]) -> Made<()> {
        self.names += path.len() + size_of::<(Vec<u8>, Mtime)>();
        if self.names > NAMES {
            return Err(Problem::Refused("is one directory or device node too many".into()));
        }
        Ok(())
    }

    fn meta(&mut self, entry: &Entry) -> Meta {
        let (uid, gid) = (ids::inside(entry.uid), ids::inside(entry.gid));
        if u64::from(uid) != entry.uid || u64::from(gid) != entry.gid {
            self.summary.ids_mapped += 1;
        }
        let xattrs: Vec<_> =
            entry.xattrs.iter().filter(|(name, value)| files::keeps_value(name, value)).cloned().collect();
        self.summary.xattrs_dropped += (entry.xattrs.len() - xattrs.len()) as u64;
        Meta { mode: entry.mode, uid, gid, mtime: Some(entry.mtime), xattrs }
    }

    fn file<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        path: &[u8],
        entry: &Entry,
        meta: &Meta,
    ) -> Made<()> {
        self.summary.bytes = self.summary.bytes.saturating_add(entry.stored);
        if self.summary.bytes > self.limits.bytes {
            return Err(files::no_room());
        }
        let mut file = self.root.file(path)?;
        let buffer = &mut self.buffer;
        let (mut at, mut end) = (0, 0);
        // A piece of nothing says only where the file ends, which its size says too.
        for (offset, length) in entry.pieces.iter().filter(|p| p.1 > 0) {
            if at != *offset {
                file.seek(SeekFrom::Start(*offset)).map_err(io("write"))?;
                at = *offset;
            }
            while at < offset + length {
                let want = (offset + length - at).min(buffer.len() as u64) as usize;
                let n = archive.read(&mut buffer[..want]).map_err(io(READ))?;
                if n == 0 {
                    return Err(Problem::Io(
                        READ,
                        io::Error::new(io::ErrorKind::InvalidData, "it ends too early"),
                    ));
                }
                file.write_all(&buffer[..n]).map_err(io("write"))?;
                at += n as u64;
            }
            end = at;
        }
        if end != entry.size {
            file.set_len(entry.size).map_err(io("size"))?;
        }
        self.root.finish(&file, meta)
    }

    fn finish(mut self, target: &Path) -> Result<Summary> {
        for (path, mtime) in std::mem::take(&mut self.times) {
            let set = match self.root.open_dir(&path) {
                Ok(fd) => tree::set_mtime(fd, mtime),
                // A later entry took its place.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {
                    Ok(())
                }
                Err(e) => Err(e),
            };
            set.map_err(Error::io("set the time of", target.join(files::shown(&path))))?;
        }
        self.summary.xattrs_dropped += self.root.xattrs_dropped;
        Ok(self.summary)
    }
}

/// Counts what is read, and tells about every 256 KiB.
struct Counted<'a, R> {
    inner: R,
    read: Cell<u64>,
    progress: &'a dyn Fn(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let before = self.read.get();
        let now = before + n as u64;
        self.read.set(now);
        if n == 0 || before >> 18 != now >> 18 {
            (self.progress)(now);
        }
        Ok(n)
    }
}

#[cfg(test)]
#[path = "unpack_tests/mod.rs"]
mod tests;
