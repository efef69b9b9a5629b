//! What a spark sees: its root, and what is mounted upon it while it runs. A path is followed as the spark would follow it,
//! link by link, so that it is known which mount it ends in.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags};

use super::Owner;
use crate::sys::{beneath, tree};

/// How many links a path may lead through, as in the kernel.
const LINKS: u32 = 40;

/// Files that a spark sees somewhere, opened.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) top: Rc<OwnedFd>,
    /// Whose the copies are that are made there.
    pub(super) owner: Owner,
    /// A user and group of the host whose files belong to root inside, and all others to nobody.
    pub(super) seen_as_root: Option<(u32, u32)>,
    /// Whether it is a subvolume of the pool, which a restore or a delete takes away.
    pub(super) is_subvolume: bool,
}

/// What is mounted somewhere.
#[derive(Debug, Clone)]
pub(super) enum What {
    /// A directory. `closed` says why nothing is written there, if it is so. All reasons follow the place: "which is ...".
    Dir { files: Files, closed: Option<String> },
    /// A file of the host, to be read, and why it is not written.
    File(PathBuf, String),
    /// What is not to be reached, and why.
    Hidden(String),
}

impl What {
    /// Why nothing is written to it, if it is so.
    pub(super) fn closed(&self) -> Option<&str> {
        match self {
            What::Dir { closed, .. } => closed.as_deref(),
            What::File(_, why) | What::Hidden(why) => Some(why),
        }
    }

    /// The file of the host that it is.
    pub(super) fn file(self) -> Option<PathBuf> {
        if let What::File(path, _) = self { Some(path) } else { None }
    }
}

#[derive(Debug)]
struct Mount {
    at: PathBuf,
    what: What,
}

/// A spark's files as it sees them.
#[derive(Debug)]
pub(super) struct View {
    root: Files,
    /// None of them below a later one, which would hide it.
    mounts: Vec<Mount>,
}

/// Where a path ends.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// Among these files, under this path.
    Files(&'a Files, PathBuf),
    /// At a mounted file, or among what only the running spark has.
    Mounted(&'a What, &'a Path),
}

impl View {
    pub(super) fn new(root: Files) -> View {
        View { root, mounts: Vec::new() }
    }

    /// The root alone, without what is mounted.
    pub(super) fn root(&self) -> &Files {
        &self.root
    }

    /// Mounts something, after what was mounted before it.
    pub(super) fn mount(&mut self, at: &Path, what: What) -> io::Result<()> {
        let at = self.walk(at, true)?;
        self.mounts.retain(|earlier| !earlier.at.starts_with(&at));
        self.mounts.push(Mount { at, what });
        Ok(())
    }

    /// Adds a mount that a running spark has, unless it is known. Of what it is, nothing is known.
    pub(super) fn mounted_inside(&mut self, at: &Path) {
        let known = |mount: &Mount| match mount.what {
            What::Hidden(_) => at.starts_with(&mount.at),
            _ => at == mount.at,
        };
        if at != Path::new("/") && !self.mounts.iter().any(known) {
            let what = What::Hidden("which what runs in the spark has mounted".into());
            self.mounts.push(Mount { at: at.to_owned(), what });
        }
    }

    /// Where an absolute path without links ends.
    pub(super) fn find(&self, path: &Path) -> Found<'_> {
        let around = self.mounts.iter().filter(|mount| path.starts_with(&mount.at));
        match around.max_by_key(|mount| mount.at.components().count()) {
            None => Found::Files(&self.root, path.strip_prefix("/").unwrap_or(path).to_owned()),
            Some(Mount { at, what: What::Dir { files, .. } }) => {
                Found::Files(files, path.strip_prefix(at).unwrap_or(path).to_owned())
            }
            Some(Mount { at, what }) => Found::Mounted(what, at),
        }
    }

    /// Why nothing is written to a path without links, if it is so, and what is mounted there.
    pub(super) fn closed(&self, path: &Path) -> Option<(&Path, &str)> {
        let around = self.mounts.iter().filter(|mount| path.starts_with(&mount.at));
        let mount = around.max_by_key(|mount| mount.at.components().count())?;
        mount.what.closed().map(|why| (&*mount.at, why))
    }

    /// What is mounted at and below a path without links, by the path from there.
    pub(super) fn below(&self, path: &Path) -> impl Iterator<Item = (Vec<u8>, &What)> {
        self.mounts.iter().filter_map(move |mount| {
            let rest = mount.at.strip_prefix(path).ok()?;
            Some((rest.as_os_str().as_bytes().to_owned(), &mount.what))
        })
    }

    /// A path with every link in it followed, or every one but the last. What is not there is taken by its words.
    ///
    /// # Errors
    /// `ELOOP`.
    pub(super) fn walk(&self, path: &Path, follow: bool) -> io::Result<PathBuf> {
        let mut todo: VecDeque<OsString> = names(path).collect();
        let (mut at, mut links) = (PathBuf::from("/"), LINKS);
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            at.push(&name);
            if todo.is_empty() && !follow {
                break;
            }
            if let Some(target) = self.link(&at)? {
                links = links.checked_sub(1).ok_or_else(|| io::Error::from_raw_os_error(libc::ELOOP))?;
                at.pop();
                let target = Path::new(OsStr::from_bytes(&target));
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                names(target).rev().for_each(|name| todo.push_front(name));
            }
        }
        Ok(at)
    }

    /// Where the link at a path leads; none if there is no link.
    fn link(&self, at: &Path) -> io::Result<Option<Vec<u8>>> {
        let Found::Files(files, path) = self.find(at) else { return Ok(None) };
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        let node =
            match beneath::open_with(&*files.top, &path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
                node => node?,
            };
        let is_link = rustix::fs::fstat(&node)?.st_mode & libc::S_IFMT == libc::S_IFLNK;
        is_link.then(|| tree::read_link(&node)).transpose()
    }
}

