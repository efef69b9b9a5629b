//! Blobs by name, in a directory or in a tar archive, and how one is taken over: bounded, and verified.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use super::manifest::{Descriptor, shown};
use super::source::Pull;
use crate::domain::image::{Digest, STDIN};
use crate::error::{Error, Result};
use crate::image::archive::{Archive, Kind};
use crate::image::compression;
use crate::image::reading::{Plain, Source};
use crate::sys;

/// Most entries of an archive of blobs: it has a few for every layer.
const ENTRIES: usize = 10_000;
/// Most bytes of all headers of an archive of blobs: this process parses them itself (adr/0025).
const HEADERS: u64 = 4 << 20;
/// Most pieces of all files of an archive of blobs: `tar -S` leaves holes out.
const PIECES: usize = 1 << 20;

/// How far a transfer is, and whether it is still wanted. Shared by who does it and who waits.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) bytes: AtomicU64,
    pub(super) stop: AtomicBool,
}

impl Heard {
    /// So many bytes more.
    ///
    /// # Errors
    /// `Interrupted` if they are not wanted any more.
    pub(super) fn add(&self, bytes: usize) -> io::Result<()> {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        // Not `Interrupted`, which readers take for a reason to go on.
        if self.stop.load(Ordering::Relaxed) { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

/// Files by their names.
#[derive(Debug)]
pub(super) enum Files {
    Dir(OwnedFd),
    Tar { file: Arc<File>, index: HashMap<String, Stored> },
}

/// Where a file's content is in an archive.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    at: u64,
    /// Offset and length in the file of what is stored there, one after the other. The rest is zeros.
    pieces: Arc<[(u64, u64)]>,
    size: u64,
}

/// A part of a file.
struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

/// The headers of an archive, whose contents nobody reads.
struct Headers {
    section: Section,
    left: u64,
}

impl Read for Headers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.section.read(buffer)?;
        // Zeros are the padding after the end, which nobody parses.
        if buffer[..n].iter().any(|b| *b != 0) {
            let left = self.left.checked_sub(n as u64);
            self.left = left.ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "its headers are too large for an archive of an image",
                )
            })?;
        }
        Ok(n)
    }
}

/// A file in an archive, with its holes.
struct Content {
    file: Arc<File>,
    stored: Stored,
    /// How much was read, the piece that comes next, and how much of it and the ones before was read.
    read: u64,
    piece: usize,
    taken: u64,
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Stored { at, pieces, size } = &self.stored;
        while pieces.get(self.piece).is_some_and(|(offset, length)| offset + length <= self.read) {
            self.piece += 1;
        }
        let (offset, length) = pieces.get(self.piece).copied().unwrap_or((*size, 0));
        if self.read < offset {
            let n = (offset - self.read).min(buffer.len() as u64) as usize;
            buffer[..n].fill(0);
            self.read += n as u64;
            return Ok(n);
        }
        let at = at + self.taken;
        let mut section = Section { file: self.file.clone(), at, end: at + (offset + length - self.read) };
        let n = section.read(buffer)?;
        self.read += n as u64;
        self.taken += n as u64;
        Ok(n)
    }
}

/// A file never has a reader wait.
impl Source for Content {}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = (self.end - self.at).min(buffer.len() as u64) as usize;
        let n = self.file.read_at(&mut buffer[..most], self.at)?;
        if n == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it ends too early"));
        }
        self.at += n as u64;
        Ok(n)
    }
}

impl Files {
    pub(super) fn dir(path: &Path) -> Result<Files> {
        sys::file::open_dir(path).map(Files::Dir).map_err(Error::io("open", path))
    }

    /// Reads which files a tar archive has. One that is compressed, or comes from a pipe, is written to a file without a
    /// name in the pull's scratch directory first. `-` is standard input.
    pub(super) fn tar(path: &Path, pull: &Pull<'_>) -> Result<Files> {
        let damaged = |e: io::Error| Error::Image { what: path.display().to_string(), why: e.to_string() };
        let mut file = match path == Path::new(STDIN) {
            true => io::stdin().as_fd().try_clone_to_owned().map(File::from),
            false => File::open(path),
        }
        .map_err(Error::io("open", path))?;
        let mut magic = [0; compression::MAGIC as usize];
        let seeks = file.metadata().map_err(Error::io("inspect", path))?.is_file();
        let read = if seeks { file.read_at(&mut magic, 0).map_err(Error::io("read", path))? } else { 0 };
        if read < magic.len() || compression::is_compressed(&magic) {
            let scratch = pull.scratch;
            let mut plain = tempfile::tempfile_in(scratch).map_err(Error::io("create a file in", scratch))?;
            let from = Plain::of(pull.program, file).map_err(damaged)?;
            let most = pull.limit.saturating_add(1);
            let copied = io::copy(&mut from.take(most), &mut plain).map_err(damaged)?;
            if copied > pull.limit {
                return Err(Error::io("make room for", path)(io::Error::from_raw_os_error(libc::ENOSPC)));
            }
            file = plain;
        }
        let file = Arc::new(file);
        let end = file.metadata().map_err(Error::io("inspect", path))?.len();
        index(&file, end).map(|index| Files::Tar { file: file.clone(), index }).map_err(damaged)
    }

