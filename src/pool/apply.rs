//! A send stream made true: its commands carried out in a subvolume that is being made.
//!
//! The stream may come from a stranger. Whatever it says happens below the subvolume's top: every path is opened part
//! by part from there and no link is followed, so that one which the stream itself has planted leads nowhere. Data is
//! shared with the subvolume itself and with the parent, and with nothing else.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::FileType;

use super::stream::{Command, Uuid};
use crate::domain::ids;
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::tree;

/// Where a stream is to be applied, and which one is expected.
#[derive(Debug)]
pub struct Target<'a> {
    /// A subvolume: empty, or a writable copy of the parent.
    pub top: &'a Path,
    /// The UUID of what was sent, as the stream has to say it too.
    pub uuid: &'a str,
    /// The UUID of the parent where it was sent, and its copy here. None if the stream has to be whole.
    pub parent: Option<(&'a str, &'a Path)>,
    /// Files, directories and links that may be made.
    pub entries: u64,
}

/// What is not as it was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Files, directories and links.
    pub entries: u64,
    /// Files whose owner or group is beyond what a spark has, given to 65534.
    pub ids_mapped: u64,
    /// Extended attributes that are not kept.
    pub xattrs_dropped: u64,
}

/// Applies the commands of a stream, which `next` gives one after another, to their end.
///
/// # Errors
/// Those of `next`. `corrupt` for what is no stream, not the one that is expected, or asks for what cannot be. Then nothing can be said
/// of what is in `top`, and it has to go.
pub fn apply(mut next: impl FnMut() -> Result<Option<Command>>, target: &Target<'_>) -> Result<Summary> {
    let open = |path: &Path| sys::file::open_dir(path).map_err(Error::io("open", path));
    let mut applier = Applier {
        top: Rc::new(open(target.top)?),
        parent: target.parent.map(|(_, path)| open(path)).transpose()?,
        target,
        dir: None,
        file: None,
        summary: Summary::default(),
    };
    while let Some(command) = next()? {
        applier.run(command)?;
    }
    Ok(applier.summary)
}

struct Applier<'a> {
    top: Rc<OwnedFd>,
    parent: Option<OwnedFd>,
    target: &'a Target<'a>,
    /// The directory and the file used last: a stream goes file by file.
    dir: Option<(Vec<u8>, Rc<OwnedFd>)>,
    file: Option<(Vec<u8>, File)>,
    summary: Summary,
}