/// The names of a path, `..` among them.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    let name = |component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(name).collect::<Vec<_>>().into_iter()
}

/// The places of all mounts in the text of a mountinfo file.
pub(super) fn mount_points(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> {
    mountinfo.split(|b| *b == b'\n').filter_map(|line| {
        let place = line.split(|b| *b == b' ').nth(4)?;
        Some(PathBuf::from(OsString::from(OsStr::from_bytes(&unescaped(place)))))
    })
}

/// Bytes in which the kernel has written some as a backslash and three octal digits.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let octal = |digits: &[u8]| {
        let digit = |b: &u8| matches!(b, b'0'..=b'7').then(|| u32::from(b - b'0'));
        let value = digits.iter().try_fold(0, |value, b| Some(value * 8 + digit(b)?))?;
        u8::try_from(value).ok()
    };
    let (mut out, mut at) = (Vec::with_capacity(text.len()), 0);
    while let Some(byte) = text.get(at) {
        let value = (*byte == b'\\').then(|| text.get(at + 1..at + 4).and_then(octal)).flatten();
        out.push(value.unwrap_or(*byte));
        at += if value.is_some() { 4 } else { 1 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn files(dir: &Path) -> Files {
        let top = Rc::new(crate::sys::file::open_dir(dir).unwrap());
        Files { top, owner: Owner::Kept, seen_as_root: None, is_subvolume: false }
    }

    #[test]
    fn a_path_is_followed_as_the_spark_follows_it() {
        let (root, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in ["data/hidden", "etc", "real"] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        std::fs::create_dir(volume.path().join("sub")).unwrap();
        for (link, target) in
            [("to-data", "/data"), ("up", "../../data/sub"), ("loop", "loop"), ("etc/x", "y")]
        {
            symlink(target, root.path().join(link)).unwrap();
        }
        symlink("/real", volume.path().join("back")).unwrap();
        let mut view = View::new(files(root.path()));
        view.mount(Path::new("/etc/hosts"), What::Hidden("h".into())).unwrap();
        view.mount(Path::new("/to-data"), What::Dir { files: files(volume.path()), closed: None }).unwrap();
        for (path, expected) in [
            ("/data/sub/f", "/data/sub/f"),
            ("to-data/sub/./f", "/data/sub/f"),
            ("/up/../new", "/data/new"),
            // From the volume back to the root, and not to `real` in the volume.
            ("/data/back/f", "/real/f"),
            ("/../../nope/../etc/x", "/etc/y"),
            ("/data/hidden", "/data/hidden"),
        ] {
            assert_eq!(view.walk(Path::new(path), true).unwrap(), Path::new(expected), "{path}");
        }
        assert_eq!(view.walk(Path::new("/etc/x"), false).unwrap(), Path::new("/etc/x"));
        assert!(view.walk(Path::new("/loop/x"), true).is_err());
        assert!(
            matches!(view.find(Path::new("/data/sub")), Found::Files(_, path) if path == Path::new("sub"))
        );
        assert!(matches!(view.find(Path::new("/etc/hosts")), Found::Mounted(What::Hidden(_), _)));
        assert!(matches!(view.find(Path::new("/etc/hosts2")), Found::Files(_, _)));
        // A later mount hides what was mounted below it.
        view.mount(Path::new("/etc"), What::Hidden("e".into())).unwrap();
        assert_eq!(view.below(Path::new("/")).count(), 2);
    }

    #[test]
    fn the_places_of_mounts_are_read_whatever_is_in_their_names() {
        let text =
            b"22 1 0:21 / /a\\040b\\134c rw - tmpfs x rw\n23 22 0:22 / /d\\9\\777 rw - tmpfs x rw\n\nodd\n";
        let expected = [Path::new("/a b\\c"), Path::new("/d\\9\\777")];
        assert_eq!(mount_points(text).collect::<Vec<_>>(), expected);
    }
}
