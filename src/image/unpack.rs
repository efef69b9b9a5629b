//! Unpacking a tar archive that is not trusted. Other processes decompress and parse it ([`super::reading`]), and files are made here.
//!
//! What is refused fails the whole import: `..` in a name, a path through what is not a directory, a hard link
//! to what is not in the archive, damage of any kind, and more than the limits allow. What is left out is
//! counted: device nodes, and attributes that mean something to the host only. What is kept and harmless:
//! set-id bits and file capabilities, which act inside a spark's own user namespace alone, since the pool is
//! mode 0700 and the host executes nothing from it; and the targets of symbolic links, which nothing on the
//! host follows.

use std::collections::HashSet;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::archive::{Entry, Kind};
use super::files::{self, Limits, Made, Meta, Problem, Root, Summary, io};
use super::layer::{self, Layer};
use super::reading::{self, Flow, Plain, Source};
use super::records::Records;
use crate::domain::ids;
use crate::domain::image::Digest;
use crate::error::{Error, Result};
use crate::sys::tree::{self, Mtime};

/// Most extended attributes of a file, and most bytes of their names and values.
pub(super) const XATTRS: usize = 64;
pub(super) const XATTR_BYTES: usize = 64 << 10;
/// What an entry and an extended attribute take of the pool at least, besides names and values: btrfs has an inode and three
/// items for the name of the one, and an item for the other.
const ENTRY_COST: u64 = 512;
const XATTR_COST: u64 = 64;

/// Most bytes of names of directories, which are kept until their times can be set.
const NAMES: usize = 256 << 20;

/// How to unpack.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// What the archive is called in errors.
    pub what: &'a str,
    pub limits: Limits,
    /// The `spark` program: processes of it decompress and parse.
    pub program: &'a Path,
    /// Hears how many bytes of the archive were read.
    pub progress: &'a dyn Fn(u64),
    /// If this becomes readable, the work ends with an error: the archive is not wanted any more.
    pub stop: Option<BorrowedFd<'a>>,
}