    /// Opens one for reading, with its bytes.
    ///
    /// # Errors
    /// `NotFound`; `InvalidData` where it is no file.
    pub(super) fn open(&self, name: &str) -> io::Result<(Box<dyn Source>, u64)> {
        match self {
            Files::Dir(dir) => {
                let file = sys::beneath::open(dir, Path::new(name))?;
                let meta = file.metadata()?;
                if !meta.is_file() {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a file"));
                }
                Ok((Box::new(file), meta.len()))
            }
            Files::Tar { file, index } => {
                let stored = index.get(name).ok_or(io::ErrorKind::NotFound)?.clone();
                let size = stored.size;
                Ok((Box::new(Content { file: file.clone(), stored, read: 0, piece: 0, taken: 0 }), size))
            }
        }
    }

    /// Reads a small one. The error is why not, for the image's user.
    pub(super) fn read(&self, name: &str, most: u64) -> std::result::Result<Vec<u8>, String> {
        let read = || -> io::Result<Vec<u8>> {
            let (from, size) = self.open(name)?;
            if size > most {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too large"));
            }
            let mut bytes = Vec::new();
            from.take(most).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|e| unreadable(name, &e))
    }
}

/// Why a file of an image cannot be read, for the image's user.
pub(super) fn unreadable(name: &str, e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::NotFound => format!("it has no `{}`", shown(name)),
        _ => format!("its `{}` cannot be read: {e}", shown(name)),
    }
}

fn index(file: &Arc<File>, end: u64) -> io::Result<HashMap<String, Stored>> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    let section = Section { file: file.clone(), at: 0, end };
    let mut archive = Archive::new(Headers { section, left: HEADERS });
    let (mut index, mut links) = (HashMap::new(), Vec::new());
    let (mut entries, mut pieces) = (0, 0);
    while let Some((entry, places)) = archive.next()? {
        entries += 1;
        if entries > ENTRIES {
            return Err(bad("it has too many entries for an archive of an image"));
        }
        let Ok(name) = String::from_utf8(entry.name) else { continue };
        let name = name.trim_start_matches("./").to_owned();
        match entry.kind {
            Kind::File => {
                pieces += places.len();
                if pieces > PIECES {
                    return Err(bad("its files have too many holes for an archive of an image"));
                }
                archive.pass_over(|input, stored| {
                    let (at, pieces) = (input.section.at, places.into());
                    // Its content is not read now. What is behind the end, the next header's read finds.
                    input.section.at = (at + stored).min(end);
                    index.insert(name, Stored { at, pieces, size: entry.size });
                });
            }
            // Docker wrote layers that are the same as links to the first of them.
            Kind::Symlink | Kind::HardLink => links.push((name, entry.link)),
            _ => {}
        }
    }
    for (name, target) in links {
        let Ok(target) = String::from_utf8(target) else { continue };
        let target = target.trim_start_matches("../").trim_start_matches("./");
        if let Some(place) = index.get(target).cloned() {
            index.insert(name, place);
        }
    }
    Ok(index)
}

/// A blob that is being written: no more than it should have, and hashed on the way.
pub(super) struct Taking<'a> {
    file: File,
    hash: Sha256,
    left: u64,
    wanted: &'a Descriptor,
    heard: &'a Heard,
}

impl<'a> Taking<'a> {
    /// Into a new file.
    pub(super) fn begin(path: &Path, wanted: &'a Descriptor, heard: &'a Heard) -> io::Result<Taking<'a>> {
        let file = File::create(path)?;
        Ok(Taking { file, hash: Sha256::new(), left: wanted.size, wanted, heard })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            let why =
                format!("a layer of it is larger than the {} bytes that it should have", self.wanted.size);
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        self.hash.update(bytes);
        self.file.write_all(bytes)?;
        self.heard.add(bytes.len())
    }

    /// How many bytes are missing.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Begins again.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.heard.bytes.fetch_sub(self.wanted.size - self.left, Ordering::Relaxed);
        (self.left, self.hash) = (self.wanted.size, Sha256::new());
        self.file.set_len(0)?;
        self.file.rewind()
    }

    /// Fails unless it is what was wanted.
    pub(super) fn finish(self) -> io::Result<()> {
        let bad = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        if self.left > 0 {
            return bad(format!("a layer of it is cut off {} bytes before its end", self.left));
        }
        let found = Digest::of_hash(&self.hash.finalize());
        if found != self.wanted.digest {
            return bad(format!(
                "a layer of it is not what it should be: {found}, and not {}",
                self.wanted.digest
            ));
        }
        Ok(())
    }
}

/// Copies one blob.
pub(super) fn take(mut from: impl Read, path: &Path, wanted: &Descriptor, heard: &Heard) -> io::Result<()> {
    let mut taking = Taking::begin(path, wanted, heard)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return taking.finish(),
            n => taking.write(&buffer[..n])?,
        }
    }
}
