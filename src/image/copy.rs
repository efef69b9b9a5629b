//! Copying a directory of the host, by the same rules as an archive.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::files::{self, Limits, Made, Meta, Problem, Root, Summary, io};
use crate::error::{Error, Result};
use crate::sys::tree;

/// How to copy.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// What the directory is called in errors.
    pub what: &'a str,
    pub limits: Limits,
    /// A directory to leave out, by device and inode: where the copy itself is.
    pub except: Option<(u64, u64)>,
    /// Hears how many entries were copied.
    pub progress: &'a dyn Fn(u64),
}

impl std::fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("what", &self.what)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Copies a directory into an empty one. Links are copied, never followed; hard links stay hard links within
/// the copy; extents are shared where both are on one filesystem that can. Other mounts inside, device nodes
/// and sockets are left out and counted.
///
/// # Errors
/// `not_found` without a source, `image` for what is refused.
pub fn copy(source: &Path, target: &Path, options: &Options<'_>) -> Result<Summary> {
    let from = crate::sys::file::open_dir(source).map_err(Error::io("open", source))?;
    let to = Root::open(target).map_err(Error::io("open", target))?;
    let mut copier = Copier {
        from,
        to,
        options,
        summary: Summary::default(),
        links: HashMap::new(),
        todo: vec![Vec::new()],
    };
    while let Some(path) = copier.todo.pop() {
        copier.directory(&path).map_err(|(name, problem)| match problem {
            Problem::Io(action @ ("read" | "open" | "list" | "inspect"), e) => {
                Error::io(action, source.join(files::shown(&name)))(e)
            }
            problem => problem.of(options.what, target, &name),
        })?;
    }
    copier.summary.xattrs_dropped += copier.to.xattrs_dropped;
    Ok(copier.summary)
}

struct Copier<'a> {
    from: OwnedFd,
    to: Root,
    options: &'a Options<'a>,
    summary: Summary,
    /// Where the first name of a file with several was copied to.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Directories that are made, but not filled. Paths, not descriptors: a deep tree would use those up.
    todo: Vec<Vec<u8>>,
}

type Named<T> = std::result::Result<T, (Vec<u8>, Problem)>;

impl Copier<'_> {
    /// Fills a directory, and sets what it is itself last: nothing is made in it after that, only below.
    fn directory(&mut self, path: &[u8]) -> Named<()> {
        let here = |p: Problem| (path.to_vec(), p);
        let dir = tree::open_dir_on_mount(&self.from, path).map_err(io("open")).map_err(here)?;
        let stat = rustix::fs::fstat(&dir).map_err(|e| here(Problem::Io("inspect", e.into())))?;
        for name in tree::names(&dir).map_err(io("list")).map_err(here)? {
            let mut child = path.to_vec();
            if !child.is_empty() {
                child.push(b'/');
            }
            child.extend_from_slice(&name);
            self.entry(&dir, &name, &child).map_err(|p| (child, p))?;
        }
        let meta = self.meta(&stat, Some(dir.as_fd())).map_err(here)?;
        self.to.directory(path, &meta).map_err(here)
    }

    fn entry(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Made<()> {
        if self.summary.entries >= self.options.limits.entries {
            return Err(Problem::Refused(format!(
                "is one more than the {} entries that it may have",
                self.options.limits.entries
            )));
        }
        let path = &files::relative(path)?;
        let stat = match tree::stat(dir, name) {
            Ok(stat) => stat,
            // Removed meanwhile: a host's directory may be in use.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Problem::Io("inspect", e)),
        };
        let kind = stat.st_mode & libc::S_IFMT;
        if !matches!(kind, libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK | libc::S_IFIFO) {
            self.summary.left_out += 1;
            return Ok(());
        }
        self.summary.entries += 1;
        (self.options.progress)(self.summary.entries);
        let several = kind != libc::S_IFDIR && stat.st_nlink > 1;
        if several && let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
            let first = first.clone();
            return self.to.hard_link(path, &first);
        }
        match kind {
            libc::S_IFREG => self.file(dir, name, path)?,
            libc::S_IFDIR => return self.below(path, &stat),
            libc::S_IFLNK => {
                let target = tree::read_link(dir, name).map_err(io("read"))?;
                let meta = self.meta(&stat, None)?;
                self.to.symlink(path, &target, &meta)?;
            }
            _ => {
                let meta = self.meta(&stat, None)?;
                self.to.fifo(path, &meta)?;
            }
        }
        if several {
            self.links.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        Ok(())
    }

    fn file(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Made<()> {
        let from = tree::open_file(dir, name).map_err(io("open"))?;
        let stat = rustix::fs::fstat(&from).map_err(|e| Problem::Io("inspect", e.into()))?;
        // Blocks, and not the size: holes take nothing.
        let takes = (stat.st_size as u64).min(stat.st_blocks as u64 * 512);
        if self.summary.bytes.saturating_add(takes) > self.options.limits.bytes {
            return Err(files::no_room());
        }
        let to = self.to.file(path)?;
        self.summary.bytes += tree::copy_content(&from, &to, &mut |_| {}).map_err(io("copy"))?;
        let meta = self.meta(&stat, Some(from.as_fd()))?;
        self.to.finish(&to, &meta)
    }

    fn below(&mut self, path: &[u8], stat: &rustix::fs::Stat) -> Made<()> {
        let mounted = match tree::open_dir_on_mount(&self.from, path) {
            Ok(_) => false,
            Err(e) if e.raw_os_error() == Some(libc::EXDEV) => true,
            Err(e) => return Err(Problem::Io("open", e)),
        };
        if mounted || self.options.except == Some((stat.st_dev, stat.st_ino)) {
            self.summary.mounts_skipped += 1;
            let meta = self.meta(stat, None)?;
            return self.to.directory(path, &meta);
        }
        self.todo.push(path.to_vec());
        // Made now, so that the time of its parent can be set; what it is itself comes when it is filled.
        self.to.directory(path, &Meta { mode: 0o700, ..Meta::default() })
    }

    fn meta(&mut self, stat: &rustix::fs::Stat, fd: Option<BorrowedFd<'_>>) -> Made<Meta> {
        let (uid, gid) = (files::owner(stat.st_uid.into()), files::owner(stat.st_gid.into()));
        if uid != stat.st_uid || gid != stat.st_gid {
            self.summary.ids_mapped += 1;
        }
        let mut xattrs = Vec::new();
        if let Some(fd) = fd {
            for name in tree::xattr_names(fd).map_err(io("read"))? {
                if !files::keeps_xattr(&name) {
                    self.summary.xattrs_dropped += 1;
                } else if let Some(value) = tree::xattr(fd, &name).map_err(io("read"))? {
                    xattrs.push((name, value));
                }
            }
        }
        let mtime = Some((stat.st_mtime, stat.st_mtime_nsec as u32));
        Ok(Meta { mode: stat.st_mode & 0o7777, uid, gid, mtime, xattrs })
    }
}