impl Options<'_> {
    /// The archive's own fault.
    fn damaged(&self, e: &io::Error) -> Error {
        if reading::is_stop(e) {
            return Error::Sys { action: "go on after a signal", source: io::ErrorKind::Interrupted.into() };
        }
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
pub fn unpack(archive: impl Source + 'static, target: &Path, options: &Options<'_>) -> Result<Summary> {
    let read = Arc::default();
    let plain = Plain::of(options.program, Counted { inner: archive, read: Arc::clone(&read) });
    let flow = plain.and_then(|plain| plain.then(options.program, &reading::ARCHIVE)?.unless(options.stop));
    let flow = flow.map_err(|e| options.damaged(&e))?;
    run(flow, target, options, &read, None)
}

/// Unpacks a layer of an image over those below it: what has a name that is taken replaces it, and whiteouts hide
/// what is below. Returns the digest of the archive without its compression too, for the caller to compare.
///
/// # Errors
/// As [`unpack`].
pub fn apply(
    archive: impl Source + 'static,
    target: &Path,
    options: &Options<'_>,
) -> Result<(Summary, Digest)> {
    let (read, digest) = (Arc::default(), Arc::default());
    let plain = Plain::of(options.program, Counted { inner: archive, read: Arc::clone(&read) });
    let flow = plain.and_then(|plain| {
        let hashed = Hashed { inner: plain, hash: Sha256::new(), digest: Arc::clone(&digest) };
        Flow::start(options.program, &reading::LAYER, hashed)?.unless(options.stop)
    });
    let flow = flow.map_err(|e| options.damaged(&e))?;
    let summary = run(flow, target, options, &read, Some(Layer::default()))?;
    let digest = digest.lock().unwrap_or_else(PoisonError::into_inner).take();
    let gone = || options.damaged(&io::ErrorKind::BrokenPipe.into());
    Ok((summary, digest.ok_or_else(gone)?))
}

fn run(
    flow: Flow,
    target: &Path,
    options: &Options<'_>,
    read: &AtomicU64,
    layer: Option<Layer>,
) -> Result<Summary> {
    let damaged = |e: io::Error| options.damaged(&e);
    let mut records = Records::new(BufReader::with_capacity(64 << 10, flow));
    let mut root = Root::open(target).map_err(Error::io("open", target))?;
    root.replaces = layer.is_some();
    let mut unpacker = Unpacker {
        root,
        layer,
        summary: Summary::default(),
        limits: options.limits,
        metadata: 0,
        times: Vec::new(),
        names: 0,
        left_out: HashSet::new(),
    };
    while let Some(entry) = records.entry().map_err(damaged)? {
        (options.progress)(read.load(Ordering::Relaxed));
        unpacker.entry(&mut records, &entry).map_err(|p| match p {
            // The archive's fault, whichever entry it struck.
            Problem::Io(READ, e) => damaged(e),
            p => p.of(options.what, target, &entry.name),
        })?;
    }
    records.finish().map_err(damaged)?;
    (options.progress)(read.load(Ordering::Relaxed));
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
    /// Bytes of the pool that are not content: entries with their names, and extended attributes.
    metadata: u64,
    /// Directories' times, set when nothing is made in them any more.
    times: Vec<(Vec<u8>, Mtime)>,
    names: usize,
    /// The paths of device nodes, which are left out: another may be a hard link to one.
    left_out: HashSet<Vec<u8>>,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, records: &mut Records<R>, entry: &Entry) -> Made<()> {
        if self.summary.entries + self.root.implied >= self.limits.entries {
            return Err(Problem::Refused(format!(
                "is one more than the {} entries that it may have",
                self.limits.entries
            )));
        }
        self.summary.entries += 1;
        let path = files::relative(&entry.name)?;
        self.count(&path, entry)?;
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
            Kind::File => self.file(records, &path, entry, &meta),
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

    /// Counts what an entry takes of the pool.
    fn count(&mut self, path: &[u8], entry: &Entry) -> Made<()> {
        let kept = || entry.xattrs.iter().filter(|(name, _)| files::keeps_xattr(name));
        let count = kept().count();
        let bytes: usize = kept().map(|(name, value)| name.len() + value.len()).sum();
        if count > XATTRS || bytes > XATTR_BYTES {
            return Err(Problem::Refused(format!(
                "has {count} extended attributes of {bytes} bytes in all, and {XATTRS} of {} KiB are the most",
                XATTR_BYTES >> 10
            )));
        }
        // A name is in two items of its directory and in one of the inode.
        let names = 3 * files::split(path).1.len() + entry.link.len();
        self.metadata += ENTRY_COST + names as u64 + bytes as u64 + count as u64 * XATTR_COST;
        if entry.kind == Kind::File {
            self.summary.bytes = self.summary.bytes.saturating_add(entry.content);
        }
        let implied = self.root.implied * ENTRY_COST;
        if self.summary.bytes.saturating_add(self.metadata + implied) > self.limits.bytes {
            return Err(files::no_room());
        }
        Ok(())
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
        records: &mut Records<R>,
        path: &[u8],
        entry: &Entry,
        meta: &Meta,
    ) -> Made<()> {
        let mut file = self.root.file(path)?;
        let mut end = 0;
        while let Some((offset, bytes)) = records.content().map_err(io(READ))? {
            if end != offset {
                file.seek(SeekFrom::Start(offset)).map_err(io("write"))?;
            }
            file.write_all(bytes).map_err(io("write"))?;
            end = offset + bytes.len() as u64;
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

/// Counts what is read.
struct Counted<S> {
    inner: S,
    read: Arc<AtomicU64>,
}

impl<S: Read> Read for Counted<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl<S: Source> Source for Counted<S> {
    fn waits_on(&self) -> Option<BorrowedFd<'_>> {
        self.inner.waits_on()
    }

    fn moves_from(&self) -> Option<BorrowedFd<'_>> {
        self.inner.moves_from()
    }

    fn moved(&mut self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
        self.inner.moved(bytes);
    }
}

/// Hashes what is read. The digest is there at the end.
struct Hashed<S> {
    inner: S,
    hash: Sha256,
    digest: Arc<Mutex<Option<Digest>>>,
}

impl<S: Read> Read for Hashed<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        if n == 0 && !buffer.is_empty() {
            let digest = Digest::of_hash(&self.hash.finalize_reset());
            *self.digest.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest);
        }
        Ok(n)
    }
}

impl<S: Source> Source for Hashed<S> {
    fn waits_on(&self) -> Option<BorrowedFd<'_>> {
        self.inner.waits_on()
    }
}

#[cfg(test)]
#[path = "unpack_tests/mod.rs"]
mod tests;
