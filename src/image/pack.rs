//! Writing tar: the same bytes for the same tree, always.
//!
//! POSIX pax, with extended headers only where the plain ones cannot say it. Times are kept to the nanosecond, holes
//! are written as zeros: not every reader of layers knows holes.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::files::{keeps_value, keeps_xattr, shown, split};
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

/// What could not be written into an archive.
#[derive(Debug, Default)]
pub struct Packed {
    /// Device nodes and sockets.
    pub left_out: u64,
    /// Files whose names say that others are gone.
    pub markers: u64,
    /// Capabilities that are another user namespace's.
    pub xattrs_dropped: u64,
}

impl Packed {
    /// In words.
    pub fn notices(&self) -> impl Iterator<Item = String> {
        [
            (self.left_out, "device nodes or sockets were left out"),
            (self.markers, "files were left out whose names begin with `.wh.`, which in a layer means a file that is gone"),
            (self.xattrs_dropped, "file capabilities were dropped: they belong to a user namespace of another host"),
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

    fn content(&mut self, size: u64, content: impl Read) -> io::Result<()> {
        let copied = io::copy(&mut content.take(size), &mut self.out)?;
        if copied != size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let pad = size.next_multiple_of(512) - size;
        self.out.write_all(&[0; 512][..pad as usize])
    }

    fn head(&mut self, head: &Head<'_>) -> io::Result<()> {
        let mut pax = Vec::new();
        if head.name.len() > 100 {
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
            self.plain(&Head {
                kind: b'x',
                name: b"PaxHeaders/entry",
                mode: 0o644,
                size,
                ..Head::default()
            })?;
            self.out.write_all(&pax)?;
            self.pad(size)?;
        }
        self.plain(head)
    }

    fn plain(&mut self, head: &Head<'_>) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        let raw = header.as_old_mut();
        for (field, text) in [(&mut raw.name, head.name), (&mut raw.linkname, head.link)] {
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
    /// The first name of what has several.
    first: HashMap<u64, Vec<u8>>,
    packed: Packed,
    bytes: u64,
    progress: &'a dyn Fn(u64),
}

/// Writes steps of a tree that does not change meanwhile, in their order. Returns the output.
pub fn pack<W: Write>(
    root: &Path,
    steps: impl IntoIterator<Item = Step>,
    out: W,
    progress: &dyn Fn(u64),
) -> Result<(W, Packed)> {
    let mut packing = Packing::new(root, out, progress)?;
    for step in steps {
        match step {
            Step::Write(path) => drop(packing.write(&path)?),
            Step::Hide(path) => packing.hide(&path)?,
        }
    }
    packing.finish()
}

/// The same for all that is in a tree.
pub fn pack_all<W: Write>(root: &Path, out: W, progress: &dyn Fn(u64)) -> Result<(W, Packed)> {
    let mut packing = Packing::new(root, out, progress)?;
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
    fn new(root: &'a Path, out: W, progress: &'a dyn Fn(u64)) -> Result<Packing<'a, W>> {
        let top = crate::sys::file::open_dir(root).map_err(Error::io("open", root))?;
        let (first, packed) = Default::default();
        Ok(Packing {
            root,
            dirs: Nearby::new(top),
            packer: Packer::new(out),
            first,
            packed,
            bytes: 0,
            progress,
        })
    }

    fn finish(self) -> Result<(W, Packed)> {
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
            if let Some(first) = self.first.get(&stat.st_ino) {
                let head = Head { kind: b'1', name: path, link: first, ..head };
                return self.packer.head(&head).map_err(Error::sys("write an archive"));
            }
            self.first.insert(stat.st_ino, path.to_owned());
        }
        let file = tree::open_file(at.0, at.1).map_err(self.io("open", path))?;
        let xattrs = self.xattrs(&file, path)?;
        let head = Head { kind: b'0', name: path, size: stat.st_size as u64, xattrs, ..head };
        let written = self.packer.head(&head).and_then(|()| self.packer.content(head.size, &file));
        written.map_err(self.io("pack", path))?;
        self.bytes += head.size;
        (self.progress)(self.bytes);
        Ok(())
    }

    fn xattrs(&mut self, fd: impl AsFd, path: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let read = || -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
            let mut names = tree::xattr_names(&fd)?;
            names.retain(|name| keeps_xattr(name));
            names.sort();
            let values = names.into_iter().map(|name| Ok((tree::xattr(&fd, &name)?, name)));
            values.map(|v: io::Result<_>| v.map(|(v, name)| (name, v.unwrap_or_default()))).collect()
        };
        let mut all = read().map_err(self.io("read attributes of", path))?;
        let count = all.len();
        all.retain(|(name, value)| keeps_value(name, value));
        self.packed.xattrs_dropped += (count - all.len()) as u64;
        Ok(all)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::image::unpack;

    #[test]
    fn a_record_counts_its_own_length_where_that_gets_a_digit_more() {
        for value in [0, 1, 85, 86, 87, 88, 984, 985, 986, 987] {
            let mut pax = Vec::new();
            record(&mut pax, b"path", &vec![b'x'; value]);
            let text = String::from_utf8(pax.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), pax.len());
        }
    }

    #[test]
    fn times_before_1970_are_written_as_they_are_read() {
        assert_eq!(time(-2, 750_000_000), "-1.25");
        assert_eq!(time(-2, 0), "-2");
        assert_eq!(time(-1, 1), "-0.999999999");
        assert_eq!((time(5, 0), time(5, 10)), ("5".into(), "5.00000001".into()));
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_packed() {
        let top = tempfile::tempdir().unwrap();
        let mut dir = crate::sys::file::open_dir(top.path()).unwrap();
        let name = [b'd'; 200];
        for _ in 0..50 {
            tree::make_dir(&dir, &name).unwrap();
            dir = tree::open_child(&dir, &name).unwrap();
        }
        tree::create_file(&dir, b"bottom").unwrap();
        tree::make_dir(crate::sys::file::open_dir(top.path()).unwrap(), b"e").unwrap();
        let (bytes, _) = pack_all(top.path(), Vec::new(), &|_| {}).unwrap();
        let back = tempfile::tempdir().unwrap();
        let options = unpack::Options {
            what: "it",
            limits: crate::image::Limits::default(),
            program: Path::new(""),
            progress: &|_| {},
            stop: None,
        };
        assert_eq!(
            unpack::unpack(io::Cursor::new(bytes.clone()), back.path(), &options).unwrap().entries,
            53
        );
        let fd = crate::sys::file::open_dir(back.path()).unwrap();
        let deep = tree::open_dir(&fd, &[&name[..]; 50].join(&b'/')).unwrap();
        assert_eq!(
            (tree::names(deep).unwrap(), tree::names(fd).unwrap().len()),
            (vec![b"bottom".to_vec()], 2)
        );
        tree::clear(crate::sys::file::open_dir(back.path()).unwrap()).unwrap();
        tree::clear(crate::sys::file::open_dir(top.path()).unwrap()).unwrap();
    }

    #[test]
    fn what_was_packed_unpacks_to_the_same_and_twice_to_the_same_bytes() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let top = from.path();
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
        std::fs::create_dir(top.join("d".repeat(120))).unwrap();
        std::fs::write(top.join(&long), "long").unwrap();
        std::os::unix::fs::symlink("x".repeat(300), top.join("link")).unwrap();
        std::fs::write(top.join("b"), vec![9; 70_000]).unwrap();
        std::fs::hard_link(top.join("b"), top.join("c")).unwrap();
        std::fs::write(top.join(".wh.x"), "").unwrap();
        let pack = || pack_all(top, Vec::new(), &|_| {}).unwrap();
        let ((bytes, packed), (again, _)) = (pack(), pack());
        assert_eq!(packed.markers, 1);
        assert!(bytes == again);
        let limits = crate::image::Limits::default();
        let options =
            unpack::Options { what: "it", limits, program: Path::new(""), progress: &|_| {}, stop: None };
        unpack::unpack(io::Cursor::new(bytes.clone()), to.path(), &options).unwrap();
        assert_eq!(std::fs::read(to.path().join(&long)).unwrap(), b"long");
        let meta = |dir: &Path, name: &str| std::fs::symlink_metadata(dir.join(name)).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(meta(to.path(), "b").ino(), meta(to.path(), "c").ino());
        for name in ["b", "link", "c", &long] {
            let (a, b) = (meta(top, name), meta(to.path(), name));
            assert_eq!(
                (a.mtime(), a.mtime_nsec(), a.mode()),
                (b.mtime(), b.mtime_nsec(), b.mode()),
                "{name}"
            );
        }
        assert!(!to.path().join(".wh.x").exists());
    }
}
