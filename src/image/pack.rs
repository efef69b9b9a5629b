//! Writing tar: the same bytes for the same tree, always.
//!
//! POSIX pax, with extended headers only where the plain ones cannot say it. Times are kept to the nanosecond. Holes of files
//! are kept in an archive that tar reads, and written as zeros in a layer: not every reader of layers knows holes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::files::{keeps_value, keeps_xattr, shown, split};
use super::links::Links;
use super::sparse;
use super::unpack::{XATTR_BYTES, XATTRS};
use crate::error::{Error, Result};
use crate::sys::tree::{self, Nearby};

/// What a layer does with a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Has what is there, without what is in it.
    Write(Vec<u8>),
    /// Hides what was there.
    Hide(Vec<u8>),
}

/// What becomes of the holes of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holes {
    /// They stay holes.
    Kept,
    /// They become zeros.
    Filled,
}

/// Most bytes of holes that become zeros: a terabyte of them is packed in an hour. A file of 4 KiB may have 8 EiB of holes.
const MOST_ZEROS: u64 = 1 << 40;

/// What could not be written into an archive.
#[derive(Debug, Default)]
pub struct Packed {
    /// Device nodes and sockets.
    pub left_out: u64,
    /// Files whose names say that others are gone.
    pub markers: u64,
    /// Capabilities that are another user namespace's.
    pub xattrs_dropped: u64,
    /// Extended attributes beyond those that an import takes.
    pub xattrs_beyond: u64,
    /// Names of files with several names that became files of their own.
    pub links_split: u64,
}

impl Packed {
    /// In words.
    pub fn notices(&self) -> impl Iterator<Item = String> {
        [
            (self.left_out, "device nodes or sockets were left out"),
            (self.markers, "files were left out whose names begin with `.wh.`, which in a layer means a file that is gone"),
            (self.xattrs_dropped, "file capabilities were dropped: they belong to a user namespace of another host"),
            (self.xattrs_beyond, "extended attributes were dropped: an archive has at most 64 of a file, of 64 KiB in all"),
            (self.links_split, super::files::LINKS_SPLIT),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
    }
}

/// One entry's header.
#[derive(Default)]
struct Head<'a> {
    kind: u8,
    name: &'a [u8],
    link: &'a [u8],
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, u32),
    size: u64,
    /// The size with holes, of a file that is packed without them.
    with_holes: Option<u64>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar archive that is being written.
#[derive(Debug)]
pub struct Packer<W> {
    out: W,
}

impl<W: Write> Packer<W> {
    pub fn new(out: W) -> Packer<W> {
        Packer { out }
    }

    /// A plain file of root's, of no time.
    pub fn file(&mut self, name: &str, size: u64, content: impl Read) -> io::Result<()> {
        self.head(&Head { kind: b'0', name: name.as_bytes(), mode: 0o644, size, ..Head::default() })?;
        self.content(size, content)
    }