impl Applier<'_> {
    fn run(&mut self, command: Command) -> Result<()> {
        use Command as C;
        match command {
            C::Subvol { uuid, .. } => self.begin(uuid, None),
            C::Snapshot { uuid, clone_uuid, .. } => self.begin(uuid, Some(clone_uuid)),
            C::Write { path, offset, data } => self.write(path, offset, &data),
            C::Clone { .. } => self.clone_range(command),
            C::Truncate { path, size } => {
                self.in_file(&path, |file| file.set_len(size)).map_err(failed("truncate", &path))
            }
            C::UpdateExtent { .. } => Err(refused("it has no data: it is good for a comparison only")),
            C::SetXattr { .. }
            | C::RemoveXattr { .. }
            | C::Chmod { .. }
            | C::Chown { .. }
            | C::Utimes { .. } => self.describe(command),
            C::End => Ok(()),
            _ => self.name(command),
        }
    }

    /// Fails unless it is the stream that was announced.
    fn begin(&self, uuid: Uuid, parent: Option<Uuid>) -> Result<()> {
        let same = |said: &Uuid, expected: &str| hyphenated(said) == expected;
        let parents = match (&parent, self.target.parent) {
            (None, None) => true,
            (Some(said), Some((expected, _))) => same(said, expected),
            _ => false,
        };
        if parents && same(&uuid, self.target.uuid) {
            Ok(())
        } else {
            Err(refused("it is another subvolume's than the header says"))
        }
    }

    /// What makes, moves and removes names.
    fn name(&mut self, command: Command) -> Result<()> {
        use Command as C;
        // A name may mean another file from here on.
        self.file = None;
        match command {
            C::MkFile { path } => self.make(&path, |dir, name| tree::create_file(dir, name).map(drop)),
            C::MkDir { path } => self.make(&path, |dir, name| tree::make_dir(dir, name)),
            C::MkFifo { path } => self.make(&path, |dir, name| tree::make_fifo(dir, name)),
            C::MkSock { path } => self.make(&path, |dir, name| tree::make_node(dir, name, FileType::Socket)),
            C::MkNod { path, mode, rdev: 0 }
                if FileType::from_raw_mode(mode) == FileType::CharacterDevice =>
            {
                self.make(&path, |dir, name| tree::make_node(dir, name, FileType::CharacterDevice))
            }
            C::MkNod { path, .. } => {
                Err(refused(format!("`{}` is a device, which no spark has on disk", shown(&path))))
            }
            C::Symlink { path, link } => self.make(&path, |dir, name| tree::make_symlink(dir, name, &link)),
            C::Link { path, link } => {
                let (from, from_name) = self.split(&link).map_err(failed("link", &link))?;
                self.make(&path, |dir, name| tree::link(&*from, from_name, dir, name))
            }
            C::Rename { path, to } => {
                let renamed = self.split(&path).and_then(|(from, from_name)| {
                    let (dir, name) = self.split(&to)?;
                    tree::rename(&*from, from_name, &*dir, name)
                });
                self.dir = None;
                renamed.map_err(failed("rename", &path))
            }
            C::Unlink { path } => self
                .split(&path)
                .and_then(|(dir, name)| tree::unlink(&*dir, name))
                .map_err(failed("remove", &path)),
            C::RmDir { path } => {
                let removed = self.split(&path).and_then(|(dir, name)| tree::remove_dir(&*dir, name));
                self.dir = None;
                removed.map_err(failed("remove", &path))
            }
            other => Err(refused(format!("{other:?} has no place here"))),
        }
    }

    fn make(&mut self, path: &[u8], make: impl FnOnce(&OwnedFd, &[u8]) -> io::Result<()>) -> Result<()> {
        self.summary.entries += 1;
        if self.summary.entries > self.target.entries {
            return Err(refused(format!("it makes more than {} files", self.target.entries)));
        }
        self.split(path).and_then(|(dir, name)| make(&dir, name)).map_err(failed("make", path))
    }

    /// What says how a file is, besides its content.
    fn describe(&mut self, command: Command) -> Result<()> {
        use Command as C;
        match command {
            C::Chmod { path, mode } => self
                .split(&path)
                .and_then(|(dir, name)| tree::set_mode_at(&*dir, name, mode))
                .map_err(failed("set the mode of", &path)),
            C::Chown { path, uid, gid } => {
                let (user, group) = (ids::inside(uid.into()), ids::inside(gid.into()));
                self.summary.ids_mapped += u64::from((user, group) != (uid, gid));
                self.split(&path)
                    .and_then(|(dir, name)| tree::set_owner(&*dir, name, user, group))
                    .map_err(failed("set the owner of", &path))
            }
            C::Utimes { path, atime, mtime, .. } => self
                .split(&path)
                .and_then(|(dir, name)| tree::set_times_at(&*dir, name, atime, mtime))
                .map_err(failed("set the times of", &path)),
            C::RemoveXattr { name, .. } if !keeps_xattr(&name) => {
                self.summary.xattrs_dropped += 1;
                Ok(())
            }
            C::SetXattr { name, value, .. }
                if !keeps_xattr(&name)
                    || (name == b"security.capability" && ids::is_foreign_capability(&value)) =>
            {
                self.summary.xattrs_dropped += 1;
                Ok(())
            }
            C::SetXattr { path, name: attribute, value } => self
                .split(&path)
                .and_then(|(dir, name)| tree::set_xattr_at(&*dir, name, &attribute, &value))
                .map_err(failed("set an attribute of", &path)),
            C::RemoveXattr { path, name: attribute } => self
                .split(&path)
                .and_then(|(dir, name)| tree::remove_xattr_at(&*dir, name, &attribute))
                .map_err(failed("remove an attribute of", &path)),
            other => Err(refused(format!("{other:?} has no place here"))),
        }
    }

    fn write(&mut self, path: Vec<u8>, offset: u64, data: &[u8]) -> Result<()> {
        let written = self.in_file(&path, |mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.write_all(data)
        });
        written.map_err(failed("write", &path))
    }

    fn clone_range(&mut self, command: Command) -> Result<()> {
        let Command::Clone { path, offset, len, clone_uuid, clone_path, clone_offset, .. } = command else {
            return Ok(());
        };
        let from = hyphenated(&clone_uuid);
        let source = match (&self.parent, self.target.parent) {
            _ if from == self.target.uuid => self.top.as_ref(),
            (Some(parent), Some((uuid, _))) if from == uuid => parent,
            _ => {
                return Err(refused(format!(
                    "it takes data from the subvolume {from}, which is not its parent"
                )));
            }
        };
        if len == 0 {
            return Err(refused("it takes nothing from a file"));
        }
        let (dir, name) = split(&clone_path);
        let source = tree::open_dir(source, dir)
            .and_then(|dir| tree::open_file(dir, name))
            .map_err(failed("read", &clone_path))?;
        let cloned =
            self.in_file(&path, |file| sys::btrfs::clone_range((&source, clone_offset), (file, offset), len));
        cloned.map_err(failed("share data with", &path))
    }

    fn in_file<T>(&mut self, path: &[u8], work: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        if let Some((last, file)) = &self.file
            && last == path
        {
            return work(file);
        }
        let (dir, name) = self.split(path)?;
        let file = tree::open_file_to_write(&*dir, name)?;
        let done = work(&file);
        self.file = Some((path.to_owned(), file));
        done
    }

    /// The directory that a name is in, and the name. The top itself is `.` in it.
    fn split<'p>(&mut self, path: &'p [u8]) -> io::Result<(Rc<OwnedFd>, &'p [u8])> {
        let (dir, name) = split(path);
        if dir.is_empty() {
            return Ok((self.top.clone(), name));
        }
        if let Some((last, fd)) = &self.dir
            && last == dir
        {
            return Ok((fd.clone(), name));
        }
        let fd = Rc::new(tree::open_dir(&*self.top, dir)?);
        self.dir = Some((dir.to_owned(), fd.clone()));
        Ok((fd, name))
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None if path.is_empty() => (b"", b"."),
        None => (b"", path),
    }
}

/// Whether an extended attribute is kept. Ids in an ACL are on disk as they are inside. Others are of the host: labels
/// name its policy, `trusted.*` nobody inside can have set.
fn keeps_xattr(name: &[u8]) -> bool {
    matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
        || (name.starts_with(b"user.") && name.len() > 5)
}

fn hyphenated(uuid: &Uuid) -> String {
    let hex: String = uuid.iter().map(|b| format!("{b:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn refused(why: impl ToString) -> Error {
    Error::corrupt(Path::new("the send stream"), why)
}

/// What cannot be done is the stream's fault, unless it is the host's.
fn failed(action: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> Error {
    let path = shown(path);
    move |e| match e.raw_os_error() {
        Some(
            libc::ENOSPC
            | libc::EDQUOT
            | libc::EIO
            | libc::EROFS
            | libc::ENOMEM
            | libc::EMFILE
            | libc::ENFILE,
        ) => Error::io(action, path)(e),
        _ => refused(format!("it cannot {action} `{path}`: {e}")),
    }
}

/// A path as it may be printed: escaped, and not too long.
fn shown(path: &[u8]) -> String {
    match path.get(..200) {
        Some(start) => format!("{}…", start.escape_ascii()),
        None => path.escape_ascii().to_string(),
    }
}