    /// The end.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 1024])?;
        Ok(self.out)
    }

    /// A file with zeros for its holes.
    fn filled(&mut self, size: u64, file: &File, pieces: &[(u64, u64)]) -> io::Result<()> {
        sparse::write_filled(file, pieces, size, &mut self.out)?;
        self.pad(size)
    }

    fn content(&mut self, size: u64, content: impl Read) -> io::Result<()> {
        let copied = io::copy(&mut content.take(size), &mut self.out)?;
        if copied != size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        self.pad(size)
    }

    /// A file without its holes, in version 1.0 of GNU tar's format for such files.
    fn sparse(&mut self, head: Head<'_>, file: &File, pieces: &[(u64, u64)]) -> io::Result<()> {
        let map = sparse::map(pieces, head.size);
        let size = map.len() as u64 + pieces.iter().map(|(_, length)| length).sum::<u64>();
        self.head(&Head { size, with_holes: Some(head.size), ..head })?;
        self.out.write_all(&map)?;
        sparse::write_pieces(file, pieces, &mut self.out)?;
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let pad = size.next_multiple_of(512) - size;
        self.out.write_all(&[0; 512][..pad as usize])
    }

    fn head(&mut self, head: &Head<'_>) -> io::Result<()> {
        let mut pax = Vec::new();
        let mut name = head.name;
        if let Some(size) = head.with_holes {
            record(&mut pax, b"GNU.sparse.major", b"1");
            record(&mut pax, b"GNU.sparse.minor", b"0");
            record(&mut pax, b"GNU.sparse.name", head.name);
            record(&mut pax, b"GNU.sparse.realsize", size.to_string().as_bytes());
            // What a reader that does not know the format makes of it.
            name = b"GNUSparseFile.0/entry";
        } else if head.name.len() > 100 {
            record(&mut pax, b"path", head.name);
        }
        if head.link.len() > 100 {
            record(&mut pax, b"linkpath", head.link);
        }
        if head.size >= 1 << 33 {
            record(&mut pax, b"size", head.size.to_string().as_bytes());
        }
        let (seconds, nanos) = head.mtime;
        if nanos != 0 || !(0..1 << 33).contains(&seconds) {
            record(&mut pax, b"mtime", time(seconds, nanos).as_bytes());
        }
        for (name, value) in &head.xattrs {
            record(&mut pax, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        if !pax.is_empty() {
            let size = pax.len() as u64;
            let entry = Head { kind: b'x', mode: 0o644, size, ..Head::default() };
            self.plain(&entry, b"PaxHeaders/entry")?;
            self.out.write_all(&pax)?;
            self.pad(size)?;
        }
        self.plain(head, name)
    }

    fn plain(&mut self, head: &Head<'_>, name: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        let raw = header.as_old_mut();
        for (field, text) in [(&mut raw.name, name), (&mut raw.linkname, head.link)] {
            let fits = text.len().min(field.len());
            field[..fits].copy_from_slice(&text[..fits]);
        }
        header.set_entry_type(tar::EntryType::new(head.kind));
        header.set_mode(head.mode);
        header.set_uid(head.owner.0.into());
        header.set_gid(head.owner.1.into());
        header.set_size(if head.size < 1 << 33 { head.size } else { 0 });
        header.set_mtime(u64::try_from(head.mtime.0).unwrap_or(0).min((1 << 33) - 1));
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits too.
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(format!("{length} ").as_bytes());
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

fn time(seconds: i64, nanos: u32) -> String {
    // 750 ms after -2 is -1.25.
    let (sign, seconds, nanos) = match (seconds, nanos) {
        (s, n) if s < 0 && n > 0 => ("-", (s + 1).unsigned_abs(), 1_000_000_000 - n),
        (s, n) if s < 0 => ("-", s.unsigned_abs(), n),
        (s, n) => ("", s.unsigned_abs(), n),
    };
    match nanos {
        0 => format!("{sign}{seconds}"),
        nanos => format!("{sign}{seconds}.{nanos:09}").trim_end_matches('0').to_owned(),
    }
}

/// A tree that is packed.
struct Packing<'a, W> {
    root: &'a Path,
    dirs: Nearby,
    packer: Packer<W>,
    links: Links<()>,
    holes: Holes,
    packed: Packed,
    bytes: u64,
    /// Bytes of holes that became zeros.
    zeros: u64,
    progress: &'a dyn Fn(u64),
}

/// Writes steps of a tree that does not change meanwhile, in their order. Returns the output.
pub fn pack<W: Write>(
    root: &Path,
    steps: impl IntoIterator<Item = Step>,
    out: W,
    progress: &dyn Fn(u64),
) -> Result<(W, Packed)> {
    let mut packing = Packing::new(root, out, Holes::Filled, progress)?;
    for step in steps {
        match step {
            Step::Write(path) => drop(packing.write(&path)?),
            Step::Hide(path) => packing.hide(&path)?,
        }
    }
    packing.finish()
}

/// The same for all that is in a tree.
pub fn pack_all<W: Write>(root: &Path, out: W, holes: Holes, progress: &dyn Fn(u64)) -> Result<(W, Packed)> {
    let mut packing = Packing::new(root, out, holes, progress)?;
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        if packing.write(&path)? != FileType::Directory {
            continue;
        }
        let listed = packing.dirs.open(&path).and_then(tree::names);
        let mut names = listed.map_err(packing.io("list", &path))?;
        // From a stack they come the other way round.
        names.sort_by(|a, b| b.cmp(a));
        todo.extend(names.into_iter().map(|n| if path.is_empty() { n } else { [&path[..], &n].join(&b'/') }));
    }
    packing.finish()
}

impl<'a, W: Write> Packing<'a, W> {
    fn new(root: &'a Path, out: W, holes: Holes, progress: &'a dyn Fn(u64)) -> Result<Packing<'a, W>> {
        let top = crate::sys::file::open_dir(root).map_err(Error::io("open", root))?;
        let (links, packed) = Default::default();
        Ok(Packing {
            root,
            dirs: Nearby::new(top),
            packer: Packer::new(out),
            links,
            holes,
            packed,
            bytes: 0,
            zeros: 0,
            progress,
        })
    }

    fn finish(mut self) -> Result<(W, Packed)> {
        self.packed.links_split = self.links.links_split;
        let out = self.packer.finish().map_err(Error::sys("write an archive"))?;
        Ok((out, self.packed))
    }

    fn io(&self, action: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> Error + use<W> {
        Error::io(action, self.root.join(shown(path)))
    }

    fn hide(&mut self, path: &[u8]) -> Result<()> {
        let (dir, name) = split(path);
        let marker = [b".wh.", name].concat();
        let whole = if dir.is_empty() { marker } else { [dir, &marker].join(&b'/') };
        let head = Head { kind: b'0', name: &whole, mode: 0o644, ..Head::default() };
        self.packer.head(&head).map_err(Error::sys("write an archive"))
    }

    fn write(&mut self, path: &[u8]) -> Result<FileType> {
        let (dir, name) = split(path);
        let name = if name.is_empty() { b"." } else { name };
        let dir = self.dirs.open(dir).map_err(self.io("open the directory of", path))?;
        let stat = tree::stat(&dir, name).map_err(self.io("inspect", path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if path.split(|b| *b == b'/').any(|part| part.starts_with(b".wh.")) {
            self.packed.markers += 1;
            // What is in it is left out one by one.
            return Ok(kind);
        }
        let mut whole = path.to_owned();
        let mut head = Head {
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            ..Head::default()
        };
        match kind {
            FileType::RegularFile => return self.regular((&dir, name), path, &stat, head).map(|()| kind),
            FileType::Directory => {
                let fd = tree::open_child(&dir, name).map_err(self.io("open", path))?;
                head.xattrs = self.xattrs(&fd, path)?;
                whole.extend_from_slice(if path.is_empty() { b"./" } else { b"/" });
                (head.kind, head.name) = (b'5', &whole);
                self.packer.head(&head).map_err(Error::sys("write an archive"))?;
            }
            FileType::Symlink => {
                let target = tree::open_node(&dir, name).and_then(tree::read_link);
                let target = target.map_err(self.io("read", path))?;
                (head.kind, head.name, head.link, head.mode) = (b'2', &whole, &target, 0o777);
                self.packer.head(&head).map_err(Error::sys("write an archive"))?;
            }
            FileType::Fifo => {
                (head.kind, head.name) = (b'6', &whole);
                self.packer.head(&head).map_err(Error::sys("write an archive"))?;
            }
            _ => self.packed.left_out += 1,
        }
        Ok(kind)
    }

    fn regular(&mut self, at: (&OwnedFd, &[u8]), path: &[u8], stat: &Stat, head: Head<'_>) -> Result<()> {
        if stat.st_nlink > 1 {
            let id = (stat.st_dev, stat.st_ino);
            if let Some((first, ())) = self.links.next_name(id) {
                let head = Head { kind: b'1', name: path, link: &first, ..head };
                return self.packer.head(&head).map_err(Error::sys("write an archive"));
            }
            self.links.note(id, path.to_owned(), (), stat.st_nlink as _);
        }
        let file = tree::open_file(at.0, at.1).map_err(self.io("open", path))?;
        let xattrs = self.xattrs(&file, path)?;
        let size = stat.st_size as u64;
        let head = Head { kind: b'0', name: path, size, xattrs, ..head };
        let pieces = sparse::pieces(&file, size).map_err(self.io("look for holes in", path))?;
        let holes = size - pieces.iter().map(|(_, length)| length).sum::<u64>();
        let written = if holes > 0 && self.holes == Holes::Kept {
            self.bytes += size - holes;
            self.packer.sparse(head, &file, &pieces)
        } else {
            self.count_zeros(holes, path)?;
            self.bytes += size;
            self.packer.head(&head).and_then(|()| self.packer.filled(size, &file, &pieces))
        };
        written.map_err(self.io("pack", path))?;
        (self.progress)(self.bytes);
        Ok(())
    }

    fn count_zeros(&mut self, holes: u64, path: &[u8]) -> Result<()> {
        self.zeros = self.zeros.saturating_add(holes);
        if self.zeros <= MOST_ZEROS {
            return Ok(());
        }
        Err(Error::NotSupported {
            what: format!(
                "an image's layer has no holes, and those of {} and other files are more than {} GiB of zeros",
                shown(path),
                MOST_ZEROS >> 30
            ),
            hint: Some("remove the file, or keep holes with `spark base export --tar FILE`".into()),
        })
    }

    fn xattrs(&mut self, fd: impl AsFd, path: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut names = tree::xattr_names(&fd).map_err(self.io("list attributes of", path))?;
        names.retain(|name| keeps_xattr(name));
        names.sort();
        let (mut all, mut bytes) = (Vec::new(), 0);
        for name in names {
            let value = tree::xattr(&fd, &name).map_err(self.io("read attributes of", path))?;
            let value = value.unwrap_or_default();
            let with_it = bytes + name.len() + value.len();
            if !keeps_value(&name, &value) {
                self.packed.xattrs_dropped += 1;
            } else if all.len() == XATTRS || with_it > XATTR_BYTES {
                self.packed.xattrs_beyond += 1;
            } else {
                bytes = with_it;
                all.push((name, value));
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
